//! Everything that a server holds comes back, and is what it was by means other than ours.

use fettler_engine::{BackupOptions, DatabaseEngine as _, RestoreOptions, testing::MemorySink};
use fettler_model::ObjectKind;
use fettler_test_servers::{ClickhouseServer, ClickhouseVersion};
use rstest::rstest;

use crate::common::{
    Attempt, V18, V26, back_up, engine, facts, fill, left_behind, mismatches, run, server, target,
    try_restore,
};

/// All rows of a table as the server writes them, sorted by a client.
fn rows(server: &ClickhouseServer, table: &str, columns: &str) -> Vec<String> {
    let text = server
        .query(&format!(
            "SELECT {columns} FROM {table} FORMAT TabSeparated"
        ))
        .unwrap();
    let mut rows: Vec<String> = text.lines().map(str::to_owned).collect();
    rows.sort_unstable();
    rows
}

#[rstest]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p4_every_type_and_every_kind_of_table_comes_back(
    #[values(V18, V26)] version: ClickhouseVersion,
) {
    let source = server(version);
    fill(&source);
    let (backup, report) = back_up(&source.url()).await;
    assert_eq!(left_behind(&source), "");
    let copy = server(version);
    let restored = try_restore(&backup, &report, &copy.url(), &RestoreOptions::default())
        .await
        .unwrap();
    assert_eq!(restored.failed_statements, Vec::<String>::new());
    let mut found = mismatches(&report.objects, &facts(&report, &copy.url()).await);
    // Its rows had to go long ago, and merges go on again where no proof counts.
    found.retain(|line| !line.contains("shop.expired"));
    assert_eq!(found, Vec::<String>::new());
    let tables = source
        .query("SELECT name FROM system.tables WHERE database = 'shop' AND name NOT LIKE '.inner%' AND name != 'expired' AND engine NOT IN ('Null', 'Dictionary', 'URL') ORDER BY name")
        .unwrap();
    let types = if version == V26 {
        "* EXCEPT (st, un), finalizeAggregation(st), finalizeAggregation(un)"
    } else {
        "id, i64, f32, f64, d128, hex(s), hex(fs), tm, uu, arr, aa, tp, ns, nf, nt, lc, finalizeAggregation(st), finalizeAggregation(un), n.x, n.y"
    };
    for table in tables.lines() {
        let columns = match table {
            "types" => types,
            "events" => "*, twice, shout",
            _ => "*",
        };
        let place = format!("shop.{table}");
        assert_eq!(
            rows(&source, &place, columns),
            rows(&copy, &place, columns),
            "{table}"
        );
    }
    assert!(tables.lines().count() > 10, "{tables}");
    let odd = "`o'dd.d``b`.`t/a\\\\b \u{fc}`";
    assert_eq!(rows(&copy, odd, "*"), ["1\tone", "2\ttwo"]);
    // Definitions, as the servers tell them.
    let definitions = "SELECT name, create_table_query FROM system.tables WHERE database IN ('shop', 'o\\'dd.d`b') AND name NOT LIKE '.inner%' ORDER BY name";
    assert_eq!(
        source.query(definitions).unwrap(),
        copy.query(definitions).unwrap()
    );
    // Merges go on again, and views see what comes.
    run(&copy, &["INSERT INTO shop.summing VALUES (77, 1)"]);
    assert_eq!(rows(&copy, "shop.kept WHERE k = 77", "k, v"), ["77\t1"]);
    run(&copy, &["OPTIMIZE TABLE shop.replacing FINAL"]);
    assert_eq!(rows(&copy, "shop.replacing", "*").len(), 10);
}

#[rstest]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_without_anything_is_backed_up_and_restored(
    #[values(V18, V26)] version: ClickhouseVersion,
) {
    let source = server(version);
    let (backup, report) = back_up(&source.url()).await;
    assert!(
        report
            .objects
            .iter()
            .all(|object| object.kind != ObjectKind::Table)
    );
    let copy = server(version);
    try_restore(&backup, &report, &copy.url(), &RestoreOptions::default())
        .await
        .unwrap();
    assert_eq!(
        mismatches(&report.objects, &facts(&report, &copy.url()).await),
        Vec::<String>::new()
    );
}

#[rstest]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p4_each_table_is_one_moment_while_a_writer_runs(
    #[values(V18, V26)] version: ClickhouseVersion,
) {
    let source = server(version);
    run(
        &source,
        &[
            "CREATE DATABASE shop",
            "CREATE TABLE shop.pairs (a UInt64, b UInt64) ENGINE = MergeTree PARTITION BY a % 2 ORDER BY a",
        ],
    );
    let begun = std::sync::Barrier::new(2);
    let stop = std::sync::atomic::AtomicBool::new(false);
    let (backup, report) = std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut batch = 0;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                source
                    .query(&format!("INSERT INTO shop.pairs SELECT {batch} * 100 + number, {batch} FROM numbers(100)"))
                    .unwrap();
                batch += 1;
                if batch == 3 {
                    begun.wait();
                }
            }
            batch
        });
        begun.wait();
        let runtime = tokio::runtime::Handle::current();
        let made = tokio::task::block_in_place(|| runtime.block_on(back_up(&source.url())));
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        writer.join().unwrap();
        made
    });
    let copy = server(version);
    try_restore(&backup, &report, &copy.url(), &RestoreOptions::default())
        .await
        .unwrap();
    assert_eq!(
        mismatches(&report.objects, &facts(&report, &copy.url()).await),
        Vec::<String>::new()
    );
    // Of each batch each partition has all of its rows or none: a part is whole.
    let torn = copy
        .query("SELECT count() FROM (SELECT b, a % 2 AS p, count() AS n FROM shop.pairs GROUP BY b, p HAVING n != 50)")
        .unwrap();
    assert_eq!(torn, "0\n");
}

#[rstest]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_left_out_keeps_its_definition_and_no_rows(
    #[values(V18, V26)] version: ClickhouseVersion,
) {
    let source = server(version);
    fill(&source);
    let sink = MemorySink::default();
    let options = BackupOptions {
        exclude: vec!["shop.ev*".to_owned()],
        ..BackupOptions::default()
    };
    let report = engine()
        .backup(
            &Attempt::new().context,
            &target(&source.url()),
            &options,
            &sink,
        )
        .await
        .unwrap();
    assert!(!sink.streams().keys().any(|name| name.contains("events")));
    let copy = server(version);
    try_restore(
        &sink.source(),
        &report,
        &copy.url(),
        &RestoreOptions::default(),
    )
    .await
    .unwrap();
    assert_eq!(rows(&copy, "shop.events", "count()"), ["0"]);
    let mut found = mismatches(&report.objects, &facts(&report, &copy.url()).await);
    found.retain(|line| !line.contains("shop.expired"));
    assert_eq!(found, Vec::<String>::new());
}
