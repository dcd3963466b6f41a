//! What a limit counts and what a pause stops, under one name each: `tenant/acme`, `server/db1:5432`.

use std::{fmt, str::FromStr};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{DatabaseId, JobKindName, PolicyId, SlotClass, TenantId};

/// The jobs that a limit or a pause is about.
#[derive(
    Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String")]
pub enum Scope {
    /// All jobs.
    All,
    /// Those of a tenant.
    Tenant(TenantId),
    /// Those about a database.
    Database(DatabaseId),
    /// Those about any database of a server, as its URL names it: `host:port`.
    Server(String),
    /// Those of a kind.
    Kind(JobKindName),
    /// Those of a slot class.
    Class(SlotClass),
    /// Those that a policy made.
    Policy(PolicyId),
}

impl Scope {
    /// Whether a limit can count these jobs.
    #[must_use]
    pub const fn takes_limits(&self) -> bool {
        !matches!(self, Self::All | Self::Policy(_))
    }

    /// Whether these jobs can be paused.
    #[must_use]
    pub const fn takes_pauses(&self) -> bool {
        !matches!(self, Self::Server(_) | Self::Class(_))
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("all"),
            Self::Tenant(tenant) => write!(f, "tenant/{tenant}"),
            Self::Database(database) => write!(f, "database/{database}"),
            Self::Server(server) => write!(f, "server/{server}"),
            Self::Kind(kind) => write!(f, "kind/{kind}"),
            Self::Class(class) => write!(f, "class/{}", class.as_str()),
            Self::Policy(policy) => write!(f, "policy/{policy}"),
        }
    }
}

/// A text that names no scope.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "{0:?} names nothing that can be limited or paused: write `all`, or `tenant/`, `database/`, `server/`, `kind/`, `class/` or `policy/` and a name"
)]
pub struct InvalidScope(pub String);

impl FromStr for Scope {
    type Err = InvalidScope;

    fn from_str(text: &str) -> Result<Self, InvalidScope> {
        let invalid = || InvalidScope(text.to_owned());
        if text == "all" {
            return Ok(Self::All);
        }
        let (sort, name) = text.split_once('/').ok_or_else(invalid)?;
        Ok(match sort {
            "tenant" => Self::Tenant(name.parse().map_err(|_| invalid())?),
            "database" => Self::Database(name.parse().map_err(|_| invalid())?),
            "server" if is_server(name) => Self::Server(name.to_owned()),
            "kind" => Self::Kind(name.parse().map_err(|_| invalid())?),
            "class" if name == SlotClass::Long.as_str() => Self::Class(SlotClass::Long),
            "class" if name == SlotClass::Short.as_str() => Self::Class(SlotClass::Short),
            "policy" => Self::Policy(name.parse().map_err(|_| invalid())?),
            _ => return Err(invalid()),
        })
    }
}

/// Whether this is a server's name as [`crate::DatabaseUrl::server`] gives it.
fn is_server(name: &str) -> bool {
    name.rsplit_once(':').is_some_and(|(host, port)| {
        !host.is_empty()
            && port.parse::<u16>().is_ok()
            && !host.chars().any(|c| c.is_whitespace() || c.is_control())
    })
}

impl TryFrom<String> for Scope {
    type Error = InvalidScope;

    fn try_from(text: String) -> Result<Self, InvalidScope> {
        text.parse()
    }
}

impl From<Scope> for String {
    fn from(scope: Scope) -> Self {
        scope.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scope_is_read_as_it_is_written() {
        for scope in [
            Scope::All,
            Scope::Tenant("acme".parse().unwrap()),
            Scope::Database(DatabaseId::new()),
            Scope::Server("db1.example.com:5432".to_owned()),
            Scope::Server("[::1]:5432".to_owned()),
            Scope::Kind("backup".parse().unwrap()),
            Scope::Class(SlotClass::Long),
            Scope::Policy(PolicyId::new()),
        ] {
            assert_eq!(scope.to_string().parse(), Ok(scope));
        }
    }

    #[test]
    fn what_names_nothing_is_refused_with_what_could_be_written() {
        for bad in ["", "acme", "tenant/", "server/db1", "class/wide", "queue/x"] {
            let error = bad.parse::<Scope>().expect_err(bad);
            assert!(error.to_string().contains("`tenant/`"), "{error}");
        }
    }
}
