//! A process may die at any request: what it leaves is consistent, and the next attempt does not store
//! again what was stored (P3). The store dies at each request in turn, once before the request takes
//! effect and once after.
#![allow(clippy::unwrap_used)]

mod common;

use std::{sync::Arc, time::Duration};

use common::{stores::*, *};
use fettler_model::BackupId;
use fettler_repository::{
    BeginBackup, Begun, Chunking, CollectOptions, RepositoryError, TenantRepository, Unfenced,
};
use futures::TryStreamExt;
use object_store::{ObjectStore, memory::InMemory};

/// More requests than any of these operations makes.
const MOST_REQUESTS: i64 = 400;

async fn bytes_in(store: &InMemory, folder: &str) -> u64 {
    let listed: Vec<_> = store.list(None).try_collect().await.unwrap();
    listed
        .iter()
        .filter(|meta| meta.location.as_ref().contains(folder))
        .map(|meta| meta.size)
        .sum()
}

/// Every backup that is listed can be read in full, and among them are these.
async fn assert_consistent(
    tenant: &TenantRepository,
    there: &[BackupId],
    may_be_there: &[BackupId],
) {
    let listing = tenant.backups().await.unwrap();
    assert!(listing.unreadable.is_empty(), "{:?}", listing.unreadable);
    for summary in &listing.backups {
        assert!(there.contains(&summary.id) || may_be_there.contains(&summary.id));
        let report = verify_everything(tenant, summary.id).await;
        assert!(report.is_ok(), "{report:?}");
    }
    for id in there {
        assert!(listing.backups.iter().any(|summary| summary.id == *id));
    }
}

