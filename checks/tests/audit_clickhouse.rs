//! The audit of ClickHouse on real servers: the engine of today with users of its own file of users, and the server of 2018. Each
//! check of users, rights, policies, logs and definitions fires for its fault, and an installation as it is delivered is told
//! what an expert would tell it. Sessions from other machines, TLS, certificates and programs are judged on lines of the
//! documented form, which stand in the checks' files.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

mod common;

use common::{Audited, audited};
use fettler_checks::{Library, Part, Releases, Section, Source, Verdict};
use fettler_model::Engine;
use fettler_test_servers::{ClickhouseServer, ClickhouseVersion};

/// The user, profile and quota of the file that packages bring.
const DEFAULT: &str = "<default><password></password><networks><ip>::/0</ip></networks><profile>default</profile><quota>default</quota><access_management>1</access_management><named_collection_control>1</named_collection_control></default>";
const PROFILES: &str = "<profiles><default/><readonly><readonly>1</readonly></readonly></profiles><quotas><default><interval><duration>3600</duration><queries>0</queries><errors>0</errors><result_rows>0</result_rows><read_rows>0</read_rows><execution_time>0</execution_time></interval></default></quotas>";

/// What such an installation is told, where it has no logs: the engine of the tests has none.
const FRESH: [&str; 4] = [
    "clickhouse.administrators_from_anywhere:default",
    "clickhouse.anonymous_let_in",
    "clickhouse.query_log_off",
    "clickhouse.session_log_off",
];

/// A server with these users beside `default`, each as `<name>…</name>`.
fn with_users(users: &str) -> ClickhouseServer {
    configured("", "", users)
}

fn configured(configuration: &str, beside: &str, users: &str) -> ClickhouseServer {
    ClickhouseServer::start_with_users(
        configuration,
        &format!("{PROFILES}{beside}<users>{DEFAULT}{users}</users>"),
    )
    .unwrap()
}

/// A user with a hash, from one network, with these grants.
fn user(name: &str, inner: &str, grants: &[&str]) -> String {
    let grants: String = grants
        .iter()
        .map(|grant| format!("<query>GRANT {grant}</query>"))
        .collect();
    format!(
        "<{name}><password_sha256_hex>65e84be33532fb784c48129675f9eff3a682b27168c0ea744b2cf58ee02337c5</password_sha256_hex><networks><ip>10.0.0.0/8</ip></networks><profile>default</profile><quota>default</quota>{inner}<grants>{grants}</grants></{name}>"
    )
}

fn tell(server: &ClickhouseServer, statements: &[&str]) {
    for statement in statements {
        server
            .query(statement)
            .unwrap_or_else(|error| panic!("{statement}: {error}"));
    }
}

fn asked(server: &ClickhouseServer) -> Audited {
    audited(&server.url(), None, &Releases::shipped())
}

/// What is open beside what a fresh server is told, without the engine's name.
fn more(server: &ClickhouseServer) -> Vec<String> {
    let mut keys = asked(server).keys();
    keys.retain(|key| {
        !FRESH.contains(&key.as_str())
            && !matches!(
                key.as_str(),
                "clickhouse.default_user_beside_others:default" | "clickhouse.users_without_limits"
            )
    });
    keys.iter()
        .map(|key| key["clickhouse.".len()..].to_owned())
        .collect()
}

#[test]
fn a_fresh_server_gives_an_audit_that_an_expert_would_sign() {
    let server = with_users("");
    let audited = asked(&server);
    assert_eq!(audited.keys(), FRESH, "{:?}", audited.not_made());
    // It has neither logs to look into, nor is its release one that the list knows: neither is a pass.
    let not_made = audited.not_made();
    let names: Vec<&str> = not_made.iter().map(|(check, _)| check.as_str()).collect();
    assert_eq!(
        names,
        [
            "clickhouse.end_of_life",
            "clickhouse.known_vulnerability",
            "clickhouse.logins_refused",
            "clickhouse.secrets_in_query_log"
        ],
        "{not_made:?}"
    );
    assert!(audited.judged.lines.len() >= 40);
}

#[test]
fn at_most_a_third_of_the_checks_ask_for_settings_alone() {
    let library = Library::shipped();
    let checks = library.of_audit(Engine::Clickhouse);
    let settings = checks
        .iter()
        .filter(|check| check.source == Source::Server)
        .filter(|check| {
            check.variants.iter().all(|variant| {
                ["system.server_settings", "system.settings"]
                    .iter()
                    .any(|table| variant.question.contains(table))
            })
        })
        .count();
    assert!(checks.len() >= 20, "{}", checks.len());
    assert!(
        settings * 3 <= checks.len(),
        "{settings} of {}",
        checks.len()
    );
}

