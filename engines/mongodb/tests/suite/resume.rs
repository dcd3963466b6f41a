//! Attempts that were lost, and what the next one does.

use bson::doc;
use fettler_engine::{
    DatabaseEngine as _, EngineContext, EngineError, RestoreOptions, testing::MemorySource,
};
use fettler_test_servers::MongodbKind;

use crate::common::{Attempt, ENGINE, back_up, client, facts, mismatches, orders, server, target};

async fn restore_as(
    context: &EngineContext,
    backup: &MemorySource,
    report: &fettler_engine::BackupReport,
    url: &str,
) -> Result<fettler_engine::RestoreReport, EngineError> {
    ENGINE
        .restore(
            context,
            backup,
            report,
            &target(url),
            &RestoreOptions::default(),
        )
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p3_a_restore_goes_on_where_the_last_attempt_was_lost() {
    for kind in MongodbKind::ALL {
        let source = server(kind);
        let mut filler = client(&source);
        for name in ["a", "b", "c"] {
            filler.insert("shop", name, orders(0, 3000));
        }
        filler.run(
            "shop",
            doc! { "createIndexes": "c", "indexes": [{ "key": { "note": 1 }, "name": "note", "unique": true }] },
        );
        let (mut backup, report) = back_up(&source.url()).await;
        let copy = server(kind);
        let attempt = Attempt::new();
        // The store goes away while a stream is read.
        backup.fails_after = Some(300_000);
        let lost = restore_as(&attempt.context, &backup, &report, &copy.url()).await;
        assert!(
            matches!(lost, Err(EngineError::Unreachable { .. })),
            "{lost:?}"
        );
        backup.fails_after = None;
        let again = restore_as(&attempt.next(2), &backup, &report, &copy.url())
            .await
            .unwrap();
        assert_eq!(again.failed_statements, Vec::<String>::new());
        assert_eq!(
            mismatches(&report.objects, &facts(&report, &copy.url()).await),
            Vec::<String>::new()
        );
        // A third attempt finds everything done.
        let third = restore_as(&attempt.next(3), &backup, &report, &copy.url())
            .await
            .unwrap();
        assert_eq!(third.rows, 0);
        assert_eq!(
            mismatches(&report.objects, &facts(&report, &copy.url()).await),
            Vec::<String>::new()
        );
    }
}

/// The server has what it was given, and the checkpoint does not know it: each document is replaced by itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p3_documents_that_are_there_already_are_written_again_and_are_there_once() {
    for kind in MongodbKind::ALL {
        let source = server(kind);
        client(&source).insert("shop", "a", orders(0, 300));
        let (backup, report) = back_up(&source.url()).await;
        let copy = server(kind);
        let attempt = Attempt::new();
        restore_as(&attempt.context, &backup, &report, &copy.url())
            .await
            .unwrap();
        let mut checkpoint = attempt.record.checkpoint().unwrap();
        checkpoint["done"] = serde_json::json!([]);
        fettler_engine::Checkpoints::save(&*attempt.record, checkpoint)
            .await
            .unwrap();
        client(&copy).update("shop", "a", doc! { "_id": 5 }, doc! { "_id": 5 });
        restore_as(&attempt.next(2), &backup, &report, &copy.url())
            .await
            .unwrap();
        assert_eq!(
            mismatches(&report.objects, &facts(&report, &copy.url()).await),
            Vec::<String>::new()
        );
    }
}
