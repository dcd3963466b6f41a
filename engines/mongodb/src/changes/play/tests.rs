use std::sync::Arc;

use bson::{Bson, rawdoc};
use fettler_engine::{
    StreamReader, Target,
    testing::{MemoryRecord, context},
};
use fettler_model::{DatabaseUrl, JobId};

use super::*;

/// Entries of the oplog, and what is asked of them.
struct Log(Vec<RawDocumentBuf>);

#[async_trait::async_trait]
impl ChangeSource for Log {
    fn begin(&self) -> u64 {
        1
    }

    fn end(&self) -> u64 {
        u64::MAX
    }

    async fn read(&self) -> Result<StreamReader, EngineError> {
        let pieces: Vec<_> = self
            .0
            .iter()
            .map(|entry| Ok(bytes::Bytes::copy_from_slice(entry.as_bytes())))
            .collect();
        Ok(Box::pin(futures::stream::iter(pieces)))
    }
}

fn params(url: &str) -> Params {
    let (url, password) = DatabaseUrl::parse_with_password(url).unwrap();
    Params::of(&Target { url, password }).unwrap()
}

/// Looks whether these entries can be played on an empty server.
async fn look(entries: Vec<RawDocumentBuf>, url: &str, only: &[&str]) -> Result<Played, String> {
    let folder = tempfile::tempdir().unwrap();
    let context = context(
        JobId::new(),
        1,
        folder.path(),
        &Arc::<MemoryRecord>::default(),
    );
    let only: Vec<String> = only.iter().map(|one| (*one).to_owned()).collect();
    let (params, selection) = (params(url), Selection::of_restore(&only).unwrap());
    let reach = Reach {
        since: 1,
        position: 10,
        end: u64::MAX,
        played: 0,
    };
    let scope = Scope::new(&params, &selection, &[]);
    play(&context, &scope, Vec::new(), &Log(entries), reach, None)
        .await
        .map_err(|error| error.to_string())
}

/// What has its effect with each of these entries: their namespaces and kinds.
async fn effects(entries: &[RawDocumentBuf]) -> Result<Vec<Vec<String>>, String> {
    let folder = tempfile::tempdir().unwrap();
    let context = context(
        JobId::new(),
        1,
        folder.path(),
        &Arc::<MemoryRecord>::default(),
    );
    let (params, selection) = (params("mongodb://h/"), Selection::default());
    let scope = Scope::new(&params, &selection, &[]);
    let mut player = Player {
        context: &context,
        scope: &scope,
        reach: Reach {
            since: 1,
            position: 10,
            end: u64::MAX,
            played: 0,
        },
        based: HashSet::new(),
        shapes: Shapes::new(Vec::new(), &scope),
        open: HashMap::new(),
        window: Vec::new(),
        window_bytes: 0,
        done: 0,
        is_repeating: false,
        stage: None,
        rows: 0,
        bytes: 0,
        missing: 0,
    };
    let mut found = Vec::new();
    for entry in entries {
        let number = number_of(entry.get_timestamp("ts").unwrap());
        let here = player
            .effects(number, entry)
            .map_err(|error| error.to_string())?;
        found.push(
            here.iter()
                .map(|one| {
                    format!(
                        "{} {}",
                        one.get_str("op").unwrap(),
                        one.get_str("ns").unwrap()
                    )
                })
                .collect(),
        );
    }
    Ok(found)
}

fn at(number: u32, mut entry: RawDocumentBuf) -> RawDocumentBuf {
    put(
        &mut entry,
        "ts",
        Timestamp {
            time: 0,
            increment: number,
        },
    );
    entry
}

/// An entry of a transaction as a server writes it: `before` is the number of the one before.
fn part(number: u32, txn: i64, object: RawDocumentBuf, before: u32) -> RawDocumentBuf {
    let before = Timestamp {
        time: 0,
        increment: before,
    };
    let mut entry = rawdoc! {
        "op": "c", "ns": "admin.$cmd", "lsid": { "id": "a" }, "txnNumber": txn,
        "prevOpTime": { "ts": before, "t": 1_i64 },
    };
    put(&mut entry, "o", object);
    at(number, entry)
}

fn group(namespace: &str) -> RawArrayBuf {
    let mut list = RawArrayBuf::new();
    list.push(rawdoc! { "op": "i", "ns": namespace, "o": { "_id": 1 } });
    list
}

