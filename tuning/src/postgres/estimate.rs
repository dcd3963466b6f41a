//! What a statement costs with a set of indexes, estimated from the server's statistics in the planner's own units.
//!
//! It is the way where the server has no hypothetical indexes (HypoPG): the same quantities as the planner's (pages, rows,
//! shares of rows that conditions leave), fewer ways of joining, and no knowledge of single values. What follows from it is
//! measured before it stays.

use std::collections::BTreeMap;

use super::{
    facts::{Column, Facts, Table},
    index::{Candidate, Test},
    workload::{Block, Shape, Use},
};

/// The planner's costs (PostgreSQL's documentation, "Planner Cost Constants"); a page in order costs 1.
const CPU_ROW: f64 = 0.01;
const CPU_INDEX_ROW: f64 = 0.005;
const CPU_OPERATOR: f64 = 0.0025;
/// What the planner takes for a share of rows of which it knows nothing: of one bound, of two, and of equality.
const ONE_BOUND: f64 = 0.333;
const TWO_BOUNDS: f64 = 0.005;
const UNKNOWN_EQUAL: f64 = 0.005;
/// The share that a condition leaves of which not even the form is known.
const UNKNOWN: f64 = 0.333;
/// How often an outer query is taken to ask an inner one that is tied to it.
const OUTER_ROWS: f64 = 1000.0;
/// Bytes that an entry of an index takes beside its values, and the share of a page that is filled.
const ENTRY_BYTES: f64 = 16.0;
const FILLED: f64 = 0.9;
const PAGE_BYTES: f64 = 8192.0;

/// Estimates on one server's facts.
pub(crate) struct Estimator<'a> {
    facts: &'a Facts,
    random_page: f64,
}

/// What reading one table gives.
#[derive(Clone, Copy, Debug)]
struct Scan {
    cost: f64,
    rows: f64,
    ordered: bool,
}

impl<'a> Estimator<'a> {
    pub(crate) fn of(facts: &'a Facts) -> Self {
        Self {
            facts,
            random_page: facts.number("random_page_cost").unwrap_or(4.0).max(1.0),
        }
    }

    /// What one call of a statement costs. `rows` is how many rows a call gives; `indexes` are those that there would be.
    pub(crate) fn statement(
        &self,
        shape: &Shape,
        rows: f64,
        indexes: &BTreeMap<u32, Vec<&Candidate>>,
    ) -> f64 {
        let blocks: f64 = shape
            .blocks
            .iter()
            .map(|block| self.block(block, rows, indexes))
            .sum();
        blocks.max(CPU_ROW)
    }

    /// About how many bytes an index would have.
    pub(crate) fn bytes(&self, candidate: &Candidate) -> f64 {
        let Some(table) = self.facts.table(candidate.table) else {
            return 0.0;
        };
        let width: f64 = candidate
            .columns()
            .filter_map(|number| table.column(number))
            .map(|column| column.width)
            .sum();
        let share = candidate
            .predicate
            .as_ref()
            .and_then(|predicate| Some(test_share(table.column(predicate.column)?, predicate.test)))
            .unwrap_or(1.0);
        (table.rows * share * (width + ENTRY_BYTES) / FILLED).max(PAGE_BYTES * 2.0)
    }

    fn block(&self, block: &Block, rows: f64, indexes: &BTreeMap<u32, Vec<&Candidate>>) -> f64 {
        let none = Vec::new();
        let of = |one: &Use| indexes.get(&one.table).unwrap_or(&none);
        if let [one] = block.uses.as_slice() {
            let wanted = block.limited.then_some(rows.max(1.0));
            return self.alone(one, wanted, of(one));
        }
        // The table with the fewest rows first, then always the one that is cheapest to join.
        let first = (0..block.uses.len())
            .filter_map(|at| Some((at, self.scan(&block.uses[at], &[], of(&block.uses[at]))?)))
            .min_by(|(_, a), (_, b)| (a.rows + a.cost * 1e-9).total_cmp(&(b.rows + b.cost * 1e-9)));
        let Some((first, scan)) = first else {
            return 0.0;
        };
        let mut joined = vec![first];
        let (mut cost, mut have) = (scan.cost, scan.rows.max(1.0));
        while joined.len() < block.uses.len() {
            let next = (0..block.uses.len())
                .filter(|at| !joined.contains(at))
                .filter_map(|at| {
                    let one = &block.uses[at];
                    let keys: Vec<i32> = block
                        .joins
                        .iter()
                        .filter_map(|(a, b)| {
                            if a.0 == at && joined.contains(&b.0) {
                                Some(a.1)
                            } else if b.0 == at && joined.contains(&a.0) {
                                Some(b.1)
                            } else {
                                None
                            }
                        })
                        .collect();
                    let table = self.facts.table(one.table)?;
                    let whole = self.scan(one, &[], of(one))?;
                    let hashed =
                        whole.cost + (whole.rows + have) * (CPU_OPERATOR * 2.0 + CPU_ROW * 0.5);
                    let share: f64 = keys
                        .iter()
                        .filter_map(|key| table.column(*key))
                        .map(|column| equal_share(column, table.rows))
                        .product();
                    let rows = (have * whole.rows * share).max(1.0);
                    let nested = if keys.is_empty() {
                        f64::INFINITY
                    } else {
                        have * self.scan(one, &keys, of(one))?.cost
                    };
                    let is_tied = !keys.is_empty();
                    Some((at, hashed.min(nested), rows, is_tied))
                })
                // What is tied to what is there comes before what is not.
                .min_by(|a, b| {
                    (!a.3, a.1)
                        .partial_cmp(&(!b.3, b.1))
                        .unwrap_or(std::cmp::Ordering::Equal)
                });
            let Some((at, more, rows, _)) = next else {
                break;
            };
            joined.push(at);
            cost += more;
            have = rows;
        }
        cost + have * CPU_ROW
    }

