"""Tries the archive of a release and the GitHub Action: test.py ARCHIVE FOLDER, with the built program as `runwatch` in
PATH, and a simulated API, whose key and address are in the environment.
"""

import hashlib
import json
import os
import shutil
import sys
import tarfile
import tomllib
import urllib.request
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from parts import equal, holds, run, say, step  # noqa: E402
from runner import Runner  # noqa: E402

REPOSITORY = HERE.parent.parent
MANIFEST = tomllib.loads((REPOSITORY / "Cargo.toml").read_text())["package"]


def create_run():
    """A run at the simulated API that begins with its first poll and succeeds within seconds."""
    request = urllib.request.Request(
        os.environ["RUNWATCH_API__BASE_URL"] + "/v1/runs", b'{"deployment_id":"dep_abc123xyz"}',
        {"Authorization": f"Bearer {os.environ['CREWSHIP_API_KEY']}"},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)["run_id"]


def the_archive(archive, folder):
    step("the archive is what its name, its sum and cargo binstall say")
    target = run("rustc", "-vV").split("host: ")[1].split()[0]
    name = f"runwatch-{MANIFEST['version']}-{target}"
    equal("name", archive.name, f"{name}.tar.gz")
    digest, of = archive.with_suffix(".gz.sha256").read_text().split()
    equal("sum", (digest, of), (hashlib.sha256(archive.read_bytes()).hexdigest(), archive.name))
    with tarfile.open(archive) as files:
        members = files.getmembers()
        holds("no owner is named", {(member.uid, member.gid) for member in members} == {(0, 0)})
        files.extractall(folder, filter="data")
    binstall = MANIFEST["metadata"]["binstall"]
    parts = {"name": "runwatch", "version": MANIFEST["version"], "target": target, "bin": "runwatch", "repo": "REPO"}

    def filled(text):
        for part, value in parts.items():
            text = text.replace(f"{{ {part} }}", value)
        return text

    program = folder / filled(binstall["bin-dir"])
    holds("the archive is where cargo binstall looks", filled(binstall["pkg-url"]).endswith(
        f"/v{MANIFEST['version']}/{archive.name}"))
    holds("the program reports its version", run(program, "--version").startswith(f"runwatch {MANIFEST['version']}"))
    found = {str(path.relative_to(folder / name)) for path in (folder / name).rglob("*") if path.is_file()}
    for needed in ("README.md", "LICENSE-MIT", "LICENSE-APACHE", "config/runwatch.toml", "systemd/runwatch.service",
                   "man/runwatch.1", "man/runwatch-wait.1", "completions/_runwatch"):
        holds(f"it has {needed}", needed in found)
    say(f"{len(found)} files, {archive.stat().st_size} bytes")
    return program


def the_action(folder, program):
    runner = Runner(REPOSITORY, folder / "runner")
    environment = {name: os.environ[name] for name in ("PATH", "HOME", "CREWSHIP_API_KEY", "RUNWATCH_API__BASE_URL")}
    environment["PATH"] = f"{program.parent}:{environment['PATH']}"

    step("the action waits for a run and outputs its verdict and its data")
    run_id = create_run()
    outcome = runner.uses({"run": run_id, "timeout": "5m", "name": "by the action"}, environment)
    equal("exit code and verdict", (outcome.code, outcome.outputs["verdict"]), (0, "succeeded"))
    data = json.loads(outcome.outputs["data"])
    equal("data", (data["run_id"], data["verdict"], data["data"]["watch"]["name"]), (run_id, "succeeded", "by the action"))
    holds("the log shows the wait", run_id in outcome.text and "::stop-commands::" in outcome.text)

    step("a verdict other than succeeded fails the step, unless `fail` is false")
    for fail, code in (("true", 1), ("false", 0)):
        outcome = runner.uses({"run": f"\n run_demo_report \nrun_demo_research\n", "fail": fail}, environment)
        equal("exit code and verdict", (outcome.code, outcome.outputs["verdict"]), (code, "failed"))
        verdicts = {line["run_id"]: line["verdict"] for line in map(json.loads, outcome.outputs["data"].splitlines())}
        equal("verdicts", verdicts, {"run_demo_report": "succeeded", "run_demo_research": "failed"})

    step("the end of the time is a verdict too")
    outcome = runner.uses({"run": create_run(), "timeout": "1ms", "fail": "false"}, environment)
    equal("exit code and verdict", (outcome.code, outcome.outputs["verdict"]), (0, "timed_out"))

    step("a key that is refused and wrong inputs fail the step, without a verdict")
    nothing = {"verdict": "", "data": ""}
    outcome = runner.uses({"run": create_run(), "fail": "false"}, environment | {"CREWSHIP_API_KEY": "wrong"})
    equal("with a wrong key", (outcome.code, outcome.outputs), (4, nothing))
    for inputs in ({"run": "$(touch pwned)"}, {"run": "run_1; touch pwned"}, {"run": "\n \n"},
                   {"run": "run_1", "timeout": "1h --any"}, {"run": "run_1", "fail": "perhaps"}):
        outcome = runner.uses(inputs, environment)
        equal(f"{inputs}", (outcome.code, outcome.outputs), (2, nothing))
    holds("no input was run", not any((folder / "runner").glob("pwned")))

    step("without the program, the action builds it, for later steps too; without cargo it says what is missing")
    path = folder / "path"
    path.mkdir()
    for tool in ("bash", "cat", "dirname", "env", "mktemp", "rm", "stat"):
        (path / tool).symlink_to(shutil.which(tool))
    outcome = runner.uses({"run": "run_1"}, environment | {"PATH": str(path)})
    equal("exit code", outcome.code, 2)
    holds(f"it says what is missing: {outcome.text}", "::error::there is no runwatch in PATH, and no cargo" in outcome.text)
    bare = ":".join(place for place in os.environ["PATH"].split(":") if not (Path(place) / "runwatch").exists())
    toolchain = {name: value for name, value in os.environ.items() if name.startswith(("CARGO", "RUST"))}
    outcome = runner.uses({"run": create_run()}, environment | toolchain | {"PATH": bare})
    equal(f"{outcome}", (outcome.code, outcome.outputs["verdict"]), (0, "succeeded"))
    holds("later steps have it", [Path(place, "runwatch").exists() for place in outcome.paths] == [True])


def main(archive, folder):
    folder = Path(folder).resolve()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    program = the_archive(Path(archive).resolve(), folder)
    the_action(folder, program)
    print("\nthe archive and the action are as they must be")


main(*sys.argv[1:])
