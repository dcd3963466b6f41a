"""OpenSearch beside elasticdump and the server's own snapshot. The Elasticsearch that tests have lacks a page that elasticdump asks for."""

import hashlib
import json
import subprocess

from .served import Served, Turns

BYTES_A_DOCUMENT = 400
DOCUMENTS_A_CALL = 5000


def install(folder):
    """elasticdump, from npm."""
    if not (folder / "node_modules/.bin/elasticdump").exists():
        subprocess.run(["npm", "install", "--silent", "--no-audit", "--no-fund", "elasticdump"], cwd=folder, check=True)
    return folder / "node_modules/.bin/elasticdump"


def document(at, salt):
    noise = hashlib.sha1(f"{at}{salt}".encode()).hexdigest()
    return {"at": 1_767_225_600_000 + at * 1000, "account": at * 7919 % 50000, "kind": "login view cart pay logout".split()[at % 5],
            "ref": noise, "amount": at / 7, "message": f"{noise[:10]} sent {at % 977} parcels to {noise[10:20]} " * 4}


def bench(programs, scratch, size_mb, rounds, peers):
    elasticdump = install(peers)
    with Served(programs, "opensearch") as server:
        def fill(first, last, salt):
            for begin in range(first, last, DOCUMENTS_A_CALL):
                lines = []
                for at in range(begin, min(begin + DOCUMENTS_A_CALL, last)):
                    lines += [json.dumps({"index": {"_id": str(at)}}), json.dumps(document(at, salt))]
                answer = json.loads(server.http("POST", "/events/_bulk?filter_path=errors", ("\n".join(lines) + "\n").encode()))
                if answer["errors"]:
                    raise SystemExit("the server refused documents")
            server.http("POST", "/events/_refresh")

        documents = size_mb * 2**20 // BYTES_A_DOCUMENT
        server.http("PUT", "/events", json.dumps({"settings": {"number_of_shards": 2, "number_of_replicas": 0}}).encode())
        fill(0, documents, "first")
        server.http("POST", "/events/_forcemerge?max_num_segments=5")
        turns = Turns(f"OpenSearch 3.8, {documents:,} documents", server, programs / "fettler", scratch, rounds)
        base = f"http://{server.address}"

        def snapshot(folder):
            body = json.dumps({"type": "fs", "settings": {"location": str(folder)}})
            return ["sh", "-c", f"curl -sSf -XPUT -H 'Content-Type: application/json' {base}/_snapshot/{folder.parent.name} -d '{body}'"
                    f" && curl -sSf -XPUT '{base}/_snapshot/{folder.parent.name}/one?wait_for_completion=true'"]

        dump = "elasticdump"
        turns.run(
            {dump: lambda folder: [elasticdump, f"--input={base}/events", f"--output={folder}/events.json", "--limit=5000", "--quiet"],
             "the server's own snapshot": snapshot},
            {},
            [("fettler backup", dump, "goal: at most 0.33"), ("fettler backup", "the server's own snapshot", "")],
            lambda: fill(documents, documents + documents // 100, "second"),
        )
