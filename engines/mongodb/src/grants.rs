//! What a user needs on a MongoDB server: its built-in roles, as its documentation tells what they hold. The remedies of the
//! preflight are the same text.

use std::sync::LazyLock;

use fettler_engine::{EngineError, Grant, GrantRequest, Grants, Purpose};

/// What a user for backups is given, for messages.
pub(crate) static FOR_BACKUPS: LazyLock<String> =
    LazyLock::new(|| create_user("fettler", &[Purpose::Backup]));

/// The roles of a purpose, which are of the database `admin`.
const fn roles_of(purpose: Purpose) -> &'static [&'static str] {
    match purpose {
        // `backup` reads all collections, the oplog, users and roles; `clusterMonitor` says how busy the server is.
        Purpose::Backup => &["backup", "clusterMonitor"],
        Purpose::Restore => &["restore"],
        // Sandboxes are databases of their own, which are read and dropped.
        Purpose::Prove => &["restore", "readAnyDatabase", "dbAdminAnyDatabase"],
        Purpose::Tune => &["clusterMonitor"],
        // Roles of their own, which are made first: see `own_role`.
        Purpose::Audit | Purpose::Health => &[],
        // Documents are read, removed and put back, past the validators of their collections.
        Purpose::Cleanup => &["readWriteAnyDatabase", "restore", "clusterMonitor"],
    }
}

/// The privileges of a purpose for which no built-in role is small enough, beside `clusterMonitor`, and what they are for.
fn own_privileges(purpose: Purpose) -> Option<(&'static str, serde_json::Value)> {
    match purpose {
        Purpose::Health => Some((
            "health: a role that reads the state of the server, and of no collection more than its size",
            serde_json::json!([
                {"resource": {"db": "", "collection": ""}, "actions": ["listCollections", "listIndexes", "collStats", "indexStats"]},
                {"resource": {"db": "local", "collection": "oplog.rs"}, "actions": ["find", "collStats"]},
            ]),
        )),
        // All users are told to whom may see those of the cluster; one by one, with their rights, to whom may see those of
        // their database.
        Purpose::Audit => Some((
            "audit: a role that reads users, roles, options and counters of the server, and no document",
            serde_json::json!([
                {"resource": {"cluster": true}, "actions": ["viewUser"]},
                {"resource": {"db": "", "collection": ""}, "actions": ["viewUser", "viewRole", "listCollections", "listIndexes"]},
            ]),
        )),
        _ => None,
    }
}

/// What the role of a purpose is called, after its user.
fn own_role(role: &str, purpose: Purpose) -> String {
    format!("{role}_{}", purpose.as_str())
}

fn create_role(role: &str, privileges: &serde_json::Value) -> String {
    format!(
        "db.getSiblingDB(\"admin\").createRole({{role: {}, privileges: {privileges}, roles: [\"clusterMonitor\"]}})",
        serde_json::Value::from(role),
    )
}

fn create_user(role: &str, purposes: &[Purpose]) -> String {
    let mut roles: Vec<String> = Vec::new();
    for purpose in purposes {
        for role in roles_of(*purpose) {
            if !roles.iter().any(|known| known == role) {
                roles.push((*role).to_owned());
            }
        }
        if own_privileges(*purpose).is_some() {
            roles.push(own_role(role, *purpose));
        }
    }
    format!(
        "db.getSiblingDB(\"admin\").createUser({{user: {}, pwd: passwordPrompt(), roles: {}}})",
        serde_json::Value::from(role),
        serde_json::Value::from(roles)
    )
}

/// What a user needs.
pub(crate) fn grants(request: &GrantRequest<'_>) -> Result<Grants, EngineError> {
    if request.role.is_empty() || request.role.contains('\0') {
        return Err(request.invalid_role("it is not empty"));
    }
    let purposes: Vec<&str> = request
        .purposes
        .iter()
        .map(|purpose| purpose.as_str())
        .collect();
    let mut notes = vec![
        "`passwordPrompt()` asks for the user's own password; a user that is there is given more by `grantRolesToUser`".to_owned(),
        "Fettler finds the user in `admin` unless the URL names another database (`?authSource=`)".to_owned(),
    ];
    if request.is_for(Purpose::Audit) {
        notes.push("what an audit reads of users is also what the server keeps of their passwords: it is compared with passwords that everybody tries, is asked for by an encrypted connection or on the machine itself alone, and is kept nowhere".to_owned());
    }
    if request.is_for(Purpose::Restore) {
        notes.push("users and roles of a backup are not restored, and need no rights".to_owned());
    }
    let mut statements = Vec::new();
    for purpose in request.purposes {
        if let Some((what, privileges)) = own_privileges(*purpose) {
            let role = own_role(request.role, *purpose);
            statements.push(Grant::new(what, create_role(&role, &privileges)));
        }
    }
    statements.push(Grant::new(
        purposes.join(", "),
        create_user(request.role, request.purposes),
    ));
    Ok(Grants {
        language: "mongosh",
        comment: Some("//"),
        statements,
        notes,
    })
}

#[cfg(test)]
mod tests {
    use fettler_model::DatabaseUrl;

    use super::*;

    #[test]
    fn a_user_is_made_with_the_roles_of_its_purposes_each_once() {
        let (url, _) = DatabaseUrl::parse_with_password("mongodb://ann:hunter2@h/shop").unwrap();
        let of = |role: &str, purposes: &[Purpose]| {
            grants(&GrantRequest {
                url: &url,
                role,
                purposes,
            })
        };
        let backup = of("fettler", &[Purpose::Backup]).unwrap();
        assert_eq!(backup.statements[0].text, *FOR_BACKUPS);
        assert_eq!(
            *FOR_BACKUPS,
            r#"db.getSiblingDB("admin").createUser({user: "fettler", pwd: passwordPrompt(), roles: ["backup","clusterMonitor"]})"#
        );
        let all = of("a\"b", &Purpose::ALL).unwrap().to_text();
        assert_eq!(all.matches("\"restore\"").count(), 1);
        assert!(all.contains(r#"user: "a\"b""#) && !all.contains("hunter2"));
        let health = of("ann", &[Purpose::Health]).unwrap();
        assert!(
            health.statements[0]
                .text
                .contains(r#"createRole({role: "ann_health""#)
        );
        assert!(
            health.statements[1]
                .text
                .contains(r#"roles: ["ann_health"]"#)
        );
        let audit = of("ann", &[Purpose::Audit]).unwrap();
        assert_eq!(audit.statements.len(), 2);
        let role = &audit.statements[0].text;
        assert!(role.contains(r#"createRole({role: "ann_audit""#) && role.contains("viewUser"));
        for beyond in ["find", "insert", "update", "remove", "anyAction"] {
            assert!(!role.contains(&format!("\"{beyond}\"")), "{role}");
        }
        assert!(audit.statements[1].text.contains(r#"roles: ["ann_audit"]"#));
        assert!(of("", &[Purpose::Backup]).is_err());
    }
}
