"""The pool at work: whoever blocks, computes or keeps the GIL, the others are served.

Knows: handlers that block, compute or hold the GIL, and connections beside them. Never sees: which thread turns
the reactor, nor how long anything took: "meanwhile" is a handler that is still inside, waiting to be let out.
"""

import contextlib
import json
import random
import select
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
import test_leaving as leaving
from conftest import PATIENCE, Running, Serve, Wire, wait_until
from test_leaving import GET, Run, connect, get, reply

from fastserve import RequestCtx

script = leaving.script

FREE_THREADED = not getattr(sys, "_is_gil_enabled", lambda: True)()


class Gate:
    """A handler that blocks on every path below /block until `open`; others answer with their path."""

    def __init__(self) -> None:
        self.inside = threading.Semaphore(0)
        self.way = threading.Event()

    def __call__(self, ctx: RequestCtx) -> None:
        if ctx.path.startswith("/block"):
            self.inside.release()
            self.way.wait()
        ctx.write(ctx.path)

    def entered(self, count: int) -> None:
        for _ in range(count):
            assert self.inside.acquire(timeout=PATIENCE), "a handler was not called"

    def open(self) -> None:
        self.way.set()


@pytest.fixture
def gate(serve: Serve) -> Iterator[Gate]:
    """It is open at the end of the test, whatever happened, before its server must be empty."""
    made = Gate()
    yield made
    made.open()


def ask(wire: Wire, path: str) -> Wire:
    return wire.send(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())


def counted(server: Running, requests: int) -> None:
    """A reply is sent first and counted when its connection comes home."""
    wait_until(lambda: server.stats()["requests"] >= requests, "the count of requests")
    assert server.stats()["requests"] == requests


@pytest.mark.parametrize("workers", [2, 3, 4])
def test_while_a_handler_blocks_others_are_served(serve: Serve, gate: Gate, workers: int) -> None:
    server = serve(gate, workers=workers, reactors=1)
    blocked = [ask(server.connect(), f"/block/{n}") for n in range(workers - 1)]
    gate.entered(workers - 1)
    kept = server.connect()
    for n in range(20):
        assert kept.get(f"/{n}").body == b"/%d" % n
        assert server.get("/new").body == b"/new"
    assert all(wire.silent() for wire in blocked)
    gate.open()
    for n, wire in enumerate(blocked):
        assert wire.read().body == b"/block/%d" % n
        assert wire.get("/after").body == b"/after"


def test_while_all_workers_block_the_server_lives(serve: Serve, gate: Gate) -> None:
    server = serve(gate, workers=2, reactors=1, max_queue=3, header_timeout=0.2, queue_timeout=600)
    blocked = [ask(server.connect(), f"/block/{n}") for n in range(2)]
    gate.entered(2)
    half = server.connect().send(b"GET /half HTTP/1.1\r\nHo")
    queued = []
    for n in range(3):
        queued.append(ask(server.connect(), f"/queued/{n}"))
        wait_until(lambda n=n: server.stats()["queued"] == n + 1, "the queue")
    for _ in range(5):
        shed = server.get("/shed")
        assert (shed.status, shed.get("Connection")) == (503, None)
        assert (shed.get("Retry-After") or "").isdecimal()
    late = half.read()
    assert (late.status, late.closes) == (408, True)
    assert half.ended()
    assert all(wire.silent() for wire in (*blocked, *queued))
    gate.open()
    for n, wire in enumerate(blocked):
        assert wire.read().body == b"/block/%d" % n
    for n, wire in enumerate(queued):
        assert wire.read().body == b"/queued/%d" % n
    counted(server, 5)
    stats = server.stats()
    assert (stats["shed_queue_full"], stats["requests"], stats["refusals"]) == (5, 5, {408: 1})


def test_what_waits_too_long_in_the_queue_is_shed_while_all_workers_block(serve: Serve, gate: Gate) -> None:
    server = serve(gate, workers=2, reactors=1, queue_timeout=0.1)
    blocked = [ask(server.connect(), "/block") for _ in range(2)]
    gate.entered(2)
    wire = server.connect()
    for _ in range(3):
        shed = ask(wire, "/queued").read()
        assert (shed.status, shed.get("Connection")) == (503, None)
    gate.open()
    assert [wire.read().body for wire in blocked] == [b"/block"] * 2
    assert wire.get("/after").body == b"/after"
    assert server.stats()["shed_queue_timeout"] == 3


