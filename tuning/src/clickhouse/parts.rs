//! Parts and partitions that are too small: inserts of few rows, and partition keys that are too fine.

use fettler_engine::{EngineError, Workbench};
use fettler_model::Severity;
use serde_json::json;

use super::{OWN, asked, number, text};
use crate::advice::{Advice, Said, size};

/// From how many partitions on it matters how large they are.
const MANY_PARTITIONS: f64 = 100.0;
/// A partition below this is not worth its files.
const SMALL_PARTITION: f64 = 10.0 * 1_048_576.0;
/// How many parts a partition has, at least, to speak of inserts that are too small.
const MANY_PARTS: f64 = 30.0;
/// Rows below which a part is small.
const SMALL_PART_ROWS: f64 = 10_000.0;

pub(super) async fn look(
    advice: &mut Advice,
    bench: &mut dyn Workbench,
) -> Result<(), EngineError> {
    let sql = format!(
        "SELECT database, table, count() AS parts, uniqExact(partition) AS partitions, sum(rows), sum(bytes_on_disk), max(parts_of)
         FROM (SELECT database, table, partition, rows, bytes_on_disk, count() OVER (PARTITION BY database, table, partition) AS parts_of
               FROM system.parts WHERE active AND database NOT IN {OWN})
         GROUP BY database, table ORDER BY database, table"
    );
    let mut found = asked(bench, &sql).await?;
    if found.is_err() {
        // Servers of 2018 know no windows.
        let sql = format!(
            "SELECT database, table, sum(parts_of), count(), sum(of_rows), sum(of_bytes), max(parts_of)
             FROM (SELECT database, table, partition, count() AS parts_of, sum(rows) AS of_rows, sum(bytes_on_disk) AS of_bytes
                   FROM system.parts WHERE active AND database NOT IN {OWN} GROUP BY database, table, partition)
             GROUP BY database, table ORDER BY database, table"
        );
        found = asked(bench, &sql).await?;
    }
    let lines = match found {
        Ok(lines) => lines,
        Err(why) => {
            advice.unknown("parts", "the server's parts are not told", &why);
            return Ok(());
        }
    };
    for check in ["partitions_small", "parts_small"] {
        advice.seen(check);
    }
    for line in &lines {
        let place = format!("{}.{}", text(line, 0), text(line, 1));
        let (parts, partitions) = (number(line, 2), number(line, 3));
        let (rows, bytes, most) = (number(line, 4), number(line, 5), number(line, 6));
        if partitions >= MANY_PARTITIONS && bytes / partitions < SMALL_PARTITION {
            advice.find(Said {
                check: "partitions_small",
                object: &place,
                severity: Severity::Medium,
                title: format!("{place} has {partitions:.0} partitions of {} each", size(bytes / partitions)),
                evidence: json!({"partitions": partitions, "parts": parts, "rows": rows, "bytes": bytes}),
                why: "Parts of different partitions are never merged: each keeps files of its own, an insert makes a part for each partition that it touches, and a query opens all of them. Partitions are for dropping and moving data, not for finding it.",
                fix: "Partition by month, or not at all, and put what queries filter by into the sorting key. A table is partitioned anew by inserting it into another one.",
                commands: vec![format!("SELECT partition, sum(rows), count() FROM system.parts WHERE active AND database || '.' || table = '{place}' GROUP BY partition ORDER BY 2")],
            });
        } else if most >= MANY_PARTS && rows / parts < SMALL_PART_ROWS {
            advice.find(Said {
                check: "parts_small",
                object: &place,
                severity: Severity::Medium,
                title: format!("{place} has {parts:.0} parts of {:.0} rows each: inserts are too small", rows / parts),
                evidence: json!({"parts": parts, "most_in_a_partition": most, "rows": rows, "bytes": bytes}),
                why: "Each insert makes a part, and merging cannot keep up with many small ones: queries read all of them, and at the limit inserts are held back and refused.",
                fix: "Insert ten thousand rows or more at once, once a second at most, or let the server gather them.",
                commands: vec!["ALTER USER … SETTINGS async_insert = 1, wait_for_async_insert = 1".to_owned()],
            });
        }
    }
    Ok(())
}
