//! Indexes that the given statements miss, and those that others serve as well. What statements compare and order by is read
//! as for PostgreSQL; what an index brings is counted on the copy.

use std::collections::BTreeSet;

use fettler_engine::{EngineError, StatementError, Workbench};
use fettler_model::{ActionKind, Severity};
use serde_json::json;

use super::facts::{Facts, Index, Table, lines, quote};
use crate::{
    Wishes,
    advice::{Advice, Said, action, id_of},
    postgres::reading::{self, Shape},
};

/// How many candidates are tried, at most.
const MOST_CANDIDATES: usize = 40;
/// How many indexes are recommended, at most.
const MOST_CHOSEN: usize = 10;
/// The share of all statements' steps that an index must save at least.
const LEAST_SHARE: f64 = 0.02;
/// The share of the steps of the statements that it helps.
const LEAST_OWN_SHARE: f64 = 0.5;
/// Steps that count as nothing: whoever takes fewer is quick enough.
const QUICK_STEPS: f64 = 2000.0;
/// What one more entry of an index costs each statement that writes: a place in another tree is found and written.
const STEPS_OF_A_WRITE: f64 = 200.0;
/// How many rows are looked at to see how many values a column has.
const SAMPLE_ROWS: u32 = 20_000;

/// Statements by their places, and the steps that each takes with an index.
type Helped = Vec<(usize, f64)>;

/// A statement that is judged.
struct Judged<'a> {
    text: &'a str,
    shape: Shape,
    has_values: bool,
    /// Steps with what there is, or nothing where it only has a plan.
    steps: Option<f64>,
}

/// Whether a statement only reads.
fn reads(text: &str) -> bool {
    let first = text.split_whitespace().next().unwrap_or_default();
    ["select", "with", "values"].contains(&first.to_ascii_lowercase().as_str())
}

/// Looks for indexes that the statements miss. Gives how many were judged, and how many could not be read.
pub(super) async fn missing(
    advice: &mut Advice,
    bench: &mut dyn Workbench,
    facts: &Facts,
    wishes: &Wishes,
    is_whole: bool,
) -> Result<(usize, usize), EngineError> {
    if wishes.statements.is_empty() {
        return Ok((0, 0));
    }
    let known = reading_facts(bench, facts, &wishes.statements).await?;
    let mut unread = 0;
    let mut judged = Vec::new();
    for text in &wishes.statements {
        let (readable, has_values) = without_places(text);
        let Some(shape) = known.shape(&readable) else {
            unread += 1;
            continue;
        };
        let explained = bench.run(&format!("TRY EXPLAIN QUERY PLAN {text}")).await;
        match explained {
            Ok(_) => {}
            Err(StatementError::Refused { .. }) => {
                unread += 1;
                continue;
            }
            Err(StatementError::Lost(error)) => return Err(error),
        }
        judged.push(Judged {
            text,
            shape,
            has_values,
            steps: None,
        });
    }
    for one in &mut judged {
        one.steps = steps(bench, one.text, is_whole).await?;
    }
    let candidates = candidates(facts, &known, &judged);
    let all: f64 = judged.iter().filter_map(|one| one.steps).sum();
    let mut left = candidates;
    for _ in 0..MOST_CHOSEN {
        let mut best: Option<(f64, usize, Helped)> = None;
        for (at, candidate) in left.iter().enumerate() {
            let Some(helped) = tried(bench, candidate, &judged, is_whole).await? else {
                continue;
            };
            let saved: f64 = helped
                .iter()
                .map(|(at, after)| judged[*at].steps.unwrap_or(2.0) - after)
                .sum();
            let writes = writers(&known, &judged, candidate.table) * STEPS_OF_A_WRITE;
            let own: f64 = helped.iter().filter_map(|(at, _)| judged[*at].steps).sum();
            let is_enough = !is_whole
                || (saved > writes.max(all * LEAST_SHARE).max(QUICK_STEPS)
                    && saved > own * LEAST_OWN_SHARE);
            // Of two that save alike the narrower one.
            #[expect(clippy::cast_precision_loss, reason = "columns are few")]
            let worth = saved - writes - candidate.columns.len() as f64;
            if !helped.is_empty()
                && is_enough
                && best.as_ref().is_none_or(|(other, ..)| worth > *other)
            {
                best = Some((worth, at, helped));
            }
        }
        let Some((_, at, helped)) = best else {
            break;
        };
        let chosen = left.remove(at);
        recommend(advice, &chosen, &judged, &helped, is_whole);
        make(bench, &chosen).await?;
        for (at, after) in helped {
            judged[at].steps = Some(after);
        }
    }
    if unread == 0 {
        advice.seen("index_missing");
    }
    Ok((judged.len(), unread))
}

