//! One run: a fresh fleet, load, the faults of the plan at their times, a time for everything to come to rest, and the look at
//! what is left.

use std::{
    path::PathBuf,
    sync::{atomic::Ordering, mpsc},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use fettler_fault_points::{Role, Rule};
use fettler_test_servers::{S3Action, S3Request};
use serde_json::{Value, json};

use crate::{
    Result, Trouble, audit,
    check::{self, Findings, Violation},
    fleet::{DATABASES, Fleet, LOOK_EVERY, SLOTS, Slot},
    history,
    load::{self, CLIENTS, Clients, Wishes},
    plan::{Fault, Plan, StoreFault, Timed, Who},
    scan,
    servers::Servers,
    tally::Tally,
};

/// How long jobs may take to end once nothing is in their way any more: a lease, a takeover, two retries with their pauses,
/// and a machine that is busy with other things.
const REST_WITHIN: Duration = Duration::from_secs(120);
/// The same where a rule is left out, and something may be stuck on purpose.
const REST_WITHOUT_A_RULE: Duration = Duration::from_secs(25);
/// A job that waits for a time further away than this is cancelled when the run is at its end, by the interface.
const LONGEST_WAIT_MICROS: i64 = 6_000_000;
/// How long upkeep may take to remove what ended attempts left.
const TIDY_WITHIN: Duration = Duration::from_secs(75);
/// The grace of the last collections, by which everything that nobody needs must go.
const LAST_GRACE_SECONDS: u64 = 1;
/// Collections in which that must be done.
const MOST_COLLECTIONS: u32 = 5;
/// How long processes may outlive the fleet.
const GONE_WITHIN: Duration = Duration::from_secs(10);
/// Between looks at the ledger: each starts a program.
const ASK_EVERY: Duration = Duration::from_millis(250);
/// A slow line delays each piece by so much.
const SLOW_LINE: Duration = Duration::from_millis(60);
/// The policies and the seconds between their due times.
const POLICIES: [(&str, u64); 3] = [("pings", 2), ("stills", 3), ("busies", 4)];

/// What a run showed.
#[derive(Debug)]
pub struct Report {
    /// The plan's seed.
    pub seed: u64,
    /// What the faults did.
    pub tally: Tally,
    /// What did not hold.
    pub violations: Vec<Violation>,
    /// Points at which a process ended.
    pub points: Vec<String>,
    /// How long it took.
    pub took: Duration,
    /// Where everything of it lies, if something did not hold.
    pub folder: Option<PathBuf>,
}

/// How a run is made.
#[derive(Clone, Debug)]
pub struct Options {
    /// The binary, with its fault points.
    pub binary: PathBuf,
    /// The binary of the previous build: the fleet begins with it, and is upgraded under load.
    pub previous: Option<PathBuf>,
    /// A rule that is left out.
    pub without: Option<Rule>,
    /// Where the ledger's record of the run is written to, a JSON document a line.
    pub record: Option<PathBuf>,
    /// Whether the folder of a run that went wrong is kept.
    pub keep: bool,
    /// Whether everything is said that is done.
    pub verbose: bool,
}

/// Makes a run.
///
/// # Errors
///
/// When the harness itself does not work.
pub fn run(servers: &mut Servers, plan: &Plan, options: &Options) -> Result<Report> {
    let began = Instant::now();
    let id = format!("f{:x}-{}", plan.seed, std::process::id());
    let mut fleet = Fleet::start(servers, &id, plan, options)?;
    let say = |what: &str| {
        if options.verbose {
            eprintln!("  {:6.2} s  {what}", began.elapsed().as_secs_f64());
        }
    };
    say("the fleet is there");
    let addresses = fleet
        .seats
        .iter()
        .filter(|seat| seat.slot.role == Role::Api)
        .map(|seat| seat.address.clone())
        .collect();
    let clients = Clients::new(addresses, &fleet.token);
    let word = id.replace('-', "_");
    let copies = fleet.servers.source_url("DATABASE");
    let elsewhere = weather(&mut fleet, &clients, plan, &word, &copies, &say)?;
    say("the faults are over");

    let mut findings = Findings(clients.violations());
    let ended_well = wind_down(&mut fleet, &clients, &mut findings, &say)?;
    if ended_well && findings.0.is_empty() {
        last_look(
            &mut fleet,
            &clients,
            &word,
            &copies,
            elsewhere,
            &mut findings,
            &say,
        )?;
    }
    let rest = if ended_well {
        REST_WITHIN
    } else {
        Duration::ZERO
    };
    check::jobs(&fleet, &clients.accepted(), rest, &mut findings)?;
    check::ticks(&fleet, &POLICIES, &mut findings)?;
    check::secrets(&fleet, &mut findings)?;
    if ended_well {
        wait_for_tidiness(&mut fleet)?;
        let known = ["shop", &word].map(ToOwned::to_owned);
        check::left_over(&fleet, &known, &mut findings)?;
    }
    say("the fleet is asked to stop");
    for wrong in fleet.stop()? {
        findings.wrong("rolling restart", wrong);
    }
    for (process, command) in left_running(&id) {
        findings.wrong(
            "rule 6",
            format!("process {process} outlived the fleet: {command}"),
        );
    }
    if let Some(folder) = &options.record {
        let file = folder.join(format!("history-{}.jsonl", plan.seed));
        let record = fleet.ledger.psql(audit::RECORD)?;
        std::fs::write(&file, record).map_err(Trouble::io(format!("write {}", file.display())))?;
    }
    // The order of a history is that of its times.
    if !plan.sets_ledger_clock() {
        let replayed = history::check(&fleet, &clients.accepted(), &mut findings)?;
        say(&format!("replayed against the models: {replayed:?}"));
    }
    let tally = count(&fleet, &clients)?;
    drop_copies(&fleet, &word)?;
    let points = fleet.points_hit();
    let kept = options.keep && !findings.0.is_empty();
    let folder = kept.then(|| fleet.keep_folder());
    if let Some(folder) = &folder {
        let dump = fleet
            .servers
            .ledger
            .run("pg_dump", fleet.ledger.name(), &["--data-only"])?;
        let file = folder.join("ledger.sql");
        std::fs::write(&file, dump).map_err(Trouble::io("keep the ledger"))?;
    }
    say("the run is over");
    Ok(Report {
        seed: plan.seed,
        tally,
        violations: findings.0,
        points,
        took: began.elapsed(),
        folder,
    })
}

/// The faults of a plan while they go on.
struct Storm<'p> {
    plan: &'p Plan,
    next: usize,
    /// What is to be undone, and when.
    ends: Vec<(Instant, Undo)>,
    elsewhere: Vec<JoinHandle<()>>,
    /// Collections that a client is to ask for, with their graces.
    collections: mpsc::Sender<u64>,
}

