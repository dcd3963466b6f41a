//! P1 and P3: a worker that dies at any moment costs neither the job nor the bytes that it had stored.
//! A fleet in one process is killed at random moments of a backup and of a restore; the next one takes
//! the job up within a lease and two seconds, and the store's own requests say what was sent again.

#![allow(clippy::unwrap_used)]

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use fettler_tests::{
    Installation,
    servers::{MinioServer, S3Proxy, wait_until},
    sqlite,
};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde_json::Value;

/// Kept small in every run of the tests; set `FETTLER_TEST_KILLS` for more.
const KILLS: u32 = 6;
/// The lease of [`Installation::with_short_leases`].
const LEASE: Duration = Duration::from_secs(3);
/// What promise P1 allows on top of a lease.
const TAKEOVER: Duration = Duration::from_secs(2);
/// Packs that may be on their way when a worker dies.
const PACKS_IN_FLIGHT: usize = 4;

fn kills() -> u32 {
    std::env::var("FETTLER_TEST_KILLS").map_or(KILLS, |text| text.parse().unwrap())
}

fn job<'a>(jobs: &'a Value, kind: &str) -> &'a Value {
    jobs["jobs"]
        .as_array()
        .unwrap_or_else(|| panic!("no list of jobs: {jobs:#}"))
        .iter()
        .find(|job| job["kind"] == kind)
        .unwrap_or_else(|| panic!("no job of kind {kind}: {jobs:#}"))
}

#[test]
fn a_backup_that_is_killed_at_random_moments_is_taken_up_again_and_sends_only_what_was_in_flight() {
    let minio = MinioServer::start().unwrap();
    minio.create_bucket("backups").unwrap();
    let proxy = S3Proxy::start(minio.port()).unwrap();
    let mut dice = StdRng::seed_from_u64(20_261_121);
    for round in 0..kills() {
        let mut fettler = Installation::new()
            .with_short_leases()
            .with("FETTLER_REPOSITORY", format!("s3://backups/round-{round}"));
        for (name, value) in minio.env_via(&proxy.url()) {
            fettler = fettler.with(name, value);
        }
        let source = fettler.path("bank.sqlite");
        sqlite::make_bank(&source, 96 << 20);
        // A slow store, so that there are moments to be killed in.
        proxy.decide(|request| {
            if request.method == "PUT" {
                fettler_tests::servers::S3Action::Delay(Duration::from_millis(150))
            } else {
                fettler_tests::servers::S3Action::Forward
            }
        });
        let before = proxy.requests().len();
        let mut up = fettler.start(&["up"]);
        fettler
            .run(&["backup", source.to_str().unwrap(), "--detach"])
            .done();
        let uploads = || {
            proxy.requests()[before..]
                .iter()
                .filter(|request| request.is_upload())
                .count()
        };
        let moment = dice.random_range(1..8usize);
        wait_until("some uploads were seen", Duration::from_secs(60), || {
            uploads() >= moment
        })
        .unwrap();
        up.kill_9();
        let killed = Instant::now();
        let durable_when_killed: Vec<String> = proxy.requests()[before..]
            .iter()
            .filter(|request| request.is_upload() && request.succeeded())
            .map(|request| request.key.clone())
            .collect();
        let mut again = fettler.start(&["up"]);
        wait_until(
            "the job runs again or has ended",
            (LEASE + TAKEOVER) * 4,
            || {
                let jobs = fettler.json(&["jobs", "--all"]);
                let state = &job(&jobs, "backup")["state"];
                (state == "running" && job(&jobs, "backup")["attempts"].as_u64() > Some(1))
                    || state == "succeeded"
            },
        )
        .unwrap_or_else(|error| panic!("{error}: {}", again.log()));
        let taken_over = killed.elapsed();
        assert!(
            taken_over < LEASE + TAKEOVER,
            "taken over after {taken_over:?}"
        );
        wait_until("the backup succeeds", Duration::from_secs(120), || {
            job(&fettler.json(&["jobs", "--all"]), "backup")["state"] == "succeeded"
        })
        .unwrap_or_else(|error| panic!("{error}: {}", again.log()));

        // Large objects are packs. What the first attempt had durably stored is not stored again under
        // another name: the number of packs in all is what one backup needs, and those in flight.
        let packs: HashMap<String, usize> = proxy.requests()[before..]
            .iter()
            .filter(|request| request.is_upload() && request.body_bytes > 4 << 20)
            .fold(HashMap::new(), |mut all, request| {
                *all.entry(request.key.clone()).or_default() += 1;
                all
            });
        let durable_packs = packs
            .keys()
            .filter(|key| durable_when_killed.contains(key))
            .count();
        assert_eq!(fettler.json(&["prove", "latest"])["proven"], true);
        assert_eq!(again.terminate(), 0, "{}", again.log());

        let alone = fettler.json(&["show", "latest"]);
        let needed = alone["packs"]
            .as_u64()
            .unwrap_or_else(|| panic!("{alone:#}")) as usize;
        assert!(
            packs.len() <= needed + PACKS_IN_FLIGHT,
            "{} packs were sent for a backup of {needed}; {durable_packs} were durable at the kill",
            packs.len()
        );
        proxy.forward_all();
    }
}

#[test]
fn a_restore_that_is_killed_is_taken_up_again_and_gives_the_source() {
    let fettler = Installation::new().with_short_leases();
    let source = fettler.path("bank.sqlite");
    sqlite::make_bank(&source, 128 << 20);
    fettler.run(&["backup", source.to_str().unwrap()]).done();
    let mut dice = StdRng::seed_from_u64(7);
    for round in 0..kills() {
        let copy = fettler.path(&format!("copy-{round}.sqlite"));
        let mut up = fettler.start(&["up"]);
        fettler
            .run(&[
                "restore",
                "latest",
                "--to",
                copy.to_str().unwrap(),
                "--detach",
            ])
            .done();
        let moment = Duration::from_millis(dice.random_range(0..600));
        let began = Instant::now();
        wait_until("the chosen moment", Duration::from_secs(2), || {
            began.elapsed() >= moment
        })
        .unwrap();
        up.kill_9();
        let mut again = fettler.start(&["up"]);
        wait_until("the restore succeeds", Duration::from_secs(60), || {
            let jobs = fettler.json(&["jobs", "--all"]);
            jobs["jobs"]
                .as_array()
                .unwrap()
                .iter()
                .filter(|job| job["kind"] == "restore")
                .all(|job| job["state"] == "succeeded")
        })
        .unwrap_or_else(|error| panic!("{error}: {}", again.log()));
        assert_eq!(again.terminate(), 0, "{}", again.log());
        assert!(
            sqlite::content(&source) == sqlite::content(&copy),
            "round {round} differs"
        );
    }
}
