"""Too much at once: connections, the queue, time in the queue; what clients are told, what is counted, recovery.

Knows: `concurrency`, `max_queue`, `queue_timeout`, `stats`. Never sees: limits of a single request (test_wire.py).
Invariant: who is turned away can read why; who was let in is served; afterwards all is as before.
"""

import threading

import pytest

from fastserve import RequestCtx
from tests.live.conftest import PATIENCE, Reply, Running, Serve, Wire, request, wait_for, wait_until


def hello(ctx: RequestCtx) -> None:
    ctx.write("hello")


class Gate:
    """A handler that blocks on /block until it is opened, and tells how many are in it."""

    def __init__(self, opened: threading.Event) -> None:
        self.opened = opened
        self.inside = 0
        self.called: list[str] = []
        self.lock = threading.Lock()

    def __call__(self, ctx: RequestCtx) -> None:
        with self.lock:
            self.called.append(ctx.path)
        if ctx.path == "/block":
            with self.lock:
                self.inside += 1
            wait_for(self.opened)
            with self.lock:
                self.inside -= 1
        ctx.write(ctx.path)


def block(server: Running, gate: Gate, count: int) -> list[Wire]:
    """`count` clients whose handlers all block; one after the other, so that none of them fills the queue."""
    wires = []
    for number in range(1, count + 1):
        wires.append(server.connect().send(request("GET", "/block")))
        wait_until(lambda number=number: gate.inside == number, f"{number} handlers to block")  # type: ignore[misc]
    return wires


def check_shed(reply: Reply, closes: bool = False) -> None:
    assert (reply.status, reply.reason, reply.body) == (503, "Service Unavailable", b"Service Unavailable\n")
    retry = reply.get("Retry-After")
    assert retry is not None
    assert 1 <= int(retry) <= 3600
    assert reply.closes == closes


# Connections

def test_concurrency(serve: Serve) -> None:
    """One more than allowed: 503 before it has asked, then the end; the others do not notice."""
    server = serve(hello, concurrency=4, workers=2)
    wires = [server.connect() for _ in range(4)]
    for wire in wires:
        assert wire.get().status == 200
    for raw in (b"", request(), request("POST", body=b"b" * 100_000)):
        refused = server.connect()
        refused.send(raw)
        reply = refused.read()
        assert (reply.status, reply.closes) == (503, True)
        assert reply.body == b"Service Unavailable\n"
        assert refused.ended()
        refused.close()
        wait_until(lambda: server.stats()["slots"] == 4, "the refused connection to be forgotten")
    for wire in wires:
        assert wire.get().body == b"hello"
    stats = server.stats()
    assert stats["refused_connections"] == 3
    assert stats["refusals"] == {503: 3}
    assert (stats["accepted"], stats["connections"], stats["requests"]) == (7, 4, 8)
    assert stats["statuses"] == {"1xx": 0, "2xx": 8, "3xx": 0, "4xx": 0, "5xx": 3}
    # There is room again as soon as one goes.
    wires[0].close()
    wait_until(lambda: server.stats()["connections"] == 3, "room")
    wires.append(server.connect())
    for wire in wires[1:]:
        assert wire.get().body == b"hello"
    wait_until(lambda: serve.warnings(), "a warning")
    assert any("concurrency=4" in text for text in serve.warnings())


def test_far_beyond_concurrency(serve: Serve) -> None:
    """Not even a slot is left for a 503: then the end comes at once. Nobody hangs, and nothing leaks."""
    server = serve(hello, concurrency=2, workers=2)
    wires = [server.connect() for _ in range(2)]
    for wire in wires:
        assert wire.get().status == 200
    crowd = [server.connect() for _ in range(200)]
    told = 0
    for wire in crowd:
        try:
            data = wire.read_to_end()
        except ConnectionResetError:
            continue
        assert not data or data.startswith(b"HTTP/1.1 503 ")
        told += bool(data)
    assert told >= 1
    assert server.stats()["refused_connections"] == 200
    for wire in crowd:
        wire.close()
    wait_until(lambda: server.stats()["connections"] == 2, "the crowd to go")
    for wire in wires:
        assert wire.get().body == b"hello"