/// The end of a fault.
#[derive(Clone, Copy, Debug)]
enum Undo {
    Thaw(Slot),
    Redis,
    Ledger,
    Store,
    Line(Slot),
    Wire,
    StoreForwards,
    Disk(Slot),
    Clock(Slot),
    LedgerClock,
}

impl<'p> Storm<'p> {
    fn new(plan: &'p Plan, collections: mpsc::Sender<u64>) -> Self {
        Self {
            plan,
            collections,
            next: 0,
            ends: Vec::new(),
            elsewhere: Vec::new(),
        }
    }

    fn begin(&mut self, fleet: &mut Fleet<'_>, timed: &Timed) -> Result<()> {
        let who = |who: Who, fleet: &Fleet<'_>| match who {
            Who::Slot(slot) => slot,
            Who::Busiest => busiest(fleet),
        };
        let undo = match timed.fault {
            Fault::Kill(target) => {
                let slot = who(target, fleet);
                fleet.kill(slot, timed.lasts)?;
                None
            }
            Fault::KillRedis => {
                fleet.kill_redis()?;
                Some(Undo::Redis)
            }
            Fault::KillLedger => {
                fleet.servers.ledger.kill_9()?;
                Some(Undo::Ledger)
            }
            Fault::KillStore => {
                fleet.servers.minio.kill_9()?;
                Some(Undo::Store)
            }
            Fault::Flush => {
                fleet.flush_redis()?;
                None
            }
            Fault::Freeze(target) => {
                let slot = who(target, fleet);
                fleet.freeze(slot, true)?;
                Some(Undo::Thaw(slot))
            }
            Fault::CutLedger(target) => {
                let slot = who(target, fleet);
                let line = &fleet.lines[slot.index()];
                line.refuse(true);
                line.cut();
                Some(Undo::Line(slot))
            }
            Fault::StallLedger(target) => {
                let slot = who(target, fleet);
                fleet.lines[slot.index()].stall(true);
                Some(Undo::Line(slot))
            }
            Fault::SlowLedger(target) => {
                let slot = who(target, fleet);
                fleet.lines[slot.index()].delay(SLOW_LINE);
                Some(Undo::Line(slot))
            }
            Fault::CutWire => {
                fleet.wire.refuse(true);
                fleet.wire.cut();
                Some(Undo::Wire)
            }
            Fault::StallWire => {
                fleet.wire.stall(true);
                Some(Undo::Wire)
            }
            Fault::Store(fault) => {
                misbehave(fleet, fault);
                Some(Undo::StoreForwards)
            }
            Fault::Collect(grace) => {
                // A client sends it: an interface may be away, and the next fault does not wait for it.
                let _ = self.collections.send(grace);
                None
            }
            Fault::Elsewhere => {
                self.elsewhere.push(elsewhere(fleet)?);
                None
            }
            Fault::DiskFull(target) => {
                let slot = who(target, fleet);
                fleet.fill_disk(slot, true)?;
                Some(Undo::Disk(slot))
            }
            Fault::LedgerClock(ahead) => {
                fleet.servers.set_ledger_clock(ahead)?;
                Some(Undo::LedgerClock)
            }
            Fault::Upgrade(slot) => {
                fleet.upgrade(slot)?;
                None
            }
            Fault::Clock(slot, ahead) => {
                fleet.set_clock(slot, ahead)?;
                Some(Undo::Clock(slot))
            }
        };
        self.ends
            .extend(undo.map(|undo| (Instant::now() + timed.lasts, undo)));
        Ok(())
    }

    fn undo(fleet: &mut Fleet<'_>, undo: Undo) -> Result<()> {
        match undo {
            Undo::Thaw(slot) => fleet.freeze(slot, false)?,
            Undo::Redis => fleet.start_redis()?,
            Undo::Ledger => fleet.servers.ledger.start_again()?,
            Undo::Store => fleet.servers.minio.start_again()?,
            Undo::Line(slot) => {
                let line = &fleet.lines[slot.index()];
                line.refuse(false);
                line.stall(false);
                line.delay(Duration::ZERO);
            }
            Undo::Wire => {
                fleet.wire.refuse(false);
                fleet.wire.stall(false);
            }
            Undo::StoreForwards => {
                fleet.store.forward_all();
                fleet.store.refuse(false);
            }
            Undo::Disk(slot) => fleet.fill_disk(slot, false)?,
            Undo::Clock(slot) => fleet.set_clock(slot, 0)?,
            Undo::LedgerClock => fleet.servers.set_ledger_clock(0)?,
        }
        Ok(())
    }
}

