"""How late the end of a run is seen, and what it takes: by computation, by real runs, and beside others at the
same number of requests."""

import json
import math
import random
import subprocess
import threading
import time

from polling import HERE, PYTHON, Prometheus
from report import percentile
from storing import WEBHOOK, delivered_runs
from world import ENVIRONMENT, ROOT, eventually, read

SETTINGS = {"growing": "", "3 s": "3s", "10 s": "10s"}


class Ends:
    """Has runs end at their times, counted from `begin`, and knows when each did."""

    def __init__(self, nginx, lengths):
        self.nginx, self.lengths, self.at, self.failed = nginx, lengths, {}, None
        for run_id in lengths:
            nginx.put(run_id, "running")
        self.thread = threading.Thread(target=self._run, daemon=True)

    def begin(self):
        self.began = time.time()
        self.thread.start()

    def _run(self):
        for run_id, length in sorted(self.lengths.items(), key=lambda item: item[1]):
            time.sleep(max(0.0, self.began + length - time.time()))
            self.nginx.put(run_id, "succeeded")
            self.at[run_id] = time.time()


class Watching:
    """A daemon that watches runs and tells of their ends by webhook."""

    def __init__(self, bench, name, interval=""):
        fixed = f'initial_interval = "{interval}"\nmax_interval = "{interval}"\nmultiplier = 1\njitter = 0\n'
        config = WEBHOOK.format(api=bench.nginx.base, receiver=bench.nginx.base, interval=1)
        own = 'initial_interval = "1s"\n    max_interval = "1s"\n'
        assert own in config
        self.nginx, self.daemon = bench.nginx, bench.daemon(name, config.replace(own, fixed if interval else ""))

    def delays(self, ends, patience):
        """Seconds from the end of each run to the arrival of its webhook, and how many requests the API got."""
        done = lambda: read(self.daemon.store, "SELECT count(*) FROM deliveries WHERE state = 'delivered'")
        eventually("each was delivered", lambda: done() == [(len(ends.lengths),)], patience, 0.2)
        time.sleep(0.3)
        runs, _ = delivered_runs(self.daemon.store)
        hooks, _ = self.nginx.hooks()
        polls = dict(read(self.daemon.store, "SELECT run_id, polls FROM watches WHERE verdict = 'succeeded'"))
        assert polls.keys() == ends.lengths.keys(), "each succeeded"
        self.daemon.stop()
        return {run_id: hooks[delivery] - ends.at[run_id] for delivery, run_id in runs.items()}, sum(polls.values())


def computed(lengths):
    """What the real scheduler does in simulated time; nothing of it depends on the machine."""
    argv = ["cargo", "bench", "-q", "--locked", "--profile", "dev", "--bench", "lengths", "--", "--json"]
    printed = subprocess.run(
        [*argv, *map(str, lengths)], cwd=ROOT, check=True, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True
    ).stdout
    rows = [json.loads(line) for line in printed.splitlines()]
    return {(row["seconds"], row["interval"]): row for row in rows}


def lengths(bench, report):
    """The table of requests and delays: computed for all lengths, and confirmed by real runs of the short ones."""
    real, rest, each = bench.pick(([10, 60], [600, 3600, 28800], 50), ([2, 4], [60], 8))
    rows = computed(real + rest)
    spread = {}
    for seconds in real:
        for index in range(each):
            spread[f"run_{seconds}_{index}"] = seconds * (0.9 + 0.2 * (index + 0.5) / each)
    ends = Ends(bench.nginx, spread)
    daemons = {name: Watching(bench, name.replace(" ", ""), interval) for name, interval in SETTINGS.items()}
    ends.begin()
    for watching in daemons.values():
        watching.daemon.add(spread)
    lines, real_rows = [], {}
    for name, watching in daemons.items():
        delays, _ = watching.delays(ends, max(real) + 60)
        for seconds in real:
            mine = [run_id for run_id in spread if run_id.startswith(f"run_{seconds}_")]
            polls = dict(read(watching.daemon.store, "SELECT run_id, polls FROM watches"))
            late = [delays[run_id] for run_id in mine]
            real_rows[seconds, name] = (sum(polls[run_id] for run_id in mine) / each, sum(late) / each, max(late))
    for (seconds, name), row in rows.items():
        planned = [f"{row['requests']:,.1f}", f"{row['mean_delay']:.1f} s", f"{row['worst_delay']:.1f} s"]
        seen = ["–"] * 3
        if (seconds, name) in real_rows:
            requests, mean, worst = real_rows[seconds, name]
            seen = [f"{requests:.1f}", f"{mean:.1f} s", f"{worst:.1f} s"]
        both = [one if other == "–" else f"{one} ({other})" for one, other in zip(planned, seen)]
        lines.append([spoken(seconds), "grows, as by default" if name == "growing" else f"{name}, fixed", *both])
    report.figures["lengths"] = {
        "computed": list(rows.values()),
        "real": [[seconds, name, *row] for (seconds, name), row in real_rows.items()],
    }
    title = f"Requests and delay for runs of a length, ± 10 %: computed (and seen in {each} real runs)"
    report.table(title, ["Length", "Interval", "Requests", "Mean delay", "Worst delay"], lines)


