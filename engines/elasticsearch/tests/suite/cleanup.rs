//! Cleanup of indices: what goes, what stays and why, what comes back.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use fettler_engine::{
    Cleanup as _, CleanupRequest, CleanupTerms, EngineError,
    testing::{MemorySink, MemorySource},
};
use fettler_model::{
    CleanupAction, CleanupPlan, CleanupRemoved, CleanupUndone, ErrorClass, JobId, ObjectFacts,
    Timestamp,
};
use rstest::rstest;
use serde_json::{Value, json};

use crate::common::{
    Attempt, Elasticsearch, Front, OpenSearch, Place, SearchKind, back_up, count, documents,
    engine, exists, mismatches, target,
};

const DAY: u64 = 86_400;

fn action(pattern: &str, field: Option<&str>) -> CleanupAction {
    CleanupAction::Indices {
        pattern: pattern.to_owned(),
        field: field.map(str::to_owned),
        older_than_seconds: 90 * DAY,
    }
}

/// So many days ago.
fn ago(days: u64) -> String {
    let now = Timestamp::now();
    let time = now.minus(std::time::Duration::from_secs(days * DAY));
    Timestamp::from_micros(time.micros() / 1000 * 1000).to_string()
}

/// Documents, the youngest so many days old.
fn events(range: std::ops::Range<u64>, days: u64) -> String {
    range
        .map(|at| {
            let routing = if at % 5 == 0 { ",\"routing\":\"r é\"" } else { "" };
            format!(
                "{{\"index\":{{\"_id\":\"d{at}\"{routing}}}}}\n{{\"@timestamp\":\"{}\",\"at\":{at}, \"n\": 1.00}}\n",
                ago(days + at)
            )
        })
        .collect()
}

fn one(id: &str, document: &Value) -> String {
    format!("{{\"index\":{{\"_id\":\"{id}\"}}}}\n{document}\n")
}

/// An index whose youngest document is so many days old.
fn index(place: Place, name: &str, days: u64, settings: &Value) -> String {
    let mut body = json!({
        "settings": {"number_of_replicas": 0, "number_of_shards": 2},
        "mappings": {"properties": {"@timestamp": {"type": "date"}}},
    });
    if let Some(settings) = settings.as_object() {
        for (name, value) in settings {
            body[name] = value.clone();
        }
    }
    let name = place.make(name, &body);
    place.write(&name, &events(0..40, days));
    name
}

fn definition(place: Place, index: &str) -> Value {
    let all = place.send("GET", &format!("/{index}"), &Value::Null);
    let mut found = all[index].clone();
    let settings = found["settings"]["index"].as_object_mut().unwrap();
    for own in [
        "uuid",
        "creation_date",
        "version",
        "provided_name",
        "history",
    ] {
        settings.remove(own);
    }
    // A mark that was taken away leaves its empty place.
    let mappings = found["mappings"].as_object_mut().unwrap();
    mappings.retain(|name, value| name != "_meta" || *value != json!({}));
    found
}

struct Job {
    attempt: Attempt,
    url: String,
    plan: CleanupPlan,
    archive: MemorySource,
    objects: Vec<ObjectFacts>,
}

async fn plan(url: &str, what: CleanupAction) -> Result<CleanupPlan, EngineError> {
    let request = CleanupRequest {
        what,
        archive: true,
    };
    engine()
        .plan(&Attempt::new().context, &target(url), &request)
        .await
}

impl Job {
    async fn begin(place: Place, pattern: &str) -> Self {
        let url = place.server.url();
        let plan = plan(&url, action(&place.name(pattern), None))
            .await
            .unwrap();
        assert_eq!(plan.refusals, []);
        let (attempt, sink) = (Attempt::new(), MemorySink::default());
        let archived = engine()
            .archive(&attempt.context, &target(&url), &plan, &sink)
            .await
            .unwrap();
        let job = Self {
            attempt,
            url,
            plan,
            archive: sink.source(),
            objects: archived.objects,
        };
        job.prove(&job.archive).await.unwrap();
        job
    }

    async fn prove(&self, archive: &MemorySource) -> Result<(), EngineError> {
        engine()
            .prove(&self.attempt.context, &self.plan, archive, &self.objects)
            .await
    }

