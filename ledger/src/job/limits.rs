//! What stands against a claim beside the database itself: limits and pauses (rules 3 and 4). A slot of a
//! limit is the running row, which names it in `holds`; how many there are stands in the limit's row and
//! changes only under that row's lock. A job that is refused parks at `limit:…` or `pause:…`; the end of a
//! job wakes as many as it has freed slots, in their order.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use fettler_model::{Scope, WaitReason};
use serde_json::json;

use super::{
    Row,
    finish::{wake, wake_some},
    order::Hints,
};
use crate::{
    JobRecord, Ledger, LedgerError, LimitRecord, PauseRecord, Result, codes,
    dialect::Column,
    row::{Fields, json_text},
    store::{Store, Transaction, V},
};

/// What a limit is called where jobs park and what they hold.
pub(super) const LIMIT: &str = "limit:";
/// What a pause is called where jobs park.
const PAUSE: &str = "pause:";
/// How many parked jobs one transaction wakes.
const WOKEN: i64 = 1000;
/// The most that a limit may be: above all slots of any fleet.
const MOST: u64 = 1_000_000;

/// Where jobs park that this limit refuses.
pub(super) fn limit_name(scope: &str) -> String {
    format!("{LIMIT}{scope}")
}

/// The limit that a name in `holds` or `parked_at` is about.
pub(super) fn limit_of(name: &str) -> Option<&str> {
    name.strip_prefix(LIMIT)
}

/// The pause that a name in `parked_at` is about.
pub(super) fn pause_of(name: &str) -> Option<&str> {
    name.strip_prefix(PAUSE)
}

/// The limits that may count a job: by tenant, kind and slot class, and by database and server where it is
/// about one.
pub(super) fn limits_on(job: &JobRecord, server: Option<&str>) -> Vec<String> {
    let mut scopes = vec![
        Scope::Tenant(job.tenant.clone()),
        Scope::Kind(job.kind.clone()),
        Scope::Class(job.slot),
    ];
    scopes.extend(job.database.map(Scope::Database));
    scopes.extend(server.map(|server| Scope::Server(server.to_owned())));
    let mut names: Vec<String> = scopes.iter().map(ToString::to_string).collect();
    names.sort_unstable();
    names
}

/// The pauses that may stop a job.
pub(super) fn pauses_on(job: &JobRecord) -> Vec<String> {
    let mut scopes = vec![
        Scope::All,
        Scope::Tenant(job.tenant.clone()),
        Scope::Kind(job.kind.clone()),
    ];
    scopes.extend(job.database.map(Scope::Database));
    scopes.extend(job.terms.policy.map(Scope::Policy));
    scopes.iter().map(ToString::to_string).collect()
}

/// The limits that a batch of claims meets, locked until its commit.
#[derive(Debug, Default)]
pub(super) struct Limits {
    rows: BTreeMap<String, Count>,
    pauses: BTreeSet<String>,
}

#[derive(Debug)]
struct Count {
    most: i64,
    running: i64,
    taken: i64,
    /// Jobs that it would have let run and that something else refused: their turns pass on.
    passed_on: i64,
}

impl Limits {
    /// Locks what may refuse these jobs, in the order of the names.
    pub(super) async fn lock(
        transaction: &mut Transaction,
        limits: BTreeSet<String>,
        pauses: BTreeSet<String>,
    ) -> Result<Self> {
        let dialect = transaction.dialect;
        let doing = transaction.doing();
        let mut found = Self::default();
        if !pauses.is_empty() {
            // Whoever resumes waits for this claim, and then finds what it parks.
            let sql = format!(
                "SELECT name FROM pause WHERE name {} ORDER BY name {}",
                dialect.among(1),
                dialect.for_share()
            );
            for row in &transaction.rows(sql, &[V::S(json_text(&pauses)?)]).await? {
                found.pauses.insert(Fields::of(row, doing).text("name")?);
            }
        }
        if !limits.is_empty() {
            let sql = format!(
                "SELECT name, most, running FROM job_limit WHERE name {} ORDER BY name {}",
                dialect.among(1),
                dialect.for_update()
            );
            for row in &transaction.rows(sql, &[V::S(json_text(&limits)?)]).await? {
                let fields = Fields::of(row, doing);
                let count = Count {
                    most: fields.number("most")?,
                    running: fields.number("running")?,
                    taken: 0,
                    passed_on: 0,
                };
                found.rows.insert(fields.text("name")?, count);
            }
        }
        Ok(found)
    }

