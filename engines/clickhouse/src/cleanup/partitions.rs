//! Which partitions of a table are old.

use fettler_engine::{EngineContext, EngineError, refuse};
use fettler_model::{CleanupAction, CleanupItem, CleanupPlan, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::{
    catalogue::{Catalogue, Column, TableDefinition},
    http::Session,
    sql::{literal, quoted, table as full_table},
};

use super::unexpected;

/// From this version on servers hash rows as bytes, and move partitions between tables.
const SINCE: (u32, u32) = (21, 8);

/// A partition that goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Partition {
    pub(super) id: String,
    /// As the server shows it.
    pub(super) shown: String,
}

/// What the plan keeps.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct PartitionsData {
    pub(super) definition: TableDefinition,
    pub(super) column: Column,
    pub(super) cutoff: Timestamp,
    pub(super) partitions: Vec<Partition>,
}

impl PartitionsData {
    /// The table, quoted.
    pub(super) fn table(&self) -> String {
        full_table(&self.definition.database, &self.definition.name)
    }

    /// A partition's name for people.
    pub(super) fn shown(&self, partition: &Partition) -> String {
        format!("{}/{}", self.definition.full_name(), partition.shown)
    }

    /// Whether rows of the same key are made one of by merges, or something else.
    pub(super) fn merges_rows(&self) -> bool {
        self.definition.engine != "MergeTree"
    }
}

/// What the rows of a partition say of their age.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Age {
    pub(super) rows: u64,
    /// Rows that are not older than the cut-off, or say no time.
    pub(super) young: u64,
    oldest: String,
    newest: String,
}

impl Age {
    /// Asks the server, which counts and compares itself.
    pub(super) async fn of(
        session: &Session,
        data: &PartitionsData,
        partition: &str,
    ) -> Result<Self, EngineError> {
        let doing = "asking how old a partition is";
        let column = quoted(&data.column.name);
        let old = is_old(&data.column, data.cutoff).unwrap_or_else(|| "0".to_owned());
        let rows = session
            .try_rows(
                &format!(
                    "SELECT toString(count()), toString(countIf(ifNull({old}, 0) = 0)), \
                     ifNull(toString(min({column})), ''), ifNull(toString(max({column})), '') FROM {} WHERE _partition_id = {}",
                    data.table(),
                    literal(partition)
                ),
                &crate::fingerprint::AS_STORED,
                doing,
            )
            .await?
            .map_err(|refusal| refusal.doing(&session.server(), doing))?;
        let row = rows.first().ok_or_else(|| unexpected(session, doing))?;
        let number = |at: usize| {
            row[at]
                .parse()
                .map_err(|_| unexpected(session, "counting rows"))
        };
        Ok(Self {
            rows: number(0)?,
            young: number(1)?,
            oldest: row[2].clone(),
            newest: row[3].clone(),
        })
    }
}

/// A type without what may stand around it.
fn plain_type(kind: &str) -> &str {
    let mut kind = kind;
    for around in ["LowCardinality(", "Nullable("] {
        kind = kind
            .strip_prefix(around)
            .and_then(|inner| inner.strip_suffix(')'))
            .unwrap_or(kind);
    }
    kind
}

/// The condition under which a value of a column is older than the cut-off, whatever the server's time zone is; nothing for a column
/// that says no time. A date is old when its whole day is, in UTC.
fn is_old(column: &Column, cutoff: Timestamp) -> Option<String> {
    let name = quoted(&column.name);
    let kind = plain_type(&column.kind);
    if kind.starts_with("DateTime64") {
        let millis = cutoff.micros().div_euclid(1000);
        Some(format!(
            "{name} < fromUnixTimestamp64Milli(toInt64({millis}))"
        ))
    } else if kind.starts_with("DateTime") {
        let seconds = cutoff.micros().div_euclid(1_000_000).max(0);
        Some(format!("toUnixTimestamp({name}) < {seconds}"))
    } else if matches!(kind, "Date" | "Date32") {
        let day = cutoff.to_string();
        let day = day.split('T').next().unwrap_or_default();
        Some(format!("{name} < to{kind}({})", literal(day)))
    } else {
        None
    }
}

