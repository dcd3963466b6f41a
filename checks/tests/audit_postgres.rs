//! The audit of PostgreSQL on real servers: each check fires for the fault that it is there for, and is silent without it.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

mod common;

use std::{
    collections::BTreeSet,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use common::{Audited, audited};
use fettler_checks::{Library, Releases, Service, Source, Verdict};
use fettler_model::{Engine, Severity};
use fettler_test_servers::{PgMajor, PostgresOptions, PostgresServer, wait_until};

const SHOWN_WITHIN: Duration = Duration::from_secs(60);

/// What a fresh server is told: it is quiet about who comes and goes, and nothing else.
const FRESH: [&str; 4] = [
    "postgres.connections_not_logged",
    "postgres.disconnections_not_logged",
    "postgres.log_lines_without_names",
    "postgres.statements_not_logged",
];

/// A client that stays, and is gone with the test.
struct Held(Child);

impl Held {
    fn new(mut command: Command, arguments: &[&str]) -> Self {
        Self(
            command
                .args(arguments)
                .stdin(Stdio::piped())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap(),
        )
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let _gone = self.0.kill();
        let _reaped = self.0.wait();
    }
}

fn asked(server: &PostgresServer) -> Audited {
    audited(&server.url("postgres"), None, &Releases::shipped())
}

fn fresh(major: PgMajor) -> PostgresServer {
    // The tests' own prefix of log lines would hide what a server comes with.
    let options = PostgresOptions::new()
        .durable()
        .setting("log_line_prefix", "%m [%p] ");
    PostgresServer::start(major, options).unwrap()
}

fn sql(server: &PostgresServer, text: &str) {
    server.psql("postgres", text).unwrap();
}

/// Which checks are open in one and not in the other.
fn more(now: &Audited, before: &[String]) -> Vec<String> {
    let mut keys = now.keys();
    keys.retain(|key| !before.contains(key));
    keys
}

#[test]
fn a_fresh_server_gives_an_audit_that_an_expert_would_sign() {
    for major in [PgMajor::V15, PgMajor::V18] {
        let server = fresh(major);
        let audited = asked(&server);
        assert_eq!(audited.keys(), FRESH, "{major:?}");
        assert_eq!(audited.not_made(), [], "{major:?}");
        assert_eq!(audited.service, None);
        let gravest = audited.judged.findings.iter().map(|one| one.severity).max();
        assert_eq!(gravest, Some(Severity::Low));
        // Every check has been asked, and hardly any does not apply.
        let idle: Vec<&str> = audited
            .judged
            .lines
            .iter()
            .filter(|line| line.verdict == Verdict::NotApplicable)
            .map(|line| line.check.as_str())
            .collect();
        let expected: &[&str] = match major {
            PgMajor::V15 => &[],
            PgMajor::V18 => &["postgres.users_of_databases"],
        };
        assert_eq!(idle, expected);
    }
}

#[test]
fn postgres_has_60_checks_and_at_most_a_third_compare_one_setting_with_a_constant() {
    let library = Library::shipped();
    let checks = library.of_audit(Engine::Postgres);
    assert!(checks.len() >= 60, "{}", checks.len());
    let of_one_setting = |question: &str| {
        let names =
            question.matches("name = '").count() + question.matches("current_setting('").count();
        let places = question.matches("FROM ").count();
        names == 1
            && places <= 1
            && question.contains("pg_settings")
            && !question.contains("unnest")
    };
    let constant = checks
        .iter()
        .filter(|check| {
            check.source == Source::Server
                && check
                    .variants
                    .iter()
                    .all(|one| of_one_setting(&one.question))
        })
        .count();
    assert!(constant >= 5, "the test counts nothing: {constant}");
    assert!(
        constant * 3 <= checks.len(),
        "{constant} of {}",
        checks.len()
    );
}

/// A fault that is made by SQL, what is found for it, and how it is taken back.
struct Fault {
    made: &'static str,
    found: &'static [&'static str],
    undone: &'static str,
}