/// The worker with the most running jobs, as the ledger has it; the first one where that cannot be told.
fn busiest(fleet: &Fleet<'_>) -> Slot {
    let first = SLOTS[4];
    let told = fleet.ledger.psql(
        "SELECT split_part(worker, '-', 1) FROM job WHERE state = 1 AND worker IS NOT NULL
         GROUP BY 1 ORDER BY sum(CASE WHEN slot = 0 THEN 10 ELSE 1 END) DESC LIMIT 1",
    );
    let name = told.unwrap_or_default();
    let workers = SLOTS.iter().filter(|slot| slot.role == Role::Worker);
    workers
        .copied()
        .find(|slot| slot.name() == name.trim())
        .unwrap_or(first)
}

fn misbehave(fleet: &Fleet<'_>, fault: StoreFault) {
    let third = |request: &S3Request| request.number.is_multiple_of(3);
    match fault {
        StoreFault::Answers(status) => fleet.store.decide(move |request| {
            if third(request) {
                S3Action::Answer(status)
            } else {
                S3Action::Forward
            }
        }),
        StoreFault::Slow(by) => fleet.store.decide(move |_| S3Action::Delay(by)),
        StoreFault::LosesAnswers => fleet.store.decide(move |request| {
            if third(request) && request.is_upload() {
                S3Action::CutAfter
            } else {
                S3Action::Forward
            }
        }),
        StoreFault::Cuts => fleet.store.decide(move |request| {
            if third(request) {
                S3Action::CutBefore
            } else {
                S3Action::Forward
            }
        }),
        StoreFault::Away => {
            fleet.store.refuse(true);
            fleet.store.cut();
        }
    }
}

