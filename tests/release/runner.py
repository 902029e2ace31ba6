"""What a runner of GitHub Actions does for a composite action, as far as an action depends on it (docs.github.com,
"Metadata syntax" and "Workflow commands"): fills in inputs, runs the steps with `bash`, and reads the files that they write.
"""

import re
import subprocess
import uuid
from pathlib import Path

import yaml

EXPRESSION = re.compile(r"\$\{\{\s*([^}]+?)\s*\}\}")


class Outcome:
    """What became of a step of a job that uses the action."""

    def __init__(self, code, outputs, paths, text):
        self.code, self.outputs, self.paths, self.text = code, outputs, paths, text

    def __repr__(self):
        return f"exit code {self.code}, outputs {self.outputs}, paths {self.paths}:\n{self.text}"


class Runner:
    """Runs the action in a folder, with temporary files in another one."""

    def __init__(self, action, temporary):
        self.action, self.temporary = Path(action).resolve(), Path(temporary).resolve()
        self.temporary.mkdir(parents=True, exist_ok=True)
        self.metadata = yaml.safe_load((self.action / "action.yml").read_text())
        assert self.metadata["runs"]["using"] == "composite", self.metadata["runs"]

    def uses(self, inputs, environment):
        """Runs the action with these inputs, as a job with this environment."""
        declared = self.metadata["inputs"]
        assert inputs.keys() <= declared.keys(), f"not declared: {inputs.keys() - declared.keys()}"
        missing = [name for name, of in declared.items() if of.get("required") and name not in inputs]
        assert not missing, f"required: {missing}"
        values = {f"inputs.{name}": inputs.get(name, of.get("default", "")) for name, of in declared.items()}
        code, paths, text = 0, [], ""
        for step in self.metadata["runs"]["steps"]:
            assert step["shell"] == "bash" and not EXPRESSION.search(step["run"]), "what a script gets are variables"
            files = {name: self._file() for name in ("GITHUB_OUTPUT", "GITHUB_PATH", "GITHUB_ENV")}
            own = {name: self._filled(value, values) for name, value in step.get("env", {}).items()}
            script = self._file(step["run"])
            done = subprocess.run(
                ["bash", "--noprofile", "--norc", "-eo", "pipefail", script],
                env=environment | own | {name: str(path) for name, path in files.items()} | {
                    "CI": "true", "GITHUB_ACTIONS": "true", "GITHUB_ACTION_PATH": str(self.action),
                    "RUNNER_TEMP": str(self.temporary),
                },
                cwd=self.temporary, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                text=True, timeout=900,
            )
            text += done.stdout
            for name, value in read_outputs(files["GITHUB_OUTPUT"].read_text()).items():
                values[f"steps.{step['id']}.outputs.{name}"] = value
            paths += files["GITHUB_PATH"].read_text().split()
            code = done.returncode
            if code != 0:
                break
        outputs = {name: self._filled(of["value"], values) for name, of in self.metadata["outputs"].items()}
        return Outcome(code, outputs, paths, text)

    def _file(self, text=""):
        path = self.temporary / f"runner-{uuid.uuid4().hex}"
        path.write_text(text)
        return path

    @staticmethod
    def _filled(text, values):
        """A text with its expressions replaced. One of a step that set no such output is empty."""
        def value(match):
            name = match.group(1)
            assert re.fullmatch(r"(inputs|steps)\.[a-z.]+", name), f"an expression that this runner does not know: {name}"
            return values.get(name, "")
        return EXPRESSION.sub(value, text)


def read_outputs(text):
    """The outputs in a file: `NAME=VALUE`, or `NAME<<DELIMITER` with lines up to the delimiter."""
    outputs, lines = {}, iter(text.split("\n"))
    for line in lines:
        head = re.match(r"([^=<]+)(=|<<)(.*)", line)
        if head is None:
            assert line == "", f"not an output: {line!r}"
        elif head.group(2) == "=":
            outputs[head.group(1)] = head.group(3)
        else:
            value = []
            for part in lines:
                if part == head.group(3):
                    break
                value.append(part)
            else:
                raise AssertionError(f"no end of {head.group(1)}")
            outputs[head.group(1)] = "\n".join(value)
    return outputs
