"""What a handler sees and says through its RequestCtx, and what is left of that after the call.

Knows: the public names of RequestCtx. Never sees: how a reply is framed (test_wire.py), what a handler may do
to its thread (test_world.py). Invariant: an expired ctx raises ContextExpired from everything that is public,
from whichever thread, for ever; no value of another request is ever seen through it.
"""

import copy
import functools
import gc
import pickle
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Any

import pytest

import fastserve
from fastserve import Args, ContextExpired, RequestCtx
from tests.live.conftest import PATIENCE, Reply, Running, Serve, request, wait_for, wait_until

FORM = "application/x-www-form-urlencoded"


class FieldName(StrEnum):
    ONE = "X-One"


def ask(serve: Serve, look: Callable[[RequestCtx], Any], raw: bytes = request()) -> Any:
    """What `look` gives inside a handler that was called for `raw`."""
    answers = []
    server = serve(lambda ctx: answers.append(look(ctx)), workers=2, refused_methods="")
    with server.connect() as wire:
        reply = wire.send(raw).read()
    assert reply.status == 200, serve.errors()
    wait_until(lambda: answers, "the handler, which may have streamed its reply before it returns")
    return answers[0]


def say(serve: Serve, *steps: Callable[[RequestCtx], object]) -> Reply:
    """The reply of a handler that does `steps`."""
    def handler(ctx: RequestCtx) -> None:
        for step in steps:
            step(ctx)

    server = serve(handler, workers=2)
    with server.connect() as wire:
        return wire.send(request()).read()


# The request

def test_request_attributes(serve: Serve) -> None:
    def look(ctx: RequestCtx) -> dict[str, Any]:
        return {name: getattr(ctx, name) for name in (
            "method", "path", "raw_path", "query_string", "body", "host", "scheme", "http_version", "cookies",
            "conn_request_num", "remote_addr", "local_addr", "status", "content_type")}

    answers: list[dict[str, Any]] = []
    server = serve(lambda ctx: answers.append(look(ctx)))
    wire = server.connect()
    wire.get("/first")
    wire.send(request("PATCH", "/a%20b/%C3%A9%2F/./../c?x=1&x=%32&y=", "Cookie: a=1; b=\"2\"", "Cookie: c=3=4; a=9",
                      body=b"\0\xffbody", host="Example.org:81")).read()
    assert answers[1] == {
        "method": "PATCH", "path": "/a b/é//./../c", "raw_path": b"/a%20b/%C3%A9%2F/./../c",
        "query_string": b"x=1&x=%32&y=", "body": b"\0\xffbody", "host": "Example.org:81", "scheme": "http",
        "http_version": "1.1", "cookies": {"a": "1", "b": "2", "c": "3=4"}, "conn_request_num": 2,
        "remote_addr": wire.socket.getsockname(), "local_addr": wire.socket.getpeername(), "status": 200,
        "content_type": "text/plain; charset=utf-8",
    }


@pytest.mark.parametrize(("target", "path", "raw"), [
    ("/", "/", b"/"), ("/%", "/%", b"/%"), ("/%4", "/%4", b"/%4"), ("/%zz%41", "/%zzA", b"/%zz%41"),
    ("/%ff", "/�", b"/%ff"), ("/a+b", "/a+b", b"/a+b"), ("/%00", "/\0", b"/%00"), ("/%2525", "/%25", b"/%2525"),
    ("//a//b", "//a//b", b"//a//b"), ("/" + "%41" * 2000, "/" + "A" * 2000, b"/" + b"%41" * 2000),
    ("http://test/x%20y?q", "/x y", b"/x%20y"), ("http://test", "/", b""),
])
def test_path(serve: Serve, target: str, path: str, raw: bytes) -> None:
    assert ask(serve, lambda ctx: (ctx.path, ctx.raw_path), request("GET", target)) == (path, raw)


def test_asterisk_and_authority(serve: Serve) -> None:
    assert ask(serve, lambda ctx: (ctx.method, ctx.path), request("OPTIONS", "*")) == ("OPTIONS", "*")
    assert ask(serve, lambda ctx: (ctx.host, ctx.query_string),
               request("GET", "http://other.org:8/p?q=1", host="other.org:8")) == ("other.org:8", b"q=1")


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "get", "PROPFIND",
                                    "M-SEARCH", "X" * 32])
def test_method(serve: Serve, method: str) -> None:
    assert ask(serve, lambda ctx: ctx.method, request(method)) == method


def test_query(serve: Serve) -> None:
    def look(ctx: RequestCtx) -> tuple[Any, ...]:
        query = ctx.query
        assert query is ctx.query
        return query, query["x"], query.get("no"), query.getall("x"), "y" in query, len(query), list(query)

    query, *rest = ask(serve, look, request("GET", "/?x=1&y=a+b%26&x=%C3%A9&z"))
    assert rest == ["1", None, ["1", "é"], True, 4, ["x", "y", "x", "z"]]
    # What was taken is the handler's own.
    assert query.items() == [("x", "1"), ("y", "a b&"), ("x", "é"), ("z", "")]


