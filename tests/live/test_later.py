"""Contexts that are detached: answered behind their handler, by any thread, once.

Knows: who may complete a ctx and when: inside the handler, before it returns, behind it, never. Never sees: how a
worker leaves a call. Invariant: each request has one reply, and afterwards all is given back, which `serve` checks.
"""

import gc
import queue
import random
import threading
from collections import Counter
from contextlib import suppress

import pytest
from conftest import Reply, Serve, request, wait_for, wait_until

from fastserve import BadRequest, ContextExpired, RequestCtx, Router, timeout

FORGOTTEN = "a detached ctx was forgotten"
LATE = "took longer than its timeout"


class Answerer:
    """A thread that does with each ctx what `then` says, in the order in which they come."""

    def __init__(self, then) -> None:
        self.then = then
        self.waiting: queue.SimpleQueue[RequestCtx | None] = queue.SimpleQueue()
        self.raised: list[BaseException] = []
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self) -> None:
        while ctx := self.waiting.get():
            try:
                self.then(ctx)
            except BaseException as error:
                self.raised.append(error)
            del ctx

    def __call__(self, ctx: RequestCtx) -> None:
        ctx.detach()
        self.waiting.put(ctx)

    def __enter__(self) -> "Answerer":
        return self

    def __exit__(self, *_: object) -> None:
        self.waiting.put(None)
        self.thread.join()


def path_back(ctx: RequestCtx) -> None:
    ctx.write(ctx.path)
    ctx.complete()


@pytest.mark.parametrize("config", [{}, {"metrics_path": "/metrics"}, {"handler_timeout": 20.0}])
def test_another_thread_answers(serve: Serve, config: dict) -> None:
    with Answerer(path_back) as answers:
        server = serve(answers, workers=2, reactors=1, **config)
        wire = server.connect()
        assert [wire.get(f"/{n}").body for n in range(50)] == [b"/%d" % n for n in range(50)]
        wait_until(lambda: server.stats()["requests"] == 50, "the last to come home")


def test_the_worker_is_free_meanwhile(serve: Serve) -> None:
    """As many calls are under way as connections, with one worker."""
    kept: queue.SimpleQueue[RequestCtx] = queue.SimpleQueue()

    def handler(ctx: RequestCtx) -> None:
        ctx.detach()
        kept.put(ctx)

    server = serve(handler, workers=2, reactors=1)
    wires = [server.connect().send(request("GET", f"/{n}")) for n in range(40)]
    ctxs = [kept.get() for _ in wires]
    for ctx in ctxs:
        path_back(ctx)
    assert [wire.read().body for wire in wires] == [b"/%d" % n for n in range(40)]


def test_it_may_be_completed_before_its_handler_returns(serve: Serve) -> None:
    """By the handler, and by another thread while the handler blocks: then the reply leaves when that is over."""
    completed = threading.Event()

    def complete(ctx: RequestCtx) -> None:
        path_back(ctx)
        completed.set()

    with Answerer(complete) as answers:
        def handler(ctx: RequestCtx) -> None:
            if ctx.path == "/itself":
                ctx.detach()
                path_back(ctx)
            else:
                answers(ctx)
                wait_for(completed)
                completed.clear()

        server = serve(handler, workers=2, reactors=1)
        wire = server.connect()
        for _ in range(20):
            assert wire.get("/itself").body == b"/itself"
            assert wire.get("/other").body == b"/other"


def test_it_is_completed_once(serve: Serve) -> None:
    def twice(ctx: RequestCtx) -> None:
        path_back(ctx)
        ctx.complete()

    with Answerer(twice) as answers:
        server = serve(answers, workers=2, reactors=1)
        assert server.get("/a").body == b"/a"
        wait_until(lambda: answers.raised, "the second complete")
        assert isinstance(answers.raised[0], ContextExpired)


