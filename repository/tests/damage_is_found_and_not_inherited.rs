//! Every kind of damage is found and told by the object's name (P4), and the next backup heals: nothing
//! is taken over from what is damaged (rule 24).
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Arc;

use common::*;
use fettler_repository::{CreateKey, Damage, Repository, RepositoryError, TenantRepository};
use futures::TryStreamExt;
use object_store::{ObjectStore, ObjectStoreExt, memory::InMemory, path::Path};
use tokio_util::sync::CancellationToken;

async fn objects(store: &dyn ObjectStore) -> Vec<Path> {
    let listed: Vec<_> = store.list(None).try_collect().await.unwrap();
    listed.into_iter().map(|meta| meta.location).collect()
}

async fn bytes_of(store: &dyn ObjectStore, path: &Path) -> Vec<u8> {
    store
        .get(path)
        .await
        .unwrap()
        .bytes()
        .await
        .unwrap()
        .to_vec()
}

async fn put(store: &dyn ObjectStore, path: &Path, bytes: Vec<u8>) {
    store.put(path, bytes.into()).await.unwrap();
}

/// Opens everything anew and verifies the backup; an error on the way counts as what it names.
async fn damages(
    store: &Arc<dyn ObjectStore>,
    id: fettler_model::BackupId,
) -> Result<Vec<Damage>, RepositoryError> {
    let tenant = tenant_in(store.clone()).await?;
    let stop = CancellationToken::new();
    let report = tenant
        .verify(
            id,
            fettler_repository::Depth::Everything,
            &mut |_| {},
            &stop,
        )
        .await?;
    Ok(report.damaged)
}

async fn a_repository() -> (
    Arc<dyn ObjectStore>,
    TenantRepository,
    fettler_model::BackupId,
    Vec<u8>,
) {
    let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let tenant = tenant_in(store.clone()).await.unwrap();
    let (id, bytes) = (new_id(), rows(1, 2_500_000));
    back_up(&tenant, id, &[("orders", &bytes), ("small", b"few")])
        .await
        .unwrap();
    (store, tenant, id, bytes)
}

