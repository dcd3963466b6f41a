//! The HTTP interface of the binary, as its users meet it: the workflow of the README by `curl`, the same by the command line
//! with `--server`, and a tenant that names an address inside.

#![allow(clippy::unwrap_used)]

use std::{
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Command, Output},
    time::Duration,
};

use fettler_tests::{
    Installation, Shared, http,
    servers::{PgMajor, PostgresServer, TcpProxy, wait_until},
    sqlite, url_of,
};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(60);

/// The commands of the README below this heading.
fn commands_of_the_readme(heading: &str) -> String {
    let readme = Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md");
    let text = std::fs::read_to_string(readme).unwrap();
    let section = text.split(heading).nth(1).unwrap();
    let block = section.split("```sh\n").nth(1).unwrap();
    block.split("```").next().unwrap().to_owned()
}

fn bash(installation: &Installation, script: &str) -> Output {
    let binary = installation.binary().parent().unwrap();
    let path = format!("{}:{}", binary.display(), std::env::var("PATH").unwrap());
    Command::new("bash")
        .args(["-euo", "pipefail", "-c", script])
        .env("FETTLER_FOLDER", installation.folder())
        .env("PATH", path)
        .output()
        .unwrap()
}

#[test]
fn a_job_is_submitted_watched_cancelled_and_repeated_by_curl_as_the_readme_says() {
    let installation = Installation::new();
    let source = installation.path("shop.sqlite");
    sqlite::make_bank(&source, 1 << 20);
    installation.json(&["database", "add", "shop", source.to_str().unwrap()]);
    let mut up = installation.start(&["up", "--listen", "127.0.0.1:0"]);
    let url = url_of(&up);
    let script = commands_of_the_readme("## By HTTP").replace("http://127.0.0.1:8080", &url);
    assert!(script.contains(&url), "{script}");
    let output = bash(&installation, &script);
    let text = String::from_utf8(output.stdout).unwrap();
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{text}\n{errors}");
    for expected in [
        "event: job.succeeded",
        "\"succeeded\"",
        "\"cancel\":\"already_ended\"",
        "\"existing\":false",
    ] {
        assert!(text.contains(expected), "{expected}: {text}");
    }
    let jobs = installation.json(&["jobs"]);
    let jobs = jobs["jobs"].as_array().unwrap();
    assert_eq!(jobs.len(), 2, "one, and the same again");
    assert_eq!(jobs[0]["retry_of"], jobs[1]["id"]);

    // P9: the token of this folder's commands is its owner's alone, and goes with the process.
    let file = installation.folder().join("api.token");
    let mode = std::fs::metadata(&file).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let token = std::fs::read_to_string(&file)
        .unwrap()
        .lines()
        .nth(1)
        .unwrap()
        .to_owned();
    assert!(!up.log().contains(&token));
    assert_eq!(
        installation.json(&["--server", &url, "jobs"])["jobs"]
            .as_array()
            .unwrap()
            .len(),
        2
    );
    assert_eq!(up.terminate(), 0, "{}", up.log());
    assert!(!file.exists());
    let left = installation.json(&["token", "list"]);
    assert_eq!(
        left["tokens"].as_array().unwrap().len(),
        1,
        "the one that the workflow made"
    );
}

#[test]
fn a_command_that_comes_too_often_waits_as_long_as_it_is_told() {
    let installation = Installation::new().with("FETTLER_API__REQUESTS_PER_SECOND", "1");
    let up = installation.start(&["up", "--listen", "127.0.0.1:0"]);
    let url = url_of(&up);
    let file = std::fs::read_to_string(installation.folder().join("api.token")).unwrap();
    let authorization = format!("Bearer {}", file.lines().nth(1).unwrap());
    let headers = [("Authorization", authorization.as_str())];
    let address = url.strip_prefix("http://").unwrap();
    for command in [vec!["jobs"], vec!["pause"]] {
        wait_until("it is too often", PATIENCE, || {
            let (status, _) = http::send(address, "GET", "/api/v1/jobs", &headers, "").unwrap();
            status == 429
        })
        .unwrap();
        installation.json(&[vec!["--server", &url], command].concat());
    }
}

