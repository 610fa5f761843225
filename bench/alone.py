"""The cases that measure fastserve alone, or against the C responder, each with a goal of its own.

Knows these goals; nothing of how a server is started, timed or pinned.
"""

from __future__ import annotations

import contextlib
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator

from case import FAIL, MEASURED, PASS, SKIPPED, Bench, Case, Verdict
from client import Client, gather, request
from contenders import BODY, PIPELINED, check_hello
from measure import CONNECTIONS, BenchError, Series, Server, interleave, load, running

STALL = 3.0                 # how long /gil keeps the GIL, in seconds
NEWCOMERS = 50
CROWD = 40                  # requests beyond the one that meets the stalled handler first
MAX_QUEUE = 8
IDLERS = 1000
IDLE_SECONDS = 10
WARM_REQUESTS = 100_000
HELLO = request("/")


def judge(reached: bool) -> str:
    return PASS if reached else FAIL


def pipelined(bench: Bench) -> Verdict:
    with running([bench.contenders.epoll(), bench.contenders.fastserve("hello")]) as servers:
        series = interleave(servers, bench.effort, HELLO * PIPELINED, check_hello)
    speed = series[1].ratio(series[0], "requests_per_s")
    return Verdict(judge(speed >= 0.70), f"{speed:.2f}", series, {"speed": speed})


def some_sleep(bench: Bench) -> Verdict:
    handlers = "hello", "one_percent_sleeps"
    with running([bench.contenders.fastserve(handler, workers=72) for handler in handlers]) as servers:
        series = interleave(servers, bench.effort, HELLO, check_hello)
    speed = series[1].ratio(series[0], "requests_per_s")
    return Verdict(judge(speed >= 0.70), f"{speed:.2f}", series, {"speed": speed})


def all_sleep(bench: Bench) -> Verdict:
    with running([bench.contenders.fastserve("all_sleep", workers=72)]) as servers:
        series = interleave(servers, bench.effort, HELLO, check_hello)
    speed = series[0].median("requests_per_s")
    return Verdict(judge(speed >= 5700), f"{speed:,.0f} requests/s", series, {"requests_per_s": speed})


def access_log(bench: Bench) -> Verdict:
    with tempfile.TemporaryDirectory() as folder:
        logging = bench.contenders.fastserve("hello", access_log=f"{folder}/access.log")
        logging.name = "fastserve hello with an access log"
        with running([bench.contenders.fastserve("hello"), logging]) as servers:
            series = interleave(servers, bench.effort, HELLO, check_hello)
    more = statistics.median(b.cpu_us - a.cpu_us for a, b in zip(*(one.rounds for one in series), strict=True))
    return Verdict(judge(more <= 0.4), f"{more:+.2f} us", series, {"more_us": more})


def beyond_hello(bench: Bench, handler: str, message: bytes, most: float, note: str = "") -> Verdict:
    """What a handler, and the request that it is for, cost beyond hello."""
    with running([bench.contenders.fastserve(name) for name in ("hello", handler)]) as servers:
        series = [Series(server.name) for server in servers]
        for number in range(-1, bench.effort.rounds):       # the first one warms up
            for server, one, raw in zip(servers, series, (HELLO, message), strict=True):
                done = load(server, bench.effort.seconds, raw)
                if number >= 0:
                    one.rounds.append(done)
    more = statistics.median(b.cpu_us - a.cpu_us for a, b in zip(*(one.rounds for one in series), strict=True))
    return Verdict(judge(more <= most), f"{more:+.2f} us{note}", series, {"more_us": more})


def words(bench: Bench) -> Verdict:
    message = request("/a/path?name=World&page=7", "X-Trace: 4bf92f3577b34da6", "Cookie: session=0123456789abcdef")
    return beyond_hello(bench, "words", message, 1.5)


def write_json(bench: Bench) -> Verdict:
    has_orjson = not subprocess.run([bench.python, "-c", "import orjson"], stderr=subprocess.DEVNULL).returncode
    if has_orjson:
        return beyond_hello(bench, "message", HELLO, 2.0, " with orjson")
    verdict = beyond_hello(bench, "message", HELLO, 2.0, " with the standard library")
    verdict.state = MEASURED
    return verdict


