"""`handler_timeout`: the client is answered, the handler's ctx expires, and everything stays lent until it returns.

Knows: handlers that block until a test lets them go. Never sees: how long anything took: a 504 proves that the
handler is still inside. Invariant: exactly one reply reaches the client, and afterwards all is given back.
"""

import contextlib
import random
import socket
import sys
import threading
from collections import Counter

import pytest
from conftest import Running, Serve, Wire, request, wait_for, wait_until

from fastserve import ContextExpired, RequestCtx

SOON = 0.05
STUCK = "took longer than its timeout"


class Late:
    """Blocks on /late until `let_go`; then does what the test says, and keeps what that raised."""

    def __init__(self, then) -> None:
        self.then = then
        self.go = threading.Event()
        self.raised: list[BaseException | None] = []

    def __call__(self, ctx: RequestCtx) -> None:
        if ctx.path == "/late":
            wait_for(self.go)
            try:
                self.then(ctx)
            except BaseException as error:
                self.raised.append(error)
                raise
            else:
                self.raised.append(None)
        else:
            ctx.write(ctx.path)

    def let_go(self) -> BaseException | None:
        self.go.set()
        wait_until(lambda: self.raised, "the handler to come back")
        return self.raised[0]


def told(wire: Wire, body: bytes = b"Gateway Timeout\n") -> None:
    reply = wire.read(head=not body)
    assert (reply.status, reply.closes, reply.body) == (504, True, body)
    assert wire.ended()
    wire.close()


def started(serve: Serve, then, **config) -> tuple[Running, Late]:
    serve.expect_error(STUCK)
    late = Late(then)
    return serve(late, handler_timeout=SOON, **{"workers": 4, "reactors": 1, **config}), late


def nothing(ctx: RequestCtx) -> None:
    pass


@pytest.mark.parametrize("then", [
    lambda ctx: ctx.path,
    lambda ctx: ctx.headers.get("host"),
    lambda ctx: ctx.write("too late"),
    lambda ctx: ctx.set_body(b"x" * 1_000_000),
    lambda ctx: ctx.error("too late", 500),
    lambda ctx: ctx.early_hints("</style.css>"),
    lambda ctx: ctx.stream([b"too late"]),
    lambda ctx: ctx.body,
    lambda ctx: ctx.done,
])
def test_everything_of_the_ctx_expires(serve: Serve, then) -> None:
    server, late = started(serve, then)
    wire = server.connect().send(request("GET", "/late"))
    told(wire)
    assert server.get("/other").body == b"/other"
    assert isinstance(late.let_go(), ContextExpired)
    wait_until(lambda: server.stats()["connections"] == 0, "the slot to come back")
    stats = server.stats()
    assert (stats["timed_out_handler"], stats["requests"]) == (1, 1)
    assert stats["statuses"] == {"1xx": 0, "2xx": 1, "3xx": 0, "4xx": 0, "5xx": 1}


def test_of_many_late_handlers_some_are_reported(serve: Serve) -> None:
    serve.expect_error(STUCK)
    go = threading.Event()
    server = serve(lambda ctx: wait_for(go), handler_timeout=SOON, workers=20)
    wires = [server.connect().send(request()) for _ in range(18)]
    for wire in wires:
        told(wire)
    go.set()
    wait_until(lambda: server.stats()["connections"] == 0, "the slots to come back")
    assert server.stats()["timed_out_handler"] == 18
    # By now it is decided which ones; the keeper tells of them when it gets the GIL.
    wait_until(lambda: len(serve.errors()) >= 10, "the reports")
    assert len(serve.errors()) == 10


