//! What follows from what was seen of a Redis server.

use fettler_model::{ActionKind, Severity};
use serde_json::json;

use super::{Facts, sample::Group, words};
use crate::advice::{Advice, Said, action, size};

const MIB: f64 = 1_048_576.0;
/// The share of the machine's memory from which on a server without a limit is told of it.
const LARGE_SHARE: f64 = 0.25;
/// The share of the limit from which on it matters what is evicted.
const NEARLY_FULL: f64 = 0.8;
/// How many keys of a group must be seen to speak of habits.
const HABIT_KEYS: f64 = 200.0;
/// How many entries a packed collection may have, at most, for its commands to stay quick: each walks through it.
const MOST_PACKED: f64 = 512.0;
/// What repacking must save, of all memory and in bytes.
const LEAST_SAVED_SHARE: f64 = 0.1;
const LEAST_SAVED_BYTES: f64 = 8.0 * MIB;
/// What an entry of a hash or a sorted set costs beside its text when it is not packed: two objects, a slot, pointers.
const LOOSE_OVERHEAD: f64 = 56.0;
/// From which size on fragments are worth anything.
const FRAGMENTED_BYTES: f64 = 100.0 * MIB;
const FRAGMENTED: f64 = 1.5;
/// How long a fork may stop the server, in microseconds: Redis documents about 10 ms for each GB on real machines.
const SLOW_FORK_US: f64 = 200_000.0;

pub(super) fn advise(advice: &mut Advice, facts: &Facts) {
    if let Err(why) = &facts.config {
        advice.unknown("settings", "the server's settings are not told", why);
    }
    if let Some(why) = &facts.sample.refused {
        advice.unknown("keys", "keys could not be looked at", why);
    }
    memory(advice, facts);
    eviction(advice, facts);
    fragments(advice, facts);
    persistence(advice, facts);
    commands(advice, facts);
    large_keys(advice, facts);
    hot_keys(advice, facts);
    expiry(advice, facts);
    encodings(advice, facts);
}

/// A setting, changed and changed back.
fn setting(
    advice: &mut Advice,
    facts: &Facts,
    name: &str,
    value: &str,
    finding: &str,
    reason: &str,
    unsafe_because: Option<&str>,
) {
    let Some(now) = facts.setting(name) else {
        return;
    };
    let made = action(
        ActionKind::SetSetting,
        name,
        finding,
        format!(
            "{reason} ({name}: {now} → {value}; until the next start, unless CONFIG REWRITE keeps it)"
        ),
        vec![words(&["CONFIG", "SET", name, value])],
        vec![words(&["CONFIG", "SET", name, now])],
    );
    advice.plan(made, unsafe_because);
}

fn memory(advice: &mut Advice, facts: &Facts) {
    let (Some(limit), machine) = (
        facts.setting_number("maxmemory"),
        facts.number("total_system_memory"),
    ) else {
        return;
    };
    advice.seen("memory_limit");
    let peak = facts.number("used_memory_peak");
    if limit > 0.0 || machine <= 0.0 || peak < machine * LARGE_SHARE {
        return;
    }
    advice.find(Said {
        check: "memory_limit",
        object: "",
        severity: Severity::Medium,
        title: format!(
            "there is no limit of memory, and {} of the machine's {} were in use",
            size(peak),
            size(machine)
        ),
        evidence: json!({"maxmemory": 0, "used_memory_peak": peak, "total_system_memory": machine}),
        why: "Without a limit the server grows until the machine ends it. A fork for a snapshot needs room for what is written meanwhile, so that a limit is well below what the machine has.",
        fix: "Set a limit of about 60 to 70 % of the machine's memory where this server has the machine for itself, and choose what is to happen there: `noeviction` refuses writes (a database), `allkeys-lru` or `allkeys-lfu` forgets (a cache).",
        commands: vec![format!("CONFIG SET maxmemory {:.0}", machine * 0.65)],
    });
}

