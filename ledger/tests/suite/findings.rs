//! Findings and their history.

use std::collections::BTreeSet;

use fettler_ledger::{FindingFilter, FindingsSeen, LedgerError};
use fettler_model::{
    Area, Engine, Finding, FindingStep, Fix, RecordedFindings, Severity, Status, TenantId,
};
use serde_json::json;

use super::*;

fn finding(check: &str, object: &str, severity: Severity) -> Finding {
    Finding {
        key: Finding::key_of(check, object),
        check: check.to_owned(),
        engine: Engine::Sqlite,
        area: Area::Health,
        dimension: None,
        severity,
        object: object.to_owned(),
        title: format!("{check} of {object}"),
        evidence: json!({"lsn": u64::MAX}).as_object().unwrap().clone(),
        why: String::new(),
        fix: Fix::default(),
        references: Vec::new(),
        status: Status::Open,
    }
}

fn hidden(check: &str) -> Finding {
    Finding {
        status: Status::NotEvaluable {
            because: "no right".to_owned(),
        },
        ..finding(check, "not_evaluable", Severity::Info)
    }
}

async fn look(
    ledger: &Ledger,
    database: DatabaseId,
    findings: &[Finding],
    conclusive: &[&str],
) -> RecordedFindings {
    let conclusive: BTreeSet<String> = conclusive.iter().map(|one| (*one).to_owned()).collect();
    let look = FindingsSeen {
        tenant: &tenant(),
        database,
        findings,
        conclusive: &conclusive,
    };
    ledger.record_findings(&look, None).await.unwrap()
}

fn steps(recorded: &RecordedFindings) -> Vec<(&str, FindingStep)> {
    recorded
        .changes
        .iter()
        .map(|change| (change.key.as_str(), change.step))
        .collect()
}

async fn listed(ledger: &Ledger, states: &[&str]) -> Vec<String> {
    let filter = FindingFilter {
        tenant: Some(tenant()),
        states: states.iter().map(|state| (*state).to_owned()).collect(),
        ..FindingFilter::default()
    };
    let found = ledger.findings(&filter).await.unwrap();
    found.into_iter().map(|one| one.finding.key).collect()
}

pub async fn a_finding_is_opened_changed_resolved_and_reopened(place: &Place) {
    let ledger = place.open().await;
    let shop = add_database(&ledger, "shop").await;
    let other = add_database(&ledger, "other").await;
    let both = [
        finding("c", "x", Severity::Low),
        finding("c", "y", Severity::High),
    ];
    let first = look(&ledger, shop, &both, &["c"]).await;
    assert_eq!(
        steps(&first),
        [("c:x", FindingStep::Opened), ("c:y", FindingStep::Opened)]
    );
    // The same again is no news, and another database is another matter.
    assert_eq!(look(&ledger, shop, &both, &["c"]).await.changes, []);
    look(&ledger, other, &both[..1], &["c"]).await;
    // The gravest first.
    assert_eq!(listed(&ledger, &["open"]).await[0], "c:y");

    let graver = [finding("c", "x", Severity::Critical)];
    let second = look(&ledger, shop, &graver, &["c"]).await;
    assert_eq!(
        steps(&second),
        [
            ("c:x", FindingStep::Changed),
            ("c:y", FindingStep::Resolved)
        ]
    );
    assert_eq!(listed(&ledger, &["resolved"]).await, ["c:y"]);
    // Resolved stays resolved, and comes again as what it was.
    assert_eq!(look(&ledger, shop, &graver, &["c"]).await.changes, []);
    let third = look(&ledger, shop, &both, &["c"]).await;
    assert!(steps(&third).contains(&("c:y", FindingStep::Reopened)));
    let filter = FindingFilter {
        database: Some(shop),
        check: Some("c".to_owned()),
        severity: Some(Severity::High),
        area: Some(Area::Health),
        limit: 5,
        ..FindingFilter::default()
    };
    let found = ledger.findings(&filter).await.unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!((found[0].times_opened, found[0].resolved), (2, None));
    assert_eq!(found[0].finding.evidence["lsn"], json!(u64::MAX));
    let history = ledger
        .finding_history(&tenant(), shop, "c:y")
        .await
        .unwrap();
    let told: Vec<FindingStep> = history.iter().map(|step| step.step).collect();
    assert_eq!(
        told,
        [
            FindingStep::Reopened,
            FindingStep::Resolved,
            FindingStep::Opened
        ]
    );
    // They go with their database.
    ledger.remove_database(shop).await.unwrap();
    assert_eq!(listed(&ledger, &[]).await, ["c:x"]);
}

