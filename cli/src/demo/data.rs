//! The demo's database: a shop with customers, products, orders and a log of events, as a shop of that size
//! would have them, and one percent of change as a busy day brings it.
//!
//! The content follows from the seed alone. Rows are written in the order in which they would have come
//! about, without a journal, and the larger indexes are made near the end: what is measured afterwards is
//! backups, not this.

use std::{fmt::Write as _, path::Path};

use rusqlite::{Connection, Statement, Transaction, params};

/// What was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Made {
    /// Rows of all tables.
    pub rows: u64,
    /// Bytes of the file.
    pub bytes: u64,
}

/// The first moment of the shop: 2024-01-01 00:00 UTC.
const OPENED_AT: i64 = 1_704_067_200;

/// A customer for so many bytes of database.
const BYTES_PER_CUSTOMER: u64 = 20_000;

/// A product for so many bytes of database.
const BYTES_PER_PRODUCT: u64 = 100_000;

/// Orders written between two looks at the file's size.
const ORDERS_PER_LOOK: u64 = 200;

/// The most lines that an order has.
const MOST_ITEMS: usize = 4;

/// The part of the size, in percent, that is reached before the indexes are made.
const PERCENT_BEFORE_INDEXES: u64 = 93;

/// Of a hundred changed rows, so many are updates of recent orders.
const PERCENT_UPDATED: u64 = 15;

/// Of a hundred changed rows, so many are recent events that are deleted.
const PERCENT_DELETED: u64 = 5;

const SCHEMA: &str = "
CREATE TABLE customers (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL,
    email TEXT NOT NULL UNIQUE,
    city TEXT NOT NULL,
    country TEXT NOT NULL,
    loyalty REAL NOT NULL,
    joined_at INTEGER NOT NULL
);
CREATE TABLE products (
    id INTEGER PRIMARY KEY,
    sku TEXT NOT NULL UNIQUE,
    name TEXT NOT NULL,
    description TEXT NOT NULL,
    price_cents INTEGER NOT NULL CHECK (price_cents > 0),
    thumbnail BLOB
);
CREATE TABLE orders (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    customer_id INTEGER NOT NULL REFERENCES customers (id),
    ordered_at INTEGER NOT NULL,
    status TEXT NOT NULL,
    total_cents INTEGER NOT NULL,
    shipping_address TEXT NOT NULL,
    comment TEXT
);
CREATE TABLE order_items (
    order_id INTEGER NOT NULL REFERENCES orders (id) ON DELETE CASCADE,
    line INTEGER NOT NULL,
    product_id INTEGER NOT NULL REFERENCES products (id),
    quantity INTEGER NOT NULL,
    price_cents INTEGER NOT NULL,
    PRIMARY KEY (order_id, line)
) WITHOUT ROWID;
CREATE TABLE events (
    id INTEGER PRIMARY KEY,
    at INTEGER NOT NULL,
    order_id INTEGER NOT NULL,
    kind TEXT NOT NULL,
    payload TEXT NOT NULL
);
CREATE VIEW open_orders AS
    SELECT orders.id, customers.name, orders.total_cents
    FROM orders JOIN customers ON customers.id = orders.customer_id
    WHERE orders.status IN ('new', 'paid');
";

const INDEXES: &str = "
CREATE INDEX orders_by_customer ON orders (customer_id, ordered_at);
CREATE INDEX open_orders_by_time ON orders (ordered_at) WHERE status IN ('new', 'paid');
CREATE INDEX events_by_order ON events (order_id);
";

const GIVEN_NAMES: [&str; 24] = [
    "Anna",
    "Björn",
    "Chloé",
    "Dmitri",
    "Élodie",
    "Fatima",
    "Günther",
    "Håkon",
    "Inês",
    "José",
    "Kateřina",
    "Łukasz",
    "María",
    "Nguyễn",
    "Ólafur",
    "Παύλος",
    "Réka",
    "Søren",
    "Şebnem",
    "Ursula",
    "Владимир",
    "陽子",
    "伟",
    "지우",
];

