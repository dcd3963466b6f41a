//! What no single answer says: lines that are put together from several.

use std::time::{SystemTime, UNIX_EPOCH};

use fettler_engine::Row;
use reqwest::Method;
use serde_json::{Value, json};

use super::{Asked, Failed, unanswered, unread};
use crate::client::{Body, encoded};

/// Indices with shards that are nowhere, of which the cluster is asked why.
const EXPLAINED: usize = 3;
/// Repositories whose snapshots are listed.
const MOST_REPOSITORIES: usize = 20;
/// Letters of an explanation that are kept.
const LETTERS: usize = 400;
/// Bytes of an explanation that are read.
const EXPLANATION_BYTES: usize = 1 << 20;

impl Asked {
    /// A line for each index with shards that are not assigned.
    pub(super) async fn unassigned_shards(&mut self) -> Result<Vec<Row>, Failed> {
        // The system's own indices count too: the cluster is as red by them.
        let health = self
            .get("/_cluster/health?level=indices&expand_wildcards=all&filter_path=status,unassigned_shards,number_of_data_nodes,indices.*.status,indices.*.unassigned_shards,indices.*.number_of_replicas,indices.*.number_of_shards,indices.*.active_primary_shards,indices.*.initializing_shards")
            .await?;
        if health["status"] == "green" {
            return Ok(Vec::new());
        }
        let indices = health["indices"]
            .as_object()
            .ok_or_else(|| unread("the cluster's health does not list its indices"))?;
        let mut rows = Vec::new();
        for (name, index) in indices {
            if index["unassigned_shards"].as_u64() == Some(0) {
                continue;
            }
            let number = |field: &str| index[field].as_i64().unwrap_or(0);
            let missing = (number("number_of_shards") - number("active_primary_shards")).max(0);
            let mut row = Row::from_iter([
                ("index".to_owned(), json!(name)),
                ("status".to_owned(), index["status"].clone()),
                ("unassigned".to_owned(), index["unassigned_shards"].clone()),
                ("primaries_missing".to_owned(), json!(missing)),
                ("replicas".to_owned(), index["number_of_replicas"].clone()),
                (
                    "data_nodes".to_owned(),
                    health["number_of_data_nodes"].clone(),
                ),
                ("explanation".to_owned(), json!("nothing more.")),
            ]);
            if rows.len() < EXPLAINED
                && let Some(why) = self.explanation(name, missing > 0).await?
            {
                row.insert("explanation".to_owned(), json!(why));
            }
            rows.push(row);
        }
        Ok(rows)
    }

    /// Why a shard of an index is not assigned, in the cluster's own words; nothing where it says nothing.
    async fn explanation(&self, index: &str, primary: bool) -> Result<Option<String>, Failed> {
        // The shard's number has to be named: it is looked for among those that are nowhere.
        let path = format!(
            "/_cat/shards/{}?format=json&h=shard,prirep,state",
            encoded(index)
        );
        let Ok(shards) = self.client.try_get(&path).await? else {
            return Ok(None);
        };
        let kind = if primary { "p" } else { "r" };
        let shard = shards
            .as_array()
            .into_iter()
            .flatten()
            .find(|shard| shard["state"] == "UNASSIGNED" && shard["prirep"] == kind)
            .and_then(|shard| shard["shard"].as_str()?.parse::<u32>().ok());
        let Some(shard) = shard else { return Ok(None) };
        let body = Body::Json(json!({"index": index, "shard": shard, "primary": primary}));
        let told = self
            .client
            .try_bytes(
                Method::GET,
                "/_cluster/allocation/explain?include_yes_decisions=false&filter_path=allocate_explanation,unassigned_info.reason,node_allocation_decisions.deciders.explanation",
                &body,
                EXPLANATION_BYTES,
            )
            .await?;
        let Ok(Some(body)) = told else {
            return Ok(None);
        };
        Ok(serde_json::from_slice(&body)
            .ok()
            .and_then(|answer| explained(&answer)))
    }

