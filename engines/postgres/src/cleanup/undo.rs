//! Puts back what an archive holds. No trigger of a user's fires: where a table has triggers for inserts, the work runs as
//! sessions do that replay a source's changes (`session_replication_role = replica`), in which the server checks no foreign keys
//! either; so the work looks itself that what a row refers to is there.
//!
//! A row that is there already stays as it is, and one whose key or other unique value is taken is left out and told.

use std::{collections::VecDeque, time::Duration};

use fettler_engine::{AttemptName, EngineContext, EngineError, StreamSource, Target};
use fettler_model::{CleanupAction, CleanupPlan, CleanupUndone, JobId};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};

use crate::{
    names::{literal, quote_ident},
    wire::Session,
};

use super::{
    Visit,
    archive::{SegmentReader, prefix, segments},
    batch::{ArchivedRow, Batch, EngineErrorAt},
    data, partitions,
    rows::{ForeignKey, ON_INSERT, RowsData, columns, foreign_keys, triggers},
};

const BATCH_ROWS: usize = 500;
const BATCH_BYTES: u64 = 1 << 20;
const CHECKPOINT_EVERY: Duration = Duration::from_secs(1);
const TRIES: u32 = 5;
const MOST_TOLD: usize = 100;

/// How far it is, as the checkpoint keeps it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct Progress {
    todo: Option<VecDeque<String>>,
    at_row: u64,
    in_this_pass: u64,
    /// Segments with rows whose parents may come with a later pass, and how many they were.
    again: Vec<String>,
    restored: u64,
    there: u64,
    taken: u64,
    without_parent: u64,
    skipped: Vec<String>,
    /// Rows of this pass whose parents are missing.
    lonely: Vec<String>,
    /// Whether this is not the first pass over these segments: then only what is put in counts.
    is_again: bool,
}

/// Undoes.
pub(super) async fn undo(
    context: &EngineContext,
    target: &Target,
    plan: &CleanupPlan,
    archive: &dyn StreamSource,
    job: JobId,
    dry_run: bool,
) -> Result<CleanupUndone, EngineError> {
    let tables: Vec<RowsData> = match &plan.what {
        CleanupAction::Partitions { .. } => partitions::tables(plan)?,
        _ => vec![data(plan)?],
    };
    let mut visit = Visit::begin(context, target).await?;
    end_sessions_of(&mut visit.session, job).await?;
    let mut undone = CleanupUndone::default();
    let saved: Vec<Progress> = match context.checkpoints.load().await? {
        Some(saved) if !dry_run => serde_json::from_value(saved).unwrap_or_default(),
        _ => Vec::new(),
    };
    let mut all = saved;
    for (number, table) in tables.iter().enumerate() {
        let is_missing = matches!(plan.what, CleanupAction::Partitions { .. })
            && partitions::make_again(&mut visit, plan, table, dry_run).await?;
        if is_missing && dry_run {
            let rows = archive.streams().iter();
            let prefix = prefix(number);
            undone.restored += rows
                .filter(|stream| stream.name.starts_with(&prefix))
                .map(|stream| stream.rows)
                .sum::<u64>();
            continue;
        }
        let way = Way::find(&mut visit, table, &mut undone).await?;
        if all.len() <= number {
            all.push(Progress::default());
        }
        let mut work = Undo {
            context,
            archive,
            table: &way.table,
            way: &way,
            visit: &mut visit,
            all: &mut all,
            number,
            saved: Instant::now(),
            dry_run,
        };
        let done = work.passes().await;
        if matches!(done, Err(EngineError::Stopped)) {
            work.save().await?;
        }
        done?;
        let progress = &all[number];
        undone.restored += progress.restored;
        undone.there += progress.there;
        undone.taken += progress.taken;
        undone.without_parent += progress.without_parent;
        undone.skipped.extend(progress.skipped.iter().cloned());
        undone.skipped.extend(progress.lonely.iter().cloned());
    }
    undone.skipped.truncate(MOST_TOLD);
    visit.end().await;
    Ok(undone)
}

