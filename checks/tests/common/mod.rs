//! What the checks' tests on real servers share.

#![allow(dead_code, reason = "each of the tests uses its own part")]

use std::path::Path;

use fettler_checks::{
    Beside, Judged, Level, Library, Releases, Score, Seen, Snapshot, audit, drift_questions,
    evaluate, questions, score, service_of, service_question, snapshot_of,
};
use fettler_engine::{Row, Target};
use fettler_model::{DatabaseUrl, Finding, Status, Timestamp};
use tokio_util::sync::CancellationToken;

/// What a look found.
#[derive(Debug)]
pub struct Look {
    /// All of it.
    pub findings: Vec<Finding>,
    /// The score.
    pub score: Score,
}

/// Looks at a database with the checks that ship, and those of a folder in their place.
pub fn look(url: &str, level: Level, own: Option<&Path>) -> Look {
    let (url, password) = DatabaseUrl::parse_with_password(url).unwrap();
    let library = match own {
        None => Library::shipped(),
        Some(folder) => Library::shipped().with_folder(folder).unwrap(),
    };
    let engine = url.engine();
    let checks = library.of(engine, level);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let target = Target { url, password };
    let server = runtime
        .block_on(fettler_engines::engine(engine).ask(
            &target,
            &questions(&checks),
            &CancellationToken::new(),
        ))
        .map_err(|error| error.to_string());
    let ledger: Result<Row, String> = Err("it is not asked here".to_owned());
    let evaluation = evaluate(engine, &checks, &Seen { server, ledger });
    let findings = evaluation.findings(&checks);
    let score = score(&evaluation, &findings);
    Look { findings, score }
}

/// What is open.
pub fn open(look: &Look) -> Vec<Finding> {
    look.findings
        .iter()
        .filter(|finding| finding.status == Status::Open)
        .cloned()
        .collect()
}

/// The keys of what is open, the gravest first.
pub fn keys(look: &Look) -> Vec<String> {
    open(look).into_iter().map(|finding| finding.key).collect()
}

/// The checks that could not be made.
pub fn not_evaluable(look: &Look) -> Vec<String> {
    let mut checks: Vec<String> = look
        .findings
        .iter()
        .filter(|finding| matches!(finding.status, Status::NotEvaluable { .. }))
        .map(|finding| finding.check.clone())
        .collect();
    checks.sort();
    checks
}

/// What an audit found.
#[derive(Debug)]
pub struct Audited {
    /// The judgement.
    pub judged: Judged,
    /// What a later audit compares with.
    pub snapshot: Snapshot,
    /// The managed service that was told.
    pub service: Option<fettler_checks::Service>,
}

/// Audits a database with the checks that ship, and those of a folder in their place, on a day on which the list is young.
pub fn audited(url: &str, own: Option<&Path>, releases: &Releases) -> Audited {
    let (url, password) = DatabaseUrl::parse_with_password(url).unwrap();
    let library = match own {
        None => Library::shipped(),
        Some(folder) => Library::shipped().with_folder(folder).unwrap(),
    };
    let engine = url.engine();
    let checks = library.of_audit(engine);
    let asked: Vec<_> = questions(&checks)
        .into_iter()
        .chain(service_question(engine))
        .chain(drift_questions(engine))
        .collect();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let target = Target { url, password };
    let answers = runtime
        .block_on(fettler_engines::engine(engine).ask(&target, &asked, &CancellationToken::new()))
        .unwrap();
    let service = service_of(&answers.answers);
    let beside = Beside::of(releases, engine, &answers.version, Ok(&[]), service, TODAY);
    let snapshot = snapshot_of(engine, &answers.answers, Timestamp::now());
    let seen = Seen {
        server: Ok(answers),
        ledger: Err("it is not asked here".to_owned()),
    };
    Audited {
        judged: audit(&checks, &seen, &beside),
        snapshot,
        service,
    }
}

/// A day on which no version of the tests' servers is out of care.
const TODAY: &str = "2026-06-01";

impl Audited {
    /// The keys of what is open, in their order.
    pub fn keys(&self) -> Vec<String> {
        let mut keys: Vec<String> = self
            .judged
            .findings
            .iter()
            .filter(|finding| finding.status == Status::Open)
            .map(|finding| finding.key.clone())
            .collect();
        keys.sort();
        keys
    }

    /// The checks that could not be made, and why.
    pub fn not_made(&self) -> Vec<(String, String)> {
        self.judged
            .lines
            .iter()
            .filter_map(|line| Some((line.check.clone(), line.because.clone()?)))
            .collect()
    }
}

/// Puts a check that ships into a folder of one's own, with other limits.
#[allow(dead_code, reason = "not each program of tests needs it")]
pub fn with_limit(folder: &Path, engine: &str, name: &str, changes: &[(&str, &str)]) {
    let mut text = Library::shipped_text(&format!("checks/{engine}/{name}.yaml"))
        .unwrap_or_else(|| panic!("{engine} has no check {name}"))
        .to_owned();
    for (from, to) in changes {
        assert!(text.contains(from), "{name}: {from}");
        text = text.replace(from, to);
    }
    std::fs::write(folder.join(format!("{name}.yaml")), text).unwrap();
}
