//! What tuning keeps: samples, and actions with their way back.

use fettler_ledger::LedgerError;
use fettler_model::{
    ActionKind, JobId, Measurement, Timestamp, TuningAction, TuningRecord, TuningState,
};
use serde_json::json;

use super::*;

fn record(job: JobId, state: TuningState) -> TuningRecord {
    TuningRecord {
        action: TuningAction {
            id: "0a1b2c3d".to_owned(),
            kind: ActionKind::CreateIndex,
            object: "i".to_owned(),
            table: "t".to_owned(),
            finding: "f".to_owned(),
            reason: String::new(),
            safe: true,
            unsafe_because: String::new(),
            apply: vec!["CREATE INDEX CONCURRENTLY i ON t (a)".to_owned()],
            undo: vec!["DROP INDEX CONCURRENTLY i".to_owned()],
            helps: Vec::new(),
            expected: None,
        },
        job,
        state,
        begun: Timestamp::now(),
        applied: None,
        before: Measurement::default(),
        made: Measurement::default(),
        baseline: Vec::new(),
        compared: Vec::new(),
        why: String::new(),
    }
}

pub async fn an_action_is_kept_with_its_way_back_and_a_superseded_attempt_writes_none(
    place: &Place,
) {
    let ledger = place.open().await;
    let shop = add_database(&ledger, "shop").await;
    submit(&ledger, request("noop")).await;
    let attempt = claim_one(&ledger, LONG).await;
    let own = fencing(&attempt);
    let stale = Fencing {
        token: fettler_model::AttemptToken::from_value(own.token.value() - 1),
        ..own
    };
    let begun = record(own.job, TuningState::Applying);
    let refused = ledger
        .record_tuning(&tenant(), shop, &begun, Some(stale))
        .await;
    assert!(matches!(refused, Err(LedgerError::Superseded { .. })));
    let refused = ledger
        .keep_tuning_sample(&tenant(), shop, &json!({}), Some(stale))
        .await;
    assert!(matches!(refused, Err(LedgerError::Superseded { .. })));
    assert_eq!(ledger.tunings(shop).await.unwrap(), []);

    ledger
        .record_tuning(&tenant(), shop, &begun, Some(own))
        .await
        .unwrap();
    assert_eq!(
        ledger.tunings(shop).await.unwrap(),
        std::slice::from_ref(&begun)
    );
    let kept = TuningRecord {
        state: TuningState::Kept,
        ..begun
    };
    ledger
        .record_tuning(&tenant(), shop, &kept, Some(own))
        .await
        .unwrap();
    assert_eq!(ledger.tunings(shop).await.unwrap(), [kept]);

    let sample = json!({"indexes": [[1, 2.0, 3]]});
    ledger
        .keep_tuning_sample(&tenant(), shop, &sample, Some(own))
        .await
        .unwrap();
    let kept = ledger.tuning_samples(shop).await.unwrap();
    assert_eq!(kept.len(), 1);
    assert_eq!(kept[0].1, sample);
    let other = add_database(&ledger, "other").await;
    assert_eq!(ledger.tuning_samples(other).await.unwrap(), []);
}
