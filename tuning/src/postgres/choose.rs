//! Chooses a set of indexes for a whole workload: what statements save, less what writes pay and what room costs.
//!
//! Greedy by what each adds to the set (the more the set has, the less one more brings), then by moves of one: taken out,
//! exchanged, put in, until nothing is gained any more. Who judges what statements cost is not known here.

use std::collections::{BTreeMap, BTreeSet};

use async_trait::async_trait;
use fettler_engine::EngineError;

use super::{
    estimate::Estimator,
    facts::Facts,
    index::Candidate,
    workload::{Shape, Write},
};

/// Milliseconds that one more entry of an index costs a writer: finding the place, the entry, its log. Between 5 and 20 µs on
/// machines of the last ten years while the index is in memory.
const ENTRY_MS: f64 = 0.01;
/// How much more it costs where the index is larger than the server's buffers, and pages are read for it.
const ENTRY_READ_FACTOR: f64 = 5.0;
/// The share of all statements' time that an index must save to be looked at: less is noise.
const LEAST_SHARE: f64 = 0.01;
/// What an index as large as the whole database is taken to cost, as a share of all statements' time: room, backups, caches.
const ROOM_SHARE: f64 = 0.05;
/// How many moves are made at most after the greedy choice.
const MOST_MOVES: usize = 200;

/// A statement with what is known of it.
#[derive(Clone, Debug)]
pub(crate) struct Weighed {
    pub(crate) id: String,
    pub(crate) text: String,
    pub(crate) shape: Shape,
    pub(crate) calls: f64,
    pub(crate) total_ms: f64,
    /// Rows that a call gives or writes.
    pub(crate) rows: f64,
}

/// Says what a statement costs with some of the candidates beside the indexes that there are, in any unit of its own.
#[async_trait]
pub(crate) trait Judge: Send {
    async fn cost(&mut self, statement: usize, candidates: &[usize]) -> Result<f64, EngineError>;
}

/// What is being chosen from, and for what.
pub(crate) struct Choice<'a> {
    pub(crate) facts: &'a Facts,
    pub(crate) statements: &'a [Weighed],
    pub(crate) candidates: &'a [Candidate],
    /// Bytes that all of them together may have.
    pub(crate) most_bytes: f64,
}

/// One that was chosen.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Chosen {
    pub(crate) candidate: usize,
    /// The statements that it helps, and milliseconds that they take with the rest of the set, without it and with it.
    pub(crate) helps: Vec<usize>,
    pub(crate) ms_without: f64,
    pub(crate) ms_with: f64,
    pub(crate) writes_ms: f64,
    pub(crate) bytes: f64,
}

/// Costs that were asked for already.
struct Asked<'a, 'j> {
    choice: &'a Choice<'a>,
    judge: &'j mut dyn Judge,
    /// For each statement, which candidates are on its tables.
    relevant: Vec<BTreeSet<usize>>,
    base: Vec<f64>,
    known: BTreeMap<(usize, Vec<usize>), f64>,
    keep: Vec<f64>,
    bytes: Vec<f64>,
}

impl Asked<'_, '_> {
    /// Milliseconds that a statement would have taken in all.
    async fn statement(&mut self, at: usize, set: &BTreeSet<usize>) -> Result<f64, EngineError> {
        let relevant: Vec<usize> = set.intersection(&self.relevant[at]).copied().collect();
        let total = self.choice.statements[at].total_ms;
        if relevant.is_empty() {
            return Ok(total);
        }
        let key = (at, relevant);
        let cost = match self.known.get(&key) {
            Some(cost) => *cost,
            None => {
                let cost = self.judge.cost(at, &key.1).await?;
                self.known.insert(key, cost);
                cost
            }
        };
        Ok(total * (cost / self.base[at]).min(1.0))
    }

    /// What everything costs with a set: the less, the better. Infinite where it takes too much room.
    async fn all(&mut self, set: &BTreeSet<usize>) -> Result<f64, EngineError> {
        let bytes: f64 = set.iter().map(|at| self.bytes[*at]).sum();
        if bytes > self.choice.most_bytes {
            return Ok(f64::INFINITY);
        }
        let mut sum: f64 = set.iter().map(|at| self.keep[*at]).sum();
        for at in 0..self.choice.statements.len() {
            sum += self.statement(at, set).await?;
        }
        Ok(sum)
    }
}

