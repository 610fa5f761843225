"""A file becomes a reply: its fields, its conditions, the parts of it that were asked for.

Knows: media types by suffix, and what a ctx says of a request and of its reply. Never sees: how bytes leave. Invariant:
nothing is changed here: the core makes the reply of what is said.
"""

from __future__ import annotations

import errno
import mimetypes
import os
import re
import time
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING

from fastserve.conditions import is_known, ranges_of, still_is
from fastserve.dates import format_date, parse_date

if TYPE_CHECKING:
    from fastserve._core import RequestCtx

__all__ = ["file_fields", "join_parts", "recent_file_fields", "type_of", "weigh_file"]

PARTS_MAX = 1 << 20
"""Bytes of several parts of a file together, which are read into memory; who asks for more gets the whole, which is
not, and holds no worker (RFC 9110, section 14.2, leaves it to the server)."""

FIRST_SECOND = -62_135_596_800
"""Of the year 1."""

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


def _tag(size: int, nanoseconds: int, coding: str) -> str:
    """Of a file in a coding, because it is often as old as the one beside it, and may be as long (RFC 9110, section
    8.8.3.3)."""
    word = re.sub(r"[^!#-~]+", "", coding)
    return f'"{nanoseconds:x}-{size:x}{word and "-"}{word}"'


def _changed(nanoseconds: int) -> datetime:
    """Not later than now (RFC 9110, section 8.8.2.1), and within the years that have a date."""
    return datetime.fromtimestamp(max(FIRST_SECOND, min(nanoseconds // 1_000_000_000, int(time.time()))), UTC)


def recent_file_fields(size: int, nanoseconds: int) -> bytes:
    """The lines of a file whose reply has no others."""
    date = format_date(_changed(nanoseconds))
    return f"ETag: {_tag(size, nanoseconds, '')}\r\nLast-Modified: {date}\r\nAccept-Ranges: bytes\r\n".encode()


file_fields = lru_cache(REMEMBERED)(recent_file_fields)
"""The same of a file that was not changed in the future."""


def weigh_file(ctx: RequestCtx, size: int, nanoseconds: int) -> tuple[int, bytes, list[tuple[int, int]] | None]:
    """What conditions and ranges make of a file, `nanoseconds` the moment of its last change: the status, if it is
    another than that of the reply, else 0; the lines of fields that the reply has not got; and the parts that are sent,
    first byte and the one behind the last, None for the whole."""
    fields = {name.lower(): value for name, value in ctx.response_headers}
    lines: list[str] = []
    tag = fields.get("etag")
    if tag is None:
        tag = _tag(size, nanoseconds, fields.get("content-encoding", ""))
        lines.append(f"ETag: {tag}")
    changed = parse_date(fields.get("last-modified", "")) or _changed(nanoseconds)
    if "last-modified" not in fields:
        lines.append(f"Last-Modified: {format_date(changed)}")
    if "accept-ranges" not in fields:
        lines.append("Accept-Ranges: bytes")
    status = 0
    parts: list[tuple[int, int]] | None = None
    if ctx.status == 200 and (ctx.is_get or ctx.is_head):
        get = ctx.headers.getall
        if not still_is(get("if-match"), get("if-unmodified-since"), tag, changed):
            return 412, b"", []
        if is_known(get("if-none-match"), ctx.if_modified_since, tag, changed):
            status, parts = 304, []
        elif ctx.is_get:
            parts = ranges_of(get("range"), get("if-range"), size, tag, changed)
            if parts == []:
                return 416, f"Content-Range: bytes */{size}\r\n".encode(), []
            if parts and len(parts) > 1 and (
                    "content-encoding" in fields or sum(stop - start for start, stop in parts) > PARTS_MAX):
                # Or the coding would be said of all parts together, which have none.
                parts = None
            if parts:
                status = 206
                if len(parts) == 1:
                    lines.append(f"Content-Range: bytes {parts[0][0]}-{parts[0][1] - 1}/{size}")
    return status, "".join(f"{line}\r\n" for line in lines).encode("latin-1"), parts


def join_parts(fd: int, size: int, content_type: str, parts: list[tuple[int, int]]) -> tuple[str, bytes]:
    """Media type and body of multipart/byteranges (RFC 9110, section 14.6). OSError: the file has become shorter."""
    boundary = os.urandom(16).hex()
    pieces: list[bytes] = []
    for start, stop in parts:
        pieces.append(f"\r\n--{boundary}\r\nContent-Type: {content_type}\r\n"
                      f"Content-Range: bytes {start}-{stop - 1}/{size}\r\n\r\n".encode("latin-1"))
        while start < stop:
            piece = os.pread(fd, stop - start, start)
            if not piece:
                raise OSError(errno.ESTALE, "the file has become shorter")
            start += len(piece)
            pieces.append(piece)
    return f"multipart/byteranges; boundary={boundary}", b"".join((*pieces, f"\r\n--{boundary}--\r\n".encode()))
