//! A database and the work that is done on it, for tests of tuning: which indexes it lacks and which it has too many of is known.

use std::fmt::Write as _;

use rand::{RngExt, rngs::StdRng};

/// A shop of 1.7 million rows: some indexes that it needs are missing, some that it has are superfluous.
pub const SHOP: &str = "
CREATE EXTENSION pg_stat_statements;
CREATE TABLE customers (id int PRIMARY KEY, email text NOT NULL, country int NOT NULL, joined date NOT NULL);
INSERT INTO customers SELECT i, 'c' || i || '@example.org', i % 50, '2020-01-01'::date + i % 1000 FROM generate_series(1, 100000) i;
CREATE TABLE orders (id int PRIMARY KEY, customer int NOT NULL REFERENCES customers, made timestamp NOT NULL,
    state int NOT NULL, total int NOT NULL, shipped timestamp);
INSERT INTO orders SELECT i, 1 + (i::bigint * 7919) % 100000, '2024-01-01'::timestamp + i * interval '20 s', i % 7, i % 1000,
    CASE WHEN i % 200 = 0 THEN NULL ELSE '2024-02-01'::timestamp END FROM generate_series(1, 1000000) i;
CREATE TABLE items (order_id int NOT NULL REFERENCES orders, product int NOT NULL, amount int NOT NULL, PRIMARY KEY (order_id, product));
INSERT INTO items SELECT i, (i * 31) % 20000, i % 5 FROM generate_series(1, 300000) i;
CREATE TABLE returns (id int PRIMARY KEY, order_id int NOT NULL REFERENCES orders, why text);
INSERT INTO returns SELECT i, i * 3, 'too small, or too large, or neither of them' FROM generate_series(1, 100000) i;
CREATE TABLE journal (id bigserial PRIMARY KEY, source int NOT NULL, body text NOT NULL);
INSERT INTO journal (source, body) SELECT CASE WHEN i % 20 = 0 THEN i ELSE 7 END, repeat('x', 100) FROM generate_series(1, 200000) i;
CREATE INDEX customers_country ON customers (country);
CREATE INDEX customers_country_again ON customers (country);
CREATE INDEX customers_country_joined ON customers (country, joined);
CREATE INDEX orders_total ON orders (total);
VACUUM ANALYZE;
";

/// One round of the shop's work: 24 statements, with other values each time.
pub fn round(dice: &mut StdRng, number: u32) -> String {
    let mut sql = String::new();
    let mut value = |most: u32| dice.random_range(1..most);
    for _ in 0..2 {
        let (customer, order, product) = (value(100_000), value(1_000_000), value(20_000));
        let day = value(200);
        write!(
            sql,
            "SELECT id, made, total FROM orders WHERE customer = {customer} ORDER BY made DESC LIMIT 10;
             SELECT id FROM customers WHERE email = 'c{customer}@example.org';
             SELECT order_id, amount FROM items WHERE product = {product};
             SELECT count(*) FROM orders WHERE shipped IS NULL AND state = {};
             SELECT * FROM orders WHERE id = {order};
             SELECT c.email, o.total FROM orders o JOIN customers c ON c.id = o.customer WHERE o.id = {order};
             SELECT i.product, i.amount FROM items i JOIN orders o ON o.id = i.order_id WHERE o.customer = {customer};
             SELECT count(*) FROM customers WHERE country = {};
             SELECT id FROM customers WHERE country = {} AND joined = '2020-01-01'::date + {day};
             SELECT sum(total) FROM orders WHERE customer = {customer} AND made > '2024-03-01'::timestamp + interval '{day} h';
             SELECT sum(length(body)) FROM journal WHERE source = 7;
             SELECT body FROM journal WHERE id = {order};
             SELECT product FROM items WHERE order_id = {order};
             SELECT email, joined FROM customers WHERE id = {customer};
             SELECT o.id FROM orders o WHERE o.customer IN (SELECT id FROM customers WHERE email = 'c{product}@example.org');
             SELECT max(amount) FROM items WHERE order_id = {order} AND product > {product};
             INSERT INTO journal (source, body) SELECT 7, repeat('y', 100) FROM generate_series(1, 50);
             UPDATE orders SET state = {} WHERE id = {order};
             UPDATE customers SET joined = joined WHERE id = {customer};
             INSERT INTO returns VALUES ({}, {order}, 'late') ON CONFLICT DO NOTHING;
             UPDATE returns SET why = 'other' WHERE id = {product};
             SELECT why FROM returns WHERE id = {product};
             SELECT count(*) FROM orders WHERE id BETWEEN {order} AND {order} + 50;",
            value(7), value(50), value(50), value(7), 200_000 + number * 10 + value(9),
        )
        .unwrap();
    }
    // Orders that nothing points to.
    for id in [2_000_000 + number * 2, 2_000_001 + number * 2] {
        write!(
            sql,
            "INSERT INTO orders VALUES ({id}, 1, now()::timestamp, 1, 1, now()::timestamp);
             DELETE FROM orders WHERE id = {id};"
        )
        .unwrap();
    }
    sql
}
