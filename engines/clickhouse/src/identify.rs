//! Who a server is, what it allows, how busy it is.
//!
//! **Identity.** A server of today has a UUID of its own (`serverUUID()`); older ones, and those in a process of another
//! program, have none: for them it is the address that was reached. A database's name belongs to it where the URL has one.

use std::time::Instant;

use fettler_engine::{BackupOptions, EngineError, Identity, PreflightItem, PreflightLevel, Target};
use fettler_model::{DatabaseName, Engine, ServerLoad};

use crate::{
    catalogue::{Catalogue, SCRATCH_PREFIX},
    cluster,
    grants::{FOR_BACKUPS, FOR_USERS},
    http::Session,
    params::Params,
    select::Excluded,
    sql::literal,
};

/// The longest name that a database may have in Fettler.
const LONGEST_NAME: usize = 63;

/// Asks a server who it is.
pub(crate) async fn identify(target: &Target) -> Result<Identity, EngineError> {
    let params = Params::of(target)?;
    let session = Session::visit(&params).await?;
    identity(&params, &session).await
}

/// Who a server is, by what it tells.
pub(crate) async fn identity(params: &Params, session: &Session) -> Result<Identity, EngineError> {
    let doing = "asking the server who it is";
    let uuid = session
        .try_rows("SELECT toString(serverUUID())", &[], doing)
        .await?
        .ok()
        .and_then(|rows| rows.into_iter().flatten().next())
        .filter(|uuid| uuid.bytes().any(|byte| !matches!(byte, b'0' | b'-')));
    // A cluster has no identity of its own: it is what the host of the URL calls so.
    let server = match &params.cluster {
        Some(cluster) => format!("cluster {cluster} of {}", params.server()),
        None => uuid.unwrap_or_else(|| session.address.clone()),
    };
    let database = params
        .database
        .as_ref()
        .map_or_else(String::new, |name| format!("/{name}"));
    let condition = params.database.as_ref().map_or_else(String::new, |name| {
        format!(" AND database = {}", literal(name))
    });
    let bytes = session
        .rows(
            &format!("SELECT toString(sum(bytes_on_disk)) FROM system.parts WHERE active AND NOT startsWith(database, '{SCRATCH_PREFIX}'){condition}"),
            doing,
        )
        .await?;
    Ok(Identity {
        engine: Engine::Clickhouse,
        version: session.version.clone(),
        key: format!("clickhouse:{server}{database}"),
        lineage: server,
        suggested_name: suggested_name(params),
        estimated_bytes: bytes
            .first()
            .and_then(|row| row[0].parse().ok())
            .unwrap_or(0),
    })
}

/// The database's name, or the first part of the host's, or `clickhouse`.
fn suggested_name(params: &Params) -> DatabaseName {
    let word = match params.database.as_ref().or(params.cluster.as_ref()) {
        Some(name) => name.as_str(),
        None if params.host.parse::<std::net::IpAddr>().is_err() => {
            params.host.split('.').next().unwrap_or_default()
        }
        None => "",
    };
    let name: String = word
        .to_lowercase()
        .chars()
        .filter(|letter| matches!(letter, 'a'..='z' | '0'..='9' | '-' | '_'))
        .skip_while(|letter| !letter.is_ascii_alphanumeric())
        .take(LONGEST_NAME)
        .collect();
    let name = name.trim_end_matches(['-', '_']);
    let name = if name == "localhost" { "" } else { name };
    name.parse()
        .unwrap_or_else(|_| "clickhouse".parse().expect("the word is a valid name"))
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
    Excluded::of(&options.exclude)?;
    let session = Session::visit(&params).await?;
    let mut items = vec![item(
        "server",
        PreflightLevel::Fine,
        &format!("version {}", session.version),
        "",
    )];
    items.push(look_at_user(&session).await?);
    if params.cluster.is_some() {
        items.push(look_at_cluster(&params).await);
    }
    let catalogue = Catalogue::read(&session, params.database.as_deref(), None).await?;
    items.push(if catalogue.databases.is_empty() {
        item(
            "databases",
            PreflightLevel::Stops,
            "the user sees no database to back up",
            &FOR_BACKUPS,
        )
    } else {
        item(
            "databases",
            PreflightLevel::Fine,
            &format!(
                "{} databases with {} tables",
                catalogue.databases.len(),
                catalogue.tables.len()
            ),
            "",
        )
    });
    items.push(item(
        "moment",
        PreflightLevel::Missing,
        "each table is read as it was at one moment, and not all tables at the same one",
        "stop the writers for the second in which the shadows are made, where that matters",
    ));
    items.push(if session.has_column("parts", "hash_of_all_files").await? {
        item(
            "parts",
            PreflightLevel::Fine,
            "parts that an earlier backup holds are not read",
            "",
        )
    } else {
        item(
            "parts",
            PreflightLevel::Missing,
            "this version tells no hash of its parts: all of them are read each time",
            "nothing to do: what did not change is still stored once",
        )
    });
    let access = session.try_lines("SHOW ACCESS", "listing users").await?;
    items.push(match access {
        Ok(_) => item("users", PreflightLevel::Fine, "can be read", ""),
        Err(refusal) => item(
            "users",
            PreflightLevel::Missing,
            &format!("users, roles, quotas and row policies will not be in the backup: {refusal}"),
            &FOR_USERS,
        ),
    });
    Ok(items)
}

