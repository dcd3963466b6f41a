//! Ways to reach a server: passwords, users, sockets, TLS.

use std::{path::Path, process::Command};

use fettler_engine::{DatabaseEngine as _, EngineError, PreflightLevel, RestoreOptions};
use fettler_model::Problem;
use fettler_test_servers::{RedisServer, free_port};
use redis::cmd;

use crate::common::{
    ENGINE, back_up, client, facts, fill, mismatches, options, prove, run, server, target,
    try_restore,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p9_a_wrong_password_and_none_are_login_refused_and_no_error_repeats_it() {
    let server = RedisServer::start(options().password("right1")).unwrap();
    let port = server.port();
    for url in [
        format!("redis://:hunter2@127.0.0.1:{port}"),
        format!("redis://nobody:hunter2@127.0.0.1:{port}"),
        format!("redis://127.0.0.1:{port}"),
    ] {
        let error = ENGINE.identify(&target(&url)).await.unwrap_err();
        assert!(
            matches!(error, EngineError::LoginRefused { .. }),
            "{url}: {error:?}"
        );
        assert!(!format!("{error:?} {error}").contains("hunter2"));
        let error = crate::common::try_back_up(&url).await.unwrap_err();
        assert_eq!(Problem::from(error).code, "engine.login_refused");
    }
    let (backup, report) = back_up(&server.url()).await;
    assert!(!serde_json::to_string(&report).unwrap().contains("right1"));
    assert_eq!(prove(&backup, &report).await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_ways_to_a_server_lead_to_one_identity_and_a_restart_keeps_it() {
    let mut server = server();
    let by_number = ENGINE.identify(&target(&server.url())).await.unwrap();
    let by_name = format!("redis://localhost:{}?hostaddr=127.0.0.1", server.port());
    let by_name = ENGINE.identify(&target(&by_name)).await.unwrap();
    assert_eq!(by_number.key, by_name.key);
    assert_eq!(by_number.lineage, by_name.lineage);
    assert!(by_number.version.starts_with('7'));
    assert!(by_number.estimated_bytes > 0);
    let one = format!("redis://127.0.0.1:{}/3", server.port());
    let one = ENGINE.identify(&target(&one)).await.unwrap();
    assert_ne!(by_number.key, one.key);
    server.stop().unwrap();
    server.start_again().unwrap();
    let again = ENGINE.identify(&target(&server.url())).await.unwrap();
    assert_eq!(by_number.key, again.key);
    assert_ne!(by_number.lineage, again.lineage);
}

#[tokio::test]
async fn a_server_that_is_not_there_is_unreachable() {
    let url = format!("redis://127.0.0.1:{}", free_port());
    let error = ENGINE.identify(&target(&url)).await.unwrap_err();
    assert!(
        matches!(error, EngineError::Unreachable { .. }),
        "{error:?}"
    );
    let error = ENGINE
        .identify(&target("redis+unix:///nowhere/socket"))
        .await
        .unwrap_err();
    assert!(
        matches!(error, EngineError::Unreachable { .. }),
        "{error:?}"
    );
}

/// Puts an authority there, and certificates of a server and of a client.
pub fn certify(at: &Path) {
    openssl(
        at,
        "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=authority -keyout ca.key -out ca.pem",
    );
    std::fs::write(
        at.join("names"),
        "subjectAltName=DNS:localhost,IP:127.0.0.1\n",
    )
    .unwrap();
    for name in ["server", "client"] {
        openssl(
            at,
            &format!(
                "req -newkey rsa:2048 -nodes -subj /CN={name} -keyout {name}.key -out {name}.csr"
            ),
        );
        openssl(
            at,
            &format!(
                "x509 -req -days 2 -in {name}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -extfile names -out {name}.pem"
            ),
        );
    }
}

fn openssl(folder: &Path, words: &str) {
    let output = Command::new("openssl")
        .current_dir(folder)
        .args(words.split(' '))
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_checks_the_authority_and_the_name_and_shows_a_certificate_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    certify(at);
    let file = |name: &str| at.join(name).display().to_string();
    let server = RedisServer::start(
        options()
            .password("right1")
            .port_setting("tls-port")
            .setting("tls-cert-file", &file("server.pem"))
            .setting("tls-key-file", &file("server.key"))
            .setting("tls-ca-cert-file", &file("ca.pem"))
            .setting("tls-auth-clients", "yes"),
    )
    .unwrap();
    fill(&mut client(&server.url()));
    let port = server.port_of("tls-port").unwrap();
    let base = format!("rediss://:right1@localhost:{port}?hostaddr=127.0.0.1");
    let own = format!("&cert={}&key={}", file("client.pem"), file("client.key"));
    let (backup, report) = back_up(&format!("{base}&ca={}{own}", file("ca.pem"))).await;
    assert_eq!(report.warnings, []);
    assert_eq!(prove(&backup, &report).await, Vec::<String>::new());
    let other_name = format!("rediss://:right1@elsewhere:{port}?hostaddr=127.0.0.1");
    for (what, url) in [
        (
            "an authority that the machine does not trust",
            format!("{base}{own}"),
        ),
        (
            "another name",
            format!("{other_name}&ca={}{own}", file("ca.pem")),
        ),
        ("no file", format!("{base}&ca=/nowhere.pem{own}")),
    ] {
        let error = ENGINE.identify(&target(&url)).await.unwrap_err();
        assert_eq!(Problem::from(error).code, "engine.missing.tls", "{what}");
    }
    // Without a certificate of its own the server closes the connection, at once or with the first command.
    let error = ENGINE
        .identify(&target(&format!("{base}&ca={}", file("ca.pem"))))
        .await
        .unwrap_err();
    assert!(
        matches!(
            error,
            EngineError::Unreachable { .. } | EngineError::Missing { code: "tls", .. }
        ),
        "{error:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_preflight_says_what_is_allowed() {
    let server = server();
    let level = |items: &[fettler_engine::PreflightItem], subject: &str| {
        items
            .iter()
            .find(|item| item.subject == subject)
            .unwrap()
            .level
    };
    let look = async |url: &str| {
        ENGINE
            .preflight(&target(url), &fettler_engine::BackupOptions::default())
            .await
            .unwrap()
    };
    let items = look(&server.url()).await;
    assert!(
        items.iter().all(|item| item.level == PreflightLevel::Fine),
        "{items:?}"
    );

    let mut admin = client(&server.url());
    run(&mut admin, "CONFIG SET maxmemory 100mb");
    run(&mut admin, "CONFIG SET maxmemory-policy allkeys-lru");
    let user = |name: &str| format!("redis://{name}:pass1@127.0.0.1:{}", server.port());
    for (name, rules) in [
        ("scans", vec!["~*", "+@all", "-psync", "-acl", "-config"]),
        ("blind", vec!["~*", "+@all", "-psync", "-dump"]),
    ] {
        cmd("ACL")
            .arg("SETUSER")
            .arg(name)
            .arg("on")
            .arg(">pass1")
            .arg(rules)
            .exec(&mut admin)
            .unwrap();
    }
    // A user who may not ask what it may do is told when it tries.
    let items = look(&user("scans")).await;
    assert_eq!(level(&items, "eviction"), PreflightLevel::Missing);
    assert_eq!(level(&items, "ACL users"), PreflightLevel::Missing);
    assert_eq!(level(&items, "configuration"), PreflightLevel::Missing);
    let items = look(&user("blind")).await;
    assert_eq!(level(&items, "keys"), PreflightLevel::Stops);
    // The rights that the documentation names are enough for all.
    let words = "SETUSER fettler on >pass1 allkeys +psync +replconf +ping +info +select +time +client|setname +client|list +client|kill +config|get +function|list +acl|list +acl|whoami +acl|dryrun +command|info";
    cmd("ACL")
        .arg(words.split(' ').collect::<Vec<_>>())
        .exec(&mut admin)
        .unwrap();
    fill(&mut admin);
    let items = look(&user("fettler")).await;
    assert_eq!(level(&items, "keys"), PreflightLevel::Fine);
    let (backup, report) = back_up(&user("fettler")).await;
    assert_eq!(report.warnings, []);
    assert_eq!(prove(&backup, &report).await, Vec::<String>::new());
}

/// The rights that the documentation names are enough: to read one by one, and to restore.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_documented_rights_are_enough() {
    const BOTH: &str = "SETUSER fettler on >pass1 allkeys +ping +info +select +time +client|setname +client|list +client|kill +config|get +function|list +acl|list";
    let set = |server: &RedisServer, more: &str| {
        let words = format!("{BOTH} {more}");
        cmd("ACL")
            .arg(words.split(' ').collect::<Vec<_>>())
            .exec(&mut client(&server.url()))
            .unwrap();
        format!("redis://fettler:pass1@127.0.0.1:{}", server.port())
    };
    let (source, copy) = (server(), server());
    fill(&mut client(&source.url()));
    let reader = set(
        &source,
        "+scan +dump +pttl +pexpiretime +memory|usage +dbsize",
    );
    let (backup, report) = back_up(&reader).await;
    assert_eq!(report.position["method"], "scan");
    let writer = set(
        &copy,
        "+restore +flushdb +dbsize +scan +unlink +rename +append +rpush +sadd +zadd +hset +pexpireat +exists +get +set +function|load",
    );
    for overwrite in [false, true] {
        let options = RestoreOptions {
            overwrite,
            ..RestoreOptions::default()
        };
        let restored = try_restore(&backup, &report, &writer, &options)
            .await
            .unwrap();
        assert_eq!(restored.failed_statements, Vec::<String>::new());
    }
    assert_eq!(
        mismatches(&report.objects, &facts(&report, &copy.url()).await),
        Vec::<String>::new()
    );
}
