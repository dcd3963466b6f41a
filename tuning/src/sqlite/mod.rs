//! SQLite: what `ANALYZE` knows, indexes that are too many, pragmas that stay in the file, and indexes for the statements that a
//! user gives, since SQLite records none.
//!
//! What an index brings is not guessed: where the database is small enough to be copied into memory, the statements run there,
//! with and without it, and the steps of SQLite's machine are counted.

mod facts;
mod indexes;

use fettler_engine::{EngineError, StatementError, Workbench};
use fettler_model::{ActionKind, Engine, JudgedBy, Severity, TuningRecord};
use serde_json::json;

use self::facts::{Facts, Table, quote};
use crate::{
    Look, Wishes,
    advice::{Advice, Said, action, size},
};

/// Up to which size a database is copied into memory.
const MOST_COPIED_BYTES: u64 = 256 << 20;
/// Below this many rows a table is read as quickly as an index.
const FEW_ROWS: f64 = 1000.0;
/// How many times as many rows, or as few, there must be for statistics to be old.
const OLD_TIMES: f64 = 3.0;
/// From which size on settings of the file are worth a word.
const LARGE_BYTES: f64 = 16.0 * 1_048_576.0;
/// From which size on what each connection sets is worth one.
const VERY_LARGE_BYTES: f64 = 256.0 * 1_048_576.0;
/// The share of free pages from which on a file is worth shrinking.
const FREE_SHARE: f64 = 0.25;
/// SQLite's default since 3.12 (2016).
const USUAL_PAGE_BYTES: f64 = 4096.0;

/// Looks at a database, and changes nothing.
///
/// # Errors
///
/// When it cannot be asked.
pub async fn look(
    bench: &mut dyn Workbench,
    wishes: &Wishes,
    records: &[TuningRecord],
) -> Result<Look, EngineError> {
    let copy = bench.run(&format!("COPY {MOST_COPIED_BYTES}")).await;
    let is_whole = matches!(&copy, Ok(lines) if lines.first().and_then(|line| line[0].as_deref()) == Some("whole"));
    if let Err(StatementError::Lost(error)) = copy {
        return Err(error);
    }
    let facts = facts::collect(bench, is_whole).await?;
    let mut advice = Advice::of(Engine::Sqlite);
    let judged = indexes::missing(&mut advice, bench, &facts, wishes, is_whole).await?;
    indexes::redundant(&mut advice, bench, &facts, &wishes.statements, is_whole).await?;
    // Behind the indexes: those that are made are analysed with the others.
    statistics(&mut advice, &facts);
    pragmas(&mut advice, &facts);
    let mut look = advice.end(facts.version, records);
    look.statements = judged;
    if is_whole && judged.0 > 0 {
        look.judged_by = JudgedBy::Copy;
    }
    Ok(look)
}

/// Tables with indexes of which the planner knows nothing, or nothing that is true any more.
fn statistics(advice: &mut Advice, facts: &Facts) {
    let mut concerned: Vec<(&Table, &str)> = Vec::new();
    for table in &facts.tables {
        // A table without indexes leaves the planner no choice.
        let has_indexes = !table.indexes.is_empty() || advice.plans_index_on(&table.name);
        if !has_indexes || table.rows < FEW_ROWS {
            continue;
        }
        match table.rows_known() {
            None => concerned.push((table, "never")),
            Some(then) if table.rows > then * OLD_TIMES || table.rows * OLD_TIMES < then => {
                concerned.push((table, "old"));
            }
            Some(_) => {}
        }
    }
    advice.seen("statistics");
    if concerned.is_empty() {
        return;
    }
    let tables: Vec<_> = concerned
        .iter()
        .map(|(table, state)| {
            json!({"table": table.name, "analysed": state, "rows": table.rows, "rows_then": table.rows_known(), "indexes": table.indexes.len()})
        })
        .collect();
    let has_choice = concerned.iter().any(|(table, _)| table.indexes.len() > 1);
    let mut apply = vec!["PRAGMA analysis_limit = 1000".to_owned()];
    apply.extend(
        concerned
            .iter()
            .map(|(table, _)| format!("ANALYZE main.{}", quote(&table.name))),
    );
    let names: Vec<&str> = concerned
        .iter()
        .map(|(table, _)| table.name.as_str())
        .collect();
    let key = advice.find(Said {
        check: "statistics",
        object: "",
        severity: if has_choice { Severity::Medium } else { Severity::Low },
        title: format!(
            "the planner knows nothing, or nothing that is still true, of {} {}: {}",
            concerned.len(),
            if concerned.len() == 1 { "table" } else { "tables" },
            names.join(", ")
        ),
        evidence: json!({ "tables": tables }),
        why: "Without statistics SQLite takes every index to leave about ten rows, and chooses between indexes, and the order of joins, by that.",
        fix: "Run ANALYZE with a limit (a moment even for large tables), and `PRAGMA optimize` whenever a connection is closed.",
        commands: apply.iter().map(|sql| format!("{sql};")).collect(),
    });
    let mut undo = Vec::new();
    if facts.has_statistics {
        for (table, _) in &concerned {
            undo.push(format!(
                "DELETE FROM sqlite_stat1 WHERE tbl = {}",
                facts::literal(&table.name)
            ));
            undo.extend(table.statistics.iter().map(|(index, stat)| {
                let index = index
                    .as_deref()
                    .map_or_else(|| "NULL".to_owned(), facts::literal);
                format!(
                    "INSERT INTO sqlite_stat1 (tbl, idx, stat) VALUES ({}, {index}, {})",
                    facts::literal(&table.name),
                    facts::literal(stat)
                )
            }));
        }
        // Has the connection forget what it was; it would make the tables anew where they are gone.
        undo.push("ANALYZE sqlite_schema".to_owned());
    } else {
        undo.push("DROP TABLE IF EXISTS sqlite_stat1".to_owned());
        undo.push("DROP TABLE IF EXISTS sqlite_stat4".to_owned());
    }
    let made = action(
        ActionKind::RefreshStatistics,
        "sqlite_stat1",
        &key,
        format!(
            "so that the planner knows how many rows an index leaves in {}",
            names.join(", ")
        ),
        apply,
        undo,
    );
    let why_not = facts
        .has_samples
        .then_some("the file has samples of values (sqlite_stat4), which could not be put back");
    advice.plan(made, why_not);
}

