//! The removal of keys, by a script that compares at the server, and their return.

use std::time::Duration;

use async_trait::async_trait;
use fettler_engine::{EngineError, Fate, Record, RecordRemover, RecordRestorer, Return};
use fettler_model::Timestamp;
use redis::{Cmd, FromRedisValue as _, Value, cmd, pipe};

use crate::{
    connect::Answer,
    rdb::{Event, RdbError, read_payload},
    records::Element,
};

use super::{Visit, keys::KeysData};

/// Removes a key, or gives it a time to live, if it still is what the archive holds and was not used since.
///
/// `ARGV`: the payload; the least idle time in seconds; the milliseconds to live, or 0 to remove.
const REMOVE: &str = "
local ttl = redis.call('PTTL', KEYS[1])
if ttl == -2 then return 'gone' end
if ttl >= 0 and tonumber(ARGV[3]) > 0 and ttl <= tonumber(ARGV[3]) then return 'gone' end
if ttl ~= -1 then return 'changed' end
if redis.call('OBJECT', 'IDLETIME', KEYS[1]) < tonumber(ARGV[2]) then return 'used' end
if redis.call('DUMP', KEYS[1]) ~= ARGV[1] then return 'other' end
if tonumber(ARGV[3]) > 0 then redis.call('PEXPIRE', KEYS[1], ARGV[3]) else redis.call('UNLINK', KEYS[1]) end
return 'removed'";
/// Takes the time to live from a key that still is what the archive holds.
const PERSIST: &str = "
if redis.call('DUMP', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('PERSIST', KEYS[1])";

/// The clock of idle times goes by whole seconds, and may be one behind.
const CLOCK_SECONDS: u64 = 2;

/// Removes, and puts back.
pub(super) struct Work {
    visit: Visit,
    data: KeysData,
}

/// A record's database, key, second and payload.
struct Read<'a> {
    database: u32,
    key: &'a [u8],
    second: i64,
    payload: &'a [u8],
}

impl<'a> Read<'a> {
    fn of(record: &'a Record) -> Result<Self, EngineError> {
        let parts = (
            record.key.split_first_chunk::<4>(),
            record.content.split_first_chunk::<8>(),
        );
        let (Some((database, key)), Some((second, payload))) = parts else {
            return Err(EngineError::Unusable {
                what: "a key of the archive cannot be read".to_owned(),
                remedy: "run `fettler verify` on it".to_owned(),
            });
        };
        Ok(Self {
            database: u32::from_le_bytes(*database),
            key,
            second: i64::from_le_bytes(*second),
            payload,
        })
    }

    /// Whether another payload holds the same elements. A server may write one value in several orders.
    fn is_same_as(&self, payload: &[u8]) -> bool {
        self.payload == payload || {
            let (own, other) = (self.elements(self.payload), self.elements(payload));
            own.is_some() && own == other
        }
    }

    /// The elements, in an order of our own where theirs means nothing; nothing where they cannot be read.
    fn elements(&self, payload: &[u8]) -> Option<Vec<String>> {
        let (mut all, mut is_ordered) = (Vec::new(), false);
        read_payload(
            payload,
            self.database,
            self.key,
            None,
            &mut |event: Event<'_>| -> Result<(), RdbError> {
                is_ordered |= !matches!(
                    event,
                    Event::Begin(_)
                        | Event::End
                        | Event::Element(
                            Element::Member(_) | Element::Scored { .. } | Element::Field { .. }
                        )
                );
                all.push(format!("{event:?}"));
                Ok(())
            },
        )
        .ok()?;
        if !is_ordered {
            all.sort_unstable();
        }
        Some(all)
    }
}

impl Work {
    pub(super) const fn new(visit: Visit, data: KeysData) -> Self {
        Self { visit, data }
    }

