//! Reading a server key by key (`SCAN`, `DUMP`), where it allows no replica. Not one moment: each key is as it was when
//! its turn came, and a key that is made or removed meanwhile may or may not be there.

use std::collections::{BTreeMap, HashSet};

use fettler_engine::{EngineContext, EngineError};
use redis::{FromRedisValue, Value, cmd, pipe};
use serde_json::json;
use tokio::sync::mpsc;

use crate::{
    blocking,
    cluster::SlotSet,
    collect::{CollectError, Collected, Collector},
    connect::{Info, Session},
    params::Params,
    rdb::{Event, read_payload},
    select::Selection,
    server_data::functions_of,
};

/// Keys asked for at once.
const KEYS_A_SCAN: usize = 512;
/// Bytes that the values of one batch may have in the server's memory; one value alone may have more.
const BATCH_BYTES: u64 = 16 * 1024 * 1024;
/// Keys of a batch where the server does not tell how large values are.
const KEYS_OF_UNKNOWN_SIZE: usize = 16;
/// The first version that tells the moment at which a key expires; before, it is computed from the time that is left, and
/// may be a millisecond or two off.
const EXACT_EXPIRY: (u32, u32) = (7, 0);
/// Keys that wait to be collected.
const KEYS_AHEAD: usize = 64;

/// A key as it was read.
struct Read {
    database: u32,
    key: Vec<u8>,
    expiry: Option<i64>,
    payload: Vec<u8>,
}

/// Reads what a selection has, of one server or of every primary of a cluster with its slots. Gives what was collected, and for
/// each between which offsets.
pub(crate) async fn read(
    context: &EngineContext,
    params: &Params,
    servers: Vec<(&mut Session, Option<SlotSet>)>,
    selection: &Selection,
    mut collector: Collector,
) -> Result<(Collected, Vec<serde_json::Value>), EngineError> {
    let mut positions = Vec::new();
    // The servers' own counts, as long as all of them are of what was read.
    let mut counts = Some(BTreeMap::<u32, u64>::new());
    for (session, slots) in servers {
        collector.begin_node(slots);
        let before = session.info().await?;
        let (read, after) = read_one(context, session, &before, selection, collector).await?;
        collector = read;
        counts = counts.filter(|_| is_untouched(&before, &after));
        for (database, keys) in after.keys() {
            if let Some(counts) = &mut counts {
                *counts.entry(database).or_default() += keys;
            }
        }
        positions.push(json!({
            "replication_id": after.text("master_replid"),
            "offset_before": before.number("master_repl_offset"),
            "offset_after": after.number("master_repl_offset"),
        }));
    }
    if let Some(mut counts) = counts {
        counts.entry(params.database.unwrap_or(0)).or_default();
        for (database, keys) in counts {
            if selection.may_have(database) {
                collector.counted(database, Some(keys));
            }
        }
    }
    let collected = blocking(move || Ok(collector.finish())).await?;
    Ok((collected, positions))
}

/// Reads one server; gives what it says afterwards.
async fn read_one(
    context: &EngineContext,
    session: &mut Session,
    before: &Info,
    selection: &Selection,
    collector: Collector,
) -> Result<(Collector, Info), EngineError> {
    let functions = match functions_of(session).await? {
        Ok(functions) => functions,
        Err(refusal) => return Err(refusal.doing(session.server(), "listing functions")),
    };
    let (send, mut keys) = mpsc::channel::<Read>(KEYS_AHEAD);
    let mut collector = collector;
    let collecting = blocking(move || {
        let mut failure = Ok(());
        while let Some(read) = keys.blocking_recv() {
            failure = read_payload(
                &read.payload,
                read.database,
                &read.key,
                read.expiry,
                &mut |event| collector.take(&event),
            )
            .map_err(|error: CollectError| error.doing("reading a key"));
            if failure.is_err() {
                break;
            }
        }
        failure.map(|()| collector)
    });
    let scanning = scan_all(context, session, before, selection, send);
    let (scanned, collected) = tokio::join!(scanning, collecting);
    let mut collector = match (scanned, collected) {
        (Ok(left_out), Ok(mut collector)) => {
            for (database, keys) in left_out {
                collector.left_out(database, keys);
            }
            collector
        }
        // Where the collector failed, the scan only lost its listener.
        (_, Err(error)) | (Err(error), Ok(_)) => return Err(error),
    };
    for (_, code) in functions {
        collector
            .take(&Event::Function(&code))
            .map_err(|error| error.doing("reading functions"))?;
    }
    let after = session.info().await?;
    Ok((collector, after))
}

/// Whether the server's own count of keys is of what was read: nothing was written, expired or evicted meanwhile. A
/// replica counts keys that have expired and that it does not show.
fn is_untouched(before: &Info, after: &Info) -> bool {
    const TOUCHED: [&str; 5] = [
        "run_id",
        "rdb_changes_since_last_save",
        "rdb_last_save_time",
        "expired_keys",
        "evicted_keys",
    ];
    before.text("role") == "master"
        && TOUCHED
            .iter()
            .all(|name| !after.text(name).is_empty() && before.text(name) == after.text(name))
}

