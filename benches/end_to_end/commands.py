"""Single commands, the size of the program, and how long it takes to build."""

import os
import shutil
import subprocess
import time

from report import mib
from world import ENVIRONMENT, MIB, PROGRAM, ROOT, load


def commands(bench, report):
    """From the start of a process to its exit."""
    times = bench.pick(200, 10)
    version = load("exec", times, PROGRAM, "--version")
    true = load("exec", times, "/bin/true")
    met = version["p99_ms"] < 10 if not bench.quick else None
    measured = f"{version['p50_ms']:.1f} ms, p99 {version['p99_ms']:.1f} ms"
    report.row("`runwatch --version`", "< 10 ms", measured, f"`/bin/true` {true['p50_ms']:.1f} ms", met)

    bench.nginx.put("run_done", "succeeded")
    url, times = f"{bench.nginx.base}/v1/runs/run_done", bench.pick(100, 5)
    (bench.folder / "config.toml").write_text(f'[api]\nbase_url = "{bench.nginx.base}"\n')
    before = bench.nginx.requests()
    wait = load("exec", times, PROGRAM, "--config", bench.folder / "config.toml", "wait", "run_done")
    requests = bench.nginx.requests() - before
    assert requests == times, f"{requests} requests of {times} commands"
    piped = load("exec", times, "sh", "-c", f"curl -fsS {url} | jq -er '.status == \"succeeded\"'")
    met = wait["p99_ms"] < 60 if not bench.quick else None
    measured = f"{wait['p50_ms']:.1f} ms, p99 {wait['p99_ms']:.1f} ms"
    report.row("`runwatch wait` on a finished run", "< 60 ms", measured, f"curl and jq {piped['p50_ms']:.1f} ms", met)

    size = PROGRAM.stat().st_size
    report.row("Program, stripped", "≤ 12 MiB", mib(size), met=size <= 12 * MIB)
    report.figures["commands"] = {"version": version, "true": true, "wait": wait, "curl_jq": piped, "size": size}


def build(bench, report):
    """A clean release build, in a folder of its own; what it needs has been downloaded before."""
    folder = ROOT / "target/bench/clean"
    shutil.rmtree(folder, ignore_errors=True)
    environment = {**os.environ, **ENVIRONMENT, "CARGO_TARGET_DIR": str(folder)}
    began = time.monotonic()
    with open(bench.folder / "build.log", "wb") as log:
        argv = ["cargo", "build", "--release", "--locked"]
        subprocess.run(argv, cwd=ROOT, env=environment, check=True, stdout=log, stderr=log)
    minutes = (time.monotonic() - began) / 60
    shutil.rmtree(folder)
    report.figures["build"] = {"minutes": minutes}
    report.row("Clean release build", "< 6 min", f"{minutes:.1f} min", met=minutes < 6)
