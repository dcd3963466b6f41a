"""PostgreSQL beside pg_dump and pg_restore."""

import os
import pwd
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

from .measure import TICKS_PER_SECOND, child_usage_reset, folder_bytes, report, timed

PG_BIN = Path("/usr/lib/postgresql/15/bin")
DATABASE = "bench"


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Postgres:
    """A durable PostgreSQL 15 of its own, with settings as a careful administrator has them on two cores."""

    def __init__(self, folder):
        self.folder, self.port = folder, free_port()
        self.user = "postgres" if os.geteuid() == 0 else pwd.getpwuid(os.getuid()).pw_name
        self.data = folder / "data"
        if os.geteuid() == 0:
            shutil.chown(folder, "postgres")
        folder.chmod(0o755)
        self.as_owner(PG_BIN / "initdb", "-D", self.data, "-U", "postgres", "--auth=trust", "-E", "UTF8", "--locale=C.UTF-8")
        with open(folder / "log", "wb") as log:
            self.process = subprocess.Popen(
                self.owner_command(PG_BIN / "postgres", "-D", self.data, "-p", self.port, "-k", folder,
                                   "-c", "listen_addresses=127.0.0.1", "-c", "shared_buffers=1GB",
                                   "-c", "max_wal_size=8GB", "-c", "maintenance_work_mem=256MB"),
                stdout=log, stderr=log)
        for _ in range(300):
            if subprocess.run([PG_BIN / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(self.port)]).returncode == 0:
                return
            time.sleep(0.1)
        raise SystemExit(f"PostgreSQL did not start: see {folder}/log")

    def owner_command(self, *command):
        command = [str(word) for word in command]
        if os.geteuid() == 0:
            return ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups", *command]
        return command

    def as_owner(self, *command):
        subprocess.run(self.owner_command(*command), check=True, stdout=subprocess.DEVNULL, cwd="/")

    def url(self, database=DATABASE):
        return f"postgres://postgres@127.0.0.1:{self.port}/{database}"

    def sql(self, statement, database=DATABASE):
        run = subprocess.run([PG_BIN / "psql", "-XqAt", "-v", "ON_ERROR_STOP=1", self.url(database), "-c", statement],
                             capture_output=True, text=True)
        if run.returncode != 0:
            raise SystemExit(f"{statement}\nfailed: {run.stderr}")
        return run.stdout.strip()

    def cpu_seconds(self):
        """What the server and all backends that have ended used; sessions of the tools have ended when this is asked."""
        total = 0
        children = subprocess.run(["pgrep", "-P", str(self.postmaster())], capture_output=True, text=True).stdout.split()
        for pid in [self.postmaster(), *children]:
            try:
                fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
            except FileNotFoundError:
                continue
            total += sum(int(fields[at]) for at in (11, 12, 13, 14))
        return total / TICKS_PER_SECOND

    def postmaster(self):
        return int((self.data / "postmaster.pid").read_text().split()[0])

    def stop(self):
        self.as_owner(PG_BIN / "pg_ctl", "-D", self.data, "-m", "fast", "-w", "stop")
        self.process.wait()


