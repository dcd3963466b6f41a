//! What a second backup has to store anew.

use std::collections::HashSet;

use fettler_engine::StreamSource as _;
use fettler_engine::testing::MemorySource;
use futures::TryStreamExt as _;
use rstest::rstest;
use serde_json::{Value, json};

use crate::common::{
    Elasticsearch, OpenSearch, Place, SearchKind, back_up, noise, numbered, prove,
};

/// The chunks of a backup, cut by content as a repository cuts them.
async fn chunks(backup: &MemorySource) -> Vec<(blake3::Hash, u64)> {
    let mut all = Vec::new();
    for stream in backup.streams() {
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
    assert!(new > 0.0 && new < 0.1, "after a change: {new}");
    assert_eq!(
        prove(place.server, &third, &report).await,
        Vec::<String>::new()
    );
}