/// Plans.
pub(super) async fn plan(
    context: &EngineContext,
    session: &Session,
    mut plan: CleanupPlan,
) -> Result<CleanupPlan, EngineError> {
    let CleanupAction::Partitions { table, column, .. } = plan.what.clone() else {
        return Ok(plan);
    };
    let definition = find(session, &table).await?;
    let name = definition.full_name();
    if session.version_numbers() < SINCE {
        refuse(
            &mut plan,
            format!(
                "{} is ClickHouse {}, which has no statement that moves a partition aside to be looked at before it is dropped",
                session.server(),
                session.version
            ),
            "old partitions are removed from ClickHouse 21.8 on; before, `ALTER TABLE … DROP PARTITION` after a backup does it",
        );
        return Ok(plan);
    }
    if let Some((why, remedy)) = why_refused(session, &definition).await? {
        refuse(&mut plan, why, remedy);
        return Ok(plan);
    }
    let column = match column_of(session, &definition, column.as_deref()).await? {
        Ok(column) => column,
        Err(why) => {
            refuse(
                &mut plan,
                why,
                "name a column that holds a Date or a DateTime (`--column`)",
            );
            return Ok(plan);
        }
    };
    let mut data = PartitionsData {
        column,
        cutoff: plan.cutoff.unwrap_or(plan.made),
        partitions: Vec::new(),
        definition,
    };
    let parts = session
        .rows(
            &format!(
                "SELECT partition_id, any(partition), toString(sum(bytes_on_disk)) FROM system.parts WHERE active AND database = {} AND table = {} \
                 AND partition_id NOT LIKE 'patch-%' GROUP BY partition_id ORDER BY partition_id",
                literal(&data.definition.database),
                literal(&data.definition.name)
            ),
            "listing partitions",
        )
        .await?;
    for row in parts {
        context.check_stop()?;
        let [id, shown, bytes] =
            <[String; 3]>::try_from(row).map_err(|_| unexpected(session, "listing partitions"))?;
        let partition = Partition { id, shown };
        context.progress.item(&data.shown(&partition));
        let age = Age::of(session, &data, &partition.id).await?;
        if age.young > 0 || age.rows == 0 {
            continue;
        }
        plan.items.push(CleanupItem {
            name: data.shown(&partition),
            rows: age.rows,
            bytes: bytes.parse().unwrap_or(0),
            oldest: Some(age.oldest),
            newest: Some(age.newest),
            note: String::new(),
        });
        data.partitions.push(partition);
    }
    plan.depends = views(session, &data.definition).await?;
    if data.merges_rows() && !data.partitions.is_empty() {
        plan.notes.push(format!(
            "{name} is a {}: a partition whose rows were merged after they were archived stays, and an undo fills only partitions that are empty",
            data.definition.engine
        ));
    }
    plan.can_be_undone = true;
    plan.engine_data = json!(data);
    Ok(plan)
}

/// The table of this name: with its database, or the one that the URL names, or the only one that has such a table.
async fn find(session: &Session, name: &str) -> Result<TableDefinition, EngineError> {
    let only = session.params().database.clone();
    let catalogue = Catalogue::read(session, only.as_deref(), None).await?;
    let mut found: Vec<TableDefinition> = catalogue
        .tables
        .into_iter()
        .filter(|table| table.full_name() == name || table.name == name)
        .collect();
    match found.len() {
        1 => Ok(found.remove(0)),
        0 => Err(EngineError::Missing {
            code: "table",
            what: format!("{} has no table {name}", session.server()),
            remedy: "write it as `database.table`, and look at `SHOW TABLES`".to_owned(),
        }),
        _ => {
            let names: Vec<String> = found.iter().map(TableDefinition::full_name).collect();
            Err(EngineError::Missing {
                code: "table",
                what: format!("several tables are called {name}: {}", names.join(", ")),
                remedy: "write it as `database.table`".to_owned(),
            })
        }
    }
}

