//! Users: `USERS` gives a line for each, with what it may do by all of its roles, and `ENFORCED` one line that says whether that
//! means anything. No hash of a password is asked for here.

use std::collections::BTreeSet;

use bson::{RawArrayBuf, RawDocumentBuf, rawdoc};
use fettler_engine::Row;
use serde_json::{Value, json};

use super::{Asked, Failed, add, unread};

/// Users that are looked at.
const MOST_USERS: usize = 500;
/// Users that one command names.
const USERS_AT_ONCE: usize = 100;
/// Databases that hold the server's own state.
pub(super) const SERVERS_OWN: [&str; 3] = ["admin", "config", "local"];

/// A user, as `usersInfo` tells it, without credentials.
#[derive(Clone, Debug)]
pub(super) struct User {
    pub(super) name: String,
    pub(super) database: String,
    told: Value,
}

impl User {
    fn of(told: Value) -> Option<Self> {
        Some(Self {
            name: told["user"].as_str()?.to_owned(),
            database: told["db"].as_str()?.to_owned(),
            told,
        })
    }

    /// Its name in findings: `app@shop`.
    pub(super) fn id(&self) -> String {
        format!("{}@{}", self.name, self.database)
    }

    /// The roles that it was given, and those that they bring.
    pub(super) fn roles(&self) -> BTreeSet<(String, String)> {
        roles_in(&self.told["roles"])
            .chain(roles_in(&self.told["inheritedRoles"]))
            .collect()
    }

    /// The roles that it was given itself.
    fn given(&self) -> String {
        let roles = roles_in(&self.told["roles"]);
        let names: Vec<String> = roles.map(|(role, of)| format!("{role}@{of}")).collect();
        names.join(", ")
    }

    fn mechanisms(&self) -> String {
        let names = self.told["mechanisms"].as_array().into_iter().flatten();
        let names: Vec<&str> = names.filter_map(Value::as_str).collect();
        names.join(", ")
    }

    /// What it was given, as an audit keeps it. Behind the character 1 are the addresses from which it may log in.
    pub(super) fn state(&self) -> String {
        let mut given: BTreeSet<String> = self.given().split(", ").map(str::to_owned).collect();
        given.remove("");
        let given: Vec<String> = given.into_iter().collect();
        let mut state = format!(
            "roles {}; logs in by {}",
            given.join(", "),
            self.mechanisms()
        );
        if self.is_superuser() {
            state.push_str("; superuser");
        }
        if let Some(list) = self.told["authenticationRestrictions"].as_array()
            && !list.is_empty()
        {
            state.push_str(&format!("; from \u{1}{}", json!(list)));
        }
        state
    }

    fn rights(&self) -> Rights<'_> {
        Rights(&self.told["inheritedPrivileges"])
    }

    pub(super) fn is_superuser(&self) -> bool {
        let roles = self.roles();
        let has = |role: &str| roles.contains(&(role.to_owned(), "admin".to_owned()));
        has("root") || has("__system") || self.rights().may_everything()
    }
}

/// The roles that a list names, with their databases.
pub(super) fn roles_in(list: &Value) -> impl Iterator<Item = (String, String)> {
    list.as_array().into_iter().flatten().filter_map(|one| {
        Some((
            one["role"].as_str()?.to_owned(),
            one["db"].as_str()?.to_owned(),
        ))
    })
}

/// Privileges: what may be done, and with what.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rights<'a>(pub(super) &'a Value);

