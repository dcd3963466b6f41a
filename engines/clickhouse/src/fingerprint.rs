//! The fingerprint of rows, made by the server: their number, and a sum over a hash of each.
//!
//! `sum(cityHash64(*))`, which is often seen, skips each row that holds a NULL and leaves MATERIALIZED columns out. Here a row
//! becomes one text without ambiguity over a named list of columns, and its SipHash of 128 bits is summed over 256. The text
//! begins with a salt that is made from the tenant's key: whoever writes rows cannot look for two with one hash. The key
//! itself never leaves this process, and the statement is kept out of the server's log of statements.
//!
//! Servers from before `formatRow` (some ten years of them have it) make the text column by column, with lengths.

use fettler_engine::EngineError;
use fettler_model::Fingerprint;
use serde::{Deserialize, Serialize};

use crate::{
    http::{Session, Setting},
    sql::{literal, quoted},
};

/// The first version that has all of `formatRow`, `UInt256` and `sipHash128` of any text.
const BINARY_SINCE: (u32, u32) = (21, 8);
/// Separates this use of the fingerprint key from all others.
const CONTEXT: &str = "fettler clickhouse row salt 1";
/// Bytes of the salt.
const SALT_BYTES: usize = 16;
/// Settings under which rows are hashed as they are.
pub(crate) const AS_STORED: [Setting; 7] = [
    ("log_queries", "0"),
    ("final", "0"),
    ("max_result_rows", "0"),
    ("max_execution_time", "0"),
    ("max_rows_to_read", "0"),
    ("max_bytes_to_read", "0"),
    ("additional_result_filter", ""),
];

/// How a row becomes a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum RowForm {
    /// `formatRow('RowBinary', …)`.
    Binary,
    /// Each column's text with its length.
    Text,
}

impl RowForm {
    /// The best that a server has.
    pub(crate) fn of_version(version: (u32, u32)) -> Self {
        if version >= BINARY_SINCE {
            Self::Binary
        } else {
            Self::Text
        }
    }

    /// What a backup calls it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Binary => "clickhouse-siphash128-rowbinary",
            Self::Text => "clickhouse-siphash128-text",
        }
    }

    /// The form of this name.
    pub(crate) fn of_name(name: &str) -> Option<Self> {
        [Self::Binary, Self::Text]
            .into_iter()
            .find(|form| form.name() == name)
    }
}

/// A column's name and type.
pub(crate) type NameAndType<'a> = (&'a str, &'a str);

/// Makes fingerprints of one tenant.
#[derive(Clone)]
pub(crate) struct RowHash {
    form: RowForm,
    salt: [u8; SALT_BYTES],
}

impl std::fmt::Debug for RowHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RowHash({:?}, ***)", self.form)
    }
}

impl RowHash {
    pub(crate) fn new(form: RowForm, fingerprint_key: &[u8; 32]) -> Self {
        let key = blake3::derive_key(CONTEXT, fingerprint_key);
        let mut salt = [0; SALT_BYTES];
        salt.copy_from_slice(&key[..SALT_BYTES]);
        Self { form, salt }
    }

    /// What says that two fingerprints were made alike; tells nothing of the salt.
    pub(crate) fn identity(&self) -> String {
        let digest = blake3::derive_key("fettler clickhouse row salt identity", &self.salt);
        format!("{}:{}", self.form.name(), hex::encode(&digest[..8]))
    }

