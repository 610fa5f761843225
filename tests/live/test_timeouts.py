"""A limit of time for single handlers, and `timeout_error`: the client is answered, the handler goes on without one.

Knows: handlers that block until a test lets them go. Never sees: how long anything took: the words of a timeout prove
that its handler is still inside. Invariant: one reply reaches the client, and afterwards all is given back.
"""

import threading
from contextlib import suppress

import pytest
from conftest import Running, Serve, request, wait_for, wait_until

from fastserve import ClientGone, ContextExpired, RequestCtx, Router, timeout

SOON = 0.05
NEVER = 60.0
STUCK = "took longer than its timeout"


class Held:
    """A handler that blocks until `go`, and then finds its ctx expired."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.found: list[BaseException] = []

    def __call__(self, ctx: RequestCtx) -> None:
        wait_for(self.go)
        try:
            ctx.write("too late")
        except BaseException as error:
            self.found.append(error)
            raise

    def let_go(self, server: Running, count: int = 1) -> None:
        self.go.set()
        wait_until(lambda: server.stats()["connections"] == 0, "the slots")
        assert [type(error) for error in self.found] == [ContextExpired] * count


@pytest.mark.parametrize("status, message, body", [
    (504, "", b"Gateway Timeout\n"), (503, "not today: süß", "not today: süß\n".encode())])
def test_the_client_is_told(serve: Serve, status: int, message: str, body: bytes) -> None:
    serve.expect_error(STUCK)
    held = Held()
    server = serve(timeout(held, SOON, status, message), workers=2, reactors=1)
    wire = server.connect().send(request())
    reply = wire.read()
    assert (reply.status, reply.body, reply.closes) == (status, body, True)
    assert reply.get("Retry-After") == ("1" if status == 503 else None)
    assert wire.ended()
    wire.close()
    with server.connect() as wire:
        assert wire.send(request("HEAD")).read(head=True).status == status
    held.let_go(server, 2)
    stats = server.stats()
    assert (stats["timed_out_handler"], stats["statuses"]["5xx"], stats["requests"]) == (2, 2, 0)


@pytest.mark.parametrize("status", [499, 418, 599])
def test_a_status_without_a_phrase_is_its_number(serve: Serve, status: int) -> None:
    serve.expect_error(STUCK)
    held = Held()
    server = serve(timeout(held, SOON, status), workers=2, reactors=1)
    assert server.get().body == b"%d\n" % status
    held.let_go(server)


def test_who_is_in_time_is_not_told(serve: Serve) -> None:
    server = serve(timeout(lambda ctx: ctx.write(ctx.path), NEVER), workers=2, reactors=1)
    wire = server.connect()
    assert [wire.get(f"/{n}").body for n in range(20)] == [b"/%d" % n for n in range(20)]


def test_only_its_own_handler_is_limited(serve: Serve) -> None:
    """The same connection and worker: what one call was allowed says nothing of the next."""
    serve.expect_error(STUCK)
    held, patient = Held(), threading.Event()
    router = Router()
    router.get("/limited", timeout(lambda ctx: ctx.write("in time"), 0.2))
    router.get("/held", timeout(held, SOON, message="told"))

    @router.get("/patient")
    def waits(ctx: RequestCtx) -> None:
        wait_for(patient)
        ctx.write("served")

    server = serve(router, workers=8, reactors=1)
    wire = server.connect()
    assert wire.get("/limited").body == b"in time"
    wire.send(request("GET", "/patient"))
    # Told behind the moment at which the first call's limit would have been up.
    assert [server.get("/held").body for _ in range(5)] == [b"told\n"] * 5
    assert wire.silent()
    patient.set()
    assert wire.read().body == b"served"
    wire.close()
    held.let_go(server, 5)


@pytest.mark.parametrize("inner, outer, own, word", [
    (SOON, NEVER, 0.0, b"inner\n"), (NEVER, SOON, 0.0, b"outer\n"), (SOON, NEVER, NEVER, b"inner\n"),
    (NEVER, NEVER, SOON, b"Gateway Timeout\n")])
def test_the_earliest_limit_counts(serve: Serve, inner: float, outer: float, own: float, word: bytes) -> None:
    serve.expect_error(STUCK)
    held = Held()
    limited = timeout(timeout(held, inner, message="inner"), outer, message="outer")
    server = serve(limited, workers=2, reactors=1, handler_timeout=own)
    assert server.get().body == word
    held.let_go(server)


def test_a_limit_ends_with_its_handler(serve: Serve) -> None:
    """What runs behind it in the same call has none."""
    go = threading.Event()
    serve.expect_error(STUCK)
    held = Held()
    quick = timeout(lambda ctx: ctx.write("quick"), 0.1)

    def handler(ctx: RequestCtx) -> None:
        quick(ctx)
        wait_for(go)

    router = Router()
    router.get("/quick", handler)
    router.get("/held", timeout(held, 0.15))
    server = serve(router, workers=2, reactors=1)
    wire = server.connect().send(request("GET", "/quick"))
    assert server.get("/held").status == 504
    go.set()
    assert wire.read().body == b"quick"
    wire.close()
    held.let_go(server)


def test_where_all_handlers_block(serve: Serve) -> None:
    """Requests are taken along then: the call is off lease before its limit is known, and the holder must be told."""
    serve.expect_error(STUCK)
    pause = threading.Event()
    held = Held()
    router = Router()
    router.get("/blocks", lambda ctx: ctx.write(str(pause.wait(0.002))))
    router.get("/held", timeout(held, SOON, message="told"))
    # Nothing but the wish brings a look at the call before the client gives up.
    server = serve(router, workers=8, reactors=1, queue_timeout=NEVER)
    wires = [server.connect() for _ in range(4)]
    for _ in range(60):
        for wire in wires:
            wire.send(request("GET", "/blocks"))
        for wire in wires:
            assert wire.read().body == b"False"
    passed = server.stats()["passed_first"]
    for count in range(1, 4):
        assert server.get("/held").body == b"told\n"
        assert server.stats()["timed_out_handler"] == count
        for _ in range(10):
            assert [wire.get("/blocks").body for wire in wires] == [b"False"] * 4
    assert server.stats()["passed_first"] > passed > 0
    for wire in wires:
        wire.close()
    held.let_go(server, 3)


def test_a_stream_is_in_time(serve: Serve) -> None:
    serve.expect_error(STUCK)
    go = threading.Event()
    held = Held()

    def pieces():
        yield "begun "
        wait_for(go)
        yield "and ended"

    router = Router()
    router.get("/stream", timeout(lambda ctx: ctx.stream(pieces()), SOON))
    router.get("/held", timeout(held, 2 * SOON))
    server = serve(router, workers=4, reactors=1)
    wire = server.connect().send(request("GET", "/stream"))
    assert server.get("/held").status == 504
    go.set()
    assert wire.read().body == b"begun and ended"
    wire.close()
    held.let_go(server)


@pytest.mark.parametrize("arguments", [
    (0,), (-1.0,), (float("nan"),), (1, 200), (1, 600), (1, 504, "x" * 513), (1, 504, "two\nlines"), (1, 504, "\0")])
def test_what_no_limit_is(arguments: tuple) -> None:
    with pytest.raises(ValueError):
        timeout(lambda ctx: None, *arguments)


def test_hooks_have_no_limit_of_their_own(serve: Serve) -> None:
    limited = timeout(lambda ctx: None, NEVER)

    def hook(ctx: RequestCtx) -> None:
        with pytest.raises(RuntimeError, match="for a handler"):
            limited(ctx)

    assert serve(lambda ctx: ctx.write("fine"), on_headers=hook, workers=2, reactors=1).get().body == b"fine"


# timeout_error

def test_a_handler_may_answer_and_go_on(serve: Serve) -> None:
    go = threading.Event()
    expired: list[bool] = []

    def handler(ctx: RequestCtx) -> None:
        ctx.set_header("X-Gone", "with the rest")
        ctx.timeout_error("busy", 503)
        with pytest.raises(ContextExpired):
            ctx.write("more")
        wait_for(go)
        expired.append(True)

    server = serve(handler, workers=2, reactors=1)
    wire = server.connect().send(request())
    reply = wire.read()
    assert (reply.status, reply.body, reply.closes, reply.get("X-Gone")) == (503, b"busy", True, None)
    go.set()
    assert wire.ended()
    wait_until(lambda: expired, "the handler")
    wait_until(lambda: server.stats()["requests"] == 1, "its end")


def test_its_words_are_the_phrase_unless_given(serve: Serve) -> None:
    server = serve(lambda ctx: ctx.timeout_error(), workers=2, reactors=1)
    assert server.get().body == b"Gateway Timeout"
    assert server.connect().send(request("HEAD")).read(head=True).get("Content-Length") == "15"


def test_other_threads_do_not_change_its_words(serve: Serve) -> None:
    over = threading.Event()
    other: list[threading.Thread] = []

    def scribble(ctx: RequestCtx) -> None:
        try:
            while not over.is_set():
                ctx.set_body("scribbled " * 50)
                ctx.write("and scribbled")
                ctx.status = 200
        except ContextExpired:
            pass

    def handler(ctx: RequestCtx) -> None:
        other.append(threading.Thread(target=scribble, args=(ctx,)))
        other[-1].start()
        ctx.timeout_error("the one word")

    wire = None
    server = serve(handler, workers=2, reactors=1)
    for _ in range(50):
        wire = server.connect().send(request())
        reply = wire.read()
        assert (reply.status, reply.body) == (504, b"the one word")
        assert wire.ended()
        wire.close()
    over.set()
    for thread in other:
        thread.join()


@pytest.mark.parametrize("status", [200, 399, 600, 0, -5, 10**6])
def test_what_no_error_is(serve: Serve, status: int) -> None:
    """With words of its own, and where its phrase would be looked for."""
    def handler(ctx: RequestCtx) -> None:
        for words in ("no", ""):
            with pytest.raises(ValueError):
                ctx.timeout_error(words, status)
        ctx.write("fine")

    assert serve(handler, workers=2, reactors=1).get().body == b"fine"


@pytest.mark.parametrize("size", [30_000, 3_000_000])
def test_long_words_arrive(serve: Serve, size: int) -> None:
    server = serve(lambda ctx: ctx.timeout_error("x" * size, 500), workers=2, reactors=1)
    wire = server.connect().send(request())
    assert len(wire.read().body) == size and wire.ended()


def test_a_handler_that_fails_behind_it_is_logged(serve: Serve) -> None:
    serve.expect_error("behind its reply")

    def handler(ctx: RequestCtx) -> None:
        ctx.timeout_error()
        raise ValueError("on purpose")

    assert serve(handler, workers=2, reactors=1).get().status == 504


def test_where_the_client_is_gone_nothing_is_said(serve: Serve) -> None:
    found: list[BaseException] = []
    inside, gone = threading.Event(), threading.Event()

    def handler(ctx: RequestCtx) -> None:
        inside.set()
        wait_for(gone)
        for _ in range(100):        # the first that are sent may meet a socket that does not know yet
            with suppress(ClientGone):
                ctx.early_hints("</a>")
                continue
            break
        try:
            ctx.timeout_error()
        except ClientGone as error:
            found.append(error)
            raise

    server = serve(handler, workers=2, reactors=1)
    wire = server.connect().send(request())
    wait_for(inside)
    wire.reset()
    gone.set()
    wait_until(lambda: server.stats()["connections"] == 0, "the slot")
    assert len(found) == 1


def test_too_late_to_say_so(serve: Serve) -> None:
    """The server has answered: the handler finds that out, and nothing is said twice."""
    serve.expect_error(STUCK)
    go = threading.Event()
    found: list[BaseException] = []

    def handler(ctx: RequestCtx) -> None:
        wait_for(go)
        try:
            ctx.timeout_error("x" * 100_000)
        except ContextExpired as error:
            found.append(error)

    server = serve(handler, handler_timeout=SOON, workers=2, reactors=1)
    wire = server.connect().send(request())
    assert wire.read().body == b"Gateway Timeout\n" and wire.ended()
    go.set()
    wait_until(lambda: found, "the handler")
