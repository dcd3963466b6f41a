//! Old partitions: archived, taken out of their table without a long lock, looked at once more when nobody can reach them through
//! the table any more, and dropped only if they still are what the archive holds. Otherwise they are put back.

use fettler_engine::{EngineContext, EngineError, StreamSource, Target};
use fettler_fault_points::{Point, reached};
use fettler_model::{CleanupAction, CleanupItem, CleanupPlan, CleanupRemoved, Fingerprint};
use serde::{Deserialize, Serialize};
use std::time::Duration;
use tokio::time::{Instant, sleep};

use crate::{
    copy::{Format, Reading, copy_out},
    error::WireError,
    names::{display_name, literal, qualified, quote_ident},
};

use super::{
    Visit,
    archive::{Source, prefix, prove_one},
    data, refuse,
    rows::{RowsData, columns, find, key},
};

/// A lock that is not had at once is asked for again so often.
const TRIES: u32 = 8;

/// A partition that goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Partition {
    rows: RowsData,
    /// `FOR VALUES FROM … TO …`.
    bound: String,
}

/// What the plan keeps.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct PartitionsData {
    schema: String,
    table: String,
    partitions: Vec<Partition>,
    /// Whether a partition can be taken out while others write: not beside a default partition.
    concurrently: bool,
}

impl PartitionsData {
    fn parent(&self) -> String {
        qualified(&self.schema, &self.table)
    }
}

/// The partitions of a plan as tables.
pub(super) fn tables(plan: &CleanupPlan) -> Result<Vec<RowsData>, EngineError> {
    let data: PartitionsData = data(plan)?;
    Ok(data
        .partitions
        .into_iter()
        .map(|partition| partition.rows)
        .collect())
}

