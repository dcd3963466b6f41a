//! Reads an index at one moment of each of its shards: a point in time, or a scroll where the server has none.
//!
//! Each shard is a slice of its own (a server that is asked for as many slices as there are shards makes each slice one
//! shard), read in the order in which its documents lie there, which costs the server least.

use std::time::Duration;

use bytes::Bytes;
use fettler_engine::{EngineContext, EngineError};
use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    catalogue::Definition,
    client::{Body, Client, encoded},
    error::Refusal,
    hits::{Page, Unusable},
    server::{Flavour, Server},
};

/// How long the server keeps a moment for us after each question.
const KEEP_ALIVE: &str = "10m";
/// Bytes that a page is meant to have.
const PAGE_BYTES: usize = 4 << 20;
/// Bytes that a page may have before it is asked for again with fewer documents.
const MOST_PAGE_BYTES: usize = 32 << 20;
/// Bytes that a page of one document may have: no server takes a larger one.
const ONE_DOCUMENT_BYTES: usize = 2 << 30;
/// Documents of the first page.
const FIRST_DOCUMENTS: u64 = 100;
/// Documents of a page of a scroll, which cannot be asked for again.
const SCROLL_DOCUMENTS: u64 = 200;
/// How often a point in time is opened whose shards are not there yet.
const OPEN_TRIES: u32 = 5;

/// How documents are read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Way {
    /// By point in time where the server has it.
    #[default]
    Best,
    /// By scroll.
    Scroll,
}

/// An index at a moment.
#[derive(Debug)]
pub(crate) struct View<'a> {
    client: &'a Client,
    server: &'a Server,
    index: String,
    shards: u32,
    most_documents: u64,
    /// Nothing where it is read by scroll: each shard then has its own moment when its reading begins.
    pit: Option<String>,
    /// Whether it holds no document at that moment. OpenSearch cannot divide such an index into its shards: it has no `_id`.
    is_empty: bool,
    /// Only what this query finds, and of that the names alone.
    names_of: Option<Value>,
}

/// Says whether documents are read by point in time.
pub(crate) struct Opened<'a> {
    pub(crate) view: View<'a>,
    pub(crate) is_point_in_time: bool,
}

