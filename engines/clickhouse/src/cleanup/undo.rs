//! The undo: the rows of a partition are made in a scratch table, compared with the archive, and linked into the table in one step, past
//! every view. Rows that are there stay; those that are there already are not put back a second time.

use fettler_engine::{EngineContext, EngineError, StreamSource};
use fettler_fault_points::{Point, reached};
use fettler_model::{CleanupUndone, JobId};

use crate::{
    catalogue::Catalogue,
    fingerprint::{AS_STORED, RowHash},
    http::Session,
    sql::{literal, quoted, table as full_table},
};

use super::{
    archive::{Contents, Stored},
    partitions::PartitionsData,
    scratch::{Aside, beside, fill, with_scratch},
    unexpected,
};

const DOING: &str = "putting a partition back";

pub(super) struct Undoing<'a> {
    pub(super) context: &'a EngineContext,
    pub(super) session: &'a Session,
    pub(super) data: &'a PartitionsData,
    pub(super) archive: &'a dyn StreamSource,
    /// The cleanup that is undone.
    pub(super) cleanup: JobId,
    pub(super) dry_run: bool,
}

impl Undoing<'_> {
    pub(super) async fn all(&self) -> Result<CleanupUndone, EngineError> {
        let contents = Contents::of(self.archive).await?;
        self.require_columns(&contents).await?;
        let mut undone = CleanupUndone::default();
        for (number, stored) in contents.partitions.iter().enumerate() {
            self.context.check_stop()?;
            self.context.fence.check().await?;
            let name = self.data.shown(&stored.partition);
            self.context.progress.item(&name);
            let left = Aside::of(self.session, self.data, self.cleanup, number);
            if left.holds_rows().await? {
                // The cleanup ended while it looked at the partition.
                if self.dry_run {
                    undone.restored += stored.fingerprint.rows;
                    continue;
                }
                left.give_back(&stored.partition.id).await?;
            }
            if !self.dry_run {
                let _it_is_empty = left.drop().await?;
            }
            self.one(&contents, stored, &name, &mut undone).await?;
        }
        Ok(undone)
    }

    /// An error where the table is gone, or has not all columns that the archive has.
    async fn require_columns(&self, contents: &Contents) -> Result<(), EngineError> {
        let planned = &self.data.definition;
        let catalogue = Catalogue::read(self.session, Some(&planned.database), None).await?;
        let name = planned.full_name();
        let Some(now) = catalogue.tables.iter().find(|one| one.name == planned.name) else {
            return Err(EngineError::Missing {
                code: "table",
                what: format!("the table {name} is gone"),
                remedy: format!("make it again, then undo: {}", planned.create),
            });
        };
        let archived = contents.partitions.first();
        let lost = archived
            .into_iter()
            .flat_map(|stored| &stored.record.definition.columns)
            .find(|column| {
                column.is_stored()
                    && !now
                        .columns
                        .iter()
                        .any(|one| (&one.name, &one.kind) == (&column.name, &column.kind))
            });
        match lost {
            None => Ok(()),
            Some(column) => Err(EngineError::Missing {
                code: "column",
                what: format!(
                    "{name} has no column {} of the type {} any more",
                    column.name, column.kind
                ),
                remedy: "add the column again, then undo; `fettler extract` takes the rows out of the archive as they are".to_owned(),
            }),
        }
    }

    async fn one(
        &self,
        contents: &Contents,
        stored: &Stored,
        name: &str,
        undone: &mut CleanupUndone,
    ) -> Result<(), EngineError> {
        let rows = stored.fingerprint.rows;
        let hash = contents.hash(self.context)?;
        let condition = format!("_partition_id = {}", literal(&stored.partition.id));
        let columns = stored.record.definition.stored();
        let table = self.data.table();
        let now = self
            .context
            .progress
            .while_waiting(hash.of(self.session, &table, &columns, Some(&condition), DOING))
            .await?;
        if rows == 0 || now == stored.fingerprint {
            undone.there += rows;
        } else if now.rows > 0 && self.data.merges_rows() {
            undone.taken += rows;
            undone.skipped.push(format!(
                "{name}: it holds rows, with which the table's engine may have merged them"
            ));
        } else if self.dry_run {
            undone.restored += rows;
            if now.rows > 0 {
                undone.notes.push(format!(
                    "{name} holds {} rows: which of the archived are among them is seen when it is done",
                    now.rows
                ));
            }
        } else {
            let restored = with_scratch(self.context, self.session, async |scratch: &str| {
                self.put_back(contents, stored, &hash, scratch, now.rows == 0)
                    .await
            })
            .await?;
            undone.restored += restored;
            undone.there += rows - restored;
            reached(Point::CleanupUndoing);
        }
        Ok(())
    }

    /// Makes the rows, and links those into the table that are not there; gives their number.
    async fn put_back(
        &self,
        contents: &Contents,
        stored: &Stored,
        hash: &RowHash,
        scratch: &str,
        is_empty: bool,
    ) -> Result<u64, EngineError> {
        let which = (contents, stored);
        let mut made = fill(
            self.context,
            self.session,
            self.data,
            scratch,
            self.archive,
            which,
        )
        .await?;
        let mut rows = stored.fingerprint.rows;
        if !is_empty {
            let of_row = hash.of_row(&stored.record.definition.stored());
            let missing = format!(
                "{of_row} NOT IN (SELECT {of_row} FROM {} WHERE _partition_id = {})",
                self.data.table(),
                literal(&stored.partition.id)
            );
            rows = self.count(&made, &missing).await?;
            if rows == 0 {
                return Ok(0);
            }
            if rows < stored.fingerprint.rows {
                let some = full_table(scratch, "missing");
                beside(self.session, self.data, &some).await?;
                let columns: Vec<String> =
                    stored.record.read.iter().map(|name| quoted(name)).collect();
                let columns = columns.join(", ");
                self.session
                    .run(
                        &format!("INSERT INTO {some} ({columns}) SELECT {columns} FROM {made} WHERE {missing} SETTINGS log_queries = 0, optimize_on_insert = 0{}", self.materialized()),
                        &[],
                        DOING,
                    )
                    .await?;
                made = some;
            }
        }
        self.context.fence.check().await?;
        self.session
            .run(
                &format!(
                    "ALTER TABLE {} ATTACH PARTITION ID {} FROM {made}",
                    self.data.table(),
                    literal(&stored.partition.id)
                ),
                &[],
                DOING,
            )
            .await?;
        Ok(rows)
    }

    fn materialized(&self) -> &'static str {
        if self.session.knows("insert_allow_materialized_columns") {
            ", insert_allow_materialized_columns = 1"
        } else {
            ""
        }
    }

    async fn count(&self, table: &str, condition: &str) -> Result<u64, EngineError> {
        let sql = format!("SELECT toString(count()) FROM {table} WHERE {condition}");
        let rows = self
            .session
            .try_rows(&sql, &AS_STORED, DOING)
            .await?
            .map_err(|refusal| refusal.doing(&self.session.server(), DOING))?;
        rows.first()
            .and_then(|row| row[0].parse().ok())
            .ok_or_else(|| unexpected(self.session, DOING))
    }
}
