//! What an operator does to jobs that wait, in both sizes: the same commands beside the ledger and over HTTP, with the same answers.

#![allow(clippy::unwrap_used)]

use fettler_tests::{Installation, Size, sqlite};
use rstest::rstest;
use serde_json::json;

#[rstest]
fn jobs_are_paused_limited_reordered_cancelled_and_repeated(
    #[values(Size::Embedded, Size::Fleet)] size: Size,
) {
    let fettler = Installation::of_size(size).without_workers();
    let source = fettler.path("shop.sqlite");
    sqlite::make_bank(&source, 100_000);
    fettler.json(&["database", "add", "shop", source.to_str().unwrap()]);
    let submit = || {
        let submitted = fettler.json(&["backup", "shop", "--detach"]);
        submitted["job"].as_str().unwrap().to_owned()
    };
    let job = submit();
    let wait = || fettler.json(&["jobs", "show", &job])["wait"].clone();

    let paused = fettler.json(&["pause", "--database", "shop", "--because", "they move"]);
    let scope = paused["scope"].clone();
    assert_eq!(
        wait(),
        json!({"reason": "paused", "what": scope, "because": "they move"}),
        "P12"
    );
    let pauses = fettler.json(&["pause", "--list"]);
    assert_eq!(pauses["pauses"][0]["scope"], scope, "{pauses:#}");
    assert_eq!(
        fettler.json(&["resume", "--database", "shop"])["resumed"],
        scope
    );
    assert_eq!(wait()["reason"], "no_worker_for_kind");

    let limited = fettler.json(&["limit", "set", "2", "--kind", "backup"]);
    assert_eq!(
        (&limited["scope"], &limited["most"]),
        (&json!("kind/backup"), &json!(2))
    );
    let limits = fettler.json(&["limit", "list"]);
    assert_eq!(limits["limits"].as_array().unwrap().len(), 1, "{limits:#}");
    let removed = fettler.json(&["limit", "remove", "--kind", "backup"]);
    assert_eq!(removed["removed"], "kind/backup");

    let raised = fettler.json(&["jobs", "priority", &job, "highest"]);
    assert_eq!(raised["priority"], "highest", "{raised:#}");

    submit();
    submit();
    let all = ["jobs", "cancel", "--all-matching", "--kind", "backup"];
    let would = fettler.json(&[&all[..], &["--dry-run"]].concat());
    assert_eq!(would["cancelled"], 3, "{would:#}");
    assert_eq!(fettler.json(&all)["cancelled"], 3);
    assert_eq!(fettler.run(&all).code, 4, "nothing is left to cancel");
    let again = ["jobs", "replay", "--all-matching", "--state", "cancelled"];
    assert_eq!(fettler.json(&again)["submitted"], 3);
    assert_eq!(fettler.run(&again).code, 4, "they were repeated already");

    let mut worker = fettler.start_worker();
    let settled =
        fettler_tests::servers::wait_until("all end", std::time::Duration::from_secs(60), || {
            let jobs = fettler.json(&["jobs", "--state", "succeeded"]);
            jobs["jobs"].as_array().unwrap().len() == 3
        });
    settled.unwrap_or_else(|error| panic!("{error}: {}", worker.log()));
    assert_eq!(worker.terminate(), 0, "{}", worker.log());
}