def test_concurrency_counts_what_is_in_handlers(serve: Serve, release: threading.Event) -> None:
    gate = Gate(release)
    server = serve(gate, concurrency=2, workers=2)
    wires = block(server, gate, 2)
    for _ in range(2):
        refused = server.connect()
        assert refused.read().status == 503         # told while every worker blocks
        assert refused.ended()
        refused.close()
        wait_until(lambda: server.stats()["slots"] == 2, "the refused connection to be forgotten")
    release.set()
    for wire in wires:
        assert wire.read().body == b"/block"
        wire.close()
    wait_until(lambda: server.stats()["connections"] == 0, "room")
    assert server.get("/after").body == b"/after"


# The queue

def test_max_queue(serve: Serve, release: threading.Event) -> None:
    """All workers block: the queue takes what it may, the rest is told to come back; who waited is served."""
    gate = Gate(release)
    server = serve(gate, workers=2, max_queue=3)
    blocked = block(server, gate, 2)
    waiting = []
    for number in range(3):
        waiting.append(server.connect().send(request("GET", f"/waiting{number}")))
        wait_until(lambda: server.stats()["queued"] == len(waiting), "the request to be queued")
    shed = [server.connect() for _ in range(4)]
    for wire in shed:
        for _ in range(2):                          # the connection stays: the framing is in order
            check_shed(wire.get("/shed"))
        check_shed(wire.send(request("POST", "/shed", body=b"b" * 100_000)).read())
    closing = server.connect().send(request("GET", "/shed", "Connection: close"))
    check_shed(closing.read(), closes=True)
    assert closing.gone()
    stats = server.stats()
    assert (stats["shed_queue_full"], stats["queued"], stats["requests"]) == (13, 3, 0)
    assert stats["statuses"]["5xx"] == 13
    assert all(wire.silent() for wire in (*blocked, *waiting))
    release.set()
    for wire in blocked:
        assert wire.read().body == b"/block"
    for number, wire in enumerate(waiting):
        assert wire.read().body == f"/waiting{number}".encode()
    for wire in (*blocked, *waiting, *shed):
        assert wire.get("/after").body == b"/after"
    assert "/shed" not in gate.called
    stats = server.stats()
    assert (stats["requests"], stats["queued"]) == (5 + 9, 0)
    wait_until(lambda: serve.warnings(), "a warning")
    assert any("max_queue=3" in text for text in serve.warnings())


def test_pipeline_into_a_full_queue(serve: Serve, release: threading.Event) -> None:
    """A connection waits once, however much it has sent; its replies come in order, 503 and 200 alike."""
    gate = Gate(release)
    server = serve(gate, workers=2, max_queue=1)
    block(server, gate, 2)
    first = server.connect().send(b"".join(request("GET", f"/{n}") for n in range(20)))
    wait_until(lambda: server.stats()["queued"] == 1, "the request to be queued")
    second = server.connect().send(b"".join(request("GET", f"/{n}") for n in range(20)))
    for _ in range(20):
        check_shed(second.read())
    assert server.stats()["queued"] == 1
    release.set()
    for number in range(20):
        assert first.read().body == f"/{number}".encode()
    assert second.get("/after").body == b"/after"


