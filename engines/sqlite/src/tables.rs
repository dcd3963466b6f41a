//! The restore of some tables (`--only`): the backup becomes a file in the scratch folder, and the named tables
//! are copied from it, with their indexes and triggers, in one transaction.

use std::path::{Path, PathBuf};

use fettler_engine::{
    BackupReport, Ending, EngineContext, EngineError, RestoreOptions, RestoreReport, StreamSource,
    Unrecorded,
};
use rusqlite::Connection;
use tokio::runtime::Handle;

use crate::{
    blocking, check,
    connect::{open_own, open_shared, quoted, refused},
    facts::EngineData,
    file_artefact, file_name_part,
    pages::interrupt_when_halted,
    restore,
    scan::{self, Table},
    snapshot::{Header, ScratchFile},
};

/// Whether a table is meant by one of the patterns, in which `*` stands for anything. SQLite's names do not
/// distinguish letters by case; `main.` may stand before them.
pub(crate) fn matches(patterns: &[String], table: &str) -> bool {
    let table = table.to_ascii_lowercase();
    patterns.iter().any(|pattern| {
        let pattern = pattern.to_ascii_lowercase();
        matches_one(pattern.strip_prefix("main.").unwrap_or(&pattern), &table)
            || matches_one(&pattern, &table)
    })
}

fn matches_one(pattern: &str, name: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = parts.next().and_then(|first| name.strip_prefix(first)) else {
        return false;
    };
    let mut last = None;
    for part in parts {
        if let Some(between) = last.replace(part) {
            match rest.find(between) {
                Some(at) => rest = &rest[at + between.len()..],
                None => return false,
            }
        }
    }
    match last {
        None => rest.is_empty(),
        Some(end) => rest.ends_with(end),
    }
}

/// Restores the tables that `options.only` names into a new file or an existing database.
pub(crate) async fn restore_some(
    context: &EngineContext,
    backup: &dyn StreamSource,
    report: &BackupReport,
    target: PathBuf,
    options: &RestoreOptions,
) -> Result<RestoreReport, EngineError> {
    if let Some(done) = end_of_earlier(context, &target, options).await? {
        return Ok(done);
    }
    let data = EngineData::of(report)?;
    let whole = ScratchFile(
        context
            .scratch
            .join(format!("{}.whole.sqlite", file_name_part(context))),
    );
    // The copy in the scratch folder is gone with the attempt: nothing is to be gone on with.
    let mut working = context.clone();
    working.checkpoints = std::sync::Arc::new(Unrecorded);
    let mut done = restore::whole(
        &working,
        backup,
        report,
        whole.0.clone(),
        &RestoreOptions {
            overwrite: true,
            ..RestoreOptions::default()
        },
    )
    .await?;

    context.fence.check().await?;
    let exists = std::fs::metadata(&target).is_ok_and(|metadata| metadata.len() > 0);
    let writes_to = if exists {
        target.clone()
    } else {
        restore::require_free(&target, false)?;
        let part = restore::part_path(context, &target);
        context.artefacts.record(&file_artefact(&part)).await?;
        part
    };
    let halt = context.stop.child_token();
    let _stops_the_thread = halt.clone().drop_guard();
    let opened = writes_to.clone();
    let header = data.header.clone();
    let mut connection = blocking(move || {
        if exists {
            open_shared(&opened)
        } else {
            let connection = open_own(&opened)?;
            settle(&connection, &header).map_err(|error| refused(&opened, "making", error))?;
            Ok(connection)
        }
    })
    .await?;
    interrupt_when_halted(std::slice::from_ref(&connection), &halt);
    let copying = {
        let (only, overwrite) = (options.only.clone(), options.overwrite);
        let (shown, from, halt) = (target.clone(), whole.0.clone(), halt.clone());
        let (context, handle) = (context.clone(), Handle::current());
        blocking(move || {
            let copy = Copy {
                shown: &shown,
                only: &only,
                overwrite,
            };
            let before_each = |table: &str| {
                context.progress.item(table);
                check(&halt)
            };
            // What is committed to a database that was there cannot be told from what was in it.
            let before_commit = |rows| {
                done.rows = rows;
                let ending = Ending {
                    report: done.clone(),
                    file: None,
                };
                match exists {
                    true => handle.block_on(ending.save(&context)),
                    false => Ok(()),
                }
            };
            copy.run(&mut connection, &from, before_each, before_commit)?;
            connection
                .close()
                .map_err(|(_, error)| refused(&shown, "closing", error))?;
            Ok(done)
        })
        .await
    };
    context.check_stop()?;
    let done = copying?;
    if exists {
        return Ok(done);
    }
    let part = writes_to.clone();
    blocking(move || {
        std::fs::File::open(&part)
            .and_then(|file| file.sync_all())
            .map_err(|error| EngineError::local(format!("syncing {}", part.display()), error))
    })
    .await?;
    restore::end(context, done, writes_to, target, false).await
}

