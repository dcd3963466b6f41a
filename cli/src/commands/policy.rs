//! `fettler policy`: what is done by itself, and when.

use fettler_api::http::PolicyDocument;
use fettler_jobs::Registry;
use fettler_ledger::{DatabaseRecord, PolicyChange, PolicyRecord, TickRecord};
use fettler_model::{
    DatabaseId, KeepRules, PolicyId, PolicyName, PolicySpec, ProveEvery, TickOutcome, Timestamp,
    Window,
};
use fettler_scheduler::{
    InvalidPolicy, PolicyPlan, UnusablePolicy, calendar::Calendar, check_policy,
};
use serde::Serialize;
use serde_json::{Value, json};

use crate::{
    app::App,
    args::{PolicyAddArgs, PolicyCommand, PolicyEditArgs, PolicyFields, PolicyNextArgs},
    desk::Desk,
    failure::{Exit, Failure, Outcome},
    output::{pairs, plain, table},
    select, units,
};

/// How many due times `show` prints, of those that come and of those that were.
const SHOWN_TIMES: usize = 5;
/// More due times than anybody reads.
const MAX_SHOWN_TIMES: usize = 10_000;

/// A policy with what a reader needs beside the record.
#[derive(Serialize)]
struct Shown {
    #[serde(flatten)]
    record: PolicyRecord,
    database_name: Option<String>,
}

pub(crate) async fn run(app: &App, command: &PolicyCommand) -> Outcome {
    match command {
        PolicyCommand::Add(args) => add(app, args).await,
        PolicyCommand::Edit(args) => edit(app, args).await,
        PolicyCommand::List => list(app).await,
        PolicyCommand::Show { name } => show(app, name).await,
        PolicyCommand::Remove { name } => {
            let desk = app.desk().await?;
            let policy = desk.policy(app.tenant(), name, 0).await?.policy;
            match &desk {
                Desk::Here(ledger) => ledger.remove_policy(policy.id).await?,
                Desk::There(remote) => {
                    let path = format!("/api/v1/policies/{}", policy.id);
                    let (_, etag) = remote.get_marked::<PolicyDocument>(&path).await?;
                    remote.delete(&path, Some(&etag)).await?;
                }
            }
            app.output.result(&json!({ "removed": policy.name }), || {
                format!("Policy {} is gone. Its jobs and backups stay.", policy.name)
            });
            Ok(Exit::Done)
        }
        PolicyCommand::Next(args) => next(app, args).await,
    }
}

/// What is wrong with what a policy says: how it was asked for.
pub(crate) fn refused(error: InvalidPolicy) -> Failure {
    let problem = match error {
        InvalidPolicy::Calendar(error) => error.into(),
        InvalidPolicy::Window(error) => fettler_model::Problem::permanent(
            "policy.window",
            error.to_string(),
            "write the window as `22:00-04:00`",
        ),
    };
    Failure {
        exit: Exit::Usage,
        problem,
    }
}

async fn add(app: &App, args: &PolicyAddArgs) -> Outcome {
    let desk = app.desk().await?;
    let database = match &args.database {
        Some(text) => Some(select::existing_database(app, text).await?),
        None => None,
    };
    let name = match (&args.name, &database) {
        (Some(name), _) => name.clone(),
        (None, Some(database)) => made_name(&format!("{}-{}", database.name, args.kind))?,
        (None, None) => made_name(args.kind.as_str())?,
    };
    let mut spec = PolicySpec {
        kind: args.kind.clone(),
        arguments: Value::Null,
        cron: args.cron.clone(),
        time_zone: system_zone(),
        catch_up: Default::default(),
        overlap: Default::default(),
        window: None,
        jitter_seconds: 0,
        priority: Default::default(),
        keep: None,
        prove: ProveEvery::Never,
        timeout_seconds: None,
        paused: args.paused,
    };
    apply(&mut spec, &args.fields)?;
    let plan = checked(&spec, database.as_ref())?;
    let now = desk.now().await?;
    let database_id = database.as_ref().map(|record| record.id);
    let (record, is_up) = match &desk {
        Desk::Here(ledger) => {
            let record = PolicyRecord {
                id: PolicyId::new(),
                tenant: app.tenant().clone(),
                name,
                database: database_id,
                next_due: next_due(&spec, &plan, now),
                spec,
                last_job: None,
                created: now,
            };
            let added = ledger.add_policy(&record).await?;
            (added, crate::run::is_up(app).await)
        }
        Desk::There(remote) => {
            let body = json!({"name": name, "database": database_id, "spec": spec});
            let path = format!("/api/v1/policies?tenant={}", app.tenant());
            let document: PolicyDocument = remote.post(&path, &body).await?;
            (document.policy, true)
        }
    };
    let shown = Shown {
        database_name: database.map(|record| record.name.to_string()),
        record,
    };
    app.output.result(&shown, || {
        let next = shown.record.next_due.map_or_else(
            || "It is switched off, or never due.".to_owned(),
            |due| {
                format!(
                    "It is due next at {}.",
                    in_zone(due, &shown.record.spec.time_zone)
                )
            },
        );
        let hint = if is_up {
            ""
        } else {
            " Policies run while `fettler up` runs."
        };
        format!("Policy {} is there now. {next}{hint}", shown.record.name)
    });
    Ok(Exit::Done)
}

