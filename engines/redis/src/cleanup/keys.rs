//! Which keys are meant, and their archive.

use std::collections::{BTreeMap, HashSet};

use fettler_engine::{
    CleanupArchive, EngineContext, EngineError, RecordWriter, StreamSink, plan_data, refuse,
};
use fettler_model::{CleanupAction, CleanupItem, CleanupPlan, Timestamp};
use redis::{FromRedisValue as _, Value, cmd, pipe};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::connect::Answer;

use super::Visit;

/// Keys asked for at once.
const KEYS_A_SCAN: usize = 512;
/// Values that are larger stay: a script that compares one holds the server up for as long as that takes.
const LARGEST_BYTES: u64 = 64 << 20;
/// Bytes of values that are dumped at once, as the server's memory has them.
const DUMP_BYTES: u64 = 16 << 20;

/// What is meant, as the plan keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct KeysData {
    pub(super) pattern: String,
    /// A key that was last used after this moment stays.
    pub(super) cutoff: Timestamp,
    /// Keys get so many milliseconds to live, and are not removed.
    pub(super) expire_in_ms: Option<u64>,
}

/// A key that is meant.
struct Found {
    key: Vec<u8>,
    idle_seconds: u64,
    bytes: u64,
}

/// Plans.
pub(super) async fn plan(
    context: &EngineContext,
    visit: &mut Visit,
    plan: &mut CleanupPlan,
) -> Result<(), EngineError> {
    let CleanupAction::Keys {
        pattern,
        expire_in_seconds,
        ..
    } = plan.what.clone()
    else {
        return Ok(());
    };
    if visit.info.text("role") == "slave" {
        refuse(
            plan,
            "the server is a replica, which takes no changes",
            "name its primary",
        );
    }
    if visit.info.is_of_a_cluster() {
        refuse(
            plan,
            "the server is a node of a cluster, whose keys are not cleaned yet",
            "let the keys expire by the application",
        );
    }
    let policy = visit.info.text("maxmemory_policy").to_owned();
    if policy.contains("lfu") {
        refuse(
            plan,
            format!(
                "not evaluable: under the policy {policy} the server counts how often a key is used, and does not know when it last was"
            ),
            "name another `maxmemory-policy`, and wait for as long as `--idle-for` says",
        );
    }
    if !plan.refusals.is_empty() {
        return Ok(());
    }
    let data = KeysData {
        pattern,
        cutoff: plan.cutoff.unwrap_or(plan.made),
        expire_in_ms: expire_in_seconds.map(|seconds| seconds.saturating_mul(1000)),
    };
    let mut large = 0;
    for database in visit.databases().await? {
        let mut item = CleanupItem {
            name: format!("db{database}: {}", data.pattern),
            ..CleanupItem::default()
        };
        let (mut most, mut least) = (0, u64::MAX);
        let mut scan = Scan::of(database);
        while let Some((found, too_large)) = scan.next(context, visit, &data).await? {
            large += too_large;
            for one in found {
                item.rows += 1;
                item.bytes += one.bytes;
                most = most.max(one.idle_seconds);
                least = least.min(one.idle_seconds);
            }
        }
        if item.rows == 0 {
            continue;
        }
        let since = |seconds| {
            let then = plan.made.minus(std::time::Duration::from_secs(seconds));
            Some(then.to_string())
        };
        item.oldest = since(most);
        item.newest = since(least);
        plan.items.push(item);
    }
    if large > 0 {
        plan.notes.push(format!(
            "{large} keys have values of more than {} MiB and stay: remove them by hand",
            LARGEST_BYTES >> 20
        ));
    }
    if let Some(uptime) = visit.info.number("uptime_in_seconds") {
        let asked = plan.made.since(data.cutoff).as_secs();
        if uptime < asked {
            plan.notes.push(format!(
                "the server has run for {uptime} s only: what it knows of the use of keys may begin with its start, and then none is idle for longer"
            ));
        }
    }
    plan.can_be_undone = true;
    plan.engine_data = json!(data);
    Ok(())
}

/// Goes through the keys of a database.
struct Scan {
    database: u32,
    cursor: Option<u64>,
    /// A scan may give a key twice.
    seen: HashSet<Vec<u8>>,
}

impl Scan {
    fn of(database: u32) -> Self {
        Self {
            database,
            cursor: Some(0),
            seen: HashSet::new(),
        }
    }

