//! `fettler cleanup`: removes what is old or abandoned, by plan; `fettler cleanup undo` puts it back.

use fettler_jobs::{
    BackupPlace, CleanupArguments, CleanupOutput, CleanupUndoArguments, CleanupUndoOutput,
    KEEP_UNDO_DAYS,
};
use fettler_model::{CleanupAction, CleanupPlan, Referenced};
use serde_json::json;

use crate::{
    app::App,
    args::{CleanupActionArgs, CleanupArgs, CleanupCommand, CleanupUndoArgs, ReferencedArg},
    commands::result_of,
    failure::{Exit, Failure, Outcome},
    output::{pairs, table},
    run::{self, Asked},
    select, units,
};

/// Keys that are shown to people; the document has up to a hundred.
const SHOWN_KEYS: usize = 10;

pub(crate) async fn run(app: &App, args: &CleanupArgs) -> Outcome {
    if let Some(CleanupCommand::Undo(args)) = &args.command {
        return undo(app, args).await;
    }
    // A slip is told before a database is added.
    let what = action(&args.action)?;
    let database = select::database(app, &args.database(), None).await?;
    let how = &args.how;
    let arguments = CleanupArguments {
        what,
        place: place(app),
        no_archive: how.no_archive,
        keep_undo_days: how.keep_undo.unwrap_or(KEEP_UNDO_DAYS),
        batch_rows: how.batch_rows,
        rows_per_second: how.max_rows,
        full_speed: how.full_speed,
        replica_lag_seconds: how.replica_lag,
        dry_run: how.dry_run,
    };
    let asked = Asked {
        kind: "cleanup",
        database: Some(database.id),
        arguments: serde_json::to_value(arguments).expect("arguments are plain data"),
        submission: args.submission.clone(),
        title: format!("clean {}", database.name),
    };
    if args.submission.detach {
        return run::detach(app, &asked).await;
    }
    let job = run::run(app, &asked).await?;
    let output: CleanupOutput = result_of(&job)?;
    let mut document = json!(output);
    document["job"] = json!(job.id);
    app.output
        .result(&document, || text(&output, &job.id.short().to_string()));
    Ok(
        if output.dry_run && !output.plan.refusals.is_empty() || !output.verified {
            Exit::FoundWrong
        } else {
            Exit::Done
        },
    )
}

/// The repository of this folder; another Fettler has one of its own.
fn place(app: &App) -> BackupPlace {
    BackupPlace(
        app.remote()
            .is_none()
            .then(|| app.settings().repository_place()),
    )
}

