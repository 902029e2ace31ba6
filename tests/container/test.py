#!/usr/bin/env python3
"""Tries the container image: test.py FOLDER, in which `tree` is what packaging/image has built. Runs as
root in a network namespace of its own, started by tests/container/run.

No engine is needed: tests/container/engine.py lays the tree out as the Dockerfile says and runs it with
namespaces and a changed root. The API, the receivers and the name server run outside of that.
"""

import http.client
import json
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
import traceback
from pathlib import Path

import yaml

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from parts import Authority, Failed, World, equal, holds, run, say, step, within  # noqa: E402
from engine import Container, Image, expect_read_only  # noqa: E402

REPOSITORY = HERE.parent.parent
FOLDER = Path(sys.argv[1]).resolve()
TREE, WORK = FOLDER / "tree", FOLDER / "work"
RUNWATCH = "/usr/bin/runwatch"
STATE = "/var/lib/runwatch"

# What Kubernetes runs, of the kinds in the examples.
WORKLOADS = {"Deployment", "Job", "StatefulSet"}

# The token of the control interface, where an example has one.
TOKEN = "token-of-the-test-with-32-characters"

# Every file of the tree.
FILES = {
    "etc/nsswitch.conf", "etc/ssl/certs/ca-certificates.crt", "usr/bin/runwatch", "usr/share/doc/runwatch/LICENSE",
    "usr/share/doc/runwatch/LICENSE-APACHE", "usr/share/doc/runwatch/LICENSE-MIT",
}
FOLDERS = {
    "etc", "etc/runwatch", "etc/ssl", "etc/ssl/certs", "usr", "usr/bin", "usr/share", "usr/share/doc",
    "usr/share/doc/runwatch", "var", "var/lib", "var/lib/runwatch",
}

# Short intervals and a large budget, so that nothing is slow but what is meant to be.
FAST = {
    "RUNWATCH_API__REQUESTS_PER_MINUTE": "1000000",
    "RUNWATCH_WATCH__INITIAL_INTERVAL": "100ms",
    "RUNWATCH_WATCH__MAX_INTERVAL": "300ms",
}


class Test:
    def __init__(self):
        shutil.rmtree(WORK, ignore_errors=True)
        WORK.mkdir()
        self.processes, self.containers, self.count = [], [], 0
        authority = Authority(WORK / "authority")
        # The API's own name and port, so that the default address is what is tried.
        names = ("DNS:api.crewship.dev", "DNS:backend.test")
        self.api = World(WORK / "api", authority, names, "127.0.0.1:443")
        self.program = World(WORK / "program", address="127.0.0.1:8080")
        shutil.copy(self.api.folder / "secret", self.program.folder / "secret")
        self.trusted = [(authority.pem, "/etc/test/authority.pem")]
        (WORK / "names").write_text("127.0.0.1 api.crewship.dev\n")
        # One name by DNS, the other by the file.
        self.files = {
            "hosts": "127.0.0.1 localhost backend.test\n", "resolv.conf": "nameserver 127.0.0.1\noptions timeout:1\n",
        }

    def start(self):
        self.processes.append(subprocess.Popen([sys.executable, str(HERE.parent / "dns.py"), str(WORK / "names")]))
        self.api.start()
        self.program.start()
        self.image = Image(REPOSITORY / "Dockerfile", TREE, WORK / "image")

    def end(self):
        for container in self.containers:
            container.end()
        for process in self.processes:
            process.kill()
            process.wait()
        self.api.stop()
        self.program.stop()

    def container(self, command=None, environment=(), mounts=(), trust=True, **more):
        self.count += 1
        environment = FAST | dict(environment)
        if trust:
            environment["SSL_CERT_FILE"] = "/etc/test/authority.pem"
        container = Container(
            self.image, WORK / f"container-{self.count}", command, environment=environment,
            mounts=[*mounts, *self.trusted], files=self.files, **more,
        )
        self.containers.append(container)
        return container

    def state(self):
        """A fresh volume: it takes owner and mode from the image, as Docker's do."""
        self.count += 1
        state = WORK / f"state-{self.count}"
        run("cp", "-a", self.image.root / STATE.strip("/"), state)
        return state

    def hook(self, path):
        """A receiver, by variables alone, for the image as it is."""
        return {
            "CREWSHIP_API_KEY": (self.api.folder / "key").read_text().strip(),
            "RUNWATCH_SINKS__HOOK__TYPE": "webhook",
            "RUNWATCH_SINKS__HOOK__URL": f"https://backend.test/{path}",
            "RUNWATCH_SINKS__HOOK__SECRET": (self.api.folder / "secret").read_text().strip(),
            "RUNWATCH_SINKS__HOOK__RETRY_SCHEDULE": "1s,1s,1s,1s,1s,1s,1s,1s,1s,1s",
        }

    def well(self, container, argv=None):
        within(30, "the container is well", lambda: container.execute(*(argv or self.image.healthcheck))[0] == 0)