/// Ends what attempts of the cleanup itself may have left, so that nothing is removed behind the undo.
async fn end_sessions_of(session: &mut Session, job: JobId) -> Result<(), EngineError> {
    let prefix = AttemptName::prefix_of(job);
    let give_up = Instant::now() + Duration::from_secs(30);
    loop {
        let left = session
            .query(&format!(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                 WHERE left(application_name, {}) = {} AND pid <> pg_backend_pid()",
                prefix.len(),
                literal(&prefix)
            ))
            .await
            .map_err(|error| error.doing("ending sessions of the cleanup"))?;
        if left.is_empty() {
            return Ok(());
        }
        if Instant::now() > give_up {
            return Err(EngineError::Database {
                what: "sessions of the cleanup do not end".to_owned(),
                transient: true,
            });
        }
        sleep(Duration::from_millis(50)).await;
    }
}

/// How rows get into a table.
struct Way {
    table: RowsData,
    /// What the table refers to.
    refers_to: Vec<ForeignKey>,
    /// Whether the work runs as a replay of changes does.
    as_replica: bool,
}

impl Way {
    async fn find(
        visit: &mut Visit,
        table: &RowsData,
        undone: &mut CleanupUndone,
    ) -> Result<Self, EngineError> {
        let major = visit.server.major();
        let session = &mut visit.session;
        let display = table.display();
        // By its name: a table that was restored from a backup has another number.
        let oid = session
            .one(&format!(
                "SELECT COALESCE(to_regclass({})::oid::bigint, 0)",
                literal(&table.sql_name())
            ))
            .await
            .map_err(|error| error.doing("looking for the table"))?
            .get(0)?;
        if oid == 0_u32 {
            return Err(altered(&display, "it is not there any more"));
        }
        let now = columns(session, oid, major).await?;
        for column in &table.columns {
            if !now.contains(column) {
                return Err(altered(
                    &display,
                    &format!(
                        "its column {} is not there any more, or has another type",
                        column.name
                    ),
                ));
            }
        }
        if now.len() > table.columns.len() {
            undone.notes.push(format!(
                "{display} has columns that the archive does not: they get their defaults"
            ));
        }
        let may = session
            .one(&format!(
                "SELECT current_user, has_table_privilege({oid}, 'SELECT') AND has_table_privilege({oid}, 'INSERT')"
            ))
            .await
            .map_err(|error| error.doing("looking at rights"))?;
        let role = may.string(0)?;
        if !may.flag(1)? {
            return Err(EngineError::Missing {
                code: "permission",
                what: format!("the role {role} may not put rows into {display}"),
                remedy: format!(
                    "GRANT SELECT, INSERT ON {} TO {}",
                    table.sql_name(),
                    quote_ident(&role)
                ),
            });
        }
        let triggers = triggers(session, oid, ON_INSERT).await?;
        let as_replica = triggers.iter().any(|trigger| trigger.enabled == 'O');
        let stubborn = triggers
            .iter()
            .find(|trigger| trigger.enabled == 'A' || (trigger.enabled == 'R' && as_replica));
        if let Some(trigger) = stubborn {
            return Err(EngineError::Missing {
                code: "trigger",
                what: format!(
                    "the trigger {} of {display} fires whatever the session says (ENABLE ALWAYS or REPLICA)",
                    trigger.name
                ),
                remedy: "disable it for the time of the undo".to_owned(),
            });
        }
        if as_replica {
            may_replay(session, major, &role, &display).await?;
        }
        Ok(Self {
            table: RowsData {
                oid,
                ..table.clone()
            },
            refers_to: foreign_keys(session, oid, major, false).await?,
            as_replica,
        })
    }
}

fn altered(display: &str, why: &str) -> EngineError {
    EngineError::Missing {
        code: "table",
        what: format!("rows cannot be put back into {display}: {why}"),
        remedy: "bring the table back into the form that it had, then try again".to_owned(),
    }
}

