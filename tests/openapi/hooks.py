"""What a schema cannot say of a request that is right: which sinks are configured, and how long a time may be.

Only values of the right form are replaced; wrong ones go out as they are.
"""

import re

import schemathesis

DURATION = re.compile(r"(?=.)(\d+d)?(\d+h)?(\d+m)?(\d+s)?(\d+ms)?", re.ASCII)
SINK = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)


def is_of(form, value):
    return isinstance(value, str) and form.fullmatch(value)


@schemathesis.hook
def before_call(context, case, kwargs):
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
