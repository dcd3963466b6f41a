//! What the checks that ship are made of: at most a third of an engine's compare one setting with a constant. Such a check
//! says what somebody wrote into a configuration, and nothing of how the database is.

use fettler_checks::{Check, Level, Library, Source};
use fettler_model::Engine;

/// Whether all that a question asks for are settings: then an expression over it compares settings with constants.
fn asks_for_settings_alone(engine: Engine, question: &str) -> bool {
    let lines = || {
        question
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty())
    };
    match engine {
        // Each table that is read, by the word behind FROM and JOIN.
        Engine::Postgres | Engine::Sqlite | Engine::Clickhouse => {
            let words: Vec<&str> = question
                .split(|letter: char| letter.is_whitespace() || "(),".contains(letter))
                .filter(|word| !word.is_empty())
                .collect();
            let mut tables = words
                .windows(2)
                .filter(|two| {
                    two[0].eq_ignore_ascii_case("from") || two[0].eq_ignore_ascii_case("join")
                })
                .map(|two| two[1].trim_start_matches("pg_catalog."))
                .filter(|table| !table.eq_ignore_ascii_case("select"))
                .peekable();
            if tables.peek().is_none() {
                // `SELECT current_setting('…')` has no table.
                return question.contains("current_setting");
            }
            tables.all(|table| {
                matches!(
                    table,
                    "pg_settings"
                        | "pg_file_settings"
                        | "pg_db_role_setting"
                        | "system.settings"
                        | "system.server_settings"
                        | "system.merge_tree_settings"
                        | "pragma_journal_mode"
                        | "pragma_synchronous"
                        | "pragma_foreign_keys"
                        | "pragma_auto_vacuum"
                        | "pragma_page_size"
                        | "pragma_user_version"
                )
            })
        }
        Engine::Redis => lines().all(|line| line.starts_with("CONFIG GET")),
        Engine::Mongodb => {
            matches!(
                question.trim(),
                "PROFILING"
                    | "STARTED"
                    | "STORAGE"
                    | "AUDITING"
                    | "LISTENING"
                    | "PLAIN"
                    | "PROFILES"
            ) || lines().filter(|line| line.starts_with('{')).all(|line| {
                line.contains("\"getParameter\"") || line.contains("\"getCmdLineOpts\"")
            }) && lines().any(|line| line.starts_with('{'))
        }
        Engine::Elasticsearch => {
            lines().any(|line| line.starts_with("GET "))
                && lines()
                    .filter(|line| line.starts_with("GET "))
                    .all(|line| line.contains("_settings") || line.contains("_cluster/settings"))
        }
    }
}

fn compares_a_setting(check: &Check) -> bool {
    check.source == Source::Server
        && !check.variants.is_empty()
        && check
            .variants
            .iter()
            .all(|variant| asks_for_settings_alone(check.engine, &variant.question))
}

const ENGINES: [Engine; 6] = [
    Engine::Postgres,
    Engine::Sqlite,
    Engine::Redis,
    Engine::Mongodb,
    Engine::Clickhouse,
    Engine::Elasticsearch,
];

fn at_most_a_third_compare_settings(engine: Engine, checks: &[&Check], at_least: usize) {
    let settings: Vec<&str> = checks
        .iter()
        .filter(|check| compares_a_setting(check))
        .map(|check| check.id.as_str())
        .collect();
    assert!(checks.len() >= at_least, "{engine}: {}", checks.len());
    assert!(
        settings.len() * 3 <= checks.len(),
        "{engine}: {settings:?} of {}",
        checks.len()
    );
}

#[test]
fn at_most_a_third_of_an_engines_checks_compare_one_setting_with_a_constant() {
    let library = Library::shipped();
    for engine in ENGINES {
        at_most_a_third_compare_settings(engine, &library.of(engine, Level::Full), 12);
        at_most_a_third_compare_settings(engine, &library.of_audit(engine), 20);
    }
}

/// The rule sees what it should: checks that are known to ask for nothing but settings, and some that ask for more.
#[test]
fn the_rule_tells_settings_from_what_is_going_on() {
    let library = Library::shipped();
    for (id, is) in [
        ("postgres.durability_off", true),
        ("postgres.replication_lag", false),
        ("redis.memory_nearly_full", false),
        ("mongodb.profiler_everything", true),
        ("mongodb.cache_dirty", false),
        ("mongodb.log_quiet", true),
        ("mongodb.users_almighty", false),
        ("elasticsearch.allocation_off", true),
        ("elasticsearch.shards_nearly_full", false),
        ("clickhouse.parts_per_partition", false),
        ("clickhouse.memory_nearly_full", false),
    ] {
        let check = library.get(id).unwrap_or_else(|| panic!("no check {id}"));
        assert_eq!(compares_a_setting(check), is, "{id}");
    }
    assert!(asks_for_settings_alone(
        Engine::Clickhouse,
        "SELECT value FROM system.server_settings WHERE name = 'max_connections'"
    ));
    assert!(asks_for_settings_alone(
        Engine::Redis,
        "CONFIG GET maxmemory\nCONFIG GET save"
    ));
}
