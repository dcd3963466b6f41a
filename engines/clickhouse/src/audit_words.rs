//! Words of questions that an audit asks, each of which gives a line for each thing:
//!
//! - `USERS`: what a user may do with all of its roles, from where, and how it shows who it is. No hash and no password is read;
//! - `NETWORK`: whether this session is encrypted, and where it goes;
//! - `ANONYMOUS`: what a request without a login is let do. It is tried.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use fettler_engine::{EngineError, Refusal as Unanswered, Row, is_public, is_remote};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::{ask::unanswered_at_once, http::Session, params::Params};

/// The words for what is being done.
const DOING: &str = "asking who may do what";
/// How deep roles may be granted to roles, and profiles inherit from profiles, before it is taken for a circle.
const MOST_DEPTH: usize = 32;

/// Privileges to read and write outside of the server (ClickHouse documentation: GRANT, SOURCES). `READ` and `WRITE` are what
/// newer servers make of them.
const SOURCES: [&str; 19] = [
    "FILE", "URL", "REMOTE", "MONGO", "REDIS", "MYSQL", "POSTGRES", "SQLITE", "ODBC", "JDBC",
    "HDFS", "S3", "HIVE", "AZURE", "KAFKA", "NATS", "RABBITMQ", "READ", "WRITE",
];

/// What came of a look: lines, or why there are none.
type Told = Result<Result<Vec<Row>, Unanswered>, EngineError>;

/// The rows that `USERS` is made of, as text, in the order of their queries' columns.
#[derive(Debug, Default)]
struct Access {
    /// Name, storage, methods, then four lists of hosts.
    users: Vec<Vec<String>>,
    /// User, role, privilege, object, database, table, whether it is a revoke, whether it may be passed on.
    grants: Vec<Vec<String>>,
    /// User, role, granted role.
    roles: Vec<Vec<String>>,
    /// Profile, user, role, setting, value, inherited profile.
    elements: Vec<Vec<String>>,
}

/// `USERS`.
pub(crate) async fn users(session: &Session) -> Told {
    let object = if session.has_column("grants", "access_object").await? {
        "access_object"
    } else {
        "''"
    };
    let mut tables = Vec::with_capacity(4);
    for query in [
        "SELECT name, storage, toString(auth_type), toString(host_ip), toString(host_names), toString(host_names_regexp), toString(host_names_like) FROM system.users ORDER BY name".to_owned(),
        format!("SELECT user_name, role_name, toString(access_type), {object}, database, table, toString(is_partial_revoke), toString(grant_option) FROM system.grants"),
        "SELECT user_name, role_name, granted_role_name FROM system.role_grants".to_owned(),
        "SELECT profile_name, user_name, role_name, setting_name, value, inherit_profile FROM system.settings_profile_elements".to_owned(),
    ] {
        match session.try_rows(&query, &[], DOING).await? {
            Ok(rows) => tables.push(rows),
            Err(refusal) => return Ok(Err(unanswered_at_once(&refusal))),
        }
    }
    let asking = session
        .try_rows("SELECT currentUser()", &[], DOING)
        .await?
        .ok()
        .and_then(|rows| rows.into_iter().flatten().next())
        .unwrap_or_default();
    let anonymous = is_let_in(session.params()).await;
    let [users, grants, roles, elements] = <[_; 4]>::try_from(tables).unwrap_or_default();
    let access = Access {
        users,
        grants,
        roles,
        elements,
    };
    let mut rows = users_of(&access, anonymous == Some(true));
    for row in &mut rows {
        let is_asking = row.get("user").is_some_and(|user| *user == asking);
        row.insert("is_asking".to_owned(), json!(is_asking));
    }
    Ok(Ok(rows))
}