#[test]
fn who_may_not_see_users_passes_nothing_of_them() {
    // The user of the engine alone may see no users.
    let server = ClickhouseServer::start(ClickhouseVersion::V26).unwrap();
    let audited = asked(&server);
    let library = Library::shipped();
    for line in &audited.judged.lines {
        let check = library.get(&line.check).unwrap();
        let is_of_users = check.variants.iter().any(|variant| {
            variant.question.trim() == "USERS"
                || [
                    "system.users",
                    "system.roles",
                    "system.row_policies",
                    "system.grants",
                ]
                .iter()
                .any(|table| variant.question.contains(table))
        });
        if is_of_users {
            assert_eq!(line.verdict, Verdict::NotEvaluable, "{}", line.check);
            let because = line.because.as_deref().unwrap();
            assert!(because.contains("permission"), "{because}");
        }
    }
}

#[test]
fn a_server_of_2018_tells_no_users_and_is_out_of_care() {
    let server = ClickhouseServer::start(ClickhouseVersion::V18).unwrap();
    let open = asked(&server);
    assert_eq!(
        open.keys(),
        [
            "clickhouse.anonymous_let_in",
            "clickhouse.end_of_life",
            "clickhouse.query_log_off"
        ],
        "{:?}",
        open.not_made()
    );
    for line in &open.judged.lines {
        if line.check.starts_with("clickhouse.users_") && line.verdict != Verdict::NotApplicable {
            assert_eq!(line.verdict, Verdict::NotEvaluable, "{}", line.check);
        }
    }
    let closed = ClickhouseServer::start_with_password(ClickhouseVersion::V18, "aTOy7Xq").unwrap();
    assert_eq!(
        asked(&closed).keys(),
        ["clickhouse.end_of_life", "clickhouse.query_log_off"]
    );
}

#[test]
fn each_check_of_how_users_show_who_they_are_fires_alone() {
    let grants = "<grants><query>GRANT SELECT ON shop.*</query></grants>";
    let near =
        "<networks><ip>10.0.0.0/8</ip></networks><profile>default</profile><quota>default</quota>";
    let server = with_users(&format!(
        "{}<open><no_password/>{near}{grants}</open><plain><password>aTOy7Xq</password>{near}{grants}</plain><old><password_double_sha1_hex>6bb4837eb74329105ee4568dda7dc67ed2ca2ad9</password_double_sha1_hex>{near}{grants}</old><named><password_sha256_hex>65e84be33532fb784c48129675f9eff3a682b27168c0ea744b2cf58ee02337c5</password_sha256_hex><networks><host_regexp>^app\\d\\.example$</host_regexp></networks><profile>default</profile><quota>default</quota>{grants}</named>",
        user("good", "", &["SELECT ON shop.*"])
    ));
    assert_eq!(
        more(&server),
        [
            "passwords_double_sha1:old",
            "passwords_plaintext:plain",
            "users_by_pattern:named",
            "users_without_password:open"
        ]
    );
    let all = asked(&server).keys();
    for beside in [
        "clickhouse.default_user_beside_others:default",
        "clickhouse.users_without_limits",
    ] {
        assert!(all.iter().any(|key| key == beside), "{all:?}");
    }
}

#[test]
fn each_check_of_rights_fires_alone() {
    let near = "<password_sha256_hex>65e84be33532fb784c48129675f9eff3a682b27168c0ea744b2cf58ee02337c5</password_sha256_hex><networks><ip>10.0.0.0/8</ip></networks><quota>default</quota>";
    let server = configured(
        "",
        "<roles><sender><grants><query>GRANT S3 ON *.*</query></grants></sender><idle><grants><query>GRANT SELECT ON shop.*</query></grants></idle></roles>",
        &[
            user("good", "", &["SELECT, INSERT ON shop.*"]),
            user("root", "", &["ALL ON *.* WITH GRANT OPTION"]),
            user("maker", "", &["CREATE USER ON *.*"]),
            user("giver", "", &["SELECT ON *.* WITH GRANT OPTION"]),
            user("caller", "", &["URL ON *.*"]),
            user("member", "", &["sender"]),
            user("stopper", "", &["SYSTEM SHUTDOWN ON *.*"]),
            user("seer", "", &["displaySecretsInShowAndSelect ON *.*"]),
            user("definer", "", &["SET DEFINER ON *"]),
            user("actor", "", &["IMPERSONATE ON *"]),
            user("reader", "", &["SELECT ON system.query_log"]),
            format!("<xml>{near}<profile>default</profile></xml>"),
            format!("<watcher>{near}<profile>readonly</profile></watcher>"),
        ]
        .concat(),
    );
    assert_eq!(
        more(&server),
        [
            "roles_unused:idle",
            "users_almighty:root",
            "users_change_users:maker",
            "users_define_views:definer",
            "users_impersonate:actor",
            "users_pass_on:giver",
            "users_reach_out:caller",
            "users_reach_out:member",
            "users_read_logs:reader",
            "users_see_secrets:seer",
            // A user of the file without grants that only reads may still see what it reads.
            "users_see_secrets:watcher",
            "users_stop:stopper",
            "users_unlimited_by_file:xml",
        ]
    );
}