#[tokio::test]
async fn a_transaction_has_its_effect_where_it_ends_and_not_at_all_when_it_does_not() {
    let plain = |number| {
        at(
            number,
            rawdoc! { "op": "i", "ns": "a.plain", "o": { "_id": 1 } },
        )
    };
    let one = [
        part(
            20,
            1,
            rawdoc! { "applyOps": group("a.1"), "partialTxn": true },
            0,
        ),
        plain(21),
        part(
            22,
            1,
            rawdoc! { "applyOps": group("a.2"), "partialTxn": true },
            20,
        ),
        part(
            23,
            1,
            rawdoc! { "applyOps": group("a.3"), "count": 3_i64 },
            22,
        ),
    ];
    assert_eq!(
        effects(&one).await.unwrap(),
        [
            vec![],
            vec!["i a.plain".to_owned()],
            vec![],
            vec!["i a.1".to_owned(), "i a.2".to_owned(), "i a.3".to_owned()],
        ]
    );
    assert_eq!(effects(&one[..3]).await.unwrap().concat(), ["i a.plain"]);

    let prepared = [
        part(
            30,
            2,
            rawdoc! { "applyOps": group("a.4"), "prepare": true },
            0,
        ),
        part(
            31,
            3,
            rawdoc! { "applyOps": group("a.5"), "prepare": true },
            0,
        ),
        part(
            32,
            2,
            rawdoc! { "commitTransaction": 1, "prepared": true },
            30,
        ),
        part(33, 3, rawdoc! { "abortTransaction": 1 }, 31),
        // A group of one entry, and one of retryable writes.
        part(34, 4, rawdoc! { "applyOps": group("a.6") }, 0),
        {
            let mut several = part(35, 5, rawdoc! { "applyOps": group("a.7") }, 12);
            put(&mut several, "multiOpType", 1);
            several
        },
    ];
    assert_eq!(
        effects(&prepared).await.unwrap().concat(),
        ["i a.4", "i a.6", "i a.7"]
    );
}

#[tokio::test]
async fn a_transaction_whose_beginning_is_missing_is_no_silence() {
    let end = |number| part(number, 1, rawdoc! { "applyOps": group("a.b") }, 5);
    let commit = |number| part(number, 1, rawdoc! { "commitTransaction": 1 }, 5);
    for entry in [end(20), commit(20)] {
        assert!(effects(&[entry]).await.unwrap_err().contains("beginning"));
    }
    // The backup has what ended before its moment.
    for entry in [end(9), commit(9)] {
        assert!(effects(&[entry]).await.is_ok());
    }
}

#[tokio::test]
async fn what_cannot_be_played_is_told_before_anything_is_touched() {
    let url = "mongodb://h/";
    let write = |ns: &str| at(20, rawdoc! { "op": "i", "ns": ns, "o": { "_id": 1 } });
    let modify = |object: RawDocumentBuf| {
        let mut entry = rawdoc! { "op": "u", "ns": "shop.a", "o2": { "_id": 1 } };
        put(&mut entry, "o", object);
        at(20, entry)
    };
    for known in [
        rawdoc! { "$v": 2, "diff": { "sa": { "u": { "b": 1 } } } },
        rawdoc! { "$v": 1, "$set": { "a.0.b": 1 } },
        rawdoc! { "$set": { "a": 1 }, "$unset": { "b": true } },
        rawdoc! { "a": 1 },
    ] {
        assert!(look(vec![modify(known)], url, &[]).await.is_ok());
    }
    for unknown in [
        rawdoc! { "$inc": { "a": 1 } },
        rawdoc! { "$v": 3, "diff": {} },
    ] {
        let told = look(vec![modify(unknown)], url, &[]).await.err().unwrap();
        assert!(told.contains("not known"), "{told}");
    }
    let series = || vec![write("shop.system.buckets.weather")];
    let told = look(series(), url, &[]).await.err().unwrap();
    assert!(told.contains("time series shop.weather"), "{told}");
    assert!(look(series(), url, &["shop.orders"]).await.is_ok());
    // A target that names one database has no place for two.
    let two = || vec![write("shop.a"), write("web.a")];
    assert!(look(two(), url, &[]).await.is_ok());
    assert!(look(two(), "mongodb://h/copy", &[]).await.is_err());
    let made = look(two(), "mongodb://h/copy", &["shop"])
        .await
        .unwrap()
        .made;
    assert_eq!(
        made.into_iter().collect::<Vec<_>>(),
        [("copy".to_owned(), "a".to_owned())]
    );
}