/// Whether each shard of a cluster has a server that answers.
async fn look_at_cluster(params: &Params) -> PreflightItem {
    let stop = tokio_util::sync::CancellationToken::new();
    match cluster::reach(params, "fettler", &stop).await {
        Ok(shards) => {
            let read: Vec<String> = shards
                .iter()
                .filter_map(|shard| Some(shard.first()?.session.server()))
                .collect();
            let message = format!("{} shards, read from {}", read.len(), read.join(", "));
            item("cluster", PreflightLevel::Fine, &message, "")
        }
        Err(EngineError::Missing { what, remedy, .. }) => {
            item("cluster", PreflightLevel::Stops, &what, &remedy)
        }
        Err(error) => item(
            "cluster",
            PreflightLevel::Stops,
            &error.to_string(),
            "each server of the cluster has to be reached by the name that system.clusters has for it, at the port of the URL, with the same login",
        ),
    }
}

/// Whether the user may make the scratch database of the shadows.
async fn look_at_user(session: &Session) -> Result<PreflightItem, EngineError> {
    let readonly = session
        .rows(
            "SELECT value FROM system.settings WHERE name = 'readonly'",
            "asking what the user may do",
        )
        .await?;
    if readonly.first().is_some_and(|row| row[0] != "0") {
        return Ok(item(
            "user",
            PreflightLevel::Stops,
            "the user may only read (`readonly`), and a backup links tables into a database of its own",
            "give it a profile with `readonly = 0`, and narrow it by grants",
        ));
    }
    let check = format!("CHECK GRANT CREATE DATABASE, CREATE TABLE ON {SCRATCH_PREFIX}check.*");
    let answer = session
        .try_rows(&check, &[], "asking what the user may do")
        .await?;
    // Old versions have no such question.
    if let Ok(rows) = answer
        && rows.first().is_some_and(|row| row[0] == "0")
    {
        return Ok(item(
            "user",
            PreflightLevel::Stops,
            "the user may not make the scratch database of a backup",
            &FOR_BACKUPS,
        ));
    }
    Ok(item(
        "user",
        PreflightLevel::Fine,
        "may do what a backup does",
        "",
    ))
}

/// How busy a server is.
pub(crate) async fn load(target: &Target) -> Result<ServerLoad, EngineError> {
    let session = Session::visit(&Params::of(target)?).await?;
    let began = Instant::now();
    let running = session
        .rows(
            "SELECT toString(value) FROM system.metrics WHERE metric = 'Query'",
            "looking how busy the server is",
        )
        .await?;
    Ok(ServerLoad {
        connections: running
            .first()
            .and_then(|row| row[0].parse::<u64>().ok())
            .map(|queries| queries.saturating_sub(1)),
        replication_lag_seconds: None,
        latency_milliseconds: u64::try_from(began.elapsed().as_millis()).ok(),
    })
}

/// How many bytes the server's disks have free, where it tells.
pub(crate) async fn free_bytes(target: &Target) -> Result<Option<u64>, EngineError> {
    let session = Session::visit(&Params::of(target)?).await?;
    let rows = session
        .try_rows(
            "SELECT toString(max(free_space)) FROM system.disks",
            &[],
            "asking for free space",
        )
        .await?;
    Ok(rows
        .ok()
        .and_then(|rows| rows.first().and_then(|row| row[0].parse().ok())))
}

#[cfg(test)]
mod tests {
    use fettler_model::DatabaseUrl;

    use super::*;

    #[test]
    fn a_name_is_made_from_the_database_or_the_host() {
        for (url, name) in [
            ("clickhouse://ch.example.com", "ch"),
            ("clickhouse://ch.example.com/Shop", "shop"),
            ("clickhouse://10.0.0.1", "clickhouse"),
            ("clickhouse://localhost/", "clickhouse"),
        ] {
            let (url, password) = DatabaseUrl::parse_with_password(url).unwrap();
            let params = Params::of(&Target { url, password }).unwrap();
            assert_eq!(suggested_name(&params).as_str(), name);
        }
    }
}
