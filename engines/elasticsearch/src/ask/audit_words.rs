//! Words of questions that an audit asks:
//!
//! - `ANONYMOUS`: what a request without a login is let do. It is tried, and reads the cluster's health alone;
//! - `NETWORK`: whether this session is encrypted, where it goes, and whether the cluster answers without TLS beside it;
//! - `CERTIFICATES`: a line for each that the node asked uses, with the days that are left of it;
//! - `LICENCE`: the cluster's, with the days that are left of it.

use std::net::IpAddr;

use fettler_engine::{Row, is_public, is_remote};
use fettler_model::Timestamp;
use serde_json::{Value, json};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::{Asked, Failed, unread};
use crate::{
    client::Client,
    params::{Login, Params},
    server::Flavour,
};

const MICROSECONDS_OF_A_DAY: i64 = 86_400_000_000;

/// How long a second connection may take to be answered.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(3);

/// `ANONYMOUS`.
pub(super) async fn anonymous(params: &Params) -> Result<Vec<Row>, Failed> {
    let nobody = Params {
        login: Login::Nobody,
        // A certificate would be a login too.
        identity: None,
        ..params.clone()
    };
    let is_let_in = is_let_in(&nobody)
        .await
        .ok_or_else(|| unread("a second connection without a login was not answered"))?;
    Ok(vec![Row::from_iter([
        ("is_let_in".to_owned(), json!(is_let_in)),
        (
            "is_remote".to_owned(),
            json!(address_of(params).await.is_some_and(is_remote)),
        ),
    ])])
}

/// `NETWORK`.
pub(super) async fn network(params: &Params) -> Vec<Row> {
    let address = address_of(params).await;
    let plain_port_answers = params.is_tls
        && is_let_in(&Params {
            is_tls: false,
            ca: None,
            identity: None,
            login: Login::Nobody,
            ..params.clone()
        })
        .await
        .is_some();
    vec![Row::from_iter([
        (
            "address".to_owned(),
            json!(address.map_or_else(|| params.host.clone(), |one| one.to_string())),
        ),
        (
            "is_remote".to_owned(),
            json!(address.is_some_and(is_remote)),
        ),
        (
            "is_public".to_owned(),
            json!(address.is_some_and(is_public)),
        ),
        ("is_encrypted".to_owned(), json!(params.is_tls)),
        ("plain_port_answers".to_owned(), json!(plain_port_answers)),
    ])]
}

impl Asked {
    /// `CERTIFICATES`.
    pub(super) async fn certificates(&mut self) -> Result<Vec<Row>, Failed> {
        let path = match self.server.flavour {
            Flavour::Elasticsearch => "/_ssl/certificates",
            Flavour::OpenSearch => "/_plugins/_security/api/ssl/certs",
        };
        let told = self.get(path).await?;
        Ok(certificates_of(&told, Timestamp::now()))
    }

    /// `LICENCE`. OpenSearch has none.
    pub(super) async fn licence(&mut self) -> Result<Vec<Row>, Failed> {
        if self.server.flavour == Flavour::OpenSearch {
            return Err(Failed::Refused(fettler_engine::Refusal::OtherVersion));
        }
        let told = self.get("/_license").await?;
        Ok(licence_of(&told, Timestamp::now()))
    }
}

/// Elasticsearch gives a list, with the file and `expiry`; OpenSearch lists by use, with `not_after`.
fn certificates_of(told: &Value, now: Timestamp) -> Vec<Row> {
    let lists: Vec<&Value> = match told {
        Value::Object(by_use) => by_use.values().collect(),
        other => vec![other],
    };
    lists
        .into_iter()
        .filter_map(Value::as_array)
        .flatten()
        .map(|one| {
            let text = |name: &str| one[name].as_str().unwrap_or_default();
            let end = [&one["expiry"], &one["not_after"]]
                .into_iter()
                .find_map(|end| serde_json::from_value::<Timestamp>(end.clone()).ok());
            let mut row = Row::from_iter([
                ("file".to_owned(), json!(text("path"))),
                ("subject".to_owned(), json!(text("subject_dn"))),
            ]);
            match end {
                Some(end) => row.insert("days_left".to_owned(), json!(days_between(now, end))),
                None => row.insert(
                    "not_evaluable".to_owned(),
                    json!("a certificate's end is not told"),
                ),
            };
            row
        })
        .collect()
}