    /// One command for each record, in the record's database.
    async fn each(
        &mut self,
        reads: &[Read<'_>],
        command: impl Fn(&Read<'_>) -> Cmd + Send,
    ) -> Result<Vec<Answer>, EngineError> {
        let mut commands = pipe();
        let mut is_own = Vec::new();
        for read in reads {
            if let Some(select) = self.visit.session.selecting(read.database) {
                commands.add_command(select);
                is_own.push(false);
            }
            commands.add_command(command(read));
            is_own.push(true);
        }
        let answers = self.visit.session.ask_all(&commands).await?;
        Ok(answers
            .into_iter()
            .zip(is_own)
            .filter_map(|(answer, is_own)| is_own.then_some(answer))
            .collect())
    }

    async fn dumped(&mut self, read: &Read<'_>) -> Result<Option<Vec<u8>>, EngineError> {
        self.visit.session.select(read.database).await?;
        self.visit
            .session
            .ask(cmd("DUMP").arg(read.key), "looking at a key")
            .await
    }

    fn word(&self, answer: Answer, doing: &str) -> Result<String, EngineError> {
        let server = self.visit.session.server();
        let value = answer.map_err(|refusal| refusal.doing(server, doing))?;
        String::from_redis_value(value)
            .map_err(|error| self.visit.session.unexpected(doing, &error))
    }
}

/// How long a key must have been idle now.
fn least_idle(data: &KeysData, leaves_no_trace: bool, now: Timestamp, read: &Read<'_>) -> u64 {
    if leaves_no_trace {
        return now.since(data.cutoff).as_secs();
    }
    // It was read when it was archived.
    let archived = Timestamp::from_micros(read.second.saturating_mul(1_000_000));
    now.since(archived).as_secs().saturating_sub(CLOCK_SECONDS)
}

fn removal(data: &KeysData, read: &Read<'_>, payload: &[u8], least_idle: u64) -> Cmd {
    let mut made = cmd("EVAL");
    made.arg(REMOVE)
        .arg(1)
        .arg(read.key)
        .arg(payload)
        .arg(least_idle)
        .arg(data.expire_in_ms.unwrap_or(0));
    made
}

#[async_trait]
impl RecordRemover for Work {
    async fn remove(&mut self, records: &[Record]) -> Result<Vec<Fate>, EngineError> {
        const DOING: &str = "removing keys";
        let reads: Vec<Read<'_>> = records.iter().map(Read::of).collect::<Result<_, _>>()?;
        let now = self.visit.now().await?;
        let (data, leaves_no_trace) = (self.data.clone(), self.visit.leaves_no_trace);
        let answers = self
            .each(&reads, |read| {
                let idle = least_idle(&data, leaves_no_trace, now, read);
                removal(&data, read, read.payload, idle)
            })
            .await?;
        let mut fates = Vec::with_capacity(reads.len());
        for (read, answer) in reads.iter().zip(answers) {
            let mut word = self.word(answer, DOING)?;
            if word == "other"
                && let Some(payload) = self.dumped(read).await?
                && read.is_same_as(&payload)
            {
                // The same elements in another order: compared here, and by its bytes at the server. This look used it.
                let again = removal(&data, read, &payload, 0);
                let answer = self.visit.session.try_ask(&again).await?;
                word = self.word(answer, DOING)?;
            }
            fates.push(match word.as_str() {
                "removed" => Fate::Removed,
                "gone" => Fate::Gone,
                _ => Fate::Changed,
            });
        }
        Ok(fates)
    }

    fn shown(&self, record: &Record) -> String {
        shown(record)
    }

    async fn is_behind(&mut self, most: Duration) -> Result<bool, EngineError> {
        let info = self.visit.session.info().await?;
        // A replica acknowledges what it has each second; its line tells how long ago that was.
        let replicas = info.number("connected_slaves").unwrap_or(0);
        Ok((0..replicas).any(|number| {
            let line = info.text(&format!("slave{number}")).to_owned();
            let field = |name: &str| {
                line.split(',')
                    .find_map(|field| field.strip_prefix(name)?.strip_prefix('='))
                    .map(str::to_owned)
            };
            field("state").as_deref() == Some("online")
                && field("lag")
                    .and_then(|lag| lag.parse::<u64>().ok())
                    .is_some_and(|lag| Duration::from_secs(lag) > most)
        }))
    }
}

fn shown(record: &Record) -> String {
    Read::of(record).map_or_else(
        |_| "?".to_owned(),
        |read| format!("db{} {}", read.database, read.key.escape_ascii()),
    )
}

#[async_trait]
impl RecordRestorer for Work {
    async fn put_back(
        &mut self,
        records: &[Record],
        dry_run: bool,
    ) -> Result<Vec<Return>, EngineError> {
        const DOING: &str = "putting keys back";
        let reads: Vec<Read<'_>> = records.iter().map(Read::of).collect::<Result<_, _>>()?;
        let answers = self
            .each(&reads, |read| {
                if dry_run {
                    return cmd("EXISTS").arg(read.key).to_owned();
                }
                // Without REPLACE: a key that is there stays.
                cmd("RESTORE")
                    .arg(read.key)
                    .arg(0)
                    .arg(read.payload)
                    .to_owned()
            })
            .await?;
        let mut returns = Vec::with_capacity(reads.len());
        for (read, answer) in reads.iter().zip(answers) {
            let is_there = match answer {
                Ok(Value::Int(count)) => count > 0,
                Ok(_) => false,
                Err(refusal) if refusal.code == "BUSYKEY" => true,
                Err(refusal) => {
                    return Err(refusal.doing(self.visit.session.server(), DOING));
                }
            };
            if !is_there {
                returns.push(Return::Restored);
                continue;
            }
            let Some(payload) = self.dumped(read).await? else {
                // It went away just now; the next run puts it back.
                returns.push(Return::Taken);
                continue;
            };
            if !read.is_same_as(&payload) {
                returns.push(Return::Taken);
                continue;
            }
            let ttl: i64 = self
                .visit
                .session
                .ask(cmd("PTTL").arg(read.key), "looking at a key")
                .await?;
            if ttl < 0 || self.data.expire_in_ms.is_none() {
                returns.push(Return::There);
                continue;
            }
            if dry_run {
                returns.push(Return::Restored);
                continue;
            }
            let mut persist = cmd("EVAL");
            persist.arg(PERSIST).arg(1).arg(read.key).arg(&payload);
            let kept: i64 = self.visit.session.ask(&persist, DOING).await?;
            returns.push(if kept == 1 {
                Return::Restored
            } else {
                Return::Taken
            });
        }
        Ok(returns)
    }

    fn shown(&self, record: &Record) -> String {
        shown(record)
    }
}
