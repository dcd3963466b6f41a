//! The part of the suite that is about the HTTP interface: tokens, pages, changes on a condition, and the
//! events of one reader.

use fettler_ledger::{
    BackupFilter, DatabaseChange, EventFilter, EventPosition, LedgerError, NewToken, PolicyChange,
    PolicyRecord,
};
use fettler_model::{
    BackupFacts, BackupId, BackupState, JobId, PolicyId, ProofFacts, ProofVerdict, Role, TenantId,
    Timestamp,
};

use super::{
    LONG, Place, add_database, backup_facts, claim_one, eventually, fencing, policy, request,
    submit, succeeded, tenant,
};

fn token(name: &str, tenant: Option<TenantId>, hash: u8) -> NewToken {
    NewToken {
        name: name.parse().unwrap(),
        tenant,
        role: Role::Operator,
        expires: None,
        hash: [hash; 32],
    }
}

pub async fn a_token_is_known_by_its_hash_until_it_is_removed_or_expires(place: &Place) {
    let ledger = place.open().await;
    let added = ledger.add_token(&token("ci", None, 1)).await.unwrap();
    let known = ledger.token_by_hash(&[1; 32]).await.unwrap();
    assert_eq!(known.record, added);
    assert!(!known.is_expired && known.is_touch_due);
    ledger.touch_token(added.id).await.unwrap();
    let touched = ledger.token_by_hash(&[1; 32]).await.unwrap();
    assert!(touched.record.last_used.is_some() && !touched.is_touch_due);
    ledger.touch_token(added.id).await.unwrap();
    let again = ledger.token_by_hash(&[1; 32]).await.unwrap();
    assert_eq!(again, touched, "its use is recorded once a minute at most");

    let ends = ledger.now().await.unwrap();
    let short = NewToken {
        expires: Some(ends),
        ..token("short", None, 2)
    };
    ledger.add_token(&short).await.unwrap();
    assert!(ledger.token_by_hash(&[2; 32]).await.unwrap().is_expired);

    ledger.remove_token(added.id).await.unwrap();
    for gone in [
        ledger.token_by_hash(&[1; 32]).await.map(drop),
        ledger.remove_token(added.id).await,
    ] {
        assert!(matches!(gone, Err(LedgerError::NotFound { .. })));
    }
}

pub async fn p6_a_token_and_its_name_belong_to_one_tenant(place: &Place) {
    let ledger = place.open().await;
    let acme: TenantId = "acme".parse().unwrap();
    let unknown = ledger.add_token(&token("ci", Some(acme.clone()), 1)).await;
    assert!(matches!(unknown, Err(LedgerError::NotFound { .. })));
    ledger.add_tenant(&acme).await.unwrap();
    ledger
        .add_token(&token("ci", Some(acme.clone()), 1))
        .await
        .unwrap();
    ledger
        .add_token(&token("ci", Some(tenant()), 2))
        .await
        .unwrap();
    ledger.add_token(&token("ci", None, 3)).await.unwrap();
    let taken = ledger.add_token(&token("ci", Some(acme.clone()), 4)).await;
    assert!(matches!(taken, Err(LedgerError::Exists { .. })));
    assert_eq!(ledger.tokens(None).await.unwrap().len(), 3);
    let theirs = ledger.tokens(Some(&acme)).await.unwrap();
    assert_eq!(theirs.len(), 1);
    assert_eq!(theirs[0].tenant, Some(acme.clone()));
    ledger.remove_tenant(&acme).await.unwrap();
    assert_eq!(ledger.tokens(None).await.unwrap().len(), 2);
}

pub async fn what_changed_meanwhile_is_not_overwritten(place: &Place) {
    let ledger = place.open().await;
    let id = add_database(&ledger, "shop").await;
    let seen = ledger.database(id).await.unwrap();
    let rename = |name: &str| DatabaseChange {
        name: Some(name.parse().unwrap()),
        ..DatabaseChange::default()
    };
    let changed = ledger
        .edit_database_if(id, Some(&seen), rename("store"))
        .await
        .unwrap();
    for late in [
        ledger
            .edit_database_if(id, Some(&seen), rename("market"))
            .await
            .map(drop),
        ledger.remove_database_if(id, Some(&seen)).await,
    ] {
        assert!(matches!(late, Err(LedgerError::Changed { .. })), "{late:?}");
    }
    let added = ledger
        .add_policy(&PolicyRecord {
            id: PolicyId::new(),
            ..policy("nightly", None)
        })
        .await
        .unwrap();
    let rename = |name: &str| PolicyChange {
        name: Some(name.parse().unwrap()),
        ..PolicyChange::default()
    };
    let edited = ledger
        .edit_policy_if(added.id, Some(&added), rename("daily"))
        .await
        .unwrap();
    for late in [
        ledger
            .edit_policy_if(added.id, Some(&added), rename("weekly"))
            .await
            .map(drop),
        ledger.remove_policy_if(added.id, Some(&added)).await,
    ] {
        assert!(matches!(late, Err(LedgerError::Changed { .. })), "{late:?}");
    }
    ledger
        .remove_policy_if(added.id, Some(&edited))
        .await
        .unwrap();
    ledger.remove_database_if(id, Some(&changed)).await.unwrap();
}

