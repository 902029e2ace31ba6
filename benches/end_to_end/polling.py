"""Polls: as many as there can be, and a thousand a second, beside what others make of the same server."""

import contextlib
import json
import shutil
import time
import urllib.parse

from report import median
from world import ROOT, TICKS, cpu_seconds, descendants, eventually, free_port, get, proportional, resident, stat

OHA = ROOT / "target/tools/bin/oha"
PYTHON = ROOT / "target/bench/venv/bin/python3"
HERE = ROOT / "benches/end_to_end"

# At most 250,000 requests at once and 12,500 a second from then on: the largest budget there is. What is measured
# ends before it is felt.
BURST, SPREAD = 250_000, 12_500

AT_INTERVAL = """
    [api]
    base_url = "{base}"
    requests_per_minute = 1_000_000
    [watch]
    initial_interval = "{interval}"
    max_interval = "{interval}"
    multiplier = 1
    jitter = 0
"""


def counted(bench, pids, seconds):
    """Requests a second over so many seconds, and the CPU seconds for each, of what is running already."""
    nginx = bench.nginx
    requests, cpu, began = nginx.requests(), cpu_seconds(*pids), time.monotonic()
    time.sleep(seconds)
    requests, cpu = nginx.requests() - requests, cpu_seconds(*pids) - cpu
    seconds = time.monotonic() - began
    assert requests > 0, "nothing was requested"
    return requests / seconds, cpu / requests


def runwatch(bench, interval, seconds, watches, warm_up=1.0):
    # Added to one that has just started on an empty store: a start with a store counts as having used the burst.
    daemon = bench.daemon(f"watches-{watches}-{time.monotonic_ns()}", AT_INTERVAL.format(base=bench.nginx.base, interval=interval))
    before = bench.nginx.requests()
    daemon.add([f"run_{index}" for index in range(watches)])
    eventually("every run was requested", lambda: bench.nginx.requests() - before >= watches)
    time.sleep(warm_up)
    rate, cpu = counted(bench, [daemon.pid], seconds)
    in_all = bench.nginx.requests() - before
    limited = in_all > 0.9 * (BURST + SPREAD * (seconds + warm_up))
    assert not limited, f"{in_all} requests are what the budget allows, not what can be done"
    answered = daemon.metric("runwatch_polls_total")
    assert answered >= in_all * 0.9, f"{answered} polls of {in_all} requests"
    assert daemon.metric("runwatch_watches") == watches, "no run has ended"
    daemon.stop()
    return rate, cpu


def wrk(bench, seconds):
    url = f"{bench.nginx.base}/v1/runs/run_0"
    argv = ["wrk", "-t1", "-c64", f"-d{seconds}s", "-H", "Authorization: Bearer a-key", url]
    before, began = bench.nginx.requests(), time.monotonic()
    child = bench.child("wrk", argv)
    cpu = child.cpu_at_end(seconds + 20)
    requests = bench.nginx.requests() - before
    assert "Non-2xx" not in child.out.read_text()
    # On a machine that is busy it ends later than it says; what it made in that time is what counts.
    return requests / (time.monotonic() - began), cpu / requests


def oha(bench, seconds):
    url = f"{bench.nginx.base}/v1/runs/run_0"
    argv = [OHA, "--no-tui", "--output-format", "json", "-c", "64", "-z", f"{seconds}s"]
    before = bench.nginx.requests()
    child = bench.child("oha", [*argv, "-H", "Authorization: Bearer a-key", url])
    cpu = child.cpu_at_end(seconds + 20)
    requests = bench.nginx.requests() - before
    result = json.loads(child.out.read_text())
    assert set(result["statusCodeDistribution"]) == {"200"}, result["statusCodeDistribution"]
    return requests / result["summary"]["total"], cpu / requests


def aiohttp(bench, interval, seconds, watches, warm_up=1.0):
    argv = [PYTHON, HERE / "poller.py", bench.nginx.base, interval, seconds + warm_up + 60, f"run:{watches}"]
    child = bench.child("aiohttp", argv)
    before = bench.nginx.requests()
    eventually("every run was requested", lambda: bench.nginx.requests() - before >= watches)
    time.sleep(warm_up)
    rate, cpu = counted(bench, [child.pid], seconds)
    assert child.process.poll() is None, child.log.read_text()
    child.end()
    return rate, cpu


