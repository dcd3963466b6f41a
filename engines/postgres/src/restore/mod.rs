//! Putting a backup back.
//!
//! 1. The database is made, or found empty; a marker in it says whose work it is (see [`place`]).
//! 2. `pg_restore` makes the definitions: everything but indexes, constraints, triggers and rules.
//! 3. Several sessions copy the rows in (see [`rows`]); sequences and large objects follow.
//! 4. `pg_restore` makes the rest, in parallel.
//! 5. Materialised views are computed, statistics gathered, the database gets its own settings, the marker goes.
//!
//! An attempt that follows another goes on where that one was: half-made definitions are removed, streams that
//! were copied are skipped, statements of the rest that find their object there already are forgiven.
//!
//! In a private sandbox (see [`crate::sandbox`]) nothing of the dump's own code runs as a superuser (rule 31).

pub(crate) mod archive;
mod batches;
mod large_rows;
mod place;
mod rows;
mod select;

use std::sync::atomic::Ordering::Relaxed;

use fettler_engine::{
    BackupReport, Ending, EngineContext, EngineError, RestoreOptions, RestoreReport, StreamSource,
    Target,
};
use fettler_model::Warning;
use futures::StreamExt;
use tokio::io::AsyncWriteExt;

use crate::{
    PostgresEngine,
    catalogue::ServerFacts,
    connect::connect,
    data::{BackupData, DatabaseData, MaterializedView, SCHEMA_STREAM, SequenceData, TableData},
    names::{display_name, literal, qualified, quote_ident},
    params::Params,
    sandbox,
    sessions::end_predecessors_on,
    wire::Session,
};

use archive::{Archive, Login, Section};
use large_rows::LargeTables;
use place::{Content, MARKER_SCHEMA, Stage, advance};
use rows::LargeObjects;
use select::Selection;

/// Memory for building an index is raised to this, where the server's buffers are at least as large.
const MAINTENANCE_MEMORY_BYTES: u64 = 256 * 1024 * 1024;

/// Where the restore works, and what is to happen at its end.
struct Place {
    /// The database that is filled.
    params: Params,
    /// The name that it gets at the end, in the place of a database that is there.
    replaces: Option<String>,
    session: Session,
    stage: Stage,
    /// Whether an earlier attempt has worked here.
    resumed: bool,
}

