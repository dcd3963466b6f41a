//! A second workload, after the model of TPC-H: joins over a million lines, most of which no index helps, among look-ups that
//! need one. What is planned is made, and the same work is done again.

#![allow(clippy::unwrap_used)]

use std::fmt::Write as _;

use fettler_engine::{AttemptName, DatabaseEngine as _, Target, Workbench};
use fettler_engine_postgres::PostgresEngine;
use fettler_model::{ActionKind, AttemptToken, DatabaseUrl, JobId, JudgedBy, Timestamp};
use fettler_test_servers::{PgMajor, PostgresOptions, PostgresServer};
use fettler_tuning::{
    Look, Wishes,
    postgres::{Earlier, apply, look, take_back},
};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use rstest::rstest;

const WAREHOUSE: &str = "
CREATE EXTENSION pg_stat_statements;
CREATE TABLE customer (c_key int PRIMARY KEY, c_name text NOT NULL, c_nation int NOT NULL, c_segment int NOT NULL);
INSERT INTO customer SELECT i, 'Customer ' || i, i % 25, i % 5 FROM generate_series(1, 30000) i;
CREATE TABLE supplier (s_key int PRIMARY KEY, s_name text NOT NULL, s_nation int NOT NULL);
INSERT INTO supplier SELECT i, 'Supplier ' || i, i % 25 FROM generate_series(1, 2000) i;
CREATE TABLE part (p_key int PRIMARY KEY, p_name text NOT NULL, p_brand int NOT NULL, p_size int NOT NULL);
INSERT INTO part SELECT i, 'Part ' || i, i % 50, i % 40 FROM generate_series(1, 40000) i;
CREATE TABLE partsupp (ps_part int NOT NULL, ps_supplier int NOT NULL, ps_quantity int NOT NULL, PRIMARY KEY (ps_part, ps_supplier));
INSERT INTO partsupp SELECT p, 1 + (p * 7 + n * 501) % 2000, p % 900 FROM generate_series(1, 40000) p, generate_series(0, 3) n ON CONFLICT DO NOTHING;
CREATE TABLE orders (o_key int PRIMARY KEY, o_customer int NOT NULL, o_date date NOT NULL, o_total int NOT NULL, o_clerk text NOT NULL);
INSERT INTO orders SELECT i, 1 + (i::bigint * 7919) % 30000, '1995-01-01'::date + i % 2000, i % 9000, 'Clerk ' || i % 1000 FROM generate_series(1, 250000) i;
CREATE TABLE lineitem (l_order int NOT NULL, l_number int NOT NULL, l_part int NOT NULL, l_supplier int NOT NULL,
    l_quantity int NOT NULL, l_price int NOT NULL, l_shipped date NOT NULL, l_mode int NOT NULL);
INSERT INTO lineitem SELECT 1 + (i::bigint * 104729) % 250000, i % 7, 1 + (i::bigint * 31337) % 40000, 1 + (i::bigint * 17) % 2000, i % 50, i % 10000,
    '1995-01-01'::date + (i::bigint * 104729 % 2000)::int, i % 7 FROM generate_series(1, 1000000) i;
CREATE INDEX part_brand ON part (p_brand);
CREATE INDEX part_brand_size ON part (p_brand, p_size);
CREATE INDEX lineitem_price ON lineitem (l_price);
VACUUM ANALYZE;
";

/// One round: 22 statements.
fn round(dice: &mut StdRng) -> String {
    let mut sql = String::new();
    let mut value = |most: u32| dice.random_range(1..most);
    let (customer, order, part, supplier, day) = (
        value(30_000),
        value(250_000),
        value(40_000),
        value(2000),
        value(1900),
    );
    write!(
        sql,
        "SELECT l_mode, sum(l_quantity), avg(l_price), count(*) FROM lineitem WHERE l_shipped <= '1995-01-01'::date + {day} GROUP BY l_mode;
         SELECT * FROM lineitem WHERE l_order = {order} ORDER BY l_number;
         SELECT o_key, o_total FROM orders WHERE o_customer = {customer};
         SELECT ps_part, ps_quantity FROM partsupp WHERE ps_supplier = {supplier};
         SELECT sum(l_price) FROM lineitem WHERE l_part = {part};
         SELECT o.o_key, sum(l.l_price) FROM orders o JOIN lineitem l ON l.l_order = o.o_key WHERE o.o_customer = {customer} GROUP BY o.o_key;
         SELECT c.c_name, o.o_key, l.l_part FROM customer c JOIN orders o ON o.o_customer = c.c_key JOIN lineitem l ON l.l_order = o.o_key WHERE c.c_key = {customer};
         SELECT p.p_name, sum(l.l_quantity) FROM part p JOIN lineitem l ON l.l_part = p.p_key WHERE p.p_key = {part} GROUP BY p.p_name;
         SELECT count(*) FROM orders o WHERE o.o_key = {order} AND EXISTS (SELECT 1 FROM lineitem l WHERE l.l_order = o.o_key AND l.l_quantity > 40);
         SELECT s.s_name, count(*) FROM supplier s JOIN partsupp ps ON ps.ps_supplier = s.s_key WHERE s.s_key = {supplier} GROUP BY s.s_name;
         SELECT count(*) FROM part WHERE p_brand = {} AND p_size = {};
         SELECT p_name FROM part WHERE p_brand = {};
         SELECT c_name FROM customer WHERE c_key = {customer};
         SELECT s_name FROM supplier WHERE s_key = {supplier};
         SELECT * FROM orders WHERE o_key = {order};
         SELECT ps_quantity FROM partsupp WHERE ps_part = {part};
         SELECT n.s_nation, count(*) FROM supplier n GROUP BY n.s_nation;
         SELECT c_segment, count(*) FROM customer GROUP BY c_segment;
         UPDATE orders SET o_total = o_total + 1 WHERE o_key = {order};
         UPDATE partsupp SET ps_quantity = ps_quantity - 1 WHERE ps_part = {part};
         INSERT INTO lineitem VALUES ({order}, 1, {part}, {supplier}, 1, 1, '2000-01-01'::date, 1);
         SELECT max(o_total) FROM orders WHERE o_date = '1995-01-01'::date + {day};",
        value(50), value(40), value(50),
    )
    .unwrap();
    sql
}

