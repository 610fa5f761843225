"""A server in this process for one test, a strict client of bytes, and the check that nothing is left behind.

Knows: how a server is started, talked to on the wire and stopped, and what must be gone afterwards.
Never sees: what a single test is about. Invariant: whoever uses `serve` also checks that descriptors, slots,
buffers, connections and threads are back where they began and that nothing was logged as an error which the
test did not announce. Nothing here sleeps to be in time, and nothing judges by how long something took: waits
end by what they wait for, and at a deadline the test fails.
"""

import contextlib
import faulthandler
import gc
import logging
import os
import re
import resource
import select
import socket
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from typing import Any, Self

import pytest

from fastserve import RequestCtx, Server

SEED = os.environ["FASTSERVE_SEED"]     # drawn and printed by tests/conftest.py
PATIENCE = 20.0
"""Seconds after which whatever is waited for counts as never coming. No test waits so long when all is well."""


def wait_until(true: Callable[[], object], what: str = "", seconds: float = PATIENCE) -> None:
    """Return as soon as `true()` is; fail at the deadline."""
    end = time.monotonic() + seconds
    pause = threading.Event()
    while not true():
        if time.monotonic() > end:
            pytest.fail(f"waited {seconds:g} s in vain for {what or true}")
        pause.wait(0.001)


def wait_for(event: threading.Event, what: str = "an event") -> None:
    """Wait for an event; fail at the deadline. For handlers too: there it becomes a logged error."""
    assert event.wait(PATIENCE), f"waited {PATIENCE:g} s in vain for {what}"


# The wire

class Reply:
    """One response: `version`, `status`, `reason`, `headers` as pairs in wire order, `body`."""

    def __init__(self, version: str, status: int, reason: str, headers: list[tuple[str, str]]) -> None:
        self.version = version
        self.status = status
        self.reason = reason
        self.headers = headers
        self.body = b""

    def getall(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key.lower() == name.lower()]

    def get(self, name: str) -> str | None:
        """The value of a field that stands at most once."""
        values = self.getall(name)
        assert len(values) < 2, f"{name} stands {len(values)} times: {self.headers}"
        return values[0] if values else None

    @property
    def closes(self) -> bool:
        """The server says that this is the last reply of its connection."""
        return self.get("Connection") == "close"

    def __repr__(self) -> str:
        return f"<Reply {self.status} {self.headers} {self.body[:80]!r}>"