    async fn remove(&self, url: &str, attempt: u32) -> Result<CleanupRemoved, EngineError> {
        engine()
            .remove(
                &self.attempt.next(attempt),
                &target(url),
                &self.plan,
                Some(&self.archive),
                &CleanupTerms::default(),
            )
            .await
    }

    async fn try_undo(
        &self,
        attempt: &Attempt,
        number: u32,
        archive: &MemorySource,
        dry_run: bool,
    ) -> Result<CleanupUndone, EngineError> {
        engine()
            .undo(
                &attempt.next(number),
                &target(&self.url),
                &self.plan,
                archive,
                JobId::new(),
                dry_run,
            )
            .await
    }

    async fn undo(&self, dry_run: bool) -> CleanupUndone {
        self.try_undo(&Attempt::new(), 1, &self.archive, dry_run)
            .await
            .unwrap()
    }
}

#[rstest]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn old_indices_go_once_and_come_back_as_they_were(
    #[values(Elasticsearch, OpenSearch)] kind: SearchKind,
) {
    let place = Place::new(kind);
    let all = place.name("all");
    let aliases =
        json!({"aliases": {&all: {"filter": {"term": {"at": 1}}, "search_routing": "x"}}});
    let old = index(place, "logs-1", 100, &aliases);
    let older = index(place, "logs-2", 200, &aliases);
    let young = index(place, "logs-3", 10, &aliases);
    place.write(&old, &events(0..10, 101));
    // A pipeline, replicas and a block come back, too.
    place.send(
        "PUT",
        &format!("/{older}/_settings"),
        &json!({"index.blocks.write": true, "index.refresh_interval": "7s"}),
    );
    let (_, before) = back_up(&place.url()).await;
    let content = || {
        [&old, &older, &young].map(|name| (documents(place.server, name), definition(place, name)))
    };
    let seen = content();

    let job = Job::begin(place, "logs-*").await;
    let names: Vec<&str> = job
        .plan
        .items
        .iter()
        .map(|item| item.name.as_str())
        .collect();
    assert_eq!(names, [&old, &older]);
    assert_eq!(job.plan.rows(), 80);
    assert!(job.plan.bytes() > 0 && job.plan.can_be_undone);
    assert!(job.plan.items.iter().all(|item| item.oldest < item.newest));
    assert_eq!(
        job.plan.depends,
        [format!(
            "the alias {all} leads to 2 of them and to 1 others"
        )]
    );
    assert_eq!(content(), seen, "a plan and an archive change nothing");

    let removed = job.remove(&job.url, 1).await.unwrap();
    assert_eq!(
        (removed.removed, removed.stayed(), removed.gone),
        (2, 0, 0),
        "{removed:?}"
    );
    assert!(!exists(place.server, &old) && !exists(place.server, &older));
    assert_eq!(count(place.server, &young), 40);
    let again = plan(&job.url, action(&place.name("logs-*"), None))
        .await
        .unwrap();
    assert_eq!(again.items, []);

    let dry = job.undo(true).await;
    assert_eq!((dry.restored, dry.taken), (80, 0));
    assert!(!exists(place.server, &old));
    let undone = job.undo(false).await;
    assert_eq!((undone.restored, undone.taken), (80, 0), "{undone:?}");
    assert_eq!((undone.skipped, undone.notes), (vec![], vec![]));
    assert!(content() == seen, "not all is as it was");
    // The server holds what other tests have, too: a backup of this place alone is compared.
    let (_, after) = back_up(&place.url()).await;
    assert_eq!(
        mismatches(&before.objects, &after.objects),
        Vec::<String>::new()
    );
    let twice = job.undo(false).await;
    assert_eq!((twice.restored, twice.there), (0, 80), "{twice:?}");
}

