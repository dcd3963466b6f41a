//! Roles that somebody made: `ROLES` gives a line for each, with what it allows itself and whether anybody has it.

use std::collections::BTreeSet;

use bson::rawdoc;
use fettler_engine::Row;
use serde_json::{Value, json};

use super::{
    Asked, Failed, add, unread,
    users::{Rights, User, roles_in},
};

impl Asked {
    /// `ROLES`.
    pub(super) async fn roles(&mut self) -> Result<Vec<Row>, Failed> {
        let users = self.all_users().await?;
        let roles = self.all_roles().await?;
        Ok(rows_of(&roles, &users))
    }

    /// All roles that somebody made, as `rolesInfo` tells them.
    pub(super) async fn all_roles(&mut self) -> Result<Vec<Value>, Failed> {
        let users = self.all_users().await?;
        // Roles stay when their database is dropped: those that users have are looked for too.
        let mut databases: BTreeSet<String> = self.databases().await?.into_iter().collect();
        databases.extend(users.iter().map(|user| user.database.clone()));
        databases.extend(
            users
                .iter()
                .flat_map(User::roles)
                .map(|(_, database)| database),
        );
        databases.insert("admin".to_owned());
        // There are none in these.
        databases.remove("$external");
        databases.remove("local");
        databases.remove("config");
        let mut roles = Vec::new();
        for database in &databases {
            let command =
                rawdoc! { "rolesInfo": 1, "showPrivileges": true, "showBuiltinRoles": false };
            let mut told = self.told_by(database, command).await?;
            match told["roles"].take() {
                Value::Array(some) => roles.extend(some),
                _ => return Err(unread("it does not list its roles")),
            }
        }
        Ok(roles)
    }

    /// `UNUSED ROLES`: those of `ROLES` that nobody has, with whether a directory gives roles as well.
    pub(super) async fn unused_roles(&mut self) -> Result<Vec<Row>, Failed> {
        let started = self.started().await?;
        let mut rows = self.roles().await?;
        rows.retain(|row| row["is_given"] == false);
        for row in &mut rows {
            add(row, Some(&started), &["by_directory"]);
        }
        Ok(rows)
    }
}

fn rows_of(roles: &[Value], users: &[User]) -> Vec<Row> {
    let mut given: BTreeSet<(String, String)> = users.iter().flat_map(User::roles).collect();
    given.extend(roles.iter().flat_map(|role| roles_in(&role["roles"])));
    roles
        .iter()
        .filter_map(|role| {
            let name = role["role"].as_str()?;
            let database = role["db"].as_str()?;
            let rights = Rights(&role["privileges"]);
            let is_given = given.contains(&(name.to_owned(), database.to_owned()));
            Some(Row::from_iter([
                ("role".to_owned(), json!(format!("{name}@{database}"))),
                ("name".to_owned(), json!(name)),
                ("database".to_owned(), json!(database)),
                ("is_given".to_owned(), json!(is_given)),
                ("may_everything".to_owned(), json!(rights.may_everything())),
                ("is_internal".to_owned(), json!(rights.is_internal())),
                (
                    "may_change_users".to_owned(),
                    json!(rights.may_change_users()),
                ),
                (
                    "writes_own".to_owned(),
                    json!(rights.writes_own().join(", ")),
                ),
            ]))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The documented form of `rolesInfo` with `showPrivileges` of MongoDB 7.0, shortened.
    #[test]
    fn a_role_is_given_by_users_and_by_other_roles_and_judged_by_its_own_privileges() {
        let role = |name: &str, privileges: Value, roles: Value| {
            json!({"_id": format!("admin.{name}"), "role": name, "db": "admin", "isBuiltin": false, "roles": roles,
                "inheritedRoles": roles, "privileges": privileges,
                "inheritedPrivileges": [{"resource": {"anyResource": true}, "actions": ["anyAction"]}]})
        };
        let rows = rows_of(
            &[
                role("inner", json!([]), json!([])),
                role(
                    "outer",
                    json!([{"resource": {"db": "config", "collection": ""}, "actions": ["insert"]}]),
                    json!([{"role": "inner", "db": "admin"}]),
                ),
                role(
                    "whole",
                    json!([{"resource": {"anyResource": true}, "actions": ["anyAction"]}]),
                    json!([]),
                ),
            ],
            &[],
        );
        let of = |name: &str| rows.iter().map(|row| row[name].clone()).collect::<Vec<_>>();
        assert_eq!(json!(of("is_given")), json!([true, false, false]));
        assert_eq!(json!(of("may_everything")), json!([false, false, true]));
        assert_eq!(json!(of("writes_own")), json!(["", "config", ""]));
    }
}
