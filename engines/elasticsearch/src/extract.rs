//! One index or data stream of a backup as NDJSON: the lines of a bulk request, as they are stored. Sent to
//! `POST /INDEX/_bulk`, they put the documents back; every second line is a document as it was written.

use fettler_engine::{
    BackupReport, EngineContext, EngineError, ExtractFormat, ExtractReport, Extraction, PartWriter,
    StreamSource, no_such_part, several_parts,
};
use futures::TryStreamExt as _;
use tokio::io::AsyncWrite;

use crate::{
    backup::{BackupData, Definitions},
    select::fits,
};

/// The form.
pub(crate) const FORMATS: [ExtractFormat; 1] = [ExtractFormat::Ndjson];
/// Lines of a document.
const LINES: u64 = 2;

/// Writes the documents.
pub(crate) async fn extract(
    context: &EngineContext,
    backup: &dyn StreamSource,
    report: &BackupReport,
    what: &Extraction,
    out: &mut (dyn AsyncWrite + Send + Unpin),
) -> Result<ExtractReport, EngineError> {
    if let Some(snapshot) = BackupData::of(report)?.snapshot {
        return Err(EngineError::Missing {
            code: "streams",
            what: format!(
                "the documents of this backup are in the server's own snapshot {} in {}",
                snapshot.name, snapshot.repository
            ),
            remedy: "restore the index (`fettler restore BACKUP --to URL --only NAME`), or take a part of a backup that Fettler read itself".to_owned(),
        });
    }
    let definitions = Definitions::of_backup(backup).await?;
    let names: Vec<&str> = definitions
        .units
        .iter()
        .map(|unit| unit.name.as_str())
        .collect();
    let meant: Vec<usize> = match names.iter().position(|name| *name == what.part) {
        Some(at) => vec![at],
        None => (0..names.len())
            .filter(|at| fits(&what.part, names[*at]))
            .collect(),
    };
    let unit = match meant.as_slice() {
        [] => return Err(no_such_part(&what.part, &names)),
        [one] => &definitions.units[*one],
        several => {
            let names: Vec<&str> = several.iter().map(|at| names[*at]).collect();
            return Err(several_parts(&what.part, &names));
        }
    };
    let mut writer = PartWriter::new(context, out);
    for name in &unit.streams {
        let mut lines = 0;
        let mut pieces = backup.read(name).await?;
        while let Some(piece) = pieces.try_next().await? {
            lines += piece.iter().filter(|byte| **byte == b'\n').count() as u64;
            writer.pass(&piece).await?;
        }
        if !lines.is_multiple_of(LINES) {
            return Err(EngineError::Unusable {
                what: format!("the stream {name} ends in the middle of a document"),
                remedy: "verify the backup, and take another one".to_owned(),
            });
        }
        writer.rows += lines / LINES;
    }
    writer.finish().await
}
