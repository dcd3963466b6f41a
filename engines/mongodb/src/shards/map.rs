//! The router's map: which shards there are, where their members listen, and by what collections are divided.

use std::collections::BTreeMap;

use bson::{RawDocument, RawDocumentBuf, rawdoc};
use fettler_engine::EngineError;
use tokio_util::sync::CancellationToken;

use crate::{catalog::Collection, params::Params, raw::put, session::Session};

/// What is being done, for messages.
const ASKING: &str = "asking the router for its shards";

/// A shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Shard {
    pub(crate) name: String,
    /// `host:port` of each member.
    members: Vec<String>,
}

impl Shard {
    /// Reads `shard1/a.example:27018,b.example:27018`, the form in which the map has it.
    fn of(name: &str, host: &str) -> Self {
        let members = host.split_once('/').map_or(host, |(_, members)| members);
        Self {
            name: name.to_owned(),
            members: members.split(',').map(str::to_owned).collect(),
        }
    }

    /// A session with the member that takes writes, or with any where none says so.
    pub(crate) async fn open(
        &self,
        params: &Params,
        session_name: &str,
        stop: &CancellationToken,
    ) -> Result<Session, EngineError> {
        let mut other = None;
        let mut failed = None;
        for member in &self.members {
            match Session::open(&params.of_member(member)?, session_name, stop).await {
                Ok(session) if session.hello.is_primary => return Ok(session),
                Ok(session) => other = Some(session),
                Err(EngineError::Stopped) => return Err(EngineError::Stopped),
                Err(error) => failed = Some(error),
            }
        }
        match (other, failed) {
            (Some(session), _) => Ok(session),
            (None, Some(error)) => Err(error),
            (None, None) => Err(EngineError::Database {
                what: format!("the shard {} has no members", self.name),
                transient: true,
            }),
        }
    }
}

/// The shards that a router knows, by name.
pub(crate) async fn shards(session: &mut Session) -> Result<Vec<Shard>, EngineError> {
    let answer = session
        .run("admin", rawdoc! { "listShards": 1 }, ASKING)
        .await?;
    let list = answer
        .get_array("shards")
        .map_err(|error| session.unexpected(ASKING, &error))?;
    let mut found = Vec::new();
    for one in list.into_iter().flatten() {
        let read = one.as_document().and_then(|one| {
            Some(Shard::of(
                one.get_str("_id").ok()?,
                one.get_str("host").ok()?,
            ))
        });
        found.push(read.ok_or_else(|| session.unexpected(ASKING, &"a shard without a name"))?);
    }
    if found.is_empty() {
        return Err(session.unexpected(ASKING, &"there are none"));
    }
    found.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

/// By what collections are divided, by namespace: `key` and `unique`, as `shardCollection` takes them.
pub(crate) async fn divided(
    session: &mut Session,
) -> Result<BTreeMap<String, RawDocumentBuf>, EngineError> {
    let doing = "reading by what collections are divided";
    let command = rawdoc! { "find": "collections" };
    let listed = session
        .list("config", command, doing)
        .await?
        .map_err(|refusal| refusal.doing(session.server(), doing))?;
    Ok(listed.iter().filter_map(|one| division(one)).collect())
}

/// Divides a collection that was just made, as it was divided. One that is divided so already stays.
pub(crate) async fn divide(
    session: &mut Session,
    database: &str,
    collection: &Collection,
    division: &RawDocument,
) -> Result<(), EngineError> {
    let doing = format!("dividing {database}.{} between shards", collection.name);
    // Servers from 6.0 on do so by themselves.
    let enable = rawdoc! { "enableSharding": database };
    session.run("admin", enable, &doing).await?;
    let command = shard_collection(database, collection, division);
    session.run("admin", command, &doing).await.map(drop)
}

fn shard_collection(
    database: &str,
    collection: &Collection,
    division: &RawDocument,
) -> RawDocumentBuf {
    let mut command = rawdoc! { "shardCollection": format!("{database}.{}", collection.name) };
    for (name, value) in division.iter().flatten() {
        put(&mut command, name.as_str(), value);
    }
    // Shards compare keys by bytes, which has to be said where the collection compares by a language.
    if matches!(collection.options.get("collation"), Ok(Some(_))) {
        put(&mut command, "collation", rawdoc! { "locale": "simple" });
    }
    command
}

/// An entry of `config.collections`. From 8.0 on it also has collections that lie on one shard.
fn division(entry: &RawDocument) -> Option<(String, RawDocumentBuf)> {
    let is = |name: &str| entry.get_bool(name).unwrap_or(false);
    let namespace = entry.get_str("_id").ok()?;
    if is("dropped") || is("unsplittable") || namespace.starts_with("config.") {
        return None;
    }
    let mut division = RawDocumentBuf::new();
    put(
        &mut division,
        "key",
        entry.get_document("key").ok()?.to_owned(),
    );
    put(&mut division, "unique", is("unique"));
    Some((namespace.to_owned(), division))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shard_is_read_with_its_members() {
        let set = Shard::of("s1", "rs1/a.example:27018,b.example:27018");
        assert_eq!(set.members, ["a.example:27018", "b.example:27018"]);
        assert_eq!(Shard::of("s2", "a:1").members, ["a:1"]);
    }

    /// The documented form of `config.collections` of 4.4 and of 8.0, shortened.
    #[test]
    fn what_is_divided_is_told_and_what_was_or_cannot_be_is_not() {
        let of = |entry: RawDocumentBuf| division(&entry);
        let key = rawdoc! { "customer": "hashed" };
        let (name, division) = of(
            rawdoc! { "_id": "shop.orders", "key": key.clone(), "unique": false, "dropped": false },
        )
        .unwrap();
        assert_eq!(name, "shop.orders");
        assert_eq!(division, rawdoc! { "key": key.clone(), "unique": false });
        for left_out in [
            rawdoc! { "_id": "shop.old", "key": key.clone(), "dropped": true },
            rawdoc! { "_id": "shop.one", "key": { "_id": 1 }, "unsplittable": true },
            rawdoc! { "_id": "config.system.sessions", "key": { "_id": 1 }, "unique": false },
        ] {
            assert_eq!(of(left_out), None);
        }
    }
}
