//! The database that a restore fills: whether it is there and empty, making it, and the marker in it by
//! which attempts of one job follow each other without doubling a row (rule 6).
//!
//! The marker is the schema `fettler_restore`, which is dropped at the end. Every transaction of the
//! restore that writes rows also notes there what it wrote, and is refused once a newer attempt has taken over.

use fettler_engine::{AttemptName, EngineContext, EngineError};
use fettler_model::Warning;
use serde::{Deserialize, Serialize};

use crate::{
    catalogue::ServerFacts,
    connect::connect,
    data::{BackupData, DatabaseData, GrantData},
    names::{literal, quote_ident},
    params::Params,
    wire::Session,
};

/// The schema of the marker.
pub(crate) const MARKER_SCHEMA: &str = "fettler_restore";
/// Databases that are there on every server, to be connected to while another one is made.
const MAINTENANCE_DATABASES: [&str; 2] = ["postgres", "template1"];
/// Bytes of a name.
const NAME_BYTES: usize = 63;

/// How far a restore is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Stage {
    /// The database is there and empty.
    Made,
    /// Definitions are being made: half of them is worth nothing.
    Definitions,
    /// Rows are being copied.
    Rows,
    /// Indexes, constraints and triggers are being made.
    Indexes,
    /// Only the last steps are left.
    Finish,
}

impl Stage {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Made => "made",
            Self::Definitions => "definitions",
            Self::Rows => "rows",
            Self::Indexes => "indexes",
            Self::Finish => "finish",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        [
            Self::Made,
            Self::Definitions,
            Self::Rows,
            Self::Indexes,
            Self::Finish,
        ]
        .into_iter()
        .find(|stage| stage.as_str() == text)
    }
}

/// What the marker says.
#[derive(Clone, Debug)]
pub(crate) struct Marker {
    pub(crate) job: String,
    pub(crate) backup: String,
    pub(crate) stage: Stage,
}

/// What is in a database.
#[derive(Debug)]
pub(crate) enum Content {
    Nothing,
    HalfRestored(Marker),
    Something(String),
}