/// Why nothing of a table is removed, and what would help.
async fn why_refused(
    session: &Session,
    table: &TableDefinition,
) -> Result<Option<(String, &'static str)>, EngineError> {
    let name = table.full_name();
    if table.inner.is_some() || table.is_view() || !table.engine.ends_with("MergeTree") {
        return Ok(Some((
            format!("{name} ({}) has no partitions of its own", table.engine),
            "name a table of the MergeTree family",
        )));
    }
    if table.engine.starts_with("Replicated") || table.engine.starts_with("Shared") {
        return Ok(Some((
            format!(
                "{name} ({}) is replicated, and a partition cannot be moved aside to a table that is not",
                table.engine
            ),
            "give the table a TTL, or drop its partitions by hand after a backup (`ALTER TABLE … DROP PARTITION`)",
        )));
    }
    let place = format!(
        "database = {} AND table = {}",
        literal(&table.database),
        literal(&table.name)
    );
    let doing = "looking for mutations";
    let waiting = session
        .rows(
            &format!("SELECT mutation_id FROM system.mutations WHERE NOT is_done AND {place}"),
            doing,
        )
        .await?;
    let patches = session
        .rows(
            &format!(
                "SELECT name FROM system.parts WHERE active AND partition_id LIKE 'patch-%' AND {place}"
            ),
            doing,
        )
        .await?;
    Ok((!waiting.is_empty() || !patches.is_empty()).then(|| {
        (
            format!("{name} has changes of rows that are not done (mutations or lightweight updates)"),
            "wait until `system.mutations` has them done; `ALTER TABLE … APPLY PATCHES` ends lightweight updates",
        )
    }))
}

/// The column that says how old a row is, or why there is none.
async fn column_of(
    session: &Session,
    table: &TableDefinition,
    named: Option<&str>,
) -> Result<Result<Column, String>, EngineError> {
    let name = table.full_name();
    let says_time =
        |column: &Column| column.is_stored() && is_old(column, Timestamp::from_micros(0)).is_some();
    if let Some(named) = named {
        let found = table.columns.iter().find(|column| column.name == named);
        return Ok(match found {
            Some(column) if says_time(column) => Ok(column.clone()),
            Some(column) => Err(format!(
                "{named} of {name} is a {}, and says no time",
                column.kind
            )),
            None => Err(format!("{name} has no column {named}")),
        });
    }
    let keys = session
        .rows(
            &format!(
                "SELECT name FROM system.columns WHERE database = {} AND table = {} AND is_in_partition_key",
                literal(&table.database),
                literal(&table.name)
            ),
            "looking at the partition key",
        )
        .await?;
    let keys: Vec<String> = keys.into_iter().flatten().collect();
    let mut found = table
        .columns
        .iter()
        .filter(|column| keys.contains(&column.name) && says_time(column));
    Ok(match (found.next(), found.next()) {
        (Some(column), None) => Ok(column.clone()),
        _ => Err(format!(
            "{name} is not partitioned by one column that says a time"
        )),
    })
}

/// The materialised views that were filled from a table.
async fn views(session: &Session, table: &TableDefinition) -> Result<Vec<String>, EngineError> {
    let rows = session
        .rows(
            &format!(
                "SELECT arrayJoin(arrayMap((d, t) -> concat(d, '.', t), dependencies_database, dependencies_table)) FROM system.tables \
                 WHERE database = {} AND name = {}",
                literal(&table.database),
                literal(&table.name)
            ),
            "looking for views",
        )
        .await?;
    Ok(rows
        .into_iter()
        .flatten()
        .map(|view| {
            format!("the materialized view {view} was filled from it, and keeps what it has")
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn column(kind: &str) -> Column {
        Column {
            name: "at".to_owned(),
            kind: kind.to_owned(),
            default_kind: String::new(),
            default_expression: String::new(),
        }
    }

    #[test]
    fn each_type_that_says_a_time_has_its_comparison() {
        let cutoff = Timestamp::from_micros(1_700_000_000_500_000);
        for (kind, expected) in [
            ("DateTime", Some("toUnixTimestamp(`at`) < 1700000000")),
            (
                "Nullable(DateTime('Europe/Berlin'))",
                Some("toUnixTimestamp(`at`) < 1700000000"),
            ),
            (
                "DateTime64(3)",
                Some("`at` < fromUnixTimestamp64Milli(toInt64(1700000000500))"),
            ),
            (
                "LowCardinality(Nullable(Date))",
                Some("`at` < toDate('2023-11-14')"),
            ),
            ("Date32", Some("`at` < toDate32('2023-11-14')")),
            ("UInt32", None),
            ("String", None),
        ] {
            assert_eq!(is_old(&column(kind), cutoff).as_deref(), expected, "{kind}");
        }
    }
}
