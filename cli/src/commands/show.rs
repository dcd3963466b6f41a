//! `fettler show`: everything that is known of one backup.

use fettler_jobs::{BackupPlace, InspectArguments, InspectOutput};
use fettler_model::{BackupId, ObjectKind};
use serde::Serialize;

use crate::{
    app::App,
    args::BackupArg,
    commands::{
        backups::{self, Listed},
        result_of,
    },
    failure::{Exit, Outcome},
    output::{pairs, plain, table},
    run::{self, Asked},
    select,
    services::Use,
    units,
};

/// The fields of `--json`.
#[derive(Serialize)]
struct Document {
    #[serde(flatten)]
    backup: Listed,
    #[serde(flatten)]
    inside: InspectOutput,
    /// The seconds to which its database can be restored, where its changes are archived.
    points_in_time: Option<backups::PointsInTime>,
}

pub(crate) async fn run(app: &App, args: &BackupArg) -> Outcome {
    let document = if let Some(remote) = app.remote() {
        let record = select::backup_there(app, remote, &args.backup).await?;
        let arguments = InspectArguments {
            place: BackupPlace(None),
            backup: record.facts.id,
        };
        let title = format!("show {}", record.facts.id.short());
        let job = run::run(app, &Asked::about("inspect", &arguments, title)).await?;
        Document {
            backup: Listed::catalogued(&record),
            inside: result_of(&job)?,
            points_in_time: None,
        }
    } else {
        let repository = app.repository(Use::Read).await?;
        let summary = select::backup(&repository, &args.backup).await?;
        let manifest = repository.manifest(summary.id).await?;
        let known = backups::known(app).await?;
        Document {
            backup: Listed::of(&manifest.summary, known.get(&summary.id)),
            inside: InspectOutput::of(&repository, &manifest)?,
            points_in_time: backups::PointsInTime::of(
                &repository,
                std::iter::once(&manifest.summary),
            )
            .await?
            .pop(),
        }
    };
    app.output.result(&document, || text(&document));
    Ok(Exit::Done)
}

fn text(document: &Document) -> String {
    let backup = &document.backup;
    let proof = backup.proof.as_ref().map_or_else(
        || "never proven".to_owned(),
        |proof| {
            format!(
                "{} at {}, restored in {}",
                proof.word(),
                units::moment(proof.finished),
                units::span(std::time::Duration::from_secs_f64(
                    proof.restore_seconds.max(0.0)
                ))
            )
        },
    );
    let warnings: Vec<&str> = document
        .inside
        .warnings
        .iter()
        .map(|warning| warning.message.as_str())
        .collect();
    let mut text = pairs(&[
        ("backup", backup.backup.to_string()),
        (
            "database",
            format!(
                "{} ({} {})",
                backup.database, backup.engine, document.inside.version
            ),
        ),
        ("state", backup.state.as_str().to_owned()),
        ("held", if backup.held { "yes" } else { "" }.to_owned()),
        ("proof", proof),
        (
            "made",
            format!(
                "{} to {}",
                units::moment(backup.started),
                units::moment(backup.finished)
            ),
        ),
        ("moment", plain(&document.inside.position)),
        (
            "parent",
            backup
                .parent
                .map_or_else(|| "none".to_owned(), BackupId::short),
        ),
        (
            "bytes",
            format!(
                "{} read, {} new, {} stored",
                units::size(backup.bytes_read),
                units::size(backup.bytes_new),
                units::size(backup.bytes_stored)
            ),
        ),
        (
            "needs",
            format!(
                "{} of {} in {}",
                units::things(document.inside.packs, "pack"),
                units::size(document.inside.pack_bytes),
                document.inside.repository
            ),
        ),
        (
            "points in time",
            document
                .points_in_time
                .as_ref()
                .map_or_else(String::new, backups::PointsInTime::text),
        ),
        ("tags", backup.tags.join(" ")),
        ("look at", warnings.join("\n")),
    ]);
    text.push('\n');
    text.push_str(&table(
        &["what", "name", "rows", "bytes"],
        document.inside.objects.iter().map(|object| {
            vec![
                kind_word(object.kind).to_owned(),
                object.name.clone(),
                object
                    .fingerprint
                    .map_or_else(String::new, |print| units::count(print.rows)),
                if object.bytes > 0 {
                    units::size(object.bytes)
                } else {
                    String::new()
                },
            ]
        }),
    ));
    text
}

/// A kind of object in a word.
pub(crate) const fn kind_word(kind: ObjectKind) -> &'static str {
    match kind {
        ObjectKind::Table => "table",
        ObjectKind::LargeObjects => "large objects",
        ObjectKind::Sequence => "sequence",
        ObjectKind::Schema => "schema",
        ObjectKind::MaterializedView => "materialised view",
    }
}