pub async fn rule_10_the_events_of_one_job_and_of_one_tenant_are_read_apart(place: &Place) {
    let ledger = place.open().await;
    let acme: TenantId = "acme".parse().unwrap();
    ledger.add_tenant(&acme).await.unwrap();
    assert_eq!(
        ledger.newest_event().await.unwrap(),
        EventPosition::default()
    );
    let mine = submit(&ledger, request("noop")).await;
    let job = claim_one(&ledger, LONG).await;
    ledger.complete(fencing(&job), succeeded()).await.unwrap();
    let mut theirs = request("noop");
    theirs.tenant = acme.clone();
    let theirs = submit(&ledger, theirs).await;
    let job = claim_one(&ledger, LONG).await;
    ledger
        .upsert_backup(
            "/repository",
            &BackupFacts {
                tenant: acme.clone(),
                ..backup_facts(BackupId::of_job(theirs))
            },
            Some(fencing(&job)),
        )
        .await
        .unwrap();
    ledger.complete(fencing(&job), succeeded()).await.unwrap();

    let read = async |tenant: Option<TenantId>, job: Option<JobId>| {
        let filter = EventFilter { tenant, job };
        let events = ledger
            .events(&filter, EventPosition::default(), 100)
            .await
            .unwrap();
        let kinds: Vec<String> = events.iter().map(|event| event.kind.clone()).collect();
        kinds
    };
    eventually("all events", || async {
        (read(None, None).await.len() == 3).then_some(())
    })
    .await;
    assert_eq!(read(Some(tenant()), None).await, ["job.succeeded"]);
    assert_eq!(read(None, Some(mine)).await, ["job.succeeded"]);
    assert_eq!(
        read(Some(acme), None).await,
        ["backup.complete", "job.succeeded"]
    );
    assert_eq!(
        read(None, Some(theirs)).await,
        ["backup.complete", "job.succeeded"]
    );
    assert_eq!(read(Some(tenant()), Some(theirs)).await, [""; 0]);
    let all = ledger
        .events_after(EventPosition::default(), 100)
        .await
        .unwrap();
    assert_eq!(ledger.newest_event().await.unwrap(), all[2].position);
}

pub async fn databases_policies_tenants_and_backups_are_listed_in_pages(place: &Place) {
    let ledger = place.open().await;
    for name in ["acme", "zeta"] {
        ledger.add_tenant(&name.parse().unwrap()).await.unwrap();
    }
    let first = ledger.tenants_page(None, 2).await.unwrap();
    let rest = ledger.tenants_page(Some(&first[1].id), 2).await.unwrap();
    let names: Vec<&str> = first
        .iter()
        .chain(&rest)
        .map(|one| one.id.as_str())
        .collect();
    assert_eq!(names, ["acme", "default", "zeta"]);

    for name in ["a", "b", "c"] {
        add_database(&ledger, name).await;
        ledger.add_policy(&policy(name, None)).await.unwrap();
    }
    let first = ledger
        .databases_page(Some(&tenant()), None, 2)
        .await
        .unwrap();
    let last = (first[1].tenant.clone(), first[1].name.clone());
    let rest = ledger.databases_page(None, Some(&last), 2).await.unwrap();
    let names: Vec<&str> = first
        .iter()
        .chain(&rest)
        .map(|one| one.name.as_str())
        .collect();
    assert_eq!(names, ["a", "b", "c"]);
    let first = ledger
        .policies_page(Some(&tenant()), None, 2)
        .await
        .unwrap();
    let last = (first[1].tenant.clone(), first[1].name.clone());
    let rest = ledger.policies_page(None, Some(&last), 2).await.unwrap();
    let names: Vec<&str> = first
        .iter()
        .chain(&rest)
        .map(|one| one.name.as_str())
        .collect();
    assert_eq!(names, ["a", "b", "c"]);

    for _ in 0..3 {
        let facts = backup_facts(BackupId::of_job(JobId::new()));
        ledger
            .upsert_backup("/repository", &facts, None)
            .await
            .unwrap();
    }
    let page = |before| BackupFilter {
        before,
        limit: 2,
        ..BackupFilter::default()
    };
    let first = ledger.backups(&page(None)).await.unwrap();
    let last = (first[1].facts.finished, first[1].facts.id);
    let rest = ledger.backups(&page(Some(last))).await.unwrap();
    assert_eq!((first.len(), rest.len()), (2, 1));
    assert!(first[1].facts.id > rest[0].facts.id);
}

pub async fn the_catalogue_counts_what_a_repository_holds(place: &Place) {
    let ledger = place.open().await;
    assert_eq!(ledger.repository_statistics(None).await.unwrap(), []);
    let ids: Vec<BackupId> = (0..3).map(|_| BackupId::of_job(JobId::new())).collect();
    for (id, finished) in ids.iter().zip(2..) {
        let facts = BackupFacts {
            finished: Timestamp::from_micros(finished),
            ..backup_facts(*id)
        };
        ledger
            .upsert_backup("/repository", &facts, None)
            .await
            .unwrap();
    }
    let proof = ProofFacts {
        backup: ids[0],
        verdict: ProofVerdict::Proven,
        finished: Timestamp::from_micros(9),
        restore_seconds: 1.5,
        fingerprints_compared: 9,
        mismatches: Vec::new(),
    };
    ledger.record_proof(&proof, None).await.unwrap();
    for (id, state) in [
        (ids[1], BackupState::Damaged),
        (ids[2], BackupState::Forgotten),
    ] {
        ledger
            .set_backup_state(id, state, "a test", None)
            .await
            .unwrap();
    }
    let found = ledger.repository_statistics(Some(&tenant())).await.unwrap();
    assert_eq!(found.len(), 1);
    let one = &found[0];
    assert_eq!((one.backups, one.damaged, one.proven), (2, 1, 1));
    assert_eq!(one.bytes_read, u64::from(u32::MAX) * 18);
    assert_eq!(one.bytes_stored, 2);
    assert_eq!(
        (one.oldest, one.newest),
        (Timestamp::from_micros(2), Timestamp::from_micros(3))
    );
    let stranger: TenantId = "acme".parse().unwrap();
    assert_eq!(
        ledger.repository_statistics(Some(&stranger)).await.unwrap(),
        []
    );
}
