//! Words of questions that an audit asks, each of which gives a line for each thing:
//!
//! - `USERS` (`ACL LIST`): what a user's rules let it do, and what is known of its passwords. Hashes are compared here with
//!   those of passwords that everybody tries first, and are in no line;
//! - `ACL LOG`: logins and commands that were refused;
//! - `MODULES` (`MODULE LIST`) and `CLIENTS` (`CLIENT LIST`);
//! - `NETWORK`: where the server listens, whether this session is encrypted, and whether the port without TLS answers;
//! - `ANONYMOUS`: what a connection without a login is let do. It is tried.

use std::{collections::BTreeMap, net::IpAddr};

use aws_lc_rs::digest::{SHA256, digest};
use fettler_engine::{Row, is_public};
use redis::{FromRedisValue, Value as RedisValue, cmd};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::{
    ask::{Failed, text_of, unanswered, unread},
    connect::{Session, reach},
    params::{Params, Place},
};

/// Commands that are more than a user's daily work, with their categories (Redis documentation: ACL, and COMMAND INFO).
const POWERS: [(&str, &str, &str, &[&str]); 9] = [
    ("may_configure", "config", "set", ADMIN),
    ("may_load_modules", "module", "load", ADMIN),
    ("may_debug", "debug", "", ADMIN),
    ("may_change_users", "acl", "setuser", ADMIN),
    ("may_replicate", "replicaof", "", ADMIN),
    ("may_watch", "monitor", "", ADMIN),
    ("may_stop", "shutdown", "", ADMIN),
    (
        "may_empty",
        "flushall",
        "",
        &["keyspace", "write", "slow", "dangerous"],
    ),
    (
        "may_send_away",
        "migrate",
        "",
        &["keyspace", "write", "slow", "dangerous"],
    ),
];
const ADMIN: &[&str] = &["admin", "slow", "dangerous"];

/// Passwords that are tried first, beside the user's name and variants of it.
const GUESSES: [&str; 16] = [
    "",
    "password",
    "Password1",
    "passw0rd",
    "redis",
    "foobared",
    "123456",
    "12345678",
    "1234",
    "admin",
    "root",
    "secret",
    "changeme",
    "test",
    "qwerty",
    "default",
];

pub(crate) async fn told(session: &mut Session, words: &[&str]) -> Result<RedisValue, Failed> {
    let mut command = cmd(words[0]);
    for word in &words[1..] {
        command.arg(*word);
    }
    session
        .try_ask(&command)
        .await?
        .map_err(|refusal| Failed::Refused(unanswered(&refusal)))
}

/// `USERS`.
pub(crate) async fn users(session: &mut Session) -> Result<Vec<Row>, Failed> {
    let lines: Vec<String> =
        FromRedisValue::from_redis_value(told(session, &["ACL", "LIST"]).await?)
            .map_err(|error| unread(&error))?;
    Ok(users_of(&lines))
}

fn users_of(lines: &[String]) -> Vec<Row> {
    let users: Vec<(&str, Vec<&str>)> = lines
        .iter()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            (words.next()? == "user").then_some(())?;
            Some((words.next()?, words.collect()))
        })
        .collect();
    let is_on = |rules: &[&str]| rules.contains(&"on");
    let hashes = |rules: &[&str]| -> Vec<String> {
        let hashes = rules.iter().filter_map(|rule| rule.strip_prefix('#'));
        hashes.map(ToOwned::to_owned).collect()
    };
    let mut owners: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for (user, rules) in users.iter().filter(|(_, rules)| is_on(rules)) {
        for hash in hashes(rules) {
            owners.entry(hash).or_default().push(user);
        }
    }
    let almighty = |rules: &[&str]| may_all(rules) && has_all_keys(rules);
    let enabled: Vec<_> = users.iter().filter(|(_, rules)| is_on(rules)).collect();
    let almighty_users = enabled.iter().filter(|(_, rules)| almighty(rules)).count();
    users
        .iter()
        .map(|(user, rules)| {
            let hashes = hashes(rules);
            let shared: Vec<&str> = hashes
                .iter()
                .filter_map(|hash| owners.get(hash))
                .flatten()
                .copied()
                .filter(|other| other != user)
                .collect();
            let mut row = Row::from_iter([
                ("user".to_owned(), json!(user)),
                ("is_on".to_owned(), json!(is_on(rules))),
                ("nopass".to_owned(), json!(rules.contains(&"nopass"))),
                ("passwords".to_owned(), json!(hashes.len())),
                (
                    "password_is_guessed".to_owned(),
                    json!(hashes.iter().any(|hash| is_guessed(user, hash))),
                ),
                ("shared_with".to_owned(), json!(shared.join(", "))),
                ("all_keys".to_owned(), json!(has_all_keys(rules))),
                ("is_almighty".to_owned(), json!(almighty(rules))),
                ("almighty_users".to_owned(), json!(almighty_users)),
                (
                    "other_users".to_owned(),
                    json!(enabled.iter().filter(|(other, _)| other != user).count()),
                ),
            ]);
            for (name, command, part, categories) in POWERS {
                let may = may(rules, command, part, categories);
                row.insert(name.to_owned(), json!(may));
            }
            row
        })
        .collect()
}

