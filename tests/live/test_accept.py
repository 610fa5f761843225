"""Accepting under trouble: the server lives, says so, and is as before when the trouble is over.

Knows: servers in a process of their own, whose descriptors run out. Never sees: how long a back-off takes.
Invariant: nobody who connects is left without a word.
"""

import contextlib
import os
import re
import select
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
import test_leaving as leaving
from conftest import Serve, Wire, request, wait_for, wait_until
from test_leaving import GET, Run, connect, get, reply

from fastserve import RequestCtx

script = leaving.script


def test_when_descriptors_run_out(script: Run) -> None:
    """Who cannot have a connection is told 503, those who have one are served; afterwards all is as before."""
    process = script("""
import resource
def handler(ctx):
    if ctx.path == "/few":
        top = max(int(name) for name in os.listdir("/proc/self/fd"))
        resource.setrlimit(resource.RLIMIT_NOFILE, (top + 3, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    ctx.write(ctx.path)
server = Server(handler, workers=2, reactors=1, concurrency=200)
server.serve("127.0.0.1:0", ready=ready)
say(server.stats()["refused_connections"], server.stats()["refused_descriptors"])
""")
    [address] = process.addresses()
    with ExitStack() as clients:
        kept = clients.enter_context(connect(address))
        kept.sendall(GET.replace(b"/", b"/few", 1))
        assert reply(kept).endswith(b"/few")
        served, told = [], 0
        crowd = [clients.enter_context(connect(address)) for _ in range(40)]
        for client in crowd:
            client.sendall(GET)
        for client in crowd:
            got = reply(client)
            if got.startswith(b"HTTP/1.1 200 "):
                served.append(client)
            else:
                assert got.startswith(b"HTTP/1.1 503 ")
                told += 1
        assert served
        assert told
        kept.sendall(GET)
        assert reply(kept).startswith(b"HTTP/1.1 200 ")
        # A close makes room, whatever the back-off was.
        for client in served:
            client.close()
        assert get(address).startswith(b"HTTP/1.1 200 ")
    process.popen.terminate()
    assert process.line() == f"0 {told}"
    assert process.status() == 0
    process.readers[1].join()
    assert "descriptors or kernel memory ran out" in process.errors


def test_after_a_pause_what_has_come_is_read_before_deadlines_fire(script: Run) -> None:
    """More connections than one turn takes have sent their rest while the process stood still for longer than
    their deadline: all of them are served."""
    process = script("""
Server(hello, workers=2, reactors=1, header_timeout=1.5).serve("127.0.0.1:0", ready=ready)
""")
    [address] = process.addresses()
    with ExitStack() as clients:
        wires = [clients.enter_context(connect(address)) for _ in range(700)]
        last = clients.enter_context(connect(address))
        for wire in wires:
            wire.sendall(GET[:20])
        last.sendall(GET)
        assert reply(last)          # what came before it has been read, and its deadline runs
        os.kill(process.popen.pid, signal.SIGSTOP)
        stopped = time.monotonic()
        try:
            for wire in wires:
                wire.sendall(GET[20:])
            # The deadline of the kernel's clock has to pass, and nothing else can be waited for.
            while time.monotonic() < stopped + 1.6:
                select.select([], [], [], 0.1)
        finally:
            os.kill(process.popen.pid, signal.SIGCONT)
        got = [reply(wire)[:13] for wire in wires]
    assert got == [b"HTTP/1.1 200 "] * 700


def test_all_that_wait_at_the_listener_are_accepted_before_it_is_closed(script: Run) -> None:
    process = script("""
Server(hello, workers=2, reactors=1).serve("127.0.0.1:0", ready=ready)
""")
    [address] = process.addresses()
    with ExitStack() as clients:
        os.kill(process.popen.pid, signal.SIGSTOP)
        try:
            wires = [clients.enter_context(connect(address)) for _ in range(500)]
            for wire in wires:
                wire.sendall(GET)
            os.kill(process.popen.pid, signal.SIGTERM)
        finally:
            os.kill(process.popen.pid, signal.SIGCONT)
        assert [reply(wire)[:13] for wire in wires] == [b"HTTP/1.1 200 "] * 500
    assert process.status() == 0


def watched() -> set[int]:
    """The inodes of all that epoll sets of this process watch."""
    found = set[int]()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/self/fd/{name}") == "anon_inode:[eventpoll]":
                info = Path(f"/proc/self/fdinfo/{name}").read_text()
                found |= {int(inode, 16) for inode in re.findall(r"ino:([0-9a-f]+)", info)}
    return found


def test_who_shares_its_port_gives_others_a_chance_when_it_is_full(serve: Serve) -> None:
    """It does not accept for a moment; alone on its port it goes on and tells everybody."""
    def hello(ctx: RequestCtx) -> None:
        ctx.write("hello")

    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        inode = os.fstat(listener.fileno()).st_ino
        server = serve(hello, f"fd:{listener.fileno()}", workers=2, reactors=1, concurrency=1, reuse_port=True)
    assert server.connect().get().status == 200

    def has_left() -> bool:
        # It is away for 5 ms, so the look comes right behind the reply, in the same thread.
        assert server.get().status == 503
        return inode not in watched()

    wait_until(has_left, "the listener to leave the epoll set")
    wait_until(lambda: inode in watched(), "the listener to come back")


def test_a_listener_that_somebody_has_shut_down(serve: Serve) -> None:
    """It would be ready for ever. The other one goes on, and so do the connections that there are."""
    serve.expect_error("a listener accepts no more")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        server = serve(lambda ctx: ctx.write("hello"), f"fd:{listener.fileno()}", "127.0.0.1:0", workers=2, reactors=1)
        kept = server.connect()
        assert kept.get().status == 200
        inode = os.fstat(listener.fileno()).st_ino
        assert inode in watched()
        listener.shutdown(socket.SHUT_RDWR)
        wait_until(lambda: inode not in watched(), "the listener to leave the epoll set")
        assert kept.get().status == 200
        with Wire(server.addresses[1]) as other:
            assert other.get().status == 200
        wait_until(serve.errors, "the message")


@pytest.mark.parametrize("turn", range(3))
def test_a_successor_on_the_same_listener_loses_no_connection(serve: Serve, turn: int) -> None:
    """Two servers have the same listening socket; one of them stops under load. Every client of either is answered."""
    entered = threading.Event()
    served = Counter[str]()
    lock = threading.Lock()

    def handler_of(name: str) -> Callable[[RequestCtx], None]:
        def handler(ctx: RequestCtx) -> None:
            with lock:
                served[name] += 1
            if served["first"] >= 50 + 37 * turn:
                entered.set()
            ctx.write(name)
        return handler

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(4096)
        first, _ = (serve(handler_of(name), f"fd:{listener.fileno()}", workers=4) for name in ("first", "second"))
    answers: list[bytes] = []
    stopped = threading.Event()

    def client() -> None:
        # Some of these come while the first one stops, and some behind that.
        left = 100
        while left:
            answers.append(first.exchange(request("GET", "/", *(["Connection: close"] if left % 2 else []))).body)
            left -= stopped.is_set()

    clients = [threading.Thread(target=client) for _ in range(4)]
    for each in clients:
        each.start()
    wait_for(entered)
    assert first.shutdown()
    stopped.set()
    for each in clients:
        each.join()
    assert Counter(answers) == Counter({name.encode(): n for name, n in served.items()})
    assert served["second"] >= 400
