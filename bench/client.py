"""A patient HTTP client of a few lines, for the requests that a load generator cannot make.

Knows replies with a Content-Length; nothing of the contenders, and nothing of what a right answer is.
"""

from __future__ import annotations

import re
import select
import socket
import time
from collections.abc import Iterable
from dataclasses import dataclass

from measure import HOST, BenchError

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


@dataclass(frozen=True)
class Reply:
    """One reply, and when it had arrived in full, in seconds after the last send."""

    head: bytes
    body: bytes
    after: float

    @property
    def status(self) -> int:
        return int(self.head.split(b" ", 2)[1])

    @property
    def header_names(self) -> set[str]:
        return {line.partition(b":")[0].decode().lower() for line in self.head.split(b"\r\n")[1:]}


def request(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode()


class Client:
    """One connection. Every wait is bounded."""

    def __init__(self, port: int, timeout: float = 5) -> None:
        self._socket = socket.create_connection((HOST, port), timeout)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._received = b""
        self._sent_at = 0.0

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, message: bytes) -> None:
        self._sent_at = time.monotonic()
        self._socket.sendall(message)

    def receive(self) -> Reply:
        head = self._take(self._find_head_end())
        length = _LENGTH.search(head)
        if not length:
            raise BenchError(f"a reply without Content-Length: {head!r}")
        body = self._take(int(length[1]))
        return Reply(head[:-4], body, time.monotonic() - self._sent_at)

    def get(self, path: str) -> Reply:
        self.send(request(path))
        return self.receive()

    def _find_head_end(self) -> int:
        while (end := self._received.find(b"\r\n\r\n")) < 0:
            self._read_more()
        return end + 4

    def _take(self, size: int) -> bytes:
        while len(self._received) < size:
            self._read_more()
        taken, self._received = self._received[:size], self._received[size:]
        return taken

    def _read_more(self) -> None:
        more = self._socket.recv(65536)
        if not more:
            raise BenchError("the server closed a connection that waited for a reply")
        self._received += more


def gather(clients: Iterable[Client], until: float) -> dict[Client, Reply]:
    """One reply from each of those that get one before the moment `until` of the monotonic clock."""
    waiting, replies = set(clients), {}
    while waiting and (left := until - time.monotonic()) > 0:
        for client in select.select(waiting, [], [], left)[0]:
            replies[client] = client.receive()
            waiting.remove(client)
    return replies
