//! One of everything, out and back: `pg_dump` says the same of source and copy, and so does a proof (P4).
//!
//! `FETTLER_TEST_SCALE` multiplies the size: 1 is some tens of megabytes, 100 makes about 2 GB with a value of 300 MB.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicU32, Ordering},
};

use crate::common::{Attempt, back_up, engine, engine_of_both, mismatches, prove, restore, target};
use fettler_engine::{DatabaseEngine, PreflightLevel};
use fettler_model::ObjectKind;
use fettler_test_servers::{PgMajor, PostgresServer, TestDatabase};

static NUMBER: AtomicU32 = AtomicU32::new(0);

fn scale() -> u32 {
    std::env::var("FETTLER_TEST_SCALE")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(1)
}

/// The roles of `everything.sql` for one test.
fn tag() -> String {
    format!(
        "{}-{}",
        std::process::id(),
        NUMBER.fetch_add(1, Ordering::Relaxed)
    )
}

/// The tests' version 18 was built without XML.
fn make(server: &PostgresServer, tag: &str, without_xml: bool) -> TestDatabase {
    let database = server.create_database("everything").unwrap();
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/suite/everything.sql");
    let mut sql = std::fs::read_to_string(path)
        .unwrap()
        .replace(":\"DBNAME\"", &format!("\"{}\"", database.name()))
        .replace(":tag", tag)
        .replace(":rows", &(40_000 * u64::from(scale())).to_string())
        .replace(":megabytes", &(5 * scale()).min(300).to_string());
    if without_xml {
        sql = sql.replace("x xml,", "x text,");
    }
    if server.major() == PgMajor::V18 {
        sql.push_str(
            "CREATE TABLE public.virtual (a int, b int GENERATED ALWAYS AS (a + 1) VIRTUAL, c int CONSTRAINT named NOT NULL);
             INSERT INTO public.virtual (a, c) VALUES (1, 1);",
        );
    }
    database.psql(&sql).unwrap();
    database
}

fn make_roles(server: &PostgresServer, tag: &str) {
    server
        .psql("postgres", &format!("CREATE ROLE \"owner {tag}\"; CREATE ROLE \"reader {tag}\" LOGIN; GRANT \"reader {tag}\" TO \"owner {tag}\""))
        .unwrap();
}

/// What `pg_dump` writes, with the rows of each table sorted, and without what names the run.
fn dump(server: &PostgresServer, database: &str) -> Vec<String> {
    let text = server
        .run("pg_dump", database, &["--no-publications"])
        .unwrap();
    let mut lines = Vec::new();
    let mut rows: Option<Vec<&str>> = None;
    for line in text.lines() {
        match &mut rows {
            Some(all) if line == "\\." => {
                all.sort_unstable();
                lines.extend(rows.take().unwrap().into_iter().map(str::to_owned));
            }
            Some(all) => all.push(line),
            None if line.starts_with("\\restrict") || line.starts_with("\\unrestrict") => {}
            None => {
                if line.starts_with("COPY ") {
                    rows = Some(Vec::new());
                }
                lines.push(line.to_owned());
            }
        }
    }
    lines
}

fn assert_same_dump(source: &[String], copy: &[String]) {
    let count = |lines: &[String]| {
        let mut counts: BTreeMap<String, i64> = BTreeMap::new();
        for line in lines {
            *counts.entry(line.chars().take(300).collect()).or_default() += 1;
        }
        counts
    };
    let mut differences = count(source);
    for (line, number) in count(copy) {
        *differences.entry(line).or_default() -= number;
    }
    differences.retain(|_, number| *number != 0);
    assert_eq!(differences, BTreeMap::new());
}

