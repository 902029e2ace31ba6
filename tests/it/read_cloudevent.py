"""Reads a CloudEvent in binary content mode with the library of the CloudEvents project.

Reads {"headers", "body"} on standard input. Prints the attributes and the data as the library sees them.
"""

import json
import sys

try:
    from cloudevents.core.bindings.http import HTTPMessage, from_binary
    from cloudevents.core.formats.json import JSONFormat
except ImportError as error:
    sys.exit(f"{error}; run the tests with: bash tests/run")

message = json.load(sys.stdin)
event = from_binary(HTTPMessage(message["headers"], message["body"].encode()), JSONFormat())
attributes = {name: str(value) for name, value in event.get_attributes().items()}
data = event.get_data()
print(json.dumps({"attributes": attributes, "data": data}))
