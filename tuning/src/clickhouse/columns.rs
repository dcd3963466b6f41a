//! Types and codecs of columns, measured on a sample of each.

use fettler_engine::{EngineError, Workbench};
use fettler_model::Severity;
use serde_json::json;

use super::{OWN, asked, number, quote, text};
use crate::advice::{Advice, Said, size};

/// A table with fewer rows is quick whatever its types are.
const MANY_ROWS: f64 = 500_000.0;
/// A column with fewer bytes, uncompressed, is none that matters.
const MANY_BYTES: f64 = 2.0 * 1_048_576.0;
/// How many rows of a column are looked at.
const SAMPLE: u32 = 200_000;
/// How many columns are looked at, at most.
const MOST_COLUMNS: usize = 200;
/// Up to how many different values a dictionary pays (the documentation of `LowCardinality`), and which share of all.
const MOST_DICTIONARY: f64 = 10_000.0;
const DICTIONARY_SHARE: f64 = 0.01;
/// How many times smaller a column must get for another codec to be worth a word.
const BETTER_CODEC: f64 = 1.5;

struct Column {
    place: String,
    table: String,
    name: String,
    kind: String,
    compressed: f64,
    uncompressed: f64,
    in_key: bool,
    has_codec: bool,
}

pub(super) async fn look(
    advice: &mut Advice,
    bench: &mut dyn Workbench,
) -> Result<(), EngineError> {
    let columns = match columns(bench).await? {
        Ok(columns) => columns,
        Err(why) => {
            advice.unknown("columns", "sizes of columns are not told", &why);
            return Ok(());
        }
    };
    let mut is_codec_known = true;
    for column in &columns {
        let inner = column
            .kind
            .strip_prefix("Nullable(")
            .map_or(column.kind.as_str(), |rest| rest.trim_end_matches(')'));
        if column.kind.starts_with("Nullable(") {
            nullable(advice, bench, column).await?;
        }
        if inner == "String" {
            dictionary(advice, bench, column).await?;
        } else if let Some((is_signed, bits)) = integer(inner)
            && narrower(advice, bench, column, is_signed, bits).await?
        {
            // Another codec would spare the same bits.
            continue;
        }
        let is_series =
            integer(inner).is_some_and(|(_, bits)| bits >= 32) || inner.starts_with("DateTime");
        if is_series && !column.has_codec && is_codec_known {
            is_codec_known = codec(advice, bench, column).await?;
        }
    }
    for check in ["nullable", "dictionary", "integers"] {
        advice.seen(check);
    }
    if is_codec_known {
        advice.seen("codec");
    }
    Ok(())
}

/// The large columns of large tables.
async fn columns(bench: &mut dyn Workbench) -> Result<Result<Vec<Column>, String>, EngineError> {
    let sql = |codec: &str, key: &str| {
        format!(
            "SELECT database, table, name, type, data_compressed_bytes, data_uncompressed_bytes, {key}, {codec} FROM system.columns
             WHERE database NOT IN {OWN} AND data_uncompressed_bytes >= {MANY_BYTES} AND (database, table) IN
               (SELECT database, table FROM system.parts WHERE active GROUP BY database, table HAVING sum(rows) >= {MANY_ROWS})
             ORDER BY data_uncompressed_bytes DESC LIMIT {MOST_COLUMNS}"
        )
    };
    let mut found = asked(bench, &sql("compression_codec", "is_in_sorting_key")).await?;
    if found.is_err() {
        found = asked(bench, &sql("''", "0")).await?;
    }
    Ok(found.map(|lines| {
        lines
            .iter()
            .map(|line| Column {
                place: format!("{}.{}.{}", text(line, 0), text(line, 1), text(line, 2)),
                table: format!("{}.{}", quote(&text(line, 0)), quote(&text(line, 1))),
                name: quote(&text(line, 2)),
                kind: text(line, 3),
                compressed: number(line, 4),
                uncompressed: number(line, 5),
                in_key: number(line, 6) > 0.0,
                has_codec: !text(line, 7).is_empty(),
            })
            .collect()
    }))
}

