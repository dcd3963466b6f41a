"""ClickHouse beside one `SELECT … FORMAT Native` followed by zstd."""

from urllib.parse import quote

from .served import Served, Turns

BYTES_A_ROW = 170
INSERTS = 20


def bench(programs, scratch, size_mb, rounds):
    with Served(programs, "clickhouse") as server:
        def query(text):
            return server.http("POST", "/", text.encode(), "text/plain")

        def fill(first, last):
            query(f"""INSERT INTO shop.events SELECT number, toDateTime('2026-01-01 00:00:00') + number % 2592000, (number * 7919) % 50000,
                ['login','view','cart','pay','logout'][1 + number % 5], number / 7, lower(hex(sipHash128(number))), concat('browser/', toString(number % 90), ' ', hex(cityHash64(number)))
                FROM numbers({first}, {last - first})""")

        rows = size_mb * 2**20 // BYTES_A_ROW
        query("CREATE DATABASE shop")
        query("""CREATE TABLE shop.events (id UInt64, at DateTime, account UInt32, kind LowCardinality(String), amount Float64, ref String, agent String)
            ENGINE = MergeTree PARTITION BY toYYYYMMDD(at) % 10 ORDER BY (account, id)""")
        for part in range(INSERTS):
            fill(rows * part // INSERTS, rows * (part + 1) // INSERTS)
        query("OPTIMIZE TABLE shop.events FINAL")
        turns = Turns(f"ClickHouse 26, {rows:,} rows", server, programs / "fettler", scratch, rounds)
        select = f"http://{server.address}/?query={quote('SELECT * FROM shop.events FORMAT Native')}"
        peer = "SELECT … FORMAT Native, zstd -1 -T2"
        turns.run(
            {peer: lambda folder: ["sh", "-c", f"curl -sSf '{select}' | zstd -q -1 -T2 > {folder}/events"]},
            {"fettler restore": lambda work: turns.restore(work, "--overwrite")},
            [("fettler backup", peer, "")],
            lambda: fill(rows, rows + rows // 100),
        )
