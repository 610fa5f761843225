"""Connections that are taken over: the reply, then a thread of its own, then the end.

Knows: what `ctx.hijack` hands over, and who ends it. Never sees: how the slot comes back. Invariant: while a function
has a connection it is counted and has no buffers; afterwards everything is given back, which `serve` checks.
"""

import os
import queue
import random
import socket
import threading
from pathlib import Path

import pytest
from conftest import PATIENCE, Running, Serve, request, wait_for, wait_until

from fastserve import BadRequest, RequestCtx


def upper(wire: socket.socket, data: bytes) -> None:
    """Everything comes back in capitals until the end, and then a word more."""
    while data or (data := wire.recv(65536)):
        wire.sendall(data.upper())
        data = b""
    wire.sendall(b"bye")


def taken(ctx: RequestCtx) -> None:
    ctx.write("yours")
    ctx.hijack(upper)


def alone(server: Running, count: int) -> None:
    """That many connections are hijacked, and nothing else is there."""
    wait_until(lambda: server.stats()["buffers"] == 0, "the buffers")
    assert server.stats()["connections"] == server.stats()["slots"] == count


@pytest.mark.parametrize("config", [{}, {"metrics_path": "/metrics"}, {"handler_timeout": 20.0}])
def test_behind_the_reply_the_connection_is_the_functions(serve: Serve, config: dict) -> None:
    server = serve(taken, workers=2, reactors=1, **config)
    wire = server.connect()
    assert wire.get().body == b"yours"
    for word in (b"one", b"two"):
        assert wire.send(word).read_exactly(3) == word.upper()
    alone(server, 1)
    assert wire.half_close().read_to_end() == b"bye"
    wait_until(lambda: server.stats()["connections"] == 0, "the slot")
    assert (server.stats()["hijacked"], server.stats()["requests"]) == (1, 1)


def test_a_function_cannot_wait_for_the_end_of_its_server(serve: Serve) -> None:
    """Of another server it can."""
    told: queue.SimpleQueue[object] = queue.SimpleQueue()

    def stop(wire: socket.socket, data: bytes) -> None:
        for one in (server, other):
            try:
                told.put(one.server.shutdown(60))
            except RuntimeError as error:
                told.put(str(error))

    server, other = serve(lambda ctx: ctx.hijack(stop), workers=2), serve(lambda ctx: None, workers=2)
    assert server.get().status == 200
    assert told.get(timeout=PATIENCE) == "a handler cannot wait for the end of its own server"
    assert told.get(timeout=PATIENCE) is True


def test_what_came_behind_the_request_is_handed_over(serve: Serve) -> None:
    server = serve(taken, workers=2, reactors=1)
    for fields, body in [((), b""), (("Content-Length: 4",), b"four"),
                         (("Transfer-Encoding: chunked",), b"4\r\nfour\r\n0\r\n\r\n")]:
        wire = server.connect().send(request("POST", "/", *fields), body, b"behind it").half_close()
        assert wire.read().body == b"yours"
        assert wire.read_to_end() == b"BEHIND ITbye"


def test_replies_before_it_leave_first(serve: Serve) -> None:
    def handler(ctx: RequestCtx) -> None:
        if ctx.path == "/take":
            ctx.hijack(upper, respond=ctx.query.bool("respond", True))
        ctx.set_body(ctx.path.encode() * 10_000)

    server = serve(handler, workers=2, reactors=1)
    for query, count in [("", 4), ("?respond=0", 3)]:
        wire = server.connect().send(*[request("GET", f"/{n}") for n in range(3)], request("GET", "/take" + query),
                                     b"and more").half_close()
        assert [len(wire.read().body) for _ in range(count)] == [20_000, 20_000, 20_000, 50_000][:count]
        assert wire.read_to_end() == b"AND MOREbye"


