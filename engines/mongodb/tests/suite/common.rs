//! Servers with data of every type, attempts, and proofs.

use std::sync::Arc;

use bson::{
    Binary, Bson, DateTime, Decimal128, Document, Regex, Timestamp, doc, oid::ObjectId,
    spec::BinarySubtype,
};
use fettler_engine::{
    BackupOptions, BackupReport, DatabaseEngine as _, EngineContext, EngineError, RestoreOptions,
    RestoreReport, Sandbox, SandboxRequest, SandboxSpec, Target,
    testing::{MemoryRecord, MemorySink, MemorySource, context},
};
use fettler_engine_mongodb::MongodbEngine;
use fettler_model::{DatabaseUrl, JobId, ObjectFacts};
use fettler_test_servers::{MongodbClient, MongodbKind, MongodbServer};

pub const ENGINE: MongodbEngine = MongodbEngine::new();

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

pub fn server(kind: MongodbKind) -> MongodbServer {
    MongodbServer::start(kind).unwrap()
}

pub fn client(server: &MongodbServer) -> MongodbClient {
    MongodbClient::new(server.port())
}

pub fn target(url: &str) -> Target {
    let (url, password) = DatabaseUrl::parse_with_password(url).unwrap();
    Target { url, password }
}

pub async fn try_back_up(url: &str) -> Result<(MemorySource, BackupReport), EngineError> {
    let sink = MemorySink::default();
    let report = ENGINE
        .backup(
            &Attempt::new().context,
            &target(url),
            &BackupOptions::default(),
            &sink,
        )
        .await?;
    Ok((sink.source(), report))
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
    ENGINE
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
    try_restore(backup, report, url, &RestoreOptions::default())
        .await
        .unwrap()
}

/// What is in a server that is no sandbox.
pub async fn facts(report: &BackupReport, url: &str) -> Vec<ObjectFacts> {
    ENGINE
        .facts(&Attempt::new().context, &target(url), report)
        .await
        .unwrap()
}

pub fn request(report: &BackupReport, server: &str) -> SandboxRequest {
    let server = target(server);
    SandboxRequest {
        spec: SandboxSpec::Server {
            url: server.url.clone(),
            password: None,
        },
        server: Some(server),
        identity: report.identity.clone(),
        estimated_bytes: 0,
        left: None,
    }
}

pub async fn close(sandbox: &Sandbox, server: &str) {
    for artefact in &sandbox.artefacts {
        ENGINE
            .remove_artefact(artefact, Some(&target(server)))
            .await
            .unwrap();
    }
}

/// What a proof would find wrong.
pub fn mismatches(expected: &[ObjectFacts], copy: &[ObjectFacts]) -> Vec<String> {
    let mut found = Vec::new();
    let same =
        |one: &ObjectFacts, other: &ObjectFacts| one.name == other.name && one.kind == other.kind;
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
        match copy.iter().find(|other| same(object, other)) {
            None => found.push(format!("{} is missing", object.name)),
            Some(other)
                if other.fingerprint != object.fingerprint || other.value != object.value =>
            {
                found.push(format!(
                    "{}: {:?} {:?} instead of {:?} {:?}",
                    object.name, other.fingerprint, other.value, object.fingerprint, object.value
                ));
            }
            Some(_) => {}
        }
    }
    for object in copy {
        if !expected.iter().any(|other| same(object, other)) {
            found.push(format!("{} is new", object.name));
        }
    }
    found
}

/// Proves a backup in a scratch area of a server; `meddle` may change the copy before it is compared, and is told how the
/// names of its databases begin.
pub async fn prove_after(
    backup: &MemorySource,
    report: &BackupReport,
    on: &MongodbServer,
    meddle: impl FnOnce(&mut MongodbClient, &str),
) -> Vec<String> {
    let attempt = Attempt::new();
    let sandbox = ENGINE
        .open_sandbox(&attempt.context, &request(report, &on.url()))
        .await
        .unwrap();
    let restored = ENGINE
        .restore(
            &attempt.context,
            backup,
            report,
            &sandbox.target,
            &RestoreOptions::default(),
        )
        .await
        .unwrap();
    let url = sandbox.target.url.to_string();
    let prefix = url.split("fettlerScratch=").nth(1).unwrap();
    meddle(&mut client(on), prefix);
    let copy = ENGINE
        .facts(&attempt.context, &sandbox.target, report)
        .await
        .unwrap();
    close(&sandbox, &on.url()).await;
    let left = client(on).databases();
    assert!(
        !left.iter().any(|name| name.starts_with(prefix)),
        "{left:?}"
    );
    let mut found = restored.failed_statements;
    found.extend(mismatches(&report.objects, &copy));
    found
}

pub async fn prove(
    backup: &MemorySource,
    report: &BackupReport,
    on: &MongodbServer,
) -> Vec<String> {
    prove_after(backup, report, on, |_, _| ()).await
}

/// Bytes that look like nothing else.
pub fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    (0..length)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u8
        })
        .collect()
}

