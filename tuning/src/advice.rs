//! How what was found becomes findings and actions, for all engines alike.

use std::{collections::BTreeSet, fmt::Display};

use fettler_engine::{EngineError, StatementError, Workbench};
use fettler_model::{
    ActionKind, Area, Engine, Finding, Fix, JudgedBy, Severity, Status, TuningAction, TuningRecord,
    TuningState,
};
use serde_json::{Map, Value};

use crate::Look;

const MIB: f64 = 1_048_576.0;

/// What is said of one thing.
pub(crate) struct Said<'a> {
    /// The check, without the engine's name and `tune_`.
    pub(crate) check: &'a str,
    /// What it is about; empty for the server.
    pub(crate) object: &'a str,
    pub(crate) severity: Severity,
    pub(crate) title: String,
    pub(crate) evidence: Value,
    pub(crate) why: &'a str,
    pub(crate) fix: &'a str,
    pub(crate) commands: Vec<String>,
}

/// What becomes a [`Look`].
pub(crate) struct Advice {
    engine: Engine,
    findings: Vec<Finding>,
    conclusive: BTreeSet<String>,
    plan: Vec<TuningAction>,
}

impl Advice {
    pub(crate) fn of(engine: Engine) -> Self {
        Self {
            engine,
            findings: Vec::new(),
            conclusive: BTreeSet::new(),
            plan: Vec::new(),
        }
    }

    fn check(&self, name: &str) -> String {
        format!("{}.tune_{name}", self.engine)
    }

    /// A check has seen all there is.
    pub(crate) fn seen(&mut self, check: &str) {
        self.conclusive.insert(self.check(check));
    }

    /// Something was found; gives its key.
    pub(crate) fn find(&mut self, said: Said<'_>) -> String {
        self.put(said, Status::Open)
    }

    /// Something could not be looked at: nothing is known, and nothing has passed.
    pub(crate) fn unknown(&mut self, check: &str, title: &str, because: &dyn Display) {
        let because = because.to_string();
        self.put(
            Said {
                check,
                object: "",
                severity: Severity::Info,
                title: title.to_owned(),
                evidence: Value::Null,
                why: "What cannot be looked at may be as it should be, or not.",
                fix: "Let the role see it, or leave it.",
                commands: Vec::new(),
            },
            Status::NotEvaluable { because },
        );
    }

    fn put(&mut self, said: Said<'_>, status: Status) -> String {
        let check = self.check(said.check);
        let key = Finding::key_of(&check, said.object);
        self.findings.push(Finding {
            key: key.clone(),
            check,
            engine: self.engine,
            area: Area::Performance,
            dimension: None,
            severity: said.severity,
            object: said.object.to_owned(),
            title: said.title,
            evidence: said.evidence.as_object().cloned().unwrap_or_else(Map::new),
            why: said.why.to_owned(),
            fix: Fix {
                text: said.fix.to_owned(),
                commands: said.commands,
            },
            references: Vec::new(),
            status,
        });
        key
    }

    /// Plans an action; where there is a reason against doing it without a person's look, it is not safe.
    pub(crate) fn plan(&mut self, mut action: TuningAction, unsafe_because: Option<&str>) {
        action.safe = unsafe_because.is_none();
        unsafe_because
            .unwrap_or_default()
            .clone_into(&mut action.unsafe_because);
        self.plan.push(action);
    }

    /// Whether an index is to be made on a table without a person's look.
    pub(crate) fn plans_index_on(&self, table: &str) -> bool {
        self.plan.iter().any(|action| {
            action.safe && action.kind == ActionKind::CreateIndex && action.table == table
        })
    }

    /// The whole look. What was tried in vain is not tried again.
    pub(crate) fn end(mut self, version: String, records: &[TuningRecord]) -> Look {
        self.findings.sort_by_key(|finding| {
            (
                finding.status != Status::Open,
                std::cmp::Reverse(finding.severity),
            )
        });
        for action in &mut self.plan {
            let before = records.iter().find(|record| record.action.id == action.id);
            let why = match before.map(|record| (record.state, &record.why)) {
                Some((TuningState::TakenBack, why)) => {
                    format!("it was tried, and taken back: {why}")
                }
                Some((TuningState::Undone, _)) => {
                    "it was done before, and somebody has undone it".to_owned()
                }
                _ => continue,
            };
            action.safe = false;
            action.unsafe_because = why;
        }
        self.plan.sort_by_key(|action| !action.safe);
        Look {
            version,
            statements: (0, 0),
            span_seconds: 0.0,
            judged_by: JudgedBy::Estimate,
            findings: self.findings,
            conclusive: self.conclusive,
            plan: self.plan,
            sample: Value::Null,
        }
    }
}

/// An action, its id made of what it does.
pub(crate) fn action(
    kind: ActionKind,
    object: &str,
    finding: &str,
    reason: String,
    apply: Vec<String>,
    undo: Vec<String>,
) -> TuningAction {
    TuningAction {
        id: id_of(&apply.join("; ")),
        kind,
        object: object.to_owned(),
        table: String::new(),
        finding: finding.to_owned(),
        reason,
        safe: false,
        unsafe_because: String::new(),
        apply,
        undo,
        helps: Vec::new(),
        expected: None,
    }
}

/// The same id for the same change, whoever plans it.
pub(crate) fn id_of(what: &str) -> String {
    hex::encode(&blake3::hash(what.as_bytes()).as_bytes()[..4])
}

/// An answer of one line and one value, as JSON.
pub(crate) async fn told(
    bench: &mut dyn Workbench,
    question: &str,
) -> Result<Result<Value, String>, EngineError> {
    match bench.run(question).await {
        Ok(lines) => {
            let text = lines
                .into_iter()
                .next()
                .and_then(|line| line.into_iter().next().flatten())
                .unwrap_or_default();
            Ok(serde_json::from_str(&text).map_err(|error| error.to_string()))
        }
        Err(StatementError::Refused { code, message }) => Ok(Err(format!("{message} ({code})"))),
        Err(StatementError::Lost(error)) => Err(error),
    }
}

/// Bytes as people read them.
pub(crate) fn size(bytes: f64) -> String {
    match bytes {
        _ if bytes >= 1024.0 * MIB => format!("{:.1} GiB", bytes / MIB / 1024.0),
        _ if bytes >= MIB => format!("{:.1} MiB", bytes / MIB),
        _ if bytes >= 1024.0 => format!("{:.1} KiB", bytes / 1024.0),
        _ => format!("{bytes:.0} B"),
    }
}
