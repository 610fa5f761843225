"""The handler's world: what it may raise and return, its thread, its context, its process.

Knows: handlers, threads, contextvars, the logger fastserve.error. Never sees: bytes of a connection, but for the
replies; which worker serves a request is never assumed.
"""

import contextvars
import logging
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from conftest import PATIENCE, Serve, wait_for

import fastserve
from fastserve import RequestCtx, Server, StartError

ROOT = os.path.dirname(os.path.dirname(fastserve.__file__))
VALUE: contextvars.ContextVar[str] = contextvars.ContextVar("VALUE", default="unset")


class Odd(BaseException):
    """Neither an Exception nor one that anybody expects."""


def hello(ctx: RequestCtx) -> None:
    ctx.write("hello")


# What a handler raises and returns


@pytest.mark.parametrize(
    "error", [ValueError, Odd, SystemExit, KeyboardInterrupt, GeneratorExit, StopIteration, StopAsyncIteration]
)
def test_whatever_a_handler_raises_is_500_and_logged_once(serve: Serve, error: type[BaseException]) -> None:
    def handler(ctx: RequestCtx) -> None:
        if ctx.path == "/raise":
            ctx.write("a reply that was begun")
            ctx.set_header("X-Begun", "yes")
            raise error(7)
        ctx.write("hello")

    serve.expect_error("POST /raise")
    server = serve(handler, workers=2, reactors=1)
    wire = server.connect()
    wire.send(b"POST /raise HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc")
    got = wire.read()
    assert (got.status, got.get("X-Begun"), got.get("Connection")) == (500, None, None)
    assert b"begun" not in got.body
    for _ in range(5):
        assert wire.get("/").body == b"hello"
    [text] = serve.log.texts()
    assert text.startswith(f"POST /raise failed: {error.__name__}")
    stats = server.stats()
    assert (stats["statuses"]["5xx"], stats["statuses"]["2xx"], stats["workers"]) == (1, 5, 2)


@pytest.mark.parametrize("answer", ["text", b"bytes", 0, False, ("a",)])
def test_a_return_value_is_a_type_error(serve: Serve, answer: object) -> None:
    serve.expect_error(f"TypeError: .*None.*{type(answer).__name__}")
    server = serve(lambda ctx: answer, workers=2, reactors=1)     # type: ignore[arg-type, return-value]
    wire = server.connect()
    assert [wire.get("/").status for _ in range(2)] == [500, 500]
    assert len(serve.errors()) == 2


@pytest.mark.parametrize("what", ["text", None, 3])
def test_what_cannot_be_called_is_no_handler(what: object) -> None:
    with pytest.raises(TypeError):
        Server(what)        # type: ignore[arg-type]


