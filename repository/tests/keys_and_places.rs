//! Keys, places and stores that do not do what they should: each ends in an error that says what to do.
#![allow(clippy::unwrap_used)]

mod common;

use std::{io::ErrorKind, sync::Arc};

use common::{stores::TestStore, *};
use fettler_model::{ErrorClass, Problem, Secret};
use fettler_repository::{
    BeginBackup, Chunking, CreateKey, KeySlotKind, OpenOptions, Repository, RepositoryError,
    Unlock, create_key_file,
};
use object_store::{ObjectStore, ObjectStoreExt, memory::InMemory};

fn word(text: &str) -> Unlock {
    Unlock::Passphrase(Secret::new(text.into()))
}

fn assert_helps(error: RepositoryError, code: &str) {
    let problem = Problem::from(error);
    assert_eq!(problem.code, code, "{problem:?}");
    assert!(problem.remedy.len() > 10, "{problem:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_added_rotated_and_removed_and_backups_stay_readable() {
    let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("key");
    create_key_file(&file).unwrap();
    let repository = Repository::with_store(store.clone(), "x", options())
        .await
        .unwrap();
    let open = |unlock: Unlock| {
        let repository = repository.clone();
        async move {
            repository
                .tenant(&shop(), &unlock, CreateKey::IfAbsent)
                .await
        }
    };
    let tenant = open(word("first")).await.unwrap();
    let (id, bytes) = (new_id(), rows(1, 50_000));
    back_up(&tenant, id, &[("x", &bytes)]).await.unwrap();
    let fingerprint_key = tenant.fingerprint_key();

    let only = tenant.keys().await.unwrap();
    assert_eq!(only.len(), 1);
    let error = tenant.key_remove(&only[0].id).await.unwrap_err();
    assert_helps(error, "repository.last_key");
    let added = tenant
        .key_add(&Unlock::KeyFile(file.clone()))
        .await
        .unwrap();
    assert_eq!(added.kind, KeySlotKind::KeyFile);
    tenant
        .key_rotate(&word("first"), &word("second"))
        .await
        .unwrap();
    assert_helps(
        tenant
            .key_rotate(&word("first"), &word("third"))
            .await
            .unwrap_err(),
        "repository.wrong_key",
    );
    assert_helps(
        open(word("first")).await.unwrap_err(),
        "repository.wrong_key",
    );
    for unlock in [word("second"), Unlock::KeyFile(file.clone())] {
        let tenant = open(unlock).await.unwrap();
        assert_reads(&tenant, id, &[("x", &bytes)]).await;
        assert_eq!(tenant.fingerprint_key(), fingerprint_key);
    }
    tenant.key_remove(&added.id).await.unwrap();
    assert_helps(
        open(Unlock::KeyFile(file.clone())).await.unwrap_err(),
        "repository.wrong_key",
    );
    assert_helps(
        tenant.key_remove(&added.id).await.unwrap_err(),
        "repository.no_such_key",
    );
    std::fs::write(&file, "fettler-key-1 zz").unwrap();
    assert_helps(
        open(Unlock::KeyFile(file)).await.unwrap_err(),
        "repository.key_file",
    );
    assert_helps(
        open(Unlock::KeyFile("/nowhere/key".into()))
            .await
            .unwrap_err(),
        "repository.key_file",
    );

    // Crypto-erasure: with the slots, all is gone, and nothing is silently begun anew.
    let slots: Vec<_> = futures::TryStreamExt::try_collect::<Vec<_>>(store.list(None))
        .await
        .unwrap();
    for slot in slots
        .iter()
        .filter(|slot| slot.location.as_ref().contains("/keys/"))
    {
        store.delete(&slot.location).await.unwrap();
    }
    assert_helps(
        open(word("second")).await.unwrap_err(),
        "repository.keys_destroyed",
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn p6_two_tenants_have_nothing_in_common_but_the_place() {
    let repository = Repository::with_store(Arc::new(InMemory::new()), "x", options())
        .await
        .unwrap();
    let other: fettler_model::TenantId = "other".parse().unwrap();
    let one = repository
        .tenant(&shop(), &passphrase(), CreateKey::IfAbsent)
        .await
        .unwrap();
    let two = repository
        .tenant(&other, &passphrase(), CreateKey::IfAbsent)
        .await
        .unwrap();
    assert_ne!(one.fingerprint_key(), two.fingerprint_key());
    let id = new_id();
    back_up(&one, id, &[("x", b"bytes")]).await.unwrap();
    assert!(two.backups().await.unwrap().backups.is_empty());
    assert!(matches!(
        two.manifest(id).await,
        Err(RepositoryError::NoSuchBackup(_))
    ));
    assert_eq!(
        repository.tenants(&passphrase()).await.unwrap(),
        (vec![other, shop()], 0)
    );
    assert_eq!(
        repository.tenants(&word("wrong")).await.unwrap(),
        (vec![], 2)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_that_make_a_repository_and_a_tenant_at_once_agree() {
    for _round in 0..10 {
        let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        let opened = futures::future::join_all((0..6).map(|_| {
            let store = store.clone();
            tokio::spawn(async move { tenant_in(store).await.unwrap().fingerprint_key() })
        }))
        .await;
        let keys: std::collections::HashSet<_> = opened.into_iter().map(Result::unwrap).collect();
        assert_eq!(keys.len(), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rule_23_a_store_that_ignores_create_only_is_refused_when_it_is_opened() {
    let store = TestStore::in_memory();
    store.ignore_create_only();
    assert_helps(
        tenant_in(store).await.unwrap_err(),
        "repository.ignores_create_only",
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn places_that_are_none_are_told() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "x").unwrap();
    for (place, code) in [
        ("ftp://host/x", "repository.unknown_place"),
        ("s3://", "repository.unknown_place"),
        ("s3://user:pass@host/x", "repository.unknown_place"),
        ("", "repository.unknown_place"),
        ("file://relative", "repository.unknown_place"),
        (file.to_str().unwrap(), "repository.not_a_repository"),
        (
            folder.path().to_str().unwrap(),
            "repository.not_a_repository",
        ),
    ] {
        let error = Repository::open(place, options()).await.unwrap_err();
        assert!(!error.to_string().contains("pass@"), "{error}");
        assert_helps(error, code);
    }
    let absent = folder.path().join("nothing");
    let error = Repository::open(
        absent.to_str().unwrap(),
        OpenOptions {
            create: false,
            ..options()
        },
    )
    .await;
    assert_helps(error.unwrap_err(), "repository.missing");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_repository_is_left_alone() {
    let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    store
        .put(
            &"fettler-repository.json".into(),
            r#"{"format": 2, "new": true}"#.into(),
        )
        .await
        .unwrap();
    assert_helps(
        tenant_in(store).await.unwrap_err(),
        "repository.newer_format",
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_and_a_store_that_refuses_fail_the_backup_and_leave_nothing_listed() {
    for (kind, code) in [
        (ErrorKind::StorageFull, "repository.no_space"),
        (ErrorKind::PermissionDenied, "repository.store_refused"),
        (ErrorKind::ConnectionReset, "repository.store_unavailable"),
    ] {
        let store = TestStore::in_memory();
        let tenant = tenant_in(store.clone()).await.unwrap();
        let writer = begin(&tenant, BeginBackup::new(new_id(), "shop-db"))
            .await
            .unwrap();
        store.fail_writes(Some(kind));
        let bytes = rows(1, 3_000_000);
        let error = async {
            write_stream(&writer, "orders", Chunking::Content, &bytes).await?;
            writer.commit(body()).await
        }
        .await
        .unwrap_err();
        let transient = error.class() == ErrorClass::Transient;
        assert_eq!(transient, kind != ErrorKind::PermissionDenied);
        assert_helps(error, code);
        store.fail_writes(None);
        drop(writer);
        assert!(tenant.backups().await.unwrap().backups.is_empty());
        back_up(&tenant, new_id(), &[("orders", &bytes)])
            .await
            .unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_may_only_be_read_is_enough_to_read_and_verify() {
    let store = TestStore::in_memory();
    let tenant = tenant_in(store.clone()).await.unwrap();
    let (id, bytes) = (new_id(), rows(1, 100_000));
    back_up(&tenant, id, &[("x", &bytes)]).await.unwrap();
    store.fail_writes(Some(ErrorKind::PermissionDenied));
    let tenant = tenant_in(store).await.unwrap();
    assert_reads(&tenant, id, &[("x", &bytes)]).await;
    assert!(verify_everything(&tenant, id).await.is_ok());
    let error = tenant
        .begin_backup(BeginBackup::new(new_id(), "x"))
        .await
        .unwrap_err();
    assert_helps(error, "repository.store_refused");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_has_a_name_of_its_own_and_an_end() {
    let tenant = tenant_in(Arc::new(InMemory::new())).await.unwrap();
    let writer = begin(&tenant, BeginBackup::new(new_id(), "x"))
        .await
        .unwrap();
    let stream = writer.open_stream("a", Chunking::Content).unwrap();
    assert!(matches!(
        writer.open_stream("a", Chunking::Content),
        Err(RepositoryError::StreamTwice(_))
    ));
    assert!(matches!(
        writer.commit(body()).await,
        Err(RepositoryError::StreamOpen(_))
    ));
    drop(stream);
    write_stream(
        &writer,
        "a",
        Chunking::Content,
        b"after a first try was given up",
    )
    .await
    .unwrap();
    let manifest = writer.commit(body()).await.unwrap().manifest;
    assert_eq!(manifest.streams.len(), 1);
    let error = tenant.reader(&manifest).read("b").err().unwrap();
    assert_helps(error, "repository.no_such_stream");
}
