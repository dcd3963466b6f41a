//! The trace context: from a request into the job's row, and from there into the attempt that runs it, in the
//! form of W3C's Trace Context recommendation.

use std::{fmt, str::FromStr};

use opentelemetry::{
    Context,
    trace::{SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState},
};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

/// Where in a trace something was asked for: the value of a header `traceparent`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceParent(SpanContext);

impl fmt::Display for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(context) = self;
        write!(
            f,
            "00-{}-{}-{:02x}",
            context.trace_id(),
            context.span_id(),
            context.trace_flags() & TraceFlags::SAMPLED
        )
    }
}

/// Not the value of a header `traceparent`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a trace context is written as 00-<32 hexadecimal digits>-<16 of them>-<2 of them>")]
pub struct NotATraceParent;

impl FromStr for TraceParent {
    type Err = NotATraceParent;

    /// Versions after 00 are read by the fields that 00 has, as the recommendation wants it.
    fn from_str(text: &str) -> Result<Self, NotATraceParent> {
        let mut fields = text.split('-');
        let mut field = |digits: usize| {
            fields
                .next()
                .filter(|field| {
                    field.len() == digits
                        && field
                            .bytes()
                            .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
                })
                .ok_or(NotATraceParent)
        };
        let (version, trace, span, flags) = (field(2)?, field(32)?, field(16)?, field(2)?);
        if version == "ff" || (version == "00" && fields.next().is_some()) {
            return Err(NotATraceParent);
        }
        let context = SpanContext::new(
            TraceId::from_hex(trace).map_err(|_| NotATraceParent)?,
            SpanId::from_hex(span).map_err(|_| NotATraceParent)?,
            TraceFlags::new(u8::from_str_radix(flags, 16).map_err(|_| NotATraceParent)?),
            true,
            TraceState::NONE,
        );
        if context.is_valid() {
            Ok(Self(context))
        } else {
            Err(NotATraceParent)
        }
    }
}

/// Where the current span stands, when traces are sent and this one is.
#[must_use]
pub fn trace_parent() -> Option<TraceParent> {
    let context = Span::current().context();
    let span = context.span().span_context().clone();
    (span.is_valid() && span.is_sampled()).then_some(TraceParent(span))
}

/// Makes `span` a part of the trace that began elsewhere. Call it before the span is entered; where no
/// traces are sent nothing happens.
pub fn continue_trace(span: &Span, parent: &TraceParent) {
    let context = Context::new().with_remote_span_context(parent.0.clone());
    if let Err(error) = span.set_parent(context) {
        tracing::trace!(?error, "the span does not continue its trace");
    }
}

/// Says more of a span in its trace than its log lines show.
pub fn describe(span: &Span, attributes: impl IntoIterator<Item = (&'static str, String)>) {
    for (name, value) in attributes {
        span.set_attribute(name, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_trace_context_is_written_as_it_was_read() {
        let parent: TraceParent = GOOD.parse().expect("it is well formed");
        assert_eq!(parent.to_string(), GOOD);
    }

    #[test]
    fn flags_that_are_not_known_are_not_passed_on() {
        let parent: TraceParent = GOOD
            .replace("-01", "-ff")
            .parse()
            .expect("it is well formed");
        assert_eq!(parent.to_string(), GOOD);
    }

    #[test]
    fn a_later_version_may_have_more_fields_and_the_first_may_not() {
        assert!(
            format!("01{}-more", &GOOD[2..])
                .parse::<TraceParent>()
                .is_ok()
        );
        assert!(format!("{GOOD}-more").parse::<TraceParent>().is_err());
    }

    #[test]
    fn what_is_no_trace_context_is_refused() {
        for bad in [
            "",
            "00",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e473-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-é",
        ] {
            assert_eq!(bad.parse::<TraceParent>(), Err(NotATraceParent), "{bad}");
        }
    }

    /// As a process that sends traces has it, without a collector.
    fn traced(work: impl FnOnce()) {
        use opentelemetry::trace::TracerProvider as _;
        use tracing_subscriber::{Layer as _, layer::SubscriberExt as _};

        let provider = opentelemetry_sdk::trace::SdkTracerProvider::builder().build();
        let layer = tracing_opentelemetry::layer()
            .with_tracer(provider.tracer("tests"))
            .with_filter(crate::start::ours());
        let log = tracing_subscriber::fmt::layer()
            .with_writer(std::io::sink)
            .with_filter(crate::start::logged());
        let subscriber = tracing_subscriber::registry().with(log).with(Some(layer));
        tracing::subscriber::with_default(subscriber, work);
    }

    #[test]
    fn a_trace_is_handed_on_from_the_span_that_asks_to_the_one_that_works() {
        traced(|| {
            let asked = tracing::info_span!(target: "fettler::trace", "send");
            let given: TraceParent = GOOD.parse().expect("it is well formed");
            continue_trace(&asked, &given);
            let handed = asked.in_scope(trace_parent).expect("it is traced");
            let text = handed.to_string();
            assert!(text.starts_with(&GOOD[..36]), "{text}");
            assert_ne!(text, GOOD, "the span is another one");

            let works = tracing::info_span!("job");
            continue_trace(&works, &handed);
            describe(&works, [("messaging.system", "fettler".to_owned())]);
            let in_work = works.in_scope(trace_parent).expect("it is traced");
            assert!(in_work.to_string().starts_with(&GOOD[..36]), "{in_work}");
        });
    }

    #[test]
    fn where_nothing_is_traced_there_is_nothing_to_hand_on() {
        let span = tracing::info_span!("send");
        assert_eq!(span.in_scope(trace_parent), None);
    }
}
