//! What is known of a server: its catalogue, its statistics and the statements that it has recorded.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The server as a whole.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Server {
    pub(crate) version: String,
    pub(crate) version_num: u32,
    pub(crate) in_recovery: bool,
    pub(crate) database_bytes: f64,
    pub(crate) up_seconds: f64,
    /// Since the counters of tables and indexes were set to nothing.
    pub(crate) stats_seconds: Option<f64>,
    pub(crate) stats_reset: Option<String>,
    /// Standbys that are connected.
    pub(crate) replicas: u32,
    pub(crate) sessions: u32,
    pub(crate) blocks_hit: f64,
    pub(crate) blocks_read: f64,
    pub(crate) temp_bytes: f64,
    pub(crate) checkpoints_timed: f64,
    pub(crate) checkpoints_requested: f64,
}

/// A setting.
#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct Setting {
    pub(crate) value: String,
    pub(crate) unit: Option<String>,
}

/// A column, with what the server knows of its values.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Column {
    pub(crate) number: i32,
    pub(crate) name: String,
    pub(crate) not_null: bool,
    pub(crate) boolean: bool,
    /// Whether its type can be the key of a B-tree.
    pub(crate) sortable: bool,
    pub(crate) width: f64,
    /// As in `pg_stats`: below 0 a share of the rows; 0 is unknown.
    pub(crate) distinct: f64,
    pub(crate) null_share: f64,
    pub(crate) correlation: f64,
    /// The share of the commonest value; 0 is unknown.
    pub(crate) commonest: f64,
    /// How many common values are known.
    pub(crate) common_values: u32,
    /// The share of true, of a boolean column.
    pub(crate) true_share: Option<f64>,
    pub(crate) statistics_target: i32,
}

/// A table.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Table {
    pub(crate) oid: u32,
    pub(crate) schema: String,
    pub(crate) name: String,
    pub(crate) kind: String,
    pub(crate) rows: f64,
    pub(crate) pages: f64,
    pub(crate) all_visible: f64,
    pub(crate) bytes: f64,
    pub(crate) options: Option<Vec<String>>,
    pub(crate) seq_scans: f64,
    pub(crate) index_scans: f64,
    pub(crate) inserted: f64,
    pub(crate) updated: f64,
    pub(crate) deleted: f64,
    pub(crate) hot_updated: f64,
    pub(crate) live: f64,
    pub(crate) dead: f64,
    pub(crate) columns: Vec<Column>,
}

impl Table {
    pub(crate) fn column(&self, number: i32) -> Option<&Column> {
        self.columns.iter().find(|column| column.number == number)
    }

    pub(crate) fn named(&self, name: &str) -> Option<&Column> {
        self.columns.iter().find(|column| column.name == name)
    }

    /// Its name as SQL takes it wherever it is run.
    pub(crate) fn qualified(&self) -> String {
        format!("{}.{}", quote(&self.schema), quote(&self.name))
    }

    /// Its name as people write it.
    pub(crate) fn shown(&self) -> String {
        format!("{}.{}", self.schema, self.name)
    }

    /// A storage parameter that was set for it.
    pub(crate) fn option(&self, name: &str) -> Option<&str> {
        self.options.as_ref()?.iter().find_map(|option| {
            option
                .split_once('=')
                .filter(|(key, _)| *key == name)
                .map(|(_, value)| value)
        })
    }
}

/// An index.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Index {
    pub(crate) oid: u32,
    pub(crate) table: u32,
    pub(crate) schema: String,
    pub(crate) name: String,
    pub(crate) method: String,
    pub(crate) unique: bool,
    pub(crate) primary: bool,
    pub(crate) valid: bool,
    /// Whether a constraint, the replica identity or CLUSTER needs it.
    pub(crate) needed_by: Option<String>,
    /// The columns of the key, 0 for an expression.
    pub(crate) key: Vec<i32>,
    /// For each column of the key: operator class, collation, order.
    pub(crate) details: Vec<String>,
    /// Columns that are carried along.
    pub(crate) included: Vec<i32>,
    pub(crate) expressions: Option<String>,
    pub(crate) predicate: Option<String>,
    pub(crate) definition: String,
    pub(crate) bytes: f64,
    pub(crate) rows: f64,
    pub(crate) scans: f64,
}

impl Index {
    pub(crate) fn qualified(&self) -> String {
        format!("{}.{}", quote(&self.schema), quote(&self.name))
    }

    pub(crate) fn shown(&self) -> String {
        format!("{}.{}", self.schema, self.name)
    }
}

/// A foreign key.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct ForeignKey {
    pub(crate) name: String,
    pub(crate) table: u32,
    pub(crate) columns: Vec<i32>,
    pub(crate) referenced: u32,
}

/// A recorded statement.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub(crate) struct Statement {
    pub(crate) id: String,
    pub(crate) text: String,
    pub(crate) calls: f64,
    pub(crate) total_ms: f64,
    pub(crate) rows: f64,
    pub(crate) blocks_read: f64,
    pub(crate) temp_blocks: f64,
    /// All that it read and wrote, in memory or not.
    pub(crate) blocks: f64,
}

/// All of it.
#[derive(Clone, Debug)]
pub(crate) struct Facts {
    pub(crate) server: Server,
    pub(crate) settings: BTreeMap<String, Setting>,
    pub(crate) tables: Vec<Table>,
    pub(crate) indexes: Vec<Index>,
    pub(crate) foreign_keys: Vec<ForeignKey>,
    /// The statements with the most time first, or why there are none.
    pub(crate) statements: Result<Vec<Statement>, NoStatements>,
    /// Since the record of statements was begun.
    pub(crate) statements_seconds: f64,
    /// The schema of HypoPG, where it is installed.
    pub(crate) hypopg: Option<String>,
    pub(crate) memory_bytes: Option<u64>,
    pub(crate) processors: Option<u32>,
}

/// Why no statements are recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoStatements {
    /// The library is not loaded.
    NotLoaded,
    /// The extension is not made in this database.
    NotMade,
    /// The role may not see them.
    NotAllowed,
    /// The server is too old.
    TooOld,
}

impl Default for Facts {
    fn default() -> Self {
        Self {
            server: Server::default(),
            settings: BTreeMap::new(),
            tables: Vec::new(),
            indexes: Vec::new(),
            foreign_keys: Vec::new(),
            statements: Ok(Vec::new()),
            statements_seconds: 0.0,
            hypopg: None,
            memory_bytes: None,
            processors: None,
        }
    }
}

impl Facts {
    pub(crate) fn table(&self, oid: u32) -> Option<&Table> {
        self.tables.iter().find(|table| table.oid == oid)
    }

    pub(crate) fn indexes_of(&self, table: u32) -> impl Iterator<Item = &Index> {
        self.indexes
            .iter()
            .filter(move |index| index.table == table)
    }

    /// A setting as a number, in its own unit.
    pub(crate) fn number(&self, name: &str) -> Option<f64> {
        self.settings.get(name)?.value.parse().ok()
    }

    /// A setting as bytes.
    pub(crate) fn bytes(&self, name: &str) -> Option<f64> {
        let setting = self.settings.get(name)?;
        let unit = match setting.unit.as_deref() {
            Some("8kB") => 8192.0,
            Some("kB") => 1024.0,
            Some("MB") => 1_048_576.0,
            Some("16MB") => 16_777_216.0,
            _ => 1.0,
        };
        setting.value.parse::<f64>().ok().map(|value| value * unit)
    }
}

/// Quotes a name. Always: which words are reserved differs between versions.
pub(crate) fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}
