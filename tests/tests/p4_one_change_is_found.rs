//! P4: a proof finds one change among all that was restored. Between the restore and the comparison the worker is stopped, and
//! the engine's own client changes the copy: each object in another way, and each must be named. `FETTLER_TEST_SCALE`
//! multiplies the size: 1 is some ten megabytes an engine, 100 a gigabyte.

#![allow(clippy::unwrap_used)]

use std::{path::Path, process::Command, time::Duration};

use bson::{Document, doc};
use fettler_tests::{
    Installation,
    servers::{
        ClickhouseServer, ClickhouseVersion, MongodbClient, MongodbKind, MongodbServer, PgMajor,
        PostgresServer, RedisOptions, RedisServer, SearchKind, SearchServer, wait_until,
    },
};
use serde_json::Value;

/// A gigabyte takes a while.
const PATIENCE: Duration = Duration::from_secs(3600);

fn scale() -> u64 {
    std::env::var("FETTLER_TEST_SCALE").map_or(1, |text| text.parse().unwrap())
}

/// Backs up, proves, and has the copy changed before it is compared. Gives what the proof said.
fn prove_what_was_changed(
    fettler: Installation,
    source: &str,
    sandbox: Option<&str>,
    change: impl FnOnce(&Installation),
) -> Value {
    let latches = fettler.path("latches");
    std::fs::create_dir(&latches).unwrap();
    let fettler = fettler
        .without_workers()
        .with("FETTLER_FAULT_POINT", "prove.sandbox_filled")
        .with("FETTLER_FAULT_STOPS", "1")
        .with("FETTLER_FAULT_LATCHES", latches.to_str().unwrap())
        // Nobody is to take the job over while its worker stands still.
        .with("FETTLER_WORKER__LEASE_SECONDS", "3600");
    let mut worker = fettler.start_worker();
    fettler.run(&["backup", source]).done();
    let prove = ["prove", "latest", "--detach"];
    let sandbox: Vec<&str> = sandbox
        .into_iter()
        .flat_map(|url| ["--sandbox", url])
        .collect();
    fettler.run(&[&prove[..], &sandbox].concat()).done();
    let stands_still = || {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", worker.pid())).unwrap();
        stat.rsplit(')')
            .next()
            .unwrap()
            .trim_start()
            .starts_with('T')
    };
    wait_until("the copy is there", PATIENCE, stands_still)
        .unwrap_or_else(|error| panic!("{error}: {}", worker.log()));
    change(&fettler);
    let told = Command::new("kill")
        .args(["-CONT", &worker.pid().to_string()])
        .status();
    assert!(told.unwrap().success());
    let mut proof = Value::Null;
    wait_until("the proof ends", PATIENCE, || {
        let jobs = fettler.json(&["jobs", "--all"]);
        let job = jobs["jobs"]
            .as_array()
            .unwrap()
            .iter()
            .find(|job| job["kind"] == "prove");
        proof = job.unwrap().clone();
        !["queued", "running"].contains(&proof["state"].as_str().unwrap())
    })
    .unwrap_or_else(|error| panic!("{error}: {}", worker.log()));
    let shown = fettler.json(&["jobs", "show", proof["id"].as_str().unwrap()]);
    assert_eq!(worker.terminate(), 0, "{}", worker.log());
    shown
}

/// The proof is refused, and names each of these and nothing else.
fn assert_found(shown: &Value, objects: &[&str]) {
    let text = shown.to_string();
    let result = &shown["result"];
    assert_eq!(result["proven"], false, "{shown:#}");
    let mismatches: Vec<&str> = result["mismatches"]
        .as_array()
        .unwrap()
        .iter()
        .map(|mismatch| mismatch.as_str().unwrap())
        .collect();
    for object in objects {
        assert!(
            mismatches.iter().any(|mismatch| mismatch.contains(object)),
            "{object} is not named: {text}"
        );
    }
    for mismatch in &mismatches {
        assert!(
            objects.iter().any(|object| mismatch.contains(object)),
            "not changed: {mismatch}"
        );
    }
}

