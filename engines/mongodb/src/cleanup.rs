//! Cleanup of MongoDB: old documents of a collection, by a field that holds a date.
//!
//! A delete names one document by its `_id` and compares all of it in its own filter, as an expression on `$$ROOT`: the server
//! looks at the filter again where somebody else has written the document in between. Its comparison takes numbers of different types
//! for equal; so what is there is read just before, and compared byte by byte, too. No transaction is needed.

use std::collections::BTreeMap;

use async_trait::async_trait;
use bson::{DateTime, RawArrayBuf, RawDocument, RawDocumentBuf, oid::ObjectId, rawdoc};
use fettler_engine::{
    Cleanup, CleanupArchive, CleanupRequest, CleanupTerms, EngineContext, EngineError, Fate,
    Record, RecordRemover, RecordRestorer, RecordWriter, Return, StreamSink, StreamSource, Target,
    empty_plan, no_such_action, plan_data, prove_records, refuse, remove_records, restore_records,
};
use fettler_model::{
    CleanupAction, CleanupItem, CleanupPlan, CleanupRemoved, CleanupUndone, Engine, JobId,
    ObjectFacts, Timestamp,
};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::{
    MongodbEngine,
    catalog::Kind,
    params::Params,
    raw::{ID, id_key, id_of, number, put},
    session::Session,
    wire::Sequence,
};

/// A delete holds the whole document, and may have 16 MiB itself: a larger one stays.
const LARGEST_BYTES: usize = 15 << 20;
/// The server's word for a key that is there.
const DUPLICATE_KEY: i32 = 11_000;

/// The collection whose documents go, as the plan keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct DocumentsData {
    database: String,
    collection: String,
    field: String,
    cutoff: Timestamp,
    /// Whether it has an order of texts of its own, in which other texts may be equal.
    has_collation: bool,
}

impl DocumentsData {
    /// Which documents are old.
    fn filter(&self) -> RawDocumentBuf {
        let millis = self.cutoff.micros().div_euclid(1000);
        let mut old = RawDocumentBuf::new();
        if self.field == ID {
            // An ObjectId begins with the second in which it was made; others are not compared with it.
            let seconds = u32::try_from(millis.div_euclid(1000).max(0)).unwrap_or(u32::MAX);
            let mut bytes = [0; 12];
            bytes[..4].copy_from_slice(&seconds.to_be_bytes());
            put(&mut old, "$lt", ObjectId::from_bytes(bytes));
        } else {
            put(&mut old, "$lt", DateTime::from_millis(millis));
        }
        let mut is_old = RawDocumentBuf::new();
        put(&mut is_old, &self.field, old);
        // A list is old where one of its dates is: it says no time.
        let mut is_list = RawDocumentBuf::new();
        put(
            &mut is_list,
            &self.field,
            rawdoc! { "$not": { "$type": "array" } },
        );
        let mut both = RawArrayBuf::new();
        both.push(is_old);
        both.push(is_list);
        let mut filter = RawDocumentBuf::new();
        put(&mut filter, "$and", both);
        filter
    }

    fn name(&self) -> String {
        format!("{}.{}", self.database, self.collection)
    }

    async fn count(&self, session: &mut Session) -> Result<u64, EngineError> {
        let doing = format!("counting documents of {}", self.name());
        let command = rawdoc! { "count": self.collection.as_str(), "query": self.filter() };
        let answer = session
            .exchange(&self.database, command, None)
            .await?
            .map_err(|refusal| refusal.doing(session.server(), &doing))?;
        number(&answer, "n").ok_or_else(|| session.unexpected(&doing, &"no number"))
    }

    /// The first date in an order.
    async fn first(
        &self,
        session: &mut Session,
        order: i32,
    ) -> Result<Option<String>, EngineError> {
        let mut sort = RawDocumentBuf::new();
        put(&mut sort, &self.field, order);
        let command = rawdoc! {
            "find": self.collection.as_str(), "filter": self.filter(), "sort": sort, "limit": 1, "singleBatch": true,
        };
        let found = session
            .list(&self.database, command, "looking for the oldest document")
            .await?;
        // A sort that the server refuses only costs the answer.
        let Ok(found) = found else { return Ok(None) };
        Ok(found.first().and_then(|document| {
            let mut at: &RawDocument = document;
            let mut parts = self.field.split('.').peekable();
            while let Some(part) = parts.next() {
                if parts.peek().is_some() {
                    at = at.get_document(part).ok()?;
                    continue;
                }
                if let Ok(date) = at.get_datetime(part) {
                    return Some(
                        Timestamp::from_micros(date.timestamp_millis() * 1000).to_string(),
                    );
                }
                let id = at.get_object_id(part).ok()?;
                let millis = id.timestamp().timestamp_millis();
                return Some(Timestamp::from_micros(millis * 1000).to_string());
            }
            None
        }))
    }
}

