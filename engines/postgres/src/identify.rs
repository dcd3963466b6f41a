//! Who a database is, and what its server allows: asked before any byte is read.

use fettler_engine::{BackupOptions, EngineError, Identity, PreflightItem, PreflightLevel, Target};
use fettler_model::{DatabaseName, Engine};

use crate::{
    PostgresEngine,
    catalogue::{self, Relation, ServerFacts},
    connect::connect,
    grants,
    names::{display_name, quote_ident},
    params::Params,
    wire::Session,
};

/// The oldest server whose catalogue is understood.
pub(crate) const OLDEST_MAJOR: u32 = 10;
/// Values of this size in TOAST are named by the preflight: a row of 1 GB cannot be sent, and the text
/// form of bytea has twice its size.
const LARGE_VALUE_BYTES: u64 = 400 * 1024 * 1024;
/// Bytes of a value in one row of a TOAST table.
const TOAST_CHUNK_BYTES: u64 = 1996;
/// How long the preflight looks for large values in one table.
const LARGE_VALUE_SECONDS: u32 = 10;
/// How many names a message lists.
const NAMES_LISTED: usize = 5;

/// The name of sessions that belong to no attempt.
pub(crate) const VISITOR: &str = "fettler";

/// Asks a database who it is.
pub(crate) async fn identify(target: &Target) -> Result<Identity, EngineError> {
    let params = Params::of(target)?;
    let mut session = connect(&params, VISITOR).await?;
    let identity = identity(&mut session, &params).await?;
    session.close().await;
    Ok(identity)
}

/// The same on a session.
pub(crate) async fn identity(
    session: &mut Session,
    params: &Params,
) -> Result<Identity, EngineError> {
    let server = ServerFacts::read(session).await?;
    let row = session
        .one("SELECT oid, datname, pg_database_size(oid) FROM pg_catalog.pg_database WHERE datname = current_database()")
        .await
        .map_err(|error| error.doing("looking at the database"))?;
    let (oid, name, bytes): (u32, String, u64) = (row.get(0)?, row.string(1)?, row.get(2)?);
    let (system, timeline) = match system(session).await {
        Ok(found) => found,
        // Some managed servers hide the control file. Address and port stand in for the cluster then: two ways
        // to one server look like two servers.
        Err(_hidden) => (params.server(), 0),
    };
    Ok(Identity {
        engine: Engine::Postgres,
        version: server.version_text,
        key: format!("postgres/{system}/{oid}"),
        lineage: format!("postgres/{system}/{timeline}"),
        suggested_name: suggested_name(&name),
        estimated_bytes: bytes,
    })
}

/// The cluster's own number, and its timeline.
async fn system(session: &mut Session) -> Result<(String, u32), EngineError> {
    let row = session
        .one(
            "SELECT s.system_identifier, c.timeline_id
             FROM pg_catalog.pg_control_system() s, pg_catalog.pg_control_checkpoint() c",
        )
        .await
        .map_err(|error| error.doing("asking for the system identifier"))?;
    Ok((row.string(0)?, row.get(1)?))
}

/// A valid name that looks like the database's.
fn suggested_name(name: &str) -> DatabaseName {
    let mut text: String = name
        .to_lowercase()
        .chars()
        .map(|letter| match letter {
            'a'..='z' | '0'..='9' | '-' | '_' | '.' => letter,
            _ => '-',
        })
        .take(63)
        .collect();
    if !text.starts_with(|first: char| first.is_ascii_alphanumeric()) {
        text = text
            .trim_start_matches(|first: char| !first.is_ascii_alphanumeric())
            .to_owned();
    }
    text.parse()
        .unwrap_or_else(|_| "postgres".parse().expect("this name is valid"))
}

/// What keeps a role from reading tables.
#[derive(Debug, Default)]
pub(crate) struct MissingRights {
    /// Statements that would help.
    pub(crate) grants: Vec<String>,
    /// Tables whose policies would hide rows.
    pub(crate) hidden_rows: Vec<String>,
    role: String,
}

