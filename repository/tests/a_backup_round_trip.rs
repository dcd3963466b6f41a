//! The whole path on each kind of store, by one suite: what is written is read back, a second backup
//! stores what is new only, and everything is verified.

mod common;

use std::sync::Arc;

use common::*;
use fettler_repository::{
    BeginBackup, Chunking, CreateKey, Depth, Parent, Repository, RepositoryError, StreamEnd,
    Unlock, create_key_file,
};
use object_store::ObjectStore;
use tokio_util::sync::CancellationToken;

async fn a_backup_reads_as_it_was_written(store: Arc<dyn ObjectStore>) {
    let tenant = tenant_in(store.clone()).await.unwrap();
    let (orders, empty, small) = (rows(1, 3_000_000), Vec::new(), rows(2, 10));
    let streams: [(&str, &[u8]); 3] = [("orders", &orders), ("empty", &empty), ("small", &small)];
    let first = back_up(&tenant, new_id(), &streams).await.unwrap();
    let summary = first.manifest.summary.clone();
    assert_eq!(summary.bytes_read, 3_000_010);
    assert_eq!(summary.bytes_new, 3_000_010);
    assert!(summary.bytes_stored < 2_000_000, "{summary:?}");
    assert!(first.manifest.packs.len() > 1);

    // Another process opens it anew.
    let tenant = tenant_in(store).await.unwrap();
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
    assert!(
        second.manifest.summary.bytes_stored < summary.bytes_stored / 20,
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

async fn a_stream_is_taken_over_unread(store: Arc<dyn ObjectStore>) {
    let tenant = tenant_in(store).await.unwrap();
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

async fn a_commit_is_made_once(store: Arc<dyn ObjectStore>) {
    let tenant = tenant_in(store).await.unwrap();
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

async fn the_suite(store: impl Fn() -> Arc<dyn ObjectStore>) {
    a_backup_reads_as_it_was_written(store()).await;
    a_stream_is_taken_over_unread(store()).await;
    a_commit_is_made_once(store()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_suite_passes_in_memory() {
    the_suite(|| Arc::new(object_store::memory::InMemory::new())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_suite_passes_in_a_local_folder() {
    let folder = tempfile::tempdir().unwrap();
    let count = std::sync::atomic::AtomicU32::new(0);
    the_suite(|| {
        let number = count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let place = folder.path().join(number.to_string());
        std::fs::create_dir(&place).unwrap();
        let store = object_store::local::LocalFileSystem::new_with_prefix(place).unwrap();
        Arc::new(store.with_fsync(true))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_opens_by_path_and_by_url_with_a_key_file() {
    let folder = tempfile::tempdir().unwrap();
    let (place, key) = (
        folder.path().join("a/repository"),
        folder.path().join("key"),
    );
    create_key_file(&key).unwrap();
    assert!(matches!(
        create_key_file(&key),
        Err(RepositoryError::KeyFile { .. })
    ));
    let unlock = Unlock::KeyFile(key);
    let place = place.to_str().unwrap();
    let absent = fettler_repository::OpenOptions {
        create: false,
        ..options()
    };
    let error = Repository::open(place, absent.clone()).await.unwrap_err();
    assert!(matches!(error, RepositoryError::Missing { .. }), "{error}");
    let repository = Repository::open(place, options()).await.unwrap();
    let error = repository
        .tenant(&shop(), &unlock, CreateKey::Never)
        .await
        .unwrap_err();
    assert!(
        matches!(error, RepositoryError::NoSuchTenant { .. }),
        "{error}"
    );
    let tenant = repository
        .tenant(&shop(), &unlock, CreateKey::IfAbsent)
        .await
        .unwrap();
    let bytes = rows(1, 100_000);
    let id = new_id();
    back_up(&tenant, id, &[("x", &bytes)]).await.unwrap();

    let repository = Repository::open(&format!("file://{place}"), absent)
        .await
        .unwrap();
    let tenant = repository
        .tenant(&shop(), &unlock, CreateKey::Never)
        .await
        .unwrap();
    assert_reads(&tenant, id, &[("x", &bytes)]).await;
    let error = repository
        .tenant(&shop(), &passphrase(), CreateKey::IfAbsent)
        .await
        .unwrap_err();
    assert!(matches!(error, RepositoryError::WrongKey { .. }), "{error}");
    let (names, others) = repository.tenants(&unlock).await.unwrap();
    assert_eq!((names, others), (vec![shop()], 0));
    let _listing = tenant
        .verify(id, Depth::Listing, &mut |_| {}, &CancellationToken::new())
        .await
        .unwrap();
    let none = BeginBackup {
        parent: Parent::None,
        ..BeginBackup::new(new_id(), "shop-db")
    };
    assert!(begin(&tenant, none).await.unwrap().parent().is_none());
}
