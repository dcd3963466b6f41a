//! What Fettler tells of itself: its log on the standard error output, its traces by OTLP, its metrics for
//! Prometheus. The other rooms only write `tracing` spans and events and `metrics` counts; where those go is
//! decided here, once for each process.
//!
//! Nothing of it is needed for the work: a collector that is away costs spans and nothing else.

pub mod metric;
mod start;
mod trace;

pub use start::{LogForm, Options, Telemetry, TelemetryError, start};
pub use trace::{TraceParent, continue_trace, trace_parent};
