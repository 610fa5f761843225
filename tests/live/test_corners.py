"""Corners that were found by reading: each of these once hung, crashed or lied.

Knows: the fixture `serve`, raw sockets. Never sees: the core's inside.
"""

import os
import socket
import threading
from pathlib import Path

import pytest
from conftest import PATIENCE, Serve, request, wait_until

from fastserve import RequestCtx, Server, StartError

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


def test_a_handler_that_outlives_write_timeout_on_a_stalled_connection_holds_nobody(
        serve: Serve, tmp_path: Path) -> None:
    """Its timer ran out again and again in one turn, for ever."""
    never = threading.Event()

    def handler(ctx: RequestCtx) -> None:
        if ctx.path == "/":
            never.wait(0.015)           # a handler that blocks for longer than write_timeout
            ctx.write(b"x" * 20_000)
        else:
            ctx.write("free")

    # A Unix socket: its buffer is full after some ten replies.
    server = serve(handler, f"unix:{tmp_path}/s", workers=8, reactors=1, write_timeout=0.005)
    with socket.socket(socket.AF_UNIX) as reader:
        reader.connect(f"{tmp_path}/s")
        reader.sendall(GET * 400)       # and reads nothing

        def cut() -> bool:
            assert server.get("/free").body == b"free"
            return bool(server.stats()["timed_out_write"])

        wait_until(cut, "the reader to be cut")


def test_a_start_that_failed_half_way_listens_nowhere() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        free = socket.create_server(("127.0.0.1", 0))
        first = free.getsockname()[1]
        free.close()
        server = Server(lambda ctx: None)
        with pytest.raises(StartError) as caught:
            server.start(f"127.0.0.1:{first}", f"127.0.0.1:{port}")
        assert server.addresses == []
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", first))
        assert str(port) in str(caught.value)


def test_a_start_that_gets_no_threads_leaves_nothing(monkeypatch: pytest.MonkeyPatch, serve: Serve) -> None:
    started = []
    start = threading.Thread.start

    def few(thread: threading.Thread) -> None:
        if len(started) == 10:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", few)
        with pytest.raises(StartError, match="cannot start 64 workers: can't start new thread"):
            Server(lambda ctx: None).start("127.0.0.1:0")
    for thread in started:
        thread.join(PATIENCE)
        assert not thread.is_alive()


def test_max_queue_is_one_number_however_many_reactors(serve: Serve) -> None:
    go, inside = threading.Event(), threading.Semaphore(0)

    def handler(ctx: RequestCtx) -> None:
        inside.release()
        assert go.wait(PATIENCE)

    server = serve(handler, workers=3, reactors=2, max_queue=2)
    busy = [server.connect().send(request()) for _ in range(3)]
    for _ in busy:
        assert inside.acquire(timeout=PATIENCE)
    waiting = [server.connect().send(request()) for _ in range(20)]
    wait_until(lambda: server.stats()["shed_queue_full"] >= 18, "all but two to be refused")
    assert server.stats()["queued"] <= 2
    go.set()
    for wire in busy:
        assert wire.read().status == 200
    assert sorted(wire.read().status for wire in waiting)[:1] == [200]


def test_spare_workers_retire_beside_light_traffic(serve: Serve) -> None:
    go, inside = threading.Event(), threading.Semaphore(0)

    def handler(ctx: RequestCtx) -> None:
        if ctx.path == "/block":
            inside.release()
            assert go.wait(PATIENCE)

    server = serve(handler, workers=2, max_workers=6, reactors=1, max_idle_worker_duration=0.02)
    wire = server.connect()
    for _ in range(5):
        go.clear()
        blocked = [server.connect().send(request("GET", "/block")) for _ in range(6)]
        for _ in blocked:
            assert inside.acquire(timeout=PATIENCE)
        assert server.stats()["workers"] == 6
        go.set()
        for each in blocked:
            assert each.read().status == 200
            each.close()
        wait_until(lambda: wire.get("/").status and server.stats()["workers"] == 2, "the spare ones to retire")


def test_a_status_is_the_number_that_it_is(serve: Serve) -> None:
    class Odd(int):
        def __le__(self, other: object) -> bool:
            return True

        def __ge__(self, other: object) -> bool:
            return True

    def handler(ctx: RequestCtx) -> None:
        with pytest.raises(ValueError):
            ctx.status = Odd(5_000_000)
        ctx.write("alive")

    assert serve(handler, workers=2).get("/").body == b"alive"