def post_run(run_id, port=9477, token=None):
    """Hands a run over at the control port, as a program beside it does."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    connection.request("POST", "/v1/watches", json.dumps({"run_id": run_id}), headers)
    status = connection.getresponse().status
    connection.close()
    return status


def refused(port=9477):
    try:
        post_run("run_refused", port)
    except ConnectionRefusedError:
        return True
    except ConnectionError:
        # It had not been accepted yet when the listener was closed.
        return False
    return False


### The image

def the_tree(test):
    step("the tree has what it must have and no more")
    found = {True: set(), False: set()}
    for path in TREE.rglob("*"):
        holds(f"{path} is no link", not path.is_symlink())
        found[path.is_dir()].add(str(path.relative_to(TREE)))
    equal("files", found[False], FILES)
    equal("folders", found[True], FOLDERS)
    binary = TREE / "usr/bin/runwatch"
    kind = run("file", "--brief", binary)
    holds(f"the program is static: {kind}", "static" in kind and "dynamically linked" not in kind)
    holds("the program needs no library", "statically linked" in run("ldd", binary, code=None))
    for path in sorted(FILES):
        say(f"{(TREE / path).stat().st_size:>10} {path}")
    total = sum((TREE / path).stat().st_size for path in FILES)
    say(f"{total:>10} bytes in all")
    holds("it is small: below 32 MiB", total < 32 << 20)


def the_labels(test):
    step("the labels of the image")
    given = {"VERSION": "1.2.3", "REVISION": "0f1cfe9", "CREATED": "2026-11-28T12:00:00Z", "SOURCE": "https://example.org"}
    equal("arguments of the image", test.image.arguments, dict.fromkeys(given, ""))
    # As annotations of OCI (image-spec, annotations.md) are named, each with its value or the argument with it.
    prefix = "org.opencontainers.image."
    labels = {name.removeprefix(prefix): value for name, value in test.image.labels.items()}
    equal("labels", {name for name in test.image.labels if not name.startswith(prefix)}, set())
    for name, argument in (("version", "VERSION"), ("revision", "REVISION"), ("created", "CREATED"),
                           ("source", "SOURCE"), ("url", "SOURCE")):
        equal(f"the label {name}", labels.pop(name), f"${argument}")
    equal("labels with a text", sorted(labels), ["description", "licenses", "title"])
    manifest = tomllib.loads((REPOSITORY / "Cargo.toml").read_text())["package"]
    equal("the description", labels["description"], manifest["description"])
    equal("the licenses", labels["licenses"], manifest["license"])
    base, digest = test.image.base.split("@")
    equal("the image that it is built in", base, f"rust:{manifest['rust-version']}-bookworm")
    holds("it is named by digest", re.fullmatch("sha256:[0-9a-f]{64}", digest))


def as_it_is(test):
    step("as it is: one run is watched to its webhook, with nothing set but the key and a receiver")
    state = test.state()
    container = test.container(
        environment=test.hook("plain") | {"RUNWATCH_CONTROL__LISTEN": f"127.0.0.1:{test.image.port}"},
        writable=[(state, STATE)],
    )
    test.well(container)
    expect_read_only(container, test.image)
    test.api.run_is("run_plain", "pending", "running", "running", "succeeded")
    within(20, "the control port takes a run", lambda: post_run("run_plain") in (200, 201))
    within(20, "its webhook", lambda: test.api.accepted("run_plain"))
    equal("the webhook", test.api.accepted("run_plain")[0][0::2], ["/plain", "run.succeeded"])
    code, shown = container.execute(RUNWATCH, "show", "run_plain")
    holds(f"it answers inside: {shown}", code == 0 and "succeeded" in shown)

    step("a desktop is refused, since there is none in a container")
    checked = test.container(["config", "check"], {"RUNWATCH_SINKS__SCREEN__TYPE": "desktop"})
    equal("exit code", checked.wait(20), 2)
    holds(f"it says why: {checked.output()}", "sinks.screen: this build has no desktop notifications" in checked.output())

    step("well, and unwell when it makes no progress")
    equal("ready", container.execute(RUNWATCH, "healthcheck", "--ready"), (0, "ready\n"))
    os.kill(container.process(), 19)
    began = time.monotonic()
    code, printed = container.execute(*test.image.healthcheck)
    holds(f"unwell while it stands still: {code} {printed}", code == 1 and "no answer in time" in printed)
    holds("it says so within the 5 s that it is given", time.monotonic() - began < 5)
    os.kill(container.process(), 18)
    test.well(container)

    step("a stop finishes the delivery under way, and takes no new work meanwhile")
    test.api.switch("hold-webhook", True)
    test.api.run_is("run_held", "failed")
    equal("a run is taken", post_run("run_held"), 201)
    within(20, "its webhook is under way", lambda: ["webhook", test.api.accepted("run_held")[0][1]]
           in test.api.lines("held") if test.api.accepted("run_held") else False)
    container.signal()
    within(10, "new work is refused", refused)
    holds("it is still there for what is under way", container.engine.poll() is None)
    test.api.switch("hold-webhook", False)
    equal("exit code", container.wait(15), 0)

    step("a stop cuts off what takes too long, and the next start takes it up")
    container = test.container(environment=test.hook("plain"), writable=[(state, STATE)])
    test.well(container)
    equal("what was finished at the stop", len(test.api.accepted("run_held")), 1)
    test.api.switch("hang", True)
    test.api.run_is("run_hanging", "succeeded")
    equal("added", container.execute(RUNWATCH, "add", "run_hanging")[0], 0)
    within(20, "its webhook hangs", lambda: [line for line in test.api.lines("hanging") if line[3] == "run_hanging"])
    began = time.monotonic()
    equal("exit code", container.stop(), 0)
    say(f"stopped after {time.monotonic() - began:.1f} s")
    holds("within the 15 s that compose.yaml grants", time.monotonic() - began < 15)
    holds("the log says what stays", "kept for the next start" in container.output())
    test.api.switch("hang", False)
    container = test.container(environment=test.hook("plain"), writable=[(state, STATE)])
    within(30, "its webhook", lambda: test.api.accepted("run_hanging"))
    equal("one ID", {line[1] for line in test.api.lines("hanging") + test.api.accepted() if line[3] == "run_hanging"},
          {test.api.accepted("run_hanging")[0][1]})
    within(20, "it is stored as delivered", lambda: not open_deliveries(container))
    equal("exit code", container.stop(), 0)
    equal("webhooks of each run", [len(test.api.accepted(f"run_{name}")) for name in ("plain", "held", "hanging")],
          [1, 1, 1])


def open_deliveries(container):
    code, printed = container.execute(RUNWATCH, "deliveries", "--json")
    equal("deliveries", code, 0)
    listed = json.loads(printed)
    listed = listed["deliveries"] if isinstance(listed, dict) else listed
    return [delivery for delivery in listed if delivery["state"] in ("pending", "sending")]


def trust(test):
    step("TLS trusts the authorities of the image and no others")
    container = test.container(environment=test.hook("trust"), trust=False, writable=[(test.state(), STATE)])
    test.well(container)
    equal("added", container.execute(RUNWATCH, "add", "run_untrusted")[0], 0)
    within(20, "the certificate is refused",
           lambda: "certificate" in container.execute(RUNWATCH, "show", "run_untrusted")[1])
    equal("polls", test.api.polls("run_untrusted"), 0)
    equal("exit code", container.stop(), 0)


def exit_when_done(test):
    step("--exit-when-done ends with the code of the worst verdict")
    for statuses, code in ((("running", "succeeded"), 0), (("running", "failed"), 1), (("canceled",), 3)):
        run_id = f"run_done_{code}"
        test.api.run_is(run_id, *statuses)
        config = WORK / "done.toml"
        config.write_text(f'[[watches]]\nrun_id = "{run_id}"\n')
        container = test.container(
            ["daemon", "--exit-when-done"], test.hook("done"), [(config, "/etc/runwatch/config.toml")],
            writable=[(test.state(), STATE)],
        )
        equal(f"exit code after {statuses[-1]}", container.wait(30), code)
        equal("webhooks", len(test.api.accepted(run_id)), 1)


def without_a_place(test):
    step("without a place to keep state it says so, or says what does not hold")
    # Nothing is set, as in an image that somebody else made of the program.
    bare = {name: "" for name in test.image.environment}
    container = test.container(environment=test.hook("none") | bare)
    equal("exit code without a place", container.wait(20), 2)
    for part in ("store.path", "STATE_DIRECTORY", ":memory:"):
        holds(f"it names {part}: {container.output()}", part in container.output())
    # The image's own place, on the read-only root.
    container = test.container(environment=test.hook("none"))
    equal("exit code on a read-only root", container.wait(20), 1)
    for part in (STATE, "Read-only file system", ":memory:"):
        holds(f"it names {part}: {container.output()}", part in container.output())
    # A volume that belongs to somebody else.
    foreign = WORK / "foreign"
    foreign.mkdir(mode=0o755)
    container = test.container(environment=test.hook("none"), writable=[(foreign, STATE)])
    equal("exit code on a foreign volume", container.wait(20), 1)
    for part in (STATE, "Permission denied", "user 65532", ":memory:"):
        holds(f"it names {part}: {container.output()}", part in container.output())
    # A file that can be read only, in a place that can be written to: nothing is pretended.
    state = test.state()
    container = test.container(environment=test.hook("none"), writable=[(state, STATE)])
    test.well(container)
    equal("exit code", container.stop(), 0)
    for mode, owner in ((0o444, 0), (0o644, 0)):
        os.chown(state / "runwatch.db", owner, owner)
        (state / "runwatch.db").chmod(mode)
        container = test.container(environment=test.hook("none"), writable=[(state, STATE)])
        equal("exit code with a file that cannot be written", container.wait(20), 1)
        holds(f"it names the file: {container.output()}", "runwatch.db" in container.output())

    step("in memory it works, and says at the end what is lost")
    container = test.container(
        environment=test.hook("memory") | {
            "RUNWATCH_STORE__PATH": ":memory:", "RUNWATCH_CONTROL__SOCKET": "/run/runwatch.sock",
            "RUNWATCH_SINKS__HOOK__RETRY_SCHEDULE": "1h",
        },
        writable=[(test.state(), "/run")],
    )
    test.well(container)
    test.api.switch("refuse", True)
    test.api.run_is("run_lost", "failed")
    test.api.run_is("run_going", "running")
    equal("added", container.execute(RUNWATCH, "add", "run_lost", "run_going")[0], 0)
    within(20, "its webhook is refused", lambda: [line for line in test.api.lines("refused") if line[3] == "run_lost"])
    within(20, "the refusal is stored", lambda: "503" in container.execute(RUNWATCH, "show", "run_lost")[1])
    equal("exit code", container.stop(), 0)
    test.api.switch("refuse", False)
    for part in ("the store is in memory", "watches and messages are lost", "watches=1", "messages=1"):
        holds(f"it says {part}: {container.output()}", part in container.output())


def no_temporary_files(test):
    step("with many runs it needs no place for temporary files, and little memory")
    runs = [f"run_many_{number}" for number in range(1000)]
    for run_id in runs:
        test.api.run_is(run_id, "running")
    container = test.container(
        environment=test.hook("many") | {
            "RUNWATCH_CONTROL__LISTEN": f"127.0.0.1:{test.image.port}", "RUNWATCH_STORE__RETENTION": "1s",
            "RUNWATCH_WATCH__INITIAL_INTERVAL": "2s", "RUNWATCH_WATCH__MAX_INTERVAL": "5s",
        },
        writable=[(test.state(), STATE)],
    )
    test.well(container)
    say(f"most memory with no watches: {container.peak_memory()} KiB")
    connection = http.client.HTTPConnection("127.0.0.1", test.image.port, timeout=20)
    for run_id in runs:
        connection.request("POST", "/v1/watches", json.dumps({"run_id": run_id, "labels": {"team": "x" * 200}}))
        answer = connection.getresponse()
        answer.read()
        equal("status", answer.status, 201)
    connection.close()
    within(60, "each is polled", lambda: len({line[0] for line in test.api.lines("polls")} & set(runs)) == len(runs))
    say(f"most memory with {len(runs)} watches: {container.peak_memory()} KiB")
    for run_id in runs:
        test.api.run_is(run_id, "succeeded")
    within(90, "each is delivered", lambda: len({line[3] for line in test.api.accepted()} & set(runs)) == len(runs))
    within(60, "each is pruned", lambda: json.loads(
        container.execute(RUNWATCH, "list", "--all", "--json")[1])["watches"] == [])
    say(f"most memory after {len(runs)} verdicts and webhooks: {container.peak_memory()} KiB")
    say(f"processor time for all of it: {container.processor_seconds():.2f} s")
    # The examples grant 128 MiB; the rest is for large outputs and for a health check.
    holds("less than half of what the examples grant is enough", container.peak_memory() < 48 << 10)
    equal("exit code", container.stop(), 0)
    holds(f"nothing went wrong: {container.output()}", " ERROR " not in container.output())


def large_outputs(test):
    step("64 runs that end together with 8 MiB each fit into what the examples grant, and memory comes back")
    runs = [f"run_large_{number}" for number in range(64)]
    for run_id in runs:
        test.api.run_is(run_id, "running")
    container = test.container(
        environment=test.hook("large") | {"RUNWATCH_CONTROL__LISTEN": f"127.0.0.1:{test.image.port}"},
        writable=[(test.state(), STATE)],
    )
    test.well(container)
    for run_id in runs:
        equal("status", post_run(run_id), 201)
    within(60, "each is polled", lambda: len({line[0] for line in test.api.lines("polls")} & set(runs)) == len(runs))
    idle = container.memory()
    # The answer has a little more than the output; api.max_response_bytes is 8 MiB.
    (test.api.folder / "large").write_text(str((8 << 20) - 4096))
    for run_id in runs:
        test.api.run_is(run_id, "succeeded")
    within(240, "each is delivered", lambda: len({line[3] for line in test.api.accepted()} & set(runs)) == len(runs))
    (test.api.folder / "large").unlink()
    peak = container.peak_memory()
    say(f"idle {idle} KiB, at most {peak} KiB")
    holds("three quarters of what the examples grant are enough", peak < 96 << 10)
    within(60, "memory is back within 8 MiB of idle", lambda: container.memory() < idle + (8 << 10))
    say(f"at rest {container.memory()} KiB")
    code, shown = container.execute(RUNWATCH, "show", runs[-1], "--json")
    holds("the output is stored whole", code == 0 and len(shown) > (8 << 20) - 4096)
    equal("exit code", container.stop(), 0)
    holds(f"nothing went wrong: {container.output()}", " ERROR " not in container.output())


### The examples

def place_files(test, folder, files, owner, mode):
    for path, text in files.items():
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        os.chown(file, *owner)
        file.chmod(mode)


def secrets(test):
    return {
        "crewship-api-key": (test.api.folder / "key").read_text(),
        "webhook-secret": (test.api.folder / "secret").read_text(),
        "webhook-url": "https://backend.test/job\n",
        "control-token": f"{TOKEN}\n",
    }


def kubernetes_container(test, documents, name):
    """The container of this name in a manifest, with the folders that its volumes are."""
    workload = next(document for document in documents if document["kind"] in WORKLOADS)
    claims = [claim["metadata"]["name"] for claim in workload["spec"].get("volumeClaimTemplates", [])]
    configs = {document["metadata"]["name"]: document["data"] for document in documents
               if document["kind"] == "ConfigMap"}
    pod = workload["spec"]["template"]["spec"]
    spec = next(spec for spec in pod.get("initContainers", []) + pod["containers"] if spec["name"] == name)
    group = pod["securityContext"]["fsGroup"]
    mounts, writable = [], []
    for mount in spec["volumeMounts"]:
        claim = mount["name"] in claims
        volume = {"emptyDir": {}} if claim else next(
            volume for volume in pod["volumes"] if volume["name"] == mount["name"])
        test.count += 1
        folder = WORK / f"volume-{test.count}"
        folder.mkdir()
        if "emptyDir" in volume:
            os.chown(folder, 0, group)
            folder.chmod(0o2777)
            writable.append((folder, mount["mountPath"]))
            continue
        projected = volume["projected"]
        for source in projected["sources"]:
            if "configMap" in source:
                files = configs[source["configMap"]["name"]]
            else:
                holds("the secret has the name of the comment", source["secret"]["name"] == "runwatch")
                files = {item["path"]: secrets(test)[item["key"]] for item in source["secret"]["items"]}
            place_files(test, folder, files, (0, group), projected["defaultMode"])
        holds("what is not state is mounted read-only", mount["readOnly"])
        mounts.append((folder, mount["mountPath"]))
    return spec, mounts, writable


def compose_service(test, name):
    document = yaml.safe_load((REPOSITORY / "config/compose.yaml").read_text())
    spec = document["services"][name]
    mounts, writable = [], []
    for kind, texts in (("configs", None), ("secrets", secrets(test))):
        for use in spec[kind]:
            given = document[kind][use["source"]]["file"]
            text = texts[Path(given).name] if texts else (REPOSITORY / "config" / given).read_text()
            test.count += 1
            place_files(test, WORK, {f"{kind}-{test.count}": text}, (65532, 65532), 0o400)
            mounts.append((WORK / f"{kind}-{test.count}", use["target"]))
    for use in spec["volumes"]:
        volume, place = use.split(":")
        holds("the volume is declared", volume in document["volumes"])
        writable.append((test.state(), place))
    return spec, mounts, writable


def memory(text):
    units = {"Mi": 1 << 20, "m": 1 << 20}
    return next(int(text.removesuffix(unit)) * size for unit, size in units.items() if text.endswith(unit))


def beside_a_program(test, container, run_id):
    """A run goes in at the control port and comes out at the program's own."""
    test.api.run_is(run_id, "running", "running", "failed")
    within(20, "the control port takes a run", lambda: not refused() and post_run(run_id) in (200, 201))
    within(20, "its webhook", lambda: test.program.accepted(run_id))
    equal("the webhook", test.program.accepted(run_id)[0][0::2], ["/runs", "run.failed"])


