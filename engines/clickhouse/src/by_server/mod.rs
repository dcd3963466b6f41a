//! The server's own backups (`BACKUP … TO`), which Fettler asks for, watches, restores, compares and lets go.
//!
//! What the server is told to back up are the shadows of the tables, each under the name of its original
//! (`BACKUP TABLE scratch.t1 AS shop.orders`). So it is known to the row what is inside, whatever is written meanwhile: the
//! fingerprints are made of the very parts that the server copies. Views and dictionaries are named beside them, so that the backup
//! is of use without Fettler too. Fettler's own part has all definitions as they are, replicated tables too.
//!
//! A backup is called `fettler-`, the job's id and the token of the attempt that asked for it. ClickHouse has no statement that
//! removes a backup: see [`remove`].

mod make;
mod place;
mod remove;
mod take;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use fettler_engine::{BackupReport, EngineError, Held, Target};
use serde::{Deserialize, Serialize};

use crate::{
    backup::BackupData,
    error::{Refusal, codes},
    http::{Session, Setting},
    params::Params,
    sql::{literal, quoted},
};

use place::{Place, job_of};

pub(crate) use make::backup;
pub(crate) use remove::let_go;
pub(crate) use take::Taking;

/// How often what runs is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How many lines of the log of backups are looked at.
const LOG_LINES: usize = 1000;
/// Statements that name many tables.
const LONG_STATEMENT: [Setting; 2] = [("max_query_size", "268435456"), ("log_queries", "0")];

/// What holds the rows of a table in the server's backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct OwnTable {
    /// Its name there; the database is the table's own.
    pub(crate) name: String,
    /// Whether it has the table's own parts. Others are copies of rows: of tables without parts, or of what could not be linked.
    pub(crate) is_linked: bool,
    /// The one partition that it is a copy of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) partition_id: Option<String>,
}

/// A backup that the server holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct OwnBackup {
    /// Where, as a person named it.
    pub(crate) place: String,
    /// Its name there.
    pub(crate) name: String,
    /// How many files the server says that it has.
    pub(crate) files: u64,
    /// And how many bytes they have.
    pub(crate) bytes: u64,
}

impl OwnBackup {
    /// The place as `RESTORE … FROM` takes it.
    pub(crate) fn destination(&self) -> Result<String, EngineError> {
        Ok(Place::read(&self.place)?.destination(&self.name))
    }
}

/// What a server says of a backup or a restore that it was asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Status {
    word: String,
    error: String,
    files: u64,
    bytes: u64,
    query: String,
}

impl Status {
    fn is_running(&self) -> bool {
        matches!(self.word.as_str(), "CREATING_BACKUP" | "RESTORING")
    }

    fn is_done(&self) -> bool {
        matches!(self.word.as_str(), "BACKUP_CREATED" | "RESTORED")
    }
}

/// Whether the server has backups of its own at all (23.3 and later tell enough of them).
async fn require_backups(session: &Session) -> Result<(), EngineError> {
    if session.has_column("backups", "query_id").await? {
        return Ok(());
    }
    Err(EngineError::Missing {
        code: "by_server",
        what: format!(
            "ClickHouse {} makes no backups of its own that can be watched",
            session.version
        ),
        remedy: "leave `--by-server` out: Fettler reads the database itself".to_owned(),
    })
}

/// Asks how far something is; nothing where the server does not know of it, as after a restart.
async fn look(session: &Session, id: &str) -> Result<Option<Status>, EngineError> {
    let rows = session
        .rows(
            &format!(
                "SELECT toString(status), error, toString(num_files), toString(total_size), query_id FROM system.backups WHERE id = {} ORDER BY start_time DESC LIMIT 1",
                literal(id)
            ),
            "looking how far the server is",
        )
        .await?;
    Ok(rows
        .into_iter()
        .next()
        .and_then(|row| <[String; 5]>::try_from(row).ok())
        .map(|[word, error, files, bytes, query]| Status {
            word,
            error,
            files: files.parse().unwrap_or(0),
            bytes: bytes.parse().unwrap_or(0),
            query,
        }))
}

/// What a refusal of `BACKUP` or `RESTORE` means.
fn refused(server: &str, refusal: &Refusal, doing: &str, place: &str) -> EngineError {
    let remedy = match refusal.code {
        codes::INVALID_CONFIG_PARAMETER => {
            "set `backups.allowed_path` (folders) or `backups.allowed_disk` (disks) in the server's configuration; a server that sees the place is named with `--sandbox source-server` or `--sandbox clickhouse://…`"
        }
        codes::BAD_ARGUMENTS | codes::UNKNOWN_DISK => {
            "name a place that the server may use: below `backups.allowed_path`, on a disk of `backups.allowed_disk`, or in a named collection that it has and the user may use; a proof needs a server that sees it (`--sandbox source-server`, or `--sandbox clickhouse://…`)"
        }
        codes::S3_ERROR => {
            "look whether the bucket is there, and whether the login in the server's configuration or in the named collection may write to it"
        }
        codes::ACCESS_DENIED => {
            return EngineError::Missing {
                code: "grant",
                what: format!("{doing}: {server} says: {refusal}"),
                remedy: format!(
                    "give the user what it needs: {}",
                    *crate::grants::FOR_OWN_BACKUPS
                ),
            };
        }
        _ => return refusal.doing(server, doing),
    };
    EngineError::Missing {
        code: "by_server",
        what: format!("{server} cannot use {place}: {refusal}"),
        remedy: remedy.to_owned(),
    }
}