def test_no_query(serve: Serve) -> None:
    assert ask(serve, lambda ctx: (ctx.query_string, ctx.query.items(), ctx.cookies, ctx.form.items())) == (
        b"", [], {}, [])


def test_headers(serve: Serve) -> None:
    def look(ctx: RequestCtx) -> None:
        headers = ctx.headers
        assert headers["x-one"] == headers["X-ONE"] == headers.get("X-One") == "1"
        assert headers.getall("x-TWO") == ["a", "", "\xe9 b"]
        assert headers.get("none") is None
        assert headers.get("none", "default") == "default"
        assert headers.getall("none") == []
        assert "X-oNe" in headers
        assert "none" not in headers
        assert 1 not in headers
        assert headers[FieldName.ONE] == headers.get(FieldName.ONE) == headers.getall(FieldName.ONE)[0] == "1"
        for no_name in (1, None, b"X-One"):
            with pytest.raises(TypeError):
                headers.get(no_name)  # type: ignore[call-overload]
        assert "" not in headers
        with pytest.raises(KeyError):
            headers["none"]
        with pytest.raises(TypeError):
            headers[1]  # type: ignore[index]
        assert len(headers) == 5
        assert list(headers) == headers.keys() == ["Host", "X-One", "x-two", "X-Two", "X-TWO"]
        assert headers.values() == ["test", "1", "a", "", "\xe9 b"]
        assert headers.items() == list(zip(headers.keys(), headers.values(), strict=True))

    ask(serve, look, request("GET", "/", "X-One:  1 ", "x-two: a", "X-Two:", "X-TWO:\t\xe9 b"))


@pytest.mark.parametrize("how", ["length", "chunked"])
@pytest.mark.parametrize("size", [0, 10, 100_000])
def test_body(serve: Serve, how: str, size: int) -> None:
    body = bytes(i % 256 for i in range(size))
    if how == "length":
        raw = request("POST", "/", f"Content-Length: {size}") + body
    else:
        raw = request("POST", "/", "Transfer-Encoding: chunked") + (b"%x\r\n%b\r\n" % (size, body) if size else b"")
        raw += b"0\r\n\r\n"
    first, again = ask(serve, lambda ctx: (ctx.body, ctx.body), raw)
    assert first == again == body


def test_json(serve: Serve) -> None:
    raw = '{"a": [1, 2.5, null, "é"]}'.encode()
    assert ask(serve, lambda ctx: ctx.json(), request("POST", body=raw)) == {"a": [1, 2.5, None, "é"]}


@pytest.mark.parametrize("body", [b"", b"{", b"\xff"])
def test_json_that_is_none(serve: Serve, body: bytes) -> None:
    def handler(ctx: RequestCtx) -> None:
        ctx.write_json(ctx.json())

    reply = serve(handler, workers=2).exchange(request("POST", body=body))
    assert (reply.status, reply.body) == (400, b"the body is not a JSON document")


def test_form(serve: Serve) -> None:
    def look(ctx: RequestCtx) -> Args:
        assert ctx.form is ctx.form
        return ctx.form

    body = b"a=1&b=x+y&a=%C3%A9&c"
    for kind in (FORM, f"{FORM}; charset=utf-8", FORM.upper()):
        form = ask(serve, look, request("POST", "/", f"Content-Type: {kind}", body=body))
        assert form.items() == [("a", "1"), ("b", "x y"), ("a", "é"), ("c", "")]
    assert len(ask(serve, look, request("POST", "/", "Content-Type: text/plain", body=body))) == 0
    assert len(ask(serve, look, request("POST", body=body))) == 0


def test_http_10(serve: Serve) -> None:
    assert ask(serve, lambda ctx: (ctx.http_version, ctx.host, ctx.headers.items()),
               b"GET / HTTP/1.0\r\n\r\n") == ("1.0", "", [])


def test_conn_id_and_number(serve: Serve) -> None:
    seen: list[tuple[int, int]] = []
    server = serve(lambda ctx: seen.append((ctx.conn_id, ctx.conn_request_num)))
    wires = [server.connect() for _ in range(3)]
    for _ in range(3):
        for wire in wires:
            wire.get()
    ids = [conn for conn, _ in seen[:3]]
    assert len(set(ids)) == 3
    assert seen == [(conn, number) for number in (1, 2, 3) for conn in ids]


def test_unix_socket(serve: Serve, tmp_path: Path) -> None:
    answers = []
    path = tmp_path / "socket"
    server = serve(lambda ctx: answers.append((ctx.remote_addr, ctx.local_addr)), f"unix:{path}")
    assert server.get().status == 200
    assert answers == [(None, str(path))]


def test_ipv6(serve: Serve) -> None:
    answers = []
    try:
        server = serve(lambda ctx: answers.append((ctx.remote_addr, ctx.local_addr)), "[::1]:0")
    except fastserve.StartError:
        pytest.skip("no IPv6 here")
    wire = server.connect()
    assert wire.get().status == 200
    assert answers == [(wire.socket.getsockname()[:2], ("::1", server.port))]


