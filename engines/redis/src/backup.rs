//! The backup: the keys as a replica gets them, or one by one where no replica is allowed; then what the server has
//! beside keys; then everything in the order of the backup.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use fettler_engine::{
    BackupOptions, BackupReport, Cut, EngineContext, EngineError, Identity, ROW_HASH, StreamEnd,
    StreamSink, Target,
};
use fettler_model::{LogPosition, Warning};
use futures::future::try_join_all;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use crate::{
    blocking,
    cluster::{self, SlotSet, read::ShardData},
    collect::{CollectError, Collected, Collector, of_spool},
    connect::{Info, Session, end_predecessors},
    error::Refusal,
    found,
    identify::{identity, require_database_0, require_plain},
    locate::{Purpose, Tries, locate},
    params::Params,
    rdb::Reader,
    records::{Kind, OrderedStreams, SpoolError, StreamTotals, stream_name},
    replica::{self, Link, Moment, RdbSpool},
    restore::EXPIRY_SHIFT_MILLISECONDS,
    scan,
    select::Selection,
    server_data::ServerData,
};

/// Pieces of a stream that wait for the sink.
const PIECES_AHEAD: usize = 8;
/// The version of [`BackupData`].
const DATA_FORMAT: u32 = 1;

/// What a restore needs to know.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct BackupData {
    /// The version of this description.
    pub(crate) format: u32,
    /// The databases that were read, also those without a key.
    pub(crate) databases: Vec<u32>,
    /// The types of modules that values are of, by name.
    pub(crate) modules: Vec<String>,
    /// How much later keys expire in the copies of a proof, so that none vanishes while it is compared.
    pub(crate) sandbox_expiry_shift_milliseconds: i64,
    /// Whether nothing was left out, so that the server's later writes can be played on it.
    #[serde(default)]
    pub(crate) is_whole: bool,
    /// The primaries of a cluster and their slots; none for a server that runs alone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) shards: Vec<ShardData>,
}

impl BackupData {
    /// Reads what the backup left.
    pub(crate) fn of(report: &BackupReport) -> Result<Self, EngineError> {
        let data =
            Self::deserialize(&report.engine_data).map_err(|error| EngineError::Unusable {
                what: format!("the backup's notes for Redis cannot be read: {error}"),
                remedy: "restore it with the version of Fettler that made it".to_owned(),
            })?;
        if data.format != DATA_FORMAT {
            return Err(EngineError::Unusable {
                what: format!("the backup's notes have the format {}", data.format),
                remedy: "restore it with the version of Fettler that made it".to_owned(),
            });
        }
        Ok(data)
    }
}

/// What was read of a server, or of all primaries of a cluster.
#[derive(Debug)]
pub(crate) struct Source {
    /// A session for what is read beside keys.
    pub(crate) session: Session,
    pub(crate) identity: Identity,
    pub(crate) collected: Collected,
    pub(crate) position: serde_json::Value,
    pub(crate) warnings: Vec<Warning>,
    /// The primaries of a cluster.
    pub(crate) shards: Vec<ShardData>,
}

