//! What the engine's tests share: streams in memory that can be broken on purpose, an attempt, and the
//! comparison that a proof makes.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use fettler_engine::{
    Artefact, Artefacts, AttemptName, BackupOptions, BackupReport, Cut, DatabaseEngine,
    EngineContext, EngineError, ProgressMeter, RateLimit, RestoreOptions, RestoreReport, Sandbox,
    SandboxRequest, SandboxSpec, StreamEnd, StreamFacts, StreamReader, StreamSink, StreamSource,
    StreamWriter, Target, Unfenced, Unrecorded,
};
use fettler_engine_postgres::PostgresEngine;
use fettler_model::{AttemptToken, DatabaseUrl, JobId, ObjectFacts, ObjectKind};
use fettler_test_servers::PgMajor;
use futures::StreamExt;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

/// Streams in memory.
#[derive(Debug, Default)]
pub struct Memory {
    streams: Arc<Mutex<BTreeMap<String, (Bytes, u64)>>>,
    list: Vec<StreamFacts>,
    /// Every stream is handed out in pieces of this size.
    pub piece_bytes: usize,
    /// Called with the bytes that were written so far, in all.
    pub on_write: Option<Watcher>,
    /// Called with the bytes that were read so far, in all.
    pub on_read: Option<Watcher>,
    pub written: Arc<AtomicU64>,
    pub read: Arc<AtomicU64>,
    /// The first table that is read waits here before its first piece.
    pub hold_first_table: Option<Arc<Semaphore>>,
    /// Whether it does.
    pub is_held: Arc<AtomicBool>,
}

/// Looks at each piece; an error is what the other end sees.
#[derive(Clone)]
pub struct Watcher(pub Arc<dyn Fn(&str, u64) -> Result<(), EngineError> + Send + Sync>);

impl std::fmt::Debug for Watcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Watcher")
    }
}

impl Memory {
    pub fn new() -> Self {
        Self {
            piece_bytes: 100_000,
            ..Self::default()
        }
    }

    /// Makes what was written readable.
    pub fn seal(mut self) -> Self {
        self.list = self
            .streams
            .lock()
            .unwrap()
            .iter()
            .map(|(name, (bytes, rows))| StreamFacts {
                name: name.clone(),
                bytes: bytes.len() as u64,
                rows: *rows,
            })
            .collect();
        self
    }

    pub fn names(&self) -> Vec<String> {
        self.streams.lock().unwrap().keys().cloned().collect()
    }

    pub fn bytes(&self, name: &str) -> Bytes {
        self.streams.lock().unwrap()[name].0.clone()
    }

    pub fn replace(&self, name: &str, bytes: Bytes) {
        self.streams.lock().unwrap().get_mut(name).unwrap().0 = bytes;
    }
}

struct Writer {
    name: String,
    bytes: BytesMut,
    streams: Arc<Mutex<BTreeMap<String, (Bytes, u64)>>>,
    watcher: Option<Watcher>,
    written: Arc<AtomicU64>,
}

#[async_trait]
impl StreamSink for Memory {
    async fn open(&self, name: &str, _: Cut) -> Result<Box<dyn StreamWriter>, EngineError> {
        assert!(
            !self.streams.lock().unwrap().contains_key(name),
            "{name} twice"
        );
        Ok(Box::new(Writer {
            name: name.to_owned(),
            bytes: BytesMut::new(),
            streams: Arc::clone(&self.streams),
            watcher: self.on_write.clone(),
            written: Arc::clone(&self.written),
        }))
    }

    async fn take_over(&self, _: &str, _: &str) -> Result<Option<StreamFacts>, EngineError> {
        Ok(None)
    }
}

#[async_trait]
impl StreamWriter for Writer {
    async fn write(&mut self, bytes: Bytes) -> Result<(), EngineError> {
        let all = self
            .written
            .fetch_add(bytes.len() as u64, Ordering::Relaxed)
            + bytes.len() as u64;
        if let Some(watcher) = &self.watcher {
            (watcher.0)(&self.name, all)?;
        }
        self.bytes.extend_from_slice(&bytes);
        Ok(())
    }

