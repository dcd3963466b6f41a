//! Plays archived entries on a backup that was put back, up to and with an operation time.
//!
//! Entries are taken some hundred at a time: what they modify is read from the target, each is applied to that
//! ([`crate::apply`], as a backup does it with what was written while it ran), and what came of it is written. Then a checkpoint is
//! saved. An attempt that goes on applies the last such window again, which changes nothing that its end does not mend.
//! Commands that make, rename or remove collections are played alone, between two checkpoints.
//!
//! **A transaction has its effect where it ends**: what it groups is held until then. So the cut is never inside of one: what
//! has not ended at the moment has no effect. The entries from the start of the backup's reading on are read for that, since a
//! transaction may have begun before the backup's moment.
//!
//! The same code runs once without a target, before anything is touched there: what cannot be played is told then.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::OnceLock,
};

use bson::{RawArrayBuf, RawDocument, RawDocumentBuf, Timestamp, raw::RawBsonRef};
use fettler_engine::{ChangeSource, EngineContext, EngineError};
use fettler_model::Warning;
use futures::TryStreamExt as _;
use tokio::sync::Mutex;

use super::{
    is_left_out, number_of,
    shapes::{Act, Places, Shapes, is_own, time_series},
};
use crate::{
    apply::apply,
    catalog::Kind,
    error::{Refusal, code},
    oplog::{Change, changes as changes_of},
    params::Params,
    raw::{Cutter, ID, id_key, put},
    restore::{Checkpoint, Job, save},
    select::Selection,
    session::Session,
    wire::Sequence,
};

/// Entries of a window, and their bytes.
const WINDOW: (usize, usize) = (500, 4 << 20);
/// Documents or bytes written by one command (a server takes 48 MB).
const WRITTEN: (usize, usize) = (1000, 8 << 20);
/// What is being done, for messages.
const PLAYING: &str = "playing the oplog";

/// What is restored, and where databases go.
pub(crate) struct Scope<'a> {
    params: &'a Params,
    selection: &'a Selection,
    /// The database that goes to the one that the target names.
    one: OnceLock<String>,
}

impl<'a> Scope<'a> {
    pub(crate) fn new(params: &'a Params, selection: &'a Selection, jobs: &[Job]) -> Self {
        let one = OnceLock::new();
        if let Some(job) = jobs.first() {
            one.get_or_init(|| job.from.database.clone());
        }
        Self {
            params,
            selection,
            one,
        }
    }
}

impl Places for Scope<'_> {
    fn has(&self, database: &str, collection: &str) -> bool {
        !is_left_out(database) && self.selection.has(database, collection)
    }

    fn placed(&self, database: &str) -> Result<String, String> {
        match &self.params.database {
            None => Ok(self.params.placed(database)),
            Some(place) if self.one.get_or_init(|| database.to_owned()) == database => {
                Ok(place.clone())
            }
            Some(_) => Err(format!(
                "changes of the database {database}, and the target's URL names one database for another one: leave it out of the URL, or choose a database with `--only`"
            )),
        }
    }
}

/// Which entries are played.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reach {
    /// Behind this one; the start of the backup's reading.
    pub(crate) since: u64,
    /// The backup's moment.
    pub(crate) position: u64,
    /// Up to and with this one.
    pub(crate) end: u64,
    /// What an earlier attempt has played already.
    pub(crate) played: u64,
}

/// Where what is played goes.
pub(crate) struct Stage<'a> {
    pub(crate) session: &'a mut Session,
    pub(crate) checkpoint: &'a Mutex<Checkpoint>,
}

/// What came of it.
pub(crate) struct Played {
    /// The collections and views as they are at the end.
    pub(crate) jobs: Vec<Job>,
    /// All that were made on the way: database and name at the target.
    pub(crate) made: BTreeSet<(String, String)>,
    pub(crate) rows: u64,
    pub(crate) bytes: u64,
    pub(crate) warnings: Vec<Warning>,
}

