//! P1 and P3: a worker that dies at any moment costs neither the job nor the bytes that it had stored.
//! A fleet in one process is killed at random moments of a backup and of a restore; the next one takes
//! the job up within a lease and two seconds, and the store's own requests say what was sent again.

#![allow(clippy::unwrap_used)]

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use fettler_tests::{
    Installation, Size,
    servers::{
        ClickhouseServer, ClickhouseVersion, MinioServer, MongodbClient, MongodbKind,
        MongodbServer, PgMajor, PostgresServer, RedisOptions, RedisServer, S3Action, S3Proxy,
        S3Request, SearchKind, SearchServer, wait_until,
    },
    sqlite,
};
use jiff::{SignedDuration, Timestamp};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use rstest::rstest;
use serde_json::Value;

/// Kept small in every run of the tests; set `FETTLER_TEST_KILLS` for more.
const KILLS: u32 = 6;
/// The lease of [`Installation::with_short_leases`].
const LEASE: Duration = Duration::from_secs(3);
/// How long after its lease an attempt is taken over at the latest. The two seconds that P1 allows are measured by
/// `fettler-bench takeover`; a test shares its machine, and only finds out whether something waits that should not.
const TAKEOVER: Duration = Duration::from_secs(10);
/// Objects that are larger than this are packs: all others are small.
const PACK_BYTES: u64 = 4 << 20;
/// Packs that may be on their way when a worker dies.
const PACKS_IN_FLIGHT: usize = 4;
/// The folder in which fault points that were reached leave their marks.
const LATCHES: &str = "latches";

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

#[rstest]
fn a_backup_that_is_killed_at_random_moments_is_taken_up_again_and_sends_only_what_was_in_flight(
    #[values(Size::Embedded, Size::Fleet)] size: Size,
) {
    let minio = MinioServer::start().unwrap();
    minio.create_bucket("backups").unwrap();
    let proxy = S3Proxy::start(minio.port()).unwrap();
    let mut dice = StdRng::seed_from_u64(20_261_121);
    for round in 0..kills() {
        let mut fettler = Installation::of_size(size)
            .without_workers()
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
                S3Action::Delay(Duration::from_millis(150))
            } else {
                S3Action::Forward
            }
        });
        let before = proxy.requests().len();
        let mut up = fettler.start_worker();
        fettler
            .run(&["backup", source.to_str().unwrap(), "--detach"])
            .done();
        // From the announcement on, so that the job was claimed: a few small objects are written before.
        let uploads = || {
            proxy.requests()[before..]
                .iter()
                .filter(|request| request.is_upload())
                .skip_while(|request| !request.key.contains("/announcements/"))
                .count()
        };
        let moment = dice.random_range(1..8usize);
        wait_until("some uploads were seen", Duration::from_secs(60), || {
            uploads() >= moment
        })
        .unwrap();
        up.kill_9();
        let killed = Timestamp::now();
        let durable_when_killed: Vec<String> = proxy.requests()[before..]
            .iter()
            .filter(|request| request.is_upload() && request.succeeded())
            .map(|request| request.key.clone())
            .collect();
        let mut again = fettler.start_worker();
        let mut taken_up = None;
        // Longer than is allowed, so that a failure says how long it took.
        wait_until("the job runs again", (LEASE + TAKEOVER) * 2, || {
            let jobs = fettler.json(&["jobs", "--all"]);
            let job = job(&jobs, "backup");
            if job["attempts"].as_u64() > Some(1) {
                taken_up = job["started"].as_str().map(|at| at.parse().unwrap());
            }
            taken_up.is_some()
        })
        .unwrap_or_else(|error| panic!("{error}: {}", again.log()));
        let took: Timestamp = taken_up.unwrap();
        let took = took.duration_since(killed).unsigned_abs();
        assert!(took < LEASE + TAKEOVER, "taken up after {took:?}");
        wait_until("the backup succeeds", Duration::from_secs(120), || {
            job(&fettler.json(&["jobs", "--all"]), "backup")["state"] == "succeeded"
        })
        .unwrap_or_else(|error| panic!("{error}: {}", again.log()));

        // Large objects are packs. What the first attempt had durably stored is not stored again under
        // another name: the number of packs in all is what one backup needs, and those in flight.
        let packs: HashMap<String, usize> = proxy.requests()[before..]
            .iter()
            .filter(|request| request.is_upload() && request.body_bytes > PACK_BYTES)
            .fold(HashMap::new(), |mut all, request| {
                *all.entry(request.key.clone()).or_default() += 1;
                all
            });
        let durable_packs = packs
            .keys()
            .filter(|key| durable_when_killed.contains(key))
            .count();
        assert_eq!(fettler.json(&["prove", "latest"])["proven"], true);
        let alone = fettler.json(&["show", "latest"]);
        assert_eq!(again.terminate(), 0, "{}", again.log());
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