const FAMILY_NAMES: [&str; 24] = [
    "Andersson",
    "Becker",
    "Çelik",
    "Dvořák",
    "Esposito",
    "Fernández",
    "García",
    "Høgh",
    "Ivanova",
    "Jørgensen",
    "Kowalski",
    "Lefèvre",
    "Müller",
    "Novák",
    "O’Brien",
    "Παπαδόπουλος",
    "Quintero",
    "Rossi",
    "Smith",
    "Tanaka",
    "Ünal",
    "van Dijk",
    "王",
    "김",
];

const CITIES: [(&str, &str); 16] = [
    ("Berlin", "DE"),
    ("München", "DE"),
    ("Zürich", "CH"),
    ("Wien", "AT"),
    ("Paris", "FR"),
    ("Saint-Étienne", "FR"),
    ("København", "DK"),
    ("Göteborg", "SE"),
    ("Kraków", "PL"),
    ("Praha", "CZ"),
    ("São Paulo", "BR"),
    ("Málaga", "ES"),
    ("İstanbul", "TR"),
    ("Αθήνα", "GR"),
    ("東京", "JP"),
    ("서울", "KR"),
];

const STREETS: [&str; 12] = [
    "Bahnhofstraße",
    "Hauptstraße",
    "Rue de la Gare",
    "Station Road",
    "Calle Mayor",
    "Via Roma",
    "Storgatan",
    "Nádražní",
    "Dworcowa",
    "Stationsstraat",
    "Avenida Central",
    "Mill Lane",
];

const WORDS: [&str; 48] = [
    "steel", "oak", "brass", "linen", "enamel", "copper", "walnut", "woollen", "folding", "small",
    "large", "heavy", "light", "lantern", "whistle", "kettle", "lamp", "bench", "clock", "blanket",
    "toolbox", "signal", "wheel", "spring", "bolt", "gauge", "lever", "with", "without", "and",
    "for", "from", "made", "by", "hand", "in", "the", "workshop", "since", "it", "lasts", "a",
    "lifetime", "when", "oiled", "now", "then", "daily",
];

const EVENT_KINDS: [&str; 6] = [
    "order.created",
    "payment.authorised",
    "stock.reserved",
    "mail.sent",
    "parcel.packed",
    "parcel.delivered",
];

const STATUSES: [&str; 5] = ["delivered", "delivered", "delivered", "sent", "returned"];

/// Makes a shop of about `bytes` bytes in a new file, and tells the bytes written so far now and then.
///
/// # Errors
///
/// When SQLite cannot write the file, or it holds a shop already.
pub fn make(
    path: &Path,
    bytes: u64,
    seed: u64,
    on_progress: &mut dyn FnMut(u64),
) -> Result<Made, rusqlite::Error> {
    let mut connection = Connection::open(path)?;
    connection.execute_batch(
        "PRAGMA page_size = 4096; PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; \
         PRAGMA foreign_keys = OFF; \
         PRAGMA cache_size = -65536; PRAGMA temp_store = MEMORY;",
    )?;
    connection.execute_batch(SCHEMA)?;
    let mut random = Random(seed);
    let transaction = connection.transaction()?;
    let customers = (bytes / BYTES_PER_CUSTOMER).max(20);
    let products = (bytes / BYTES_PER_PRODUCT).max(10);
    let mut rows = customers + products;
    add_customers(&transaction, &mut random, 1, customers)?;
    add_products(&transaction, &mut random, products)?;
    {
        let mut till = Till::open(&transaction, random, customers, products)?;
        rows += till.sell_until(bytes / 100 * PERCENT_BEFORE_INDEXES, on_progress)?;
        transaction.execute_batch(INDEXES)?;
        rows += till.sell_until(bytes, on_progress)?;
    }
    transaction.commit()?;
    connection.execute_batch("PRAGMA synchronous = FULL; PRAGMA journal_mode = WAL; ANALYZE;")?;
    let pages: i64 = connection.pragma_query_value(None, "page_count", |row| row.get(0))?;
    let made = Made {
        rows,
        bytes: pages.unsigned_abs() * 4096,
    };
    connection.close().map_err(|(_, error)| error)?;
    on_progress(made.bytes);
    Ok(made)
}

