#!/usr/bin/env python3
"""Uses the page of a real daemon in a real Chromium, as people do: test.py PROGRAM [--pictures] [NAME...]

Each test has a daemon of its own beside the API and the receiver of tests/world.py. After each view, nothing may have
been noted that must not happen: no violation of the Content-Security-Policy, no error of the script, no dialog of the
browser, nothing that a text of a run made it do.
"""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from datetime import datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from selenium.webdriver.common.keys import Keys  # noqa: E402

from browser import Browser  # noqa: E402
from parts import World, equal, holds, say, step, within  # noqa: E402

PROGRAM = Path(sys.argv[1]).resolve()
PICTURES = Path(__file__).resolve().parent.parent.parent / "docs/pictures"

# Markup, terminal escapes, text that runs from right to left, an override of the direction, wide and composed characters.
HOSTILE = (
    "<img src=x onerror=pwned()><script>pwned()</script>\"'><svg onload=pwned()>{{root}}<!--login--> "
    "javascript:pwned() שלום עולם مرحبا \u202etxet denrut\u202c \u2066alone\u2069 \x1b[31mred\x07 👩‍👩‍👧‍👦🚀 週次レポート é\u200b"
)


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Daemon:
    """A daemon with its world, in a folder of its own."""

    # Those that were started, so that none is left after a test that fails.
    all = []

    def __init__(self, folder, token=None, watch="", control=""):
        Daemon.all.append(self)
        self.folder = Path(folder)
        self.process = None
        self.world = World(self.folder / "world")
        (self.world.folder / "more").mkdir()
        world = self.world.start()
        self.port = free_port()
        self.address = f"http://localhost:{self.port}/"
        self.token = token
        if token:
            (self.folder / "token").write_text(token)
            control += '\ntoken_file = "token"'
        (self.folder / "config.toml").write_text(f"""
[api]
base_url = "http://127.0.0.1:{world}"
key_file = "world/key"
requests_per_minute = 1000000
run_url = "http://127.0.0.1:{world}/page/{{run_id}}"
[watch]
initial_interval = "200ms"
max_interval = "500ms"
events = "off"
{watch}
[store]
path = "runwatch.db"
[control]
socket = "runwatch.sock"
listen = "127.0.0.1:{self.port}"
{control}
[sinks.ops]
type = "webhook"
url = "http://127.0.0.1:{world}/ops"
secret_file = "world/secret"
retry_schedule = ["1h"]
[sinks.dead]
type = "command"
argv = ["false"]
events = ["run.failed"]
retry_schedule = []
""")
        self.start()

    def start(self):
        self.log = open(self.folder / "daemon.log", "ab")
        self.process = subprocess.Popen(
            [PROGRAM, "--config", self.folder / "config.toml", "daemon"], stderr=self.log, cwd=self.folder,
            env={"PATH": os.environ["PATH"], "HOME": str(self.folder), "TZ": "UTC"})
        within(60, "the daemon is ready", self.is_ready)

    def is_ready(self):
        try:
            return self.request("GET", "/readyz")[0] == 200
        except OSError:
            return False

    def end(self, number):
        self.process.send_signal(number)
        self.process.wait(60)

    def kill(self):
        """Ends what is still there."""
        if self.process and self.process.poll() is None:
            self.end(signal.SIGKILL)
        self.world.stop()

    def stop(self):
        self.end(signal.SIGTERM)
        self.log.close()
        self.world.stop()
        errors = [line for line in (self.folder / "daemon.log").read_text(errors="replace").splitlines()
                  if (" ERROR " in line or "panicked" in line) and "delivery given up" not in line]
        holds(f"the daemon logged no error: {errors}", not errors)

    def request(self, method, path, body=None):
        headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        connection = http.client.HTTPConnection("localhost", self.port, timeout=60)
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        answer = connection.getresponse()
        text = answer.read()
        connection.close()
        return answer.status, text

    def add(self, run_id, *statuses, **more):
        """Adds a watch of a run, which the world has from now on."""
        self.world.run_is(run_id, *statuses)
        status, text = self.request("POST", "/v1/watches", {"run_id": run_id, **more})
        equal(f"adding {run_id}", status, 201)
        return json.loads(text)

    def until(self, run_id, what, check):
        return within(60, f"{run_id}: {what}", lambda: check(json.loads(self.request("GET", f"/v1/watches/{run_id}")[1])))