/// What an earlier attempt has done, where it came to its end: the file has its name, or the transaction was committed.
async fn end_of_earlier(
    context: &EngineContext,
    target: &Path,
    options: &RestoreOptions,
) -> Result<Option<RestoreReport>, EngineError> {
    let Some(ending) = Ending::load(context).await? else {
        return Ok(None);
    };
    if ending.file.is_some() {
        return restore::end_of_earlier(context, target, false).await;
    }
    let (target, only) = (target.to_path_buf(), options.only.clone());
    let is_committed = blocking(move || {
        let tables = open_shared(&target).and_then(|connection| {
            scan::tables(&connection).map_err(|error| refused(&target, "reading", error))
        })?;
        Ok(tables.iter().any(|table| matches(&only, &table.name)))
    })
    .await?;
    // What was to be overwritten was there before; doing it again gives the same.
    Ok((is_committed && !options.overwrite).then_some(ending.report))
}

/// Gives a new file the settings that the source had.
fn settle(connection: &Connection, header: &Header) -> rusqlite::Result<()> {
    connection.execute_batch(&format!(
        "PRAGMA page_size = {}; PRAGMA encoding = '{}'; PRAGMA auto_vacuum = {}; \
         PRAGMA application_id = {}; PRAGMA user_version = {};",
        header.page_bytes,
        header.encoding,
        header.auto_vacuum,
        header.application_id,
        header.user_version
    ))
}

struct Copy<'a> {
    /// The target, for messages.
    shown: &'a Path,
    only: &'a [String],
    overwrite: bool,
}

