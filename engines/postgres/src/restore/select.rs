//! Restoring a part: which entries of the archive belong to the tables that were asked for.
//!
//! Chosen are tables, views and sequences by name. With them come their own parts (indexes, constraints, triggers,
//! defaults, policies, owned sequences, partitions) and what they need (types, functions, collations, extensions, schemas).
//! A foreign key to a table that is not chosen stays away, and is named.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    path::{Path, PathBuf},
};

use fettler_engine::{EngineContext, EngineError, RestoreOptions, StreamSource};
use fettler_model::Warning;
use futures::StreamExt;

use crate::{
    data::{BackupData, DEPENDENCIES_STREAM},
    names::{Pattern, display_name, literal, qualified},
    wire::Session,
};

use super::archive::{Archive, Section};

/// OIDs of the catalogues, the same in all versions.
const PG_CLASS: u32 = 1259;
const PG_CONSTRAINT: u32 = 2606;
/// Catalogues whose rows are parts of a table: relations (indexes, partitions, owned sequences), defaults,
/// constraints, triggers, rules, policies, extended statistics.
const PARTS: [u32; 7] = [PG_CLASS, 2604, PG_CONSTRAINT, 2620, 2618, 3256, 3381];
/// Kinds of entries, longer ones before those that they begin with.
const KINDS: [&str; 31] = [
    "TABLE ATTACH",
    "TABLE DATA",
    "TABLE",
    "MATERIALIZED VIEW DATA",
    "MATERIALIZED VIEW",
    "FOREIGN TABLE",
    "VIEW",
    "SEQUENCE OWNED BY",
    "SEQUENCE SET",
    "SEQUENCE",
    "INDEX ATTACH",
    "INDEX",
    "FK CONSTRAINT",
    "CHECK CONSTRAINT",
    "CONSTRAINT",
    "EVENT TRIGGER",
    "TRIGGER",
    "RULE",
    "POLICY",
    "ROW SECURITY",
    "DEFAULT ACL",
    "DEFAULT",
    "COMMENT",
    "ACL",
    "SECURITY LABEL",
    "TYPE",
    "DOMAIN",
    "SCHEMA",
    "EXTENSION",
    "STATISTICS",
    "FUNCTION",
];
/// Kinds that can be asked for by name.
const RELATIONS: [&str; 5] = [
    "TABLE",
    "MATERIALIZED VIEW",
    "FOREIGN TABLE",
    "VIEW",
    "SEQUENCE",
];

/// An object by its catalogue and its number.
type Object = (u32, u32);

/// One line of an archive's contents: `215; 1259 16386 TABLE public orders ann`.
#[derive(Clone, Debug)]
struct Entry {
    line: String,
    object: Object,
    kind: &'static str,
    schema: String,
    name: String,
}

impl Entry {
    fn parse(line: &str) -> Option<Self> {
        let (_, rest) = line.split_once("; ")?;
        let mut words = rest.splitn(3, ' ');
        let object = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        let rest = words.next()?;
        let kind = KINDS
            .iter()
            .find(|kind| {
                rest.strip_prefix(**kind)
                    .is_some_and(|rest| rest.starts_with(' '))
            })
            .copied()
            .unwrap_or("");
        let rest = rest[kind.len()..].trim_start();
        let (schema, rest) = rest.split_once(' ').unwrap_or((rest, ""));
        let (name, _owner) = rest.rsplit_once(' ').unwrap_or((rest, ""));
        Some(Self {
            line: line.to_owned(),
            object,
            kind,
            schema: schema.to_owned(),
            name: name.to_owned(),
        })
    }

    fn is_relation(&self) -> bool {
        RELATIONS.contains(&self.kind)
    }
}

/// What is restored of a backup.
#[derive(Debug)]
pub(crate) struct Selection {
    tables: HashSet<u32>,
    names: HashSet<(String, String)>,
    /// Lines of the archive's contents, before and after the rows.
    before: Vec<String>,
    pub(crate) after: Vec<String>,
    /// What is made anew, as `TABLE`, schema, name.
    made: Vec<(&'static str, String, String)>,
}

impl Selection {
    /// Chooses; nothing where all is wanted.
    pub(crate) async fn of(
        context: &EngineContext,
        archive: &Archive,
        backup: &dyn StreamSource,
        data: &BackupData,
        options: &RestoreOptions,
        warnings: &mut Vec<Warning>,
    ) -> Result<Option<Self>, EngineError> {
        if options.only.is_empty() {
            return Ok(None);
        }
        let patterns: Vec<Pattern> = options
            .only
            .iter()
            .map(|text| Pattern::parse(text))
            .collect();
        let parse = |lines: Vec<String>| -> Vec<Entry> {
            lines.iter().filter_map(|line| Entry::parse(line)).collect()
        };
        let before = parse(archive.list(context, Some(Section::PreData)).await?);
        let after = parse(archive.list(context, Some(Section::PostData)).await?);
        let needs = Needs::read(backup).await?;
        for pattern in &patterns {
            let fits =
                |entry: &Entry| entry.is_relation() && pattern.matches(&entry.schema, &entry.name);
            if !before.iter().any(fits) {
                return Err(EngineError::Missing {
                    code: "object",
                    what: format!(
                        "the backup holds no table, view or sequence that fits {:?}",
                        pattern.as_str()
                    ),
                    remedy: "name it as schema.table; `fettler show` lists what a backup holds"
                        .to_owned(),
                });
            }
        }
        let chosen = before.iter().filter(|entry| {
            entry.is_relation()
                && patterns
                    .iter()
                    .any(|pattern| pattern.matches(&entry.schema, &entry.name))
        });
        let (own, needed) = needs.closure(chosen.map(|entry| entry.object));
        Ok(Some(Self::with(
            &before, &after, &own, &needed, &needs, data, warnings,
        )))
    }