/// Runs `operation` once for each request at which the store can die, on a copy of `base`.
async fn at_each_request<F>(
    base: &InMemory,
    operation: impl Fn(TenantRepository) -> F,
    after: impl AsyncFn(Arc<TestStore>, InMemory, TenantRepository),
) where
    F: Future<Output = Result<(), RepositoryError>>,
{
    for takes_effect in [false, true] {
        for requests in 0..MOST_REQUESTS {
            let copy = base.fork();
            // Both look at the same objects, as a fork does not.
            let shared = Arc::new(copy);
            let store = TestStore::over(shared.clone());
            let tenant = tenant_in(store.clone()).await.unwrap();
            store.take_log();
            store.die_after(requests, takes_effect);
            let outcome = operation(tenant).await;
            let died = store.is_dead();
            store.live();
            assert!(died || outcome.is_ok(), "{outcome:?}");
            let tenant = tenant_in(store.clone()).await.unwrap();
            after(store, shared.fork(), tenant).await;
            if !died {
                assert!(requests > 5, "the operation did nothing");
                break;
            }
            assert!(requests < MOST_REQUESTS - 1, "the operation has no end");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn p3_a_backup_that_dies_at_any_request_is_taken_up_and_stores_nothing_twice() {
    let base = Arc::new(InMemory::new());
    let tenant = tenant_in(base.clone()).await.unwrap();
    let (old, new) = (new_id(), new_id());
    let before = rows(1, 600_000);
    back_up(&tenant, old, &[("orders", &before)]).await.unwrap();
    let after = [&before[..300_000], &rows(2, 2_500_000)].concat();
    let streams: [(&str, &[u8]); 2] = [("orders", &after), ("small", b"few")];

    // What an undisturbed backup stores.
    let calm = TestStore::over(Arc::new(base.fork()));
    back_up(&tenant_in(calm.clone()).await.unwrap(), new, &streams)
        .await
        .unwrap();
    let packs_of = |log: &[Written]| {
        let packs = log
            .iter()
            .filter(|written| written.path.contains("/packs/"));
        packs.fold((0, 0), |(count, bytes), pack| {
            (count + 1, bytes + pack.bytes - 48)
        })
    };
    let (_, needed) = packs_of(&calm.take_log());

    at_each_request(
        &base,
        |tenant| async move { back_up(&tenant, new, &streams).await.map(drop) },
        async |store, _, tenant| {
            assert_consistent(&tenant, &[old], &[new]).await;
            back_up(&tenant, new, &streams).await.unwrap();
            assert_reads(&tenant, new, &streams).await;
            let (_, stored) = packs_of(&store.take_log());
            assert!(
                stored <= needed,
                "both attempts together stored {stored} bytes instead of {needed}"
            );
            assert_consistent(&tenant, &[old, new], &[]).await;
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forgetting_that_dies_at_any_request_leaves_a_backup_or_none_and_can_be_repeated() {
    let base = Arc::new(InMemory::new());
    let tenant = tenant_in(base.clone()).await.unwrap();
    let (one, other) = (new_id(), new_id());
    back_up(&tenant, one, &[("orders", &rows(1, 200_000))])
        .await
        .unwrap();
    back_up(&tenant, other, &[("orders", &rows(2, 200_000))])
        .await
        .unwrap();
    at_each_request(
        &base,
        |tenant| async move { tenant.forget(one, "test", &Unfenced).await },
        async |_, _, tenant| {
            assert_consistent(&tenant, &[other], &[one]).await;
            tenant.forget(one, "test", &Unfenced).await.unwrap();
            assert_eq!(tenant.backups().await.unwrap().backups.len(), 1);
            collect_all(&tenant).await;
            assert_consistent(&tenant, &[other], &[]).await;
            let statistics = tenant.statistics().await.unwrap();
            assert_eq!(statistics.pack_bytes, statistics.named_pack_bytes);
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rule_23_a_collection_that_dies_at_any_request_deletes_nothing_that_is_needed() {
    let base = Arc::new(InMemory::new());
    let tenant = tenant_in(base.clone()).await.unwrap();
    let bytes = rows(1, 900_000);
    let (gone, kept, given_up) = (new_id(), new_id(), new_id());
    back_up(&tenant, gone, &[("orders", &bytes)]).await.unwrap();
    back_up(&tenant, kept, &[("orders", &bytes[..500_000])])
        .await
        .unwrap();
    let writer = begin(&tenant, BeginBackup::new(given_up, "shop-db"))
        .await
        .unwrap();
    write_stream(&writer, "orders", Chunking::Content, &rows(3, 2_000_000))
        .await
        .unwrap();
    writer.checkpoint().await.unwrap();
    drop(writer);
    tenant.forget(gone, "test", &Unfenced).await.unwrap();
    // The first phase is done; the store dies in the second one.
    tenant
        .collect(&CollectOptions::with_grace(Duration::ZERO))
        .await
        .unwrap();
    at_each_request(
        &base,
        |tenant| async move {
            tenant
                .collect(&CollectOptions::with_grace(Duration::ZERO))
                .await
                .map(drop)
        },
        async |_, copy, tenant| {
            assert_consistent(&tenant, &[kept], &[]).await;
            collect_all(&tenant).await;
            assert_consistent(&tenant, &[kept], &[]).await;
            let statistics = tenant.statistics().await.unwrap();
            assert_eq!(statistics.pack_bytes, statistics.named_pack_bytes);
            assert!(bytes_in(&copy, "/packs/").await >= statistics.pack_bytes);
            let outcome = tenant
                .begin_backup(BeginBackup::new(given_up, "shop-db"))
                .await;
            assert!(
                matches!(outcome, Err(RepositoryError::LostAnnouncement { .. })),
                "rule 22: what was given up cannot be committed any more"
            );
        },
    )
    .await;
}

/// Collects until nothing is left to do.
async fn collect_all(tenant: &TenantRepository) {
    for _round in 0..5 {
        let report = tenant
            .collect(&CollectOptions::with_grace(Duration::ZERO))
            .await
            .unwrap();
        if report.marked_objects + report.waiting_objects + report.deleted_objects == 0 {
            return;
        }
    }
    panic!("the collection has no end");
}

#[tokio::test(flavor = "multi_thread")]
async fn rule_22_a_zombie_cannot_commit_what_a_collection_gave_up() {
    let store = Arc::new(InMemory::new());
    let tenant = tenant_in(store.clone()).await.unwrap();
    let id = new_id();
    let writer = begin(&tenant, BeginBackup::new(id, "shop-db"))
        .await
        .unwrap();
    write_stream(&writer, "orders", Chunking::Content, &rows(1, 1_000_000))
        .await
        .unwrap();
    let other = tenant_in(store.clone()).await.unwrap();
    let report = other
        .collect(&CollectOptions::with_grace(Duration::ZERO))
        .await
        .unwrap();
    assert_eq!(report.given_up, [id]);
    let renewal = writer.checkpoint().await;
    assert!(
        matches!(renewal, Err(RepositoryError::LostAnnouncement { .. })),
        "{renewal:?}"
    );
    let late = writer.commit(body()).await;
    assert!(
        matches!(late, Err(RepositoryError::LostAnnouncement { .. })),
        "{late:?}"
    );
    assert!(tenant.backups().await.unwrap().backups.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn rule_21_a_parent_that_is_forgotten_meanwhile_is_kept_until_the_backup_is_committed() {
    let store = Arc::new(InMemory::new());
    let tenant = tenant_in(store.clone()).await.unwrap();
    let bytes = rows(1, 1_500_000);
    let (parent, child) = (new_id(), new_id());
    back_up(&tenant, parent, &[("orders", &bytes)])
        .await
        .unwrap();
    let writer = begin(&tenant, BeginBackup::new(child, "shop-db"))
        .await
        .unwrap();
    assert_eq!(
        writer.parent().map(fettler_repository::Manifest::id),
        Some(parent)
    );
    let other = tenant_in(store.clone()).await.unwrap();
    other.forget(parent, "test", &Unfenced).await.unwrap();
    assert!(other.backups().await.unwrap().backups.is_empty());
    // The announcement is younger than this grace; marks of an hour ago do not exist.
    let patient = CollectOptions::with_grace(Duration::from_secs(3600));
    for _round in 0..3 {
        assert_eq!(other.collect(&patient).await.unwrap().marked_objects, 0);
    }
    write_stream(&writer, "orders", Chunking::Content, &bytes)
        .await
        .unwrap();
    let manifest = writer.commit(body()).await.unwrap().manifest;
    assert_eq!(manifest.summary.bytes_new, 0, "all of it was taken over");
    collect_all(&other).await;
    assert_reads(&tenant, child, &[("orders", &bytes)]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rule_23_a_manifest_that_vanished_stops_collection_until_it_is_forgotten() {
    let store = Arc::new(InMemory::new());
    let tenant = tenant_in(store.clone()).await.unwrap();
    let (lost, gone) = (new_id(), new_id());
    back_up(&tenant, lost, &[("orders", &rows(1, 300_000))])
        .await
        .unwrap();
    back_up(&tenant, gone, &[("orders", &rows(2, 300_000))])
        .await
        .unwrap();
    tenant.forget(gone, "test", &Unfenced).await.unwrap();
    let now = CollectOptions::with_grace(Duration::ZERO);
    assert!(tenant.collect(&now).await.unwrap().marked_objects > 0);
    let manifests: Vec<_> = store.list(None).try_collect().await.unwrap();
    let manifest = manifests
        .iter()
        .find(|meta| meta.location.as_ref().contains("/manifests/"))
        .unwrap();
    object_store::ObjectStoreExt::delete(&*store, &manifest.location)
        .await
        .unwrap();
    let before = bytes_in(&store, "/packs/").await;
    let outcome = tenant.collect(&now).await;
    assert!(
        matches!(outcome, Err(RepositoryError::CollectionStopped { .. })),
        "{outcome:?}"
    );
    assert_eq!(bytes_in(&store, "/packs/").await, before);
    let stop = tokio_util::sync::CancellationToken::new();
    let check = tenant
        .check(None, &[lost, gone], &mut |_| {}, &stop)
        .await
        .unwrap();
    assert_eq!(check.vanished, [lost]);
    tenant
        .forget(lost, "it was lost with the disk", &Unfenced)
        .await
        .unwrap();
    collect_all(&tenant).await;
    assert_eq!(bytes_in(&store, "/packs/").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn p8_a_held_backup_is_neither_forgotten_nor_collected() {
    let tenant = tenant_in(Arc::new(InMemory::new())).await.unwrap();
    let (id, bytes) = (new_id(), rows(1, 300_000));
    back_up(&tenant, id, &[("orders", &bytes)]).await.unwrap();
    tenant.hold(id, true).await.unwrap();
    assert!(tenant.is_held(id).await.unwrap());
    assert!(tenant.backups().await.unwrap().backups[0].held);
    let outcome = tenant.forget(id, "test", &Unfenced).await;
    assert!(matches!(outcome, Err(RepositoryError::Held(_))));
    collect_all(&tenant).await;
    assert_reads(&tenant, id, &[("orders", &bytes)]).await;
    tenant.hold(id, false).await.unwrap();
    tenant.forget(id, "test", &Unfenced).await.unwrap();
    assert!(matches!(
        tenant.manifest(id).await,
        Err(RepositoryError::NoSuchBackup(_))
    ));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_abandoned_backup_frees_its_space_and_never_comes_back() {
    let tenant = tenant_in(Arc::new(InMemory::new())).await.unwrap();
    let id = new_id();
    let Begun::Writer(writer) = tenant
        .begin_backup(BeginBackup::new(id, "x"))
        .await
        .unwrap()
    else {
        panic!("it is new");
    };
    write_stream(&writer, "orders", Chunking::Content, &rows(1, 2_000_000))
        .await
        .unwrap();
    writer.checkpoint().await.unwrap();
    drop(writer);
    tenant.abandon(id, "it was cancelled").await.unwrap();
    collect_all(&tenant).await;
    assert_eq!(tenant.statistics().await.unwrap().pack_bytes, 0);
    let error = tenant
        .begin_backup(BeginBackup::new(id, "x"))
        .await
        .unwrap_err();
    assert!(error.to_string().contains("it was cancelled"), "{error}");
}
