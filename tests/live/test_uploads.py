"""Forms whose body the handler streams: read as they arrive, in bounded memory, with nothing left behind.

Knows: `form`, `files`, `stream_request_body`, `on_headers`, raw sockets. Never sees: how a form is taken apart, which
tests/unit/test_forms.py does. Invariant: when a call has ended no temporary file is open.
"""

import gc
import hashlib
import os
import sys
import tempfile
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from conftest import Serve, Wire, chunked, request, wait_for, wait_until

from fastserve import BadRequest, ClientGone, ContextExpired, File, MissingExtra, RequestCtx, _core
from fastserve.uploads import Spool

MIB = 1 << 20
MULTIPART = "Content-Type: multipart/form-data; boundary=B"
URLENCODED = "Content-Type: application/x-www-form-urlencoded"
CHUNKED = "Transfer-Encoding: chunked"


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where temporary files are made."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))


def spools() -> int:
    """How many temporary files are open."""
    place = tempfile.gettempdir()
    assert os.listdir(place) == [], "a temporary file has a name"
    found = 0
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            found += os.readlink(f"/proc/self/fd/{name}").startswith(place)
    return found


def part(content: bytes, filename: str | None = "x", name: str = "f") -> bytes:
    more = "" if filename is None else f'; filename="{filename}"\r\nContent-Type: text/x'
    return f'--B\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n'.encode() + content + b"\r\n"


def form(*parts: bytes) -> bytes:
    return b"".join(parts) + b"--B--\r\n"


def upload(body: bytes, *fields: str) -> bytes:
    return request("POST", "/", MULTIPART, *fields, body=body)


LARGE = part(bytes(3 * MIB))


@pytest.fixture
def large_ones(serve: Serve) -> Iterator[Callable[..., Any]]:
    """As `serve`, with handlers that stream, and bodies of any size; no temporary file is open at the end."""
    def start(handler: Callable[[RequestCtx], None], **config: Any) -> Any:
        return serve(handler, **{"workers": 2, "stream_request_body": True, "max_request_body_size": 64 * MIB} | config)

    yield start
    wait_until(lambda: not spools(), "temporary files to be closed")


# What is read


@pytest.mark.parametrize("framing", ["length", "chunked"])
@pytest.mark.parametrize("who", ["config", "hook"])
def test_an_upload_takes_little_memory(large_ones: Callable[..., Any], framing: str, who: str) -> None:
    content = os.urandom(MIB) * 20
    body = form(part(b"before", None, "a"), part(content), part(b"small"), part(b"behind", None, "b"))
    head = request("POST", "/", MULTIPART, CHUNKED if framing == "chunked" else f"Content-Length: {len(body)}")
    sent = head + (chunked(body, 30_000, 1, 100_000) if framing == "chunked" else body)
    peaks: list[int] = []

    def handler(ctx: RequestCtx) -> None:
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        file, small = ctx.files.getall("f")
        with file.open() as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        peaks.append(tracemalloc.get_traced_memory()[1] - before)
        assert spools() == 1
        assert (file.filename, file.content_type, file.size) == ("x", "text/x", len(content))
        assert small.read() == b"small"
        assert ctx.form.items() == [("a", "before"), ("b", "behind")]
        assert ctx.files is ctx.files and ctx.body == b""
        ctx.write(digest)

    config: dict[str, Any] = {} if who == "config" else {
        "stream_request_body": False, "on_headers": lambda ctx: setattr(ctx, "stream_body", True)}
    server = large_ones(handler, **config)
    wire = server.connect()
    tracemalloc.start()
    try:
        for _ in range(2):
            wire.socket.sendall(sent)
            assert wire.read().body.decode() == hashlib.sha256(content).hexdigest()
            assert spools() == 0        # before the reply has left
    finally:
        tracemalloc.stop()
    assert max(peaks) < 4 * MIB


def test_a_form_arrives_byte_by_byte(large_ones: Callable[..., Any], tmp_path: Path) -> None:
    def handler(ctx: RequestCtx) -> None:
        ctx.files["f"].save(tmp_path / "saved")
        ctx.write(f"{ctx.form['a']} {ctx.files['f'].size}")

    body = form(part(b"1", None, "a"), part(b"\r\n--\r\n--A"))
    server = large_ones(handler)
    assert server.exchange(request("POST", "/", MULTIPART, CHUNKED), chunked(body, 1)).body == b"1 9"
    assert (tmp_path / "saved").read_bytes() == b"\r\n--\r\n--A"


