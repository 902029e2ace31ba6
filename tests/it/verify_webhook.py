"""Verifies one webhook with the reference library of the Standard Webhooks specification.

Reads {"secret", "headers", "body"} on standard input. Ends with 0 if the library accepts the message,
and with 1 if it refuses it.
"""

import json
import sys

try:
    from standardwebhooks.webhooks import Webhook, WebhookVerificationError
except ImportError as error:
    sys.exit(f"{error}; run the tests with: bash tests/run")

message = json.load(sys.stdin)
try:
    Webhook(message["secret"]).verify(message["body"].encode(), message["headers"])
except WebhookVerificationError as error:
    print(f"refused: {error}")
    sys.exit(1)
print("accepted")
