#!/usr/bin/env python3
"""The API and a webhook receiver for tests of the built program, driven by files in one directory.

    world.py DIRECTORY [ADDRESS:PORT]

runs/ID    the statuses of a run, one for each answer; the last one stays. No file, no run
more/ID    JSON with fields that replace those of the answers about a run
polls      gets a line for each request about a run: its ID
created    gets a line for each run that was created: its ID
large      while it exists, runs that ended have an output of so many bytes
refuse     while it exists, webhooks get 503; they are written to `refused`
hang       while it exists, webhooks get no answer, ever
hold-poll, hold-webhook    while it exists, such answers stop halfway: those about runs in the middle of
           the body, those to webhooks before the first byte; what waits is written to `held`
accepted   gets a line for each webhook with a good signature: path, webhook-id, type, run ID
key, secret          the API key, and the signing secret of the webhooks
port       where both listen, by default a free port of loopback; written when they do
cert.pem, cert.key   for TLS; without them there is none
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
HOST, PORT = sys.argv[2].rsplit(":", 1) if len(sys.argv) > 2 else ("127.0.0.1", "0")
KEY = (WORLD / "key").read_text().strip()
SECRET = base64.b64decode((WORLD / "secret").read_text().strip().removeprefix("whsec_"))
LOCK = threading.Lock()
TIMES = {"created_at": "2026-01-01T00:00:00Z", "started_at": "2026-01-01T00:00:02Z"}


def append(name, *words):
    with LOCK, open(WORLD / name, "a") as file:
        print(*words, file=file, flush=True)


def next_status(run_id):
    """The status to answer with; the one before it is used up."""
    path = WORLD / "runs" / run_id
    with LOCK:
        status, *later = path.read_text().split()
        if later:
            path.with_suffix(".new").write_text(" ".join(later))
            os.rename(path.with_suffix(".new"), path)
    return status


def hold(kind, *words):
    if (WORLD / f"hold-{kind}").exists():
        append("held", kind, *words)
        while (WORLD / f"hold-{kind}").exists():
            time.sleep(0.02)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self, status, body=None, held_as=None):
        text = b"" if body is None else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        half = len(text) // 2 if held_as else 0
        self.wfile.write(text[:half])
        if held_as:
            hold(*held_as)
        self.wfile.write(text[half:])

    def refuses_key(self):
        if self.headers["Authorization"] == f"Bearer {KEY}":
            return False
        self.answer(401, {"error": {"message": "Invalid API key"}})
        return True

    def do_GET(self):
        parts = self.path.split("/")
        if parts[1:3] != ["v1", "runs"] or len(parts) != 4:
            return self.answer(404, {"error": {"message": "Not found"}})
        run_id = parts[3]
        append("polls", run_id)
        if self.refuses_key():
            return
        try:
            status = next_status(run_id)
        except FileNotFoundError:
            return self.answer(404, {"error": {"message": "Run not found"}})
        ended = status not in ("pending", "running")
        large = WORLD / "large"
        output = "m" * int(large.read_text()) if ended and large.exists() else None
        more = WORLD / "more" / run_id
        self.answer(200, {
            "id": run_id, "version_id": "ver_1", "deployment_id": "dep_1", "status": status,
            "input": {}, "output": output, "error_message": "it broke" if status == "failed" else None, **TIMES,
            "completed_at": "2026-01-01T00:00:05Z" if ended else None,
            **(json.loads(more.read_text()) if more.exists() else {}),
        }, held_as=("poll", run_id))

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/v1/runs":
            return self.create_run(body)
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
            hold("webhook", ident)
            self.answer(204)

    def create_run(self, body):
        if self.refuses_key():
            return
        if "deployment_id" not in json.loads(body):
            return self.answer(400, {"error": {"message": "deployment_id is required"}})
        with LOCK:
            run_id = f"run_{len(os.listdir(WORLD / 'runs'))}created"
            (WORLD / "runs" / run_id).write_text("running running succeeded")
        append("created", run_id)
        self.answer(202, {"run_id": run_id, "version_id": "ver_1", "version_number": 3, "status": "running"})

    def log_message(self, *_):
        pass


(WORLD / "runs").mkdir(exist_ok=True)
for name in ("polls", "created", "held", "accepted", "refused", "hanging", "unsigned"):
    (WORLD / name).touch()
server = ThreadingHTTPServer((HOST, int(PORT)), Handler)
server.daemon_threads = True
if (WORLD / "cert.pem").exists():
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
