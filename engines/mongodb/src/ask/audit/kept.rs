//! What is kept where: `PROFILES` gives a line for each database, with what the profiler has written there, and `FIELDS` one for
//! each collection whose indexes or validator name fields that are called as if they held secrets. Names are looked at, no values.

use std::collections::{BTreeMap, BTreeSet};

use bson::{Document, rawdoc};
use fettler_engine::Row;
use serde_json::{Value, json};

use super::{Asked, Failed, add, known, plain, unread};
use crate::ask::named::{OWN_DATABASES, and_more};

/// How deep a validator may describe fields within fields.
const MOST_DEPTH: usize = 16;
/// Names of fields that hold what nobody should read, without what parts their words.
const SECRETS: [&str; 15] = [
    "password",
    "passwd",
    "pwd",
    "passphrase",
    "secret",
    "clientsecret",
    "apikey",
    "privatekey",
    "cvv",
    "cvc",
    "creditcard",
    "creditcardnumber",
    "cardnumber",
    "iban",
    "ssn",
];

impl Asked {
    /// `PROFILES`.
    pub(super) async fn profiles(&mut self) -> Result<Vec<Row>, Failed> {
        let started = self.started_if_told().await?;
        let mut rows = Vec::new();
        for database in self.databases().await? {
            if OWN_DATABASES.contains(&database.as_str()) {
                continue;
            }
            let level = self.told_by(&database, rawdoc! { "profile": -1 }).await?;
            let counted = self
                .told_by(&database, rawdoc! { "count": "system.profile" })
                .await?;
            let (Some(level), Some(kept)) = (level["was"].as_i64(), counted["n"].as_i64()) else {
                return Err(unread("it does not tell what its profiler does"));
            };
            let mut row = Row::from_iter([
                ("database".to_owned(), json!(database)),
                ("level".to_owned(), json!(level)),
                ("kept".to_owned(), json!(kept)),
            ]);
            add(&mut row, started.as_ref(), &["hides_values"]);
            rows.push(row);
        }
        Ok(rows)
    }

    /// `FIELDS`.
    pub(super) async fn fields(&mut self) -> Result<Vec<Row>, Failed> {
        let (places, more) = self
            .collections()
            .await
            .map_err(|failed| known("listCollections", failed))?;
        let mut options: BTreeMap<(String, String), Value> = BTreeMap::new();
        let databases: BTreeSet<String> = places.iter().map(|(name, _)| name.clone()).collect();
        for database in databases {
            let listed = self
                .list(&database, rawdoc! { "listCollections": 1 })
                .await
                .map_err(|failed| known("listCollections", failed))?;
            for one in listed {
                let told = plain::document(&one);
                let name = told["name"].as_str().unwrap_or_default().to_owned();
                options.insert((database.clone(), name), told["options"].clone());
            }
        }
        let mut rows = Vec::new();
        for place in places {
            let indexes = self
                .list(&place.0, rawdoc! { "listIndexes": place.1.as_str() })
                .await
                .map_err(|failed| known("listIndexes", failed))?;
            let options = options.remove(&place).unwrap_or_default();
            let collection = format!("{}.{}", place.0, place.1);
            rows.extend(secrets_in(&indexes, &options).into_iter().map(|field| {
                Row::from_iter([
                    ("collection".to_owned(), json!(collection)),
                    ("field".to_owned(), json!(field)),
                ])
            }));
        }
        Ok(and_more(rows, more))
    }
}

/// Fields that are called as if they held secrets, by indexes and by the collection's validator. Those that clients encrypt are not
/// meant.
fn secrets_in(indexes: &[Document], options: &Value) -> BTreeSet<String> {
    let mut fields = BTreeSet::new();
    for index in indexes {
        if let Ok(keys) = index.get_document("key") {
            fields.extend(keys.keys().cloned());
        }
    }
    described(&options["validator"]["$jsonSchema"], "", 0, &mut fields);
    let encrypted = options["encryptedFields"]["fields"].as_array();
    for one in encrypted.into_iter().flatten() {
        if let Some(path) = one["path"].as_str() {
            fields.remove(path);
        }
    }
    fields.retain(|field| is_secret(field));
    fields
}

/// The fields that a JSON schema describes, with their paths.
fn described(schema: &Value, path: &str, depth: usize, fields: &mut BTreeSet<String>) {
    let Some(properties) = schema["properties"].as_object() else {
        return;
    };
    if depth == MOST_DEPTH {
        return;
    }
    for (name, inner) in properties {
        if inner.get("encrypt").is_some() {
            continue;
        }
        let path = if path.is_empty() {
            name.clone()
        } else {
            format!("{path}.{name}")
        };
        described(inner, &path, depth + 1, fields);
        fields.insert(path);
    }
}

fn is_secret(field: &str) -> bool {
    let last = field.rsplit('.').next().unwrap_or_default();
    let plain: String = last
        .chars()
        .filter(|letter| letter.is_alphanumeric())
        .flat_map(char::to_lowercase)
        .collect();
    SECRETS.contains(&plain.as_str())
}

#[cfg(test)]
mod tests {
    use bson::doc;

    use super::*;

    /// The documented form of `listIndexes` and `listCollections`, shortened.
    #[test]
    fn fields_are_told_by_their_names_and_not_where_clients_encrypt_them() {
        let indexes = [
            doc! { "name": "_id_", "key": { "_id": 1 } },
            doc! { "name": "a", "key": { "owner.apiKey": 1, "password_changed_at": 1, "iban": 1 } },
        ];
        let options = json!({
            "validator": {"$jsonSchema": {"properties": {
                "login": {"properties": {"Pass_Word": {}, "password": {"bsonType": "string"}}},
                "ssn": {"encrypt": {"bsonType": "string"}},
            }}},
            "encryptedFields": {"fields": [{"path": "iban", "bsonType": "string"}]},
        });
        let found: Vec<String> = secrets_in(&indexes, &options).into_iter().collect();
        assert_eq!(found, ["login.Pass_Word", "login.password", "owner.apiKey"]);
        assert!(secrets_in(&indexes[..1], &json!({})).is_empty());
    }
}