/// Puts a backup back.
pub(crate) async fn restore(
    engine: &PostgresEngine,
    context: &EngineContext,
    backup: &dyn StreamSource,
    report: &BackupReport,
    target: &Target,
    options: &RestoreOptions,
) -> Result<RestoreReport, EngineError> {
    let data = BackupData::of(report)?;
    let params = Params::of(target)?;
    if let Some(ending) = Ending::load(context).await?
        && has_ended(context, &params).await?
    {
        return Ok(ending.report);
    }
    let mut answer = RestoreReport::default();
    context.progress.begin("prepare", 0, 0);
    let tool = engine
        .tools
        .find("pg_restore", data.dump_major, data.dump_major)
        .await?;
    let mut archive = Archive {
        path: context.scratch.join(SCHEMA_STREAM),
        tool,
        options: Vec::new(),
        settings: Vec::new(),
        superuser_settings: Vec::new(),
    };
    fetch(context, backup, SCHEMA_STREAM, &archive.path).await?;

    let selection = Selection::of(
        context,
        &archive,
        backup,
        &data,
        options,
        &mut answer.warnings,
    )
    .await?;
    let part = selection.as_ref();
    let mut place = match part {
        None => {
            find_place(
                context,
                &params,
                &data,
                report,
                options,
                &mut answer.warnings,
            )
            .await?
        }
        Some(part) => {
            find_place_of_part(
                context,
                &params,
                &data,
                report,
                options,
                part,
                &mut answer.warnings,
            )
            .await?
        }
    };
    let server = ServerFacts::read(&mut place.session).await?;
    let kind = sandbox::kind_of(&mut place.session).await?;
    prepare_archive(
        &mut archive,
        &mut place.session,
        &server,
        &data,
        kind,
        &mut answer.warnings,
    )
    .await?;
    let guard = sandbox::Guard::new(kind, &data);

    if place.stage <= Stage::Made {
        guard.make_roles(&mut place.session).await?;
        advance(context, &mut place.session, Stage::Definitions, &[]).await?;
        context.progress.begin("definitions", 0, 0);
        let list = part
            .map(|part| part.write_before(&context.scratch))
            .transpose()?;
        let mut failures = archive
            .restore(
                context,
                &own_login(&place),
                Section::PreData,
                list.as_deref(),
                1,
            )
            .await?;
        if part.is_some() {
            // The schemas and types that the part needs may be there already.
            failures.forgive_repetitions();
        } else if !data.schema.catalogue.contains_key("schema public") {
            place
                .session
                .execute("DROP SCHEMA IF EXISTS public")
                .await
                .map_err(|error| error.doing("removing the schema public"))?;
        }
        advance(context, &mut place.session, Stage::Rows, &failures.words()).await?;
        place.stage = Stage::Rows;
    }
    guard.lower(&mut place.session).await?;
    let data_params = guard.params(&place.params);

    if place.stage == Stage::Rows {
        guard.open_marker(&mut place.session, MARKER_SCHEMA).await?;
        let chosen = |table: &TableData| {
            !table.excluded && part.is_none_or(|part| part.has_table(table.oid))
        };
        let large_objects = match (part, kind) {
            (Some(_), _) => LargeObjects::None,
            (None, sandbox::Kind::Shared) => LargeObjects::Alone,
            (None, _) => LargeObjects::WithOwners,
        };
        let large = LargeTables::prepare(&mut place.session, kind, &data, &chosen).await?;
        let written = rows::load(
            context,
            &data_params,
            backup,
            &data,
            &chosen,
            large_objects,
            &large,
        )
        .await?;
        large.finish(&mut place.session).await?;
        answer.bytes = written.bytes.load(Relaxed);
        answer.rows = written.rows.load(Relaxed);
        let mut failed = written.refusals();
        let sequences: Vec<&SequenceData> = data
            .sequences
            .iter()
            .filter(|sequence| {
                part.is_none_or(|part| part.has_name(&sequence.schema, &sequence.name))
            })
            .collect();
        let mut session = connect(&data_params, &context.attempt.to_string()).await?;
        failed.extend(rows::set_sequences(&mut session, &sequences).await?);
        session.close().await;
        advance(context, &mut place.session, Stage::Indexes, &failed).await?;
        place.stage = Stage::Indexes;
    }
    if place.stage == Stage::Indexes {
        fettler_fault_points::reached(fettler_fault_points::Point::RestoreDataDone);
        context.progress.begin("indexes", 0, 0);
        let own = own_login(&place);
        // An index is built for as long as it takes, and says nothing meanwhile.
        let mut failed = context
            .progress
            .while_waiting(guard.post_data(
                context,
                &archive,
                part.map(|part| part.after.as_slice()),
                &mut place.session,
                &own,
                place.resumed,
            ))
            .await?;
        let mut session = connect(&data_params, &context.attempt.to_string()).await?;
        keep_triggers_quiet(&mut session).await?;
        let views: Vec<&MaterializedView> = data
            .views
            .iter()
            .filter(|view| {
                view.populated && part.is_none_or(|part| part.has_name(&view.schema, &view.name))
            })
            .collect();
        failed.extend(refresh(context, &mut session, views).await?);
        let analyzed = part.map(Selection::analyzed).unwrap_or_default();
        analyze(context, &mut session, &analyzed).await?;
        session.close().await;
        advance(context, &mut place.session, Stage::Finish, &failed).await?;
        place.stage = Stage::Finish;
    }
    context.progress.begin("finish", 0, 0);
    let with_properties = part.is_none() && kind != sandbox::Kind::Shared;
    let properties = with_properties.then_some(&data.database);
    finish(context, &params, place, &guard, properties, answer).await
}

/// Whether a restore that came to its end has removed its marker.
async fn has_ended(context: &EngineContext, params: &Params) -> Result<bool, EngineError> {
    let Some(mut session) = place::connect_if_there(params, &context.attempt.to_string()).await?
    else {
        return Ok(false);
    };
    end_predecessors_on(&mut session, context).await?;
    let content = place::examine(&mut session).await?;
    session.close().await;
    Ok(matches!(content, Content::Something(_)))
}

/// The restore's own role, for `pg_restore`.
fn own_login(place: &Place) -> Login {
    Login {
        params: place.params.clone(),
        is_own: true,
    }
}

/// Writes a stream into a file.
async fn fetch(
    context: &EngineContext,
    backup: &dyn StreamSource,
    name: &str,
    path: &std::path::Path,
) -> Result<(), EngineError> {
    let failed = |error| EngineError::local(format!("writing {}", path.display()), error);
    let mut file = tokio::fs::File::create(path).await.map_err(failed)?;
    let mut reader = backup.read(name).await?;
    while let Some(bytes) = reader.next().await {
        context.check_stop()?;
        file.write_all(&bytes?).await.map_err(failed)?;
    }
    file.flush().await.map_err(failed)
}