fn users_of(access: &Access, default_has_no_password: bool) -> Vec<Row> {
    let mut rows: Vec<Row> = access
        .users
        .iter()
        .filter_map(|user| {
            let [name, storage, methods, hosts @ ..] = user.as_slice() else {
                return None;
            };
            let roles = access.roles_of(name);
            let settings = access.settings_of(name, &roles);
            let setting = |name: &str| settings.get(name).map_or("", String::as_str);
            let rights = access.rights_of(name, &roles);
            let is_readonly = setting("readonly") == "1";
            let may = |privilege: &str| rights.has(privilege);
            let is_unlimited =
                ["SELECT", "INSERT", "ALTER", "DROP"].into_iter().all(may) && !is_readonly;
            let reaches: Vec<&str> = SOURCES.into_iter().filter(|one| may(one)).collect();
            let has_method = |method: &str| {
                methods
                    .split(|letter: char| !(letter.is_ascii_alphanumeric() || letter == '_'))
                    .any(|one| one == method)
            };
            let is_empty =
                name == "default" && default_has_no_password && has_method("plaintext_password");
            let empty = |at: usize| {
                hosts
                    .get(at)
                    .is_none_or(|list| matches!(list.as_str(), "" | "[]"))
            };
            Some(Row::from_iter([
                ("user".to_owned(), json!(name)),
                ("storage".to_owned(), json!(storage)),
                (
                    "methods".to_owned(),
                    json!(methods.replace(['[', ']', '\''], "")),
                ),
                (
                    "has_no_password".to_owned(),
                    json!(has_method("no_password")),
                ),
                (
                    "has_plaintext".to_owned(),
                    json!(has_method("plaintext_password")),
                ),
                ("has_empty_password".to_owned(), json!(is_empty)),
                (
                    "has_double_sha1".to_owned(),
                    json!(has_method("double_sha1_password")),
                ),
                (
                    "from_anywhere".to_owned(),
                    json!(hosts.first().is_some_and(|list| {
                        ["'::/0'", "'0.0.0.0/0'"]
                            .iter()
                            .any(|any| list.contains(any))
                    })),
                ),
                ("by_pattern".to_owned(), json!(!empty(2) || !empty(3))),
                ("is_readonly".to_owned(), json!(is_readonly)),
                ("is_unlimited".to_owned(), json!(is_unlimited)),
                (
                    "may_change_users".to_owned(),
                    json!(
                        !is_readonly
                            && (may("CREATE USER") || may("ALTER USER") || may("ROLE ADMIN"))
                    ),
                ),
                ("may_pass_on".to_owned(), json!(rights.passed_on)),
                (
                    "reaches".to_owned(),
                    json!(if is_readonly {
                        String::new()
                    } else {
                        reaches.join(", ")
                    }),
                ),
                (
                    "may_stop".to_owned(),
                    json!(!is_readonly && may("SYSTEM SHUTDOWN")),
                ),
                (
                    "may_see_secrets".to_owned(),
                    json!(
                        may("displaySecretsInShowAndSelect")
                            || may("SHOW NAMED COLLECTIONS SECRETS")
                    ),
                ),
                (
                    "may_define".to_owned(),
                    json!(!is_readonly && (may("ALLOW SQL SECURITY NONE") || may("SET DEFINER"))),
                ),
                ("may_impersonate".to_owned(), json!(may("IMPERSONATE"))),
                (
                    "may_introspect".to_owned(),
                    json!(may("INTROSPECTION") && setting("allow_introspection_functions") == "1"),
                ),
                ("reads_logs".to_owned(), json!(rights.reads_logs)),
                (
                    "is_not_logged".to_owned(),
                    json!(setting("log_queries") == "0"),
                ),
            ]))
        })
        .collect();
    let count = rows.len();
    for row in &mut rows {
        row.insert("other_users".to_owned(), json!(count.saturating_sub(1)));
    }
    rows
}

/// What a user may do on the whole server.
#[derive(Debug, Default)]
struct Rights {
    given: BTreeSet<String>,
    taken: BTreeSet<String>,
    passed_on: bool,
    reads_logs: bool,
}

impl Rights {
    fn has(&self, privilege: &str) -> bool {
        let given = self.given.contains(privilege)
            || groups_of(privilege)
                .iter()
                .any(|group| self.given.contains(*group));
        given && !self.taken.contains(privilege)
    }
}

/// The privileges that hold another (ClickHouse documentation: GRANT).
fn groups_of(privilege: &str) -> &'static [&'static str] {
    match privilege {
        "CREATE USER" | "ALTER USER" | "ROLE ADMIN" | "ALLOW SQL SECURITY NONE" => {
            &["ACCESS MANAGEMENT", "ALL"]
        }
        "SHOW NAMED COLLECTIONS SECRETS" => &["NAMED COLLECTION ADMIN", "ALL"],
        "SYSTEM SHUTDOWN" => &["SYSTEM", "ALL"],
        one if SOURCES.contains(&one) => &["SOURCES", "ALL"],
        _ => &["ALL"],
    }
}

