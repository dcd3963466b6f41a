//! `fettler check`: looks at the whole repository of the tenant: every manifest, index and pack, and
//! whether a backup vanished that the ledger knows.

use fettler_jobs::{BackupPlace, CheckArguments, CheckOutput};
use fettler_ledger::LedgerError;
use fettler_model::{BackupId, BackupState};
use tokio_util::sync::CancellationToken;

use crate::{
    app::App,
    args::CheckArgs,
    commands::{backups, result_of},
    failure::{Exit, Failure, Outcome},
    output::table,
    run::{self, Asked, Signals},
    services::Use,
    units,
};

/// Packs of which progress is told.
const TELL_EVERY_BYTES: u64 = 512 * 1024 * 1024;

pub(crate) async fn run(app: &App, args: &CheckArgs) -> Outcome {
    let found = if app.remote().is_some() {
        let arguments = CheckArguments {
            place: BackupPlace(None),
            read_percent: args.read_data,
        };
        let asked = Asked::about("check", &arguments, "check".to_owned());
        result_of(&run::run(app, &asked).await?)?
    } else {
        here(app, args).await?
    };
    app.output.result(&found, || text(&found));
    Ok(if found.ok {
        Exit::Done
    } else {
        Exit::FoundWrong
    })
}

/// Looks at the repository from this process, whoever else works in the folder.
async fn here(app: &App, args: &CheckArgs) -> Result<CheckOutput, Failure> {
    let repository = app.repository(Use::Read).await?;
    let known = backups::known(app).await?;
    let expected: Vec<BackupId> = known
        .values()
        .filter(|record| record.state != BackupState::Forgotten)
        .map(|record| record.facts.id)
        .collect();
    let stop = CancellationToken::new();
    let mut signals = Signals::listen()?;
    let output = app.output;
    let (mut read, mut told) = (0, 0);
    let mut progress = move |bytes: u64| {
        read += bytes;
        if read - told >= TELL_EVERY_BYTES {
            told = read;
            output.notice(&format!("check: {} read", units::size(read)));
        }
    };
    let report = {
        let checking = repository.check(args.read_data, &expected, &mut progress, &stop);
        let mut checking = std::pin::pin!(checking);
        loop {
            tokio::select! {
                report = &mut checking => break report?,
                _ = signals.next() => stop.cancel(),
            }
        }
    };
    let found = CheckOutput::of(repository.place(), report);
    record(app, &found).await?;
    Ok(found)
}

/// Brings what was found into the list of backups.
async fn record(app: &App, found: &CheckOutput) -> Result<(), Failure> {
    let ledger = app.ledger().await?;
    for (id, state, why) in found.findings() {
        match ledger.set_backup_state(id, state, why, None).await {
            // A ledger that never knew it has nothing to change.
            Ok(()) | Err(LedgerError::NotFound { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn text(report: &CheckOutput) -> String {
    let looked = format!(
        "{}, {}, {} of them read ({})",
        units::things(report.backups, "backup"),
        units::things(report.packs, "pack"),
        units::count(report.packs_read),
        units::size(report.bytes_read),
    );
    if report.ok {
        let unneeded = if report.packs_without_backup == 0 {
            String::new()
        } else {
            format!(
                " {} needed by no backup; `fettler collect` gives the space back in time.",
                units::things(report.packs_without_backup, "pack")
            )
        };
        return format!("The repository is sound: {looked}.{unneeded}");
    }
    let mut text = table(
        &["object", "stream", "what"],
        report.damaged.iter().map(|damage| {
            vec![
                damage.object.clone(),
                damage.stream.clone().unwrap_or_default(),
                damage.what.clone(),
            ]
        }),
    );
    let ids = |ids: &[BackupId]| {
        ids.iter()
            .map(|id| id.short())
            .collect::<Vec<_>>()
            .join(", ")
    };
    if !report.incomplete.is_empty() {
        text.push_str(&format!(
            "\n\nNot complete any more: {}.",
            ids(&report.incomplete)
        ));
    }
    if !report.vanished.is_empty() {
        text.push_str(&format!(
            "\n\nVANISHED without having been forgotten: {}. Somebody removed the manifests from the store: bring them back from its versions or a copy.",
            ids(&report.vanished)
        ));
    }
    text.push_str(&format!(
        "\n\nThe repository is DAMAGED: {looked}. The next backup of each database stores anew what it needs; `fettler verify BACKUP` tells what of a backup can still be read."
    ));
    text
}
