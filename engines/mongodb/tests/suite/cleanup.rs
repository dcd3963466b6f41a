//! Cleanup of documents: what goes, what stays and why, what comes back.

use bson::{Bson, DateTime, Document, doc, oid::ObjectId};
use fettler_engine::{
    Cleanup as _, CleanupRequest, CleanupTerms, EngineError,
    testing::{MemorySink, MemorySource},
};
use fettler_model::{CleanupAction, CleanupPlan, CleanupRemoved, CleanupUndone, JobId, Referenced};
use fettler_test_servers::{MongodbClient, MongodbKind, MongodbServer};

use super::common::{Attempt, ENGINE, client, server, target};

const DAY: i64 = 86_400_000;

fn old(collection: &str, field: &str) -> CleanupAction {
    CleanupAction::Rows {
        table: collection.to_owned(),
        column: field.to_owned(),
        older_than_seconds: 90 * 86_400,
        referenced: Referenced::Refuse,
        fire_triggers: false,
    }
}

/// 600 documents, two in three of them older than 90 days, and some whose dates say no time.
fn filled(client: &mut MongodbClient) {
    let now = DateTime::now().timestamp_millis();
    let mut documents: Vec<Document> = (0..600_i64)
        .map(|number| {
            let days = if number % 3 == 0 { 10 } else { 100 + number };
            let id = match number % 4 {
                0 => Bson::Int64(number),
                1 => Bson::String(format!("name {number}")),
                2 => Bson::ObjectId(ObjectId::new()),
                _ => Bson::Document(doc! { "a": number, "b": "x" }),
            };
            doc! {
                "_id": id, "number": number, "at": { "made": DateTime::from_millis(now - days * DAY) },
                "list": [1, "two", { "three": 3.5 }], "$odd": Bson::Null, "text": "value ".repeat(10),
            }
        })
        .collect();
    let ancient = DateTime::from_millis(now - 1000 * DAY);
    documents.push(doc! { "_id": "list", "at": { "made": [ancient, DateTime::from_millis(now)] } });
    documents.push(doc! { "_id": "text", "at": { "made": "2001-01-01" } });
    documents.push(doc! { "_id": "none" });
    documents.iter_mut().for_each(|document| {
        document.remove("$odd");
    });
    client.insert("shop", "events", documents);
}

fn sorted(client: &mut MongodbClient) -> Vec<String> {
    let mut all: Vec<String> = client
        .all("shop", "events")
        .iter()
        .map(|document| format!("{document:?}"))
        .collect();
    all.sort_unstable();
    all
}

struct Job {
    attempt: Attempt,
    plan: CleanupPlan,
    archive: MemorySource,
}

async fn plan(server: &MongodbServer, what: CleanupAction) -> Result<CleanupPlan, EngineError> {
    let request = CleanupRequest {
        what,
        archive: true,
    };
    ENGINE
        .plan(&Attempt::new().context, &target(&server.url()), &request)
        .await
}

impl Job {
    async fn begin(server: &MongodbServer) -> Self {
        let plan = plan(server, old("shop.events", "at.made")).await.unwrap();
        assert_eq!(plan.refusals, []);
        let (attempt, sink) = (Attempt::new(), MemorySink::default());
        let archived = ENGINE
            .archive(&attempt.context, &target(&server.url()), &plan, &sink)
            .await
            .unwrap();
        assert_eq!(archived.rows, plan.rows());
        let archive = sink.source();
        ENGINE
            .prove(&attempt.context, &plan, &archive, &archived.objects)
            .await
            .unwrap();
        Self {
            attempt,
            plan,
            archive,
        }
    }

    async fn remove(
        &self,
        server: &MongodbServer,
        attempt: u32,
    ) -> Result<CleanupRemoved, EngineError> {
        let terms = CleanupTerms {
            batch_rows: 60,
            full_speed: true,
            ..CleanupTerms::default()
        };
        let context = self.attempt.next(attempt);
        let target = target(&server.url());
        ENGINE
            .remove(&context, &target, &self.plan, Some(&self.archive), &terms)
            .await
    }

