//! What an operation asks of a collection: fields that must be equal, the order, and ranges; and the index that follows from it.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

/// A field of an index's key, and which way it goes (1 or -1), or of which kind it is (`text`, `hashed`).
pub(super) type Part = (String, Value);

/// What an operation asks.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Shape {
    pub(super) equal: Vec<String>,
    pub(super) sort: Vec<(String, i64)>,
    pub(super) ranges: Vec<String>,
    /// Patterns that no index narrows: without a fixed beginning, or whatever the letters' case.
    pub(super) wide_patterns: Vec<String>,
}

/// An operation that was recorded or given.
#[derive(Clone, Debug)]
pub(super) struct Operation {
    pub(super) database: String,
    pub(super) collection: String,
    /// As it stands in the profiler: with the collection as the first field's value.
    pub(super) command: Value,
    /// What it cost: documents looked at and given, and milliseconds, of how many runs.
    pub(super) cost: Option<Cost>,
}

/// What runs of an operation cost together.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Cost {
    pub(super) runs: f64,
    pub(super) examined: f64,
    pub(super) returned: f64,
    pub(super) ms: f64,
}

/// The shape of an operation's filter and order; none where it asks for nothing that an index could give.
pub(super) fn shape(command: &Value) -> Option<Shape> {
    let mut shape = Shape::default();
    let one_of = |list: &str| command[list].get(0).cloned();
    let (filter, sort) = if let Some(stages) = command["pipeline"].as_array() {
        let first = stages.first()?.get("$match")?.clone();
        (
            first,
            stages.get(1).and_then(|stage| stage.get("$sort")).cloned(),
        )
    } else if let Some(one) = one_of("updates").or_else(|| one_of("deletes")) {
        (one["q"].clone(), None)
    } else {
        let filter = ["filter", "query", "q"]
            .iter()
            .find_map(|name| command.get(*name))
            .cloned()
            .unwrap_or_else(|| Value::Object(Map::new()));
        (filter, command.get("sort").cloned())
    };
    read_filter(filter.as_object()?, &mut shape)?;
    for (field, way) in sort
        .as_ref()
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
    {
        shape.sort.push((field.clone(), way.as_i64()?));
    }
    let is_nothing = shape.equal.is_empty() && shape.ranges.is_empty() && shape.sort.is_empty();
    (!is_nothing || !shape.wide_patterns.is_empty()).then_some(shape)
}

/// Nothing where it has branches, each of which would need an index of its own.
fn read_filter(filter: &Map<String, Value>, shape: &mut Shape) -> Option<()> {
    for (field, wanted) in filter {
        match field.as_str() {
            "$and" => {
                for part in wanted.as_array()? {
                    read_filter(part.as_object()?, shape)?;
                }
            }
            "$or" | "$nor" | "$text" | "$where" | "$expr" => return None,
            "$comment" => {}
            _ => read_field(field, wanted, shape),
        }
    }
    Some(())
}

fn read_field(field: &str, wanted: &Value, shape: &mut Shape) {
    let put = |list: &mut Vec<String>| {
        if !list.iter().any(|one| one == field) {
            list.push(field.to_owned());
        }
    };
    let operators = wanted.as_object().filter(|object| {
        object
            .keys()
            .next()
            .is_some_and(|name| name.starts_with('$'))
    });
    let Some(operators) = operators else {
        return put(&mut shape.equal);
    };
    if let Some(pattern) = operators.get("$regex") {
        let options = operators
            .get("$options")
            .and_then(Value::as_str)
            .unwrap_or_default();
        let is_fixed = pattern.as_str().is_some_and(|text| text.starts_with('^'));
        if is_fixed && !options.contains('i') {
            put(&mut shape.ranges);
        } else {
            put(&mut shape.wide_patterns);
        }
        return;
    }
    for name in operators.keys() {
        match name.as_str() {
            "$eq" | "$in" | "$all" => put(&mut shape.equal),
            "$gt" | "$gte" | "$lt" | "$lte" => put(&mut shape.ranges),
            // What leaves nearly all documents is narrowed by no index.
            _ => {}
        }
    }
}

impl Shape {
    /// The key that serves it: what must be equal, then the order, then ranges.
    pub(super) fn key(&self) -> Vec<Part> {
        let mut key: Vec<Part> = Vec::new();
        let equal = self.equal.iter().map(|field| (field, 1));
        let sort = self.sort.iter().map(|(field, way)| (field, *way));
        let ranges = self.ranges.iter().map(|field| (field, 1));
        for (field, way) in equal.chain(sort).chain(ranges) {
            if key.iter().all(|(known, _)| known != field) {
                key.push((field.clone(), way.into()));
            }
        }
        // More fields than these hardly ever narrow anything more.
        key.truncate(4);
        key
    }

