//! The log of this process, on the standard error output.

use fettler_config::{LogFormat, LogSettings};
use tracing_subscriber::EnvFilter;

use crate::{
    args::{Cli, Command},
    failure::Failure,
};

/// Begins to log. Commands that show their progress themselves log warnings only, unless asked.
pub(crate) fn start(settings: &LogSettings, cli: &Cli) -> Result<(), Failure> {
    let is_service = matches!(
        cli.command,
        Command::Up(_) | Command::Worker(_) | Command::Scheduler | Command::Api(_)
    );
    let filter = match (cli.global.verbose, is_service) {
        (0, true) => settings.filter.as_str(),
        // Our own progress and errors say it to people; the log would say it twice.
        (0, false) => "error",
        (1, _) => "info",
        _ => "debug,hyper=info,h2=info,rustls=info,sqlx=info",
    };
    let filter = EnvFilter::try_new(filter).map_err(|error| {
        Failure::usage(
            format!("the log filter {filter:?} cannot be read: {error}"),
            "write `log.filter` as `info` or `warn,fettler_worker=debug`",
        )
    })?;
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()));
    match settings.format {
        LogFormat::Text => log.with_target(false).init(),
        LogFormat::Json => log.json().init(),
    }
    Ok(())
}
