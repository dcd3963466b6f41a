//! The help texts, all of them, as users read them.
#![allow(clippy::unwrap_used)]

mod common;

use common::Folder;

const COMMANDS: &[&[&str]] = &[
    &[],
    &["demo"],
    &["backup"],
    &["archive"],
    &["backups"],
    &["show"],
    &["browse"],
    &["extract"],
    &["verify"],
    &["prove"],
    &["restore"],
    &["copy-data"],
    &["cleanup"],
    &["cleanup", "undo"],
    &["diff"],
    &["forget"],
    &["hold"],
    &["collect"],
    &["ping"],
    &["health"],
    &["audit"],
    &["tune"],
    &["tune", "undo"],
    &["findings"],
    &["findings", "suppress"],
    &["findings", "export"],
    &["findings", "diff"],
    &["checks"],
    &["checks", "explain"],
    &["checks", "test"],
    &["check"],
    &["catalogue"],
    &["catalogue", "rebuild"],
    &["key"],
    &["key", "add"],
    &["key", "rotate"],
    &["key", "remove"],
    &["up"],
    &["tenant"],
    &["tenant", "edit"],
    &["database"],
    &["database", "add"],
    &["database", "edit"],
    &["database", "grant-sql"],
    &["policy"],
    &["policy", "add"],
    &["policy", "edit"],
    &["policy", "next"],
    &["jobs"],
    &["jobs", "cancel"],
    &["jobs", "replay"],
    &["jobs", "priority"],
    &["limit"],
    &["limit", "set"],
    &["pause"],
    &["resume"],
    &["kinds"],
    &["preflight"],
    &["config"],
    &["completions"],
];

#[test]
fn every_command_explains_itself() {
    let folder = Folder::new();
    let mut all = String::new();
    for command in COMMANDS {
        let mut arguments = command.to_vec();
        arguments.push("-h");
        let answer = folder.run(&arguments);
        assert_eq!(answer.code, 0, "{answer:#?}");
        all.push_str(&format!(
            "$ fettler {}\n{}\n",
            arguments.join(" "),
            answer.out
        ));
    }
    // What is taken everywhere stands once, at the top.
    let mut shown = String::new();
    let mut skipping = false;
    for (number, line) in all.lines().enumerate() {
        if line.starts_with("$ ") {
            skipping = false;
        }
        skipping |= line == "Everywhere:" && number > 100;
        if !skipping {
            shown.push_str(line);
            shown.push('\n');
        }
    }
    insta::assert_snapshot!(shown);
}

#[test]
fn completions_are_printed_for_each_shell() {
    let folder = Folder::new();
    for shell in ["bash", "zsh", "fish"] {
        let answer = folder.run(&["completions", shell]);
        assert_eq!(answer.code, 0);
        assert!(answer.out.contains("fettler"));
    }
}