/// Plays the changes; without a stage it is only looked whether they can be.
pub(crate) async fn play(
    context: &EngineContext,
    scope: &Scope<'_>,
    jobs: Vec<Job>,
    changes: &dyn ChangeSource,
    reach: Reach,
    stage: Option<Stage<'_>>,
) -> Result<Played, EngineError> {
    let mut player = Player {
        context,
        scope,
        reach,
        based: jobs
            .iter()
            .filter(|job| job.from.kind.is_by_id())
            .map(|job| job.from.namespace())
            .collect(),
        shapes: Shapes::new(jobs, scope),
        open: HashMap::new(),
        window: Vec::new(),
        window_bytes: 0,
        done: reach.since,
        is_repeating: reach.played > 0,
        stage,
        rows: 0,
        bytes: 0,
        missing: 0,
    };
    let mut pieces = changes.read().await?;
    let mut cutter = Cutter::default();
    'all: while let Some(piece) = pieces.try_next().await? {
        context.check_stop()?;
        cutter.feed(&piece);
        while let Some(entry) = cutter.next().map_err(|what| unplayable(&what))? {
            let number = entry
                .get_timestamp("ts")
                .map(number_of)
                .map_err(|error| unplayable(&format!("an entry without its time: {error}")))?;
            if number > reach.end {
                break 'all;
            }
            if number > reach.since {
                player.entry(number, entry).await?;
            }
        }
    }
    player.done = reach.end;
    player.flush().await?;
    let mut warnings = Vec::new();
    if player.missing > 0 {
        warnings.push(Warning {
            code: "mongodb.missing_documents".to_owned(),
            message: format!(
                "{} documents that the oplog modifies were not there: they are not in the copy",
                player.missing
            ),
        });
    }
    Ok(Played {
        made: player.shapes.made,
        jobs: player.shapes.jobs,
        rows: player.rows,
        bytes: player.bytes,
        warnings,
    })
}

fn unplayable(what: &str) -> EngineError {
    EngineError::Unusable {
        what: format!("the archived oplog holds {what}"),
        remedy: "restore to a moment before it, or leave the collection out (`--only`)".to_owned(),
    }
}

/// A collection of the source.
type Namespace = (String, String);
/// What documents are, by the key of their `_id`, in the order in which they were first written.
type States = Vec<([u8; 16], RawDocumentBuf, Option<RawDocumentBuf>)>;

struct Player<'a> {
    context: &'a EngineContext,
    scope: &'a Scope<'a>,
    reach: Reach,
    /// Collections that the backup has as they were at its moment.
    based: HashSet<String>,
    shapes: Shapes<'a, Scope<'a>>,
    /// What transactions group that have not ended, by session and number.
    open: HashMap<Vec<u8>, Vec<RawDocumentBuf>>,
    window: Vec<(Namespace, Change)>,
    window_bytes: usize,
    /// Everything up to and with this one is in the window or at the target.
    done: u64,
    /// Whether what is played now may have been played already.
    is_repeating: bool,
    stage: Option<Stage<'a>>,
    rows: u64,
    bytes: u64,
    missing: u64,
}

