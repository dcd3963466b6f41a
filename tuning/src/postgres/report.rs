//! Puts what was found into words: findings, each with what was seen, and the plan of actions that answer them.

use std::collections::BTreeSet;

use fettler_model::{
    ActionKind, Area, Engine, Expectation, Finding, Fix, JudgedBy, Severity, Status, TuningAction,
    TuningState,
};
use serde_json::{Map, Value, json};

use super::{
    Earlier,
    act::{action_id, index_name},
    choose::{Chosen, Weighed},
    drops::{redundant, unused},
    facts::{Facts, NoStatements, Table, quote},
    index::Candidate,
    settings, statements_on, tables,
    workload::Write,
};
use crate::Wishes;

/// How many times what it costs an index must save to be made without a person's look.
const SURELY: f64 = 3.0;
/// How much of a statement's text is shown.
const TEXT_LETTERS: usize = 160;
const MB: f64 = 1_048_576.0;

/// What becomes the report.
pub(crate) struct Report<'a> {
    facts: &'a Facts,
    statements: &'a [Weighed],
    wishes: &'a Wishes,
    earlier: &'a Earlier,
    judged_by: JudgedBy,
    findings: Vec<Finding>,
    conclusive: BTreeSet<String>,
    plan: Vec<TuningAction>,
}

impl<'a> Report<'a> {
    pub(crate) fn new(
        facts: &'a Facts,
        statements: &'a [Weighed],
        wishes: &'a Wishes,
        earlier: &'a Earlier,
        judged_by: JudgedBy,
    ) -> Self {
        Self {
            facts,
            statements,
            wishes,
            earlier,
            judged_by,
            findings: Vec::new(),
            conclusive: BTreeSet::new(),
            plan: Vec::new(),
        }
    }

    /// The findings, the gravest first; the checks that have seen everything; the plan, what can be done at once first.
    pub(crate) fn end(mut self) -> (Vec<Finding>, BTreeSet<String>, Vec<TuningAction>) {
        self.findings.sort_by(|a, b| {
            let rank = |finding: &Finding| {
                (
                    finding.status != Status::Open,
                    std::cmp::Reverse(finding.severity),
                )
            };
            rank(a).cmp(&rank(b))
        });
        if self.facts.server.in_recovery {
            for action in &mut self.plan {
                refuse(
                    action,
                    "this server is a standby: what is changed on its primary comes here by itself",
                );
            }
        }
        for action in &mut self.plan {
            let before = self
                .earlier
                .records
                .iter()
                .find(|record| record.action.id == action.id);
            match before.map(|record| (record.state, &record.why)) {
                Some((TuningState::TakenBack, why)) => {
                    refuse(action, &format!("it was tried, and taken back: {why}"));
                }
                Some((TuningState::Undone, _)) => {
                    refuse(action, "it was done before, and somebody has undone it");
                }
                _ => {}
            }
        }
        self.plan.sort_by_key(|action| !action.safe);
        (self.findings, self.conclusive, self.plan)
    }

    #[expect(clippy::too_many_arguments, reason = "a finding has as many parts")]
    fn find(
        &mut self,
        check: &str,
        object: &str,
        severity: Severity,
        title: String,
        evidence: &Value,
        why: &str,
        fix: &str,
        commands: Vec<String>,
    ) -> String {
        let check = format!("postgres.tune_{check}");
        let key = Finding::key_of(&check, object);
        self.findings.push(Finding {
            key: key.clone(),
            check,
            engine: Engine::Postgres,
            area: Area::Performance,
            dimension: None,
            severity,
            object: object.to_owned(),
            title,
            evidence: evidence.as_object().cloned().unwrap_or_else(Map::new),
            why: why.to_owned(),
            fix: Fix {
                text: fix.to_owned(),
                commands,
            },
            references: Vec::new(),
            status: Status::Open,
        });
        key
    }

    fn made(&mut self, check: &str) {
        self.conclusive.insert(format!("postgres.tune_{check}"));
    }

