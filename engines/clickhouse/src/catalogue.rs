//! What a server holds, by its own tables: databases, tables with their columns, functions, users.

use std::collections::{BTreeMap, BTreeSet};

use fettler_engine::EngineError;
use serde::{Deserialize, Serialize};

use crate::{fingerprint::NameAndType, http::Session, sql::literal};

/// Databases that belong to the server itself.
const OWN_DATABASES: [&str; 4] = [
    "system",
    "INFORMATION_SCHEMA",
    "information_schema",
    "_temporary_and_external_tables",
];
/// What the names of databases that Fettler makes begin with: the shadows of backups.
pub(crate) const SCRATCH_PREFIX: &str = "fettler_scratch_";
/// The same of proofs.
pub(crate) const PROOF_PREFIX: &str = "fettler_proof_";
/// Engines of tables that hold rows and have no parts.
const PLAIN_ENGINES: [&str; 6] = [
    "Memory",
    "Log",
    "TinyLog",
    "StripeLog",
    "Join",
    "EmbeddedRocksDB",
];
/// Engines of databases whose tables are the server's own.
const LOCAL_DATABASES: [&str; 6] = [
    "Atomic",
    "Ordinary",
    "Replicated",
    "Memory",
    "Overlay",
    "Lazy",
];
/// What hidden tables of materialised views are called.
const INNER: &str = ".inner";

/// A column.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Column {
    pub(crate) name: String,
    /// Its type as the server writes it.
    #[serde(rename = "type")]
    pub(crate) kind: String,
    /// `DEFAULT`, `MATERIALIZED`, `ALIAS`, `EPHEMERAL`, or nothing.
    pub(crate) default_kind: String,
    pub(crate) default_expression: String,
}

impl Column {
    /// Whether rows hold it.
    pub(crate) fn is_stored(&self) -> bool {
        !matches!(self.default_kind.as_str(), "ALIAS" | "EPHEMERAL")
    }
}

/// Where a table's rows are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Content {
    /// In parts that do not change.
    Parts,
    /// In something that is copied to be read.
    Plain,
    /// It has none of its own.
    Definition,
    /// It has none of its own and speaks with something outside: another server, a queue, a file.
    Outside,
}

/// A table, a view, a dictionary.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TableDefinition {
    pub(crate) database: String,
    pub(crate) name: String,
    pub(crate) engine: String,
    /// The statement that makes it.
    pub(crate) create: String,
    pub(crate) columns: Vec<Column>,
    pub(crate) content: Content,
    /// Its own identity, where the server gives one.
    pub(crate) uuid: String,
    /// The hidden table that holds a materialised view's rows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) inner: Option<String>,
}

impl TableDefinition {
    /// Its name as users write it.
    pub(crate) fn full_name(&self) -> String {
        format!("{}.{}", self.database, self.name)
    }

    /// The columns that rows hold.
    pub(crate) fn stored(&self) -> Vec<NameAndType<'_>> {
        self.columns
            .iter()
            .filter(|column| column.is_stored())
            .map(|column| (column.name.as_str(), column.kind.as_str()))
            .collect()
    }

    pub(crate) fn has_rows(&self) -> bool {
        matches!(self.content, Content::Parts | Content::Plain)
    }

    pub(crate) fn is_materialized_view(&self) -> bool {
        self.engine == "MaterializedView"
    }

    /// Whether it computes what it shows, and is made after what it shows it from.
    pub(crate) fn is_view(&self) -> bool {
        self.engine.ends_with("View")
    }

    /// A digest of everything that says how its parts' bytes are to be read.
    pub(crate) fn shape(&self) -> String {
        let text =
            serde_json::to_string(&(&self.uuid, &self.columns)).expect("plain data can be JSON");
        blake3::hash(text.as_bytes()).to_hex()[..32].to_owned()
    }

    /// A digest of the columns alone.
    pub(crate) fn columns_digest(&self) -> String {
        let text = serde_json::to_string(&self.columns).expect("plain data can be JSON");
        blake3::hash(text.as_bytes()).to_hex()[..32].to_owned()
    }
}

