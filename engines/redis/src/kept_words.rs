//! Words of questions by which an audit keeps how a server is, to see later what has changed. Each gives one line: `items`, names with
//! how they are, and `items_seen`, their number.
//!
//! - `KEPT USERS` (`ACL LIST`): a user's rules, with the number of its passwords, and no hash of one;
//! - `KEPT SETTINGS` (`CONFIG GET *`): without those that a failover changes; of passwords whether they are set;
//! - `KEPT MODULES` (`MODULE LIST`): versions.

use std::collections::BTreeMap;

use fettler_engine::{Row, line_of_items};
use redis::FromRedisValue as _;
use serde_json::Value;

use crate::{
    ask::{Failed, unread},
    audit_words::{modules as listed, told},
    connect::Session,
};

/// Which server is whose replica is changed by every failover, and is no matter of an audit.
const BY_FAILOVER: [&str; 2] = ["replicaof", "slaveof"];

/// `KEPT USERS`.
pub(crate) async fn users(session: &mut Session) -> Result<Vec<Row>, Failed> {
    let lines = told(session, &["ACL", "LIST"]).await?;
    let lines = Vec::<String>::from_redis_value(lines).map_err(|error| unread(&error))?;
    Ok(line_of_items(
        &lines.iter().filter_map(|line| user_of(line)).collect(),
    ))
}

/// `user alice on #5e88… ~* +get`: what is behind the name, the hashes counted.
fn user_of(line: &str) -> Option<(String, String)> {
    let mut words = line.split(' ').skip(1);
    let name = words.next()?;
    let (passwords, rules): (Vec<&str>, Vec<&str>) = words.partition(|word| word.starts_with('#'));
    let mut state = rules.join(" ");
    if !passwords.is_empty() {
        state.push_str(&format!(", passwords: {}", passwords.len()));
    }
    Some((format!("user {name}"), state))
}

/// `KEPT SETTINGS`.
pub(crate) async fn settings(session: &mut Session) -> Result<Vec<Row>, Failed> {
    let pairs = told(session, &["CONFIG", "GET", "*"]).await?;
    let pairs =
        BTreeMap::<String, String>::from_redis_value(pairs).map_err(|error| unread(&error))?;
    let all = pairs.into_iter().filter_map(setting_of);
    Ok(line_of_items(&all.collect()))
}

fn setting_of((name, value): (String, String)) -> Option<(String, String)> {
    if BY_FAILOVER.contains(&name.as_str()) {
        return None;
    }
    let is_secret = name.contains("pass") || name == "masterauth";
    let state = match (is_secret, value.is_empty()) {
        (true, true) => "not set".to_owned(),
        (true, false) => "set".to_owned(),
        _ => value,
    };
    Some((format!("setting {name}"), state))
}

/// `KEPT MODULES`.
pub(crate) async fn modules(session: &mut Session) -> Result<Vec<Row>, Failed> {
    let text = |row: &Row, name: &str| match row.get(name) {
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
        None => String::new(),
    };
    let modules = listed(session).await?;
    let all = modules.iter().map(|row| {
        let version = format!("version {}", text(row, "ver"));
        (format!("module {}", text(row, "name")), version)
    });
    Ok(line_of_items(&all.collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_kept_with_its_rules_and_without_its_hashes() {
        let (name, state) = user_of("user app on #5e88 #9f86 ~app:* +@read").unwrap();
        assert_eq!(name, "user app");
        assert_eq!(state, "on ~app:* +@read, passwords: 2");
        assert_eq!(
            user_of("user default on nopass ~* +@all").unwrap().1,
            "on nopass ~* +@all"
        );
    }

    #[test]
    fn of_a_password_it_is_kept_whether_it_is_set() {
        let kept = |name: &str, value: &str| setting_of((name.to_owned(), value.to_owned()));
        assert_eq!(kept("requirepass", "s3cret").unwrap().1, "set");
        assert_eq!(kept("masterauth", "").unwrap().1, "not set");
        assert_eq!(kept("maxmemory", "0").unwrap().1, "0");
        assert_eq!(kept("replicaof", "10.0.0.1 6379"), None);
    }
}
