//! `fettler demo`: the whole path with a database made for the purpose, in a folder of its own, with no
//! server and no network. What runs is what always runs: a `fettler up` in this process, jobs in its
//! ledger, a repository in its folder.

mod compare;
mod data;

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use fettler_config::Sources;
use fettler_jobs::{
    BackupArguments, BackupOutput, BackupPlace, ProveArguments, ProveOutput, RestoreArguments,
    RestoreOutput,
};
use fettler_ledger::{DatabaseRecord, PolicyRecord};
use fettler_model::{
    BackupId, DatabaseUrl, KeepRules, PolicyId, PolicySpec, Problem, Progress, ProveEvery,
};
use fettler_scheduler::PolicyPlan;
use serde_json::{Value, json};

use crate::{
    app::App,
    args::{DemoArgs, SubmissionArgs},
    commands::{result_of, up::Up},
    failure::{Exit, Failure, Outcome},
    folder,
    output::table,
    progress::Follower,
    run::{self, Asked, Signals},
    select,
    services::Use,
    units,
};

/// Says that a folder is a demo's and may be emptied by the next one.
const MARK: &str = "made-by-fettler-demo";
/// The same content each time: what is shown can be compared between machines.
const SEED: u64 = 4711;
/// How often the bar of a step that is no job is drawn.
const DRAW_EVERY: Duration = Duration::from_millis(100);

/// A step for the table and for the document.
struct Step {
    name: &'static str,
    seconds: f64,
    read: Option<u64>,
    new: Option<u64>,
    stored: Option<u64>,
    outcome: String,
    document: Value,
}

pub(crate) async fn run(app: &App, args: &DemoArgs) -> Outcome {
    let folder = demo_folder(app)?;
    prepare(&folder)?;
    let demo_app = app_of(app, &folder)?;
    let outcome = show(&demo_app, args, &folder).await;
    demo_app.close().await;
    outcome
}

/// The folder that was asked for, or one beside the usual one: a demo never works on real backups.
fn demo_folder(app: &App) -> Result<PathBuf, Failure> {
    let asked = app
        .loaded
        .shown
        .iter()
        .any(|shown| shown.field == "folder" && shown.origin != "default");
    let usual = &app.settings().folder;
    if asked {
        return Ok(usual.clone());
    }
    let mut name = usual
        .file_name()
        .ok_or_else(|| Failure::usage("no folder for the demo can be told", "give `--folder`"))?
        .to_owned();
    name.push("-demo");
    Ok(usual.with_file_name(name))
}

/// Makes the folder; what an earlier demo left in it is removed.
fn prepare(folder: &Path) -> Result<(), Failure> {
    let failed = |error: std::io::Error| {
        Failure::local(
            format!("the folder {} cannot be made", folder.display()),
            &error,
        )
    };
    if folder.join(MARK).exists() {
        // Nobody runs it, or it is not to be removed.
        drop(folder::UpLock::take(folder)?);
        std::fs::remove_dir_all(folder).map_err(failed)?;
    } else if folder.exists() && std::fs::read_dir(folder).map_err(failed)?.next().is_some() {
        return Err(Failure::usage(
            format!(
                "the folder {} holds something that no demo made",
                folder.display()
            ),
            "name an empty or a new folder with `--folder`",
        ));
    }
    folder::make(folder)?;
    std::fs::write(
        folder.join(MARK),
        "`fettler demo` made this folder and empties it when it runs again.\n",
    )
    .map_err(failed)
}

/// The world of the demo: its folder, and no setting of the machine that could lead elsewhere.
fn app_of(app: &App, folder: &Path) -> Result<App, Failure> {
    let is_harmless = |name: &str| {
        name == "HOME" || name.starts_with("XDG_") || name.starts_with("FETTLER_WORKER__")
    };
    let sources = Sources {
        current_folder: folder.to_path_buf(),
        variables: app
            .sources
            .variables
            .iter()
            .filter(|(name, _)| is_harmless(name))
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect(),
        ..Sources::default()
    }
    .flag(
        "--folder",
        "folder",
        Some(folder.to_string_lossy().into_owned()),
    )
    .flag(
        "--repository",
        "repository.place",
        Some(folder.join("repository").to_string_lossy().into_owned()),
    );
    let loaded = fettler_config::load(&sources)?;
    Ok(App::new(app.output, sources, loaded))
}

