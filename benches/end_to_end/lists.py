"""Many runs under a small budget, with a list of the provider: what the real scheduler does in simulated time, and
the real daemon beside it."""

import contextlib
import json
import subprocess

from polling import HERE, PYTHON
from world import ENVIRONMENT, ROOT, eventually, free_port, get, read

PROFILE = """\
id = "{run}"
get = "/v1/runs/{run}"
check_id = "/id"
auth = { scheme = "none" }
rules = [
  { when = { "/status" = "running" }, is = "running" },
  { when = { "/status" = "succeeded" }, is = "succeeded" },
]
"""

LIST = """
[list]
get = "/v1/runs?limit={limit}&offset={offset}"
items = "/runs"
id = { run = "/id" }
next = "offset"
"""

TITLE = "Delay where many runs share a budget, 20 ends a minute: computed (and seen on the real daemon)"
HEAD = ["Runs", "Budget", "How", "Mean delay", "Worst delay", "Polls/min", "Pages/min"]

CONFIG = """\
[providers.many]
profile_file = "{profile}"
base_url = "{base}"
requests_per_minute = {budget}

[sinks.file]
type = "log"
path = "events"
"""


def computed(quick):
    """What the real scheduler does in simulated time; nothing of it depends on the machine."""
    argv = ["cargo", "bench", "-q", "--locked", "--profile", "dev", "--bench", "lists", "--", "--json"]
    argv += ["--quick"] if quick else []
    printed = subprocess.run(argv, cwd=ROOT, check=True, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True).stdout
    return [json.loads(line) for line in printed.splitlines()]


def real(bench, name, runs, budget, gap, ends, profile):
    """Seconds from the ends of runs to the polls that found them, and requests a minute for runs and for pages."""
    # The intervals of new watches are short; they are the longest after two and a half minutes.
    port, warm_up = free_port(), bench.pick(240, 5)
    api = bench.child(f"{name}-api", [PYTHON, HERE / "list_api.py", port, runs, warm_up, gap])
    base = f"http://127.0.0.1:{port}"

    def answers():
        api.check(api.process.poll(), (None,))
        with contextlib.suppress(OSError):
            return get(f"{base}/v1/runs?limit=1")

    eventually("the API answers", answers)
    file = bench.folder / f"{name}.toml"
    file.write_text(profile)
    daemon = bench.daemon(name, CONFIG.format(profile=file, base=base, budget=budget))
    daemon.add(f"many:run_{run}" for run in range(runs))
    sql = "SELECT count(*) FROM watches WHERE status = 'running'"
    eventually("all are seen running", lambda: read(daemon.store, sql) == [(runs,)], 3600, 0.5)
    begun = json.loads(get(f"{base}/begin"))
    began, ends_at = begun["began"], begun["ends"]
    # Those that end first; more end while the last of them is found.
    chosen = sorted(ends_at, key=ends_at.get)[:ends]
    marks = ",".join("?" * ends)
    sql = f"SELECT count(*) FROM watches WHERE verdict = 'succeeded' AND run_id IN ({marks})"
    ids = [f"many:{run}" for run in chosen]
    patience = warm_up + ends * gap + 2 * runs * 60 / budget + 60
    eventually("their ends are found", lambda: read(daemon.store, sql, *ids) == [(ends,)], patience, 0.2)
    daemon.stop()
    lines = [line.split() for line in api.out.read_text().splitlines()]
    first = {}
    for at, what, *status in lines:
        if status == ["succeeded"]:
            first.setdefault(what, float(at))
    late = [first[run] - ends_at[run] for run in chosen]
    last = max(first[run] for run in chosen)
    later = [what for at, what, *_ in lines if began <= float(at) <= last]
    minutes = (last - began) / 60
    pages = later.count("list")
    return sum(late) / len(late), max(late), (len(later) - pages) / minutes, pages / minutes


def lists(bench, report):
    """The table of delays and requests."""
    rows = computed(bench.quick)
    confirmed = {}
    for runs, budget, gap, ends in bench.pick([(100, 60, 3, 60), (1000, 60, 3, 60)], [(40, 600, 1, 5)]):
        with_list = real(bench, f"list-{runs}", runs, budget, gap, ends, PROFILE + LIST)
        confirmed[runs, budget, "list"] = with_list
    table = []
    for row in rows:
        values = [f"{row['mean_delay']:,.1f} s", f"{row['worst_delay']:,.1f} s", f"{row['polls']:.1f}", f"{row['pages']:.1f}"]
        if seen := confirmed.get((row["runs"], row["per_minute"], row["how"])):
            shown = [f"{seen[0]:.1f} s", f"{seen[1]:.1f} s", f"{seen[2]:.1f}", f"{seen[3]:.1f}"]
            values = [f"{one} ({other})" for one, other in zip(values, shown)]
        how = {"list": "polls and a list", "polls": "polls", "in turns": "another poller, all in turns"}[row["how"]]
        table.append([f"{row['runs']:,}", f"{row['per_minute']}/min", how, *values])
    report.figures["lists"] = {
        "computed": rows,
        "real": [[*key, *values] for key, values in confirmed.items()],
    }
    if bench.quick:
        return report.table(TITLE, HEAD, table)
    target = next(row for row in rows if row["runs"] == 1000 and row["per_minute"] == 60 and row["how"] == "list")
    met = target["mean_delay"] <= 20 and target["worst_delay"] <= 60
    measured = f"mean {target['mean_delay']:.1f} s, worst {target['worst_delay']:.1f} s"
    without = next(row for row in rows if row["runs"] == 1000 and row["per_minute"] == 60 and row["how"] == "polls")
    beside = f"without the list: mean {without['mean_delay']:,.0f} s"
    report.row("1,000 runs at 60 requests/min, 20 ends/min", "mean ≤ 20 s, worst ≤ 60 s", measured, beside, met)
    return report.table(TITLE, HEAD, table)