/// Whether a backup is at its place. The server is asked to restore a table that no backup has, which it refuses in one of two ways.
async fn is_there(session: &Session, place: &Place, name: &str) -> Result<bool, EngineError> {
    let nothing = quoted(&format!("fettler {name}"));
    let ask = format!(
        "RESTORE TABLE {nothing}.{nothing} FROM {} SETTINGS structure_only = true",
        place.destination(name)
    );
    let doing = "looking for a backup";
    match session.try_run(&ask, &LONG_STATEMENT, doing).await? {
        Err(refusal) if refusal.code == codes::BACKUP_ENTRY_NOT_FOUND => Ok(true),
        Err(refusal) if refusal.code == codes::BACKUP_NOT_FOUND => Ok(false),
        Err(refusal) => Err(refused(
            &session.server(),
            &refusal,
            doing,
            &place.to_string(),
        )),
        Ok(()) => Err(EngineError::Database {
            what: format!("{} restored what is in no backup", session.server()),
            transient: false,
        }),
    }
}

/// What a server says of what it was told to back up: where to, by name.
async fn told_of(session: &Session) -> Result<BTreeMap<(Place, String), bool>, EngineError> {
    let mut told = BTreeMap::new();
    let doing = "listing backups";
    let of_now =
        "SELECT name, toString(status) FROM system.backups WHERE startsWith(id, 'fettler-')";
    let logged = format!(
        "SELECT name, '' FROM system.backup_log WHERE startsWith(id, 'fettler-') AND status = 'BACKUP_CREATED' ORDER BY event_time DESC LIMIT {LOG_LINES}"
    );
    // There may be no log.
    let logged = session.try_rows(&logged, &[], doing).await?;
    let logged = logged.unwrap_or_default();
    for row in session.rows(of_now, doing).await?.into_iter().chain(logged) {
        if let Some(found) = Place::of_destination(&row[0]) {
            *told.entry(found).or_default() |= row[1] == "CREATING_BACKUP";
        }
    }
    Ok(told)
}

/// The names of whole backups in a bucket, as far as the server can list it.
async fn listed(session: &Session, place: &Place) -> Result<Option<BTreeSet<String>>, EngineError> {
    let Some(listing) = place.listing("fettler-*/.backup") else {
        return Ok(None);
    };
    let ask = format!("SELECT DISTINCT _path FROM {listing}");
    let found = session.try_rows(&ask, &[], "listing a bucket").await?;
    Ok(found.ok().map(|rows| {
        rows.into_iter()
            .flatten()
            .filter_map(|path| {
                let (folder, _) = path.rsplit_once('/')?;
                let name = folder.rsplit('/').next()?;
                job_of(name).map(|_| name.to_owned())
            })
            .collect()
    }))
}

/// All backups of Fettler's that the server holds or makes: those that it tells of, those that `known` backups speak of, and those
/// that lie beside them in a bucket.
pub(crate) async fn held(
    server: &Target,
    known: &[BackupReport],
) -> Result<Vec<Held>, EngineError> {
    let params = Params::of(server)?;
    let session = Session::visit(&params).await?;
    if !session.has_column("backups", "query_id").await? {
        return Ok(Vec::new());
    }
    let mut told = told_of(&session).await?;
    for report in known {
        if let Ok(data) = BackupData::of(report)
            && let Some(own) = data.own
            && let Ok(place) = Place::read(&own.place)
        {
            told.entry((place, own.name)).or_default();
        }
    }
    let mut held = BTreeSet::new();
    let places: BTreeSet<Place> = told.keys().map(|(place, _)| place.clone()).collect();
    for place in places {
        let in_bucket = listed(&session, &place).await?;
        for ((_, name), is_running) in told.iter().filter(|((other, _), _)| *other == place) {
            let is_held = *is_running
                || match &in_bucket {
                    Some(all) => all.contains(name),
                    None => match is_there(&session, &place, name).await {
                        Ok(is_there) => is_there,
                        // A place that cannot be used any more says nothing of the others.
                        Err(error) => {
                            tracing::warn!(%place, name, %error, "a backup could not be looked for");
                            false
                        }
                    },
                };
            if is_held {
                held.insert((place.clone(), name.clone()));
            }
        }
        held.extend(
            in_bucket
                .into_iter()
                .flatten()
                .map(|name| (place.clone(), name)),
        );
    }
    Ok(held
        .into_iter()
        .filter_map(|(place, name)| {
            Some(Held {
                job: job_of(&name)?,
                place: place.to_string(),
                name,
            })
        })
        .collect())
}

/// An error where the server's backup is gone.
pub(crate) async fn require_held(
    report: &BackupReport,
    server: &Target,
) -> Result<(), EngineError> {
    let Some(own) = BackupData::of(report)?.own else {
        return Ok(());
    };
    let params = Params::of(server)?;
    let session = Session::visit(&params).await?;
    require(&session, &own).await
}

/// The same, over a session.
pub(crate) async fn require(session: &Session, own: &OwnBackup) -> Result<(), EngineError> {
    require_backups(session).await?;
    if is_there(session, &Place::read(&own.place)?, &own.name).await? {
        return Ok(());
    }
    Err(EngineError::Unusable {
        what: format!(
            "{} finds no backup {} in {} any more",
            session.server(),
            own.name,
            own.place
        ),
        remedy: "take another backup; `fettler forget` removes this one from the list".to_owned(),
    })
}
