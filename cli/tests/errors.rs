//! Bad input: each a clear error that says what to do, the right exit code, and no panic.
#![allow(clippy::unwrap_used)]

mod common;

use common::Folder;

#[test]
fn what_is_asked_for_wrongly_is_told_with_exit_code_2() {
    let folder = Folder::new();
    let mut told = String::new();
    for arguments in [
        &["backup", "oracle://ann:hunter2@db/x"][..],
        &["backup", "no-such-database"],
        &["backup", "./missing.sqlite", "--name", "Not Valid"],
        &[
            "backup",
            "postgres://ann@127.0.0.1:1/x",
            "--password-from",
            "hunter2",
        ],
        &["backup", "./missing.sqlite", "--max-rate", "fast"],
        &["backups", "--repository", "ftp://somewhere/else"],
        &["restore", "latest", "--to", "mysql://x/y"],
        &["forget"],
        &["policy", "add", "--kind", "backup", "--cron", "0 2 * * *"],
        &["policy", "add", "--kind", "dance", "--cron", "0 2 * * *"],
        &["policy", "next", "--cron", "61 2 * * *"],
        &["policy", "next", "--cron", "0 2 * *"],
        &[
            "policy",
            "next",
            "--cron",
            "0 2 * * *",
            "--time-zone",
            "Europe/Berln",
        ],
        &["kinds", "dance"],
        &["jobs", "--state", "asleep"],
        &["demoo"],
    ] {
        let answer = folder.run(arguments);
        let error = folder.tidy(answer.error(2));
        assert!(!error.contains("hunter2"), "P9: {error}");
        told.push_str(&format!("$ fettler {}\n{error}\n", arguments.join(" ")));
    }
    insta::assert_snapshot!(told);
}

#[test]
fn an_error_is_a_document_too() {
    let folder = Folder::new();
    let answer = folder.run(&["backup", "oracle://db/x", "--json"]);
    let document = answer.document(2);
    assert_eq!(document["error"]["code"], "cli.usage");
    assert!(
        document["error"]["what"]
            .as_str()
            .unwrap()
            .contains("oracle")
    );
    assert!(!document["error"]["remedy"].as_str().unwrap().is_empty());
    folder.run(&["backup", "--json"]).document(2);
}

#[test]
fn nothing_to_work_on_is_exit_code_4_or_an_error_that_says_how_to_begin() {
    let folder = Folder::new();
    let answer = folder.run(&["backups", "--json"]);
    assert_eq!(answer.document(0)["backups"], serde_json::json!([]));
    let answer = folder.run(&["prove", "latest"]);
    assert!(
        answer.error(1).contains("there is no repository"),
        "{answer:#?}"
    );
}

#[test]
fn mistakes_in_the_settings_stop_every_command_but_config_check() {
    let folder = Folder::new();
    std::fs::write(
        folder.path("fettler.toml"),
        "[worker]\nlease_secnds = 3\nparallel = \"many\"\n",
    )
    .unwrap();
    let refused = folder.run(&["backups"]);
    assert!(
        refused.error(2).contains("fettler.toml:2:1"),
        "{refused:#?}"
    );
    let checked = folder.run(&["config", "check"]);
    assert_eq!(checked.code, 3);
    insta::assert_snapshot!(folder.tidy(&checked.out));
    let document = folder.run(&["config", "check", "--json"]).document(3);
    assert_eq!(document["mistakes"].as_array().unwrap().len(), 2);
    assert_eq!(document["mistakes"][0]["line"], 2);
}

#[test]
fn config_show_tells_each_value_and_its_origin() {
    let folder = Folder::new();
    std::fs::write(
        folder.path("fettler.toml"),
        "[ledger]\nurl = \"postgres://fettler:hunter2@db/ledger\"\n[worker]\nparallel = 3\nname = \"north\"\n",
    )
    .unwrap();
    let answer = folder.run(&["config", "show", "--repository", "s3://b/p"]);
    assert_eq!(answer.code, 0, "{answer:#?}");
    assert!(!answer.out.contains("hunter2"));
    insta::assert_snapshot!(folder.tidy(&answer.out));
}

#[test]
fn a_second_up_in_one_folder_is_refused() {
    let folder = Folder::new();
    let mut first = std::process::Command::new(assert_cmd::cargo::cargo_bin("fettler"))
        .args(["up", "--folder"])
        .arg(folder.path("fettler"))
        .current_dir(folder.root.path())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(first.stderr.take().unwrap()));
    lines.find(|line| line.as_ref().unwrap().contains("fettler is up"));
    let refused = folder.run(&["up"]);
    first.kill().unwrap();
    first.wait().unwrap();
    let told = refused.error(1);
    assert!(told.contains("runs in the folder"), "{told}");
    assert!(told.contains("kill"), "{told}");
}
