//! How the server was started (`getCmdLineOpts`), with the parameters that it has now (`getParameter: "*"`), as one line.

use std::net::IpAddr;

use bson::rawdoc;
use fettler_engine::{Refusal as Unanswered, Row, is_remote};
use serde_json::{Value, json};

use super::{Asked, Failed, unread};

/// How a server was started.
#[derive(Clone, Debug)]
pub(super) struct Started {
    /// As checks read it.
    pub(super) row: Row,
    /// The options, as they were understood.
    pub(super) options: Value,
    /// The parameters that it has now.
    pub(super) parameters: Value,
}

impl Started {
    pub(super) fn is(&self, name: &str) -> bool {
        self.row.get(name) == Some(&json!(true))
    }
}

impl Asked {
    /// `STARTED`.
    pub(super) async fn started_row(&mut self) -> Result<Vec<Row>, Failed> {
        Ok(vec![self.started().await?.row])
    }

    /// `STORAGE` and `AUDITING`: what the community's edition does not have.
    pub(super) async fn of_enterprise(&mut self, missing: Unanswered) -> Result<Vec<Row>, Failed> {
        let started = self.started().await?;
        if started.is("has_enterprise")
            && (started.is("has_storage") || missing == Unanswered::OtherVersion)
        {
            Ok(vec![started.row])
        } else {
            Err(Failed::Refused(missing))
        }
    }

    /// How the server was started; asked for once.
    pub(super) async fn started(&mut self) -> Result<Started, Failed> {
        if let Some(known) = &self.audit.started {
            return known.clone().map_err(Failed::Refused);
        }
        let told = self.ask_how_started().await;
        match &told {
            Ok(started) => self.audit.started = Some(Ok(started.clone())),
            Err(Failed::Refused(refusal)) => self.audit.started = Some(Err(refusal.clone())),
            Err(Failed::Lost(_)) => {}
        }
        told
    }

    /// The same; none where the server does not show it.
    pub(super) async fn started_if_told(&mut self) -> Result<Option<Started>, Failed> {
        match self.started().await {
            Ok(started) => Ok(Some(started)),
            Err(Failed::Refused(_)) => Ok(None),
            Err(lost) => Err(lost),
        }
    }

    async fn ask_how_started(&mut self) -> Result<Started, Failed> {
        let build = self.told_by("admin", rawdoc! { "buildInfo": 1 }).await?;
        // It answers with options that are nobody's.
        if !build["ferretdb"].is_null() || !build["ferretdbVersion"].is_null() {
            return Err(unread("FerretDB does not tell how it was started"));
        }
        let mut options = self
            .told_by("admin", rawdoc! { "getCmdLineOpts": 1 })
            .await?;
        let parameters = self
            .told_by("admin", rawdoc! { "getParameter": "*" })
            .await?;
        let row = row_of(&options, &parameters, &build)
            .ok_or_else(|| unread("it does not tell how it was started"))?;
        Ok(Started {
            row,
            options: options["parsed"].take(),
            parameters,
        })
    }
}

