//! PostgreSQL: one look from the first question to the plan, and what a plan's actions need of a session.
//!
//! [`look`] decides what is safe. An index is, where it is made beside writers (`CONCURRENTLY`), where what it brings is three
//! times what it costs, and where it was not tried before in vain. Settings never are.

mod act;
mod candidates;
mod choose;
mod collect;
mod drops;
mod estimate;
mod facts;
mod index;
mod planner;
pub(crate) mod reading;
mod report;
mod settings;
mod tables;
#[cfg(test)]
mod testing;
mod workload;

pub use act::{apply, end_sessions, lock, measure, take_back};
pub use drops::ReplicaReads;

use std::collections::{BTreeMap, BTreeSet};

use fettler_engine::{EngineError, Workbench};
use fettler_model::{JudgedBy, Timestamp, TuningRecord};
use serde_json::{Value, json};

use self::{
    choose::{ByEstimate, Choice, Weighed, choose},
    collect::{collect, lines, number},
    facts::Facts,
    planner::ByPlanner,
    report::Report,
    workload::{Names, shape},
};
use crate::{Look, Wishes};

/// How many statements are judged: those with the most time. The others together are hardly ever more than a few percent.
const MOST_JUDGED: usize = 80;

/// What earlier looks and actions have left.
#[derive(Clone, Debug, Default)]
pub struct Earlier {
    /// Samples of earlier looks, oldest first.
    pub samples: Vec<(Timestamp, Value)>,
    /// Actions that were taken.
    pub records: Vec<TuningRecord>,
    /// What standbys have read.
    pub replicas: Vec<ReplicaReads>,
}

/// Looks at a database, and changes nothing.
///
/// # Errors
///
/// When the database cannot be asked.
pub async fn look(
    bench: &mut dyn Workbench,
    wishes: &Wishes,
    earlier: &Earlier,
    now: Timestamp,
) -> Result<Look, EngineError> {
    let facts = collect(bench).await?;
    let samples: Vec<(f64, Value)> = earlier
        .samples
        .iter()
        .map(|(at, sample)| (now.since(*at).as_secs_f64(), sample.clone()))
        .collect();
    // What was counted before something was changed says nothing of what there is now.
    let changed = earlier
        .records
        .iter()
        .filter_map(|record| record.applied)
        .max();
    let since = match changed {
        None => Since::Reset,
        Some(changed) => match earlier.samples.iter().find(|(at, _)| *at >= changed) {
            Some((_, sample)) => Since::Sample(sample),
            None => Since::Now,
        },
    };
    let (statements, unread) = weighed(&facts, &since);
    let is_too_early = changed.is_some() && statements.is_empty();
    let shapes: Vec<&workload::Shape> = statements.iter().map(|one| &one.shape).collect();
    let all = candidates::candidates(&facts, &shapes);
    let choice = Choice {
        facts: &facts,
        statements: &statements,
        candidates: &all,
        most_bytes: facts.server.database_bytes * f64::from(wishes.index_percent) / 100.0,
    };
    let (chosen, judged_by) = match &facts.hypopg {
        Some(schema) => {
            let mut judge = ByPlanner::new(bench, schema, &facts, &statements, &all).await?;
            let chosen = choose(&choice, &mut judge).await?;
            let is_planned = judge.planned() > 0 || statements.is_empty();
            judge.close().await?;
            let by = if is_planned {
                JudgedBy::Hypopg
            } else {
                JudgedBy::Estimate
            };
            (chosen, by)
        }
        None => {
            let mut judge = ByEstimate::of(&facts, &statements, &all);
            (choose(&choice, &mut judge).await?, JudgedBy::Estimate)
        }
    };
    let mut report = Report::new(&facts, &statements, wishes, earlier, judged_by);
    report.statements();
    report.missing(&all, &chosen, is_too_early);
    report.foreign_keys(&all, &chosen);
    report.redundant();
    report.unused(&samples);
    report.tables();
    report.settings();
    let (findings, conclusive, plan) = report.end();
    Ok(Look {
        version: facts.server.version.clone(),
        statements: (statements.len(), unread),
        span_seconds: facts.statements_seconds,
        judged_by,
        findings,
        conclusive,
        plan,
        sample: sample(&facts),
    })
}

/// From when on statements are counted.
enum Since<'a> {
    /// From when the server last began to count.
    Reset,
    /// From this sample.
    Sample(&'a Value),
    /// Nothing was counted that says anything.
    Now,
}

/// How often a statement must have run since something was changed: a call or two are chance.
const LEAST_CALLS: f64 = 5.0;

