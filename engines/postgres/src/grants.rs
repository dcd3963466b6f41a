//! What a role needs on a PostgreSQL server. The remedies of the preflight and of refusals are made of the same statements.

use fettler_engine::{EngineError, Grant, GrantRequest, Grants, PASSWORD_PLACEHOLDER, Purpose};
use url::Url;

use crate::{
    names::{literal, qualified, quote_ident},
    params::percent_decoded,
};

/// The role of version 14 and later that may read all tables, sequences, large objects and `pg_authid`.
const READ_EVERYTHING: &str = "pg_read_all_data";
/// The role that may see what other sessions do.
const MONITOR: &str = "pg_monitor";
/// The longest name that the server keeps whole, in bytes.
const LONGEST_NAME: usize = 63;

/// Membership in a role.
pub(crate) fn membership(group: &str, role: &str) -> String {
    format!("GRANT {group} TO {}", quote_ident(role))
}

/// Everything that a backup reads, from version 14 on.
pub(crate) fn read_everything(role: &str) -> String {
    membership(READ_EVERYTHING, role)
}

/// To name what is in a schema.
pub(crate) fn use_schema(schema: &str, role: &str) -> String {
    format!(
        "GRANT USAGE ON SCHEMA {} TO {}",
        quote_ident(schema),
        quote_ident(role)
    )
}

/// To read one table, or one sequence (`SEQUENCE `).
pub(crate) fn read_one(kind: &str, schema: &str, name: &str, role: &str) -> String {
    format!(
        "GRANT SELECT ON {kind}{} TO {}",
        qualified(schema, name),
        quote_ident(role)
    )
}

/// To read all large objects, before version 14.
pub(crate) fn read_large_objects(role: &str) -> String {
    format!(
        "GRANT SELECT ON pg_catalog.pg_largeobject TO {}",
        quote_ident(role)
    )
}

/// To see the rows that row-level security hides.
pub(crate) fn see_all_rows(role: &str) -> String {
    format!("ALTER ROLE {} BYPASSRLS", quote_ident(role))
}

/// To make databases: what is restored, and the sandboxes of proofs.
pub(crate) fn make_databases(role: &str) -> String {
    format!("ALTER ROLE {} CREATEDB", quote_ident(role))
}

/// To remove old rows of a table, and to put them back: a row is locked before it is deleted, which needs UPDATE.
pub(crate) fn clean_table(schema: &str, name: &str, role: &str) -> String {
    format!(
        "GRANT SELECT, INSERT, UPDATE, DELETE ON {} TO {}",
        qualified(schema, name),
        quote_ident(role)
    )
}