impl MissingRights {
    /// Looks for tables and sequences that the session's role cannot read whole.
    pub(crate) async fn look(session: &mut Session) -> Result<Self, EngineError> {
        let rows = session
            .query(
                "SELECT n.nspname, c.relname, c.relkind, has_schema_privilege(n.oid, 'USAGE'),
                    CASE WHEN c.relkind = 'S' THEN has_sequence_privilege(c.oid, 'SELECT')
                        ELSE has_table_privilege(c.oid, 'SELECT') END,
                    c.relkind = 'r' AND row_security_active(c.oid), current_user
                 FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
                 WHERE c.relkind IN ('r', 'p', 'S') AND c.relpersistence <> 't'
                    AND n.nspname !~ '^pg_' AND n.nspname NOT IN ('information_schema', 'fettler_restore')
                    AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass
                        AND d.objid = c.oid AND d.objsubid = 0 AND d.deptype = 'e')
                 ORDER BY 1, 2",
            )
            .await
            .map_err(|error| error.doing("looking at the role's rights"))?;
        let mut missing = Self::default();
        for row in &rows {
            let (schema, name) = (row.text(0)?, row.text(1)?);
            row.text(6)?.clone_into(&mut missing.role);
            if !row.flag(3)? {
                let grant = grants::use_schema(schema, &missing.role);
                if !missing.grants.contains(&grant) {
                    missing.grants.push(grant);
                }
            }
            if !row.flag(4)? {
                let kind = if row.text(2)? == "S" { "SEQUENCE " } else { "" };
                missing
                    .grants
                    .push(grants::read_one(kind, schema, name, &missing.role));
            }
            if row.flag(5)? {
                missing.hidden_rows.push(display_name(schema, name));
            }
        }
        Ok(missing)
    }

    /// As an error, where something is missing.
    pub(crate) fn check(&self) -> Result<(), EngineError> {
        let role = quote_ident(&self.role);
        if !self.grants.is_empty() {
            return Err(EngineError::Missing {
                code: "permission",
                what: format!("the role {role} may not read everything in the database"),
                remedy: format!(
                    "{}; or, from version 14 on, {}",
                    shortened(&self.grants, "; "),
                    grants::read_everything(&self.role)
                ),
            });
        }
        if !self.hidden_rows.is_empty() {
            return Err(EngineError::Missing {
                code: "row_security",
                what: format!(
                    "row-level security hides rows of {} from the role {role}",
                    shortened(&self.hidden_rows, ", ")
                ),
                remedy: format!(
                    "{}, or leave these tables out with --exclude",
                    grants::see_all_rows(&self.role)
                ),
            });
        }
        Ok(())
    }
}

/// A list for a message, cut where it is long.
pub(crate) fn shortened(names: &[String], between: &str) -> String {
    let mut text = names[..names.len().min(NAMES_LISTED)].join(between);
    if names.len() > NAMES_LISTED {
        text.push_str(&format!("{between}and {} more", names.len() - NAMES_LISTED));
    }
    text
}

/// Says what role, version and tools allow.
pub(crate) async fn preflight(
    engine: &PostgresEngine,
    target: &Target,
    options: &BackupOptions,
) -> Result<Vec<PreflightItem>, EngineError> {
    let params = Params::of(target)?;
    let mut session = connect(&params, VISITOR).await?;
    let server = ServerFacts::read(&mut session).await?;
    let mut items = Vec::new();
    let mut say = |subject: &str, level, message: String, remedy: &str| {
        items.push(PreflightItem {
            subject: subject.to_owned(),
            level,
            message,
            remedy: remedy.to_owned(),
        });
    };
    use PreflightLevel::{Fine, Missing, Stops};

    if server.major() < OLDEST_MAJOR {
        say(
            "version",
            Stops,
            format!(
                "the server is PostgreSQL {}; {OLDEST_MAJOR} is the oldest that can be read",
                server.version_text
            ),
            "upgrade the server",
        );
    } else {
        let how = if server.major() < 14 {
            "; tables are read by one connection each, since ranges of a table need version 14"
        } else {
            ""
        };
        say(
            "version",
            Fine,
            format!("PostgreSQL {}{how}", server.version_text),
            "",
        );
    }
    match engine
        .tools
        .find("pg_dump", server.major(), server.major())
        .await
    {
        Ok(tool) => say(
            "pg_dump",
            Fine,
            format!("{} ({})", tool.path.display(), tool.version),
            "",
        ),
        Err(EngineError::Missing { what, remedy, .. }) => say("pg_dump", Stops, what, &remedy),
        Err(error) => return Err(error),
    }
    let rights = MissingRights::look(&mut session).await?;
    match rights.check() {
        Ok(()) => say(
            "role",
            Fine,
            format!("{} may read every table", quote_ident(&params.user)),
            "",
        ),
        Err(EngineError::Missing { what, remedy, code }) => {
            let subject = if code == "row_security" {
                "row-level security"
            } else {
                "role"
            };
            say(subject, Stops, what, &remedy);
        }
        Err(error) => return Err(error),
    }
    if can_read_passwords(&mut session).await? {
        say(
            "roles",
            Fine,
            "roles are kept with their passwords".to_owned(),
            "",
        );
    } else {
        say(
            "roles",
            Missing,
            "the role may not read pg_authid: roles are kept without their passwords".to_owned(),
            &format!(
                "{}, or use a superuser, where passwords must come back",
                grants::read_everything(&params.user)
            ),
        );
    }
    session
        .execute("SELECT pg_catalog.set_config('search_path', '', false)")
        .await
        .map_err(|error| error.doing("preparing a session"))?;
    let relations = catalogue::relations(&mut session, &server).await?;
    let named = |wanted: &dyn Fn(&Relation) -> bool| -> Vec<String> {
        relations
            .iter()
            .filter(|relation| wanted(relation))
            .map(|relation| display_name(&relation.schema, &relation.name))
            .collect()
    };
    let foreign = named(&|relation| relation.kind == 'f');
    if !foreign.is_empty() {
        say(
            "foreign tables",
            Missing,
            format!(
                "of {} only the definitions are kept: the rows lie elsewhere",
                shortened(&foreign, ", ")
            ),
            "back the other database up too",
        );
    }
    let unlogged = named(&|relation| relation.unlogged && relation.kind == 'r');
    if !unlogged.is_empty() && server.in_recovery {
        say(
            "unlogged tables",
            Missing,
            format!("a standby has no rows of {}", shortened(&unlogged, ", ")),
            "read the primary where these rows are wanted",
        );
    }
    for item in large_objects(&mut session, &server, &params.user).await? {
        say("large objects", item.0, item.1, &item.2);
    }
    let large = large_values(&mut session, &server, options).await?;
    if !large.is_empty() {
        say(
            "large rows",
            Missing,
            format!(
                "{} may hold rows near the 1 GB that the server can send; a larger row fails the backup",
                shortened(&large, ", ")
            ),
            "make such rows smaller, or leave the table's rows out with --exclude",
        );
    }
    session.close().await;
    Ok(items)
}