/// The one action that is meant.
fn action(args: &CleanupActionArgs) -> Result<CleanupAction, Failure> {
    let older_than = args.older_than.unwrap_or_default();
    let only = || args.only.clone();
    if let Some(table) = &args.rows {
        return Ok(CleanupAction::Rows {
            table: table.clone(),
            column: args.column.clone().unwrap_or_default(),
            older_than_seconds: older_than,
            referenced: match args.referenced {
                ReferencedArg::Refuse => Referenced::Refuse,
                ReferencedArg::Keep => Referenced::Keep,
            },
            fire_triggers: args.fire_triggers,
        });
    }
    if let Some(table) = &args.partitions {
        return Ok(CleanupAction::Partitions {
            table: table.clone(),
            column: args.column.clone(),
            older_than_seconds: older_than,
        });
    }
    if let Some(pattern) = &args.indices {
        return Ok(CleanupAction::Indices {
            pattern: pattern.clone(),
            field: args.column.clone(),
            older_than_seconds: older_than,
        });
    }
    if let Some(pattern) = &args.keys {
        return Ok(CleanupAction::Keys {
            pattern: pattern.clone(),
            idle_for_seconds: args.idle_for.unwrap_or_default(),
            expire_in_seconds: args.expire_in,
        });
    }
    Ok(match args {
        CleanupActionArgs {
            checkpoint: true, ..
        } => CleanupAction::Checkpoint {},
        CleanupActionArgs {
            detached_parts: true,
            ..
        } => CleanupAction::DetachedParts {
            only: only(),
            older_than_seconds: older_than,
            by_hand: args.by_hand,
        },
        CleanupActionArgs { slots: true, .. } => {
            if args.inactive_for.is_none() && args.retained.is_none() && args.only.is_empty() {
                return Err(Failure::usage(
                    "nothing says which slots are abandoned: a reader may only be away for a moment",
                    "say `--inactive-for 7d`, `--retained 10GiB` or `--only NAME`",
                ));
            }
            CleanupAction::Slots {
                only: only(),
                inactive_for_seconds: args.inactive_for.unwrap_or_default(),
                retained_bytes: args.retained.unwrap_or_default(),
            }
        }
        CleanupActionArgs {
            prepared_transactions: true,
            ..
        } => CleanupAction::PreparedTransactions {
            older_than_seconds: older_than,
        },
        CleanupActionArgs { sessions: true, .. } => {
            if args.idle.is_none() && args.idle_in_transaction.is_none() {
                return Err(Failure::usage(
                    "nothing says which sessions are meant",
                    "say `--idle-in-transaction 1h`, or `--idle 1d`",
                ));
            }
            CleanupAction::Sessions {
                idle_in_transaction_seconds: args.idle_in_transaction,
                idle_seconds: args.idle,
            }
        }
        CleanupActionArgs {
            temporary_tables: true,
            ..
        } => CleanupAction::TemporaryTables {},
        CleanupActionArgs { vacuum: true, .. } => CleanupAction::Vacuum {
            only: only(),
            dead_percent: args.dead_percent.unwrap_or(20),
        },
        CleanupActionArgs { repack: true, .. } => CleanupAction::Repack {
            only: only(),
            empty_percent: args.empty_percent.unwrap_or(50),
        },
        CleanupActionArgs { reindex: true, .. } => CleanupAction::Reindex { only: only() },
        _ => {
            return Err(Failure::usage(
                "nothing says what is to be cleaned",
                "name one action, such as `--rows TABLE --column COLUMN --older-than 90d`; `fettler cleanup --help` lists them",
            ));
        }
    })
}

async fn undo(app: &App, args: &CleanupUndoArgs) -> Outcome {
    let desk = app.desk().await?;
    let job = desk.find_job(app.tenant(), &args.job).await?;
    if job.kind.as_str() != "cleanup" {
        return Err(Failure::usage(
            format!("job {} is a {} job", job.id.short(), job.kind),
            "name a cleanup; `fettler jobs --all` lists the jobs",
        ));
    }
    if !job.state.is_final() {
        return Err(Failure::usage(
            format!("the cleanup {} has not ended", job.id.short()),
            format!("`fettler jobs cancel {}` ends it", job.id.short()),
        ));
    }
    let arguments = CleanupUndoArguments {
        job: job.id,
        // Where the cleanup put its archive.
        place: serde_json::from_value(job.arguments["place"].clone()).unwrap_or_default(),
        dry_run: args.dry_run,
    };
    let asked = Asked {
        kind: "cleanup-undo",
        database: job.database,
        arguments: serde_json::to_value(arguments).expect("arguments are plain data"),
        submission: args.submission.clone(),
        title: format!("undo {}", job.id.short()),
    };
    if args.submission.detach {
        return run::detach(app, &asked).await;
    }
    let done = run::run(app, &asked).await?;
    let output: CleanupUndoOutput = result_of(&done)?;
    let mut document = json!(output);
    document["job"] = json!(done.id);
    app.output.result(&document, || undo_text(&output));
    let is_whole = output.undone.taken == 0 && output.undone.without_parent == 0;
    Ok(if is_whole {
        Exit::Done
    } else {
        Exit::FoundWrong
    })
}