#[test]
fn p4_one_change_in_each_table_of_postgresql_is_found() {
    let server = PostgresServer::shared(PgMajor::V15);
    let source = server.create_database("bank").unwrap();
    let rows = scale() * 10_000;
    for table in ["nothing", "zero", "number", "moment", "lost"] {
        source
            .psql(&format!(
                "CREATE TABLE {table} (id bigint, n text, f float8, big numeric, at timestamptz, note text);
                 INSERT INTO {table} SELECT n, NULL, '-0', 9007199254740993, '2026-01-01Z', md5(n::text) || repeat(md5((n * 7)::text), 4)
                 FROM generate_series(1, {rows}) n"
            ))
            .unwrap();
    }
    let fettler = Installation::new().with("FETTLER_PG_BIN", server.bin_dir().to_str().unwrap());
    let shown = prove_what_was_changed(
        fettler,
        &source.url(),
        Some(&server.url("postgres")),
        |_| {
            let copy = server
            .psql("postgres", "SELECT datname FROM pg_database WHERE datname LIKE 'fettler%' ORDER BY oid DESC LIMIT 1")
            .unwrap();
            let at = rows / 2;
            server
                .psql(
                    copy.trim(),
                    &format!(
                        "UPDATE nothing SET n = '' WHERE id = {at};
                     UPDATE zero SET f = 0 WHERE id = {at};
                     UPDATE number SET big = 9007199254740992 WHERE id = {at};
                     UPDATE moment SET at = at + interval '1 microsecond' WHERE id = {at};
                     INSERT INTO lost SELECT * FROM lost WHERE id = {at};
                     DELETE FROM lost WHERE id = {at} + 1;"
                    ),
                )
                .unwrap();
        },
    );
    assert_found(&shown, &["nothing", "zero", "number", "moment", "lost"]);
}

#[test]
fn p4_one_change_in_each_table_of_sqlite_is_found() {
    let fettler = Installation::new();
    let source = fettler.path("source.sqlite");
    let rows = scale() * 10_000;
    let connection = rusqlite::Connection::open(&source).unwrap();
    for table in ["absent", "kind", "number", "lost"] {
        connection
            .execute_batch(&format!(
                "CREATE TABLE {table} (id, n, big, note);
                 WITH RECURSIVE row(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM row WHERE n < {rows})
                 INSERT INTO {table} SELECT n, NULL, 9007199254740993, hex(randomblob(90)) FROM row;"
            ))
            .unwrap();
    }
    drop(connection);
    let shown = prove_what_was_changed(fettler, source.to_str().unwrap(), None, |fettler| {
        let copy = sandbox_below(&fettler.folder()).expect("the copy is below the folder");
        let at = rows / 2;
        rusqlite::Connection::open(copy)
            .unwrap()
            .execute_batch(&format!(
                "UPDATE absent SET n = '' WHERE id = {at};
                 UPDATE kind SET note = CAST(note AS BLOB) WHERE id = {at};
                 UPDATE number SET big = 9007199254740992 WHERE id = {at};
                 INSERT INTO lost SELECT * FROM lost WHERE id = {at};
                 DELETE FROM lost WHERE id = {at} + 1;"
            ))
            .unwrap();
    });
    assert_found(&shown, &["absent", "kind", "number", "lost"]);
}

fn sandbox_below(folder: &Path) -> Option<std::path::PathBuf> {
    std::fs::read_dir(folder).ok()?.flatten().find_map(|entry| {
        let path = entry.path();
        let is_it = path
            .file_name()?
            .to_string_lossy()
            .ends_with("sandbox.sqlite");
        if is_it {
            Some(path)
        } else {
            sandbox_below(&path)
        }
    })
}