#[async_trait]
impl Cleanup for MongodbEngine {
    async fn plan(
        &self,
        context: &EngineContext,
        target: &Target,
        request: &CleanupRequest,
    ) -> Result<CleanupPlan, EngineError> {
        let CleanupAction::Rows { table, column, .. } = &request.what else {
            return Err(no_such_action(
                Engine::Mongodb,
                &request.what,
                "old documents (`--documents COLLECTION --field FIELD --older-than TIME`)",
            ));
        };
        let params = Params::of(target)?;
        let mut session = Session::of_attempt(&params, context).await?;
        let now = now(&mut session).await?;
        let mut plan = empty_plan(Engine::Mongodb, &request.what, now);
        let (database, collection) = split(&params, table)?;
        if !may_write(&session, &mut plan) {
            return Ok(plan);
        }
        let Some(has_collation) = describe(&mut session, &mut plan, &database, &collection).await?
        else {
            return Ok(plan);
        };
        let data = DocumentsData {
            database,
            collection,
            field: column.clone(),
            cutoff: plan.cutoff.unwrap_or(now),
            has_collation,
        };
        let rows = context
            .progress
            .while_waiting(data.count(&mut session))
            .await?;
        let stats = session
            .try_run(
                &data.database,
                rawdoc! { "collStats": data.collection.as_str() },
            )
            .await?;
        let each = stats.map_or(0, |stats| number(&stats, "avgObjSize").unwrap_or(0));
        let (mut oldest, mut newest) = (None, None);
        if rows > 0 {
            oldest = data.first(&mut session, 1).await?;
            newest = data.first(&mut session, -1).await?;
        }
        plan.items.push(CleanupItem {
            name: data.name(),
            rows,
            bytes: rows * each,
            oldest,
            newest,
            note: String::new(),
        });
        plan.can_be_undone = true;
        plan.engine_data = json!(data);
        Ok(plan)
    }

    async fn archive(
        &self,
        context: &EngineContext,
        target: &Target,
        plan: &CleanupPlan,
        sink: &dyn StreamSink,
    ) -> Result<CleanupArchive, EngineError> {
        let data: DocumentsData = plan_data(plan)?;
        let mut session = Session::of_attempt(&Params::of(target)?, context).await?;
        let doing = format!("archiving documents of {}", data.name());
        let began = now(&mut session).await?;
        let before = data.count(&mut session).await?;
        let command = rawdoc! { "find": data.collection.as_str(), "filter": data.filter() };
        let mut cursor = session
            .open_cursor(&data.database, command, &doing)
            .await?
            .map_err(|refusal| refusal.doing(session.server(), &doing))?;
        let mut writer = RecordWriter::new(context, sink, &data.name(), 0);
        context.progress.item(&data.name());
        while let Some(batch) = cursor.next(&mut session).await? {
            context.check_stop()?;
            for document in batch.documents() {
                let document = document.map_err(|what| session.unexpected(&doing, &what))?;
                let id = id_of(document)
                    .ok_or_else(|| session.unexpected(&doing, &"a document without `_id`"))?;
                writer.put(id.as_bytes(), document.as_bytes()).await?;
                context.progress.add(document.as_bytes().len() as u64, 1);
            }
        }
        // Each document is compared by itself when it goes. The server's count is of this moment only where nothing moved.
        let after = data.count(&mut session).await?;
        let facts = writer.finish((before == after).then_some(before)).await?;
        Ok(CleanupArchive {
            rows: facts.fingerprint.as_ref().map_or(0, |print| print.rows),
            objects: vec![facts],
            position: json!({ "at": began }),
        })
    }

