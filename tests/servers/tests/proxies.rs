//! The proxies count what passes and fail as they are told, before the real servers that they are made for.

use std::sync::Arc;
use std::time::{Duration, Instant};

use fettler_test_servers::{
    MinioServer, PgMajor, PostgresServer, S3Action, S3Proxy, TcpProxy, wait_until,
};
use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::path::Path;
use object_store::{MultipartUpload, ObjectStore, ObjectStoreExt, PutMode, RetryConfig};

fn client(server: &MinioServer, endpoint: &str, retries: usize) -> AmazonS3 {
    let settings = server.env_via(endpoint).into_iter();
    let builder = settings.fold(AmazonS3Builder::new(), |builder, (name, value)| {
        let key = name
            .to_ascii_lowercase()
            .parse()
            .expect("object_store knows the variable");
        builder.with_config(key, value)
    });
    let retry = RetryConfig {
        max_retries: retries,
        ..RetryConfig::default()
    };
    builder
        .with_bucket_name("backups")
        .with_retry(retry)
        .build()
        .expect("the settings are complete")
}

fn store() -> (MinioServer, S3Proxy) {
    let server = MinioServer::start().expect("MinIO starts");
    server.create_bucket("backups").expect("the bucket is made");
    let proxy = S3Proxy::start(server.port()).expect("the proxy starts");
    (server, proxy)
}

#[tokio::test]
async fn requests_are_counted_by_method_key_and_bytes_and_arrive_unchanged() {
    let (server, proxy) = store();
    let through = client(&server, &proxy.url(), 0);
    let body: Vec<u8> = (0..3_000_000_u32).map(|n| (n % 251) as u8).collect();
    for key in [
        "packs/aa/one",
        "packs/bb/two",
        "manifests/three",
        "packs/a name+with%signs",
    ] {
        through
            .put(&Path::from(key), body.clone().into())
            .await
            .unwrap();
        assert_eq!(
            through
                .get(&Path::from(key))
                .await
                .unwrap()
                .bytes()
                .await
                .unwrap(),
            body
        );
        assert_eq!(
            client(&server, &server.url(), 0)
                .get(&Path::from(key))
                .await
                .unwrap()
                .bytes()
                .await
                .unwrap(),
            body
        );
    }
    assert!(through.head(&Path::from("packs/missing")).await.is_err());
    through
        .delete(&Path::from("manifests/three"))
        .await
        .unwrap();
    let listed = through
        .list_with_delimiter(Some(&Path::from("packs")))
        .await
        .unwrap();
    assert_eq!(listed.common_prefixes.len(), 2);
    assert_eq!(proxy.count("PUT", "packs/"), 3);
    assert_eq!(proxy.count("PUT", "manifests/"), 1);
    assert_eq!(proxy.count("GET", "packs/"), 3);
    assert_eq!(proxy.count("HEAD", ""), 1);
    assert_eq!(proxy.bytes_uploaded("packs/"), 9_000_000);
    let missing = proxy
        .requests()
        .into_iter()
        .find(|request| request.method == "HEAD")
        .unwrap();
    assert_eq!(
        (
            missing.bucket.as_str(),
            missing.key.as_str(),
            missing.status
        ),
        ("backups", "packs/missing", Some(404))
    );
}

#[tokio::test]
async fn an_upload_in_parts_passes() {
    let (server, proxy) = store();
    let through = client(&server, &proxy.url(), 0);
    let path = Path::from("packs/large");
    let mut upload = through.put_multipart(&path).await.unwrap();
    for part in 0..2_u8 {
        upload.put_part(vec![part; 5 << 20].into()).await.unwrap();
    }
    upload.complete().await.unwrap();
    assert_eq!(proxy.bytes_uploaded("packs/large"), 10 << 20);
    let whole = through.get(&path).await.unwrap().bytes().await.unwrap();
    assert!(
        whole[..5 << 20].iter().all(|&byte| byte == 0)
            && whole[5 << 20..].iter().all(|&byte| byte == 1)
    );
}

