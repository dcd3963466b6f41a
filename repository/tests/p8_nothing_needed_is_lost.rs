//! Backups, forgettings and collections of several processes at once lose nothing that is needed (P8, rules
//! 21 to 23); and space comes back without repacking (rule 25).
#![allow(clippy::unwrap_used)]

mod common;

use std::{collections::HashSet, sync::Arc, time::Duration};

use common::*;
use fettler_model::BackupId;
use fettler_repository::{
    BeginBackup, Begun, Chunking, CollectOptions, RepositoryError, TenantRepository, Unfenced,
};
use object_store::memory::InMemory;
use rand::RngExt;

/// Longer than any of the rounds' single operations, short enough that deletions happen within a round.
const GRACE: Duration = Duration::from_millis(300);

/// What a process of a round does at once with the others.
async fn back_up_again_and_again(tenant: TenantRepository, seed: u64) -> Vec<(BackupId, Vec<u8>)> {
    let mut random = random(seed);
    let mut bytes = rows(random.random(), 400_000);
    let mut made = Vec::new();
    for _turn in 0..random.random_range(10..20) {
        // Pauses of any length, so that the others' steps fall between any two of this one's.
        tokio::time::sleep(GRACE.mul_f64(random.random_range(0.0..0.4))).await;
        let place = random.random_range(0..bytes.len() - 60_000);
        bytes[place..place + 60_000].copy_from_slice(&rows(random.random(), 60_000));
        let id = new_id();
        let outcome: Result<(), RepositoryError> = async {
            let Begun::Writer(writer) =
                tenant.begin_backup(BeginBackup::new(id, "shop-db")).await?
            else {
                panic!("it is new");
            };
            for part in 0..2 {
                let half = &bytes[part * 200_000..(part + 1) * 200_000];
                write_stream(&writer, &format!("part/{part}"), Chunking::Content, half).await?;
                if random.random_bool(0.3) {
                    writer.checkpoint().await?;
                }
            }
            if random.random_bool(0.15) {
                // The process dies here; another attempt may follow or not.
                drop(writer);
                if random.random_bool(0.5) {
                    return Err(RepositoryError::Stopped);
                }
                let Begun::Writer(writer) =
                    tenant.begin_backup(BeginBackup::new(id, "shop-db")).await?
                else {
                    panic!("it was not committed");
                };
                for part in 0..2 {
                    let half = &bytes[part * 200_000..(part + 1) * 200_000];
                    write_stream(&writer, &format!("part/{part}"), Chunking::Content, half).await?;
                }
                writer.commit(body()).await?;
                return Ok(());
            }
            writer.commit(body()).await?;
            Ok(())
        }
        .await;
        match outcome {
            Ok(()) => made.push((id, bytes.clone())),
            Err(RepositoryError::LostAnnouncement { .. } | RepositoryError::Stopped) => {}
            Err(error) => panic!("{error:?}"),
        }
    }
    made
}

async fn forget_until(
    tenant: TenantRepository,
    seed: u64,
    done: tokio_util::sync::CancellationToken,
) {
    let mut random = random(seed);
    while !done.is_cancelled() {
        let listing = tenant.backups().await.unwrap();
        assert!(listing.unreadable.is_empty());
        if listing.backups.len() > 2 {
            let chosen = &listing.backups[random.random_range(0..listing.backups.len() - 1)];
            match tenant.forget(chosen.id, "test", &Unfenced).await {
                Ok(()) | Err(RepositoryError::NoSuchBackup(_)) => {}
                Err(error) => panic!("{error:?}"),
            }
        }
        tokio::time::sleep(GRACE / 8).await;
    }
}

