//! The restore: collections are made, and divided between shards as they were where the target has some; documents go back several collections at a time, then indexes and views.
//!
//! A document is put in once: from the stream of what was written while the backup ran where that has it, from its collection's
//! stream otherwise. Documents that an attempt that was lost had written already are replaced by themselves, but for capped
//! collections, whose order is a part of them: these are begun again.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use bson::{RawArrayBuf, RawDocumentBuf, rawdoc};
use fettler_engine::{
    BackupReport, ChangeSource, EngineContext, EngineError, RestoreOptions, RestoreReport,
    StreamSource, Target,
};
use fettler_model::Warning;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;

use crate::{
    backup::{BackupData, CATALOGUE, CHANGES, by_namespace},
    catalog::{self, Collection, Kind},
    changes::{
        log_position,
        play::{Reach, Scope, Stage, play},
    },
    error::code,
    identify::require_writable,
    insert::Inserter,
    params::Params,
    raw::{Cutter, id_key},
    read::Sessions,
    sandbox,
    select::Selection,
    session::Session,
    shards::map,
};

/// How to go on where something is in the way.
const REPLACE_IT: &str = "name another server or another database, or say that what is there may be replaced (`--overwrite`)";
/// Namespaces named in a message.
const NAMED: usize = 5;

/// How far a restore has come.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Checkpoint {
    /// The target, since a checkpoint for another one is of no use.
    target: String,
    /// What was chosen.
    only: Vec<String>,
    /// Whether what was in the way is gone.
    prepared: bool,
    /// Streams that are done.
    done: BTreeSet<String>,
    /// The moment of the backup, where changes are played on it.
    #[serde(default)]
    base: Option<u64>,
    /// Up to where they are played; nothing where that was not begun.
    #[serde(default)]
    pub(crate) played: Option<u64>,
}

/// A collection and where it goes.
#[derive(Clone, Debug)]
pub(crate) struct Job {
    pub(crate) from: Collection,
    pub(crate) database: String,
    pub(crate) streams: Vec<String>,
}

impl Job {
    pub(crate) fn place(&self) -> String {
        format!("{}.{}", self.database, self.from.name)
    }
}

/// What a restore is made with.
struct Plan<'a> {
    context: &'a EngineContext,
    backup: &'a dyn StreamSource,
    sessions: Sessions,
    /// The keys of documents that were written while the backup ran, by namespace of the backup.
    changed: HashMap<String, HashSet<[u8; 16]>>,
    checkpoint: Mutex<Checkpoint>,
}

/// Puts a backup back.
pub(crate) async fn restore(
    context: &EngineContext,
    backup: &dyn StreamSource,
    report: &BackupReport,
    target: &Target,
    options: &RestoreOptions,
) -> Result<RestoreReport, EngineError> {
    restore_with(context, backup, report, None, target, options).await
}

/// Puts a backup back, and plays changes on it.
pub(crate) async fn restore_to_moment(
    context: &EngineContext,
    backup: &dyn StreamSource,
    report: &BackupReport,
    changes: &dyn ChangeSource,
    target: &Target,
    options: &RestoreOptions,
) -> Result<RestoreReport, EngineError> {
    let position = log_position(report).ok_or_else(|| EngineError::Unusable {
        what: "the backup is not of a whole server at one moment".to_owned(),
        remedy: "name another backup, or restore this one without `--to-time`".to_owned(),
    })?;
    let reach = Reach {
        since: changes.begin(),
        position: position.offset,
        end: changes.end(),
        played: 0,
    };
    restore_with(
        context,
        backup,
        report,
        Some((changes, reach)),
        target,
        options,
    )
    .await
}

