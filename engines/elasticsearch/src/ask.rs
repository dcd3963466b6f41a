//! Answers questions of checks. A question is one or more lines `GET PATH` of the reading requests below, each with what to
//! take of its answer ([`Picked`] says how that is written). Some words stand alone instead, where one answer does not say it:
//!
//! - `UNASSIGNED SHARDS`: a line for each index with shards that are nowhere, with the cluster's own explanation;
//! - `DISKS`: a line for each node that holds data, with the watermarks in bytes, however they are written;
//! - `MAPPED FIELDS`: a line for each index, with how many fields its mapping has and may have;
//! - `SNAPSHOTS`: a line for each repository, with how its newest snapshot ended.
//!
//! Audits have four more: `ANONYMOUS`, `NETWORK`, `CERTIFICATES` and `LICENCE` ([`audit_words`]), and those that begin with `KEPT`
//! ([`kept_words`]).
//!
//! A request that the server has no module for has nothing to ask of: its check does not apply.
//!
//! **What is hidden.** Elasticsearch lists to a user those indices that it may see, and says nothing of the others. A question
//! about indices names the privilege that it needs on all of them ([`Question::needs`]), which is asked for first. OpenSearch
//! refuses such a request as a whole unless it was told otherwise.

mod audit_words;
mod kept_words;
mod named;

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use fettler_engine::{
    Answer, Answers, EngineError, Picked, Question, Refusal as Unanswered, Row, Target,
};
use reqwest::Method;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::{
    client::{Body, Client},
    error::Refusal,
    params::Params,
    server::{Flavour, Server},
};

/// Bytes of an answer that are read: the mapping of a large cluster fits.
const MOST_BYTES: usize = 32 << 20;
/// What may be asked: requests that read, and of which none tells what is in a document.
const READING: [&str; 32] = [
    "/_cluster/health",
    "/_cluster/stats",
    "/_cluster/settings",
    "/_cluster/pending_tasks",
    "/_cluster/state/metadata",
    "/_nodes",
    "/_stats",
    "/_settings",
    "/_all/_settings",
    "/_mapping",
    "/_alias",
    "/_index_template",
    "/_component_template",
    "/_template",
    "/_ingest/pipeline",
    "/_ilm/policy",
    "/_plugins/_ism/policies",
    "/_cat/",
    "/_tasks",
    "/_health_report",
    "/_all/_ilm/explain",
    "/_plugins/_ism/explain",
    "/_dangling",
    "/_snapshot",
    "/_xpack/usage",
    "/_license",
    "/_ssl/certificates",
    "/_security/user",
    "/_security/role",
    "/_security/role_mapping",
    "/_security/api_key",
    "/_plugins/_security/api",
];
/// Requests of modules without which a cluster is less safe: where one is missing, a check of it is not made rather than not
/// needed.
const OF_SECURITY: [&str; 5] = [
    "/_security/",
    "/_plugins/_security/",
    "/_xpack/",
    "/_ssl/",
    "/_license",
];

/// Why a question has no answer: the server's word, or the connection's end.
enum Failed {
    Refused(Unanswered),
    Lost(EngineError),
}

impl From<EngineError> for Failed {
    fn from(error: EngineError) -> Self {
        Self::Lost(error)
    }
}

/// A server that is asked. Answers that several questions want are kept: they are asked for once.
struct Asked {
    params: Params,
    client: Client,
    server: Server,
    known: BTreeMap<String, Result<Value, Unanswered>>,
    /// Privileges on all indices that were asked for, and whether the user has them.
    privileges: BTreeMap<String, Result<(), Unanswered>>,
}

