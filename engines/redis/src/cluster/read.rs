//! Reading all primaries of a cluster, or a replica of each.
//!
//! 1. Every primary says which slots it serves, that none is on the move, and at which offset it is.
//! 2. Every one is asked for its RDB at once, so that the moments lie close together.
//! 3. When all have forked, every primary is asked once more. What it says has to be what it said: then no slot
//!    moved between the first moment and the last, and each key is in exactly one RDB.
//! 4. An RDB that was begun before (1), for another replica, has an older offset, and is refused.

use std::time::Duration;

use fettler_engine::{EngineContext, EngineError};
use fettler_model::Warning;
use futures::future::try_join_all;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::time::{Instant, sleep};

use super::layout::{Primaries, Primary, moving};
use crate::{
    backup::{Source, not_one_moment, read_as_replicas},
    collect::Collector,
    connect::{Session, end_predecessors},
    error::Refusal,
    identify,
    params::Params,
    replica::{self, Link},
    scan,
    select::Selection,
    server_data,
};

/// How long a replica may take to have what its primary had.
const CATCHES_UP_WITHIN: Duration = Duration::from_secs(30);
/// How often that is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// What a backup says of one primary.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ShardData {
    /// The node's id.
    pub(crate) node: String,
    /// The slots that it served, as ranges whose ends belong to them.
    pub(crate) slots: Vec<(u16, u16)>,
}

/// Reads the cluster that a session's node belongs to.
pub(crate) async fn read(
    context: &EngineContext,
    params: &Params,
    mut session: Session,
    selection: &Selection,
    collector: Collector,
) -> Result<Source, EngineError> {
    let mut primaries = Primaries::reach(context, params, &mut session).await?;
    for primary in &mut primaries.all {
        end_predecessors(&mut primary.session, context).await?;
    }
    let server = params.server();
    primaries.require_agreement(&server)?;
    primaries.require_rest(&server)?;
    let identity = identify::of_cluster(params, &primaries);
    let keys = primaries
        .all
        .iter()
        .flat_map(|one| one.info.keys().into_values())
        .sum();

    let begun = try_join_all(primaries.all.iter().map(|one| link(context, params, one))).await?;
    let mut warnings = Vec::new();
    let refusal = begun.iter().find_map(|one| one.as_ref().err().cloned());
    let (collected, position) = match refusal {
        None => {
            let links: Vec<Link> = begun.into_iter().filter_map(Result::ok).collect();
            primaries.require_no_change(&server).await?;
            let mut shards = Vec::new();
            for (one, link) in primaries.all.iter().zip(&links) {
                if one.info.number("master_repl_offset").unwrap_or(0) > link.moment.offset {
                    return Err(moving(&server, "an RDB that was begun earlier was offered"));
                }
                shards.push(json!({
                    "node": one.own.id,
                    "slots": one.shard.slots.to_string(),
                    "replication_id": link.moment.replid,
                    "offset": link.moment.offset,
                }));
            }
            context
                .progress
                .begin("reading", identity.estimated_bytes, keys);
            let links = links
                .into_iter()
                .zip(&primaries.all)
                .map(|(link, one)| (link, Some(one.shard.slots.clone())))
                .collect();
            let collected = read_as_replicas(context, links, collector).await?;
            let position = json!({"method": "replication", "shards": shards});
            (collected, position)
        }
        Some(refusal) if !refusal.is_not_allowed() => {
            return Err(refusal.doing(&server, "reading as a replica"));
        }
        Some(refusal) => {
            // Those that were begun go with their links.
            drop(begun);
            context.progress.begin("reading key by key", 0, keys);
            warnings.push(not_one_moment(&refusal));
            let of_scan = primaries
                .all
                .iter_mut()
                .map(|one| (&mut one.session, Some(one.shard.slots.clone())))
                .collect();
            let (collected, mut offsets) =
                scan::read(context, params, of_scan, selection, collector).await?;
            primaries.require_no_change(&server).await?;
            for (one, offset) in primaries.all.iter().zip(&mut offsets) {
                offset["node"] = json!(one.own.id);
                offset["slots"] = json!(one.shard.slots.to_string());
            }
            let position = json!({"method": "scan", "shards": offsets});
            (collected, position)
        }
    };
    if collected.foreign > 0 {
        warnings.push(Warning {
            code: "redis.foreign_keys".to_owned(),
            message: format!(
                "{} keys lie on nodes that do not serve their slots, where no client can reach them: they are not in the backup",
                collected.foreign
            ),
        });
    }
    if primaries.all.len() > 1 && warnings.is_empty() {
        warnings.push(Warning {
            code: "redis.moment_per_shard".to_owned(),
            message: format!(
                "each of the {} primaries was read at a moment of its own; all together are not one moment",
                primaries.all.len()
            ),
        });
    }
    let differences = differences(&mut primaries).await?;
    warnings.extend(differences);
    let shards = primaries
        .all
        .iter()
        .map(|one| ShardData {
            node: one.own.id.clone(),
            slots: one.shard.slots.ranges().to_vec(),
        })
        .collect();
    let first = primaries.all.into_iter().next();
    Ok(Source {
        session: first.map_or(session, |one| one.session),
        identity,
        collected,
        position,
        warnings,
        shards,
    })
}

