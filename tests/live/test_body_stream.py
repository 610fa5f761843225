"""Bodies that arrive while their handler runs, and the hook that sees a head before its body.

Knows: `on_headers`, `body_stream`, `stream_request_body`, `trailers`, raw sockets. Never sees: the core's
inside. Invariant: bytes of a body are never taken for a request, whoever left them unread.
"""

import threading

import pytest
from conftest import PATIENCE, Running, Serve, Wire, chunked, request, wait_for, wait_until

from fastserve import BadRequest, BodyStream, ClientGone, ContextExpired, RequestCtx

CHUNKED = "Transfer-Encoding: chunked"
EXPECT = "Expect: 100-continue"


def post(length: int, *fields: str, path: str = "/") -> bytes:
    return request("POST", path, f"Content-Length: {length}", *fields)


def echo(ctx: RequestCtx) -> None:
    ctx.set_body(b"".join(ctx.body_stream))


@pytest.mark.parametrize("size", [0, 1, 4000, 20_000, 70_000, 1_000_000])
@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_a_body_is_read_as_it_arrives(serve: Serve, framing: str, size: int) -> None:
    body = bytes(range(251)) * (size // 251 + 1)
    body = body[:size]
    wire = serve(echo, workers=2, stream_request_body=True).connect()
    for _ in range(3):
        if framing == "length":
            wire.send(request("POST", "/", body=body))
        else:
            wire.send(request("POST", "/", CHUNKED), chunked(body, 1, 1000, 17, 30_000))
        assert wire.read().body == body
    assert wire.send(request()).read().body == b""      # without a body there is nothing to read


def test_the_handler_runs_before_the_body_is_there(serve: Serve) -> None:
    seen: list[bytes] = []
    pieces = [threading.Event() for _ in range(3)]

    def handler(ctx: RequestCtx) -> None:
        assert ctx.stream_body
        assert ctx.headers["content-length"] == "9"
        for piece in ctx.body_stream:
            seen.append(piece)
            pieces[len(seen) - 1].set()
        assert ctx.path == "/path" and ctx.headers["host"] == "test"
        ctx.write("done")

    wire = serve(handler, workers=2, stream_request_body=True).connect().send(post(9, path="/path"))
    for number, piece in enumerate((b"one", b"two", b"end")):
        wire.send(piece)
        wait_for(pieces[number])
    assert seen == [b"one", b"two", b"end"]
    assert wire.read().body == b"done"


def test_read_and_readinto(serve: Serve) -> None:
    def handler(ctx: RequestCtx) -> None:
        stream = ctx.body_stream
        assert stream.read(3) == b"abc"
        assert stream.read(0) == b""
        space = bytearray(4)
        assert stream.readinto(space) == 4 and space == b"defg"
        assert stream.read(1) == b"h"
        assert stream.read() == b"ijkl"
        assert stream.read() == stream.read(1) == b"" and stream.readinto(space) == 0
        with pytest.raises(TypeError):
            stream.readinto(b"read-only")
        ctx.write("done")

    for config in (dict(stream_request_body=True), dict()):
        server = serve(handler, workers=2, **config)
        wire = server.connect()
        assert wire.send(request("POST", "/", body=b"abcdefghijkl")).read().body == b"done"
        assert wire.send(request("POST", "/", CHUNKED), chunked(b"abcdefghijkl")).read().body == b"done"


def test_body_reads_the_rest(serve: Serve) -> None:
    def handler(ctx: RequestCtx) -> None:
        first = ctx.body_stream.read(2)
        assert ctx.body == ctx.body == b"cdef"
        ctx.set_body(first)

    assert serve(handler, workers=2, stream_request_body=True).exchange(
        request("POST", "/", body=b"abcdef")).body == b"ab"


def test_json_and_forms_of_a_streamed_body(serve: Serve) -> None:
    def handler(ctx: RequestCtx) -> None:
        ctx.write(str(ctx.json() if ctx.path == "/json" else ctx.form.get("a")))

    server = serve(handler, workers=2, stream_request_body=True)
    assert server.exchange(request("POST", "/json", body=b"[1]")).body == b"[1]"
    form = "Content-Type: application/x-www-form-urlencoded"
    assert server.exchange(request("POST", "/form", form, body=b"a=b")).body == b"b"


def test_pipelined_behind_a_streamed_body(serve: Serve) -> None:
    wire = serve(echo, workers=3, stream_request_body=True, reactors=1).connect()
    for _ in range(20):
        wire.send(request("POST", "/", body=b"one"), request("POST", "/", CHUNKED), chunked(b"three"),
                  request(), request("POST", "/", body=b"x" * 50_000), request("GET", "/last"))
        for body in (b"one", b"three", b"", b"x" * 50_000, b""):
            assert wire.read().body == body


# What is left unread

SMUGGLED = request("GET", "/smuggled")


def notes(seen: list[str], read: int = 0) -> object:
    def handler(ctx: RequestCtx) -> None:
        seen.append(ctx.path)
        if read:
            ctx.body_stream.read(read)
        ctx.write("ok")
    return handler


@pytest.mark.parametrize("read", [0, 5])
@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_what_has_come_is_thrown_away(serve: Serve, framing: str, read: int) -> None:
    """All of it is there when the handler returns, and the connection goes on behind it."""
    seen: list[str] = []
    wire = serve(notes(seen, read), workers=2, stream_request_body=True).connect()
    for _ in range(5):
        body = SMUGGLED * 20
        wire.send((request("POST", "/", body=body) if framing == "length"
                   else request("POST", "/", CHUNKED) + chunked(body, 100)) + request("GET", "/next"))
        assert [wire.read().closes for _ in range(2)] == [False, False]
    assert seen == ["/", "/next"] * 5


@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_what_has_not_come_ends_the_connection(serve: Serve, framing: str) -> None:
    seen: list[str] = []
    wire = serve(notes(seen), workers=2, stream_request_body=True).connect()
    wire.send(post(3_000_000) if framing == "length" else request("POST", "/", CHUNKED) + b"2dc6c0\r\n")
    wire.send(SMUGGLED)
    reply = wire.read()
    assert reply.status == 200 and reply.closes
    wire.send(SMUGGLED * 10)
    assert wire.ended()
    assert seen == ["/"]


def test_more_than_a_bound_is_not_waited_for(serve: Serve) -> None:
    seen: list[str] = []
    server = serve(notes(seen), workers=2, stream_request_body=True)
    wire = server.connect()
    sending = threading.Thread(target=wire.send, args=(post(3_000_000), SMUGGLED * (3_000_000 // len(SMUGGLED))))
    sending.start()
    assert wire.read().closes
    sending.join()
    assert seen == ["/"]


# Bodies that are at fault

FAULTS = {
    "chunk": (CHUNKED, b"5\r\nhelloXX", 400),
    "size": (CHUNKED, b"zz\r\n", 400),
    "trailer": (CHUNKED, b"0\r\nContent-Length: 5\r\n\r\n", 400),
    "too large": (CHUNKED, b"fff\r\n", 413),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_malformed_body_is_the_clients_fault(serve: Serve, fault: str) -> None:
    field, raw, status = FAULTS[fault]
    wire = serve(echo, workers=2, stream_request_body=True, max_request_body_size=1000).connect()
    reply = wire.send(request("POST", "/", field), raw, SMUGGLED).read()
    assert reply.status == status and reply.closes and reply.body
    assert wire.ended()


def test_faults_of_streamed_bodies_are_counted_and_worded(serve: Serve) -> None:
    def worded(ctx: RequestCtx, error: BadRequest) -> None:
        ctx.write(f"worded {error.status}")

    for hook in (None, lambda ctx: setattr(ctx, "stream_body", True)):
        server = serve(echo, workers=2, stream_request_body=True, on_headers=hook, max_request_body_size=10,
                       error_handler=worded)
        reply = server.exchange(request("POST", "/", body=b"x" * 11))
        assert (reply.status, reply.body, reply.closes) == (413, b"worded 413", True)
        assert server.exchange(request("POST", "/", CHUNKED), b"b\r\n").status == 413
        assert server.exchange(request("POST", "/", CHUNKED), b"z").status == 400
        wait_until(lambda server=server: server.stats()["refusals"] == {400: 1, 413: 2})


def test_each_look_at_the_stream_is_the_same_stream(serve: Serve) -> None:
    def handler(ctx: RequestCtx) -> None:
        read = []
        while piece := ctx.body_stream.read(4):
            read.append(piece)
        ctx.set_body(b"|".join(read))

    for streamed in (False, True):
        server = serve(handler, workers=2, stream_request_body=streamed)
        assert server.exchange(request("POST", "/", body=b"0123456789")).body == b"0123|4567|89"


def test_a_handler_may_see_to_it_itself(serve: Serve) -> None:
    def handler(ctx: RequestCtx) -> None:
        with pytest.raises(BadRequest) as caught:
            ctx.body_stream.read()
        ctx.error(f"no: {caught.value.status}", 422)

    reply = serve(handler, workers=2, stream_request_body=True).exchange(request("POST", "/", CHUNKED), b"zz\r\n")
    assert (reply.status, reply.body, reply.closes) == (422, b"no: 400", True)


def test_a_length_beyond_the_limit_is_refused_before_the_handler(serve: Serve) -> None:
    seen: list[str] = []
    server = serve(notes(seen), workers=2, stream_request_body=True, max_request_body_size=10)
    reply = server.exchange(post(11))
    assert (reply.status, reply.closes) == (413, True)
    assert server.exchange(post(10) + b"0123456789").status == 200
    assert seen == ["/"]


def test_a_body_that_stays_away_is_408(serve: Serve) -> None:
    server = serve(echo, workers=2, stream_request_body=True, body_timeout=0.05)
    reply = server.exchange(post(10) + b"12345")
    assert (reply.status, reply.closes) == (408, True)


def test_a_client_that_goes_is_seen(serve: Serve) -> None:
    seen: list[BaseException] = []

    def handler(ctx: RequestCtx) -> None:
        try:
            ctx.body_stream.read()
        except ClientGone as error:
            seen.append(error)
            raise

    server = serve(handler, workers=2, stream_request_body=True)
    for end in (Wire.close, Wire.reset, Wire.half_close):
        end(server.connect().send(post(10) + b"12345"))
    wait_until(lambda: len(seen) == 3)
    wait_until(lambda: server.stats()["aborted"] == 3)


# 100 Continue

def test_100_is_said_when_the_handler_reads(serve: Serve) -> None:
    go = threading.Event()

    def handler(ctx: RequestCtx) -> None:
        wait_for(go)
        echo(ctx)

    wire = serve(handler, workers=2, stream_request_body=True).connect().send(post(4, EXPECT))
    assert wire.silent()
    go.set()
    assert wire.read(interim=True).status == 100
    assert wire.send(b"body").read().body == b"body"
    assert wire.send(post(4, EXPECT), b"soon").read(interim=False).body == b"soon"     # it did not wait
    assert wire.send(request("GET", "/")).read().status == 200


def test_100_is_said_before_a_reply_that_is_streamed(serve: Serve) -> None:
    wire = serve(lambda ctx: ctx.stream(lambda out: out.write(ctx.body_stream.read())), workers=2,
                 stream_request_body=True).connect()
    for _ in range(2):
        wire.send(post(4, EXPECT))
        assert wire.read(interim=True).status == 100
        assert wire.send(b"body").read().body == b"body"


def test_100_is_not_said_when_nobody_reads(serve: Serve) -> None:
    seen: list[str] = []
    wire = serve(notes(seen), workers=2, stream_request_body=True).connect()
    reply = wire.send(post(len(SMUGGLED), EXPECT)).read()
    assert reply.status == 200 and reply.closes         # nobody knows whether the body will come
    wire.send(SMUGGLED)
    assert wire.ended()
    assert seen == ["/"]


# Trailers

@pytest.mark.parametrize("streamed", [False, True])
def test_trailers_of_a_request(serve: Serve, streamed: bool) -> None:
    def handler(ctx: RequestCtx) -> None:
        before = len(ctx.trailers)
        body = ctx.body
        found = ctx.trailers
        kept.append(found)
        ctx.write(repr((before, body, found.items(), found.get("x-SUM"), found.getall("x"), "X" in found)))

    kept: list[object] = []
    wire = serve(handler, workers=2, stream_request_body=streamed).connect()
    raw = b"3\r\nabc\r\n0\r\nX-Sum: \t 1 2\xe9\t\r\nx:\r\nX:2\r\n\r\n"
    pairs = [("X-Sum", "1 2\u00e9"), ("x", ""), ("X", "2")]
    for _ in range(2):
        reply = wire.send(request("POST", "/", CHUNKED), raw).read()
        assert reply.body.decode() == repr((0 if streamed else 3, b"abc", pairs, "1 2\u00e9", ["", "2"], True))
        reply = wire.send(request("POST", "/", CHUNKED), chunked(b"abc")).read()
        assert reply.body.decode() == repr((0, b"abc", [], None, [], False))
        reply = wire.send(request()).read()
        assert reply.body.decode() == repr((0, b"", [], None, [], False))
    assert kept[0].items() == pairs                     # type: ignore[attr-defined]  # its own, after the call


# on_headers

def test_the_hook_sees_every_head_before_its_body(serve: Serve) -> None:
    seen: list[tuple[str, str]] = []

    def hook(ctx: RequestCtx) -> None:
        seen.append(("hook", ctx.path))
        if ctx.method == "POST":
            for name in ("body", "body_stream"):
                with pytest.raises(RuntimeError, match="before the body is read"):
                    getattr(ctx, name)
        ctx.set_header("X-Hook", "no trace")
        ctx.write("nor of this")

    def handler(ctx: RequestCtx) -> None:
        seen.append(("handler", ctx.path))
        assert not ctx.stream_body
        ctx.set_body(ctx.body or b"none")

    wire = serve(handler, workers=3, on_headers=hook).connect()
    for path, raw, body in (("/get", b"", b"none"), ("/in", b"abc", b"abc"), ("/big", b"x" * 100_000, b"x" * 100_000)):
        seen.clear()
        wire.send(request("POST" if raw else "GET", path, body=raw))
        reply = wire.read()
        assert reply.body == body and reply.get("X-Hook") is None
        assert seen == [("hook", path), ("handler", path)]
    seen.clear()
    wire.send(post(4, EXPECT))
    assert wire.read(interim=True).status == 100
    assert seen == [("hook", "/")]                      # and the handler has to wait for the body
    assert wire.send(b"late").read().body == b"late"
    wire.send(request("POST", "/", CHUNKED), chunked(b"abc"), request("POST", "/2", body=b"2"), request("GET", "/3"))
    assert [wire.read().body for _ in range(3)] == [b"abc", b"2", b"none"]


def test_a_request_that_lines_up_twice_counts_once(serve: Serve) -> None:
    """With its head for the hook, and whole for the handler."""
    numbers: list[int] = []
    server = serve(lambda ctx: numbers.append(ctx.conn_request_num), workers=2, max_requests_per_conn=3,
                   on_headers=lambda ctx: numbers.append(ctx.conn_request_num))
    wire = server.connect()
    assert [wire.send(request("POST", "/", body=b"x")).read().closes for _ in range(3)] == [False, False, True]
    assert numbers == [1, 1, 2, 2, 3, 3]


def test_the_hook_may_answer(serve: Serve) -> None:
    seen: list[str] = []

    def hook(ctx: RequestCtx) -> bool:
        if ctx.headers.get("authorization") is None:
            ctx.error("who are you?", 401)
            return True
        return False

    wire = serve(notes(seen), workers=2, on_headers=hook).connect()
    assert wire.get("/").status == 401
    assert wire.get("/", "Authorization: me").status == 200
    reply = wire.send(request("POST", "/", body=SMUGGLED)).read()
    assert (reply.status, reply.body, reply.closes) == (401, b"who are you?", False)
    reply = wire.send(post(10, EXPECT)).read()          # before 100: the body is not asked for
    assert (reply.status, reply.closes) == (401, True)
    assert wire.ended()
    assert seen == ["/"]


def test_the_hook_sets_the_limit_of_a_route(serve: Serve) -> None:
    def hook(ctx: RequestCtx) -> None:
        assert ctx.max_body_size == 10
        if ctx.path == "/large":
            ctx.max_body_size = 100_000

    def handler(ctx: RequestCtx) -> None:
        with pytest.raises(RuntimeError):
            ctx.max_body_size = 1
        with pytest.raises(RuntimeError):
            ctx.stream_body = True
        ctx.write(f"{ctx.max_body_size} {len(ctx.body)}")

    server = serve(handler, workers=2, on_headers=hook, max_request_body_size=10)
    wire = server.connect()
    assert wire.send(request("POST", "/large", body=b"x" * 100_000)).read().body == b"100000 100000"
    assert wire.send(request("POST", "/large", CHUNKED), chunked(b"x" * 9000, 5000)).read().body == b"100000 9000"
    assert wire.send(request("POST", "/", body=b"x" * 10)).read().body == b"10 10"
    assert wire.send(post(100_001, path="/large")).read().status == 413
    assert server.exchange(post(11)).status == 413
    assert server.exchange(request("POST", "/", CHUNKED), b"b\r\n").status == 413


def test_the_hook_chooses_who_reads(serve: Serve) -> None:
    def hook(ctx: RequestCtx) -> None:
        assert ctx.stream_body == (config["stream_request_body"])
        ctx.stream_body = ctx.path == "/stream"

    def handler(ctx: RequestCtx) -> None:
        ctx.write(f"{ctx.stream_body} {len(ctx.body)}")

    for default in (False, True):
        config = dict(stream_request_body=default)
        wire = serve(handler, workers=2, on_headers=hook, **config).connect()
        assert wire.send(request("POST", "/stream", body=b"x" * 50_000)).read().body == b"True 50000"
        assert wire.send(request("POST", "/whole", body=b"x" * 50_000)).read().body == b"False 50000"
        assert wire.send(request("GET", "/stream")).read().body == b"False 0"


def test_a_hook_that_fails_is_a_500(serve: Serve) -> None:
    serve.expect_error("POST / failed: ZeroDivisionError")
    serve.expect_error("GET /odd failed: TypeError: a handler returns None, not str")
    seen: list[str] = []
    wire = serve(notes(seen), workers=2, on_headers=lambda ctx: "odd" if ctx.path == "/odd" else 1 // 0).connect()
    reply = wire.send(request("POST", "/", body=SMUGGLED)).read()
    assert (reply.status, reply.closes) == (500, False)
    assert wire.get("/odd").status == 500
    assert not seen


def test_hooks_that_block(serve: Serve) -> None:
    """Seized in the hook: the connection comes home for its body, and the handler is called from there."""
    inside, go = threading.Semaphore(0), threading.Event()

    def hook(ctx: RequestCtx) -> None:
        if ctx.path == "/block":
            inside.release()
            wait_for(go)

    server = serve(echo, workers=6, reactors=1, on_headers=hook)
    wires = [server.connect().send(post(6, path="/block")) for _ in range(4)]
    for _ in wires:
        assert inside.acquire(timeout=PATIENCE)
    assert server.exchange(request("POST", "/", body=b"free")).body == b"free"
    for wire in wires:
        wire.send(b"abc")
    go.set()
    for wire in wires:
        assert wire.send(b"def").read().body == b"abcdef"


def test_a_stream_is_for_its_call_and_its_thread(serve: Serve) -> None:
    kept: list[BodyStream] = []
    problems: list[BaseException] = []

    def other(stream: BodyStream) -> None:
        try:
            stream.read(1)
        except RuntimeError as error:
            problems.append(error)

    def handler(ctx: RequestCtx) -> None:
        kept.append(ctx.body_stream)
        thread = threading.Thread(target=other, args=(ctx.body_stream,))
        thread.start()
        thread.join(PATIENCE)
        ctx.set_body(ctx.body)

    server: Running = serve(handler, workers=2, stream_request_body=True)
    assert server.exchange(request("POST", "/", body=b"abc")).body == b"abc"
    assert "thread that the handler was called in" in str(problems[0])
    with pytest.raises(ContextExpired):
        kept[0].read(1)


def test_echo_while_the_body_arrives(serve: Serve) -> None:
    """Both directions at once: what is read goes out before the rest has come."""
    wire = serve(lambda ctx: ctx.stream(ctx.body_stream), workers=2, stream_request_body=True).connect()
    for _ in range(2):
        wire.send(post(6), b"abc")
        wire.read_head()
        assert wire.read_exactly(11) == b"0003\r\nabc\r\n"
        assert wire.send(b"def").read_chunks() == b"def"