def test_request_is_read_only(serve: Serve) -> None:
    def look(ctx: RequestCtx) -> None:
        for name in ("method", "path", "raw_path", "query_string", "query", "headers", "body", "form", "cookies",
                     "host", "scheme", "http_version", "remote_addr", "local_addr", "conn_id", "conn_request_num",
                     "response_headers"):
            with pytest.raises(AttributeError):
                setattr(ctx, name, getattr(ctx, name))
            with pytest.raises(AttributeError):
                delattr(ctx, name)
        with pytest.raises(AttributeError):
            ctx.nothing = 1  # type: ignore[attr-defined]

    ask(serve, look)


# The reply

def test_order_does_not_matter(serve: Serve) -> None:
    steps: list[Callable[[RequestCtx], object]] = [
        lambda ctx: setattr(ctx, "status", 201),
        lambda ctx: ctx.set_header("X-One", "1"),
        lambda ctx: ctx.set_body("body"),
        lambda ctx: setattr(ctx, "content_type", "text/x"),
        lambda ctx: ctx.add_header("X-Two", "2"),
    ]
    for turn in range(len(steps)):
        reply = say(serve, *steps[turn:], *steps[:turn])
        assert (reply.status, reply.body, reply.get("Content-Type")) == (201, b"body", "text/x")
        assert (reply.get("X-One"), reply.get("X-Two")) == ("1", "2")


def test_write_and_set_body(serve: Serve) -> None:
    assert say(serve, lambda c: c.write("é"), lambda c: c.write(b"\xff"), lambda c: c.write("")).body == b"\xc3\xa9\xff"
    assert say(serve, lambda c: c.write("gone"), lambda c: c.set_body("kept")).body == b"kept"
    assert say(serve, lambda c: c.set_body("a"), lambda c: c.write("b"), lambda c: c.write("c")).body == b"abc"
    big = "x" * 100_000
    assert say(serve, lambda c: c.set_body(big), lambda c: c.write("y")).body == big.encode() + b"y"
    assert say(serve, lambda c: c.write(big), lambda c: c.set_body("")).body == b""
    assert say(serve, lambda c: c.set_body(big), lambda c: c.set_body("small")).body == b"small"
    assert say(serve, lambda c: c.set_body(bytearray(b"array")), lambda c: c.write(memoryview(b"view"))).body == (
        b"arrayview")


def test_body_that_changes_afterwards(serve: Serve) -> None:
    """A bytearray is copied when it is given: what happens to it later is not the reply's."""
    data = bytearray(b"a" * 50_000)

    def handler(ctx: RequestCtx) -> None:
        data[:] = b"a" * 50_000
        ctx.set_body(data)
        data[:] = b"b" * 50_000

    assert serve(handler).get().body == b"a" * 50_000


@pytest.mark.parametrize("wrong", [None, 5, ["x"], 1.5, object()])
def test_body_of_a_wrong_type(serve: Serve, wrong: Any) -> None:
    def step(ctx: RequestCtx) -> None:
        for method in (ctx.write, ctx.set_body):
            with pytest.raises(TypeError):
                method(wrong)

    assert say(serve, lambda ctx: ctx.write("before"), step).body == b"before"


def test_text_that_is_no_unicode(serve: Serve) -> None:
    def step(ctx: RequestCtx) -> None:
        for method in (ctx.write, ctx.set_body):
            with pytest.raises(UnicodeEncodeError):
                method("\ud800")

    assert say(serve, step).body == b""


def test_set_add_and_del_header(serve: Serve) -> None:
    def step(ctx: RequestCtx) -> None:
        ctx.set_header("X-A", "1")
        ctx.set_header("x-a", "2")
        ctx.add_header("X-A", "3")
        ctx.add_header("X-B", "")
        ctx.add_header("X-C", "c: d")
        ctx.add_header("X-Ab", "longer")
        ctx.del_header("x-c")
        ctx.del_header("never-set")
        ctx.add_header("X-C", "\xe9")
        assert ctx.response_headers == [("x-a", "2"), ("X-A", "3"), ("X-B", ""), ("X-Ab", "longer"), ("X-C", "\xe9")]

    reply = say(serve, step)
    assert [pair for pair in reply.headers if pair[0].lower().startswith("x-")] == [
        ("x-a", "2"), ("X-A", "3"), ("X-B", ""), ("X-Ab", "longer"), ("X-C", "\xe9")]


def test_set_header_replaces_all(serve: Serve) -> None:
    reply = say(serve, lambda c: c.add_header("Vary", "a"), lambda c: c.add_header("VARY", "b"),
                lambda c: c.set_header("vary", "c"))
    assert reply.getall("Vary") == ["c"]


@pytest.mark.parametrize("value", ["a\x85b", "a\tb", "\x80\xff", "a\xa0", "\xa0a", "a\x1fb", "x" * 5000])
def test_values_are_sent_and_shown_as_they_are(serve: Serve, value: str) -> None:
    """Latin-1 as a whole, where RFC 9110 allows it; what Python takes for line ends or blanks included."""
    shown: list[list[tuple[str, str]]] = []

    def step(ctx: RequestCtx) -> None:
        if "\x1f" in value:
            with pytest.raises(ValueError):
                ctx.set_header("X-A", value)
            return
        ctx.set_header("X-A", value)
        ctx.set_header("X-B", "b")
        ctx.set_header("X-B", "c")
        shown.append(ctx.response_headers)

    reply = say(serve, step)
    assert reply.status == 200, serve.errors()
    if "\x1f" not in value:
        assert (reply.get("X-A"), reply.getall("X-B")) == (value, ["c"])
        assert shown == [[("X-A", value), ("X-B", "c")]]


