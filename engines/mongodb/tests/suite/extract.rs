//! A collection of a backup as BSON and as canonical extended JSON.

use bson::{Document, RawDocument, doc};
use fettler_engine::{
    BackupReport, DatabaseEngine as _, EngineError, ExtractFormat, Extraction,
    testing::MemorySource,
};
use fettler_test_servers::MongodbKind;

use crate::common::{Attempt, ENGINE, back_up, client, fill, orders, server};

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
    let written = ENGINE
        .extract(&Attempt::new().context, backup, report, &what, &mut out)
        .await?;
    assert_eq!(written.bytes, out.len() as u64);
    Ok((out, written.rows))
}

/// Documents one after another, by the library's own reader.
fn documents(mut bytes: &[u8]) -> Vec<Document> {
    let mut found = Vec::new();
    while let Some(head) = bytes.first_chunk::<4>() {
        let length = u32::from_le_bytes(*head) as usize;
        let (document, rest) = bytes.split_at(length);
        found.push(Document::try_from(RawDocument::from_bytes(document).unwrap()).unwrap());
        bytes = rest;
    }
    found
}

fn sorted(documents: &[Document]) -> Vec<String> {
    // The text shows types and the order of fields, and two NaN alike.
    let mut texts: Vec<String> = documents.iter().map(|one| format!("{one:?}")).collect();
    texts.sort();
    texts
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_collection_is_written_as_the_server_has_it() {
    for kind in MongodbKind::ALL {
        let source = server(kind);
        fill(&source);
        let (backup, report) = back_up(&source.url()).await;
        let mut asker = client(&source);
        for (database, collection) in [("types", "values"), ("types", "ids"), ("shop", "orders")] {
            let part = format!("{database}.{collection}");
            let (bytes, rows) = extract(&backup, &report, &part, ExtractFormat::Bson)
                .await
                .unwrap();
            let written = documents(&bytes);
            assert_eq!(rows, written.len() as u64);
            assert!(rows > 0, "{part}");
            assert_eq!(
                sorted(&written),
                sorted(&asker.all(database, collection)),
                "{part} of {kind:?}"
            );
            let (lines, rows) = extract(&backup, &report, &part, ExtractFormat::Ndjson)
                .await
                .unwrap();
            let lines = String::from_utf8(lines).unwrap();
            assert_eq!(rows, lines.lines().count() as u64);
            for line in lines.lines() {
                let document: serde_json::Value = serde_json::from_str(line).unwrap();
                assert!(document.get("_id").is_some(), "{line}");
            }
        }
        let (lines, _) = extract(&backup, &report, "shop.orders", ExtractFormat::Ndjson)
            .await
            .unwrap();
        let lines = String::from_utf8(lines).unwrap();
        let seventh = lines
            .lines()
            .find(|line| line.starts_with("{\"_id\":{\"$numberInt\":\"7\"},"))
            .unwrap();
        assert!(
            seventh.contains("\"total\":{\"$numberDouble\":\"0.875\"},\"lines\":[{\"sku\":{\"$numberInt\":\"21\"}"),
            "{seventh}"
        );

        for (part, format, told) in [
            ("shop.order", ExtractFormat::Bson, "shop.orders"),
            ("shop", ExtractFormat::Bson, "name one of them"),
            ("shop.orders", ExtractFormat::Csv, "bson or ndjson"),
        ] {
            let failed = extract(&backup, &report, part, format).await;
            let Err(EngineError::Missing { what, remedy, .. }) = &failed else {
                panic!("{part}: {failed:?}");
            };
            assert!(remedy.contains(told), "{part}: {what}: {remedy}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_written_while_the_backup_ran_is_as_it_was_at_its_moment() {
    let source = server(MongodbKind::WithOplog);
    client(&source).insert("shop", "orders", orders(0, 3000));
    let port = source.port();
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let stopped = std::sync::Arc::clone(&stop);
    let writing = std::thread::spawn(move || {
        let mut writer = fettler_test_servers::MongodbClient::new(port);
        let mut at = 3000;
        while !stopped.load(std::sync::atomic::Ordering::Relaxed) {
            writer.insert("shop", "orders", orders(at, at + 1));
            writer.update(
                "shop",
                "orders",
                doc! { "_id": at % 3000 },
                doc! { "$set": { "note": format!("changed {at}") } },
            );
            at += 1;
        }
    });
    let (backup, report) = back_up(&source.url()).await;
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    writing.join().unwrap();
    let (bytes, rows) = extract(&backup, &report, "shop.orders", ExtractFormat::Bson)
        .await
        .unwrap();
    let object = report
        .objects
        .iter()
        .find(|object| object.name == "shop.orders" && object.fingerprint.is_some())
        .unwrap();
    // The manifest's own sum over the documents of the moment.
    let hasher = fettler_engine::RowHasher::new(&Attempt::new().context.fingerprint_key);
    let mut print = fettler_model::Fingerprint::empty();
    let mut rest = bytes.as_slice();
    while let Some(head) = rest.first_chunk::<4>() {
        let (document, after) = rest.split_at(u32::from_le_bytes(*head) as usize);
        hasher.add(document, &mut print);
        rest = after;
    }
    assert_eq!(rows, print.rows);
    assert_eq!(Some(print), object.fingerprint);
}