    /// A line for each node that tells of its disk.
    pub(super) async fn disks(&mut self) -> Result<Vec<Row>, Failed> {
        let settings = self
            .get("/_cluster/settings?include_defaults=true&flat_settings=true")
            .await?;
        let nodes = self
            .get("/_nodes/stats/fs?filter_path=nodes.*.name,nodes.*.roles,nodes.*.fs.total")
            .await?;
        let nodes = nodes["nodes"]
            .as_object()
            .ok_or_else(|| unread("the nodes do not tell of their disks"))?;
        let setting = |name: &str| {
            setting(
                &settings,
                &format!("cluster.routing.allocation.disk.{name}"),
            )
        };
        let enabled = setting("threshold_enabled").is_none_or(|value| value != "false");
        let mut rows = Vec::new();
        for node in nodes.values() {
            let roles = node["roles"].as_array();
            let holds_data = roles.is_none_or(|roles| {
                roles
                    .iter()
                    .filter_map(Value::as_str)
                    .any(|role| role.starts_with("data"))
            });
            let (Some(total), Some(free)) = (
                node["fs"]["total"]["total_in_bytes"].as_u64(),
                node["fs"]["total"]["available_in_bytes"].as_u64(),
            ) else {
                continue;
            };
            if !holds_data || total == 0 {
                continue;
            }
            let mut row = Row::from_iter([
                ("node".to_owned(), node["name"].clone()),
                ("total_bytes".to_owned(), json!(total)),
                ("free_bytes".to_owned(), json!(free)),
                ("watermarks_count".to_owned(), json!(enabled)),
            ]);
            for (name, setting_name, default) in [
                ("low", "watermark.low", "85%"),
                ("high", "watermark.high", "90%"),
                ("flood", "watermark.flood_stage", "95%"),
            ] {
                let mark = setting(setting_name).unwrap_or_else(|| default.to_owned());
                // The head room bounds what a share of a large disk leaves free, where the server has it (8.5).
                let most = setting(&format!("{setting_name}.max_headroom"))
                    .filter(|most| most != "-1")
                    .and_then(|most| bytes_of(&most));
                let free_at = free_at(&mark, total, most)
                    .ok_or_else(|| unread(format!("{setting_name} is {mark:?}")))?;
                row.insert(format!("{name}_bytes"), json!(free_at));
            }
            rows.push(row);
        }
        Ok(rows)
    }

    /// A line for each index, with its fields.
    pub(super) async fn mapped_fields(&mut self) -> Result<Vec<Row>, Failed> {
        let limits = self
            .get("/_all/_settings/index.mapping.total_fields.limit?flat_settings=true&include_defaults=true&expand_wildcards=all")
            .await?;
        let mappings = self.get("/_mapping?expand_wildcards=all").await?;
        let mappings = mappings
            .as_object()
            .ok_or_else(|| unread("the mappings cannot be read"))?;
        let mut rows: Vec<Row> = mappings
            .iter()
            .map(|(name, index)| {
                let name_of_limit = "index.mapping.total_fields.limit";
                let limit = [&limits[name]["settings"], &limits[name]["defaults"]]
                    .into_iter()
                    .find_map(|part| part[name_of_limit].as_str()?.parse::<u64>().ok())
                    // The documented default.
                    .unwrap_or(1000);
                Row::from_iter([
                    ("index".to_owned(), json!(name)),
                    ("fields".to_owned(), json!(fields_of(&index["mappings"]))),
                    ("limit".to_owned(), json!(limit)),
                ])
            })
            .collect();
        // Those that are fullest come first: not all are taken.
        let room = |row: &Row| {
            let number = |name: &str| row[name].as_f64().unwrap_or(0.0);
            number("limit") - number("fields")
        };
        rows.sort_by(|a, b| room(a).total_cmp(&room(b)));
        rows.truncate(fettler_engine::Answers::MOST_ROWS);
        Ok(rows)
    }

