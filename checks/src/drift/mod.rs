//! What an audit keeps of a server to see later what has changed: roles, grants, settings, access rules, schema, extensions.
//! A snapshot holds names, rights and digests of definitions; it holds no password, no hash of one, and no value of a
//! setting that may carry one.

mod clickhouse;
mod elasticsearch;
mod mongodb;
mod postgres;
mod redis;
mod sqlite;

use std::{collections::BTreeMap, fmt, time::Duration};

use fettler_engine::{Answer, Question, Row, Versions};
use fettler_model::{Area, Engine, Finding, Fix, Severity, Status, Timestamp};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{CheckLine, Group, Judged, Verdict, evaluate::NOT_EVALUABLE};

/// How many things of a section are compared. Where there are more, the section is told as not evaluable.
pub const MOST_ITEMS: usize = 20_000;
/// How many changes of a section are told one by one.
const MOST_CHANGES: usize = 200;
/// What a state says of somebody who may do everything, or come in without a password.
const GAINS: [&str; 6] = [
    "superuser",
    " trust",
    "+@all",
    "nopass",
    "no_password",
    "all_access",
];
/// How long a question for a snapshot may take.
const TIMEOUT: Duration = Duration::from_secs(25);

/// A side of a server that is compared.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Section {
    /// Roles, their attributes and memberships.
    Roles,
    /// Who may do what with what.
    Grants,
    /// Settings that somebody has set.
    Settings,
    /// The rules by which clients are let in.
    AccessRules,
    /// Definitions of tables, views, functions and the like.
    Schema,
    /// Extensions and their versions.
    Extensions,
}

impl Section {
    /// Its name, the last part of the check's id.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Roles => "roles",
            Self::Grants => "grants",
            Self::Settings => "settings",
            Self::AccessRules => "access_rules",
            Self::Schema => "schema",
            Self::Extensions => "extensions",
        }
    }

    /// The id of the check that compares it.
    #[must_use]
    pub fn check(self, engine: Engine) -> String {
        format!("{engine}.drift_{}", self.as_str())
    }

    const fn severity(self) -> Severity {
        match self {
            Self::Roles | Self::Grants | Self::AccessRules => Severity::Medium,
            Self::Settings | Self::Extensions => Severity::Low,
            Self::Schema => Severity::Info,
        }
    }
}

impl fmt::Display for Section {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.as_str().replace('_', " "))
    }
}

/// What was seen of a section.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// Each thing by its name, and how it was.
    Items(BTreeMap<String, String>),
    /// It could not be seen, and why.
    Hidden(String),
}

/// A server as it was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Snapshot {
    /// The engine.
    pub engine: Engine,
    /// When it was seen.
    pub taken: Timestamp,
    /// What was seen.
    pub sections: BTreeMap<Section, Part>,
}

/// One thing that is not as it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Of which section.
    pub section: Section,
    /// Its name.
    pub name: String,
    /// How it was; none where it is new.
    pub before: Option<String>,
    /// How it is; none where it is gone.
    pub now: Option<String>,
}

impl Change {
    /// The key of its finding.
    #[must_use]
    pub fn key(&self, engine: Engine) -> String {
        Finding::key_of(&self.section.check(engine), &self.name)
    }
}

/// What is asked for a part of a section: names and states. What stands in a state behind the character 1 is a definition, of
/// which a digest is kept.
#[derive(Clone, Copy)]
struct Asked {
    section: Section,
    versions: &'static str,
    needs: Option<&'static str>,
    text: &'static str,
}

impl Asked {
    const fn of(section: Section, text: &'static str) -> Self {
        Self {
            section,
            versions: "",
            needs: None,
            text,
        }
    }

    /// Only of servers of these versions.
    const fn versions(mut self, versions: &'static str) -> Self {
        self.versions = versions;
        self
    }

    /// Only with this privilege, without which the server would show a part.
    const fn needs(mut self, privilege: &'static str) -> Self {
        self.needs = Some(privilege);
        self
    }
}

