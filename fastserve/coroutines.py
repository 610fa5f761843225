"""Coroutines as handlers: how a ctx comes to an event loop, and its reply back.

Knows: asyncio, and the words of a ctx that is answered later. Never sees: the core. Invariant: what is made here is a
handler like any other, and a coroutine that fails is answered as a handler that fails; asyncio is imported by those who
have coroutines alone.
"""

from __future__ import annotations

import inspect
import logging
import os
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from fastserve.errors import ContextExpired

if TYPE_CHECKING:
    import asyncio

    from fastserve._core import RequestCtx

__all__ = ["AsyncHandler", "Handler", "as_handler", "is_async", "is_loop_thread", "run_async"]

_log = logging.getLogger("fastserve.error")

Handler = Callable[["RequestCtx"], None]
AsyncHandler = Callable[["RequestCtx"], Coroutine[Any, Any, None]]


def run_async(handler: AsyncHandler, loop: asyncio.AbstractEventLoop | None = None) -> Handler:
    """A handler that detaches its ctx and leaves the reply to a coroutine function, in the context of the call.

    It runs on `loop`, which some thread must be running, or on one that a thread of fastserve's runs for all of them.
    `ctx.complete` is called at its end; what it raises is answered as what a handler raises, and with 503 that it was
    cancelled. The ctx has neither `stream` nor `early_hints` then, and a body that was not received before cannot be
    read. `Server`, `Router`, `timeout` and `inflate` do this by themselves with `async def` functions.

    When the server stops, coroutines are waited for as handlers are, and not cancelled; whoever stops `loop` before
    leaves clients without a reply until they are cut off. `Server.shutdown` blocks: from a coroutine on `loop` call
    `await asyncio.to_thread(server.shutdown)`, and not from a handler.
    """
    tasks: set[asyncio.Task[None]] = set()  # which nobody else keeps alive

    def begin(ctx: RequestCtx) -> None:
        chosen = loop if loop is not None else _own_loop()
        ctx.detach()
        chosen.call_soon_threadsafe(start, chosen, ctx)

    def start(chosen: asyncio.AbstractEventLoop, ctx: RequestCtx) -> None:
        task = chosen.create_task(_answered(handler, ctx))
        tasks.add(task)
        task.add_done_callback(partial(ended, ctx))

    def ended(ctx: RequestCtx, task: asyncio.Task[None]) -> None:
        tasks.discard(task)
        if task.cancelled():
            _give_up(ctx)

    return begin


async def _answered(handler: AsyncHandler, ctx: RequestCtx) -> None:
    try:
        answer: object = await handler(ctx)  # type: ignore[func-returns-value]  # an untyped one may
        if answer is not None:
            raise TypeError(f"a handler returns None, not {type(answer).__name__}")
    except BaseException as error:
        from asyncio import CancelledError

        if isinstance(error, CancelledError):
            raise
        # SystemExit and its like would end the loop for all; a handler that raises it ends nothing either.
        _complete(ctx, error)
    else:
        _complete(ctx, None)


def _complete(ctx: RequestCtx, error: BaseException | None) -> None:
    """Unless the coroutine did so itself."""
    with suppress(ContextExpired):
        ctx.complete(error)


def _give_up(ctx: RequestCtx) -> None:
    """Its coroutine was cancelled, maybe before it began."""
    with suppress(ContextExpired):
        ctx.error("Service Unavailable", 503)
        _log.warning("a coroutine was cancelled: its client is told 503")
        ctx.complete()


def is_async(handler: object) -> bool:
    """Would calling it make a coroutine?"""
    return inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(type(handler).__call__)


def as_handler(handler: Handler | AsyncHandler) -> Handler:
    """`handler` itself, or what runs it if it is a coroutine function."""
    return cast("Handler", run_async(cast("AsyncHandler", handler)) if is_async(handler) else handler)


_loop: asyncio.AbstractEventLoop | None = None
_thread: threading.Thread | None = None
_lock = threading.Lock()


def is_loop_thread() -> bool:
    """Is this the thread that runs the coroutines which have no loop of their own?"""
    return threading.current_thread() is _thread


def _own_loop() -> asyncio.AbstractEventLoop:
    """Made at first use, by the policy that is set; its thread ends with the process."""
    global _loop, _thread
    if _loop is None:
        with _lock:
            if _loop is None:
                import asyncio

                made = asyncio.new_event_loop()
                try:
                    _thread = threading.Thread(target=_run, args=(made,), name="fastserve-loop", daemon=True)
                    _thread.start()
                except BaseException:
                    made.close()
                    raise
                _loop = made
    return _loop


def _run(loop: asyncio.AbstractEventLoop) -> None:
    """On and on: others wait for it, whoever stopped it and whatever a callback raised."""
    while not loop.is_closed():
        try:
            loop.run_forever()
            _log.warning("the event loop of all coroutines was stopped: it goes on")
        except BaseException as error:
            with suppress(BaseException):
                _log.error("the event loop of all coroutines was interrupted: it goes on", exc_info=error)


def _forget_loop() -> None:
    """In the child of a fork: its thread is the parent's."""
    global _loop, _thread, _lock
    _loop, _thread, _lock = None, None, threading.Lock()


os.register_at_fork(after_in_child=_forget_loop)