def examples_fit_their_schemas(test):
    step("the examples fit the published schemas")
    bin_folder = Path(sys.executable).parent
    run(bin_folder / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", REPOSITORY / "config/compose.yaml")
    # A schema that takes anything would be no check.
    wrong = WORK / "wrong.yaml"
    wrong.write_text("services: {a: {image: b, read_onyl: true}}\n")
    run(bin_folder / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", wrong, code=1)
    for manifest in sorted((REPOSITORY / "config/kubernetes").glob("*.yaml")):
        validate_kubernetes(manifest.read_text())


def validate_kubernetes(text):
    """Holds manifests to the schemas of two versions, and these to a manifest that is wrong."""
    right, wrong = WORK / "right.yaml", WORK / "wrong.yaml"
    holds("there is something to spoil", "mountPath" in text)
    right.write_text(text)
    wrong.write_text(text.replace("mountPath", "mountPaht"))
    # The first with native sidecars on by default, and the newest.
    for version in ("1.29", "1.37"):
        validate = [Path(sys.executable).parent / "kubernetes-validate", "--strict", "--kubernetes-version", version]
        run(*validate, right)
        run(*validate, wrong, code=1)


def compose_example(test):
    step("config/compose.yaml")
    spec, mounts, writable = compose_service(test, "runwatch")
    holds("the root is read-only", spec["read_only"] and spec["cap_drop"] == ["ALL"])
    equal("the program shares its network", yaml.safe_load(
        (REPOSITORY / "config/compose.yaml").read_text())["services"]["program"]["network_mode"], "service:runwatch")
    container = test.container(spec.get("command"), mounts=mounts, writable=writable)
    test.well(container)
    expect_read_only(container, test.image)
    beside_a_program(test, container, "run_compose")
    equal("exit code", container.stop(), 0)


def kubernetes_sidecar(test):
    step("config/kubernetes/sidecar.yaml")
    documents = list(yaml.safe_load_all((REPOSITORY / "config/kubernetes/sidecar.yaml").read_text()))
    spec, mounts, writable = kubernetes_container(test, documents, "runwatch")
    equal("what makes it a sidecar", spec["restartPolicy"], "Always")
    container = test.container(spec["args"], mounts=mounts, writable=writable)
    test.well(container, spec["startupProbe"]["exec"]["command"])
    expect_read_only(container, test.image)
    for probe in ("livenessProbe", "readinessProbe"):
        code, printed = container.execute(*spec[probe]["exec"]["command"])
        holds(f"{probe}: {printed}", code == 0)
    security = spec["securityContext"]
    equal("user", (security["runAsUser"], security["runAsGroup"]), (test.image.user, test.image.group))
    beside_a_program(test, container, "run_sidecar")
    holds("the log is JSON", all(json.loads(line) for line in container.output().splitlines()))
    holds("memory", container.peak_memory() << 10 < memory(spec["resources"]["requests"]["memory"]))
    equal("exit code", container.stop(), 0)


def kubernetes_standalone(test):
    step("config/kubernetes/standalone")
    rendered = run("kubectl", "kustomize", REPOSITORY / "config/kubernetes/standalone")
    documents = list(yaml.safe_load_all(rendered))
    equal("kinds", sorted(document["kind"] for document in documents),
          ["ConfigMap", "NetworkPolicy", "Service", "StatefulSet"])
    config = next(document for document in documents if document["kind"] == "ConfigMap")
    holds("the map has a hash of its contents", config["metadata"]["name"].startswith("runwatch-"))
    validate_kubernetes(rendered)
    service = next(document for document in documents if document["kind"] == "Service")
    workload = next(document for document in documents if document["kind"] == "StatefulSet")
    labels = workload["spec"]["template"]["metadata"]["labels"]
    equal("the service selects its pods", service["spec"]["selector"], labels)
    spec, mounts, writable = kubernetes_container(test, documents, "runwatch")
    ports = {port["name"]: port["containerPort"] for port in spec["ports"]}
    equal("the port of the service", ports[service["spec"]["ports"][0]["targetPort"]], test.image.port)
    for run_id in ("run_standalone", "run_standalone_later"):
        # The second pod has the volume of the first one.
        container = test.container(spec["args"], mounts=mounts, writable=writable)
        within(30, "the startup probe", lambda: status_of(spec["startupProbe"], ports) == 200)
        for probe in ("livenessProbe", "readinessProbe"):
            equal(probe, status_of(spec[probe], ports), 200)
        expect_read_only(container, test.image)
        equal("without a token", post_run(run_id), 401)
        test.api.run_is(run_id, "running", "running", "failed")
        equal("with it", post_run(run_id, token=TOKEN), 201)
        within(20, "its webhook", lambda: test.api.accepted(run_id))
        known = container.execute(RUNWATCH, "show", "run_standalone")[0]
        equal("the first run is known", known, 0)
        within(20, "it is stored as delivered", lambda: not open_deliveries(container))
        equal("exit code", container.stop(), 0)
    equal("one webhook of each run", [len(test.api.accepted(run_id)) for run_id in
                                      ("run_standalone", "run_standalone_later")], [1, 1])


def status_of(probe, ports):
    """The status that a probe over HTTP gets; `None` while nothing listens."""
    connection = http.client.HTTPConnection("127.0.0.1", ports[probe["httpGet"]["port"]], timeout=probe["timeoutSeconds"])
    try:
        connection.request("GET", probe["httpGet"]["path"])
        return connection.getresponse().status
    except ConnectionError:
        return None
    finally:
        connection.close()


def kubernetes_job(test):
    step("config/kubernetes/job.yaml")
    documents = list(yaml.safe_load_all((REPOSITORY / "config/kubernetes/job.yaml").read_text()))
    spec, mounts, writable = kubernetes_container(test, documents, "runwatch")
    container = test.container(spec["args"], mounts=mounts, writable=writable)
    test.well(container, spec["livenessProbe"]["exec"]["command"])
    test.api.run_is("run_job_1", "running", "running", "succeeded")
    test.api.run_is("run_job_2", "running", "running", "canceled")
    # In one go, so that the job does not end in between.
    equal("added", container.execute(RUNWATCH, "add", "run_job_1", "run_job_2")[0], 0)
    equal("exit code", container.wait(30), 3)
    for run_id in ("run_job_1", "run_job_2"):
        equal("webhooks", [line[0] for line in test.api.accepted(run_id)], ["/job"])


def main():
    test = Test()
    try:
        the_tree(test)
        test.start()
        for part in (the_labels, as_it_is, trust, exit_when_done, without_a_place, no_temporary_files, large_outputs,
                     examples_fit_their_schemas, compose_example, kubernetes_sidecar, kubernetes_standalone, kubernetes_job):
            part(test)
    except BaseException as error:
        if not isinstance(error, Failed):
            traceback.print_exc()
        for container in test.containers[-2:]:
            print(f"\n{container.folder.name}:\n{container.output()[-4000:]}", file=sys.stderr)
        test.api.report()
        test.program.report()
        print(f"\nFAILED: {error}", file=sys.stderr)
        return 1
    finally:
        test.end()
    print("\nthe image is as it must be")
    return 0


sys.exit(main())
