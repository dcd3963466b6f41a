//! From what a URL names to the server that is talked to: the primary that sentinels name, a replica where one is asked
//! for, the first node of a cluster that answers.
//!
//! This is done for each attempt anew, and before each new connection of long work, so that a failover is followed. What
//! a database is known by does not change with it: the service and its sentinels, or the server that the URL names.

use std::{collections::HashMap, time::Duration};

use fettler_engine::{EngineContext, EngineError, Target};
use redis::{FromRedisValue as _, Value, cmd};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::{
    connect::{Info, Session, VISITOR, reach},
    params::{Params, Sentinels},
};

/// How long to stay away from a service that has no primary or no replica just now.
const FAILOVER_WAIT: Duration = Duration::from_secs(10);
/// How often reading is tried where another server may take the place of one that is gone, and how long is waited at first
/// and at last: a failover takes from some seconds to a minute.
const TRIES: u32 = 12;
const WAIT: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(10));

/// What a server is wanted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Reading, by a replica where the URL says so.
    Read,
    /// Writing, or reading what was just written: the primary.
    Write,
}

/// Finds the server of a target.
///
/// # Errors
///
/// Those of [`Params::of`]; [`EngineError::Unreachable`] where nobody answers; [`EngineError::Missing`] for a service that
/// sentinels do not know and for a replica that is not there; [`EngineError::Busy`] during a failover.
pub(crate) async fn locate(
    target: &Target,
    purpose: Purpose,
    stop: &CancellationToken,
) -> Result<Params, EngineError> {
    let named = Params::of(target)?;
    let reads_replica = named.reads_replica && purpose == Purpose::Read;
    if let Some(sentinels) = &named.sentinels {
        let key = format!("redis:sentinel:{}@{}", sentinels.service, named.hosts());
        let mut found = by_sentinels(&named, sentinels, reads_replica, stop).await?;
        found.key = Some(key);
        return Ok(found);
    }
    let mut params = named.clone();
    if !named.more_hosts.is_empty() {
        params = first_that_answers(&named, stop).await?;
        // Whichever of them answers today.
        params.key = Some(cluster_key(&named));
    }
    if !reads_replica && named.more_hosts.is_empty() {
        return Ok(params);
    }
    let mut session = Session::open(&params, VISITOR, stop).await?;
    let info = session.info().await?;
    if info.is_of_a_cluster() {
        // Its replicas are found with its slots.
        return Ok(params);
    }
    if !named.more_hosts.is_empty() {
        return Err(EngineError::Missing {
            code: "url",
            what: format!(
                "the URL names several hosts, and {} is no node of a cluster",
                params.server()
            ),
            remedy: "name one server, or sentinels by `redis+sentinel://host1:26379,host2:26379/service`"
                .to_owned(),
        });
    }
    if info.text("role") == "slave" {
        return Ok(params);
    }
    let (host, port) = replica_of(&info).ok_or_else(|| no_replica(&params.server()))?;
    let key = format!("redis:{}", session.address);
    let mut replica = params.of_other(&host, port)?;
    replica.key = Some(key);
    Ok(replica)
}

/// What a cluster is known by: the nodes that its URL names.
pub(crate) fn cluster_key(named: &Params) -> String {
    format!("redis:cluster:{}", named.hosts())
}

fn no_replica(server: &str) -> EngineError {
    EngineError::Missing {
        code: "replica",
        what: format!("{server} has no replica that is up to date"),
        remedy: "leave `read=replica` out to read the primary".to_owned(),
    }
}

/// The replica that has come furthest, of those that a primary tells of:
/// `slave0:ip=10.0.0.2,port=6379,state=online,offset=42,lag=0`.
pub(crate) fn replica_of(info: &Info) -> Option<(String, u16)> {
    (0..info.number("connected_slaves").unwrap_or(0))
        .filter_map(|at| {
            let line = info.text(&format!("slave{at}"));
            let field = |wanted: &str| {
                line.split(',')
                    .find_map(|part| part.strip_prefix(wanted)?.strip_prefix('='))
            };
            if field("state")? != "online" {
                return None;
            }
            let port: u16 = field("port")?.parse().ok()?;
            let offset: u64 = field("offset")?.parse().ok()?;
            // A backup of ours introduces itself without a port.
            (port != 0).then_some((offset, (field("ip")?.to_owned(), port)))
        })
        .max_by_key(|(offset, _)| *offset)
        .map(|(_, place)| place)
}

