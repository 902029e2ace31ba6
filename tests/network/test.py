#!/usr/bin/env python3
"""Tries the daemon across hosts: test.py PROGRAM FOLDER, as root, started by tests/network/run.

Three hosts, each a network namespace with addresses of its own: one with the API, one with the daemon and
its name server, one with a webhook receiver. The API and the receiver are tests/world.py behind nginx, which
speaks HTTP/2 with TLS, as such services do. The links between them are cut, slow and silent in turn; the API
and the receiver move to other addresses. At the end every run must have its verdict, and its webhook must
have come under one ID.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from links import Host, Link  # noqa: E402
from parts import Authority, Failed, World, equal, holds, run, say, step, within  # noqa: E402

REPOSITORY = HERE.parent.parent
RUNWATCH = str(Path(sys.argv[1]).resolve())
FOLDER = Path(sys.argv[2]).resolve() / "work"

API, API_MOVED, RECEIVER, RECEIVER_MOVED = "10.77.1.1", "10.77.1.3", "10.77.2.1", "10.77.2.3"

# Longer than any backoff that an outage of this test leads to.
HEALED = 90

CONFIG = """
[api]
key_file = "key"
requests_per_minute = 6000
connect_timeout = "2s"
request_timeout = "3s"
[watch]
initial_interval = "200ms"
max_interval = "500ms"
[sinks.hook]
type = "webhook"
url = "https://backend.test/hook"
secret_file = "secret"
retry_schedule = ["1s", "1s", "1s", "1s", "1s", "1s", "1s", "1s", "1s", "1s", "1s", "1s", "1s", "1s", "1s"]
"""

NGINX = """
daemon off;
worker_processes 1;
user root;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ worker_connections 512; }}
http {{
    log_format protocol '$server_protocol $request_uri';
    access_log {folder}/access.log protocol;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server {{
        listen 443 ssl http2;
        ssl_certificate {folder}/cert.pem;
        ssl_certificate_key {folder}/cert.key;
        location / {{
            proxy_pass http://127.0.0.1:8000;
            proxy_buffering off;
            proxy_read_timeout 600s;
        }}
    }}
}}
"""


class Test:
    def __init__(self):
        shutil.rmtree(FOLDER, ignore_errors=True)
        FOLDER.mkdir(parents=True)
        self.hosts, self.links, self.processes, self.worlds, self.expected = [], [], [], [], {}

    def start(self):
        self.api_host, self.receiver_host = self.host("api"), self.host("receiver")
        self.sidecar = self.host("sidecar", resolver="127.0.0.1")
        self.api_link = self.link(
            (self.sidecar, "to-api", "10.77.1.2/24"), (self.api_host, "eth0", f"{API}/24"))
        self.receiver_link = self.link(
            (self.sidecar, "to-receiver", "10.77.2.2/24"), (self.receiver_host, "eth0", f"{RECEIVER}/24"))
        self.authority = Authority(FOLDER / "authority")
        self.api = self.server("api", self.api_host, "api.crewship.dev")
        self.receiver = self.server("receiver", self.receiver_host, "backend.test")
        self.names(API, RECEIVER)
        self.process("dns", *self.sidecar.inside(sys.executable, str(HERE.parent / "dns.py"), str(FOLDER / "names")))
        for world in self.worlds:
            world.start()
        config = self.folder("config")
        (config / "config.toml").write_text(CONFIG)
        shutil.copy(self.api.folder / "key", config)
        shutil.copy(self.receiver.folder / "secret", config)
        self.environment = {
            "PATH": os.environ["PATH"], "RUNWATCH_CONFIG": str(config / "config.toml"),
            "STATE_DIRECTORY": str(self.folder("state")), "RUNTIME_DIRECTORY": str(self.folder("run")),
            "SSL_CERT_FILE": str(self.authority.pem),
        }
        for name in ("api", "receiver"):
            within(20, "nginx listens", (FOLDER / f"nginx-{name}/nginx.pid").exists)
        self.daemon = self.start_daemon()

    def folder(self, name):
        (FOLDER / name).mkdir()
        return FOLDER / name

    def host(self, name, **more):
        self.hosts.append(Host(name, **more))
        return self.hosts[-1]

    def link(self, *ends):
        self.links.append(Link(*ends))
        return self.links[-1]

    def server(self, name, host, domain):
        """A world on a host, behind nginx."""
        nginx = self.folder(f"nginx-{name}")
        self.authority.issue(nginx, f"DNS:{domain}")
        (nginx / "nginx.conf").write_text(NGINX.format(folder=nginx))
        self.process(f"nginx-{name}", *host.inside("nginx", "-c", str(nginx / "nginx.conf")))
        self.worlds.append(World(FOLDER / name, address="127.0.0.1:8000", prefix=host.inside()))
        return self.worlds[-1]

    def names(self, api, receiver):
        """What the name server says from now on."""
        (FOLDER / "names.new").write_text(f"{api} api.crewship.dev\n{receiver} backend.test\n")
        (FOLDER / "names.new").rename(FOLDER / "names")

    def process(self, name, *argv, env=None):
        with open(FOLDER / f"{name}.log", "w") as log:
            process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env)
        self.processes.append(process)
        return process

    def start_daemon(self, *more, name="daemon"):
        argv = self.sidecar.inside(RUNWATCH, "daemon", "--log-level", "debug", *more)
        daemon = self.process(name, *argv, env=self.environment)
        within(30, "the daemon is well", lambda: daemon.poll() is None and self.ask("healthcheck", code=None) == "ok\n")
        return daemon

    def stop_daemon(self, daemon):
        daemon.send_signal(signal.SIGTERM)
        equal("exit code of the daemon", daemon.wait(20), 0)

    def ask(self, *argv, code=0):
        return run(*self.sidecar.inside(RUNWATCH, *argv), env=self.environment, code=code)

    def show(self, run_id):
        return json.loads(self.ask("show", run_id, "--json"))

    def end(self):
        for process in reversed(self.processes):
            process.terminate()
        for process in self.processes:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for world in self.worlds:
            world.stop()
        for link in self.links:
            link.remove()
        for host in self.hosts:
            host.remove()

    ### The runs

    def watch(self, *run_ids):
        """Has runs watched, and waits until each has been seen running."""
        for run_id in run_ids:
            self.api.run_is(run_id, "running")
        self.ask("add", *run_ids)
        for run_id in run_ids:
            within(HEALED, f"{run_id} is seen running", lambda run_id=run_id: self.show(run_id)["status"] == "running")

    def ends(self, run_id, status):
        self.api.run_is(run_id, status)
        self.expected[run_id] = status

    def delivered(self, *run_ids):
        """Waits until the receiver has the webhooks of these runs and the daemon knows that it has."""
        began = time.monotonic()
        for run_id in run_ids:
            within(HEALED, f"the webhook of {run_id}", lambda run_id=run_id: self.receiver.accepted(run_id))
            within(HEALED, f"{run_id} is delivered", lambda run_id=run_id: [
                delivery["state"] for delivery in self.show(run_id)["deliveries"]] == ["delivered"])
        say(f"healed within {time.monotonic() - began:.1f} s")

    def fails_to_ask(self, run_id):
        """Waits until a poll has failed."""
        before = (self.show(run_id)["last_error"] or {}).get("at")
        return within(HEALED, "a poll fails", lambda: (
            (error := self.show(run_id)["last_error"]) and error["at"] != before and error["message"]))


def three_hosts(test):
    step("three hosts: runs are watched and reported")
    test.watch("run_1", "run_2")
    test.ends("run_1", "succeeded")
    test.ends("run_2", "failed")
    test.delivered("run_1", "run_2")
    for name, path in (("api", "/v1/runs/run_1"), ("receiver", "/hook")):
        requests = (FOLDER / f"nginx-{name}/access.log").read_text()
        holds(f"they come over HTTP/2: {requests[:200]}", f"HTTP/2.0 {path}\n" in requests)


def cut_links(test):
    step("a link that is cut while watching")
    runs = ["run_cut_1", "run_cut_2", "run_cut_3"]
    test.watch(*runs)
    test.api_link.cut()
    say(test.fails_to_ask("run_cut_1"))
    for run_id, status in zip(runs, ("succeeded", "failed", "canceled")):
        test.ends(run_id, status)
    test.api_link.restore()
    test.delivered(*runs)

    step("a link that is cut before a delivery")
    test.watch("run_cut_4")
    test.receiver_link.cut(end=1)
    test.ends("run_cut_4", "failed")
    within(HEALED, "an attempt fails", lambda: test.show("run_cut_4")["deliveries"]
           and test.show("run_cut_4")["deliveries"][0]["last_result"])
    say(test.show("run_cut_4")["deliveries"][0]["last_result"])
    equal("nothing has come", test.receiver.accepted("run_cut_4"), [])
    test.receiver_link.restore(end=1)
    test.delivered("run_cut_4")


def slow_links(test):
    step("slow links that lose a tenth of all frames")
    for link in test.links:
        link.delay, link.loss = 0.15, 0.1
    runs = [f"run_slow_{number}" for number in range(10)]
    test.watch(*runs)
    for number, run_id in enumerate(runs):
        test.ends(run_id, ("succeeded", "failed", "canceled")[number % 3])
    test.delivered(*runs)
    for link in test.links:
        link.delay, link.loss = 0.0, 0.0
    lost, late = sum(link.lost for link in test.links), sum(link.late for link in test.links)
    say(f"{lost} frames lost, {late} late")
    assert lost > 10 and late > 100, "the links were neither slow nor lossy"


def half_open(test):
    step("a connection that falls silent in the middle of an answer")
    runs = ["run_half_1", "run_half_2"]
    test.watch(*runs)
    test.api.switch("hold-poll", True)
    within(HEALED, "an answer stops halfway", lambda: test.api.lines("held"))
    test.api_link.silent = True
    test.api.switch("hold-poll", False)
    say(test.fails_to_ask("run_half_1"))
    for run_id in runs:
        test.ends(run_id, "failed")
    test.api_link.silent = False
    test.delivered(*runs)

    step("a connection that falls silent in the middle of a delivery")
    test.watch("run_half_3")
    test.receiver.switch("hold-webhook", True)
    test.ends("run_half_3", "canceled")
    held = within(HEALED, "the receiver has it and has not answered", lambda: test.receiver.lines("held"))
    test.receiver_link.silent = True
    test.receiver.switch("hold-webhook", False)
    result = within(HEALED, "the attempt fails", lambda: test.show("run_half_3")["deliveries"][0]["last_result"])
    say(result)
    test.receiver_link.silent = False
    test.delivered("run_half_3")
    webhooks = test.receiver.accepted("run_half_3")
    holds(f"it came again, under its ID: {webhooks}", len(webhooks) >= 2 and webhooks[1][1] == held[0][1])


def other_addresses(test):
    step("the API moves to another address")
    runs = ["run_moved_1", "run_moved_2"]
    test.watch(*runs)
    test.names(API_MOVED, RECEIVER)
    # The old address falls silent, with connections to it open.
    test.api_host.ip("addr", "del", f"{API}/24", "dev", "eth0")
    test.api_host.ip("addr", "add", f"{API_MOVED}/24", "dev", "eth0")
    for run_id in runs:
        test.ends(run_id, "failed")
    test.delivered(*runs)

    step("the receiver moves to another address")
    test.watch("run_moved_3")
    test.names(API_MOVED, RECEIVER_MOVED)
    test.receiver_host.ip("addr", "del", f"{RECEIVER}/24", "dev", "eth0")
    test.receiver_host.ip("addr", "add", f"{RECEIVER_MOVED}/24", "dev", "eth0")
    test.ends("run_moved_3", "succeeded")
    test.delivered("run_moved_3")


def nothing_lost(test):
    step("every verdict is right, and every webhook came under one ID")
    listed = json.loads(test.ask("list", "--all", "--json"))["watches"]
    equal("verdicts", {watch["run_id"]: watch["verdict"] for watch in listed}, test.expected)
    for run_id, status in test.expected.items():
        webhooks = test.receiver.accepted(run_id)
        equal(f"{run_id}: types", {line[2] for line in webhooks}, {f"run.{status}"})
        equal(f"{run_id}: IDs", len({line[1] for line in webhooks}), 1)
    equal("unsigned webhooks", test.receiver.lines("unsigned"), [])
    say(f"{len(test.expected)} runs, {len(test.receiver.accepted())} webhooks")
    test.stop_daemon(test.daemon)


### The programs of examples/

PROGRAMS = {"sidecar.sh": ["sh", "-eu"], "sidecar.py": ["python3"], "sidecar.mjs": ["node"]}


def guide(test):
    step("the programs of examples/, word for word")
    programs = {file.name for file in (REPOSITORY / "examples").iterdir() if file.suffix not in (".md", ".toml")}
    equal("programs of examples/", programs, set(PROGRAMS))
    config = test.folder("sidecar")
    shutil.copy(REPOSITORY / "config/sidecar.toml", config / "config.toml")
    (config / "secrets").mkdir()
    shutil.copy(test.api.folder / "key", config / "secrets/crewship-api-key")
    shutil.copy(test.receiver.folder / "secret", config / "secrets/webhook-secret")
    test.environment |= {
        "RUNWATCH_CONFIG": str(config / "config.toml"), "STATE_DIRECTORY": str(test.folder("state-2")),
        "RUNTIME_DIRECTORY": str(test.folder("run-2")),
    }
    daemon = test.start_daemon(name="sidecar")
    environment = test.environment | {
        "CREWSHIP_API_KEY": (test.api.folder / "key").read_text().strip(),
        "WEBHOOK_SECRET": (test.receiver.folder / "secret").read_text(),
        "NODE_EXTRA_CA_CERTS": str(test.authority.pem),
    }
    for name in ("sidecar.sh", "sidecar.py"):
        printed = run(*test.sidecar.inside(*PROGRAMS[name], REPOSITORY / "examples" / name), env=environment)
        run_id = test.api.lines("created")[-1][0]
        equal(f"{name} prints", printed, f"{run_id} succeeded\n")
        say(f"{name}: {printed.strip()}")
    created = len(test.api.lines("created"))
    node_program = [*PROGRAMS["sidecar.mjs"], str(REPOSITORY / "examples/sidecar.mjs")]
    node = test.process("node", *test.sidecar.inside(*node_program), env=environment)
    within(30, "sidecar.mjs starts a run", lambda: node.poll() is None and len(test.api.lines("created")) > created)
    expected = f"{test.api.lines('created')[-1][0]} run.succeeded"
    # Those of the runs before come too, now that there is somebody who takes them.
    within(60, f"sidecar.mjs gets {expected}", lambda: node.poll() is None
           and expected in (FOLDER / "node.log").read_text().splitlines())
    say(f"sidecar.mjs: {expected}")
    equal("runs that sidecar.mjs started", len(test.api.lines("created")) - created, 1)
    test.stop_daemon(daemon)


def main():
    test = Test()
    try:
        test.start()
        for part in (three_hosts, cut_links, slow_links, half_open, other_addresses, nothing_lost, guide):
            part(test)
    except BaseException as error:
        if not isinstance(error, Failed):
            traceback.print_exc()
        for log in sorted(FOLDER.glob("*.log")):
            print(f"\n{log.name}:\n{log.read_text()[-4000:]}", file=sys.stderr)
        for world in test.worlds:
            world.report()
        print(f"\nFAILED: {error}", file=sys.stderr)
        return 1
    finally:
        test.end()
    print("\nnothing was lost")
    return 0


# Hosts are removed also when somebody ends the test.
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
sys.exit(main())
