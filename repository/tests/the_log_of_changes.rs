//! A log of changes beside the backups: one writer at a time, whatever becomes of others; small in objects; kept as long as a
//! backup needs it, and no longer.
#![allow(clippy::unwrap_used)]

mod common;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use common::*;
use fettler_model::{LogMoment, LogSpan, LogUnit, Timestamp};
use fettler_repository::{ChangeLog, CollectOptions, LogPart, Unfenced};
use futures::TryStreamExt;
use object_store::{ObjectStore, ObjectStoreExt, memory::InMemory};

const GRACE: Duration = Duration::from_millis(50);

fn part(begin: u64, bytes: &[u8], continues: bool) -> LogPart {
    let end = begin + bytes.len() as u64;
    let at = Timestamp::from_micros(1_000_000 * end.cast_signed());
    let moments = vec![LogMoment {
        from: at,
        until: at,
        offset: end,
    }];
    LogPart {
        span: LogSpan::new("a".to_owned(), begin, end, continues, &moments),
        moments,
        bytes: Bytes::copy_from_slice(bytes),
    }
}

/// Appends parts of five bytes, numbered from `from`.
async fn fill(log: &ChangeLog, from: u64, count: u64) {
    for number in from..from + count {
        let text = format!("{number:05}");
        let part = part((number - 1) * 5, text.as_bytes(), number > 1);
        assert!(log.append(number, &part, &Unfenced).await.unwrap());
    }
}

async fn bytes_of(log: &ChangeLog) -> Vec<u8> {
    let mut bytes = Vec::new();
    for entry in log.entries().await.unwrap() {
        bytes.extend(log.read(&entry).await.unwrap().unwrap().bytes);
    }
    bytes
}

#[tokio::test]
async fn p2_a_writer_whose_successor_has_begun_writes_nothing_more() {
    let tenant = tenant_in(Arc::new(InMemory::new())).await.unwrap();
    let (zombie, successor) = (
        tenant.change_log("redis:shop"),
        tenant.change_log("redis:shop"),
    );
    assert!(
        zombie
            .append(1, &part(0, b"one", false), &Unfenced)
            .await
            .unwrap()
    );
    let next = ChangeLog::next_number(&successor.entries().await.unwrap());
    assert!(
        successor
            .append(next, &part(3, b"", true), &Unfenced)
            .await
            .unwrap()
    );
    assert!(
        !zombie
            .append(2, &part(3, b"two", true), &Unfenced)
            .await
            .unwrap()
    );
    assert!(
        successor
            .append(3, &part(3, b"2", true), &Unfenced)
            .await
            .unwrap()
    );
    assert_eq!(bytes_of(&successor).await, b"one2");
    // Another database's log is another one.
    assert!(
        tenant
            .change_log("redis:other")
            .entries()
            .await
            .unwrap()
            .is_empty()
    );
}

/// Offsets that changes bear themselves (operation times), far apart, and some that nothing lies behind.
#[tokio::test]
async fn objects_whose_offsets_are_numbers_are_merged_alike() {
    let tenant = tenant_in(Arc::new(InMemory::new())).await.unwrap();
    let log = tenant.change_log("mongodb:shop");
    for number in 1..=130_u64 {
        let mut part = part(0, format!("{number:03}").as_bytes(), number > 1);
        if number % 10 == 0 {
            part.bytes = Bytes::new();
        }
        let begin = (number - 1) << 32;
        part.moments[0].offset = begin + (1 << 32);
        part.span = LogSpan::new(
            "rs0".to_owned(),
            begin,
            begin + (1 << 32),
            number > 1,
            &part.moments,
        )
        .counted_in(LogUnit::Numbers);
        assert!(log.append(number, &part, &Unfenced).await.unwrap());
    }
    let before = bytes_of(&log).await;
    assert_eq!(before.len(), 3 * (130 - 13));
    assert_eq!(log.merge(&Unfenced).await.unwrap(), 64);
    let entries = log.entries().await.unwrap();
    assert_eq!(entries.len(), 130 - 63);
    assert_eq!(entries[0].span.unit, LogUnit::Numbers);
    assert_eq!((entries[0].span.begin, entries[0].span.end), (0, 64 << 32));
    assert_eq!(bytes_of(&log).await, before);
}