/// Which backup it is that is being restored, for the marker.
fn backup_mark(report: &BackupReport) -> String {
    let text = format!("{}\n{}", report.identity.key, report.position);
    blake3::hash(text.as_bytes()).to_hex()[..32].to_owned()
}

/// Finds or makes the database, and takes it over from an earlier attempt.
async fn find_place(
    context: &EngineContext,
    params: &Params,
    data: &BackupData,
    report: &BackupReport,
    options: &RestoreOptions,
    warnings: &mut Vec<Warning>,
) -> Result<Place, EngineError> {
    let name = context.attempt.to_string();
    let beside_params = params.with_database(&place::name_beside(
        &params.database,
        "new",
        &context.attempt,
    ));
    let mut found = place::connect_if_there(params, &name).await?;
    if let Some(session) = &mut found {
        end_predecessors_on(session, context).await?;
    }
    let content = match &mut found {
        None => None,
        Some(session) => Some(place::examine(session).await?),
    };
    let is_ours = |marker: &place::Marker| {
        marker.job == context.attempt.job.to_string() && marker.backup == backup_mark(report)
    };
    match (found, content) {
        // An overwriting restore may have been cut off between its two renamings.
        (None, _) if options.overwrite => {
            if let Some(mut session) = place::connect_if_there(&beside_params, &name).await? {
                end_predecessors_on(&mut session, context).await?;
                if let Content::HalfRestored(marker) = place::examine(&mut session).await?
                    && is_ours(&marker)
                {
                    return resume(
                        context,
                        beside_params,
                        Some(params.database.clone()),
                        session,
                        marker.stage,
                    )
                    .await;
                }
            }
            make_place(context, params.clone(), None, data, report, warnings).await
        }
        (None, _) | (Some(_), None) => {
            make_place(context, params.clone(), None, data, report, warnings).await
        }
        (Some(session), Some(Content::HalfRestored(marker)))
            if is_ours(&marker) && !options.start_again =>
        {
            resume(context, params.clone(), None, session, marker.stage).await
        }
        (Some(mut session), Some(Content::HalfRestored(marker)))
            if is_ours(&marker) || options.start_again || options.overwrite =>
        {
            place::take_over(&mut session, &context.attempt).await?;
            place::wipe(&mut session).await?;
            place::mark(&mut session, &context.attempt, &backup_mark(report)).await?;
            Ok(Place {
                params: params.clone(),
                replaces: None,
                session,
                stage: Stage::Made,
                resumed: false,
            })
        }
        (Some(_), Some(Content::HalfRestored(marker))) => Err(EngineError::NotEmpty {
            what: format!(
                "the database {} holds a restore that job {} began and did not end",
                quote_ident(&params.database),
                marker.job
            ),
            remedy: "retry that job, or start again (which removes what it restored)".to_owned(),
        }),
        (Some(mut session), Some(Content::Nothing)) => {
            context.fence.check().await?;
            place::mark(&mut session, &context.attempt, &backup_mark(report)).await?;
            Ok(Place {
                params: params.clone(),
                replaces: None,
                session,
                stage: Stage::Made,
                resumed: false,
            })
        }
        (Some(session), Some(Content::Something(what))) => {
            session.close().await;
            if !options.overwrite {
                return Err(EngineError::NotEmpty {
                    what: format!("the database {} is not empty: it holds {what}", quote_ident(&params.database)),
                    remedy: "restore into a new database (another name in the URL), or overwrite this one".to_owned(),
                });
            }
            // What is there stays until the new one is whole.
            if let Some(mut session) = place::connect_if_there(&beside_params, &name).await? {
                end_predecessors_on(&mut session, context).await?;
                if let Content::HalfRestored(marker) = place::examine(&mut session).await?
                    && is_ours(&marker)
                    && !options.start_again
                {
                    return resume(
                        context,
                        beside_params,
                        Some(params.database.clone()),
                        session,
                        marker.stage,
                    )
                    .await;
                }
                session.close().await;
                drop_database(context, &beside_params).await?;
            }
            make_place(
                context,
                beside_params,
                Some(params.database.clone()),
                data,
                report,
                warnings,
            )
            .await
        }
    }
}

