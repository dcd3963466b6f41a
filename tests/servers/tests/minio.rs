//! MinIO starts, keeps what a client stored over `kill -9`, and creates only if absent.

use fettler_test_servers::{MinioServer, ServerError};
use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutMode};

fn client(server: &MinioServer, bucket: &str) -> AmazonS3 {
    let builder =
        server
            .env()
            .into_iter()
            .fold(AmazonS3Builder::new(), |builder, (name, value)| match name
                .to_ascii_lowercase()
                .parse()
            {
                Ok(key) => builder.with_config(key, value),
                Err(error) => panic!("object_store does not know {name}: {error}"),
            });
    builder
        .with_bucket_name(bucket)
        .build()
        .expect("the settings are complete")
}

#[tokio::test]
async fn objects_survive_kill_9_and_are_created_only_if_absent() {
    let mut server = MinioServer::start().unwrap();
    server.create_bucket("backups").unwrap();
    let store = client(&server, "backups");
    let path = Path::from("some/where/a pack");
    store.put(&path, "first".into()).await.unwrap();
    let again = store
        .put_opts(&path, "second".into(), PutMode::Create.into())
        .await
        .unwrap_err();
    assert!(
        matches!(again, object_store::Error::AlreadyExists { .. }),
        "{again}"
    );
    let port = server.port();
    server.kill_9().unwrap();
    assert_eq!(server.pid(), None);
    server.start_again().unwrap();
    assert_eq!(server.port(), port);
    assert_eq!(
        store.get(&path).await.unwrap().bytes().await.unwrap(),
        "first"
    );
    server.restart().unwrap();
    store.delete(&path).await.unwrap();
    assert!(matches!(
        store.get(&path).await,
        Err(object_store::Error::NotFound { .. })
    ));
}

#[tokio::test]
async fn a_bucket_that_nobody_made_does_not_exist() {
    let server = MinioServer::start().unwrap();
    assert!(
        client(&server, "nowhere")
            .put(&Path::from("a"), "b".into())
            .await
            .is_err()
    );
}

#[test]
fn a_name_that_is_no_bucket_is_refused_with_the_rule() {
    let server = MinioServer::start().unwrap();
    for name in ["ab", "Upper", "-front", "a/b"] {
        assert!(
            matches!(server.create_bucket(name), Err(ServerError::Unsupported(_))),
            "{name}"
        );
    }
}

#[test]
fn a_dropped_server_is_gone_with_its_folder() {
    let server = MinioServer::start().unwrap();
    let (pid, folder) = (server.pid().unwrap(), server.data_dir());
    assert!(folder.exists());
    drop(server);
    assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists() && !folder.exists());
}
