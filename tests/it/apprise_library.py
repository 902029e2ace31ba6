"""Does with one message what apprise-api does with it, by the Apprise library that it is made of.

Reads {"message", "url"} on standard input. Passes the message on to `url`, an address of the library, and prints the
version of the library. Without a message the library sends one of its own.
"""

import json
import sys

try:
    import apprise
except ImportError as error:
    sys.exit(f"{error}; run the tests with: bash tests/run")

request = json.load(sys.stdin)
message = request["message"] or {"title": "a", "body": "b", "type": "info", "format": "text"}
if message["type"] not in [kind.value for kind in apprise.NotifyType]:
    sys.exit(f"there is no type {message['type']!r}")
if message["format"] not in [kind.value for kind in apprise.NotifyFormat]:
    sys.exit(f"there is no format {message['format']!r}")
if not message["body"]:
    sys.exit("the server rejects a message without a body")
service = apprise.Apprise()
if not service.add(request["url"]):
    sys.exit("the library does not know this address")
if not service.notify(
    message["body"],
    title=message["title"],
    notify_type=message["type"],
    body_format=message["format"],
):
    sys.exit("the library could not send the message")
print(apprise.__version__)
