//! How long a job waits: from the call that submits it to its first line and to its end in the ledger, in an idle fleet and
//! under an open-loop load, which does not wait for the fleet and so hides nothing of it; awa beside it there.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use clap::Args;
use fettler_model::{JobId, TenantId};
use serde::Deserialize;
use tokio::task::JoinSet;

use crate::{
    Result,
    figures::{head, percentile, row},
    floor::floor,
    kinds::{self, micros},
    peers,
    stand::{Fleet, Stand},
};

/// How many jobs warm connections and plans up before anything is counted.
const WARM_UP: usize = 200;

/// When jobs were asked for, by a clock that all processes of this machine share.
pub type Asked = Arc<Mutex<HashMap<JobId, u64>>>;

#[derive(Args)]
pub struct IdleOptions {
    /// How many jobs are submitted, one after the other.
    #[arg(long, default_value_t = 1000)]
    jobs: usize,
    /// Tells which statements the ledger's database ran.
    #[arg(long)]
    statements: bool,
}

#[derive(Args)]
pub struct OpenLoopOptions {
    /// Jobs a second.
    #[arg(long, default_value_t = 1000)]
    rate: usize,
    /// For how long.
    #[arg(long, default_value_t = 600)]
    seconds: u64,
    /// How many jobs run at once.
    #[arg(long, default_value_t = 100)]
    concurrency: usize,
    /// Only Fettler.
    #[arg(long)]
    alone: bool,
}

/// One job after the other, each when the last one has ended; then the least that its steps can take.
pub async fn idle(options: &IdleOptions) -> Result<()> {
    let stand = Stand::start()?;
    let fleet = stand.fleet().await?;
    let _worker = fleet.worker(16)?;
    let asked = Asked::default();
    for nth in 0..WARM_UP + options.jobs {
        if nth == WARM_UP && options.statements {
            fleet.count_statements().await?;
        }
        let at = micros();
        let job = submit(&fleet).await?;
        if nth >= WARM_UP {
            note(&asked, job, at);
        }
        fleet.all_ended().await?;
    }
    if options.statements {
        fleet.tell_statements().await?;
    }
    head(&["idle fleet, ms", "p50", "p99", "most"]);
    let waits = waits(&fleet, &asked).await?;
    tell("submit to first line", &waits, |wait| wait.to_start);
    tell("submit to end", &waits, |wait| wait.to_end);
    let floor = floor(&stand, options.jobs).await?;
    tell(
        "the two commits and a word through Redis, by themselves",
        &floor,
        |millis| *millis,
    );
    Ok(())
}

/// Jobs at a fixed rate, whatever becomes of them; then the same with awa in the same PostgreSQL.
pub async fn open_loop(options: &OpenLoopOptions) -> Result<()> {
    let stand = Stand::start()?;
    let awa = if options.alone {
        None
    } else {
        Some(peers::Awa::build()?)
    };
    tell_open_loop("fettler", fettler(&stand, options).await?, options);
    if let Some(awa) = awa {
        let database = stand.postgres.create_database("awa")?;
        let measured = awa.open_loop(
            &database.url(),
            options.rate,
            options.seconds,
            options.concurrency,
        )?;
        tell_open_loop("awa", measured, options);
    }
    Ok(())
}

