//! What follows from what was seen of a MongoDB server.

use fettler_model::{ActionKind, Severity, TuningAction};
use serde_json::{Map, Value, json};

use super::{
    collect::{Collection, Facts, Index},
    command,
    shape::{Cost, Part, Shape, together},
};
use crate::{
    Wishes,
    advice::{Advice, Said, action, id_of, size},
};

/// A collection with fewer documents is read as quickly as an index.
const FEW_DOCUMENTS: f64 = 1000.0;
/// How many documents an operation must look at for each that it gives to be worth an index.
const WASTED: f64 = 10.0;
/// An array longer than this grows, more likely than not, with whatever it lists.
const LONG_ARRAY: usize = 1000;
/// A document is 16 MiB at most; each is read, sent and written as a whole.
const LARGE_DOCUMENT: f64 = 1_048_576.0;
/// Files are opened, and memory is taken, for each collection and each of its indexes; MongoDB advises against more than this.
const MANY_COLLECTIONS: usize = 10_000;
/// Each write keeps up all of them; the server allows 64.
const MANY_INDEXES: usize = 20;

pub(super) fn report(advice: &mut Advice, facts: &Facts, wishes: &Wishes, now: f64) {
    if let Some(why) = &facts.refused {
        advice.unknown("collections", "not all collections could be looked at", why);
    }
    missing(advice, facts);
    patterns(advice, facts);
    redundant(advice, facts);
    unused(advice, facts, wishes, now);
    documents(advice, facts);
}

/// A key as MongoDB's shell writes it.
fn shown(key: &[Part]) -> String {
    let parts: Vec<String> = key
        .iter()
        .map(|(field, way)| format!("{field}: {way}"))
        .collect();
    format!("{{{}}}", parts.join(", "))
}

fn name_of(key: &[Part]) -> String {
    let parts: Vec<String> = key
        .iter()
        .map(|(field, way)| format!("{}_{}", field.replace('.', "_"), way))
        .collect();
    let text: String = parts.join("_").chars().take(60).collect();
    format!("fettler_{text}_{}", id_of(&shown(key)))
}

fn creation(collection: &Collection, key: &[Part], finding: &str, reason: String) -> TuningAction {
    let name = name_of(key);
    let fields: Map<String, Value> = key.iter().cloned().collect();
    let mut made = action(
        ActionKind::CreateIndex,
        &name,
        finding,
        reason,
        vec![command(
            &collection.database,
            &json!({"createIndexes": collection.name, "indexes": [{"key": fields, "name": name}]}),
        )],
        vec![command(
            &collection.database,
            &json!({"dropIndexes": collection.name, "index": name}),
        )],
    );
    made.table = format!("{}.{}", collection.database, collection.name);
    made
}

/// What an index would serve.
struct Wanted<'a> {
    collection: &'a Collection,
    key: Vec<Part>,
    shapes: Vec<Shape>,
    cost: Cost,
    is_counted: bool,
}

