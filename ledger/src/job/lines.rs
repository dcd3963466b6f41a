//! Lines: what a job asks of a worker beside knowing its kind, as a short text that the order of claims is
//! divided by. A worker looks at the lines that it can serve and at no other, so that jobs which it cannot
//! run cost it nothing and delay nobody.
//!
//! A line is empty for a job of the first version of its kind whose database every worker reaches; otherwise
//! `v2 zone=dmz`: the version, and the labels that a worker must have.

use std::collections::{BTreeMap, BTreeSet};

use fettler_model::JobKindName;

use crate::{ClaimRequest, Ledger, LedgerError, Result, row::Fields, store::Store};

/// The longest name or value of a label.
const MAX_WORD_BYTES: usize = 63;
/// How many labels a worker or a database has at most.
const MAX_LABELS: usize = 16;
/// How many lines of a kind a worker looks at: versions times routes.
const MAX_LINES: usize = 64;

/// Labels as they stand in a line.
pub(crate) fn route(labels: &BTreeMap<String, String>) -> String {
    let words: Vec<String> = labels
        .iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    words.join(" ")
}

/// The line of a job of this version about a database on this route.
pub(crate) fn line(version: u32, route: &str) -> String {
    match (version, route) {
        (0 | 1, "") => String::new(),
        (version, "") => format!("v{version}"),
        (version, route) => format!("v{} {route}", version.max(1)),
    }
}

/// The labels that a line asks for.
pub(super) fn labels_of(line: &str) -> BTreeMap<String, String> {
    line.split(' ')
        .filter_map(|word| word.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

/// Whether somebody with these labels goes this route.
pub(super) fn reaches(has: &BTreeMap<String, String>, asked: &BTreeMap<String, String>) -> bool {
    asked
        .iter()
        .all(|(name, value)| has.get(name) == Some(value))
}

/// Refuses labels that could not stand in a line.
pub(crate) fn check_labels(labels: &BTreeMap<String, String>) -> Result<()> {
    let is_word = |word: &str| {
        (1..=MAX_WORD_BYTES).contains(&word.len())
            && word
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
    };
    let bad = labels
        .iter()
        .find(|(name, value)| !is_word(name) || !is_word(value));
    if let Some((name, value)) = bad {
        return Err(LedgerError::Refused {
            what: format!("{name}={value} is no label that a worker could have"),
            remedy: format!(
                "write NAME=VALUE, each of up to {MAX_WORD_BYTES} letters, digits, `-`, `_` and `.`"
            ),
        });
    }
    if labels.len() > MAX_LABELS {
        return Err(LedgerError::Refused {
            what: format!("{} labels are too many", labels.len()),
            remedy: format!("{MAX_LABELS} are the most"),
        });
    }
    Ok(())
}

impl Ledger {
    /// The lines that a worker can serve, for each of its kinds: what it pops from a queue outside the ledger.
    ///
    /// # Errors
    ///
    /// When the ledger is away.
    pub async fn lines_for(&self, request: &ClaimRequest) -> Result<Vec<(JobKindName, String)>> {
        let routes = routes(&self.inner.store).await?;
        Ok(lines_for(request, &routes))
    }
}

/// The routes that databases ask for.
pub(super) async fn routes(store: &Store) -> Result<BTreeSet<String>> {
    const DOING: &str = "reading the routes to databases";
    let rows = store
        .read(
            DOING,
            "SELECT DISTINCT route FROM database_record WHERE route <> ''",
            &[],
        )
        .await?;
    rows.iter()
        .map(|row| Fields::of(row, DOING).text("route"))
        .collect()
}

/// The lines of each kind that this worker can serve.
pub(super) fn lines_for(
    request: &ClaimRequest,
    routes: &BTreeSet<String>,
) -> Vec<(JobKindName, String)> {
    let served: Vec<&str> = routes
        .iter()
        .map(String::as_str)
        .filter(|route| reaches(&request.skills.labels, &labels_of(route)))
        .collect();
    let mut lines = Vec::new();
    for kind in &request.kinds {
        let versions = request.skills.versions.get(kind).copied().unwrap_or(1);
        // The newest first: where there are too many, old ones are left to others.
        let all = (1..=versions.max(1)).rev().flat_map(|version| {
            [""].into_iter()
                .chain(served.iter().copied())
                .map(move |route| line(version, route))
        });
        lines.extend(all.take(MAX_LINES).map(|line| (kind.clone(), line)));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(words: &[(&str, &str)]) -> BTreeMap<String, String> {
        words
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect()
    }

    #[test]
    fn rule_17_a_line_says_what_a_worker_must_know_and_have() {
        let dmz = labels(&[("zone", "dmz"), ("rack", "7")]);
        assert_eq!(line(1, ""), "");
        assert_eq!(line(2, ""), "v2");
        assert_eq!(line(1, &route(&dmz)), "v1 rack=7 zone=dmz");
        assert_eq!(labels_of("v1 rack=7 zone=dmz"), dmz);
        assert!(reaches(&dmz, &labels(&[("zone", "dmz")])));
        assert!(!reaches(&labels(&[("zone", "dmz")]), &dmz));
        assert!(!reaches(
            &labels(&[("zone", "lan")]),
            &labels(&[("zone", "dmz")])
        ));
    }

    #[test]
    fn a_label_that_could_not_stand_in_a_line_is_refused() {
        for (name, value) in [
            ("zone", ""),
            ("", "dmz"),
            ("zone", "a b"),
            ("z=", "x"),
            ("zone", "ü"),
        ] {
            assert!(check_labels(&labels(&[(name, value)])).is_err());
        }
        assert!(check_labels(&labels(&[("zone", "dmz-1.eu_2")])).is_ok());
    }
}