#[rstest]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_says_no_time_or_is_in_use_stays_and_is_told(
    #[values(Elasticsearch, OpenSearch)] kind: SearchKind,
) {
    let place = Place::new(kind);
    let goes = index(place, "goes", 100, &json!({}));
    let alias = |name: &str, value: Value| json!({"aliases": {place.name(name): value}});
    index(place, "young", 10, &json!({}));
    index(place, "alone", 100, &alias("to-alone", json!({})));
    index(
        place,
        "written",
        100,
        &alias("roll", json!({"is_write_index": true})),
    );
    let without = index(place, "without", 100, &json!({}));
    place.write(&without, &one("x", &json!({"at": 1})));
    let listed = index(place, "listed", 100, &json!({}));
    place.write(
        &listed,
        &one("x", &json!({"@timestamp": [ago(300), ago(1)]})),
    );
    place.make(
        "empty",
        &json!({"mappings": {"properties": {"@timestamp": {"type": "date"}}}}),
    );
    place.make("fieldless", &json!({}));
    let text = place.make(
        "text",
        &json!({"mappings": {"properties": {"@timestamp": {"type": "keyword"}}}}),
    );
    place.write(&text, &one("x", &json!({"@timestamp": "2001-01-01"})));
    index(
        place,
        "hidden",
        100,
        &json!({"settings": {"index.hidden": true, "number_of_replicas": 0}}),
    );
    let thinned = json!({"mappings": {"_source": {"excludes": ["a"]}, "properties": {"@timestamp": {"type": "date"}}}});
    index(place, "thinned", 100, &thinned);
    let closed = index(place, "closed", 100, &json!({}));
    place.send("POST", &format!("/{closed}/_close"), &Value::Null);

    let url = place.server.url();
    let all = place.name("*");
    let seen = plan(&url, action(&all, None)).await.unwrap();
    let names: Vec<&str> = seen.items.iter().map(|item| item.name.as_str()).collect();
    assert_eq!(names, [&goes]);
    for (name, why) in [
        ("alone", "written to through the alias"),
        ("written", "written to through the alias"),
        ("without", "1 of its documents have no @timestamp"),
        ("empty", "holds no document"),
        ("fieldless", "no field @timestamp"),
        ("text", "keyword"),
        ("hidden", "hidden"),
        ("thinned", "_source"),
        ("closed", "closed"),
    ] {
        let begin = format!("{} stays: ", place.name(name));
        let note = seen.notes.iter().find(|note| note.starts_with(&begin));
        assert!(
            note.is_some_and(|note| note.contains(why)),
            "{name}: {:?}",
            seen.notes
        );
    }
    assert_eq!(seen.notes.len(), 9, "{:?}", seen.notes);

    // By when it was made: nothing here is so old, and what is a second old is older than nothing.
    let made = plan(&url, action(&all, Some("creation_date")))
        .await
        .unwrap();
    assert_eq!(made.items, []);
    for what in [
        action(&place.name("nothing-*"), None),
        action(&all, Some("a*")),
        CleanupAction::Vacuum {
            only: vec![],
            dead_percent: 20,
        },
    ] {
        let missing = plan(&url, what).await;
        assert!(
            matches!(missing, Err(EngineError::Missing { .. })),
            "{missing:?}"
        );
    }
    let prefixed = plan(&place.copy_url(), action(&all, None)).await;
    assert!(
        matches!(prefixed, Err(EngineError::Missing { .. })),
        "{prefixed:?}"
    );
}

#[rstest]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn indices_go_by_when_they_were_made_where_that_is_asked_for(
    #[values(Elasticsearch, OpenSearch)] kind: SearchKind,
) {
    let place = Place::new(kind);
    let empty = place.make("empty", &json!({"settings": {"number_of_replicas": 0}}));
    let filled = index(place, "filled", 10, &json!({}));
    // A field of that name goes before the index's own date.
    let named = place.make(
        "named",
        &json!({"mappings": {"properties": {"creation_date": {"type": "date"}}}}),
    );
    place.write(&named, &one("x", &json!({"creation_date": "2999-01-01"})));
    let made = |index: &str| -> i64 {
        definition_of(place, index)["settings"]["index"]["creation_date"]
            .as_str()
            .unwrap()
            .parse()
            .unwrap()
    };
    let newest = [&empty, &filled, &named]
        .map(|index| made(index))
        .into_iter()
        .max()
        .unwrap();
    let is_over = || Timestamp::now().micros() / 1000 > newest + 1500;
    fettler_test_servers::wait_until("a second", std::time::Duration::from_secs(60), is_over)
        .unwrap();
    let what = CleanupAction::Indices {
        pattern: place.name("*"),
        field: Some("creation_date".to_owned()),
        older_than_seconds: 1,
    };
    let seen = plan(&place.server.url(), what).await.unwrap();
    let names: Vec<&str> = seen.items.iter().map(|item| item.name.as_str()).collect();
    assert_eq!(names, [&empty, &filled], "{seen:?}");
    assert_eq!(seen.rows(), 40);
}

