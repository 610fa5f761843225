"""Replies as bytes: how connections live and end, what is refused and how, deadlines, replies without a body.

Knows: the wire, and tests/cases/*.toml. Never sees: a client library, what a handler may do (test_ctx.py).
Invariant: each refusal can be read by a client that is still sending, says Connection: close, and is
followed by an orderly end; what comes behind it is never answered.
"""

import re
import threading
from email.utils import parsedate_to_datetime
from http import HTTPStatus

import pytest

from fastserve import RequestCtx
from tests.live.conftest import Reply, Running, Serve, Wire, chunked, request, wait_for, wait_until

PHRASES = {status.value: status.phrase for status in HTTPStatus} | {
    413: "Content Too Large", 414: "URI Too Long", 416: "Range Not Satisfiable", 422: "Unprocessable Content"}
"""RFC 9110's: older Pythons have some of older RFCs."""


def hello(ctx: RequestCtx) -> None:
    ctx.write("hello")


@pytest.fixture
def server(serve: Serve) -> Running:
    return serve(hello)


def check_refusal(wire: Wire, status: int, head: bool = False) -> Reply:
    reply = wire.read(head)
    text = f"{PHRASES[status]}\n".encode()
    assert (reply.status, reply.reason) == (status, PHRASES[status])
    assert reply.closes
    assert reply.get("Content-Type") == "text/plain; charset=utf-8"
    assert reply.get("Content-Length") == str(len(text))
    assert reply.body == (b"" if head else text)
    assert wire.ended()
    return reply


# The reply

def test_reply_to_the_byte(server: Running) -> None:
    wire = server.connect().send(request("GET", "/", "Connection: close"))
    raw = wire.read_to_end()
    date = re.search(rb"\r\nDate: ([^\r]*)\r\n", raw)
    assert date
    assert parsedate_to_datetime(date[1].decode()).tzinfo is not None
    assert re.fullmatch(rb"[A-Z][a-z]{2}, \d\d [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d GMT", date[1])
    assert raw == (b"HTTP/1.1 200 OK\r\nServer: fastserve\r\nDate: " + date[1] + b"\r\n"
                   b"Content-Type: text/plain; charset=utf-8\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello")


@pytest.mark.parametrize(("name", "expected"), [("", None), ("my server/1.0 (x)", "my server/1.0 (x)")])
def test_name_of_the_server(serve: Serve, name: str, expected: str | None) -> None:
    server = serve(hello, name=name)
    assert server.get().get("Server") == expected
    assert server.exchange(b"nonsense\r\n\r\n").get("Server") == expected


def test_head_has_the_length_and_no_body(serve: Serve) -> None:
    def handler(ctx: RequestCtx) -> None:
        if ctx.path == "/missing":
            ctx.not_found()
        elif ctx.path == "/fails":
            raise OSError("on purpose")
        else:
            ctx.set_body("x" * int(ctx.path[1:]))

    serve.expect_error("on purpose")
    wire = serve(handler).connect()
    for size in (0, 1, 5000, 1_000_000):
        for _ in range(2):
            assert wire.send(request("HEAD", f"/{size}")).read(head=True).get("Content-Length") == str(size)
        assert len(wire.get(f"/{size}").body) == size
    missing, shown = wire.send(request("HEAD", "/missing")).read(head=True), wire.get("/missing")
    assert (missing.status, missing.get("Content-Length")) == (404, str(len(shown.body)))
    assert wire.send(request("HEAD", "/fails")).read(head=True).status == 500
    assert wire.get("/1").body == b"x"


@pytest.mark.parametrize("status", [204, 304])
@pytest.mark.parametrize("size", [0, 10, 100_000])
def test_replies_that_have_no_body(serve: Serve, status: int, size: int) -> None:
    def handler(ctx: RequestCtx) -> None:
        ctx.set_body(b"b" * size)
        ctx.status = status

    wire = serve(handler).connect()
    for _ in range(3):
        reply = wire.get()
        assert (reply.status, reply.body) == (status, b"")
        assert reply.get("Content-Length") is None
    wire.send(request("GET", "/", "Connection: close"))
    assert wire.read().status == status
    assert wire.ended()