/// One line. Options that nobody set are what they are without (MongoDB documentation: Configuration File Options).
fn row_of(options: &Value, parameters: &Value, build: &Value) -> Option<Row> {
    let parsed = options.get("parsed").filter(|parsed| parsed.is_object())?;
    let at = |pointer: &str| parsed.pointer(pointer).unwrap_or(&Value::Null);
    let text = |pointer: &str| at(pointer).as_str().unwrap_or_default();
    // Servers before 4.2 say `ssl`.
    let of_tls = |name: &str| match at(&format!("/net/tls/{name}")) {
        Value::Null => at(&format!("/net/ssl/{name}")),
        value => value,
    };
    let is_on = |value: &Value| value == &json!(true) || value == &json!("true");

    let has_key = !at("/security/keyFile").is_null();
    let cluster_auth = match text("/security/clusterAuthMode") {
        "" if has_key => "keyFile",
        "" => "none",
        mode => mode,
    };
    // Members that know each other by a key or a certificate ask clients for a login as well.
    let authorization = text("/security/authorization") == "enabled" || cluster_auth != "none";
    let bind = bind_of(at("/net/bindIp"), is_on(at("/net/bindIpAll")));
    // What it is now counts: it can be changed while the server runs.
    let mode = ["tlsMode", "sslMode"]
        .into_iter()
        .find_map(|name| parameters[name].as_str())
        .or_else(|| of_tls("mode").as_str())
        .unwrap_or("disabled");
    let has_tls = !mode.eq_ignore_ascii_case("disabled");
    let mechanisms: Vec<&str> = parameters["authenticationMechanisms"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    let modules: Vec<&str> = build["modules"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    let has_enterprise = modules.contains(&"enterprise") || build["psmdbVersion"].is_string();
    let by_directory = !at("/security/ldap").is_null()
        || parameters["oidcIdentityProviders"]
            .as_array()
            .is_some_and(|providers| !providers.is_empty());
    let disabled = match of_tls("disabledProtocols") {
        Value::Array(names) => names
            .iter()
            .filter_map(Value::as_str)
            .collect::<Vec<_>>()
            .join(","),
        other => other.as_str().unwrap_or_default().to_owned(),
    };
    let running = |name: &str, pointer: &str| match &parameters[name] {
        Value::Null => is_on(at(pointer)),
        value => is_on(value),
    };
    Some(Row::from_iter([
        ("authorization".to_owned(), json!(authorization)),
        (
            "in_transition".to_owned(),
            json!(is_on(at("/security/transitionToAuth"))),
        ),
        ("cluster_auth".to_owned(), json!(cluster_auth)),
        ("bind".to_owned(), json!(bind)),
        ("is_on_network".to_owned(), json!(is_on_network(&bind))),
        (
            "listens_everywhere".to_owned(),
            json!(
                bind.split(',')
                    .any(|one| matches!(one.trim(), "*" | "0.0.0.0" | "::"))
            ),
        ),
        ("tls_mode".to_owned(), json!(plain_mode(mode))),
        (
            "certificates_unchecked".to_owned(),
            json!(has_tls && is_on(of_tls("allowInvalidCertificates"))),
        ),
        (
            "names_unchecked".to_owned(),
            json!(has_tls && is_on(of_tls("allowInvalidHostnames"))),
        ),
        ("disabled_protocols".to_owned(), json!(disabled)),
        (
            "ciphers".to_owned(),
            json!(
                parameters["opensslCipherConfig"]
                    .as_str()
                    .unwrap_or_default()
            ),
        ),
        ("mechanisms".to_owned(), json!(mechanisms.join(", "))),
        (
            "localhost_exception".to_owned(),
            parameters["enableLocalhostAuthBypass"].clone(),
        ),
        (
            "test_commands".to_owned(),
            json!(
                running("enableTestCommands", "/setParameter/enableTestCommands")
                    || parameters["enableTestCommands"] == json!(1)
            ),
        ),
        (
            "javascript".to_owned(),
            json!(at("/security/javascriptEnabled") != &json!(false)),
        ),
        (
            "is_quiet".to_owned(),
            json!(running("quiet", "/systemLog/quiet")),
        ),
        ("log_level".to_owned(), parameters["logLevel"].clone()),
        (
            "hides_values".to_owned(),
            json!(running(
                "redactClientLogData",
                "/security/redactClientLogData"
            )),
        ),
        ("audit_log".to_owned(), json!(text("/auditLog/destination"))),
        (
            "encrypts_storage".to_owned(),
            json!(is_on(at("/security/enableEncryption")) || !at("/security/vault").is_null()),
        ),
        ("has_enterprise".to_owned(), json!(has_enterprise)),
        ("by_directory".to_owned(), json!(by_directory)),
        (
            "has_storage".to_owned(),
            json!(at("/sharding/configDB").is_null()),
        ),
    ]))
}

/// Where a server listens: at this machine alone, where nobody says otherwise (since 3.6).
fn bind_of(bind: &Value, everywhere: bool) -> String {
    match bind {
        _ if everywhere => "*".to_owned(),
        Value::String(text) if !text.trim().is_empty() => text.clone(),
        Value::Array(list) => list
            .iter()
            .filter_map(Value::as_str)
            .collect::<Vec<_>>()
            .join(","),
        _ => "localhost".to_owned(),
    }
}

/// Whether one of the places is more than this machine's own. A name that is not `localhost` is taken for another machine's way.
fn is_on_network(bind: &str) -> bool {
    bind.split(',')
        .map(str::trim)
        .filter(|one| !one.is_empty() && !one.starts_with('/'))
        .any(|one| match one.parse::<IpAddr>() {
            Ok(address) => is_remote(address),
            Err(_) => one != "localhost",
        })
}

/// `requireSSL` and `requireTLS` are one.
fn plain_mode(mode: &str) -> &str {
    match mode {
        "requireTLS" | "requireSSL" => "require",
        "preferTLS" | "preferSSL" => "prefer",
        "allowTLS" | "allowSSL" => "allow",
        _ => "disabled",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers of the documented form of MongoDB 7.0, shortened.
    #[test]
    fn what_nobody_set_is_what_it_is_without() {
        let row = row_of(
            &json!({"argv": ["mongod"], "parsed": {}, "ok": 1}),
            &json!({"tlsMode": "disabled", "enableLocalhostAuthBypass": true, "quiet": false, "logLevel": 0}),
            &json!({"version": "7.0.28", "modules": []}),
        )
        .unwrap();
        for (name, wanted) in [
            ("authorization", json!(false)),
            ("bind", json!("localhost")),
            ("is_on_network", json!(false)),
            ("tls_mode", json!("disabled")),
            ("cluster_auth", json!("none")),
            ("javascript", json!(true)),
            ("localhost_exception", json!(true)),
            ("has_enterprise", json!(false)),
        ] {
            assert_eq!(row[name], wanted, "{name}");
        }
        assert!(row_of(&json!({"ok": 1}), &json!({}), &json!({})).is_none());
    }

    #[test]
    fn old_names_and_what_runs_now_count() {
        let row = row_of(
            &json!({"parsed": {
                "net": {"bindIp": "127.0.0.1,10.0.0.5,/run/m.sock", "ssl": {"mode": "requireSSL", "allowInvalidCertificates": true, "disabledProtocols": "none"}},
                "security": {"keyFile": "/etc/key", "javascriptEnabled": false},
                "systemLog": {"quiet": true},
            }}),
            &json!({"sslMode": "preferSSL", "authenticationMechanisms": ["SCRAM-SHA-1"], "enableTestCommands": 1}),
            &json!({"modules": ["enterprise"]}),
        )
        .unwrap();
        for (name, wanted) in [
            ("authorization", json!(true)),
            ("cluster_auth", json!("keyFile")),
            ("is_on_network", json!(true)),
            ("listens_everywhere", json!(false)),
            ("tls_mode", json!("prefer")),
            ("certificates_unchecked", json!(true)),
            ("test_commands", json!(true)),
            ("javascript", json!(false)),
            ("is_quiet", json!(true)),
            ("has_enterprise", json!(true)),
        ] {
            assert_eq!(row[name], wanted, "{name}");
        }
        for (bind, on) in [
            ("localhost", false),
            ("::1,127.0.0.1", false),
            ("*", true),
            ("db1.internal", true),
            ("::,0.0.0.0", true),
        ] {
            assert_eq!(is_on_network(bind), on, "{bind}");
        }
    }
}