impl Player<'_> {
    async fn entry(&mut self, number: u64, entry: &RawDocument) -> Result<(), EngineError> {
        for one in self.effects(number, entry)? {
            self.effect(number, &one).await?;
        }
        self.done = number;
        if self.window.len() >= WINDOW.0 || self.window_bytes >= WINDOW.1 {
            self.flush().await?;
        }
        Ok(())
    }

    /// What has its effect with this entry.
    fn effects(
        &mut self,
        number: u64,
        entry: &RawDocument,
    ) -> Result<Vec<RawDocumentBuf>, EngineError> {
        let object = entry.get_document("o").ok();
        let command = match (entry.get_str("op"), object) {
            (Ok("c"), Some(object)) => object
                .iter()
                .flatten()
                .next()
                .map(|(name, _)| name.as_str().to_owned()),
            _ => None,
        };
        let (Some(object), Some(command)) = (object, command) else {
            return Ok(vec![entry.to_owned()]);
        };
        let flag = |name: &str| object.get_bool(name).unwrap_or(false);
        match command.as_str() {
            "applyOps" => {
                let mut grouped = Vec::new();
                flatten(object, &mut grouped).map_err(|what| unplayable(&what))?;
                let Some(transaction) = transaction_of(entry) else {
                    return Ok(grouped);
                };
                if flag("partialTxn") || flag("prepare") {
                    self.open.entry(transaction).or_default().extend(grouped);
                    return Ok(Vec::new());
                }
                let before = self.open.remove(&transaction);
                if before.is_none() && goes_on(entry) {
                    self.require_whole(number)?;
                }
                let mut all = before.unwrap_or_default();
                all.extend(grouped);
                Ok(all)
            }
            "commitTransaction" => {
                let whole =
                    transaction_of(entry).and_then(|transaction| self.open.remove(&transaction));
                if whole.is_none() {
                    self.require_whole(number)?;
                }
                Ok(whole.unwrap_or_default())
            }
            "abortTransaction" => {
                if let Some(transaction) = transaction_of(entry) {
                    self.open.remove(&transaction);
                }
                Ok(Vec::new())
            }
            _ => Ok(vec![entry.to_owned()]),
        }
    }

    /// A transaction whose beginning is not known is an error, unless the backup has it as it ended.
    fn require_whole(&self, number: u64) -> Result<(), EngineError> {
        if number <= self.reach.position {
            return Ok(());
        }
        Err(unplayable(
            "the end of a transaction whose beginning is not in it",
        ))
    }

    /// Takes one change in.
    async fn effect(&mut self, number: u64, one: &RawDocument) -> Result<(), EngineError> {
        let word = |name: &str| one.get_str(name).unwrap_or_default();
        let Some((database, name)) = word("ns").split_once('.') else {
            return Ok(());
        };
        if is_left_out(database) || word("op") == "n" {
            return Ok(());
        }
        if word("op") == "c" {
            let object = one
                .get_document("o")
                .map_err(|error| unplayable(&error.to_string()))?;
            return self.command(number, database, object).await;
        }
        if name == "system.views" {
            return self.view(database, one);
        }
        if let Some(series) = name.strip_prefix("system.buckets.") {
            return if self.scope.has(database, series) && number > self.reach.position {
                Err(unplayable(&time_series(database, series)))
            } else {
                Ok(())
            };
        }
        if is_own(name) || !self.scope.has(database, name) {
            return Ok(());
        }
        if let Some(act) = self
            .shapes
            .is_written(database, name)
            .map_err(|what| unplayable(&what))?
        {
            self.act(number, vec![act]).await?;
        }
        // What was not read at the backup's moment, as what is capped, is played from the start of its reading.
        let from = if self.based.contains(&format!("{database}.{name}")) {
            self.reach.position
        } else {
            self.reach.since
        };
        if number <= from.max(self.reach.played) {
            return Ok(());
        }
        self.window_bytes += one.as_bytes().len();
        for change in changes_of(one).map_err(|what| unplayable(&what))? {
            if let Change::Modify { change, .. } = &change
                && apply(&RawDocumentBuf::new(), change).is_none()
                && !is_by_path(change)
            {
                return Err(unplayable(&format!(
                    "a modification of a document of {database}.{name} in a form that is not known"
                )));
            }
            self.window
                .push(((database.to_owned(), name.to_owned()), change));
        }
        Ok(())
    }

    fn view(&mut self, database: &str, one: &RawDocument) -> Result<(), EngineError> {
        for change in changes_of(one).map_err(|what| unplayable(&what))? {
            let (id, definition) = match &change {
                Change::Insert { document, .. } | Change::Replace { document, .. } => {
                    (document, Some(document))
                }
                Change::Delete { id, .. } => (id, None),
                _ => {
                    return Err(unplayable(&format!(
                        "a change of a view of {database} in a form that is not known"
                    )));
                }
            };
            self.shapes
                .view(
                    database,
                    id.get_str(ID).unwrap_or_default(),
                    definition.map(|document| &**document),
                )
                .map_err(|what| unplayable(&what))?;
        }
        Ok(())
    }

    async fn command(
        &mut self,
        number: u64,
        database: &str,
        object: &RawDocument,
    ) -> Result<(), EngineError> {
        // The backup has it, with its documents.
        if number <= self.reach.position
            && let Ok(name) = object.get_str("create")
            && self.shapes.job(database, name).is_some()
        {
            return Ok(());
        }
        // What was written before belongs to the collections as they are called now.
        self.flush().await?;
        let acts = self
            .shapes
            .command(database, object)
            .map_err(|what| unplayable(&what))?;
        self.act(number, acts).await
    }

    /// Does at the target what a command asks for.
    async fn act(&mut self, number: u64, acts: Vec<Act>) -> Result<(), EngineError> {
        if number <= self.reach.played {
            return Ok(());
        }
        let is_repeating = self.is_repeating;
        let Some(stage) = &mut self.stage else {
            return Ok(());
        };
        for act in acts {
            self.context.check_stop()?;
            self.context.fence.check().await?;
            let session = &mut *stage.session;
            let (doing, outcome) = run(session, &act).await?;
            let is_done = |refusal: &Refusal| match &act {
                Act::Create { .. } => refusal.code == code::NAMESPACE_EXISTS,
                Act::Drop { .. } => refusal.code == code::NAMESPACE_NOT_FOUND,
                // An attempt that was lost has done it.
                Act::Rename { .. } => is_repeating && refusal.code == code::NAMESPACE_NOT_FOUND,
                Act::Modify { .. } => false,
            };
            if let Err(refusal) = outcome
                && !is_done(&refusal)
            {
                return Err(refusal.doing(session.server(), doing));
            }
        }
        Ok(())
    }

    /// Writes what came of the window, and saves how far that is.
    async fn flush(&mut self) -> Result<(), EngineError> {
        let window = std::mem::take(&mut self.window);
        self.window_bytes = 0;
        let Some(stage) = &mut self.stage else {
            return Ok(());
        };
        if self.done <= self.reach.played {
            return Ok(());
        }
        let mut grouped: BTreeMap<Namespace, Vec<Change>> = BTreeMap::new();
        for (namespace, change) in window {
            grouped.entry(namespace).or_default().push(change);
        }
        for ((database, name), changes) in grouped {
            let Some(job) = self.shapes.job(&database, &name) else {
                continue;
            };
            let mut writer = Writer {
                context: self.context,
                session: &mut *stage.session,
                database: job.database.clone(),
                collection: name,
                is_ordered: job.from.kind == Kind::Capped,
            };
            let there = writer.fetch(&changes).await?;
            let (states, missing) = fold(changes, there)?;
            if !self.is_repeating {
                self.missing += missing;
            }
            self.rows += states.len() as u64;
            self.bytes += writer.write(states).await?;
        }
        let mut checkpoint = stage.checkpoint.lock().await;
        checkpoint.played = Some(self.done);
        save(self.context, &checkpoint).await?;
        self.is_repeating = false;
        Ok(())
    }
}