impl Rights<'_> {
    fn any(self, holds: impl Fn(&Value, &dyn Fn(&str) -> bool) -> bool) -> bool {
        self.0.as_array().into_iter().flatten().any(|privilege| {
            let has = |action: &str| {
                privilege["actions"].as_array().is_some_and(|actions| {
                    actions
                        .iter()
                        .any(|one| one == action || one == "anyAction")
                })
            };
            holds(&privilege["resource"], &has)
        })
    }

    /// Whether one of the actions is allowed on all databases.
    fn everywhere(self, actions: &[&str]) -> bool {
        self.any(|resource, has| {
            is_everything(resource) && actions.iter().any(|action| has(action))
        })
    }

    /// Whether one of the actions is allowed on a whole database, or on the collection that is named.
    fn in_database(self, database: &str, collection: &str, actions: &[&str]) -> bool {
        self.any(|resource, has| {
            let is_there = resource["db"] == database
                && (resource["collection"] == "" || resource["collection"] == collection);
            is_there && actions.iter().any(|action| has(action))
        })
    }

    fn on_cluster(self, action: &str) -> bool {
        self.any(|resource, has| {
            (resource["cluster"] == true || resource["anyResource"] == true) && has(action)
        })
    }

    pub(super) fn may_everything(self) -> bool {
        self.any(|resource, has| resource["anyResource"] == true && has("anyAction"))
    }

    /// Whoever gives roles of `admin`, or sets the passwords of its users, is whatever it wants to be.
    pub(super) fn may_change_users(self) -> bool {
        const ACTIONS: [&str; 2] = ["grantRole", "changePassword"];
        self.everywhere(&ACTIONS) || self.in_database("admin", "", &ACTIONS)
    }

    /// What only members of a cluster do among themselves.
    pub(super) fn is_internal(self) -> bool {
        self.on_cluster("internal")
    }

    /// The server's own databases that it may write to.
    pub(super) fn writes_own(self) -> Vec<&'static str> {
        const ACTIONS: [&str; 4] = ["insert", "update", "remove", "dropCollection"];
        SERVERS_OWN
            .into_iter()
            .filter(|database| self.in_database(database, "", &ACTIONS))
            .collect()
    }

    fn writes_everywhere(self) -> bool {
        self.everywhere(&["insert", "update", "remove"])
    }

    fn reads_everywhere(self) -> bool {
        self.everywhere(&["find"])
    }

    fn reads_oplog(self) -> bool {
        self.in_database("local", "oplog.rs", &["find"])
    }
}

/// All databases, or all there is.
fn is_everything(resource: &Value) -> bool {
    resource["anyResource"] == true || (resource["db"] == "" && resource["collection"] == "")
}

impl Asked {
    /// All users with their rights; asked for once.
    pub(super) async fn all_users(&mut self) -> Result<Vec<User>, Failed> {
        if let Some(known) = &self.audit.users {
            return known.clone().map_err(Failed::Refused);
        }
        let told = self.ask_for_users().await;
        match &told {
            Ok(users) => self.audit.users = Some(Ok(users.clone())),
            Err(Failed::Refused(refusal)) => self.audit.users = Some(Err(refusal.clone())),
            Err(Failed::Lost(_)) => {}
        }
        told
    }

    async fn ask_for_users(&mut self) -> Result<Vec<User>, Failed> {
        let all = rawdoc! { "usersInfo": { "forAllDBs": true } };
        let listed = users_in(self.told_by("admin", all).await?)?;
        if listed.len() > MOST_USERS {
            return Err(unread(format!(
                "it has {} users, and {MOST_USERS} are looked at",
                listed.len()
            )));
        }
        // Rights and restrictions are told of users that are named, and not of all.
        let mut users = Vec::with_capacity(listed.len());
        for some in listed.chunks(USERS_AT_ONCE) {
            let mut names = RawArrayBuf::new();
            for user in some {
                names.push(rawdoc! { "user": user.name.as_str(), "db": user.database.as_str() });
            }
            let mut command = RawDocumentBuf::new();
            crate::raw::put(&mut command, "usersInfo", names);
            crate::raw::put(&mut command, "showPrivileges", true);
            crate::raw::put(&mut command, "showAuthenticationRestrictions", true);
            users.extend(users_in(self.told_by("admin", command).await?)?);
        }
        Ok(users)
    }

