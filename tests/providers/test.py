#!/usr/bin/env python3
"""Real servers of run APIs, watched by the built program.

    test.py [own] [prefect] [langgraph] [buildbot] [flower] [airflow]

Each server is installed into an environment of its own below target/providers, from PyPI and at pinned versions, and
started on a free port of loopback. Its runs succeed, fail, are canceled, wait for a person, are unknown, and run again
under their ID. A daemon with a webhook and `runwatch wait --json --changes` watch each of them. Without RUNWATCH_BIN (or with it
empty) only the servers are started, and their answers are read by profiles.py.
"""

import concurrent.futures
import http.server
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import profiles  # noqa: E402
from parts import Failed, equal, holds, say, within  # noqa: E402

TARGET = HERE.parent.parent / "target/providers"
PROGRAM = os.environ.get("RUNWATCH_BIN") or None
CODES = {"succeeded": 0, "failed": 1, "canceled": 3, "not_found": 5, "skipped": 7}
KEYS = {"created": "created_at", "started": "started_at", "finished": "completed_at", "error": "error_message"}
LOCK = threading.Lock()
UNKNOWN_UUID = "00000000-0000-4000-8000-000000000000"

opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def request(method, url, body=None, token=None):
    """Status and JSON of an answer."""
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
    data = None if body is None else json.dumps(body).encode()
    made = urllib.request.Request(url, data=data, method=method, headers=headers)
    try:
        with opener.open(made, timeout=60) as answer:
            status, text = answer.status, answer.read()
    except urllib.error.HTTPError as error:
        status, text = error.code, error.read()
    except TimeoutError:
        status, text = 504, b""
    try:
        return status, json.loads(text)
    except json.JSONDecodeError:
        return status, None


def post(url, body, token=None, method="POST"):
    # A server that is busy refuses what it has not begun (RFC 9110, 15.6.4): Prefect does while its database is locked.
    def made():
        answered = request(method, url, body, token)
        return answered if answered[0] != 503 else None
    status, answer = within(60, f"{method} {url} is answered", made)
    holds(f"{method} {url} is accepted, not {status} {answer}", status < 300)
    return answer


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def install(name):
    """The folder with the programs of an environment that has the pinned packages."""
    wanted = (HERE / "requirements" / f"{name}.txt").read_text()
    folder = TARGET / name
    marker = folder / "installed.txt"
    if not marker.exists() or marker.read_text() != wanted:
        uv = TARGET / "tools/bin/uv"
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([uv, "venv", "-q", "--python", sys.executable, folder], check=True, timeout=60)
        command = [uv, "pip", "install", "-q", "--no-deps", "--python", folder / "bin/python"]
        subprocess.run([*command, "-r", HERE / "requirements" / f"{name}.txt"], check=True, timeout=300)
        marker.write_text(wanted)
    return folder / "bin"


class Machine:
    """A folder, and the processes that are started in it and ended with it."""

    def __init__(self, name):
        self.folder = TARGET / "work" / name
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        # A reader waits until there is a writer: what the servers run ends with `release`.
        self.go = self.folder / "go"
        os.mkfifo(self.go)
        self.writer = None
        self.children = []

    def release(self):
        """Ends all runs that wait, and those to come, up to `hold`."""
        # Open for both, the pipe is opened without a reader, too (fifo(7)).
        self.writer = os.open(self.go, os.O_RDWR)

    def hold(self):
        """Makes runs wait again."""
        os.close(self.writer)

    def start(self, name, argv, **environment):
        """Starts a process in a group of its own; what it prints is in NAME.out and NAME.log."""
        environment = {**os.environ, "HOME": str(self.folder), "GO": str(self.go), **environment}
        with open(self.folder / f"{name}.out", "wb") as out, open(self.folder / f"{name}.log", "wb") as log:
            child = subprocess.Popen(
                [str(word) for word in argv], cwd=self.folder, env=environment, stdout=out, stderr=log,
                stdin=subprocess.DEVNULL, start_new_session=True,
            )
        self.children.append((name, child))
        return child

    def text(self, name):
        return (self.folder / name).read_text(errors="replace")

    def end(self):
        """Ends what was started, the newest first, with all that it has started itself."""
        for signal_number, patience in ((signal.SIGTERM, 10), (signal.SIGKILL, 10)):
            for _, child in reversed(self.children):
                try:
                    os.killpg(child.pid, signal_number)
                except ProcessLookupError:
                    pass
            ends = time.monotonic() + patience
            for _, child in self.children:
                try:
                    child.wait(timeout=max(0.1, ends - time.monotonic()))
                except subprocess.TimeoutExpired:
                    pass

    def logs(self):
        for path in sorted([*self.folder.glob("*.log"), *self.folder.glob("*.out")]):
            text = path.read_text(errors="replace")[-3000:]
            print(f"--- {path.name}\n{text}", file=sys.stderr)


