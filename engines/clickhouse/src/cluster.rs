//! A cluster (`?cluster=NAME`): one replica of each shard is read, and all shards are one backup.
//!
//! The server that the URL names says which servers there are (`system.clusters`); each is reached over HTTP at the port of the
//! URL. A table that several shards have is one table of the backup, whose streams say which shard they are of, and whose fingerprint
//! is the sum over all shards: so it is the same wherever its rows are put back. A replicated table that has one path on several
//! shards is one table, which is read once.
//!
//! A restore puts whole shards onto whole shards. Where there are not as many as there were, a shard takes the rows of several, or
//! some take none: every row is there once, and lies where the sharding key may not look for it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
};

use async_trait::async_trait;
use fettler_engine::{
    BackupReport, Checkpoints, EngineContext, EngineError, RestoreReport, StreamSink,
};
use fettler_model::{ObjectFacts, Warning};
use futures::future::join_all;
use serde_json::{Map, Value};

use crate::{
    backup::{
        Kind, OfServer, PartStream, Prepared, TableRecord, end_predecessors, prepare,
        read_prepared, report,
    },
    http::Session,
    params::Params,
    pieces::Reading,
    select::Excluded,
    sql::literal,
};

/// A server of a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Member {
    pub(crate) shard: u32,
    pub(crate) replica: u32,
    pub(crate) host: String,
}

/// A server of a cluster that answers.
#[derive(Debug)]
pub(crate) struct Reached {
    pub(crate) member: Member,
    pub(crate) session: Session,
    /// How many seconds its replicated tables are behind.
    lag: u64,
}

/// The servers of a cluster, shard by shard.
async fn members(session: &Session, name: &str) -> Result<Vec<Member>, EngineError> {
    let doing = "looking for the servers of a cluster";
    let rows = session
        .rows(
            &format!(
                "SELECT toString(shard_num), toString(replica_num), host_name FROM system.clusters WHERE cluster = {} ORDER BY shard_num, replica_num",
                literal(name)
            ),
            doing,
        )
        .await?;
    let all: Vec<Member> = rows
        .into_iter()
        .filter_map(|row| <[String; 3]>::try_from(row).ok())
        .filter_map(|[shard, replica, host]| {
            Some(Member {
                shard: shard.parse().ok()?,
                replica: replica.parse().ok()?,
                host,
            })
        })
        .collect();
    if !all.is_empty() {
        return Ok(all);
    }
    let known = session
        .rows(
            "SELECT DISTINCT cluster FROM system.clusters ORDER BY cluster",
            doing,
        )
        .await?;
    let known: Vec<String> = known.into_iter().flatten().collect();
    Err(EngineError::Missing {
        code: "cluster",
        what: format!("{} knows no cluster {name}", session.server()),
        remedy: if known.is_empty() {
            "it knows none at all (`remote_servers` of its configuration): leave `cluster` out of the URL".to_owned()
        } else {
            format!("it knows {}", known.join(", "))
        },
    })
}

/// Reaches every server of a cluster that answers, and one of each shard at least.
pub(crate) async fn reach(
    params: &Params,
    label: &str,
    stop: &tokio_util::sync::CancellationToken,
) -> Result<Vec<Vec<Reached>>, EngineError> {
    let name = params.cluster.as_deref().unwrap_or_default();
    let alone = Session::open(params, label, stop).await?;
    let members = members(&alone, name).await?;
    let mut shards: Vec<Vec<Reached>> = Vec::new();
    let mut lost: BTreeMap<u32, EngineError> = BTreeMap::new();
    let numbers: BTreeSet<u32> = members.iter().map(|member| member.shard).collect();
    for member in members {
        match of_member(params, &member, label, stop).await {
            Ok(reached) => match shards.last_mut() {
                Some(shard) if shard[0].member.shard == member.shard => shard.push(reached),
                _ => shards.push(vec![reached]),
            },
            Err(EngineError::Stopped) => return Err(EngineError::Stopped),
            Err(error) => {
                lost.insert(member.shard, error);
            }
        }
    }
    for number in numbers {
        if !shards.iter().any(|shard| shard[0].member.shard == number)
            && let Some(error) = lost.remove(&number)
        {
            return Err(error);
        }
    }
    // The one that is least behind is the one that is read.
    for shard in &mut shards {
        shard.sort_by_key(|reached| (reached.lag, reached.member.replica));
    }
    Ok(shards)
}

