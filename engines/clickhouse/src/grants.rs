//! What a user needs on a ClickHouse server. The remedies of the preflight and of refusals are the same statements.

use std::sync::LazyLock;

use fettler_engine::{EngineError, Grant, GrantRequest, Grants, PASSWORD_PLACEHOLDER, Purpose};

use crate::sql::literal;

/// What a backup does: it reads, and links tables into a scratch database of its own.
const BACKUP: &str = "SELECT, SHOW, CREATE DATABASE, CREATE TABLE, DROP DATABASE, DROP TABLE, INSERT, ALTER TABLE, SYSTEM MERGES, KILL QUERY";
/// What a restore does, and a proof in its sandbox.
const RESTORE: &str = "SELECT, SHOW, CREATE DATABASE, CREATE TABLE, CREATE VIEW, CREATE DICTIONARY, DROP DATABASE, DROP TABLE, DROP VIEW, DROP DICTIONARY, TRUNCATE, INSERT, ALTER TABLE, SYSTEM MERGES, KILL QUERY";
/// What only the whole server has.
const RESTORE_FUNCTIONS: &str = "CREATE FUNCTION, DROP FUNCTION";
/// To see users, roles, quotas and row policies.
const ACCESS: &str = "SHOW ACCESS";

/// To be told of all tables and dictionaries, and nothing of what is in them.
const LISTS: &str = "SHOW TABLES, SHOW DICTIONARIES";

/// For backups of the server's own: to make one, and to list and remove what lies in a bucket.
const OWN_BACKUPS: &str = "BACKUP, S3, NAMED COLLECTION";

/// What a user for backups of the server's own is given beside the rest, for messages.
pub(crate) static FOR_OWN_BACKUPS: LazyLock<String> =
    LazyLock::new(|| grant(OWN_BACKUPS, "fettler"));
/// What a user for backups is given, for messages.
pub(crate) static FOR_BACKUPS: LazyLock<String> = LazyLock::new(|| grant(BACKUP, "fettler"));
/// What it is given to see users, for messages.
pub(crate) static FOR_USERS: LazyLock<String> = LazyLock::new(|| grant(ACCESS, "fettler"));

fn grant(privileges: &str, role: &str) -> String {
    let is_plain = role
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
        && role.starts_with(|first: char| first.is_ascii_alphabetic());
    let role = if is_plain {
        role.to_owned()
    } else {
        crate::sql::quoted(role)
    };
    format!("GRANT {privileges} ON *.* TO {role}")
}

/// What a user needs.
pub(crate) fn grants(request: &GrantRequest<'_>) -> Result<Grants, EngineError> {
    let role = request.role;
    if role.is_empty() {
        return Err(request.invalid_role("it is not empty"));
    }
    let ended = |statement: String| format!("{statement};");
    let mut statements = vec![Grant::new(
        format!("the user; put its own password in the stead of {PASSWORD_PLACEHOLDER}"),
        format!(
            "CREATE USER IF NOT EXISTS {} IDENTIFIED WITH sha256_password BY {};",
            crate::sql::quoted(role),
            literal(PASSWORD_PLACEHOLDER)
        ),
    )];
    if request.is_for(Purpose::Backup) {
        statements.push(Grant::new(
            "backup: to read, and to link tables into a scratch database of its own",
            ended(grant(BACKUP, role)),
        ));
        statements.push(Grant::new(
            "backup: for users, roles, quotas and row policies",
            ended(grant(ACCESS, role)),
        ));
        statements.push(Grant::new(
            "backup: for backups of the server's own (`--by-server`); leave it out where there are none",
            ended(grant(OWN_BACKUPS, role)),
        ));
    }
    let writes: Vec<&str> = [Purpose::Restore, Purpose::Prove]
        .into_iter()
        .filter(|purpose| request.is_for(*purpose))
        .map(Purpose::as_str)
        .collect();
    if !writes.is_empty() {
        statements.push(Grant::new(
            format!("{}: to make tables and to fill them", writes.join(", ")),
            ended(grant(RESTORE, role)),
        ));
        statements.push(Grant::new(
            format!("{}: for functions", writes.join(", ")),
            ended(grant(RESTORE_FUNCTIONS, role)),
        ));
    }
    if request.is_for(Purpose::Cleanup) {
        statements.push(Grant::new(
            "cleanup: to archive and try out in a scratch database, to move partitions aside and drop them, to drop detached parts, and for the undo",
            ended(grant(BACKUP, role)),
        ));
    }
    if request.is_for(Purpose::Health) || request.is_for(Purpose::Audit) {
        let health = grant("SELECT", role).replace("*.*", "system.*");
        statements.push(Grant::new(
            "health: to read the server's own tables",
            ended(health),
        ));
        statements.push(Grant::new(
            "health: those tables list to a user only what it may see",
            ended(grant(LISTS, role)),
        ));
    }
    if request.is_for(Purpose::Audit) {
        statements.push(Grant::new(
            "audit: to see users, roles, their rights, quotas and row policies",
            ended(grant(ACCESS, role)),
        ));
    }
    let mut notes = vec![
        "servers without SQL users (before 20.4, or where `access_management` is off) have users in users.xml: give such a user a profile with `readonly = 0`".to_owned(),
    ];
    if request.is_for(Purpose::Restore) {
        notes.push("to restore users too (`--only access`): GRANT ACCESS MANAGEMENT ON *.*, which is every right".to_owned());
    }
    Ok(Grants {
        language: "SQL",
        comment: Some("--"),
        statements,
        notes,
    })
}

#[cfg(test)]
mod tests {
    use fettler_model::DatabaseUrl;

    use super::*;

    #[test]
    fn each_purpose_has_its_statements_and_names_are_quoted() {
        let (url, _) = DatabaseUrl::parse_with_password("clickhouse://ann:hunter2@h/shop").unwrap();
        let of = |role: &str, purposes: &[Purpose]| {
            grants(&GrantRequest {
                url: &url,
                role,
                purposes,
            })
        };
        let backup = of("fettler", &[Purpose::Backup]).unwrap();
        assert_eq!(backup.statements[1].text, format!("{};", *FOR_BACKUPS));
        assert_eq!(backup.statements[2].text, format!("{};", *FOR_USERS));
        assert!(!backup.to_text().contains("TRUNCATE"));
        let all = of("o`x", &Purpose::ALL).unwrap().to_text();
        assert!(all.contains("BY 'PASSWORD';") && !all.contains("hunter2"));
        assert!(all.contains("TO `o\\`x`;"), "{all}");
        assert!(all.contains("GRANT SELECT ON system.* TO"));
        assert!(all.contains("GRANT SHOW TABLES, SHOW DICTIONARIES ON *.* TO"));
        assert!(of("", &[Purpose::Backup]).is_err());
    }
}
