//! Words of questions by which an audit keeps how a server is, to see later what has changed. Each gives one line: names with how
//! they are. What stands behind the character 1 is a definition, of which the audit keeps a digest.
//!
//! - `KEPT USERS`: the roles that a user was given, and how it logs in;
//! - `KEPT ROLES`: those that somebody made, with their privileges;
//! - `KEPT SETTINGS`: options of the start, and the parameters as they are now; of passwords whether they are set;
//! - `KEPT MEMBERS`: of the replica set;
//! - `KEPT SCHEMA`: collections, views and indexes.

use std::collections::{BTreeMap, BTreeSet};

use bson::{Document, rawdoc};
use fettler_engine::{Row, line_of_items};
use serde_json::{Map, Value};

use super::{Asked, Failed, known, plain, unread, users::roles_in};
use crate::{
    ask::named::OWN_DATABASES,
    catalog::{NO_INDEX_OPTIONS, NO_OPTIONS},
    sandbox,
};

/// What an answer has beside parameters.
const OF_THE_ANSWER: [&str; 4] = ["ok", "$clusterTime", "operationTime", "lastCommittedOpTime"];

type Items = BTreeMap<String, String>;

impl Asked {
    /// `KEPT USERS`.
    pub(super) async fn kept_users(&mut self) -> Result<Vec<Row>, Failed> {
        let users = self.all_users().await?;
        let items = users
            .iter()
            .map(|user| (format!("user {}", user.id()), user.state()));
        Ok(line_of_items(&items.collect()))
    }

    /// `KEPT ROLES`.
    pub(super) async fn kept_roles(&mut self) -> Result<Vec<Row>, Failed> {
        let roles = self.all_roles().await?;
        Ok(line_of_items(&roles.iter().filter_map(role_of).collect()))
    }

    /// `KEPT SETTINGS`.
    pub(super) async fn kept_settings(&mut self) -> Result<Vec<Row>, Failed> {
        let started = self.started().await?;
        let mut items = Items::new();
        flatten("option ", &started.options, &mut items);
        for (name, value) in started.parameters.as_object().into_iter().flatten() {
            if !OF_THE_ANSWER.contains(&name.as_str()) {
                flatten(&format!("parameter {name}"), value, &mut items);
            }
        }
        Ok(line_of_items(&items))
    }