async fn of_member(
    params: &Params,
    member: &Member,
    label: &str,
    stop: &tokio_util::sync::CancellationToken,
) -> Result<Reached, EngineError> {
    let session = Session::open(&params.of_other(&member.host)?, label, stop).await?;
    let behind = session
        .try_rows(
            "SELECT toString(max(absolute_delay)) FROM system.replicas",
            &[],
            "looking how far replicas are behind",
        )
        .await?;
    let lag = behind
        .ok()
        .and_then(|rows| rows.into_iter().flatten().next()?.parse().ok());
    Ok(Reached {
        member: member.clone(),
        session,
        lag: lag.unwrap_or(0),
    })
}

/// The paths of replicated tables, by full name.
async fn paths_of(session: &Session) -> Result<BTreeMap<String, String>, EngineError> {
    let rows = session
        .rows(
            "SELECT database, table, zookeeper_path FROM system.replicas",
            "looking for replicated tables",
        )
        .await?;
    Ok(rows
        .into_iter()
        .filter_map(|row| <[String; 3]>::try_from(row).ok())
        .map(|[database, table, path]| (format!("{database}.{table}"), path))
        .collect())
}

/// Tables that an earlier shard has too, by the path of their replicas; notes those of this one.
fn known_elsewhere(
    seen: &mut BTreeSet<(String, String)>,
    paths: BTreeMap<String, String>,
) -> BTreeSet<String> {
    paths
        .into_iter()
        .filter(|one| !seen.insert(one.clone()))
        .map(|(name, _)| name)
        .collect()
}

/// Backs up one replica of each shard.
pub(crate) async fn backup(
    context: &EngineContext,
    params: &Params,
    excluded: &Excluded,
    sink: &dyn StreamSink,
) -> Result<BackupReport, EngineError> {
    let label = context.attempt.to_string();
    let shards: Vec<Reached> = reach(params, &label, &context.stop)
        .await?
        .into_iter()
        .filter_map(|shard| shard.into_iter().next())
        .collect();
    let mut warnings = Vec::new();
    let (mut prepared, mut seen) = (Vec::new(), BTreeSet::new());
    let mut failed = None;
    for shard in &shards {
        let Reached {
            member, session, ..
        } = shard;
        if shard.lag > 0 {
            warnings.push(Warning {
                code: "clickhouse.replica_behind".to_owned(),
                message: format!(
                    "shard {} was read from {}, whose replicated tables are {} s behind",
                    member.shard,
                    session.server(),
                    shard.lag
                ),
            });
        }
        let one = async {
            end_predecessors(session, context).await?;
            let known = known_elsewhere(&mut seen, paths_of(session).await?);
            let reading = Reading::Rows {
                shard: Some(member.shard),
            };
            prepare(context, session, params, excluded, reading, &known).await
        };
        match one.await {
            Ok(one) => prepared.push(one),
            Err(error) => {
                failed = Some(error);
                break;
            }
        }
    }
    let rows = prepared.iter().map(Prepared::rows).sum();
    context.progress.begin("reading", 0, rows);
    let is_fine = failed.is_none();
    let reads = prepared
        .into_iter()
        .zip(&shards)
        .map(|(one, shard)| read_prepared(context, &shard.session, one, sink, is_fine));
    // All of them, so that each drops what it made.
    let reads: Vec<_> = join_all(reads).await;
    if let Some(error) = failed {
        return Err(error);
    }
    let all = reads.into_iter().collect::<Result<Vec<_>, _>>()?;
    let count = u32::try_from(all.len()).unwrap_or(u32::MAX);
    let mut read = merged(all)?;
    warnings.append(&mut read.warnings);
    read.warnings = warnings;
    let position = serde_json::json!({
        "method": "shadows",
        "cluster": params.cluster,
        "shards": shards.iter().map(|shard| shard.session.server()).collect::<Vec<_>>(),
        "moment": "each table of each shard at a moment of its own",
    });
    report(
        context,
        &shards[0].session,
        params,
        read,
        sink,
        Kind::Cluster(count),
        position,
    )
    .await
}