def test_more_workers_come_while_all_block_and_max_workers_allows_it(serve: Serve, gate: Gate) -> None:
    server = serve(gate, workers=2, max_workers=6, reactors=1, queue_timeout=600, max_idle_worker_duration=0.05)
    blocked = [ask(server.connect(), f"/block/{n}") for n in range(6)]
    gate.entered(6)
    assert server.stats()["workers"] == 6
    assert server.stats()["workers_parked"] == 0
    gate.open()
    for n, wire in enumerate(blocked):
        assert wire.read().body == b"/block/%d" % n
    # One of them may hold the lease; who waits with it is not idle.
    wait_until(lambda: server.stats()["workers"] <= 3, "spare workers to leave")
    assert server.get("/after").body == b"/after"


def test_the_reply_before_a_blocked_one_is_not_kept_waiting(serve: Serve, gate: Gate) -> None:
    server = serve(gate, workers=2, reactors=1)
    wire = server.connect()
    wire.send(*(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode() for path in ("/1", "/2", "/block", "/3", "/4")))
    assert [wire.read().body for _ in range(2)] == [b"/1", b"/2"]
    gate.entered(1)
    assert wire.silent()
    assert server.get("/other").body == b"/other"
    gate.open()
    assert [wire.read().body for _ in range(3)] == [b"/block", b"/3", b"/4"]