/// Documents as a shop has them.
pub fn orders(from: i32, to: i32) -> Vec<Document> {
    (from..to)
        .map(|n| {
            doc! {
                "_id": n,
                "customer": format!("customer {}", n % 97),
                "total": f64::from(n) / 8.0,
                "lines": [{ "sku": n * 3, "count": n % 5 }, { "sku": n * 7, "count": 1 }],
                "note": hex(&noise(40, n as u64)),
            }
        })
        .collect()
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Puts values of every type that the server knows, and what it can have beside documents, into a server.
pub fn fill(server: &MongodbServer) {
    let has_all = server.kind() == MongodbKind::WithOplog;
    let client = &mut client(server);
    let binary = |subtype: BinarySubtype, bytes: Vec<u8>| Bson::Binary(Binary { subtype, bytes });
    let mut values = vec![
        Bson::Double(0.1),
        Bson::Double(1e300),
        Bson::Double(5e-324),
        Bson::Int32(i32::MIN),
        Bson::Int64(i64::MAX),
        Bson::Int64(9_007_199_254_740_993),
        Bson::String(String::new()),
        Bson::String("schl\u{fc}ssel \u{1f511}".to_owned()),
        Bson::Boolean(true),
        Bson::Boolean(false),
        Bson::Null,
        Bson::ObjectId(ObjectId::from_bytes([7; 12])),
        Bson::DateTime(DateTime::from_millis(1_700_000_000_123)),
        Bson::DateTime(DateTime::from_millis(-1)),
        binary(BinarySubtype::Generic, noise(300, 1)),
        binary(BinarySubtype::Uuid, noise(16, 2)),
        Bson::RegularExpression(Regex {
            pattern: bson::cstr!("^a.*b$").to_owned(),
            options: bson::cstr!("i").to_owned(),
        }),
        Bson::Timestamp(Timestamp {
            time: 5,
            increment: 6,
        }),
        Bson::Array(Vec::new()),
        Bson::Array(vec![
            Bson::Int32(1),
            Bson::String("two".to_owned()),
            Bson::Null,
        ]),
        Bson::Document(doc! {}),
        Bson::Document(doc! { "z": 1, "a": { "m": [{ "x": 1 }] } }),
    ];
    if has_all {
        values.extend([
            Bson::Decimal128("1.20".parse::<Decimal128>().unwrap()),
            Bson::Double(f64::INFINITY),
            Bson::Double(f64::NAN),
            Bson::Double(-0.0),
            Bson::MinKey,
            Bson::MaxKey,
            Bson::JavaScriptCode("x + 1".to_owned()),
        ]);
    }
    for (at, value) in values.into_iter().enumerate() {
        let number = at as i32;
        // FerretDB has no lists of lists.
        let list = match &value {
            Bson::Array(_) if !has_all => Vec::new(),
            value => vec![value.clone()],
        };
        let inserted = client.try_run(
            "types",
            doc! { "insert": "values", "documents": [{ "_id": number, "value": value.clone(), "list": list }] },
        );
        assert!(inserted.is_ok(), "{value:?}: {inserted:?}");
    }
    // `_id`s of several types in one collection.
    for id in [
        Bson::Int32(1),
        Bson::Int64(1 << 40),
        Bson::Double(1.5),
        Bson::String("1".to_owned()),
        Bson::Boolean(true),
        Bson::ObjectId(ObjectId::from_bytes([1; 12])),
        Bson::DateTime(DateTime::from_millis(1)),
        Bson::Document(doc! { "a": 1, "b": 2 }),
        binary(BinarySubtype::Generic, vec![0, 1]),
        Bson::Null,
    ] {
        let document = doc! { "_id": id.clone(), "text": format!("{id:?}") };
        let inserted = client.try_run("types", doc! { "insert": "ids", "documents": [document] });
        assert!(inserted.is_ok() || !has_all, "{id:?}: {inserted:?}");
    }
    client.insert("shop", "orders", orders(0, 1500));
    client.insert(
        "shop",
        "large",
        (0..3)
            .map(|n| doc! { "_id": n, "bytes": binary(BinarySubtype::Generic, noise(900_000, n as u64)) }),
    );
    client.run("shop", doc! { "create": "empty" });
    client.run(
        "shop",
        doc! { "createIndexes": "orders", "indexes": [
            { "key": { "customer": 1, "total": -1 }, "name": "by customer" },
            { "key": { "note": 1 }, "name": "note", "unique": true },
        ] },
    );
    // Names that are hardly names.
    let odd = ["with.dots.in.it", "schl\u{fc}ssel", "UPPER"];
    for name in odd {
        client.insert("shop", name, vec![doc! { "_id": 1, "schl\u{fc}ssel": 1 }]);
    }
    if has_all {
        client.insert("shop", "with spaces & signs %/?", vec![doc! { "_id": 1 }]);
        client.run(
            "shop",
            doc! { "createIndexes": "orders", "indexes": [
                { "key": { "when": 1 }, "name": "ttl", "expireAfterSeconds": 3600 },
            ] },
        );
        client.run(
            "shop",
            doc! { "create": "cheap", "viewOn": "orders", "pipeline": [{ "$match": { "total": { "$lt": 3 } } }] },
        );
    }
}
