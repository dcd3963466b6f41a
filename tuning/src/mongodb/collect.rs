//! What a MongoDB server tells of its collections, their indexes, their documents' forms, and of operations that were slow.

use fettler_engine::{EngineError, StatementError, Workbench};
use serde_json::{Value, json};

use super::{
    command,
    shape::{Cost, Operation, Part},
};
use crate::advice::told;

/// How many collections are looked at, at most.
const MOST_COLLECTIONS: usize = 300;
/// How many recorded operations are read of a database.
const MOST_PROFILED: u32 = 1000;
/// Of how many documents the form is looked at.
const SAMPLED: u32 = 50;
/// The server's own databases.
const OWN: [&str; 3] = ["admin", "config", "local"];

/// An index.
#[derive(Clone, Debug)]
pub(super) struct Index {
    pub(super) name: String,
    pub(super) key: Vec<Part>,
    /// Whether it does more than finding: unique, for a part of the documents, expiring, in another order of letters.
    pub(super) does_more: bool,
    /// How often it was read, and since when the server counts, in seconds since 1970.
    pub(super) reads: Option<(f64, f64)>,
}

/// A collection.
#[derive(Clone, Debug, Default)]
pub(super) struct Collection {
    pub(super) database: String,
    pub(super) name: String,
    pub(super) documents: f64,
    pub(super) mean_bytes: f64,
    pub(super) indexes: Vec<Index>,
    /// The longest array that a sampled document has: its path and length.
    pub(super) longest_array: Option<(String, usize)>,
}

/// All of it.
#[derive(Clone, Debug, Default)]
pub(super) struct Facts {
    pub(super) version: String,
    /// Databases, and how many collections each has.
    pub(super) databases: Vec<(String, usize)>,
    pub(super) collections: Vec<Collection>,
    pub(super) operations: Vec<Operation>,
    pub(super) unread: usize,
    /// Whether a profiler has recorded anything, or operations were given.
    pub(super) has_operations: bool,
    /// Why indexes' reads are not told, where they are not.
    pub(super) no_index_stats: Option<String>,
    /// Why something could not be listed.
    pub(super) refused: Option<String>,
}

impl Facts {
    /// Whether there are indexes, and reads of none are counted.
    fn counts_no_reads(&self) -> bool {
        let mut indexes = self
            .collections
            .iter()
            .flat_map(|one| &one.indexes)
            .peekable();
        indexes.peek().is_some() && indexes.all(|index| index.reads.is_none())
    }
}

pub(super) async fn collect(
    bench: &mut dyn Workbench,
    statements: &[String],
) -> Result<Facts, EngineError> {
    let mut facts = Facts::default();
    let build = told(bench, &command("admin", &json!({"buildInfo": 1}))).await?;
    facts.version = build
        .ok()
        .and_then(|build| Some(build["version"].as_str()?.to_owned()))
        .unwrap_or_default();
    let listed = told(
        bench,
        &command("admin", &json!({"listDatabases": 1, "nameOnly": true})),
    )
    .await?
    .map_err(|message| {
        StatementError::Refused {
            code: "listDatabases".to_owned(),
            message,
        }
        .doing("listing databases")
    })?;
    for one in listed["databases"].as_array().into_iter().flatten() {
        let Some(name) = one["name"].as_str().filter(|name| !OWN.contains(name)) else {
            continue;
        };
        database(bench, &mut facts, name).await?;
    }
    if facts.counts_no_reads() {
        facts
            .no_index_stats
            .get_or_insert_with(|| "its answer holds no counts".to_owned());
    }
    given(&mut facts, statements);
    explain(bench, &mut facts).await?;
    facts.has_operations = !facts.operations.is_empty();
    Ok(facts)
}

/// The first batch of a cursor.
async fn batch(
    bench: &mut dyn Workbench,
    database: &str,
    asked: &Value,
) -> Result<Result<Vec<Value>, String>, EngineError> {
    let answer = told(bench, &command(database, asked)).await?;
    Ok(
        answer.map(|mut answer| match answer["cursor"]["firstBatch"].take() {
            Value::Array(list) => list,
            _ => Vec::new(),
        }),
    )
}