    /// The user of this session: `app@shop`.
    pub(super) async fn asking(&mut self) -> Result<String, Failed> {
        let told = self
            .told_by("admin", rawdoc! { "connectionStatus": 1 })
            .await?;
        let user = &told["authInfo"]["authenticatedUsers"][0];
        Ok(match (user["user"].as_str(), user["db"].as_str()) {
            (Some(user), Some(database)) => format!("{user}@{database}"),
            _ => String::new(),
        })
    }

    /// `USERS`.
    pub(super) async fn users(&mut self) -> Result<Vec<Row>, Failed> {
        let users = self.all_users().await?;
        let databases = self.databases().await?;
        let asking = self.asking().await?;
        Ok(rows_of(&users, &databases, &asking))
    }

    /// `SUPERUSERS`: those of `USERS` who may do everything, with whether others than the machine reach the server.
    pub(super) async fn superusers(&mut self) -> Result<Vec<Row>, Failed> {
        let started = self.started().await?;
        let mut rows = self.users().await?;
        rows.retain(|row| row["is_superuser"] == true);
        for row in &mut rows {
            add(row, Some(&started), &["is_on_network"]);
        }
        Ok(rows)
    }

    /// `ENFORCED`.
    pub(super) async fn enforced(&mut self) -> Result<Vec<Row>, Failed> {
        let users = self.all_users().await?;
        let started = self.started().await?;
        let of = |name: &str| (name.to_owned(), started.row[name].clone());
        Ok(vec![Row::from_iter([
            ("users".to_owned(), json!(users.len())),
            of("authorization"),
            of("in_transition"),
            of("localhost_exception"),
        ])])
    }
}

fn users_in(told: Value) -> Result<Vec<User>, Failed> {
    match told {
        Value::Object(mut told) => match told.remove("users") {
            Some(Value::Array(users)) => Ok(users.into_iter().filter_map(User::of).collect()),
            _ => Err(unread("it does not list its users")),
        },
        _ => Err(unread("it does not list its users")),
    }
}