def test_of_many_that_complete_it_one_does(serve: Serve) -> None:
    """And nobody who writes meanwhile reaches the reply of another."""
    kept: queue.SimpleQueue[RequestCtx] = queue.SimpleQueue()
    won: list[int] = []

    def handler(ctx: RequestCtx) -> None:
        ctx.detach()
        ctx.write(ctx.path)
        kept.put(ctx)

    def race(ctx: RequestCtx, start: threading.Barrier, number: int) -> None:
        start.wait()
        with suppress(ContextExpired):
            if number == 3:
                while True:
                    ctx.set_body(ctx.path)
            ctx.complete()
            won.append(number)

    server = serve(handler, workers=2, reactors=1)
    wires = [server.connect() for _ in range(4)]
    for n in range(60):
        for k, wire in enumerate(wires):
            wire.send(request("GET", f"/{n}-{k}"))
        for _ in wires:
            ctx, start = kept.get(), threading.Barrier(4)
            racers = [threading.Thread(target=race, args=(ctx, start, number)) for number in range(4)]
            for racer in racers:
                racer.start()
            for racer in racers:
                racer.join()
        assert [wire.read().body for wire in wires] == [b"/%d-%d" % (n, k) for k in range(4)]
    assert len(won) == 240


def test_only_a_detached_ctx_is_completed(serve: Serve) -> None:
    def handler(ctx: RequestCtx) -> None:
        with pytest.raises(RuntimeError, match="was not detached"):
            ctx.complete()
        ctx.detach()
        with pytest.raises(RuntimeError, match="before it detaches"):
            ctx.detach()
        ctx.write("right")
        ctx.complete()
        with pytest.raises(ContextExpired):
            ctx.detach()

    assert serve(handler, workers=2, reactors=1).get().body == b"right"


def test_hooks_cannot_detach(serve: Serve) -> None:
    def hook(ctx: RequestCtx, error: BadRequest | None = None) -> None:
        with pytest.raises(RuntimeError, match="for a handler"):
            ctx.detach()

    server = serve(lambda ctx: ctx.write("handled"), on_headers=hook, error_handler=hook, workers=2, reactors=1)
    assert server.get().body == b"handled"
    assert server.exchange(b"nonsense\r\n\r\n").status == 400


@pytest.mark.parametrize("use", [
    lambda ctx: ctx.stream([b"x"]), lambda ctx: ctx.early_hints("</a>"), lambda ctx: ctx.timeout_error(),
    lambda ctx: ctx.hijack(print),
])
def test_what_a_detached_ctx_cannot(serve: Serve, use) -> None:
    def refused(ctx: RequestCtx) -> None:
        with pytest.raises(RuntimeError, match="detach"):
            use(ctx)
        path_back(ctx)

    with Answerer(refused) as answers:
        assert serve(answers, workers=2, reactors=1).get("/a").body == b"/a"
        assert not answers.raised


def test_an_error_is_answered_as_a_handlers(serve: Serve) -> None:
    serve.expect_error("on purpose")

    def fails(ctx: RequestCtx) -> None:
        ctx.write("what nobody sees")
        ctx.complete(BadRequest("so bad", 422) if ctx.path == "/bad" else RuntimeError("on purpose"))

    with Answerer(fails) as answers:
        server = serve(answers, workers=2, reactors=1)
        wire = server.connect()
        bad, broken = wire.get("/bad"), wire.get("/broken")
        assert (bad.status, bad.body) == (422, b"so bad")
        assert (broken.status, broken.body) == (500, b"Internal Server Error")
    assert len(serve.errors()) == 1


def test_a_handler_that_fails_behind_detach_is_answered_with_500(serve: Serve) -> None:
    serve.expect_error("on purpose")

    def handler(ctx: RequestCtx) -> None:
        ctx.detach()
        raise RuntimeError("on purpose")

    wire = serve(handler, workers=2, reactors=1).connect()
    assert [wire.get().status for _ in range(2)] == [500, 500]