BAD_NAMES = ["", " ", "X Y", "X:", "X\r\n", "X\n", "\xe9", "日本", "X\0", "(", "X" * 300]
BAD_VALUES = ["a\r\nX-Bad: 1", "a\nX-Bad: 1", "a\rb", "\r\n\r\n<html>", "a\0b", "a\x7fb", " a", "a ", "\ta", "日本",
              "a\u2028b", "\u010a"]


def test_header_injection(serve: Serve) -> None:
    """ValueError in the handler, whatever way a bad name or value comes; the reply is as if it had not been."""
    def step(ctx: RequestCtx) -> None:
        for method in (ctx.set_header, ctx.add_header):
            for name in BAD_NAMES:
                with pytest.raises(ValueError):
                    method(name, "value")
                    pytest.fail(f"taken as a name: {name!r}")
            for value in BAD_VALUES:
                with pytest.raises(ValueError):
                    method("X-Good", value)
                    pytest.fail(f"taken as a value: {value!r}")
                with pytest.raises(ValueError):
                    method("Content-Type", value)
                    pytest.fail(f"taken as a content type: {value!r}")
                with pytest.raises(ValueError):
                    ctx.content_type = value
                    pytest.fail(f"taken as content_type: {value!r}")
            for name in ("Content-Length", "transfer-encoding", "Trailer", "Upgrade", "Keep-Alive"):
                with pytest.raises(ValueError):
                    method(name, "1")
            with pytest.raises(ValueError):
                method("Connection", "keep-alive")
            with pytest.raises(ValueError):
                method("Connection", "upgrade")
        ctx.write("fine")

    reply = say(serve, step)
    assert (reply.status, reply.body) == (200, b"fine"), serve.errors()
    assert {name.lower() for name, _ in reply.headers} == {"server", "date", "content-type", "content-length"}
    assert reply.get("Content-Type") == "text/plain; charset=utf-8"


def test_headers_of_a_wrong_type(serve: Serve) -> None:
    def step(ctx: RequestCtx) -> None:
        wrong: Any
        for wrong in (None, 1, b"bytes", ["x"]):
            for method in (ctx.set_header, ctx.add_header):
                with pytest.raises(TypeError):
                    method("X", wrong)
                with pytest.raises(TypeError):
                    method(wrong, "x")
            with pytest.raises(TypeError):
                ctx.del_header(wrong)
            with pytest.raises(TypeError):
                ctx.content_type = wrong

    assert {name for name, _ in say(serve, step).headers} == {"Server", "Date", "Content-Length"}


def test_too_many_headers(serve: Serve) -> None:
    """The room for fields ends with a ValueError, and what was set before is sent."""
    count = 0

    def step(ctx: RequestCtx) -> None:
        nonlocal count
        with pytest.raises(ValueError):
            for number in range(1000):
                ctx.add_header("X", f"{number:04}" + "v" * 90)
                count = number + 1
        for _ in range(50):
            ctx.set_header("Y", "again and again")
            ctx.del_header("y")

    reply = say(serve, step)
    assert 60 <= count <= 90
    assert [value[:4] for value in reply.getall("X")] == [f"{number:04}" for number in range(count)]


def test_own_date_and_server(serve: Serve) -> None:
    reply = say(serve, lambda c: c.set_header("Date", "Thu, 01 Jan 1970 00:00:00 GMT"),
                lambda c: c.set_header("server", "mine"))
    assert reply.getall("Date") == ["Thu, 01 Jan 1970 00:00:00 GMT"]
    assert reply.getall("Server") == ["mine"]
    reply = say(serve, lambda c: c.set_header("Server", "mine"), lambda c: c.del_header("SERVER"))
    assert reply.getall("Server") == []
    reply = say(serve, lambda c: c.del_header("Date"))
    assert reply.getall("Date") == [] and reply.getall("Server") == ["fastserve"]
    reply = say(serve, lambda c: c.del_header("Date"), lambda c: c.set_header("Date", "today"))
    assert reply.getall("Date") == ["today"]


def test_content_type(serve: Serve) -> None:
    assert say(serve, lambda c: c.write("x")).get("Content-Type") == "text/plain; charset=utf-8"
    assert say(serve, lambda c: None).get("Content-Type") is None
    assert say(serve, lambda c: setattr(c, "content_type", "a/b")).get("Content-Type") == "a/b"
    assert say(serve, lambda c: c.set_header("content-TYPE", "c/d"), lambda c: c.write("x")).getall(
        "Content-Type") == ["c/d"]
    assert say(serve, lambda c: c.set_header("Content-Type", "c/d"), lambda c: c.add_header("Content-Type", "e/f"),
               lambda c: c.write("x")).getall("Content-Type") == ["e/f"]
    assert say(serve, lambda c: setattr(c, "content_type", "c/d"), lambda c: c.del_header("Content-Type"),
               lambda c: c.write("x")).get("Content-Type") is None
    long = "a/" + "b" * 1000
    assert say(serve, lambda c: setattr(c, "content_type", long)).get("Content-Type") == long


