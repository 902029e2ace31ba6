"""A real Prometheus that scrapes a real daemon: its targets page, queries, alerts and the dashboard.

The daemon watches runs of the simulated API, one of its sinks works and one gives up, so that every figure
moves. Prometheus uses config/prometheus as it is, but for the address, the token file and the intervals.
"""

import http.server
import json
import os
import pathlib
import re
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request

CONFIG = pathlib.Path(__file__).resolve().parents[2] / "config"
PATIENCE = 60  # seconds, for each thing that is waited for
RUNS = ["run_demo_report", "run_demo_research", "run_demo_outreach", "run_demo_late", "run_never"]

opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def eventually(what, look):
    """Looks again until there is something, and returns it."""
    ends = time.monotonic() + PATIENCE
    while time.monotonic() < ends:
        found = look()
        if found:
            return found
        time.sleep(0.2)
    raise AssertionError(f"not within {PATIENCE} s: {what}")


class Machine:
    """The programs, and a folder for what they leave."""

    def __init__(self, program, folder):
        self.program, self.folder, self.children = program, folder, []
        self.environment = {**os.environ, "HOME": str(folder), "XDG_RUNTIME_DIR": str(folder), "XDG_STATE_HOME": str(folder)}

    def start(self, name, argv):
        with open(self.folder / f"{name}.out", "wb") as out, open(self.folder / f"{name}.log", "wb") as log:
            child = subprocess.Popen(argv, cwd=self.folder, env=self.environment, stdout=out, stderr=log)
        self.children.append(child)
        return child

    def printed(self, name, pattern):
        def look():
            text = (self.folder / name).read_text(encoding="utf-8", errors="replace")
            return re.search(pattern, text)

        return eventually(f"{pattern} in {name}", look).group(1)

    def run(self, *arguments):
        argv = [self.program, "--config", "config.toml", *arguments]
        subprocess.run(argv, cwd=self.folder, env=self.environment, check=True, stdout=subprocess.DEVNULL)

    def end(self):
        for child in self.children:
            child.terminate()
        for child in self.children:
            child.wait(timeout=30)


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


class Switch(http.server.BaseHTTPRequestHandler):
    """A dead-man's switch, which accepts every heartbeat."""

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


class Prometheus:
    def __init__(self, machine, target):
        text = (CONFIG / "prometheus/prometheus.yml").read_text(encoding="utf-8")
        for documented, here in [
            ("127.0.0.1:9477", target),
            ("/etc/prometheus/runwatch-token", str(machine.folder / "token")),
            ("alerts.yml", str(CONFIG / "prometheus/alerts.yml")),
            ("scrape_interval: 15s", "scrape_interval: 1s"),
            ("evaluation_interval: 15s", "evaluation_interval: 1s"),
        ]:
            assert text.count(documented) == (2 if documented == "127.0.0.1:9477" else 1), documented
            text = text.replace(documented, here)
        (machine.folder / "prometheus.yml").write_text(text, encoding="utf-8")
        subprocess.run(["promtool", "check", "config", "prometheus.yml"], cwd=machine.folder, check=True)
        self.base = f"http://127.0.0.1:{free_port()}"
        machine.start(
            "prometheus",
            [
                "prometheus",
                "--config.file=prometheus.yml",
                f"--storage.tsdb.path={machine.folder}/tsdb",
                f"--web.listen-address={self.base.removeprefix('http://')}",
            ],
        )

    def get(self, path, **query):
        url = f"{self.base}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        try:
            with opener.open(url, timeout=30) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            if error.code == 503:
                return None  # it starts
            # A query that cannot be parsed; the body says why.
            raise AssertionError(f"{query}: {error.read().decode()}") from error
        except urllib.error.URLError:
            return None

    def query(self, expression):
        return (self.get("query", query=expression) or {"result": []})["result"]


def metric_names(text):
    """The names that samples of the text format have."""
    return {re.match(r"[a-zA-Z_:][a-zA-Z0-9_:]*", line).group() for line in text.splitlines() if line and line[0] != "#"}


def named(expression):
    """The metrics that an expression names: all ours, and those of Prometheus itself."""
    return set(re.findall(r"\b(runwatch_\w+|process_\w+|up)\b", expression))


def main(program):
    with tempfile.TemporaryDirectory() as folder:
        machine = Machine(str(pathlib.Path(program).resolve()), pathlib.Path(folder))
        try:
            check(machine)
        except BaseException:
            for log in sorted(machine.folder.glob("*.log")):
                sys.stderr.write(f"--- {log.name}\n{log.read_text(errors='replace')[-4000:]}\n")
            raise
        finally:
            machine.end()