/// What an engine's server is asked for a snapshot.
#[must_use]
pub fn drift_questions(engine: Engine) -> Vec<Question> {
    let (of, whole): (&[Asked], fn(&str) -> String) = match engine {
        Engine::Postgres => (postgres::QUESTIONS, postgres::whole),
        Engine::Sqlite => (sqlite::QUESTIONS, sqlite::whole),
        Engine::Redis => (redis::QUESTIONS, str::to_owned),
        Engine::Mongodb => (mongodb::QUESTIONS, str::to_owned),
        Engine::Clickhouse => (clickhouse::QUESTIONS, clickhouse::whole),
        Engine::Elasticsearch => (elasticsearch::QUESTIONS, str::to_owned),
    };
    of.iter()
        .enumerate()
        .map(|(at, asked)| Question {
            id: format!("{}#{at}", asked.section.check(engine)),
            versions: asked.versions.parse::<Versions>().unwrap_or_default(),
            needs: asked.needs.map(str::to_owned),
            text: whole(asked.text),
            timeout: TIMEOUT,
        })
        .collect()
}

/// The snapshot that the answers give.
#[must_use]
pub fn snapshot_of(engine: Engine, answers: &[Answer], taken: Timestamp) -> Snapshot {
    let mut sections: BTreeMap<Section, Part> = BTreeMap::new();
    for answer in answers {
        let Some(section) = section_of(engine, &answer.id) else {
            continue;
        };
        let part = match &answer.rows {
            Err(fettler_engine::Refusal::OtherVersion) => continue,
            Err(refusal) => Part::Hidden(refusal.to_string()),
            Ok(rows) => items(rows),
        };
        match (sections.get_mut(&section), part) {
            (Some(Part::Items(known)), Part::Items(more)) => known.extend(more),
            (Some(Part::Hidden(_)), _) => {}
            (_, part) => {
                sections.insert(section, part);
            }
        }
    }
    Snapshot {
        engine,
        taken,
        sections,
    }
}

fn section_of(engine: Engine, id: &str) -> Option<Section> {
    [
        Section::Roles,
        Section::Grants,
        Section::Settings,
        Section::AccessRules,
        Section::Schema,
        Section::Extensions,
    ]
    .into_iter()
    .find(|section| id.split('#').next() == Some(section.check(engine).as_str()))
}

fn items(rows: &[Row]) -> Part {
    let Some(row) = rows.first() else {
        return Part::Hidden("the server gave no answer".to_owned());
    };
    let seen = row.get("items_seen").and_then(Value::as_u64);
    let items = match row.get("items") {
        Some(Value::Object(items)) => Some(items.clone()),
        // Where a server has no type for it, it is a text.
        Some(Value::String(text)) => serde_json::from_str(text).ok(),
        _ => None,
    };
    match (items, seen) {
        (Some(items), _) if items.len() <= MOST_ITEMS => Part::Items(
            items
                .into_iter()
                .map(|(name, state)| (name, kept(state.as_str().unwrap_or_default())))
                .collect(),
        ),
        (None, Some(0)) => Part::Items(BTreeMap::new()),
        (None, Some(seen)) if seen > MOST_ITEMS as u64 => Part::Hidden(format!(
            "there are {seen} of them, and {MOST_ITEMS} are the most that are compared"
        )),
        _ => Part::Hidden("the server's answer cannot be read".to_owned()),
    }
}

/// A state as it is kept: with the digest of a definition in its place.
fn kept(state: &str) -> String {
    match state.split_once('\u{1}') {
        None => state.to_owned(),
        Some((said, definition)) => {
            let digest = blake3::hash(definition.as_bytes()).to_hex();
            format!("{said}{}", &digest[..8])
        }
    }
}

impl Snapshot {
    /// What is not as it was in `before`. What was hidden then or is now gives no change.
    #[must_use]
    pub fn changes_since(&self, before: &Self) -> Vec<Change> {
        let mut changes = Vec::new();
        for (section, part) in &self.sections {
            let (Part::Items(now), Some(Part::Items(then))) = (part, before.sections.get(section))
            else {
                continue;
            };
            let change = |name: &String| Change {
                section: *section,
                name: name.clone(),
                before: then.get(name).cloned(),
                now: now.get(name).cloned(),
            };
            changes.extend(
                now.iter()
                    .filter(|(name, state)| then.get(*name) != Some(*state))
                    .map(|(name, _)| change(name)),
            );
            changes.extend(
                then.keys()
                    .filter(|name| !now.contains_key(*name))
                    .map(change),
            );
        }
        changes
    }

