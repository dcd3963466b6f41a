//! Identities. Every id is a type of its own, so that a job's id cannot be given where a backup's is
//! wanted. Ids that Fettler makes are UUIDs of version 7, so that they sort by the time of making.

use std::{fmt, str::FromStr};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use uuid::Uuid;

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
        )]
        #[serde(transparent)]
        pub struct $name(Uuid);

        impl $name {
            /// Makes a new id that sorts after those made before it.
            #[must_use]
            #[allow(clippy::new_without_default)]
            pub fn new() -> Self {
                Self(Uuid::now_v7())
            }

            /// The id with exactly these bits.
            #[must_use]
            pub const fn from_uuid(uuid: Uuid) -> Self {
                Self(uuid)
            }

            /// The bits of the id.
            #[must_use]
            pub const fn uuid(self) -> Uuid {
                self.0
            }

            /// The last eight hexadecimal digits, which are random: enough to name an id on a screen.
            #[must_use]
            pub fn short(self) -> String {
                let text = self.0.simple().to_string();
                text[text.len() - 8..].to_owned()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), self.0)
            }
        }

        impl FromStr for $name {
            type Err = uuid::Error;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                Uuid::from_str(text).map(Self)
            }
        }
    };
}

uuid_id! {
    /// A job: one request for one piece of work.
    JobId
}
uuid_id! {
    /// A record of a database that Fettler looks after.
    DatabaseId
}
uuid_id! {
    /// A policy: what is to be done, to which databases, when.
    PolicyId
}
uuid_id! {
    /// A backup. It has the bits of the job that made it (rule 22), so that an attempt that is
    /// repeated commits the same backup.
    BackupId
}

uuid_id! {
    /// A token of the HTTP interface. It is no secret: what opens anything is the token's own text.
    TokenId
}

impl BackupId {
    /// The id of the backup that this job makes.
    #[must_use]
    pub const fn of_job(job: JobId) -> Self {
        Self(job.0)
    }

    /// The job that made this backup.
    #[must_use]
    pub const fn job(self) -> JobId {
        JobId(self.0)
    }
}

/// Why a name was refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "{what} {name:?} is not a valid name: use 1 to 63 lower-case letters, digits, `-`, `_` or `.`, beginning with a letter or a digit"
)]
pub struct InvalidName {
    what: &'static str,
    name: String,
}

macro_rules! name_id {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(
            Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
        )]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = InvalidName;

            fn from_str(text: &str) -> Result<Self, InvalidName> {
                let begins_well = text
                    .bytes()
                    .next()
                    .is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
                let rest_is_well = text.bytes().all(|b| {
                    b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_' | b'.')
                });
                if begins_well && rest_is_well && text.len() <= 63 {
                    Ok(Self(text.to_owned()))
                } else {
                    Err(InvalidName { what: $what, name: text.to_owned() })
                }
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidName;

            fn try_from(text: String) -> Result<Self, InvalidName> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), self.0)
            }
        }
    };
}

name_id! {
    /// A tenant. Everything belongs to exactly one (P6).
    TenantId, "tenant"
}
name_id! {
    /// The name of a database within its tenant.
    DatabaseName, "database"
}
name_id! {
    /// The name of a policy within its tenant.
    PolicyName, "policy"
}
name_id! {
    /// The name of a job kind, such as `backup`.
    JobKindName, "job kind"
}
name_id! {
    /// The name of a token of the HTTP interface, unique within its tenant.
    TokenName, "token"
}

impl TenantId {
    /// The tenant of an installation that has one only.
    #[must_use]
    pub fn default_tenant() -> Self {
        Self("default".to_owned())
    }
}

/// The fencing token of an attempt (P2, rule 2). A newer attempt of a job has a greater one, and the
/// random part keeps a ledger that was restored from a backup from handing out an old one again.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct AttemptToken(i64);

impl AttemptToken {
    /// The token of the attempt with this number (from 1) and these random bits.
    #[must_use]
    pub const fn new(attempt_number: u32, random: u32) -> Self {
        Self(((attempt_number as i64) << 32) | random as i64)
    }

    /// The token as the ledger stores it.
    #[must_use]
    pub const fn value(self) -> i64 {
        self.0
    }

    /// The token that the ledger stored as this number.
    #[must_use]
    pub const fn from_value(value: i64) -> Self {
        Self(value)
    }

    /// Which attempt of its job this is, from 1.
    #[must_use]
    pub const fn attempt_number(self) -> u32 {
        (self.0 >> 32) as u32
    }
}

impl fmt::Display for AttemptToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}", self.0)
    }
}

impl fmt::Debug for AttemptToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AttemptToken({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_later_attempt_has_a_greater_token_whatever_the_random_part() {
        assert!(AttemptToken::new(2, 0) > AttemptToken::new(1, u32::MAX));
        assert_eq!(AttemptToken::new(7, u32::MAX).attempt_number(), 7);
    }

    #[test]
    fn names_refuse_what_would_break_a_path_or_a_shell() {
        for bad in ["", "Shop", "a/b", "-x", "a b", &"x".repeat(64)] {
            assert!(bad.parse::<TenantId>().is_err(), "{bad:?}");
        }
        assert!("shop-2_eu.west".parse::<TenantId>().is_ok());
    }
}