/// Asks.
pub(crate) async fn ask(
    target: &Target,
    questions: &[Question],
    stop: &CancellationToken,
) -> Result<Answers, EngineError> {
    let params = Params::of(target)?;
    let client = Client::visitor_until(&params, stop)?;
    let began = Instant::now();
    let server = Server::of(&client).await?;
    let connected_in = began.elapsed();
    let began = Instant::now();
    // Whoever may not even do this is told by the questions.
    let _health = client
        .try_get("/_cluster/health?local=true&filter_path=status")
        .await?;
    let answered_in = began.elapsed();
    let mut asked = Asked {
        params,
        client,
        server,
        known: BTreeMap::new(),
        privileges: BTreeMap::new(),
    };
    let mut answers = Vec::with_capacity(questions.len());
    for question in questions {
        answers.push(asked.answer(question).await?);
    }
    Ok(Answers {
        version: asked.server.title(),
        connected_in,
        answered_in,
        answers,
    })
}

impl Asked {
    async fn answer(&mut self, question: &Question) -> Result<Answer, EngineError> {
        let id = question.id.clone();
        if !question.versions.hold(self.server.version) {
            return Ok(Answer::refused(id, Unanswered::OtherVersion));
        }
        let limit = question.timeout.max(Duration::from_millis(1));
        match tokio::time::timeout(limit, self.rows(question)).await {
            Err(_) => Ok(Answer::refused(id, Unanswered::TimedOut(limit.as_secs()))),
            Ok(Ok(rows)) => Ok(Answer::of(id, rows)),
            Ok(Err(Failed::Refused(refusal))) => Ok(Answer::refused(id, refusal)),
            Ok(Err(Failed::Lost(error))) => Err(error),
        }
    }

    async fn rows(&mut self, question: &Question) -> Result<Vec<Row>, Failed> {
        if let Some(privilege) = &question.needs {
            self.may(privilege).await?;
        }
        let text = question.text.trim();
        match text {
            "UNASSIGNED SHARDS" => self.unassigned_shards().await,
            "DISKS" => self.disks().await,
            "MAPPED FIELDS" => self.mapped_fields().await,
            "SNAPSHOTS" => self.snapshots().await,
            "ANONYMOUS" => audit_words::anonymous(&self.params).await,
            "NETWORK" => Ok(audit_words::network(&self.params).await),
            "CERTIFICATES" => self.certificates().await,
            "LICENCE" => self.licence().await,
            "KEPT USERS" => self.kept_users().await,
            "KEPT ROLES" => self.kept_roles().await,
            "KEPT ROLE MAPPINGS" => self.kept_role_mappings().await,
            "KEPT SETTINGS" => self.kept_settings().await,
            "KEPT REPOSITORIES" => self.kept_repositories().await,
            "KEPT SCHEMA" => self.kept_schema().await,
            "KEPT PLUGINS" => self.kept_plugins().await,
            _ => {
                let requests =
                    Picked::read(text, |line| line.starts_with("GET ")).map_err(unread)?;
                let mut asked = Vec::with_capacity(requests.len());
                for request in requests {
                    let path = request.request["GET ".len()..].trim().to_owned();
                    let answer = self.get(&path).await?;
                    asked.push((request, answer));
                }
                Picked::rows(&asked).map_err(Failed::Refused)
            }
        }
    }

    /// Whether the user has a privilege on all indices.
    async fn may(&mut self, privilege: &str) -> Result<(), Failed> {
        if self.server.flavour == Flavour::OpenSearch {
            return Ok(());
        }
        if let Some(known) = self.privileges.get(privilege) {
            return known.clone().map_err(Failed::Refused);
        }
        let body = Body::Json(json!({"index": [{"names": ["*"], "privileges": [privilege]}]}));
        let told = self
            .client
            .try_ask(Method::GET, "/_security/user/_has_privileges", body)
            .await?;
        let known = match told {
            Ok(told) if told["has_all_requested"] == true => Ok(()),
            Ok(_) => Err(Unanswered::Permission(format!(
                "it needs the privilege {privilege} on all indices, and would see a part only without"
            ))),
            // A server without its security module hides nothing.
            Err(refusal) if unanswered(&refusal) == Unanswered::OtherVersion => Ok(()),
            Err(refusal) => Err(unanswered(&refusal)),
        };
        self.privileges.insert(privilege.to_owned(), known.clone());
        known.map_err(Failed::Refused)
    }

