"""How a server comes and goes: addresses, signals, drains, the end of the process.

Knows: processes that run a few lines of Python, what they print, their exit status. Never sees: how long
something took: a wait is for something that happens, and a limit is there to end what hangs.
"""

import contextlib
import gc
import math
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import Empty, SimpleQueue
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import Running, Serve, request, wait_for, wait_until

import fastserve
from fastserve import RequestCtx, Server, StartError

ROOT = str(Path(fastserve.__file__).parents[1])
HANG_LIMIT = 30  # seconds; a socket or a process that is silent for so long has failed
FREE_THREADED = not getattr(sys, "_is_gil_enabled", lambda: True)()
LEAVE_LIMIT = 10  # seconds; a process that is to end "at once" ends within this

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"

PRELUDE = """
import ctypes, os, signal, socket, sys, threading, time
from fastserve import Server

def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())     # whole lines, from any thread

def wait():
    say("called")
    sys.stdin.readline()

def forever():
    say("called")
    threading.Event().wait()

def compute():
    say("called")
    while True:
        pass

def hold_the_gil():
    # A signal that this thread took would end the sleep.
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT, signal.SIGTERM])
    say("called")
    ctypes.PyDLL(None).sleep(600)

def ready(server):
    say("ready", *server.addresses)

def hello(ctx):
    ctx.write("hello")
"""


