"""Checks that the document of a daemon is proper OpenAPI, and that each of its events is as the document says."""

import json
import sys
import time
import urllib.request

import jsonschema_rs
import openapi_spec_validator

# Runs that end or have ended, which are watched once more: the requests before may have removed their watches, and
# with them their events.
RUNS = ["run_demo_report", "run_demo_research", "run_demo_outreach", "run_demo_late", "run_never"]

# One for each of them; fewer than one page of the store.
ENOUGH = len(RUNS)

# Longest time for them, in seconds. A stream without events has signs of life without end.
LIMIT = 120


def main(base, token_file):
    with open(token_file, encoding="utf-8") as file:
        token = file.read().strip()

    def get(path, **headers):
        request = urllib.request.Request(base + path, headers={"Authorization": f"Bearer {token}", **headers})
        return urllib.request.urlopen(request, timeout=30)

    document = json.load(get("/v1/openapi.json"))
    openapi_spec_validator.validate(document)
    part = lambda name: jsonschema_rs.validator_for(
        {"$ref": f"#/components/schemas/{name}", "components": document["components"]}
    )
    frame, event = part("EventFrame"), part("Event")
    bodies = {
        name: jsonschema_rs.validator_for(
            item["post"]["requestBody"]["content"]["application/json"]["schema"] | {"components": document["components"]}
        )
        for name, item in document["webhooks"].items()
    }
    assert not event.is_valid({"type": "run.odd", "timestamp": "2024-01-15T10:35:05.412Z", "data": {}})
    for run in RUNS:
        body = json.dumps({"run_id": run, "again": True}).encode()
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        urllib.request.urlopen(urllib.request.Request(base + "/v1/watches", body, headers), timeout=30).close()
    ends = time.monotonic() + LIMIT
    seen, fields = 0, {}
    with get("/v1/events", **{"Last-Event-ID": "0"}) as stream:
        assert stream.headers["Content-Type"] == "text/event-stream", stream.headers
        for line in stream:
            assert time.monotonic() < ends, f"{seen} of {ENOUGH} events within {LIMIT} s"
            name, _, value = line.decode("utf-8").rstrip("\n").partition(":")
            if name:
                fields[name] = value.removeprefix(" ")
                continue
            if "data" in fields:
                frame.validate(fields)
                data = json.loads(fields["data"])
                event.validate(data)
                # Sinks get the same, and its webhook accepts no other type.
                valid = [name for name, body in bodies.items() if body.is_valid(data)]
                assert valid == [data["type"]], (valid, data)
                assert data["type"] == fields["event"], fields
                seen += 1
            fields = {}
            if seen == ENOUGH:
                break
    # A stream that ends early would otherwise pass with nothing checked.
    assert seen == ENOUGH, f"the stream ended after {seen} of {ENOUGH} events"
    print(f"{seen} events are as the document says")


main(*sys.argv[1:])
