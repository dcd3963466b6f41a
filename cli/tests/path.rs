//! The whole path from the command line: back up, look, prove, restore, compare, forget, collect, and
//! all of it again from the repository alone.
#![allow(clippy::unwrap_used)]

mod common;

use std::process::Stdio;

use common::{Folder, fill, rows};
use serde_json::Value;

fn text<'a>(document: &'a Value, field: &str) -> &'a str {
    document[field]
        .as_str()
        .unwrap_or_else(|| panic!("no {field} in {document:#}"))
}

/// The names of a document's fields.
fn fields(document: &Value) -> String {
    document
        .as_object()
        .unwrap()
        .keys()
        .cloned()
        .collect::<Vec<_>>()
        .join(" ")
}

#[test]
fn a_database_goes_out_and_comes_back_with_no_configuration_at_all() {
    let folder = Folder::new();
    let source = folder.database("shop.sqlite", 2000);
    let first = folder.run(&["backup", "./shop.sqlite", "--json"]);
    assert!(
        first.err.contains("NOTHING THAT IS BACKED UP"),
        "{first:#?}"
    );
    assert!(folder.path("fettler/keys/default.key").exists());
    let first = first.document(0);
    assert_eq!(text(&first, "engine"), "sqlite");
    assert_eq!(text(&first, "database"), "shop");
    assert!(first["parent"].is_null());

    fill(&source, 2000, 2100);
    let second = folder.run(&["backup", "shop", "--prove", "--json"]);
    assert!(!second.err.contains("NOTHING THAT"), "the key is made once");
    let second = second.document(0);
    assert_eq!(second["parent"], first["backup"]);
    assert_eq!(second["proof"]["proven"], true, "{second:#}");

    let listed = folder.run(&["backups", "--json"]).document(0);
    assert_eq!(listed["backups"].as_array().unwrap().len(), 2);
    assert_eq!(listed["backups"][0]["backup"], second["backup"]);
    assert_eq!(listed["backups"][0]["proof"]["verdict"], "proven");
    assert_eq!(listed["backups"][0]["state"], "complete");

    let changes = folder
        .run(&["diff", text(&first, "backup"), "latest", "--json"])
        .document(0);
    let changed: Vec<(&str, i64)> = changes["objects"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|object| object["kind"] == "table")
        .map(|object| {
            let rows = |name: &str| object[name].as_i64().unwrap();
            (
                text(object, "name"),
                rows("rows_after") - rows("rows_before"),
            )
        })
        .collect();
    assert_eq!(changed, [("goods", 100)], "{changes:#}");

    let verified = folder.run(&["verify", "latest", "--json"]).document(0);
    assert_eq!(verified["ok"], true);
    let copy = folder.path("copy.sqlite");
    let short = &text(&first, "backup")[24..];
    let restored = folder
        .run(&["restore", short, "--to", copy.to_str().unwrap(), "--json"])
        .document(0);
    assert_eq!(rows(&copy), 2000, "{restored:#}");
    let again = folder.run(&["restore", "latest", "--to", copy.to_str().unwrap()]);
    assert!(again.error(1).contains("--overwrite"), "{again:#?}");

    let shown = folder.run(&["show", "latest", "--json"]).document(0);
    let checked = folder.run(&["check", "--read-data", "--json"]).document(0);
    let jobs = folder.run(&["jobs", "--json"]).document(0);
    let job = folder
        .run(&["jobs", "show", text(&first, "job"), "--json"])
        .document(0);
    assert_eq!(job["state"], "succeeded");
    insta::assert_snapshot!(
        [
            ("backup", &first),
            ("backups", &listed),
            ("backups.backups", &listed["backups"][0]),
            ("verify", &verified),
            ("prove", &second["proof"]),
            ("restore", &restored),
            ("diff", &changes),
            ("show", &shown),
            ("check", &checked),
            ("jobs.jobs", &jobs["jobs"][0]),
            ("jobs show", &job),
        ]
        .iter()
        .map(|(name, document)| format!("{name}: {}", fields(document)))
        .collect::<Vec<_>>()
        .join("\n")
    );
}