#[test]
fn settings_of_profiles_are_found_through_those_that_they_inherit_from() {
    let server = ClickhouseServer::start_with_users(
        "",
        &format!(
            "<profiles><default/><quiet><log_queries>0</log_queries></quiet><silent><profile>quiet</profile></silent><deep><allow_introspection_functions>1</allow_introspection_functions></deep></profiles><quotas><default><interval><duration>3600</duration><queries>100000</queries></interval></default></quotas><users>{DEFAULT}{}{}</users>",
            user("hidden", "", &["SELECT ON shop.*"]).replace("<profile>default", "<profile>silent"),
            user("looker", "", &["INTROSPECTION ON *.*"]).replace("<profile>default", "<profile>deep"),
        ),
    )
    .unwrap();
    assert_eq!(
        more(&server),
        ["users_introspect:looker", "users_not_logged:hidden"]
    );
    let keys = asked(&server).keys();
    assert!(
        !keys.contains(&"clickhouse.users_without_limits".to_owned()),
        "{keys:?}"
    );
}

#[test]
fn row_policies_that_leave_somebody_out_are_told() {
    let databases = |filter: &str| {
        format!("<databases><shop><t><filter>{filter}</filter></t></shop></databases>")
    };
    // In a file, whoever has no filter for a table has one that shows all to it, so that nobody is left out.
    let server = with_users(&user("app", &databases("n = 1"), &["SELECT ON shop.*"]));
    assert_eq!(more(&server), [""; 0]);
}

#[test]
fn definitions_are_read_for_what_they_give_away() {
    let server = with_users("");
    tell(
        &server,
        &[
            "CREATE TABLE good (n UInt64) ENGINE = MergeTree ORDER BY n",
            "CREATE VIEW careful SQL SECURITY INVOKER AS SELECT 1 AS n",
        ],
    );
    assert_eq!(more(&server), [""; 0]);
    tell(
        &server,
        &[
            "CREATE VIEW loose SQL SECURITY NONE AS SELECT 1 AS n",
            "CREATE VIEW mighty DEFINER = default SQL SECURITY DEFINER AS SELECT 1 AS n",
            "CREATE TABLE rates (n UInt64) ENGINE = URL('http://rates.example/x.csv', 'CSV')",
            "CREATE TABLE near (n UInt64) ENGINE = URL('http://127.0.0.1:9/x.csv', 'CSV')",
            "CREATE TABLE orders (n UInt64) ENGINE = MySQL('db.example:3306', 'd', 't', 'u', 'dLw83hGq2')",
        ],
    );
    let audited = asked(&server);
    assert_eq!(
        more(&server),
        [
            "secrets_in_definitions:default.orders",
            "sources_without_tls:default.rates",
            "views_as_administrators:default.mighty",
            "views_without_checks:default.loose",
        ]
    );
    assert!(!format!("{:?}", audited.judged.findings).contains("dLw83hGq2"));
}

#[test]
fn logs_are_read_for_passwords_and_refused_logins_and_for_how_long_they_are_kept() {
    let server = with_users("");
    tell(
        &server,
        &[
            "CREATE TABLE system.query_log (event_date Date, event_time DateTime, user String, query String) ENGINE = MergeTree ORDER BY event_time",
            "CREATE TABLE system.session_log (event_time DateTime, type Enum8('LoginFailure' = 0, 'LoginSuccess' = 1, 'Logout' = 2), user String, client_address IPv6) ENGINE = MergeTree ORDER BY event_time TTL event_time + INTERVAL 400 DAY",
            "INSERT INTO system.query_log VALUES (today(), now(), 'good', 'CREATE USER u IDENTIFIED BY ''[HIDDEN]''')",
            "INSERT INTO system.session_log SELECT now(), 'LoginFailure', 'good', '::1' FROM numbers(3)",
        ],
    );
    let wanted: Vec<&str> = FRESH[..2].to_vec();
    assert_eq!(asked(&server).keys(), wanted);
    tell(
        &server,
        &[
            "INSERT INTO system.query_log VALUES (today(), now(), 'app', 'SELECT * FROM mysql(''h'', PASSWORD ''dLw83hGq2'')')",
            "INSERT INTO system.session_log SELECT now(), 'LoginFailure', 'eve', '::1' FROM numbers(30)",
            "ALTER TABLE system.query_log MODIFY TTL event_date + INTERVAL 7 DAY",
        ],
    );
    let audited = asked(&server);
    assert_eq!(
        audited.keys()[2..],
        [
            "clickhouse.logins_refused:eve",
            "clickhouse.logs_short:query_log",
            "clickhouse.secrets_in_query_log:app",
        ]
    );
    assert!(!format!("{:?}", audited.judged.findings).contains("dLw83hGq2"));
}