def spoken(seconds):
    for size, name in ((3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds // size} {name}"
    return f"{seconds} s"


def interval_for(lengths, requests):
    """The fixed interval that takes so many requests to watch runs of these lengths."""
    low, high = 0.05, 60.0
    for _ in range(50):
        middle = (low + high) / 2
        needed = sum(math.ceil(length / middle) + 1 for length in lengths)
        low, high = (middle, high) if needed > requests else (low, middle)
    return round(high, 1)


def equal_requests(bench, report):
    """Delays of the peers when they may ask as often as runwatch does: the same runs, two times over."""
    (shortest, longest), count, loops = bench.pick(((2, 90), 60, 10), ((1, 3), 8, 2))
    chance = random.Random(11)
    lengths = {f"run_{n}": shortest * (longest / shortest) ** chance.random() for n in range(count)}
    ends, watching = Ends(bench.nginx, lengths), Watching(bench, "growing")
    ends.begin()
    watching.daemon.add(lengths)
    delays, requests = watching.delays(ends, longest + 60)
    found = {"runwatch daemon, growing interval": (delays, requests, ends.lengths)}
    interval = interval_for(lengths.values(), requests)

    ends = Ends(bench.nginx, lengths)
    base, before = bench.nginx.logged, len(bench.nginx.log_lines("requests"))
    watching = Watching(bench, "fixed", f"{round(interval * 1000)}ms")
    prometheus = Prometheus(bench, base, list(lengths), f"{round(interval * 1000)}ms")
    eventually("Prometheus has requested each", lambda: len(prometheus.query("probe_success == 1")) == count)
    ends.begin()
    watching.daemon.add(lengths)
    poller = bench.child("aiohttp", [PYTHON, HERE / "poller.py", base, interval, longest + 60, *lengths])
    some = list(lengths)[:loops]
    shells = [bench.child(f"loop-{run_id}", [HERE / "poll.sh", base, interval, run_id]) for run_id in some]
    delays, requests = watching.delays(ends, longest + 60)
    found[f"runwatch daemon, every {interval} s"] = (delays, requests, lengths)
    for child in [poller, *shells]:
        eventually(f"{child.name} ends", lambda: child.process.poll() is not None)
        child.check(child.process.returncode)
    lines_of = lambda child: [line.split() for line in child.out.read_text().splitlines()]
    late = lambda lines: {run_id: float(at) - ends.at[run_id] for at, run_id in lines}
    in_python, in_shell = late(lines_of(poller)), late([line for child in shells for line in lines_of(child)])
    assert in_python.keys() == lengths.keys() and in_shell.keys() == set(some), "each was found"
    eventually("Prometheus has found each", lambda: len(prometheus.query("probe_success == 0")) == count)
    by_prometheus = {}
    for series in prometheus.query(f"probe_success[{longest + 120}s]"):
        run_id = series["metric"]["instance"].rpartition("/")[2]
        first = next(float(at) for at, value in series["values"] if value == "0" and float(at) >= ends.at[run_id] - 1)
        by_prometheus[run_id] = max(0.0, first - ends.at[run_id])
    prometheus.end()
    time.sleep(0.3)
    requested = {}
    for at, _, path, agent in bench.nginx.log_lines("requests")[before:]:
        run_id = path.rpartition("/")[2]
        # Prometheus never stops: what it requests after it has seen the end is left out.
        if float(at) >= ends.began and float(at) <= ends.at[run_id] + interval + 0.5:
            requested[agent] = requested.get(agent, 0) + 1
    found["aiohttp, the same interval"] = (in_python, requested["aiohttp-poller"], lengths)
    found[f"curl and jq, the same interval, {loops} of the runs"] = (in_shell, requested["shell-loop"], some)
    found["Prometheus with blackbox_exporter, the same interval"] = (by_prometheus, requested["blackbox"], lengths)
    lines = []
    for name, (delays, requests, of) in found.items():
        parts = [delays[run_id] / lengths[run_id] for run_id in delays]
        values = list(delays.values())
        mean, part = sum(values) / len(values), sum(parts) / len(parts)
        columns = [f"{requests / len(of):.1f}", f"{mean:.2f} s", f"{percentile(values, 1):.1f} s", f"{100 * part:.0f} %"]
        lines.append([name, *columns, f"{100 * max(parts):.0f} %"])
    report.figures["equal_requests"] = {
        name: [requests / len(of), delays] for name, (delays, requests, of) in found.items()
    } | {"lengths": lengths}
    title = f"Delay at the same number of requests: {count} runs of {shortest} to {longest} s, as many short as long ones"
    head = ["", "Requests for a run", "Mean delay", "Worst", "Mean delay, part of the run's length", "Worst part"]
    report.table(title, head, lines)