def test_content_type_of_one_request_is_not_the_next_ones(serve: Serve) -> None:
    def handler(ctx: RequestCtx) -> None:
        ctx.write(ctx.content_type)
        if ctx.path == "/set":
            ctx.content_type = "".join(["te", "xt/", "html"])
            ctx.set_header("X-Once", "1")
            ctx.status = 201

    wire = serve(handler).connect()
    for _ in range(5):
        reply = wire.get("/set")
        assert (reply.status, reply.get("Content-Type"), reply.get("X-Once")) == (201, "text/html", "1")
        reply = wire.get("/")
        assert (reply.status, reply.get("Content-Type"), reply.get("X-Once")) == (
            200, "text/plain; charset=utf-8", None)
        assert reply.body == b"text/plain; charset=utf-8"


def test_status(serve: Serve) -> None:
    def step(ctx: RequestCtx) -> None:
        wrong: Any
        for wrong in (0, 100, 101, 199, 600, -1, 1000, 2**31):
            with pytest.raises((ValueError, OverflowError)):
                ctx.status = wrong
        for wrong in (None, "200", 200.5):
            with pytest.raises(TypeError):
                ctx.status = wrong
        assert ctx.status == 200
        ctx.status = 299
        assert ctx.status == 299

    assert say(serve, step).status == 299


def test_error_and_not_found(serve: Serve) -> None:
    before: list[Callable[[RequestCtx], object]] = [
        lambda c: c.write("before"), lambda c: c.set_header("X-Before", "1"), lambda c: setattr(c, "status", 201),
        lambda c: setattr(c, "content_type", "text/html")]
    for step, status, body in [
        (lambda c: c.error("no ünicorn", 422), 422, "no ünicorn".encode()),
        (lambda c: c.error("oops"), 500, b"oops"),
        (lambda c: c.not_found(), 404, b"404 Page not found"),
    ]:
        reply = say(serve, *before, step)
        assert (reply.status, reply.body, reply.get("X-Before")) == (status, body, None)
        assert reply.get("Content-Type") == "text/plain; charset=utf-8"
        reply = say(serve, step, lambda c: c.write("!"), lambda c: c.set_header("X-After", "1"))
        assert (reply.status, reply.body, reply.get("X-After")) == (status, body + b"!", "1")


@pytest.mark.parametrize(("location", "sent"), [
    ("/a?b=c#d", "/a?b=c#d"), ("https://other.org/é ü", "https://other.org/%C3%A9%20%C3%BC"), ("/%20", "/%20"),
    ("/x\r\nX-Bad: 1", "/x%0D%0AX-Bad:%201"), ("/\0", "/%00"), ("../up", "../up"), ("", ""),
])
def test_redirect(serve: Serve, location: str, sent: str) -> None:
    for status in (302, 301, 303, 307, 308):
        reply = say(serve, lambda ctx, status=status: ctx.redirect(location, status))  # type: ignore[misc]
        assert (reply.status, reply.get("Location"), reply.body) == (status, sent, b"")
        assert reply.get("X-Bad") is None


def test_redirect_of_a_wrong_kind(serve: Serve) -> None:
    def step(ctx: RequestCtx) -> None:
        for status in (200, 300, 304, 305, 404):
            with pytest.raises(ValueError):
                ctx.redirect("/", status)

    assert say(serve, lambda ctx: ctx.write("as before"), step).body == b"as before"


# After the call

ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "write": ("late",), "set_body": ("late",), "set_header": ("X-Late", "1"), "add_header": ("X-Late", "1"),
    "del_header": ("X-Late",), "error": ("late", 500), "not_found": (), "redirect": ("/late",), "json": (),
    "add_trailer": ("X-Late", "1"), "early_hints": (), "stream": ((),), "not_modified": (), "write_json": ({},),
    "accepts": ("text/html",), "accepts_encoding": ("gzip",), "set_cookie": ("late", "1"), "delete_cookie": ("late",),
    "replace_body": (b"[1]",), "set_body_file": (-1, 0, 0), "send_file": (__file__,),
    "detach": (), "complete": (), "hijack": (None,), "timeout_error": ("late",),
}
"""How each method is called; a method that is not listed here fails the tests below."""

SETTABLE = {"status": 201, "content_type": "text/late", "params": {}}

PUBLIC = [name for name in dir(RequestCtx) if not name.startswith("_")]


def uses(ctx: RequestCtx) -> dict[str, Callable[[], Any]]:
    """Every way to use a ctx that is public, by name."""
    found: dict[str, Callable[[], Any]] = {}
    for name in PUBLIC:
        if callable(getattr(RequestCtx, name)):
            assert name in ARGUMENTS, f"say in ARGUMENTS how {name} is called"
            found[name] = lambda name=name: getattr(ctx, name)(*ARGUMENTS[name])  # type: ignore[misc]
        else:
            found[name] = lambda name=name: getattr(ctx, name)  # type: ignore[misc]
    for name, value in SETTABLE.items():
        found[f"{name} ="] = lambda name=name, value=value: setattr(ctx, name, value)  # type: ignore[misc]
    return found