    fn with(
        before: &[Entry],
        after: &[Entry],
        own: &HashSet<Object>,
        needed: &HashSet<Object>,
        needs: &Needs,
        data: &BackupData,
        warnings: &mut Vec<Warning>,
    ) -> Self {
        let all = || before.iter().chain(after);
        let named: HashMap<(&str, &str), Object> = all()
            .filter(|entry| entry.object.1 != 0)
            .filter(|entry| {
                entry.is_relation() || entry.kind == "INDEX" || entry.kind == "CONSTRAINT"
            })
            .map(|entry| ((entry.schema.as_str(), entry.name.as_str()), entry.object))
            .collect();
        let own_names: HashSet<(&str, &str)> = all()
            .filter(|entry| entry.is_relation() && own.contains(&entry.object))
            .map(|entry| (entry.schema.as_str(), entry.name.as_str()))
            .collect();
        let mut lost = BTreeSet::new();
        let mut wanted = |entry: &Entry| -> bool {
            if entry.kind == "FK CONSTRAINT" && own.contains(&entry.object) {
                let is_whole = needs
                    .of(entry.object)
                    .filter(|(object, _)| object.0 == PG_CLASS)
                    .all(|(object, _)| own.contains(&object));
                if !is_whole {
                    lost.insert(format!("{} ({})", entry.name, entry.schema));
                }
                return is_whole;
            }
            match entry.kind {
                "TABLE ATTACH" | "INDEX ATTACH" => {
                    // A partition goes with its parent (`a`), an index or a key with the parent's one (`P`).
                    let kind = if entry.kind == "TABLE ATTACH" {
                        'a'
                    } else {
                        'P'
                    };
                    // A partition that was chosen without its parent stands alone.
                    named
                        .get(&(entry.schema.as_str(), entry.name.as_str()))
                        .is_some_and(|object| {
                            own.contains(object) && needs.has_parent_in(*object, own, kind)
                        })
                }
                "ROW SECURITY" | "SEQUENCE OWNED BY" => {
                    own_names.contains(&(entry.schema.as_str(), entry.name.as_str()))
                }
                "COMMENT" | "ACL" | "SECURITY LABEL" => own_names
                    .iter()
                    .any(|(schema, name)| *schema == entry.schema && speaks_of(&entry.name, name)),
                _ => own.contains(&entry.object) || needed.contains(&entry.object),
            }
        };
        let lines = |entries: &[Entry], wanted: &mut dyn FnMut(&Entry) -> bool| -> Vec<String> {
            entries
                .iter()
                .filter(|entry| wanted(entry))
                .map(|entry| entry.line.clone())
                .collect()
        };
        let (before_lines, after_lines) = (lines(before, &mut wanted), lines(after, &mut wanted));
        if !lost.is_empty() {
            let names: Vec<String> = lost.into_iter().collect();
            warnings.push(Warning {
                code: "postgres.foreign_keys".to_owned(),
                message: format!(
                    "foreign keys to tables that were not chosen were left out: {}",
                    names.join(", ")
                ),
            });
        }
        Self {
            tables: data
                .tables
                .iter()
                .filter(|table| own.contains(&(PG_CLASS, table.oid)))
                .map(|table| table.oid)
                .collect(),
            made: before
                .iter()
                .filter(|entry| entry.is_relation() && own.contains(&entry.object))
                .map(|entry| (entry.kind, entry.schema.clone(), entry.name.clone()))
                .collect(),
            names: own_names
                .into_iter()
                .map(|(schema, name)| (schema.to_owned(), name.to_owned()))
                .collect(),
            before: before_lines,
            after: after_lines,
        }
    }

    /// Whether a table's rows are restored.
    pub(crate) fn has_table(&self, oid: u32) -> bool {
        self.tables.contains(&oid)
    }

