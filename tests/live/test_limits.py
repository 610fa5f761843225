"""Too much at once: connections, the queue, time in the queue; what clients are told, what is counted, recovery.

Knows: `concurrency`, `max_queue`, `queue_timeout`, `stats`. Never sees: limits of a single request (test_wire.py).
Invariant: who is turned away can read why; who was let in is served; afterwards all is as before.
"""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fastserve import BadRequest, RequestCtx
from tests.live.conftest import PATIENCE, Reply, Running, Serve, Wire, chunked, request, wait_for, wait_until


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
        assert reply.body == b"The connection cannot be served because Server.concurrency limit exceeded\n"
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
    stats = server.stats()
    assert stats["refused_connections"] == 200
    assert told + stats["closed_unheard"] >= 200        # a reset may take a reply with it
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
    wait_until(lambda: any("queue_timeout=0.2 s" in text for text in serve.warnings()), "the warning")
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


def test_stats_from_many_threads(serve: Serve, brisk: None) -> None:
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


# Who is told, and how many at a time

def test_reject_slots(serve: Serve) -> None:
    """Two connections at a time are told that there are too many; who comes while both are, sees the end."""
    server = serve(hello, concurrency=2, reject_slots=2, workers=2)
    served = [server.connect() for _ in range(2)]
    for wire in served:
        assert wire.get().status == 200
    told = [server.connect() for _ in range(2)]
    for wire in told:
        assert wire.read().status == 503
    assert server.connect().ended()
    wait_until(lambda: server.stats()["closed_unheard"] == 1, "the count of those that were not told")
    for wire in told:
        wire.close()
    wait_until(lambda: server.stats()["rejected"] == 0, "those that were told to go")
    assert server.connect().read().status == 503
    stats = server.stats()
    assert (stats["refused_connections"], stats["connections"], stats["refusals"]) == (4, 2, {503: 3})


@pytest.mark.parametrize("reactors", [1, 3])
def test_max_conns_per_ip(serve: Serve, reactors: int) -> None:
    """Three of one address, wherever the kernel deals them; another address has its own three."""
    server = serve(hello, max_conns_per_ip=3, workers=4, reactors=reactors)
    ours = [server.connect() for _ in range(3)]
    for wire in ours:
        assert wire.get().status == 200
    for raw in (b"", request("POST", body=b"b" * 100_000)):
        refused = server.connect().send(raw)
        reply = refused.read()
        assert (reply.status, reply.closes) == (429, True)
        assert reply.body == b"The number of connections from your ip exceeds max_conns_per_ip\n"
        assert refused.ended()
    theirs = [server.connect(source="127.0.0.2") for _ in range(3)]
    for wire in theirs:
        assert wire.get().status == 200
    assert server.connect(source="127.0.0.2").read().status == 429
    # There is room again as soon as one of its own goes, and not before.
    theirs[0].close()
    wait_until(lambda: server.stats()["connections"] == 5, "room")
    assert server.connect().read().status == 429
    assert server.connect(source="127.0.0.2").get().status == 200
    stats = server.stats()
    assert (stats["refused_per_ip"], stats["refused_connections"], stats["refusals"]) == (4, 0, {429: 4})
    wait_until(lambda: serve.warnings(), "a warning")
    assert any("max_conns_per_ip=3" in text for text in serve.warnings())


def test_a_unix_socket_has_no_address(serve: Serve, tmp_path: Path) -> None:
    server = serve(hello, f"unix:{tmp_path}/s", max_conns_per_ip=1, workers=2)
    for wire in [server.connect() for _ in range(5)]:
        assert wire.get().status == 200


# Memory

@pytest.mark.parametrize("coded", [False, True], ids=["sized", "chunked"])
def test_max_memory(serve: Serve, coded: bool) -> None:
    """A new body beyond it is refused, what has begun and what is small goes on."""
    server = serve(lambda ctx: ctx.write(str(len(ctx.body))), max_memory=2**20, workers=2)
    body = b"b" * 1_500_000
    rest = chunked(body, 100_000) if coded else body
    first = server.connect().send(request("POST", "/", *(["Transfer-Encoding: chunked"] if coded else
                                                         [f"Content-Length: {len(body)}"])), rest[:1_400_000])
    wait_until(lambda: server.stats()["memory"] > 2**20, "the body to have grown")
    for late in (request("POST", body=body), request("POST", "/", "Transfer-Encoding: chunked") + b"1\r\nx\r\n"):
        reply = server.connect().send(late).read()
        assert (reply.status, reply.closes, reply.get("Retry-After")) == (503, True, "1")
    assert server.exchange(request("POST", body=b"small")).body == b"5"
    assert server.get().body == b"0"
    assert first.send(rest[1_400_000:]).read().body == b"1500000"
    wait_until(lambda: server.stats()["memory"] < 2**20, "the memory to be free")
    assert server.exchange(request("POST", body=body)).body == b"1500000"
    assert server.stats()["shed_memory"] == 2
    wait_until(lambda: serve.warnings(), "a warning")
    assert any("max_memory=1048576" in text for text in serve.warnings())