impl<'a> View<'a> {
    /// Opens an index at this moment; nothing where it is gone.
    pub(crate) async fn open(
        client: &'a Client,
        server: &'a Server,
        index: &str,
        definition: &Definition,
        way: Way,
    ) -> Result<Option<Opened<'a>>, EngineError> {
        let mut view = Self {
            client,
            server,
            index: index.to_owned(),
            shards: definition.shards(),
            most_documents: definition.most_documents(),
            pit: None,
            is_empty: false,
            names_of: None,
        };
        if way == Way::Best {
            match view.open_point().await? {
                Ok(Some(pit)) => {
                    view.pit = Some(pit);
                    if !view.knows_shard_order().await? {
                        view.close().await?;
                        view.pit = None;
                    }
                }
                Ok(None) => return Ok(None),
                Err(_unknown) => {}
            }
        }
        view.is_empty = view.count_of(json!({})).await? == Some(0);
        let is_point_in_time = view.pit.is_some();
        Ok(Some(Opened {
            view,
            is_point_in_time,
        }))
    }

    /// Opens a point in time. Nothing where the index is gone; a refusal where the server knows none.
    async fn open_point(&self) -> Result<Result<Option<String>, Refusal>, EngineError> {
        let index = encoded(&self.index);
        let (path, id) = match self.server.flavour {
            Flavour::Elasticsearch => (
                format!("/{index}/_pit?keep_alive={KEEP_ALIVE}&expand_wildcards=all"),
                "id",
            ),
            Flavour::OpenSearch => (
                format!(
                    "/{index}/_search/point_in_time?keep_alive={KEEP_ALIVE}&allow_partial_pit_creation=false&expand_wildcards=all"
                ),
                "pit_id",
            ),
        };
        let mut tries = 0;
        loop {
            tries += 1;
            match self
                .client
                .try_ask(Method::POST, &path, Body::Nothing)
                .await?
            {
                Ok(answer) => {
                    let pit = answer[id].as_str().map(ToOwned::to_owned);
                    return Ok(Ok(Some(pit.ok_or_else(|| {
                        self.client.unexpected("opening a point in time", &"no id")
                    })?)));
                }
                Err(refusal) if refusal.kind == "index_not_found_exception" => return Ok(Ok(None)),
                Err(refusal) if refusal.is_unknown() => return Ok(Err(refusal)),
                // A primary that moves is back in a moment.
                Err(refusal) if refusal.status == 503 && tries < OPEN_TRIES => {
                    self.client.pause(Duration::from_secs(1)).await?;
                }
                Err(refusal) => return Err(self.refused(&refusal)),
            }
        }
    }

    /// Whether a point in time can be paged through in the order of its shards.
    async fn knows_shard_order(&self) -> Result<bool, EngineError> {
        let asked = json!({
            "size": 0, "pit": self.point(), "sort": ["_shard_doc"], "track_total_hits": false,
        });
        match self.client.try_ask(Method::POST, "/_search", asked).await? {
            Ok(_) => Ok(true),
            Err(refusal) if refusal.status == 400 => Ok(false),
            Err(refusal) => Err(self.refused(&refusal)),
        }
    }

    /// How many documents the server counts of what is asked for, `{}` for all; nothing where some shards do not answer.
    async fn count_of(&self, mut asked: Value) -> Result<Option<u64>, EngineError> {
        asked["size"] = json!(0);
        asked["track_total_hits"] = json!(true);
        let path = if self.pit.is_some() {
            asked["pit"] = self.point();
            "/_search".to_owned()
        } else {
            format!("/{}/_search?expand_wildcards=all", encoded(&self.index))
        };
        let answer = self
            .client
            .ask(Method::POST, &path, asked, "counting documents")
            .await?;
        Ok((answer["_shards"]["failed"].as_u64() == Some(0))
            .then(|| answer["hits"]["total"]["value"].as_u64())
            .flatten())
    }

    fn point(&self) -> Value {
        json!({"id": self.pit, "keep_alive": KEEP_ALIVE})
    }

    fn refused(&self, refusal: &Refusal) -> EngineError {
        refusal.doing(self.client.server(), format!("reading {}", self.index))
    }

    fn unusable(&self, what: &Unusable) -> EngineError {
        let Unusable(what) = what;
        self.client
            .unexpected(&format!("reading {}", self.index), what)
    }

    /// Reads from now on the names alone of those documents that a query finds.
    pub(crate) fn names_of(&mut self, query: Value) {
        self.names_of = Some(query);
    }

    /// How documents are asked for.
    fn source(&self) -> Value {
        match self.names_of {
            Some(_) => json!(false),
            None => self.server.whole_source(),
        }
    }

    /// How many shards there are to read.
    pub(crate) const fn shards(&self) -> u32 {
        self.shards
    }

    /// What every search of a shard asks for.
    fn of_shard(&self, shard: u32) -> Value {
        let mut asked = json!({});
        if self.shards > 1 {
            asked["slice"] = json!({"id": shard, "max": self.shards});
        }
        if let Some(query) = &self.names_of {
            asked["query"] = query.clone();
        }
        asked
    }

    /// Begins to read a shard.
    pub(crate) fn shard(&self, shard: u32) -> ShardReader<'_> {
        ShardReader {
            view: self,
            shard,
            pit: self.pit.clone(),
            scroll: None,
            after: None,
            size: FIRST_DOCUMENTS.min(self.most_documents),
            counted: self.is_empty.then_some(0),
            is_done: self.is_empty,
        }
    }

    /// Lets the server forget the moment. One that it has forgotten already is no error.
    pub(crate) async fn close(&self) -> Result<(), EngineError> {
        let Some(pit) = &self.pit else {
            return Ok(());
        };
        let (path, body) = match self.server.flavour {
            Flavour::Elasticsearch => ("/_pit", json!({"id": pit})),
            Flavour::OpenSearch => ("/_search/point_in_time", json!({"pit_id": [pit]})),
        };
        let _forgotten = self.client.try_ask(Method::DELETE, path, body).await?;
        Ok(())
    }
}

/// Reads a shard page by page.
#[derive(Debug)]
pub(crate) struct ShardReader<'a> {
    view: &'a View<'a>,
    shard: u32,
    pit: Option<String>,
    scroll: Option<String>,
    /// Where the last page ended.
    after: Option<Value>,
    size: u64,
    /// How many documents the server counted at the same moment.
    counted: Option<u64>,
    is_done: bool,
}