class Script:
    """A process that runs Python; its lines are read as they come."""

    def __init__(self, text: str, **environment: str) -> None:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("FASTSERVE_")}
        self.popen = subprocess.Popen(
            [sys.executable, "-c", PRELUDE + textwrap.dedent(text)],
            env=kept | {"PYTHONPATH": ROOT, "PYTHONSAFEPATH": "1", "PYTHONDONTWRITEBYTECODE": "1"} | environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.lines: SimpleQueue[str | None] = SimpleQueue()
        self.errors = ""
        self.readers = [threading.Thread(target=read) for read in (self._read_lines, self._read_errors)]
        for reader in self.readers:
            reader.start()

    def _read_lines(self) -> None:
        assert self.popen.stdout is not None
        for line in self.popen.stdout:
            self.lines.put(line.rstrip("\n"))
        self.lines.put(None)

    def _read_errors(self) -> None:
        assert self.popen.stderr is not None
        self.errors = self.popen.stderr.read()

    def line(self) -> str:
        """The next line of stdout."""
        try:
            line = self.lines.get(timeout=HANG_LIMIT)
        except Empty:
            pytest.fail("the script hangs")
        if line is None:
            self.popen.wait(HANG_LIMIT)
            self.readers[1].join(HANG_LIMIT)
            pytest.fail(f"the script ended with {self.popen.returncode}: {self.errors}")
        return line

    def addresses(self) -> list[str]:
        """What `ready` printed."""
        word, *addresses = self.line().split()
        assert word == "ready"
        return addresses

    def answer(self) -> None:
        """One line on stdin, which lets a `wait` return."""
        assert self.popen.stdin is not None
        self.popen.stdin.write("\n")
        self.popen.stdin.flush()

    def status(self, limit: float = HANG_LIMIT) -> int:
        try:
            return self.popen.wait(limit)
        except subprocess.TimeoutExpired:
            pytest.fail("the process does not end")

    def rest(self) -> list[str]:
        """Lines that were not read yet, after the end."""
        rest = []
        while (line := self.lines.get(timeout=HANG_LIMIT)) is not None:
            rest.append(line)
        return rest

    def close(self) -> None:
        self.popen.kill()
        self.popen.wait()
        for reader in self.readers:
            reader.join(HANG_LIMIT)
        for pipe in (self.popen.stdin, self.popen.stdout, self.popen.stderr):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


Run = Callable[..., Script]


@pytest.fixture
def script() -> Iterator[Run]:
    """Runs `text` behind PRELUDE in a process of its own; whatever still runs in the end is killed."""
    running: list[Script] = []

    def run(text: str, **environment: str) -> Script:
        running.append(Script(text, **environment))
        return running[-1]

    yield run
    for one in running:
        one.close()


def connect(address: str) -> socket.socket:
    if address.startswith("unix:"):
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(HANG_LIMIT)
        client.connect(address.removeprefix("unix:"))
        return client
    host, _, port = address.rpartition(":")
    return socket.create_connection((host.strip("[]"), int(port)), HANG_LIMIT)


def reply(client: socket.socket) -> bytes:
    """One reply with a Content-Length, whole; "" at the end of the connection."""
    got = b""
    while b"\r\n\r\n" not in got:
        more = client.recv(65536)
        if not more:
            assert not got, got
            return b""
        got += more
    length = re.search(rb"\r\nContent-Length: (\d+)\r\n", got)
    assert length, got
    whole = got.index(b"\r\n\r\n") + 4 + int(length[1])
    while len(got) < whole:
        more = client.recv(65536)
        assert more, got
        got += more
    return got


def get(address: str) -> bytes:
    with connect(address) as client:
        client.sendall(GET)
        return reply(client)


def ended(client: socket.socket) -> bool:
    """Waits for the end of a connection on which nothing comes any more."""
    try:
        return client.recv(1) == b""
    except ConnectionResetError:
        return True


def hello(ctx: fastserve.RequestCtx) -> None:
    ctx.write("hello")


# Off the end of main


def test_falling_off_the_end_of_main_is_status_0_while_handlers_sleep(script: Run) -> None:
    processes = [script(f"""
        asleep = threading.Semaphore(0)
        def handler(ctx):
            asleep.release()
            time.sleep(60)
        server = Server(handler, workers=4, reactors=1).start("127.0.0.1:0")
        host, _, port = server.addresses[0].rpartition(":")
        clients = [socket.create_connection((host, int(port))) for _ in range({busy})]
        for client in clients:
            client.sendall(b"GET / HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n")
        for _ in clients:
            asleep.acquire()
        say("end")
    """) for busy in (0, 1, 4)]
    for process in processes:
        assert process.line() == "end"
    for process in processes:
        assert process.status(LEAVE_LIMIT) == 0
        process.readers[1].join(HANG_LIMIT)
        assert process.errors == ""


def test_the_status_of_the_program_is_kept(script: Run) -> None:
    process = script("""
        Server(hello).start("127.0.0.1:0")
        sys.exit(3)
    """)
    assert process.status(LEAVE_LIMIT) == 3


def test_an_exception_in_main_ends_the_program(script: Run) -> None:
    process = script("""
        server = Server(hello).start("127.0.0.1:0")
        raise RuntimeError("wrong")
    """)
    assert process.status(LEAVE_LIMIT) == 1
    process.readers[1].join(HANG_LIMIT)
    assert process.errors.splitlines()[-1] == "RuntimeError: wrong"


# Signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_drains_and_what_runs_is_answered(script: Run, number: signal.Signals) -> None:
    process = script("""
        say(Server(lambda ctx: wait(), workers=4).serve("127.0.0.1:0", ready=ready))
    """)
    [address] = process.addresses()
    with connect(address) as idle, connect(address) as client:
        client.sendall(GET)
        assert process.line() == "called"
        process.popen.send_signal(number)
        assert ended(idle)          # the drain has begun
        process.answer()
        got = reply(client)
        assert got.startswith(b"HTTP/1.1 200 ")
        assert b"\r\nConnection: close\r\n" in got
        assert ended(client)
    assert process.status() == 0
    assert process.rest() == ["True"]


@pytest.mark.parametrize("busy", ["forever", "hold_the_gil", "compute"])
def test_a_second_int_ends_the_process_at_once_with_130(script: Run, busy: str) -> None:
    process = script(f"""
        Server(lambda ctx: {busy}(), workers=4).serve("127.0.0.1:0", ready=ready)
    """)
    [address] = process.addresses()
    with connect(address) as idle, connect(address) as client:
        client.sendall(GET)
        assert process.line() == "called"
        process.popen.send_signal(signal.SIGINT)
        assert ended(idle)          # the first one was heard
        process.popen.send_signal(signal.SIGINT)
        assert process.status(LEAVE_LIMIT) == 130
        assert ended(client)


def test_a_second_term_is_patient(script: Run) -> None:
    process = script("""
        say(Server(lambda ctx: wait(), workers=4).serve("127.0.0.1:0", ready=ready))
    """)
    [address] = process.addresses()
    with connect(address) as idle, connect(address) as client:
        client.sendall(GET)
        assert process.line() == "called"
        process.popen.send_signal(signal.SIGTERM)
        assert ended(idle)
        process.popen.send_signal(signal.SIGTERM)
        process.answer()
        assert reply(client).startswith(b"HTTP/1.1 200 ")
    assert process.status() == 0
    assert process.rest() == ["True"]


def cut_in_a_call(process: Script) -> None:
    """TERM comes while a handler runs, and its client is cut off."""
    [address] = process.addresses()
    with connect(address) as client:
        client.sendall(GET)
        assert process.line() == "called"
        process.popen.send_signal(signal.SIGTERM)
        assert ended(client)


def test_shutdown_timeout_cuts_what_still_runs(script: Run) -> None:
    processes = [script(f"""
        server = Server(lambda ctx: {busy}(), workers=4, shutdown_timeout=0.05)
        say(server.serve("127.0.0.1:0", ready=ready))
        say(server.stats()["cut"])
    """) for busy in ("forever", "compute")]
    for process in processes:
        cut_in_a_call(process)
    for process in processes:
        assert process.line() == "False"
        assert process.line() == "1"
        assert process.status(LEAVE_LIMIT) == 0


@pytest.fixture(scope="module", autouse=True)
def held() -> Iterator[Script]:
    """A main thread that cannot come back has seconds to do so: they pass beside the other tests."""
    process = Script("""
        Server(lambda ctx: hold_the_gil(), workers=4, shutdown_timeout=0).serve("127.0.0.1:0", ready=ready)
    """)
    try:
        cut_in_a_call(process)
        yield process
    finally:
        process.close()


def test_serve_leaves_signals_as_they_were(script: Run) -> None:
    process = script("""
        def mine(number, frame):
            pass
        signal.signal(signal.SIGTERM, mine)
        reader, writer = socket.socketpair()
        writer.setblocking(False)
        signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        before = [signal.getsignal(n) for n in range(1, signal.NSIG)]
        def stop(server):
            say("during", signal.getsignal(signal.SIGTERM) is mine)
            threading.Thread(target=server.shutdown).start()
        say(Server(hello).serve("127.0.0.1:0", ready=stop))
        say([signal.getsignal(n) for n in range(1, signal.NSIG)] == before)
        say(signal.set_wakeup_fd(-1) == writer.fileno())
        os.kill(os.getpid(), signal.SIGTERM)
    """)
    assert process.status() == 0
    assert process.rest() == ["during False", "True", "True", "True"]


def test_signals_come_back_when_serve_cannot_start(script: Run) -> None:
    process = script("""
        before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
        with socket.create_server(("127.0.0.1", 0)) as taken:
            try:
                Server(hello).serve(f"127.0.0.1:{taken.getsockname()[1]}")
            except Exception as error:
                say(type(error).__name__)
        say((signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before)
        say(signal.set_wakeup_fd(-1))
    """)
    assert process.status() == 0
    assert process.rest() == ["StartError", "True", "-1"]


def test_an_exception_in_ready_stops_the_server_and_comes_out(script: Run) -> None:
    process = script("""
        def ready(server):
            say(*server.addresses)
            raise RuntimeError("no")
        try:
            Server(hello).serve("127.0.0.1:0", ready=ready)
        except RuntimeError as error:
            say(error)
        say(signal.set_wakeup_fd(-1))
        sys.stdin.readline()
    """)
    address = process.line()
    assert process.line() == "no"
    assert process.line() == "-1"
    with pytest.raises(ConnectionRefusedError):
        connect(address)
    process.answer()
    assert process.status() == 0


# shutdown()


def test_shutdown_from_another_thread_ends_serve(script: Run) -> None:
    process = script("""
        def stop(server):
            threading.Thread(target=lambda: say("shutdown", server.shutdown())).start()
        say("serve", Server(hello).serve("127.0.0.1:0", ready=stop))
    """)
    assert process.status() == 0
    assert sorted(process.rest()) == ["serve True", "shutdown True"]


def test_serve_off_the_main_thread_ends_by_shutdown_and_touches_no_signal() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    server, listens, ends = Server(hello), threading.Event(), []
    thread = threading.Thread(
        target=lambda: ends.append(server.serve("127.0.0.1:0", ready=lambda _: listens.set()))
    )
    thread.start()
    assert listens.wait(HANG_LIMIT)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    assert get(server.addresses[0]).endswith(b"hello")
    assert server.shutdown(HANG_LIMIT)
    thread.join(HANG_LIMIT)
    assert ends == [True]


def test_shutdown_is_true_when_nothing_was_cut_and_may_be_called_again() -> None:
    server = Server(hello).start("127.0.0.1:0")
    [address] = server.addresses
    assert get(address).endswith(b"hello")
    assert [server.shutdown(HANG_LIMIT), server.shutdown(), server.shutdown(0)] == [True] * 3
    with pytest.raises(ConnectionRefusedError):
        connect(address)


def test_shutdown_by_many_threads_at_once() -> None:
    server = Server(hello).start("127.0.0.1:0")
    together, ends = threading.Barrier(8), []

    def stop() -> None:
        together.wait(HANG_LIMIT)
        ends.append(server.shutdown(HANG_LIMIT))

    threads = [threading.Thread(target=stop) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(HANG_LIMIT)
    assert ends == [True] * 8


def test_shutdown_is_false_when_a_request_was_cut() -> None:
    called, go = threading.Event(), threading.Event()

    def handler(ctx: fastserve.RequestCtx) -> None:
        called.set()
        go.wait(HANG_LIMIT)

    server = Server(handler, workers=4).start("127.0.0.1:0")
    with connect(server.addresses[0]) as client:
        client.sendall(GET)
        assert called.wait(HANG_LIMIT)
        assert server.shutdown(0.05) is False
        go.set()
        assert server.shutdown() is False
        assert ended(client)
        assert server.stats()["cut"] == 1


def test_a_later_shutdown_brings_the_end_nearer_and_never_farther() -> None:
    called, go, ends = threading.Event(), threading.Event(), []

    def handler(ctx: fastserve.RequestCtx) -> None:
        called.set()
        go.wait(HANG_LIMIT)

    server = Server(handler, workers=4).start("127.0.0.1:0")
    with connect(server.addresses[0]) as idle, connect(server.addresses[0]) as client:
        client.sendall(GET)
        assert called.wait(HANG_LIMIT)
        first = threading.Thread(target=lambda: ends.append(server.shutdown(3600)))
        first.start()
        assert ended(idle)
        assert server.shutdown(0) is False
        first.join(HANG_LIMIT)
        assert ends == [False]
    go.set()


def test_connections_without_a_request_do_not_hold_shutdown_up() -> None:
    server = Server(hello).start("127.0.0.1:0")
    [address] = server.addresses
    ends: list[bool] = []
    with connect(address) as silent, connect(address) as kept:
        kept.sendall(GET)
        assert reply(kept).endswith(b"hello")
        stop = threading.Thread(target=lambda: ends.append(server.shutdown(3600)))
        stop.start()
        assert ended(silent)
        assert ended(kept)
        stop.join(HANG_LIMIT)
    assert ends == [True]


def test_the_end_of_the_with_block_is_a_shutdown() -> None:
    with Server(hello).start("127.0.0.1:0") as server:
        [address] = server.addresses
        assert get(address).endswith(b"hello")
    with pytest.raises(ConnectionRefusedError):
        connect(address)


def test_a_server_starts_once() -> None:
    with Server(hello).start("127.0.0.1:0") as server, pytest.raises(StartError):
        server.start("127.0.0.1:0")
    with pytest.raises(StartError):
        server.start("127.0.0.1:0")


def test_a_shutdown_lets_what_is_queued_finish() -> None:
    called, go = threading.Semaphore(0), threading.Event()

    def handler(ctx: fastserve.RequestCtx) -> None:
        called.release()
        go.wait(HANG_LIMIT)
        ctx.write(ctx.path)

    server = Server(handler, workers=2, reactors=1).start("127.0.0.1:0")
    clients = [connect(server.addresses[0]) for _ in range(6)]
    ends: list[bool] = []
    try:
        for number, client in enumerate(clients):
            client.sendall(b"GET /%d HTTP/1.1\r\nHost: x\r\n\r\n" % number)
        for _ in range(2):
            assert called.acquire(timeout=HANG_LIMIT)
        while server.stats()["queued"] < 4:
            pass
        with connect(server.addresses[0]) as idle:
            stop = threading.Thread(target=lambda: ends.append(server.shutdown(3600)))
            stop.start()
            assert ended(idle)
        go.set()
        for number, client in enumerate(clients):
            got = reply(client)
            assert got.endswith(b"\r\n\r\n/%d" % number)
            assert b"\r\nConnection: close\r\n" in got
            assert ended(client)
            client.close()
        stop.join(HANG_LIMIT)
        assert ends == [True]
    finally:
        go.set()
        for client in clients:
            client.close()


# Addresses


def test_a_taken_port_is_an_error_and_nothing_listens(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        server = Server(hello)
        with pytest.raises(StartError, match=f"127.0.0.1:{port}"):
            server.start(f"unix:{path}", f"127.0.0.1:{port}")
    assert not path.exists()


@pytest.mark.parametrize("first", [1, 2])
@pytest.mark.parametrize("second", [1, 2])
def test_a_port_of_another_fastserve_is_taken(first: int, second: int) -> None:
    with Server(hello, reactors=first).start("127.0.0.1:0") as server:
        with pytest.raises(StartError):
            Server(hello, reactors=second).start(server.addresses[0])
        assert get(server.addresses[0]).endswith(b"hello")


def test_a_port_can_be_had_again_at_once() -> None:
    address = "127.0.0.1:0"
    for _ in range(3):
        with Server(hello).start(address) as server:
            [address] = server.addresses
            assert get(address).endswith(b"hello")


def test_reuse_port_shares_a_port_among_those_who_ask_for_it() -> None:
    with Server(hello, reuse_port=True).start("127.0.0.1:0") as one:
        [address] = one.addresses
        with Server(hello, reuse_port=True).start(address) as two:
            with pytest.raises(StartError):
                Server(hello).start(address)
            for _ in range(20):
                assert get(address).endswith(b"hello")
            assert one.shutdown(HANG_LIMIT)
            for _ in range(20):
                assert get(address).endswith(b"hello")
            assert one.stats()["requests"] + two.stats()["requests"] == 40
            assert two.stats()["requests"] >= 20


def test_several_reactors_share_a_port() -> None:
    with Server(hello, reactors=3).start("127.0.0.1:0") as server:
        for _ in range(30):
            assert get(server.addresses[0]).endswith(b"hello")
        assert server.stats()["requests"] == 30


def test_an_inherited_descriptor_stays_the_callers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        name = "{}:{}".format(*listener.getsockname())
        with Server(hello).start(f"fd:{listener.fileno()}") as server:
            assert server.addresses == [name]
            assert get(name).endswith(b"hello")
        assert listener.getsockname()
        with Server(hello, reactors=2).start(f"fd:{listener.fileno()}"):
            assert get(name).endswith(b"hello")


@pytest.mark.parametrize("reactors", [1, 2])
def test_an_inherited_unix_socket(tmp_path: Path, reactors: int) -> None:
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        with Server(hello, reactors=reactors).start(f"fd:{listener.fileno()}") as server:
            assert server.addresses == [f"unix:{path}"]
            assert get(server.addresses[0]).endswith(b"hello")
        assert os.path.exists(path)         # who made it removes it


def test_what_is_no_listener_is_an_error(tmp_path: Path) -> None:
    with socket.socket() as idle, open(tmp_path / "file", "w") as file:
        gc.collect()
        before = os.listdir("/proc/self/fd")
        for descriptor in (idle.fileno(), file.fileno()):
            with Server(hello) as server, pytest.raises(StartError):
                server.start(f"fd:{descriptor}")
        assert os.listdir("/proc/self/fd") == before


def ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(not ipv6(), reason="no IPv6 on the loopback")


@needs_ipv6
def test_an_ipv6_address() -> None:
    with Server(hello).start("[::1]:0") as server:
        [address] = server.addresses
        assert re.fullmatch(r"\[::1\]:\d+", address)
        assert get(address).endswith(b"hello")


@needs_ipv6
@pytest.mark.parametrize("taken", [False, True])
def test_localhost_is_both_families_on_one_port(monkeypatch: pytest.MonkeyPatch, taken: bool) -> None:
    """The kernel chooses the port for the first; when the second has it taken, it chooses again."""
    occupied: list[socket.socket] = []
    plain = socket.socket

    class Socket(plain):                                        # type: ignore[valid-type, misc]
        def bind(self, address: tuple[object, ...]) -> None:
            if taken and self.family == socket.AF_INET and not occupied:
                occupied.append(plain())
                occupied[0].bind(address)
                occupied[0].listen()
            super().bind(address)

    with contextlib.ExitStack() as stack:
        with monkeypatch.context() as patched:
            patched.setattr("fastserve.server.socket.socket", Socket)
            server = stack.enter_context(Server(hello).start("localhost:0"))
        for other in occupied:
            stack.enter_context(other)
        assert len(occupied) == taken
        assert [address.rpartition(":")[0] for address in server.addresses] == ["[::1]", "127.0.0.1"]
        ports = {address.rpartition(":")[2] for address in server.addresses}
        assert len(ports) == 1, "one name, one port"
        assert not ports & {str(other.getsockname()[1]) for other in occupied}
        for address in server.addresses:
            assert get(address).endswith(b"hello")


@needs_ipv6
def test_an_ipv6_wildcard_leaves_ipv4_alone() -> None:
    with contextlib.ExitStack() as servers:
        for _ in range(20):
            server = servers.enter_context(Server(hello).start("[::]:0"))
            port = server.addresses[0].rpartition(":")[2]
            with contextlib.suppress(StartError):       # somebody else may have the port of the other family
                other = servers.enter_context(Server(hello).start(f"0.0.0.0:{port}"))
                break
        assert get(f"127.0.0.1:{port}").endswith(b"hello")
        assert get(f"[::1]:{port}").endswith(b"hello")
        assert (server.stats()["requests"], other.stats()["requests"]) == (1, 1)


# Unix sockets


def test_a_socket_file_goes_with_its_server(tmp_path: Path) -> None:
    path = tmp_path / "s"
    for _ in range(2):
        with Server(hello).start(f"unix:{path}") as server:
            assert server.addresses == [f"unix:{path}"]
            assert get(server.addresses[0]).endswith(b"hello")
        assert not path.exists()


def test_a_stale_socket_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
        dead.listen()
    assert path.exists()
    with Server(hello).start(f"unix:{path}") as server:
        assert get(server.addresses[0]).endswith(b"hello")


def test_a_socket_that_answers_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with Server(hello).start(f"unix:{path}") as server:
        with pytest.raises(StartError):
            Server(hello).start(f"unix:{path}")
        assert get(server.addresses[0]).endswith(b"hello")


def test_a_socket_whose_backlog_is_full_is_alive(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as full:
        full.bind(path)
        full.listen(0)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(path)
            with pytest.raises(StartError):
                Server(hello).start(f"unix:{path}")
        assert os.path.exists(path)


@pytest.mark.parametrize("kind", ["file", "directory", "link"])
def test_what_is_no_socket_is_left_alone(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "s"
    if kind == "file":
        path.write_text("precious")
    elif kind == "directory":
        path.mkdir()
    else:
        path.symlink_to(tmp_path / "nowhere")
    with pytest.raises(StartError):
        Server(hello).start(f"unix:{path}")
    assert path.is_symlink() or path.exists()


def test_a_socket_file_of_somebody_else_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with Server(hello).start(f"unix:{path}"):
        path.unlink()
        path.write_text("precious")
    assert path.read_text() == "precious"


def test_a_socket_file_with_the_number_of_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A successor's, where a file system gives a number away as soon as it is free."""
    path = tmp_path / "s"
    real = os.stat
    first = Server(hello).start(f"unix:{path}")
    number = real(path).st_ino

    def stat(name: Any, **options: Any) -> Any:
        found = real(name, **options)
        return SimpleNamespace(
            **{name: getattr(found, name) for name in dir(found) if name.startswith("st_")} | {"st_ino": number})

    made = real(path).st_mtime_ns
    while real(path).st_mtime_ns == made:       # the clock of a file system ticks a few hundred times a second
        path.unlink()
        path.touch()
    path.unlink()
    monkeypatch.setattr(os, "stat", stat)
    with Server(hello).start(f"unix:{path}") as second:
        assert first.shutdown(60)
        assert path.is_socket()
        assert second.addresses == [f"unix:{path}"]
    assert not path.exists()


def stuck(serve: Serve) -> tuple[Running, threading.Event]:
    """A server with a handler that waits to be let go."""
    called, go = threading.Event(), threading.Event()

    def handler(ctx: RequestCtx) -> None:
        called.set()
        wait_for(go)

    server = serve(handler, workers=2)
    server.connect().send(request())
    wait_for(called)
    return server, go


def test_what_is_cut_off_is_counted_in_the_log(script: Run) -> None:
    process = script("""
        go = threading.Event()
        def handler(ctx):
            say("called")
            go.wait()
        server = Server(handler, workers=4).start("127.0.0.1:0")
        ready(server)
        sys.stdin.readline()
        say(server.shutdown(0))
        go.set()
    """)
    [address] = process.addresses()
    with contextlib.ExitStack() as clients:
        for _ in range(3):
            clients.enter_context(connect(address)).sendall(GET)
            assert process.line() == "called"
        assert process.popen.stdin is not None
        process.popen.stdin.close()
        assert process.line() == "False"
        assert process.status(LEAVE_LIMIT) == 0
    process.readers[1].join(HANG_LIMIT)
    assert process.errors == "connections cut off in the middle of a request: 3\n"


@pytest.mark.parametrize("timeout", [math.inf, 1e300])
def test_no_timeout_is_too_long(serve: Serve, timeout: float) -> None:
    server, go = stuck(serve)
    clean = []
    stopping = threading.Thread(target=lambda: clean.append(server.server.shutdown(timeout)))
    stopping.start()
    wait_until(server.refuses, "the listener to close")
    assert stopping.is_alive()
    go.set()
    stopping.join(HANG_LIMIT)
    assert clean == [True]


def test_a_timeout_is_a_number(serve: Serve) -> None:
    server, go = stuck(serve)
    with pytest.raises(ValueError, match=r"^nan is no time$"):
        server.server.shutdown(math.nan)
    go.set()
    assert server.shutdown()


@pytest.mark.skipif(FREE_THREADED, reason="nobody holds a GIL there, and the main thread comes back")
def test_a_main_thread_that_cannot_come_back_does_not_hold_the_process(held: Script) -> None:
    """The drain is over, natively, but a handler keeps the GIL: the process ends by the signal's status."""
    assert held.status() == 128 + signal.SIGTERM