/// What reading statements needs to know of tables.
async fn reading_facts(
    bench: &mut dyn Workbench,
    facts: &Facts,
    statements: &[String],
) -> Result<reading::Known, EngineError> {
    let mut known = reading::Known::default();
    let texts: Vec<String> = statements.iter().map(|text| text.to_lowercase()).collect();
    for table in &facts.tables {
        let name = table.name.to_lowercase();
        if !texts.iter().any(|text| text.contains(&name)) {
            continue;
        }
        let mut distinct = Vec::new();
        for column in &table.columns {
            let counted = lines(
                bench,
                &format!(
                    "SELECT count(DISTINCT c), count(*) FROM (SELECT {} AS c FROM main.{} LIMIT {SAMPLE_ROWS})",
                    quote(column),
                    quote(&table.name)
                ),
            )
            .await?;
            let value = |at: usize| {
                counted
                    .first()
                    .and_then(|line| line[at].as_ref()?.parse::<f64>().ok())
                    .unwrap_or(0.0)
            };
            distinct.push((column.as_str(), value(0), value(1)));
        }
        known.add(&table.name, table.rows, &distinct);
    }
    Ok(known)
}

/// An index that could be made.
#[derive(Clone, Debug, PartialEq)]
struct Candidate<'a> {
    table: &'a str,
    columns: Vec<(String, bool)>,
}

impl Candidate<'_> {
    fn name(&self) -> String {
        let columns: Vec<&str> = self.columns.iter().map(|(name, _)| name.as_str()).collect();
        let id = id_of(&self.sql("index"));
        let middle: String = format!("{}_{}", self.table, columns.join("_"))
            .chars()
            .take(50)
            .collect();
        format!("fettler_{middle}_{id}")
    }

    fn sql(&self, name: &str) -> String {
        let key: Vec<String> = self
            .columns
            .iter()
            .map(|(column, descends)| {
                format!("{}{}", quote(column), if *descends { " DESC" } else { "" })
            })
            .collect();
        format!(
            "CREATE INDEX IF NOT EXISTS {} ON {} ({})",
            quote(name),
            quote(self.table),
            key.join(", ")
        )
    }

    fn shown(&self) -> String {
        let key: Vec<String> = self
            .columns
            .iter()
            .map(|(column, descends)| format!("{column}{}", if *descends { " DESC" } else { "" }))
            .collect();
        format!("{} ({})", self.table, key.join(", "))
    }
}