    async fn prove(
        &self,
        context: &EngineContext,
        _plan: &CleanupPlan,
        archive: &dyn StreamSource,
        objects: &[ObjectFacts],
    ) -> Result<(), EngineError> {
        prove_records(context, archive, objects).await
    }

    async fn remove(
        &self,
        context: &EngineContext,
        target: &Target,
        plan: &CleanupPlan,
        archive: Option<&dyn StreamSource>,
        terms: &CleanupTerms,
    ) -> Result<CleanupRemoved, EngineError> {
        let archive = archive.ok_or_else(|| EngineError::Unusable {
            what: "documents are removed by their archive, and there is none".to_owned(),
            remedy: "start the cleanup anew".to_owned(),
        })?;
        let mut work = Work::begin(context, target, plan).await?;
        let mut removed = remove_records(context, archive, terms, &mut work).await?;
        let remaining = context
            .progress
            .while_waiting(work.data.count(&mut work.session))
            .await?;
        removed.remaining = Some(remaining);
        let others = remaining.saturating_sub(removed.stayed());
        if others > 0 {
            removed.notes.push(format!(
                "{others} documents older than the cut-off are not in the archive: they were written or changed after the plan, and stay for the next run"
            ));
        }
        Ok(removed)
    }

    async fn undo(
        &self,
        context: &EngineContext,
        target: &Target,
        plan: &CleanupPlan,
        archive: &dyn StreamSource,
        _job: JobId,
        dry_run: bool,
    ) -> Result<CleanupUndone, EngineError> {
        let mut work = Work::begin(context, target, plan).await?;
        restore_records(context, archive, dry_run, &mut work).await
    }
}

/// The server's clock; this machine's where the server does not tell.
async fn now(session: &mut Session) -> Result<Timestamp, EngineError> {
    let told = session.try_run("admin", rawdoc! { "hello": 1 }).await?;
    Ok(told
        .ok()
        .and_then(|answer| answer.get_datetime("localTime").ok())
        .map_or_else(Timestamp::now, |date| {
            Timestamp::from_micros(date.timestamp_millis() * 1000)
        }))
}

/// The database and the collection of a name: the URL's database, or the name's first part.
fn split(params: &Params, text: &str) -> Result<(String, String), EngineError> {
    let missing = |what: String, remedy: &str| EngineError::Missing {
        code: "collection",
        what,
        remedy: remedy.to_owned(),
    };
    if let Some(database) = &params.database {
        let own = text
            .strip_prefix(database.as_str())
            .and_then(|rest| rest.strip_prefix('.'));
        return Ok((database.clone(), own.unwrap_or(text).to_owned()));
    }
    match text.split_once('.') {
        Some((database, collection)) if !database.is_empty() && !collection.is_empty() => {
            Ok((database.to_owned(), collection.to_owned()))
        }
        _ => Err(missing(
            format!("{text:?} names no database"),
            "write `database.collection`, or name the database in the URL",
        )),
    }
}

fn may_write(session: &Session, plan: &mut CleanupPlan) -> bool {
    if session.hello.is_secondary {
        let primary = session.hello.primary.clone().unwrap_or_default();
        refuse(
            plan,
            "the server is a secondary, which takes no changes",
            format!("name the primary {primary}"),
        );
    }
    plan.refusals.is_empty()
}

/// Whether the collection has a collation; nothing where its documents cannot go, which the plan tells.
async fn describe(
    session: &mut Session,
    plan: &mut CleanupPlan,
    database: &str,
    collection: &str,
) -> Result<Option<bool>, EngineError> {
    const DOING: &str = "looking at the collection";
    let command = rawdoc! { "listCollections": 1, "filter": { "name": collection } };
    let found = session
        .list(database, command, DOING)
        .await?
        .map_err(|refusal| refusal.doing(session.server(), DOING))?;
    let Some(found) = found
        .iter()
        .find(|one| one.get_str("name").is_ok_and(|name| name == collection))
    else {
        return Err(EngineError::Missing {
            code: "collection",
            what: format!("there is no collection {database}.{collection}"),
            remedy: "write `database.collection`; capitals count".to_owned(),
        });
    };
    let empty = RawDocumentBuf::new();
    let options = found.get_document("options").unwrap_or(&empty);
    let kind = Kind::of(found.get_str("type").unwrap_or_default(), options);
    if !kind.is_by_id() || collection.starts_with("system.") {
        refuse(
            plan,
            format!(
                "{database}.{collection} is a {} collection or the server's own, whose documents cannot be compared and removed one by one",
                kind.as_str()
            ),
            match kind {
                Kind::TimeSeries => {
                    "let its measurements expire: `collMod` with `expireAfterSeconds`"
                }
                _ => "name an ordinary collection",
            },
        );
        return Ok(None);
    }
    Ok(Some(matches!(options.get("collation"), Ok(Some(_)))))
}

