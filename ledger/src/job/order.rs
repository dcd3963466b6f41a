//! The order of claims (rule 16), as a queue outside the ledger makes it too: the highest level first,
//! within a level tenants take turns by weight, within a tenant by rank. A tenant that was idle starts at
//! the turn that is being served: without credit, and with what it owes.
//!
//! Only the first few jobs of each tenant and kind are looked at, by the index `job_turns`, so that a
//! tenant with a million jobs costs as much as one with ten.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque},
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    time::Duration,
};

use fettler_model::{JobId, JobKindName, Priority, Timestamp};
use serde_json::{Value, json};

use super::{claim::Room, id_list};
use crate::{
    Result,
    dialect::Column,
    row::{Fields, json_text},
    store::{Transaction, V},
};

const DOING: &str = "ordering jobs";
/// One turn, in the numbers of the table `turn`.
const TURN: i64 = 1_000_000;
/// A weight of one, in the numbers of the table `tenant`.
pub(crate) const WEIGHT: i64 = 1000;
/// How many of its jobs are looked at for each tenant and kind at least.
const FEWEST: usize = 2;

/// How many lines of jobs the last claim saw: a guess at how many jobs of each it is worth to look at.
#[derive(Debug)]
pub(crate) struct LinesSeen(AtomicUsize);

impl Default for LinesSeen {
    fn default() -> Self {
        Self(AtomicUsize::new(1))
    }
}

/// Whose jobs a claim does not look at, since they would only be refused: what was just read, so that it
/// is a hint and no decision.
#[derive(Debug, Default)]
pub(super) struct Hints {
    pub(super) tenants: BTreeSet<String>,
    pub(super) kinds: BTreeSet<String>,
    pub(super) slots: BTreeSet<i64>,
}

/// The claimable jobs of a slot class, kind, line (src/job/lines.rs) and tenant: the first of them, by rank.
#[derive(Debug)]
struct Line {
    slot: i64,
    tenant: String,
    jobs: VecDeque<(i64, JobId)>,
    /// There may be more than were read.
    is_cut: bool,
}

/// What a look at the order gave.
#[derive(Debug, Default)]
pub(super) struct Chosen {
    /// The next jobs, in the order in which they are to start.
    pub(super) jobs: Vec<JobId>,
    /// Whose turns they are, with the turn that each had: to be charged for what is claimed.
    places: HashMap<JobId, Place>,
    turns: Turns,
}

/// Where a job stood when it was chosen.
#[derive(Clone, Debug)]
struct Place {
    slot: i64,
    level: i64,
    tenant: String,
    turn: i64,
}

/// The turns of the tenants that have something to do; empty while there is only one.
#[derive(Debug, Default)]
struct Turns {
    /// By slot class, level and tenant; the tenant '' is the turn that is served.
    now: BTreeMap<(i64, i64, String), i64>,
    /// How much a job costs each tenant.
    steps: HashMap<String, i64>,
}

impl Turns {
    fn of(&self, slot: i64, level: i64, tenant: &str) -> i64 {
        let at = |tenant: &str| {
            self.now
                .get(&(slot, level, tenant.to_owned()))
                .copied()
                .unwrap_or(0)
        };
        at(tenant).max(at(""))
    }

    fn step(&self, tenant: &str) -> i64 {
        self.steps.get(tenant).copied().unwrap_or(TURN)
    }
}

/// The level of a job of this rank: one for each ageing interval since the time that its rank names.
pub(super) fn level(rank: i64, now: Timestamp, ageing: Duration) -> i64 {
    let ageing = i64::try_from(ageing.as_micros())
        .unwrap_or(i64::MAX / 8)
        .max(1);
    now.micros()
        .saturating_sub(rank)
        .div_euclid(ageing)
        .clamp(0, Priority::Highest.level())
}

/// Chooses the next jobs for a worker, as many as it has room for. Nothing is locked: the caller locks
/// what it takes, and `passed` are those that somebody else had locked then.
pub(super) async fn choose(
    transaction: &mut Transaction,
    served: &[(JobKindName, String)],
    room: &Room,
    hints: &Hints,
    passed: &HashSet<JobId>,
    seen: &LinesSeen,
    (now, ageing): (Timestamp, Duration),
) -> Result<Chosen> {
    let most = room.long.max(room.short);
    let wanted: Vec<Value> = [(0, room.long), (1, room.short)]
        .into_iter()
        .filter(|(slot, room)| *room > 0 && !hints.slots.contains(slot))
        .flat_map(|(slot, _)| {
            served
                .iter()
                .filter(|(kind, _)| !hints.kinds.contains(kind.as_str()))
                .map(move |(kind, line)| json!({"vslot": slot, "vkind": kind, "vline": line}))
        })
        .collect();
    if wanted.is_empty() {
        return Ok(Chosen::default());
    }
    let each = (2 * most)
        .div_ceil(seen.0.load(Relaxed).max(1))
        .clamp(FEWEST, most.max(FEWEST));
    let mut lines = read_lines(transaction, &wanted, hints, passed, each).await?;
    seen.0.store(lines.len().max(1), Relaxed);
    let mut chosen = Chosen {
        turns: read_turns(transaction, &lines).await?,
        ..Chosen::default()
    };
    for (slot, room) in [(0, room.long), (1, room.short)] {
        chosen.fill(slot, room, &mut lines, (now, ageing));
    }
    Ok(chosen)
}