/// What the database itself has: neither in `--globals-only` nor in a dump without `--create`.
fn properties(server: &PostgresServer, database: &str) -> String {
    server
        .psql(
            "postgres",
            &format!(
                "SELECT pg_get_userbyid(datdba), pg_encoding_to_char(encoding), datcollate, datctype, datconnlimit, datacl,
                    shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = '{database}';
                 SELECT COALESCE(r.rolname, ''), s.setconfig FROM pg_db_role_setting s JOIN pg_database d ON d.oid = s.setdatabase
                    LEFT JOIN pg_roles r ON r.oid = s.setrole WHERE d.datname = '{database}' ORDER BY 1"
            ),
        )
        .unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p4_one_of_everything_comes_back_as_it_was() {
    for major in PgMajor::ALL {
        let server = PostgresServer::shared(major);
        let tag = tag();
        let source = make(server, &tag, major == PgMajor::V18);
        let engine = engine(major);
        let preflight = engine
            .preflight(
                &target(&source.url()),
                &fettler_engine::BackupOptions::default(),
            )
            .await
            .unwrap();
        assert!(
            preflight
                .iter()
                .all(|item| item.level < PreflightLevel::Stops),
            "{preflight:?}"
        );
        let (backup, report) = back_up(&engine, &source.url()).await;

        let copy_name = format!("copy of {}", source.name());
        let copy_url = crate::common::beside(&source.url(), &copy_name);
        let restored = restore(&engine, &backup, &report, &copy_url).await;
        assert_eq!(restored.failed_statements, Vec::<String>::new());
        let facts = engine
            .facts(&Attempt::new().context, &target(&copy_url), &report)
            .await
            .unwrap();
        assert_eq!(mismatches(&report.objects, &facts), Vec::<String>::new());
        assert_same_dump(&dump(server, source.name()), &dump(server, &copy_name));
        assert_eq!(
            properties(server, source.name()),
            properties(server, &copy_name)
        );
        server
            .psql("postgres", &format!("DROP DATABASE \"{copy_name}\""))
            .unwrap();
        assert_eq!(prove(&engine, &backup, &report).await, Vec::<String>::new());

        let format_of = |name: &str| {
            let object = report
                .objects
                .iter()
                .find(|object| object.name == name)
                .unwrap();
            object.format.clone().unwrap()
        };
        assert_eq!(format_of("shop.binary_only"), "binary");
        assert_eq!(format_of("public.large"), "binary");
        assert_eq!(format_of("shop.wide"), "text");
        let large = report
            .objects
            .iter()
            .find(|object| object.name == "public.large")
            .unwrap();
        assert!(
            backup
                .names()
                .iter()
                .filter(|name| name.starts_with("table/"))
                .count()
                > report.objects.len()
        );
        assert_eq!(large.independent_rows, Some(36_000 * u64::from(scale())));
        assert!(
            report
                .objects
                .iter()
                .any(|object| object.kind == ObjectKind::LargeObjects)
        );
        let globals = String::from_utf8(backup.bytes("globals.sql").to_vec()).unwrap();
        assert!(
            globals.contains(&format!("CREATE ROLE \"owner {tag}\"")),
            "{globals}"
        );
        assert!(
            report
                .warnings
                .iter()
                .any(|warning| warning.code == "postgres.foreign_tables")
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p4_a_backup_of_15_comes_back_on_18() {
    let (old, new) = (
        PostgresServer::shared(PgMajor::V15),
        PostgresServer::shared(PgMajor::V18),
    );
    let tag = tag();
    let source = make(old, &tag, true);
    make_roles(new, &tag);
    let engine = engine_of_both();
    let (backup, report) = back_up(&engine, &source.url()).await;
    let copy = new.create_database("from_15").unwrap();
    let restored = restore(&engine, &backup, &report, &copy.url()).await;
    assert_eq!(restored.failed_statements, Vec::<String>::new());
    let facts = engine
        .facts(&Attempt::new().context, &target(&copy.url()), &report)
        .await
        .unwrap();
    assert_eq!(mismatches(&report.objects, &facts), Vec::<String>::new());
}
