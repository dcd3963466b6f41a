//! The servers that a restore writes to: one, or all primaries of a cluster.

use fettler_engine::{EngineContext, EngineError};

use crate::{
    cluster::{Primaries, SlotSet, slot_of},
    connect::{Info, Session, end_predecessors},
    identify::require_plain,
    params::Params,
};

use super::prepare::require_primary;

/// One of them.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) session: Session,
    pub(crate) info: Info,
    /// The slots that it serves, where it is one of a cluster.
    slots: Option<SlotSet>,
}

/// All of them; at least one.
#[derive(Debug)]
pub(crate) struct Servers {
    pub(crate) all: Vec<Server>,
    pub(crate) is_cluster: bool,
}

impl Servers {
    /// Reaches them, and ends what an earlier attempt has open there.
    pub(super) async fn open(
        context: &EngineContext,
        params: &Params,
    ) -> Result<Self, EngineError> {
        let mut servers = Self::reach(context, params).await?;
        for server in &mut servers.all {
            end_predecessors(&mut server.session, context).await?;
            if !servers.is_cluster {
                require_plain(params, &server.info)?;
            }
            require_primary(params, &server.info)?;
        }
        Ok(servers)
    }

    /// Reaches them.
    pub(crate) async fn reach(
        context: &EngineContext,
        params: &Params,
    ) -> Result<Self, EngineError> {
        let mut session = Session::of_attempt(params, context).await?;
        let info = session.info().await?;
        if !info.is_of_a_cluster() {
            let server = Server {
                session,
                info,
                slots: None,
            };
            return Ok(Self {
                all: vec![server],
                is_cluster: false,
            });
        }
        let primaries = Primaries::reach(context, params, &mut session).await?;
        let all = primaries
            .all
            .into_iter()
            .map(|one| Server {
                session: one.session,
                info: one.info,
                slots: Some(one.shard.slots),
            })
            .collect();
        Ok(Self {
            all,
            is_cluster: true,
        })
    }

    /// Any of them.
    pub(crate) fn first(&mut self) -> &mut Session {
        &mut self
            .all
            .first_mut()
            .expect("a cluster whose slots are all served has a primary")
            .session
    }

    /// The one that a key belongs to.
    pub(super) fn of_key(&mut self, key: &[u8]) -> &mut Session {
        let slot = slot_of(key);
        let at = self
            .all
            .iter()
            .position(|server| server.slots.as_ref().is_none_or(|slots| slots.has(slot)))
            .unwrap_or(0);
        &mut self.all[at].session
    }

    /// Chooses a database everywhere.
    pub(super) async fn select(&mut self, database: u32) -> Result<(), EngineError> {
        for server in &mut self.all {
            server.session.select(database).await?;
        }
        Ok(())
    }

    /// The processes: where one was started anew, what it had been given may be lost.
    pub(super) fn run_ids(&self) -> String {
        let mut ids: Vec<&str> = self
            .all
            .iter()
            .map(|server| server.info.text("run_id"))
            .collect();
        ids.sort_unstable();
        ids.join(" ")
    }
}
