//! Sending commands to the primaries that their keys belong to, also while slots move.

use std::time::Duration;

use fettler_engine::{EngineContext, EngineError};
use futures::future::join_all;
use redis::{Cmd, cmd, pipe};
use tokio::time::{Instant, sleep};

use super::layout::{Primaries, moving};
use super::slots::SLOTS;
use crate::{
    connect::{Answer, Session},
    error::Refusal,
    params::{Params, Place},
};

/// How long commands are sent again whose slot is on the move; a slot takes seconds.
const REST_WITHIN: Duration = Duration::from_secs(90);
/// How long is waited before they are.
const AGAIN_AFTER: Duration = Duration::from_millis(200);

/// A session with each primary.
#[derive(Debug)]
pub(crate) struct Router {
    params: Params,
    nodes: Vec<Node>,
    /// By slot, the place of its primary among the nodes.
    owners: Vec<usize>,
}

#[derive(Debug)]
struct Node {
    params: Params,
    session: Session,
}

/// Where a node says that a command belongs.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Redirected {
    /// The slot is there for good.
    Moved { host: String, port: u16 },
    /// This once, while the slot moves.
    Ask { host: String, port: u16 },
    /// Nowhere just now.
    Wait,
}

impl Router {
    /// Reaches all primaries of the cluster that a server belongs to.
    pub(crate) async fn open(
        context: &EngineContext,
        params: &Params,
    ) -> Result<Self, EngineError> {
        let mut session = Session::of_attempt(params, context).await?;
        let primaries = Primaries::reach(context, params, &mut session).await?;
        let mut owners = vec![0; usize::from(SLOTS)];
        for (at, one) in primaries.all.iter().enumerate() {
            for (first, last) in one.shard.slots.ranges() {
                owners[usize::from(*first)..=usize::from(*last)].fill(at);
            }
        }
        let nodes = primaries
            .all
            .into_iter()
            .map(|one| Node {
                params: one.params,
                session: one.session,
            })
            .collect();
        Ok(Self {
            params: params.clone(),
            nodes,
            owners,
        })
    }

    /// The cluster's name in messages.
    pub(crate) fn server(&self) -> String {
        self.params.server()
    }

    /// Sends commands, each with the slot of its keys, and gives their answers in the same order. Those of one slot are
    /// done in their order.
    pub(crate) async fn send(
        &mut self,
        context: &EngineContext,
        commands: &[(u16, Cmd)],
    ) -> Result<Vec<Answer>, EngineError> {
        let mut answers: Vec<Option<Answer>> = vec![None; commands.len()];
        let mut left: Vec<usize> = (0..commands.len()).collect();
        // Commands that a node other than the owner of their slot was to be asked for, this once.
        let mut asked: Vec<Option<usize>> = vec![None; commands.len()];
        let began = Instant::now();
        loop {
            let mut of_nodes: Vec<Vec<usize>> = vec![Vec::new(); self.nodes.len()];
            for at in left.drain(..) {
                let owner = self.owners[usize::from(commands[at].0)];
                of_nodes[asked[at].unwrap_or(owner)].push(at);
            }
            let sent = join_all(self.nodes.iter_mut().zip(&of_nodes).map(|(node, own)| {
                let asked = &asked;
                async move { send_one(&mut node.session, own, commands, asked).await }
            }))
            .await;
            let mut must_wait = false;
            for (from, (of_node, own)) in sent.into_iter().zip(&of_nodes).enumerate() {
                for (answer, at) in of_node?.into_iter().zip(own) {
                    asked[*at] = None;
                    let redirected = match &answer {
                        Err(refusal) => redirection(refusal),
                        Ok(_) => None,
                    };
                    match redirected {
                        None => answers[*at] = Some(answer),
                        Some(to) => {
                            left.push(*at);
                            match to {
                                Redirected::Moved { host, port } => {
                                    let owner = self.node(context, from, &host, port).await?;
                                    self.owners[usize::from(commands[*at].0)] = owner;
                                }
                                Redirected::Ask { host, port } => {
                                    asked[*at] = Some(self.node(context, from, &host, port).await?);
                                }
                                Redirected::Wait => must_wait = true,
                            }
                        }
                    }
                }
            }
            if left.is_empty() {
                break;
            }
            left.sort_unstable();
            context.check_stop()?;
            if began.elapsed() > REST_WITHIN {
                return Err(moving(&self.server(), "a slot does not come to rest"));
            }
            if must_wait {
                sleep(AGAIN_AFTER).await;
            }
        }
        Ok(answers
            .into_iter()
            .map(|answer| answer.expect("a command that is not left has its answer"))
            .collect())
    }