async fn collect_until(tenant: TenantRepository, done: tokio_util::sync::CancellationToken) -> u64 {
    let mut deleted = 0;
    loop {
        match tenant.collect(&CollectOptions::with_grace(GRACE)).await {
            Ok(report) => deleted += report.deleted_objects,
            Err(RepositoryError::CollectionRuns { .. }) => {}
            Err(error) => panic!("{error:?}"),
        }
        if done.is_cancelled() {
            return deleted;
        }
        tokio::time::sleep(GRACE / 10).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn p8_backups_forgettings_and_collections_at_once_lose_nothing_that_is_needed() {
    let mut deleted = 0;
    for seed in 0..8 {
        let store = Arc::new(InMemory::new());
        let mut tenants = Vec::new();
        for _process in 0..6 {
            tenants.push(tenant_in(store.clone()).await.unwrap());
        }
        let done = tokio_util::sync::CancellationToken::new();
        let mut tenants = tenants.into_iter();
        let mut next = || tenants.next().unwrap();
        let writers = [
            tokio::spawn(back_up_again_and_again(next(), seed * 10)),
            tokio::spawn(back_up_again_and_again(next(), seed * 10 + 1)),
        ];
        let forgetter = tokio::spawn(forget_until(next(), seed * 10 + 2, done.clone()));
        let collectors = [
            tokio::spawn(collect_until(next(), done.clone())),
            tokio::spawn(collect_until(next(), done.clone())),
        ];
        let mut made = Vec::new();
        for writer in writers {
            made.extend(writer.await.unwrap());
        }
        // Long enough for what was marked to be deleted.
        tokio::time::sleep(GRACE * 3).await;
        done.cancel();
        forgetter.await.unwrap();
        for collector in collectors {
            deleted += collector.await.unwrap();
        }
        let tenant = next();
        let listing = tenant.backups().await.unwrap();
        assert!(!listing.backups.is_empty());
        for summary in listing.backups {
            let (_, bytes) = made.iter().find(|(id, _)| *id == summary.id).unwrap();
            let streams: [(&str, &[u8]); 2] = [
                ("part/0", &bytes[..200_000]),
                ("part/1", &bytes[200_000..400_000]),
            ];
            assert_reads(&tenant, summary.id, &streams).await;
        }
    }
    assert!(
        deleted > 100,
        "only {deleted} objects were deleted: the rounds prove nothing"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn rule_25_sixty_daily_backups_of_which_seven_are_kept_store_at_most_half_again_of_what_is_live()
 {
    const PAGE: usize = 16 << 10;
    const PAGES: usize = 3000;
    const KEPT: usize = 7;
    let store = Arc::new(InMemory::new());
    // Chunks of a page, packs of 2 MiB.
    let options = fettler_repository::OpenOptions {
        new_with_sizes_divided_by: 16,
        ..options()
    };
    let repository = fettler_repository::Repository::with_store(store, "x", options)
        .await
        .unwrap();
    let tenant = repository
        .tenant(
            &shop(),
            &passphrase(),
            fettler_repository::CreateKey::IfAbsent,
        )
        .await
        .unwrap();
    let mut random = random(25);
    let mut bytes = vec![0; PAGE * PAGES];
    random.fill(&mut bytes[..]);
    let mut versions: Vec<u32> = vec![0; PAGES];
    let mut kept: Vec<(BackupId, Vec<u32>)> = Vec::new();
    let mut worst: f64 = 0.0;
    let mut rewritten = 0;
    for day in 0..60u32 {
        if day > 0 {
            for _change in 0..PAGES / 50 {
                let page = random.random_range(0..PAGES);
                random.fill(&mut bytes[page * PAGE..(page + 1) * PAGE]);
                versions[page] = day;
            }
        }
        let id = new_id();
        let writer = begin(&tenant, BeginBackup::new(id, "shop-db"))
            .await
            .unwrap();
        let pages = Chunking::Pages {
            page_bytes: PAGE as u32,
        };
        write_stream(&writer, "file", pages, &bytes).await.unwrap();
        let manifest = writer.commit(body()).await.unwrap().manifest;
        if day > 0 {
            rewritten += manifest.summary.bytes_new;
        }
        kept.push((id, versions.clone()));
        if kept.len() > KEPT {
            let (gone, _) = kept.remove(0);
            tenant.forget(gone, "retention", &Unfenced).await.unwrap();
        }
        for _phase in 0..2 {
            tenant
                .collect(&CollectOptions::with_grace(Duration::ZERO))
                .await
                .unwrap();
        }
        let live: HashSet<(usize, u32)> = kept
            .iter()
            .flat_map(|(_, versions)| versions.iter().copied().enumerate())
            .collect();
        let stored = tenant.statistics().await.unwrap().bytes;
        worst = worst.max(stored as f64 / (live.len() * PAGE) as f64);
    }
    println!(
        "at worst {worst:.3} times the live bytes were stored; {:.3} of the database was written a day",
        rewritten as f64 / 59.0 / bytes.len() as f64
    );
    assert!(worst <= 1.5, "{worst}");
    assert_reads(&tenant, kept[KEPT - 1].0, &[("file", &bytes)]).await;
    for (id, _) in kept {
        assert!(verify_everything(&tenant, id).await.is_ok());
    }
}
