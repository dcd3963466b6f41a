//! Points in time: which seconds of a database can be restored, and the changes that make one.

use std::{collections::BTreeMap, path::PathBuf};

use async_trait::async_trait;
use fettler_engine::{ChangeSource, EngineContext, EngineError, StreamReader};
use fettler_model::{
    Base, LogMoment, LogUnit, NoMoment, Plan, Problem, Restorable, Timeline, Timestamp,
};
use fettler_repository::{ChangeLog, LogEntry, ManifestSummary, RepositoryError, TenantRepository};
use futures::stream;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::archive::report_of;

/// How often the log is listed anew, where it was merged while it was read.
const MAX_LISTINGS: u32 = 5;
/// The code of the problem that a moment cannot be restored.
pub(crate) const NO_SUCH_MOMENT: &str = "restore.no_such_moment";
/// Bytes of changes read at once.
const BUFFER_BYTES: usize = 256 * 1024;

/// The backups of a database on which changes can be played, oldest first.
pub(crate) async fn bases(
    repository: &TenantRepository,
    key: &str,
) -> Result<Vec<Base>, RepositoryError> {
    let mut bases = Vec::new();
    for summary in repository.backups().await?.backups {
        if summary.database != key || summary.damaged {
            continue;
        }
        let manifest = match repository.manifest(summary.id).await {
            Ok(manifest) => manifest,
            // It was forgotten meanwhile.
            Err(RepositoryError::NoSuchBackup(_)) => continue,
            Err(error) => return Err(error),
        };
        // What a newer version wrote is no base for this one.
        if let Ok(report) = report_of(&manifest)
            && let engine = fettler_engines::engine(report.identity.engine)
            && let Some(position) = engine.log_position(&report)
        {
            bases.push(Base {
                backup: summary.id,
                since: engine.changes_since(&report).unwrap_or(position.offset),
                position,
            });
        }
    }
    Ok(bases)
}

/// A log and the backups of its database, with the moments that a question needs.
struct Known {
    log: ChangeLog,
    entries: Vec<LogEntry>,
    spans: Vec<fettler_model::LogSpan>,
    bases: Vec<Base>,
    moments: BTreeMap<usize, Vec<LogMoment>>,
}

impl Known {
    async fn of(
        repository: &TenantRepository,
        key: &str,
        at: Option<Timestamp>,
    ) -> Result<Self, RepositoryError> {
        let log = repository.change_log(key);
        let mut listings = 0;
        'list: loop {
            let entries = log.entries().await?;
            let mut known = Self {
                spans: entries.iter().map(|entry| entry.span.clone()).collect(),
                // Without a log there is nothing to play.
                bases: if entries.is_empty() {
                    Vec::new()
                } else {
                    bases(repository, key).await?
                },
                log: log.clone(),
                entries,
                moments: BTreeMap::new(),
            };
            for wanted in Timeline::new(&known.spans, &known.bases).wanted(at) {
                let Some(part) = known.log.read(&known.entries[wanted]).await? else {
                    listings += 1;
                    if listings > MAX_LISTINGS {
                        return Err(merged_again(repository));
                    }
                    continue 'list;
                };
                known.moments.insert(wanted, part.moments);
            }
            return Ok(known);
        }
    }

    fn restorable(&self) -> Restorable {
        Timeline::new(&self.spans, &self.bases).restorable(&|span| self.moments_of(span))
    }

    fn plan(&self, at: Timestamp) -> Result<Plan, NoMoment> {
        Timeline::new(&self.spans, &self.bases).plan(at, &|span| self.moments_of(span))
    }

    fn moments_of(&self, span: usize) -> &[LogMoment] {
        self.moments.get(&span).map_or(&[], Vec::as_slice)
    }
}

fn merged_again(repository: &TenantRepository) -> RepositoryError {
    RepositoryError::StoreUnavailable {
        place: repository.place().to_owned(),
        operation: "read a log of changes".to_owned(),
        what: "it was merged each time it was read: try again".to_owned(),
    }
}

/// From when to when the database of this key (`engine:name`) can be restored, and what is missing between.
///
/// # Errors
///
/// When the repository cannot be read.
pub async fn restorable(
    repository: &TenantRepository,
    key: &str,
) -> Result<Restorable, RepositoryError> {
    Ok(Known::of(repository, key, None).await?.restorable())
}

/// The place of a backup in the server's order of changes, where changes can be played on it.
#[must_use]
pub fn log_position(manifest: &fettler_repository::Manifest) -> Option<fettler_model::LogPosition> {
    let report = report_of(manifest).ok()?;
    fettler_engines::engine(report.identity.engine).log_position(&report)
}

/// What makes a second, with the changes in a file of the scratch folder.
pub(crate) struct Prepared {
    pub(crate) plan: Plan,
    pub(crate) changes: SpooledChanges,
}

/// Finds what makes a second of a database, and fetches the changes, so that nothing at a target is touched before they
/// were read to their end.
pub(crate) async fn prepare(
    repository: &TenantRepository,
    key: &str,
    at: Timestamp,
    context: &EngineContext,
) -> Result<Prepared, Problem> {
    for _ in 0..MAX_LISTINGS {
        let known = Known::of(repository, key, Some(at)).await?;
        let plan = known
            .plan(at)
            .map_err(|near| no_such_moment(key, at, near, &known))?;
        let path = context.scratch.join("changes");
        if let Some(changes) = spool(&known, &plan, path, context).await? {
            return Ok(Prepared { plan, changes });
        }
    }
    Err(merged_again(repository).into())
}