/// The first of several hosts that accepts a connection.
async fn first_that_answers(
    named: &Params,
    stop: &CancellationToken,
) -> Result<Params, EngineError> {
    let mut failed = Vec::new();
    for params in every_host(named) {
        let reached = stop
            .run_until_cancelled(reach(&params))
            .await
            .ok_or(EngineError::Stopped)?;
        match reached {
            Ok(_) => return Ok(params),
            Err(EngineError::Unreachable { server, what }) => {
                failed.push(format!("{server}: {what}"));
            }
            Err(error) => return Err(error),
        }
    }
    Err(nobody_answers(named, &failed))
}

fn nobody_answers(named: &Params, failed: &[String]) -> EngineError {
    EngineError::Unreachable {
        server: named.hosts(),
        what: failed.join("; "),
    }
}

/// Each host of the URL.
fn every_host(named: &Params) -> Vec<Params> {
    let more = named.more_hosts.iter().map(|(host, port)| Params {
        place: crate::params::Place::Tcp {
            host: host.clone(),
            port: *port,
        },
        ..named.clone()
    });
    [named.clone()].into_iter().chain(more).collect()
}

/// Asks sentinels, one after the other, until one knows.
async fn by_sentinels(
    named: &Params,
    sentinels: &Sentinels,
    reads_replica: bool,
    stop: &CancellationToken,
) -> Result<Params, EngineError> {
    let mut failed = Vec::new();
    let mut unknown = None;
    for host in every_host(named) {
        match ask_one(&host, named, sentinels, reads_replica, stop).await {
            Ok(found) => return Ok(found),
            Err(EngineError::Unreachable { server, what }) => {
                failed.push(format!("{server}: {what}"));
            }
            // Another one may know more.
            Err(
                error @ EngineError::Missing {
                    code: "sentinel", ..
                },
            ) => unknown = Some(error),
            Err(error) => return Err(error),
        }
    }
    Err(unknown.unwrap_or_else(|| nobody_answers(named, &failed)))
}

/// Asks one sentinel, and looks whether the server is what it says.
async fn ask_one(
    host: &Params,
    named: &Params,
    sentinels: &Sentinels,
    reads_replica: bool,
    stop: &CancellationToken,
) -> Result<Params, EngineError> {
    let mut sentinel = log_in(host, sentinels, stop).await?;
    let place = master(&mut sentinel, &sentinels.service).await?;
    let place = if reads_replica {
        replica(&mut sentinel, &sentinels.service).await?
    } else {
        place
    };
    drop(sentinel);
    // The server's own login; the sentinel's host was trusted to name any.
    let params = named.of_other(&place.0, place.1)?;
    let role = Session::open(&params, VISITOR, stop)
        .await?
        .info()
        .await?
        .text("role")
        .to_owned();
    let wanted = if reads_replica { "slave" } else { "master" };
    if role == wanted {
        return Ok(params);
    }
    Err(EngineError::Busy {
        what: format!(
            "the sentinels name {} for `{}`, which says that it is a {role}: a failover is going on",
            params.server(),
            sentinels.service
        ),
        wait: FAILOVER_WAIT,
    })
}

/// A session with a sentinel: with its own login, or without one, or with the server's.
async fn log_in(
    host: &Params,
    sentinels: &Sentinels,
    stop: &CancellationToken,
) -> Result<Session, EngineError> {
    let own = Params {
        user: sentinels.user.clone(),
        password: sentinels.password.clone(),
        ..host.clone()
    };
    let has_own = own.password.is_some();
    match Session::open(&own, VISITOR, stop).await {
        Err(EngineError::LoginRefused { .. }) if !has_own && host.password.is_some() => {
            Session::open(host, VISITOR, stop).await
        }
        other => other,
    }
}

/// Where the primary of a service is.
async fn master(sentinel: &mut Session, service: &str) -> Result<(String, u16), EngineError> {
    let asked = cmd("SENTINEL")
        .arg("GET-MASTER-ADDR-BY-NAME")
        .arg(service)
        .to_owned();
    let answer = match sentinel.try_ask(&asked).await? {
        Ok(answer) => answer,
        Err(refusal) if refusal.is_unknown() => {
            return Err(EngineError::Missing {
                code: "url",
                what: format!("{} is no sentinel: {refusal}", sentinel.server()),
                remedy: "name a server itself as `redis://host:port`".to_owned(),
            });
        }
        Err(refusal) => return Err(refusal.doing(sentinel.server(), "asking for the primary")),
    };
    if answer == Value::Nil {
        return Err(unknown_service(sentinel, service).await?);
    }
    let (host, port): (String, String) = redis::from_redis_value(answer)
        .map_err(|error| sentinel.unexpected("asking for the primary", &error))?;
    let port = port
        .parse()
        .map_err(|error| sentinel.unexpected("asking for the primary", &error))?;
    Ok((host, port))
}

