"""Replies that leave while their handler runs.

Knows: `ctx.stream`, `ctx.early_hints`, `ctx.add_trailer`, raw sockets. Never sees: the core's inside.
Invariant: what the client has is either the whole reply, with its end, or a connection that was reset.
"""

import threading
from collections.abc import Callable, Iterator

import pytest
from conftest import PATIENCE, Reply, Running, Serve, Wire, request, wait_for, wait_until

from fastserve import ClientGone, ContextExpired, ReplyStream, RequestCtx

GET_10 = b"GET / HTTP/1.0\r\n\r\n"


def test_an_iterable_is_sent_piece_by_piece(serve: Serve) -> None:
    gates = [threading.Event() for _ in range(3)]

    def pieces() -> Iterator[bytes | str]:
        for number, gate in enumerate(gates):
            yield f"piece {number}, \u00fc\n"
            wait_for(gate)
        yield b""
        yield bytearray(b"end")

    wire = serve(lambda ctx: ctx.stream(pieces()), workers=2).connect().send(request())
    reply = wire.read_head()
    assert reply.status == 200
    assert reply.get("Transfer-Encoding") == "chunked" and reply.get("Content-Length") is None
    assert reply.get("Content-Type") == "text/plain; charset=utf-8" and not reply.closes
    for number, gate in enumerate(gates):
        expected = f"piece {number}, \u00fc\n".encode()
        raw = wire.read_exactly(6 + len(expected) + 2)      # it comes before the next one is made
        assert raw == b"%04x\r\n%b\r\n" % (len(expected), expected)
        assert wire.silent()
        gate.set()
    assert wire.read_chunks() == b"end"
    assert wire.get("/again").status == 200


def test_a_writer_sends_when_it_flushes_and_when_it_is_full(serve: Serve) -> None:
    flushed = threading.Event()

    def write(out: ReplyStream) -> None:
        out.write("a")
        out.write(b"b")
        out.flush()
        wait_for(flushed)
        for _ in range(10_000):
            out.write(b"0123456789")
        out.flush()
        out.flush()
        out.write(memoryview(b"c"))

    wire = serve(lambda ctx: ctx.stream(write), workers=2).connect().send(request())
    wire.read_head()
    assert wire.read_exactly(10) == b"0002\r\nab\r\n"
    flushed.set()
    assert wire.read_chunks() == b"0123456789" * 10_000 + b"c"


