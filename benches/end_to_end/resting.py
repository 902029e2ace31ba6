"""What the daemon costs while it has nothing to do, however many watches it carries, and how it starts."""

import time

from report import median, mib
from world import MIB, cpu_seconds, filled, resident, wake_ups

# One request a minute, and no watch due again for a day.
NOTHING_DUE = """
    [api]
    base_url = "{base}"
    requests_per_minute = 1
    [watch]
    initial_interval = "1d"
    max_interval = "1d"
    deadline = "3650d"
"""


def idle(bench, report):
    """An idle daemon: the store is open, there are no watches."""
    daemon = bench.daemon("idle", f'[api]\nbase_url = "{bench.nginx.base}"\n')
    # The threads of the start end within 10 s, and their counts with them.
    time.sleep(bench.pick(15, 1))
    began, cpu, woken = time.monotonic(), cpu_seconds(daemon.pid), wake_ups(daemon.pid)
    time.sleep(bench.pick(60, 3))
    seconds = time.monotonic() - began
    cpu, woken = cpu_seconds(daemon.pid) - cpu, wake_ups(daemon.pid) - woken
    bytes_idle = resident(daemon.pid)
    assert daemon.metric("runwatch_polls_total") == 0
    daemon.stop()
    report.figures["idle"] = {"resident": bytes_idle, "cpu": cpu, "wake_ups": woken, "seconds": seconds}
    report.row("Idle daemon, 0 watches: resident", "≤ 12 MiB", mib(bytes_idle), met=bytes_idle <= 12 * MIB)
    measured = f"{woken} in {seconds:.0f} s"
    report.row("– wake-ups of all its threads", "0 but for timers that are due", measured, met=woken == 0)
    report.row("– CPU", "0.0 %", f"{100 * cpu / seconds:.2f} %", met=cpu / seconds < 0.0005)


def carried(bench, report, count, target):
    """So many active watches, nothing due. Returns the bytes and the seconds until it was ready."""
    folder = filled(bench.folder / f"carry-{count}", bench.nginx, count)
    starts = []
    for _ in range(bench.pick(3, 1)):
        before = bench.nginx.requests()
        daemon = bench.daemon(folder.name, NOTHING_DUE.format(base=bench.nginx.base), patience=120)
        starts.append(daemon.ready_after)
        time.sleep(bench.pick(5, 1))
        bytes_carrying = resident(daemon.pid)
        began, cpu = time.monotonic(), cpu_seconds(daemon.pid)
        time.sleep(bench.pick(10, 1))
        share = (cpu_seconds(daemon.pid) - cpu) / (time.monotonic() - began)
        assert daemon.metric("runwatch_watches") == count
        requests = bench.nginx.requests() - before
        assert requests <= 6, f"{requests} requests with nothing due"
        daemon.stop()
    base = report.figures["idle"]["resident"]
    each = (bytes_carrying - base) / count
    report.figures[f"carry-{count}"] = {"resident": bytes_carrying, "each": each, "ready": starts, "cpu": share}
    report.row(
        f"{count:,} active watches, nothing due: resident",
        f"≤ {target} MiB" if target else "–",
        mib(bytes_carrying),
        f"{each:.0f} bytes a watch above idle; CPU {100 * share:.2f} %",
        bytes_carrying <= target * MIB if target else None,
    )
    return each, median(starts)


def carry(bench, report):
    """Many active watches, nothing due; and the start with them."""
    few, many = bench.pick((100_000, 1_000_000), (1_000, 10_000))
    each_of_few, ready = carried(bench, report, few, bench.pick(60, None))
    each_of_many, ready_with_many = carried(bench, report, many, bench.pick(400, None))
    flat = each_of_many <= 1.1 * each_of_few
    measured = f"{each_of_few:.0f} and {each_of_many:.0f} bytes"
    report.row("– cost per watch", "flat", measured, met=flat if not bench.quick else None)
    starts = f"{ready:.2f} s"
    report.row(
        f"Start with {few:,} stored watches to ready",
        "< 1 s" if not bench.quick else "–",
        starts,
        f"{ready_with_many:.2f} s with {many:,}",
        ready < 1 if not bench.quick else None,
    )
