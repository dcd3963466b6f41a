//! A sample of keys, by groups of their names.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use fettler_engine::{EngineError, Workbench};
use serde_json::Value;

use super::words;
use crate::advice::told;

/// For how long keys are looked at, at most.
const MOST_TIME: Duration = Duration::from_secs(5);
/// How many are, at most.
const MOST_KEYS: u64 = 5000;
/// How many groups are kept, at most.
const MOST_GROUPS: usize = 1000;
/// From which size on a key is large: reading, moving or deleting it stops the server for a moment that others feel.
pub(super) const LARGE_BYTES: f64 = 10.0 * 1_048_576.0;
/// `OBJECT FREQ` counts logarithmically up to 255; this is about a hundred thousand reads within its time of decay.
const HOT: f64 = 200.0;

/// Keys of one kind whose names begin alike.
#[derive(Clone, Debug, Default)]
pub(super) struct Group {
    pub(super) keys: f64,
    pub(super) bytes: f64,
    /// Keys without a time to live.
    pub(super) lasting: f64,
    /// Of collections that are not packed: keys, entries, bytes, and the most entries.
    pub(super) loose: f64,
    pub(super) loose_entries: f64,
    pub(super) loose_bytes: f64,
    pub(super) most_entries: f64,
}

/// A key that stands out.
#[derive(Clone, Debug)]
pub(super) struct Single {
    pub(super) database: u32,
    pub(super) group: String,
    pub(super) kind: String,
    pub(super) value: f64,
}

/// What was seen.
#[derive(Clone, Debug, Default)]
pub(super) struct Sample {
    /// Keys that there are.
    pub(super) all: f64,
    pub(super) seen: f64,
    /// By name and kind.
    pub(super) groups: BTreeMap<(String, String), Group>,
    pub(super) large: Vec<Single>,
    pub(super) hot: Vec<Single>,
    /// Why nothing was, where nothing was.
    pub(super) refused: Option<String>,
}

impl Sample {
    /// How many keys there are for each that was seen.
    pub(super) fn scale(&self) -> f64 {
        if self.seen > 0.0 {
            (self.all / self.seen).max(1.0)
        } else {
            1.0
        }
    }
}

/// What names begin with: numbers and whatever follows the last `:` are left out.
pub(super) fn group_of(key: &str) -> String {
    let Some((begin, _)) = key.rsplit_once(':') else {
        let short: String = key.chars().take(3).collect();
        return format!("{short}*");
    };
    let parts: Vec<&str> = begin
        .split(':')
        .map(|part| {
            let is_name = part.len() <= 24
                && part
                    .chars()
                    .all(|letter| letter.is_ascii_alphabetic() || "_-.".contains(letter));
            if is_name { part } else { "#" }
        })
        .collect();
    format!("{}:*", parts.join(":"))
}

pub(super) async fn sample(
    bench: &mut dyn Workbench,
    info: &BTreeMap<String, String>,
    is_lfu: bool,
) -> Result<Sample, EngineError> {
    let mut sample = Sample::default();
    let until = Instant::now() + MOST_TIME;
    let databases: Vec<(u32, f64)> = info
        .iter()
        .filter_map(|(name, value)| {
            let number = name.strip_prefix("db")?.parse().ok()?;
            let keys = value
                .strip_prefix("keys=")?
                .split(',')
                .next()?
                .parse()
                .ok()?;
            Some((number, keys))
        })
        .collect();
    sample.all = databases.iter().map(|(_, keys)| keys).sum();
    for (database, _) in databases {
        if let Err(why) = told(bench, &words(&["SELECT", &database.to_string()])).await? {
            sample.refused = Some(why);
            continue;
        }
        let mut cursor = "0".to_owned();
        loop {
            let page = told(bench, &words(&["SCAN", &cursor, "COUNT", "200"])).await?;
            let page = match page {
                Ok(page) => page,
                Err(why) => {
                    sample.refused = Some(why);
                    break;
                }
            };
            for key in page[1].as_array().into_iter().flatten() {
                if let Some(key) = key.as_str() {
                    look_at(bench, &mut sample, database, key, is_lfu).await?;
                }
            }
            page[0].as_str().unwrap_or("0").clone_into(&mut cursor);
            #[expect(clippy::cast_precision_loss, reason = "a sample is small")]
            let is_enough = Instant::now() >= until || sample.seen >= MOST_KEYS as f64;
            if cursor == "0" || is_enough {
                break;
            }
        }
    }
    let most_first = |list: &mut Vec<Single>| {
        list.sort_by(|a, b| b.value.total_cmp(&a.value));
        list.truncate(20);
    };
    most_first(&mut sample.large);
    most_first(&mut sample.hot);
    Ok(sample)
}

async fn look_at(
    bench: &mut dyn Workbench,
    sample: &mut Sample,
    database: u32,
    key: &str,
    is_lfu: bool,
) -> Result<(), EngineError> {
    let number = |value: Result<Value, String>| value.ok().and_then(|value| value.as_f64());
    let kind = told(bench, &words(&["TYPE", key])).await?;
    let kind = kind.ok().and_then(|kind| kind.as_str().map(str::to_owned));
    let Some(kind) = kind.filter(|kind| kind != "none") else {
        return Ok(());
    };
    // The default of five samples keeps a large collection from being walked through.
    let bytes = told(bench, &words(&["MEMORY", "USAGE", key])).await?;
    if let Err(why) = &bytes {
        sample.refused = Some(why.clone());
        return Ok(());
    }
    let Some(bytes) = number(bytes) else {
        return Ok(());
    };
    let ttl = number(told(bench, &words(&["PTTL", key])).await?).unwrap_or(-1.0);
    let count = match kind.as_str() {
        "hash" => Some("HLEN"),
        "set" => Some("SCARD"),
        "zset" => Some("ZCARD"),
        _ => None,
    };
    let mut loose_entries = None;
    if let Some(count) = count {
        let encoding = told(bench, &words(&["OBJECT", "ENCODING", key])).await?;
        let is_loose =
            encoding.is_ok_and(|name| matches!(name.as_str(), Some("hashtable" | "skiplist")));
        if is_loose {
            loose_entries = number(told(bench, &words(&[count, key])).await?);
        }
    }
    let name = group_of(key);
    if is_lfu {
        let heat = number(told(bench, &words(&["OBJECT", "FREQ", key])).await?).unwrap_or(0.0);
        if heat >= HOT {
            sample.hot.push(Single {
                database,
                group: name.clone(),
                kind: kind.clone(),
                value: heat,
            });
        }
    }
    if bytes >= LARGE_BYTES {
        sample.large.push(Single {
            database,
            group: name.clone(),
            kind: kind.clone(),
            value: bytes,
        });
    }
    sample.seen += 1.0;
    let place = (name, kind);
    if sample.groups.len() >= MOST_GROUPS && !sample.groups.contains_key(&place) {
        return Ok(());
    }
    let group = sample.groups.entry(place).or_default();
    group.keys += 1.0;
    group.bytes += bytes;
    if ttl < 0.0 {
        group.lasting += 1.0;
    }
    if let Some(entries) = loose_entries {
        group.loose += 1.0;
        group.loose_entries += entries;
        group.loose_bytes += bytes;
        group.most_entries = group.most_entries.max(entries);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::group_of;

    #[test]
    fn a_group_names_no_person() {
        for (key, group) in [
            ("user:17:orders:9", "user:#:orders:*"),
            ("session:anna@example.org", "session:*"),
            ("mail:anna@example.org:box:1", "mail:#:box:*"),
            ("annasmith", "ann*"),
        ] {
            assert_eq!(group_of(key), group);
        }
    }
}
