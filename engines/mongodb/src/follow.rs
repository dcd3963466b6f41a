//! One moment out of many: the oplog from the start of the reading to its end, and the documents that it is about.
//!
//! Each collection is read while others write to it, so what was read is of no one moment. The oplog tells which documents were
//! written meanwhile. Of each of these the backup holds what it was at the end of the oplog's part that was read (or that it
//! was gone), and a restore takes that instead of what the reading had. So the backup is of the moment at that end.
//!
//! An insertion, a replacement and a deletion say by themselves what became of a document. Where only a modification is told, the
//! document is read again: at the very moment, where the server can read the past (`atClusterTime`); otherwise now. What was read
//! now is of the moment as well, unless the oplog has it once more in between; then the oplog is followed on to a later moment,
//! at which it is known: what a document is after modifications of the oplog is the same from whatever point in it they are
//! applied ([`crate::apply`]).
//!
//! The documents lie in a file of the scratch folder; in memory is a note of about 150 bytes for each.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fs::File,
    io::{Read as _, Seek as _, SeekFrom, Write as _},
    path::Path,
};

use bson::{RawArrayBuf, RawDocument, RawDocumentBuf, Timestamp, rawdoc};
use fettler_engine::{EngineContext, EngineError};
use fettler_model::Warning;

use crate::{
    apply::apply,
    error::code,
    oplog::{Change, changes},
    raw::{ID, id_key, put},
    session::{Cursor, Session},
    shards::oplogs::{Ends, Oplogs},
};

/// How often the oplog is followed on before what cannot be told is taken as it was read last.
const MOST_ROUNDS: u32 = 40;
/// Documents asked for at once.
const IDS_A_FETCH: usize = 500;
/// How often a count is tried that writes come between.
const COUNT_TRIES: u32 = 100;
/// The warning that not all is of one moment.
pub(crate) const NOT_ONE_MOMENT: &str = "mongodb.not_one_moment";
/// What is being done, for messages.
const FOLLOWING: &str = "reading the oplog";

/// What became of a document that the oplog is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// It has to be read.
    Unknown,
    /// It lies in the file.
    Known {
        at: u64,
        length: usize,
    },
    Gone,
}

#[derive(Debug)]
struct Touched {
    /// `_id` alone.
    id: RawDocumentBuf,
    state: State,
}

/// A document that was written while the backup ran, as it was at its moment.
#[derive(Debug, PartialEq)]
pub(crate) struct AtMoment {
    pub(crate) id: RawDocumentBuf,
    /// Nothing where it was gone.
    pub(crate) document: Option<RawDocumentBuf>,
}

/// Follows the oplog.
pub(crate) struct Follower<'a> {
    context: &'a EngineContext,
    /// The collections that are followed, by namespace, with their number.
    namespaces: HashMap<String, usize>,
    databases: Vec<String>,
    touched: BTreeMap<(usize, [u8; 16]), Touched>,
    file: File,
    end: u64,
    oplogs: Oplogs,
    /// What the reading is of: everything up to and with these ends.
    ends: Ends,
    pub(crate) warnings: Vec<Warning>,
}

impl<'a> Follower<'a> {
    /// Begins where the reading begins.
    pub(crate) fn new(
        context: &'a EngineContext,
        namespaces: HashMap<String, usize>,
        databases: Vec<String>,
        (oplogs, start): (Oplogs, Ends),
        scratch: &Path,
    ) -> Result<Self, EngineError> {
        let path = scratch.join("changes");
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(&path)
            .map_err(|error| EngineError::local(format!("making {}", path.display()), error))?;
        Ok(Self {
            context,
            namespaces,
            databases,
            touched: BTreeMap::new(),
            file,
            end: 0,
            warnings: if oplogs.have_one_time() {
                Vec::new()
            } else {
                vec![Warning {
                    code: NOT_ONE_MOMENT.to_owned(),
                    message:
                        "the shards tell no time that they share: each is of a moment of its own"
                            .to_owned(),
                }]
            },
            oplogs,
            ends: start,
        })
    }

    /// The moment that the reading is of.
    pub(crate) fn moment(&self) -> Timestamp {
        self.ends.moment
    }

    /// Whether changes can be played on the backup: those of one oplog.
    pub(crate) fn is_of_one_oplog(&self) -> bool {
        !self.oplogs.are_of_shards()
    }

