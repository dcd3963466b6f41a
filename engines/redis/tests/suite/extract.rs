//! Keys of a backup as NDJSON and as an RDB.

use fettler_engine::{
    BackupReport, DatabaseEngine as _, EngineError, ExtractFormat, Extraction,
    testing::MemorySource,
};
use redis::cmd;
use serde_json::Value;

use crate::common::{Attempt, ENGINE, back_up, client, fill, keys_in, run, server};

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

/// The bytes of a text, in whichever of its two forms.
fn bytes(value: &Value) -> Vec<u8> {
    use base64::Engine as _;
    match value {
        Value::String(text) => text.as_bytes().to_vec(),
        other => base64::engine::general_purpose::STANDARD
            .decode(other["base64"].as_str().unwrap())
            .unwrap(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_key_is_a_line_that_says_what_the_server_says() {
    let source = server();
    let mut asker = client(&source.url());
    fill(&mut asker);
    let (backup, report) = back_up(&source.url()).await;
    let (lines, rows) = extract(&backup, &report, "db0", ExtractFormat::Ndjson)
        .await
        .unwrap();
    let lines = String::from_utf8(lines).unwrap();
    assert_eq!(rows, keys_in(&mut asker, 0));
    assert_eq!(rows, lines.lines().count() as u64);
    let mut kinds = std::collections::BTreeSet::new();
    for text in lines.lines() {
        let line: Value = serde_json::from_str(text).unwrap();
        assert_eq!(line["db"], 0);
        let key = bytes(&line["key"]);
        let kind = line["type"].as_str().unwrap().to_owned();
        let own: String = cmd("TYPE").arg(&key).query(&mut asker).unwrap();
        assert_eq!(kind, own);
        let expiry: i64 = cmd("PEXPIRETIME").arg(&key).query(&mut asker).unwrap();
        assert_eq!(line["expires_at_ms"].as_i64().unwrap_or(-1), expiry);
        let value = &line["value"];
        let list = || value.as_array().unwrap();
        match kind.as_str() {
            "string" => {
                let own: Vec<u8> = cmd("GET").arg(&key).query(&mut asker).unwrap();
                assert!(own == bytes(value), "{}", line["key"]);
            }
            "list" => {
                let own: Vec<Vec<u8>> = cmd("LRANGE")
                    .arg(&key)
                    .arg(0)
                    .arg(-1)
                    .query(&mut asker)
                    .unwrap();
                assert!(
                    own.into_iter().eq(list().iter().map(bytes)),
                    "{}",
                    line["key"]
                );
            }
            "set" => {
                let mut own: Vec<Vec<u8>> = cmd("SMEMBERS").arg(&key).query(&mut asker).unwrap();
                let mut ours: Vec<Vec<u8>> = list().iter().map(bytes).collect();
                own.sort();
                ours.sort();
                assert!(own == ours, "{}", line["key"]);
            }
            "hash" => {
                let own: std::collections::BTreeMap<Vec<u8>, Vec<u8>> =
                    cmd("HGETALL").arg(&key).query(&mut asker).unwrap();
                let ours = list()
                    .iter()
                    .map(|one| (bytes(&one["field"]), bytes(&one["value"])))
                    .collect();
                assert!(own == ours, "{}", line["key"]);
            }
            "zset" => {
                let own: u64 = cmd("ZCARD").arg(&key).query(&mut asker).unwrap();
                assert_eq!(own, list().len() as u64);
                for one in list().iter().take(50) {
                    let own: f64 = cmd("ZSCORE")
                        .arg(&key)
                        .arg(bytes(&one["member"]))
                        .query(&mut asker)
                        .unwrap();
                    // As text, since a reader of JSON may be off by the last bit.
                    let shown = if own.is_infinite() {
                        format!("\"{}\"", if own > 0.0 { "inf" } else { "-inf" })
                    } else {
                        format!("{own:?}")
                    };
                    let member = serde_json::to_string(&one["member"]).unwrap();
                    let pair = format!("{{\"member\":{member},\"score\":{shown}}}");
                    assert!(text.contains(&pair), "{}: {pair}", line["key"]);
                }
            }
            "stream" => {
                let own: u64 = cmd("XLEN").arg(&key).query(&mut asker).unwrap();
                assert_eq!(own, list().len() as u64);
                let groups = line["groups"].as_array().unwrap();
                let own: Vec<redis::Value> = cmd("XINFO")
                    .arg("GROUPS")
                    .arg(&key)
                    .query(&mut asker)
                    .unwrap();
                assert_eq!(own.len(), groups.len());
            }
            other => panic!("{other}"),
        }
        kinds.insert(kind);
    }
    assert_eq!(kinds.len(), 6, "{kinds:?}");
    // A stream with groups, consumers and what they have not acknowledged.
    let stream: Value = lines
        .lines()
        .find(|line| line.starts_with("{\"db\":0,\"key\":\"stream\","))
        .map(|line| serde_json::from_str(line).unwrap())
        .unwrap();
    let first = &stream["groups"]
        .as_array()
        .unwrap()
        .iter()
        .find(|group| group["name"] == "first")
        .unwrap();
    assert_eq!(first["consumers"].as_array().unwrap().len(), 2, "{first:#}");
    let pending: usize = first["consumers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| one["pending"].as_array().unwrap().len())
        .sum();
    assert_eq!(pending, first["pending"].as_array().unwrap().len());
    assert_eq!(stream["last_id"], "501-1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_that_a_pattern_fits_become_a_file_that_a_server_starts_from() {
    let source = server();
    fill(&mut client(&source.url()));
    let (backup, report) = back_up(&source.url()).await;
    let (file, rows) = extract(&backup, &report, "db0/HSET:*", ExtractFormat::Rdb)
        .await
        .unwrap();
    let mut copy = server();
    let (_, folder): (String, String) = cmd("CONFIG")
        .arg("GET")
        .arg("dir")
        .query(&mut client(&copy.url()))
        .unwrap();
    copy.kill_9().unwrap();
    std::fs::write(format!("{folder}/dump.rdb"), file).unwrap();
    copy.start_again().unwrap();
    let (mut one, mut other) = (client(&source.url()), client(&copy.url()));
    assert_eq!(keys_in(&mut other, 0), rows);
    assert_eq!(rows, 4);
    for key in ["HSET:small", "HSET:large"] {
        let get = format!("HLEN {key}");
        assert_eq!(run(&mut one, &get), run(&mut other, &get));
    }

    // Large strings are written as they come.
    cmd("SET")
        .arg("vast")
        .arg(vec![b'x'; 20 << 20])
        .exec(&mut one)
        .unwrap();
    let (backup, report) = back_up(&source.url()).await;
    let (line, _) = extract(&backup, &report, "db0/vast", ExtractFormat::Ndjson)
        .await
        .unwrap();
    let line: Value = serde_json::from_slice(&line).unwrap();
    assert!(bytes(&line["value"]) == vec![b'x'; 20 << 20]);

    for (part, format, told) in [
        ("db7", ExtractFormat::Ndjson, "db"),
        ("user:*", ExtractFormat::Ndjson, "db3/user:*"),
        ("db0/nothing:*", ExtractFormat::Ndjson, "db0/user:*"),
        ("db0", ExtractFormat::Csv, "ndjson or rdb"),
    ] {
        let failed = extract(&backup, &report, part, format).await;
        let Err(EngineError::Missing { what, remedy, .. }) = &failed else {
            panic!("{part}: {failed:?}");
        };
        assert!(remedy.contains(told), "{part}: {what}: {remedy}");
    }

    // What breaks off is no file.
    let mut broken = backup.clone();
    broken.fails_after = Some(100);
    let failed = extract(&broken, &report, "db0", ExtractFormat::Rdb).await;
    assert!(
        matches!(failed, Err(EngineError::Unreachable { .. })),
        "{failed:?}"
    );
}