/// Plans.
pub(super) async fn plan(visit: &mut Visit, plan: &mut CleanupPlan) -> Result<(), EngineError> {
    let CleanupAction::Partitions { table, column, .. } = plan.what.clone() else {
        return Ok(());
    };
    let named = find(&mut visit.session, &table).await?;
    let display = display_name(&named.schema, &named.name);
    if named.kind != 'p' {
        refuse(
            plan,
            format!("{display} is not partitioned"),
            "remove its old rows instead (`--rows`)",
        );
        return Ok(());
    }
    let major = visit.server.major();
    let session = &mut visit.session;
    let row = session
        .one(&format!(
            "SELECT p.partstrat, p.partnatts, a.attname, t.typname, {default},
                pg_has_role(c.relowner, 'USAGE'), current_user
             FROM pg_partitioned_table p JOIN pg_class c ON c.oid = p.partrelid
             LEFT JOIN pg_attribute a ON a.attrelid = p.partrelid AND a.attnum = p.partattrs[0]
             LEFT JOIN pg_type t ON t.oid = a.atttypid WHERE p.partrelid = {oid}",
            default = if major >= 11 {
                "p.partdefid <> 0"
            } else {
                "false"
            },
            oid = named.oid
        ))
        .await
        .map_err(|error| error.doing("looking at the partitions"))?;
    let by_time = matches!(row.maybe(3)?, Some("timestamptz" | "timestamp" | "date"));
    if row.text(0)? != "r" || row.get::<u32>(1)? != 1 || !by_time {
        refuse(
            plan,
            format!("{display} is not partitioned by ranges of one column that says a time"),
            "remove old rows of single partitions instead (`--rows`)",
        );
        return Ok(());
    }
    if !row.flag(5)? {
        refuse(
            plan,
            format!(
                "the role {} does not own {display}, and only owners take partitions out",
                row.text(6)?
            ),
            "log in as its owner, or as a member of that role",
        );
        return Ok(());
    }
    let by = row.string(2)?;
    let column = column.unwrap_or(by);
    let has_default = row.flag(4)?;
    let cutoff = plan.cutoff.unwrap_or(plan.made).to_string();
    let rows = session
        .query(&format!(
            "SELECT c.oid, n.nspname, c.relname, c.relkind, pg_get_expr(c.relpartbound, c.oid), pg_total_relation_size(c.oid)
             FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid JOIN pg_namespace n ON n.oid = c.relnamespace
             WHERE i.inhparent = {}
                 AND substring(pg_get_expr(c.relpartbound, c.oid) FROM 'TO \\(''(.*)''\\)$')::timestamptz <= {}::timestamptz
             ORDER BY substring(pg_get_expr(c.relpartbound, c.oid) FROM 'TO \\(''(.*)''\\)$')::timestamptz",
            named.oid,
            literal(&cutoff)
        ))
        .await
        .map_err(|error| error.doing("looking at the partitions"))?;
    let mut found = Vec::new();
    for row in &rows {
        let (oid, schema, name) = (row.get(0)?, row.string(1)?, row.string(2)?);
        let kind: char = row.get(3)?;
        let part = display_name(&schema, &name);
        if kind != 'r' {
            plan.notes.push(format!(
                "{part} stays: it is partitioned itself, or no plain table"
            ));
            continue;
        }
        let columns = columns(session, oid, major).await?;
        let key = key(session, oid, &columns).await?;
        if key.is_empty() {
            refuse(
                plan,
                format!(
                    "{part} has no primary key, by which its rows could be put back once and not twice"
                ),
                format!(
                    "add one: ALTER TABLE {} ADD PRIMARY KEY (…)",
                    qualified(&named.schema, &named.name)
                ),
            );
            return Ok(());
        }
        let data = RowsData {
            oid,
            schema,
            table: name,
            columns,
            key,
            condition: "true".to_owned(),
            referring: Vec::new(),
        };
        let counted = session
            .one(&format!(
                "SELECT count(*), count(*) FILTER (WHERE (t.{column} < {}::timestamptz) IS NOT TRUE),
                    min(t.{column})::text, max(t.{column})::text FROM ONLY {} AS t",
                literal(&cutoff),
                data.sql_name(),
                column = quote_ident(&column)
            ))
            .await
            .map_err(|error| error.doing(format!("counting the rows of {part}")))?;
        let young: u64 = counted.get(1)?;
        if young > 0 {
            plan.notes.push(format!(
                "{part} stays: {young} of its rows are not older than the cut-off by {column}"
            ));
            continue;
        }
        plan.items.push(CleanupItem {
            name: part,
            rows: counted.get(0)?,
            bytes: row.get(5)?,
            oldest: counted.maybe_string(2)?,
            newest: counted.maybe_string(3)?,
            note: row.string(4)?,
        });
        found.push(Partition {
            rows: data,
            bound: row.string(4)?,
        });
    }
    if has_default {
        plan.notes.push(format!(
            "{display} has a default partition: others are taken out under a lock of the whole table, for a moment and with a short wait"
        ));
    }
    let data = PartitionsData {
        schema: named.schema,
        table: named.name,
        partitions: found,
        concurrently: major >= 14 && !has_default,
    };
    plan.can_be_undone = true;
    plan.engine_data = serde_json::to_value(&data).expect("plain data can be JSON");
    Ok(())
}

/// Takes partitions out and drops them.
pub(super) async fn remove(
    context: &EngineContext,
    target: &Target,
    plan: &CleanupPlan,
    archive: &dyn StreamSource,
) -> Result<CleanupRemoved, EngineError> {
    let data: PartitionsData = data(plan)?;
    let mut visit = Visit::begin(context, target).await?;
    let mut removed = CleanupRemoved::default();
    for (number, partition) in data.partitions.iter().enumerate() {
        context.check_stop()?;
        context.fence.check().await?;
        context.progress.item(&partition.rows.display());
        let mut work = Work {
            context,
            visit: &mut visit,
            data: &data,
            partition,
            removed: &mut removed,
        };
        let print = prove_one(context, archive, &prefix(number)).await?;
        work.one(&print).await?;
        context.progress.add(0, print.rows);
        reached(Point::CleanupRemoving);
    }
    reached(Point::CleanupRemoved);
    visit.end().await;
    Ok(removed)
}

struct Work<'a> {
    context: &'a EngineContext,
    visit: &'a mut Visit,
    data: &'a PartitionsData,
    partition: &'a Partition,
    removed: &'a mut CleanupRemoved,
}

