//! The server's own snapshots, into a folder: made, compared, put back, taken up again and let go.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use fettler_engine::{
    BackupOptions, BackupReport, DatabaseEngine as _, EngineContext, EngineError, RestoreOptions,
    testing::{MemorySink, MemorySource},
};
use fettler_model::{ObjectFacts, Problem};
use fettler_test_servers::SearchServer;
use rstest::rstest;
use serde_json::{Value, json};

use crate::common::{
    Attempt, Elasticsearch, Front, OpenSearch, Place, SearchKind, back_up, count, documents,
    engine, exists, facts, mismatches, numbered, prove, prove_after, restore, send, target,
    try_restore,
};

/// The folder that a server may write snapshots to.
fn folder(server: &SearchServer) -> String {
    let answer = send(
        server,
        "GET",
        "/_nodes/_local/settings?flat_settings=true",
        &Value::Null,
    );
    let nodes = answer["nodes"].as_object().unwrap();
    let folder = &nodes.values().next().unwrap()["settings"]["path.repo"];
    let folder = folder.as_str().or_else(|| folder[0].as_str()).unwrap();
    folder.to_owned()
}

fn into(place: &str) -> BackupOptions {
    BackupOptions {
        by_server: Some(place.to_owned()),
        ..BackupOptions::default()
    }
}

async fn snapshot(
    context: &EngineContext,
    url: &str,
    place: &str,
    sink: &MemorySink,
) -> Result<BackupReport, EngineError> {
    engine()
        .backup(context, &target(url), &into(place), sink)
        .await
}

/// A snapshot of a test's own indices, in a folder of its own.
async fn made(place: Place) -> (MemorySource, BackupReport, Attempt) {
    let (sink, attempt) = (MemorySink::default(), Attempt::new());
    let to = format!("fs:{}/{}", folder(place.server), place.name("own"));
    let report = snapshot(&attempt.context, &place.url(), &to, &sink)
        .await
        .unwrap();
    (sink.source(), report, attempt)
}

fn tables(report: &BackupReport) -> Vec<&ObjectFacts> {
    let all = report.objects.iter();
    all.filter(|object| object.fingerprint.is_some()).collect()
}

#[rstest]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p4_a_snapshot_of_the_server_is_proven_and_comes_back(
    #[values(Elasticsearch, OpenSearch)] kind: SearchKind,
) {
    let place = Place::new(kind);
    let shop = place.make(
        "shop",
        &json!({"settings": {"number_of_shards": 3, "number_of_replicas": 0}, "aliases": {place.name("all"): {}}}),
    );
    let small = place.make("small", &json!({"settings": {"number_of_replicas": 0}}));
    place.write(&shop, &numbered(0..3000, "order"));
    place.write(&small, &numbered(0..7, "a"));
    let stream = place.name("events");
    if kind == OpenSearch {
        place.send(
            "PUT",
            &format!("/_index_template/{stream}"),
            &json!({"index_patterns": [stream], "data_stream": {}, "template": {"settings": {"number_of_replicas": 0}}}),
        );
        place.send("PUT", &format!("/_data_stream/{stream}"), &Value::Null);
        let lines = "{\"create\":{}}\n{\"@timestamp\":\"2026-11-22T00:00:00Z\",\"a\":1}\n";
        place.write(&stream, lines);
        place.send("POST", &format!("/{stream}/_rollover"), &Value::Null);
        place.write(&stream, lines);
    }
    let (_, read_by_us) = back_up(&place.url()).await;
    let (backup, report, attempt) = made(place).await;
    // What is compared is what an ordinary backup would have compared.
    let compared = |report: &BackupReport| -> Vec<_> {
        let all = tables(report).into_iter();
        all.map(|one| (one.name.clone(), one.fingerprint, one.independent_rows))
            .collect()
    };
    assert_eq!(compared(&report), compared(&read_by_us));
    assert!(engine().doubts(&report).is_empty());
    assert_eq!(report.position["method"], "snapshot");
    assert_eq!(
        prove(place.server, &backup, &report).await,
        Vec::<String>::new()
    );
    let lost = prove_after(place.server, &backup, &report, |prefix| {
        place.send("DELETE", &format!("/{prefix}{shop}/_doc/d17"), &Value::Null);
    })
    .await;
    assert_eq!(lost.len(), 1, "{lost:?}");

    let copy = restore(&backup, &report, &place.copy_url()).await;
    let expected = if kind == OpenSearch { 3009 } else { 3007 };
    assert_eq!(copy.rows, expected);
    assert_eq!(
        documents(place.server, &shop),
        documents(place.server, &place.copy(&shop))
    );
    assert_eq!(count(place.server, &place.copy(&place.name("all"))), 3000);
    let found = facts(&report, &place.copy_url()).await;
    assert_eq!(mismatches(&report.objects, &found), Vec::<String>::new());

    // What is there is left alone unless it may be replaced.
    let error = try_restore(
        &backup,
        &report,
        &place.server.url(),
        &RestoreOptions::default(),
    )
    .await
    .unwrap_err();
    assert!(matches!(error, EngineError::NotEmpty { .. }), "{error:?}");
    place.write(&small, &numbered(7..9, "later"));
    let options = RestoreOptions {
        only: vec![small.clone()],
        overwrite: true,
        ..RestoreOptions::default()
    };
    try_restore(&backup, &report, &place.server.url(), &options)
        .await
        .unwrap();
    assert_eq!(count(place.server, &small), 7);

    let held = engine()
        .held(&target(&place.server.url()), &[])
        .await
        .unwrap();
    let own = held.iter().find(|held| held.job == attempt.job).unwrap();
    let server = target(&place.server.url());
    engine().require_held(&report, &server).await.unwrap();
    engine().let_go(&server, own).await.unwrap();
    engine().let_go(&server, own).await.unwrap();
    let error = engine().require_held(&report, &server).await.unwrap_err();
    assert!(matches!(error, EngineError::Unusable { .. }), "{error:?}");
    // A snapshot that is gone replaces nothing.
    let error = try_restore(&backup, &report, &place.server.url(), &options)
        .await
        .unwrap_err();
    assert!(matches!(error, EngineError::Unusable { .. }), "{error:?}");
    assert_eq!(count(place.server, &small), 7);
    let read = format!("/_snapshot/{}-read", own.place);
    place.server.request("DELETE", &read, "").unwrap();
}

