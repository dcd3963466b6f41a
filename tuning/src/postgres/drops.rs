//! Indexes that are there and should not be: duplicates, beginnings of others, and those that nobody reads.

use std::collections::BTreeMap;

use serde_json::Value;

use super::facts::{Facts, Index};

/// How much larger an index may be that serves in the stead of another one, before a person must look.
const MUCH_LARGER: f64 = 3.0;

/// An index that another one makes superfluous.
#[derive(Clone, Debug)]
pub(crate) struct Redundant<'a> {
    pub(crate) index: &'a Index,
    /// The one that serves in its stead.
    pub(crate) by: &'a Index,
    /// Whether they are the same but for their names.
    pub(crate) same: bool,
    /// Why a person must look first.
    pub(crate) doubt: Option<String>,
}

/// All that others make superfluous.
pub(crate) fn redundant(facts: &Facts) -> Vec<Redundant<'_>> {
    let mut found = Vec::new();
    for index in &facts.indexes {
        if index.needed_by.is_some() || !index.valid {
            continue;
        }
        let best = facts
            .indexes_of(index.table)
            .filter(|other| other.oid != index.oid && other.valid)
            .filter_map(|other| Some((is_served(index, other)?, other)))
            // The same one rather than a longer one, and the smaller rather than the larger.
            .min_by(|a, b| {
                (!a.0, a.1.bytes)
                    .partial_cmp(&(!b.0, b.1.bytes))
                    .unwrap_or(std::cmp::Ordering::Equal)
            });
        if let Some((same, by)) = best {
            let doubt =
                (!same && index.scans > 0.0 && by.bytes > index.bytes * MUCH_LARGER).then(|| {
                    format!(
                        "{} is much larger, and reading it in the stead of this one may be slower",
                        by.shown()
                    )
                });
            found.push(Redundant {
                index,
                by,
                same,
                doubt,
            });
        }
    }
    found
}

/// Whether `other` serves whatever `index` serves: `true` where it is the same.
fn is_served(index: &Index, other: &Index) -> Option<bool> {
    let alike = index.method == other.method
        && index.predicate == other.predicate
        && index.expressions == other.expressions;
    if !alike {
        return None;
    }
    let same_key = index.key == other.key && index.details == other.details;
    let nulls = |index: &Index| index.definition.contains("NULLS NOT DISTINCT");
    if index.unique && !(other.unique && same_key && nulls(index) == nulls(other)) {
        // It says that values are unique, which the other one does not.
        return None;
    }
    let carries = index
        .included
        .iter()
        .all(|column| other.included.contains(column) || other.key.contains(column));
    if !carries {
        return None;
    }
    if same_key {
        let is_smaller_or_same = index.included.len() < other.included.len()
            || (index.included.len() == other.included.len()
                // Of two of a kind the one stays that something needs, that says more, or that was there first.
                && (other.needed_by.is_some()
                    || (other.unique && !index.unique)
                    || (other.unique == index.unique && other.oid < index.oid)));
        return is_smaller_or_same.then_some(index.included == other.included);
    }
    let is_beginning = index.method == "btree"
        && index.expressions.is_none()
        && other.key.len() > index.key.len()
        && other.key.starts_with(&index.key)
        && other.details.starts_with(&index.details);
    is_beginning.then_some(false)
}

/// An index that was not read for a time.
#[derive(Clone, Debug)]
pub(crate) struct Unused<'a> {
    pub(crate) index: &'a Index,
    /// For how long it is known not to have been read.
    pub(crate) seconds: f64,
    /// Why a person must look first.
    pub(crate) doubt: Option<String>,
}

/// What is known of a standby: how often each index was read there, and for how many seconds it was counted.
#[derive(Clone, Debug, Default)]
pub struct ReplicaReads {
    /// By the index's id, which is the same there.
    pub scans: BTreeMap<u32, f64>,
    /// How long it has been counted.
    pub seconds: f64,
}