/// Whether the role may keep triggers from firing.
async fn may_replay(
    session: &mut Session,
    major: u32,
    role: &str,
    display: &str,
) -> Result<(), EngineError> {
    let sql = if major >= 15 {
        "SELECT has_parameter_privilege('session_replication_role', 'SET')"
    } else {
        "SELECT rolsuper FROM pg_roles WHERE rolname = current_user"
    };
    let may = session
        .one(sql)
        .await
        .map_err(|error| error.doing("looking at rights"))?
        .flag(0)?;
    if may {
        return Ok(());
    }
    Err(EngineError::Missing {
        code: "permission",
        what: format!(
            "{display} has triggers for inserts, and the role {role} may not keep them from firing"
        ),
        remedy: if major >= 15 {
            format!(
                "GRANT SET ON PARAMETER session_replication_role TO {}",
                quote_ident(role)
            )
        } else {
            "undo as a superuser, or disable the triggers for the time of the undo".to_owned()
        },
    })
}

struct Undo<'a> {
    context: &'a EngineContext,
    archive: &'a dyn StreamSource,
    table: &'a RowsData,
    way: &'a Way,
    visit: &'a mut Visit,
    all: &'a mut Vec<Progress>,
    number: usize,
    saved: Instant,
    dry_run: bool,
}

/// What came of one transaction.
#[derive(Default)]
struct Done {
    restored: u64,
    there: u64,
    taken: u64,
    without_parent: u64,
    skipped: Vec<String>,
    lonely: Vec<String>,
}

impl Undo<'_> {
    fn progress(&mut self) -> &mut Progress {
        &mut self.all[self.number]
    }

    async fn save(&mut self) -> Result<(), EngineError> {
        if self.dry_run {
            return Ok(());
        }
        let value = serde_json::to_value(&*self.all).expect("plain data can be JSON");
        self.context.checkpoints.save(value).await?;
        self.saved = Instant::now();
        Ok(())
    }

    async fn passes(&mut self) -> Result<(), EngineError> {
        if self.progress().todo.is_none() {
            let all = segments(self.archive, &prefix(self.number));
            self.progress().todo = Some(all.into());
        }
        loop {
            while let Some(segment) = self
                .progress()
                .todo
                .as_ref()
                .and_then(|todo| todo.front().cloned())
            {
                let lonely = self.segment(&segment).await?;
                let progress = self.progress();
                if lonely {
                    progress.again.push(segment);
                }
                if let Some(todo) = &mut progress.todo {
                    todo.pop_front();
                }
                progress.at_row = 0;
                self.save().await?;
            }
            let dry_run = self.dry_run;
            let progress = self.progress();
            let again = std::mem::take(&mut progress.again);
            // Rows that refer to each other come one after the other, as long as any comes.
            if again.is_empty() || progress.in_this_pass == 0 || dry_run {
                return Ok(());
            }
            progress.in_this_pass = 0;
            progress.is_again = true;
            progress.without_parent = 0;
            progress.lonely.clear();
            progress.todo = Some(again.into());
            self.save().await?;
        }
    }

    /// Whether rows were left out whose parents may come later.
    async fn segment(&mut self, name: &str) -> Result<bool, EngineError> {
        let mut reader = SegmentReader::open(self.archive, name, self.table.columns.len()).await?;
        for _ in 0..self.progress().at_row {
            if reader.next().await?.is_none() {
                break;
            }
        }
        let (mut is_over, mut lonely) = (false, false);
        while !is_over {
            let (mut rows, mut bytes) = (Vec::new(), 0);
            while rows.len() < BATCH_ROWS && bytes < BATCH_BYTES {
                let Some(row) = reader.next().await? else {
                    is_over = true;
                    break;
                };
                bytes += row.bytes;
                rows.push(row);
            }
            if rows.is_empty() {
                break;
            }
            let done = self.batch(&rows).await?;
            lonely |= done.without_parent > 0;
            let is_again = self.progress().is_again;
            let progress = self.progress();
            progress.at_row += rows.len() as u64;
            progress.restored += done.restored;
            progress.in_this_pass += done.restored;
            progress.without_parent += done.without_parent;
            let room = MOST_TOLD.saturating_sub(progress.lonely.len());
            progress.lonely.extend(done.lonely.into_iter().take(room));
            if !is_again {
                progress.there += done.there;
                progress.taken += done.taken;
                let room = MOST_TOLD.saturating_sub(progress.skipped.len());
                progress.skipped.extend(done.skipped.into_iter().take(room));
            }
            self.context.progress.add(bytes, rows.len() as u64);
            fettler_fault_points::reached(fettler_fault_points::Point::CleanupUndoing);
            if self.saved.elapsed() >= CHECKPOINT_EVERY {
                self.save().await?;
            }
        }
        Ok(lonely)
    }

    async fn batch(&mut self, rows: &[ArchivedRow]) -> Result<Done, EngineError> {
        let table = self.table;
        let batch = Batch::new(table, rows);
        let mut attempt = 0;
        loop {
            self.context.check_stop()?;
            self.context.fence.check().await?;
            let done = one(
                &mut self.visit.session,
                &batch,
                rows.len(),
                self.way,
                self.dry_run,
            )
            .await;
            match done {
                Ok(done) => return Ok(done),
                Err(at) if at.is_of_the_moment() && attempt + 1 < TRIES => {
                    attempt += 1;
                    self.visit
                        .session
                        .execute("ROLLBACK")
                        .await
                        .map_err(|error| error.doing("giving a batch up"))?;
                    self.context
                        .stop
                        .run_until_cancelled(sleep(Duration::from_millis(250) * 2_u32.pow(attempt)))
                        .await
                        .ok_or(EngineError::Stopped)?;
                }
                Err(at) => {
                    self.save().await?;
                    return Err(at.error);
                }
            }
        }
    }
}

