"""An HTTP/1.1 server: warm workers, reused buffers, one context.

Public names only; `Server` and `RequestCtx` are where to begin. What needs the compiled core is
imported at first use, so that a tree that was never compiled can say so in one line.
"""

from typing import TYPE_CHECKING, Any

from fastserve.config import Config
from fastserve.errors import (
    BadRequest,
    ClientGone,
    ContextExpired,
    FastserveError,
    MissingExtra,
    ServerClosed,
    StartError,
)
from fastserve.headers import Fields

if TYPE_CHECKING:
    from fastserve._core import Args, BodyStream, Done, Headers, ReplyStream, RequestCtx
    from fastserve.compression import compress, inflate
    from fastserve.coroutines import run_async
    from fastserve.router import Router
    from fastserve.server import Server
    from fastserve.static import StaticFiles
    from fastserve.timeouts import timeout
    from fastserve.uploads import File, Files

__version__ = "0.1.0"

__all__ = [
    "Args",
    "BadRequest",
    "BodyStream",
    "ClientGone",
    "Config",
    "ContextExpired",
    "Done",
    "FastserveError",
    "Fields",
    "File",
    "Files",
    "Headers",
    "MissingExtra",
    "ReplyStream",
    "RequestCtx",
    "Router",
    "Server",
    "ServerClosed",
    "StartError",
    "StaticFiles",
    "compress",
    "inflate",
    "run_async",
    "timeout",
]

_HOMES = {
    "Args": "fastserve.server",
    "BodyStream": "fastserve.server",
    "Done": "fastserve.server",
    "File": "fastserve.uploads",
    "Files": "fastserve.uploads",
    "Headers": "fastserve.server",
    "ReplyStream": "fastserve.server",
    "RequestCtx": "fastserve.server",
    "Router": "fastserve.router",
    "Server": "fastserve.server",
    "StaticFiles": "fastserve.static",
    "compress": "fastserve.compression",
    "inflate": "fastserve.compression",
    "run_async": "fastserve.coroutines",
    "timeout": "fastserve.timeouts",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'fastserve' has no attribute {name!r}")
    import importlib

    value = globals()[name] = getattr(importlib.import_module(_HOMES[name]), name)
    return value