impl Access {
    /// The roles that a user has, with those that its roles have.
    fn roles_of<'a>(&'a self, user: &str) -> BTreeSet<&'a str> {
        let mut roles: BTreeSet<&str> = BTreeSet::new();
        for _ in 0..MOST_DEPTH {
            let before = roles.len();
            for line in &self.roles {
                if let [to_user, to_role, granted] = line.as_slice()
                    && (to_user == user || roles.contains(to_role.as_str()))
                {
                    roles.insert(granted);
                }
            }
            if roles.len() == before {
                break;
            }
        }
        roles
    }

    fn rights_of(&self, user: &str, roles: &BTreeSet<&str>) -> Rights {
        let mut rights = Rights::default();
        for line in &self.grants {
            let [
                to_user,
                to_role,
                privilege,
                object,
                database,
                table,
                revoke,
                option,
            ] = line.as_slice()
            else {
                continue;
            };
            if to_user != user && !(to_user.is_empty() && roles.contains(to_role.as_str())) {
                continue;
            }
            if revoke == "1" {
                if database.is_empty() {
                    rights.taken.insert(privilege.clone());
                }
                continue;
            }
            // A source that is named stands for itself.
            let is_source = matches!(privilege.as_str(), "READ" | "WRITE") && !object.is_empty();
            if database.is_empty() {
                rights
                    .given
                    .insert(if is_source { object } else { privilege }.clone());
                rights.passed_on |= option == "1";
            }
            rights.reads_logs |= database == "system"
                && matches!(privilege.as_str(), "SELECT" | "ALL")
                && matches!(
                    table.as_str(),
                    "" | "query_log" | "query_thread_log" | "text_log" | "processes"
                );
        }
        rights
    }

    /// A user's settings: those of its profiles, of its roles, and its own, which count most.
    fn settings_of(&self, user: &str, roles: &BTreeSet<&str>) -> BTreeMap<String, String> {
        let mut settings = BTreeMap::new();
        for role in roles {
            self.add_settings(2, role, &mut settings, 0);
        }
        self.add_settings(1, user, &mut settings, 0);
        settings
    }

    /// Adds those of whom the column `of` names: a profile, a user, a role.
    fn add_settings(
        &self,
        of: usize,
        name: &str,
        settings: &mut BTreeMap<String, String>,
        depth: usize,
    ) {
        if depth > MOST_DEPTH {
            return;
        }
        for line in &self.elements {
            let [.., setting, value, inherited] = line.as_slice() else {
                continue;
            };
            if line[of] != name {
                continue;
            }
            if !inherited.is_empty() {
                self.add_settings(0, inherited, settings, depth + 1);
            }
            if !setting.is_empty() && !value.is_empty() {
                settings.insert(setting.clone(), value.clone());
            }
        }
    }
}

/// `NETWORK`.
pub(crate) async fn network(session: &Session) -> Vec<Row> {
    let params = session.params();
    let address = address_of(session);
    let is_encrypted = params.tls.is_some();
    let mut plain = Params {
        tls: None,
        user: None,
        password: None,
        port: 8123,
        ..params.clone()
    };
    plain.addresses = address.into_iter().collect();
    let plain_port_answers = is_encrypted && answers(&plain).await.is_some();
    vec![Row::from_iter([
        (
            "address".to_owned(),
            json!(address.map_or_else(|| params.host.clone(), |one| one.to_string())),
        ),
        (
            "is_remote".to_owned(),
            json!(address.is_some_and(is_remote)),
        ),
        (
            "is_public".to_owned(),
            json!(address.is_some_and(is_public)),
        ),
        ("is_encrypted".to_owned(), json!(is_encrypted)),
        ("plain_port_answers".to_owned(), json!(plain_port_answers)),
    ])]
}

/// `ANONYMOUS`.
pub(crate) async fn anonymous(session: &Session) -> Result<Vec<Row>, Unanswered> {
    let let_in = is_let_in(session.params()).await.ok_or_else(|| {
        Unanswered::Failed("a second connection without a login was not answered".to_owned())
    })?;
    Ok(vec![Row::from_iter([
        ("is_let_in".to_owned(), json!(let_in)),
        (
            "is_remote".to_owned(),
            json!(address_of(session).is_some_and(is_remote)),
        ),
    ])])
}

/// Whether a request without user and password is let in; none where nothing can be said.
async fn is_let_in(params: &Params) -> Option<bool> {
    let nobody = Params {
        user: None,
        password: None,
        // A certificate would be a login too.
        tls: params.tls.clone().map(|files| crate::params::TlsFiles {
            identity: None,
            ..files
        }),
        ..params.clone()
    };
    answers(&nobody).await
}