/// The statements that are judged, and how many of those that were recorded cannot be read.
fn weighed(facts: &Facts, since: &Since<'_>) -> (Vec<Weighed>, usize) {
    let names = Names::of(facts);
    let mut unread = 0;
    let mut read = Vec::new();
    for one in facts.statements.iter().flatten() {
        let (calls, total_ms, rows) = match since {
            Since::Reset => (one.calls, one.total_ms, one.rows),
            Since::Now => continue,
            Since::Sample(sample) => {
                let then = sample["statements"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .find(|then| then[0].as_str() == Some(&one.id));
                let before = |at: usize| then.and_then(|then| then[at].as_f64()).unwrap_or(0.0);
                // Counters that were set to nothing since count from then.
                let (calls, total_ms, rows) = if before(1) <= one.calls {
                    (
                        one.calls - before(1),
                        one.total_ms - before(2),
                        one.rows - before(3),
                    )
                } else {
                    (one.calls, one.total_ms, one.rows)
                };
                if calls < LEAST_CALLS {
                    continue;
                }
                (calls, total_ms, rows)
            }
        };
        if calls < 1.0 || total_ms <= 0.0 {
            continue;
        }
        match shape(&names, &one.text) {
            Some(shape) => read.push(Weighed {
                id: one.id.clone(),
                text: one.text.clone(),
                shape,
                calls,
                total_ms,
                rows: rows / calls,
            }),
            // What reads or writes no table of the database is nothing that was missed.
            None if concerns(facts, &one.text) => unread += 1,
            None => {}
        }
    }
    read.sort_by(|a, b| b.total_ms.total_cmp(&a.total_ms));
    read.truncate(MOST_JUDGED);
    (read, unread)
}

/// Whether a text that cannot be read is one that could have told something: it reads or writes, and names a table.
fn concerns(facts: &Facts, text: &str) -> bool {
    const WORDS: [&str; 6] = ["select", "with", "insert", "update", "delete", "merge"];
    let first = text.split_whitespace().next().unwrap_or_default();
    WORDS.iter().any(|word| word.eq_ignore_ascii_case(first))
        && facts.tables.iter().any(|table| text.contains(&table.name))
}

/// Counts what there is, without a look: for looks to come.
///
/// # Errors
///
/// When the database cannot be asked.
pub async fn count(bench: &mut dyn Workbench) -> Result<Value, EngineError> {
    Ok(sample(&collect(bench).await?))
}

/// What is kept of a look: counters, in lists rather than objects, since there will be many.
fn sample(facts: &Facts) -> Value {
    let tables: Vec<Value> = facts
        .tables
        .iter()
        .map(|table| {
            json!([
                table.oid,
                table.seq_scans,
                table.index_scans,
                table.inserted,
                table.updated,
                table.deleted,
                table.hot_updated,
                table.bytes
            ])
        })
        .collect();
    let indexes: Vec<Value> = facts
        .indexes
        .iter()
        .map(|index| json!([index.oid, index.scans, index.bytes]))
        .collect();
    let statements: Vec<Value> = facts
        .statements
        .iter()
        .flatten()
        .map(|one| {
            json!([
                one.id,
                one.calls,
                (one.total_ms * 10.0).round() / 10.0,
                one.rows,
                one.blocks
            ])
        })
        .collect();
    json!({"reset": facts.server.stats_reset, "tables": tables, "indexes": indexes, "statements": statements})
}

/// Asks a standby what it has read.
///
/// # Errors
///
/// When it cannot be asked.
pub async fn replica_reads(bench: &mut dyn Workbench) -> Result<ReplicaReads, EngineError> {
    let read = lines(
        bench,
        "SELECT indexrelid::bigint, idx_scan FROM pg_stat_all_indexes WHERE schemaname !~ '^pg_'",
    )
    .await?;
    let counted = lines(
        bench,
        "SELECT extract(epoch FROM now() - coalesce(stats_reset, pg_postmaster_start_time())) FROM pg_stat_database
         WHERE datname = current_database()",
    )
    .await?;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "an object's id is a number of 32 bits"
    )]
    let scans: BTreeMap<u32, f64> = read
        .iter()
        .map(|line| (number(line.first()) as u32, number(line.get(1))))
        .collect();
    Ok(ReplicaReads {
        scans,
        seconds: counted.first().map_or(0.0, |line| number(line.first())),
    })
}

/// The ids of the statements that read or write a table.
fn statements_on(statements: &[Weighed], table: u32) -> BTreeSet<String> {
    statements
        .iter()
        .filter(|one| one.shape.tables().contains(&table))
        .map(|one| one.id.clone())
        .collect()
}