#[test]
fn the_repository_alone_is_enough_in_another_folder() {
    let folder = Folder::new();
    folder.database("shop.sqlite", 500);
    let place = folder.path("repository");
    let place = place.to_str().unwrap();
    let backup = folder
        .run(&["backup", "./shop.sqlite", "--repository", place, "--json"])
        .document(0);
    let other = Folder::new();
    let key = folder.path("fettler/keys/default.key");
    let with = |command: &[&str]| {
        let mut arguments = command.to_vec();
        arguments.extend(["--repository", place, "--key-file", key.to_str().unwrap()]);
        other.run(&arguments)
    };
    let listed = with(&["backups", "--json"]).document(0);
    assert_eq!(listed["backups"][0]["backup"], backup["backup"]);
    assert_eq!(
        with(&["verify", "latest", "--json"]).document(0)["ok"],
        true
    );
    assert_eq!(
        with(&["prove", "latest", "--json"]).document(0)["proven"],
        true
    );
    let copy = other.path("copy.sqlite");
    with(&[
        "restore",
        "latest",
        "--to",
        copy.to_str().unwrap(),
        "--json",
    ])
    .document(0);
    assert_eq!(rows(&copy), 500);
    let rebuilt = with(&["catalogue", "rebuild", "--json"]).document(0);
    assert_eq!(rebuilt["backups"], 1);

    // With another key nothing opens, and no new key hides that.
    let stranger = Folder::new();
    let refused = stranger.run(&["backups", "--repository", place]);
    assert!(refused.error(1).contains("key file"), "{refused:#?}");
    stranger.database("shop.sqlite", 1);
    let refused = stranger.run(&["backup", "./shop.sqlite", "--repository", place]);
    assert!(refused.error(1).contains("--key-file"), "{refused:#?}");
    assert!(!stranger.path("fettler/keys/default.key").exists());
}

#[test]
fn backups_are_forgotten_by_rules_held_ones_stay_and_space_comes_back() {
    let folder = Folder::new();
    let source = folder.database("shop.sqlite", 10);
    for round in 0..3 {
        fill(&source, 100 * (round + 1), 100 * (round + 1) + 50);
        folder.run(&["backup", "./shop.sqlite", "--quiet"]).error(0);
    }
    let listed = folder.run(&["backups", "--json"]).document(0);
    let oldest = text(&listed["backups"][2], "backup").to_owned();
    assert_eq!(
        folder.run(&["hold", &oldest, "--json"]).document(0)["held"],
        true
    );
    let dry = folder
        .run(&["forget", "--keep-last", "1", "--dry-run", "--json"])
        .document(0);
    assert_eq!(dry["forgotten"], 1, "{dry:#}");
    let done = folder
        .run(&["forget", "--keep-last", "1", "--json"])
        .document(0);
    assert_eq!(done["forgotten"], 1);
    let nothing = folder
        .run(&["forget", "--keep-last", "1", "--json"])
        .document(4);
    assert_eq!(nothing["forgotten"], 0);
    let left = folder.run(&["backups", "--json"]).document(0);
    assert_eq!(left["backups"].as_array().unwrap().len(), 2);
    let all = folder.run(&["backups", "--all", "--json"]).document(0);
    assert_eq!(all["backups"][1]["state"], "forgotten", "{all:#}");
    let held = folder.run(&["forget", &oldest]);
    assert!(held.error(1).contains("held"), "{held:#?}");
    folder.run(&["hold", &oldest, "--release"]).error(0);
    folder.run(&["forget", &oldest]).error(0);
    let collected = folder
        .run(&["collect", "--grace", "0", "--json"])
        .document(0);
    assert!(
        collected["marked_objects"].as_u64().unwrap()
            + collected["deleted_objects"].as_u64().unwrap()
            > 0,
        "{collected:#}"
    );
}

#[test]
fn keys_are_added_rotated_and_removed_and_the_last_one_stays() {
    let folder = Folder::new();
    folder.database("shop.sqlite", 10);
    folder.run(&["backup", "./shop.sqlite"]).error(0);
    let second = folder.path("second.key");
    let second = second.to_str().unwrap();
    folder
        .run(&["key", "add", "--new-key-file", second])
        .error(0);
    let keys = folder.run(&["key", "list", "--json"]).document(0);
    assert_eq!(keys["keys"].as_array().unwrap().len(), 2);
    let first = text(&keys["keys"][0], "id").to_owned();
    folder.run(&["key", "remove", &first]).error(0);
    let refused = folder.run(&["backups"]);
    assert!(refused.error(1).contains("does not open"), "{refused:#?}");
    folder.run(&["backups", "--key-file", second]).error(0);
    let last = text(&keys["keys"][1], "id");
    let refused = folder.run(&["key", "remove", last, "--key-file", second]);
    assert!(refused.error(1).contains("only key"), "{refused:#?}");
    let mut rotate = folder.command(&[
        "key",
        "rotate",
        "--new-passphrase",
        "env:NEW_PASSPHRASE",
        "--key-file",
        second,
    ]);
    rotate.env("NEW_PASSPHRASE", "correct horse");
    common::answer(&mut rotate).error(0);
    let mut list = folder.command(&["backups", "--json"]);
    list.env("FETTLER_PASSPHRASE", "correct horse");
    assert_eq!(
        common::answer(&mut list).document(0)["backups"]
            .as_array()
            .unwrap()
            .len(),
        1
    );
}

