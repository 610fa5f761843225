"""An HTTP/1.1 server: warm workers, reused buffers, one context.

Public names only; `Server` and `RequestCtx` are where to begin.
"""

from fastserve.config import Config
from fastserve.errors import ContextExpired, FastserveError, ServerClosed, StartError

try:
    from fastserve._core import RequestCtx
except ModuleNotFoundError as error:
    if error.name != "fastserve._core":
        raise
    raise ImportError(
        "the compiled core is missing: in a clone run `make build`, elsewhere install the wheel"
    ) from None

from fastserve.args import Args
from fastserve.server import Server

__version__ = "0.1.0"

__all__ = [
    "Args",
    "Config",
    "ContextExpired",
    "FastserveError",
    "RequestCtx",
    "Server",
    "ServerClosed",
    "StartError",
]
