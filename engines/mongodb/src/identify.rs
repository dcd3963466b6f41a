//! Who a server is, what it allows, how busy it is.
//!
//! **A stable identity** is where the server listens, as the address that was reached and not the name that led there, so that
//! two names of one server are one server; and the name of the database where the URL has one.

use std::time::Instant;

use bson::rawdoc;
use fettler_engine::{BackupOptions, EngineError, Identity, PreflightItem, PreflightLevel, Target};
use fettler_model::{DatabaseName, Engine, ServerLoad};
use tokio_util::sync::CancellationToken;

use crate::{
    catalog,
    grants::FOR_BACKUPS,
    params::{Params, Place},
    raw::number,
    select::Selection,
    session::{Session, VISITOR},
    shards::map,
    users,
};

/// The longest name that a database may have in Fettler.
const LONGEST_NAME: usize = 63;

/// Asks a server who it is.
pub(crate) async fn identify(target: &Target) -> Result<Identity, EngineError> {
    let params = Params::of(target)?;
    let mut session = Session::visit(&params).await?;
    identity(&params, &mut session).await
}

/// Who a server is, by what it tells.
pub(crate) async fn identity(
    params: &Params,
    session: &mut Session,
) -> Result<Identity, EngineError> {
    let build = session
        .run(
            "admin",
            rawdoc! { "buildInfo": 1 },
            "asking for the version",
        )
        .await?;
    let version = build.get_str("version").unwrap_or("unknown").to_owned();
    let database = params
        .database
        .as_ref()
        .map_or_else(String::new, |name| format!("/{name}"));
    let key = format!("mongodb:{}{database}", session.address);
    Ok(Identity {
        engine: Engine::Mongodb,
        version,
        lineage: match &session.hello.set_name {
            Some(set) => format!("{key}:{set}"),
            None => key.clone(),
        },
        key,
        suggested_name: suggested_name(params),
        estimated_bytes: estimated_bytes(params, session).await?,
    })
}

/// About how many bytes of documents there are; zero where the server does not tell.
async fn estimated_bytes(params: &Params, session: &mut Session) -> Result<u64, EngineError> {
    let names = match &params.database {
        Some(one) => vec![one.clone()],
        None => match session
            .try_run("admin", rawdoc! { "listDatabases": 1, "nameOnly": true })
            .await?
        {
            Ok(_) => catalog::databases(session, &Selection::default(), None).await?,
            // Some servers look at a password only when it is needed.
            Err(refusal) if refusal.is_login() => {
                return Err(refusal.doing(session.server(), "listing the databases"));
            }
            Err(_) => Vec::new(),
        },
    };
    let mut bytes = 0;
    for name in names {
        if let Ok(stats) = session.try_run(&name, rawdoc! { "dbStats": 1 }).await? {
            bytes += number(&stats, "dataSize").unwrap_or(0);
        }
    }
    Ok(bytes)
}

/// The first part of the host's name, or `mongodb`, with the database's name.
fn suggested_name(params: &Params) -> DatabaseName {
    let word = match &params.place {
        Place::Tcp { host, .. } if host.parse::<std::net::IpAddr>().is_err() => {
            host.split('.').next().unwrap_or_default()
        }
        _ => "",
    };
    let fallback = if word.is_empty() || word == "localhost" {
        "mongodb"
    } else {
        word
    };
    let text = params
        .database
        .as_deref()
        .unwrap_or(fallback)
        .to_lowercase();
    let name: String = text
        .chars()
        .filter(|letter| matches!(letter, 'a'..='z' | '0'..='9' | '-' | '_'))
        .skip_while(|letter| !letter.is_ascii_alphanumeric())
        .take(LONGEST_NAME)
        .collect();
    name.trim_end_matches(['-', '_'])
        .parse()
        .unwrap_or_else(|_| "mongodb".parse().expect("the word is a valid name"))
}

