//! One stream of documents into an index, by bulk requests.
//!
//! A stream is lines of bulk requests as it stands. A document that the server has no room for (429) is sent again after a
//! pause that grows; so is the whole request. Documents keep their versions, so that one that is written twice is there once.

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use fettler_engine::{EngineContext, EngineError, StreamSource};
use futures::TryStreamExt as _;
use reqwest::Method;
use serde_json::Value;

use crate::{
    client::{Body, Client, encoded},
    error::Refusal,
};

/// Bytes of a request, unless one document has more.
pub(super) const REQUEST_BYTES: usize = 4 << 20;
/// Documents of a request.
pub(super) const REQUEST_DOCUMENTS: usize = 5000;
/// Bytes of an answer to one.
const ANSWER_BYTES: usize = 64 << 20;
/// The first pause before documents are sent again.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// The longest.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// How often in a row no document of a request may find room before it is left to the job's next attempt.
const FULL_TRIES: u32 = 12;

/// What was done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) bytes: u64,
    pub(crate) documents: u64,
    /// Documents that a data stream held already.
    pub(crate) there_already: u64,
    /// How many documents were refused, by the kind of the refusal. Its words may hold values.
    pub(crate) refused: BTreeMap<String, u64>,
}

impl Outcome {
    pub(crate) fn merge(&mut self, other: Self) {
        self.bytes += other.bytes;
        self.documents += other.documents;
        self.there_already += other.there_already;
        for (kind, count) in other.refused {
            *self.refused.entry(kind).or_default() += count;
        }
    }
}

/// Cuts lines into requests of whole documents: two lines each.
#[derive(Debug, Default)]
struct Batches {
    /// What was not given out yet.
    bytes: Vec<u8>,
    /// Where documents end in it.
    ends: Vec<usize>,
    /// How far it was looked at.
    seen: usize,
    /// Whether the next line is a document's second.
    is_second: bool,
}

impl Batches {
    fn feed(&mut self, piece: &[u8]) {
        self.bytes.extend_from_slice(piece);
        while let Some(at) = self.bytes[self.seen..]
            .iter()
            .position(|byte| *byte == b'\n')
        {
            self.seen += at + 1;
            if self.is_second {
                self.ends.push(self.seen);
            }
            self.is_second = !self.is_second;
        }
        self.seen = self.bytes.len();
    }

    /// The next request and where its documents end; nothing until there is enough, unless it is the last one.
    fn next(&mut self, is_last: bool) -> Option<(Bytes, Vec<usize>)> {
        let mut count = self
            .ends
            .partition_point(|end| *end <= REQUEST_BYTES)
            .min(REQUEST_DOCUMENTS);
        let is_full = self.bytes.len() >= REQUEST_BYTES || count == REQUEST_DOCUMENTS;
        if self.ends.is_empty() || !(is_full || is_last) {
            return None;
        }
        count = count.max(1);
        let end = self.ends[count - 1];
        let rest = self.bytes.split_off(end);
        let request = std::mem::replace(&mut self.bytes, rest);
        let after = self.ends.split_off(count);
        let ends = std::mem::replace(&mut self.ends, after);
        self.ends.iter_mut().for_each(|one| *one -= end);
        self.seen -= end;
        Some((Bytes::from(request), ends))
    }

    fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }
}

/// Writes a stream into an index or a data stream.
pub(crate) async fn write(
    context: &EngineContext,
    client: &Client,
    backup: &dyn StreamSource,
    stream: &str,
    index: &str,
) -> Result<Outcome, EngineError> {
    let mut pieces = backup.read(stream).await?;
    let mut batches = Batches::default();
    let mut outcome = Outcome::default();
    while let Some(piece) = pieces.try_next().await? {
        batches.feed(&piece);
        while let Some((request, ends)) = batches.next(false) {
            send(context, client, index, request, ends, &mut outcome).await?;
        }
    }
    while let Some((request, ends)) = batches.next(true) {
        send(context, client, index, request, ends, &mut outcome).await?;
    }
    if !batches.is_empty() {
        return Err(EngineError::Unusable {
            what: format!("the stream {stream} ends within a document"),
            remedy: "verify the backup, and restore another one".to_owned(),
        });
    }
    Ok(outcome)
}

/// Sends a request until each of its documents has an answer. `ends` says where each of them ends in it.
pub(super) async fn send(
    context: &EngineContext,
    client: &Client,
    index: &str,
    mut request: Bytes,
    mut ends: Vec<usize>,
    outcome: &mut Outcome,
) -> Result<(), EngineError> {
    let path = format!(
        "/{}/_bulk?pipeline=_none&filter_path=errors,items.*.status,items.*.error",
        encoded(index)
    );
    let (mut pause, mut tries) = (FIRST_PAUSE, 0);
    loop {
        context.check_stop()?;
        context.fence.check().await?;
        let body = Body::Lines(request.clone());
        let answer = client
            .try_bytes(Method::POST, &path, &body, ANSWER_BYTES)
            .await?
            .map_err(|refusal| refusal.doing(client.server(), format!("writing into {index}")))?
            .unwrap_or_default();
        let answer: Value = serde_json::from_slice(&answer)
            .map_err(|error| client.unexpected("writing documents", &error))?;
        let full = look_at(client, &answer, ends.len(), outcome)?;
        let again: usize = full.iter().map(|at| ends[*at] - start_of(&ends, *at)).sum();
        context.progress.add(
            (request.len() - again) as u64,
            (ends.len() - full.len()) as u64,
        );
        outcome.bytes += (request.len() - again) as u64;
        if full.is_empty() {
            return Ok(());
        }
        tries = if full.len() == ends.len() {
            tries + 1
        } else {
            0
        };
        if tries == FULL_TRIES {
            return Err(EngineError::Busy {
                what: format!(
                    "{} has no room for more writes into {index} (429)",
                    client.server()
                ),
                wait: LONGEST_PAUSE,
            });
        }
        client.pause(pause).await?;
        pause = (pause * 2).min(LONGEST_PAUSE);
        (request, ends) = only(&request, &ends, &full);
    }
}