fn missing(advice: &mut Advice, facts: &Facts) {
    if facts.has_operations && facts.unread == 0 {
        advice.seen("index_missing");
    }
    let mut wanted: Vec<Wanted<'_>> = Vec::new();
    for ((database, name, _), (shape, cost, is_counted)) in together(&facts.operations) {
        let Some(collection) = facts
            .collections
            .iter()
            .find(|one| one.database == database && one.name == name)
        else {
            continue;
        };
        let key = shape.key();
        let is_waste = !is_counted
            || (cost.examined >= FEW_DOCUMENTS * cost.runs
                && cost.examined > cost.returned.max(cost.runs) * WASTED);
        let is_served = collection
            .indexes
            .iter()
            .any(|index| shape.is_served_by(&index.key));
        if key.is_empty() || collection.documents < FEW_DOCUMENTS || !is_waste || is_served {
            continue;
        }
        wanted.push(Wanted {
            collection,
            key,
            shapes: vec![shape],
            cost,
            is_counted,
        });
    }
    // The longest first: what it serves as well needs no index of its own.
    wanted.sort_by_key(|one| std::cmp::Reverse(one.key.len()));
    let mut chosen: Vec<Wanted<'_>> = Vec::new();
    for one in wanted {
        let other = chosen.iter_mut().find(|other| {
            std::ptr::eq(other.collection, one.collection)
                && one
                    .shapes
                    .iter()
                    .all(|shape| shape.is_served_by(&other.key))
        });
        match other {
            Some(other) => {
                other.cost.runs += one.cost.runs;
                other.cost.examined += one.cost.examined;
                other.cost.returned += one.cost.returned;
                other.cost.ms += one.cost.ms;
                other.is_counted &= one.is_counted;
                other.shapes.extend(one.shapes);
            }
            None => chosen.push(one),
        }
    }
    for one in chosen {
        recommend(advice, &one);
    }
}

fn recommend(advice: &mut Advice, one: &Wanted<'_>) {
    let object = format!(
        "{}.{} {}",
        one.collection.database,
        one.collection.name,
        shown(&one.key)
    );
    let reason = if one.is_counted {
        format!(
            "{:.0} runs looked at {:.0} documents to give {:.0}, and took {:.0} ms",
            one.cost.runs, one.cost.examined, one.cost.returned, one.cost.ms
        )
    } else {
        format!(
            "no index of the collection's {:.0} documents begins with what the given operations ask for",
            one.collection.documents
        )
    };
    let mut made = creation(one.collection, &one.key, "", reason.clone());
    made.finding = advice.find(Said {
        check: "index_missing",
        object: &object,
        severity: if one.is_counted && one.cost.examined > one.cost.returned.max(1.0) * 100.0 {
            Severity::High
        } else {
            Severity::Medium
        },
        title: format!("an index on {object} is missing: {reason}"),
        evidence: json!({"documents": one.collection.documents, "shapes": one.shapes.len(), "runs": one.cost.runs, "examined": one.cost.examined, "returned": one.cost.returned, "ms": one.cost.ms}),
        why: "Without it all documents are read, or sorted in memory. Its fields stand in the order in which they narrow: what must be equal, then the order, then ranges.",
        fix: "Make the index. Since version 4.2 that keeps neither readers nor writers out, but for an instant at its beginning and end.",
        commands: made.apply.clone(),
    });
    let why_not = (!one.is_counted)
        .then_some("what the operations cost was neither recorded nor could the server explain it");
    advice.plan(made, why_not);
}

fn patterns(advice: &mut Advice, facts: &Facts) {
    if facts.has_operations {
        advice.seen("patterns");
    }
    for ((database, name, _), (shape, cost, _)) in together(&facts.operations) {
        let is_large = facts.collections.iter().any(|one| {
            one.database == database && one.name == name && one.documents >= FEW_DOCUMENTS
        });
        if shape.wide_patterns.is_empty() || !shape.equal.is_empty() || !is_large {
            continue;
        }
        advice.find(Said {
            check: "patterns",
            object: &format!("{database}.{name} {}", shape.wide_patterns.join(", ")),
            severity: Severity::Low,
            title: format!(
                "{database}.{name} is searched by a pattern of {} that no index narrows",
                shape.wide_patterns.join(", ")
            ),
            evidence: json!({"runs": cost.runs, "examined": cost.examined, "returned": cost.returned}),
            why: "A pattern that does not begin with `^`, or that takes large and small letters alike, has every entry of an index read, or every document.",
            fix: "For letters of any case ask for equality under a collation of strength 2 with an index of that collation (or keep the text in small letters beside); for words use a text or search index.",
            commands: Vec::new(),
        });
    }
}