def marked(browser):
    """Marks the document, so that one that was loaded anew would be noticed."""
    browser.script("window.sameDocument = true")


def still_marked(browser):
    holds("the page was not loaded anew", browser.script("return window.sameDocument === true"))


def live(browser, address):
    browser.open(address)
    browser.until_text("#connection", "live")


def test_runs_come_move_and_end(browser, folder):
    """A run is added from the page, moves and ends, and its delivery is retried, all while the page is open."""
    daemon = Daemon(folder)
    live(browser, daemon.address)
    marked(browser)
    browser.until_text("#active", "No run is watched now.")
    daemon.world.switch("refuse", True)
    daemon.world.run_is("run_new", "pending")
    browser.type("#add [name=run]", "run_new")
    browser.type("#add [name=name]", "nightly report", Keys.ENTER)
    browser.until_text("#message", "nightly report is watched.")
    browser.until_text("#active", "nightly report", "run_new", "pending")
    equal("the form is empty", browser.script("return document.querySelector('#add [name=run]').value"), "")
    # One that another client adds.
    daemon.add("run_other", "running", name="from elsewhere")
    browser.until_text("#active", "from elsewhere")
    daemon.world.run_is("run_new", "running")
    browser.until_text("#active", "nightly report", "running")
    daemon.world.run_is("run_new", "failed")
    browser.until_text("#ended", "nightly report", "failed")
    browser.until_gone("#active", "nightly report")
    browser.until_text("#deliveries", "nightly report", "run.failed", "waits, retry in", "1 of 2", "503")
    browser.until_text("#deliveries", "given up", "1 of 1")
    browser.until_text("#share", "1 waiting", "1 given up")
    browser.until_text("#sinks", "ops", "webhook", "dead", "command")
    browser.until_text("#providers", "crewship", "closed: requests flow")
    daemon.world.switch("refuse", False)
    browser.click("#deliveries", "Retry: run.failed to ops")
    browser.until_text("#message", "The delivery to ops is tried again now.")
    within(60, "the receiver got it", lambda: daemon.world.accepted("run_new"))
    browser.until_gone("#deliveries", "503")
    browser.click("#sinks", "Retry all: dead")
    browser.until_text("#message", "1 delivery to dead: tried again now.")
    still_marked(browser)
    # A finished run is watched anew only after a question.
    daemon.world.run_is("run_new", "running")
    browser.type("#add [name=run]", "run_new", Keys.ENTER)
    browser.until_text("#question", "nightly report is watched already, and failed.")
    browser.click("#confirm", "Watch again")
    browser.until_text("#active", "run_new", "running")
    # A mistake is reported.
    browser.type("#add [name=run]", "no such run", Keys.ENTER)
    browser.until_text("#message", "no such run")
    browser.axe("the page with runs")
    return daemon


def test_removal(browser, folder):
    """A watch is removed after a question, and one with open deliveries after a second one."""
    daemon = Daemon(folder)
    daemon.world.switch("refuse", True)
    daemon.add("run_going", "running", name="going")
    daemon.add("run_over", "succeeded", name="over")
    live(browser, daemon.address)
    browser.until_text("#deliveries", "over", "503")
    browser.click("#active", "Remove: going")
    browser.until_text("#question", "Stop watching going", "The run itself is not stopped.")
    browser.axe("a question")
    browser.click("#confirm", "Cancel")
    equal("going is still watched", daemon.request("GET", "/v1/watches/run_going")[0], 200)
    browser.click("#active", "Remove: going")
    browser.click("#confirm", "Remove")
    browser.until_text("#message", "going is no longer watched.")
    browser.until_text("#active", "No run is watched now.")
    equal("going is gone", daemon.request("GET", "/v1/watches/run_going")[0], 404)
    browser.click("#ended", "Remove: over")
    browser.click("#confirm", "Remove")
    browser.until_text("#question", "Deliveries about over are still open. Give them up?")
    browser.click("#confirm", "Give up and remove")
    browser.until_text("#ended", "No run has ended yet.")
    equal("over is gone", daemon.request("GET", "/v1/watches/run_over")[0], 404)
    # From the view of a run, which leads back.
    daemon.add("run_third", "running")
    live(browser, daemon.address + "runs/crewship:run_third")
    browser.click("main", "Remove")
    browser.click("#confirm", "Remove")
    within(60, "the view of everything", lambda: browser.driver.current_url == daemon.address)
    return daemon


