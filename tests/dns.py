#!/usr/bin/env python3
"""A small DNS server for tests: dns.py FILE [ADDRESS]. Answers on port 53 for the names of FILE, lines of
`ADDRESS NAME...` as in /etc/hosts, which is read anew for each question. Every answer lives one second.
"""

import socket
import struct
import sys
from pathlib import Path

A, IN = 1, 1
NO_SUCH_NAME, NO_ERROR = 3, 0

names, address = Path(sys.argv[1]), (sys.argv[2:] or ["127.0.0.1"])[0]


def addresses(name):
    table = (line.split() for line in names.read_text().splitlines())
    return [words[0] for words in table if name in words[1:]]


def question(packet):
    """The name, and where what follows the question begins (RFC 1035, 4.1.2)."""
    labels, at = [], 12
    while packet[at]:
        labels.append(packet[at + 1:at + 1 + packet[at]].decode().lower())
        at += 1 + packet[at]
    return ".".join(labels), at + 5


def answer(packet):
    ident, flags = struct.unpack_from(">HH", packet)
    name, end = question(packet)
    kind, _ = struct.unpack_from(">HH", packet, end - 4)
    found = addresses(name)
    records = found if kind == A else []
    # Response, authoritative; recursion desired is repeated, and available.
    flags = 0x8480 | (flags & 0x0100) | (NO_ERROR if found else NO_SUCH_NAME)
    reply = struct.pack(">HHHHHH", ident, flags, 1, len(records), 0, 0) + packet[12:end]
    for record in records:
        # The name is a pointer to the one in the question.
        reply += struct.pack(">HHHIH", 0xC00C, A, IN, 1, 4) + socket.inet_aton(record)
    return reply


server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind((address, 53))
while True:
    packet, sender = server.recvfrom(4096)
    try:
        server.sendto(answer(packet), sender)
    except (IndexError, ValueError, struct.error):
        # No question, so no answer.
        continue
