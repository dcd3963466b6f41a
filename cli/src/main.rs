//! The binary `fettler`: reads the command line and the settings, and calls the command.

mod app;
mod args;
mod commands;
mod demo;
mod desk;
mod failure;
mod folder;
mod output;
mod premises;
mod progress;
mod remote;
mod run;
mod select;
mod services;
mod telemetry;
mod units;

use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches};

use app::App;
use args::{Cli, Command};
use failure::{Exit, Failure, Outcome};
use output::Output;

fn main() -> ExitCode {
    let cli = match Cli::command()
        .try_get_matches()
        .and_then(|matches| Cli::from_arg_matches(&matches))
    {
        Ok(cli) => cli,
        Err(error) => return misused(&error),
    };
    let output = Output::new(&cli.global);
    // The provider of cryptography is chosen here and nowhere else; a second choice would be refused.
    let _already_chosen = rustls::crypto::aws_lc_rs::default_provider().install_default();
    match begin(cli, output) {
        Ok(exit) => ExitCode::from(exit.code()),
        Err(failure) => {
            output.failure(&failure);
            ExitCode::from(failure.exit.code())
        }
    }
}

/// Says what is wrong with the command line. Who asked for JSON gets JSON, though nothing was read.
fn misused(error: &clap::Error) -> ExitCode {
    let wants_json = std::env::args_os().any(|argument| argument == "--json");
    if error.use_stderr() && wants_json {
        let failure = Failure::usage(error.to_string().trim_end(), "");
        let text = serde_json::to_string_pretty(&failure.to_json())
            .expect("documents hold text, numbers and lists only");
        println!("{text}");
    }
    // The reader may have gone away, and then there is nobody to tell.
    let _unread = error.print();
    let exit = if error.use_stderr() {
        Exit::Usage
    } else {
        Exit::Done
    };
    ExitCode::from(exit.code())
}

fn begin(cli: Cli, output: Output) -> Outcome {
    // Neither needs settings, and both must work where settings have mistakes.
    match &cli.command {
        Command::Completions(args) => return commands::completions::run(args),
        Command::Config(command) => return commands::config::run(&cli.global, command, output),
        _ => {}
    }
    let sources = app::sources_for(&cli)?;
    let loaded = fettler_config::load(&sources)?;
    let telemetry = telemetry::start(&loaded.settings, &cli)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::local("the threads of this process cannot be started", &error))?;
    let outcome = runtime.block_on(async {
        let app = App::new(output, sources, loaded).told(&cli.global)?;
        let outcome = commands::run(&app, cli.command).await;
        app.close().await;
        outcome
    });
    // What still runs on other threads belongs to nobody any more.
    runtime.shutdown_background();
    telemetry.finish();
    outcome
}
