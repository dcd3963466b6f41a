//! The audit of MongoDB. On the servers of the tests, which speak its protocol: what is let in, names of databases and fields, and
//! that nothing passes of what they do not have. What they do not have (users, roles, options, counters, certificates) is
//! judged on answers of the documented form, which a server of the test gives to the engine itself (`recorded_mongodb`).

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

mod common;
mod recorded_mongodb;

use std::collections::BTreeSet;

use bson::doc;
use common::{Audited, audited};
use fettler_checks::{Library, Part, Releases, Section, Source, Verdict};
use fettler_model::{Engine, Severity};
use fettler_test_servers::{MongodbClient, MongodbKind, MongodbServer};
use recorded_mongodb::{Recorded, credentials, logins, on, role, user};

/// What a fresh server is told: it takes commands from its whole machine.
const FRESH: &str = "anonymous_let_in";
/// Checks whose fault needs another machine, a public address or TLS: they are judged by their examples.
const BY_EXAMPLES: [&str; 2] = ["address_public", "session_without_tls"];

fn asked(url: &str) -> Audited {
    audited(url, None, &Releases::shipped())
}

/// What is open, without the engine's name.
fn found(audited: &Audited) -> Vec<String> {
    let keys = audited.keys();
    keys.iter()
        .map(|key| key["mongodb.".len()..].to_owned())
        .collect()
}

fn of(recorded: Recorded) -> Vec<String> {
    found(&asked(&recorded.serve()))
}

/// The checks that could not be made, without the engine's name.
fn not_made(audited: &Audited) -> Vec<String> {
    let not_made = audited.not_made();
    not_made
        .iter()
        .map(|(check, _)| check["mongodb.".len()..].to_owned())
        .collect()
}

#[test]
fn a_fresh_server_gives_an_audit_that_an_expert_would_sign() {
    for kind in MongodbKind::ALL {
        let server = MongodbServer::start(kind).unwrap();
        let audited = asked(&server.url());
        let mut keys = found(&audited);
        // The one in memory says that it is a line which nobody cares for any more.
        keys.retain(|key| key != "end_of_life" && !key.starts_with("known_vulnerability"));
        assert_eq!(keys, [FRESH], "{kind:?}");
        assert!(audited.judged.lines.len() >= 24);
        // Neither has users, roles and options: nothing that is judged by them has passed.
        let library = Library::shipped();
        for line in &audited.judged.lines {
            let check = library.get(&line.check).unwrap();
            let asks_for = |word: &str| check.variants.iter().any(|one| one.question == word);
            let words = [
                "USERS",
                "ENFORCED",
                "PASSWORDS",
                "ROLES",
                "SUPERUSERS",
                "UNUSED ROLES",
                "STARTED",
                "STORAGE",
                "AUDITING",
                "LISTENING",
                "PLAIN",
                "LOGINS",
                "CERTIFICATE",
                "JAVASCRIPT",
                "MEMBERS",
            ];
            if words.into_iter().any(asks_for) {
                assert!(
                    matches!(line.verdict, Verdict::NotEvaluable | Verdict::NotApplicable),
                    "{kind:?}: {line:?}"
                );
            }
            if asks_for("USERS") {
                assert_eq!(line.verdict, Verdict::NotEvaluable, "{kind:?}: {line:?}");
            }
        }
    }
}

#[test]
fn a_fresh_install_of_mongodb_itself_is_told_that_it_asks_nobody_for_a_login() {
    let audited = asked(&Recorded::fresh().serve());
    assert_eq!(found(&audited), [FRESH]);
    // What the list of releases and the connection cannot tell.
    assert_eq!(not_made(&audited), ["end_of_life", "storage_not_encrypted"]);
}

#[test]
fn a_server_that_is_set_up_well_is_told_nothing() {
    let audited = asked(&Recorded::well().serve());
    assert_eq!(found(&audited), [""; 0]);
    assert_eq!(not_made(&audited), ["end_of_life", "storage_not_encrypted"]);
}