async fn show(app: &App, args: &DemoArgs, folder: &Path) -> Outcome {
    app.output
        .notice(&format!("A fleet of one process, in {}.", folder.display()));
    app.repository(Use::BackUp).await?;
    let up = Up::start(app, true, None).await?;
    let shown = steps(app, args, folder).await;
    let (steps, database, same) = match shown {
        Ok(shown) => shown,
        Err(failure) => {
            up.finish().await?;
            return Err(failure);
        }
    };
    if args.stay {
        add_policy(app, &database).await?;
    }
    let proven = steps
        .iter()
        .filter(|step| step.name == "prove")
        .all(|step| step.document["proven"] == true);
    let document = json!({
        "folder": folder,
        "database": folder.join("shop.sqlite"),
        "repository": app.settings().repository_place(),
        "same": same,
        "steps": steps.iter().map(|step| step.document.clone()).collect::<Vec<_>>(),
    });
    app.output
        .result(&document, || text(app, &steps, folder, args.stay));
    if args.stay {
        let mut signals = Signals::listen()?;
        up.until(&mut signals, app).await?;
    } else {
        up.finish().await?;
    }
    Ok(if same && proven {
        Exit::Done
    } else {
        Exit::FoundWrong
    })
}

async fn steps(
    app: &App,
    args: &DemoArgs,
    folder: &Path,
) -> Result<(Vec<Step>, DatabaseRecord, bool), Failure> {
    let source = folder.join("shop.sqlite");
    let mut steps = vec![make(app, &source, args.size).await?];
    let digest_before = digest(app, "look at the source", &source).await?;
    let url = DatabaseUrl::parse_with_password(&source.to_string_lossy())
        .map_err(|error| Failure::usage(error.to_string(), ""))?
        .0;
    let record = select::new_record(
        app,
        "shop".parse().expect("the name is a valid constant"),
        url,
        None,
    );
    let database = app.ledger().await?.add_database(&record).await?;

    let (first, step) = back_up(app, &database).await?;
    steps.push(step);
    steps.push(prove(app, &database, first).await?);
    steps.push(change(app, &source).await?);
    let digest_after = digest(app, "look at the source", &source).await?;
    let (second, step) = back_up(app, &database).await?;
    steps.push(step);
    steps.push(prove(app, &database, second).await?);
    let mut same = true;
    for (number, backup, expected) in [(1, first, digest_before), (2, second, digest_after)] {
        let copy = folder.join(format!("shop-copy-{number}.sqlite"));
        steps.push(restore(app, backup, &copy).await?);
        let step = compare_copy(app, backup, &copy, &expected).await?;
        same &= step.document["same"] == true;
        steps.push(step);
    }
    Ok((steps, database, same))
}

/// Does work that blocks on a thread of its own, with a bar for what `bytes` counts.
async fn blocking<T: Send + 'static>(
    app: &App,
    title: &str,
    phase: &str,
    bytes_total: u64,
    work: impl FnOnce(&AtomicU64) -> Result<T, rusqlite::Error> + Send + 'static,
) -> Result<(T, Duration), Failure> {
    let began = Instant::now();
    let bytes = Arc::new(AtomicU64::new(0));
    let counted = bytes.clone();
    let mut task = tokio::task::spawn_blocking(move || work(&counted));
    let mut follower = Follower::new(app.output, title);
    let done = loop {
        tokio::select! {
            done = &mut task => break done,
            () = tokio::time::sleep(DRAW_EVERY) => follower.show(&Progress {
                phase: phase.to_owned(),
                bytes: bytes.load(Relaxed),
                bytes_total,
                ..Progress::default()
            }),
        }
    };
    follower.finish();
    match done {
        Ok(Ok(value)) => Ok((value, began.elapsed())),
        Ok(Err(error)) => Err(Problem::permanent(
            "demo.database",
            format!("{title}: {error}"),
            "look whether the folder's disk is full",
        )
        .into()),
        Err(panic) => std::panic::resume_unwind(panic.into_panic()),
    }
}

