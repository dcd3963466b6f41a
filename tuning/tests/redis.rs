//! Redis on real servers: each piece of advice is given where it is due, and a fresh server gets none.

#![allow(clippy::unwrap_used)]

mod common;

use common::{Tuned, checks, found};
use fettler_engine::Workbench;
use fettler_engine_redis::RedisEngine;
use fettler_test_servers::{RedisOptions, RedisServer};
use serde_json::{Value, json};

fn tuned<'a>(engine: &'a RedisEngine, server: &RedisServer) -> Tuned<'a> {
    Tuned {
        engine,
        url: server.url(),
    }
}

async fn tell(bench: &mut dyn Workbench, words: &[&str]) -> Value {
    let lines = bench.run(&json!(words).to_string()).await.unwrap();
    serde_json::from_str(lines[0][0].as_ref().unwrap()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fresh_server_and_an_ordinary_one_are_left_in_peace() {
    let server = RedisServer::start(RedisOptions::new()).unwrap();
    let engine = RedisEngine::default();
    let tuned = tuned(&engine, &server);
    assert_eq!(tuned.look(&[]).await.findings, []);
    let mut bench = tuned.open().await;
    for number in 0..300 {
        let number = number.to_string();
        tell(
            bench.as_mut(),
            &["SET", &format!("session:{number}"), "x", "EX", "1000"],
        )
        .await;
        tell(
            bench.as_mut(),
            &[
                "HSET",
                &format!("user:{number}"),
                "name",
                "x",
                "born",
                "1990",
            ],
        )
        .await;
    }
    bench.close().await;
    assert_eq!(tuned.look(&[]).await.findings, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn large_keys_forgotten_expiry_and_loose_collections_are_found_without_their_names() {
    let server = RedisServer::start(RedisOptions::new()).unwrap();
    let engine = RedisEngine::default();
    let tuned = tuned(&engine, &server);
    let mut bench = tuned.open().await;
    let long = "x".repeat(12 << 20);
    tell(bench.as_mut(), &["SET", "export:anna@example.org", &long]).await;
    for number in 0..400 {
        let name = format!("session:{number}");
        if number % 40 == 0 {
            tell(bench.as_mut(), &["SET", &name, "x"]).await;
        } else {
            tell(bench.as_mut(), &["SET", &name, "x", "EX", "1000"]).await;
        }
    }
    for number in 0..1000 {
        let mut words = vec!["ZADD".to_owned(), format!("cart:{number}")];
        for field in 0..200 {
            words.push(field.to_string());
            words.push(format!("member{field}"));
        }
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        tell(bench.as_mut(), &words).await;
    }
    let look = tuned.look(&[]).await;
    assert_eq!(found(&look, "large_keys"), [""], "{look:#?}");
    assert_eq!(found(&look, "expiry"), ["session:* string"]);
    assert_eq!(found(&look, "encodings"), ["zset"]);
    assert_eq!(checks(&look).len(), 3, "{look:#?}");
    assert!(!format!("{:?}", look.findings).contains("anna"));

    let safe: Vec<_> = look.plan.iter().filter(|action| action.safe).collect();
    let limit = "zset-max-listpack-entries";
    let setting = |told: &Value| {
        told[limit]
            .as_str()
            .or(told[1].as_str())
            .unwrap()
            .to_owned()
    };
    let before = setting(&tell(bench.as_mut(), &["CONFIG", "GET", limit]).await);
    tuned.twice(&safe, false).await;
    let changed = setting(&tell(bench.as_mut(), &["CONFIG", "GET", limit]).await);
    assert_eq!((before.as_str(), changed.as_str()), ("128", "256"));
    // What is written anew takes less, as was said.
    let bytes = tell(bench.as_mut(), &["MEMORY", "USAGE", "cart:7"]).await;
    let dumped = tell(bench.as_mut(), &["OBJECT", "ENCODING", "cart:7"]).await;
    assert_eq!(dumped, "skiplist");
    let mut words = vec!["ZADD".to_owned(), "cart:anew".to_owned()];
    for field in 0..200 {
        words.push(field.to_string());
        words.push(format!("member{field}"));
    }
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    tell(bench.as_mut(), &words).await;
    let packed = tell(bench.as_mut(), &["MEMORY", "USAGE", "cart:anew"]).await;
    assert!(
        packed.as_f64().unwrap() * 2.0 < bytes.as_f64().unwrap(),
        "{packed} {bytes}"
    );
    assert_eq!(
        found(&tuned.look(&[]).await, "encodings"),
        Vec::<&str>::new()
    );
    tuned.twice(&safe, true).await;
    let back = setting(&tell(bench.as_mut(), &["CONFIG", "GET", limit]).await);
    assert_eq!(back, before);
    bench.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_without_anything_to_evict_and_commands_that_walk_are_found() {
    let server = RedisServer::start(
        RedisOptions::new()
            .setting("maxmemory", "24mb")
            .setting("maxmemory-policy", "volatile-lru"),
    )
    .unwrap();
    let engine = RedisEngine::default();
    let tuned = tuned(&engine, &server);
    let mut bench = tuned.open().await;
    let value = "x".repeat(100_000);
    for number in 0..190 {
        tell(bench.as_mut(), &["SET", &format!("page:{number}"), &value]).await;
    }
    let look = tuned.look(&[]).await;
    assert_eq!(checks(&look), ["eviction"], "{look:#?}");
    assert!(look.plan.iter().all(|action| !action.safe), "{look:#?}");
    // The same with keys that may go.
    for number in 0..190 {
        tell(
            bench.as_mut(),
            &["EXPIRE", &format!("page:{number}"), "1000"],
        )
        .await;
    }
    assert_eq!(tuned.look(&[]).await.findings, []);
    // And keys that all expire, under a policy that keeps them.
    tell(
        bench.as_mut(),
        &["CONFIG", "SET", "maxmemory-policy", "noeviction"],
    )
    .await;
    assert_eq!(checks(&tuned.look(&[]).await), ["eviction"]);
    bench.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_user_may_not_see_is_said() {
    let server = RedisServer::start(RedisOptions::new()).unwrap();
    let engine = RedisEngine::default();
    let mut bench = tuned(&engine, &server).open().await;
    tell(
        bench.as_mut(),
        &[
            "ACL", "SETUSER", "looker", "on", ">pass1", "~*", "+info", "+ping", "+client",
            "+select",
        ],
    )
    .await;
    tell(bench.as_mut(), &["SET", "a", "b"]).await;
    bench.close().await;
    let looker = Tuned {
        engine: &engine,
        url: server
            .url()
            .replacen("redis://", "redis://looker:pass1@", 1),
    };
    let look = looker.look(&[]).await;
    assert_eq!(checks(&look), ["settings", "keys"], "{look:#?}");
    assert!(
        look.findings
            .iter()
            .all(|one| one.status.as_str() == "not_evaluable")
    );
    assert!(!look.conclusive.contains("redis.tune_large_keys"));
}
