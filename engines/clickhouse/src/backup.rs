//! The backup: shadows of all tables, then their parts, several at once; parts that the parent holds are not read.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use fettler_engine::{
    BackupOptions, BackupReport, Cut, EngineContext, EngineError, StreamEnd, StreamSink, Target,
};
use fettler_model::{ObjectFacts, Warning};
use serde::{Deserialize, Serialize};

use crate::{
    by_server::{OwnBackup, OwnTable},
    catalogue::{Catalogue, TableDefinition},
    cluster,
    fingerprint::RowForm,
    found,
    http::Session,
    identify::identity,
    params::Params,
    pieces::{Reading, Shadowed, Totals, make_shadows, read_all},
    select::Excluded,
    shadow::Scratch,
    space::Floor,
    sql::{hides_a_secret, literal},
};

/// The stream of all definitions.
pub(crate) const DEFINITIONS: &str = "definitions";
/// The version of [`BackupData`] and [`Definitions`].
const DATA_FORMAT: u32 = 1;
/// The same of a backup whose rows the server holds, or that is of several shards: older programs would restore it without
/// rows, or with those of all shards in one server.
const DATA_FORMAT_2: u32 = 2;

/// What a restore and a proof need to know before they read a stream.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct BackupData {
    /// The version of this description.
    pub(crate) format: u32,
    /// The databases that were read.
    pub(crate) databases: Vec<String>,
    /// Digests of the columns of each table, by full name.
    pub(crate) columns: BTreeMap<String, String>,
    /// Names of functions.
    pub(crate) functions: Vec<String>,
    /// How many shards of a cluster were read; nothing where it was a server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) shards: Option<u32>,
    /// The server's own backup, which holds the rows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) own: Option<OwnBackup>,
}

impl BackupData {
    /// Reads what the backup left.
    pub(crate) fn of(report: &BackupReport) -> Result<Self, EngineError> {
        Self::deserialize(&report.engine_data)
            .map_err(|error| unusable(&error))
            .and_then(|data| {
                if data.format == data.format_needed() {
                    Ok(data)
                } else {
                    Err(unusable(&format!("they have the format {}", data.format)))
                }
            })
    }

    /// Which programs can restore it.
    const fn format_needed(&self) -> u32 {
        if self.shards.is_some() || self.own.is_some() {
            DATA_FORMAT_2
        } else {
            DATA_FORMAT
        }
    }
}

fn unusable(what: &dyn std::fmt::Display) -> EngineError {
    EngineError::Unusable {
        what: format!("the backup's notes for ClickHouse cannot be read: {what}"),
        remedy: "restore it with the version of Fettler that made it".to_owned(),
    }
}

/// A stream of rows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PartStream {
    pub(crate) stream: String,
    pub(crate) partition_id: String,
    pub(crate) partition: String,
    pub(crate) rows: u64,
    /// The shard of a cluster that it is of, counted from one; nothing where it was a server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) shard: Option<u32>,
}

/// A table with its streams.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TableRecord {
    #[serde(flatten)]
    pub(crate) definition: TableDefinition,
    /// The columns that its streams hold.
    pub(crate) read: Vec<String>,
    pub(crate) parts: Vec<PartStream>,
    /// What holds its rows in the server's own backup.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) own: Vec<OwnTable>,
    /// Its rows were left out by request.
    pub(crate) is_excluded: bool,
}

/// What the stream of definitions holds, as JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Definitions {
    pub(crate) format: u32,
    pub(crate) version: String,
    pub(crate) databases: BTreeMap<String, String>,
    pub(crate) tables: Vec<TableRecord>,
    pub(crate) functions: BTreeMap<String, String>,
    pub(crate) access: Option<Vec<String>>,
    pub(crate) collections: Vec<String>,
}

/// What was read of a server.
#[derive(Debug)]
pub(crate) struct OfServer {
    pub(crate) catalogue: Catalogue,
    pub(crate) tables: Vec<TableRecord>,
    pub(crate) totals: Vec<Totals>,
    pub(crate) warnings: Vec<Warning>,
}

/// Reads a server, or one of each shard of a cluster.
pub(crate) async fn backup(
    context: &EngineContext,
    source: &Target,
    options: &BackupOptions,
    sink: &dyn StreamSink,
) -> Result<BackupReport, EngineError> {
    context.progress.begin("prepare", 0, 0);
    let params = Params::of(source)?;
    let excluded = Excluded::of(&options.exclude)?;
    if params.cluster.is_some() {
        return cluster::backup(context, &params, &excluded, sink).await;
    }
    let session = Session::of_attempt(&params, context).await?;
    end_predecessors(&session, context).await?;
    let reading = Reading::Rows { shard: None };
    let nothing = BTreeSet::new();
    let prepared = prepare(context, &session, &params, &excluded, reading, &nothing).await?;
    context.progress.begin("reading", 0, prepared.rows());
    let read = read_prepared(context, &session, prepared, sink, true).await?;
    let position = serde_json::json!({
        "method": "shadows",
        "moment": "each table at a moment of its own",
    });
    report(
        context,
        &session,
        &params,
        read,
        sink,
        Kind::Server,
        position,
    )
    .await
}

