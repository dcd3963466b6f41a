//! The jobs that benchmarks run: as little as possible, so that what is measured is the fleet.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use fettler_jobs::{JobContext, JobKind, Registry};
use fettler_model::{ExclusionClass, JobRequest, JobTerms, Priority, Problem, SlotClass, TenantId};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

/// What a job of a benchmark takes.
#[derive(Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct Arguments {
    /// How long it waits, in milliseconds.
    #[serde(default)]
    wait_ms: u64,
}

/// What it gives.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Output {
    /// When its first line ran, in microseconds since 1970.
    started: u64,
}

/// A job that does nothing, or waits.
#[derive(Debug)]
pub struct Noop;

#[async_trait]
impl JobKind for Noop {
    const NAME: &'static str = "noop";
    const EXCLUSION: ExclusionClass = ExclusionClass::Free;
    const SLOT: SlotClass = SlotClass::Short;
    type Arguments = Arguments;
    type Output = Output;

    async fn run(&self, _: &JobContext, arguments: Arguments) -> Result<Output, Problem> {
        let started = micros();
        if arguments.wait_ms > 0 {
            tokio::time::sleep(Duration::from_millis(arguments.wait_ms)).await;
        }
        Ok(Output { started })
    }
}

/// Microseconds since 1970.
pub fn micros() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| {
            u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
        })
}

/// All kinds of the benchmarks.
pub fn registry() -> Registry {
    Registry::empty().with(Noop)
}

/// A request for a job that waits for so long.
pub fn request(tenant: &TenantId, wait_ms: u64) -> JobRequest {
    JobRequest {
        tenant: tenant.clone(),
        kind: Noop::NAME.parse().expect("a kind"),
        kind_version: 1,
        database: None,
        arguments: if wait_ms > 0 {
            json!({"wait_ms": wait_ms})
        } else {
            json!({})
        },
        exclusion: Noop::EXCLUSION,
        slot: Noop::SLOT,
        priority: Priority::Normal,
        not_before: None,
        deadline: None,
        max_tries: 3,
        unique_key: None,
        retry_of: None,
        tags: Vec::new(),
        terms: JobTerms::default(),
    }
}