impl Chosen {
    /// Chooses up to `room` jobs of a slot class; fewer when a line ends whose next jobs were not read.
    fn fill(
        &mut self,
        slot: i64,
        room: usize,
        lines: &mut [Line],
        (now, ageing): (Timestamp, Duration),
    ) {
        // What this claim takes counts before it is written.
        let mut served: HashMap<(i64, String), i64> = HashMap::new();
        for _ in 0..room {
            let best = lines
                .iter()
                .enumerate()
                .filter(|(_, line)| line.slot == slot)
                .filter_map(|(at, line)| {
                    let (rank, id) = *line.jobs.front()?;
                    let level = level(rank, now, ageing);
                    let turn = served
                        .get(&(level, line.tenant.clone()))
                        .copied()
                        .unwrap_or(0)
                        .max(self.turns.of(slot, level, &line.tenant));
                    Some(((-level, turn, rank, id), at))
                })
                .min();
            let Some(((level, turn, _, id), at)) = best else {
                break;
            };
            let (level, line) = (-level, &mut lines[at]);
            line.jobs.pop_front();
            served.insert(
                (level, line.tenant.clone()),
                turn + self.turns.step(&line.tenant),
            );
            self.jobs.push(id);
            self.places.insert(
                id,
                Place {
                    slot,
                    level,
                    tenant: line.tenant.clone(),
                    turn,
                },
            );
            if line.jobs.is_empty() && line.is_cut {
                break;
            }
        }
    }

    /// Charges the tenants for the jobs that were claimed of those that were chosen. Concurrent claims add
    /// up; rows are written in the order of their keys.
    pub(super) async fn charge(
        &self,
        transaction: &mut Transaction,
        claimed: impl IntoIterator<Item = JobId>,
    ) -> Result<()> {
        if self.turns.steps.is_empty() {
            return Ok(());
        }
        let mut rows: BTreeMap<(i64, i64, String), (i64, i64)> = BTreeMap::new();
        for place in claimed.into_iter().filter_map(|id| self.places.get(&id)) {
            let current = rows
                .entry((place.slot, place.level, String::new()))
                .or_insert((place.turn, 0));
            current.0 = current.0.max(place.turn);
            let turn = rows
                .entry((place.slot, place.level, place.tenant.clone()))
                .or_insert((place.turn, 0));
            turn.0 = turn.0.min(place.turn);
            turn.1 += self.turns.step(&place.tenant);
        }
        if rows.is_empty() {
            return Ok(());
        }
        for ((slot, level, tenant), (from, added)) in rows {
            transaction
                .execute(
                    "INSERT INTO turn (slot, level, tenant, turn) VALUES ($1, $2, $3, $4 + $5)
                     ON CONFLICT (slot, level, tenant) DO UPDATE SET
                        turn = CASE WHEN turn.turn > $4 THEN turn.turn ELSE $4 END + $5",
                    &[
                        V::N(slot),
                        V::N(level),
                        V::S(tenant),
                        V::N(from),
                        V::N(added),
                    ],
                )
                .await?;
        }
        Ok(())
    }
}

