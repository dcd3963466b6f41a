//! Cleanup of Elasticsearch and OpenSearch: whole indices that hold nothing young.
//!
//! [`plan`] looks how old what an index holds is, [`archive`] stores an index as a backup does and reads it back, [`remove`] blocks
//! writes, looks once more and deletes, [`undo`] makes indices again. Single documents are not deleted: that frees nothing
//! until segments are merged, and an index of a span of time goes at once.

mod archive;
mod plan;
mod remove;
mod undo;

use async_trait::async_trait;
use fettler_engine::{
    Cleanup, CleanupArchive, CleanupRequest, CleanupTerms, EngineContext, EngineError, StreamSink,
    StreamSource, Target, empty_plan, no_such_action, plan_data,
};
use fettler_model::{
    CleanupAction, CleanupPlan, CleanupRemoved, CleanupUndone, Engine, JobId, ObjectFacts,
    Timestamp,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{ElasticsearchEngine, client::Client, params::Params, server::Server};

/// The field that says how old a document is where nothing is said.
const TIMESTAMP: &str = "@timestamp";
/// In the stead of a field: when an index was made.
const CREATION_DATE: &str = "creation_date";

/// What the plan keeps.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct IndicesData {
    field: String,
    cutoff: Timestamp,
    indices: Vec<Going>,
}

impl IndicesData {
    fn names(&self) -> Vec<String> {
        self.indices
            .iter()
            .map(|index| index.name.clone())
            .collect()
    }
}

/// An index that goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Going {
    name: String,
    uuid: String,
    /// What its primaries were like at the plan: the same as long as no document changes.
    state: String,
    /// Whether it goes by the moment in which it was made, whatever its documents say.
    by_creation: bool,
}

#[async_trait]
impl Cleanup for ElasticsearchEngine {
    async fn plan(
        &self,
        context: &EngineContext,
        target: &Target,
        request: &CleanupRequest,
    ) -> Result<CleanupPlan, EngineError> {
        let CleanupAction::Indices { pattern, field, .. } = &request.what else {
            return Err(no_such_action(
                Engine::Elasticsearch,
                &request.what,
                "old indices (`--indices PATTERN --older-than TIME`)",
            ));
        };
        let (client, params) = begin(context, target)?;
        let server = Server::of(&client).await?;
        let plan = empty_plan(Engine::Elasticsearch, &request.what, now(&client).await?);
        let planning = plan::Planning {
            context,
            client: &client,
            server: &server,
            params: &params,
            pattern,
            field: field.as_deref().unwrap_or(TIMESTAMP),
        };
        planning.make(plan).await
    }

    async fn archive(
        &self,
        context: &EngineContext,
        target: &Target,
        plan: &CleanupPlan,
        sink: &dyn StreamSink,
    ) -> Result<CleanupArchive, EngineError> {
        let (client, params) = begin(context, target)?;
        archive::write(context, &client, params, &plan_data(plan)?, sink).await
    }

    async fn prove(
        &self,
        context: &EngineContext,
        _plan: &CleanupPlan,
        archive: &dyn StreamSource,
        objects: &[ObjectFacts],
    ) -> Result<(), EngineError> {
        archive::prove(context, archive, objects).await
    }

    async fn remove(
        &self,
        context: &EngineContext,
        target: &Target,
        plan: &CleanupPlan,
        archive: Option<&dyn StreamSource>,
        _terms: &CleanupTerms,
    ) -> Result<CleanupRemoved, EngineError> {
        let Some(archive) = archive else {
            return Err(EngineError::Unusable {
                what: "indices are removed by their archive, and there is none".to_owned(),
                remedy: "start the cleanup anew".to_owned(),
            });
        };
        let (client, params) = begin(context, target)?;
        remove::remove(context, &client, &params, &plan_data(plan)?, archive).await
    }

    async fn undo(
        &self,
        context: &EngineContext,
        target: &Target,
        plan: &CleanupPlan,
        archive: &dyn StreamSource,
        _job: JobId,
        dry_run: bool,
    ) -> Result<CleanupUndone, EngineError> {
        let (client, params) = begin(context, target)?;
        let server = Server::of(&client).await?;
        let data: IndicesData = plan_data(plan)?;
        let undoing = undo::Undoing {
            context,
            client: &client,
            server: &server,
            params: &params,
            place: target.url.to_string(),
            data: &data,
            archive,
            dry_run,
        };
        undoing.all().await
    }
}

fn begin(context: &EngineContext, target: &Target) -> Result<(Client, Params), EngineError> {
    let params = Params::of(target)?;
    if !params.prefix.is_empty() {
        return Err(EngineError::Missing {
            code: "url",
            what: "the database's URL puts a prefix before names, which is for restores".to_owned(),
            remedy: "leave `prefix` out of the URL".to_owned(),
        });
    }
    Ok((Client::of_attempt(&params, context)?, params))
}

/// The server's clock; this machine's where the server does not tell.
async fn now(client: &Client) -> Result<Timestamp, EngineError> {
    let stats = client
        .try_get("/_nodes/_local/stats/os?filter_path=nodes.*.timestamp")
        .await?
        .unwrap_or_default();
    let told = stats["nodes"]
        .as_object()
        .and_then(|nodes| nodes.values().next())
        .and_then(|node| node["timestamp"].as_i64());
    Ok(told.map_or_else(Timestamp::now, |millis| {
        Timestamp::from_micros(millis * 1000)
    }))
}

/// Whether a setting of an index is on.
fn is_on(settings: &serde_json::Map<String, Value>, name: &str) -> bool {
    settings
        .get(&format!("index.{name}"))
        .is_some_and(|value| value == "true" || *value == Value::Bool(true))
}