fn made_name(text: &str) -> Result<PolicyName, Failure> {
    text.parse().map_err(|error: fettler_model::InvalidName| {
        Failure::usage(error.to_string(), "choose a name as the first argument")
    })
}

pub(super) fn system_zone() -> String {
    jiff::tz::TimeZone::system()
        .iana_name()
        .unwrap_or("UTC")
        .to_owned()
}

/// Puts what was given over what is there.
fn apply(spec: &mut PolicySpec, fields: &PolicyFields) -> Result<(), Failure> {
    if let Some(zone) = &fields.time_zone {
        spec.time_zone.clone_from(zone);
    }
    if let Some(rule) = fields.catch_up {
        spec.catch_up = rule.into();
    }
    if let Some(rule) = fields.overlap {
        spec.overlap = rule.into();
    }
    if let Some(text) = &fields.window {
        spec.window = window(text)?;
    }
    if let Some(seconds) = fields.timeout {
        spec.timeout_seconds = Some(seconds);
    }
    if let Some(seconds) = fields.jitter {
        spec.jitter_seconds = u32::try_from(seconds).map_err(|_| {
            Failure::usage("the spread of the start is too long", "give hours at most")
        })?;
    }
    if let Some(level) = fields.priority {
        spec.priority = level.into();
    }
    if let Some(often) = fields.prove {
        spec.prove = often.into();
    }
    if let Some(rules) = fields.keep.rules() {
        spec.keep = Some(rules);
    }
    for (name, value) in &fields.arguments {
        if !spec.arguments.is_object() {
            spec.arguments = json!({});
        }
        // What is no JSON is text.
        spec.arguments[name] =
            serde_json::from_str(value).unwrap_or_else(|_| Value::String(value.clone()));
    }
    Ok(())
}

pub(super) fn window(text: &str) -> Result<Option<Window>, Failure> {
    if text == "none" {
        return Ok(None);
    }
    text.split_once('-')
        .map(|(from, to)| {
            Some(Window {
                from: from.trim().to_owned(),
                to: to.trim().to_owned(),
            })
        })
        .ok_or_else(|| {
            Failure::usage(
                format!("{text:?} is no window"),
                "write it as `22:00-04:00`, or `none` to take it away",
            )
        })
}

/// Refuses what could never run.
fn checked(spec: &PolicySpec, database: Option<&DatabaseRecord>) -> Result<PolicyPlan, Failure> {
    check_policy(&Registry::standard(), spec, database.is_some()).map_err(|error| {
        let what = error.to_string();
        match error {
            UnusablePolicy::Kind(_) => Failure::usage(what, "`fettler kinds` lists them"),
            UnusablePolicy::Arguments(problem) => Failure {
                exit: Exit::Usage,
                problem,
            },
            UnusablePolicy::Time(error) => refused(error),
            UnusablePolicy::NoDatabase(_) => Failure::usage(
                what,
                "name it with `--database`; `fettler database list` shows them",
            ),
            UnusablePolicy::NoBackups(_) => {
                Failure::usage(what, "leave `--prove` and the keep rules out")
            }
        }
    })
}

fn next_due(spec: &PolicySpec, plan: &PolicyPlan, now: Timestamp) -> Option<Timestamp> {
    (!spec.paused).then(|| plan.next_after(now)).flatten()
}

