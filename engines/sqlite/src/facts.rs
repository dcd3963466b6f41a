//! What a backup says of its content, and what a proof reads from the restored copy.

use std::path::PathBuf;

use fettler_engine::{BackupReport, EngineContext, EngineError};
use fettler_model::{ObjectFacts, ObjectKind};
use serde::{Deserialize, Serialize};

use crate::{
    blocking,
    pages::{interrupt_when_halted, scanners},
    scan::{self, Check, Found, Scan},
    snapshot::{Header, Snapshot},
};

/// The name of the fact that SQLite's own check found nothing. A backup always expects that; so the
/// copy of a database that was damaged already is never proven.
const INTEGRITY: &str = "integrity";

/// Its value where all is well.
const SOUND: &str = "ok";

/// What a restore needs to know.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct EngineData {
    /// What the file was.
    pub(crate) header: Header,
    /// Whether SQLite's own check of the source ran and found nothing.
    pub(crate) sound: bool,
}

impl EngineData {
    /// Reads what the backup left.
    pub(crate) fn of(report: &BackupReport) -> Result<Self, EngineError> {
        Self::deserialize(&report.engine_data).map_err(|error| EngineError::Unusable {
            what: format!("the backup's notes for SQLite cannot be read: {error}"),
            remedy: "restore it with the version of Fettler that made it".to_owned(),
        })
    }
}

/// What the backup leaves for a restore.
pub(crate) fn engine_data(header: &Header, found: &Found) -> serde_json::Value {
    serde_json::to_value(EngineData {
        header: header.clone(),
        sound: found.complaints.is_empty() && found.unchecked.is_none(),
    })
    .expect("plain data can be written as JSON")
}

/// What a backup expects of its copies.
pub(crate) fn of_source(found: Found) -> Vec<ObjectFacts> {
    let mut objects = found.objects;
    if found.unchecked.is_none() {
        objects.push(integrity(SOUND.to_owned()));
    }
    objects
}

/// What is in a restored copy.
pub(crate) async fn of_copy(
    context: &EngineContext,
    path: PathBuf,
    expected: &BackupReport,
) -> Result<Vec<ObjectFacts>, EngineError> {
    context.check_stop()?;
    let halt = context.stop.child_token();
    let _stops_the_threads = halt.clone().drop_guard();
    let check_asked = expected
        .objects
        .iter()
        .any(|object| object.kind == ObjectKind::Schema && object.name == INTEGRITY);
    let opened = path.clone();
    let wanted = scanners(context);
    let mut snapshot = blocking(move || Snapshot::together(&opened, wanted)).await?;
    interrupt_when_halted(&snapshot.connections, &halt);
    let working = context.clone();
    let scanned = blocking(move || {
        scan::scan(
            &Scan {
                path: &path,
                key: &working.fingerprint_key,
                progress: &working.progress,
                halt: &halt,
                check: check_asked.then_some(Check::Full),
                counted: None,
            },
            &mut snapshot.connections,
        )
    })
    .await;
    let found = match scanned {
        Err(_) if context.stop.is_cancelled() => return Err(EngineError::Stopped),
        other => other?,
    };
    let mut objects = found.objects;
    if check_asked {
        objects.push(integrity(match found.unchecked {
            Some(why) => format!("not checked ({why})"),
            None if found.complaints.is_empty() => SOUND.to_owned(),
            None => found.complaints.join("; "),
        }));
    }
    Ok(objects)
}

fn integrity(value: String) -> ObjectFacts {
    ObjectFacts {
        kind: ObjectKind::Schema,
        name: INTEGRITY.to_owned(),
        fingerprint: None,
        independent_rows: None,
        bytes: 0,
        value: Some(value),
        format: None,
    }
}
