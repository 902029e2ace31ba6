"""A real Matrix homeserver on loopback, with one user and one room.

Starts after a line on standard input, and prints {"url", "room", "token"} when it is ready. After another line it prints the
messages of the room, newest first, and ends.
"""

import ctypes
import hashlib
import hmac
import importlib
import json
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request

START_SECONDS = 120
SHARED_SECRET = "registration"

# Loopback is reached without the proxies of the environment.
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def request(method, url, token=None, body=None):
    headers = {"content-type": "application/json"}
    if token:
        headers["authorization"] = f"Bearer {token}"
    data = None if body is None else json.dumps(body).encode()
    outgoing = urllib.request.Request(url, data, headers, method=method)
    with opener.open(outgoing, timeout=30) as answer:
        return json.load(answer)


def end_with_parent():
    """Lets the kernel end this process when its parent is killed (prctl(2), PR_SET_PDEATHSIG)."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)


def start(folder, port):
    """Starts Synapse (element-hq.github.io/synapse, "Configuration Manual") and waits until it answers."""
    settings = {
        "server_name": "test.example",
        "pid_file": f"{folder}/pid",
        "listeners": [
            {
                "port": port,
                "bind_addresses": ["127.0.0.1"],
                "type": "http",
                "tls": False,
                "resources": [{"names": ["client"]}],
            }
        ],
        "database": {"name": "sqlite3", "args": {"database": f"{folder}/db"}},
        "media_store_path": f"{folder}/media",
        "signing_key_path": f"{folder}/key",
        "registration_shared_secret": SHARED_SECRET,
        "macaroon_secret_key": "macaroon",
        "form_secret": "form",
        "report_stats": False,
        "trusted_key_servers": [],
    }
    path = pathlib.Path(folder, "homeserver.yaml")
    # JSON is YAML.
    path.write_text(json.dumps(settings))
    program = [sys.executable, "-m", "synapse.app.homeserver", "-c", str(path)]
    log = open(f"{folder}/log", "wb")
    subprocess.run([*program, "--generate-keys"], check=True, stdout=log, stderr=log)
    server = subprocess.Popen(
        program, cwd=folder, stdout=log, stderr=log, preexec_fn=end_with_parent
    )
    ends = time.monotonic() + START_SECONDS
    while time.monotonic() < ends and server.poll() is None:
        try:
            request("GET", f"http://127.0.0.1:{port}/_matrix/client/versions")
            return server
        except OSError:
            time.sleep(0.1)
    server.kill()
    sys.exit("the server does not start:\n" + pathlib.Path(log.name).read_text()[-3000:])


def register(base):
    """Registers a user with the shared secret (the same manual, "Shared-Secret Registration")."""
    url = f"{base}/_synapse/admin/v1/register"
    nonce = request("GET", url)["nonce"]
    parts = [nonce, "runwatch", "password", "notadmin"]
    mac = hmac.new(SHARED_SECRET.encode(), "\0".join(parts).encode(), hashlib.sha1)
    body = {
        "nonce": nonce,
        "username": "runwatch",
        "password": "password",
        "admin": False,
        "mac": mac.hexdigest(),
    }
    return request("POST", url, body=body)["access_token"]


try:
    importlib.import_module("synapse")
except ImportError as error:
    sys.exit(f"{error}; run the tests with: bash tests/run")

sys.stdin.readline()
with tempfile.TemporaryDirectory() as folder:
    port = free_port()
    server = start(folder, port)
    try:
        base = f"http://127.0.0.1:{port}"
        token = register(base)
        room = request("POST", f"{base}/_matrix/client/v3/createRoom", token, {})["room_id"]
        print(json.dumps({"url": base, "room": room, "token": token}), flush=True)
        sys.stdin.readline()
        found = request("GET", f"{base}/_matrix/client/v3/rooms/{room}/messages?dir=b", token)
        messages = [event for event in found["chunk"] if event["type"] == "m.room.message"]
        print(json.dumps(messages), flush=True)
    finally:
        server.terminate()
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
