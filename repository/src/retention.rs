//! Which backups are kept: a pure plan from the rules and what is known of the backups, shown before
//! anything is forgotten (P7). The last good copy is never given up (P8).

use std::collections::HashSet;

use fettler_model::{BackupId, KeepRules, Timestamp};
use jiff::tz::TimeZone;
use serde::Serialize;

use crate::RepositoryError;

/// How far ahead of this machine's clock a backup may be dated before nothing is decided by age any more.
const CLOCK_TOLERANCE: std::time::Duration = std::time::Duration::from_secs(5 * 60);

/// A backup as retention sees it. All candidates of one plan are of one database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Its id.
    pub id: BackupId,
    /// The moment that it shows.
    pub taken: Timestamp,
    /// Free words of the user's.
    pub tags: Vec<String>,
    /// Whether it is held.
    pub held: bool,
    /// Whether it is complete and nothing of it is known to be damaged.
    pub complete: bool,
    /// Whether a restore of it matched its source.
    pub proven: bool,
}

/// Why a backup is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "rule")]
pub enum KeepReason {
    /// One of the newest.
    Last,
    /// The newest of its hour.
    Hourly,
    /// The newest of its day.
    Daily,
    /// The newest of its ISO week.
    Weekly,
    /// The newest of its month.
    Monthly,
    /// The newest of its year.
    Yearly,
    /// Younger than the rules say.
    Within,
    /// It carries this tag.
    Tag {
        /// The tag.
        tag: String,
    },
    /// It is held.
    Held,
    /// No newer one is complete (P8).
    LastComplete,
    /// No newer one is proven (P8).
    LastProven,
    /// No rule was given.
    NoRules,
}

/// A backup that is kept, and every reason for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Kept {
    /// The backup.
    pub id: BackupId,
    /// The reasons.
    pub reasons: Vec<KeepReason>,
}

/// What the rules come to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct RetentionPlan {
    /// What is kept, oldest first.
    pub keep: Vec<Kept>,
    /// What is to be forgotten, oldest first.
    pub forget: Vec<BackupId>,
}

