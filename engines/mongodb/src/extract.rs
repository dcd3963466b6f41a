//! One collection of a backup as BSON, as `mongodump` writes a collection's file, or as NDJSON, a document of canonical
//! extended JSON (version 2) on each line.
//!
//! The documents are those of the backup's moment: what was written while the backup ran stands in a stream of its own
//! (see [`crate::backup`]), which is read once for the keys and once for what they were.

mod json;

use std::collections::HashSet;

use bson::RawDocument;
use fettler_engine::{
    BackupReport, EngineContext, EngineError, ExtractFormat, ExtractReport, Extraction, PartWriter,
    StreamSource, no_such_part, several_parts,
};
use futures::TryStreamExt as _;
use tokio::io::AsyncWrite;

use crate::{
    backup::{BackupData, CHANGES, CollectionData},
    raw::{Cutter, id_key},
    restore::{unusable, whole},
    select::Selection,
};

/// The forms, the usual one first.
pub(crate) const FORMATS: [ExtractFormat; 2] = [ExtractFormat::Bson, ExtractFormat::Ndjson];

/// Writes a collection.
pub(crate) async fn extract(
    context: &EngineContext,
    backup: &dyn StreamSource,
    report: &BackupReport,
    what: &Extraction,
    out: &mut (dyn AsyncWrite + Send + Unpin),
) -> Result<ExtractReport, EngineError> {
    let data = BackupData::of(report)?;
    let collection = chosen(&data, report, &what.part)?;
    let namespace = format!("{}.{}", collection.database, collection.name);
    let changed = changed(context, backup, &namespace).await?;
    let mut writer = PartWriter::new(context, out);
    for name in &collection.streams {
        let mut bytes = backup.read(name).await?;
        let mut cutter = Cutter::default();
        while let Some(piece) = bytes.try_next().await? {
            cutter.feed(&piece);
            while let Some(document) = cutter.next().map_err(|what| unusable(name, &what))? {
                if !changed.is_empty() {
                    let key = id_key(document).map_err(|what| unusable(name, &what))?;
                    if key.is_some_and(|key| changed.contains(&key)) {
                        continue;
                    }
                }
                put(document, what.format, &mut writer.buffer)
                    .map_err(|what| unusable(name, &what))?;
                writer.rows += 1;
                writer.settle().await?;
            }
        }
        whole(&cutter, name)?;
    }
    if !changed.is_empty() {
        let mut bytes = backup.read(CHANGES).await?;
        let mut cutter = Cutter::default();
        while let Some(piece) = bytes.try_next().await? {
            cutter.feed(&piece);
            while let Some(stored) = cutter.next().map_err(|what| unusable(CHANGES, &what))? {
                // What was not there at the backup's moment has no document.
                let (Ok(of), Ok(document)) =
                    (stored.get_str("namespace"), stored.get_document("document"))
                else {
                    continue;
                };
                if of == namespace {
                    put(document, what.format, &mut writer.buffer)
                        .map_err(|what| unusable(CHANGES, &what))?;
                    writer.rows += 1;
                    writer.settle().await?;
                }
            }
        }
        whole(&cutter, CHANGES)?;
    }
    writer.finish().await
}

fn put(document: &RawDocument, format: ExtractFormat, to: &mut Vec<u8>) -> Result<(), String> {
    if format == ExtractFormat::Ndjson {
        json::put_document(document, to)?;
        to.push(b'\n');
    } else {
        to.extend_from_slice(document.as_bytes());
    }
    Ok(())
}

/// The one collection that is meant.
fn chosen<'a>(
    data: &'a BackupData,
    report: &BackupReport,
    part: &str,
) -> Result<&'a CollectionData, EngineError> {
    let names: Vec<String> = data
        .collections
        .iter()
        .map(|one| format!("{}.{}", one.database, one.name))
        .collect();
    if let Some(at) = names.iter().position(|name| name == part) {
        return Ok(&data.collections[at]);
    }
    // Views and collections that were left out are told by their definitions only.
    if report.objects.iter().any(|object| object.name == part) {
        return Err(EngineError::Missing {
            code: "part",
            what: format!("the backup holds the definition of {part} and no documents of it"),
            remedy: "a view's documents are those of its collection; `fettler browse` shows which parts have documents"
                .to_owned(),
        });
    }
    let selection = Selection::of_restore(&[part.to_owned()])?;
    let meant: Vec<usize> = data
        .collections
        .iter()
        .enumerate()
        .filter(|(_, one)| selection.has(&one.database, &one.name))
        .map(|(at, _)| at)
        .collect();
    match meant.as_slice() {
        [] => Err(no_such_part(part, &names)),
        [one] => Ok(&data.collections[*one]),
        several => {
            let names: Vec<&String> = several.iter().map(|at| &names[*at]).collect();
            Err(several_parts(part, &names))
        }
    }
}

/// The keys of the documents of one collection that were written while the backup ran.
async fn changed(
    context: &EngineContext,
    backup: &dyn StreamSource,
    namespace: &str,
) -> Result<HashSet<[u8; 16]>, EngineError> {
    let mut found = HashSet::new();
    if !backup.streams().iter().any(|stream| stream.name == CHANGES) {
        return Ok(found);
    }
    let mut bytes = backup.read(CHANGES).await?;
    let mut cutter = Cutter::default();
    while let Some(piece) = bytes.try_next().await? {
        context.check_stop()?;
        cutter.feed(&piece);
        while let Some(stored) = cutter.next().map_err(|what| unusable(CHANGES, &what))? {
            if !stored.get_str("namespace").is_ok_and(|of| of == namespace) {
                continue;
            }
            let key = stored
                .get_document("id")
                .ok()
                .and_then(|id| id_key(id).ok()?)
                .ok_or_else(|| unusable(CHANGES, "an entry that cannot be read"))?;
            found.insert(key);
        }
    }
    whole(&cutter, CHANGES)?;
    Ok(found)
}
