//! Indexes that statements could use: from what they compare, join, order by and read.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    estimate::{equal_share, test_share},
    facts::{Facts, Table},
    index::{Candidate, Predicate, Test},
    workload::{Shape, Use},
};

/// How many candidates a table has at most: those of the statements with the most time.
const MOST_OF_A_TABLE: usize = 40;
/// How many columns a key has at most: more than these hardly ever pay.
const MOST_COLUMNS: usize = 4;
/// How many columns are carried along at most, and how wide they may be together.
const MOST_INCLUDED: usize = 3;
const INCLUDED_BYTES: f64 = 64.0;
/// Below this number of pages a table is read as quickly as an index.
const SMALL_PAGES: f64 = 64.0;
/// The share of rows up to which a partial index is worth its condition.
const PARTIAL_SHARE: f64 = 0.3;

/// The candidates for these statements, which stand in the order of their weight.
pub(crate) fn candidates(facts: &Facts, shapes: &[&Shape]) -> Vec<Candidate> {
    let mut of_table: BTreeMap<u32, Vec<Candidate>> = BTreeMap::new();
    for shape in shapes {
        for block in &shape.blocks {
            for (at, one) in block.uses.iter().enumerate() {
                let Some(table) = facts.table(one.table).filter(|table| is_worth(table)) else {
                    continue;
                };
                let joined: Vec<i32> = block
                    .joins
                    .iter()
                    .filter_map(|(a, b)| match (a.0 == at, b.0 == at) {
                        (true, _) => Some(a.1),
                        (_, true) => Some(b.1),
                        _ => None,
                    })
                    .collect();
                let list = of_table.entry(one.table).or_default();
                for candidate in of_use(table, one, &joined) {
                    if list.len() < MOST_OF_A_TABLE && !list.contains(&candidate) {
                        list.push(candidate);
                    }
                }
            }
        }
    }
    let mut all = Vec::new();
    for (table, mut list) in of_table {
        let merged: Vec<Candidate> = list
            .iter()
            .flat_map(|a| list.iter().filter_map(|b| merged(a, b)))
            .collect();
        for candidate in merged {
            if list.len() < MOST_OF_A_TABLE && !list.contains(&candidate) {
                list.push(candidate);
            }
        }
        let there: Vec<Candidate> = facts
            .table(table)
            .into_iter()
            .flat_map(|table| {
                facts
                    .indexes_of(table.oid)
                    .filter_map(|index| Candidate::of_index(index, table))
            })
            .collect();
        list.retain(|candidate| !there.iter().any(|there| candidate.is_served_by(there)));
        all.extend(list);
    }
    all
}

/// Whether an index on this table can pay, and can be made without stopping its writers.
fn is_worth(table: &Table) -> bool {
    table.pages >= SMALL_PAGES && matches!(table.kind.as_str(), "r" | "m")
}