#[rstest]
fn a_backup_that_is_killed_between_its_last_pack_and_its_manifest_is_committed_by_the_next(
    #[values(Size::Embedded, Size::Fleet)] size: Size,
) {
    let minio = MinioServer::start().unwrap();
    minio.create_bucket("backups").unwrap();
    let proxy = S3Proxy::start(minio.port()).unwrap();
    let mut fettler = Installation::of_size(size)
        .without_workers()
        .with_short_leases()
        .with("FETTLER_REPOSITORY", "s3://backups/here");
    for (name, value) in minio.env_via(&proxy.url()) {
        fettler = fettler.with(name, value);
    }
    let source = fettler.path("bank.sqlite");
    sqlite::make_bank(&source, 24 << 20);
    let is_manifest =
        |request: &S3Request| request.method == "PUT" && request.key.contains("/manifests/");
    // The store never hears of the first manifest, and its client hears of nothing.
    proxy.decide(move |request| {
        if is_manifest(request) {
            S3Action::Delay(Duration::from_secs(3600))
        } else {
            S3Action::Forward
        }
    });
    let mut up = fettler.start_worker();
    fettler
        .run(&["backup", source.to_str().unwrap(), "--detach"])
        .done();
    wait_until(
        "the manifest is on its way",
        Duration::from_secs(60),
        || proxy.requests().iter().any(is_manifest),
    )
    .unwrap_or_else(|error| panic!("{error}: {}", up.log()));
    up.kill_9();
    let killed = Instant::now();
    proxy.forward_all();
    let uploaded = |request: &S3Request| request.is_upload() && request.body_bytes > PACK_BYTES;
    let packs = proxy
        .requests()
        .iter()
        .filter(|request| uploaded(request))
        .count();
    assert!(packs > 0);
    assert_eq!(
        fettler.json(&["backups"])["backups"],
        serde_json::json!([]),
        "nothing is half-listed"
    );

    let mut again = fettler.start_worker();
    wait_until("the backup succeeds", Duration::from_secs(60), || {
        job(&fettler.json(&["jobs", "--all"]), "backup")["state"] == "succeeded"
    })
    .unwrap_or_else(|error| panic!("{error}: {}", again.log()));
    assert!(
        killed.elapsed() > LEASE - Duration::from_secs(1),
        "its lease had not run out"
    );
    let packs_again = proxy
        .requests()
        .iter()
        .filter(|request| uploaded(request))
        .count();
    assert_eq!(
        packs, packs_again,
        "no pack was sent again: all were durable"
    );
    assert_eq!(fettler.json(&["prove", "latest"])["proven"], true);
    assert_eq!(again.terminate(), 0, "{}", again.log());
}

/// Backs up by a worker that then ends.
fn back_up(fettler: &Installation, source: &str) {
    let mut worker = fettler.start_worker();
    fettler.run(&["backup", source]).done();
    assert_eq!(worker.terminate(), 0, "{}", worker.log());
}

