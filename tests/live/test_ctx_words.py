"""The words of a ctx for single fields, cookies, documents and conditions.

Knows: what a client sends and what it gets, field by field. Never sees: how a field is read (tests/unit).
"""

import socket
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from conftest import Reply, Serve, request

from fastserve import RequestCtx
from tests.live.test_ctx import ask, say


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "get", "GETS", "PURGE"])
def test_is_method(serve: Serve, method: str) -> None:
    names = [name for name in dir(RequestCtx) if name.startswith("is_")]
    assert len(names) == 7
    seen: list[str] = []
    server = serve(lambda ctx: seen.extend(name for name in names if getattr(ctx, name)), workers=2, refused_methods="")
    with server.connect() as wire:
        wire.send(request(method)).read(head=method == "HEAD")
    assert seen == ([f"is_{method.lower()}"] if f"is_{method.lower()}" in names and method.isupper() else [])


def test_single_fields(serve: Serve) -> None:
    def look(ctx: RequestCtx) -> list[Any]:
        return [ctx.user_agent, ctx.referer, ctx.if_modified_since, ctx.accepts("text/html", "application/json"),
                ctx.accepts_encoding("br", "gzip")]

    assert ask(serve, look) == ["", "", None, "text/html", None]
    assert ask(serve, look, request(
        "GET", "/", "User-Agent: tester/1", "Referer: http://a/b", "If-Modified-Since: Sun, 06 Nov 1994 08:49:37 GMT",
        "Accept: text/html;q=0.5", "Accept: application/json", "Accept-Encoding: gzip", "Accept-Encoding: br;q=0.5",
    )) == ["tester/1", "http://a/b", datetime(1994, 11, 6, 8, 49, 37, tzinfo=UTC), "application/json", "gzip"]


@pytest.mark.parametrize("fields", [
    ["If-Modified-Since: yesterday"], 2 * ["If-Modified-Since: Sun, 06 Nov 1994 08:49:37 GMT"],
])
def test_what_is_no_moment_is_not_there(serve: Serve, fields: list[str]) -> None:
    assert ask(serve, lambda ctx: ctx.if_modified_since, request("GET", "/", *fields)) is None


def test_request_id_and_time(serve: Serve) -> None:
    before = datetime.now(UTC).timestamp()
    seen: list[tuple[str, str, float]] = []
    opened: list[float] = []

    def handler(ctx: RequestCtx) -> None:
        seen.append((ctx.request_id, f"{ctx.conn_id}-{ctx.conn_request_num}", ctx.time))
        opened.append(ctx.conn_time)

    server = serve(handler, workers=2)
    wire = server.connect()
    for _ in range(3):
        assert wire.get().status == 200
    assert server.get().status == 200
    assert [made for made, _, _ in seen] == [wanted for _, wanted, _ in seen]
    assert len({made for made, _, _ in seen}) == 4
    behind = datetime.now(UTC).timestamp()
    # It is made of two clocks, and a scheduler may come between them.
    assert all(before - 5 < when < behind + 5 for _, _, when in seen)
    assert all(before - 5 < when < behind + 5 for when in opened)


def cookies(reply: Reply) -> list[str]:
    return reply.getall("Set-Cookie")


def test_cookies(serve: Serve) -> None:
    reply = say(serve, lambda ctx: ctx.set_cookie("a", "1"), lambda ctx: ctx.set_header("X-Between", "1"),
                lambda ctx: ctx.set_cookie("b", "2", max_age=60, http_only=True),
                lambda ctx: ctx.set_cookie("a", "3", secure=True), lambda ctx: ctx.set_cookie("a", "4", path="/x"),
                lambda ctx: ctx.delete_cookie("c", domain="example.org"))
    assert cookies(reply) == [
        "b=2; Max-Age=60; Path=/; HttpOnly; SameSite=Lax", "a=3; Path=/; Secure; SameSite=Lax",
        "a=4; Path=/x; SameSite=Lax",
        "c=; Expires=Thu, 01 Jan 1970 00:00:00 GMT; Max-Age=0; Domain=example.org; Path=/; SameSite=Lax"]
    assert reply.get("X-Between") == "1"


def test_a_cookie_survives_a_redirect_and_not_an_error(serve: Serve) -> None:
    assert cookies(say(serve, lambda ctx: ctx.set_cookie("a", "1"), lambda ctx: ctx.redirect("/"))) != []
    assert cookies(say(serve, lambda ctx: ctx.set_cookie("a", "1"), lambda ctx: ctx.error("no", 403))) == []


