//! Which moment a backup is of.

use std::sync::atomic::{AtomicBool, Ordering};

use fettler_engine::StreamSource as _;
use rstest::rstest;
use serde_json::{Value, json};

use crate::common::{
    Elasticsearch, OpenSearch, Place, SearchKind, back_up, documents, numbered, prove, restore,
    write,
};

#[rstest]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_document_that_was_changed_and_not_yet_refreshed_is_in_the_backup_as_it_is_now(
    #[values(Elasticsearch, OpenSearch)] kind: SearchKind,
) {
    let place = Place::new(kind);
    let index = place.make(
        "late",
        &json!({"settings": {"number_of_replicas": 0, "refresh_interval": "-1"}}),
    );
    place.write(&index, "{\"index\":{\"_id\":\"1\"}}\n{\"v\":\"old\"}\n");
    write(
        place.server,
        &index,
        "{\"index\":{\"_id\":\"1\"}}\n{\"v\":\"new\"}\n{\"index\":{\"_id\":\"2\"}}\n{\"v\":\"new\"}\n",
    );
    // The premise: a search does not find it yet.
    assert_eq!(documents(place.server, &index).len(), 1);
    let (backup, report) = back_up(&place.url()).await;
    restore(&backup, &report, &place.copy_url()).await;
    let copied = documents(place.server, &place.copy(&index));
    assert_eq!(copied.len(), 2);
    assert!(
        copied
            .values()
            .all(|document| document[2] == json!({"v": "new"})),
        "{copied:?}"
    );
}

#[rstest]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p4_a_backup_beside_a_writer_is_of_one_moment_for_each_shard_and_proven(
    #[values(Elasticsearch, OpenSearch)] kind: SearchKind,
) {
    static DONE: [AtomicBool; 2] = [AtomicBool::new(false), AtomicBool::new(false)];
    let done = &DONE[usize::from(kind == OpenSearch)];
    let place = Place::new(kind);
    let index = place.make("busy", &json!({"settings": {"number_of_shards": 2, "number_of_replicas": 0, "refresh_interval": "100ms"}}));
    place.write(&index, &numbered(0..20_000, "before"));
    let server = place.server;
    let busy = index.clone();
    let (began, wait) = std::sync::mpsc::channel();
    let writer = std::thread::spawn(move || {
        let mut round = 0;
        while !done.load(Ordering::Relaxed) {
            let from = round * 97 % 19_000;
            let mut lines = numbered(from..from + 200, "while");
            lines.push_str(&numbered(100_000 + round * 50..100_050 + round * 50, "new"));
            lines.push_str(&format!(
                "{{\"delete\":{{\"_id\":\"d{}\"}}}}\n",
                19_500 + round % 500
            ));
            let (status, _) = server
                .request("POST", &format!("/{busy}/_bulk"), &lines)
                .unwrap();
            assert_eq!(status, 200);
            round += 1;
            let _nobody_waits = began.send(round);
        }
        round
    });
    while wait.recv().unwrap() < 3 {}
    let (backup, report) = back_up(&place.url()).await;
    done.store(true, Ordering::Relaxed);
    assert!(writer.join().unwrap() > 3);
    assert_eq!(
        prove(place.server, &backup, &report).await,
        Vec::<String>::new()
    );
    let table = &report.objects[0];
    assert!(table.fingerprint.unwrap().rows >= 19_000);
    assert_eq!(
        table.independent_rows,
        table.fingerprint.map(|print| print.rows)
    );
}

#[rstest]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_stream_is_one_shard(#[values(Elasticsearch, OpenSearch)] kind: SearchKind) {
    let place = Place::new(kind);
    let index = place.make(
        "shards",
        &json!({"settings": {"number_of_shards": 5, "number_of_replicas": 0}}),
    );
    place.write(&index, &numbered(0..1000, "x"));
    let (backup, _) = back_up(&place.url()).await;
    let shards = place.send(
        "GET",
        &format!("/_cat/shards/{index}?format=json&h=shard,docs"),
        &Value::Null,
    );
    for shard in shards.as_array().unwrap() {
        let number: u32 = shard["shard"].as_str().unwrap().parse().unwrap();
        let name = format!("documents/{index}/{number:04}");
        let stream = backup
            .streams()
            .iter()
            .find(|stream| stream.name == name)
            .unwrap();
        assert_eq!(
            stream.rows.to_string(),
            shard["docs"].as_str().unwrap(),
            "{name}"
        );
    }
}
