//! What is inside a backup, as a tree of two levels: databases or schemas, and what they hold. From the manifest alone.

use std::collections::BTreeMap;

use fettler_engine::{ExtractFormat, near_names};
use fettler_model::{Engine, Fingerprint, ObjectFacts, ObjectKind};
use serde::{Deserialize, Serialize};

/// What is inside.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct BrowseOutput {
    /// Databases or schemas, with what is in each added up; none where the engine has no such thing.
    pub containers: Vec<ContainerOutput>,
    /// Everything, in the order of its container and its name.
    pub parts: Vec<PartOutput>,
    /// The formats in which `fettler extract` writes one, the usual one first.
    pub formats: Vec<ExtractFormat>,
}

/// A database or a schema.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerOutput {
    /// What it is, in a word.
    pub what: String,
    /// Its name.
    pub name: String,
    /// How many tables, collections or kinds of keys were found in it.
    pub parts: u64,
    /// Their rows.
    pub rows: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// A table, a collection, an index, the keys of one type.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartOutput {
    /// What it is, in a word.
    pub what: String,
    /// Its name, which `fettler extract` takes.
    pub name: String,
    /// The database or schema that it is in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
    /// Its rows, where it has some.
    pub rows: Option<u64>,
    /// Its bytes in the backup.
    pub bytes: u64,
    /// What its rows add up to.
    pub fingerprint: Option<Fingerprint>,
    /// For what has no rows: its value, or a digest of its definition.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// Whether `fettler extract` writes it.
    pub extractable: bool,
}

/// Looks inside.
///
/// `path` is a name, the name of a database or schema, or a pattern with `*` and `?`; nothing means everything.
///
/// # Errors
///
/// The names that come near a path that means nothing.
pub fn browse(
    engine: Engine,
    objects: &[ObjectFacts],
    path: Option<&str>,
) -> Result<BrowseOutput, Vec<String>> {
    let mut parts: Vec<PartOutput> = objects
        .iter()
        .filter(|object| !is_container(engine, object))
        .map(|object| part(engine, object))
        .collect();
    if let Some(path) = path {
        let names: Vec<String> = parts
            .iter()
            .flat_map(|part| part.container.iter().chain([&part.name]))
            .cloned()
            .collect();
        parts.retain(|part| is_meant(engine, part, path));
        if parts.is_empty() {
            return Err(near_names(path, &names));
        }
    }
    parts.sort_by(|one, other| {
        let key = |part: &PartOutput| (part.container.clone(), part.rows.is_none());
        key(one)
            .cmp(&key(other))
            .then_with(|| one.name.cmp(&other.name))
    });
    let mut containers: BTreeMap<&str, ContainerOutput> = BTreeMap::new();
    for part in &parts {
        let Some(name) = &part.container else {
            continue;
        };
        let container = containers.entry(name).or_insert_with(|| ContainerOutput {
            what: container_word(engine).to_owned(),
            name: name.clone(),
            parts: 0,
            rows: 0,
            bytes: 0,
        });
        container.parts += u64::from(part.rows.is_some());
        container.rows += part.rows.unwrap_or(0);
        container.bytes += part.bytes;
    }
    let mut containers: Vec<ContainerOutput> = containers.into_values().collect();
    // The keys of a type have no bytes of their own: the database has.
    for container in &mut containers {
        let own = objects
            .iter()
            .find(|object| is_container(engine, object) && object.name == container.name);
        if let (Some(own), None) = (own, path) {
            container.bytes = own.bytes;
        }
    }
    Ok(BrowseOutput {
        containers,
        parts,
        formats: fettler_engines::engine(engine).extract_formats().to_vec(),
    })
}

const fn container_word(engine: Engine) -> &'static str {
    match engine {
        Engine::Postgres => "schema",
        _ => "database",
    }
}

/// Whether an object is a database of others in the list: `db0` of Redis.
fn is_container(engine: Engine, object: &ObjectFacts) -> bool {
    engine == Engine::Redis && object.kind == ObjectKind::Table && !object.name.contains('/')
}

fn part(engine: Engine, object: &ObjectFacts) -> PartOutput {
    // The keys of a type stand as a value.
    let fingerprint = object.fingerprint.or_else(|| match engine {
        Engine::Redis => object.value.as_ref().and_then(|value| value.parse().ok()),
        _ => None,
    });
    PartOutput {
        what: word(engine, object).to_owned(),
        name: object.name.clone(),
        container: container(engine, object),
        rows: fingerprint
            .map(|print| print.rows)
            .or(object.independent_rows),
        bytes: object.bytes,
        fingerprint,
        value: object.value.clone().filter(|_| fingerprint.is_none()),
        extractable: object.kind == ObjectKind::Table && engine != Engine::Redis,
    }
}

const fn word(engine: Engine, object: &ObjectFacts) -> &'static str {
    match (object.kind, engine) {
        (ObjectKind::Table, Engine::Redis) => "keys",
        (ObjectKind::Table, Engine::Mongodb) => "collection",
        (ObjectKind::Table, Engine::Elasticsearch) => "index",
        (ObjectKind::Table, _) => "table",
        (ObjectKind::Schema, _) => "definition",
        (ObjectKind::LargeObjects, _) => "large objects",
        (ObjectKind::Sequence, _) => "sequence",
        (ObjectKind::MaterializedView, _) => "materialised view",
    }
}

