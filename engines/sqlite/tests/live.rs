//! Backups while writers go on, in threads and in other processes: each copy is one moment.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail by panicking too")]

#[allow(dead_code)]
mod common;

use std::{
    io::Read as _,
    path::Path,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use common::{Place, differences};
use fettler_engine::RestoreOptions;
use rusqlite::{Connection, TransactionBehavior};

const ACCOUNTS: i64 = 500;
const BACKUPS: usize = 4;

/// Set in a child: it writes into this database until its input ends.
const WRITER_VARIABLE: &str = "FETTLER_TEST_WRITES_TO";

fn bank(place: &Place, journal: &str) {
    let connection = place.open("bank.sqlite");
    connection
        .execute_batch(&format!(
            "PRAGMA journal_mode = {journal};
             CREATE TABLE accounts (id INTEGER PRIMARY KEY, balance INT NOT NULL, moves INT NOT NULL);
             CREATE TABLE transfers (id INTEGER PRIMARY KEY, source INT, target INT, amount INT);
             CREATE INDEX transfers_by_source ON transfers (source);
             CREATE TABLE ballast (id INTEGER PRIMARY KEY, b BLOB);
             WITH RECURSIVE n(i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n WHERE i < {ACCOUNTS})
             INSERT INTO accounts SELECT i, 1000, 0 FROM n;
             INSERT INTO ballast SELECT id, randomblob(30000) FROM accounts;"
        ))
        .unwrap();
}

/// Moves money: two accounts and a line in the log in one transaction.
fn transfer(connection: &mut Connection, number: i64) {
    let transaction = connection
        .transaction_with_behavior(TransactionBehavior::Immediate)
        .unwrap();
    let (source, target) = (1 + number * 7 % ACCOUNTS, 1 + (number * 13 + 5) % ACCOUNTS);
    let amount = number % 90;
    for (account, change) in [(source, -amount), (target, amount)] {
        transaction
            .execute(
                "UPDATE accounts SET balance = balance + ?, moves = moves + 1 WHERE id = ?",
                (change, account),
            )
            .unwrap();
    }
    transaction
        .execute(
            "INSERT INTO transfers (source, target, amount) VALUES (?, ?, ?)",
            (source, target, amount),
        )
        .unwrap();
    transaction.commit().unwrap();
}

fn open(path: &Path) -> Connection {
    let connection = Connection::open(path).unwrap();
    // A writer that finds the door shut tries again for as long as it takes: SQLite's locks are not fair, and on a busy
    // machine the others may come first for a minute.
    connection
        .busy_handler(Some(|_| {
            thread::sleep(Duration::from_millis(1));
            true
        }))
        .unwrap();
    connection
        .pragma_update(None, "synchronous", "OFF")
        .unwrap();
    connection
}

/// Not a test of its own: the body of the writer processes.
#[test]
fn as_a_writer_process() {
    let Some(path) = std::env::var_os(WRITER_VARIABLE) else {
        return;
    };
    let over = Arc::new(AtomicBool::new(false));
    let told = over.clone();
    thread::spawn(move || {
        let ended = std::io::stdin().read(&mut [0; 1]);
        assert!(ended.is_ok());
        told.store(true, Ordering::Relaxed);
    });
    let mut connection = open(Path::new(&path));
    let mut number = 1_000_000;
    while !over.load(Ordering::Relaxed) {
        transfer(&mut connection, number);
        number += 1;
    }
}

fn writer_process(path: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "as_a_writer_process"])
        .env(WRITER_VARIABLE, path)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

fn transfers(connection: &Connection) -> i64 {
    connection
        .query_row("SELECT count(*) FROM transfers", [], |row| row.get(0))
        .unwrap()
}

async fn is_one_moment_each(journal: &str) {
    let place = Place::new();
    bank(&place, journal);
    let path = place.path("bank.sqlite");
    let over = Arc::new(AtomicBool::new(false));
    let mut process = writer_process(&path);
    let threads: Vec<_> = (0..2)
        .map(|writer| {
            let (path, over) = (path.clone(), over.clone());
            thread::spawn(move || {
                let mut connection = open(&path);
                let mut number = writer * 10_000_000;
                while !over.load(Ordering::Relaxed) {
                    transfer(&mut connection, number);
                    number += 1;
                }
            })
        })
        .collect();

    let watch = open(&path);
    let mut last = 0;
    for round in 0..BACKUPS {
        // The writers are on their way.
        while transfers(&watch) <= last {
            tokio::task::yield_now().await;
        }
        let (report, sink) = place.backup("bank.sqlite").await.unwrap();
        let copy = format!("copy{round}.sqlite");
        place
            .restore(&sink.source(), &report, &copy, &RestoreOptions::default())
            .await
            .unwrap();
        assert_eq!(
            differences(&report, &place.facts(&copy, &report).await),
            Vec::<String>::new()
        );
        let copied = place.open(&copy);
        let (balance, moves): (i64, i64) = copied
            .query_row("SELECT sum(balance), sum(moves) FROM accounts", [], |row| {
                Ok((row.get(0)?, row.get(1)?))
            })
            .unwrap();
        let logged = transfers(&copied);
        assert_eq!(balance, ACCOUNTS * 1000);
        assert_eq!(moves, 2 * logged);
        assert!(
            logged > last,
            "the copy holds what was written since the last one"
        );
        last = logged;
    }
    over.store(true, Ordering::Relaxed);
    threads
        .into_iter()
        .for_each(|writer| writer.join().unwrap());
    drop(process.stdin.take());
    assert!(process.wait().unwrap().success());
    let sound: String = watch
        .query_row("PRAGMA integrity_check", [], |row| row.get(0))
        .unwrap();
    assert_eq!(sound, "ok", "the source is as sound as it was");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p4_a_copy_is_one_moment_while_threads_and_processes_write_in_wal_mode() {
    is_one_moment_each("WAL").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p4_a_copy_is_one_moment_while_threads_and_processes_write_in_rollback_mode() {
    is_one_moment_each("DELETE").await;
}
