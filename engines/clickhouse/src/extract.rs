//! One table of a backup, or one of its partitions, in ClickHouse's format Native: as it is stored, part after part.

use fettler_engine::{
    BackupReport, EngineContext, EngineError, ExtractFormat, ExtractReport, Extraction, PartWriter,
    StreamSource, no_such_part, several_parts,
};
use futures::TryStreamExt as _;
use tokio::io::AsyncWrite;

use crate::{
    backup::{BackupData, Definitions, TableRecord},
    catalogue::Content,
    restore::read_definitions,
    select::{Chosen, Selection},
};

/// The form.
pub(crate) const FORMATS: [ExtractFormat; 1] = [ExtractFormat::Native];

/// Writes a table.
pub(crate) async fn extract(
    context: &EngineContext,
    backup: &dyn StreamSource,
    report: &BackupReport,
    what: &Extraction,
    out: &mut (dyn AsyncWrite + Send + Unpin),
) -> Result<ExtractReport, EngineError> {
    if let Some(own) = BackupData::of(report)?.own {
        return Err(EngineError::Missing {
            code: "part",
            what: format!(
                "the rows of this backup are in the server's own, {} in {}",
                own.name, own.place
            ),
            remedy: "restore the table under another name of its database (`--only shop.orders --to clickhouse://host/other`), and take from it what you need".to_owned(),
        });
    }
    let definitions = read_definitions(backup).await?;
    let (table, chosen) = chosen(&definitions, &what.part)?;
    let parts: Vec<_> = table
        .parts
        .iter()
        .filter(|part| match &chosen {
            Chosen::Partitions(names) => names
                .iter()
                .any(|name| *name == part.partition_id || *name == part.partition),
            _ => true,
        })
        .collect();
    if let Chosen::Partitions(_) = &chosen
        && parts.is_empty()
    {
        let name = table.definition.full_name();
        let mut names: Vec<String> = table
            .parts
            .iter()
            .map(|part| format!("{name}/{}", part.partition_id))
            .collect();
        names.sort_unstable();
        names.dedup();
        return Err(no_such_part(&what.part, &names));
    }
    let mut writer = PartWriter::new(context, out);
    for part in parts {
        // A stream is blocks one after another, and so are several.
        let mut pieces = backup.read(&part.stream).await?;
        while let Some(piece) = pieces.try_next().await? {
            writer.pass(&piece).await?;
        }
        writer.rows += part.rows;
    }
    writer.finish().await
}

/// The one table that is meant, and what of it.
fn chosen<'a>(
    definitions: &'a Definitions,
    part: &str,
) -> Result<(&'a TableRecord, Chosen), EngineError> {
    let names: Vec<String> = definitions
        .tables
        .iter()
        .map(|table| table.definition.full_name())
        .collect();
    if let Some(at) = names.iter().position(|name| name == part) {
        return with_rows(&definitions.tables[at]).map(|table| (table, Chosen::Everything));
    }
    let selection = Selection::of(&[part.to_owned()])?;
    let mut meant: Vec<(usize, Chosen)> = names
        .iter()
        .enumerate()
        .map(|(at, name)| (at, selection.of_table(name)))
        .filter(|(_, chosen)| *chosen != Chosen::Nothing)
        .collect();
    match meant.len() {
        0 => Err(no_such_part(part, &names)),
        1 => {
            let (at, chosen) = meant.remove(0);
            with_rows(&definitions.tables[at]).map(|table| (table, chosen))
        }
        _ => {
            let names: Vec<&String> = meant.iter().map(|(at, _)| &names[*at]).collect();
            Err(several_parts(part, &names))
        }
    }
}

/// Refuses what has no rows in the backup.
fn with_rows(table: &TableRecord) -> Result<&TableRecord, EngineError> {
    let name = table.definition.full_name();
    let has_rows = matches!(table.definition.content, Content::Parts | Content::Plain);
    let (what, remedy) = if table.is_excluded {
        (
            format!("the rows of {name} were left out of the backup"),
            "take a backup that does not exclude it",
        )
    } else if !has_rows {
        (
            format!(
                "{name} ({}) has no rows of its own",
                table.definition.engine
            ),
            "name the table that it reads",
        )
    } else {
        return Ok(table);
    };
    Err(EngineError::Missing {
        code: "part",
        what,
        remedy: remedy.to_owned(),
    })
}