#[tokio::test(flavor = "multi_thread")]
async fn p4_a_flipped_byte_in_the_header_body_or_tail_of_every_object_is_found_and_named() {
    let (store, _, id, _) = a_repository().await;
    let all = objects(&*store).await;
    for kind in [
        "packs",
        "indexes",
        "manifests",
        "keys",
        "tenant",
        "fettler-repository",
    ] {
        assert!(
            all.iter().any(|path| path.as_ref().contains(kind)),
            "no {kind} among {all:?}"
        );
    }
    for path in all {
        let sound = bytes_of(&*store, &path).await;
        for (part, at) in [
            ("header", 3),
            ("salt", 20),
            ("body", sound.len() / 2),
            ("tail", sound.len() - 3),
        ] {
            let mut bad = sound.clone();
            bad[at] ^= 1;
            put(&*store, &path, bad).await;
            match damages(&store, id).await {
                Ok(found) => assert!(
                    found.iter().any(|damage| damage.object == path.as_ref()),
                    "{part} of {path}: {found:?}"
                ),
                Err(error) => assert!(
                    error.to_string().contains(path.as_ref()),
                    "{part} of {path}: {error}"
                ),
            }
            put(&*store, &path, sound.clone()).await;
        }
        // What was recorded as damaged in between is made good.
        for marked in objects(&*store).await {
            if marked.as_ref().contains("/damage/") {
                store.delete(&marked).await.unwrap();
            }
        }
    }
    assert_eq!(damages(&store, id).await.unwrap(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn p4_a_deleted_a_cut_and_two_swapped_objects_are_found_and_the_next_backup_heals() {
    let (store, tenant, id, bytes) = a_repository().await;
    let streams: [(&str, &[u8]); 2] = [("orders", &bytes), ("small", b"few")];
    let of_kind = |kind: &'static str| {
        let store = store.clone();
        async move {
            let mut paths = objects(&*store).await;
            paths.retain(|path| path.as_ref().contains(kind));
            paths
        }
    };
    let mut latest = id;
    for harm in ["delete", "cut", "empty", "swap", "lengthen"] {
        for kind in ["/packs/", "/indexes/"] {
            let manifest = tenant.manifest(latest).await.unwrap();
            let needed: Vec<String> = manifest
                .packs
                .iter()
                .map(fettler_repository::PackUse::name)
                .collect();
            let mut paths = of_kind(kind).await;
            if kind == "/packs/" {
                paths.retain(|path| needed.iter().any(|name| path.as_ref().ends_with(name)));
            }
            // The newest index is the one that the latest backup uses.
            let path = if kind == "/packs/" {
                paths[0].clone()
            } else {
                let mut newest = None;
                for path in paths.clone() {
                    let modified = store.head(&path).await.unwrap().last_modified;
                    newest = newest.max(Some((modified, path)));
                }
                newest.unwrap().1
            };
            let sound = bytes_of(&*store, &path).await;
            match harm {
                "delete" => store.delete(&path).await.unwrap(),
                "cut" => put(&*store, &path, sound[..sound.len() - 1].to_vec()).await,
                "empty" => put(&*store, &path, Vec::new()).await,
                "lengthen" => put(&*store, &path, [&sound[..], b"x"].concat()).await,
                _ => {
                    let other = paths.iter().find(|other| **other != path).unwrap();
                    let others = bytes_of(&*store, other).await;
                    put(&*store, &path, others).await;
                    put(&*store, other, sound).await;
                }
            }
            let manifest = tenant.manifest(latest).await.unwrap();
            if harm != "lengthen" {
                let mut outcomes = Vec::new();
                for (name, _) in streams {
                    outcomes.push(read_stream(&tenant, &manifest, name).await.err());
                }
                assert!(
                    outcomes
                        .iter()
                        .flatten()
                        .any(|error| matches!(error, RepositoryError::Damaged(_))),
                    "reading after {harm} of {path}: {outcomes:?}"
                );
            }
            let found = damages(&store, latest).await.unwrap();
            assert!(
                found.iter().any(|damage| damage.object == path.as_ref()),
                "{harm} {path}: {found:?}"
            );
            assert!(
                found.iter().all(|damage| damage.stream.is_some()),
                "{found:?}"
            );
            let listing = tenant.backups().await.unwrap();
            let damaged = listing
                .backups
                .iter()
                .find(|summary| summary.id == latest)
                .unwrap();
            assert!(damaged.damaged, "rule 24: it is not complete any more");

            latest = new_id();
            let healed = back_up(&tenant, latest, &streams).await.unwrap();
            assert_eq!(damages(&store, latest).await.unwrap(), [], "{harm} {kind}");
            assert_reads(&tenant, latest, &streams).await;
            assert!(!healed.manifest.summary.damaged);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn p4_reading_a_damaged_stream_ends_with_an_error_that_names_object_and_place() {
    let (store, tenant, id, bytes) = a_repository().await;
    let mut packs = objects(&*store).await;
    packs.retain(|path| path.as_ref().contains("/packs/"));
    let mut bad = bytes_of(&*store, &packs[0]).await;
    let middle = bad.len() / 2;
    bad[middle] ^= 0x80;
    put(&*store, &packs[0], bad).await;
    let manifest = tenant.manifest(id).await.unwrap();
    let mut stream = tenant.reader(&manifest).read("orders").unwrap();
    let mut good = Vec::new();
    let error = loop {
        match stream.try_next().await {
            Ok(Some(piece)) => good.extend_from_slice(&piece),
            Ok(None) => panic!("the damage was not seen"),
            Err(error) => break error,
        }
    };
    assert!(
        bytes.starts_with(&good),
        "what was handed out before is authentic"
    );
    let RepositoryError::Damaged(damage) = error else {
        panic!("{error}")
    };
    assert_eq!(damage.object, packs[0].as_ref());
    assert_eq!(damage.stream.as_deref(), Some("orders"));
    assert!(damage.offset.unwrap() >= good.len() as u64);
}

#[tokio::test(flavor = "multi_thread")]
async fn rule_24_a_parent_whose_manifest_is_damaged_behind_its_head_is_passed_over() {
    let (store, tenant, first, bytes) = a_repository().await;
    let second = new_id();
    back_up(&tenant, second, &[("orders", &bytes)])
        .await
        .unwrap();
    let mut paths = objects(&*store).await;
    paths.retain(|path| path.as_ref().contains("/manifests/"));
    for path in paths {
        let mut bad = bytes_of(&*store, &path).await;
        let last = bad.len() - 1;
        bad[last] ^= 1;
        put(&*store, &path, bad).await;
    }
    assert_eq!(damages(&store, first).await.unwrap().len(), 1);
    let listing = tenant.backups().await.unwrap();
    let complete: Vec<_> = listing
        .backups
        .iter()
        .map(|summary| summary.damaged)
        .collect();
    assert_eq!(complete, [true, true]);
    let third = new_id();
    let healed = back_up(&tenant, third, &[("orders", &bytes)])
        .await
        .unwrap();
    assert_eq!(healed.manifest.summary.parent, None);
    assert_eq!(damages(&store, third).await.unwrap(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn p4_two_swapped_manifests_are_found() {
    let (store, tenant, first, bytes) = a_repository().await;
    let second = new_id();
    back_up(&tenant, second, &[("orders", &bytes)])
        .await
        .unwrap();
    let mut paths = objects(&*store).await;
    paths.retain(|path| path.as_ref().contains("/manifests/"));
    let (one, other) = (
        bytes_of(&*store, &paths[0]).await,
        bytes_of(&*store, &paths[1]).await,
    );
    put(&*store, &paths[0], other).await;
    put(&*store, &paths[1], one).await;
    for id in [first, second] {
        let found = damages(&store, id).await.unwrap();
        assert!(found[0].object.contains("/manifests/"), "{found:?}");
    }
    let listing = tenant.backups().await.unwrap();
    assert_eq!((listing.backups.len(), listing.unreadable.len()), (0, 2));
    let stop = CancellationToken::new();
    let check = tenant
        .check(None, &[first, second], &mut |_| {}, &stop)
        .await
        .unwrap();
    assert_eq!(check.damaged.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn rule_24_damage_in_a_pack_that_was_taken_over_reaches_every_backup_and_is_healed_by_the_next()
 {
    let (store, tenant, first, mut bytes) = a_repository().await;
    bytes[1000..2000].fill(b'x');
    let second = new_id();
    let streams: [(&str, &[u8]); 1] = [("orders", &bytes)];
    back_up(&tenant, second, &streams).await.unwrap();
    let manifest = tenant.manifest(second).await.unwrap();
    let old = tenant.manifest(first).await.unwrap();
    let shared = manifest
        .packs
        .iter()
        .find(|pack| {
            old.packs.contains(pack) || old.packs.iter().any(|other| other.name() == pack.name())
        })
        .unwrap();
    let path = objects(&*store)
        .await
        .into_iter()
        .find(|path| path.as_ref().ends_with(&shared.name()))
        .unwrap();
    store.delete(&path).await.unwrap();

    let stop = CancellationToken::new();
    let check = tenant.check(None, &[], &mut |_| {}, &stop).await.unwrap();
    let mut incomplete = check.incomplete.clone();
    incomplete.sort();
    assert_eq!(incomplete, [first, second]);
    let third = new_id();
    back_up(&tenant, third, &streams).await.unwrap();
    assert_eq!(damages(&store, third).await.unwrap(), []);
    assert_reads(&tenant, third, &streams).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn p5_nothing_stored_shows_plaintext_names_or_equal_content() {
    let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let secret = b"the customer's name is Melchior Quasebarth";
    let noise: Vec<u8> = (0..40_000u32)
        .flat_map(|n| blake3::hash(&n.to_le_bytes()).as_bytes()[..8].to_owned())
        .collect();
    let plain = [&noise[..], secret, &noise[..1000], &secret.repeat(2000)].concat();
    let repository = Repository::with_store(store.clone(), "x", options())
        .await
        .unwrap();
    for name in ["shop-of-melchior", "other"] {
        let tenant = repository
            .tenant(&name.parse().unwrap(), &passphrase(), CreateKey::IfAbsent)
            .await
            .unwrap();
        back_up(&tenant, new_id(), &[("public.orders_secret_table", &plain)])
            .await
            .unwrap();
        let held = tenant.backups().await.unwrap().backups[0].id;
        tenant.hold(held, true).await.unwrap();
    }
    let plain_hash = blake3::hash(&plain);
    let needles: [&[u8]; 7] = [
        b"Melchior",
        b"Quasebarth",
        b"orders_secret_table",
        b"orders_of_the_shop",
        b"melchior",
        plain_hash.as_bytes(),
        &noise[500..532],
    ];
    let mut seen = std::collections::HashSet::new();
    for path in objects(&*store).await {
        let bytes = bytes_of(&*store, &path).await;
        for needle in needles {
            assert!(
                !bytes.windows(needle.len()).any(|window| window == needle),
                "{path}"
            );
            assert!(
                !path
                    .as_ref()
                    .as_bytes()
                    .windows(needle.len())
                    .any(|window| window == needle)
            );
        }
        // Equal content of two tenants is not equal in the store.
        if path.as_ref().contains("/packs/") {
            for window in bytes[48..].chunks_exact(32) {
                assert!(seen.insert(window.to_vec()), "{path}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn p3_a_verification_that_goes_on_reads_only_what_was_not_found_sound_before() {
    let (_store, tenant, id, _) = a_repository().await;
    let everything = fettler_repository::Depth::Everything;
    let verified = std::sync::Mutex::<fettler_repository::Verified>::default();
    let stop = CancellationToken::new();
    let stopped = tenant
        .verify_on(id, everything, &verified, &mut |_| stop.cancel(), &stop)
        .await;
    assert!(matches!(stopped, Err(RepositoryError::Stopped)));
    let before = verified.lock().unwrap().bytes();
    assert!(before > 0, "the first pack was verified");

    // As the next attempt finds it, from a checkpoint.
    let saved = serde_json::to_value(&*verified.lock().unwrap()).unwrap();
    let verified = std::sync::Mutex::new(serde_json::from_value(saved).unwrap());
    let mut read = 0;
    let report = tenant
        .verify_on(
            id,
            everything,
            &verified,
            &mut |bytes| read += bytes,
            &CancellationToken::new(),
        )
        .await
        .unwrap();
    assert!(report.is_ok());
    assert_eq!(report.packs_read, report.packs);
    assert_eq!(read + before, report.bytes_read);
}
