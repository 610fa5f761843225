"""An HTTP/1.1 server: warm workers, reused buffers, one context.

Public names only; `Server` and `RequestCtx` are where to begin. What needs the compiled core is
imported at first use, so that a tree that was never compiled can say so in one line.
"""

from typing import TYPE_CHECKING, Any

from fastserve.config import Config
from fastserve.errors import ContextExpired, FastserveError, MissingExtra, ServerClosed, StartError

if TYPE_CHECKING:
    from fastserve._core import Headers, RequestCtx
    from fastserve.args import Args
    from fastserve.forms import File, Files
    from fastserve.server import Server

__version__ = "0.1.0"

__all__ = [
    "Args",
    "Config",
    "ContextExpired",
    "FastserveError",
    "File",
    "Files",
    "Headers",
    "MissingExtra",
    "RequestCtx",
    "Server",
    "ServerClosed",
    "StartError",
]

_HOMES = {
    "Args": "fastserve.args",
    "File": "fastserve.forms",
    "Files": "fastserve.forms",
    "Headers": "fastserve.server",
    "RequestCtx": "fastserve.server",
    "Server": "fastserve.server",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'fastserve' has no attribute {name!r}")
    import importlib

    value = globals()[name] = getattr(importlib.import_module(_HOMES[name]), name)
    return value