def test_one_run(browser, folder):
    """The view of a run shows what happened to it and its deliveries, and follows it."""
    daemon = Daemon(folder)
    daemon.world.switch("refuse", True)
    (daemon.world.folder / "more/run_one").write_text(json.dumps({"output": {"pages": 3, "text": "done"}}))
    daemon.add("run_one", "pending", name="one run", labels={"team": "search"})
    live(browser, daemon.address)
    browser.follow_link("one run")
    browser.until_text("#connection", "live")
    equal("the title", browser.driver.title, "one run · runwatch")
    browser.until_text("#facts", "pending", "team=search", "Next poll")
    marked(browser)
    daemon.world.run_is("run_one", "running")
    browser.until_text("#timeline", "the watch was added", "pending", "running")
    daemon.world.run_is("run_one", "succeeded")
    browser.until_text("#timeline", "verdict: ✓ succeeded", "ops", "run.succeeded was not delivered", "503")
    browser.until_text("#deliveries", "ops", "waits, retry in", "dead", "its events leave out")
    browser.until_text("#output pre", '"pages": 3')
    browser.until_text("#share", "1 waiting")
    daemon.world.switch("refuse", False)
    browser.click("#deliveries", "Retry: run.succeeded to ops")
    browser.until_text("#timeline", "run.succeeded was delivered")
    browser.until_text("#share", "1 delivered")
    still_marked(browser)
    labels = browser.script("return [...document.querySelectorAll('#plot svg')].map((plot) => plot.ariaLabel)")
    equal("the plot of states", labels[0], "States: pending, then running, then succeeded")
    equal("the plot of attempts", labels[1], "Attempts to ops: 1 delivered, 1 failed")
    equal("its bars", browser.script("return document.querySelectorAll('#plot rect').length"), 3)
    holds("there is no plot of durations without data", not browser.find("#usual").is_displayed())
    link = browser.find("#run-url")
    holds("it leads to the run", link.get_attribute("href").endswith("/page/run_one"))
    browser.axe("the view of a run")
    browser.open(daemon.address + "runs/crewship:run_none")
    browser.until_text("main", "run_none is not watched")
    browser.axe("a run that is not watched")
    return daemon


def test_durations(browser, folder):
    """A run stands among the durations of its group, with the time left."""
    daemon = Daemon(folder)

    def run_has(run_id, **fields):
        (daemon.world.folder / "more" / run_id).write_text(json.dumps(fields))

    # Each started at 00:00:02.
    for number, end in enumerate(("00:42", "00:46", "01:03")):
        run_has(f"run_{number}", completed_at=f"2026-01-01T00:{end}Z")
        daemon.add(f"run_{number}", "succeeded")
    # A clock that is ahead makes a run that has not begun; its time does not pass during the test.
    started = datetime.now(timezone.utc) + timedelta(days=1)
    run_has("run_new", started_at=started.isoformat())
    daemon.add("run_new", "running")
    daemon.add("run_late", "running")
    run_has("run_other", deployment_id="dep_2")
    daemon.add("run_other", "running")
    live(browser, daemon.address)
    browser.until_text("#active", "Left", "1:01 left", "longer than usual")
    live(browser, daemon.address + "runs/run_new")
    browser.until_text("#usual", "Durations of its group", "3 runs, usually 0:44; this one 0:00")
    browser.until_text("#facts", "Usually", "0:44", "Group", "dep_1", "1:01 left")
    equal("its marks", browser.script("return document.querySelectorAll('#usual line:not(.base)').length"), 4)
    browser.axe("the durations of a group")
    live(browser, daemon.address + "runs/run_2")
    browser.until_text("#usual", "3 runs, usually 0:44; this one 1:01")
    live(browser, daemon.address + "runs/run_other")
    browser.until_text("#facts", "dep_2")
    holds("there is no plot without a history", not browser.find("#usual").is_displayed())
    return daemon


