//! The fault harness as part of every run of the tests: the directed pass, some minutes of random runs, and a proof that the
//! checker would notice. More of it by hand: `cargo run -p fettler-faults -- --help`.

#![allow(clippy::unwrap_used)]

use std::{
    process::Command,
    sync::{Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use fettler_fault_points::Rule;
use fettler_faults::{
    program,
    run::Options,
    series::{self, Series},
    servers::Servers,
};

/// Random runs begin within this time; set `FETTLER_TEST_FAULT_SECONDS` for more.
const SECONDS: u64 = 90;
/// The seed of the first plan.
const SEED: u64 = 20_261_121;

/// One fleet at a time: it has the machine to itself.
fn servers() -> MutexGuard<'static, Servers> {
    static SERVERS: OnceLock<Mutex<Servers>> = OnceLock::new();
    let servers = SERVERS.get_or_init(|| Mutex::new(Servers::start().unwrap()));
    servers.lock().unwrap_or_else(PoisonError::into_inner)
}

fn options() -> Options {
    Options {
        binary: program::armed_binary().unwrap(),
        previous: None,
        without: None,
        record: None,
        keep: false,
        verbose: false,
    }
}

/// The same plans in every run of the tests; `FETTLER_TEST_SEED` gives others. It is printed.
fn seed() -> u64 {
    let given = std::env::var("FETTLER_TEST_SEED");
    let seed = given.map_or(SEED, |text| text.parse().unwrap());
    println!("seed {seed}");
    seed
}

#[test]
fn every_named_point_ends_a_process_once_and_the_promises_hold() {
    let (report, missed) = series::directed(&mut servers(), seed(), &options()).unwrap();
    assert!(report.violations.is_empty(), "{:#?}", report.violations);
    assert!(missed.is_empty(), "nothing reached {missed:?}");
    let nothing = report.tally.missing();
    assert!(nothing.is_empty(), "these bit nothing: {nothing:?}");
}

#[test]
fn p1_to_p12_hold_under_random_plans_of_faults() {
    let seconds = std::env::var("FETTLER_TEST_FAULT_SECONDS");
    let seconds = seconds.map_or(SECONDS, |text| text.parse().unwrap());
    let mut series = Series::default();
    series::random(
        &mut servers(),
        seed(),
        u64::from(u32::MAX),
        Some(Duration::from_secs(seconds)),
        &options(),
        &mut series,
    )
    .unwrap();
    println!("{}", series.table());
    assert!(!series.reports.is_empty());
    let violations = series.violations();
    assert!(violations.is_empty(), "{violations:#?}");
}

#[test]
fn p2_a_fleet_without_the_fence_is_found_out() {
    let caught = series::without(&mut servers(), Rule::Fence, seed(), &options()).unwrap();
    assert!(caught.is_some());
}

#[test]
fn a_release_has_no_fault_points() {
    let tree = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["tree", "--package", "fettler", "--edges", "normal,build"])
        .args(["--offline", "--prefix", "none", "--format", "{p} [{f}]"])
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
        .output()
        .unwrap();
    assert!(
        tree.status.success(),
        "{}",
        String::from_utf8_lossy(&tree.stderr)
    );
    let tree = String::from_utf8_lossy(&tree.stdout);
    let mut lines = tree
        .lines()
        .filter(|line| line.starts_with("fettler-fault-points "));
    let line = lines.next().unwrap_or_else(|| panic!("{tree}"));
    assert!(line.ends_with(" []"), "{line}");
}