def test_queue_timeout(serve: Serve, release: threading.Event) -> None:
    gate = Gate(release)
    server = serve(gate, workers=2, queue_timeout=0.2)
    blocked = block(server, gate, 2)
    wires = [server.connect().send(request("GET", "/shed")) for _ in range(5)]
    big = server.connect().send(request("POST", "/shed", body=b"b" * 100_000), request("GET", "/shed"))
    closing = server.connect().send(request("GET", "/shed", "Connection: close"))
    for wire in wires:
        check_shed(wire.read())
    check_shed(big.read())
    check_shed(big.read())
    check_shed(closing.read(), closes=True)
    assert closing.gone()
    stats = server.stats()
    assert (stats["shed_queue_timeout"], stats["shed_queue_full"], stats["queued"]) == (8, 0, 0)
    release.set()
    for wire in blocked:
        assert wire.read().body == b"/block"
    for wire in (*blocked, *wires, big):
        assert wire.get("/after").body == b"/after"
    assert "/shed" not in gate.called
    assert server.stats()["requests"] == 2 + 8


def test_head_is_shed_without_a_body(serve: Serve, release: threading.Event) -> None:
    gate = Gate(release)
    server = serve(gate, workers=2, queue_timeout=0.1)
    block(server, gate, 2)
    wire = server.connect()
    for _ in range(2):
        reply = wire.send(request("HEAD")).read(head=True)
        assert (reply.status, reply.get("Content-Length"), reply.get("Retry-After")) == (503, "20", "1")
    check_shed(wire.get())


def test_client_goes_while_it_is_queued(serve: Serve, release: threading.Event) -> None:
    """A connection that ends in the queue frees its place in the end, whoever notices first."""
    gate = Gate(release)
    server = serve(gate, workers=2)
    blocked = block(server, gate, 2)
    wires = [server.connect().send(request("POST", "/queued", body=b"b" * 50_000)) for _ in range(10)]
    wait_until(lambda: server.stats()["queued"] == 10, "the requests to be queued")
    for index, wire in enumerate(wires):
        wire.close() if index % 2 else wire.reset()
    release.set()
    for wire in blocked:
        assert wire.read().body == b"/block"
    wait_until(lambda: server.stats()["connections"] == 2, "the connections to end")
    assert server.get("/after").body == b"/after"


def test_everything_else_goes_on_while_all_workers_block(serve: Serve, release: threading.Event) -> None:
    """Accepting, refusing, deadlines and 100-continue need no worker."""
    gate = Gate(release)
    server = serve(gate, workers=2, header_timeout=0.2, idle_timeout=0.2)
    blocked = block(server, gate, 2)
    slow = server.connect().send(b"GET / HT")
    idle = server.connect()
    bad = server.connect().send(b"nonsense\r\n\r\n")
    upload = server.connect().send(request("POST", "/up", "Expect: 100-continue", "Content-Length: 5"))
    assert bad.read().status == 400
    assert upload.read(interim=True).status == 100
    upload.send(b"hello")
    assert slow.read().status == 408
    assert slow.ended()
    assert idle.ended()
    assert gate.inside == 2
    release.set()
    assert upload.read().body == b"/up"
    for wire in blocked:
        assert wire.read().body == b"/block"


def test_recovers_again_and_again(serve: Serve) -> None:
    """Blocked, shed, released: three times over, then a full round of everybody."""
    gate = Gate(threading.Event())
    server = serve(gate, workers=2, max_queue=1)
    wires = []
    for turn in range(3):
        gate.opened = threading.Event()
        try:
            blocked = block(server, gate, 2)
            queued = server.connect().send(request("GET", "/queued"))
            wait_until(lambda: server.stats()["queued"] == 1, "the request to be queued")
            shed = server.connect()
            check_shed(shed.get())
        finally:
            gate.opened.set()
        for wire in blocked:
            assert wire.read().body == b"/block"
        assert queued.read().body == b"/queued"
        wires += [*blocked, queued, shed]
        for wire in wires:
            assert wire.get(f"/turn{turn}").body == f"/turn{turn}".encode()
    assert server.stats()["shed_queue_full"] == 3


@pytest.mark.parametrize("workers", [2, 8])
def test_as_many_handlers_block_as_there_are_workers(serve: Serve, release: threading.Event, workers: int) -> None:
    gate = Gate(release)
    server = serve(gate, workers=workers)
    blocked = block(server, gate, workers)
    queued = server.connect().send(request("GET", "/queued"))
    wait_until(lambda: server.stats()["queued"] == 1, "the request to be queued")
    assert gate.inside == workers
    release.set()
    for wire in blocked:
        assert wire.read().body == b"/block"
    assert queued.read().body == b"/queued"