#[test]
fn p1_a_job_whose_command_was_killed_is_taken_up_by_the_next_command() {
    let folder = Folder::new();
    folder.database("shop.sqlite", 10);
    let go = folder.path("go");
    let started = folder.path("started");
    let before = format!(
        "touch {}; until [ -e {} ]; do sleep 0.1; done",
        started.display(),
        go.display()
    );
    let mut killed = std::process::Command::new(assert_cmd::cargo::cargo_bin("fettler"))
        .args(["backup", "./shop.sqlite", "--before", &before])
        .env("FETTLER_FOLDER", folder.path("fettler"))
        .env("FETTLER_WORKER__LEASE_SECONDS", "2")
        .env("FETTLER_WORKER__HEARTBEAT_SECONDS", "1")
        .current_dir(folder.root.path())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    while !started.exists() {
        assert!(killed.try_wait().unwrap().is_none(), "it ended early");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    killed.kill().unwrap();
    killed.wait().unwrap();
    std::fs::write(&go, "").unwrap();
    folder.database("other.sqlite", 10);
    let next = folder.run(&["backup", "./other.sqlite"]);
    assert!(
        next.error(0)
            .contains("was left by a command that was killed"),
        "{next:#?}"
    );
    let jobs = folder.run(&["jobs", "--json"]).document(0);
    for job in jobs["jobs"].as_array().unwrap() {
        assert_eq!(job["state"], "succeeded", "{jobs:#}");
    }
    let listed = folder.run(&["backups", "--json"]).document(0);
    assert_eq!(listed["backups"].as_array().unwrap().len(), 2);
}

#[test]
fn databases_and_policies_are_added_shown_edited_and_removed() {
    let folder = Folder::new();
    folder.database("shop.sqlite", 10);
    folder
        .run(&[
            "database",
            "add",
            "shop",
            "./shop.sqlite",
            "--label",
            "zone=dmz",
        ])
        .error(0);
    let twice = folder.run(&["database", "add", "shop", "./shop.sqlite"]);
    assert!(twice.error(1).contains("already"), "{twice:#?}");
    let pg = folder
        .run(&[
            "database",
            "add",
            "app",
            "postgres://ann:hunter2@db/app",
            "--json",
        ])
        .document(0);
    assert!(text(&pg, "password").starts_with("sealed:"));
    assert!(!pg.to_string().contains("hunter2"));
    let edited = folder
        .run(&[
            "database",
            "edit",
            "app",
            "--password-from",
            "env:APP",
            "--rename",
            "main",
            "--json",
        ])
        .document(0);
    assert_eq!(text(&edited, "password"), "env:APP");
    folder
        .run(&[
            "policy",
            "add",
            "nightly",
            "--database",
            "shop",
            "--kind",
            "backup",
            "--cron",
            "0 2 * * *",
            "--time-zone",
            "Europe/Berlin",
            "--keep-daily",
            "7",
            "--prove",
            "weekly",
        ])
        .error(0);
    let shown = folder
        .run(&["policy", "show", "nightly", "--json"])
        .document(0);
    assert_eq!(shown["spec"]["prove"], "weekly");
    assert_eq!(shown["spec"]["keep"]["daily"], 7);
    assert_eq!(shown["upcoming"].as_array().unwrap().len(), 5);
    let next = folder
        .run(&["policy", "next", "nightly", "--json"])
        .document(0);
    assert_eq!(
        next["policies"][0]["upcoming"].as_array().unwrap().len(),
        10
    );
    let paused = folder
        .run(&["policy", "edit", "nightly", "--pause", "--json"])
        .document(0);
    assert!(paused["next_due"].is_null());
    folder.run(&["policy", "remove", "nightly"]).error(0);
    folder.run(&["database", "remove", "main"]).error(0);
    let left = folder.run(&["database", "list", "--json"]).document(0);
    assert_eq!(left["databases"].as_array().unwrap().len(), 1);
}

#[test]
fn the_demo_runs_without_a_server_and_without_a_network() {
    let folder = Folder::new();
    let place = folder.path("demo");
    let demo = folder
        .run(&[
            "demo",
            "--size",
            "3MB",
            "--folder",
            place.to_str().unwrap(),
            "--json",
        ])
        .document(0);
    let names: Vec<&str> = demo["steps"]
        .as_array()
        .unwrap()
        .iter()
        .map(|step| text(step, "step"))
        .collect();
    assert_eq!(
        names,
        [
            "make", "backup", "prove", "change", "backup", "prove", "restore", "compare",
            "restore", "compare"
        ]
    );
    assert_eq!(demo["same"], true, "{demo:#}");
    let steps = &demo["steps"];
    assert_eq!(steps[2]["proven"], true);
    assert!(
        steps[4]["bytes_new"].as_u64().unwrap() < steps[1]["bytes_new"].as_u64().unwrap(),
        "{demo:#}"
    );
    // It may be run again in its own folder, and in no other.
    folder
        .run(&[
            "demo",
            "--size",
            "1MB",
            "--folder",
            place.to_str().unwrap(),
            "--json",
        ])
        .document(0);
    let refused = folder.run(&["demo", "--folder", folder.root.path().to_str().unwrap()]);
    assert!(refused.error(2).contains("no demo made"), "{refused:#?}");
}
