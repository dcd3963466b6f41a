"""MongoDB's protocol beside mongodump and mongorestore, on the servers that the tests have."""

import hashlib
import shutil
import struct
import subprocess

from .served import Served, Turns

GO_MODULE = """module peers

go 1.22

require github.com/mongodb/mongo-tools v0.0.0-20240723193119-837c2bc263f4
"""
BYTES_A_DOCUMENT = 420
# mongodump says no size of batches, and the server in Java then answers with all that is left: more than 48 MB of one collection it could not read.
DOCUMENTS_A_COLLECTION = 50_000
# Which servers there are, and how much each can hold: the one in memory keeps its log there too.
SERVERS = {"mongodb": ("in Java, in memory", 256), "ferretdb": ("FerretDB over PostgreSQL", 1 << 20)}


def install(folder):
    """MongoDB's own tools, built."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "go.mod").write_text(GO_MODULE)
    for tool in ("mongodump", "mongorestore"):
        if not (folder / tool).exists():
            subprocess.run(["go", "build", "-mod=mod", "-o", tool, f"github.com/mongodb/mongo-tools/{tool}/main"], cwd=folder, check=True)
    return folder


def field(kind, name, value):
    return bytes([kind]) + name.encode() + b"\0" + value


def text(name, value):
    value = value.encode()
    return field(2, name, struct.pack("<i", len(value) + 1) + value + b"\0")


def document(at, salt):
    """An order as an application has it, in BSON."""
    noise = hashlib.sha1(f"{at}{salt}".encode()).hexdigest()
    body = (field(18, "_id", struct.pack("<q", at)) + text("customer", f"customer number {at * 7919 % 100003}") + text("reference", noise)
            + field(1, "total", struct.pack("<d", at / 7)) + field(9, "placed", struct.pack("<q", 1_767_225_600_000 + at * 3000))
            + text("address", f"{noise[:10]} street {at % 500}, house {at % 77}") + text("note", f"delivery to {noise[:12]} " * 7))
    return struct.pack("<i", len(body) + 5) + body + b"\0"


def bench(programs, scratch, size_mb, rounds, peers):
    tools = install(peers / "mongo-tools")
    for engine, (name, most_mb) in SERVERS.items():
        folder = scratch / engine
        folder.mkdir()
        bench_on(engine, name, programs, folder, min(size_mb, most_mb), rounds, tools)


def bench_on(engine, name, programs, scratch, size_mb, rounds, tools):
    with Served(programs, engine) as server:
        def fill(first, last, salt):
            folder = scratch / "fill" / "shop"
            folder.mkdir(parents=True, exist_ok=True)
            for begin in range(first - first % DOCUMENTS_A_COLLECTION, last, DOCUMENTS_A_COLLECTION):
                with open(folder / f"orders_{begin // DOCUMENTS_A_COLLECTION}.bson", "wb") as file:
                    file.writelines(document(at, salt) for at in range(max(begin, first), min(begin + DOCUMENTS_A_COLLECTION, last)))
            subprocess.run([tools / "mongorestore", "--quiet", f"--uri={server.url}", folder.parent], check=True)
            shutil.rmtree(folder)

        documents = size_mb * 2**20 // BYTES_A_DOCUMENT
        fill(0, documents, "first")
        turns = Turns(f"MongoDB's protocol ({name}), {documents:,} documents", server, programs / "fettler", scratch, rounds)
        turns.run(
            {"mongodump --gzip": lambda folder: [tools / "mongodump", "--quiet", "--gzip", f"--uri={server.url}", f"--out={folder}"]},
            {"fettler restore": lambda work: turns.restore(work, "--overwrite"),
             "mongorestore --gzip": lambda work: [tools / "mongorestore", "--quiet", "--gzip", "--drop", f"--uri={server.url}", work / "peer"]},
            [("fettler backup", "mongodump --gzip", "goal: at most 0.5, or the server is the limit"),
             ("fettler restore", "mongorestore --gzip", "goal: at most 0.5, or the server is the limit")],
            lambda: fill(documents, documents + documents // 100, "second"),
        )