/// Lists what a server has.
pub(crate) async fn catalogue_of(
    session: &Session,
    params: &Params,
) -> Result<Catalogue, EngineError> {
    let mut catalogue = Catalogue::read(session, params.database.as_deref(), None).await?;
    if let Some(database) = &params.database
        && catalogue.databases.is_empty()
    {
        return Err(EngineError::Missing {
            code: "database",
            what: format!("{} has no database {database}", session.server()),
            remedy: "look at `SHOW DATABASES`, and whether the user may see it".to_owned(),
        });
    }
    if params.database.is_none() {
        catalogue.read_server(session).await?;
    }
    Ok(catalogue)
}

/// A server whose tables have shadows that nobody has read yet.
#[derive(Debug)]
pub(crate) struct Prepared {
    catalogue: Catalogue,
    floor: Floor,
    scratch: Scratch,
    shadowed: Shadowed,
}

impl Prepared {
    /// How many rows there are, as far as the server says.
    pub(crate) fn rows(&self) -> u64 {
        let jobs = self.shadowed.jobs.iter();
        jobs.filter_map(|job| job.piece.rows).sum()
    }
}

/// Makes the shadows of a server's tables; not of those that are `known` from elsewhere.
pub(crate) async fn prepare(
    context: &EngineContext,
    session: &Session,
    params: &Params,
    excluded: &Excluded,
    reading: Reading,
    known: &BTreeSet<String>,
) -> Result<Prepared, EngineError> {
    let mut catalogue = catalogue_of(session, params).await?;
    catalogue
        .tables
        .retain(|table| !known.contains(&table.full_name()));
    let floor = Floor::of(session).await?;
    let scratch = match reading {
        Reading::Rows { shard: Some(shard) } => {
            Scratch::make_on_shard(session, context, shard).await?
        }
        _ => Scratch::make(session, context).await?,
    };
    let name = &scratch.name;
    match make_shadows(context, session, name, &catalogue, excluded, reading).await {
        Ok(shadowed) => Ok(Prepared {
            catalogue,
            floor,
            scratch,
            shadowed,
        }),
        Err(error) => {
            drop_scratch(context, session, scratch, &error).await?;
            Err(error)
        }
    }
}

/// Reads the shadows, and drops them; without `is_wanted` it only drops them.
pub(crate) async fn read_prepared(
    context: &EngineContext,
    session: &Session,
    prepared: Prepared,
    sink: &dyn StreamSink,
    is_wanted: bool,
) -> Result<OfServer, EngineError> {
    let Prepared {
        catalogue,
        floor,
        scratch,
        shadowed,
    } = prepared;
    let mut tables = shadowed.records;
    let jobs = if is_wanted { shadowed.jobs } else { Vec::new() };
    let work = async {
        floor.look(session).await?;
        read_all(context, session, jobs, &mut tables, sink).await
    };
    let read = tokio::select! {
        full = floor.watch(session) => Err(full),
        read = work => read,
    };
    let totals = match read {
        Ok(totals) => {
            scratch.drop(session, context).await?;
            totals
        }
        Err(error) => {
            drop_scratch(context, session, scratch, &error).await?;
            return Err(error);
        }
    };
    Ok(OfServer {
        catalogue,
        tables,
        totals,
        warnings: shadowed.warnings,
    })
}

/// Drops shadows after a failure. What is left then is found by the record.
pub(crate) async fn drop_scratch(
    context: &EngineContext,
    session: &Session,
    scratch: Scratch,
    error: &EngineError,
) -> Result<(), EngineError> {
    if !matches!(error, EngineError::Stopped) {
        return scratch.drop(session, context).await;
    }
    // This session's statements are stopped.
    let visit = Session::visit(session.params()).await?;
    scratch.drop(&visit, context).await
}

/// What kind of a backup a report is of.
#[derive(Clone, Debug)]
pub(crate) enum Kind {
    /// Of a server, with its rows.
    Server,
    /// Of so many shards, with their rows.
    Cluster(u32),
    /// Of a server that holds the rows in a backup of its own.
    Own(OwnBackup),
}