def uses_of_headers(headers: Any) -> dict[str, Callable[[], Any]]:
    ways: dict[str, Callable[[], Any]] = {
        "get": lambda: headers.get("host"), "getall": lambda: headers.getall("host"), "items": headers.items,
        "keys": headers.keys, "values": headers.values, "[]": lambda: headers["host"],
        "in": lambda: "host" in headers, "iter": lambda: list(headers), "len": lambda: len(headers),
    }
    assert {name for name in dir(headers) if not name.startswith("_")} <= ways.keys()
    return ways


def not_expired(ways: dict[str, Callable[[], Any]]) -> list[str]:
    """The uses that do anything else but raise ContextExpired."""
    alive = []
    for name, use in ways.items():
        try:
            value = use()
        except ContextExpired:
            continue
        except Exception as error:
            value = error
        alive.append(f"{name} gave {value!r}")
    return alive


def test_public_names() -> None:
    """What the design promises is there."""
    assert {
        "method", "path", "raw_path", "query_string", "query", "headers", "body", "json", "form", "cookies", "host",
        "scheme", "http_version", "remote_addr", "local_addr", "conn_id", "conn_request_num", "status",
        "content_type", "write", "set_body", "set_header", "add_header", "del_header", "response_headers", "error",
        "not_found", "redirect", "stream", "add_trailer", "early_hints", "body_stream", "trailers", "stream_body",
        "max_body_size",
    } <= set(PUBLIC)


def test_everything_works_within_the_call(serve: Serve) -> None:
    """The list of uses itself is right: none of them raises while the loan lasts, from any thread; what
    blocks on the connection is for the handler's own, and the last thing that it does."""
    def look(ctx: RequestCtx) -> list[str]:
        problems: list[str] = []

        def use_all(own: bool) -> None:
            ways = uses(ctx) | uses_of_headers(ctx.headers)
            blocking = {name: ways.pop(name)
                        for name in ("early_hints", "stream", "detach", "hijack", "timeout_error")}
            with pytest.raises(RuntimeError, match="was not detached"):
                ways.pop("complete")()
            for name, use in ways.items():
                try:
                    use()
                except Exception as error:
                    problems.append(f"{name}: {error!r}")
            for use in blocking.values() if not own else ():
                with pytest.raises(RuntimeError, match="for the thread that the handler was called in"):
                    use()

        use_all(True)
        other = threading.Thread(target=use_all, args=(False,))
        other.start()
        other.join(PATIENCE)
        ctx.early_hints()
        ctx.status = 200
        ctx.stream(())
        return problems

    assert ask(serve, look, request("POST", "/", f"Content-Type: {FORM}", body=b"[1]")) == []


def test_expired_after_the_call(serve: Serve) -> None:
    kept: list[Any] = []

    def handler(ctx: RequestCtx) -> None:
        kept.append((ctx, ctx.headers, ctx.query, ctx.body, ctx.path))

    server = serve(handler)
    wire = server.connect()
    for number in range(20):
        wire.send(request("POST", f"/{number}?n={number}", body=b"%d" % number)).read()
    assert len({id(ctx) for ctx, *_ in kept}) == 20
    for number, (ctx, headers, query, body, path) in enumerate(kept):
        assert not_expired(uses(ctx)) == []
        assert not_expired(uses_of_headers(headers)) == []
        assert isinstance(repr(ctx), str)
        # What was taken stays.
        assert (query["n"], body, path) == (str(number), b"%d" % number, f"/{number}")
    reply = wire.get()
    assert reply.get("X-Late") is None


def test_expired_while_the_same_worker_serves_the_next(serve: Serve, release: threading.Event) -> None:
    """A ctx that was kept stays expired though its worker is in the next call, from that very thread and another."""
    kept: list[tuple[int, RequestCtx, Any]] = []
    found: list[list[str]] = []
    inside = threading.Event()

    def handler(ctx: RequestCtx) -> None:
        me = threading.get_ident()
        if ctx.path == "/keep":
            kept.append((me, ctx, ctx.headers))
            ctx.write("kept")
            return
        mine = [(old, headers) for thread, old, headers in kept if thread == me]
        if not mine or inside.is_set():
            ctx.write("not this one")
            return
        for old, headers in mine:
            assert old is not ctx
            found.append(not_expired(uses(old)) + not_expired(uses_of_headers(headers)))
        inside.set()
        wait_for(release)
        ctx.write("secret")

    server = serve(handler, workers=2)
    wire = server.connect()
    assert wire.get("/keep").body == b"kept"
    seen = 0
    while True:
        wire.send(request("GET", "/next"))
        wait_until(lambda: inside.is_set() or not wire.silent(), "the same worker to be called")
        if inside.is_set():
            break
        assert wire.read().body == b"not this one"
        if (seen := seen + 1) % 10 == 0:
            wire.get("/keep")                           # so that in the end both workers have kept one
    assert found
    assert not any(found)
    for _, ctx, headers in kept:
        assert not_expired(uses(ctx)) == []
        assert not_expired(uses_of_headers(headers)) == []
    release.set()
    reply = wire.read()
    assert (reply.status, reply.body, reply.get("X-Late")) == (200, b"secret", None)


