//! A table of a backup as CSV and as SQL. The truth is the server's own `COPY … TO STDOUT` of the same rows.

use fettler_engine::{DatabaseEngine, EngineError, ExtractFormat, Extraction};
use fettler_model::JobId;
use fettler_test_servers::{PgMajor, PostgresServer, TestDatabase};

use crate::{
    common::{Attempt, Memory, Watcher, back_up, engine_of_both},
    types::VALUES,
};

/// The settings of a backup's sessions.
const SETTINGS: &str = "SET DateStyle = 'ISO, YMD'; SET IntervalStyle = 'postgres'; SET TimeZone = 'UTC';
    SET lc_monetary = 'C'; SET extra_float_digits = 3; SET bytea_output = 'hex'; SET client_encoding = 'UTF8';";

/// More values than those that come back, chosen for how they are written.
const MORE: [(&str, &[&str]); 22] = [
    (
        "float8",
        &[
            "1e15",
            "123456789012345",
            "1234567890123456",
            "0.0001",
            "0.00001",
            "-0",
            "1e-300",
            "0.1",
            "100",
        ],
    ),
    (
        "float4",
        &[
            "1e6", "999999", "1234567", "0.0001", "1e-5", "16777216", "-1.5",
        ],
    ),
    (
        "numeric",
        &[
            "0",
            "0.00",
            "-0.5",
            "1234.5678",
            "10000",
            "100000000.0001",
            "0.00001",
            "-Infinity",
            "99999999999999999999999999.9",
        ],
    ),
    ("money", &["0", "-0.01", "1234.5", "-1234567.89", "999"]),
    (
        "timestamp",
        &[
            "1999-12-31 23:59:59.5",
            "2000-01-01 00:00:00",
            "0001-01-01 00:00:00 BC",
            "10000-01-01 12:00:00.000001",
        ],
    ),
    (
        "timestamptz",
        &["2024-02-29 12:00:00+02", "1969-12-31 23:59:59.999999+00"],
    ),
    (
        "date",
        &[
            "2024-02-29",
            "1900-03-01",
            "0001-01-01",
            "0001-12-31 BC",
            "99999-12-31",
            "-infinity",
        ],
    ),
    (
        "interval",
        &[
            "0",
            "1 year",
            "-1 year -2 mons +3 days -04:05:06.789",
            "25 months -3 days",
            "-00:00:01.5",
            "100:00:00",
            "1 day -00:00:00.000001",
        ],
    ),
    (
        "timetz",
        &["00:00:00+00", "12:34:56.789+05:30", "01:00:00-03:15:30"],
    ),
    ("time", &["00:00", "12:00:00.100000"]),
    (
        "inet",
        &[
            "::",
            "::1",
            "::ffff:1.2.3.4",
            "::1.2.3.4",
            "1:2:3:4:5:6:7:8",
            "2001:db8::/32",
            "fe80::1:0:0:1",
            "0.0.0.0/0",
            "1.2.3.4",
            "1:0:0:2::",
            "::2:0",
            "0:0:1::",
        ],
    ),
    (
        "cidr",
        &["10.0.0.0/8", "1.2.3.4/32", "2001:db8::/32", "::/128"],
    ),
    ("bit(3)", &["101"]),
    ("varbit", &["", "10101010", "101010101"]),
    (
        "text",
        &[
            "a,b",
            "\"q\"",
            "NULL",
            "\\N",
            "\\.",
            " x ",
            "a\rb",
            "line\nline",
            "tab\there",
            "\u{1f600}",
        ],
    ),
    (
        "tsvector",
        &["'it''s':1,2A,16383C b:3D", "", "'back\\\\slash'"],
    ),
    (
        "tsquery",
        &[
            "a & b | c",
            "(a | b) & c",
            "!(a & b)",
            "a <-> (b <2> c)",
            "(a <-> b) <-> c",
            "!!a",
            "x:AB*",
            "",
            "'it''s' & !y",
            "a <-> !(b | c)",
            "!a <-> b",
        ],
    ),
    ("box[]", &["{(1,1),(0,0);(2,2),(1,1)}"]),
    (
        "text[]",
        &[
            "{a,b,\"null\",\"a b\",\"x\\\\y\",\"{\",\"\"}",
            "[0:1][2:3]={{a,b},{c,NULL}}",
        ],
    ),
    ("numrange[]", &["{\"[1,2]\",\"(,3)\"}"]),
    (
        "pair",
        &["(5,\"a b\")", "(1,\"x\\\\y\")", "(,\"\")", "(2,\"(a,b)\")"],
    ),
    (
        "textrange",
        &["[a,\"b,c\"]", "(\"\",\"x y\")", "[\"a\\\"b\",\"c\\\\d\"]"],
    ),
];

