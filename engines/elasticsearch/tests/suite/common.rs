//! Servers with data of every type, attempts, proofs, and a front that makes a server refuse.

use std::{
    collections::BTreeMap,
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use fettler_engine::{
    BackupOptions, BackupReport, DatabaseEngine as _, EngineContext, EngineError, RestoreOptions,
    RestoreReport, SandboxRequest, SandboxSpec, Target,
    testing::{MemoryRecord, MemorySink, MemorySource, context},
};
use fettler_engine_elasticsearch::ElasticsearchEngine;
use fettler_model::{DatabaseUrl, JobId, ObjectFacts};
pub use fettler_test_servers::SearchKind::{self, Elasticsearch, OpenSearch};
use fettler_test_servers::{SearchServer, wait_until};
use serde_json::{Value, json};

/// How long a server may have no memory for a request: until its garbage is collected.
const FULL_WITHIN: Duration = Duration::from_secs(60);

pub fn engine() -> ElasticsearchEngine {
    ElasticsearchEngine::new()
}

/// An attempt of a job of its own, with a folder that goes with it.
pub struct Attempt {
    pub context: EngineContext,
    pub record: Arc<MemoryRecord>,
    pub job: JobId,
    folder: tempfile::TempDir,
}

impl Attempt {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (record, job) = (Arc::default(), JobId::new());
        Self {
            context: context(job, 1, folder.path(), &record),
            record,
            job,
            folder,
        }
    }

    /// The next attempt of the same job.
    pub fn next(&self, number: u32) -> EngineContext {
        context(self.job, number, self.folder.path(), &self.record)
    }
}

/// The part of the shared server that one test has for itself: indices whose names begin with its own letters.
#[derive(Clone, Copy)]
pub struct Place {
    pub server: &'static SearchServer,
    number: u32,
}

impl Place {
    pub fn new(kind: SearchKind) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        Self {
            server: SearchServer::shared(kind),
            number: NUMBER.fetch_add(1, Ordering::Relaxed),
        }
    }

    /// A name of this test's own.
    pub fn name(self, name: &str) -> String {
        format!("t{}-{name}", self.number)
    }

    /// What a backup of this test's indices alone is made from.
    pub fn url(self) -> String {
        format!("{}/{}", self.server.url(), self.name("*"))
    }

    /// A target on the same server, whose names all begin with other letters.
    pub fn copy_url(self) -> String {
        format!("{}?prefix={}", self.server.url(), self.copy(""))
    }

    /// What an index is called in that copy.
    pub fn copy(self, name: &str) -> String {
        format!("c{}-{name}", self.number)
    }

    pub fn send(self, method: &str, path: &str, body: &Value) -> Value {
        send(self.server, method, path, body)
    }

    /// Makes an index.
    pub fn make(self, name: &str, body: &Value) -> String {
        let name = self.name(name);
        self.send("PUT", &format!("/{name}"), body);
        name
    }

    /// Writes documents and makes them visible.
    pub fn write(self, index: &str, lines: &str) {
        write(self.server, index, lines);
        self.send("POST", &format!("/{index}/_refresh"), &Value::Null);
    }
}

/// Sends a request, again where the server has no memory for it at the moment.
fn ask(server: &SearchServer, method: &str, path: &str, body: &str) -> (u16, String) {
    let mut answer = (0, String::new());
    let is_taken = wait_until("the server to take a request", FULL_WITHIN, || {
        answer = server.request(method, path, body).unwrap();
        answer.0 != 429
    });
    assert!(is_taken.is_ok(), "{method} {path}: {answer:?}");
    answer
}

/// Sends a request that has to succeed.
pub fn send(server: &SearchServer, method: &str, path: &str, body: &Value) -> Value {
    let text = if body.is_null() {
        String::new()
    } else {
        body.to_string()
    };
    let (status, answer) = ask(server, method, path, &text);
    assert!(
        (200..300).contains(&status),
        "{method} {path}: {status} {answer}"
    );
    serde_json::from_str(&answer).unwrap_or_default()
}

/// Sends lines of a bulk request, each of which has to succeed.
pub fn write(server: &SearchServer, index: &str, lines: &str) {
    let (status, answer) = ask(server, "POST", &format!("/{index}/_bulk"), lines);
    let answer: Value = serde_json::from_str(&answer).unwrap_or_default();
    assert!(
        status == 200 && answer["errors"] == false,
        "{index}: {status} {answer}"
    );
}

/// Lines that write numbered documents.
pub fn numbered(range: std::ops::Range<u32>, text: &str) -> String {
    range
        .map(|at| {
            format!("{{\"index\":{{\"_id\":\"d{at}\"}}}}\n{{\"at\":{at},\"text\":\"{text} {at} {}\"}}\n", noise(at))
        })
        .collect()
}

