//! What a second backup has to store anew.

use std::collections::HashSet;

use fettler_engine::StreamSource as _;
use fettler_engine::testing::{MemorySink, MemorySource};
use futures::TryStreamExt as _;
use rstest::rstest;
use serde_json::{Value, json};

use crate::common::{
    Elasticsearch, OpenSearch, Place, SearchKind, back_up, back_up_after, documents, noise,
    numbered, prove, restore, write,
};

/// The chunks of a backup's documents, cut by content as a repository cuts them. Definitions that belong to the whole server
/// are left out: other tests change them meanwhile.
async fn chunks(backup: &MemorySource) -> Vec<(blake3::Hash, u64)> {
    let mut all = Vec::new();
    let streams = backup.streams().iter();
    for stream in streams.filter(|stream| stream.name.starts_with("documents/")) {
        let pieces: Vec<bytes::Bytes> = backup
            .read(&stream.name)
            .await
            .unwrap()
            .try_collect()
            .await
            .unwrap();
        let bytes = pieces.concat();
        for chunk in fastcdc::v2020::FastCDC::new(&bytes, 16 << 10, 64 << 10, 256 << 10) {
            let content = &bytes[chunk.offset..chunk.offset + chunk.length];
            all.push((blake3::hash(content), chunk.length as u64));
        }
    }
    all
}

/// Which part of the second backup is not in the first.
async fn new_part(first: &MemorySource, second: &MemorySource) -> f64 {
    let known: HashSet<blake3::Hash> = chunks(first).await.iter().map(|(hash, _)| *hash).collect();
    let all = chunks(second).await;
    let total: u64 = all.iter().map(|(_, bytes)| bytes).sum();
    let new: u64 = all
        .iter()
        .filter(|(hash, _)| !known.contains(hash))
        .map(|(_, bytes)| bytes)
        .sum();
    new as f64 / total as f64
}

#[rstest]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_merging_nothing_is_new_and_after_a_change_of_one_in_a_hundred_little(
    #[values(Elasticsearch, OpenSearch)] kind: SearchKind,
) {
    let place = Place::new(kind);
    let index = place.make(
        "events",
        &json!({"settings": {"number_of_shards": 2, "number_of_replicas": 0, "refresh_interval": "-1"}}),
    );
    for from in (0..40_000).step_by(4000) {
        // Each round overwrites some of the one before, so that merging has something to take away.
        place.write(
            &index,
            &numbered(u32::saturating_sub(from, 200)..from + 4000, "first"),
        );
    }
    let (first, _) = back_up(&place.url()).await;
    place.send(
        "POST",
        &format!("/{index}/_forcemerge?max_num_segments=1"),
        &Value::Null,
    );
    place.send("POST", &format!("/{index}/_refresh"), &Value::Null);
    let (second, _) = back_up(&place.url()).await;
    let new = new_part(&first, &second).await;
    assert!(new == 0.0, "after merging: {new}");

    // One in a hundred: new ones, and old ones that lie together.
    let mut lines = numbered(40_000..40_200, "new");
    for at in 7000..7100 {
        lines.push_str(&format!(
            "{{\"index\":{{\"_id\":\"d{at}\"}}}}\n{{\"at\":{at},\"text\":\"{}\"}}\n",
            noise(at + 1)
        ));
    }
    lines.push_str(
        &(9000..9100)
            .map(|at| format!("{{\"delete\":{{\"_id\":\"d{at}\"}}}}\n"))
            .collect::<String>(),
    );
    place.write(&index, &lines);
    let (third, report) = back_up(&place.url()).await;
    let new = new_part(&second, &third).await;
    // Two changed places in each of two shards and their ends: six to ten chunks of some eighty.
    assert!(new > 0.0 && new < 0.15, "after a change: {new}");
    assert_eq!(
        prove(place.server, &third, &report).await,
        Vec::<String>::new()
    );
}

/// How many searches an index has answered.
fn searches(place: Place, index: &str) -> u64 {
    let stats = place.send("GET", &format!("/{index}/_stats/search"), &Value::Null);
    stats["_all"]["primaries"]["search"]["query_total"]
        .as_u64()
        .unwrap()
}

#[rstest]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_index_that_is_as_the_parent_saw_it_is_not_read(
    #[values(Elasticsearch, OpenSearch)] kind: SearchKind,
) {
    let place = Place::new(kind);
    let body = json!({"settings": {"number_of_shards": 3, "number_of_replicas": 0}});
    let index = place.make("still", &body);
    let (first, _) = {
        place.write(&index, &numbered(0..3000, "x"));
        back_up_after(&place.url(), &MemorySink::default()).await
    };
    let before = searches(place, &index);
    let (second, report) = back_up_after(&place.url(), &first).await;
    assert_eq!(
        searches(place, &index),
        before,
        "documents were searched for"
    );
    assert_eq!(report.objects[0].fingerprint.unwrap().rows, 3000);
    assert_eq!(
        prove(place.server, &second.source(), &report).await,
        Vec::<String>::new()
    );

    // One document more, and it is read again.
    place.write(&index, &numbered(3000..3001, "x"));
    let (third, report) = back_up_after(&place.url(), &second).await;
    assert!(searches(place, &index) > before);
    assert_eq!(report.objects[0].fingerprint.unwrap().rows, 3001);

    // An index made anew with as many changes is another one, and so is one with another mapping.
    place.send("DELETE", &format!("/{index}"), &Value::Null);
    place.make("still", &body);
    place.write(&index, &numbered(0..3000, "y"));
    place.write(&index, &numbered(3000..3001, "y"));
    let before = searches(place, &index);
    let (fourth, _) = back_up_after(&place.url(), &third).await;
    assert!(searches(place, &index) > before);
    place.send(
        "PUT",
        &format!("/{index}/_mapping"),
        &json!({"properties": {"later": {"type": "keyword"}}}),
    );
    let before = searches(place, &index);
    back_up_after(&place.url(), &fourth).await;
    assert!(searches(place, &index) > before);
}

#[rstest]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_document_that_was_changed_and_not_refreshed_is_not_taken_over_as_it_was(
    #[values(Elasticsearch, OpenSearch)] kind: SearchKind,
) {
    let place = Place::new(kind);
    let index = place.make(
        "unseen",
        &json!({"settings": {"number_of_replicas": 0, "refresh_interval": "-1"}}),
    );
    place.write(&index, "{\"index\":{\"_id\":\"1\"}}\n{\"v\":\"old\"}\n");
    let (first, _) = back_up_after(&place.url(), &MemorySink::default()).await;
    write(
        place.server,
        &index,
        "{\"index\":{\"_id\":\"1\"}}\n{\"v\":\"new\"}\n",
    );
    // The premise: numbers and counts are those of the change, and a search does not find it.
    assert_eq!(documents(place.server, &index)["1"][2], json!({"v": "old"}));
    let (second, _) = back_up_after(&place.url(), &first).await;
    // Nothing changes between these two: what the second has noted, the third takes over.
    let before = searches(place, &index);
    let (third, report) = back_up_after(&place.url(), &second).await;
    assert_eq!(searches(place, &index), before);
    restore(&third.source(), &report, &place.copy_url()).await;
    let copied = documents(place.server, &place.copy(&index));
    assert_eq!(copied["1"][2], json!({"v": "new"}));
}