fn start_of(ends: &[usize], at: usize) -> usize {
    if at == 0 { 0 } else { ends[at - 1] }
}

/// A request of some documents of another.
fn only(request: &Bytes, ends: &[usize], which: &[usize]) -> (Bytes, Vec<usize>) {
    let (mut bytes, mut new_ends) = (Vec::new(), Vec::new());
    for at in which {
        bytes.extend_from_slice(&request[start_of(ends, *at)..ends[*at]]);
        new_ends.push(bytes.len());
    }
    (Bytes::from(bytes), new_ends)
}

/// Counts what became of each document; gives those that the server had no room for.
fn look_at(
    client: &Client,
    answer: &Value,
    documents: usize,
    outcome: &mut Outcome,
) -> Result<Vec<usize>, EngineError> {
    let items = answer["items"].as_array().map_or(&[][..], Vec::as_slice);
    if items.len() != documents {
        let what = format!("{} answers to {documents} documents", items.len());
        return Err(client.unexpected("writing documents", &what));
    }
    let mut full = Vec::new();
    for (at, item) in items.iter().enumerate() {
        let Some((action, item)) = item.as_object().and_then(|item| item.iter().next()) else {
            return Err(client.unexpected("writing documents", &"an empty answer"));
        };
        let status = item["status"]
            .as_u64()
            .and_then(|status| u16::try_from(status).ok())
            .unwrap_or(0);
        if (200..300).contains(&status) {
            outcome.documents += 1;
            continue;
        }
        let refusal = Refusal::of(status, &item["error"]);
        if refusal.is_full() {
            full.push(at);
        } else if status == 409 && action == "create" {
            outcome.there_already += 1;
        } else if matches!(status, 401 | 403 | 503) {
            return Err(refusal.doing(client.server(), "writing documents"));
        } else {
            *outcome.refused.entry(refusal.kind).or_default() += 1;
        }
    }
    Ok(full)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn documents(count: usize, bytes: usize) -> Vec<u8> {
        (0..count)
            .flat_map(|at| {
                format!(
                    "{{\"index\":{{\"_id\":\"{at}\"}}}}\n{{\"a\":\"{}\"}}\n",
                    "x".repeat(bytes)
                )
                .into_bytes()
            })
            .collect()
    }

    fn cut(bytes: &[u8], piece: usize) -> Vec<(Bytes, Vec<usize>)> {
        let mut batches = Batches::default();
        let mut requests = Vec::new();
        for piece in bytes.chunks(piece) {
            batches.feed(piece);
            requests.extend(std::iter::from_fn(|| batches.next(false)));
        }
        requests.extend(std::iter::from_fn(|| batches.next(true)));
        assert!(batches.is_empty());
        requests
    }

    #[test]
    fn requests_hold_whole_documents_and_not_too_many() {
        for (count, bytes, piece) in [
            (12_000, 10, 1000),
            (50, 300_000, 65_536),
            (3, 6 << 20, 1 << 20),
            (1, 1, 1),
        ] {
            let all = documents(count, bytes);
            let requests = cut(&all, piece);
            let joined: Vec<u8> = requests
                .iter()
                .flat_map(|(request, _)| request.to_vec())
                .collect();
            assert_eq!(joined, all);
            for (request, ends) in &requests {
                assert!(ends.len() <= REQUEST_DOCUMENTS);
                assert!(request.len() <= REQUEST_BYTES || ends.len() == 1);
                assert_eq!(*ends.last().unwrap(), request.len());
                assert!(ends.iter().all(|end| request[end - 1] == b'\n'));
            }
            let total: usize = requests.iter().map(|(_, ends)| ends.len()).sum();
            assert_eq!(total, count);
        }
        let mut torn = Batches::default();
        torn.feed(b"{\"index\":{}}\n{\"a\"");
        assert!(torn.next(true).is_none() && !torn.is_empty());
    }

    #[test]
    fn only_the_documents_that_found_no_room_are_sent_again() {
        let all = Bytes::from(documents(5, 3));
        let (_, ends) = cut(&all, 10).remove(0);
        let (again, new_ends) = only(&all, &ends, &[1, 4]);
        assert_eq!(new_ends.len(), 2);
        let text = String::from_utf8(again.to_vec()).unwrap();
        assert!(text.contains("\"1\"") && text.contains("\"4\"") && !text.contains("\"2\""));
        assert_eq!(text.lines().count(), 4);
    }
}
