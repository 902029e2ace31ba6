"""What the tests in Python share: steps, waiting for what must come, certificates, the world outside."""

import base64
import os
import subprocess
import sys
import time
from pathlib import Path

WORLD_PROGRAM = Path(__file__).parent / "world.py"


class Failed(Exception):
    """The test fails with this text."""


def step(text):
    print(f"\n-- {text}", flush=True)


def say(text):
    print(f"   {text}", flush=True)


def holds(what, held):
    if not held:
        raise Failed(f"not so: {what}")


def equal(what, found, expected):
    if found != expected:
        raise Failed(f"{what}: {found!r}, not {expected!r}")


def within(seconds, what, check):
    """Waits until `check` returns something true, and returns that."""
    ends = time.monotonic() + seconds
    while True:
        found = check()
        if found:
            return found
        if time.monotonic() > ends:
            raise Failed(f"not within {seconds} s: {what}")
        time.sleep(0.05)


def run(*argv, code=0, timeout=60, **more):
    """Runs a program to its end and returns its standard output."""
    argv = [str(word) for word in argv]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=timeout, **more)
    if code is not None and done.returncode != code:
        raise Failed(f"{' '.join(argv)}: exit code {done.returncode}, not {code}\n{done.stdout}{done.stderr}")
    return done.stdout


class Authority:
    """A certificate authority of the test's own."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.key, self.pem = self.folder / "authority.key", self.folder / "authority.pem"
        self._request("authority of the test", self.key, self.pem, "-addext", "basicConstraints=critical,CA:TRUE")

    def issue(self, folder, *names):
        """Writes cert.pem and cert.key for these names (`DNS:...` or `IP:...`) into a folder."""
        folder = Path(folder)
        self._request(
            "server of the test", folder / "cert.key", folder / "cert.pem", "-CA", self.pem, "-CAkey", self.key,
            "-addext", f"subjectAltName={','.join(names)}", "-addext", "basicConstraints=critical,CA:FALSE",
        )

    @staticmethod
    def _request(name, key, pem, *more):
        run("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-noenc",
            "-days", "2", "-subj", f"/CN={name}", "-keyout", key, "-out", pem, *more)


class World:
    """tests/world.py and the files that drive it. `prefix` is put before its command."""

    def __init__(self, folder, authority=None, names=(), address="127.0.0.1:0", prefix=()):
        self.folder, self.address, self.prefix = Path(folder), address, list(prefix)
        (self.folder / "runs").mkdir(parents=True)
        (self.folder / "key").write_text("key-of-the-test\n")
        (self.folder / "secret").write_text(f"whsec_{base64.b64encode(os.urandom(32)).decode()}\n")
        if authority:
            authority.issue(self.folder, *names)
        self.process = None

    def start(self):
        command = [*self.prefix, sys.executable, str(WORLD_PROGRAM), str(self.folder), self.address]
        self.process = subprocess.Popen(command)
        within(20, "the API and the receiver listen", (self.folder / "port").exists)
        return int((self.folder / "port").read_text())

    def stop(self):
        if self.process:
            self.process.kill()
            self.process.wait()

    def run_is(self, run_id, *statuses):
        new = self.folder / "runs" / f"{run_id}.next"
        new.write_text(" ".join(statuses))
        new.rename(self.folder / "runs" / run_id)

    def lines(self, name):
        return [line.split() for line in (self.folder / name).read_text().splitlines()]

    def polls(self, run_id):
        return self.lines("polls").count([run_id])

    def accepted(self, run_id=None):
        """Webhooks with a good signature: path, webhook-id, type, run ID."""
        return [line for line in self.lines("accepted") if run_id in (None, line[3])]

    def switch(self, name, on):
        (self.folder / name).touch() if on else (self.folder / name).unlink(missing_ok=True)

    def report(self):
        for name in ("polls", "held", "accepted", "refused", "hanging", "unsigned"):
            lines = (self.folder / name).read_text().splitlines() if (self.folder / name).exists() else []
            print(f"\n{self.folder.name}: {name}: {len(lines)}", *lines[-10:], sep="\n  ", file=sys.stderr)