def test_100_is_said_to_a_form(large_ones: Callable[..., Any]) -> None:
    wire = large_ones(lambda ctx: ctx.write(ctx.form["a"])).connect()
    body = form(part(b"1", None, "a"))
    wire.send(request("POST", "/", MULTIPART, f"Content-Length: {len(body)}", "Expect: 100-continue"))
    assert wire.read(interim=True).status == 100
    assert wire.send(body).read().body == b"1"


def test_the_body_before_its_form(large_ones: Callable[..., Any]) -> None:
    """Who has the whole body in memory has its form from there."""
    def handler(ctx: RequestCtx) -> None:
        size = len(ctx.body)
        assert ctx.files["f"].size == 3 * MIB and not spools()
        ctx.write(str(size))

    body = form(LARGE)
    assert large_ones(handler).exchange(upload(body)).body == str(len(body)).encode()


def test_a_body_that_was_begun_is_no_form(large_ones: Callable[..., Any]) -> None:
    """What is left of one says something else."""
    seen: list[str] = []

    def handler(ctx: RequestCtx) -> None:
        assert ctx.body_stream.read(4) == b"a=1&"
        if ctx.query:
            assert ctx.body == b"role=admin"
        for name in ("form", "files"):
            with pytest.raises(RuntimeError) as caught:
                getattr(ctx, name)
            seen.append(str(caught.value))
        assert ctx.body == b"role=admin"
        ctx.replace_body(b"b=2")                # unless it says itself that this is the body
        ctx.write(f"{ctx.form} {ctx.body_stream.read(1)!r} {ctx.body_stream.read()!r}")

    server = large_ones(handler)
    for path in ("/", "/?whole"):
        reply = server.exchange(request("POST", path, URLENCODED, body=b"a=1&role=admin"))
        assert reply.body == b"Args([('b', '2')]) b'b' b'=2'"
    assert seen == ["some of this form was read from body_stream before"] * 4


def test_two_types_are_none(large_ones: Callable[..., Any]) -> None:
    """Which boundary is meant, somebody in front may have taken otherwise."""
    for streamed in (False, True):
        server = large_ones(lambda ctx: ctx.write(str(len(ctx.files))), stream_request_body=streamed)
        reply = server.exchange(upload(form(part(b"1")), MULTIPART.replace("=B", "=C")))
        assert (reply.status, reply.body) == (400, b"Content-Type stands more than once")


def test_files_of_a_body_that_was_replaced(large_ones: Callable[..., Any]) -> None:
    """They belong to the call, not to the body."""
    kept: list[File] = []

    def handler(ctx: RequestCtx) -> None:
        kept.append(ctx.files["f"])
        ctx.replace_body(form(part(b"new")))
        kept.append(ctx.files["f"])
        ctx.write(f"{kept[0].size} {kept[1].read().decode()}")

    assert large_ones(handler).exchange(upload(form(LARGE))).body == b"3145728 new"
    for file in kept:
        with pytest.raises(ContextExpired):
            file.read()