async fn open(server: &PostgresServer) -> Box<dyn Workbench> {
    let (url, password) = DatabaseUrl::parse_with_password(&server.url("postgres")).unwrap();
    let name = AttemptName {
        job: JobId::new(),
        token: AttemptToken::from_value(1),
    };
    PostgresEngine::default()
        .workbench(&Target { url, password }, &name)
        .await
        .unwrap()
}

/// Milliseconds that the work takes.
fn work(server: &PostgresServer) -> f64 {
    server
        .psql("postgres", "SELECT pg_stat_statements_reset()")
        .unwrap();
    let mut dice = StdRng::seed_from_u64(3);
    for _ in 0..4 {
        server.psql("postgres", &round(&mut dice)).unwrap();
    }
    let took = server.psql(
        "postgres",
        "SELECT sum(total_exec_time) FROM pg_stat_statements WHERE query NOT LIKE '%pg_stat%'",
    );
    took.unwrap().trim().parse().unwrap()
}

fn found<'a>(look: &'a Look, check: &str) -> Vec<&'a str> {
    let check = format!("postgres.tune_{check}");
    look.findings
        .iter()
        .filter(|one| one.check == check)
        .map(|one| one.object.as_str())
        .collect()
}

#[rstest]
#[case(PgMajor::V15, JudgedBy::Hypopg)]
#[case(PgMajor::V18, JudgedBy::Estimate)]
#[tokio::test(flavor = "multi_thread")]
async fn what_is_planned_for_a_warehouse_is_found_made_and_quicker(
    #[case] major: PgMajor,
    #[case] judged_by: JudgedBy,
) {
    let options = PostgresOptions::new()
        .setting("shared_preload_libraries", "pg_stat_statements")
        .setting("max_parallel_workers_per_gather", "0")
        .setting("autovacuum", "off");
    let server = PostgresServer::start(major, options).unwrap();
    server.psql("postgres", WAREHOUSE).unwrap();
    if judged_by == JudgedBy::Hypopg {
        server.psql("postgres", "CREATE EXTENSION hypopg").unwrap();
    }
    let before = work(&server);
    let mut bench = open(&server).await;
    let wishes = Wishes {
        unused_days: 0,
        // Indexes of a few narrow columns are a third of a table this narrow.
        index_percent: 100,
        ..Wishes::default()
    };
    let earlier = Earlier::default();
    let look = look(bench.as_mut(), &wishes, &earlier, Timestamp::now())
        .await
        .unwrap();
    assert_eq!((look.judged_by, look.statements.1), (judged_by, 0));
    assert!(look.statements.0 >= 20, "{:?}", look.statements);
    let missing = found(&look, "index_missing");
    for wanted in [
        "public.lineitem (l_order",
        "public.lineitem (l_part",
        "public.orders (o_customer",
    ] {
        assert!(
            missing.iter().any(|one| one.contains(wanted)),
            "{wanted}: {missing:#?}"
        );
    }
    assert!(missing.len() <= 8, "{missing:#?}");
    assert_eq!(found(&look, "index_redundant"), ["public.part_brand"]);
    assert!(found(&look, "index_unused").contains(&"public.lineitem_price"));

    let safe: Vec<_> = look
        .plan
        .iter()
        .filter(|one| one.safe && one.kind == ActionKind::CreateIndex)
        .collect();
    assert!(safe.len() >= 3, "{:#?}", look.plan);
    for action in &safe {
        apply(bench.as_mut(), action).await.unwrap();
        // A second time it is there already.
        apply(bench.as_mut(), action).await.unwrap();
    }
    let after = work(&server);
    assert!(
        after < before * 0.6,
        "{before:.0} ms before, {after:.0} ms after: {missing:#?}"
    );
    for action in &safe {
        take_back(bench.as_mut(), action).await.unwrap();
        take_back(bench.as_mut(), action).await.unwrap();
    }
    bench.close().await;
    let left = server
        .psql(
            "postgres",
            "SELECT count(*) FROM pg_class WHERE relname LIKE 'fettler%'",
        )
        .unwrap();
    assert_eq!(left.trim(), "0");
}
