//! A look at a database whose faults are known, by the server's own planner (HypoPG) and by our own estimate.

#![allow(clippy::unwrap_used)]

#[path = "../../tests/tests/shop/mod.rs"]
mod shop;

use fettler_engine::{AttemptName, DatabaseEngine as _, Target};
use fettler_engine_postgres::PostgresEngine;
use fettler_model::{AttemptToken, DatabaseUrl, JobId, JudgedBy, Timestamp};
use fettler_test_servers::{PgMajor, PostgresOptions, PostgresServer};
use fettler_tuning::{
    Look, Wishes,
    postgres::{Earlier, look},
};
use rand::{SeedableRng, rngs::StdRng};
use rstest::rstest;

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
async fn what_is_missing_and_superfluous_is_found_with_and_without_hypothetical_indexes(
    #[case] major: PgMajor,
    #[case] judged_by: JudgedBy,
) {
    let options = PostgresOptions::new()
        .setting("shared_preload_libraries", "pg_stat_statements")
        .setting("max_parallel_workers_per_gather", "0")
        .setting("autovacuum", "off");
    let server = PostgresServer::start(major, options).unwrap();
    server.psql("postgres", shop::SHOP).unwrap();
    if judged_by == JudgedBy::Hypopg {
        server.psql("postgres", "CREATE EXTENSION hypopg").unwrap();
    }
    server
        .psql("postgres", "SELECT pg_stat_statements_reset()")
        .unwrap();
    let mut dice = StdRng::seed_from_u64(1);
    for number in 0..4 {
        server
            .psql("postgres", &shop::round(&mut dice, number))
            .unwrap();
    }
    let (url, password) = DatabaseUrl::parse_with_password(&server.url("postgres")).unwrap();
    let target = Target { url, password };
    let name = AttemptName {
        job: JobId::new(),
        token: AttemptToken::from_value(1),
    };
    let mut bench = PostgresEngine::default()
        .workbench(&target, &name)
        .await
        .unwrap();
    let wishes = Wishes {
        unused_days: 0,
        ..Wishes::default()
    };
    let look = look(
        bench.as_mut(),
        &wishes,
        &Earlier::default(),
        Timestamp::now(),
    )
    .await
    .unwrap();
    bench.close().await;
    assert_eq!(look.judged_by, judged_by);
    assert!(
        look.statements.0 >= 20 && look.statements.1 == 0,
        "{:?}",
        look.statements
    );
    let missing = found(&look, "index_missing");
    for wanted in [
        "public.orders (customer",
        "public.customers (email",
        "public.items (product",
        "WHERE shipped IS NULL",
        "public.journal (source",
    ] {
        assert!(
            missing.iter().any(|one| one.contains(wanted)),
            "{wanted}: {missing:#?}"
        );
    }
    assert!(
        missing.len() <= 8,
        "a few, not one for each statement: {missing:#?}"
    );
    assert_eq!(
        found(&look, "index_redundant"),
        ["public.customers_country_again", "public.customers_country"]
    );
    assert!(found(&look, "index_unused").contains(&"public.orders_total"));
    assert_eq!(
        found(&look, "foreign_key_unindexed"),
        [
            "public.returns.returns_order_id_fkey",
            "public.orders.orders_customer_fkey"
        ]
    );
    assert!(found(&look, "setting").contains(&"autovacuum"));
    for action in &look.plan {
        assert!(
            !action.undo.is_empty() && (action.safe || !action.unsafe_because.is_empty()),
            "{action:#?}"
        );
    }
}
