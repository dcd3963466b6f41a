//! Cleanup of keys: what goes, what stays and why, what comes back.

use std::time::Duration;

use fettler_engine::{
    Cleanup as _, CleanupRequest, CleanupTerms, EngineError,
    testing::{MemorySink, MemorySource},
};
use fettler_model::{CleanupAction, CleanupPlan, CleanupRemoved, CleanupUndone, JobId};
use fettler_test_servers::RedisServer;
use redis::{Connection, cmd};

use super::common::{Attempt, ENGINE, client, command, options, server, target};

fn keys(idle_for_seconds: u64, expire_in_seconds: Option<u64>) -> CleanupAction {
    CleanupAction::Keys {
        pattern: "session:*".to_owned(),
        idle_for_seconds,
        expire_in_seconds,
    }
}

/// Keys of every type, most of them meant, in two databases, that nobody used for 100 seconds.
fn filled(server: &RedisServer) -> Connection {
    let mut client = client(&server.url());
    let mut of = |words: &str| command(words).exec(&mut client).unwrap();
    for database in [0, 3] {
        of(&format!("SELECT {database}"));
        for number in 0..200 {
            of(&format!("SET session:text:{number} value-{number}"));
        }
        of("RPUSH session:list a b a");
        of("ZADD session:zset 1.5 a -0 b");
        of("XADD session:stream 1-1 field value");
        for number in 0..1500 {
            of(&format!("SADD session:set member-{number}"));
            of(&format!("HSET session:hash field-{number} {number}"));
        }
        of("SET session:ends soon EX 1000");
        of("SET other:key value");
    }
    of("SELECT 0");
    age(&mut client, 100);
    client
}

/// Lets every key of a server be as if it was last used so long ago.
fn age(client: &mut Connection, seconds: u64) {
    for database in [0, 3] {
        command(&format!("SELECT {database}")).exec(client).unwrap();
        let all: Vec<Vec<u8>> = cmd("KEYS").arg("*").query(client).unwrap();
        for key in all {
            let payload: Vec<u8> = cmd("DUMP").arg(&key).query(client).unwrap();
            let ttl: i64 = cmd("PTTL").arg(&key).query(client).unwrap();
            cmd("RESTORE")
                .arg(&key)
                .arg(ttl.max(0))
                .arg(payload)
                .arg("REPLACE")
                .arg("IDLETIME")
                .arg(seconds)
                .exec(client)
                .unwrap();
        }
    }
    command("SELECT 0").exec(client).unwrap();
}

fn count(client: &mut Connection, database: u32) -> usize {
    command(&format!("SELECT {database}")).exec(client).unwrap();
    let count = cmd("DBSIZE").query(client).unwrap();
    command("SELECT 0").exec(client).unwrap();
    count
}

/// What stands for the content of all databases.
fn digest(client: &mut Connection) -> String {
    cmd("DEBUG").arg("DIGEST").query(client).unwrap()
}

struct Job {
    attempt: Attempt,
    plan: CleanupPlan,
    archive: MemorySource,
}

async fn plan(server: &RedisServer, what: CleanupAction) -> CleanupPlan {
    let request = CleanupRequest {
        what,
        archive: true,
    };
    ENGINE
        .plan(&Attempt::new().context, &target(&server.url()), &request)
        .await
        .unwrap()
}

impl Job {
    async fn begin(server: &RedisServer, what: CleanupAction) -> Self {
        let plan = plan(server, what).await;
        assert_eq!(plan.refusals, []);
        let (attempt, sink) = (Attempt::new(), MemorySink::default());
        let archived = ENGINE
            .archive(&attempt.context, &target(&server.url()), &plan, &sink)
            .await
            .unwrap();
        assert_eq!(archived.rows, plan.rows());
        let archive = sink.source();
        ENGINE
            .prove(&attempt.context, &plan, &archive, &archived.objects)
            .await
            .unwrap();
        Self {
            attempt,
            plan,
            archive,
        }
    }

    async fn remove(
        &self,
        server: &RedisServer,
        attempt: u32,
    ) -> Result<CleanupRemoved, EngineError> {
        let terms = CleanupTerms {
            batch_rows: 40,
            ..CleanupTerms::default()
        };
        let context = self.attempt.next(attempt);
        let target = target(&server.url());
        ENGINE
            .remove(&context, &target, &self.plan, Some(&self.archive), &terms)
            .await
    }

    async fn undo(&self, server: &RedisServer, dry_run: bool) -> CleanupUndone {
        let (attempt, target) = (Attempt::new(), target(&server.url()));
        ENGINE
            .undo(
                &attempt.context,
                &target,
                &self.plan,
                &self.archive,
                JobId::new(),
                dry_run,
            )
            .await
            .unwrap()
    }
}

const MEANT: u64 = 2 * 205;

