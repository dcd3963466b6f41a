//! What a user needs on a Redis server. The remedies of the preflight are the same text.

use std::{collections::BTreeSet, sync::LazyLock};

use fettler_engine::{EngineError, Grant, GrantRequest, Grants, PASSWORD_PLACEHOLDER, Purpose};

/// What every session of Fettler asks.
const EVERYBODY: [&str; 5] = ["+ping", "+info", "+select", "+time", "+client|setname"];
/// What a backup does as a replica.
const BACKUP: [&str; 10] = [
    "+psync",
    "+replconf",
    "+client|list",
    "+client|kill",
    "+config|get",
    "+function|list",
    "+acl|list",
    "+acl|whoami",
    "+acl|dryrun",
    "+command|info",
];
/// What a backup does where no replica is allowed: key by key, which is no one moment.
const KEY_BY_KEY: [&str; 6] = [
    "+scan",
    "+dump",
    "+pttl",
    "+pexpiretime",
    "+memory|usage",
    "+dbsize",
];
/// What puts keys and functions back.
const RESTORE: [&str; 21] = [
    "+client|list",
    "+client|kill",
    "+function|list",
    "+function|load",
    "+restore",
    "+flushdb",
    "+dbsize",
    "+scan",
    "+unlink",
    "+rename",
    "+append",
    "+rpush",
    "+sadd",
    "+zadd",
    "+hset",
    "+pexpireat",
    "+exists",
    "+get",
    "+set",
    "+xadd",
    "+xgroup",
];
/// What reads a copy to compare it.
const COMPARE: [&str; 5] = [
    "+@read",
    "+dump",
    "+memory|usage",
    "+dbsize",
    "+function|list",
];
/// What health checks ask.
const HEALTH: [&str; 3] = ["+config|get", "+slowlog|len", "+latency|latest"];

/// What audits ask beside it: who may do what.
const AUDIT: [&str; 4] = ["+acl|list", "+acl|log", "+module|list", "+client|list"];

/// What finding keys without an end, archiving, removing and putting them back takes. A script may do what its user may.
const CLEANUP: [&str; 13] = [
    "+time",
    "+select",
    "+scan",
    "+pttl",
    "+object",
    "+memory|usage",
    "+dump",
    "+eval",
    "+unlink",
    "+pexpire",
    "+persist",
    "+exists",
    "+restore",
];

/// What a user for backups is given, for messages.
pub(crate) static FOR_BACKUPS: LazyLock<String> =
    LazyLock::new(|| rules("fettler", &[Purpose::Backup]));

/// The command that makes the user.
fn rules(role: &str, purposes: &[Purpose]) -> String {
    let has = |purpose| purposes.contains(&purpose);
    let mut seen = BTreeSet::new();
    let of = |wanted: bool, rules: &'static [&'static str]| {
        rules.iter().filter(move |_| wanted).copied()
    };
    let rules: Vec<&str> = of(true, &EVERYBODY)
        .chain(of(has(Purpose::Backup), &BACKUP))
        .chain(of(has(Purpose::Restore) || has(Purpose::Prove), &RESTORE))
        .chain(of(has(Purpose::Prove), &COMPARE))
        .chain(of(has(Purpose::Health) || has(Purpose::Audit), &HEALTH))
        .chain(of(has(Purpose::Audit), &AUDIT))
        .chain(of(has(Purpose::Cleanup), &CLEANUP))
        .filter(|rule| seen.insert(*rule))
        .collect();
    let keys = if purposes
        .iter()
        .all(|one| matches!(one, Purpose::Health | Purpose::Audit))
    {
        "resetkeys"
    } else {
        "allkeys"
    };
    format!(
        "ACL SETUSER {role} on >{PASSWORD_PLACEHOLDER} {keys} {}",
        rules.join(" ")
    )
}

/// What a user needs.
pub(crate) fn grants(request: &GrantRequest<'_>) -> Result<Grants, EngineError> {
    let role = request.role;
    let is_plain = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'"' | b'\'' | b'\\');
    if role.is_empty() || !role.bytes().all(is_plain) {
        return Err(request.invalid_role("it has no blanks, quotes and backslashes"));
    }
    let purposes: Vec<&str> = request
        .purposes
        .iter()
        .map(|purpose| purpose.as_str())
        .collect();
    let mut notes = vec![
        format!(
            "put the user's own password in the stead of {PASSWORD_PLACEHOLDER}; `ACL SAVE`, or `CONFIG REWRITE` where there is no aclfile, keeps the user over a restart"
        ),
        "users are there from Redis 6 on; before, the password of the server (`requirepass`) opens everything".to_owned(),
    ];
    if request.is_for(Purpose::Backup) {
        notes.push(format!(
            "where the server takes no replicas (managed servers), add {}: keys are then read one by one, which is not one moment",
            KEY_BY_KEY.join(" ")
        ));
    }
    if request.is_for(Purpose::Restore) {
        notes.push(
            "from Redis 7.4 on add +hpexpireat, for fields that expire; to restore to a moment add +replicaof +config|set; to restore users (`--only acl`) +acl|setuser, which is every right".to_owned(),
        );
    }
    if request.is_for(Purpose::Cleanup) {
        notes.push(
            "cleanup: from Redis 7.2 on add +client|no-touch, so that looking at a key does not count as a use of it".to_owned(),
        );
    }
    Ok(Grants {
        language: "redis-cli",
        comment: None,
        statements: vec![Grant::new(
            purposes.join(", "),
            rules(role, request.purposes),
        )],
        notes,
    })
}

#[cfg(test)]
mod tests {
    use fettler_model::DatabaseUrl;

    use super::*;

    fn of(role: &str, purposes: &[Purpose]) -> Result<Grants, EngineError> {
        let (url, _) = DatabaseUrl::parse_with_password("redis://:hunter2@h").unwrap();
        grants(&GrantRequest {
            url: &url,
            role,
            purposes,
        })
    }

    #[test]
    fn a_user_for_backups_changes_nothing_and_the_remedy_is_the_same_text() {
        let grants = of("fettler", &[Purpose::Backup]).unwrap();
        let text = grants.to_text();
        assert_eq!(text.trim_end(), *FOR_BACKUPS);
        assert!(text.starts_with("ACL SETUSER fettler on >PASSWORD allkeys +ping "));
        assert!(!text.contains("+set ") && !text.contains("hunter2"));
    }

    #[test]
    fn rules_of_several_purposes_come_once() {
        let text = of("x", &Purpose::ALL).unwrap().to_text();
        assert_eq!(text.matches("+client|list").count(), 1);
        assert!(
            text.contains("+psync") && text.contains("+restore") && text.contains("+slowlog|len")
        );
        assert!(
            of("x", &[Purpose::Health])
                .unwrap()
                .to_text()
                .contains("resetkeys")
        );
    }

    #[test]
    fn a_name_that_would_be_two_words_is_refused() {
        for role in ["", "a b", "a\"b", "a\nb"] {
            assert!(of(role, &[Purpose::Backup]).is_err(), "{role:?}");
        }
    }
}