def test_a_cookie_that_is_none_changes_nothing(serve: Serve) -> None:
    def wrong(ctx: RequestCtx) -> None:
        for value in ("a b", "a\r\nX-Injected: 1", "x" * 5000):
            with pytest.raises(ValueError):
                ctx.set_cookie("a", value)

    reply = say(serve, lambda ctx: ctx.set_cookie("a", "1"), wrong)
    assert cookies(reply) == ["a=1; Path=/; SameSite=Lax"]
    assert reply.get("X-Injected") is None


def test_json_out(serve: Serve) -> None:
    reply = say(serve, lambda ctx: ctx.write("before"), lambda ctx: ctx.write_json({"a": [1, "é"]}))
    assert (reply.status, reply.get("Content-Type"), reply.body) == (
        200, "application/json", '{"a":[1,"é"]}'.encode())
    reply = say(serve, lambda ctx: ctx.write_json("x" * 10_000))
    assert reply.body == b'"' + b"x" * 10_000 + b'"'


def test_not_modified(serve: Serve) -> None:
    reply = say(serve, lambda ctx: ctx.write("gone"), lambda ctx: ctx.set_header("ETag", '"a"'),
                lambda ctx: ctx.not_modified())
    assert (reply.status, reply.get("ETag"), reply.body) == (304, '"a"', b"")


@pytest.mark.parametrize(("target", "status", "body"), [
    ("/?n=5", 200, b"5 0.0 None"), ("/?n=-7&x=1.5e1&b=On", 200, b"-7 15.0 True"), ("/", 200, b"1 0.0 None"),
    ("/?n=", 400, b"n must be an integer"), ("/?n=1.0", 400, b"n must be an integer"),
    ("/?n=1_000", 400, b"n must be an integer"), ("/?n=%D9%A3", 400, b"n must be an integer"),
    ("/?n=" + "9" * 19, 400, b"n must be an integer"), ("/?x=inf", 400, b"x must be a number"),
    ("/?x=nan", 400, b"x must be a number"), ("/?x=1e999", 400, b"x must be a number"),
    ("/?x=", 400, b"x must be a number"), ("/?x=.", 400, b"x must be a number"),
    ("/?b", 400, b"b must be true or false"), ("/?b=2", 400, b"b must be true or false"),
])
def test_numbers_in_a_query(serve: Serve, target: str, status: int, body: bytes) -> None:
    def handler(ctx: RequestCtx) -> None:
        ctx.write(f"{ctx.query.int('n', 1)} {ctx.query.float('x', 0.0)} {ctx.query.bool('b')}")

    reply = serve(handler, workers=2).get(target)
    assert (reply.status, reply.body) == (status, body)


def test_a_form_that_is_none_is_the_client_s_fault(serve: Serve) -> None:
    server = serve(lambda ctx: ctx.write(str(len(ctx.form))), workers=2)
    reply = server.exchange(request("POST", "/", "Content-Type: multipart/form-data; boundary=x", body=b"nonsense"))
    assert (reply.status, reply.body) == (400, b"malformed multipart/form-data: it does not begin with its boundary")


def test_client_ip(serve: Serve) -> None:
    fields = ["X-Forwarded-For: 203.0.113.7", "Forwarded: for=203.0.113.8"]

    def asked(*binds: str, **config: Any) -> bytes:
        server = serve(lambda ctx: ctx.write(str(ctx.client_ip)), *binds, workers=2, **config)
        return server.exchange(request("GET", "/", *fields)).body

    assert asked() == b"127.0.0.1"
    assert asked(trusted_proxies="10.0.0.0/8") == b"127.0.0.1"
    assert asked(trusted_proxies="127.0.0.1") == b"203.0.113.7"
    assert asked(trusted_proxies="127.0.0.0/8", forwarded_field="Forwarded") == b"203.0.113.8"


def test_client_ip_on_a_unix_socket(serve: Serve, tmp_path: Path) -> None:
    for networks, client in (("", b"None"), ("unix", b"203.0.113.7")):
        server = serve(lambda ctx: ctx.write(str(ctx.client_ip)), f"unix:{tmp_path}/{networks}s", workers=2,
                       trusted_proxies=networks)
        assert server.exchange(request("GET", "/", "X-Forwarded-For: 203.0.113.7")).body == client


def test_client_ip_of_ipv4_within_ipv6(serve: Serve) -> None:
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as listener:
        port = listener.getsockname()[1]
        serve(lambda ctx: ctx.write(f"{ctx.remote_addr} {ctx.client_ip}"), f"fd:{listener.fileno()}", workers=2)
    with socket.create_connection(("127.0.0.1", port)) as wire:
        wire.sendall(request("GET", "/", "Connection: close"))
        got = b"".join(iter(lambda: wire.recv(4096), b""))
        assert got.endswith(f"('::ffff:127.0.0.1', {wire.getsockname()[1]}) 127.0.0.1".encode())
