//! Statements whose filters no sorting key serves: what the server says that it would read of each (`EXPLAIN indexes = 1`).

use fettler_engine::{EngineError, Line, Workbench};
use fettler_model::Severity;
use serde_json::json;

use super::{asked, number, text};
use crate::advice::{Advice, Said, id_of};

/// How many recorded statements are looked at: those that read the most.
const MOST_RECORDED: u32 = 50;
/// How many granules (of 8192 rows, as a rule) a table must have for it to matter.
const MANY_GRANULES: f64 = 20.0;
/// Which share of them a statement must read to be one that no key serves.
const NEARLY_ALL: f64 = 0.9;

/// One table in an explanation.
#[derive(Clone, Debug, Default, PartialEq)]
struct Read {
    table: String,
    selected: f64,
    all: f64,
}

/// Gives how many statements were judged, and how many could not be explained.
pub(super) async fn look(
    advice: &mut Advice,
    bench: &mut dyn Workbench,
    given: &[String],
) -> Result<(usize, usize), EngineError> {
    let mut statements: Vec<(String, f64)> = given.iter().map(|text| (text.clone(), 1.0)).collect();
    if statements.is_empty() {
        let sql = format!(
            "SELECT any(query), count() FROM system.query_log
             WHERE type = 'QueryFinish' AND query_kind = 'Select' AND event_date >= today() - 7 AND read_rows > 100000
               AND NOT has(databases, 'system') AND length(query) < 8000
             GROUP BY normalized_query_hash ORDER BY sum(read_rows) DESC LIMIT {MOST_RECORDED}"
        );
        match asked(bench, &sql).await? {
            Ok(lines) => {
                statements.extend(lines.iter().map(|line| (text(line, 0), number(line, 1))));
            }
            Err(_) => {
                advice.unknown(
                    "sorting_key",
                    "which statements read too much is not known",
                    &"there is no `system.query_log` that tells, and no statements were given (`--statements`)",
                );
                return Ok((0, 0));
            }
        }
    }
    let (mut judged, mut unread) = (0, 0);
    for (statement, runs) in &statements {
        let first = statement
            .split_whitespace()
            .next()
            .unwrap_or_default()
            .to_lowercase();
        if !["select", "with"].contains(&first.as_str()) {
            unread += 1;
            continue;
        }
        let Some(lines) = explained(bench, statement).await? else {
            unread += 1;
            continue;
        };
        judged += 1;
        let filters = has_filter(statement);
        for read in reads(&lines) {
            if !filters || read.all < MANY_GRANULES || read.selected < read.all * NEARLY_ALL {
                continue;
            }
            report(advice, statement, *runs, &read);
        }
    }
    if unread == 0 {
        advice.seen("sorting_key");
    }
    Ok((judged, unread))
}

/// What the server would read.
async fn explained(
    bench: &mut dyn Workbench,
    statement: &str,
) -> Result<Option<Vec<String>>, EngineError> {
    // A result of an explanation is a table too, which is how it is read here.
    let sql = format!("SELECT explain FROM (EXPLAIN indexes = 1 {statement})");
    Ok(asked(bench, &sql)
        .await?
        .ok()
        .map(|lines: Vec<Line>| lines.iter().map(|line| text(line, 0)).collect()))
}

/// Whether it asks for a part only.
fn has_filter(statement: &str) -> bool {
    let words = statement.to_lowercase();
    words
        .split_whitespace()
        .any(|word| matches!(word, "where" | "prewhere"))
}

/// The tables of an explanation, with what is left of each after its last index.
fn reads(lines: &[String]) -> Vec<Read> {
    let mut all: Vec<Read> = Vec::new();
    for line in lines {
        // Servers of today draw the branches of a tree.
        let line = line.trim_start_matches(|letter: char| !letter.is_ascii_alphanumeric());
        if let Some(rest) = line.strip_prefix("ReadFromMergeTree (") {
            all.push(Read {
                table: rest.trim_end_matches(')').to_owned(),
                ..Read::default()
            });
        } else if let Some(counts) = line.strip_prefix("Granules: ")
            && let Some(read) = all.last_mut()
        {
            let (selected, of) = counts.split_once('/').unwrap_or((counts, counts));
            let (selected, of) = (selected.parse().unwrap_or(0.0), of.parse().unwrap_or(0.0));
            read.selected = selected;
            // The first index sees all of them.
            if read.all == 0.0 {
                read.all = of;
            }
        }
    }
    all
}

fn report(advice: &mut Advice, statement: &str, runs: f64, read: &Read) {
    let shown: String = statement.chars().take(200).collect();
    advice.find(Said {
        check: "sorting_key",
        object: &format!("{} {}", read.table, id_of(statement)),
        severity: Severity::Medium,
        title: format!(
            "a statement on {} filters, and reads {:.0} of {:.0} granules all the same",
            read.table, read.selected, read.all
        ),
        evidence: json!({"statement": shown, "runs": runs, "granules_read": read.selected, "granules": read.all}),
        why: "Rows are found by the beginning of the sorting key only. What a statement filters by and the key does not begin with is looked for in all of the table.",
        fix: "If most statements filter so, sort the table so (a new table, filled by INSERT … SELECT: what is filtered by the most often first, few different values before many). If it is one of several ways, keep a second order by a projection; if the values lie close together anyway, a skipping index is enough.",
        commands: vec![
            format!("ALTER TABLE {} ADD PROJECTION by_filter (SELECT * ORDER BY …)", read.table),
            format!("ALTER TABLE {} MATERIALIZE PROJECTION by_filter", read.table),
            format!("ALTER TABLE {} ADD INDEX by_filter … TYPE bloom_filter GRANULARITY 4", read.table),
        ],
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_explanation_says_what_is_left_after_the_last_index() {
        let lines: Vec<String> = "Expression ((Project names + Projection))
              Filter (WHERE)
             └──ReadFromMergeTree (default.events)
                  Parts: 4 | Granules: 122
                Indexes:
                  PrimaryKey
                    Keys:
                      day
                    Condition: (day in [20000, +Inf))
                    Parts: 2/4
                    Granules: 60/122
                  Skip
                    Name: by_user
                    Parts: 1/2
                    Granules: 3/60"
            .lines()
            .map(str::to_owned)
            .collect();
        assert_eq!(
            reads(&lines),
            [Read {
                table: "default.events".to_owned(),
                selected: 3.0,
                all: 122.0
            }]
        );
        assert!(has_filter("SELECT 1 FROM t PREWHERE a = 1"));
        assert!(!has_filter("SELECT count() FROM somewhere"));
    }
}
