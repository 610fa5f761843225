"""What the server refuses by itself, and who may word it; the defaults of a reply that can be turned off.

Knows: `error_handler`, `log_all_errors`, `refused_methods`, `default_date` and the like, raw sockets. Never
sees: why a request is refused (tests/cases do). Invariant: whoever words a refusal, its status and its
framing are the server's, and the connection closes.
"""

import logging
import re
import threading

import pytest
from conftest import Serve, request, wait_for, wait_until

from fastserve import BadRequest, RequestCtx

BAD = {
    400: b"GET / HTTP/1.1\r\nHost : x\r\n\r\n",
    405: request("TRACE"),
    413: request("POST", "/", "Content-Length: 9999999999"),
    414: b"GET /" + b"x" * 9000,
    417: request("GET", "/", "Expect: the worst"),
    431: b"GET / HTTP/1.1\r\nHost: x\r\n" + b"X: y\r\n" * 200,
    501: request("POST", "/", "Transfer-Encoding: gzip, chunked"),
    505: b"GET / HTTP/2.0\r\n\r\n",
}


def worded(ctx: RequestCtx, error: BadRequest) -> None:
    ctx.status = 299                        # the status stays the server's
    ctx.content_type = "application/json"
    ctx.set_header("X-Worded", "yes")
    ctx.write(f'{{"status": {error.status}, "path": "{ctx.path}"}}')


@pytest.mark.parametrize("status", BAD)
def test_an_error_handler_words_the_reply(serve: Serve, status: int) -> None:
    server = serve(lambda ctx: None, workers=2, error_handler=worded)
    wire = server.connect().send(request(), BAD[status], request("GET", "/smuggled"))
    assert wire.read().status == 200
    reply = wire.read()
    assert (reply.status, reply.closes, reply.get("X-Worded")) == (status, True, "yes")
    assert b'"status": %d' % status in reply.body and reply.get("Content-Type") == "application/json"
    assert wire.ended()
    assert server.stats()["refusals"] == {status: 1}


@pytest.mark.parametrize("status", BAD)
def test_without_one_it_is_the_phrase(serve: Serve, status: int) -> None:
    wire = serve(lambda ctx: None, workers=2).connect().send(BAD[status])
    reply = wire.read()
    assert (reply.status, reply.closes, reply.body) == (status, True, reply.reason.encode() + b"\n")
    assert wire.ended()


def test_the_ctx_of_a_request_that_was_refused(serve: Serve) -> None:
    """Whatever was understood of it is there, and nothing raises."""
    seen: list[object] = []

    def hook(ctx: RequestCtx, error: BadRequest) -> None:
        seen.append((ctx.method, ctx.path, ctx.query_string, ctx.headers.items(), ctx.body, ctx.host,
                     len(ctx.trailers)))

    server = serve(lambda ctx: None, workers=2, error_handler=hook)
    server.exchange(b"NO\x01")
    server.exchange(b"GET /a?b HTTP/1.1\r\nHost: x\r\nX: y\r\nZ : \r\n\r\n")
    server.exchange(request("POST", "/c", "Transfer-Encoding: chunked"), b"3\r\nabcXX")
    assert seen == [
        ("", "/", b"", [], b"", "", 0),
        ("GET", "/a", b"b", [("Host", "x"), ("X", "y")], b"", "x", 0),
        ("POST", "/c", b"", [("Host", "test"), ("Transfer-Encoding", "chunked")], b"", "test", 0),
    ]