async fn restore_with(
    context: &EngineContext,
    backup: &dyn StreamSource,
    report: &BackupReport,
    changes: Option<(&dyn ChangeSource, Reach)>,
    target: &Target,
    options: &RestoreOptions,
) -> Result<RestoreReport, EngineError> {
    context.check_stop()?;
    let data = BackupData::of(report)?;
    let params = Params::of(target)?;
    let selection = Selection::of_restore(&options.only)?;
    let mut session = Session::of_attempt(&params, context).await?;
    require_writable(&session)?;
    let mut jobs = jobs(backup, &data, &params, &selection).await?;
    let is_sandbox = sandbox::is_scratch(&params);
    let puts_expiry_off = is_sandbox || options.still;
    let scope = Scope::new(&params, &selection, &jobs);
    // What cannot be played is told before anything is touched.
    let made = match changes {
        Some((changes, reach)) => {
            play(context, &scope, jobs.clone(), changes, reach, None)
                .await?
                .made
        }
        None => BTreeSet::new(),
    };

    let mut checkpoint = Checkpoint {
        target: target.url.to_string(),
        only: options.only.clone(),
        base: changes.map(|(_, reach)| reach.position),
        ..Checkpoint::default()
    };
    let mut overwrite = options.overwrite;
    if let Some(left) = context.checkpoints.load().await?
        && let Ok(left) = Checkpoint::deserialize(left)
        && !options.start_again
        && (&left.target, &left.only) == (&checkpoint.target, &checkpoint.only)
    {
        if left.base == checkpoint.base {
            checkpoint = left;
        } else {
            // Another backup is nearer to the moment by now: what is there is this restore's own.
            overwrite |= left.prepared;
        }
    }
    let is_continued = checkpoint.prepared;
    // From then on what there is is no longer what the backup has.
    let is_played_on = checkpoint.played.is_some();
    context.progress.begin("prepare", 0, 0);
    if !is_continued {
        make_room(context, &mut session, &jobs, &made, overwrite).await?;
        checkpoint.prepared = true;
        save(context, &checkpoint).await?;
    }
    for job in jobs
        .iter()
        .filter(|job| !is_played_on && job.from.kind != Kind::View)
    {
        let is_begun_again = job.from.kind == Kind::Capped
            && is_continued
            && job
                .streams
                .iter()
                .any(|stream| !checkpoint.done.contains(stream));
        if is_begun_again {
            drop_collection(context, &mut session, &job.database, &job.from.name).await?;
        }
        create(context, &mut session, job, puts_expiry_off).await?;
    }
    let bytes = backup.streams().iter().map(|one| one.bytes).sum();
    context.progress.begin("writing", bytes, 0);
    let plan = Plan {
        context,
        backup,
        sessions: Sessions::new(&params),
        changed: changed(backup).await?,
        checkpoint: Mutex::new(checkpoint),
    };
    let mut outcome = RestoreReport::default();
    if !is_played_on {
        outcome = write_streams(&plan, &jobs).await?;
        let meanwhile = write_changes(&plan, &mut session, &jobs).await?;
        outcome.rows += meanwhile.rows;
        outcome.bytes += meanwhile.bytes;
    }
    if let Some((changes, mut reach)) = changes {
        context.progress.begin("playing the changes", 0, 0);
        reach.played = plan.checkpoint.lock().await.played.unwrap_or(0);
        let stage = Stage {
            session: &mut session,
            checkpoint: &plan.checkpoint,
        };
        let played = play(context, &scope, jobs, changes, reach, Some(stage)).await?;
        jobs = played.jobs;
        outcome.rows += played.rows;
        outcome.bytes += played.bytes;
        outcome.warnings.extend(played.warnings);
    }

    context.progress.begin("indexes and views", 0, 0);
    for job in &jobs {
        if job.from.kind == Kind::View {
            if let Err(refusal) = make(context, &mut session, job, puts_expiry_off).await? {
                outcome
                    .failed_statements
                    .push(format!("making the view {}: {refusal}", job.place()));
            }
        } else {
            build_indexes(context, &mut session, job, puts_expiry_off, &mut outcome).await?;
        }
    }
    if options.only.is_empty() && !is_sandbox {
        outcome.warnings.push(Warning {
            code: "mongodb.users_not_restored".to_owned(),
            message: "users and roles of the backup were not restored: make them on the target"
                .to_owned(),
        });
        outcome
            .warnings
            .extend(left_alone(&mut session, &jobs).await?);
    }
    Ok(outcome)
}

pub(crate) async fn save(
    context: &EngineContext,
    checkpoint: &Checkpoint,
) -> Result<(), EngineError> {
    let checkpoint = serde_json::to_value(checkpoint).expect("plain data can be JSON");
    context.checkpoints.save(checkpoint).await
}