    /// Follows the oplog to an end at which everything is known.
    pub(crate) async fn catch_up(&mut self, session: &mut Session) -> Result<(), EngineError> {
        for _ in 0..MOST_ROUNDS {
            self.follow().await?;
            let unknown = self.unknown();
            if unknown.is_empty() || self.fetch(session, Some(self.moment())).await? {
                return Ok(());
            }
            self.fetch(session, None).await?;
            // What was read now is what it was at the moment, unless it was written in between. On a busy server others always
            // are; they do not matter.
            if !self.is_written_again(&unknown).await? {
                return Ok(());
            }
        }
        self.follow().await?;
        let left = self.unknown().len();
        if left > 0 {
            self.fetch(session, None).await?;
            self.warnings.push(Warning {
                code: NOT_ONE_MOMENT.to_owned(),
                message: format!(
                    "{left} documents were written again and again, and are as they were a moment later than the rest"
                ),
            });
        }
        Ok(())
    }

    /// Whether the oplog has, since the moment, gained something about one of these documents, or about a collection as a whole.
    async fn is_written_again(
        &mut self,
        documents: &[(usize, RawDocumentBuf)],
    ) -> Result<bool, EngineError> {
        let mut keys = HashSet::new();
        for (number, id) in documents {
            keys.insert((*number, key(id)?));
        }
        let ends = self.oplogs.ends(true).await?;
        let mut is_written = false;
        let Self {
            context,
            namespaces,
            oplogs,
            ends: from,
            ..
        } = self;
        read_each(context, oplogs, from, &ends, true, |change| {
            is_written |= match change {
                Change::Shape { is_removal, .. } => is_removal,
                Change::Insert {
                    namespace,
                    document,
                }
                | Change::Replace {
                    namespace,
                    document,
                } => is_among(&keys, namespaces, &namespace, &document)?,
                Change::Delete { namespace, id }
                | Change::Touch { namespace, id }
                | Change::Modify { namespace, id, .. } => {
                    is_among(&keys, namespaces, &namespace, &id)?
                }
            };
            Ok(())
        })
        .await?;
        Ok(is_written)
    }

    /// Takes in what the oplogs have gained.
    async fn follow(&mut self) -> Result<(), EngineError> {
        let ends = self.oplogs.ends(true).await?;
        let from = self.ends.clone();
        // Both are needed at once: what is read, and what takes it in.
        let mut oplogs = std::mem::replace(&mut self.oplogs, Oplogs::none());
        let context = self.context;
        let read = read_each(context, &mut oplogs, &from, &ends, true, |change| {
            self.take(change)
        })
        .await;
        self.oplogs = oplogs;
        read?;
        self.ends = ends;
        Ok(())
    }

    fn take(&mut self, change: Change) -> Result<(), EngineError> {
        match change {
            Change::Insert {
                namespace,
                document,
            }
            | Change::Replace {
                namespace,
                document,
            } => {
                if let Some(number) = self.namespaces.get(&namespace).copied() {
                    let id = crate::raw::id_of(&document).unwrap_or_default();
                    let state = self.keep(&document)?;
                    self.set(number, id, state)?;
                }
            }
            Change::Delete { namespace, id } => {
                if let Some(number) = self.namespaces.get(&namespace).copied() {
                    self.set(number, id, State::Gone)?;
                }
            }
            Change::Touch { namespace, id } => {
                if let Some(number) = self.namespaces.get(&namespace).copied() {
                    self.set(number, id, State::Unknown)?;
                }
            }
            Change::Modify {
                namespace,
                id,
                change,
            } => {
                if let Some(number) = self.namespaces.get(&namespace).copied() {
                    let state = match self.touched.get(&(number, key(&id)?)).map(|one| one.state) {
                        Some(State::Known { at, length }) => {
                            let document = self.kept(at, length)?;
                            match apply(&document, &change) {
                                Some(changed) => self.keep(&changed)?,
                                None => State::Unknown,
                            }
                        }
                        // What is gone at a later entry was read after it.
                        Some(State::Gone) => State::Gone,
                        Some(State::Unknown) | None => State::Unknown,
                    };
                    self.set(number, id, state)?;
                }
            }
            Change::Shape {
                database,
                collection,
                command,
                is_removal,
            } => {
                self.shape(&database, collection.as_deref(), &command, is_removal)?;
            }
        }
        Ok(())
    }

