//! What goes on: `CLIENTS` (who is connected, from where), `LOGINS` (a line for each way to log in, with how often it was taken),
//! `CERTIFICATE`, `JAVASCRIPT`, `WARNINGS` (what the server said at its start) and `MEMBERS` (of its replica set).

use std::{collections::BTreeMap, net::IpAddr};

use bson::{RawDocumentBuf, rawdoc};
use fettler_engine::{Refusal as Unanswered, Row, is_public, is_remote};
use serde_json::{Value, json};

use super::{Asked, Failed, add, known, plain, unread};

const SECONDS_OF_A_DAY: f64 = 86_400.0;

impl Asked {
    /// `CLIENTS`: a line for each user and host. Nobody's address is told but with what it is there for.
    pub(super) async fn clients(&mut self) -> Result<Vec<Row>, Failed> {
        let mut current = rawdoc! { "allUsers": true, "idleConnections": true };
        if self.session.hello.is_router {
            crate::raw::put(&mut current, "localOps", true);
        }
        let mut stage = RawDocumentBuf::new();
        crate::raw::put(&mut stage, "$currentOp", current);
        let mut pipeline = bson::RawArrayBuf::new();
        pipeline.push(stage);
        let mut command = RawDocumentBuf::new();
        crate::raw::put(&mut command, "aggregate", 1);
        crate::raw::put(&mut command, "pipeline", pipeline);
        let sessions: Vec<Value> = self
            .list("admin", command)
            .await
            .map_err(|failed| known("$currentOp", failed))?
            .iter()
            .map(plain::document)
            .collect();
        let superusers: Vec<String> = match self.all_users().await {
            Ok(users) => users
                .iter()
                .filter(|user| user.is_superuser())
                .map(super::users::User::id)
                .collect(),
            Err(Failed::Refused(_)) => return Ok(clients_of(&sessions, None, "")),
            Err(lost) => return Err(lost),
        };
        let asking = self.asking().await?;
        Ok(clients_of(&sessions, Some(&superusers), &asking))
    }

