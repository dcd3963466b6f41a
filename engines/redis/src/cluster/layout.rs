//! Who serves which slots: what the cluster says, and what each primary says of itself.

use std::time::Duration;

use fettler_engine::{EngineContext, EngineError};
use futures::future::try_join_all;
use redis::{FromRedisValue as _, Value, cmd};

use super::slots::{SLOTS, SlotSet};
use crate::{
    connect::{Info, Session},
    error::Refusal,
    params::{Params, Place},
};

/// What the user needs beside the rights for a server that runs alone.
pub(crate) const GRANT: &str = "ACL SETUSER fettler +cluster|slots +cluster|nodes";
/// How long to stay away from a cluster whose slots are on the move.
const MOVING_WAIT: Duration = Duration::from_secs(60);

/// A node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Node {
    pub(crate) id: String,
    pub(crate) host: String,
    pub(crate) port: u16,
}

/// A primary with its replicas, and the slots that it serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Shard {
    pub(crate) primary: Node,
    pub(crate) replicas: Vec<Node>,
    pub(crate) slots: SlotSet,
}

/// What a node says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Own {
    pub(crate) id: String,
    is_primary: bool,
    epoch: u64,
    slots: SlotSet,
    /// Slots that are on their way to another node, or from one.
    moving: Vec<String>,
}

/// A session with each primary that serves slots.
#[derive(Debug)]
pub(crate) struct Primaries {
    pub(crate) all: Vec<Primary>,
}

/// One of them.
#[derive(Debug)]
pub(crate) struct Primary {
    pub(crate) shard: Shard,
    pub(crate) params: Params,
    pub(crate) session: Session,
    pub(crate) info: Info,
    pub(crate) own: Own,
}

impl Primaries {
    /// Reaches every primary of the cluster that a session's node belongs to.
    ///
    /// # Errors
    ///
    /// [`EngineError::Missing`] (`cluster`) where slots are served by nobody.
    pub(crate) async fn reach(
        context: &EngineContext,
        params: &Params,
        session: &mut Session,
    ) -> Result<Self, EngineError> {
        let name = context.attempt.to_string();
        Self::reach_as(params, session, &name, &context.stop).await
    }

    /// The same, for sessions of this name.
    pub(crate) async fn reach_as(
        params: &Params,
        session: &mut Session,
        name: &str,
        stop: &tokio_util::sync::CancellationToken,
    ) -> Result<Self, EngineError> {
        let shards = shards(session, params).await?;
        let all = try_join_all(shards.into_iter().map(|shard| async move {
            let params = params.of_other(&shard.primary.host, shard.primary.port)?;
            let mut session = Session::open(&params, name, stop).await?;
            let info = session.info().await?;
            let own = own(&mut session).await?;
            Ok::<_, EngineError>(Primary {
                shard,
                params,
                session,
                info,
                own,
            })
        }))
        .await?;
        Ok(Self { all })
    }

    /// An error where a node does not say itself that it serves the slots that it is told to serve: then one slot may be served
    /// by two, or by none.
    pub(crate) fn require_agreement(&self, server: &str) -> Result<(), EngineError> {
        let agree = self
            .all
            .iter()
            .all(|one| one.own.is_primary && one.own.slots == one.shard.slots);
        if agree {
            return Ok(());
        }
        Err(moving(
            server,
            "its nodes do not agree yet who serves which slots",
        ))
    }

    /// An error where slots are on the move.
    pub(crate) fn require_rest(&self, server: &str) -> Result<(), EngineError> {
        match self.all.iter().flat_map(|one| &one.own.moving).next() {
            None => Ok(()),
            Some(slot) => Err(moving(server, &format!("a slot is on the move ({slot})"))),
        }
    }

    /// Asks every primary anew; an error where one does not say what it said before.
    pub(crate) async fn require_no_change(&mut self, server: &str) -> Result<(), EngineError> {
        let now = try_join_all(
            self.all
                .iter_mut()
                .map(|one| async { own(&mut one.session).await }),
        )
        .await?;
        for (one, now) in self.all.iter().zip(now) {
            if one.own != now {
                let what = if one.own.moving != now.moving || one.own.slots != now.slots {
                    "slots moved from one node to another while it was read"
                } else {
                    "a primary was replaced while it was read"
                };
                return Err(moving(server, what));
            }
        }
        Ok(())
    }
}