def test_a_handler_that_fails_behind_its_reply_changes_nothing(serve: Serve) -> None:
    serve.expect_error("behind its reply")

    def handler(ctx: RequestCtx) -> None:
        ctx.detach()
        path_back(ctx)
        raise RuntimeError("on purpose")

    wire = serve(handler, workers=2, reactors=1).connect()
    assert [wire.get("/a").body for _ in range(2)] == [b"/a", b"/a"]


def test_one_that_is_forgotten_is_answered_with_500(serve: Serve) -> None:
    serve.expect_error(FORGOTTEN)

    def handler(ctx: RequestCtx) -> None:
        ctx.detach()
        ctx.set_body(b"x" * 100_000)
        if ctx.path == "/cycle":
            ctx.user_values["itself"] = ctx

    server = serve(handler, workers=2, reactors=1)
    wire = server.connect()
    assert (wire.get().status, wire.get().status) == (500, 500)
    wire.send(request("GET", "/cycle"))
    wait_until(lambda: server.stats()["requests"] == 2 and gc.collect() >= 0 and not wire.silent(), "the collector")
    assert wire.read().body == b"Internal Server Error"
    wait_until(serve.errors, "the report")


@pytest.mark.parametrize("size", [0, 100, 30_000, 3_000_000])
def test_bodies_of_every_size(serve: Serve, size: int) -> None:
    def echo(ctx: RequestCtx) -> None:
        if ctx.path == "/written":
            ctx.write(ctx.body)
        else:
            ctx.set_body(ctx.body)
        ctx.complete()

    body = random.Random(size).randbytes(size)
    with Answerer(echo) as answers:
        server = serve(answers, workers=2, reactors=1)
        wire = server.connect()
        for path in ["/written", "/set"] * 3:
            assert wire.send(request("POST", path, body=body)).read().body == body


def test_a_body_that_was_streamed_in_and_its_trailers(serve: Serve) -> None:
    """They are the call's own, whatever its worker reads next."""
    def answer(ctx: RequestCtx) -> None:
        ctx.write(f"{ctx.body.decode()} {ctx.trailers['x-end']}")
        ctx.complete()

    with Answerer(answer) as answers:
        def handler(ctx: RequestCtx) -> None:
            assert ctx.body
            answers(ctx)

        server = serve(handler, stream_request_body=True, workers=2, reactors=1)
        wires = [server.connect() for _ in range(3)]
        for n in range(20):
            for k, wire in enumerate(wires):
                wire.send(request("POST", "/", "Transfer-Encoding: chunked"),
                          b"4\r\nbody\r\n0\r\nX-End: %d-%d\r\n\r\n" % (n, k))
            assert [wire.read().body for wire in wires] == [b"body %d-%d" % (n, k) for k in range(3)]


def test_head_has_no_body(serve: Serve) -> None:
    with Answerer(path_back) as answers:
        wire = serve(answers, workers=2, reactors=1).connect()
        reply = wire.send(request("HEAD", "/four")).read(head=True)
        assert (reply.get("Content-Length"), wire.get("/a").body) == ("5", b"/a")


def test_pipelined_requests_wait_for_their_turn(serve: Serve) -> None:
    with Answerer(path_back) as answers:
        wire = serve(answers, workers=2, reactors=1).connect()
        wire.send(*[request("GET", f"/{n}") for n in range(100)])
        assert [wire.read().body for _ in range(100)] == [b"/%d" % n for n in range(100)]


def test_a_client_that_is_gone_is_no_trouble(serve: Serve) -> None:
    held = threading.Event()

    def late(ctx: RequestCtx) -> None:
        wait_for(held)
        ctx.set_body(b"x" * 3_000_000)
        ctx.complete()

    with Answerer(late) as answers:
        server = serve(answers, workers=2, reactors=1)
        for _ in range(3):
            server.connect().send(request()).reset()
        wait_until(lambda: server.stats()["buffers"] == 6, "three requests")
        held.set()
        wait_until(lambda: server.stats()["connections"] == 0, "the ends")
        assert not answers.raised


