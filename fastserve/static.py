"""The files below a directory, by path.

Knows: which names are served, and what a client is told of those that are not. Never sees: how a file leaves.
Invariant: nothing outside of the directory is ever opened, whatever is asked for and wherever links lead.
"""

from __future__ import annotations

import errno
import os
import re
from typing import TYPE_CHECKING, Final

from fastserve._core import open_beneath, send_opened
from fastserve.sending import type_of

if TYPE_CHECKING:
    from fastserve._core import RequestCtx

__all__ = ["StaticFiles"]

_CODINGS: Final = {"zstd": ".zst", "br": ".br", "gzip": ".gz"}

_MISSING: Final = frozenset((errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.EINVAL, errno.ENXIO))
_FORBIDDEN: Final = frozenset((errno.EACCES, errno.EPERM, errno.ELOOP, errno.EXDEV))
_FOR_NOW: Final = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.ESTALE))
"""Too few descriptors; what moves, or becomes shorter, while it is looked at."""


_NOT_SERVED = re.compile(r"(?:\A|/)(?:\Z|/|\.(?!well-known(?:/|\Z)))|\0")
"""A segment that is empty or begins with a dot, or a NUL."""


class StaticFiles:
    """A handler that sends the files below a directory, as `ctx.send_file` does.

        router.get("/static/{name:path}", StaticFiles("public", prefix="/static/"))

    The file is named by `ctx.path` without `prefix`. GET and HEAD; other methods: 405. 404: there is none, a segment is
    empty, `.` or `..` or begins with a dot (`.well-known` aside), it is a socket, or the path does not start with
    `prefix`. 403: it may not be read, it is no regular file, or a link leads out of the directory or is absolute
    (before Linux 5.6: any link, and 404 for one to a directory). A path that ends with a slash is its `index`; a
    directory without the slash: 308 to the path with it, 414 if that is longer than a field may be. 503: descriptors
    ran out, or the file was changed while it was looked at.

    `precompressed`: where the client likes it, a file is sent whose name ends with `.zst`, `.br` or `.gz` more, whether
    or not there is one without, and however old it is. OSError: `root` cannot be opened; it is opened once, and kept
    until the object is gone.
    """

    def __init__(self, root: str | os.PathLike[str], *, prefix: str = "/", index: str = "index.html",
                 precompressed: bool = False) -> None:
        if not (prefix.startswith("/") and prefix.endswith("/")):
            raise ValueError(f"a prefix begins and ends with a slash: {prefix!r}")
        self._root = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._prefix = prefix
        self._index = index
        self._precompressed = precompressed

    def __del__(self) -> None:
        if hasattr(self, "_root"):
            os.close(self._root)

    def __call__(self, ctx: RequestCtx) -> None:
        if not (ctx.is_get or ctx.is_head):
            ctx.error("Method Not Allowed", 405)
            ctx.set_header("Allow", "GET, HEAD")
            return
        path = ctx.path
        if not path.startswith(self._prefix):
            ctx.not_found()
            return
        name = path[len(self._prefix):]
        if name == "" or name.endswith("/"):
            name += self._index
        if _NOT_SERVED.search(name):
            ctx.not_found()
            return
        try:
            self._send(ctx, name)
        except OSError as error:
            self._refuse(ctx, path, error)

    def _send(self, ctx: RequestCtx, name: str) -> None:
        if self._precompressed:
            ctx.add_header("Vary", "Accept-Encoding")
            liked = list(_CODINGS)
            while coding := ctx.accepts_encoding(*liked):
                liked.remove(coding)
                try:
                    opened = open_beneath(self._root, name + _CODINGS[coding])
                except OSError:
                    continue
                try:
                    ctx.set_header("Content-Encoding", coding)
                except BaseException:
                    os.close(opened[0])
                    raise
                send_opened(ctx, opened, type_of(name))
                return
        send_opened(ctx, open_beneath(self._root, name), type_of(name))

    def _refuse(self, ctx: RequestCtx, path: str, error: OSError) -> None:
        if error.errno == errno.EISDIR and not path.endswith("/"):
            query = ctx.query_string.decode("latin-1")
            location = "/" + ctx.raw_path.decode("latin-1").lstrip("/") + "/" + (f"?{query}" if query else "")
            try:
                ctx.redirect(location, 308)
            except ValueError:
                # It is longer than fields may be: what is not ASCII is quoted there.
                ctx.error("URI Too Long", 414)
        elif error.errno in _MISSING:
            ctx.not_found()
        elif error.errno in _FORBIDDEN:
            ctx.error("Forbidden", 403)
        elif error.errno in _FOR_NOW:
            ctx.error("Service Unavailable", 503)
            ctx.set_header("Retry-After", "1")
        else:
            raise error
