"""A fastserve in a process of its own, as faults.py and soak.py need one.

Knows: starting and ending it, what the kernel and its metrics tell of it. Never sees: what is done to it.
Invariant: `end` raises if the process does not stop by itself with status 0.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path


def asking(path: str = "/", *more: bytes) -> bytes:
    """A GET request; `more` are lines of its head."""
    return b"\r\n".join((b"GET %s HTTP/1.1" % path.encode(), b"Host: x", *more, b"", b""))


HELLO = asking()
CLOSE = b"Connection: close"


class Process:
    """`application` defines `handler`, and may add to `hooks`; `config` are the server's fields. It runs on the first
    usable core."""

    def __init__(self, application: str, **config: object) -> None:
        program = f"""
import json, sys
from fastserve import Server
hooks = {{}}
{application}
def ready(server):
    print(server.addresses[0], flush=True)
Server(handler, **hooks, **json.loads(sys.argv[1])).serve("127.0.0.1:0", ready=ready)
"""
        config = {"health_path": "/health", "metrics_path": "/metrics", **config}
        cores = sorted(os.sched_getaffinity(0))
        self.popen = subprocess.Popen([sys.executable, "-c", program, json.dumps(config)],
                                      stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent,
                                      preexec_fn=lambda: os.sched_setaffinity(0, cores[:1]))
        assert self.popen.stdout is not None
        host, _, port = self.popen.stdout.readline().strip().rpartition(":")
        self.address = (host, int(port))
        self.made = 0           # connections
        self._lock = threading.Lock()

    def end(self) -> None:
        self.popen.send_signal(signal.SIGTERM)
        self.popen.send_signal(signal.SIGCONT)      # a case may have broken off behind a SIGSTOP
        try:
            status = self.popen.wait(60)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            status = self.popen.wait()
        assert status == 0, f"the server ended with status {status}"

    def serves(self) -> bool:
        return self.popen.poll() is None

    def connect(self, receive_buffer: int | None = None) -> socket.socket:
        wire = socket.socket()
        wire.settimeout(30)
        if receive_buffer is not None:
            wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        wire.connect(self.address)
        with self._lock:
            self.made += 1
        return wire

    def exchange(self, raw: bytes = asking("/", CLOSE)) -> tuple[int, bytes]:
        """Status and body of one reply that ends with its connection."""
        with self.connect() as wire:
            wire.sendall(raw)
            data = b""
            while part := wire.recv(65536):
                data += part
        head, _, body = data.partition(b"\r\n\r\n")
        return int(head.split()[1]), body

    def metric(self, name: str) -> int:
        """The sum over its labels, if there are any; `name{label="x"}` is one of them."""
        text = self.exchange(asking("/metrics", CLOSE))[1].decode()
        return sum(int(line.split()[-1]) for line in text.splitlines() if line.startswith((f"{name} ", f"{name}{{")))

    def private(self) -> int:
        """Bytes that are the process's own."""
        return self._of("smaps_rollup", "Private_Dirty")

    def resident(self) -> int:
        """Bytes, those included that it shares with others."""
        return self._of("status", "VmRSS")

    def threads(self) -> int:
        return len(os.listdir(f"/proc/{self.popen.pid}/task"))

    def descriptors(self) -> list[int]:
        return sorted(int(name) for name in os.listdir(f"/proc/{self.popen.pid}/fd"))

    def cpu(self) -> float:
        """Seconds so far."""
        fields = Path(f"/proc/{self.popen.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def _of(self, file: str, field: str) -> int:
        for line in Path(f"/proc/{self.popen.pid}/{file}").read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024
        raise AssertionError(field)


def reset(wire: socket.socket) -> None:
    """Ends a connection by RST."""
    wire.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    wire.close()


def end_within(seconds: int) -> None:
    """What takes longer is broken off by TimeoutError in the main thread, so that servers are ended."""
    def up(*_: object) -> None:
        raise TimeoutError(f"this took longer than {seconds} s")

    signal.signal(signal.SIGALRM, up)
    signal.alarm(seconds)


def many_descriptors() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 20_000)), hard))


Check = tuple[str, str, bool]
"""What must hold, the figure, and whether it holds."""


def told(checks: list[Check]) -> bool:
    """Prints them; do all hold?"""
    for what, figure, holds in checks:
        print(f"  {'holds' if holds else 'DOES NOT HOLD':14} {what:60} {figure}", flush=True)
    return all(holds for _, _, holds in checks)