#[tokio::test]
async fn what_is_the_servers_own_is_left_out() {
    let write = |ns: &str| at(20, rawdoc! { "op": "i", "ns": ns, "o": { "_id": 1 } });
    let own = vec![
        write("config.transactions"),
        write("admin.system.users"),
        at(
            21,
            rawdoc! { "op": "n", "ns": "", "o": { "msg": "periodic noop" } },
        ),
    ];
    let played = look(own, "mongodb://h/", &[]).await.unwrap();
    assert!(played.made.is_empty() && played.jobs.is_empty());
}

/// As MongoDB 5 and later write `$inc`, `$push`, `$unset`, `$rename` and `$setOnInsert`: the oplog of a counter and a list.
#[test]
fn recorded_differences_lead_to_what_the_server_had() {
    let namespace = "shop.orders".to_owned();
    let modify = |diff: RawDocumentBuf| Change::Modify {
        namespace: namespace.clone(),
        id: rawdoc! { "_id": 1 },
        change: {
            let mut change = rawdoc! { "$v": 2 };
            put(&mut change, "diff", diff);
            change
        },
    };
    let changes = vec![
        modify(rawdoc! { "u": { "count": 8 } }),
        modify(rawdoc! { "stags": { "a": true, "u1": "b" }, "i": { "seen": 1_i64 } }),
        modify(rawdoc! { "u": { "count": 9 }, "d": { "old": false } }),
        modify(rawdoc! { "u": { "count": 10 }, "sdeep": { "i": { "y": 1.5 } } }),
    ];
    let document = rawdoc! { "_id": 1, "count": 7, "tags": ["a"], "old": 1, "deep": { "x": 1 } };
    let there = || HashMap::from([(key_of(&document).unwrap(), document.clone())]);
    let expected = rawdoc! { "_id": 1, "count": 10, "tags": ["a", "b"], "deep": { "x": 1, "y": 1.5 }, "seen": 1_i64 };
    let (states, missing) = fold(changes.clone(), there()).unwrap();
    assert_eq!((states.len(), missing), (1, 0));
    assert_eq!(states[0].2.as_ref(), Some(&expected));
    // Played again on what came of it, nothing changes but for the order of fields that were put at the end.
    let again = HashMap::from([(key_of(&expected).unwrap(), expected.clone())]);
    let (states, _) = fold(changes.clone(), again).unwrap();
    let as_map = |document: &RawDocument| -> BTreeMap<String, Bson> {
        document
            .iter()
            .flatten()
            .map(|(name, value)| (name.as_str().to_owned(), Bson::try_from(value).unwrap()))
            .collect()
    };
    assert_eq!(as_map(states[0].2.as_ref().unwrap()), as_map(&expected));
    let (states, missing) = fold(changes, HashMap::new()).unwrap();
    assert_eq!((states.len(), missing), (0, 4));
}

#[test]
fn a_document_is_what_its_last_change_says() {
    let namespace = "shop.orders".to_owned();
    let document = |n: i32, a: i32| rawdoc! { "_id": n, "a": a };
    let insert = |n, a| Change::Insert {
        namespace: namespace.clone(),
        document: document(n, a),
    };
    let delete = |n: i32| Change::Delete {
        namespace: namespace.clone(),
        id: rawdoc! { "_id": n },
    };
    let set = |n: i32, a: i32| Change::Modify {
        namespace: namespace.clone(),
        id: rawdoc! { "_id": n },
        change: rawdoc! { "$v": 1, "$set": { "a": a } },
    };
    let changes = vec![
        insert(1, 1),
        set(1, 2),
        insert(2, 1),
        delete(2),
        delete(3),
        insert(3, 7),
        set(4, 4),
    ];
    let there = HashMap::from([(key_of(&document(4, 0)).unwrap(), document(4, 0))]);
    let (states, missing) = fold(changes, there).unwrap();
    let found: Vec<_> = states
        .into_iter()
        .map(|(_, id, state)| (id, state))
        .collect();
    assert_eq!(missing, 0);
    assert_eq!(
        found,
        [
            (rawdoc! { "_id": 1 }, Some(document(1, 2))),
            (rawdoc! { "_id": 2 }, None),
            (rawdoc! { "_id": 3 }, Some(document(3, 7))),
            (rawdoc! { "_id": 4 }, Some(document(4, 4))),
        ]
    );
}