/// A cluster that has to come to rest first.
pub(crate) fn moving(server: &str, what: &str) -> EngineError {
    EngineError::Busy {
        what: format!("the cluster of {server}: {what}"),
        wait: MOVING_WAIT,
    }
}

fn refused(refusal: &Refusal, server: &str, command: &str) -> EngineError {
    if refusal.is_not_allowed() {
        return EngineError::Missing {
            code: "permission",
            what: format!("{server} does not tell its slots (`{command}`): {refusal}"),
            remedy: format!("give the user the right, on every node: `{GRANT}`"),
        };
    }
    refusal.doing(server, "asking for the slots")
}

/// Asks a node who serves which slots.
pub(crate) async fn shards(
    session: &mut Session,
    params: &Params,
) -> Result<Vec<Shard>, EngineError> {
    let asked = cmd("CLUSTER").arg("SLOTS").to_owned();
    let answer = session
        .try_ask(&asked)
        .await?
        .map_err(|refusal| refused(&refusal, session.server(), "CLUSTER SLOTS"))?;
    let host = match &params.place {
        Place::Tcp { host, .. } => host.as_str(),
        Place::Unix(_) => "127.0.0.1",
    };
    let shards = read_slots(answer, host)
        .ok_or_else(|| session.unexpected("asking for the slots", &"no slots"))?;
    let served: Vec<(u16, u16)> = shards
        .iter()
        .flat_map(|shard| shard.slots.ranges().iter().copied())
        .collect();
    let nobodys = SlotSet::of(served)
        .ok_or_else(|| moving(session.server(), "two nodes serve one slot"))?
        .others();
    if !nobodys.is_empty() {
        return Err(EngineError::Missing {
            code: "cluster",
            what: format!(
                "the cluster of {} is not whole: nobody serves the slots {nobodys}",
                session.server()
            ),
            remedy: "look at `redis-cli --cluster check host:port`; `--cluster fix` gives such slots to a node"
                .to_owned(),
        });
    }
    Ok(shards)
}

/// Reads what `CLUSTER SLOTS` answered: a range, its primary and its replicas, each time.
fn read_slots(answer: Value, host: &str) -> Option<Vec<Shard>> {
    let Value::Array(lines) = answer else {
        return None;
    };
    // Each primary once, with its ranges.
    let mut found: Vec<(Shard, Vec<(u16, u16)>)> = Vec::new();
    for line in lines {
        let Value::Array(line) = line else {
            return None;
        };
        let mut parts = line.into_iter();
        let mut number = || {
            u16::from_redis_value(parts.next()?)
                .ok()
                .filter(|number| *number < SLOTS)
        };
        let range = (number()?, number()?);
        let mut nodes = parts
            .map(|part| read_node(part, host))
            .collect::<Option<Vec<Node>>>()?
            .into_iter();
        let primary = nodes.next()?;
        let known = found
            .iter_mut()
            .find(|(shard, _)| shard.primary.id == primary.id);
        match known {
            Some((_, ranges)) => ranges.push(range),
            None => {
                let shard = Shard {
                    primary,
                    replicas: nodes.collect(),
                    slots: SlotSet::default(),
                };
                found.push((shard, vec![range]));
            }
        }
    }
    let mut shards = found
        .into_iter()
        .map(|(shard, ranges)| {
            Some(Shard {
                slots: SlotSet::of(ranges)?,
                ..shard
            })
        })
        .collect::<Option<Vec<Shard>>>()?;
    shards.sort_by_key(|shard| shard.slots.ranges().first().copied());
    Some(shards)
}

