//! What a cleanup costs those who use the database meanwhile: half of a table's rows go under `pgbench -R` at half of what the machine
//! can do, whose own transactions write to the same table. The rate that is kept, the latency before and during, the longest
//! wait for a lock, and whether an undo brings back every row.

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use clap::Args;
use fettler_test_servers::{PgMajor, PostgresOptions, PostgresServer, TestDatabase};

use crate::{
    Result,
    figures::{head, percentile, row},
};

/// Each transaction writes to the table that is cleaned, too.
const SCRIPT: &str = "\
\\set aid random(1, 100000)
\\set id random(:old + 1, :rows)
BEGIN;
UPDATE pgbench_accounts SET abalance = abalance + 1 WHERE aid = :aid;
SELECT abalance FROM pgbench_accounts WHERE aid = :aid;
UPDATE events SET v = v || '' WHERE id = :id;
INSERT INTO events (at, v) VALUES (now(), 'new');
COMMIT;
";
/// What stands for the old half.
const SUM: &str = "SELECT count(*) || ' ' || sum(hashtextextended(e::text, 7)::numeric) FROM events e WHERE at < '2020-01-01'";

#[derive(Args)]
pub struct Options {
    /// Rows of the table; half of them go.
    #[arg(long, default_value_t = 10_000_000)]
    rows: u64,
    /// For how long the rate is measured before.
    #[arg(long, default_value_t = 30)]
    seconds: u64,
    /// The binary that cleans.
    #[arg(long, default_value = "target/release/fettler")]
    fettler: PathBuf,
}

/// Runs it.
pub fn run(options: &Options) -> Result<()> {
    let server = PostgresServer::start(PgMajor::V18, PostgresOptions::new().durable())?;
    let database = server.create_database("bench")?;
    let folder = tempfile::tempdir()?;
    let old = options.rows / 2;
    database
        .psql("CREATE TABLE events (id bigserial PRIMARY KEY, at timestamptz NOT NULL, v text)")?;
    database.psql(&format!(
        "INSERT INTO events (at, v) SELECT CASE WHEN g <= {old} THEN '2015-01-01'::timestamptz ELSE now() END, repeat(md5(g::text), 4)
         FROM generate_series(1, {}) g; ANALYZE events",
        options.rows
    ))?;
    let pgbench = |words: &[&str]| -> Command {
        let mut command = Command::new(server.bin_dir().join("pgbench"));
        command
            .args(words)
            .arg(database.url())
            .current_dir(folder.path());
        command
    };
    done(pgbench(&["-i", "-q"]).stderr(Stdio::null()))?;
    let script = folder.path().join("script.sql");
    std::fs::write(&script, SCRIPT)?;
    let script = script.display().to_string();
    let (old_is, rows_are) = (format!("old={old}"), format!("rows={}", options.rows));
    let load = |seconds: &str, more: &[&str]| {
        let words = [
            "-n", "-f", &script, "-D", &old_is, "-D", &rows_are, "-c", "4", "-T", seconds,
        ];
        let mut command = pgbench(&[&words[..], more].concat());
        command.stdout(Stdio::null()).stderr(Stdio::null());
        command
    };
    // What the machine can do, and half of it.
    let log = |name: &str| folder.path().join(name).display().to_string();
    done(&mut load("10", &["-l", "--log-prefix", &log("most")]))?;
    let most = read(folder.path(), "most")?;
    let rate = (most.len() as f64 / 10.0 / 2.0).max(1.0);
    let rate_is = format!("{rate:.0}");
    let seconds = options.seconds.to_string();
    done(&mut load(
        &seconds,
        &["-R", &rate_is, "-l", "--log-prefix", &log("before")],
    ))?;
    let before = read(folder.path(), "before")?;

    let sum = database.psql(SUM)?;
    let mut during = load(
        "86400",
        &["-R", &rate_is, "-l", "--log-prefix", &log("during")],
    )
    .spawn()?;
    let began = Instant::now();
    let (cleaned, longest_wait) = clean(options, &database, folder.path())?;
    let took = began.elapsed();
    during.kill()?;
    during.wait()?;
    let with = read(folder.path(), "during")?;

    head(&["cleanup", "tx/s", "p50 ms", "p99 ms"]);
    tell("before", &before, Duration::from_secs(options.seconds));
    tell("during", &with, took);
    println!(
        "rate asked for: {rate:.0} tx/s; {} rows of {} removed in {:.1} s; longest wait for a lock seen: {longest_wait:.0} ms; \
         longest transaction of the cleanup: {} ms",
        cleaned["removed"]["removed"],
        options.rows,
        took.as_secs_f64(),
        cleaned["removed"]["longest_transaction_ms"]
    );
    let undone = fettler(
        options,
        folder.path(),
        &[
            "cleanup",
            "undo",
            cleaned["job"].as_str().unwrap_or_default(),
        ],
    )?;
    println!(
        "undo: {} rows put back; the same as before: {}",
        undone["restored"],
        database.psql(SUM)? == sum
    );
    Ok(())
}

