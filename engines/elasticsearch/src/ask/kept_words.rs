//! Words of questions by which an audit keeps how a cluster is, to see later what has changed. Each gives one line: names with how
//! they are. What stands behind the character 1 is a definition, of which the audit keeps a digest.
//!
//! - `KEPT USERS`, `KEPT ROLES`, `KEPT ROLE MAPPINGS`: of the security module; roles that a product brings are left out;
//! - `KEPT SETTINGS`: those of the cluster that somebody has set; of secrets that they are set;
//! - `KEPT REPOSITORIES`: where snapshots go;
//! - `KEPT SCHEMA`: indices, aliases, templates, pipelines, lifecycle policies, stored scripts;
//! - `KEPT PLUGINS`: with their versions.
//!
//! What comes and goes by itself is left out: indices of a lifecycle policy or a data stream, and all whose name begins with a dot.

use std::collections::{BTreeMap, BTreeSet};

use fettler_engine::{Refusal as Unanswered, Row, line_of_items};
use serde_json::{Map, Value, json};

use super::{Asked, Failed, unread};
use crate::server::Flavour;

/// Settings of an index that say what it does with documents. Others are moved about by the cluster itself.
const OF_DEFINITION: [&str; 6] = [
    "index.analysis.",
    "index.default_pipeline",
    "index.final_pipeline",
    "index.mapping.",
    "index.similarity.",
    "index.sort.",
];
/// Settings of an index that a policy makes and removes.
const BY_POLICY: [&str; 3] = [
    "index.lifecycle.name",
    "index.plugins.index_state_management.policy_id",
    "index.opendistro.index_state_management.policy_id",
];
/// Parts of names of settings whose value is nobody's business.
const SECRET: [&str; 4] = ["pass", "secret", "token", "access_key"];
/// What Fettler's own repositories and scratch indices begin with.
const OURS: &str = "fettler";

type Items = BTreeMap<String, String>;

impl Asked {
    /// `KEPT USERS`.
    pub(super) async fn kept_users(&mut self) -> Result<Vec<Row>, Failed> {
        let path = match self.server.flavour {
            Flavour::Elasticsearch => "/_security/user",
            Flavour::OpenSearch => "/_plugins/_security/api/internalusers",
        };
        let items = named(&self.get(path).await?, user);
        Ok(line_of_items(&called("user", items)))
    }

    /// `KEPT ROLES`.
    pub(super) async fn kept_roles(&mut self) -> Result<Vec<Row>, Failed> {
        let path = match self.server.flavour {
            Flavour::Elasticsearch => "/_security/role",
            Flavour::OpenSearch => "/_plugins/_security/api/roles",
        };
        let items = named(&self.get(path).await?, role);
        Ok(line_of_items(&called("role", items)))
    }

    /// `KEPT ROLE MAPPINGS`.
    pub(super) async fn kept_role_mappings(&mut self) -> Result<Vec<Row>, Failed> {
        let path = match self.server.flavour {
            Flavour::Elasticsearch => "/_security/role_mapping",
            Flavour::OpenSearch => "/_plugins/_security/api/rolesmapping",
        };
        let items = role_mappings(&self.get(path).await?);
        Ok(line_of_items(&called("role mapping", items)))
    }

    /// `KEPT SETTINGS`.
    pub(super) async fn kept_settings(&mut self) -> Result<Vec<Row>, Failed> {
        let told = self.get("/_cluster/settings?flat_settings=true").await?;
        let mut items = Items::new();
        for kind in ["persistent", "transient"] {
            items.extend(called(&format!("{kind} setting"), settings_of(&told[kind])));
        }
        Ok(line_of_items(&items))
    }

    /// `KEPT REPOSITORIES`.
    pub(super) async fn kept_repositories(&mut self) -> Result<Vec<Row>, Failed> {
        let mut items = named(&self.get("/_snapshot").await?, |one| {
            let kind = one["type"].as_str()?;
            Some(definition(
                &format!("type {kind}, settings"),
                &one["settings"],
            ))
        });
        items.retain(|name, _| !name.starts_with(OURS));
        Ok(line_of_items(&called("repository", items)))
    }

