//! `fettler hold`: keeps a backup from being forgotten, whatever the rules say.

use fettler_jobs::{BackupPlace, HoldArguments, HoldOutput};

use crate::{
    app::App,
    args::HoldArgs,
    commands::result_of,
    failure::{Exit, Outcome},
    run::{self, Asked},
    select,
    services::Use,
};

pub(crate) async fn run(app: &App, args: &HoldArgs) -> Outcome {
    let held = !args.release;
    let output = if let Some(remote) = app.remote() {
        let record = select::backup_there(app, remote, &args.backup.backup).await?;
        let arguments = HoldArguments {
            place: BackupPlace(None),
            backup: record.facts.id,
            held,
        };
        let title = format!("hold {}", record.facts.id.short());
        result_of(&run::run(app, &Asked::about("hold", &arguments, title)).await?)?
    } else {
        let repository = app.repository(Use::Read).await?;
        let backup = select::backup(&repository, &args.backup.backup).await?;
        let changed = backup.held != held;
        if changed {
            repository.hold(backup.id, held).await?;
        }
        HoldOutput {
            backup: backup.id,
            held,
            changed,
        }
    };
    app.output.result(&output, || {
        let short = output.backup.short();
        match (output.held, output.changed) {
            (true, true) => format!("Backup {short} is held: nothing forgets it."),
            (true, false) => format!("Backup {short} was held already."),
            (false, true) => format!("Backup {short} is let go: keep rules decide."),
            (false, false) => format!("Backup {short} was not held."),
        }
    });
    Ok(if output.changed {
        Exit::Done
    } else {
        Exit::Nothing
    })
}
