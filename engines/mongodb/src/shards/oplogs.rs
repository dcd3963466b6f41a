//! The oplogs of a server: its own, or that of each shard.
//!
//! Shards share one time (the cluster's), and none writes an entry of an earlier time than the latest it was told of. So each is
//! told the latest of all and asked for what it has up to then, once all of that is settled (`afterClusterTime`): the ends of all
//! oplogs are of one moment. Where servers tell no such time each oplog ends by itself, which is said.

use bson::{RawDocumentBuf, Timestamp, rawdoc};
use fettler_engine::{EngineContext, EngineError};

use super::map;
use crate::{
    follow::{self, newest},
    params::Params,
    raw::put,
    session::Session,
};

/// The field by which servers tell each other the cluster's time.
pub(crate) const CLUSTER_TIME: &str = "$clusterTime";

/// Oplogs, each with a session of its own.
pub(crate) struct Oplogs {
    sessions: Vec<Session>,
    is_of_shards: bool,
    /// Whether their ends are of one moment.
    has_one_time: bool,
}

/// How far each of the oplogs is read, and the moment that this is.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Ends {
    /// The last entry that was read, of each.
    pub(crate) each: Vec<Timestamp>,
    pub(crate) moment: Timestamp,
}

impl Ends {
    fn of(each: Vec<Timestamp>) -> Option<Self> {
        let moment = each.iter().max().copied()?;
        Some(Self { each, moment })
    }
}

impl Oplogs {
    /// The oplogs that tell what is written to the server of a session, and from where on they have to be read; nothing where
    /// one of them cannot be read.
    pub(crate) async fn of(
        context: &EngineContext,
        params: &Params,
        session: &mut Session,
    ) -> Result<Option<(Self, Ends)>, EngineError> {
        let is_of_shards = session.hello.is_router;
        let mut sessions = Vec::new();
        if is_of_shards {
            let name = context.attempt.to_string();
            for shard in map::shards(session).await? {
                sessions.push(shard.open(params, &name, &context.stop).await?);
            }
        } else {
            sessions.push(Session::of_attempt(params, context).await?);
        }
        let mut starts = Vec::new();
        for session in &mut sessions {
            match follow::start(session).await? {
                Some(start) => starts.push(start),
                None => return Ok(None),
            }
        }
        let has_one_time = !is_of_shards || sessions.iter().all(|one| one.cluster_time.is_some());
        let oplogs = Self {
            sessions,
            is_of_shards,
            has_one_time,
        };
        Ok(Ends::of(starts).map(|ends| (oplogs, ends)))
    }

    /// None, in the place of some that are being read.
    pub(crate) const fn none() -> Self {
        Self {
            sessions: Vec::new(),
            is_of_shards: false,
            has_one_time: true,
        }
    }

    /// Whether they are those of a cluster's shards, whose chunks move.
    pub(crate) fn are_of_shards(&self) -> bool {
        self.is_of_shards
    }

    /// Whether their ends are of one moment.
    pub(crate) fn have_one_time(&self) -> bool {
        self.has_one_time
    }

    /// Each with its session.
    pub(crate) fn sessions(&mut self) -> &mut [Session] {
        &mut self.sessions
    }

    /// Where they end now: of what is settled, at one moment; or of all that their servers have.
    pub(crate) async fn ends(&mut self, is_settled: bool) -> Result<Ends, EngineError> {
        let mut each = Vec::new();
        for session in &mut self.sessions {
            each.push(newest(session, is_settled).await?);
        }
        if is_settled && self.is_of_shards && self.has_one_time {
            let latest = each.iter().max().copied();
            let told = self
                .sessions
                .iter()
                .filter_map(|one| one.cluster_time.clone())
                .max_by_key(|time| time.get_timestamp("clusterTime").ok());
            if let (Some(latest), Some(told)) = (latest, told) {
                each.clear();
                for session in &mut self.sessions {
                    each.push(last_up_to(session, latest, &told).await?);
                }
                return Ok(Ends {
                    each,
                    moment: latest,
                });
            }
        }
        // There is at least one.
        Ok(Ends::of(each).unwrap_or(Ends {
            each: Vec::new(),
            moment: Timestamp {
                time: 0,
                increment: 0,
            },
        }))
    }
}

/// The last entry of a shard up to a moment of the cluster, once there can come no more of them.
async fn last_up_to(
    session: &mut Session,
    moment: Timestamp,
    told: &RawDocumentBuf,
) -> Result<Timestamp, EngineError> {
    let doing = "waiting for the moment of all shards";
    let found = session
        .list("local", command_up_to(moment, told), doing)
        .await?
        .map_err(|refusal| refusal.doing(session.server(), doing))?;
    found
        .first()
        .and_then(|one| one.get_timestamp("ts").ok())
        .ok_or_else(|| session.unexpected(doing, &"there is no entry up to it"))
}

fn command_up_to(moment: Timestamp, told: &RawDocumentBuf) -> RawDocumentBuf {
    let mut command = rawdoc! {
        "find": "oplog.rs",
        "filter": { "ts": { "$lte": moment } },
        "sort": { "$natural": -1 },
        "limit": 1,
        "singleBatch": true,
        "readConcern": { "level": "majority", "afterClusterTime": moment },
    };
    put(&mut command, CLUSTER_TIME, told.clone());
    command
}