async fn fettler(stand: &Stand, options: &OpenLoopOptions) -> Result<Measured> {
    const TICK: Duration = Duration::from_millis(5);
    let fleet = stand.fleet().await?;
    let _worker = fleet.worker(options.concurrency)?;
    for _ in 0..WARM_UP {
        submit(&fleet).await?;
    }
    fleet.all_ended().await?;
    let before = fleet.wal_position().await?;
    let asked = Asked::default();
    let (begun, mut sent) = (Instant::now(), 0_usize);
    let mut every = tokio::time::interval(TICK);
    let mut calls: JoinSet<Result<()>> = JoinSet::new();
    let until = Duration::from_secs(options.seconds);
    while begun.elapsed() < until {
        every.tick().await;
        let due = (begun.elapsed().as_secs_f64() * options.rate as f64) as usize;
        for _ in sent..due {
            let (ledger, asked) = (fleet.ledger.clone(), asked.clone());
            calls.spawn(async move {
                let at = micros();
                let request = kinds::request(&TenantId::default_tenant(), 0);
                let job = ledger.submit(request, None).await?.job;
                note(&asked, job, at);
                Ok(())
            });
        }
        sent = due;
        while let Some(done) = calls.try_join_next() {
            done??;
        }
    }
    while let Some(done) = calls.join_next().await {
        done??;
    }
    fleet.all_ended().await?;
    Ok(Measured {
        wal_bytes: fleet.wal_since(before).await?,
        waits: waits(&fleet, &asked).await?,
        size: fleet.size().await?,
    })
}

/// What an open loop gave.
#[derive(Deserialize)]
pub struct Measured {
    waits: Vec<Wait>,
    /// How many bytes the database's log of changes grew by.
    wal_bytes: i64,
    /// The database's size, in words.
    size: String,
}

fn tell_open_loop(name: &str, measured: Measured, options: &OpenLoopOptions) {
    let mut waits = measured.waits;
    waits.sort_by_key(|wait| wait.asked);
    let quarter = waits.len() / 4;
    head(&[&format!("{name}, open loop, ms"), "p50", "p99", "most"]);
    for (when, some) in [
        ("all", &waits[..]),
        ("first quarter", &waits[..quarter]),
        ("last quarter", &waits[waits.len() - quarter..]),
    ] {
        tell(&format!("submit to first line, {when}"), some, |wait| {
            wait.to_start
        });
        tell(&format!("submit to end, {when}"), some, |wait| wait.to_end);
    }
    println!(
        "{} jobs at {}/s for {} s; WAL {:.0} bytes a job; {}\n",
        waits.len(),
        options.rate,
        options.seconds,
        measured.wal_bytes as f64 / waits.len() as f64,
        measured.size
    );
}

/// Submits a job and gives its id.
pub async fn submit(fleet: &Fleet<'_>) -> Result<JobId> {
    let request = kinds::request(&TenantId::default_tenant(), 0);
    Ok(fleet.ledger.submit(request, None).await?.job)
}

/// Notes when a job was asked for.
pub fn note(asked: &Asked, job: JobId, at: u64) {
    asked
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .insert(job, at);
}

/// How long a job took, in milliseconds.
#[derive(Clone, Copy, Deserialize)]
pub struct Wait {
    asked: u64,
    pub to_start: f64,
    pub to_end: f64,
}

/// The waits of these jobs, by what the jobs themselves and the ledger say.
pub async fn waits(fleet: &Fleet<'_>, asked: &Asked) -> Result<Vec<Wait>> {
    let rows = fleet
        .sql
        .query(
            "SELECT id, (result::json ->> 'started')::bigint, ended FROM history WHERE result IS NOT NULL",
            &[],
        )
        .await?;
    let asked = asked.lock().unwrap_or_else(PoisonError::into_inner);
    let mut waits = Vec::with_capacity(asked.len());
    for row in rows {
        let id: &str = row.get(0);
        let (started, ended): (i64, i64) = (row.get(1), row.get(2));
        if let Some(at) = asked.get(&id.parse::<JobId>()?) {
            let since = |then: i64| (then as f64 - *at as f64) / 1000.0;
            waits.push(Wait {
                asked: *at,
                to_start: since(started),
                to_end: since(ended),
            });
        }
    }
    if waits.len() == asked.len() {
        Ok(waits)
    } else {
        Err(format!("{} of {} jobs ended well", waits.len(), asked.len()).into())
    }
}

fn tell<T>(what: &str, waits: &[T], of: impl Fn(&T) -> f64) {
    let values: Vec<f64> = waits.iter().map(of).collect();
    let mut cells = vec![what.to_owned()];
    cells.extend([50.0, 99.0, 100.0].map(|percent| format!("{:.2}", percentile(&values, percent))));
    row(&cells);
}
