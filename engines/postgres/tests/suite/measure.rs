//! How fast rows go out and come back, and in how much memory: into nothing and from memory, so that only the engine
//! and the server are measured. Run by hand, in release mode:
//! `cargo test --release -p fettler-engine-postgres --test suite measure -- --ignored --nocapture`.

use std::time::Instant;

use async_trait::async_trait;
use bytes::Bytes;
use fettler_engine::{
    BackupOptions, Cut, DatabaseEngine, EngineError, StreamEnd, StreamFacts, StreamSink,
    StreamWriter,
};
use fettler_engine_postgres::PostgresEngine;
use fettler_test_servers::{PgMajor, PostgresOptions, PostgresServer};

use crate::common::{Attempt, Memory, beside, mismatches, restore, target};

/// Takes streams and forgets them.
struct Nothing;

struct Counted {
    name: String,
    bytes: u64,
}

#[async_trait]
impl StreamSink for Nothing {
    async fn open(&self, name: &str, _: Cut) -> Result<Box<dyn StreamWriter>, EngineError> {
        Ok(Box::new(Counted {
            name: name.to_owned(),
            bytes: 0,
        }))
    }

    async fn take_over(&self, _: &str, _: &str) -> Result<Option<StreamFacts>, EngineError> {
        Ok(None)
    }
}

#[async_trait]
impl StreamWriter for Counted {
    async fn write(&mut self, bytes: Bytes) -> Result<(), EngineError> {
        self.bytes += bytes.len() as u64;
        Ok(())
    }

    async fn finish(self: Box<Self>, end: StreamEnd) -> Result<StreamFacts, EngineError> {
        Ok(StreamFacts {
            name: self.name,
            bytes: self.bytes,
            rows: end.rows,
        })
    }
}

fn peak_memory_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmHWM:"))
        .unwrap();
    line.split_whitespace()
        .nth(1)
        .unwrap()
        .parse::<u64>()
        .unwrap()
        * 1024
}

/// Processor time that this process has used by itself and in the kernel, in seconds.
fn own_seconds() -> (f64, f64) {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat
        .rsplit_once(')')
        .unwrap()
        .1
        .split_whitespace()
        .collect();
    let seconds = |at: usize| fields[at].parse::<f64>().unwrap() / 100.0;
    (seconds(11), seconds(12))
}

fn make(megabytes: u64) -> PostgresServer {
    let options = PostgresOptions::new()
        .setting("shared_buffers", "1GB")
        .setting("max_wal_size", "8GB");
    let server = PostgresServer::start(PgMajor::V15, options).unwrap();
    server
        .psql(
            "postgres",
            &format!(
                "CREATE DATABASE measured;
                 \\c measured
                 CREATE TABLE events (id bigint PRIMARY KEY, at timestamptz, customer int, amount numeric(12, 2), kind text, payload jsonb);
                 INSERT INTO events SELECT n, '2026-01-01'::timestamptz + n * interval '1 s', n % 50000, (n % 100000) / 100.0,
                    (ARRAY['order','refund','visit','login'])[1 + n % 4], jsonb_build_object('session', md5(n::text), 'n', n, 'ok', n % 3 = 0)
                    FROM generate_series(1, {}) n;
                 CREATE INDEX ON events (customer);
                 VACUUM ANALYZE events; CHECKPOINT",
                megabytes * 5000
            ),
        )
        .unwrap();
    server
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement, run by hand"]
async fn measure_out_and_back() {
    let megabytes: u64 =
        std::env::var("FETTLER_MEASURE_MB").map_or(645, |text| text.parse().unwrap());
    let server = make(megabytes);
    let url = server.url("measured");
    let engine =
        PostgresEngine::default().with_program_folders(vec![PgMajor::V15.bin_dir().unwrap()]);
    for round in 0..3 {
        let mut attempt = Attempt::new();
        attempt.context.parallel = 2;
        let (began, used) = (Instant::now(), own_seconds());
        let report = engine
            .backup(
                &attempt.context,
                &target(&url),
                &BackupOptions::default(),
                &Nothing,
            )
            .await
            .unwrap();
        let bytes: u64 = report.objects.iter().map(|object| object.bytes).sum();
        println!(
            "round {round}: out {} MB in {:.2} s, processor here {:.2} s + {:.2} s in the kernel, peak memory {} MB",
            bytes / 1_000_000,
            began.elapsed().as_secs_f64(),
            own_seconds().0 - used.0,
            own_seconds().1 - used.1,
            peak_memory_bytes() / 1_000_000
        );
    }
    for options in ["-Z0", "-Z1"] {
        let folder = tempfile::tempdir().unwrap();
        std::os::unix::fs::chown(folder.path(), Some(101), None).unwrap();
        let place = folder.path().join("dump");
        let began = Instant::now();
        server
            .run(
                "pg_dump",
                "measured",
                &["-Fd", "-j2", options, "-f", place.to_str().unwrap()],
            )
            .unwrap();
        println!("pg_dump {options}: {:.2} s", began.elapsed().as_secs_f64());
        if options == "-Z0" {
            server.psql("postgres", "CREATE DATABASE peer").unwrap();
            let began = Instant::now();
            server
                .run(
                    "pg_restore",
                    "peer",
                    &["-j2", "-d", "peer", place.to_str().unwrap()],
                )
                .unwrap();
            println!("pg_restore: {:.2} s", began.elapsed().as_secs_f64());
            server.psql("postgres", "DROP DATABASE peer").unwrap();
        }
    }
    let sink = Memory::new();
    let attempt = Attempt::new();
    let report = engine
        .backup(
            &attempt.context,
            &target(&url),
            &BackupOptions::default(),
            &sink,
        )
        .await
        .unwrap();
    let backup = sink.seal();
    let copy = beside(&url, "copy");
    let began = Instant::now();
    restore(&engine, &backup, &report, &copy).await;
    println!("back in {:.2} s", began.elapsed().as_secs_f64());
    let began = Instant::now();
    let facts = engine
        .facts(&attempt.context, &target(&copy), &report)
        .await
        .unwrap();
    println!("facts in {:.2} s", began.elapsed().as_secs_f64());
    assert_eq!(mismatches(&report.objects, &facts), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement, run by hand"]
async fn measure_memory_with_a_value_of_300_megabytes() {
    let server = PostgresServer::start(PgMajor::V15, PostgresOptions::new()).unwrap();
    server
        .psql(
            "postgres",
            "CREATE TABLE huge (id int, v text); ALTER TABLE huge ALTER v SET STORAGE EXTERNAL; INSERT INTO huge VALUES (1, repeat('0123456789', 30000000))",
        )
        .unwrap();
    let engine =
        PostgresEngine::default().with_program_folders(vec![PgMajor::V15.bin_dir().unwrap()]);
    engine
        .backup(
            &Attempt::new().context,
            &target(&server.url("postgres")),
            &BackupOptions::default(),
            &Nothing,
        )
        .await
        .unwrap();
    println!("peak memory {} MB", peak_memory_bytes() / 1_000_000);
    assert!(peak_memory_bytes() < 100_000_000);
}