/// Removes, and puts back.
struct Work {
    session: Session,
    data: DocumentsData,
}

fn document_of(bytes: &[u8]) -> Result<&RawDocument, EngineError> {
    RawDocument::from_bytes(bytes).map_err(|error| EngineError::Unusable {
        what: format!("a document of the archive cannot be read: {error}"),
        remedy: "run `fettler verify` on it".to_owned(),
    })
}

impl Work {
    async fn begin(
        context: &EngineContext,
        target: &Target,
        plan: &CleanupPlan,
    ) -> Result<Self, EngineError> {
        Ok(Self {
            session: Session::of_attempt(&Params::of(target)?, context).await?,
            data: plan_data(plan)?,
        })
    }

    fn key(&self, document: &RawDocument) -> Result<[u8; 16], EngineError> {
        id_key(document).ok().flatten().ok_or_else(|| {
            self.session
                .unexpected("comparing", &"a document without `_id`")
        })
    }

    /// What the collection holds of these, by what stands for their `_id`.
    async fn there(
        &mut self,
        records: &[Record],
    ) -> Result<BTreeMap<[u8; 16], RawDocumentBuf>, EngineError> {
        const DOING: &str = "comparing documents";
        let mut ids = RawArrayBuf::new();
        for record in records {
            if let Ok(Some(id)) = document_of(&record.key)?.get(ID) {
                ids.push(id);
            }
        }
        let mut filter = RawDocumentBuf::new();
        put(&mut filter, ID, rawdoc! { "$in": ids });
        let mut command = rawdoc! { "find": self.data.collection.as_str(), "filter": filter };
        self.compare_plainly(&mut command);
        let found = self
            .session
            .list(&self.data.database, command, DOING)
            .await?
            .map_err(|refusal| refusal.doing(self.session.server(), DOING))?;
        found
            .into_iter()
            .map(|document| Ok((self.key(&document)?, document)))
            .collect()
    }

    fn compare_plainly(&self, command: &mut RawDocumentBuf) {
        if self.data.has_collation {
            put(command, "collation", rawdoc! { "locale": "simple" });
        }
    }

    fn concern(&self, command: &mut RawDocumentBuf) {
        if self.session.hello.set_name.is_some() {
            // The work is not faster than most of the set.
            put(command, "writeConcern", rawdoc! { "w": "majority" });
        }
    }
}

#[async_trait]
impl RecordRemover for Work {
    async fn remove(&mut self, records: &[Record]) -> Result<Vec<Fate>, EngineError> {
        const DOING: &str = "removing documents";
        let there = self.there(records).await?;
        let mut fates = Vec::with_capacity(records.len());
        let mut deletes = Vec::new();
        let mut asked = 0_u64;
        for record in records {
            let document = document_of(&record.content)?;
            let fate = match there.get(&self.key(document)?) {
                None => Fate::Gone,
                Some(found) if found.as_bytes() != document.as_bytes() => Fate::Changed,
                Some(_) if record.content.len() > LARGEST_BYTES => Fate::Changed,
                Some(_) => Fate::Removed,
            };
            fates.push(fate);
            let Ok(Some(id)) = document.get(ID) else {
                continue;
            };
            if fate == Fate::Removed {
                let mut by_id = RawDocumentBuf::new();
                put(&mut by_id, "$eq", id);
                let mut whole = RawArrayBuf::new();
                whole.push("$$ROOT");
                let mut literal = RawDocumentBuf::new();
                put(&mut literal, "$literal", document.to_owned());
                whole.push(literal);
                let mut query = RawDocumentBuf::new();
                put(&mut query, ID, by_id);
                put(&mut query, "$expr", rawdoc! { "$eq": whole });
                let mut one = RawDocumentBuf::new();
                put(&mut one, "q", query);
                put(&mut one, "limit", 1);
                self.compare_plainly(&mut one);
                deletes.extend_from_slice(one.as_bytes());
                asked += 1;
            }
        }
        if asked == 0 {
            return Ok(fates);
        }
        let mut command = rawdoc! { "delete": self.data.collection.as_str(), "ordered": false };
        self.concern(&mut command);
        let sequence = Sequence {
            name: "deletes",
            documents: &deletes,
        };
        let answer = self
            .session
            .exchange(&self.data.database, command, Some(sequence))
            .await?
            .map_err(|refusal| refusal.doing(self.session.server(), DOING))?;
        if let Some(told) = first_error(&answer, |_| false) {
            return Err(self.session.unexpected(DOING, &told));
        }
        if number(&answer, "n") != Some(asked) {
            // Somebody was quicker with some of them.
            let left = self.there(records).await?;
            for (record, fate) in records.iter().zip(&mut fates) {
                let key = self.key(document_of(&record.key)?)?;
                if *fate == Fate::Removed && left.contains_key(&key) {
                    *fate = Fate::Changed;
                }
            }
        }
        Ok(fates)
    }