/// Whether a modification sets by a path, which only what is there can tell.
fn is_by_path(change: &RawDocument) -> bool {
    change
        .iter()
        .flatten()
        .all(|(name, value)| match name.as_str() {
            "$set" | "$unset" => true,
            "$v" => matches!(value, RawBsonRef::Int32(1) | RawBsonRef::Int64(1)),
            _ => false,
        })
}

/// The session and the number of a transaction; nothing for what is grouped without one.
fn transaction_of(entry: &RawDocument) -> Option<Vec<u8>> {
    let mut key = entry.get_document("lsid").ok()?.as_bytes().to_vec();
    let number = match entry.get("txnNumber").ok()?? {
        RawBsonRef::Int64(number) => number,
        RawBsonRef::Int32(number) => i64::from(number),
        _ => return None,
    };
    // Retryable writes that are grouped are no transaction.
    if matches!(entry.get("multiOpType"), Ok(Some(RawBsonRef::Int32(1)))) {
        return None;
    }
    key.extend_from_slice(&number.to_le_bytes());
    Some(key)
}

/// Whether a transaction has entries before this one.
fn goes_on(entry: &RawDocument) -> bool {
    let none = Timestamp {
        time: 0,
        increment: 0,
    };
    entry
        .get_document("prevOpTime")
        .ok()
        .and_then(|before| before.get_timestamp("ts").ok())
        .is_some_and(|before| before != none)
}