    /// `KEPT SCHEMA`.
    pub(super) async fn kept_schema(&mut self) -> Result<Vec<Row>, Failed> {
        let mappings = self.get("/_mapping").await?;
        let settings = self.get("/_all/_settings?flat_settings=true").await?;
        let mut items = called("index", indices_of(&mappings, &settings));
        for (index, told) in self.get("/_alias").await?.as_object().into_iter().flatten() {
            if !items.contains_key(&format!("index {index}")) {
                continue;
            }
            for (alias, one) in told["aliases"].as_object().into_iter().flatten() {
                items.insert(format!("alias {alias} of {index}"), definition("as", one));
            }
        }
        let templates = self.if_there("/_index_template").await?;
        let composed = listed(&templates["index_templates"], "name", "index_template");
        items.extend(called("template", composed));
        let templates = self.if_there("/_component_template").await?;
        let parts = listed(
            &templates["component_templates"],
            "name",
            "component_template",
        );
        items.extend(called("component template", parts));
        let whole = |one: &Value| (!is_managed(one)).then(|| definition("definition", one));
        let templates = named(&self.if_there("/_template").await?, whole);
        items.extend(called("old template", templates));
        let pipelines = named(&self.if_there("/_ingest/pipeline").await?, whole);
        items.extend(called("pipeline", pipelines));
        let policies = match self.server.flavour {
            Flavour::Elasticsearch => named(&self.if_there("/_ilm/policy").await?, |one| {
                whole(&one["policy"])
            }),
            Flavour::OpenSearch => {
                let told = self.if_there("/_plugins/_ism/policies?size=1000").await?;
                listed(&told["policies"], "_id", "policy")
            }
        };
        items.extend(called("policy", policies));
        let metadata = self
            .get("/_cluster/state/metadata?filter_path=metadata.stored_scripts")
            .await?;
        let scripts = named(&metadata["metadata"]["stored_scripts"], whole);
        items.extend(called("script", scripts));
        items.retain(|name, _| {
            let own = name
                .split(' ')
                .find(|word| word.starts_with(['.']) || word.starts_with(OURS));
            own.is_none()
        });
        Ok(line_of_items(&items))
    }

    /// `KEPT PLUGINS`.
    pub(super) async fn kept_plugins(&mut self) -> Result<Vec<Row>, Failed> {
        let told = self
            .get("/_nodes/plugins?filter_path=nodes.*.name,nodes.*.plugins.name,nodes.*.plugins.version")
            .await?;
        Ok(line_of_items(&called("plugin", plugins_of(&told)?)))
    }

    /// What a path is answered; nothing where the product has no such thing.
    async fn if_there(&mut self, path: &str) -> Result<Value, Failed> {
        match self.get(path).await {
            Err(Failed::Refused(Unanswered::OtherVersion)) => Ok(Value::Null),
            told => told,
        }
    }
}

/// Each member of an object by its name, with what is told of it.
fn named(told: &Value, state: impl Fn(&Value) -> Option<String>) -> Items {
    told.as_object()
        .into_iter()
        .flatten()
        .filter_map(|(name, one)| Some((name.clone(), state(one)?)))
        .collect()
}

/// A user as either product tells it.
fn user(told: &Value) -> Option<String> {
    let roles = match &told["roles"] {
        Value::Null => format!(
            "roles {}, backend roles {}",
            words(&told["opendistro_security_roles"]),
            words(&told["backend_roles"])
        ),
        roles => format!("roles {}", words(roles)),
    };
    let is_disabled = told["enabled"] == false;
    Some(if is_disabled {
        format!("{roles}, disabled")
    } else {
        roles
    })
}

/// A role that somebody made.
fn role(told: &Value) -> Option<String> {
    let is_the_products =
        told["metadata"]["_reserved"] == true || told["static"] == true || told["reserved"] == true;
    let privileges = without(told, &["metadata", "transient_metadata", "description"]);
    (!is_the_products).then(|| definition("privileges", &privileges))
}