async fn make(app: &App, source: &Path, size: u64) -> Result<Step, Failure> {
    let path = source.to_path_buf();
    let (made, took) = blocking(app, "make a shop", "writing", size, move |bytes| {
        data::make(&path, size, SEED, &mut |done| bytes.store(done, Relaxed))
    })
    .await?;
    Ok(Step {
        name: "make",
        seconds: took.as_secs_f64(),
        read: None,
        new: None,
        stored: None,
        outcome: format!(
            "{} in {} rows",
            units::size(made.bytes),
            units::count(made.rows)
        ),
        document: json!({
            "step": "make",
            "bytes": made.bytes,
            "rows": made.rows,
            "duration_seconds": took.as_secs_f64(),
        }),
    })
}

async fn change(app: &App, source: &Path) -> Result<Step, Failure> {
    let path = source.to_path_buf();
    let (rows, took) = blocking(app, "change 1 %", "writing", 0, move |_| {
        data::change_one_percent(&path)
    })
    .await?;
    Ok(Step {
        name: "change",
        seconds: took.as_secs_f64(),
        read: None,
        new: None,
        stored: None,
        outcome: format!("{} rows changed", units::count(rows)),
        document: json!({
            "step": "change",
            "rows": rows,
            "duration_seconds": took.as_secs_f64(),
        }),
    })
}

async fn digest(app: &App, title: &str, path: &Path) -> Result<compare::Digest, Failure> {
    let path = path.to_path_buf();
    let (digest, _) = blocking(app, title, "reading", 0, move |bytes| {
        compare::Digest::of(&path, bytes)
    })
    .await?;
    Ok(digest)
}

fn place(app: &App) -> BackupPlace {
    BackupPlace(Some(app.settings().repository_place()))
}

/// Runs a job and gives its result, as the job's own type and as the step's document.
async fn job<T: serde::de::DeserializeOwned>(
    app: &App,
    step: &'static str,
    asked: Asked,
) -> Result<(T, Value), Failure> {
    let ended = run::run(app, &asked).await?;
    let mut document = json!({ "step": step, "job": ended.id });
    if let Some(Value::Object(fields)) = ended.result.clone() {
        for (name, value) in fields {
            document[name] = value;
        }
    }
    Ok((result_of(&ended)?, document))
}

async fn back_up(app: &App, database: &DatabaseRecord) -> Result<(BackupId, Step), Failure> {
    let arguments = BackupArguments {
        place: place(app),
        ..BackupArguments::default()
    };
    let (output, document): (BackupOutput, Value) = job(
        app,
        "backup",
        Asked {
            kind: "backup",
            database: Some(database.id),
            arguments: json!(arguments),
            submission: SubmissionArgs::default(),
            title: "back up".to_owned(),
        },
    )
    .await?;
    let outcome = format!(
        "backup {}{}",
        output.backup.short(),
        output
            .parent
            .map_or_else(String::new, |parent| format!(" after {}", parent.short()))
    );
    Ok((
        output.backup,
        Step {
            name: "backup",
            seconds: output.duration_seconds,
            read: Some(output.bytes_read),
            new: Some(output.bytes_new),
            stored: Some(output.bytes_stored),
            outcome,
            document,
        },
    ))
}

async fn prove(app: &App, database: &DatabaseRecord, backup: BackupId) -> Result<Step, Failure> {
    let began = Instant::now();
    let arguments = ProveArguments {
        place: place(app),
        backup,
        sandbox: None,
    };
    let (output, document): (ProveOutput, Value) = job(
        app,
        "prove",
        Asked {
            kind: "prove",
            database: Some(database.id),
            arguments: json!(arguments),
            submission: SubmissionArgs::default(),
            title: "prove".to_owned(),
        },
    )
    .await?;
    let outcome = if output.proven {
        format!(
            "PROVEN, {} fingerprints and values equal",
            output.fingerprints_compared
        )
    } else {
        format!("NOT PROVEN: {}", output.mismatches.join("; "))
    };
    Ok(Step {
        name: "prove",
        seconds: began.elapsed().as_secs_f64(),
        read: None,
        new: None,
        stored: None,
        outcome,
        document,
    })
}

async fn restore(app: &App, backup: BackupId, copy: &Path) -> Result<Step, Failure> {
    let (to, _) = select::place(&copy.to_string_lossy())?;
    let arguments = RestoreArguments {
        place: place(app),
        backup,
        to_time: None,
        to,
        password: None,
        only: Vec::new(),
        overwrite: false,
        start_again: false,
    };
    let (output, document): (RestoreOutput, Value) = job(
        app,
        "restore",
        Asked {
            kind: "restore",
            database: None,
            arguments: json!(arguments),
            submission: SubmissionArgs::default(),
            title: "restore".to_owned(),
        },
    )
    .await?;
    Ok(Step {
        name: "restore",
        seconds: output.duration_seconds,
        read: Some(output.bytes),
        new: None,
        stored: None,
        outcome: format!("backup {}", backup.short()),
        document,
    })
}

