//! A proof finds one change, and a reader that is broken on purpose.

use std::sync::Arc;

use bytes::Bytes;
use fettler_engine::{
    BackupOptions, DatabaseEngine as _,
    testing::{MemorySink, Tamper},
};
use fettler_engine_redis::RedisEngine;
use redis::{Connection, cmd};

use crate::common::{
    Attempt, back_up, client, command, fill, prove, prove_after, run, server, target,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p4_one_change_anywhere_is_found() {
    let source = server();
    fill(&mut client(&source.url()));
    let (backup, report) = back_up(&source.url()).await;
    for change in [
        "SET big 9007199254740992",
        "SETRANGE large 2999999 x",
        "APPEND empty x",
        "LSET RPUSH:large 29999 other",
        "PEXPIREAT expires 1130000000000000",
        "PERSIST expires",
        "EXPIRE int 1000000",
        "HSET mixed 1 3",
        "ZADD scores 0.1000000000000001 tenth",
        "XADD stream * a b",
        "XACK stream first 7-1",
        "XGROUP SETID stream unread 0",
        "XGROUP DELCONSUMER stream second idle",
        "XSETID emptied 9-9",
        "SREM intset 1",
        "RENAME int int2",
        "MOVE int 7",
        "FUNCTION FLUSH",
    ] {
        let found = prove_after(&backup, &report, |copy| {
            run(copy, change);
        })
        .await;
        assert!(!found.is_empty(), "{change}");
    }
    // One lost and another added; one element moved; a member exchanged.
    type Change = fn(&mut Connection);
    let changes: [(&str, Change); 4] = [
        ("a key lost, another added", |copy| {
            run(copy, "DEL short");
            run(copy, "SET other embstr");
        }),
        ("an item moved", |copy| {
            run(copy, "LMOVE numbers numbers LEFT RIGHT");
        }),
        ("a member exchanged", |copy| {
            run(copy, "SMOVE letters intset a");
            run(copy, "SADD letters d");
        }),
        ("-0 made 0", |copy| {
            let pairs: Vec<(Vec<u8>, String)> = cmd("ZRANGE")
                .arg("unpacked")
                .arg(0)
                .arg(-1)
                .arg("WITHSCORES")
                .query(copy)
                .unwrap();
            let (member, _) = pairs.iter().find(|(_, score)| score == "-0").unwrap();
            // Adding 0 to a score makes no other one of it: it is removed and added.
            cmd("ZREM").arg("unpacked").arg(member).exec(copy).unwrap();
            cmd("ZADD")
                .arg("unpacked")
                .arg("0")
                .arg(member)
                .exec(copy)
                .unwrap();
        }),
    ];
    for (what, change) in changes {
        let found = prove_after(&backup, &report, change).await;
        assert!(!found.is_empty(), "{what}");
    }
    assert_eq!(prove(&backup, &report).await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_that_expired_since_the_backup_are_proven_and_not_restored() {
    let source = server();
    let mut writer = client(&source.url());
    run(&mut writer, "SET stays x");
    run(&mut writer, "SET goes x PX 4000");
    cmd("HSET")
        .arg("goes:too")
        .arg("a")
        .arg("b")
        .exec(&mut writer)
        .unwrap();
    run(&mut writer, "PEXPIRE goes:too 4000");
    let (backup, report) = back_up(&source.url()).await;
    assert_eq!(
        report
            .objects
            .iter()
            .find(|one| one.name == "db0")
            .unwrap()
            .independent_rows,
        Some(3)
    );
    fettler_test_servers::wait_until(
        "the keys to expire",
        std::time::Duration::from_secs(30),
        || {
            command("EXISTS goes goes:too")
                .query::<u64>(&mut writer)
                .unwrap()
                == 0
        },
    )
    .unwrap();
    assert_eq!(prove(&backup, &report).await, Vec::<String>::new());
    let copy = server();
    let restored = crate::common::restore(&backup, &report, &copy.url()).await;
    assert!(
        restored
            .warnings
            .iter()
            .any(|one| one.code == "redis.expired"),
        "{restored:?}"
    );
    assert_eq!(crate::common::keys_in(&mut client(&copy.url()), 0), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p4_a_key_that_was_never_read_is_found_by_the_servers_count() {
    let source = server();
    fill(&mut client(&source.url()));
    let sink = MemorySink::default();
    let report = RedisEngine::broken_for_tests_that_loses_a_key()
        .backup(
            &Attempt::new().context,
            &target(&source.url()),
            &BackupOptions::default(),
            &sink,
        )
        .await
        .unwrap();
    let found = prove(&sink.source(), &report).await;
    assert!(
        found.iter().any(|what| what.contains("counted")),
        "{found:?}"
    );
    assert!(
        !found.iter().any(|what| what.contains("instead of")),
        "{found:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p4_a_bit_that_changes_between_the_reader_and_the_store_is_found() {
    let source = server();
    let mut writer = client(&source.url());
    for at in 0..500 {
        cmd("SET")
            .arg(format!("k{at}"))
            .arg("0123456789")
            .exec(&mut writer)
            .unwrap();
    }
    let tamper: Tamper = Arc::new(|name, _, bytes| {
        let mut changed = bytes.to_vec();
        if name.starts_with("keys/")
            && let Some(at) = changed.windows(10).position(|part| part == b"0123456789")
        {
            changed[at + 9] = b'8';
        }
        Bytes::from(changed)
    });
    let sink = MemorySink::behind(tamper);
    let report = crate::common::ENGINE
        .backup(
            &Attempt::new().context,
            &target(&source.url()),
            &BackupOptions::default(),
            &sink,
        )
        .await
        .unwrap();
    let found = prove(&sink.source(), &report).await;
    assert!(found.iter().any(|what| what.contains("db0")), "{found:?}");
}
