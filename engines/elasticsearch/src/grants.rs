//! What a user needs on an Elasticsearch or OpenSearch server with its security module, as requests. The remedies of the
//! preflight are the same requests.

use std::sync::LazyLock;

use fettler_engine::{EngineError, Grant, GrantRequest, Grants, PASSWORD_PLACEHOLDER, Purpose};
use serde_json::{Value, json};

use crate::server::Flavour;

static ELASTICSEARCH_BACKUP: LazyLock<String> =
    LazyLock::new(|| role_request(Flavour::Elasticsearch, "fettler", &[Purpose::Backup]));
static OPENSEARCH_BACKUP: LazyLock<String> =
    LazyLock::new(|| role_request(Flavour::OpenSearch, "fettler", &[Purpose::Backup]));

static ELASTICSEARCH_CLEANUP: LazyLock<String> =
    LazyLock::new(|| role_request(Flavour::Elasticsearch, "fettler", &[Purpose::Cleanup]));
static OPENSEARCH_CLEANUP: LazyLock<String> =
    LazyLock::new(|| role_request(Flavour::OpenSearch, "fettler", &[Purpose::Cleanup]));

/// What a user for cleanups is given, for messages.
pub(crate) fn for_cleanup(flavour: Flavour) -> &'static str {
    match flavour {
        Flavour::Elasticsearch => &ELASTICSEARCH_CLEANUP,
        Flavour::OpenSearch => &OPENSEARCH_CLEANUP,
    }
}

/// What a user for backups is given, for messages.
pub(crate) fn for_backups(flavour: Flavour) -> &'static str {
    match flavour {
        Flavour::Elasticsearch => &ELASTICSEARCH_BACKUP,
        Flavour::OpenSearch => &OPENSEARCH_BACKUP,
    }
}

/// Privileges of the cluster and of all indices, by purpose.
type Privileges = (&'static [&'static str], &'static [&'static str]);

/// The names are those of each product's documentation of its security module.
const fn privileges(flavour: Flavour, purpose: Purpose) -> Privileges {
    match (flavour, purpose) {
        (Flavour::Elasticsearch, Purpose::Backup) => (
            &[
                "monitor",
                "read_pipeline",
                "read_ilm",
                "manage_index_templates",
            ],
            &["read", "view_index_metadata", "monitor", "maintenance"],
        ),
        (Flavour::Elasticsearch, Purpose::Restore | Purpose::Prove) => (
            &[
                "monitor",
                // Stored scripts.
                "manage",
                "manage_pipeline",
                "manage_ilm",
                "manage_index_templates",
            ],
            &["all"],
        ),
        (Flavour::OpenSearch, Purpose::Backup) => (
            &[
                "cluster_monitor",
                "cluster_composite_ops_ro",
                "indices:data/read/point_in_time/create",
                "indices:data/read/point_in_time/delete",
                "indices:data/read/scroll*",
                "cluster:admin/ingest/pipeline/get",
                "cluster:admin/search/pipeline/get",
                "cluster:admin/opendistro/ism/policy/search",
                "indices:admin/template/get",
                "indices:admin/index_template/get",
                "cluster:admin/component_template/get",
            ],
            &[
                "read",
                "indices_monitor",
                "indices:admin/get",
                "indices:admin/refresh*",
                "indices:admin/data_stream/get",
                "indices:admin/resolve/index",
            ],
        ),
        (Flavour::OpenSearch, Purpose::Restore | Purpose::Prove) => (
            &[
                "cluster_monitor",
                "cluster_composite_ops",
                "indices:data/read/point_in_time/create",
                "indices:data/read/point_in_time/delete",
                "cluster_manage_pipelines",
                "cluster_manage_index_templates",
                "cluster:admin/search/pipeline/*",
                "cluster:admin/opendistro/ism/policy/*",
                "cluster:admin/component_template/*",
                "cluster:admin/script/*",
            ],
            &["indices_all"],
        ),
        (Flavour::Elasticsearch, Purpose::Audit) => (
            &["monitor", "monitor_snapshot", "read_security"],
            &["monitor", "view_index_metadata"],
        ),
        (Flavour::OpenSearch, Purpose::Audit) => (
            &[
                "cluster_monitor",
                "cluster:admin/repository/get",
                "restapi:admin/roles",
                "restapi:admin/rolesmapping",
                "restapi:admin/internalusers",
                "restapi:admin/ssl/certs/info",
            ],
            &["indices_monitor", "indices:admin/mappings/get"],
        ),
        (Flavour::Elasticsearch, Purpose::Tune) => (&["monitor"], &["monitor"]),
        (Flavour::OpenSearch, Purpose::Tune) => (&["cluster_monitor"], &["indices_monitor"]),
        (Flavour::Elasticsearch, Purpose::Health) => (
            &["monitor", "monitor_snapshot"],
            &["monitor", "view_index_metadata"],
        ),
        (Flavour::OpenSearch, Purpose::Health) => (
            &[
                "cluster_monitor",
                "cluster:admin/repository/get",
                "cluster:admin/snapshot/get",
                "cluster:admin/opendistro/ism/managedindex/explain",
            ],
            &[
                "indices_monitor",
                "indices:admin/mappings/get",
                "indices:monitor/settings/get",
            ],
        ),
        // To read, block and remove indices, and for the undo to make them again.
        (Flavour::Elasticsearch, Purpose::Cleanup) => (
            &["monitor"],
            &[
                "read",
                "view_index_metadata",
                "monitor",
                "maintenance",
                "manage",
                "write",
            ],
        ),
        (Flavour::OpenSearch, Purpose::Cleanup) => (
            &[
                "cluster_monitor",
                "cluster_composite_ops",
                "indices:data/read/point_in_time/create",
                "indices:data/read/point_in_time/delete",
                "indices:data/read/scroll*",
            ],
            &["indices_all"],
        ),
    }
}

