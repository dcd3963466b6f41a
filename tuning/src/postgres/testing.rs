//! Facts for unit tests.

use super::facts::{Column, Facts, Index, Setting, Table};

/// Facts of these tables, on a server with the usual settings.
pub(crate) fn facts(tables: Vec<Table>) -> Facts {
    let mut facts = Facts {
        tables,
        ..Facts::default()
    };
    facts.server.version_num = 160_000;
    facts.server.stats_seconds = Some(90.0 * 86_400.0);
    facts.settings.insert(
        "random_page_cost".to_owned(),
        Setting {
            value: "1.1".to_owned(),
            ..Setting::default()
        },
    );
    facts
}

/// A table of a million rows whose first column is a key and whose others have ten times fewer values each.
pub(crate) fn table(oid: u32, name: &str, columns: &[&str]) -> Table {
    let rows = 1_000_000.0;
    Table {
        oid,
        schema: "public".to_owned(),
        name: name.to_owned(),
        kind: "r".to_owned(),
        rows,
        live: rows,
        pages: 20_000.0,
        bytes: 20_000.0 * 8192.0,
        columns: columns
            .iter()
            .zip(1..)
            .map(|(name, number)| Column {
                number,
                name: (*name).to_owned(),
                sortable: true,
                width: 8.0,
                distinct: if number == 1 {
                    -1.0
                } else {
                    rows / 10_f64.powi(number - 1)
                },
                statistics_target: -1,
                ..Column::default()
            })
            .collect(),
        ..Table::default()
    }
}

/// An index over columns of a table.
pub(crate) fn index(oid: u32, table: u32, key: &[i32]) -> Index {
    Index {
        oid,
        table,
        schema: "public".to_owned(),
        name: format!("index_{oid}"),
        method: "btree".to_owned(),
        valid: true,
        key: key.to_vec(),
        details: vec!["1 0 0".to_owned(); key.len()],
        definition: format!("CREATE INDEX index_{oid} ON public.t USING btree (…)"),
        bytes: 20e6,
        scans: 1.0,
        ..Index::default()
    }
}
