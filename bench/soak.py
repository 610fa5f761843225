"""Everything at once for an hour: python bench/soak.py [--minutes N] [--seed N]; `make soak`.

Knows: a server in a process of its own with every limit on, clients that behave and clients that do not, and what each
of them may get. Never sees: the core. Invariant: it ends by itself in its time; every reply that no rule explains is
counted and told with its words; the exit status is 0 if all that must hold does.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import random
import secrets
import select
import signal
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from process import CLOSE, HELLO, Check, Process, asking, end_within, many_descriptors, reset, told

APPLICATION = '''
import collections, ctypes, json, logging, time

LARGE = b"x" * 2**20
DOCUMENT = {"numbers": list(range(100)), "text": "some words"}
logged = collections.Counter()
sleep_with_the_gil = ctypes.PyDLL(None).usleep

class Count(logging.Handler):
    def emit(self, record):
        logged[f"{record.msg} {record.exc_info[1] if record.exc_info else ''}".strip()] += 1

logging.getLogger("fastserve").addHandler(Count())

def chunks(count):
    for number in range(count):
        yield b"chunk %d\\n" % number

def on_headers(ctx):
    if ctx.path == "/upload":
        ctx.max_body_size = 2**24
        ctx.stream_body = True

hooks["on_headers"] = on_headers

def handler(ctx):
    path = ctx.path
    if path == "/json":
        ctx.content_type = "application/json"
        ctx.write(json.dumps(DOCUMENT))
    elif path == "/echo":
        ctx.set_body(ctx.body)
    elif path == "/form":
        ctx.write(",".join(f"{name}={value}" for name, value in ctx.form.items()))
    elif path == "/upload":
        ctx.write(str(sum(len(part) for part in ctx.body_stream)))
    elif path == "/large":
        ctx.set_body(LARGE)
    elif path == "/stream":
        ctx.stream(chunks(20))
    elif path == "/sleep":
        time.sleep(0.02)
        ctx.write("slept")
    elif path == "/compute":
        ctx.write(str(sum(range(50_000))))
    elif path == "/fail":
        raise RuntimeError("on purpose")
    elif path == "/gil":
        sleep_with_the_gil(100_000)
        ctx.write("held")
    elif path == "/late":
        ctx.done.wait(10)
    elif path == "/logged":
        ctx.write(json.dumps(logged))
    else:
        ctx.write("hello")
'''
CONFIG = {"workers": 16, "max_workers": 32, "concurrency": 600, "reject_slots": 1200, "max_queue": 100, "backlog": 4096,
          "header_timeout": 2, "body_timeout": 4, "write_timeout": 3, "idle_timeout": 2, "handler_timeout": 1,
          "max_requests_per_conn": 1000, "max_memory": 2**27}
MAY_LOG = {
    "%s %s failed on purpose",
    "a handler failed behind its reply on purpose",
    "a handler took longer than its timeout: its client has been told\n%s",
    "requests are refused with 503: max_queue=%d is reached",
    "connections are refused with 503: concurrency=%d is reached",
    "what each thread is at:\n%s",
    "%d more messages like the next one were left out",
}
MALLOC = {"MALLOC_ARENA_MAX": "2", "MALLOC_MMAP_THRESHOLD_": "131072"}
"""Otherwise glibc keeps a heap for every few threads, each as large as what once fell to it, so that memory grows for
hours. With these, what grows is the server's."""

CHUNKS = b"".join(b"chunk %d\n" % number for number in range(20))
JUDGED = 10     # minutes from which on memory is judged


class Unexplained(Exception):
    pass


