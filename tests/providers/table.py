#!/usr/bin/env python3
"""Writes the table of the built-in profiles into docs/providers.md; with --check, fails if it is not the one that is there."""

import re
import sys

import answers
import profiles

DOCUMENT = profiles.BUILTIN.parents[2] / "docs/providers.md"
BEGIN, END = "<!-- profiles: written by tests/providers/table.py -->\n", "<!-- end of profiles -->\n"


def code(words):
    return ", ".join(f"`{word}`" for word in words)


def credentials(data):
    auth = data.get("auth", {})
    if auth.get("scheme") == "none" or not auth:
        return "none"
    names = [auth["user_env"]] if "user_env" in auth else []
    texts = [code(names + auth.get("env", []))] if names or "env" in auth else []
    if "file" in auth:
        texts.append("the token of the service account")
    if "login" in auth:
        texts.append("or " + code([auth["login"]["user_env"], auth["login"]["password_env"]]))
    return " ".join(texts) + (", optional" if auth.get("optional") else "")


def waits(data):
    """The words of the API for a run that waits for a person."""
    words = []
    rules = data["rules"] + data.get("each", {}).get("rules", []) + data.get("confirm", {}).get("rules", [])
    for when in (rule["when"] for rule in rules if rule["is"] == "waiting"):
        marks = [f"{place.split('/')[-1]}: true" for place, test in when.items() if test is True]
        texts = [test for test in list(when.values())[-1:] if not isinstance(test, (bool, dict))]
        condition = next((place.split("=")[1].split("]")[0] for place in when if "[type=" in place), None)
        texts = [condition] if condition else [word for text in texts or when.values() for word in profiles.pointers(text)]
        words += marks or [str(text).removeprefix("WORKFLOW_EXECUTION_STATUS_") for text in texts if isinstance(text, str)]
    return code(words) or "–"


# What the client fills in itself.
FILLED = {"status", "since", "now", "limit", "offset", "cursor"}
NAME = re.compile(r"\{([a-z_]+)\+?(?:\|raw)?\}")


def listed(data):
    """The parameters of the list; those that it cannot do without come first, in bold."""
    if "list" not in data:
        return "–"
    found = data["list"]
    address = found.get("get") or found["post"]
    path, _, query = address.partition("?")
    variables = data.get("vars", {})
    inside = lambda text: [name for name in NAME.findall(text) if name not in FILLED]
    texts = [query, found.get("body", "")]
    texts += [variables[name] for text in texts for name in NAME.findall(text) if name in variables]
    needed = list(dict.fromkeys(inside(path) + found.get("needs", [])))
    others = dict.fromkeys(name for text in texts for name in inside(text) if name not in variables)
    words = [f"**`{name}`**" for name in needed] + [f"`{name}`" for name in others if name not in needed]
    return ", ".join(words) or "none"


def rows():
    examples = {}
    for entry, _, _ in answers.answers():
        examples.setdefault(entry["profile"], entry["id"])
    examples["crewship"] = "run_xyz789abc"
    for path in sorted(profiles.BUILTIN.glob("*.toml"), key=lambda path: path.stem):
        data, name = profiles.profile(path.stem), path.stem
        also = f" ({code(data['aliases'])})" if "aliases" in data else ""
        run = f"`{name}:{examples[name]}`" if name != "crewship" else f"`{examples[name]}`"
        if data.get("urls"):
            run += " or its page"
        limit = str(data.get("rate", {}).get("per_minute", 60))
        host = f"`{data['base_url']}`" if "base_url" in data else "yours"
        yield f"| `{name}`{also} | {data['title']} | {run} | {host} | {credentials(data)} " \
              f"| {waits(data)} | {limit} | {listed(data)} | {data['checked']} |"


def main(arguments):
    head = "| Name | What | A run | Address | Credentials | Waits for a person | Requests a minute | Parameters of its list | Checked against |\n"
    table = head + "|---|---|---|---|---|---|---|---|---|\n" + "\n".join(rows()) + "\n"
    text = DOCUMENT.read_text()
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    new = before + BEGIN + table + END + after
    if "--check" not in arguments:
        DOCUMENT.write_text(new)
    elif new != text:
        print("docs/providers.md is not what tests/providers/table.py writes: run it", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