/// What is to be restored, and where to.
pub(crate) async fn jobs(
    backup: &dyn StreamSource,
    data: &BackupData,
    params: &Params,
    selection: &Selection,
) -> Result<Vec<Job>, EngineError> {
    let all = catalogue(backup).await?;
    let names: Vec<(&str, &str)> = all
        .iter()
        .map(|one| (one.database.as_str(), one.name.as_str()))
        .collect();
    if let Some(unknown) = selection.unknown(&names) {
        let mut there: Vec<String> = all.iter().map(Collection::namespace).collect();
        there.truncate(NAMED * 4);
        return Err(EngineError::Missing {
            code: "selection",
            what: format!("the backup has nothing that {unknown:?} names"),
            remedy: format!("it has {}", there.join(", ")),
        });
    }
    let streams = by_namespace(data);
    let chosen: Vec<Collection> = all
        .into_iter()
        .filter(|one| selection.has(&one.database, &one.name))
        .collect();
    let databases: BTreeSet<&str> = chosen.iter().map(|one| one.database.as_str()).collect();
    if params.database.is_some() && databases.len() > 1 {
        return Err(EngineError::Missing {
            code: "selection",
            what: format!(
                "the target names one database, and {} are to be restored",
                databases.len()
            ),
            remedy: "leave the database out of the target's URL, or choose one with `--only shop`"
                .to_owned(),
        });
    }
    Ok(chosen
        .into_iter()
        .map(|from| Job {
            database: match &params.database {
                Some(one) => one.clone(),
                None => params.placed(&from.database),
            },
            streams: streams
                .get(&from.namespace())
                .map(|one| one.streams.clone())
                .unwrap_or_default(),
            from,
        })
        .collect())
}

/// The collections and views of a backup.
pub(crate) async fn catalogue(backup: &dyn StreamSource) -> Result<Vec<Collection>, EngineError> {
    let mut found = Vec::new();
    let mut bytes = backup.read(CATALOGUE).await?;
    let mut cutter = Cutter::default();
    while let Some(piece) = bytes.try_next().await? {
        cutter.feed(&piece);
        while let Some(stored) = cutter.next().map_err(|what| unusable(CATALOGUE, &what))? {
            found.push(
                Collection::of_stored(stored)
                    .ok_or_else(|| unusable(CATALOGUE, "an entry that cannot be read"))?,
            );
        }
    }
    whole(&cutter, CATALOGUE)?;
    Ok(found)
}

pub(crate) fn whole(cutter: &Cutter, stream: &str) -> Result<(), EngineError> {
    if cutter.is_empty() {
        Ok(())
    } else {
        Err(unusable(stream, "it ends in the middle of a document"))
    }
}

pub(crate) fn unusable(stream: &str, what: &str) -> EngineError {
    EngineError::Unusable {
        what: format!("the stream {stream} cannot be read: {what}"),
        remedy: "verify the backup, and take another one".to_owned(),
    }
}

/// The keys of what was written while the backup ran.
async fn changed(
    backup: &dyn StreamSource,
) -> Result<HashMap<String, HashSet<[u8; 16]>>, EngineError> {
    let mut found: HashMap<String, HashSet<[u8; 16]>> = HashMap::new();
    if !backup.streams().iter().any(|stream| stream.name == CHANGES) {
        return Ok(found);
    }
    let mut bytes = backup.read(CHANGES).await?;
    let mut cutter = Cutter::default();
    while let Some(piece) = bytes.try_next().await? {
        cutter.feed(&piece);
        while let Some(stored) = cutter.next().map_err(|what| unusable(CHANGES, &what))? {
            let key = stored
                .get_document("id")
                .ok()
                .and_then(|id| id_key(id).ok()?);
            let (Ok(namespace), Some(key)) = (stored.get_str("namespace"), key) else {
                return Err(unusable(CHANGES, "an entry that cannot be read"));
            };
            match found.get_mut(namespace) {
                Some(keys) => {
                    keys.insert(key);
                }
                None => {
                    found.insert(namespace.to_owned(), HashSet::from([key]));
                }
            }
        }
    }
    whole(&cutter, CHANGES)?;
    Ok(found)
}

/// Refuses what is in the way, or removes it where that was allowed. All is looked at before anything is removed.
async fn make_room(
    context: &EngineContext,
    session: &mut Session,
    jobs: &[Job],
    made: &BTreeSet<(String, String)>,
    overwrite: bool,
) -> Result<(), EngineError> {
    let mut places = made.clone();
    places.extend(
        jobs.iter()
            .map(|job| (job.database.clone(), job.from.name.clone())),
    );
    let mut there: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for (database, _) in &places {
        if !there.contains_key(database.as_str()) {
            let found = catalog::collections(session, database).await?;
            there.insert(database, found.into_iter().map(|one| one.name).collect());
        }
    }
    let in_the_way: Vec<&(String, String)> = places
        .iter()
        .filter(|(database, name)| {
            there
                .get(database.as_str())
                .is_some_and(|names| names.contains(name))
        })
        .collect();
    if !in_the_way.is_empty() && !overwrite {
        let names: Vec<String> = in_the_way
            .iter()
            .map(|(database, name)| format!("{database}.{name}"))
            .collect();
        return Err(EngineError::NotEmpty {
            what: format!("{} has {} already", session.server(), some_of(&names)),
            remedy: REPLACE_IT.to_owned(),
        });
    }
    for (database, name) in in_the_way {
        drop_collection(context, session, database, name).await?;
    }
    Ok(())
}