/// One list of tables from those of all shards.
///
/// # Errors
///
/// [`EngineError::Unusable`] where a table has other columns on another shard.
fn merged(shards: Vec<OfServer>) -> Result<OfServer, EngineError> {
    let mut shards = shards.into_iter();
    let mut all = shards.next().ok_or_else(|| EngineError::Missing {
        code: "cluster",
        what: "the cluster has no shard".to_owned(),
        remedy: "look at system.clusters".to_owned(),
    })?;
    for (number, shard) in (2..).zip(shards) {
        all.warnings.extend(shard.warnings);
        all.catalogue.databases.extend(shard.catalogue.databases);
        for (name, create) in shard.catalogue.functions {
            all.catalogue.functions.entry(name).or_insert(create);
        }
        for table in shard.catalogue.tables {
            let name = table.full_name();
            if !all
                .catalogue
                .tables
                .iter()
                .any(|one| one.full_name() == name)
            {
                all.catalogue.tables.push(table);
            }
        }
        for (record, total) in shard.tables.into_iter().zip(shard.totals) {
            let name = record.definition.full_name();
            let known = all
                .tables
                .iter()
                .position(|one| one.definition.full_name() == name);
            let Some(at) = known else {
                all.tables.push(record);
                all.totals.push(total);
                continue;
            };
            let there = &mut all.tables[at];
            if there.definition.columns != record.definition.columns {
                return Err(EngineError::Unusable {
                    what: format!("{name} has other columns on shard {number} of the cluster than on the first"),
                    remedy: "alter one of them, or back the servers up one by one (`clickhouse://` without `cluster`)".to_owned(),
                });
            }
            if without_uuid(&there.definition.create) != without_uuid(&record.definition.create) {
                all.warnings.push(Warning {
                    code: "clickhouse.definitions_differ".to_owned(),
                    message: format!("{name} has another definition on shard {number} of the cluster; that of the first is kept"),
                });
            }
            there.parts.extend(record.parts);
            all.totals[at].merge(&total);
        }
    }
    Ok(all)
}

/// Shards differ in what belongs to each.
fn without_uuid(create: &str) -> String {
    match create.split_once(" UUID '") {
        Some((before, rest)) => {
            let after = rest.split_once('\'').map_or("", |(_, after)| after);
            format!("{before}{after}")
        }
        None => create.to_owned(),
    }
}

/// What of a backup one server gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Share {
    /// Which shard it is, counted from zero, of how many.
    shard: Option<(u32, u32)>,
    /// Whether another replica of the shard has got the rows of replicated tables already.
    is_further_replica: bool,
}

impl Share {
    /// Everything: for a server alone.
    pub(crate) const ALL: Self = Self {
        shard: None,
        is_further_replica: false,
    };

    /// Whether another replica gets the rows of a table.
    pub(crate) fn leaves_to_others(&self, table: &TableRecord) -> bool {
        self.is_further_replica && table.definition.engine.starts_with("Replicated")
    }

    /// Whether a stream belongs to it.
    pub(crate) fn has(&self, table: &TableRecord, part: &PartStream) -> bool {
        if self.leaves_to_others(table) {
            return false;
        }
        match self.shard {
            None => true,
            // What was read of a server alone is its first shard.
            Some((at, of)) => (part.shard.unwrap_or(1).max(1) - 1) % of.max(1) == at,
        }
    }
}

