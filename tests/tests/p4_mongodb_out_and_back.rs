//! P4 for MongoDB, through the binary: backed up, proven on another server, restored there, and equal to the source by a client
//! that knows nothing of the engine. Types and odd values are the engine's own suite's matter.

#![allow(clippy::unwrap_used)]

use bson::{Document, doc};
use fettler_tests::{
    Installation, Size,
    servers::{MongodbClient, MongodbKind, MongodbServer, PgMajor, PostgresServer},
};
use rstest::rstest;

fn start(kind: MongodbKind) -> MongodbServer {
    MongodbServer::start(kind).unwrap()
}

/// With a user and a password where the server has some.
fn url(server: &MongodbServer) -> String {
    match server.kind() {
        MongodbKind::WithOplog => server.url(),
        MongodbKind::OnDisk => {
            let postgres = PostgresServer::shared(PgMajor::V18);
            server.url_as(postgres.user(), postgres.password())
        }
    }
}

fn all(server: &MongodbServer) -> Vec<Document> {
    MongodbClient::new(server.port()).all("shop", "orders")
}

#[rstest]
#[case(Size::Embedded, MongodbKind::WithOplog)]
#[case(Size::Embedded, MongodbKind::OnDisk)]
#[case(Size::Fleet, MongodbKind::WithOplog)]
fn p4_p9_a_mongodb_server_comes_back_and_its_password_stands_nowhere(
    #[case] size: Size,
    #[case] kind: MongodbKind,
) {
    let (source, copy) = (start(kind), start(kind));
    let mut writer = MongodbClient::new(source.port());
    let orders: Vec<Document> = (0..2000)
        .map(|n| doc! { "_id": n, "total": n * 7, "lines": [{ "sku": n }] })
        .collect();
    writer.insert("shop", "orders", orders);
    writer.run("shop", doc! { "createIndexes": "orders", "indexes": [{ "key": { "total": 1 }, "name": "total", "unique": true }] });

    let fettler = Installation::of_size(size);
    let made = fettler.json(&["backup", &url(&source)]);
    assert_eq!(made["engine"], "mongodb", "{made:#}");
    let proof = fettler.json(&["prove", "latest", "--sandbox", &url(&copy)]);
    assert_eq!(proof["proven"], true, "{proof:#}");
    let mut copied = MongodbClient::new(copy.port());
    let left = copied.databases();
    assert!(
        !left.iter().any(|name| name.starts_with("fettler")),
        "{left:?}"
    );

    fettler
        .run(&["restore", "latest", "--to", &url(&copy), "--json"])
        .done();
    assert_eq!(all(&source), all(&copy));

    if kind == MongodbKind::OnDisk {
        // P9: the password is nowhere in what Fettler wrote.
        let found = std::process::Command::new("grep")
            .args(["-rlF", PostgresServer::shared(PgMajor::V18).password()])
            .args(fettler.folders())
            .output()
            .unwrap();
        assert!(
            found.stdout.is_empty(),
            "the password stands in {}",
            String::from_utf8_lossy(&found.stdout)
        );
    }

    writer.insert("shop", "orders", vec![doc! { "_id": 9999, "total": -1 }]);
    let second = fettler.json(&["backup", &url(&source)]);
    assert_eq!(second["parent"], made["backup"]);
}