/// Changes one percent of a shop's rows as a day does: mostly new orders, some recent orders that go on, a few
/// recent events that are deleted. Returns the number of rows inserted, updated and deleted.
///
/// # Errors
///
/// When the file is no shop or SQLite cannot write it.
pub fn change_one_percent(path: &Path) -> Result<u64, rusqlite::Error> {
    let mut connection = Connection::open(path)?;
    connection.busy_timeout(std::time::Duration::from_secs(10))?;
    let ask = |sql: &str| -> Result<u64, rusqlite::Error> {
        connection.query_row(sql, [], |row| row.get::<_, i64>(0).map(i64::unsigned_abs))
    };
    let total = ask(
        "SELECT (SELECT count(*) FROM customers) + (SELECT count(*) FROM products) \
                     + (SELECT count(*) FROM orders) + (SELECT count(*) FROM order_items) \
                     + (SELECT count(*) FROM events)",
    )?;
    let customers = ask("SELECT coalesce(max(id), 0) FROM customers")?;
    let products = ask("SELECT coalesce(max(id), 0) FROM products")?;
    let last_order = ask("SELECT coalesce(max(id), 0) FROM orders")?;
    let last_event = ask("SELECT coalesce(max(id), 0) FROM events")?;
    let wanted = (total / 100).max(1);
    let (updated, deleted) = (
        wanted * PERCENT_UPDATED / 100,
        wanted * PERCENT_DELETED / 100,
    );
    let transaction = connection.transaction()?;
    let mut changed = transaction.execute(
        "UPDATE orders SET status = 'sent', comment = 'handed to the carrier' WHERE id > ?",
        [last_order.saturating_sub(updated).cast_signed()],
    )? as u64;
    changed += transaction.execute(
        "DELETE FROM events WHERE id > ?",
        [last_event.saturating_sub(deleted).cast_signed()],
    )? as u64;
    let mut random = Random(last_order ^ 0x5eed);
    let newcomers = (wanted / 200).min(customers);
    add_customers(&transaction, &mut random, customers + 1, newcomers)?;
    changed += newcomers;
    {
        let mut till = Till::open(&transaction, random, customers + newcomers, products)?;
        while changed < wanted {
            changed += till.sell()?;
        }
    }
    transaction.commit()?;
    connection.close().map_err(|(_, error)| error)?;
    Ok(changed)
}

fn add_customers(
    transaction: &Transaction<'_>,
    random: &mut Random,
    first: u64,
    count: u64,
) -> Result<(), rusqlite::Error> {
    let mut insert = transaction.prepare("INSERT INTO customers VALUES (?, ?, ?, ?, ?, ?, ?)")?;
    for id in first..first + count {
        let name = format!("{} {}", random.of(&GIVEN_NAMES), random.of(&FAMILY_NAMES));
        let (city, country) = CITIES[random.below(CITIES.len() as u64) as usize];
        insert.execute(params![
            id.cast_signed(),
            name,
            format!("customer{id}.{:04x}@example.org", random.below(1 << 16)),
            city,
            country,
            random.below(1000) as f64 / 1000.0,
            OPENED_AT + random.below(30_000_000).cast_signed(),
        ])?;
    }
    Ok(())
}

fn add_products(
    transaction: &Transaction<'_>,
    random: &mut Random,
    count: u64,
) -> Result<(), rusqlite::Error> {
    let mut insert = transaction.prepare("INSERT INTO products VALUES (?, ?, ?, ?, ?, ?)")?;
    let mut description = String::new();
    for id in 1..=count {
        description.clear();
        random.words(&mut description, 40);
        let thumbnail = (random.below(4) == 0).then(|| random.bytes(400));
        insert.execute(params![
            id.cast_signed(),
            format!("SKU-{id:06}-{:03}", random.below(1000)),
            format!(
                "{} {} №{id}",
                random.of(&WORDS[..13]),
                random.of(&WORDS[13..27])
            ),
            description,
            199 + random.below(50_000).cast_signed(),
            thumbnail,
        ])?;
    }
    Ok(())
}