/// A server of a restore, and what it gets.
#[derive(Clone, Debug)]
pub(crate) struct Receiver {
    pub(crate) params: Params,
    pub(crate) share: Share,
}

impl Receiver {
    /// The server and what is meant there, as a checkpoint names it.
    pub(crate) fn name(&self) -> String {
        let params = &self.params;
        format!(
            "{}/{} {:?} {} {:?}",
            params.server(),
            params.database.as_deref().unwrap_or_default(),
            params.sandbox_prefix,
            params.plain_replicated,
            self.share
        )
    }
}

/// Who gets what of a backup of so many shards. Replicas that do not answer get nothing, which is told.
pub(crate) async fn receivers(
    context: &EngineContext,
    params: &Params,
    shards: Option<u32>,
) -> Result<(Vec<Receiver>, Vec<Warning>), EngineError> {
    let label = context.attempt.to_string();
    let targets = reach(params, &label, &context.stop).await?;
    let of = u32::try_from(targets.len()).unwrap_or(u32::MAX);
    let mut warnings = Vec::new();
    if shards.unwrap_or(1) != of && of > 1 {
        warnings.push(Warning {
            code: "clickhouse.other_shards".to_owned(),
            message: format!(
                "the backup is of {} shards, and the target has {of}: rows lie by whole shards, not by the sharding key. Queries that rely on it (`optimize_skip_unused_shards`, joins within a shard, tables that replace or sum rows by key) need them inserted anew through the Distributed table",
                shards.unwrap_or(1)
            ),
        });
    }
    let receivers = (0..)
        .zip(targets)
        .flat_map(|(at, shard)| {
            shard
                .into_iter()
                .enumerate()
                .map(move |(replica, reached)| Receiver {
                    params: reached.session.params().clone(),
                    share: Share {
                        shard: Some((at, of)),
                        is_further_replica: replica > 0
                            && !reached.session.params().plain_replicated,
                    },
                })
        })
        .collect();
    Ok((receivers, warnings))
}

/// Adds what one server's restore came to.
pub(crate) fn add(all: &mut RestoreReport, one: RestoreReport) {
    all.rows += one.rows;
    all.bytes += one.bytes;
    for failed in one.failed_statements {
        if !all.failed_statements.contains(&failed) {
            all.failed_statements.push(failed);
        }
    }
    for warning in one.warnings {
        if !all.warnings.contains(&warning) {
            all.warnings.push(warning);
        }
    }
}

/// Adds what is in one server's copy to what is in the others'.
pub(crate) fn add_facts(all: &mut Vec<ObjectFacts>, one: Vec<ObjectFacts>) {
    for object in one {
        let known = all
            .iter_mut()
            .find(|other| other.kind == object.kind && other.name == object.name);
        let Some(known) = known else {
            all.push(object);
            continue;
        };
        if let (Some(all), Some(one)) = (&mut known.fingerprint, &object.fingerprint) {
            all.merge(one);
        }
        known.independent_rows = known
            .independent_rows
            .zip(object.independent_rows)
            .map(|(all, one)| all + one);
        known.bytes += object.bytes;
    }
}

/// The checkpoints of several servers in that of one attempt.
pub(crate) struct Several {
    inner: Arc<dyn Checkpoints>,
    all: Mutex<Map<String, Value>>,
}

impl Several {
    /// Reads what there is.
    pub(crate) async fn load(inner: Arc<dyn Checkpoints>) -> Result<Arc<Self>, EngineError> {
        let all = match inner.load().await? {
            Some(Value::Object(all)) => all,
            _ => Map::new(),
        };
        Ok(Arc::new(Self {
            inner,
            all: Mutex::new(all),
        }))
    }

    /// The one of a server.
    pub(crate) fn of(self: &Arc<Self>, server: String) -> Arc<dyn Checkpoints> {
        Arc::new(OfOne {
            several: Arc::clone(self),
            server,
        })
    }
}

/// The checkpoint of one server.
struct OfOne {
    several: Arc<Several>,
    server: String,
}