#[tokio::test(flavor = "multi_thread")]
async fn idle_keys_without_an_end_go_once_and_come_back_as_they_were() {
    let server = server_with_digest();
    let mut client = filled(&server);
    let before = digest(&mut client);
    let job = Job::begin(&server, keys(60, None)).await;
    assert_eq!(job.plan.rows(), MEANT);
    assert_eq!(job.plan.items.len(), 2);
    let removed = job.remove(&server, 1).await.unwrap();
    assert_eq!(
        (removed.removed, removed.stayed(), removed.gone),
        (MEANT, 0, 0),
        "{removed:?}"
    );
    assert_eq!((count(&mut client, 0), count(&mut client, 3)), (2, 2));
    assert_eq!(plan(&server, keys(60, None)).await.rows(), 0);

    assert_eq!(job.undo(&server, true).await.restored, MEANT);
    assert_eq!(count(&mut client, 0), 2);
    let undone = job.undo(&server, false).await;
    assert_eq!((undone.restored, undone.skipped), (MEANT, vec![]));
    assert_eq!(digest(&mut client), before);
    let twice = job.undo(&server, false).await;
    assert_eq!(
        (twice.restored, twice.there, twice.taken),
        (0, MEANT, 0),
        "{twice:?}"
    );
    // An attempt behind the end tells what was done, and does nothing more.
    let again = job.remove(&server, 9).await.unwrap();
    assert_eq!(again.removed, MEANT);
    assert_eq!(digest(&mut client), before);
}

fn server_with_digest() -> RedisServer {
    RedisServer::start(options().setting("enable-debug-command", "local")).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_changed_used_or_given_an_end_since_the_archive_stays() {
    let server = server();
    let mut client = filled(&server);
    let job = Job::begin(&server, keys(60, None)).await;
    tokio::time::sleep(Duration::from_secs(4)).await;
    for words in [
        "SET session:text:1 another",
        "GET session:text:2",
        "EXPIRE session:text:3 1000",
        "RPUSH session:list c",
        "DEL session:text:4",
        "SET session:new value",
    ] {
        command(words).exec(&mut client).unwrap();
    }
    let removed = job.remove(&server, 1).await.unwrap();
    assert_eq!((removed.changed, removed.gone), (4, 1), "{removed:?}");
    assert_eq!(removed.removed, MEANT - 5);
    assert!(
        removed
            .kept
            .iter()
            .any(|line| line == "db0 session:text:2: changed"),
        "{removed:?}"
    );
    command("SET session:text:9 taken")
        .exec(&mut client)
        .unwrap();
    let undone = job.undo(&server, false).await;
    // 1, 9 and the list hold something else; 2 and 3 are there.
    assert_eq!((undone.taken, undone.there), (3, 2), "{undone:?}");
    assert_eq!(undone.restored, MEANT - 5);
    let taken: String = cmd("GET").arg("session:text:9").query(&mut client).unwrap();
    assert_eq!(taken, "taken");
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_get_an_end_instead_and_lose_it_again() {
    let server = server();
    let mut client = filled(&server);
    let job = Job::begin(&server, keys(60, Some(500))).await;
    let removed = job.remove(&server, 1).await.unwrap();
    assert_eq!(removed.removed, MEANT, "{removed:?}");
    assert_eq!(count(&mut client, 0), 207);
    let ttl =
        |client: &mut Connection| -> i64 { cmd("TTL").arg("session:set").query(client).unwrap() };
    assert!((400..=500).contains(&ttl(&mut client)));
    assert_eq!(plan(&server, keys(0, Some(500))).await.rows(), 0);
    command("DEL session:text:1").exec(&mut client).unwrap();
    let undone = job.undo(&server, false).await;
    assert_eq!(undone.restored, MEANT, "{undone:?}");
    assert_eq!(ttl(&mut client), -1);
    assert_eq!(job.undo(&server, false).await.there, MEANT);
}

#[tokio::test(flavor = "multi_thread")]
async fn work_that_was_stopped_goes_on() {
    let server = server();
    let mut client = filled(&server);
    let job = Job::begin(&server, keys(60, None)).await;
    let context = job.attempt.next(2);
    let (stop, url) = (context.stop.clone(), server.url());
    let watcher = tokio::task::spawn_blocking(move || {
        let mut client = super::common::client(&url);
        while cmd("DBSIZE").query::<usize>(&mut client).unwrap() == 207 {}
        stop.cancel();
    });
    let terms = CleanupTerms {
        batch_rows: 5,
        rows_per_second: Some(50),
        ..CleanupTerms::default()
    };
    let stopped = ENGINE
        .remove(
            &context,
            &target(&server.url()),
            &job.plan,
            Some(&job.archive),
            &terms,
        )
        .await;
    watcher.await.unwrap();
    assert!(matches!(stopped, Err(EngineError::Stopped)), "{stopped:?}");
    let left = count(&mut client, 0) + count(&mut client, 3);
    assert!(left > 100 && left < 414, "{left}");
    let removed = job.remove(&server, 3).await.unwrap();
    assert_eq!(
        (removed.removed + removed.gone, removed.stayed()),
        (MEANT, 0),
        "{removed:?}"
    );
    assert_eq!((count(&mut client, 0), count(&mut client, 3)), (2, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_refuses_where_idle_times_are_not_known() {
    let lfu = RedisServer::start(options().setting("maxmemory-policy", "allkeys-lfu")).unwrap();
    let refused = plan(&lfu, keys(60, None)).await;
    assert!(
        refused.refusals[0].what.contains("not evaluable"),
        "{refused:?}"
    );
    let server = server();
    let _client = filled(&server);
    assert_eq!(
        plan(&server, keys(3600, None)).await.rows(),
        0,
        "all are younger"
    );
    let request = CleanupRequest {
        what: CleanupAction::TemporaryTables {},
        archive: true,
    };
    let other = ENGINE
        .plan(&Attempt::new().context, &target(&server.url()), &request)
        .await;
    assert!(
        matches!(other, Err(EngineError::Missing { .. })),
        "{other:?}"
    );
}