    /// What reading one table costs, with the order and the first rows that are asked for.
    fn alone(&self, one: &Use, wanted: Option<f64>, indexes: &[&Candidate]) -> f64 {
        let outer = if one.outer.is_empty() {
            None
        } else {
            // As a join with what is outside: the table once, or looked up each time.
            let looked_up = self
                .best(one, &one.outer, indexes, None)
                .map(|scan| scan.cost * OUTER_ROWS);
            let hashed = self
                .best(one, &[], indexes, None)
                .map(|scan| scan.cost + scan.rows * CPU_OPERATOR * 2.0);
            match (looked_up, hashed) {
                (Some(a), Some(b)) => Some(a.min(b)),
                (a, b) => a.or(b),
            }
        };
        outer.unwrap_or_else(|| {
            self.best(one, &[], indexes, wanted)
                .map_or(0.0, |scan| scan.cost)
        })
    }

    fn scan(&self, one: &Use, also_equal: &[i32], indexes: &[&Candidate]) -> Option<Scan> {
        self.best(one, also_equal, indexes, None)
    }

    /// The cheapest way to read a table.
    fn best(
        &self,
        one: &Use,
        also_equal: &[i32],
        indexes: &[&Candidate],
        wanted: Option<f64>,
    ) -> Option<Scan> {
        let table = self.facts.table(one.table)?;
        let rows = table.rows.max(1.0) * kept_share(table, one, also_equal);
        let whole = Scan {
            cost: table.pages.max(1.0)
                + table.rows * (CPU_ROW + CPU_OPERATOR * f64::from(conditions(one, also_equal))),
            rows,
            ordered: one.order.is_empty(),
        };
        let through = indexes
            .iter()
            .filter_map(|index| self.through(table, one, also_equal, index, rows, wanted));
        through
            .chain([whole])
            .map(|scan| finished(scan, wanted))
            .min_by(|a, b| a.cost.total_cmp(&b.cost))
    }

    /// Reading a table through an index; nothing where the index does not serve.
    fn through(
        &self,
        table: &Table,
        one: &Use,
        also_equal: &[i32],
        index: &Candidate,
        rows: f64,
        wanted: Option<f64>,
    ) -> Option<Scan> {
        let size = table.rows.max(1.0);
        let mut entries = size;
        if let Some(predicate) = &index.predicate {
            let is_met = match predicate.test {
                Test::Null => one.nulls.contains(&(predicate.column, true)),
                Test::NotNull => {
                    one.nulls.contains(&(predicate.column, false))
                        || is_equal(one, also_equal, predicate.column)
                        || one.ranges.iter().any(|range| range.0 == predicate.column)
                }
                Test::True => one.flags.contains(&(predicate.column, true)),
                Test::False => one.flags.contains(&(predicate.column, false)),
            };
            if !is_met {
                return None;
            }
            entries *= test_share(table.column(predicate.column)?, predicate.test);
        }
        let mut found = entries;
        let mut used = 0;
        let mut is_bounded = false;
        for (column, _) in &index.key {
            let known = table.column(*column)?;
            if is_equal(one, also_equal, *column) {
                found *= equal_share(known, size);
            } else if let Some((_, null)) = one.nulls.iter().find(|(number, _)| number == column) {
                found *= test_share(known, if *null { Test::Null } else { Test::NotNull });
            } else if let Some((_, flag)) = one.flags.iter().find(|(number, _)| number == column) {
                found *= test_share(known, if *flag { Test::True } else { Test::False });
            } else {
                if let Some((_, two)) = one.ranges.iter().find(|(number, _)| number == column) {
                    found *= if *two { TWO_BOUNDS } else { ONE_BOUND };
                    is_bounded = true;
                }
                break;
            }
            used += 1;
        }
        let behind = &index.key[used..];
        let ordered = !one.order.is_empty()
            && one.order.len() <= behind.len()
            && (same_order(&one.order, behind, false) || same_order(&one.order, behind, true));
        let matched = used + usize::from(is_bounded);
        if matched == 0 && !ordered && index.predicate.is_none() {
            return None;
        }
        let found = found.max(1.0);
        // Where the order comes with the index, reading ends once there are enough rows.
        let share_read = match wanted {
            Some(wanted) if ordered => (wanted / rows.max(1.0)).min(1.0),
            _ => 1.0,
        };
        let read = (found * share_read).max(1.0);
        let index_pages = (self.bytes(index) / PAGE_BYTES * (read / entries.max(1.0))).ceil();
        let covered = !one.whole
            && one
                .read
                .iter()
                .all(|column| index.columns().any(|carried| carried == *column));
        let seen = if covered {
            1.0 - table.all_visible
        } else {
            1.0
        };
        let correlation = index
            .key
            .first()
            .and_then(|(column, _)| table.column(*column))
            .map_or(0.0, |column| column.correlation.powi(2));
        let pages = table.pages.max(1.0);
        // Mackert and Lohman's estimate of the pages that rows in no order lie on.
        let scattered = ((2.0 * pages * read) / (2.0 * pages + read)).min(pages);
        let together = (pages * read / size).ceil();
        let share = (scattered / pages).sqrt();
        let page_out_of_order = self.random_page - (self.random_page - 1.0) * share;
        let heap = scattered * page_out_of_order * (1.0 - correlation)
            + (together + self.random_page - 1.0) * correlation;
        let cost = self.random_page
            + entries.max(2.0).log2() * CPU_OPERATOR
            + 50.0 * CPU_OPERATOR
            + index_pages * self.random_page.min(2.0)
            + read
                * (CPU_INDEX_ROW + CPU_OPERATOR * f64::from(conditions(one, also_equal)) + CPU_ROW)
            + heap * seen;
        Some(Scan {
            cost,
            rows,
            ordered: ordered || one.order.is_empty(),
        })
    }
}

