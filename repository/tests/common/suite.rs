//! What every kind of store must pass, called by the test of each.
#![allow(clippy::unwrap_used)]

use fettler_repository::{BeginBackup, Chunking, StreamEnd, TenantRepository};
use tokio_util::sync::CancellationToken;

use crate::common::*;

/// How many cases there are; each needs an empty store.
pub const CASES: usize = 3;

/// Runs a case; `open` opens the store anew, as another process would.
pub async fn case(number: usize, open: impl AsyncFn() -> TenantRepository) {
    match number {
        0 => a_backup_reads_as_it_was_written(open).await,
        1 => a_stream_is_taken_over_unread(open).await,
        _ => a_commit_is_made_once(open).await,
    }
}

async fn a_backup_reads_as_it_was_written(open: impl AsyncFn() -> TenantRepository) {
    let tenant = open().await;
    let (orders, empty, small) = (rows(1, 3_000_000), Vec::new(), rows(2, 10));
    let streams: [(&str, &[u8]); 3] = [("orders", &orders), ("empty", &empty), ("small", &small)];
    let first = back_up(&tenant, new_id(), &streams).await.unwrap();
    let summary = first.manifest.summary.clone();
    assert_eq!(summary.bytes_read, 3_000_010);
    assert_eq!(summary.bytes_new, 3_000_010);
    assert!(summary.bytes_stored < 2_000_000, "{summary:?}");
    assert!(first.manifest.packs.len() > 1);

    // Another process opens it anew.
    let tenant = open().await;
    assert_reads(&tenant, summary.id, &streams).await;
    let report = verify_everything(&tenant, summary.id).await;
    assert!(report.is_ok(), "{report:?}");
    assert_eq!(report.packs, first.manifest.packs.len() as u64);

    // A hundredth of it changes: little is stored.
    let mut changed = orders.clone();
    let place = changed.len() / 2;
    changed[place..place + 30_000].copy_from_slice(&rows(3, 30_000));
    let streams: [(&str, &[u8]); 3] = [("orders", &changed), ("empty", &empty), ("small", &small)];
    let second = back_up(&tenant, new_id(), &streams).await.unwrap();
    assert_eq!(second.manifest.summary.parent, Some(summary.id));
    // Where chunks are cut depends on the repository's key: what was changed lies in one chunk or in several.
    assert!(
        second.manifest.summary.bytes_stored < summary.bytes_stored / 5,
        "{:?}",
        second.manifest.summary
    );
    assert_reads(&tenant, second.manifest.id(), &streams).await;

    let listing = tenant.backups().await.unwrap();
    assert_eq!(listing.backups.len(), 2);
    assert_eq!(listing.backups[1], second.manifest.summary);
    assert!(listing.unreadable.is_empty());
    let stop = CancellationToken::new();
    let check = tenant
        .check(Some(100.0), &[summary.id], &mut |_| {}, &stop)
        .await
        .unwrap();
    assert!(check.is_ok(), "{check:?}");
    assert_eq!((check.backups, check.packs_without_backup), (2, 0));
    let statistics = tenant.statistics().await.unwrap();
    assert_eq!(statistics.named_pack_bytes, statistics.pack_bytes);
}

async fn a_stream_is_taken_over_unread(open: impl AsyncFn() -> TenantRepository) {
    let tenant = open().await;
    let bytes = rows(4, 1_000_000);
    let writer = begin(&tenant, BeginBackup::new(new_id(), "files"))
        .await
        .unwrap();
    let pages = Chunking::Pages { page_bytes: 512 };
    let mut stream = writer.open_stream("file", pages).unwrap();
    stream.write(bytes.clone().into()).await.unwrap();
    let end = StreamEnd {
        rows: 7,
        unchanged_marker: Some("version 1".into()),
    };
    stream.finish(end).await.unwrap();
    let first = writer.commit(body()).await.unwrap().manifest;

    let writer = begin(&tenant, BeginBackup::new(new_id(), "files"))
        .await
        .unwrap();
    assert_eq!(writer.take_over("file", "version 2").await.unwrap(), None);
    let taken = writer
        .take_over("file", "version 1")
        .await
        .unwrap()
        .unwrap();
    assert_eq!((taken.rows, taken.bytes), (7, bytes.len() as u64));
    let second = writer.commit(body()).await.unwrap().manifest;
    assert_eq!(second.summary.bytes_new, 0);
    assert_eq!(second.summary.since_full_read, 1);
    assert_reads(&tenant, second.id(), &[("file", &bytes)]).await;

    // The backup that it was taken over from is gone; nothing hangs on it.
    tenant
        .forget(first.id(), "test", &fettler_repository::Unfenced)
        .await
        .unwrap();
    assert_reads(&tenant, second.id(), &[("file", &bytes)]).await;

    let reread = BeginBackup {
        read_everything: true,
        ..BeginBackup::new(new_id(), "files")
    };
    let writer = begin(&tenant, reread).await.unwrap();
    assert_eq!(writer.take_over("file", "version 1").await.unwrap(), None);
}

async fn a_commit_is_made_once(open: impl AsyncFn() -> TenantRepository) {
    let tenant = open().await;
    let (id, bytes) = (new_id(), rows(5, 100_000));
    let zombie = begin(&tenant, BeginBackup::new(id, "shop-db"))
        .await
        .unwrap();
    write_stream(&zombie, "orders", Chunking::Content, &rows(6, 50_000))
        .await
        .unwrap();
    let first = back_up(&tenant, id, &[("orders", &bytes)]).await.unwrap();
    assert!(!first.adopted);
    let late = zombie.commit(body()).await.unwrap();
    assert!(
        late.adopted,
        "rule 22: whoever finds the manifest adopts it"
    );
    assert_eq!(late.manifest.summary, first.manifest.summary);
    let again = back_up(&tenant, id, &[]).await.unwrap();
    assert!(again.adopted);
    assert_eq!(tenant.backups().await.unwrap().backups.len(), 1);
    assert_reads(&tenant, id, &[("orders", &bytes)]).await;
}
