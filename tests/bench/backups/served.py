"""Servers as the tests start them, and rounds in which Fettler and its peers take turns on them."""

import os
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path

from .measure import TICKS_PER_SECOND, child_usage_reset, folder_bytes, report, timed


class Served:
    """A server of an engine of its own, gone at the end of the block."""

    def __init__(self, programs, engine):
        self.command = [programs / "fettler-bench", "serve", "--engine", engine]

    def __enter__(self):
        self.process = subprocess.Popen(self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.url = self.process.stdout.readline().strip()
        if not self.url:
            raise SystemExit("the server did not start")
        self.address = self.url.split("://")[1].strip("/")
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.wait()

    def cpu_seconds(self):
        """What the server and its children used."""
        total, waiting = 0, [self.process.pid]
        while waiting:
            pid = waiting.pop()
            try:
                fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
                for task in Path(f"/proc/{pid}/task").iterdir():
                    waiting += (task / "children").read_text().split()
            except FileNotFoundError:
                continue
            total += sum(int(fields[at]) for at in (11, 12, 13, 14))
        return total / TICKS_PER_SECOND

    def http(self, method, path, body=b"", kind="application/json"):
        """Asks a server that speaks HTTP."""
        request = urllib.request.Request(f"http://{self.address}{path}", body or None, {"Content-Type": kind}, method=method)
        with urllib.request.urlopen(request) as answer:
            return answer.read().decode()


class Turns:
    """Fettler and its peers in turn on one server, and then a second backup after a small change."""

    def __init__(self, title, server, fettler, scratch, rounds):
        self.title, self.server, self.fettler, self.scratch, self.rounds = title, server, fettler, scratch, rounds
        self.figures = {}

    def run(self, peers, restores, comparisons, change):
        """`peers` and `restores` map names to what runs them: given a folder, and for restores the folder of the round's
        backups, they return a command. `change` changes about one in a hundred."""
        for at in range(self.rounds + 1):
            work = self.scratch / f"round-{at}"
            work.mkdir()
            # The first round warms caches up.
            note = self.note if at > 0 else (lambda *_: None)
            note("fettler backup", self.backup(work), folder_bytes(work / "repository"))
            for name, command in peers.items():
                target = work / "peer"
                target.mkdir()
                child_usage_reset()
                note(name, timed(command(target), self.server), folder_bytes(target))
                if not restores:
                    shutil.rmtree(target)
            for name, command in restores.items():
                child_usage_reset()
                note(name, timed(command(work), self.server, self.environment(work)))
            if at < self.rounds:
                shutil.rmtree(work)
        change()
        before = folder_bytes(work / "repository")
        second = self.backup(work)
        stored = folder_bytes(work / "repository") - before
        report(self.title, self.figures, comparisons)
        print(f"- a second backup after about one in a hundred changed: {second['wall']:.2f} s, {stored / 2**20:.1f} MB stored")

    def environment(self, work):
        return dict(os.environ, FETTLER_FOLDER=str(work / "fettler"))

    def backup(self, work):
        child_usage_reset()
        command = [self.fettler, "backup", self.server.url, "--repository", work / "repository", "--json"]
        return timed(command, self.server, self.environment(work))

    def restore(self, work, *options):
        return [self.fettler, "restore", "latest", "--repository", work / "repository", "--to", self.server.url, "--json", *options]

    def note(self, name, figure, stored=0):
        figure = {key: value for key, value in figure.items() if key != "out"}
        figure["mb"] = stored / 2**20
        self.figures.setdefault(name, []).append(figure)
        print(f"  {name}: {figure['wall']:.2f} s, {figure['memory']:.0f} MB of memory", file=sys.stderr)