    /// Where a job parks that a pause stops.
    pub(super) fn pause_against(&self, job: &JobRecord) -> Option<String> {
        if self.pauses.is_empty() {
            return None;
        }
        pauses_on(job)
            .into_iter()
            .find(|name| self.pauses.contains(name))
            .map(|name| format!("{PAUSE}{name}"))
    }

    /// Those of these names that are limits.
    pub(super) fn known(&self, names: Vec<String>) -> Vec<String> {
        names
            .into_iter()
            .filter(|name| self.rows.contains_key(name))
            .collect()
    }

    /// Where a job parks that one of its limits refuses.
    pub(super) fn limit_against(&self, names: &[String]) -> Option<String> {
        names
            .iter()
            .find(|name| {
                self.rows
                    .get(*name)
                    .is_some_and(|count| count.running + count.taken >= count.most)
            })
            .map(|name| limit_name(name))
    }

    /// Takes a slot of each of a job's limits.
    pub(super) fn take(&mut self, names: &[String]) {
        for name in names {
            if let Some(count) = self.rows.get_mut(name) {
                count.taken += 1;
            }
        }
    }

    /// A job that needs these was refused at `parked_at`, or has gone.
    pub(super) fn pass_on(&mut self, names: &[String], parked_at: Option<&str>) {
        for name in names {
            if parked_at.and_then(limit_of) != Some(name.as_str())
                && let Some(count) = self.rows.get_mut(name)
            {
                count.passed_on += 1;
            }
        }
    }

    /// Writes the slots that were taken, and wakes those whose turn was passed on to them.
    pub(super) async fn write(&self, transaction: &mut Transaction) -> Result<()> {
        for (name, count) in &self.rows {
            if count.taken > 0 {
                transaction
                    .execute(
                        "UPDATE job_limit SET running = running + $2 WHERE name = $1",
                        &[V::T(name), V::N(count.taken)],
                    )
                    .await?;
            }
            let free = count.most - count.running - count.taken;
            let next = count.passed_on.min(free);
            if next > 0 {
                wake(transaction, &limit_name(name), next).await?;
            }
        }
        Ok(())
    }

    /// What is full now need not be looked at again by this claim.
    pub(super) fn tell(&self, hints: &mut Hints) {
        for (name, count) in &self.rows {
            if count.running + count.taken >= count.most {
                hints.leave_out(name);
            }
        }
    }
}

impl Hints {
    /// What stands against whole lines of jobs, read without a lock. None when everything is paused.
    pub(super) async fn read(transaction: &mut Transaction) -> Result<Option<Self>> {
        let doing = transaction.doing();
        let mut hints = Self::default();
        let rows = transaction
            .rows(
                "SELECT name FROM job_limit WHERE running >= most
                 UNION ALL
                 SELECT name FROM pause WHERE name = 'all' OR name LIKE 'tenant/%' OR name LIKE 'kind/%'",
                &[],
            )
            .await?;
        for row in &rows {
            let name = Fields::of(row, doing).text("name")?;
            if name == "all" {
                return Ok(None);
            }
            hints.leave_out(&name);
        }
        Ok(Some(hints))
    }