async fn database(
    bench: &mut dyn Workbench,
    facts: &mut Facts,
    name: &str,
) -> Result<(), EngineError> {
    let asked = json!({"listCollections": 1, "cursor": {"batchSize": 20_000}});
    let listed = match batch(bench, name, &asked).await? {
        Ok(listed) => listed,
        Err(why) => {
            facts.refused = Some(why);
            return Ok(());
        }
    };
    let mut count = 0;
    for one in &listed {
        let Some(collection) = one["name"]
            .as_str()
            .filter(|name| !name.starts_with("system."))
        else {
            continue;
        };
        if one["type"]
            .as_str()
            .is_some_and(|kind| kind != "collection")
        {
            continue;
        }
        count += 1;
        if facts.collections.len() < MOST_COLLECTIONS {
            let found = look_at(bench, facts, name, collection).await?;
            facts.collections.push(found);
        }
    }
    facts.databases.push((name.to_owned(), count));
    let asked = json!({"find": "system.profile", "filter": {}, "sort": {"$natural": -1}, "limit": MOST_PROFILED, "batchSize": MOST_PROFILED, "singleBatch": true});
    // Where nothing was ever profiled there is no such collection, and that is an empty answer.
    if let Ok(profiled) = batch(bench, name, &asked).await? {
        facts
            .operations
            .extend(profiled.iter().filter_map(profiled_one));
    }
    Ok(())
}

/// An entry of the profiler.
pub(super) fn profiled_one(entry: &Value) -> Option<Operation> {
    let (database, collection) = entry["ns"].as_str()?.split_once('.')?;
    if collection.starts_with("system.") || collection == "$cmd" {
        return None;
    }
    let is_read = matches!(
        entry["op"].as_str()?,
        "query" | "command" | "update" | "remove"
    );
    let number = |name: &str| entry[name].as_f64().unwrap_or(0.0);
    is_read.then(|| Operation {
        database: database.to_owned(),
        collection: collection.to_owned(),
        command: entry["command"].clone(),
        cost: Some(Cost {
            runs: 1.0,
            examined: number("docsExamined"),
            returned: number("nreturned")
                .max(number("nMatched"))
                .max(number("ndeleted")),
            ms: number("millis"),
        }),
    })
}

/// Operations that a user gives: commands in JSON, as the profiler has them, each with `$db`.
fn given(facts: &mut Facts, statements: &[String]) {
    for text in statements {
        for one in serde_json::Deserializer::from_str(text).into_iter::<Value>() {
            let Ok(value) = one else {
                facts.unread += 1;
                break;
            };
            let collection = value
                .as_object()
                .and_then(|fields| fields.values().next()?.as_str());
            match (value["$db"].as_str(), collection) {
                (Some(database), Some(collection)) => facts.operations.push(Operation {
                    database: database.to_owned(),
                    collection: collection.to_owned(),
                    command: value.clone(),
                    cost: None,
                }),
                _ => facts.unread += 1,
            }
        }
    }
}

/// Has the server run what reads and was given, and say what it cost, where it can.
async fn explain(bench: &mut dyn Workbench, facts: &mut Facts) -> Result<(), EngineError> {
    for one in &mut facts.operations {
        let Some(fields) = one.command.as_object().filter(|_| one.cost.is_none()) else {
            continue;
        };
        let is_read = ["find", "count", "distinct", "aggregate"]
            .contains(&fields.keys().next().map_or("", String::as_str));
        // An aggregation may write to a collection.
        if !is_read
            || one.command.to_string().contains("\"$out\"")
            || one.command.to_string().contains("\"$merge\"")
        {
            continue;
        }
        let mut asked = fields.clone();
        asked.remove("$db");
        let explained = told(
            bench,
            &command(
                &one.database,
                &json!({"explain": asked, "verbosity": "executionStats", "maxTimeMS": 10_000}),
            ),
        )
        .await?;
        one.cost = explained.ok().and_then(|explained| {
            let stats = &explained["executionStats"];
            Some(Cost {
                runs: 1.0,
                examined: stats["totalDocsExamined"].as_f64()?,
                returned: stats["nReturned"].as_f64()?,
                ms: stats["executionTimeMillis"].as_f64().unwrap_or(0.0),
            })
        });
    }
    Ok(())
}