/// Plans which of a database's backups are kept. Hours, days, weeks, months and years are those of `zone`.
/// Where there are complete backups, those that are not fill no slot of a rule: they cannot stand for
/// their day.
///
/// # Errors
///
/// When a backup is dated in the future: then a clock is or was wrong, and ages mean nothing (rule 23).
pub fn plan_retention(
    rules: &KeepRules,
    candidates: &[Candidate],
    zone: &TimeZone,
    now: Timestamp,
) -> Result<RetentionPlan, RepositoryError> {
    if let Some(future) = candidates
        .iter()
        .find(|candidate| candidate.taken > now.plus(CLOCK_TOLERANCE))
    {
        return Err(RepositoryError::FutureBackup {
            backup: future.id,
            dated: future.taken.to_string(),
        });
    }
    let mut newest_first: Vec<&Candidate> = candidates.iter().collect();
    newest_first.sort_by_key(|candidate| std::cmp::Reverse((candidate.taken, candidate.id)));
    let mut reasons: Vec<Vec<KeepReason>> = vec![Vec::new(); newest_first.len()];

    if rules.is_empty() {
        for reasons in &mut reasons {
            reasons.push(KeepReason::NoRules);
        }
    }
    let countable: Vec<usize> = (0..newest_first.len())
        .filter(|at| newest_first[*at].complete)
        .collect();
    for at in countable.iter().take(rules.last as usize) {
        reasons[*at].push(KeepReason::Last);
    }
    type Slot = fn(&jiff::Zoned) -> (i64, i64);
    let slots: [(u32, KeepReason, Slot); 5] = [
        // Hours are told apart by their instant: an hour that a clock change repeats is two.
        (rules.hourly, KeepReason::Hourly, |time| {
            (
                0,
                time.timestamp().as_second()
                    - i64::from(time.minute()) * 60
                    - i64::from(time.second()),
            )
        }),
        (rules.daily, KeepReason::Daily, |time| {
            (time.year().into(), time.day_of_year().into())
        }),
        (rules.weekly, KeepReason::Weekly, |time| {
            let week = time.date().iso_week_date();
            (week.year().into(), week.week().into())
        }),
        (rules.monthly, KeepReason::Monthly, |time| {
            (time.year().into(), time.month().into())
        }),
        (rules.yearly, KeepReason::Yearly, |time| {
            (time.year().into(), 0)
        }),
    ];
    for (count, reason, slot) in slots {
        let mut seen = HashSet::new();
        for at in &countable {
            if seen.len() == count as usize {
                break;
            }
            let time = newest_first[*at].taken.to_jiff().to_zoned(zone.clone());
            if seen.insert(slot(&time)) {
                reasons[*at].push(reason.clone());
            }
        }
    }
    for (at, candidate) in newest_first.iter().enumerate() {
        if let Some(seconds) = rules.within_seconds
            && candidate.taken >= now.minus(std::time::Duration::from_secs(seconds))
        {
            reasons[at].push(KeepReason::Within);
        }
        if let Some(tag) = candidate.tags.iter().find(|tag| rules.tags.contains(tag)) {
            reasons[at].push(KeepReason::Tag { tag: tag.clone() });
        }
        if candidate.held {
            reasons[at].push(KeepReason::Held);
        }
    }
    let mut keep_newest = |wanted: fn(&Candidate) -> bool, reason: KeepReason| {
        if let Some(at) = newest_first.iter().position(|candidate| wanted(candidate)) {
            reasons[at].push(reason);
        }
    };
    keep_newest(|candidate| candidate.complete, KeepReason::LastComplete);
    keep_newest(
        |candidate| candidate.complete && candidate.proven,
        KeepReason::LastProven,
    );
    if countable.is_empty() {
        // Nothing is whole: what there is may be all that can be saved.
        for reasons in &mut reasons {
            reasons.push(KeepReason::LastComplete);
        }
    }

    let mut plan = RetentionPlan::default();
    for (candidate, reasons) in newest_first.into_iter().zip(reasons).rev() {
        if reasons.is_empty() {
            plan.forget.push(candidate.id);
        } else {
            plan.keep.push(Kept {
                id: candidate.id,
                reasons,
            });
        }
    }
    Ok(plan)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(text: &str) -> Timestamp {
        Timestamp::from_jiff(text.parse().unwrap())
    }

    fn candidate(taken: Timestamp) -> Candidate {
        Candidate {
            id: BackupId::from_uuid(uuid::Uuid::new_v4()),
            taken,
            tags: Vec::new(),
            held: false,
            complete: true,
            proven: false,
        }
    }

    fn days(count: i64) -> Vec<Candidate> {
        (0..count)
            .map(|day| {
                let day_micros = 86_400_000_000;
                candidate(Timestamp::from_micros(
                    at("2026-01-01T03:00:00Z").micros() + day * day_micros,
                ))
            })
            .collect()
    }

    fn kept(
        rules: &KeepRules,
        candidates: &[Candidate],
        zone: &TimeZone,
        now: Timestamp,
    ) -> Vec<usize> {
        let plan = plan_retention(rules, candidates, zone, now).unwrap();
        assert_eq!(plan.keep.len() + plan.forget.len(), candidates.len());
        let ids: HashSet<_> = plan.keep.iter().map(|kept| kept.id).collect();
        (0..candidates.len())
            .filter(|at| ids.contains(&candidates[*at].id))
            .collect()
    }

    const LATER: &str = "2027-06-01T00:00:00Z";

    #[test]
    fn the_newest_of_each_slot_is_kept() {
        let backups = days(60);
        let utc = TimeZone::UTC;
        let keep = |rules: KeepRules| kept(&rules, &backups, &utc, at(LATER));
        assert_eq!(
            keep(KeepRules {
                last: 3,
                ..KeepRules::default()
            }),
            [57, 58, 59]
        );
        assert_eq!(
            keep(KeepRules {
                daily: 2,
                ..KeepRules::default()
            }),
            [58, 59]
        );
        // 1 January 2026 is a Thursday: weeks end on days 3, 10, 17 … of the list; the last day is a Sunday.
        assert_eq!(
            keep(KeepRules {
                weekly: 3,
                ..KeepRules::default()
            }),
            [45, 52, 59]
        );
        assert_eq!(
            keep(KeepRules {
                monthly: 5,
                ..KeepRules::default()
            }),
            [30, 58, 59]
        );
        assert_eq!(
            keep(KeepRules {
                yearly: 2,
                ..KeepRules::default()
            }),
            [59]
        );
        assert_eq!(
            keep(KeepRules {
                daily: 2,
                weekly: 2,
                ..KeepRules::default()
            }),
            [52, 58, 59]
        );
    }

    #[test]
    fn a_day_is_the_day_of_the_given_zone() {
        let backups = [
            candidate(at("2026-01-01T22:30:00Z")),
            candidate(at("2026-01-01T23:30:00Z")),
            candidate(at("2026-01-02T10:00:00Z")),
        ];
        let rules = KeepRules {
            daily: 2,
            ..KeepRules::default()
        };
        let berlin = TimeZone::get("Europe/Berlin").unwrap();
        assert_eq!(kept(&rules, &backups, &TimeZone::UTC, at(LATER)), [1, 2]);
        assert_eq!(kept(&rules, &backups, &berlin, at(LATER)), [0, 2]);
    }

    #[test]
    fn an_hour_that_a_clock_change_repeats_is_two() {
        let backups = [
            candidate(at("2026-10-25T00:30:00Z")),
            candidate(at("2026-10-25T01:30:00Z")),
        ];
        let rules = KeepRules {
            hourly: 2,
            ..KeepRules::default()
        };
        let berlin = TimeZone::get("Europe/Berlin").unwrap();
        assert_eq!(kept(&rules, &backups, &berlin, at(LATER)), [0, 1]);
    }

    #[test]
    fn tags_age_and_holds_keep_beside_the_slots() {
        let mut backups = days(10);
        backups[2].tags.push("release".into());
        backups[3].held = true;
        let rules = KeepRules {
            within_seconds: Some(2 * 86_400 + 10),
            tags: vec!["release".into()],
            ..KeepRules::default()
        };
        let now = at("2026-01-10T03:00:05Z");
        assert_eq!(kept(&rules, &backups, &TimeZone::UTC, now), [2, 3, 7, 8, 9]);
    }

    #[test]
    fn p8_the_last_complete_and_the_last_proven_backup_stay_whatever_the_rules_say() {
        let mut backups = days(10);
        backups[4].proven = true;
        for broken in &mut backups[8..] {
            broken.complete = false;
        }
        let rules = KeepRules {
            tags: vec!["none".into()],
            ..KeepRules::default()
        };
        assert_eq!(kept(&rules, &backups, &TimeZone::UTC, at(LATER)), [4, 7]);
        let rules = KeepRules {
            last: 1,
            ..KeepRules::default()
        };
        assert_eq!(kept(&rules, &backups, &TimeZone::UTC, at(LATER)), [4, 7]);
    }

    #[test]
    fn p8_where_nothing_is_complete_nothing_is_forgotten() {
        let mut backups = days(4);
        backups
            .iter_mut()
            .for_each(|backup| backup.complete = false);
        let rules = KeepRules {
            last: 1,
            ..KeepRules::default()
        };
        assert_eq!(
            kept(&rules, &backups, &TimeZone::UTC, at(LATER)),
            [0, 1, 2, 3]
        );
    }

    #[test]
    fn no_rules_keep_everything() {
        let backups = days(5);
        assert_eq!(
            kept(&KeepRules::default(), &backups, &TimeZone::UTC, at(LATER)).len(),
            5
        );
    }

    #[test]
    fn rule_23_a_backup_dated_in_the_future_stops_retention() {
        let backups = days(3);
        let rules = KeepRules {
            last: 1,
            ..KeepRules::default()
        };
        let outcome = plan_retention(&rules, &backups, &TimeZone::UTC, at("2026-01-02T03:00:00Z"));
        assert!(
            matches!(outcome, Err(RepositoryError::FutureBackup { backup, .. }) if backup == backups[2].id)
        );
    }

    proptest! {
        #[test]
        fn p8_a_plan_never_forgets_the_last_good_copy_or_a_held_one(
            states in proptest::collection::vec((any::<bool>(), any::<bool>(), any::<bool>()), 1..30),
            last in 0u32..4, daily in 0u32..4, weekly in 0u32..4,
        ) {
            let mut backups = days(states.len() as i64);
            for (backup, (complete, proven, held)) in backups.iter_mut().zip(&states) {
                backup.complete = *complete;
                backup.proven = *proven && *complete;
                backup.held = *held;
            }
            let rules = KeepRules { last, daily, weekly, tags: vec!["x".into()], ..KeepRules::default() };
            let kept = kept(&rules, &backups, &TimeZone::UTC, at(LATER));
            for wanted in [
                backups.iter().rposition(|backup| backup.complete),
                backups.iter().rposition(|backup| backup.proven),
            ].into_iter().flatten() {
                prop_assert!(kept.contains(&wanted));
            }
            for (at, backup) in backups.iter().enumerate() {
                prop_assert!(!backup.held || kept.contains(&at));
            }
        }
    }
}
