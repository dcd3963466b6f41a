//! What must hold after a run, looked at from outside: the ledger by SQL, the store by listing it, databases with their own
//! tools, processes, folders and logs as the system shows them.

use std::{
    collections::BTreeMap,
    fmt,
    path::Path,
    time::{Duration, Instant},
};

use fettler_test_servers::PostgresServer;
use rusqlite::Connection;
use serde_json::Value;

use crate::{
    Result, Trouble, audit,
    fleet::Fleet,
    load::Accepted,
    scan::{self, Secret},
    servers::BUCKET,
};

/// Problems of attempts that no fault of a plan excuses: something that was needed is gone, or Fettler itself is wrong.
const NEVER: [&str; 7] = [
    "repository.damaged",
    "repository.collection_stopped",
    "repository.stream_twice",
    "repository.wrong_key",
    "job.panicked",
    "job.result",
    "ledger.corrupt",
];
/// Between looks at what has not ended.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Violations of one kind that are told.
const MOST_TOLD: usize = 5;

/// A promise, or a rule, that did not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Which: a promise of the design or a rule of its protocols.
    pub promise: &'static str,
    /// What was seen.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.promise, self.what)
    }
}

/// Collects what is wrong.
#[derive(Debug, Default)]
pub struct Findings(pub Vec<Violation>);

impl Findings {
    /// One more.
    pub fn wrong(&mut self, promise: &'static str, what: impl Into<String>) {
        let what = what.into();
        self.0.push(Violation { promise, what });
    }

    /// One for each row that a query gives back.
    fn rows(&mut self, promise: &'static str, what: &str, rows: &[Value]) {
        for row in rows.iter().take(MOST_TOLD) {
            self.wrong(promise, format!("{what}: {row}"));
        }
        if rows.len() > MOST_TOLD {
            self.wrong(
                promise,
                format!("{what}: and {} more", rows.len() - MOST_TOLD),
            );
        }
    }
}

/// The rows of a query, as JSON objects.
///
/// # Errors
///
/// When the ledger does not answer.
pub fn query(fleet: &Fleet<'_>, sql: &str) -> Result<Vec<Value>> {
    let all = format!("SELECT coalesce(json_agg(row_to_json(rows)), '[]') FROM ({sql}) rows");
    let text = fleet.ledger.psql(&all)?;
    serde_json::from_str(text.trim())
        .map_err(|error| Trouble::unreadable("what the ledger answered", error))
}

/// One number of the ledger's.
///
/// # Errors
///
/// When the ledger does not answer.
pub fn number(fleet: &Fleet<'_>, sql: &str) -> Result<u64> {
    let text = fleet.ledger.psql(sql)?;
    text.trim()
        .parse()
        .map_err(|error| Trouble::unreadable(format!("the answer to {sql}"), error))
}

/// The jobs that do not end. What a scheduler submits by itself after a backup may come after all others have ended: it is
/// given its time.
fn stuck(fleet: &Fleet<'_>, within: Duration) -> Result<Vec<Value>> {
    let live = || {
        query(
            fleet,
            "SELECT id, kind, state, lane, parked_at, wait, due, tries, lost, worker, lease_until, problem FROM job",
        )
    };
    let began = Instant::now();
    let mut left = live()?;
    while !left.is_empty() && began.elapsed() < within {
        std::thread::sleep(LOOK_EVERY);
        let now = live()?;
        left.retain(|job| now.iter().any(|other| other["id"] == job["id"]));
    }
    Ok(left)
}

