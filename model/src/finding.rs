//! What a look at a database finds: one shape for health, audit, tuning and compliance. A finding says what was seen,
//! why it matters and what to do; it holds no secrets and no rows.

use std::{collections::BTreeMap, fmt, str::FromStr};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use thiserror::Error;

use crate::{Engine, JobId, Timestamp};

/// A word that names no value of a closed set.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{word:?} is not one of {known}")]
pub struct UnknownWord {
    word: String,
    known: String,
}

/// Gives a closed set of words its names in text, in the order in which they are listed.
macro_rules! words {
    ($kind:ident: $($variant:ident = $word:literal),+ $(,)?) => {
        impl $kind {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// Its name.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $word),+
                }
            }
        }

        impl fmt::Display for $kind {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.as_str())
            }
        }

        impl FromStr for $kind {
            type Err = UnknownWord;

            fn from_str(text: &str) -> Result<Self, UnknownWord> {
                Self::ALL
                    .iter()
                    .copied()
                    .find(|one| one.as_str() == text)
                    .ok_or_else(|| UnknownWord {
                        word: text.to_owned(),
                        known: Self::ALL
                            .iter()
                            .map(|one| one.as_str())
                            .collect::<Vec<_>>()
                            .join(", "),
                    })
            }
        }
    };
}

/// What a finding is about.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Area {
    /// Whether the database works, and goes on to.
    Health,
    /// Who may do what, and who sees it.
    Security,
    /// How fast it is.
    Performance,
    /// What is kept too long, or not long enough.
    Retention,
    /// What a rule of others asks for.
    Compliance,
}

words!(Area: Health = "health", Security = "security", Performance = "performance",
    Retention = "retention", Compliance = "compliance");

/// Which side of a database's health a check looks at. Each has a fifth of the score.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Dimension {
    /// Whether clients get in.
    Connectivity,
    /// Whether they get answers in time.
    Performance,
    /// Whether memory, disk and identifiers last.
    Resources,
    /// Whether what is stored is whole, and can be had again.
    Integrity,
    /// Whether copies follow.
    Replication,
}

words!(Dimension: Connectivity = "connectivity", Performance = "performance",
    Resources = "resources", Integrity = "integrity", Replication = "replication");

/// How grave a finding is.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Good to know.
    Info,
    /// To be looked at some day.
    Low,
    /// To be looked at this week.
    Medium,
    /// To be looked at today.
    High,
    /// The database fails, or soon will.
    Critical,
}

words!(Severity: Info = "info", Low = "low", Medium = "medium", High = "high",
    Critical = "critical");

/// What may be said of a finding.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum Status {
    /// It was seen by the last look.
    #[default]
    Open,
    /// The last look did not see it any more.
    Resolved,
    /// Somebody has said that it is to be left alone.
    Suppressed {
        /// Until when; for good where nothing is said.
        #[serde(skip_serializing_if = "Option::is_none")]
        until: Option<Timestamp>,
        /// Why.
        because: String,
    },
    /// The check could not be made: nothing is known, and nothing has passed.
    NotEvaluable {
        /// Why not, and what would help.
        because: String,
    },
}

impl Status {
    /// The state's name.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Resolved => "resolved",
            Self::Suppressed { .. } => "suppressed",
            Self::NotEvaluable { .. } => "not_evaluable",
        }
    }
}

/// What to do about a finding.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Fix {
    /// In words.
    pub text: String,
    /// Commands for the engine's own client, to be read before they are run.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub commands: Vec<String>,
}

/// Something that was found in a database.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Finding {
    /// Its identity, from one look to the next: the check, and the object where there is one.
    pub key: String,
    /// The check that found it.
    pub check: String,
    /// The database engine.
    pub engine: Engine,
    /// What it is about.
    pub area: Area,
    /// Which side of the health it takes from; only of health checks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dimension: Option<Dimension>,
    /// How grave it is.
    pub severity: Severity,
    /// What in the database it is about, such as a table; empty for the whole of it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub object: String,
    /// What is wrong, in one line.
    pub title: String,
    /// What was seen: numbers with their units in the names, and names of objects.
    #[serde(default)]
    pub evidence: Map<String, Value>,
    /// Why it matters.
    pub why: String,
    /// What to do.
    pub fix: Fix,
    /// Numbers of controls, and places of the engine's own documentation.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub references: Vec<String>,
    /// What may be said of it.
    pub status: Status,
}

impl Finding {
    /// The identity of what this check finds about this object.
    #[must_use]
    pub fn key_of(check: &str, object: &str) -> String {
        if object.is_empty() {
            check.to_owned()
        } else {
            format!("{check}:{object}")
        }
    }
}

/// What became of a finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum FindingStep {
    /// Seen for the first time.
    Opened,
    /// Graver or less grave than before.
    Changed,
    /// Not seen any more.
    Resolved,
    /// Seen again after it was resolved.
    Reopened,
    /// Set aside by somebody.
    Suppressed,
    /// Not set aside any more.
    Unsuppressed,
}

impl FindingStep {
    /// Its name; the events are `finding.<name>`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Opened => "opened",
            Self::Changed => "changed",
            Self::Resolved => "resolved",
            Self::Reopened => "reopened",
            Self::Suppressed => "suppressed",
            Self::Unsuppressed => "unsuppressed",
        }
    }

    /// The step of this name.
    #[must_use]
    pub fn of(name: &str) -> Option<Self> {
        [
            Self::Opened,
            Self::Changed,
            Self::Resolved,
            Self::Reopened,
            Self::Suppressed,
            Self::Unsuppressed,
        ]
        .into_iter()
        .find(|one| one.as_str() == name)
    }
}

/// A step in the life of a finding.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct FindingChange {
    /// Which finding.
    pub key: String,
    /// When.
    pub at: Timestamp,
    /// What became of it.
    pub step: FindingStep,
    /// The job whose look it was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub job: Option<JobId>,
    /// The title and the severity at the time, or the reason.
    pub data: Value,
}

/// What recording a look gives back.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RecordedFindings {
    /// What is set aside now, by key.
    pub suppressed: BTreeMap<String, Status>,
    /// What has become of findings.
    pub changes: Vec<FindingChange>,
}

/// What the ledger knows of a database's backups.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Protection {
    /// The ledger's now.
    pub now: Timestamp,
    /// How many backups can be restored, as far as is known.
    pub backups: u32,
    /// When the last of them was complete.
    pub last_backup: Option<Timestamp>,
    /// How many of them were proven.
    pub proofs: u32,
    /// When the last proof ended, whatever it said.
    pub last_proof: Option<Timestamp>,
    /// Whether the last proof said that the backup does not restore.
    pub last_proof_failed: bool,
    /// Whether a policy backs the database up.
    pub has_policy: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_read_as_they_are_written_and_others_are_named() {
        for severity in Severity::ALL {
            assert_eq!(severity.as_str().parse::<Severity>().unwrap(), *severity);
        }
        let error = "grave".parse::<Severity>().unwrap_err().to_string();
        assert_eq!(
            error,
            "\"grave\" is not one of info, low, medium, high, critical"
        );
    }

    #[test]
    fn a_key_is_the_check_with_its_object() {
        assert_eq!(Finding::key_of("postgres.x", ""), "postgres.x");
        assert_eq!(
            Finding::key_of("postgres.x", "public.t"),
            "postgres.x:public.t"
        );
    }
}