    /// Whether statements are recorded: without them there is nothing to choose indexes for.
    pub(crate) fn statements(&mut self) {
        let Err(why) = &self.facts.statements else {
            return self.made("statements");
        };
        let (title, fix, commands): (&str, &str, Vec<String>) = match why {
            NoStatements::NotLoaded => (
                "statements are not recorded: pg_stat_statements is not loaded",
                "Load pg_stat_statements with the server (a restart), and make the extension in this database. Managed servers have a parameter for it.",
                vec![
                    "ALTER SYSTEM SET shared_preload_libraries = 'pg_stat_statements'; -- beside what is in it already; then restart".to_owned(),
                    "CREATE EXTENSION pg_stat_statements;".to_owned(),
                ],
            ),
            NoStatements::NotMade => (
                "statements are recorded, and cannot be seen in this database",
                "Make the extension in this database.",
                vec!["CREATE EXTENSION pg_stat_statements;".to_owned()],
            ),
            NoStatements::NotAllowed => (
                "the role may not see the statements of others",
                "Let the role see them.",
                vec!["GRANT pg_monitor TO the_role;".to_owned()],
            ),
            NoStatements::TooOld => (
                "the server is older than version 13, whose record of statements is not read",
                "Upgrade the server.",
                Vec::new(),
            ),
        };
        self.find(
            "statements",
            "",
            Severity::Medium,
            title.to_owned(),
            &json!({}),
            "Which indexes a workload misses cannot be told without the workload; duplicates, unused indexes and settings can.",
            fix,
            commands,
        );
        self.made("statements");
    }