/// Restores the newest backup again and again, each time into another target, and kills the fleet within
/// the first `longest` of it after somebody has taken it up: sooner, where a restore was over before.
fn kill_restores(
    fettler: &Installation,
    seed: u64,
    mut longest: Duration,
    target: impl Fn(u32) -> String,
    assert_equal: impl Fn(u32),
) {
    let mut dice = StdRng::seed_from_u64(seed);
    let mut taken_up = 0;
    for round in 0..kills() {
        let mut up = fettler.start_worker();
        fettler
            .run(&["restore", "latest", "--to", &target(round), "--detach"])
            .done();
        wait_until("somebody takes it up", Duration::from_secs(60), || {
            job(&fettler.json(&["jobs", "--all"]), "restore")["state"] != "queued"
        })
        .unwrap_or_else(|error| panic!("{error}: {}", up.log()));
        let moment = longest.mul_f64(dice.random_range(0.0..1.0));
        let began = Instant::now();
        wait_until("the chosen moment", 2 * longest, || {
            began.elapsed() >= moment
        })
        .unwrap();
        up.kill_9();
        let killed = Timestamp::now();
        let mut again = fettler.start_worker();
        let mut ended = Value::Null;
        wait_until("the restore succeeds", Duration::from_secs(180), || {
            // The newest comes first.
            ended = job(&fettler.json(&["jobs", "--all"]), "restore").clone();
            ended["state"] == "succeeded"
        })
        .unwrap_or_else(|error| panic!("{error}: {}", again.log()));
        // With one attempt it had ended before it was killed, or had not begun.
        if ended["attempts"].as_u64() > Some(1) {
            let started: Timestamp = ended["started"].as_str().unwrap().parse().unwrap();
            let took = started.duration_since(killed);
            assert!(
                took.unsigned_abs() < LEASE + TAKEOVER,
                "taken up after {took:?}"
            );
            taken_up += 1;
        } else {
            longest = moment;
        }
        assert_eq!(again.terminate(), 0, "{}", again.log());
        assert_equal(round);
    }
    println!(
        "{taken_up} of {} restores were killed while they ran",
        kills()
    );
    assert!(taken_up > 0, "no restore was killed while it ran");
}

#[rstest]
fn a_restore_that_is_killed_is_taken_up_again_and_gives_the_source(
    #[values(Size::Embedded, Size::Fleet)] size: Size,
) {
    let fettler = Installation::of_size(size)
        .without_workers()
        .with_short_leases();
    let source = fettler.path("bank.sqlite");
    sqlite::make_bank(&source, 128 << 20);
    back_up(&fettler, source.to_str().unwrap());
    let copy = |round| fettler.path(&format!("copy-{round}.sqlite"));
    kill_restores(
        &fettler,
        7,
        Duration::from_millis(600),
        |round| copy(round).to_str().unwrap().to_owned(),
        |round| {
            let same = sqlite::content(&source) == sqlite::content(&copy(round));
            assert!(same, "round {round} differs");
        },
    );
}

#[rstest]
fn a_restore_into_postgresql_that_is_killed_is_taken_up_again_and_gives_the_source(
    #[values(Size::Embedded, Size::Fleet)] size: Size,
) {
    let server = PostgresServer::shared(PgMajor::V15);
    let source = server.create_database("bank").unwrap();
    source
        .psql(
            "CREATE TABLE account (id int PRIMARY KEY, owner text NOT NULL);
             CREATE TABLE entry (id bigint PRIMARY KEY, account int REFERENCES account, note text);
             INSERT INTO account SELECT n, 'customer ' || n FROM generate_series(1, 5000) n;
             INSERT INTO entry SELECT n, 1 + n % 5000, repeat(md5(n::text), 3) FROM generate_series(1, 200000) n;
             CREATE INDEX ON entry (account); CREATE INDEX ON entry (note);",
        )
        .unwrap();
    let fettler = Installation::of_size(size)
        .without_workers()
        .with_short_leases()
        .with("FETTLER_PG_BIN", server.bin_dir().to_str().unwrap());
    back_up(&fettler, &source.url());
    let copies: Vec<_> = (0..kills())
        .map(|_| server.create_database("copy").unwrap())
        .collect();
    let content = "SELECT count(*), sum(hashtext(e::text)::bigint), (SELECT count(*) FROM account),
                   (SELECT count(*) FROM pg_constraint WHERE connamespace = 'public'::regnamespace),
                   (SELECT count(*) FROM pg_indexes WHERE schemaname = 'public') FROM entry e";
    let expected = source.psql(content).unwrap();
    kill_restores(
        &fettler,
        11,
        Duration::from_millis(3000),
        |round| copies[round as usize].url(),
        |round| {
            assert_eq!(
                copies[round as usize].psql(content).unwrap(),
                expected,
                "round {round} differs"
            );
        },
    );
}

