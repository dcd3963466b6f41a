//! The commands, one file each.

pub(crate) mod api;
mod archive;
mod audit;
mod backup;
mod backups;
mod browse;
mod catalogue;
mod check;
mod checks;
mod cleanup;
mod collect;
pub(crate) mod completions;
pub(crate) mod config;
mod copy_data;
mod database;
mod diff;
mod extract;
mod findings;
mod forget;
mod grants;
mod health;
mod hold;
mod jobs;
mod key;
mod kinds;
mod limit;
mod pause;
mod ping;
mod policy;
mod preflight;
mod prove;
mod restore;
mod show;
mod tenant;
mod token;
mod tune;
pub(crate) mod up;
mod verify;
mod worker;

use crate::{
    app::App,
    args::{CatalogueCommand, Command, DatabaseCommand},
    demo,
    failure::{Exit, Failure, Outcome},
};

pub(crate) use policy::refused as refused_policy;
pub(crate) use prove::proof_text;

/// Runs a command.
pub(crate) async fn run(app: &App, command: Command) -> Outcome {
    if app.remote().is_some() && !asks_another(&command) {
        return Err(Failure::usage(
            "this command works on this machine, and `--server` asks another one",
            "leave `--server` (or FETTLER_SERVER) out, or run it there",
        ));
    }
    match command {
        Command::Demo(args) => demo::run(app, &args).await,
        Command::Health(args) => health::run(app, &args).await,
        Command::Audit(args) => audit::run(app, &args).await,
        Command::Tune(args) => tune::run(app, &args).await,
        Command::Findings(args) => findings::run(app, &args).await,
        Command::Checks(command) => checks::run(app, &command),
        Command::Backup(args) => backup::run(app, &args).await,
        Command::Archive(args) => archive::run(app, &args).await,
        Command::Backups(args) => backups::run(app, &args).await,
        Command::Show(args) => show::run(app, &args).await,
        Command::Browse(args) => browse::run(app, &args).await,
        Command::Extract(args) => extract::run(app, &args).await,
        Command::Verify(args) => verify::run(app, &args).await,
        Command::Prove(args) => prove::run(app, &args).await,
        Command::Restore(args) => restore::run(app, &args).await,
        Command::CopyData(args) => copy_data::run(app, &args).await,
        Command::Cleanup(args) => cleanup::run(app, &args).await,
        Command::Diff(args) => diff::run(app, &args).await,
        Command::Forget(args) => forget::run(app, &args).await,
        Command::Hold(args) => hold::run(app, &args).await,
        Command::Ping(args) => ping::run(app, &args).await,
        Command::Collect(args) => collect::run(app, &args).await,
        Command::Check(args) => check::run(app, &args).await,
        Command::Catalogue(CatalogueCommand::Rebuild) => catalogue::rebuild(app).await,
        Command::Key(command) => key::run(app, &command).await,
        Command::Up(args) => up::run(app, &args).await,
        Command::Tenant(command) => tenant::run(app, &command).await,
        Command::Database(DatabaseCommand::GrantSql(args)) => grants::run(app, &args).await,
        Command::Database(command) => database::run(app, &command).await,
        Command::Policy(command) => policy::run(app, &command).await,
        Command::Jobs(args) => jobs::run(app, &args).await,
        Command::Limit(command) => limit::run(app, &command).await,
        Command::Pause(args) => pause::pause(app, &args).await,
        Command::Resume(args) => pause::resume(app, &args).await,
        Command::Kinds(args) => kinds::run(app, &args),
        Command::Preflight(args) => preflight::run(app, &args).await,
        Command::Worker(args) => worker::run(app, &args).await,
        Command::Scheduler(args) => up::scheduler(app, &args).await,
        Command::Api(_) => up::api(app).await,
        Command::Token(command) => token::run(app, &command).await,
        // They were run before there were settings.
        Command::Config(_) | Command::Completions(_) => Ok(Exit::Done),
    }
}

/// Whether a command can be asked of another Fettler.
const fn asks_another(command: &Command) -> bool {
    matches!(
        command,
        Command::Backup(_)
            | Command::Archive(_)
            | Command::Backups(_)
            | Command::Show(_)
            | Command::Browse(_)
            | Command::CopyData(_)
            | Command::Cleanup(_)
            | Command::Diff(_)
            | Command::Forget(_)
            | Command::Hold(_)
            | Command::Ping(_)
            | Command::Health(_)
            | Command::Audit(_)
            | Command::Findings(_)
            | Command::Tune(_)
            | Command::Collect(_)
            | Command::Check(_)
            | Command::Verify(_)
            | Command::Prove(_)
            | Command::Restore(_)
            | Command::Tenant(_)
            | Command::Database(_)
            | Command::Policy(_)
            | Command::Jobs(_)
            | Command::Limit(_)
            | Command::Pause(_)
            | Command::Resume(_)
            | Command::Token(_)
            | Command::Kinds(_)
    )
}

/// A job's result as the type that its kind gives.
pub(crate) fn result_of<T: serde::de::DeserializeOwned>(
    job: &fettler_ledger::JobRecord,
) -> Result<T, crate::failure::Failure> {
    let result = job.result.clone().unwrap_or_default();
    serde_json::from_value(result).map_err(|error| {
        fettler_model::Problem::permanent(
            "job.result",
            format!(
                "the result of job {} cannot be read: {error}",
                job.id.short()
            ),
            "another version of Fettler may have run it; `fettler jobs show` prints it as it is",
        )
        .into()
    })
}
