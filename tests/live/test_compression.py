"""Replies that leave smaller, and bodies that come so.

Knows: `compress`, `inflate`, what the standard library makes of both sides.
Never sees: how a client's wishes are read (tests/unit/test_negotiation.py).
"""

import asyncio
import gzip
import random
import sys
import threading
import zlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import PATIENCE, Reply, Running, Serve, chunked, request

from fastserve import RequestCtx, Router, StaticFiles, compress, inflate

TEXT = b"the same words again and again, " * 100
READ = {"gzip": gzip.decompress, "deflate": zlib.decompress, None: bytes}


def compressed(serve: Serve, *steps: Any, body: bytes = TEXT, accept: str = "gzip", method: str = "GET") -> Reply:
    def handler(ctx: RequestCtx) -> None:
        ctx.write(body)
        for step in steps:
            step(ctx)

    server = serve(compress(handler), workers=2)
    with server.connect() as wire:
        return wire.send(request(method, "/", *([f"Accept-Encoding: {accept}"] if accept else []))).read(
            head=method == "HEAD")


def left_alone(reply: Reply, vary: str | None = None) -> bool:
    return (reply.get("Content-Encoding"), reply.get("Vary"), reply.body) == (None, vary, TEXT)


@pytest.mark.parametrize(("accept", "coding"), [
    ("gzip", "gzip"), ("deflate", "deflate"), ("gzip, deflate", "gzip"), ("gzip;q=0.5, deflate", "deflate"),
    ("*", "gzip"),
])
def test_a_reply_leaves_smaller(serve: Serve, accept: str, coding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("brotli", "zstandard", "compression.zstd"):
        monkeypatch.setitem(sys.modules, name, None)
    reply = compressed(serve, accept=accept)
    assert (reply.get("Content-Encoding"), reply.get("Vary")) == (coding, "Accept-Encoding")
    assert READ[coding](reply.body) == TEXT
    assert len(reply.body) < len(TEXT) / 10


@pytest.mark.parametrize(("module", "coding"), [("brotli", "br"), ("zstandard", "zstd")])
def test_libraries_are_used_where_they_are(
    serve: Serve, module: str, coding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("brotli", "zstandard", "compression.zstd"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, module, SimpleNamespace(compress=lambda body, **_: b"small"))  # type: ignore[arg-type]
    reply = compressed(serve, accept=f"gzip, {coding}")
    assert (reply.get("Content-Encoding"), reply.body) == (coding, b"small")


def test_head_says_what_get_would(serve: Serve) -> None:
    get, head = (compressed(serve, method=method) for method in ("GET", "HEAD"))
    assert head.body == b""
    for name in ("Content-Encoding", "Content-Length", "Vary", "Content-Type"):
        assert head.get(name) == get.get(name)


def test_who_does_not_want_it_gets_it_plain(serve: Serve) -> None:
    for accept in ("", "identity", "gzip;q=0", "x"):
        assert left_alone(compressed(serve, accept=accept), "Accept-Encoding")


@pytest.mark.parametrize("step", [
    lambda ctx: setattr(ctx, "content_type", "image/png"), lambda ctx: setattr(ctx, "content_type", "application/zip"),
    lambda ctx: setattr(ctx, "content_type", "text/event-stream"), lambda ctx: setattr(ctx, "content_type", "nonsense"),
    lambda ctx: ctx.set_header("Cache-Control", "public, No-Transform"), lambda ctx: setattr(ctx, "status", 206),
    lambda ctx: ctx.set_header("Content-Range", "bytes 0-1/2"),
    lambda ctx: ctx.set_header("Content-Digest", "sha-256=:AA==:"),
    lambda ctx: [ctx.add_header("X", "x" * 1100) for _ in range(6)],     # no room for more fields is left
])
def test_what_is_left_alone(serve: Serve, step: Any) -> None:
    assert left_alone(compressed(serve, step))


def test_a_coding_of_its_own(serve: Serve) -> None:
    reply = compressed(serve, lambda ctx: ctx.set_header("Content-Encoding", "br"))
    assert (reply.get("Content-Encoding"), reply.get("Vary"), reply.body) == ("br", None, TEXT)


def test_what_would_not_be_smaller(serve: Serve) -> None:
    noise = random.Random(1).randbytes(2000)
    for body, vary in ((noise, "Accept-Encoding"), (TEXT[:499], None), (b"", None)):
        reply = compressed(serve, body=body)
        assert (reply.get("Content-Encoding"), reply.get("Vary"), reply.body) == (None, vary, body)


def test_fields_that_were_there(serve: Serve) -> None:
    reply = compressed(serve, lambda ctx: ctx.set_header("Vary", "Cookie"))
    assert reply.getall("Vary") == ["Cookie", "Accept-Encoding"]
    for value in ("*", "Cookie, accept-encoding"):
        assert compressed(serve, lambda ctx, value=value: ctx.set_header("Vary", value)).getall("Vary") == [value]
    for tag, weak in (('"a"', 'W/"a"'), ('W/"a"', 'W/"a"')):
        assert compressed(serve, lambda ctx, tag=tag: ctx.set_header("ETag", tag)).get("ETag") == weak
        assert compressed(serve, lambda ctx, tag=tag: ctx.set_header("ETag", tag), accept="").get("ETag") == tag


def test_304_has_the_fields_of_the_whole(serve: Serve) -> None:
    def handler(ctx: RequestCtx) -> None:
        ctx.set_header("ETag", '"a"')
        ctx.write(TEXT)
        if ctx.headers.get("if-none-match"):
            ctx.not_modified()

    with serve(compress(handler), workers=2).connect() as wire:
        for accept, tag, vary in ((("Accept-Encoding: gzip",), 'W/"a"', ["Accept-Encoding"]), ((), '"a"', [])):
            whole, known = wire.get("/", *accept), wire.get("/", f'If-None-Match: "x", {tag}', *accept)
            assert (whole.status, known.status, known.body) == (200, 304, b"")
            assert whole.get("ETag") == known.get("ETag") == tag
            assert known.getall("Vary") == vary and whole.getall("Vary") == ["Accept-Encoding"]


@pytest.mark.parametrize("size", [10_000, 50_000])
def test_files_are_left_alone(serve: Serve, tmp_path: Path, size: int) -> None:
    """Small ones too, which are read, and 304 of them."""
    (tmp_path / "a.txt").write_bytes(b"a" * size)
    for handler in (StaticFiles(tmp_path), lambda ctx: ctx.send_file(tmp_path / "a.txt")):
        with serve(compress(handler), workers=2).connect() as wire:
            whole = wire.get("/a.txt", "Accept-Encoding: gzip")
            assert (whole.get("Content-Encoding"), whole.get("Vary"), len(whole.body)) == (None, None, size)
            tag = whole.get("ETag")
            known = wire.get("/a.txt", "Accept-Encoding: gzip", f"If-None-Match: {tag}")
            assert (known.status, known.get("ETag"), known.get("Vary")) == (304, tag, None)


def test_a_stream_goes_through(serve: Serve) -> None:
    server = serve(compress(lambda ctx: ctx.stream([TEXT])), workers=2)
    with server.connect() as wire:
        assert left_alone(wire.send(request("GET", "/", "Accept-Encoding: gzip")).read())


def test_an_error_is_a_reply(serve: Serve) -> None:
    reply = compressed(serve, lambda ctx: ctx.error(TEXT.decode(), 404))
    assert (reply.status, gzip.decompress(reply.body)) == (404, TEXT)


# In

def inflating(serve: Serve, **options: Any) -> Running:
    return serve(inflate(lambda ctx: ctx.write(ctx.body), **options), workers=2, max_request_body_size=100_000)


def sent(server: Running, body: bytes, *codings: str) -> Reply:
    return server.exchange(request("POST", "/", *[f"Content-Encoding: {coding}" for coding in codings], body=body))


def test_a_body_comes_smaller(serve: Serve) -> None:
    server = inflating(serve)
    for codings, body in (
        (["gzip"], gzip.compress(TEXT)), (["X-GZIP"], gzip.compress(TEXT)), (["deflate"], zlib.compress(TEXT)),
        (["deflate, gzip"], gzip.compress(zlib.compress(TEXT))), (["identity", "gzip"], gzip.compress(TEXT)),
        (["deflate", "gzip"], gzip.compress(zlib.compress(TEXT))), ([], TEXT), (["identity"], TEXT), ([""], TEXT),
        (["gzip"], gzip.compress(TEXT[:1000]) + gzip.compress(TEXT[1000:])),
    ):
        reply = sent(server, body, *codings)
        assert (reply.status, reply.body) == (200, TEXT), codings
    raw = request("POST", "/", "Content-Encoding: gzip", "Transfer-Encoding: chunked") + chunked(gzip.compress(TEXT), 7)
    assert server.exchange(raw).body == TEXT


def test_what_reads_the_body_reads_what_was_in_it(serve: Serve) -> None:
    def handler(ctx: RequestCtx) -> None:
        if ctx.path == "/json":
            ctx.write_json(ctx.json())
        else:
            ctx.write(ctx.form["a"])

    server = serve(inflate(handler), workers=2)
    with server.connect() as wire:
        for _ in range(2):      # nothing is left of it for the next request
            for path, kind, body, answer in (("/json", "application/json", b"[1]", b"[1]"),
                                             ("/form", "application/x-www-form-urlencoded", b"a=b", b"b")):
                fields = [f"Content-Type: {kind}", "Content-Encoding: gzip"]
                assert wire.send(request("POST", path, *fields, body=gzip.compress(body))).read().body == answer
                assert wire.send(request("POST", path, fields[0], body=body)).read().body == answer


@pytest.mark.parametrize("body", [
    b"", b"nonsense", gzip.compress(TEXT)[:-1], gzip.compress(TEXT) + b"x", zlib.compress(TEXT),
    gzip.compress(TEXT)[:-8] + b"\0\0\0\0" + gzip.compress(TEXT)[-4:],
])
def test_what_is_no_gzip(serve: Serve, body: bytes) -> None:
    reply = sent(inflating(serve), body, "gzip")
    assert (reply.status, reply.body) == (400, b"the body is not gzip")


def test_what_is_no_deflate(serve: Serve) -> None:
    coder = zlib.compressobj(6, zlib.DEFLATED, -15)
    for body in (coder.compress(TEXT) + coder.flush(), zlib.compress(TEXT) + b"x", zlib.compress(TEXT)[:-1]):
        assert sent(inflating(serve), body, "deflate").status == 400


def test_a_bomb(serve: Serve) -> None:
    """A thousand times its size, and once more."""
    zeros = gzip.compress(bytes(50_000_000))
    assert sent(inflating(serve), zeros, "gzip").status == 413
    assert sent(inflating(serve), gzip.compress(zeros), "gzip, gzip").status == 413
    assert sent(inflating(serve), gzip.compress(bytes(6000)) * 16, "gzip").status == 200
    assert sent(inflating(serve), gzip.compress(bytes(7000)) * 16, "gzip").status == 413
    assert sent(inflating(serve), gzip.compress(b"") * 17, "gzip").status == 400
    for size, status in ((1000, 200), (1001, 413)):
        assert sent(inflating(serve, limit=1000), gzip.compress(bytes(size)), "gzip").status == status


def test_no_limit_is_negative() -> None:
    with pytest.raises(ValueError, match=r"^a limit of bytes is not negative: -1$"):
        inflate(lambda ctx: None, limit=-1)


@pytest.mark.parametrize("coding", ["br", "zstd", "gzip, br", "gzip, gzip, gzip", "compress"])
def test_another_coding(serve: Serve, coding: str) -> None:
    reply = sent(inflating(serve), b"x", coding)
    assert (reply.status, reply.get("Accept-Encoding")) == (415, "gzip, deflate")


def test_what_is_answered_later_is_not_compressed() -> None:
    async def handler(ctx: RequestCtx) -> None:
        ctx.write("later")

    with pytest.raises(TypeError, match="comes later"):
        compress(handler)       # type: ignore[arg-type]


@pytest.mark.usefixtures("own_loop")
def test_a_coroutine_function_may_have_its_body_inflated(serve: Serve) -> None:
    async def handler(ctx: RequestCtx) -> None:
        ctx.write(ctx.body)

    server = serve(inflate(handler), workers=2, reactors=1)
    body = gzip.compress(b"small again")
    assert server.exchange(request("POST", "/", "Content-Encoding: gzip", body=body)).body == b"small again"


@pytest.mark.usefixtures("own_loop")
def test_the_reply_of_a_coroutine_behind_a_router_is_left_alone(serve: Serve) -> None:
    router = Router()
    halfway, go = threading.Event(), threading.Event()

    @router.get("/later")
    async def later(ctx: RequestCtx) -> None:
        ctx.write("x" * 600)
        halfway.set()
        while not go.is_set():
            await asyncio.sleep(0)
        ctx.write("y" * 600)

    def let_go(ctx: RequestCtx) -> None:
        compressing(ctx)
        assert halfway.wait(PATIENCE)
        go.set()

    compressing = compress(router)
    server = serve(let_go, workers=2, reactors=1)
    reply = server.get("/later", "Accept-Encoding: gzip")
    assert (reply.get("Content-Encoding"), reply.body) == (None, b"x" * 600 + b"y" * 600)