/// Counters that were kept of earlier looks: how many seconds ago, and the sample.
pub(crate) type Earlier<'a> = &'a [(f64, Value)];

/// Indexes that nobody has read for `days`, by the server's counters since they were reset, or by the samples of earlier looks.
pub(crate) fn unused<'a>(
    facts: &'a Facts,
    earlier: Earlier<'_>,
    replicas: &[ReplicaReads],
    days: u32,
) -> Vec<Unused<'a>> {
    let wanted = f64::from(days) * 86_400.0;
    let mut found = Vec::new();
    for index in &facts.indexes {
        // What a constraint needs is needed, read or not; what is small costs nothing.
        if index.needed_by.is_some() || index.unique || !index.valid || index.bytes < 1_048_576.0 {
            continue;
        }
        let seconds = unread_seconds(facts, index, earlier);
        let is_read_elsewhere = replicas.iter().any(|replica| {
            replica
                .scans
                .get(&index.oid)
                .is_some_and(|scans| *scans > 0.0)
        });
        if seconds < wanted || seconds <= 0.0 || is_read_elsewhere {
            continue;
        }
        let known = u32::try_from(replicas.len()).unwrap_or(u32::MAX);
        let unseen = facts.server.replicas.saturating_sub(known);
        let doubt = if unseen > 0 {
            Some(format!(
                "{unseen} standbys follow this server, and may read it: name them with `--replica`"
            ))
        } else if replicas.iter().any(|replica| replica.seconds < wanted) {
            Some("a standby has not counted for as long".to_owned())
        } else if wanted < 7.0 * 86_400.0 {
            Some("less than a week was looked at".to_owned())
        } else if known_seconds(index, earlier) < wanted {
            Some("how old it is is not known until looks have seen it for as long".to_owned())
        } else {
            None
        };
        found.push(Unused {
            index,
            seconds,
            doubt,
        });
    }
    found
}

/// For how many seconds an index is known not to have been read.
fn unread_seconds(facts: &Facts, index: &Index, earlier: Earlier<'_>) -> f64 {
    let mut seconds: f64 = 0.0;
    if index.scans == 0.0 {
        // Counters that were never set to nothing count since the server was made, as far as is known since it started.
        seconds = facts
            .server
            .stats_seconds
            .unwrap_or(facts.server.up_seconds);
    }
    // Back from the newest, as long as nothing was read and the counters go on.
    for (ago, sample) in earlier.iter().rev() {
        if sample["reset"].as_str() != facts.server.stats_reset.as_deref() {
            break;
        }
        let then = sample["indexes"]
            .as_array()
            .into_iter()
            .flatten()
            .find(|one| one[0].as_f64() == Some(f64::from(index.oid)));
        match then.and_then(|one| one[1].as_f64()) {
            Some(scans) if (scans - index.scans).abs() < 0.5 => seconds = seconds.max(*ago),
            _ => break,
        }
    }
    seconds
}

