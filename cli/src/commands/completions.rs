//! `fettler completions`: a script that completes commands in a shell.

use clap::CommandFactory;

use crate::{
    args::{Cli, CompletionsArgs},
    failure::{Exit, Outcome},
};

pub(crate) fn run(args: &CompletionsArgs) -> Outcome {
    clap_complete::generate(
        args.shell,
        &mut Cli::command(),
        "fettler",
        &mut std::io::stdout(),
    );
    Ok(Exit::Done)
}