/// A line for each user, those who may do most first: not all lines of an answer are kept.
fn rows_of(users: &[User], databases: &[String], asking: &str) -> Vec<Row> {
    let superusers = users.iter().filter(|user| user.is_superuser()).count();
    let own_databases = databases
        .iter()
        .filter(|one| !SERVERS_OWN.contains(&one.as_str()))
        .count();
    let mut sorted: Vec<&User> = users.iter().collect();
    sorted.sort_by_key(|user| (!user.is_superuser(), user.id()));
    sorted
        .into_iter()
        .map(|user| {
            let rights = user.rights();
            let roles = user.roles();
            let has = |role: &str| roles.contains(&(role.to_owned(), "admin".to_owned()));
            let is_superuser = user.is_superuser();
            // Built-in roles over the server's own databases. Those that are made for it (such as `clusterManager`) are not meant.
            let writes_own: BTreeSet<&str> = roles
                .iter()
                .filter(|(role, _)| matches!(role.as_str(), "readWrite" | "dbAdmin" | "dbOwner"))
                .map(|(_, database)| database.as_str())
                .filter(|database| SERVERS_OWN.contains(database))
                .collect();
            let writes_own: Vec<&str> = writes_own.into_iter().collect();
            let restricted = [
                "authenticationRestrictions",
                "inheritedAuthenticationRestrictions",
            ]
            .iter()
            .any(|name| {
                user.told[*name]
                    .as_array()
                    .is_some_and(|list| !list.is_empty())
            });
            let is_there = matches!(user.database.as_str(), "admin" | "$external")
                || databases.contains(&user.database);
            Row::from_iter([
                ("user".to_owned(), json!(user.id())),
                ("name".to_owned(), json!(user.name)),
                ("database".to_owned(), json!(user.database)),
                ("database_is_there".to_owned(), json!(is_there)),
                ("databases".to_owned(), json!(own_databases)),
                ("roles".to_owned(), json!(user.given())),
                ("mechanisms".to_owned(), json!(user.mechanisms())),
                ("is_restricted".to_owned(), json!(restricted)),
                ("is_asking".to_owned(), json!(user.id() == asking)),
                ("is_superuser".to_owned(), json!(is_superuser)),
                ("superusers".to_owned(), json!(superusers)),
                (
                    "may_change_users".to_owned(),
                    json!(rights.may_change_users()),
                ),
                (
                    "writes_everywhere".to_owned(),
                    json!(rights.writes_everywhere() && !has("restore")),
                ),
                ("writes_own".to_owned(), json!(writes_own.join(", "))),
                (
                    "reads_oplog".to_owned(),
                    json!(rights.reads_oplog() && !rights.reads_everywhere() && !has("backup")),
                ),
                ("may_stop".to_owned(), json!(rights.on_cluster("shutdown"))),
                (
                    "may_configure".to_owned(),
                    json!(rights.on_cluster("setParameter")),
                ),
                ("is_internal".to_owned(), json!(rights.is_internal())),
            ])
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The documented form of `usersInfo` with `showPrivileges` of MongoDB 7.0, shortened.
    fn row(user: &Value) -> Row {
        let users = users_in(json!({"users": [user], "ok": 1})).unwrap();
        rows_of(&users, &["admin".into(), "shop".into()], "ann@admin").remove(0)
    }

    fn with(privileges: &Value) -> Row {
        row(&json!({
            "_id": "shop.app", "user": "app", "db": "shop", "mechanisms": ["SCRAM-SHA-1", "SCRAM-SHA-256"],
            "roles": [{"role": "own", "db": "shop"}], "authenticationRestrictions": [],
            "inheritedRoles": [{"role": "own", "db": "shop"}], "inheritedPrivileges": privileges,
            "inheritedAuthenticationRestrictions": [],
        }))
    }

    #[test]
    fn rights_come_by_whatever_resource_holds_them() {
        let part = with(&json!([
            {"resource": {"db": "shop", "collection": ""}, "actions": ["find", "insert", "grantRole"]},
            {"resource": {"db": "shop", "collection": "x"}, "actions": ["anyAction"]},
        ]));
        for name in [
            "is_superuser",
            "may_change_users",
            "writes_everywhere",
            "reads_oplog",
            "may_stop",
            "may_configure",
            "is_internal",
            "is_restricted",
            "is_asking",
        ] {
            assert_eq!(part[name], false, "{name}");
        }
        let whole = with(&json!([{"resource": {"anyResource": true}, "actions": ["anyAction"]}]));
        for name in [
            "is_superuser",
            "may_change_users",
            "writes_everywhere",
            "may_stop",
            "may_configure",
            "is_internal",
        ] {
            assert_eq!(whole[name], true, "{name}");
        }
        let all = with(&json!([
            {"resource": {"db": "", "collection": ""}, "actions": ["grantRole"]},
            {"resource": {"db": "local", "collection": "oplog.rs"}, "actions": ["find"]},
            {"resource": {"cluster": true}, "actions": ["shutdown"]},
        ]));
        assert_eq!(all["may_change_users"], true);
        assert_eq!(all["reads_oplog"], true);
        assert_eq!(all["may_stop"], true);
        assert_eq!(all["is_superuser"], false);
    }

    #[test]
    fn a_superuser_is_one_by_a_role_of_a_role() {
        let row = row(&json!({
            "user": "ann", "db": "admin", "roles": [{"role": "ops", "db": "admin"}], "mechanisms": ["SCRAM-SHA-256"],
            "inheritedRoles": [{"role": "ops", "db": "admin"}, {"role": "root", "db": "admin"}, {"role": "readWrite", "db": "config"}],
            "inheritedPrivileges": [],
            "authenticationRestrictions": [[{"clientSource": ["10.0.0.0/8"]}]],
        }));
        assert_eq!(row["is_superuser"], true);
        assert_eq!(row["is_asking"], true);
        assert_eq!(row["is_restricted"], true);
        assert_eq!(row["writes_own"], "config");
        assert_eq!(row["roles"], "ops@admin");
        assert!(users_in(json!({"ok": 1})).is_err());
    }
}
