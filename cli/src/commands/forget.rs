//! `fettler forget`: lets backups go, by name or by keep rules. Their bytes stay until `fettler collect`.

use fettler_jobs::{
    BY_REQUEST, BY_SERVER, BackupPlace, ForgetArguments, ForgetOutput, RetentionArguments,
};
use fettler_ledger::{BackupFilter, DatabaseRecord, LedgerError};
use fettler_model::{BackupId, BackupState, KeepRules, Timestamp};
use fettler_repository::Unfenced;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    app::App,
    args::{ForgetArgs, SubmissionArgs},
    commands::result_of,
    failure::{Exit, Failure, Outcome},
    output::table,
    run::{self, Asked},
    select,
    services::Use,
    units,
};

/// The fields of `--json`.
#[derive(Serialize)]
struct Document {
    dry_run: bool,
    /// How many were forgotten, or would be.
    forgotten: u64,
    databases: Vec<OfDatabase>,
}

#[derive(Serialize)]
struct OfDatabase {
    database: String,
    #[serde(flatten)]
    decided: Decided,
}

/// The result of a `retention` job.
#[derive(Serialize, Deserialize)]
struct Decided {
    dry_run: bool,
    forgotten: u64,
    decisions: Vec<Decision>,
}

#[derive(Serialize, Deserialize)]
struct Decision {
    backup: BackupId,
    started: Timestamp,
    keep: bool,
    reasons: Vec<Value>,
}

impl Decision {
    /// Why it is kept, in words.
    fn why(&self) -> String {
        self.reasons
            .iter()
            .map(|reason| match (reason["rule"].as_str(), &reason["tag"]) {
                (Some("tag"), Value::String(tag)) => format!("tag {tag}"),
                (Some("last_complete"), _) => "the last complete one".to_owned(),
                (Some("last_proven"), _) => "the last proven one".to_owned(),
                (Some("within"), _) => "young".to_owned(),
                (Some("no_rules"), _) => "no rule was given".to_owned(),
                (Some(rule), _) => rule.to_owned(),
                (None, _) => reason.to_string(),
            })
            .collect::<Vec<_>>()
            .join(", ")
    }
}

pub(crate) async fn run(app: &App, args: &ForgetArgs) -> Outcome {
    let rules = args.keep.rules();
    if !args.backups.is_empty() {
        if rules.is_some() {
            return Err(Failure::usage(
                "backups are named, and keep rules are given too",
                "name the backups, or let the rules choose",
            ));
        }
        return by_name(app, args).await;
    }
    let rules = match rules {
        Some(rules) => rules,
        None => configured_rules(app)?,
    };
    let document = by_rules(app, args, &rules).await?;
    app.output.result(&document, || text(&document));
    Ok(if document.forgotten == 0 {
        Exit::Nothing
    } else {
        Exit::Done
    })
}

fn configured_rules(app: &App) -> Result<KeepRules, Failure> {
    let rules = app.settings().retention.keep.clone();
    if rules.is_empty() {
        return Err(Failure::usage(
            "nothing says what is to be kept",
            "give a rule such as `--keep-daily 7`, set `retention.keep` in the settings, or name the backups to forget; `--dry-run` shows what would happen",
        ));
    }
    Ok(rules)
}

async fn by_rules(app: &App, args: &ForgetArgs, rules: &KeepRules) -> Result<Document, Failure> {
    let databases = match &args.database {
        Some(name) => vec![select::existing_database(app, name.as_str()).await?],
        None => with_backups(app).await?,
    };
    let mut document = Document {
        dry_run: args.dry_run,
        forgotten: 0,
        databases: Vec::new(),
    };
    for database in databases {
        let arguments = RetentionArguments {
            place: BackupPlace(match app.remote() {
                Some(_) => None,
                None => Some(app.settings().repository_place()),
            }),
            keep: rules.clone(),
            // Days begin where the user lives who types this.
            time_zone: jiff::tz::TimeZone::system()
                .iana_name()
                .map(ToOwned::to_owned),
            dry_run: args.dry_run,
        };
        let job = run::run(
            app,
            &Asked {
                kind: "retention",
                database: Some(database.id),
                arguments: serde_json::to_value(arguments).expect("arguments are plain data"),
                submission: SubmissionArgs::default(),
                title: format!("forget {}", database.name),
            },
        )
        .await?;
        let decided: Decided = result_of(&job)?;
        document.forgotten += decided.forgotten;
        document.databases.push(OfDatabase {
            database: database.name.to_string(),
            decided,
        });
    }
    Ok(document)
}