/// Letters that look like no others.
pub fn noise(seed: u32) -> String {
    let mut state = u64::from(seed) * 2 + 1;
    (0..12)
        .map(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            format!("{:08x}", state >> 32)
        })
        .collect()
}

/// All documents of an index as the server gives them to anybody: the text of each, by id.
pub fn documents(server: &SearchServer, index: &str) -> BTreeMap<String, Value> {
    let answer = send(
        server,
        "POST",
        &format!("/{index}/_search?version=true&size=10000"),
        &json!({"query": {"match_all": {}}}),
    );
    answer["hits"]["hits"]
        .as_array()
        .unwrap()
        .iter()
        .map(|hit| {
            let id = hit["_id"].as_str().unwrap().to_owned();
            (
                id,
                json!([hit["_routing"], hit["_version"], hit["_source"]]),
            )
        })
        .collect()
}

pub fn count(server: &SearchServer, index: &str) -> u64 {
    send(server, "GET", &format!("/{index}/_count"), &Value::Null)["count"]
        .as_u64()
        .unwrap()
}

pub fn exists(server: &SearchServer, index: &str) -> bool {
    server.request("GET", &format!("/{index}"), "").unwrap().0 == 200
}

pub fn target(url: &str) -> Target {
    let (url, password) = DatabaseUrl::parse_with_password(url).unwrap();
    Target { url, password }
}

pub async fn try_back_up_by(
    engine: ElasticsearchEngine,
    url: &str,
    options: &BackupOptions,
) -> Result<(MemorySource, BackupReport), EngineError> {
    let sink = MemorySink::default();
    let report = engine
        .backup(&Attempt::new().context, &target(url), options, &sink)
        .await?;
    Ok((sink.source(), report))
}

pub async fn try_back_up(url: &str) -> Result<(MemorySource, BackupReport), EngineError> {
    try_back_up_by(engine(), url, &BackupOptions::default()).await
}

/// A backup that may take over what an earlier one holds.
pub async fn back_up_after(url: &str, parent: &MemorySink) -> (MemorySink, BackupReport) {
    let mut sink = MemorySink::default();
    sink.parent = parent.streams();
    let report = engine()
        .backup(
            &Attempt::new().context,
            &target(url),
            &BackupOptions::default(),
            &sink,
        )
        .await
        .unwrap();
    (sink, report)
}

pub async fn back_up(url: &str) -> (MemorySource, BackupReport) {
    try_back_up(url).await.unwrap()
}

pub async fn try_restore(
    backup: &MemorySource,
    report: &BackupReport,
    url: &str,
    options: &RestoreOptions,
) -> Result<RestoreReport, EngineError> {
    engine()
        .restore(
            &Attempt::new().context,
            backup,
            report,
            &target(url),
            options,
        )
        .await
}

pub async fn restore(backup: &MemorySource, report: &BackupReport, url: &str) -> RestoreReport {
    let restored = try_restore(backup, report, url, &RestoreOptions::default())
        .await
        .unwrap();
    assert_eq!(restored.failed_statements, Vec::<String>::new());
    restored
}

/// What is in a copy.
pub async fn facts(report: &BackupReport, url: &str) -> Vec<ObjectFacts> {
    engine()
        .facts(&Attempt::new().context, &target(url), report)
        .await
        .unwrap()
}

/// What a proof would find wrong.
pub fn mismatches(expected: &[ObjectFacts], copy: &[ObjectFacts]) -> Vec<String> {
    let same =
        |one: &ObjectFacts, other: &ObjectFacts| one.kind == other.kind && one.name == other.name;
    let mut found = Vec::new();
    for object in expected {
        if let Some(fingerprint) = object.fingerprint
            && object.independent_rows != Some(fingerprint.rows)
        {
            found.push(format!(
                "{}: {:?} counted, {} read",
                object.name, object.independent_rows, fingerprint.rows
            ));
        }
        if object.fingerprint.is_none() && object.value.is_none() {
            continue;
        }
        match copy.iter().find(|other| same(other, object)) {
            None => found.push(format!("{:?} {} is missing", object.kind, object.name)),
            Some(other)
                if other.fingerprint != object.fingerprint || other.value != object.value =>
            {
                found.push(format!(
                    "{:?} {}: {:?} {:?} instead of {:?} {:?}",
                    object.kind,
                    object.name,
                    other.fingerprint,
                    other.value,
                    object.fingerprint,
                    object.value
                ));
            }
            Some(_) => {}
        }
    }
    for object in copy {
        if !expected.iter().any(|other| same(other, object)) {
            found.push(format!("{:?} {} is new", object.kind, object.name));
        }
    }
    found
}

