//! Audits from the command line, with a check of one's own on a file: what an audit finds is its own affair, and mistakes are told.
#![allow(clippy::unwrap_used)]

mod common;

use std::os::unix::fs::PermissionsExt as _;

use common::Folder;
use serde_json::Value;

/// A check of an audit, and nearly the same of the health.
const OWN: &str = "
id: sqlite.NAME
engine: sqlite
PLACE
severity: high
question: SELECT count(*) AS goods FROM goods
when: row.goods > 10
title: '{goods} goods'
why: There are too many.
fix: {text: Sell some.}
examples:
  fires: [{goods: 11}]
  passes: [{goods: 10}]
";

fn open(list: &Value) -> Vec<&str> {
    list["findings"]
        .as_array()
        .unwrap_or_else(|| panic!("{list:#}"))
        .iter()
        .filter(|one| one["status"]["state"] == "open")
        .map(|one| one["key"].as_str().unwrap())
        .collect()
}

#[test]
fn a_look_at_the_health_and_an_audit_find_and_resolve_their_own() {
    let folder = Folder::new();
    let path = folder.database("shop.sqlite", 20);
    // What is readable for all would be found.
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
    let fresh = folder
        .run(&["audit", "./shop.sqlite", "--json"])
        .document(0);
    assert!(!open(&fresh).contains(&"sqlite.of_audit"), "{fresh:#}");
    let checks = folder.path("fettler/checks");
    std::fs::create_dir_all(&checks).unwrap();
    let write = |name: &str, place: &str| {
        let text = OWN.replace("NAME", name).replace("PLACE", place);
        std::fs::write(checks.join(format!("{name}.yaml")), text).unwrap();
    };
    write("of_audit", "group: access");
    write("of_health", "dimension: resources");
    let list = folder.run(&["checks", "list", "--json"]).document(0);
    let own = list["checks"].as_array().unwrap().iter();
    let own: Vec<(&str, &str)> = own
        .filter(|one| one["id"].as_str().unwrap().starts_with("sqlite.of_"))
        .map(|one| (one["id"].as_str().unwrap(), one["job"].as_str().unwrap()))
        .collect();
    assert_eq!(
        own,
        [("sqlite.of_audit", "audit"), ("sqlite.of_health", "health")]
    );

    let health = folder.run(&["health", "shop", "--json"]).document(3);
    assert_eq!(open(&health), ["sqlite.of_health"]);
    let audit = folder.run(&["audit", "shop", "--json"]).document(3);
    assert_eq!(open(&audit), ["sqlite.of_audit"]);
    assert_eq!(audit["findings"][0]["area"], "security");
    assert_eq!(audit["groups"][0]["found"], 1, "{audit:#}");
    // Each again: what the other has found stays.
    folder.run(&["health", "shop", "--json"]).document(3);
    let all = folder.run(&["findings", "--json"]).document(0);
    let mut keys = open(&all);
    keys.sort_unstable();
    assert_eq!(keys, ["sqlite.of_audit", "sqlite.of_health"]);
    let of_area = folder
        .run(&["findings", "--area", "security", "--json"])
        .document(0);
    assert_eq!(open(&of_area), ["sqlite.of_audit"]);
    assert_eq!(
        folder.run(&["audit", "shop", "--fail-on", "critical"]).code,
        0
    );

    // Two audits are compared with each other, and with nothing else.
    let job = |look: &Value| look["job"].as_str().unwrap().to_owned();
    let second = folder.run(&["audit", "shop", "--json"]).document(3);
    let diff = folder.run(&["findings", "diff", &job(&audit), &job(&second)]);
    assert!(diff.out.contains("the same"), "{diff:#?}");
    let mixed = folder.run(&["findings", "diff", &job(&health), &job(&second)]);
    assert!(mixed.error(2).contains("of one kind"), "{mixed:#?}");

    // A list of releases of one's own is read, and a mistake in it is told.
    std::fs::write(checks.join("releases.json"), "{}").unwrap();
    let wrong = folder.run(&["audit", "shop", "--json"]).document(1);
    assert_eq!(wrong["error"]["code"], "audit.releases", "{wrong:#}");
    std::fs::remove_file(checks.join("releases.json")).unwrap();

    write("of_audit", "group: access\narea: performance");
    let told = folder.run(&["checks", "test"]);
    assert!(told.error(2).contains("area:"), "{told:#?}");
}

#[test]
fn what_is_asked_for_wrongly_is_told_with_a_remedy() {
    let folder = Folder::new();
    folder.database("shop.sqlite", 5);
    std::fs::write(folder.path("text"), "nothing of the kind").unwrap();
    for (arguments, part) in [
        (
            vec!["audit", "./shop.sqlite", "--baseline", "text"],
            "no baseline",
        ),
        (
            vec!["audit", "./shop.sqlite", "--releases", "text"],
            "no list of releases",
        ),
        (
            vec!["audit", "./shop.sqlite", "--releases", "missing"],
            "no file",
        ),
        (
            vec!["audit", "./shop.sqlite", "--baseline", "text", "--detach"],
            "cannot be used with",
        ),
        (
            vec!["audit", "./shop.sqlite", "--fail-on", "bad"],
            "info, low, medium",
        ),
    ] {
        let answer = folder.run(&arguments);
        assert!(answer.error(2).contains(part), "{arguments:?}: {answer:#?}");
    }
}