def test_empty_body_has_length_0(serve: Serve) -> None:
    wire = serve(lambda ctx: None).connect()
    reply = wire.get()
    assert (reply.status, reply.get("Content-Length"), reply.get("Content-Type")) == (200, "0", None)


def test_every_status(serve: Serve) -> None:
    def handler(ctx: RequestCtx) -> None:
        ctx.status = int(ctx.path[1:])

    wire = serve(handler).connect()
    for status in range(200, 600):
        reply = wire.get(f"/{status}")
        assert reply.status == status
        if status in PHRASES and status not in (208, 226, 306, 418, 421, 425, 510):
            assert reply.reason == PHRASES[status]


# How connections live and end

@pytest.mark.parametrize("fields", [
    ("Connection: close",), ("Connection: Close",), ("Connection: CLOSE",), ("connection: cLOSE",),
    ("Connection: keep-alive, close",), ("Connection: close , keep-alive",), ("Connection: x,close",),
    ("Connection: x", "Connection: Close"), ("Connection: ,, close,",),
])
def test_connection_close(server: Running, fields: tuple[str, ...]) -> None:
    wire = server.connect().send(request("GET", "/", *fields), request("GET", "/never"))
    reply = wire.read()
    assert (reply.body, reply.closes) == (b"hello", True)
    assert wire.gone()
    assert server.stats()["requests"] == 1


@pytest.mark.parametrize("fields", [(), ("Connection: keep-alive",), ("Connection: closed",),
                                    ("Connection: x-close",), ("X-Connection: close",)])
def test_connection_stays(server: Running, fields: tuple[str, ...]) -> None:
    wire = server.connect()
    for _ in range(3):
        assert wire.send(request("GET", "/", *fields)).read().get("Connection") is None
    assert server.stats()["accepted"] == 1


def test_http_10_closes(server: Running) -> None:
    for raw in (b"GET / HTTP/1.0\r\n\r\n", b"GET / HTTP/1.0\r\nConnection: close\r\n\r\n",
                b"GET / HTTP/1.0\r\nConnection: keep-alive, close\r\n\r\n"):
        wire = server.connect().send(raw)
        reply = wire.read()
        assert (reply.body, reply.closes, reply.version) == (b"hello", True, "1.1")
        assert wire.ended()


def test_http_10_keep_alive(server: Running) -> None:
    wire = server.connect()
    for spelling in ("keep-alive", "Keep-Alive", "KEEP-ALIVE, x"):
        wire.send(f"GET / HTTP/1.0\r\nConnection: {spelling}\r\n\r\n".encode())
        assert wire.read().get("Connection") == "keep-alive"
    assert wire.send(b"GET / HTTP/1.0\r\n\r\n").read().closes
    assert wire.ended()


def test_handler_that_closes(serve: Serve) -> None:
    def handler(ctx: RequestCtx) -> None:
        ctx.set_header("Connection", "close")
        ctx.write(ctx.path)

    wire = serve(handler).connect().send(request("GET", "/1"), request("GET", "/2"))
    reply = wire.read()
    assert (reply.body, reply.closes) == (b"/1", True)
    assert wire.gone()


@pytest.mark.parametrize("pipelined", [True, False])
def test_max_requests_per_conn(serve: Serve, pipelined: bool) -> None:
    server = serve(lambda ctx: ctx.write(str(ctx.conn_request_num)), max_requests_per_conn=3)
    wire = server.connect()
    if pipelined:
        wire.send(request() * 5)
    for number in (1, 2, 3):
        if not pipelined:
            wire.send(request())
        reply = wire.read()
        assert (reply.body, reply.closes) == (str(number).encode(), number == 3)
    assert wire.ended()
    assert server.stats()["requests"] == 3


def test_closing_reply_arrives_though_more_was_sent(serve: Serve) -> None:
    """The last reply is not lost to the reset that a close with unread bytes would cause."""
    body = b"B" * 300_000
    server = serve(lambda ctx: ctx.set_body(body), max_requests_per_conn=1)
    for _ in range(5):
        wire = server.connect().send(request() * 500)
        assert wire.read().body == body
        assert wire.ended()


def test_empty_line_before_a_request(server: Running) -> None:
    wire = server.connect().send(b"\r\n", request(), b"\r\n", request(), b"\r\n\r\n")
    assert wire.read().body == b"hello"
    assert wire.read().body == b"hello"
    check_refusal(wire, 400)