fn is_guessed(user: &str, hash: &str) -> bool {
    let own = [
        user.to_owned(),
        format!("{user}1"),
        format!("{user}123"),
        user.chars().rev().collect(),
    ];
    own.iter()
        .map(String::as_str)
        .chain(GUESSES)
        .any(|guess| hex::encode(digest(&SHA256, guess.as_bytes())) == hash)
}

fn has_all_keys(rules: &[&str]) -> bool {
    rules
        .iter()
        .any(|rule| matches!(rule.trim_matches(['(', ')']), "~*" | "allkeys" | "%RW~*"))
}

/// A user's own rules, and those of each of its selectors: what one of them allows is allowed.
fn parts<'a>(rules: &[&'a str]) -> Vec<Vec<&'a str>> {
    let mut parts: Vec<Vec<&str>> = vec![Vec::new()];
    let mut inside = false;
    for rule in rules {
        if rule.starts_with('(') {
            parts.push(Vec::new());
            inside = true;
        }
        let at = if inside { parts.len() - 1 } else { 0 };
        parts[at].push(rule.trim_matches(['(', ')']));
        if rule.ends_with(')') {
            inside = false;
        }
    }
    parts
}

/// Whether rules allow a command: the last one that concerns it decides.
fn may(rules: &[&str], command: &str, part: &str, categories: &[&str]) -> bool {
    parts(rules).iter().any(|rules| {
        rules.iter().fold(false, |before, rule| {
            let (allows, what) = match (*rule, rule.strip_prefix('+'), rule.strip_prefix('-')) {
                ("allcommands", ..) => return true,
                ("nocommands", ..) => return false,
                (_, Some(what), _) => (true, what),
                (_, _, Some(what)) => (false, what),
                _ => return before,
            };
            let what = what.to_ascii_lowercase();
            let concerns = match (what.strip_prefix('@'), what.split_once('|')) {
                (Some(category), _) => category == "all" || categories.contains(&category),
                (None, Some((first, second))) => first == command && second == part,
                (None, None) => what == command,
            };
            if concerns { allows } else { before }
        })
    })
}

/// Whether every command is allowed, with none taken away.
fn may_all(rules: &[&str]) -> bool {
    parts(rules).iter().any(|rules| {
        let from = rules
            .iter()
            .rposition(|rule| matches!(*rule, "+@all" | "allcommands"));
        from.is_some_and(|from| !rules[from..].iter().any(|rule| rule.starts_with('-')))
    })
}

/// Names and values, of a map or of a list of both in turn.
fn pairs(value: RedisValue) -> Result<BTreeMap<String, Value>, Failed> {
    let pairs: Vec<(String, RedisValue)> =
        FromRedisValue::from_redis_value(value).map_err(|error| unread(&error))?;
    Ok(pairs
        .into_iter()
        .map(|(name, value)| {
            let value = match value {
                RedisValue::Int(number) => json!(number),
                RedisValue::Double(number) => json!(number),
                other => String::from_redis_value(other).map_or(Value::Null, |text| json!(text)),
            };
            (name.replace('-', "_"), value)
        })
        .collect())
}

fn list(value: RedisValue) -> Result<Vec<RedisValue>, Failed> {
    match value {
        RedisValue::Array(items) => Ok(items),
        _ => Err(unread(&"it is no list")),
    }
}

/// `ACL LOG`: the newest 128 entries.
pub(crate) async fn log(session: &mut Session) -> Result<Vec<Row>, Failed> {
    list(told(session, &["ACL", "LOG", "128"]).await?)?
        .into_iter()
        .map(|entry| {
            let mut row: Row = pairs(entry)?.into_iter().collect();
            // A name of one's own, not the addresses of those who were refused.
            row.remove("client_info");
            let age = match row.get("age_seconds") {
                Some(Value::String(text)) => text.parse::<f64>().ok(),
                Some(number) => number.as_f64(),
                None => None,
            };
            row.insert("age_seconds".to_owned(), json!(age));
            Ok(row)
        })
        .collect()
}