#[async_trait]
impl Checkpoints for OfOne {
    async fn load(&self) -> Result<Option<Value>, EngineError> {
        let all = self
            .several
            .all
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        Ok(all.get(&self.server).cloned())
    }

    async fn save(&self, checkpoint: Value) -> Result<(), EngineError> {
        let all = {
            let mut all = self
                .several
                .all
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            all.insert(self.server.clone(), checkpoint);
            Value::Object(all.clone())
        };
        self.several.inner.save(all).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        catalogue::{Catalogue, Content, TableDefinition},
        pieces::Totals,
    };

    fn record(engine: &str, shards: &[u32]) -> TableRecord {
        TableRecord {
            definition: TableDefinition {
                database: "shop".to_owned(),
                name: "t".to_owned(),
                engine: engine.to_owned(),
                create: String::new(),
                columns: Vec::new(),
                content: Content::Parts,
                uuid: String::new(),
                inner: None,
            },
            read: Vec::new(),
            parts: shards
                .iter()
                .map(|shard| PartStream {
                    stream: format!("s{shard}"),
                    partition_id: "all".to_owned(),
                    partition: String::new(),
                    rows: 1,
                    shard: Some(*shard),
                })
                .collect(),
            own: Vec::new(),
            is_excluded: false,
        }
    }

    #[test]
    fn every_part_goes_to_one_shard_however_many_there_are() {
        let table = record("MergeTree", &[1, 2, 3, 4, 5]);
        for of in 1..8 {
            for part in &table.parts {
                let takers = (0..of)
                    .filter(|at| {
                        let share = Share {
                            shard: Some((*at, of)),
                            is_further_replica: false,
                        };
                        share.has(&table, part)
                    })
                    .count();
                assert_eq!(takers, 1, "{part:?} of {of}");
            }
        }
        assert!(table.parts.iter().all(|part| Share::ALL.has(&table, part)));
    }

    #[test]
    fn a_further_replica_gets_rows_of_tables_that_replicate_nothing() {
        let share = Share {
            shard: Some((0, 1)),
            is_further_replica: true,
        };
        let plain = record("MergeTree", &[1]);
        assert!(share.has(&plain, &plain.parts[0]));
        let replicated = record("ReplicatedMergeTree", &[1]);
        assert!(!share.has(&replicated, &replicated.parts[0]));
    }

    #[test]
    fn a_replicated_table_of_several_shards_is_read_once() {
        let paths = |of: &[(&str, &str)]| -> BTreeMap<String, String> {
            of.iter()
                .map(|(name, path)| ((*name).to_owned(), (*path).to_owned()))
                .collect()
        };
        let mut seen = BTreeSet::new();
        let first = paths(&[("d.words", "/all/words"), ("d.t", "/1/t")]);
        assert!(known_elsewhere(&mut seen, first).is_empty());
        let second = paths(&[("d.words", "/all/words"), ("d.t", "/2/t")]);
        let known = known_elsewhere(&mut seen, second);
        assert_eq!(Vec::from_iter(known), ["d.words"]);
    }

    #[test]
    fn tables_of_shards_become_one_or_are_refused() {
        let server = |table: TableRecord| OfServer {
            catalogue: Catalogue::default(),
            tables: vec![table],
            totals: vec![Totals::default()],
            warnings: Vec::new(),
        };
        let all = merged(vec![
            server(record("MergeTree", &[1])),
            server(record("MergeTree", &[2])),
        ])
        .unwrap();
        assert_eq!(all.tables[0].parts.len(), 2);
        let mut other = record("MergeTree", &[2]);
        other.definition.columns = vec![crate::catalogue::Column {
            name: "a".to_owned(),
            kind: "UInt8".to_owned(),
            default_kind: String::new(),
            default_expression: String::new(),
        }];
        let error = merged(vec![server(record("MergeTree", &[1])), server(other)]).unwrap_err();
        assert!(error.to_string().contains("shard 2"), "{error}");
    }
}
