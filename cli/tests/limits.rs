//! What keeps jobs back, from the command line: limits, pauses, windows, weights; and what people do to many
//! jobs at once.
#![allow(clippy::unwrap_used)]

mod common;

use common::Folder;
use serde_json::{Value, json};

/// Submits a backup that nobody runs yet.
fn submit(folder: &Folder) -> String {
    let submitted = folder.run(&["backup", "shop", "--detach", "--json"]);
    submitted.document(0)["job"].as_str().unwrap().to_owned()
}

fn wait(folder: &Folder, job: &str) -> Value {
    folder.run(&["jobs", "show", job, "--json"]).document(0)["wait"].clone()
}

fn with_shop() -> Folder {
    let folder = Folder::new();
    folder.database("shop.sqlite", 10);
    let added = folder.run(&["database", "add", "shop", "./shop.sqlite", "--json"]);
    added.document(0);
    folder
}

#[test]
fn p12_a_pause_is_told_to_whoever_waits_and_ends_when_it_is_said() {
    let folder = with_shop();
    let job = submit(&folder);
    let paused = folder.run(&[
        "pause",
        "--database",
        "shop",
        "--because",
        "they move house",
        "--json",
    ]);
    let scope = paused.document(0)["scope"].clone();
    assert!(scope.as_str().unwrap().starts_with("database/"));
    assert_eq!(
        wait(&folder, &job),
        json!({"reason": "paused", "what": scope, "because": "they move house"})
    );
    let told = folder.run(&["jobs"]);
    assert!(
        told.out.contains("its database is paused: they move house"),
        "{told:#?}"
    );
    let listed = folder.run(&["pause", "--list", "--json"]).document(0);
    assert_eq!(listed["pauses"][0]["scope"], scope);
    let resumed = folder.run(&["resume", "--database", "shop", "--json"]);
    assert_eq!(resumed.document(0)["resumed"], scope);
    assert_eq!(wait(&folder, &job)["reason"], "no_worker_for_kind");
    // Everything, and nothing twice.
    assert_eq!(folder.run(&["pause", "--json"]).document(0)["scope"], "all");
    assert_eq!(wait(&folder, &job)["what"], "all");
    folder.run(&["resume", "--json"]).document(0);
    let again = folder.run(&["resume"]);
    assert!(again.error(1).contains("all"), "{again:#?}");
}

#[test]
fn a_single_job_takes_its_own_terms_and_is_made_once_for_a_key() {
    let folder = with_shop();
    let asked = [
        "backup",
        "shop",
        "--detach",
        "--json",
        "--priority",
        "high",
        "--timeout",
        "2h",
        "--max-tries",
        "2",
        "--not-before",
        "1h",
        "--deadline",
        "2999-01-31T22:00:00Z",
        "--unique",
        "shop",
        "--job-tag",
        "nightly",
    ];
    let first = folder.run(&asked).document(0);
    assert_eq!(first["existing"], false);
    let again = folder.run(&asked).document(0);
    assert_eq!(
        (&again["existing"], &again["job"]),
        (&json!(true), &first["job"])
    );
    let id = first["job"].as_str().unwrap();
    let job = folder.run(&["jobs", "show", id, "--json"]).document(0);
    for (field, value) in [
        ("priority", json!("high")),
        ("terms", json!({"timeout_seconds": 7200})),
        ("max_tries", json!(2)),
        ("deadline", json!("2999-01-31T22:00:00Z")),
        ("tags", json!(["nightly"])),
    ] {
        assert_eq!(job[field], value, "{field} of {job}");
    }
    assert_eq!(job["wait"]["reason"], "not_before", "{job}");
    for (wrong, word) in [
        (["--timeout", "0"], "above 0"),
        (["--not-before", "tomorrow"], "2026-01-31T22:00:00Z"),
        (["--max-tries", "0"], "1..=1000"),
    ] {
        let refused = folder.run(&[&["backup", "shop", "--detach"][..], &wrong].concat());
        assert!(refused.error(2).contains(word), "{refused:#?}");
    }
    // Whoever waits for the end does not want to wait for its beginning.
    let refused = folder.run(&["backup", "shop", "--not-before", "1h"]);
    assert!(refused.error(2).contains("--detach"), "{refused:#?}");
}