/// Where orders are rung up.
struct Till<'a> {
    transaction: &'a Transaction<'a>,
    order: Statement<'a>,
    item: Statement<'a>,
    event: Statement<'a>,
    random: Random,
    customers: u64,
    products: u64,
    next_order: u64,
    next_event: u64,
    now: i64,
    address: String,
    comment: String,
    payload: String,
}

impl<'a> Till<'a> {
    fn open(
        transaction: &'a Transaction<'a>,
        random: Random,
        customers: u64,
        products: u64,
    ) -> Result<Self, rusqlite::Error> {
        let last = |sql: &str| transaction.query_row(sql, [], |row| row.get::<_, i64>(0));
        Ok(Self {
            order: transaction.prepare("INSERT INTO orders VALUES (?, ?, ?, ?, ?, ?, ?)")?,
            item: transaction.prepare("INSERT INTO order_items VALUES (?, ?, ?, ?, ?)")?,
            event: transaction.prepare("INSERT INTO events VALUES (?, ?, ?, ?, ?)")?,
            next_order: 1 + last("SELECT coalesce(max(id), 0) FROM orders")?.unsigned_abs(),
            next_event: 1 + last("SELECT coalesce(max(id), 0) FROM events")?.unsigned_abs(),
            now: last("SELECT coalesce(max(at), 0) FROM events")?.max(OPENED_AT),
            transaction,
            random,
            customers: customers.max(1),
            products: products.max(1),
            address: String::new(),
            comment: String::new(),
            payload: String::new(),
        })
    }

    fn sell_until(
        &mut self,
        bytes: u64,
        on_progress: &mut dyn FnMut(u64),
    ) -> Result<u64, rusqlite::Error> {
        let mut rows = 0;
        loop {
            let pages: i64 = self
                .transaction
                .pragma_query_value(None, "page_count", |row| row.get(0))?;
            let written = pages.unsigned_abs() * 4096;
            on_progress(written);
            if written >= bytes {
                return Ok(rows);
            }
            for _ in 0..ORDERS_PER_LOOK {
                rows += self.sell()?;
            }
        }
    }

    /// One order with its items and what happened to it; returns the number of rows.
    fn sell(&mut self) -> Result<u64, rusqlite::Error> {
        let id = self.next_order;
        self.next_order += 1;
        self.now += 1 + self.random.below(120).cast_signed();
        let customer = 1 + self.random.below(self.customers);
        let count = 1 + self.random.below(MOST_ITEMS as u64) as usize;
        let mut items = [(0, 0, 0); MOST_ITEMS];
        let mut total = 0;
        for (product, quantity, price) in &mut items[..count] {
            *product = 1 + self.random.below(self.products).cast_signed();
            *quantity = 1 + self.random.below(3).cast_signed();
            *price = 199 + self.random.below(50_000).cast_signed();
            total += *quantity * *price;
        }
        let (city, country) = CITIES[self.random.below(CITIES.len() as u64) as usize];
        self.address.clear();
        write!(
            self.address,
            "{} {}, {:05} {city}, {country}",
            self.random.of(&STREETS),
            1 + self.random.below(200),
            self.random.below(100_000)
        )
        .expect("writing to a string does not fail");
        self.comment.clear();
        let has_comment = self.random.below(5) == 0;
        if has_comment {
            self.random.words(&mut self.comment, 12);
        }
        self.order.execute(params![
            id.cast_signed(),
            customer.cast_signed(),
            self.now,
            self.random.of(&STATUSES),
            total,
            self.address,
            has_comment.then_some(&self.comment)
        ])?;
        for (line, (product, quantity, price)) in (1i64..).zip(&items[..count]) {
            self.item
                .execute(params![id.cast_signed(), line, product, quantity, price])?;
        }
        let events = 2 + self.random.below(3);
        for event in 0..events {
            let kind = EVENT_KINDS[event as usize];
            self.payload.clear();
            write!(
                self.payload,
                "{{\"kind\":\"{kind}\",\"order\":{id},\"customer\":{customer},\"amount\":{{\"cents\":{total},\"currency\":\"EUR\"}},\"request\":\"{:016x}{:016x}\",\"client\":{{\"address\":\"10.{}.{}.{}\",\"agent\":\"shop-web/{}.{} (+https://shop.example.org)\"}},\"duration_ms\":{},\"session\":\"{:016x}\"}}",
                self.random.next(),
                self.random.next(),
                self.random.below(4),
                self.random.below(256),
                self.random.below(256),
                1 + self.random.below(3),
                self.random.below(20),
                self.random.below(3000),
                self.random.next(),
            )
            .expect("writing to a string does not fail");
            self.event.execute(params![
                self.next_event.cast_signed(),
                self.now + event.cast_signed(),
                id.cast_signed(),
                kind,
                self.payload
            ])?;
            self.next_event += 1;
        }
        Ok(1 + count as u64 + events)
    }
}

