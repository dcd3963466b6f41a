//! One batch in one transaction: its removal, in which each DELETE compares the whole row, and its return.

use std::path::PathBuf;

use async_trait::async_trait;
use fettler_engine::{EngineError, Fate, Record, RecordRemover, RecordRestorer, Return};
use rusqlite::{
    Connection, ErrorCode, OptionalExtension as _, Transaction, TransactionBehavior,
    config::DbConfig, params_from_iter,
};

use crate::{
    blocking,
    connect::{quoted, refused},
};

use super::{
    open,
    rows::{RowsData, Stored, decoded, shown},
};

/// The connection goes to a thread and back with each batch.
struct Place {
    path: PathBuf,
    data: RowsData,
    connection: Option<Connection>,
}

impl Place {
    async fn open(path: PathBuf, data: RowsData) -> Result<Self, EngineError> {
        let opened = path.clone();
        let connection = blocking(move || open(&opened)).await?;
        Ok(Self {
            path,
            data,
            connection: Some(connection),
        })
    }

    /// Does something with records in one transaction that holds the write lock.
    async fn transaction<T: Send + 'static>(
        &mut self,
        records: &[Record],
        doing: &'static str,
        commit: bool,
        work: impl FnOnce(&Transaction<'_>, &RowsData, &[Record]) -> Result<T, Failed> + Send + 'static,
    ) -> Result<T, EngineError> {
        let (path, data, records) = (self.path.clone(), self.data.clone(), records.to_vec());
        let held = self.connection.take();
        let (connection, done) = blocking(move || {
            let mut connection = match held {
                Some(connection) => connection,
                None => open(&path)?,
            };
            let done = (|| {
                let behavior = if commit {
                    TransactionBehavior::Immediate
                } else {
                    TransactionBehavior::Deferred
                };
                let transaction = connection.transaction_with_behavior(behavior)?;
                let done = work(&transaction, &data, &records)?;
                if commit {
                    transaction.commit()?;
                }
                Ok(done)
            })();
            let done = done.map_err(|failed| match failed {
                Failed::Sqlite(error) => refused(&path, doing, error),
                Failed::Archive(error) => error,
            });
            Ok((connection, done))
        })
        .await?;
        self.connection = Some(connection);
        done
    }
}

enum Failed {
    Sqlite(rusqlite::Error),
    Archive(EngineError),
}

impl From<rusqlite::Error> for Failed {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error)
    }
}

impl From<EngineError> for Failed {
    fn from(error: EngineError) -> Self {
        Self::Archive(error)
    }
}

