//! `fettler backups`: the list of backups. What is there comes from the repository, so that it needs no
//! ledger; what came of each backup (proofs, damage) comes from the ledger.

use std::collections::{BTreeMap, HashMap};

use fettler_jobs::is_cleanup_archive;
use fettler_ledger::{BackupFilter, BackupRecord};
use fettler_model::{BackupId, BackupState, Gap, GapCause, ProofVerdict, Timestamp};
use fettler_repository::{ManifestSummary, RepositoryError, TenantRepository};
use serde::Serialize;

use crate::{
    app::App,
    args::BackupsArgs,
    failure::{Exit, Failure, Outcome},
    output::table,
    select,
    services::Use,
    units,
};

/// A backup in the list; the fields of `--json`.
#[derive(Debug, Serialize)]
pub(crate) struct Listed {
    pub(crate) backup: BackupId,
    pub(crate) database: String,
    pub(crate) engine: String,
    pub(crate) parent: Option<BackupId>,
    pub(crate) started: Timestamp,
    pub(crate) finished: Timestamp,
    pub(crate) bytes_read: u64,
    pub(crate) bytes_new: u64,
    pub(crate) bytes_stored: u64,
    pub(crate) streams: u64,
    pub(crate) tags: Vec<String>,
    pub(crate) held: bool,
    pub(crate) state: BackupState,
    pub(crate) proof: Option<Proof>,
}

/// The last proof of a backup.
#[derive(Debug, Serialize)]
pub(crate) struct Proof {
    pub(crate) verdict: ProofVerdict,
    pub(crate) finished: Timestamp,
    pub(crate) restore_seconds: f64,
}

#[derive(Serialize)]
struct Document {
    repository: String,
    backups: Vec<Listed>,
    /// From when to when databases can be restored, where their changes are archived.
    points_in_time: Vec<PointsInTime>,
    unreadable: Vec<Unreadable>,
}

/// The seconds to which a database can be restored.
#[derive(Serialize)]
pub(crate) struct PointsInTime {
    pub(crate) database: String,
    pub(crate) from: Timestamp,
    pub(crate) until: Timestamp,
    pub(crate) gaps: Vec<Gap>,
}

impl PointsInTime {
    /// Those of the databases of these backups.
    pub(crate) async fn of<'a>(
        repository: &TenantRepository,
        backups: impl Iterator<Item = &'a ManifestSummary>,
    ) -> Result<Vec<Self>, Failure> {
        let names: BTreeMap<&str, &str> = backups
            .map(|summary| (summary.database.as_str(), summary.database_name.as_str()))
            .collect();
        let mut points = Vec::new();
        for (key, name) in names {
            let restorable = fettler_jobs::restorable(repository, key).await?;
            if let Some(whole) = restorable.whole {
                points.push(Self {
                    database: name.to_owned(),
                    from: whole.from,
                    until: whole.until,
                    gaps: restorable.gaps,
                });
            }
        }
        Ok(points)
    }

    /// In words: the seconds, then a line for each gap.
    pub(crate) fn text(&self) -> String {
        let mut text = format!("any second from {} to {}", self.from, self.until);
        for gap in &self.gaps {
            let why = match gap.cause {
                GapCause::ChangesLost => "changes are missing",
                GapCause::NotPlaced => {
                    "no change is missing, but which belongs to which second is not known"
                }
            };
            text.push_str(&format!("\nGAP  {} to {}: {why}", gap.from, gap.until));
        }
        text
    }
}

#[derive(Serialize)]
struct Unreadable {
    object: String,
    what: String,
}

impl Listed {
    /// A backup that the repository holds.
    pub(crate) fn of(summary: &ManifestSummary, known: Option<&BackupRecord>) -> Self {
        let state = if summary.damaged {
            BackupState::Damaged
        } else {
            match known.map(|known| known.state) {
                Some(BackupState::Damaged) => BackupState::Damaged,
                // The repository has it, whatever the list says.
                _ => BackupState::Complete,
            }
        };
        Self {
            backup: summary.id,
            database: summary.database_name.clone(),
            engine: summary.engine.clone(),
            parent: summary.parent,
            started: summary.started,
            finished: summary.finished,
            bytes_read: summary.bytes_read,
            bytes_new: summary.bytes_new,
            bytes_stored: summary.bytes_stored,
            streams: summary.streams,
            tags: summary.tags.clone(),
            held: summary.held,
            state,
            proof: known.and_then(Proof::of),
        }
    }

    /// A backup that only the list knows any more.
    fn gone(record: &BackupRecord) -> Self {
        Self {
            state: match record.state {
                BackupState::Forgotten => BackupState::Forgotten,
                _ => BackupState::Vanished,
            },
            ..Self::catalogued(record)
        }
    }

    /// A backup as the catalogue has it.
    pub(crate) fn catalogued(record: &BackupRecord) -> Self {
        let facts = &record.facts;
        Self {
            backup: facts.id,
            database: facts.database_name.to_string(),
            engine: facts.engine.to_string(),
            parent: facts.parent,
            started: facts.started,
            finished: facts.finished,
            bytes_read: facts.bytes_read,
            bytes_new: facts.bytes_new,
            bytes_stored: facts.bytes_stored,
            streams: facts.streams,
            tags: facts.tags.clone(),
            held: false,
            state: record.state,
            proof: Proof::of(record),
        }
    }
}

impl Proof {
    fn of(record: &BackupRecord) -> Option<Self> {
        record.last_proof.as_ref().map(|proof| Self {
            verdict: proof.verdict,
            finished: proof.finished,
            restore_seconds: proof.restore_seconds,
        })
    }