    /// A line for each repository of snapshots.
    pub(super) async fn snapshots(&mut self) -> Result<Vec<Row>, Failed> {
        let repositories = self.get("/_snapshot").await?;
        let names: Vec<String> = repositories
            .as_object()
            .map(|repositories| repositories.keys().cloned().collect())
            .unwrap_or_default();
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_secs());
        let mut rows = Vec::new();
        for name in names.into_iter().take(MOST_REPOSITORIES) {
            let path = format!(
                "/_cat/snapshots/{}?format=json&h=id,status,start_epoch,failed_shards&s=start_epoch:desc",
                encoded(&name)
            );
            let listed = match self.client.try_get(&path).await? {
                Ok(listed) => Ok(listed),
                Err(refusal) if refusal.status == 401 || refusal.is_not_allowed() => {
                    return Err(Failed::Refused(unanswered(&refusal)));
                }
                Err(refusal) => Err(refusal),
            };
            rows.push(match listed {
                Ok(listed) => repository_row(&name, &listed, now),
                Err(refusal) => {
                    // The reason may hold a path of the server's, and nothing of what is stored.
                    Row::from_iter([
                        ("repository".to_owned(), json!(name)),
                        ("readable".to_owned(), json!(false)),
                        ("error".to_owned(), json!(refusal.kind)),
                        ("last_status".to_owned(), json!("")),
                        ("last_snapshot".to_owned(), json!("")),
                        ("failed_shards".to_owned(), json!(0)),
                        ("seconds_ago".to_owned(), json!(0)),
                    ])
                }
            });
        }
        Ok(rows)
    }
}

/// The newest snapshot that has ended.
fn repository_row(name: &str, listed: &Value, now: u64) -> Row {
    let newest = listed
        .as_array()
        .into_iter()
        .flatten()
        .find(|snapshot| snapshot["status"] != "IN_PROGRESS");
    let text = |field: &str| {
        newest
            .and_then(|snapshot| snapshot[field].as_str())
            .unwrap_or_default()
    };
    let began: u64 = text("start_epoch").parse().unwrap_or(now);
    Row::from_iter([
        ("repository".to_owned(), json!(name)),
        ("readable".to_owned(), json!(true)),
        ("error".to_owned(), json!("")),
        ("last_status".to_owned(), json!(text("status"))),
        ("last_snapshot".to_owned(), json!(text("id"))),
        (
            "failed_shards".to_owned(),
            json!(text("failed_shards").parse::<u64>().unwrap_or(0)),
        ),
        ("seconds_ago".to_owned(), json!(now.saturating_sub(began))),
    ])
}

/// An explanation of the cluster's, shortened.
fn explained(answer: &Value) -> Option<String> {
    let mut parts: Vec<&str> = Vec::new();
    for decision in answer["node_allocation_decisions"]
        .as_array()
        .into_iter()
        .flatten()
    {
        for decider in decision["deciders"].as_array().into_iter().flatten() {
            if let Some(text) = decider["explanation"].as_str()
                && !parts.contains(&text)
            {
                parts.push(text);
            }
        }
    }
    if parts.is_empty() {
        parts.extend(answer["allocate_explanation"].as_str());
    }
    let whole = parts.join("; ");
    let mut short: String = whole.chars().take(LETTERS).collect();
    if short.len() < whole.len() {
        short.push('…');
    }
    (!short.is_empty()).then_some(short)
}

/// A setting of the cluster: what was set last for it counts.
fn setting(settings: &Value, name: &str) -> Option<String> {
    ["transient", "persistent", "defaults"]
        .into_iter()
        .find_map(|part| Some(settings[part][name].as_str()?.to_owned()))
}

/// A mark that is a share: `85%` or `0.85`.
fn share_of(mark: &str) -> Option<f64> {
    let share = match mark.strip_suffix('%') {
        Some(percent) => percent.trim().parse::<f64>().ok()? / 100.0,
        None => mark.trim().parse::<f64>().ok()?,
    };
    (0.0..=1.0).contains(&share).then_some(share)
}

