//! Reading a restored copy in the very forms in which the original was read, for a proof to compare.

use std::collections::{BTreeSet, HashMap};

use fettler_engine::{BackupReport, EngineContext, EngineError, Target};
use fettler_model::{ObjectFacts, ObjectKind};
use futures::future::try_join_all;

use crate::{
    PostgresEngine,
    backup::{Findings, Shared, Work, WorkKind, copy_sql, ranges, speak, table_facts, worker},
    catalogue::{self, ServerFacts},
    compared::Compared,
    connect::connect,
    data::{BackupData, SCHEMA_STREAM, TableData},
    large_objects, large_values,
    names::display_name,
    params::Params,
    sandbox,
    schema::{self, Comparable},
    tools,
    wire::Session,
};

/// Says what is in a copy.
pub(crate) async fn facts(
    engine: &PostgresEngine,
    context: &EngineContext,
    copy: &Target,
    expected: &BackupReport,
) -> Result<Vec<ObjectFacts>, EngineError> {
    let data = BackupData::of(expected)?;
    let params = Params::of(copy)?;
    context
        .progress
        .begin("compare", expected.identity.estimated_bytes, 0);
    let mut session = connect(&params, &context.attempt.to_string()).await?;
    let server = ServerFacts::read(&mut session).await?;
    let kind = sandbox::kind_of(&mut session).await?;
    catalogue::settle(&mut session, &server).await?;
    let relations = catalogue::relations(&mut session, &server).await?;
    let there = catalogue::tables(&mut session, &server, &relations).await?;
    let (mut tables, unreadable) = as_expected(there, &data);
    let large = large_values_of(&mut session, &mut tables, kind).await?;
    let mut objects = Vec::new();
    let large_objects = match &data.large_objects {
        Some(expected) => large_objects::Plan::like(&mut session, &server, expected).await?,
        None => large_objects::plan(&mut session, &server).await?,
    };
    let mut findings = read(
        engine,
        context,
        &params,
        &mut session,
        &server,
        &data,
        &tables,
        large_objects.as_ref(),
    )
    .await?;
    if !large.is_empty() {
        let mut session = connect(&params, &context.attempt.to_string()).await?;
        catalogue::settle(&mut session, &server).await?;
        speak(&mut session, &data.encoding).await?;
        for (at, columns) in large {
            let (fingerprint, bytes) =
                large_values::read(context, &mut session, &tables[at], &columns).await?;
            let found = findings.entry(Some(at)).or_default();
            found.fingerprint.merge(&fingerprint);
            found.bytes += bytes;
        }
        session.close().await;
    }
    objects.extend(
        table_facts(&tables, &findings)
            .into_iter()
            .map(|facts| ObjectFacts {
                independent_rows: None,
                ..facts
            }),
    );
    objects.extend(unreadable.iter().map(|table| ObjectFacts {
        kind: ObjectKind::Table,
        name: table.compared_as(),
        fingerprint: None,
        independent_rows: None,
        bytes: 0,
        value: Some("its columns differ".to_owned()),
        format: None,
    }));
    for sequence in catalogue::sequences(&mut session, &relations).await? {
        objects.push(valued(
            ObjectKind::Sequence,
            sequence.display(),
            Some(sequence.value()),
        ));
    }
    for view in catalogue::materialized_views(&relations) {
        objects.push(valued(
            ObjectKind::MaterializedView,
            display_name(&view.schema, &view.name),
            None,
        ));
    }
    if large_objects.is_some() || data.large_objects.is_some() {
        let list = large_objects::digest_list(context, &mut session).await?;
        let mut facts =
            large_objects::facts(&list, findings.get(&None).copied().unwrap_or_default());
        facts.independent_rows = None;
        // Owners and grants are not restored on a server that others use too.
        if kind == sandbox::Kind::Shared
            && Some(list.count) == data.large_objects.as_ref().map(|expected| expected.count)
            && let Some(expected) = expected
                .objects
                .iter()
                .find(|object| object.kind == ObjectKind::LargeObjects)
        {
            facts.value.clone_from(&expected.value);
        }
        objects.push(facts);
    }
    let definitions =
        definitions(engine, context, &params, &mut session, &server, &data, kind).await?;
    objects.push(valued(
        ObjectKind::Schema,
        schema::OBJECT_NAME.to_owned(),
        Some(definitions),
    ));
    session.close().await;
    Ok(objects)
}

/// In a proof's own server: the tables with large values, which are left out of what is read of them by COPY.
async fn large_values_of(
    session: &mut Session,
    tables: &mut [TableData],
    kind: sandbox::Kind,
) -> Result<Vec<(usize, Vec<large_values::Column>)>, EngineError> {
    let mut large = Vec::new();
    if kind != sandbox::Kind::Private {
        return Ok(large);
    }
    for (at, table) in tables.iter_mut().enumerate() {
        let columns = large_values::columns(session, table).await?;
        if !columns.is_empty() {
            large_values::leave_out(table, &columns);
            large.push((at, columns));
        }
    }
    Ok(large)
}

fn valued(kind: ObjectKind, name: String, value: Option<String>) -> ObjectFacts {
    ObjectFacts {
        kind,
        name,
        fingerprint: None,
        independent_rows: None,
        bytes: 0,
        value,
        format: None,
    }
}

