//! What is done with backups once they are there, in both sizes: looked into, compared, checked, held, forgotten, and their space
//! given back. A far command line has no repository: what only that knows it asks of a worker.

#![allow(clippy::unwrap_used)]

use fettler_tests::{Installation, Size, sqlite};
use rstest::rstest;

#[rstest]
fn backups_are_shown_compared_checked_held_and_forgotten(
    #[values(Size::Embedded, Size::Fleet)] size: Size,
) {
    let fettler = Installation::of_size(size);
    let source = fettler.path("bank.sqlite");
    sqlite::make_bank(&source, 2 << 20);
    let source = source.to_str().unwrap();
    let back_up = || {
        let made = fettler.json(&["backup", source, "--name", "bank"]);
        made["backup"].as_str().unwrap().to_owned()
    };
    let first = back_up();
    let mut connection = rusqlite::Connection::open(source).unwrap();
    sqlite::transfer(&mut connection, 20, 1);
    drop(connection);
    let second = back_up();
    let third = back_up();

    assert_eq!(fettler.json(&["ping", "bank"])["engine"], "sqlite");
    let shown = fettler.json(&["show", &first]);
    assert_eq!(shown["backup"], first, "{shown:#}");
    assert!(shown["packs"].as_u64() > Some(0), "{shown:#}");
    let objects = shown["objects"].as_array().unwrap();
    assert!(
        objects.iter().any(|object| object["name"] == "account"),
        "{shown:#}"
    );
    assert_eq!(fettler.json(&["diff", &second, &third])["same"], true);
    let changed = fettler.json(&["diff", &first, &second]);
    assert_eq!(changed["same"], false, "{changed:#}");

    // What is held is not forgotten, by name or by rule.
    assert_eq!(fettler.json(&["hold", &first])["changed"], true);
    assert_eq!(
        fettler.run(&["hold", &first]).code,
        4,
        "it was held already"
    );
    let refused = fettler.run(&["forget", &first, "--json"]);
    assert_eq!(refused.code, 1, "{refused:#?}");
    assert!(refused.stdout.contains("held"), "{refused:#?}");
    let rules = ["forget", "--database", "bank", "--keep-last", "1"];
    let planned = fettler.json(&[&rules[..], &["--dry-run"]].concat());
    assert_eq!(planned["forgotten"], 1, "{planned:#}");
    assert_eq!(fettler.json(&rules)["forgotten"], 1);
    assert_eq!(fettler.json(&["hold", &first, "--release"])["held"], false);
    let planned = fettler.json(&["forget", &first, "--dry-run"]);
    assert_eq!(planned["forgotten"], 1, "{planned:#}");
    assert_eq!(fettler.json(&["forget", &first])["forgotten"], 1);

    let left = fettler.json(&["backups"]);
    let left = left["backups"].as_array().unwrap();
    assert_eq!(left.len(), 1, "{left:#?}");
    assert_eq!(left[0]["backup"], third);
    assert_eq!(fettler.json(&["check", "--read-data=100%"])["ok"], true);
    let marked = fettler.json(&["collect", "--grace", "0"]);
    assert!(marked["marked_objects"].as_u64() > Some(0), "{marked:#}");
    let deleted = fettler.json(&["collect", "--grace", "0"]);
    assert!(deleted["deleted_objects"].as_u64() > Some(0), "{deleted:#}");
    assert_eq!(fettler.json(&["prove", &third])["proven"], true);

    let unknown = fettler.run(&["show", "00000000", "--json"]);
    assert_eq!(unknown.code, 1, "{unknown:#?}");
}