/// An error for what has no single oplog: a sharded cluster.
pub(crate) fn require_one_oplog(session: &Session) -> Result<(), EngineError> {
    if !session.hello.is_router {
        return Ok(());
    }
    Err(EngineError::Missing {
        code: "cluster",
        what: format!(
            "{} leads to a sharded cluster, whose changes are not archived",
            session.server()
        ),
        remedy: "back it up as often as it is to be gone back to, or name a member of each shard and archive its oplog"
            .to_owned(),
    })
}

/// An error for what takes no writes.
pub(crate) fn require_writable(session: &Session) -> Result<(), EngineError> {
    if session.hello.is_primary {
        return Ok(());
    }
    Err(EngineError::Missing {
        code: "primary",
        what: format!("{} takes no writes", session.server()),
        remedy: match &session.hello.primary {
            Some(primary) => format!("name the set's primary, {primary}"),
            None => "name the set's primary".to_owned(),
        },
    })
}

fn item(subject: &str, level: PreflightLevel, message: &str, remedy: &str) -> PreflightItem {
    PreflightItem {
        subject: subject.to_owned(),
        level,
        message: message.to_owned(),
        remedy: remedy.to_owned(),
    }
}

/// Looks at what a server allows.
pub(crate) async fn preflight(
    target: &Target,
    options: &BackupOptions,
) -> Result<Vec<PreflightItem>, EngineError> {
    let params = Params::of(target)?;
    let selection = Selection::of_backup(params.database.as_deref(), &options.exclude)?;
    let mut session = Session::visit(&params).await?;
    let version = identity(&params, &mut session).await?.version;
    let role = match &session.hello {
        hello if hello.is_router => "is the router of a cluster",
        hello if hello.is_primary => "takes writes",
        _ => "is a secondary",
    };
    let mut items = vec![item(
        "server",
        PreflightLevel::Fine,
        &format!("version {version}, {role}"),
        "",
    )];
    items.push(look_at_collections(&mut session, &params, &selection).await?);
    if session.hello.is_router {
        items.extend(look_at_shards(&mut session, &params).await?);
    } else {
        items.push(look_at_oplog(&mut session, "oplog").await?);
    }
    items.push(match users::read(&mut session).await? {
        Ok(_) => item("users and roles", PreflightLevel::Fine, "can be read", ""),
        Err(refusal) => item(
            "users and roles",
            PreflightLevel::Missing,
            &format!("will not be in the backup: {refusal}"),
            &FOR_BACKUPS,
        ),
    });
    Ok(items)
}

/// Whether an oplog can be read.
async fn look_at_oplog(session: &mut Session, subject: &str) -> Result<PreflightItem, EngineError> {
    Ok(match session.newest_moment().await? {
        Ok(Some(_)) => item(
            subject,
            PreflightLevel::Fine,
            "a backup is of one moment",
            "",
        ),
        Ok(None) => item(
            subject,
            PreflightLevel::Missing,
            "there is none: a backup is of no one moment where something writes meanwhile",
            "make the server a replica set of one (`rs.initiate()`), or let nothing write during the backup",
        ),
        Err(refusal) => item(
            subject,
            PreflightLevel::Missing,
            &format!(
                "cannot be read ({refusal}): a backup is of no one moment where something writes meanwhile"
            ),
            &FOR_BACKUPS,
        ),
    })
}

/// Whether the balancer can be stopped, as far as its state can be asked for, and the shards be reached.
async fn look_at_shards(
    session: &mut Session,
    params: &Params,
) -> Result<Vec<PreflightItem>, EngineError> {
    let status = session
        .try_run("admin", rawdoc! { "balancerStatus": 1 })
        .await?;
    let mut items = vec![match status {
        Ok(_) => item(
            "balancer",
            PreflightLevel::Fine,
            "stands still while a backup runs, and is started again where it ran",
            "",
        ),
        Err(refusal) => item(
            "balancer",
            PreflightLevel::Stops,
            &format!("cannot be asked for: {refusal}"),
            "give the user the role `clusterManager`",
        ),
    }];
    let stop = CancellationToken::new();
    for shard in map::shards(session).await? {
        let subject = format!("shard {}", shard.name);
        items.push(match shard.open(params, VISITOR, &stop).await {
            Ok(mut session) => look_at_oplog(&mut session, &subject).await?,
            Err(error) => item(
                &subject,
                PreflightLevel::Stops,
                &error.to_string(),
                "let the worker reach it, and make the user on the shard itself too: it knows none of the cluster's",
            ),
        });
    }
    Ok(items)
}