#[test]
fn at_most_a_third_of_the_checks_ask_for_settings_alone() {
    let library = Library::shipped();
    let checks = library.of_audit(Engine::Mongodb);
    let settings = checks
        .iter()
        .filter(|check| check.source == Source::Server)
        .filter(|check| {
            check.variants.iter().all(|variant| {
                // `PLAIN` and `PROFILES` read settings too, beside what was tried and counted.
                [
                    "STARTED",
                    "STORAGE",
                    "AUDITING",
                    "LISTENING",
                    "PLAIN",
                    "PROFILES",
                ]
                .contains(&variant.question.trim())
            })
        })
        .count();
    assert!(checks.len() >= 24, "{}", checks.len());
    assert!(
        settings * 3 <= checks.len(),
        "{settings} of {}",
        checks.len()
    );
}

#[test]
fn names_that_tell_of_a_raid_or_of_secrets_are_found_and_gone_again() {
    for kind in MongodbKind::ALL {
        let server = MongodbServer::start(kind).unwrap();
        let mut client = MongodbClient::new(server.port());
        client.insert("shop", "users", [doc! { "name": "ann", "password": "x" }]);
        let more = || {
            let mut keys = found(&asked(&server.url()));
            keys.retain(|key| {
                key.starts_with("ransom_note") || key.starts_with("fields_of_secrets")
            });
            keys
        };
        assert_eq!(more(), [""; 0], "{kind:?}");
        client.insert("READ__ME_TO_RECOVER_YOUR_DATA", "README", [doc! { "a": 1 }]);
        client.run(
            "shop",
            doc! { "createIndexes": "users", "indexes": [{ "name": "p", "key": { "password": 1 } }] },
        );
        assert_eq!(
            more(),
            [
                "fields_of_secrets:shop.users password",
                "ransom_note:READ__ME_TO_RECOVER_YOUR_DATA"
            ],
            "{kind:?}"
        );
        client.run("READ__ME_TO_RECOVER_YOUR_DATA", doc! { "dropDatabase": 1 });
        client.run("shop", doc! { "dropIndexes": "users", "index": "p" });
        assert_eq!(more(), [""; 0], "{kind:?}");
    }
}

/// A fault, and what is found of it.
type Fault = (&'static [&'static str], fn(&mut Recorded));