fn redundant(advice: &mut Advice, facts: &Facts) {
    if facts.refused.is_none() {
        advice.seen("index_redundant");
    }
    for collection in &facts.collections {
        for index in &collection.indexes {
            let Some(other) = serves(collection, index) else {
                continue;
            };
            let object = format!("{}.{} {}", collection.database, collection.name, index.name);
            let finding = advice.find(Said {
                check: "index_redundant",
                object: &object,
                severity: Severity::Low,
                title: format!("{object} is the beginning of {}", other.name),
                evidence: json!({"key": shown(&index.key), "other": shown(&other.key)}),
                why: "Whatever it finds the other one finds too; every write keeps up both, and both take memory.",
                fix: "Hide it first (from version 4.4), and remove it if nothing gets slower.",
                commands: vec![
                    command(&collection.database, &json!({"collMod": collection.name, "index": {"name": index.name, "hidden": true}})),
                ],
            });
            removal(
                advice,
                collection,
                index,
                &finding,
                &format!("{} serves as well", other.name),
            );
        }
    }
}

fn removal(
    advice: &mut Advice,
    collection: &Collection,
    index: &Index,
    finding: &str,
    reason: &str,
) {
    let fields: Map<String, Value> = index.key.iter().cloned().collect();
    let mut made = action(
        ActionKind::DropIndex,
        &index.name,
        finding,
        reason.to_owned(),
        vec![command(
            &collection.database,
            &json!({"dropIndexes": collection.name, "index": index.name}),
        )],
        vec![command(
            &collection.database,
            &json!({"createIndexes": collection.name, "indexes": [{"key": fields, "name": index.name}]}),
        )],
    );
    made.table = format!("{}.{}", collection.database, collection.name);
    advice.plan(
        made,
        Some("each member of a replica set counts its own reads, and hints by name would fail"),
    );
}

fn serves<'a>(collection: &'a Collection, index: &Index) -> Option<&'a Index> {
    let is_plain = |one: &Index| !one.does_more && one.key.iter().all(|(_, way)| way.is_i64());
    if index.name == "_id_" || !is_plain(index) {
        return None;
    }
    collection.indexes.iter().find(|other| {
        other.name != index.name
            && is_plain(other)
            && (other.key.len() > index.key.len()
                || other.key.len() == index.key.len() && other.name < index.name)
            && other.key.starts_with(&index.key)
    })
}

fn unused(advice: &mut Advice, facts: &Facts, wishes: &Wishes, now: f64) {
    if let Some(why) = &facts.no_index_stats {
        return advice.unknown(
            "index_unused",
            "the server does not tell how often indexes are read",
            why,
        );
    }
    advice.seen("index_unused");
    let least = f64::from(wishes.unused_days) * 86_400.0;
    for collection in &facts.collections {
        for index in &collection.indexes {
            let Some((reads, since)) = index.reads else {
                continue;
            };
            if index.name == "_id_" || index.does_more || reads > 0.0 || now - since < least {
                continue;
            }
            let object = format!("{}.{} {}", collection.database, collection.name, index.name);
            let days = (now - since) / 86_400.0;
            let finding = advice.find(Said {
                check: "index_unused",
                object: &object,
                severity: Severity::Low,
                title: format!("{object} was not read in {days:.0} days on this member"),
                evidence: json!({"key": shown(&index.key), "days": days.floor(), "reads": reads}),
                why: "Every write of the collection keeps it up, and it takes memory that others could use. Counters begin anew with a start of the server, and each member has its own.",
                fix: "Ask the other members. Hide it (from version 4.4), and remove it if nothing gets slower.",
                commands: vec![
                    command(&collection.database, &json!({"collMod": collection.name, "index": {"name": index.name, "hidden": true}})),
                ],
            });
            removal(
                advice,
                collection,
                index,
                &finding,
                "nobody has read it on this member",
            );
        }
    }
}

