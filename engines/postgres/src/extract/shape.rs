//! What a column's values are made of: enough to write their binary form as text without asking a server.

use serde::{Deserialize, Serialize};

/// The type of a column, down to types that are built in. Domains are what they stand on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Shape {
    /// A built-in type by its name in `pg_type`.
    Plain(String),
    /// A label; stands as text in binary too.
    Enum,
    /// Values of one type.
    Array(Box<Self>),
    /// A range of values.
    Range(Box<Self>),
    /// Several ranges.
    Multirange(Box<Self>),
    /// Fields.
    Composite(Vec<Self>),
}

impl Shape {
    /// The letter between the elements of an array: boxes have commas inside.
    pub(crate) fn delimiter(&self) -> u8 {
        match self {
            Self::Plain(name) if name == "box" => b';',
            _ => b',',
        }
    }
}
