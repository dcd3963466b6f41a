//! The audit of Elasticsearch and OpenSearch. On the real servers: what is let in, where nodes listen, settings, repositories,
//! mappings, and that nothing of a security module that is not there passes. What such a module tells (users, roles, keys,
//! its own state) is judged on answers of the form that the products' documentation gives.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

mod common;

use common::{Audited, audited};
use fettler_checks::{Library, Part, Releases, Section, Source, Verdict};
use fettler_engine::{Picked, Row};
use fettler_model::Engine;
use fettler_test_servers::{SearchKind, SearchServer};
use serde_json::{Value, json};

/// What a fresh server is told: it takes requests from its whole machine.
const FRESH: [&str; 1] = ["elasticsearch.anonymous_let_in"];
/// And where its release does not ask for names of what is deleted.
const BY_PATTERN: &str = "elasticsearch.destructive_names";

fn tell(server: &SearchServer, method: &str, path: &str, body: &str) {
    let (status, answer) = server.request(method, path, body).unwrap();
    assert!((200..300).contains(&status), "{method} {path}: {answer}");
}

fn asked(server: &SearchServer) -> Audited {
    audited(&server.url(), None, &Releases::shipped())
}

/// What is open beside what a fresh server is told, without the engine's name.
fn more(server: &SearchServer) -> Vec<String> {
    asked(server)
        .keys()
        .iter()
        .filter(|key| !FRESH.contains(&key.as_str()) && *key != BY_PATTERN)
        .filter(|key| !key.starts_with("elasticsearch.known_vulnerability"))
        .map(|key| key["elasticsearch.".len()..].to_owned())
        .collect()
}

#[test]
fn a_fresh_server_gives_an_audit_that_an_expert_would_sign() {
    for kind in [SearchKind::Elasticsearch, SearchKind::OpenSearch] {
        let server = SearchServer::shared(kind);
        let audited = asked(server);
        assert_eq!(more(server), [""; 0], "{kind:?}");
        assert!(
            audited.keys().iter().any(|key| key == FRESH[0]),
            "{:?}",
            audited.keys()
        );
        assert!(audited.judged.lines.len() >= 30);
        // What only the security module tells is no pass where there is none.
        let library = Library::shipped();
        for line in &audited.judged.lines {
            let check = library.get(&line.check).unwrap();
            let is_of_security = check.variants.iter().any(|variant| {
                ["_security/", "/_xpack/", "CERTIFICATES", "LICENCE"]
                    .iter()
                    .any(|part| variant.question.contains(part))
            });
            if is_of_security {
                assert!(
                    matches!(line.verdict, Verdict::NotEvaluable | Verdict::NotApplicable),
                    "{kind:?}: {line:?}"
                );
            }
        }
        let is_told = |id: &str| {
            audited
                .judged
                .lines
                .iter()
                .any(|line| line.check == id && line.verdict == Verdict::NotEvaluable)
        };
        assert!(is_told("elasticsearch.users_superuser"), "{kind:?}");
        assert!(is_told("elasticsearch.roles_almighty"), "{kind:?}");
        assert!(is_told("elasticsearch.certificates_end"), "{kind:?}");
        assert!(is_told("elasticsearch.audit_log_off"), "{kind:?}");
    }
}

