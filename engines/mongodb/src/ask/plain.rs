//! BSON as plain JSON, for what is judged and not for what is kept: numbers are numbers, moments are seconds.

use bson::{Bson, Document};
use serde_json::{Map, Value, json};

/// A document.
pub(crate) fn document(document: &Document) -> Value {
    Value::Object(
        document
            .iter()
            .map(|(name, one)| (name.clone(), value(one)))
            .collect::<Map<_, _>>(),
    )
}

/// A value. What has no plain form (bytes, code) is null.
fn value(one: &Bson) -> Value {
    match one {
        Bson::Double(number) => plain_number(*number),
        Bson::Int32(number) => json!(number),
        Bson::Int64(number) => json!(number),
        Bson::String(text) | Bson::Symbol(text) => json!(text),
        Bson::Boolean(flag) => json!(flag),
        Bson::Document(inner) => document(inner),
        Bson::Array(items) => Value::Array(items.iter().map(value).collect()),
        Bson::DateTime(moment) => {
            let milliseconds = moment.timestamp_millis();
            if milliseconds % 1000 == 0 {
                json!(milliseconds / 1000)
            } else {
                json!(milliseconds as f64 / 1000.0)
            }
        }
        Bson::Timestamp(moment) => json!(moment.time),
        Bson::ObjectId(id) => json!(id.to_hex()),
        Bson::Decimal128(number) => number
            .to_string()
            .parse::<f64>()
            .map_or(Value::Null, |number| json!(number)),
        Bson::RegularExpression(pattern) => json!({
            "$regex": pattern.pattern.to_string(),
            "$options": pattern.options.to_string(),
        }),
        _ => Value::Null,
    }
}

/// The server writes many counts and sizes as doubles; an expression does not mix them with whole numbers.
fn plain_number(number: f64) -> Value {
    const LARGEST_EXACT: f64 = 9_007_199_254_740_992.0;
    if number.fract() == 0.0 && number.abs() <= LARGEST_EXACT {
        json!(number as i64)
    } else {
        json!(number)
    }
}

/// A command that was written as JSON: numbers are as small as they can be.
pub(crate) fn bson(fields: &Map<String, Value>) -> Document {
    fields
        .iter()
        .map(|(name, value)| (name.clone(), bson_of(value)))
        .collect()
}

fn bson_of(value: &Value) -> Bson {
    match value {
        Value::Null => Bson::Null,
        Value::Bool(flag) => Bson::Boolean(*flag),
        Value::Number(number) => match number.as_i64() {
            Some(whole) => i32::try_from(whole).map_or(Bson::Int64(whole), Bson::Int32),
            None => Bson::Double(number.as_f64().unwrap_or(f64::NAN)),
        },
        Value::String(text) => Bson::String(text.clone()),
        Value::Array(items) => Bson::Array(items.iter().map(bson_of).collect()),
        Value::Object(inner) => Bson::Document(bson(inner)),
    }
}

#[cfg(test)]
mod tests {
    use bson::{DateTime, Timestamp, doc};

    use super::*;

    #[test]
    fn moments_are_seconds_and_numbers_stay_whole() {
        let told = document(&doc! {
            "long": i64::MAX,
            "uptime": 864_000.0,
            "ratio": 0.5,
            "at": DateTime::from_millis(1500),
            "on": DateTime::from_millis(2000),
            "ts": Timestamp { time: 7, increment: 3 },
            "list": [{"a": 1}],
        });
        assert_eq!(
            told,
            json!({"long": i64::MAX, "uptime": 864_000, "ratio": 0.5, "at": 1.5, "on": 2, "ts": 7, "list": [{"a": 1}]})
        );
    }
}