fn done(command: &mut Command) -> Result<()> {
    let status = command.status()?;
    if status.success() {
        Ok(())
    } else {
        Err(format!("{command:?}: {status}").into())
    }
}

fn fettler(options: &Options, folder: &Path, words: &[&str]) -> Result<serde_json::Value> {
    let output = start(options, folder, words)?.wait_with_output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(&text).map_err(|error| {
        format!(
            "{error}: {text} {}",
            String::from_utf8_lossy(&output.stderr)
        )
        .into()
    })
}

fn start(options: &Options, folder: &Path, words: &[&str]) -> Result<Child> {
    Ok(Command::new(std::fs::canonicalize(&options.fettler)?)
        .args(words)
        .arg("--json")
        .env("FETTLER_FOLDER", folder.join("fettler"))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?)
}

/// Cleans, and looks meanwhile for how long any session waits for a lock, in milliseconds.
fn clean(
    options: &Options,
    database: &TestDatabase,
    folder: &Path,
) -> Result<(serde_json::Value, f64)> {
    let url = database.url();
    let words = [
        "cleanup",
        &url,
        "--rows",
        "events",
        "--column",
        "at",
        "--older-than",
        "365d",
    ];
    let mut child = start(options, folder, &words)?;
    let mut longest = 0.0_f64;
    while child.try_wait()?.is_none() {
        let waits = database.psql(
            "SELECT COALESCE(max(extract(epoch FROM clock_timestamp() - l.waitstart) * 1000), 0) FROM pg_locks l WHERE NOT l.granted",
        )?;
        longest = longest.max(waits.trim().parse().unwrap_or(0.0));
        std::thread::sleep(Duration::from_millis(50));
    }
    let output = child.wait_with_output()?;
    let document = serde_json::from_slice(&output.stdout)
        .map_err(|error| format!("{error}: {}", String::from_utf8_lossy(&output.stderr)))?;
    Ok((document, longest))
}

/// The latencies that pgbench has logged, in milliseconds.
fn read(folder: &Path, prefix: &str) -> Result<Vec<f64>> {
    let mut latencies = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        if !name.starts_with(&format!("{prefix}.")) {
            continue;
        }
        for line in std::fs::read_to_string(&path)?.lines() {
            // The third word is the latency in microseconds, from when the transaction was due.
            if let Some(Ok(micros)) = line.split(' ').nth(2).map(str::parse::<f64>) {
                latencies.push(micros / 1000.0);
            }
        }
    }
    latencies.sort_by(f64::total_cmp);
    Ok(latencies)
}

fn tell(what: &str, latencies: &[f64], time: Duration) {
    let of = |percent: f64| format!("{:.1}", percentile(latencies, percent));
    let rate = format!("{:.0}", latencies.len() as f64 / time.as_secs_f64());
    row(&[what.to_owned(), rate, of(50.0), of(99.0)]);
}
