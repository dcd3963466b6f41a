//! Who a server is, what it allows, how busy it is.
//!
//! **A stable identity.** Redis has none of its own: the run id is new at each start, the replication id at each
//! failover. What stays is where the server listens, as the address that was reached and not the name that led
//! there, so that two names of one server are one server. The database's number belongs to it where the URL has one.
//! The lineage is made of the two ids that change.

use std::time::Instant;

use fettler_engine::{
    BackupOptions, EngineError, Identity, PreflightItem, PreflightLevel, Target, folder_of,
};
use fettler_model::{DatabaseName, Engine, ServerLoad};
use redis::{FromRedisValue, Value, cmd};
use tokio_util::sync::CancellationToken;

use crate::{
    cluster::Primaries,
    connect::{Answer, Info, Session, VISITOR},
    grants::FOR_BACKUPS,
    locate::{Purpose, cluster_key, locate},
    params::{Params, Place},
    select::Selection,
};

/// The longest name that a database may have in Fettler.
const LONGEST_NAME: usize = 63;

/// A session that belongs to no attempt.
pub(crate) async fn visit(params: &Params) -> Result<Session, EngineError> {
    Session::open(params, VISITOR, &CancellationToken::new()).await
}

/// Asks a server who it is.
pub(crate) async fn identify(target: &Target) -> Result<Identity, EngineError> {
    let params = locate(target, Purpose::Read, &CancellationToken::new()).await?;
    let mut session = visit(&params).await?;
    let info = session.info().await?;
    if info.is_of_a_cluster() {
        let primaries = visit_primaries(&params, &mut session).await?;
        return Ok(of_cluster(&params, &primaries));
    }
    Ok(identity(&params, &session, &info))
}

/// Sessions with all primaries of a cluster, which belong to no attempt.
async fn visit_primaries(params: &Params, session: &mut Session) -> Result<Primaries, EngineError> {
    Primaries::reach_as(params, session, VISITOR, &CancellationToken::new()).await
}

/// Who a cluster is: what its URL names. Its nodes come and go, and none of the names that it gives itself stays.
pub(crate) fn of_cluster(params: &Params, primaries: &Primaries) -> Identity {
    let mut nodes: Vec<&str> = primaries
        .all
        .iter()
        .map(|one| one.own.id.as_str())
        .collect();
    nodes.sort_unstable();
    let lineage = blake3::hash(nodes.concat().as_bytes()).to_hex();
    let first = primaries.all.first();
    Identity {
        engine: Engine::Redis,
        version: first.map_or_else(String::new, |one| one.info.version_text()),
        key: params.key.clone().unwrap_or_else(|| cluster_key(params)),
        lineage: format!("cluster:{lineage}"),
        suggested_name: suggested_name(params),
        estimated_bytes: primaries.all.iter().map(|one| data_bytes(&one.info)).sum(),
    }
}

/// About how many bytes a server holds.
fn data_bytes(info: &Info) -> u64 {
    info.number("used_memory_dataset")
        .or(info.number("used_memory"))
        .unwrap_or(0)
}

/// Who a server is, by what it tells.
pub(crate) fn identity(params: &Params, session: &Session, info: &Info) -> Identity {
    let number = params
        .database
        .map_or_else(String::new, |number| format!("/{number}"));
    Identity {
        engine: Engine::Redis,
        version: info.version_text(),
        key: match &params.key {
            Some(key) => format!("{key}{number}"),
            None => format!("redis:{}{number}", session.address),
        },
        lineage: format!("{}:{}", info.text("master_replid"), info.text("run_id")),
        suggested_name: suggested_name(params),
        estimated_bytes: data_bytes(info),
    }
}

/// The first part of the host's name, or `redis`, with the database's number.
fn suggested_name(params: &Params) -> DatabaseName {
    let word = match (&params.sentinels, &params.place) {
        (Some(sentinels), _) => sentinels.service.as_str(),
        (None, Place::Tcp { host, .. }) if host.parse::<std::net::IpAddr>().is_err() => {
            host.split('.').next().unwrap_or_default()
        }
        _ => "",
    };
    let mut name: String = word
        .to_ascii_lowercase()
        .chars()
        .filter(|letter| matches!(letter, 'a'..='z' | '0'..='9' | '-' | '_'))
        .skip_while(|letter| !letter.is_ascii_alphanumeric())
        .take(LONGEST_NAME - 12)
        .collect();
    if name.is_empty() || name == "localhost" {
        "redis".clone_into(&mut name);
    }
    if let Some(number) = params.database {
        name.push_str(&format!("-{number}"));
    }
    name.trim_end_matches(['-', '_'])
        .parse()
        .unwrap_or_else(|_| "redis".parse().expect("the word is a valid name"))
}

