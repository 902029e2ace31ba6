"""Hosts in network namespaces, and links between them that can be slow, lossy or silent.

A link is a pair of tap devices and this process between them, which passes each frame on when its time has
come. `tc netem` does the same in the kernel, but not every kernel has it.
"""

import fcntl
import heapq
import os
import random
import select
import shutil
import struct
import threading
import time
from pathlib import Path

from parts import run

TUNSETIFF, IFF_TAP, IFF_NO_PI = 0x400454CA, 0x0002, 0x1000
# More than any frame with the usual MTU of 1,500 bytes.
FRAME_BYTES = 2048


class Host:
    """A network namespace. `resolver` is the address of its name server."""

    def __init__(self, name, resolver=None):
        self.name, self.settings = f"rw{os.getpid()}-{name}", Path(f"/etc/netns/rw{os.getpid()}-{name}")
        run("ip", "netns", "add", self.name)
        self.ip("link", "set", "lo", "up")
        if resolver:
            # `ip netns exec` puts this file in place of /etc/resolv.conf.
            self.settings.mkdir(parents=True)
            (self.settings / "resolv.conf").write_text(f"nameserver {resolver}\noptions timeout:1 attempts:2\n")

    def ip(self, *argv):
        return run("ip", "-n", self.name, *argv)

    def inside(self, *argv):
        return ["ip", "netns", "exec", self.name, *argv]

    def remove(self):
        run("ip", "netns", "del", self.name, code=None)
        shutil.rmtree(self.settings, ignore_errors=True)
        if self.settings.parent.is_dir() and not any(self.settings.parent.iterdir()):
            self.settings.parent.rmdir()


class Link:
    """A link between two hosts, each named with its device and address. `delay` is one way, in seconds; `loss`
    the part of frames that is lost, 0 to 1; `silent` loses all of them while the devices stay up.
    """

    def __init__(self, *ends):
        self.delay, self.loss, self.silent = 0.0, 0.0, False
        # How many frames were lost by `loss`, and how many came later by `delay`.
        self.lost, self.late = 0, 0
        self.taps, self.ends = [], ends
        for host, device, address in ends:
            tap = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
            # A name that is free on this machine, until the device is where it belongs.
            name = f"rwt{os.getpid() % 100000}"
            fcntl.ioctl(tap, TUNSETIFF, struct.pack("16sH", name.encode(), IFF_TAP | IFF_NO_PI))
            run("ip", "link", "set", name, "netns", host.name, "name", device)
            host.ip("addr", "add", address, "dev", device)
            host.ip("link", "set", device, "up")
            self.taps.append(tap)
        self.seed = random.Random(7)
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._carry, daemon=True)
        self.thread.start()

    def _carry(self):
        # Frames under way: when they arrive, in which order they were sent, where to, what.
        under_way, order = [], 0
        while not self.ended.is_set():
            wait = min(0.1, max(0.0, under_way[0][0] - time.monotonic())) if under_way else 0.1
            ready, _, _ = select.select(self.taps, [], [], wait)
            for tap in ready:
                try:
                    frame = os.read(tap, FRAME_BYTES)
                except OSError:
                    # The device is down.
                    time.sleep(0.001)
                    continue
                if self.silent:
                    continue
                if self.seed.random() < self.loss:
                    self.lost += 1
                else:
                    self.late += self.delay > 0
                    other = self.taps[1 - self.taps.index(tap)]
                    heapq.heappush(under_way, (time.monotonic() + self.delay, order, other, frame))
                    order += 1
            while under_way and under_way[0][0] <= time.monotonic():
                _, _, tap, frame = heapq.heappop(under_way)
                try:
                    if not self.silent:
                        os.write(tap, frame)
                except OSError:
                    # Lost, as the device is down.
                    pass

    def cut(self, end=0):
        """Takes the device of one end down, as a pulled cable does."""
        host, device, _ = self.ends[end]
        host.ip("link", "set", device, "down")

    def restore(self, end=0):
        host, device, _ = self.ends[end]
        host.ip("link", "set", device, "up")

    def remove(self):
        self.ended.set()
        self.thread.join()
        for tap in self.taps:
            os.close(tap)