const MADE: &str = "CREATE TYPE mood AS ENUM ('sad', 'o''k'); CREATE DOMAIN domain_of_mood AS mood; CREATE DOMAIN inner_domain AS int CHECK (VALUE > 0);
    CREATE DOMAIN domain_of_domain AS inner_domain; CREATE DOMAIN domain_of_array AS int[];
    CREATE TYPE pair AS (a int, b text); CREATE TYPE moodrange AS RANGE (subtype = mood); CREATE TYPE textrange AS RANGE (subtype = text);";

async fn extract(
    backup: &Memory,
    report: &fettler_engine::BackupReport,
    part: &str,
    format: ExtractFormat,
) -> Result<(String, u64), EngineError> {
    let mut out = Vec::new();
    let what = Extraction {
        part: part.to_owned(),
        format,
    };
    let written = engine_of_both()
        .extract(&Attempt::new().context, backup, report, &what, &mut out)
        .await?;
    assert_eq!(written.bytes, out.len() as u64);
    Ok((String::from_utf8(out).unwrap(), written.rows))
}

/// What the server writes of a table.
fn servers_own(database: &TestDatabase, table: &str) -> String {
    database
        .psql(&format!(
            "{SETTINGS} COPY {table} TO STDOUT (FORMAT csv, HEADER)"
        ))
        .unwrap()
}