def test_a_client_that_goes_while_its_handler_blocks(serve: Serve, gate: Gate) -> None:
    server = serve(gate, workers=4, reactors=1)
    with ExitStack() as wires:
        for n in range(3):
            wires.enter_context(server.connect()).send(f"GET /block/{n} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        gate.entered(3)
    assert server.get("/meanwhile").body == b"/meanwhile"
    gate.open()
    wait_until(lambda: server.stats()["connections"] == 0, "the end of the connections")
    assert server.get("/after").body == b"/after"


def test_while_a_handler_computes_others_are_served(serve: Serve) -> None:
    computes, stop = threading.Event(), threading.Event()

    def handler(ctx: RequestCtx) -> None:
        if ctx.path == "/compute":
            computes.set()
            while not stop.is_set():
                sum(range(1000))
        ctx.write(ctx.path)

    server = serve(handler, workers=3, reactors=1)
    busy = ask(server.connect(), "/compute")
    assert computes.wait(PATIENCE)
    for n in range(10):
        assert server.get(f"/{n}").body == b"/%d" % n
    assert busy.silent()
    stop.set()
    assert busy.read().body == b"/compute"


HOLDS = """
os.environ.pop("LD_PRELOAD", None)      # of a sanitizer
system = ctypes.PyDLL(None).system

def handler(ctx):
    if ctx.path == "/hold":
        system(b"echo called; exec cat >/dev/null 2>&1")
    elif ctx.path == "/nap":
        time.sleep(0.002)
    ctx.write(ctx.path)

"""
"""One call says that it has begun and lasts, so that nobody has the GIL in between; `cat` ends with its input."""


def held_while_handlers_block(clients: ExitStack, address: str) -> socket.socket:
    """From here on one handler holds the GIL, and requests are taken along to it; the connection of the others."""
    napping = clients.enter_context(connect(address))
    for _ in range(40):
        napping.sendall(GET.replace(b"/", b"/nap", 1))
        assert reply(napping).endswith(b"\r\n\r\n/nap")
    clients.enter_context(connect(address)).sendall(GET.replace(b"/", b"/hold", 1))
    return napping


def test_while_a_handler_holds_the_gil_the_server_lives(script: Run) -> None:
    """Nothing of Python runs in that process: accepting, deadlines and shedding are native."""
    if not getattr(sys, "_is_gil_enabled", lambda: True)():
        pytest.skip("this Python has no GIL to hold")
    process = script(HOLDS + """
Server(handler, workers=4, reactors=1, max_queue=2, header_timeout=0.2, queue_timeout=600, shutdown_timeout=600
       ).serve("127.0.0.1:0", ready=ready)
""")
    [address] = process.addresses()
    with ExitStack() as clients:
        held = clients.enter_context(connect(address))
        held.sendall(GET.replace(b"/", b"/hold", 1))
        assert process.line() == "called"
        half = clients.enter_context(connect(address))
        half.sendall(GET[:10])
        replies = []
        for _ in range(20):         # two of them are queued, the others shed
            client = clients.enter_context(connect(address))
            client.sendall(GET)
            replies.append(client)
        assert reply(half).startswith(b"HTTP/1.1 408 ")
        shed = 0
        for client in replies[2:]:
            got = reply(client)
            assert got.startswith(b"HTTP/1.1 503 ")
            assert b"\r\nRetry-After: " in got
            shed += 1
        assert shed == 18


def test_few_requests_wait_for_the_gil_out_of_the_queue_s_reach(script: Run) -> None:
    """Handlers block, so requests are taken along by workers that wait for the GIL: four of a reactor, no more.
    Two others are queued, and the rest are shed."""
    if not getattr(sys, "_is_gil_enabled", lambda: True)():
        pytest.skip("this Python has no GIL to hold")
    process = script(HOLDS + """
Server(handler, workers=16, reactors=1, max_queue=2, queue_timeout=600, shutdown_timeout=600
       ).serve("127.0.0.1:0", ready=ready)
""")
    [address] = process.addresses()
    with ExitStack() as clients:
        held_while_handlers_block(clients, address)
        assert process.line() == "called"
        waiting = set()
        for _ in range(20):
            client = clients.enter_context(connect(address))
            client.sendall(GET)
            waiting.add(client)
        while len(waiting) > 6:
            shed, _, _ = select.select(waiting, [], [], PATIENCE)
            assert shed, f"{len(waiting)} wait"
            for client in shed:
                assert reply(client).startswith(b"HTTP/1.1 503 ")
            waiting -= set(shed)
        assert len(waiting) == 6


@pytest.mark.parametrize("handler_timeout", [0, 0.1])
def test_who_waits_for_the_gil_out_of_the_queue_is_shed_in_time_as_well(script: Run, handler_timeout: float) -> None:
    """Its handler is not called any more, and no handler was late."""
    if not getattr(sys, "_is_gil_enabled", lambda: True)():
        pytest.skip("this Python has no GIL to hold")
    process = script("import json" + HOLDS.replace("    ctx.write", """    elif ctx.path == "/":
        calls.append(1)
    elif ctx.path == "/stats":
        say(json.dumps(server.stats()))
    ctx.write""") + f"""
calls = []
server = Server(handler, workers=16, reactors=1, queue_timeout=0.3, shutdown_timeout=600, access_log="-",
                handler_timeout={handler_timeout})
server.serve("127.0.0.1:0", ready=ready)
say(len(calls))
""")
    [address] = process.addresses()

    def lines() -> Iterator[str]:
        """What is no line of the access log."""
        while True:
            if not (line := process.line()).startswith("127.0.0.1 - - "):
                yield line

    with ExitStack() as clients:
        napping = held_while_handlers_block(clients, address)
        assert next(lines()) == "called"
        waiting = [clients.enter_context(connect(address)) for _ in range(20)]
        for client in waiting:
            client.sendall(GET)
        for client in waiting:
            got = reply(client)
            assert got.startswith(b"HTTP/1.1 503 ")
            assert b"\r\nRetry-After: 1\r\n" in got
        assert process.popen.stdin is not None
        process.popen.stdin.close()
        assert get(address).endswith(b"\r\n\r\n/")
        napping.sendall(GET.replace(b"/", b"/stats", 1))
        assert reply(napping).startswith(b"HTTP/1.1 200 ")
    stats = json.loads(next(lines()))
    assert (stats["shed_queue_timeout"], stats["timed_out_handler"]) == (20, bool(handler_timeout))
    assert stats["statuses"]["5xx"] == 20 + bool(handler_timeout)
    process.popen.terminate()
    assert next(lines()) == "1"


def test_who_waits_for_the_gil_when_all_is_cut_is_not_called_any_more(script: Run) -> None:
    if not getattr(sys, "_is_gil_enabled", lambda: True)():
        pytest.skip("this Python has no GIL to hold")
    process = script(HOLDS.replace("    ctx.write", """    elif ctx.path == "/":
        calls.append(1)
    ctx.write""") + """
calls = []
server = Server(handler, workers=16, reactors=1, queue_timeout=600, shutdown_timeout=0.2)
server.serve("127.0.0.1:0", ready=ready)
say(len(calls), server.stats()["cut"])
""")
    [address] = process.addresses()
    with ExitStack() as clients:
        held_while_handlers_block(clients, address)
        assert process.line() == "called"
        waiting = [clients.enter_context(connect(address)) for _ in range(8)]
        for client in waiting:
            client.sendall(GET)
        last = clients.enter_context(connect(address))
        last.sendall(b"nonsense\r\n\r\n")
        assert reply(last).startswith(b"HTTP/1.1 400 ")      # those before are lined up, or taken along
        process.popen.terminate()
        for client in waiting:
            with contextlib.suppress(ConnectionResetError):
                assert client.recv(1) == b""
        assert process.popen.stdin is not None
        process.popen.stdin.close()
        assert process.line() == "0 9"


def test_after_a_handler_held_the_gil_all_is_answered(script: Run) -> None:
    process = script(HOLDS + """
Server(handler, workers=4, reactors=1).serve("127.0.0.1:0", ready=ready)
""")
    [address] = process.addresses()
    with ExitStack() as clients:
        held = clients.enter_context(connect(address))
        held.sendall(GET.replace(b"/", b"/hold", 1))
        assert process.line() == "called"
        others = [clients.enter_context(connect(address)) for _ in range(10)]
        for n, client in enumerate(others):
            client.sendall(GET.replace(b"/", b"/%d" % n, 1))
        last = clients.enter_context(connect(address))
        last.sendall(b"nonsense\r\n\r\n")
        assert reply(last).startswith(b"HTTP/1.1 400 ")      # natively: those before have been read
        assert process.popen.stdin is not None
        process.popen.stdin.close()
        for n, client in enumerate(others):
            assert reply(client).endswith(b"\r\n\r\n/%d" % n)
        assert reply(held).endswith(b"\r\n\r\n/hold")
    assert get(address).endswith(b"\r\n\r\n/")


def test_passing_first_and_back(serve: Serve) -> None:
    """Handlers that block again and again, then instant ones, in turn: nothing is lost or answered twice."""
    pause = threading.Event()

    def handler(ctx: RequestCtx) -> None:
        if ctx.path.startswith("/slow"):
            pause.wait(0.002)
        ctx.write(ctx.path)

    server = serve(handler, workers=8, reactors=1)
    wires = [server.connect() for _ in range(16)]
    asked = 0
    for kind in ("slow", "fast") * 3:
        for turn in range(20 if kind == "slow" else 60):
            for n, wire in enumerate(wires):
                ask(wire, f"/{kind}/{n}/{turn}")
            for n, wire in enumerate(wires):
                assert wire.read().body == f"/{kind}/{n}/{turn}".encode()
                asked += 1
    counted(server, asked)
    stats = server.stats()
    assert stats["requests"] == stats["statuses"]["2xx"] == asked
    assert stats["passed_first"] > 0


@pytest.mark.parametrize(("workers", "reactors"), [(2, 1), (16, 1), (8, 2)])
def test_a_random_load_is_answered_once_each(
    serve: Serve, chance: random.Random, workers: int, reactors: int
) -> None:
    """32 clients with 50 requests each, some pipelined; handlers are instant, sleep, or compute."""
    lock, calls, pause = threading.Lock(), [0], threading.Event()

    def handler(ctx: RequestCtx) -> None:
        kind = ctx.query.get("kind")
        if kind == "sleep":
            pause.wait(0.003)
        elif kind == "compute":
            sum(range(30_000))
        with lock:
            calls[0] += 1
        ctx.set_header("X-Path", ctx.path)
        ctx.write(ctx.body)

    server = serve(handler, workers=workers, reactors=reactors, queue_timeout=600, max_queue=100_000)
    problems: list[str] = []

    def client(number: int, luck: random.Random) -> None:
        asked = 0
        with Wire(server.address) as wire:
            while asked < 50:
                batch = []
                for _ in range(min(luck.choice((1, 1, 1, 4)), 50 - asked)):
                    kind = luck.choices(("instant", "sleep", "compute"), (8, 2, 1))[0]
                    batch.append((f"/{number}/{asked}", kind, luck.randbytes(luck.choice((0, 3, 300, 20_000)))))
                    asked += 1
                for path, kind, body in batch:
                    head = f"POST {path}?kind={kind} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
                    wire.send(head.encode(), body)
                for path, _, body in batch:
                    got = wire.read()
                    if (got.status, got.get("X-Path"), got.body) != (200, path, body):
                        problems.append(f"{path}: {got}")
            if not wire.silent():
                problems.append(f"client {number} got more than it asked for")

    def guarded(number: int, luck: random.Random) -> None:
        try:
            client(number, luck)
        except (AssertionError, OSError) as error:
            problems.append(f"client {number}: {error!r}")

    threads = [
        threading.Thread(target=guarded, args=(n, random.Random(chance.randrange(2**32)))) for n in range(32)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(4 * PATIENCE)
    assert problems == []
    counted(server, 1600)
    stats = server.stats()
    assert calls == [1600]
    assert stats["requests"] == stats["statuses"]["2xx"] == 1600


def test_a_worker_that_blocked_comes_home_while_others_do(serve: Serve) -> None:
    """Many connections in handlers at once come back together and go on at once."""
    together = threading.Barrier(8)

    def handler(ctx: RequestCtx) -> None:
        if ctx.path == "/together":
            together.wait(PATIENCE)
        ctx.write(ctx.path)

    server = serve(handler, workers=8, reactors=1)
    wires = [server.connect() for _ in range(8)]
    for turn in range(25):
        for wire in wires:
            wire.send(b"GET /together HTTP/1.1\r\nHost: x\r\n\r\n" + b"GET /%d HTTP/1.1\r\nHost: x\r\n\r\n" % turn)
        for wire in wires:
            assert wire.read().body == b"/together"
            assert wire.read().body == b"/%d" % turn
    counted(server, 8 * 25 * 2)


free_threaded = pytest.mark.skipif(not FREE_THREADED, reason="this Python has a GIL")


@free_threaded
def test_importing_leaves_the_gil_off() -> None:
    import fastserve

    assert fastserve.Server
    assert not sys._is_gil_enabled()


@free_threaded
def test_two_reactors_run_two_handlers_at_the_same_time(serve: Serve) -> None:
    """Neither blocks: each waits for the other by computing, so that no reactor is handed on as blocked."""
    lock, inside, meets = threading.Lock(), set(), [0]

    def handler(ctx: RequestCtx) -> None:
        if ctx.path == "/meet":
            with lock:
                inside.add(ctx.conn_id)
            while len(inside) < 2:
                pass
            with lock:
                meets[0] += 1
        ctx.write(ctx.path)

    server = serve(handler, workers=3, reactors=2)
    wires = [server.connect() for _ in range(16)]
    # The kernel spreads connections over both reactors; two that meet may still share one, which then hands on.
    for n in range(0, 16, 2):
        inside.clear()
        for wire in wires[n:n + 2]:
            ask(wire, "/meet")
        assert [wire.read().body for wire in wires[n:n + 2]] == [b"/meet"] * 2
    assert meets == [16]


def test_a_storm_of_connections_while_a_handler_blocks(serve: Serve, gate: Gate) -> None:
    server = serve(gate, workers=2, reactors=1)
    blocked = ask(server.connect(), "/block")
    gate.entered(1)
    for _ in range(200):
        with socket.create_connection(("127.0.0.1", server.port), PATIENCE):
            pass
    assert server.get("/").body == b"/"
    gate.open()
    assert blocked.read().body == b"/block"
