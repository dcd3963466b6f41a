//! Servers with data of every type, attempts, and proofs.

use std::{
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    sync::Arc,
};

use fettler_engine::{
    BackupOptions, BackupReport, DatabaseEngine as _, EngineContext, EngineError, RestoreOptions,
    RestoreReport, Sandbox, SandboxRequest, SandboxSpec, Target,
    testing::{MemoryRecord, MemorySink, MemorySource, context},
};
use fettler_engine_clickhouse::ClickhouseEngine;
use fettler_model::{DatabaseUrl, JobId, ObjectFacts};
use fettler_test_servers::{ClickhouseServer, ClickhouseVersion};

pub use fettler_test_servers::ClickhouseVersion::{V18, V26};

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

/// The engine, which knows the program of a server where tests have one.
pub fn engine() -> ClickhouseEngine {
    ClickhouseEngine::with_program(V18.program().unwrap().unwrap())
}

pub fn server(version: ClickhouseVersion) -> ClickhouseServer {
    ClickhouseServer::start(version).unwrap()
}

pub fn target(url: &str) -> Target {
    let (url, password) = DatabaseUrl::parse_with_password(url).unwrap();
    Target { url, password }
}

/// The answer to a statement, where a front gives one itself: a status and a body.
pub type Rule = dyn Fn(&str) -> Option<(u16, String)> + Send + Sync;

/// A front before a server, which answers some statements in its stead. Gives its URL.
pub fn front(
    server: &ClickhouseServer,
    rule: impl Fn(&str) -> Option<(u16, String)> + Send + Sync + 'static,
) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let (behind, rule): (u16, Arc<Rule>) = (server.port(), Arc::new(rule));
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (stream, rule) = (stream.unwrap(), Arc::clone(&rule));
            std::thread::spawn(move || {
                // A client that goes away is none of this thread's business.
                let _gone = serve(behind, stream, &*rule);
            });
        }
    });
    server.url_via(port)
}

/// One request: its statement is the body, as this suite's backups send it.
fn serve(behind: u16, mut client: TcpStream, rule: &Rule) -> std::io::Result<()> {
    let (mut request, mut piece) = (Vec::new(), [0; 65536]);
    let head = loop {
        if let Some(at) = request.windows(4).position(|four| four == b"\r\n\r\n") {
            break at + 4;
        }
        let count = client.read(&mut piece)?;
        if count == 0 {
            return Ok(());
        }
        request.extend_from_slice(&piece[..count]);
    };
    let text = String::from_utf8_lossy(&request[..head]).into_owned();
    let length: usize = text
        .to_ascii_lowercase()
        .lines()
        .find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok())
        .unwrap_or(0);
    while request.len() < head + length {
        let count = client.read(&mut piece)?;
        request.extend_from_slice(&piece[..count]);
    }
    let statement = String::from_utf8_lossy(&request[head..]).into_owned();
    if let Some((status, body)) = rule(&statement) {
        return write!(
            client,
            "HTTP/1.1 {status} \r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
    }
    let mut server = TcpStream::connect(("127.0.0.1", behind))?;
    let first_line = text.find("\r\n").unwrap_or_default();
    server.write_all(&text.as_bytes()[..first_line])?;
    server.write_all(b"\r\nConnection: close")?;
    server.write_all(&text.as_bytes()[first_line..])?;
    server.write_all(&request[head..])?;
    // Nobody is to use this connection again.
    let mut line = Vec::new();
    while !line.ends_with(b"\r\n") {
        let mut byte = [0];
        server.read_exact(&mut byte)?;
        line.push(byte[0]);
    }
    client.write_all(&line)?;
    client.write_all(b"Connection: close\r\n")?;
    std::io::copy(&mut server, &mut client).map(drop)
}

/// Runs statements as an operator does.
pub fn run(server: &ClickhouseServer, statements: &[&str]) {
    for statement in statements {
        server.query(statement).unwrap();
    }
}

pub async fn back_up_into(sink: &MemorySink, url: &str) -> Result<BackupReport, EngineError> {
    engine()
        .backup(
            &Attempt::new().context,
            &target(url),
            &BackupOptions::default(),
            sink,
        )
        .await
}

