"""Bodies up and down: large ones, both framings, in pieces, to slow readers; and pipelines of all of them.

Knows: what a body must be, byte for byte. Never sees: a client library.
Invariant: what one side sent is what the other side got, whatever the cuts; replies come in order.
"""

import hashlib
import os
import random
import select
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack

import pytest

from fastserve import RequestCtx
from tests.live.conftest import PATIENCE, Serve, Wire, chunked, request, wait_for, wait_until

MEGABYTES = 10 * 2**20
LARGE = {"max_request_body_size": 2 * MEGABYTES}


def echo(ctx: RequestCtx) -> None:
    ctx.set_body(ctx.body)


def digest(ctx: RequestCtx) -> None:
    body = ctx.body
    ctx.write(f"{len(body)} {hashlib.sha256(body).hexdigest()}")


def digest_of(body: bytes) -> bytes:
    return f"{len(body)} {hashlib.sha256(body).hexdigest()}".encode()


class Aside:
    """Sends in a thread of its own, so that the test can read meanwhile."""

    def __init__(self, wire: Wire, *parts: bytes) -> None:
        self.problem: OSError | None = None
        self.thread = threading.Thread(target=self.run, args=(wire, parts), daemon=True)
        self.thread.start()

    def run(self, wire: Wire, parts: tuple[bytes, ...]) -> None:
        try:
            for part in parts:
                wire.socket.sendall(part)
        except OSError as problem:
            self.problem = problem

    def done(self) -> None:
        self.thread.join(PATIENCE)
        assert not self.thread.is_alive(), "not everything could be sent"
        assert self.problem is None, self.problem


# Up

def test_upload_with_length(serve: Serve, chance: random.Random) -> None:
    body = chance.randbytes(MEGABYTES)
    wire = serve(digest, **LARGE).connect()
    for _ in range(2):
        assert wire.send(request("POST", body=body)).read().body == digest_of(body)


@pytest.mark.parametrize("sizes", [(), (1_000_000,), (65536,), (1, 4093, 17, 70_001)])
def test_upload_chunked(serve: Serve, chance: random.Random, sizes: tuple[int, ...]) -> None:
    body = chance.randbytes(MEGABYTES)
    wire = serve(digest, **LARGE).connect()
    head = request("POST", "/", "Transfer-Encoding: chunked")
    assert wire.send(head, chunked(body, *sizes)).read().body == digest_of(body)
    assert wire.send(head, chunked(b"abc", 1)).read().body == digest_of(b"abc")


def test_upload_in_tiny_chunks(serve: Serve, chance: random.Random) -> None:
    body = chance.randbytes(200_000)
    wire = serve(digest).connect()
    head = request("POST", "/", "Transfer-Encoding: chunked")
    assert wire.send(head, chunked(body, 1, 2, 3)).read().body == digest_of(body)


