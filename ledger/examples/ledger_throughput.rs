//! Measures jobs a second through a ledger alone: submitted by many callers, claimed in batches, ended
//! by many callers. `cargo run --release -p fettler-ledger --example ledger_throughput -- URL [JOBS] [CALLERS]`.

use std::time::Instant;

use fettler_ledger::{ClaimRequest, Ending, Fencing, Ledger, WorkerSkills};
use fettler_model::{ExclusionClass, JobRequest, JobTerms, Priority, SlotClass, TenantId};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let url = arguments.next().ok_or("give the ledger's URL")?;
    let jobs: usize = arguments.next().map_or(Ok(20_000), |text| text.parse())?;
    let callers: usize = arguments.next().map_or(Ok(100), |text| text.parse())?;
    let ledger = Ledger::open(&url).await?;
    let request = JobRequest {
        tenant: TenantId::default_tenant(),
        kind: "noop".parse()?,
        kind_version: 1,
        database: None,
        arguments: serde_json::Value::Null,
        exclusion: ExclusionClass::Free,
        slot: SlotClass::Short,
        priority: Priority::Normal,
        not_before: None,
        deadline: None,
        max_tries: 1,
        unique_key: None,
        retry_of: None,
        tags: Vec::new(),
        terms: JobTerms::default(),
    };
    let started = Instant::now();
    let submitters = (0..callers).map(|_| {
        let (ledger, request) = (ledger.clone(), request.clone());
        tokio::spawn(async move {
            for _ in 0..jobs / callers {
                ledger.submit(request.clone(), None).await?;
            }
            Ok::<_, fettler_ledger::LedgerError>(())
        })
    });
    for submitter in futures::future::join_all(submitters).await {
        submitter??;
    }
    report("submitted", jobs, started);

    let room = ClaimRequest {
        worker: "throughput".to_owned(),
        kinds: vec!["noop".parse()?],
        long: 0,
        short: callers,
        lease: std::time::Duration::from_secs(600),
        skills: WorkerSkills::default(),
        only: None,
    };
    let started = Instant::now();
    let mut ended = 0;
    loop {
        let batch = ledger.claim(&room).await?.jobs;
        if batch.is_empty() {
            break;
        }
        ended += batch.len();
        let ends = batch.into_iter().map(|claimed| {
            let fencing = Fencing {
                job: claimed.job.id,
                token: claimed.token,
            };
            let ending = Ending::Succeeded {
                result: serde_json::Value::Null,
            };
            ledger.complete(fencing, ending)
        });
        for outcome in futures::future::join_all(ends).await {
            outcome?;
        }
    }
    report("claimed and ended", ended, started);
    Ok(())
}

fn report(what: &str, jobs: usize, started: Instant) {
    let seconds = started.elapsed().as_secs_f64();
    println!("{what}: {jobs} jobs in {seconds:.2} s");
}