/// Stores the definitions, and says what a backup holds.
pub(crate) async fn report(
    context: &EngineContext,
    session: &Session,
    params: &Params,
    read: OfServer,
    sink: &dyn StreamSink,
    kind: Kind,
    position: serde_json::Value,
) -> Result<BackupReport, EngineError> {
    let OfServer {
        catalogue,
        tables,
        totals,
        mut warnings,
    } = read;
    warnings.extend(warnings_of(&catalogue));
    let definitions = Definitions {
        format: DATA_FORMAT,
        version: session.version.clone(),
        databases: catalogue.databases.clone(),
        tables,
        functions: catalogue.functions.clone(),
        access: catalogue.access.clone(),
        collections: catalogue.collections.clone(),
    };
    store_definitions(&definitions, sink).await?;
    let (shards, own) = match kind {
        Kind::Server => (None, None),
        Kind::Cluster(shards) => (Some(shards), None),
        Kind::Own(own) => (None, Some(own)),
    };
    let mut data = BackupData {
        format: DATA_FORMAT,
        databases: catalogue.databases.keys().cloned().collect(),
        columns: catalogue
            .tables
            .iter()
            .map(|table| (table.full_name(), table.columns_digest()))
            .collect(),
        functions: catalogue.functions.keys().cloned().collect(),
        shards,
        own,
    };
    data.format = data.format_needed();
    let mut objects = objects_of(context, &catalogue, &definitions, &totals);
    objects.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(BackupReport {
        identity: identity(params, session).await?,
        position,
        objects,
        row_hash: RowForm::of_version(session.version_numbers())
            .name()
            .to_owned(),
        engine_data: serde_json::to_value(&data).expect("plain data can be JSON"),
        warnings,
    })
}

/// Ends statements that earlier attempts of the job left running.
pub(crate) async fn end_predecessors(
    session: &Session,
    context: &EngineContext,
) -> Result<(), EngineError> {
    let job = fettler_engine::AttemptName::prefix_of(context.attempt.job);
    let own = format!("{}/", context.attempt);
    let kill = format!(
        "KILL QUERY WHERE startsWith(query_id, {}) AND NOT startsWith(query_id, {}) ASYNC",
        literal(&job),
        literal(&own)
    );
    // A user who may not has left nothing that blocks: each attempt works in a database of its own.
    let _refused = session
        .try_run(&kill, &[], "ending an earlier attempt")
        .await?;
    Ok(())
}

async fn store_definitions(
    definitions: &Definitions,
    sink: &dyn StreamSink,
) -> Result<(), EngineError> {
    let text = serde_json::to_vec_pretty(definitions).expect("plain data can be JSON");
    let mut writer = sink.open(DEFINITIONS, Cut::Content).await?;
    writer.write(Bytes::from(text)).await?;
    writer.finish(StreamEnd::default()).await.map(drop)
}

fn objects_of(
    context: &EngineContext,
    catalogue: &Catalogue,
    definitions: &Definitions,
    totals: &[Totals],
) -> Vec<ObjectFacts> {
    let key = &context.fingerprint_key;
    let same = |name: &str| {
        catalogue
            .databases
            .contains_key(name)
            .then(|| name.to_owned())
    };
    let mut objects = Vec::new();
    for (record, total) in definitions.tables.iter().zip(totals) {
        let table = &record.definition;
        objects.push(found::definition(key, table, &same));
        if table.has_rows() && !record.is_excluded {
            objects.push(ObjectFacts {
                fingerprint: Some(total.fingerprint),
                independent_rows: total.counted,
                bytes: total.bytes,
                ..found::table(&table.full_name())
            });
        }
    }
    for (name, create) in &definitions.functions {
        objects.push(found::function(key, name, create));
    }
    if let Some(access) = &definitions.access {
        let bytes = access.iter().map(|line| line.len() as u64).sum();
        objects.push(found::listed("access", bytes));
    }
    for name in &definitions.collections {
        objects.push(found::listed(&format!("named collection {name}"), 0));
    }
    objects
}

fn warnings_of(catalogue: &Catalogue) -> Vec<Warning> {
    let warning = |code: &str, message: String| Warning {
        code: format!("clickhouse.{code}"),
        message,
    };
    let mut warnings = Vec::new();
    if catalogue
        .tables
        .iter()
        .filter(|table| table.has_rows())
        .count()
        > 1
    {
        warnings.push(warning(
            "not_one_moment",
            "each table is as it was at one moment, and not all tables at the same one".to_owned(),
        ));
    }
    for table in &catalogue.tables {
        if hides_a_secret(&table.create) {
            warnings.push(warning(
                "hidden_secret",
                format!("the definition of {} has a secret that the server hides: put it in after a restore", table.full_name()),
            ));
        }
        if table.engine == "Set" {
            warnings.push(warning(
                "set",
                format!(
                    "the rows of {} cannot be read from a table of the engine Set",
                    table.full_name()
                ),
            ));
        }
    }
    if !catalogue.collections.is_empty() {
        warnings.push(warning(
            "named_collections",
            format!(
                "what is in named collections the server shows to nobody: {}",
                catalogue.collections.join(", ")
            ),
        ));
    }
    warnings
}