fn licence_of(told: &Value, now: Timestamp) -> Vec<Row> {
    let licence = &told["license"];
    let days_left = licence["expiry_date_in_millis"]
        .as_i64()
        .map(|end| Timestamp::from_micros(end.saturating_mul(1000)))
        .map_or(i64::MAX, |end| days_between(now, end));
    vec![Row::from_iter([
        ("kind".to_owned(), licence["type"].clone()),
        ("status".to_owned(), licence["status"].clone()),
        ("days_left".to_owned(), json!(days_left)),
    ])]
}

/// Whole days, rounded down.
fn days_between(from: Timestamp, to: Timestamp) -> i64 {
    (to.micros() - from.micros()).div_euclid(MICROSECONDS_OF_A_DAY)
}

/// Whether a server lets a request in that asks for its health; none where it does not answer as one.
async fn is_let_in(params: &Params) -> Option<bool> {
    let stop = CancellationToken::new();
    let client = Client::visitor_until(params, &stop).ok()?;
    let asked = client.try_get("/_cluster/health?local=true&filter_path=status");
    match timeout(PATIENCE, asked).await.ok()? {
        Ok(Ok(_)) => Some(true),
        // A managed service, and a proxy, refuse by 403 whom they do not know.
        Ok(Err(refusal)) => matches!(refusal.status, 401 | 403).then_some(false),
        Err(_) => None,
    }
}

/// The address that the host's name stands for.
async fn address_of(params: &Params) -> Option<IpAddr> {
    if let Some(address) = params.addresses.first() {
        return Some(address.to_canonical());
    }
    let host = params.host.trim_matches(['[', ']']);
    let mut found = timeout(PATIENCE, tokio::net::lookup_host((host, params.port)))
        .await
        .ok()?
        .ok()?;
    found.next().map(|one| one.ip().to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The answers of the documented form of both products.
    #[test]
    fn days_are_counted_to_the_end_of_certificates_and_licences() {
        let now: Timestamp = serde_json::from_value(json!("2026-06-01T00:00:00Z")).unwrap();
        let elastic = json!([{"path": "certs/http.p12", "format": "PKCS12", "alias": "http", "subject_dn": "CN=node", "serial_number": "a1", "has_private_key": true, "expiry": "2026-06-11T00:00:00.000Z", "issuer": "CN=ca"}]);
        let row = certificates_of(&elastic, now).remove(0);
        assert_eq!(
            (&row["subject"], &row["days_left"]),
            (&json!("CN=node"), &json!(10))
        );
        let open = json!({"http_certificates_list": [{"issuer_dn": "CN=ca", "subject_dn": "CN=node", "san": "", "not_before": "2025-01-01T00:00:00Z", "not_after": "2026-05-31T12:00:00Z"}], "transport_certificates_list": []});
        let rows = certificates_of(&open, now);
        assert_eq!((rows.len(), &rows[0]["days_left"]), (1, &json!(-1)));
        assert!(certificates_of(&json!([{"path": "x"}]), now)[0].contains_key("not_evaluable"));
        let basic = licence_of(
            &json!({"license": {"status": "active", "type": "basic"}}),
            now,
        );
        assert_eq!(basic[0]["days_left"], i64::MAX);
        let gold = json!({"license": {"status": "active", "type": "gold", "expiry_date_in_millis": 1_780_876_800_000_i64}});
        assert_eq!(licence_of(&gold, now)[0]["days_left"], 7);
    }
}
