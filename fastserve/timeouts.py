"""A limit of time for one handler.

Knows: what may be said to a client whose time is up. Never sees: a clock, a timer; those are the core's. Invariant:
what is refused here is refused when the program starts, not when a request comes.
"""

from __future__ import annotations

from fastserve._core import Timeout
from fastserve.coroutines import AsyncHandler, Handler, as_handler

__all__ = ["timeout"]

MESSAGE_MAX = 512
"""Bytes of what a client is told when the time of its handler is up."""


def timeout(handler: Handler | AsyncHandler, seconds: float, status: int = 504, message: str = "") -> Handler:
    """A handler whose calls are answered with `status` and `message` (default: its reason phrase) as plain text, if
    they take longer than `seconds`.

    It is the server that answers, not Python, as with `handler_timeout`: the connection ends, the handler goes on, its
    ctx expires, and the log has the stack of its thread. Of several limits the earliest counts. A handler that has
    begun to stream is in time. To be made once for each handler, not for each request: what it says is kept for ever.
    ValueError: not a time, not a status of 400 to 599, or a message of more than one line or 512 bytes.
    """
    if not seconds > 0:
        raise ValueError(f"a timeout is more than 0 seconds, not {seconds}")
    if not 400 <= status <= 599:
        raise ValueError(f"the status of an error lies in 400..599, not {status}")
    if len(message.encode()) > MESSAGE_MAX or not message.isprintable():
        raise ValueError(f"a message is one line of at most {MESSAGE_MAX} bytes")
    return Timeout(as_handler(handler), seconds, status, message)
