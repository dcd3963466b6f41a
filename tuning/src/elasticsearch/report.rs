//! What follows from what was seen of a cluster.

use std::collections::BTreeMap;

use fettler_model::{ActionKind, Severity};
use serde_json::json;

use super::collect::{Facts, Index};
use crate::advice::{Advice, Said, action, size};

const GIB: f64 = 1_073_741_824.0;
const MIB: f64 = 1_048_576.0;
const DAY: f64 = 86_400.0;
/// From which size on a shard moves and recovers slowly (Elastic's guide to sizing shards: 10 to 50 GB).
const LARGE_SHARD: f64 = 50.0 * GIB;
/// Documents that a shard of Lucene may have (2^31), less a fifth.
const MOST_DOCUMENTS: f64 = 1_700_000_000.0;
/// Below which a shard is small, once it is known not to grow.
const SMALL_SHARD: f64 = 100.0 * MIB;
/// Shards for each GiB of heap: more than these keep a node busy with itself (the same guide, for versions before 8.3; later
/// ones count fields in their place, and come to alike).
const SHARDS_OF_A_GIB: f64 = 20.0;
/// How old an index must be not to be taken for one that is being filled.
const SETTLED: f64 = 7.0 * DAY;
/// The default limit of fields is a thousand.
const MANY_FIELDS: usize = 500;
const MANY_TWICE: usize = 10;
const TWICE_DOCUMENTS: f64 = 10_000.0;
/// How many refreshes must have been made to speak of a habit.
const MANY_REFRESHES: f64 = 200.0;
/// How many segments a shard that is not written to has, at most, without a merge being worth it.
const MANY_SEGMENTS: f64 = 5.0;
const LONG_SERIES: usize = 10;

pub(super) fn report(advice: &mut Advice, facts: &Facts, now: f64) {
    shards(advice, facts, now);
    mappings(advice, facts);
    refreshes(advice, facts);
    copies(advice, facts);
    old(advice, facts, now);
    series(advice, facts);
}

fn put(index: &str, setting: &str, value: Option<&str>) -> String {
    format!(
        "PUT /{index}/_settings\n{}",
        json!({"index": {setting: value}})
    )
}

fn shards(advice: &mut Advice, facts: &Facts, now: f64) {
    for check in ["shards_many", "shards_large", "shards_small"] {
        advice.seen(check);
    }
    let bytes: f64 = facts
        .indices
        .iter()
        .map(|index| index.bytes * (1.0 + index.replicas))
        .sum();
    let most = (facts.heap / GIB * SHARDS_OF_A_GIB).max(SHARDS_OF_A_GIB);
    let mean = bytes / facts.shards.max(1.0);
    if facts.shards > most && mean < GIB {
        advice.find(Said {
            check: "shards_many",
            object: "",
            severity: Severity::Medium,
            title: format!(
                "{:.0} shards of {} on average, for {} of heap",
                facts.shards,
                size(mean),
                size(facts.heap)
            ),
            evidence: json!({"shards": facts.shards, "mean_bytes": mean.round(), "heap_bytes": facts.heap, "data_nodes": facts.data_nodes}),
            why: "Each shard is an index of Lucene with buffers, caches and files of its own, and a part of the state that every change of the cluster carries around. A search asks all of them.",
            fix: "Put what is alike into fewer indices, make them with one primary shard until there is a reason for more, and end series by size (rollover at 10 to 50 GB) rather than by day. `_shrink` and `_reindex` bring together what is there.",
            commands: vec!["GET /_cat/shards?v&s=store".to_owned()],
        });
    }
    for index in &facts.indices {
        let mean = index.bytes / index.primaries.max(1.0);
        let documents = index.documents / index.primaries.max(1.0);
        if mean > LARGE_SHARD || documents > MOST_DOCUMENTS {
            advice.find(Said {
                check: "shards_large",
                object: &index.name,
                severity: Severity::Medium,
                title: format!("the shards of {} have {} and {documents:.0} documents each", index.name, size(mean)),
                evidence: json!({"primaries": index.primaries, "bytes": index.bytes, "documents": index.documents}),
                why: "A shard moves and recovers as a whole, is searched by one thread at a time, and holds 2^31 documents at most.",
                fix: "Split it (`_split`, when it is not written to), or go on in a new index behind an alias (rollover).",
                commands: vec![format!("POST /{}/_split/{}-split", index.name, index.name)],
            });
        }
        let is_settled = now - index.created > SETTLED;
        if index.primaries > 1.0 && mean < SMALL_SHARD && index.documents > 0.0 && is_settled {
            advice.find(Said {
                check: "shards_small",
                object: &index.name,
                severity: Severity::Low,
                title: format!("{} has {:.0} primary shards of {} each", index.name, index.primaries, size(mean)),
                evidence: json!({"primaries": index.primaries, "bytes": index.bytes, "days": ((now - index.created) / DAY).floor()}),
                why: "It is days old and small: one shard would hold it all, and be asked once in place of several times.",
                fix: "Shrink it to one shard when it is not written to, and make the next one so (templates).",
                commands: vec![format!("POST /{}/_shrink/{}-small", index.name, index.name)],
            });
        }
    }
}