def check(machine):
    machine.start("api", [machine.program, "demo", "--serve"])
    machine.environment["CREWSHIP_API_KEY"] = machine.printed("api.out", r"CREWSHIP_API_KEY=(\S+)")
    machine.environment["RUNWATCH_API__BASE_URL"] = machine.printed("api.out", r"RUNWATCH_API__BASE_URL=(\S+)")
    token = secrets.token_urlsafe(32)
    (machine.folder / "token").write_text(token, encoding="utf-8")
    # All metrics are there with a store that can be shared.
    (machine.folder / "store-url").write_text(os.environ["RUNWATCH_TEST_POSTGRES"], encoding="utf-8")
    (machine.folder / "store-url").chmod(0o600)
    switch = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Switch)
    threading.Thread(target=switch.serve_forever, daemon=True).start()
    (machine.folder / "heartbeat-url").write_text(f"http://127.0.0.1:{switch.server_port}/beat", encoding="utf-8")
    (machine.folder / "heartbeat-url").chmod(0o600)
    (machine.folder / "config.toml").write_text(
        """
[api]
requests_per_minute = 6000
[store]
url_file = "store-url"
[watch]
not_found_grace = "1s"
[control]
listen = "127.0.0.1:0"
token_file = "token"
[heartbeat]
url_file = "heartbeat-url"
interval = "10s"
[sinks.ops]
type = "log"
path = "events.jsonl"
[sinks.dead]
type = "command"
argv = ["false"]
retry_schedule = ["100ms"]
""",
        encoding="utf-8",
    )
    daemon = machine.start("daemon", [machine.program, "--config", "config.toml", "daemon"])
    target = machine.printed("daemon.log", r"listen=(127\.0\.0\.1:\d+)")
    prometheus = Prometheus(machine, target)

    # What curl gets is what promtool reads.
    request = urllib.request.Request(f"http://{target}/metrics", headers={"Authorization": f"Bearer {token}"})

    def scrape():
        # Only the leader exports what is counted in the store, and the daemon begins to lead some time after its start.
        text = opener.open(request, timeout=30).read().decode("utf-8")
        return text if re.search(r"^runwatch_leading 1$", text, re.MULTILINE) else None

    text = eventually("the daemon leads", scrape)
    subprocess.run(["promtool", "check", "metrics"], input=text.encode(), check=True)
    exported = metric_names(text)

    up = eventually(
        "the targets page says up",
        lambda: [t for t in (prometheus.get("targets") or {"activeTargets": []})["activeTargets"] if t["health"] == "up"],
    )
    assert [(t["labels"]["job"], t["lastError"]) for t in up] == [("runwatch", "")], up
    # Counted from 0 before anything happened, so that the first one of each shows as an increase.
    before = eventually("a first scrape", lambda: prometheus.query('runwatch_deliveries_total{sink="ops"}'))
    assert {sample["value"][1] for sample in before} == {"0"}, before

    machine.run("add", *RUNS)
    finished = f'runwatch_watches{{state="finished"}} == {len(RUNS)}'
    eventually(finished, lambda: prometheus.query(finished))
    for expression, wanted in [
        ('runwatch_deliveries_total{sink="ops",result="delivered"}', len(RUNS)),
        ('runwatch_deliveries_total{sink="dead",result="given_up"}', len(RUNS)),
        ('runwatch_deliveries_dead{sink="dead"}', len(RUNS)),
        ("sum(runwatch_detection_total)", len(RUNS)),
        ("runwatch_delivery_delay_seconds_count", len(RUNS)),
        ('runwatch_watches{state="active"}', 0),
        # Additions and verdicts, at least.
        (f"(runwatch_store_batch_jobs_sum >= bool {2 * len(RUNS)})", 1),
        ("(runwatch_store_commit_seconds_count > bool 0)", 1),
    ]:
        eventually(f"{expression} == {wanted}", lambda: prometheus.query(f"{expression} == {wanted}"))
    # Prometheus requested OpenMetrics, and accepted it: the samples and their metadata.
    metadata = prometheus.get("metadata")
    assert metadata["runwatch_polls"][0]["type"] == "counter", metadata.get("runwatch_polls")
    assert metadata["runwatch_build"][0]["type"] == "info", metadata.get("runwatch_build")

    # Every expression of the dashboard has an answer from this daemon, and names nothing else.
    dashboard = json.loads((CONFIG / "grafana/runwatch.json").read_text(encoding="utf-8"))
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    assert len(expressions) > 10, expressions
    used = set()
    for written in expressions:
        expression = written.replace("$__rate_interval", "30s").replace("$job", "runwatch").replace("$instance", ".+")
        assert "$" not in expression, expression
        assert named(expression) <= exported | {"up"}, (expression, exported)
        used |= named(expression)
        eventually(expression, lambda: prometheus.query(expression))
    for variable in dashboard["templating"]["list"][1:]:
        assert named(variable["query"]) <= exported, variable

    # Every alert is understood and can be computed; the one about messages given up fires.
    def rules():
        groups = (prometheus.get("rules") or {"groups": []})["groups"]
        return {rule["name"]: rule for group in groups for rule in group["rules"]}

    eventually("every rule is computed", lambda: all(rule["health"] == "ok" for rule in rules().values()) and rules())
    for rule in rules().values():
        assert named(rule["query"]) and named(rule["query"]) <= exported | {"up"}, rule["query"]
        used |= named(rule["query"])
    eventually("the alert of dead messages", lambda: rules()["RunwatchDeliveriesDead"]["state"] == "firing")
    assert rules()["RunwatchDown"]["state"] == "inactive", rules()["RunwatchDown"]
    # What is exported and shown nowhere would be a figure without a use.
    families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in used}
    unseen = {name for name in exported if re.sub(r"_(bucket|sum|count)$", "", name) not in families}
    assert not unseen, unseen

    # Without its daemon Prometheus says so.
    daemon.send_signal(signal.SIGTERM)
    assert daemon.wait(timeout=30) == 0
    eventually("the target is down", lambda: prometheus.query('up{job="runwatch"} == 0'))
    eventually("the alert is about to fire", lambda: rules()["RunwatchDown"]["state"] == "pending")
    print(f"{len(exported)} metrics, {len(expressions)} expressions, {len(rules())} alerts: all as they must be")


main(*sys.argv[1:])