/// The sandboxes for copies of this source; tests beside this one have others.
fn sandboxes(fettler: &Installation, source: &str) -> Vec<String> {
    let mark = if source.starts_with("postgres") {
        "pg-"
    } else {
        "sandbox.sqlite"
    };
    let folders = fettler
        .folders()
        .into_iter()
        .map(|folder| folder.join("scratch"))
        .chain(["/var/tmp".into()]);
    let entries = folders.filter_map(|folder| std::fs::read_dir(folder).ok());
    entries
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned()))
        .filter(|name| name.contains(mark))
        .collect()
}

/// Backs a source up, and restores it to each target by a worker that is killed when all is done and nobody knows it.
fn restores_that_die_when_they_are_done(
    fettler: Installation,
    source: &str,
    targets: &[&[&str]],
) -> Installation {
    let fettler = whose_restores_die_when_they_are_done(fettler);
    back_up(&fettler, source);
    each_is_found_done(&fettler, &["latest"], targets);
    fettler
}

fn whose_restores_die_when_they_are_done(fettler: Installation) -> Installation {
    let latches = fettler.path(LATCHES);
    std::fs::create_dir(&latches).unwrap();
    fettler
        .without_workers()
        .with_short_leases()
        .with("FETTLER_FAULT_POINT", "restore.done")
        .with("FETTLER_FAULT_LATCHES", latches.to_str().unwrap())
}

/// Restores to each target. The attempt behind the one that was killed finds its own work, and neither refuses it nor does
/// it again.
fn each_is_found_done(fettler: &Installation, what: &[&str], targets: &[&[&str]]) {
    for target in targets {
        let mut worker = fettler.start_worker();
        let restore = [&["restore"], what, &["--detach"], target].concat();
        fettler.run(&restore).done();
        wait_until("the worker is killed", Duration::from_secs(120), || {
            !worker.runs()
        })
        .unwrap_or_else(|error| panic!("{target:?}: {error}: {}", worker.log()));
        let mut again = fettler.start_worker();
        let mut ended = Value::Null;
        wait_until("the restore ends", Duration::from_secs(120), || {
            ended = job(&fettler.json(&["jobs", "--all"]), "restore").clone();
            ["succeeded", "dead"].contains(&ended["state"].as_str().unwrap())
        })
        .unwrap_or_else(|error| panic!("{target:?}: {error}: {}", again.log()));
        assert_eq!(ended["state"], "succeeded", "{target:?}: {}", again.log());
        assert_eq!(ended["attempts"], 2, "{target:?}");
        assert_eq!(again.terminate(), 0, "{}", again.log());
        std::fs::remove_file(fettler.path(LATCHES).join("restore.done")).unwrap();
    }
}

#[rstest]
fn a_restore_of_sqlite_that_dies_when_it_is_done_is_found_done(
    #[values(Size::Embedded, Size::Fleet)] size: Size,
) {
    let fettler = Installation::of_size(size);
    let path = |name: &str| fettler.path(name).to_str().unwrap().to_owned();
    let (source, whole, parts, there) = (
        fettler.path("bank.sqlite"),
        path("whole.sqlite"),
        path("parts.sqlite"),
        fettler.path("there.sqlite"),
    );
    sqlite::make_bank(&source, 1 << 20);
    let connection = rusqlite::Connection::open(&there).unwrap();
    connection
        .execute_batch("CREATE TABLE other (n); INSERT INTO other VALUES (1)")
        .unwrap();
    drop(connection);
    let before = sqlite::content(&source);
    let _folder = restores_that_die_when_they_are_done(
        fettler,
        source.to_str().unwrap(),
        &[
            &["--to", &whole],
            &["--to", &whole, "--overwrite"],
            &["--to", &parts, "--only", "*"],
            &["--to", there.to_str().unwrap(), "--only", "entry"],
        ],
    );
    assert_eq!(before, sqlite::content(std::path::Path::new(&whole)));
}