/// Another fleet, with a ledger of its own, that backs up and collects in the same repository.
fn elsewhere(fleet: &Fleet<'_>) -> Result<JoinHandle<()>> {
    let source = fleet.path("elsewhere.sqlite");
    if !source.exists() {
        fettler_tests::sqlite::make_bank(&source, 1 << 20);
    }
    let source = source.display().to_string();
    let mut commands = vec![
        fleet.elsewhere(&["backup", &source, "--name", "elsewhere"]),
        fleet.elsewhere(&["collect"]),
    ];
    let log = fleet.path("logs").join("elsewhere.log");
    let log = std::fs::File::options()
        .create(true)
        .append(true)
        .open(log)
        .map_err(Trouble::io("write a log"))?;
    for command in &mut commands {
        command.stderr(log.try_clone().map_err(Trouble::io("share a log"))?);
    }
    Ok(std::thread::spawn(move || {
        for mut command in commands {
            // The store's faults may end it with an error, which is as good.
            let _ = command.status();
        }
    }))
}

/// Load and faults, until the plan is over; everything is mended then. Gives back whether there is another fleet.
fn weather(
    fleet: &mut Fleet<'_>,
    clients: &Clients,
    plan: &Plan,
    word: &str,
    copies: &str,
    say: &dyn Fn(&str),
) -> Result<bool> {
    let (sender, collections) = mpsc::channel();
    let mut storm = Storm::new(plan, sender);
    let wishes = Wishes {
        ledger: fleet.ledger.clone(),
        restored: fleet.path("restored"),
        copies: copies.to_owned(),
        word: word.to_owned(),
        patient: plan.directed,
        rates: plan.rates,
    };
    let busy = fleet.path("busy.sqlite");
    let others = std::thread::scope(|scope| {
        for nth in 0..CLIENTS {
            let wishes = &wishes;
            scope.spawn(move || clients.work(plan.seed, nth, wishes));
        }
        scope.spawn(move || {
            for (nth, grace) in collections.iter().enumerate() {
                let job = json!({"kind": "collect", "arguments": {"grace_seconds": grace}});
                clients.submit(nth, &format!("collect-{}-{nth}", plan.seed), false, &job);
            }
        });
        scope.spawn(|| load::keep_busy(&busy, plan.seed, &clients.stop));
        let outcome = blow(fleet, &mut storm, say);
        clients.stop.store(true, Ordering::Relaxed);
        // Mended before the clients are waited for: they try until they are answered.
        let mended = mend(fleet, &mut storm);
        // The last collection was asked for.
        let others = storm.elsewhere;
        drop(storm.collections);
        outcome.and(mended).map(|()| others)
    });
    let others = others?;
    let was_elsewhere = !others.is_empty();
    for other in others {
        other
            .join()
            .expect("the other fleet's thread does not panic");
    }
    Ok(was_elsewhere)
}

fn blow(fleet: &mut Fleet<'_>, storm: &mut Storm<'_>, say: &dyn Fn(&str)) -> Result<()> {
    let plan = storm.plan;
    let began = Instant::now();
    let mut told = 0;
    while began.elapsed() < plan.storm {
        while let Some(timed) = plan
            .faults
            .get(storm.next)
            .filter(|timed| timed.at <= began.elapsed())
        {
            say(&timed.fault.to_string());
            storm.next += 1;
            storm.begin(fleet, timed)?;
        }
        let now = Instant::now();
        let over: Vec<Undo> = storm
            .ends
            .iter()
            .filter(|(at, _)| *at <= now)
            .map(|(_, undo)| *undo)
            .collect();
        storm.ends.retain(|(at, _)| *at > now);
        for undo in over {
            Storm::undo(fleet, undo)?;
        }
        fleet.supervise()?;
        if plan.directed {
            let hit = fleet.points_hit();
            let points = crate::plan::points_of_harness().count();
            if hit.len() > told {
                told = hit.len();
                say(&format!("{told} of {points} points were hit"));
            }
            let was_failover = fleet.failovers > 0 || !plan.sentinels;
            if told == points && was_failover {
                break;
            }
        }
        std::thread::sleep(LOOK_EVERY);
    }
    Ok(())
}

