//! Expressions over a line of an answer, in the Common Expression Language (CEL): no loops without end, no side effects, and
//! an error instead of a guess where a value is missing or of another type.

use std::{collections::HashMap, fmt, sync::Arc};

use cel::{
    Context, Program,
    objects::{Key, Map, Value as CelValue},
};
use fettler_engine::Row;
use serde_json::Value;
use thiserror::Error;

/// An expression cannot be read, or a line cannot be judged by it.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{0}")]
pub struct ExpressionError(String);

/// The name under which an expression knows the line.
const ROW: &str = "row";

/// An expression that is true or false of a line, which it calls `row`.
#[derive(Clone)]
pub struct Expression {
    source: String,
    program: Arc<Program>,
}

impl fmt::Debug for Expression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Expression").field(&self.source).finish()
    }
}

impl Expression {
    /// Reads an expression.
    ///
    /// # Errors
    ///
    /// When it is no CEL, or names something else than `row`.
    pub fn read(source: &str) -> Result<Self, ExpressionError> {
        let program = Program::compile(source).map_err(|error| {
            ExpressionError(
                format!("it is no expression: {error}")
                    .trim_end()
                    .to_owned(),
            )
        })?;
        if let Some(other) = program
            .references()
            .variables()
            .into_iter()
            .find(|name| *name != ROW)
        {
            return Err(ExpressionError(format!(
                "it names {other:?}, and only `row` is known: write `row.{other}` for a value of the line"
            )));
        }
        Ok(Self {
            source: source.to_owned(),
            program: Arc::new(program),
        })
    }

    /// As it was written.
    #[must_use]
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Whether it is true of a line.
    ///
    /// # Errors
    ///
    /// When a value that it needs is missing, empty or of another type, or the answer is no truth value.
    pub fn holds(&self, row: &Row) -> Result<bool, ExpressionError> {
        let mut context = Context::default();
        context.add_variable_from_value(ROW, of_row(row));
        match self.program.execute(&context) {
            Ok(CelValue::Bool(answer)) => Ok(answer),
            Ok(_) => Err(ExpressionError(format!(
                "`{}` is neither true nor false",
                self.source
            ))),
            Err(error) => Err(ExpressionError(format!("`{}`: {error}", self.source))),
        }
    }
}

fn of_row(row: &Row) -> CelValue {
    let map: HashMap<Key, CelValue> = row
        .iter()
        .map(|(name, value)| (Key::from(name.as_str()), of_json(value)))
        .collect();
    CelValue::Map(Map { map: Arc::new(map) })
}

/// Whole numbers stay whole: an LSN or a size beyond 2^53 would be another number as a float.
fn of_json(value: &Value) -> CelValue {
    match value {
        Value::Null => CelValue::Null,
        Value::Bool(value) => CelValue::Bool(*value),
        Value::Number(number) => number
            .as_i64()
            .map(CelValue::Int)
            .or_else(|| number.as_u64().map(CelValue::UInt))
            .unwrap_or_else(|| CelValue::Float(number.as_f64().unwrap_or(f64::NAN))),
        Value::String(text) => CelValue::String(Arc::new(text.clone())),
        Value::Array(items) => CelValue::List(Arc::new(items.iter().map(of_json).collect())),
        Value::Object(fields) => of_row(fields),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn holds(source: &str, row: &Value) -> Result<bool, ExpressionError> {
        Expression::read(source)
            .unwrap()
            .holds(row.as_object().unwrap())
    }

    #[test]
    fn numbers_beyond_what_a_float_holds_are_compared_exactly() {
        let lsn = json!({"a": 9_007_199_254_740_993_i64, "b": 9_007_199_254_740_992_i64});
        assert!(holds("row.a > row.b", &lsn).unwrap());
        let large = json!({"a": u64::MAX, "b": u64::MAX - 1, "c": -1});
        assert!(holds("row.a > row.b", &large).unwrap());
        assert!(holds("row.c < row.a", &large).unwrap());
    }

    #[test]
    fn whole_numbers_and_fractions_are_compared_with_each_other() {
        assert!(holds("row.f > 80", &json!({"f": 80.5})).unwrap());
        assert!(holds("row.n >= 80.5", &json!({"n": 81})).unwrap());
        assert!(holds("row.s == 'on' && !row.b", &json!({"s": "on", "b": false})).unwrap());
    }

    #[test]
    fn what_is_missing_empty_or_of_another_type_is_an_error_and_not_false() {
        for row in [json!({}), json!({"n": null}), json!({"n": "7"})] {
            assert!(holds("row.n > 5", &row).is_err(), "{row}");
        }
        assert!(holds("row.n", &json!({"n": 5})).is_err());
    }

    #[test]
    fn a_text_that_is_no_expression_or_knows_more_than_a_line_is_refused() {
        assert!(Expression::read("row.n >").is_err());
        let error = Expression::read("age > 5").unwrap_err().to_string();
        assert!(error.contains("`row.age`"), "{error}");
    }
}