#[test]
fn a_restore_of_postgresql_that_dies_when_it_is_done_is_found_done() {
    let server = PostgresServer::shared(PgMajor::V15);
    let source = server.create_database("bank").unwrap();
    source
        .psql("CREATE TABLE account (id int PRIMARY KEY); INSERT INTO account SELECT generate_series(1, 100)")
        .unwrap();
    let (empty, old) = (
        server.create_database("empty").unwrap(),
        server.create_database("old").unwrap(),
    );
    old.psql("CREATE TABLE other (n int)").unwrap();
    let fettler = Installation::new().with("FETTLER_PG_BIN", server.bin_dir().to_str().unwrap());
    restores_that_die_when_they_are_done(
        fettler,
        &source.url(),
        &[
            &["--to", &empty.url()],
            &["--to", &old.url(), "--only", "public.account"],
            &["--to", &old.url(), "--overwrite"],
        ],
    );
    for copy in [&empty, &old] {
        let there = copy.psql("SELECT count(*) FROM account").unwrap();
        assert_eq!(there.trim(), "100");
    }
}

#[test]
fn a_restore_of_redis_that_dies_when_it_is_done_is_found_done() {
    let start = || RedisServer::start(RedisOptions::new()).unwrap();
    let (source, copy) = (start(), start());
    let client = |server: &RedisServer| {
        redis::Client::open(server.url())
            .unwrap()
            .get_connection()
            .unwrap()
    };
    redis::cmd("MSET")
        .arg(&["a", "1", "b", "2"])
        .exec(&mut client(&source))
        .unwrap();
    let fettler = Installation::new();
    let file = format!("rdb:{}", fettler.path("dump.rdb").display());
    restores_that_die_when_they_are_done(
        fettler,
        &source.url(),
        &[&["--to", &copy.url()], &["--to", &file]],
    );
    let keys: u64 = redis::cmd("DBSIZE").query(&mut client(&copy)).unwrap();
    assert_eq!(keys, 2);
}

#[test]
fn a_restore_of_redis_to_a_moment_that_dies_when_it_is_done_is_found_done() {
    let start = || {
        let options = RedisOptions::new().setting("repl-diskless-sync-delay", "0");
        RedisServer::start(options).unwrap()
    };
    let (source, copy, other) = (start(), start(), start());
    let client = |server: &RedisServer| {
        let client = redis::Client::open(server.url()).unwrap();
        client.get_connection().unwrap()
    };
    let fettler = whose_restores_die_when_they_are_done(Installation::of_size(Size::Embedded));
    let mut worker = fettler.start_worker();
    fettler
        .run(&["archive", &source.url(), "--name", "shop", "--detach"])
        .done();
    redis::cmd("MSET")
        .arg(&["a", "1", "b", "2"])
        .exec(&mut client(&source))
        .unwrap();
    let written = Timestamp::now();
    let mut until = written;
    wait_until("all is archived", Duration::from_secs(60), || {
        let shown = fettler.json(&["backups"]);
        let moment = shown["points_in_time"][0]["until"].as_str();
        until = moment.map_or(until, |moment| moment.parse().unwrap());
        until > written + SignedDuration::from_secs(1)
    })
    .unwrap_or_else(|error| panic!("{error}: {}", worker.log()));
    assert_eq!(worker.terminate(), 0, "{}", worker.log());
    redis::cmd("SET")
        .arg(&["a", "there before"])
        .exec(&mut client(&other))
        .unwrap();
    each_is_found_done(
        &fettler,
        &["shop", "--to-time", &until.to_string()],
        &[
            &["--to", &copy.url()],
            &["--to", &other.url(), "--overwrite"],
        ],
    );
    for copy in [&copy, &other] {
        let values: Vec<String> = redis::cmd("MGET")
            .arg(&["a", "b"])
            .query(&mut client(copy))
            .unwrap();
        assert_eq!(values, ["1", "2"]);
    }
}

