//! `fettler catalogue rebuild`: writes the ledger's list of backups anew from the repository alone.

use fettler_jobs::is_cleanup_archive;
use fettler_ledger::DatabaseRecord;
use fettler_model::{BackupFacts, BackupState, DatabaseName, Problem};
use fettler_repository::{Manifest, TenantRepository};
use serde::Serialize;

use crate::{
    app::App,
    failure::{Exit, Failure, Outcome},
    services::Use,
    units,
};

/// The fields of `--json`.
#[derive(Serialize)]
struct Document {
    repository: String,
    /// Backups that are in the list now.
    backups: u64,
    /// Those that were not in it before.
    added: u64,
    /// What could not be read.
    unreadable: Vec<String>,
}

pub(crate) async fn rebuild(app: &App) -> Outcome {
    let repository = app.repository(Use::Read).await?;
    let place = app.settings().repository_place();
    let ledger = app.ledger().await?;
    let databases = ledger.databases(Some(app.tenant())).await?;
    let known = super::backups::known(app).await?;
    let listing = repository.backups().await?;
    let mut document = Document {
        repository: place.clone(),
        backups: 0,
        added: 0,
        unreadable: listing
            .unreadable
            .iter()
            .map(|one| format!("{}: {}", one.object, one.error))
            .collect(),
    };
    let backups = || {
        listing
            .backups
            .iter()
            .filter(|one| !is_cleanup_archive(one))
    };
    for summary in backups() {
        let manifest = repository.manifest(summary.id).await?;
        match facts(app, &manifest, &databases) {
            Ok(facts) => {
                ledger.upsert_backup(&place, &facts, None).await?;
                let (state, why) = if manifest.summary.damaged {
                    (BackupState::Damaged, "the repository records damage of it")
                } else {
                    (BackupState::Complete, "its manifest is in the repository")
                };
                // A known damage is not forgotten because the manifest is readable.
                let stays_damaged = known
                    .get(&summary.id)
                    .is_some_and(|record| record.state == BackupState::Damaged);
                if !stays_damaged {
                    ledger
                        .set_backup_state(summary.id, state, why, None)
                        .await?;
                }
                document.backups += 1;
                document.added += u64::from(!known.contains_key(&summary.id));
            }
            Err(failure) => document
                .unreadable
                .push(format!("{}: {}", summary.id, failure.problem.what)),
        }
    }
    app.output.result(&document, || text(&document));
    Ok(if document.unreadable.is_empty() {
        Exit::Done
    } else {
        Exit::FoundWrong
    })
}

/// Brings into the list what the repository holds and the list does not know (rule 22): what a job
/// finds out about a backup is written there.
pub(crate) async fn complete(app: &App, repository: &TenantRepository) -> Result<(), Failure> {
    let place = app.settings().repository_place();
    let ledger = app.ledger().await?;
    let known = super::backups::known(app).await?;
    let listing = repository.backups().await?;
    let unknown = listing
        .backups
        .iter()
        .filter(|summary| !known.contains_key(&summary.id) && !is_cleanup_archive(summary));
    let databases = ledger.databases(Some(app.tenant())).await?;
    for summary in unknown {
        let manifest = repository.manifest(summary.id).await?;
        match facts(app, &manifest, &databases) {
            Ok(facts) => ledger.upsert_backup(&place, &facts, None).await?,
            // `catalogue rebuild` tells of it; what is asked for may be about another backup.
            Err(failure) => {
                tracing::warn!(backup = %summary.id, what = failure.problem.what, "a backup could not be listed");
            }
        }
    }
    Ok(())
}

/// What the list says of a backup, by its manifest alone.
fn facts(
    app: &App,
    manifest: &Manifest,
    databases: &[DatabaseRecord],
) -> Result<BackupFacts, Failure> {
    let report = fettler_jobs::report_of(manifest)?;
    let summary = &manifest.summary;
    let name: DatabaseName =
        summary
            .database_name
            .parse()
            .map_err(|error: fettler_model::InvalidName| {
                Problem::permanent("catalogue.name", error.to_string(), "")
            })?;
    Ok(BackupFacts {
        id: summary.id,
        tenant: app.tenant().clone(),
        database: databases
            .iter()
            .find(|record| record.name == name && record.url.engine() == report.identity.engine)
            .map(|record| record.id),
        database_name: name,
        engine: report.identity.engine,
        parent: summary.parent,
        started: summary.started,
        finished: summary.finished,
        bytes_read: summary.bytes_read,
        bytes_new: summary.bytes_new,
        bytes_stored: summary.bytes_stored,
        streams: summary.streams,
        tags: summary.tags.clone(),
        warnings: report.warnings,
    })
}

fn text(document: &Document) -> String {
    let mut text = format!(
        "The list holds {} of {}; not in it before: {}.",
        units::things(document.backups, "backup"),
        document.repository,
        units::count(document.added)
    );
    for one in &document.unreadable {
        text.push_str(&format!("\nUNREADABLE  {one}"));
    }
    text
}