def test_session(browser, folder):
    """Login with the token, and logout; the cookie is not for scripts; a link on another site leads to the page."""
    daemon = Daemon(folder, token="a-token-of-the-test")
    daemon.add("run_one", "running", name="one run")
    # Refused requests are what is tested here; they are errors in the console only.
    browser.open(daemon.address)
    browser.until_text("h1", "Log in")
    browser.axe("the login form")
    holds("nothing is shown before", "one run" not in browser.driver.page_source)
    browser.type("#login input", "wrong", Keys.ENTER)
    browser.until_text("#hint", "This is not the token.")
    browser.axe("the login form after a wrong token")
    browser.type("#login input", "a-token-of-the-test", Keys.ENTER)
    browser.until_text("#active", "one run")
    browser.until_text("#connection", "live")
    equal("no cookie is for scripts", browser.script("return document.cookie"), "")
    [cookie] = browser.driver.get_cookies()
    equal("the cookie", (cookie["httpOnly"], cookie["sameSite"], cookie["path"]), (True, "Strict", "/"))
    holds("the token is not in it", daemon.token not in cookie["value"])
    browser.click("#active", "Remove: one run")
    browser.click("#confirm", "Remove")
    browser.until_text("#active", "No run is watched now.")
    daemon.add("run_two", "running", name="second run")

    # The link of a chat, say: the browser sends no cookie with it.
    page = f'<a href="{daemon.address}runs/crewship:run_two">the run</a>'.encode()

    class Other(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(page)

        def log_message(self, *_):
            pass

    other = ThreadingHTTPServer(("127.0.0.1", 0), Other)
    threading.Thread(target=other.serve_forever, daemon=True).start()
    browser.open(f"http://127.0.0.1:{other.server_port}/")
    browser.follow_link("the run")
    browser.until_text("h1", "second run")
    # That other page learns and changes nothing.
    browser.open(f"http://127.0.0.1:{other.server_port}/")
    browser.expected.append("policy")
    tries = browser.driver.execute_async_script("""
        const [base, done] = arguments;
        const settle = (promise) => promise.then((answer) => `${answer.type} ${answer.status}`, () => "refused");
        Promise.all([
            settle(fetch(base + "v1/watches", { credentials: "include" })),
            settle(fetch(base + "v1/watches/run_two", { method: "DELETE", credentials: "include" })),
            settle(fetch(base + "v1/watches", { method: "POST", mode: "no-cors", credentials: "include", body: '{"run_id":"run_x"}' })),
        ]).then(done);""", daemon.address)
    equal("what it tries", tries, ["refused", "refused", "opaque 0"])
    equal("nothing was removed", daemon.request("GET", "/v1/watches/run_two")[0], 200)
    equal("nothing was added", daemon.request("GET", "/v1/watches/run_x")[0], 404)
    other.shutdown()

    live(browser, daemon.address)
    browser.click("header", "Log out")
    browser.until_text("h1", "Log in")
    browser.open(daemon.address + "runs/crewship:run_two")
    browser.until_text("h1", "Log in")
    # The form leads to where one wanted to go.
    browser.type("#login input", "a-token-of-the-test", Keys.ENTER)
    browser.until_text("h1", "second run")
    # A token that changes ends the session under the open page.
    (daemon.folder / "token").write_text("another-token")
    daemon.token = "another-token"
    browser.until_text("h1", "Log in")
    return daemon


def test_two_thousand_watches(browser, folder):
    """Two thousand watches: a page of rows is drawn, the rest is found by the filter, and nothing stands still."""
    daemon = Daemon(folder, watch='')
    config = (folder / "config.toml").read_text().replace('"200ms"', '"60s"').replace('"500ms"', '"60s"')
    (folder / "config.toml").write_text(config)
    daemon.end(signal.SIGTERM)
    daemon.start()
    connection = http.client.HTTPConnection("localhost", daemon.port, timeout=60)
    for number in range(2000):
        (daemon.world.folder / f"runs/run_{number:04}").write_text("running")
        body = {"run_id": f"run_{number:04}", "name": f"report {number:04} of many"}
        connection.request("POST", "/v1/watches", json.dumps(body))
        answer = connection.getresponse()
        answer.read()
        equal("adding", answer.status, 201)
    connection.close()
    live(browser, daemon.address)
    browser.until_text("#active-count", "(2,000)")
    rows = "return document.querySelectorAll('#active tbody tr').length"
    equal("rows in the document", browser.script(rows), 100)
    browser.until_text("[data-of=active]", "1–100 of 2,000")
    browser.until_text("#active", "report 1999 of many")
    browser.click("[data-of=active]", "Older")
    browser.until_text("[data-of=active]", "101–200 of 2,000")
    equal("the focus stays", browser.focused(), "Older")
    browser.type("#filter input", "REPORT 0042")
    browser.until_text("#active-count", "(1 of 2,000)")
    browser.until_text("#active", "report 0042 of many")
    marked(browser)
    # Many ends at once.
    for number in range(1000, 1200):
        daemon.world.run_is(f"run_{number:04}", "failed")
    daemon.process.send_signal(signal.SIGHUP)
    for number in range(1000, 1200):
        equal("removing", daemon.request("DELETE", f"/v1/watches/run_{number:04}?force=true")[0], 204)
        daemon.request("POST", "/v1/watches", {"run_id": f"run_{number:04}", "name": f"again {number:04}"})
    browser.script("const input = document.querySelector('#filter input'); input.value = ''; input.dispatchEvent(new Event('input'))")
    browser.until_text("#ended-count", "(200)")
    browser.until_text("#active-count", "(1,800)")
    browser.until_text("#ended", "again 11")
    still_marked(browser)
    longest = browser.script("return window.longest")
    say(f"the longest time in which the page did not react: {longest:.0f} ms")
    # A page that drew two thousand rows at each event would stand still for minutes.
    holds(f"nothing stands still: {longest} ms", longest < 5000)
    browser.axe("a page of many runs")
    return daemon


def test_sizes_and_schemes(browser, folder):
    """360 and 1280 pixels, light and dark: everything has its place, and axe finds nothing."""
    daemon = Daemon(folder)
    daemon.world.switch("refuse", True)
    daemon.add("run_" + "x" * 120, "running", name="a name that goes on and on " * 6)
    daemon.add("run_one", "failed", name="one run")
    for path, ready in [("", "#deliveries"), ("runs/run_one", "#timeline")]:
        for width in (360, 1280):
            for scheme in ("light", "dark"):
                browser.size(width, 800)
                browser.prefers(color_scheme=scheme)
                live(browser, daemon.address + path)
                browser.until_text(ready, "503" if path or width > 360 else "waits")
                what = f"/{path} at {width} px, {scheme}"
                browser.fits(what)
                browser.axe(what)
                color = browser.script("return getComputedStyle(document.body).backgroundColor")
                equal(what, color, "rgb(20, 23, 26)" if scheme == "dark" else "rgb(255, 255, 255)")
    browser.prefers(reduced_motion="reduce")
    live(browser, daemon.address)
    browser.until_text("#active", "running")
    moving = browser.script("return document.getAnimations().length")
    equal("nothing moves", moving, 0)
    browser.prefers()
    live(browser, daemon.address)
    within(60, "what runs, moves", lambda: browser.script("return document.getAnimations().length") > 0)
    return daemon


def test_keyboard(browser, folder):
    """Everything with the keyboard alone, and one always sees where one is."""
    daemon = Daemon(folder)
    daemon.world.switch("refuse", True)
    daemon.world.run_is("run_typed", "running")
    daemon.add("run_over", "succeeded")
    live(browser, daemon.address)
    browser.until_text("#deliveries", "503")
    browser.press(Keys.TAB)
    equal("the first place", browser.focused(), "Skip to the content")
    browser.press(Keys.ENTER)
    browser.tab_to("Run")
    browser.press("run_typed", Keys.TAB, "typed", Keys.ENTER)
    browser.until_text("#active", "typed")
    equal("the next run can be typed", browser.focused(), "Run")
    browser.tab_to("Remove: typed")
    browser.press(Keys.ENTER)
    browser.until_text("#question", "Stop watching typed")
    equal("what is harmless has the focus", browser.focused(), "Cancel")
    browser.press(Keys.ESCAPE)
    within(60, "the question is gone", lambda: not browser.find("#confirm").is_displayed())
    equal("the focus is back", browser.focused(), "Remove: typed")
    browser.press(Keys.ENTER)
    within(60, "the question", lambda: browser.find("#confirm").is_displayed())
    browser.press_with(Keys.SHIFT, Keys.TAB)
    equal("backwards", browser.focused(), "Remove")
    browser.press(Keys.ENTER)
    browser.until_text("#active", "No run is watched now.")
    within(60, "the focus is near", lambda: browser.script("return document.activeElement.id") == "active-title")
    daemon.world.switch("refuse", False)
    browser.tab_to("Retry: run.succeeded to ops")
    browser.press(Keys.SPACE)
    browser.until_text("#deliveries", "Nothing waits, and nothing was given up.")
    browser.script("document.activeElement.blur()")
    browser.tab_to("run_over")
    browser.press(Keys.ENTER)
    browser.until_text("h1", "run_over")
    return daemon


def test_hostile_texts(browser, folder):
    """Names, states, errors, outputs and answers of receivers are text, whatever they hold."""
    daemon = Daemon(folder)
    more = {"error_message": HOSTILE + " long" * 2000, "output": {HOSTILE: [HOSTILE] * 3}, "deployment_id": HOSTILE}
    (daemon.world.folder / "more/run_bad").write_text(json.dumps(more))
    name = "".join(character for character in HOSTILE if character >= " ")[:200]
    daemon.add("run_bad", "running", name=name, labels={"team": "<b>שלום</b>"})
    (daemon.world.folder / "more/run_odd").write_text(json.dumps({"status": HOSTILE}))
    daemon.add("run_odd", "running", name="odd")
    live(browser, daemon.address)
    browser.until_text("#active", "<img src=x onerror=pwned()>", "שלום", "👩")
    daemon.world.run_is("run_bad", "failed")
    browser.until_text("#ended", "<script>pwned()</script>")
    for address in [daemon.address, daemon.address + "runs/run_bad", daemon.address + "runs/run_odd"]:
        live(browser, address)
        browser.until_text("main", "<img src=x onerror=pwned()>")
        foreign = "return document.querySelectorAll('img, iframe, object, script:not([src$=\"page.js\"]), main svg[onload]').length"
        equal(f"elements of others at {address}", browser.script(foreign), 0)
        text = browser.script("return document.body.textContent + document.title")
        hidden = [hex(ord(character)) for character in text if character in "\u202e\u202c\u2066\u2069\u200b\x1b\x07"]
        equal(f"characters that are not shown at {address}", hidden, [])
        browser.size(360, 800)
        browser.fits(address)
        browser.axe(address)
        browser.size(1280, 900)
    browser.until_text("#facts", "<img src=x onerror=pwned()>")
    live(browser, daemon.address + "runs/run_bad")
    browser.until_text("#output pre", "<script>pwned()</script>", "long long")
    return daemon


def test_a_restart_under_the_open_page(browser, folder):
    """The page says that the connection is lost, and goes on by itself, with what happened meanwhile."""
    daemon = Daemon(folder)
    daemon.add("run_one", "running", name="one run")
    live(browser, daemon.address)
    marked(browser)
    browser.until_text("#active", "one run", "running")
    daemon.end(signal.SIGKILL)
    browser.until_text("#connection", "Connection lost", "Trying again.")
    browser.axe("a lost connection")
    browser.click("#active", "Remove: one run")
    browser.click("#confirm", "Remove")
    browser.until_text("#message", "The daemon does not answer; nothing was changed.")
    daemon.world.run_is("run_one", "canceled")
    daemon.start()
    browser.until_text("#connection", "live")
    browser.until_text("#ended", "one run", "canceled")
    still_marked(browser)
    return daemon


def test_without_script(browser, folder):
    """Without script, the page is a list of the moment at which it was loaded; one can log in and out."""
    daemon = Daemon(folder, token="a-token-of-the-test")
    daemon.world.switch("refuse", True)
    daemon.add("run_one", "failed", name="one run")
    daemon.add("run_two", "running", name="second run")
    daemon.until("run_one", "a failed attempt", lambda watch: "503" in json.dumps(watch))
    browser.command("Emulation.setScriptExecutionDisabled", value=True)
    try:
        source = lambda: browser.driver.page_source  # noqa: E731
        browser.driver.get(daemon.address)
        browser.find("#login input").send_keys("a-token-of-the-test", Keys.ENTER)
        browser.find("#active")
        for part in ["one run", "second run", "failed", "running", "503", "given up", "crewship", "webhook"]:
            holds(f"{part} is there", part in source())
        holds("what needs script is not there", not browser.find("#add").is_displayed())
        browser.follow_link("one run")
        browser.find("#timeline")
        for part in ["the watch was added", "verdict: ", "run.failed", "503"]:
            holds(f"{part} is there", part in source())
        browser.driver.find_element("xpath", "//button[text()='Log out']").click()
        browser.find("#login input")
    finally:
        browser.command("Emulation.setScriptExecutionDisabled", value=False)
    browser.driver.get("about:blank")
    return daemon


def pictures(browser, folder):
    """Writes the pictures of docs/: the overview in both schemes, the view of a run, a narrow window."""
    daemon = Daemon(folder)
    daemon.world.switch("refuse", True)
    daemon.add("run_demo_report", "pending", "running", "succeeded", name="weekly report")
    daemon.until("run_demo_report", "its end", lambda watch: watch["verdict"])
    (daemon.world.folder / "more/run_demo_research").write_text(json.dumps({"error_message": "OpenAI API rate limit exceeded"}))
    daemon.add("run_demo_research", "running", name="market research", labels={"team": "search"})
    daemon.add("run_demo_outreach", "running", name="outreach mails")
    daemon.add("run_demo_sync", "pending", name="nightly sync")
    daemon.until("run_demo_research", "it runs", lambda watch: watch["status"] == "running")
    daemon.world.run_is("run_demo_research", "failed")
    daemon.until("run_demo_research", "a failed attempt", lambda watch: "503" in json.dumps(watch))
    for name, path, size, scheme in [
        ("page", "", (1100, 760), "light"), ("page-dark", "", (1100, 760), "dark"),
        ("page-run", "runs/run_demo_research", (1100, 820), "light"), ("page-narrow", "", (360, 760), "light"),
    ]:
        browser.size(*size)
        browser.prefers(color_scheme=scheme, reduced_motion="reduce")
        live(browser, daemon.address + path)
        browser.until_text("#timeline" if path else "#ended", "failed")
        browser.until_text("#share", "given up")
        picture = PICTURES / f"{name}.png"
        browser.picture(picture)
        subprocess.run(["pngquant", "--force", "--strip", "--output", picture, "64", picture], check=True)
        holds(f"{picture} is small", picture.stat().st_size <= 100 * 1024)
        say(f"{picture}: {picture.stat().st_size} bytes")
    return daemon


def main(arguments):
    tests = {name.removeprefix("test_"): test for name, test in globals().items() if name.startswith("test_")}
    if "--pictures" in arguments:
        tests = {"pictures": pictures}
    elif arguments:
        tests = {name: test for name, test in tests.items() if any(name.startswith(wanted) for wanted in arguments)}
    holds(f"there is a test that begins with {arguments}", tests)
    failed = []
    for name, test in tests.items():
        step(f"{name}: {test.__doc__}")
        browser = Browser()
        try:
            with tempfile.TemporaryDirectory() as folder:
                daemon = test(browser, Path(folder))
                browser.check()
                daemon.stop()
        except Exception:
            traceback.print_exc(file=sys.stdout)
            failed.append(name)
            browser.picture(PROGRAM.parent.parent / "page" / f"{name}.png")
        finally:
            browser.quit()
            for daemon in Daemon.all:
                daemon.kill()
            Daemon.all.clear()
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")
    print(f"\n{len(tests)} tests passed")


main(sys.argv[2:])