/// The candidates for one use of a table.
fn of_use(table: &Table, one: &Use, joined: &[i32]) -> Vec<Candidate> {
    let sortable = |number: &i32| table.column(*number).is_some_and(|column| column.sortable);
    let share = |number: &i32| {
        table
            .column(*number)
            .map_or(1.0, |column| equal_share(column, table.rows))
    };
    let mut equal: Vec<i32> = one.equal.iter().copied().filter(sortable).collect();
    let mut seen = BTreeSet::new();
    equal.retain(|column| seen.insert(*column));
    // The column that leaves the fewest rows first.
    equal.sort_by(|a, b| share(a).total_cmp(&share(b)));
    let ties: Vec<i32> = joined
        .iter()
        .chain(&one.outer)
        .copied()
        .filter(sortable)
        .filter(|column| !equal.contains(column))
        .collect();
    let ranges: Vec<i32> = one
        .ranges
        .iter()
        .map(|(column, _)| *column)
        .filter(sortable)
        .collect();
    let is_ordered = !one.order.is_empty() && one.order.iter().all(|(column, _)| sortable(column));
    let plain = |columns: &[i32]| -> Vec<(i32, bool)> {
        columns.iter().map(|column| (*column, false)).collect()
    };
    let mut keys: Vec<Vec<(i32, bool)>> = Vec::new();
    let mut add = |mut key: Vec<(i32, bool)>| {
        let mut seen = BTreeSet::new();
        key.retain(|(column, _)| seen.insert(*column));
        key.truncate(MOST_COLUMNS);
        if !key.is_empty() && !keys.contains(&key) {
            keys.push(key);
        }
    };
    add(plain(&equal));
    for range in &ranges {
        let mut key = plain(&equal);
        key.push((*range, false));
        add(key);
        add(plain(&[*range]));
    }
    if is_ordered {
        // Read backwards it gives the other direction: all columns one way need no DESC.
        let one_way = one.order.iter().all(|(_, down)| *down == one.order[0].1);
        let order: Vec<(i32, bool)> = one
            .order
            .iter()
            .map(|(column, down)| (*column, *down && !one_way))
            .collect();
        let mut key = plain(&equal);
        key.extend(&order);
        add(key);
        add(order);
    }
    for tie in &ties {
        add(plain(&[*tie]));
        let mut key = plain(&[*tie]);
        key.extend(plain(&equal));
        add(key);
        let mut key = plain(&equal);
        key.push((*tie, false));
        add(key);
        for range in &ranges {
            add(plain(&[*tie, *range]));
        }
    }
    for column in &equal {
        add(plain(&[*column]));
    }
    let mut found: Vec<Candidate> = keys
        .into_iter()
        .map(|key| Candidate {
            table: table.oid,
            key,
            included: Vec::new(),
            predicate: None,
        })
        .collect();
    let tests = one
        .nulls
        .iter()
        .map(|(column, null)| (*column, if *null { Test::Null } else { Test::NotNull }))
        .chain(
            one.flags
                .iter()
                .map(|(column, flag)| (*column, if *flag { Test::True } else { Test::False })),
        );
    let mut partial = Vec::new();
    for (column, test) in tests {
        let Some(known) = table.column(column) else {
            continue;
        };
        if test_share(known, test) > PARTIAL_SHARE {
            continue;
        }
        let predicate = Some(Predicate { column, test });
        for candidate in found.iter().take(6) {
            partial.push(Candidate {
                predicate,
                ..candidate.clone()
            });
        }
        if found.is_empty() {
            let key = table
                .columns
                .iter()
                .find(|column| column.sortable && column.not_null);
            if let Some(key) = key {
                partial.push(Candidate {
                    predicate,
                    ..Candidate::over(table.oid, [key.number])
                });
            }
        }
    }
    found.extend(partial);
    // What else is read is carried along, where that is little.
    if !one.whole {
        let covering: Vec<Candidate> = found
            .iter()
            .take(8)
            .filter_map(|candidate| covering(table, one, candidate))
            .collect();
        found.extend(covering);
    }
    found
}

fn covering(table: &Table, one: &Use, candidate: &Candidate) -> Option<Candidate> {
    let more: Vec<i32> = one
        .read
        .iter()
        .copied()
        .filter(|column| {
            !candidate.columns().any(|carried| carried == *column)
                && candidate
                    .predicate
                    .is_none_or(|predicate| predicate.column != *column)
        })
        .collect();
    let width: f64 = more
        .iter()
        .filter_map(|column| table.column(*column))
        .map(|column| column.width)
        .sum();
    (!more.is_empty() && more.len() <= MOST_INCLUDED && width <= INCLUDED_BYTES).then(|| {
        Candidate {
            included: more,
            ..candidate.clone()
        }
    })
}

/// One index in the stead of two, where one begins as the other does.
pub(crate) fn merged(a: &Candidate, b: &Candidate) -> Option<Candidate> {
    if a == b || a.table != b.table || a.predicate != b.predicate || !b.key.starts_with(&a.key) {
        return None;
    }
    let mut included: Vec<i32> = a
        .included
        .iter()
        .chain(&b.included)
        .copied()
        .filter(|column| !b.key.iter().any(|(key, _)| key == column))
        .collect();
    included.sort_unstable();
    included.dedup();
    let one = Candidate {
        included,
        ..b.clone()
    };
    (one != *b && one.included.len() <= MOST_INCLUDED).then_some(one)
}