#[rstest]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_written_to_meanwhile_is_named_and_not_called_proven(
    #[values(Elasticsearch, OpenSearch)] kind: SearchKind,
) {
    let place = Place::new(kind);
    let settings = json!({"settings": {"number_of_replicas": 0}});
    let (busy, still) = (
        place.make("busy", &settings),
        place.make("still", &settings),
    );
    // The server's own snapshot holds what nobody can read.
    let off = place.make(
        "off",
        &json!({"settings": {"number_of_replicas": 0}, "mappings": {"_source": {"enabled": false}}}),
    );
    place.write(&off, &numbered(0..5, "x"));
    place.write(&busy, &numbered(0..50, "x"));
    place.write(&still, &numbered(0..50, "x"));
    let (server, index) = (place.server, busy.clone());
    let front = Front::before(server, move |method, path| {
        if method == "PUT" && path.contains("/fettler-") && path.contains("wait_for") {
            send(
                server,
                "PUT",
                &format!("/{index}/_doc/new"),
                &json!({"a": 1}),
            );
        }
        None
    });
    let to = format!("fs:{}/{}", folder(server), place.name("own"));
    let sink = MemorySink::default();
    let report = snapshot(
        &Attempt::new().context,
        &front.url(&place.url()),
        &to,
        &sink,
    )
    .await
    .unwrap();
    let names: Vec<&str> = tables(&report)
        .iter()
        .map(|one| one.name.as_str())
        .collect();
    assert_eq!(names, [still.as_str()]);
    let doubts = engine().doubts(&report);
    assert!(
        doubts.len() == 2 && doubts[0].contains(&busy) && doubts[1].contains(&off),
        "{doubts:?}"
    );
    let codes: Vec<&str> = report
        .warnings
        .iter()
        .map(|one| one.code.as_str())
        .collect();
    assert!(
        codes.contains(&"elasticsearch.without_fingerprint"),
        "{codes:?}"
    );
    // It is in the snapshot all the same.
    restore(&sink.source(), &report, &place.copy_url()).await;
    assert!(exists(server, &place.copy(&busy)));
    assert_eq!(count(server, &place.copy(&off)), 5);
}