/// Adds the sort, where one is still needed.
fn finished(mut scan: Scan, wanted: Option<f64>) -> Scan {
    if !scan.ordered {
        let kept = wanted.map_or(scan.rows, |wanted| wanted.min(scan.rows));
        scan.cost += 2.0 * CPU_OPERATOR * scan.rows.max(2.0) * kept.max(2.0).log2();
    }
    scan
}

fn same_order(order: &[(i32, bool)], key: &[(i32, bool)], backwards: bool) -> bool {
    order
        .iter()
        .zip(key)
        .all(|(a, b)| a.0 == b.0 && (a.1 == b.1) != backwards)
}

fn is_equal(one: &Use, also_equal: &[i32], column: i32) -> bool {
    one.equal.contains(&column) || also_equal.contains(&column)
}

fn conditions(one: &Use, also_equal: &[i32]) -> u32 {
    let counted =
        one.equal.len() + also_equal.len() + one.ranges.len() + one.nulls.len() + one.flags.len();
    u32::try_from(counted)
        .unwrap_or(u32::MAX)
        .saturating_add(one.others)
}

/// The share of a table's rows that all conditions leave.
fn kept_share(table: &Table, one: &Use, also_equal: &[i32]) -> f64 {
    let mut share = 1.0;
    for number in one.equal.iter().chain(also_equal) {
        share *= table
            .column(*number)
            .map_or(UNKNOWN_EQUAL, |column| equal_share(column, table.rows));
    }
    for (_, two) in &one.ranges {
        share *= if *two { TWO_BOUNDS } else { ONE_BOUND };
    }
    for (number, null) in &one.nulls {
        let test = if *null { Test::Null } else { Test::NotNull };
        share *= table
            .column(*number)
            .map_or(UNKNOWN, |column| test_share(column, test));
    }
    for (number, flag) in &one.flags {
        let test = if *flag { Test::True } else { Test::False };
        share *= table
            .column(*number)
            .map_or(UNKNOWN, |column| test_share(column, test));
    }
    share * UNKNOWN.powi(i32::try_from(one.others.min(4)).unwrap_or(4))
}

/// The share of rows that are equal to some value.
pub(crate) fn equal_share(column: &Column, rows: f64) -> f64 {
    let distinct = distinct_values(column, rows);
    if distinct <= 0.0 {
        return UNKNOWN_EQUAL;
    }
    ((1.0 - column.null_share) / distinct).clamp(1e-12, 1.0)
}

/// How many values there are; 0 is unknown.
pub(crate) fn distinct_values(column: &Column, rows: f64) -> f64 {
    if column.distinct < 0.0 {
        (-column.distinct * rows).max(1.0)
    } else {
        column.distinct
    }
}

/// The share of rows that pass a test.
pub(crate) fn test_share(column: &Column, test: Test) -> f64 {
    let yes = column.true_share.unwrap_or((1.0 - column.null_share) / 2.0);
    let share = match test {
        Test::Null => column.null_share,
        Test::NotNull => 1.0 - column.null_share,
        Test::True => yes,
        Test::False => 1.0 - column.null_share - yes,
    };
    share.clamp(1e-6, 1.0)
}
