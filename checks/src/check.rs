//! What a check is.

use fettler_engine::{Row, Versions};
use fettler_model::{Area, Engine, Fix, Severity};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Expression, Heading, Template};

/// Which looks a check belongs to.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// Cheap enough for every minute: a few seconds at most.
    Basic,
    /// Beside the basic ones what reads catalogues and statistics, or data: 30 seconds at most for each question.
    #[default]
    Full,
}

/// Where a check's lines come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// From the server, by the check's question.
    #[default]
    Server,
    /// From the ledger: one line that says what is known of the database's backups and proofs.
    Ledger,
    /// From the connection itself: one line that says how long it took.
    Connection,
    /// From the list of releases: one line that says how old the server's release is. Of audits only.
    Release,
    /// From the list of releases: a line for each known vulnerability of the server's release. Of audits only.
    Vulnerabilities,
}

/// A question for some versions of a server.
#[derive(Clone, Debug)]
pub struct Variant {
    /// For which.
    pub versions: Versions,
    /// The question.
    pub question: String,
}

/// A line that an answer may have, and what the check makes of it: the check's own test.
#[derive(Clone, Debug, Default)]
pub struct Example {
    /// Lines of which each is a finding.
    pub fires: Vec<Row>,
    /// Lines of which none is.
    pub passes: Vec<Row>,
}

/// A check.
#[derive(Clone, Debug)]
pub struct Check {
    /// Its name, which begins with the engine's.
    pub id: String,
    /// The engine.
    pub engine: Engine,
    /// What its findings are about.
    pub area: Area,
    /// Which job makes it, and where that one's report lists it.
    pub heading: Heading,
    /// How grave its findings are, where nothing in `graver` holds.
    pub severity: Severity,
    /// In which looks it is made.
    pub level: Level,
    /// Where its lines come from.
    pub source: Source,
    /// The role (or another right, in the engine's own words) without which the server would show a part only.
    pub needs: Option<String>,
    /// Where to look instead on a managed service that hides what the question asks for.
    pub managed: Option<String>,
    /// What the server is asked; one for each range of versions whose catalogue differs.
    pub variants: Vec<Variant>,
    /// How long the server may take, in seconds.
    pub timeout_seconds: u64,
    /// Which lines are findings.
    pub when: Expression,
    /// Lines that are graver (or less grave); the first that holds counts.
    pub graver: Vec<(Expression, Severity)>,
    /// What in the database a line is about; empty where the check finds one thing at most.
    pub object: Template,
    /// One line that says what is wrong.
    pub title: Template,
    /// Which values of a line go into the finding; all of them when empty.
    pub evidence: Vec<String>,
    /// Why it matters.
    pub why: String,
    /// What to do.
    pub fix_text: Template,
    /// Commands that do it.
    pub fix_commands: Vec<Template>,
    /// Where more is said.
    pub references: Vec<String>,
    /// The check's own test.
    pub examples: Example,
    /// The file that it was read from.
    pub file: String,
}

impl Check {
    /// What to do about a line.
    pub(crate) fn fix(&self, row: &Row) -> Fix {
        Fix {
            text: self.fix_text.fill(row),
            commands: self.fix_commands.iter().map(|one| one.fill(row)).collect(),
        }
    }
}
