//! Looks at a database from the command line: findings, their history, and checks of one's own.
#![allow(clippy::unwrap_used)]

mod common;

use common::Folder;
use serde_json::Value;

/// A check that finds the goods of the test's database.
const OWN: &str = "
id: sqlite.goods
engine: sqlite
dimension: resources
severity: high
level: basic
question: SELECT count(*) AS goods FROM goods
when: row.goods > 10
title: '{goods} goods'
why: There are too many.
fix: {text: Sell some., commands: ['DELETE FROM goods']}
examples:
  fires: [{goods: 11}]
  passes: [{goods: 10}]
";

fn keys(list: &Value) -> Vec<&str> {
    list.as_array()
        .unwrap()
        .iter()
        .map(|one| one["key"].as_str().unwrap())
        .collect()
}

#[test]
fn a_look_needs_no_configuration_and_what_it_finds_is_kept() {
    let folder = Folder::new();
    let path = folder.database("shop.sqlite", 20);
    let fresh = folder
        .run(&["health", "./shop.sqlite", "--json"])
        .document(0);
    assert_eq!(fresh["engine"], "sqlite");
    assert!(
        fresh["score"]["points"].as_u64().unwrap() >= 90,
        "{fresh:#}"
    );
    // What could not be looked at is told, and nothing else.
    for finding in fresh["findings"].as_array().unwrap() {
        assert_eq!(finding["status"]["state"], "not_evaluable", "{finding:#}");
    }

    // A check of one's own, with a mistake first.
    let checks = folder.path("fettler/checks");
    std::fs::create_dir_all(&checks).unwrap();
    std::fs::write(checks.join("goods.yaml"), OWN.replace("row.goods", "goods")).unwrap();
    let told = folder.run(&["checks", "test"]);
    assert!(told.error(2).contains("when: it names"), "{told:#?}");
    let failed = folder.run(&["health", "shop", "--json"]).document(1);
    assert_eq!(failed["error"]["code"], "checks.unreadable", "{failed:#}");
    std::fs::write(checks.join("goods.yaml"), OWN).unwrap();
    assert_eq!(
        folder.run(&["checks", "test", "--json"]).document(0)["ok"],
        true
    );
    let explained = folder
        .run(&["checks", "explain", "sqlite.goods", "--json"])
        .document(0);
    assert_eq!(explained["when"], "row.goods > 10");

    let first = folder
        .run(&["health", "shop", "--basic", "--json"])
        .document(3);
    assert_eq!(keys(&first["changes"]), ["sqlite.goods"]);
    let text = folder.run(&["health", "shop", "--explain"]);
    assert_eq!(text.code, 3);
    for part in [
        "HIGH: 20 goods",
        "Why: There are too many.",
        "Fix: Sell some.",
        "-10",
    ] {
        assert!(text.out.contains(part), "{part}: {text:#?}");
    }
    assert_eq!(
        folder
            .run(&["health", "shop", "--fail-on", "critical"])
            .code,
        0
    );
    let listed = folder.run(&["findings", "--json"]).document(0);
    assert_eq!(keys(&listed["findings"]), ["sqlite.goods"]);
    assert_eq!(listed["findings"][0]["database_name"], "shop");

    // Set aside, it costs nothing.
    let why = [
        "findings",
        "suppress",
        "shop",
        "sqlite.goods",
        "--because",
        "a sale",
        "--until",
        "7d",
    ];
    assert_eq!(folder.run(&why).code, 0);
    let aside = folder.run(&["health", "shop", "--json"]).document(0);
    assert!(aside["score"]["points"].as_u64() > first["score"]["points"].as_u64());
    assert_eq!(
        folder.run(&["findings", "--json"]).document(0)["findings"],
        Value::Array(Vec::new())
    );
    assert_eq!(
        folder
            .run(&["findings", "unsuppress", "shop", "sqlite.goods"])
            .code,
        0
    );

    // Gone with its cause.
    let clean = OWN
        .replace("> 10", "> 100")
        .replace("goods: 11", "goods: 101");
    std::fs::write(checks.join("goods.yaml"), clean).unwrap();
    let last = folder
        .run(&["health", "shop", "--basic", "--json"])
        .document(0);
    assert_eq!(last["changes"][0]["step"], "resolved", "{last:#}");
    let job = |look: &Value| look["job"].as_str().unwrap().to_owned();
    let diff = folder
        .run(&["findings", "diff", &job(&first), &job(&last), "--json"])
        .document(0);
    assert_eq!(diff["differences"][0]["what"], "gone", "{diff:#}");
    let history = folder
        .run(&["findings", "history", "shop", "sqlite.goods", "--json"])
        .document(0);
    let steps: Vec<&str> = history["steps"]
        .as_array()
        .unwrap()
        .iter()
        .map(|step| step["step"].as_str().unwrap())
        .collect();
    assert_eq!(steps, ["resolved", "unsuppressed", "suppressed", "opened"]);
    let sarif = folder
        .run(&["findings", "export", "sarif", "--state", "resolved"])
        .document(0);
    assert_eq!(sarif["runs"][0]["results"][0]["ruleId"], "sqlite.goods");

    // A file that is no database any more is found out, and no failure of the look.
    std::fs::write(
        &path,
        "nothing of the kind, at any rate nothing that begins like a database does".repeat(100),
    )
    .unwrap();
    let broken = folder.run(&["health", "shop", "--json"]).document(3);
    assert_eq!(keys(&broken["changes"]), ["sqlite.reachable"]);
    assert_eq!(broken["score"]["points"], 0);
}

#[test]
fn what_is_asked_for_wrongly_is_told_with_a_remedy() {
    let folder = Folder::new();
    folder.database("shop.sqlite", 5);
    assert_eq!(folder.run(&["health", "./shop.sqlite"]).code, 0);
    for (arguments, part) in [
        (vec!["checks", "explain", "sqlite.nothing"], "checks list"),
        (
            vec!["health", "shop", "--basic", "--full"],
            "cannot be used with",
        ),
        (
            vec!["health", "shop", "--fail-on", "bad"],
            "info, low, medium",
        ),
        (
            vec!["findings", "history", "shop", "sqlite.nothing"],
            "fettler findings",
        ),
        (
            vec!["findings", "suppress", "shop", "sqlite.x", "--because", " "],
            "no reason",
        ),
    ] {
        let answer = folder.run(&arguments);
        assert!(answer.error(2).contains(part), "{arguments:?}: {answer:#?}");
    }
    let none = folder.run(&["checks", "test"]);
    assert!(none.error(4).contains("checks"), "{none:#?}");
}
