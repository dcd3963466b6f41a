//! The one place where a process decides what becomes of its spans, events and counts.

use std::{io::IsTerminal, time::Duration};

use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::{WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::{
    Resource,
    trace::{Sampler, SdkTracerProvider},
};
use thiserror::Error;
use tracing::{Subscriber, level_filters::LevelFilter};
use tracing_subscriber::{
    EnvFilter, Layer, filter::FilterExt as _, layer::SubscriberExt, registry::LookupSpan,
};

use crate::{TRACE, lines::Fields};

/// Where a collector takes traces in, below the address that was given.
const TRACES_PATH: &str = "/v1/traces";
/// How long a collector may take to answer.
const EXPORT_WITHIN: Duration = Duration::from_secs(5);
/// How long the end of the process waits for its last spans.
const FLUSH_WITHIN: Duration = Duration::from_secs(3);

/// The form of the log's lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogForm {
    /// For people.
    Text,
    /// One JSON document a line.
    Json,
}

/// What a process tells of itself.
#[derive(Clone, Debug)]
pub struct Options {
    /// Which events are logged, such as `info` or `warn,fettler_worker=debug`.
    pub log_filter: String,
    /// The form of the log's lines.
    pub log_form: LogForm,
    /// Where traces are sent, such as `http://collector:4318`; none are made without it.
    pub traces_to: Option<String>,
    /// Which part of the traces that begin here is kept, 0 to 1. A trace that began elsewhere is kept when it was
    /// kept there.
    pub sample: f64,
    /// What the process is, such as `fettler-worker`.
    pub service: &'static str,
    /// The process among those of its service.
    pub instance: String,
}

/// Why a process cannot tell of itself as it was asked to.
#[derive(Debug, Error)]
pub enum TelemetryError {
    /// The log filter is malformed.
    #[error("the log filter {filter:?} cannot be read: {why}")]
    Filter {
        /// As it was given.
        filter: String,
        /// What is wrong.
        why: String,
    },
    /// The address of the collector is.
    #[error("traces cannot be sent to {address:?}: {why}")]
    Collector {
        /// As it was given.
        address: String,
        /// What is wrong.
        why: String,
    },
}

/// Holds what has to be ended in good order.
#[derive(Debug)]
#[must_use = "the last spans are sent when it is finished"]
pub struct Telemetry {
    traces: Option<SdkTracerProvider>,
}

impl Telemetry {
    /// Sends what was not sent yet, for some seconds at most. It blocks: call it when the work is over.
    pub fn finish(self) {
        if let Some(traces) = self.traces
            && let Err(error) = traces.shutdown_with_timeout(FLUSH_WITHIN)
        {
            tracing::warn!(%error, "the last traces were not sent");
        }
    }
}

/// Begins to log and, where asked, to send traces. Once for each process.
///
/// # Errors
///
/// When the filter or the collector's address is malformed. A collector that does not answer is no error.
pub fn start(options: &Options) -> Result<Telemetry, TelemetryError> {
    let filter =
        EnvFilter::try_new(&options.log_filter).map_err(|error| TelemetryError::Filter {
            filter: options.log_filter.clone(),
            why: error.to_string(),
        })?;
    let traces = options
        .traces_to
        .as_deref()
        .map(|address| provider(options, address))
        .transpose()?;
    let tracer = traces.as_ref().map(|traces| traces.tracer(options.service));
    let subscriber = tracing_subscriber::registry()
        .with(log(options.log_form).with_filter(filter.and(logged())))
        // Whatever the log leaves out, a trace has all its stages.
        .with(tracer.map(|tracer| {
            tracing_opentelemetry::layer()
                .with_tracer(tracer)
                .with_location(false)
                .with_threads(false)
                .with_filter(ours())
        }));
    // What libraries say through the crate `log` is not taken in: whoever only asks through it whether something would be
    // logged leaves the filters of single layers in a wrong state, and the next span or line of that thread is lost. For the
    // same reason the ledger's driver logs no statements.
    tracing::subscriber::set_global_default(subscriber).expect("a process begins to log once");
    Ok(Telemetry { traces })
}

fn log<S>(form: LogForm) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'span> LookupSpan<'span>,
{
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    match form {
        LogForm::Text => lines.with_target(false).fmt_fields(Fields).boxed(),
        // The list of spans ends with the current one.
        LogForm::Json => lines.json().with_current_span(false).boxed(),
    }
}

/// Spans of libraries would drown ours, and those of the exporter would beget further ones.
pub(crate) fn ours() -> tracing_subscriber::filter::FilterFn {
    tracing_subscriber::filter::filter_fn(|metadata| {
        metadata.target().starts_with("fettler") && *metadata.level() <= LevelFilter::INFO
    })
}

/// The log leaves out the spans of traces.
pub(crate) fn logged() -> tracing_subscriber::filter::FilterFn {
    tracing_subscriber::filter::filter_fn(|metadata| metadata.target() != TRACE)
}

fn provider(options: &Options, address: &str) -> Result<SdkTracerProvider, TelemetryError> {
    let refused = |why: String| TelemetryError::Collector {
        address: address.to_owned(),
        why,
    };
    if !address.starts_with("http://") && !address.starts_with("https://") {
        return Err(refused("it must begin with http:// or https://".to_owned()));
    }
    let exporter = opentelemetry_otlp::SpanExporter::builder()
        .with_http()
        .with_endpoint(format!("{}{TRACES_PATH}", address.trim_end_matches('/')))
        .with_timeout(EXPORT_WITHIN)
        .with_headers(std::collections::HashMap::new())
        .build()
        .map_err(|error| refused(error.to_string()))?;
    let resource = Resource::builder()
        .with_service_name(options.service)
        .with_attributes([
            opentelemetry::KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
            opentelemetry::KeyValue::new("service.instance.id", options.instance.clone()),
        ])
        .build();
    Ok(SdkTracerProvider::builder()
        .with_batch_exporter(exporter)
        .with_sampler(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(
            options.sample,
        ))))
        .with_resource(resource)
        .build())
}
