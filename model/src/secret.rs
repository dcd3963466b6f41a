//! Secrets and the references that stand for them (P9). A job, a database record and a setting hold a
//! [`SecretReference`]; only the process that needs the secret turns it into a [`Secret`], which cannot
//! be printed, logged or serialized.

use std::{fmt, path::PathBuf, str::FromStr};

use schemars::JsonSchema;
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use uuid::Uuid;

/// A secret in memory. It is wiped when dropped and shows as `***` wherever it is printed.
#[derive(Clone)]
pub struct Secret(SecretString);

impl Secret {
    /// Takes a secret in.
    #[must_use]
    pub fn new(text: String) -> Self {
        Self(SecretString::from(text))
    }

    /// The secret itself, for the one call that needs it. Never log what this returns.
    #[must_use]
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// Where a secret lies.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
pub enum SecretReference {
    /// `env:NAME`: an environment variable of the process that runs the job.
    Environment(String),
    /// `file:PATH`: the first line of a file that the process that runs the job can read.
    File(PathBuf),
    /// `sealed:ID`: encrypted in the ledger, as a password that was given in a URL is.
    Sealed(Uuid),
}

/// Why a secret reference was refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "{0:?} is not a reference to a secret: write `env:NAME` for an environment variable or `file:/path` for a file"
)]
pub struct InvalidReference(String);

impl FromStr for SecretReference {
    type Err = InvalidReference;

    fn from_str(text: &str) -> Result<Self, InvalidReference> {
        // What was given may be the secret itself, so an error names its form only.
        let invalid = || {
            InvalidReference(text.split(':').next().map_or_else(String::new, |head| {
                if matches!(head, "env" | "file" | "sealed") {
                    format!("{head}:…")
                } else {
                    "…".to_owned()
                }
            }))
        };
        match text.split_once(':') {
            Some(("env", name)) if !name.is_empty() => Ok(Self::Environment(name.to_owned())),
            Some(("file", path)) if !path.is_empty() => Ok(Self::File(PathBuf::from(path))),
            Some(("sealed", id)) => id.parse().map(Self::Sealed).map_err(|_| invalid()),
            _ => Err(invalid()),
        }
    }
}

impl fmt::Display for SecretReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Environment(name) => write!(f, "env:{name}"),
            Self::File(path) => write!(f, "file:{}", path.display()),
            Self::Sealed(id) => write!(f, "sealed:{id}"),
        }
    }
}

impl TryFrom<String> for SecretReference {
    type Error = InvalidReference;

    fn try_from(text: String) -> Result<Self, InvalidReference> {
        text.parse()
    }
}

impl From<SecretReference> for String {
    fn from(reference: SecretReference) -> Self {
        reference.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_given_instead_of_a_reference_is_not_repeated_in_the_error() {
        let error = "hunter2:x".parse::<SecretReference>().unwrap_err();
        assert!(!error.to_string().contains("hunter2"));
    }

    #[test]
    fn p9_a_secret_cannot_be_printed() {
        assert_eq!(format!("{:?}", Secret::new("hunter2".into())), "***");
    }
}