/// An error that names the services which a sentinel does watch.
async fn unknown_service(
    sentinel: &mut Session,
    service: &str,
) -> Result<EngineError, EngineError> {
    let asked = cmd("SENTINEL").arg("MASTERS").to_owned();
    let known: Vec<String> = sentinel
        .try_ask(&asked)
        .await?
        .ok()
        .and_then(|answer| Vec::<HashMap<String, String>>::from_redis_value(answer).ok())
        .unwrap_or_default()
        .into_iter()
        .filter_map(|mut fields| fields.remove("name"))
        .collect();
    Ok(EngineError::Missing {
        code: "sentinel",
        what: format!(
            "the sentinel {} watches no service {service:?}",
            sentinel.server()
        ),
        remedy: format!("it watches: {}", known.join(", ")),
    })
}

/// Where the replica of a service is that has come furthest.
async fn replica(sentinel: &mut Session, service: &str) -> Result<(String, u16), EngineError> {
    let asked = cmd("SENTINEL").arg("REPLICAS").arg(service).to_owned();
    let all: Vec<HashMap<String, String>> = sentinel.ask(&asked, "asking for the replicas").await?;
    best(&all).ok_or_else(|| {
        if all.is_empty() {
            return no_replica(service);
        }
        EngineError::Busy {
            what: format!("none of the replicas of `{service}` is up and linked to its primary"),
            wait: FAILOVER_WAIT,
        }
    })
}

fn best(replicas: &[HashMap<String, String>]) -> Option<(String, u16)> {
    replicas
        .iter()
        .filter_map(|fields| {
            let field = |name: &str| fields.get(name).map(String::as_str);
            let is_up = field("flags")? == "slave" && field("master-link-status")? == "ok";
            let offset: u64 = field("slave-repl-offset")?.parse().ok()?;
            let place = (field("ip")?.to_owned(), field("port")?.parse().ok()?);
            is_up.then_some((offset, place))
        })
        .max_by_key(|(offset, _)| *offset)
        .map(|(_, place)| place)
}

/// Tries to read once more, where another server may take the place of the one that is gone.
#[derive(Debug)]
pub(crate) struct Tries {
    left: u32,
    wait: Duration,
}

impl Tries {
    pub(crate) fn new() -> Self {
        Self {
            left: TRIES,
            wait: WAIT.0,
        }
    }

    /// Waits a while; gives the error back where it is no use to try again.
    pub(crate) async fn again(
        &mut self,
        context: &EngineContext,
        error: EngineError,
    ) -> Result<(), EngineError> {
        let may_pass = matches!(
            error,
            EngineError::Unreachable { .. }
                | EngineError::Busy { .. }
                | EngineError::Database {
                    transient: true,
                    ..
                }
        );
        self.left = self.left.saturating_sub(1);
        if !may_pass || self.left == 0 {
            return Err(error);
        }
        tracing::warn!(%error, "reading failed and is tried again");
        context.progress.item(&format!("once more: {error}"));
        let _stopped = context.stop.run_until_cancelled(sleep(self.wait)).await;
        context.check_stop()?;
        self.wait = (self.wait * 2).min(WAIT.1);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_replica_that_has_come_furthest_is_read_and_no_backup() {
        let info = Info::read(
            "connected_slaves:4\r\nslave0:ip=10.0.0.1,port=6379,state=online,offset=40,lag=0\r\n\
             slave1:ip=10.0.0.2,port=6380,state=online,offset=42,lag=1\r\n\
             slave2:ip=10.0.0.3,port=6379,state=wait_bgsave,offset=0,lag=0\r\n\
             slave3:ip=10.0.0.4,port=0,state=online,offset=99,lag=0\r\n",
        );
        assert_eq!(replica_of(&info), Some(("10.0.0.2".to_owned(), 6380)));
        assert_eq!(replica_of(&Info::read("connected_slaves:0\r\n")), None);
    }

    #[test]
    fn a_replica_without_its_primary_is_not_read() {
        let one = |ip: &str, flags: &str, link: &str, offset: &str| -> HashMap<String, String> {
            [
                ("ip", ip),
                ("port", "6379"),
                ("flags", flags),
                ("master-link-status", link),
                ("slave-repl-offset", offset),
            ]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into()
        };
        let all = [
            one("a", "slave", "ok", "10"),
            one("b", "slave,s_down", "ok", "30"),
            one("c", "slave", "err", "40"),
            one("d", "slave", "ok", "20"),
        ];
        assert_eq!(best(&all), Some(("d".to_owned(), 6379)));
        assert_eq!(best(&all[1..3]), None);
    }
}
