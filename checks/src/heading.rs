//! Under which heading of which job's report a check stands.

use std::fmt;

use fettler_model::{Area, Dimension};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What an audit looks at: a part of its report.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Group {
    /// Who may do what.
    Access,
    /// How clients show who they are.
    Authentication,
    /// What travels, and lies, unread by others.
    Encryption,
    /// What is written down of who did what.
    Logging,
    /// Settings that weaken the server.
    Configuration,
    /// What is out of care, or known to be open.
    Versions,
    /// Who reaches the server at all.
    Exposure,
    /// What was added to the server.
    Extensions,
    /// What is not as it was.
    Drift,
}

impl Group {
    /// All of them, in the order of a report.
    pub const ALL: [Self; 9] = [
        Self::Access,
        Self::Authentication,
        Self::Encryption,
        Self::Logging,
        Self::Configuration,
        Self::Versions,
        Self::Exposure,
        Self::Extensions,
        Self::Drift,
    ];

    /// Its name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Access => "access",
            Self::Authentication => "authentication",
            Self::Encryption => "encryption",
            Self::Logging => "logging",
            Self::Configuration => "configuration",
            Self::Versions => "versions",
            Self::Exposure => "exposure",
            Self::Extensions => "extensions",
            Self::Drift => "drift",
        }
    }
}

impl fmt::Display for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Which job makes a check, and where its report lists it. One check belongs to one job, so that a look of one kind says
/// nothing of what another kind has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heading {
    /// A look at the health: this side of it.
    Health(Dimension),
    /// An audit: this part of it.
    Audit(Group),
}

impl Heading {
    /// The job kind.
    #[must_use]
    pub const fn job(self) -> &'static str {
        match self {
            Self::Health(_) => "health",
            Self::Audit(_) => "audit",
        }
    }

    /// The side of the health; none of an audit's check.
    #[must_use]
    pub const fn dimension(self) -> Option<Dimension> {
        match self {
            Self::Health(dimension) => Some(dimension),
            Self::Audit(_) => None,
        }
    }

    /// The part of an audit; none of a check of the health.
    #[must_use]
    pub const fn group(self) -> Option<Group> {
        match self {
            Self::Health(_) => None,
            Self::Audit(group) => Some(group),
        }
    }

    /// What findings are about where the check's file does not say.
    pub(crate) const fn area(self) -> Area {
        match self {
            Self::Health(_) => Area::Health,
            Self::Audit(_) => Area::Security,
        }
    }
}

/// The job and the part of its report: `audit: access`.
impl fmt::Display for Heading {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Health(dimension) => write!(f, "health: {dimension}"),
            Self::Audit(group) => write!(f, "audit: {group}"),
        }
    }
}
