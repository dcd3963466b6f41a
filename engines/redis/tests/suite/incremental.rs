//! What a second backup has to store anew.

use std::collections::HashSet;

use fettler_engine::StreamSource as _;
use fettler_engine::testing::MemorySource;
use fettler_test_servers::RedisServer;
use futures::TryStreamExt as _;
use redis::cmd;

use crate::common::{back_up, client, noise, options, prove};

/// The chunks of a backup, cut by content as a repository cuts them.
async fn chunks(backup: &MemorySource) -> (HashSet<blake3::Hash>, Vec<(blake3::Hash, u64)>) {
    let mut all = Vec::new();
    for stream in backup.streams() {
        let pieces: Vec<bytes::Bytes> = backup
            .read(&stream.name)
            .await
            .unwrap()
            .try_collect()
            .await
            .unwrap();
        let bytes = pieces.concat();
        for chunk in fastcdc::v2020::FastCDC::new(&bytes, 16 << 10, 64 << 10, 256 << 10) {
            let content = &bytes[chunk.offset..chunk.offset + chunk.length];
            all.push((blake3::hash(content), chunk.length as u64));
        }
    }
    (all.iter().map(|(hash, _)| *hash).collect(), all)
}

/// Which part of the second backup is not in the first.
pub async fn new_part(first: &MemorySource, second: &MemorySource) -> f64 {
    let (known, _) = chunks(first).await;
    let (_, all) = chunks(second).await;
    let total: u64 = all.iter().map(|(_, bytes)| bytes).sum();
    let new: u64 = all
        .iter()
        .filter(|(hash, _)| !known.contains(hash))
        .map(|(_, bytes)| bytes)
        .sum();
    new as f64 / total as f64
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_restart_of_the_server_nearly_nothing_is_new_and_after_a_change_of_one_in_a_hundred_little()
 {
    let mut source = RedisServer::start(
        options()
            .persistent()
            .setting("maxmemory-policy", "allkeys-lru"),
    )
    .unwrap();
    let mut writer = client(&source.url());
    for at in 0..20_000u64 {
        let key = format!("session:{at}");
        cmd("HSET")
            .arg(key)
            .arg("user")
            .arg(at)
            .arg("token")
            .arg(noise(60, at))
            .exec(&mut writer)
            .unwrap();
    }
    for at in 0..300u64 {
        cmd("SET")
            .arg(format!("page:{at}"))
            .arg(noise(50_000, at))
            .exec(&mut writer)
            .unwrap();
    }
    let (first, _) = back_up(&source.url()).await;
    source.stop().unwrap();
    source.start_again().unwrap();
    let (second, _) = back_up(&source.url()).await;
    let new = new_part(&first, &second).await;
    assert!(new < 0.1, "after a restart: {new}");

    let mut writer = client(&source.url());
    for at in (0..300u64).step_by(100) {
        cmd("SET")
            .arg(format!("page:{at}"))
            .arg(noise(50_000, at + 1000))
            .exec(&mut writer)
            .unwrap();
    }
    let (third, report) = back_up(&source.url()).await;
    let new = new_part(&second, &third).await;
    assert!(new > 0.0 && new < 0.1, "after a change: {new}");
    assert_eq!(prove(&third, &report).await, Vec::<String>::new());
}