/// For how many seconds looks have seen an index: one that is younger than the counters was not there to be read.
fn known_seconds(index: &Index, earlier: Earlier<'_>) -> f64 {
    earlier
        .iter()
        .filter(|(_, sample)| {
            sample["indexes"].as_array().is_some_and(|all| {
                all.iter()
                    .any(|one| one[0].as_f64() == Some(f64::from(index.oid)))
            })
        })
        .map(|(ago, _)| *ago)
        .fold(0.0, f64::max)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::postgres::testing::{facts, index, table};

    fn pairs(indexes: Vec<Index>) -> Vec<(u32, u32, bool)> {
        let mut facts = facts(vec![table(1, "t", &["a", "b", "c"])]);
        facts.indexes = indexes;
        redundant(&facts)
            .iter()
            .map(|one| (one.index.oid, one.by.oid, one.same))
            .collect()
    }

    #[test]
    fn duplicates_and_beginnings_are_found_and_one_of_each_stays() {
        let of = |oid: u32, key: &[i32]| index(oid, 1, key);
        assert_eq!(pairs(vec![of(1, &[1]), of(2, &[1])]), [(2, 1, true)]);
        assert_eq!(
            pairs(vec![of(1, &[1, 2]), of(2, &[1]), of(3, &[1, 2, 3])]),
            [(1, 3, false), (2, 1, false)]
        );
        assert_eq!(pairs(vec![of(1, &[2]), of(2, &[1, 2])]), []);
    }

    #[test]
    fn what_says_more_than_an_order_is_left_alone() {
        let of = |oid: u32, key: &[i32]| index(oid, 1, key);
        let with = |change: &dyn Fn(&mut Index)| {
            let mut one = of(2, &[1]);
            change(&mut one);
            pairs(vec![of(1, &[1, 2]), one])
        };
        assert_eq!(with(&|_| {}), [(2, 1, false)]);
        assert_eq!(with(&|one| one.unique = true), []);
        assert_eq!(with(&|one| one.needed_by = Some("a constraint".into())), []);
        assert_eq!(with(&|one| one.predicate = Some("(c IS NULL)".into())), []);
        assert_eq!(with(&|one| one.details = vec!["9 0 0".into()]), []);
        assert_eq!(with(&|one| one.details = vec!["1 0 1".into()]), []);
        assert_eq!(with(&|one| one.included = vec![3]), []);
        assert_eq!(with(&|one| one.included = vec![2]), [(2, 1, false)]);
        assert_eq!(with(&|one| one.method = "hash".into()), []);
        assert_eq!(with(&|one| one.expressions = Some("lower(a)".into())), []);
        // A unique index makes a plain one of the same columns superfluous, and not the other way round.
        let unique = Index {
            unique: true,
            ..of(9, &[1])
        };
        assert_eq!(pairs(vec![of(1, &[1]), unique]), [(1, 9, true)]);
    }

    #[test]
    fn unused_is_unused_over_a_time_and_on_all_standbys() {
        let mut facts = facts(vec![table(1, "t", &["a", "b"])]);
        let (mut read, never) = (
            index(1, 1, &[1]),
            Index {
                scans: 0.0,
                ..index(2, 1, &[2])
            },
        );
        read.scans = 7.0;
        facts.indexes = vec![read, never];
        facts.server.stats_reset = Some("then".to_owned());
        let keys = |found: Vec<Unused<'_>>| -> Vec<(u32, bool)> {
            found
                .iter()
                .map(|one| (one.index.oid, one.doubt.is_some()))
                .collect()
        };
        // Nobody knows how old it is.
        assert_eq!(keys(unused(&facts, &[], &[], 30)), [(2, true)]);
        assert_eq!(keys(unused(&facts, &[], &[], 100)), []);
        // Not read since a look 40 days ago, and counters that were set to nothing in between.
        let sample =
            |reset: &str, scans: u32| json!({"reset": reset, "indexes": [[1, scans], [2, 0]]});
        let day = 86_400.0;
        let since =
            |reset, scans| vec![(40.0 * day, sample(reset, scans)), (1.0, sample("then", 7))];
        assert_eq!(
            keys(unused(&facts, &since("then", 7), &[], 30)),
            [(1, false), (2, false)]
        );
        assert_eq!(
            keys(unused(&facts, &since("then", 6), &[], 30)),
            [(2, false)]
        );
        assert_eq!(
            keys(unused(&facts, &since("before", 7), &[], 30)),
            [(2, false)]
        );
        // Standbys.
        facts.server.replicas = 1;
        let seen = since("then", 6);
        let keys = |replicas: &[ReplicaReads]| keys(unused(&facts, &seen, replicas, 30));
        assert_eq!(keys(&[]), [(2, true)]);
        let standby = |scans| ReplicaReads {
            scans: [(2, scans)].into(),
            seconds: 40.0 * day,
        };
        assert_eq!(keys(&[standby(0.0)]), [(2, false)]);
        assert_eq!(keys(&[standby(3.0)]), []);
    }
}
