"""The access log: a line for each reply, in a file that may be moved away, fail, or have a reader that does not read.

Knows: `access_log`, JSON lines, the server's own counts. Never sees: how a line is made (test_logline.py), nor how soon
it is written. Invariant: lines and lost lines together are the replies; nobody waits for the log.
"""

import contextlib
import json
import os
import re
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import test_leaving as leaving
from conftest import Running, Serve, request, wait_for, wait_until
from test_leaving import Run, get

from fastserve import RequestCtx, Server, StartError

script = leaving.script


def lines(server: Running, path: Path, count: int) -> list[dict[str, Any]]:
    """All lines, when there are `count`."""
    wait_until(lambda: server.stats()["access_log_lines"] >= count, f"{count} lines")
    found = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(found) == server.stats()["access_log_lines"] == count
    return found


def handler(ctx: RequestCtx) -> None:
    if ctx.path == "/stream":
        ctx.stream(iter([b"some", b"parts"]))
    else:
        ctx.status = int(ctx.path[1:4])
        ctx.write(b"x" * ctx.status)


def test_a_line_for_each_reply(serve: Serve, tmp_path: Path) -> None:
    """Handlers', streamed, refused, shed by nobody, answered without Python: in order, with what was asked and said."""
    path = tmp_path / "access.log"
    server = serve(handler, workers=3, reactors=1, access_log=str(path), access_log_format="json", health_path="/h")
    wire = server.connect().send(
        request("GET", "/200?q", "Referer: there", "User-Agent: us"), request("POST", "/404", body=b"b"),
        request("HEAD", "/200"), request("GET", "/stream"), request("GET", "/h"), b"GET / nonsense\r\n\r\n")
    replies = [wire.read(head=n == 2) for n in range(6)]
    assert wire.ended()
    found = lines(server, path, 6)
    for n, (reply, line) in enumerate(zip(replies, found, strict=True)):
        assert line["status"] == reply.status
        assert line["bytes"] == len(reply.body)
        assert line["id"] == f"1-{min(n, 4) + 1}"
        assert (line["remote_addr"], line["aborted"]) == ("127.0.0.1", False)
        timed = n < 4
        assert (line["handler_us"] is not None, line["queue_us"] is not None) == (timed, timed)
    assert [(line["method"], line["target"]) for line in found] == [
        ("GET", "/200?q"), ("POST", "/404"), ("HEAD", "/200"), ("GET", "/stream"), ("GET", "/h"), (None, None)]
    assert (found[0]["referer"], found[0]["user_agent"]) == ("there", "us")
    assert (found[1]["referer"], found[1]["user_agent"]) == ("", "")
    assert server.stats()["access_log_lost"] == 0


def test_replies_that_nobody_gets(serve: Serve, tmp_path: Path) -> None:
    """A stream that breaks off, a connection that is told there are too many, a handler that is late."""
    path = tmp_path / "access.log"
    go = threading.Event()

    def handler(ctx: RequestCtx) -> None:
        if ctx.path == "/late":
            wait_for(go)
        else:
            ctx.stream(iter(["some", 1]))

    serve.expect_error("took longer than its timeout")
    serve.expect_error("TypeError")
    server = serve(handler, workers=4, reactors=1, access_log=str(path), access_log_format="json", concurrency=1,
                   handler_timeout=0.2)
    with server.connect() as late:
        late.send(request("GET", "/late"))
        wait_until(lambda: server.stats()["connections"] == 1, "the connection")
        with server.connect() as rejected:
            assert rejected.read().status == 503
        assert late.read().status == 504
        go.set()
    wait_until(lambda: server.stats()["slots"] == 0, "room")
    with server.connect() as broken:
        broken.send(request("GET", "/broken"))
        with contextlib.suppress(ConnectionResetError):
            broken.read_to_end()
    found = {line["target"]: line for line in lines(server, path, 3)}
    assert [found[target]["status"] for target in (None, "/late", "/broken")] == [503, 504, 200]
    assert [found[target]["aborted"] for target in (None, "/late", "/broken")] == [False, False, True]