#[test]
fn settings_of_the_server_and_its_cluster_are_told() {
    let folder = tempfile::tempdir().unwrap();
    let disks = format!(
        "<storage_configuration><disks><backups><type>local</type><path>{}/</path></backups><secret><type>encrypted</type><disk>backups</disk><path>secret/</path><key>0123456789abcdef</key></secret></disks></storage_configuration>",
        folder.path().display()
    );
    let server = configured(
        &format!(
            "<display_secrets_in_show_and_select>1</display_secrets_in_show_and_select><allow_impersonate_user>1</allow_impersonate_user><interserver_tables_status_require_auth>0</interserver_tables_status_require_auth><remote_servers><shop><shard><replica><host>10.255.255.1</host><port>9000</port></replica></shard></shop><safe><shard><replica><host>10.255.255.1</host><port>9440</port><secure>1</secure></replica></shard></safe></remote_servers>{disks}"
        ),
        "",
        "",
    );
    tell(
        &server,
        &[
            "CREATE TABLE bare (n UInt64) ENGINE = MergeTree ORDER BY n",
            "INSERT INTO bare VALUES (1)",
        ],
    );
    let found = more(&server);
    for wanted in [
        "cluster_without_tls:shop",
        "disks_partly_encrypted:default",
        "impersonation_on",
        "secrets_shown",
        "table_status_without_login",
    ] {
        assert!(found.iter().any(|key| key == wanted), "{wanted}: {found:?}");
    }
    assert_eq!(found.len(), 5, "{found:?}");
}

/// Users, rights, policies, settings and definitions that are not as they were; rows and merges are none of it.
#[test]
fn drift_is_found_and_work_is_none() {
    let folder_of = |server: &ClickhouseServer| asked(server).snapshot;
    let server = with_users(&user("app", "", &["SELECT ON shop.*"]));
    tell(
        &server,
        &[
            "CREATE DATABASE shop",
            "CREATE TABLE shop.orders (id UInt64, name String DEFAULT 'hidden1') ENGINE = MergeTree ORDER BY id",
            "CREATE TABLE shop.old (id UInt64) ENGINE = MergeTree ORDER BY id",
            "CREATE VIEW shop.v AS SELECT id FROM shop.orders",
        ],
    );
    let before = folder_of(&server);
    let hidden: Vec<_> = before
        .sections
        .iter()
        .filter(|(_, part)| matches!(part, Part::Hidden(_)))
        .collect();
    assert!(hidden.is_empty(), "{hidden:?}");
    tell(
        &server,
        &[
            "INSERT INTO shop.orders (id) SELECT number FROM numbers(1000)",
            "OPTIMIZE TABLE shop.orders FINAL",
        ],
    );
    assert_eq!(folder_of(&server).changes_since(&before), []);
    tell(
        &server,
        &[
            "ALTER TABLE shop.orders ADD COLUMN total Float64",
            "DROP TABLE shop.old",
            "CREATE FUNCTION twice AS (x) -> x * 2",
        ],
    );
    let after = folder_of(&server);
    let told = after.judged(&before);
    let mut keys: Vec<&str> = told.findings.iter().map(|one| one.key.as_str()).collect();
    keys.sort_unstable();
    assert_eq!(
        keys,
        [
            "clickhouse.drift_schema:function twice",
            "clickhouse.drift_schema:table shop.old",
            "clickhouse.drift_schema:table shop.orders",
        ]
    );
    // The same server with another user, and another right of the first one.
    let other = with_users(&format!(
        "{}{}",
        user("app", "", &["SELECT ON shop.*", "INSERT ON shop.*"]),
        user("new", "", &["SELECT ON *.*"])
    ));
    let changes = folder_of(&other).changes_since(&before);
    let of = |section: Section| -> Vec<&str> {
        let changes = changes.iter().filter(|one| one.section == section);
        changes.map(|one| one.name.as_str()).collect()
    };
    assert_eq!(of(Section::Roles), ["user new"]);
    assert_eq!(
        of(Section::Grants),
        ["grants of app on shop.*", "grants of new on *.*"]
    );
    let text = format!("{before:?}");
    assert!(
        !text.contains("hidden1") && !text.contains("65e84be3"),
        "{text}"
    );
}
