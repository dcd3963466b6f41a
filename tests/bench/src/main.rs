//! Benchmarks of the fleet, beside its peers where there are any: in the same run, on the same machine, in turn, with
//! everything on that a fleet in production has: a durable ledger, history, logs, leases. `docs/benchmarks.md` has the
//! commands and what they gave. Nothing here is a test: shared machines are too noisy for limits on time.

mod cleanup;
mod embedded;
mod figures;
mod floor;
mod health;
mod http;
mod kinds;
mod latency;
mod load;
mod loss;
mod peers;
mod programs;
mod serve;
mod stand;
mod takeover;
mod throughput;
mod ticks;
mod work;

use clap::{Parser, Subcommand};

/// Anything that went wrong; a benchmark has nothing to do with an error but to say it.
pub type Result<T, E = Box<dyn std::error::Error + Send + Sync>> = std::result::Result<T, E>;

#[derive(Parser)]
#[command(about = "Benchmarks of the fleet beside its peers")]
struct Cli {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// No-op jobs a second through client, ledger, Redis, worker and ledger again; BullMQ, Celery and awa beside.
    Throughput(throughput::Options),
    /// From the call of the submit to the first line of the job, in an idle fleet.
    Idle(latency::IdleOptions),
    /// The same and to the end, at a fixed rate for a long time; what the ledger grows by; awa beside.
    OpenLoop(latency::OpenLoopOptions),
    /// One to eight workers on jobs that wait for 10 ms.
    Scaling(load::ScalingOptions),
    /// What limits cost that hold nothing back.
    Limits(load::LimitOptions),
    /// What a long backlog does to the rate and to others.
    Backlog(load::BacklogOptions),
    /// What a worker costs that has nothing to do.
    Quiet(load::QuietOptions),
    /// Submissions a second over HTTP, and how long their answers take.
    Http(http::Options),
    /// No-op jobs a second in one process, on a SQLite file.
    Embedded(embedded::Options),
    /// How long after `kill -9` of its worker a job runs again.
    Takeover(takeover::Options),
    /// Very many policies, some due at once.
    Ticks(ticks::Options),
    /// Half of a table's rows go while pgbench writes to it at half of what the machine can do; then they come back.
    Cleanup(cleanup::Options),
    /// How long a look at a database's health takes, for each engine, and for very many databases at once.
    Health(health::Options),
    /// How old the last point in time is while changes are archived: what would be lost at that moment.
    Loss(loss::Options),
    /// A worker process of a benchmark; started by the others.
    #[command(hide = true)]
    Work(work::Options),
    /// A database server for `tests/bench/run`.
    #[command(hide = true)]
    Serve(serve::Options),
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(async {
        match cli.what {
            What::Throughput(options) => throughput::run(&options).await,
            What::Idle(options) => latency::idle(&options).await,
            What::OpenLoop(options) => latency::open_loop(&options).await,
            What::Scaling(options) => load::scaling(&options).await,
            What::Limits(options) => load::limits(&options).await,
            What::Backlog(options) => load::backlog(&options).await,
            What::Quiet(options) => load::quiet(&options).await,
            What::Http(options) => http::run(&options).await,
            What::Embedded(options) => embedded::run(&options).await,
            What::Takeover(options) => takeover::run(&options).await,
            What::Ticks(options) => ticks::run(&options).await,
            What::Cleanup(options) => cleanup::run(&options),
            What::Health(options) => health::run(&options).await,
            What::Loss(options) => loss::run(&options),
            What::Work(options) => work::run(options).await,
            What::Serve(options) => serve::run(&options),
        }
    })
}
