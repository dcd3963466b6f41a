//! A collector of traces: takes OTLP over HTTP in on a loopback port, and keeps the spans for a test to look at.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    thread,
};

use axum::{Router, body::Bytes, extract::State, http::StatusCode, routing::post};
use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::{AnyValue, KeyValue, any_value::Value},
};
use prost::Message;
use tokio_util::sync::CancellationToken;

/// A span as it was sent.
#[derive(Clone, Debug)]
pub struct SeenSpan {
    /// The trace that it is a part of.
    pub trace: String,
    /// Its id within the trace.
    pub id: String,
    /// The span that it is a part of; empty for the first of a trace.
    pub parent: String,
    /// Its name.
    pub name: String,
    /// The service that sent it.
    pub service: String,
    /// Its attributes, as text.
    pub attributes: HashMap<String, String>,
}

type Spans = Arc<Mutex<Vec<SeenSpan>>>;

/// A collector. Dropping it stops it.
#[derive(Debug)]
pub struct OtlpReceiver {
    url: String,
    spans: Spans,
    stop: CancellationToken,
    thread: Option<thread::JoinHandle<()>>,
}

impl OtlpReceiver {
    /// Starts a collector on a port of its own.
    ///
    /// # Errors
    ///
    /// When no port can be had.
    pub fn start() -> std::io::Result<Self> {
        let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
        listener.set_nonblocking(true)?;
        let url = format!("http://{}", listener.local_addr()?);
        let (spans, stop) = (Spans::default(), CancellationToken::new());
        let router = Router::new()
            .route("/v1/traces", post(take_in))
            .with_state(spans.clone());
        let stopped = stop.clone();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let thread = thread::spawn(move || {
            runtime.block_on(async move {
                let listener =
                    tokio::net::TcpListener::from_std(listener).expect("it does not block");
                axum::serve(listener, router)
                    .with_graceful_shutdown(stopped.cancelled_owned())
                    .await
                    .expect("serving never fails");
            });
        });
        Ok(Self {
            url,
            spans,
            stop,
            thread: Some(thread),
        })
    }

    /// Where it takes traces in.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// What has arrived so far.
    #[must_use]
    pub fn spans(&self) -> Vec<SeenSpan> {
        self.spans
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

impl Drop for OtlpReceiver {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            // A panic of the collector shows in the test as spans that are missing.
            let _ended = thread.join();
        }
    }
}

async fn take_in(State(spans): State<Spans>, body: Bytes) -> StatusCode {
    let Ok(request) = ExportTraceServiceRequest::decode(body) else {
        return StatusCode::BAD_REQUEST;
    };
    let mut seen = spans.lock().unwrap_or_else(PoisonError::into_inner);
    for resource in request.resource_spans {
        let service = resource
            .resource
            .map(|resource| attributes(resource.attributes))
            .and_then(|mut attributes| attributes.remove("service.name"))
            .unwrap_or_default();
        for span in resource
            .scope_spans
            .into_iter()
            .flat_map(|scope| scope.spans)
        {
            seen.push(SeenSpan {
                trace: hex::encode(span.trace_id),
                id: hex::encode(span.span_id),
                parent: hex::encode(span.parent_span_id),
                name: span.name,
                service: service.clone(),
                attributes: attributes(span.attributes),
            });
        }
    }
    StatusCode::OK
}

fn attributes(list: Vec<KeyValue>) -> HashMap<String, String> {
    list.into_iter()
        .map(|pair| (pair.key, text(pair.value)))
        .collect()
}

fn text(value: Option<AnyValue>) -> String {
    match value.and_then(|value| value.value) {
        Some(Value::StringValue(text)) => text,
        Some(Value::IntValue(number)) => number.to_string(),
        Some(Value::BoolValue(flag)) => flag.to_string(),
        Some(Value::DoubleValue(number)) => number.to_string(),
        other => format!("{other:?}"),
    }
}