async fn edit(app: &App, args: &PolicyEditArgs) -> Outcome {
    let desk = app.desk().await?;
    let policy = desk.policy(app.tenant(), &args.name, 0).await?.policy;
    let database = database_of(app, policy.database).await?;
    let mut spec = policy.spec.clone();
    if let Some(cron) = &args.cron {
        spec.cron.clone_from(cron);
    }
    if args.keep_all {
        spec.keep = None;
    }
    apply(&mut spec, &args.fields)?;
    spec.paused = (spec.paused || args.pause) && !args.resume;
    if spec == policy.spec && args.rename.is_none() {
        return Err(Failure::nothing(
            format!("nothing of policy {} is to be changed", policy.name),
            "`fettler policy edit --help` shows what can be",
        ));
    }
    let plan = checked(&spec, database.as_ref())?;
    let now = desk.now().await?;
    let is_rescheduled = spec.cron != policy.spec.cron
        || spec.time_zone != policy.spec.time_zone
        || spec.paused != policy.spec.paused;
    let record = match &desk {
        Desk::Here(ledger) => {
            let change = PolicyChange {
                name: args.rename.clone(),
                database: None,
                next_due: is_rescheduled.then(|| next_due(&spec, &plan, now)),
                spec: Some(spec),
            };
            ledger.edit_policy(policy.id, change).await?
        }
        Desk::There(remote) => {
            let mut body = json!({"spec": spec});
            if let Some(name) = &args.rename {
                body["name"] = json!(name);
            }
            let path = format!("/api/v1/policies/{}", policy.id);
            let (_, etag) = remote.get_marked::<PolicyDocument>(&path).await?;
            let document: PolicyDocument = remote.patch(&path, &body, &etag).await?;
            document.policy
        }
    };
    let shown = Shown {
        database_name: database.map(|record| record.name.to_string()),
        record,
    };
    app.output.result(&shown, || text(&shown));
    Ok(Exit::Done)
}

async fn database_of(app: &App, id: Option<DatabaseId>) -> Result<Option<DatabaseRecord>, Failure> {
    match id {
        Some(id) => {
            let desk = app.desk().await?;
            desk.find_database(app.tenant(), &id.to_string()).await
        }
        None => Ok(None),
    }
}

async fn list(app: &App) -> Outcome {
    let desk = app.desk().await?;
    let databases = desk.databases(app.tenant()).await?;
    let policies: Vec<Shown> = desk
        .policies(app.tenant())
        .await?
        .into_iter()
        .map(|record| Shown {
            database_name: databases
                .iter()
                .find(|database| Some(database.id) == record.database)
                .map(|database| database.name.to_string()),
            record,
        })
        .collect();
    app.output.result(&json!({ "policies": policies }), || {
        if policies.is_empty() {
            return "No policies. `fettler policy add --database NAME --kind backup --cron \"0 2 * * *\"` adds one.".to_owned();
        }
        table(
            &["policy", "kind", "database", "when", "zone", "next", "keeps", "proves"],
            policies.iter().map(|shown| {
                let spec = &shown.record.spec;
                vec![
                    shown.record.name.to_string(),
                    spec.kind.to_string(),
                    shown.database_name.clone().unwrap_or_default(),
                    spec.cron.clone(),
                    spec.time_zone.clone(),
                    match (spec.paused, shown.record.next_due) {
                        (true, _) => "switched off".to_owned(),
                        (false, Some(due)) => in_zone(due, &spec.time_zone),
                        (false, None) => "never".to_owned(),
                    },
                    keeps(spec.keep.as_ref()),
                    plain(&json!(spec.prove)),
                ]
            }),
        )
    });
    Ok(Exit::Done)
}

async fn show(app: &App, name: &str) -> Outcome {
    let desk = app.desk().await?;
    let PolicyDocument {
        policy: record,
        upcoming,
        ticks,
    } = desk.policy(app.tenant(), name, SHOWN_TIMES).await?;
    let database = database_of(app, record.database).await?;
    let shown = Shown {
        database_name: database.map(|record| record.name.to_string()),
        record,
    };
    let mut document = json!(shown);
    document["upcoming"] = json!(upcoming);
    document["ticks"] = json!(ticks);
    app.output.result(&document, || {
        let zone = &shown.record.spec.time_zone;
        let times: Vec<String> = upcoming.iter().map(|due| in_zone(*due, zone)).collect();
        let mut text = text(&shown);
        text.push_str(&pairs(&[("comes at", times.join("\n"))]));
        if !ticks.is_empty() {
            text.push('\n');
            text.push_str(&tick_table(&ticks, zone));
        }
        text
    });
    Ok(Exit::Done)
}

fn tick_table(ticks: &[TickRecord], zone: &str) -> String {
    table(
        &["due", "what became of it"],
        ticks.iter().map(|tick| {
            vec![
                in_zone(tick.due, zone),
                match &tick.outcome {
                    TickOutcome::Job { job } => format!("job {}", job.short()),
                    TickOutcome::SkippedMissed => "missed while nothing ran".to_owned(),
                    TickOutcome::SkippedOverlap { job } => {
                        format!("skipped: job {} still ran", job.short())
                    }
                    TickOutcome::SkippedWindow => "skipped: outside the window".to_owned(),
                    TickOutcome::SkippedPaused => "skipped: switched off".to_owned(),
                },
            ]
        }),
    )
}