/// Connects to a database, or says that it does not exist.
pub(crate) async fn connect_if_there(
    params: &Params,
    application_name: &str,
) -> Result<Option<Session>, EngineError> {
    match connect(params, application_name).await {
        Ok(session) => Ok(Some(session)),
        Err(EngineError::Missing {
            code: "database", ..
        }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// A session beside the database that is made, renamed or dropped.
pub(crate) async fn connect_beside(
    params: &Params,
    application_name: &str,
) -> Result<Session, EngineError> {
    for database in MAINTENANCE_DATABASES
        .iter()
        .filter(|name| **name != params.database)
    {
        if let Some(session) =
            connect_if_there(&params.with_database(database), application_name).await?
        {
            return Ok(session);
        }
    }
    Err(EngineError::Missing {
        code: "database",
        what: format!(
            "{} has none of the databases {} to connect to while {:?} is made",
            params.server(),
            MAINTENANCE_DATABASES.join(", "),
            params.database
        ),
        remedy: "create an empty database and restore into it".to_owned(),
    })
}

/// Looks at what is in a database.
pub(crate) async fn examine(session: &mut Session) -> Result<Content, EngineError> {
    let doing = "looking at what is in the database";
    let marked = session
        .one(&format!(
            "SELECT to_regclass('{MARKER_SCHEMA}.attempt') IS NOT NULL"
        ))
        .await
        .map_err(|error| error.doing(doing))?
        .flag(0)?;
    if marked {
        let rows = session
            .query(&format!(
                "SELECT job, backup, stage FROM {MARKER_SCHEMA}.attempt"
            ))
            .await
            .map_err(|error| error.doing(doing))?;
        if let Some(row) = rows.first() {
            return Ok(Content::HalfRestored(Marker {
                job: row.string(0)?,
                backup: row.string(1)?,
                stage: Stage::parse(row.text(2)?).unwrap_or(Stage::Definitions),
            }));
        }
    }
    let row = session
        .one(
            "WITH members AS (SELECT classid, objid FROM pg_depend WHERE deptype = 'e'),
             users AS (SELECT oid FROM pg_namespace WHERE nspname !~ '^pg_' AND nspname <> 'information_schema')
             SELECT
                (SELECT count(*) FROM pg_class WHERE relnamespace IN (SELECT oid FROM users) AND relkind <> 'i'
                    AND NOT EXISTS (SELECT FROM members WHERE classid = 'pg_class'::regclass AND objid = pg_class.oid)),
                (SELECT count(*) FROM pg_proc WHERE pronamespace IN (SELECT oid FROM users)
                    AND NOT EXISTS (SELECT FROM members WHERE classid = 'pg_proc'::regclass AND objid = pg_proc.oid)),
                (SELECT count(*) FROM pg_type WHERE typnamespace IN (SELECT oid FROM users) AND typtype IN ('e', 'd', 'r')
                    AND NOT EXISTS (SELECT FROM members WHERE classid = 'pg_type'::regclass AND objid = pg_type.oid)),
                (SELECT count(*) FROM pg_namespace WHERE oid IN (SELECT oid FROM users) AND nspname <> 'public'
                    AND NOT EXISTS (SELECT FROM members WHERE classid = 'pg_namespace'::regclass AND objid = pg_namespace.oid)),
                (SELECT count(*) FROM pg_largeobject_metadata)",
        )
        .await
        .map_err(|error| error.doing(doing))?;
    let mut found = Vec::new();
    for (at, what) in [
        "tables and views",
        "functions",
        "types",
        "schemas",
        "large objects",
    ]
    .into_iter()
    .enumerate()
    {
        let count: u64 = row.get(at)?;
        if count > 0 {
            found.push(format!("{count} {what}"));
        }
    }
    Ok(if found.is_empty() {
        Content::Nothing
    } else {
        Content::Something(found.join(", "))
    })
}

/// The name of the database that is filled beside one that is to be replaced.
pub(crate) fn name_beside(database: &str, what: &str, attempt: &AttemptName) -> String {
    let simple = attempt.job.uuid().simple().to_string();
    let tail = format!("_fettler_{what}_{}", &simple[simple.len() - 12..]);
    let mut head = database.to_owned();
    while head.len() + tail.len() > NAME_BYTES {
        head.pop();
    }
    head + &tail
}

/// Makes the database with the encoding, locale and owner of the one that was backed up.
pub(crate) async fn create(
    beside: &mut Session,
    name: &str,
    data: &BackupData,
    give_owner: bool,
    warnings: &mut Vec<Warning>,
) -> Result<(), EngineError> {
    let source = &data.database;
    let server = ServerFacts::read(beside).await?;
    let exact = create_sql(name, source, &server, true);
    let doing = format!("creating the database {}", quote_ident(name));
    match beside.execute(&exact).await {
        Ok(()) => {}
        // 42704, 22023, 0A000, 42602: the locale, or its provider, is unknown there.
        Err(error)
            if matches!(
                error.code(),
                Some("42704" | "22023" | "0A000" | "42602" | "42809")
            ) =>
        {
            warnings.push(Warning {
                code: "postgres.locale".to_owned(),
                message: format!(
                    "the server cannot give a database the locale of the original (collation {}, character type {}{}), so that C.UTF-8 or C was used: {error}",
                    source.collate,
                    source.ctype,
                    source.locale.as_deref().map(|name| format!(", {name}")).unwrap_or_default(),
                ),
            });
            let plain = create_sql(name, source, &server, false);
            if let Err(error) = beside.execute(&plain).await {
                let c_locale = plain.replace("'C.UTF-8'", "'C'");
                tracing::debug!(%error, "C.UTF-8 is not there either");
                beside
                    .execute(&c_locale)
                    .await
                    .map_err(|error| error.doing(&doing))?;
            }
        }
        Err(error) => return Err(error.doing(&doing)),
    }
    if give_owner {
        let sql = format!(
            "ALTER DATABASE {} OWNER TO {}",
            quote_ident(name),
            quote_ident(&source.owner)
        );
        if let Err(error) = beside.execute(&sql).await {
            warnings.push(Warning {
                code: "postgres.database_owner".to_owned(),
                message: format!(
                    "the database could not be given its owner {}: {error}",
                    quote_ident(&source.owner)
                ),
            });
        }
    }
    Ok(())
}

fn create_sql(name: &str, source: &DatabaseData, server: &ServerFacts, exact: bool) -> String {
    let mut sql = format!(
        "CREATE DATABASE {} TEMPLATE template0 ENCODING {}",
        quote_ident(name),
        literal(&source.encoding)
    );
    let (collate, ctype) = if exact {
        (source.collate.as_str(), source.ctype.as_str())
    } else if source.encoding == "UTF8" {
        ("C.UTF-8", "C.UTF-8")
    } else {
        ("C", "C")
    };
    sql.push_str(&format!(
        " LC_COLLATE {} LC_CTYPE {}",
        literal(collate),
        literal(ctype)
    ));
    if server.major() >= 15 {
        match (source.provider.as_str(), &source.locale) {
            ("i", Some(locale)) if exact => {
                sql.push_str(&format!(
                    " LOCALE_PROVIDER icu ICU_LOCALE {}",
                    literal(locale)
                ));
                if let Some(rules) = source.icu_rules.as_ref().filter(|_| server.major() >= 16) {
                    sql.push_str(&format!(" ICU_RULES {}", literal(rules)));
                }
            }
            ("b", Some(locale)) if exact => {
                sql.push_str(&format!(
                    " LOCALE_PROVIDER builtin BUILTIN_LOCALE {}",
                    literal(locale)
                ));
            }
            _ => sql.push_str(" LOCALE_PROVIDER libc"),
        }
    }
    sql
}

/// Puts the marker into an empty database.
pub(crate) async fn mark(
    session: &mut Session,
    attempt: &AttemptName,
    backup: &str,
) -> Result<(), EngineError> {
    session
        .execute(&format!(
            "BEGIN;
             DROP SCHEMA IF EXISTS {MARKER_SCHEMA} CASCADE;
             CREATE SCHEMA {MARKER_SCHEMA};
             CREATE TABLE {MARKER_SCHEMA}.attempt (job text PRIMARY KEY, token bigint NOT NULL, backup text NOT NULL, stage text NOT NULL);
             CREATE TABLE {MARKER_SCHEMA}.done (item text PRIMARY KEY, token bigint NOT NULL, rows bigint NOT NULL);
             CREATE TABLE {MARKER_SCHEMA}.failed (statement text NOT NULL);
             INSERT INTO {MARKER_SCHEMA}.attempt VALUES ({}, {}, {}, '{}');
             COMMIT",
            literal(&attempt.job.to_string()),
            attempt.token.value(),
            literal(backup),
            Stage::Made.as_str()
        ))
        .await
        .map_err(|error| error.doing("marking the database as being restored"))
}

/// Takes a half-done restore over from an earlier attempt.
pub(crate) async fn take_over(
    session: &mut Session,
    attempt: &AttemptName,
) -> Result<(), EngineError> {
    let token = attempt.token.value();
    let taken = session
        .query(&format!(
            "UPDATE {MARKER_SCHEMA}.attempt SET token = {token}, job = {} WHERE token <= {token} OR job <> {0} RETURNING 1",
            literal(&attempt.job.to_string())
        ))
        .await
        .map_err(|error| error.doing("taking the restore over"))?;
    if taken.is_empty() {
        return Err(superseded());
    }
    Ok(())
}

/// The error of an attempt that finds that a newer one works in the database.
pub(crate) fn superseded() -> EngineError {
    EngineError::Database {
        what: "a newer attempt of this job has taken the restore over".to_owned(),
        transient: true,
    }
}

/// Goes on to a stage, with the statements that failed in the one before.
pub(crate) async fn advance(
    context: &EngineContext,
    session: &mut Session,
    stage: Stage,
    failed: &[String],
) -> Result<(), EngineError> {
    context.fence.check().await?;
    let mut sql = format!(
        "UPDATE {MARKER_SCHEMA}.attempt SET stage = '{}' WHERE token = {} RETURNING 1;",
        stage.as_str(),
        context.attempt.token.value()
    );
    for statement in failed {
        sql.push_str(&format!(
            "INSERT INTO {MARKER_SCHEMA}.failed VALUES ({});",
            literal(statement)
        ));
    }
    let rows = session
        .query(&sql)
        .await
        .map_err(|error| error.doing("noting how far the restore is"))?;
    if rows.is_empty() {
        return Err(superseded());
    }
    Ok(())
}

/// The statement that notes, in the transaction of its rows, that something is done; it gives no row where
/// a newer attempt has taken over.
pub(crate) fn note_sql(context: &EngineContext, item: &str, rows: &str) -> String {
    format!(
        "INSERT INTO {MARKER_SCHEMA}.done SELECT {}, token, {rows} FROM {MARKER_SCHEMA}.attempt
         WHERE token = {} FOR SHARE RETURNING 1",
        literal(item),
        context.attempt.token.value()
    )
}

/// Removes everything from a database but the marker.
pub(crate) async fn wipe(session: &mut Session) -> Result<(), EngineError> {
    session
        .execute(&format!(
            "SET client_min_messages = error;
             DO $fettler$
             DECLARE thing record;
             BEGIN
                FOR thing IN SELECT evtname AS name FROM pg_event_trigger LOOP
                    EXECUTE format('DROP EVENT TRIGGER %I', thing.name);
                END LOOP;
                FOR thing IN SELECT pubname AS name FROM pg_publication LOOP
                    EXECUTE format('DROP PUBLICATION %I', thing.name);
                END LOOP;
                FOR thing IN SELECT extname AS name FROM pg_extension WHERE extname <> 'plpgsql' LOOP
                    EXECUTE format('DROP EXTENSION IF EXISTS %I CASCADE', thing.name);
                END LOOP;
                FOR thing IN SELECT nspname AS name FROM pg_namespace
                    WHERE nspname !~ '^pg_' AND nspname NOT IN ('information_schema', '{MARKER_SCHEMA}') LOOP
                    EXECUTE format('DROP SCHEMA %I CASCADE', thing.name);
                END LOOP;
                FOR thing IN SELECT fdwname AS name FROM pg_foreign_data_wrapper LOOP
                    EXECUTE format('DROP FOREIGN DATA WRAPPER %I CASCADE', thing.name);
                END LOOP;
                FOR thing IN SELECT oid::text AS name FROM pg_cast WHERE oid >= 16384 LOOP
                    EXECUTE (SELECT format('DROP CAST IF EXISTS (%s AS %s)', format_type(castsource, NULL), format_type(casttarget, NULL))
                        FROM pg_cast WHERE oid = thing.name::oid);
                END LOOP;
                PERFORM lo_unlink(oid) FROM pg_largeobject_metadata;
                CREATE SCHEMA public;
                IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'pg_database_owner') THEN
                    ALTER SCHEMA public OWNER TO pg_database_owner;
                    GRANT USAGE ON SCHEMA public TO PUBLIC;
                ELSE
                    GRANT ALL ON SCHEMA public TO PUBLIC;
                END IF;
                COMMENT ON SCHEMA public IS 'standard public schema';
             END $fettler$;
             TRUNCATE {MARKER_SCHEMA}.done, {MARKER_SCHEMA}.failed"
        ))
        .await
        .map_err(|error| error.doing("removing what an earlier attempt had restored"))
}

/// Gives the database its own settings, grants and comment. They come last: a setting such as
/// `default_transaction_read_only` would stop the restore itself.
pub(crate) async fn give_properties(
    session: &mut Session,
    name: &str,
    source: &DatabaseData,
) -> Vec<String> {
    let database = quote_ident(name);
    let mut statements = Vec::new();
    if let Some(comment) = &source.comment {
        statements.push(format!(
            "COMMENT ON DATABASE {database} IS {}",
            literal(comment)
        ));
    }
    if source.connection_limit >= 0 {
        statements.push(format!(
            "ALTER DATABASE {database} CONNECTION LIMIT {}",
            source.connection_limit
        ));
    }
    for setting in &source.settings {
        let (name, value) = (
            quote_setting(&setting.name),
            setting_value(&setting.name, &setting.value),
        );
        statements.push(match &setting.role {
            None => format!("ALTER DATABASE {database} SET {name} TO {value}"),
            Some(role) => format!(
                "ALTER ROLE {} IN DATABASE {database} SET {name} TO {value}",
                quote_ident(role)
            ),
        });
    }
    if let Some(grants) = &source.grants {
        // The owner's own as well, so that all stand in the order in which they stood.
        statements.push(format!(
            "REVOKE ALL ON DATABASE {database} FROM PUBLIC, {}",
            quote_ident(&source.owner)
        ));
        statements.extend(
            grants
                .iter()
                .map(|grant| grant_sql(grant, &format!("DATABASE {database}"))),
        );
    }
    let mut failed = Vec::new();
    for statement in statements {
        if let Err(error) = session.execute(&statement).await {
            failed.push(format!("{error} (statement: {statement})"));
        }
    }
    failed
}

/// A `GRANT` statement.
pub(crate) fn grant_sql(grant: &GrantData, on: &str) -> String {
    format!(
        "GRANT {} ON {on} TO {}{}",
        grant.privilege,
        grant
            .grantee
            .as_deref()
            .map_or_else(|| "PUBLIC".to_owned(), quote_ident),
        if grant.with_grant_option {
            " WITH GRANT OPTION"
        } else {
            ""
        }
    )
}

/// A setting's name; extensions' ones have a dot.
fn quote_setting(name: &str) -> String {
    let parts: Vec<String> = name.split('.').map(quote_ident).collect();
    parts.join(".")
}

/// Settings that are lists of names are stored as they were written, with their own quotes.
fn setting_value(name: &str, value: &str) -> String {
    const LISTS: [&str; 7] = [
        "search_path",
        "temp_tablespaces",
        "local_preload_libraries",
        "session_preload_libraries",
        "shared_preload_libraries",
        "unix_socket_directories",
        "DateStyle",
    ];
    if !LISTS.iter().any(|list| list.eq_ignore_ascii_case(name)) || value.is_empty() {
        return literal(value);
    }
    let mut parts = vec![String::new()];
    let mut quoted = false;
    let mut letters = value.chars().peekable();
    while let Some(letter) = letters.next() {
        let part = parts.last_mut().expect("there is always a part");
        match letter {
            '"' if quoted && letters.next_if_eq(&'"').is_some() => part.push('"'),
            '"' => quoted = !quoted,
            ',' if !quoted => parts.push(String::new()),
            ' ' if !quoted => {}
            other => part.push(other),
        }
    }
    let parts: Vec<String> = parts.iter().map(|part| literal(part)).collect();
    parts.join(", ")
}

#[cfg(test)]
mod tests {
    use fettler_model::{AttemptToken, JobId};

    use super::*;

    #[test]
    fn a_name_beside_fits_and_is_the_same_for_every_attempt_of_a_job() {
        let job = JobId::new();
        let name = |random| {
            let attempt = AttemptName {
                job,
                token: AttemptToken::new(1, random),
            };
            name_beside(&"é".repeat(31), "new", &attempt)
        };
        assert_eq!(name(1), name(2));
        assert!(name(1).len() <= NAME_BYTES);
    }

    #[test]
    fn lists_keep_their_parts() {
        assert_eq!(
            setting_value("search_path", r#""$user", public, "a ""b""#),
            "'$user', 'public', 'a \"b'"
        );
        assert_eq!(setting_value("work_mem", "4MB"), "'4MB'");
        assert_eq!(quote_setting("app.user id"), r#""app"."user id""#);
    }
}