    /// Leaves out the lines that this scope has for itself; others are refused one by one.
    fn leave_out(&mut self, name: &str) {
        match name.parse() {
            Ok(Scope::Tenant(tenant)) => {
                self.tenants.insert(tenant.to_string());
            }
            Ok(Scope::Kind(kind)) => {
                self.kinds.insert(kind.to_string());
            }
            Ok(Scope::Class(class)) => {
                self.slots.insert(codes::slot(class));
            }
            _ => {}
        }
    }
}

/// Gives back slots of limits, in the order of their names, and wakes as many as were given back.
pub(super) async fn give_back(
    transaction: &mut Transaction,
    slots: BTreeMap<String, i64>,
) -> Result<()> {
    let doing = transaction.doing();
    for (name, count) in slots {
        let row = transaction
            .row(
                "UPDATE job_limit SET running = CASE WHEN running > $2 THEN running - $2 ELSE 0 END
                 WHERE name = $1 RETURNING most - running AS free",
                &[V::T(&name), V::N(count)],
            )
            .await?;
        // A limit that was removed has woken all.
        let Some(row) = row else { continue };
        let free = Fields::of(&row, doing).number("free")?;
        if free > 0 {
            wake(transaction, &limit_name(&name), count.min(free)).await?;
        }
    }
    Ok(())
}

/// Wakes parked jobs for slots that were given back in another statement: as many of each limit as were given back and
/// are free.
pub(super) async fn wake_for(store: &Store, freed: &BTreeMap<String, i64>) -> Result<bool> {
    const DOING: &str = "waking jobs at limits";
    let sql = format!(
        "SELECT name, most - running AS free FROM job_limit l WHERE name {} AND running < most
         AND EXISTS (SELECT 1 FROM job j WHERE j.lane = 2 AND j.parked_at = '{LIMIT}' || l.name) ORDER BY name",
        store.dialect.among(1)
    );
    let names: Vec<&String> = freed.keys().collect();
    let rows = store.read(DOING, sql, &[V::S(json_text(&names)?)]).await?;
    if rows.is_empty() {
        return Ok(false);
    }
    let mut transaction = store.begin(DOING).await?;
    for row in &rows {
        let fields = Fields::of(row, DOING);
        let (name, free) = (fields.text("name")?, fields.number("free")?);
        let given_back = freed.get(&name).copied().unwrap_or(0);
        wake(&mut transaction, &limit_name(&name), given_back.min(free)).await?;
    }
    transaction.commit().await?;
    Ok(true)
}

/// Counts the running rows of all limits anew: what was changed by hand, or ran when a limit came, is mended.
pub(super) async fn recount(transaction: &mut Transaction) -> Result<()> {
    let doing = transaction.doing();
    let sql = format!(
        "SELECT name, running FROM job_limit ORDER BY name {}",
        transaction.dialect.for_update()
    );
    let limits = transaction.rows(sql, &[]).await?;
    if limits.is_empty() {
        return Ok(());
    }
    let mut held: HashMap<String, i64> = HashMap::new();
    let rows = transaction
        .rows(
            "SELECT holds FROM job WHERE state = 1 AND holds IS NOT NULL",
            &[],
        )
        .await?;
    for row in &rows {
        let holds = Fields::of(row, doing).text("holds")?;
        for name in holds.lines().filter_map(limit_of) {
            *held.entry(name.to_owned()).or_default() += 1;
        }
    }
    for row in &limits {
        let fields = Fields::of(row, doing);
        let (name, running) = (fields.text("name")?, fields.number("running")?);
        let counted = held.get(&name).copied().unwrap_or(0);
        if counted != running {
            tracing::warn!(
                limit = name,
                running,
                counted,
                "a limit's count was wrong and is mended"
            );
            transaction
                .execute(
                    "UPDATE job_limit SET running = $2 WHERE name = $1",
                    &[V::T(&name), V::N(counted)],
                )
                .await?;
        }
    }
    Ok(())
}