    /// Whether a sequence or a view is restored.
    pub(crate) fn has_name(&self, schema: &str, name: &str) -> bool {
        self.names.contains(&(schema.to_owned(), name.to_owned()))
    }

    /// The chosen tables, for ANALYZE.
    pub(crate) fn analyzed(&self) -> Vec<String> {
        self.made
            .iter()
            .filter(|(kind, _, _)| matches!(*kind, "TABLE" | "MATERIALIZED VIEW"))
            .map(|(_, schema, name)| qualified(schema, name))
            .collect()
    }

    /// Writes the list of what is made before the rows.
    pub(crate) fn write_before(&self, scratch: &Path) -> Result<PathBuf, EngineError> {
        let path = scratch.join("pre-data.list");
        std::fs::write(&path, self.before.join("\n"))
            .map_err(|error| EngineError::local(format!("writing {}", path.display()), error))?;
        Ok(path)
    }

    /// Which of the chosen objects the target has already.
    pub(crate) async fn there(&self, session: &mut Session) -> Result<Vec<String>, EngineError> {
        let mut there = Vec::new();
        for (_, schema, name) in &self.made {
            let is_there = session
                .one(&format!(
                    "SELECT to_regclass({}) IS NOT NULL",
                    literal(&qualified(schema, name))
                ))
                .await
                .map_err(|error| error.doing("looking for the tables to restore"))?
                .flag(0)?;
            if is_there {
                there.push(display_name(schema, name));
            }
        }
        Ok(there)
    }

    /// Drops what the target has of the chosen objects. What others depend on stays, and is an error.
    pub(crate) async fn drop(&self, session: &mut Session) -> Result<(), EngineError> {
        let mut sql = String::from("BEGIN; SET LOCAL client_min_messages = error;");
        for kind in [
            "VIEW",
            "MATERIALIZED VIEW",
            "FOREIGN TABLE",
            "TABLE",
            "SEQUENCE",
        ] {
            let names: Vec<String> = self
                .made
                .iter()
                .filter(|(made, _, _)| *made == kind)
                .map(|(_, schema, name)| qualified(schema, name))
                .collect();
            if !names.is_empty() {
                sql.push_str(&format!("DROP {kind} IF EXISTS {};", names.join(", ")));
            }
        }
        sql.push_str("COMMIT");
        match session.execute(&sql).await {
            Ok(()) => Ok(()),
            Err(error) => {
                let dependent = error.code() == Some("2BP01");
                let error = error.doing("dropping the tables that are to be restored");
                session
                    .execute("ROLLBACK")
                    .await
                    .map_err(|error| error.doing("giving the dropping up"))?;
                Err(if dependent {
                    EngineError::NotEmpty {
                        what: error.to_string(),
                        remedy: "drop what depends on these tables first, restore that too, or restore into another database".to_owned(),
                    }
                } else {
                    error
                })
            }
        }
    }
}

/// Whether `TABLE orders`, `COLUMN orders.id` or `CONSTRAINT c ON orders` speaks of the relation.
fn speaks_of(tag: &str, name: &str) -> bool {
    let quoted = crate::names::display_ident(name);
    let is_it = |text: &str| text == name || text == quoted;
    let Some((kind, rest)) = tag
        .strip_prefix("MATERIALIZED VIEW ")
        .or_else(|| tag.strip_prefix("FOREIGN TABLE "))
        .map(|rest| ("TABLE", rest))
        .or_else(|| tag.split_once(' '))
    else {
        return false;
    };
    match kind {
        "TABLE" | "VIEW" | "SEQUENCE" => is_it(rest),
        "COLUMN" => rest
            .strip_prefix(&quoted)
            .or_else(|| rest.strip_prefix(name))
            .is_some_and(|rest| rest.starts_with('.')),
        "CONSTRAINT" | "TRIGGER" | "RULE" | "POLICY" => rest
            .rsplit_once(" ON ")
            .is_some_and(|(_, table)| is_it(table)),
        _ => false,
    }
}

/// Which object needs which, from the catalogue of the source.
#[derive(Debug, Default)]
struct Needs {
    needs: HashMap<Object, Vec<(Object, char)>>,
    needed_by: HashMap<Object, Vec<(Object, char)>>,
}

impl Needs {
    async fn read(backup: &dyn StreamSource) -> Result<Self, EngineError> {
        let mut reader = backup.read(DEPENDENCIES_STREAM).await?;
        let mut text = Vec::new();
        while let Some(bytes) = reader.next().await {
            text.extend_from_slice(&bytes?);
        }
        Ok(Self::parse(&String::from_utf8_lossy(&text)))
    }