/// What a role needs.
pub(crate) fn grants(request: &GrantRequest<'_>) -> Result<Grants, EngineError> {
    let role = request.role;
    if role.is_empty() || role.len() > LONGEST_NAME || role.contains('\0') {
        return Err(request.invalid_role("it has 1 to 63 bytes"));
    }
    if role.starts_with("pg_") {
        return Err(request.invalid_role("names that begin with pg_ are the server's own"));
    }
    let ended = |statement: String| format!("{statement};");
    let mut statements = vec![Grant::new(
        format!("the role; put its own password in the stead of {PASSWORD_PLACEHOLDER}"),
        format!(
            "CREATE ROLE {} LOGIN PASSWORD {};",
            quote_ident(role),
            literal(PASSWORD_PLACEHOLDER)
        ),
    )];
    let mut notes = Vec::new();
    let database = database_of(request);
    if let Some(database) = &database {
        statements.push(Grant::new(
            "to log in to the database",
            format!(
                "GRANT CONNECT ON DATABASE {} TO {};",
                quote_ident(database),
                quote_ident(role)
            ),
        ));
    }
    if request.is_for(Purpose::Backup) {
        statements.push(Grant::new(
            "backup: to read every table, sequence and large object, and the passwords of roles (version 14 and later)",
            ended(read_everything(role)),
        ));
        statements.push(Grant::new(
            "backup: to see the rows that row-level security hides (a superuser runs it)",
            ended(see_all_rows(role)),
        ));
        notes.push(format!(
            "before version 14, in the stead of {READ_EVERYTHING}, for each schema:\n\
             GRANT USAGE ON SCHEMA public TO {role}; GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role};\n\
             GRANT SELECT ON ALL SEQUENCES IN SCHEMA public TO {role}; {};",
            read_large_objects(role),
            role = quote_ident(role),
        ));
    }
    if request.is_for(Purpose::Restore) || request.is_for(Purpose::Prove) {
        let why = match (
            request.is_for(Purpose::Restore),
            request.is_for(Purpose::Prove),
        ) {
            (true, false) => "restore: to make the database that is restored",
            (false, _) => "prove: to make sandboxes on this server",
            (true, true) => {
                "restore, prove: to make the database that is restored, and sandboxes on this server"
            }
        };
        statements.push(Grant::new(why, ended(make_databases(role))));
    }
    if request.is_for(Purpose::Restore) {
        notes.push(
            "a restore into a database that is there needs its owner; owners and grants come back where the role may give \
             them (a superuser may)"
                .to_owned(),
        );
    }
    let watching: Vec<&str> = [
        Purpose::Health,
        Purpose::Audit,
        Purpose::Cleanup,
        Purpose::Tune,
    ]
    .into_iter()
    .filter(|purpose| request.is_for(*purpose))
    .map(Purpose::as_str)
    .collect();
    if !watching.is_empty() {
        statements.push(Grant::new(
            format!(
                "{}: to see sessions, statistics and settings",
                watching.join(", ")
            ),
            ended(membership(MONITOR, role)),
        ));
    }
    if request.is_for(Purpose::Health) && !request.is_for(Purpose::Backup) {
        statements.push(Grant::new(
            "health: to see how far sequences are (version 14 and later)",
            ended(read_everything(role)),
        ));
    }
    if request.is_for(Purpose::Audit) {
        for view in ["pg_hba_file_rules", "pg_file_settings"] {
            let shows = if view == "pg_hba_file_rules" {
                "how clients are let in"
            } else {
                "what stands in the configuration files and is refused"
            };
            statements.push(Grant::new(
                format!("audit: to see {shows} (a superuser runs it)"),
                format!(
                    "GRANT SELECT ON pg_catalog.{view} TO {role}; GRANT EXECUTE ON FUNCTION pg_catalog.{function}() TO {role};",
                    role = quote_ident(role),
                    function = if view == "pg_hba_file_rules" { view } else { "pg_show_all_file_settings" },
                ),
            ));
        }
        notes.push(format!(
            "how passwords are kept is seen only by a role that may read the hashes themselves; without it these checks are told as not made:\n\
             GRANT SELECT (oid, rolname, rolcanlogin, rolpassword) ON pg_catalog.pg_authid TO {};",
            quote_ident(role)
        ));
    }
    if request.is_for(Purpose::Cleanup) {
        statements.push(Grant::new(
            "cleanup: to end idle sessions",
            ended(membership("pg_signal_backend", role)),
        ));
        notes.push(format!(
            "cleanup of old rows, for each table: {};\n\
             an undo into a table with triggers for inserts (version 15 and later): GRANT SET ON PARAMETER session_replication_role TO {role};\n\
             old partitions need the table's owner; slots: ALTER ROLE {role} REPLICATION; VACUUM and REINDEX (version 17 and later): GRANT pg_maintain TO {role};",
            clean_table("public", "TABLE", request.role),
            role = quote_ident(role),
        ));
    }
    if request.is_for(Purpose::Tune) {
        if !request.is_for(Purpose::Backup) && !request.is_for(Purpose::Health) {
            statements.push(Grant::new(
                "tune: to see how the values of columns are spread (version 14 and later)",
                ended(read_everything(role)),
            ));
        }
        notes.push(format!(
            "to make and remove indexes (`tune --apply`), for each owner of tables: GRANT the_owner TO {};              only a member of the owner's role may",
            quote_ident(role)
        ));
    }
    Ok(Grants {
        language: "SQL",
        comment: Some("--"),
        statements,
        notes,
    })
}

/// The database that a URL names, where it names one.
fn database_of(request: &GrantRequest<'_>) -> Option<String> {
    let url = Url::parse(request.url.as_str()).ok()?;
    let in_query = url
        .query_pairs()
        .find(|(name, _)| name == "dbname")
        .map(|(_, value)| value.into_owned());
    let in_path = percent_decoded(url.path().trim_start_matches('/'));
    in_query.or(in_path).filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use fettler_model::DatabaseUrl;

    use super::*;

    fn text(url: &str, role: &str, purposes: &[Purpose]) -> Result<String, EngineError> {
        let (url, _) = DatabaseUrl::parse_with_password(url).unwrap();
        grants(&GrantRequest {
            url: &url,
            role,
            purposes,
        })
        .map(|grants| grants.to_text())
    }

    #[test]
    fn a_role_for_backups_writes_nothing_and_names_are_quoted() {
        let text = text(
            "postgres://ann:hunter2@h/my%20%22shop",
            "o'\"x",
            &[Purpose::Backup],
        )
        .unwrap();
        assert!(text.contains("CREATE ROLE \"o'\"\"x\" LOGIN PASSWORD 'PASSWORD';"));
        assert!(text.contains("GRANT CONNECT ON DATABASE \"my \"\"shop\" TO"));
        assert!(text.contains("GRANT pg_read_all_data TO \"o'\"\"x\";"));
        assert!(text.contains("BYPASSRLS;") && !text.contains("CREATEDB"));
        assert!(!text.contains("hunter2"));
    }

    #[test]
    fn each_purpose_adds_its_own() {
        let of = |purposes: &[Purpose]| text("postgres://h", "fettler", purposes).unwrap();
        assert!(of(&[Purpose::Restore]).contains("ALTER ROLE \"fettler\" CREATEDB;"));
        assert!(of(&[Purpose::Prove]).contains("sandboxes"));
        let health = of(&[Purpose::Health]);
        assert!(health.contains("GRANT pg_monitor TO") && !health.contains("BYPASSRLS"));
        let all = of(&Purpose::ALL);
        assert_eq!(all.matches("CREATEDB").count(), 1);
        assert_eq!(all.matches("\nGRANT pg_read_all_data").count(), 1);
        assert!(!all.contains("ON DATABASE"));
    }

    #[test]
    fn a_name_that_the_server_would_not_take_is_refused() {
        for role in ["", "pg_x", &"x".repeat(64), "a\0b"] {
            assert!(text("postgres://h", role, &[Purpose::Backup]).is_err());
        }
    }
}