def test_spare_workers_come_when_all_block(serve: Serve, release: threading.Event) -> None:
    """Up to max_workers, and no further. The spare ones leave when nobody needs them; one that turns the reactor
    is needed."""
    gate = Gate(release)
    server = serve(gate, workers=2, max_workers=5, max_idle_worker_duration=0.1)
    assert server.stats()["workers"] <= 2
    blocked = block(server, gate, 5)
    queued = server.connect().send(request("GET", "/queued"))
    wait_until(lambda: server.stats()["queued"] == 1, "the request to be queued")
    assert server.stats()["workers"] == 5
    release.set()
    for wire in blocked:
        assert wire.read().body == b"/block"
    assert queued.read().body == b"/queued"
    wait_until(lambda: server.stats()["workers"] <= 3, "the spare workers to leave")
    release.clear()
    again = block(server, gate, 5)
    release.set()
    for wire in again:
        assert wire.read().body == b"/block"


# What is counted

def test_stats(serve: Serve) -> None:
    def handler(ctx: RequestCtx) -> None:
        ctx.status = int(ctx.path[1:])
        if ctx.status == 599:
            raise RuntimeError("on purpose")

    serve.expect_error("on purpose")
    server = serve(handler)
    stats = server.stats()
    assert {name: value for name, value in stats.items() if value and not name.startswith("workers")} == {
        "statuses": dict.fromkeys(("1xx", "2xx", "3xx", "4xx", "5xx"), 0)} | (
        {"allocations": stats["allocations"]} if stats["allocations"] else {})
    first, second = server.connect(), server.connect()
    for status in (200, 204, 302, 404, 410, 422, 500):
        assert first.get(f"/{status}").status == status
    assert second.get("/599").status == 500
    second.send(b"bad\r\n\r\n")
    assert second.read().status == 400
    assert second.ended()
    stats = server.stats()
    assert stats["statuses"] == {"1xx": 0, "2xx": 2, "3xx": 1, "4xx": 4, "5xx": 2}
    assert stats["refusals"] == {400: 1}
    assert (stats["accepted"], stats["requests"], stats["refused_connections"]) == (2, 8, 0)
    wait_until(lambda: server.stats()["buffers"] == 0, "the buffers to go back")
    second.close()
    wait_until(lambda: server.stats()["connections"] == 1, "the connection to end")
    assert server.stats()["slots"] == 1


def test_idle_connections_own_no_buffer(serve: Serve) -> None:
    server = serve(hello)
    wires = [server.connect() for _ in range(50)]
    for wire in wires:
        assert wire.get().status == 200
    wait_until(lambda: server.stats()["buffers"] == 0, "the buffers to go back")
    assert (server.stats()["connections"], server.stats()["slots"]) == (50, 50)
    half = [wire.send(request()[:-1]) for wire in wires]
    wait_until(lambda: server.stats()["buffers"] == 50, "a buffer for each")
    for wire in half:
        assert wire.send(b"\n").read().body == b"hello"
    wait_until(lambda: server.stats()["buffers"] == 0, "the buffers to go back")


def test_stats_from_many_threads(serve: Serve) -> None:
    server = serve(hello)
    problems: list[str] = []
    done = threading.Event()

    def look() -> None:
        last = 0
        while not done.is_set():
            found = server.stats()["requests"]
            if found < last:
                problems.append(f"{found} after {last}")
            last = found

    threads = [threading.Thread(target=look, daemon=True) for _ in range(3)]
    for thread in threads:
        thread.start()
    wire = server.connect()
    for _ in range(50):
        wire.get()
    done.set()
    for thread in threads:
        thread.join(PATIENCE)
    assert problems == []
    assert server.stats()["requests"] == 50
