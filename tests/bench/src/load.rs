//! What changes when something is added: workers, limits, a backlog. And what a worker costs that has nothing to do.

use std::{
    fs,
    time::{Duration, Instant},
};

use clap::Args;
use fettler_model::{Scope, SlotClass, TenantId};

use crate::{
    Result,
    figures::{head, median, per_second, row},
    kinds::{self, micros},
    latency::{Asked, note, waits},
    stand::{Fleet, Stand},
    throughput::submit,
};

#[derive(Args)]
pub struct ScalingOptions {
    /// Jobs for each worker.
    #[arg(long, default_value_t = 2000)]
    jobs: usize,
    /// How often each number of workers is measured.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
}

#[derive(Args)]
pub struct LimitOptions {
    #[arg(long, default_value_t = 20_000)]
    jobs: usize,
    #[arg(long, default_value_t = 5)]
    rounds: usize,
}

#[derive(Args)]
pub struct BacklogOptions {
    /// How many jobs of another tenant wait.
    #[arg(long, default_value_t = 1_000_000)]
    backlog: usize,
    /// How many are run beside nothing and beside the backlog.
    #[arg(long, default_value_t = 20_000)]
    jobs: usize,
}

#[derive(Args)]
pub struct QuietOptions {
    #[arg(long, default_value_t = 30)]
    seconds: u64,
}

/// One, two, four, eight workers that run five jobs at once, each of which waits for 10 ms.
pub async fn scaling(options: &ScalingOptions) -> Result<()> {
    const WORKERS: [usize; 4] = [1, 2, 4, 8];
    const AT_ONCE: usize = 5;
    const WAIT_MS: u64 = 10;
    let stand = Stand::start()?;
    let mut rates = vec![Vec::new(); WORKERS.len()];
    for _ in 0..options.rounds {
        for (nth, count) in WORKERS.into_iter().enumerate() {
            let fleet = stand.fleet().await?;
            let jobs = options.jobs * count;
            submit(&fleet, jobs, 4, WAIT_MS).await?;
            let workers: Vec<_> = (0..count)
                .map(|_| fleet.worker(AT_ONCE))
                .collect::<Result<_>>()?;
            let (begun, ended) = (Instant::now(), fleet.succeeded().await?);
            fleet.all_ended().await?;
            rates[nth].push(per_second(jobs - ended, begun.elapsed()));
            drop(workers);
        }
    }
    head(&[
        "workers",
        "jobs a second",
        "of linear",
        "of what the waits allow",
    ]);
    let one = median(&rates[0]);
    for (nth, count) in WORKERS.into_iter().enumerate() {
        let rate = median(&rates[nth]);
        let ideal = (count * AT_ONCE) as f64 * 1000.0 / WAIT_MS as f64;
        row(&[
            count.to_string(),
            format!("{rate:.0}"),
            format!("{:.2}", rate / (one * count as f64)),
            format!("{:.2}", rate / ideal),
        ]);
    }
    Ok(())
}

/// Limits that never hold anything back: what it costs to count.
pub async fn limits(options: &LimitOptions) -> Result<()> {
    const MANY: u64 = 1_000_000;
    let stand = Stand::start()?;
    let tenant = TenantId::default_tenant();
    let kind = kinds::request(&tenant, 0).kind;
    let cases: [(&str, Vec<Scope>); 4] = [
        ("none", Vec::new()),
        ("tenant", vec![Scope::Tenant(tenant.clone())]),
        ("class", vec![Scope::Class(SlotClass::Short)]),
        (
            "tenant, class and kind",
            vec![
                Scope::Tenant(tenant.clone()),
                Scope::Class(SlotClass::Short),
                Scope::Kind(kind),
            ],
        ),
    ];
    let mut rates = vec![Vec::new(); cases.len()];
    for _ in 0..options.rounds {
        for (nth, (_, scopes)) in cases.iter().enumerate() {
            let fleet = stand.fleet().await?;
            for scope in scopes {
                fleet.ledger.set_limit(scope, MANY).await?;
            }
            let _worker = fleet.worker(100)?;
            rates[nth].push(run(&fleet, options.jobs).await?);
        }
    }
    head(&["limits", "jobs a second", "of none"]);
    for (nth, (name, _)) in cases.iter().enumerate() {
        let rate = median(&rates[nth]);
        row(&[
            (*name).to_owned(),
            format!("{rate:.0}"),
            format!("{:.2}", rate / median(&rates[0])),
        ]);
    }
    Ok(())
}

