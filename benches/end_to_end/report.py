"""The figures, and the tables made of them."""

import dataclasses
import json
import pathlib
import platform
import re


@dataclasses.dataclass
class Row:
    """A line of the table of targets. `met` is `None` where the target is not of this machine alone."""

    what: str
    target: str
    measured: str
    beside: str = "–"
    met: bool | None = None


class Report:
    """What was measured so far; kept in a file after each part."""

    def __init__(self, path):
        self.path, self.rows, self.tables, self.figures = path, [], [], {}

    def row(self, what, target, measured, beside="–", met=None):
        self.rows.append(Row(what, target, measured, beside, met))
        print(f"   {what}: {measured} (target {target}; beside it: {beside}){verdict(met)}", flush=True)

    def missed(self):
        """What did not reach its target."""
        return [row.what for row in self.rows if row.met is False]

    def table(self, title, head, lines):
        self.tables.append((title, head, lines))

    def text(self, quick):
        words = {None: "–", True: "yes", False: "**no**"}
        lines = [f"`benches/run{' --quick' if quick else ''}` on {machine()}.", ""]
        if quick:
            lines += ["Small and short: the figures mean nothing, only that all of it works.", ""]
        rows = [[row.what, row.target, row.measured, row.beside, words[row.met]] for row in self.rows]
        lines += markdown(["What", "Target", "Measured", "Beside it, in the same run", "Met"], rows)
        for title, head, rows in self.tables:
            lines += ["", f"### {title}", "", *markdown(head, rows)]
        return "\n".join(lines) + "\n"

    def keep(self, quick):
        self.path.with_suffix(".md").write_text(self.text(quick), encoding="utf-8")
        self.path.write_text(json.dumps(self.figures, indent=1), encoding="utf-8")


def verdict(met):
    return {None: "", True: ": met", False: ": NOT MET"}[met]


def markdown(head, rows):
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]


def machine():
    """What it runs on; no names."""
    cpu = re.search(r"model name\s*: (.*)", pathlib.Path("/proc/cpuinfo").read_text())
    memory = int(re.search(r"MemTotal:\s*(\d+)", pathlib.Path("/proc/meminfo").read_text()).group(1)) / (1 << 20)
    cores = len(re.findall(r"^processor", pathlib.Path("/proc/cpuinfo").read_text(), re.MULTILINE))
    kernel = re.match(r"[\d.]+", platform.release()).group(0)
    return f"{cores} cores of {cpu.group(1) if cpu else platform.machine()}, {memory:.0f} GiB, Linux {kernel}"


def mib(count):
    return f"{count / (1 << 20):.1f} MiB"


def median(values):
    ordered = sorted(values)
    return ordered[len(ordered) // 2]


def percentile(values, part):
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, round(part * (len(ordered) - 1)))]