    /// The place of a node among those that are reached; it is reached where it was not.
    async fn node(
        &mut self,
        context: &EngineContext,
        from: usize,
        host: &str,
        port: u16,
    ) -> Result<usize, EngineError> {
        let params = match (host, &self.nodes[from].params.place) {
            // A node that does not know its own address means the one at which it was reached.
            ("", Place::Tcp { host, .. }) => self.params.of_other(host, port)?,
            _ => self.params.of_other(host, port)?,
        };
        let known = self
            .nodes
            .iter()
            .position(|node| node.params.place == params.place);
        if let Some(at) = known {
            return Ok(at);
        }
        let session = Session::of_attempt(&params, context).await?;
        self.nodes.push(Node { params, session });
        Ok(self.nodes.len() - 1)
    }
}

/// Sends one node's share.
async fn send_one(
    session: &mut Session,
    own: &[usize],
    commands: &[(u16, Cmd)],
    asked: &[Option<usize>],
) -> Result<Vec<Answer>, EngineError> {
    let mut batch = pipe();
    for at in own {
        if asked[*at].is_some() {
            batch.add_command(cmd("ASKING"));
        }
        batch.add_command(commands[*at].1.clone());
    }
    let mut answers = session.ask_all(&batch).await?.into_iter();
    let mut next = || {
        answers
            .next()
            .expect("as many answers as commands, which the session has looked at")
    };
    Ok(own
        .iter()
        .map(|at| match asked[*at].is_some().then(&mut next) {
            Some(Err(refusal)) => {
                // Without it the command was refused too, by a word that leads back.
                let _led_back = next();
                Err(refusal)
            }
            Some(Ok(_)) | None => next(),
        })
        .collect())
}

/// Reads `MOVED 3999 127.0.0.1:6381` and its kin.
fn redirection(refusal: &Refusal) -> Option<Redirected> {
    let place = || {
        let (_slot, place) = refusal.message.trim().split_once(' ')?;
        let (host, port) = place.rsplit_once(':')?;
        Some((host.to_owned(), port.parse().ok()?))
    };
    match refusal.code.as_str() {
        "MOVED" => place().map(|(host, port)| Redirected::Moved { host, port }),
        "ASK" => place().map(|(host, port)| Redirected::Ask { host, port }),
        "TRYAGAIN" | "CLUSTERDOWN" => Some(Redirected::Wait),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_redirection_names_its_node() {
        let read = |code: &str, message: &str| {
            redirection(&Refusal {
                code: code.to_owned(),
                message: message.to_owned(),
            })
        };
        assert_eq!(
            read("MOVED", "3999 127.0.0.1:6381"),
            Some(Redirected::Moved {
                host: "127.0.0.1".to_owned(),
                port: 6381
            })
        );
        assert_eq!(
            read("ASK", "3999 ::1:6381"),
            Some(Redirected::Ask {
                host: "::1".to_owned(),
                port: 6381
            })
        );
        assert_eq!(
            read("MOVED", "7 :6381"),
            Some(Redirected::Moved {
                host: String::new(),
                port: 6381
            })
        );
        assert_eq!(read("TRYAGAIN", "Multiple keys"), Some(Redirected::Wait));
        assert_eq!(read("OOM", "command not allowed"), None);
    }
}