/// Signed or not, and bits, of a whole number's type.
fn integer(kind: &str) -> Option<(bool, u32)> {
    let (is_signed, bits) = match kind.strip_prefix("UInt") {
        Some(bits) => (false, bits),
        None => (true, kind.strip_prefix("Int")?),
    };
    Some((is_signed, bits.parse().ok()?))
}

/// Asks something of a sample: the first rows that the server comes across.
async fn of_sample(
    bench: &mut dyn Workbench,
    column: &Column,
    what: &str,
) -> Result<Option<Vec<f64>>, EngineError> {
    let sql = format!(
        "SELECT {what} FROM (SELECT {} AS c FROM {} LIMIT {SAMPLE}) SETTINGS max_execution_time = 10",
        column.name, column.table
    );
    Ok(asked(bench, &sql).await?.ok().and_then(|lines| {
        let line = lines.first()?;
        Some((0..line.len()).map(|at| number(line, at)).collect())
    }))
}

fn changed(column: &Column, kind: &str) -> Vec<String> {
    if column.in_key {
        return Vec::new();
    }
    vec![format!(
        "ALTER TABLE {} MODIFY COLUMN {} {kind}",
        column.table, column.name
    )]
}

fn evidence(column: &Column, more: &serde_json::Value) -> serde_json::Value {
    let mut all = json!({"type": column.kind, "compressed": column.compressed, "uncompressed": column.uncompressed, "sample_rows": SAMPLE});
    if let (Some(all), Some(more)) = (all.as_object_mut(), more.as_object()) {
        all.extend(more.clone());
    }
    all
}

async fn nullable(
    advice: &mut Advice,
    bench: &mut dyn Workbench,
    column: &Column,
) -> Result<(), EngineError> {
    // The map of what is null is a small column of its own: all of it is counted.
    let sql = format!(
        "SELECT count() FROM {} WHERE isNull({}) SETTINGS max_execution_time = 10",
        column.table, column.name
    );
    let Ok(lines) = asked(bench, &sql).await? else {
        return Ok(());
    };
    if lines.first().is_none_or(|line| number(line, 0) > 0.0) {
        return Ok(());
    }
    let inner = column.kind.trim_start_matches("Nullable(");
    let inner = inner.strip_suffix(')').unwrap_or(inner);
    advice.find(Said {
        check: "nullable",
        object: &column.place,
        severity: Severity::Low,
        title: format!("{} may be null, and never is", column.place),
        evidence: evidence(column, &json!({"nulls": 0})),
        why: "What may be null is kept beside a second column that says whether it is; both are read, and functions go the slower way.",
        fix: "Where null will not come, take it from the type (a default such as 0 or '' stands for nothing). The column is written anew.",
        commands: changed(column, inner),
    });
    Ok(())
}

async fn dictionary(
    advice: &mut Advice,
    bench: &mut dyn Workbench,
    column: &Column,
) -> Result<(), EngineError> {
    let Some(told) = of_sample(bench, column, "uniq(c), count()").await? else {
        return Ok(());
    };
    let [values, rows] = told.as_slice() else {
        return Ok(());
    };
    if *rows < 1000.0 || *values > MOST_DICTIONARY || *values > rows * DICTIONARY_SHARE {
        return Ok(());
    }
    let kind = if column.kind.starts_with("Nullable(") {
        "LowCardinality(Nullable(String))"
    } else {
        "LowCardinality(String)"
    };
    advice.find(Said {
        check: "dictionary",
        object: &column.place,
        severity: Severity::Low,
        title: format!("{} has {values:.0} different values in {rows:.0} rows", column.place),
        evidence: evidence(column, &json!({"values": values, "rows": rows})),
        why: "With a dictionary each value is a small number: less is read and unpacked, and filters and groups compare numbers. It pays up to about ten thousand values.",
        fix: "Make it a LowCardinality. The column is written anew; queries stay as they are.",
        commands: changed(column, kind),
    });
    Ok(())
}

