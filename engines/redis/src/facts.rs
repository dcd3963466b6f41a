//! Reads a restored copy by commands and says what is inside.
//!
//! Nothing here knows the RDB but for values of modules, which only `DUMP` tells: a mistake of the reader of RDBs cannot
//! cancel itself out. Large values come in windows, so that memory stays bounded whatever their size.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use fettler_engine::{BackupReport, EngineContext, EngineError, RowHasher, Target};
use fettler_model::ObjectFacts;
use redis::{Cmd, FromRedisValue, Value, cmd, pipe};

use crate::{
    backup::BackupData,
    collect::{CollectError, bytes_of},
    connect::{Answer, Session},
    found::{self, Found, FoundDatabase},
    locate::{Purpose, locate},
    params::Params,
    rdb::{Event, read_payload},
    records::{Element, KeyHasher, KeyHead, Kind, StreamId},
    restore::{Server, Servers, taken_back},
    sandbox,
    select::Selection,
    server_data::functions_of,
};

/// Keys asked for at once.
const KEYS_A_SCAN: usize = 512;
/// A value up to this size in the server's memory is asked for whole, together with others.
const SMALL_VALUE: u64 = 64 * 1024;
/// Bytes of the values that are asked for at once.
const WINDOW_BYTES: u64 = 4 * 1024 * 1024;
/// Elements asked for at once.
const WINDOW_ELEMENTS: u64 = 5000;
/// How often a value or a database is read that seems to change meanwhile.
const TRIES: u32 = 3;
/// The first version of Redis whose hashes have fields that expire.
const FIELD_EXPIRY: (u32, u32) = (7, 4);
/// What was being done, for messages.
const READING: &str = "reading the copy";

/// Reads a copy.
pub(crate) async fn facts(
    context: &EngineContext,
    copy: &Target,
    expected: &BackupReport,
) -> Result<Vec<ObjectFacts>, EngineError> {
    context.check_stop()?;
    let data = BackupData::of(expected)?;
    let params = locate(copy, Purpose::Write, &context.stop).await?;
    let Servers {
        mut all,
        is_cluster,
    } = Servers::reach(context, &params).await?;
    let databases: BTreeSet<u32> = match params.database {
        Some(one) => [one].into(),
        None => data
            .databases
            .iter()
            .copied()
            .chain(all.iter().flat_map(|one| one.info.keys().into_keys()))
            .collect(),
    };
    let mut functions: Vec<Vec<u8>> = Vec::new();
    for Server { session, .. } in &mut all {
        let libraries = functions_of(session)
            .await?
            .map_err(|refusal| refusal.doing(session.server(), "listing functions"))?;
        for (_, code) in libraries {
            // All nodes of a cluster have each.
            if !functions.contains(&code) {
                functions.push(code);
            }
        }
    }

    let mut found = Found::new();
    for Server {
        mut session, info, ..
    } in all
    {
        let is_sandbox = !is_cluster && sandbox::is_marked(&mut session, context).await?;
        let mut reader = CopyReader {
            session,
            context,
            hasher: KeyHasher::new(RowHasher::new(&context.fingerprint_key)),
            is_sandbox,
            mark: sandbox::mark(context.attempt.job),
            fields_expire: info.version() >= FIELD_EXPIRY,
            database: 0,
            named: 0,
            living: None,
            found: FoundDatabase::default(),
        };
        for database in databases
            .iter()
            .filter(|number| !is_cluster || **number == 0)
        {
            let read = reader.read(*database).await?;
            // The mark alone makes no database of the copy's.
            if !read.kinds.is_empty() || data.databases.contains(database) {
                found.entry(*database).or_default().add(&read);
            }
        }
    }
    let mut objects = found::objects(&found);
    objects.push(found::functions(&context.fingerprint_key, &functions));
    Ok(objects)
}

/// What of a server that people use is looked at: a server in which keys come and go.
#[derive(Clone)]
pub(crate) struct Living {
    /// Keys by the numbers that their databases have at the source.
    pub(crate) selection: Selection,
    /// Keys that expire by then, in milliseconds since 1970, are left out.
    pub(crate) horizon: i64,
}

