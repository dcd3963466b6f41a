//! Pages of documents, as a server sends them, read without copying what is in them.

use std::borrow::Cow;

use fettler_engine::RowHasher;
use fettler_model::Fingerprint;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::json::put_compact;

/// An answer with documents.
#[derive(Debug, Deserialize)]
pub(crate) struct Page<'a> {
    /// The point in time, which may have another name from now on.
    #[serde(borrow)]
    pub(crate) pit_id: Option<Cow<'a, str>>,
    #[serde(rename = "_scroll_id", borrow)]
    pub(crate) scroll_id: Option<Cow<'a, str>>,
    #[serde(default)]
    timed_out: bool,
    #[serde(rename = "_shards")]
    shards: Option<Shards>,
    #[serde(borrow)]
    pub(crate) hits: Hits<'a>,
}

#[derive(Debug, Deserialize)]
struct Shards {
    #[serde(default)]
    failed: u64,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Hits<'a> {
    pub(crate) total: Option<Total>,
    #[serde(borrow, default)]
    pub(crate) hits: Vec<Hit<'a>>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
pub(crate) struct Total {
    pub(crate) value: u64,
}

/// A document.
#[derive(Debug, Deserialize)]
pub(crate) struct Hit<'a> {
    /// The index that holds it, also where a data stream was asked.
    #[serde(rename = "_index", borrow, default)]
    pub(crate) index: Cow<'a, str>,
    #[serde(rename = "_id", borrow)]
    pub(crate) id: Cow<'a, str>,
    #[serde(rename = "_routing", borrow, default)]
    pub(crate) routing: Option<Cow<'a, str>>,
    #[serde(rename = "_version", default)]
    pub(crate) version: Option<i64>,
    /// Where it stands in the history of its shard.
    #[serde(rename = "_seq_no", default)]
    pub(crate) seq_no: Option<u64>,
    #[serde(rename = "_source", borrow, default)]
    pub(crate) source: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub(crate) sort: Option<&'a RawValue>,
}

/// Why a page cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Unusable(pub(crate) String);

impl<'a> Page<'a> {
    /// Reads an answer.
    ///
    /// # Errors
    ///
    /// What is not JSON of this form, and what is only a part of what was asked for.
    pub(crate) fn read(bytes: &'a [u8]) -> Result<Self, Unusable> {
        // The error's own words name a place, never a value.
        let page: Self =
            serde_json::from_slice(bytes).map_err(|error| Unusable(error.to_string()))?;
        let failed = page.shards.as_ref().map_or(0, |shards| shards.failed);
        if page.timed_out || failed > 0 {
            return Err(Unusable(format!("{failed} shards did not answer")));
        }
        Ok(page)
    }
}

/// What a document is stored as: two lines of a bulk request, which puts it back as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// With its version, which it keeps.
    Index,
    /// For a data stream, which takes new documents only and no versions.
    Create,
}

/// Adds the two lines of a document; the second is its source on one line, otherwise as it stands.
///
/// # Errors
///
/// A document without `_source`.
pub(crate) fn put_lines(hit: &Hit<'_>, form: Form, to: &mut Vec<u8>) -> Result<(), Unusable> {
    let source = hit
        .source
        .ok_or_else(|| Unusable("a document has no _source".to_owned()))?;
    let text = |value: &str| serde_json::Value::from(value).to_string();
    to.extend_from_slice(match form {
        Form::Index => b"{\"index\":{\"_id\":",
        Form::Create => b"{\"create\":{\"_id\":",
    });
    to.extend_from_slice(text(&hit.id).as_bytes());
    if let Some(routing) = &hit.routing {
        to.extend_from_slice(b",\"routing\":");
        to.extend_from_slice(text(routing).as_bytes());
    }
    if let (Form::Index, Some(version)) = (form, hit.version) {
        to.extend_from_slice(
            format!(",\"version\":{version},\"version_type\":\"external_gte\"").as_bytes(),
        );
    }
    to.extend_from_slice(b"}}\n");
    put_compact(source.get().as_bytes(), to);
    to.push(b'\n');
    Ok(())
}

