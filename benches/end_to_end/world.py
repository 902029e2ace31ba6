"""What is measured, and what it is measured against: the daemon, nginx as its API and its receiver, stores
filled in bulk, and what the kernel counts of a process. Everything is on loopback."""

import contextlib
import http.client
import json
import os
import pathlib
import shutil
import signal
import socket
import sqlite3
import subprocess
import time
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROGRAM = ROOT / "target/release/runwatch"
LOAD = ROOT / "target/release/runwatch-load"
TICKS = os.sysconf("SC_CLK_TCK")
PATIENCE = 60  # seconds, for whatever is waited for without being measured
MIB = 1 << 20

# No proxy takes part, and nothing checks the key.
ENVIRONMENT = {k: v for k, v in os.environ.items() if k.lower() not in ("http_proxy", "https_proxy", "all_proxy")}
ENVIRONMENT |= {"CREWSHIP_API_KEY": "a-key", "NO_PROXY": "127.0.0.1", "LC_ALL": "C.UTF-8"}

opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

DOCUMENTED = {
    status: (ROOT / f"tests/data/{status}.json").read_text(encoding="utf-8") for status in ("running", "succeeded")
}


def document(status, run_id):
    """The documented answer about a run with that status."""
    return DOCUMENTED[status].replace("run_xyz789abc", run_id)


def eventually(what, look, patience=PATIENCE, pause=0.02):
    """Looks again until there is something, and returns it."""
    ends = time.monotonic() + patience
    while time.monotonic() < ends:
        if found := look():
            return found
        time.sleep(pause)
    raise AssertionError(f"not within {patience} s: {what}")


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def get(url):
    with opener.open(url, timeout=30) as answer:
        return answer.read().decode()


# What the kernel says of a process.


def stat(pid):
    """The fields of /proc/PID/stat from the third on: state, parent, ..."""
    return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()


def cpu_seconds(*pids):
    """User and system time of processes, all their threads included."""
    return sum(sum(map(int, stat(pid)[11:13])) for pid in pids) / TICKS


def status_field(path, name):
    for line in pathlib.Path(path).read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    raise KeyError(name)


def resident(*pids):
    """Bytes that are resident."""
    return sum(status_field(f"/proc/{pid}/status", "VmRSS") * 1024 for pid in pids)


def proportional(*pids):
    """Bytes that are resident, those that processes share divided among them."""
    return sum(status_field(f"/proc/{pid}/smaps_rollup", "Pss") * 1024 for pid in pids)


def wake_ups(pid):
    """How often threads of a process went to sleep, or were put to sleep: each wakes up once more."""
    tasks = pathlib.Path(f"/proc/{pid}/task").iterdir()
    names = ("voluntary_ctxt_switches", "nonvoluntary_ctxt_switches")
    return sum(status_field(task / "status", name) for task in tasks for name in names)


def descendants(pid):
    """A process with its children and theirs."""
    parents = {}
    for entry in pathlib.Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                parents.setdefault(int(stat(entry.name)[1]), []).append(int(entry.name))
    found, ahead = [], [pid]
    while ahead:
        found.append(ahead.pop())
        ahead += parents.get(found[-1], [])
    return found


class Child:
    """A program that runs until it ends or is ended; its output is in files."""

    def __init__(self, name, argv, folder, environment=None, stdin=None):
        self.name, self.out, self.log = name, folder / f"{name}.out", folder / f"{name}.log"
        with open(self.out, "wb") as out, open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                list(map(str, argv)),
                cwd=folder,
                env=ENVIRONMENT | (environment or {}),
                stdin=stdin or subprocess.DEVNULL,
                stdout=out,
                stderr=log,
                start_new_session=True,
            )
        self.pid = self.process.pid

    def cpu_at_end(self, patience):
        """Waits for its end, checks that it went well, and returns the CPU seconds it took."""
        eventually(f"the end of {self.name}", lambda: stat(self.pid)[0] == "Z", patience)
        seconds = cpu_seconds(self.pid)
        self.check(self.process.wait())
        return seconds

    def check(self, code, allowed=(0,)):
        log = self.log.read_text(errors="replace")[-2000:]
        assert code in allowed, f"{self.name} ended with {code}:\n{log}"

    def end(self, how=signal.SIGTERM):
        """Ends it and what it started."""
        if self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, how)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(self.pid, signal.SIGKILL)
                self.process.wait()
        return self.process.returncode