fn eviction(advice: &mut Advice, facts: &Facts) {
    let (Some(limit), Some(policy)) = (
        facts.setting_number("maxmemory"),
        facts.setting("maxmemory-policy"),
    ) else {
        return;
    };
    advice.seen("eviction");
    let used = facts.number("used_memory");
    if limit <= 0.0 || used < limit * NEARLY_FULL {
        return;
    }
    let (keys, expiring) = totals(facts);
    let share = if keys > 0.0 { expiring / keys } else { 0.0 };
    let (title, why, fix) = if policy.starts_with("volatile") && share < 0.01 {
        (
            format!("memory is nearly full, and `{policy}` may evict hardly any key"),
            "The policy takes only keys with a time to live, of which there are next to none: at the limit writes are refused, as if there were no policy.",
            "Give what may be forgotten a time to live, or choose a policy of `allkeys-` where all may be.",
        )
    } else if policy == "noeviction" && share > 0.9 {
        (
            "memory is nearly full of keys that expire, and writes will be refused at the limit"
                .to_owned(),
            "Nearly all keys have a time to live, as in a cache: what is to go anyway could make room earlier.",
            "Where all of it can be had again from elsewhere, let the server evict what was used the longest time ago.",
        )
    } else {
        return;
    };
    let key = advice.find(Said {
        check: "eviction",
        object: "",
        severity: Severity::High,
        title,
        evidence: json!({"maxmemory": limit, "used_memory": used, "policy": policy, "keys": keys, "expiring": expiring}),
        why,
        fix,
        commands: vec!["CONFIG SET maxmemory-policy volatile-lru".to_owned()],
    });
    let better = if policy == "noeviction" {
        "volatile-lru"
    } else {
        "allkeys-lru"
    };
    setting(
        advice,
        facts,
        "maxmemory-policy",
        better,
        &key,
        "the server makes room rather than refusing writes",
        Some("only people know whether what is evicted can be had again"),
    );
}

/// Keys, and those with a time to live, in all databases.
fn totals(facts: &Facts) -> (f64, f64) {
    let of = |value: &str, name: &str| -> f64 {
        value
            .split(',')
            .find_map(|part| part.strip_prefix(name)?.strip_prefix('=')?.parse().ok())
            .unwrap_or(0.0)
    };
    facts
        .info
        .iter()
        .filter(|(name, value)| {
            name.strip_prefix("db")
                .is_some_and(|rest| rest.parse::<u32>().is_ok())
                && value.starts_with("keys=")
        })
        .fold((0.0, 0.0), |(keys, expires), (_, value)| {
            (keys + of(value, "keys"), expires + of(value, "expires"))
        })
}

fn fragments(advice: &mut Advice, facts: &Facts) {
    advice.seen("fragmentation");
    let ratio = facts.number("mem_fragmentation_ratio");
    let wasted = facts.number("mem_fragmentation_bytes");
    if ratio < FRAGMENTED || wasted < FRAGMENTED_BYTES {
        return;
    }
    let key = advice.find(Said {
        check: "fragmentation",
        object: "",
        severity: Severity::Medium,
        title: format!("{} of memory lie between what is used", size(wasted)),
        evidence: json!({"mem_fragmentation_ratio": ratio, "mem_fragmentation_bytes": wasted, "activedefrag": facts.setting("activedefrag")}),
        why: "Values of other sizes have left gaps that the allocator can give neither to new values nor back to the machine.",
        fix: "Let the server move values together in its idle time. Where it was built without that, a restart (or a failover to a replica that was started later) does it.",
        commands: vec!["CONFIG SET activedefrag yes".to_owned()],
    });
    if facts.setting("activedefrag") == Some("no") {
        setting(
            advice,
            facts,
            "activedefrag",
            "yes",
            &key,
            "gaps are closed while the server runs, within its limits of time",
            None,
        );
    }
}

fn persistence(advice: &mut Advice, facts: &Facts) {
    advice.seen("fork");
    advice.seen("saves");
    let fork = facts.number("latest_fork_usec");
    if fork > SLOW_FORK_US {
        advice.find(Said {
            check: "fork",
            object: "",
            severity: Severity::Medium,
            title: format!("the last fork stopped the server for {:.0} ms", fork / 1000.0),
            evidence: json!({"latest_fork_usec": fork, "used_memory": facts.number("used_memory")}),
            why: "For a snapshot or a rewrite of the log the server copies the tables of its pages, and answers nobody meanwhile. The time grows with memory, and with transparent huge pages and some virtual machines more than it should.",
            fix: "Take snapshots and rewrites on a replica, switch transparent huge pages off, or spread the keys over several servers.",
            commands: Vec::new(),
        });
    }
    let Some(save) = facts.setting("save") else {
        return;
    };
    let numbers: Vec<f64> = save
        .split_whitespace()
        .filter_map(|word| word.parse().ok())
        .collect();
    let shortest = numbers
        .chunks_exact(2)
        .map(|point| point[0])
        .reduce(f64::min);
    let took = facts.number("rdb_last_bgsave_time_sec");
    if let Some(shortest) = shortest
        && took >= 30.0
        && shortest < took * 3.0
    {
        advice.find(Said {
            check: "saves",
            object: "",
            severity: Severity::Low,
            title: format!("a snapshot takes {took:.0} s, and may be taken every {shortest:.0} s"),
            evidence: json!({"save": save, "rdb_last_bgsave_time_sec": took}),
            why: "While changes come in, the server hardly does anything else than write all of its memory: disk, processor, and copies of the pages that are written to meanwhile.",
            fix: "Take snapshots less often; where less may be lost than lies between them, the append-only file with `appendfsync everysec` writes only what changed.",
            commands: vec!["CONFIG SET save \"3600 1 900 10000\"".to_owned()],
        });
    }
}