def test_threads_that_read_on(serve: Serve, brisk: None) -> None:
    """Threads use each ctx while it expires: they see its own request, or ContextExpired, and nothing else."""
    strange: list[str] = []
    current: list[tuple[RequestCtx, Any, str]] = []
    done = threading.Event()

    def handler(ctx: RequestCtx) -> None:
        number = ctx.path[1:]
        current[:] = [(ctx, ctx.headers, number)]
        ctx.write(ctx.body)

    def spy() -> None:
        while not done.is_set():
            for ctx, headers, number in list(current):
                try:
                    values = (ctx.path, ctx.body, ctx.query_string, headers["X-Number"], headers.items()[1][1],
                              ctx.query["n"], ctx.cookies["n"])
                except ContextExpired:
                    continue
                except BaseException as error:
                    strange.append(repr(error))
                    return
                if values != (f"/{number}", b"b" + number.encode(), f"n={number}".encode(), number, number, number,
                              number):
                    strange.append(f"{number}: {values}")

    server = serve(handler, workers=2)
    spies = [threading.Thread(target=spy, daemon=True) for _ in range(2)]
    for thread in spies:
        thread.start()
    try:
        wires = [server.connect() for _ in range(4)]
        for turn in range(120):
            for index, wire in enumerate(wires):
                wire.send(b"".join(
                    request("POST", f"/{n}?n={n}", f"X-Number: {n}", f"Cookie: n={n}", body=f"b{n}".encode())
                    for n in range(turn * 1000 + index * 10, turn * 1000 + index * 10 + 5)))
            for index, wire in enumerate(wires):
                for n in range(turn * 1000 + index * 10, turn * 1000 + index * 10 + 5):
                    assert wire.read().body == f"b{n}".encode()
    finally:
        done.set()
        for thread in spies:
            thread.join(PATIENCE)
    assert strange == []


def test_late_writes_reach_nobody(serve: Serve) -> None:
    """A thread that writes on after the call has no part in any later reply."""
    done = threading.Event()
    contexts: list[RequestCtx] = []

    def scribble() -> None:
        while not done.is_set():
            for ctx in contexts[-50:]:
                try:
                    ctx.set_header("X-Late", "1")
                    ctx.del_header("X-Late")
                except ContextExpired:
                    pass

    def handler(ctx: RequestCtx) -> None:
        if ctx.path == "/keep":
            contexts.append(ctx)
        ctx.write(ctx.path)

    server = serve(handler, workers=2)
    thread = threading.Thread(target=scribble, daemon=True)
    thread.start()
    wire = server.connect()
    try:
        for number in range(200):
            wire.send(request("GET", "/keep"), request("GET", f"/{number}"))
            assert wire.read().body == b"/keep"
            reply = wire.read()
            assert (reply.body, reply.get("X-Late")) == (f"/{number}".encode(), None)
    finally:
        done.set()
        thread.join(PATIENCE)


@pytest.mark.parametrize("after", [1, 2, 3, 20, 40])
@pytest.mark.parametrize("name", ["items", "keys", "set_header", "response_headers"])
def test_late_use_that_begins_in_time(serve: Serve, name: str, after: int) -> None:
    """An accessor that the garbage collector interrupts, after so many new containers, while the call ends and
    the next request takes its place: it gives what was there, or nothing, but never what is there by then."""
    lent: list[Any] = []
    end, begun, over = threading.Event(), threading.Event(), threading.Event()
    armed = False

    def handler(ctx: RequestCtx) -> None:
        if ctx.path == "/first":
            lent.append(ctx)
            begun.set()
            wait_for(end)

    def interrupt(phase: str, _: dict[str, int]) -> None:
        if phase == "start" and armed and threading.current_thread() is reader and not end.is_set():
            end.set()
            wait_for(over)

    def read() -> None:
        nonlocal armed
        wait_for(begun)
        ctx = lent[0]
        look: Callable[[], Any] = {
            "items": ctx.headers.items, "keys": ctx.headers.keys,
            "set_header": functools.partial(ctx.set_header, "X-Late", "1"),
            "response_headers": functools.partial(getattr, ctx, "response_headers"),
        }[name]
        spent = [(n, n) for n in range(5000)]           # or the pairs would come from a store of used ones
        gc.collect()
        armed = True
        gc.set_threshold(after)
        try:
            seen.append(look())
        except ContextExpired:
            seen.append("expired")
        finally:
            armed = False
            gc.set_threshold(*before)
            del spent
            end.set()

    seen: list[Any] = []
    before = gc.get_threshold()
    reader = threading.Thread(target=read)
    wire = serve(handler, workers=2, reactors=1).connect()
    gc.callbacks.append(interrupt)
    try:
        reader.start()
        wire.send(request("GET", "/first", *(f"X-{n}: mine" for n in range(60))))
        assert wire.read().status == 200
        assert wire.send(request("GET", "/next", *(f"Y-{n}: theirs" for n in range(60)))).read().status == 200
        over.set()
        reader.join(PATIENCE)
    finally:
        gc.callbacks.remove(interrupt)
        gc.set_threshold(*before)
    assert len(seen) == 1 and "theirs" not in repr(seen)