/// The entries that are grouped, also by groups within.
fn flatten(object: &RawDocument, found: &mut Vec<RawDocumentBuf>) -> Result<(), String> {
    let list = object
        .get_array("applyOps")
        .map_err(|error| error.to_string())?;
    for one in list {
        let Ok(RawBsonRef::Document(one)) = one else {
            return Err("a group of what is no entry".to_owned());
        };
        match one.get_document("o") {
            Ok(inner) if matches!(inner.get("applyOps"), Ok(Some(_))) => flatten(inner, found)?,
            _ => found.push(one.to_owned()),
        }
    }
    Ok(())
}

fn key_of(document: &RawDocument) -> Result<[u8; 16], EngineError> {
    id_key(document)
        .ok()
        .flatten()
        .ok_or_else(|| unplayable("a document without `_id`"))
}

/// What documents are after these changes, and how many were to be modified and were not there.
fn fold(
    changes: Vec<Change>,
    mut there: HashMap<[u8; 16], RawDocumentBuf>,
) -> Result<(States, u64), EngineError> {
    let (mut states, mut missing): (States, u64) = (Vec::new(), 0);
    let mut at: HashMap<[u8; 16], usize> = HashMap::new();
    for change in changes {
        let (key, id, state) = match change {
            Change::Insert { document, .. } | Change::Replace { document, .. } => {
                let id = crate::raw::id_of(&document).unwrap_or_default();
                (key_of(&document)?, id, Some(document))
            }
            Change::Delete { id, .. } => (key_of(&id)?, id, None),
            Change::Modify { id, change, .. } => {
                let key = key_of(&id)?;
                let now = match at.get(&key) {
                    Some(at) => states[*at].2.take(),
                    None => there.remove(&key),
                };
                let Some(now) = now else {
                    // What is gone at a later entry was so when it was played before.
                    missing += 1;
                    continue;
                };
                let changed = apply(&now, &change).ok_or_else(|| {
                    unplayable("a modification that does not fit the document that it is of")
                })?;
                (key, id, Some(changed))
            }
            Change::Touch { .. } | Change::Shape { .. } => continue,
        };
        match at.get(&key) {
            Some(at) => states[*at] = (key, id, state),
            None => {
                at.insert(key, states.len());
                states.push((key, id, state));
            }
        }
    }
    Ok((states, missing))
}

/// What is done, in words, and what the server says.
async fn run(
    session: &mut Session,
    act: &Act,
) -> Result<(String, crate::session::Answer), EngineError> {
    let (database, command, doing) = match act {
        Act::Create { database, command } => {
            (database.as_str(), command.clone(), "making a collection")
        }
        Act::Modify { database, command } => {
            (database.as_str(), command.clone(), "changing a collection")
        }
        Act::Drop { database, name } => {
            let mut command = RawDocumentBuf::new();
            put(&mut command, "drop", name.as_str());
            (database.as_str(), command, "removing a collection")
        }
        Act::Rename { from, to } => {
            let mut command = RawDocumentBuf::new();
            put(&mut command, "renameCollection", from.as_str());
            put(&mut command, "to", to.as_str());
            put(&mut command, "dropTarget", true);
            ("admin", command, "renaming a collection")
        }
    };
    let answer = session.exchange(database, command, None).await?;
    Ok((format!("{PLAYING} ({doing})"), answer))
}

/// Reads and writes documents of one collection of the target.
struct Writer<'a> {
    context: &'a EngineContext,
    session: &'a mut Session,
    database: String,
    collection: String,
    is_ordered: bool,
}