/// Ends every fault.
fn mend(fleet: &mut Fleet<'_>, storm: &mut Storm<'_>) -> Result<()> {
    fleet.servers.all_up()?;
    for (_, undo) in storm.ends.drain(..) {
        Storm::undo(fleet, undo)?;
    }
    fleet.start_all()
}

/// Waits until policies have decided what was due, stops them, and waits until all jobs have ended. Whether they have.
fn wind_down(
    fleet: &mut Fleet<'_>,
    clients: &Clients,
    findings: &mut Findings,
    say: &dyn Fn(&str),
) -> Result<bool> {
    let overdue = "SELECT count(*) FROM policy WHERE next_due <= (extract(epoch FROM clock_timestamp()) * 1000000)::bigint";
    if !rest(fleet, |fleet| Ok(check::number(fleet, overdue)? == 0))? {
        findings.wrong(
            "P11",
            format!("due times are not decided after {REST_WITHIN:?}"),
        );
    }
    let fleet_now = &*fleet;
    std::thread::scope(|scope| {
        let pausing: Vec<_> = POLICIES
            .iter()
            .map(|(policy, _)| {
                scope.spawn(|| fleet_now.cli(&["policy", "edit", policy, "--pause"]))
            })
            .collect();
        pausing.into_iter().try_for_each(|one| {
            one.join()
                .expect("a command's thread does not panic")
                .map(drop)
        })
    })?;
    say("no more jobs are made by policies");
    let ended = all_ended(fleet, clients)?;
    if ended {
        say("all jobs have ended");
    }
    Ok(ended)
}