def test_max_memory_in_other_words(serve: Serve) -> None:
    """The error handler's reply says when to come again, too, unless it says something else itself."""
    later: list[str] = []

    def sorry(ctx: RequestCtx, error: BadRequest) -> None:
        ctx.error(f"sorry, {error.status}", error.status)
        for value in later:
            ctx.set_header("Retry-After", value)

    server = serve(hello, max_memory=2**20, workers=2, error_handler=sorry)
    first = server.connect().send(request("POST", "/", "Content-Length: 1500000"), b"b" * 1_400_000)
    wait_until(lambda: server.stats()["memory"] > 2**20, "the body to have grown")
    for wanted in ("1", "60"):
        reply = server.exchange(request("POST", body=b"b" * 100_000))
        assert (reply.status, reply.body, reply.getall("Retry-After")) == (503, b"sorry, 503", [wanted])
        later.append("60")
    assert server.exchange(b"GET\r\n\r\n").getall("Retry-After") == ["60"]
    later.clear()
    assert server.exchange(b"GET\r\n\r\n").getall("Retry-After") == []
    first.close()


# Health

def health(reply: Reply) -> dict[str, object]:
    assert reply.get("Content-Type") == "application/json"
    assert reply.get("Cache-Control") == "no-store"
    told: dict[str, object] = json.loads(reply.body)
    return told


def test_health(serve: Serve, release: threading.Event) -> None:
    """Answered while every worker blocks and requests wait."""
    gate = Gate(release)
    server = serve(gate, workers=3, reactors=1, health_path="/health", queue_timeout=600)
    wait_until(lambda: server.stats()["workers_parked"] >= 2, "the workers to have come, and one to wait for events")
    wire = server.connect()
    reply = wire.get("/health")
    assert (reply.status, reply.closes) == (200, False)
    told = health(reply)
    assert (told["status"], told["workers"], told["busy"], told["queued"]) == ("ok", 3, 0, 0)
    wires = block(server, gate, 3)
    waiting = [server.connect().send(request("GET", f"/{n}")) for n in range(2)]
    wait_until(lambda: server.stats()["queued"] == 2, "two requests to wait")
    told = health(wire.get("/health"))
    assert (told["status"], told["busy"], told["queued"], told["connections"]) == ("ok", 3, 2, 6)
    assert isinstance(told["oldest_wait_ms"], int)
    release.set()
    for each in [*wires, *waiting]:
        assert each.read().status == 200
    assert server.stats()["probes"] == 2
    assert "/health" not in gate.called


def test_health_among_others(serve: Serve) -> None:
    """Pipelined, in order; what only looks alike is the handler's."""
    server = serve(lambda ctx: ctx.write(f"{ctx.method} {ctx.path}"), health_path="/h", workers=2)
    wire = server.connect()
    wire.send(request("GET", "/1"), request("GET", "/h"), request("HEAD", "/h"), request("GET", "/h/"),
              request("GET", "/h?x"), request("POST", "/h", body=b"abc"), request("GET", "/h", body=b"abc"),
              request("GET", "/2"), request("GET", "/h", "Connection: close"))
    assert wire.read().body == b"GET /1"
    assert health(wire.read())["status"] == "ok"
    assert wire.read(head=True).get("Content-Type") == "application/json"
    assert wire.read().body == b"GET /h/"
    assert health(wire.read())["status"] == "ok"
    assert [wire.read().body for _ in range(3)] == [b"POST /h", b"GET /h", b"GET /2"]
    last = wire.read()
    assert health(last)["status"] == "ok"
    assert last.closes
    assert wire.ended()