impl Writer<'_> {
    fn doing(&self) -> String {
        format!("{PLAYING} on {}.{}", self.database, self.collection)
    }

    /// What is there of the documents that are modified.
    async fn fetch(
        &mut self,
        changes: &[Change],
    ) -> Result<HashMap<[u8; 16], RawDocumentBuf>, EngineError> {
        let mut there = HashMap::new();
        let mut wanted = HashSet::new();
        let mut list = RawArrayBuf::new();
        for change in changes {
            if let Change::Modify { id, .. } = change
                && wanted.insert(key_of(id)?)
                && let Ok(Some(id)) = id.get(ID)
            {
                list.push(id);
            }
        }
        if wanted.is_empty() {
            return Ok(there);
        }
        let mut condition = RawDocumentBuf::new();
        put(&mut condition, "$in", list);
        let mut filter = RawDocumentBuf::new();
        put(&mut filter, ID, condition);
        let mut command = RawDocumentBuf::new();
        put(&mut command, "find", self.collection.as_str());
        put(&mut command, "filter", filter);
        let doing = self.doing();
        let found = self
            .session
            .list(&self.database, command, &doing)
            .await?
            .map_err(|refusal| refusal.doing(self.session.server(), &doing))?;
        for document in found {
            there.insert(key_of(&document)?, document);
        }
        Ok(there)
    }

    /// Writes what became of documents; gives the bytes.
    async fn write(&mut self, states: States) -> Result<u64, EngineError> {
        let mut written = 0;
        let mut held = Held::default();
        for (_, id, state) in states {
            let mut operation = RawDocumentBuf::new();
            put(&mut operation, "q", equal_to(&id));
            let is_removal = state.is_none();
            match state {
                Some(document) => {
                    written += document.as_bytes().len() as u64;
                    put(&mut operation, "u", document);
                    put(&mut operation, "upsert", true);
                }
                None => put(&mut operation, "limit", 1),
            }
            let bytes = operation.as_bytes();
            // In the order of the changes where that counts; otherwise the two lists wait for each other only here.
            if held.is_removal != is_removal
                || held.count >= WRITTEN.0
                || (held.count > 0 && held.bytes.len() + bytes.len() > WRITTEN.1)
            {
                self.send(&mut held).await?;
                held.is_removal = is_removal;
            }
            held.bytes.extend_from_slice(bytes);
            held.count += 1;
        }
        self.send(&mut held).await?;
        Ok(written)
    }

    async fn send(&mut self, held: &mut Held) -> Result<(), EngineError> {
        if held.count == 0 {
            return Ok(());
        }
        self.context.check_stop()?;
        self.context.fence.check().await?;
        let (command, list) = if held.is_removal {
            ("delete", "deletes")
        } else {
            ("update", "updates")
        };
        let mut message = RawDocumentBuf::new();
        put(&mut message, command, self.collection.as_str());
        put(&mut message, "ordered", self.is_ordered);
        if !held.is_removal {
            // What was let in at the source is let in here.
            put(&mut message, "bypassDocumentValidation", true);
            if self.session.hello.wire_version >= crate::insert::KEEPS_EMPTY_TIMESTAMPS {
                put(&mut message, "bypassEmptyTsReplacement", true);
            }
        }
        let sequence = Sequence {
            name: list,
            documents: &held.bytes,
        };
        let doing = self.doing();
        let answer = self
            .context
            .progress
            .while_waiting(
                self.session
                    .exchange(&self.database, message, Some(sequence)),
            )
            .await?
            .map_err(|refusal| refusal.doing(self.session.server(), &doing))?;
        let refused = answer
            .get_array("writeErrors")
            .ok()
            .and_then(|errors| errors.into_iter().flatten().next())
            .and_then(RawBsonRef::as_document)
            .or_else(|| answer.get_document("writeConcernError").ok());
        if let Some(refused) = refused {
            // A message of the server's may hold values.
            let refusal = Refusal {
                message: "a document was refused".to_owned(),
                ..Refusal::of(refused)
            };
            return Err(refusal.doing(self.session.server(), &doing));
        }
        self.context
            .progress
            .add(held.bytes.len() as u64, held.count as u64);
        held.bytes.clear();
        held.count = 0;
        Ok(())
    }
}

/// Operations that are sent together.
#[derive(Default)]
struct Held {
    is_removal: bool,
    bytes: Vec<u8>,
    count: usize,
}

/// The query for one `_id`, whatever it is.
fn equal_to(id: &RawDocument) -> RawDocumentBuf {
    let mut query = RawDocumentBuf::new();
    if let Ok(Some(id)) = id.get(ID) {
        let mut equal = RawDocumentBuf::new();
        put(&mut equal, "$eq", id);
        put(&mut query, ID, equal);
    }
    query
}

#[cfg(test)]
mod tests;
