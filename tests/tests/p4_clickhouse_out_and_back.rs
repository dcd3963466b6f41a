//! P4 for ClickHouse, through the binary: backed up, proven in databases on a server that is named, restored into another
//! server, and equal to the source by the server's own hash. Types and kinds of tables are the engine's own suite's matter.

#![allow(clippy::unwrap_used)]

use fettler_tests::{
    Installation, Size,
    servers::{ClickhouseServer, ClickhouseVersion},
};
use rstest::rstest;

const HASH: &str = "SELECT count(), sum(cityHash64(id, name, price)) FROM shop.orders";

fn fill(server: &ClickhouseServer) {
    for statement in [
        "CREATE DATABASE shop",
        "CREATE TABLE shop.orders (id UInt64, name String, price Float64) ENGINE = MergeTree PARTITION BY id % 4 ORDER BY id",
        "INSERT INTO shop.orders SELECT number, toString(number), number / 3 FROM numbers(20000)",
    ] {
        server.query(statement).unwrap();
    }
}

#[rstest]
fn p4_p9_a_clickhouse_server_comes_back_and_its_password_stands_nowhere(
    #[values(Size::Embedded, Size::Fleet)] size: Size,
    #[values(ClickhouseVersion::V18, ClickhouseVersion::V26)] version: ClickhouseVersion,
) {
    let start = || ClickhouseServer::start_with_password(version, "s3cretOfClickhouse").unwrap();
    let (source, copy) = (start(), start());
    fill(&source);

    let fettler = Installation::of_size(size);
    let made = fettler.json(&["backup", &source.url()]);
    assert_eq!(made["engine"], "clickhouse", "{made:#}");
    let proof = fettler.json(&["prove", "latest", "--sandbox", &copy.url()]);
    assert_eq!(proof["proven"], true, "{proof:#}");
    let left = copy
        .query("SELECT count() FROM system.databases WHERE name LIKE 'fettler%'")
        .unwrap();
    assert_eq!(left, "0\n");

    fettler
        .run(&["restore", "latest", "--to", &copy.url(), "--json"])
        .done();
    assert_eq!(source.query(HASH).unwrap(), copy.query(HASH).unwrap());

    // P9: the password is nowhere in what Fettler wrote.
    let found = std::process::Command::new("grep")
        .args(["-rlF", "s3cretOfClickhouse"])
        .args(fettler.folders())
        .output()
        .unwrap();
    assert!(
        found.stdout.is_empty(),
        "the password stands in {}",
        String::from_utf8_lossy(&found.stdout)
    );

    source
        .query("INSERT INTO shop.orders VALUES (4, 'another', 0.5)")
        .unwrap();
    let second = fettler.json(&["backup", &source.url()]);
    assert_eq!(second["parent"], made["backup"]);
    if version == ClickhouseVersion::V26 {
        // Three of four partitions are as they were.
        let (read, new) = (
            second["bytes_read"].as_u64().unwrap(),
            second["bytes_new"].as_u64().unwrap(),
        );
        assert!(new < read / 2, "{second:#}");
    }
}

#[rstest]
fn a_moment_of_a_clickhouse_server_is_its_last_backup_before_it_which_is_named(
    #[values(Size::Embedded, Size::Fleet)] size: Size,
) {
    let start = || ClickhouseServer::start(ClickhouseVersion::V18).unwrap();
    let (source, copy) = (start(), start());
    fill(&source);
    let fettler = Installation::of_size(size);
    let before = jiff::Timestamp::now().to_string();
    let backups: Vec<serde_json::Value> = (0..3)
        .map(|at| {
            let row = format!("INSERT INTO shop.orders VALUES ({at}, 'more', 0.5)");
            source.query(&row).unwrap();
            fettler.json(&["backup", &source.url(), "--name", "shop"])
        })
        .collect();
    let all = fettler.json(&["backups"]);
    let finished = |at: usize| -> jiff::Timestamp {
        let all = all["backups"].as_array().unwrap();
        let found = all
            .iter()
            .find(|one| one["backup"] == backups[at]["backup"]);
        found.unwrap()["finished"]
            .as_str()
            .unwrap()
            .parse()
            .unwrap()
    };
    let restore = |at: &str| {
        fettler.run(&[
            "restore",
            // Any backup of the database says which one is meant.
            backups[0]["backup"].as_str().unwrap(),
            "--to-time",
            at,
            "--to",
            &copy.url(),
            "--overwrite",
            "--json",
        ])
    };
    let rows = || copy.query("SELECT count() FROM shop.orders").unwrap();

    let nanosecond = jiff::SignedDuration::from_nanos(1000);
    for (at, taken) in [
        (finished(1), 1),
        (finished(2) - nanosecond, 1),
        (finished(1) - nanosecond, 0),
        (jiff::Timestamp::now(), 2),
    ] {
        let restored = restore(&at.to_string()).done().json();
        assert_eq!(
            restored["backup"], backups[taken]["backup"],
            "{at}: {restored:#}"
        );
        assert_eq!(rows(), format!("{}\n", 20_001 + taken));
        let told = restored["warnings"].to_string();
        assert!(told.contains(&finished(taken).to_string()), "{told}");
    }
    let refused = restore(&before);
    assert_ne!(refused.code, 0);
    let told = format!("{}{}", refused.stdout, refused.stderr);
    assert!(told.contains("restore.no_such_moment"), "{told}");
    // Nothing was touched.
    assert_eq!(rows(), "20003\n");
}

/// What lies in a folder of a server's backups.
fn backups_in(server: &ClickhouseServer, folder: &str) -> Vec<String> {
    let folder = server.disk_of_backups().join(folder);
    let mut all: Vec<String> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    all.sort();
    all
}

