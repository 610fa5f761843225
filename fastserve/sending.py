"""A file becomes a reply: its fields, its conditions, the parts of it that were asked for.

Knows: media types by suffix, and the words of a ctx. Never sees: how bytes leave; nor the reply that is asked for most,
a whole file without a condition, which the core makes by itself of what it finds here. Invariant: the descriptor that
is handed in is closed, whatever happens.
"""

from __future__ import annotations

import mimetypes
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING

from fastserve.conditions import is_known, ranges_of, still_is
from fastserve.dates import format_date

if TYPE_CHECKING:
    from fastserve._core import RequestCtx

__all__ = ["file_fields", "send_conditional", "type_of"]

PIECE = 65536
"""Bytes of a file that are read at once where several parts of it are sent."""

_TYPES = mimetypes.MimeTypes().types_map[True]      # what Python knows itself: the same on every machine
_TYPES.update({".js": "text/javascript", ".mjs": "text/javascript", ".wasm": "application/wasm",
               ".webp": "image/webp", ".avif": "image/avif", ".woff": "font/woff", ".woff2": "font/woff2",
               ".md": "text/markdown", ".ico": "image/x-icon", ".gz": "application/gzip", ".zst": "application/zstd",
               ".map": "application/json"})


REMEMBERED = 1024
"""Names, and files, whose fields are not made anew each time."""


@lru_cache(REMEMBERED)
def type_of(name: str) -> str:
    """The media type by the suffix of a name; text in UTF-8."""
    kind = _TYPES.get(os.path.splitext(name)[1].lower(), "application/octet-stream")
    return f"{kind}; charset=utf-8" if kind.startswith("text/") else kind


def _tag(size: int, nanoseconds: int) -> str:
    return f'"{nanoseconds:x}-{size:x}"'


@lru_cache(REMEMBERED)
def file_fields(size: int, nanoseconds: int) -> bytes:
    """The lines of a file whose reply has no others."""
    date = format_date(nanoseconds // 1_000_000_000)
    return f"ETag: {_tag(size, nanoseconds)}\r\nLast-Modified: {date}\r\nAccept-Ranges: bytes\r\n".encode()


def send_conditional(ctx: RequestCtx, opened: tuple[int, int, int], content_type: str) -> None:
    """`opened`: descriptor, size, nanoseconds of the last change."""
    fd, size, nanoseconds = opened
    try:
        changed = datetime.fromtimestamp(nanoseconds // 1_000_000_000, UTC)
        fields = {name.lower(): value for name, value in ctx.response_headers}
        tag = fields.get("etag")
        if tag is None:
            tag = _tag(size, nanoseconds)
            ctx.set_header("ETag", tag)
        if "last-modified" not in fields:
            ctx.set_header("Last-Modified", format_date(changed))
        if "accept-ranges" not in fields:
            ctx.set_header("Accept-Ranges", "bytes")
        ctx.content_type = content_type
        parts: list[tuple[int, int]] | None = None
        if ctx.status == 200 and (ctx.is_get or ctx.is_head):
            get = ctx.headers.getall
            if not still_is(get("if-match"), get("if-unmodified-since"), tag, changed):
                ctx.error("Precondition Failed", 412)
                return
            if is_known(get("if-none-match"), ctx.if_modified_since, tag, changed):
                ctx.not_modified()
                return
            parts = ranges_of(get("range"), get("if-range"), size, tag, changed) if ctx.is_get else None
        if parts is None:
            parts = [(0, size)]
        elif not parts:
            ctx.error("Range Not Satisfiable", 416)
            ctx.set_header("Content-Range", f"bytes */{size}")
            return
        elif len(parts) > 1:
            ctx.status = 206
            _send_parts(ctx, fd, size, content_type, parts)
            return
        else:
            ctx.status = 206
            ctx.set_header("Content-Range", f"bytes {parts[0][0]}-{parts[0][1] - 1}/{size}")
        start, stop = parts[0]
        mine, fd = fd, -1
        ctx.set_body_file(mine, start, stop - start)
    finally:
        if fd >= 0:
            os.close(fd)


def _send_parts(ctx: RequestCtx, fd: int, size: int, content_type: str, parts: list[tuple[int, int]]) -> None:
    """multipart/byteranges (RFC 9110, section 14.6), as it is read."""
    boundary = os.urandom(16).hex()
    heads = [f"\r\n--{boundary}\r\nContent-Type: {content_type}\r\n"
             f"Content-Range: bytes {start}-{stop - 1}/{size}\r\n\r\n".encode() for start, stop in parts]
    end = f"\r\n--{boundary}--\r\n".encode()

    def pieces() -> Iterator[bytes]:
        for head, (start, stop) in zip(heads, parts, strict=True):
            yield head
            while start < stop:
                piece = os.pread(fd, min(PIECE, stop - start), start)
                if not piece:
                    raise OSError("the file has become shorter")
                start += len(piece)
                yield piece
        yield end

    ctx.content_type = f"multipart/byteranges; boundary={boundary}"
    ctx.stream(pieces(), sum(map(len, heads)) + sum(stop - start for start, stop in parts) + len(end))
