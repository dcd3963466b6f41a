//! How single tables are stored and kept in order: autovacuum, room for updates in place, bloat, statistics of columns.

use std::collections::BTreeSet;

use super::{
    choose::Weighed,
    estimate::{Estimator, distinct_values},
    facts::{Facts, Index, Table},
    index::Candidate,
    workload::Write,
};

/// From how many rows on a fifth of a table is too much to wait for.
const LARGE_ROWS: f64 = 1_000_000.0;
/// The share of dead rows from which on a table is called bloated.
const DEAD_SHARE: f64 = 0.2;

/// The share of dead rows at which autovacuum should come to a large table, where it comes later.
pub(crate) fn vacuum_share(facts: &Facts, table: &Table) -> Option<(f64, f64)> {
    let now = table
        .option("autovacuum_vacuum_scale_factor")
        .and_then(|text| text.parse().ok())
        .or_else(|| facts.number("autovacuum_vacuum_scale_factor"))
        .unwrap_or(0.2);
    let changes = table.updated + table.deleted;
    if table.kind != "r" || table.live < LARGE_ROWS || changes < table.live * 0.01 || now <= 0.05 {
        return None;
    }
    let fair = if table.live >= 50.0 * LARGE_ROWS {
        0.005
    } else if table.live >= 10.0 * LARGE_ROWS {
        0.01
    } else {
        0.02
    };
    Some((now, fair))
}

/// How full pages should be left, where updates of columns without an index find no room beside their rows.
pub(crate) fn fill_factor(facts: &Facts, statements: &[Weighed], table: &Table) -> Option<u32> {
    if table.updated < table.live * 0.1
        || table.updated < 10_000.0
        || table.option("fillfactor").is_some()
    {
        return None;
    }
    if table.hot_updated / table.updated > 0.5 {
        return None;
    }
    let indexed: BTreeSet<i32> = facts
        .indexes_of(table.oid)
        .flat_map(|index| index.key.iter().chain(&index.included).copied())
        .collect();
    // Only where the updates that are known could be made in place.
    let mut known = statements.iter().filter_map(|one| match &one.shape.write {
        Some(Write::Update(oid, set)) if *oid == table.oid => Some((set, one.calls)),
        _ => None,
    });
    let (mut could, mut all) = (0.0, 0.0);
    for (set, calls) in &mut known {
        all += calls;
        if set.iter().all(|column| !indexed.contains(column)) {
            could += calls;
        }
    }
    (all > 0.0 && could / all > 0.5).then_some(85)
}

/// The share of dead rows of a table that has too many of them.
pub(crate) fn dead_share(table: &Table) -> Option<f64> {
    let all = table.live + table.dead;
    let share = if all > 0.0 { table.dead / all } else { 0.0 };
    (table.dead > 50_000.0 && share > DEAD_SHARE).then_some(share)
}

/// How many bytes an index would have, built anew, where it is far larger than that.
pub(crate) fn bloated(facts: &Facts, index: &Index) -> Option<f64> {
    const LEAST_BYTES: f64 = 64.0 * 1_048_576.0;
    let table = facts.table(index.table)?;
    let fair = Estimator::of(facts).bytes(&Candidate::of_index(index, table)?);
    (index.bytes > LEAST_BYTES && index.bytes > fair * 2.5).then_some(fair)
}

/// Columns that conditions name and of whose values too little is known: many of them, and a full list of common ones.
pub(crate) fn narrow_statistics<'a>(
    facts: &'a Facts,
    statements: &[Weighed],
    table: &'a Table,
) -> Vec<&'a super::facts::Column> {
    let target = facts.number("default_statistics_target").unwrap_or(100.0);
    let asked: BTreeSet<i32> = statements
        .iter()
        .flat_map(|one| &one.shape.blocks)
        .flat_map(|block| &block.uses)
        .filter(|one| one.table == table.oid)
        .flat_map(|one| one.equal.iter().copied())
        .collect();
    if table.rows < LARGE_ROWS {
        return Vec::new();
    }
    table
        .columns
        .iter()
        .filter(|column| {
            asked.contains(&column.number)
                && column.statistics_target < 0
                && f64::from(column.common_values) >= target
                && distinct_values(column, table.rows) > target * 10.0
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::testing::{facts, table};

    #[test]
    fn large_tables_that_change_are_vacuumed_earlier_and_others_are_left_alone() {
        let facts = facts(Vec::new());
        let mut large = table(1, "t", &["a"]);
        assert_eq!(vacuum_share(&facts, &large), None);
        large.updated = 500_000.0;
        assert_eq!(vacuum_share(&facts, &large), Some((0.2, 0.02)));
        large.live = 20e6;
        assert_eq!(vacuum_share(&facts, &large), Some((0.2, 0.01)));
        large.options = Some(vec!["autovacuum_vacuum_scale_factor=0.01".to_owned()]);
        assert_eq!(vacuum_share(&facts, &large), None);
        assert_eq!(dead_share(&large), None);
        large.dead = 10e6;
        assert!(dead_share(&large).is_some());
    }
}