    /// Indexes that the workload misses.
    pub(crate) fn missing(&mut self, all: &[Candidate], chosen: &[Chosen], is_too_early: bool) {
        let total: f64 = self.statements.iter().map(|one| one.total_ms).sum();
        for one in chosen {
            let candidate = &all[one.candidate];
            let (Some(sql), Some(table)) =
                (candidate.sql(self.facts), self.facts.table(candidate.table))
            else {
                continue;
            };
            let saved = one.ms_without - one.ms_with;
            let share = if total > 0.0 { saved / total } else { 0.0 };
            let severity = if share > 0.2 {
                Severity::High
            } else if share > 0.05 {
                Severity::Medium
            } else {
                Severity::Low
            };
            let shown = candidate.shown(self.facts);
            let texts: Vec<Value> = one
                .helps
                .iter()
                .map(|at| {
                    let one = &self.statements[*at];
                    json!({"id": one.id, "text": shortened(&one.text), "calls": one.calls, "total_ms": one.total_ms.round()})
                })
                .collect();
            let mut action = self.creation(candidate, table, &sql);
            action.helps = one
                .helps
                .iter()
                .map(|at| self.statements[*at].id.clone())
                .collect();
            action.reason = format!(
                "{} of the recorded statements took {:.0} ms, and would take {:.0} ms; writers would take {:.0} ms more, and it has about {:.1} MB ({})",
                one.helps.len(),
                one.ms_without,
                one.ms_with,
                one.writes_ms,
                one.bytes / MB,
                self.judge_in_words()
            );
            #[expect(
                clippy::cast_possible_truncation,
                reason = "an index has far fewer than 2^63 bytes"
            )]
            let bytes = one.bytes as i64;
            action.expected = Some(Expectation {
                judged_by: self.judged_by,
                statements_ms: one.ms_without,
                statements_ms_after: one.ms_with,
                writes_ms: one.writes_ms,
                bytes,
            });
            if saved < one.writes_ms * SURELY {
                refuse(
                    &mut action,
                    "what it saves is not much more than what it costs writers",
                );
            }
            let key = self.find(
                "index_missing",
                &shown,
                severity,
                format!("an index on {shown} would save {:.0} % of all statements' time", share * 100.0),
                &json!({"statements": texts, "saved_ms": saved.round(), "writes_ms": one.writes_ms.round(), "bytes": bytes,
                       "judged_by": self.judged_by, "span_seconds": self.facts.statements_seconds.round()}),
                "The statements read far more of the table than they need. The index was chosen with the others of the plan, for all recorded statements together.",
                "Make the index; `fettler tune --apply` does it beside writers, measures, and takes it back where it does not help.",
                action.apply.iter().map(|sql| format!("{sql};")).collect(),
            );
            action.finding = key;
            self.plan.push(action);
        }
        if self.facts.statements.is_ok() && !is_too_early {
            self.made("index_missing");
        }
    }

    fn judge_in_words(&self) -> &'static str {
        match self.judged_by {
            JudgedBy::Hypopg => "judged by the server's planner with hypothetical indexes",
            JudgedBy::Estimate => {
                "Fettler's own estimate from the server's statistics, since HypoPG is not installed"
            }
            JudgedBy::Copy => "measured on a copy",
        }
    }

    fn creation(&self, candidate: &Candidate, table: &Table, sql: &str) -> TuningAction {
        let id = action_id(&format!("create {sql}"));
        let names: Vec<&str> = candidate
            .key
            .iter()
            .filter_map(|(number, _)| Some(table.column(*number)?.name.as_str()))
            .collect();
        let name = quote(&index_name(&table.name, &names.join("_"), &id));
        let object = format!("{}.{name}", quote(&table.schema));
        TuningAction {
            id,
            kind: ActionKind::CreateIndex,
            apply: vec![format!("CREATE INDEX CONCURRENTLY {name} ON {sql}")],
            undo: vec![format!("DROP INDEX CONCURRENTLY IF EXISTS {object}")],
            object,
            table: table.qualified(),
            finding: String::new(),
            reason: String::new(),
            safe: true,
            unsafe_because: String::new(),
            helps: Vec::new(),
            expected: None,
        }
    }

    /// Foreign keys whose columns no index begins with.
    pub(crate) fn foreign_keys(&mut self, all: &[Candidate], chosen: &[Chosen]) {
        /// A table that is smaller is read as quickly as an index.
        const SMALL_PAGES: f64 = 64.0;
        for key in &self.facts.foreign_keys {
            let (Some(table), Some(referenced)) = (
                self.facts.table(key.table),
                self.facts.table(key.referenced),
            ) else {
                continue;
            };
            let wanted: BTreeSet<i32> = key.columns.iter().copied().collect();
            let begins = |columns: Vec<i32>| {
                columns.len() >= wanted.len()
                    && columns[..wanted.len()]
                        .iter()
                        .copied()
                        .collect::<BTreeSet<_>>()
                        == wanted
            };
            let is_there = self.facts.indexes_of(table.oid).any(|index| {
                index.valid
                    && index.method == "btree"
                    && index.predicate.is_none()
                    && begins(index.key.clone())
            });
            let is_planned = chosen
                .iter()
                .map(|one| &all[one.candidate])
                .any(|candidate| {
                    candidate.table == table.oid
                        && candidate.predicate.is_none()
                        && begins(candidate.key.iter().map(|(column, _)| *column).collect())
                });
            if is_there || table.pages < SMALL_PAGES || !matches!(table.kind.as_str(), "r" | "p") {
                continue;
            }
            let candidate = Candidate::over(table.oid, key.columns.iter().copied());
            let Some(sql) = candidate.sql(self.facts) else {
                continue;
            };
            let mut action = self.creation(&candidate, table, &sql);
            let removals = referenced.deleted;
            action.helps = self
                .statements
                .iter()
                .filter(|one| matches!(one.shape.write, Some(Write::Delete(oid)) if oid == referenced.oid))
                .map(|one| one.id.clone())
                .collect();
            action.reason = format!(
                "each row that is removed from {} reads all of {} to look for rows that point to it",
                referenced.shown(),
                table.shown()
            );
            if removals <= 0.0 || action.helps.is_empty() {
                refuse(
                    &mut action,
                    "nobody removes rows there as yet, as far as is recorded",
                );
            }
            if table.kind == "p" {
                refuse(
                    &mut action,
                    "a partitioned table's index cannot be made beside writers in one statement",
                );
            }
            let object = format!("{}.{}", table.shown(), key.name);
            let severity = if removals > 0.0 {
                Severity::Medium
            } else {
                Severity::Low
            };
            action.finding = self.find(
                "foreign_key_unindexed",
                &object,
                severity,
                format!("no index begins with the columns of the foreign key {} of {}", key.name, table.shown()),
                &json!({"table": table.shown(), "rows": table.rows, "referenced": referenced.shown(), "removed": removals}),
                "Removing a row of the referenced table, or changing its key, reads the whole referencing table, under a lock on the row.",
                "Make an index on the foreign key's columns, unless rows are never removed there.",
                action.apply.iter().map(|sql| format!("{sql};")).collect(),
            );
            if !is_planned {
                self.plan.push(action);
            }
        }
        self.made("foreign_key_unindexed");
    }

    fn removal(&self, index: &super::facts::Index) -> Option<TuningAction> {
        let table = self.facts.table(index.table)?;
        let again = index
            .definition
            .replacen("CREATE INDEX ", "CREATE INDEX CONCURRENTLY ", 1)
            .replacen(
                "CREATE UNIQUE INDEX ",
                "CREATE UNIQUE INDEX CONCURRENTLY ",
                1,
            );
        #[expect(
            clippy::cast_possible_truncation,
            reason = "an index has far fewer than 2^63 bytes"
        )]
        let bytes = -(index.bytes as i64);
        Some(TuningAction {
            id: action_id(&format!("drop {} {}", index.qualified(), index.definition)),
            kind: ActionKind::DropIndex,
            object: index.qualified(),
            table: table.qualified(),
            finding: String::new(),
            reason: String::new(),
            safe: true,
            unsafe_because: String::new(),
            apply: vec![format!(
                "DROP INDEX CONCURRENTLY IF EXISTS {}",
                index.qualified()
            )],
            undo: vec![again],
            helps: statements_on(self.statements, index.table)
                .into_iter()
                .take(50)
                .collect(),
            expected: Some(Expectation {
                judged_by: JudgedBy::Estimate,
                statements_ms: 0.0,
                statements_ms_after: 0.0,
                writes_ms: 0.0,
                bytes,
            }),
        })
    }

    /// Indexes that others make superfluous.
    pub(crate) fn redundant(&mut self) {
        for one in redundant(self.facts) {
            let Some(mut action) = self.removal(one.index) else {
                continue;
            };
            let what = if one.same {
                "is the same as"
            } else {
                "is the beginning of"
            };
            action.reason = format!(
                "{} {what} {}, which serves whatever it serves",
                one.index.shown(),
                one.by.shown()
            );
            if let Some(doubt) = &one.doubt {
                refuse(&mut action, doubt);
            }
            action.finding = self.find(
                "index_redundant",
                &one.index.shown(),
                if one.same { Severity::Medium } else { Severity::Low },
                format!("the index {} {what} {}", one.index.shown(), one.by.shown()),
                &json!({"definition": one.index.definition, "by": one.by.definition, "bytes": one.index.bytes, "reads": one.index.scans}),
                "Every write keeps both up; what the one answers, the other answers too.",
                "Remove it.",
                action.apply.iter().map(|sql| format!("{sql};")).collect(),
            );
            self.plan.push(action);
        }
        self.made("index_redundant");
    }

    /// Indexes that nobody reads.
    pub(crate) fn unused(&mut self, samples: &[(f64, Value)]) {
        for one in unused(
            self.facts,
            samples,
            &self.earlier.replicas,
            self.wishes.unused_days,
        ) {
            let Some(mut action) = self.removal(one.index) else {
                continue;
            };
            if self.plan.iter().any(|other| other.object == action.object) {
                continue;
            }
            let days = one.seconds / 86_400.0;
            action.reason = format!("nobody has read {} for {days:.0} days", one.index.shown());
            if let Some(doubt) = &one.doubt {
                refuse(&mut action, doubt);
            }
            action.finding = self.find(
                "index_unused",
                &one.index.shown(),
                Severity::Low,
                format!("nobody has read the index {} for {days:.0} days", one.index.shown()),
                &json!({"definition": one.index.definition, "bytes": one.index.bytes, "reads": one.index.scans, "days": days.round(),
                       "standbys": self.facts.server.replicas, "standbys_asked": self.earlier.replicas.len()}),
                "Every write keeps it up, and nobody has anything of it. Reports that run once a quarter may be the exception.",
                "Remove it.",
                action.apply.iter().map(|sql| format!("{sql};")).collect(),
            );
            self.plan.push(action);
        }
        self.made("index_unused");
    }

    /// How single tables are stored and kept.
    pub(crate) fn tables(&mut self) {
        for table in &self.facts.tables {
            let name = table.shown();
            if let Some((now, fair)) = tables::vacuum_share(self.facts, table) {
                let option = "autovacuum_vacuum_scale_factor";
                let mut action = set_table(table, option, &fair.to_string());
                action.reason = format!(
                    "autovacuum comes to {name} only after {:.0} dead rows",
                    now * table.live
                );
                action.finding = self.find(
                    "autovacuum_share", &name, Severity::Low,
                    format!("autovacuum comes to {name} only after {:.0} rows have died", now * table.live),
                    &json!({"rows": table.live, "dead": table.dead, "updated": table.updated, "deleted": table.deleted, "share": now}),
                    "A share of a large table is a lot: it grows by as much before room is used again, and each vacuum takes long.",
                    "Let it come after a smaller share.",
                    action.apply.iter().map(|sql| format!("{sql};")).collect(),
                );
                self.plan.push(action);
            }
            if let Some(factor) = tables::fill_factor(self.facts, self.statements, table) {
                let mut action = set_table(table, "fillfactor", &factor.to_string());
                action.reason = format!(
                    "only {:.0} % of updates of {name} found room beside their rows",
                    table.hot_updated / table.updated * 100.0
                );
                refuse(
                    &mut action,
                    "the table grows by it, and pages that are full stay as they are until it is rewritten",
                );
                action.finding = self.find(
                    "fill_factor", &name, Severity::Low,
                    format!("only {:.0} % of updates of {name} are made in place", table.hot_updated / table.updated * 100.0),
                    &json!({"updated": table.updated, "in_place": table.hot_updated}),
                    "An update that changes no indexed column needs no entry in any index, if the new row finds room on the old one's page.",
                    "Leave room in its pages.",
                    action.apply.iter().map(|sql| format!("{sql};")).collect(),
                );
                self.plan.push(action);
            }
            if let Some(share) = tables::dead_share(table) {
                self.find(
                    "dead_rows", &name, Severity::Medium,
                    format!("{:.0} % of the rows of {name} are dead", share * 100.0),
                    &json!({"dead": table.dead, "live": table.live, "bytes": table.bytes}),
                    "Each scan reads them too, and the table does not shrink by itself.",
                    "Find out what holds vacuum back (long transactions, slots, autovacuum's settings), then vacuum.",
                    vec![format!("VACUUM (VERBOSE) {};", table.qualified())],
                );
            }
            for column in tables::narrow_statistics(self.facts, self.statements, table) {
                let (table_sql, column_sql) = (table.qualified(), quote(&column.name));
                let object = format!("{name}.{}", column.name);
                let apply = vec![
                    format!("ALTER TABLE {table_sql} ALTER COLUMN {column_sql} SET STATISTICS 500"),
                    format!("ANALYZE {table_sql} ({column_sql})"),
                ];
                let finding = self.find(
                    "statistics_target", &object, Severity::Info,
                    format!("of the many values of {object} only the {} commonest are known one by one", column.common_values),
                    &json!({"common_values": column.common_values, "distinct": column.distinct}),
                    "Of all others the planner takes the mean: of a skewed column it is far off for most.",
                    "Let more values be counted, and see whether plans get better.",
                    apply.iter().map(|sql| format!("{sql};")).collect(),
                );
                self.plan.push(TuningAction {
                    id: action_id(&format!("statistics {object}")),
                    kind: ActionKind::SetColumn,
                    object,
                    table: table_sql.clone(),
                    finding,
                    reason: "statements ask for single values of a column of which only the commonest are known".to_owned(),
                    safe: false,
                    unsafe_because: "plans may change for the worse too".to_owned(),
                    apply,
                    undo: vec![
                        format!("ALTER TABLE {table_sql} ALTER COLUMN {column_sql} SET STATISTICS -1"),
                        format!("ANALYZE {table_sql} ({column_sql})"),
                    ],
                    helps: Vec::new(),
                    expected: None,
                });
            }
        }
        for index in &self.facts.indexes {
            if !index.valid && index.needed_by.is_none() {
                continue;
            }
            if let Some(fair) = tables::bloated(self.facts, index) {
                self.find(
                    "index_bloat", &index.shown(), Severity::Low,
                    format!("{} has {:.0} MB where about {:.0} MB would do", index.shown(), index.bytes / MB, fair / MB),
                    &json!({"bytes": index.bytes, "estimated_bytes": fair.round()}),
                    "It takes room in memory that rows could have, and each look reads more of it. The size is an estimate from widths of columns.",
                    "Build it anew, beside those who use it.",
                    vec![format!("REINDEX INDEX CONCURRENTLY {};", index.qualified())],
                );
            }
        }
        for check in [
            "autovacuum_share",
            "fill_factor",
            "dead_rows",
            "statistics_target",
            "index_bloat",
        ] {
            self.made(check);
        }
    }

    /// Settings of the whole server.
    pub(crate) fn settings(&mut self) {
        for one in settings::advise(self.facts, self.wishes) {
            let now = self.facts.settings.get(one.name).map(|setting| {
                format!(
                    "{}{}",
                    setting.value,
                    setting
                        .unit
                        .as_deref()
                        .map(|unit| format!(" × {unit}"))
                        .unwrap_or_default()
                )
            });
            let apply = vec![
                format!("ALTER SYSTEM SET {} = '{}'", one.name, one.value),
                "SELECT pg_reload_conf()".to_owned(),
            ];
            let finding = self.find(
                "setting",
                one.name,
                one.severity,
                format!("{} should rather be {}: {}", one.name, one.value, one.why),
                &json!({"now": now, "proposed": one.value}),
                &one.why,
                "Set it, and see how the whole server fares.",
                apply.iter().map(|sql| format!("{sql};")).collect(),
            );
            self.plan.push(TuningAction {
                id: action_id(&format!("setting {} {}", one.name, one.value)),
                kind: ActionKind::SetSetting,
                object: one.name.to_owned(),
                table: String::new(),
                finding,
                reason: one.why,
                safe: false,
                unsafe_because: "it concerns the whole server, and all of its databases".to_owned(),
                apply,
                undo: vec![
                    format!("ALTER SYSTEM RESET {}", one.name),
                    "SELECT pg_reload_conf()".to_owned(),
                ],
                helps: Vec::new(),
                expected: None,
            });
        }
        self.made("setting");
    }
}

fn set_table(table: &Table, option: &str, value: &str) -> TuningAction {
    let name = table.qualified();
    let undo = match table.option(option) {
        Some(before) => format!("ALTER TABLE {name} SET ({option} = {before})"),
        None => format!("ALTER TABLE {name} RESET ({option})"),
    };
    TuningAction {
        id: action_id(&format!("set {name} {option} {value}")),
        kind: ActionKind::SetTable,
        object: format!("{}.{option}", table.shown()),
        table: name.clone(),
        finding: String::new(),
        reason: String::new(),
        safe: true,
        unsafe_because: String::new(),
        apply: vec![format!("ALTER TABLE {name} SET ({option} = {value})")],
        undo: vec![undo],
        helps: Vec::new(),
        expected: None,
    }
}

/// Leaves an action to a person.
fn refuse(action: &mut TuningAction, because: &str) {
    action.safe = false;
    if !action.unsafe_because.is_empty() {
        action.unsafe_because.push_str("; ");
    }
    action.unsafe_because.push_str(because);
}

fn shortened(text: &str) -> String {
    let one_line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if one_line.chars().count() <= TEXT_LETTERS {
        one_line
    } else {
        one_line.chars().take(TEXT_LETTERS).chain(['…']).collect()
    }
}