/// Gives the copy's tables the columns and the form of the expected ones. Tables whose rows were left out are
/// not looked at; a table that nobody expects is read as it is. The second list holds those that lack columns.
fn as_expected(there: Vec<TableData>, data: &BackupData) -> (Vec<TableData>, Vec<TableData>) {
    let expected: HashMap<(&str, &str), &TableData> = data
        .tables
        .iter()
        .map(|table| ((table.schema.as_str(), table.name.as_str()), table))
        .collect();
    let (mut readable, mut unreadable) = (Vec::new(), Vec::new());
    for mut table in there {
        let Some(known) = expected.get(&(table.schema.as_str(), table.name.as_str())) else {
            readable.push(table);
            continue;
        };
        if known.excluded {
            continue;
        }
        let has: BTreeSet<&String> = table.columns.iter().collect();
        let is_whole = known.columns.iter().all(|column| has.contains(column));
        table.columns.clone_from(&known.columns);
        table.rows_as = known.rows_as;
        table.condition.clone_from(&known.condition);
        table.through.clone_from(&known.through);
        table.largest_row = known.largest_row;
        if is_whole {
            readable.push(table);
        } else {
            unreadable.push(table);
        }
    }
    (readable, unreadable)
}

#[expect(clippy::too_many_arguments, reason = "one call, all of it different")]
async fn read(
    engine: &PostgresEngine,
    context: &EngineContext,
    params: &Params,
    session: &mut Session,
    server: &ServerFacts,
    data: &BackupData,
    tables: &[TableData],
    large_objects: Option<&large_objects::Plan>,
) -> Result<Findings, EngineError> {
    let oids: Vec<u32> = tables.iter().map(|table| table.oid).collect();
    let sizes = catalogue::sizes(session, &oids, server).await?;
    let mut order: Vec<usize> = (0..tables.len()).collect();
    let bytes_of = |at: &usize| sizes.get(&tables[*at].oid).map_or(0, |(_, bytes)| *bytes);
    order.sort_by_key(|at| std::cmp::Reverse(bytes_of(at)));
    let mut work = Vec::new();
    for at in order {
        let table = &tables[at];
        let pages = if server.major() >= 14 && table.condition.is_empty() {
            sizes.get(&table.oid).map_or(0, |(pages, _)| *pages)
        } else {
            0
        };
        for range in ranges(pages, engine.range_pages) {
            work.push(Work {
                table: Some(at),
                what: format!("comparing {}", table.display()),
                sql: copy_sql(table, range),
                kind: WorkKind::Rows(table.rows_as, None),
                lock: None,
            });
        }
    }
    if let Some(plan) = large_objects {
        work.extend(plan.work());
    }
    let mut compared = Compared::load(context, &work, tables).await?;
    while let Some(part) = compared.next_part(&work) {
        let sessions = context.parallel.clamp(1, part.len().max(1));
        let shared = Shared::going_on(context, part, compared.findings());
        let mut workers = Vec::with_capacity(sessions);
        for _ in 0..sessions {
            let mut session = connect(params, &context.attempt.to_string()).await?;
            catalogue::settle(&mut session, server).await?;
            speak(&mut session, &data.encoding).await?;
            workers.push(worker(&shared, session, None, None));
        }
        try_join_all(workers).await?;
        compared
            .save(context, &work, tables, shared.findings())
            .await?;
    }
    Ok(compared.findings())
}

/// Compares the definitions; gives the expected digest where they are the same.
async fn definitions(
    engine: &PostgresEngine,
    context: &EngineContext,
    params: &Params,
    session: &mut Session,
    server: &ServerFacts,
    data: &BackupData,
    kind: sandbox::Kind,
) -> Result<String, EngineError> {
    let mut invalid = schema::invalid_indexes(session).await?;
    // One on a partitioned table may have been invalid at the source, and is then part of what was there.
    invalid.retain(|name| !data.invalid_indexes.contains(name));
    let dump = engine
        .tools
        .find(
            "pg_dump",
            server.major().max(data.dump_major),
            data.dump_major,
        )
        .await?;
    let how = Comparable {
        text: server.major() == data.server_major()
            && dump.major == data.dump_major
            && dump.version == data.dump_version,
        owners: kind != sandbox::Kind::Shared,
    };
    let definitions = if how.text {
        let archive = context.scratch.join(format!("copy-{SCHEMA_STREAM}"));
        let mut command = tools::connected(&dump.path, params, &context.attempt.to_string());
        command
            .args(["--format=custom", "--schema-only", "--no-password"])
            .arg(format!("--file={}", archive.display()));
        let ended = tools::run(command, "pg_dump", &context.stop, &mut |_| ()).await?;
        if !ended.status.success() {
            return Err(ended.error("pg_dump"));
        }
        schema::definitions_of_archive(context, &dump, &archive).await?
    } else {
        crate::data::SchemaData::default()
    };
    let copy = schema::with_catalogue(session, definitions, &context.fingerprint_key).await?;
    let mut value = schema::value_of_copy(&data.schema, &copy, how);
    if !invalid.is_empty() {
        value = format!("invalid indexes: {} ({value})", invalid.join(", "));
    }
    Ok(value)
}