def test_a_form_of_a_body_that_is_replaced_meanwhile(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asked before has the one of the body that was there; nobody has it afterwards."""
    read = _core.parse_multipart
    inside, go = threading.Event(), threading.Event()

    def slow(content_type: str, body: bytes) -> Any:
        found = read(content_type, body)
        inside.set()
        wait_for(go)
        return found

    def handler(ctx: RequestCtx) -> None:
        told: list[Any] = []
        thread = threading.Thread(target=lambda: told.append(ctx.form.get("f")))
        thread.start()
        wait_for(inside)
        ctx.replace_body(form(part(b"new", None)))
        go.set()
        thread.join()
        ctx.write(f"{told} {ctx.form.get('f')}")

    monkeypatch.setattr(_core, "parse_multipart", slow)
    assert serve(handler, workers=2).exchange(upload(form(part(b"old", None)))).body == b"['old'] new"


def test_a_stream_is_for_the_thread_of_its_handler(large_ones: Callable[..., Any]) -> None:
    """Another may ask for the form when it has been read; that it asked before does no harm."""
    def elsewhere(ask: Callable[[], Any]) -> Any:
        told: list[Any] = []

        def run() -> None:
            try:
                told.append(ask())
            except RuntimeError as error:
                told.append(str(error))

        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
        return told[0]

    def handler(ctx: RequestCtx) -> None:
        assert "thread that the handler was called in" in elsewhere(lambda: ctx.files)
        assert ctx.files["f"].size == 3 * MIB
        assert elsewhere(lambda: ctx.files["f"].read()) == bytes(3 * MIB)
        ctx.write("done")

    assert large_ones(handler).exchange(upload(form(LARGE))).body == b"done"


# What is refused


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(("body", "why"), [
    (b"nonsense", b"it does not begin with its boundary"),
    (LARGE, b"it does not end with its boundary"),
    (form(LARGE) + b"more", b"bytes behind its end"),
    (form(LARGE, b"--B\r\nX: 1\r\n\r\n\r\n"), b"Missing Content-Disposition segment header"),
    (form(LARGE, b"--B\r\nX: " + b"x" * 10_000 + b"\r\n\r\n\r\n"), b"the head of a part is too long"),
])
def test_a_malformed_form(large_ones: Callable[..., Any], streamed: bool, body: bytes, why: bytes) -> None:
    server = large_ones(lambda ctx: ctx.write(str(len(ctx.files))), stream_request_body=streamed)
    for sent in (upload(body), request("POST", "/", MULTIPART, CHUNKED) + chunked(body, 50_000)):
        reply = server.exchange(sent)
        assert (reply.status, reply.body) == (400, b"malformed multipart/form-data: " + why)


@pytest.mark.parametrize(("kind", "fault", "rest", "why"), [
    (MULTIPART, b"--B\r\nX: 1\r\n\r\n\r\n--B--", form(part(b"1", None)),
     ("malformed multipart/form-data: Missing Content-Disposition segment header", 400)),
    (URLENCODED, b"x" * (MIB + 1), b"f=1", ("the fields of this form are larger than 1048576 bytes together", 413)),
])
def test_what_a_fault_leaves_is_no_form(large_ones: Callable[..., Any], kind: str, fault: bytes, rest: bytes,
                                        why: tuple[str, int]) -> None:
    """Else a client could say what it likes to a handler that looks twice."""
    told: list[tuple[str, int]] = []
    failed, sent = threading.Event(), threading.Event()

    def look(name: str, ctx: RequestCtx) -> None:
        with pytest.raises(BadRequest) as caught:
            getattr(ctx, name)
        told.append((str(caught.value), caught.value.status))

    def handler(ctx: RequestCtx) -> None:
        look("form", ctx)
        failed.set()
        wait_for(sent)
        look("files", ctx)
        assert ctx.body == rest
        look("form", ctx)
        ctx.replace_body(rest)                  # unless it says itself that this is the body
        ctx.write(str(len(ctx.form)))

    wire = large_ones(handler).connect()
    wire.send(request("POST", "/", kind, CHUNKED), chunked(fault)[:-5])
    wait_for(failed)
    wire.send(chunked(rest))
    sent.set()
    assert wire.read().body == b"1"
    assert told == [why] * 3


def test_fields_beyond_their_bound(large_ones: Callable[..., Any]) -> None:
    """Of a body that is streamed: any other is in memory anyway."""
    half = b"x" * (MIB // 2)
    for streamed, status in ((True, 413), (False, 200)):
        server = large_ones(lambda ctx: ctx.write(str(len(ctx.form))), stream_request_body=streamed)
        reply = server.exchange(upload(form(part(half, None), part(half, None))))
        assert reply.status == status
        reply = server.exchange(request("POST", "/", URLENCODED, body=b"a=" + half + b"&b=" + half))
        assert reply.status == status
        reply = server.exchange(upload(form(part(half, None), part(half[1000:], None))))
        assert (reply.status, reply.body) == (200, b"2")


def test_a_body_beyond_its_limit(large_ones: Callable[..., Any]) -> None:
    server = large_ones(lambda ctx: ctx.write(str(len(ctx.files))), max_request_body_size=2 * MIB)
    for sent in (upload(form(LARGE)), request("POST", "/", MULTIPART, CHUNKED) + chunked(form(LARGE), 60_000)):
        reply = server.exchange(sent)
        assert (reply.status, reply.closes) == (413, True)


def test_a_malformed_body_of_a_form(large_ones: Callable[..., Any]) -> None:
    server = large_ones(lambda ctx: ctx.write(str(len(ctx.files))))
    raw = chunked(LARGE, 60_000)[:-5] + b"zz\r\n"
    assert server.exchange(request("POST", "/", MULTIPART, CHUNKED) + raw).status == 400


def test_without_the_library(serve: Serve, large_ones: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def handler(ctx: RequestCtx) -> None:
        if ctx.headers["content-type"].startswith("multipart"):
            with pytest.raises(MissingExtra, match=r"fastserve-http\[forms\]"):
                assert ctx.files
            with pytest.raises(MissingExtra, match=r"fastserve-http\[forms\]"):
                assert ctx.form
            ctx.write(str(len(ctx.body)))       # which nobody has read
        else:
            ctx.write(ctx.form["a"])

    server = large_ones(handler)
    monkeypatch.setitem(sys.modules, "multipart", None)
    body = form(part(b"1"))
    assert server.exchange(upload(body)).body == str(len(body)).encode()
    assert server.exchange(request("POST", "/", URLENCODED, body=b"a=b")).body == b"b"


# What ends in the middle


def test_a_client_that_goes(large_ones: Callable[..., Any]) -> None:
    seen: list[BaseException] = []

    def handler(ctx: RequestCtx) -> None:
        try:
            assert ctx.files
        except ClientGone as error:
            seen.append(error)
            raise

    server = large_ones(handler)
    for end in (Wire.close, Wire.reset, Wire.half_close):
        for sent in (request("POST", "/", MULTIPART, "Content-Length: 9000000") + LARGE,
                     request("POST", "/", MULTIPART, CHUNKED) + chunked(LARGE, 60_000)[:-5]):
            wire = server.connect().send(sent)
            wait_until(spools, "the temporary file")
            end(wire)
            wait_until(lambda: not spools(), "its end")
    wait_until(lambda: len(seen) == 6)
    wait_until(lambda: server.stats()["aborted"] == 6)


def test_a_handler_that_raises(serve: Serve, large_ones: Callable[..., Any]) -> None:
    serve.expect_error("POST / failed: ZeroDivisionError")
    kept: list[File] = []

    def handler(ctx: RequestCtx) -> None:
        kept.extend(ctx.files.values())
        assert spools() == 1
        raise ZeroDivisionError

    wire = large_ones(handler).connect()
    for _ in range(3):
        assert wire.send(upload(form(LARGE, part(b"small")))).read().status == 500
        assert spools() == 0
    for file in kept:
        with pytest.raises(ContextExpired):
            file.read()


def test_the_time_of_a_handler_is_up(serve: Serve, large_ones: Callable[..., Any]) -> None:
    serve.expect_error("a handler took longer than its timeout")
    seen: list[BaseException] = []

    def handler(ctx: RequestCtx) -> None:
        try:
            assert ctx.files
        except ContextExpired as error:
            seen.append(error)
            raise

    wire = large_ones(handler, handler_timeout=0.2, workers=3).connect()
    wire.send(request("POST", "/", MULTIPART, "Content-Length: 9000000"), LARGE)
    wait_until(spools, "the temporary file")
    reply = wire.read()
    assert (reply.status, reply.closes) == (504, True)
    wire.send(b"x" * 100_000)
    wait_until(lambda: seen, "the handler")


@pytest.mark.filterwarnings("error::ResourceWarning")
def test_the_time_is_up_when_all_has_come(serve: Serve, large_ones: Callable[..., Any],
                                          monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody gets these files; they are closed, not forgotten."""
    serve.expect_error("a handler took longer than its timeout")
    told = threading.Event()
    flush = Spool.flush

    def late(spool: Spool) -> None:
        wait_for(told)
        flush(spool)

    monkeypatch.setattr(Spool, "flush", late)
    wire = large_ones(lambda ctx: ctx.write(str(len(ctx.files))), handler_timeout=0.2, workers=3).connect()
    assert wire.send(upload(form(LARGE))).read().status == 504
    told.set()
    wait_until(lambda: not spools())


def test_a_disk_that_is_full(serve: Serve, large_ones: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """That is nobody's fault but ours; what is left of the body is no form either."""
    serve.expect_error("POST / failed: FileNotFoundError")
    seen: list[str] = []

    def handler(ctx: RequestCtx) -> None:
        try:
            assert ctx.files
        except FileNotFoundError:
            with pytest.raises(RuntimeError) as caught:
                assert ctx.form
            seen.append(str(caught.value))
            raise

    server = large_ones(handler)
    with monkeypatch.context() as patch:
        patch.setattr("tempfile.tempdir", "/nowhere")
        assert server.exchange(upload(form(LARGE))).status == 500
    assert seen == ["this form was not read to its end"]


@pytest.mark.parametrize("cycle", [False, True])
def test_a_forgotten_ctx(serve: Serve, large_ones: Callable[..., Any], cycle: bool) -> None:
    """Nothing of ours keeps one alive that nobody has, and who finds it takes its files along: they end with it."""
    serve.expect_error("a detached ctx was forgotten")
    kept: list[File] = []

    def handler(ctx: RequestCtx) -> None:
        kept.append(ctx.files["f"])
        assert ctx.body_stream.read() == b""
        if cycle:
            ctx.user_values["itself"] = ctx
        ctx.detach()

    server = large_ones(handler)
    gc.disable()
    try:
        wire = server.connect().send(upload(form(LARGE)))
        if cycle:
            wait_until(lambda: gc.collect() >= 0 and not wire.silent(), "the collector to find it")
        assert wire.read().status == 500
    finally:
        gc.enable()
    with pytest.raises(ContextExpired):
        kept[0].read()
    assert not spools()


# Behind the call


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("keeps_ctx", [False, True])
def test_files_expire(large_ones: Callable[..., Any], tmp_path: Path, streamed: bool, keeps_ctx: bool) -> None:
    """In memory and in a temporary file alike, while the same worker may be in the next call."""
    kept: list[File] = []
    contexts: list[RequestCtx] = []

    def handler(ctx: RequestCtx) -> None:
        for file in kept:
            for name in dir(File):
                if not name.startswith("_"):
                    with pytest.raises(ContextExpired):
                        value = getattr(file, name)
                        value(*([tmp_path / "late"] if name == "save" else []))
            assert repr(file) == "File(expired)"
        kept.extend(ctx.files.values())
        if keeps_ctx:
            contexts.append(ctx)
        ctx.write(str([file.size for file in ctx.files.values()]))

    wire = large_ones(handler, stream_request_body=streamed).connect()
    for _ in range(4):
        assert wire.send(upload(form(LARGE, part(b"small")))).read().body == b"[3145728, 5]"
        assert spools() == 0
    assert len({id(ctx) for ctx in contexts}) == len(contexts)
    assert not (tmp_path / "late").exists()


def test_a_thread_reads_on(large_ones: Callable[..., Any]) -> None:
    """A file of the call that it was of, or ContextExpired."""
    strange: list[object] = []
    current: list[tuple[File, bytes]] = []
    done, seen = threading.Event(), threading.Event()

    def spy() -> None:
        while not done.is_set():
            for file, first in list(current):
                try:
                    found = {file.read()[:1], file.open().read(1)}
                except ContextExpired:
                    continue
                except BaseException as error:
                    strange.append(error)
                    return
                finally:
                    seen.set()
                if found != {first}:
                    strange.append(found)

    def handler(ctx: RequestCtx) -> None:
        file = ctx.files["f"]
        seen.clear()
        current[:] = [(file, file.open().read(1))]
        wait_for(seen, "the thread")
        ctx.write("done")

    wire = large_ones(handler).connect()
    thread = threading.Thread(target=spy, daemon=True)
    thread.start()
    try:
        for number in range(10):
            wire.send(upload(form(part(b"%d" % number * (2 * MIB)))))
            assert wire.read().body == b"done"
    finally:
        done.set()
        thread.join()
    assert not strange