/// The known databases that have backups in the repository.
async fn with_backups(app: &App) -> Result<Vec<DatabaseRecord>, Failure> {
    let desk = app.desk().await?;
    let known = desk.databases(app.tenant()).await?;
    let names: Vec<String> = if app.remote().is_some() {
        let filter = BackupFilter {
            tenant: Some(app.tenant().clone()),
            ..BackupFilter::default()
        };
        let records = desk.backups(&filter).await?.into_iter();
        records
            .map(|record| record.facts.database_name.to_string())
            .collect()
    } else {
        let listing = app.repository(Use::Read).await?.backups().await?;
        let summaries = listing.backups.into_iter();
        summaries.map(|summary| summary.database_name).collect()
    };
    let mut unknown: Vec<&str> = names
        .iter()
        .map(String::as_str)
        .filter(|name| !known.iter().any(|record| record.name.as_str() == *name))
        .collect();
    unknown.sort_unstable();
    unknown.dedup();
    for name in unknown {
        app.output.notice(&format!(
            "{name}: its backups are left alone, since this ledger does not know the database (`fettler database add {name} URL`)."
        ));
    }
    Ok(known
        .into_iter()
        .filter(|record| names.iter().any(|name| name == record.name.as_str()))
        .collect())
}

async fn by_name(app: &App, args: &ForgetArgs) -> Outcome {
    let document = match app.remote() {
        Some(remote) => {
            let mut chosen = Vec::new();
            for text in &args.backups {
                let id = select::backup_there(app, remote, text).await?.facts.id;
                if !chosen.contains(&id) {
                    chosen.push(id);
                }
            }
            let arguments = ForgetArguments {
                place: BackupPlace(None),
                backups: chosen,
                dry_run: args.dry_run,
            };
            let asked = Asked::about("forget", &arguments, "forget".to_owned());
            result_of(&run::run(app, &asked).await?)?
        }
        None => by_name_here(app, args).await?,
    };
    app.output.result(&document, || {
        let ids: Vec<String> = document.backups.iter().map(|id| id.short()).collect();
        if document.dry_run {
            format!("Would forget {}.", ids.join(", "))
        } else {
            format!(
                "Forgot {}. `fettler collect` gives back the space.",
                ids.join(", ")
            )
        }
    });
    Ok(Exit::Done)
}

/// Forgets from this process, whoever else works in the folder.
async fn by_name_here(app: &App, args: &ForgetArgs) -> Result<ForgetOutput, Failure> {
    let repository = app.repository(Use::Read).await?;
    let listing = repository.backups().await?;
    let mut chosen = Vec::new();
    let mut is_at_a_server = false;
    for text in &args.backups {
        let summary = select::find_backup(&listing, text, repository.place())?;
        is_at_a_server |= summary.tags.iter().any(|tag| tag == BY_SERVER);
        if !chosen.contains(&summary.id) {
            chosen.push(summary.id);
        }
    }
    // Its server has to be asked, and asked again where it does not answer: a job does that.
    if is_at_a_server && !args.dry_run {
        let arguments = ForgetArguments {
            place: BackupPlace(Some(app.settings().repository_place())),
            backups: chosen,
            dry_run: false,
        };
        let asked = Asked::about("forget", &arguments, "forget".to_owned());
        return result_of(&run::run(app, &asked).await?);
    }
    if !args.dry_run {
        let ledger = app.ledger().await?;
        for id in &chosen {
            repository.forget(*id, BY_REQUEST, &Unfenced).await?;
            let forgotten = BackupState::Forgotten;
            match ledger
                .set_backup_state(*id, forgotten, BY_REQUEST, None)
                .await
            {
                // A ledger that never knew it has nothing to change.
                Ok(()) | Err(LedgerError::NotFound { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(ForgetOutput {
        dry_run: args.dry_run,
        forgotten: chosen.len() as u64,
        backups: chosen,
    })
}

fn text(document: &Document) -> String {
    if document.databases.is_empty() {
        return "There is nothing to forget: no known database has backups here.".to_owned();
    }
    let rows = document.databases.iter().flat_map(|of| {
        of.decided.decisions.iter().map(|decision| {
            vec![
                decision.backup.short(),
                of.database.clone(),
                units::moment(decision.started),
                if decision.keep {
                    "keep"
                } else if document.dry_run {
                    "would forget"
                } else {
                    "forgotten"
                }
                .to_owned(),
                decision.why(),
            ]
        })
    });
    let mut text = table(&["backup", "database", "when", "", "why"], rows);
    text.push_str(&match (document.forgotten, document.dry_run) {
        (0, _) => "\n\nAll are kept.".to_owned(),
        (count, true) => format!("\n\n{count} would be forgotten; without `--dry-run` they are."),
        (count, false) => {
            format!("\n\n{count} forgotten. `fettler collect` gives back the space.")
        }
    });
    text
}
