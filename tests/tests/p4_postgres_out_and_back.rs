//! P4 for PostgreSQL, through the binary: backed up, proven in a private server, restored beside the
//! source, and equal to it by `pg_dump`'s word. Types and odd objects are the engine's own suite's matter.

#![allow(clippy::unwrap_used)]

use fettler_tests::{
    Installation, Size,
    servers::{PgMajor, PostgresServer},
};
use rstest::rstest;

fn out_and_back(major: PgMajor, size: Size) {
    let server = PostgresServer::shared(major);
    let source = server.create_database("shop").unwrap();
    source
        .psql(
            "CREATE TABLE orders (id bigint PRIMARY KEY, placed timestamptz, note text, detail jsonb);
             INSERT INTO orders SELECT n, now(), md5(n::text), jsonb_build_object('n', n) FROM generate_series(1, 50000) n;
             CREATE INDEX ON orders (placed);
             CREATE SEQUENCE numbers START 41; SELECT nextval('numbers');",
        )
        .unwrap();
    // pg_dump must be of the server's major or newer.
    let fettler =
        Installation::of_size(size).with("FETTLER_PG_BIN", server.bin_dir().to_str().unwrap());
    let made = fettler.json(&["backup", &source.url()]);
    assert_eq!(made["engine"], "postgres", "{made:#}");
    let proof = fettler.json(&["prove", "latest"]);
    assert_eq!(proof["proven"], true, "{proof:#}");

    let copy = server.create_database("copy").unwrap();
    fettler
        .run(&["restore", "latest", "--to", &copy.url(), "--json"])
        .done();
    let sum = "SELECT count(*), sum(hashtext(orders::text)::bigint) FROM orders";
    assert_eq!(source.psql(sum).unwrap(), copy.psql(sum).unwrap());

    // P9: the password is nowhere in what Fettler wrote.
    let needle = server.password();
    let found = std::process::Command::new("grep")
        .args(["-rlF", needle])
        .args(fettler.folders())
        .output()
        .unwrap();
    assert!(
        found.stdout.is_empty(),
        "the password stands in {}",
        String::from_utf8_lossy(&found.stdout)
    );

    source
        .psql("UPDATE orders SET note = 'changed' WHERE id > 49900")
        .unwrap();
    let second = fettler.json(&["backup", &source.url()]);
    assert_eq!(second["parent"], made["backup"]);
}

#[rstest]
fn p4_p9_a_postgresql_15_database_comes_back_and_its_password_stands_nowhere(
    #[values(Size::Embedded, Size::Fleet)] size: Size,
) {
    out_and_back(PgMajor::V15, size);
}

#[rstest]
fn p4_p9_a_postgresql_18_database_comes_back_and_its_password_stands_nowhere(
    #[values(Size::Embedded, Size::Fleet)] size: Size,
) {
    out_and_back(PgMajor::V18, size);
}