STATUS_LINE = re.compile(rb"HTTP/1\.1 ([1-5][0-9][0-9]) ([\t\x20-\x7e\x80-\xff]*)")
FIELD_LINE = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+): ((?:[\x21-\x7e\x80-\xff](?:[\t\x20-\x7e\x80-\xff]*"
                        rb"[\x21-\x7e\x80-\xff])?)?)")


def parse_head(raw: bytes) -> Reply:
    """A response head without its empty line, by the grammar of RFC 9112 and no wider."""
    first, *lines = raw.split(b"\r\n")
    match = STATUS_LINE.fullmatch(first)
    assert match, f"not a status line: {first[:200]!r}"
    headers = []
    for line in lines:
        field = FIELD_LINE.fullmatch(line)
        assert field, f"not a field line: {line[:200]!r}"
        headers.append((field[1].decode("latin-1"), field[2].decode("latin-1")))
    return Reply("1.1", int(match[1]), match[2].decode("latin-1"), headers)


class Wire:
    """A client that sends bytes as they are and reads replies strictly. Every wait has a deadline."""

    def __init__(self, address: str, receive_buffer: int = 0, source: str = "") -> None:
        if address.startswith("unix:"):
            self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            target: Any = address.removeprefix("unix:")
        else:
            host, _, port = address.rpartition(":")
            self.socket = socket.socket(socket.AF_INET6 if "[" in host else socket.AF_INET, socket.SOCK_STREAM)
            target = (host.strip("[]"), int(port))
        try:
            if receive_buffer:
                self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            self.socket.settimeout(PATIENCE)
            if source:
                self.socket.bind((source, 0))
            self.socket.connect(target)
            if self.socket.family != socket.AF_UNIX:
                self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except BaseException:
            self.socket.close()
            raise
        self.pending = bytearray()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.socket.close()

    def reset(self) -> None:
        """Go without a word: the server sees RST."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.socket.close()

    def send(self, *parts: bytes) -> Self:
        self.socket.sendall(b"".join(parts))
        return self

    def half_close(self) -> Self:
        """No more will be sent; replies are still read."""
        self.socket.shutdown(socket.SHUT_WR)
        return self

    def get(self, path: str = "/", *fields: str) -> Reply:
        """A GET and its reply."""
        return self.send(request("GET", path, *fields)).read()

    def more(self) -> bool:
        """Receive something; False at the end of the stream."""
        data = self.socket.recv(262144)
        self.pending += data
        return bool(data)

    def silent(self) -> bool:
        """Nothing has come that was not read yet."""
        return not self.pending and not select.select([self.socket], [], [], 0)[0]

    def read_head(self) -> Reply:
        while (end := self.pending.find(b"\r\n\r\n")) < 0:
            assert self.more(), f"the stream ended within a head: {bytes(self.pending[:200])!r}"
        reply = parse_head(bytes(self.pending[:end]))
        del self.pending[:end + 4]
        return reply

    def read_until(self, end: bytes) -> bytes:
        while (at := self.pending.find(end)) < 0:
            assert self.more(), f"the stream ended before {end!r}: {bytes(self.pending[:200])!r}"
        return self.read_exactly(at + len(end))

    def read_exactly(self, size: int) -> bytes:
        while len(self.pending) < size:
            assert self.more(), f"the stream ended after {len(self.pending)} of {size} bytes"
        data = bytes(self.pending[:size])
        del self.pending[:size]
        return data

    def read(self, head: bool = False, interim: bool = False) -> Reply:
        """One reply. `head`: to a HEAD request. `interim`: a 1xx is what is expected."""
        reply = self.read_head()
        assert interim == (reply.status < 200), f"not the kind that was expected: {reply}"
        length = reply.get("Content-Length")
        coding = reply.get("Transfer-Encoding")
        assert reply.get("Connection") in (None, "close", "keep-alive"), reply
        if reply.status < 200 or reply.status == 204:
            assert length is None and coding is None, reply
        elif head or reply.status == 304:
            assert length is None or length.isdecimal(), reply
        elif coding is not None:
            assert coding == "chunked" and length is None, reply
            reply.body = self.read_chunks()
        elif length is not None:
            assert length.isdecimal(), reply
            reply.body = self.read_exactly(int(length))
        else:
            assert reply.closes, f"nothing says where this reply ends: {reply}"
            reply.body = self.read_to_end()
        return reply

    def read_chunks(self) -> bytes:
        parts = []
        while True:
            while (end := self.pending.find(b"\r\n")) < 0:
                assert self.more(), "the stream ended within a chunk size"
            size = bytes(self.pending[:end])
            assert re.fullmatch(rb"[0-9a-fA-F]+", size), f"not a chunk size: {size!r}"
            del self.pending[:end + 2]
            if int(size, 16) == 0:
                assert self.read_exactly(2) == b"\r\n"
                return b"".join(parts)
            parts.append(self.read_exactly(int(size, 16)))
            assert self.read_exactly(2) == b"\r\n"

    def read_to_end(self) -> bytes:
        while self.more():
            pass
        data = bytes(self.pending)
        self.pending.clear()
        return data

    def ended(self) -> bool:
        """The server closes in an orderly way (a reset raises) and says no more before. Waits for it."""
        rest = self.read_to_end()
        assert rest == b"", f"bytes where the end was expected: {rest[:200]!r}"
        return True

    def gone(self) -> bool:
        """The connection ends, orderly or by a reset, and nothing comes before. Waits for it."""
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            return self.ended()
        return True


def request(method: str = "GET", path: str = "/", *fields: str, body: bytes = b"", host: str = "test") -> bytes:
    """A request of HTTP/1.1; a body brings its Content-Length."""
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", *fields]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def chunked(body: bytes, *sizes: int) -> bytes:
    """`body` in chunked coding, cut into chunks of `sizes` in turn."""
    parts, at, turn = [], 0, 0
    while at < len(body):
        piece = body[at:at + sizes[turn % len(sizes)]] if sizes else body
        parts.append(b"%x\r\n%b\r\n" % (len(piece), piece))
        at, turn = at + len(piece), turn + 1
    return b"".join(parts) + b"0\r\n\r\n"


# The server

class Running:
    """A started server and its clients. `server` is the Server itself, until the test is over."""

    def __init__(self, server: Server) -> None:
        self._server: Server | None = server
        self._wires: list[Wire] = []
        self.addresses = server.addresses
        self.clean: bool | None = None

    @property
    def server(self) -> Server:
        assert self._server is not None, "the test is over"
        return self._server

    @property
    def address(self) -> str:
        return self.addresses[0]

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])

    @property
    def url(self) -> str:
        return f"http://{self.address}"

    def stats(self) -> dict[str, Any]:
        return self.server.stats()

    def connect(self, receive_buffer: int = 0, source: str = "") -> Wire:
        """A raw client, of address `source` if given; closed with the test at the latest."""
        wire = Wire(self.address, receive_buffer, source)
        self._wires.append(wire)
        return wire

    def refuses(self) -> bool:
        """Nobody listens any more; who comes at the moment of the close is reset."""
        try:
            self.connect().close()
        except (ConnectionRefusedError, ConnectionResetError):
            return True
        return False

    def exchange(self, *parts: bytes, head: bool = False) -> Reply:
        """One request on a connection of its own, which is closed after the reply."""
        with self.connect() as wire:
            return wire.send(*parts).read(head)

    def get(self, path: str = "/", *fields: str) -> Reply:
        return self.exchange(request("GET", path, *fields))

    def close_clients(self) -> None:
        for wire in self._wires:
            wire.close()
        self._wires.clear()

    def in_use(self) -> dict[str, int]:
        """What must be 0 when no client is there."""
        stats = self.stats()
        return {name: stats[name] for name in ("connections", "rejected", "slots", "buffers", "queued")}

    def shutdown(self, timeout: float = 10.0) -> bool:
        """As Server.shutdown, which must come back; if it does not, the test run says where it hangs and ends."""
        answer: list[bool] = []
        server = self.server
        caller = threading.Thread(target=lambda: answer.append(server.shutdown(timeout)), daemon=True)
        caller.start()
        caller.join(timeout + PATIENCE)
        if caller.is_alive():
            faulthandler.dump_traceback(all_threads=True)
            pytest.exit("Server.shutdown does not come back", returncode=3)
        assert answer, "Server.shutdown failed"
        self.clean = answer[0]
        return self.clean

    def end(self) -> None:
        """The teardown: everything is given back while the server still runs, and it stops cleanly."""
        self.close_clients()
        if self.clean is None:
            left: dict[str, int] = {}

            def empty() -> bool:
                left.clear()
                left.update(self.in_use())
                return not any(left.values())

            try:
                wait_until(empty, "an empty server")
            except pytest.fail.Exception:
                self.shutdown(0)
                pytest.fail(f"in use after all clients have gone: {left}")
            assert self.shutdown(), "shutdown cut something off though no client was there"
        left = self.in_use()
        assert not any(left.values()), f"in use after shutdown: {left}"

    def forget(self) -> None:
        """Descriptors of a server live as long as it does."""
        self._server = None


class Errors(logging.Handler):
    """What was logged below `fastserve`: level and text, with the exception behind the message."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[tuple[int, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.exc_info and record.exc_info[1] is not None:
            text += f": {type(record.exc_info[1]).__name__}: {record.exc_info[1]}"
            # A traceback holds frames, and the lowest of them holds the server: others that keep this
            # record (pytest does) get it as text.
            record.exc_text = logging.Formatter().formatException(record.exc_info)
            record.exc_info = None
        self.told.append((record.levelno, text))

    def texts(self, level: int = logging.ERROR) -> list[str]:
        """Messages from this level on."""
        return [text for found, text in list(self.told) if found >= level]


class Serve:
    """`serve(handler, **config)` starts a server; see `expect_error` and `threads_may_stay`."""

    def __init__(self) -> None:
        self.running: list[Running] = []
        self.log = Errors()
        self.expected: list[str] = []
        self.stray: list[str] = []
        self.threads_may_stay = False
        self.descriptors_may_stay = False

    def __call__(self, handler: Callable[[RequestCtx], None], *binds: str, **config: Any) -> Running:
        # With batches in one system call and without: a coin, thrown by test and seed, so that both are met.
        # Few threads, which start and end with each test, unless it is about their number.
        config.setdefault("workers", 8)
        config.setdefault("io_uring", zlib.crc32(f"{SEED} {os.environ['PYTEST_CURRENT_TEST']}".encode()) & 1 == 0)
        server = Running(Server(handler, **config).start(*(binds or ("127.0.0.1:0",))))
        self.running.append(server)
        return server

    def expect_error(self, pattern: str) -> None:
        """The test makes a handler fail so: each error logged must match (re.search) one announced pattern,
        and each pattern must be matched."""
        self.expected.append(pattern)

    def errors(self) -> list[str]:
        return self.log.texts()

    def warnings(self) -> list[str]:
        return [text for text in self.log.texts(logging.WARNING) if text not in self.errors()]

    def check_log(self) -> None:
        found = self.errors()
        strange = [text for text in found if not any(re.search(p, text) for p in self.expected)]
        assert not strange, f"errors were logged: {strange}"
        assert not self.stray, f"exceptions that nobody caught: {self.stray}"
        missed = [p for p in self.expected if not any(re.search(p, text) for text in found)]
        assert not missed, f"errors that were expected and not logged: {missed}"


def descriptors() -> dict[int, str]:
    found = {}
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
    return found


def server_threads() -> list[str]:
    """All but the one event loop of the process, which stays."""
    return [thread.name for thread in threading.enumerate()
            if thread.name.startswith("fastserve-") and thread.name != "fastserve-loop"]


@pytest.fixture(scope="session")
def own_loop() -> None:
    """The event loop of the process and its thread stay: they are made before a test counts what is there."""
    from fastserve.coroutines import _own_loop

    ready = threading.Event()
    _own_loop().call_soon_threadsafe(ready.set)
    wait_for(ready)


@pytest.fixture(scope="session", autouse=True)
def many_descriptors() -> Iterator[int]:
    """Clients and servers share this process: it may open as many descriptors as it can get."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 65536 if hard == resource.RLIM_INFINITY else min(hard, 65536)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted) if soft >= 0 else soft, hard))
    yield resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@contextlib.contextmanager
def serving() -> Iterator[Serve]:
    """Starts servers and sees to it that they leave nothing behind."""
    before = descriptors()
    threads_before = server_threads()
    factory = Serve()
    logger = logging.getLogger("fastserve")
    logger.addHandler(factory.log)
    hooks = threading.excepthook, sys.unraisablehook
    threading.excepthook = lambda told: factory.stray.append(f"{told.exc_type.__name__}: {told.exc_value}")
    sys.unraisablehook = lambda told: factory.stray.append(f"{told.err_msg or 'ignored'}: {told.exc_value!r}")
    problems: list[str] = []

    def attempt(step: Callable[[], object]) -> None:
        try:
            step()
        except (AssertionError, pytest.fail.Exception) as problem:
            problems.append(str(problem))

    def new_descriptors() -> dict[int, str]:
        found = {fd: name for fd, name in descriptors().items() if before.get(fd) != name}
        if found:
            gc.collect()
        return found

    try:
        yield factory
    finally:
        for server in factory.running:
            attempt(server.end)
            server.forget()
        attempt(factory.check_log)
        if not factory.threads_may_stay:
            attempt(lambda: wait_until(lambda: len(server_threads()) <= len(threads_before), "the threads to end"))
            if left := server_threads():
                problems.append(f"threads are left: {left}")
        if not factory.descriptors_may_stay and not factory.threads_may_stay:
            attempt(lambda: wait_until(lambda: not new_descriptors(), "the descriptors to be closed"))
            if left_open := new_descriptors():
                problems.append(f"descriptors are left: {left_open}")
        threading.excepthook, sys.unraisablehook = hooks
        logger.removeHandler(factory.log)
    if problems:
        pytest.fail("; ".join(problems))


@pytest.fixture
def serve() -> Iterator[Serve]:
    """The servers of one test."""
    with serving() as factory:
        yield factory


@pytest.fixture
def brisk() -> Iterator[None]:
    """Threads that compute give the GIL up after 0.1 ms instead of 5: they meet more often, and are through earlier."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(0.0001)
    yield
    sys.setswitchinterval(before)


@pytest.fixture
def release(serve: Serve) -> Iterator[threading.Event]:
    """Handlers may block on it: it is set at the end of the test, before the server must be empty."""
    event = threading.Event()
    yield event
    event.set()
