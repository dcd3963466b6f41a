//! Reading by ranges of `_id`. No server here keeps to `min` and `max`: a front before one does, for `_id`s that are numbers or
//! texts, and says that the collection is large.

use std::{
    cmp::Ordering,
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
};

use bson::{Bson, Document, doc};
use fettler_engine::StreamSource as _;
use fettler_test_servers::{MongodbClient, MongodbKind};

use crate::common::{back_up, client, orders, prove, restore, server};

/// What `collStats` tells, in bytes.
const SAID: i64 = 1024 * 1024 * 1024;

/// A front before a server.
struct Front {
    keeps_to_ranges: bool,
    ignores_max: bool,
    /// How often it was asked for a range.
    ranges: AtomicUsize,
}

impl Front {
    /// Starts one; gives its port.
    fn start(self, port: u16) -> (Arc<Self>, u16) {
        let front = Arc::new(self);
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let at = listener.local_addr().unwrap().port();
        let serving = front.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let front = serving.clone();
                std::thread::spawn(move || serve(stream, port, &front));
            }
        });
        (front, at)
    }
}

/// The order of an index on `_id`, as far as it is needed here.
fn rank(id: &Bson) -> (u8, f64, String) {
    match id {
        Bson::MinKey => (0, 0.0, String::new()),
        Bson::Int32(number) => (1, f64::from(*number), String::new()),
        Bson::String(text) => (2, 0.0, text.clone()),
        Bson::MaxKey => (9, 0.0, String::new()),
        other => panic!("{other:?}"),
    }
}

fn compare(one: &Bson, other: &Bson) -> Ordering {
    rank(one).partial_cmp(&rank(other)).unwrap()
}

/// Answers a `find` that has a range.
fn find(backend: &mut MongodbClient, database: &str, command: &Document) -> Document {
    assert_eq!(command.get_document("hint").unwrap(), &doc! { "_id": 1 });
    let collection = command.get_str("find").unwrap();
    let mut found = backend.all(database, collection);
    let edge = |name: &str| {
        command
            .get_document(name)
            .ok()
            .map(|edge| edge.get("_id").unwrap().clone())
    };
    let (min, max) = (edge("min"), edge("max"));
    found.retain(|one| {
        let id = one.get("_id").unwrap();
        min.as_ref().is_none_or(|min| compare(id, min).is_ge())
            && max.as_ref().is_none_or(|max| compare(id, max).is_lt())
    });
    found.sort_by(|a, b| compare(a.get("_id").unwrap(), b.get("_id").unwrap()));
    if let Ok(limit) = command.get_i32("limit") {
        found.truncate(limit as usize);
    }
    doc! { "cursor": { "firstBatch": found, "id": 0_i64, "ns": format!("{database}.{collection}") }, "ok": 1.0 }
}

fn serve(mut stream: TcpStream, port: u16, front: &Front) {
    let mut backend = MongodbClient::new(port);
    loop {
        let mut header = [0; 16];
        if stream.read_exact(&mut header).is_err() {
            return;
        }
        let length = i32::from_le_bytes(header[..4].try_into().unwrap()) as usize;
        let mut body = vec![0; length - 16];
        stream.read_exact(&mut body).unwrap();
        let mut command = Document::from_reader(&body[5..]).unwrap();
        let database = command.remove("$db").unwrap().as_str().unwrap().to_owned();
        if command.contains_key("min") {
            front.ranges.fetch_add(1, SeqCst);
        }
        if front.ignores_max {
            command.remove("max");
        }
        let has_range = command.contains_key("min") || command.contains_key("max");
        let answer = if has_range && front.keeps_to_ranges {
            find(&mut backend, &database, &command)
        } else {
            let mut tried = backend.try_run(&database, command.clone());
            // The server orders a sample by chance, which its own sorting sometimes refuses.
            while command.contains_key("aggregate") && tried.is_err() {
                tried = backend.try_run(&database, command.clone());
            }
            let mut answer = tried.unwrap_or_else(|refusal| refusal);
            if command.contains_key("collStats") {
                answer.insert("size", SAID);
            }
            answer
        };
        let mut written = Vec::new();
        answer.to_writer(&mut written).unwrap();
        let mut message = Vec::new();
        message.extend(((21 + written.len()) as i32).to_le_bytes());
        message.extend(0_i32.to_le_bytes());
        message.extend(&header[4..8]);
        message.extend(2013_i32.to_le_bytes());
        message.extend([0; 5]);
        message.extend(written);
        if stream.write_all(&message).is_err() {
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p4_a_large_collection_is_read_by_ranges_and_nothing_is_lost_between_types() {
    let source = server(MongodbKind::WithOplog);
    let mut filler = client(&source);
    filler.insert("shop", "orders", orders(0, 1000));
    let texts = (0..1000).map(|n| doc! { "_id": format!("text {n:04}"), "n": n });
    filler.insert("shop", "orders", texts);
    let front = Front {
        keeps_to_ranges: true,
        ignores_max: false,
        ranges: AtomicUsize::new(0),
    };
    let (front, port) = front.start(source.port());
    let (backup, report) = back_up(&format!("mongodb://127.0.0.1:{port}/")).await;
    let streams: Vec<(u64, &str)> = backup
        .streams()
        .iter()
        .filter(|stream| stream.name.starts_with("documents/"))
        .map(|stream| (stream.rows, stream.name.as_str()))
        .collect();
    assert!(streams.len() >= 4, "{streams:?}");
    // Two looks at whether it keeps to ranges, and one reading of each but the first, which has no beginning.
    assert_eq!(front.ranges.load(SeqCst), 2 + streams.len() - 1);
    assert_eq!(streams.iter().map(|(rows, _)| rows).sum::<u64>(), 2000);
    assert_eq!(prove(&backup, &report, &source).await, Vec::<String>::new());
    let copy = server(MongodbKind::WithOplog);
    restore(&backup, &report, &copy.url()).await;
    assert_eq!(
        client(&copy).all("shop", "orders"),
        filler.all("shop", "orders")
    );
}

/// (T) A server that ignores `min` and `max`, or one of them, would give each document once for each range.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_does_not_keep_to_ranges_is_found_out_and_read_in_one_go() {
    let source = server(MongodbKind::WithOplog);
    client(&source).insert("shop", "orders", orders(0, 1000));
    for (keeps_to_ranges, ignores_max) in [(false, false), (true, true)] {
        let front = Front {
            keeps_to_ranges,
            ignores_max,
            ranges: AtomicUsize::new(0),
        };
        let (front, port) = front.start(source.port());
        let (backup, report) = back_up(&format!("mongodb://127.0.0.1:{port}/")).await;
        let streams = backup
            .streams()
            .iter()
            .filter(|stream| stream.name.starts_with("documents/"));
        assert_eq!(
            streams.map(|stream| stream.rows).collect::<Vec<_>>(),
            [1000]
        );
        assert!(front.ranges.load(SeqCst) > 0);
        assert_eq!(prove(&backup, &report, &source).await, Vec::<String>::new());
    }
}