def test_handler_timeout_runs_on(serve: Serve) -> None:
    serve.expect_error(LATE)
    held = threading.Event()

    def late(ctx: RequestCtx) -> None:
        wait_for(held)
        with pytest.raises(ContextExpired):
            ctx.write("too late")
        ctx.complete()

    with Answerer(late) as answers:
        server = serve(answers, workers=2, reactors=1, handler_timeout=0.05)
        wire = server.connect().send(request())
        assert wire.read().status == 504 and wire.ended()
        wire.close()
        held.set()
        wait_until(lambda: server.stats()["connections"] == 0, "the slot")
        assert not answers.raised and server.stats()["timed_out_handler"] == 1
    assert any("no thread is known" in message for message in serve.errors())


def test_a_limit_of_its_own_runs_on(serve: Serve) -> None:
    serve.expect_error(LATE)
    held = threading.Event()

    def late(ctx: RequestCtx) -> None:
        wait_for(held)
        ctx.complete()

    with Answerer(late) as answers:
        server = serve(timeout(answers, 0.05, 503, "not today"), workers=2, reactors=1)
        assert server.get().body == b"not today\n"
        held.set()
        wait_until(lambda: server.stats()["connections"] == 0, "the slot")


def test_a_limit_of_its_own_ends_with_the_reply(serve: Serve) -> None:
    """The next request of the connection has none."""
    serve.expect_error(LATE)
    patient, held = threading.Event(), threading.Event()
    router = Router()
    with Answerer(path_back) as answers:
        router.get("/quick", timeout(answers, 0.2))

        @router.get("/patient")
        def waits(ctx: RequestCtx) -> None:
            wait_for(patient)
            ctx.write("served")

        router.get("/held", timeout(lambda ctx: wait_for(held), 0.4))
        server = serve(router, workers=4, reactors=1)
        wire = server.connect()
        assert wire.get("/quick").body == b"/quick"
        wire.send(request("GET", "/patient"))
        with server.connect() as other:
            # Told behind the moment at which the limit of the first would have been up.
            assert other.send(request("GET", "/held")).read().status == 504
        patient.set()
        held.set()
        assert wire.read().body == b"served"


def test_a_stop_waits_for_it(serve: Serve) -> None:
    kept: queue.SimpleQueue[RequestCtx] = queue.SimpleQueue()

    def handler(ctx: RequestCtx) -> None:
        ctx.detach()
        kept.put(ctx)

    server = serve(handler, workers=2, reactors=1)
    wire = server.connect().send(request("GET", "/last"))
    ctx = kept.get()
    stopping = threading.Thread(target=server.shutdown)
    stopping.start()
    wait_until(server.refuses, "the listeners to close")
    assert ctx.done.is_set()
    path_back(ctx)
    reply = wire.read()
    assert (reply.body, reply.closes) == (b"/last", True)
    stopping.join()
    assert server.clean


def test_a_stop_that_does_not_wait_cuts_it(serve: Serve) -> None:
    kept: queue.SimpleQueue[RequestCtx] = queue.SimpleQueue()

    def handler(ctx: RequestCtx) -> None:
        ctx.detach()
        kept.put(ctx)

    server = serve(handler, workers=2, reactors=1)
    wires = [server.connect().send(request()) for _ in range(3)]
    ctxs = [kept.get() for _ in wires]
    assert not server.shutdown(0)
    assert all(wire.gone() for wire in wires)
    for ctx in ctxs:
        ctx.set_body(b"x" * 1_000_000)
        ctx.complete()
        with pytest.raises(ContextExpired):
            ctx.complete()