/// An error for what only a server that runs alone or with replicas can do, and for a sentinel.
pub(crate) fn require_plain(params: &Params, info: &Info) -> Result<(), EngineError> {
    let what = if info.is_of_a_cluster() {
        "is a node of a Redis Cluster, and this needs a server that holds all keys"
    } else if info.text("redis_mode") == "sentinel" {
        "is a Sentinel and holds no keys: write its URL as `redis+sentinel://host:26379/service`"
    } else {
        return Ok(());
    };
    Err(EngineError::Missing {
        code: "cluster",
        what: format!("{} {what}", params.server()),
        remedy: "name a server that runs alone or with replicas: its primary, or one of them"
            .to_owned(),
    })
}

/// An error for a number of a database that no cluster has.
pub(crate) fn require_database_0(params: &Params) -> Result<(), EngineError> {
    match params.database {
        None | Some(0) => Ok(()),
        Some(number) => Err(EngineError::Missing {
            code: "database",
            what: format!(
                "the URL names database {number}, and {} is a cluster, which has database 0 alone",
                params.server()
            ),
            remedy: "leave the number out of the URL".to_owned(),
        }),
    }
}

/// Looks at what a server allows.
pub(crate) async fn preflight(
    target: &Target,
    options: &BackupOptions,
) -> Result<Vec<PreflightItem>, EngineError> {
    let params = locate(target, Purpose::Read, &CancellationToken::new()).await?;
    Selection::of_backup(params.database, &options.exclude)?;
    let mut session = visit(&params).await?;
    let info = session.info().await?;
    if info.is_of_a_cluster() {
        require_database_0(&params)?;
        return look_at_cluster(&params, &mut session).await;
    }
    let mut items = vec![match require_plain(&params, &info) {
        Err(EngineError::Missing { what, remedy, .. }) => {
            item("server", PreflightLevel::Stops, &what, &remedy)
        }
        other => {
            other?;
            let role = info.text("role");
            item(
                "server",
                PreflightLevel::Fine,
                &format!("version {}, {role}", info.version_text()),
                "",
            )
        }
    }];
    items.push(look_at_permissions(&mut session).await?);
    items.push(look_at_memory(&info));
    items.extend(look_at_replication(&mut session, &info).await?);
    items.extend(look_beside_keys(&mut session).await?);
    Ok(items)
}

/// Looks at a cluster: at every primary for its keys, at one of them for what all have.
async fn look_at_cluster(
    params: &Params,
    session: &mut Session,
) -> Result<Vec<PreflightItem>, EngineError> {
    let mut primaries = visit_primaries(params, session).await?;
    let replicas: usize = primaries
        .all
        .iter()
        .map(|one| one.shard.replicas.len())
        .sum();
    let version = primaries
        .all
        .first()
        .map_or_else(String::new, |one| one.info.version_text());
    let mut items = vec![item(
        "server",
        PreflightLevel::Fine,
        &format!(
            "version {version}, a cluster of {} primaries and {replicas} replicas; each primary is read at a moment of its own",
            primaries.all.len()
        ),
        "",
    )];
    items.push(match primaries.require_rest(&params.server()) {
        Ok(()) => item(
            "slots",
            PreflightLevel::Fine,
            "all are served, none is on the move",
            "",
        ),
        Err(error) => item(
            "slots",
            PreflightLevel::Missing,
            &error.to_string(),
            "a backup waits until no slot is on the move",
        ),
    });
    let mut of_keys = Vec::new();
    for one in &mut primaries.all {
        let mut found = look_at_permissions(&mut one.session).await?;
        if found.level != PreflightLevel::Fine {
            found.message = format!("{}: {}", one.params.server(), found.message);
        }
        of_keys.push(found);
    }
    items.extend(of_keys.into_iter().max_by_key(|found| found.level));
    if let Some(first) = primaries.all.first_mut() {
        items.push(look_at_memory(&first.info));
        items.extend(look_at_replication(&mut first.session, &first.info).await?);
        items.extend(look_beside_keys(&mut first.session).await?);
    }
    Ok(items)
}

