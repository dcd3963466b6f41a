//! A copy in a server that people use: what of it is compared.
//!
//! Keys expire in a living server whatever was restored, so that the sum over all keys of the source is no measure of the copy
//! some seconds later. Both sides are therefore summed over the keys that outlive the comparison: the copy as commands read
//! it, the source from the streams of the backup, key by key. How many were left out is told.

use std::collections::BTreeMap;

use fettler_engine::{
    BackupReport, CopyFacts, EngineContext, EngineError, RowHasher, StreamSource, Target,
};
use fettler_model::{ObjectFacts, ObjectKind};
use futures::TryStreamExt as _;

use crate::{
    backup::BackupData,
    connect::Session,
    facts::{self, Living},
    found::{self, Found},
    locate::{Purpose, locate},
    records::{KeyHasher, Kind, RecordEvent, RecordReader, StoredError},
    restore::{KEY_STREAMS, databases, now},
    select::Selection,
    server_data::functions_of,
};

/// Keys that expire within this time from the beginning of the comparison are left out of it; where it takes longer, it is made
/// again with a longer time.
const FIRST_HORIZON_MILLISECONDS: i64 = 60_000;
/// How much longer.
const LONGER: i64 = 8;
/// How often.
const TRIES: u32 = 4;

/// The objects that a restore of `only` brings back as a whole: databases of which all keys are meant.
pub(crate) fn chosen(
    report: &BackupReport,
    only: &[String],
) -> Result<Vec<ObjectFacts>, EngineError> {
    let selection = Selection::of_restore(only)?;
    let is_chosen = |object: &&ObjectFacts| match number_of(&object.name) {
        Some(number) => selection.has_all_of(number),
        None => object.value.is_none() || selection.functions,
    };
    Ok(report.objects.iter().filter(is_chosen).cloned().collect())
}

/// The number of `db3` and of `db3/hash`.
fn number_of(name: &str) -> Option<u32> {
    name.strip_prefix("db")?.split('/').next()?.parse().ok()
}

/// Compares the keys that outlive the comparison.
pub(crate) async fn compare(
    context: &EngineContext,
    backup: &dyn StreamSource,
    report: &BackupReport,
    target: &Target,
    only: &[String],
) -> Result<CopyFacts, EngineError> {
    let data = BackupData::of(report)?;
    let params = locate(target, Purpose::Write, &context.stop).await?;
    let selection = Selection::of_restore(only)?;
    let places = databases(report, &data, &params, &selection)?;
    let mut session = Session::of_attempt(&params, context).await?;
    let (mut margin, mut tries) = (FIRST_HORIZON_MILLISECONDS, 0);
    let (copy, horizon) = loop {
        let horizon = now(&mut session).await? + margin;
        let living = Living {
            selection: selection.clone(),
            horizon,
        };
        let copy = facts::living(context, &params, &places, living).await?;
        if now(&mut session).await? < horizon {
            break (copy, horizon);
        }
        (margin, tries) = (margin * LONGER, tries + 1);
        if tries == TRIES {
            return Err(EngineError::Database {
                what: "keys of the copy expire faster than it can be read".to_owned(),
                transient: true,
            });
        }
    };
    let mut source = read(context, backup, &selection, horizon).await?;
    for (number, database) in &copy {
        if !database.kinds.is_empty() {
            source.found.entry(*number).or_default();
        }
    }
    let mut expected = Vec::new();
    for object in found::objects(&source.found) {
        let number = number_of(&object.name).unwrap_or_default();
        let is_whole = selection.has_all_of(number) && !source.left_out.contains_key(&number);
        let told = report
            .objects
            .iter()
            .find(|told| is_whole && told.kind == object.kind && told.name == object.name);
        expected.push(told.cloned().unwrap_or(object));
    }
    let mut compared = CopyFacts {
        found: found::objects(&copy),
        expected,
        ..CopyFacts::default()
    };
    if selection.functions {
        let libraries = functions_of(&mut session)
            .await?
            .map_err(|refusal| refusal.doing(session.server(), "listing functions"))?;
        let code: Vec<Vec<u8>> = libraries.into_iter().map(|(_, code)| code).collect();
        compared
            .found
            .push(found::functions(&context.fingerprint_key, &code));
        compared.expected.extend(
            report
                .objects
                .iter()
                .filter(|object| object.kind == ObjectKind::Schema && object.value.is_some())
                .cloned(),
        );
    }
    let left_out: u64 = source.left_out.values().sum();
    if left_out > 0 {
        compared.notes.push(format!(
            "{left_out} keys that expire within {} s of the comparison were not compared",
            margin / 1000
        ));
    }
    Ok(compared)
}

/// What a backup has of the keys that are compared.
#[derive(Default)]
struct Source {
    found: Found,
    /// How many expire before the comparison is over, by database.
    left_out: BTreeMap<u32, u64>,
}

async fn read(
    context: &EngineContext,
    backup: &dyn StreamSource,
    selection: &Selection,
    horizon: i64,
) -> Result<Source, EngineError> {
    let mut source = Source::default();
    let mut hasher = KeyHasher::new(RowHasher::new(&context.fingerprint_key));
    // The database and the kind of the key that is read; none of one that is not compared.
    let mut key: Option<(u32, Kind)> = None;
    for stream in backup.streams() {
        if !stream.name.starts_with(KEY_STREAMS) {
            continue;
        }
        let unusable = |error: StoredError| EngineError::Unusable {
            what: format!("the stream {} cannot be read: {error}", stream.name),
            remedy: "copy again".to_owned(),
        };
        let mut reader = RecordReader::new();
        let mut bytes = backup.read(&stream.name).await?;
        while let Some(piece) = bytes.try_next().await? {
            context.check_stop()?;
            context.progress.pulse();
            reader
                .feed(&piece, &mut |event| {
                    match event {
                        RecordEvent::Begin(head, _) => {
                            key = None;
                            let is_chosen = selection.has(head.database, head.key);
                            let expires = head.expiry.is_some_and(|moment| moment <= horizon);
                            match (is_chosen, expires) {
                                (false, _) => {}
                                (true, true) => {
                                    *source.left_out.entry(head.database).or_default() += 1;
                                }
                                (true, false) => {
                                    key = Some((head.database, head.kind));
                                    hasher.begin(&head);
                                }
                            }
                        }
                        RecordEvent::Element(element) if key.is_some() => hasher.element(&element),
                        RecordEvent::Element(_) => {}
                        RecordEvent::End => {
                            if let Some((database, kind)) = key.take() {
                                let database = source.found.entry(database).or_default();
                                hasher.end(database.kinds.entry(kind).or_default());
                            }
                        }
                    }
                    Ok(())
                })
                .map_err(unusable)?;
        }
        reader.finish().map_err(unusable)?;
    }
    Ok(source)
}