/// What an index costs writers, in milliseconds over the time that the statements span.
pub(crate) fn writes_ms(
    facts: &Facts,
    statements: &[Weighed],
    candidate: &Candidate,
    bytes: f64,
) -> f64 {
    let others = facts.indexes_of(candidate.table).count();
    let entries: f64 = statements
        .iter()
        .map(|one| match &one.shape.write {
            Some(Write::Insert(table)) if *table == candidate.table => {
                one.calls * one.rows.max(1.0)
            }
            Some(Write::Update(table, set)) if *table == candidate.table => {
                let is_touched = candidate.columns().any(|column| set.contains(&column))
                    || candidate
                        .predicate
                        .is_some_and(|predicate| set.contains(&predicate.column));
                let rows = one.calls * one.rows.max(1.0);
                let hot = facts.table(*table).map_or(0.0, |table| {
                    if table.updated > 0.0 {
                        table.hot_updated / table.updated
                    } else {
                        0.0
                    }
                });
                if is_touched {
                    // An update that changed no indexed column needed no entry in any index; now it needs one in all.
                    #[expect(clippy::cast_precision_loss, reason = "a table has few indexes")]
                    let others = others as f64;
                    rows * (1.0 + hot * others)
                } else {
                    rows * (1.0 - hot)
                }
            }
            _ => 0.0,
        })
        .sum();
    let buffers = facts.bytes("shared_buffers").unwrap_or(128.0 * 1_048_576.0);
    let read = if bytes > buffers {
        ENTRY_READ_FACTOR
    } else {
        1.0
    };
    entries * ENTRY_MS * read
}

/// Chooses.
pub(crate) async fn choose(
    choice: &Choice<'_>,
    judge: &mut dyn Judge,
) -> Result<Vec<Chosen>, EngineError> {
    let all_ms: f64 = choice.statements.iter().map(|one| one.total_ms).sum();
    let estimator = Estimator::of(choice.facts);
    let database = choice.facts.server.database_bytes.max(1.0);
    let bytes: Vec<f64> = choice
        .candidates
        .iter()
        .map(|candidate| estimator.bytes(candidate))
        .collect();
    let keep = choice
        .candidates
        .iter()
        .zip(&bytes)
        .map(|(candidate, bytes)| {
            writes_ms(choice.facts, choice.statements, candidate, *bytes)
                + all_ms * ROOM_SHARE * (bytes / database).min(1.0)
        })
        .collect();
    let relevant = choice
        .statements
        .iter()
        .map(|one| {
            let tables: BTreeSet<u32> = one
                .shape
                .blocks
                .iter()
                .flat_map(|block| block.uses.iter().map(|one| one.table))
                .collect();
            (0..choice.candidates.len())
                .filter(|at| tables.contains(&choice.candidates[*at].table))
                .collect()
        })
        .collect();
    let mut base = Vec::with_capacity(choice.statements.len());
    for at in 0..choice.statements.len() {
        base.push(judge.cost(at, &[]).await?.max(1e-9));
    }
    let mut asked = Asked {
        choice,
        judge,
        relevant,
        base,
        known: BTreeMap::new(),
        keep,
        bytes,
    };
    let least = all_ms * LEAST_SHARE;
    let mut set = BTreeSet::new();
    let mut cost = asked.all(&set).await?;
    // Greedy.
    loop {
        let mut best: Option<(usize, f64)> = None;
        for at in (0..choice.candidates.len()).filter(|at| !set.contains(at)) {
            let mut with = set.clone();
            with.insert(at);
            let then = asked.all(&with).await?;
            if then < cost - least && best.is_none_or(|(_, best)| then < best) {
                best = Some((at, then));
            }
        }
        let Some((at, then)) = best else {
            break;
        };
        set.insert(at);
        cost = then;
    }
    // Moves of one.
    for _ in 0..MOST_MOVES {
        let mut best: Option<(BTreeSet<usize>, f64)> = None;
        for out in set.iter().copied().map(Some).chain([None]) {
            let mut rest = set.clone();
            if let Some(out) = out {
                rest.remove(&out);
            }
            let same_table = |at: &usize| match out {
                Some(out) => choice.candidates[*at].table == choice.candidates[out].table,
                None => false,
            };
            let ins = (0..choice.candidates.len())
                .filter(|at| !set.contains(at) && same_table(at))
                .map(Some)
                .chain([None]);
            for into in ins {
                if out.is_none() && into.is_none() {
                    continue;
                }
                let mut with = rest.clone();
                with.extend(into);
                let then = asked.all(&with).await?;
                if then < cost * (1.0 - 1e-6) && best.as_ref().is_none_or(|(_, best)| then < *best)
                {
                    best = Some((with, then));
                }
            }
        }
        let Some((with, then)) = best else {
            break;
        };
        (set, cost) = (with, then);
    }
    let mut chosen = Vec::new();
    for at in &set {
        let mut without = set.clone();
        without.remove(at);
        let (mut helps, mut ms_without, mut ms_with) = (Vec::new(), 0.0, 0.0);
        for statement in 0..choice.statements.len() {
            let (then, now) = (
                asked.statement(statement, &without).await?,
                asked.statement(statement, &set).await?,
            );
            // A tenth less is a help; less than that is not worth measuring.
            if now < then * 0.9 {
                helps.push(statement);
                ms_without += then;
                ms_with += now;
            }
        }
        if helps.is_empty() {
            continue;
        }
        chosen.push(Chosen {
            candidate: *at,
            helps,
            ms_without,
            ms_with,
            writes_ms: writes_ms(
                choice.facts,
                choice.statements,
                &choice.candidates[*at],
                asked.bytes[*at],
            ),
            bytes: asked.bytes[*at],
        });
    }
    chosen.sort_by(|a, b| (b.ms_without - b.ms_with).total_cmp(&(a.ms_without - a.ms_with)));
    Ok(chosen)
}

