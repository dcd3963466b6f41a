//! Checks as data. A check is one YAML file: a question in a database's own language, an expression over each line of the
//! answer, and what to say of a line that the expression takes. Answers go in, findings and an explained score come out;
//! nothing here reaches a database, a ledger or a clock.
//!
//! A question that was refused makes its check *not evaluable*, with the reason: it never passes for it.

mod audit;
mod check;
mod drift;
mod evaluate;
mod export;
mod expression;
mod heading;
mod library;
mod load;
mod managed;
mod releases;
mod report;
mod text;

pub use audit::{
    AuditReport, Beside, CheckLine, DriftReport, GroupReport, Judged, Verdict, audit, counts,
};
pub use check::{Check, Example, Level, Source, Variant};
pub use drift::{Change, Part, Section, Snapshot, drift_questions, snapshot_of};
pub use evaluate::{Evaluation, Outcome, Seen, evaluate, outcome_of_example, questions};
pub use export::{Form, Listed, export};
pub use expression::{Expression, ExpressionError};
pub use heading::{Group, Heading};
pub use library::Library;
pub use load::{LoadError, read_check};
pub use managed::{Service, service_of, service_question};
pub use releases::{Release, Releases, Vulnerability};
pub use report::{DimensionScore, HealthReport, POINTS_OF_A_DIMENSION, Score, ScoreLine, score};
pub use text::Template;
