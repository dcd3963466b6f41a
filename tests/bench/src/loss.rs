//! What would be lost if a database and its worker died at this moment: how old the last point in time is that the repository has.

use std::{
    path::Path,
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use bson::doc;
use clap::Args;
use fettler_model::Timestamp;
use fettler_test_servers::{MongodbClient, MongodbKind, MongodbServer, RedisOptions, RedisServer};
use serde_json::Value;

use crate::{
    Result,
    figures::{head, percentile, row},
    programs::Process,
};

/// How long the first point in time may take: a backup comes before it.
const FIRST_WITHIN: Duration = Duration::from_secs(120);
/// Bytes that each write carries.
const VALUE_BYTES: usize = 200;

#[derive(Args)]
pub struct Options {
    /// Looks at the last point in time, for each engine.
    #[arg(long, default_value_t = 300)]
    looks: usize,
    /// Writes that a client waits for, a second.
    #[arg(long, default_value_t = 500)]
    rate: u32,
}

/// Shows it for both engines whose changes are archived.
pub fn run(options: &Options) -> Result<()> {
    let binary = std::env::current_exe()?.with_file_name("fettler");
    if !binary.exists() {
        return Err("build the binary first: cargo build --release".into());
    }
    head(&["engine", "writes/s", "p50 s", "p99 s", "most s"]);
    let redis = RedisServer::start(RedisOptions::new())?;
    let mut connection = redis::Client::open(redis.url())?.get_connection()?;
    let value = "v".repeat(VALUE_BYTES);
    // Redis' stream has no times: a write of the last second before a point may be in it or not.
    look_while_written(
        &binary,
        "Redis",
        &redis.url(),
        options,
        1.0,
        move |number| {
            redis::cmd("SET")
                .arg(number % 100_000)
                .arg(&value)
                .exec(&mut connection)
                .is_ok()
        },
    )?;
    let mongodb = MongodbServer::start(MongodbKind::WithOplog)?;
    let mut client = MongodbClient::new(mongodb.port());
    let value = "v".repeat(VALUE_BYTES);
    look_while_written(
        &binary,
        "MongoDB",
        &mongodb.url(),
        options,
        0.0,
        move |number| {
            let document = doc! { "_id": i64::try_from(number).unwrap_or(0), "value": &value };
            client.insert("shop", "orders", [document]);
            true
        },
    )
}

/// Archives a server's changes on one machine while a client writes, and looks again and again. What was acknowledged so many
/// seconds before a point in time is surely in it.
fn look_while_written(
    binary: &Path,
    engine: &str,
    url: &str,
    options: &Options,
    surely_before: f64,
    write: impl FnMut(u64) -> bool + Send + 'static,
) -> Result<()> {
    let machine = Machine {
        binary,
        folder: tempfile::tempdir()?,
    };
    machine.told(&["archive", url, "--name", "shop", "--detach"])?;
    let _worker = machine.worker()?;
    let writer = Writer::start(options.rate, write);
    let begun = Instant::now();
    while machine.last_point()?.is_none() {
        if begun.elapsed() > FIRST_WITHIN {
            return Err(format!("{engine}: no point in time came").into());
        }
    }
    let mut ages = Vec::new();
    let (since, before) = (Instant::now(), writer.written());
    for _ in 0..options.looks {
        let last = machine.last_point()?.ok_or("the points in time are gone")?;
        // Taken after the answer: the age is told a little too high, never too low.
        let age = Timestamp::now().micros() - last.micros();
        ages.push(age as f64 / 1e6 + surely_before);
    }
    let took = since.elapsed();
    let written = writer.end()? - before;
    row(&[
        engine.to_owned(),
        format!("{:.0}", written as f64 / took.as_secs_f64()),
        format!("{:.2}", percentile(&ages, 50.0)),
        format!("{:.2}", percentile(&ages, 99.0)),
        format!("{:.2}", ages.iter().copied().fold(0.0, f64::max)),
    ]);
    Ok(())
}

/// A client that writes at a rate until it is ended.
struct Writer {
    stop: Arc<AtomicBool>,
    written: Arc<AtomicU64>,
    thread: JoinHandle<()>,
}

impl Writer {
    fn start(rate: u32, mut write: impl FnMut(u64) -> bool + Send + 'static) -> Self {
        let (stop, written) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicU64::new(0)),
        );
        let (ends, counts) = (Arc::clone(&stop), Arc::clone(&written));
        let thread = std::thread::spawn(move || {
            let begun = Instant::now();
            for number in 0u64.. {
                if ends.load(Relaxed) || !write(number) {
                    return;
                }
                counts.fetch_add(1, Relaxed);
                let due = Duration::from_secs_f64((number + 1) as f64 / f64::from(rate));
                std::thread::sleep(due.saturating_sub(begun.elapsed()));
            }
        });
        Self {
            stop,
            written,
            thread,
        }
    }

    /// How much it has written.
    fn written(&self) -> u64 {
        self.written.load(Relaxed)
    }

    /// Ends it, and says how much it wrote.
    fn end(self) -> Result<u64> {
        self.stop.store(true, Relaxed);
        self.thread.join().map_err(|_| "the writer failed")?;
        Ok(self.written.load(Relaxed))
    }
}

/// Fettler on one machine, without services.
struct Machine<'b> {
    binary: &'b Path,
    folder: tempfile::TempDir,
}

impl Machine<'_> {
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.binary);
        command
            .args(arguments)
            .current_dir(self.folder.path())
            .env("FETTLER_FOLDER", self.folder.path().join("fettler"))
            .stdin(Stdio::null());
        command
    }

    fn told(&self, arguments: &[&str]) -> Result<Value> {
        let output = self.command(arguments).arg("--json").output()?;
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned().into());
        }
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    /// The end of what can be restored, if there is anything yet.
    fn last_point(&self) -> Result<Option<Timestamp>> {
        let told = self.told(&["backups"])?;
        let until = &told["points_in_time"][0]["until"];
        Ok(serde_json::from_value(until.clone())?)
    }

    fn worker(&self) -> Result<Process> {
        let log = std::fs::File::create(self.folder.path().join("worker.log"))?;
        let child = self
            .command(&["worker"])
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()?;
        Ok(Process(child))
    }
}