/// What stays in the file, and what each connection sets. None of it is changed without a person: others must be gone for it, or
/// it changes what a copy of the file is.
fn pragmas(advice: &mut Advice, facts: &Facts) {
    for check in ["journal_mode", "page_size", "free_pages", "connections"] {
        advice.seen(check);
    }
    let bytes = facts.page_size * facts.pages;
    if bytes < LARGE_BYTES {
        return;
    }
    if ["delete", "truncate", "persist"].contains(&facts.journal_mode.as_str()) {
        let key = advice.find(Said {
            check: "journal_mode",
            object: "",
            severity: Severity::Low,
            title: format!("the journal mode is `{}`: whoever writes keeps all readers out", facts.journal_mode),
            evidence: json!({"journal_mode": facts.journal_mode, "bytes": bytes}),
            why: "With a write-ahead log readers go on while one connection writes, and a commit is one sequential write in place of two and several syncs. It needs shared memory: all who use the file must be on one machine, never on a network file system.",
            fix: "Where all users of the file are on this machine, switch to WAL, and have each connection set `synchronous = NORMAL` (a power cut may then lose the last commits, and never damages the file).",
            commands: vec!["PRAGMA journal_mode = WAL;".to_owned()],
        });
        let made = action(
            ActionKind::SetSetting,
            "journal_mode",
            &key,
            "readers and a writer no longer wait for one another".to_owned(),
            vec!["PRAGMA journal_mode = WAL".to_owned()],
            vec![format!("PRAGMA journal_mode = {}", facts.journal_mode)],
        );
        advice.plan(
            made,
            Some(
                "only people know whether all users of the file are on one machine, and copy it with its log",
            ),
        );
    }
    if facts.page_size < USUAL_PAGE_BYTES {
        advice.find(Said {
            check: "page_size",
            object: "",
            severity: Severity::Low,
            title: format!("the pages have {} bytes, less than a block of the disk", facts.page_size),
            evidence: json!({"page_size": facts.page_size, "bytes": bytes}),
            why: "File systems and disks read and write 4096 bytes at once at least. Smaller pages make deeper trees and more reads, and a page is written as a part of a block.",
            fix: "Rebuild the file with pages of 4096 bytes when nobody uses it. In WAL mode another journal mode must be set first.",
            commands: vec!["PRAGMA page_size = 4096;".to_owned(), "VACUUM;".to_owned()],
        });
    }
    let free = facts.free_pages / facts.pages.max(1.0);
    if free > FREE_SHARE {
        advice.find(Said {
            check: "free_pages",
            object: "",
            severity: Severity::Low,
            title: format!("{:.0} % of the file's pages are free ({})", free * 100.0, size(facts.free_pages * facts.page_size)),
            evidence: json!({"free_pages": facts.free_pages, "pages": facts.pages, "auto_vacuum": facts.auto_vacuum}),
            why: "What was deleted stays a part of the file, is copied with it, and what is left lies scattered. Rows that come later use it again: it is worth the work only where they do not come.",
            fix: "Rebuild the file when nobody uses it; needs as much free disk again. Where it shrinks and grows all the time, `auto_vacuum = INCREMENTAL` and `PRAGMA incremental_vacuum` give pages back in small steps (full auto-vacuum does at every commit, which costs and scatters).",
            commands: vec!["VACUUM;".to_owned()],
        });
    }
    if bytes >= VERY_LARGE_BYTES {
        advice.find(Said {
            check: "connections",
            object: "",
            severity: Severity::Info,
            title: format!("the file has {}: see what its connections set for themselves", size(bytes)),
            evidence: json!({"bytes": bytes}),
            why: "The page cache is 2 MB for each connection, and the file is not mapped, unless the application says otherwise when it connects; neither is kept in the file, so that it cannot be seen from here. Mapping saves a copy of every page that is read.",
            fix: "Where the application says nothing, have it set both on connecting, if the machine has the memory and the file is on a local disk.",
            commands: vec!["PRAGMA cache_size = -65536; -- 64 MiB".to_owned(), format!("PRAGMA mmap_size = {VERY_LARGE_BYTES:.0};")],
        });
    }
}
