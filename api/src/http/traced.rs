//! Requests in traces, by OpenTelemetry's conventions for HTTP: a part of the caller's trace where the request names one
//! (`traceparent`), the beginning of a new one otherwise. Jobs that it submits are part of it.

use axum::{
    extract::{MatchedPath, Request},
    middleware::Next,
    response::Response,
};
use tracing::{Instrument, field::Empty};

/// The header of W3C's Trace Context.
const TRACE_PARENT: &str = "traceparent";

/// Answers a request within a span of its own.
pub(crate) async fn traced(request: Request, next: Next) -> Response {
    let method = request.method().as_str();
    let route = request
        .extensions()
        .get::<MatchedPath>()
        .map_or("", MatchedPath::as_str);
    let span = tracing::info_span!(
        target: fettler_telemetry::TRACE,
        "request",
        otel.name = format!("{method} {route}").trim_end(),
        otel.kind = "server",
        otel.status_code = Empty,
        http.request.method = method,
        http.route = route,
        http.response.status_code = Empty,
    );
    let parent = request
        .headers()
        .get(TRACE_PARENT)
        .and_then(|value| value.to_str().ok())
        .and_then(|text| text.parse().ok());
    if let Some(parent) = parent {
        fettler_telemetry::continue_trace(&span, &parent);
    }
    let response = next.run(request).instrument(span.clone()).await;
    let status = response.status();
    span.record("http.response.status_code", status.as_u16());
    if status.is_server_error() {
        span.record("otel.status_code", "ERROR");
    }
    response
}