/// Tells what is in the restored databases and was not in the backup, or not at its moment.
async fn left_alone(session: &mut Session, jobs: &[Job]) -> Result<Option<Warning>, EngineError> {
    let restored: BTreeSet<String> = jobs.iter().map(Job::place).collect();
    let databases: BTreeSet<&str> = jobs.iter().map(|job| job.database.as_str()).collect();
    let mut others = Vec::new();
    for database in databases {
        let there = catalog::collections(session, database).await?;
        others.extend(
            there
                .iter()
                .map(|one| format!("{database}.{}", one.name))
                .filter(|place| !restored.contains(place)),
        );
    }
    Ok((!others.is_empty()).then(|| Warning {
        code: "mongodb.left_alone".to_owned(),
        message: format!(
            "{} had {} already, which the backup does not have: remove what is not wanted",
            session.server(),
            some_of(&others)
        ),
    }))
}

/// The first names, and how many more there are.
fn some_of(names: &[String]) -> String {
    let shown = names[..names.len().min(NAMED)].join(", ");
    match names.len().saturating_sub(NAMED) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

async fn drop_collection(
    context: &EngineContext,
    session: &mut Session,
    database: &str,
    name: &str,
) -> Result<(), EngineError> {
    context.check_stop()?;
    context.fence.check().await?;
    let command = rawdoc! { "drop": name };
    match session.try_run(database, command).await? {
        Err(refusal) if refusal.code != code::NAMESPACE_NOT_FOUND => {
            Err(refusal.doing(session.server(), format!("removing {database}.{name}")))
        }
        _ => Ok(()),
    }
}

async fn make(
    context: &EngineContext,
    session: &mut Session,
    job: &Job,
    puts_expiry_off: bool,
) -> Result<Result<(), crate::error::Refusal>, EngineError> {
    context.check_stop()?;
    context.fence.check().await?;
    let command = job.from.create(puts_expiry_off);
    match session.try_run(&job.database, command).await? {
        // An earlier attempt has made it.
        Err(refusal) if refusal.code != code::NAMESPACE_EXISTS => Ok(Err(refusal)),
        _ => Ok(Ok(())),
    }
}

async fn create(
    context: &EngineContext,
    session: &mut Session,
    job: &Job,
    puts_expiry_off: bool,
) -> Result<(), EngineError> {
    make(context, session, job, puts_expiry_off)
        .await?
        .map_err(|refusal| refusal.doing(session.server(), format!("making {}", job.place())))?;
    match &job.from.division {
        Some(division) if session.hello.is_router => {
            map::divide(session, &job.database, &job.from, division).await
        }
        _ => Ok(()),
    }
}

/// Writes the streams that are not done yet.
async fn write_streams(plan: &Plan<'_>, jobs: &[Job]) -> Result<RestoreReport, EngineError> {
    let done = plan.checkpoint.lock().await.done.clone();
    let tasks: Vec<(usize, String)> = jobs
        .iter()
        .enumerate()
        .flat_map(|(at, job)| job.streams.iter().map(move |stream| (at, stream.clone())))
        .filter(|(_, stream)| !done.contains(stream))
        .collect();
    stream::iter(tasks)
        .map(|(at, name)| async move {
            let written = plan.stream(&jobs[at], &name).await?;
            let mut checkpoint = plan.checkpoint.lock().await;
            checkpoint.done.insert(name);
            save(plan.context, &checkpoint).await?;
            Ok(written)
        })
        .buffer_unordered(plan.context.parallel.max(1))
        .try_fold(
            RestoreReport::default(),
            |mut all, (rows, bytes)| async move {
                all.rows += rows;
                all.bytes += bytes;
                Ok(all)
            },
        )
        .await
}

impl Plan<'_> {
    /// Writes the documents of a stream that were not written while the backup ran; gives their number and bytes.
    async fn stream(&self, job: &Job, name: &str) -> Result<(u64, u64), EngineError> {
        let mut session = self.sessions.take(self.context).await?;
        self.context.progress.item(&job.place());
        let changed = self.changed.get(&job.from.namespace());
        let is_ordered = job.from.kind == Kind::Capped;
        let mut inserter = Inserter::new(self.context, &job.database, &job.from.name, is_ordered);
        let mut bytes = self.backup.read(name).await?;
        let mut cutter = Cutter::default();
        while let Some(piece) = bytes.try_next().await? {
            cutter.feed(&piece);
            while let Some(document) = cutter.next().map_err(|what| unusable(name, &what))? {
                if let Some(changed) = changed {
                    let key = id_key(document).map_err(|what| unusable(name, &what))?;
                    if key.is_some_and(|key| changed.contains(&key)) {
                        continue;
                    }
                }
                inserter.push(&mut session, document).await?;
            }
        }
        whole(&cutter, name)?;
        inserter.flush(&mut session).await?;
        self.sessions.give_back(session);
        Ok((inserter.rows, inserter.bytes))
    }
}