class Soak:
    def __init__(self, process: Process, seed: int) -> None:
        self.process, self.seed = process, seed
        self.seen: Counter[str] = Counter()
        self.unexplained: Counter[str] = Counter()
        self.over = threading.Event()
        self.lock = threading.Lock()

    def count(self, what: str, unexplained: bool = False) -> None:
        with self.lock:
            (self.unexplained if unexplained else self.seen)[what] += 1

    def again_and_again(self, index: int, pause: float, act: Callable[[random.Random], object]) -> threading.Thread:
        """A thread in which `act` is done until the end; what it raises is told."""
        luck = random.Random(self.seed * 1000 + index)

        def run() -> None:
            while not self.over.wait(pause * luck.uniform(0.5, 1.5)):
                try:
                    act(luck)
                except (Unexplained, OSError, http.client.HTTPException) as problem:
                    self.count(f"{getattr(act, '__name__', type(act).__name__)}: {problem!r}", unexplained=True)

        thread = threading.Thread(target=run)
        thread.start()
        return thread

    def ask(self, raw: bytes) -> bytes:
        """All that comes until the server closes; it must."""
        with self.process.connect() as wire:
            wire.sendall(raw)
            return everything(wire)

    # Those who misbehave: what each does, and what it may get.

    def slow_head(self, luck: random.Random) -> None:
        """Forty heads that are never whole: 408."""
        wires = [self.process.connect() for _ in range(40)]
        for wire in wires:
            wire.sendall(HELLO[:luck.randrange(1, len(HELLO) - 1)])
        for wire in wires:
            self.expect("slow head", everything(wire), {408, 503})
            wire.close()

    def slow_body(self, luck: random.Random) -> None:
        """A body that does not come: 408."""
        raw = b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 50000\r\n\r\nx"
        self.expect("slow body", self.ask(raw), {408, 503})

    def no_reader(self, luck: random.Random) -> None:
        """Ten that ask for a megabyte and do not read: cut off, by RST or by a reply that is not whole."""
        wires = [self.process.connect(receive_buffer=4096) for _ in range(10)]
        for wire in wires:
            wire.sendall(5 * asking("/large"))
        for wire in wires:
            # Its time begins with the reply, which may have had to wait.
            reply = select.poll()
            reply.register(wire, select.POLLIN)
            reply.poll(10_000)
        slept = not self.over.wait(5)
        for wire in wires:
            with contextlib.suppress(ConnectionError):
                data = everything(wire)
                if data[:12] not in (b"HTTP/1.1 200", b"HTTP/1.1 503") or (slept and len(data) >= 5 * 2**20):
                    raise Unexplained(f"a reader that read nothing for 5 s got {len(data)} bytes, {data[:20]!r}")
            self.count("no reader")
            wire.close()

    def malformed(self, luck: random.Random) -> None:
        """Refused by the parser, each with the status of its fault."""
        raw, statuses = luck.choice((
            (b"GET /\r\nHost: x\r\n\r\n", {400}), (b"GET / HTTP/3.0\r\nHost: x\r\n\r\n", {400, 505}),
            (b"GET / HTTP/1.1\r\n\r\n", {400}), (b"GET / HTTP/1.1\r\nHost : x\r\n\r\n", {400}),
            (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", {400}),
            (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n\r\n", {413}),
            (b"GET /" + 9000 * b"a" + b" HTTP/1.1\r\nHost: x\r\n\r\n", {414}),
            (b"GET / HTTP/1.1\r\nHost: x\r\n" + 101 * b"A: b\r\n" + b"\r\n", {431}),
            (b"TRACE / HTTP/1.1\r\nHost: x\r\n\r\n", {405}),
            (b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", {400}),
        ))
        self.expect("malformed", self.ask(raw), {*statuses, 503})

    def nonsense(self, luck: random.Random) -> None:
        """Random bytes: a refusal, or silence where no head came to an end."""
        with self.process.connect() as wire:
            wire.sendall(luck.randbytes(luck.randrange(1, 3000)))
            with contextlib.suppress(OSError):
                wire.shutdown(socket.SHUT_WR)
            with contextlib.suppress(ConnectionResetError):
                if everything(wire)[9:10] not in (b"", b"4", b"5"):
                    raise Unexplained("random bytes were answered")
        self.count("nonsense")

    def resets(self, luck: random.Random) -> None:
        """RST at once, behind a request, in a body, in a reply."""
        wire = self.process.connect()
        raw = luck.choice((b"", HELLO, 16 * HELLO, asking("/large"), asking("/stream"),
                           asking("/sleep"), b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nx"))
        wire.sendall(raw)
        if raw and luck.random() < 0.5:
            wire.setblocking(False)
            with contextlib.suppress(OSError):
                wire.recv(100)
        reset(wire)
        self.count("reset")

    def half_closed(self, luck: random.Random) -> None:
        with self.process.connect() as wire:
            wire.sendall(HELLO)
            wire.shutdown(socket.SHUT_WR)
            self.expect("half-closed", everything(wire), {200, 503})

    def late(self, luck: random.Random) -> None:
        """A handler beyond its time: 504."""
        self.expect("late", self.ask(asking("/late")), {504, 503})

    def idle(self, luck: random.Random) -> None:
        """Forty connections that stay, and say nothing or little: closed without a word."""
        wires = [self.process.connect() for _ in range(40)]
        for wire in wires:
            if everything(wire)[:12] not in (b"", b"HTTP/1.1 503"):
                raise Unexplained("an idle connection was answered")
            self.count("idle")
            wire.close()

    def crowd(self, luck: random.Random) -> None:
        """Twice `concurrency` at once, each with a request that takes a worker 20 ms."""
        wires = [self.process.connect() for _ in range(1200)]
        for wire in wires:
            wire.sendall(asking("/sleep", CLOSE))
        for wire in wires:
            self.expect("crowd", everything(wire), {200, 503})
            wire.close()

    def stop_and_go(self, luck: random.Random) -> None:
        self.process.popen.send_signal(signal.SIGSTOP)
        time.sleep(0.3)
        self.process.popen.send_signal(signal.SIGCONT)
        self.count("stopped for 0.3 s")

    def probes(self, luck: random.Random) -> None:
        for path in ("/health", "/metrics"):
            self.expect(path, self.ask(asking(path, CLOSE)), {200, 503})

    def expect(self, what: str, data: bytes, statuses: set[int]) -> None:
        if not data.startswith(b"HTTP/1.1 ") or int(data[9:12]) not in statuses:
            raise Unexplained(f"{what} got {data[:60]!r}")
        self.count(f"{what} {int(data[9:12])}")


class Client:
    """One who behaves: keeps its connection as long as the server does, and knows what each reply must be."""

    def __init__(self, soak: Soak) -> None:
        self.soak, self.wire, self.used = soak, self.connected(soak), time.monotonic()

    @staticmethod
    def connected(soak: Soak) -> http.client.HTTPConnection:
        wire = http.client.HTTPConnection(*soak.process.address, timeout=30)
        wire.sock = soak.process.connect()
        return wire

    def __call__(self, luck: random.Random) -> None:
        method, path, body, fields, wanted = self.question(luck)
        if self.wire.sock is None or time.monotonic() - self.used > 1:
            self.wire.close()
            self.wire = self.connected(self.soak)
        try:
            self.wire.request(method, path, body, fields)
            reply = self.wire.getresponse()
            got = reply.read()
        except BaseException:
            self.wire.close()
            raise
        self.used = time.monotonic()
        if reply.status == 503 and reply.getheader("Retry-After"):
            self.soak.count("shed 503")
        elif (reply.status, got) != wanted:
            raise Unexplained(f"{method} {path} got {reply.status} {got[:60]!r}")
        else:
            self.soak.count(f"{path} {reply.status}")

    @staticmethod
    def question(luck: random.Random) -> tuple[str, str, Any, dict[str, str], tuple[int, bytes]]:
        """A request, and the status and body of its reply."""
        path = luck.choices(("/", "/json", "/echo", "/form", "/upload", "/large", "/stream", "/sleep", "/compute",
                             "/fail", "/gil"), (40, 10, 10, 4, 2, 1, 5, 5, 5, 1, 0.05))[0]
        fields = {"X-Trace": secrets.token_hex(8)} if luck.random() < 0.3 else {}
        if path == "/echo":
            body = luck.randbytes(luck.choice((0, 1, 100, 1000, 10_000, 100_000, 1_000_000)))
            if luck.random() < 0.5:     # chunked
                cut = luck.randrange(len(body) + 1)
                parts = [part for part in (body[:cut], body[cut:]) if part]
                return "POST", path, iter(parts), fields, (200, body)
            return "POST", path, body, fields, (200, body)
        if path == "/upload":
            size = luck.randrange(1, 2_000_000)
            return "PUT", path, b"u" * size, fields, (200, b"%d" % size)
        if path == "/form":
            fields["Content-Type"] = "application/x-www-form-urlencoded"
            return "POST", path, b"a=1&b=%20&a=2", fields, (200, b"a=1,b= ,a=2")
        wanted = {"/json": json.dumps({"numbers": list(range(100)), "text": "some words"}).encode(),
                  "/large": b"x" * 2**20, "/stream": CHUNKS, "/sleep": b"slept", "/compute": b"1249975000",
                  "/gil": b"held", "/fail": b"Internal Server Error"}.get(path, b"hello")
        return "GET", path, None, fields, (500 if path == "/fail" else 200, wanted)


def everything(wire: socket.socket) -> bytes:
    """What comes until the other side closes."""
    parts = []
    while part := wire.recv(65536):
        parts.append(part)
    return b"".join(parts)


class Log:
    """The access log: renamed again and again, its lines counted and thrown away."""

    def __init__(self, path: Path) -> None:
        self.path, self.lines = path, 0

    def rotate(self, process: Process) -> None:
        old = self.path.with_suffix(".old")
        os.rename(self.path, old)
        process.popen.send_signal(signal.SIGUSR1)
        while not self.path.exists():       # from now on nothing more comes to the old one
            assert process.serves()
            time.sleep(0.01)
        self.take(old)

    def take(self, path: Path) -> None:
        with path.open("rb") as file:
            self.lines += sum(1 for line in file if json.loads(line))
        path.unlink()


def soak(minutes: float, seed: int) -> list[Check]:
    with tempfile.TemporaryDirectory() as folder:
        log = Log(Path(folder) / "access.log")
        os.environ.update(MALLOC)       # which the server inherits
        process = Process(APPLICATION, **CONFIG, access_log=str(log.path), access_log_format="json")
        descriptors = len(process.descriptors())
        all_ = Soak(process, seed)
        try:
            threads = [all_.again_and_again(index, 0.008, Client(all_)) for index in range(8)]
            threads += [all_.again_and_again(100 + index, pause, act) for index, (pause, act) in enumerate((
                (1, all_.slow_head), (1, all_.slow_body), (1, all_.no_reader), (0.02, all_.malformed),
                (0.05, all_.nonsense), (0.01, all_.resets), (0.05, all_.half_closed), (2, all_.late), (1, all_.idle),
                (20, all_.crowd), (17, all_.stop_and_go), (1, all_.probes)))]
            checks = watch(process, all_, log, minutes, threads)
            all_.over.set()
            for thread in threads:
                thread.join()
            checks += afterwards(process, descriptors)
            lines = process.metric("fastserve_access_log_lines_total")
            lost = process.metric("fastserve_access_log_lost_total")
        except BaseException:
            all_.over.set()
            process.popen.kill()
            raise
        process.end()       # which kills what does not end
        log.take(log.path)
    for what, times in sorted(all_.seen.items()):
        print(f"  {times:9} {what}")
    for what, times in all_.unexplained.most_common(20):
        print(f"  UNEXPLAINED {times} times: {what}")
    return [*checks,
            ("errors that no rule explains", f"{all_.unexplained.total()}", not all_.unexplained),
            ("the access log has the lines that the server counted, none lost", f"{log.lines} of {lines}, {lost} lost",
             lines <= log.lines <= lines + 10 and lost == 0)]


def afterwards(process: Process, descriptors: int) -> list[Check]:
    """What must be as it was when all clients have gone; `descriptors` were open then."""
    end = time.monotonic() + 20
    while process.metric("fastserve_connections") > 1 and time.monotonic() < end:
        time.sleep(0.1)
    logged = json.loads(process.exchange(asking("/logged", CLOSE))[1])
    accepted, made = process.metric("fastserve_connections_accepted_total"), process.made
    lent = process.metric("fastserve_buffer_bytes")
    while (left := len(process.descriptors())) != descriptors and time.monotonic() < end:
        time.sleep(0.1)
    print(f"  logged: {logged}")
    return [("messages that no rule explains", f"{sorted(set(logged) - MAY_LOG)}", set(logged) <= MAY_LOG),
            ("connections are counted", f"{accepted} of {made}", accepted == made),
            ("descriptors as at the start", f"{left} of {descriptors}", left == descriptors),
            ("no buffer is out but this connection's", f"{lent / 1024:.0f} KiB", lent < 100 * 1024)]


def watch(process: Process, all_: Soak, log: Log, minutes: float, threads: list[threading.Thread]) -> list[Check]:
    """A line a minute until the time is over; what memory and descriptors did, looked at ten times a minute."""
    resident: list[int] = []
    descriptors: list[int] = []
    began, answered = time.monotonic(), 0
    for sample in range(1, int(minutes * 10) + 1):
        all_.over.wait(max(0.0, began + 6 * sample - time.monotonic()))
        resident.append(process.resident())
        descriptors.append(len(process.descriptors()))
        if sample % 10 == 0 or sample == int(minutes * 10):
            log.rotate(process)
            seen = all_.seen.total()
            print(f"  {sample / 10:5.1f} min  {seen - answered:7} answers  RSS {resident[-1] / 2**20:6.1f} MiB  "
                  f"{descriptors[-1]:4} descriptors  {process.threads():3} threads  "
                  f"{all_.unexplained.total()} unexplained", flush=True)
            answered = seen
        assert all(thread.is_alive() for thread in threads)
    quarter = len(resident) // 4
    if minutes < JUDGED:
        return []
    third, last = (statistics.median(some) for some in (resident[-2 * quarter:-quarter], resident[-quarter:]))
    # The fewest: how many clients there are when somebody looks is a matter of luck.
    before, behind = (min(some) for some in (descriptors[:2 * quarter], descriptors[2 * quarter:]))
    return [("RSS: median of the last quarter less than 1% above the third's",
             f"{third / 2**20:.2f} to {last / 2**20:.2f} MiB, {last / third - 1:+.2%}", last / third < 1.01),
            ("descriptors: fewest in the first half and in the last", f"{before}, {behind}", behind <= before + 5)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(10**6))
    options = parser.parse_args()
    many_descriptors()
    end_within(int(60 * options.minutes) + 180)
    print(f"soak of {options.minutes:g} minutes, seed {options.seed}, Python {sys.version.split()[0]}", flush=True)
    return 0 if told(soak(options.minutes, options.seed)) else 1


if __name__ == "__main__":
    sys.exit(main())
