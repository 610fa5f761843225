"""Clients that misbehave, and what a healthy one sees meanwhile: python bench/faults.py [CASE ...]

Knows: the faults of docs/reliability.md, a server in a process of its own, loopback. Never sees: the core.
Invariant: every case ends by itself, within its time and its number of connections; each figure is printed beside
what must hold, and the exit status is 0 if all of them do.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import select
import signal
import socket
import statistics
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from process import CLOSE, HELLO, Check, Process, asking, end_within, many_descriptors, reset, told

LARGE = 2**20
APPLICATION = f"""
import time
LARGE = b"x" * {LARGE}
def handler(ctx):
    if ctx.path == "/large":
        ctx.set_body(LARGE)
    elif ctx.path == "/sleep":
        time.sleep(0.02)
        ctx.write("slept")
    elif ctx.path == "/stuck":
        time.sleep(float(ctx.query.get("for")))
        ctx.write("free")
    else:
        ctx.write("hello")
"""


@contextmanager
def server(**config: object) -> Iterator[Process]:
    process = Process(APPLICATION, **config)
    try:
        yield process
    finally:
        process.end()


class Healthy(threading.Thread):
    """One request after the other, half of them on new connections, until it is told to stop."""

    def __init__(self, process: Process, path: str = "/", pause: float = 0.002) -> None:
        super().__init__(daemon=True)
        self.process, self.raw, self.pause = process, asking(path), pause
        self.times: list[float] = []
        self.failures = 0
        self.stop = threading.Event()

    def run(self) -> None:
        kept = self.process.connect()
        while not self.stop.wait(self.pause):
            began = time.perf_counter()
            try:
                if len(self.times) % 2:
                    kept.sendall(self.raw)
                    good = kept.recv(65536).startswith(b"HTTP/1.1 200 ")
                else:
                    with self.process.connect() as wire:
                        wire.sendall(self.raw)
                        good = wire.recv(65536).startswith(b"HTTP/1.1 200 ")
            except OSError:
                good = False
            self.failures += not good
            self.times.append(time.perf_counter() - began)
        kept.close()

    def told(self) -> tuple[float, float]:
        """p99 and the longest, in milliseconds."""
        self.stop.set()
        self.join()
        times = sorted(self.times)
        return 1000 * times[int(0.99 * len(times))], 1000 * times[-1]


def healthy(client: Healthy, p99: float = 50) -> list[Check]:
    p, longest = client.told()
    return [("healthy client: failures 0", f"{client.failures} of {len(client.times)}", client.failures == 0),
            (f"healthy client: p99 below {p99:g} ms", f"{p:.1f} ms (longest {longest:.1f})", p < p99)]


def idle() -> list[Check]:
    """10,000 keep-alive connections that have had one reply each."""
    count = 10_000
    with server(reactors=1, concurrency=count + 100, idle_timeout=600) as process:
        process.exchange()
        time.sleep(1)
        before = process.private()
        wires = []
        for _ in range(count):
            wire = process.connect()
            wire.sendall(HELLO)
            assert wire.recv(1000).startswith(b"HTTP/1.1 200 ")
            wires.append(wire)
        each = (process.private() - before) / count
        time.sleep(1)
        cpu = process.cpu()
        time.sleep(10)
        used = process.cpu() - cpu
        for wire in wires:
            wire.close()
    return [("10,000 idle connections: at most 512 bytes each", f"{each:.0f} bytes", each <= 512),
            ("CPU of 10 s: 0", f"{used:.2f} s", used == 0)]


def trickle(process: Process, count: int, seconds: float, first: bytes, piece: bytes, pause: float) -> list[float]:
    """`count` connections send `first` and then `piece` every `pause` seconds; how long each lived."""
    poll = select.epoll()
    wires: dict[int, tuple[socket.socket, float]] = {}
    lived: list[float] = []
    for _ in range(count):
        wire = process.connect()
        wire.setblocking(False)
        wire.send(first)
        wires[wire.fileno()] = wire, time.monotonic()
        poll.register(wire, select.EPOLLIN)
    end = time.monotonic() + seconds
    due = time.monotonic() + pause
    while wires and time.monotonic() < end:
        for fd, _ in poll.poll(max(0.0, min(due, end) - time.monotonic())):
            wire, began = wires[fd]
            try:
                data = wire.recv(65536)
            except OSError:
                data = b""
            if not data:
                lived.append(time.monotonic() - began)
                poll.unregister(fd)
                wire.close()
                del wires[fd]
        if time.monotonic() >= due:
            due += pause
            for wire, _ in wires.values():
                with suppress(OSError):
                    wire.send(piece)
    for wire, _ in wires.values():
        wire.close()
    return lived


def slowloris() -> list[Check]:
    """5,000 connections send one byte of a head every 2 s."""
    with server(header_timeout=10) as process:
        client = Healthy(process)
        client.start()
        lived = trickle(process, 5000, 30, HELLO[:-2], b"X: y\r\n"[:1], 2)
        checks = healthy(client)
    spread = f"{min(lived):.1f} to {max(lived):.1f} s" if lived else "-"
    cut = len(lived) == 5000 and min(lived) >= 9 and max(lived) <= 11
    return [*checks, ("5,000 heads that trickle: all cut after 10 s +- 1", f"{len(lived)} cut, {spread}", cut)]


def slow_bodies() -> list[Check]:
    """1,000 bodies of one byte a second, 1,000 readers that never read a reply of 1 MiB."""
    head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n"
    with server(body_timeout=30, write_timeout=10, max_conns_per_ip=0) as process:
        process.exchange()
        before = process.private()
        client = Healthy(process)
        client.start()
        readers = []
        for _ in range(1000):
            wire = process.connect(receive_buffer=4096)
            wire.sendall(asking("/large"))
            readers.append(wire)
        lived = trickle(process, 1000, 20, head, b"x", 1)
        during = process.private() - before
        checks = healthy(client)
        for wire in readers:
            wire.close()
        end = time.monotonic() + 30
        while process.metric("fastserve_connections") > 1 and time.monotonic() < end:
            time.sleep(0.2)
        lent = process.metric("fastserve_buffer_bytes")
        after = process.private() - before
    return [*checks,
            ("slow bodies cut by their rate", f"{len(lived)} of 1000", len(lived) == 1000),
            ("memory meanwhile: below 100 MiB", f"{during / 2**20:.0f} MiB", during < 100 * 2**20),
            ("afterwards no buffer is out but this connection's", f"{lent / 1024:.0f} KiB", lent < 100 * 1024),
            ("and kept for later: at most 60 MiB", f"{after / 2**20:.0f} MiB", after < 60 * 2**20)]


def downloads() -> list[Check]:
    """2,000 clients ask for 1 MiB at once and read; their share of the turns comes later than write_timeout."""
    count, whole = 2000, 0
    with server(write_timeout=0.1, max_conns_per_ip=0) as process:
        client = Healthy(process)
        client.start()
        poll = select.epoll()
        left: dict[int, tuple[socket.socket, int]] = {}
        for _ in range(count):
            wire = process.connect()
            left[wire.fileno()] = wire, LARGE
            poll.register(wire, select.EPOLLIN)
        began = time.monotonic()
        for wire, _ in left.values():
            wire.sendall(asking("/large"))
        room = bytearray(LARGE)
        while left and time.monotonic() < began + 60:
            for fd, _ in poll.poll(1):
                wire, missing = left[fd]
                try:
                    missing -= (n := wire.recv_into(room, LARGE, socket.MSG_TRUNC))     # read, and thrown away
                except OSError:
                    n = 0
                left[fd] = wire, missing
                if n == 0 or missing <= 0:
                    whole += missing <= 0
                    poll.unregister(fd)
                    wire.close()
                    del left[fd]
        took = time.monotonic() - began
        for wire, _ in left.values():
            wire.close()
        checks = healthy(client)
    return [*checks, (f"{count} replies of 1 MiB, whole", f"{whole} within {took:.1f} s", whole == count)]


def overload() -> list[Check]:
    """Twice the connections of `concurrency`; then four times the requests that the workers serve."""
    concurrency, workers, seconds = 512, 16, 8
    limits = {"concurrency": concurrency, "reject_slots": concurrency, "workers": workers, "max_queue": workers}
    with server(reactors=1, idle_timeout=600, max_conns_per_ip=0, **limits) as process:
        wires = [process.connect() for _ in range(2 * concurrency)]
        for wire in wires:
            wire.sendall(HELLO)
        answers = Counter(answer(wire) for wire in wires)
        for wire in wires:
            wire.close()
        capacity = workers / 0.02
        shed = -process.metric("fastserve_shed_total")
        alone, _ = paced(process, "/sleep", 0.5 * capacity, seconds)
        times, crowd = paced(process, "/sleep", 4 * capacity, seconds)
        shed += process.metric("fastserve_shed_total")
        unheard = process.metric("fastserve_connections_unheard_total")
        after = process.exchange()
    p99, p99_alone = (1000 * sorted(some)[int(0.99 * len(some))] for some in (times, alone))
    bound = 1.5 * (p99_alone + 1000 * workers / capacity)   # the queue's length is one request for each worker
    return [(f"{2 * concurrency} connections: a reply or a 503 each", f"{dict(answers)}",
             set(answers) == {"200", "503"} and answers["503"] >= concurrency),
            ("4x the load: a reply or a 503 each", f"{dict(crowd)}", set(crowd) == {"200", "503"}),
            ("as many as the workers serve in that time are served", f"{crowd['200'] / capacity / seconds:.0%}",
             crowd["200"] > 0.9 * capacity * seconds),
            ("the server counted those that it shed", f"{shed}", shed == crowd["503"]),
            ("nobody beyond `reject_slots` here", f"{unheard} closed unheard", unheard == 0),
            (f"accepted ones: p99 below {bound:.0f} ms, of half the load and a queue's length", f"{p99:.1f} ms",
             p99 < bound),
            ("then all is as before", f"{after[0]}", after == (200, b"hello"))]


def answer(wire: socket.socket) -> str:
    """The status, or how the connection ended without one."""
    try:
        return wire.recv(65536)[9:12].decode() or "closed"
    except ConnectionResetError:
        return "reset"


def paced(process: Process, path: str, rate: float, seconds: float) -> tuple[list[float], Counter[str]]:
    """`rate` requests a second, evenly, each on a connection of its own, whatever becomes of those before: how long
    each accepted one took, and what all got."""
    poll = select.epoll()
    open_: dict[int, tuple[socket.socket, float]] = {}
    times: list[float] = []
    seen: Counter[str] = Counter()
    raw, began, sent, count = asking(path), time.monotonic(), 0, int(rate * seconds)
    while (sent < count or open_) and time.monotonic() < began + seconds + 20:
        due = min(count, int((time.monotonic() - began) * rate) + 1)
        while sent < due:
            wire = process.connect()
            wire.send(raw)
            open_[wire.fileno()] = wire, time.monotonic()
            poll.register(wire, select.EPOLLIN)
            sent += 1
        for fd, _ in poll.poll(0.001 if sent < count else 1):
            wire, asked = open_.pop(fd)
            status = answer(wire)
            seen[status] += 1
            if status == "200":
                times.append(time.monotonic() - asked)
            wire.close()
    poll.close()
    for wire, _ in open_.values():
        seen["silent"] += 1
        wire.close()
    return times, seen


def stuck() -> list[Check]:
    """All workers stuck for 30 s."""
    workers, seconds = 8, 30
    with server(workers=workers, max_queue=4, queue_timeout=2) as process:
        held = []
        for _ in range(workers):
            wire = process.connect()
            wire.settimeout(seconds + 30)
            wire.sendall(asking(f"/stuck?for={seconds}"))
            held.append(wire)
        end = time.monotonic() + 20
        while json.loads(process.exchange(asking("/health", CLOSE))[1])["busy"] < workers:
            assert time.monotonic() < end
        health, metrics = Healthy(process, "/health", 0.01), Healthy(process, "/metrics", 0.05)
        health.start()
        metrics.start()
        shed = {"at once": 0, "from the queue": 0, "other": 0}
        waits = []
        end = time.monotonic() + seconds - 5
        while time.monotonic() < end:
            wires = [process.connect() for _ in range(8)]
            began = time.perf_counter()
            for wire in wires:
                wire.sendall(HELLO)
            while wires and time.perf_counter() < began + 20:
                for wire in select.select(wires, [], [], 1)[0]:
                    passed = time.perf_counter() - began
                    if not wire.recv(1000).startswith(b"HTTP/1.1 503 "):
                        shed["other"] += 1
                    elif passed < 0.5:
                        shed["at once"] += 1
                        waits.append(passed)
                    else:
                        shed["from the queue"] += 1
                    wire.close()
                    wires.remove(wire)
            shed["other"] += len(wires)
        checks = healthy(health)
        checks += healthy(metrics)
        freed = [wire.recv(1000).startswith(b"HTTP/1.1 200 ") for wire in held]
        again = process.exchange()[0]
    return [*checks,
            ("beyond the queue: 503 within 50 ms", f"{shed}, median {1000 * statistics.median(waits):.1f} ms, "
               f"longest {1000 * max(waits):.1f} ms", shed["other"] == 0 and max(waits) < 0.05),
            ("full recovery", f"{sum(freed)} of {workers} answered, then {again}", all(freed) and again == 200)]


def descriptors() -> list[Check]:
    """No descriptors for 10 s, while clients keep coming."""
    with server(concurrency=1000, reactors=1) as process:
        process.exchange()
        kept = [process.connect() for _ in range(20)]
        for wire in kept:
            wire.sendall(HELLO)
            assert wire.recv(1000).startswith(b"HTTP/1.1 200 ")
        limits = resource.prlimit(process.popen.pid, resource.RLIMIT_NOFILE)
        top = max(process.descriptors())
        resource.prlimit(process.popen.pid, resource.RLIMIT_NOFILE, (top + 1, limits[1]))
        cpu, end, answers = process.cpu(), time.monotonic() + 10, Counter[str]()
        while time.monotonic() < end:
            wire = process.connect()
            wire.sendall(HELLO)
            answers[answer(wire)] += 1
            wire.close()
        share = (process.cpu() - cpu) / 10
        kept[0].sendall(HELLO)
        alive = kept[0].recv(1000).startswith(b"HTTP/1.1 200 ")
        resource.prlimit(process.popen.pid, resource.RLIMIT_NOFILE, limits)
        began = time.monotonic()
        while process.exchange()[0] != 200:
            assert time.monotonic() < began + 10
        recovered = time.monotonic() - began
    return [("who has a connection is served", f"{alive}", alive),
            ("the others are told", f"{dict(answers)}", set(answers) == {"503"}),
            ("CPU meanwhile: below 5%", f"{share:.1%}", share < 0.05),
            ("recovered within 2 s", f"{recovered:.2f} s", recovered < 2)]


class Storm(threading.Thread):
    """Connections that end as they should not, one after the other."""

    def __init__(self, process: Process, count: int, seed: int) -> None:
        super().__init__(daemon=True)
        self.process, self.count, self.luck = process, count, random.Random(seed)
        self.asked = self.answered = self.wrong = 0

    def run(self) -> None:
        acts = (self.at_once, self.after_request, self.in_reply, self.in_body, self.in_pipeline, self.half_closed,
                self.half_closed_large, self.half_head)
        for _ in range(self.count):
            try:
                self.luck.choice(acts)()
            except OSError:
                self.wrong += 1

    def sent(self, raw: bytes, requests: int, receive_buffer: int | None = None) -> socket.socket:
        wire = self.process.connect(receive_buffer)
        wire.sendall(raw)
        self.asked += requests
        return wire

    def at_once(self) -> None:
        reset(self.process.connect())

    def after_request(self) -> None:
        reset(self.sent(HELLO, 1))

    def in_reply(self) -> None:
        wire = self.sent(asking("/large"), 1, receive_buffer=4096)
        wire.recv(1000)
        self.answered += 1
        reset(wire)

    def in_body(self) -> None:
        reset(self.sent(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nbegun", 0))

    def in_pipeline(self) -> None:
        reset(self.sent(16 * HELLO, 16))

    def half_closed(self, path: str = "/", size: int = len(b"hello")) -> None:
        wire = self.sent(asking(path), 1)
        wire.shutdown(socket.SHUT_WR)
        data = b""
        while part := wire.recv(65536):
            data += part
        head, _, body = data.partition(b"\r\n\r\n")
        self.answered += 1
        self.wrong += not (head.startswith(b"HTTP/1.1 200 ") and len(body) == size)
        wire.close()

    def half_closed_large(self) -> None:
        self.half_closed("/large", LARGE)

    def half_head(self) -> None:
        wire = self.sent(HELLO[:-2], 0)
        wire.shutdown(socket.SHUT_WR)
        self.wrong += wire.recv(1000) != b""
        wire.close()


def resets() -> list[Check]:
    """Resets at once, behind a request, in a body, in a reply; half-closes; the process stopped again and again."""
    checks: list[Check] = []
    with server(workers=16, max_conns_per_ip=0) as process:
        descriptors, asked, answered, wrong, private = process.descriptors(), 0, 0, 0, []
        for turn in range(3):
            client = Healthy(process, pause=0.01)
            client.start()
            storms = [Storm(process, 1500, 4 * turn + index) for index in range(4)]
            for storm in storms:
                storm.start()
            for _ in range(5):
                time.sleep(0.3)
                process.popen.send_signal(signal.SIGSTOP)
                time.sleep(0.3)
                process.popen.send_signal(signal.SIGCONT)
            for storm in storms:
                storm.join()
                asked, answered, wrong = asked + storm.asked, answered + storm.answered, wrong + storm.wrong
            checks = healthy(client, 700)       # it waits while the process is stopped
            asked, answered = asked + len(client.times), answered + len(client.times)
            end = time.monotonic() + 20
            while process.metric("fastserve_connections") > 1 and time.monotonic() < end:
                time.sleep(0.05)
            private.append(process.private())
        accepted, made = process.metric("fastserve_connections_accepted_total"), process.made
        requests = process.metric("fastserve_requests_total")
        ended = process.metric("fastserve_timeouts_total") + process.metric("fastserve_shed_total")
        lent = process.metric("fastserve_buffer_bytes")
        while (left := process.descriptors()) != descriptors and time.monotonic() < end:
            time.sleep(0.05)
    growth = private[2] / private[1] - 1
    return [*checks,
            ("half-closed ones: whole replies, or none where none was due", f"{wrong} wrong", wrong == 0),
            ("connections are counted", f"{accepted} of {made}", accepted == made),
            ("requests are counted: what was answered, at most what was asked",
             f"{answered} <= {requests} <= {asked}", answered <= requests <= asked),
            ("nothing timed out, nothing was shed", f"{ended}", ended == 0),
            ("no buffer is out but this connection's", f"{lent / 1024:.0f} KiB", lent < 100 * 1024),
            ("descriptors as before", f"{len(left)} of {len(descriptors)}", left == descriptors),
            ("the third storm needs no more memory than the second", f"{growth:+.1%}", growth < 0.02)]


CASES: dict[str, Callable[[], list[Check]]] = {
    "idle": idle, "slowloris": slowloris, "slow-bodies": slow_bodies, "downloads": downloads, "overload": overload,
    "stuck": stuck, "descriptors": descriptors, "resets": resets,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("case", nargs="*", choices=[*CASES, []], help="default: all of them")
    chosen = parser.parse_args().case or list(CASES)
    many_descriptors()
    end_within(600)
    all_hold = True
    for name in chosen:
        print(f"\n{name}: {CASES[name].__doc__}")
        all_hold &= told(CASES[name]())
    return 0 if all_hold else 1


if __name__ == "__main__":
    sys.exit(main())