impl Copy<'_> {
    /// Copies the tables, in one transaction. Before it is committed, the number of rows is told.
    fn run(
        &self,
        connection: &mut Connection,
        from: &Path,
        mut before_each: impl FnMut(&str) -> Result<(), EngineError>,
        before_commit: impl FnOnce(u64) -> Result<(), EngineError>,
    ) -> Result<(), EngineError> {
        let asked = |error| refused(self.shown, "restoring tables into", error);
        let source = open_own(from)?;
        let tables: Vec<Table> = scan::tables(&source)
            .map_err(asked)?
            .into_iter()
            .filter(|table| !table.name.starts_with("sqlite_") && matches(self.only, &table.name))
            .collect();
        self.require_all_named(&source, &tables)?;
        drop(source);

        let from = from.to_string_lossy().into_owned();
        connection
            .execute("ATTACH ? AS backup", [&from])
            .map_err(asked)?;
        // Rows are taken as they are: what refers to a table that was not named is the caller's to know.
        let transaction = connection.transaction().map_err(asked)?;
        let mut rows = 0;
        for table in &tables {
            before_each(&table.name)?;
            rows += self.copy_table(&transaction, table)?;
        }
        before_commit(rows)?;
        transaction.commit().map_err(asked)?;
        connection.execute_batch("DETACH backup").map_err(asked)
    }

    /// Each pattern must mean something, and nothing that cannot be copied.
    fn require_all_named(&self, source: &Connection, tables: &[Table]) -> Result<(), EngineError> {
        let unknown = self.only.iter().find(|pattern| {
            !tables
                .iter()
                .any(|table| matches(std::slice::from_ref(pattern), &table.name))
        });
        let Some(pattern) = unknown else {
            return Ok(());
        };
        let virtual_one: bool = source
            .prepare("SELECT name FROM sqlite_schema WHERE type = 'table' AND rootpage = 0")
            .and_then(|mut statement| {
                statement
                    .query_map([], |row| row.get::<_, String>(0))?
                    .collect::<rusqlite::Result<Vec<_>>>()
            })
            .map_err(|error| refused(self.shown, "reading", error))?
            .iter()
            .any(|name| matches(std::slice::from_ref(pattern), name));
        Err(EngineError::Unusable {
            what: if virtual_one {
                format!("{pattern:?} is a virtual table, which cannot be restored alone")
            } else {
                format!("the backup holds no table {pattern:?}")
            },
            remedy: "`fettler show` lists the tables; restore the whole backup to a new file to look inside".to_owned(),
        })
    }

    fn copy_table(&self, connection: &Connection, table: &Table) -> Result<u64, EngineError> {
        let name = quoted(&table.name);
        let asked = |error| {
            refused(
                self.shown,
                &format!("restoring table {} into", table.name),
                error,
            )
        };
        let exists: bool = connection
            .query_row(
                "SELECT count(*) > 0 FROM main.sqlite_schema WHERE name = ? COLLATE NOCASE",
                [&table.name],
                |row| row.get(0),
            )
            .map_err(asked)?;
        if exists {
            if !self.overwrite {
                return Err(EngineError::NotEmpty {
                    what: format!(
                        "{} has a table {} already",
                        self.shown.display(),
                        table.name
                    ),
                    remedy: "restore to a new file, or say `--overwrite` to replace the table"
                        .to_owned(),
                });
            }
            connection
                .execute_batch(&format!("DROP TABLE main.{name}"))
                .map_err(asked)?;
        }
        // The table first; its indexes after the rows; its triggers last.
        let statements: Vec<(String, String)> = connection
            .prepare(
                "SELECT type, sql FROM backup.sqlite_schema \
                 WHERE tbl_name = ? COLLATE NOCASE AND sql IS NOT NULL AND type <> 'view' \
                 ORDER BY CASE type WHEN 'table' THEN 0 WHEN 'index' THEN 1 ELSE 2 END, rowid",
            )
            .and_then(|mut statement| {
                statement
                    .query_map([&table.name], |row| Ok((row.get(0)?, row.get(1)?)))?
                    .collect()
            })
            .map_err(asked)?;
        let (definitions, rest) = statements.split_at(1);
        connection.execute_batch(&definitions[0].1).map_err(asked)?;
        let columns = self.writable_columns(connection, table).map_err(asked)?;
        let rows = connection
            .execute(
                &format!(
                    "INSERT INTO main.{name} ({columns}) SELECT {columns} FROM backup.{name} NOT INDEXED"
                ),
                [],
            )
            .map_err(asked)?;
        for (_, sql) in rest {
            connection.execute_batch(sql).map_err(asked)?;
        }
        copy_sequence(connection, &table.name).map_err(asked)?;
        Ok(rows as u64)
    }

    /// The columns that are not computed, and the row number where it is not one of them.
    fn writable_columns(&self, connection: &Connection, table: &Table) -> rusqlite::Result<String> {
        let described: Vec<(String, bool)> = connection
            .prepare("SELECT name, pk > 0 AND lower(type) = 'integer' FROM pragma_table_xinfo(?1, 'backup') WHERE hidden = 0")?
            .query_map([&table.name], |row| Ok((row.get(0)?, row.get(1)?)))?
            .collect::<rusqlite::Result<_>>()?;
        let has_number_column = described.iter().any(|(_, is_number)| *is_number);
        Ok(table
            .row_number
            .filter(|_| !has_number_column)
            .map(str::to_owned)
            .into_iter()
            .chain(described.iter().map(|(column, _)| quoted(column)))
            .collect::<Vec<_>>()
            .join(", "))
    }
}

/// Lets AUTOINCREMENT go on where the source stood.
fn copy_sequence(connection: &Connection, table: &str) -> rusqlite::Result<()> {
    let both: i64 = connection.query_row(
        "SELECT (SELECT count(*) FROM main.sqlite_schema WHERE name = 'sqlite_sequence') \
              + (SELECT count(*) FROM backup.sqlite_schema WHERE name = 'sqlite_sequence')",
        [],
        |row| row.get(0),
    )?;
    if both == 2 {
        connection.execute("DELETE FROM main.sqlite_sequence WHERE name = ?", [table])?;
        connection.execute(
            "INSERT INTO main.sqlite_sequence (name, seq) \
             SELECT name, seq FROM backup.sqlite_sequence WHERE name = ?",
            [table],
        )?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::matches;

    #[test]
    fn a_pattern_means_tables_by_name_and_by_star() {
        let means = |pattern: &str, table: &str| matches(&[pattern.to_owned()], table);
        assert!(means("orders", "orders"));
        assert!(means("main.Orders", "orders"));
        assert!(means("order*", "order_items"));
        assert!(means("*_log", "web_log"));
        assert!(means("a*b*c", "a-b-b-c"));
        assert!(means("*", "anything"));
        assert!(!means("order", "orders"));
        assert!(!means("a*b*c", "a-c-b"));
        assert!(!means("ab*ba", "aba"));
        assert!(!matches(&[], "orders"));
    }
}