/// P1, P2: jobs, their attempts and their ends. What has come since all had ended may take so long.
///
/// # Errors
///
/// When the ledger does not answer.
pub fn jobs(
    fleet: &Fleet<'_>,
    accepted: &[Accepted],
    within: Duration,
    findings: &mut Findings,
) -> Result<()> {
    let ids: Vec<String> = accepted
        .iter()
        .map(|job| format!("('{}')", job.id))
        .collect();
    if !ids.is_empty() {
        let lost = query(
            fleet,
            &format!(
                "SELECT v.id FROM (VALUES {}) v (id) WHERE NOT EXISTS (SELECT 1 FROM history h WHERE h.id = v.id)
                 AND NOT EXISTS (SELECT 1 FROM job j WHERE j.id = v.id)",
                ids.join(",")
            ),
        )?;
        findings.rows("P1", "an accepted job is not in the ledger", &lost);
    }
    let stuck = stuck(fleet, within)?;
    findings.rows(
        "P1",
        "a job has not ended though nothing is in its way",
        &stuck,
    );
    let leaked = query(
        fleet,
        "SELECT name, job FROM resource WHERE job IS NOT NULL
         AND NOT EXISTS (SELECT 1 FROM job j WHERE j.id = resource.job AND j.state = 1)",
    )?;
    findings.rows(
        "rule 3",
        "a slot is held by a job that does not run",
        &leaked,
    );
    let counted = query(
        fleet,
        "SELECT name, running FROM job_limit WHERE running <>
         (SELECT count(*) FROM job WHERE state = 1 AND ('/' || replace(holds, E'\\n', '/') || '/') LIKE '%' || name || '%')",
    )?;
    findings.rows("rule 3", "a limit counts jobs that do not run", &counted);
    findings.rows(
        "P2",
        "a job ended more than once",
        &query(fleet, audit::ENDED_TWICE)?,
    );
    findings.rows(
        "rule 2",
        "a fencing token did not rise",
        &query(fleet, audit::TOKENS_FELL)?,
    );
    findings.rows(
        "P2",
        "a write of a superseded attempt was taken",
        &query(fleet, audit::ZOMBIE_WRITES)?,
    );
    let wrong_problems = query(
        fleet,
        &format!(
            "SELECT job, what, code, problem FROM (
                SELECT id AS job, kind AS what, problem::json ->> 'code' AS code, problem FROM history WHERE problem IS NOT NULL
                UNION ALL
                SELECT job, 'attempt', problem::json ->> 'code', problem FROM attempt WHERE problem IS NOT NULL
             ) problems WHERE code IN ({})",
            NEVER.map(|code| format!("'{code}'")).join(",")
        ),
    )?;
    findings.rows("P8", "an attempt met what may not be", &wrong_problems);
    Ok(())
}

/// P11, rule 18: every due time of every policy has one outcome.
///
/// # Errors
///
/// When the ledger does not answer.
pub fn ticks(
    fleet: &Fleet<'_>,
    step_seconds: &[(&str, u64)],
    findings: &mut Findings,
) -> Result<()> {
    for (policy, step) in step_seconds {
        let due = query(
            fleet,
            &format!(
                "SELECT due, outcome FROM tick JOIN policy p ON p.id = tick.policy WHERE p.name = '{policy}' ORDER BY due"
            ),
        )?;
        if due.is_empty() {
            findings.wrong("P11", format!("the policy {policy} never ticked"));
        }
        let times: Vec<i64> = due.iter().filter_map(|row| row["due"].as_i64()).collect();
        let step_micros = i64::try_from(*step * 1_000_000).expect("a small number");
        for pair in times.windows(2) {
            if pair[1] - pair[0] != step_micros {
                findings.wrong(
                    "rule 18",
                    format!(
                        "the policy {policy} has no outcome between {} and {}",
                        pair[0], pair[1]
                    ),
                );
            }
        }
        for row in &due {
            let outcome: Value = row["outcome"]
                .as_str()
                .and_then(|text| serde_json::from_str(text).ok())
                .unwrap_or_default();
            let Some(job) = find(&outcome, "job").and_then(Value::as_str) else {
                continue;
            };
            let known = number(
                fleet,
                &format!(
                    "SELECT count(*) FROM (SELECT id FROM history UNION ALL SELECT id FROM job) jobs WHERE id = '{job}'"
                ),
            )?;
            if known != 1 {
                findings.wrong(
                    "rule 18",
                    format!("the job {job} of a tick of {policy} is there {known} times"),
                );
            }
        }
    }
    Ok(())
}