/// Where a partition is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    Attached,
    /// Its way out was begun and not finished.
    Pending,
    Detached,
    Gone,
}

impl Work<'_> {
    async fn one(&mut self, archived: &Fingerprint) -> Result<(), EngineError> {
        let name = self.partition.rows.display();
        let mut tries = 0;
        loop {
            self.context.check_stop()?;
            let step = match self.at().await? {
                At::Gone => {
                    self.removed.gone += 1;
                    return Ok(());
                }
                At::Attached => self.detach(false).await,
                At::Pending => self.detach(true).await,
                At::Detached => match self.drop_or_keep(archived).await {
                    Ok(Dropped::Yes) => {
                        self.removed.removed += 1;
                        return Ok(());
                    }
                    Ok(Dropped::Changed) => {
                        self.attach().await?;
                        self.removed.changed += 1;
                        self.removed
                            .kept
                            .push(format!("{name}: it is not what the archive holds any more"));
                        return Ok(());
                    }
                    Err(error) => Err(error),
                },
            };
            let Err(error) = step else {
                tries = 0;
                continue;
            };
            let code = error.code().map(str::to_owned);
            self.roll_back().await?;
            match code.as_deref() {
                Some("55P03" | "57014" | "40P01") if tries < TRIES => {
                    tries += 1;
                    self.removed.waits_for_locks += 1;
                    self.pause(tries).await?;
                }
                Some("55P03" | "57014" | "40P01") => {
                    if self.at().await? == At::Detached {
                        self.attach().await?;
                    }
                    self.removed.busy += 1;
                    self.removed
                        .kept
                        .push(format!("{name}: held by somebody whenever it was tried"));
                    return Ok(());
                }
                // Something refers to its rows, or depends on it.
                Some("23503" | "2BP01" | "55000" | "55006") => {
                    let why = error.to_string();
                    if self.at().await? == At::Detached {
                        self.attach().await?;
                    }
                    self.removed.referenced += 1;
                    self.removed.kept.push(format!("{name}: {why}"));
                    return Ok(());
                }
                _ => return Err(error.doing(format!("taking {name} out"))),
            }
        }
    }

    async fn roll_back(&mut self) -> Result<(), EngineError> {
        self.visit
            .session
            .execute("ROLLBACK")
            .await
            .map_err(|error| error.doing("giving a step up"))
    }

    async fn pause(&mut self, tries: u32) -> Result<(), EngineError> {
        self.context
            .stop
            .run_until_cancelled(sleep(Duration::from_millis(100) * 2_u32.pow(tries.min(6))))
            .await
            .ok_or(EngineError::Stopped)
    }

    async fn at(&mut self) -> Result<At, EngineError> {
        let pending = if self.visit.server.major() >= 14 {
            "i.inhdetachpending"
        } else {
            "false"
        };
        let rows = self
            .visit
            .session
            .query(&format!(
                "SELECT i.inhparent IS NOT NULL, COALESCE({pending}, false) FROM pg_class c
                 LEFT JOIN pg_inherits i ON i.inhrelid = c.oid WHERE c.oid = to_regclass({}) AND c.oid = {}",
                literal(&self.partition.rows.sql_name()),
                self.partition.rows.oid
            ))
            .await
            .map_err(|error| error.doing("looking at a partition"))?;
        Ok(match rows.first() {
            None => At::Gone,
            Some(row) if row.flag(1)? => At::Pending,
            Some(row) if row.flag(0)? => At::Attached,
            Some(_) => At::Detached,
        })
    }

    async fn detach(&mut self, finish: bool) -> Result<(), WireError> {
        let how = match (finish, self.data.concurrently) {
            (true, _) => " FINALIZE",
            (false, true) => " CONCURRENTLY",
            (false, false) => "",
        };
        let asked = Instant::now();
        let done = self
            .visit
            .session
            .execute(&format!(
                "ALTER TABLE {} DETACH PARTITION {}{how}",
                self.data.parent(),
                self.partition.rows.sql_name()
            ))
            .await;
        let took = u64::try_from(asked.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.removed.longest_transaction_ms = self.removed.longest_transaction_ms.max(took);
        if done.is_ok() {
            reached(Point::CleanupDetached);
        }
        done
    }

    /// Puts it back where it was.
    async fn attach(&mut self) -> Result<(), EngineError> {
        for tries in 0..=TRIES {
            let done = self
                .visit
                .session
                .execute(&format!(
                    "ALTER TABLE {} ATTACH PARTITION {} {}",
                    self.data.parent(),
                    self.partition.rows.sql_name(),
                    self.partition.bound
                ))
                .await;
            match done {
                Ok(()) => return Ok(()),
                Err(error)
                    if tries < TRIES
                        && matches!(error.code(), Some("55P03" | "57014" | "40P01")) =>
                {
                    self.pause(tries + 1).await?;
                }
                Err(error) => {
                    return Err(error.doing(format!(
                        "putting {} back, which was taken out and still holds rows; attach it with: ALTER TABLE {} ATTACH PARTITION {} {}",
                        self.partition.rows.display(),
                        self.data.parent(),
                        self.partition.rows.sql_name(),
                        self.partition.bound
                    )));
                }
            }
        }
        Ok(())
    }

    /// Drops it if it is what the archive holds. Nobody reaches it through its table any more: its lock is felt by nobody.
    async fn drop_or_keep(&mut self, archived: &Fingerprint) -> Result<Dropped, WireError> {
        let name = self.partition.rows.sql_name();
        self.visit
            .session
            .execute(&format!(
                "BEGIN; LOCK TABLE {name} IN ACCESS EXCLUSIVE MODE; SET LOCAL idle_in_transaction_session_timeout = 0"
            ))
            .await?;
        let source = Source::of(&self.partition.rows, 0);
        let sql = format!(
            "COPY (SELECT {} FROM {}) TO STDOUT {}",
            source.columns,
            source.from,
            Format::Text.clause()
        );
        let reading = Reading::of(self.context, &self.context.stop);
        let now = copy_out(
            &mut self.visit.session,
            &sql,
            Format::Text,
            &reading,
            None,
            "looking at a partition once more",
        )
        .await;
        let is_same = now.is_ok_and(|now| now.fingerprint == *archived);
        if !is_same {
            self.visit.session.execute("ROLLBACK").await?;
            return Ok(Dropped::Changed);
        }
        self.visit
            .session
            .execute(&format!("DROP TABLE {name}"))
            .await?;
        self.visit.session.execute("COMMIT").await?;
        Ok(Dropped::Yes)
    }
}

