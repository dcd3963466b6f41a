//! Rule 19: the repository alone, on another machine and without any ledger, is enough to list, verify
//! and restore, and to make the catalogue again. And a script of another language, with none of our
//! code, reads it.

use std::{fs, process::Command};

use fettler_tests::{Installation, servers::server_folder, sqlite};

#[test]
fn with_the_ledger_deleted_everything_can_be_listed_verified_restored_and_rebuilt_elsewhere() {
    let first = Installation::new();
    let repository = first.path("repository");
    let place = repository.to_str().unwrap().to_owned();
    let source = first.path("shop.sqlite");
    sqlite::make_bank(&source, 2 << 20);
    let key = first.path("the.key");
    let key_text = key.to_str().unwrap().to_owned();
    let options = ["--repository", &place, "--key-file", &key_text];
    let made = {
        let mut arguments = vec!["backup", source.to_str().unwrap()];
        arguments.extend(options);
        first.json(&arguments)
    };
    let backup = made["backup"].as_str().unwrap().to_owned();
    fs::remove_dir_all(first.folder()).unwrap();

    let other = Installation::new();
    let run = |arguments: &[&str]| {
        let mut all = arguments.to_vec();
        all.extend(options);
        other.json(&all)
    };
    let listed = run(&["backups"]);
    assert!(listed.to_string().contains(&backup), "{listed:#}");
    assert_eq!(run(&["verify", &backup])["ok"], true);
    let copy = other.path("copy.sqlite");
    run(&["restore", &backup, "--to", copy.to_str().unwrap()]);
    assert!(sqlite::content(&source) == sqlite::content(&copy));

    let rebuilt = run(&["catalogue", "rebuild"]);
    assert_eq!(rebuilt["backups"], 1, "{rebuilt:#}");
    assert_eq!(run(&["prove", "latest"])["proven"], true);
}

#[test]
fn a_short_script_with_none_of_our_code_extracts_the_database() {
    let fettler = Installation::new();
    let repository = fettler.path("repository");
    let place = repository.to_str().unwrap().to_owned();
    let key = fettler.path("the.key");
    let source = fettler.path("shop.sqlite");
    sqlite::make_bank(&source, 2 << 20);
    let made = fettler.json(&[
        "backup",
        source.to_str().unwrap(),
        "--repository",
        &place,
        "--key-file",
        key.to_str().unwrap(),
    ]);
    let python = server_folder("python/bin/python").unwrap();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../tools/read_backup.py");
    let run = |arguments: &[&str]| {
        let output = Command::new(&python)
            .arg(script)
            .args(["--key-file", key.to_str().unwrap(), &place])
            .args(arguments)
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        output.stdout
    };
    let listed = String::from_utf8_lossy(&run(&["list"])).into_owned();
    assert!(
        listed.contains(made["backup"].as_str().unwrap()),
        "{listed}"
    );
}
