"""A patient HTTP client of a few lines, for the requests that a load generator cannot make.

Knows replies with a Content-Length or in chunks, and how to be slow; nothing of the contenders, and nothing of what
a right answer is.
"""

from __future__ import annotations

import contextlib
import itertools
import re
import select
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from measure import HOST, BenchError

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding: *chunked\r", re.IGNORECASE)


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


def request(path: str, *fields: str, body: bytes = b"") -> bytes:
    """A GET with the fields, or a POST if there is a body."""
    if body:
        fields = (*fields, "Content-Type: application/octet-stream", f"Content-Length: {len(body)}")
    head = [f"{'POST' if body else 'GET'} {path} HTTP/1.1", f"Host: {HOST}", *fields]
    return "".join(line + "\r\n" for line in [*head, ""]).encode() + body


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
        head = self._take(self._find_end(b"\r\n\r\n"))
        if length := _LENGTH.search(head):
            body = self._take(int(length[1]))
        elif _CHUNKED.search(head):
            body = self._take_chunks()
        else:
            raise BenchError(f"a reply without Content-Length: {head!r}")
        return Reply(head[:-4], body, time.monotonic() - self._sent_at)

    def closed(self) -> bool:
        """Whether the server ends the connection, in the time of one wait."""
        with contextlib.suppress(ConnectionResetError):
            return not self._received and not self._socket.recv(1)
        return True

    def get(self, path: str) -> Reply:
        self.send(request(path))
        return self.receive()

    def _find_end(self, mark: bytes) -> int:
        while (end := self._received.find(mark)) < 0:
            self._read_more()
        return end + len(mark)

    def _take_chunks(self) -> bytes:
        """Without trailers: none of those who are asked sends any."""
        body = b""
        while size := int(self._take(self._find_end(b"\r\n")), 16):
            body += self._take(size + 2)[:-2]
        self._take(2)
        return body

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


_SLOW_HEAD = f"GET / HTTP/1.1\r\nHost: {HOST}\r\nX-Slow: ".encode()


class _Dripper:
    """A connection that sends a head byte by byte and never ends it; one that the server gave up is replaced."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._connect()

    def _connect(self) -> None:
        self._sent = 0
        self._socket = socket.socket()
        self._socket.setblocking(False)
        self._socket.connect_ex((HOST, self._port))

    def drip(self) -> None:
        try:
            self._sent += self._socket.send(_SLOW_HEAD[self._sent:self._sent + 1] or b"x")
        except BlockingIOError:     # not connected yet
            pass
        except OSError:
            self.close()
            self._connect()

    def close(self) -> None:
        self._socket.close()


@contextlib.contextmanager
def dripping(port: int, number: int) -> Iterator[None]:
    """Meanwhile so many connections send one byte of a head each a second, evenly spread."""
    over = threading.Event()
    drippers = [_Dripper(port) for _ in range(number)]

    def drip() -> None:
        for dripper in itertools.cycle(drippers):
            if over.wait(1 / number):
                return
            dripper.drip()

    for dripper in drippers:
        dripper.drip()
    thread = threading.Thread(target=drip)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        for dripper in drippers:
            dripper.close()