pub async fn what_could_not_be_looked_at_resolves_nothing(place: &Place) {
    let ledger = place.open().await;
    let shop = add_database(&ledger, "shop").await;
    look(&ledger, shop, &[finding("c", "x", Severity::High)], &["c"]).await;
    let blind = look(&ledger, shop, &[hidden("c")], &[]).await;
    assert_eq!(blind.changes, []);
    assert_eq!(listed(&ledger, &["open"]).await, ["c:x"]);
    assert_eq!(
        listed(&ledger, &["not_evaluable"]).await,
        ["c:not_evaluable"]
    );
    let seeing = look(&ledger, shop, &[], &["c"]).await;
    assert_eq!(steps(&seeing), [("c:x", FindingStep::Resolved)]);
    assert_eq!(listed(&ledger, &[]).await, ["c:x"]);
}

pub async fn what_is_set_aside_is_until_its_time_is_over(place: &Place) {
    let ledger = place.open().await;
    let shop = add_database(&ledger, "shop").await;
    let found = [finding("c", "x", Severity::High)];
    look(&ledger, shop, &found, &["c"]).await;
    let now = ledger.now().await.unwrap();
    let set_aside = async |until, because| {
        ledger
            .suppress_finding(&tenant(), shop, "c:x", until, because)
            .await
            .unwrap()
    };
    let later = now.plus(Duration::from_secs(3600));
    let record = set_aside(Some(later), Some("known")).await;
    assert_eq!(record.finding.status.as_str(), "suppressed");
    assert_eq!(listed(&ledger, &["open"]).await, [""; 0]);
    let seen = look(&ledger, shop, &found, &["c"]).await;
    assert!(seen.suppressed.contains_key("c:x"));
    // It is still followed.
    let gone = look(&ledger, shop, &[], &["c"]).await;
    assert_eq!(steps(&gone), [("c:x", FindingStep::Resolved)]);
    look(&ledger, shop, &found, &["c"]).await;
    assert_eq!(listed(&ledger, &["suppressed"]).await, ["c:x"]);

    set_aside(Some(now), Some("over already")).await;
    assert_eq!(listed(&ledger, &["open"]).await, ["c:x"]);
    assert!(
        look(&ledger, shop, &found, &["c"])
            .await
            .suppressed
            .is_empty()
    );
    set_aside(None, Some("for good")).await;
    assert_eq!(listed(&ledger, &["open"]).await, [""; 0]);
    set_aside(None, None).await;
    assert_eq!(listed(&ledger, &["open"]).await, ["c:x"]);

    // P6: to another tenant it is not there.
    let stranger: TenantId = "stranger".parse().unwrap();
    let refused = ledger
        .suppress_finding(&stranger, shop, "c:x", None, Some("mine"))
        .await
        .unwrap_err();
    assert!(matches!(refused, LedgerError::NotFound { .. }));
    let history = ledger.finding_history(&stranger, shop, "c:x").await;
    assert_eq!(history.unwrap(), []);
}

pub async fn p2_a_superseded_look_records_nothing(place: &Place) {
    let ledger = place.open().await;
    let shop = add_database(&ledger, "shop").await;
    submit(&ledger, request("noop")).await;
    let zombie = claim_one(&ledger, LONG).await;
    let stale = Fencing {
        token: fettler_model::AttemptToken::from_value(fencing(&zombie).token.value() - 1),
        ..fencing(&zombie)
    };
    let seen = FindingsSeen {
        tenant: &tenant(),
        database: shop,
        findings: &[finding("c", "x", Severity::High)],
        conclusive: &BTreeSet::new(),
    };
    let refused = ledger.record_findings(&seen, Some(stale)).await;
    assert!(matches!(refused, Err(LedgerError::Superseded { .. })));
    assert_eq!(listed(&ledger, &[]).await, [""; 0]);
    let told = ledger
        .record_findings(&seen, Some(fencing(&zombie)))
        .await
        .unwrap();
    assert_eq!(told.changes[0].job, Some(zombie.job.id));
}
