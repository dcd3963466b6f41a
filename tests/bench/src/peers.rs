//! The peers: installed from their registries, or built, into a folder of their own; run with the same number of jobs.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use crate::{Result, latency::Measured};

/// Where the peers' programs lie.
const PROGRAMS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/peers");
/// Where they are installed.
const INSTALLED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/bench-peers");

/// The peers, ready to run.
pub struct Peers {
    folder: PathBuf,
}

impl Peers {
    /// Installs what is not there yet: BullMQ from npm, Celery from PyPI.
    pub fn install() -> Result<Self> {
        let folder = PathBuf::from(INSTALLED);
        std::fs::create_dir_all(&folder)?;
        if !folder.join("node_modules/ioredis").exists() {
            run(Command::new("npm")
                .args([
                    "install",
                    "--silent",
                    "--no-audit",
                    "--no-fund",
                    "bullmq",
                    "ioredis",
                ])
                .current_dir(&folder))?;
        }
        if !folder.join("venv/bin/celery").exists() {
            run(Command::new("python3")
                .args(["-m", "venv", "venv"])
                .current_dir(&folder))?;
            run(Command::new("venv/bin/pip")
                .args(["install", "--quiet", "celery[redis]"])
                .current_dir(&folder))?;
        }
        for program in ["bullmq.mjs", "celery_bench.py"] {
            std::fs::copy(Path::new(PROGRAMS).join(program), folder.join(program))?;
        }
        Ok(Self { folder })
    }

    /// Jobs a second of BullMQ, from the first `addBulk` to the last job's completion.
    pub fn bullmq(
        &self,
        redis: &str,
        jobs: usize,
        concurrency: usize,
        submitters: usize,
    ) -> Result<f64> {
        let figures = [jobs, concurrency, submitters].map(|figure| figure.to_string());
        rate(
            Command::new("node")
                .arg("bullmq.mjs")
                .arg(redis)
                .args(figures)
                .current_dir(&self.folder),
        )
    }

    /// Jobs a second of Celery, from the first send to the last result.
    pub fn celery(&self, redis: &str, jobs: usize, concurrency: usize) -> Result<f64> {
        let figures = [jobs, concurrency].map(|figure| figure.to_string());
        rate(
            Command::new("venv/bin/python")
                .arg("celery_bench.py")
                .arg(redis)
                .args(figures)
                .current_dir(&self.folder),
        )
    }
}

/// awa, ready to run: a program of ours around the crate, with a workspace and a lock file of its own.
pub struct Awa {
    program: PathBuf,
}

impl Awa {
    /// Builds what is not built yet.
    pub fn build() -> Result<Self> {
        let built = PathBuf::from(INSTALLED).join("awa");
        run(Command::new("cargo")
            .args(["build", "--release", "--locked", "--quiet"])
            .env("CARGO_TARGET_DIR", &built)
            .current_dir(Path::new(PROGRAMS).join("awa")))?;
        Ok(Self {
            program: built.join("release/awa-bench"),
        })
    }

    /// Jobs a second in that empty database, from the first bulk call to the last job's completion.
    pub fn rate(
        &self,
        database: &str,
        jobs: usize,
        concurrency: usize,
        submitters: usize,
    ) -> Result<f64> {
        let figures = [jobs, concurrency, submitters].map(|figure| figure.to_string());
        rate(
            Command::new(&self.program)
                .args([database, "rate"])
                .args(figures),
        )
    }

    /// Single jobs at a fixed rate in that empty database.
    pub fn open_loop(
        &self,
        database: &str,
        rate: usize,
        seconds: u64,
        concurrency: usize,
    ) -> Result<Measured> {
        let told = run(Command::new(&self.program)
            .args([database, "open-loop"])
            .args([
                rate.to_string(),
                seconds.to_string(),
                concurrency.to_string(),
            ]))?;
        Ok(serde_json::from_str(&told)?)
    }
}

/// Runs a program that prints its rate.
fn rate(command: &mut Command) -> Result<f64> {
    Ok(run(command)?.trim().parse()?)
}

fn run(command: &mut Command) -> Result<String> {
    let output = command.output()?;
    if output.status.success() {
        Ok(String::from_utf8(output.stdout)?)
    } else {
        Err(format!(
            "{command:?} failed: {}",
            String::from_utf8_lossy(&output.stderr)
        )
        .into())
    }
}
