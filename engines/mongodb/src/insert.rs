//! Puts documents into a collection, many at once.

use bson::{RawArrayBuf, RawDocument, RawDocumentBuf, rawdoc};
use fettler_engine::{EngineContext, EngineError};

use crate::{
    error::{Refusal, code},
    raw::{ID, put},
    session::Session,
    wire::Sequence,
};

/// Bytes sent at once: well below the longest message, and few enough for several tasks.
const BATCH_BYTES: usize = 4 * 1024 * 1024;
/// Most documents sent at once (a server takes 100,000: `maxWriteBatchSize`).
const BATCH_DOCUMENTS: usize = 10_000;
/// The version of the protocol from which on a server leaves empty timestamps as they are when it is asked (MongoDB 8.0).
pub(crate) const KEEPS_EMPTY_TIMESTAMPS: i32 = 25;

/// Collects documents for one collection.
pub(crate) struct Inserter<'a> {
    context: &'a EngineContext,
    database: String,
    collection: String,
    /// In the order in which they come, where that is a part of what they are.
    is_ordered: bool,
    held: Vec<u8>,
    documents: usize,
    /// Where each document begins.
    starts: Vec<usize>,
    pub(crate) rows: u64,
    pub(crate) bytes: u64,
}

impl<'a> Inserter<'a> {
    /// For this collection.
    pub(crate) fn new(
        context: &'a EngineContext,
        database: &str,
        collection: &str,
        is_ordered: bool,
    ) -> Self {
        Self {
            context,
            database: database.to_owned(),
            collection: collection.to_owned(),
            is_ordered,
            held: Vec::with_capacity(BATCH_BYTES),
            documents: 0,
            starts: Vec::new(),
            rows: 0,
            bytes: 0,
        }
    }

    /// Takes a document; sends what is held when it is enough.
    pub(crate) async fn push(
        &mut self,
        session: &mut Session,
        document: &RawDocument,
    ) -> Result<(), EngineError> {
        let bytes = document.as_bytes();
        if !self.held.is_empty() && self.held.len() + bytes.len() > BATCH_BYTES {
            self.flush(session).await?;
        }
        self.starts.push(self.held.len());
        self.held.extend_from_slice(bytes);
        self.documents += 1;
        if self.documents >= BATCH_DOCUMENTS {
            self.flush(session).await?;
        }
        Ok(())
    }

    /// Sends what is held.
    pub(crate) async fn flush(&mut self, session: &mut Session) -> Result<(), EngineError> {
        if self.documents == 0 {
            return Ok(());
        }
        self.context.check_stop()?;
        self.context.fence.check().await?;
        let mut command = rawdoc! {
            "insert": self.collection.as_str(),
            "ordered": self.is_ordered,
            // What was let in before there was a validator is let in again.
            "bypassDocumentValidation": true,
        };
        if session.hello.wire_version >= KEEPS_EMPTY_TIMESTAMPS {
            put(&mut command, "bypassEmptyTsReplacement", true);
        }
        let sequence = Sequence {
            name: "documents",
            documents: &self.held,
        };
        let doing = format!("writing {}.{}", self.database, self.collection);
        let answer = self
            .context
            .progress
            .while_waiting(session.exchange(&self.database, command, Some(sequence)))
            .await?
            .map_err(|refusal| refusal.doing(session.server(), &doing))?;
        let there = refused(session, &answer, &doing)?;
        for at in there {
            self.replace(session, at, &doing).await?;
        }
        self.rows += self.documents as u64;
        self.bytes += self.held.len() as u64;
        self.context
            .progress
            .add(self.held.len() as u64, self.documents as u64);
        self.held.clear();
        self.starts.clear();
        self.documents = 0;
        Ok(())
    }

    /// Replaces a document that an earlier attempt has written.
    async fn replace(
        &self,
        session: &mut Session,
        at: usize,
        doing: &str,
    ) -> Result<(), EngineError> {
        let document = self
            .starts
            .get(at)
            .and_then(|start| {
                let length = i32::from_le_bytes(*self.held.get(*start..)?.first_chunk::<4>()?);
                let end = start.checked_add(usize::try_from(length).ok()?)?;
                RawDocument::from_bytes(self.held.get(*start..end)?).ok()
            })
            .ok_or_else(|| session.unexpected(doing, &"it refused what was not sent"))?;
        let Ok(Some(id)) = document.get(ID) else {
            return Err(session.unexpected(doing, &"a document without `_id` is there already"));
        };
        let mut equal = RawDocumentBuf::new();
        put(&mut equal, "$eq", id);
        let mut query = RawDocumentBuf::new();
        put(&mut query, ID, equal);
        let mut update = RawDocumentBuf::new();
        put(&mut update, "q", query);
        put(&mut update, "u", document.to_owned());
        put(&mut update, "upsert", true);
        let mut updates = RawArrayBuf::new();
        updates.push(update);
        let mut command = rawdoc! { "update": self.collection.as_str() };
        put(&mut command, "updates", updates);
        put(&mut command, "bypassDocumentValidation", true);
        let answer = session.run(&self.database, command, doing).await?;
        refused(session, &answer, doing)?;
        Ok(())
    }
}

/// Which documents were there already; an error for any other refusal. Messages of a server hold values: only its code is told.
fn refused(
    session: &Session,
    answer: &RawDocument,
    doing: &str,
) -> Result<Vec<usize>, EngineError> {
    let mut there = Vec::new();
    if let Ok(errors) = answer.get_array("writeErrors") {
        for error in errors {
            let error = error
                .ok()
                .and_then(bson::RawBsonRef::as_document)
                .ok_or_else(|| session.unexpected(doing, &"a refusal that cannot be read"))?;
            let refusal = Refusal::of(error);
            if refusal.code != code::DUPLICATE_KEY {
                let what = Refusal {
                    message: "a document was refused".to_owned(),
                    ..refusal
                };
                return Err(what.doing(session.server(), doing));
            }
            there.push(crate::raw::number(error, "index").unwrap_or(0) as usize);
        }
    }
    if let Ok(error) = answer.get_document("writeConcernError") {
        let refusal = Refusal::of(error);
        return Err(refusal.doing(session.server(), doing));
    }
    Ok(there)
}
