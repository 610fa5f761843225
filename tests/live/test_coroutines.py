"""Coroutine functions as handlers: on one event loop, each in the context of its call.

Knows: asyncio, and what a handler may say. Never sees: how a ctx is detached (test_later.py). Invariant: whatever a
coroutine raises, the loop goes on for all others.
"""

import asyncio
import contextvars
import threading
from typing import Any

import pytest
from conftest import Serve, request, wait_for, wait_until

from fastserve import RequestCtx, Router, run_async, timeout

pytestmark = pytest.mark.usefixtures("own_loop")

LATE = "took longer than its timeout"

mark: contextvars.ContextVar[str] = contextvars.ContextVar("mark", default="none")


def test_coroutine_functions_are_handlers(serve: Serve) -> None:
    async def handler(ctx: RequestCtx) -> None:
        assert mark.get() == "outside"
        mark.set("inside")
        await asyncio.sleep(0)
        ctx.write(f"{ctx.path} {threading.current_thread().name}")

    mark.set("outside")
    wire = serve(handler, workers=2, reactors=1).connect()
    assert [wire.get(f"/{n}").body for n in range(20)] == [b"/%d fastserve-loop" % n for n in range(20)]


def test_many_coroutines_wait_at_once(serve: Serve) -> None:
    meeting: asyncio.Event | None = None
    there = 0

    async def handler(ctx: RequestCtx) -> None:
        nonlocal meeting, there
        meeting = meeting or asyncio.Event()
        there += 1
        if there == 200:
            meeting.set()
        await meeting.wait()
        ctx.write("all")

    server = serve(handler, workers=2, reactors=1)
    wires = [server.connect().send(request()) for _ in range(200)]
    assert {wire.read().body for wire in wires} == {b"all"}


def test_what_a_coroutine_raises_is_answered(serve: Serve) -> None:
    serve.expect_error("on purpose")
    serve.expect_error("returns None, not str")

    async def handler(ctx: RequestCtx):
        await asyncio.sleep(0)
        if ctx.path == "/bad":
            ctx.query.int("n")
        if ctx.path == "/text":
            return "text"
        raise RuntimeError("on purpose")

    wire = serve(handler, workers=2, reactors=1).connect()
    assert [wire.get(path).status for path in ("/bad?n=x", "/text", "/broken")] == [400, 500, 500]
    assert len(serve.errors()) == 2


def test_a_router_and_a_timeout_take_coroutine_functions(serve: Serve) -> None:
    serve.expect_error(LATE)
    router = Router()
    held = asyncio.Event()

    @router.get("/hello/{name}")
    async def hello(ctx: RequestCtx) -> None:
        ctx.write(ctx.params["name"])

    async def late(ctx: RequestCtx) -> None:
        await held.wait()

    router.get("/late", timeout(late, 0.05, message="late"))
    server = serve(router, workers=2, reactors=1)
    assert server.get("/hello/you").body == b"you"
    assert server.get("/late").body == b"late\n"
    from fastserve.coroutines import _own_loop

    _own_loop().call_soon_threadsafe(held.set)


def test_a_loop_of_ones_own(serve: Serve) -> None:
    async def handler(ctx: RequestCtx) -> None:
        ctx.write(threading.current_thread().name)

    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="my-loop")
    thread.start()
    try:
        assert serve(run_async(handler, loop), workers=2, reactors=1).get().body == b"my-loop"
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def test_a_loop_that_is_closed_is_a_500(serve: Serve) -> None:
    serve.expect_error("Event loop is closed")
    loop = asyncio.new_event_loop()
    loop.close()

    async def handler(ctx: RequestCtx) -> None:
        ctx.write("never")

    assert serve(run_async(handler, loop), workers=2, reactors=1).get().status == 500


def test_nothing_that_a_coroutine_raises_ends_the_loop(serve: Serve) -> None:
    serve.expect_error("SystemExit")

    async def handler(ctx: RequestCtx) -> None:
        if ctx.path == "/exit":
            raise SystemExit(3)
        ctx.write("still here")

    server = serve(handler, workers=2, reactors=1)
    assert server.get("/exit").status == 500
    assert server.get().body == b"still here"


def test_a_loop_that_is_stopped_goes_on(serve: Serve) -> None:
    serve.expect_error("was interrupted")

    async def handler(ctx: RequestCtx) -> None:
        def interrupt() -> None:
            raise KeyboardInterrupt

        loop = asyncio.get_running_loop()
        if ctx.path == "/stop":
            loop.stop()
        elif ctx.path == "/interrupt":
            loop.call_soon(interrupt)
        await asyncio.sleep(0)
        ctx.write("still here")

    server = serve(handler, workers=2, reactors=1)
    assert [server.get(path).body for path in ("/stop", "/interrupt", "/", "/")] == [b"still here"] * 4


def test_a_coroutine_that_is_cancelled(serve: Serve) -> None:
    """The program is about to end, or so: before its first step, or behind it."""
    begun: list[str] = []

    async def handler(ctx: RequestCtx) -> None:
        begun.append(ctx.path)
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(600)

    def never(loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> Any:
        task = asyncio.Task(coroutine, loop=loop, **options)
        if len(begun) == 1:
            task.cancel()
        return task

    loop = asyncio.new_event_loop()
    loop.set_task_factory(never)
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        wire = serve(run_async(handler, loop), workers=2, reactors=1).connect()
        for path in ("/soon", "/never"):
            reply = wire.get(path)
            assert (reply.status, reply.body) == (503, b"Service Unavailable")
        assert begun == ["/soon"]
        wait_until(lambda: len(serve.warnings()) == 2, "two warnings")
        assert serve.warnings() == ["a coroutine was cancelled: its client is told 503"] * 2
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def test_a_coroutine_cannot_wait_for_the_end_of_its_server(serve: Serve) -> None:
    async def handler(ctx: RequestCtx) -> None:
        with pytest.raises(RuntimeError, match="its own server"):
            server.server.shutdown(0)
        ctx.write("still here")

    server = serve(handler, workers=2, reactors=1)
    assert server.get().body == b"still here"


def test_a_stop_waits_for_coroutines(serve: Serve) -> None:
    inside = threading.Event()

    async def handler(ctx: RequestCtx) -> None:
        waits = asyncio.get_running_loop().run_in_executor(None, ctx.done.wait, 60)
        inside.set()
        await waits
        ctx.write("before the end")

    server = serve(handler, workers=2, reactors=1)
    wire = server.connect().send(request())
    wait_for(inside)
    assert server.shutdown(60)
    assert (wire.read().body, wire.ended()) == (b"before the end", True)


def test_a_coroutine_may_complete_its_ctx_itself(serve: Serve) -> None:
    async def handler(ctx: RequestCtx) -> None:
        ctx.write(ctx.path)
        ctx.complete()
        await asyncio.sleep(0)

    wire = serve(handler, workers=2, reactors=1).connect()
    assert [wire.get("/a").body for _ in range(3)] == [b"/a"] * 3