/// `MODULES`.
pub(crate) async fn modules(session: &mut Session) -> Result<Vec<Row>, Failed> {
    list(told(session, &["MODULE", "LIST"]).await?)?
        .into_iter()
        .map(|module| Ok(pairs(module)?.into_iter().collect()))
        .collect()
}

/// `CLIENTS`: who is connected, from where.
pub(crate) async fn clients(session: &mut Session) -> Result<Vec<Row>, Failed> {
    let text = text_of(told(session, &["CLIENT", "LIST"]).await?)?;
    Ok(clients_of(&text))
}

fn clients_of(text: &str) -> Vec<Row> {
    let mut sessions: BTreeMap<(String, String), u64> = BTreeMap::new();
    for line in text.lines() {
        let field = |name: &str| {
            line.split(' ')
                .find_map(|part| part.strip_prefix(name)?.strip_prefix('='))
        };
        if let (Some(user), Some(address)) = (field("user"), field("addr")) {
            let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
            *sessions
                .entry((user.to_owned(), host.trim_matches(['[', ']']).to_owned()))
                .or_default() += 1;
        }
    }
    sessions
        .into_iter()
        .map(|((user, host), count)| {
            Row::from_iter([
                ("is_remote".to_owned(), json!(is_remote(&host))),
                ("user".to_owned(), json!(user)),
                ("host".to_owned(), json!(host)),
                ("sessions".to_owned(), json!(count)),
            ])
        })
        .collect()
}

/// An address of another machine. A socket of this machine is none.
fn is_remote(host: &str) -> bool {
    host.parse().is_ok_and(fettler_engine::is_remote)
}

/// The host of `host:port`, without the brackets of an address of IPv6; empty where there is no port.
fn host_of(address: &str) -> &str {
    address
        .rsplit_once(':')
        .map_or("", |(host, _)| host.trim_matches(['[', ']']))
}

/// Whether one of the addresses that a server listens at is more than this machine's own.
fn is_on_network(bind: &str) -> bool {
    bind.split_whitespace()
        .map(|address| address.trim_start_matches('-'))
        .any(|address| address != "localhost" && (address == "*" || is_remote(address)))
        || bind.trim().is_empty()
}

/// `NETWORK`.
pub(crate) async fn network(params: &Params, session: &mut Session) -> Result<Vec<Row>, Failed> {
    let mut settings: BTreeMap<String, Value> = BTreeMap::new();
    for name in [
        "bind",
        "protected-mode",
        "port",
        "tls-port",
        "unixsocketperm",
    ] {
        settings.extend(pairs(told(session, &["CONFIG", "GET", name]).await?)?);
    }
    let text = |name: &str| settings.get(name).and_then(Value::as_str).unwrap_or("");
    let host = host_of(&session.address).to_owned();
    let port: u16 = text("port").parse().unwrap_or(0);
    let mut plain = false;
    if port != 0
        && params.tls.is_some()
        && let Ok(address) = host.parse::<IpAddr>()
    {
        let mut other = params.clone();
        other.tls = None;
        other.addresses = vec![address];
        other.place = Place::Tcp {
            host: host.clone(),
            port,
        };
        plain = said(&other, "PING").await.is_some();
    }
    Ok(vec![Row::from_iter([
        ("bind".to_owned(), json!(text("bind"))),
        (
            "is_on_network".to_owned(),
            json!(is_on_network(text("bind"))),
        ),
        (
            "listens_everywhere".to_owned(),
            json!(
                text("bind").trim().is_empty()
                    || text("bind").split_whitespace().any(|one| {
                        matches!(one.trim_start_matches('-'), "*" | "0.0.0.0" | "::" | "::*")
                    })
            ),
        ),
        (
            "protected_mode".to_owned(),
            json!(text("protected_mode") == "yes"),
        ),
        ("port".to_owned(), json!(port)),
        (
            "tls_port".to_owned(),
            json!(text("tls_port").parse::<u16>().unwrap_or(0)),
        ),
        ("socket_mode".to_owned(), json!(text("unixsocketperm"))),
        ("address".to_owned(), json!(host)),
        ("is_remote".to_owned(), json!(is_remote(&host))),
        (
            "is_public".to_owned(),
            json!(host.parse().is_ok_and(is_public)),
        ),
        ("is_encrypted".to_owned(), json!(params.tls.is_some())),
        ("plain_port_answers".to_owned(), json!(plain)),
    ])])
}

