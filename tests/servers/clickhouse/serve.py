"""ClickHouse's engine of the PyPI package `chdb` behind ClickHouse's HTTP interface, for tests.

    serve.py FOLDER PORT [CONFIGURATION]

Parsing, planning, storage and formats are the engine's own; only what stands between it and a socket is written here. A
statement comes in `query` or as the body; the data of an INSERT is the body behind it. `database` is what a name without a
database means, `default_format` the format of an answer, other parameters are settings of SELECT, INSERT, DROP and
TRUNCATE. Answers to SELECT are streamed. The file of a configuration may say where `BACKUP` may write to. What is not here: users, parameters of
statements (`param_*`), compression, ids of statements, archives (`.zip`) of backups.
"""

import os
import re
import sys
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, urlsplit

import chdb

INSERT = re.compile(rb"\s*INSERT\s+INTO\s+(?P<target>.+?)\s+FORMAT\s+(?P<form>\w+)\s*?(?:\r?\n|$)", re.I | re.S)
FORMAT = re.compile(r"\s+FORMAT\s+(\w+)\s*$", re.I)
QUERY = re.compile(r"\s*(SELECT|WITH)\b", re.I)
LIMITED = re.compile(r"\s*(DROP (DATABASE|TABLE)|TRUNCATE)\b", re.I)
SETTINGS = re.compile(r"\bSETTINGS\b", re.I)
NUMBER = re.compile(r"-?\d+(\.\d+)?")
# Parameters of the interface itself.
OWN = {"query", "database", "default_format", "user", "password", "query_id", "wait_end_of_query"}
PIECE = 1 << 20


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    folder = ""
    # A connection to the engine for each client's: statements run side by side.
    connections = threading.local()

    def do_GET(self):
        self.serve(None)

    def do_POST(self):
        # The data of an INSERT may be larger than memory.
        with tempfile.NamedTemporaryFile() as body:
            if not self.receive(body):
                self.close_connection = True
                return
            body.flush()
            self.serve(body)

    def receive(self, body):
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            left = int(self.headers.get("Content-Length", 0))
            while left:
                data = self.rfile.read(min(left, PIECE))
                if not data:
                    return False
                body.write(data)
                left -= len(data)
            return True
        while True:
            line = self.rfile.readline()
            if not line.strip():
                return False
            size = int(line.split(b";")[0], 16)
            data = self.rfile.read(size)
            if len(data) < size:
                return False
            body.write(data)
            self.rfile.readline()
            if not size:
                return True

    def serve(self, body):
        parameters = dict(parse_qsl(urlsplit(self.path).query, keep_blank_values=True))
        statement = parameters.get("query", "")
        if not statement and (body is None or not os.path.getsize(body.name)):
            return self.reply(200, b"Ok.\n")
        self.answered = False
        try:
            if not hasattr(self.connections, "engine"):
                self.connections.engine = chdb.connect(self.folder)
            self.engine = self.connections.engine
            database = parameters.get("database", "default").replace("\\", "\\\\").replace("`", "\\`")
            self.engine.query(f"USE `{database}`")
            if insert := INSERT.fullmatch(statement.encode()):
                return self.insert(insert["target"].decode(), insert["form"].decode(), body, parameters)
            if body is not None:
                body.seek(0)
                statement = (statement + "\n" + body.read().decode()).strip()
            self.run(statement.rstrip("; \n"), parameters)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        except Exception as error:  # the engine's errors have no type of their own; their text starts with "Code: N."
            if self.answered:
                # An answer that has begun can only be broken off.
                self.close_connection = True
                self.connection.close()
            else:
                self.reply(500, str(error).encode())

    def settings(self, parameters):
        return ", ".join(
            f"{name} = {value if NUMBER.fullmatch(value) else chr(39) + value + chr(39)}"
            for name, value in parameters.items()
            if name not in OWN
        )

    def insert(self, target, form, body, parameters):
        if body is not None and os.path.getsize(body.name):
            settings = self.settings(parameters)
            self.engine.query(
                f"INSERT INTO {target} SELECT * FROM file('{body.name}', {form})"
                + (f" SETTINGS {settings}" if settings else "")
            )
        self.reply(200, b"")

    def run(self, text, parameters):
        form = parameters.get("default_format", "TabSeparated")
        if found := FORMAT.search(text):
            text, form = text[: found.start()], found[1]
        settings = self.settings(parameters)
        if not QUERY.match(text):
            if settings and LIMITED.match(text):
                text += f" SETTINGS {settings}"
            return self.reply(200, self.engine.query(text, form).bytes() or b"", form)
        if settings and not SETTINGS.search(text):
            text += f" SETTINGS {settings}"
        if form.startswith("JSON"):
            # A stream has one document for each block.
            return self.reply(200, self.engine.query(text, form).bytes() or b"", form)
        result = self.engine.send_query(text, form)
        piece = result.fetch()
        if piece is None or not piece.bytes():
            # Without rows a stream has nothing at all, where a format may have something around them.
            return self.reply(200, self.engine.query(text, form).bytes() or b"", form)
        self.answered = True
        self.send_response(200)
        self.send_header("X-ClickHouse-Format", form)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        while piece is not None and (data := piece.bytes()):
            self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))
            piece = result.fetch()
        self.wfile.write(b"0\r\n\r\n")

    def reply(self, status, body, form="TabSeparated"):
        self.send_response(status)
        self.send_header("X-ClickHouse-Format", form)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


if __name__ == "__main__":
    Handler.folder = sys.argv[1] + (f"?config-file={sys.argv[3]}" if len(sys.argv) > 3 else "")
    # The engine lives as long as one connection does.
    keeper = chdb.connect(Handler.folder)
    server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[2])), Handler)
    server.daemon_threads = True
    server.serve_forever()
