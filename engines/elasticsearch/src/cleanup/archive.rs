//! The archive of indices: a backup of them alone, and its proof.

use bytes::BytesMut;
use fettler_engine::{
    BackupOptions, CleanupArchive, EngineContext, EngineError, RowHasher, StreamSink, StreamSource,
};
use fettler_model::{Fingerprint, ObjectFacts, ObjectKind};
use futures::TryStreamExt as _;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::{
    backup::{self, Definitions, FORMAT, NOT_REFRESHED, Oddities, StoredUnit},
    catalogue::Catalogue,
    client::Client,
    hits::{Hit, add_to},
    params::Params,
    parts::Parts,
};

use super::IndicesData;

/// Writes the indices of a plan, but for those that are gone or are others by now.
pub(super) async fn write(
    context: &EngineContext,
    client: &Client,
    params: Params,
    data: &IndicesData,
    sink: &dyn StreamSink,
) -> Result<CleanupArchive, EngineError> {
    let catalogue = Catalogue::read(client).await?;
    let is_there = |name: &String, uuid: &String| {
        catalogue
            .units
            .get(name)
            .is_some_and(|unit| unit.indices[0].definition.setting("uuid") == Some(uuid))
    };
    let only: Vec<String> = data
        .indices
        .iter()
        .filter(|going| is_there(&going.name, &going.uuid))
        .map(|going| going.name.clone())
        .collect();
    if only.is_empty() {
        // No name at all would mean every index.
        let nothing = Definitions {
            format: FORMAT,
            units: Vec::new(),
            parts: Parts::new(),
        };
        nothing.store(sink).await?;
        return Ok(CleanupArchive {
            objects: Vec::new(),
            position: serde_json::Value::Null,
            rows: 0,
        });
    }
    let params = Params { only, ..params };
    let options = BackupOptions::default();
    let report = backup::backup_of(context, &params, &options, sink, Oddities::default()).await?;
    let not_refreshed = report
        .warnings
        .iter()
        .find(|told| told.code == NOT_REFRESHED);
    if let Some(warning) = not_refreshed {
        return Err(EngineError::Missing {
            code: "permission",
            what: warning.message.clone(),
            remedy: "give the user the privilege `maintenance` (`indices:admin/refresh*`)"
                .to_owned(),
        });
    }
    let mut rows = 0;
    for object in &report.objects {
        let Some(print) = object.fingerprint else {
            continue;
        };
        rows += print.rows;
        if let Some(counted) = object
            .independent_rows
            .filter(|counted| *counted != print.rows)
        {
            return Err(EngineError::Database {
                what: format!(
                    "archiving {}: {} documents were read where the server counts {counted}",
                    object.name, print.rows
                ),
                transient: true,
            });
        }
    }
    Ok(CleanupArchive {
        objects: report.objects,
        position: report.position,
        rows,
    })
}

/// Reads the archive back, and finds whether it holds what was read.
pub(super) async fn prove(
    context: &EngineContext,
    archive: &dyn StreamSource,
    objects: &[ObjectFacts],
) -> Result<(), EngineError> {
    let definitions = Definitions::of_backup(archive).await?;
    for object in objects.iter().filter(|one| one.kind == ObjectKind::Table) {
        let unit = definitions
            .units
            .iter()
            .find(|unit| unit.name == object.name);
        let print = match unit {
            Some(unit) => Some(fingerprint(context, archive, unit).await?),
            None => None,
        };
        if print.is_none() || object.fingerprint != print {
            return Err(EngineError::Unusable {
                what: format!(
                    "the archive of {} is not what was read of the server; nothing was removed",
                    object.name
                ),
                remedy: "run `fettler check` on the repository, then start the cleanup anew"
                    .to_owned(),
            });
        }
    }
    Ok(())
}

/// The first of a document's two lines.
#[derive(Deserialize)]
struct Head {
    index: Named,
}

#[derive(Deserialize)]
struct Named {
    #[serde(rename = "_id")]
    id: String,
    routing: Option<String>,
}

/// The fingerprint of an index's documents as the archive holds them.
pub(super) async fn fingerprint(
    context: &EngineContext,
    archive: &dyn StreamSource,
    unit: &StoredUnit,
) -> Result<Fingerprint, EngineError> {
    let unusable = |stream: &str| EngineError::Unusable {
        what: format!("{stream} of the archive holds what is no document"),
        remedy: "run `fettler check` on the repository".to_owned(),
    };
    let hasher = RowHasher::new(&context.fingerprint_key);
    let mut print = Fingerprint::empty();
    let mut room = Vec::new();
    for name in &unit.streams {
        let mut pieces = archive.read(name).await?;
        let (mut held, mut seen, mut head) = (BytesMut::new(), 0, None);
        while let Some(piece) = pieces.try_next().await? {
            context.check_stop()?;
            context.progress.add(piece.len() as u64, 0);
            held.extend_from_slice(&piece);
            while let Some(at) = held[seen..].iter().position(|byte| *byte == b'\n') {
                let line = held.split_to(seen + at + 1);
                seen = 0;
                let Some(Head { index }) = head.take() else {
                    head = Some(serde_json::from_slice::<Head>(&line).map_err(|_| unusable(name))?);
                    continue;
                };
                let source: &RawValue =
                    serde_json::from_slice(&line).map_err(|_| unusable(name))?;
                let hit = Hit {
                    index: "".into(),
                    id: index.id.into(),
                    routing: index.routing.map(Into::into),
                    version: None,
                    seq_no: None,
                    source: Some(source),
                    sort: None,
                };
                add_to(&mut print, &hasher, &hit, &mut room).map_err(|_| unusable(name))?;
            }
            seen = held.len();
        }
        if head.is_some() || !held.is_empty() {
            return Err(unusable(name));
        }
    }
    Ok(print)
}