#[test]
fn p4_one_change_of_each_type_of_redis_is_found() {
    let start = || RedisServer::start(RedisOptions::new().setting("save", "")).unwrap();
    let (source, copy) = (start(), start());
    let client = |server: &RedisServer| {
        redis::Client::open(server.url())
            .unwrap()
            .get_connection()
            .unwrap()
    };
    let mut filler = client(&source);
    for batch in 0..scale() * 10 {
        let mut pipe = redis::pipe();
        for n in batch * 1000..(batch + 1) * 1000 {
            let noise = format!("{:0200}", u128::from(n) * 0x9e37_79b9_7f4a_7c15_f39c);
            pipe.cmd("SET")
                .arg(format!("number:{n}"))
                .arg(format!("9007199254740993 {noise}"))
                .ignore();
            pipe.cmd("HSET")
                .arg(format!("user:{n}"))
                .arg("note")
                .arg(&noise)
                .arg("empty")
                .arg("x")
                .ignore();
            pipe.cmd("PEXPIREAT")
                .arg(format!("user:{n}"))
                .arg(4_102_444_800_000_u64)
                .ignore();
            pipe.cmd("RPUSH").arg("queue").arg(&noise).ignore();
            pipe.cmd("ZADD")
                .arg("scores")
                .arg("-0")
                .arg(&noise)
                .ignore();
            pipe.cmd("SADD").arg("members").arg(&noise).ignore();
        }
        pipe.exec(&mut filler).unwrap();
    }
    let shown = prove_what_was_changed(
        Installation::new(),
        &source.url(),
        Some(&copy.url()),
        |_| {
            let mut client = client(&copy);
            let at = scale() * 5000;
            let expiry: i64 = redis::cmd("PEXPIRETIME")
                .arg(format!("user:{at}"))
                .query(&mut client)
                .unwrap();
            let mut pipe = redis::pipe();
            pipe.cmd("SETRANGE")
                .arg(format!("number:{at}"))
                .arg(15)
                .arg("2")
                .ignore();
            pipe.cmd("PEXPIREAT")
                .arg(format!("user:{at}"))
                .arg(expiry + 1)
                .ignore();
            let noise = format!("{:0200}", u128::from(at) * 0x9e37_79b9_7f4a_7c15_f39c);
            let other = format!("{:0200}", u128::from(at + 1) * 0x9e37_79b9_7f4a_7c15_f39c);
            pipe.cmd("LREM").arg("queue").arg(1).arg(&noise).ignore();
            pipe.cmd("LINSERT")
                .arg("queue")
                .arg("BEFORE")
                .arg(&other)
                .arg(&other)
                .ignore();
            // What compares as equal would not be written.
            pipe.cmd("ZREM").arg("scores").arg(&noise).ignore();
            pipe.cmd("ZADD").arg("scores").arg("0").arg(&noise).ignore();
            pipe.cmd("SREM").arg("members").arg(&noise).ignore();
            pipe.cmd("SADD").arg("members").arg("").ignore();
            pipe.exec(&mut client).unwrap();
        },
    );
    assert_found(
        &shown,
        &[
            "db0: ",
            "db0/string",
            "db0/hash",
            "db0/list",
            "db0/zset",
            "db0/set",
        ],
    );
}

#[test]
fn p4_one_change_in_each_collection_of_mongodb_is_found() {
    let memory = u32::try_from(1024 + 100 * scale()).unwrap();
    let start = || match scale() {
        1 => MongodbServer::start(MongodbKind::WithOplog).unwrap(),
        _ => MongodbServer::start_with_memory(memory).unwrap(),
    };
    let (source, copy) = (start(), start());
    let mut filler = MongodbClient::new(source.port());
    let document = |n: i64| {
        doc! { "_id": n, "nothing": null, "zero": -0.0, "big": 9_007_199_254_740_993_i64,
        "at": bson::DateTime::from_millis(n), "note": format!("{:0200}", n * 7) }
    };
    let names = ["nothing", "zero", "number", "moment", "lost"];
    for name in names {
        for batch in 0..scale() as i64 * 8 {
            let documents: Vec<Document> =
                (batch * 1000..(batch + 1) * 1000).map(document).collect();
            filler.insert("shop", name, documents);
        }
    }
    let shown = prove_what_was_changed(
        Installation::new(),
        &source.url(),
        Some(&copy.url()),
        |_| {
            let mut client = MongodbClient::new(copy.port());
            let databases = client.databases();
            let shop = databases
                .iter()
                .find(|name| name.starts_with("fettler") && name.ends_with("shop"));
            let shop = shop.unwrap_or_else(|| panic!("no copy in {databases:?}"));
            let at = scale() as i64 * 4000;
            let mut set = |name: &str, values: Document| {
                client.update(shop, name, doc! { "_id": at }, doc! { "$set": values });
            };
            set("nothing", doc! { "nothing": "" });
            set("number", doc! { "big": 9_007_199_254_740_992_i64 });
            set("moment", doc! { "at": bson::DateTime::from_millis(at + 1) });
            // By another document, since what compares as equal would not be written.
            let mut changed = document(at);
            changed.insert("zero", 0.0);
            client.delete(shop, "zero", doc! { "_id": at });
            client.insert(shop, "zero", vec![changed]);
            let mut doubled = document(at);
            doubled.insert("_id", -1);
            client.insert(shop, "lost", vec![doubled]);
            client.delete(shop, "lost", doc! { "_id": at + 1 });
        },
    );
    assert_found(
        &shown,
        &names
            .map(|name| ["shop.", name].concat())
            .each_ref()
            .map(String::as_str),
    );
}