/// Adds a document to a fingerprint: by its id, its routing and its source on one line.
///
/// # Errors
///
/// A document without `_source`.
pub(crate) fn add_to(
    fingerprint: &mut Fingerprint,
    hasher: &RowHasher,
    hit: &Hit<'_>,
    room: &mut Vec<u8>,
) -> Result<(), Unusable> {
    let source = hit
        .source
        .ok_or_else(|| Unusable("a document has no _source".to_owned()))?;
    room.clear();
    for part in [Some(&hit.id), hit.routing.as_ref()] {
        let length = part.map_or(u64::MAX, |part| part.len() as u64);
        room.extend_from_slice(&length.to_le_bytes());
        room.extend_from_slice(part.map_or(b"".as_slice(), |part| part.as_bytes()));
    }
    put_compact(source.get().as_bytes(), room);
    hasher.add(room, fingerprint);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = r#"{"pit_id":"p","took":1,"timed_out":false,"_shards":{"total":1,"successful":1,"skipped":0,"failed":0},
        "hits":{"max_score":null,"hits":[{"_index":"i","_id":"a\"\u00e9","_version":3,"_seq_no":7,"_routing":"r 1",
        "_source":{ "a": 1.0e3, "a" : 2,
          "b":"x y" },"sort":[12]},{"_index":"i","_id":"b","_source":{}}]}}"#;

    #[test]
    fn a_document_becomes_two_lines_that_put_it_back_and_keeps_numbers_and_doubled_names() {
        let page = Page::read(PAGE.as_bytes()).unwrap();
        let mut lines = Vec::new();
        put_lines(&page.hits.hits[0], Form::Index, &mut lines).unwrap();
        put_lines(&page.hits.hits[1], Form::Create, &mut lines).unwrap();
        assert_eq!(
            String::from_utf8(lines).unwrap(),
            "{\"index\":{\"_id\":\"a\\\"é\",\"routing\":\"r 1\",\"version\":3,\"version_type\":\"external_gte\"}}\n\
             {\"a\":1.0e3,\"a\":2,\"b\":\"x y\"}\n{\"create\":{\"_id\":\"b\"}}\n{}\n"
        );
    }

    #[test]
    fn a_fingerprint_tells_every_change_and_no_layout() {
        let print = |hit: &str| {
            let hit: Hit<'_> = serde_json::from_str(hit).unwrap();
            let mut print = Fingerprint::empty();
            add_to(&mut print, &RowHasher::new(&[7; 32]), &hit, &mut Vec::new()).unwrap();
            print
        };
        let first = print(r#"{"_id":"1","_routing":"r","_source":{"a":1}}"#);
        assert_eq!(
            first,
            print(r#"{"_id":"1","_routing":"r","_version":9,"_source":{ "a" : 1 }}"#)
        );
        for other in [
            r#"{"_id":"2","_routing":"r","_source":{"a":1}}"#,
            r#"{"_id":"1","_source":{"a":1}}"#,
            r#"{"_id":"1r","_routing":"","_source":{"a":1}}"#,
            r#"{"_id":"1","_routing":"r","_source":{"a":1.0}}"#,
            r#"{"_id":"1","_routing":"r","_source":{"a":-1}}"#,
            r#"{"_id":"1","_routing":"r","_source":{"a":null}}"#,
            r#"{"_id":"1","_routing":"r","_source":{"a":1,"a":1}}"#,
        ] {
            assert_ne!(first, print(other), "{other}");
        }
        assert_ne!(
            print(r#"{"_id":"1","_source":{"n":9007199254740993}}"#),
            print(r#"{"_id":"1","_source":{"n":9007199254740992}}"#)
        );
    }

    #[test]
    fn a_page_of_some_shards_only_is_no_page() {
        let part = PAGE.replace(r#""failed":0"#, r#""failed":1"#);
        assert!(Page::read(part.as_bytes()).is_err());
        let late = PAGE.replace(r#""timed_out":false"#, r#""timed_out":true"#);
        assert!(Page::read(late.as_bytes()).is_err());
        let bare: Hit<'_> = serde_json::from_str(r#"{"_id":"1"}"#).unwrap();
        assert!(put_lines(&bare, Form::Index, &mut Vec::new()).is_err());
    }
}