@contextlib.contextmanager
def kept_busy(server: Server, path: str) -> Iterator[Callable[[], int]]:
    """One connection asks for `path` again and again; yields the number of answers so far."""
    stop = threading.Event()
    answers = 0

    def ask() -> None:
        nonlocal answers
        with contextlib.suppress(BenchError, OSError), Client(server.port, timeout=10) as client:
            while not stop.is_set() and client.get(path).status == 200:
                answers += 1

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield lambda: answers
    finally:
        stop.set()
        thread.join()


def one_computes(bench: Bench) -> Verdict:
    with running([bench.contenders.fastserve("hog")]) as servers, kept_busy(servers[0], "/hog") as answers:
        before, begin = answers(), time.monotonic()
        series = interleave(servers, bench.effort, HELLO, check_hello)
        hogs = (answers() - before) / (time.monotonic() - begin)
    speed, p99 = series[0].median("requests_per_s"), series[0].median("p99_ms")
    return Verdict(
        judge(speed >= 8000 and p99 <= 30 and hogs > 0),
        f"{speed:,.0f} requests/s, p99 {p99:.1f} ms, beside {hogs:.1f} computations/s",
        series, {"requests_per_s": speed, "p99_ms": p99, "computations_per_s": hogs})


def in_parallel(bench: Bench) -> Verdict:
    if bench.contenders.python_facts["gil"]:
        return Verdict(SKIPPED, "this Python has a GIL: one handler computes at a time")
    with running([bench.contenders.fastserve("computes", everywhere=True, reactors=n) for n in (1, 2)]) as servers:
        series = interleave(servers, bench.effort, HELLO, check_hello)
    speed = series[1].ratio(series[0], "requests_per_s")
    return Verdict(judge(speed >= 1.7), f"{speed:.2f}", series, {"speed": speed})


def gil_held(bench: Bench) -> Verdict:
    if not bench.contenders.python_facts["gil"]:
        return Verdict(SKIPPED, "this Python has no GIL to hold")
    server = bench.contenders.fastserve("gil", header_timeout=1, max_queue=MAX_QUEUE)
    with running([server]), contextlib.ExitStack() as stack:
        check_hello(server)
        holder = stack.enter_context(Client(server.port))
        holder.send(request("/gil"))
        began = time.monotonic()
        time.sleep(0.2)

        files, connecting = server.open_files(), time.monotonic()
        newcomers = [stack.enter_context(Client(server.port)) for _ in range(NEWCOMERS)]
        while server.open_files() < files + NEWCOMERS and time.monotonic() < connecting + 1:
            time.sleep(0.001)
        accepted, accept_s = server.open_files() - files, time.monotonic() - connecting

        half, first, *others = newcomers
        half.send(b"GET / HTTP/1.1\r\nHost: ")
        first.send(request("/"))
        time.sleep(0.1)
        crowd = others[:CROWD]
        for client in crowd:
            client.send(request("/"))
        early = gather([half, *crowd], until=began + STALL - 0.2)
        held_s = holder.receive().after
        late = gather({first, *crowd} - set(early), until=time.monotonic() + 5)

    timeout = early.pop(half, None)
    shed_ms = [1000 * reply.after for reply in early.values() if reply.status == 503]
    served = sum(reply.status == 200 and reply.body == BODY for reply in late.values())
    numbers = {
        "held_s": held_s, "accepted": accepted, "accept_ms": 1000 * accept_s,
        "timeout_status": timeout and timeout.status, "timeout_s": timeout and timeout.after,
        "shed": len(shed_ms), "shed_ms_max": max(shed_ms, default=None), "served_afterwards": served,
    }
    reached = (
        held_s >= STALL - 0.05
        and accepted >= NEWCOMERS
        and timeout is not None and timeout.status == 408 and 0.95 <= timeout.after <= 1.25
        and len(shed_ms) >= CROWD - MAX_QUEUE and max(shed_ms) <= 50
        and len(shed_ms) + served == CROWD + 1
    )
    return Verdict(
        judge(reached),
        f"GIL held {held_s:.2f} s; {accepted} of {NEWCOMERS} accepted in {1000 * accept_s:.0f} ms; "
        "half a head: " + (f"{timeout.status} after {timeout.after:.2f} s; " if timeout else "no answer; ")
        + f"{len(shed_ms)} of {CROWD + 1} got 503"
        + (f" in {max(shed_ms):.0f} ms at most" if shed_ms else "") + f", {served} got 200 afterwards",
        numbers=numbers)


