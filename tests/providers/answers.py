#!/usr/bin/env python3
"""Reads every answer of samples/expected.toml by the profiles and compares it with what is expected there. Fails, too, for a
state that a profile knows and no answer has."""

import json
import sys
import tomllib
from pathlib import Path

import profiles

SAMPLES = Path(__file__).resolve().parent / "samples"
STATES = ("pending", "running", "waiting", "succeeded", "failed", "canceled", "skipped", "not_found", "unknown")
FIELDS = ("state", "status", "attempt", "name", "group", "error", "created", "started", "finished")


def document(entry, file, body):
    text = (SAMPLES / entry[file]).read_text() if file in entry else entry.get(body)
    try:
        return json.loads(text) if text else None
    except json.JSONDecodeError:
        return None


def answers():
    """Each entry of the file, with its answer and its second one."""
    expected = tomllib.loads((SAMPLES / "expected.toml").read_text())
    for entry in expected["answers"]:
        second = entry.get("second")
        if second is not None:
            text = (SAMPLES / second).read_text() if second.endswith(".json") else second
            second = json.loads(text)
        yield entry, document(entry, "file", "body"), second
    for entry in expected["words"]:
        for state in STATES:
            for word in entry.get(state, []):
                body = entry["body"].replace("WORD", str(word))
                yield {"profile": entry["profile"], "id": entry["id"], "state": state, "word": word}, json.loads(body), None


def main():
    seen, wrong, count = {}, [], 0
    for entry, answer, second in answers():
        count += 1
        seen.setdefault(entry["profile"], set()).add(entry["state"])
        run = profiles.read(entry["profile"], entry["id"], answer, entry.get("http", 200), second)
        for field in FIELDS:
            found = run[field] if field == "attempt" or run[field] is None else str(run[field])
            if field in entry and found != entry[field]:
                wrong.append(f"{entry}: {field} is {run[field]!r}")
    for path in sorted(profiles.BUILTIN.glob("*.toml")):
        data = profiles.profile(path.stem)
        states = {rule["is"] for rule in data["rules"] + data.get("each", {}).get("rules", [])}
        missing = states - seen.get(path.stem, set())
        if missing:
            wrong.append(f"{path.stem}: no answer is {', '.join(sorted(missing))}")
    print(*wrong, f"{count} answers of {len(seen)} profiles, {len(wrong)} wrong", sep="\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