@pytest.mark.parametrize("size", [30_000, 5_000_000])
def test_behind_a_large_reply(serve: Serve, size: int) -> None:
    def handler(ctx: RequestCtx) -> None:
        ctx.set_body(b"x" * size)
        ctx.hijack(upper)

    wire = serve(handler, workers=2, reactors=1).connect(receive_buffer=4096)
    wire.send(request(), b"and more").half_close()
    assert len(wire.read().body) == size
    assert wire.read_to_end() == b"AND MOREbye"


def test_without_a_reply(serve: Serve) -> None:
    """The function says all there is to say, as a WebSocket library does."""
    def raw(wire: socket.socket, data: bytes) -> None:
        wire.sendall(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: echo\r\nConnection: Upgrade\r\n\r\n")
        upper(wire, data)

    def handler(ctx: RequestCtx) -> None:
        ctx.set_body(b"x" * 100_000)
        ctx.hijack(raw, respond=False)

    wire = serve(handler, workers=2, reactors=1).connect()
    wire.send(request("GET", "/", "Upgrade: echo", "Connection: Upgrade"), b"first")
    assert wire.read_until(b"\r\n\r\n").startswith(b"HTTP/1.1 101 ")
    assert wire.read_exactly(5) == b"FIRST"


def test_the_reply_may_switch_protocols(serve: Serve) -> None:
    def handler(ctx: RequestCtx) -> None:
        with pytest.raises(ValueError, match="belongs to the server"):
            ctx.set_header("Upgrade", "echo")
        with pytest.raises(ValueError, match="101 of a hijacked"):
            ctx.status = 101
        ctx.hijack(upper)
        ctx.status = 101
        ctx.set_header("Upgrade", "echo")
        ctx.write("no body")

    wire = serve(handler, workers=2, reactors=1).connect().send(request())
    head = wire.read_until(b"\r\n\r\n").decode().split("\r\n")
    assert head[0] == "HTTP/1.1 101 Switching Protocols"
    assert [line for line in head if line.startswith(("Upgrade", "Connection", "Content"))] == [
        "Upgrade: echo", "Connection: Upgrade"]
    assert wire.send(b"x").read_exactly(1) == b"X"


def test_the_socket_is_closed_behind_its_function(serve: Serve) -> None:
    """Whether it returns at once, has closed it itself, or fails."""
    serve.expect_error("on purpose")
    kept: list[socket.socket] = []

    def function(wire: socket.socket, data: bytes) -> None:
        kept.append(wire)
        if data == b"closes":
            wire.close()
        if data == b"fails":
            raise RuntimeError("on purpose")

    server = serve(lambda ctx: ctx.hijack(function), workers=2, reactors=1)
    for data in [b"returns", b"closes", b"fails"]:
        wire = server.connect().send(request(), data)
        assert wire.read().status == 200
        assert wire.gone()
    assert [wire.fileno() for wire in kept] == [-1, -1, -1]


def test_it_counts_until_its_function_returns(serve: Serve) -> None:
    server = serve(taken, workers=2, reactors=1, concurrency=2, max_conns_per_ip=2)
    wires = [server.connect() for _ in range(2)]
    for wire in wires:
        assert wire.get().body == b"yours"
    assert server.get().status == 503
    assert wires[0].half_close().read_to_end() == b"bye"
    wait_until(lambda: server.stats()["connections"] == 1, "the slot")
    assert server.get().body == b"yours"


def test_no_deadline_of_the_servers(serve: Serve) -> None:
    """Others, whose deadlines are as short, end before it."""
    server = serve(taken, workers=2, reactors=1, idle_timeout=0.05, header_timeout=0.05, handler_timeout=0.05)
    wire = server.connect()
    assert wire.get().body == b"yours"
    for _ in range(3):
        assert server.connect().ended()
    assert wire.send(b"x").read_exactly(1) == b"X"


def test_an_error_takes_it_back(serve: Serve) -> None:
    serve.expect_error("on purpose")

    def handler(ctx: RequestCtx) -> None:
        ctx.hijack(upper)
        if ctx.path == "/error":
            ctx.error("no", 403)
        elif ctx.path == "/bad":
            raise BadRequest
        else:
            raise RuntimeError("on purpose")

    wire = serve(handler, workers=2, reactors=1).connect()
    assert [wire.get(path).status for path in ["/error", "/bad", "/fails", "/error"]] == [403, 400, 500, 403]


def test_it_does_not_stream(serve: Serve) -> None:
    def handler(ctx: RequestCtx) -> None:
        ctx.hijack(upper)
        with pytest.raises(RuntimeError, match="as a whole"):
            ctx.stream([b"x"])
        ctx.write("yours")

    wire = serve(handler, workers=2, reactors=1).connect()
    assert wire.get().body == b"yours"
    assert wire.send(b"x").read_exactly(1) == b"X"


def test_a_child_of_fork_does_not_hold_it_open(serve: Serve) -> None:
    """It has a copy of the descriptor that the function closes here."""
    server = serve(taken, workers=2, reactors=1)
    wire = server.connect()
    assert wire.get().body == b"yours"
    ends, end = os.pipe()
    child = os.fork()
    if not child:
        os.close(end)
        os.read(ends, 1)        # until the parent says so, or is gone
        os._exit(0)
    try:
        assert wire.half_close().read_to_end() == b"bye"
    finally:
        os.close(end)
        os.close(ends)
        os.waitpid(child, 0)


def test_switching_protocols_says_no_close(serve: Serve) -> None:
    def handler(ctx: RequestCtx) -> None:
        ctx.hijack(upper)
        ctx.status = 101

    server = serve(handler, workers=2, reactors=1, max_requests_per_conn=1)
    wire = server.connect().send(request())
    assert b"close" not in wire.read_until(b"\r\n\r\n")


def test_what_cannot_take_over(serve: Serve) -> None:
    def hook(ctx: RequestCtx) -> None:
        with pytest.raises(RuntimeError, match="for a handler"):
            ctx.hijack(upper)

    def handler(ctx: RequestCtx) -> None:
        with pytest.raises(TypeError, match="taken over by a function, not by NoneType"):
            ctx.hijack(None)
        ctx.hijack(upper)
        with pytest.raises(RuntimeError, match="not answered later"):
            ctx.detach()
        ctx.error("fine", 200)

    assert serve(handler, on_headers=hook, workers=2, reactors=1).get().body == b"fine"


@pytest.mark.parametrize("fields, body", [
    (("Content-Length: 8",), b"eight by"), (("Transfer-Encoding: chunked",), b"8\r\neight by\r\n0\r\n\r\n")])
def test_a_body_that_is_streamed_is_read_before(serve: Serve, fields: tuple[str, ...], body: bytes) -> None:
    def handler(ctx: RequestCtx) -> None:
        with pytest.raises(RuntimeError, match="is read before"):
            ctx.hijack(upper)
        ctx.write(ctx.body)
        ctx.hijack(upper)

    server = serve(handler, stream_request_body=True, workers=2, reactors=1)
    wire = server.connect().send(request("POST", "/", *fields), body, b"x").half_close()
    assert wire.read().body == b"eight by"
    assert wire.read_to_end() == b"Xbye"


def test_a_client_that_goes_is_the_functions_to_find(serve: Serve) -> None:
    found = threading.Event()

    def function(wire: socket.socket, data: bytes) -> None:
        try:
            while wire.recv(100):
                pass
        except ConnectionResetError:
            found.set()

    server = serve(lambda ctx: ctx.hijack(function), workers=2, reactors=1)
    wire = server.connect()
    assert wire.get().status == 200
    wire.reset()
    wait_for(found)
    wait_until(lambda: server.stats()["connections"] == 0, "the slot")


def test_a_stop_says_so_and_waits(serve: Serve) -> None:
    """recv finds the end; what is written still arrives."""
    server = serve(taken, workers=2, reactors=1)
    wires = [server.connect() for _ in range(3)]
    for wire in wires:
        assert wire.get().body == b"yours"
    alone(server, 3)
    assert server.shutdown()
    assert [wire.read_to_end() for wire in wires] == [b"bye"] * 3


def test_what_is_hijacked_while_the_server_stops_is_told_too(serve: Serve) -> None:
    inside, go = threading.Event(), threading.Event()

    def handler(ctx: RequestCtx) -> None:
        inside.set()
        wait_for(go)
        taken(ctx)

    server = serve(handler, workers=2, reactors=1)
    wire = server.connect().send(request())
    wait_for(inside)
    stopping = threading.Thread(target=server.shutdown)
    stopping.start()
    wait_until(server.refuses, "the listeners to close")
    go.set()
    assert wire.read().body == b"yours"
    assert wire.read_to_end() == b"bye"
    stopping.join()
    assert server.clean


def test_a_stop_that_does_not_wait_cuts_it(serve: Serve) -> None:
    go = threading.Event()
    ended: list[bool] = []

    def function(wire: socket.socket, data: bytes) -> None:
        wait_for(go)
        try:
            wire.sendall(b"x")
            ended.append(wire.recv(1) == b"")
        except OSError:
            ended.append(True)

    server = serve(lambda ctx: ctx.hijack(function), workers=2, reactors=1)
    wires = [server.connect() for _ in range(3)]
    for wire in wires:
        assert wire.get().status == 200
    alone(server, 3)
    assert not server.shutdown(0)
    assert all(wire.gone() for wire in wires)
    go.set()
    wait_until(lambda: len(ended) == 3, "the functions")
    assert all(ended)


def test_a_thread_that_cannot_be_had(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    serve.expect_error("could not be hijacked")

    class NoThread(threading.Thread):
        def start(self) -> None:
            raise RuntimeError("can't start new thread")

    server = serve(taken, workers=2, reactors=1)
    monkeypatch.setattr(threading, "Thread", NoThread)
    wire = server.connect()
    assert wire.get().body == b"yours"
    assert wire.gone()


def test_the_log_has_its_line(serve: Serve, tmp_path: Path) -> None:
    log = tmp_path / "access.log"
    server = serve(taken, workers=2, reactors=1, access_log=str(log))
    wire = server.connect()
    assert wire.get("/take").body == b"yours"
    wait_until(lambda: b'"GET /take HTTP/1.1" 200 5 ' in log.read_bytes(), "the line")


def test_a_child_of_fork_leaves_it_alone(serve: Serve) -> None:
    def function(wire: socket.socket, data: bytes) -> None:
        child = os.fork()
        if not child:
            # It returns, as its parent will; what follows in the child ends it.
            wire.detach()
            return
        os.waitpid(child, 0)
        upper(wire, data)

    server = serve(lambda ctx: ctx.hijack(function), workers=2, reactors=1)
    serve.threads_may_stay = True
    wire = server.connect()
    assert wire.get().status == 200
    assert wire.send(b"still there").read_exactly(11) == b"STILL THERE"


def test_many_come_and_go(serve: Serve, chance: random.Random) -> None:
    """Functions that return at once, when the client says so, and behind a word: each slot comes back once."""
    def function(wire: socket.socket, data: bytes) -> None:
        if data != b"0":
            upper(wire, b"")

    server = serve(lambda ctx: ctx.hijack(function), workers=4, reactors=1)

    def client(luck: random.Random) -> None:
        for _ in range(40):
            kind = luck.choice([b"0", b"1"])
            with server.connect() as wire:
                assert wire.send(request(), kind).read().status == 200
                if kind == b"1" and luck.random() < 0.5:
                    assert wire.send(b"word").read_exactly(4) == b"WORD"
                if luck.random() < 0.3:
                    wire.reset()
                else:
                    assert wire.half_close().read_to_end() == (b"bye" if kind == b"1" else b"")

    clients = [threading.Thread(target=client, args=(random.Random(chance.random()),)) for _ in range(6)]
    for thread in clients:
        thread.start()
    for thread in clients:
        thread.join()
    wait_until(lambda: server.stats()["connections"] == 0, "all slots")
    assert server.stats()["hijacked"] == 240