/// Reads what was restored into a server that people use. `places` are databases by their numbers at the source, with those
/// here; what is found is told by the former.
pub(crate) async fn living(
    context: &EngineContext,
    params: &Params,
    places: &BTreeMap<u32, u32>,
    living: Living,
) -> Result<Found, EngineError> {
    let mut found = Found::new();
    for Server { session, info, .. } in Servers::reach(context, params).await?.all {
        let mut reader = CopyReader {
            session,
            context,
            hasher: KeyHasher::new(RowHasher::new(&context.fingerprint_key)),
            is_sandbox: false,
            mark: sandbox::mark(context.attempt.job),
            fields_expire: info.version() >= FIELD_EXPIRY,
            database: 0,
            named: 0,
            living: Some(living.clone()),
            found: FoundDatabase::default(),
        };
        for (from, to) in places {
            reader.named = *from;
            let read = reader.read(*to).await?;
            found.entry(*from).or_default().add(&read);
        }
    }
    Ok(found)
}

/// A key before its value is read.
struct Key {
    name: Vec<u8>,
    kind: String,
    expiry: Option<i64>,
    /// Bytes in the server's memory, where it tells.
    bytes: Option<u64>,
}

struct CopyReader<'a> {
    session: Session,
    context: &'a EngineContext,
    hasher: KeyHasher,
    is_sandbox: bool,
    /// The key that marks a sandbox.
    mark: String,
    fields_expire: bool,
    database: u32,
    /// The number that the database had at the source.
    named: u32,
    /// Where the copy is in a server that people use.
    living: Option<Living>,
    found: FoundDatabase,
}