def test_ctx_of_a_handler_that_failed(serve: Serve) -> None:
    """The exception's traceback keeps the ctx: it is expired as any other."""
    kept: list[BaseException] = []

    def handler(ctx: RequestCtx) -> None:
        if ctx.path != "/fail":
            ctx.write("fine")
            return
        try:
            raise RuntimeError("on purpose")
        except RuntimeError as error:
            kept.append(error)
            raise

    serve.expect_error("on purpose")
    wire = serve(handler).connect()
    assert wire.get("/fail").status == 500
    assert wire.get("/").body == b"fine"
    trace = kept[0].__traceback__
    while trace is not None and "ctx" not in trace.tb_frame.f_locals:
        trace = trace.tb_next
    assert trace is not None
    assert not_expired(uses(trace.tb_frame.f_locals["ctx"])) == []
    kept.clear()


# By hand

def test_cannot_be_made() -> None:
    with pytest.raises(TypeError):
        RequestCtx()
    with pytest.raises(TypeError):
        type("Mine", (RequestCtx,), {})


def test_headers_cannot_be_made(serve: Serve) -> None:
    kind = ask(serve, lambda ctx: type(ctx.headers))
    with pytest.raises(TypeError):
        kind()
    with pytest.raises(TypeError):
        type("Mine", (kind,), {})


def test_ctx_cannot_be_copied(serve: Serve) -> None:
    def look(ctx: RequestCtx) -> None:
        for way in (copy.copy, copy.deepcopy, pickle.dumps):
            with pytest.raises(TypeError):
                way(ctx)

    ask(serve, look)


def run_apart(text: str) -> None:
    """In a process of its own: what is tried might end it."""
    root = str(Path(fastserve.__file__).parents[1])
    done = subprocess.run([sys.executable, "-X", "faulthandler", "-c", textwrap.dedent(text)], cwd=root,
                          capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, f"status {done.returncode}: {done.stderr[-2000:]}"


@pytest.mark.parametrize("name", ["RequestCtx", "Headers"])
def test_objects_that_were_forged(name: str) -> None:
    """Whoever goes behind the constructor gets an exception, not a dead process."""
    run_apart(f"""
        from fastserve import _core
        kind = _core.{name}
        try:
            made = kind.__new__(kind)
        except TypeError:
            raise SystemExit
        arguments = {ARGUMENTS!r} | {{"get": ("x",), "getall": ("x",), "items": (), "keys": (), "values": ()}}
        special = [n for n in ("__len__", "__iter__") if hasattr(kind, n)]
        for attribute in [n for n in dir(kind) if not n.startswith("_")] + special:
            try:
                value = getattr(made, attribute)
                if callable(value):
                    value(*arguments.get(attribute, ()))
            except Exception as error:
                continue
            raise SystemExit(f"{{attribute}} works on nothing")
    """)


def test_views_cannot_be_given_another_state() -> None:
    """Nor can one be made that belongs to nothing: a copy, if there is one, is of the same ctx."""
    run_apart("""
        import copy, http.client, pickle
        from fastserve import ContextExpired, Server
        kept, allowed = [], []
        def handler(ctx):
            view = ctx.headers
            for way in (copy.copy, copy.deepcopy, lambda v: pickle.loads(pickle.dumps(v))):
                try:
                    made = way(view)
                except TypeError:
                    continue
                assert made["host"] == view["host"]
                kept.append(made)
            for name in ("__setstate__", "__setstate_cython__"):
                for state in (None, (None,), ((None,), {})):
                    try:
                        getattr(view, name)(state)
                    except (AttributeError, TypeError):
                        continue
                    allowed.append(f"{name}({state})")
        with Server(handler, workers=2).start("127.0.0.1:0") as server:
            client = http.client.HTTPConnection("127.0.0.1", int(server.addresses[0].rpartition(":")[2]))
            client.request("GET", "/")
            assert client.getresponse().status == 200
            client.close()
        assert not allowed, allowed
        for view in kept:
            try:
                view["host"]
            except ContextExpired:
                continue
            raise SystemExit("a copy outlives the call")
    """)


def test_large_bodies_are_released(serve: Serve) -> None:
    """What a reply was sent from is dropped soon afterwards, also when the server is idle."""
    body = b"t" * 500_000
    before = sys.getrefcount(body)
    server: Running = serve(lambda ctx: ctx.set_body(body))
    wire = server.connect()
    for _ in range(10):
        assert wire.get().body == body
    wait_until(lambda: server.stats()["buffers"] == 0, "the buffers to go back")
    # One may still be what a worker's ctx was told last; the server's other references go.
    wait_until(lambda: sys.getrefcount(body) <= before + 2, "the references to be dropped")