    /// Takes over from `now` what is said to be well: all of it, or the changes with these keys (or of these checks). Sections
    /// that were hidden before are taken over in any case, since nothing is lost by that. Gives how many changes that were.
    pub fn accept(&mut self, now: &Self, accepted: &[String]) -> u64 {
        let mut count = 0;
        let engine = self.engine;
        let is_accepted = |change: &Change| {
            accepted.iter().any(|word| {
                word == "all"
                    || *word == change.key(engine)
                    || *word == change.section.check(engine)
            })
        };
        for change in now.changes_since(self) {
            if !is_accepted(&change) {
                continue;
            }
            count += 1;
            if let Some(Part::Items(items)) = self.sections.get_mut(&change.section) {
                match change.now {
                    Some(state) => items.insert(change.name, state),
                    None => items.remove(&change.name),
                };
            }
        }
        for (section, part) in &now.sections {
            let is_known = matches!(self.sections.get(section), Some(Part::Items(_)));
            if !is_known && matches!(part, Part::Items(_)) {
                self.sections.insert(*section, part.clone());
            }
        }
        count
    }

    /// The findings of comparing: one for each change. A section that could not be seen is told, and resolves nothing.
    #[must_use]
    pub fn judged(&self, before: &Self) -> Judged {
        let mut judged = Judged::default();
        let changes = self.changes_since(before);
        for (section, part) in &self.sections {
            let check = section.check(self.engine);
            let of_it: Vec<&Change> = changes
                .iter()
                .filter(|change| change.section == *section)
                .collect();
            let verdict = match part {
                Part::Hidden(because) => {
                    judged.findings.push(self.hidden(*section, because));
                    Verdict::NotEvaluable
                }
                Part::Items(_) => {
                    if of_it.len() <= MOST_CHANGES {
                        judged.conclusive.insert(check.clone());
                    }
                    if of_it.is_empty() {
                        Verdict::Passed
                    } else {
                        Verdict::Found
                    }
                }
            };
            judged.findings.extend(
                of_it
                    .iter()
                    .take(MOST_CHANGES)
                    .map(|change| self.finding(change, before)),
            );
            judged.lines.push(CheckLine {
                check,
                group: Group::Drift,
                verdict,
                because: match part {
                    Part::Hidden(because) => Some(because.clone()),
                    Part::Items(_) => None,
                },
            });
        }
        judged
    }

    fn finding(&self, change: &Change, before: &Self) -> Finding {
        let check = change.section.check(self.engine);
        let (what, verb) = match (&change.before, &change.now) {
            (None, _) => (format!("is new: {}", short(change.now.as_deref())), "came"),
            (_, None) => (
                format!("is gone; it was {}", short(change.before.as_deref())),
                "went",
            ),
            _ => (
                format!(
                    "is {}, and was {}",
                    short(change.now.as_deref()),
                    short(change.before.as_deref())
                ),
                "changed",
            ),
        };
        let key = change.key(self.engine);
        // More power than before is what an intruder would take first.
        let gains = change
            .now
            .as_ref()
            .is_some_and(|now| GAINS.iter().any(|word| now.contains(word)));
        let severity = if gains {
            Severity::High
        } else {
            change.section.severity()
        };
        Finding {
            check,
            engine: self.engine,
            area: Area::Security,
            dimension: None,
            severity,
            object: change.name.clone(),
            title: format!("{} {what}", change.name),
            evidence: Row::from_iter([
                ("before".to_owned(), json!(change.before)),
                ("now".to_owned(), json!(change.now)),
                ("compared_with".to_owned(), json!(before.taken)),
            ]),
            why: format!(
                "It {verb} since {}. What nobody meant to change is a mistake, or somebody at work who should not be.",
                before.taken
            ),
            fix: Fix {
                text: "See who changed it. Where it is well, accept it, and it is what later audits compare with; otherwise set it back."
                    .to_owned(),
                commands: vec![format!("fettler audit DATABASE --accept '{}'", key.replace('\'', "'\\''"))],
            },
            references: vec!["PCI DSS 4.0 11.5.2".to_owned()],
            status: Status::Open,
            key,
        }
    }