    async fn finish(self: Box<Self>, end: StreamEnd) -> Result<StreamFacts, EngineError> {
        let facts = StreamFacts {
            name: self.name.clone(),
            bytes: self.bytes.len() as u64,
            rows: end.rows,
        };
        self.streams
            .lock()
            .unwrap()
            .insert(self.name, (self.bytes.freeze(), end.rows));
        Ok(facts)
    }
}

#[async_trait]
impl StreamSource for Memory {
    fn streams(&self) -> &[StreamFacts] {
        &self.list
    }

    async fn read(&self, name: &str) -> Result<StreamReader, EngineError> {
        let mut rest = self.bytes(name);
        let piece = self.piece_bytes;
        let (watcher, read, name) = (
            self.on_read.clone(),
            Arc::clone(&self.read),
            name.to_owned(),
        );
        let hold = self
            .hold_first_table
            .clone()
            .filter(|_| name.starts_with("table/") && !self.is_held.swap(true, Ordering::SeqCst));
        let held = futures::stream::once(async move {
            if let Some(hold) = hold {
                hold.acquire().await.unwrap().forget();
            }
            Ok(Bytes::new())
        });
        Ok(held
            .chain(futures::stream::iter(std::iter::from_fn(move || {
                if rest.is_empty() {
                    return None;
                }
                let bytes = rest.split_to(rest.len().min(piece));
                let all =
                    read.fetch_add(bytes.len() as u64, Ordering::Relaxed) + bytes.len() as u64;
                Some(match &watcher {
                    Some(watcher) => (watcher.0)(&name, all).map(|()| bytes),
                    None => Ok(bytes),
                })
            })))
            .boxed())
    }
}

/// Remembers what is recorded and not removed.
#[derive(Debug, Default)]
pub struct Ledger(pub Mutex<Vec<Artefact>>);

#[async_trait]
impl Artefacts for Ledger {
    async fn record(&self, artefact: &Artefact) -> Result<(), EngineError> {
        let mut all = self.0.lock().unwrap();
        all.retain(|known| (&known.kind, &known.name) != (&artefact.kind, &artefact.name));
        all.push(artefact.clone());
        Ok(())
    }

    async fn removed(&self, artefact: &Artefact) -> Result<(), EngineError> {
        self.0
            .lock()
            .unwrap()
            .retain(|known| (&known.kind, &known.name) != (&artefact.kind, &artefact.name));
        Ok(())
    }
}

/// An attempt with a folder of its own, which goes with it.
pub struct Attempt {
    pub context: EngineContext,
    pub ledger: Arc<Ledger>,
    _folder: tempfile::TempDir,
}

impl Attempt {
    pub fn new() -> Self {
        Self::of(JobId::new(), 1)
    }

    pub fn of(job: JobId, number: u32) -> Self {
        let folder = tempfile::Builder::new()
            .prefix("fettler-")
            .tempdir()
            .unwrap();
        let ledger = Arc::new(Ledger::default());
        Self {
            context: EngineContext {
                attempt: AttemptName {
                    job,
                    token: AttemptToken::new(number, 7),
                },
                stop: CancellationToken::new(),
                progress: Arc::new(ProgressMeter::default()),
                fence: Arc::new(Unfenced),
                artefacts: Arc::clone(&ledger) as Arc<dyn Artefacts>,
                checkpoints: Arc::new(Unrecorded),
                fingerprint_key: [42; 32],
                rate: Arc::new(RateLimit::default()),
                scratch: folder.path().to_owned(),
                kept: folder.path().to_owned(),
                parallel: 3,
            },
            ledger,
            _folder: folder,
        }
    }
}

/// The engine with the programs of a version, cutting tables into many ranges.
pub fn engine(major: PgMajor) -> PostgresEngine {
    PostgresEngine::default()
        .with_program_folders(vec![major.bin_dir().unwrap()])
        .with_range_pages(16)
}

/// The engine with the programs of both versions.
pub fn engine_of_both() -> PostgresEngine {
    let folders: Vec<PathBuf> = PgMajor::ALL
        .iter()
        .map(|major| major.bin_dir().unwrap())
        .collect();
    PostgresEngine::default()
        .with_program_folders(folders)
        .with_range_pages(16)
}