/// Writes what was written while the backup ran, as it was at the backup's moment.
async fn write_changes(
    plan: &Plan<'_>,
    session: &mut Session,
    jobs: &[Job],
) -> Result<RestoreReport, EngineError> {
    let mut report = RestoreReport::default();
    if plan.changed.is_empty() || plan.checkpoint.lock().await.done.contains(CHANGES) {
        return Ok(report);
    }
    let jobs: HashMap<String, &Job> = jobs.iter().map(|job| (job.from.namespace(), job)).collect();
    let mut inserter: Option<(String, Inserter<'_>)> = None;
    let mut bytes = plan.backup.read(CHANGES).await?;
    let mut cutter = Cutter::default();
    while let Some(piece) = bytes.try_next().await? {
        cutter.feed(&piece);
        while let Some(stored) = cutter.next().map_err(|what| unusable(CHANGES, &what))? {
            let Ok(namespace) = stored.get_str("namespace") else {
                return Err(unusable(CHANGES, "an entry that cannot be read"));
            };
            let (Some(job), Ok(document)) = (jobs.get(namespace), stored.get_document("document"))
            else {
                continue;
            };
            if inserter.as_ref().is_none_or(|(of, _)| of != namespace) {
                if let Some((_, mut full)) = inserter.take() {
                    full.flush(session).await?;
                    report.rows += full.rows;
                    report.bytes += full.bytes;
                }
                let fresh = Inserter::new(plan.context, &job.database, &job.from.name, false);
                inserter = Some((namespace.to_owned(), fresh));
            }
            if let Some((_, inserter)) = &mut inserter {
                inserter.push(session, document).await?;
            }
        }
    }
    whole(&cutter, CHANGES)?;
    if let Some((_, mut full)) = inserter {
        full.flush(session).await?;
        report.rows += full.rows;
        report.bytes += full.bytes;
    }
    let mut checkpoint = plan.checkpoint.lock().await;
    checkpoint.done.insert(CHANGES.to_owned());
    save(plan.context, &checkpoint).await?;
    Ok(report)
}

/// Builds a collection's indexes: all at once, and one by one where that is refused, so that each refusal is told.
async fn build_indexes(
    context: &EngineContext,
    session: &mut Session,
    job: &Job,
    puts_expiry_off: bool,
    outcome: &mut RestoreReport,
) -> Result<(), EngineError> {
    let mut indexes = job.from.indexes_to_make(puts_expiry_off);
    if indexes.is_empty() {
        return Ok(());
    }
    context.check_stop()?;
    // What an earlier attempt has built is there.
    let there = catalog::indexes(session, &job.database, &job.from.name, job.from.kind).await?;
    indexes.retain(|index| {
        let name = index.get_str("name").ok();
        !there.iter().any(|other| other.get_str("name").ok() == name)
    });
    if indexes.is_empty() {
        return Ok(());
    }
    context.progress.item(&job.place());
    if try_indexes(context, session, job, &indexes).await?.is_ok() {
        return Ok(());
    }
    for index in &indexes {
        if let Err(refusal) =
            try_indexes(context, session, job, std::slice::from_ref(index)).await?
        {
            let name = index.get_str("name").unwrap_or("without a name");
            // A message of the server's may hold values.
            outcome.failed_statements.push(format!(
                "building the index {name} of {}: refused ({} {})",
                job.place(),
                refusal.code,
                refusal.name
            ));
        }
    }
    Ok(())
}

async fn try_indexes(
    context: &EngineContext,
    session: &mut Session,
    job: &Job,
    indexes: &[RawDocumentBuf],
) -> Result<crate::session::Answer, EngineError> {
    context.fence.check().await?;
    let mut list = RawArrayBuf::new();
    for index in indexes {
        list.push(index.clone());
    }
    let mut command = rawdoc! { "createIndexes": job.from.name.as_str() };
    crate::raw::put(&mut command, "indexes", list);
    context
        .progress
        .while_waiting(session.exchange(&job.database, command, None))
        .await
}