/// The net below rule 4: where slots are free and jobs are parked, the first of them is woken.
pub(super) async fn wake_forgotten(transaction: &mut Transaction) -> Result<bool> {
    let doing = transaction.doing();
    let rows = transaction
        .rows(
            format!(
                "SELECT name FROM job_limit l WHERE running < most
                 AND EXISTS (SELECT 1 FROM job j WHERE j.lane = 2 AND j.parked_at = '{LIMIT}' || l.name) ORDER BY name"
            ),
            &[],
        )
        .await?;
    let mut woken = false;
    for row in &rows {
        let name = Fields::of(row, doing).text("name")?;
        woken |= wake(transaction, &limit_name(&name), 1).await?;
    }
    Ok(woken)
}

impl Ledger {
    /// Sets how many jobs of a scope may run at once. Jobs that run already count; none is stopped. When
    /// more may run than before, as many are woken.
    ///
    /// # Errors
    ///
    /// When the scope takes no limits, or the number is not from 1 to a million.
    pub async fn set_limit(&self, scope: &Scope, most: u64) -> Result<LimitRecord> {
        const DOING: &str = "setting a limit";
        if !scope.takes_limits() {
            return Err(LedgerError::Refused {
                what: format!("no limit can be set on {scope}"),
                remedy: "limit a tenant, a database, a server, a kind or a slot class".to_owned(),
            });
        }
        let Some(number) = i64::try_from(most)
            .ok()
            .filter(|_| (1..=MOST).contains(&most))
        else {
            return Err(LedgerError::Refused {
                what: format!("a limit of {most} cannot be set"),
                remedy: format!(
                    "give a number from 1 to {MOST}; `fettler pause` lets nothing start"
                ),
            });
        };
        let name = scope.to_string();
        let mut transaction = self.inner.store.begin(DOING).await?;
        let now = transaction.now().await?;
        let is_new = transaction
            .execute(
                "INSERT INTO job_limit (name, most, running, created) VALUES ($1, $2, 0, $3) ON CONFLICT (name) DO NOTHING",
                &[V::T(&name), V::N(number), V::N(now.micros())],
            )
            .await?
            > 0;
        if is_new {
            let running = self.take_up(&mut transaction, scope).await?;
            transaction
                .execute(
                    "UPDATE job_limit SET running = $2 WHERE name = $1",
                    &[V::T(&name), V::N(running)],
                )
                .await?;
        } else {
            let row = transaction
                .row(
                    "UPDATE job_limit SET most = $2 WHERE name = $1 RETURNING most - running AS free",
                    &[V::T(&name), V::N(number)],
                )
                .await?;
            let free = row
                .map(|row| Fields::of(&row, DOING).number("free"))
                .transpose()?
                .unwrap_or(0);
            if free > 0 {
                wake(&mut transaction, &limit_name(&name), free.min(WOKEN)).await?;
            }
        }
        transaction.commit().await?;
        self.inner.shared.wake.wake();
        self.limit(scope).await
    }

