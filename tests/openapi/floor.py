"""Fails where a run of schemathesis made too few requests of an operation: floor.py DOCUMENT CASES."""

import json
import sys

# The least number of requests, for an operation that takes something and for one that takes nothing.
LEAST, LEAST_OF_NOTHING = 10, 1


def main(document, cases):
    with open(document, encoding="utf-8") as file:
        paths = json.load(file)["paths"]
    with open(cases, encoding="utf-8") as file:
        made = json.load(file)
    few = []
    for path, item in paths.items():
        for method in sorted(item.keys() & {"get", "put", "post", "delete", "patch", "head", "options", "trace"}):
            label = f"{method.upper()} {path}"
            takes = item[method].get("parameters") or item.get("parameters") or "requestBody" in item[method]
            # The document itself is read before the others are tried.
            least = 0 if path == "/v1/openapi.json" else LEAST if takes else LEAST_OF_NOTHING
            count = made.get(label, 0)
            print(f"{count:6} {label}")
            if count < least:
                few.append(f"{label}: {count} of at least {least}")
    assert paths, "the document has no paths"
    assert not few, f"too few requests: {few}"


main(*sys.argv[1:])
