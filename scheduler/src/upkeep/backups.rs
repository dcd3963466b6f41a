//! What follows a backup: a proof, as often as the policy asks for one, and retention by the keep rules
//! of the database's policies. The catalogue says which backups are new; a key for each backup keeps a
//! job from being submitted twice, also by the next leader.

use std::{
    collections::HashSet,
    sync::{Arc, LazyLock},
    time::Duration,
};

use fettler_ledger::{BackupFilter, BackupRecord, PolicyRecord, Result};
use fettler_model::{BackupId, BackupState, DatabaseId, KeepRules, ProveEvery, Timestamp};
use jiff::{
    Zoned,
    tz::{TimeZone, TimeZoneDatabase},
};
use serde_json::json;

use super::submit_once;
use crate::{Shared, request::RequestOptions, tell_once};

/// The catalogue is looked at this often when nothing says that a job has ended.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// Ends of jobs within this time are looked at together.
const GATHER: Duration = Duration::from_millis(200);
/// Backups older than this were followed by an earlier leader, or are not followed any more: keys are
/// kept longer.
const FOLLOWED_WITHIN: Duration = Duration::from_secs(24 * 3600);
/// How many backups one look has at most.
const PAGE: usize = 500;

static ZONES: LazyLock<TimeZoneDatabase> = LazyLock::new(TimeZoneDatabase::bundled);

/// Follows new backups, until dropped.
pub(crate) async fn follow_backups(shared: Arc<Shared>) {
    let mut wakeups = shared.ledger.wakeups();
    let mut followed = HashSet::new();
    let mut failing = false;
    loop {
        match follow(&shared, &mut followed).await {
            Ok(()) => failing = false,
            Err(error) => tell_once(&mut failing, "following backups", &error),
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK_EVERY) => {}
            () = wakeups.changed() => tokio::time::sleep(GATHER).await,
        }
    }
}

async fn follow(shared: &Shared, followed: &mut HashSet<BackupId>) -> Result<()> {
    let now = shared.ledger.now().await?;
    let filter = BackupFilter {
        states: vec![BackupState::Complete],
        limit: PAGE,
        ..BackupFilter::default()
    };
    let mut fresh: Vec<BackupRecord> = shared
        .ledger
        .backups(&filter)
        .await?
        .into_iter()
        .filter(|record| now.since(record.facts.finished) < FOLLOWED_WITHIN)
        .collect();
    followed.retain(|id| fresh.iter().any(|record| record.facts.id == *id));
    fresh.retain(|record| !followed.contains(&record.facts.id));
    // Oldest first: the first backup of a period is the one that is proven.
    for record in fresh.iter().rev() {
        if let Some(database) = record.facts.database {
            follow_one(shared, record, database).await?;
        }
        followed.insert(record.facts.id);
    }
    Ok(())
}

async fn follow_one(shared: &Shared, backup: &BackupRecord, database: DatabaseId) -> Result<()> {
    let policies: Vec<PolicyRecord> = shared
        .ledger
        .policies_of(database)
        .await?
        .into_iter()
        .filter(|policy| policy.spec.kind.as_str() == "backup")
        .collect();
    for policy in &policies {
        if is_to_be_proven(shared, backup, database, policy).await? {
            prove(shared, backup, database, policy).await?;
        }
    }
    if let Some(keep) = keep_rules(&policies) {
        retain(shared, backup, database, &keep).await?;
    }
    Ok(())
}

async fn is_to_be_proven(
    shared: &Shared,
    backup: &BackupRecord,
    database: DatabaseId,
    policy: &PolicyRecord,
) -> Result<bool> {
    let every = policy.spec.prove;
    match every {
        ProveEvery::Never => return Ok(false),
        ProveEvery::Backup => return Ok(backup.last_proof.is_none()),
        ProveEvery::Daily | ProveEvery::Weekly | ProveEvery::Monthly => {}
    }
    let zone = ZONES
        .get(policy.spec.time_zone.trim())
        .unwrap_or(TimeZone::UTC);
    let this = period(every, backup.facts.finished, &zone);
    let filter = BackupFilter {
        tenant: Some(policy.tenant.clone()),
        database: Some(database),
        ..BackupFilter::default()
    };
    // A proof of any of the database's backups counts for the period in which it was made.
    let proven = shared.ledger.backups(&filter).await?.iter().any(|record| {
        record
            .last_proof
            .as_ref()
            .is_some_and(|proof| period(every, proof.finished, &zone) == this)
    });
    Ok(!proven)
}

/// Names the day, the ISO week or the month of a moment.
fn period(every: ProveEvery, moment: Timestamp, zone: &TimeZone) -> (i16, i16) {
    let time: Zoned = moment.to_jiff().to_zoned(zone.clone());
    match every {
        ProveEvery::Monthly => (time.year(), i16::from(time.month())),
        ProveEvery::Weekly => {
            let week = time.date().iso_week_date();
            (week.year(), i16::from(week.week()))
        }
        _ => (time.year(), time.day_of_year()),
    }
}