def test_an_error_handler_that_fails(serve: Serve) -> None:
    serve.expect_error("GET / failed: ZeroDivisionError")
    serve.expect_error("GET /2 failed: RuntimeError: an error handler words a reply")

    def hook(ctx: RequestCtx, error: BadRequest) -> None:
        if ctx.path == "/2":
            ctx.stream([b"x"])
        ctx.write(str(1 // 0))

    server = serve(lambda ctx: None, workers=2, error_handler=hook)
    for raw in (BAD[417], BAD[417].replace(b"/ ", b"/2 ")):
        wire = server.connect().send(raw, request("GET", "/smuggled"))
        reply = wire.read()
        assert (reply.status, reply.closes, reply.body) == (417, True, b"Expectation Failed")
        assert wire.ended()


def test_while_every_worker_is_busy_the_phrase_has_to_do(serve: Serve) -> None:
    go, inside = threading.Event(), threading.Semaphore(0)

    def handler(ctx: RequestCtx) -> None:
        inside.release()
        wait_for(go)

    server = serve(handler, workers=2, reactors=1, error_handler=worded)
    busy = [server.connect().send(request()) for _ in range(2)]
    for _ in busy:
        inside.acquire()
    reply = server.exchange(BAD[417])
    assert (reply.status, reply.get("X-Worded"), reply.body) == (417, None, b"Expectation Failed\n")
    go.set()
    for wire in busy:
        assert wire.read().status == 200


def test_nothing_is_logged_unless_asked_for(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "fastserve")
    server = serve(lambda ctx: None, workers=2)
    for raw in BAD.values():
        server.exchange(raw)
    assert server.stats()["refusals"] == dict.fromkeys(BAD, 1)
    assert not caplog.records
    server = serve(lambda ctx: None, workers=2, log_all_errors=True)
    for raw in BAD.values():
        server.exchange(raw)
    wait_until(lambda: len(caplog.records) == len(BAD), "the log")
    assert "a request was refused with 417 Expectation Failed" in [record.getMessage() for record in caplog.records]


def test_what_is_left_out_of_the_log_is_counted(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "fastserve")
    server = serve(lambda ctx: None, workers=2, log_all_errors=True)

    def logged() -> int:
        texts = [record.getMessage() for record in caplog.records]
        left_out = [re.fullmatch(r"([0-9]+) more messages like the next one were left out", text) for text in texts]
        return sum("a request was refused with 400" in text for text in texts) + sum(int(m[1]) for m in left_out if m)

    crowd = [server.connect() for _ in range(500)]
    for wire in crowd:
        wire.send(b"nonsense\r\n\r\n")
    for wire in crowd:
        assert wire.read().status == 400
    # The last one tells of those before.
    wait_until(lambda: server.exchange(b"nonsense\r\n\r\n") and logged() == server.stats()["refusals"][400])


def test_a_handler_that_blames_the_client(serve: Serve) -> None:
    def handler(ctx: RequestCtx) -> None:
        ctx.set_header("X-Before", "1")
        raise BadRequest(*{"/": (), "/text": ("no id",), "/status": ("gone", 410)}[ctx.path])

    wire = serve(handler, workers=2).connect()
    for path, status, body in (("/", 400, b"Bad Request"), ("/text", 400, b"no id"), ("/status", 410, b"gone")):
        reply = wire.get(path)
        assert (reply.status, reply.body, reply.closes, reply.get("X-Before")) == (status, body, False, None)
    with pytest.raises(ValueError):
        BadRequest("", 200)


def test_methods_that_no_handler_sees(serve: Serve) -> None:
    seen: list[str] = []
    server = serve(lambda ctx: seen.append(ctx.method), workers=2)
    for raw in (request("TRACE"), b"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n"):
        reply = server.exchange(raw)
        assert (reply.status, reply.closes) == (405, True)
        assert reply.get("Allow") == "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"
    assert server.exchange(request("TRACER")).status == 200         # a name is a whole name
    assert server.exchange(request("trace")).status == 200          # and its case matters
    server = serve(lambda ctx: seen.append(ctx.method), workers=2, refused_methods="PUT,  M-SEARCH")
    assert server.exchange(request("PUT")).status == server.exchange(request("M-SEARCH")).status == 405
    assert server.exchange(request("TRACE")).status == 200
    server = serve(lambda ctx: seen.append(ctx.method), workers=2, refused_methods="")
    assert server.exchange(b"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n").status == 200
    assert seen == ["TRACER", "trace", "TRACE", "CONNECT"]


def test_defaults_can_be_turned_off(serve: Serve) -> None:
    def handler(ctx: RequestCtx) -> None:
        if ctx.path == "/own":
            ctx.set_header("Date", "today")
            ctx.content_type = "a/b"
        ctx.write("x")

    server = serve(handler, workers=2, default_date=False, default_content_type=False, name="")
    assert server.get("/").headers == [("Content-Length", "1")]
    reply = server.get("/own")
    assert (reply.get("Date"), reply.get("Content-Type")) == ("today", "a/b")
    assert server.exchange(BAD[417]).get("Date") is None


def test_without_a_length_the_connection_ends_the_body(serve: Serve) -> None:
    def handler(ctx: RequestCtx) -> None:
        ctx.del_header("Content-Length")
        ctx.write("x" * (100_000 if ctx.path == "/large" else 5))

    server = serve(handler, workers=2)
    for path, size in (("/", 5), ("/large", 100_000)):
        reply = server.get(path)
        assert reply.get("Content-Length") is None and reply.get("Transfer-Encoding") is None
        assert reply.closes and reply.body == b"x" * size
    assert server.exchange(request("HEAD"), head=True).get("Content-Length") is None