#[test]
fn p4_one_change_in_each_table_of_clickhouse_is_found() {
    let start = || ClickhouseServer::start(ClickhouseVersion::V18).unwrap();
    let (source, copy) = (start(), start());
    source.query("CREATE DATABASE shop").unwrap();
    let rows = scale() * 20_000;
    let columns = "(id UInt64, n Nullable(String), f Float64, big UInt64, at DateTime, note String) ENGINE = MergeTree ORDER BY id";
    let names = ["nothing", "zero", "number", "moment", "lost"];
    for name in names {
        source
            .query(&format!("CREATE TABLE shop.{name} {columns}"))
            .unwrap();
        source
            .query(&format!(
                "INSERT INTO shop.{name} SELECT number, NULL, -0.0, 9007199254740993, toDateTime(1700000000), \
                 concat(hex(MD5(toString(number))), hex(MD5(toString(number * 7))), hex(MD5(toString(number * 11)))) FROM numbers({rows})"
            ))
            .unwrap();
    }
    let shown = prove_what_was_changed(
        Installation::new(),
        &source.url(),
        Some(&copy.url()),
        |_| {
            let shop = copy
                .query("SELECT name FROM system.databases WHERE name LIKE 'fettler%shop'")
                .unwrap();
            let shop = format!("`{}`", shop.trim());
            let at = rows / 2;
            for (name, selected) in [
                (
                    "nothing",
                    format!("id, if(id = {at}, '', n) AS n, f, big, at, note"),
                ),
                (
                    "zero",
                    format!("id, n, if(id = {at}, 0., f), big, at, note"),
                ),
                (
                    "number",
                    format!("id, n, f, if(id = {at}, toUInt64(9007199254740992), big), at, note"),
                ),
                (
                    "moment",
                    format!("id, n, f, big, if(id = {at}, at + 1, at), note"),
                ),
                (
                    "lost",
                    format!("if(id = {at}, id + 1, id), n, f, big, at, note"),
                ),
            ] {
                for statement in [
                    format!("CREATE TABLE {shop}.other {columns}"),
                    format!("INSERT INTO {shop}.other SELECT {selected} FROM {shop}.{name}"),
                    format!("DROP TABLE {shop}.{name}"),
                    format!("RENAME TABLE {shop}.other TO {shop}.{name}"),
                ] {
                    copy.query(&statement).unwrap();
                }
            }
        },
    );
    assert_found(
        &shown,
        &names
            .map(|name| ["shop.", name].concat())
            .each_ref()
            .map(String::as_str),
    );
}

#[test]
fn p4_one_change_in_each_index_of_opensearch_is_found() {
    let server = SearchServer::start(SearchKind::OpenSearch, &[]).unwrap();
    let send = |method: &str, path: &str, body: &str| {
        let (status, answer) = server.request(method, path, body).unwrap();
        assert!(status < 300, "{method} {path}: {answer}");
        answer
    };
    let document = |n: u64| {
        format!(
            r#"{{"nothing":null,"zero":-0.0,"big":9007199254740993,"at":"2026-01-01","note":"{:0200}"}}"#,
            n * 7
        )
    };
    let names = ["nothing", "zero", "number", "moment", "lost"];
    for name in names {
        send(
            "PUT",
            &format!("/{name}"),
            r#"{"settings":{"number_of_shards":2,"number_of_replicas":0},"mappings":{"dynamic":false}}"#,
        );
        for batch in 0..scale() * 8 {
            let lines: String = (batch * 1000..(batch + 1) * 1000)
                .map(|n| format!("{{\"index\":{{\"_id\":\"{n}\"}}}}\n{}\n", document(n)))
                .collect();
            send("POST", &format!("/{name}/_bulk"), &lines);
        }
    }
    send("POST", "/_refresh", "");
    let fettler = Installation::new();
    let shown = prove_what_was_changed(fettler, &server.url(), Some("source-server"), |_| {
        let indices = send(
            "GET",
            "/_cat/indices/fettler-proof-*?h=index&expand_wildcards=all",
            "",
        );
        let at = scale() * 4000;
        for (name, id, source) in [
            ("nothing", at, document(at).replace("null", "\"\"")),
            ("zero", at, document(at).replace("-0.0", "0.0")),
            ("number", at, document(at).replace("0993", "0992")),
            ("moment", at, document(at).replace("01-01", "01-02")),
            ("lost", scale() * 8000, document(at)),
        ] {
            let copy = indices
                .lines()
                .map(str::trim)
                .find(|index| index.ends_with(name));
            let copy = copy.unwrap_or_else(|| panic!("no copy of {name} in {indices}"));
            send("PUT", &format!("/{copy}/_doc/{id}?refresh=true"), &source);
            if name == "lost" {
                send(
                    "DELETE",
                    &format!("/{copy}/_doc/{}?refresh=true", at + 1),
                    "",
                );
            }
        }
    });
    assert_found(&shown, &names);
}