/// Who is given which role. Elasticsearch's have names of their own, OpenSearch's that of the role.
fn role_mappings(told: &Value) -> Items {
    let mut items = named(told, |one| {
        Some(if one["rules"].is_null() && one["roles"].is_null() {
            format!(
                "to users {}, backend roles {}, all of the backend roles {}, hosts {}",
                words(&one["users"]),
                words(&one["backend_roles"]),
                words(&one["and_backend_roles"]),
                words(&one["hosts"])
            )
        } else {
            let rules = without(one, &["metadata", "roles"]);
            format!("{} {}", words(&one["roles"]), definition("by", &rules))
        })
    });
    for (name, state) in &mut items {
        *state = match state.strip_prefix("to ") {
            Some(_) => format!("gives {name} {state}"),
            None => format!("gives {state}"),
        };
    }
    items
}

/// Each thing of a list by its name, with a digest of what it is. What the product brings is left out.
fn listed(list: &Value, name: &str, what: &str) -> Items {
    list.as_array()
        .into_iter()
        .flatten()
        .filter(|one| !is_managed(&one[what]))
        .filter_map(|one| {
            let defined = without(
                &one[what],
                &[
                    "last_updated_time",
                    "created_date_millis",
                    "modified_date_millis",
                ],
            );
            Some((
                one[name].as_str()?.to_owned(),
                definition("definition", &defined),
            ))
        })
        .collect()
}

/// What the things are called, in front of their names.
fn called(kind: &str, items: Items) -> Items {
    items
        .into_iter()
        .map(|(name, state)| (format!("{kind} {name}"), state))
        .collect()
}

fn definition(what: &str, value: &Value) -> String {
    format!("{what} \u{1}{value}")
}

/// Whether a product brings it and changes it by itself.
fn is_managed(one: &Value) -> bool {
    one["_meta"]["managed"] == true
}

/// The words of a list, in order.
fn words(list: &Value) -> String {
    let words = list.as_array().into_iter().flatten();
    let words: BTreeSet<&str> = words.filter_map(Value::as_str).collect();
    if words.is_empty() {
        return "none".to_owned();
    }
    words.into_iter().collect::<Vec<_>>().join(", ")
}

fn without(value: &Value, names: &[&str]) -> Value {
    let fields = value.as_object().into_iter().flatten();
    fields
        .filter(|(name, _)| !names.contains(&name.as_str()))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect::<Map<_, _>>()
        .into()
}

fn settings_of(told: &Value) -> Items {
    let mut items = named(told, |value| {
        Some(
            value
                .as_str()
                .map_or_else(|| value.to_string(), str::to_owned),
        )
    });
    for (name, state) in &mut items {
        let lower = name.to_ascii_lowercase();
        if SECRET.iter().any(|part| lower.contains(part)) {
            "set".clone_into(state);
        }
    }
    items
}

fn indices_of(mappings: &Value, settings: &Value) -> Items {
    mappings
        .as_object()
        .into_iter()
        .flatten()
        .filter_map(|(name, told)| {
            let settings = settings[name]["settings"].as_object()?;
            if BY_POLICY
                .iter()
                .any(|policy| settings.contains_key(*policy))
            {
                return None;
            }
            let defined: Map<String, Value> = settings
                .iter()
                .filter(|(name, _)| OF_DEFINITION.iter().any(|part| name.starts_with(part)))
                .map(|(name, value)| (name.clone(), value.clone()))
                .collect();
            let whole = json!([told["mappings"], defined]);
            Some((name.clone(), definition("mapping", &whole)))
        })
        .collect()
}