pub fn target(url: &str) -> Target {
    let (url, password) = DatabaseUrl::parse_with_password(url).unwrap();
    Target { url, password }
}

/// The URL of another database on the same server.
pub fn beside(url: &str, database: &str) -> String {
    let mut url = url::Url::parse(url).unwrap();
    url.set_path(database);
    url.into()
}

pub async fn back_up(engine: &PostgresEngine, url: &str) -> (Memory, BackupReport) {
    let sink = Memory::new();
    let report = engine
        .backup(
            &Attempt::new().context,
            &target(url),
            &BackupOptions::default(),
            &sink,
        )
        .await
        .unwrap();
    (sink.seal(), report)
}

pub async fn restore(
    engine: &PostgresEngine,
    backup: &Memory,
    report: &BackupReport,
    url: &str,
) -> RestoreReport {
    engine
        .restore(
            &Attempt::new().context,
            backup,
            report,
            &target(url),
            &RestoreOptions::default(),
        )
        .await
        .unwrap()
}

/// A private server for a proof, removed by [`close`].
pub async fn open_sandbox(
    engine: &PostgresEngine,
    attempt: &Attempt,
    report: &BackupReport,
) -> Sandbox {
    let request = SandboxRequest {
        spec: SandboxSpec::Automatic,
        server: None,
        identity: report.identity.clone(),
        estimated_bytes: report.identity.estimated_bytes,
        left: None,
    };
    engine
        .open_sandbox(&attempt.context, &request)
        .await
        .unwrap()
}

pub async fn close(engine: &PostgresEngine, sandbox: &Sandbox) {
    for artefact in &sandbox.artefacts {
        engine.remove_artefact(artefact, None).await.unwrap();
    }
}

/// What a proof would find wrong: counts by another path, fingerprints, values, objects that are missing or new.
pub fn mismatches(expected: &[ObjectFacts], copy: &[ObjectFacts]) -> Vec<String> {
    let mut found = Vec::new();
    let named = |object: &ObjectFacts| format!("{:?} {}", object.kind, object.name);
    for object in expected {
        if let Some(fingerprint) = object.fingerprint
            && object.independent_rows != Some(fingerprint.rows)
        {
            found.push(format!(
                "{}: {:?} counted, {} read",
                named(object),
                object.independent_rows,
                fingerprint.rows
            ));
        }
        if object.kind == ObjectKind::MaterializedView {
            continue;
        }
        let same = |other: &&ObjectFacts| other.kind == object.kind && other.name == object.name;
        match copy.iter().find(same) {
            None => found.push(format!("{} is missing", named(object))),
            Some(other) if other.fingerprint != object.fingerprint => found.push(format!(
                "{}: {:?} instead of {:?}",
                named(object),
                other.fingerprint,
                object.fingerprint
            )),
            Some(other) if other.value != object.value => found.push(format!(
                "{}: {:?} instead of {:?}",
                named(object),
                other.value,
                object.value
            )),
            Some(_) => {}
        }
    }
    for object in copy {
        let same = |other: &&ObjectFacts| other.kind == object.kind && other.name == object.name;
        if !expected.iter().any(|other| same(&other)) {
            found.push(format!("{} is new", named(object)));
        }
    }
    found
}

/// Restores into a private server, reads the copy, and says what differs; removes the server.
pub async fn prove(engine: &PostgresEngine, backup: &Memory, report: &BackupReport) -> Vec<String> {
    let attempt = Attempt::new();
    let sandbox = open_sandbox(engine, &attempt, report).await;
    let restored = engine
        .restore(
            &attempt.context,
            backup,
            report,
            &sandbox.target,
            &RestoreOptions::default(),
        )
        .await
        .unwrap();
    let copy = engine
        .facts(&attempt.context, &sandbox.target, report)
        .await
        .unwrap();
    close(engine, &sandbox).await;
    let mut found = restored.failed_statements;
    found.extend(mismatches(&report.objects, &copy));
    found
}
