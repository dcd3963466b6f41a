//! The audit of Redis on real servers: each check of users, logins, network and settings fires for its fault, and a fresh server
//! is told what an expert would tell it.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

mod common;

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::TcpStream,
};

use common::{Audited, audited};
use fettler_checks::{Library, Releases, Source, Verdict};
use fettler_model::{Engine, Severity};
use fettler_test_servers::{RedisOptions, RedisServer};

/// What a fresh server of 7.0 is told: it takes commands from the whole machine, and its line is not cared for.
const FRESH: [&str; 2] = ["redis.anonymous_let_in", "redis.end_of_life"];

/// Sends lines and gives back the first line of each answer.
fn tell(server: &RedisServer, commands: &[&str]) -> Vec<String> {
    let stream = TcpStream::connect(("127.0.0.1", server.port())).unwrap();
    let mut reader = BufReader::new(stream);
    let mut answers = Vec::new();
    for command in commands {
        reader
            .get_mut()
            .write_all(format!("{command}\r\n").as_bytes())
            .unwrap();
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        answers.push(line);
    }
    answers
}

fn done(server: &RedisServer, commands: &[&str]) {
    for (answer, command) in tell(server, commands).iter().zip(commands) {
        assert!(!answer.starts_with('-'), "{command}: {answer}");
    }
}

fn asked(server: &RedisServer) -> Audited {
    audited(&server.url(), None, &Releases::shipped())
}

/// What is open beside what a fresh server is told.
fn more(server: &RedisServer) -> Vec<String> {
    let mut keys = asked(server).keys();
    keys.retain(|key| !FRESH.contains(&key.as_str()));
    keys
}

#[test]
fn a_fresh_server_gives_an_audit_that_an_expert_would_sign() {
    let server = RedisServer::start(RedisOptions::new()).unwrap();
    let audited = asked(&server);
    assert_eq!(audited.keys(), FRESH);
    // Of vulnerabilities of a line that nobody looks at, nothing is known, and that is no pass.
    let not_made = audited.not_made();
    let names: Vec<&str> = not_made.iter().map(|(check, _)| check.as_str()).collect();
    assert_eq!(names, ["redis.known_vulnerability"], "{not_made:?}");
    assert!(audited.judged.lines.len() >= 20);
    assert!(
        !audited
            .judged
            .lines
            .iter()
            .any(|line| line.verdict == Verdict::NotApplicable)
    );
}

#[test]
fn at_most_a_third_of_the_checks_ask_for_settings_alone() {
    let library = Library::shipped();
    let checks = library.of_audit(Engine::Redis);
    let settings = checks
        .iter()
        .filter(|check| check.source == Source::Server)
        .filter(|check| {
            check.variants.iter().all(|variant| {
                let question = variant.question.trim();
                // `NETWORK` reads settings too, beside what was reached and tried.
                question.starts_with("CONFIG GET") || question == "NETWORK"
            })
        })
        .count();
    assert!(checks.len() >= 20, "{}", checks.len());
    assert!(
        settings * 3 <= checks.len(),
        "{settings} of {}",
        checks.len()
    );
}

#[test]
fn who_may_not_ask_passes_nothing_that_was_not_seen() {
    let server = RedisServer::start(RedisOptions::new()).unwrap();
    done(
        &server,
        &["ACL SETUSER poor on >aTOy7Xq +ping +info +client"],
    );
    let url = server.url().replace("redis://", "redis://poor:aTOy7Xq@");
    let audited = audited(&url, None, &Releases::shipped());
    let passed: Vec<&str> = audited
        .judged
        .lines
        .iter()
        .filter(|line| line.verdict == Verdict::Passed)
        .map(|line| line.check.as_str())
        .collect();
    assert_eq!(passed, ["redis.default_user_from_afar"]);
    assert_eq!(audited.keys(), FRESH);
}

#[test]
fn each_check_of_users_fires_and_is_gone_again() {
    let server = RedisServer::start(RedisOptions::new()).unwrap();
    // A user of its own, beside a default user who may do everything.
    done(
        &server,
        &["ACL SETUSER app on >dLw83hGq2 ~app:* +@all -@admin -@dangerous"],
    );
    const BESIDE: &str = "redis.default_user_beside_others";
    assert_eq!(more(&server), [BESIDE]);
    for (rule, back, wanted) in [
        ("+config|set", "-config|set", "redis.users_configure:app"),
        (
            "+module|load",
            "-module|load",
            "redis.users_load_modules:app",
        ),
        ("+debug", "-debug", "redis.users_debug:app"),
        (
            "+acl|setuser",
            "-acl|setuser",
            "redis.users_change_users:app",
        ),
        ("+monitor", "-monitor", "redis.users_watch:app"),
        ("+replicaof", "-replicaof", "redis.users_replicate:app"),
        ("+shutdown", "-shutdown", "redis.users_stop:app"),
        ("+flushall", "-flushall", "redis.users_empty:app"),
        ("+migrate", "-migrate", "redis.users_send_away:app"),
        (
            "nopass",
            "resetpass >dLw83hGq2",
            "redis.users_without_password:app",
        ),
        (">app123", "<app123", "redis.passwords_guessed:app"),
    ] {
        done(&server, &[&format!("ACL SETUSER app {rule}")]);
        let found = more(&server);
        assert!(found.contains(&wanted.to_owned()), "{rule}: {found:?}");
        if wanted != "redis.passwords_guessed:app" {
            assert_eq!(found, [BESIDE, wanted], "{rule}");
        } else {
            assert_eq!(found, [BESIDE, wanted, "redis.passwords_several:app"]);
        }
        done(&server, &[&format!("ACL SETUSER app {back}")]);
        assert_eq!(more(&server), [BESIDE], "{back}");
    }
    done(&server, &["ACL SETUSER twin on >dLw83hGq2 +ping"]);
    assert_eq!(
        more(&server),
        [
            BESIDE,
            "redis.passwords_shared:app",
            "redis.passwords_shared:twin"
        ]
    );
    done(&server, &["ACL DELUSER twin", "ACL SETUSER app ~* +@all"]);
    assert_eq!(more(&server), [BESIDE, "redis.users_almighty:app"]);
    done(&server, &["ACL DELUSER app"]);
    assert_eq!(more(&server), [""; 0]);
}

