//! Logging in the ways that libpq knows: TLS modes, sockets, password files.

use std::{fs, os::unix::fs::PermissionsExt};

use fettler_engine::{BackupOptions, DatabaseEngine};
use fettler_model::{Problem, Secret};
use fettler_test_servers::{PgMajor, PostgresOptions, PostgresServer};

use crate::common::{Attempt, Memory, engine, target};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_sslmode_means_what_libpq_means() {
    let server = PostgresServer::start(PgMajor::V15, PostgresOptions::new().tls()).unwrap();
    let certificate = server.certificate().unwrap();
    let engine = engine(PgMajor::V15);
    let base = server.url("postgres");
    let other_name = base.replace("127.0.0.1", "127.0.0.2");
    let root = certificate.display();
    for (query, works) in [
        ("sslmode=disable".to_owned(), true),
        ("sslmode=prefer".to_owned(), true),
        ("sslmode=require".to_owned(), true),
        ("sslmode=require&channel_binding=require".to_owned(), true),
        (format!("sslmode=verify-ca&sslrootcert={root}"), true),
        (format!("sslmode=verify-full&sslrootcert={root}"), true),
        // The machine does not trust a certificate that signs itself.
        ("sslmode=verify-full".to_owned(), false),
        (
            "sslmode=verify-ca&sslrootcert=/nowhere.pem".to_owned(),
            false,
        ),
    ] {
        let answer = engine.identify(&target(&format!("{base}?{query}"))).await;
        assert_eq!(answer.is_ok(), works, "{query}: {answer:?}");
        if let Err(error) = answer {
            assert_eq!(Problem::from(error).code, "engine.missing.tls");
        }
    }
    // The certificate does not name this address.
    let answer = engine
        .identify(&target(&format!(
            "{other_name}?sslmode=verify-full&sslrootcert={root}"
        )))
        .await;
    assert!(answer.is_err());

    // Rows and pg_dump's own session go through TLS as well.
    server
        .psql("postgres", "CREATE TABLE t (v text); INSERT INTO t SELECT repeat('x', 1000) FROM generate_series(1, 5000)")
        .unwrap();
    let url = format!("{base}?sslmode=verify-full&sslrootcert={root}");
    let report = engine
        .backup(
            &Attempt::new().context,
            &target(&url),
            &BackupOptions::default(),
            &Memory::new(),
        )
        .await
        .unwrap();
    assert!(
        report
            .objects
            .iter()
            .any(|object| object.independent_rows == Some(5000))
    );
}

#[tokio::test]
async fn tls_that_the_server_does_not_have_is_an_error_only_where_it_is_required() {
    let server = PostgresServer::shared(PgMajor::V18);
    let engine = engine(PgMajor::V18);
    let base = server.url("postgres");
    assert!(
        engine
            .identify(&target(&format!("{base}?sslmode=prefer")))
            .await
            .is_ok()
    );
    let error = engine
        .identify(&target(&format!("{base}?sslmode=require")))
        .await
        .unwrap_err();
    assert_eq!(Problem::from(error).code, "engine.missing.tls");
}

#[tokio::test]
async fn sockets_and_password_files_work_and_two_ways_lead_to_one_identity() {
    let server = PostgresServer::shared(PgMajor::V15);
    let engine = engine(PgMajor::V15);
    let by_network = engine
        .identify(&target(&server.url("postgres")))
        .await
        .unwrap();
    let folder = server
        .socket_url("postgres")
        .rsplit_once("host=")
        .unwrap()
        .1
        .split('&')
        .next()
        .unwrap()
        .to_owned();
    let mut place = target(&format!(
        "postgres://{}@{}:{}/postgres",
        server.user(),
        folder.replace('/', "%2F"),
        server.port()
    ));
    place.password = Some(Secret::new(server.password().to_owned()));
    let by_socket = engine.identify(&place).await.unwrap();
    assert_eq!(by_network.key, by_socket.key);
    assert_eq!(by_network.lineage, by_socket.lineage);
    assert!(by_network.version.starts_with("15."));
    assert!(by_network.estimated_bytes > 1_000_000);

    let folder = tempfile::tempdir().unwrap();
    let passfile = folder.path().join("pass");
    fs::write(
        &passfile,
        format!("*:*:*:{}:{}\n", server.user(), server.password()),
    )
    .unwrap();
    fs::set_permissions(&passfile, fs::Permissions::from_mode(0o600)).unwrap();
    let url = format!(
        "postgres://{}@127.0.0.1:{}/postgres?passfile={}",
        server.user(),
        server.port(),
        passfile.display()
    );
    assert_eq!(
        engine.identify(&target(&url)).await.unwrap().key,
        by_network.key
    );
    fs::remove_file(&passfile).unwrap();
    let error = engine.identify(&target(&url)).await.unwrap_err();
    assert_eq!(Problem::from(error).code, "engine.login_refused");
}