#[test]
fn the_same_commands_with_server_do_the_same_and_print_the_same_as_beside_the_ledger() {
    let fleet = Shared::new(PgMajor::V15);
    let operator = fleet.machine().with_short_leases();
    let (first, second, third) = (
        fleet.machine().with_short_leases(),
        fleet.machine().with_short_leases(),
        fleet.machine().with_short_leases(),
    );
    let mut api = first.start(&["api", "--listen", "127.0.0.1:0"]);
    let worker = second.start(&["worker"]);
    let url = url_of(&api);
    let token = operator.json(&["token", "add", "ann", "--role", "admin"]);
    // Nothing of the fleet is known here but its address and a token.
    let far = Installation::new()
        .with("FETTLER_SERVER", &url)
        .with("FETTLER_TOKEN", token["text"].as_str().unwrap());

    let source = operator.path("bank.sqlite");
    sqlite::make_bank(&source, 8 << 20);
    let place = source.to_str().unwrap();
    // A tenant's token names no file of the operator's machines; the operator does.
    let refused = far.run(&["database", "add", "bank", place, "--json"]);
    assert_eq!(refused.code, 1, "{refused:?}");
    assert_eq!(refused.json()["error"]["code"], "access.out_of_bounds");
    operator.json(&["database", "add", "bank", place]);
    far.json(&[
        "policy",
        "add",
        "nightly",
        "--database",
        "bank",
        "--kind",
        "backup",
        "--cron",
        "0 2 * * *",
    ]);

    // Submitted, and followed by its events.
    let done = far.run(&["backup", "bank", "--json"]).done();
    let backup = done.json()["backup"].as_str().unwrap().to_owned();
    assert_eq!(far.json(&["prove", "latest"])["proven"], true);
    assert_eq!(far.json(&["verify", &backup])["ok"], true);

    // Cancelled while it runs; watched; repeated.
    let slow = [
        "backup",
        "bank",
        "--read-everything",
        "--max-rate",
        "1MB",
        "--detach",
    ];
    let job = far.json(&slow)["job"].as_str().unwrap().to_owned();
    wait_until("it runs", PATIENCE, || {
        far.json(&["jobs", "show", &job])["state"] == "running"
    })
    .unwrap_or_else(|error| panic!("{error}: {}", worker.log()));
    let watching = far.start(&["jobs", "watch", &job]);
    let asked = far.json(&["jobs", "cancel", &job]);
    assert_eq!(asked["cancel"], "requested");
    let mut watching = watching;
    assert_eq!(watching.wait(PATIENCE), 1, "{}", watching.log());
    assert!(watching.log().contains("cancelled"), "{}", watching.log());
    assert_eq!(
        far.run(&["jobs", "cancel", &job]).code,
        4,
        "there is nothing to cancel any more"
    );
    let again = far.json(&["jobs", "retry", &job]);
    let again = again["job"].as_str().unwrap().to_owned();
    // An interface that dies while somebody watches loses nothing: another one is asked (P1).
    far.json(&["jobs", "cancel", &again]);
    wait_until("it has ended", PATIENCE, || {
        far.json(&["jobs", "show", &again])["state"] == "cancelled"
    })
    .unwrap();
    api.kill_9();
    let other = third.start(&["api", "--listen", "127.0.0.1:0"]);
    let url = url_of(&other);
    let far = Installation::new()
        .with("FETTLER_SERVER", &url)
        .with("FETTLER_TOKEN", token["text"].as_str().unwrap());

    for command in [
        vec!["jobs"],
        vec!["jobs", "show", &job],
        vec!["jobs", "--state", "cancelled"],
        vec!["database", "list"],
        vec!["database", "show", "bank"],
        vec!["policy", "list"],
        vec!["policy", "next", "nightly"],
    ] {
        assert_eq!(far.json(&command), operator.json(&command), "{command:?}");
    }
    let (there, here) = (far.json(&["backups"]), operator.json(&["backups"]));
    assert_eq!(there["backups"], here["backups"]);
    // What is wrong is told in the same words, with the same exit code.
    for command in [
        vec!["jobs", "show", "00000000", "--json"],
        vec!["policy", "show", "nothing", "--json"],
        vec!["database", "show", "nothing", "--json"],
    ] {
        let (there, here) = (far.run(&command), operator.run(&command));
        assert_eq!(
            (there.code, there.json()),
            (here.code, here.json()),
            "{command:?}"
        );
    }
    let refused = far.run(&["up"]);
    assert_eq!(
        refused.code, 2,
        "what works on this machine is not asked of another: {refused:?}"
    );
}