    fn shown(&self, record: &Record) -> String {
        shown(record)
    }
}

/// The first error of a write that is not expected, in the server's words.
fn first_error(answer: &RawDocument, is_expected: impl Fn(i32) -> bool) -> Option<String> {
    if let Ok(concern) = answer.get_document("writeConcernError") {
        return Some(
            concern
                .get_str("errmsg")
                .unwrap_or("writeConcernError")
                .to_owned(),
        );
    }
    let errors = answer.get_array("writeErrors").ok()?;
    errors.into_iter().flatten().find_map(|error| {
        let error = error.as_document()?;
        let code = error.get_i32("code").unwrap_or(0);
        (!is_expected(code)).then(|| format!("error {code}"))
    })
}

fn shown(record: &Record) -> String {
    RawDocument::from_bytes(&record.key)
        .ok()
        .and_then(|key| {
            let id = key.get(ID).ok()??;
            let id = bson::Bson::try_from(id).ok()?;
            Some(id.to_string())
        })
        .unwrap_or_else(|| "?".to_owned())
}

#[async_trait]
impl RecordRestorer for Work {
    async fn put_back(
        &mut self,
        records: &[Record],
        dry_run: bool,
    ) -> Result<Vec<Return>, EngineError> {
        const DOING: &str = "putting documents back";
        let there = self.there(records).await?;
        let mut returns = Vec::with_capacity(records.len());
        let (mut documents, mut sent) = (Vec::new(), Vec::new());
        for (at, record) in records.iter().enumerate() {
            let document = document_of(&record.content)?;
            returns.push(match there.get(&self.key(document)?) {
                Some(found) if found.as_bytes() == document.as_bytes() => Return::There,
                Some(_) => Return::Taken,
                None => {
                    documents.extend_from_slice(document.as_bytes());
                    sent.push(at);
                    Return::Restored
                }
            });
        }
        if dry_run || sent.is_empty() {
            return Ok(returns);
        }
        let mut command = rawdoc! {
            "insert": self.data.collection.as_str(),
            "ordered": false,
            // What was let in before there was a validator is let in again.
            "bypassDocumentValidation": true,
        };
        self.concern(&mut command);
        let sequence = Sequence {
            name: "documents",
            documents: &documents,
        };
        let answer = self
            .session
            .exchange(&self.data.database, command, Some(sequence))
            .await?
            .map_err(|refusal| refusal.doing(self.session.server(), DOING))?;
        if let Some(told) = first_error(&answer, |code| code == DUPLICATE_KEY) {
            return Err(self.session.unexpected(DOING, &told));
        }
        if let Ok(errors) = answer.get_array("writeErrors") {
            for error in errors.into_iter().flatten() {
                let at = error
                    .as_document()
                    .and_then(|error| number(error, "index"))
                    .and_then(|at| usize::try_from(at).ok())
                    .and_then(|at| sent.get(at));
                if let Some(at) = at {
                    returns[*at] = Return::Taken;
                }
            }
        }
        Ok(returns)
    }

    fn shown(&self, record: &Record) -> String {
        shown(record)
    }
}
