#!/usr/bin/env python3
"""The API and a webhook receiver for tests/systemd/machine, driven by files in one directory.

runs/ID    the status of a run; no file, no run
polls      gets a line for each request about a run: its ID
refuse     while it exists, webhooks get 503; they are written to `refused`
hang       while it exists, webhooks get no answer
accepted   gets a line for each webhook with a good signature: path, webhook-id, type, run ID
port       where both listen on loopback, with TLS; written when they do
cert.pem, cert.key   for that
"""

import base64
import hashlib
import hmac
import json
import os
import ssl
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

WORLD = Path(sys.argv[1])
KEY = (WORLD / "key").read_text().strip()
SECRET = base64.b64decode((WORLD / "secret").read_text().strip().removeprefix("whsec_"))
APPENDING = threading.Lock()
TIMES = {"created_at": "2026-01-01T00:00:00Z", "started_at": "2026-01-01T00:00:02Z"}


def append(name, *words):
    with APPENDING, open(WORLD / name, "a") as file:
        print(*words, file=file, flush=True)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self, status, body=None):
        text = b"" if body is None else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def do_GET(self):
        run_id = self.path.rsplit("/", 1)[-1]
        append("polls", run_id)
        if self.headers["Authorization"] != f"Bearer {KEY}":
            return self.answer(401, {"error": {"message": "Invalid API key"}})
        try:
            status = (WORLD / "runs" / run_id).read_text().strip()
        except FileNotFoundError:
            return self.answer(404, {"error": {"message": "Run not found"}})
        ended = status not in ("pending", "running")
        self.answer(200, {
            "id": run_id, "version_id": "ver_1", "deployment_id": "dep_1", "status": status,
            "input": {}, "output": None, "error_message": "it broke" if status == "failed" else None, **TIMES,
            "completed_at": "2026-01-01T00:00:05Z" if ended else None,
        })

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        ident = self.headers["webhook-id"]
        signed = b".".join([ident.encode(), self.headers["webhook-timestamp"].encode(), body])
        good = base64.b64encode(hmac.digest(SECRET, signed, hashlib.sha256)).decode()
        if f"v1,{good}" not in self.headers["webhook-signature"].split():
            append("unsigned", ident)
            return self.answer(401)
        event = json.loads(body)
        line = (self.path, ident, event["type"], event["data"]["run"]["id"])
        if (WORLD / "hang").exists():
            append("hanging", *line)
            while (WORLD / "hang").exists():
                time.sleep(0.1)
            self.close_connection = True
        elif (WORLD / "refuse").exists():
            append("refused", *line)
            self.answer(503)
        else:
            append("accepted", *line)
            self.answer(204)

    def log_message(self, *_):
        pass


(WORLD / "runs").mkdir(exist_ok=True)
for name in ("polls", "accepted", "refused", "hanging", "unsigned"):
    (WORLD / name).touch()
server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
server.daemon_threads = True
tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
tls.load_cert_chain(WORLD / "cert.pem", WORLD / "cert.key")
# Shaking hands is left to the thread of the connection: one that hangs must not keep others out.
server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
# Clients that are killed on purpose are nothing to report.
server.handle_error = lambda *_: None
# Whole or not at all: the file says that the server is up.
(WORLD / "port.new").write_text(str(server.server_port))
os.rename(WORLD / "port.new", WORLD / "port")
server.serve_forever()