/// Writes the changes of a plan into a file; nothing where the log was merged meanwhile.
async fn spool(
    known: &Known,
    plan: &Plan,
    path: PathBuf,
    context: &EngineContext,
) -> Result<Option<SpooledChanges>, Problem> {
    let failed = |error| Problem::from(EngineError::local("fetching the changes", error));
    let mut file = tokio::fs::File::create(&path).await.map_err(failed)?;
    let (mut at, mut spooled) = (plan.begin, 0);
    for entry in &known.entries[plan.spans.clone()] {
        context.check_stop().map_err(Problem::from)?;
        let Some(part) = known.log.read(entry).await? else {
            return Ok(None);
        };
        let (from, to) = (at.max(entry.span.begin), plan.end.min(entry.span.end));
        if from != at && from < to {
            return Err(Problem::permanent(
                "restore.log",
                format!("the log has nothing between the offsets {at} and {from}"),
                "check the repository (`fettler check`), and restore to an earlier moment",
            ));
        }
        if from < to {
            let place =
                |offset: u64| usize::try_from(offset - entry.span.begin).unwrap_or(usize::MAX);
            let bytes = match entry.span.unit {
                LogUnit::Bytes => &part.bytes[place(from)..place(to)],
                // Which of them are meant they say themselves.
                LogUnit::Numbers => &part.bytes[..],
            };
            spooled += bytes.len() as u64;
            file.write_all(bytes).await.map_err(failed)?;
            context.progress.add(bytes.len() as u64, 0);
            at = to;
        }
    }
    file.flush().await.map_err(failed)?;
    Ok(Some(SpooledChanges {
        begin: plan.begin,
        end: plan.end,
        bytes: spooled,
        path,
    }))
}

fn no_such_moment(key: &str, at: Timestamp, near: NoMoment, known: &Known) -> Problem {
    let near: Vec<String> = [
        near.before
            .map(|before| format!("the last before it is {before}")),
        near.after
            .map(|after| format!("the first after it is {after}")),
    ]
    .into_iter()
    .flatten()
    .collect();
    let (what, remedy) = if known.entries.is_empty() {
        (
            format!("nothing is archived of {key}, so that only the moments of its backups can be restored"),
            "`fettler archive DATABASE` archives changes from now on; `fettler backups` lists the backups".to_owned(),
        )
    } else if near.is_empty() {
        (
            format!("no backup lies in what is archived of {key}"),
            "back the database up; what is archived behind that backup can be restored".to_owned(),
        )
    } else {
        (
            format!("{key} cannot be restored to {at}: {}", near.join(", ")),
            "name one of these moments; `fettler backups` shows what can be restored, and what is missing between"
                .to_owned(),
        )
    };
    Problem::permanent(NO_SUCH_MOMENT, what, remedy)
}

/// The last backup that was complete at a moment, of a database whose moments are its backups: nothing of it was ever archived, and
/// none of its backups has a place in an order of changes. Nothing where changes can be played.
///
/// # Errors
///
/// A problem of the code [`NO_SUCH_MOMENT`] where no backup was complete by then; those of the repository.
pub(crate) async fn last_backup_before(
    repository: &TenantRepository,
    key: &str,
    at: Timestamp,
) -> Result<Option<ManifestSummary>, Problem> {
    if !repository.change_log(key).entries().await?.is_empty()
        || !bases(repository, key).await?.is_empty()
    {
        return Ok(None);
    }
    let mut backups: Vec<ManifestSummary> = repository
        .backups()
        .await?
        .backups
        .into_iter()
        .filter(|backup| backup.database == key && !backup.damaged)
        .collect();
    backups.sort_by_key(|backup| backup.finished);
    let Some(last) = backups.iter().rposition(|backup| backup.finished <= at) else {
        let first = backups.first().map_or_else(
            || "it has none that is whole".to_owned(),
            |first| format!("the first is of {}", first.finished),
        );
        return Err(Problem::permanent(
            NO_SUCH_MOMENT,
            format!("no backup of {key} was complete at {at}: {first}"),
            "its moments are its backups: name a later moment (`fettler backups` lists them), and back up more often",
        ));
    };
    Ok(Some(backups.swap_remove(last)))
}

/// Changes in a file.
pub(crate) struct SpooledChanges {
    begin: u64,
    end: u64,
    /// Bytes in the file.
    pub(crate) bytes: u64,
    path: PathBuf,
}

#[async_trait]
impl ChangeSource for SpooledChanges {
    fn begin(&self) -> u64 {
        self.begin
    }

    fn end(&self) -> u64 {
        self.end
    }

    async fn read(&self) -> Result<StreamReader, EngineError> {
        let failed = |error| EngineError::local("reading the changes", error);
        let file = tokio::fs::File::open(&self.path).await.map_err(failed)?;
        Ok(Box::pin(stream::try_unfold(
            file,
            move |mut file| async move {
                let mut buffer = vec![0; BUFFER_BYTES];
                let read = file.read(&mut buffer).await.map_err(failed)?;
                buffer.truncate(read);
                Ok((read > 0).then(|| (buffer.into(), file)))
            },
        )))
    }
}