#[tokio::test]
async fn a_request_that_is_answered_with_an_error_does_not_reach_the_store_and_is_tried_again() {
    let (server, proxy) = store();
    proxy.every(2, S3Action::Answer(503));
    let through = client(&server, &proxy.url(), 3);
    for number in 0..4 {
        through
            .put(
                &Path::from(format!("packs/{number}")),
                vec![1; 100_000].into(),
            )
            .await
            .unwrap();
    }
    let statuses: Vec<_> = proxy
        .requests()
        .iter()
        .map(|request| request.status.unwrap())
        .collect();
    assert_eq!(statuses, [200, 503, 200, 503, 200, 503, 200]);
    proxy.decide(|request| {
        if request.method == "PUT" {
            S3Action::Answer(403)
        } else {
            S3Action::Forward
        }
    });
    assert!(
        through
            .put(&Path::from("packs/refused"), "x".into())
            .await
            .is_err()
    );
    proxy.forward_all();
    assert!(through.get(&Path::from("packs/refused")).await.is_err());
}

#[tokio::test]
async fn a_cut_before_leaves_nothing_and_a_cut_after_leaves_the_object() {
    let (server, proxy) = store();
    let through = client(&server, &proxy.url(), 0);
    let direct = client(&server, &server.url(), 0);
    for (action, key, is_there) in [
        (S3Action::CutBefore, "before", false),
        (S3Action::CutAfter, "after", true),
    ] {
        proxy.decide(move |_| action);
        let path = Path::from(key);
        assert!(
            through
                .put_opts(&path, "body".into(), PutMode::Create.into())
                .await
                .is_err()
        );
        assert_eq!(direct.get(&path).await.is_ok(), is_there, "{key}");
        assert_eq!(proxy.requests().last().unwrap().status, None);
    }
    proxy.forward_all();
    proxy.refuse(true);
    proxy.cut();
    assert!(through.get(&Path::from("after")).await.is_err());
    proxy.refuse(false);
    assert!(through.get(&Path::from("after")).await.is_ok());
}

fn psql_via(
    server: &PostgresServer,
    proxy: &TcpProxy,
    sql: &str,
) -> fettler_test_servers::Result<String> {
    server.run(
        "psql",
        "postgres",
        &[
            "-X",
            "-A",
            "-t",
            "-d",
            &server.url_via(proxy.port(), "postgres"),
            "-c",
            sql,
        ],
    )
}

#[test]
fn a_tcp_proxy_passes_and_counts_bytes() {
    let server = PostgresServer::shared(PgMajor::V18);
    let proxy = TcpProxy::start(server.port()).unwrap();
    let text = psql_via(server, &proxy, "SELECT repeat('x', 1000000)").unwrap();
    assert_eq!(text.trim().len(), 1_000_000);
    assert_eq!(proxy.connections(), 1);
    assert!(proxy.bytes_to_client() > 1_000_000);
    assert!(
        (100..10_000).contains(&proxy.bytes_to_server()),
        "{}",
        proxy.bytes_to_server()
    );
}

#[test]
fn a_connection_is_cut_after_the_bytes_that_were_asked_for() {
    let server = PostgresServer::shared(PgMajor::V18);
    let proxy = TcpProxy::start(server.port()).unwrap();
    proxy.cut_after_bytes_to_client(500_000);
    let error = psql_via(server, &proxy, "SELECT repeat('x', 10000000)").unwrap_err();
    assert!(
        error.to_string().contains("server closed the connection"),
        "{error}"
    );
    assert_eq!(proxy.bytes_to_client(), 500_000);
    // Once: the next connection passes.
    assert!(psql_via(server, &proxy, "SELECT 1").is_ok());
    proxy.refuse(true);
    assert!(psql_via(server, &proxy, "SELECT 1").is_err());
}

#[test]
fn a_stalled_connection_stays_open_and_goes_on() {
    let server = PostgresServer::shared(PgMajor::V18);
    let proxy = Arc::new(TcpProxy::start(server.port()).unwrap());
    proxy.stall(true);
    let asking = std::thread::spawn({
        let proxy = Arc::clone(&proxy);
        move || psql_via(server, &proxy, "SELECT 42")
    });
    wait_until("the connection", Duration::from_secs(20), || {
        proxy.connections() == 1
    })
    .unwrap();
    assert!(!asking.is_finished());
    assert_eq!(proxy.bytes_to_client(), 0);
    proxy.stall(false);
    assert_eq!(asking.join().unwrap().unwrap().trim(), "42");
}

#[test]
fn a_throttled_connection_takes_as_long_as_its_rate_says() {
    let server = PostgresServer::shared(PgMajor::V18);
    let proxy = TcpProxy::start(server.port()).unwrap();
    proxy.throttle(Some(1_000_000));
    let started = Instant::now();
    psql_via(server, &proxy, "SELECT repeat('x', 1000000)").unwrap();
    assert!(
        started.elapsed() >= Duration::from_secs(1),
        "{:?}",
        started.elapsed()
    );
}