impl ShardReader<'_> {
    /// How many documents the server says that the shard has, at the very moment that is read; it counts them by its own
    /// index and not by reading. For a point in time before the first page, for a scroll after it.
    pub(crate) async fn count(&mut self) -> Result<Option<u64>, EngineError> {
        if self.counted.is_none() && self.pit.is_some() {
            let asked = self.view.of_shard(self.shard);
            self.counted = self.view.count_of(asked).await?;
        }
        Ok(self.counted)
    }

    /// The next page as the server sent it; nothing after the last one. [`Page::read`] understands it.
    pub(crate) async fn next(
        &mut self,
        context: &EngineContext,
    ) -> Result<Option<Bytes>, EngineError> {
        if self.is_done {
            return Ok(None);
        }
        context.check_stop()?;
        let page = if self.pit.is_some() {
            self.next_of_point().await?
        } else {
            self.next_of_scroll().await?
        };
        if let Some(page) = &page {
            context.rate.pass(page.len() as u64).await;
        }
        Ok(page)
    }

    async fn next_of_point(&mut self) -> Result<Option<Bytes>, EngineError> {
        let view = self.view;
        loop {
            let mut asked = view.of_shard(self.shard);
            asked["size"] = json!(self.size);
            asked["sort"] = json!(["_shard_doc"]);
            asked["track_total_hits"] = json!(false);
            asked["version"] = json!(true);
            asked["seq_no_primary_term"] = json!(true);
            asked["_source"] = view.source();
            asked["pit"] = json!({"id": self.pit, "keep_alive": KEEP_ALIVE});
            if let Some(after) = &self.after {
                asked["search_after"] = after.clone();
            }
            let most = if self.size == 1 {
                ONE_DOCUMENT_BYTES
            } else {
                MOST_PAGE_BYTES
            };
            let path = "/_search?allow_partial_search_results=false";
            let answer = view
                .client
                .try_bytes(Method::POST, path, &Body::Json(asked), most)
                .await?;
            let Some(bytes) = answer.map_err(|refusal| view.refused(&refusal))? else {
                self.size = (self.size / 8).max(1);
                continue;
            };
            let page = Page::read(&bytes).map_err(|what| view.unusable(&what))?;
            let Some(last) = page.hits.hits.last() else {
                self.is_done = true;
                return Ok(None);
            };
            self.after = last
                .sort
                .map(|sort| serde_json::from_str(sort.get()))
                .transpose()
                .ok()
                .flatten();
            if self.after.is_none() {
                return Err(view.unusable(&Unusable("a document has no place".to_owned())));
            }
            if let Some(pit) = page.pit_id {
                self.pit = Some(pit.into_owned());
            }
            let read = page.hits.hits.len() as u64;
            self.is_done = read < self.size;
            self.size = next_size(read, bytes.len(), view.most_documents);
            return Ok(Some(bytes));
        }
    }

    async fn next_of_scroll(&mut self) -> Result<Option<Bytes>, EngineError> {
        let view = self.view;
        let (path, asked) = match &self.scroll {
            None => {
                let mut asked = view.of_shard(self.shard);
                asked["size"] = json!(SCROLL_DOCUMENTS.min(view.most_documents));
                asked["sort"] = json!(["_doc"]);
                asked["track_total_hits"] = json!(true);
                asked["version"] = json!(true);
                asked["seq_no_primary_term"] = json!(true);
                asked["_source"] = view.source();
                let path = format!(
                    "/{}/_search?scroll={KEEP_ALIVE}&allow_partial_search_results=false&expand_wildcards=all",
                    encoded(&view.index)
                );
                (path, asked)
            }
            Some(scroll) => (
                "/_search/scroll".to_owned(),
                json!({"scroll": KEEP_ALIVE, "scroll_id": scroll}),
            ),
        };
        let answer = view
            .client
            .try_bytes(Method::POST, &path, &Body::Json(asked), ONE_DOCUMENT_BYTES)
            .await?;
        let bytes = answer
            .map_err(|refusal| view.refused(&refusal))?
            .ok_or_else(|| view.unusable(&Unusable("a page is too long".to_owned())))?;
        let page = Page::read(&bytes).map_err(|what| view.unusable(&what))?;
        if let Some(total) = page.hits.total
            && self.scroll.is_none()
        {
            self.counted = Some(total.value);
        }
        if let Some(scroll) = page.scroll_id {
            self.scroll = Some(scroll.into_owned());
        }
        if page.hits.hits.is_empty() {
            self.is_done = true;
            if let Some(scroll) = self.scroll.take() {
                let asked = json!({"scroll_id": [scroll]});
                let _forgotten = view
                    .client
                    .try_ask(Method::DELETE, "/_search/scroll", asked)
                    .await?;
            }
            return Ok(None);
        }
        Ok(Some(bytes))
    }
}

/// How many documents the next page is asked for, after one of so many documents and bytes.
fn next_size(documents: u64, bytes: usize, most: u64) -> u64 {
    let each = (bytes as u64 / documents.max(1)).max(1);
    (PAGE_BYTES as u64 / each)
        .min(documents.saturating_mul(4))
        .clamp(1, most)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_grow_to_the_bytes_that_they_are_meant_to_have_and_no_further() {
        assert_eq!(next_size(100, 20_000, 10_000), 400);
        assert_eq!(next_size(400, 80_000, 10_000), 1600);
        assert_eq!(next_size(10_000, 2_000_000, 10_000), 10_000);
        assert_eq!(next_size(100, 40 << 20, 10_000), 10);
        assert_eq!(next_size(1, 90 << 20, 10_000), 1);
        assert_eq!(next_size(400, 80_000, 500), 500);
    }
}