def test_many_at_once_by_many(serve: Serve, chance: random.Random) -> None:
    """Handlers that return at once and late, completers that are fast and slow: each request has its own reply."""
    answerers = [Answerer(path_back) for _ in range(4)]
    late = threading.Event()
    turn = [chance.choice(["inside", "late", "other", "other", "fails"]) for _ in range(997)]

    def handler(ctx: RequestCtx) -> None:
        number = int(ctx.path[1:])
        kind = turn[number % len(turn)]
        if kind == "inside":
            ctx.detach()
            path_back(ctx)
        elif kind == "fails":
            ctx.detach()
            raise BadRequest("on purpose")
        else:
            answerers[number % 4](ctx)
            if kind == "late":
                late.wait(0.0005)

    server = serve(handler, workers=4, reactors=1)
    replies: dict[int, Reply] = {}

    def client(first: int) -> None:
        wire = server.connect()
        for start in range(first, first + 250, 10):
            wire.send(*[request("GET", f"/{n}") for n in range(start, start + 10)])
            for n in range(start, start + 10):
                replies[n] = wire.read()

    clients = [threading.Thread(target=client, args=(1000 * k,)) for k in range(8)]
    for thread in clients:
        thread.start()
    for thread in clients:
        thread.join()
    assert len(replies) == 2000
    for n, reply in replies.items():
        expected = b"on purpose" if turn[n % len(turn)] == "fails" else b"/%d" % n
        assert reply.body == expected, n
    for answerer in answerers:
        with answerer:
            pass
        assert not answerer.raised
    wait_until(lambda: server.stats()["requests"] == 2000, "the last to come home")
    assert Counter(reply.status for reply in replies.values())[200] == server.stats()["statuses"]["2xx"]


def test_a_limit_that_is_met_off_lease_and_detached_at_once(serve: Serve) -> None:
    """Nobody but the wish tells the holder of it, and by then the worker has gone on."""
    serve.expect_error(LATE)
    pause, held = threading.Event(), threading.Event()

    def late(ctx: RequestCtx) -> None:
        wait_for(held)
        ctx.complete()

    with Answerer(late) as answers:
        limited = timeout(answers, 0.05, message="told")

        def behind_others(ctx: RequestCtx) -> None:
            pause.wait(0.01)
            limited(ctx)

        server = serve(behind_others, workers=4, reactors=1, queue_timeout=60.0)
        for _ in range(3):
            assert server.get().body == b"told\n"
        held.set()
        wait_until(lambda: server.stats()["connections"] == 0, "the slots")


def test_the_end_of_a_ctx_stops_nobody(serve: Serve) -> None:
    """What goes with it may block: the lease is seized, and others are served."""
    serve.expect_error(FORGOTTEN)
    inside, go = threading.Event(), threading.Event()

    class Slow:
        def __del__(self) -> None:
            inside.set()
            wait_for(go)

    def handler(ctx: RequestCtx) -> None:
        if ctx.path == "/slow":
            ctx.user_values["slow"] = Slow()
            ctx.detach()
        else:
            ctx.write("served")

    server = serve(handler, workers=4, reactors=1)
    wire = server.connect().send(request("GET", "/slow"))
    wait_for(inside)
    assert server.get().body == b"served"
    go.set()
    assert wire.read().status == 500


def test_files_of_a_forgotten_ctx_end(serve: Serve) -> None:
    serve.expect_error(FORGOTTEN)
    kept = []

    def handler(ctx: RequestCtx) -> None:
        kept.append(ctx.files["a"])
        ctx.detach()

    form = (b'--x\r\nContent-Disposition: form-data; name="a"; filename="b"\r\n\r\nc\r\n--x--\r\n')
    server = serve(handler, workers=2, reactors=1)
    raw = request("POST", "/", "Content-Type: multipart/form-data; boundary=x", body=form)
    assert server.exchange(raw).status == 500
    with pytest.raises(ContextExpired):
        kept[0].read()
