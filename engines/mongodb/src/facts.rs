//! Reads a restored copy and says what is inside: each collection in one go and in the server's own order, whatever ranges the
//! backup was read in.

use std::collections::BTreeSet;

use bson::rawdoc;
use fettler_engine::{BackupReport, EngineContext, EngineError, RowHasher, Target};
use fettler_model::{Fingerprint, ObjectFacts};

use crate::{
    backup::{BackupData, by_namespace},
    catalog::{self, Collection, Kind},
    follow::count,
    found,
    params::Params,
    read, sandbox,
    session::Session,
};

/// Reads a copy.
pub(crate) async fn facts(
    context: &EngineContext,
    copy: &Target,
    expected: &BackupReport,
) -> Result<Vec<ObjectFacts>, EngineError> {
    context.check_stop()?;
    let data = BackupData::of(expected)?;
    let params = Params::of(copy)?;
    let mut session = Session::of_attempt(&params, context).await?;
    let hasher = RowHasher::new(&context.fingerprint_key);
    let with_documents = by_namespace(&data);
    let mut objects = Vec::new();
    let mut total = 0;
    for (database, name) in places(&mut session, &params, &data).await? {
        let mut there = catalog::collections(&mut session, &name).await?;
        total += there.len();
        for one in &mut there {
            let at = one.clone();
            one.database.clone_from(&database);
            let namespace = one.namespace();
            let digest = one
                .definition(&context.fingerprint_key)
                .map_err(|what| session.unexpected("reading a definition", &what))?;
            objects.push(found::definition(namespace.clone(), digest));
            if one.kind == Kind::View || !with_documents.contains_key(&namespace) {
                continue;
            }
            let (fingerprint, bytes) = documents(context, &mut session, &at, &hasher).await?;
            let counted = count(&mut session, &at.database, &at.name).await?;
            objects.push(found::documents(namespace, fingerprint, counted, bytes));
        }
    }
    objects.insert(0, found::collections(total));
    Ok(objects)
}

/// The databases of the copy: each as the backup calls it, and as it is called there.
async fn places(
    session: &mut Session,
    params: &Params,
    data: &BackupData,
) -> Result<Vec<(String, String)>, EngineError> {
    if let Some(one) = &params.database {
        let from = match data.databases.as_slice() {
            [only] => only.clone(),
            _ => one.clone(),
        };
        return Ok(vec![(from, one.clone())]);
    }
    let mut places: Vec<(String, String)> = data
        .databases
        .iter()
        .map(|database| (database.clone(), params.placed(database)))
        .collect();
    // In a scratch area nothing else may be.
    if sandbox::is_scratch(params) {
        let known: BTreeSet<String> = places.iter().map(|(_, place)| place.clone()).collect();
        for name in catalog::all_databases(session).await? {
            if sandbox::is_in(params, &name) && !known.contains(&name) {
                places.push((name.clone(), name));
            }
        }
    }
    Ok(places)
}

async fn documents(
    context: &EngineContext,
    session: &mut Session,
    collection: &Collection,
    hasher: &RowHasher,
) -> Result<(Fingerprint, u64), EngineError> {
    let doing = format!("reading {} of the copy", collection.namespace());
    context.progress.item(&collection.namespace());
    let command = rawdoc! { "find": collection.name.as_str() };
    let mut cursor = session
        .open_cursor(&collection.database, command, &doing)
        .await?
        .map_err(|refusal| refusal.doing(session.server(), &doing))?;
    let (mut fingerprint, mut total) = (Fingerprint::empty(), 0);
    while let Some(batch) = cursor.next(session).await? {
        context.check_stop()?;
        let (mut rows, mut bytes) = (0, 0);
        for document in batch.documents() {
            let document = document.map_err(|what| session.unexpected(&doing, &what))?;
            let hash = read::hash(hasher, collection.kind, document)
                .map_err(|what| session.unexpected(&doing, &what))?;
            fingerprint.add_row_hash(hash);
            rows += 1;
            bytes += document.as_bytes().len() as u64;
        }
        total += bytes;
        context.progress.add(bytes, rows);
    }
    Ok((fingerprint, total))
}
