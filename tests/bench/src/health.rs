//! How long a look at the health of a database takes, for each engine, and for very many databases at once.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use clap::Args;
use fettler_test_servers::{
    ClickhouseServer, ClickhouseVersion, MongodbKind, MongodbServer, SearchKind, SearchServer,
};
use serde_json::{Value, json};

use crate::{
    Result,
    figures::{head, median, row},
    programs::Programs,
    stand::{Stand, redis},
};

#[derive(Args)]
pub struct Options {
    /// Looks at each engine and each level; the median counts.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Databases that are looked at at once.
    #[arg(long, default_value_t = 100)]
    databases: usize,
    /// Tables of each database of PostgreSQL, with two indexes each.
    #[arg(long, default_value_t = 20)]
    tables: usize,
}

/// Shows both.
pub async fn run(options: &Options) -> Result<()> {
    let stand = Stand::start()?;
    each_engine(&stand, options)?;
    many_at_once(&stand, options).await
}

/// One look after the other, by the command line: with the start of the program, the connection and the ledger of one machine.
fn each_engine(stand: &Stand, options: &Options) -> Result<()> {
    let redis = redis()?;
    let mongodb = MongodbServer::start(MongodbKind::WithOplog)?;
    let clickhouse = ClickhouseServer::start(ClickhouseVersion::V26)?;
    let search = SearchServer::start(SearchKind::Elasticsearch, &[])?;
    let postgres = stand.postgres.create_database("looked_at")?;
    fill(&postgres.url(), options.tables)?;
    let file = stand.folder().join("looked_at.sqlite");
    std::fs::write(&file, "")?;
    let urls = [
        ("PostgreSQL", postgres.url()),
        ("SQLite", file.to_string_lossy().into_owned()),
        ("Redis", redis.url()),
        ("MongoDB", mongodb.url()),
        ("ClickHouse", clickhouse.url()),
        ("Elasticsearch", search.url()),
    ];
    head(&["engine", "basic s", "full s", "checks of the full look"]);
    for (engine, url) in urls {
        let mut cells = vec![engine.to_owned()];
        let mut checks = 0;
        for level in ["--basic", "--full"] {
            let mut took = Vec::new();
            for _ in 0..options.rounds {
                let begun = Instant::now();
                let report = look(stand, &url, level)?;
                took.push(begun.elapsed().as_secs_f64());
                checks = checks_of(&report);
            }
            cells.push(format!("{:.2}", median(&took)));
        }
        cells.push(checks.to_string());
        row(&cells);
    }
    Ok(())
}

/// Looks once; what is found is no failure.
fn look(stand: &Stand, url: &str, level: &str) -> Result<Value> {
    let output = Command::new(std::env::current_exe()?.with_file_name("fettler"))
        .args(["health", url, level, "--json"])
        .env("FETTLER_FOLDER", stand.folder().join("alone"))
        .output()?;
    serde_json::from_slice(&output.stdout)
        .map_err(|_| String::from_utf8_lossy(&output.stderr).into_owned().into())
}

/// How many checks a look made.
fn checks_of(report: &Value) -> u64 {
    let dimensions = report["score"]["dimensions"].as_array();
    let made = ["passed", "found", "not_evaluable", "not_applicable"];
    let of_one = |dimension: &Value| -> u64 {
        made.iter()
            .filter_map(|word| dimension[word].as_u64())
            .sum()
    };
    dimensions.into_iter().flatten().map(of_one).sum()
}

/// Tables with rows and indexes.
fn fill(url: &str, tables: usize) -> Result<()> {
    let statements = format!(
        "DO $$ BEGIN FOR n IN 1..{tables} LOOP
           EXECUTE format('CREATE TABLE t%s (id bigint PRIMARY KEY, v text)', n);
           EXECUTE format('CREATE INDEX ON t%s (v)', n);
           EXECUTE format('INSERT INTO t%s SELECT g, g::text FROM generate_series(1, 1000) g', n);
         END LOOP; END $$"
    );
    let done = Command::new("psql")
        .args([
            "-X",
            "-q",
            "-v",
            "ON_ERROR_STOP=1",
            "-d",
            url,
            "-c",
            &statements,
        ])
        .status()?;
    if !done.success() {
        return Err("the tables could not be made".into());
    }
    Ok(())
}

/// Basic looks at databases of one server, submitted in one request to a fleet of one worker: until the last has ended.
async fn many_at_once(stand: &Stand, options: &Options) -> Result<()> {
    let fleet = stand.fleet().await?;
    let programs = Programs::of(stand, &fleet.url)?;
    let mut databases = Vec::new();
    for n in 0..options.databases {
        let database = stand.postgres.create_database(&format!("shop{n}"))?;
        fill(&database.url(), options.tables)?;
        programs.told(&["database", "add", &format!("shop{n}"), &database.url()])?;
        databases.push(database);
    }
    let interface = programs.interface().await?;
    let client = interface.client()?;
    let _worker = programs.worker()?;
    let mut took = Vec::new();
    // The first round opens connections, and is not counted.
    for round in 0..=options.rounds {
        let rows: Vec<Value> = (0..options.databases)
            .map(|n| {
                json!({
                    "idempotency_key": format!("{round}-{n}"),
                    "job": {"kind": "health", "database": format!("shop{n}"), "arguments": {"level": "basic"}},
                })
            })
            .collect();
        let begun = Instant::now();
        let answer = client
            .post(format!("{}/batch", interface.jobs))
            .header(reqwest::header::CONTENT_TYPE, "application/json")
            .body(json!({ "rows": rows }).to_string())
            .send()
            .await?;
        let status = answer.status();
        if !status.is_success() {
            return Err(format!("{status}: {}", answer.text().await?).into());
        }
        fleet.all_ended().await?;
        if round > 0 {
            took.push(begun.elapsed().as_secs_f64());
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    let (ended, well) = (fleet.ended().await?, fleet.succeeded().await?);
    if ended != well {
        return Err(format!("{} of {ended} looks failed", ended - well).into());
    }
    println!();
    head(&["databases at once", "basic s (median)", "most s"]);
    let most = took.iter().copied().fold(0.0, f64::max);
    row(&[
        options.databases.to_string(),
        format!("{:.2}", median(&took)),
        format!("{most:.2}"),
    ]);
    Ok(())
}
