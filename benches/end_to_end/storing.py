"""What is kept: acknowledged watches, and a burst of ends with their verdicts, messages and attempts."""

import bisect
import contextlib
import os
import sqlite3
import time

from report import median
from world import DOCUMENTED, eventually, filled, load, read

NEVER = 'requests_per_minute = 1\n[watch]\ninitial_interval = "1d"\nmax_interval = "1d"\n'

# A signed webhook to the receiver, and runs polled at a fixed interval by the largest budget there is.
WEBHOOK = """
    [api]
    base_url = "{api}"
    requests_per_minute = 1_000_000
    [watch]
    initial_interval = "{interval}s"
    max_interval = "{interval}s"
    [sinks.receiver]
    type = "webhook"
    url = "{receiver}/hook"
    secret = "whsec_c29tZSBieXRlcyBmb3IgYSBiZW5jaG1hcms="
"""

# About what a watch takes in the write-ahead log when many share a commit.
BYTES_OF_WATCH = 512


def sqlite_alone(folder, count, group):
    """The same rows in groups of that size, by SQLite with nothing around it: watches a second."""
    with contextlib.closing(sqlite3.connect(folder / "runwatch.db", isolation_level=None)) as store:
        store.execute("PRAGMA synchronous = full")
        sql = "INSERT INTO watches (run_id, labels, added_at, deadline_at) VALUES (?, '{}', 0, 0)"
        began = time.monotonic()
        for first in range(0, count, group):
            store.execute("BEGIN IMMEDIATE")
            store.executemany(sql, ((f"sqlite_{index}",) for index in range(first, min(first + group, count))))
            store.execute("COMMIT")
        return count / (time.monotonic() - began)


def add(bench, report):
    """Durable adds over the socket: one caller alone, and 64 at once; beside what the disk allows."""
    connections, count = 64, bench.pick(50_000, 2_000)
    alone, many, syncs, groups = [], [], [], []
    for number in range(bench.pick(3, 1)):
        daemon = bench.daemon(f"add-{number}", f'[api]\nbase_url = "{bench.nginx.base}"\n{NEVER}')
        syncs.append(load("sync", daemon.folder, 4096, bench.pick(1_000, 100)))
        alone.append(load("add", daemon.socket, 1, bench.pick(2_000, 200), "alone"))
        groups.append(load("sync", daemon.folder, connections * BYTES_OF_WATCH, bench.pick(1_000, 100)))
        many.append(load("add", daemon.socket, connections, count, "many"))
        added = alone[-1]["count"] + many[-1]["count"]
        # One that was acknowledged is there even if the process dies now.
        daemon.end()
        assert read(daemon.store, "SELECT count(*) FROM watches") == [(added,)], f"{added} were acknowledged"
    by_sqlite = sqlite_alone(daemon.folder, count, connections)
    report.figures["add"] = {"alone": alone, "many": many, "sync": syncs, "sync_group": groups, "sqlite": by_sqlite}
    p99, disk = median([one["p99_ms"] for one in alone]), median([one["p99_ms"] for one in syncs])
    report.row(
        "Durable add over the socket, one caller: p99",
        "< 5 ms",
        f"{p99:.2f} ms (p50 {median([one['p50_ms'] for one in alone]):.2f} ms)",
        f"one sync of the disk: p99 {disk:.2f} ms, p50 {median([one['p50_ms'] for one in syncs]):.2f} ms",
        p99 < 5 if not bench.quick else None,
    )
    rate = median([one["count"] / one["seconds"] for one in many])
    allowed = connections * median([one["count"] / one["seconds"] for one in groups])
    target = min(20_000, allowed)
    report.row(
        f"– acknowledged from {connections} connections",
        "≥ 20,000/s or what the disk allows",
        f"{rate:,.0f}/s",
        f"disk {allowed:,.0f}/s, SQLite alone {by_sqlite:,.0f}/s, both in groups of {connections}",
        rate >= target if not bench.quick else None,
    )