@pytest.mark.parametrize("size", [0, 1, 16_383, 16_384, 16_385, 20_480, 65_536, 65_537, 2**20, 2**22])
def test_sizes_around_the_steps_of_memory(serve: Serve, size: int) -> None:
    """Where a body moves from one buffer into the next, and up to the very limit."""
    body = bytes(i % 251 for i in range(1000)) * (size // 1000 + 1)
    server = serve(echo)
    wire = server.connect()
    for piece in (body[:size], body[:max(0, size - 1)]):
        sender = Aside(wire, request("POST", body=piece) + request("GET", "/next"))
        assert wire.read().body == piece
        assert wire.read().body == b""
        sender.done()
        sender = Aside(wire, request("POST", "/", "Transfer-Encoding: chunked"), chunked(piece, 9999))
        assert wire.read().body == piece
        sender.done()


def test_head_of_every_length_before_a_body(serve: Serve) -> None:
    """The body begins anywhere in the buffer, up to a head that is as long as it may be."""
    wire = serve(echo).connect()
    body = bytes(range(256)) * 24
    for filler in [*range(1, 200, 13), *range(16_200, 16_290, 7)]:
        wire.send(request("POST", "/", "X: " + "f" * filler, body=body))
        assert wire.read().body == body


def test_echo_of_large_bodies_on_many_connections(serve: Serve, chance: random.Random) -> None:
    server = serve(echo, **LARGE)
    bodies = [chance.randbytes(chance.randrange(2**20, 3 * 2**20)) for _ in range(8)]
    wires = [server.connect() for _ in bodies]
    senders = [Aside(wire, request("POST", body=body)) if index % 2 else
               Aside(wire, request("POST", "/", "Transfer-Encoding: chunked"), chunked(body, 50_000))
               for index, (wire, body) in enumerate(zip(wires, bodies, strict=True))]
    for wire, body, sender in zip(wires, bodies, senders, strict=True):
        assert wire.read().body == body
        sender.done()


def test_body_that_never_comes_to_its_end(serve: Serve) -> None:
    """The client goes in the middle: no handler is called, nothing is kept."""
    called = []
    server = serve(lambda ctx: called.append(ctx.path))
    whole = request("POST", body=b"x" * 100_000)
    coded = request("POST", "/", "Transfer-Encoding: chunked") + chunked(b"y" * 50_000, 1000)
    for raw in (whole[:60], whole[:-1], coded[:200], coded[:30_000], coded[:-1]):
        server.connect().send(raw).close()
        server.connect().send(raw).reset()
    server.get("/after")
    wait_until(lambda: server.stats()["connections"] == 0, "the connections to end")
    assert called == ["/after"]


# Down

def whole(ctx: RequestCtx, body: bytes) -> None:
    ctx.set_body(body)


def in_pieces(ctx: RequestCtx, body: bytes) -> None:
    for at in range(0, len(body), 1000):
        ctx.write(body[at:at + 1000])


def in_one_write(ctx: RequestCtx, body: bytes) -> None:
    ctx.write(body)


ways_down = pytest.mark.parametrize("say", [whole, in_pieces, in_one_write])


@ways_down
def test_download(serve: Serve, chance: random.Random, say: Callable[[RequestCtx, bytes], None]) -> None:
    body = chance.randbytes(MEGABYTES)
    wire = serve(lambda ctx: say(ctx, body)).connect()
    for _ in range(3):
        assert wire.get().body == body
    assert wire.send(request("HEAD")).read(head=True).get("Content-Length") == str(MEGABYTES)
    assert wire.get().body == body


@ways_down
def test_slow_reader(serve: Serve, chance: random.Random, say: Callable[[RequestCtx, bytes], None]) -> None:
    """Others are served while it does not read; what it has asked for meanwhile comes afterwards, whole."""
    body = chance.randbytes(MEGABYTES)
    server = serve(lambda ctx: say(ctx, body) if ctx.path == "/big" else ctx.write("small"))
    slow = server.connect(receive_buffer=4096)
    slow.send(request("GET", "/big"), request("GET", "/small"), request("GET", "/big"))
    wait_until(lambda: server.stats()["requests"] > 0, "the first reply")
    for _ in range(50):
        assert server.get("/other").body == b"small"
    assert slow.read().body == body
    assert slow.read().body == b"small"
    assert slow.read().body == body
    assert slow.silent()


@pytest.mark.skipif("LD_PRELOAD" in os.environ, reason="something is loaded into this process, which makes turns long")
def test_fast_reader(serve: Serve) -> None:
    """It takes all that the socket can hold again and again (the kernel throws it away, which is faster than anybody
    can write), and others have their turn all the same."""
    size = 2**28
    body = bytes(size)
    server = serve(lambda ctx: ctx.set_body(body) if ctx.path == "/big" else ctx.write("small"), reactors=1)
    with server.connect() as fast, server.connect() as other:
        fast.send(request("GET", "/big"))
        come = len(fast.socket.recv(1))
        room = bytearray(2**22)
        turns = 0
        other.send(request())
        # One thread is both clients: none of them runs ahead while the other waits for a processor.
        while come < size:
            come += fast.socket.recv_into(room, len(room), socket.MSG_TRUNC)
            if select.select([other.socket], [], [], 0)[0]:
                assert other.socket.recv(4096).endswith(b"small")
                turns += 1
                other.send(request())
    # 71 to 85, on a busy machine too; between turns that send for as long as the socket takes it there are 16 to 23.
    assert turns >= 40


@pytest.mark.parametrize("streamed", [False, True], ids=["set_body", "stream"])
def test_a_slow_reader_is_in_time_while_something_arrives(serve: Serve, streamed: bool) -> None:
    """The socket takes nothing for megabytes, which is many times `write_timeout`."""
    body = random.Random(1).randbytes(8_000_000)

    def handler(ctx: RequestCtx) -> None:
        if streamed:
            ctx.stream((body[at:at + 65536] for at in range(0, len(body), 65536)), len(body))
        else:
            ctx.set_body(body)

    server = serve(handler, workers=2, reactors=1, write_timeout=0.2)
    with server.connect(receive_buffer=4096) as wire:
        wire.send(request())
        got = b""
        for _ in range(20):
            select.select([], [], [], 0.05)     # the slowness that this is about
            got += wire.socket.recv(10_000)
        wire.pending += got
        assert wire.read().body == body
    assert server.stats()["timed_out_write"] == 0


def test_a_reply_to_a_client_that_went_while_its_body_was_read(serve: Serve) -> None:
    """What it would have been sent from is given back: each time a megabyte, of which one would see a hundred."""
    body = b"x" * 1_000_000
    references = sys.getrefcount(body)

    def handler(ctx: RequestCtx) -> None:
        ctx.set_body(body)
        ctx.body_stream.read()

    server = serve(handler, workers=2, stream_request_body=True)
    for _ in range(20):
        server.connect().send(request("POST", "/", "Content-Length: 100"), b"x").reset()
    wait_until(lambda: server.stats()["slots"] == 0, "the connections to end")
    wait_until(lambda: sys.getrefcount(body) <= references + 2, "the references to be dropped")


def test_end_while_large_replies_wait_for_their_share(serve: Serve) -> None:
    """Of what the server sends in one turn: some have all, some a part, most nothing yet."""
    body = bytes(2**22)
    server = serve(lambda ctx: ctx.set_body(body), reactors=1)
    with ExitStack() as wires:
        clients = [wires.enter_context(server.connect()) for _ in range(100)]
        for client in clients:
            client.send(request())
        for client in clients[::7]:
            client.reset()
        clients[-1].read_exactly(1)
        assert not server.shutdown(0)


def test_reader_that_goes_in_the_middle(serve: Serve) -> None:
    body = b"z" * MEGABYTES
    server = serve(lambda ctx: ctx.set_body(body))
    for end in (Wire.close, Wire.reset):
        wire = server.connect(receive_buffer=4096)
        wire.send(request() * 3)
        wire.read_exactly(100_000)
        end(wire)
    wait_until(lambda: server.stats()["connections"] == 0, "the connections to end")
    assert server.get().body == body


@pytest.mark.parametrize("size", [0, 4095, 4096, 23_000, 24_000, 32_768, 65_536, 65_537, 300_000])
def test_reply_sizes_pipelined(serve: Serve, size: int) -> None:
    """Around the room of an output: copied into it, or sent from where they lie."""
    def handler(ctx: RequestCtx) -> None:
        ctx.set_header("X-Number", str(ctx.conn_request_num))
        if ctx.path == "/set":
            ctx.set_body(body)
        else:
            in_pieces(ctx, body)

    body = bytes(i % 253 for i in range(size))
    wire = serve(handler).connect()
    sender = Aside(wire, (request("GET", "/set") + request("GET", "/write") + request("HEAD", "/set")) * 6)
    for number in range(1, 19):
        reply = wire.read(head=number % 3 == 0)
        assert reply.get("X-Number") == str(number)
        assert reply.get("Content-Length") == str(size)
        assert reply.body == (b"" if number % 3 == 0 else body)
    sender.done()


@pytest.mark.parametrize("size", [5, 50_000, MEGABYTES])
def test_half_close_after_the_request(serve: Serve, size: int) -> None:
    """The client sends no more but still reads: it gets the whole reply, then the end."""
    body = b"w" * size
    wire = serve(lambda ctx: ctx.set_body(body)).connect()
    wire.send(request("POST", body=b"abc")).half_close()
    assert wire.read().body == body
    assert wire.ended()


def test_half_close_while_the_handler_blocks(serve: Serve, release: threading.Event) -> None:
    def handler(ctx: RequestCtx) -> None:
        entered.set()
        wait_for(release)
        ctx.write("late")

    entered = threading.Event()
    wire = serve(handler).connect()
    wire.send(request() * 2).half_close()
    wait_for(entered)
    release.set()
    assert wire.read().body == b"late"
    assert wire.read().body == b"late"
    assert wire.ended()


def test_client_goes_while_the_handler_blocks(serve: Serve, release: threading.Event) -> None:
    """The handler ends as ever, and whatever was behind its request is forgotten."""
    def handler(ctx: RequestCtx) -> None:
        if ctx.path == "/block":
            entered.release()
            wait_for(release)
        body = ctx.body
        ctx.set_body(body * 100)

    entered = threading.Semaphore(0)
    server = serve(handler)
    for end in (Wire.close, Wire.reset):
        wire = server.connect().send(request("POST", "/block", body=b"x" * 30_000), request() * 3)
        assert entered.acquire(timeout=PATIENCE)
        end(wire)
    assert server.get().status == 200
    release.set()
    wait_until(lambda: server.stats()["connections"] == 0, "the connections to end")
    assert server.get().status == 200


# 100-continue

@pytest.mark.parametrize("fields", [("Content-Length: 5",), ("Content-Length: 100000",),
                                    ("Transfer-Encoding: chunked",)])
def test_expect_continue(serve: Serve, fields: tuple[str, ...]) -> None:
    server = serve(echo)
    wire = server.connect()
    body = b"12345" if "100000" not in fields[0] else b"9" * 100_000
    for spelling in ("100-continue", "100-Continue"):
        wire.send(request("POST", "/", f"Expect: {spelling}", *fields))
        interim = wire.read(interim=True)
        assert (interim.status, interim.reason, interim.headers) == (100, "Continue", [])
        wire.send(chunked(body, 3) if "chunked" in fields[0] else body)
        assert wire.read().body == body
        wire.send(request("POST", "/", body=b"plain"))
        assert wire.read().body == b"plain"


def test_expect_continue_is_not_answered_in_vain(serve: Serve) -> None:
    """Not when the body is there already, when there is none, when it would be refused, nor on HTTP/1.0."""
    server = serve(echo)
    wire = server.connect()
    wire.send(request("POST", "/", "Expect: 100-continue", body=b"there"))
    assert wire.read().body == b"there"
    wire.send(request("POST", "/", "Expect: 100-continue", "Content-Length: 0"))
    assert wire.read().body == b""
    wire.send(request("GET", "/", "Expect: 100-continue"))
    assert wire.read().body == b""
    wire.send(request("POST", "/", "Expect: 100-continue", "Content-Length: 5000000"))
    assert wire.read().status == 413
    assert wire.ended()
    wire = server.connect()
    wire.send(b"POST / HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n")
    wait_until(lambda: server.stats()["buffers"] > 0, "the head to arrive")
    server.get()
    assert wire.silent()
    assert wire.send(b"hello").read().body == b"hello"


def test_expect_continue_behind_another_request(serve: Serve) -> None:
    """100 belongs to the second request: it comes after the first one's reply."""
    wire = serve(echo).connect()
    wire.send(request("POST", body=b"first"), request("POST", "/", "Expect: 100-continue", "Content-Length: 6"))
    assert wire.read().body == b"first"
    assert wire.read(interim=True).status == 100
    assert wire.send(b"second").read().body == b"second"


# Pipelines

@pytest.mark.parametrize("depth", [16, 200])
def test_pipeline(serve: Serve, depth: int) -> None:
    wire = serve(lambda ctx: ctx.write(f"{ctx.path} {ctx.conn_request_num}")).connect()
    for turn in range(3):
        wire.send(b"".join(request("GET", f"/{number}") for number in range(depth)))
        for number in range(depth):
            assert wire.read().body == f"/{number} {turn * depth + number + 1}".encode()
    assert wire.silent()


@pytest.mark.parametrize("depth", [16, 200])
def test_pipeline_of_everything(serve: Serve, chance: random.Random, depth: int) -> None:
    """Requests with bodies of both kinds and none, HEAD among them, slow handlers in between; cut anywhere."""
    def handler(ctx: RequestCtx) -> None:
        if ctx.path == "/slow":
            # Blocks until other requests were served meanwhile: this handler's thread is seized.
            before = len(served)
            wait_until(lambda: len(served) > before, "requests of others")
        else:
            served.append(ctx.conn_id)
        ctx.set_header("X-Number", str(ctx.conn_request_num))
        ctx.set_body(ctx.body)

    served: list[int] = []
    plan: list[tuple[str, bytes]] = []
    raw = bytearray()
    for _ in range(depth):
        kind = chance.choice(["none", "none", "length", "length", "chunked", "head", "slow"])
        body = chance.randbytes(chance.choice([1, 10, 1000, 6000, 40_000])) if kind in ("length", "chunked") else b""
        if kind == "slow" and sum(k == "slow" for k, _ in plan) >= 8:
            kind = "none"
        plan.append((kind, body))
        if kind == "chunked":
            raw += request("POST", "/", "Transfer-Encoding: chunked") + chunked(body, 1 + len(body) // 3)
        elif kind == "head":
            raw += request("HEAD")
        else:
            raw += request("GET" if not body else "POST", "/slow" if kind == "slow" else "/", body=body)
    cuts = sorted(chance.randrange(len(raw)) for _ in range(30))
    parts = [bytes(raw[a:b]) for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True)]
    server = serve(handler)
    wire = server.connect()
    finished = threading.Event()

    def others() -> None:
        with server.connect() as other:
            while not finished.is_set():
                other.get()

    company = threading.Thread(target=others, daemon=True)
    company.start()
    with ExitStack() as stack:
        stack.callback(finished.set)
        sender = Aside(wire, *parts)
        for number, (kind, body) in enumerate(plan, 1):
            reply = wire.read(head=kind == "head")
            assert (reply.status, reply.get("X-Number")) == (200, str(number)), (number, kind)
            assert reply.body == body
        sender.done()
    company.join(PATIENCE)
    assert wire.silent()


@pytest.mark.parametrize("position", [1, 2, 5, 15])
def test_earlier_replies_do_not_wait_for_a_blocking_handler(serve: Serve, release: threading.Event,
                                                            position: int) -> None:
    def handler(ctx: RequestCtx) -> None:
        if ctx.path == "/block":
            entered.set()
            wait_for(release)
        ctx.write(ctx.path)

    entered = threading.Event()
    server = serve(handler)
    wire = server.connect()
    paths = [f"/{number}" for number in range(16)]
    paths[position] = "/block"
    wire.send(b"".join(request("GET", path) for path in paths))
    for path in paths[:position]:
        assert wire.read().body == path.encode()
    wait_for(entered)
    assert not release.is_set()
    assert server.get("/other").body == b"/other"       # and nobody else waits either
    assert wire.silent()
    release.set()
    for path in paths[position:]:
        assert wire.read().body == path.encode()


def test_large_reply_before_a_blocking_handler(serve: Serve, release: threading.Event) -> None:
    body = b"L" * MEGABYTES

    def handler(ctx: RequestCtx) -> None:
        if ctx.path == "/block":
            wait_for(release)
        ctx.set_body(body)

    wire = serve(handler).connect()
    wire.send(request("GET", "/") + request("GET", "/block") + request("GET", "/"))
    assert wire.read().body == body
    assert not release.is_set()
    release.set()
    assert wire.read().body == body
    assert wire.read().body == body


def test_many_pipelines_with_handlers_that_block(serve: Serve) -> None:
    """Each second request of each connection waits until all connections have come as far."""
    def handler(ctx: RequestCtx) -> None:
        if ctx.path.startswith("/meet"):
            meetings[int(ctx.path[5:])].wait(PATIENCE)
        ctx.write(f"{ctx.path} {ctx.conn_request_num}")

    count, rounds = 12, 5
    meetings = [threading.Barrier(count) for _ in range(rounds)]
    server = serve(handler, workers=count + 2)
    wires = [server.connect() for _ in range(count)]
    raw = b"".join(request("GET", f"/plain{turn}") + request("GET", f"/meet{turn}") for turn in range(rounds))
    for wire in wires:
        wire.send(raw)
    for wire in wires:
        for number in range(1, 2 * rounds + 1):
            name = "plain" if number % 2 else "meet"
            assert wire.read().body == f"/{name}{(number - 1) // 2} {number}".encode()


# Cuts

POST = request("POST", "/path?q=1", "X-Field: value", body=b"hello")
CODED = request("POST", "/path?q=1", "Transfer-Encoding: chunked") + b"3;ext=1\r\nhel\r\n2\r\nlo\r\n0\r\nX-T: 1\r\n\r\n"


@pytest.mark.parametrize("raw", [POST, CODED], ids=["length", "chunked"])
def test_request_cut_in_two_anywhere(serve: Serve, raw: bytes) -> None:
    server = serve(lambda ctx: ctx.write(f"{ctx.method} {ctx.path} {ctx.query['q']} {ctx.body.decode()}"))
    for cut in range(1, len(raw)):
        with server.connect() as wire:
            wire.send(raw[:cut])
            wait_until(lambda: server.stats()["buffers"] > 0, "the first part to be received")
            reply = wire.send(raw[cut:]).read()
            assert reply.body == b"POST /path 1 hello", cut
        wait_until(lambda: server.stats()["buffers"] == 0, "the buffers to go back")


@pytest.mark.parametrize("raw", [POST, CODED], ids=["length", "chunked"])
def test_request_byte_by_byte(serve: Serve, raw: bytes) -> None:
    """Two requests in a row; between any two bytes another connection is served, so each byte comes alone."""
    server = serve(lambda ctx: ctx.write(f"{ctx.method} {ctx.path} {ctx.body.decode()}"))
    wire, other = server.connect(), server.connect()
    for _ in range(2):
        for at in range(len(raw)):
            assert wire.silent()
            wire.send(raw[at:at + 1])
            assert other.get("/other").body == b"GET /other "
        assert wire.read().body == b"POST /path hello"
