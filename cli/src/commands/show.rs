//! `fettler show`: everything that is known of one backup.

use fettler_engine::BackupReport;
use fettler_model::{BackupId, ObjectFacts, ObjectKind, Warning};
use serde::Serialize;

use crate::{
    app::App,
    args::BackupArg,
    commands::backups::{self, Listed},
    failure::{Exit, Outcome},
    output::{pairs, plain, table},
    select,
    services::Use,
    units,
};

/// The fields of `--json`.
#[derive(Serialize)]
struct Document {
    #[serde(flatten)]
    backup: Listed,
    repository: String,
    version: String,
    identity: String,
    position: serde_json::Value,
    packs: u64,
    pack_bytes: u64,
    objects: Vec<ObjectFacts>,
    stream_list: Vec<Stream>,
    warnings: Vec<Warning>,
}

#[derive(Serialize)]
struct Stream {
    name: String,
    bytes: u64,
    rows: u64,
}

pub(crate) async fn run(app: &App, args: &BackupArg) -> Outcome {
    let repository = app.repository(Use::Read).await?;
    let summary = select::backup(&repository, &args.backup).await?;
    let manifest = repository.manifest(summary.id).await?;
    let report: BackupReport = fettler_jobs::report_of(&manifest)?;
    let known = backups::known(app).await?;
    let document = Document {
        backup: Listed::of(&manifest.summary, known.get(&summary.id)),
        repository: repository.place().to_owned(),
        version: report.identity.version.clone(),
        identity: report.identity.key.clone(),
        position: report.position.clone(),
        packs: manifest.packs.len() as u64,
        pack_bytes: manifest
            .packs
            .iter()
            .map(|pack| pack.bytes_and_used().0)
            .sum(),
        objects: report.objects.clone(),
        stream_list: manifest
            .streams
            .iter()
            .map(|stream| Stream {
                name: stream.name.clone(),
                bytes: stream.bytes,
                rows: stream.rows,
            })
            .collect(),
        warnings: report.warnings.clone(),
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
                backup.database, backup.engine, document.version
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
        ("moment", plain(&document.position)),
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
                units::things(document.packs, "pack"),
                units::size(document.pack_bytes),
                document.repository
            ),
        ),
        ("tags", backup.tags.join(" ")),
        ("look at", warnings.join("\n")),
    ]);
    text.push('\n');
    text.push_str(&table(
        &["what", "name", "rows", "bytes"],
        document.objects.iter().map(|object| {
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
