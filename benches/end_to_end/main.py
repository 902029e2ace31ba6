"""The end-to-end benchmark; benches/run starts it. Measures the real daemon of target/release and prints the
table of its targets, with what others make of the same work.

    main.py [--quick] [--build] [PART...]
"""

import signal
import sys
import time
import traceback

import commands
import delays
import lists
import polling
import resting
import storing
from report import Report
from world import ROOT, Bench

# Each with the seconds that it may take: the full form, and the quick one.
PARTS = {
    "idle": (resting.idle, 120, 30),
    "carry": (resting.carry, 600, 60),
    "saturated": (polling.saturated, 180, 60),
    "sustained": (polling.sustained, 120, 60),
    "add": (storing.add, 180, 60),
    "burst": (storing.burst, 240, 90),
    "commands": (commands.commands, 120, 30),
    "lengths": (delays.lengths, 600, 420),
    "lists": (lists.lists, 2400, 900),
    "equal": (delays.equal_requests, 420, 90),
    "peers": (polling.peers, 240, 120),
    "build": (commands.build, 1500, 1500),
}

# What other parts compare with.
NEEDS = {"carry": ["idle"], "peers": ["saturated"]}


def run(name, report, quick):
    measure, *limits = PARTS[name]
    # The quick form asks nothing of the times: a machine that is busy has more of it.
    limit = limits[quick] * (4 if quick else 1)

    def too_long(*_):
        raise TimeoutError(f"{name} takes longer than {limit} s")

    signal.signal(signal.SIGALRM, too_long)
    print(f"== {name}", flush=True)
    began = time.monotonic()
    signal.alarm(limit)
    try:
        with Bench(ROOT / "target/bench/world" / name, quick) as bench:
            measure(bench, report)
        return True
    except Exception:
        traceback.print_exc()
        return False
    finally:
        signal.alarm(0)
        report.keep(quick)
        print(f"   {time.monotonic() - began:.0f} s", flush=True)


def main():
    # A signal that ends this ends what it started, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    arguments = sys.argv[1:]
    options = {argument for argument in arguments if argument.startswith("--")}
    names = [argument for argument in arguments if argument not in options]
    if options - {"--quick", "--build"} or set(names) - PARTS.keys():
        sys.exit(f"usage: benches/run [--quick] [--build] [PART...]; parts: {' '.join(PARTS)}")
    quick = "--quick" in options
    wanted = {need for name in names for need in [name, *NEEDS.get(name, [])]} or set(PARTS) - {"build"}
    if "--build" in options:
        wanted.add("build")
    report = Report(ROOT / "target/bench/report.json")
    failed = [name for name in PARTS if name in wanted and not run(name, report, quick)]
    print(f"\n{report.text(quick)}")
    if failed:
        sys.exit(f"these parts failed: {' '.join(failed)}")
    missed = report.missed()
    if missed and not quick:
        sys.exit(f"these targets were missed: {'; '.join(missed)}")


main()