/// Waits for a condition with the fleet kept up. False when it did not come true.
fn rest(
    fleet: &mut Fleet<'_>,
    mut holds: impl FnMut(&mut Fleet<'_>) -> Result<bool>,
) -> Result<bool> {
    let began = Instant::now();
    let within = match fleet.without {
        Some(Rule::Rescue) => REST_WITHOUT_A_RULE,
        _ => REST_WITHIN,
    };
    while began.elapsed() < within {
        fleet.supervise()?;
        if holds(fleet)? {
            return Ok(true);
        }
        std::thread::sleep(ASK_EVERY);
    }
    Ok(false)
}

fn all_ended(fleet: &mut Fleet<'_>, clients: &Clients) -> Result<bool> {
    rest(fleet, |fleet| {
        let far = check::query(
            fleet,
            &format!(
                "SELECT id FROM job WHERE lane = 1 AND cancel IS NULL
                 AND due > (extract(epoch FROM clock_timestamp()) * 1000000)::bigint + {LONGEST_WAIT_MICROS}"
            ),
        )?;
        for (nth, job) in far.iter().filter_map(|row| row["id"].as_str()).enumerate() {
            clients.send(
                nth,
                "POST",
                &format!("/api/v1/jobs/{job}/cancel"),
                None,
                &Value::Null,
            );
        }
        Ok(check::number(fleet, "SELECT count(*) FROM job")? == 0)
    })
}

/// The last collections, then everything that is listed is read back, and some of it restored and compared.
fn last_look(
    fleet: &mut Fleet<'_>,
    clients: &Clients,
    word: &str,
    copies: &str,
    elsewhere: bool,
    findings: &mut Findings,
    say: &dyn Fn(&str),
) -> Result<()> {
    let seed_key = fleet.id.clone();
    let mut number = 0;
    let mut submit = |job: &Value| {
        number += 1;
        clients.submit(number, &format!("last-{seed_key}-{number}"), false, job)
    };
    let collect = |dry: bool| json!({"kind": "collect", "arguments": {"grace_seconds": LAST_GRACE_SECONDS, "dry_run": dry}});
    let run = |fleet: &mut Fleet<'_>, job: &str| -> Result<Value> {
        all_ended(fleet, clients)?;
        Ok(check::result_of(fleet, job)?.unwrap_or_default())
    };
    // One forgets and marks, the next one deletes: a mark must be older than the grace, by a clock of whole seconds. Upkeep
    // of the last backups may still forget some meanwhile: then it takes another one.
    let mut left = Value::Null;
    for nth in 0..MOST_COLLECTIONS {
        let Some(job) = submit(&collect(false)) else {
            return Ok(());
        };
        let result = run(fleet, &job)?;
        if result["deleted_objects"].is_null() {
            findings.wrong("P8", format!("a collection failed: {result}"));
            return Ok(());
        }
        if nth > 0 {
            let Some(dry) = submit(&collect(true)) else {
                return Ok(());
            };
            left = run(fleet, &dry)?;
            let nothing = ["marked_objects", "waiting_objects", "deleted_objects"];
            if nothing.iter().all(|name| left[name] == 0) {
                break;
            }
        }
        let marked = Instant::now();
        while marked.elapsed() < Duration::from_secs(LAST_GRACE_SECONDS + 1) {
            fleet.supervise()?;
            std::thread::sleep(LOOK_EVERY);
        }
    }
    let counts = check::objects(fleet, &["packs", "indexes"])?;
    let lying: u64 = counts.values().sum();
    if left["marked_objects"] != 0 || left["waiting_objects"] != 0 || left["deleted_objects"] != 0 {
        findings.wrong(
            "rule 23",
            format!("after the grace there is still something to collect: {left}"),
        );
    } else if left["needed_objects"] != lying {
        findings.wrong(
            "rule 23",
            format!("{lying} objects lie in the store: {left}"),
        );
    }
    let backups = load::complete_backups(&fleet.ledger)?;
    let mut verifications = Vec::new();
    for (backup, of) in &backups {
        let verify = json!({"kind": "verify", "arguments": {"backup": backup}});
        verifications.push((backup.clone(), of.clone(), submit(&verify)));
    }
    let wishes = Wishes {
        ledger: fleet.ledger.clone(),
        restored: fleet.path("restored"),
        copies: copies.to_owned(),
        word: word.to_owned(),
        patient: false,
        rates: &[],
    };
    let mut restores = Vec::new();
    for database in DATABASES {
        let newest = backups.iter().rfind(|(_, of)| of == database);
        if let Some((backup, of)) = newest {
            let name = format!("last_{database}");
            restores.push((
                backup.clone(),
                of.clone(),
                name.clone(),
                submit(&load::restore(backup, of, &name, &wishes)),
            ));
        }
    }
    if !all_ended(fleet, clients)? {
        return Ok(());
    }
    say("everything was read back");
    // What keep rules have forgotten meanwhile need not verify.
    let still_listed = load::complete_backups(&fleet.ledger)?;
    let is_listed = |id: &str| still_listed.iter().any(|(listed, _)| listed == id);
    for (backup, of, job) in verifications {
        let Some(job) = job.filter(|_| is_listed(&backup)) else {
            continue;
        };
        let result = check::result_of(fleet, &job)?.unwrap_or_default();
        if result["ok"] != true {
            findings.wrong("P4", format!("backup {backup} of {of} is listed as complete, and its verification says {result}"));
        }
    }
    for (backup, of, name, job) in restores {
        let Some(job) = job.filter(|_| is_listed(&backup)) else {
            continue;
        };
        let result = check::result_of(fleet, &job)?.unwrap_or_default();
        if result["bytes"].is_null() {
            findings.wrong(
                "P4",
                format!("the newest backup of {of} does not restore: {result}"),
            );
            continue;
        }
        let differs = match of.as_str() {
            "shop" => {
                let copy = check::shop(&fleet.servers.source, &format!("{word}_{name}"))?;
                (copy != check::shop(&fleet.servers.source, "shop")?)
                    .then(|| "the copy of shop differs".to_owned())
            }
            of => {
                let source = fleet.path(&format!("{of}.sqlite"));
                let source = (of == "still").then_some(source.as_path());
                check::bank(
                    &fleet.path("restored").join(format!("{name}.sqlite")),
                    source,
                )
                .err()
            }
        };
        if let Some(differs) = differs {
            findings.wrong("P4", differs);
        }
    }
    if elsewhere {
        look_elsewhere(fleet, findings)?;
    }
    Ok(())
}