    /// What became of a collection itself.
    fn shape(
        &mut self,
        database: &str,
        collection: Option<&str>,
        command: &str,
        is_removal: bool,
    ) -> Result<(), EngineError> {
        let name = match collection {
            Some(collection) => format!("{database}.{collection}"),
            None => database.to_owned(),
        };
        let is_followed = match collection {
            Some(_) => self.namespaces.contains_key(&name),
            None => self
                .namespaces
                .keys()
                .any(|namespace| namespace.split('.').next() == Some(database)),
        };
        if is_removal && is_followed {
            return Err(EngineError::Database {
                what: format!("{name} was changed while it was read ({command})"),
                transient: true,
            });
        }
        if self.databases.iter().any(|one| one == database) && (is_followed || command == "create")
        {
            let message = if is_followed {
                format!(
                    "the definition of {name} was changed while the backup ran ({command}): the backup has it as it was before"
                )
            } else {
                format!("{name} was made while the backup ran, and is not in it")
            };
            let warning = Warning {
                code: "mongodb.changed_meanwhile".to_owned(),
                message,
            };
            if !self.warnings.contains(&warning) {
                self.warnings.push(warning);
            }
        }
        Ok(())
    }

    fn set(&mut self, number: usize, id: RawDocumentBuf, state: State) -> Result<(), EngineError> {
        let key = key(&id)?;
        self.touched.insert((number, key), Touched { id, state });
        Ok(())
    }

    fn unknown(&self) -> Vec<(usize, RawDocumentBuf)> {
        self.touched
            .iter()
            .filter(|(_, touched)| touched.state == State::Unknown)
            .map(|((number, _), touched)| (*number, touched.id.clone()))
            .collect()
    }

