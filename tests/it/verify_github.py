"""Verifies one webhook as receivers of GitHub's webhooks do (docs.github.com, "Validating webhook deliveries").

Reads {"secret", "signature", "body"} on standard input. Ends with 0 if the signature is right, and with 1 if it is not.
"""

import hashlib
import hmac
import json
import sys

message = json.load(sys.stdin)
mac = hmac.new(message["secret"].encode(), message["body"].encode(), hashlib.sha256)
if not hmac.compare_digest("sha256=" + mac.hexdigest(), message["signature"]):
    print("refused")
    sys.exit(1)
print("accepted")