fn candidates<'a>(
    facts: &'a Facts,
    known: &reading::Known,
    judged: &[Judged<'_>],
) -> Vec<Candidate<'a>> {
    let mut found: Vec<Candidate<'a>> = Vec::new();
    let shapes: Vec<&Shape> = judged.iter().map(|one| &one.shape).collect();
    for (table, columns) in known.candidates(&shapes) {
        let Some(table) = facts
            .tables
            .iter()
            .find(|one| one.name.eq_ignore_ascii_case(&table))
        else {
            continue;
        };
        let columns: Option<Vec<(String, bool)>> = columns
            .into_iter()
            .map(|(name, descends)| {
                let real = table
                    .columns
                    .iter()
                    .find(|one| one.eq_ignore_ascii_case(&name))?;
                Some((real.clone(), descends))
            })
            .collect();
        let Some(columns) = columns else { continue };
        let candidate = Candidate {
            table: &table.name,
            columns,
        };
        let is_there = table.indexes.iter().any(|index| {
            !index.partial
                && index.key.len() >= candidate.columns.len()
                && index
                    .key
                    .iter()
                    .zip(&candidate.columns)
                    .all(|(part, (name, descends))| {
                        part.column.as_deref() == Some(name) && part.descends == *descends
                    })
        });
        if !is_there && !found.contains(&candidate) && found.len() < MOST_CANDIDATES {
            found.push(candidate);
        }
    }
    found
}

