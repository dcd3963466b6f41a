//! Restoring a part: one table or schema with all that belongs to it.

use fettler_engine::{BackupReport, DatabaseEngine, EngineError, RestoreOptions, RestoreReport};
use fettler_test_servers::{PgMajor, PostgresServer, TestDatabase};

use crate::common::{Attempt, Memory, back_up, engine, target};

const SQL: &str = "
    CREATE SCHEMA shop;
    CREATE TYPE shop.state AS ENUM ('new', 'sent');
    CREATE FUNCTION shop.code(int) RETURNS text LANGUAGE sql IMMUTABLE AS $$ SELECT 'c' || $1 $$;
    CREATE FUNCTION shop.stamp() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NEW; END $$;
    CREATE TABLE shop.customers (id serial PRIMARY KEY, name text);
    CREATE TABLE shop.orders (id serial PRIMARY KEY, customer int REFERENCES shop.customers, state shop.state DEFAULT 'new', code text GENERATED ALWAYS AS (shop.code(1)) STORED, CHECK (id > 0));
    CREATE TABLE shop.lines (order_id int REFERENCES shop.orders, n int) PARTITION BY RANGE (n);
    CREATE TABLE shop.lines_1 PARTITION OF shop.lines FOR VALUES FROM (0) TO (10);
    CREATE TABLE shop.lines_2 PARTITION OF shop.lines FOR VALUES FROM (10) TO (20);
    CREATE INDEX ON shop.lines (n);
    CREATE INDEX by_code ON shop.orders (shop.code(id));
    CREATE TRIGGER stamped BEFORE INSERT ON shop.orders FOR EACH ROW EXECUTE FUNCTION shop.stamp();
    CREATE VIEW shop.new_orders AS SELECT * FROM shop.orders WHERE state = 'new';
    CREATE MATERIALIZED VIEW shop.totals AS SELECT count(*) AS n FROM shop.orders;
    COMMENT ON TABLE shop.orders IS 'the orders'; COMMENT ON COLUMN shop.orders.state IS 'its state';
    ALTER TABLE shop.orders ENABLE ROW LEVEL SECURITY; CREATE POLICY p ON shop.orders USING (true);
    GRANT SELECT ON shop.orders TO PUBLIC;
    INSERT INTO shop.customers (name) VALUES ('a'), ('b');
    INSERT INTO shop.orders (customer) SELECT 1 + n % 2 FROM generate_series(1, 500) n;
    INSERT INTO shop.lines SELECT n, n % 20 FROM generate_series(1, 500) n;
    REFRESH MATERIALIZED VIEW shop.totals;
    CREATE TABLE public.other (id int); INSERT INTO public.other VALUES (1);";