def answers(url):
    """Whether a server answers there."""
    def look():
        try:
            return request("GET", url)[0] < 500
        except OSError:
            return False
    return look


class Receiver:
    """Takes webhooks and keeps their events."""

    def __init__(self):
        self.events, receiver = [], self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                event = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                receiver.events.append(event)
                self.send_response(204)
                self.end_headers()

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/events"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def find(self, kind, run_id, skip=0):
        found = [event for event in self.events if event["type"] == kind and event["data"]["run"]["id"] == run_id]
        return found[skip] if len(found) > skip else None


class Watcher:
    """The daemon and the waiting commands for one server, and what they are to show."""

    def __init__(self, machine, settings, discover="", **environment):
        self.machine, self.settings, self.environment = machine, settings, environment
        self.receiver, self.rows, self.count = Receiver(), [], 0
        if not PROGRAM:
            return
        (machine.folder / "secret").write_text("whsec_" + "c2VjcmV0IG9mIHRoZSB0ZXN0" * 2)
        (machine.folder / "config.toml").write_text(f"""
[watch]
initial_interval = "200ms"
max_interval = "1s"
not_found_grace = "3s"
[store]
path = "daemon.db"
[sinks.program]
type = "webhook"
url = "{self.receiver.url}"
secret_file = "secret"
events = ["*"]
[sinks.log]
type = "log"
events = ["*"]
{settings}
{discover}
""")
        (machine.folder / "wait.toml").write_text(f"""
[watch]
initial_interval = "200ms"
max_interval = "1s"
not_found_grace = "3s"
{settings}
""")
        self.base = dict(XDG_RUNTIME_DIR=str(machine.folder), XDG_STATE_HOME=str(machine.folder), **environment)
        machine.start("daemon", [PROGRAM, "--config", "config.toml", "daemon"], **self.base)
        within(30, "the daemon listens", lambda: self.command("list", code=None).returncode == 0)

    def command(self, *arguments, code=0):
        done = self.call("config.toml", *arguments)
        if code is not None and done.returncode != code:
            raise Failed(f"{' '.join(arguments)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def call(self, config, *arguments):
        environment = {**os.environ, "HOME": str(self.machine.folder), **self.base}
        argv = [PROGRAM, "--config", config, *arguments]
        folder = self.machine.folder
        return subprocess.run(argv, cwd=folder, env=environment, capture_output=True, text=True, timeout=60)

    def follow(self, title, provider, run_id, read, reference=None):
        return Followed(self, title, provider, run_id, read, reference or f"{provider}:{run_id}")


class Followed:
    """A run, followed by the daemon and by a waiting command."""

    def __init__(self, watcher, title, provider, run_id, read, reference):
        self.watcher, self.title, self.provider, self.run_id, self.read = watcher, title, provider, run_id, read
        # The events of its ends so far: a run that runs again has several.
        self.reference, self.kinds = reference, []
        if PROGRAM:
            watcher.command("add", reference)
        self._wait()

    def _wait(self):
        self.watcher.count += 1
        self.name = f"wait-{self.watcher.count}"
        if PROGRAM:
            argv = [PROGRAM, "--config", "wait.toml", "wait", "--json", "--changes", "--timeout", "3m", self.reference]
            self.child = self.watcher.machine.start(self.name, argv, **self.watcher.base)

    def again(self):
        """Watches the same ID again, after it has ended."""
        if PROGRAM:
            self.watcher.command("add", "--again", self.reference)
        self._wait()

    def _lines(self):
        lines = self.watcher.machine.text(f"{self.name}.out").splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    def sees(self, state):
        """The answer reads as this state, and the program has seen it."""
        within(60, f"{self.title}: the answer reads as {state}", lambda: self.read()["state"] == state)
        if PROGRAM:
            within(60, f"{self.title}: wait shows {state}", lambda: state in map(state_of, self._lines()))
        if PROGRAM and state == "waiting":
            event = within(60, f"{self.title}: run.waiting arrives",
                           lambda: self.watcher.receiver.find("run.waiting", self.run_id))
            equal(f"{self.title}: provider of run.waiting", event["data"]["run"]["provider"], self.provider)
            done = self.watcher.call("wait.toml", "wait", "--json", "--exit-on-waiting", self.reference)
            equal(f"{self.title}: exit code with --exit-on-waiting", done.returncode, 8)

    def ends(self, verdict, **fields):
        """The run ends with this verdict; `fields` are those of `data.run` that are known."""
        def read():
            run = self.read()
            return run if run["state"] == verdict else None
        run = within(90, f"{self.title}: the answer reads as {verdict}", read)
        for field, expected in fields.items():
            if field in ("error", "name", "status", "attempt"):
                equal(f"{self.title}: {field} of the answer", run[field], expected)
        if PROGRAM:
            self._check(verdict, fields | {k: run[k] for k in ("created", "started", "finished") if run.get(k)})
        row = (self.provider, self.title, run["status"], verdict, CODES[verdict], run["error"] or "")
        self.watcher.rows.append(row)

    def _check(self, verdict, fields):
        try:
            code = self.child.wait(timeout=90)
        except subprocess.TimeoutExpired:
            raise Failed(f"{self.title}: wait does not end: {self._lines()}") from None
        equal(f"{self.title}: exit code of wait", code, CODES[verdict])
        line = self._lines()[-1]
        equal(f"{self.title}: verdict of wait", line["verdict"], verdict)
        kind = "watch.not_found" if verdict == "not_found" else f"run.{verdict}"
        event = within(60, f"{self.title}: {kind} arrives",
                       lambda: self.watcher.receiver.find(kind, self.run_id, self.kinds.count(kind)))
        self.kinds.append(kind)
        for where, data in (("wait", line["data"]), ("the webhook", event["data"])):
            found = data["run"]
            equal(f"{self.title}: provider, at {where}", found["provider"], self.provider)
            equal(f"{self.title}: run, at {where}", found["id"], self.run_id)
            if verdict != "not_found":
                equal(f"{self.title}: state, at {where}", found["state"], verdict)
            for field, expected in fields.items():
                self._field(where, found, field, expected)

    def _field(self, where, found, field, expected):
        key = KEYS.get(field, field)
        value = found.get(key)
        if key.endswith("_at"):
            value = profiles.time(value) if value else value
            holds(f"{self.title}: {key} at {where} is {expected}, not {value}", value and value[:19] == expected[:19])
        else:
            equal(f"{self.title}: {key}, at {where}", value, expected)


class Discovered:
    """What a daemon finds in the list of a provider, and what `wait` finds there."""

    def __init__(self, watcher, title, provider, match):
        self.watcher, self.title, self.provider, self.match = watcher, title, provider, match
        if PROGRAM:
            within(60, f"{title}: the first round of the discovery is complete", self._is_complete)

    def _is_complete(self):
        shown = json.loads(self.watcher.command("discover", "--json").stdout)
        found = [one for one in shown["discoveries"] if one["provider"] == self.provider]
        return found and found[0]["last_round_at"]

    def _watched(self):
        shown = json.loads(self.watcher.command("list", "--all", "--json").stdout)
        return {one["run_id"]: one for one in shown["watches"] if one.get("origin") == "discovery"}

    def finds(self, going, end, over):
        """The runs that go on are found. Then `end` is called, by which they end as `going` says by ID. Those of `over`
        had ended before, and are not reported."""
        if not PROGRAM:
            return end()
        within(60, f"{self.title}: all runs are found", lambda: going.keys() <= self._watched().keys())
        argv = [PROGRAM, "--config", "wait.toml", "wait", "--json", "--timeout", "3m", "--all-active", self.provider]
        child = self.watcher.machine.start("wait-all", [*argv, *self.match], **self.watcher.base)
        progress = lambda: self.watcher.machine.text("wait-all.log")
        within(60, f"{self.title}: wait finds all that go on", lambda: all(run.split("/")[-1][:8] in progress() for run in going))
        end()
        code = max((CODES[verdict] for verdict in going.values() if verdict != "failed"), default=0)
        code = 1 if "failed" in going.values() else code
        equal(f"{self.title}: exit code of wait --all-active", child.wait(timeout=90), code)
        lines = [json.loads(line) for line in self.watcher.machine.text("wait-all.out").splitlines()]
        equal(f"{self.title}: verdicts of wait --all-active", {line["run_id"]: line["verdict"] for line in lines}, going)
        for run, verdict in going.items():
            find = lambda: self.watcher.receiver.find(f"run.{verdict}", run)
            event = within(60, f"{self.title}: run.{verdict} arrives", find)
            equal(f"{self.title}: labels", event["data"]["watch"]["labels"], {"found": "yes"})
            self.watcher.rows.append((self.provider, self.title, "", verdict, CODES[verdict], ""))
        done = self.watcher.call("wait.toml", "wait", "--json", "--latest", self.provider, *self.match)
        latest = json.loads(done.stdout.splitlines()[-1])
        holds(f"{self.title}: wait --latest finds one of them, not {latest['run_id']}", latest["run_id"] in going)
        for run in over:
            reported = [event for event in self.watcher.receiver.events if event["data"].get("run", {}).get("id") == run]
            equal(f"{self.title}: what is reported of a run that had ended", reported, [])


def state_of(line):
    """The state that a line of `wait --json` shows."""
    return line.get("state") or line.get("data", {}).get("run", {}).get("state")


def reader(name, run_id, url, second=None, token=None):
    """Reads what the server says about a run now."""
    def read():
        status, answer = request("GET", url, token=token)
        run = profiles.read(name, run_id, answer, status)
        data = profiles.profile(name)
        wanted = data.get("confirm", {}).get("on", []) + (["failed"] if "detail" in data else [])
        if second and run["state"] in wanted:
            run = profiles.read(name, run_id, answer, status, request("GET", second, token=token)[1])
        return run
    return read


def prefect(machine):
    bin_folder, port = install("prefect"), free_port()
    web = f"http://127.0.0.1:{port}"
    api = f"{web}/api"
    environment = {
        "PREFECT_HOME": str(machine.folder / "home"), "DO_NOT_TRACK": "1", "PREFECT_API_URL": api,
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false", "PREFECT_LOGGING_LEVEL": "WARNING",
    }
    argv = [bin_folder / "prefect", "server", "start", "--host", "127.0.0.1", "--port", port, "--no-ui"]
    machine.start("server", argv, **environment)
    within(180, "Prefect answers", answers(f"{api}/health"))
    machine.start("flows", [bin_folder / "python", HERE / "servers/flows.py", machine.go], **environment)

    flow, listed = (post(f"{api}/flows/", {"name": name})["id"] for name in ("by-hand", "listed"))

    def made(state, flow=flow):
        return post(f"{api}/flow_runs/", {"flow_id": flow, "state": {"type": state}})

    over = made("COMPLETED", listed)["id"]
    watcher = Watcher(machine, f"""
[providers.prefect]
base_url = "{api}"
web = "{web}"
requests_per_minute = 3000
""", """
[[discover]]
provider = "prefect"
match = { flow = "listed" }
labels = { found = "yes" }
every = "5s"
""")
    discovered = Discovered(watcher, "found in a list", "prefect", ["flow=listed"])
    first, second = made("RUNNING", listed)["id"], made("RUNNING", listed)["id"]

    def state(run, kind, name=None, message=None):
        new = {"type": kind, "name": name, "message": message}
        post(f"{api}/flow_runs/{run}/set_state", {"state": new, "force": True})

    def follow(title, run, reference=None):
        return watcher.follow(title, "prefect", run, reader("prefect", run, f"{api}/flow_runs/{run}"), reference)

    canceled, paused, crashed = made("SCHEDULED"), made("SCHEDULED"), made("SCHEDULED")
    unknown = follow("unknown", UNKNOWN_UUID)
    of_canceled = follow("canceled", canceled["id"])
    of_canceled.sees("pending")
    state(canceled["id"], "RUNNING")
    of_canceled.sees("running")
    state(canceled["id"], "CANCELLED", message="stopped by hand")
    state(paused["id"], "RUNNING")
    state(paused["id"], "PAUSED", "Suspended")
    of_paused = follow("waits for a person", paused["id"])
    of_paused.sees("waiting")
    state(paused["id"], "RUNNING")
    of_paused.sees("running")
    state(paused["id"], "COMPLETED")
    state(crashed["id"], "RUNNING")
    of_crashed = follow("crashed", crashed["id"])
    of_crashed.sees("running")
    message = "Flow run infrastructure exited with non-zero status code 137."
    state(crashed["id"], "CRASHED", message=message)

    def flows():
        found = dict(re.findall(r"^(good|bad) (\S+)$", machine.text("flows.out"), re.M))
        return found if len(found) == 2 else None

    found = within(120, "the flows run", flows)
    # By the address of its page, as people have it.
    good = follow("succeeds", found["good"], f"{web}/runs/flow-run/{found['good']}")
    bad = follow("fails", found["bad"])
    good.sees("running")
    bad.sees("running")
    machine.release()
    good.ends("succeeded", status="COMPLETED", attempt=1)
    bad.ends("failed", status="FAILED", attempt=1,
             error="Flow run encountered an exception: ValueError: model ran out of credit")
    of_canceled.ends("canceled", status="CANCELLED", name=canceled["name"])
    of_paused.ends("succeeded", status="COMPLETED", name=paused["name"], attempt=2)
    of_crashed.ends("failed", status="CRASHED", name=crashed["name"], attempt=1, error=message)
    state(crashed["id"], "SCHEDULED", "AwaitingRetry")
    of_crashed.title = "runs again under its ID"
    of_crashed.again()
    of_crashed.sees("pending")
    state(crashed["id"], "RUNNING")
    of_crashed.sees("running")
    state(crashed["id"], "COMPLETED")
    of_crashed.ends("succeeded", status="COMPLETED", attempt=2)
    unknown.ends("not_found")

    def end():
        state(first, "COMPLETED")
        state(second, "FAILED", message="model ran out of credit")

    discovered.finds({first: "succeeded", second: "failed"}, end, [over])
    return watcher.rows


def langgraph(machine):
    bin_folder, port = install("langgraph"), free_port()
    api = f"http://127.0.0.1:{port}"
    shutil.copy(HERE / "servers/agent.py", machine.folder)
    (machine.folder / "langgraph.json").write_text(json.dumps(
        {"dependencies": ["."], "graphs": {"demo": "./agent.py:graph"}, "env": {}}))
    argv = [bin_folder / "langgraph", "dev", "--host", "127.0.0.1", "--port", port, "--no-browser", "--no-reload",
            "--allow-blocking", "--n-jobs-per-worker", "8"]
    machine.start("server", argv, LANGSMITH_TRACING="false", LANGGRAPH_CLI_NO_ANALYTICS="1", LANGSMITH_API_KEY="",
                  PATH=f"{bin_folder}:{os.environ['PATH']}")
    within(90, "LangGraph answers", answers(f"{api}/ok"))
    listed = post(f"{api}/threads", {})["thread_id"]
    watcher = Watcher(machine, f"""
[providers.langgraph]
base_url = "{api}"
requests_per_minute = 3000
[providers.langgraph-thread]
base_url = "{api}"
requests_per_minute = 3000
""", f"""
[[discover]]
provider = "langgraph"
match = {{ thread = "{listed}" }}
labels = {{ found = "yes" }}
every = "5s"
""")
    discovered = Discovered(watcher, "found in a list", "langgraph", [f"thread={listed}"])

    def run(mode, thread=None):
        thread = thread or post(f"{api}/threads", {})["thread_id"]
        made = post(f"{api}/threads/{thread}/runs", {"assistant_id": "demo", "input": {"mode": mode}})
        return thread, made["run_id"]

    def follow(title, thread, made):
        read = reader("langgraph", f"{thread}/{made}", f"{api}/threads/{thread}/runs/{made}", f"{api}/threads/{thread}")
        return watcher.follow(title, "langgraph", f"{thread}/{made}", read)

    def follow_thread(title, thread):
        read = reader("langgraph-thread", thread, f"{api}/threads/{thread}")
        return watcher.follow(title, "langgraph-thread", thread, read)

    fresh = post(f"{api}/threads", {})["thread_id"]
    equal("a thread without a run", reader("langgraph-thread", fresh, f"{api}/threads/{fresh}")()["state"], "pending")
    found = "/".join(run("ok", listed))
    runs = {mode: run(mode) for mode in ("ok", "bad", "stop", "ask")}
    good, bad, stop = (follow(title, *runs[mode]) for title, mode in
                       (("succeeds", "ok"), ("fails", "bad"), ("canceled", "stop")))
    asks = follow("waits for a person", *runs["ask"])
    unknown = follow("unknown", UNKNOWN_UUID, UNKNOWN_UUID)
    thread = follow_thread("thread waits for a person", runs["ask"][0])
    bad_thread = follow_thread("thread fails", runs["bad"][0])
    asks.sees("waiting")
    thread.sees("waiting")
    for one in (good, bad, stop):
        one.sees("running")
    post(f"{api}/threads/{runs['stop'][0]}/runs/{runs['stop'][1]}/cancel?wait=false", {})
    stop.ends("canceled", status="interrupted", name="demo")
    discovered.finds({found: "succeeded"}, machine.release, [])
    good.ends("succeeded", status="success", name="demo")
    bad.ends("failed", status="error", error="model ran out of credit")
    bad_thread.ends("failed", status="error", error="model ran out of credit")
    post(f"{api}/threads/{runs['ask'][0]}/runs", {"assistant_id": "demo", "command": {"resume": "yes"}})
    asks.ends("succeeded", status="success")
    thread.ends("succeeded", status="idle")
    unknown.ends("not_found")
    return watcher.rows


def buildbot(machine):
    bin_folder, port = install("buildbot"), free_port()
    api = f"http://127.0.0.1:{port}"
    environment = {"PORT": str(port), "WORKER_PORT": str(free_port()), "PATH": f"{bin_folder}:{os.environ['PATH']}"}
    create = machine.start("create", [bin_folder / "buildbot", "create-master", "master"], **environment)
    equal("exit code of buildbot create-master", create.wait(timeout=60), 0)
    shutil.copy(HERE / "servers/master.cfg", machine.folder / "master")
    machine.start("server", [bin_folder / "buildbot", "start", "--nodaemon", "master"], **environment)
    within(90, "Buildbot answers", answers(f"{api}/api/v2/builders"))
    watcher = Watcher(machine, f"""
[providers.buildbot]
base_url = "{api}"
requests_per_minute = 3000
""")

    def build(name):
        """Starts a build, and returns its ID when it has one."""
        call = {"jsonrpc": "2.0", "method": "force", "id": 1, "params": {"owner": "test", "reason": "test"}}
        force = f"{api}/api/v2/forceschedulers/force-{name}"
        within(60, f"the builder {name} is there", lambda: request("GET", force)[0] == 200)
        request_id = next(iter(post(force, call)["result"][1].values()))
        builds = f"{api}/api/v2/buildrequests/{request_id}/builds"
        found = within(60, f"a build of {name}", lambda: request("GET", builds)[1]["builds"])
        return str(found[0]["buildid"])

    def follow(title, build_id):
        read = reader("buildbot", build_id, f"{api}/api/v2/builds/{build_id}")
        return watcher.follow(title, "buildbot", build_id, read)

    good, bad, stop = (follow(title, build(name)) for title, name in
                       (("succeeds", "good"), ("fails", "bad"), ("canceled", "long")))
    unknown = follow("unknown", "999999")
    for one in (good, bad, stop):
        one.sees("running")
    call = {"jsonrpc": "2.0", "method": "stop", "id": 1, "params": {"reason": "by hand"}}
    post(f"{api}/api/v2/builds/{stop.run_id}", call)
    stop.ends("canceled")
    machine.release()
    good.ends("succeeded", status="build successful")
    bad.ends("failed", error="failed 'sh -c ...' (failure)")
    unknown.ends("not_found")
    return watcher.rows


def flower(machine):
    bin_folder, port, broker_port = install("flower"), free_port(), free_port()
    api = f"http://127.0.0.1:{port}"
    environment = {
        "BROKER": f"redis://127.0.0.1:{broker_port}/0", "FLOWER_UNAUTHENTICATED_API": "true",
        "PYTHONPATH": str(HERE / "servers"), "PYTHONDONTWRITEBYTECODE": "1",
    }
    machine.start("redis", ["redis-server", "--bind", "127.0.0.1", "--port", broker_port, "--save", ""])
    celery = [bin_folder / "celery", "-A", "tasks"]
    machine.start("flower", [*celery, "flower", "--address=127.0.0.1", f"--port={port}"], **environment)
    machine.start("worker", [*celery, "worker", "-E", "--concurrency=4", "--loglevel=WARNING"], **environment)
    within(90, "Flower answers", answers(f"{api}/api/tasks"))
    within(90, "the worker is there", lambda: request("GET", f"{api}/api/workers?refresh=1")[1])
    watcher = Watcher(machine, f"""
[providers.flower]
base_url = "{api}"
requests_per_minute = 3000
""")

    def follow(title, task):
        return follow_task(title, post(f"{api}/api/task/async-apply/tasks.{task}", {"args": []})["task-id"])

    def follow_task(title, task_id):
        return watcher.follow(title, "flower", task_id, reader("flower", task_id, f"{api}/api/task/info/{task_id}"))

    good, bad, stop, flaky = (follow(title, task) for title, task in (
        ("succeeds", "good"), ("fails", "bad"), ("canceled", "good"), ("is retried under its ID", "flaky")))
    unknown = follow_task("unknown", UNKNOWN_UUID)
    for one in (good, bad, stop, flaky):
        one.sees("running")
    post(f"{api}/api/task/revoke/{stop.run_id}?terminate=true", {})
    stop.ends("canceled", status="REVOKED", name="tasks.good")
    machine.release()
    flaky.sees("pending")
    good.ends("succeeded", status="SUCCESS", name="tasks.good")
    bad.ends("failed", status="FAILURE", name="tasks.bad", error="ValueError('model ran out of credit')")
    flaky.ends("succeeded", status="SUCCESS", name="tasks.flaky")
    unknown.ends("not_found")
    return watcher.rows


def airflow(machine):
    bin_folder, port = install("airflow"), free_port()
    api = f"http://127.0.0.1:{port}"
    environment = {
        "AIRFLOW_HOME": str(machine.folder), "AIRFLOW__CORE__LOAD_EXAMPLES": "False", "AIRFLOW__API__WORKERS": "1",
        "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False", "AIRFLOW__API__HOST": "127.0.0.1",
        "AIRFLOW__API__PORT": str(port), "AIRFLOW__API__BASE_URL": api,
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{api}/execution/", "PATH": f"{bin_folder}:{os.environ['PATH']}",
        "AIRFLOW__TRIGGERER__DEFAULT_CAPACITY": "1", "AIRFLOW__LOGGING__WORKER_LOG_SERVER_PORT": str(free_port()),
        "AIRFLOW__LOGGING__TRIGGER_LOG_SERVER_PORT": str(free_port()),
    }
    (machine.folder / "dags").mkdir()
    shutil.copy(HERE / "servers/dags.py", machine.folder / "dags")
    machine.start("server", [bin_folder / "airflow", "standalone"], **environment)
    within(300, "Airflow answers", answers(f"{api}/api/v2/version"))
    passwords = machine.folder / "simple_auth_manager_passwords.json.generated"
    login = {"username": "admin", "password": within(60, "Airflow makes a password", lambda: passwords.exists() and
                                                     json.loads(passwords.read_text()))["admin"]}
    token = post(f"{api}/auth/token", login)["access_token"]
    for dag in ("good", "bad"):
        path = f"{api}/api/v2/dags/{dag}"
        within(180, f"the DAG {dag} is there", lambda: request("GET", path, token=token)[0] == 200)
    # With a login: the program gets its token by itself.
    watcher = Watcher(machine, f"""
[providers.airflow]
base_url = "{api}"
requests_per_minute = 3000
""", AIRFLOW_USER="admin", AIRFLOW_PASSWORD=login["password"])

    def follow(title, dag, run_id):
        path = f"{api}/api/v2/dags/{dag}/dagRuns/{urllib.parse.quote(run_id, safe='')}"
        page = f"{api}/dags/{dag}/runs/{urllib.parse.quote(run_id, safe='')}" if title == "succeeds" else None
        read = reader("airflow", f"{dag}/{run_id}", path, token=token)
        return path, watcher.follow(title, "airflow", f"{dag}/{run_id}", read, page)

    def trigger(dag):
        return post(f"{api}/api/v2/dags/{dag}/dagRuns", {"logical_date": None}, token)["dag_run_id"]

    _, good = follow("succeeds", "good", trigger("good"))
    bad_path, bad = follow("fails", "bad", trigger("bad"))
    stop_path, stop = follow("stopped by hand", "good", trigger("good"))
    _, unknown = follow("unknown", "good", "manual__2026-01-01T00:00:00+00:00")
    for one in (good, bad, stop):
        one.sees("running")
    post(stop_path, {"state": "failed", "note": "stopped by hand"}, token, "PATCH")
    stop.ends("failed", status="failed", name="good", error="stopped by hand")
    machine.release()
    good.ends("succeeded", status="success", name="good")
    bad.ends("failed", status="failed", name="bad")
    machine.hold()
    post(f"{bad_path}/clear", {"dry_run": False}, token)
    bad.title = "runs again under its ID"
    bad.again()
    bad.sees("running")
    machine.release()
    bad.ends("failed", status="failed", name="bad")
    unknown.ends("not_found")
    return watcher.rows


def own(machine):
    """A stand-in for a user's own API, with the profile of the guide in docs/providers.md."""
    jobs = {str(number): {"id": number, "state": "queued"} for number in (1, 2, 3)}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            job = jobs.get(self.path.removeprefix("/jobs/"))
            allowed = self.headers["Authorization"] == "Bearer token-of-the-test"
            text = json.dumps(job or {"error": "no such job"}).encode()
            self.send_response((200 if job else 404) if allowed else 401)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    api, profile = f"http://127.0.0.1:{server.server_port}", HERE.parent.parent / "examples/render.toml"
    watcher = Watcher(machine, f"""
[providers.render]
profile_file = "{profile}"
base_url = "{api}"
requests_per_minute = 3000
""", RENDER_TOKEN="token-of-the-test")

    def follow(title, job):
        read = reader(profile, job, f"{api}/jobs/{job}", token="token-of-the-test")
        return watcher.follow(title, "render", job, read)

    good, bad, unknown = follow("succeeds", "1"), follow("fails", "2"), follow("unknown", "9")
    for job, followed in (("1", good), ("2", bad)):
        followed.sees("pending")
        jobs[job] = {"id": int(job), "state": "working"}
        followed.sees("running")
    jobs["1"] = {"id": 1, "state": "done", "ended_at": "2026-01-01T00:00:09Z"}
    jobs["2"] = {"id": 2, "state": "broken", "ended_at": "2026-01-01T00:00:09Z", "reason": "the disk is full"}
    good.ends("succeeded", status="done")
    bad.ends("failed", status="broken", error="the disk is full")
    unknown.ends("not_found")
    return watcher.rows


SERVERS = {"own": own, "prefect": prefect, "langgraph": langgraph, "buildbot": buildbot, "flower": flower}
BEFORE_A_RELEASE = {"airflow": airflow}


def test(name):
    """Starts a server and watches its runs. Returns what was seen, and how long it took."""
    began, machine, rows = time.monotonic(), Machine(name), None
    try:
        rows = (SERVERS | BEFORE_A_RELEASE)[name](machine)
    except Exception:
        with LOCK:
            print(f"\n{name}:", file=sys.stderr)
            traceback.print_exc()
            machine.logs()
    finally:
        machine.end()
    seconds = time.monotonic() - began
    say(f"{name}: {'as expected' if rows else 'FAILED'}, {seconds:.0f} s")
    return rows, f"{name} {seconds:.0f} s"


def main(names):
    # Side by side: each of them mostly waits for its server.
    with concurrent.futures.ThreadPoolExecutor(len(names)) as pool:
        results = dict(zip(names, pool.map(test, names)))
    rows = [row for found, _ in results.values() for row in found or []]
    failed = [name for name, (found, _) in results.items() if not found]
    times = [time_taken for _, time_taken in results.values()]
    print()
    for row in [("PROVIDER", "RUN", "STATUS", "VERDICT", "CODE", "ERROR"), *rows]:
        print("{:<17} {:<26} {:<46} {:<10} {:>4}  {}".format(*(str(cell) for cell in row)))
    print(f"\n{len(rows)} runs; {', '.join(times)}" + (f"; failed: {', '.join(failed)}" if failed else ""))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or list(SERVERS)))