/// The head, and then the same rows: a table that is read in ranges gives them in the order in which the ranges came.
fn same(own: &str, ours: &str, name: &str) {
    fn lines(text: &str) -> Vec<&str> {
        let mut lines: Vec<&str> = text.lines().collect();
        lines[1..].sort_unstable();
        lines
    }
    // What `psql` printed is without its last end of a line, which may end a line that is empty.
    let own = &format!("{own}\n");
    for (number, (own, ours)) in lines(own).into_iter().zip(lines(ours)).enumerate() {
        assert_eq!(own, ours, "{name}, line {number} in order");
    }
    assert_eq!(own.lines().count(), ours.lines().count(), "{name}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_type_is_written_as_the_server_writes_it() {
    for major in PgMajor::ALL {
        let source = PostgresServer::shared(major)
            .create_database("extract_types")
            .unwrap();
        let mut sql = MADE.to_owned();
        let all: Vec<(&str, &[&str])> = VALUES.iter().chain(&MORE).copied().collect();
        for (number, (name, values)) in all.iter().enumerate() {
            sql.push_str(&format!(
                "CREATE TABLE t{number} (v {name}, w int DEFAULT 7);"
            ));
            sql.push_str(&format!("INSERT INTO t{number} VALUES (NULL, NULL);"));
            for value in *values {
                sql.push_str(&format!(
                    "INSERT INTO t{number} VALUES ('{}');",
                    value.replace('\'', "''")
                ));
            }
        }
        source.psql(&sql).unwrap();
        let (backup, report) = back_up(&engine_of_both(), &source.url()).await;
        let mut loaded = MADE.to_owned();
        for (number, (name, values)) in all.iter().enumerate() {
            let table = format!("public.t{number}");
            let (csv, rows) = extract(&backup, &report, &table, ExtractFormat::Csv)
                .await
                .unwrap();
            same(
                &servers_own(&source, &table),
                &csv,
                &format!("{name} on {major:?}"),
            );
            assert_eq!(rows, values.len() as u64 + 1);
            let (sql, _) = extract(&backup, &report, &table, ExtractFormat::Sql)
                .await
                .unwrap();
            loaded.push_str(&format!(
                "CREATE TABLE t{number} (v {name}, w int);\n{sql}\n"
            ));
        }
        // The SQL goes back in by psql, and is the same rows then.
        let copy = PostgresServer::shared(major)
            .create_database("extract_types_back")
            .unwrap();
        copy.psql(&loaded).unwrap();
        for (number, (name, _)) in all.iter().enumerate() {
            let table = format!("public.t{number}");
            assert_eq!(
                servers_own(&source, &table),
                servers_own(&copy, &table),
                "{name}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tables_copied_as_text_empty_ones_and_odd_names_are_written_too() {
    let source = PostgresServer::shared(PgMajor::V15)
        .create_database("extract_odd")
        .unwrap();
    source
        .psql(
            "CREATE SCHEMA \"My Schema\";
             CREATE TABLE \"My Schema\".\"Order, \"\"lines\"\"\" (\"a,b\" text, c regclass);
             INSERT INTO \"My Schema\".\"Order, \"\"lines\"\"\" VALUES (NULL, 'pg_class'), ('', NULL), (E'x\\ty\\\\N\\n\\r\\b\\f\\v', NULL), ('\\.', NULL);
             CREATE TABLE nothing (a int, b text); CREATE TABLE no_columns ();
             INSERT INTO no_columns DEFAULT VALUES; INSERT INTO no_columns DEFAULT VALUES;
             CREATE TABLE one (v text); INSERT INTO one VALUES ('\\.'), (''), (NULL), ('x');
             CREATE TABLE generated (a int, b int GENERATED ALWAYS AS (a * 2) STORED); INSERT INTO generated VALUES (1);
             CREATE TABLE many (id int, v text); INSERT INTO many SELECT i, repeat('x', i % 200) FROM generate_series(1, 20000) i;
             CREATE TABLE audit_one (a int); CREATE TABLE audit_two (a int);",
        )
        .unwrap();
    let (backup, report) = back_up(&engine_of_both(), &source.url()).await;
    for (part, table) in [
        (
            "\"My Schema\".\"Order, \"\"lines\"\"\"",
            "\"My Schema\".\"Order, \"\"lines\"\"\"",
        ),
        ("nothing", "public.nothing"),
        ("public.no_columns", "public.no_columns"),
        ("one", "public.one"),
        ("public.gener*", "public.generated"),
        ("public.many", "(SELECT * FROM public.many ORDER BY id)"),
    ] {
        let (csv, _) = extract(&backup, &report, part, ExtractFormat::Csv)
            .await
            .unwrap();
        same(&servers_own(&source, table), &csv, part);
    }
    // Back by psql, into tables of the same form.
    let copy = PostgresServer::shared(PgMajor::V15)
        .create_database("extract_odd_back")
        .unwrap();
    let odd = "\"My Schema\".\"Order, \"\"lines\"\"\"";
    let (sql, rows) = extract(&backup, &report, odd, ExtractFormat::Sql)
        .await
        .unwrap();
    assert_eq!(rows, 4);
    copy.psql(&format!(
        "CREATE SCHEMA \"My Schema\"; CREATE TABLE {odd} (\"a,b\" text, c regclass);\n{sql}"
    ))
    .unwrap();
    assert_eq!(servers_own(&source, odd), servers_own(&copy, odd));

    // What is not there, or means several, or has another form, is refused with what to do.
    for (part, format, told) in [
        ("public.mony", ExtractFormat::Csv, "public.many"),
        ("audit_*", ExtractFormat::Csv, "name one of them"),
        ("public.many", ExtractFormat::Rdb, "csv or sql"),
    ] {
        let failed = extract(&backup, &report, part, format).await.unwrap_err();
        let EngineError::Missing { what, remedy, .. } = &failed else {
            panic!("{failed:?}");
        };
        assert!(remedy.contains(told), "{part}: {what}: {remedy}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_streams_of_the_table_are_read_and_a_table_that_is_damaged_or_old_is_refused() {
    let source = PostgresServer::shared(PgMajor::V15)
        .create_database("extract_streams")
        .unwrap();
    source
        .psql("CREATE TABLE a (v int); INSERT INTO a VALUES (1), (2); CREATE TABLE b (v int); INSERT INTO b VALUES (3);")
        .unwrap();
    let (mut backup, report) = back_up(&engine_of_both(), &source.url()).await;
    let read = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let seen = std::sync::Arc::clone(&read);
    backup.on_read = Some(Watcher(std::sync::Arc::new(move |name, _| {
        seen.lock().unwrap().push(name.to_owned());
        Ok(())
    })));
    let (csv, _) = extract(&backup, &report, "b", ExtractFormat::Csv)
        .await
        .unwrap();
    assert_eq!(csv, "v\n3\n");
    let streams = read.lock().unwrap().clone();
    assert_eq!(streams.len(), 1, "{streams:?}");

    let whole = backup.bytes(&streams[0]);
    backup.replace(&streams[0], whole.slice(..whole.len() - 2));
    let cut = extract(&backup, &report, "b", ExtractFormat::Csv).await;
    assert!(matches!(cut, Err(EngineError::Unusable { .. })), "{cut:?}");

    let mut old = report.clone();
    for table in old.engine_data["tables"].as_array_mut().unwrap() {
        table.as_object_mut().unwrap().remove("shapes");
    }
    let refused = extract(&backup, &old, "a", ExtractFormat::Csv).await;
    assert!(
        matches!(refused, Err(EngineError::Missing { code: "types", .. })),
        "{refused:?}"
    );

    // Somebody asked to stop.
    let attempt = Attempt::of(JobId::new(), 1);
    attempt.context.stop.cancel();
    let what = Extraction {
        part: "a".to_owned(),
        format: ExtractFormat::Csv,
    };
    let stopped = engine_of_both()
        .extract(&attempt.context, &backup, &report, &what, &mut Vec::new())
        .await;
    assert!(matches!(stopped, Err(EngineError::Stopped)), "{stopped:?}");
}