def fill(server, size_mb):
    """Rows as applications have them: an append-mostly log, a wide table, orders with text, numbers, times and JSON."""
    server.sql(f"CREATE DATABASE {DATABASE}", "postgres")
    rows = size_mb * 1024 * 1024 // 3
    server.sql("""
        CREATE TABLE event (id bigint, at timestamptz NOT NULL, account int NOT NULL, kind text NOT NULL, detail jsonb);
        CREATE TABLE orders (id bigint, customer int, placed timestamptz, total numeric(12,2), state text, note text);
        CREATE TABLE wide (id bigint, %s);
    """ % ", ".join(f"c{n} {kind}" for n, kind in enumerate(["int", "bigint", "text", "float8", "date", "uuid"] * 5)))
    server.sql(f"""
        INSERT INTO event SELECT n, timestamptz '2026-01-01' + n * interval '1 second', (n * 7919) % 50000,
            (ARRAY['login','view','cart','pay','logout'])[1 + (n % 5)::int],
            jsonb_build_object('ip', (n % 255) || '.' || (n * 31 % 255) || '.0.1', 'ms', n % 977, 'agent', 'browser/' || n % 90, 'ref', md5(n::text))
        FROM generate_series(1::bigint, {rows // 190}) n""")
    server.sql(f"""
        INSERT INTO orders SELECT n, (n * 104729) % 200000, timestamptz '2026-01-01' + n * interval '3 second', (n % 100000) / 7.0,
            (ARRAY['new','paid','sent','done'])[1 + (n % 4)::int], 'delivery to ' || md5((n % 5000)::text) || ' street ' || n % 300
        FROM generate_series(1::bigint, {rows // 150}) n""")
    columns = ", ".join({"int": "n % 1000", "bigint": "n * 7", "text": "md5(n::text)", "float8": "n / 3.0", "date": "date '2026-01-01' + (n % 900)::int",
                         "uuid": "md5((n + 1)::text)::uuid"}[kind] for kind in ["int", "bigint", "text", "float8", "date", "uuid"] * 5)
    server.sql(f"INSERT INTO wide SELECT n, {columns} FROM generate_series(1::bigint, {rows // 460}) n")
    server.sql("""
        ALTER TABLE event ADD PRIMARY KEY (id); CREATE INDEX ON event (account);
        ALTER TABLE orders ADD PRIMARY KEY (id); CREATE INDEX ON orders (customer, placed);
        ALTER TABLE wide ADD PRIMARY KEY (id);""")
    server.sql("VACUUM (FREEZE, ANALYZE)")
    server.sql("CHECKPOINT")


def bench(fettler, scratch, size_mb, rounds):
    folder = scratch / "server"
    folder.mkdir()
    server = Postgres(folder)
    try:
        fill(server, size_mb)
        print(f"PostgreSQL 15: {int(server.sql(f'SELECT pg_database_size({DATABASE!r})')) / 2**20:.0f} MB, {rounds} rounds", file=sys.stderr)
        figures = {}

        def note(name, figure, stored=None):
            figure = {key: value for key, value in figure.items() if key != "out"}
            figure["mb"] = (stored or 0) / 2**20
            figures.setdefault(name, []).append(figure)
            print(f"  {name}: {figure['wall']:.2f} s, {figure['memory']:.0f} MB of memory", file=sys.stderr)

        for at in range(rounds + 1):
            work = scratch / f"round-{at}"
            work.mkdir()
            environment = dict(os.environ, FETTLER_FOLDER=str(work / "fettler"))
            child_usage_reset()
            figure = timed([fettler, "backup", server.url(), "--repository", work / "repository", "--json"], server, environment)
            counted = at > 0  # The first round warms caches up.
            note_if = note if counted else (lambda *_: None)
            note_if("fettler backup", figure, folder_bytes(work / "repository"))
            for level in ("1", "0"):
                child_usage_reset()
                target = work / f"dump-{level}"
                figure = timed([PG_BIN / "pg_dump", "-Fd", "-j2", f"-Z{level}", "-f", target, server.url()], server)
                note_if(f"pg_dump -Fd -j2 -Z{level}", figure, folder_bytes(target))
            server.sql("CHECKPOINT", "postgres")
            child_usage_reset()
            figure = timed([fettler, "restore", "latest", "--repository", work / "repository", "--to", server.url("copy_f"), "--json"], server, environment)
            note_if("fettler restore", figure)
            server.sql("DROP DATABASE copy_f", "postgres")
            server.sql("CREATE DATABASE copy_p", "postgres")
            server.sql("CHECKPOINT", "postgres")
            child_usage_reset()
            figure = timed([PG_BIN / "pg_restore", "-j2", "-d", server.url("copy_p"), work / "dump-1"], server)
            note_if("pg_restore -j2", figure)
            server.sql("DROP DATABASE copy_p", "postgres")
            server.sql("CHECKPOINT", "postgres")
            shutil.rmtree(work)
        report("PostgreSQL 15, logical", figures, [
            ("fettler backup", "pg_dump -Fd -j2 -Z1", "goal: at most 0.67"),
            ("fettler backup", "pg_dump -Fd -j2 -Z0", "goal: at most 1.15"),
            ("fettler restore", "pg_restore -j2", "goal: below 1"),
        ])
    finally:
        server.stop()