    async fn undo(&self, server: &MongodbServer, dry_run: bool) -> CleanupUndone {
        let (attempt, target) = (Attempt::new(), target(&server.url()));
        ENGINE
            .undo(
                &attempt.context,
                &target,
                &self.plan,
                &self.archive,
                JobId::new(),
                dry_run,
            )
            .await
            .unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn old_documents_go_once_and_come_back_as_they_were() {
    let server = server(MongodbKind::WithOplog);
    let mut client = client(&server);
    filled(&mut client);
    let before = sorted(&mut client);
    let job = Job::begin(&server).await;
    assert_eq!(job.plan.rows(), 400);
    assert!(
        job.plan.items[0].oldest < job.plan.items[0].newest,
        "{:?}",
        job.plan
    );
    let removed = job.remove(&server, 1).await.unwrap();
    assert_eq!(
        (removed.removed, removed.stayed(), removed.gone),
        (400, 0, 0),
        "{removed:?}"
    );
    assert_eq!(removed.remaining, Some(0));
    assert_eq!(client.count("shop", "events"), 203);
    let again = plan(&server, old("shop.events", "at.made")).await.unwrap();
    assert_eq!(again.rows(), 0);

    assert_eq!(job.undo(&server, true).await.restored, 400);
    assert_eq!(client.count("shop", "events"), 203);
    let undone = job.undo(&server, false).await;
    assert_eq!((undone.restored, undone.skipped), (400, vec![]));
    assert_eq!(sorted(&mut client), before);
    let twice = job.undo(&server, false).await;
    assert_eq!((twice.restored, twice.there), (0, 400), "{twice:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_changed_since_the_archive_stays() {
    let server = server(MongodbKind::WithOplog);
    let mut client = client(&server);
    filled(&mut client);
    let job = Job::begin(&server).await;
    let mut change = |number: i64, update: Document| {
        client.update("shop", "events", doc! { "number": number }, update);
    };
    change(1, doc! { "$set": { "text": "another" } });
    change(2, doc! { "$set": { "more": 1 } });
    // A list that holds what was there, and a number of another type.
    change(4, doc! { "$set": { "text": ["value ".repeat(10)] } });
    let mut fifth = client
        .all("shop", "events")
        .into_iter()
        .find(|document| document.get_i64("number").is_ok_and(|number| number == 5))
        .unwrap();
    fifth.insert("number", 5.0);
    client.delete("shop", "events", doc! { "number": 5_i64 });
    client.insert("shop", "events", vec![fifth]);
    client.delete("shop", "events", doc! { "number": 7_i64 });
    let removed = job.remove(&server, 1).await.unwrap();
    assert_eq!((removed.changed, removed.gone), (4, 1), "{removed:?}");
    assert_eq!((removed.removed, removed.remaining), (395, Some(4)));
    assert!(
        removed
            .kept
            .iter()
            .any(|line| line.starts_with("\"name 1\": changed")),
        "{removed:?}"
    );
    client.insert(
        "shop",
        "events",
        vec![doc! { "_id": "name 13", "mine": true }],
    );
    let undone = job.undo(&server, false).await;
    assert_eq!((undone.taken, undone.there), (5, 0), "{undone:?}");
    assert_eq!(undone.restored, 395);
    let mine = client.all("shop", "events");
    assert!(
        mine.iter()
            .any(|document| document.get_bool("mine").is_ok())
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn work_that_was_stopped_goes_on() {
    let server = server(MongodbKind::WithOplog);
    let mut client = client(&server);
    filled(&mut client);
    let job = Job::begin(&server).await;
    let context = job.attempt.next(2);
    let (stop, port) = (context.stop.clone(), server.port());
    let watcher = tokio::task::spawn_blocking(move || {
        let mut client = MongodbClient::new(port);
        while client.count("shop", "events") == 603 {}
        stop.cancel();
    });
    let terms = CleanupTerms {
        batch_rows: 5,
        rows_per_second: Some(50),
        ..CleanupTerms::default()
    };
    let stopped = ENGINE
        .remove(
            &context,
            &target(&server.url()),
            &job.plan,
            Some(&job.archive),
            &terms,
        )
        .await;
    watcher.await.unwrap();
    assert!(matches!(stopped, Err(EngineError::Stopped)), "{stopped:?}");
    let left = client.count("shop", "events");
    assert!(left > 203 && left < 603, "{left}");
    let removed = job.remove(&server, 3).await.unwrap();
    assert_eq!(
        (removed.removed + removed.gone, removed.stayed()),
        (400, 0),
        "{removed:?}"
    );
    assert_eq!(client.count("shop", "events"), 203);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_refuses_what_cannot_be_removed_one_by_one() {
    let server = server(MongodbKind::WithOplog);
    let mut client = client(&server);
    filled(&mut client);
    for what in [
        old("shop.nothing", "at"),
        old("events", "at"),
        CleanupAction::TemporaryTables {},
    ] {
        let missing = plan(&server, what).await;
        assert!(
            matches!(missing, Err(EngineError::Missing { .. })),
            "{missing:?}"
        );
    }
    // By the moment in which an id was made: none is old.
    let by_id = plan(&server, old("shop.events", "_id")).await.unwrap();
    assert_eq!(by_id.rows(), 0);
}
