//! What no single answer says: lines that are put together from several.

use bson::{Document, RawDocumentBuf, doc, rawdoc};
use fettler_engine::{Refusal as Unanswered, Row};
use serde_json::{Value, json};

use super::{Asked, Failed, command_of, plain, unanswered, unread};

/// Collections that are looked at, one by one.
const MOST_COLLECTIONS: usize = 500;
/// The server's own databases.
pub(super) const OWN_DATABASES: [&str; 3] = ["admin", "config", "local"];

/// All databases, and a refusal where the user may see a part only.
pub(super) const LIST_DATABASES: &str =
    r#"{"listDatabases": 1, "nameOnly": true, "authorizedDatabases": false}"#;

/// A collection, by its database and its name.
pub(super) type Place = (String, String);

impl Asked {
    /// What a command that may be asked answers.
    pub(super) async fn command(&mut self, text: &str) -> Result<Value, Failed> {
        let command = command_of(text).map_err(unread)?;
        self.told(text, "admin", &command).await
    }

    /// A line for each member of the set.
    pub(super) async fn replica_members(&mut self) -> Result<Vec<Row>, Failed> {
        let status = self.command(r#"{"replSetGetStatus": 1}"#).await?;
        // A member that is behind on purpose is not behind. Whoever may not read the configuration is told so.
        let config = self.command(r#"{"replSetGetConfig": 1}"#).await?;
        members(&status, &config)
            .ok_or_else(|| unread("the state of the replica set cannot be read"))
    }

    /// One line about the oplog; nothing to ask of where there is none.
    pub(super) async fn oplog(&mut self) -> Result<Vec<Row>, Failed> {
        let is_set = self.session.hello.set_name.is_some();
        let mut ends = Vec::new();
        for direction in [1, -1] {
            let command = rawdoc! {
                "find": "oplog.rs",
                "sort": { "$natural": direction },
                "projection": { "ts": 1 },
                "limit": 1,
                "singleBatch": true,
            };
            let answer = self.run("local", command).await?;
            let answer = read(&answer)?;
            ends.push(answer["cursor"]["firstBatch"][0]["ts"].as_i64());
        }
        let (Some(oldest), Some(newest)) = (ends[0], ends[1]) else {
            return if is_set {
                Err(unread("the oplog cannot be read"))
            } else {
                Err(Failed::Refused(Unanswered::OtherVersion))
            };
        };
        let stats = self
            .run("local", rawdoc! { "collStats": "oplog.rs" })
            .await?;
        let stats = read(&stats)?;
        Ok(vec![Row::from_iter([
            (
                "window_seconds".to_owned(),
                json!(newest.saturating_sub(oldest)),
            ),
            ("bytes".to_owned(), stats["size"].clone()),
            ("most_bytes".to_owned(), stats["maxSize"].clone()),
        ])])
    }

    /// Each collection of the users' databases, and whether there are more than are looked at.
    pub(super) async fn collections(&mut self) -> Result<(Vec<Place>, bool), Failed> {
        let listed = self.command(LIST_DATABASES).await?;
        let mut found = Vec::new();
        for database in listed["databases"].as_array().into_iter().flatten() {
            let Some(database) = database["name"].as_str() else {
                continue;
            };
            if OWN_DATABASES.contains(&database) {
                continue;
            }
            let command = rawdoc! { "listCollections": 1, "nameOnly": true };
            for document in self.list(database, command).await? {
                let is_view = document
                    .get_str("type")
                    .is_ok_and(|kind| kind != "collection");
                match document.get_str("name") {
                    Ok(name) if !is_view && !name.starts_with("system.") => {
                        if found.len() == MOST_COLLECTIONS {
                            return Ok((found, true));
                        }
                        found.push((database.to_owned(), name.to_owned()));
                    }
                    _ => {}
                }
            }
        }
        Ok((found, false))
    }

    pub(super) async fn list(
        &mut self,
        database: &str,
        command: RawDocumentBuf,
    ) -> Result<Vec<Document>, Failed> {
        let documents = self
            .session
            .list(database, command, super::DOING)
            .await?
            .map_err(|refusal| Failed::Refused(unanswered(&refusal)))?;
        documents
            .iter()
            .map(|document| {
                Document::try_from(document.as_ref())
                    .map_err(|error| unread(format!("an answer cannot be read: {error}")))
            })
            .collect()
    }

    /// A line for each index that another one makes needless.
    pub(super) async fn redundant_indexes(&mut self) -> Result<Vec<Row>, Failed> {
        let (places, more) = self.collections().await?;
        let mut rows = Vec::new();
        for (database, collection) in places {
            let indexes = match self
                .list(&database, rawdoc! { "listIndexes": collection.as_str() })
                .await
            {
                Ok(indexes) => indexes,
                // Dropped meanwhile.
                Err(Failed::Refused(Unanswered::Failed(_))) => continue,
                Err(failed) => return Err(failed),
            };
            for (needless, instead) in redundant(&indexes) {
                rows.push(Row::from_iter([
                    (
                        "collection".to_owned(),
                        json!(format!("{database}.{collection}")),
                    ),
                    ("index".to_owned(), json!(needless)),
                    ("covered_by".to_owned(), json!(instead)),
                ]));
            }
        }
        Ok(and_more(rows, more))
    }

    /// A line for each index that nobody has used since the server counts.
    pub(super) async fn unused_indexes(&mut self) -> Result<Vec<Row>, Failed> {
        let status = self.command(r#"{"serverStatus": 1}"#).await?;
        let now = status["localTime"].as_f64();
        let (places, more) = self.collections().await?;
        let mut rows = Vec::new();
        for (database, collection) in places {
            let command =
                rawdoc! { "aggregate": collection.as_str(), "pipeline": [{ "$indexStats": {} }] };
            for index in self.list(&database, command).await? {
                let index = plain::document(&index);
                // The index of `_id` cannot be dropped, one that is unique refuses, and one with a time to live deletes.
                let works = index["spec"]["unique"] == true
                    || !index["spec"]["expireAfterSeconds"].is_null();
                if index["name"] == "_id_" || works {
                    continue;
                }
                let (Some(used), Some(since), Some(now)) = (
                    index["accesses"]["ops"].as_i64(),
                    index["accesses"]["since"].as_f64(),
                    now,
                ) else {
                    return Err(unread("the server does not count the uses of its indexes"));
                };
                rows.push(Row::from_iter([
                    (
                        "collection".to_owned(),
                        json!(format!("{database}.{collection}")),
                    ),
                    ("index".to_owned(), index["name"].clone()),
                    ("uses".to_owned(), json!(used)),
                    (
                        "counted_seconds".to_owned(),
                        json!((now - since).max(0.0).round() as i64),
                    ),
                ]));
            }
        }
        rows.retain(|row| row["uses"] == 0);
        Ok(and_more(rows, more))
    }

    /// A line for each collection, with the sizes that the server tells.
    pub(super) async fn collections_on_disk(&mut self) -> Result<Vec<Row>, Failed> {
        let (places, more) = self.collections().await?;
        let mut rows = Vec::new();
        for (database, collection) in places {
            let command = rawdoc! { "collStats": collection.as_str() };
            let stats = match self.run(&database, command).await {
                Ok(stats) => read(&stats)?,
                // Dropped meanwhile.
                Err(Failed::Refused(Unanswered::Failed(_))) => continue,
                Err(failed) => return Err(failed),
            };
            let reusable = [
                &stats["freeStorageSize"],
                &stats["wiredTiger"]["block-manager"]["file bytes available for reuse"],
            ]
            .into_iter()
            .find(|value| value.is_number());
            // Servers that tell nothing of it keep no files of their own.
            let Some(reusable) = reusable else { continue };
            rows.push(Row::from_iter([
                (
                    "collection".to_owned(),
                    json!(format!("{database}.{collection}")),
                ),
                ("file_bytes".to_owned(), stats["storageSize"].clone()),
                ("free_bytes".to_owned(), reusable.clone()),
            ]));
        }
        // Those that say most come first: not all are taken.
        rows.sort_by_key(|row| std::cmp::Reverse(row["free_bytes"].as_i64().unwrap_or(0)));
        rows.truncate(fettler_engine::Answers::MOST_ROWS - 1);
        Ok(and_more(rows, more))
    }

    /// A line for each database, with the profiler's level.
    pub(super) async fn profiling(&mut self) -> Result<Vec<Row>, Failed> {
        let listed = self.command(LIST_DATABASES).await?;
        let mut rows = Vec::new();
        for database in listed["databases"].as_array().into_iter().flatten() {
            let Some(database) = database["name"].as_str() else {
                continue;
            };
            if OWN_DATABASES.contains(&database) {
                continue;
            }
            let told = self.run(database, rawdoc! { "profile": -1 }).await?;
            let told = read(&told)?;
            rows.push(Row::from_iter([
                ("database".to_owned(), json!(database)),
                ("level".to_owned(), told["was"].clone()),
                ("slow_milliseconds".to_owned(), told["slowms"].clone()),
            ]));
        }
        Ok(rows)
    }
}

fn read(answer: &RawDocumentBuf) -> Result<Value, Failed> {
    Document::try_from(answer.as_ref())
        .map(|document| plain::document(&document))
        .map_err(|error| unread(format!("an answer cannot be read: {error}")))
}

/// Says where not all collections were looked at.
pub(super) fn and_more(mut rows: Vec<Row>, more: bool) -> Vec<Row> {
    if more {
        rows.push(Row::from_iter([(
            "not_evaluable".to_owned(),
            json!(format!(
                "there are more than {MOST_COLLECTIONS} collections, and the others were not looked at"
            )),
        )]));
    }
    rows
}

/// The lines of a replica set's members.
fn members(status: &Value, config: &Value) -> Option<Vec<Row>> {
    let list = status["members"].as_array()?;
    let moment = |member: &Value| member["optimeDate"].as_f64().filter(|at| *at > 0.0);
    let is = |member: &Value, state: &str| member["stateStr"] == state;
    let primary = list.iter().find(|member| is(member, "PRIMARY"));
    let newest = primary
        .and_then(moment)
        .or_else(|| list.iter().filter_map(moment).reduce(f64::max));
    let has_primary = primary.is_some();
    Some(
        list.iter()
            .map(|member| {
                let configured = config["config"]["members"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .find(|one| one["_id"] == member["_id"]);
                let delay = configured
                    .and_then(|one| {
                        one["secondaryDelaySecs"]
                            .as_f64()
                            .or_else(|| one["slaveDelay"].as_f64())
                    })
                    .unwrap_or(0.0);
                // Arbiters hold nothing, and a member that is not reached tells nothing: neither has a lag.
                let lag = match (newest, moment(member)) {
                    (Some(newest), Some(own)) => (newest - own - delay).max(0.0),
                    _ => 0.0,
                };
                Row::from_iter([
                    ("member".to_owned(), member["name"].clone()),
                    ("state".to_owned(), member["stateStr"].clone()),
                    (
                        "healthy".to_owned(),
                        json!(member["health"].as_f64() == Some(1.0)),
                    ),
                    ("lag_seconds".to_owned(), json!(lag.round() as i64)),
                    ("delay_seconds".to_owned(), json!(delay as i64)),
                    ("has_primary".to_owned(), json!(has_primary)),
                    ("members".to_owned(), json!(list.len())),
                ])
            })
            .collect(),
    )
}

/// Indexes whose keys another one begins with, under the same rules; with the one that does.
fn redundant(indexes: &[Document]) -> Vec<(String, String)> {
    /// What makes an index of the same keys another one.
    const RULES: [&str; 8] = [
        "unique",
        "sparse",
        "partialFilterExpression",
        "expireAfterSeconds",
        "collation",
        "hidden",
        "wildcardProjection",
        "prepareUnique",
    ];
    let is_special = |index: &Document| {
        index.get_document("key").is_ok_and(|keys| {
            keys.iter()
                .any(|(name, way)| way.as_str().is_some() || name.contains("$**"))
        })
    };
    let rules = |index: &Document| {
        RULES
            .iter()
            .filter_map(|rule| Some(((*rule).to_owned(), index.get(*rule)?.clone())))
            .collect::<Document>()
    };
    let name = |index: &Document| index.get_str("name").unwrap_or_default().to_owned();
    let mut found = Vec::new();
    for (at, index) in indexes.iter().enumerate() {
        let Ok(keys) = index.get_document("key") else {
            continue;
        };
        // One that refuses, deletes or filters does what a longer one does not.
        if name(index) == "_id_" || is_special(index) || rules(index) != doc! {} {
            continue;
        }
        let covering = indexes.iter().enumerate().find(|(other_at, other)| {
            let Ok(longer) = other.get_document("key") else {
                return false;
            };
            *other_at != at
                && !is_special(other)
                && rules(other) == doc! {}
                && longer.len() >= keys.len()
                // Of two with the same keys the later one is needless.
                && (longer.len() > keys.len() || *other_at < at)
                && keys
                    .iter()
                    .zip(longer.iter())
                    .all(|((a, way), (b, other_way))| a == b && same_way(way, other_way))
        });
        if let Some((_, other)) = covering {
            found.push((name(index), name(other)));
        }
    }
    found
}

/// Whether two directions are one, whatever number they were written as.
fn same_way(a: &bson::Bson, b: &bson::Bson) -> bool {
    let number = |way: &bson::Bson| match way {
        bson::Bson::Int32(way) => Some(f64::from(*way)),
        bson::Bson::Int64(way) => Some(*way as f64),
        bson::Bson::Double(way) => Some(*way),
        _ => None,
    };
    number(a).is_some() && number(a) == number(b)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_is_redundant_where_another_begins_with_its_keys_and_it_has_no_rule_of_its_own() {
        let indexes = [
            doc! { "name": "_id_", "key": { "_id": 1 } },
            doc! { "name": "a", "key": { "a": 1 } },
            doc! { "name": "ab", "key": { "a": 1, "b": -1 } },
            doc! { "name": "ab_too", "key": { "a": 1.0, "b": -1_i64 } },
            doc! { "name": "ba", "key": { "b": -1, "a": 1 } },
            doc! { "name": "a_down", "key": { "a": -1 } },
            doc! { "name": "a_once", "key": { "a": 1 }, "unique": true },
            doc! { "name": "a_text", "key": { "a": "text" } },
            doc! { "name": "a_ttl", "key": { "a": 1 }, "expireAfterSeconds": 60 },
        ];
        let found = redundant(&indexes);
        let found: Vec<(&str, &str)> = found
            .iter()
            .map(|(a, b)| (a.as_str(), b.as_str()))
            .collect();
        assert_eq!(found, [("a", "ab"), ("ab_too", "ab")]);
    }

    /// The documented form of `replSetGetStatus` and `replSetGetConfig` of MongoDB 7.0, shortened.
    #[test]
    fn a_member_is_as_far_behind_as_it_was_not_meant_to_be() {
        let status = json!({"set": "rs0", "members": [
            {"_id": 0, "name": "a:27017", "health": 1.0, "stateStr": "PRIMARY", "optimeDate": 1000},
            {"_id": 1, "name": "b:27017", "health": 1.0, "stateStr": "SECONDARY", "optimeDate": 880},
            {"_id": 2, "name": "c:27017", "health": 1.0, "stateStr": "SECONDARY", "optimeDate": 300},
            {"_id": 3, "name": "d:27017", "health": 0.0, "stateStr": "(not reachable/healthy)", "optimeDate": 0},
            {"_id": 4, "name": "e:27017", "health": 1.0, "stateStr": "ARBITER"},
        ]});
        let config = json!({"config": {"members": [
            {"_id": 0}, {"_id": 1, "secondaryDelaySecs": 0}, {"_id": 2, "secondaryDelaySecs": 600}, {"_id": 3}, {"_id": 4},
        ]}});
        let rows = members(&status, &config).unwrap();
        let lags: Vec<&Value> = rows.iter().map(|row| &row["lag_seconds"]).collect();
        assert_eq!(json!(lags), json!([0, 120, 100, 0, 0]));
        assert_eq!(rows[3]["healthy"], false);
        assert_eq!(rows[4]["has_primary"], true);
    }
}
