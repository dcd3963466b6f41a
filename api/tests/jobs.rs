//! Jobs and events over HTTP: kept before they are answered, once under a key, followed without a gap; and
//! every mistake named by its field.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

mod support;

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

use fettler_api::http::HttpOptions;
use fettler_ledger::{Ledger, LedgerOptions};
use fettler_model::{JobId, Role, TenantId};
use fettler_test_servers::{PgMajor, PostgresServer};
use futures::StreamExt;
use serde_json::{Value, json};
use support::{Client, Server, World, generous, make_token};

const PATIENCE: Duration = Duration::from_secs(60);

/// A job that no worker takes: there is none.
fn waiting() -> Value {
    json!({"kind": "collect", "arguments": {"dry_run": true}})
}

async fn submit(client: &Client, body: &Value) -> JobId {
    let answer = client.post("/api/v1/jobs", body).await.expect(202);
    answer.json()["id"].as_str().unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p1_a_job_that_was_answered_202_is_found_by_every_other_process_at_once() {
    let database = PostgresServer::shared(PgMajor::V15)
        .create_database("two_apis")
        .unwrap();
    let folder = tempfile::tempdir().unwrap();
    let open = || async {
        let options = LedgerOptions {
            connections: 4,
            ..LedgerOptions::default()
        };
        Ledger::open_with(&database.url().to_string(), options)
            .await
            .unwrap()
    };
    let one = Server::start(open().await, &folder, generous()).await;
    let other = Server::start(open().await, &folder, generous()).await;
    let (token, _) = make_token(&open().await, Role::Admin, None, None).await;
    let clients = [
        Client::new(&one.url, Some(&token)),
        Client::new(&other.url, Some(&token)),
    ];
    let rounds = (0..8).map(|task| {
        let clients = clients.clone();
        tokio::spawn(async move {
            for round in 0..25 {
                let (to, from) = (
                    &clients[(task + round) % 2],
                    &clients[(task + round + 1) % 2],
                );
                let answer = to.post("/api/v1/jobs", &waiting()).await.expect(202);
                let location = answer.header("location").to_owned();
                from.get(&location).await.expect(200);
            }
        })
    });
    for round in rounds.collect::<Vec<_>>() {
        round.await.unwrap();
    }

    // Rule 12: many at once, to both, under one key.
    let many = (0..16).map(|at| {
        let client = clients[at % 2].clone();
        tokio::spawn(async move {
            client
                .with_body(
                    "POST",
                    "/api/v1/jobs",
                    &waiting(),
                    &[("idempotency-key", "once")],
                )
                .await
                .expect(202)
                .json()
        })
    });
    let mut ids = HashSet::new();
    let mut made = 0;
    for answer in many.collect::<Vec<_>>() {
        let answer = answer.await.unwrap();
        ids.insert(answer["id"].as_str().unwrap().to_owned());
        made += usize::from(answer["existing"] == false);
    }
    assert_eq!((ids.len(), made), (1, 1));
    let other_body = json!({"kind": "collect", "arguments": {"dry_run": false}});
    let mismatch = clients[0]
        .with_body(
            "POST",
            "/api/v1/jobs",
            &other_body,
            &[("idempotency-key", "once")],
        )
        .await
        .expect(422);
    assert_eq!(
        mismatch.json()["type"],
        "urn:fettler:problem:ledger.idempotency_mismatch"
    );
    one.stop().await;
    other.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rule_8_in_a_batch_a_bad_row_fails_alone() {
    let world = World::new().await;
    let admin = world.admin().await;
    let rows = json!({"rows": [
        {"job": waiting(), "idempotency_key": "a"},
        {"job": {"kind": "unheard_of"}},
        {"job": {"kind": "collect", "priorty": "high"}},
        {"job": waiting(), "idempotency_key": "a"},
        {"job": {"kind": "collect", "tags": ["nul \u{0}"]}},
        {"job": {"kind": "backup", "database": "nobody"}},
        {"job": {"kind": "collect", "max_tries": 0}},
        "no job at all",
        {"job": waiting()},
    ]});
    let results = admin
        .post("/api/v1/jobs/batch", &rows)
        .await
        .expect(200)
        .json();
    let results = results["results"].as_array().unwrap();
    let statuses: Vec<i64> = results
        .iter()
        .map(|row| row["status"].as_i64().unwrap())
        .collect();
    assert_eq!(statuses, [202, 422, 422, 202, 422, 422, 422, 422, 202]);
    assert_eq!(results[0]["accepted"]["id"], results[3]["accepted"]["id"]);
    assert_eq!(results[3]["accepted"]["existing"], true);
    let field = |row: usize| results[row]["problem"]["errors"][0]["field"].clone();
    assert_eq!(field(1), "kind");
    assert_eq!(field(2), "job.priorty");
    assert_eq!(field(4), "job.tags.0");
    assert_eq!(field(5), "database");
    let listed = admin.get("/api/v1/jobs").await.expect(200).json();
    assert_eq!(listed["items"].as_array().unwrap().len(), 2);

    let too_many: Vec<Value> = (0..1001).map(|_| json!({"job": waiting()})).collect();
    let refused = admin
        .post("/api/v1/jobs/batch", &json!({"rows": too_many}))
        .await
        .expect(422);
    assert_eq!(refused.fields(), ["rows"]);
    let many: Vec<Value> = too_many.into_iter().take(1000).collect();
    let answer = admin
        .post("/api/v1/jobs/batch", &json!({"rows": many}))
        .await
        .expect(200);
    let results = answer.json()["results"].as_array().unwrap().clone();
    assert!(results.len() == 1000 && results.iter().all(|row| row["status"] == 202));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn jobs_are_listed_in_pages_by_state_kind_tag_and_tenant() {
    let world = World::new().await;
    let acme: TenantId = "acme".parse().unwrap();
    world.ledger.add_tenant(&acme).await.unwrap();
    let admin = world.admin().await;
    for tag in ["a", "a", "b", "b", "b"] {
        submit(&admin, &json!({"kind": "collect", "tags": [tag]})).await;
    }
    admin
        .post("/api/v1/jobs?tenant=acme", &waiting())
        .await
        .expect(202);
    let last = submit(&admin, &waiting()).await;
    admin
        .post(&format!("/api/v1/jobs/{last}/cancel"), &Value::Null)
        .await
        .expect(200);

    let mut seen = Vec::new();
    let mut path = "/api/v1/jobs?limit=3".to_owned();
    loop {
        let page = admin.get(&path).await.expect(200).json();
        for job in page["items"].as_array().unwrap() {
            seen.push(job["id"].as_str().unwrap().to_owned());
        }
        match page["next"].as_str() {
            Some(next) => path = format!("/api/v1/jobs?limit=3&cursor={next}"),
            None => break,
        }
    }
    assert_eq!(seen.len(), 7);
    assert!(
        seen.is_sorted_by(|one, other| one > other),
        "newest first, none twice"
    );
    for (query, count) in [
        ("tag=a", 2),
        ("state=queued", 6),
        ("state=cancelled,dead", 1),
        ("kind=backup", 0),
        ("tenant=acme", 1),
        ("tenant=default&tag=b", 3),
    ] {
        let page = admin
            .get(&format!("/api/v1/jobs?{query}"))
            .await
            .expect(200)
            .json();
        assert_eq!(page["items"].as_array().unwrap().len(), count, "{query}");
    }
    // P12: a job that waits says why.
    let waits = admin.get("/api/v1/jobs?tag=a").await.json();
    assert_eq!(waits["items"][0]["wait"]["reason"], "no_worker_for_kind");
    for (query, status) in [
        ("state=asleep", 400),
        ("limit=0", 400),
        ("limit=1001", 400),
        ("limit=x", 400),
        ("colour=red", 400),
        ("tag=%00", 400),
        ("tag=%ff", 400),
        ("cursor=x", 400),
        ("database=nobody", 404),
        ("tenant=nobody", 404),
    ] {
        let answer = admin.get(&format!("/api/v1/jobs?{query}")).await;
        assert_eq!(answer.status, status, "{query}: {answer:?}");
        assert_eq!(answer.header("content-type"), "application/problem+json");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mistake_in_a_request_is_named_by_its_field_and_what_is_too_large_is_refused() {
    let options = HttpOptions {
        max_body_bytes: 20_000,
        ..generous()
    };
    let world = World::with(options).await;
    let admin = world.admin().await;
    for (body, field) in [
        (json!({"kind": "unheard_of"}), "kind"),
        (json!({"kind": "Not a name"}), "kind"),
        (json!({"arguments": {}}), "body"),
        (json!({"kind": "collect", "argumnets": {}}), "argumnets"),
        (
            json!({"kind": "collect", "arguments": {"grace": 1}}),
            "arguments",
        ),
        (json!({"kind": "collect", "arguments": [1]}), "arguments"),
        (json!({"kind": "collect", "priority": "urgent"}), "priority"),
        (
            json!({"kind": "collect", "not_before": "tomorrow"}),
            "not_before",
        ),
        (json!({"kind": "collect", "max_tries": -1}), "max_tries"),
        (json!({"kind": "backup"}), "database"),
        (json!({"kind": "backup", "database": "nobody"}), "database"),
        (json!({"kind": "collect", "unique": "a\u{0}b"}), "unique"),
        (json!([]), "body"),
    ] {
        let answer = admin.post("/api/v1/jobs", &body).await;
        assert_eq!(answer.status, 422, "{body}: {answer:?}");
        assert_eq!(answer.fields(), [field], "{body}: {answer:?}");
    }
    let raw = |kind: &'static str, text: String| {
        let request = admin
            .request("POST", "/api/v1/jobs")
            .header("content-type", kind);
        let admin = admin.clone();
        async move { admin.send(request.body(text)).await }
    };
    raw("application/json", "{".to_owned()).await.expect(400);
    raw("text/plain", waiting().to_string()).await.expect(415);
    let long = json!({"kind": "collect", "tags": ["x".repeat(30_000)]}).to_string();
    raw("application/json", long).await.expect(413);
    raw("application/json; charset=utf-8", waiting().to_string())
        .await
        .expect(202);

    let unknown = admin.get("/api/v1/nothing").await.expect(404);
    assert_eq!(unknown.json()["type"], "urn:fettler:problem:request.route");
    let method = admin
        .with_headers("DELETE", "/api/v1/jobs", &[])
        .await
        .expect(405);
    assert!(method.header("allow").contains("GET"), "{method:?}");
    admin.get("/api/v1/jobs/%00").await.expect(400);
    admin.get("/api/v1/jobs/%ff").await.expect(400);
    admin.get("/api/v1/jobs/nothing").await.expect(404);
    let key = [("idempotency-key", "")];
    admin
        .with_body("POST", "/api/v1/jobs", &waiting(), &key)
        .await
        .expect(400);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_asks_too_often_or_opens_too_many_streams_is_told_when_to_come_back() {
    let options = HttpOptions {
        requests_per_second: 5,
        max_streams: 1,
        ..HttpOptions::default()
    };
    let world = World::with(options).await;
    let (one, other) = (world.admin().await, world.admin().await);
    let stream = one.request("GET", "/api/v1/events").send().await.unwrap();
    assert_eq!(stream.status(), 200);
    let refused = other.get("/api/v1/events").await.expect(429);
    assert!(refused.header("retry-after").parse::<u64>().unwrap() >= 1);
    drop(stream);

    let mut refused = None;
    for _ in 0..30 {
        let answer = one.get("/api/v1/whoami").await;
        if answer.status == 429 {
            refused = Some(answer);
            break;
        }
        answer.expect(200);
    }
    let refused = refused.expect("thirty requests at once are more than ten");
    assert!(refused.header("retry-after").parse::<u64>().unwrap() >= 1);
    other.get("/api/v1/whoami").await.expect(200);
    let nobody = Client::new(&world.server.url, None);
    let mut statuses = HashSet::new();
    for _ in 0..30 {
        statuses.insert(nobody.get("/api/v1/jobs").await.status);
    }
    assert_eq!(
        statuses,
        HashSet::from([401, 429]),
        "guessing is slowed down"
    );
    // Whoever is known is not slowed down by those who are not, though they ask from the same address.
    other.get("/api/v1/whoami").await.expect(200);
    assert_eq!(nobody.get("/healthz").await.status, 200);
}

/// Reads server-sent events: their ids, names and data.
struct Events {
    body: std::pin::Pin<Box<dyn futures::Stream<Item = Vec<u8>> + Send>>,
    text: String,
}

#[derive(Debug, Default)]
struct Event {
    id: Option<String>,
    name: String,
    data: Value,
}

impl Events {
    async fn open(client: &Client, path: &str, last: Option<&str>) -> Self {
        let mut request = client.request("GET", path);
        if let Some(last) = last {
            request = request.header("last-event-id", last);
        }
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        let body = response.bytes_stream().map(|part| part.unwrap().to_vec());
        Self {
            body: Box::pin(body),
            text: String::new(),
        }
    }

    /// The next event; none at the end of the stream. Comments are left out.
    async fn next(&mut self) -> Option<Event> {
        loop {
            while let Some(end) = self.text.find("\n\n") {
                let block: String = self.text.drain(..end + 2).collect();
                let mut event = Event::default();
                for line in block.lines() {
                    match line.split_once(": ") {
                        Some(("id", id)) => event.id = Some(id.to_owned()),
                        Some(("event", name)) => event.name = name.to_owned(),
                        Some(("data", data)) => event.data = serde_json::from_str(data).unwrap(),
                        _ => {}
                    }
                }
                if !event.name.is_empty() {
                    return Some(event);
                }
            }
            let part = tokio::time::timeout(PATIENCE, self.body.next()).await;
            let part = part.expect("an event comes")?;
            self.text.push_str(&String::from_utf8(part).unwrap());
        }
    }
}

async fn end_a_job(client: &Client) -> JobId {
    let id = submit(client, &waiting()).await;
    client
        .post(&format!("/api/v1/jobs/{id}/cancel"), &Value::Null)
        .await
        .expect(200);
    id
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rule_10_a_reader_that_is_cut_off_again_and_again_misses_no_event() {
    const JOBS: usize = 60;
    let database = PostgresServer::shared(PgMajor::V15)
        .create_database("events")
        .unwrap();
    let folder = tempfile::tempdir().unwrap();
    let ledger = Ledger::open(&database.url().to_string()).await.unwrap();
    let server = Server::start(ledger.clone(), &folder, generous()).await;
    let (token, _) = make_token(&ledger, Role::Admin, None, None).await;
    let client = Client::new(&server.url, Some(&token));
    let first = end_a_job(&client).await;

    let writers: Vec<_> = (0..4)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(async move {
                let mut ended = Vec::new();
                for _ in 0..JOBS / 4 {
                    ended.push(end_a_job(&client).await);
                }
                ended
            })
        })
        .collect();
    let started = Instant::now();
    let mut seen = Vec::new();
    let mut last = "0-0".to_owned();
    while seen.len() < JOBS + 1 {
        assert!(started.elapsed() < PATIENCE, "{} seen", seen.len());
        let mut events = Events::open(&client, "/api/v1/events", Some(&last)).await;
        for _ in 0..7 {
            if seen.len() == JOBS + 1 {
                break;
            }
            let event = events.next().await.unwrap();
            assert_eq!(event.name, "job.cancelled");
            assert_eq!(event.data["kind"], "job.cancelled");
            last = event.id.unwrap();
            assert_eq!(event.data["id"], last.as_str());
            seen.push(event.data["job"].as_str().unwrap().to_owned());
        }
    }
    let mut ended = HashSet::from([first.to_string()]);
    for writer in writers {
        ended.extend(writer.await.unwrap().iter().map(ToString::to_string));
    }
    assert_eq!(seen.iter().cloned().collect::<HashSet<_>>(), ended);
    assert_eq!(seen.len(), ended.len(), "none is told twice");

    // Without an id a stream begins now; with `follow=false` it ends where the others are.
    let all = client
        .request("GET", "/api/v1/events?after=0-0&follow=false")
        .send()
        .await
        .unwrap();
    let text = all.text().await.unwrap();
    assert_eq!(text.matches("event: job.cancelled").count(), JOBS + 1);
    let mut now = Events::open(&client, "/api/v1/events", None).await;
    let id = end_a_job(&client).await;
    assert_eq!(now.next().await.unwrap().data["job"], id.to_string());
    // The process ends its streams when it stops.
    server.stop().await;
    assert!(now.next().await.is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_is_followed_from_its_reason_for_waiting_to_its_end() {
    let world = World::new().await;
    let admin = world.admin().await;
    let id = submit(&admin, &waiting()).await;
    let path = format!("/api/v1/jobs/{id}/events");
    let mut events = Events::open(&admin, &path, None).await;
    let first = events.next().await.unwrap();
    assert_eq!((first.name.as_str(), first.id), ("job", None));
    assert_eq!(first.data["state"], "queued");
    assert_eq!(first.data["wait"]["reason"], "no_worker_for_kind");
    admin
        .post(&format!("/api/v1/jobs/{id}/cancel"), &Value::Null)
        .await
        .expect(200);
    let mut last = None;
    let mut names = Vec::new();
    while let Some(event) = events.next().await {
        names.push(event.name);
        last = event.id.or(last);
    }
    names.sort_unstable();
    assert_eq!(names, ["job", "job.cancelled"], "and then the stream ends");
    // A reader that comes back is told that there is nothing more; one that begins anew sees all of it.
    let last = last.unwrap();
    admin
        .with_headers("GET", &path, &[("last-event-id", &last)])
        .await
        .expect(204);
    let mut again = Events::open(&admin, &path, None).await;
    assert_eq!(again.next().await.unwrap().data["state"], "cancelled");
    assert_eq!(again.next().await.unwrap().name, "job.cancelled");
    assert!(again.next().await.is_none());
    for bad in ["x", "1", "-1-1"] {
        admin
            .with_headers("GET", &path, &[("last-event-id", bad)])
            .await
            .expect(400);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_is_cancelled_repeated_and_its_attempts_and_log_are_read() {
    let world = World::new().await;
    let admin = world.admin().await;
    let id = submit(&admin, &waiting()).await;
    let path = format!("/api/v1/jobs/{id}");
    let early = admin
        .post(&format!("{path}/retry"), &Value::Null)
        .await
        .expect(409);
    assert_eq!(early.json()["type"], "urn:fettler:problem:ledger.conflict");
    let cancelled = admin
        .post(&format!("{path}/cancel"), &Value::Null)
        .await
        .expect(200);
    assert_eq!(cancelled.json()["cancel"], "cancelled");
    let again = admin
        .post(&format!("{path}/cancel"), &Value::Null)
        .await
        .expect(200);
    assert_eq!(again.json()["cancel"], "already_ended");
    assert_eq!(again.json()["state"], "cancelled");
    let key = [("idempotency-key", "again")];
    let one = admin
        .with_headers("POST", &format!("{path}/retry"), &key)
        .await
        .expect(202);
    let two = admin
        .with_headers("POST", &format!("{path}/retry"), &key)
        .await
        .expect(202);
    assert_eq!(one.json()["id"], two.json()["id"]);
    let new = admin.get(one.header("location")).await.expect(200).json();
    assert_eq!(new["retry_of"], id.to_string());
    assert_eq!(
        admin
            .get(&format!("{path}/attempts"))
            .await
            .expect(200)
            .json(),
        json!({"attempts": []})
    );
    assert_eq!(
        admin.get(&format!("{path}/logs")).await.expect(200).json(),
        json!({"lines": [], "next": null})
    );
    // A part of an id is enough, as on the command line.
    let short = id.to_string();
    let short = &short[short.len() - 10..];
    assert_eq!(
        admin
            .get(&format!("/api/v1/jobs/{short}"))
            .await
            .expect(200)
            .json()["id"],
        id.to_string()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn liveness_depends_on_nothing_and_readiness_on_the_ledger() {
    let world = World::new().await;
    let nobody = Client::new(&world.server.url, None);
    let admin = world.admin().await;
    submit(&admin, &waiting()).await;
    let metrics = admin.get("/metrics").await.expect(200);
    assert!(
        metrics
            .text
            .contains("fettler_jobs{kind=\"collect\",state=\"queued\"} 1"),
        "{metrics:?}"
    );
    nobody.get("/readyz").await.expect(200);
    world.ledger.close().await;
    nobody.get("/healthz").await.expect(200);
    let away = nobody.get("/readyz").await.expect(503);
    assert!(away.header("retry-after").parse::<u64>().unwrap() >= 1);
    admin.get("/api/v1/jobs").await.expect(503);
}