#[tokio::test]
async fn merging_changes_nothing_but_the_number_of_objects() {
    let tenant = tenant_in(Arc::new(InMemory::new())).await.unwrap();
    let log = tenant.change_log("redis:shop");
    fill(&log, 1, 200).await;
    let before = bytes_of(&log).await;
    let old = log.entries().await.unwrap();
    while log.merge(&Unfenced).await.unwrap() > 0 {}
    let entries = log.entries().await.unwrap();
    assert_eq!(entries.len(), 200 - 2 * 63);
    assert_eq!(ChangeLog::next_number(&entries), 201);
    assert_eq!(bytes_of(&log).await, before);
    assert!(entries[1..].iter().all(|entry| entry.span.continues));
    let moments: usize = {
        let mut count = 0;
        for entry in &entries {
            count += log.read(entry).await.unwrap().unwrap().moments.len();
        }
        count
    };
    assert_eq!(moments, 200);
    // Whoever listed it before is told to list it again.
    assert_eq!(log.read(&old[0]).await.unwrap(), None);
    fill(&log, 201, 1).await;
    assert!(bytes_of(&log).await.ends_with(b"00201"));
}

#[tokio::test]
async fn p8_changes_are_kept_as_long_as_a_backup_needs_them() {
    let tenant = tenant_in(Arc::new(InMemory::new())).await.unwrap();
    // The key of the tests' backups.
    let log = tenant.change_log("shop-db");
    fill(&log, 1, 3).await;
    tokio::time::sleep(GRACE * 3).await;
    let collect = async || {
        tokio::time::sleep(GRACE * 3).await;
        tenant
            .collect(&CollectOptions::with_grace(GRACE))
            .await
            .unwrap()
    };
    collect().await;
    assert_eq!(
        log.entries().await.unwrap().len(),
        3,
        "no backup says what is needed"
    );
    let first = new_id();
    back_up(&tenant, first, &[("s", &rows(1, 10_000))])
        .await
        .unwrap();
    fill(&log, 4, 2).await;
    collect().await;
    assert_eq!(
        log.entries().await.unwrap().len(),
        2,
        "what lies before the backup goes"
    );
    tokio::time::sleep(GRACE * 3).await;
    back_up(&tenant, new_id(), &[("s", &rows(2, 10_000))])
        .await
        .unwrap();
    fill(&log, 6, 1).await;
    collect().await;
    assert_eq!(
        log.entries().await.unwrap().len(),
        3,
        "the first backup needs them"
    );
    tenant.forget(first, "a test", &Unfenced).await.unwrap();
    let trial = CollectOptions {
        dry_run: true,
        ..CollectOptions::with_grace(GRACE)
    };
    tokio::time::sleep(GRACE * 3).await;
    assert!(tenant.collect(&trial).await.unwrap().deleted_objects >= 2);
    assert_eq!(log.entries().await.unwrap().len(), 3);
    collect().await;
    assert_eq!(bytes_of(&log).await, b"00006");
}

#[tokio::test]
async fn a_check_finds_what_is_missing_or_damaged_in_a_log() {
    let store = Arc::new(InMemory::new());
    let tenant = tenant_in(store.clone()).await.unwrap();
    let log = tenant.change_log("shop-db");
    fill(&log, 1, 5).await;
    let stop = tokio_util::sync::CancellationToken::new();
    let check = async || {
        tenant
            .check(Some(100.0), &[], &mut |_| (), &stop)
            .await
            .unwrap()
    };
    assert!(check().await.is_ok());
    let logs: Vec<_> = store
        .list(None)
        .map_ok(|object| object.location)
        .try_filter(|path| std::future::ready(path.as_ref().contains("/logs/")))
        .try_collect()
        .await
        .unwrap();
    let named = |ending: &str| {
        let mut found = logs.iter().filter(|path| path.as_ref().ends_with(ending));
        found.next().unwrap().clone()
    };
    let path = named("0002");
    let mut bytes = store
        .get(&path)
        .await
        .unwrap()
        .bytes()
        .await
        .unwrap()
        .to_vec();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    store.put(&path, bytes.into()).await.unwrap();
    store.delete(&named("0004")).await.unwrap();
    let report = check().await;
    assert_eq!(report.damaged.len(), 2, "{:?}", report.damaged);
    // What lies behind the hole does not go on from what lies before.
    let continues: Vec<bool> = log
        .entries()
        .await
        .unwrap()
        .iter()
        .map(|entry| entry.span.continues)
        .collect();
    assert_eq!(continues, [false, true, true, false]);
}
