//! A table of a backup as Native, which the server itself takes back.

use fettler_engine::{
    BackupReport, DatabaseEngine as _, EngineError, ExtractFormat, Extraction,
    testing::MemorySource,
};
use fettler_test_servers::{ClickhouseServer, ClickhouseVersion};
use rstest::rstest;

use crate::common::{Attempt, V18, V26, back_up, engine, fill, run, server};

async fn extract(
    backup: &MemorySource,
    report: &BackupReport,
    part: &str,
    format: ExtractFormat,
) -> Result<(Vec<u8>, u64), EngineError> {
    let mut out = Vec::new();
    let what = Extraction {
        part: part.to_owned(),
        format,
    };
    let written = engine()
        .extract(&Attempt::new().context, backup, report, &what, &mut out)
        .await?;
    assert_eq!(written.bytes, out.len() as u64);
    Ok((out, written.rows))
}

/// Puts Native into a table as anybody does.
async fn insert(server: &ClickhouseServer, table: &str, columns: &str, native: Vec<u8>) {
    let mut url = url::Url::parse(&server.url().replacen("clickhouse", "http", 1)).unwrap();
    let (user, password) = (
        url.username().to_owned(),
        url.password().unwrap_or_default().to_owned(),
    );
    url.set_path("/");
    url.set_username("").unwrap();
    url.set_password(None).unwrap();
    url.query_pairs_mut().append_pair(
        "query",
        &format!("INSERT INTO {table} ({columns}) FORMAT Native"),
    );
    let answer = reqwest::Client::new()
        .post(url)
        .header(
            "X-ClickHouse-User",
            if user.is_empty() {
                "default".to_owned()
            } else {
                user
            },
        )
        .header("X-ClickHouse-Key", password)
        .body(native)
        .send()
        .await
        .unwrap();
    let status = answer.status();
    assert!(status.is_success(), "{}", answer.text().await.unwrap());
}

#[rstest]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_and_a_partition_go_back_in_by_the_servers_own_insert(
    #[values(V18, V26)] version: ClickhouseVersion,
) {
    let source = server(version);
    fill(&source);
    let (backup, report) = back_up(&source.url()).await;
    run(
        &source,
        &[
            "CREATE TABLE back (day Date, id UInt64, note Nullable(String)) ENGINE = MergeTree ORDER BY id",
            "CREATE TABLE part (day Date, id UInt64, note Nullable(String)) ENGINE = MergeTree ORDER BY id",
        ],
    );
    let columns = "day, id, note";
    let rows = |table: &str| {
        source
            .query(&format!(
                "SELECT day, id, note FROM {table} ORDER BY id, day, note"
            ))
            .unwrap()
    };
    for (part, table, original) in [
        ("shop.events", "back", "shop.events"),
        (
            "shop.events/202602",
            "part",
            "shop.events WHERE toYYYYMM(day) = 202602",
        ),
    ] {
        let (native, count) = extract(&backup, &report, part, ExtractFormat::Native)
            .await
            .unwrap();
        // Also what is computed once and kept is in it; the server takes what the list of columns names.
        let whole = format!("{columns}, twice");
        run(
            &source,
            &[&format!("ALTER TABLE {table} ADD COLUMN twice UInt64")],
        );
        insert(&source, table, &whole, native).await;
        let there = rows(table);
        assert_eq!(there, rows(original));
        assert_eq!(count, there.lines().count() as u64);
    }
    let (empty, count) = extract(&backup, &report, "shop.empty", ExtractFormat::Native)
        .await
        .unwrap();
    assert_eq!((empty.len(), count), (0, 0));

    for (part, format, told) in [
        ("shop.event", ExtractFormat::Native, "shop.events"),
        (
            "shop.events/199901",
            ExtractFormat::Native,
            "`fettler browse",
        ),
        ("shop", ExtractFormat::Native, "name one of them"),
        ("shop.a_view", ExtractFormat::Native, "name the table"),
        ("shop.events", ExtractFormat::Csv, "native"),
    ] {
        let failed = extract(&backup, &report, part, format).await;
        let Err(EngineError::Missing { what, remedy, .. }) = &failed else {
            // The view's words stand in a plain engine's refusal.
            panic!("{part}: {failed:?}");
        };
        assert!(remedy.contains(told), "{part}: {what}: {remedy}");
    }
}
