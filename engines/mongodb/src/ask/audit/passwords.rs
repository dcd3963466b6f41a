//! `PASSWORDS` gives a line for each user that logs in by one: with how many rounds it is kept, and whether it is one that everybody
//! tries first. What the server keeps is compared here; none of it is in a line.

use std::time::{Duration, Instant};

use bson::rawdoc;
use fettler_engine::Row;
use serde_json::{Value, json};

use super::{Asked, Failed, unread};
use crate::scram::{Hash, is_password};

/// How long guessing may take.
const GUESSING: Duration = Duration::from_secs(12);
/// Passwords that are tried first, beside the user's name and variants of it.
const GUESSES: [&str; 15] = [
    "password",
    "Password1",
    "passw0rd",
    "mongo",
    "mongodb",
    "123456",
    "12345678",
    "1234",
    "admin",
    "root",
    "secret",
    "changeme",
    "example",
    "test",
    "qwerty",
];

/// What a server keeps of a password.
struct Kept {
    user: String,
    name: String,
    hash: Hash,
    rounds: u32,
    salt: String,
    key: String,
}

impl Asked {
    /// `PASSWORDS`.
    pub(super) async fn passwords(&mut self) -> Result<Vec<Row>, Failed> {
        if self.is_overheard() {
            return Err(unread(
                "what it keeps of passwords is not asked for by a connection that is not encrypted",
            ));
        }
        let command = rawdoc! { "usersInfo": { "forAllDBs": true }, "showCredentials": true };
        let told = self.told_by("admin", command).await?;
        let kept = kept_in(&told).ok_or_else(|| unread("it does not list its users"))?;
        tokio::task::spawn_blocking(move || rows_of(&kept, Instant::now() + GUESSING))
            .await
            .map_err(|error| unread(error.to_string()))
    }
}

fn kept_in(told: &Value) -> Option<Vec<Kept>> {
    let mut all = Vec::new();
    for user in told["users"].as_array()? {
        let (Some(name), Some(database)) = (user["user"].as_str(), user["db"].as_str()) else {
            continue;
        };
        for hash in [Hash::Sha1, Hash::Sha256] {
            let one = &user["credentials"][hash.mechanism()];
            let rounds = one["iterationCount"].as_u64();
            if let (Some(rounds), Some(salt), Some(key)) = (
                rounds.and_then(|rounds| u32::try_from(rounds).ok()),
                one["salt"].as_str(),
                one["storedKey"].as_str(),
            ) {
                all.push(Kept {
                    user: format!("{name}@{database}"),
                    name: name.to_owned(),
                    hash,
                    rounds,
                    salt: salt.to_owned(),
                    key: key.to_owned(),
                });
            }
        }
    }
    Some(all)
}

fn rows_of(kept: &[Kept], until: Instant) -> Vec<Row> {
    let mut rows: Vec<Row> = Vec::new();
    for one in kept {
        let usual = match one.hash {
            Hash::Sha1 => 10_000,
            Hash::Sha256 => 15_000,
        };
        // Both are of one password: the first that is kept is guessed, and what it came to stands for the other.
        let known = rows.iter().find(|row| row["user"] == one.user);
        let is_guessed = match known {
            Some(row) => row["is_guessed"].as_bool(),
            None => is_guessed(one, until),
        };
        let mut row = Row::from_iter([
            ("user".to_owned(), json!(one.user)),
            ("mechanism".to_owned(), json!(one.hash.mechanism())),
            ("rounds".to_owned(), json!(one.rounds)),
            ("usual_rounds".to_owned(), json!(usual)),
            ("is_guessed".to_owned(), json!(is_guessed)),
        ]);
        if is_guessed.is_none() {
            // What was found of others counts all the same.
            let why = format!("there was no time to compare the password of {}", one.user);
            row.insert("not_evaluable".to_owned(), json!(why));
        }
        rows.push(row);
    }
    rows
}

/// Whether a password is one of those that everybody tries; none where there was no time to try all of them.
fn is_guessed(kept: &Kept, until: Instant) -> Option<bool> {
    let own = [
        kept.name.clone(),
        format!("{}1", kept.name),
        format!("{}123", kept.name),
        kept.name.chars().rev().collect(),
    ];
    for guess in own.iter().map(String::as_str).chain(GUESSES) {
        if Instant::now() > until {
            return None;
        }
        if is_password(
            kept.hash,
            &kept.name,
            guess,
            &kept.salt,
            kept.rounds,
            &kept.key,
        )? {
            return Some(true);
        }
    }
    Some(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The credentials of RFC 7677's example, in the form in which `usersInfo` tells them; its password is `pencil`.
    fn told(name: &str) -> Value {
        json!({"users": [{"user": name, "db": "admin", "credentials": {"SCRAM-SHA-256": {
            "iterationCount": 4096, "salt": "W22ZaJ0SNY7soEsUEjb6gQ==",
            "storedKey": "WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=",
            "serverKey": "wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=",
        }}}, {"user": "CN=ann", "db": "$external", "credentials": {"external": true}}]})
    }

    #[test]
    fn a_password_that_is_the_users_name_is_guessed_and_nothing_of_it_is_told() {
        let later = Instant::now() + Duration::from_secs(60);
        let rows = |name: &str, until: Instant| rows_of(&kept_in(&told(name)).unwrap(), until);
        let guessed = rows("pencil", later);
        assert_eq!(guessed.len(), 1);
        assert_eq!(guessed[0]["is_guessed"], true);
        assert_eq!(guessed[0]["rounds"], 4096);
        assert!(!json!(guessed).to_string().contains("WG5d8"));
        assert_eq!(rows("ann", later)[0]["is_guessed"], false);
        // Without time nothing is said of it.
        let before = Instant::now();
        assert!(rows("ann", before)[0].contains_key("not_evaluable"));
    }
}