/// Everything that has a definition.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Catalogue {
    /// By name, with the engine.
    pub(crate) databases: BTreeMap<String, String>,
    pub(crate) tables: Vec<TableDefinition>,
    /// Functions that users wrote in SQL, by name.
    pub(crate) functions: BTreeMap<String, String>,
    /// Statements that make users, roles, quotas, row policies, profiles; nothing where they may not be seen.
    pub(crate) access: Option<Vec<String>>,
    /// Names of named collections; what is in them the server shows to nobody.
    pub(crate) collections: Vec<String>,
}

/// Whether a database is nobody's own.
fn is_users(name: &str, keeps_proofs: bool) -> bool {
    !OWN_DATABASES.contains(&name)
        && !name.starts_with(SCRATCH_PREFIX)
        && (keeps_proofs || !name.starts_with(PROOF_PREFIX))
}

/// Where the rows of a table of this engine are.
pub(crate) fn content_of(engine: &str) -> Content {
    if engine.ends_with("MergeTree") {
        Content::Parts
    } else if PLAIN_ENGINES.contains(&engine) {
        Content::Plain
    } else if engine.ends_with("View") || matches!(engine, "Null" | "Set" | "Dictionary") {
        Content::Definition
    } else {
        Content::Outside
    }
}

impl Catalogue {
    /// Reads a server, or one database of it. `prefix` reads a proof's databases, and no others.
    pub(crate) async fn read(
        session: &Session,
        database: Option<&str>,
        prefix: Option<&str>,
    ) -> Result<Self, EngineError> {
        let doing = "listing what there is";
        let wanted = |name: &str| {
            database.is_none_or(|only| only == name)
                && prefix.is_none_or(|prefix| name.starts_with(prefix))
                && is_users(name, prefix.is_some())
        };
        let mut catalogue = Self::default();
        for row in session
            .rows(
                "SELECT name, engine FROM system.databases ORDER BY name",
                doing,
            )
            .await?
        {
            if wanted(&row[0]) {
                catalogue.databases.insert(row[0].clone(), row[1].clone());
            }
        }
        let local: BTreeSet<&String> = catalogue
            .databases
            .iter()
            .filter(|(_, engine)| LOCAL_DATABASES.contains(&engine.as_str()))
            .map(|(name, _)| name)
            .collect();
        let mut columns = Self::columns(session, &local).await?;
        let has_uuid = session.has_column("tables", "uuid").await?;
        let uuid = if has_uuid { "toString(uuid)" } else { "''" };
        let rows = session
            .rows(
                &format!("SELECT database, name, engine, create_table_query, {uuid} FROM system.tables WHERE NOT is_temporary ORDER BY database, name"),
                doing,
            )
            .await?;
        let engines: BTreeMap<(String, String), String> = rows
            .iter()
            .filter(|row| row[1].starts_with(INNER))
            .map(|row| ((row[0].clone(), row[1].clone()), row[2].clone()))
            .collect();
        for mut row in rows {
            if !local.contains(&row[0]) || row[1].starts_with(INNER) {
                continue;
            }
            let uuid = row.pop().unwrap_or_default();
            let create = row.pop().unwrap_or_default();
            let engine = row.pop().unwrap_or_default();
            let (name, database) = (row.pop().unwrap_or_default(), row.pop().unwrap_or_default());
            let mut table = TableDefinition {
                columns: columns
                    .remove(&(database.clone(), name.clone()))
                    .unwrap_or_default(),
                content: content_of(&engine),
                inner: None,
                database,
                name,
                engine,
                create,
                uuid,
            };
            if table.is_materialized_view() {
                let inner = [
                    format!(".inner_id.{}", table.uuid),
                    format!(".inner.{}", table.name),
                ]
                .into_iter()
                .map(|inner| (table.database.clone(), inner))
                .find_map(|place| Some((engines.get(&place)?, place.1)));
                if let Some((engine, inner)) = inner {
                    // Its rows lie in a table of its own, which is read as any other.
                    table.content = content_of(engine);
                    table.inner = Some(inner);
                }
            }
            catalogue.tables.push(table);
        }
        Ok(catalogue)
    }