    /// Reads what has to be read, as it was at a moment, or now. Whether that could be done: not every server reads the past.
    async fn fetch(
        &mut self,
        session: &mut Session,
        at: Option<Timestamp>,
    ) -> Result<bool, EngineError> {
        if at.is_some() && !session.hello.knows_majority() {
            return Ok(false);
        }
        let names: HashMap<usize, String> = self
            .namespaces
            .iter()
            .map(|(name, number)| (*number, name.clone()))
            .collect();
        let mut wanted: BTreeMap<usize, Vec<RawDocumentBuf>> = BTreeMap::new();
        for (number, id) in self.unknown() {
            wanted.entry(number).or_default().push(id);
        }
        for (number, ids) in wanted {
            let name = names.get(&number).map_or("", String::as_str);
            for ids in ids.chunks(IDS_A_FETCH) {
                self.context.check_stop()?;
                if !self.fetch_some(session, number, name, ids, at).await? {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    async fn fetch_some(
        &mut self,
        session: &mut Session,
        number: usize,
        name: &str,
        ids: &[RawDocumentBuf],
        at: Option<Timestamp>,
    ) -> Result<bool, EngineError> {
        let Some((database, collection)) = name.split_once('.') else {
            return Ok(false);
        };
        let mut list = RawArrayBuf::new();
        for id in ids {
            if let Ok(Some(id)) = id.get(ID) {
                list.push(id);
            }
        }
        let mut condition = RawDocumentBuf::new();
        put(&mut condition, "$in", list);
        let mut filter = RawDocumentBuf::new();
        put(&mut filter, ID, condition);
        let mut command = rawdoc! { "find": collection, "filter": filter };
        if let Some(at) = at {
            put(
                &mut command,
                "readConcern",
                rawdoc! { "level": "snapshot", "atClusterTime": at },
            );
        } else if session.hello.knows_majority() {
            put(&mut command, "readConcern", rawdoc! { "level": "majority" });
        }
        let doing = "reading what was written meanwhile";
        let mut cursor = match session.open_cursor(database, command, doing).await? {
            Ok(cursor) => cursor,
            Err(refusal) if at.is_some() => {
                tracing::debug!(%refusal, "the past could not be read");
                return Ok(false);
            }
            Err(refusal) => return Err(refusal.doing(session.server(), doing)),
        };
        let mut states: HashMap<[u8; 16], State> = HashMap::new();
        loop {
            let batch = match cursor.try_next(session).await? {
                Ok(Some(batch)) => batch,
                Ok(None) => break,
                Err(refusal)
                    if at.is_some()
                        && matches!(
                            refusal.code,
                            code::SNAPSHOT_TOO_OLD | code::SNAPSHOT_UNAVAILABLE
                        ) =>
                {
                    return Ok(false);
                }
                Err(refusal) => return Err(refusal.doing(session.server(), doing)),
            };
            for document in batch.documents() {
                let document = document.map_err(|what| session.unexpected(doing, &what))?;
                states.insert(key(document)?, self.keep(document)?);
            }
        }
        for id in ids {
            let state = states.get(&key(id)?).copied().unwrap_or(State::Gone);
            self.set(number, id.clone(), state)?;
        }
        Ok(true)
    }

    /// Puts a document into the file.
    fn keep(&mut self, document: &RawDocument) -> Result<State, EngineError> {
        let bytes = document.as_bytes();
        let at = self.end;
        self.file
            .seek(SeekFrom::Start(at))
            .and_then(|_| self.file.write_all(bytes))
            .map_err(|error| EngineError::local("writing to the scratch folder", error))?;
        self.end += bytes.len() as u64;
        Ok(State::Known {
            at,
            length: bytes.len(),
        })
    }

    fn kept(&mut self, at: u64, length: usize) -> Result<RawDocumentBuf, EngineError> {
        let mut bytes = vec![0; length];
        self.file
            .seek(SeekFrom::Start(at))
            .and_then(|_| self.file.read_exact(&mut bytes))
            .map_err(|error| EngineError::local("reading from the scratch folder", error))?;
        RawDocumentBuf::from_bytes(bytes).map_err(|error| EngineError::Database {
            what: format!("a document of the scratch folder cannot be read: {error}"),
            transient: true,
        })
    }

    /// Whether a document of a collection was written meanwhile.
    pub(crate) fn has(&self, number: usize, key: [u8; 16]) -> bool {
        self.touched.contains_key(&(number, key))
    }

    /// All that were written meanwhile, with their collection's number, in an order of their own.
    pub(crate) fn into_changes(
        mut self,
    ) -> impl Iterator<Item = Result<(usize, AtMoment), EngineError>> {
        let touched = std::mem::take(&mut self.touched);
        touched
            .into_iter()
            .map(move |((number, _), Touched { id, state })| {
                let document = match state {
                    State::Known { at, length } => Some(self.kept(at, length)?),
                    State::Unknown | State::Gone => None,
                };
                Ok((number, AtMoment { id, document }))
            })
    }

    /// How many documents each of these collections had at the moment, as the server counts them: its count now, without what
    /// the oplog says was put there and removed since. Nothing where writes came between again and again.
    pub(crate) async fn counts(
        &mut self,
        session: &mut Session,
        collections: &[(String, String)],
    ) -> Result<Vec<Option<u64>>, EngineError> {
        let mut counts = Vec::new();
        let mut since: HashMap<String, Option<i64>> = HashMap::new();
        let mut at = self.ends.clone();
        for (database, collection) in collections {
            let namespace = format!("{database}.{collection}");
            let (mut found, mut last) = (None, None);
            for _ in 0..COUNT_TRIES {
                at = self.add_up(at, &mut since).await?;
                let before = since.get(&namespace).copied().unwrap_or(Some(0));
                let Some(counted) = count(session, database, collection).await? else {
                    break;
                };
                at = self.add_up(at, &mut since).await?;
                let after = since.get(&namespace).copied().unwrap_or(Some(0));
                match (before, after) {
                    (Some(before), Some(after)) if before == after => {
                        let told = i64::try_from(counted)
                            .ok()
                            .and_then(|counted| u64::try_from(counted - after).ok());
                        // A count may know of a write that the oplog does not show yet: two have to say the same.
                        if told.is_some() && told == last {
                            found = told;
                            break;
                        }
                        last = told;
                    }
                    (Some(_), Some(_)) => {}
                    // A transaction does not say whether its documents are new.
                    _ => break,
                }
            }
            if found.is_none() {
                found = self
                    .count_in_the_past(session, database, collection)
                    .await?;
            }
            counts.push(found);
        }
        Ok(counts)
    }

    /// The server's count at the moment, one document after another; nothing where it does not read the past.
    async fn count_in_the_past(
        &self,
        session: &mut Session,
        database: &str,
        collection: &str,
    ) -> Result<Option<u64>, EngineError> {
        if !session.hello.knows_majority() {
            return Ok(None);
        }
        let mut command = count_all(collection);
        let concern = rawdoc! { "level": "snapshot", "atClusterTime": self.moment() };
        put(&mut command, "readConcern", concern);
        let counted = session.list(database, command, "counting").await?;
        Ok(counted.ok().map(|counted| counted_in(&counted)))
    }

    /// Adds up what was put there and removed from some ends to now.
    async fn add_up(
        &mut self,
        from: Ends,
        since: &mut HashMap<String, Option<i64>>,
    ) -> Result<Ends, EngineError> {
        // A count knows what this server has, settled or not.
        let to = self.oplogs.ends(false).await?;
        read_each(
            self.context,
            &mut self.oplogs,
            &from,
            &to,
            false,
            |change| {
                let (namespace, more) = match change {
                    Change::Insert { namespace, .. } => (namespace, Some(1)),
                    Change::Delete { namespace, .. } => (namespace, Some(-1)),
                    Change::Touch { namespace, .. } => (namespace, None),
                    _ => return Ok(()),
                };
                let sum = since.entry(namespace).or_insert(Some(0));
                *sum = sum.zip(more).map(|(sum, more)| sum + more);
                Ok(())
            },
        )
        .await?;
        Ok(to)
    }
}

/// Whether a document of a namespace, or its `_id` alone, is one of these.
fn is_among(
    keys: &HashSet<(usize, [u8; 16])>,
    namespaces: &HashMap<String, usize>,
    namespace: &str,
    document: &RawDocument,
) -> Result<bool, EngineError> {
    let Some(number) = namespaces.get(namespace) else {
        return Ok(false);
    };
    Ok(keys.contains(&(*number, key(document)?)))
}

/// Reads each of the oplogs from an end to another.
async fn read_each(
    context: &EngineContext,
    oplogs: &mut Oplogs,
    from: &Ends,
    to: &Ends,
    is_settled: bool,
    mut take: impl FnMut(Change) -> Result<(), EngineError> + Send,
) -> Result<(), EngineError> {
    let is_of_shards = oplogs.are_of_shards();
    let spans = from.each.iter().zip(&to.each);
    for (session, (from, to)) in oplogs.sessions().iter_mut().zip(spans) {
        let mut entries = Entries::between(session, *from, *to, is_settled).await?;
        entries.is_of_shard = is_of_shards;
        while let Some(changes) = entries.next(session).await? {
            context.check_stop()?;
            context.progress.pulse();
            for change in changes {
                take(change)?;
            }
        }
    }
    Ok(())
}

fn key(document: &RawDocument) -> Result<[u8; 16], EngineError> {
    id_key(document)
        .ok()
        .flatten()
        .ok_or_else(|| EngineError::Database {
            what: "a document has no `_id`".to_owned(),
            transient: false,
        })
}

/// The command that counts a collection's documents one by one.
fn count_all(collection: &str) -> RawDocumentBuf {
    let mut pipeline = RawArrayBuf::new();
    pipeline.push(rawdoc! { "$count": "n" });
    rawdoc! { "aggregate": collection, "pipeline": pipeline }
}

/// What [`count_all`] is answered; a collection without documents gives no line.
fn counted_in(answer: &[RawDocumentBuf]) -> u64 {
    answer
        .first()
        .and_then(|one| crate::raw::number(one, "n"))
        .unwrap_or(0)
}

/// The server's own count of a collection; nothing where it does not tell.
pub(crate) async fn count(
    session: &mut Session,
    database: &str,
    collection: &str,
) -> Result<Option<u64>, EngineError> {
    // A router's own count has documents that were moved away and are not removed yet.
    if session.hello.is_router {
        let counted = session
            .list(database, count_all(collection), "counting")
            .await?;
        return Ok(counted.ok().map(|counted| counted_in(&counted)));
    }
    let answer = session
        .try_run(database, rawdoc! { "count": collection })
        .await?;
    Ok(answer
        .ok()
        .and_then(|answer| crate::raw::number(&answer, "n")))
}

/// The newest moment of a server's oplog.
pub(crate) async fn newest(
    session: &mut Session,
    is_settled: bool,
) -> Result<Timestamp, EngineError> {
    match session.newest_of(is_settled).await? {
        Ok(Some(moment)) => Ok(moment),
        Ok(None) => Err(session.unexpected(FOLLOWING, &"it is empty now")),
        Err(refusal) => Err(refusal.doing(session.server(), FOLLOWING)),
    }
}

/// The oplog's entries after a moment, up to and with another. The entry of the first moment itself must be there still: where
/// it is not, others after it are gone too.
struct Entries {
    cursor: Option<Cursor>,
    from: Timestamp,
    is_begun: bool,
    /// Whether chunks may come and go there.
    is_of_shard: bool,
}

impl Entries {
    async fn between(
        session: &mut Session,
        from: Timestamp,
        to: Timestamp,
        is_settled: bool,
    ) -> Result<Self, EngineError> {
        if from == to {
            return Ok(Self {
                cursor: None,
                from,
                is_begun: true,
                is_of_shard: false,
            });
        }
        let mut command = rawdoc! {
            "find": "oplog.rs",
            "filter": { "ts": { "$gte": from, "$lte": to } },
            "sort": { "$natural": 1 },
        };
        if is_settled && session.hello.knows_majority() {
            put(&mut command, "readConcern", rawdoc! { "level": "majority" });
        }
        let cursor = session
            .open_cursor("local", command, FOLLOWING)
            .await?
            .map_err(|refusal| refusal.doing(session.server(), FOLLOWING))?;
        Ok(Self {
            cursor: Some(cursor),
            from,
            is_begun: false,
            is_of_shard: false,
        })
    }

    /// What the next entries say; nothing at the end.
    async fn next(&mut self, session: &mut Session) -> Result<Option<Vec<Change>>, EngineError> {
        let Some(cursor) = &mut self.cursor else {
            return Ok(None);
        };
        let Some(batch) = cursor.next(session).await? else {
            return if self.is_begun {
                Ok(None)
            } else {
                Err(too_small(session))
            };
        };
        let mut found = Vec::new();
        for entry in batch.documents() {
            let entry = entry.map_err(|what| session.unexpected(FOLLOWING, &what))?;
            let at = entry
                .get_timestamp("ts")
                .map_err(|error| session.unexpected(FOLLOWING, &error))?;
            if !self.is_begun {
                if at != self.from {
                    return Err(too_small(session));
                }
                self.is_begun = true;
                continue;
            }
            if self.is_of_shard && entry.get_bool("fromMigrate").unwrap_or(false) {
                // What a move leaves behind is removed when it is over, maybe long after it.
                if entry.get_str("op").is_ok_and(|op| op == "d") {
                    continue;
                }
                return Err(EngineError::Database {
                    what: format!(
                        "a chunk was moved to {} while it was read",
                        session.server()
                    ),
                    transient: true,
                });
            }
            found.extend(changes(entry).map_err(|what| session.unexpected(FOLLOWING, &what))?);
        }
        Ok(Some(found))
    }
}

fn too_small(session: &Session) -> EngineError {
    EngineError::Database {
        what: format!(
            "the oplog of {} no longer reaches back to the start of the backup: it is too small for what was written meanwhile (`replSetResizeOplog` makes it larger)",
            session.server()
        ),
        transient: true,
    }
}

/// From where on the oplog has to be read: now, or the start of the oldest transaction that is open or prepared.
pub(crate) async fn start(session: &mut Session) -> Result<Option<Timestamp>, EngineError> {
    let Ok(Some(newest)) = session.newest_moment().await? else {
        return Ok(None);
    };
    let command = rawdoc! {
        "find": "transactions",
        "filter": { "state": { "$in": ["prepared", "inProgress"] } },
        "projection": { "startOpTime": 1 },
    };
    let open = session
        .list("config", command, "looking for open transactions")
        .await?;
    let oldest = open
        .unwrap_or_default()
        .iter()
        .filter_map(|one| {
            one.get_document("startOpTime")
                .ok()?
                .get_timestamp("ts")
                .ok()
        })
        .min();
    Ok(Some(oldest.map_or(newest, |oldest| oldest.min(newest))))
}
