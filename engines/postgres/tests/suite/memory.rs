//! How much memory a server needs while rows are brought to it.

use std::{fs, future::Future, sync::Arc, time::Duration};

use fettler_engine::{DatabaseEngine, EngineError, RestoreOptions};
use fettler_test_servers::{PgMajor, PostgresOptions, PostgresServer};

use crate::common::{
    Attempt, Watcher, back_up, beside, close, engine, engine_of_both, mismatches, open_sandbox,
    restore,
};

/// Memory of its own that the largest of the processes below this one holds, bytes.
fn largest_process(postmaster: u64) -> u64 {
    let children = fs::read_to_string(format!("/proc/{postmaster}/task/{postmaster}/children"));
    children
        .unwrap_or_default()
        .split_whitespace()
        .filter_map(|process| process.parse().ok())
        .map(|process: u64| own_memory(process).max(largest_process(process)))
        .max()
        .unwrap_or(0)
}

fn own_memory(process: u64) -> u64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("RssAnon:"));
    line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok())
        .map_or(0, |kilobytes: u64| kilobytes * 1024)
}

/// Waits for something, and says how much memory the largest process below this one held meanwhile.
async fn watched<T>(postmaster: u64, what: impl Future<Output = T>) -> (T, u64) {
    let mut what = std::pin::pin!(what);
    let mut peak = 0;
    loop {
        let look = tokio::time::sleep(Duration::from_millis(2));
        tokio::select! {
            done = &mut what => return (done, peak),
            () = look => peak = peak.max(largest_process(postmaster)),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_gets_large_rows_gathers_few_of_them() {
    const ROW_BYTES: u64 = 4_000_000;
    let server = PostgresServer::start(PgMajor::V15, PostgresOptions::new()).unwrap();
    server
        .psql(
            "postgres",
            &format!(
                "CREATE TABLE large (id int, v bytea); ALTER TABLE large ALTER v SET STORAGE EXTERNAL;
                 INSERT INTO large SELECT n, decode(repeat(md5(n::text), {ROW_BYTES} / 16), 'hex') FROM generate_series(1, 60) n"
            ),
        )
        .unwrap();
    let url = server.url("postgres");
    let engine = engine(PgMajor::V15);
    let (backup, report) = back_up(&engine, &url).await;
    let object = &report.objects[0];
    assert_eq!(object.format.as_deref(), Some("binary"));
    let copy = beside(&url, "copy");
    let postmaster = server.pid().unwrap().into();
    let (restored, peak) = watched(postmaster, restore(&engine, &backup, &report, &copy)).await;
    assert_eq!(restored.rows, 60);
    assert!(peak > ROW_BYTES, "nothing was seen of it");
    // What is gathered (8 MB and a row), once more while it is written, and a row in the making.
    assert!(peak < 40_000_000, "{peak} bytes");
    assert_eq!(
        server
            .psql("copy", "SELECT count(*), sum(id) FROM large")
            .unwrap()
            .trim(),
        "60|1830"
    );
}

/// Values of more than 64 MB beside small ones and none, in all the forms that pass in pieces, and one row with two of them.
const LARGE_VALUES: &str = "
    CREATE DOMAIN letter AS text CHECK (length(VALUE) <> 3);
    CREATE FUNCTION noise(seed int, megabytes int) RETURNS text LANGUAGE sql AS
        $$ SELECT string_agg(md5(seed || 'x' || n), '') FROM generate_series(1, megabytes * 32768) n $$;
    CREATE TABLE \"Large values\" (
        id int GENERATED ALWAYS AS IDENTITY, name varchar(20), note text NOT NULL, letter letter, content bytea, CHECK (length(note) > 0));
    INSERT INTO \"Large values\" (name, note, letter, content) SELECT 'small ' || n, 'n' || n, NULL, '\\x00ff' FROM generate_series(1, 2000) n;
    INSERT INTO \"Large values\" (name, note) SELECT 'a text', noise(1, 66);
    INSERT INTO \"Large values\" (note) VALUES ('between');
    INSERT INTO \"Large values\" (note, letter, content) SELECT 'two', noise(2, 70), convert_to(noise(3, 66), 'UTF8');
    INSERT INTO \"Large values\" (note, content) SELECT 'not in pieces', convert_to(noise(4, 10), 'UTF8');
    INSERT INTO \"Large values\" (name, note, content) VALUES (NULL, 'the last', NULL);
    -- A column that is computed costs the server one more copy of the row.
    CREATE TABLE computed (note text, doubled int GENERATED ALWAYS AS (length(note) * 2) STORED);
    INSERT INTO computed SELECT noise(5, 65);
    CREATE INDEX ON \"Large values\" (md5(note));
    DROP FUNCTION noise";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p4_a_proof_of_large_values_needs_little_more_than_twice_the_largest_row() {
    const LARGEST_ROW_BYTES: u64 = 136 * 1024 * 1024;
    for major in PgMajor::ALL {
        let server = PostgresServer::start(major, PostgresOptions::new()).unwrap();
        server.psql("postgres", LARGE_VALUES).unwrap();
        let engine = engine_of_both();
        let (backup, report) = back_up(&engine, &server.url("postgres")).await;
        let attempt = Attempt::new();
        let sandbox = open_sandbox(&engine, &attempt, &report).await;
        let postmaster = sandbox.artefacts[0].data["process"][0].as_u64().unwrap();
        let options = RestoreOptions::default();
        let copying = engine.restore(
            &attempt.context,
            &backup,
            &report,
            &sandbox.target,
            &options,
        );
        let (restored, restoring) = watched(postmaster, copying).await;
        let restored = restored.unwrap();
        assert!(
            restored.failed_statements.is_empty(),
            "{:?}",
            restored.failed_statements
        );
        assert_eq!(restored.rows, 2006);
        let reading = engine.facts(&attempt.context, &sandbox.target, &report);
        let (copy, comparing) = watched(postmaster, reading).await;
        let differences = mismatches(&report.objects, &copy.unwrap());
        close(&engine, &sandbox).await;
        assert!(differences.is_empty(), "{major:?}: {differences:#?}");
        assert!(restoring > LARGEST_ROW_BYTES, "nothing was seen of it");
        assert!(
            restoring < 2 * LARGEST_ROW_BYTES + 32 * 1024 * 1024,
            "{major:?}: {restoring} bytes to take the rows in"
        );
        assert!(
            comparing < 64 * 1024 * 1024,
            "{major:?}: {comparing} bytes to read them back"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_breaks_off_within_a_large_value_fails_the_restore() {
    let server = PostgresServer::start(PgMajor::V15, PostgresOptions::new()).unwrap();
    server
        .psql(
            "postgres",
            "CREATE TABLE large (id int, v text); INSERT INTO large SELECT 1, repeat('0123456789abcdef', 66 * 65536)",
        )
        .unwrap();
    let engine = engine_of_both();
    let (mut backup, report) = back_up(&engine, &server.url("postgres")).await;
    backup.on_read = Some(Watcher(Arc::new(|_, bytes| {
        if bytes < 30 * 1024 * 1024 {
            return Ok(());
        }
        Err(EngineError::Database {
            what: "the store went away".to_owned(),
            transient: true,
        })
    })));
    let attempt = Attempt::new();
    let sandbox = open_sandbox(&engine, &attempt, &report).await;
    let options = RestoreOptions::default();
    let restoring = engine.restore(
        &attempt.context,
        &backup,
        &report,
        &sandbox.target,
        &options,
    );
    let failed = tokio::time::timeout(Duration::from_secs(120), restoring)
        .await
        .expect("it ends")
        .unwrap_err();
    close(&engine, &sandbox).await;
    assert!(
        failed.to_string().contains("the store went away"),
        "{failed}"
    );
}