def idle(bench: Bench) -> Verdict:
    with running([bench.contenders.fastserve("hello")]) as (server,), contextlib.ExitStack() as stack:
        clients = [stack.enter_context(Client(server.port)) for _ in range(IDLERS)]
        for client in clients:
            client.get("/")
        time.sleep(1)
        ticks, cpu_ns = server.cpu_ticks(), server.cpu_ns()
        time.sleep(IDLE_SECONDS)
        ticks, cpu_ns = server.cpu_ticks() - ticks, server.cpu_ns() - cpu_ns
        if any(client.get("/").body != BODY for client in clients):
            raise BenchError("an idle connection no longer answers")
    return Verdict(judge(ticks == 0), f"{ticks} ticks ({cpu_ns:,} ns) in {IDLE_SECONDS} s",
                   numbers={"ticks": ticks, "cpu_ns": cpu_ns})


def allocations(bench: Bench) -> Verdict:
    with running([bench.contenders.fastserve("hello")]) as (server,), contextlib.ExitStack() as stack:
        clients = [stack.enter_context(Client(server.port)) for _ in range(CONNECTIONS)]

        def requests(number: int) -> int:
            """At least so many requests, one at a time on each connection."""
            turns = -(-number // CONNECTIONS)
            for _ in range(turns):
                for client in clients:
                    client.send(request("/"))
                for client in clients:
                    client.receive()
            return turns * CONNECTIONS

        requests(WARM_REQUESTS // 10)
        before = server.ask().strip()
        if before == "null":
            return Verdict(SKIPPED, "this build does not count allocations (build with FASTSERVE_DEBUG=1)")
        done = requests(WARM_REQUESTS)
        made = int(server.ask()) - int(before)
    return Verdict(judge(made == 0), f"{made} in {done:,} requests",
                   numbers={"calls": made, "requests": done})


ALONE = (
    Case("pipelined", "hello, 16 pipelined: requests/s / the C epoll responder's", "at least 0.70",
         pipelined, quick=False),
    Case("some-sleep", "1 in 100 handlers sleeps 20 ms, 72 workers: requests/s / hello's", "at least 0.70",
         some_sleep, quick=False),
    Case("all-sleep", "every handler sleeps 10 ms, 72 workers (ideal 6,400 requests/s)",
         "at least 5,700 requests/s", all_sleep, quick=False),
    Case("words", "path, two arguments, a field and a cookie read, 100 bytes back: CPU a request / hello's",
         "at most 1.50 us more", words, quick=False),
    Case("write-json", "`write_json` of a small object: CPU a request / hello's", "at most 2.00 us more with orjson",
         write_json, quick=False),
    Case("access-log", "hello: CPU a request with an access log in a file / without", "at most 0.40 us more",
         access_log, quick=False),
    Case("one-computes", "hello while one connection computes 50 ms of Python in a loop",
         "at least 8,000 requests/s, p99 at most 30 ms", one_computes),
    Case("in-parallel", "free-threaded, every handler computes: requests/s of 2 reactors / of 1", "at least 1.70",
         in_parallel),
    Case("gil-held", "one handler holds the GIL in a C call for 3 s; header_timeout=1, max_queue=8",
         f"{NEWCOMERS} connections accepted meanwhile, half a head answered 408 in time, "
         "requests beyond the queue answered 503 within 50 ms", gil_held),
    Case("idle", f"{IDLERS:,} open connections, no request", f"0 CPU ticks in {IDLE_SECONDS} s", idle),
    Case("allocations", f"allocations of our C code in {WARM_REQUESTS:,} warm keep-alive requests", "0",
         allocations, quick=False),
)