def test_connection_without_a_request(server: Running) -> None:
    for raw in (b"", b"\r\n", b"GET / HT"):
        wire = server.connect().send(raw).half_close()
        assert wire.ended()
    assert server.stats()["requests"] == 0


# What is refused

BIG_FIELD = "X: " + "x" * 20_000
REFUSED = {
    "no version": (400, b"GET /\r\n\r\n"),
    "not HTTP": (400, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100) + b"\r\n\r\n"),
    "no host": (400, b"GET / HTTP/1.1\r\n\r\n"),
    "two hosts": (400, b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"),
    "blank before colon": (400, b"GET / HTTP/1.1\r\nHost: a\r\nX : y\r\n\r\n"),
    "folded field": (400, b"GET / HTTP/1.1\r\nHost: a\r\nX: y\r\n z\r\n\r\n"),
    "two lengths": (400, request("POST", "/", "Content-Length: 3", "Content-Length: 4")),
    "length and coding": (400, request("POST", "/", "Content-Length: 3", "Transfer-Encoding: chunked")),
    "negative length": (400, request("POST", "/", "Content-Length: -3")),
    "bad chunk size": (400, request("POST", "/", "Transfer-Encoding: chunked") + b"xyz\r\n"),
    "bad chunk end": (400, request("POST", "/", "Transfer-Encoding: chunked") + b"3\r\nabcd\r\n"),
    "bare LF in chunk": (400, request("POST", "/", "Transfer-Encoding: chunked") + b"3\nabc\n0\n\n"),
    "long head": (431, request("GET", "/", BIG_FIELD)),
    "long head without an end": (431, request("GET", "/", BIG_FIELD)[:-4]),
    "many fields": (431, request("GET", "/", *(f"X{i}: y" for i in range(101)))),
    "long trailer": (431, request("POST", "/", "Transfer-Encoding: chunked") + b"0\r\nX: " + b"x" * 9000),
    "long target": (414, request("GET", "/" + "x" * 9000)),
    "long target without an end": (414, b"GET /" + b"x" * 9000),
    "long body": (413, request("POST", "/", "Content-Length: 4194305")),
    "huge body": (413, request("POST", "/", "Content-Length: 999999999999999999")),
    "expectation": (417, request("GET", "/", "Expect: 200-ok")),
    "unknown coding": (501, request("POST", "/", "Transfer-Encoding: gzip, chunked")),
    "HTTP/2 preface": (505, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    "HTTP/3.1": (505, b"GET / HTTP/3.1\r\nHost: a\r\n\r\n"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(server: Running, name: str) -> None:
    status, raw = REFUSED[name]
    wire = server.connect()
    wire.send(raw)
    check_refusal(wire, status)
    # Behind other requests, with more to come: the earlier replies are there, nothing later is.
    wire = server.connect()
    wire.send(request(), request(), raw, request("GET", "/smuggled") * 1000)
    assert wire.read().body == b"hello"
    assert wire.read().body == b"hello"
    check_refusal(wire, status)
    stats = server.stats()
    assert stats["requests"] == 2
    assert stats["refusals"] == {status: 2}
    assert (stats["statuses"]["2xx"], stats["statuses"][f"{status // 100}xx"]) == (2, 2)


def test_refused_body_that_is_being_sent(server: Running) -> None:
    """The client is in the middle of its body when 413 comes: it can finish sending and read it."""
    body = b"b" * 200_000
    for raw in (request("POST", "/", "Content-Length: 5000000") + body,
                request("POST", "/", "Expect: 100-continue", "Content-Length: 5000000") + body):
        wire = server.connect().send(raw)
        check_refusal(wire, 413)


def test_refused_chunked_body(serve: Serve) -> None:
    server = serve(hello, max_request_body_size=10_000)
    head = request("POST", "/", "Transfer-Encoding: chunked")
    wire = server.connect().send(head, chunked(b"b" * 10_000, 100))
    assert wire.read().status == 200
    wire.send(head, chunked(b"b" * 10_001, 100), request() * 100)
    check_refusal(wire, 413)


def test_no_body_allowed(serve: Serve) -> None:
    server = serve(hello, max_request_body_size=0)
    assert server.get().status == 200
    wire = server.connect()
    assert wire.send(request("POST", "/", "Content-Length: 0")).read().status == 200
    check_refusal(wire.send(request("POST", body=b"x")), 413)
    check_refusal(server.connect().send(request("POST", "/", "Transfer-Encoding: chunked"), b"1\r\nx\r\n"), 413)


def test_refused_head_request(server: Running) -> None:
    """The reply to HEAD has no body, also when it is a refusal."""
    check_refusal(server.connect().send(request("HEAD", "/", "Content-Length: 5000000")), 413, head=True)
    check_refusal(server.connect().send(b"HEAD / HTTP/1.1\r\n\r\n"), 400, head=True)


def test_limits_of_the_head(serve: Serve) -> None:
    """The very last byte and field that is allowed, and the first that is not."""
    server = serve(hello, read_buffer_size=1024, max_target_size=100, max_header_fields=5)
    wire = server.connect()
    base = len(request("GET", "/", "X: "))
    assert wire.get("/", "X: " + "x" * (1024 - base)).status == 200
    assert wire.get("/" + "t" * 99).status == 200
    assert wire.get("/", *["X: y"] * 4).status == 200
    check_refusal(wire.send(request("GET", "/", "X: " + "x" * (1025 - base))), 431)
    check_refusal(server.connect().send(request("GET", "/" + "t" * 100)), 414)
    check_refusal(server.connect().send(request("GET", "/", *["X: y"] * 5)), 431)





# Deadlines

def test_header_timeout(serve: Serve) -> None:
    server = serve(hello, header_timeout=0.2)
    wires = [server.connect().send(raw) for raw in (b"G", b"GET / HTTP/1.1\r\nHost: a\r\n", b"HEAD / HT")]
    later = server.connect()
    assert later.get().status == 200
    later.send(request()[:-1])
    for wire in (*wires, later):
        check_refusal(wire, 408)
    assert server.stats()["refusals"] == {408: 4}
    assert server.get().status == 200


def test_body_timeout(serve: Serve) -> None:
    server = serve(hello, body_timeout=0.2)
    raws = [request("POST", body=b"hello")[:-1], request("POST", body=b"h" * 100_000)[:-1],
            request("POST", "/", "Transfer-Encoding: chunked"),
            request("POST", "/", "Transfer-Encoding: chunked") + chunked(b"h" * 1000)[:-1]]
    for wire in [server.connect().send(raw) for raw in raws]:
        check_refusal(wire, 408)
    waiting = server.connect().send(request("POST", "/", "Expect: 100-continue", "Content-Length: 5"))
    assert waiting.read(interim=True).status == 100
    check_refusal(waiting, 408)
    assert server.stats()["refusals"] == {408: 5}


def test_idle_timeout(serve: Serve) -> None:
    """Before the first request and between two: closed without a word."""
    server = serve(hello, idle_timeout=0.2)
    fresh, used = server.connect(), server.connect()
    assert used.get().body == b"hello"
    assert fresh.ended()
    assert used.ended()
    assert server.stats()["timed_out_idle"] == 2


def test_handlers_are_not_idle(serve: Serve, release: threading.Event) -> None:
    """A handler that takes longer than the other deadlines is waited for; the connection lives on."""
    def handler(ctx: RequestCtx) -> None:
        wait_for(release)
        ctx.write("late")

    server = serve(handler, idle_timeout=0.1, header_timeout=0.1, body_timeout=0.1)
    wire = server.connect().send(request("POST", body=b"b"))
    witness = server.connect()
    assert witness.ended()                  # so idle_timeout has passed for those that came before
    witness = server.connect()
    assert witness.ended()
    release.set()
    assert wire.read().body == b"late"
    assert wire.get().body == b"late"


def test_reader_that_stops(serve: Serve) -> None:
    server = serve(lambda ctx: ctx.set_body(b"x" * 20_000_000), write_timeout=0.2)
    wire = server.connect(receive_buffer=4096).send(request())
    wait_until(lambda: server.stats()["timed_out_write"] == 1, "the write deadline")
    with pytest.raises((AssertionError, ConnectionResetError)):
        wire.read()