#[rstest]
fn p4_p8_a_backup_of_the_servers_own_is_listed_proven_restored_verified_and_let_go(
    #[values(Size::Embedded, Size::Fleet)] size: Size,
) {
    let server = ClickhouseServer::start(ClickhouseVersion::V26).unwrap();
    fill(&server);
    let fettler = Installation::of_size(size);
    let back_up = || {
        fettler.json(&[
            "backup",
            &server.url(),
            "--by-server",
            "disk:backups/nightly",
        ])
    };
    let first = back_up();
    let read = fettler.json(&["backup", &server.url()]);
    // Each way takes over from its own.
    assert!(first["parent"].is_null() && read["parent"].is_null());
    let second = back_up();
    assert_eq!(second["parent"], first["backup"]);
    let third = back_up();
    assert_eq!(backups_in(&server, "nightly").len(), 3);
    let listed = fettler.json(&["backups"]).to_string();
    assert_eq!(listed.matches("by-server").count(), 3, "{listed}");
    let id = |made: &serde_json::Value| made["backup"].as_str().unwrap().to_owned();

    let proof = fettler.json(&["prove", &id(&second), "--sandbox", "source-server"]);
    assert_eq!(proof["proven"], true, "{proof:#}");
    let to = format!("{}copy", server.url());
    fettler
        .run(&["restore", &id(&second), "--to", &to, "--only", "shop"])
        .done();
    assert_eq!(
        server.query(HASH).unwrap(),
        server.query(&HASH.replace("shop.", "copy.")).unwrap()
    );
    fettler.run(&["verify", &id(&third)]).done();

    // Retention keeps the proven one beside the newest; the folder of the other goes.
    let named = |made: &serde_json::Value| format!("fettler-{}-", id(made).replace('-', ""));
    let is_there = |made: &serde_json::Value| {
        let all = backups_in(&server, "nightly");
        all.iter().any(|name| name.starts_with(&named(made)))
    };
    fettler.run(&["forget", "--keep-last", "1"]).done();
    assert!(!is_there(&first) && is_there(&second) && is_there(&third));

    // By name too; and what somebody else removed is found.
    fettler.run(&["forget", &id(&second)]).done();
    assert!(!is_there(&second) && is_there(&third));
    for name in backups_in(&server, "nightly") {
        std::fs::remove_dir_all(server.disk_of_backups().join("nightly").join(name)).unwrap();
    }
    let verified = fettler.run(&["verify", &id(&third)]);
    assert_eq!(verified.code, 3, "{verified:?}");
    let listed = fettler.json(&["backups"]).to_string();
    assert!(listed.contains("damaged"), "{listed}");
}

#[test]
fn what_the_server_cannot_let_go_is_told_with_the_folder_that_is_to_be_removed() {
    let server = ClickhouseServer::start(ClickhouseVersion::V26).unwrap();
    fill(&server);
    let fettler = Installation::of_size(Size::Embedded);
    let made = fettler.json(&["backup", &server.url(), "--by-server", "file:weekly"]);
    let forgotten = fettler.run(&["forget", made["backup"].as_str().unwrap()]);
    assert_ne!(forgotten.code, 0, "{forgotten:?}");
    let told = format!("{}{}", forgotten.stdout, forgotten.stderr);
    assert!(
        told.contains("by_server") && told.contains("weekly/fettler-"),
        "{told}"
    );
    let folder = server.backups().join("weekly");
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1);
}

#[rstest]
fn p4_all_shards_of_a_cluster_are_one_backup_that_is_proven_and_comes_back(
    #[values(Size::Embedded, Size::Fleet)] size: Size,
) {
    let (source, copy) = (
        ClickhouseServer::start_shards(2).unwrap(),
        ClickhouseServer::start_shards(2).unwrap(),
    );
    for server in &source {
        fill(server);
        server
            .query("CREATE TABLE shop.all AS shop.orders ENGINE = Distributed(shards, shop, orders, id)")
            .unwrap();
    }
    source[1]
        .query("INSERT INTO shop.orders VALUES (1, 'only here', 0.5)")
        .unwrap();
    let of = |cluster: &[ClickhouseServer]| format!("{}?cluster=shards", cluster[0].url());
    let hash = HASH.replace("shop.orders", "shop.all");
    let fettler = Installation::of_size(size);
    fettler.run(&["backup", &of(&source)]).done();
    let proof = fettler.json(&["prove", "latest", "--sandbox", "source-server"]);
    assert_eq!(proof["proven"], true, "{proof:#}");
    fettler
        .run(&["restore", "latest", "--to", &of(&copy)])
        .done();
    assert_eq!(
        copy[0].query(&hash).unwrap(),
        source[0].query(&hash).unwrap()
    );
    for (server, copy) in source.iter().zip(&copy) {
        assert_eq!(copy.query(HASH).unwrap(), server.query(HASH).unwrap());
        for server in [server, copy] {
            let left = server
                .query("SELECT count() FROM system.databases WHERE name LIKE 'fettler%'")
                .unwrap();
            assert_eq!(left, "0\n");
        }
    }
    for server in &copy {
        server.query("DROP DATABASE shop").unwrap();
    }
    let copied = fettler.json(&["copy-data", &of(&source), &of(&copy)]);
    assert_eq!(copied["equal"], true, "{copied:#}");
    assert_eq!(
        copy[0].query(&hash).unwrap(),
        source[0].query(&hash).unwrap()
    );
    let unknown = of(&source).replace("=shards", "=shard");
    let refused = fettler.run(&["backup", &unknown]);
    let told = format!("{}{}", refused.stdout, refused.stderr);
    assert!(
        refused.code != 0 && told.contains("it knows shards"),
        "{told}"
    );
}
