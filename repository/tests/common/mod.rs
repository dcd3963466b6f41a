//! What the repository's tests share: repositories with small packs, believable and repeatable bytes, and
//! stores that fail, count or lie on purpose.
#![allow(dead_code, missing_docs, clippy::unwrap_used)]

pub mod stores;

use std::{num::NonZeroUsize, sync::Arc};

use bytes::Bytes;
use fettler_model::{BackupId, Secret, TenantId, Timestamp};
use fettler_repository::{
    BackupWriter, BeginBackup, Begun, Chunking, Committed, CpuPool, CreateKey, Manifest,
    ManifestBody, OpenOptions, PassphraseCost, Repository, RepositoryError, Retries, StreamEnd,
    TenantRepository, Unlock,
};
use futures::TryStreamExt;
use object_store::ObjectStore;
use rand::{RngExt, SeedableRng, rngs::StdRng};

/// Sizes of tests: chunks of 4 KiB on the average, packs of 512 KiB.
pub const DIVIDED_BY: u32 = 64;

pub fn options() -> OpenOptions {
    OpenOptions {
        create: true,
        cpu: CpuPool::new(NonZeroUsize::new(2).unwrap()),
        passphrase_cost: PassphraseCost {
            memory_kib: 64,
            passes: 1,
        },
        retries: Retries(0),
        new_with_sizes_divided_by: DIVIDED_BY,
    }
}

pub fn passphrase() -> Unlock {
    Unlock::Passphrase(Secret::new("correct horse battery staple".into()))
}

pub fn shop() -> TenantId {
    "shop".parse().unwrap()
}

/// The tenant `shop` of a repository in this store.
pub async fn tenant_in(store: Arc<dyn ObjectStore>) -> Result<TenantRepository, RepositoryError> {
    let repository = Repository::with_store(store, "the tests' store", options()).await?;
    repository
        .tenant(&shop(), &passphrase(), CreateKey::IfAbsent)
        .await
}

pub fn random(seed: u64) -> StdRng {
    StdRng::seed_from_u64(seed)
}

pub fn new_id() -> BackupId {
    BackupId::from_uuid(uuid::Uuid::now_v7())
}

/// Rows that compress like those of a database.
pub fn rows(seed: u64, bytes: usize) -> Vec<u8> {
    use std::io::Write;
    let mut random = random(seed);
    let mut text = Vec::with_capacity(bytes + 128);
    let mut number = 0u64;
    while text.len() < bytes {
        number += 1;
        let (customer, cents): (u32, u32) = (random.random_range(0..100_000), random.random());
        writeln!(
            text,
            "{number}\tcustomer-{customer}\t{}.{:02}\t{:016x}\tshipped to the usual place",
            cents / 100 % 10_000,
            cents % 100,
            random.random::<u64>()
        )
        .unwrap();
    }
    text.truncate(bytes);
    text
}

pub async fn begin(
    tenant: &TenantRepository,
    begin: BeginBackup,
) -> Result<BackupWriter, RepositoryError> {
    match tenant.begin_backup(begin).await? {
        Begun::Writer(writer) => Ok(writer),
        Begun::AlreadyCommitted(manifest) => panic!("{} is committed already", manifest.id()),
    }
}

pub async fn write_stream(
    writer: &BackupWriter,
    name: &str,
    chunking: Chunking,
    bytes: &[u8],
) -> Result<(), RepositoryError> {
    let mut stream = writer.open_stream(name, chunking)?;
    for piece in bytes.chunks(100_000) {
        stream.write(Bytes::copy_from_slice(piece)).await?;
    }
    let end = StreamEnd {
        rows: 1,
        unchanged_marker: None,
    };
    let record = stream.finish(end).await?;
    assert_eq!(record.bytes, bytes.len() as u64);
    Ok(())
}

pub fn body() -> ManifestBody {
    ManifestBody {
        database_name: "orders_of_the_shop".into(),
        engine: "postgres".into(),
        tags: Vec::new(),
        started: Timestamp::now(),
        report: serde_json::json!({"tables": ["public.orders"]}),
    }
}

/// A whole backup of these streams.
pub async fn back_up(
    tenant: &TenantRepository,
    id: BackupId,
    streams: &[(&str, &[u8])],
) -> Result<Committed, RepositoryError> {
    let writer = match tenant.begin_backup(BeginBackup::new(id, "shop-db")).await? {
        Begun::Writer(writer) => writer,
        Begun::AlreadyCommitted(manifest) => {
            return Ok(Committed {
                manifest: *manifest,
                adopted: true,
            });
        }
    };
    for (name, bytes) in streams {
        write_stream(&writer, name, Chunking::Content, bytes).await?;
    }
    writer.commit(body()).await
}

pub async fn read_stream(
    tenant: &TenantRepository,
    manifest: &Manifest,
    name: &str,
) -> Result<Vec<u8>, RepositoryError> {
    let pieces: Vec<Bytes> = tenant.reader(manifest).read(name)?.try_collect().await?;
    Ok(pieces.concat())
}

/// Reads a backup again by its id and compares its streams.
pub async fn assert_reads(tenant: &TenantRepository, id: BackupId, streams: &[(&str, &[u8])]) {
    let manifest = tenant.manifest(id).await.unwrap();
    assert_eq!(manifest.streams.len(), streams.len());
    for (name, bytes) in streams {
        let read = read_stream(tenant, &manifest, name).await.unwrap();
        assert!(read == *bytes, "stream {name} of {id} differs");
    }
}

pub async fn verify_everything(
    tenant: &TenantRepository,
    id: BackupId,
) -> fettler_repository::VerifyReport {
    tenant
        .verify(
            id,
            fettler_repository::Depth::Everything,
            &mut |_| {},
            &tokio_util::sync::CancellationToken::new(),
        )
        .await
        .unwrap()
}