pub fn request(report: &BackupReport, server: &SearchServer) -> SandboxRequest {
    SandboxRequest {
        spec: SandboxSpec::SourceServer,
        server: Some(target(&server.url())),
        identity: report.identity.clone(),
        estimated_bytes: 0,
        left: None,
    }
}

/// Proves a backup in scratch indices; `meddle` may change the copy before it is compared and is given its prefix.
pub async fn prove_after(
    server: &SearchServer,
    backup: &MemorySource,
    report: &BackupReport,
    meddle: impl FnOnce(&str),
) -> Vec<String> {
    let attempt = Attempt::new();
    let sandbox = engine()
        .open_sandbox(&attempt.context, &request(report, server))
        .await
        .unwrap();
    let restored = engine()
        .restore(
            &attempt.context,
            backup,
            report,
            &sandbox.target,
            &RestoreOptions::default(),
        )
        .await
        .unwrap();
    let prefix = sandbox.target.url.as_str().split("prefix=").nth(1).unwrap();
    meddle(prefix);
    let copy = engine()
        .facts(&attempt.context, &sandbox.target, report)
        .await
        .unwrap();
    for artefact in &sandbox.artefacts {
        engine()
            .remove_artefact(artefact, Some(&target(&server.url())))
            .await
            .unwrap();
    }
    let (_, left) = server
        .request(
            "GET",
            &format!("/_cat/indices/{prefix}*?expand_wildcards=all"),
            "",
        )
        .unwrap();
    assert_eq!(left.trim(), "", "scratch indices are left");
    let mut found = restored.failed_statements;
    found.extend(mismatches(&report.objects, &copy));
    found
}

pub async fn prove(
    server: &SearchServer,
    backup: &MemorySource,
    report: &BackupReport,
) -> Vec<String> {
    prove_after(server, backup, report, |_| ()).await
}

/// A server of HTTP before a real one, which answers some requests itself: a method and a path to an answer.
pub struct Front {
    port: u16,
    scheme: &'static str,
}

impl Front {
    pub fn before(
        server: &'static SearchServer,
        rule: impl Fn(&str, &str) -> Option<(u16, String)> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let rule = Arc::new(rule);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (stream, rule) = (stream.unwrap(), Arc::clone(&rule));
                std::thread::spawn(move || {
                    // A client that goes away is none of this thread's business.
                    let _gone = serve(server, stream, &*rule);
                });
            }
        });
        let scheme = match server.kind() {
            Elasticsearch => "elasticsearch",
            OpenSearch => "opensearch",
        };
        Self { port, scheme }
    }

    /// The URL of what follows the port in another one.
    pub fn url(&self, like: &str) -> String {
        let rest = like.split(':').nth(2).unwrap_or_default();
        let rest = rest.trim_start_matches(|letter: char| letter.is_ascii_digit());
        format!("{}://127.0.0.1:{}{rest}", self.scheme, self.port)
    }
}

/// The answer to a method and a path, where the front gives one itself.
type Rule = dyn Fn(&str, &str) -> Option<(u16, String)>;

fn serve(server: &SearchServer, mut stream: TcpStream, rule: &Rule) -> std::io::Result<()> {
    let mut buffer = Vec::new();
    loop {
        let head = loop {
            if let Some(at) = buffer.windows(4).position(|four| four == b"\r\n\r\n") {
                break at + 4;
            }
            let mut piece = [0; 65536];
            let count = stream.read(&mut piece)?;
            if count == 0 {
                return Ok(());
            }
            buffer.extend_from_slice(&piece[..count]);
        };
        let text = String::from_utf8_lossy(&buffer[..head]).into_owned();
        let length: usize = text
            .to_ascii_lowercase()
            .lines()
            .find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok())
            .unwrap_or(0);
        while buffer.len() < head + length {
            let mut piece = [0; 65536];
            let count = stream.read(&mut piece)?;
            buffer.extend_from_slice(&piece[..count]);
        }
        let body = String::from_utf8_lossy(&buffer[head..head + length]).into_owned();
        buffer.drain(..head + length);
        let mut words = text.split(' ');
        let (method, path) = (words.next().unwrap(), words.next().unwrap());
        let (status, answer) =
            rule(method, path).unwrap_or_else(|| server.request(method, path, &body).unwrap());
        write!(
            stream,
            "HTTP/1.1 {status} x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{answer}",
            answer.len()
        )?;
    }
}