    fn hidden(&self, section: Section, because: &str) -> Finding {
        let check = section.check(self.engine);
        Finding {
            key: Finding::key_of(&check, NOT_EVALUABLE),
            title: format!("{check} could not be looked at"),
            check,
            engine: self.engine,
            area: Area::Security,
            dimension: None,
            severity: Severity::Info,
            object: String::new(),
            evidence: Row::new(),
            why: "What cannot be seen cannot be compared with what it was.".to_owned(),
            fix: Fix {
                text: "Give the role that Fettler logs in as the right to see it (`fettler database grant-sql --for audit`)."
                    .to_owned(),
                commands: Vec::new(),
            },
            references: Vec::new(),
            status: Status::NotEvaluable {
                because: because.to_owned(),
            },
        }
    }
}

/// A state as it fits into a title.
fn short(state: Option<&str>) -> String {
    const MOST: usize = 100;
    let state = state.unwrap_or_default();
    if state.is_empty() {
        return "without anything".to_owned();
    }
    match state.char_indices().nth(MOST) {
        None => state.to_owned(),
        Some((at, _)) => format!("{}…", &state[..at]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(roles: &[(&str, &str)], settings: Option<&[(&str, &str)]>) -> Snapshot {
        let items = |items: &[(&str, &str)]| {
            Part::Items(
                items
                    .iter()
                    .map(|(name, state)| ((*name).to_owned(), (*state).to_owned()))
                    .collect(),
            )
        };
        let settings = settings.map_or_else(|| Part::Hidden("no right".to_owned()), items);
        Snapshot {
            engine: Engine::Postgres,
            taken: Timestamp::from_micros(0),
            sections: BTreeMap::from([
                (Section::Roles, items(roles)),
                (Section::Settings, settings),
            ]),
        }
    }

    #[test]
    fn every_question_names_versions_that_can_be_read() {
        for asked in [
            postgres::QUESTIONS,
            sqlite::QUESTIONS,
            redis::QUESTIONS,
            mongodb::QUESTIONS,
            clickhouse::QUESTIONS,
            elasticsearch::QUESTIONS,
        ]
        .concat()
        {
            let versions = asked.versions;
            assert!(versions.parse::<Versions>().is_ok(), "{versions:?}");
        }
    }

    #[test]
    fn what_came_went_or_changed_is_a_finding_until_it_is_accepted_or_set_back() {
        let mut before = snapshot(
            &[("role a", "login"), ("role b", "login")],
            Some(&[("x", "1")]),
        );
        let now = snapshot(
            &[("role a", "login, superuser"), ("role c", "login")],
            Some(&[("x", "1")]),
        );
        let judged = now.judged(&before);
        let told: Vec<(&str, Severity)> = judged
            .findings
            .iter()
            .map(|one| (one.key.as_str(), one.severity))
            .collect();
        assert_eq!(
            told,
            [
                ("postgres.drift_roles:role a", Severity::High),
                ("postgres.drift_roles:role c", Severity::Medium),
                ("postgres.drift_roles:role b", Severity::Medium),
            ]
        );
        assert!(judged.conclusive.contains("postgres.drift_settings"));
        assert_eq!(
            before.accept(&now, &["postgres.drift_roles:role a".to_owned()]),
            1
        );
        assert_eq!(now.changes_since(&before).len(), 2);
        assert_eq!(before.accept(&now, &["all".to_owned()]), 2);
        assert_eq!(now.changes_since(&before), []);
    }

    #[test]
    fn what_is_hidden_is_no_change_and_resolves_nothing_and_is_taken_over_once_it_is_seen() {
        let seen = snapshot(&[], Some(&[("x", "1")]));
        let hidden = snapshot(&[], None);
        let judged = hidden.judged(&seen);
        assert!(!judged.conclusive.contains("postgres.drift_settings"));
        assert_eq!(
            judged.findings[0].key,
            "postgres.drift_settings:not_evaluable"
        );
        let mut before = hidden;
        assert_eq!(before.accept(&seen, &[]), 0);
        assert_eq!(
            before.sections[&Section::Settings],
            seen.sections[&Section::Settings]
        );
        // One that was seen is never given up for one that is not.
        let mut before = seen.clone();
        before.accept(&snapshot(&[], None), &["all".to_owned()]);
        assert_eq!(before.sections, seen.sections);
    }
}
