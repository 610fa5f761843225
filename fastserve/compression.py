"""Handlers around handlers: replies that leave smaller, bodies that come so.

Knows: content codings (RFC 9110, section 8.4.1), which of them this Python can write and read, and the words of a ctx.
Never sees: a connection, the core. Invariant: a reply is touched only where that changes nothing but its size; a body
that grows beyond its limit is never grown further than that.
"""

from __future__ import annotations

import importlib
import re
import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from fastserve._core import is_detached
from fastserve.coroutines import AsyncHandler, Handler, as_handler, is_async
from fastserve.errors import BadRequest

if TYPE_CHECKING:
    from fastserve._core import RequestCtx

__all__ = ["compress", "inflate"]


_SMALLER = re.compile(
    r"text/(?!event-stream).*|.*\+(?:xml|json|text)|font/(?:ttf|otf|collection)|image/(?:bmp|x-icon|vnd\.microsoft\.icon)"
    r"|application/(?:json|javascript|x-javascript|ecmascript|xml|wasm|rtf|graphql|vnd\.ms-fontobject|x-ndjson|toml|yaml)")
"""Media types that are not compressed already."""

_AS_IT_IS: Final = frozenset((
    "content-encoding", "content-range", "content-digest", "repr-digest", "digest", "content-md5"))
"""Fields of a body that is not to be touched: it is coded, a part, or somebody has its digest (RFC 9530, RFC 3230)."""

_VARIES: Final = frozenset(("*", "accept-encoding"))

_FIELDS_MAX: Final = 6144
"""Bytes of fields, up to which there is room for all that is set here; the core has 7 KiB."""

_MEMBERS_MAX: Final = 16
"""Members of one gzip body: each costs as much again as what follows it."""

_CODINGS_MAX: Final = 2
"""Codings one on top of the other that are taken off a body: nobody needs more."""


def _zlib(bits: int) -> Callable[[bytes], bytes]:
    def deflated(body: bytes) -> bytes:
        coder = zlib.compressobj(6, zlib.DEFLATED, bits)
        return coder.compress(body) + coder.flush()

    return deflated


def _optional(name: str, function: str, **options: int) -> Callable[[bytes], bytes] | None:
    try:
        found: Any = importlib.import_module(name)
    except ImportError:
        return None
    return lambda body: getattr(found, function)(body, **options)


def _coders() -> dict[str, Callable[[bytes], bytes]]:
    """By coding, the best ones first."""
    zstd = _optional("compression.zstd", "compress") or _optional("zstandard", "compress")
    brotli = _optional("brotli", "compress", quality=4)
    every = {"zstd": zstd, "br": brotli, "gzip": _zlib(31), "deflate": _zlib(15)}
    return {coding: coder for coding, coder in every.items() if coder is not None}


def compress(handler: Handler, *, minimum: int = 500) -> Handler:
    """A handler that compresses what `handler` replies, in the way that the client likes best: zstd (Python 3.14, or
    with zstandard installed), br (with brotli installed), gzip or deflate.

    Left alone are replies that come later (`detach`), bodies of fewer than `minimum` bytes, types that are
    compressed already, streams and files, replies with a Content-Encoding, a digest, a part of the whole, or
    `Cache-Control: no-transform`. Where the client's Accept-Encoding decided, Vary says so; a strong ETag becomes a
    weak one (RFC 9110, section 8.8.3), with 304 too: a handler that compares If-None-Match itself does so weakly.

    What a page repeats of its request beside a secret can be guessed by how well it compresses (BREACH): leave such
    pages out. TypeError: a coroutine function, whose reply is made later.
    """
    if is_async(handler):
        raise TypeError("compress needs the reply when its handler returns: that of a coroutine function comes later")
    coders = _coders()
    call: Callable[[RequestCtx], Any] = handler

    def compressing(ctx: RequestCtx) -> Any:
        answer = call(ctx)      # which is None, or what the server will complain about
        if not is_detached(ctx) and not ctx.response_started:
            _shrink(ctx, coders, minimum)
        return answer

    return compressing