/// Commands that walk through everything.
fn commands(advice: &mut Advice, facts: &Facts) {
    advice.seen("walking_commands");
    for command in ["keys", "smembers", "hgetall"] {
        let Some(told) = facts.info.get(&format!("cmdstat_{command}")) else {
            continue;
        };
        let of = |name: &str| -> f64 {
            told.split(',')
                .find_map(|part| part.strip_prefix(name)?.strip_prefix('=')?.parse().ok())
                .unwrap_or(0.0)
        };
        let (calls, mean) = (of("calls"), of("usec_per_call"));
        if calls < 10.0 || mean < 10_000.0 {
            continue;
        }
        let name = command.to_uppercase();
        advice.find(Said {
            check: "walking_commands",
            object: &name,
            severity: Severity::Medium,
            title: format!("{name} has stopped everybody for {:.0} ms, {calls:.0} times", mean / 1000.0),
            evidence: json!({"calls": calls, "usec_per_call": mean}),
            why: "One thread serves all clients: while a command walks through all keys, or all of a large collection, nobody else is answered.",
            fix: "Walk in small steps (SCAN, SSCAN, HSCAN), keep an index of what is looked for, or split the collection. `ACL SETUSER … -keys` takes the command from an application.",
            commands: vec!["SLOWLOG GET 20".to_owned()],
        });
    }
}

fn large_keys(advice: &mut Advice, facts: &Facts) {
    if facts.sample.refused.is_none() {
        advice.seen("large_keys");
    }
    let large = &facts.sample.large;
    if large.is_empty() {
        return;
    }
    let keys: Vec<_> = large
        .iter()
        .map(|one| json!({"database": one.database, "name": one.group, "type": one.kind, "bytes": one.value}))
        .collect();
    let key = advice.find(Said {
        check: "large_keys",
        object: "",
        severity: Severity::Medium,
        title: format!(
            "{} of {:.0} keys that were looked at are large, the largest of {}",
            large.len(),
            facts.sample.seen,
            size(large[0].value)
        ),
        evidence: json!({"keys": keys, "looked_at": facts.sample.seen, "of": facts.sample.all}),
        why: "A large key is read, copied to replicas, moved between slots and freed in one step, in which nobody else is answered, and cannot be spread over a cluster.",
        fix: "Split it (by a part of its members' names, or by time), trim it (LTRIM, ZREMRANGEBYRANK, XTRIM), and remove it by UNLINK. `redis-cli --memkeys` names all of them.",
        commands: vec!["redis-cli --memkeys".to_owned()],
    });
    for name in ["lazyfree-lazy-expire", "lazyfree-lazy-eviction"] {
        if facts.setting(name) == Some("no") {
            setting(
                advice,
                facts,
                name,
                "yes",
                &key,
                "the memory of large keys is freed by another thread when they go",
                None,
            );
        }
    }
}

fn hot_keys(advice: &mut Advice, facts: &Facts) {
    advice.seen("hot_keys");
    let hot = &facts.sample.hot;
    if hot.is_empty() {
        return;
    }
    let keys: Vec<_> = hot
        .iter()
        .map(|one| json!({"database": one.database, "name": one.group, "type": one.kind, "freq": one.value}))
        .collect();
    advice.find(Said {
        check: "hot_keys",
        object: "",
        severity: Severity::Info,
        title: format!("{} keys are read far more often than the others", hot.len()),
        evidence: json!({ "keys": keys }),
        why: "All reads of a key go to one thread of one server, however many servers a cluster has.",
        fix: "Keep such values in the clients for a moment (client-side caching with CLIENT TRACKING), read them from replicas, or keep several copies.",
        commands: Vec::new(),
    });
}