#[test]
fn limits_weights_and_ceilings_are_set_shown_and_taken_away() {
    let folder = with_shop();
    for (of, name) in [
        (["--tenant", "default"], "tenant/default"),
        (["--database-server", "DB1:5432"], "server/db1:5432"),
        (["--kind", "backup"], "kind/backup"),
        (["--class", "long"], "class/long"),
    ] {
        let set = folder.run(&[&["limit", "set", "2", "--json"][..], &of].concat());
        let set = set.document(0);
        assert_eq!((&set["scope"], &set["most"]), (&json!(name), &json!(2)));
    }
    let listed = folder.run(&["limit", "list", "--json"]).document(0);
    assert_eq!(listed["limits"].as_array().unwrap().len(), 4);
    let removed = folder.run(&["limit", "remove", "--kind", "backup", "--json"]);
    assert_eq!(removed.document(0)["removed"], "kind/backup");
    let nothing = folder.run(&["limit", "set", "2"]);
    assert!(
        nothing.error(2).contains("--database-server"),
        "{nothing:#?}"
    );
    let none = folder.run(&["limit", "set", "0", "--kind", "backup"]);
    assert!(none.error(1).contains("fettler pause"), "{none:#?}");
    let odd = folder.run(&["limit", "set", "1", "--database-server", "db1"]);
    assert!(odd.error(2).contains("host:port"), "{odd:#?}");
    let both = folder.run(&["pause", "--kind", "backup", "--tenant", "default"]);
    assert!(both.error(2).contains("all tenants"), "{both:#?}");

    let edited = folder.run(&[
        "tenant",
        "edit",
        "default",
        "--weight",
        "2.5",
        "--priority-ceiling",
        "high",
        "--json",
    ]);
    let edited = edited.document(0);
    assert_eq!(edited["weight"], 2.5);
    assert_eq!(edited["priority_ceiling"], "high");
    let job = submit(&folder);
    let raised = folder.run(&["jobs", "priority", &job, "highest", "--json"]);
    assert_eq!(
        raised.document(0)["priority"],
        "high",
        "its tenant's ceiling"
    );
}

#[test]
fn many_jobs_are_cancelled_and_done_again_by_what_they_have_in_common() {
    let folder = with_shop();
    for _ in 0..3 {
        submit(&folder);
    }
    let cancel = |more: &[&str]| folder.run(&[&["jobs", "cancel", "--json"], more].concat());
    assert!(cancel(&[]).error(2).contains("--all-matching"));
    let would = cancel(&["--all-matching", "--kind", "backup", "--dry-run"]).document(0);
    assert_eq!(
        (&would["cancelled"], &would["dry_run"]),
        (&json!(3), &json!(true))
    );
    let other = cancel(&["--all-matching", "--kind", "verify"]).document(4);
    assert_eq!(other["cancelled"], 0);
    let done = cancel(&["--all-matching", "--database", "shop"]).document(0);
    assert_eq!((&done["cancelled"], &done["asked"]), (&json!(3), &json!(0)));
    let replay = |more: &[&str]| folder.run(&[&["jobs", "replay", "--json"], more].concat());
    replay(&["--all-matching"]).document(4);
    let again = replay(&["--all-matching", "--state", "cancelled"]).document(0);
    assert_eq!(
        (&again["submitted"], &again["already"]),
        (&json!(3), &json!(0))
    );
    let twice = replay(&["--all-matching", "--state", "cancelled"]).document(4);
    assert_eq!(
        (&twice["submitted"], &twice["already"]),
        (&json!(0), &json!(3))
    );
    assert!(replay(&[]).error(2).contains("--all-matching"));
}

#[test]
fn a_database_has_a_maintenance_window() {
    let folder = with_shop();
    let edited = folder.run(&[
        "database",
        "edit",
        "shop",
        "--window",
        "22:00-04:00",
        "--time-zone",
        "Europe/Berlin",
        "--json",
    ]);
    let window = json!({"from": "22:00", "to": "04:00", "time_zone": "Europe/Berlin"});
    assert_eq!(edited.document(0)["terms"]["window"], window);
    let job = submit(&folder);
    let shown = folder.run(&["jobs", "show", &job, "--json"]).document(0);
    assert_eq!(shown["terms"]["window"], window);
    let wrong = folder.run(&["database", "edit", "shop", "--window", "22:00-25:00"]);
    assert!(wrong.error(2).contains("25:00"), "{wrong:#?}");
    let gone = folder.run(&["database", "edit", "shop", "--window", "none", "--json"]);
    assert_eq!(gone.document(0)["terms"], json!({}));
}
