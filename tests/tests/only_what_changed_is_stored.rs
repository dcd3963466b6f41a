//! A second backup of a table that mostly grows stores little, and finds what the first one stored
//! without any list of changes (rule 24). By the store's own bytes, not by what Fettler says of itself.

#![allow(clippy::unwrap_used)]

use std::path::Path;

use fettler_tests::{
    Installation, Size,
    servers::{PgMajor, PostgresServer},
    sqlite,
};
use rstest::rstest;

/// Bytes of the repository's packs and indexes: what a backup stored.
fn stored(repository: &Path) -> u64 {
    let listed = std::process::Command::new("find")
        .arg(repository)
        .args(["-type", "f", "-printf", "%s\n"])
        .output()
        .unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    listed
        .lines()
        .map(|size| size.parse::<u64>().unwrap())
        .sum()
}

/// Backs up, changes, backs up again; the second must add less than 5 % of what the first one stored.
fn assert_little_is_added(fettler: &Installation, database: &str, change: impl FnOnce()) {
    let repository = fettler.folder().join("repository");
    fettler.json(&["backup", database]);
    let first = stored(&repository);
    change();
    let second = fettler.json(&["backup", database]);
    let added = stored(&repository) - first;
    assert!(
        added * 20 < first,
        "{added} bytes were added to {first}: {second:#}"
    );
    assert_eq!(fettler.json(&["prove", "latest"])["proven"], true);
}

#[rstest]
fn of_a_postgresql_table_that_grew_by_one_percent_less_than_five_are_stored(
    #[values(Size::Embedded, Size::Fleet)] size: Size,
) {
    let server = PostgresServer::shared(PgMajor::V15);
    let source = server.create_database("growing").unwrap();
    let add = |from: u32, to: u32| {
        source
            .psql(&format!(
                "INSERT INTO event SELECT n, now(), n % 5000, md5(n::text) || md5((n + 1)::text), jsonb_build_object('ref', md5((n * 3)::text))
                 FROM generate_series({from}, {to}) n"
            ))
            .unwrap();
    };
    source
        .psql("CREATE TABLE event (id bigint PRIMARY KEY, at timestamptz, account int, note text, detail jsonb); CREATE INDEX ON event (account)")
        .unwrap();
    add(1, 400_000);
    let fettler =
        Installation::of_size(size).with("FETTLER_PG_BIN", server.bin_dir().to_str().unwrap());
    assert_little_is_added(&fettler, &source.url(), || {
        add(400_001, 403_800);
        // What was written last is what applications change.
        source
            .psql("UPDATE event SET note = 'paid' WHERE id BETWEEN 399900 AND 400000; DELETE FROM event WHERE id BETWEEN 399000 AND 399100")
            .unwrap();
    });
}

#[rstest]
fn of_a_sqlite_table_that_grew_by_one_percent_less_than_five_are_stored(
    #[values(Size::Embedded, Size::Fleet)] size: Size,
) {
    let fettler = Installation::of_size(size);
    let source = fettler.path("bank.sqlite");
    sqlite::make_bank(&source, 96 << 20);
    assert_little_is_added(&fettler, source.to_str().unwrap(), || {
        let mut connection = rusqlite::Connection::open(&source).unwrap();
        connection
            .execute(
                "INSERT INTO entry SELECT id + 10000000, account, 'again ' || id, randomblob(512) FROM entry WHERE id % 100 = 0",
                [],
            )
            .unwrap();
        sqlite::transfer(&mut connection, 50, 3);
    });
}