def shell(bench, seconds):
    """Loops of curl and jq without a pause, one for each core."""
    loops = [bench.child(f"loop-{n}", [HERE / "poll.sh", bench.nginx.base, 0, f"run_{n}"]) for n in range(2)]
    time.sleep(0.5)
    # What a shell has waited for is in its account as that of its children (proc(5): cutime, cstime).
    spent = lambda: sum(sum(map(int, stat(loop.pid)[11:15])) for loop in loops) / TICKS
    requests, cpu, began = bench.nginx.requests(), spent(), time.monotonic()
    time.sleep(seconds)
    requests, cpu = bench.nginx.requests() - requests, spent() - cpu
    seconds = time.monotonic() - began
    for loop in loops:
        loop.check(loop.process.poll(), (None,))
        loop.end()
    assert requests > 0, "nothing was requested"
    return requests / seconds, cpu / requests


class Prometheus:
    """Prometheus that has blackbox_exporter ask for runs; a probe fails when its run has ended."""

    def __init__(self, bench, base, run_ids, interval):
        folder, exporter, own = bench.folder, free_port(), free_port()
        self.base = f"http://127.0.0.1:{own}"
        (folder / "blackbox.yml").write_text(BLACKBOX)
        targets = json.dumps([f"{base}/v1/runs/{run_id}" for run_id in run_ids])
        config = PROMETHEUS.format(interval=interval, targets=targets, exporter=exporter)
        (folder / "prometheus.yml").write_text(config)
        shutil.rmtree(folder / "tsdb", ignore_errors=True)
        argv = ["prometheus-blackbox-exporter", f"--config.file={folder}/blackbox.yml", "--log.level=warn"]
        argv += [f"--web.listen-address=127.0.0.1:{exporter}"]
        self.exporter = bench.child("blackbox", argv)
        argv = ["prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/tsdb"]
        argv += [f"--web.listen-address=127.0.0.1:{own}", "--log.level=warn"]
        self.server = bench.child("prometheus", argv)
        self.pids = [self.server.pid, self.exporter.pid]
        self.children = [self.server, self.exporter]

        def ready():
            with contextlib.suppress(OSError):
                return get(f"{self.base}/-/ready")

        eventually("Prometheus is ready", ready)

    def query(self, expression):
        url = f"{self.base}/api/v1/query?{urllib.parse.urlencode({'query': expression})}"
        return json.loads(get(url))["data"]["result"]

    def end(self):
        for child in self.children:
            child.check(child.process.poll(), (None,))
            child.end()


BLACKBOX = """
modules:
  run:
    prober: http
    timeout: 10s
    http:
      headers: { Authorization: "Bearer a-key", User-Agent: blackbox }
      fail_if_body_not_matches_regexp: ['"status": "(pending|running)"']
"""

PROMETHEUS = """
global: {{ scrape_interval: {interval}, scrape_timeout: {interval} }}
scrape_configs:
  - job_name: runs
    metrics_path: /probe
    params: {{ module: [run] }}
    static_configs: [{{ targets: {targets} }}]
    relabel_configs:
      - {{ source_labels: [__address__], target_label: __param_target }}
      - {{ source_labels: [__address__], target_label: instance }}
      - {{ target_label: __address__, replacement: "127.0.0.1:{exporter}" }}
"""


def prometheus(bench, interval, seconds, watches, warm_up):
    """Rate, CPU for each probe, and the resident bytes of both programs."""
    peer = Prometheus(bench, bench.nginx.base, [f"run_{index}" for index in range(watches)], interval)
    before = bench.nginx.requests()
    eventually("runs are requested", lambda: bench.nginx.requests() - before >= watches)
    time.sleep(warm_up)
    rate, cpu = counted(bench, peer.pids, seconds)
    taken = resident(*peer.pids)
    peer.end()
    return rate, cpu, taken


def saturated(bench, report):
    """Polls of unchanged runs, as many as there can be, in turns with the raw limit on the same server."""
    seconds, watches = bench.pick(3, 1), bench.pick(5_000, 1_000)
    bench.nginx.fill(watches)
    turns = {"runwatch": lambda: runwatch(bench, "50ms", seconds, watches), "wrk": lambda: wrk(bench, seconds)}
    # It takes longer to build than all of the quick form; the full one cannot do without.
    if OHA.exists() or not bench.quick:
        turns["oha"] = lambda: oha(bench, seconds)
    measured = {name: [] for name in turns}
    for _ in range(bench.pick(3, 1)):
        for name, turn in turns.items():
            measured[name].append(turn())
    rates = {name: median([rate for rate, _ in all]) for name, all in measured.items()}
    cpu = {name: median([cpu for _, cpu in all]) for name, all in measured.items()}
    report.figures["saturated"] = {"rounds": measured, "rates": rates, "cpu": cpu}
    ours = rates["runwatch"]
    for peer in [name for name in ("oha", "wrk") if name in rates]:
        ratio = ours / rates[peer]
        report.row(
            f"Saturated polling of unchanged runs, 64 in flight, beside {peer}",
            "≥ 0.6 × oha" if peer == "oha" else "–",
            f"{ours:,.0f}/s, {ratio:.2f} ×",
            f"{peer} {rates[peer]:,.0f}/s, {1e6 * cpu[peer]:.1f} µs CPU a request",
            ratio >= 0.6 if peer == "oha" and not bench.quick else None,
        )
    each = 1e6 * cpu["runwatch"]
    report.row("– CPU for each poll", "≤ 30 µs", f"{each:.1f} µs", met=each <= 30 if not bench.quick else None)


