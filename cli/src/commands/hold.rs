//! `fettler hold`: keeps a backup from being forgotten, whatever the rules say.

use serde_json::json;

use crate::{
    app::App,
    args::HoldArgs,
    failure::{Exit, Outcome},
    select,
    services::Use,
};

pub(crate) async fn run(app: &App, args: &HoldArgs) -> Outcome {
    let repository = app.repository(Use::Read).await?;
    let backup = select::backup(&repository, &args.backup.backup).await?;
    let hold = !args.release;
    let changes = backup.held != hold;
    if changes {
        repository.hold(backup.id, hold).await?;
    }
    app.output.result(
        &json!({ "backup": backup.id, "held": hold, "changed": changes }),
        || {
            let short = backup.id.short();
            match (hold, changes) {
                (true, true) => format!("Backup {short} is held: nothing forgets it."),
                (true, false) => format!("Backup {short} was held already."),
                (false, true) => format!("Backup {short} is let go: keep rules decide."),
                (false, false) => format!("Backup {short} was not held."),
            }
        },
    );
    Ok(if changes { Exit::Done } else { Exit::Nothing })
}