    /// The next keys that are meant, and how many are too large; nothing at the end.
    async fn next(
        &mut self,
        context: &EngineContext,
        visit: &mut Visit,
        data: &KeysData,
    ) -> Result<Option<(Vec<Found>, u64)>, EngineError> {
        let Some(cursor) = self.cursor else {
            return Ok(None);
        };
        context.check_stop()?;
        context.progress.pulse();
        visit.session.select(self.database).await?;
        let mut asked = cmd("SCAN");
        asked
            .arg(cursor)
            .arg("MATCH")
            .arg(&data.pattern)
            .arg("COUNT")
            .arg(KEYS_A_SCAN);
        let (next, keys): (u64, Vec<Vec<u8>>) =
            visit.session.ask(&asked, "going through the keys").await?;
        self.cursor = (next != 0).then_some(next);
        let keys: Vec<Vec<u8>> = keys
            .into_iter()
            .filter(|key| self.seen.insert(key.clone()))
            .collect();
        let mut commands = pipe();
        for key in &keys {
            commands.cmd("PTTL").arg(key);
            commands.cmd("OBJECT").arg("IDLETIME").arg(key);
            commands.cmd("MEMORY").arg("USAGE").arg(key);
        }
        let now = visit.now().await?;
        let least = now.since(data.cutoff).as_secs();
        let answers = visit.session.ask_all(&commands).await?;
        let (mut found, mut large) = (Vec::new(), 0);
        for (key, told) in keys.into_iter().zip(answers.chunks_exact(3)) {
            let number = |answer: &Answer| match answer {
                Ok(value) => Option::<i64>::from_redis_value(value.clone()).unwrap_or(None),
                Err(_) => None,
            };
            if let Err(refusal) = &told[1]
                && refusal.is_not_allowed()
            {
                return Err(refusal.doing(visit.session.server(), "asking for idle times"));
            }
            let (ttl, idle) = (number(&told[0]), number(&told[1]));
            let bytes = number(&told[2]).unwrap_or_default().unsigned_abs();
            let Some(idle_seconds) = idle.and_then(|idle| u64::try_from(idle).ok()) else {
                // It is gone meanwhile.
                continue;
            };
            if ttl != Some(-1) || idle_seconds < least {
                continue;
            }
            if bytes > LARGEST_BYTES {
                large += 1;
                continue;
            }
            found.push(Found {
                key,
                idle_seconds,
                bytes,
            });
        }
        Ok(Some((found, large)))
    }
}

/// Archives the keys that are meant: the record's key is the number of the database and the key, its content the second in
/// which it was read and what `DUMP` gave.
pub(super) async fn archive(
    context: &EngineContext,
    visit: &mut Visit,
    plan: &CleanupPlan,
    sink: &dyn StreamSink,
) -> Result<CleanupArchive, EngineError> {
    let data: KeysData = plan_data(plan)?;
    let mut writer = RecordWriter::new(context, sink, &data.pattern, 0);
    let began = visit.now().await?;
    let mut databases: BTreeMap<u32, u64> = BTreeMap::new();
    for database in visit.databases().await? {
        context.progress.item(&format!("db{database}"));
        let mut scan = Scan::of(database);
        while let Some((found, _)) = scan.next(context, visit, &data).await? {
            let mut rest = found.as_slice();
            while !rest.is_empty() {
                let mut bytes = 0;
                let count = rest
                    .iter()
                    .take_while(|one| {
                        let fits = bytes < DUMP_BYTES;
                        bytes += one.bytes;
                        fits
                    })
                    .count();
                let (lot, later) = rest.split_at(count);
                rest = later;
                let mut commands = pipe();
                for one in lot {
                    commands.cmd("DUMP").arg(&one.key);
                }
                let second = visit.now().await?.micros().div_euclid(1_000_000);
                let answers = visit.session.ask_all(&commands).await?;
                for (one, answer) in lot.iter().zip(answers) {
                    let payload = match answer {
                        Ok(Value::BulkString(payload)) => payload,
                        // It is gone meanwhile.
                        Ok(_) => continue,
                        Err(refusal) => {
                            return Err(refusal.doing(visit.session.server(), "archiving keys"));
                        }
                    };
                    let mut content = second.to_le_bytes().to_vec();
                    content.extend_from_slice(&payload);
                    writer
                        .put(&[&database.to_le_bytes()[..], &one.key].concat(), &content)
                        .await?;
                    context.progress.add(content.len() as u64, 1);
                    *databases.entry(database).or_default() += 1;
                }
            }
        }
    }
    let facts = writer.finish(None).await?;
    Ok(CleanupArchive {
        rows: databases.values().sum(),
        objects: vec![facts],
        position: json!({ "at": began }),
    })
}