/// SplitMix64: small, fast, and the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    fn of<'a>(&mut self, list: &[&'a str]) -> &'a str {
        list[self.below(list.len() as u64) as usize]
    }

    fn words(&mut self, text: &mut String, most: u64) {
        for at in 0..most / 2 + self.below(most / 2) {
            if at > 0 {
                text.push(' ');
            }
            text.push_str(self.of(&WORDS));
        }
    }

    fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.next() as u8).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u64 = 4 << 20;

    fn shop(folder: &Path, name: &str, seed: u64) -> (std::path::PathBuf, Made) {
        let path = folder.join(name);
        let made = make(&path, SIZE, seed, &mut |_| {}).unwrap();
        (path, made)
    }

    #[test]
    fn the_same_seed_makes_the_same_file_and_another_seed_another_one() {
        let folder = tempfile::tempdir().unwrap();
        let (first, made) = shop(folder.path(), "first", 1);
        let (second, again) = shop(folder.path(), "second", 1);
        let (third, _) = shop(folder.path(), "third", 2);
        assert_eq!(made, again);
        let read = |path| std::fs::read(path).unwrap();
        assert!(read(&first) == read(&second));
        assert!(read(&first) != read(&third));
    }

    #[test]
    fn a_shop_has_the_size_that_was_asked_for_and_is_sound() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("shop");
        let mut told = Vec::new();
        let made = make(&path, SIZE, 7, &mut |bytes| told.push(bytes)).unwrap();
        assert_eq!(made.bytes, std::fs::metadata(&path).unwrap().len());
        assert!((SIZE..SIZE + SIZE / 10).contains(&made.bytes), "{made:?}");
        assert!(told.is_sorted() && told.len() > 3);
        let connection = Connection::open(&path).unwrap();
        let ask = |sql: &str| connection.query_row(sql, [], |row| row.get::<_, String>(0));
        assert_eq!(ask("PRAGMA integrity_check").unwrap(), "ok");
        assert_eq!(ask("PRAGMA journal_mode").unwrap(), "wal");
        assert!(matches!(
            ask("SELECT \"table\" FROM pragma_foreign_key_check"),
            Err(rusqlite::Error::QueryReturnedNoRows)
        ));
    }

    #[test]
    fn one_percent_changes_and_the_shop_stays_sound() {
        let folder = tempfile::tempdir().unwrap();
        let (path, made) = shop(folder.path(), "shop", 3);
        for _ in 0..3 {
            let changed = change_one_percent(&path).unwrap();
            let percent = changed as f64 * 100.0 / made.rows as f64;
            assert!((0.9..1.2).contains(&percent), "{percent}");
        }
        let connection = Connection::open(&path).unwrap();
        let sound: String = connection
            .query_row("PRAGMA integrity_check", [], |row| row.get(0))
            .unwrap();
        assert_eq!(sound, "ok");
    }
}