def burst(bench, report):
    """Many runs end at once, while others go on."""
    ending, going, interval, limit = bench.pick(10_000, 300), bench.pick(1_000, 50), bench.pick(5, 1), 15
    nginx = bench.nginx
    # Both states of the world are made beforehand; one rename brings the other.
    before, after = bench.folder / "before", bench.folder / "after"
    nginx.fill(ending + going, folder=before)
    nginx.fill(ending + going, folder=after)
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    for index in range(ending):
        text = DOCUMENTED["succeeded"].replace("run_xyz789abc", f"run_{index}").replace("2024-01-15T10:35:47Z", now)
        (after / f"run_{index}").write_text(text)
    filled(bench.folder / "burst", nginx, ending + going)
    turn_to(before, nginx.runs)
    daemon = bench.daemon("burst", WEBHOOK.format(api=nginx.logged, receiver=nginx.base, interval=interval))
    started = time.time()
    eventually("every run was polled", lambda: daemon.metric("runwatch_polls_total") > 2 * (ending + going))
    ended_at = time.time()
    turn_to(after, nginx.runs)
    arrived = lambda: len(nginx.hooks()[0]) >= ending
    eventually("every webhook came", arrived, patience=120, pause=0.3)
    # What still goes on is seen to go on for some intervals more.
    time.sleep(2 * interval + 0.5)
    counts = [
        ("verdicts", "SELECT count(*) FROM watches WHERE verdict = 'succeeded'"),
        ("messages delivered", "SELECT count(*) FROM deliveries WHERE state = 'delivered'"),
        ("attempts that arrived", "SELECT count(*) FROM attempts WHERE delivered"),
    ]
    for what, sql in counts:
        eventually(f"{ending} {what}", lambda: read(daemon.store, sql) == [(ending,)])
    assert read(daemon.store, "SELECT count(*) FROM watches WHERE verdict IS NULL") == [(going,)]
    runs, last_stored = delivered_runs(daemon.store)
    daemon.stop()
    hooks, requests = nginx.hooks()
    assert requests == len(hooks) == ending, f"{requests} webhooks, {len(hooks)} different ones of {ending}"
    assert sorted(runs[delivery] for delivery in hooks) == sorted(f"run_{index}" for index in range(ending))
    last_hook = max(hooks.values()) - ended_at
    stored = max(last_stored - ended_at, last_hook)
    gap = longest_gap(nginx.log_lines("requests"), {f"run_{index}" for index in range(ending, ending + going)}, started)
    report.figures["burst"] = {"seconds": stored, "last_hook": last_hook, "longest_gap": gap, "interval": interval}
    report.row(
        f"{ending:,} runs end at once, polled every {interval} s: verdicts stored, webhooks delivered, attempts recorded",
        f"≤ {limit} s",
        f"{stored:.1f} s",
        f"last webhook after {last_hook:.1f} s, of which up to {interval} s are the interval",
        stored <= limit if not bench.quick else None,
    )
    report.row(
        f"– {going:,} runs that go on meanwhile: longest time between two polls of one",
        f"the interval, {interval} s, and a second",
        f"{gap:.2f} s",
        met=gap <= interval + 1 if not bench.quick else None,
    )


def turn_to(folder, link):
    """Has `link` be `folder` from one moment to the next."""
    new = link.with_name("new")
    new.symlink_to(folder)
    if link.is_dir() and not link.is_symlink():
        link.rename(link.with_name("old"))
    os.replace(new, link)


def delivered_runs(store):
    """The run that each delivery is about, and when the last attempt ended, in seconds."""
    pairs = read(store, "SELECT d.id, e.run_id FROM deliveries d JOIN events e ON e.seq = d.event_seq")
    [(last,)] = read(store, "SELECT max(at + took_ms) FROM attempts")
    return dict(pairs), last / 1000


def longest_gap(lines, runs, since):
    """The longest time between two requests for the same one of `runs`."""
    times = {}
    for at, status, path, _ in lines:
        run_id = path.rpartition("/")[2]
        if run_id in runs and float(at) >= since:
            assert status == "200", (status, path)
            bisect.insort(times.setdefault(run_id, []), float(at))
    assert len(times) == len(runs), f"{len(times)} of {len(runs)} were requested"
    return max(later - earlier for of_run in times.values() for earlier, later in zip(of_run, of_run[1:]))