#[test]
fn at_most_a_third_of_the_checks_ask_for_settings_alone() {
    let library = Library::shipped();
    let checks = library.of_audit(Engine::Elasticsearch);
    let settings = checks
        .iter()
        .filter(|check| check.source == Source::Server)
        .filter(|check| {
            check.variants.iter().all(|variant| {
                ["/_nodes/settings", "/_cluster/settings", "/_xpack/usage"]
                    .iter()
                    .any(|path| variant.question.contains(path))
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
fn mappings_and_settings_that_give_away_are_told() {
    for kind in [SearchKind::Elasticsearch, SearchKind::OpenSearch] {
        let logger = match kind {
            SearchKind::Elasticsearch => "logger.org.elasticsearch.discovery",
            SearchKind::OpenSearch => "logger.org.opensearch.discovery",
        };
        let server = SearchServer::start(kind, &[]).unwrap();
        tell(
            &server,
            "PUT",
            "/people",
            r#"{"settings": {"number_of_replicas": 0}, "mappings": {"properties": {"password": {"type": "keyword"}, "passwords_tried": {"type": "long"}, "iban": {"type": "keyword", "index": false}}}}"#,
        );
        tell(
            &server,
            "PUT",
            "/_cluster/settings",
            &r#"{"persistent": {"LOGGER": "TRACE", "action.destructive_requires_name": false}}"#
                .replace("LOGGER", logger),
        );
        assert_eq!(
            more(&server),
            [
                "fields_of_secrets:people password",
                &format!("logs_of_everything:{logger}")
            ],
            "{kind:?}"
        );
        assert!(asked(&server).keys().iter().any(|key| key == BY_PATTERN));
        tell(&server, "DELETE", "/people", "");
        tell(
            &server,
            "PUT",
            "/_cluster/settings",
            &r#"{"persistent": {"LOGGER": null, "action.destructive_requires_name": true}}"#
                .replace("LOGGER", logger),
        );
        assert_eq!(more(&server), [""; 0], "{kind:?}");
        assert!(!asked(&server).keys().iter().any(|key| key == BY_PATTERN));
    }
}

#[test]
fn nodes_that_open_themselves_are_told() {
    let server = SearchServer::start(
        SearchKind::OpenSearch,
        &[
            ("http.bind_host", "0.0.0.0"),
            ("http.cors.enabled", "true"),
            ("http.cors.allow-origin", "*"),
            ("script.painless.regex.enabled", "true"),
            ("reindex.remote.allowlist", "*:*"),
        ],
    )
    .unwrap();
    let found = more(&server);
    let wanted = [
        "cors_for_everybody:",
        "http_listens_everywhere:",
        "reindex_from_anywhere:",
        "scripts_with_any_pattern:",
    ];
    assert_eq!(found.len(), wanted.len(), "{found:?}");
    for (found, wanted) in found.iter().zip(wanted) {
        assert!(found.starts_with(wanted), "{found} {wanted}");
    }
}

/// How many findings a check makes of an answer, by the question of this variant.
fn found(id: &str, variant: usize, answer: &Value) -> usize {
    let library = Library::shipped();
    let check = library
        .get(&format!("elasticsearch.{id}"))
        .unwrap_or_else(|| panic!("no check {id}"));
    let requests = Picked::read(&check.variants[variant].question, |line| {
        line.starts_with("GET ")
    })
    .unwrap_or_else(|error| panic!("{id}: {error}"));
    let asked: Vec<(Picked, Value)> = requests
        .into_iter()
        .map(|request| (request, answer.clone()))
        .collect();
    let rows: Vec<Row> = Picked::rows(&asked).unwrap_or_else(|error| panic!("{id}: {error}"));
    rows.iter()
        .filter(|row| {
            check
                .when
                .holds(row)
                .unwrap_or_else(|error| panic!("{id}: {error}: {row:?}"))
        })
        .count()
}

#[test]
fn what_the_security_module_of_elasticsearch_tells_is_judged() {
    // Of the documentation of each request, shortened to what checks read.
    let usage = |enabled: bool, tls: bool, audit: bool, anonymous: bool| {
        json!({"security": {
            "available": true, "enabled": enabled,
            "realms": {"native": {"available": true, "enabled": true}},
            "ssl": {"http": {"enabled": tls}, "transport": {"enabled": tls}},
            "audit": {"enabled": audit}, "anonymous": {"enabled": anonymous},
            "ipfilter": {"http": false, "transport": false},
        }})
    };
    for (id, faulty) in [
        ("security_off", usage(false, false, false, false)),
        ("http_without_tls", usage(true, false, true, false)),
        ("transport_without_tls", usage(true, false, true, false)),
        ("audit_log_off", usage(true, true, false, false)),
        ("anonymous_user", usage(true, true, true, true)),
    ] {
        assert_eq!(found(id, 0, &faulty), 1, "{id}");
        assert_eq!(found(id, 0, &usage(true, true, true, false)), 0, "{id}");
    }
    // A cluster whose module is off says so once, and not five times.
    for id in ["http_without_tls", "transport_without_tls", "audit_log_off"] {
        assert_eq!(found(id, 0, &usage(false, false, false, false)), 0, "{id}");
    }
    let users = json!({
        "elastic": {"username": "elastic", "roles": ["superuser"], "full_name": null, "email": null, "metadata": {"_reserved": true}, "enabled": true},
        "ann": {"username": "ann", "roles": ["superuser", "kibana_admin"], "metadata": {}, "enabled": true},
        "gone": {"username": "gone", "roles": ["superuser"], "metadata": {}, "enabled": false},
        "app": {"username": "app", "roles": ["reader"], "metadata": {}, "enabled": true},
    });
    assert_eq!(found("users_superuser", 0, &users), 1);
    assert_eq!(found("builtin_superuser_on", 0, &users), 1);
    let mut without = users.clone();
    without["elastic"]["enabled"] = json!(false);
    assert_eq!(found("builtin_superuser_on", 0, &without), 0);
    let roles = json!({
        "superuser": {"cluster": ["all"], "indices": [{"names": ["*"], "privileges": ["all"], "allow_restricted_indices": false}], "applications": [], "run_as": ["*"], "metadata": {"_reserved": true}},
        "everything": {"cluster": ["manage_security"], "indices": [{"names": ["*"], "privileges": ["all"]}], "applications": [], "run_as": [], "metadata": {}},
        "reader": {"cluster": ["monitor"], "indices": [{"names": ["logs-*"], "privileges": ["all"]}, {"names": ["*"], "privileges": ["read"]}], "applications": [], "run_as": [], "metadata": {}},
    });
    assert_eq!(found("roles_almighty", 0, &roles), 1);
    assert_eq!(found("roles_change_rights", 0, &roles), 1);
    let keys = json!({"api_keys": [
        {"id": "a", "name": "for ever", "creation": 1_548_550_550_158_i64, "invalidated": false, "username": "ann", "realm": "native"},
        {"id": "b", "name": "a day", "creation": 1_548_550_550_158_i64, "expiration": 1_548_551_550_158_i64, "invalidated": false, "username": "ann", "realm": "native"},
        {"id": "c", "name": "taken back", "creation": 1_548_550_550_158_i64, "invalidated": true, "username": "ann", "realm": "native"},
    ]});
    assert_eq!(found("api_keys_without_end", 0, &keys), 1);
    let mappings = json!({
        "everybody": {"enabled": true, "roles": ["reader"], "rules": {"field": {"username": "*"}}, "metadata": {}},
        "admins": {"enabled": true, "roles": ["superuser"], "rules": {"field": {"groups": "cn=admins"}}, "metadata": {}},
    });
    assert_eq!(found("role_mappings_of_everybody", 0, &mappings), 1);
}

#[test]
fn what_the_security_module_of_opensearch_tells_is_judged() {
    let users = json!({
        "admin": {"hash": "", "reserved": true, "hidden": false, "backend_roles": ["admin"], "attributes": {}, "description": "Demo admin user", "opendistro_security_roles": [], "static": false},
        "ann": {"hash": "", "reserved": false, "hidden": false, "backend_roles": ["admin"], "attributes": {}, "opendistro_security_roles": [], "static": false},
        "app": {"hash": "", "reserved": false, "hidden": false, "backend_roles": ["reader"], "attributes": {}, "description": "the shop", "opendistro_security_roles": [], "static": false},
    });
    assert_eq!(found("users_superuser", 1, &users), 1);
    assert_eq!(found("users_of_the_demo", 0, &users), 1);
    let roles = json!({
        "all_access": {"reserved": true, "hidden": false, "static": true, "cluster_permissions": ["*"], "index_permissions": [{"index_patterns": ["*"], "dls": null, "fls": [], "masked_fields": [], "allowed_actions": ["*"]}], "tenant_permissions": []},
        "everything": {"reserved": false, "hidden": false, "static": false, "cluster_permissions": ["cluster_all"], "index_permissions": [{"index_patterns": ["*"], "fls": [], "masked_fields": [], "allowed_actions": ["indices_all"]}], "tenant_permissions": []},
        "reader": {"reserved": false, "hidden": false, "static": false, "cluster_permissions": ["cluster_monitor"], "index_permissions": [{"index_patterns": ["logs-*"], "fls": [], "masked_fields": [], "allowed_actions": ["read"]}], "tenant_permissions": []},
    });
    assert_eq!(found("roles_almighty", 1, &roles), 1);
    assert_eq!(found("roles_change_rights", 1, &roles), 1);
    let mappings = json!({
        "own_index": {"hosts": [], "users": ["*"], "reserved": false, "hidden": false, "backend_roles": [], "and_backend_roles": []},
        "reader": {"hosts": [], "users": ["*"], "reserved": false, "hidden": false, "backend_roles": [], "and_backend_roles": []},
        "ops": {"hosts": [], "users": ["ann"], "reserved": false, "hidden": false, "backend_roles": [], "and_backend_roles": []},
    });
    assert_eq!(found("role_mappings_of_everybody", 1, &mappings), 1);
    let audit = |enabled: bool| json!({"_readonly": [], "config": {"enabled": enabled, "audit": {"enable_rest": true, "enable_transport": true}, "compliance": {"enabled": true}}});
    assert_eq!(found("audit_log_off", 1, &audit(false)), 1);
    assert_eq!(found("audit_log_off", 1, &audit(true)), 0);
    let anonymous = |enabled: bool| json!({"config": {"dynamic": {"http": {"anonymous_auth_enabled": enabled}}}});
    assert_eq!(found("anonymous_user", 1, &anonymous(true)), 1);
    assert_eq!(found("anonymous_user", 1, &anonymous(false)), 0);
}

#[test]
fn repositories_and_plugins_of_the_documented_form_are_judged() {
    let repositories = json!({
        "far": {"type": "url", "settings": {"url": "http://backups.example/r"}},
        "plain": {"type": "s3", "settings": {"bucket": "b", "protocol": "http"}},
        "open": {"type": "s3", "settings": {"bucket": "b", "access_key": "AKIA", "secret_key": "x"}},
        "good": {"type": "s3", "settings": {"bucket": "b", "client": "default"}},
        "folder": {"type": "fs", "settings": {"location": "/snapshots"}},
    });
    assert_eq!(found("repositories_without_tls", 0, &repositories), 2);
    assert_eq!(found("repositories_with_secrets", 0, &repositories), 1);
    let node = |bound: &str, class: &str| {
        json!({"nodes": {"n1": {"name": "a",
            "transport": {"bound_address": [bound], "publish_address": "10.0.0.1:9300", "profiles": {}},
            "plugins": [{"name": "one", "version": "8.19.2", "classname": class}]}}})
    };
    let open = node("[::]:9300", "com.example.Plugin");
    let closed = node(
        "10.0.0.1:9300",
        "org.elasticsearch.plugin.analysis.icu.AnalysisICUPlugin",
    );
    for id in ["transport_listens_everywhere", "plugins_foreign"] {
        assert_eq!(found(id, 0, &open), 1, "{id}");
        assert_eq!(found(id, 0, &closed), 0, "{id}");
    }
}

/// What was changed since the cluster was last looked at, and what is work.
#[test]
fn drift_is_found_and_work_is_none() {
    for kind in [SearchKind::Elasticsearch, SearchKind::OpenSearch] {
        let server = SearchServer::start(kind, &[]).unwrap();
        let put = |path: &str, body: Value| tell(&server, "PUT", path, &body.to_string());
        let seen = || asked(&server).snapshot;
        put(
            "/orders",
            json!({"mappings": {"properties": {"n": {"type": "long"}}}}),
        );
        put("/old", json!({}));
        put(
            "/_ingest/pipeline/take",
            json!({"description": "hidden1", "processors": []}),
        );
        let before = seen();
        for (section, is_seen) in [
            (Section::Roles, false),
            (Section::Grants, false),
            (Section::AccessRules, false),
            (Section::Settings, true),
            (Section::Schema, true),
            (Section::Extensions, true),
        ] {
            let part = &before.sections[&section];
            assert_eq!(matches!(part, Part::Items(_)), is_seen, "{kind:?} {part:?}");
        }
        let Part::Items(schema) = &before.sections[&Section::Schema] else {
            unreachable!("it was seen");
        };
        let names: Vec<&String> = schema.keys().collect();
        assert_eq!(
            names,
            ["index old", "index orders", "pipeline take"],
            "{kind:?}: what the product brings is no part of it"
        );
        tell(&server, "POST", "/orders/_doc?refresh=true", r#"{"n": 1}"#);
        put("/orders/_settings", json!({"index.number_of_replicas": 0}));
        assert_eq!(seen().changes_since(&before), [], "{kind:?}");

        put(
            "/orders/_mapping",
            json!({"properties": {"total": {"type": "double"}}}),
        );
        tell(&server, "DELETE", "/old", "");
        put("/orders/_alias/all", json!({"filter": {"term": {"n": 1}}}));
        put(
            "/_index_template/made",
            json!({"index_patterns": ["made-*"], "template": {"settings": {}}}),
        );
        put(
            "/_cluster/settings",
            json!({"persistent": {"cluster.max_shards_per_node": 2000}}),
        );
        let after = seen();
        let told = after.judged(&before);
        let mut keys: Vec<&str> = told.findings.iter().map(|one| one.key.as_str()).collect();
        keys.retain(|key| !key.contains("drift_roles") && !key.contains("drift_grants"));
        keys.retain(|key| !key.contains("drift_access_rules"));
        keys.sort_unstable();
        assert_eq!(
            keys,
            [
                "elasticsearch.drift_schema:alias all of orders",
                "elasticsearch.drift_schema:index old",
                "elasticsearch.drift_schema:index orders",
                "elasticsearch.drift_schema:template made",
                "elasticsearch.drift_settings:persistent setting cluster.max_shards_per_node",
            ],
            "{kind:?}"
        );
        assert!(!format!("{after:?}").contains("hidden1"));
    }
}
