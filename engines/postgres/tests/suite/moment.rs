//! A backup is one consistent moment whatever happens meanwhile, or it fails clearly (P4).

use std::{
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use fettler_engine::{BackupOptions, DatabaseEngine};
use fettler_test_servers::{PgMajor, PostgresServer, wait_until};

use crate::common::{Attempt, Memory, Watcher, engine, restore, target};

/// Somebody who waits to change a table stands in the way of every new lock: the session that has one already
/// reads the table then.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p4_a_table_that_somebody_waits_to_change_is_read_nevertheless() {
    let server = PostgresServer::shared(PgMajor::V15);
    let source = server.create_database("waiting").unwrap();
    source
        .psql(
            "CREATE TABLE large (id int, v text); INSERT INTO large SELECT n, repeat('x', 500) FROM generate_series(1, 20000) n;
             CREATE TABLE changed (id int); INSERT INTO changed SELECT generate_series(1, 1000)",
        )
        .unwrap();
    let mut sink = Memory::new();
    let (name, begun) = (source.name().to_owned(), AtomicBool::new(false));
    let waiting = Arc::new(std::sync::Mutex::new(None));
    let kept = Arc::clone(&waiting);
    sink.on_write = Some(Watcher(Arc::new(move |stream, _| {
        if stream.starts_with("table/") && !begun.swap(true, Ordering::SeqCst) {
            let child = server
                .command("psql", &name)
                .unwrap()
                .args([
                    "-q",
                    "-c",
                    "ALTER TABLE changed ADD COLUMN more int; TRUNCATE changed",
                ])
                .spawn()
                .unwrap();
            *kept.lock().unwrap() = Some(child);
            wait_until(
                "the change to wait for its lock",
                std::time::Duration::from_secs(30),
                || {
                    server
                        .psql(&name, "SELECT count(*) FROM pg_locks WHERE NOT granted AND database = (SELECT oid FROM pg_database WHERE datname = current_database())")
                        .unwrap()
                        == "1"
                },
            )
            .unwrap();
        }
        Ok(())
    })));
    let mut attempt = Attempt::new();
    // The large table comes first, so that the other one's lock is asked for while the change waits.
    attempt.context.parallel = 1;
    let report = engine(PgMajor::V15)
        .backup(
            &attempt.context,
            &target(&source.url()),
            &BackupOptions::default(),
            &sink,
        )
        .await
        .unwrap();
    let object = report
        .objects
        .iter()
        .find(|object| object.name == "public.changed")
        .unwrap();
    assert_eq!(object.fingerprint.unwrap().rows, 1000);
    assert_eq!(object.independent_rows, Some(1000));
    let mut child = waiting.lock().unwrap().take().unwrap();
    assert!(child.wait().unwrap().success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p4_while_rows_are_written_truncated_and_altered_the_copy_is_one_moment() {
    for major in PgMajor::ALL {
        let server = PostgresServer::shared(major);
        let source = server.create_database("busy").unwrap();
        server
            .run("pgbench", source.name(), &["-i", "-q", "-s", "2"])
            .unwrap();
        source
            .psql("CREATE TABLE twin_a (id int); CREATE TABLE twin_b (id int); INSERT INTO twin_a SELECT generate_series(1, 5000); INSERT INTO twin_b SELECT generate_series(1, 5000)")
            .unwrap();
        let mut bench = server
            .command("pgbench", source.name())
            .unwrap()
            .args(["-n", "-c", "2", "-T", "600"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, name) = (Arc::clone(&stop), source.name().to_owned());
        let changes = std::thread::spawn(move || {
            let mut number = 0;
            while !stopped.load(Ordering::Relaxed) {
                number += 1;
                // Both tables always hold the same rows.
                server
                    .psql(
                        &name,
                        &format!(
                            "BEGIN; TRUNCATE twin_a, twin_b; INSERT INTO twin_a SELECT generate_series(1, 5000 + {number}); INSERT INTO twin_b SELECT generate_series(1, 5000 + {number}); COMMIT;
                             ALTER TABLE twin_a ADD COLUMN extra_{number} int DEFAULT random() * 10; ALTER TABLE twin_a DROP COLUMN extra_{number};
                             SELECT pg_sleep(0.4)"
                        ),
                    )
                    .unwrap();
            }
            number
        });
        let engine = engine(major);
        let mut consistent = 0;
        let mut refused = Vec::new();
        while consistent < 3 && refused.len() < 20 {
            let sink = Memory::new();
            let answer = engine
                .backup(
                    &Attempt::new().context,
                    &target(&source.url()),
                    &BackupOptions::default(),
                    &sink,
                )
                .await;
            let report = match answer {
                Ok(report) => report,
                Err(error) => {
                    println!("refused: {error}");
                    refused.push(error.to_string());
                    continue;
                }
            };
            let copy = server.create_database("quiet").unwrap();
            let restored = restore(&engine, &sink.seal(), &report, &copy.url()).await;
            assert_eq!(restored.failed_statements, Vec::<String>::new());
            let balances = copy
                .psql(
                    "SELECT (SELECT sum(abalance) FROM pgbench_accounts) = (SELECT COALESCE(sum(delta), 0) FROM pgbench_history),
                        (SELECT sum(bbalance) FROM pgbench_branches) = (SELECT sum(tbalance) FROM pgbench_tellers),
                        (SELECT sum(bbalance) FROM pgbench_branches) = (SELECT COALESCE(sum(delta), 0) FROM pgbench_history),
                        (SELECT count(*) FROM twin_a) = (SELECT count(*) FROM twin_b), (SELECT count(*) > 0 FROM twin_a)",
                )
                .unwrap();
            assert_eq!(balances, "t|t|t|t|t");
            for object in &report.objects {
                if let Some(fingerprint) = object.fingerprint {
                    assert_eq!(
                        object.independent_rows,
                        Some(fingerprint.rows),
                        "{}",
                        object.name
                    );
                }
            }
            consistent += 1;
        }
        stop.store(true, Ordering::Relaxed);
        bench.kill().unwrap();
        bench.wait().unwrap();
        assert!(changes.join().unwrap() > 0);
        assert_eq!(consistent, 3, "{refused:?}");
        for what in refused {
            assert!(what.contains("lock") || what.contains("change"), "{what}");
        }
    }
}
