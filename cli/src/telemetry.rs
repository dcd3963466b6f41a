//! What this process tells of itself: the log on the standard error output, and traces where they are asked for.

use fettler_config::{LogFormat, Settings};
use fettler_telemetry::{LogForm, Options, Telemetry, TelemetryError};

use crate::{
    args::{Cli, Command},
    failure::Failure,
};

/// Where OpenTelemetry's own tools look for the collector's address: used where the settings name none.
const STANDARD_ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";

/// Begins. Commands that show their progress themselves log warnings only, unless asked.
pub(crate) fn start(settings: &Settings, cli: &Cli) -> Result<Telemetry, Failure> {
    let service = match cli.command {
        Command::Up(_) => "fettler",
        Command::Worker(_) => "fettler-worker",
        Command::Api(_) => "fettler-api",
        Command::Scheduler(_) => "fettler-scheduler",
        _ => "fettler-cli",
    };
    let filter = match (cli.global.verbose, service) {
        // Our own progress and errors say it to people; the log would say it twice.
        (0, "fettler-cli") => "error",
        (0, _) => settings.log.filter.as_str(),
        (1, _) => "info",
        _ => "debug,hyper=info,h2=info,rustls=info,sqlx=info",
    };
    let traces_to = settings
        .traces
        .endpoint
        .clone()
        .or_else(|| std::env::var(STANDARD_ENDPOINT).ok())
        .filter(|address| !address.is_empty());
    let options = Options {
        log_filter: filter.to_owned(),
        log_form: match settings.log.format {
            LogFormat::Text => LogForm::Text,
            LogFormat::Json => LogForm::Json,
        },
        traces_to,
        sample: f64::from(settings.traces.sample_percent) / 100.0,
        service,
        instance: settings
            .worker
            .name
            .clone()
            .unwrap_or_else(|| std::process::id().to_string()),
    };
    fettler_telemetry::start(&options).map_err(|error| {
        let remedy = match &error {
            TelemetryError::Filter { .. } => {
                "write `log.filter` as `info` or `warn,fettler_worker=debug`"
            }
            TelemetryError::Collector { .. } => {
                "write `traces.endpoint` as `http://host:4318`, without a path"
            }
        };
        Failure::usage(error.to_string(), remedy)
    })
}
