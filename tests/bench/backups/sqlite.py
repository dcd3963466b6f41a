"""SQLite beside `.backup` followed by zstd."""

import os
import shutil
import subprocess
import sys

from .measure import child_usage_reset, folder_bytes, report, timed


def bench(fettler, scratch, size_mb, rounds):
    source = scratch / "source.sqlite"
    rows = size_mb * 1024 * 1024 // 150
    subprocess.run(["sqlite3", source, f"""PRAGMA journal_mode = WAL; CREATE TABLE t (id INTEGER PRIMARY KEY, a TEXT, b REAL, c TEXT);
        WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {rows})
        INSERT INTO t SELECT i, 'customer number ' || (i * 7919 % 100003), i / 7.0, hex(randomblob(16)) || ' street ' || i % 500 || ' ' || hex(i) FROM n;
        CREATE INDEX t_a ON t (a);"""], check=True, stdout=subprocess.DEVNULL)
    print(f"SQLite: {source.stat().st_size / 2**20:.0f} MB, {rounds} rounds", file=sys.stderr)
    figures = {}
    for at in range(rounds + 1):
        work = scratch / f"sqlite-{at}"
        work.mkdir()
        environment = dict(os.environ, FETTLER_FOLDER=str(work / "fettler"))
        child_usage_reset()
        ours = timed([fettler, "backup", source, "--repository", work / "repository", "--json"], None, environment)
        ours["mb"] = folder_bytes(work / "repository") / 2**20
        child_usage_reset()
        copy = work / "copy.sqlite"
        peer = timed(["sh", "-c", f"sqlite3 {source} '.backup {copy}' && zstd -q -1 -T2 --rm {copy}"])
        peer["mb"] = folder_bytes(work) / 2**20 - ours["mb"]
        if at > 0:
            figures.setdefault("fettler backup", []).append(ours)
            figures.setdefault("sqlite3 .backup; zstd -1 -T2", []).append(peer)
        shutil.rmtree(work)
    report("SQLite", figures, [("fettler backup", "sqlite3 .backup; zstd -1 -T2", "")])