/// Whether it could be narrower.
async fn narrower(
    advice: &mut Advice,
    bench: &mut dyn Workbench,
    column: &Column,
    is_signed: bool,
    bits: u32,
) -> Result<bool, EngineError> {
    if !(32..=64).contains(&bits) {
        return Ok(false);
    }
    // All of it: what a sample does not show would not fit.
    let sql = format!(
        "SELECT toFloat64(min({0})), toFloat64(max({0})) FROM {1} SETTINGS max_execution_time = 10",
        column.name, column.table
    );
    let Ok(lines) = asked(bench, &sql).await? else {
        return Ok(false);
    };
    let Some(line) = lines.first() else {
        return Ok(false);
    };
    let (least, most) = (number(line, 0), number(line, 1));
    let wanted = [8_u32, 16, 32].into_iter().find(|wanted| {
        let power = 2_f64.powi(i32::try_from(*wanted).unwrap_or(0));
        // With room to grow: four times what is there.
        if is_signed && least < 0.0 {
            least * 4.0 >= -power / 2.0 && most * 4.0 < power / 2.0
        } else {
            most * 4.0 < power
        }
    });
    // Half as wide is hardly worth writing a table anew: packed, what is not used takes little room.
    let Some(wanted) = wanted.filter(|wanted| bits >= wanted * 4) else {
        return Ok(false);
    };
    let kind = format!(
        "{}Int{wanted}",
        if is_signed && least < 0.0 { "" } else { "U" }
    );
    let kind = if column.kind.starts_with("Nullable(") {
        format!("Nullable({kind})")
    } else {
        kind
    };
    advice.find(Said {
        check: "integers",
        object: &column.place,
        severity: Severity::Info,
        title: format!("{} has {bits} bits for values from {least:.0} to {most:.0}", column.place),
        evidence: evidence(column, &json!({"least": least, "most": most})),
        why: "Packed on disk the unused bits take little room; unpacked, in memory, in groups and joins they take all of it.",
        fix: "Where what the numbers mean cannot outgrow it, make it narrower. The column is written anew.",
        commands: changed(column, &kind),
    });
    Ok(true)
}

/// Whether the server can say how well a codec would pack.
async fn codec(
    advice: &mut Advice,
    bench: &mut dyn Workbench,
    column: &Column,
) -> Result<bool, EngineError> {
    const CODECS: [&str; 3] = ["Delta, ZSTD", "DoubleDelta, ZSTD", "T64, ZSTD"];
    let asks: Vec<String> = std::iter::once("estimateCompressionRatio('LZ4')(c)".to_owned())
        .chain(
            CODECS
                .iter()
                .map(|codec| format!("estimateCompressionRatio('{codec}')(c)")),
        )
        .collect();
    let Some(told) = of_sample(bench, column, &asks.join(", ")).await? else {
        return Ok(false);
    };
    let Some((usual, others)) = told.split_first() else {
        return Ok(true);
    };
    let best = CODECS
        .iter()
        .zip(others)
        .max_by(|a, b| a.1.total_cmp(b.1))
        .filter(|(_, ratio)| {
            **ratio > usual.max(column.uncompressed / column.compressed.max(1.0)) * BETTER_CODEC
        });
    let saved = best.map_or(0.0, |(_, ratio)| {
        column.compressed - column.uncompressed / ratio
    });
    if let Some((codec, ratio)) = best
        && saved >= MANY_BYTES / 2.0
    {
        advice.find(Said {
            check: "codec",
            object: &column.place,
            severity: Severity::Low,
            title: format!("{} would take {} less with the codec {codec}", column.place, size(saved)),
            evidence: evidence(column, &json!({"codec": codec, "ratio": ratio, "ratio_of_lz4": usual})),
            why: "Values that grow, or differ little from the one before, pack far better as differences. The server measured it on the sample.",
            fix: "Set the codec; it holds for parts that are written from then on, and for the others once they are merged (or `OPTIMIZE TABLE … FINAL`).",
            commands: changed(column, &format!("CODEC({})", codec.replace("ZSTD", "ZSTD(1)"))),
        });
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::integer;

    #[test]
    fn whole_numbers_are_told_by_their_types() {
        assert_eq!(integer("UInt64"), Some((false, 64)));
        assert_eq!(integer("Int32"), Some((true, 32)));
        for other in ["String", "Interval", "Float64", "UInt"] {
            assert_eq!(integer(other), None, "{other}");
        }
    }
}