/// A node: address, port, id. One that does not know its own address is where it was reached.
fn read_node(part: Value, host: &str) -> Option<Node> {
    let Value::Array(part) = part else {
        return None;
    };
    let mut part = part.into_iter();
    let named = match part.next()? {
        Value::Nil => String::new(),
        value => String::from_redis_value(value).ok()?,
    };
    Some(Node {
        host: if named.is_empty() || named == "?" {
            host.to_owned()
        } else {
            named
        },
        port: u16::from_redis_value(part.next()?).ok()?,
        id: String::from_redis_value(part.next()?).ok()?,
    })
}

/// Asks a node about itself.
async fn own(session: &mut Session) -> Result<Own, EngineError> {
    let asked = cmd("CLUSTER").arg("NODES").to_owned();
    let answer = session
        .try_ask(&asked)
        .await?
        .map_err(|refusal| refused(&refusal, session.server(), "CLUSTER NODES"))?;
    String::from_redis_value(answer)
        .ok()
        .and_then(|text| read_own(&text))
        .ok_or_else(|| session.unexpected("asking for its slots", &"no node"))
}

/// Reads the node's own line of `CLUSTER NODES`: id, address, flags, primary, two times, epoch, link, slots.
fn read_own(text: &str) -> Option<Own> {
    text.lines().find_map(|line| {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let flags = words.get(2)?;
        if !flags.split(',').any(|flag| flag == "myself") {
            return None;
        }
        let (moving, served): (Vec<&str>, Vec<&str>) = words
            .get(8..)
            .unwrap_or_default()
            .iter()
            .partition(|word| word.starts_with('['));
        Some(Own {
            id: (*words.first()?).to_owned(),
            is_primary: flags.split(',').any(|flag| flag == "master"),
            epoch: words.get(6)?.parse().ok()?,
            slots: SlotSet::of(
                served
                    .into_iter()
                    .map(SlotSet::range)
                    .collect::<Option<_>>()?,
            )?,
            moving: moving.into_iter().map(ToOwned::to_owned).collect(),
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Value {
        Value::BulkString(text.as_bytes().to_vec())
    }

    fn node(ip: Value, port: i64, id: &str) -> Value {
        Value::Array(vec![ip, Value::Int(port), text(id), Value::Array(vec![])])
    }

    #[test]
    fn ranges_of_one_primary_are_one_shard_and_an_unknown_address_is_the_one_that_was_reached() {
        let line = |first, last, nodes: Vec<Value>| {
            Value::Array([vec![Value::Int(first), Value::Int(last)], nodes].concat())
        };
        let answer = Value::Array(vec![
            line(
                5461,
                16383,
                vec![
                    node(text("10.0.0.2"), 7001, "b"),
                    node(Value::Nil, 7003, "d"),
                ],
            ),
            line(0, 99, vec![node(text(""), 7000, "a")]),
            line(101, 5460, vec![node(text(""), 7000, "a")]),
        ]);
        let shards = read_slots(answer, "cache").unwrap();
        assert_eq!(shards.len(), 2);
        assert_eq!(shards[0].slots.to_string(), "0-99 101-5460");
        assert_eq!(shards[0].primary.host, "cache");
        assert_eq!(shards[1].primary.host, "10.0.0.2");
        assert_eq!(shards[1].replicas[0].port, 7003);
        assert_eq!(read_slots(Value::Nil, "cache"), None);
    }

    #[test]
    fn a_node_tells_its_slots_its_epoch_and_what_is_on_the_move() {
        let own = read_own(
            "07c37df 127.0.0.1:30004@31004,h slave e7d1eec 0 1426238317239 4 connected\n\
             e7d1eec 127.0.0.1:30001@31001,h myself,master - 0 0 3 connected 0-5460 5462 [93->-07c37df] [77-<-07c37df]\n",
        )
        .unwrap();
        assert_eq!(own.slots.to_string(), "0-5460 5462");
        assert_eq!((own.epoch, own.is_primary), (3, true));
        assert_eq!(own.moving, ["[93->-07c37df]", "[77-<-07c37df]"]);
        assert_eq!(read_own("x 1:1@1 master - 0 0 3 connected 0-5"), None);
    }
}