    /// Lets the running jobs of a scope hold a slot of its new limit, and counts them.
    async fn take_up(&self, transaction: &mut Transaction, scope: &Scope) -> Result<i64> {
        let doing = transaction.doing();
        let condition = match scope {
            Scope::Tenant(tenant) => ("tenant", vec![tenant.to_string()]),
            Scope::Kind(kind) => ("kind", vec![kind.to_string()]),
            Scope::Database(database) => ("database_id", vec![database.to_string()]),
            Scope::Server(server) => {
                let databases = self.databases(None).await?;
                let ids = databases
                    .iter()
                    .filter(|record| record.url.server().as_deref() == Some(server))
                    .map(|record| record.id.to_string());
                ("database_id", ids.collect())
            }
            Scope::Class(class) => ("slot", vec![codes::slot(*class).to_string()]),
            Scope::All | Scope::Policy(_) => return Ok(0),
        };
        let column = match condition.0 {
            "slot" => "CAST(slot AS TEXT)",
            column => column,
        };
        let sql = format!(
            "SELECT id, holds FROM job WHERE state = 1 AND {column} {} ORDER BY id {}",
            transaction.dialect.among(1),
            transaction.dialect.for_update()
        );
        let rows = transaction
            .rows(sql, &[V::S(json_text(&condition.1)?)])
            .await?;
        let name = limit_name(&scope.to_string());
        let mut changes = Vec::new();
        for row in &rows {
            let fields = Fields::of(row, doing);
            let holds = fields.text_or_none("holds")?.unwrap_or_default();
            if !holds.lines().any(|held| held == name) {
                let holds = if holds.is_empty() {
                    name.clone()
                } else {
                    format!("{holds}\n{name}")
                };
                changes.push(json!({"vid": fields.text("id")?, "vholds": holds}));
            }
        }
        if !changes.is_empty() {
            let source = transaction
                .dialect
                .rows(1, &[("vid", Column::Text), ("vholds", Column::Text)]);
            transaction
                .execute(
                    format!(
                        "UPDATE job SET holds = vholds FROM {source} v WHERE id = vid {}",
                        transaction.dialect.looked_up(1, "vid")
                    ),
                    &[V::S(json_text(&changes)?)],
                )
                .await?;
        }
        Ok(i64::try_from(rows.len()).expect("a fleet has a bounded number of slots"))
    }

    /// Removes a limit; what waited for it may run.
    ///
    /// # Errors
    ///
    /// When there is none on this scope.
    pub async fn remove_limit(&self, scope: &Scope) -> Result<()> {
        const DOING: &str = "removing a limit";
        let name = scope.to_string();
        let mut transaction = self.inner.store.begin(DOING).await?;
        let removed = transaction
            .execute("DELETE FROM job_limit WHERE name = $1", &[V::T(&name)])
            .await?;
        if removed == 0 {
            return Err(LedgerError::NotFound {
                what: "limit on",
                name,
            });
        }
        transaction.commit().await?;
        self.wake_all(DOING, &limit_name(&name)).await?;
        Ok(())
    }

    /// The limit on a scope.
    ///
    /// # Errors
    ///
    /// When there is none.
    pub async fn limit(&self, scope: &Scope) -> Result<LimitRecord> {
        self.limits()
            .await?
            .into_iter()
            .find(|limit| limit.scope == *scope)
            .ok_or_else(|| LedgerError::NotFound {
                what: "limit on",
                name: scope.to_string(),
            })
    }

    /// All limits, with how many jobs run under each.
    ///
    /// # Errors
    ///
    /// When the ledger is away.
    pub async fn limits(&self) -> Result<Vec<LimitRecord>> {
        const DOING: &str = "reading limits";
        let rows = self
            .inner
            .store
            .read(
                DOING,
                "SELECT name, most, running, created FROM job_limit ORDER BY name",
                &[],
            )
            .await?;
        rows.iter()
            .map(|row| {
                let fields = Fields::of(row, DOING);
                Ok(LimitRecord {
                    scope: fields.parsed("name")?,
                    most: fields.number("most")?.unsigned_abs(),
                    running: fields.number("running")?.unsigned_abs(),
                    created: fields.time("created")?,
                })
            })
            .collect()
    }