async fn some(
    backup: &Memory,
    report: &BackupReport,
    copy: &TestDatabase,
    only: &[&str],
    overwrite: bool,
) -> Result<RestoreReport, EngineError> {
    let options = RestoreOptions {
        only: only.iter().map(|text| (*text).to_owned()).collect(),
        overwrite,
        ..RestoreOptions::default()
    };
    engine(PgMajor::V15)
        .restore(
            &Attempt::new().context,
            backup,
            report,
            &target(&copy.url()),
            &options,
        )
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_table_comes_with_its_parts_and_what_they_need() {
    let server = PostgresServer::shared(PgMajor::V15);
    let source = server.create_database("part").unwrap();
    source.psql(SQL).unwrap();
    let (backup, report) = back_up(&engine(PgMajor::V15), &source.url()).await;
    let copy = server.create_database("orders_only").unwrap();
    copy.psql("CREATE TABLE public.precious (id int); INSERT INTO precious VALUES (7)")
        .unwrap();
    let restored = some(&backup, &report, &copy, &["shop.orders"], false)
        .await
        .unwrap();
    assert_eq!(restored.failed_statements, Vec::<String>::new());
    assert!(
        restored
            .warnings
            .iter()
            .any(|warning| warning.code == "postgres.foreign_keys"
                && warning.message.contains("orders_customer_fkey")),
        "{:?}",
        restored.warnings
    );
    let looks = |database: &TestDatabase| {
        database
            .psql(
                "SELECT count(*), min(code), max(id) FROM shop.orders; SELECT last_value FROM shop.orders_id_seq;
                 SELECT indexdef FROM pg_indexes WHERE tablename = 'orders' ORDER BY 1; SELECT tgname FROM pg_trigger WHERE tgrelid = 'shop.orders'::regclass AND NOT tgisinternal;
                 SELECT obj_description('shop.orders'::regclass), col_description('shop.orders'::regclass, 3); SELECT polname FROM pg_policy; SELECT relrowsecurity, relacl::text LIKE '%=r/%' FROM pg_class WHERE relname = 'orders'",
            )
            .unwrap()
    };
    assert_eq!(looks(&source), looks(&copy));
    assert_eq!(copy.psql("SELECT to_regclass('shop.customers') IS NULL, to_regclass('public.other') IS NULL, id FROM precious").unwrap(), "t|t|7");

    // It is there now: not touched again without leave.
    let again = some(&backup, &report, &copy, &["shop.orders"], false)
        .await
        .unwrap_err();
    assert!(matches!(again, EngineError::NotEmpty { .. }), "{again}");
    copy.psql("DELETE FROM shop.orders WHERE id < 100").unwrap();
    some(&backup, &report, &copy, &["shop.orders"], true)
        .await
        .unwrap();
    assert_eq!(looks(&source), looks(&copy));
    // What others depend on is not dropped.
    copy.psql("CREATE VIEW public.mine AS SELECT id FROM shop.orders")
        .unwrap();
    let again = some(&backup, &report, &copy, &["shop.orders"], true)
        .await
        .unwrap_err();
    assert!(again.to_string().contains("depend"), "{again}");
    assert_eq!(
        copy.psql("SELECT count(*) FROM public.mine").unwrap(),
        "500"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partition_a_schema_and_a_pattern_can_be_restored() {
    let server = PostgresServer::shared(PgMajor::V15);
    let source = server.create_database("part").unwrap();
    source.psql(SQL).unwrap();
    let (backup, report) = back_up(&engine(PgMajor::V15), &source.url()).await;

    let copy = server.create_database("partition").unwrap();
    let restored = some(&backup, &report, &copy, &["shop.lines_2"], false)
        .await
        .unwrap();
    assert_eq!(restored.failed_statements, Vec::<String>::new());
    assert_eq!(
        copy.psql("SELECT count(*), to_regclass('shop.lines') IS NULL FROM shop.lines_2")
            .unwrap(),
        "250|t"
    );

    let copy = server.create_database("partitioned").unwrap();
    let restored = some(&backup, &report, &copy, &["shop.lines"], false)
        .await
        .unwrap();
    assert_eq!(restored.failed_statements, Vec::<String>::new());
    assert_eq!(
        copy.psql("SELECT count(*), count(DISTINCT tableoid) FROM shop.lines")
            .unwrap(),
        "500|2"
    );

    let copy = server.create_database("schema").unwrap();
    let restored = some(&backup, &report, &copy, &["shop"], false)
        .await
        .unwrap();
    assert_eq!(restored.failed_statements, Vec::<String>::new());
    let looks = "SELECT (SELECT count(*) FROM shop.new_orders), (SELECT n FROM shop.totals), (SELECT count(*) FROM pg_constraint WHERE contype = 'f' AND conparentid = 0)";
    assert_eq!(source.psql(looks).unwrap(), copy.psql(looks).unwrap());
    assert_eq!(
        copy.psql("SELECT to_regclass('public.other') IS NULL")
            .unwrap(),
        "t"
    );

    let error = some(&backup, &report, &copy, &["nothing.at_all"], false)
        .await
        .unwrap_err();
    assert!(error.to_string().contains("nothing.at_all"), "{error}");
}