/// Finds the database that a part is restored into: whatever else is in it stays.
async fn find_place_of_part(
    context: &EngineContext,
    params: &Params,
    data: &BackupData,
    report: &BackupReport,
    options: &RestoreOptions,
    part: &Selection,
    warnings: &mut Vec<Warning>,
) -> Result<Place, EngineError> {
    let Some(mut session) = place::connect_if_there(params, &context.attempt.to_string()).await?
    else {
        return make_place(context, params.clone(), None, data, report, warnings).await;
    };
    end_predecessors_on(&mut session, context).await?;
    let is_ours = |marker: &place::Marker| {
        marker.job == context.attempt.job.to_string() && marker.backup == backup_mark(report)
    };
    match place::examine(&mut session).await? {
        Content::HalfRestored(marker) if is_ours(&marker) => {
            context.fence.check().await?;
            place::take_over(&mut session, &context.attempt).await?;
            let goes_on = marker.stage > Stage::Definitions && !options.start_again;
            if goes_on {
                return Ok(Place {
                    params: params.clone(),
                    replaces: None,
                    session,
                    stage: marker.stage,
                    resumed: true,
                });
            }
            part.drop(&mut session).await?;
        }
        Content::HalfRestored(marker) if !options.start_again => {
            return Err(EngineError::NotEmpty {
                what: format!(
                    "the database {} holds a restore that job {} began and did not end",
                    quote_ident(&params.database),
                    marker.job
                ),
                remedy: "retry that job, or start again".to_owned(),
            });
        }
        _ => {
            let there = part.there(&mut session).await?;
            if !there.is_empty() {
                if !options.overwrite && !options.start_again {
                    return Err(EngineError::NotEmpty {
                        what: format!(
                            "the database {} has {} already",
                            quote_ident(&params.database),
                            there.join(", ")
                        ),
                        remedy: "restore into another database, or overwrite these".to_owned(),
                    });
                }
                context.fence.check().await?;
                part.drop(&mut session).await?;
            }
        }
    }
    place::mark(&mut session, &context.attempt, &backup_mark(report)).await?;
    Ok(Place {
        params: params.clone(),
        replaces: None,
        session,
        stage: Stage::Made,
        resumed: false,
    })
}

async fn drop_database(context: &EngineContext, params: &Params) -> Result<(), EngineError> {
    context.fence.check().await?;
    let mut beside = place::connect_beside(params, &context.attempt.to_string()).await?;
    drop_database_on(&mut beside, &params.database).await?;
    beside.close().await;
    Ok(())
}

pub(crate) async fn drop_database_on(
    beside: &mut Session,
    database: &str,
) -> Result<(), EngineError> {
    let doing = format!("dropping the database {}", quote_ident(database));
    end_sessions_of(beside, database).await?;
    beside
        .execute(&format!(
            "DROP DATABASE IF EXISTS {}",
            quote_ident(database)
        ))
        .await
        .map_err(|error| error.doing(&doing))
}

/// Ends all sessions of a database that is renamed or dropped next.
async fn end_sessions_of(beside: &mut Session, database: &str) -> Result<(), EngineError> {
    const LOOKS: u32 = 200;
    for _ in 0..LOOKS {
        let left = beside
            .query(&format!(
                "SELECT pg_catalog.pg_terminate_backend(pid) FROM pg_catalog.pg_stat_activity
                 WHERE datname = {} AND pid <> pg_catalog.pg_backend_pid()",
                literal(database)
            ))
            .await
            .map_err(|error| error.doing("ending the database's sessions"))?;
        if left.is_empty() {
            return Ok(());
        }
        tokio::time::sleep(std::time::Duration::from_millis(25)).await;
    }
    Err(EngineError::Busy {
        what: format!(
            "others keep connecting to the database {}",
            quote_ident(database)
        ),
        wait: std::time::Duration::from_secs(60),
    })
}

async fn make_place(
    context: &EngineContext,
    params: Params,
    replaces: Option<String>,
    data: &BackupData,
    report: &BackupReport,
    warnings: &mut Vec<Warning>,
) -> Result<Place, EngineError> {
    context.fence.check().await?;
    let name = context.attempt.to_string();
    let mut beside = place::connect_beside(&params, &name).await?;
    let kind = sandbox::kind_of(&mut beside).await?;
    // In a sandbox the roles come first, so that there is an owner to give the database to.
    sandbox::Guard::new(kind, data)
        .make_roles(&mut beside)
        .await?;
    let give_owner = kind != sandbox::Kind::Shared;
    place::create(&mut beside, &params.database, data, give_owner, warnings).await?;
    beside.close().await;
    let mut session = connect(&params, &name).await?;
    place::mark(&mut session, &context.attempt, &backup_mark(report)).await?;
    Ok(Place {
        params,
        replaces,
        session,
        stage: Stage::Made,
        resumed: false,
    })
}