const fn fault(made: &'static str, found: &'static [&'static str], undone: &'static str) -> Fault {
    Fault {
        made,
        found,
        undone,
    }
}

const FAULTS: &[Fault] = &[
    fault(
        "CREATE ROLE a SUPERUSER",
        &["extra_superusers:a"],
        "DROP ROLE a",
    ),
    fault(
        "CREATE ROLE a; GRANT postgres TO a",
        &["members_of_superusers:a"],
        "DROP ROLE a",
    ),
    fault(
        "CREATE ROLE a LOGIN CREATEROLE VALID UNTIL '2099-01-01' PASSWORD 'x'",
        &["roles_create_roles:a", "roles_unused:a"],
        "DROP ROLE a",
    ),
    fault(
        "CREATE ROLE a LOGIN CREATEDB VALID UNTIL '2099-01-01' PASSWORD 'x'",
        &["roles_create_databases:a", "roles_unused:a"],
        "DROP ROLE a",
    ),
    fault(
        "CREATE ROLE a LOGIN REPLICATION VALID UNTIL '2099-01-01' PASSWORD 'x'",
        &["roles_replicate:a", "replication_not_logged"],
        "DROP ROLE a",
    ),
    fault(
        "CREATE ROLE a BYPASSRLS",
        &["roles_bypass_row_security:a"],
        "DROP ROLE a",
    ),
    fault(
        "CREATE ROLE a; GRANT pg_execute_server_program TO a",
        &["members_of_server_programs:a"],
        "DROP ROLE a",
    ),
    fault(
        "CREATE ROLE a; GRANT pg_read_server_files TO a",
        &["members_of_server_files:a"],
        "DROP ROLE a",
    ),
    fault(
        "CREATE ROLE a LOGIN VALID UNTIL '2099-01-01' PASSWORD 'x'; GRANT pg_write_all_data TO a",
        &["members_of_all_data:a"],
        "DROP ROLE a",
    ),
    fault(
        "CREATE ROLE g; CREATE ROLE a; GRANT g TO a WITH ADMIN OPTION",
        &["admin_options:a in g"],
        "DROP ROLE a; DROP ROLE g",
    ),
    fault(
        "CREATE ROLE a; CREATE ROLE o; CREATE TABLE t (n int); ALTER TABLE t OWNER TO o; GRANT SELECT ON t TO a WITH GRANT OPTION",
        &["grant_options:public.t by a"],
        "DROP TABLE t; DROP ROLE a; DROP ROLE o",
    ),
    fault(
        "CREATE ROLE o; CREATE TABLE t (n int); ALTER TABLE t OWNER TO o; GRANT SELECT ON t TO PUBLIC",
        &["public_relations:public"],
        "DROP TABLE t; DROP ROLE o",
    ),
    fault(
        "CREATE ROLE o; CREATE TABLE t (n int); ALTER TABLE t OWNER TO o; GRANT SELECT (n) ON t TO PUBLIC",
        &["public_columns:public.t"],
        "DROP TABLE t; DROP ROLE o",
    ),
    fault(
        "GRANT CREATE ON SCHEMA public TO PUBLIC",
        &["public_schema_create:public"],
        "REVOKE CREATE ON SCHEMA public FROM PUBLIC",
    ),
    fault(
        "GRANT CREATE ON DATABASE postgres TO PUBLIC",
        &["public_database_rights:postgres"],
        "REVOKE CREATE ON DATABASE postgres FROM PUBLIC",
    ),
    fault(
        "CREATE ROLE o; CREATE FUNCTION f() RETURNS int LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS 'SELECT 1'; ALTER FUNCTION f OWNER TO o",
        &["public_definer_functions:public.f()"],
        "DROP FUNCTION f; DROP ROLE o",
    ),
    fault(
        "CREATE ROLE o; CREATE FUNCTION f() RETURNS int LANGUAGE sql SECURITY DEFINER AS 'SELECT 1'; REVOKE ALL ON FUNCTION f FROM PUBLIC; ALTER FUNCTION f OWNER TO o",
        &["definer_search_path:public.f()"],
        "DROP FUNCTION f; DROP ROLE o",
    ),
    fault(
        "CREATE ROLE o; CREATE SCHEMA s; GRANT CREATE ON SCHEMA s TO PUBLIC; CREATE FUNCTION f() RETURNS int LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, s AS 'SELECT 1'; REVOKE ALL ON FUNCTION f FROM PUBLIC; ALTER FUNCTION f OWNER TO o",
        &["definer_path_writable:public.f()", "public_schema_create:s"],
        "DROP FUNCTION f; DROP SCHEMA s; DROP ROLE o",
    ),
    fault(
        "CREATE ROLE a; CREATE FUNCTION f() RETURNS int LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS 'SELECT 1'; REVOKE ALL ON FUNCTION f FROM PUBLIC; GRANT EXECUTE ON FUNCTION f TO a",
        &["definer_superuser:public.f()"],
        "DROP FUNCTION f; DROP ROLE a",
    ),
    fault(
        "CREATE ROLE o; ALTER DEFAULT PRIVILEGES FOR ROLE o GRANT SELECT ON TABLES TO PUBLIC",
        &["default_privileges_public:o: tables in every schema"],
        "DROP OWNED BY o; DROP ROLE o",
    ),
    fault(
        "CREATE ROLE o; CREATE ROLE a; CREATE TABLE t (n int); ALTER TABLE t OWNER TO o; ALTER TABLE t ENABLE ROW LEVEL SECURITY; CREATE POLICY p ON t USING (n = 1); CREATE VIEW v AS SELECT * FROM t; ALTER VIEW v OWNER TO o; GRANT SELECT ON v TO a",
        &["views_over_row_security:public.v over public.t"],
        "DROP VIEW v; DROP TABLE t; DROP ROLE a; DROP ROLE o",
    ),
    fault(
        "CREATE ROLE o; CREATE TABLE t (n int); ALTER TABLE t OWNER TO o; CREATE POLICY p ON t USING (n = 1)",
        &["row_security_off_with_policies:public.t"],
        "DROP TABLE t; DROP ROLE o",
    ),
    fault(
        "CREATE ROLE o; CREATE TABLE t (n int); ALTER TABLE t OWNER TO o; ALTER TABLE t ENABLE ROW LEVEL SECURITY",
        &["row_security_without_policy:public.t"],
        "DROP TABLE t; DROP ROLE o",
    ),
    fault(
        "CREATE ROLE o LOGIN VALID UNTIL '2099-01-01' PASSWORD 'x'; CREATE TABLE t (n int); ALTER TABLE t OWNER TO o; ALTER TABLE t ENABLE ROW LEVEL SECURITY; CREATE POLICY p ON t USING (n = 1)",
        &["row_security_not_forced:public.t"],
        "DROP TABLE t; DROP ROLE o",
    ),
    fault(
        "CREATE ROLE o; CREATE TABLE t (n int); ALTER TABLE t OWNER TO o; ALTER TABLE t ENABLE ROW LEVEL SECURITY; CREATE POLICY p ON t USING (true)",
        &["row_policies_let_all:public.t.p"],
        "DROP TABLE t; DROP ROLE o",
    ),
    fault(
        "CREATE ROLE a LOGIN VALID UNTIL '2020-01-01' PASSWORD 'x'; GRANT pg_monitor TO a",
        &["roles_expired:a"],
        "DROP ROLE a",
    ),
    fault(
        "CREATE ROLE a LOGIN PASSWORD 'x'; GRANT pg_monitor TO a",
        &["roles_never_expire"],
        "DROP ROLE a",
    ),
    fault(
        "CREATE ROLE a LOGIN PASSWORD 'x' VALID UNTIL '2099-01-01'",
        &["roles_unused:a"],
        "DROP ROLE a",
    ),
    fault(
        "CREATE ROLE a LOGIN VALID UNTIL '2099-01-01'; GRANT pg_monitor TO a",
        &["passwords_missing:a"],
        "DROP ROLE a",
    ),
    fault(
        "CREATE ROLE a LOGIN VALID UNTIL '2099-01-01'; GRANT pg_monitor TO a; SET password_encryption = 'md5'; ALTER ROLE a PASSWORD 'long enough, and not guessed'",
        &["passwords_md5:a"],
        "DROP ROLE a",
    ),
    fault(
        "CREATE ROLE a LOGIN VALID UNTIL '2099-01-01'; GRANT pg_monitor TO a; SET password_encryption = 'md5'; ALTER ROLE a PASSWORD 'a'",
        &["passwords_guessed:a", "passwords_md5:a"],
        "DROP ROLE a",
    ),
    fault(
        "CREATE ROLE a LOGIN PASSWORD 'x' VALID UNTIL '2099-01-01'; CREATE ROLE b LOGIN PASSWORD 'x' VALID UNTIL '2099-01-01'; CREATE ROLE c LOGIN PASSWORD 'x' VALID UNTIL '2099-01-01'; GRANT pg_monitor TO a, b, c",
        &["password_rules_missing", "public_database_rights:postgres"],
        "DROP ROLE a; DROP ROLE b; DROP ROLE c",
    ),
    fault(
        "CREATE TABLE t (n int)",
        &["superuser_tables:postgres"],
        "DROP TABLE t",
    ),
    fault(
        "CREATE LANGUAGE loose HANDLER plpgsql_call_handler",
        &["untrusted_languages:loose"],
        "DROP LANGUAGE loose",
    ),
    fault(
        "CREATE FUNCTION f(text) RETURNS text LANGUAGE internal AS 'upper'",
        &["native_functions:public.f(text)"],
        "DROP FUNCTION f",
    ),
    fault(
        "CREATE ROLE a; GRANT SELECT (rolpassword) ON pg_authid TO a",
        &["secret_catalogs:pg_authid by a"],
        "DROP OWNED BY a; DROP ROLE a",
    ),
    fault(
        "CREATE ROLE a; GRANT EXECUTE ON FUNCTION pg_read_file(text) TO a",
        &["server_functions_granted:pg_read_file(text) by a"],
        "DROP OWNED BY a; DROP ROLE a",
    ),
    fault(
        "SELECT lo_from_bytea(7, '\\x01'); GRANT SELECT ON LARGE OBJECT 7 TO PUBLIC",
        &["large_objects_public"],
        "SELECT lo_unlink(7)",
    ),
    fault(
        "CREATE EXTENSION postgres_fdw; CREATE SERVER s FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host '127.0.0.1'); CREATE USER MAPPING FOR PUBLIC SERVER s OPTIONS (user 'x', password 'x')",
        &["user_mappings_public:s"],
        "DROP SERVER s CASCADE; DROP EXTENSION postgres_fdw",
    ),
    fault(
        "CREATE ROLE a; CREATE EXTENSION postgres_fdw; CREATE SERVER s FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host '127.0.0.1'); CREATE USER MAPPING FOR a SERVER s OPTIONS (password_required 'false')",
        &["user_mappings_without_password:s for a"],
        "DROP SERVER s CASCADE; DROP EXTENSION postgres_fdw; DROP ROLE a",
    ),
    fault(
        "CREATE EXTENSION postgres_fdw; CREATE SERVER s FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host '127.0.0.1'); GRANT USAGE ON FOREIGN SERVER s TO PUBLIC",
        &["foreign_servers_public:foreign server s"],
        "DROP SERVER s; DROP EXTENSION postgres_fdw",
    ),
    fault(
        "CREATE EXTENSION postgres_fdw; CREATE SERVER s FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host 'db2')",
        &["foreign_servers_without_tls:s"],
        "DROP SERVER s; DROP EXTENSION postgres_fdw",
    ),
    fault(
        "GRANT CREATE ON TABLESPACE pg_default TO PUBLIC",
        &["tablespaces_public:pg_default"],
        "REVOKE CREATE ON TABLESPACE pg_default FROM PUBLIC",
    ),
    fault(
        "CREATE ROLE a; GRANT SET ON PARAMETER log_statement TO a",
        &["parameters_granted:log_statement by a"],
        "DROP OWNED BY a; DROP ROLE a",
    ),
    fault(
        "CREATE ROLE a; ALTER ROLE a SET log_statement = 'none'",
        &["log_switched_off_for_some:a in every database: log_statement=none"],
        "DROP ROLE a",
    ),
    fault(
        "CREATE SUBSCRIPTION s CONNECTION 'host=db2 dbname=x' PUBLICATION p WITH (connect = false, slot_name = NONE)",
        &["subscriptions_without_tls:s"],
        "DROP SUBSCRIPTION s",
    ),
    fault(
        "CREATE EXTENSION dblink",
        &["risky_extensions:dblink"],
        "DROP EXTENSION dblink",
    ),
    fault(
        "CREATE SCHEMA e; CREATE EXTENSION hstore VERSION '1.4' SCHEMA e",
        &["extensions_outdated:hstore"],
        "DROP EXTENSION hstore; DROP SCHEMA e",
    ),
    fault(
        "CREATE SCHEMA e; GRANT CREATE ON SCHEMA e TO PUBLIC; CREATE EXTENSION hstore SCHEMA e",
        &["extensions_in_open_schema:hstore", "public_schema_create:e"],
        "DROP EXTENSION hstore; DROP SCHEMA e",
    ),
    fault(
        "CREATE ROLE a LOGIN PASSWORD 'x' VALID UNTIL '2099-01-01'; GRANT CREATE ON DATABASE postgres TO a; CREATE SCHEMA e AUTHORIZATION a; SET ROLE a; CREATE EXTENSION hstore SCHEMA e; RESET ROLE",
        &["extensions_of_others:hstore"],
        "DROP EXTENSION hstore; DROP SCHEMA e; DROP OWNED BY a; DROP ROLE a",
    ),
];

/// Settings that are wrong, in one look for as many as do not stand in each other's way.
const SETTINGS: &[(&str, &str, &str)] = &[
    ("password_encryption", "md5", "password_encryption_md5"),
    (
        "authentication_timeout",
        "10min",
        "authentication_timeout_long",
    ),
    ("lo_compat_privileges", "on", "large_objects_unchecked"),
    ("ssl_ciphers", "HIGH:RC4-SHA", "tls_weak_ciphers"),
    (
        "primary_conninfo",
        "host=db1 user=repl password=hunter2",
        "upstream_without_tls:primary_conninfo",
    ),
    (
        "restore_command",
        "PGPASSWORD=hunter2 copy %p",
        "secrets_in_settings:restore_command",
    ),
    (
        "log_min_error_statement",
        "panic",
        "log_errors_left_out:log_min_error_statement",
    ),
    (
        "log_min_duration_statement",
        "0",
        "log_values_of_statements",
    ),
    ("debug_print_plan", "on", "log_of_internals"),
    ("row_security", "off", "row_security_off"),
    ("zero_damaged_pages", "on", "developer_settings"),
    ("transform_null_equals", "on", "quoting_loose"),
    (
        "dynamic_library_path",
        "/opt/lib:$libdir",
        "library_paths:dynamic_library_path",
    ),
];

#[test]
fn each_check_of_rights_fires_for_its_fault_alone_and_is_silent_once_it_is_gone() {
    for major in [PgMajor::V15, PgMajor::V18] {
        let server = fresh(major);
        let before = asked(&server).keys();
        let mut wrong = Vec::new();
        for fault in FAULTS {
            sql(&server, fault.made);
            let found = more(&asked(&server), &before);
            let expected: Vec<String> = fault
                .found
                .iter()
                .map(|key| format!("postgres.{key}"))
                .collect();
            if found.iter().collect::<BTreeSet<_>>() != expected.iter().collect() {
                wrong.push(format!(
                    "{}\n  expected {expected:?}\n  found    {found:?}",
                    fault.made
                ));
            }
            sql(&server, fault.undone);
        }
        assert!(wrong.is_empty(), "{major:?}\n{}", wrong.join("\n"));
        assert_eq!(asked(&server).keys(), before);
    }
}

#[test]
fn each_check_of_settings_fires_for_its_setting_alone() {
    for major in [PgMajor::V15, PgMajor::V18] {
        let server = fresh(major);
        let before = asked(&server).keys();
        let mut wrong = Vec::new();
        for (name, value, found) in SETTINGS {
            sql(&server, &format!("ALTER SYSTEM SET {name} = '{value}'"));
            sql(&server, "SELECT pg_reload_conf()");
            let mut last = Vec::new();
            let waited = wait_until("the setting", Duration::from_secs(5), || {
                last = more(&asked(&server), &before);
                !last.is_empty()
            });
            let mut expected = vec![format!("postgres.{found}")];
            if *name == "primary_conninfo" {
                expected.push("postgres.secrets_in_settings:primary_conninfo".to_owned());
                expected.sort();
                last.sort();
            }
            if waited.is_err() || last != expected {
                wrong.push(format!(
                    "{name} = {value}: expected {expected:?}, found {last:?}"
                ));
            }
            sql(&server, &format!("ALTER SYSTEM RESET {name}"));
            sql(&server, "SELECT pg_reload_conf()");
            wait_until("the reset", SHOWN_WITHIN, || {
                asked(&server).keys() == before
            })
            .unwrap();
        }
        assert!(wrong.is_empty(), "{major:?}\n{}", wrong.join("\n"));
    }
}

#[test]
fn each_check_of_settings_that_want_a_start_fires_together_with_its_like() {
    let options = PostgresOptions::new()
        .durable()
        .tls()
        .setting("log_line_prefix", "%m [%p] ")
        .setting("allow_system_table_mods", "on")
        .setting("ssl_min_protocol_version", "TLSv1")
        .setting("logging_collector", "on")
        .setting("log_file_mode", "0644")
        .setting("log_filename", "one.log")
        .setting("log_rotation_age", "0")
        .setting("log_rotation_size", "0")
        .setting("listen_addresses", "*")
        .initdb_argument("--allow-group-access");
    let server = PostgresServer::start(PgMajor::V15, options).unwrap();
    let fresh: Vec<String> = FRESH.iter().map(ToString::to_string).collect();
    assert_eq!(
        more(&asked(&server), &fresh),
        [
            "postgres.catalogues_writable",
            "postgres.data_folder_open",
            "postgres.listens_everywhere",
            "postgres.log_files_never_change",
            "postgres.log_files_readable",
            "postgres.tls_old_versions",
        ]
    );
    // Whoever logs in is called otherwise from then on.
    sql(
        &server,
        &format!(
            "CREATE ROLE \"postgres@postgres\" SUPERUSER LOGIN PASSWORD '{}'",
            server.password()
        ),
    );
    sql(&server, "ALTER SYSTEM SET db_user_namespace = on");
    sql(&server, "SELECT pg_reload_conf()");
    wait_until("the setting", SHOWN_WITHIN, || {
        asked(&server)
            .keys()
            .contains(&"postgres.users_of_databases".to_owned())
    })
    .unwrap();
    // On the network and without TLS, which version 18 of the tests has not at all.
    let options = PostgresOptions::new()
        .durable()
        .setting("log_line_prefix", "%m [%p] ")
        .setting("listen_addresses", "*");
    let server = PostgresServer::start(PgMajor::V18, options).unwrap();
    assert_eq!(
        more(&asked(&server), &fresh),
        ["postgres.listens_everywhere", "postgres.tls_off"]
    );
    sql(
        &server,
        "ALTER SYSTEM SET log_connections = 'all'; ALTER SYSTEM SET log_disconnections = on",
    );
    sql(&server, "ALTER SYSTEM SET log_statement = 'ddl'");
    sql(
        &server,
        "ALTER SYSTEM SET log_line_prefix = '%m %u@%d '; SELECT pg_reload_conf()",
    );
    wait_until("the settings", SHOWN_WITHIN, || {
        asked(&server).keys() == ["postgres.listens_everywhere", "postgres.tls_off"]
    })
    .unwrap();
}

/// Lines of `pg_hba.conf`, and what each is found for. They stand behind those that let the test in.
#[test]
fn each_check_of_access_rules_fires_for_its_rule_alone() {
    const RULES: &[(&str, &[&str])] = &[
        (
            "host x x 10.0.0.0/8 trust",
            &[
                "hba_trust:host x x 10.0.0.0",
                "hba_without_tls:host x x 10.0.0.0",
            ],
        ),
        ("local x x trust", &["hba_trust:local x x local"]),
        (
            "host x x 127.0.0.1/32 password",
            &["hba_password_plain:host x x 127.0.0.1"],
        ),
        ("host x x 127.0.0.1/32 md5", &["hba_md5:host x x 127.0.0.1"]),
        (
            "host x x 127.0.0.1/32 ident",
            &["hba_ident:host x 127.0.0.1"],
        ),
        (
            "hostssl all all 0.0.0.0/0 scram-sha-256",
            &["hba_everybody:hostssl 0.0.0.0 scram-sha-256"],
        ),
        (
            "host all all all scram-sha-256",
            &[
                "hba_everybody:host all scram-sha-256",
                "hba_without_tls:host all all all",
            ],
        ),
        (
            "hostssl replication r all scram-sha-256",
            &["hba_replication_everywhere:hostssl r all"],
        ),
        (
            "host x x 127.0.0.1/32 ldap ldapserver=l ldapprefix=\"cn=\"",
            &["hba_ldap_plain:line 0"],
        ),
        ("host x x 127.0.0.1/32 scam-sha-256", &["hba_errors:line 0"]),
        ("hostssl x x 10.0.0.0/8 scram-sha-256", &[]),
        ("host x x 10.0.0.0/8 reject", &[]),
    ];
    // With TLS, without which a rule of hostssl is a mistake.
    let options = PostgresOptions::new()
        .durable()
        .tls()
        .setting("log_line_prefix", "%m [%p] ");
    let server = PostgresServer::start(PgMajor::V15, options).unwrap();
    let before = asked(&server).keys();
    let path = server.data_dir().join("pg_hba.conf");
    let text = std::fs::read_to_string(&path).unwrap();
    let line = text.lines().count() + 1;
    for (rule, found) in RULES {
        std::fs::write(&path, format!("{text}{rule}\n")).unwrap();
        let expected: Vec<String> = found
            .iter()
            .map(|key| format!("postgres.{key}").replace("line 0", &format!("line {line}")))
            .collect();
        assert_eq!(more(&asked(&server), &before), expected, "{rule}");
    }
    std::fs::write(&path, text).unwrap();
    assert_eq!(asked(&server).keys(), before);
}

/// Writes a check that ships into a folder of own ones, changed.
fn changed(folder: &Path, name: &str, changes: &[(&str, &str)]) {
    let mut text = Library::shipped_text(&format!("checks/postgres/audit/{name}.yaml"))
        .unwrap()
        .to_owned();
    for (from, to) in changes {
        assert!(text.contains(from), "{name}: {from}");
        text = text.replace(from, to);
    }
    std::fs::write(folder.join(format!("{name}.yaml")), text).unwrap();
}

/// A test's clients are on the test's machine: what is said of other machines is said here of this one.
#[test]
fn each_check_of_sessions_fires_while_somebody_is_connected_so() {
    let options = PostgresOptions::new().durable().tls();
    let server = PostgresServer::start(PgMajor::V15, options).unwrap();
    let own = tempfile::tempdir().unwrap();
    let here = [
        ("AND NOT a.client_addr <<= '127.0.0.0/8' ", ""),
        ("AND a.client_addr <> '::1'", ""),
    ];
    changed(own.path(), "sessions_without_tls", &here);
    changed(own.path(), "superusers_from_afar", &here);
    changed(
        own.path(),
        "replication_without_tls",
        &[(
            "AND NOT r.client_addr <<= '127.0.0.0/8' AND r.client_addr <> '::1'",
            "",
        )],
    );
    changed(
        own.path(),
        "sessions_old_tls",
        &[("'TLSv1.1',", "'TLSv1.1', 'TLSv1.2', 'TLSv1.3',")],
    );
    changed(own.path(), "address_public", &[("'127.0.0.0/8', ", "")]);
    let ask = || {
        audited(
            &server.url("postgres"),
            Some(own.path()),
            &Releases::shipped(),
        )
    };
    sql(
        &server,
        "CREATE ROLE app LOGIN PASSWORD 'app' VALID UNTIL '2099-01-01'; CREATE SCHEMA s AUTHORIZATION app; CREATE TABLE s.t (n int); ALTER TABLE s.t OWNER TO app",
    );
    let of = |audited: &Audited, checks: &[&str]| -> Vec<String> {
        let mut keys = audited.keys();
        keys.retain(|key| {
            checks
                .iter()
                .any(|check| key.starts_with(&format!("postgres.{check}")))
        });
        keys
    };
    let checks = [
        "sessions_",
        "superusers_",
        "replication_without_tls",
        "address_public",
        "owners_log_in",
        "passwords_in_statements",
    ];
    let alone = of(&ask(), &checks);
    // Fettler's own session comes by TLS here.
    assert!(
        alone
            .iter()
            .all(|key| key.starts_with("postgres.address_public")
                || key.starts_with("postgres.sessions_old_tls:postgres")
                || key.starts_with("postgres.sessions_without_tls:postgres")),
        "{alone:?}"
    );
    let client = |mode: &str, user: &str| {
        let mut command = server.command("psql", "postgres").unwrap();
        command.env("PGSSLMODE", mode).env("PGHOST", "127.0.0.1");
        if user == "app" {
            command.env("PGUSER", "app").env("PGPASSWORD", "app");
        }
        command
    };
    let plain = Held::new(client("disable", "app"), &["-Xqc", "SELECT pg_sleep(600)"]);
    let sealed = Held::new(client("require", "app"), &["-Xqc", "SELECT pg_sleep(600)"]);
    let root = Held::new(
        client("require", "postgres"),
        &[
            "-Xqc",
            "SELECT 'ALTER ROLE app PASSWORD ''hunter2''', pg_sleep(600)",
        ],
    );
    let mut local = server.command("psql", "postgres").unwrap();
    local.env("PGHOST", server.data_dir().parent().unwrap());
    let local = Held::new(local, &["-Xqc", "SELECT pg_sleep(600)"]);
    let mut receive = server.command("pg_receivewal", "postgres").unwrap();
    receive
        .env("PGAPPNAME", "reader")
        .env("PGSSLMODE", "disable")
        .env("PGHOST", "127.0.0.1");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().display().to_string();
    let reader = Held::new(receive, &["--no-password", "-D", &path]);
    let wanted = [
        "postgres.address_public:127.0.0.1",
        "postgres.owners_log_in:app",
        "postgres.passwords_in_statements:postgres",
        "postgres.replication_without_tls:reader",
        "postgres.sessions_without_tls:app",
        "postgres.superusers_from_afar:postgres",
        "postgres.superusers_shared:postgres",
    ];
    let mut last = Vec::new();
    wait_until("the sessions", SHOWN_WITHIN, || {
        last = of(&ask(), &checks);
        wanted.iter().all(|key| last.contains(&(*key).to_owned()))
            && last
                .iter()
                .any(|key| key.starts_with("postgres.sessions_old_tls:app"))
    })
    .unwrap_or_else(|error| panic!("{error}: {last:?}"));
    // As they ship, they leave clients of the machine itself alone.
    let shipped = of(
        &asked(&server),
        &[
            "sessions_",
            "superusers_from_afar",
            "replication_without_tls",
            "address_public",
        ],
    );
    assert_eq!(shipped, [""; 0]);
    // A server that sleeps does not see that its client is gone.
    sql(
        &server,
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type IN ('client backend', 'walsender') AND pid <> pg_backend_pid()",
    );
    drop((plain, sealed, root, local, reader));
    wait_until("they are gone", SHOWN_WITHIN, || {
        of(&ask(), &checks) == alone
    })
    .unwrap();
}

#[test]
fn each_check_of_releases_fires_for_a_release_that_is_old_and_lists_that_are_not_known_judge_nothing()
 {
    let server = PostgresServer::start(PgMajor::V15, PostgresOptions::new()).unwrap();
    let with = |change: &dyn Fn(&mut Releases)| {
        let mut list = Releases::shipped();
        change(&mut list);
        let found = audited(&server.url("postgres"), None, &list);
        let of_versions = |check: &str| {
            [
                "end_of_life",
                "end_of_life_near",
                "release_behind",
                "known_vulnerability",
            ]
            .iter()
            .any(|one| check == format!("postgres.{one}"))
        };
        let keys: Vec<String> = found
            .judged
            .findings
            .iter()
            .filter(|one| of_versions(&one.check))
            .map(|one| one.key.clone())
            .collect();
        keys
    };
    let line = |list: &mut Releases, change: &dyn Fn(&mut fettler_checks::Release)| {
        let lines = list.releases.get_mut(&Engine::Postgres).unwrap();
        change(lines.iter_mut().find(|one| one.line == "15").unwrap());
    };
    assert_eq!(with(&|_| {}), [""; 0]);
    assert_eq!(
        with(&|list| line(list, &|one| one.end_of_life = Some("2026-05-01".to_owned()))),
        ["postgres.end_of_life"]
    );
    assert_eq!(
        with(&|list| line(list, &|one| one.end_of_life = Some("2026-07-01".to_owned()))),
        ["postgres.end_of_life_near"]
    );
    assert_eq!(
        with(&|list| line(list, &|one| one.latest = "15.99".to_owned())),
        ["postgres.release_behind"]
    );
    assert_eq!(
        with(&|list| {
            let known = list.vulnerabilities.get_mut(&Engine::Postgres).unwrap();
            known[0].fixed_in = vec!["15.99".to_owned()];
        }),
        ["postgres.known_vulnerability:CVE-2026-6473"]
    );
    let unknown = with(&|list| list.releases.get_mut(&Engine::Postgres).unwrap().clear());
    assert_eq!(
        unknown,
        [
            "postgres.end_of_life:not_evaluable",
            "postgres.end_of_life_near:not_evaluable",
            "postgres.release_behind:not_evaluable"
        ]
    );
}

#[test]
fn a_role_without_rights_passes_nothing_that_it_cannot_see_and_the_granted_one_sees_it_all_but_hashes()
 {
    let server = fresh(PgMajor::V15);
    sql(&server, "CREATE ROLE poor LOGIN PASSWORD 'poor'");
    let ask = || {
        audited(
            &server.url_as("poor", "poor", "postgres"),
            None,
            &Releases::shipped(),
        )
    };
    let not_made = |audited: &Audited| -> BTreeSet<String> {
        audited
            .not_made()
            .into_iter()
            .map(|(check, _)| check.trim_start_matches("postgres.").to_owned())
            .collect()
    };
    let poor = not_made(&ask());
    for hidden in [
        "hba_trust",
        "hba_errors",
        "passwords_md5",
        "passwords_guessed",
        "sessions_without_tls",
        "superusers_shared",
        "secrets_in_settings",
        "settings_unread",
        "subscriptions_without_tls",
        "library_paths",
    ] {
        assert!(poor.contains(hidden), "{hidden}: {poor:?}");
    }
    sql(
        &server,
        "GRANT pg_monitor TO poor;
         GRANT SELECT ON pg_catalog.pg_hba_file_rules TO poor; GRANT EXECUTE ON FUNCTION pg_catalog.pg_hba_file_rules() TO poor;
         GRANT SELECT ON pg_catalog.pg_file_settings TO poor; GRANT EXECUTE ON FUNCTION pg_catalog.pg_show_all_file_settings() TO poor",
    );
    let rich: Vec<String> = not_made(&ask()).into_iter().collect();
    assert_eq!(
        rich,
        [
            "passwords_guessed",
            "passwords_md5",
            "passwords_missing",
            "subscriptions_without_tls"
        ]
    );
    // What was granted for the audit is no finding of it.
    let found = ask().keys();
    assert_eq!(found, FRESH, "{found:?}");

    // The roles of a managed service are told, and what it hides has another place.
    sql(
        &server,
        "CREATE ROLE rdsadmin SUPERUSER LOGIN; CREATE ROLE rds_superuser; REVOKE SELECT ON pg_catalog.pg_hba_file_rules FROM poor",
    );
    let managed = ask();
    assert_eq!(managed.service, Some(Service::Rds));
    let because = managed
        .not_made()
        .into_iter()
        .find(|(check, _)| check == "postgres.hba_everybody")
        .unwrap()
        .1;
    assert!(
        because.starts_with("Amazon RDS hides it") && because.contains("security groups"),
        "{because}"
    );
    assert!(
        !managed.keys().iter().any(|key| key.contains("rdsadmin")),
        "{:?}",
        managed.keys()
    );
}

#[test]
fn what_changes_between_two_audits_is_found_until_it_is_accepted() {
    for major in [PgMajor::V15, PgMajor::V18] {
        let server = fresh(major);
        sql(
            &server,
            "CREATE ROLE old; CREATE TABLE t (n int); CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1'",
        );
        let first = asked(&server).snapshot;
        assert_eq!(asked(&server).snapshot.changes_since(&first), []);
        let text = serde_json::to_string(&first).unwrap();
        assert!(
            !text.contains("SCRAM") && !text.contains("s3cret"),
            "{text}"
        );
        sql(
            &server,
            "ALTER ROLE old SUPERUSER; CREATE ROLE new LOGIN PASSWORD 'hunter2'; GRANT old TO new; ALTER TABLE t ADD m int;
             GRANT SELECT ON t TO new; CREATE OR REPLACE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 2'; CREATE EXTENSION hstore;
             ALTER ROLE new SET app.secret = 'hunter2'",
        );
        sql(
            &server,
            "ALTER SYSTEM SET archive_command = 'PGPASSWORD=hunter2 x'",
        );
        sql(&server, "ALTER SYSTEM SET work_mem = '5MB'");
        sql(&server, "SELECT pg_reload_conf()");
        let path = server.data_dir().join("pg_hba.conf");
        let rules = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, format!("{rules}host x x 10.0.0.0/8 trust\n")).unwrap();
        wait_until("the settings", SHOWN_WITHIN, || {
            server.psql("postgres", "SHOW work_mem").unwrap() == "5MB"
        })
        .unwrap();
        let now = asked(&server).snapshot;
        let text = serde_json::to_string(&now).unwrap();
        assert!(
            !text.contains("hunter2") && !text.contains("SCRAM"),
            "{text}"
        );
        let judged = now.judged(&first);
        let mut found: Vec<&str> = judged.findings.iter().map(|one| one.key.as_str()).collect();
        found.sort_unstable();
        assert_eq!(
            found,
            [
                "postgres.drift_access_rules:rule host x x 10.0.0.0 255.0.0.0 trust",
                "postgres.drift_extensions:extension hstore",
                "postgres.drift_grants:grants on public.t",
                "postgres.drift_roles:membership of new in old",
                "postgres.drift_roles:role new",
                "postgres.drift_roles:role old",
                "postgres.drift_roles:settings of role new",
                "postgres.drift_schema:function public.f()",
                "postgres.drift_schema:table public.t",
                "postgres.drift_settings:setting archive_command",
                "postgres.drift_settings:setting work_mem",
            ],
            "{major:?}"
        );
        let of = |key: &str| {
            judged
                .findings
                .iter()
                .find(|one| one.key.ends_with(key))
                .unwrap()
        };
        assert_eq!(of("role old").severity, Severity::High);
        assert_eq!(of("trust").severity, Severity::High);
        assert_eq!(of("work_mem").evidence["now"], "5120");
        let mut kept = first.clone();
        assert_eq!(kept.accept(&now, &["all".to_owned()]), 11);
        assert_eq!(now.changes_since(&kept), []);
    }
}

#[test]
fn every_check_that_asks_a_server_has_its_fault_here() {
    let text = include_str!("audit_postgres.rs");
    let library = Library::shipped();
    let missing: Vec<&str> = library
        .of_audit(Engine::Postgres)
        .into_iter()
        .map(|check| check.id.trim_start_matches("postgres."))
        .filter(|name| !text.contains(name))
        .collect();
    assert_eq!(missing, [""; 0]);
}