/// The database or schema of an object, by its name as the engine writes it.
fn container(engine: Engine, object: &ObjectFacts) -> Option<String> {
    match engine {
        Engine::Postgres if object.kind == ObjectKind::LargeObjects => None,
        Engine::Postgres => before_dot(&object.name),
        Engine::Mongodb | Engine::Clickhouse => {
            // Functions and collections of settings are the server's; their names have spaces.
            object
                .name
                .split_once('.')
                .filter(|(database, _)| object.kind == ObjectKind::Table || !database.contains(' '))
                .map(|(database, _)| database.to_owned())
        }
        Engine::Redis => object
            .name
            .split_once('/')
            .map(|(database, _)| database.to_owned()),
        Engine::Sqlite | Engine::Elasticsearch => None,
    }
}

/// What stands before the first dot that is not in quotes.
fn before_dot(name: &str) -> Option<String> {
    let mut is_quoted = false;
    let at = name.char_indices().find_map(|(at, letter)| {
        is_quoted ^= letter == '"';
        (letter == '.' && !is_quoted).then_some(at)
    })?;
    Some(name[..at].to_owned())
}

fn is_meant(engine: Engine, part: &PartOutput, path: &str) -> bool {
    let folded = |text: &str| match engine {
        // Its names do not tell letters by case.
        Engine::Sqlite => text.to_ascii_lowercase(),
        _ => text.to_owned(),
    };
    let (path, name) = (folded(path), folded(&part.name));
    let own = part
        .container
        .as_ref()
        .and_then(|container| name.get(container.len() + 1..));
    part.container.as_deref() == Some(&path)
        || fits(&path, &name)
        || own.is_some_and(|own| fits(&path, own))
}

/// Whether a pattern with `*` and `?` fits a name. Takes time in the product of both lengths at most.
fn fits(pattern: &str, name: &str) -> bool {
    let (pattern, name): (Vec<char>, Vec<char>) =
        (pattern.chars().collect(), name.chars().collect());
    let (mut at, mut seen) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while seen < name.len() {
        match pattern.get(at) {
            Some('*') => {
                at += 1;
                star = Some((at, seen));
            }
            Some(letter) if *letter == '?' || *letter == name[seen] => {
                at += 1;
                seen += 1;
            }
            _ => {
                let Some((after, from)) = star else {
                    return false;
                };
                star = Some((after, from + 1));
                (at, seen) = (after, from + 1);
            }
        }
    }
    pattern[at..].iter().all(|letter| *letter == '*')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(kind: ObjectKind, name: &str, rows: Option<u64>) -> ObjectFacts {
        let mut print = Fingerprint::empty();
        for row in 0..rows.unwrap_or(0) {
            print.add_row_hash([row, 1]);
        }
        ObjectFacts {
            kind,
            name: name.to_owned(),
            fingerprint: rows.map(|_| print),
            independent_rows: rows,
            bytes: rows.unwrap_or(0) * 10,
            value: None,
            format: None,
        }
    }

    fn names(output: &BrowseOutput) -> Vec<&str> {
        output.parts.iter().map(|part| part.name.as_str()).collect()
    }

    #[test]
    fn tables_stand_under_their_schema_and_paths_choose_among_them() {
        let objects = [
            object(ObjectKind::Table, "shop.orders", Some(3)),
            object(ObjectKind::Table, "shop.lines", Some(2)),
            object(ObjectKind::Table, "\"My.Schema\".log", Some(1)),
            object(ObjectKind::Sequence, "shop.orders_id_seq", None),
            object(ObjectKind::Schema, "schema", None),
        ];
        let all = browse(Engine::Postgres, &objects, None).unwrap();
        let containers: Vec<(&str, u64, u64, u64)> = all
            .containers
            .iter()
            .map(|one| (one.name.as_str(), one.parts, one.rows, one.bytes))
            .collect();
        assert_eq!(
            containers,
            [("\"My.Schema\"", 1, 1, 10), ("shop", 2, 5, 50)]
        );
        assert_eq!(all.parts.len(), 5);
        assert_eq!(all.formats[0], ExtractFormat::Csv);
        let look = |path| browse(Engine::Postgres, &objects, Some(path));
        assert_eq!(names(&look("shop").unwrap()).len(), 3);
        assert_eq!(names(&look("shop.orders").unwrap()), ["shop.orders"]);
        assert_eq!(
            names(&look("l*").unwrap()),
            ["\"My.Schema\".log", "shop.lines"]
        );
        assert_eq!(names(&look("*.l?nes").unwrap()), ["shop.lines"]);
        assert_eq!(look("shop.ordres").unwrap_err()[0], "shop.orders");
    }

    #[test]
    fn keys_of_redis_stand_by_type_under_their_database() {
        let mut strings = object(ObjectKind::Table, "db0/string", None);
        strings.value = object(ObjectKind::Table, "", Some(4))
            .fingerprint
            .map(|print| print.to_string());
        let objects = [
            object(ObjectKind::Table, "db0", Some(4)),
            strings,
            object(ObjectKind::Schema, "functions", None),
        ];
        let all = browse(Engine::Redis, &objects, None).unwrap();
        assert_eq!(names(&all), ["functions", "db0/string"]);
        assert_eq!(all.parts[1].rows, Some(4));
        assert_eq!((all.containers[0].rows, all.containers[0].bytes), (4, 40));
        assert_eq!(
            names(&browse(Engine::Redis, &objects, Some("db0")).unwrap()),
            ["db0/string"]
        );
    }
}