/// Judges by [`Estimator`].
pub(crate) struct ByEstimate<'a> {
    pub(crate) estimator: Estimator<'a>,
    pub(crate) statements: &'a [Weighed],
    pub(crate) candidates: &'a [Candidate],
    pub(crate) there: BTreeMap<u32, Vec<Candidate>>,
}

impl<'a> ByEstimate<'a> {
    pub(crate) fn of(
        facts: &'a Facts,
        statements: &'a [Weighed],
        candidates: &'a [Candidate],
    ) -> Self {
        let mut there: BTreeMap<u32, Vec<Candidate>> = BTreeMap::new();
        for index in &facts.indexes {
            if let Some(table) = facts.table(index.table)
                && let Some(known) = Candidate::of_index(index, table)
            {
                there.entry(index.table).or_default().push(known);
            }
        }
        Self {
            estimator: Estimator::of(facts),
            statements,
            candidates,
            there,
        }
    }

    pub(crate) fn estimate(&self, statement: usize, candidates: &[usize]) -> f64 {
        let mut indexes: BTreeMap<u32, Vec<&Candidate>> = self
            .there
            .iter()
            .map(|(table, list)| (*table, list.iter().collect()))
            .collect();
        for at in candidates {
            let candidate = &self.candidates[*at];
            indexes.entry(candidate.table).or_default().push(candidate);
        }
        let one = &self.statements[statement];
        self.estimator.statement(&one.shape, one.rows, &indexes)
    }
}

