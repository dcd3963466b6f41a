//! `fettler database grant-sql`: a role that is made by just this text can back up, prove and answer health checks, and one that
//! lacks a part of it is told that part by the preflight.

#![allow(clippy::unwrap_used)]

use fettler_tests::{
    Installation,
    servers::{PgMajor, PostgresServer, RedisOptions, RedisServer},
};
use rstest::rstest;

/// The text with a password where one belongs.
fn text(fettler: &Installation, url: &str, purposes: &str, role: &str) -> String {
    let arguments = [
        "database",
        "grant-sql",
        url,
        "--for",
        purposes,
        "--role",
        role,
    ];
    let text = fettler.run(&arguments).done().stdout;
    assert!(text.contains("PASSWORD"), "{text}");
    text.replace("'PASSWORD'", "'pass1'")
        .replace(">PASSWORD", ">pass1")
}

#[rstest]
#[case(PgMajor::V15)]
#[case(PgMajor::V18)]
fn a_postgres_role_of_just_this_text_backs_up_and_proves(#[case] major: PgMajor) {
    let server = PostgresServer::shared(major);
    let source = server.create_database("granted").unwrap();
    source
        .psql("CREATE SCHEMA hidden; CREATE TABLE hidden.t (id serial, v text); INSERT INTO hidden.t (v) VALUES ('a'), (NULL); ALTER TABLE hidden.t ENABLE ROW LEVEL SECURITY; SELECT lo_from_bytea(7, '\\x01')")
        .unwrap();
    let fettler = Installation::new().with("FETTLER_PG_BIN", server.bin_dir().to_str().unwrap());
    let role = format!("granted_{}_{}", major.number(), std::process::id());
    let sql = text(&fettler, &source.url(), "backup,health", &role);
    source.psql(&sql).unwrap();
    let url = source.url_as(&role, "pass1");
    let made = fettler.json(&["backup", &url, "--name", "granted"]);
    assert_eq!(made["warnings"], serde_json::json!([]), "{made:#}");
    let proof = fettler.json(&["prove", "latest"]);
    assert_eq!(proof["proven"], true, "{proof:#}");

    // Without one of the statements the preflight names it.
    let preflight = |url: &str| {
        let looked = fettler.run(&["preflight", url, "--json"]);
        assert_eq!(looked.code, 3, "{looked:#?}");
        looked.stdout
    };
    source
        .psql(&format!("ALTER ROLE {role} NOBYPASSRLS"))
        .unwrap();
    let found = preflight(&url);
    assert!(
        found.contains(&format!("ALTER ROLE \\\"{role}\\\" BYPASSRLS")),
        "{found}"
    );
    source
        .psql(&format!(
            "ALTER ROLE {role} BYPASSRLS; REVOKE pg_read_all_data FROM {role}"
        ))
        .unwrap();
    let found = preflight(&url);
    assert!(
        found.contains(&format!("GRANT pg_read_all_data TO \\\"{role}\\\"")),
        "{found}"
    );
    source
        .psql(&format!("DROP OWNED BY {role}; DROP ROLE {role}"))
        .unwrap();
}

#[test]
fn a_redis_user_of_just_this_text_backs_up_proves_and_is_copied_to() {
    let start = || RedisServer::start(RedisOptions::new()).unwrap();
    let (source, target) = (start(), start());
    let ask = |server: &RedisServer, words: &[&str]| {
        let port = server.port().to_string();
        let answer = std::process::Command::new("redis-cli")
            .args(["-p", &port])
            .args(words)
            .output()
            .unwrap();
        String::from_utf8_lossy(&answer.stdout).trim().to_owned()
    };
    let grant = |fettler: &Installation, server: &RedisServer, purposes: &str, without: &str| {
        let words = text(fettler, &server.url(), purposes, "fettler");
        let words: Vec<&str> = words
            .split_whitespace()
            .filter(|word| *word != without)
            .collect();
        ask(server, &["ACL", "DELUSER", "fettler"]);
        assert_eq!(ask(server, &words), "OK");
        format!("redis://fettler:pass1@127.0.0.1:{}", server.port())
    };
    ask(&source, &["MSET", "a", "1", "b", "2"]);
    ask(&source, &["RPUSH", "list", "x", "y"]);
    ask(&source, &["XADD", "stream", "*", "f", "v"]);
    let fettler = Installation::new();
    let url = grant(&fettler, &source, "backup,health", "");
    let made = fettler.json(&["backup", &url, "--name", "granted"]);
    assert_eq!(made["warnings"], serde_json::json!([]), "{made:#}");
    assert_eq!(fettler.json(&["prove", "latest"])["proven"], true);
    let to = grant(&fettler, &target, "restore,prove", "");
    let copied = fettler.json(&["copy-data", "granted", &to]);
    assert_eq!(copied["equal"], true, "{copied:#}");

    let weak = grant(&fettler, &source, "backup", "+psync");
    let looked = fettler.run(&["preflight", &weak, "--json"]);
    assert_eq!(looked.code, 3, "{looked:#?}");
    assert!(looked.stdout.contains("+psync"), "{looked:#?}");
}

#[test]
fn the_text_asks_nobody_and_holds_no_password() {
    let fettler = Installation::new();
    for (url, words) in [
        (
            "postgres://ann:hunter2@nowhere.invalid/shop",
            "GRANT pg_read_all_data",
        ),
        ("redis://:hunter2@nowhere.invalid", "ACL SETUSER"),
        ("mongodb://ann:hunter2@nowhere.invalid", "passwordPrompt()"),
        ("clickhouse://ann:hunter2@nowhere.invalid", "SYSTEM MERGES"),
        (
            "elasticsearch://ann:hunter2@nowhere.invalid",
            "PUT /_security/role/",
        ),
        (
            "opensearch://ann:hunter2@nowhere.invalid",
            "PUT /_plugins/_security/",
        ),
        ("./shop.sqlite", "setfacl"),
    ] {
        let answer = fettler
            .run(&["database", "grant-sql", url, "--for", "all"])
            .done();
        assert!(answer.stdout.contains(words), "{answer:#?}");
        assert!(!answer.stdout.contains("hunter2") && !answer.stderr.contains("hunter2"));
        let document = fettler.json(&["database", "grant-sql", url]);
        assert_eq!(document["purposes"], serde_json::json!(["backup"]));
    }
}