const FAULTS: &[Fault] = &[
    (&["rights_not_enforced", "anonymous_let_in"], |it| {
        it.options.remove("security");
    }),
    (&["rights_not_enforced"], |it| {
        it.option("security", "transitionToAuth", true);
    }),
    (
        &[
            "localhost_exception_open",
            "roles_unused:fettler_audit@admin",
        ],
        |it| it.users.clear(),
    ),
    (
        &[
            "passwords_guessed:pencil@admin",
            "rounds_few:pencil@admin SCRAM-SHA-256",
        ],
        |it| {
            let mut weak = user("pencil", "admin", "fettler_audit", Vec::new());
            weak.insert("credentials", doc! { "SCRAM-SHA-256": credentials(4096) });
            it.users.push(weak);
        },
    ),
    (&["users_sha1_only:app@shop"], |it| {
        it.users[1].insert("mechanisms", ["SCRAM-SHA-1"].as_slice());
    }),
    (&["logins_sha1"], |it| {
        it.count_logins("SCRAM-SHA-1", logins(5, 5));
    }),
    (&["sha1_unused", "javascript_unused"], |it| {
        it.up_for(40);
        it.count_logins("SCRAM-SHA-256", logins(900, 890));
    }),
    (&["logins_plain"], |it| {
        it.count_logins("PLAIN", logins(5, 5));
    }),
    (&["logins_refused:SCRAM-SHA-256"], |it| {
        it.count_logins("SCRAM-SHA-256", logins(900, 100));
    }),
    (&["members_by_key_file"], |it| {
        it.members(&["db1.internal:27017", "db2.internal:27017"]);
        it.option("security", "keyFile", "/etc/mongodb.key");
    }),
    (&["members_public:198.51.100.7:27017"], |it| {
        it.members(&["198.51.100.7:27017", "db2.internal:27017"]);
    }),
    (&["members_without_tls", "plain_beside_tls"], |it| {
        it.members(&["db1.internal:27017", "db2.internal:27017"]);
        it.parameters.insert("tlsMode", "allowTLS");
    }),
    (
        &["users_almighty:ann@admin", "users_almighty:root@admin"],
        |it| {
            it.users.push(user("ann", "admin", "root", Vec::new()));
        },
    ),
    (&["superusers_from_anywhere:root@admin", "tls_off"], |it| {
        it.option("net", "bindIp", "127.0.0.1,10.0.0.5");
    }),
    (&["superusers_from_afar:root@admin 10.0.0.9"], |it| {
        it.sessions.push(doc! { "client": "10.0.0.9:51235", "effectiveUsers": [{ "user": "root", "db": "admin" }] });
    }),
    (&["clients_from_public:198.51.100.9"], |it| {
        it.sessions.push(doc! { "client": "198.51.100.9:51235", "effectiveUsers": [{ "user": "app", "db": "shop" }] });
    }),
    (&["users_change_users:hr@admin"], |it| {
        it.users.push(user(
            "hr",
            "admin",
            "userAdminAnyDatabase",
            vec![on("", "", &["createUser", "grantRole"])],
        ));
    }),
    (&["users_write_everywhere:bulk@admin"], |it| {
        it.users.push(user(
            "bulk",
            "admin",
            "readWriteAnyDatabase",
            vec![on("", "", &["find", "insert"])],
        ));
    }),
    (
        &[
            "users_write_server_databases:cfg@config",
            "users_of_missing_databases:gone@old",
        ],
        |it| {
            it.users.push(user(
                "cfg",
                "config",
                "readWrite",
                vec![on("config", "", &["insert"])],
            ));
            it.users.push(user("gone", "old", "read", Vec::new()));
        },
    ),
    (&["users_read_oplog:tail@admin"], |it| {
        it.users.push(user(
            "tail",
            "admin",
            "fettler_audit",
            vec![on("local", "oplog.rs", &["find"])],
        ));
    }),
    (&["users_configure:ops@admin"], |it| {
        it.users.push(user(
            "ops",
            "admin",
            "hostManager",
            vec![doc! { "resource": { "cluster": true }, "actions": ["setParameter", "shutdown"] }],
        ));
    }),
    (&["users_stop:ops@admin"], |it| {
        it.users.push(user(
            "ops",
            "admin",
            "fettler_audit",
            vec![doc! { "resource": { "cluster": true }, "actions": ["shutdown"] }],
        ));
    }),
    (&["users_internal:ops@admin"], |it| {
        it.users.push(user(
            "ops",
            "admin",
            "fettler_audit",
            vec![doc! { "resource": { "cluster": true }, "actions": ["internal"] }],
        ));
    }),
    (&["users_without_roles:app@shop"], |it| {
        it.users[1].insert("roles", bson::Array::new());
    }),
    (&["users_in_test:app@test"], |it| {
        it.users.push(user("app", "test", "read", Vec::new()));
    }),
    (
        &["roles_almighty:all@admin", "roles_unused:all@admin"],
        |it| {
            it.roles.push(role(
                "all",
                vec![doc! { "resource": { "anyResource": true }, "actions": ["anyAction"] }],
            ));
        },
    ),
    (
        &["roles_change_users:hr@admin", "roles_unused:hr@admin"],
        |it| {
            it.roles
                .push(role("hr", vec![on("admin", "", &["changePassword"])]));
        },
    ),
    (
        &[
            "roles_write_server_databases:cfg@admin",
            "roles_unused:cfg@admin",
        ],
        |it| {
            it.roles
                .push(role("cfg", vec![on("local", "", &["remove"])]));
        },
    ),
    (&["plain_beside_tls"], |it| {
        it.parameters.insert("tlsMode", "preferTLS");
    }),
    (&["certificate_ends"], |it| it.certificate_ends_in(20, true)),
    (&["certificates_without_authority"], |it| {
        it.certificate_ends_in(300, false);
    }),
    (&["certificates_unchecked"], |it| {
        it.parameters.insert("tlsMode", "requireTLS");
        it.option(
            "net",
            "tls",
            doc! { "mode": "requireTLS", "allowInvalidHostnames": true },
        );
    }),
    (&["clients_of_old_tls"], |it| {
        it.status.insert(
            "transportSecurity",
            doc! { "1.0": 0_i64, "1.1": 2_i64, "1.2": 9_i64, "1.3": 0_i64, "unknown": 0_i64 },
        );
    }),
    (&["tls_old_versions", "ciphers_weak"], |it| {
        it.parameters.insert("tlsMode", "requireTLS");
        it.parameters.insert("opensslCipherConfig", "HIGH:RC4");
        it.option(
            "net",
            "tls",
            doc! { "mode": "requireTLS", "disabledProtocols": "none" },
        );
    }),
    (&["storage_not_encrypted", "audit_log_off"], |it| {
        it.modules.push("enterprise");
    }),
    (&["log_quiet"], |it| {
        it.parameters.insert("quiet", true);
    }),
    (&["log_verbose"], |it| {
        it.parameters.insert("logLevel", 1);
    }),
    (
        &["profiler_keeps_values:shop", "profiler_keeps_values:stock"],
        |it| it.profiler_level = 1,
    ),
    (&["profiles_left:shop", "profiles_left:stock"], |it| {
        it.profiles = 900;
    }),
    (&["test_commands_on"], |it| {
        it.parameters.insert("enableTestCommands", true);
    }),
    (&["runs_as_root"], |it| {
        it.warnings.push("{\"s\":\"W\",\"id\":22138,\"msg\":\"You are running this process as the root user, which is not recommended\"}");
    }),
    (
        &[
            "listens_everywhere",
            "superusers_from_anywhere:root@admin",
            "tls_off",
        ],
        |it| {
            it.option("net", "bindIp", "*");
        },
    ),
    (&["ransom_note:READ_ME_TO_RECOVER_YOUR_DATA"], |it| {
        it.databases.push("READ_ME_TO_RECOVER_YOUR_DATA");
    }),
    (
        &[
            "fields_of_secrets:shop.orders owner.api_key",
            "fields_of_secrets:stock.orders owner.api_key",
        ],
        |it| {
            it.indexes
                .push(doc! { "key": { "owner.api_key": 1 }, "name": "k" });
        },
    ),
    (&["known_vulnerability:CVE-2025-14847"], |it| {
        it.version = "7.0.27";
    }),
    (&["end_of_life"], |it| it.version = "6.0.27"),
];

