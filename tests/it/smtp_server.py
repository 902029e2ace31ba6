"""A real SMTP server on loopback (aiosmtpd).

Reads {"tls", "certificate", "key", "password"} on a line of standard input: `tls` is "starttls", "tls" or "none", the others
are paths of PEM files and the password of the user "runwatch", or null. Prints {"port"}, then a line for each message that it
accepts. Recipients that begin with "later" are refused for now at the first time, and those that begin with "never" for good.
Ends at the end of standard input.
"""

import asyncio
import email
import email.policy
import json
import ssl
import sys

try:
    from aiosmtpd.smtp import SMTP, AuthResult
except ImportError as error:
    sys.exit(f"{error}; run the tests with: bash tests/run")

settings = json.loads(sys.stdin.readline())


class Handler:
    refused = False

    async def handle_RCPT(self, server, session, envelope, address, options):
        if address.startswith("later") and not Handler.refused:
            Handler.refused = True
            return "451 Try again later"
        if address.startswith("never"):
            return "550 No such user here"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server, session, envelope):
        message = email.message_from_bytes(envelope.content, policy=email.policy.default)
        print(
            json.dumps(
                {
                    "to": envelope.rcpt_tos,
                    "from": envelope.mail_from,
                    "headers": {name: str(value) for name, value in message.items()},
                    "text": message.get_content().replace("\r\n", "\n"),
                    "encrypted": session.ssl is not None or settings["tls"] == "tls",
                    "authenticated": session.authenticated,
                }
            ),
            flush=True,
        )
        return "250 Taken"


def authenticate(server, session, envelope, mechanism, data):
    right = (data.login, data.password) == (b"runwatch", settings["password"].encode())
    return AuthResult(success=right, handled=False)


def session():
    context = None
    if settings["tls"] == "starttls":
        context = certificates()
    return SMTP(
        Handler(),
        hostname="smtp.test.example",
        tls_context=context,
        require_starttls=context is not None,
        authenticator=authenticate if settings["password"] else None,
        auth_required=bool(settings["password"]),
        auth_require_tls=settings["tls"] == "starttls",
    )


def certificates():
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(settings["certificate"], settings["key"])
    return context


async def serve():
    loop = asyncio.get_running_loop()
    context = certificates() if settings["tls"] == "tls" else None
    server = await loop.create_server(session, "127.0.0.1", 0, ssl=context)
    print(json.dumps({"port": server.sockets[0].getsockname()[1]}), flush=True)
    await loop.run_in_executor(None, sys.stdin.read)
    server.close()


asyncio.run(serve())