fn mappings(advice: &mut Advice, facts: &Facts) {
    for check in ["fields_many", "fields_twice"] {
        advice.seen(check);
    }
    for index in &facts.indices {
        if index.fields >= MANY_FIELDS && index.is_dynamic {
            advice.find(Said {
                check: "fields_many",
                object: &index.name,
                severity: Severity::Medium,
                title: format!("{} has {} fields, and each new name in a document adds one", index.name, index.fields),
                evidence: json!({"fields": index.fields}),
                why: "Names that are really values (ids, dates, words) become fields. The mapping is a part of the cluster's state, every node holds all of it, and at the limit (a thousand by default) documents are refused.",
                fix: "Keep such names as values (a list of name and value, or a field of type `flattened`, in OpenSearch `flat_object`), and set `dynamic` to `false` or `strict` for the rest.",
                commands: vec![format!("PUT /{}/_mapping\n{}", index.name, json!({"dynamic": "false"}))],
            });
        }
        if index.twice.len() >= MANY_TWICE && index.documents >= TWICE_DOCUMENTS {
            advice.find(Said {
                check: "fields_twice",
                object: &index.name,
                severity: Severity::Low,
                title: format!("{} texts of {} are indexed twice, as words and as a whole, because nobody said how", index.twice.len(), index.name),
                evidence: json!({"fields": index.twice.iter().take(50).collect::<Vec<_>>(), "count": index.twice.len(), "documents": index.documents}),
                why: "A dynamic mapping makes of each text one field that is cut into words and one that is not. Ids, states and names are wanted as a whole, messages as words; hardly any both. The one that nobody asks costs disk and time with each document.",
                fix: "Say in the template which is which: `keyword` alone for ids and states, `text` (or `match_only_text`) alone for messages. It holds for indices made from then on. `GET /INDEX/_field_usage_stats` (Elasticsearch) tells what is asked for.",
                commands: vec![format!("GET /{}/_mapping", index.name)],
            });
        }
    }
}

/// Seconds of an interval as it is set; none where it is none, below nothing where it is off.
fn seconds(interval: &str) -> Option<f64> {
    if interval == "-1" {
        return Some(-1.0);
    }
    let (number, unit) =
        interval.split_at(interval.find(|letter: char| letter.is_ascii_alphabetic())?);
    let number: f64 = number.parse().ok()?;
    Some(match unit {
        "ms" => number / 1000.0,
        "s" => number,
        "m" => number * 60.0,
        _ => return None,
    })
}

fn refreshes(advice: &mut Advice, facts: &Facts) {
    advice.seen("refresh");
    for index in &facts.indices {
        let Some(set) = &index.refresh_interval else {
            // Not set, a shard that nobody searches is not refreshed.
            continue;
        };
        let (value, title, why, fix) = match seconds(set) {
            Some(seconds) if seconds < 0.0 && index.documents + index.indexed > 0.0 => (
                None,
                format!(
                    "{} is never refreshed: what is written is not found",
                    index.name
                ),
                "Refreshing is switched off for the time of a bulk load, and was not switched on again.",
                "Take the setting away once the load is over.",
            ),
            Some(seconds)
                if (0.0..=1.0).contains(&seconds)
                    && index.refreshes >= MANY_REFRESHES
                    && index.queries * 10.0 < index.refreshes =>
            {
                (
                    Some("30s"),
                    format!(
                        "{} is refreshed every {set}, and searched once for {:.0} refreshes",
                        index.name,
                        index.refreshes / index.queries.max(1.0)
                    ),
                    "Each refresh writes a segment, which is merged away again: with few searches that is work for nobody. Since it is set, the server does not leave it out while nobody searches.",
                    "Refresh less often, or take the setting away: then a shard that nobody searches for 30 s is left alone, and the next search waits for one refresh.",
                )
            }
            _ => continue,
        };
        let key = advice.find(Said {
            check: "refresh",
            object: &index.name,
            severity: Severity::Medium,
            title,
            evidence: json!({"refresh_interval": set, "refreshes": index.refreshes, "queries": index.queries, "indexed": index.indexed}),
            why,
            fix,
            commands: vec![put(&index.name, "refresh_interval", value)],
        });
        let made = action(
            ActionKind::SetSetting,
            &format!("{} refresh_interval", index.name),
            &key,
            "what is written is found at another time than before".to_owned(),
            vec![put(&index.name, "refresh_interval", value)],
            vec![put(&index.name, "refresh_interval", Some(set))],
        );
        advice.plan(
            made,
            Some("only people know how soon what is written must be found"),
        );
    }
}