pub async fn back_up(url: &str) -> (MemorySource, BackupReport) {
    let sink = MemorySink::default();
    let report = back_up_into(&sink, url).await.unwrap();
    (sink.source(), report)
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

pub fn only(patterns: &[&str]) -> RestoreOptions {
    RestoreOptions {
        only: patterns.iter().map(|one| (*one).to_owned()).collect(),
        ..RestoreOptions::default()
    }
}

/// What is in a server that is no sandbox.
pub async fn facts(report: &BackupReport, url: &str) -> Vec<ObjectFacts> {
    engine()
        .facts(&Attempt::new().context, &target(url), report)
        .await
        .unwrap()
}

/// What a proof would find wrong.
pub fn mismatches(expected: &[ObjectFacts], copy: &[ObjectFacts]) -> Vec<String> {
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
        match copy
            .iter()
            .find(|other| other.name == object.name && other.kind == object.kind)
        {
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
        if !expected
            .iter()
            .any(|other| other.name == object.name && other.kind == object.kind)
        {
            found.push(format!("{:?} {} is new", object.kind, object.name));
        }
    }
    found
}

/// The sandbox of a version: a private server where tests have a program for one, databases on a named server otherwise.
pub fn request(report: &BackupReport, server: &ClickhouseServer) -> SandboxRequest {
    let (spec, named) = match server.version() {
        V18 => (SandboxSpec::Automatic, None),
        V26 => {
            let named = target(&server.url());
            let spec = SandboxSpec::Server {
                url: named.url.clone(),
                password: None,
            };
            (spec, Some(named))
        }
    };
    SandboxRequest {
        spec,
        server: named,
        identity: report.identity.clone(),
        estimated_bytes: 0,
        left: None,
    }
}

pub async fn close(attempt: &Attempt, sandbox: &Sandbox, server: Option<&Target>) {
    for artefact in &sandbox.artefacts {
        engine().remove_artefact(artefact, server).await.unwrap();
    }
    for artefact in attempt.record.artefacts() {
        engine().remove_artefact(&artefact, server).await.unwrap();
    }
}

/// A client of a sandbox: gives the prefix of databases and sends statements.
pub struct SandboxClient(Sandbox);

impl SandboxClient {
    /// Sends a statement in which `{db}` stands before the names of databases.
    pub async fn run(&self, statement: &str) {
        let url = url::Url::parse(self.0.target.url.as_str()).unwrap();
        let prefix = url
            .query_pairs()
            .find(|(name, _)| name == "sandbox")
            .map(|(_, value)| value.into_owned())
            .unwrap();
        let place = format!("http://127.0.0.1:{}/", url.port().unwrap());
        let mut request = reqwest::Client::new()
            .post(place)
            .body(statement.replace("{db}", &prefix));
        if let Some(password) = &self.0.target.password {
            request = request.header("X-ClickHouse-Key", password.expose());
            request = request.header("X-ClickHouse-User", "default");
        }
        let answer = request.send().await.unwrap();
        let is_fine = answer.status().is_success();
        let text = answer.text().await.unwrap();
        assert!(is_fine, "{statement}: {text}");
    }
}

/// Proves a backup in a sandbox; statements may change the copy before it is compared.
pub async fn prove_after(
    backup: &MemorySource,
    report: &BackupReport,
    server: &ClickhouseServer,
    changes: &[&str],
) -> Vec<String> {
    let attempt = Attempt::new();
    let request = request(report, server);
    let sandbox = engine()
        .open_sandbox(&attempt.context, &request)
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
    let client = SandboxClient(sandbox.clone());
    for change in changes {
        client.run(change).await;
    }
    let copy = engine()
        .facts(&attempt.context, &sandbox.target, report)
        .await
        .unwrap();
    close(&attempt, &sandbox, request.server.as_ref()).await;
    let mut found = restored.failed_statements;
    found.extend(mismatches(&report.objects, &copy));
    found
}

pub async fn prove(
    backup: &MemorySource,
    report: &BackupReport,
    server: &ClickhouseServer,
) -> Vec<String> {
    prove_after(backup, report, server, &[]).await
}

/// The names of databases that Fettler has made and not dropped.
pub fn left_behind(server: &ClickhouseServer) -> String {
    server
        .query("SELECT name FROM system.databases WHERE name LIKE 'fettler%'")
        .unwrap()
}

/// Puts every kind of table and every type into a server; the database is `shop`.
pub fn fill(server: &ClickhouseServer) {
    run(server, &["CREATE DATABASE shop"]);
    match server.version() {
        V18 => fill_old(server),
        V26 => fill_new(server),
    }
    // What both have.
    run(
        server,
        &[
            "CREATE TABLE shop.events (day Date, id UInt64, note Nullable(String), twice UInt64 MATERIALIZED id * 2, shout String ALIAS upper(toString(id))) ENGINE = MergeTree PARTITION BY toYYYYMM(day) ORDER BY id",
            "INSERT INTO shop.events (day, id, note) SELECT toDate('2026-01-01') + number % 90, number, if(number % 3 = 0, NULL, toString(number)) FROM numbers(5000)",
            // Rows that a merge would make one of, in two parts.
            "CREATE TABLE shop.replacing (k UInt64, v String) ENGINE = ReplacingMergeTree ORDER BY k",
            "INSERT INTO shop.replacing SELECT number % 10, 'first' FROM numbers(20)",
            "INSERT INTO shop.replacing SELECT number % 10, 'second' FROM numbers(20)",
            "CREATE TABLE shop.summing (k UInt64, v Int64) ENGINE = SummingMergeTree ORDER BY k",
            "INSERT INTO shop.summing SELECT number % 10, number FROM numbers(100)",
            "CREATE TABLE shop.memory (a UInt8, b String) ENGINE = Memory",
            "INSERT INTO shop.memory SELECT number, toString(number) FROM numbers(100)",
            "CREATE TABLE shop.log (a UInt8, b Array(String)) ENGINE = Log",
            "INSERT INTO shop.log SELECT number, [toString(number), ''] FROM numbers(100)",
            "CREATE TABLE shop.tiny (a UInt8) ENGINE = TinyLog",
            "CREATE TABLE shop.nothing (a UInt8) ENGINE = Null",
            "CREATE TABLE shop.empty (a UInt8) ENGINE = MergeTree ORDER BY a",
            "CREATE VIEW shop.a_view AS SELECT id, note FROM shop.events WHERE id < 10",
            "CREATE VIEW shop.a_first_view AS SELECT id FROM shop.a_view",
            "CREATE TABLE shop.totals (k UInt64, n UInt64) ENGINE = SummingMergeTree ORDER BY k",
            "CREATE MATERIALIZED VIEW shop.to_totals TO shop.totals AS SELECT k, toUInt64(1) AS n FROM shop.summing",
            "CREATE MATERIALIZED VIEW shop.kept ENGINE = MergeTree ORDER BY k AS SELECT k, v FROM shop.summing",
            "INSERT INTO shop.summing SELECT number % 10, number FROM numbers(30)",
            "CREATE DATABASE `o'dd.d``b`",
            "CREATE TABLE `o'dd.d``b`.`t/a\\\\b \u{fc}` (`c'o``l` UInt8, `\u{e9} x` String) ENGINE = MergeTree ORDER BY `c'o``l`",
            "INSERT INTO `o'dd.d``b`.`t/a\\\\b \u{fc}` VALUES (1, 'one'), (2, 'two')",
        ],
    );
}

fn fill_old(server: &ClickhouseServer) {
    let settings = "&allow_experimental_low_cardinality_type=1";
    server
        .query_with(
            "CREATE TABLE shop.types (id UInt64, i8 Int8, i16 Int16, i32 Int32, i64 Int64, u8 UInt8, u16 UInt16, u32 UInt32, f32 Float32, f64 Float64, d32 Decimal(9, 2), d64 Decimal(18, 4), d128 Decimal(38, 10), s String, fs FixedString(4), dt Date, tm DateTime, uu UUID, e8 Enum8('a' = 1, 'b' = 2), e16 Enum16('x' = 1000), arr Array(Nullable(String)), aa Array(Array(Int8)), tp Tuple(UInt8, String), ns Nullable(String), nf Nullable(Float64), nt Nullable(DateTime), lc LowCardinality(String), st AggregateFunction(sum, UInt64), un AggregateFunction(uniq, UInt64), n Nested(x UInt8, y String)) ENGINE = MergeTree ORDER BY id",
            settings,
        )
        .unwrap();
    for at in 0..40 {
        server
            .query(&format!(
                "INSERT INTO shop.types SELECT {at}, -128, -32768, -2147483648, -9223372036854775808, 255, 65535, 4294967295, {f32}, {f64}, toDecimal32('-1234567.89', 2), toDecimal64('1.5', 4), toDecimal128('0.1234567891', 10), unhex('00FF0A5C27{at:02}'), 'ab', toDate('2026-01-01'), toDateTime(1793000000 + {at}), toUUID('00000000-0000-0000-0000-0000000000{at:02}'), 'b', 'x', ['a', NULL, ''], [[1, -1], []], (1, 'it\\'s'), {ns}, {nf}, NULL, 'word', sumState(toUInt64({at})), uniqState(toUInt64({at})), [1, 2], ['p', 'q']",
                f32 = if at % 2 == 0 { "-0.0" } else { "1.1" },
                f64 = ["nan", "inf", "-inf", "-0.0", "0.1"][at % 5],
                ns = if at % 2 == 0 { "NULL" } else { "''" },
                nf = if at % 3 == 0 { "NULL" } else { "9007199254740993" },
            ))
            .unwrap();
    }
}

fn fill_new(server: &ClickhouseServer) {
    run(
        server,
        &[
            "CREATE TABLE shop.types (id UInt64, i8 Int8, i128 Int128, i256 Int256, u256 UInt256, f32 Float32, f64 Float64, d32 Decimal(9, 2), d128 Decimal(38, 10), d256 Decimal(76, 20), s String, fs FixedString(4), dt Date, d32d Date32, tm DateTime('Europe/Berlin'), t64 DateTime64(9, 'UTC'), uu UUID, e8 Enum8('a' = 1, 'b' = 2), arr Array(Nullable(String)), aa Array(Array(Int8)), tp Tuple(a UInt8, b String), mp Map(String, Array(UInt64)), ns Nullable(String), nf Nullable(Float64), lc LowCardinality(Nullable(String)), ip4 IPv4, ip6 IPv6, bo Bool, pt Point, va Variant(UInt64, String, Array(UInt64)), dy Dynamic, js JSON, st AggregateFunction(sum, UInt64), un AggregateFunction(uniq, UInt64), sa SimpleAggregateFunction(max, UInt64), n Nested(x UInt8, y String), bf BFloat16) ENGINE = MergeTree ORDER BY id",
            "INSERT INTO shop.types SELECT number, -128, -170141183460469231731687303715884105728, -1, 115792089237316195423570985008687907853269984665640564039457584007913129639935, if(number % 2 = 0, -0.0, 1.1), [nan, inf, -inf, -0.0, 0.1][number % 5 + 1], -1234567.89, 0.1234567891, toDecimal256('1.00000000000000000001', 20), unhex(concat('00FF0A5C27', hex(toUInt8(number)))), 'ab', toDate('2026-01-01'), toDate32('1930-01-01'), toDateTime(1793000000 + number * 600, 'Europe/Berlin'), toDateTime64('2026-01-01 00:00:00.123456789', 9, 'UTC'), toUUID('00000000-0000-0000-0000-000000000001'), 'b', ['a', NULL, ''], [[1, -1], []], (1, 'it\\'s'), map('k', [1, 2], '', []), if(number % 2 = 0, NULL, ''), if(number % 3 = 0, NULL, 9007199254740993), if(number % 4 = 0, NULL, 'word'), toIPv4('127.0.0.1'), toIPv6('::1'), number % 2 = 0, (1.5, -0.0), multiIf(number % 3 = 0, toUInt64(number)::Variant(UInt64, String, Array(UInt64)), number % 3 = 1, 'text'::Variant(UInt64, String, Array(UInt64)), [1, 2]::Array(UInt64)::Variant(UInt64, String, Array(UInt64))), if(number % 2 = 0, 42::Dynamic, 'forty-two'::Dynamic), concat('{\"a\": {\"b\": ', toString(number), '}, \"c\": [1, \"x\"], \"d', toString(number % 3), '\": null}')::JSON, sumState(toUInt64(number)), uniqState(toUInt64(number)), number, [1, 2], ['p', 'q'], 0.5 FROM numbers(200) GROUP BY number",
            "CREATE TABLE shop.indexed (a UInt64, b String, INDEX by_b b TYPE bloom_filter GRANULARITY 1, CONSTRAINT positive CHECK a < 1000000, PROJECTION by_b (SELECT b, count() GROUP BY b)) ENGINE = MergeTree ORDER BY a TTL toDate('2100-01-01') + toIntervalDay(a) SETTINGS index_granularity = 512",
            "INSERT INTO shop.indexed SELECT number, toString(number % 10) FROM numbers(3000)",
            // Rows that a merge would forget.
            "CREATE TABLE shop.expired (a UInt64, d DateTime) ENGINE = MergeTree ORDER BY a TTL d + toIntervalDay(1) SETTINGS merge_with_ttl_timeout = 1000000",
            "SYSTEM STOP MERGES shop.expired",
            "INSERT INTO shop.expired SELECT number, toDateTime('2020-01-01 00:00:00') FROM numbers(100)",
            "CREATE FUNCTION fettler_test_plus AS (x) -> x + 1",
            "CREATE TABLE shop.collapsing (k UInt64, sign Int8) ENGINE = CollapsingMergeTree(sign) ORDER BY k",
            "SYSTEM STOP MERGES shop.collapsing",
            "INSERT INTO shop.collapsing VALUES (1, 1), (2, 1)",
            "INSERT INTO shop.collapsing VALUES (1, -1)",
            "CREATE DICTIONARY shop.words (k UInt64, v String) PRIMARY KEY k SOURCE(CLICKHOUSE(TABLE 'summing' DB 'shop')) LAYOUT(FLAT()) LIFETIME(0)",
            "CREATE TABLE shop.outside (a UInt64) ENGINE = URL('http://127.0.0.1:1/', 'CSV')",
        ],
    );
}