#[test]
fn a_restore_of_mongodb_that_dies_when_it_is_done_is_found_done() {
    let start = || MongodbServer::start(MongodbKind::WithOplog).unwrap();
    let (source, copy) = (start(), start());
    let orders: Vec<_> = (0..100).map(|n| bson::doc! { "_id": n }).collect();
    MongodbClient::new(source.port()).insert("shop", "orders", orders);
    restores_that_die_when_they_are_done(
        Installation::new(),
        &source.url(),
        &[&["--to", &copy.url()]],
    );
    assert_eq!(
        MongodbClient::new(copy.port()).all("shop", "orders").len(),
        100
    );
}

#[test]
fn a_restore_of_clickhouse_that_dies_when_it_is_done_is_found_done() {
    let start = || ClickhouseServer::start(ClickhouseVersion::V18).unwrap();
    let (source, copy) = (start(), start());
    for statement in [
        "CREATE DATABASE shop",
        "CREATE TABLE shop.orders (id UInt64) ENGINE = MergeTree ORDER BY id",
        "INSERT INTO shop.orders SELECT number FROM numbers(100)",
    ] {
        source.query(statement).unwrap();
    }
    restores_that_die_when_they_are_done(
        Installation::new(),
        &source.url(),
        &[&["--to", &copy.url()]],
    );
    assert_eq!(
        copy.query("SELECT count() FROM shop.orders").unwrap(),
        "100\n"
    );
}

