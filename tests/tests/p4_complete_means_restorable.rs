//! P4: a backup is complete only when every byte of it can be read back, and proven when a restore of
//! it matched the source. Shown from outside: SQLite says what was in the source and what came back.

use fettler_tests::{Installation, Size, sqlite};
use rstest::rstest;
use serde_json::Value;

fn text(value: &Value, field: &str) -> String {
    value[field]
        .as_str()
        .unwrap_or_else(|| panic!("no {field} in {value:#}"))
        .to_owned()
}

#[rstest]
fn a_database_is_backed_up_proven_and_restored_with_no_configuration_at_all(
    #[values(Size::Embedded, Size::Fleet)] size: Size,
) {
    let fettler = Installation::of_size(size);
    let source = fettler.path("shop.sqlite");
    sqlite::make_bank(&source, 4 << 20);

    let first = fettler.json(&["backup", source.to_str().unwrap()]);
    let backup = text(&first, "backup");
    assert_eq!(text(&first, "engine"), "sqlite");
    assert!(first["parent"].is_null());
    assert!(first["bytes_read"].as_u64().unwrap() >= 4 << 20);

    let proof = fettler.json(&["prove", &backup]);
    assert_eq!(proof["proven"], true, "{proof:#}");
    assert!(proof["fingerprints_compared"].as_u64().unwrap() >= 2);

    let verified = fettler.json(&["verify", &backup]);
    assert_eq!(verified["ok"], true, "{verified:#}");

    let copy = fettler.path("copy.sqlite");
    fettler
        .run(&["restore", &backup, "--to", copy.to_str().unwrap()])
        .done();
    assert_eq!(sqlite::content(&source), sqlite::content(&copy));
}

#[rstest]
fn a_second_backup_names_its_parent_and_stores_only_what_changed(
    #[values(Size::Embedded, Size::Fleet)] size: Size,
) {
    let fettler = Installation::of_size(size);
    let source = fettler.path("shop.sqlite");
    sqlite::make_bank(&source, 16 << 20);
    let first = fettler.json(&["backup", source.to_str().unwrap()]);
    let mut connection = rusqlite::Connection::open(&source).unwrap();
    sqlite::transfer(&mut connection, 50, 1);
    drop(connection);
    let second = fettler.json(&["backup", source.to_str().unwrap()]);
    assert_eq!(text(&second, "parent"), text(&first, "backup"));
    let (before, after) = (
        first["bytes_stored"].as_u64().unwrap(),
        second["bytes_stored"].as_u64().unwrap(),
    );
    assert!(after * 20 < before, "{after} bytes after {before}");

    let proof = fettler.json(&["prove", "latest"]);
    assert_eq!(proof["proven"], true, "{proof:#}");

    let changes = fettler.json(&["diff", &text(&first, "backup"), &text(&second, "backup")]);
    assert!(changes.to_string().contains("account"), "{changes:#}");
    assert!(!changes.to_string().contains("\"entry\""), "{changes:#}");
}

#[rstest]
fn balances_add_up_in_a_backup_that_was_taken_while_money_moved(
    #[values(Size::Embedded, Size::Fleet)] size: Size,
) {
    let fettler = Installation::of_size(size);
    let source = fettler.path("bank.sqlite");
    sqlite::make_bank(&source, 32 << 20);
    let mut backup = fettler.start(&["backup", source.to_str().unwrap(), "--json"]);
    let mut connection = rusqlite::Connection::open(&source).unwrap();
    connection
        .busy_timeout(std::time::Duration::from_secs(60))
        .unwrap();
    let mut round = 0;
    while backup.runs() {
        round += 1;
        sqlite::transfer(&mut connection, 20, round);
    }
    assert_eq!(
        backup.wait(std::time::Duration::from_secs(1)),
        0,
        "{}",
        backup.log()
    );
    assert_eq!(fettler.json(&["prove", "latest"])["proven"], true);

    let copy = fettler.path("copy.sqlite");
    fettler
        .run(&["restore", "latest", "--to", copy.to_str().unwrap()])
        .done();
    let sum: i64 = rusqlite::Connection::open(&copy)
        .unwrap()
        .query_row("SELECT sum(balance) FROM account", [], |row| row.get(0))
        .unwrap();
    assert_eq!(sum, 0);
}

#[rstest]
fn two_ad_hoc_backups_in_two_terminals_both_succeed(
    #[values(Size::Embedded, Size::Fleet)] size: Size,
) {
    let fettler = Installation::of_size(size);
    let (one, two) = (fettler.path("one.sqlite"), fettler.path("two.sqlite"));
    sqlite::make_bank(&one, 2 << 20);
    sqlite::make_bank(&two, 2 << 20);
    let mut first = fettler.start(&["backup", one.to_str().unwrap(), "--json"]);
    let mut second = fettler.start(&["backup", two.to_str().unwrap(), "--json"]);
    for running in [&mut first, &mut second] {
        let code = running.wait(std::time::Duration::from_secs(60));
        assert_eq!(code, 0, "{}", running.log());
    }
    let listed = fettler.json(&["backups"]);
    assert_eq!(
        listed.to_string().matches("\"complete\"").count(),
        2,
        "{listed:#}"
    );
}