/// Whether all that is there can be listed and read.
async fn look_at_collections(
    session: &mut Session,
    params: &Params,
    selection: &Selection,
) -> Result<PreflightItem, EngineError> {
    let subject = "collections";
    let stops = |what: &EngineError| {
        item(
            subject,
            PreflightLevel::Stops,
            &what.to_string(),
            &FOR_BACKUPS,
        )
    };
    let databases = match catalog::databases(session, selection, params.database.as_deref()).await {
        Ok(databases) => databases,
        Err(error @ EngineError::Missing { .. }) => return Ok(stops(&error)),
        Err(error) => return Err(error),
    };
    let mut count = 0;
    for database in &databases {
        let found = match catalog::collections(session, database).await {
            Ok(found) => found,
            Err(error @ EngineError::Missing { .. }) => return Ok(stops(&error)),
            Err(error) => return Err(error),
        };
        count += found.len();
        for one in found
            .iter()
            .filter(|one| one.kind != catalog::Kind::View)
            .take(1)
        {
            let probe = rawdoc! { "find": one.name.as_str(), "limit": 1, "singleBatch": true };
            if let Err(refusal) = session.list(database, probe, "looking").await? {
                let error = refusal.doing(session.server(), format!("reading {}", one.namespace()));
                return Ok(stops(&error));
            }
        }
    }
    let message = format!("{count} in {} databases can be read", databases.len());
    Ok(item(subject, PreflightLevel::Fine, &message, ""))
}

/// How busy a server is.
pub(crate) async fn load(target: &Target) -> Result<ServerLoad, EngineError> {
    let mut session = Session::visit(&Params::of(target)?).await?;
    let began = Instant::now();
    session
        .run(
            "admin",
            rawdoc! { "ping": 1 },
            "looking how busy the server is",
        )
        .await?;
    let latency = began.elapsed();
    let status = session
        .try_run("admin", rawdoc! { "serverStatus": 1 })
        .await?;
    let connections = status.ok().and_then(|status| {
        let connections = status.get_document("connections").ok()?;
        number(connections, "current")
    });
    Ok(ServerLoad {
        connections: connections.map(|count| count.saturating_sub(1)),
        latency_milliseconds: u64::try_from(latency.as_millis()).ok(),
        ..ServerLoad::default()
    })
}

/// How much room the file system of a server's data has, where it tells.
pub(crate) async fn free_bytes(target: &Target) -> Result<Option<u64>, EngineError> {
    let params = Params::of(target)?;
    let mut session = Session::visit(&params).await?;
    let database = params.database.as_deref().unwrap_or("admin");
    let stats = session.try_run(database, rawdoc! { "dbStats": 1 }).await?;
    Ok(stats.ok().and_then(|stats| {
        let total = number(&stats, "fsTotalSize").filter(|total| *total > 0)?;
        Some(total.saturating_sub(number(&stats, "fsUsedSize")?))
    }))
}

#[cfg(test)]
mod tests {
    use fettler_model::DatabaseUrl;

    use super::*;

    #[test]
    fn a_name_is_made_from_the_database_or_the_host() {
        for (url, name) in [
            ("mongodb://data.example.com", "data"),
            ("mongodb://data.example.com/Shop", "shop"),
            ("mongodb://10.0.0.1", "mongodb"),
            ("mongodb://localhost/", "mongodb"),
            ("mongodb://h/%C3%BC", "mongodb"),
        ] {
            let (url, password) = DatabaseUrl::parse_with_password(url).unwrap();
            let params = Params::of(&Target { url, password }).unwrap();
            assert_eq!(suggested_name(&params).as_str(), name);
        }
    }
}