impl CopyReader<'_> {
    /// Reads a database, once more where keys came twice or not at all.
    async fn read(&mut self, database: u32) -> Result<FoundDatabase, EngineError> {
        self.session.select(database).await?;
        self.database = database;
        if self.living.is_none() {
            self.named = database;
        }
        let mut seen = None;
        for _ in 0..TRIES {
            let counted: u64 = self.session.ask(&cmd("DBSIZE"), "counting keys").await?;
            self.found = FoundDatabase::default();
            let keys = self.scan(seen.as_mut()).await?;
            // Keys that are left out come and go: where each was looked at once, all is well.
            if keys == counted || (self.living.is_some() && seen.is_some()) {
                return Ok(std::mem::take(&mut self.found));
            }
            // A key may come twice while the server's table grows; then each is remembered by 16 bytes.
            seen = Some(HashSet::new());
        }
        Err(EngineError::Database {
            what: format!("database {database} of the copy changes while it is read"),
            transient: true,
        })
    }

    /// Reads all keys; gives how many there were.
    async fn scan(&mut self, mut seen: Option<&mut HashSet<[u8; 16]>>) -> Result<u64, EngineError> {
        let (mut cursor, mut count) = (0, 0);
        loop {
            self.context.check_stop()?;
            let scan = cmd("SCAN")
                .arg(cursor)
                .arg("COUNT")
                .arg(KEYS_A_SCAN)
                .to_owned();
            let (next, mut keys): (u64, Vec<Vec<u8>>) =
                self.session.ask(&scan, "listing the keys").await?;
            if let Some(seen) = &mut seen {
                keys.retain(|key| {
                    let hash = blake3::keyed_hash(&self.context.fingerprint_key, key);
                    seen.insert(std::array::from_fn(|at| hash.as_bytes()[at]))
                });
            }
            count += keys.len() as u64;
            if self.is_sandbox && self.database == sandbox::MARK_DATABASE {
                keys.retain(|key| *key != self.mark.as_bytes());
            }
            if let Some(living) = &self.living {
                keys.retain(|key| living.selection.has(self.named, key));
            }
            let read = keys.len() as u64;
            self.keys(keys).await?;
            self.context.progress.add(0, read);
            cursor = next;
            if cursor == 0 {
                return Ok(count);
            }
        }
    }

    /// Reads some keys: small values together, each large one by itself.
    async fn keys(&mut self, names: Vec<Vec<u8>>) -> Result<(), EngineError> {
        let mut window = Vec::new();
        let mut window_bytes = 0;
        for key in self.look_at(names).await? {
            let is_plain = whole_value(&key.kind, &key.name).is_some();
            match key.bytes {
                Some(bytes) if is_plain && bytes <= SMALL_VALUE => {
                    window_bytes += bytes;
                    window.push(key);
                    if window_bytes >= WINDOW_BYTES {
                        self.small(std::mem::take(&mut window)).await?;
                        window_bytes = 0;
                    }
                }
                _ => self.large(&key).await?,
            }
        }
        self.small(window).await
    }

    /// Asks for types, expiries and sizes. Keys that are gone are left out: their number will tell.
    async fn look_at(&mut self, names: Vec<Vec<u8>>) -> Result<Vec<Key>, EngineError> {
        let mut asked = pipe();
        for name in &names {
            asked.cmd("TYPE").arg(name);
            asked.cmd("PEXPIRETIME").arg(name);
            asked
                .cmd("MEMORY")
                .arg("USAGE")
                .arg(name)
                .arg("SAMPLES")
                .arg(0);
        }
        let mut answers = self.session.ask_all(&asked).await?.into_iter();
        let mut keys = Vec::with_capacity(names.len());
        for name in names {
            let kind: String = self.read_as(next(&mut answers))?;
            let moment: i64 = self.read_as(next(&mut answers))?;
            // A user who may not ask for sizes has each value read by itself.
            let bytes = next(&mut answers)
                .ok()
                .and_then(|value| u64::from_redis_value(value).ok());
            if kind == "none" || moment == -2 {
                continue;
            }
            if let Some(living) = &self.living
                && moment >= 0
                && moment <= living.horizon
            {
                continue;
            }
            keys.push(Key {
                name,
                kind,
                expiry: (moment >= 0).then(|| self.moment(moment)),
                bytes,
            });
        }
        Ok(keys)
    }

    /// A moment of expiry as it was at the source.
    fn moment(&self, moment: i64) -> i64 {
        if self.is_sandbox {
            taken_back(moment)
        } else {
            moment
        }
    }

    fn read_as<T: FromRedisValue>(&self, answer: Answer) -> Result<T, EngineError> {
        let value = answer.map_err(|refusal| refusal.doing(self.session.server(), READING))?;
        T::from_redis_value(value).map_err(|error| self.session.unexpected(READING, &error))
    }

    async fn ask<T: FromRedisValue>(&mut self, command: &Cmd) -> Result<T, EngineError> {
        self.session.ask(command, READING).await
    }

    /// Begins a key.
    fn begin(&mut self, key: &Key, kind: Kind) {
        self.found.bytes += key.name.len() as u64;
        self.hasher.begin(&KeyHead {
            database: self.named,
            key: &key.name,
            expiry: key.expiry,
            kind,
        });
    }

    fn element(&mut self, element: &Element<'_>) {
        self.found.bytes += bytes_of(element);
        self.hasher.element(element);
    }

    fn end(&mut self, kind: Kind) {
        self.hasher.end(self.found.kinds.entry(kind).or_default());
    }

    /// Reads small values whole, all at once.
    async fn small(&mut self, keys: Vec<Key>) -> Result<(), EngineError> {
        let mut asked = pipe();
        for key in &keys {
            if let Some((_, command)) = whole_value(&key.kind, &key.name) {
                asked.add_command(command);
            }
        }
        let mut answers = self.session.ask_all(&asked).await?.into_iter();
        for key in &keys {
            let Some((kind, _)) = whole_value(&key.kind, &key.name) else {
                continue;
            };
            match kind {
                Kind::String => {
                    let value: Vec<u8> = self.read_as(next(&mut answers))?;
                    self.begin(key, kind);
                    self.element(&Element::StringPiece(&value));
                }
                Kind::Hash => {
                    let flat: Vec<Vec<u8>> = self.read_flat(next(&mut answers))?;
                    let moments = self.field_moments(key, &flat).await?;
                    self.begin(key, kind);
                    self.fields(&flat, &moments);
                }
                Kind::SortedSet => {
                    let flat: Vec<Vec<u8>> = self.read_flat(next(&mut answers))?;
                    self.begin(key, kind);
                    self.scored(&flat)?;
                }
                _ => {
                    let items: Vec<Vec<u8>> = self.read_as(next(&mut answers))?;
                    self.begin(key, kind);
                    self.items(kind, &items);
                }
            }
            self.end(kind);
        }
        Ok(())
    }

    /// Names and values by turns, whatever form the library gives them.
    fn read_flat(&self, answer: Answer) -> Result<Vec<Vec<u8>>, EngineError> {
        match answer {
            Ok(Value::Map(pairs)) => pairs
                .into_iter()
                .flat_map(|(name, value)| [name, value])
                .map(|value| self.read_as(Ok(value)))
                .collect(),
            other => self.read_as(other),
        }
    }

    fn items(&mut self, kind: Kind, items: &[Vec<u8>]) {
        for item in items {
            self.element(&if kind == Kind::List {
                Element::Item(item)
            } else {
                Element::Member(item)
            });
        }
    }

    fn scored(&mut self, flat: &[Vec<u8>]) -> Result<(), EngineError> {
        for pair in flat.as_chunks::<2>().0 {
            let score = std::str::from_utf8(&pair[1])
                .ok()
                .and_then(|text| text.parse().ok())
                .ok_or_else(|| {
                    self.session
                        .unexpected(READING, &"a score that is no number")
                })?;
            self.element(&Element::Scored {
                member: &pair[0],
                score,
            });
        }
        Ok(())
    }

    /// When the fields of a hash expire; empty where this server's fields do not.
    async fn field_moments(
        &mut self,
        key: &Key,
        flat: &[Vec<u8>],
    ) -> Result<Vec<Option<u64>>, EngineError> {
        if !self.fields_expire || flat.is_empty() {
            return Ok(Vec::new());
        }
        let mut asked = cmd("HPEXPIRETIME");
        asked.arg(&key.name).arg("FIELDS").arg(flat.len() / 2);
        for pair in flat.as_chunks::<2>().0 {
            asked.arg(&pair[0]);
        }
        let moments: Vec<i64> = self.ask(&asked).await?;
        Ok(moments
            .into_iter()
            .map(|moment| u64::try_from(moment).ok())
            .map(|moment| moment.map(|moment| self.moment(moment.cast_signed()).unsigned_abs()))
            .collect())
    }

    fn fields(&mut self, flat: &[Vec<u8>], moments: &[Option<u64>]) {
        for (at, pair) in flat.as_chunks::<2>().0.iter().enumerate() {
            self.element(&Element::Field {
                field: &pair[0],
                value: &pair[1],
                expiry: moments.get(at).copied().flatten(),
            });
        }
    }

    /// Reads a value in windows.
    async fn large(&mut self, key: &Key) -> Result<(), EngineError> {
        let kind = match whole_value(&key.kind, &key.name) {
            Some((kind, _)) => kind,
            None if key.kind == "stream" => Kind::Stream,
            None => return self.module(key).await,
        };
        match kind {
            Kind::String => self.large_string(key).await?,
            Kind::List => self.ranges(key, kind, "LLEN", "LRANGE", &[]).await?,
            Kind::SortedSet => {
                self.ranges(key, kind, "ZCARD", "ZRANGE", &["WITHSCORES"])
                    .await?;
            }
            Kind::Set => self.scanned(key, kind, "SCARD", "SSCAN").await?,
            Kind::Hash => self.scanned(key, kind, "HLEN", "HSCAN").await?,
            Kind::Stream | Kind::Module(_) => self.stream(key).await?,
        }
        self.end(kind);
        Ok(())
    }

    async fn large_string(&mut self, key: &Key) -> Result<(), EngineError> {
        let length: u64 = self.ask(cmd("STRLEN").arg(&key.name)).await?;
        self.begin(key, Kind::String);
        let mut at = 0;
        while at < length {
            let range = cmd("GETRANGE")
                .arg(&key.name)
                .arg(at)
                .arg(at + WINDOW_BYTES - 1)
                .to_owned();
            let piece: Vec<u8> = self.ask(&range).await?;
            self.element(&Element::StringPiece(&piece));
            self.context.progress.add(piece.len() as u64, 0);
            if piece.is_empty() {
                break;
            }
            at += piece.len() as u64;
        }
        Ok(())
    }

    /// How many elements of a value are asked for at once.
    fn window(key: &Key, elements: u64) -> u64 {
        let average = key.bytes.unwrap_or(0) / elements.max(1);
        (WINDOW_BYTES / average.max(1)).clamp(1, WINDOW_ELEMENTS)
    }

    /// Reads what has an order, by its ranks.
    async fn ranges(
        &mut self,
        key: &Key,
        kind: Kind,
        count: &str,
        verb: &str,
        ending: &[&str],
    ) -> Result<(), EngineError> {
        let length: u64 = self.ask(cmd(count).arg(&key.name)).await?;
        let window = Self::window(key, length);
        self.begin(key, kind);
        let mut at = 0;
        while at < length {
            self.context.check_stop()?;
            let range = cmd(verb)
                .arg(&key.name)
                .arg(at)
                .arg(at + window - 1)
                .arg(ending)
                .to_owned();
            let answer = self.session.try_ask(&range).await?;
            let items = self.read_flat(answer)?;
            if kind == Kind::SortedSet {
                self.scored(&items)?;
            } else {
                self.items(kind, &items);
            }
            self.context.progress.pulse();
            at += window;
        }
        Ok(())
    }

    /// Reads what has no order, by a cursor; once more where elements came twice.
    async fn scanned(
        &mut self,
        key: &Key,
        kind: Kind,
        count: &str,
        verb: &str,
    ) -> Result<(), EngineError> {
        let length: u64 = self.ask(cmd(count).arg(&key.name)).await?;
        let window = Self::window(key, length);
        let bytes = self.found.bytes;
        for _ in 0..TRIES {
            self.found.bytes = bytes;
            self.begin(key, kind);
            let (mut cursor, mut read) = (0, 0);
            loop {
                self.context.check_stop()?;
                let scan = cmd(verb)
                    .arg(&key.name)
                    .arg(cursor)
                    .arg("COUNT")
                    .arg(window)
                    .to_owned();
                let (next, items): (u64, Value) = self.ask(&scan).await?;
                let items = self.read_flat(Ok(items))?;
                if kind == Kind::Hash {
                    let moments = self.field_moments(key, &items).await?;
                    self.fields(&items, &moments);
                    read += items.len() as u64 / 2;
                } else {
                    self.items(kind, &items);
                    read += items.len() as u64;
                }
                self.context.progress.pulse();
                cursor = next;
                if cursor == 0 {
                    break;
                }
            }
            if read == length {
                return Ok(());
            }
        }
        Err(EngineError::Database {
            what: format!("a {} of the copy changes while it is read", kind.name()),
            transient: true,
        })
    }

    /// Reads a stream with its groups.
    async fn stream(&mut self, key: &Key) -> Result<(), EngineError> {
        let told = self.stream_told(key, None).await?;
        let length: u64 = self.member(&told, "length")?;
        let window = Self::window(key, length);
        self.begin(key, Kind::Stream);
        let mut from = "-".to_owned();
        loop {
            self.context.check_stop()?;
            let range = cmd("XRANGE")
                .arg(&key.name)
                .arg(&from)
                .arg("+")
                .arg("COUNT")
                .arg(window)
                .to_owned();
            let entries: Vec<(String, Vec<Vec<u8>>)> = self.ask(&range).await?;
            for (id, fields) in &entries {
                self.element(&Element::Entry {
                    id: self.id(id)?,
                    fields,
                });
            }
            self.context.progress.pulse();
            match entries.last() {
                Some((last, _)) if entries.len() as u64 == window => from = format!("({last}"),
                _ => break,
            }
        }
        let groups: u64 = self.member(&told, "groups")?;
        let (last, deleted): (String, String) = (
            self.member(&told, "last-generated-id")?,
            self.member(&told, "max-deleted-entry-id")?,
        );
        let facts = Element::StreamFacts {
            last_id: self.id(&last)?,
            max_deleted_id: self.id(&deleted)?,
            entries_added: self.member(&told, "entries-added")?,
            groups,
        };
        self.element(&facts);
        if groups > 0 {
            self.groups(key).await?;
        }
        Ok(())
    }

    /// Reads the groups of a stream. The exact moments of delivery are told by the full form only, whose limit holds for
    /// entries and pending entries alike.
    async fn groups(&mut self, key: &Key) -> Result<(), EngineError> {
        let mut limit = 1;
        let groups = loop {
            let told = self.stream_told(key, Some(limit)).await?;
            let groups: Vec<Value> = self.member(&told, "groups")?;
            let groups: Vec<HashMap<String, Value>> = groups
                .into_iter()
                .map(|group| self.members(group))
                .collect::<Result<_, _>>()?;
            let mut most = 1;
            for group in &groups {
                // A consumer has no more of them than its group.
                let pending: u64 = self.member(group, "pel-count")?;
                most = pending.max(most);
            }
            if most <= limit {
                break groups;
            }
            limit = most;
        };
        for group in &groups {
            self.group(group)?;
        }
        Ok(())
    }

    fn group(&mut self, group: &HashMap<String, Value>) -> Result<(), EngineError> {
        let name: Vec<u8> = self.member(group, "name")?;
        let last: String = self.member(group, "last-delivered-id")?;
        let pending: Vec<(String, Vec<u8>, i64, u64)> = self.member(group, "pending")?;
        let consumers: Vec<Value> = self.member(group, "consumers")?;
        let head = Element::Group {
            name: &name,
            last_id: self.id(&last)?,
            entries_read: self.member(group, "entries-read")?,
            pending: pending.len() as u64,
        };
        self.element(&head);
        for (id, _consumer, delivered, deliveries) in pending {
            let pending = Element::Pending {
                id: self.id(&id)?,
                delivered,
                deliveries,
            };
            self.element(&pending);
        }
        self.element(&Element::Consumers(consumers.len() as u64));
        for consumer in consumers {
            let consumer = self.members(consumer)?;
            let name: Vec<u8> = self.member(&consumer, "name")?;
            let own: Vec<(String, i64, u64)> = self.member(&consumer, "pending")?;
            let head = Element::Consumer {
                name: &name,
                seen: self.member(&consumer, "seen-time")?,
                active: match consumer.get("active-time") {
                    Some(_) => Some(self.member(&consumer, "active-time")?),
                    None => None,
                },
                pending: own.len() as u64,
            };
            self.element(&head);
            for (id, _, _) in own {
                let id = self.id(&id)?;
                self.element(&Element::ConsumerPending(id));
            }
        }
        Ok(())
    }

    /// What the server tells of a stream; in full with a limit.
    async fn stream_told(
        &mut self,
        key: &Key,
        full: Option<u64>,
    ) -> Result<HashMap<String, Value>, EngineError> {
        let mut asked = cmd("XINFO");
        asked.arg("STREAM").arg(&key.name);
        if let Some(limit) = full {
            asked.arg("FULL").arg("COUNT").arg(limit);
        }
        let told: Value = self.ask(&asked).await?;
        self.members(told)
    }

    fn members(&self, told: Value) -> Result<HashMap<String, Value>, EngineError> {
        let pairs = told
            .into_map_iter()
            .map_err(|_| self.session.unexpected(READING, &"no pairs"))?;
        let mut members = HashMap::new();
        for (name, value) in pairs {
            members.insert(self.read_as(Ok(name))?, value);
        }
        Ok(members)
    }

    fn member<T: FromRedisValue>(
        &self,
        members: &HashMap<String, Value>,
        name: &str,
    ) -> Result<T, EngineError> {
        let value = members.get(name).cloned().ok_or_else(|| {
            self.session
                .unexpected(READING, &format!("there is no {name}"))
        })?;
        self.read_as(Ok(value))
    }

    fn id(&self, text: &str) -> Result<StreamId, EngineError> {
        text.split_once('-')
            .and_then(|(milliseconds, sequence)| {
                Some(StreamId {
                    milliseconds: milliseconds.parse().ok()?,
                    sequence: sequence.parse().ok()?,
                })
            })
            .ok_or_else(|| self.session.unexpected(READING, &"no id of an entry"))
    }

    /// Reads a module's value, which only the module itself understands.
    async fn module(&mut self, key: &Key) -> Result<(), EngineError> {
        let payload: Vec<u8> = self.ask(cmd("DUMP").arg(&key.name)).await?;
        self.found.bytes += key.name.len() as u64;
        let (database, name, expiry) = (self.database, key.name.clone(), key.expiry);
        let mut kind = None;
        let (hasher, found) = (&mut self.hasher, &mut self.found);
        read_payload(&payload, database, &name, expiry, &mut |event| {
            match event {
                Event::Begin(head) => {
                    kind = Some(head.kind);
                    hasher.begin(&head);
                }
                Event::Element(element) => {
                    found.bytes += bytes_of(&element);
                    hasher.element(&element);
                }
                _ => {}
            }
            Ok(())
        })
        .map_err(|error: CollectError| error.doing(READING))?;
        if let Some(kind) = kind {
            self.end(kind);
        }
        Ok(())
    }
}

/// The kind of a type that one command reads whole, and that command.
fn whole_value(kind: &str, key: &[u8]) -> Option<(Kind, Cmd)> {
    let range = |verb| cmd(verb).arg(key).arg(0).arg(-1).to_owned();
    match kind {
        "string" => Some((Kind::String, cmd("GET").arg(key).to_owned())),
        "list" => Some((Kind::List, range("LRANGE"))),
        "set" => Some((Kind::Set, cmd("SMEMBERS").arg(key).to_owned())),
        "zset" => Some((
            Kind::SortedSet,
            range("ZRANGE").arg("WITHSCORES").to_owned(),
        )),
        "hash" => Some((Kind::Hash, cmd("HGETALL").arg(key).to_owned())),
        _ => None,
    }
}

fn next(answers: &mut impl Iterator<Item = Answer>) -> Answer {
    answers
        .next()
        .expect("as many answers as commands, which the session has looked at")
}