/// Whether the row of this key is what the archive holds; nothing where there is none.
fn is_same(
    transaction: &Transaction<'_>,
    data: &RowsData,
    key: &[Stored<'_>],
    content: &[Stored<'_>],
) -> rusqlite::Result<Option<bool>> {
    let sql = format!(
        "SELECT {} FROM {} AS t WHERE {}",
        data.is_same(key.len() + 1),
        data.sql_name(),
        data.by_key(1)
    );
    transaction
        .prepare_cached(&sql)?
        .query_row(params_from_iter(key.iter().chain(content)), |row| {
            row.get(0)
        })
        .optional()
}

/// Removes.
pub(super) struct Remover(Place);

impl Remover {
    pub(super) async fn open(path: PathBuf, data: RowsData) -> Result<Self, EngineError> {
        let fire = data.fire_triggers;
        let place = Place::open(path, data).await?;
        if let Some(connection) = &place.connection
            && fire
        {
            connection
                .set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, true)
                .map_err(|error| refused(&place.path, "opening", error))?;
        }
        Ok(Self(place))
    }
}

#[async_trait]
impl RecordRemover for Remover {
    async fn remove(&mut self, records: &[Record]) -> Result<Vec<Fate>, EngineError> {
        self.0
            .transaction(
                records,
                "removing rows of",
                true,
                |transaction, data, records| {
                    records
                        .iter()
                        .map(|record| remove(transaction, data, record))
                        .collect()
                },
            )
            .await
    }

    fn shown(&self, record: &Record) -> String {
        shown(&record.key)
    }
}

fn remove(transaction: &Transaction<'_>, data: &RowsData, record: &Record) -> Result<Fate, Failed> {
    let (key, content) = (decoded(&record.key)?, decoded(&record.content)?);
    let spared = match data.is_referred_to_by_any() {
        Some(condition) => format!(" AND NOT {condition}"),
        None => String::new(),
    };
    let sql = format!(
        "DELETE FROM {} AS t WHERE {} AND {}{spared}",
        data.sql_name(),
        data.by_key(1),
        data.is_same(key.len() + 1)
    );
    let removed = transaction
        .prepare_cached(&sql)?
        .execute(params_from_iter(key.iter().chain(&content)))?;
    if removed > 0 {
        return Ok(Fate::Removed);
    }
    Ok(match is_same(transaction, data, &key, &content)? {
        None => Fate::Gone,
        Some(false) => Fate::Changed,
        Some(true) => Fate::Referenced,
    })
}

/// Puts back. No trigger fires: they are off in the connection.
pub(super) struct Restorer(Place);

impl Restorer {
    pub(super) async fn open(path: PathBuf, data: RowsData) -> Result<Self, EngineError> {
        Place::open(path, data).await.map(Self)
    }
}

#[async_trait]
impl RecordRestorer for Restorer {
    async fn put_back(
        &mut self,
        records: &[Record],
        dry_run: bool,
    ) -> Result<Vec<Return>, EngineError> {
        self.0
            .transaction(
                records,
                "putting rows back into",
                !dry_run,
                move |transaction, data, records| {
                    records
                        .iter()
                        .map(|record| put_back(transaction, data, record, dry_run))
                        .collect()
                },
            )
            .await
    }

    fn shown(&self, record: &Record) -> String {
        shown(&record.key)
    }
}

fn put_back(
    transaction: &Transaction<'_>,
    data: &RowsData,
    record: &Record,
    dry_run: bool,
) -> Result<Return, Failed> {
    let (key, content) = (decoded(&record.key)?, decoded(&record.content)?);
    match is_same(transaction, data, &key, &content)? {
        Some(true) => return Ok(Return::There),
        Some(false) => return Ok(Return::Taken),
        None => {}
    }
    for parent in &data.parents {
        let values: Vec<Stored<'_>> = parent
            .from
            .iter()
            .filter_map(|from| {
                let at = data.columns.iter().position(|column| column == from)?;
                content.get(at).copied()
            })
            .collect();
        let is_none = values
            .iter()
            .any(|value| value.0 == rusqlite::types::ValueRef::Null);
        let own = parent.table.eq_ignore_ascii_case(&data.table);
        // A row that refers to its own table may refer to itself, or to one that comes back with it.
        if is_none || (own && dry_run) || values.len() != parent.to.len() {
            continue;
        }
        let refers_to_itself = own
            && parent.to.iter().zip(&values).all(|(to, value)| {
                data.columns
                    .iter()
                    .position(|column| column == to)
                    .and_then(|at| content.get(at))
                    == Some(value)
            });
        if refers_to_itself {
            continue;
        }
        let pairs: Vec<String> = parent
            .to
            .iter()
            .enumerate()
            .map(|(at, to)| format!("{} = ?{}", quoted(to), at + 1))
            .collect();
        let sql = format!(
            "SELECT EXISTS (SELECT 1 FROM main.{} WHERE {})",
            quoted(&parent.table),
            pairs.join(" AND ")
        );
        let is_there: bool = transaction
            .prepare_cached(&sql)?
            .query_row(params_from_iter(&values), |row| row.get(0))?;
        if !is_there {
            return Ok(Return::WithoutParent);
        }
    }
    if dry_run {
        return Ok(Return::Restored);
    }
    let columns: Vec<String> = data.columns.iter().map(|column| quoted(column)).collect();
    let places: Vec<String> = (1..=columns.len()).map(|at| format!("?{at}")).collect();
    // ABORT whatever the table's own constraints say: REPLACE would remove others' rows.
    let sql = format!(
        "INSERT OR ABORT INTO {} ({}) VALUES ({})",
        data.sql_name(),
        columns.join(", "),
        places.join(", ")
    );
    match transaction
        .prepare_cached(&sql)?
        .execute(params_from_iter(&content))
    {
        Ok(_) => Ok(Return::Restored),
        Err(rusqlite::Error::SqliteFailure(failure, _))
            if failure.code == ErrorCode::ConstraintViolation =>
        {
            Ok(Return::Taken)
        }
        Err(error) => Err(error.into()),
    }
}