def _shrink(ctx: RequestCtx, coders: dict[str, Callable[[bytes], bytes]], minimum: int) -> None:
    if ctx.status == 304:
        _weaken(ctx)
        return
    body = ctx.response_body
    if len(body) < minimum or ctx.status in (204, 205, 206) or not _SMALLER.fullmatch(
            ctx.content_type.partition(";")[0].strip().lower()):
        return
    fields = [(name.lower(), value) for name, value in ctx.response_headers]
    if any(name in _AS_IT_IS for name, _ in fields) or any(
            name == "cache-control" and "no-transform" in value.lower() for name, value in fields):
        return
    coding = ctx.accepts_encoding(*coders)
    if coding is None:
        _say(ctx, fields)
        return
    smaller = coders[coding](body)
    if len(smaller) >= len(body):
        _say(ctx, fields)
    elif _say(ctx, fields, weaker=True, coding=coding):
        ctx.set_body(smaller)


def _weaken(ctx: RequestCtx) -> None:
    """304 has the fields that the whole would have had (RFC 9110, section 15.4.5): those of a reply that left smaller,
    if the client has that one's tag."""
    fields = [(name.lower(), value) for name, value in ctx.response_headers]
    has = ",".join(ctx.headers.getall("if-none-match"))
    if any(name == "etag" and not value.startswith("W/") and f"W/{value}" in has for name, value in fields):
        _say(ctx, fields, weaker=True)


def _say(ctx: RequestCtx, fields: list[tuple[str, str]], weaker: bool = False, coding: str = "") -> bool:
    """That Accept-Encoding decided, and what. False: there is no room for it."""
    more: list[tuple[str, str]] = []
    if not {word.strip().lower() for name, value in fields if name == "vary" for word in value.split(",")} & _VARIES:
        more.append(("Vary", "Accept-Encoding"))
    if weaker:
        more += [("ETag", f"W/{value}") for name, value in fields if name == "etag" and not value.startswith("W/")]
    if coding:
        more.append(("Content-Encoding", coding))
    if sum(len(name) + len(value) + 4 for name, value in (*fields, *more)) > _FIELDS_MAX:
        return False
    for name, value in more:
        if name != "Vary":
            ctx.del_header(name)
        ctx.add_header(name, value)
    return True


def inflate(handler: Handler | AsyncHandler, *, limit: int | None = None) -> Handler:
    """A handler that takes the codings gzip and deflate off a request's body before `handler` sees it in `ctx.body`,
    `ctx.json()` and the like.

    `limit`: bytes that a body may grow to, all of it in memory (None: `ctx.max_body_size`, which `on_headers` may have
    made larger than memory is); 413 beyond. 400: it is not what its Content-Encoding says. 415 with Accept-Encoding:
    another coding, or more than two of them (RFC 9110, section 15.5.16). ValueError: `limit` is negative.
    """
    if limit is not None and limit < 0:
        raise ValueError(f"a limit of bytes is not negative: {limit}")
    handler = as_handler(handler)

    def inflating(ctx: RequestCtx) -> None:
        words = ",".join(ctx.headers.getall("content-encoding")).split(",")
        codings = [coding for word in words if (coding := word.strip(" \t").lower()) not in ("", "identity")]
        if codings:
            if len(codings) > _CODINGS_MAX or not set(codings) <= {"gzip", "x-gzip", "deflate"}:
                ctx.error("Unsupported Media Type", 415)
                ctx.set_header("Accept-Encoding", "gzip, deflate")
                return
            body = ctx.body
            for coding in reversed(codings):
                body = _inflated(body, coding, ctx.max_body_size if limit is None else limit)
            ctx.replace_body(body)
        return handler(ctx)

    return inflating


def _inflated(body: bytes, coding: str, limit: int) -> bytes:
    """Of gzip several members (RFC 1952, section 2.2); of deflate the zlib format (RFC 9110, section 8.4.1.2)."""
    parts: list[bytes] = []
    left = limit
    rest = body
    while rest or not parts:
        if len(parts) == _MEMBERS_MAX:
            raise BadRequest(f"the body has more than {_MEMBERS_MAX} members of {coding}")
        decoder = zlib.decompressobj(15 if coding == "deflate" else 31)
        try:
            part = decoder.decompress(rest, left + 1)
        except zlib.error as error:
            raise BadRequest(f"the body is not {coding}") from error
        left -= len(part)
        if left < 0:
            raise BadRequest("", 413)
        if not decoder.eof or (coding == "deflate" and decoder.unused_data):
            raise BadRequest(f"the body is not {coding}")
        parts.append(part)
        rest = decoder.unused_data
    return b"".join(parts)