async fn resume(
    context: &EngineContext,
    params: Params,
    replaces: Option<String>,
    mut session: Session,
    stage: Stage,
) -> Result<Place, EngineError> {
    context.fence.check().await?;
    place::take_over(&mut session, &context.attempt).await?;
    tracing::info!(?stage, "a restore was taken up again");
    let stage = if stage <= Stage::Definitions {
        place::wipe(&mut session).await?;
        Stage::Made
    } else {
        stage
    };
    Ok(Place {
        params,
        replaces,
        session,
        stage,
        resumed: true,
    })
}

/// Decides how `pg_restore` runs.
async fn prepare_archive(
    archive: &mut Archive,
    session: &mut Session,
    server: &ServerFacts,
    data: &BackupData,
    kind: sandbox::Kind,
    warnings: &mut Vec<Warning>,
) -> Result<(), EngineError> {
    let doing = "looking at the target's server";
    let list: Vec<String> = data.tablespaces.iter().map(|name| literal(name)).collect();
    if !list.is_empty() {
        let there: usize = session
            .one(&format!(
                "SELECT count(*) FROM pg_tablespace WHERE spcname IN ({})",
                list.join(", ")
            ))
            .await
            .map_err(|error| error.doing(doing))?
            .get(0)?;
        if there < list.len() {
            archive.options.push("--no-tablespaces".to_owned());
            if kind == sandbox::Kind::None {
                warnings.push(Warning {
                    code: "postgres.tablespaces".to_owned(),
                    message: format!(
                        "not all of the tablespaces {} are there: everything was put into the default one",
                        data.tablespaces.join(", ")
                    ),
                });
            }
        }
    }
    if kind != sandbox::Kind::None {
        archive.options.push("--no-subscriptions".to_owned());
    }
    if kind == sandbox::Kind::Shared {
        archive
            .options
            .extend(["--no-owner", "--no-privileges", "--no-publications"].map(str::to_owned));
    }
    let memory: u64 = session
        .one(&format!(
            "SELECT GREATEST(pg_size_bytes(current_setting('maintenance_work_mem')),
                LEAST(pg_size_bytes(current_setting('shared_buffers')), {MAINTENANCE_MEMORY_BYTES}))"
        ))
        .await
        .map_err(|error| error.doing(doing))?
        .get(0)?;
    archive.settings = vec![
        "synchronous_commit=off".to_owned(),
        format!("maintenance_work_mem={}kB", memory / 1024),
        "client_min_messages=warning".to_owned(),
    ];
    if server.is_superuser {
        // Complaints are read by their English words; and the event triggers that an earlier attempt made stay quiet.
        archive.superuser_settings = ["lc_messages=C", "session_replication_role=replica"]
            .map(str::to_owned)
            .to_vec();
    }
    Ok(())
}

/// Keeps the event triggers that were just restored from firing at what the restore itself still does: they
/// might refuse it, or write into tables. Only a superuser may; others hear from the trigger.
async fn keep_triggers_quiet(session: &mut Session) -> Result<(), EngineError> {
    match session
        .execute("SET session_replication_role = replica")
        .await
    {
        Err(error) if error.code() != Some("42501") => Err(error.doing("preparing a session")),
        _ => Ok(()),
    }
}

/// Computes the materialised views. One that needs another is tried again after it.
async fn refresh(
    context: &EngineContext,
    session: &mut Session,
    mut left: Vec<&MaterializedView>,
) -> Result<Vec<String>, EngineError> {
    session
        .execute("SELECT pg_catalog.set_config('search_path', '', false); SET client_min_messages = error")
        .await
        .map_err(|error| error.doing("preparing a session"))?;
    loop {
        let mut waiting = Vec::new();
        let mut failed = Vec::new();
        for view in &left {
            let name = display_name(&view.schema, &view.name);
            context.progress.item(&name);
            let sql = format!(
                "REFRESH MATERIALIZED VIEW {}",
                qualified(&view.schema, &view.name)
            );
            let step = context.progress.while_waiting(session.execute(&sql));
            match context.stop.run_until_cancelled(step).await {
                None => return Err(EngineError::Stopped),
                Some(Ok(())) => {}
                Some(Err(error)) if error.code().is_some() => {
                    failed.push(format!("{error} (statement: {sql})"));
                    waiting.push(*view);
                }
                Some(Err(error)) => return Err(error.doing(format!("computing {name}"))),
            }
        }
        if waiting.len() == left.len() || waiting.is_empty() {
            return Ok(failed);
        }
        left = waiting;
    }
}