    /// In a word.
    pub(crate) fn word(&self) -> &'static str {
        match self.verdict {
            ProofVerdict::Proven => "proven",
            ProofVerdict::MatchesWhatWasRead => "matches",
            ProofVerdict::Failed => "FAILED",
        }
    }
}

/// What the ledger knows of the tenant's backups in the configured repository.
pub(crate) async fn known(app: &App) -> Result<HashMap<BackupId, BackupRecord>, Failure> {
    let records = app
        .ledger()
        .await?
        .backups(&BackupFilter {
            tenant: Some(app.tenant().clone()),
            place: Some(app.settings().repository_place()),
            states: vec![
                BackupState::Complete,
                BackupState::Damaged,
                BackupState::Vanished,
                BackupState::Forgotten,
            ],
            ..BackupFilter::default()
        })
        .await?;
    Ok(records
        .into_iter()
        .map(|record| (record.facts.id, record))
        .collect())
}

/// The list as the catalogue of another Fettler has it.
async fn there(app: &App, args: &BackupsArgs) -> Outcome {
    let database = match &args.database {
        Some(name) => Some(select::existing_database(app, name.as_str()).await?.id),
        None => None,
    };
    let mut states = vec![
        BackupState::Complete,
        BackupState::Damaged,
        BackupState::Vanished,
    ];
    states.extend(args.all.then_some(BackupState::Forgotten));
    let filter = BackupFilter {
        tenant: Some(app.tenant().clone()),
        database,
        states,
        limit: args.limit,
        ..BackupFilter::default()
    };
    let records = app.desk().await?.backups(&filter).await?;
    let document = Document {
        repository: records
            .first()
            .map_or_else(String::new, |record| record.place.clone()),
        backups: records.iter().map(Listed::catalogued).collect(),
        points_in_time: Vec::new(),
        unreadable: Vec::new(),
    };
    app.output.result(&document, || text(&document));
    Ok(Exit::Done)
}

pub(crate) async fn run(app: &App, args: &BackupsArgs) -> Outcome {
    if app.remote().is_some() {
        return there(app, args).await;
    }
    let place = app.settings().repository_place();
    let known = known(app).await?;
    let (listing, points_in_time) = match app.repository(Use::Read).await {
        Ok(repository) => {
            let mut listing = repository.backups().await?;
            listing.backups.retain(|one| !is_cleanup_archive(one));
            let meant = listing.backups.iter().filter(|summary| {
                let name = args.database.as_ref();
                name.is_none_or(|name| name.as_str() == summary.database_name)
            });
            let points = PointsInTime::of(&repository, meant).await?;
            (listing, points)
        }
        // Nothing was ever backed up: an empty list is the answer.
        Err(failure) if is_empty_place(&failure) && known.is_empty() => Default::default(),
        Err(failure) => return Err(failure),
    };
    let mut backups: Vec<Listed> = listing
        .backups
        .iter()
        .map(|summary| Listed::of(summary, known.get(&summary.id)))
        .collect();
    for record in known.values() {
        let there = listing
            .backups
            .iter()
            .any(|summary| summary.id == record.facts.id);
        let is_forgotten = record.state == BackupState::Forgotten;
        // What vanished is never hidden; what was forgotten is.
        if !there && (args.all || !is_forgotten) {
            backups.push(Listed::gone(record));
        }
    }
    if let Some(database) = &args.database {
        backups.retain(|backup| backup.database == database.as_str());
    }
    backups.sort_by_key(|backup| std::cmp::Reverse((backup.started, backup.backup)));
    backups.truncate(args.limit);
    let unreadable: Vec<Unreadable> = listing
        .unreadable
        .iter()
        .map(|one| Unreadable {
            object: one.object.clone(),
            what: one.error.to_string(),
        })
        .collect();
    let found_wrong = !unreadable.is_empty();
    let document = Document {
        repository: place,
        backups,
        points_in_time,
        unreadable,
    };
    app.output.result(&document, || text(&document));
    Ok(if found_wrong {
        Exit::FoundWrong
    } else {
        Exit::Done
    })
}

/// Whether a failure says no more than that nothing was stored so far.
pub(crate) fn is_empty_place(failure: &Failure) -> bool {
    let codes = [
        RepositoryError::Missing {
            place: String::new(),
        }
        .code()
        .to_owned(),
        "repository.no_such_tenant".to_owned(),
    ];
    codes.contains(&failure.problem.code)
}

fn text(document: &Document) -> String {
    let mut text = if document.backups.is_empty() {
        format!(
            "No backups in {}. `fettler backup URL` makes one.",
            document.repository
        )
    } else {
        table(
            &[
                "backup", "database", "engine", "when", "read", "new", "stored", "state", "proof",
                "tags",
            ],
            document.backups.iter().map(|backup| {
                vec![
                    backup.backup.short(),
                    backup.database.clone(),
                    backup.engine.clone(),
                    units::moment(backup.started),
                    units::size(backup.bytes_read),
                    units::size(backup.bytes_new),
                    units::size(backup.bytes_stored),
                    match (backup.state, backup.held) {
                        (BackupState::Complete, true) => "complete, held".to_owned(),
                        (BackupState::Complete, false) => "complete".to_owned(),
                        (other, _) => other.as_str().to_uppercase(),
                    },
                    backup.proof.as_ref().map_or("-", Proof::word).to_owned(),
                    backup.tags.join(" "),
                ]
            }),
        )
    };
    for one in &document.points_in_time {
        text.push_str(&format!("\n{}: {}", one.database, one.text()));
    }
    for one in &document.unreadable {
        text.push_str(&format!("\nUNREADABLE  {}: {}", one.object, one.what));
    }
    text
}
