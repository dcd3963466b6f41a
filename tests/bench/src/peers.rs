//! The peers: installed from their registries into a folder of their own, run with the same number of jobs.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use crate::Result;

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