/// Reads a server.
pub(crate) async fn backup(
    context: &EngineContext,
    source: &Target,
    options: &BackupOptions,
    sink: &dyn StreamSink,
    loses_a_key: bool,
) -> Result<BackupReport, EngineError> {
    context.progress.begin("prepare", 0, 0);
    let named = Params::of(source)?;
    let selection = Selection::of_backup(named.database, &options.exclude)?;
    let folder = context.scratch.join("order");
    let mut tries = Tries::new();
    let (params, read) = loop {
        let mut may_be_tried_again = named.sentinels.is_some() || !named.more_hosts.is_empty();
        let read = async {
            let params = locate(source, Purpose::Read, &context.stop).await?;
            let mut session = Session::of_attempt(&params, context).await?;
            let info = session.info().await?;
            let folder = empty_folder(&folder)?;
            let collector = Collector::new(context, selection.clone(), &folder, loses_a_key);
            let read = if info.is_of_a_cluster() {
                may_be_tried_again = true;
                require_database_0(&params)?;
                cluster::read::read(context, &params, session, &selection, collector).await?
            } else {
                end_predecessors(&mut session, context).await?;
                require_plain(&params, &info)?;
                read_one(context, &params, session, &info, &selection, collector).await?
            };
            Ok((params, read))
        };
        match read.await {
            Ok(read) => break read,
            Err(error) if may_be_tried_again => tries.again(context, error).await?,
            Err(error) => return Err(error),
        }
    };
    let Source {
        mut session,
        identity,
        collected,
        position,
        mut warnings,
        shards,
    } = read;
    let Collected {
        mut found,
        functions,
        modules,
        streams,
        ..
    } = collected;
    // A database without keys is told of by nothing, which says that it has none.
    let least = found.entry(params.database.unwrap_or(0)).or_default();
    if position["method"] == "replication" && least.kinds.is_empty() && least.counted.is_none() {
        least.counted = Some(0);
    }

    let server = ServerData::read(&mut session, functions, &mut warnings).await?;
    drop(session);
    server.store(sink).await?;
    context.progress.begin("storing", 0, 0);
    store_keys(context, streams, sink).await?;
    // It is of no use any more; what is left of it goes with the scratch folder.
    let _left = std::fs::remove_dir_all(&folder);

    for module in &modules {
        warnings.push(Warning {
            code: "redis.module_data".to_owned(),
            message: format!(
                "the module of {} keeps something beside keys, which is not restored",
                Kind::Module(*module).name()
            ),
        });
    }
    let mut objects = found::objects(&found);
    objects.push(found::functions(
        &context.fingerprint_key,
        &server.functions,
    ));
    if let Some(users) = &server.users {
        let bytes = users.iter().map(|line| line.len() as u64).sum();
        objects.push(found::listed("acl users", bytes));
    }
    if let Some(settings) = &server.configuration {
        let bytes = settings
            .iter()
            .map(|(name, value)| (name.len() + value.len()) as u64);
        objects.push(found::listed("configuration", bytes.sum()));
    }
    let data = BackupData {
        format: DATA_FORMAT,
        databases: found.keys().copied().collect(),
        modules: found
            .values()
            .flat_map(|database| database.kinds.keys())
            .filter(|kind| matches!(kind, Kind::Module(_)))
            .map(|kind| kind.name().into_owned())
            .collect(),
        sandbox_expiry_shift_milliseconds: EXPIRY_SHIFT_MILLISECONDS,
        is_whole: params.database.is_none() && options.exclude.is_empty(),
        shards,
    };
    Ok(BackupReport {
        identity,
        position,
        objects,
        row_hash: ROW_HASH.to_owned(),
        engine_data: serde_json::to_value(&data).expect("plain data can be JSON"),
        warnings,
    })
}

/// Reads a server that runs alone or with replicas.
async fn read_one(
    context: &EngineContext,
    params: &Params,
    mut session: Session,
    info: &Info,
    selection: &Selection,
    collector: Collector,
) -> Result<Source, EngineError> {
    let identity = identity(params, &session, info);
    let keys = info.keys().values().sum();
    let mut warnings = Vec::new();
    let (collected, position) = match replica::begin(params, context).await? {
        Ok(link) => {
            context
                .progress
                .begin("reading", identity.estimated_bytes, keys);
            let moment = link.moment.clone();
            let collected = read_as_replicas(context, vec![(link, None)], collector).await?;
            (collected, position(&moment))
        }
        Err(refusal) if refusal.is_not_allowed() => {
            context.progress.begin("reading key by key", 0, keys);
            warnings.push(not_one_moment(&refusal));
            let (collected, mut offsets) = scan::read(
                context,
                params,
                vec![(&mut session, None)],
                selection,
                collector,
            )
            .await?;
            let mut position = offsets.pop().unwrap_or_default();
            position["method"] = serde_json::json!("scan");
            (collected, position)
        }
        Err(refusal) => return Err(refusal.doing(session.server(), "reading as a replica")),
    };
    Ok(Source {
        session,
        identity,
        collected,
        position,
        warnings,
        shards: Vec::new(),
    })
}

/// A word on keys that were read one by one.
pub(crate) fn not_one_moment(refusal: &Refusal) -> Warning {
    Warning {
        code: "redis.not_one_moment".to_owned(),
        message: format!(
            "the server refuses replicas ({refusal}): its keys were read one by one, each as it was at another moment"
        ),
    }
}

/// Makes a folder that holds nothing, whatever an earlier attempt left there.
fn empty_folder(folder: &Path) -> Result<PathBuf, EngineError> {
    let failed = |error| EngineError::local(format!("making {}", folder.display()), error);
    if folder.exists() {
        std::fs::remove_dir_all(folder).map_err(failed)?;
    }
    std::fs::create_dir_all(folder).map_err(failed)?;
    Ok(folder.to_owned())
}

fn position(moment: &Moment) -> serde_json::Value {
    serde_json::json!({
        "method": "replication",
        "replication_id": moment.replid,
        "offset": moment.offset,
    })
}