/// Sends every key of the selection once; gives how many were left out of each database.
async fn scan_all(
    context: &EngineContext,
    session: &mut Session,
    info: &Info,
    selection: &Selection,
    send: mpsc::Sender<Read>,
) -> Result<BTreeMap<u32, u64>, EngineError> {
    let mut left_out = BTreeMap::new();
    let is_exact = info.version() >= EXACT_EXPIRY;
    for database in info.keys().into_keys() {
        if !selection.may_have(database) {
            continue;
        }
        session.select(database).await?;
        // A key may come more than once: 16 bytes of each are remembered.
        let mut seen = HashSet::new();
        let mut cursor = 0;
        loop {
            context.check_stop()?;
            let (next, keys): (u64, Vec<Vec<u8>>) = session
                .ask(
                    cmd("SCAN").arg(cursor).arg("COUNT").arg(KEYS_A_SCAN),
                    "listing the keys",
                )
                .await?;
            let mut wanted = Vec::with_capacity(keys.len());
            for key in keys {
                let hash = blake3::keyed_hash(&context.fingerprint_key, &key);
                let short: [u8; 16] = std::array::from_fn(|at| hash.as_bytes()[at]);
                if !seen.insert(short) {
                    continue;
                }
                if selection.has(database, &key) {
                    wanted.push(key);
                } else {
                    *left_out.entry(database).or_default() += 1;
                }
            }
            for batch in batches(session, wanted).await? {
                if !send_batch(context, session, database, batch, is_exact, &send).await? {
                    return Ok(left_out);
                }
            }
            cursor = next;
            if cursor == 0 {
                break;
            }
        }
    }
    Ok(left_out)
}

/// Divides keys so that the values of one batch fit into memory.
async fn batches(
    session: &mut Session,
    keys: Vec<Vec<u8>>,
) -> Result<Vec<Vec<Vec<u8>>>, EngineError> {
    let mut sizes = pipe();
    for key in &keys {
        sizes.cmd("MEMORY").arg("USAGE").arg(key);
    }
    let answers = session.ask_all(&sizes).await?;
    let mut batches: Vec<Vec<Vec<u8>>> = Vec::new();
    let mut room = 0;
    for (key, answer) in keys.into_iter().zip(answers) {
        let bytes = match answer {
            Ok(Value::Int(bytes)) => u64::try_from(bytes).unwrap_or(0),
            Ok(_) => 0,
            Err(_) => BATCH_BYTES / KEYS_OF_UNKNOWN_SIZE as u64,
        };
        match batches.last_mut() {
            Some(batch) if bytes <= room => batch.push(key),
            _ => {
                batches.push(vec![key]);
                room = BATCH_BYTES;
            }
        }
        room = room.saturating_sub(bytes);
    }
    Ok(batches)
}

/// Reads some keys and sends them; whether anybody still listens.
async fn send_batch(
    context: &EngineContext,
    session: &mut Session,
    database: u32,
    keys: Vec<Vec<u8>>,
    is_exact: bool,
    send: &mpsc::Sender<Read>,
) -> Result<bool, EngineError> {
    let mut commands = pipe();
    commands.cmd("TIME");
    for key in &keys {
        commands.cmd("DUMP").arg(key);
        commands
            .cmd(if is_exact { "PEXPIRETIME" } else { "PTTL" })
            .arg(key);
    }
    let mut answers = session.ask_all(&commands).await?.into_iter();
    let server = session.server().to_owned();
    let mut next = || {
        answers
            .next()
            .expect("as many answers as commands, which the session has looked at")
            .map_err(|refusal| refusal.doing(&server, "reading keys"))
    };
    let now = milliseconds(next()?).ok_or_else(|| EngineError::Database {
        what: "the server does not tell its time".to_owned(),
        transient: false,
    })?;
    for key in keys {
        let (payload, expiry) = (next()?, next()?);
        // A key that is gone by now was there at no moment that matters.
        let (Value::BulkString(payload), Value::Int(expiry)) = (payload, expiry) else {
            continue;
        };
        if expiry == -2 {
            continue;
        }
        context.progress.add(payload.len() as u64, 0);
        context.rate.pass(payload.len() as u64).await;
        let read = Read {
            database,
            key,
            expiry: (expiry >= 0).then(|| {
                if is_exact {
                    expiry
                } else {
                    now.saturating_add(expiry)
                }
            }),
            payload,
        };
        if send.send(read).await.is_err() {
            return Ok(false);
        }
    }
    Ok(true)
}

/// What `TIME` tells, in milliseconds since 1970.
pub(crate) fn milliseconds(time: Value) -> Option<i64> {
    let (seconds, microseconds) = <(i64, i64)>::from_redis_value(time).ok()?;
    Some(seconds * 1000 + microseconds / 1000)
}