/// The rate, and the waits of another tenant's single jobs, beside a short and a long backlog.
pub async fn backlog(options: &BacklogOptions) -> Result<()> {
    const PROBES: usize = 200;
    let stand = Stand::start()?;
    head(&[
        "jobs that wait",
        "jobs a second",
        "another tenant's job, p50 ms",
        "p99 ms",
    ]);
    for waiting in [options.jobs, options.backlog] {
        let fleet = stand.fleet().await?;
        let other = "other".parse()?;
        fleet.ledger.ensure_tenant(&other).await?;
        submit(&fleet, waiting + options.jobs, 4, 0).await?;
        // What the database does after so many rows have come is its own matter, and over before anything is measured.
        fleet.sql.batch_execute("VACUUM ANALYZE job").await?;
        fleet.sql.batch_execute("CHECKPOINT").await?;
        let worker = fleet.worker(100)?;
        let (begun, before) = (Instant::now(), fleet.ended().await?);
        let asked = Asked::default();
        let mut probes = 0;
        // As long as the first jobs take: then the second case has almost its whole backlog still before it.
        while fleet.ended().await? < options.jobs && probes < PROBES {
            let at = micros();
            let request = kinds::request(&other, 0);
            let job = fleet.ledger.submit(request, None).await?.job;
            note(&asked, job, at);
            probes += 1;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        while fleet.ended().await? < options.jobs {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let rate = per_second(fleet.ended().await? - before, begun.elapsed());
        fleet.ended_of(&asked).await?;
        let waited: Vec<f64> = waits(&fleet, &asked)
            .await?
            .iter()
            .map(|wait| wait.to_start)
            .collect();
        row(&[
            waiting.to_string(),
            format!("{rate:.0}"),
            format!("{:.1}", median(&waited)),
            format!("{:.1}", crate::figures::percentile(&waited, 99.0)),
        ]);
        drop(worker);
    }
    Ok(())
}

/// Memory and processor time of a worker that has nothing to do.
pub async fn quiet(options: &QuietOptions) -> Result<()> {
    const SETTLED_AFTER: Duration = Duration::from_secs(5);
    // What Linux shows to processes, on all machines (`man 5 proc`).
    const TICKS_PER_SECOND: f64 = 100.0;
    let stand = Stand::start()?;
    let fleet = stand.fleet().await?;
    let worker = fleet.worker(16)?;
    run(&fleet, 1000).await?;
    tokio::time::sleep(SETTLED_AFTER).await;
    let before = cpu_ticks(worker.id())?;
    let watched = Duration::from_secs(options.seconds);
    tokio::time::sleep(watched).await;
    let ticks = cpu_ticks(worker.id())? - before;
    let status = fs::read_to_string(format!("/proc/{}/status", worker.id()))?;
    let resident = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .map_or("", str::trim);
    println!(
        "idle worker: {resident} resident, {:.2} % of a core",
        ticks as f64 / TICKS_PER_SECOND / watched.as_secs_f64() * 100.0
    );
    Ok(())
}

/// Runs so many no-op jobs; gives how many a second.
async fn run(fleet: &Fleet<'_>, jobs: usize) -> Result<f64> {
    let begun = Instant::now();
    submit(fleet, jobs, 4, 0).await?;
    fleet.all_ended().await?;
    Ok(per_second(jobs, begun.elapsed()))
}

/// What a process has used, of user and system together.
fn cpu_ticks(process: u32) -> Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat"))?;
    // The name may hold blanks: what is counted comes after it.
    let fields: Vec<&str> = stat
        .rsplit(')')
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .collect();
    let user: u64 = fields.get(11).ok_or("no time of the user")?.parse()?;
    let system: u64 = fields.get(12).ok_or("no time of the system")?.parse()?;
    Ok(user + system)
}