/// The place of a backup in the replication stream, where it was read as a replica and whole.
pub(crate) fn log_position(report: &BackupReport) -> Option<LogPosition> {
    if !BackupData::of(report).ok()?.is_whole {
        return None;
    }
    Some(LogPosition {
        history: report.position["replication_id"].as_str()?.to_owned(),
        offset: report.position["offset"].as_u64()?,
    })
}

/// Receives the RDBs of some servers, all at once, and reads one after the other behind. Each comes with the slots that its
/// server serves.
pub(crate) async fn read_as_replicas(
    context: &EngineContext,
    links: Vec<(Link, Option<SlotSet>)>,
    mut collector: Collector,
) -> Result<Collected, EngineError> {
    let halt = context.stop.child_token();
    let receiving = EngineContext {
        stop: halt.clone(),
        ..context.clone()
    };
    let (mut spools, mut followers, mut senders) = (Vec::new(), Vec::new(), Vec::new());
    for (link, slots) in links {
        let spool = RdbSpool::new(&context.scratch)?;
        followers.push((spool.follow(), slots));
        spools.push(spool.clone());
        senders.push((link, spool));
    }
    let reading = blocking(move || {
        // Whoever fails stops the other.
        let halt = halt.drop_guard();
        let read = followers.into_iter().try_for_each(|(follower, slots)| {
            collector.begin_node(slots);
            Reader::new(follower)
                .read(&mut |event| collector.take(&event))
                .map(drop)
                .map_err(|error: CollectError| error.doing("reading the RDB"))
        });
        match read {
            Ok(()) => {
                halt.disarm();
                Ok(collector.finish())
            }
            Err(error) => Err(error),
        }
    });
    let receive_all = async {
        let receiving = &receiving;
        let received = try_join_all(
            senders
                .into_iter()
                .map(|(link, spool)| async move { link.receive(receiving, &spool).await }),
        )
        .await;
        if received.is_err() {
            // One that was given up tells nobody that it ended.
            spools.iter().for_each(|spool| spool.end(false));
        }
        received
    };
    let (received, read) = tokio::join!(receive_all, reading);
    context.check_stop()?;
    match (received, read) {
        (Ok(_), read) => read,
        // The reader's failure is why the link was stopped.
        (Err(EngineError::Stopped), Err(error)) => Err(error),
        (Err(error), _) => Err(error),
    }
}

/// A message of the thread that reads the ordered keys.
enum Piece {
    Begin(u8),
    Bytes(Bytes),
    End(StreamTotals),
}

/// Why the thread that reads the ordered keys stopped.
enum Ended {
    Spool(SpoolError),
    Unheard,
}

impl From<SpoolError> for Ended {
    fn from(error: SpoolError) -> Self {
        Self::Spool(error)
    }
}

/// Writes the streams of keys.
async fn store_keys(
    context: &EngineContext,
    mut streams: OrderedStreams,
    sink: &dyn StreamSink,
) -> Result<(), EngineError> {
    let (send, mut pieces) = mpsc::channel(PIECES_AHEAD);
    let reading = blocking(move || {
        let said = |piece| send.blocking_send(piece).map_err(|_| Ended::Unheard);
        let outcome = streams.numbers().into_iter().try_for_each(|number| {
            said(Piece::Begin(number))?;
            let totals = streams.read(number, &mut |bytes| said(Piece::Bytes(bytes)))?;
            said(Piece::End(totals))
        });
        match outcome {
            Err(Ended::Spool(error)) => Err(of_spool(error)),
            // Whoever listened has the reason.
            Ok(()) | Err(Ended::Unheard) => Ok(()),
        }
    });
    let writing = async move {
        let mut writer = None;
        while let Some(piece) = pieces.recv().await {
            context.check_stop()?;
            match piece {
                Piece::Begin(number) => {
                    writer = Some(sink.open(&stream_name(number), Cut::Content).await?);
                }
                Piece::Bytes(bytes) => {
                    context.progress.add(bytes.len() as u64, 0);
                    if let Some(writer) = &mut writer {
                        writer.write(bytes).await?;
                    }
                }
                Piece::End(totals) => {
                    if let Some(writer) = writer.take() {
                        let end = StreamEnd {
                            rows: totals.keys,
                            ..StreamEnd::default()
                        };
                        writer.finish(end).await?;
                    }
                }
            }
        }
        Ok(())
    };
    let (written, read): (Result<(), EngineError>, _) = tokio::join!(writing, reading);
    written.and(read)
}