fn documents(advice: &mut Advice, facts: &Facts) {
    for check in [
        "long_arrays",
        "large_documents",
        "many_indexes",
        "many_collections",
    ] {
        advice.seen(check);
    }
    for collection in &facts.collections {
        let place = format!("{}.{}", collection.database, collection.name);
        if let Some((path, length)) = &collection.longest_array
            && *length >= LONG_ARRAY
        {
            advice.find(Said {
                check: "long_arrays",
                object: &format!("{place} {path}"),
                severity: Severity::Medium,
                title: format!("{place} has a document whose array {path} has {length} items"),
                evidence: json!({"path": path, "items": length}),
                why: "An array that grows with what happens has no end but the 16 MiB of a document. Every change writes the whole document, and an index on it has an entry for each item.",
                fix: "Keep what happens in a collection of its own that names this document, or in buckets of a few hundred; `$push` with `$slice` keeps the last ones only.",
                commands: Vec::new(),
            });
        }
        if collection.mean_bytes >= LARGE_DOCUMENT {
            advice.find(Said {
                check: "large_documents",
                object: &place,
                severity: Severity::Medium,
                title: format!("the documents of {place} have {} on average", size(collection.mean_bytes)),
                evidence: json!({"mean_bytes": collection.mean_bytes.round(), "documents": collection.documents}),
                why: "A document is read, kept in memory and written as a whole, also where one field is wanted; few of them fill the cache.",
                fix: "Keep what is seldom wanted, and files, elsewhere (a second collection, GridFS, an object store).",
                commands: Vec::new(),
            });
        }
        if collection.indexes.len() > MANY_INDEXES {
            advice.find(Said {
                check: "many_indexes",
                object: &place,
                severity: Severity::Low,
                title: format!("{place} has {} indexes", collection.indexes.len()),
                evidence: json!({"indexes": collection.indexes.len()}),
                why: "Each write keeps up all of them, and the planner tries several for each new shape of a query.",
                fix: "Remove what is unused or served by others; many fields that are each asked for alone are better as one array of names and values with one index (the attribute pattern).",
                commands: Vec::new(),
            });
        }
    }
    for (database, collections) in &facts.databases {
        if *collections >= MANY_COLLECTIONS {
            advice.find(Said {
                check: "many_collections",
                object: database,
                severity: Severity::Medium,
                title: format!("{database} has {collections} collections"),
                evidence: json!({ "collections": collections }),
                why: "Each collection and each index is a file of its own, with memory for its handle: checkpoints and starts take longer with each.",
                fix: "Put what has the same form into one collection, with a field for what told them apart and an index that begins with it.",
                commands: Vec::new(),
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use fettler_model::Engine;
    use serde_json::json;

    use super::super::collect::{index, profiled_one};
    use super::*;

    const NOW: f64 = 1_800_000_000.0;

    /// Answers in the form that MongoDB 7 documents for `listIndexes`, `$indexStats` and `system.profile`.
    fn facts() -> Facts {
        let mut indexes: Vec<Index> = [
            json!({"v": 2, "key": {"_id": 1}, "name": "_id_"}),
            json!({"v": 2, "key": {"customer": 1.0}, "name": "customer_1"}),
            json!({"v": 2, "key": {"customer": 1, "made": -1}, "name": "customer_1_made_-1"}),
            json!({"v": 2, "key": {"token": 1}, "name": "token_1", "unique": true}),
            json!({"v": 2, "key": {"made": 1}, "name": "made_1", "expireAfterSeconds": 3600}),
            json!({"v": 2, "key": {"old": 1}, "name": "old_1"}),
        ]
        .iter()
        .map(|told| index(told).unwrap())
        .collect();
        for one in &mut indexes {
            let reads = if one.name == "old_1" || one.name == "token_1" {
                0.0
            } else {
                9.0
            };
            one.reads = Some((reads, NOW - 90.0 * 86_400.0));
        }
        let profiled = [
            json!({"op": "query", "ns": "shop.orders", "command": {"find": "orders", "filter": {"state": 3, "total": {"$gt": 9}}, "$db": "shop"},
                   "keysExamined": 0, "docsExamined": 50_000, "nreturned": 4, "millis": 40, "planSummary": "COLLSCAN"}),
            json!({"op": "query", "ns": "shop.orders", "command": {"find": "orders", "filter": {"state": 3}, "$db": "shop"},
                   "keysExamined": 0, "docsExamined": 50_000, "nreturned": 40, "millis": 40, "planSummary": "COLLSCAN"}),
            json!({"op": "query", "ns": "shop.orders", "command": {"find": "orders", "filter": {"customer": 3}, "sort": {"made": -1}, "$db": "shop"},
                   "keysExamined": 4, "docsExamined": 4, "nreturned": 4, "millis": 0, "planSummary": "IXSCAN"}),
            json!({"op": "query", "ns": "shop.orders", "command": {"find": "orders", "filter": {"name": {"$regex": "smith", "$options": "i"}}, "$db": "shop"},
                   "keysExamined": 0, "docsExamined": 50_000, "nreturned": 4, "millis": 60, "planSummary": "COLLSCAN"}),
            json!({"op": "insert", "ns": "shop.orders", "command": {"insert": "orders"}, "millis": 60}),
        ];
        Facts {
            databases: vec![("shop".to_owned(), 12_000)],
            collections: vec![Collection {
                database: "shop".to_owned(),
                name: "orders".to_owned(),
                documents: 50_000.0,
                mean_bytes: 2e6,
                indexes,
                longest_array: Some(("events".to_owned(), 4000)),
            }],
            operations: profiled.iter().filter_map(profiled_one).collect(),
            has_operations: true,
            ..Facts::default()
        }
    }

    fn objects(look: &crate::Look, check: &str) -> Vec<String> {
        look.findings
            .iter()
            .filter(|one| one.check == format!("mongodb.tune_{check}"))
            .map(|one| one.object.clone())
            .collect()
    }

    #[test]
    fn what_a_recorded_server_lacks_and_has_too_much_of_is_found() {
        let mut advice = Advice::of(Engine::Mongodb);
        report(&mut advice, &facts(), &Wishes::default(), NOW);
        let look = advice.end("7.0.0".to_owned(), &[]);
        assert_eq!(
            objects(&look, "index_missing"),
            ["shop.orders {state: 1, total: 1}"]
        );
        assert_eq!(
            objects(&look, "index_redundant"),
            ["shop.orders customer_1"]
        );
        assert_eq!(objects(&look, "index_unused"), ["shop.orders old_1"]);
        assert_eq!(objects(&look, "patterns"), ["shop.orders name"]);
        for check in ["long_arrays", "large_documents", "many_collections"] {
            assert_eq!(objects(&look, check).len(), 1, "{check}");
        }
        let safe: Vec<&str> = look
            .plan
            .iter()
            .filter(|action| action.safe)
            .map(|action| action.apply[0].as_str())
            .collect();
        assert_eq!(safe.len(), 1, "{:#?}", look.plan);
        assert!(
            safe[0].contains(r#""key":{"state":1,"total":1}"#),
            "{safe:?}"
        );
    }

    #[test]
    fn what_is_young_or_small_is_left_in_peace() {
        let mut facts = facts();
        facts.databases[0].1 = 3;
        let collection = &mut facts.collections[0];
        collection.documents = 100.0;
        collection.mean_bytes = 300.0;
        collection.longest_array = Some(("events".to_owned(), 40));
        collection
            .indexes
            .retain(|index| index.name != "customer_1");
        let mut advice = Advice::of(Engine::Mongodb);
        report(
            &mut advice,
            &facts,
            &Wishes::default(),
            NOW - 85.0 * 86_400.0,
        );
        assert_eq!(advice.end("7.0.0".to_owned(), &[]).findings, []);
    }
}
