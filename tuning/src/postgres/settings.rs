//! Settings of the whole server: what the machine, the load and the field's formulas say. A person decides: each change
//! concerns every database of the server, and some need a restart.

use fettler_model::Severity;

use super::facts::Facts;
use crate::Wishes;

const KB: f64 = 1024.0;
const MB: f64 = 1024.0 * KB;
const GB: f64 = 1024.0 * MB;
const DAY: f64 = 86_400.0;

/// What is said of one setting.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Advice {
    pub(crate) name: &'static str,
    /// As `ALTER SYSTEM` takes it.
    pub(crate) value: String,
    pub(crate) severity: Severity,
    pub(crate) why: String,
}

/// What there is to say.
pub(crate) fn advise(facts: &Facts, wishes: &Wishes) -> Vec<Advice> {
    let mut advice = Vec::new();
    let mut say = |name, value: String, severity, why: String| {
        advice.push(Advice {
            name,
            value,
            severity,
            why,
        });
    };
    let server = &facts.server;
    #[expect(
        clippy::cast_precision_loss,
        reason = "memory has far fewer than 2^53 bytes"
    )]
    let memory = wishes
        .memory_bytes
        .or(facts.memory_bytes)
        .map(|bytes| bytes as f64);
    let buffers = facts.bytes("shared_buffers").unwrap_or(128.0 * MB);
    let days = server.stats_seconds.unwrap_or(server.up_seconds) / DAY;
    if let Some(memory) = memory {
        let quarter = (memory / 4.0).min(64.0 * GB);
        if buffers < quarter * 0.6 && server.database_bytes > buffers {
            say(
                "shared_buffers",
                size(quarter),
                Severity::Medium,
                format!(
                    "it is {} of {} of memory, and the database has {}: a quarter of memory is the usual start (needs a restart)",
                    size(buffers),
                    size(memory),
                    size(server.database_bytes)
                ),
            );
        } else if buffers > memory * 0.5 {
            say(
                "shared_buffers",
                size(quarter),
                Severity::High,
                format!(
                    "it is {} of {} of memory: the system's own cache and sorts are left too little (needs a restart)",
                    size(buffers),
                    size(memory)
                ),
            );
        }
        let cache = facts.bytes("effective_cache_size").unwrap_or(4.0 * GB);
        if cache < memory * 0.4 || cache > memory * 0.95 {
            say(
                "effective_cache_size",
                size(memory * 0.75),
                Severity::Low,
                format!(
                    "the planner is told of {} of cache where the machine has {} of memory: it thinks indexes {} than they are",
                    size(cache),
                    size(memory),
                    if cache < memory * 0.4 {
                        "dearer"
                    } else {
                        "cheaper"
                    }
                ),
            );
        }
        let maintenance = facts.bytes("maintenance_work_mem").unwrap_or(64.0 * MB);
        let fair = (memory / 16.0).clamp(64.0 * MB, 2.0 * GB);
        if maintenance < fair / 2.0 && server.database_bytes > GB {
            say(
                "maintenance_work_mem",
                size(fair),
                Severity::Low,
                format!(
                    "VACUUM and CREATE INDEX work with {}: a sixteenth of memory, at most 2 GB, lets them finish in fewer passes",
                    size(maintenance)
                ),
            );
        }
        let work = facts.bytes("work_mem").unwrap_or(4.0 * MB);
        let connections = facts.number("max_connections").unwrap_or(100.0).max(1.0);
        // A statement may sort several times at once: three is usual.
        let fair = ((memory - buffers).max(0.0) / (connections * 3.0)).clamp(4.0 * MB, 64.0 * MB);
        if days > 0.02 && server.temp_bytes / days.max(1.0) > GB && work < fair * 0.75 {
            say(
                "work_mem",
                size(fair),
                Severity::Medium,
                format!(
                    "{} a day went to temporary files: sorts and hashes do not fit into {}. {} is what is left of memory for each of {connections:.0} connections, three times",
                    size(server.temp_bytes / days.max(1.0)),
                    size(work),
                    size(fair)
                ),
            );
        }
    }
    let random = facts.number("random_page_cost").unwrap_or(4.0);
    if !wishes.turning_disks && random > 2.0 {
        let read = server.blocks_hit + server.blocks_read;
        let hits = if read > 0.0 {
            server.blocks_hit / read * 100.0
        } else {
            0.0
        };
        say(
            "random_page_cost",
            "1.1".to_owned(),
            Severity::Medium,
            format!(
                "{random} is meant for turning disks: on flash a page out of order costs hardly more than the next one ({hits:.0} % of pages came from memory anyway), and indexes are passed over (`--turning-disks` where they turn)"
            ),
        );
    }
    if server.checkpoints_requested > 10.0
        && server.checkpoints_requested > server.checkpoints_timed * 0.25
    {
        let most = facts.bytes("max_wal_size").unwrap_or(GB);
        say(
            "max_wal_size",
            size((most * 4.0).min(64.0 * GB)),
            Severity::Medium,
            format!(
                "{:.0} of {:.0} checkpoints came before their time because {} of log was full: each writes all changed pages, and the log grows by whole pages after it",
                server.checkpoints_requested,
                server.checkpoints_requested + server.checkpoints_timed,
                size(most)
            ),
        );
    }
    if facts
        .number("checkpoint_completion_target")
        .is_some_and(|share| share < 0.8)
    {
        say(
            "checkpoint_completion_target",
            "0.9".to_owned(),
            Severity::Low,
            "a checkpoint writes its pages in a shorter time than it has: spread out they disturb less".to_owned(),
        );
    }
    let on = |name: &str| {
        facts
            .settings
            .get(name)
            .is_none_or(|setting| setting.value == "on")
    };
    if !on("autovacuum") {
        say(
            "autovacuum",
            "on".to_owned(),
            Severity::High,
            "dead rows are removed, statistics renewed and wraparound kept away by nobody"
                .to_owned(),
        );
    }
    let limit = facts
        .number("autovacuum_vacuum_cost_limit")
        .filter(|limit| *limit > 0.0)
        .or_else(|| facts.number("vacuum_cost_limit"))
        .unwrap_or(200.0);
    let delay = facts.number("autovacuum_vacuum_cost_delay").unwrap_or(2.0);
    let behind = facts
        .tables
        .iter()
        .filter(|table| table.dead > 100_000.0 && table.dead > table.live * 0.3)
        .count();
    if behind > 0 && limit <= 200.0 && delay > 0.0 {
        say(
            "autovacuum_vacuum_cost_limit",
            "1000".to_owned(),
            Severity::Medium,
            format!(
                "{behind} tables have more than 30 % dead rows: autovacuum rests after each {limit:.0} points of work for {delay} ms and falls behind"
            ),
        );
    }
    let processors = wishes.processors.or(facts.processors).map(f64::from);
    let workers = facts.number("max_worker_processes").unwrap_or(8.0);
    if let Some(processors) = processors.filter(|processors| *processors > workers) {
        say(
            "max_worker_processes",
            format!("{processors:.0}"),
            Severity::Info,
            format!(
                "the machine has {processors:.0} processors, and no more than {workers:.0} processes may help large statements and build indexes (needs a restart)"
            ),
        );
    }
    let connections = facts.number("max_connections").unwrap_or(100.0);
    if connections > 300.0 && f64::from(server.sessions) < connections * 0.3 {
        say(
            "max_connections",
            format!("{:.0}", (f64::from(server.sessions) * 2.0).max(100.0)),
            Severity::Low,
            format!(
                "{connections:.0} connections are allowed and {} are there: each costs memory, and many that work at once are slower than a pool (PgBouncer) of a few for each processor (needs a restart)",
                server.sessions
            ),
        );
    }
    if facts.settings.contains_key("track_io_timing") && !on("track_io_timing") {
        say(
            "track_io_timing",
            "on".to_owned(),
            Severity::Info,
            "how long statements wait for disks is not measured; `pg_test_timing` says what the clock costs here".to_owned(),
        );
    }
    advice
}