class Nginx:
    """nginx with one worker. It serves the files below `api`, takes webhooks, and counts requests; one of its
    two ports also logs them."""

    def __init__(self, folder):
        self.folder, self.api, self.looked = folder, folder / "api", 0
        self.port, self.logged_port = free_port(), free_port()
        self.base, self.logged = f"http://127.0.0.1:{self.port}", f"http://127.0.0.1:{self.logged_port}"
        self.runs = self.api / "v1/runs"
        self.runs.mkdir(parents=True)
        places = "".join(
            f"{kind}_temp_path {folder}/nginx-{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        server = """
            server {{
                listen 127.0.0.1:{port} backlog=4096;
                location /v1/runs/ {{ root {api}; access_log {log}; }}
                location = /hook {{ access_log {folder}/hooks.log hooks buffer=64k flush=100ms; return 204; }}
                location = /status {{ stub_status; }}
            }}
        """
        plain = server.format(port=self.port, api=self.api, folder=folder, log="off")
        requests = f"{folder}/requests.log requests buffer=64k flush=100ms"
        logging = server.format(port=self.logged_port, api=self.api, folder=folder, log=requests)
        user = "user root;" if os.geteuid() == 0 else ""
        (folder / "nginx.conf").write_text(f"""
            daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log stderr warn; {user}
            events {{ worker_connections 8192; }}
            http {{
                {places}
                access_log off; keepalive_requests 100000000; keepalive_timeout 600s;
                default_type application/json;
                log_format requests '$msec $status $uri $http_user_agent';
                log_format hooks '$msec $http_webhook_id';
                {plain}
                {logging}
            }}
        """)
        self.child = Child("nginx", ["nginx", "-p", folder, "-c", folder / "nginx.conf", "-e", "stderr"], folder)

        def answers():
            self.child.check(self.child.process.poll(), (None,))
            with contextlib.suppress(OSError):
                return self.requests() == 0

        eventually("nginx answers", answers)

    def requests(self):
        """How many requests it took so far, those of this function left out."""
        count = int(get(f"{self.base}/status").splitlines()[2].split()[2])
        self.looked += 1
        return count - self.looked

    def put(self, run_id, status):
        """Has a run be in that status from now on."""
        there = self.runs / run_id
        new = self.folder / f"new-{run_id}"
        new.write_text(document(status, run_id))
        new.replace(there)

    def fill(self, count, status="running", folder=None):
        folder = folder or self.runs
        folder.mkdir(parents=True, exist_ok=True)
        for index in range(count):
            (folder / f"run_{index}").write_text(document(status, f"run_{index}"))

    def log_lines(self, name):
        """The lines of a log, split. A caller that needs the last ones waits for the flush first."""
        path = self.folder / f"{name}.log"
        return [line.split(" ", 3) for line in path.read_text().splitlines()] if path.exists() else []

    def hooks(self):
        """When each webhook came, by its ID; and how many came in all."""
        lines, arrived = self.log_lines("hooks"), {}
        for at, delivery in (line[:2] for line in lines):
            arrived.setdefault(delivery, float(at))
        return arrived, len(lines)

    def end(self):
        self.child.end(signal.SIGQUIT if self.child.process.poll() is None else signal.SIGTERM)


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path):
        super().__init__("localhost", timeout=30)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(str(self.path))


class Daemon:
    """The real daemon, from its start to its `READY=1`."""

    def __init__(self, folder, config, patience=PATIENCE):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.store, self.socket = folder, folder / "runwatch.db", folder / "socket"
        (folder / "config.toml").write_text(
            f'[store]\npath = "{self.store}"\n[control]\nsocket = "{self.socket}"\n{config}'
        )
        (folder / "notify").unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notifications:
            notifications.bind(str(folder / "notify"))
            notifications.settimeout(0.2)
            began = time.monotonic()
            argv = [PROGRAM, "daemon", "--config", folder / "config.toml"]
            self.child = Child("daemon", argv, folder, {"NOTIFY_SOCKET": str(folder / "notify")})
            self.pid = self.child.pid

            def ready():
                with contextlib.suppress(TimeoutError):
                    return b"READY=1" in notifications.recv(4096)
                self.child.check(self.child.process.poll(), (None,))

            eventually("the daemon is ready", ready, patience, pause=0)
            self.ready_after = time.monotonic() - began

    def ask(self, path):
        connection = UnixConnection(self.socket)
        connection.request("GET", path)
        answer = connection.getresponse()
        body = answer.read().decode()
        connection.close()
        assert answer.status == 200, f"{path}: {answer.status} {body}"
        return body

    def metric(self, name):
        """The sum of all samples of that name."""
        found = [line.split() for line in self.ask("/metrics").splitlines() if line.partition("{")[0].split(" ")[0] == name]
        return sum(float(words[-1]) for words in found)

    def add(self, run_ids):
        argv = [PROGRAM, "--config", self.folder / "config.toml", "add", "-"]
        names = "\n".join(run_ids).encode()
        subprocess.run(argv, input=names, check=True, env=ENVIRONMENT, timeout=PATIENCE, stdout=subprocess.DEVNULL)

    def stop(self):
        """Stops it in order, and checks that it ended well."""
        self.child.end()
        self.child.check(self.child.process.returncode)

    def end(self):
        self.child.end(signal.SIGKILL)


def read(store, sql, *parameters):
    """Rows of a store, also of one that is in use."""
    with contextlib.closing(sqlite3.connect(f"file:{store}?mode=ro", uri=True, timeout=30)) as connection:
        return connection.execute(sql, parameters).fetchall()


TEMPLATE = "run_template"


def filled(folder, nginx, count):
    """A store with that many active watches, each as the daemon itself leaves one that it saw running: it is
    let write one, and that one is copied."""
    nginx.put(TEMPLATE, "running")
    daemon = Daemon(folder, f'[api]\nbase_url = "{nginx.base}"\n')
    try:
        daemon.add([TEMPLATE])
        sql = "SELECT count(*) FROM watches WHERE status = 'running'"
        eventually("the template is seen running", lambda: read(daemon.store, sql) == [(1,)])
        daemon.stop()
    finally:
        daemon.end()
    with contextlib.closing(sqlite3.connect(daemon.store)) as store:
        store.execute("PRAGMA synchronous = off")
        store.execute("PRAGMA cache_size = -1000000")
        number = "(SELECT id FROM watches WHERE run_id = :run_id)"
        for table, key in [("watches", "id"), ("status_changes", "watch_id"), ("events", "watch_id")]:
            columns = [row[1] for row in store.execute(f"PRAGMA table_info({table})") if row[1] not in ("seq", "id")]
            copies = ", ".join(
                number if name == "watch_id"
                else f"iif(typeof({name}) = 'text', replace({name}, '{TEMPLATE}', :run_id), {name})"
                for name in columns
            )
            template = f"(SELECT id FROM watches WHERE run_id = '{TEMPLATE}')"
            sql = f"INSERT INTO {table} ({', '.join(columns)}) SELECT {copies} FROM {table} WHERE {key} = {template}"
            store.executemany(sql, ({"run_id": f"run_{index}"} for index in range(count)))
        # What points to it goes with it.
        store.execute("PRAGMA foreign_keys = on")
        store.execute("DELETE FROM watches WHERE run_id = ?", (TEMPLATE,))
        store.commit()
        store.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    watches = read(daemon.store, "SELECT count(*) FROM watches WHERE verdict IS NULL AND status = 'running'")
    assert watches == [(count,)], watches
    return folder


class Bench:
    """A folder on the disk, and nginx."""

    def __init__(self, folder, quick):
        self.folder, self.quick = folder, quick
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)

    def pick(self, full, quick):
        return quick if self.quick else full

    def __enter__(self):
        self.nginx = Nginx(self.folder)
        self.stack = contextlib.ExitStack()
        self.stack.callback(self.nginx.end)
        return self

    def __exit__(self, *_):
        self.stack.close()

    def daemon(self, folder, config, patience=PATIENCE):
        daemon = Daemon(self.folder / folder, config, patience)
        self.stack.callback(daemon.end)
        return daemon

    def child(self, name, argv, environment=None):
        child = Child(name, argv, self.folder, environment)
        self.stack.callback(child.end)
        return child


def load(*arguments, patience=PATIENCE):
    """Runs the part of the driver that must be exact, and returns what it says."""
    done = subprocess.run(
        [LOAD, *map(str, arguments)], check=True, env=ENVIRONMENT, timeout=patience, stdout=subprocess.PIPE
    )
    return json.loads(done.stdout)
