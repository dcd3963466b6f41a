//! The whole path on each kind of store, by one suite (`common/suite.rs`): what is written is read back, a
//! second backup stores what is new only, and everything is verified. S3 has a test file of its own.

mod common;
#[path = "common/suite.rs"]
mod suite;

use std::sync::Arc;

use common::*;
use fettler_repository::{
    BeginBackup, CreateKey, Depth, Parent, Repository, RepositoryError, Unlock, create_key_file,
};
use tokio_util::sync::CancellationToken;

#[tokio::test(flavor = "multi_thread")]
async fn the_suite_passes_in_memory() {
    for number in 0..suite::CASES {
        let store = Arc::new(object_store::memory::InMemory::new());
        suite::case(number, async || tenant_in(store.clone()).await.unwrap()).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_suite_passes_in_a_local_folder() {
    let folder = tempfile::tempdir().unwrap();
    for number in 0..suite::CASES {
        let place = folder.path().join(number.to_string());
        suite::case(number, async || {
            let repository = Repository::open(place.to_str().unwrap(), options())
                .await
                .unwrap();
            repository
                .tenant(&shop(), &passphrase(), CreateKey::IfAbsent)
                .await
                .unwrap()
        })
        .await;
    }
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