fn plugins_of(told: &Value) -> Result<Items, Failed> {
    let nodes = told["nodes"]
        .as_object()
        .ok_or_else(|| unread("the nodes do not tell of their plugins"))?;
    let mut versions: BTreeMap<String, BTreeSet<&str>> = BTreeMap::new();
    for node in nodes.values() {
        for plugin in node["plugins"].as_array().into_iter().flatten() {
            let text = |name: &str| plugin[name].as_str().unwrap_or_default();
            versions
                .entry(text("name").to_owned())
                .or_default()
                .insert(text("version"));
        }
    }
    Ok(versions
        .into_iter()
        .map(|(name, versions)| {
            let versions: Vec<&str> = versions.into_iter().collect();
            (name, format!("version {}", versions.join(", ")))
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_secret_it_is_kept_that_it_is_set() {
        let told = json!({"cluster.max_shards_per_node": "2000", "xpack.notification.slack.secure_password": "s3cret"});
        let items = settings_of(&told);
        assert_eq!(items["cluster.max_shards_per_node"], "2000");
        assert_eq!(items["xpack.notification.slack.secure_password"], "set");
    }

    /// The documented forms of both products' answers, shortened.
    #[test]
    fn users_and_roles_of_both_products_are_told_without_what_the_products_bring() {
        let elastic = json!({"username": "ann", "roles": ["viewer", "superuser"], "full_name": null, "metadata": {}, "enabled": true});
        assert_eq!(user(&elastic).unwrap(), "roles superuser, viewer");
        let open = json!({"hash": "", "reserved": false, "hidden": false, "backend_roles": ["admin"], "attributes": {}, "opendistro_security_roles": [], "static": false});
        assert_eq!(user(&open).unwrap(), "roles none, backend roles admin");
        let gone = json!({"username": "ann", "roles": [], "enabled": false});
        assert_eq!(user(&gone).unwrap(), "roles none, disabled");

        let own = json!({"cluster": ["all"], "indices": [], "metadata": {}, "transient_metadata": {"enabled": true}});
        assert!(role(&own).unwrap().contains(r#""cluster":["all"]"#));
        assert_eq!(
            role(&json!({"cluster": ["all"], "metadata": {"_reserved": true}})),
            None
        );
        assert_eq!(
            role(&json!({"reserved": false, "static": true, "cluster_permissions": ["*"]})),
            None
        );

        let elastic = json!({"ldap_admins": {"enabled": true, "roles": ["superuser"], "rules": {"field": {"groups": "cn=admins"}}, "metadata": {}}});
        let state = &role_mappings(&elastic)["ldap_admins"];
        assert!(state.starts_with("gives superuser by \u{1}"), "{state}");
        let open = json!({"all_access": {"hosts": [], "users": ["ann"], "reserved": false, "hidden": false, "backend_roles": ["admin"], "and_backend_roles": []}});
        assert_eq!(
            role_mappings(&open)["all_access"],
            "gives all_access to users ann, backend roles admin, all of the backend roles none, hosts none"
        );
    }

    #[test]
    fn an_index_is_what_it_does_with_documents_and_not_where_it_lies() {
        let mappings = json!({"shop": {"mappings": {"properties": {"n": {"type": "long"}}}}, "logs-1": {"mappings": {}}});
        let of = |settings: Value| {
            indices_of(
                &mappings,
                &json!({"shop": {"settings": settings}, "logs-1": {"settings": {"index.lifecycle.name": "logs"}}}),
            )
        };
        let before = of(json!({"index.number_of_replicas": "1", "index.uuid": "a"}));
        assert_eq!(before.keys().collect::<Vec<_>>(), ["shop"]);
        assert_eq!(
            before,
            of(json!({"index.number_of_replicas": "0", "index.uuid": "b"}))
        );
        assert_ne!(before, of(json!({"index.default_pipeline": "take"})));
    }

    #[test]
    fn a_plugin_is_told_with_the_versions_that_nodes_have() {
        let told = json!({"nodes": {
            "a": {"plugins": [{"name": "icu", "version": "8.19.1"}]},
            "b": {"plugins": [{"name": "icu", "version": "8.19.0"}]},
        }});
        let items = plugins_of(&told).ok().unwrap();
        assert_eq!(items["icu"], "version 8.19.0, 8.19.1");
        assert!(plugins_of(&json!({})).is_err());
        // No node has one.
        assert!(
            plugins_of(&json!({"nodes": {"a": {"name": "a"}}})).is_ok_and(|all| all.is_empty())
        );
    }
}