#[test]
fn a_restore_of_elasticsearch_that_dies_when_it_is_done_is_found_done() {
    let server = SearchServer::start(SearchKind::Elasticsearch, &[]).unwrap();
    for (method, path, body) in [
        ("PUT", "/shop", r#"{"settings":{"number_of_replicas":0}}"#),
        ("PUT", "/shop/_doc/1?refresh=true", r#"{"n":1}"#),
    ] {
        let (status, answer) = server.request(method, path, body).unwrap();
        assert!(status < 300, "{answer}");
    }
    let to = format!("{}?prefix=copy-", server.url());
    restores_that_die_when_they_are_done(Installation::new(), &server.url(), &[&["--to", &to]]);
    let (status, _) = server.request("GET", "/copy-shop/_doc/1", "").unwrap();
    assert_eq!(status, 200);
}

/// A proof whose worker is killed once the backup was restored: its sandbox is there for the next attempt, which reads
/// nothing of the backup again.
fn a_proof_goes_on(fettler: Installation, minio: &MinioServer, source: &str) {
    let proxy = S3Proxy::start(minio.port()).unwrap();
    let latches = fettler.path("latches");
    std::fs::create_dir(&latches).unwrap();
    let mut fettler = fettler
        .without_workers()
        .with_short_leases()
        .with("FETTLER_FAULT_POINT", "prove.sandbox_filled")
        .with("FETTLER_FAULT_LATCHES", latches.to_str().unwrap())
        .with("FETTLER_REPOSITORY", "s3://backups/proof");
    for (name, value) in minio.env_via(&proxy.url()) {
        fettler = fettler.with(name, value);
    }
    let mut worker = fettler.start_worker();
    fettler.run(&["backup", source]).done();
    let packs = fettler.json(&["show", "latest"])["packs"].as_u64().unwrap();
    assert_eq!(worker.terminate(), 0, "{}", worker.log());
    let before = sandboxes(&fettler, source);
    let mut worker = fettler.start_worker();
    fettler.run(&["prove", "latest", "--detach"]).done();
    wait_until("the worker ends", Duration::from_secs(120), || {
        !worker.runs()
    })
    .unwrap_or_else(|error| panic!("{error}: {}", worker.log()));
    let left: Vec<String> = sandboxes(&fettler, source)
        .into_iter()
        .filter(|name| !before.contains(name))
        .collect();
    assert_eq!(left.len(), 1, "{left:?}");

    let reads = || {
        let requests = proxy.requests();
        let is_pack =
            |request: &&S3Request| request.method == "GET" && request.key.contains("/packs/");
        requests.iter().filter(is_pack).count()
    };
    let read_before = reads();
    assert!(read_before as u64 >= packs, "{read_before} of {packs}");
    let mut again = fettler.start_worker();
    let mut ended = Value::Null;
    wait_until("the proof succeeds", Duration::from_secs(120), || {
        ended = job(&fettler.json(&["jobs", "--all"]), "prove").clone();
        ended["state"] == "succeeded"
    })
    .unwrap_or_else(|error| panic!("{error}: {ended:#} {}", again.log()));
    assert_eq!(ended["attempts"], 2);
    let shown = fettler.json(&["jobs", "show", ended["id"].as_str().unwrap()]);
    let result = &shown["result"];
    assert_eq!(result["proven"], true, "{shown:#}");
    assert!(result["restore_seconds"].as_f64() > Some(0.0), "{shown:#}");
    let read_again = reads() - read_before;
    // The stream of the schema is small, and is read for the comparison.
    assert!(
        read_again as u64 <= 1,
        "{read_again} reads of packs after {read_before} of {packs}"
    );
    wait_until("nothing is left", Duration::from_secs(30), || {
        sandboxes(&fettler, source)
            .iter()
            .all(|name| !left.contains(name))
    })
    .unwrap();
    assert_eq!(again.terminate(), 0, "{}", again.log());
}

#[test]
fn a_proof_of_sqlite_that_is_killed_goes_on_in_its_sandbox() {
    let minio = MinioServer::start().unwrap();
    minio.create_bucket("backups").unwrap();
    let fettler = Installation::of_size(Size::Embedded);
    let source = fettler.path("bank.sqlite");
    sqlite::make_bank(&source, 64 << 20);
    a_proof_goes_on(fettler, &minio, source.to_str().unwrap());
}

#[test]
fn a_proof_of_postgresql_that_is_killed_goes_on_in_its_sandbox() {
    let minio = MinioServer::start().unwrap();
    minio.create_bucket("backups").unwrap();
    let server = PostgresServer::shared(PgMajor::V15);
    let source = server.create_database("proof").unwrap();
    source
        .psql(
            "CREATE TABLE entry (id int PRIMARY KEY, note text);
             INSERT INTO entry SELECT n, repeat(md5(n::text), 6) FROM generate_series(1, 300000) n;
             CREATE INDEX ON entry (note)",
        )
        .unwrap();
    let fettler = Installation::of_size(Size::Fleet)
        .with("FETTLER_PG_BIN", server.bin_dir().to_str().unwrap());
    a_proof_goes_on(fettler, &minio, &source.url());
}

#[rstest]
fn a_backup_that_is_cancelled_leaves_no_announcement_and_is_never_listed(
    #[values(Size::Embedded, Size::Fleet)] size: Size,
) {
    let fettler = Installation::of_size(size);
    let source = fettler.path("bank.sqlite");
    sqlite::make_bank(&source, 64 << 20);
    let announcements = || {
        let found = std::process::Command::new("find")
            .arg(fettler.folder().join("repository"))
            .args(["-path", "*/announcements/*", "-type", "f"])
            .output()
            .unwrap();
        String::from_utf8(found.stdout).unwrap().lines().count()
    };
    let mut running = fettler.start(&["backup", source.to_str().unwrap(), "--max-rate", "4MB"]);
    wait_until("it is announced", Duration::from_secs(60), || {
        announcements() == 1
    })
    .unwrap_or_else(|error| panic!("{error}: {}", running.log()));
    let id = job(&fettler.json(&["jobs", "--all"]), "backup")["id"].clone();
    fettler.json(&["jobs", "cancel", id.as_str().unwrap()]);
    assert_eq!(
        running.wait(Duration::from_secs(60)),
        1,
        "{}",
        running.log()
    );
    assert_eq!(announcements(), 0);
    let jobs = fettler.json(&["jobs", "--all"]);
    assert_eq!(job(&jobs, "backup")["state"], "cancelled", "{jobs:#}");
    assert_eq!(fettler.json(&["backups"])["backups"], serde_json::json!([]));
    assert_eq!(fettler.json(&["check"])["ok"], true);
}
