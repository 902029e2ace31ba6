#!/usr/bin/env python3
"""Starts a run, hands it to the sidecar, and waits for its verdict. Needs CREWSHIP_API_KEY."""

import json
import os
import urllib.request


def request_json(url, body=None, **headers):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json", **headers})
    with urllib.request.urlopen(request, timeout=90) as response:
        return json.load(response)


run = request_json(
    "https://api.crewship.dev/v1/runs",
    {"deployment_id": "dep_abc123xyz", "input": {"topic": "AI agents"}},
    Authorization="Bearer " + os.environ["CREWSHIP_API_KEY"],
)
watch = request_json("http://127.0.0.1:9477/v1/watches", {"run_id": run["run_id"], "name": "nightly report"})
while watch["verdict"] is None:
    watch = request_json(f"http://127.0.0.1:9477/v1/watches/{run['run_id']}?wait=1m")
print(watch["run_id"], watch["verdict"])