def test_205_has_no_content(serve: Serve) -> None:
    def handler(ctx: RequestCtx) -> None:
        ctx.status = 205
        ctx.write("abc")

    wire = serve(handler, workers=2).connect()
    for _ in range(2):
        reply = wire.get("/")
        assert (reply.status, reply.body, reply.get("Content-Length")) == (205, b"", "0")


def test_503_to_http_10_that_asked_to_stay_says_that_it_stays(serve: Serve) -> None:
    go, inside = threading.Event(), threading.Semaphore(0)

    def handler(ctx: RequestCtx) -> None:
        inside.release()
        assert go.wait(PATIENCE)
        ctx.write("late")

    server = serve(handler, workers=2, reactors=1, queue_timeout=0.05)
    blocked = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(2)]
    for client in blocked:
        client.sendall(GET)
        assert inside.acquire(timeout=PATIENCE)
    with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE) as client:
        client.sendall(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        got = client.recv(65536)
        assert got.startswith(b"HTTP/1.1 503 ") and b"\r\nConnection: keep-alive\r\n" in got
    go.set()
    for client in blocked:
        client.close()


def test_a_reply_that_came_home_quietly_leaves_no_buffer_behind(serve: Serve) -> None:
    """The worker that ran alone wakes nobody; the connections stay open and send no more."""
    def handler(ctx: RequestCtx) -> None:
        threading.Event().wait(0.002)       # a handler that blocks is handed over, later passed on first
        ctx.write("late")

    server = serve(handler, workers=16, reactors=1)
    wires = [server.connect() for _ in range(12)]
    for turn in range(20):
        for wire in wires:
            wire.send(request())
        for wire in wires:
            assert wire.read().body == b"late"
        wait_until(lambda: server.stats()["buffers"] == 0, "every buffer to be given back")
        assert server.stats()["requests"] == 12 * (turn + 1)
    assert server.stats()["connections"] == 12


def test_a_drain_ends_a_connection_whose_reply_was_committed_before_it(serve: Serve) -> None:
    """It said nothing of closing, and the reader takes its time: behind the reply it is closed all the same."""
    size = 32_000_000

    def handler(ctx: RequestCtx) -> None:
        ctx.write(b"x" * size)

    server = serve(handler, workers=2, reactors=1)
    wire = server.connect(receive_buffer=65536).send(request())
    head = wire.read_head()
    assert not head.closes
    stopping = threading.Thread(target=server.shutdown, args=(10 * PATIENCE,))
    stopping.start()

    wait_until(server.refuses, "the drain to begin")
    assert len(wire.read_exactly(size)) == size
    assert wire.ended()
    stopping.join()
    assert server.clean


def watched() -> int:
    """Descriptors in all epoll sets of this process."""
    number = 0
    for fd in os.listdir("/proc/self/fdinfo"):
        try:
            with open(f"/proc/self/fdinfo/{fd}") as info:
                number += sum(line.startswith("tfd:") for line in info)
        except FileNotFoundError:
            continue
    return number


def test_a_connection_joins_the_epoll_set_when_it_is_waited_for(serve: Serve) -> None:
    """A handler makes two clients whose requests are there before they are accepted: one closes, one stays."""
    made: list[socket.socket] = []

    def handler(ctx: RequestCtx) -> None:
        if ctx.path == "/make":
            for fields in (["Connection: close"], []):
                made.append(socket.create_connection(("127.0.0.1", server.port)))
                made[-1].sendall(request("GET", "/", *fields))
        else:
            ctx.write(str(watched()))

    def neither_was_watched() -> bool:
        """Unless the watcher came between and accepted one itself."""
        assert wire.get("/make").status == 200
        closes, stays = made[-2:]
        with closes, stays:
            first, second = read_count(closes), read_count(stays)
            stays.sendall(request())
            third = read_count(stays)
        wait_until(lambda: server.stats()["connections"] == 1, "both to be gone")
        return first == second == third - 1

    server = serve(handler, workers=2, reactors=1)
    wire = server.connect()
    wait_until(neither_was_watched, "connections that are read before they are watched")


def read_count(client: socket.socket) -> int:
    client.settimeout(PATIENCE)
    reply = b""
    while b"\r\n\r\n" not in reply or not reply.partition(b"\r\n\r\n")[2]:
        reply += client.recv(4096)
    return int(reply.partition(b"\r\n\r\n")[2])