async fn compare_copy(
    app: &App,
    backup: BackupId,
    copy: &Path,
    expected: &compare::Digest,
) -> Result<Step, Failure> {
    let began = Instant::now();
    let found = digest(app, "compare", copy).await?;
    let same = found == *expected;
    let seconds = began.elapsed().as_secs_f64();
    Ok(Step {
        name: "compare",
        seconds,
        read: None,
        new: None,
        stored: None,
        outcome: if same {
            format!("all {} rows as they were", units::count(found.rows()))
        } else {
            format!("DIFFERS: {}", found.differences(expected).join(", "))
        },
        document: json!({
            "step": "compare",
            "backup": backup,
            "same": same,
            "rows": found.rows(),
            "differing": found.differences(expected),
            "duration_seconds": seconds,
        }),
    })
}

/// A backup every minute, for those who stay.
async fn add_policy(app: &App, database: &DatabaseRecord) -> Result<(), Failure> {
    let ledger = app.ledger().await?;
    let spec = PolicySpec {
        kind: "backup".parse().expect("the kind is a valid constant"),
        arguments: Value::Null,
        cron: "* * * * *".to_owned(),
        time_zone: "UTC".to_owned(),
        catch_up: Default::default(),
        overlap: Default::default(),
        window: None,
        jitter_seconds: 0,
        priority: Default::default(),
        keep: Some(KeepRules {
            last: 60,
            ..KeepRules::default()
        }),
        prove: ProveEvery::Never,
        timeout_seconds: None,
        paused: false,
    };
    let plan = PolicyPlan::read(&spec).map_err(|error| Failure::usage(error.to_string(), ""))?;
    let now = ledger.now().await?;
    ledger
        .add_policy(&PolicyRecord {
            id: PolicyId::new(),
            tenant: app.tenant().clone(),
            name: "every-minute"
                .parse()
                .expect("the name is a valid constant"),
            database: Some(database.id),
            next_due: plan.next_after(now),
            spec,
            last_job: None,
            created: now,
        })
        .await?;
    Ok(())
}

fn text(app: &App, steps: &[Step], folder: &Path, stays: bool) -> String {
    let size = |bytes: Option<u64>| bytes.map_or_else(String::new, units::size);
    let rows = steps.iter().map(|step| {
        vec![
            step.name.to_owned(),
            size(step.read),
            size(step.new),
            size(step.stored),
            match (step.new, step.stored) {
                (Some(new), Some(stored)) if stored > 0 => {
                    format!("{:.1}", new as f64 / stored as f64)
                }
                _ => String::new(),
            },
            step.read.map_or_else(String::new, |bytes| {
                format!("{:.0}", bytes as f64 / 1e6 / step.seconds.max(0.001))
            }),
            format!("{:.1} s", step.seconds),
            step.outcome.clone(),
        ]
    });
    let mut text = table(
        &[
            "step", "read", "new", "stored", "ratio", "MB/s", "took", "result",
        ],
        rows,
    );
    let folder_text = folder.display();
    text.push_str(&format!(
        "\n\nEverything lies in {folder_text}:\n\
         \x20 shop.sqlite          the database, shop-copy-1.sqlite and shop-copy-2.sqlite the restored ones\n\
         \x20 repository/          the backups, sealed\n\
         \x20 keys/default.key     what opens them\n\
         \x20 ledger.db            what was asked for and what came of it\n\
         \nTry next:\n\
         \x20 fettler backups --folder {folder_text}\n\
         \x20 fettler jobs --folder {folder_text}\n\
         \x20 fettler verify latest --folder {folder_text}\n\
         \x20 fettler backup ./your.sqlite\n\
         \x20 fettler backup postgres://user@host/database"
    ));
    if stays {
        text.push_str(&format!(
            "\n\nA policy backs the shop up every minute now (process {}, socket {}). Ctrl-C ends it.",
            std::process::id(),
            app.settings().socket().display()
        ));
    }
    text
}