/// The first jobs of each line that this worker may work at. Tenants are found by leaping from one to the
/// next through the index.
async fn read_lines(
    transaction: &mut Transaction,
    wanted: &[Value],
    hints: &Hints,
    passed: &HashSet<JobId>,
    each: usize,
) -> Result<Vec<Line>> {
    let dialect = transaction.dialect;
    let wants = dialect.rows(
        1,
        &[
            ("vslot", Column::Number),
            ("vkind", Column::Text),
            ("vline", Column::Text),
        ],
    );
    let first = format!(
        "SELECT j.id, j.rank FROM job j
         WHERE j.slot = l.slot AND j.kind = l.kind AND j.lane = 0 AND j.line = l.line AND j.tenant = l.tenant
           AND j.state = 0 AND NOT (j.id {})
         ORDER BY j.rank, j.id || '' LIMIT $3",
        dialect.among(2)
    );
    let sql = format!(
        "WITH RECURSIVE found (slot, kind, line, tenant) AS (
             SELECT v.vslot, v.vkind, v.vline,
                    (SELECT MIN(j.tenant) FROM job j
                     WHERE j.slot = v.vslot AND j.kind = v.vkind AND j.lane = 0 AND j.line = v.vline)
             FROM {wants} v
             UNION ALL
             SELECT l.slot, l.kind, l.line,
                    (SELECT MIN(j.tenant) FROM job j
                     WHERE j.slot = l.slot AND j.kind = l.kind AND j.lane = 0 AND j.line = l.line AND j.tenant > l.tenant)
             FROM found l WHERE l.tenant IS NOT NULL
         )
         SELECT l.slot AS slot, l.kind AS kind, l.line AS line, l.tenant AS tenant, h.id AS id, h.rank AS rank
         FROM found l CROSS JOIN {}
         WHERE l.tenant IS NOT NULL AND NOT (l.tenant {})
         ORDER BY l.slot, l.kind, l.line, l.tenant, h.rank, h.id",
        dialect.each_of("job", "h", "id", &first),
        dialect.among(4),
    );
    let values = [
        V::S(json_text(wanted)?),
        V::S(id_list(passed.iter().copied())),
        V::N(i64::try_from(each).expect("a claim is bounded")),
        V::S(json_text(&hints.tenants)?),
    ];
    let mut lines: Vec<Line> = Vec::new();
    let mut last: Option<(i64, String, String, String)> = None;
    for row in &transaction.rows(sql, &values).await? {
        let fields = Fields::of(row, DOING);
        let of = (
            fields.number("slot")?,
            fields.text("kind")?,
            fields.text("line")?,
            fields.text("tenant")?,
        );
        if last.as_ref() != Some(&of) {
            lines.push(Line {
                slot: of.0,
                tenant: of.3.clone(),
                jobs: VecDeque::new(),
                is_cut: false,
            });
            last = Some(of);
        }
        if let Some(line) = lines.last_mut() {
            line.jobs
                .push_back((fields.number("rank")?, fields.parsed("id")?));
            line.is_cut = line.jobs.len() >= each;
        }
    }
    Ok(lines)
}

/// Where the tenants of these lines stand. A tenant that is alone shares nothing, and owes nothing.
async fn read_turns(transaction: &mut Transaction, lines: &[Line]) -> Result<Turns> {
    let tenants: BTreeSet<&str> = lines.iter().map(|line| line.tenant.as_str()).collect();
    let mut turns = Turns::default();
    if tenants.len() < 2 {
        return Ok(turns);
    }
    turns.steps = tenants
        .iter()
        .map(|tenant| ((*tenant).to_owned(), TURN))
        .collect();
    let among = transaction.dialect.among(1);
    let list: Vec<&str> = tenants.into_iter().chain([""]).collect();
    let list = json_text(&list)?;
    let rows = transaction
        .rows(
            format!("SELECT slot, level, tenant, turn FROM turn WHERE tenant {among}"),
            &[V::T(&list)],
        )
        .await?;
    for row in &rows {
        let fields = Fields::of(row, DOING);
        let place = (
            fields.number("slot")?,
            fields.number("level")?,
            fields.text("tenant")?,
        );
        turns.now.insert(place, fields.number("turn")?);
    }
    let rows = transaction
        .rows(
            format!("SELECT id, weight FROM tenant WHERE id {among} AND weight <> {WEIGHT}"),
            &[V::T(&list)],
        )
        .await?;
    for row in &rows {
        let fields = Fields::of(row, DOING);
        let weight = fields.number("weight")?.max(1);
        turns
            .steps
            .insert(fields.text("id")?, TURN * WEIGHT / weight);
    }
    Ok(turns)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rule_16_a_job_rises_one_level_per_ageing_interval_up_to_the_highest() {
        let ageing = Duration::from_secs(60);
        let submitted = Timestamp::from_micros(1_000_000_000_000);
        let rank = submitted.minus(ageing * 2).micros();
        let after = |seconds| level(rank, submitted.plus(Duration::from_secs(seconds)), ageing);
        assert_eq!([after(0), after(59), after(60), after(119)], [2, 2, 3, 3]);
        assert_eq!(after(1_000_000), 4);
        // A clock that went back makes it no lower than the lowest.
        assert_eq!(level(rank, Timestamp::from_micros(0), ageing), 0);
    }
}