fn text(shown: &Shown) -> String {
    let spec = &shown.record.spec;
    pairs(&[
        ("policy", shown.record.name.to_string()),
        ("does", spec.kind.to_string()),
        ("database", shown.database_name.clone().unwrap_or_default()),
        ("when", format!("{} in {}", spec.cron, spec.time_zone)),
        (
            "next",
            match (spec.paused, shown.record.next_due) {
                (true, _) => "switched off".to_owned(),
                (false, Some(due)) => in_zone(due, &spec.time_zone),
                (false, None) => "never".to_owned(),
            },
        ),
        (
            "timeout",
            spec.timeout_seconds.map_or_else(String::new, |seconds| {
                units::span(std::time::Duration::from_secs(seconds))
            }),
        ),
        (
            "window",
            spec.window.as_ref().map_or_else(String::new, |window| {
                format!("{} to {}", window.from, window.to)
            }),
        ),
        ("missed times", plain(&json!(spec.catch_up))),
        ("overlap", plain(&json!(spec.overlap))),
        ("keeps", keeps(spec.keep.as_ref())),
        ("proves", plain(&json!(spec.prove))),
        (
            "arguments",
            if spec.arguments.is_null() {
                String::new()
            } else {
                spec.arguments.to_string()
            },
        ),
    ])
}

fn keeps(rules: Option<&KeepRules>) -> String {
    let Some(rules) = rules else {
        return "all".to_owned();
    };
    let mut words: Vec<String> = [
        ("last", rules.last),
        ("hourly", rules.hourly),
        ("daily", rules.daily),
        ("weekly", rules.weekly),
        ("monthly", rules.monthly),
        ("yearly", rules.yearly),
    ]
    .iter()
    .filter(|(_, count)| *count > 0)
    .map(|(name, count)| format!("{count} {name}"))
    .collect();
    if let Some(seconds) = rules.within_seconds {
        words.push(format!(
            "within {}",
            units::span(std::time::Duration::from_secs(seconds))
        ));
    }
    words.extend(rules.tags.iter().map(|tag| format!("tag {tag}")));
    words.join(", ")
}

/// A moment as the policy's zone writes it, with its offset: both sides of a shift differ by it alone.
fn in_zone(time: Timestamp, zone: &str) -> String {
    let zone = jiff::tz::TimeZone::get(zone).unwrap_or(jiff::tz::TimeZone::UTC);
    time.to_jiff()
        .to_zoned(zone)
        .strftime("%a %Y-%m-%d %H:%M:%S %:z")
        .to_string()
}

#[derive(Serialize)]
struct Upcoming {
    policy: Option<PolicyName>,
    cron: String,
    time_zone: String,
    upcoming: Vec<Timestamp>,
}

async fn next(app: &App, args: &PolicyNextArgs) -> Outcome {
    let count = args.count.min(MAX_SHOWN_TIMES);
    let of = |policy: Option<PolicyName>, calendar: &Calendar, now: Timestamp| Upcoming {
        policy,
        cron: calendar.expression().to_owned(),
        time_zone: calendar.time_zone().to_owned(),
        upcoming: calendar.upcoming(now).take(count).collect(),
    };
    let parse = |cron: &str, zone: &str| {
        Calendar::parse(cron, zone).map_err(|error| refused(InvalidPolicy::Calendar(error)))
    };
    let mut all = Vec::new();
    if let Some(cron) = &args.cron {
        // An expression needs no ledger.
        all.push(of(None, &parse(cron, &args.time_zone)?, Timestamp::now()));
    } else {
        let desk = app.desk().await?;
        let now = desk.now().await?;
        let policies = match &args.name {
            Some(name) => vec![desk.policy(app.tenant(), name, 0).await?.policy],
            None => desk.policies(app.tenant()).await?,
        };
        for policy in policies {
            let calendar = parse(&policy.spec.cron, &policy.spec.time_zone)?;
            all.push(of(Some(policy.name), &calendar, now));
        }
    }
    app.output.result(&json!({ "policies": all }), || {
        all.iter()
            .map(|one| {
                let name = one
                    .policy
                    .as_ref()
                    .map_or_else(String::new, |name| format!("{name}: "));
                let times: String = one
                    .upcoming
                    .iter()
                    .map(|due| format!("  {}\n", in_zone(*due, &one.time_zone)))
                    .collect();
                format!("{name}{} in {}\n{times}", one.cron, one.time_zone)
            })
            .collect::<Vec<_>>()
            .join("\n")
    });
    Ok(if all.is_empty() {
        Exit::Nothing
    } else {
        Exit::Done
    })
}