#[test]
fn rule_14_a_job_is_accepted_while_redis_hangs_and_runs_all_the_same() {
    let fleet = Shared::new(PgMajor::V15);
    let proxy = TcpProxy::start(fleet.redis.port()).unwrap();
    let by_proxy = |machine: Installation| {
        machine.with("FETTLER_QUEUE__URL", fleet.redis.url_via(proxy.port()))
    };
    let (operator, first, second) = (
        fleet.machine().with_short_leases(),
        by_proxy(fleet.machine().with_short_leases()),
        by_proxy(fleet.machine().with_short_leases()),
    );
    let source = operator.path("bank.sqlite");
    sqlite::make_bank(&source, 1 << 20);
    operator.json(&["database", "add", "bank", source.to_str().unwrap()]);
    let api = first.start(&["api", "--listen", "127.0.0.1:0"]);
    let worker = second.start(&["worker"]);
    let url = url_of(&api);
    let token = operator.json(&["token", "add", "ann", "--role", "operator"]);
    let token = token["text"].as_str().unwrap();
    let submit = r#"curl -sS --max-time 3 --fail-with-body -H "Authorization: Bearer $TOKEN" -H 'Content-Type: application/json' \
        -d '{"kind": "backup", "database": "bank"}' "$URL/api/v1/jobs" | jq -r .id"#;
    let submit = format!("URL={url} TOKEN={token}\n{submit}");
    // Whoever waits for Redis now waits for ever.
    proxy.stall(true);
    for _ in 0..3 {
        let output = bash(&operator, &submit);
        assert!(output.status.success(), "{output:?} {}", api.log());
        let id = String::from_utf8(output.stdout).unwrap().trim().to_owned();
        wait_until("the job ends", PATIENCE, || {
            operator.json(&["jobs", "show", &id])["state"] == "succeeded"
        })
        .unwrap_or_else(|error| panic!("{error}: {}", worker.log()));
    }
}

#[test]
fn p6_a_worker_connects_to_no_address_inside_for_another_tenant_unless_it_was_listed() {
    // The ledger's own server is never a tenant's to name: theirs is another one.
    let fleet = Shared::new(PgMajor::V18);
    let operator = fleet.machine().with_short_leases();
    operator.json(&["tenant", "add", "acme"]);
    let source = PostgresServer::shared(PgMajor::V15)
        .create_database("theirs")
        .unwrap();
    // By a name, which turns to an address of the machine itself.
    let url = source.url().replace("127.0.0.1", "localhost");
    assert!(url.contains("localhost"), "{url}");
    operator.json(&["--tenant", "acme", "database", "add", "theirs", &url]);
    let secrets = operator.folder().join("secrets.key");
    let secrets = secrets.to_str().unwrap();
    let end_of = |job: &Value| {
        let id = job["job"].as_str().unwrap().to_owned();
        let mut shown = Value::Null;
        wait_until("it ends", PATIENCE, || {
            shown = operator.json(&["--tenant", "acme", "jobs", "show", &id]);
            !matches!(shown["state"].as_str(), Some("queued" | "running"))
        })
        .unwrap_or_else(|error| panic!("{error}: {shown:#}"));
        shown
    };
    let backup = ["--tenant", "acme", "backup", "theirs", "--detach"];

    let strict = fleet
        .machine()
        .with_short_leases()
        .with("FETTLER_KEYS__SECRETS_FILE", secrets);
    let mut worker = strict.start(&["worker"]);
    let job = operator.json(&backup);
    let ended = end_of(&job);
    assert_eq!(ended["state"], "dead", "{ended:#}");
    assert_eq!(ended["problem"]["code"], "tenant.address", "{ended:#}");
    assert_eq!(worker.terminate(), 0, "{}", worker.log());

    let listed = fleet
        .machine()
        .with("FETTLER_KEYS__SECRETS_FILE", secrets)
        .with("FETTLER_ALLOW__NETWORKS", "127.0.0.0/8,::1");
    let worker = listed.start(&["worker"]);
    let job = operator.json(&backup);
    let ended = end_of(&job);
    assert_eq!(ended["state"], "succeeded", "{ended:#}\n{}", worker.log());
}