    /// The fingerprint of what a table's rows are, or those for which a condition holds.
    pub(crate) async fn of(
        &self,
        session: &Session,
        table: &str,
        columns: &[NameAndType<'_>],
        condition: Option<&str>,
        doing: &str,
    ) -> Result<Fingerprint, EngineError> {
        let sql = self.query(table, columns, condition);
        let rows = session
            .try_rows(&sql, &AS_STORED, doing)
            .await?
            .map_err(|refusal| refusal.doing(&session.server(), doing))?;
        rows.first()
            .and_then(|row| read(self.form, row))
            .ok_or_else(|| EngineError::Database {
                what: format!("{doing}: {} answers no sum", session.server()),
                transient: false,
            })
    }

    /// The hash of one row as an expression, of servers that hash rows as bytes.
    pub(crate) fn of_row(&self, columns: &[NameAndType<'_>]) -> String {
        let names: Vec<String> = columns.iter().map(|(name, _)| quoted(name)).collect();
        format!(
            "sipHash128(concat(unhex('{}'), formatRow('RowBinary', {})))",
            hex::encode_upper(self.salt),
            names.join(", ")
        )
    }

    fn query(&self, table: &str, columns: &[NameAndType<'_>], condition: Option<&str>) -> String {
        let condition = condition.map_or_else(String::new, |text| format!(" WHERE {text}"));
        match self.form {
            RowForm::Binary => {
                let row = self.of_row(columns);
                format!(
                    "SELECT toString(count()), toString(sum(toUInt256(reinterpretAsUInt128({row})))) FROM {table}{condition}",
                )
            }
            RowForm::Text => {
                let salt = hex::encode_upper(self.salt);
                let parts: Vec<String> = columns.iter().map(column_text).collect();
                let limbs: Vec<String> = [1, 5, 9, 13]
                    .iter()
                    .map(|from| {
                        format!(
                            "toString(sum(toUInt64(reinterpretAsUInt32(substring(h, {from}, 4)))))"
                        )
                    })
                    .collect();
                format!(
                    "SELECT toString(count()), {limbs} FROM (SELECT sipHash128(concat({salt}, {parts})) AS h FROM {table}{condition})",
                    limbs = limbs.join(", "),
                    salt = literal(&salt),
                    parts = parts.join(", "),
                )
            }
        }
    }
}

/// A column's text with its length: nothing that another column could begin with.
fn column_text((name, kind): &NameAndType<'_>) -> String {
    let name = quoted(name);
    let (inner, is_nullable) = match kind
        .strip_prefix("Nullable(")
        .and_then(|rest| rest.strip_suffix(')'))
    {
        Some(inner) => (inner, true),
        None => (*kind, false),
    };
    let value = if is_nullable {
        format!("assumeNotNull({name})")
    } else {
        name.clone()
    };
    // An hour that comes twice has one text and two numbers.
    let text = if inner.starts_with("DateTime") && !inner.starts_with("DateTime64") {
        format!("toString(toUInt32({value}))")
    } else if inner == "String" {
        value
    } else {
        format!("toString({value})")
    };
    let with_length = format!("concat(toString(length({text})), concat(':', {text}))");
    if is_nullable {
        format!("if(isNull({name}), '-', {with_length})")
    } else {
        with_length
    }
}

/// Reads the answer.
fn read(form: RowForm, row: &[String]) -> Option<Fingerprint> {
    let rows: u64 = row.first()?.parse().ok()?;
    let sum = match form {
        RowForm::Binary => limbs_of_decimal(row.get(1)?)?,
        RowForm::Text => {
            let mut sum = [0u64; 4];
            for (at, limb) in row.get(1..5)?.iter().enumerate() {
                let value = u128::from(limb.parse::<u64>().ok()?) << (32 * (at % 2));
                add(&mut sum, at / 2, value);
            }
            sum
        }
    };
    let digits: String = sum
        .iter()
        .rev()
        .map(|limb| format!("{limb:016x}"))
        .collect();
    format!("{rows}:{digits}").parse().ok()
}

/// Adds to a sum, from a limb on.
fn add(sum: &mut [u64; 4], from: usize, value: u128) {
    let mut carry = value;
    for limb in &mut sum[from..] {
        carry += u128::from(*limb);
        *limb = carry as u64;
        carry >>= 64;
    }
}

/// A number of up to 256 bits, least significant limb first.
fn limbs_of_decimal(text: &str) -> Option<[u64; 4]> {
    let mut limbs = [0u64; 4];
    for digit in text.chars() {
        let mut carry = u128::from(digit.to_digit(10)?);
        for limb in &mut limbs {
            carry += u128::from(*limb) * 10;
            *limb = carry as u64;
            carry >>= 64;
        }
        if carry > 0 {
            return None;
        }
    }
    (!text.is_empty()).then_some(limbs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_of_256_bits_are_read() {
        let text = "115792089237316195423570985008687907853269984665640564039457584007913129639935";
        assert_eq!(limbs_of_decimal(text), Some([u64::MAX; 4]));
        assert_eq!(limbs_of_decimal("18446744073709551616"), Some([0, 1, 0, 0]));
        assert_eq!(limbs_of_decimal(&format!("{text}0")), None);
        assert_eq!(limbs_of_decimal(""), None);
    }

    #[test]
    fn limbs_that_overflow_carry_into_the_next() {
        let row = |limbs: [u64; 4]| -> Vec<String> {
            std::iter::once(3)
                .chain(limbs)
                .map(|n: u64| n.to_string())
                .collect()
        };
        let sum = read(RowForm::Text, &row([1 << 40, 0, 0, 1 << 33])).unwrap();
        assert_eq!(
            sum.to_string(),
            format!("3:{:016x}{:016x}{:016x}{:016x}", 0, 2, 0, 1u64 << 40)
        );
        assert_eq!(read(RowForm::Text, &["1".to_owned()]), None);
    }

    #[test]
    fn the_salt_is_in_the_statement_and_the_key_is_not() {
        let key = [7; 32];
        let hash = RowHash::new(RowForm::Binary, &key);
        let sql = hash.query("`d`.`t`", &[("a", "UInt8"), ("b", "String")], Some("1"));
        assert!(sql.contains("formatRow('RowBinary', `a`, `b`)"), "{sql}");
        assert!(!sql.contains(&hex::encode(key)) && !sql.contains(&hex::encode_upper(key)));
        assert_ne!(
            hash.identity(),
            RowHash::new(RowForm::Binary, &[8; 32]).identity()
        );
    }

    #[test]
    fn a_null_is_no_text_that_a_value_can_have() {
        let text = column_text(&("a", "Nullable(String)"));
        assert!(text.starts_with("if(isNull(`a`), '-', concat(toString(length("));
        assert!(column_text(&("d", "DateTime")).contains("toUInt32"));
    }
}
