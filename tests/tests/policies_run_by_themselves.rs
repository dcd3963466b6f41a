//! The embedded size as it runs by itself: a policy that is due makes a job, the job makes a backup,
//! and other commands work on the same folder meanwhile.

use std::time::Duration;

use fettler_tests::{Installation, servers::wait_until, sqlite};

#[test]
fn a_policy_backs_up_while_other_commands_look_on() {
    let fettler = Installation::new();
    let source = fettler.path("shop.sqlite");
    sqlite::make_bank(&source, 1 << 20);
    let mut up = fettler.start(&["up"]);
    fettler
        .run(&["database", "add", "shop", source.to_str().unwrap()])
        .done();
    fettler
        .run(&[
            "policy",
            "add",
            "often",
            "--database",
            "shop",
            "--kind",
            "backup",
            "--cron",
            "*/2 * * * * *",
            "--time-zone",
            "Europe/Berlin",
            "--keep-last",
            "3",
        ])
        .done();
    wait_until(
        "two backups were made by the policy",
        Duration::from_secs(60),
        || {
            let listed = fettler.json(&["backups"]);
            listed["backups"].as_array().map_or(0, Vec::len) >= 2
        },
    )
    .unwrap_or_else(|error| panic!("{error}: {}", up.log()));
    let next = fettler.json(&["policy", "next", "often"]);
    assert!(next.to_string().matches("20").count() >= 10, "{next:#}");
    assert_eq!(up.terminate(), 0, "{}", up.log());
}

#[test]
fn a_second_up_on_one_folder_is_refused_with_the_first_one_named() {
    let fettler = Installation::new();
    let first = fettler.start(&["up"]);
    wait_until("it is up", Duration::from_secs(60), || {
        fettler.run(&["jobs", "--json"]).code == 0 && !first.log().is_empty()
    })
    .unwrap();
    let second = fettler.run(&["up"]);
    assert_eq!(second.code, 1, "{second:#?}");
    assert!(
        second.stderr.contains(&first.pid().to_string()),
        "{second:#?}"
    );
}