async fn one(
    session: &mut Session,
    batch: &Batch<'_>,
    rows: usize,
    way: &Way,
    dry_run: bool,
) -> Result<Done, EngineErrorAt> {
    let begin = match (dry_run, way.as_replica) {
        (true, _) => "BEGIN READ ONLY",
        (false, true) => "BEGIN; SET LOCAL session_replication_role = replica",
        (false, false) => "BEGIN",
    };
    let failed = |doing: &'static str| move |error| EngineErrorAt::of(error, doing);
    session
        .execute(&format!("{begin}; SET LOCAL enable_hashjoin = off; SET LOCAL enable_mergejoin = off; SET LOCAL enable_seqscan = off"))
        .await
        .map_err(failed("beginning a batch"))?;
    let mut done = Done::default();
    let mut is_out = vec![false; rows];
    let mut leave_out = |row: usize, why: &str, done: &mut Done, tell: bool| {
        is_out[row] = true;
        if tell {
            done.skipped.push(format!("{}: {why}", batch.key_of(row)));
        }
    };
    let all: Vec<usize> = (0..rows).collect();
    for (row, is_same) in batch.there(session, &all).await? {
        if is_same {
            done.there += 1;
            leave_out(row, "", &mut done, false);
        } else {
            done.taken += 1;
            leave_out(row, "another row is there", &mut done, true);
        }
    }
    for key in &way.refers_to {
        // Nothing is put in by a dry run, so that rows of the archive would seem to lack each other.
        if dry_run && key.is_own {
            continue;
        }
        let wanted: Vec<usize> = (0..rows).filter(|row| !is_out[*row]).collect();
        for row in batch.without_parent(session, &wanted, key).await? {
            if !is_out[row] {
                is_out[row] = true;
                done.without_parent += 1;
                done.lonely.push(format!(
                    "{}: what it refers to by {} is not there",
                    batch.key_of(row),
                    key.name
                ));
            }
        }
    }
    let wanted: Vec<usize> = (0..rows).filter(|row| !is_out[*row]).collect();
    if dry_run {
        done.restored = wanted.len() as u64;
    } else if !wanted.is_empty() {
        batch.insert(session, &wanted).await?;
        let there = batch.there(session, &wanted).await?;
        let mut is_there = vec![false; rows];
        there.iter().for_each(|(row, _)| is_there[*row] = true);
        done.restored = there.len() as u64;
        for row in wanted {
            if !is_there[row] {
                done.taken += 1;
                done.skipped.push(format!(
                    "{}: a unique value of it is taken",
                    batch.key_of(row)
                ));
            }
        }
    }
    session
        .execute("COMMIT")
        .await
        .map_err(failed("committing a batch"))?;
    Ok(done)
}
