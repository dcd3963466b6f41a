//! Bad input and missing rights: each a clear error that says what to do.

use fettler_engine::{BackupOptions, DatabaseEngine, EngineError, PreflightLevel, RestoreOptions};
use fettler_engine_postgres::PostgresEngine;
use fettler_model::{ErrorClass, Problem};
use fettler_test_servers::{PgMajor, PostgresServer};

use crate::common::{Attempt, Memory, back_up, beside, engine, mismatches, restore, target};

fn problem(error: EngineError) -> Problem {
    error.into()
}

#[tokio::test]
async fn a_wrong_password_a_missing_database_and_a_silent_server_are_told_apart() {
    let server = PostgresServer::shared(PgMajor::V15);
    let engine = engine(PgMajor::V15);
    let wrong = server.url_as("postgres", "guess", "postgres");
    let found = problem(engine.identify(&target(&wrong)).await.unwrap_err());
    assert_eq!(found.code, "engine.login_refused");
    assert!(!found.what.contains("guess"));
    let found = problem(
        engine
            .identify(&target(&server.url("nowhere")))
            .await
            .unwrap_err(),
    );
    assert_eq!(
        (found.code.as_str(), found.class),
        ("engine.missing.database", ErrorClass::Permanent)
    );
    let nobody = format!(
        "postgres://a:b@127.0.0.1:{}/x",
        fettler_test_servers::free_port()
    );
    let found = problem(engine.identify(&target(&nobody)).await.unwrap_err());
    assert_eq!(
        (found.code.as_str(), found.class),
        ("engine.unreachable", ErrorClass::Transient)
    );
    let found = problem(
        engine
            .identify(&target("postgres://a@h/d?sslmode=perhaps"))
            .await
            .unwrap_err(),
    );
    assert!(found.what.contains("perhaps"), "{found:?}");
}

#[tokio::test]
async fn a_pg_dump_that_is_missing_or_too_old_is_named_before_anything_is_read() {
    let empty = tempfile::tempdir().unwrap();
    let nothing = PostgresEngine::default().with_program_folders(vec![empty.path().to_owned()]);
    let old = PostgresServer::shared(PgMajor::V15)
        .create_database("tools")
        .unwrap();
    let new = PostgresServer::shared(PgMajor::V18)
        .create_database("tools")
        .unwrap();
    for (engine, url, expected) in [
        (nothing, old.url(), "not found"),
        (engine(PgMajor::V15), new.url(), "too old"),
    ] {
        let items = engine
            .preflight(&target(&url), &BackupOptions::default())
            .await
            .unwrap();
        let item = items.iter().find(|item| item.subject == "pg_dump").unwrap();
        assert_eq!(item.level, PreflightLevel::Stops);
        assert!(
            item.message.contains(expected) && item.remedy.contains("FETTLER_PG_BIN"),
            "{item:?}"
        );
        let sink = Memory::new();
        let error = engine
            .backup(
                &Attempt::new().context,
                &target(&url),
                &BackupOptions::default(),
                &sink,
            )
            .await
            .unwrap_err();
        assert_eq!(problem(error).code, "engine.missing.pg_dump");
        assert_eq!(sink.names(), Vec::<String>::new());
    }
}

