//! Clients: they submit over HTTP, each job with an idempotency key, ask the other interface when one does not answer, and
//! keep what they were promised. Some send the same submission to both at once.

use std::{
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use fettler_test_servers::TestDatabase;
use fettler_tests::{http, sqlite};
use rand::{RngExt, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use rusqlite::Connection;
use serde_json::{Value, json};

use crate::{
    check::Violation,
    fleet::{DATABASES, LARGE},
};

/// Clients of a run.
pub const CLIENTS: u64 = 3;
/// Between two submissions of a client, at least and at most.
const PAUSE_MILLISECONDS: std::ops::Range<u64> = 100..450;
/// Between two tries of one submission.
const AGAIN_AFTER: Duration = Duration::from_millis(100);
/// A submission that no interface takes for so long is a fault of the harness or of Fettler.
const TAKEN_WITHIN: Duration = Duration::from_secs(45);
/// Transfers of one turn, and the pause after them.
const TRANSFERS: u64 = 20;
const TRANSFERS_PAUSE: Duration = Duration::from_millis(40);

/// A job that an interface has answered 202 for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// The job's id.
    pub id: String,
    /// Its kind.
    pub kind: String,
}

/// Who submits.
#[derive(Debug)]
pub struct Clients {
    addresses: Vec<String>,
    token: String,
    accepted: Mutex<Vec<Accepted>>,
    violations: Mutex<Vec<Violation>>,
    doubled: AtomicU64,
    /// Set when clients are to end.
    pub stop: AtomicBool,
}

/// What clients ask for.
#[derive(Debug)]
pub struct Wishes {
    /// Where backups are found.
    pub ledger: Arc<TestDatabase>,
    /// The folder for restored files.
    pub restored: PathBuf,
    /// The URL of the source's server with this text in the place of the database's name.
    pub copies: String,
    /// A word that the names of restored databases begin with.
    pub word: String,
    /// Whether the run lasts until every point was hit: fewer and quicker backups, so that nothing piles up, and more of what
    /// is rare. There is a database [`LARGE`] then.
    pub patient: bool,
    /// How fast backups read, one of these.
    pub rates: &'static [u64],
}

impl Clients {
    /// Clients of these interfaces.
    #[must_use]
    pub fn new(addresses: Vec<String>, token: &str) -> Self {
        Self {
            addresses,
            token: token.to_owned(),
            accepted: Mutex::default(),
            violations: Mutex::default(),
            doubled: AtomicU64::new(0),
            stop: AtomicBool::new(false),
        }
    }

    /// What was promised so far.
    #[must_use]
    pub fn accepted(&self) -> Vec<Accepted> {
        self.accepted
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// What clients saw that may not be.
    #[must_use]
    pub fn violations(&self) -> Vec<Violation> {
        self.violations
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// How many submissions were sent twice at once.
    #[must_use]
    pub fn doubled(&self) -> u64 {
        self.doubled.load(Ordering::Relaxed)
    }

    /// Sends a request to an interface; none when it gave no answer.
    pub fn send(
        &self,
        interface: usize,
        method: &str,
        path: &str,
        key: Option<&str>,
        body: &Value,
    ) -> Option<(u16, Value)> {
        let authorization = format!("Bearer {}", self.token);
        let mut headers = vec![
            ("Authorization", authorization.as_str()),
            ("Content-Type", "application/json"),
        ];
        headers.extend(key.map(|key| ("Idempotency-Key", key)));
        let body = if body.is_null() {
            String::new()
        } else {
            body.to_string()
        };
        let address = &self.addresses[interface % self.addresses.len()];
        let (status, answer) = http::send(address, method, path, &headers, &body).ok()?;
        // An answer that was cut off is none.
        Some((status, serde_json::from_str(&answer).ok()?))
    }

    /// Submits a job until it is taken; gives back its id, or none when it was refused or nobody took it.
    pub fn submit(&self, first: usize, key: &str, twice: bool, job: &Value) -> Option<String> {
        let began = Instant::now();
        let mut ids: Vec<String> = Vec::new();
        let mut refused = None;
        if twice {
            self.doubled.fetch_add(1, Ordering::Relaxed);
            std::thread::scope(|scope| {
                let other = scope.spawn(|| self.try_once(first + 1, key, job));
                let own = self.try_once(first, key, job);
                let other = other.join().expect("a client's thread does not panic");
                for outcome in [own, other] {
                    match outcome {
                        Outcome::Taken(id) => ids.push(id),
                        Outcome::Refused(why) => refused = Some(why),
                        Outcome::Again(_) => {}
                    }
                }
            });
        }
        let mut nth = first;
        while ids.is_empty() && refused.is_none() {
            match self.try_once(nth, key, job) {
                Outcome::Taken(id) => ids.push(id),
                Outcome::Refused(why) => refused = Some(why),
                Outcome::Again(why) => {
                    if began.elapsed() > TAKEN_WITHIN {
                        self.wrong(
                            "P1",
                            format!("no interface took a job within {TAKEN_WITHIN:?}: {why}"),
                        );
                        return None;
                    }
                    std::thread::sleep(AGAIN_AFTER);
                    nth += 1;
                }
            }
        }
        if let Some(why) = refused {
            self.wrong("rule 12", format!("a submission was refused: {why} {job}"));
            return None;
        }
        if ids.iter().any(|id| *id != ids[0]) {
            self.wrong("rule 12", format!("one key made two jobs: {ids:?}"));
        }
        let id = ids.swap_remove(0);
        self.accepted
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(Accepted {
                id: id.clone(),
                kind: job["kind"].as_str().unwrap_or_default().to_owned(),
            });
        Some(id)
    }

    fn try_once(&self, interface: usize, key: &str, job: &Value) -> Outcome {
        match self.send(interface, "POST", "/api/v1/jobs", Some(key), job) {
            Some((200 | 202, answer)) => match answer["id"].as_str() {
                Some(id) => Outcome::Taken(id.to_owned()),
                None => Outcome::Refused(format!("an answer without an id: {answer}")),
            },
            Some((429 | 500..=599, answer)) => Outcome::Again(answer.to_string()),
            Some((status, answer)) => Outcome::Refused(format!("{status} {answer}")),
            None => Outcome::Again("no answer".to_owned()),
        }
    }

    fn wrong(&self, promise: &'static str, what: String) {
        self.violations
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(Violation { promise, what });
    }

    /// One client, until it is told to stop. `fast` is for plans that need long-running jobs of all kinds.
    pub fn work(&self, seed: u64, nth: u64, wishes: &Wishes) {
        let mut dice = StdRng::seed_from_u64(seed ^ (nth + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let mut number = 0_u64;
        while !self.stop.load(Ordering::Relaxed) {
            number += 1;
            let job = self.wish(&mut dice, &format!("{nth}_{number}"), wishes);
            let key = format!("{seed}-{nth}-{number}");
            let twice = dice.random_bool(0.2);
            self.submit(dice.random_range(0..2), &key, twice, &job);
            let pause = Duration::from_millis(dice.random_range(PAUSE_MILLISECONDS));
            let until = Instant::now() + pause;
            while Instant::now() < until && !self.stop.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }

    fn wish(&self, dice: &mut StdRng, name: &str, wishes: &Wishes) -> Value {
        let mut database = *DATABASES.choose(dice).expect("there are databases");
        if wishes.patient && dice.random_bool(0.2) {
            database = LARGE;
        }
        let dealt = dice.random_range(0..100);
        let rate = if database == LARGE {
            None
        } else {
            wishes.rates.choose(dice).copied()
        };
        let everything = dice.random_bool(0.5);
        let prove = dice.random_bool(0.1);
        let nth_backup = dice.random::<u32>() as usize;
        let (pings, backups) = if wishes.patient { (45, 58) } else { (50, 74) };
        match dealt {
            _ if dealt < pings => return json!({"kind": "ping", "database": database}),
            _ if dealt < backups => {
                return json!({"kind": "backup", "database": database, "arguments": {
                    "max_bytes_per_second": rate, "read_everything": everything, "prove": prove,
                }});
            }
            _ => {}
        }
        // The ledger may be away, and at first there is no backup.
        let backups = complete_backups(&wishes.ledger).unwrap_or_default();
        let Some((backup, of)) = backups.get(nth_backup % backups.len().max(1)) else {
            return json!({"kind": "ping", "database": database});
        };
        match dealt {
            _ if dealt < 83 => json!({"kind": "verify", "arguments": {"backup": backup}}),
            83..88 => json!({"kind": "prove", "database": of, "arguments": {"backup": backup}}),
            88..96 => restore(backup, of, name, wishes),
            _ => json!({"kind": "retention", "database": of, "arguments": {"keep": {"last": 3}}}),
        }
    }
}

/// A restore of a backup to a place of its own.
#[must_use]
pub fn restore(backup: &str, of: &str, name: &str, wishes: &Wishes) -> Value {
    let to = if of == "shop" {
        wishes
            .copies
            .replace("DATABASE", &format!("{}_{name}", wishes.word))
    } else {
        let file = wishes.restored.join(format!("{name}.sqlite"));
        format!("sqlite:{}", file.display())
    };
    json!({"kind": "restore", "arguments": {"backup": backup, "to": to}})
}

/// Id and database of the backups that the ledger calls complete, the oldest first.
///
/// # Errors
///
/// When the ledger is away.
pub fn complete_backups(
    ledger: &TestDatabase,
) -> Result<Vec<(String, String)>, fettler_test_servers::ServerError> {
    let text = ledger.psql(
        "SELECT b.id || ' ' || d.name FROM backup b JOIN database_record d ON d.id = b.database_id
         WHERE b.state = 'complete' ORDER BY b.finished",
    )?;
    let pairs = text.lines().filter_map(|line| line.trim().split_once(' '));
    Ok(pairs
        .map(|(id, name)| (id.to_owned(), name.to_owned()))
        .collect())
}

enum Outcome {
    Taken(String),
    Refused(String),
    Again(String),
}

/// Moves money in the database `busy`, until it is told to stop: whatever is backed up adds up to nothing.
pub fn keep_busy(path: &std::path::Path, seed: u64, stop: &AtomicBool) {
    let mut connection = Connection::open(path).expect("the database is there");
    connection
        .busy_timeout(Duration::from_secs(20))
        .expect("a database can be told to wait");
    let mut turn = seed % 1000;
    while !stop.load(Ordering::Relaxed) {
        sqlite::transfer(&mut connection, TRANSFERS, turn);
        turn += TRANSFERS;
        std::thread::sleep(TRANSFERS_PAUSE);
    }
}