@pytest.mark.parametrize("reactors", [1, 3])
def test_many_replies_are_many_lines(serve: Serve, tmp_path: Path, reactors: int) -> None:
    path = tmp_path / "access.log"
    pause = threading.Event()

    def handler(ctx: RequestCtx) -> None:
        if ctx.path.endswith("7"):
            pause.wait(0.001)
        ctx.write(ctx.path)

    server = serve(handler, workers=8, reactors=reactors, access_log=str(path), access_log_format="json")

    def client(number: int) -> None:
        with server.connect() as wire:
            for turn in range(20):
                wire.send(*(request("GET", f"/{number}/{turn}/{n}") for n in range(10)))
                for n in range(10):
                    assert wire.read().body == f"/{number}/{turn}/{n}".encode()

    threads = [threading.Thread(target=client, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = lines(server, path, 1600)
    assert len({line["id"] for line in found}) == 1600
    for number in range(8):
        own = [line["target"] for line in found if line["target"].startswith(f"/{number}/")]
        assert own == [f"/{number}/{t}/{n}" for t in range(20) for n in range(10)]


def test_moved_away_and_opened_again(serve: Serve, tmp_path: Path) -> None:
    path, moved = tmp_path / "access.log", tmp_path / "access.log.1"
    server = serve(handler, workers=2, access_log=str(path))
    assert server.get("/200").status == 200
    wait_until(lambda: server.stats()["access_log_lines"] == 1, "a line")
    path.rename(moved)
    server.server.reopen_access_log()
    wait_until(path.exists, "a new file")
    assert server.get("/404").status == 404
    wait_until(lambda: server.stats()["access_log_lines"] == 2, "a line")
    assert [text.read_text().count("\n") for text in (moved, path)] == [1, 1]
    assert re.search(r'"GET /404 HTTP/1\.1" 404 404 "-" "-" [0-9]+ [0-9]+ [0-9]+ 2-1\n', path.read_text())


def test_where_it_cannot_be_opened_again_the_old_file_goes_on(serve: Serve, tmp_path: Path) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    server = serve(handler, workers=2, access_log=str(folder / "log"))
    kept = tmp_path / "kept"
    folder.rename(kept)
    server.server.reopen_access_log()
    serve.expect_error("the access log cannot be written")
    wait_until(serve.errors, "the error")
    assert server.get("/200").status == 200
    wait_until(lambda: (kept / "log").read_text().count("\n") == 1, "the line")


def test_usr1_and_standard_output(script: Run, tmp_path: Path) -> None:
    """By signal in a process of its own; and what is left is written before the process ends."""
    path = tmp_path / "log"
    process = script(f"""
Server(hello, workers=2, access_log={str(path)!r}).serve("127.0.0.1:0", ready=ready)
""")
    [address] = process.addresses()
    assert get(address)
    wait_until(lambda: path.read_text().count("\n") == 1, "a line")
    path.rename(tmp_path / "old")
    os.kill(process.popen.pid, signal.SIGUSR1)
    wait_until(path.exists, "a new file")
    for _ in range(50):
        assert get(address)
    process.popen.terminate()
    assert process.status() == 0
    assert path.read_text().count("\n") == 50

    process = script("""
Server(hello, workers=2, access_log="-").serve("127.0.0.1:0", ready=ready)
""")
    [address] = process.addresses()
    assert get(address)
    assert '"GET / HTTP/1.1" 200 5' in process.line()


def test_standard_output_that_is_a_file(script: Run, tmp_path: Path) -> None:
    """What handlers print and what the log writes stand one behind the other, not one over the other."""
    path = tmp_path / "out"
    process = script(f"""
ours = os.dup(1)
os.dup2(os.open({str(path)!r}, os.O_WRONLY | os.O_CREAT), 1)
def handler(ctx):
    os.write(1, b"printed" + bytes([10]))
def ready(server):
    os.write(ours, ("ready " + server.addresses[0] + chr(10)).encode())
Server(handler, workers=2, access_log="-").serve("127.0.0.1:0", ready=ready)
""")
    [address] = process.addresses()
    for _ in range(50):
        assert get(address)
    process.popen.terminate()
    assert process.status() == 0
    told = path.read_bytes().splitlines()
    assert len(told) == 100
    assert told.count(b"printed") == sum(b'"GET / HTTP/1.1" 200' in line for line in told) == 50


def test_a_reader_that_does_not_read(serve: Serve, tmp_path: Path) -> None:
    """A pipe that is full: every request is answered, lines are lost and counted, and the server ends."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        server = serve(lambda ctx: ctx.write("x"), workers=2, reactors=1, access_log=str(path))
        wire = server.connect().send(request())
        wire.more()
        size = len(wire.pending)
        assert wire.read().body == b"x"
        for _ in range(120):
            assert wire.send(*[request()] * 100).read_exactly(100 * size).count(b"\r\n\r\nx") == 100
        assert server.stats()["access_log_lost"] > 0
        server.close_clients()
        assert server.shutdown()
        stats = server.stats()
        assert stats["access_log_lines"] + stats["access_log_lost"] == 12_001
        assert 0 < os.read(reader, 2**20).count(b"\n") == stats["access_log_lines"]
    finally:
        os.close(reader)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
def test_a_file_that_fails(serve: Serve) -> None:
    serve.expect_error("the access log cannot be written")
    server = serve(handler, workers=2, access_log="/dev/full")
    for _ in range(3):
        assert server.get("/200").status == 200
    wait_until(lambda: server.stats()["access_log_lost"] == 3, "the count of lost lines")
    wait_until(serve.errors, "the error")
    assert server.stats()["access_log_lines"] == 0


def test_what_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(StartError, match=r"^cannot write .*nowhere/log: No such file or directory$"):
        Server(handler, access_log=str(tmp_path / "nowhere" / "log")).start("127.0.0.1:0")


def test_a_terminal_that_nobody_reads_holds_nobody(script: Run, tmp_path: Path) -> None:
    """Standard output says that there is room and then takes no more; TERM ends the process all the same."""
    ours, theirs = os.openpty()
    try:
        process = script(f"""
def ready(server):
    say("ready", *server.addresses)
    os.dup2(terminal, 1)
terminal = os.open({os.ttyname(theirs)!r}, os.O_RDWR | os.O_NOCTTY)
kept = os.dup(1)
os.dup2(terminal, 1)
server = Server(hello, workers=2, access_log="-")
os.set_blocking(terminal, True)
def say(*words):
    os.write(kept, (" ".join(map(str, words)) + "\\n").encode())
server.serve("127.0.0.1:0", ready=ready)
""")
        [address] = process.addresses()
        for _ in range(300):
            assert get(address)
        process.popen.terminate()
        assert process.status() == 0
    finally:
        os.close(ours)
        os.close(theirs)


def test_a_pipe_without_a_reader_is_an_error(tmp_path: Path) -> None:
    """At once, and when it is opened again: nobody waits for somebody to come and read."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with pytest.raises(StartError, match=r"^cannot write .*pipe: No such device or address$"):
        Server(handler, access_log=str(path)).start("127.0.0.1:0")


def test_a_pipe_whose_reader_has_gone(serve: Serve, tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    server = serve(handler, workers=2, access_log=str(path))
    os.close(reader)
    server.server.reopen_access_log()
    serve.expect_error("the access log cannot be written")
    wait_until(serve.errors, "the error")
    assert server.get("/200").status == 200
    wait_until(lambda: server.stats()["access_log_lost"] == 1, "the line to be lost")


def test_the_reply_before_a_handler_that_blocks(serve: Serve, tmp_path: Path, release: threading.Event) -> None:
    """It has left, and so its line does not wait; nor is it said to be broken off when the next one is."""
    path = tmp_path / "log"
    entered = threading.Event()

    def handler(ctx: RequestCtx) -> None:
        if ctx.path == "/blocks":
            entered.set()
            wait_for(release)
            ctx.stream(iter(["some", 1]))
        ctx.write("x")

    serve.expect_error("TypeError")
    server = serve(handler, workers=3, reactors=1, access_log=str(path), access_log_format="json")
    wire = server.connect().send(request("GET", "/first"), request("GET", "/blocks"))
    assert wire.read().body == b"x"
    wait_for(entered)
    [line] = lines(server, path, 1)
    assert (line["target"], line["aborted"]) == ("/first", False)
    release.set()
    with contextlib.suppress(ConnectionResetError):
        wire.read_to_end()
    first, second = lines(server, path, 2)
    assert (first["aborted"], second["aborted"], second["target"]) == (False, True, "/blocks")