def sustained(bench, report):
    """A thousand polls a second."""
    seconds, watches = bench.pick(15, 2), 1_000
    bench.nginx.fill(watches)
    rate, cpu = runwatch(bench, "1s", seconds, watches, bench.pick(3.0, 1.5))
    assert rate <= watches * 1.1, f"{rate:.0f} polls a second of {watches} runs"
    beside, beside_cpu = aiohttp(bench, 1, seconds, watches)
    report.figures["sustained"] = {"runwatch": [rate, cpu], "aiohttp": [beside, beside_cpu]}
    share = 100 * rate * cpu
    report.row(
        "1,000 polls/s sustained: of one core",
        "≤ 8 %",
        f"{share:.1f} % at {rate:,.0f}/s",
        f"aiohttp {100 * beside * beside_cpu:.1f} % at {beside:,.0f}/s",
        share <= 8 and rate >= 950 if not bench.quick else None,
    )


def bytes_for_each(bench):
    """Resident bytes for each run that is watched and not due, of the peers."""
    many, long = bench.pick(10_000, 500), 3600
    bench.nginx.fill(many)

    def tasks(count):
        before = bench.nginx.requests()
        child = bench.child("aiohttp", [PYTHON, HERE / "poller.py", bench.nginx.base, long, 120, f"run:{count}"])
        eventually("every run was requested", lambda: bench.nginx.requests() - before >= count)
        time.sleep(1)
        taken = resident(child.pid)
        child.end()
        return taken

    few = 10
    in_python = (tasks(many) - tasks(few)) / (many - few)
    loops = [bench.child(f"loop-{n}", [HERE / "poll.sh", bench.nginx.base, long, f"run_{n}"]) for n in range(few)]
    asleep = lambda: all(len(descendants(loop.pid)) == 2 for loop in loops)
    eventually("the loops sleep", asleep)
    time.sleep(1)
    in_shell = sum(proportional(*descendants(loop.pid)) for loop in loops) / few
    for loop in loops:
        loop.end()
    return in_python, in_shell


def peers(bench, report):
    """The same work done by what people use instead."""
    seconds, watches = bench.pick(8, 1), 1_000
    bench.nginx.fill(watches)
    rows, python = {}, [*aiohttp(bench, 0, seconds, watches)]
    in_python, in_shell = bytes_for_each(bench)
    rows["aiohttp, a task for each run"] = [*python, in_python]
    rows["curl and jq in a shell loop"] = [*shell(bench, seconds), in_shell]
    # At a second between two probes of a run: as many runs as it can just not serve, and few.
    many = bench.pick(4_000, 200)
    bench.nginx.fill(many)
    *probes, taken = prometheus(bench, "1s", seconds, many, bench.pick(5, 1))
    *_, alone = prometheus(bench, "1s", 3, 10, bench.pick(5, 1))
    rows["Prometheus with blackbox_exporter"] = [*probes, (taken - alone) / (many - 10)]
    report.figures["peers"] = rows
    figures = report.figures
    ours = [figures["saturated"]["rates"]["runwatch"], figures["saturated"]["cpu"]["runwatch"]]
    each = figures.get(f"carry-{bench.pick(100_000, 1_000)}", {}).get("each")
    rows = {"runwatch daemon": [*ours, each], **rows}
    lines = [
        [name, f"{rate:,.0f}", f"{1e6 * cpu:,.0f} µs", "–" if each is None else f"{each:,.0f} bytes", f"{rate / ours[0]:.3f} ×"]
        for name, (rate, cpu, each) in rows.items()
    ]
    head = ["On the same server", "Polls a second", "CPU for each", "Memory for each watched run", "Beside runwatch"]
    report.table("What others make of it", head, lines)
