"""Clients that misbehave, and what a healthy one sees meanwhile: python bench/faults.py [CASE ...]

Knows: the faults of docs/reliability.md, a server in a process of its own, loopback. Never sees: the core.
Invariant: every case ends by itself, within its time and its number of connections; each figure is printed beside
what must hold, and the exit status is 0 if all of them do.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import select
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

HELLO = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
APPLICATION = """
import sys, time, threading, json
from fastserve import Server
LARGE = b"x" * 2**20
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
probes = {"health_path": "/health", "metrics_path": "/metrics"}
with Server(handler, **probes, **json.loads(sys.argv[1])).start("127.0.0.1:0") as server:
    print(server.addresses[0], flush=True)
    sys.stdin.read()
"""


class Process:
    """A server on the first usable core."""

    def __init__(self, **config: object) -> None:
        cores = sorted(os.sched_getaffinity(0))
        self.popen = subprocess.Popen([sys.executable, "-c", APPLICATION, json.dumps(config)], stdin=subprocess.PIPE,
                                      stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent,
                                      preexec_fn=lambda: os.sched_setaffinity(0, cores[:1]))
        assert self.popen.stdout is not None
        host, _, port = self.popen.stdout.readline().strip().rpartition(":")
        self.address = (host, int(port))

    def end(self) -> None:
        self.popen.communicate("", timeout=60)

    def memory(self) -> int:
        """Bytes that are the process's own."""
        for line in Path(f"/proc/{self.popen.pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Private_Dirty:"):
                return int(line.split()[1]) * 1024
        raise AssertionError

    def cpu(self) -> float:
        """Seconds so far."""
        fields = Path(f"/proc/{self.popen.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def connect(self) -> socket.socket:
        return socket.create_connection(self.address, 10)

    def metric(self, name: str) -> float:
        text = exchange(self, b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")[1].decode()
        return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith((f"{name} ", f"{name}{{")))


@contextmanager
def server(**config: object) -> Iterator[Process]:
    process = Process(**config)
    try:
        yield process
    finally:
        process.end()


def exchange(process: Process, raw: bytes) -> tuple[int, bytes]:
    """Status and body of one reply that ends with its connection."""
    with process.connect() as wire:
        wire.sendall(raw)
        data = b""
        while part := wire.recv(65536):
            data += part
    head, _, body = data.partition(b"\r\n\r\n")
    return int(head.split()[1]), body


class Healthy(threading.Thread):
    """One request after the other, half of them on new connections, until it is told to stop."""

    def __init__(self, process: Process, path: str = "/", pause: float = 0.002) -> None:
        super().__init__(daemon=True)
        self.process, self.raw, self.pause = process, HELLO.replace(b"/", path.encode(), 1), pause
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


Check = tuple[str, str, bool]


def at(name: str, figure: str, holds: bool) -> Check:
    return name, figure, holds


def healthy(client: Healthy, p99: float = 50) -> list[Check]:
    p, longest = client.told()
    return [at("healthy client: failures 0", f"{client.failures} of {len(client.times)}", client.failures == 0),
            at(f"healthy client: p99 below {p99:g} ms", f"{p:.1f} ms (longest {longest:.1f})", p < p99)]


def idle() -> list[Check]:
    """10,000 keep-alive connections that have had one reply each."""
    count = 10_000
    with server(reactors=1, concurrency=count + 100, idle_timeout=600) as process:
        exchange(process, HELLO.replace(b"Host", b"Connection: close\r\nHost"))
        time.sleep(1)
        before = process.memory()
        wires = []
        for _ in range(count):
            wire = process.connect()
            wire.sendall(HELLO)
            assert wire.recv(1000).startswith(b"HTTP/1.1 200 ")
            wires.append(wire)
        each = (process.memory() - before) / count
        time.sleep(1)
        cpu = process.cpu()
        time.sleep(10)
        used = process.cpu() - cpu
        for wire in wires:
            wire.close()
    return [at("10,000 idle connections: at most 512 bytes each", f"{each:.0f} bytes", each <= 512),
            at("CPU of 10 s: 0", f"{used:.2f} s", used == 0)]


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
    return [*checks, at("5,000 heads that trickle: all cut after 10 s +- 1", f"{len(lived)} cut, {spread}", cut)]


def slow_bodies() -> list[Check]:
    """1,000 bodies of one byte a second, 1,000 readers that never read a reply of 1 MiB."""
    head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n"
    with server(body_timeout=30, write_timeout=10, max_conns_per_ip=0) as process:
        exchange(process, HELLO.replace(b"Host", b"Connection: close\r\nHost"))
        before = process.memory()
        client = Healthy(process)
        client.start()
        readers = []
        for _ in range(1000):
            wire = socket.socket()
            wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            wire.connect(process.address)
            wire.sendall(HELLO.replace(b"/", b"/large", 1))
            readers.append(wire)
        lived = trickle(process, 1000, 20, head, b"x", 1)
        during = process.memory() - before
        checks = healthy(client)
        for wire in readers:
            wire.close()
        end = time.monotonic() + 30
        while process.metric("fastserve_connections") > 1 and time.monotonic() < end:
            time.sleep(0.2)
        lent = process.metric("fastserve_buffer_bytes")
        after = process.memory() - before
    return [*checks,
            at("slow bodies cut by their rate", f"{len(lived)} of 1000", len(lived) == 1000),
            at("memory meanwhile: below 100 MiB", f"{during / 2**20:.0f} MiB", during < 100 * 2**20),
            at("afterwards no buffer is out but this connection's", f"{lent / 1024:.0f} KiB", lent < 100 * 1024),
            at("and kept for later: at most 60 MiB", f"{after / 2**20:.0f} MiB", after < 60 * 2**20)]


def overload() -> list[Check]:
    """Twice the connections of `concurrency`, and more requests of 20 ms each than the workers serve."""
    concurrency, workers = 512, 16
    with server(concurrency=concurrency, reject_slots=concurrency, workers=workers, reactors=1, max_queue=64,
                queue_timeout=0.5) as process:
        lock = threading.Lock()
        got: dict[str, int] = {}
        times: list[float] = []

        def crowd(count: int) -> None:
            for _ in range(count):
                began = time.perf_counter()
                try:
                    with process.connect() as wire:
                        wire.sendall(HELLO.replace(b"/", b"/sleep", 1))
                        data = wire.recv(65536)
                        answer = data[9:12].decode() if data else "closed"
                except ConnectionResetError:
                    answer = "reset"
                with lock:
                    got[answer] = got.get(answer, 0) + 1
                    if answer == "200":
                        times.append(time.perf_counter() - began)

        threads = [threading.Thread(target=crowd, args=(12,)) for _ in range(2 * concurrency)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        after = exchange(process, HELLO.replace(b"Host", b"Connection: close\r\nHost"))
        unheard = process.metric("fastserve_connections_unheard_total")
    times.sort()
    p99 = times[int(0.99 * len(times))]
    return [at("each client has a reply or a 503", f"{got}", set(got) <= {"200", "503"}),
            at("nobody beyond `reject_slots` here", f"{unheard:.0f} closed unheard", unheard == 0),
            at("accepted ones wait queue_timeout at most, p99", f"{p99:.2f} s", p99 < 1.5),
            at("then all is as before", f"{after[0]}", after == (200, b"hello"))]


def stuck() -> list[Check]:
    """All workers stuck for 30 s."""
    workers, seconds = 8, 30
    with server(workers=workers, max_queue=4, queue_timeout=2) as process:
        held = []
        for _ in range(workers):
            wire = process.connect()
            wire.settimeout(seconds + 30)
            wire.sendall(HELLO.replace(b"/", b"/stuck?for=%d" % seconds, 1))
            held.append(wire)
        end = time.monotonic() + 20
        while json.loads(exchange(process, b"GET /health HTTP/1.0\r\n\r\n")[1])["busy"] < workers:
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
            while wires:
                for wire in select.select(wires, [], [], 10)[0]:
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
        checks = healthy(health)
        checks += healthy(metrics)
        freed = [wire.recv(1000).startswith(b"HTTP/1.1 200 ") for wire in held]
        again = exchange(process, HELLO.replace(b"Host", b"Connection: close\r\nHost"))[0]
    return [*checks,
            at("beyond the queue: 503 within 50 ms", f"{shed}, median {1000 * statistics.median(waits):.1f} ms, "
               f"longest {1000 * max(waits):.1f} ms", shed["other"] == 0 and max(waits) < 0.05),
            at("full recovery", f"{sum(freed)} of {workers} answered, then {again}", all(freed) and again == 200)]


def descriptors() -> list[Check]:
    """No descriptors for 10 s, while clients keep coming."""
    with server(concurrency=1000, reactors=1) as process:
        exchange(process, HELLO.replace(b"Host", b"Connection: close\r\nHost"))
        kept = [process.connect() for _ in range(20)]
        for wire in kept:
            wire.sendall(HELLO)
            assert wire.recv(1000).startswith(b"HTTP/1.1 200 ")
        limits = resource.prlimit(process.popen.pid, resource.RLIMIT_NOFILE)
        top = max(int(name) for name in os.listdir(f"/proc/{process.popen.pid}/fd"))
        resource.prlimit(process.popen.pid, resource.RLIMIT_NOFILE, (top + 1, limits[1]))
        cpu, end, told = process.cpu(), time.monotonic() + 10, {}
        while time.monotonic() < end:
            wire = process.connect()
            wire.sendall(HELLO)
            try:
                answer = wire.recv(1000)[9:12].decode()
            except OSError:
                answer = "reset"
            told[answer] = told.get(answer, 0) + 1
            wire.close()
        share = (process.cpu() - cpu) / 10
        kept[0].sendall(HELLO)
        alive = kept[0].recv(1000).startswith(b"HTTP/1.1 200 ")
        resource.prlimit(process.popen.pid, resource.RLIMIT_NOFILE, limits)
        began = time.monotonic()
        while exchange(process, HELLO.replace(b"Host", b"Connection: close\r\nHost"))[0] != 200:
            assert time.monotonic() < began + 10
        recovered = time.monotonic() - began
    return [at("who has a connection is served", f"{alive}", alive),
            at("the others are told", f"{told}", set(told) <= {"503"}),
            at("CPU meanwhile: below 5%", f"{share:.1%}", share < 0.05),
            at("recovered within 2 s", f"{recovered:.2f} s", recovered < 2)]


CASES: dict[str, Callable[[], list[Check]]] = {
    "idle": idle, "slowloris": slowloris, "slow-bodies": slow_bodies, "overload": overload, "stuck": stuck,
    "descriptors": descriptors,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("case", nargs="*", choices=[*CASES, []], help="default: all of them")
    chosen = parser.parse_args().case or list(CASES)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 20_000)), hard))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(600)       # whatever happens
    all_hold = True
    for name in chosen:
        print(f"\n{name}: {CASES[name].__doc__}")
        for what, figure, holds in CASES[name]():
            all_hold &= holds
            print(f"  {'holds' if holds else 'DOES NOT HOLD':14} {what:55} {figure}", flush=True)
    return 0 if all_hold else 1


if __name__ == "__main__":
    sys.exit(main())