fn copies(advice: &mut Advice, facts: &Facts) {
    advice.seen("replicas");
    // With one node there is nowhere else; `fettler health` says so.
    if facts.data_nodes < 2.0 {
        return;
    }
    for index in &facts.indices {
        let (value, title, why, severity) = if index.replicas == 0.0 && index.documents > 0.0 {
            (
                "1",
                format!(
                    "{} has no copy, on a cluster of {:.0} nodes",
                    index.name, facts.data_nodes
                ),
                "When its node is down it cannot be asked, and when its disk is gone so are its documents; one node answers all of its searches.",
                Severity::Medium,
            )
        } else if index.replicas >= facts.data_nodes {
            (
                "1",
                format!(
                    "{} is to have {:.0} copies beside the first, and there are {:.0} nodes",
                    index.name, index.replicas, facts.data_nodes
                ),
                "A node holds one copy of a shard: the others stay unassigned, and the cluster yellow.",
                Severity::Low,
            )
        } else {
            continue;
        };
        let now = format!("{:.0}", index.replicas);
        let key = advice.find(Said {
            check: "replicas",
            object: &index.name,
            severity,
            title,
            evidence: json!({"replicas": index.replicas, "data_nodes": facts.data_nodes}),
            why,
            fix: "Set the number to what the nodes can hold and the data is worth.",
            commands: vec![put(&index.name, "number_of_replicas", Some(value))],
        });
        let made = action(
            ActionKind::SetSetting,
            &format!("{} number_of_replicas", index.name),
            &key,
            "each copy takes as much disk as the first".to_owned(),
            vec![put(&index.name, "number_of_replicas", Some(value))],
            vec![put(&index.name, "number_of_replicas", Some(&now))],
        );
        advice.plan(
            made,
            Some("copies take disk and network, and may be left out on purpose"),
        );
    }
}

/// Indices that are not written to any more, in many segments.
fn old(advice: &mut Advice, facts: &Facts, now: f64) {
    advice.seen("segments");
    for index in &facts.indices {
        let segments = index.segments / index.primaries.max(1.0);
        let gone = index.deleted / (index.documents + index.deleted).max(1.0);
        let is_old = now - index.created > SETTLED && index.indexed == 0.0;
        if !is_old || index.bytes < GIB || (segments <= MANY_SEGMENTS && gone < 0.2) {
            continue;
        }
        advice.find(Said {
            check: "segments",
            object: &index.name,
            severity: Severity::Low,
            title: format!("{} is not written to, and has {segments:.0} segments a shard, {:.0} % of its documents deleted", index.name, gone * 100.0),
            evidence: json!({"segments": index.segments, "primaries": index.primaries, "deleted": index.deleted, "bytes": index.bytes}),
            why: "Each search asks all segments, and deleted documents take disk until their segment is merged, which nothing starts any more.",
            fix: "Merge it to one segment in a quiet hour, after setting it to read-only. Never while it is written to: segments beyond 5 GB are not merged again by themselves.",
            commands: vec![
                put(&index.name, "blocks.write", Some("true")),
                format!("POST /{}/_forcemerge?max_num_segments=1", index.name),
            ],
        });
    }
}

/// What a name begins with, where it ends with a date or a number, as those of series do.
fn series_of(name: &str) -> Option<&str> {
    let begin =
        name.trim_end_matches(|letter: char| letter.is_ascii_digit() || ".-_".contains(letter));
    let end = &name[begin.len()..];
    let digits = end.chars().filter(char::is_ascii_digit).count();
    (digits >= 6 && !begin.is_empty()).then_some(begin)
}

