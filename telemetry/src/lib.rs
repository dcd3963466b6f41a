//! What Fettler tells of itself: its log on the standard error output, its traces by OTLP, its metrics for
//! Prometheus. The other rooms only write `tracing` spans and events and `metrics` counts; where those go is
//! decided here, once for each process.
//!
//! Spans for traces alone have the target [`TRACE`]: they are not shown in the log, whose lines name only the job that they are
//! about.
//!
//! Nothing of it is needed for the work: a collector that is away costs spans and nothing else.

mod lines;
pub mod metric;
mod start;
mod trace;

/// The target of spans that belong into traces only.
pub const TRACE: &str = "fettler::trace";

pub use start::{LogForm, Options, Telemetry, TelemetryError, start};
pub use trace::{TraceParent, continue_trace, describe, trace_parent};