#[test]
fn each_fault_is_found_and_nothing_else_is() {
    let mut seen: BTreeSet<String> = BTreeSet::new();
    for (wanted, fault) in FAULTS {
        let mut faulty = Recorded::well();
        fault(&mut faulty);
        let keys = of(faulty);
        let mut wanted: Vec<String> = wanted.iter().map(ToString::to_string).collect();
        wanted.sort();
        assert_eq!(keys, wanted);
        seen.extend(
            keys.iter()
                .map(|key| key.split(':').next().unwrap().to_owned()),
        );
    }
    let library = Library::shipped();
    let never: Vec<&str> = library
        .of_audit(Engine::Mongodb)
        .iter()
        .map(|check| &check.id["mongodb.".len()..])
        .filter(|name| !seen.contains(*name) && !BY_EXAMPLES.contains(name))
        .collect();
    assert_eq!(never, [""; 0]);
}

#[test]
fn who_may_not_ask_passes_nothing_that_was_not_seen() {
    for (command, words) in [
        (
            "usersInfo",
            &[
                "USERS",
                "SUPERUSERS",
                "ENFORCED",
                "PASSWORDS",
                "ROLES",
                "UNUSED ROLES",
            ][..],
        ),
        ("rolesInfo", &["ROLES", "UNUSED ROLES"]),
        (
            "getCmdLineOpts",
            &[
                "STARTED",
                "STORAGE",
                "AUDITING",
                "ENFORCED",
                "JAVASCRIPT",
                "LISTENING",
                "PLAIN",
                "SUPERUSERS",
                "UNUSED ROLES",
            ],
        ),
        ("serverStatus", &["LOGINS", "CERTIFICATE", "JAVASCRIPT"]),
        ("aggregate", &["CLIENTS"]),
        ("getLog", &["WARNINGS"]),
        ("profile", &["PROFILES"]),
        ("listCollections", &["FIELDS"]),
        ("replSetGetConfig", &["MEMBERS"]),
        ("listDatabases", &["USERS", "ROLES", "PROFILES", "FIELDS"]),
    ] {
        for is_known in [true, false] {
            let mut poor = Recorded::well();
            if is_known {
                poor.refused.push(command);
            } else {
                poor.unknown.push(command);
            }
            let audited = asked(&poor.serve());
            assert_eq!(found(&audited), [""; 0], "{command}");
            let library = Library::shipped();
            for line in &audited.judged.lines {
                let check = library.get(&line.check).unwrap();
                let concerns = check
                    .variants
                    .iter()
                    .any(|one| words.contains(&one.question.as_str()));
                if concerns {
                    assert_ne!(line.verdict, Verdict::Passed, "{command}: {line:?}");
                }
            }
        }
    }
    // The right that is missing is told, and what was tried or seen otherwise is judged all the same.
    let mut poor = Recorded::well();
    poor.refused.push("getCmdLineOpts");
    let audited = asked(&poor.serve());
    let because = |name: &str| {
        let line = audited
            .judged
            .lines
            .iter()
            .find(|line| line.check == format!("mongodb.{name}"));
        line.unwrap().because.clone()
    };
    for name in [
        "tls_off",
        "listens_everywhere",
        "plain_beside_tls",
        "superusers_from_anywhere",
        "roles_unused",
    ] {
        let because = because(name).unwrap_or_default();
        assert!(because.contains("lacks a permission"), "{name}: {because}");
    }
    for name in [
        "address_public",
        "session_without_tls",
        "users_almighty",
        "anonymous_let_in",
    ] {
        assert_eq!(because(name), None, "{name}");
    }
}