#[test]
fn who_has_a_login_is_not_told_that_there_is_none() {
    let server = RedisServer::start(RedisOptions::new().password("k2Jq8sVv0x")).unwrap();
    assert_eq!(asked(&server).keys(), ["redis.end_of_life"]);
}

#[test]
fn refused_logins_and_commands_are_told() {
    let server = RedisServer::start(RedisOptions::new()).unwrap();
    for _ in 0..3 {
        tell(&server, &["AUTH ghost wrong"]);
    }
    assert_eq!(more(&server), [""; 0]);
    tell(&server, &["AUTH ghost wrong"; 12]);
    assert_eq!(more(&server), ["redis.logins_refused:ghost"]);
    done(
        &server,
        &["ACL LOG RESET", "ACL SETUSER app on >dLw83hGq2 +ping"],
    );
    let mut refused = vec!["AUTH app dLw83hGq2"];
    refused.extend(["GET key"; 12]);
    tell(&server, &refused);
    assert_eq!(
        more(&server),
        [
            "redis.commands_refused:app: get",
            "redis.default_user_beside_others"
        ]
    );
}

#[test]
fn settings_that_open_the_server_are_told() {
    for (name, value, wanted) in [
        ("enable-debug-command", "yes", "redis.debug_command_on"),
        ("enable-module-command", "yes", "redis.module_command_on"),
        (
            "enable-protected-configs",
            "yes",
            "redis.protected_settings_on",
        ),
        ("protected-mode", "no", "redis.protected_mode_off"),
        ("unixsocketperm", "777", "redis.socket_open"),
    ] {
        let server = RedisServer::start(RedisOptions::new().setting(name, value)).unwrap();
        assert_eq!(more(&server), [wanted], "{name}");
    }
    let server = RedisServer::start(RedisOptions::new()).unwrap();
    done(&server, &["CONFIG SET bind *"]);
    assert_eq!(more(&server), ["redis.listens_everywhere", "redis.tls_off"]);
}

/// What was changed since the server was last looked at, and what changes by itself.
#[test]
fn drift_of_users_and_settings_is_found_and_work_is_none() {
    let server = RedisServer::start(RedisOptions::new()).unwrap();
    done(&server, &["ACL SETUSER old on >dLw83hGq2 ~old:* +@read"]);
    let before = asked(&server).snapshot;
    assert_eq!(before.sections.len(), 3, "{before:#?}");
    done(&server, &["SET a 1", "EXPIRE a 100", "BGREWRITEAOF"]);
    assert_eq!(asked(&server).snapshot.changes_since(&before), []);
    done(
        &server,
        &[
            "ACL SETUSER old >another7Hgq",
            "ACL SETUSER new on >dLw83hGq2 ~* +@all",
            "CONFIG SET maxclients 777",
            "CONFIG SET masterauth s3cretOfRedis",
        ],
    );
    let after = asked(&server).snapshot;
    let told = after.judged(&before);
    let mut keys: Vec<(&str, Severity)> = told
        .findings
        .iter()
        .map(|one| (one.key.as_str(), one.severity))
        .collect();
    keys.sort();
    assert_eq!(
        keys,
        [
            ("redis.drift_roles:user new", Severity::High),
            ("redis.drift_roles:user old", Severity::Medium),
            ("redis.drift_settings:setting masterauth", Severity::Low),
            ("redis.drift_settings:setting maxclients", Severity::Low),
        ]
    );
    // Neither a password nor a hash of one.
    let text = format!("{after:?}");
    assert!(
        !text.contains("s3cretOfRedis") && !text.contains('#'),
        "{text}"
    );
}

#[test]
fn what_a_user_may_not_see_is_no_drift() {
    let server = RedisServer::start(RedisOptions::new()).unwrap();
    let seen = asked(&server).snapshot;
    done(
        &server,
        &["ACL SETUSER little on >little1 +ping +info +client +auth"],
    );
    let url = server.url().replace("redis://", "redis://little:little1@");
    let hidden = audited(&url, None, &Releases::shipped()).snapshot;
    let told = hidden.judged(&seen);
    assert_eq!(hidden.changes_since(&seen), []);
    assert!(told.conclusive.is_empty(), "{told:?}");
    assert_eq!(told.lines.len(), 3);
    assert!(
        told.lines
            .iter()
            .all(|line| line.verdict == Verdict::NotEvaluable),
        "{told:?}"
    );
}