def health_beyond_all_limits(serve: Serve) -> None:
    """Who has no slot may still ask how the server is: at once or later; others are told, or see the end."""
    server = serve(hello, concurrency=1, reject_slots=1, health_path="/health", workers=2)
    assert server.connect().get().status == 200
    early = server.connect().send(request("GET", "/health"))
    reply = early.read()
    assert (reply.status, reply.closes) == (200, True)
    assert early.ended()
    for raw in (request("GET", "/other"), b"nonsense\r\n\r\n"):
        wait_until(lambda: server.stats()["rejected"] == 0, "the slot to be free")
        wire = server.connect().send(raw)
        assert wire.read().status == 503
        wire.close()
        wait_until(lambda: server.stats()["rejected"] == 0, "the slot to be free")
    silent = server.connect()
    wait_until(lambda: server.stats()["rejected"] == 1, "the slot to be taken")
    probe = server.connect()
    other = server.connect()
    wait_until(lambda: server.stats()["rejected"] == 3, "both to be heard")
    assert health(probe.get("/health"))["connections"] == 1
    assert other.send(request("GET", "/other")).gone()
    assert silent.read().status == 503          # it has not said anything for a second
    stats = server.stats()
    assert (stats["probes"], stats["closed_unheard"], stats["requests"]) == (2, 1, 1)


def silent_connections_do_not_keep_the_last_slots(serve: Serve) -> None:
    server = serve(hello, concurrency=1, reject_slots=1, health_path="/health", workers=2)
    assert server.connect().get().status == 200
    silent = [server.connect() for _ in range(100)]
    wait_until(lambda: server.stats()["accepted"] == 101, "all to be accepted")
    for _ in range(40):
        assert health(server.connect().get("/health"))["connections"] == 1
    assert silent.pop(0).read().status == 503       # there was a slot to tell it
    assert all(wire.gone() for wire in silent)
    assert server.stats()["closed_unheard"] == 99


def a_rejected_connection_does_not_hold_a_drain_up(serve: Serve) -> None:
    """It has begun a head, so that it might be a probe, when the server stops."""
    server = serve(hello, concurrency=1, health_path="/health", workers=2)
    assert server.connect().get().status == 200
    rejected = server.connect()
    wait_until(lambda: server.stats()["rejected"] == 1, "the connection to be heard")
    stopping = threading.Thread(target=server.shutdown, args=(600,))
    stopping.start()
    wait_until(server.refuses, "the listener to close")
    rejected.send(b"GET /hea")
    stopping.join(PATIENCE)
    assert server.clean
    assert rejected.read().status == 503


def test_who_may_be_a_probe_is_heard_for_a_second(serve: Serve) -> None:
    """Each of these takes that second."""
    scenarios = (health_beyond_all_limits, silent_connections_do_not_keep_the_last_slots,
                 a_rejected_connection_does_not_hold_a_drain_up)
    with ThreadPoolExecutor(len(scenarios)) as pool:
        for done in [pool.submit(scenario, serve) for scenario in scenarios]:
            done.result()


def test_health_while_the_server_stops(serve: Serve, release: threading.Event) -> None:
    gate = Gate(release)
    server = serve(gate, workers=2, health_path="/health")
    [blocked] = block(server, gate, 1)
    probe = server.connect().send(request("GET", "/health", "X: y")[:-2])
    wait_until(lambda: server.stats()["connections"] == 2, "both connections")
    stopping = threading.Thread(target=server.shutdown)
    stopping.start()
    wait_until(server.refuses, "the listener to close")
    reply = probe.send(b"\r\n").read()
    assert (reply.status, reply.closes, health(reply)["status"]) == (503, True, "stopping")
    release.set()
    assert blocked.read().body == b"/block"
    stopping.join(PATIENCE)
    assert server.clean


def test_a_path_that_is_off_is_not_the_empty_one(serve: Serve) -> None:
    """An absolute target may have no path, which means /."""
    def absolute(server: Running) -> bytes:
        return server.exchange(b"GET http://test HTTP/1.1\r\nHost: test\r\n\r\n").body

    def handler(ctx: RequestCtx) -> None:
        ctx.write(f"the handler's {ctx.path}")

    assert absolute(serve(handler, health_path="/h", workers=2)) == b"the handler's /"
    assert absolute(serve(handler, metrics_path="/m", workers=2)) == b"the handler's /"
    assert absolute(serve(handler, health_path="/", workers=2)).startswith(b'{"status"')
    assert absolute(serve(handler, workers=2)) == b"the handler's /"