/// Whether roles can be kept with their passwords.
pub(crate) async fn can_read_passwords(session: &mut Session) -> Result<bool, EngineError> {
    session
        .one("SELECT has_table_privilege('pg_catalog.pg_authid', 'SELECT')")
        .await
        .map_err(|error| error.doing("looking at the role's rights"))?
        .flag(0)
}

async fn large_objects(
    session: &mut Session,
    server: &ServerFacts,
    role: &str,
) -> Result<Vec<(PreflightLevel, String, String)>, EngineError> {
    let count: u64 = session
        .one("SELECT count(*) FROM pg_catalog.pg_largeobject_metadata")
        .await
        .map_err(|error| error.doing("counting the large objects"))?
        .get(0)?;
    if count == 0 || server.is_superuser {
        return Ok(Vec::new());
    }
    let unreadable: u64 = session
        .one(
            "SELECT count(*) FROM pg_catalog.pg_largeobject_metadata m
             WHERE NOT pg_has_role(m.lomowner, 'USAGE') AND NOT EXISTS (
                SELECT FROM aclexplode(m.lomacl) a WHERE a.privilege_type = 'SELECT'
                    AND (a.grantee = 0 OR pg_has_role(a.grantee, 'USAGE')))
                AND NOT has_table_privilege('pg_catalog.pg_largeobject', 'SELECT')",
        )
        .await
        .map_err(|error| error.doing("looking at the large objects' grants"))?
        .get(0)?;
    Ok(if unreadable > 0 {
        vec![(
            PreflightLevel::Stops,
            format!("{unreadable} of {count} large objects may not be read"),
            format!(
                "{} (as a superuser), or GRANT SELECT ON LARGE OBJECT for each",
                grants::read_large_objects(role)
            ),
        )]
    } else {
        vec![(
            PreflightLevel::Fine,
            format!("{count} large objects can be read"),
            String::new(),
        )]
    })
}

/// Tables that hold values of hundreds of megabytes. Only a superuser may look; others are told nothing.
async fn large_values(
    session: &mut Session,
    server: &ServerFacts,
    options: &BackupOptions,
) -> Result<Vec<String>, EngineError> {
    if !server.is_superuser {
        return Ok(Vec::new());
    }
    let rows = session
        .query(&format!(
            "SELECT n.nspname, c.relname, t.relname FROM pg_class c
             JOIN pg_class t ON t.oid = c.reltoastrelid JOIN pg_namespace n ON n.oid = c.relnamespace
             WHERE c.relkind = 'r' AND t.relpages::bigint * {} > {LARGE_VALUE_BYTES} AND n.nspname !~ '^pg_'",
            server.block_bytes
        ))
        .await
        .map_err(|error| error.doing("looking for large values"))?;
    let excluded: Vec<_> = options
        .exclude
        .iter()
        .map(|text| crate::names::Pattern::parse(text))
        .collect();
    let mut large = Vec::new();
    for row in &rows {
        let (schema, name, toast) = (row.text(0)?, row.text(1)?, row.text(2)?);
        if excluded.iter().any(|pattern| pattern.matches(schema, name)) {
            continue;
        }
        let answer = session
            .query(&format!(
                "SET statement_timeout = '{LARGE_VALUE_SECONDS}s';
                 SELECT 1 FROM pg_toast.{} WHERE chunk_seq = {} LIMIT 1",
                quote_ident(toast),
                LARGE_VALUE_BYTES / TOAST_CHUNK_BYTES
            ))
            .await;
        // What cannot be told in time is named too.
        if answer.map_or(true, |rows| !rows.is_empty()) {
            large.push(display_name(schema, name));
        }
    }
    Ok(large)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_databases_name_gives_a_valid_one() {
        for (name, expected) in [
            ("Shop EU", "shop-eu"),
            ("_x", "x"),
            ("été", "t-"),
            ("***", "postgres"),
        ] {
            assert_eq!(suggested_name(name).as_str(), expected, "{name}");
        }
    }
}