#[tokio::test]
async fn a_role_without_rights_is_told_the_grants_that_it_needs() {
    let server = PostgresServer::shared(PgMajor::V15);
    let source = server.create_database("rights").unwrap();
    let role = format!("weak_{}", std::process::id());
    source
        .psql(&format!(
            "CREATE ROLE {role} LOGIN PASSWORD 'p'; CREATE SCHEMA hidden; CREATE TABLE hidden.t (id int); CREATE TABLE open (id int);
             GRANT SELECT ON open TO {role}"
        ))
        .unwrap();
    let engine = engine(PgMajor::V15);
    let url = source.url_as(&role, "p");
    let back_up_now = async || {
        engine
            .backup(
                &Attempt::new().context,
                &target(&url),
                &BackupOptions::default(),
                &Memory::new(),
            )
            .await
    };
    let found = problem(back_up_now().await.unwrap_err());
    assert_eq!(found.code, "engine.missing.permission");
    assert!(
        found
            .remedy
            .contains(&format!("GRANT USAGE ON SCHEMA \"hidden\" TO \"{role}\"")),
        "{found:?}"
    );
    assert!(
        found.remedy.contains("GRANT SELECT ON \"hidden\".\"t\""),
        "{found:?}"
    );

    // Policies that would hide rows are an error, not fewer rows.
    source
        .psql(&format!(
            "GRANT USAGE ON SCHEMA hidden TO {role}; GRANT SELECT ON hidden.t TO {role}; ALTER TABLE hidden.t ENABLE ROW LEVEL SECURITY"
        ))
        .unwrap();
    let found = problem(back_up_now().await.unwrap_err());
    assert_eq!(found.code, "engine.missing.row_security");
    let items = engine
        .preflight(&target(&url), &BackupOptions::default())
        .await
        .unwrap();
    assert!(items.iter().any(|item| item.subject == "row-level security" && item.level == PreflightLevel::Stops));

    // What it was told is enough; roles come without passwords, and that is said.
    source.psql(&format!("ALTER ROLE {role} BYPASSRLS; SELECT lo_from_bytea(5, '\\x01'); GRANT SELECT ON LARGE OBJECT 5 TO {role}")).unwrap();
    let report = back_up_now().await.unwrap();
    assert!(
        report
            .warnings
            .iter()
            .any(|warning| warning.code == "postgres.role_passwords"),
        "{:?}",
        report.warnings
    );
    source
        .psql(&format!("DROP OWNED BY {role}; DROP ROLE {role}"))
        .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p7_a_database_that_is_not_empty_is_left_alone_unless_it_may_be_replaced() {
    let server = PostgresServer::shared(PgMajor::V18);
    let engine = engine(PgMajor::V18);
    let source = server.create_database("source").unwrap();
    source
        .psql("CREATE TABLE t (id int); INSERT INTO t VALUES (1)")
        .unwrap();
    let (backup, report) = back_up(&engine, &source.url()).await;
    let other = server.create_database("other").unwrap();
    other
        .psql("CREATE TABLE precious (id int); INSERT INTO precious VALUES (7)")
        .unwrap();
    let attempt = Attempt::new();
    let error = engine
        .restore(
            &attempt.context,
            &backup,
            &report,
            &target(&other.url()),
            &RestoreOptions::default(),
        )
        .await
        .unwrap_err();
    assert_eq!(problem(error).code, "engine.not_empty");
    assert_eq!(other.psql("SELECT id FROM precious").unwrap(), "7");

    let options = RestoreOptions {
        overwrite: true,
        ..RestoreOptions::default()
    };
    engine
        .restore(
            &attempt.context,
            &backup,
            &report,
            &target(&other.url()),
            &options,
        )
        .await
        .unwrap();
    assert_eq!(other.psql("SELECT id FROM t").unwrap(), "1");
    assert!(other.psql("SELECT FROM precious").is_err());
    let facts = engine
        .facts(&attempt.context, &target(&other.url()), &report)
        .await
        .unwrap();
    assert_eq!(mismatches(&report.objects, &facts), Vec::<String>::new());
    let left = server
        .psql(
            "postgres",
            "SELECT count(*) FROM pg_database WHERE datname LIKE '%_fettler_%'",
        )
        .unwrap();
    assert_eq!(left, "0");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn statements_that_fail_are_told_and_the_rest_is_restored() {
    let server = PostgresServer::shared(PgMajor::V15);
    let engine = engine(PgMajor::V15);
    let source = server.create_database("failing").unwrap();
    let role = format!("gone_{}", std::process::id());
    source
        .psql(&format!(
            "CREATE ROLE {role}; CREATE TABLE theirs (id int PRIMARY KEY); INSERT INTO theirs VALUES (1); ALTER TABLE theirs OWNER TO {role};
             CREATE FUNCTION odd(int) RETURNS bool LANGUAGE sql IMMUTABLE AS 'SELECT $1 < 2'; CREATE TABLE checked (id int CHECK (public.odd(id)));
             INSERT INTO checked VALUES (1);"
        ))
        .unwrap();
    // The check is broken behind the table's back, so that the rows do not pass it any more.
    source
        .psql("CREATE OR REPLACE FUNCTION odd(int) RETURNS bool LANGUAGE sql IMMUTABLE AS 'SELECT $1 > 2'")
        .unwrap();
    let (backup, report) = back_up(&engine, &source.url()).await;
    source
        .psql(&format!("DROP OWNED BY {role}; DROP ROLE {role}"))
        .unwrap();
    let copy = server.create_database("failed").unwrap();
    let restored = restore(&engine, &backup, &report, &copy.url()).await;
    let failed = restored.failed_statements.join("\n");
    assert!(
        failed.contains(&format!("role \"{role}\" does not exist")),
        "{failed}"
    );
    assert!(failed.contains("violates check constraint"), "{failed}");
    assert!(
        restored
            .warnings
            .iter()
            .any(|warning| warning.code == "postgres.roles_missing")
    );
    assert_eq!(copy.psql("SELECT id FROM theirs").unwrap(), "1");
    let facts = engine
        .facts(&Attempt::new().context, &target(&copy.url()), &report)
        .await
        .unwrap();
    let found = mismatches(&report.objects, &facts).join("\n");
    assert!(
        found.contains("public.checked") && found.contains("owner of TABLE public.theirs"),
        "{found}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_that_are_left_out_keep_their_definitions() {
    let server = PostgresServer::shared(PgMajor::V15);
    let engine = engine(PgMajor::V15);
    let source = server.create_database("exclude").unwrap();
    source
        .psql("CREATE TABLE kept (id int); CREATE TABLE log_a (id int); CREATE TABLE log_b (id int); INSERT INTO kept VALUES (1); INSERT INTO log_a VALUES (1)")
        .unwrap();
    let options = BackupOptions {
        exclude: vec!["public.log_*".to_owned(), "nothing_like_it".to_owned()],
        ..BackupOptions::default()
    };
    let sink = Memory::new();
    let report = engine
        .backup(
            &Attempt::new().context,
            &target(&source.url()),
            &options,
            &sink,
        )
        .await
        .unwrap();
    assert!(
        report
            .warnings
            .iter()
            .any(|warning| warning.message.contains("nothing_like_it"))
    );
    let backup = sink.seal();
    let url = beside(&source.url(), &format!("{}_copy", source.name()));
    restore(&engine, &backup, &report, &url).await;
    let copy = format!("{}_copy", source.name());
    assert_eq!(
        server
            .psql(
                &copy,
                "SELECT (SELECT count(*) FROM kept), (SELECT count(*) FROM log_a)"
            )
            .unwrap(),
        "1|0"
    );
    let facts = engine
        .facts(&Attempt::new().context, &target(&url), &report)
        .await
        .unwrap();
    assert_eq!(mismatches(&report.objects, &facts), Vec::<String>::new());
    server
        .psql("postgres", &format!("DROP DATABASE \"{copy}\""))
        .unwrap();
}