    /// The answer of `serverStatus`, which other questions have as well.
    async fn status(&mut self) -> Result<Value, Failed> {
        self.command(r#"{"serverStatus": 1}"#)
            .await
            .map_err(|failed| known("serverStatus", failed))
    }

    /// `LOGINS`.
    pub(super) async fn logins(&mut self) -> Result<Vec<Row>, Failed> {
        let status = self.status().await?;
        let mut rows =
            logins_of(&status).ok_or_else(|| unread("it does not count logins by their ways"))?;
        let started = self.started_if_told().await?;
        for row in &mut rows {
            add(row, started.as_ref(), &["tls_mode"]);
        }
        Ok(rows)
    }

    /// `CERTIFICATE`. A server without TLS has none.
    pub(super) async fn certificate(&mut self) -> Result<Vec<Row>, Failed> {
        let status = self.status().await?;
        // What does not count its logins either tells nothing of how it is secured.
        if !status["security"].is_object() && !status["transportSecurity"].is_object() {
            return Err(unread("it does not tell of its security"));
        }
        certificate_of(&status)
            .map(|row| vec![row])
            .ok_or(Failed::Refused(Unanswered::OtherVersion))
    }

    /// `JAVASCRIPT`.
    pub(super) async fn javascript(&mut self) -> Result<Vec<Row>, Failed> {
        let started = self.started().await?;
        let status = self.status().await?;
        let uses = uses_of_javascript(&status)
            .ok_or_else(|| unread("it does not count the uses of its operators"))?;
        Ok(vec![Row::from_iter([
            ("is_on".to_owned(), json!(started.is("javascript"))),
            ("uses".to_owned(), json!(uses)),
            ("days_up".to_owned(), json!(days_up(&status))),
        ])])
    }

    /// `WARNINGS`.
    pub(super) async fn warnings(&mut self) -> Result<Vec<Row>, Failed> {
        let told = self
            .told_by("admin", rawdoc! { "getLog": "startupWarnings" })
            .await?;
        let lines = told["log"]
            .as_array()
            .ok_or_else(|| unread("it does not show what it warned of at its start"))?;
        let says = |words: &str| {
            lines
                .iter()
                .filter_map(Value::as_str)
                .any(|line| line.contains(words))
        };
        Ok(vec![Row::from_iter([
            ("warnings".to_owned(), json!(lines.len())),
            ("runs_as_root".to_owned(), json!(says("as the root user"))),
        ])])
    }

    /// `MEMBERS`: a line for each member of the set.
    pub(super) async fn members(&mut self) -> Result<Vec<Row>, Failed> {
        let config = self.command(r#"{"replSetGetConfig": 1}"#).await?;
        let started = self.started().await?;
        let mut rows =
            members_of(&config).ok_or_else(|| unread("the set's configuration cannot be read"))?;
        for row in &mut rows {
            add(row, Some(&started), &["cluster_auth", "tls_mode"]);
        }
        Ok(rows)
    }
}

/// The host of `10.0.0.9:51234` and of `[fd00::1]:51234`.
fn host_of(address: &str) -> &str {
    address
        .rsplit_once(':')
        .map_or(address, |(host, _)| host)
        .trim_matches(['[', ']'])
}

fn clients_of(sessions: &[Value], superusers: Option<&[String]>, asking: &str) -> Vec<Row> {
    let mut seen: BTreeMap<(String, String), u64> = BTreeMap::new();
    for session in sessions {
        let Some(address) = ["client", "client_s"]
            .iter()
            .find_map(|name| session[*name].as_str())
        else {
            continue;
        };
        let users: Vec<String> = session["effectiveUsers"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|one| Some(format!("{}@{}", one["user"].as_str()?, one["db"].as_str()?)))
            .collect();
        let user = users.first().cloned().unwrap_or_default();
        *seen.entry((user, host_of(address).to_owned())).or_default() += 1;
    }
    seen.into_iter()
        .map(|((user, host), count)| {
            let address = host.parse::<IpAddr>().ok();
            // The members of a cluster log in as this one, and are no clients.
            let is_member = user == "__system@local";
            let mut row = Row::from_iter([
                ("user".to_owned(), json!(user)),
                ("host".to_owned(), json!(host)),
                ("sessions".to_owned(), json!(count)),
                (
                    "is_remote".to_owned(),
                    json!(address.is_some_and(is_remote)),
                ),
                (
                    "is_public".to_owned(),
                    json!(address.is_some_and(is_public)),
                ),
                ("is_member".to_owned(), json!(is_member)),
                ("is_asking".to_owned(), json!(user == asking)),
            ]);
            if let Some(superusers) = superusers {
                row.insert("is_superuser".to_owned(), json!(superusers.contains(&user)));
            }
            row
        })
        .collect()
}

fn days_up(status: &Value) -> i64 {
    (status["uptime"].as_f64().unwrap_or(0.0) / SECONDS_OF_A_DAY) as i64
}

/// Logins of clients: those of the cluster's members are counted among them, and taken off.
fn logins_of(status: &Value) -> Option<Vec<Row>> {
    let mechanisms = status
        .pointer("/security/authentication/mechanisms")?
        .as_object()?;
    let count = |told: &Value, what: &str, name: &str| told[what][name].as_i64().unwrap_or(0);
    let of_clients = |told: &Value| {
        count(told, "authenticate", "successful") - count(told, "clusterAuthenticate", "successful")
    };
    let all: i64 = mechanisms.values().map(of_clients).sum();
    Some(
        mechanisms
            .iter()
            .map(|(name, told)| {
                let refused =
                    |what: &str| count(told, what, "received") - count(told, what, "successful");
                // A driver that tries a way which the user has not, with its first word, is no login that was refused.
                let refused = refused("authenticate")
                    - refused("speculativeAuthenticate").max(0)
                    - refused("clusterAuthenticate").max(0);
                Row::from_iter([
                    ("mechanism".to_owned(), json!(name)),
                    ("logins".to_owned(), json!(of_clients(told).max(0))),
                    ("all_logins".to_owned(), json!(all)),
                    ("refused".to_owned(), json!(refused.max(0))),
                    ("days_up".to_owned(), json!(days_up(status))),
                ])
            })
            .collect(),
    )
}

fn certificate_of(status: &Value) -> Option<Row> {
    let security = &status["security"];
    let end = security["SSLServerCertificateExpirationDate"].as_f64()?;
    let now = status["localTime"].as_f64()?;
    Some(Row::from_iter([
        (
            "days_left".to_owned(),
            json!(((end - now) / SECONDS_OF_A_DAY).floor() as i64),
        ),
        (
            "subject".to_owned(),
            json!(
                security["SSLServerSubjectName"]
                    .as_str()
                    .unwrap_or_default()
            ),
        ),
        (
            "has_authority".to_owned(),
            security["SSLServerHasCertificateAuthority"].clone(),
        ),
    ]))
}

/// How often functions in JavaScript were asked for: `$where`, `$function`, `$accumulator` and `mapReduce`.
fn uses_of_javascript(status: &Value) -> Option<i64> {
    let operators = status.pointer("/metrics/operatorCounters")?;
    let counters = [
        operators.get("match")?.get("$where")?,
        operators.get("expressions")?.get("$function")?,
        operators
            .pointer("/groupAccumulators/$accumulator")
            .unwrap_or(&Value::Null),
        status
            .pointer("/metrics/commands/mapReduce/total")
            .unwrap_or(&Value::Null),
    ];
    Some(counters.iter().filter_map(|counter| counter.as_i64()).sum())
}

fn members_of(config: &Value) -> Option<Vec<Row>> {
    let members = config["config"]["members"].as_array()?;
    Some(
        members
            .iter()
            .filter_map(|member| {
                let place = member["host"].as_str()?;
                let address = host_of(place).parse::<IpAddr>().ok();
                Some(Row::from_iter([
                    ("member".to_owned(), json!(place)),
                    ("members".to_owned(), json!(members.len())),
                    (
                        "is_public".to_owned(),
                        json!(address.is_some_and(is_public)),
                    ),
                    (
                        "is_remote".to_owned(),
                        json!(host_of(place) != "localhost" && address.is_none_or(is_remote)),
                    ),
                ]))
            })
            .collect(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers of the documented form of MongoDB 7.0, shortened.
    #[test]
    fn logins_of_members_and_first_words_of_drivers_are_no_clients_and_no_refusals() {
        let status = json!({"uptime": 864_000, "security": {"authentication": {
            "saslSupportedMechsReceived": 9,
            "mechanisms": {
                "SCRAM-SHA-1": {"speculativeAuthenticate": {"received": 0, "successful": 0}, "clusterAuthenticate": {"received": 0, "successful": 0}, "authenticate": {"received": 0, "successful": 0}},
                "SCRAM-SHA-256": {"speculativeAuthenticate": {"received": 40, "successful": 33}, "clusterAuthenticate": {"received": 5, "successful": 5}, "authenticate": {"received": 100, "successful": 90}},
            },
        }}});
        let rows = logins_of(&status).unwrap();
        assert_eq!(rows[1]["mechanism"], "SCRAM-SHA-256");
        assert_eq!(rows[1]["logins"], 85);
        assert_eq!(rows[1]["refused"], 3);
        assert_eq!(rows[0]["all_logins"], 85);
        assert_eq!(rows[0]["days_up"], 10);
        assert!(logins_of(&json!({"uptime": 1})).is_none());
    }

    #[test]
    fn clients_are_counted_by_user_and_host() {
        let session = |client: &str, user: &str| json!({"type": "op", "client": client, "effectiveUsers": [{"user": user, "db": "admin"}]});
        let rows = clients_of(
            &[
                session("10.0.0.9:5", "root"),
                session("10.0.0.9:6", "root"),
                session("[2001:db8::1]:7", "app"),
                session("127.0.0.1:8", "root"),
                json!({"type": "op", "desc": "JournalFlusher"}),
            ],
            Some(&["root@admin".to_owned()]),
            "app@admin",
        );
        assert_eq!(rows.len(), 3);
        let row = |user: &str, host: &str| {
            rows.iter()
                .find(|row| row["user"] == user && row["host"] == host)
                .unwrap()
        };
        assert_eq!(row("root@admin", "10.0.0.9")["sessions"], 2);
        assert_eq!(row("root@admin", "10.0.0.9")["is_superuser"], true);
        assert_eq!(row("root@admin", "127.0.0.1")["is_remote"], false);
        assert_eq!(row("app@admin", "2001:db8::1")["is_public"], true);
        assert_eq!(row("app@admin", "2001:db8::1")["is_asking"], true);
    }

    #[test]
    fn days_are_counted_to_the_end_of_the_certificate() {
        let status = json!({"localTime": 1_795_400_000, "security": {
            "SSLServerSubjectName": "CN=db1", "SSLServerHasCertificateAuthority": true,
            "SSLServerCertificateExpirationDate": 1_795_400_000 + 864_100,
        }});
        let row = certificate_of(&status).unwrap();
        assert_eq!(
            (&row["days_left"], &row["subject"]),
            (&json!(10), &json!("CN=db1"))
        );
        assert!(certificate_of(&json!({"security": {}})).is_none());
    }

    #[test]
    fn each_way_to_run_javascript_counts() {
        let status = json!({"metrics": {
            "commands": {"mapReduce": {"failed": 0, "total": 2}},
            "operatorCounters": {
                "match": {"$where": 1}, "expressions": {"$function": 4}, "groupAccumulators": {"$accumulator": 8, "$sum": 90},
            },
        }});
        assert_eq!(uses_of_javascript(&status), Some(15));
        assert_eq!(uses_of_javascript(&json!({"metrics": {}})), None);
    }

    #[test]
    fn members_are_told_with_where_they_are() {
        let config = json!({"config": {"_id": "rs0", "members": [
            {"_id": 0, "host": "198.51.100.7:27017"}, {"_id": 1, "host": "db2.internal:27017"}, {"_id": 2, "host": "localhost:27018"},
        ]}});
        let rows = members_of(&config).unwrap();
        let of = |name: &str| json!(rows.iter().map(|row| row[name].clone()).collect::<Vec<_>>());
        assert_eq!(of("is_public"), json!([true, false, false]));
        assert_eq!(of("is_remote"), json!([true, true, false]));
    }
}
