//! The documents that a query means: an index is restored whole and under its mark, and what the query does not find is taken
//! out again before the mark goes.
//!
//! Only a server knows what a query means (analysers, scripts, ranges of dates), so that the target is asked, with the mappings
//! that the index has there. It needs room for the whole index until then. The query is tried before anything is removed or
//! written, as far as it can be: a word in it that nobody knows costs nothing.

use bytes::Bytes;
use fettler_engine::EngineError;
use reqwest::Method;
use serde_json::{Value, json};

use super::{
    Checkpoint, Restore,
    bulk::{self, Outcome},
    save,
};
use crate::{
    backup::StoredUnit,
    client::{Body, encoded},
    error::Refusal,
    hits::Page,
    read::{View, Way},
    server::Server,
};

/// What is asked of an index or a data stream.
pub(super) struct Query<'a> {
    pub(super) unit: &'a StoredUnit,
    pub(super) query: Value,
}

/// What a query came to, in documents.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Found {
    pub(super) kept: u64,
    pub(super) taken_out: u64,
}

/// Deletions that were not sent yet, all in one index.
#[derive(Default)]
struct Deletions {
    index: String,
    lines: Vec<u8>,
    ends: Vec<usize>,
}

impl Deletions {
    fn add(&mut self, id: &str, routing: Option<&str>) {
        let mut named = json!({"_id": id});
        if let Some(routing) = routing {
            named["routing"] = json!(routing);
        }
        self.lines
            .extend_from_slice(json!({ "delete": named }).to_string().as_bytes());
        self.lines.push(b'\n');
        self.ends.push(self.lines.len());
    }

    fn is_full(&self) -> bool {
        self.ends.len() >= bulk::REQUEST_DOCUMENTS || self.lines.len() >= bulk::REQUEST_BYTES
    }
}

fn not_found_by(query: &Value) -> Value {
    json!({"bool": {"must_not": [query]}})
}

fn not_understood(server: &str, name: &str, refusal: &Refusal) -> EngineError {
    match refusal.status {
        400 | 404 => EngineError::Missing {
            code: "query",
            what: format!("{server} does not understand the query for {name}: {refusal}"),
            remedy: "correct what stands behind the `?`; nothing was restored".to_owned(),
        },
        _ => refusal.doing(server, format!("trying the query for {name}")),
    }
}

impl Restore<'_> {
    /// Tries a query on what stands at its place, or on nothing: a server reads its form there too.
    pub(super) async fn try_query(&self, asked: &Query<'_>) -> Result<(), EngineError> {
        let place = self.place(&asked.unit.name);
        let path = format!(
            "/{}/_search?ignore_unavailable=true&expand_wildcards=all",
            encoded(&place)
        );
        let body = json!({"size": 0, "query": asked.query});
        self.client
            .try_ask(Method::POST, &path, body)
            .await?
            .map(drop)
            .map_err(|refusal| not_understood(self.client.server(), &place, &refusal))
    }

    /// Tries a query on what was just made and is empty. Where it is not understood, everything is removed again that was made.
    pub(super) async fn try_on_what_was_made(
        &self,
        asked: &Query<'_>,
        checkpoint: &mut Checkpoint,
    ) -> Result<(), EngineError> {
        let tried = self.try_query(asked).await;
        if !matches!(&tried, Err(EngineError::Missing { code: "query", .. })) {
            return tried;
        }
        // Nothing was written yet by this restore, and what is there is this restore's own.
        if checkpoint.done.is_empty() {
            for name in std::mem::take(&mut checkpoint.made).into_keys() {
                let place = self.place(&name);
                self.context.fence.check().await?;
                for path in [
                    // In this order: OpenSearch says that it removed a data stream also where there was none.
                    format!("/{}", encoded(&place)),
                    format!("/_data_stream/{}", encoded(&place)),
                ] {
                    let removed = self.client.try_ask(Method::DELETE, &path, Body::Nothing);
                    if removed.await?.is_ok() {
                        break;
                    }
                }
            }
            save(self.context, checkpoint).await?;
        }
        tried
    }

    /// Takes out what the query does not find.
    pub(super) async fn keep_what_is_found(
        &self,
        server: &Server,
        asked: &Query<'_>,
    ) -> Result<Found, EngineError> {
        let place = self.place(&asked.unit.name);
        self.context.progress.item(&place);
        self.refresh(&place).await?;
        let Some(opened) = View::open(
            self.client,
            server,
            &place,
            &asked.unit.definition,
            Way::Best,
        )
        .await?
        else {
            return Ok(Found::default());
        };
        let mut view = opened.view;
        view.names_of(not_found_by(&asked.query));
        let taken_out = self.take_out(&view, &place).await;
        view.close().await?;
        let taken_out = taken_out?;
        self.refresh(&place).await?;
        let left = self.count(&place, &not_found_by(&asked.query)).await?;
        if left > 0 {
            return Err(EngineError::Database {
                what: format!(
                    "{left} documents of {place} are not what was asked for and could not be taken out: somebody else writes there"
                ),
                transient: true,
            });
        }
        let kept = self.count(&place, &json!({"match_all": {}})).await?;
        Ok(Found { kept, taken_out })
    }

    /// Deletes all that a view finds, and says how many that were.
    async fn take_out(&self, view: &View<'_>, place: &str) -> Result<u64, EngineError> {
        let mut deletions = Deletions::default();
        let mut count = 0;
        for shard in 0..view.shards() {
            let mut reader = view.shard(shard);
            while let Some(page) = reader.next(self.context).await? {
                let page = Page::read(&page).map_err(|what| {
                    self.client
                        .unexpected(&format!("searching {place}"), &what.0)
                })?;
                for hit in &page.hits.hits {
                    if *hit.index != deletions.index || deletions.is_full() {
                        self.send_deletions(&mut deletions).await?;
                        hit.index.as_ref().clone_into(&mut deletions.index);
                    }
                    deletions.add(&hit.id, hit.routing.as_deref());
                    count += 1;
                }
            }
        }
        self.send_deletions(&mut deletions).await?;
        Ok(count)
    }

    async fn send_deletions(&self, deletions: &mut Deletions) -> Result<(), EngineError> {
        let all = std::mem::take(deletions);
        if all.ends.is_empty() {
            return Ok(());
        }
        let mut outcome = Outcome::default();
        let (context, client, lines) = (self.context, self.client, Bytes::from(all.lines));
        bulk::send(context, client, &all.index, lines, all.ends, &mut outcome).await
    }

    async fn refresh(&self, place: &str) -> Result<(), EngineError> {
        let path = format!("/{}/_refresh?expand_wildcards=all", encoded(place));
        let doing = format!("refreshing {place}");
        self.client
            .ask(Method::POST, &path, Body::Nothing, doing)
            .await
            .map(drop)
    }

    pub(super) async fn count(&self, place: &str, query: &Value) -> Result<u64, EngineError> {
        let path = format!("/{}/_count?expand_wildcards=all", encoded(place));
        let doing = format!("counting {place}");
        let answer = self
            .client
            .ask(Method::POST, &path, json!({ "query": query }), doing)
            .await?;
        match (
            answer["_shards"]["failed"].as_u64(),
            answer["count"].as_u64(),
        ) {
            (Some(0), Some(count)) => Ok(count),
            _ => Err(self
                .client
                .unexpected("counting documents", &"some shards did not answer")),
        }
    }
}