#[test]
fn nothing_that_is_kept_of_passwords_is_told() {
    let mut weak = Recorded::well();
    let mut pencil = user("pencil", "admin", "root", Vec::new());
    pencil.insert("credentials", doc! { "SCRAM-SHA-256": credentials(4096) });
    weak.users.push(pencil);
    weak.option(
        "net",
        "tls",
        doc! { "certificateKeyFilePassword": "Wq7ByLd2" },
    );
    let audited = asked(&weak.serve());
    assert!(found(&audited).contains(&"passwords_guessed:pencil@admin".to_owned()));
    let whole = format!("{:?}", audited.judged);
    for secret in [
        "W22ZaJ0SNY7soEsUEjb6gQ==",
        "WG5d8oPm",
        "wfPLwcE6",
        "Wq7ByLd2",
        "aTOy7Xq",
    ] {
        assert!(!whole.contains(secret), "{secret}");
    }
}

/// What was changed since the server was last looked at, and what is the same in another order.
#[test]
fn drift_of_users_roles_and_settings_is_found_and_other_orders_are_none() {
    let seen = |it: &Recorded| asked(&it.clone().serve()).snapshot;
    let mut it = Recorded::well();
    it.members(&["db1:27017"]);
    it.option(
        "net",
        "tls",
        doc! { "certificateKeyFilePassword": "Wq7ByLd2" },
    );
    let before = seen(&it);
    let hidden: Vec<_> = before
        .sections
        .iter()
        .filter(|(_, part)| matches!(part, Part::Hidden(_)))
        .collect();
    assert!(hidden.is_empty(), "{hidden:?}");
    assert_eq!(before.sections.len(), 4, "{before:#?}");
    it.users.reverse();
    it.up_for(30);
    it.databases.reverse();
    assert_eq!(seen(&it).changes_since(&before), []);

    it.users.push(user(
        "intruder",
        "admin",
        "root",
        vec![doc! { "resource": { "anyResource": true }, "actions": ["anyAction"] }],
    ));
    it.users.retain(|one| one.get_str("user").unwrap() != "app");
    it.roles[0] = role("fettler_audit", vec![on("", "", &["viewUser", "find"])]);
    it.parameters.insert("logLevel", 1);
    it.option("security", "javascriptEnabled", false);
    it.members(&["db1:27017", "db2:27017"]);
    it.indexes
        .push(doc! { "v": 2, "key": { "n": 1 }, "name": "n_1", "unique": true });
    let after = seen(&it);
    let told = after.judged(&before);
    let mut keys: Vec<(&str, Severity)> = told
        .findings
        .iter()
        .map(|one| (one.key.as_str(), one.severity))
        .collect();
    keys.sort();
    assert_eq!(
        keys,
        [
            (
                "mongodb.drift_grants:role fettler_audit@admin",
                Severity::Medium
            ),
            ("mongodb.drift_roles:user app@shop", Severity::Medium),
            ("mongodb.drift_roles:user intruder@admin", Severity::High),
            ("mongodb.drift_schema:index shop.orders n_1", Severity::Info),
            (
                "mongodb.drift_schema:index stock.orders n_1",
                Severity::Info
            ),
            ("mongodb.drift_settings:member db2:27017", Severity::Low),
            (
                "mongodb.drift_settings:option security.javascriptEnabled",
                Severity::Low
            ),
            ("mongodb.drift_settings:parameter logLevel", Severity::Low),
        ]
    );
    let text = format!("{after:?}");
    assert!(
        !text.contains("Wq7ByLd2") && !text.contains("storedKey"),
        "{text}"
    );
    // What cannot be seen any more is no change.
    it.refused.push("usersInfo");
    let poor = seen(&it);
    assert!(matches!(poor.sections[&Section::Roles], Part::Hidden(_)));
    assert!(
        poor.changes_since(&after)
            .iter()
            .all(|change| change.section != Section::Roles && change.section != Section::Grants)
    );
}