/// Groups in which nearly all keys expire, and some never.
fn expiry(advice: &mut Advice, facts: &Facts) {
    if facts.sample.refused.is_none() {
        advice.seen("expiry");
    }
    for ((name, kind), group) in &facts.sample.groups {
        let share = group.lasting / group.keys;
        if group.keys < HABIT_KEYS || share <= 0.0 || share > 0.2 {
            continue;
        }
        advice.find(Said {
            check: "expiry",
            object: &format!("{name} {kind}"),
            severity: Severity::Low,
            title: format!(
                "{:.0} % of the keys {name} never expire, while the others do",
                share * 100.0
            ),
            evidence: json!({"looked_at": group.keys, "without_ttl": group.lasting, "about_in_all": (group.lasting * facts.sample.scale()).round()}),
            why: "Most keys of this name have a time to live, so that the others were most likely forgotten: a plain SET takes it away, and so does a write of the key after it has expired. They stay until somebody removes them.",
            fix: "Find the place that writes them (SET without EX or KEEPTTL; INCR or HSET before EXPIRE), and give those that are there a time. `fettler cleanup` finds them by pattern.",
            commands: vec![format!("redis-cli --scan --pattern '{}'", name.replace('#', "*"))],
        });
    }
}

/// Collections that are just too long to be packed.
fn encodings(advice: &mut Advice, facts: &Facts) {
    if facts.sample.refused.is_none() {
        advice.seen("encodings");
    }
    for (kind, limits) in [
        (
            "hash",
            ["hash-max-listpack-entries", "hash-max-ziplist-entries"],
        ),
        (
            "zset",
            ["zset-max-listpack-entries", "zset-max-ziplist-entries"],
        ),
    ] {
        let Some((name, limit)) = limits
            .iter()
            .find_map(|name| Some((*name, facts.setting_number(name)?)))
        else {
            continue;
        };
        let groups: Vec<(&String, &Group)> = facts
            .sample
            .groups
            .iter()
            .filter(|((_, of), group)| {
                of == kind
                    && group.loose > 0.0
                    && group.most_entries > limit
                    && group.most_entries <= MOST_PACKED
                    // What is written out is short: otherwise the other limit, that of a value's size, is in the way.
                    && group.loose_bytes / group.loose_entries < LOOSE_OVERHEAD + 2.0 * 48.0
            })
            .map(|((name, _), group)| (name, group))
            .collect();
        let saved: f64 = groups
            .iter()
            .map(|(_, group)| (group.loose_entries * LOOSE_OVERHEAD).min(group.loose_bytes * 0.7))
            .sum::<f64>()
            * facts.sample.scale();
        let used = facts.number("used_memory");
        if saved < LEAST_SAVED_BYTES || saved < used * LEAST_SAVED_SHARE {
            continue;
        }
        let most = groups
            .iter()
            .map(|(_, group)| group.most_entries)
            .fold(0.0, f64::max);
        let wanted = [128.0, 256.0, MOST_PACKED]
            .into_iter()
            .find(|one| *one >= most)
            .unwrap_or(MOST_PACKED);
        let names: Vec<&str> = groups.iter().map(|(name, _)| name.as_str()).collect();
        let key = advice.find(Said {
            check: "encodings",
            object: kind,
            severity: Severity::Low,
            title: format!(
                "about {} could be saved by packing keys of type {kind} of up to {most:.0} entries",
                size(saved)
            ),
            evidence: json!({"names": names, "limit": limit, "most_entries": most, "about_saved": saved.round(), "looked_at": facts.sample.seen}),
            why: "Short collections are kept as one packed block; these have a few entries more than the limit, so that each entry is objects and pointers of its own, several times as large as its text. Commands on a packed one walk through it, which stays a matter of microseconds up to a few hundred entries.",
            fix: "Raise the limit. What is written from then on is packed; what is there is once it is written anew (a restart from a snapshot does it too).",
            commands: vec![format!("CONFIG SET {name} {wanted:.0}")],
        });
        setting(
            advice,
            facts,
            name,
            &format!("{wanted:.0}"),
            &key,
            "collections of this length are packed when they are written anew",
            None,
        );
    }
}
