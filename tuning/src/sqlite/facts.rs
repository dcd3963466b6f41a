//! What a SQLite file says of itself: tables, their columns and indexes, what `ANALYZE` has found, pragmas.

use fettler_engine::{EngineError, Line, StatementError, Workbench};

/// A part of an index's key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Part {
    /// The column, or nothing for the row's number or an expression.
    pub(super) column: Option<String>,
    pub(super) descends: bool,
    pub(super) collation: String,
}

/// An index.
#[derive(Clone, Debug)]
pub(super) struct Index {
    pub(super) name: String,
    pub(super) unique: bool,
    /// Whether a user made it, rather than a constraint.
    pub(super) is_users: bool,
    pub(super) partial: bool,
    pub(super) sql: String,
    pub(super) key: Vec<Part>,
}

/// A table.
#[derive(Clone, Debug)]
pub(super) struct Table {
    pub(super) name: String,
    /// About, where the file was too large to count.
    pub(super) rows: f64,
    pub(super) columns: Vec<String>,
    pub(super) indexes: Vec<Index>,
    /// What `ANALYZE` has found: index and numbers.
    pub(super) statistics: Vec<(Option<String>, String)>,
}

impl Table {
    /// How many rows it had when it was analysed.
    pub(super) fn rows_known(&self) -> Option<f64> {
        self.statistics
            .iter()
            .filter_map(|(_, stat)| stat.split(' ').next()?.parse::<f64>().ok())
            .reduce(f64::max)
    }
}

/// All of it.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    pub(super) version: String,
    pub(super) tables: Vec<Table>,
    pub(super) has_statistics: bool,
    /// Whether samples of values were kept too.
    pub(super) has_samples: bool,
    pub(super) page_size: f64,
    pub(super) pages: f64,
    pub(super) free_pages: f64,
    pub(super) journal_mode: String,
    pub(super) auto_vacuum: f64,
}

pub(super) fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

pub(super) fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

pub(super) async fn lines(bench: &mut dyn Workbench, sql: &str) -> Result<Vec<Line>, EngineError> {
    bench
        .run(sql)
        .await
        .map_err(|error| error.doing("looking at the database"))
}

fn text(line: &Line, at: usize) -> String {
    line.get(at).cloned().flatten().unwrap_or_default()
}

fn number(line: &Line, at: usize) -> f64 {
    text(line, at).parse().unwrap_or(0.0)
}

async fn pragma(bench: &mut dyn Workbench, name: &str) -> Result<String, EngineError> {
    let told = lines(bench, &format!("PRAGMA {name}")).await?;
    Ok(told.first().map(|line| text(line, 0)).unwrap_or_default())
}

/// Asks. Where there is a whole copy, rows are counted there.
pub(super) async fn collect(
    bench: &mut dyn Workbench,
    is_copied: bool,
) -> Result<Facts, EngineError> {
    let version = lines(bench, "SELECT sqlite_version()").await?;
    let of_number = |text: String| text.parse::<f64>().unwrap_or(0.0);
    let mut facts = Facts {
        version: version
            .first()
            .map(|line| text(line, 0))
            .unwrap_or_default(),
        tables: Vec::new(),
        has_statistics: false,
        has_samples: false,
        page_size: of_number(pragma(bench, "page_size").await?),
        pages: of_number(pragma(bench, "page_count").await?),
        free_pages: of_number(pragma(bench, "freelist_count").await?),
        journal_mode: pragma(bench, "journal_mode").await?,
        auto_vacuum: of_number(pragma(bench, "auto_vacuum").await?),
    };
    let listed = lines(
        bench,
        "SELECT name FROM pragma_table_list WHERE schema = 'main' AND type = 'table' AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\'
         ORDER BY name",
    )
    .await?;
    for line in &listed {
        facts
            .tables
            .push(table(bench, text(line, 0), is_copied).await?);
    }
    let known = lines(
        bench,
        "SELECT name FROM sqlite_schema WHERE name IN ('sqlite_stat1', 'sqlite_stat4')",
    )
    .await?;
    facts.has_statistics = known.iter().any(|line| text(line, 0) == "sqlite_stat1");
    if facts.has_statistics {
        for line in lines(bench, "SELECT tbl, idx, stat FROM sqlite_stat1").await? {
            let of = text(&line, 0);
            if let Some(table) = facts.tables.iter_mut().find(|table| table.name == of) {
                let index = line.get(1).cloned().flatten();
                table.statistics.push((index, text(&line, 2)));
            }
        }
    }
    if known.iter().any(|line| text(line, 0) == "sqlite_stat4") {
        let samples = lines(bench, "SELECT 1 FROM sqlite_stat4 LIMIT 1").await?;
        facts.has_samples = !samples.is_empty();
    }
    Ok(facts)
}

async fn table(
    bench: &mut dyn Workbench,
    name: String,
    is_copied: bool,
) -> Result<Table, EngineError> {
    let at = literal(&name);
    let columns = lines(
        bench,
        &format!("SELECT name FROM pragma_table_xinfo({at}) WHERE hidden = 0 ORDER BY cid"),
    )
    .await?;
    let listed = lines(
        bench,
        &format!(
            "SELECT l.name, l.\"unique\", l.origin, l.partial, s.sql FROM pragma_index_list({at}) l
             LEFT JOIN sqlite_schema s ON s.type = 'index' AND s.name = l.name ORDER BY l.name"
        ),
    )
    .await?;
    let mut indexes = Vec::new();
    for line in &listed {
        let index = text(line, 0);
        let key = lines(
            bench,
            &format!(
                "SELECT name, \"desc\", coll FROM pragma_index_xinfo({}) WHERE key = 1 ORDER BY seqno",
                literal(&index)
            ),
        )
        .await?;
        indexes.push(Index {
            name: index,
            unique: number(line, 1) > 0.0,
            is_users: text(line, 2) == "c",
            partial: number(line, 3) > 0.0,
            sql: text(line, 4),
            key: key
                .iter()
                .map(|part| Part {
                    column: part.first().cloned().flatten(),
                    descends: number(part, 1) > 0.0,
                    collation: text(part, 2),
                })
                .collect(),
        });
    }
    // The largest number of a row is found at once, and says how many there are at most.
    let counted = if is_copied {
        format!("TRY SELECT count(*) FROM main.{}", quote(&name))
    } else {
        format!("SELECT max(rowid) FROM main.{}", quote(&name))
    };
    let rows = match bench.run(&counted).await {
        Ok(told) => told.first().map_or(0.0, |line| number(line, 0)),
        // A table without numbers of rows.
        Err(StatementError::Refused { .. }) => 0.0,
        Err(StatementError::Lost(error)) => return Err(error),
    };
    Ok(Table {
        name,
        rows,
        columns: columns.iter().map(|line| text(line, 0)).collect(),
        indexes,
        statistics: Vec::new(),
    })
}