/// Whether a server lets a request in: none where it does not answer, or as no ClickHouse does.
async fn answers(params: &Params) -> Option<bool> {
    const PATIENCE: std::time::Duration = std::time::Duration::from_secs(3);
    let stop = CancellationToken::new();
    let open = Session::open(params, "fettler", &stop);
    match tokio::time::timeout(PATIENCE, open).await.ok()? {
        Ok(_) => Some(true),
        Err(EngineError::LoginRefused { .. }) => Some(false),
        Err(_) => None,
    }
}

fn address_of(session: &Session) -> Option<IpAddr> {
    let address: SocketAddr = session.address.parse().ok()?;
    Some(address.ip().to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(rows: &[&[&str]]) -> Vec<Vec<String>> {
        rows.iter()
            .map(|row| row.iter().map(ToString::to_string).collect())
            .collect()
    }

    fn one(access: Access) -> Row {
        users_of(
            &Access {
                users: lines(&[&[
                    "app",
                    "local_directory",
                    "sha256_password",
                    "['10.0.0.0/8']",
                    "[]",
                    "[]",
                    "[]",
                ]]),
                ..access
            },
            false,
        )
        .remove(0)
    }

    #[test]
    fn rights_come_by_roles_of_roles_and_a_revoke_takes_them() {
        let row = one(Access {
            roles: lines(&[&["app", "", "writer"], &["", "writer", "sender"]]),
            grants: lines(&[
                &["", "sender", "WRITE", "S3", "", "", "0", "0"],
                &["", "other", "ALL", "", "", "", "0", "0"],
                &["", "writer", "SYSTEM", "", "", "", "0", "0"],
                &["app", "", "SYSTEM SHUTDOWN", "", "", "", "1", "0"],
            ]),
            ..Access::default()
        });
        assert_eq!(row["reaches"], "S3");
        assert_eq!(row["is_unlimited"], false);
        assert_eq!(row["may_stop"], false);
        let all = one(Access {
            grants: lines(&[&["app", "", "ALL", "", "", "", "0", "1"]]),
            ..Access::default()
        });
        for name in [
            "is_unlimited",
            "may_change_users",
            "may_pass_on",
            "may_stop",
            "may_see_secrets",
        ] {
            assert_eq!(all[name], true, "{name}");
        }
        let part = one(Access {
            grants: lines(&[&["app", "", "ALL", "", "shop", "", "0", "1"]]),
            ..Access::default()
        });
        for name in ["is_unlimited", "may_pass_on", "may_stop", "reads_logs"] {
            assert_eq!(part[name], false, "{name}");
        }
    }

    #[test]
    fn a_profile_that_only_reads_counts_wherever_it_comes_from() {
        let row = one(Access {
            grants: lines(&[&["app", "", "ALL", "", "", "", "0", "0"]]),
            elements: lines(&[
                &["", "app", "", "", "", "outer"],
                &["outer", "", "", "", "", "inner"],
                &["inner", "", "", "readonly", "1", ""],
                &["inner", "", "", "", "", "outer"],
                &["other", "", "", "log_queries", "0", ""],
            ]),
            ..Access::default()
        });
        assert_eq!(
            (&row["is_readonly"], &row["is_unlimited"]),
            (&json!(true), &json!(false))
        );
        assert_eq!(row["reaches"], "");
        assert_eq!(row["is_not_logged"], false);
    }

    #[test]
    fn methods_and_hosts_are_read_as_lists_of_new_servers_and_as_words_of_old_ones() {
        let read = |methods: &str, hosts: &str| {
            let user = [
                "default",
                "users_xml",
                methods,
                hosts,
                "[]",
                "[]",
                "['%.x']",
            ];
            users_of(
                &Access {
                    users: lines(&[&user]),
                    ..Access::default()
                },
                true,
            )
            .remove(0)
        };
        let new = read("['plaintext_password','double_sha1_password']", "['::/0']");
        assert_eq!(new["has_plaintext"], true);
        assert_eq!(new["has_double_sha1"], true);
        assert_eq!(new["has_empty_password"], true);
        assert_eq!(new["from_anywhere"], true);
        assert_eq!(new["by_pattern"], true);
        let old = read("no_password", "['::1','10.0.0.0/8']");
        assert_eq!(old["has_no_password"], true);
        assert_eq!(old["from_anywhere"], false);
        assert_eq!(old["methods"], "no_password");
    }
}
