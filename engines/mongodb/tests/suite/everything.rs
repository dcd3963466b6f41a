//! Out and back with all that a server can hold.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering::SeqCst},
};

use bson::{Bson, doc};
use fettler_engine::{BackupOptions, DatabaseEngine as _, testing::MemorySink};
use fettler_test_servers::{MongodbClient, MongodbKind};

use crate::common::{
    Attempt, ENGINE, back_up, client, facts, fill, mismatches, orders, prove, restore, server,
    target,
};

async fn out_and_back(kind: MongodbKind) {
    let source = server(kind);
    fill(&source);
    let (backup, report) = back_up(&source.url()).await;
    let names: Vec<&str> = report.objects.iter().map(|one| one.name.as_str()).collect();
    for name in [
        "shop.orders",
        "shop.with.dots.in.it",
        "types.values",
        "collections",
    ] {
        assert!(names.contains(&name), "{name} in {names:?}");
    }
    assert_eq!(prove(&backup, &report, &source).await, Vec::<String>::new());

    // Restored into another server, it reads as the source itself reads.
    let copy = server(kind);
    let restored = restore(&backup, &report, &copy.url()).await;
    assert_eq!(restored.failed_statements, Vec::<String>::new());
    assert_eq!(
        mismatches(&report.objects, &facts(&report, &source.url()).await),
        Vec::<String>::new()
    );
    assert_eq!(
        mismatches(&report.objects, &facts(&report, &copy.url()).await),
        Vec::<String>::new()
    );

    // And a client that shares nothing with the engine finds the same in both.
    let (mut from, mut to) = (client(&source), client(&copy));
    for database in ["shop", "types"] {
        let collections = from.collections(database);
        assert_eq!(collections, to.collections(database));
        for collection in collections {
            let text = |client: &mut MongodbClient| -> Vec<String> {
                client
                    .all(database, &collection)
                    .iter()
                    .map(|one| format!("{one:?}"))
                    .collect()
            };
            assert_eq!(text(&mut from), text(&mut to), "{database}.{collection}");
            let indexes = |client: &mut MongodbClient| {
                let found = client.try_run(database, doc! { "listIndexes": collection.as_str() });
                found
                    .map(|answer| {
                        let mut names: Vec<String> = answer
                            .get_document("cursor")
                            .unwrap()
                            .get_array("firstBatch")
                            .unwrap()
                            .iter()
                            .map(|one| {
                                let one = one.as_document().unwrap();
                                format!(
                                    "{:?} {:?} {:?}",
                                    one.get("name"),
                                    one.get("unique"),
                                    one.get("expireAfterSeconds")
                                )
                            })
                            .collect();
                        names.sort();
                        names
                    })
                    .ok()
            };
            assert_eq!(
                indexes(&mut from),
                indexes(&mut to),
                "{database}.{collection}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p4_every_type_comes_back_and_is_proven_where_there_is_an_oplog() {
    out_and_back(MongodbKind::WithOplog).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p4_every_type_comes_back_and_is_proven_where_there_is_no_oplog() {
    out_and_back(MongodbKind::OnDisk).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whether_a_backup_is_of_one_moment_is_said() {
    for kind in MongodbKind::ALL {
        let source = server(kind);
        client(&source).insert("shop", "orders", orders(0, 10));
        let (_, report) = back_up(&source.url()).await;
        let is_said = report
            .warnings
            .iter()
            .any(|one| one.code == "mongodb.not_one_moment");
        match kind {
            MongodbKind::WithOplog => {
                assert_eq!(report.position["method"], "oplog");
                assert!(!is_said, "{:?}", report.warnings);
            }
            MongodbKind::OnDisk => {
                assert_eq!(report.position["method"], "one by one");
                assert!(is_said, "{:?}", report.warnings);
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_empty_server_is_backed_up_and_proven() {
    for kind in MongodbKind::ALL {
        let source = server(kind);
        let (backup, report) = back_up(&source.url()).await;
        assert_eq!(prove(&backup, &report, &source).await, Vec::<String>::new());
        let copy = server(kind);
        restore(&backup, &report, &copy.url()).await;
    }
}

/// A writer that keeps a number in two documents and as the length of a collection, one after the other: in a backup of one
/// moment none is ahead of the one before it by more than one.
fn write_until(port: u16, stop: &AtomicBool, begun: &std::sync::mpsc::Sender<()>) -> i32 {
    let mut client = MongodbClient::new(port);
    let mut round = 0;
    while !stop.load(SeqCst) {
        round += 1;
        client.update(
            "shop",
            "pair",
            doc! { "_id": "a" },
            doc! { "_id": "a", "n": round },
        );
        client.insert("shop", "growing", vec![doc! { "_id": round }]);
        client.update(
            "shop",
            "pair",
            doc! { "_id": "b" },
            doc! { "$set": { "n": round } },
        );
        client.update(
            "shop",
            "orders",
            doc! { "_id": round % 3000 },
            doc! { "$set": { "lines.0.count": round } },
        );
        client.delete("shop", "orders", doc! { "_id": (round * 7) % 3000 });
        // Nobody listens after the first.
        let _heard = begun.send(());
    }
    round
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p4_a_backup_while_a_writer_runs_is_of_one_moment_where_there_is_an_oplog() {
    let source = server(MongodbKind::WithOplog);
    let mut filler = client(&source);
    filler.insert("shop", "orders", orders(0, 3000));
    filler.insert(
        "shop",
        "pair",
        vec![doc! { "_id": "a", "n": 0 }, doc! { "_id": "b", "n": 0 }],
    );
    filler.insert("shop", "growing", vec![doc! { "_id": 0 }]);
    let stop = Arc::new(AtomicBool::new(false));
    let (begun, writes) = std::sync::mpsc::channel();
    let writer = {
        let (port, stop) = (source.port(), stop.clone());
        std::thread::spawn(move || write_until(port, &stop, &begun))
    };
    writes.recv().unwrap();
    drop(writes);
    let backups = [back_up(&source.url()).await, back_up(&source.url()).await];
    stop.store(true, SeqCst);
    assert!(writer.join().unwrap() > 10);
    for (backup, report) in &backups {
        assert_eq!(report.position["method"], "oplog");
        assert_eq!(
            report
                .warnings
                .iter()
                .filter(|one| one.code == "mongodb.not_one_moment")
                .count(),
            0
        );
        let scratch = server(MongodbKind::WithOplog);
        assert_eq!(prove(backup, report, &scratch).await, Vec::<String>::new());
        let copy = server(MongodbKind::WithOplog);
        restore(backup, report, &copy.url()).await;
        let mut copied = client(&copy);
        let pair = copied.all("shop", "pair");
        let (a, b) = (pair[0].get_i32("n").unwrap(), pair[1].get_i32("n").unwrap());
        let grown = copied.all("shop", "growing");
        let longest = grown
            .iter()
            .map(|one| one.get_i32("_id").unwrap())
            .max()
            .unwrap();
        assert!(
            a >= longest && longest >= b && a - b <= 1,
            "{a} {longest} {b}"
        );
        assert_eq!(grown.len() as i32, longest + 1, "none is missing");
    }
    assert_ne!(backups[0].1.position, backups[1].1.position);
}

/// Each write is the first to its document, so whenever the oplog is looked at it tells of documents that were not read again yet.
/// The writer goes through two collections side by side: the second is never ahead, nor behind by more than one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p4_writes_that_touch_ever_new_documents_do_not_keep_a_backup_from_its_moment() {
    const WRITERS: i32 = 3;
    const EACH: i32 = 20_000;
    let source = server(MongodbKind::WithOplog);
    let mut filler = client(&source);
    for name in ["ahead", "behind"] {
        let all = (0..WRITERS * EACH).map(|id| doc! { "_id": id, "n": 0 });
        filler.insert("shop", name, all);
    }
    let stop = Arc::new(AtomicBool::new(false));
    let (begun, writes) = std::sync::mpsc::channel();
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let (port, stop, begun) = (source.port(), stop.clone(), begun.clone());
            std::thread::spawn(move || {
                let mut client = MongodbClient::new(port);
                let mut own = writer * EACH..(writer + 1) * EACH;
                while !stop.load(SeqCst) {
                    let id = own.next().expect("there are documents left");
                    for name in ["ahead", "behind"] {
                        let set = doc! { "$set": { "n": 1 } };
                        client.update("shop", name, doc! { "_id": id }, set);
                    }
                    // Nobody listens after the first.
                    let _heard = begun.send(());
                }
            })
        })
        .collect();
    writes.recv().unwrap();
    drop(writes);
    let (backup, report) = back_up(&source.url()).await;
    stop.store(true, SeqCst);
    for writer in writers {
        writer.join().unwrap();
    }
    let warned: Vec<&str> = report
        .warnings
        .iter()
        .map(|one| one.code.as_str())
        .collect();
    assert_eq!(warned, ["mongodb.no_users"]);
    let copy = server(MongodbKind::WithOplog);
    restore(&backup, &report, &copy.url()).await;
    let mut copied = client(&copy);
    let mut written = |name| -> Vec<i32> {
        copied
            .all("shop", name)
            .iter()
            .filter(|one| one.get_i32("n").unwrap() == 1)
            .map(|one| one.get_i32("_id").unwrap())
            .collect()
    };
    let (ahead, behind) = (written("ahead"), written("behind"));
    for writer in 0..WRITERS {
        let own = writer * EACH..(writer + 1) * EACH;
        let of = |all: &[i32]| -> Vec<i32> {
            let mut found: Vec<i32> = all.iter().copied().filter(|id| own.contains(id)).collect();
            found.sort_unstable();
            found
        };
        let (ahead, behind) = (of(&ahead), of(&behind));
        let first_ones: Vec<i32> = own.clone().take(ahead.len()).collect();
        assert_eq!(ahead, first_ones, "all up to the moment, none after it");
        assert_eq!(behind, first_ones[..behind.len()]);
        assert!(ahead.len() - behind.len() <= 1);
    }
}

/// Without an oplog it is no moment, and a proof says that nobody could count, but what was read comes back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_an_oplog_what_was_read_while_a_writer_ran_comes_back() {
    let source = server(MongodbKind::OnDisk);
    client(&source).insert("shop", "orders", orders(0, 2000));
    client(&source).insert("shop", "growing", vec![doc! { "_id": 0 }]);
    let stop = Arc::new(AtomicBool::new(false));
    let (begun, writes) = std::sync::mpsc::channel();
    let writer = {
        let (port, stop) = (source.port(), stop.clone());
        std::thread::spawn(move || {
            let mut client = MongodbClient::new(port);
            let mut round = 0;
            while !stop.load(SeqCst) {
                round += 1;
                client.insert("shop", "growing", vec![doc! { "_id": round }]);
                let _heard = begun.send(());
            }
        })
    };
    writes.recv().unwrap();
    drop(writes);
    let (backup, report) = back_up(&source.url()).await;
    stop.store(true, SeqCst);
    writer.join().unwrap();
    let growing = report
        .objects
        .iter()
        .find(|one| one.name == "shop.growing" && one.fingerprint.is_some())
        .unwrap();
    assert_eq!(growing.independent_rows, None);
    assert!(
        report
            .warnings
            .iter()
            .any(|one| one.code == "mongodb.not_counted")
    );
    let found = prove(&backup, &report, &source).await;
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(
        found[0].starts_with("shop.growing: None counted"),
        "{found:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_excluded_is_left_out_and_the_rest_is_proven() {
    for kind in MongodbKind::ALL {
        let source = server(kind);
        let mut filler = client(&source);
        filler.insert("shop", "orders", orders(0, 20));
        filler.insert("shop", "log_1", orders(0, 20));
        filler.insert("web", "log_1", orders(0, 20));
        let sink = MemorySink::default();
        let options = BackupOptions {
            exclude: vec!["shop.log_*".to_owned()],
            ..BackupOptions::default()
        };
        let report = ENGINE
            .backup(
                &Attempt::new().context,
                &target(&source.url()),
                &options,
                &sink,
            )
            .await
            .unwrap();
        let backup = sink.source();
        assert_eq!(prove(&backup, &report, &source).await, Vec::<String>::new());
        let copy = server(kind);
        restore(&backup, &report, &copy.url()).await;
        let mut copied = client(&copy);
        assert_eq!(copied.count("shop", "log_1"), 0);
        assert!(copied.collections("shop").contains(&"log_1".to_owned()));
        assert_eq!(
            (copied.count("shop", "orders"), copied.count("web", "log_1")),
            (20, 20)
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_backup_of_data_with_one_percent_changed_has_nearly_the_same_bytes() {
    for kind in MongodbKind::ALL {
        let source = server(kind);
        let mut filler = client(&source);
        filler.insert("shop", "orders", orders(0, 3000));
        let (first, _) = back_up(&source.url()).await;
        for n in 0..30 {
            filler.update(
                "shop",
                "orders",
                doc! { "_id": n },
                doc! { "$set": { "total": Bson::Double(-1.0) } },
            );
        }
        let (second, report) = back_up(&source.url()).await;
        let (one, two) = (bytes(&first).await, bytes(&second).await);
        let differing = one
            .chunks(1024)
            .zip(two.chunks(1024))
            .filter(|(a, b)| a != b)
            .count();
        assert!(
            differing > 0 && differing * 20 < one.len() / 1024,
            "{differing} of {}",
            one.len() / 1024
        );
        assert_eq!(prove(&second, &report, &source).await, Vec::<String>::new());
    }
}

fn backup_stream(backup: &fettler_engine::testing::MemorySource) -> String {
    fettler_engine::StreamSource::streams(backup)
        .iter()
        .find(|stream| stream.name.starts_with("documents/"))
        .unwrap()
        .name
        .clone()
}

async fn bytes(backup: &fettler_engine::testing::MemorySource) -> Vec<u8> {
    let name = backup_stream(backup);
    let mut whole = Vec::new();
    let mut pieces = fettler_engine::StreamSource::read(backup, &name)
        .await
        .unwrap();
    while let Some(piece) = futures::StreamExt::next(&mut pieces).await {
        whole.extend(piece.unwrap());
    }
    whole
}