/// A member of this name, at any depth.
fn find<'v>(value: &'v Value, name: &str) -> Option<&'v Value> {
    match value {
        Value::Object(members) => members
            .get(name)
            .or_else(|| members.values().find_map(|inner| find(inner, name))),
        _ => None,
    }
}

/// The result of a job that has ended; an object with its problem where it failed.
///
/// # Errors
///
/// When the ledger does not answer.
pub fn result_of(fleet: &Fleet<'_>, job: &str) -> Result<Option<Value>> {
    let rows = query(
        fleet,
        &format!("SELECT state, result, problem FROM history WHERE id = '{job}'"),
    )?;
    let Some(row) = rows.first() else {
        return Ok(None);
    };
    let text = |name: &str| {
        row[name]
            .as_str()
            .and_then(|text| serde_json::from_str::<Value>(text).ok())
    };
    Ok(Some(text("result").unwrap_or_else(
        || serde_json::json!({"state": row["state"], "problem": text("problem")}),
    )))
}

/// Objects of a kind that lie in the run's part of the store.
///
/// # Errors
///
/// When the store's folder cannot be read.
pub fn objects(fleet: &Fleet<'_>, kinds: &[&str]) -> Result<BTreeMap<String, u64>> {
    let root = fleet.servers.minio.data_dir().join(BUCKET).join(&fleet.id);
    let mut counts = BTreeMap::new();
    for file in scan::files(&root)? {
        // MinIO keeps an object as a folder of its name with this file in it.
        if file.file_name().is_none_or(|name| name != "xl.meta") {
            continue;
        }
        let parts: Vec<String> = file
            .components()
            .map(|part| part.as_os_str().to_string_lossy().into_owned())
            .collect();
        for kind in kinds {
            if parts.iter().any(|part| part == kind) {
                *counts.entry((*kind).to_owned()).or_default() += 1;
            }
        }
    }
    Ok(counts)
}

/// What the SQLite database `busy` or `still` must look like in any backup of it.
///
/// # Errors
///
/// In words, what is wrong.
pub fn bank(copy: &Path, source: Option<&Path>) -> Result<(), String> {
    let said = |error: rusqlite::Error| format!("{}: {error}", copy.display());
    let connection = Connection::open(copy).map_err(said)?;
    let sound: String = connection
        .query_row("PRAGMA integrity_check", [], |row| row.get(0))
        .map_err(said)?;
    if sound != "ok" {
        return Err(format!("{} is not sound: {sound}", copy.display()));
    }
    let sum: i64 = connection
        .query_row("SELECT sum(balance) FROM account", [], |row| row.get(0))
        .map_err(said)?;
    if sum != 0 {
        return Err(format!(
            "the balances of {} add up to {sum}",
            copy.display()
        ));
    }
    if let Some(source) = source
        && fettler_tests::sqlite::content(copy) != fettler_tests::sqlite::content(source)
    {
        return Err(format!("{} differs from its source", copy.display()));
    }
    Ok(())
}

/// A digest of all rows of the database `shop`, by its own server.
///
/// # Errors
///
/// When the server does not answer.
pub fn shop(server: &PostgresServer, database: &str) -> Result<String> {
    Ok(server.psql(
        database,
        "SELECT md5(string_agg(i::text, '|' ORDER BY id)) FROM item i
         UNION ALL SELECT md5(string_agg(s::text, '|' ORDER BY id)) FROM sale s
         UNION ALL SELECT string_agg(indexname, ',' ORDER BY indexname) FROM pg_indexes WHERE schemaname = 'public'",
    )?)
}

