//! `fettler diff`: which tables differ between two backups.

use fettler_jobs::{BackupPlace, Change, DiffArguments, DiffOutput, diff};

use crate::{
    app::App,
    args::DiffArgs,
    commands::{result_of, show::kind_word},
    failure::{Exit, Outcome},
    output::table,
    run::{self, Asked},
    select,
    services::Use,
    units,
};

pub(crate) async fn run(app: &App, args: &DiffArgs) -> Outcome {
    let document = if let Some(remote) = app.remote() {
        let from = select::backup_there(app, remote, &args.from).await?;
        let to = select::backup_there(app, remote, &args.to).await?;
        let arguments = DiffArguments {
            place: BackupPlace(None),
            before: from.facts.id,
            after: to.facts.id,
            all: args.all,
        };
        let title = format!("diff {} {}", from.facts.id.short(), to.facts.id.short());
        result_of(&run::run(app, &Asked::about("diff", &arguments, title)).await?)?
    } else {
        let repository = app.repository(Use::Read).await?;
        let listing = repository.backups().await?;
        let from = select::find_backup(&listing, &args.from, repository.place())?;
        let to = select::find_backup(&listing, &args.to, repository.place())?;
        diff(&repository, from.id, to.id, args.all).await?
    };
    app.output.result(&document, || text(&document));
    Ok(Exit::Done)
}

fn text(document: &DiffOutput) -> String {
    if document.objects.is_empty() {
        return format!(
            "Nothing differs between {} and {}.",
            document.from.short(),
            document.to.short()
        );
    }
    let rows = |rows: Option<u64>| rows.map_or_else(|| "-".to_owned(), units::count);
    table(
        &[
            "what",
            "name",
            "change",
            "rows before",
            "rows after",
            "difference",
        ],
        document.objects.iter().map(|object| {
            let difference = match (object.rows_before, object.rows_after) {
                (Some(before), Some(after)) if after >= before => {
                    format!("+{}", units::count(after - before))
                }
                (Some(before), Some(after)) => format!("-{}", units::count(before - after)),
                _ => String::new(),
            };
            vec![
                kind_word(object.kind).to_owned(),
                object.name.clone(),
                match object.change {
                    Change::Added => "added",
                    Change::Removed => "removed",
                    Change::Changed => "changed",
                    Change::Same => "same",
                    Change::Unknown => "unknown",
                }
                .to_owned(),
                rows(object.rows_before),
                rows(object.rows_after),
                difference,
            ]
        }),
    )
}