/// Whether what a server has beside keys can be read.
async fn look_beside_keys(session: &mut Session) -> Result<Vec<PreflightItem>, EngineError> {
    let mut items = Vec::new();
    for (subject, probe) in [
        ("functions", cmd("FUNCTION").arg("LIST").to_owned()),
        ("ACL users", cmd("ACL").arg("LIST").to_owned()),
        (
            "configuration",
            cmd("CONFIG").arg("GET").arg("maxmemory").to_owned(),
        ),
    ] {
        items.push(match session.try_ask(&probe).await? {
            Ok(_) => item(subject, PreflightLevel::Fine, "can be read", ""),
            Err(refusal) => item(
                subject,
                PreflightLevel::Missing,
                &format!("will not be in the backup: {refusal}"),
                &FOR_BACKUPS,
            ),
        });
    }
    Ok(items)
}

fn item(subject: &str, level: PreflightLevel, message: &str, remedy: &str) -> PreflightItem {
    PreflightItem {
        subject: subject.to_owned(),
        level,
        message: message.to_owned(),
        remedy: remedy.to_owned(),
    }
}

/// Whether the keys can be read, and in which way.
async fn look_at_permissions(session: &mut Session) -> Result<PreflightItem, EngineError> {
    let subject = "keys";
    let Some(refusal) = why_no_replica(session).await? else {
        return Ok(item(
            subject,
            PreflightLevel::Fine,
            "read as a replica reads them (PSYNC), at one moment",
            "",
        ));
    };
    let probes = [
        cmd("SCAN").arg(0).arg("COUNT").arg(1).to_owned(),
        cmd("DUMP").arg("fettler:preflight").to_owned(),
        cmd("PTTL").arg("fettler:preflight").to_owned(),
    ];
    for probe in &probes {
        if let Err(also) = session.try_ask(probe).await? {
            return Ok(item(
                subject,
                PreflightLevel::Stops,
                &format!(
                    "cannot be read, neither as a replica ({refusal}) nor one by one ({also})"
                ),
                &FOR_BACKUPS,
            ));
        }
    }
    Ok(item(
        subject,
        PreflightLevel::Missing,
        &format!(
            "read one by one (SCAN, DUMP), which is not one moment, since the server refuses replicas: {refusal}"
        ),
        &FOR_BACKUPS,
    ))
}

/// Why the user may not read as a replica does; nothing where it may, as far as that can be told without doing it.
async fn why_no_replica(session: &mut Session) -> Result<Option<String>, EngineError> {
    let port = cmd("REPLCONF").arg("listening-port").arg(0).to_owned();
    if let Err(refusal) = session.try_ask(&port).await? {
        return Ok(Some(refusal.to_string()));
    }
    // Whether the command is there at all: managed servers take it away.
    let known = session
        .try_ask(cmd("COMMAND").arg("INFO").arg("psync"))
        .await?;
    if let Ok(Value::Array(found)) = &known
        && found.iter().all(|one| *one == Value::Nil)
    {
        return Ok(Some("it does not know PSYNC".to_owned()));
    }
    let user: Answer = session.try_ask(cmd("ACL").arg("WHOAMI")).await?;
    let Some(user) = user
        .ok()
        .and_then(|user| String::from_redis_value(user).ok())
    else {
        return Ok(None);
    };
    let dry = cmd("ACL")
        .arg("DRYRUN")
        .arg(user)
        .arg("PSYNC")
        .arg("?")
        .arg(-1)
        .to_owned();
    match session.try_ask(&dry).await? {
        Ok(Value::BulkString(said)) => Ok(Some(String::from_utf8_lossy(&said).into_owned())),
        _ => Ok(None),
    }
}

fn look_at_memory(info: &Info) -> PreflightItem {
    let policy = info.text("maxmemory_policy");
    if info.number("maxmemory").unwrap_or(0) > 0 && policy != "noeviction" {
        return item(
            "eviction",
            PreflightLevel::Missing,
            &format!(
                "keys vanish by themselves when memory is full ({policy}): a backup has what was there at its moment"
            ),
            "nothing to do where the server is a cache",
        );
    }
    item("eviction", PreflightLevel::Fine, "no key is evicted", "")
}

