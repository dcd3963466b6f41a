//! SQLite databases for tests, made and compared with SQLite alone.

use std::path::Path;

use rusqlite::{Connection, params};

/// Makes a bank whose balances add up to nothing whatever is transferred, about this many bytes large.
///
/// # Panics
///
/// When the file cannot be written.
pub fn make_bank(path: &Path, bytes: u64) {
    let mut connection = Connection::open(path).expect("a database can be made");
    connection
        .execute_batch(
            "PRAGMA journal_mode = WAL;
             CREATE TABLE account (id INTEGER PRIMARY KEY, owner TEXT NOT NULL, balance INTEGER NOT NULL);
             CREATE TABLE entry (id INTEGER PRIMARY KEY, account INTEGER NOT NULL REFERENCES account, note TEXT, body BLOB);
             CREATE INDEX entry_by_account ON entry (account);",
        )
        .expect("the tables can be made");
    let transaction = connection.transaction().expect("a transaction can begin");
    for id in 0..1000 {
        transaction
            .execute(
                "INSERT INTO account VALUES (?1, ?2, 0)",
                params![id, format!("Ålesund customer {id}")],
            )
            .expect("a row can be written");
    }
    // A row of 512 random bytes takes about 600 in the file.
    for id in 0..bytes / 600 {
        transaction
            .execute(
                "INSERT INTO entry VALUES (?1, ?2, ?3, randomblob(512))",
                params![id as i64, (id % 1000) as i64, format!("entry number {id}")],
            )
            .expect("a row can be written");
    }
    transaction.commit().expect("the rows can be committed");
}

/// Moves money between accounts, `times` times, each time in a transaction of its own.
///
/// # Panics
///
/// When the database refuses it.
pub fn transfer(connection: &mut Connection, times: u64, seed: u64) {
    for n in 0..times {
        let (from, to) = ((seed + n * 7) % 1000, (seed + n * 13 + 1) % 1000);
        let transaction = connection.transaction().expect("a transaction can begin");
        for (account, amount) in [(from, -5), (to, 5)] {
            transaction
                .execute(
                    "UPDATE account SET balance = balance + ?1 WHERE id = ?2",
                    params![amount, account as i64],
                )
                .expect("a row can be changed");
        }
        transaction.commit().expect("a transfer can be committed");
    }
}

/// What SQLite itself says is in a database: one line a row, in the order of tables and keys.
///
/// # Panics
///
/// When the file is not a sound database.
#[must_use]
pub fn content(path: &Path) -> String {
    let connection = Connection::open(path).expect("the database can be opened");
    let sound: String = connection
        .query_row("PRAGMA integrity_check", [], |row| row.get(0))
        .expect("the database can be checked");
    assert_eq!(sound, "ok");
    let mut all = String::new();
    for query in [
        "SELECT type || ' ' || name || ' ' || coalesce(sql, '') FROM sqlite_schema ORDER BY type, name",
        "SELECT id || '|' || owner || '|' || balance FROM account ORDER BY id",
        "SELECT id || '|' || account || '|' || note || '|' || hex(body) FROM entry ORDER BY id",
    ] {
        let mut statement = connection.prepare(query).expect("the tables are there");
        let mut rows = statement.query([]).expect("the rows can be read");
        while let Some(row) = rows.next().expect("the rows can be read") {
            all.push_str(&row.get::<_, String>(0).expect("each row is one text"));
            all.push('\n');
        }
    }
    all
}
