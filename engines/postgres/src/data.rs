//! What a backup of this engine remembers for its restore: the `engine_data` of its manifest.

use std::collections::BTreeMap;

use fettler_engine::{BackupReport, EngineError};
use serde::{Deserialize, Serialize};

use crate::{copy::Format, extract::Shape, names};

/// The newest form of [`BackupData`] that this code reads.
pub(crate) const DATA_FORMAT: u32 = 1;
/// The archive that `pg_dump` wrote.
pub(crate) const SCHEMA_STREAM: &str = "schema.dump";
/// What `pg_dumpall --globals-only` wrote.
pub(crate) const GLOBALS_STREAM: &str = "globals.sql";
/// Which object needs which, one a line, for restoring a part.
pub(crate) const DEPENDENCIES_STREAM: &str = "dependencies.tsv";
/// Owners, grants and comments of large objects, one a line.
pub(crate) const LARGE_OBJECTS_STREAM: &str = "large_objects/list.jsonl";

/// All of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct BackupData {
    pub(crate) format: u32,
    /// `server_version_num`.
    pub(crate) server_version: u32,
    /// The `pg_dump` that wrote the schema.
    pub(crate) dump_major: u32,
    pub(crate) dump_version: String,
    /// The encoding that all rows are in.
    pub(crate) encoding: String,
    pub(crate) database: DatabaseData,
    pub(crate) roles: Vec<RoleData>,
    /// Tablespaces that something lies in, beside the default one.
    pub(crate) tablespaces: Vec<String>,
    pub(crate) tables: Vec<TableData>,
    pub(crate) sequences: Vec<SequenceData>,
    pub(crate) views: Vec<MaterializedView>,
    pub(crate) large_objects: Option<LargeObjectData>,
    /// Indexes that were invalid at the source. `pg_dump` leaves them out, except those of partitioned tables.
    pub(crate) invalid_indexes: Vec<String>,
    pub(crate) schema: SchemaData,
}

impl BackupData {
    /// Reads it from a manifest.
    pub(crate) fn of(report: &BackupReport) -> Result<Self, EngineError> {
        let unusable = |what: String| EngineError::Unusable {
            what,
            remedy: "use the version of Fettler that made the backup, or a later one".to_owned(),
        };
        let format = report
            .engine_data
            .get("format")
            .and_then(serde_json::Value::as_u64);
        if format != Some(u64::from(DATA_FORMAT)) {
            return Err(unusable(format!(
                "the backup's description of PostgreSQL data has the form {format:?}, and {DATA_FORMAT} is known"
            )));
        }
        Self::deserialize(&report.engine_data)
            .map_err(|error| unusable(format!("the backup's description cannot be read: {error}")))
    }

    /// The major version of the server that was read.
    pub(crate) fn server_major(&self) -> u32 {
        self.server_version / 10_000
    }
}

/// The database itself: what `CREATE DATABASE` and `ALTER DATABASE` said.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct DatabaseData {
    pub(crate) name: String,
    pub(crate) owner: String,
    pub(crate) encoding: String,
    /// `c` libc, `i` ICU, `b` built in.
    pub(crate) provider: String,
    pub(crate) collate: String,
    pub(crate) ctype: String,
    /// The locale of ICU or of the built-in provider.
    pub(crate) locale: Option<String>,
    pub(crate) icu_rules: Option<String>,
    pub(crate) connection_limit: i32,
    pub(crate) comment: Option<String>,
    /// Grants on the database as `GRANT` statements would give them; nothing where they are the default.
    pub(crate) grants: Option<Vec<GrantData>>,
    /// `ALTER DATABASE … SET`, and `ALTER ROLE … IN DATABASE … SET`.
    pub(crate) settings: Vec<SettingData>,
}

/// One right that was granted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct GrantData {
    /// Who has it; nothing means everybody.
    pub(crate) grantee: Option<String>,
    pub(crate) privilege: String,
    pub(crate) with_grant_option: bool,
}