def test_an_error_while_logging_an_error_harms_nobody(serve: Serve) -> None:
    class Broken(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise RuntimeError("the log is broken")

    def handler(ctx: RequestCtx) -> None:
        if ctx.path == "/raise":
            raise ValueError("wrong")
        ctx.write("hello")

    serve.expect_error("GET /raise")
    logger, broken = logging.getLogger("fastserve.error"), Broken()
    server = serve(handler, workers=2, reactors=1)
    wire = server.connect()
    logger.addHandler(broken)
    try:
        assert wire.get("/raise").status == 500
    finally:
        logger.removeHandler(broken)
    assert wire.get("/raise").status == 500
    assert wire.get("/").body == b"hello"


def test_an_error_in_each_of_many_pipelined_requests(serve: Serve) -> None:
    def handler(ctx: RequestCtx) -> None:
        if ctx.conn_request_num % 2:
            raise ValueError(ctx.path)
        ctx.write(ctx.path)

    serve.expect_error("GET /[0-9]+ .*ValueError: /[0-9]+")
    wire = serve(handler).connect()
    wire.send(*(b"GET /%d HTTP/1.1\r\nHost: x\r\n\r\n" % n for n in range(20)))
    for n in range(20):
        got = wire.read()
        assert (got.status, got.body) == ((500, got.body) if n % 2 == 0 else (200, b"/%d" % n))
    assert len(serve.errors()) == 10


# Threads


def test_workers_are_named_daemon_threads_with_a_life_of_their_own(serve: Serve) -> None:
    local = threading.local()
    both = threading.Barrier(2)

    def handler(ctx: RequestCtx) -> None:
        if ctx.path == "/both":
            both.wait(PATIENCE)
        local.calls = getattr(local, "calls", 0) + 1
        me = threading.current_thread()
        ctx.write(f"{me.name} {me.daemon} {me is threading.main_thread()} {local.calls}")

    server = serve(handler, workers=2, reactors=1)
    one, other = server.connect(), server.connect()
    for wire in (one, other):
        wire.send(b"GET /both HTTP/1.1\r\nHost: x\r\n\r\n")
    seen: dict[str, int] = {}
    answers = [one.read().body, other.read().body, *(one.get("/").body for _ in range(20))]
    for body in answers:
        name, daemon, main, calls = body.decode().split()
        assert (daemon, main) == ("True", "False")
        assert name.startswith("fastserve-worker-")
        seen[name] = seen.get(name, 0) + 1
        assert int(calls) == seen[name], "a thread-local did not last"
    assert len(seen) == 2


def test_on_worker_start_runs_once_in_each_worker_before_its_first_request(serve: Serve) -> None:
    lock, started = threading.Lock(), []
    local = threading.local()
    both = threading.Barrier(3)

    def begin() -> None:
        with lock:
            started.append(threading.current_thread().name)
        local.ready = True

    def handler(ctx: RequestCtx) -> None:
        assert local.ready
        both.wait(PATIENCE)
        ctx.write(threading.current_thread().name)

    server = serve(handler, workers=3, reactors=1, on_worker_start=begin)
    wires = [server.connect() for _ in range(3)]
    names = set()
    for _ in range(3):
        for wire in wires:
            wire.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        names.update(wire.read().body.decode() for wire in wires)
    assert sorted(started) == sorted(names)
    assert len(names) == 3


# Contexts


def test_each_call_has_a_fresh_copy_of_the_context_of_start(serve: Serve) -> None:
    def handler(ctx: RequestCtx) -> None:
        before = VALUE.get()
        VALUE.set("of a handler")
        ctx.write(before)

    token = VALUE.set("of start")
    server = serve(handler, workers=2, reactors=1)
    VALUE.reset(token)
    wire = server.connect()
    assert [wire.get("/").body for _ in range(10)] == [b"of start"] * 10
    assert VALUE.get() == "unset"


def test_an_empty_context_is_as_good_as_a_fresh_one(serve: Serve) -> None:
    """Started in a context without variables, where a worker may use an empty copy again."""
    other: contextvars.ContextVar[str] = contextvars.ContextVar("other", default="unset")
    kept: list[contextvars.Token[str]] = []

    def handler(ctx: RequestCtx) -> None:
        ctx.write(f"{VALUE.get()} {other.get()}")
        if ctx.path == "/set":
            VALUE.set("of a handler")
        elif ctx.path == "/keep":
            kept.append(other.set("of a handler"))
            other.reset(kept[0])
        elif ctx.path == "/reset":
            other.reset(other.set("of a handler"))

    wire = contextvars.Context().run(serve, handler, workers=2, reactors=1).connect()
    for path in ["/", "/set", "/", "/reset", "/keep", "/", "/set", "/set", "/"]:
        assert wire.get(path).body == b"unset unset"
        kept.clear()


def test_a_context_outlives_an_exception(serve: Serve) -> None:
    def handler(ctx: RequestCtx) -> None:
        before = VALUE.get()
        VALUE.set("of a handler")
        raise ValueError(before)

    serve.expect_error("ValueError: unset")
    wire = serve(handler, workers=2, reactors=1).connect()
    for _ in range(3):
        assert wire.get("/").status == 500


def test_what_a_context_held_is_let_go_with_the_call(serve: Serve) -> None:
    gone = threading.Event()

    class Held:
        def __del__(self) -> None:
            gone.set()

    held: contextvars.ContextVar[Held] = contextvars.ContextVar("held")

    def handler(ctx: RequestCtx) -> None:
        held.set(Held())

    assert serve(handler).get("/").status == 200
    wait_for(gone, "the end of a value in a context")


# The process


def test_start_installs_nothing(serve: Serve) -> None:
    def look() -> list[object]:
        wakeup = signal.set_wakeup_fd(-1)
        if wakeup >= 0:
            signal.set_wakeup_fd(wakeup)
        handlers = [signal.getsignal(number) for number in signal.valid_signals()]
        return [handlers, wakeup, sys.getswitchinterval(), sys.excepthook, threading.excepthook, os.getcwd(),
                signal.pthread_sigmask(signal.SIG_BLOCK, [])]

    before = look()
    server = serve(hello)
    assert look() == before
    assert server.get("/").body == b"hello"
    assert look() == before
    server.shutdown()
    assert look() == before


def test_workers_block_no_signal(serve: Serve) -> None:
    def handler(ctx: RequestCtx) -> None:
        ctx.write(str(sorted(signal.pthread_sigmask(signal.SIG_BLOCK, []))))

    here = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    assert serve(handler).get("/").body == str(sorted(here)).encode()


def test_several_servers_in_one_process(serve: Serve) -> None:
    def named(name: str) -> fastserve.server.Handler:
        return lambda ctx: ctx.write(f"{name} {ctx.conn_id}")

    servers = {name: serve(named(name), workers=3, name=name) for name in ("one", "two", "three")}
    for _ in range(5):
        for name, server in servers.items():
            got = server.get("/")
            assert got.get("Server") == name
            assert got.body.split()[0] == name.encode()
    assert servers["two"].shutdown()
    assert servers["one"].get("/").body.startswith(b"one ")
    assert [server.stats()["requests"] for server in servers.values()] == [6, 5, 5]


def test_a_handler_may_ask_another_server_of_the_process(serve: Serve) -> None:
    back = serve(hello)

    def handler(ctx: RequestCtx) -> None:
        ctx.write(b"from behind: " + back.exchange(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").body)

    assert serve(handler).get("/").body == b"from behind: hello"


def test_a_handler_may_ask_its_own_server(serve: Serve) -> None:
    def handler(ctx: RequestCtx) -> None:
        ctx.write("hello" if ctx.path == "/" else b"I say " + server.get("/").body)

    server = serve(handler, workers=2, reactors=1)
    assert [server.get("/self").body for _ in range(5)] == [b"I say hello"] * 5


def test_start_and_shutdown_off_the_main_thread(serve: Serve) -> None:
    bodies: list[bytes] = []

    def life() -> None:
        server = serve(hello)
        bodies.append(server.get("/").body)
        server.shutdown()

    thread = threading.Thread(target=life)
    thread.start()
    thread.join(PATIENCE)
    assert bodies == [b"hello"]


def test_a_handler_cannot_wait_for_the_end_of_its_own_server(serve: Serve) -> None:
    def handler(ctx: RequestCtx) -> None:
        with pytest.raises(RuntimeError):
            server.server.shutdown(0)
        ctx.write("still here")

    server = serve(handler)
    wire = server.connect()
    assert [wire.get("/").body for _ in range(3)] == [b"still here"] * 3


def test_a_handler_starts_threads_and_they_do_not_reach_the_context_afterwards(serve: Serve) -> None:
    over, tried, seen = threading.Event(), threading.Event(), []

    def later(ctx: RequestCtx) -> None:
        over.wait(PATIENCE)
        try:
            seen.append(ctx.path)
        except fastserve.ContextExpired as error:
            seen.append(type(error).__name__)
        tried.set()

    def handler(ctx: RequestCtx) -> None:
        if ctx.path == "/first":
            threading.Thread(target=later, args=(ctx,)).start()
        ctx.write(ctx.path)

    wire = serve(handler, workers=2, reactors=1).connect()
    assert wire.get("/first").body == b"/first"
    assert wire.get("/second").body == b"/second"
    over.set()
    wait_for(tried)
    assert seen == ["ContextExpired"]


@pytest.mark.parametrize("what", ["get_ident", "_allocate_lock", "_start_new_thread", "_start_joinable_thread"])
def test_patched_threads_are_refused_in_one_line(what: str, tmp_path: Path) -> None:
    """As gevent and eventlet patch them; in a process of its own, because threads are in use here."""
    text = f"""
import threading
from pathlib import Path
from fastserve import Server, StartError
def patched(*args, **kwargs): raise SystemError("a greenlet")
real = getattr(threading, {what!r}, None)
if real is None:
    raise SystemExit(9)
setattr(threading, {what!r}, patched)
try:
    Server(lambda ctx: None).start("127.0.0.1:0")
except StartError as error:
    print(error)
finally:
    setattr(threading, {what!r}, real)
"""
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=PATIENCE,
                          env=os.environ | {"PYTHONPATH": ROOT}, cwd=tmp_path)
    if done.returncode == 9:
        pytest.skip(f"threading has no {what} in this Python")
    assert (done.returncode, done.stderr) == (0, "")
    [line] = done.stdout.splitlines()
    assert "threading" in line and "patched" in line


def test_a_start_that_failed_can_be_tried_elsewhere(serve: Serve) -> None:
    server = serve(hello)
    other = Server(hello)
    with pytest.raises(StartError):
        other.start(server.address)
    assert serve(hello).get("/").body == b"hello"


@pytest.mark.skipif("LD_PRELOAD" in os.environ, reason="something is loaded into this process")
def test_a_start_for_which_there_are_no_threads_leaves_its_port(tmp_path: Path) -> None:
    """However many there are for, and of whichever kind."""
    text = """
import os, resource, time
from fastserve import Server, StartError

MIB = 1 << 20
before, most = resource.getrlimit(resource.RLIMIT_AS)

class Poor(Server):
    def _hand_over(self, *listening):
        super()._hand_over(*listening)
        with open("/proc/self/statm") as file:
            size = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + room * MIB, most))

def sockets():
    links = []
    for name in os.listdir("/proc/self/fd"):
        try:
            links.append(os.readlink("/proc/self/fd/" + name))
        except OSError:
            pass
    return [link for link in links if link.startswith(("socket", "anon_inode"))]

for room in range(64):
    try:
        Poor(lambda ctx: None, reactors=4, workers=5).start("127.0.0.1:0")
    except StartError as error:
        resource.setrlimit(resource.RLIMIT_AS, (before, most))
        print(error)
        until = time.monotonic() + 10
        while sockets():
            if time.monotonic() > until:
                raise SystemExit(f"{room}: {sockets()}")
            time.sleep(0.01)
    else:
        break
print(len(sockets()))
os._exit(0)
"""
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=PATIENCE,
                          env=os.environ | {"PYTHONPATH": ROOT}, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    *said, left = done.stdout.splitlines()
    assert any("for a reactor" in line for line in said)
    assert any("new thread" in line for line in said)
    assert left != "0"