def test_a_large_reply_that_nobody_gets_is_given_back(serve: Serve) -> None:
    """It was written before the time was up."""
    written = threading.Semaphore(0)
    go = threading.Event()
    body = b"x" * 3_000_000
    references = sys.getrefcount(body)

    def handler(ctx: RequestCtx) -> None:
        ctx.set_body(body)
        ctx.status = 201
        written.release()
        wait_for(go)

    serve.expect_error(STUCK)
    server = serve(handler, handler_timeout=SOON, workers=6)
    wires = [server.connect().send(request()) for _ in range(6)]
    for _ in wires:
        assert written.acquire(timeout=20)
    for wire in wires:
        told(wire)
    go.set()
    wait_until(lambda: server.stats()["connections"] == 0, "the slots to come back")
    assert server.get().status == 201           # whoever has the GIL next drops what was sent, or was not
    # A worker's ctx keeps what it last replied with until its next call.
    wait_until(lambda: sys.getrefcount(body) <= references + 6, "the bodies to be dropped")


def test_head_has_no_body(serve: Serve) -> None:
    server, late = started(serve, nothing)
    told(server.connect().send(request("HEAD", "/late")), b"")
    assert late.let_go() is None


def test_replies_before_it_are_whole(serve: Serve) -> None:
    """Pipelined: what was asked before is answered before, what was asked behind is not."""
    server, late = started(serve, nothing)
    wire = server.connect().send(*(request("GET", path) for path in ("/1", "/2", "/late", "/3")))
    assert [wire.read().body for _ in range(2)] == [b"/1", b"/2"]
    told(wire)
    late.let_go()


def test_a_client_that_has_gone(serve: Serve) -> None:
    server, late = started(serve, nothing)
    wire = server.connect().send(request("GET", "/late"))
    wait_until(lambda: server.stats()["connections"] == 1, "the connection")
    wire.reset()
    wait_until(lambda: server.stats()["timed_out_handler"] == 1, "the deadline")
    late.let_go()


def test_all_workers_stuck(serve: Serve) -> None:
    """The clients of handlers that never end are answered, and so are those who wait for a worker."""
    server, late = started(serve, nothing, workers=2, queue_timeout=600)
    wires = [server.connect().send(request("GET", "/late")) for _ in range(2)]
    for wire in wires:
        told(wire)
    waiting = server.connect().send(request("GET", "/waits"))
    wait_until(lambda: server.stats()["queued"] == 1, "a request to wait")
    late.let_go()
    assert waiting.read().body == b"/waits"


def test_a_handler_that_streams_is_in_time(serve: Serve) -> None:
    """The reply has begun: from there on it is the reader's pace that counts."""
    go = threading.Event()

    def handler(ctx: RequestCtx) -> None:
        def parts():
            yield b"begun "
            wait_for(go)
            yield b"ended"
        ctx.stream(parts())

    server = serve(handler, handler_timeout=SOON, workers=3)
    wire = server.connect().send(request())
    assert wire.read_head().status == 200
    other = server.connect().send(request())        # its deadline is behind the first one's
    assert other.read_head().status == 200
    go.set()
    for each in (wire, other):
        assert each.read_chunks() == b"begun ended"
    assert server.stats()["timed_out_handler"] == 0


def test_fast_handlers_are_not_touched(serve: Serve) -> None:
    server = serve(lambda ctx: ctx.write(ctx.path), handler_timeout=30, workers=2)
    wire = server.connect()
    for n in range(200):
        assert wire.get(f"/{n}").body == b"/%d" % n