fn definition_of(place: Place, index: &str) -> Value {
    place.send("GET", &format!("/{index}"), &Value::Null)[index].clone()
}

#[rstest]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_changed_since_the_plan_stays_and_can_be_written_to(
    #[values(Elasticsearch, OpenSearch)] kind: SearchKind,
) {
    let place = Place::new(kind);
    let made = |name: &str| index(place, name, 100, &json!({}));
    let written = made("a-written");
    let deleted_from = made("b-deleted-from");
    let named = made("c-named");
    let mapped = made("d-mapped");
    let anew = made("e-anew");
    let gone = made("f-gone");
    let still = made("g-still");
    // Between the plan and the archive: it is in the archive, and stays all the same.
    let url = place.server.url();
    let early = plan(&url, action(&place.name("*"), None)).await.unwrap();
    place.write(&written, &one("new", &json!({"@timestamp": ago(1)})));
    let mut job = Job::begin(place, "*").await;
    assert_eq!(job.plan.items.len(), 6);
    let (attempt, sink) = (Attempt::new(), MemorySink::default());
    let archived = engine()
        .archive(&attempt.context, &target(&url), &early, &sink)
        .await
        .unwrap();
    (job.plan, job.archive, job.objects) = (early, sink.source(), archived.objects);
    job.prove(&job.archive).await.unwrap();

    place.send(
        "DELETE",
        &format!("/{deleted_from}/_doc/d1?refresh=true"),
        &Value::Null,
    );
    let action = json!({"actions": [{"add": {"index": named, "alias": place.name("alias")}}]});
    place.send("POST", "/_aliases", &action);
    let field = json!({"properties": {"more": {"type": "long"}}});
    place.send("PUT", &format!("/{mapped}/_mapping"), &field);
    for index in [&anew, &gone] {
        place.send("DELETE", &format!("/{index}"), &Value::Null);
    }
    made("e-anew");
    let removed = job.remove(&url, 1).await.unwrap();
    assert_eq!(
        (removed.removed, removed.changed, removed.gone),
        (1, 5, 1),
        "{removed:?}"
    );
    assert!(!exists(place.server, &still));
    for (index, why) in [
        (&written, "written to since"),
        (&deleted_from, "written to since"),
        (&named, "aliases"),
        (&mapped, "mappings"),
        (&anew, "another one"),
    ] {
        assert!(
            removed
                .kept
                .iter()
                .any(|line| line.starts_with(index.as_str()) && line.contains(why)),
            "{index}: {removed:?}"
        );
        place.write(index, &one("later", &json!({"@timestamp": ago(1)})));
    }
    // The undo brings back what went, and tells what stands in its place.
    let undone = job.undo(false).await;
    assert_eq!(count(place.server, &still), 40);
    assert_eq!((undone.restored, undone.taken), (80, 40), "{undone:?}");
    assert!(undone.skipped[0].starts_with(&anew), "{undone:?}");
}

#[rstest]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removal_that_broke_off_leaves_no_block_and_goes_on(
    #[values(Elasticsearch, OpenSearch)] kind: SearchKind,
) {
    let place = Place::new(kind);
    let [first, second, third] = ["a", "b", "c"].map(|name| index(place, name, 100, &json!({})));
    let job = Job::begin(place, "*").await;
    // An attempt that was killed between the block and the removal.
    let block = json!({"index.blocks.write": true});
    place.send("PUT", &format!("/{first}/_settings"), &block);
    let fails = Arc::new(AtomicBool::new(true));
    let (broken, is_broken) = (second.clone(), Arc::clone(&fails));
    let front = Front::before(place.server, move |method, path| {
        let is_it = method == "DELETE" && path.contains(&broken);
        (is_it && is_broken.load(Ordering::Relaxed)).then(|| {
            (
                503,
                r#"{"error":{"type":"process_cluster_event_timeout_exception","reason":"slow"}}"#
                    .to_owned(),
            )
        })
    });
    let error = job.remove(&front.url(&job.url), 1).await.unwrap_err();
    assert_eq!(error.class(), ErrorClass::Snooze, "{error:?}");
    assert!(!exists(place.server, &first));
    assert!(exists(place.server, &third));
    let settings = definition_of(place, &second)["settings"]["index"].clone();
    assert_eq!(settings["blocks"]["write"], Value::Null, "{settings}");
    fails.store(false, Ordering::Relaxed);
    let removed = job.remove(&front.url(&job.url), 2).await.unwrap();
    assert_eq!((removed.removed, removed.stayed()), (3, 0), "{removed:?}");
    assert!(!exists(place.server, &second) && !exists(place.server, &third));
    // Once more does nothing, whatever stands there now.
    let new = index(place, "a", 100, &json!({}));
    job.remove(&job.url, 3).await.unwrap();
    assert!(exists(place.server, &new));
}

