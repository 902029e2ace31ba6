"""What a schema cannot say of a request that is right: which sinks are configured, and how long a time may be.

Only values of the right form are replaced; wrong ones go out as they are. Events are requested from the first
one on, so that there are some to check.
"""

import atexit
import collections
import json
import os
import re

import schemathesis

# How many requests were made of each operation; `floor.py` reads them.
MADE = collections.Counter()

DURATION = re.compile(r"(?=.)(\d+d)?(\d+h)?(\d+m)?(\d+s)?(\d+ms)?", re.ASCII)
SINK = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)


def is_of(form, value):
    return isinstance(value, str) and form.fullmatch(value)


@atexit.register
def keep():
    with open(os.environ["CASES"], "w", encoding="utf-8") as file:
        json.dump(MADE, file)


@schemathesis.hook
def before_call(context, case, kwargs):
    MADE[case.operation.label] += 1
    if case.operation.path == "/v1/events" and case.method == "GET":
        after = case.headers.get("Last-Event-ID", "0")
        if isinstance(after, str) and after.isascii() and after.isdigit() and int(after) < 2**63:
            case.headers["Last-Event-ID"] = "0"
    query = case.query
    if isinstance(query, dict) and is_of(DURATION, query.get("wait")):
        query["wait"] = "20ms"
    body = case.body
    if not isinstance(body, dict):
        return
    if is_of(DURATION, body.get("timeout")):
        body["timeout"] = "1h"
    if isinstance(body.get("sinks"), list):
        body["sinks"] = ["ops" if is_of(SINK, sink) else sink for sink in body["sinks"]]


@schemathesis.deserializer("application/openmetrics-text")
def openmetrics(context, response):
    return response.content.decode("utf-8")