    async fn columns(
        session: &Session,
        databases: &BTreeSet<&String>,
    ) -> Result<BTreeMap<(String, String), Vec<Column>>, EngineError> {
        let mut columns: BTreeMap<(String, String), Vec<Column>> = BTreeMap::new();
        let position = if session.has_column("columns", "position").await? {
            " ORDER BY database, table, position"
        } else {
            ""
        };
        // One database after another: the list of a large server's columns does not pass in one piece.
        for database in databases {
            let rows = session
                .rows(
                    &format!(
                        "SELECT table, name, type, default_kind, default_expression FROM system.columns WHERE database = {}{position}",
                        literal(database)
                    ),
                    "listing columns",
                )
                .await?;
            for row in rows {
                let [table, name, kind, default_kind, default_expression] =
                    <[String; 5]>::try_from(row).unwrap_or_default();
                columns
                    .entry(((*database).clone(), table))
                    .or_default()
                    .push(Column {
                        name,
                        kind,
                        default_kind,
                        default_expression,
                    });
            }
        }
        Ok(columns)
    }

    /// Reads what belongs to the whole server, as far as it may be seen.
    pub(crate) async fn read_server(&mut self, session: &Session) -> Result<(), EngineError> {
        let doing = "listing functions and users";
        if session.has_column("functions", "create_query").await? {
            let rows = session
                .rows(
                    "SELECT name, create_query FROM system.functions WHERE origin = 'SQLUserDefined' ORDER BY name",
                    doing,
                )
                .await?;
            self.functions = rows
                .into_iter()
                .filter_map(|row| <[String; 2]>::try_from(row).ok())
                .map(|[name, create]| (name, create))
                .collect();
        }
        if let Ok(rows) = session
            .try_rows(
                "SELECT name FROM system.named_collections ORDER BY name",
                &[],
                doing,
            )
            .await?
        {
            self.collections = rows.into_iter().flatten().collect();
        }
        self.access = session.try_lines("SHOW ACCESS", doing).await?.ok();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn engines_are_sorted_by_where_their_rows_are() {
        for (engine, content) in [
            ("MergeTree", Content::Parts),
            ("ReplicatedSummingMergeTree", Content::Parts),
            ("Memory", Content::Plain),
            ("StripeLog", Content::Plain),
            ("View", Content::Definition),
            ("MaterializedView", Content::Definition),
            ("Dictionary", Content::Definition),
            ("Kafka", Content::Outside),
            ("Distributed", Content::Outside),
            ("Buffer", Content::Outside),
        ] {
            assert_eq!(content_of(engine), content, "{engine}");
        }
    }

    #[test]
    fn a_changed_default_is_another_shape() {
        let column = |expression: &str| Column {
            name: "a".to_owned(),
            kind: "UInt8".to_owned(),
            default_kind: "DEFAULT".to_owned(),
            default_expression: expression.to_owned(),
        };
        let table = |expression, uuid: &str| TableDefinition {
            database: String::new(),
            name: String::new(),
            engine: "MergeTree".to_owned(),
            create: String::new(),
            columns: vec![column(expression)],
            content: Content::Parts,
            uuid: uuid.to_owned(),
            inner: None,
        };
        assert_ne!(table("1", "u").shape(), table("2", "u").shape());
        assert_ne!(table("1", "u").shape(), table("1", "v").shape());
        assert_eq!(table("1", "u").shape(), table("1", "u").shape());
    }
}