/// What the other fleet holds must not have been touched by this one's collections.
fn look_elsewhere(fleet: &Fleet<'_>, findings: &mut Findings) -> Result<()> {
    let listed = fleet
        .elsewhere(&["backups", "--database", "elsewhere", "--json"])
        .stdout(std::process::Stdio::piped())
        .output()
        .map_err(Trouble::io("start fettler"))?;
    let listed: Value = serde_json::from_slice(&listed.stdout).unwrap_or_default();
    if listed["backups"].as_array().is_none_or(Vec::is_empty) {
        // The store's faults kept it from making one.
        return Ok(());
    }
    let status = fleet
        .elsewhere(&["verify", "latest"])
        .status()
        .map_err(Trouble::io("start fettler"))?;
    if !status.success() {
        findings.wrong(
            "P8",
            format!("the other fleet's backup does not verify: {status}"),
        );
    }
    Ok(())
}

/// Waits until what ended attempts left is removed; what is left then is for the checker to tell.
fn wait_for_tidiness(fleet: &mut Fleet<'_>) -> Result<()> {
    let began = Instant::now();
    while began.elapsed() < TIDY_WITHIN {
        fleet.supervise()?;
        let is_tidy = check::left_in_scratch(fleet)?.is_empty()
            && check::number(fleet, "SELECT count(*) FROM artefact")? == 0;
        if is_tidy {
            return Ok(());
        }
        std::thread::sleep(ASK_EVERY);
    }
    Ok(())
}

fn left_running(id: &str) -> Vec<(u32, String)> {
    let began = Instant::now();
    loop {
        let left = scan::processes(id);
        if left.is_empty() || began.elapsed() > GONE_WITHIN {
            return left;
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

fn drop_copies(fleet: &Fleet<'_>, word: &str) -> Result<()> {
    let source = &fleet.servers.source;
    let names = source.psql(
        "postgres",
        &format!("SELECT datname FROM pg_database WHERE datname LIKE '{word}%'"),
    )?;
    for name in names.lines().map(str::trim).filter(|name| !name.is_empty()) {
        source.psql(
            "postgres",
            &format!("DROP DATABASE \"{name}\" WITH (FORCE)"),
        )?;
    }
    Ok(())
}

/// What the faults of the run did.
fn count(fleet: &Fleet<'_>, clients: &Clients) -> Result<Tally> {
    let logs = fleet.logs();
    let lines = |word: &str| -> u64 {
        logs.iter()
            .map(|(_, text)| text.lines().filter(|line| line.contains(word)).count() as u64)
            .sum()
    };
    let lost = check::number(
        fleet,
        "SELECT count(*) FROM faults.seen WHERE what IN ('attempt', 'end') AND outcome = 4",
    )?;
    let takeovers = check::number(
        fleet,
        "SELECT count(*) FROM faults.seen a WHERE what = 'attempt' AND outcome = 4
         AND EXISTS (SELECT 1 FROM faults.seen c WHERE c.job = a.job AND c.what = 'claim' AND c.seq > a.seq)",
    )?;
    let races = check::number(
        fleet,
        "SELECT (SELECT count(*) FROM faults.seen WHERE what = 'log' AND note LIKE '%it is adopted%')
              + (SELECT count(*) FROM history WHERE problem::json ->> 'code' = 'repository.lost_announcement')",
    )?;
    let collected = check::number(
        fleet,
        "SELECT coalesce(sum((result::json ->> 'deleted_objects')::bigint), 0) FROM history WHERE kind = 'collect' AND result IS NOT NULL",
    )?;
    Ok(Tally {
        failovers: fleet.failovers,
        jobs: clients.accepted().len() as u64,
        deaths: fleet.seats.iter().map(|seat| u64::from(seat.deaths)).sum(),
        kills_in_attempts: lost,
        takeovers,
        zombies_refused: lines("the attempt was superseded"),
        refills: lines("the queue's Redis was filled from the ledger"),
        manifest_races: races,
        collected,
        doubled_submissions: clients.doubled(),
    })
}