/// One setting of a database.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SettingData {
    /// For one role alone.
    pub(crate) role: Option<String>,
    pub(crate) name: String,
    pub(crate) value: String,
}

/// A role, as far as a private sandbox needs it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct RoleData {
    pub(crate) name: String,
    pub(crate) superuser: bool,
    /// The roles that it is a member of.
    pub(crate) member_of: Vec<String>,
}

/// A table with rows.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct TableData {
    pub(crate) oid: u32,
    pub(crate) schema: String,
    pub(crate) name: String,
    /// The columns that are copied, in this order.
    pub(crate) columns: Vec<String>,
    /// What the values of these columns are made of, where rows are copied in binary; backups of versions that did not
    /// write tables into files have none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) shapes: Vec<Shape>,
    pub(crate) rows_as: Format,
    /// For an extension's configuration table: which rows are the user's, as `WHERE …`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) condition: String,
    /// A partitioned table whose rows are restored through itself, since a copy may put them into
    /// another partition.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) through: Option<(String, String)>,
    /// Bytes of its largest row, in the form in which it was read.
    #[serde(default)]
    pub(crate) largest_row: u64,
    /// Whether its rows were left out on request.
    #[serde(default)]
    pub(crate) excluded: bool,
    pub(crate) streams: Vec<String>,
}

impl TableData {
    /// The name under which it is compared: a partition that is restored through its parent counts there.
    pub(crate) fn compared_as(&self) -> String {
        match &self.through {
            Some((schema, name)) => names::display_name(schema, name),
            None => names::display_name(&self.schema, &self.name),
        }
    }

    pub(crate) fn display(&self) -> String {
        names::display_name(&self.schema, &self.name)
    }

    pub(crate) fn quoted(&self) -> String {
        names::qualified(&self.schema, &self.name)
    }

    pub(crate) fn quoted_columns(&self) -> String {
        let columns: Vec<String> = self
            .columns
            .iter()
            .map(|name| names::quote_ident(name))
            .collect();
        columns.join(", ")
    }
}

/// A sequence and where it stands.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct SequenceData {
    pub(crate) schema: String,
    pub(crate) name: String,
    pub(crate) last_value: i64,
    pub(crate) is_called: bool,
}

impl SequenceData {
    pub(crate) fn display(&self) -> String {
        names::display_name(&self.schema, &self.name)
    }

    pub(crate) fn value(&self) -> String {
        let state = if self.is_called { "used" } else { "next" };
        format!("{} ({state})", self.last_value)
    }
}

/// A materialised view, which is computed again at a restore.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct MaterializedView {
    pub(crate) schema: String,
    pub(crate) name: String,
    pub(crate) populated: bool,
}

/// Large objects.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct LargeObjectData {
    /// Whether pages were read as the server keeps them, or objects by `lo_get`, as a role that is no
    /// superuser must.
    pub(crate) pages: bool,
    /// Bytes in a page of the server that was read.
    pub(crate) page_bytes: u64,
    pub(crate) count: u64,
    pub(crate) streams: Vec<String>,
}

/// One line of [`LARGE_OBJECTS_STREAM`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct LargeObjectFacts {
    pub(crate) oid: u32,
    pub(crate) owner: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) grants: Option<Vec<GrantData>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) comment: Option<String>,
}

/// The definitions as digests, so that a copy's can be compared and a difference be named.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SchemaData {
    /// From what `pg_dump` writes, without owners: kind and name, and a digest of the definition.
    pub(crate) definitions: BTreeMap<String, String>,
    /// Kind and name, and a digest of the statements that give it its owner.
    pub(crate) owners: BTreeMap<String, String>,
    /// From the catalogue, in words that mean the same in all versions: where source and copy have different ones.
    pub(crate) catalogue: BTreeMap<String, String>,
    /// Digest over definitions and owners.
    pub(crate) digest: String,
}