fn text(output: &CleanupOutput, job: &str) -> String {
    let mut text = plan_text(&output.database, &output.plan);
    if output.dry_run {
        text.push_str("\nNothing was changed.");
        return text;
    }
    let removed = &output.removed;
    let count = |number: u64| {
        if number == 0 {
            String::new()
        } else {
            units::count(number)
        }
    };
    let undo = match (&output.archive, output.undo_until) {
        (Some(_), Some(until)) => {
            format!(
                "`fettler cleanup undo {job}` until {}",
                units::moment(until)
            )
        }
        _ => String::new(),
    };
    text.push('\n');
    text.push_str(&pairs(&[
        ("removed", units::count(removed.removed)),
        ("gone by others", count(removed.gone)),
        ("stay: changed", count(removed.changed)),
        ("stay: referred to", count(removed.referenced)),
        ("stay: held", count(removed.busy)),
        (
            "archived",
            if output.archive.is_some() {
                format!(
                    "{} rows, {} stored",
                    units::count(output.archived_rows),
                    units::size(output.archived_bytes)
                )
            } else {
                String::new()
            },
        ),
        ("undo", undo),
        ("stays", shown(&removed.kept)),
        ("look at", removed.notes.join("\n")),
        (
            "NOT VERIFIED",
            if output.verified {
                String::new()
            } else {
                "not all that was archived is accounted for".to_owned()
            },
        ),
    ]));
    text
}

fn plan_text(database: &str, plan: &CleanupPlan) -> String {
    if plan.items.is_empty() && plan.refusals.is_empty() {
        let mut text = format!(
            "{database}: nothing to clean ({}).\n",
            plan.what.name().replace('_', " ")
        );
        for note in &plan.notes {
            text.push_str(&format!("  {note}\n"));
        }
        return text;
    }
    let mut text = format!("{database}: {}", plan.what.name().replace('_', " "));
    if let Some(cutoff) = plan.cutoff {
        text.push_str(&format!(" older than {}", units::moment(cutoff)));
    }
    text.push_str("\n\n");
    if !plan.items.is_empty() {
        let rows = plan.items.iter().map(|item| {
            vec![
                item.name.clone(),
                units::count(item.rows),
                units::size(item.bytes),
                item.oldest.clone().unwrap_or_default(),
                item.newest.clone().unwrap_or_default(),
                item.note.clone(),
            ]
        });
        text.push_str(&table(
            &["what", "count", "about", "oldest", "newest", ""],
            rows,
        ));
    }
    for (title, lines) in [("depends on it", &plan.depends), ("to know", &plan.notes)] {
        for line in lines {
            text.push_str(&format!("\n{title}: {line}"));
        }
    }
    for refusal in &plan.refusals {
        text.push_str(&format!(
            "\nREFUSED: {}\n  {}",
            refusal.what, refusal.remedy
        ));
    }
    if !plan.can_be_undone && !plan.items.is_empty() {
        text.push_str("\nto know: this cannot be undone");
    }
    text.push('\n');
    text
}

fn undo_text(output: &CleanupUndoOutput) -> String {
    let undone = &output.undone;
    let text = pairs(&[
        ("database", output.database.clone()),
        (
            if output.dry_run {
                "would put back"
            } else {
                "put back"
            },
            units::count(undone.restored),
        ),
        ("there already", units::count(undone.there)),
        ("place taken", units::count(undone.taken)),
        ("parent missing", units::count(undone.without_parent)),
        ("left out", shown(&undone.skipped)),
        ("look at", undone.notes.join("\n")),
    ]);
    if output.dry_run {
        text + "\nNothing was changed."
    } else {
        text
    }
}

fn shown(keys: &[String]) -> String {
    let mut lines: Vec<String> = keys.iter().take(SHOWN_KEYS).cloned().collect();
    if keys.len() > SHOWN_KEYS {
        lines.push(format!("and {} more", keys.len() - SHOWN_KEYS));
    }
    lines.join("\n")
}
