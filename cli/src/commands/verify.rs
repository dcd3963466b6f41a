//! `fettler verify`: reads a backup's stored bytes and says what is damaged.

use fettler_jobs::{BackupPlace, VerifyArguments, VerifyOutput};
use serde_json::json;

use crate::{
    app::App,
    args::VerifyArgs,
    commands::{catalogue, result_of},
    failure::{Exit, Outcome},
    output::table,
    run::{self, Asked},
    select,
    services::Use,
    units,
};

pub(crate) async fn run(app: &App, args: &VerifyArgs) -> Outcome {
    let (backup, place) = match app.remote() {
        Some(remote) => {
            let backup = select::backup_there(app, remote, &args.backup.backup).await?;
            (backup.facts.id, None)
        }
        None => {
            let repository = app.repository(Use::Read).await?;
            let backup = select::backup(&repository, &args.backup.backup).await?;
            catalogue::complete(app, &repository).await?;
            (backup.id, Some(app.settings().repository_place()))
        }
    };
    let arguments = VerifyArguments {
        place: BackupPlace(place),
        backup,
        sample_percent: args.sample,
    };
    let asked = Asked {
        submission: args.submission.clone(),
        ..Asked::about("verify", &arguments, format!("verify {}", backup.short()))
    };
    if args.submission.detach {
        return run::detach(app, &asked).await;
    }
    let job = run::run(app, &asked).await?;
    let found: VerifyOutput = result_of(&job)?;
    let mut document = json!(found);
    document["job"] = json!(job.id);
    app.output.result(&document, || text(&found));
    Ok(if found.ok {
        Exit::Done
    } else {
        Exit::FoundWrong
    })
}

fn text(found: &VerifyOutput) -> String {
    let read = units::size(found.bytes_read);
    let short = found.backup.short();
    if found.ok {
        return format!("Backup {short} is sound: {read} were read and authenticated.");
    }
    let damaged = table(
        &["object", "stream", "offset", "what"],
        found.damaged.iter().map(|damage| {
            vec![
                damage.object.clone(),
                damage.stream.clone().unwrap_or_default(),
                damage.offset.map_or_else(String::new, units::count),
                damage.what.clone(),
            ]
        }),
    );
    format!(
        "{damaged}\n\nBackup {short} is DAMAGED ({read} were read). The next backup stores anew what is damaged; `fettler check` looks at the others."
    )
}