    /// Whether an index narrows it: it begins with a field that must be equal or in a range, or gives the whole order where
    /// nothing else is asked.
    pub(super) fn is_served_by(&self, key: &[Part]) -> bool {
        let wanted = self.key();
        if key.first().is_some_and(|(field, _)| field == "_id")
            && wanted.first().is_some_and(|(field, _)| field == "_id")
        {
            return true;
        }
        let equal = self.equal.len().min(wanted.len());
        let begin: Vec<&String> = key.iter().take(equal).map(|(field, _)| field).collect();
        begin.len() == equal
            && wanted[..equal]
                .iter()
                .all(|(field, _)| begin.contains(&field))
            && wanted[equal..]
                .iter()
                .zip(
                    key.iter()
                        .skip(equal)
                        .map(Some)
                        .chain(std::iter::repeat(None)),
                )
                .all(|(a, b)| b.is_some_and(|b| a.0 == b.0))
    }
}

/// Adds up what recorded operations of the same shape cost.
pub(super) fn together(
    operations: &[Operation],
) -> BTreeMap<(String, String, String), (Shape, Cost, bool)> {
    let mut all: BTreeMap<_, (Shape, Cost, bool)> = BTreeMap::new();
    for one in operations {
        let Some(shape) = shape(&one.command) else {
            continue;
        };
        let place = (
            one.database.clone(),
            one.collection.clone(),
            format!("{shape:?}"),
        );
        let sum = all
            .entry(place)
            .or_insert_with(|| (shape, Cost::default(), false));
        if let Some(cost) = one.cost {
            sum.1.runs += cost.runs;
            sum.1.examined += cost.examined;
            sum.1.returned += cost.returned;
            sum.1.ms += cost.ms;
            sum.2 = true;
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn key_of(command: &Value) -> Option<Vec<Part>> {
        shape(command).map(|shape| shape.key())
    }

    #[test]
    fn equality_comes_before_order_and_order_before_ranges() {
        let command = json!({"find": "orders", "filter": {"total": {"$gt": 5}, "customer": 7, "$and": [{"state": {"$in": [1, 2]}}]}, "sort": {"made": -1}});
        assert_eq!(
            key_of(&command).unwrap(),
            [
                ("customer".to_owned(), json!(1)),
                ("state".to_owned(), json!(1)),
                ("made".to_owned(), json!(-1)),
                ("total".to_owned(), json!(1))
            ]
        );
        let others = [
            json!({"aggregate": "c", "pipeline": [{"$match": {"a": 1}}, {"$sort": {"b": 1}}]}),
            json!({"update": "c", "updates": [{"q": {"a": 1, "b": {"$lt": 2}}}]}),
            json!({"delete": "c", "deletes": [{"q": {"a": 1, "b": {"$regex": "^x"}}}]}),
            json!({"count": "c", "query": {"a": {"$eq": 1}, "b": {"$gte": 0, "$lt": 9}}}),
        ];
        for command in others {
            assert_eq!(
                key_of(&command).unwrap(),
                [("a".to_owned(), json!(1)), ("b".to_owned(), json!(1))],
                "{command}"
            );
        }
        for nothing in [
            json!({"find": "c", "filter": {"$or": [{"a": 1}, {"b": 2}]}}),
            json!({"find": "c", "filter": {}}),
            json!({"aggregate": "c", "pipeline": [{"$group": {"_id": "$a"}}]}),
            json!({"find": "c", "filter": {"a": {"$ne": 1}}}),
        ] {
            assert_eq!(key_of(&nothing), None, "{nothing}");
        }
    }

    #[test]
    fn patterns_without_a_fixed_beginning_are_told_apart() {
        let of = |pattern: Value| {
            shape(&json!({"find": "c", "filter": {"a": pattern}}))
                .unwrap()
                .wide_patterns
        };
        assert_eq!(of(json!({"$regex": "^abc"})), Vec::<String>::new());
        assert_eq!(of(json!({"$regex": "^abc", "$options": "i"})), ["a"]);
        assert_eq!(of(json!({"$regex": "abc"})), ["a"]);
    }

    #[test]
    fn an_index_serves_whatever_the_order_of_what_is_equal() {
        let shape =
            shape(&json!({"find": "c", "filter": {"a": 1, "b": 2}, "sort": {"c": 1}})).unwrap();
        let key = |fields: &[&str]| -> Vec<Part> {
            fields
                .iter()
                .map(|field| ((*field).to_owned(), json!(1)))
                .collect()
        };
        assert!(shape.is_served_by(&key(&["b", "a", "c", "d"])));
        assert!(!shape.is_served_by(&key(&["a", "b"])));
        assert!(!shape.is_served_by(&key(&["a", "c", "b"])));
    }
}