/// On the servers themselves: documents are no drift, and what was made or dropped is.
#[test]
fn drift_of_the_schema_is_found_and_work_is_none() {
    for kind in MongodbKind::ALL {
        let server = MongodbServer::start(kind).unwrap();
        let mut client = MongodbClient::new(server.port());
        let mut index = |collection: &str| {
            client.run(
                "shop",
                doc! { "createIndexes": collection, "indexes": [{ "key": { "n": 1 }, "name": "n_1" }] },
            );
        };
        index("orders");
        index("old");
        let before = asked(&server.url()).snapshot;
        assert!(
            matches!(&before.sections[&Section::Schema], Part::Items(items) if items.len() == 6),
            "{before:#?}"
        );
        client.insert("shop", "orders", vec![doc! { "_id": 1, "n": 1 }]);
        assert_eq!(asked(&server.url()).snapshot.changes_since(&before), []);
        client.run("shop", doc! { "drop": "old" });
        client.run("shop", doc! { "create": "new" });
        let changes = asked(&server.url()).snapshot.changes_since(&before);
        let names: Vec<&str> = changes.iter().map(|one| one.name.as_str()).collect();
        assert_eq!(
            names,
            [
                "collection shop.new",
                "index shop.new _id_",
                "collection shop.old",
                "index shop.old _id_",
                "index shop.old n_1",
            ],
            "{kind:?}"
        );
    }
}
