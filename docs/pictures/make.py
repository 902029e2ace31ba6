"""Plays commands in a terminal of its own and draws what it shows: make.py PROGRAM FOLDER."""

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import time
from html import escape
from pathlib import Path

import pyte

PROGRAM, FOLDER = Path(sys.argv[1]).resolve(), Path(sys.argv[2])
COLUMNS, CELL, LINE, EDGE = 80, 8.4, 19, 14
COLORS = {
    "default": "#d0d4dc", "black": "#5c6370", "red": "#ef6b73", "green": "#8cc570", "brown": "#dfb469",
    "yellow": "#dfb469", "blue": "#61aeee", "magenta": "#c57bdb", "cyan": "#56b6c2", "white": "#d0d4dc",
}
NAMES = {
    "run_demo_report": "weekly report", "run_demo_research": "market research", "run_demo_outreach": "outreach mails",
    "run_demo_late": "late arrival", "run_demo_limited": "with a 429", "run_demo_gateway": "with a 502",
}


def play(argv, environment, until, rows=24):
    """The screen as it is when `until` says so of its lines, or the command has ended."""
    screen = pyte.Screen(COLUMNS, rows)
    stream = pyte.ByteStream(screen)
    process, terminal = pty.fork()
    if process == 0:
        os.execve(argv[0], argv, environment)
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, COLUMNS, 0, 0))
    ends = time.monotonic() + 60
    found = False
    while time.monotonic() < ends:
        if not found and until(screen.display):
            # The frame after that.
            found, ends = True, time.monotonic() + 0.4
        if select.select([terminal], [], [], 0.05)[0]:
            try:
                received = os.read(terminal, 65536)
            except OSError:
                break
            if not received:
                break
            stream.feed(received)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    return screen


def draw(screen, title):
    """The screen as SVG: one element for each piece of a line that looks the same."""
    last = max((row for row in range(screen.lines) if screen.display[row].strip()), default=0)
    width, height = COLUMNS * CELL + 2 * EDGE, (last + 1) * LINE + 2 * EDGE
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" '
        f'height="{height:g}" role="img" aria-label="{escape(title)}">',
        '<rect width="100%" height="100%" rx="8" fill="#1e222a"/>',
        '<g font-family="ui-monospace, SFMono-Regular, Menlo, Consolas, \'DejaVu Sans Mono\', monospace" '
        'font-size="14" xml:space="preserve">',
    ]
    for row in range(last + 1):
        column = 0
        while column < COLUMNS:
            cell = screen.buffer[row][column]
            look, begin, text = (cell.fg, cell.bold), column, ""
            while column < COLUMNS and look == (screen.buffer[row][column].fg, screen.buffer[row][column].bold):
                text += screen.buffer[row][column].data
                column += 1
            if not text.strip():
                continue
            bold = ' font-weight="bold"' if look[1] else ""
            # Columns stand where they belong in any font.
            for piece in re.finditer(r"\S+(?: \S+)*", text):
                x, y = EDGE + (begin + piece.start()) * CELL, EDGE + row * LINE + 14
                parts.append(
                    f'<text x="{x:g}" y="{y:g}" textLength="{len(piece[0]) * CELL:g}" '
                    f'fill="{COLORS.get(look[0], COLORS["default"])}"{bold}>{escape(piece[0])}</text>'
                )
    return "\n".join([*parts, "</g>", "</svg>", ""])


def main():
    with tempfile.TemporaryDirectory() as home:
        server = subprocess.Popen([PROGRAM, "demo", "--serve"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        processes = [server]
        try:
            address = re.search(rb"RUNWATCH_API__BASE_URL=(\S+)", server.stdout.readline())[1].decode()
            configuration = Path(home, "config.toml")
            configuration.write_text(
                '[sinks.ops]\ntype = "log"\n'
                '[sinks.away]\ntype = "webhook"\nurl = "http://127.0.0.1:9/hook"\n'
                '[sinks.search]\ntype = "log"\nlabels = { team = "search" }\n'
            )
            environment = {
                "HOME": home, "XDG_RUNTIME_DIR": home, "PATH": os.environ["PATH"], "LANG": "C.UTF-8", "TZ": "UTC",
                "TERM": "xterm-256color", "CREWSHIP_API_KEY": "simulated-key", "RUNWATCH_API__BASE_URL": address,
                "RUNWATCH_API__REQUESTS_PER_MINUTE": "600", "RUNWATCH_CONFIG": str(configuration),
                "RUNWATCH_API__RUN_URL": "https://console.example/runs/{run_id}",
            }
            quiet = {"env": environment, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
            processes.append(subprocess.Popen([PROGRAM, "daemon"], **quiet))
            while subprocess.run([PROGRAM, "healthcheck", "--ready"], **quiet).returncode:
                time.sleep(0.1)
            for run_id, name in NAMES.items():
                subprocess.run([PROGRAM, "add", "--name", name, run_id], check=True, **quiet)
            ended = lambda lines: sum(line.startswith(("✓", "✗", "⊘")) for line in lines) >= 3
            live = play([str(PROGRAM), "wait", "--daemon", *NAMES], environment, ended)
            Path(FOLDER, "wait.svg").write_text(draw(live, "the live view of runwatch wait"))
            subprocess.run([PROGRAM, "wait", "--daemon", "run_demo_research"], **quiet)
            time.sleep(1)
            shown = play([str(PROGRAM), "show", "run_demo_research"], environment, lambda _: False, rows=40)
            Path(FOLDER, "show.svg").write_text(draw(shown, "runwatch show: why a run failed, and who was notified"))
        finally:
            for process in reversed(processes):
                process.terminate()
                process.wait()


main()