/// Rule 6: nothing that attempts made is left over: folders, files, databases, records of them.
///
/// # Errors
///
/// When something cannot be looked at.
pub fn left_over(
    fleet: &Fleet<'_>,
    known_databases: &[String],
    findings: &mut Findings,
) -> Result<()> {
    for file in left_in_scratch(fleet)? {
        findings.wrong("rule 6", format!("{file} is left in the scratch folder"));
    }
    for file in scan::files(&fleet.path("restored"))? {
        if file
            .extension()
            .is_some_and(|extension| extension == "part")
        {
            findings.wrong("rule 6", format!("{} is left of a restore", file.display()));
        }
    }
    let records = query(fleet, "SELECT job, name, data FROM artefact")?;
    findings.rows("rule 6", "an artefact is still recorded", &records);
    let databases = fleet.servers.source.psql(
        "postgres",
        "SELECT datname FROM pg_database WHERE NOT datistemplate AND datname <> 'postgres'",
    )?;
    for database in databases
        .lines()
        .map(str::trim)
        .filter(|name| !name.is_empty())
    {
        if !known_databases
            .iter()
            .any(|known| database.starts_with(known.as_str()))
        {
            findings.wrong(
                "rule 6",
                format!("the database {database} is left on the source's server"),
            );
        }
    }
    Ok(())
}

/// What lies in the scratch folder of the workers.
///
/// # Errors
///
/// When it cannot be read.
pub fn left_in_scratch(fleet: &Fleet<'_>) -> Result<Vec<String>> {
    let entries =
        std::fs::read_dir(fleet.path("scratch")).map_err(Trouble::io("read the scratch folder"))?;
    Ok(entries
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect())
}

/// P9: no secret in logs, ledger, Redis or store.
///
/// # Errors
///
/// When one of them cannot be read.
pub fn secrets(fleet: &Fleet<'_>, findings: &mut Findings) -> Result<()> {
    let servers = &fleet.servers;
    let mut secrets = vec![
        Secret::text("the ledger's password", &servers.secrets.ledger_password),
        Secret::text("the source's password", &servers.secrets.source_password),
        Secret::text("Redis' password", &servers.secrets.redis_password),
        Secret::text("the store's secret", servers.minio.secret_key()),
        Secret::text("an interface's token", &fleet.token),
    ];
    let key_file = std::fs::read_to_string(fleet.path("data.key"))
        .map_err(Trouble::io("read the key file"))?;
    let digits = key_file.split_whitespace().last().unwrap_or_default();
    secrets.push(Secret::text("the key", digits));
    let bytes: Option<Vec<u8>> = (0..digits.len() / 2)
        .map(|n| u8::from_str_radix(digits.get(2 * n..2 * n + 2)?, 16).ok())
        .collect();
    // Without them nothing would be looked for.
    let bytes = bytes
        .filter(|bytes| !bytes.is_empty())
        .ok_or_else(|| Trouble::unreadable("the key file", "it does not end in hex digits"))?;
    secrets.push(Secret {
        name: "the key's bytes",
        bytes,
    });
    let mut look = |place: &str, bytes: &[u8]| {
        for name in scan::found(&secrets, bytes) {
            findings.wrong("P9", format!("{name} stands in {place}"));
        }
    };
    for (name, text) in fleet.logs() {
        look(&format!("the log {name}"), text.as_bytes());
    }
    let ledger = servers.ledger.run(
        "pg_dump",
        fleet.ledger.name(),
        &["--data-only", "--schema", "public"],
    )?;
    look("the ledger", ledger.as_bytes());
    let redis = scan::redis_content(servers.redis.port(), &servers.secrets.redis_password)?;
    look("Redis", &redis);
    let root = servers.minio.data_dir().join(BUCKET).join(&fleet.id);
    for file in scan::files(&root)? {
        // One that a late delete removes is not there any more.
        if let Ok(bytes) = std::fs::read(&file) {
            look("the store", &bytes);
        }
    }
    Ok(())
}
