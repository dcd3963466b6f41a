//! A copy in a server that people use: what of it is compared, and what is let go afterwards.
//!
//! Documents that expire by themselves (TTL indexes, time series and clustered collections with a limit of age) are kept until
//! the comparison is over: they are restored with an expiry that is put off, as in the sandbox of a proof.

use bson::{RawDocumentBuf, rawdoc};
use fettler_engine::{BackupReport, CopyFacts, EngineContext, EngineError, StreamSource, Target};
use fettler_model::{ObjectFacts, ObjectKind};

use crate::{
    backup::BackupData,
    catalog::{Collection, EXPIRY, Kind},
    facts, found,
    params::Params,
    raw,
    restore::{Job, jobs},
    select::Selection,
    session::Session,
};

/// The objects that a restore of `only` brings back. How many collections there are is a matter of the whole server.
pub(crate) fn chosen(
    report: &BackupReport,
    only: &[String],
) -> Result<Vec<ObjectFacts>, EngineError> {
    let selection = Selection::of_restore(only)?;
    let is_chosen = |object: &&ObjectFacts| match object.name.split_once('.') {
        _ if object.kind == ObjectKind::Schema && found::is_of_the_server(&object.name) => false,
        Some((database, collection)) => selection.has(database, collection),
        None => only.is_empty(),
    };
    Ok(report.objects.iter().filter(is_chosen).cloned().collect())
}

/// Compares, and lets documents expire again.
pub(crate) async fn compare(
    context: &EngineContext,
    backup: &dyn StreamSource,
    report: &BackupReport,
    target: &Target,
    only: &[String],
) -> Result<CopyFacts, EngineError> {
    let expected = chosen(report, only)?;
    // Where the target's URL names a database, that of the source is known by being the only one.
    let mut data = BackupData::of(report)?;
    data.databases.retain(|database| {
        only.is_empty()
            || expected.iter().any(|object| {
                object
                    .name
                    .split_once('.')
                    .is_some_and(|(of, _)| of == database)
            })
    });
    let narrowed = BackupReport {
        engine_data: serde_json::to_value(&data).expect("plain data can be JSON"),
        ..report.clone()
    };
    let read = facts::facts(context, target, &narrowed).await;
    let let_go = let_expire(context, backup, report, target, only).await;
    let found = read?;
    let_go?;
    let mut compared = CopyFacts::of(expected, found, false);
    compared.beside.retain(|name| name.contains('.'));
    Ok(compared)
}

/// Gives expiries that were put off their own values.
async fn let_expire(
    context: &EngineContext,
    backup: &dyn StreamSource,
    report: &BackupReport,
    target: &Target,
    only: &[String],
) -> Result<(), EngineError> {
    let params = Params::of(target)?;
    let selection = Selection::of_restore(only)?;
    let data = BackupData::of(report)?;
    let restored = jobs(backup, &data, &params, &selection).await?;
    let mut session = None;
    for job in restored.iter().filter(|job| job.from.kind != Kind::View) {
        for command in commands(&job.from) {
            let session = match &mut session {
                Some(session) => session,
                None => session.insert(Session::of_attempt(&params, context).await?),
            };
            context.fence.check().await?;
            if let Err(refusal) = session.exchange(&job.database, command, None).await? {
                make_again(context, session, job, &refusal.to_string()).await?;
            }
        }
    }
    Ok(())
}

/// What changes the expiries of a collection to those of the source.
fn commands(from: &Collection) -> Vec<RawDocumentBuf> {
    let mut commands = Vec::new();
    if let Ok(Some(seconds)) = from.options.get(EXPIRY) {
        let mut command = rawdoc! { "collMod": from.name.as_str() };
        raw::put(&mut command, EXPIRY, seconds);
        commands.push(command);
    }
    for index in from.indexes_to_make(false) {
        let (Ok(Some(seconds)), Ok(name)) = (index.get(EXPIRY), index.get_str("name")) else {
            continue;
        };
        let mut changed = rawdoc! { "name": name };
        raw::put(&mut changed, EXPIRY, seconds);
        let mut command = rawdoc! { "collMod": from.name.as_str() };
        raw::put(&mut command, "index", changed);
        commands.push(command);
    }
    commands
}

/// Drops and makes the indexes that expire, on a server that cannot change them.
async fn make_again(
    context: &EngineContext,
    session: &mut Session,
    job: &Job,
    why: &str,
) -> Result<(), EngineError> {
    for index in job.from.indexes_to_make(false) {
        let (Ok(Some(_)), Ok(name)) = (index.get(EXPIRY), index.get_str("name")) else {
            continue;
        };
        context.fence.check().await?;
        let doing = format!(
            "letting documents of {} expire again ({why})",
            job.from.namespace()
        );
        let drop = rawdoc! { "dropIndexes": job.from.name.as_str(), "index": name };
        session.run(&job.database, drop, &doing).await?;
        let mut list = bson::RawArrayBuf::new();
        list.push(index.clone());
        let mut create = rawdoc! { "createIndexes": job.from.name.as_str() };
        raw::put(&mut create, "indexes", list);
        session.run(&job.database, create, &doing).await?;
    }
    Ok(())
}