    /// What a path is answered.
    async fn get(&mut self, path: &str) -> Result<Value, Failed> {
        if !may_be_asked(path) {
            return Err(unread(format!(
                "{path:?} is no request that a check may send; there are {}",
                READING.join(", ")
            )));
        }
        if let Some(known) = self.known.get(path) {
            return known.clone().map_err(Failed::Refused);
        }
        let told = self
            .client
            .try_bytes(Method::GET, path, &Body::Nothing, MOST_BYTES)
            .await?;
        let answer = match told {
            Err(refusal) => Err(match unanswered(&refusal) {
                Unanswered::OtherVersion
                    if OF_SECURITY.iter().any(|begin| path.starts_with(begin)) =>
                {
                    Unanswered::Failed(
                        "the module that would is not there, or is switched off".to_owned(),
                    )
                }
                other => other,
            }),
            Ok(None) => Err(Unanswered::Failed(format!(
                "the answer is longer than {MOST_BYTES} bytes"
            ))),
            Ok(Some(body)) if body.is_empty() => Ok(Value::Null),
            Ok(Some(body)) => serde_json::from_slice(&body).map_err(|error| {
                Unanswered::Failed(format!("an answer cannot be understood: {error}"))
            }),
        };
        self.known.insert(path.to_owned(), answer.clone());
        answer.map_err(Failed::Refused)
    }
}

fn may_be_asked(path: &str) -> bool {
    READING.iter().any(|known| {
        path.strip_prefix(known).is_some_and(|rest| {
            rest.is_empty() || known.ends_with('/') || rest.starts_with(['/', '?'])
        })
    }) && !path.contains("..")
}

fn unread(what: impl Into<String>) -> Failed {
    Failed::Refused(Unanswered::Failed(what.into()))
}

fn unanswered(refusal: &Refusal) -> Unanswered {
    if refusal.status == 401 || refusal.is_not_allowed() {
        Unanswered::Permission(refusal.to_string())
    } else if refusal.is_unknown() && refusal.status != 500 {
        Unanswered::OtherVersion
    } else {
        Unanswered::Failed(refusal.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_reads_and_tells_no_document_may_be_asked() {
        for path in [
            "/_cluster/health?level=indices",
            "/_nodes/stats/jvm",
            "/_all/_settings/index.blocks.*?flat_settings",
            "/_cat/shards?format=json",
            "/_snapshot",
            "/_security/role_mapping",
            "/_plugins/_security/api/roles",
        ] {
            assert!(may_be_asked(path), "{path}");
        }
        for path in [
            "/_search",
            "/logs/_doc/1",
            "/_settingsx",
            "/_cat/../logs/_search",
            "/_cluster/state",
            "/_security/user_of",
            "/_security/_authenticate",
            "/_license_x",
        ] {
            assert!(!may_be_asked(path), "{path}");
        }
    }

    #[test]
    fn a_right_that_is_missing_is_told_from_a_module_that_is() {
        let refused = Refusal::read(
            403,
            br#"{"error":{"type":"security_exception","reason":"no permissions for [cluster:monitor/stats]"},"status":403}"#,
        );
        assert!(matches!(unanswered(&refused), Unanswered::Permission(_)));
        let refused = Refusal::read(
            400,
            br#"{"error":"no handler found for uri [/_all/_ilm/explain] and method [GET]"}"#,
        );
        assert_eq!(unanswered(&refused), Unanswered::OtherVersion);
        let refused = Refusal::read(
            503,
            br#"{"error":{"type":"master_not_discovered_exception","reason":"none"}}"#,
        );
        assert!(matches!(unanswered(&refused), Unanswered::Failed(_)));
    }
}