@pytest.mark.parametrize("size", [1, 16_383, 16_384, 32_752, 32_753, 32_768, 100_000, 5_000_000])
def test_pieces_of_every_size(serve: Serve, size: int) -> None:
    body = bytes(range(256)) * (size // 256 + 1)
    sizes = [size, 1, size, 7, 7]

    def handler(ctx: RequestCtx) -> None:
        ctx.stream([body[:n] for n in sizes] if ctx.path == "/list" else write)

    def write(out: ReplyStream) -> None:
        for n in sizes:
            out.write(body[:n])

    wire = serve(handler, workers=2).connect()
    for path in ("/list", "/writer"):
        wire.send(request("GET", path))
        wire.read_head()
        assert wire.read_chunks() == b"".join(body[:n] for n in sizes)


def test_http_10_ends_with_the_connection(serve: Serve) -> None:
    server = serve(lambda ctx: ctx.stream([b"one", b"two"]), workers=2)
    reply = server.connect().send(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n").read()
    assert reply.closes and reply.get("Transfer-Encoding") is None and reply.get("Content-Length") is None
    assert reply.body == b"onetwo"


def test_a_promised_length(serve: Serve) -> None:
    server = serve(lambda ctx: ctx.stream([b"one", b"two"], length=6), workers=2)
    wire = server.connect()
    for raw in (request(), request(), GET_10):
        reply = wire.send(raw).read()
        assert (reply.get("Content-Length"), reply.get("Transfer-Encoding"), reply.body) == ("6", None, b"onetwo")
    assert wire.ended()


@pytest.mark.parametrize("length", [5, 7])
def test_a_broken_promise_resets_the_connection(serve: Serve, length: int) -> None:
    serve.expect_error("GET / failed: ValueError: 1 bytes (more|less) than")
    server = serve(lambda ctx: ctx.stream([b"one", b"two"], length=length), workers=2)
    wire = server.connect().send(request())
    with pytest.raises(ConnectionResetError):
        wire.read_head()
        wire.read_to_end()
    wait_until(lambda: server.stats()["aborted"] == 1)


@pytest.mark.parametrize("length", [-1, 2**60, "6"])
def test_an_impossible_length_is_a_500(serve: Serve, length: int) -> None:
    serve.expect_error("GET / failed: (ValueError: a length lies in|TypeError)")
    assert serve(lambda ctx: ctx.stream([b""], length=length), workers=2).get("/").status == 500


def test_a_source_that_fails_resets_the_connection(serve: Serve) -> None:
    serve.expect_error("GET / failed: ZeroDivisionError")

    def pieces() -> Iterator[bytes]:
        yield b"x" * 100
        yield b"%d" % (1 // 0)

    server = serve(lambda ctx: ctx.stream(pieces()), workers=2)
    for raw in (request(), GET_10):
        wire = server.connect().send(raw)
        with pytest.raises(ConnectionResetError):
            wire.read_head()
            wire.read_to_end()
    assert server.stats()["statuses"]["5xx"] == 0


def test_what_is_no_body_resets_the_connection(serve: Serve) -> None:
    serve.expect_error("GET / failed: TypeError: a body is bytes or str, not int")
    wire = serve(lambda ctx: ctx.stream([b"1", 2]), workers=2).connect().send(request())  # type: ignore[list-item]
    with pytest.raises(ConnectionResetError):
        wire.read_head()
        wire.read_to_end()


@pytest.mark.parametrize("status", [200, 204, 304])
def test_without_a_body_the_source_is_not_run(serve: Serve, status: int) -> None:
    ran = []

    def pieces() -> Iterator[bytes]:
        ran.append(1)
        yield b"x"

    def handler(ctx: RequestCtx) -> None:
        ctx.status = status
        ctx.stream(pieces() if ctx.path == "/" else lambda out: ran.append(2))

    wire = serve(handler, workers=2).connect()
    for path in ("/", "/function"):
        reply = wire.send(request("HEAD", path)).read(head=True)
        assert reply.status == status
        assert reply.get("Transfer-Encoding") == ("chunked" if status == 200 else None)
        if status != 200:
            assert wire.get(path).body == b""
    assert not ran


def leaves(server: Running, size: int = 4096) -> Wire:
    """A client that has read the head and will not read on."""
    wire = server.connect(receive_buffer=size).send(request())
    wire.read_head()
    return wire


def test_a_generator_sees_that_the_client_is_gone(serve: Serve) -> None:
    seen: list[BaseException] = []
    done = threading.Event()

    def pieces() -> Iterator[bytes]:
        try:
            while True:
                yield b"x" * 10_000
        except ClientGone as error:
            seen.append(error)

    def handler(ctx: RequestCtx) -> None:
        try:
            ctx.stream(pieces())
        except ClientGone as error:
            seen.append(error)
            raise
        finally:
            done.set()

    server = serve(handler, workers=2)
    leaves(server).reset()
    wait_for(done)
    assert [type(error) for error in seen] == [ClientGone, ClientGone]
    wait_until(lambda: server.stats()["aborted"] == 1)


def test_a_writer_sees_that_the_client_is_gone(serve: Serve) -> None:
    seen: list[BaseException] = []

    def write(out: ReplyStream) -> None:
        with pytest.raises(ConnectionError) as caught:
            while True:
                out.write(b"x" * 10_000)
        seen.append(caught.value)

    server = serve(lambda ctx: ctx.stream(write), workers=2)
    leaves(server).reset()
    wait_until(lambda: server.stats()["aborted"] == 1)
    assert isinstance(seen[0], ClientGone)


def test_a_reader_that_stalls_is_cut(serve: Serve) -> None:
    done = threading.Event()

    def handler(ctx: RequestCtx) -> None:
        try:
            with pytest.raises(ClientGone):
                ctx.stream(iter(lambda: b"x" * 100_000, b""))
        finally:
            done.set()

    server = serve(handler, workers=2, write_timeout=0.05)
    leaves(server)
    wait_for(done)


def test_a_stalled_stream_has_no_longer_than_write_timeout(serve: Serve) -> None:
    """The first bytes, which the socket takes at once, are no progress of its reader's: one that stalls half that time
    later, on a reply that is no stream, is cut later."""
    served = threading.Event()
    ends = []

    def handler(ctx: RequestCtx) -> None:
        if ctx.path == "/stream":
            served.set()
            with pytest.raises(ClientGone):
                ctx.stream(iter(lambda: b"x" * 100_000, b""))
            ends.append(server.stats()["timed_out_write"])
        else:
            ctx.set_body(b"x" * 50_000_000)

    server = serve(handler, workers=4, reactors=1, write_timeout=0.6, header_timeout=0.3)
    stalled = [server.connect(receive_buffer=4096).send(request("GET", "/stream"))]
    wait_for(served)
    # The clock of the half.
    assert server.connect().send(b"GET /").read().status == 408
    stalled.append(server.connect(receive_buffer=4096).send(request("GET", "/large")))
    wait_until(lambda: server.stats()["timed_out_write"] == 2)
    assert ends == [0]
    assert server.stats()["aborted"] == 1


def test_a_slow_reader_gets_everything(serve: Serve) -> None:
    size = 3_000_000

    def handler(ctx: RequestCtx) -> None:
        ctx.stream([b"y" * size])

    server = serve(handler, workers=2, reactors=1)
    wire = leaves(server, 8192)
    assert server.get("/").status == 200        # another worker has the lease meanwhile
    assert wire.read_chunks() == b"y" * size


def test_others_are_served_while_every_other_worker_streams(serve: Serve) -> None:
    go = threading.Event()

    def pieces() -> Iterator[bytes]:
        yield b"one"
        wait_for(go)
        yield b"two"

    def handler(ctx: RequestCtx) -> None:
        if ctx.path == "/stream":
            ctx.stream(pieces())
        else:
            ctx.write("now")

    server = serve(handler, workers=4, reactors=1)
    wires = [server.connect().send(request("GET", "/stream")) for _ in range(3)]
    for wire in wires:
        wire.read_head()
    for _ in range(50):
        assert server.get("/").body == b"now"
    go.set()
    for wire in wires:
        assert wire.read_chunks() == b"onetwo"


def test_pipelined_replies_stay_in_order(serve: Serve) -> None:
    def handler(ctx: RequestCtx) -> None:
        if ctx.path.startswith("/stream"):
            ctx.stream([ctx.path, "!"])
        else:
            ctx.write(ctx.path)

    wire = serve(handler, workers=4, reactors=1).connect()
    for _ in range(20):
        wire.send(*[request("GET", f"/{'stream' if n % 3 else 'plain'}{n}") for n in range(12)])
        for n in range(12):
            assert wire.read().body == (f"/stream{n}!" if n % 3 else f"/plain{n}").encode()


def trailers(wire: Wire) -> tuple[bytes, bytes]:
    """A chunked body of one connection that closes: what it decodes to, and its trailer section."""
    raw = wire.read_to_end()
    body, _, section = raw.partition(b"0\r\n")
    return body, section


def test_trailers(serve: Serve) -> None:
    def handler(ctx: RequestCtx) -> None:
        ctx.set_header("Connection", "close")
        ctx.add_trailer("X-Before", "1")

        def write(out: ReplyStream) -> None:
            out.write("body")
            ctx.add_trailer("X-Sum", "abc")
            ctx.add_trailer("X-Sum", "def")

        ctx.stream(write)

    server = serve(handler, workers=2)
    wire = server.connect().send(request())
    assert wire.read_head().get("Trailer") == "X-Before"
    assert trailers(wire) == (b"0004\r\nbody\r\n", b"X-Before: 1\r\nX-Sum: abc\r\nX-Sum: def\r\n\r\n")
    reply = server.connect().send(GET_10).read()
    assert reply.get("Trailer") is None and reply.body == b"body"


def test_trailers_that_nobody_may_believe(serve: Serve) -> None:
    def handler(ctx: RequestCtx) -> None:
        for name in ("Content-Length", "Transfer-Encoding", "Host", "Set-Cookie", "Trailer", "Date", "Authorization"):
            with pytest.raises(ValueError, match="must not stand in a trailer section"):
                ctx.add_trailer(name, "1")
        with pytest.raises(ValueError):
            ctx.add_trailer("X", "1\r\nY: 2")
        with pytest.raises(ValueError, match="limited to"):
            for _ in range(10):
                ctx.add_trailer("X", "1" * 1000)

    assert serve(handler, workers=2).get("/").status == 200


def test_a_stream_is_the_whole_reply(serve: Serve) -> None:
    """What was set counts, what was written before does not, and afterwards the head is gone."""
    streams: list[ReplyStream] = []

    def handler(ctx: RequestCtx) -> None:
        ctx.status = 201
        ctx.set_header("X-One", "1")
        ctx.content_type = "a/b"
        ctx.write("gone")

        def write(out: ReplyStream) -> None:
            streams.append(out)
            out.write("body")

        ctx.stream(write)
        late: list[Callable[[], object]] = [
            lambda: ctx.write("x"), lambda: ctx.set_header("X", "y"), lambda: ctx.stream([b"x"]),
            lambda: setattr(ctx, "status", 200), lambda: ctx.error("late"), ctx.early_hints,
        ]
        for use in late:
            with pytest.raises(RuntimeError, match="its head is sent"):
                use()
        with pytest.raises(ContextExpired):
            streams[0].write("late")

    reply = serve(handler, workers=2).get("/")
    assert (reply.status, reply.get("X-One"), reply.get("Content-Type"), reply.body) == (201, "1", "a/b", b"body")
    with pytest.raises(ContextExpired):
        streams[0].flush()


def test_early_hints(serve: Serve) -> None:
    go = threading.Event()

    def handler(ctx: RequestCtx) -> None:
        ctx.early_hints("</a.css>; rel=preload; as=style", "</b.js>; rel=preload")
        if ctx.http_version == "1.1":
            wait_for(go)
        ctx.early_hints("</c>; rel=preload")
        ctx.write("final")

    server = serve(handler, workers=2)
    wire = server.connect().send(request())
    hint = wire.read(interim=True)
    assert (hint.status, hint.headers) == (103, [("Link", "</a.css>; rel=preload; as=style"),
                                                 ("Link", "</b.js>; rel=preload")])
    assert wire.silent()
    go.set()
    assert wire.read(interim=True).status == 103
    assert wire.read().body == b"final"
    assert wire.send(GET_10).read().body == b"final"        # HTTP/1.0 knows no interim reply


def test_early_hints_that_would_split_the_reply(serve: Serve) -> None:
    def handler(ctx: RequestCtx) -> None:
        for wrong in ("a\r\nX: y", "a\n", "\0", "\u0100"):
            with pytest.raises(ValueError):
                ctx.early_hints(wrong)
        with pytest.raises(ValueError, match="limited"):
            ctx.early_hints("x" * 10_000)

    assert serve(handler, workers=2).get("/").status == 200


def test_shutdown_cuts_a_stream_that_does_not_end(serve: Serve) -> None:
    seen: list[type] = []

    def pieces() -> Iterator[bytes]:
        try:
            while True:
                yield b"x" * 100_000
        except BaseException as error:
            seen.append(type(error))
            raise

    server = serve(lambda ctx: ctx.stream(pieces()), workers=2)
    leaves(server)
    assert not server.shutdown(0)
    wait_until(lambda: seen, "the stream to be cut")
    assert seen == [ClientGone]


def test_a_stream_ends_within_the_drain(serve: Serve) -> None:
    go = threading.Event()

    def pieces() -> Iterator[bytes]:
        yield b"one"
        wait_for(go)
        yield b"two"

    server = serve(lambda ctx: ctx.stream(pieces()), workers=2)
    wire = server.connect().send(request())
    wire.read_head()
    stopping = threading.Thread(target=server.shutdown, args=(PATIENCE,))
    stopping.start()

    wait_until(server.refuses, "the drain to begin")
    go.set()
    assert wire.read_chunks() == b"onetwo"
    assert wire.ended()
    stopping.join()
    assert server.clean


def test_many_streams_at_once(serve: Serve) -> None:
    """More than workers: each is whole, and the connection goes on."""
    def handler(ctx: RequestCtx) -> None:
        number = int(ctx.path[1:])
        ctx.stream([bytes([number]) * 5000] * 20)

    server = serve(handler, workers=8)
    wires = [server.connect() for _ in range(40)]
    for _ in range(3):
        for number, wire in enumerate(wires):
            wire.send(request("GET", f"/{number}"))
        for number, wire in enumerate(wires):
            reply: Reply = wire.read()
            assert reply.body == bytes([number]) * 100_000


@pytest.mark.parametrize("path", ["/hints", "/write"])
def test_a_handler_that_keeps_the_news_to_itself_writes_nowhere(serve: Serve, path: str) -> None:
    """The client is gone, the handler goes on: each further word raises, and none is kept."""
    inside, left = threading.Event(), threading.Event()
    counts: list[int] = []

    def insist(use: Callable[[], object]) -> None:
        gone = 0
        for _ in range(50):
            try:
                use()
            except ClientGone:
                gone += 1
        counts.append(gone)

    def handler(ctx: RequestCtx) -> None:
        inside.set()
        wait_for(left)
        if ctx.path == "/hints":
            insist(lambda: ctx.early_hints("x" * 7000))
            insist(lambda: ctx.stream([b"x"]))
            ctx.write("x" * 20_000)
        else:
            ctx.stream(lambda out: insist(lambda: out.write(b"x" * 400_000)))

    server = serve(handler, workers=2)
    for turn in range(5):
        inside.clear()
        left.clear()
        wire = server.connect().send(request("GET", path) * 3)
        wait_for(inside)
        wire.reset()
        left.set()
        wait_until(lambda turn=turn: server.stats()["aborted"] == turn + 1)
    assert min(counts) >= 45, counts


def test_fields_that_are_full_leave_the_reply_as_it_was(serve: Serve) -> None:
    """The announcement of a trailer does not fit: then nothing of the stream has begun."""
    def handler(ctx: RequestCtx) -> None:
        ctx.set_header("X-Fill", "x" * 7120)
        ctx.add_trailer("X-" + "t" * 200, "1")
        with pytest.raises(ValueError, match="limited"):
            ctx.stream([b"streamed"])
        ctx.write("0\r\n\r\nnot streamed")

    wire = serve(handler, workers=2).connect()
    for _ in range(2):
        reply = wire.send(request()).read()
        assert reply.get("Transfer-Encoding") is None and reply.body == b"0\r\n\r\nnot streamed"


def test_other_threads_do_not_tear_the_head(serve: Serve, brisk: None) -> None:
    def handler(ctx: RequestCtx) -> None:
        stop = threading.Event()

        def meddle() -> None:
            value = 1
            while not stop.is_set():
                value += 1
                try:
                    ctx.set_header("X-Meddle", "m" * (value % 3000 + 1))
                    ctx.content_type = f"a/b{value}"
                except RuntimeError:
                    return

        other = threading.Thread(target=meddle)
        other.start()
        ctx.set_header("X-Own", "o")
        ctx.stream([b"body"])
        stop.set()
        other.join()

    wire = serve(handler, workers=4).connect()
    for _ in range(600):
        assert wire.send(request()).read().body == b"body"


def test_an_exception_behind_the_stream_ends_the_connection_and_no_more(serve: Serve) -> None:
    serve.expect_error("GET / failed: ZeroDivisionError")

    def handler(ctx: RequestCtx) -> None:
        ctx.stream([b"whole"])
        ctx.write(str(1 // 0))

    wire = serve(handler, workers=2).connect().send(request())
    assert wire.read().body == b"whole"
    assert wire.ended()


@pytest.mark.parametrize("cut", ["shutdown", "write_timeout"])
def test_what_ends_with_the_connection_never_ends_early(serve: Serve, cut: str) -> None:
    """A reply without a length that is cut is reset: to its reader a plain end would be its end."""
    def handler(ctx: RequestCtx) -> None:
        ctx.del_header("Content-Length")
        ctx.set_body(b"x" * 8_000_000)

    server = serve(handler, workers=2, write_timeout=0.05 if cut == "write_timeout" else 30)
    wire = server.connect(receive_buffer=4096).send(request())
    wire.read_head()
    if cut == "shutdown":
        assert not server.shutdown(0)
    else:
        wait_until(lambda: server.stats()["timed_out_write"])
    with pytest.raises(ConnectionResetError):
        wire.read_to_end()


def test_whole_numbers_alone_are_lengths(serve: Serve) -> None:
    def handler(ctx: RequestCtx) -> None:
        with pytest.raises(TypeError):
            ctx.stream([b"12"], length=2.0)  # type: ignore[arg-type]
        ctx.write("ok")

    assert serve(handler, workers=2).get("/").body == b"ok"