/// `ANONYMOUS`.
pub(crate) async fn anonymous(params: &Params, session: &Session) -> Result<Vec<Row>, Failed> {
    let mut other = params.clone();
    let host = host_of(&session.address);
    if let Ok(address) = host.parse() {
        other.addresses = vec![address];
    }
    let answer = said(&other, "DBSIZE").await.ok_or_else(|| {
        Failed::Refused(fettler_engine::Refusal::Failed(
            "a second connection without a login was not answered".to_owned(),
        ))
    })?;
    Ok(vec![Row::from_iter([
        ("is_let_in".to_owned(), json!(is_let_in(&answer))),
        ("is_remote".to_owned(), json!(is_remote(host))),
    ])])
}

/// Without a login a server answers `NOAUTH` or, in protected mode, `DENIED`; one who is in and may not count is refused by
/// `NOPERM`.
fn is_let_in(answer: &str) -> bool {
    answer.starts_with(':') || answer.starts_with("-NOPERM")
}

/// The first line that a server says to a command without a login; none where it says nothing.
async fn said(params: &Params, command: &str) -> Option<String> {
    const PATIENCE: std::time::Duration = std::time::Duration::from_secs(3);
    let talk = async {
        let (mut wire, _) = reach(params).await.ok()?;
        wire.write_all(format!("{command}\r\n").as_bytes())
            .await
            .ok()?;
        wire.flush().await.ok()?;
        let mut line = Vec::new();
        while !line.contains(&b'\n') && line.len() < 4096 {
            let mut bytes = [0; 512];
            let read = wire.read(&mut bytes).await.ok()?;
            if read == 0 {
                break;
            }
            line.extend_from_slice(&bytes[..read]);
        }
        let line = String::from_utf8_lossy(&line).trim_end().to_owned();
        // A server that speaks TLS only answers what is no Redis.
        line.starts_with(['+', '-', ':']).then_some(line)
    };
    tokio::time::timeout(PATIENCE, talk).await.ok()?
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(rules: &str) -> Row {
        users_of(&[format!("user one {rules}")]).remove(0)
    }

    #[test]
    fn the_last_rule_that_concerns_a_command_decides() {
        assert_eq!(user("on nopass ~* &* +@all")["is_almighty"], true);
        let safe = user("on #00 ~* &* +@all -@dangerous");
        assert_eq!(safe["is_almighty"], false);
        for (name, ..) in POWERS {
            assert_eq!(safe[name], false, "{name}");
        }
        let one = user("on #00 ~* +@all -@dangerous +config|set");
        assert_eq!(
            (&one["may_configure"], &one["may_debug"]),
            (&json!(true), &json!(false))
        );
        let get = user("on #00 ~* -@all +config|get +@read");
        assert_eq!(get["may_configure"], false);
        let selected = user("on #00 ~a -@all +get (~* -@all +flushall)");
        assert_eq!(selected["may_empty"], true);
        assert_eq!(selected["may_stop"], false);
    }

    #[test]
    fn passwords_are_compared_and_no_hash_is_told() {
        let hash = hex::encode(digest(&SHA256, b"foobared"));
        let rows = users_of(&[
            format!("user a on #{hash} ~* +@all"),
            format!("user b on #{hash} ~* +@read"),
            "user c off nopass ~* +@all".to_owned(),
        ]);
        assert_eq!(rows[0]["password_is_guessed"], true);
        assert_eq!(rows[0]["shared_with"], "b");
        assert_eq!(rows[2]["other_users"], 2);
        assert!(!json!(rows).to_string().contains(&hash));
    }

    #[test]
    fn addresses_are_told_apart() {
        assert!(
            is_on_network("0.0.0.0")
                && is_on_network("127.0.0.1 10.0.0.1")
                && is_on_network("* -::*")
        );
        assert!(!is_on_network("127.0.0.1 -::1"));
        let rows =
            clients_of("id=3 addr=10.0.0.9:5 name= user=default\nid=4 addr=127.0.0.1:6 user=app\n");
        assert_eq!(
            json!([rows[0]["user"], rows[0]["is_remote"]]),
            json!(["app", false])
        );
        assert_eq!(rows[1]["is_remote"], true);
        assert!(is_let_in(":0") && !is_let_in("-NOAUTH Authentication required."));
    }
}