    /// Lets no job of a scope start until [`Ledger::resume`]. What runs goes on. Saying it again changes
    /// what was said about it.
    ///
    /// # Errors
    ///
    /// When the scope takes no pauses.
    pub async fn pause(&self, scope: &Scope, because: Option<&str>) -> Result<PauseRecord> {
        const DOING: &str = "pausing";
        if !scope.takes_pauses() {
            return Err(LedgerError::Refused {
                what: format!("{scope} cannot be paused"),
                remedy: "pause everything, a tenant, a database, a policy or a kind".to_owned(),
            });
        }
        if because.is_some_and(|because| because.contains('\0')) {
            return Err(LedgerError::Refused {
                what: "what is said about the pause holds a NUL character".to_owned(),
                remedy: "take the character out".to_owned(),
            });
        }
        let name = scope.to_string();
        let mut transaction = self.inner.store.begin(DOING).await?;
        let now = transaction.now().await?;
        transaction
            .execute(
                "INSERT INTO pause (name, since, because) VALUES ($1, $2, $3)
                 ON CONFLICT (name) DO UPDATE SET because = excluded.because",
                &[
                    V::T(&name),
                    V::N(now.micros()),
                    V::OT(because.map(ToOwned::to_owned)),
                ],
            )
            .await?;
        transaction.commit().await?;
        let pauses = self.pauses().await?;
        pauses
            .into_iter()
            .find(|pause| pause.scope == *scope)
            .ok_or(LedgerError::Busy {
                doing: DOING,
                what: "it was resumed at the same moment".to_owned(),
            })
    }

    /// Ends a pause: what waited goes on, in its order. Says how many jobs were parked there.
    ///
    /// # Errors
    ///
    /// When the scope was not paused.
    pub async fn resume(&self, scope: &Scope) -> Result<u64> {
        const DOING: &str = "resuming";
        let name = scope.to_string();
        let mut transaction = self.inner.store.begin(DOING).await?;
        let ended = transaction
            .execute("DELETE FROM pause WHERE name = $1", &[V::T(&name)])
            .await?;
        if ended == 0 {
            return Err(LedgerError::NotFound {
                what: "pause of",
                name,
            });
        }
        transaction.commit().await?;
        self.wake_all(DOING, &format!("{PAUSE}{name}")).await
    }

    /// All pauses.
    ///
    /// # Errors
    ///
    /// When the ledger is away.
    pub async fn pauses(&self) -> Result<Vec<PauseRecord>> {
        const DOING: &str = "reading pauses";
        let rows = self
            .inner
            .store
            .read(
                DOING,
                "SELECT name, since, because FROM pause ORDER BY name",
                &[],
            )
            .await?;
        rows.iter()
            .map(|row| {
                let fields = Fields::of(row, DOING);
                Ok(PauseRecord {
                    scope: fields.parsed("name")?,
                    since: fields.time("since")?,
                    because: fields.text_or_none("because")?,
                })
            })
            .collect()
    }

    /// Wakes all that is parked under a name that is no more, a page a transaction, in their order.
    async fn wake_all(&self, doing: &'static str, name: &str) -> Result<u64> {
        let mut all = 0;
        loop {
            let mut transaction = self.inner.store.begin(doing).await?;
            let woken = wake_some(&mut transaction, name, WOKEN).await?;
            transaction.commit().await?;
            all += woken;
            self.inner.shared.wake.wake();
            if woken < WOKEN.unsigned_abs() {
                return Ok(all);
            }
        }
    }
}

/// The names of all limits that may count these jobs and of all pauses that may stop them.
pub(super) fn names_of<'r>(
    rows: impl IntoIterator<Item = (&'r Row, Option<&'r str>)>,
) -> (BTreeSet<String>, BTreeSet<String>) {
    let (mut limits, mut pauses) = (BTreeSet::new(), BTreeSet::new());
    for (row, server) in rows {
        limits.extend(limits_on(&row.record, server));
        pauses.extend(pauses_on(&row.record));
    }
    (limits, pauses)
}

/// The reason of a limit (P12).
pub(super) fn limit_reason(scope: Scope, most: u64) -> Option<WaitReason> {
    Some(match scope {
        Scope::Tenant(tenant) => WaitReason::TenantLimit { tenant, most },
        Scope::Database(database) => WaitReason::DatabaseLimit { database, most },
        Scope::Server(server) => WaitReason::ServerLimit { server, most },
        Scope::Kind(kind) => WaitReason::KindLimit { kind, most },
        Scope::Class(class) => WaitReason::ClassLimit { class, most },
        Scope::All | Scope::Policy(_) => return None,
    })
}