async fn prove(
    shared: &Shared,
    backup: &BackupRecord,
    database: DatabaseId,
    policy: &PolicyRecord,
) -> Result<()> {
    let id = backup.facts.id;
    let unique = match policy.spec.prove {
        ProveEvery::Backup => format!("prove:{id}"),
        // One that waits or runs will be the period's.
        _ => format!("prove:{}", policy.id),
    };
    submit_once(
        shared,
        &policy.tenant,
        "prove",
        json!({"place": backup.place, "backup": id}),
        RequestOptions {
            database: Some(database),
            unique_key: Some(unique),
            ..RequestOptions::default()
        },
        format!("prove/{}/{id}", policy.id),
    )
    .await
}

async fn retain(
    shared: &Shared,
    backup: &BackupRecord,
    database: DatabaseId,
    keep: &KeepRules,
) -> Result<()> {
    let id = backup.facts.id;
    submit_once(
        shared,
        &backup.facts.tenant,
        "retention",
        json!({"place": backup.place, "keep": keep}),
        RequestOptions {
            database: Some(database),
            unique_key: Some(format!("retention:{database}:{}", backup.place)),
            ..RequestOptions::default()
        },
        format!("retention/{id}"),
    )
    .await
}

/// What all policies of a database together want kept. A backup does not say which policy made it, so
/// that nothing is forgotten while one of them keeps all (P8).
fn keep_rules(policies: &[PolicyRecord]) -> Option<KeepRules> {
    let mut together: Option<KeepRules> = None;
    for policy in policies {
        let keep = policy.spec.keep.as_ref().filter(|keep| !keep.is_empty())?;
        together = Some(match together {
            None => keep.clone(),
            Some(so_far) => union(so_far, keep),
        });
    }
    together
}

/// Keeps what either keeps: each rule counts the newest of something, so that the greater number holds
/// both.
fn union(one: KeepRules, other: &KeepRules) -> KeepRules {
    let mut tags = one.tags;
    tags.extend(
        other
            .tags
            .iter()
            .filter(|tag| !tags.contains(tag))
            .cloned()
            .collect::<Vec<_>>(),
    );
    KeepRules {
        last: one.last.max(other.last),
        hourly: one.hourly.max(other.hourly),
        daily: one.daily.max(other.daily),
        weekly: one.weekly.max(other.weekly),
        monthly: one.monthly.max(other.monthly),
        yearly: one.yearly.max(other.yearly),
        within_seconds: one.within_seconds.max(other.within_seconds),
        tags,
    }
}

#[cfg(test)]
mod tests {
    use fettler_model::{CatchUp, Overlap, PolicyId, PolicySpec, Priority, TenantId};

    use super::*;

    fn policy(keep: Option<KeepRules>) -> PolicyRecord {
        PolicyRecord {
            id: PolicyId::new(),
            tenant: TenantId::default_tenant(),
            name: "nightly".parse().expect("a name"),
            database: None,
            spec: PolicySpec {
                kind: "backup".parse().expect("a kind"),
                arguments: serde_json::Value::Null,
                cron: "0 2 * * *".to_owned(),
                time_zone: "UTC".to_owned(),
                catch_up: CatchUp::Once,
                overlap: Overlap::Skip,
                window: None,
                jitter_seconds: 0,
                priority: Priority::Normal,
                keep,
                prove: ProveEvery::Never,
                timeout_seconds: None,
                paused: false,
            },
            next_due: None,
            last_job: None,
            created: Timestamp::from_micros(0),
        }
    }

    #[test]
    fn p8_the_rules_of_all_policies_of_a_database_hold_together() {
        let hourly = KeepRules {
            hourly: 24,
            last: 3,
            ..KeepRules::default()
        };
        let monthly = KeepRules {
            monthly: 12,
            last: 1,
            within_seconds: Some(60),
            ..KeepRules::default()
        };
        let together = keep_rules(&[policy(Some(hourly.clone())), policy(Some(monthly))]);
        let expected = KeepRules {
            last: 3,
            hourly: 24,
            monthly: 12,
            within_seconds: Some(60),
            ..KeepRules::default()
        };
        assert_eq!(together, Some(expected));
        assert_eq!(keep_rules(&[policy(Some(hourly)), policy(None)]), None);
        assert_eq!(keep_rules(&[policy(Some(KeepRules::default()))]), None);
        assert_eq!(keep_rules(&[]), None);
    }

    #[test]
    fn periods_are_those_of_the_policys_own_zone() {
        let at = |text: &str| Timestamp::from_jiff(text.parse().expect("a time"));
        let berlin = ZONES.get("Europe/Berlin").expect("a zone");
        // Half past eleven at night in London is the next day, week, month and year in Berlin.
        let late = at("2023-12-31T23:30:00Z");
        let next = at("2024-01-01T12:00:00Z");
        for every in [ProveEvery::Daily, ProveEvery::Weekly, ProveEvery::Monthly] {
            assert_eq!(period(every, late, &berlin), period(every, next, &berlin));
            assert_ne!(
                period(every, late, &TimeZone::UTC),
                period(every, next, &TimeZone::UTC)
            );
        }
    }
}