/// What a replica means to the server.
async fn look_at_replication(
    session: &mut Session,
    info: &Info,
) -> Result<Vec<PreflightItem>, EngineError> {
    let mut items = vec![item(
        "fork",
        PreflightLevel::Fine,
        &format!(
            "the server forks once to write its {} bytes out: pages that are written meanwhile are kept twice",
            info.text("used_memory")
        ),
        "back up a replica where the primary has no memory to spare",
    )];
    let diskless: Answer = session
        .try_ask(cmd("CONFIG").arg("GET").arg("repl-diskless-sync"))
        .await?;
    if let Some([_, value]) = diskless
        .ok()
        .and_then(|pair| Vec::<String>::from_redis_value(pair).ok())
        .as_deref()
        && value == "no"
    {
        items.push(item(
            "repl-diskless-sync",
            PreflightLevel::Missing,
            "the server writes an RDB to its own disk before it sends it",
            "`CONFIG SET repl-diskless-sync yes` spares its disk",
        ));
    }
    items.push(item(
        "Sentinel",
        PreflightLevel::Fine,
        "a Sentinel that watches the server may remember the backup as a replica that is gone",
        "`SENTINEL RESET name` on the Sentinels forgets it",
    ));
    Ok(items)
}

/// How busy a server is.
pub(crate) async fn load(target: &Target) -> Result<ServerLoad, EngineError> {
    let params = locate(target, Purpose::Read, &CancellationToken::new()).await?;
    let mut session = visit(&params).await?;
    let began = Instant::now();
    session
        .ask::<String>(&cmd("PING"), "looking how busy the server is")
        .await?;
    let latency = began.elapsed();
    let info = session.info().await?;
    let behind = if info.text("role") == "slave" {
        info.number("master_last_io_seconds_ago")
    } else {
        (0..info.number("connected_slaves").unwrap_or(0))
            .filter_map(|at| {
                let line = info.text(&format!("slave{at}"));
                let lag = line.split(',').find_map(|part| part.strip_prefix("lag="))?;
                lag.parse().ok()
            })
            .max()
    };
    Ok(ServerLoad {
        connections: info
            .number("connected_clients")
            .map(|clients| clients.saturating_sub(1)),
        replication_lag_seconds: behind,
        latency_milliseconds: u64::try_from(latency.as_millis()).ok(),
    })
}

/// How much memory a server has left up to its limit; nothing where it has none.
pub(crate) async fn free_bytes(target: &Target) -> Result<Option<u64>, EngineError> {
    if let Some(path) = target.url.path() {
        return fettler_private_server::free_bytes_of(&folder_of(&path)).map(Some);
    }
    let params = locate(target, Purpose::Write, &CancellationToken::new()).await?;
    let mut session = visit(&params).await?;
    let info = session.info().await?;
    if info.is_of_a_cluster() {
        let primaries = visit_primaries(&params, &mut session).await?;
        // Keys spread evenly, more or less: where one is full, the cluster is.
        let least = primaries
            .all
            .iter()
            .filter_map(|one| free_memory(&one.info))
            .min();
        return Ok(least.map(|bytes| bytes.saturating_mul(primaries.all.len() as u64)));
    }
    Ok(free_memory(&info))
}

/// The same, by what the server told. A server that evicts has always room.
pub(crate) fn free_memory(info: &Info) -> Option<u64> {
    let limit = info.number("maxmemory").filter(|limit| *limit > 0)?;
    (info.text("maxmemory_policy") == "noeviction")
        .then(|| limit.saturating_sub(info.number("used_memory").unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use fettler_model::DatabaseUrl;

    use super::*;

    #[test]
    fn a_name_is_made_from_the_host_and_the_number() {
        for (url, name) in [
            ("redis://cache.example.com", "cache"),
            ("redis://cache.example.com/3", "cache-3"),
            ("redis://10.0.0.1", "redis"),
            ("redis://localhost/1", "redis-1"),
            ("redis+unix:///run/x.sock", "redis"),
            ("redis+sentinel://s1,s2/Shop/2", "shop-2"),
        ] {
            let (url, password) = DatabaseUrl::parse_with_password(url).unwrap();
            let params = Params::of(&Target { url, password }).unwrap();
            assert_eq!(suggested_name(&params).as_str(), name);
        }
    }
}
