//! The places of proofs: what is made, what is left alone, what is removed.

use bson::doc;
use fettler_engine::{DatabaseEngine as _, EngineError, RestoreOptions, SandboxSpec};
use fettler_test_servers::MongodbKind;

use crate::common::{Attempt, ENGINE, back_up, client, close, orders, request, server, target};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scratch_area_touches_nothing_else_and_is_removed_by_its_record_alone() {
    for kind in MongodbKind::ALL {
        let source = server(kind);
        let mut there = client(&source);
        there.insert("shop", "orders", orders(0, 30));
        there.insert("fettler_", "mine", vec![doc! { "_id": 1 }]);
        let (backup, report) = back_up(&source.url()).await;
        let attempt = Attempt::new();
        let sandbox = ENGINE
            .open_sandbox(&attempt.context, &request(&report, &source.url()))
            .await
            .unwrap();
        assert_eq!(attempt.record.artefacts(), sandbox.artefacts);
        let before = there.databases();
        ENGINE
            .restore(
                &attempt.context,
                &backup,
                &report,
                &sandbox.target,
                &RestoreOptions::default(),
            )
            .await
            .unwrap();
        assert!(there.databases().len() > before.len());
        // Another backup does not take it along.
        let (_, meanwhile) = back_up(&source.url()).await;
        assert_eq!(meanwhile.objects.len(), report.objects.len());
        assert_eq!(there.count("shop", "orders"), 30);
        // Another process, after a crash, knows the record alone. What is gone is no error.
        close(&sandbox, &source.url()).await;
        close(&sandbox, &source.url()).await;
        assert_eq!(there.databases(), before);
        assert_eq!(there.count("fettler_", "mine"), 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_that_is_not_ours_removes_nothing() {
    let source = server(MongodbKind::WithOplog);
    client(&source).insert("shop", "orders", orders(0, 3));
    let (_, report) = back_up(&source.url()).await;
    let attempt = Attempt::new();
    let mut artefact = ENGINE
        .open_sandbox(&attempt.context, &request(&report, &source.url()))
        .await
        .unwrap()
        .artefacts
        .remove(0);
    for prefix in ["", "shop", "fettler_"] {
        artefact.data["prefix"] = prefix.into();
        let outcome = ENGINE
            .remove_artefact(&artefact, Some(&target(&source.url())))
            .await;
        assert!(
            matches!(outcome, Err(EngineError::Unusable { .. })),
            "{outcome:?}"
        );
    }
    assert_eq!(client(&source).count("shop", "orders"), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_server_a_proof_says_how_to_name_one() {
    let source = server(MongodbKind::WithOplog);
    let (_, report) = back_up(&source.url()).await;
    let mut request = request(&report, &source.url());
    request.spec = SandboxSpec::Automatic;
    request.server = None;
    let error = ENGINE
        .open_sandbox(&Attempt::new().context, &request)
        .await
        .unwrap_err();
    match error {
        EngineError::Missing { remedy, .. } => assert!(remedy.contains("--sandbox"), "{remedy}"),
        other => panic!("{other:?}"),
    }
}