    /// `KEPT MEMBERS`.
    pub(super) async fn kept_members(&mut self) -> Result<Vec<Row>, Failed> {
        let config = self.command(r#"{"replSetGetConfig": 1}"#).await?;
        let members = config["config"]["members"]
            .as_array()
            .ok_or_else(|| unread("the set's configuration cannot be read"))?;
        Ok(line_of_items(
            &members.iter().filter_map(member_of).collect(),
        ))
    }

    /// `KEPT SCHEMA`.
    pub(super) async fn kept_schema(&mut self) -> Result<Vec<Row>, Failed> {
        let mut items = Items::new();
        for database in self.databases().await? {
            if OWN_DATABASES.contains(&database.as_str()) || sandbox::is_some_scratch(&database) {
                continue;
            }
            let listed = self
                .list(&database, rawdoc! { "listCollections": 1 })
                .await
                .map_err(|failed| known("listCollections", failed))?;
            for collection in listed {
                let Ok(name) = collection.get_str("name") else {
                    continue;
                };
                if name.starts_with("system.") {
                    continue;
                }
                let kind = collection.get_str("type").unwrap_or("collection");
                let place = format!("{database}.{name}");
                let options = collection.get_document("options").cloned();
                items.insert(
                    format!("{kind} {place}"),
                    defined(kind, &options.unwrap_or_default(), &NO_OPTIONS),
                );
                if kind == "view" {
                    continue;
                }
                let indexes = self
                    .list(&database, rawdoc! { "listIndexes": name })
                    .await
                    .map_err(|failed| known("listIndexes", failed))?;
                items.extend(indexes.iter().filter_map(|index| index_of(&place, index)));
            }
        }
        Ok(line_of_items(&items))
    }
}

fn role_of(role: &Value) -> Option<(String, String)> {
    let name = format!("role {}@{}", role["role"].as_str()?, role["db"].as_str()?);
    let inherited: BTreeSet<String> = roles_in(&role["roles"])
        .map(|(role, of)| format!("{role}@{of}"))
        .collect();
    let inherited: Vec<String> = inherited.into_iter().collect();
    let privileges: BTreeSet<String> = role["privileges"]
        .as_array()
        .into_iter()
        .flatten()
        .map(Value::to_string)
        .collect();
    let privileges: Vec<String> = privileges.into_iter().collect();
    Some((
        name,
        format!(
            "has {}; privileges \u{1}{}{}",
            if inherited.is_empty() {
                "no roles".to_owned()
            } else {
                inherited.join(", ")
            },
            privileges.join(","),
            role["authenticationRestrictions"],
        ),
    ))
}

/// An option or a parameter, and what lies in it, by its path.
fn flatten(path: &str, value: &Value, items: &mut Items) {
    if let Value::Object(inner) = value {
        let is_first = path.ends_with(' ');
        for (name, value) in inner {
            let dot = if is_first { "" } else { "." };
            flatten(&format!("{path}{dot}{name}"), value, items);
        }
        return;
    }
    let lower = path.to_ascii_lowercase();
    let state = match value {
        Value::Null => "not set".to_owned(),
        Value::String(text) if text.is_empty() => "not set".to_owned(),
        _ if lower.contains("passw") || lower.contains("secret") => "set".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    items.insert(path.to_owned(), state);
}

fn member_of(member: &Value) -> Option<(String, String)> {
    const TOLD: [&str; 6] = [
        "priority",
        "votes",
        "hidden",
        "arbiterOnly",
        "secondaryDelaySecs",
        "slaveDelay",
    ];
    let told: Vec<String> = TOLD
        .iter()
        .filter(|name| !member[**name].is_null())
        .map(|name| format!("{name} {}", member[*name]))
        .collect();
    Some((
        format!("member {}", member["host"].as_str()?),
        told.join(", "),
    ))
}

fn index_of(place: &str, index: &Document) -> Option<(String, String)> {
    let name = index.get_str("name").ok()?;
    let keys = plain::document(index.get_document("key").ok()?);
    let left_out = [&NO_INDEX_OPTIONS[..], &["key", "name"]].concat();
    Some((
        format!("index {place} {name}"),
        defined(&format!("keys {keys}"), index, &left_out),
    ))
}

/// What it is, with its options where it has some.
fn defined(what: &str, options: &Document, left_out: &[&str]) -> String {
    let Value::Object(options) = plain::document(options) else {
        return what.to_owned();
    };
    let told: Map<String, Value> = options
        .into_iter()
        .filter(|(name, _)| !left_out.contains(&name.as_str()))
        .collect();
    if told.is_empty() {
        what.to_owned()
    } else {
        format!("{what}, options \u{1}{}", Value::Object(told))
    }
}

#[cfg(test)]
mod tests {
    use bson::doc;
    use serde_json::json;

    use super::*;

    #[test]
    fn of_a_password_it_is_kept_whether_it_is_set() {
        let mut items = Items::new();
        let options = json!({"net": {"port": 27017, "tls": {"certificateKeyFilePassword": "Wq7ByLd2"}}, "security": {"ldap": {"bind": {"queryPassword": ""}}}});
        flatten("option ", &options, &mut items);
        flatten("parameter tlsMode", &json!("requireTLS"), &mut items);
        let items: Vec<(&str, &str)> = items
            .iter()
            .map(|(name, state)| (name.as_str(), state.as_str()))
            .collect();
        assert_eq!(
            items,
            [
                ("option net.port", "27017"),
                ("option net.tls.certificateKeyFilePassword", "set"),
                ("option security.ldap.bind.queryPassword", "not set"),
                ("parameter tlsMode", "requireTLS"),
            ]
        );
    }

    #[test]
    fn an_index_is_told_with_its_keys_and_what_makes_it_another() {
        let plain = index_of(
            "shop.a",
            &doc! { "v": 2, "key": { "n": 1 }, "name": "n_1", "ns": "shop.a" },
        );
        assert_eq!(
            plain.unwrap(),
            ("index shop.a n_1".to_owned(), "keys {\"n\":1}".to_owned())
        );
        let unique = index_of(
            "shop.a",
            &doc! { "v": 2, "key": { "n": 1 }, "name": "n_1", "unique": true },
        );
        assert_eq!(
            unique.unwrap().1,
            "keys {\"n\":1}, options \u{1}{\"unique\":true}"
        );
    }

    /// The documented form of `rolesInfo` and of `replSetGetConfig` of MongoDB 7.0, shortened.
    #[test]
    fn roles_and_members_are_told_in_an_order_of_their_own() {
        let role = |privileges: Value| {
            role_of(
                &json!({"role": "ops", "db": "admin", "roles": [{"role": "read", "db": "b"}, {"role": "read", "db": "a"}], "privileges": privileges}),
            )
        };
        let (one, two) = (
            json!({"resource": {"cluster": true}, "actions": ["shutdown"]}),
            json!({"resource": {"db": "shop", "collection": ""}, "actions": ["find"]}),
        );
        let (name, state) = role(json!([one, two])).unwrap();
        assert_eq!(name, "role ops@admin");
        assert!(
            state.starts_with("has read@a, read@b; privileges \u{1}"),
            "{state}"
        );
        assert_eq!(role(json!([two, one])).unwrap().1, state);
        assert_ne!(role(json!([two])).unwrap().1, state);
        let member = json!({"_id": 0, "host": "db1:27017", "priority": 0, "votes": 0, "hidden": true, "tags": {}});
        assert_eq!(
            member_of(&member).unwrap(),
            (
                "member db1:27017".to_owned(),
                "priority 0, votes 0, hidden true".to_owned()
            )
        );
    }
}