/// How many bytes are free where a mark is reached: a share is of what is used, a size is of what is free.
fn free_at(mark: &str, total: u64, most: Option<u64>) -> Option<u64> {
    match share_of(mark) {
        Some(share) => {
            let free = (total as f64 * (1.0 - share)).round() as u64;
            Some(most.map_or(free, |most| free.min(most)))
        }
        None => bytes_of(mark),
    }
}

/// A size as the server writes it, `500mb` or `10GB`, in powers of 1024.
fn bytes_of(text: &str) -> Option<u64> {
    let text = text.trim().to_ascii_lowercase();
    let split = text.find(|letter: char| letter.is_ascii_alphabetic())?;
    let number: f64 = text[..split].trim().parse().ok()?;
    let power = match &text[split..] {
        "b" => 0,
        "k" | "kb" => 1,
        "m" | "mb" => 2,
        "g" | "gb" => 3,
        "t" | "tb" => 4,
        "p" | "pb" => 5,
        _ => return None,
    };
    Some((number * 1024_f64.powi(power)) as u64)
}

/// How many fields a mapping has, as its limit counts them: objects, fields, their further fields, and those at run time.
fn fields_of(mapping: &Value) -> u64 {
    let below = |name: &str| -> u64 {
        mapping[name].as_object().map_or(0, |fields| {
            fields.values().map(|field| 1 + fields_of(field)).sum()
        })
    };
    below("properties")
        + below("fields")
        + mapping["runtime"]
            .as_object()
            .map_or(0, |fields| fields.len() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watermark_is_a_share_or_a_size_and_a_head_room_bounds_the_share() {
        const GB: u64 = 1 << 30;
        assert_eq!(free_at("85%", 1000, None), Some(150));
        assert_eq!(free_at("0.9", 1000, None), Some(100));
        assert_eq!(free_at("85%", 10_000 * GB, Some(200 * GB)), Some(200 * GB));
        assert_eq!(free_at("500mb", 1000 * GB, None), Some(500 << 20));
        assert_eq!(free_at("10gb", 1000 * GB, None), Some(10 * GB));
        assert_eq!(free_at("much", 1000, None), None);
    }

    #[test]
    fn fields_are_counted_as_the_limit_counts_them() {
        assert_eq!(fields_of(&json!({})), 0);
        let mapping = json!({
            "properties": {
                "title": {"type": "text", "fields": {"raw": {"type": "keyword"}}},
                "author": {"properties": {"name": {"type": "keyword"}}},
            },
            "runtime": {"day": {"type": "keyword"}},
        });
        assert_eq!(fields_of(&mapping), 5);
    }

    #[test]
    fn the_newest_snapshot_that_ended_is_judged() {
        let listed = json!([
            {"id": "c", "status": "IN_PROGRESS", "start_epoch": "990", "failed_shards": "0"},
            {"id": "b", "status": "PARTIAL", "start_epoch": "900", "failed_shards": "2"},
            {"id": "a", "status": "SUCCESS", "start_epoch": "100", "failed_shards": "0"},
        ]);
        let row = repository_row("r", &listed, 1000);
        assert_eq!(
            json!(row),
            json!({
                "repository": "r", "readable": true, "error": "", "last_status": "PARTIAL",
                "last_snapshot": "b", "failed_shards": 2, "seconds_ago": 100,
            })
        );
        assert_eq!(repository_row("r", &json!([]), 1000)["last_status"], "");
    }

    #[test]
    fn an_explanation_names_each_reason_once_and_is_short() {
        let answer = json!({
            "allocate_explanation": "cannot allocate",
            "node_allocation_decisions": [
                {"deciders": [{"explanation": "a copy is there already"}]},
                {"deciders": [{"explanation": "a copy is there already"}]},
            ],
        });
        assert_eq!(explained(&answer).unwrap(), "a copy is there already");
        let answer = json!({"allocate_explanation": "cannot allocate"});
        assert_eq!(explained(&answer).unwrap(), "cannot allocate");
        assert_eq!(explained(&json!({})), None);
    }
}
