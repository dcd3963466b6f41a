//! A restore that was cut off goes on where it stopped, and may do anything twice.

use std::sync::Mutex;

use async_trait::async_trait;
use fettler_engine::{
    BackupReport, DatabaseEngine as _, EngineContext, EngineError, RestoreOptions, RestoreReport,
    StreamFacts, StreamReader, StreamSource, testing::MemorySource,
};
use rstest::rstest;
use serde_json::{Value, json};

use crate::common::{
    Attempt, Elasticsearch, OpenSearch, Place, SearchKind, back_up, engine, facts, mismatches,
    numbered, target, try_restore,
};

/// A store that goes away when so many streams were asked for, and remembers which these were.
struct GoesAway {
    backup: MemorySource,
    after: usize,
    read: Mutex<Vec<String>>,
}

impl GoesAway {
    fn after(backup: &MemorySource, after: usize) -> Self {
        Self {
            backup: backup.clone(),
            after,
            read: Mutex::default(),
        }
    }
}

#[async_trait]
impl StreamSource for GoesAway {
    fn streams(&self) -> &[StreamFacts] {
        self.backup.streams()
    }

    async fn read(&self, name: &str) -> Result<StreamReader, EngineError> {
        let count = {
            let mut read = self.read.lock().unwrap();
            read.push(name.to_owned());
            read.len()
        };
        let mut backup = self.backup.clone();
        if count > self.after {
            // In the middle of a stream, or at its beginning.
            backup.fails_after = Some(count as u64 % 2 * 300_000);
        }
        backup.read(name).await
    }
}

async fn attempt(
    context: &EngineContext,
    backup: &dyn StreamSource,
    report: &BackupReport,
    url: &str,
    options: &RestoreOptions,
) -> Result<RestoreReport, EngineError> {
    engine()
        .restore(context, backup, report, &target(url), options)
        .await
}

#[rstest]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p3_a_restore_goes_on_where_it_stopped(
    #[values(Elasticsearch, OpenSearch)] kind: SearchKind,
) {
    let place = Place::new(kind);
    for name in ["a", "b", "c"] {
        let index = place.make(
            name,
            &json!({"settings": {"number_of_shards": 4, "number_of_replicas": 0}}),
        );
        place.write(&index, &numbered(0..9000, name));
    }
    let (backup, report) = back_up(&place.url()).await;
    let (job, url) = (Attempt::new(), place.copy_url());
    let options = RestoreOptions::default();
    let mut number = 1;
    for after in [1, 4, 4] {
        let source = GoesAway::after(&backup, after);
        let error = attempt(&job.next(number), &source, &report, &url, &options)
            .await
            .unwrap_err();
        assert!(
            matches!(error, EngineError::Unreachable { .. }),
            "{error:?}"
        );
        number += 1;
    }
    let checkpoint = job.record.checkpoint().unwrap();
    let done: Vec<String> = serde_json::from_value(checkpoint["done"].clone()).unwrap();
    assert!(done.len() > 2, "{done:?}");
    // Somebody else's restore finds what is half-done, and leaves it alone.
    let error = try_restore(&backup, &report, &url, &options)
        .await
        .unwrap_err();
    assert!(
        matches!(&error, EngineError::NotEmpty { what, .. } if what.contains("half-done")),
        "{error:?}"
    );
    // An index that was removed and made anew meanwhile is not taken for the one of the checkpoint.
    let lost = place.copy(&place.name("a"));
    place.send("DELETE", &format!("/{lost}"), &Value::Null);
    let source = GoesAway::after(&backup, usize::MAX);
    attempt(&job.next(number), &source, &report, &url, &options)
        .await
        .unwrap();
    let read = source.read.lock().unwrap().clone();
    let of_lost = format!("documents/{}/", place.name("a"));
    assert!(
        !read
            .iter()
            .any(|name| done.contains(name) && !name.starts_with(&of_lost)),
        "{read:?}"
    );
    assert_eq!(
        mismatches(&report.objects, &facts(&report, &url).await),
        Vec::<String>::new()
    );
    // Once more does nothing.
    let again = attempt(&job.next(number + 1), &backup, &report, &url, &options)
        .await
        .unwrap();
    assert_eq!(again.rows, 0);
}

#[rstest]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_another_restore_left_half_done_is_removed_when_told(
    #[values(Elasticsearch, OpenSearch)] kind: SearchKind,
) {
    let place = Place::new(kind);
    let index = place.make(
        "half",
        &json!({"settings": {"number_of_shards": 2, "number_of_replicas": 0}}),
    );
    place.write(&index, &numbered(0..5000, "x"));
    let (backup, report) = back_up(&place.url()).await;
    let source = GoesAway::after(&backup, 2);
    let url = place.copy_url();
    attempt(
        &Attempt::new().context,
        &source,
        &report,
        &url,
        &RestoreOptions::default(),
    )
    .await
    .unwrap_err();
    let again = RestoreOptions {
        start_again: true,
        ..RestoreOptions::default()
    };
    try_restore(&backup, &report, &url, &again).await.unwrap();
    assert_eq!(
        mismatches(&report.objects, &facts(&report, &url).await),
        Vec::<String>::new()
    );
}