    fn parse(text: &str) -> Self {
        let mut needs = Self::default();
        for line in text.lines() {
            let words: Vec<&str> = line.split('\t').collect();
            if let [class, object, needed_class, needed_object, kind] = words.as_slice() {
                let number = |text: &str| text.parse().unwrap_or(0);
                let from = (number(class), number(object));
                let to = (number(needed_class), number(needed_object));
                let kind = kind.chars().next().unwrap_or('n');
                if from != to {
                    needs.needs.entry(from).or_default().push((to, kind));
                    needs.needed_by.entry(to).or_default().push((from, kind));
                }
            }
        }
        needs
    }

    fn of(&self, object: Object) -> impl Iterator<Item = (Object, char)> + '_ {
        self.needs.get(&object).into_iter().flatten().copied()
    }

    /// Whether the parent of a partition, or of a partition's index or key, is among these.
    fn has_parent_in(&self, object: Object, own: &HashSet<Object>, wanted: char) -> bool {
        self.of(object)
            .any(|(parent, kind)| kind == wanted && own.contains(&parent))
    }

    /// The chosen objects with their parts, and what these need beside.
    fn closure(&self, chosen: impl Iterator<Item = Object>) -> (HashSet<Object>, HashSet<Object>) {
        let mut own: HashSet<Object> = HashSet::new();
        let mut left: Vec<Object> = chosen.collect();
        while let Some(object) = left.pop() {
            if !own.insert(object) {
                continue;
            }
            for (part, kind) in self.needed_by.get(&object).into_iter().flatten() {
                if PARTS.contains(&part.0) && matches!(kind, 'a' | 'i' | 'P' | 'S' | 'I') {
                    left.push(*part);
                }
            }
            // The sequence that a default takes its numbers from comes with its value.
            if object.0 == 2604 {
                left.extend(
                    self.of(object)
                        .filter(|(to, _)| to.0 == PG_CLASS && !own.contains(to))
                        .map(|(to, _)| to),
                );
            }
        }
        let mut needed = HashSet::new();
        let mut left: Vec<Object> = own
            .iter()
            .flat_map(|from| self.of(*from).map(|(to, kind)| (*from, to, kind)))
            .filter(|(from, to, kind)| {
                // Not the table that a foreign key points to, nor what a part of a partition belongs to.
                matches!(kind, 'n' | 'e' | 'x') && !(to.0 == PG_CLASS && from.0 == PG_CONSTRAINT)
            })
            .map(|(_, to, _)| to)
            .collect();
        while let Some(object) = left.pop() {
            if own.contains(&object) || !needed.insert(object) {
                continue;
            }
            left.extend(self.of(object).map(|(to, _)| to));
            // The definition of a table holds its defaults.
            let defaults = self.needed_by.get(&object).into_iter().flatten();
            for (default, _) in defaults.filter(|(part, _)| object.0 == PG_CLASS && part.0 == 2604)
            {
                left.extend(self.of(*default).map(|(to, _)| to));
            }
        }
        (own, needed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_contents_are_read() {
        let entry = Entry::parse("215; 1259 16386 TABLE public Order lines ann").unwrap();
        assert_eq!((entry.object, entry.kind), ((1259, 16386), "TABLE"));
        assert_eq!(
            (entry.schema.as_str(), entry.name.as_str()),
            ("public", "Order lines")
        );
        let entry = Entry::parse("9; 0 0 COMMENT public COLUMN orders.id ann").unwrap();
        assert_eq!(
            (entry.kind, entry.name.as_str()),
            ("COMMENT", "COLUMN orders.id")
        );
    }

    #[test]
    fn comments_and_grants_are_told_apart() {
        assert!(speaks_of("TABLE orders", "orders"));
        assert!(speaks_of("COLUMN orders.id", "orders"));
        assert!(!speaks_of("COLUMN orders_old.id", "orders"));
        assert!(speaks_of("CONSTRAINT c ON orders", "orders"));
        assert!(speaks_of(r#"TABLE "Order lines""#, "Order lines"));
    }

    #[test]
    fn a_table_comes_with_its_parts_and_what_they_need() {
        // A table 1 with an index 2, a default 3 from a sequence 4, a column of type 5 of the schema 6, and a
        // foreign key 7 to the table 8.
        let needs = Needs::parse(
            "1259\t2\t1259\t1\ta\n2604\t3\t1259\t1\ta\n2604\t3\t1259\t4\tn\n1259\t1\t1247\t5\tn\n\
             1247\t5\t2615\t6\tn\n2606\t7\t1259\t1\ta\n2606\t7\t1259\t8\tn\n",
        );
        let (own, needed) = needs.closure([(1259, 1)].into_iter());
        assert_eq!(
            own,
            HashSet::from([(1259, 1), (1259, 2), (2604, 3), (1259, 4), (2606, 7)])
        );
        assert_eq!(needed, HashSet::from([(1247, 5), (2615, 6)]));
    }
}
