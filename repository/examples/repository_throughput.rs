//! How fast the pipeline is: writes a file again and again as streams into a repository and reads it back.
//!
//! `cargo run --release -p fettler-repository --example repository_throughput -- FILE [STREAMS] [THREADS] [FOLDER]`
//! keeps the store in memory unless a folder is named.

use std::{num::NonZeroUsize, sync::Arc, time::Instant};

use bytes::Bytes;
use fettler_model::{BackupId, JobId, Secret, TenantId, Timestamp};
use fettler_repository::{
    BeginBackup, Begun, Chunking, CpuPool, CreateKey, ManifestBody, OpenOptions, Repository,
    StreamEnd, Unlock,
};
use futures::TryStreamExt;

/// What an engine hands over at once.
const PIECE_BYTES: usize = 256 << 10;

type AnyError = Box<dyn std::error::Error + Send + Sync>;

#[tokio::main]
async fn main() -> Result<(), AnyError> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let file = arguments.first().ok_or("name a file")?;
    let number = |at: usize, default| {
        arguments
            .get(at)
            .map_or(Ok(default), |text| text.parse::<usize>())
    };
    let (streams, threads) = (number(1, 4)?, number(2, 2)?);
    let bytes = Bytes::from(std::fs::read(file)?);
    let options = OpenOptions {
        create: true,
        cpu: CpuPool::new(NonZeroUsize::new(threads).ok_or("at least one thread")?),
        ..OpenOptions::default()
    };
    let repository = match arguments.get(3) {
        Some(folder) => Repository::open(folder, options).await?,
        None => {
            let store = Arc::new(object_store::memory::InMemory::new());
            Repository::with_store(store, "memory", options).await?
        }
    };
    let unlock = Unlock::Passphrase(Secret::new("throughput".into()));
    let tenant = repository
        .tenant(&TenantId::default_tenant(), &unlock, CreateKey::IfAbsent)
        .await?;

    let begin = BeginBackup::new(BackupId::of_job(JobId::new()), "throughput");
    let Begun::Writer(writer) = tenant.begin_backup(begin).await? else {
        return Err("the id is new".into());
    };
    let started = Instant::now();
    let part = bytes.len().div_ceil(streams);
    let mut tasks = tokio::task::JoinSet::new();
    for stream in 0..streams {
        let mut writer = writer.open_stream(&format!("part/{stream}"), Chunking::Content)?;
        let begin = (stream * part).min(bytes.len());
        let mut rest = bytes.slice(begin..(begin + part).min(bytes.len()));
        tasks.spawn(async move {
            while !rest.is_empty() {
                writer
                    .write(rest.split_to(rest.len().min(PIECE_BYTES)))
                    .await?;
            }
            writer.finish(StreamEnd::default()).await
        });
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    let body = ManifestBody {
        database_name: "throughput".into(),
        engine: "none".into(),
        tags: Vec::new(),
        started: Timestamp::now(),
        report: serde_json::Value::Null,
    };
    let manifest = writer.commit(body).await?.manifest;
    tell("written", bytes.len(), started);
    println!("{:?}", manifest.summary);

    let started = Instant::now();
    let reader = tenant.reader(&manifest);
    let mut tasks = tokio::task::JoinSet::new();
    for stream in reader.streams() {
        let mut pieces = reader.read(&stream.name)?;
        tasks.spawn(async move {
            let mut total = 0;
            while let Some(piece) = pieces.try_next().await? {
                total += piece.len();
            }
            Ok::<_, fettler_repository::RepositoryError>(total)
        });
    }
    let mut total = 0;
    while let Some(done) = tasks.join_next().await {
        total += done??;
    }
    tell("read", total, started);
    Ok(())
}

fn tell(what: &str, bytes: usize, started: Instant) {
    let seconds = started.elapsed().as_secs_f64();
    println!(
        "{what}: {bytes} bytes in {seconds:.2} s, {:.0} MB/s",
        bytes as f64 / 1e6 / seconds
    );
}