fn series(advice: &mut Advice, facts: &Facts) {
    if let Some(why) = &facts.no_policies {
        return advice.unknown("lifecycle", "policies of indices' lives are not told", why);
    }
    advice.seen("lifecycle");
    let mut all: BTreeMap<&str, Vec<&Index>> = BTreeMap::new();
    for index in facts.indices.iter().filter(|index| !index.has_policy) {
        if let Some(begin) = series_of(&index.name) {
            all.entry(begin).or_default().push(index);
        }
    }
    for (begin, indices) in all {
        if indices.len() < LONG_SERIES {
            continue;
        }
        let bytes: f64 = indices.iter().map(|index| index.bytes).sum();
        advice.find(Said {
            check: "lifecycle",
            object: begin,
            severity: Severity::Low,
            title: format!("{} indices {begin}… have no policy that ends them", indices.len()),
            evidence: json!({"indices": indices.len(), "bytes": bytes, "oldest": indices.iter().map(|index| &index.name).min()}),
            why: "A series that nothing ends grows until the disk is full, and each of its indices keeps shards open.",
            fix: "Give it a policy (ILM in Elasticsearch, ISM in OpenSearch; best as a data stream): go on in a new index by size and age, merge, and delete after a time. `fettler cleanup` removes by age what has no policy.",
            commands: vec![format!("GET /_cat/indices/{begin}*?v&s=creation.date&h=index,creation.date.string,pri.store.size")],
        });
    }
}

#[cfg(test)]
mod tests {
    use fettler_model::Engine;

    use super::*;

    const NOW: f64 = 1_800_000_000.0;

    fn index(name: &str) -> Index {
        Index {
            name: name.to_owned(),
            primaries: 1.0,
            replicas: 1.0,
            documents: 1e6,
            bytes: 10.0 * GIB,
            created: NOW - 30.0 * DAY,
            indexed: 5.0,
            queries: 100.0,
            refreshes: 100.0,
            segments: 12.0,
            is_dynamic: true,
            fields: 40,
            ..Index::default()
        }
    }

    fn found(indices: Vec<Index>, nodes: f64) -> Vec<String> {
        let facts = Facts {
            data_nodes: nodes,
            heap: nodes * 16.0 * GIB,
            shards: 20.0,
            indices,
            ..Facts::default()
        };
        let mut advice = Advice::of(Engine::Elasticsearch);
        report(&mut advice, &facts, NOW);
        advice
            .end(String::new(), &[])
            .findings
            .into_iter()
            .map(|one| one.check.replace("elasticsearch.tune_", ""))
            .collect()
    }

    #[test]
    fn an_ordinary_cluster_is_left_in_peace() {
        assert_eq!(
            found(vec![index("orders"), index("logs-2027.01.01")], 3.0),
            [""; 0]
        );
    }

    #[test]
    fn what_takes_days_or_several_nodes_to_show_is_found() {
        let with = |change: fn(&mut Index)| {
            let mut one = index("orders");
            change(&mut one);
            found(vec![one], 3.0)
        };
        assert_eq!(with(|one| one.bytes = 90.0 * GIB), ["shards_large"]);
        assert_eq!(
            with(|one| (one.primaries, one.bytes) = (5.0, 50.0 * MIB)),
            ["shards_small"]
        );
        assert_eq!(with(|one| one.indexed = 0.0), ["segments"]);
        assert_eq!(with(|one| one.replicas = 0.0), ["replicas"]);
        assert_eq!(with(|one| one.replicas = 3.0), ["replicas"]);
        // A young one may grow.
        let mut young = index("orders");
        (young.primaries, young.bytes, young.created) = (5.0, 50.0 * MIB, NOW - DAY);
        young.indexed = 0.0;
        assert_eq!(found(vec![young], 3.0), [""; 0]);
    }

    #[test]
    fn names_of_series_end_with_dates_or_long_numbers() {
        assert_eq!(series_of("logs-2027.01.01"), Some("logs"));
        assert_eq!(series_of("logs-app-000012"), Some("logs-app"));
        for other in ["orders", "orders-v2", "2027.01.01"] {
            assert_eq!(series_of(other), None, "{other}");
        }
    }
}