async fn look_at(
    bench: &mut dyn Workbench,
    facts: &mut Facts,
    database: &str,
    name: &str,
) -> Result<Collection, EngineError> {
    let mut found = Collection {
        database: database.to_owned(),
        name: name.to_owned(),
        ..Collection::default()
    };
    if let Ok(stats) = told(bench, &command(database, &json!({ "collStats": name }))).await? {
        found.documents = stats["count"].as_f64().unwrap_or(0.0);
        found.mean_bytes = stats["avgObjSize"]
            .as_f64()
            .unwrap_or_else(|| stats["size"].as_f64().unwrap_or(0.0) / found.documents.max(1.0));
    }
    let asked = json!({"listIndexes": name, "cursor": {"batchSize": 100}});
    match batch(bench, database, &asked).await? {
        Ok(listed) => found.indexes = listed.iter().filter_map(index).collect(),
        Err(why) => facts.refused = Some(why),
    }
    let asked = json!({"aggregate": name, "pipeline": [{"$indexStats": {}}], "cursor": {}});
    match batch(bench, database, &asked).await? {
        Ok(stats) => {
            for one in stats {
                let index = found
                    .indexes
                    .iter_mut()
                    .find(|index| one["name"].as_str() == Some(&index.name));
                if let (Some(index), Some(ops), Some(since)) = (
                    index,
                    one["accesses"]["ops"].as_f64(),
                    one["accesses"]["since"].as_f64(),
                ) {
                    index.reads = Some((ops, since));
                }
            }
        }
        Err(why) => facts.no_index_stats = Some(why),
    }
    let asked = json!({"find": name, "limit": SAMPLED, "batchSize": SAMPLED, "singleBatch": true});
    if let Ok(documents) = batch(bench, database, &asked).await? {
        for document in &documents {
            longest(document, "", &mut found.longest_array);
        }
    }
    Ok(found)
}

/// An index as `listIndexes` has it.
pub(super) fn index(told: &Value) -> Option<Index> {
    const MORE: [&str; 7] = [
        "unique",
        "sparse",
        "partialFilterExpression",
        "expireAfterSeconds",
        "collation",
        "hidden",
        "weights",
    ];
    Some(Index {
        name: told["name"].as_str()?.to_owned(),
        key: told["key"]
            .as_object()?
            .iter()
            .map(|(field, way)| {
                // The way is a number of any kind, of which only the sign counts.
                let way = way
                    .as_f64()
                    .map_or_else(|| way.clone(), |way| json!(if way < 0.0 { -1 } else { 1 }));
                (field.clone(), way)
            })
            .collect(),
        does_more: MORE
            .iter()
            .any(|name| told.get(*name).is_some_and(|value| *value != json!(false))),
        reads: None,
    })
}

/// The longest array of a document, by its path.
fn longest(value: &Value, path: &str, found: &mut Option<(String, usize)>) {
    match value {
        Value::Array(items) => {
            if found
                .as_ref()
                .is_none_or(|(_, length)| items.len() > *length)
            {
                *found = Some((path.to_owned(), items.len()));
            }
            for item in items.iter().take(20) {
                longest(item, path, found);
            }
        }
        Value::Object(fields) => {
            for (name, inner) in fields {
                let path = if path.is_empty() {
                    name.clone()
                } else {
                    format!("{path}.{name}")
                };
                longest(inner, &path, found);
            }
        }
        _ => {}
    }
}
