//! How much memory a server needs while rows are brought to it.

use std::{fs, time::Duration};

use fettler_test_servers::{PgMajor, PostgresOptions, PostgresServer};

use crate::common::{back_up, beside, engine, restore};

/// Memory of its own that the largest of the server's processes holds, bytes.
fn largest_process(server: &PostgresServer) -> u64 {
    let postmaster = server.pid().unwrap();
    let children = fs::read_to_string(format!("/proc/{postmaster}/task/{postmaster}/children"));
    children
        .unwrap_or_default()
        .split_whitespace()
        .filter_map(|process| fs::read_to_string(format!("/proc/{process}/status")).ok())
        .filter_map(|status| {
            let line = status.lines().find(|line| line.starts_with("RssAnon:"))?;
            line.split_whitespace().nth(1)?.parse::<u64>().ok()
        })
        .max()
        .unwrap_or(0)
        * 1024
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_gets_large_rows_gathers_few_of_them() {
    const ROW_BYTES: u64 = 4_000_000;
    let server = PostgresServer::start(PgMajor::V15, PostgresOptions::new()).unwrap();
    server
        .psql(
            "postgres",
            &format!(
                "CREATE TABLE large (id int, v bytea); ALTER TABLE large ALTER v SET STORAGE EXTERNAL;
                 INSERT INTO large SELECT n, decode(repeat(md5(n::text), {ROW_BYTES} / 16), 'hex') FROM generate_series(1, 60) n"
            ),
        )
        .unwrap();
    let url = server.url("postgres");
    let engine = engine(PgMajor::V15);
    let (backup, report) = back_up(&engine, &url).await;
    let object = &report.objects[0];
    assert_eq!(object.format.as_deref(), Some("binary"));
    let copy = beside(&url, "copy");
    let mut restoring = std::pin::pin!(restore(&engine, &backup, &report, &copy));
    let mut peak = 0;
    let restored = loop {
        let look = tokio::time::sleep(Duration::from_millis(2));
        tokio::select! {
            restored = &mut restoring => break restored,
            () = look => peak = peak.max(largest_process(&server)),
        }
    };
    assert_eq!(restored.rows, 60);
    assert!(peak > ROW_BYTES, "nothing was seen of it");
    // What is gathered (8 MB and a row), once more while it is written, and a row in the making.
    assert!(peak < 40_000_000, "{peak} bytes");
    assert_eq!(
        server
            .psql("copy", "SELECT count(*), sum(id) FROM large")
            .unwrap()
            .trim(),
        "60|1830"
    );
}