/// Asks a primary, or a replica of it, for all that it has.
async fn link(
    context: &EngineContext,
    params: &Params,
    primary: &Primary,
) -> Result<Result<Link, Refusal>, EngineError> {
    if !params.reads_replica {
        return replica::begin(&primary.params, context).await;
    }
    let wanted = primary.info.number("master_repl_offset").unwrap_or(0);
    for node in &primary.shard.replicas {
        let place = params.of_other(&node.host, node.port)?;
        match caught_up(context, &place, wanted).await {
            Ok(true) => return replica::begin(&place, context).await,
            Ok(false) | Err(EngineError::Unreachable { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Err(EngineError::Missing {
        code: "replica",
        what: format!(
            "the primary {} of the slots {} has no replica that is up to date",
            primary.params.server(),
            primary.shard.slots
        ),
        remedy: "leave `read=replica` out to read the primaries".to_owned(),
    })
}

/// Whether a replica has what its primary had, after some waiting: one that has lost its primary for a moment, or copies all of
/// it anew after a failover, soon has.
async fn caught_up(
    context: &EngineContext,
    place: &Params,
    wanted: u64,
) -> Result<bool, EngineError> {
    let mut session = Session::of_attempt(place, context).await?;
    let began = Instant::now();
    loop {
        context.check_stop()?;
        let info = session.info().await?;
        if info.text("role") != "slave" {
            return Ok(false);
        }
        let follows = info.text("master_link_status") == "up";
        if follows && info.number("master_repl_offset").unwrap_or(0) >= wanted {
            return Ok(true);
        }
        if began.elapsed() > CATCHES_UP_WITHIN {
            return Ok(false);
        }
        sleep(LOOK_EVERY).await;
    }
}

/// What should be the same on all nodes and is not: functions and users.
async fn differences(primaries: &mut Primaries) -> Result<Vec<Warning>, EngineError> {
    let (mut functions, mut users) = (Vec::new(), Vec::new());
    for one in &mut primaries.all {
        let mut libraries = server_data::functions_of(&mut one.session)
            .await?
            .unwrap_or_default();
        libraries.sort_unstable();
        functions.push(libraries);
        let mut list = server_data::users_of(&mut one.session)
            .await?
            .unwrap_or_default();
        list.sort_unstable();
        users.push(list);
    }
    let mut warnings = Vec::new();
    let differ = [
        (
            "libraries of functions",
            functions.windows(2).any(|two| two[0] != two[1]),
        ),
        ("users", users.windows(2).any(|two| two[0] != two[1])),
    ];
    for (what, _) in differ.into_iter().filter(|(_, differ)| *differ) {
        warnings.push(Warning {
            code: "redis.nodes_differ".to_owned(),
            message: format!(
                "the nodes of the cluster have different {what}: the backup has the first node's, and the libraries that it lacks"
            ),
        });
    }
    Ok(warnings)
}
