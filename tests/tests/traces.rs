//! One trace from the request over HTTP through the queue to each stage of the work, seen by a collector of our own.

#![allow(clippy::unwrap_used)]

use std::{collections::HashMap, time::Duration};

use fettler_tests::{
    Installation, OtlpReceiver, SeenSpan, http,
    servers::{
        MinioServer, PgMajor, PostgresServer, RedisOptions, RedisServer, free_port, wait_until,
    },
};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

#[test]
fn a_trace_leads_from_the_request_through_the_queue_to_copy_pack_and_put() {
    let collector = OtlpReceiver::start().unwrap();
    let minio = MinioServer::start().unwrap();
    minio.create_bucket("backups").unwrap();
    let redis = RedisServer::start(RedisOptions::new()).unwrap();
    let server = PostgresServer::shared(PgMajor::V15);
    let ledger = server.create_database("ledger").unwrap();
    let source = server.create_database("shop").unwrap();
    source
        .psql("CREATE TABLE orders AS SELECT n AS id, md5(n::text) AS note FROM generate_series(1, 20000) n")
        .unwrap();
    let keys = tempfile::tempdir().unwrap();
    let secrets = keys.path().join("secrets.key");
    let machine = || {
        let mut machine = Installation::new()
            .with_short_leases()
            .with("FETTLER_LEDGER__URL", ledger.url())
            .with("FETTLER_QUEUE__URL", redis.url())
            .with("FETTLER_REPOSITORY", "s3://backups/fleet")
            .with("FETTLER_PASSPHRASE", "the fleet's own words")
            .with("FETTLER_KEYS__SECRETS_FILE", secrets.to_str().unwrap())
            .with("FETTLER_TRACES__ENDPOINT", collector.url())
            .with("FETTLER_PG_BIN", server.bin_dir().to_str().unwrap());
        for (name, value) in minio.env_via(&minio.url()) {
            machine = machine.with(name, value);
        }
        machine
    };
    let (api, worker, client) = (machine(), machine(), machine());
    client.json(&["database", "add", "shop", &source.url()]);
    let token = client.json(&["token", "add", "tests", "--role", "operator"]);
    let token = token["text"].as_str().unwrap();
    let address = format!("127.0.0.1:{}", free_port());
    let mut answering = api.start(&["api", "--listen", &address]);
    let mut working = worker.start(&["worker"]);
    wait_until("the interface answers", Duration::from_secs(60), || {
        http::get(&address, "/readyz").is_ok_and(|(status, _)| status == 200)
    })
    .unwrap_or_else(|error| panic!("{error}: {}", answering.log()));
    let (status, body) = http::send(
        &address,
        "POST",
        "/api/v1/jobs",
        &[
            ("Authorization", &format!("Bearer {token}")),
            ("Content-Type", "application/json"),
            ("traceparent", &format!("00-{TRACE}-00f067aa0ba902b7-01")),
        ],
        r#"{"kind": "backup", "database": "shop"}"#,
    )
    .unwrap();
    assert_eq!(status, 202, "{body}");
    wait_until("the backup succeeds", Duration::from_secs(120), || {
        let jobs = client.json(&["jobs", "--all"]);
        jobs["jobs"][0]["state"] == "succeeded"
    })
    .unwrap_or_else(|error| panic!("{error}: {}", working.log()));
    assert_eq!(working.terminate(), 0, "{}", working.log());
    assert_eq!(answering.terminate(), 0, "{}", answering.log());

    let (spans, others): (Vec<SeenSpan>, Vec<SeenSpan>) = collector
        .spans()
        .into_iter()
        .partition(|span| span.trace == TRACE);
    let by_id: HashMap<&str, &SeenSpan> =
        spans.iter().map(|span| (span.id.as_str(), span)).collect();
    // The names on the way from a span up to the request.
    let way = |span: &SeenSpan| {
        let mut names = vec![span.name.clone()];
        let mut at = span;
        while let Some(parent) = by_id.get(at.parent.as_str()) {
            names.push(parent.name.clone());
            at = parent;
        }
        names.reverse();
        names.join(" > ")
    };
    let ways: Vec<String> = spans.iter().map(way).collect();
    for expected in [
        "POST /api/v1/jobs > send backup > process backup > COPY public.orders",
        "POST /api/v1/jobs > send backup > process backup > pack > PUT",
    ] {
        assert!(
            ways.iter().any(|way| way == expected),
            "{expected}\n{ways:#?}\nin other traces: {others:#?}\n{}",
            working.log()
        );
    }
    let named = |name: &str| {
        spans
            .iter()
            .find(|span| span.name == name)
            .unwrap_or_else(|| panic!("{name}: {ways:#?}"))
    };
    let request = named("POST /api/v1/jobs");
    assert_eq!(request.parent, "00f067aa0ba902b7", "the caller's own span");
    assert_eq!(request.service, "fettler-api");
    assert_eq!(request.attributes["http.response.status_code"], "202");
    assert_eq!(named("process backup").service, "fettler-worker");
    assert_eq!(
        named("process backup").attributes["messaging.system"],
        "fettler"
    );
    assert_eq!(
        named("COPY public.orders").attributes["db.system.name"],
        "postgresql"
    );
    // P9: no span holds what opens anything.
    for span in &spans {
        let text = format!("{span:?}");
        for secret in ["the fleet's own words", token] {
            assert!(!text.contains(secret), "{text}");
        }
    }
}
