//! A backup of a larger database, with its speed: tens of megabytes, or `FETTLER_TEST_SCALE=1000` for so many.
//!
//! The speed is only told (`--nocapture`), since machines differ.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail by panicking too")]

#[allow(dead_code)]
mod common;
#[allow(dead_code)]
#[path = "../../../cli/src/demo/data.rs"]
mod shop;

use std::time::Instant;

use common::{Place, differences};
use fettler_engine::RestoreOptions;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p4_a_shop_of_many_megabytes_goes_out_and_comes_back() {
    let megabytes: u64 = std::env::var("FETTLER_TEST_SCALE").map_or(24, |text| {
        text.parse()
            .expect("FETTLER_TEST_SCALE is a number of megabytes")
    });
    let place = Place::new();
    let told = |what: &str, bytes: u64, began: Instant| {
        let seconds = began.elapsed().as_secs_f64();
        println!(
            "{what}: {bytes} bytes, {seconds:.2} s, {:.0} MB/s",
            bytes as f64 / 1e6 / seconds
        );
    };
    let began = Instant::now();
    let made = shop::make(
        &place.path("shop.sqlite"),
        megabytes * 1_000_000,
        1,
        &mut |_| {},
    )
    .unwrap();
    told("making", made.bytes, began);

    for journal in ["wal", "delete"] {
        place
            .open("shop.sqlite")
            .pragma_update(None, "journal_mode", journal)
            .unwrap();
        let began = Instant::now();
        let (report, sink) = place.backup("shop.sqlite").await.unwrap();
        told(&format!("backup ({journal})"), made.bytes, began);
        let options = RestoreOptions {
            overwrite: true,
            ..RestoreOptions::default()
        };
        let began = Instant::now();
        place
            .restore(&sink.source(), &report, "copy.sqlite", &options)
            .await
            .unwrap();
        told("restore", made.bytes, began);
        let began = Instant::now();
        let facts = place.facts("copy.sqlite", &report).await;
        told("facts", made.bytes, began);
        assert_eq!(differences(&report, &facts), Vec::<String>::new());
    }
}