#[async_trait]
impl Judge for ByEstimate<'_> {
    async fn cost(&mut self, statement: usize, candidates: &[usize]) -> Result<f64, EngineError> {
        Ok(self.estimate(statement, candidates))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::{
        candidates::candidates,
        testing::{facts, index, table},
        workload::{Names, shape},
    };

    fn weighed(facts: &Facts, texts: &[(&str, f64, f64)]) -> Vec<Weighed> {
        let names = Names::of(facts);
        texts
            .iter()
            .enumerate()
            .map(|(at, (text, calls, total_ms))| Weighed {
                id: at.to_string(),
                text: (*text).to_owned(),
                shape: shape(&names, text).unwrap(),
                calls: *calls,
                total_ms: *total_ms,
                rows: 10.0,
            })
            .collect()
    }

    /// The best of all sets there are.
    fn exhaustive(choice: &Choice<'_>, judge: &ByEstimate<'_>) -> f64 {
        (0..1_u32 << choice.candidates.len())
            .map(|bits| {
                let set: Vec<usize> = (0..choice.candidates.len())
                    .filter(|at| bits & (1 << at) != 0)
                    .collect();
                objective(choice, judge, &set)
            })
            .fold(f64::INFINITY, f64::min)
    }

    /// What a set costs, written once more, in the plainest way.
    fn objective(choice: &Choice<'_>, judge: &ByEstimate<'_>, set: &[usize]) -> f64 {
        let all: f64 = choice.statements.iter().map(|one| one.total_ms).sum();
        let bytes: f64 = set
            .iter()
            .map(|at| judge.estimator.bytes(&choice.candidates[*at]))
            .sum();
        if bytes > choice.most_bytes {
            return f64::INFINITY;
        }
        let reads: f64 = (0..choice.statements.len())
            .map(|at| {
                let ratio = judge.estimate(at, set) / judge.estimate(at, &[]);
                choice.statements[at].total_ms * ratio.min(1.0)
            })
            .sum();
        let keep: f64 = set
            .iter()
            .map(|at| {
                let candidate = &choice.candidates[*at];
                let bytes = judge.estimator.bytes(candidate);
                writes_ms(choice.facts, choice.statements, candidate, bytes)
                    + all * ROOM_SHARE * bytes / choice.facts.server.database_bytes
            })
            .sum();
        reads + keep
    }

    const WORKLOAD: &[(&str, f64, f64)] = &[
        (
            "SELECT * FROM orders WHERE customer = $1 ORDER BY made DESC LIMIT $2",
            1e5,
            4e5,
        ),
        (
            "SELECT id FROM orders WHERE customer = $1 AND state = $2",
            5e4,
            3e5,
        ),
        (
            "SELECT count(*) FROM orders WHERE made > $1 AND made < $2",
            1e3,
            2e5,
        ),
        (
            "SELECT o.* FROM orders o JOIN customers c ON c.id = o.customer WHERE c.name = $1",
            2e4,
            5e5,
        ),
        (
            "SELECT * FROM customers WHERE country = $1 AND name = $2",
            3e4,
            1e5,
        ),
        ("INSERT INTO orders VALUES ($1, $2, $3, $4)", 1e6, 2e5),
        ("UPDATE orders SET state = $1 WHERE id = $2", 5e5, 1e5),
    ];

    #[tokio::test]
    async fn the_choice_is_within_a_tenth_of_the_best_of_all_sets() {
        let mut facts = facts(vec![
            table(1, "orders", &["id", "customer", "made", "state"]),
            table(2, "customers", &["id", "name", "country"]),
        ]);
        facts.server.database_bytes = 1e9;
        facts.indexes = vec![index(11, 1, &[1]), index(12, 2, &[1])];
        for (round, most_bytes) in [(0, 1e12), (1, 60e6), (2, 1e12)] {
            let mut texts = WORKLOAD.to_vec();
            if round == 2 {
                // Writers who pay dearly.
                texts[5].1 = 3e7;
            }
            let statements = weighed(&facts, &texts);
            let shapes: Vec<&Shape> = statements.iter().map(|one| &one.shape).collect();
            let mut all = candidates(&facts, &shapes);
            assert!(all.len() >= 12, "{all:#?}");
            all.truncate(14);
            let choice = Choice {
                facts: &facts,
                statements: &statements,
                candidates: &all,
                most_bytes,
            };
            let mut judge = ByEstimate::of(&facts, &statements, &all);
            let best = exhaustive(&choice, &judge);
            let chosen = choose(&choice, &mut judge).await.unwrap();
            let set: Vec<usize> = chosen.iter().map(|one| one.candidate).collect();
            let ours = objective(&choice, &judge, &set);
            let nothing = objective(&choice, &judge, &[]);
            // A tenth of what can be gained at all, and not of what there is.
            assert!(
                nothing - ours >= 0.9 * (nothing - best),
                "round {round}: nothing {nothing}, best {best}, ours {ours}: {chosen:#?}"
            );
            assert!(round == 2 || !chosen.is_empty());
        }
    }

    #[tokio::test]
    async fn what_writers_pay_more_for_than_readers_save_is_not_chosen() {
        let mut facts = facts(vec![table(1, "log", &["id", "kind", "at"])]);
        facts.server.database_bytes = 1e9;
        facts.indexes = vec![index(11, 1, &[1])];
        let read = ("SELECT * FROM log WHERE kind = $1", 3.0, 900.0);
        for (inserts, chosen) in [(1e7, 0), (10.0, 1)] {
            let statements = weighed(
                &facts,
                &[
                    read,
                    ("INSERT INTO log VALUES ($1)", inserts, inserts * 0.02),
                ],
            );
            let shapes: Vec<&Shape> = statements.iter().map(|one| &one.shape).collect();
            let all = candidates(&facts, &shapes);
            let choice = Choice {
                facts: &facts,
                statements: &statements,
                candidates: &all,
                most_bytes: 1e12,
            };
            let mut judge = ByEstimate::of(&facts, &statements, &all);
            assert_eq!(
                choose(&choice, &mut judge).await.unwrap().len(),
                chosen,
                "{inserts}"
            );
        }
    }
}