/// The request that makes the role of these purposes.
fn role_request(flavour: Flavour, user: &str, purposes: &[Purpose]) -> String {
    let (mut cluster, mut indices): (Vec<&str>, Vec<&str>) = (Vec::new(), Vec::new());
    for purpose in purposes {
        let (more_cluster, more_indices) = privileges(flavour, *purpose);
        for (all, more) in [(&mut cluster, more_cluster), (&mut indices, more_indices)] {
            for one in more {
                if !all.contains(one) {
                    all.push(*one);
                }
            }
        }
    }
    let (path, body): (&str, Value) = match flavour {
        Flavour::Elasticsearch => (
            "/_security/role/",
            json!({"cluster": cluster, "indices": [{"names": ["*"], "privileges": indices}]}),
        ),
        Flavour::OpenSearch => (
            "/_plugins/_security/api/roles/",
            json!({
                "cluster_permissions": cluster,
                "index_permissions": [{"index_patterns": ["*"], "allowed_actions": indices}],
            }),
        ),
    };
    format!("PUT {path}{} {body}", name_of_role(user, purposes))
}

/// A role is called after its user and what it is for.
fn name_of_role(user: &str, purposes: &[Purpose]) -> String {
    let mut name = user.to_owned();
    for purpose in purposes {
        name.push('_');
        name.push_str(purpose.as_str());
    }
    name
}

/// What a user needs.
pub(crate) fn grants(request: &GrantRequest<'_>) -> Result<Grants, EngineError> {
    let user = request.role;
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
    if user.is_empty() || user.starts_with('_') || !user.bytes().all(is_plain) {
        return Err(request.invalid_role("it has letters, digits, `-`, `_` and `.`"));
    }
    let flavour = if request.url.as_str().starts_with("opensearch") {
        Flavour::OpenSearch
    } else {
        Flavour::Elasticsearch
    };
    let role = name_of_role(user, request.purposes);
    let user_request = match flavour {
        Flavour::Elasticsearch => format!(
            "PUT /_security/user/{user} {}",
            json!({"password": PASSWORD_PLACEHOLDER, "roles": [role]})
        ),
        Flavour::OpenSearch => format!(
            "PUT /_plugins/_security/api/internalusers/{user} {}",
            json!({"password": PASSWORD_PLACEHOLDER, "opendistro_security_roles": [role]})
        ),
    };
    let purposes: Vec<&str> = request
        .purposes
        .iter()
        .map(|purpose| purpose.as_str())
        .collect();
    let mut notes = vec![match flavour {
        Flavour::Elasticsearch => {
            "for OpenSearch ask with `opensearch://…`: its requests are others".to_owned()
        }
        Flavour::OpenSearch => {
            "for Elasticsearch ask with `elasticsearch://…`: its requests are others".to_owned()
        }
    }];
    if request.is_for(Purpose::Restore) {
        notes.push("the cluster's own settings (`--only _settings`) need the right to change the whole cluster besides".to_owned());
    }
    Ok(Grants {
        language: "REST",
        comment: Some("#"),
        statements: vec![
            Grant::new(
                purposes.join(", "),
                role_request(flavour, user, request.purposes),
            ),
            Grant::new(
                format!("the user; put its own password in the stead of {PASSWORD_PLACEHOLDER}"),
                user_request,
            ),
        ],
        notes,
    })
}

#[cfg(test)]
mod tests {
    use fettler_model::DatabaseUrl;

    use super::*;

    fn of(url: &str, user: &str, purposes: &[Purpose]) -> Result<Grants, EngineError> {
        let (url, _) = DatabaseUrl::parse_with_password(url).unwrap();
        grants(&GrantRequest {
            url: &url,
            role: user,
            purposes,
        })
    }

    #[test]
    fn grants_are_requests_that_a_person_can_send_and_each_product_has_its_own() {
        for (url, path, flavour) in [
            (
                "elasticsearch://ann:hunter2@h",
                "PUT /_security/role/fettler_backup ",
                Flavour::Elasticsearch,
            ),
            (
                "opensearch+https://ann:hunter2@h",
                "PUT /_plugins/_security/api/roles/fettler_backup ",
                Flavour::OpenSearch,
            ),
        ] {
            let grants = of(url, "fettler", &[Purpose::Backup]).unwrap();
            assert!(grants.statements[0].text.starts_with(path), "{grants:?}");
            assert_eq!(grants.statements[0].text, for_backups(flavour));
            assert!(!grants.to_text().contains("hunter2"));
            let all = of(url, "fettler", &Purpose::ALL).unwrap();
            for statement in grants.statements.iter().chain(&all.statements) {
                let body = &statement.text[statement.text.find('{').unwrap()..];
                serde_json::from_str::<Value>(body).unwrap();
            }
            assert!(
                all.statements[1]
                    .text
                    .contains("fettler_backup_restore_prove_health")
            );
        }
    }

    #[test]
    fn a_name_that_is_no_part_of_a_path_is_refused() {
        for user in ["", "_x", "a/b", "a b"] {
            assert!(
                of("elasticsearch://h", user, &[Purpose::Backup]).is_err(),
                "{user}"
            );
        }
    }
}