enum Dropped {
    Yes,
    Changed,
}

/// Makes a partition anew that was dropped, so that its rows can be put back.
pub(super) async fn make_again(
    visit: &mut Visit,
    plan: &CleanupPlan,
    table: &RowsData,
    dry_run: bool,
) -> Result<bool, EngineError> {
    let data: PartitionsData = data(plan)?;
    let Some(partition) = data
        .partitions
        .iter()
        .find(|partition| partition.rows.oid == table.oid)
    else {
        return Ok(false);
    };
    let name = table.sql_name();
    let is_there = visit
        .session
        .one(&format!(
            "SELECT to_regclass({}) IS NOT NULL",
            literal(&name)
        ))
        .await
        .map_err(|error| error.doing("looking for a partition"))?
        .flag(0)?;
    if is_there || dry_run {
        return Ok(!is_there);
    }
    let mut tries = 0;
    loop {
        let done = visit
            .session
            .execute(&format!(
                "BEGIN; CREATE TABLE {name} (LIKE {parent} INCLUDING ALL); \
                 ALTER TABLE {parent} ATTACH PARTITION {name} {}; COMMIT",
                partition.bound,
                parent = data.parent()
            ))
            .await;
        let Err(error) = done else {
            return Ok(true);
        };
        let is_of_the_moment = matches!(error.code(), Some("55P03" | "40P01"));
        visit
            .session
            .execute("ROLLBACK")
            .await
            .map_err(|error| error.doing("making a partition again"))?;
        if !is_of_the_moment || tries >= TRIES {
            return Err(error.doing(format!("making {} again", table.display())));
        }
        tries += 1;
        sleep(Duration::from_millis(100) * 2_u32.pow(tries.min(6))).await;
    }
}