/// Gathers statistics: without them the first queries get plans for empty tables.
async fn analyze(
    context: &EngineContext,
    session: &mut Session,
    tables: &[String],
) -> Result<(), EngineError> {
    context.progress.item("statistics");
    let sql = format!(
        "SET client_min_messages = error; ANALYZE {}",
        tables.join(", ")
    );
    let step = context.progress.while_waiting(session.execute(&sql));
    match context.stop.run_until_cancelled(step).await {
        None => Err(EngineError::Stopped),
        Some(Ok(())) => Ok(()),
        // Statistics come by themselves later.
        Some(Err(error)) if error.code().is_some() => {
            tracing::warn!(%error, "statistics could not be gathered");
            Ok(())
        }
        Some(Err(error)) => Err(error.doing("gathering statistics")),
    }
}

/// Gives the database its properties, puts it in the place of another one where it replaces that, and
/// removes the marker.
async fn finish(
    context: &EngineContext,
    target: &Params,
    mut place: Place,
    guard: &sandbox::Guard<'_>,
    properties: Option<&DatabaseData>,
    mut answer: RestoreReport,
) -> Result<RestoreReport, EngineError> {
    let name = context.attempt.to_string();
    let rows = place
        .session
        .query(&format!("SELECT statement FROM {MARKER_SCHEMA}.failed"))
        .await
        .map_err(|error| error.doing("asking what failed"))?;
    for row in &rows {
        answer.failed_statements.push(row.string(0)?);
    }
    if let Some(properties) = properties {
        let failed =
            place::give_properties(&mut place.session, &place.params.database, properties).await;
        answer.failed_statements.extend(failed);
    }
    note_missing_roles(&mut answer);
    context.fence.check().await?;
    if let Some(old) = &place.replaces {
        place.session.close().await;
        let mut beside = place::connect_beside(target, &name).await?;
        let aside = place::name_beside(old, "old", &context.attempt);
        let doing = "putting the restored database in the place of the old one";
        let there = beside
            .query(&format!(
                "SELECT 1 FROM pg_database WHERE datname = {}",
                literal(old)
            ))
            .await
            .map_err(|error| error.doing(doing))?;
        if !there.is_empty() {
            rename(&mut beside, old, &aside).await?;
        }
        rename(&mut beside, &place.params.database, old).await?;
        drop_database_on(&mut beside, &aside).await?;
        beside.close().await;
        place.session = connect(target, &name).await?;
        place.params = target.clone();
    }
    let ending = Ending {
        report: answer,
        file: None,
    };
    ending.save(context).await?;
    // In a private sandbox the marker belongs to the role that is no superuser.
    let mut session = connect(&guard.params(&place.params), &name).await?;
    keep_triggers_quiet(&mut session).await?;
    session
        .execute(&format!(
            "SET client_min_messages = error; DROP SCHEMA {MARKER_SCHEMA} CASCADE"
        ))
        .await
        .map_err(|error| error.doing("removing the marker of the restore"))?;
    session.close().await;
    place.session.close().await;
    Ok(ending.report)
}

async fn rename(beside: &mut Session, from: &str, to: &str) -> Result<(), EngineError> {
    end_sessions_of(beside, from).await?;
    beside
        .execute(&format!(
            "ALTER DATABASE {} RENAME TO {}",
            quote_ident(from),
            quote_ident(to)
        ))
        .await
        .map_err(|error| error.doing(format!("renaming the database {}", quote_ident(from))))
}

/// Where statements failed for want of a role, says once how to get the roles back.
fn note_missing_roles(answer: &mut RestoreReport) {
    let mut missing: Vec<String> = answer
        .failed_statements
        .iter()
        .filter_map(|failed| {
            let rest = failed.strip_prefix("role \"")?;
            rest.split_once("\" does not exist")
                .map(|(role, _)| role.to_owned())
        })
        .collect();
    missing.sort_unstable();
    missing.dedup();
    if !missing.is_empty() {
        answer.warnings.push(Warning {
            code: "postgres.roles_missing".to_owned(),
            message: format!(
                "the target has no role {}: their objects belong to the role that restored them, and their grants are missing. \
                 Make the roles (the backup's stream globals.sql holds the statements) and restore again",
                missing.join(", ")
            ),
        });
    }
}
