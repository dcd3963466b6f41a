//! One table of a backup as CSV or SQL, without a server: what COPY wrote is read again ([`rows`]), and values of its binary
//! form become the text that the server itself would write ([`value`]).

mod moments;
mod numbers;
pub(crate) mod rows;
mod search;
mod shape;
mod value;

use fettler_engine::{
    BackupReport, EngineContext, EngineError, ExtractFormat, ExtractReport, Extraction, PartWriter,
    StreamSource, no_such_part, put_csv_value, several_parts,
};
use futures::TryStreamExt as _;
use tokio::io::AsyncWrite;

use crate::{
    copy::Format,
    data::{BackupData, TableData},
    names::{Pattern, literal, qualified, quote_ident},
};

use rows::{Row, Rows, put_escaped};
use value::{Malformed, Read};

pub(crate) use shape::Shape;

/// The forms, the usual one first.
pub(crate) const FORMATS: [ExtractFormat; 2] = [ExtractFormat::Csv, ExtractFormat::Sql];

/// Writes a table.
pub(crate) async fn extract(
    context: &EngineContext,
    backup: &dyn StreamSource,
    report: &BackupReport,
    what: &Extraction,
    out: &mut (dyn AsyncWrite + Send + Unpin),
) -> Result<ExtractReport, EngineError> {
    let data = BackupData::of(report)?;
    let tables = chosen(&data, &what.part)?;
    let mut writer = PartWriter::new(context, out);
    let first = tables[0];
    begin(first, &data.encoding, what.format, &mut writer.buffer);
    let mut room = Vec::new();
    for table in &tables {
        // In the order of the table's pages, in which their numbers are.
        let mut streams: Vec<&String> = table.streams.iter().collect();
        streams.sort_unstable();
        for name in streams {
            let malformed = |error: Malformed| EngineError::Unusable {
                what: format!(
                    "{} in the stream {name} cannot be read: {}",
                    table.display(),
                    error.0
                ),
                remedy: "run `fettler verify` on the backup, and restore the table instead"
                    .to_owned(),
            };
            let mut rows = Rows::new(table.rows_as);
            let mut pieces = backup.read(name).await?;
            while let Some(piece) = pieces.try_next().await? {
                rows.feed(&piece);
                while let Some(row) = rows.next().map_err(malformed)? {
                    put_row(row, table, what.format, &mut room, &mut writer.buffer)
                        .map_err(malformed)?;
                    writer.rows += 1;
                    writer.settle().await?;
                }
            }
            if !rows.is_whole() {
                return Err(malformed(Malformed("it ends in the middle of a row")));
            }
        }
    }
    if what.format == ExtractFormat::Sql {
        writer.buffer.extend_from_slice(b"\\.\n");
    }
    writer.finish().await
}

/// The table of this name with all its partitions that are restored through it; one table otherwise.
fn chosen<'a>(data: &'a BackupData, part: &str) -> Result<Vec<&'a TableData>, EngineError> {
    let mut names: Vec<String> = data.tables.iter().map(TableData::compared_as).collect();
    names.sort_unstable();
    names.dedup();
    let name = if names.iter().any(|name| name == part) {
        part.to_owned()
    } else {
        let pattern = Pattern::parse(part);
        let mut meant: Vec<String> = data
            .tables
            .iter()
            .filter(|table| match &table.through {
                Some((schema, name)) => pattern.matches(schema, name),
                None => pattern.matches(&table.schema, &table.name),
            })
            .map(TableData::compared_as)
            .collect();
        meant.sort_unstable();
        meant.dedup();
        match meant.as_slice() {
            [] => return Err(no_such_part(part, &names)),
            [one] => one.clone(),
            several => return Err(several_parts(part, several)),
        }
    };
    let tables: Vec<&TableData> = data
        .tables
        .iter()
        .filter(|table| table.compared_as() == name)
        .collect();
    if tables.iter().all(|table| table.excluded) {
        return Err(EngineError::Missing {
            code: "part",
            what: format!("the rows of {name} were left out of the backup"),
            remedy: "take a backup that does not exclude it".to_owned(),
        });
    }
    let old = |table: &&&TableData| {
        table.rows_as == Format::Binary && table.shapes.len() != table.columns.len()
    };
    if let Some(table) = tables.iter().find(old) {
        return Err(EngineError::Missing {
            code: "types",
            what: format!(
                "the backup does not say which types {} has: an earlier version of Fettler made it",
                table.display()
            ),
            remedy: "restore the table with `fettler restore --only`, or take another backup"
                .to_owned(),
        });
    }
    Ok(tables)
}

/// What stands before the rows.
fn begin(table: &TableData, encoding: &str, format: ExtractFormat, to: &mut Vec<u8>) {
    if format != ExtractFormat::Sql {
        let alone = table.columns.len() == 1;
        for (number, column) in table.columns.iter().enumerate() {
            if number > 0 {
                to.push(b',');
            }
            put_csv_value(column.as_bytes(), alone, to);
        }
        to.push(b'\n');
        return;
    }
    let name = match &table.through {
        Some((schema, name)) => qualified(schema, name),
        None => table.quoted(),
    };
    let columns: Vec<String> = table.columns.iter().map(|name| quote_ident(name)).collect();
    let columns = if columns.is_empty() {
        String::new()
    } else {
        format!(" ({})", columns.join(", "))
    };
    to.extend_from_slice(
        format!(
            "SET client_encoding = {};\nSET standard_conforming_strings = on;\nSET DateStyle = 'ISO, YMD';\n\
             SET IntervalStyle = 'postgres';\nSET lc_monetary = 'C';\n\nCOPY {name}{columns} FROM stdin;\n",
            literal(encoding)
        )
        .as_bytes(),
    );
}

fn put_row(
    row: Row<'_>,
    table: &TableData,
    format: ExtractFormat,
    room: &mut Vec<u8>,
    to: &mut Vec<u8>,
) -> Read<()> {
    match (format, row) {
        // It stands there already.
        (ExtractFormat::Sql, Row::Text(line)) => to.extend_from_slice(line),
        (ExtractFormat::Sql, row) => row.values(&table.shapes, room, |column, value| {
            if column > 0 {
                to.push(b'\t');
            }
            match value {
                None => to.extend_from_slice(b"\\N"),
                Some(value) => put_escaped(value, to),
            }
        })?,
        // A line without anything is a row without columns, or one with a single empty text.
        (_, Row::Text(_)) if table.columns.is_empty() => {}
        (_, row) => {
            let alone = table.columns.len() == 1;
            row.values(&table.shapes, room, |column, value| {
                if column > 0 {
                    to.push(b',');
                }
                if let Some(value) = value {
                    put_csv_value(value, alone, to);
                }
            })?;
        }
    }
    to.push(b'\n');
    Ok(())
}
