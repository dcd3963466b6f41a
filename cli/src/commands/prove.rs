//! `fettler prove`: shows that a backup restores.

use fettler_jobs::{BackupPlace, ProveArguments, ProveOutput};
use fettler_model::{BackupId, DatabaseId, ProofVerdict};
use serde_json::{Value, json};

use crate::{
    app::App,
    args::{ProveArgs, SandboxArgs},
    commands::{catalogue, result_of},
    failure::{Exit, Failure, Outcome},
    run::{self, Asked},
    select,
    services::Use,
    units,
};

pub(crate) async fn run(app: &App, args: &ProveArgs) -> Outcome {
    let sandbox_args = SandboxArgs {
        sandbox: args.sandbox.clone(),
        sandbox_password: args.sandbox_password.clone(),
    };
    let (backup, database, arguments) = match app.remote() {
        Some(remote) => {
            let backup = select::backup_there(app, remote, &args.backup.backup).await?;
            let sandbox = select::sent_sandbox(&sandbox_args)?;
            let arguments = json!({"backup": backup.facts.id, "sandbox": sandbox});
            (backup.facts.id, backup.facts.database, arguments)
        }
        None => here(app, args, &sandbox_args).await?,
    };
    let asked = Asked {
        kind: "prove",
        database,
        arguments,
        submission: args.submission.clone(),
        title: format!("prove {}", backup.short()),
    };
    if args.submission.detach {
        return run::detach(app, &asked).await;
    }
    let job = run::run(app, &asked).await?;
    let proof: ProveOutput = result_of(&job)?;
    let mut document = json!(proof);
    document["job"] = json!(job.id);
    app.output.result(&document, || proof_text(&proof));
    Ok(if proof.proven {
        Exit::Done
    } else {
        Exit::FoundWrong
    })
}

/// What is asked of this folder's own repository.
async fn here(
    app: &App,
    args: &ProveArgs,
    sandbox: &SandboxArgs,
) -> Result<(BackupId, Option<DatabaseId>, Value), Failure> {
    let repository = app.repository(Use::Read).await?;
    let backup = select::backup(&repository, &args.backup.backup).await?;
    catalogue::complete(app, &repository).await?;
    // Its record says where its proofs go; a backup of a database that is not known has none.
    let database = select::known_database(app, &backup.database_name).await?;
    let arguments = ProveArguments {
        place: BackupPlace(Some(app.settings().repository_place())),
        backup: backup.id,
        sandbox: select::sandbox(app, sandbox).await?,
    };
    let arguments = serde_json::to_value(arguments).expect("arguments are plain data");
    Ok((backup.id, database.map(|record| record.id), arguments))
}

/// What a proof says, for people.
pub(crate) fn proof_text(proof: &ProveOutput) -> String {
    let short = proof.backup.short();
    let restored = units::span(std::time::Duration::from_secs_f64(
        proof.restore_seconds.max(0.0),
    ));
    let compared = units::count(proof.fingerprints_compared);
    let list =
        |lines: &[String]| -> String { lines.iter().map(|line| format!("\n  {line}")).collect() };
    match proof.verdict {
        ProofVerdict::Proven => format!(
            "\nPROVEN: backup {short} was restored in {restored}, and {compared} fingerprints and values are equal."
        ),
        ProofVerdict::MatchesWhatWasRead => format!(
            "\nNot proven: backup {short} was restored in {restored} and matches what was read ({compared} compared), but nothing independent says that all was read:{}",
            list(&proof.doubts)
        ),
        ProofVerdict::Failed => format!(
            "\nTHE PROOF FAILED: backup {short} was restored in {restored}, and differs:{}",
            list(&proof.mismatches)
        ),
    }
}