/// How many of the statements write to a table.
fn writers(known: &reading::Known, judged: &[Judged<'_>], table: &str) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "statements are few")]
    let count = judged
        .iter()
        .filter(|one| known.writes(&one.shape, table))
        .count() as f64;
    count
}

async fn make(bench: &mut dyn Workbench, candidate: &Candidate<'_>) -> Result<bool, EngineError> {
    let made = bench
        .run(&format!("TRY {}", candidate.sql(&candidate.name())))
        .await;
    match made {
        Ok(_) => Ok(true),
        Err(StatementError::Refused { .. }) => Ok(false),
        Err(StatementError::Lost(error)) => Err(error),
    }
}

/// Steps that a query takes on the copy.
async fn steps(
    bench: &mut dyn Workbench,
    text: &str,
    is_whole: bool,
) -> Result<Option<f64>, EngineError> {
    if !is_whole || !reads(text) {
        return Ok(None);
    }
    match bench.run(&format!("STEPS {text}")).await {
        Ok(lines) => Ok(lines
            .first()
            .and_then(|line| line.first()?.as_ref()?.parse().ok())),
        Err(StatementError::Refused { .. }) => Ok(None),
        Err(StatementError::Lost(error)) => Err(error),
    }
}

/// The statements that read an index if it is there, each with the steps that it takes then (on a copy without rows: one, in
/// place of two).
async fn tried(
    bench: &mut dyn Workbench,
    candidate: &Candidate<'_>,
    judged: &[Judged<'_>],
    is_whole: bool,
) -> Result<Option<Helped>, EngineError> {
    if !make(bench, candidate).await? {
        return Ok(None);
    }
    let name = candidate.name();
    let mut helped = Vec::new();
    for (at, one) in judged.iter().enumerate() {
        let plan = match bench
            .run(&format!("TRY EXPLAIN QUERY PLAN {}", one.text))
            .await
        {
            Ok(plan) => plan,
            Err(StatementError::Refused { .. }) => continue,
            Err(StatementError::Lost(error)) => return Err(error),
        };
        let is_read = plan
            .iter()
            .filter_map(|line| line.last()?.as_deref())
            .any(|detail| {
                detail.starts_with("SEARCH") && detail.contains(&name)
                    || detail.starts_with("SCAN") && detail.contains(&name) && is_whole
            });
        if !is_read {
            continue;
        }
        if !is_whole {
            helped.push((at, 1.0));
        } else if let (Some(before), Some(after)) = (one.steps, steps(bench, one.text, true).await?)
            && after < before
        {
            helped.push((at, after));
        }
    }
    lines(bench, &format!("TRY DROP INDEX {}", quote(&name))).await?;
    Ok(Some(helped))
}

fn recommend(
    advice: &mut Advice,
    chosen: &Candidate<'_>,
    judged: &[Judged<'_>],
    helped: &[(usize, f64)],
    is_whole: bool,
) {
    let name = chosen.name();
    let sql = chosen.sql(&name);
    let before: f64 = helped.iter().filter_map(|(at, _)| judged[*at].steps).sum();
    let after: f64 = helped.iter().map(|(_, after)| after).sum();
    let texts: Vec<_> = helped
        .iter()
        .map(|(at, after)| {
            let text: String = judged[*at].text.chars().take(160).collect();
            if is_whole {
                json!({"text": text, "steps": judged[*at].steps, "steps_after": after})
            } else {
                json!({ "text": text })
            }
        })
        .collect();
    let reason = if is_whole {
        format!(
            "{} of the statements took {before:.0} steps on a copy of the database, and take {after:.0} with it",
            helped.len()
        )
    } else {
        format!(
            "the planner reads it for {} of the statements; what it brings was not measured, since the database is too large to be copied into memory",
            helped.len()
        )
    };
    let shown = chosen.shown();
    let key = advice.find(Said {
        check: "index_missing",
        object: &shown,
        severity: if is_whole && before > after * 10.0 {
            Severity::High
        } else {
            Severity::Medium
        },
        title: if is_whole {
            format!(
                "an index on {shown} would save {:.0} % of the steps of {} statements",
                (before - after) / before.max(1.0) * 100.0,
                helped.len()
            )
        } else {
            format!("an index on {shown} would be read by {} statements", helped.len())
        },
        evidence: json!({ "statements": texts }),
        why: "The statements read more of the table than they need. Each index that is made costs every writer of the table a place in another tree: of those that help, only what pays was taken.",
        fix: "Make the index, and analyse the table.",
        commands: vec![format!("{sql};")],
    });
    let mut made = action(
        ActionKind::CreateIndex,
        &name,
        &key,
        reason,
        vec![sql],
        vec![format!("DROP INDEX IF EXISTS {}", quote(&name))],
    );
    chosen.table.clone_into(&mut made.table);
    let why_not = if !is_whole {
        Some("it could not be measured on a copy")
    } else if helped.iter().any(|(at, _)| judged[*at].has_values) {
        Some(
            "its statements have places for values, which nobody has given: they were counted with none",
        )
    } else {
        None
    };
    advice.plan(made, why_not);
}

/// Indexes whose whole key another index begins with.
pub(super) async fn redundant(
    advice: &mut Advice,
    bench: &mut dyn Workbench,
    facts: &Facts,
    statements: &[String],
    is_whole: bool,
) -> Result<(), EngineError> {
    for table in &facts.tables {
        let mut gone = BTreeSet::new();
        for index in &table.indexes {
            let Some(other) = serves(table, index, &gone) else {
                continue;
            };
            gone.insert(index.name.as_str());
            let is_duplicate = other.key.len() == index.key.len();
            let harm = if is_duplicate {
                None
            } else {
                harmed(bench, index, statements, is_whole).await?
            };
            let key = advice.find(Said {
                check: "index_redundant",
                object: &index.name,
                severity: Severity::Low,
                title: if is_duplicate {
                    format!("{} is {} once more", index.name, other.name)
                } else {
                    format!("{} is the beginning of {}", index.name, other.name)
                },
                evidence: json!({"table": table.name, "index": index.sql, "other": other.sql}),
                why: "Whatever it finds the other one finds too; every writer of the table keeps up both, and the file holds both.",
                fix: "Remove it.",
                commands: vec![format!("DROP INDEX {};", quote(&index.name))],
            });
            let mut made = action(
                ActionKind::DropIndex,
                &index.name,
                &key,
                format!("{} serves as well", other.name),
                vec![format!("DROP INDEX IF EXISTS {}", quote(&index.name))],
                vec![again(&index.sql)],
            );
            table.name.clone_into(&mut made.table);
            advice.plan(made, harm.as_deref());
        }
    }
    advice.seen("index_redundant");
    Ok(())
}

/// The definition, to be run also where the index is there.
fn again(sql: &str) -> String {
    let mut words = sql.splitn(3, char::is_whitespace);
    match (words.next(), words.next(), words.next()) {
        (Some(create), Some(index), Some(rest))
            if create.eq_ignore_ascii_case("create")
                && index.eq_ignore_ascii_case("index")
                && !rest.trim_start().to_ascii_lowercase().starts_with("if ") =>
        {
            format!("CREATE INDEX IF NOT EXISTS {}", rest.trim_start())
        }
        _ => sql.to_owned(),
    }
}

/// The index that serves in the place of another one, of those that stay.
fn serves<'a>(table: &'a Table, index: &Index, gone: &BTreeSet<&str>) -> Option<&'a Index> {
    if index.unique || !index.is_users || index.partial || index.key.is_empty() {
        return None;
    }
    table.indexes.iter().find(|other| {
        other.name != index.name
            && !gone.contains(other.name.as_str())
            && !other.partial
            && other.key.len() >= index.key.len()
            // Expressions are told by their text only, which is not compared.
            && index.key.iter().zip(&other.key).all(|(a, b)| a.column.is_some() && a == b)
    })
}

/// Why an index should not be removed without a look.
async fn harmed(
    bench: &mut dyn Workbench,
    index: &Index,
    statements: &[String],
    is_whole: bool,
) -> Result<Option<String>, EngineError> {
    if !is_whole || statements.is_empty() {
        return Ok(Some(
            "without statements (`--statements`) and a copy nothing says what the wider index costs those who read"
                .to_owned(),
        ));
    }
    let mut before = Vec::new();
    for text in statements {
        before.push(steps(bench, text, true).await?);
    }
    lines(
        bench,
        &format!("TRY DROP INDEX IF EXISTS {}", quote(&index.name)),
    )
    .await?;
    let mut why = None;
    for (text, before) in statements.iter().zip(before) {
        if let (Some(before), Some(after)) = (before, steps(bench, text, true).await?)
            && after > before * 1.1 + 100.0
        {
            why = Some(format!(
                "a statement takes {after:.0} steps without it, and {before:.0} with it"
            ));
        }
    }
    if why.is_some() {
        lines(bench, &format!("TRY {}", again(&index.sql))).await?;
    }
    Ok(why)
}

/// A statement with `$1` where values are left open (`?`, `:name`, `@name`), and whether there are such places.
fn without_places(text: &str) -> (String, bool) {
    let mut out = String::with_capacity(text.len());
    let mut has_places = false;
    let mut quote = None;
    let mut letters = text.chars().peekable();
    while let Some(letter) = letters.next() {
        match (quote, letter) {
            (Some(open), _) => {
                if letter == open {
                    quote = None;
                }
                out.push(letter);
            }
            (None, '\'' | '"' | '`') => {
                quote = Some(letter);
                out.push(letter);
            }
            (None, '?' | ':' | '@' | '$') => {
                has_places = true;
                while letters
                    .next_if(|next| next.is_alphanumeric() || *next == '_')
                    .is_some()
                {}
                out.push_str("$1");
            }
            (None, _) => out.push(letter),
        }
    }
    (out, has_places)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_of_values_are_seen_outside_of_quotes() {
        assert_eq!(
            without_places("SELECT 'a?:b' FROM t WHERE a = ?1 AND b = :name AND \"c?\" = 2"),
            (
                "SELECT 'a?:b' FROM t WHERE a = $1 AND b = $1 AND \"c?\" = 2".to_owned(),
                true
            )
        );
        assert!(!without_places("SELECT 1 FROM t WHERE a = 'x'").1);
    }

    #[test]
    fn an_index_is_made_again_only_where_it_is_not_there() {
        assert_eq!(
            again("CREATE INDEX a ON t (b)"),
            "CREATE INDEX IF NOT EXISTS a ON t (b)"
        );
        let there = "CREATE INDEX IF NOT EXISTS a ON t (b)";
        assert_eq!(again(there), there);
    }
}
