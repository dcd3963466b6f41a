//! An index of a backup as lines, which the server itself takes back.

use fettler_engine::{DatabaseEngine as _, EngineError, ExtractFormat, Extraction};
use rstest::rstest;
use serde_json::{Value, json};

use crate::common::{
    Attempt, Elasticsearch, OpenSearch, Place, SearchKind, back_up, documents, engine, numbered,
};

#[rstest]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_index_goes_back_in_by_the_servers_own_bulk_request(
    #[values(Elasticsearch, OpenSearch)] kind: SearchKind,
) {
    let place = Place::new(kind);
    let settings = json!({"settings": {"number_of_replicas": 0, "number_of_shards": 2}});
    let index = place.make("taken", &settings);
    let other = place.make("taker", &json!({"settings": {"number_of_replicas": 0}}));
    place.write(&index, &numbered(0..500, "taken"));
    place.write(
        &index,
        "{\"index\":{\"_id\":\"routed \\u00e9\",\"routing\":\"r\"}}\n{\"n\": 1.00, \"big\": 9007199254740993, \"deep\": {\"b\": null, \"a\": [ ]}}\n",
    );
    let (backup, report) = back_up(&place.url()).await;
    let extract = async |part: &str, format| {
        let mut out = Vec::new();
        let what = Extraction {
            part: part.to_owned(),
            format,
        };
        let written = engine()
            .extract(&Attempt::new().context, &backup, &report, &what, &mut out)
            .await?;
        Ok::<_, EngineError>((String::from_utf8(out).unwrap(), written))
    };
    let (lines, written) = extract(&index, ExtractFormat::Ndjson).await.unwrap();
    assert_eq!(written.rows, 501);
    assert_eq!(written.bytes, lines.len() as u64);
    assert!(
        lines
            .lines()
            .all(|line| serde_json::from_str::<Value>(line).is_ok())
    );
    // Numbers stand as they were written.
    assert!(lines.contains("{\"n\":1.00,\"big\":9007199254740993,\"deep\":{\"b\":null,\"a\":[]}}"));
    place.write(&other, &lines);
    assert_eq!(
        documents(place.server, &index),
        documents(place.server, &other)
    );

    let typo = format!("{index}x");
    for (part, format, told) in [
        (typo.as_str(), ExtractFormat::Ndjson, index.as_str()),
        (
            &place.name("take*"),
            ExtractFormat::Ndjson,
            "name one of them",
        ),
        (&index, ExtractFormat::Csv, "ndjson"),
    ] {
        let failed = extract(part, format).await;
        let Err(EngineError::Missing { what, remedy, .. }) = &failed else {
            panic!("{part}: {failed:?}");
        };
        assert!(remedy.contains(told), "{part}: {what}: {remedy}");
    }
}
