//! What audits compare with.

use serde_json::json;

use super::*;

pub async fn what_an_audit_compares_with_is_kept_replaced_and_gone_with_its_database(
    place: &Place,
) {
    let ledger = place.open().await;
    let shop = add_database(&ledger, "shop").await;
    let other = add_database(&ledger, "other").await;
    assert_eq!(ledger.audit_baseline(&tenant(), shop).await.unwrap(), None);
    for state in ["first", "second"] {
        let snapshot = json!({"state": state});
        ledger
            .keep_audit_baseline(&tenant(), shop, &snapshot, None)
            .await
            .unwrap();
        let kept = ledger.audit_baseline(&tenant(), shop).await.unwrap();
        assert_eq!(kept, Some(snapshot));
    }
    assert_eq!(ledger.audit_baseline(&tenant(), other).await.unwrap(), None);
    // P6: another tenant's is as good as none.
    let stranger = "stranger".parse().unwrap();
    assert_eq!(ledger.audit_baseline(&stranger, shop).await.unwrap(), None);
    ledger.remove_database(shop).await.unwrap();
    assert_eq!(ledger.audit_baseline(&tenant(), shop).await.unwrap(), None);
}