#[rstest]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_undo_that_broke_off_goes_on_and_takes_what_a_dead_cleanup_left(
    #[values(Elasticsearch, OpenSearch)] kind: SearchKind,
) {
    let place = Place::new(kind);
    let [first, second, never] =
        ["a", "b", "never"].map(|name| index(place, name, 100, &json!({})));
    let before = documents(place.server, &second);
    let job = Job::begin(place, "*").await;
    for index in [&first, &second] {
        place.send("DELETE", &format!("/{index}"), &Value::Null);
    }
    let block = json!({"index.blocks.write": true});
    place.send("PUT", &format!("/{never}/_settings"), &block);
    // A template that came since would give what comes back an alias and a field.
    let template = json!({
        "index_patterns": [place.name("a*")], "priority": 900,
        "template": {
            "aliases": {place.name("given"): {}},
            "mappings": {"properties": {"given": {"type": "long"}}},
        },
    });
    let path = format!("/_index_template/{}", place.name("template"));
    place.send("PUT", &path, &template);
    let attempt = Attempt::new();
    let mut broken = job.archive.clone();
    broken.fails_after = Some(600);
    let failed = job.try_undo(&attempt, 1, &broken, false).await;
    assert!(failed.is_err(), "{failed:?}");
    let undone = job
        .try_undo(&attempt, 2, &job.archive, false)
        .await
        .unwrap();
    place.send("DELETE", &path, &Value::Null);
    assert_eq!(
        (undone.restored, undone.there, undone.taken),
        (80, 40, 0),
        "{undone:?}"
    );
    assert!(
        undone.notes.iter().any(|note| note.contains("template")),
        "{undone:?}"
    );
    assert_eq!(definition_of(place, &first)["aliases"], json!({}));
    assert_eq!(documents(place.server, &second), before);
    place.write(&never, &one("later", &json!({"@timestamp": ago(1)})));
}

#[rstest]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_archive_that_was_damaged_is_found(
    #[values(Elasticsearch, OpenSearch)] kind: SearchKind,
) {
    let place = Place::new(kind);
    index(place, "a", 100, &json!({}));
    let job = Job::begin(place, "*").await;
    let sink = MemorySink::behind(Arc::new(|name: &str, _, bytes: bytes::Bytes| {
        if !name.starts_with("documents/") {
            return bytes;
        }
        let text = String::from_utf8(bytes.to_vec()).unwrap();
        text.replacen("\"at\":7,", "\"at\":8,", 1).into()
    }));
    let archived = engine()
        .archive(&Attempt::new().context, &target(&job.url), &job.plan, &sink)
        .await
        .unwrap();
    assert_eq!(archived.rows, 40);
    let damaged = job.prove(&sink.source()).await;
    assert!(
        matches!(damaged, Err(EngineError::Unusable { .. })),
        "{damaged:?}"
    );
}

#[rstest]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_index_that_a_full_disk_made_read_only_goes(
    #[values(Elasticsearch, OpenSearch)] kind: SearchKind,
) {
    let place = Place::new(kind);
    let full = index(place, "full", 100, &json!({}));
    let block = json!({"index.blocks.read_only_allow_delete": true});
    place.send("PUT", &format!("/{full}/_settings"), &block);
    let job = Job::begin(place, "*").await;
    let removed = job.remove(&job.url, 1).await.unwrap();
    assert_eq!((removed.removed, removed.stayed()), (1, 0), "{removed:?}");
    assert_eq!(job.undo(false).await.restored, 40);
    place.write(&full, &one("later", &json!({"@timestamp": ago(1)})));
}
