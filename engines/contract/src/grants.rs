//! What the role that Fettler logs in as needs, as statements in the engine's own language.
//!
//! Each engine says it in one file, `grants.rs`: `fettler database grant-sql` prints it, and the remedies of its preflight are
//! taken from the same words, so that what is printed is what is looked for. A text holds a placeholder where a password
//! belongs, and never a password.

use std::{fmt, str::FromStr};

use fettler_model::DatabaseUrl;
use serde::{Deserialize, Serialize};

use crate::EngineError;

/// What stands in a text where whoever runs it puts the role's password.
pub const PASSWORD_PLACEHOLDER: &str = "PASSWORD";

/// What a role is to be able to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Purpose {
    /// Read everything at the source, for backups and as the source of a copy.
    Backup,
    /// Write to a server, for restores.
    Restore,
    /// Make sandboxes on a server, fill them, read them, and remove them. A proof in a server process of the worker's own needs
    /// nothing of this.
    Prove,
    /// Answer the questions of health checks.
    Health,
    /// Answer the questions of an audit.
    Audit,
    /// Remove what is old or abandoned, and put it back.
    Cleanup,
    /// See what there is to tune, and tune it.
    Tune,
}

impl Purpose {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Backup,
        Self::Restore,
        Self::Prove,
        Self::Health,
        Self::Audit,
        Self::Cleanup,
        Self::Tune,
    ];

    /// The word for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Backup => "backup",
            Self::Restore => "restore",
            Self::Prove => "prove",
            Self::Health => "health",
            Self::Audit => "audit",
            Self::Cleanup => "cleanup",
            Self::Tune => "tune",
        }
    }
}

impl fmt::Display for Purpose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Purpose {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|purpose| purpose.as_str() == text)
            .ok_or_else(|| {
                format!(
                    "{text:?} is no purpose: there are {}",
                    Self::ALL.map(Self::as_str).join(", ")
                )
            })
    }
}

/// What grants are asked for.
#[derive(Clone, Debug)]
pub struct GrantRequest<'a> {
    /// Where they will be run; nobody connects to it.
    pub url: &'a DatabaseUrl,
    /// The name of the role.
    pub role: &'a str,
    /// What it is for.
    pub purposes: &'a [Purpose],
}

impl GrantRequest<'_> {
    /// Whether it is for this.
    #[must_use]
    pub fn is_for(&self, purpose: Purpose) -> bool {
        self.purposes.contains(&purpose)
    }

    /// The error for a role whose name the engine cannot take.
    #[must_use]
    pub fn invalid_role(&self, why: &str) -> EngineError {
        EngineError::Missing {
            code: "role_name",
            what: format!("{:?} cannot be the name of a role here: {why}", self.role),
            remedy: "give another one with `--role`".to_owned(),
        }
    }
}

/// One statement or request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Grant {
    /// What it is needed for, in words.
    pub why: String,
    /// The statement, as it is run.
    pub text: String,
}

impl Grant {
    /// A statement.
    pub fn new(why: impl Into<String>, text: impl Into<String>) -> Self {
        Self {
            why: why.into(),
            text: text.into(),
        }
    }
}

/// What a role needs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Grants {
    /// The language of the statements: `SQL`, `redis-cli`, `mongosh`, `REST`, `shell`.
    pub language: &'static str,
    /// What a comment begins with, where the language has comments.
    pub comment: Option<&'static str>,
    /// In the order in which they are run.
    pub statements: Vec<Grant>,
    /// What a person should know besides.
    pub notes: Vec<String>,
}

impl Grants {
    /// As a text that can be run: each statement below a comment that says what it is for, then the notes. In a language without
    /// comments it is the statements alone.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        for grant in &self.statements {
            self.put_comment(&grant.why, &mut text);
            text.push_str(&grant.text);
            text.push('\n');
        }
        for note in &self.notes {
            self.put_comment(note, &mut text);
        }
        text
    }

    fn put_comment(&self, words: &str, text: &mut String) {
        if let Some(comment) = self.comment {
            for line in words.lines() {
                text.push_str(comment);
                text.push(' ');
                text.push_str(line);
                text.push('\n');
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_has_comments_where_the_language_has_them() {
        let mut grants = Grants {
            language: "SQL",
            comment: Some("--"),
            statements: vec![Grant::new("to read", "GRANT x TO y;")],
            notes: vec!["one\ntwo".to_owned()],
        };
        assert_eq!(
            grants.to_text(),
            "-- to read\nGRANT x TO y;\n-- one\n-- two\n"
        );
        grants.comment = None;
        assert_eq!(grants.to_text(), "GRANT x TO y;\n");
    }

    #[test]
    fn a_purpose_is_read_as_it_is_written() {
        for purpose in Purpose::ALL {
            assert_eq!(purpose.to_string().parse(), Ok(purpose));
        }
        assert!("read".parse::<Purpose>().is_err());
    }
}