/// Bytes as settings are written.
fn size(bytes: f64) -> String {
    if bytes >= 4.0 * GB {
        format!("{:.0}GB", bytes / GB)
    } else if bytes >= MB {
        format!("{:.0}MB", bytes / MB)
    } else {
        format!("{:.0}kB", bytes / KB)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::{facts::Setting, testing::facts};

    fn names(facts: &Facts, wishes: &Wishes) -> Vec<String> {
        advise(facts, wishes)
            .iter()
            .map(|one| format!("{}={}", one.name, one.value))
            .collect()
    }

    #[test]
    fn a_server_of_defaults_on_a_large_machine_is_told_what_to_change_and_a_fitting_one_nothing() {
        let mut facts = facts(Vec::new());
        let wishes = Wishes {
            memory_bytes: Some(16 << 30),
            ..Wishes::default()
        };
        let set = |facts: &mut Facts, name: &str, value: &str, unit: Option<&str>| {
            let setting = Setting {
                value: value.to_owned(),
                unit: unit.map(str::to_owned),
            };
            facts.settings.insert(name.to_owned(), setting);
        };
        for (name, value, unit) in [
            ("shared_buffers", "16384", Some("8kB")),
            ("effective_cache_size", "524288", Some("8kB")),
            ("work_mem", "4096", Some("kB")),
            ("maintenance_work_mem", "65536", Some("kB")),
            ("random_page_cost", "4", None),
            ("max_wal_size", "1024", Some("MB")),
            ("autovacuum", "off", None),
            ("max_connections", "100", None),
        ] {
            set(&mut facts, name, value, unit);
        }
        facts.server.database_bytes = 40.0 * GB;
        facts.server.temp_bytes = 900.0 * GB;
        (
            facts.server.checkpoints_requested,
            facts.server.checkpoints_timed,
        ) = (90.0, 10.0);
        assert_eq!(
            names(&facts, &wishes),
            [
                "shared_buffers=4GB",
                "effective_cache_size=12GB",
                "maintenance_work_mem=1024MB",
                "work_mem=54MB",
                "random_page_cost=1.1",
                "max_wal_size=4GB",
                "autovacuum=on"
            ]
        );
        for (name, value, unit) in [
            ("shared_buffers", "524288", Some("8kB")),
            ("effective_cache_size", "1572864", Some("8kB")),
            ("work_mem", "65536", Some("kB")),
            ("maintenance_work_mem", "1048576", Some("kB")),
            ("random_page_cost", "1.1", None),
            ("autovacuum", "on", None),
        ] {
            set(&mut facts, name, value, unit);
        }
        facts.server.checkpoints_requested = 1.0;
        assert_eq!(names(&facts, &wishes), Vec::<String>::new());
        // Nothing is said of memory that nobody knows.
        set(&mut facts, "shared_buffers", "16384", Some("8kB"));
        assert_eq!(names(&facts, &Wishes::default()), Vec::<String>::new());
    }
}