#[rstest]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p3_a_snapshot_that_runs_is_found_again_and_fingerprints_are_not_read_twice(
    #[values(Elasticsearch, OpenSearch)] kind: SearchKind,
) {
    let place = Place::new(kind);
    let settings = json!({"settings": {"number_of_replicas": 0}});
    let (one, other) = (place.make("one", &settings), place.make("other", &settings));
    place.write(&one, &numbered(0..500, "x"));
    place.write(&other, &numbered(0..500, "y"));
    let job = Attempt::new();
    let stop = job.context.stop.clone();
    let (asked, read) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
    let (count_asked, count_read) = (Arc::clone(&asked), Arc::clone(&read));
    let front = Front::before(place.server, move |method, path| {
        if method == "PUT" && path.contains("wait_for_completion") {
            count_asked.fetch_add(1, Ordering::Relaxed);
        }
        if path.contains("/_pit?") || path.contains("/_search/point_in_time?") {
            count_read.fetch_add(1, Ordering::Relaxed);
        }
        // The worker is asked to stop as soon as the snapshot runs.
        if path.contains("/_status") {
            stop.cancel();
        }
        None
    });
    let to = format!("fs:{}/{}", folder(place.server), place.name("own"));
    let (url, sink) = (front.url(&place.url()), MemorySink::default());
    let error = snapshot(&job.context, &url, &to, &sink).await.unwrap_err();
    assert!(matches!(error, EngineError::Stopped), "{error:?}");
    let report = snapshot(&job.next(2), &url, &to, &sink).await.unwrap();
    assert_eq!(asked.load(Ordering::Relaxed), 1);
    assert!(engine().doubts(&report).is_empty());
    assert_eq!(tables(&report).len(), 2);

    place.write(&other, &numbered(500..510, "new"));
    read.store(0, Ordering::Relaxed);
    let mut second = MemorySink::default();
    second.parent = sink.streams();
    let later = snapshot(&Attempt::new().context, &url, &to, &second)
        .await
        .unwrap();
    assert_eq!(read.load(Ordering::Relaxed), 1, "one index is read");
    let of = |report: &BackupReport, name: &str| {
        let all = tables(report);
        let found = all.into_iter().find(|object| object.name == name).cloned();
        found.unwrap()
    };
    assert_eq!(of(&report, &one), of(&later, &one));
    assert_ne!(of(&report, &other), of(&later, &other));
    let (first, second) = (sink.source(), second.source());
    assert_eq!(
        prove(place.server, &second, &later).await,
        Vec::<String>::new()
    );
    // The older one is not touched by the newer.
    assert_eq!(
        prove(place.server, &first, &report).await,
        Vec::<String>::new()
    );
}

#[rstest]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_server_cannot_do_is_told_with_what_to_do(
    #[values(Elasticsearch, OpenSearch)] kind: SearchKind,
) {
    let place = Place::new(kind);
    let index = place.make("a", &json!({"settings": {"number_of_replicas": 0}}));
    place.write(&index, &numbered(0..5, "x"));
    for (to, words) in [
        ("fs:/not/below/path.repo", "path.repo"),
        ("no-such-repository", "no-such-repository"),
        ("s3:bucket", "plugin"),
        ("fs:relative", "root"),
    ] {
        let sink = MemorySink::default();
        let error = snapshot(&Attempt::new().context, &place.url(), to, &sink)
            .await
            .unwrap_err();
        let problem = Problem::from(error);
        assert_eq!(problem.code, "engine.missing.by_server", "{problem}");
        let told = format!("{problem} {}", problem.remedy);
        assert!(told.contains(words), "{to}: {told}");
    }
    let (backup, report, _) = made(place).await;
    let options = RestoreOptions {
        only: vec![format!("{index}?at:1")],
        ..RestoreOptions::default()
    };
    let error = try_restore(&backup, &report, &place.copy_url(), &options)
        .await
        .unwrap_err();
    assert_eq!(Problem::from(error).code, "engine.missing.query");
}

#[rstest]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_server_that_sees_the_folder_is_told_of_it_to_read_only(
    #[values(Elasticsearch, OpenSearch)] kind: SearchKind,
) {
    let place = Place::new(kind);
    let index = place.make("moved", &json!({"settings": {"number_of_replicas": 0}}));
    place.write(&index, &numbered(0..40, "x"));
    let (backup, report, _) = made(place).await;
    let all = folder(place.server);
    let other = SearchServer::start(kind, &[("path.repo", all.as_str())]).unwrap();
    restore(&backup, &report, &other.url()).await;
    assert_eq!(documents(place.server, &index), documents(&other, &index));
    let known = send(&other, "GET", "/_snapshot", &Value::Null);
    let known = known.as_object().unwrap();
    assert!(
        known
            .values()
            .all(|one| one["settings"]["readonly"] == "true"),
        "{known:?}"
    );
}