@pytest.mark.parametrize("workers", [2, 16])
def test_at_the_last_moment(serve: Serve, chance: random.Random, workers: int) -> None:
    """Handlers that return when their time is up: the client has one answer, and what was counted is what it saw."""
    pause = threading.Event()

    def handler(ctx: RequestCtx) -> None:
        pause.wait(float(ctx.path[1:]))
        ctx.write(ctx.path)

    serve.expect_error(STUCK)
    server = serve(handler, handler_timeout=0.005, workers=workers, reactors=1, queue_timeout=600)
    seen = Counter[int]()
    lock = threading.Lock()

    def client(luck: random.Random) -> None:
        for _ in range(40):
            with Wire(server.address) as wire:
                while True:
                    path = f"/{luck.uniform(0.003, 0.007):.6f}"
                    answer = wire.get(path)
                    with lock:
                        seen[answer.status] += 1
                    if answer.status == 504:
                        assert wire.ended()
                        break
                    assert answer.body == path.encode()
                    if luck.random() < 0.3:
                        break

    threads = [threading.Thread(target=client, args=(random.Random(chance.random()),)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    server.close_clients()
    wait_until(lambda: server.stats()["connections"] == 0, "all slots to come back")
    stats = server.stats()
    assert (stats["requests"], stats["timed_out_handler"]) == (seen[200], seen[504])
    assert seen[200]
    assert seen[504]


def test_a_reply_before_it_is_not_broken_into(serve: Serve) -> None:
    """It has left in part when the time is up: then there is no place for a 504."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    go = threading.Event()

    def handler(ctx: RequestCtx) -> None:
        if ctx.path == "/late":
            wait_for(go)
        ctx.write(b"a" * 20_000)

    serve.expect_error(STUCK)
    with listener:
        server = serve(handler, f"fd:{listener.fileno()}", handler_timeout=0.3, workers=3, reactors=1)
    wire = server.connect(receive_buffer=2048).send(request("GET", "/first"), request("GET", "/late"))
    wait_until(lambda: server.stats()["handoffs_blocked"], "the late one to be seized")
    while len(wire.pending) < 8000:
        wire.more()
    wait_until(lambda: server.stats()["timed_out_handler"] == 1, "the deadline")
    with contextlib.suppress(ConnectionResetError):
        while wire.more():
            pass
    assert b"\r\n\r\n" + b"a" * (len(wire.pending) - wire.pending.index(b"\r\n\r\n") - 4) in wire.pending
    go.set()


def test_behind_a_call_that_blocked_the_connection_is_idle(serve: Serve) -> None:
    """Its deadline was the call's; now it is that of any connection that waits."""
    seized = threading.Event()

    def handler(ctx: RequestCtx) -> None:
        wait_for(seized)
        ctx.write(ctx.path)

    server = serve(handler, handler_timeout=5, idle_timeout=0.1, workers=4, reactors=1)
    wire = server.connect().send(request("GET", "/naps"))
    wait_until(lambda: server.stats()["handoffs_blocked"], "the handler to be seen to block")
    seized.set()
    assert wire.read().body == b"/naps"
    assert wire.ended()
    assert server.stats()["timed_out_idle"] == 1


def test_its_stack_is_logged(serve: Serve) -> None:
    server, late = started(serve, nothing)
    told(server.connect().send(request("GET", "/late")))
    wait_until(serve.errors, "the log")
    [text] = serve.errors()
    assert "fastserve-worker-" in text
    assert "wait_for(self.go)" in text
    late.let_go()


def test_done_by_time(serve: Serve) -> None:
    """A handler that waits for `done` hears that its time is up."""
    heard: list[bool] = []

    def handler(ctx: RequestCtx) -> None:
        done = ctx.done
        heard.append(done.is_set())
        heard.append(done.wait(0.001))
        heard.append(done.wait())
        heard.append(done.is_set())

    serve.expect_error(STUCK)
    server = serve(handler, handler_timeout=SOON, workers=2)
    told(server.connect().send(request()))
    wait_until(lambda: len(heard) == 4, "the handler to come back")
    assert heard == [False, False, True, True]


def test_done_by_shutdown(serve: Serve) -> None:
    kept: list = []
    entered = threading.Event()

    def handler(ctx: RequestCtx) -> None:
        kept.append(ctx.done)
        entered.set()
        ctx.write("stopped" if ctx.done.wait(600) and ctx.done.is_set() else "?")

    server = serve(handler, workers=2)
    wire = server.connect().send(request())
    wait_for(entered)
    assert not kept[0].is_set()
    assert server.shutdown()
    assert wire.read().body == b"stopped"
    assert kept[0].is_set()
    assert kept[0].wait(0)


def test_done_by_return(serve: Serve) -> None:
    """Kept beyond its call it is set, also for a thread that waits."""
    kept: list = []
    server = serve(lambda ctx: kept.append(ctx.done), workers=2)
    assert server.get().status == 200
    assert kept[0].wait(600)
    assert server.get().status == 200
    assert kept[0].is_set()
