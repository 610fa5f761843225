"""Files as replies, and the files below a directory.

Knows: `send_file`, `set_body_file`, `StaticFiles`, what the kernel finds below a directory.
Never sees: how conditions and ranges are read (tests/unit/test_conditions.py).
"""

import contextlib
import gzip
import os
import random
import socket
import threading
import time
from datetime import UTC, datetime
from email import message_from_bytes
from pathlib import Path
from typing import Any

import _probe
import pytest
from conftest import Reply, Running, Serve, request, wait_for, wait_until

from fastserve import RequestCtx, StaticFiles
from fastserve.dates import format_date, parse_date
from tests.live.test_ctx import say

SIZES = [0, 1, 16384, 16385, 100_000, 3_000_000]


def file_of(folder: Path, size: int, name: str = "file.bin") -> tuple[Path, bytes]:
    path = folder / name
    content = random.Random(size).randbytes(size)
    path.write_bytes(content)
    os.utime(path, ns=(0, 1_700_000_000_500_000_000))
    return path, content


def asked(server: Running, method: str, path: str = "/", *fields: str) -> Reply:
    with server.connect() as wire:
        return wire.send(request(method, path, *fields)).read(head=method == "HEAD")


@pytest.mark.parametrize("size", SIZES)
def test_a_file(serve: Serve, tmp_path: Path, size: int) -> None:
    path, content = file_of(tmp_path, size)
    server = serve(lambda ctx: ctx.send_file(path), workers=2)
    with server.connect() as wire:
        for _ in range(3):
            reply = wire.get()
            assert reply.body == content
    assert {name: reply.get(name) for name in ("Content-Type", "Content-Length", "Accept-Ranges", "Last-Modified")} == {
        "Content-Type": "application/octet-stream", "Content-Length": str(size), "Accept-Ranges": "bytes",
        "Last-Modified": "Tue, 14 Nov 2023 22:13:20 GMT"}
    head = asked(server, "HEAD")
    assert (head.status, head.get("Content-Length"), head.body) == (200, str(size), b"")
    assert head.get("ETag") == reply.get("ETag")


def test_pipelined_and_mixed(serve: Serve, tmp_path: Path) -> None:
    files = [file_of(tmp_path, size, str(size)) for size in SIZES]

    def handler(ctx: RequestCtx) -> None:
        if ctx.path == "/small":
            ctx.write("small")
        else:
            ctx.send_file(tmp_path / ctx.path[1:])

    server = serve(handler, workers=2)
    with server.connect() as wire:
        for _ in range(5):
            for path, _ in files:
                wire.send(request("GET", f"/{path.name}"), request("GET", "/small"))
            for _, content in files:
                assert wire.read().body == content
                assert wire.read().body == b"small"


@pytest.mark.parametrize(("name", "kind"), [
    ("a.html", "text/html; charset=utf-8"), ("a.css", "text/css; charset=utf-8"),
    ("a.JS", "text/javascript; charset=utf-8"),
    ("a.png", "image/png"), ("a.svg", "image/svg+xml"), ("a.json", "application/json"), ("a.wasm", "application/wasm"),
    ("a", "application/octet-stream"), ("a.unknown", "application/octet-stream"), ("a.tar.gz", "application/gzip"),
])
def test_media_types(serve: Serve, tmp_path: Path, name: str, kind: str) -> None:
    path, _ = file_of(tmp_path, 10, name)
    assert say(serve, lambda ctx: ctx.send_file(path)).get("Content-Type") == kind
    assert say(serve, lambda ctx: ctx.send_file(path, "x/y")).get("Content-Type") == "x/y"


def test_a_descriptor_stays_the_caller_s(serve: Serve, tmp_path: Path) -> None:
    path, content = file_of(tmp_path, 50_000)
    with path.open("rb") as file:
        server = serve(lambda ctx: ctx.send_file(file.fileno(), "x/y"), workers=2)
        for _ in range(3):
            reply = server.get()
            assert (reply.body, reply.get("Content-Type")) == (content, "x/y")
        assert file.read() == content


def test_fields_that_were_set_stay(serve: Serve, tmp_path: Path) -> None:
    path, _ = file_of(tmp_path, 10)
    reply = say(serve, lambda ctx: ctx.set_header("ETag", '"mine"'),
                lambda ctx: ctx.set_header("Accept-Ranges", "none"), lambda ctx: ctx.send_file(path))
    assert (reply.getall("ETag"), reply.getall("Accept-Ranges")) == (['"mine"'], ["none"])


@pytest.mark.parametrize("size", [10, 50_000])
def test_what_is_said_last_counts(serve: Serve, tmp_path: Path, size: int) -> None:
    path, content = file_of(tmp_path, size)
    for steps, body in (
        ((lambda ctx: ctx.send_file(path), lambda ctx: ctx.set_body("mine")), b"mine"),
        ((lambda ctx: ctx.write("mine"), lambda ctx: ctx.send_file(path)), content),
        ((lambda ctx: ctx.send_file(path), lambda ctx: ctx.send_file(path)), content),
        ((lambda ctx: ctx.send_file(path), lambda ctx: ctx.error("no", 404)), b"no"),
        ((lambda ctx: ctx.send_file(path), lambda ctx: ctx.stream([b"streamed"])), b"streamed"),
    ):
        assert say(serve, *steps).body == body


@pytest.mark.parametrize(("first", "second"), [(10, 50_000), (50_000, 20), (30, 40)])
def test_what_came_with_a_file_goes_with_it(serve: Serve, tmp_path: Path, first: int, second: int) -> None:
    """Whether all of it was to be sent, a part, several, or nothing."""
    one, _ = file_of(tmp_path, first, "one")
    two, content = file_of(tmp_path, second, "two")

    def handler(ctx: RequestCtx) -> None:
        ctx.set_header("X", "kept")
        ctx.send_file(one)
        if ctx.path == "/other":
            ctx.set_header("ETag", '"other"')
        if ctx.path == "/text":
            ctx.write("te")
            ctx.write("xt")
        else:
            ctx.send_file(two)

    server = serve(handler, workers=2)
    alone = serve(lambda ctx: ctx.send_file(two), workers=2).get()
    tag = serve(lambda ctx: ctx.send_file(one), workers=2).get().get("ETag")
    assert tag != alone.get("ETag")
    for fields in ([], [f"If-None-Match: {tag}"], ["Range: bytes=99999999-"]):
        reply = asked(server, "GET", "/", *fields)
        assert (reply.status, reply.get("X")) == ((416, None) if "Range" in str(fields) else (200, "kept")), fields
        if reply.status == 200:
            assert (reply.body, reply.getall("ETag")) == (content, alone.getall("ETag"))
    for text, found in (("0-3", content[:4]), (f"{first - 2}-", content[first - 2:])):
        reply = asked(server, "GET", "/", f"Range: bytes={text}")
        assert (reply.status, reply.body, reply.getall("ETag")) == (206, found, alone.getall("ETag")) or not found
        assert len(reply.getall("Content-Range")) == 1
    for fields in ([], [f"If-None-Match: {tag}"], ["Range: bytes=0-3"], ["Range: bytes=0-0,2-3"],
                   ["Range: bytes=0-0,2-9000"]):
        reply = asked(server, "GET", "/text", *fields)
        assert (reply.status, reply.body, reply.get("ETag"), reply.get("Last-Modified"), reply.get("Content-Range"),
                reply.get("X"), reply.get("Content-Type")) == (
                    200, b"text", None, None, None, "kept", "text/plain; charset=utf-8")
    # What is told instead of a file is no file's.
    for field, status in (("Range: bytes=99999999-", 416), ('If-Match: "x"', 412)):
        reply = asked(server, "GET", "/text", field)
        assert reply.status == status and reply.body.endswith(b"text")
    assert asked(server, "GET", "/other").getall("ETag") == ['"other"']


def test_nothing_of_a_file_is_left_for_the_next(serve: Serve, tmp_path: Path) -> None:
    """What came with the file of a call is not looked for in the next one."""
    path, _ = file_of(tmp_path, 50_000)

    def handler(ctx: RequestCtx) -> None:
        if ctx.path == "/file":
            ctx.send_file(path)
            return
        ctx.set_header("Accept-Ranges", "bytes")
        ctx.status = 206
        ctx.set_body_file(os.open(path, os.O_RDONLY), 0, 20_000)
        ctx.set_body("mine")

    with serve(handler, workers=2).connect() as wire:
        for _ in range(4):
            assert len(wire.get("/file", "Range: bytes=0-19999").body) == 20_000
            reply = wire.get()
            assert (reply.status, reply.get("Accept-Ranges"), reply.body) == (206, "bytes", b"mine")


def test_what_cannot_be_said_of_a_file(serve: Serve, tmp_path: Path) -> None:
    """Before there is half a reply: no room for its fields, a type that is none."""
    path, _ = file_of(tmp_path, 50_000)

    def handler(ctx: RequestCtx) -> None:
        for _ in range(7 if ctx.path == "/full" else 0):
            ctx.add_header("X", "x" * 1010)
        with pytest.raises(ValueError):
            ctx.send_file(path, "" if ctx.path == "/full" else "a/b\r\nX: 1")
        ctx.write("so")

    server = serve(handler, workers=2)
    for name in ("/full", "/type"):
        for fields in ([], ["Range: bytes=0-9"], ["Range: bytes=0-0,2-2"], ["If-None-Match: *"]):
            reply = asked(server, "GET", name, *fields)
            assert (reply.status, reply.body, reply.get("Content-Range"), reply.get("ETag")) == (200, b"so", None, None)


@pytest.mark.parametrize("size", [10, 50_000])
def test_a_file_is_no_body_that_was_written(serve: Serve, tmp_path: Path, size: int) -> None:
    path, _ = file_of(tmp_path, size)

    def handler(ctx: RequestCtx) -> None:
        ctx.send_file(path)
        assert ctx.response_body == b""
        ctx.set_body_file(os.open(path, os.O_RDONLY), 0, size)
        assert ctx.response_body == b""
        ctx.write("x")
        assert ctx.response_body == b"x"

    assert serve(handler, workers=2).get().body == b"x"


def test_a_modification_of_ones_own(serve: Serve, tmp_path: Path) -> None:
    """It is what conditions are about."""
    path, content = file_of(tmp_path, 50_000)
    own = "Wed, 01 Jan 2020 00:00:00 GMT"

    def handler(ctx: RequestCtx) -> None:
        ctx.set_header("Last-Modified", own)
        ctx.send_file(path)

    server = serve(handler, workers=2)
    assert server.get().getall("Last-Modified") == [own]
    for field, status in (
        (f"If-Modified-Since: {own}", 304), ("If-Modified-Since: Tue, 31 Dec 2019 23:59:59 GMT", 200),
        (f"If-Unmodified-Since: {own}", 200), ("If-Unmodified-Since: Tue, 31 Dec 2019 23:59:59 GMT", 412),
    ):
        assert asked(server, "GET", "/", field).status == status, field
    reply = asked(server, "GET", "/", "Range: bytes=0-9", f"If-Range: {own}")
    assert (reply.status, reply.body) == (206, content[:10])


def test_conditions(serve: Serve, tmp_path: Path) -> None:
    path, content = file_of(tmp_path, 50_000)
    server = serve(lambda ctx: ctx.send_file(path), workers=2)
    tag = server.get().get("ETag")
    changed = "Tue, 14 Nov 2023 22:13:20 GMT"
    for field, status in (
        (f"If-None-Match: {tag}", 304), ('If-None-Match: "x"', 200), (f"If-Modified-Since: {changed}", 304),
        ("If-Modified-Since: Tue, 14 Nov 2023 22:13:19 GMT", 200), (f"If-Match: {tag}", 200), ('If-Match: "x"', 412),
        (f"If-Unmodified-Since: {changed}", 200), ("If-Unmodified-Since: Tue, 14 Nov 2023 22:13:19 GMT", 412),
    ):
        for method in ("GET", "HEAD", "POST"):
            reply = asked(server, method, "/", field)
            assert reply.status == (200 if method == "POST" else status), (method, field)
            if reply.status == 304:
                assert (reply.get("ETag"), reply.body) == (tag, b"")
            elif reply.status == 200 and method != "HEAD":
                assert reply.body == content


@pytest.mark.parametrize("size", [100, 50_000])
def test_one_range(serve: Serve, tmp_path: Path, size: int) -> None:
    path, content = file_of(tmp_path, size)
    server = serve(lambda ctx: ctx.send_file(path), workers=2)
    for text, start, stop in (("0-9", 0, 10), ("50-", 50, size), ("-7", size - 7, size), (f"10-{size * 2}", 10, size)):
        reply = asked(server, "GET", "/", f"Range: bytes={text}")
        assert (reply.status, reply.body) == (206, content[start:stop])
        assert reply.get("Content-Range") == f"bytes {start}-{stop - 1}/{size}"
    reply = asked(server, "GET", "/", f"Range: bytes={size}-")
    assert (reply.status, reply.get("Content-Range")) == (416, f"bytes */{size}")
    for method, fields in (("HEAD", ["Range: bytes=0-9"]), ("POST", ["Range: bytes=0-9"]), ("GET", ["Range: bytes=x"]),
                           ("GET", ["Range: bytes=0-9", 'If-Range: "x"'])):
        reply = asked(server, method, "/", *fields)
        assert (reply.status, reply.get("Content-Range")) == (200, None)


def test_several_ranges(serve: Serve, tmp_path: Path) -> None:
    path, content = file_of(tmp_path, 300_000, "a.html")
    server = serve(lambda ctx: ctx.send_file(path), workers=2)
    reply = asked(server, "GET", "/", "Range: bytes=0-9, 100000-299998,-1")
    assert reply.status == 206
    kind = reply.get("Content-Type")
    assert kind is not None
    message = message_from_bytes(f"Content-Type: {kind}\r\n\r\n".encode() + reply.body)
    parts = message.get_payload()
    assert isinstance(parts, list)
    assert [part["Content-Range"] for part in parts] == [
        f"bytes {a}-{b}/300000" for a, b in ((0, 9), (100_000, 299_998), (299_999, 299_999))]
    assert {part["Content-Type"] for part in parts} == {"text/html; charset=utf-8"}
    boundary = kind.partition("boundary=")[2].encode()
    bodies = [part.split(b"\r\n\r\n", 1)[1].removesuffix(b"\r\n") for part in reply.body.split(b"--" + boundary)[1:-1]]
    assert bodies == [content[:10], content[100_000:299_999], content[-1:]]


@pytest.mark.usefixtures("own_loop")
def test_several_ranges_are_a_body_as_any(serve: Serve, tmp_path: Path) -> None:
    """Made at once, so that fields may be set behind them, and by whoever may not stream."""
    path, content = file_of(tmp_path, 300_000)

    async def later(ctx: RequestCtx) -> None:
        ctx.send_file(path)
        ctx.set_header("X", "set behind it")

    def now(ctx: RequestCtx) -> None:
        ctx.send_file(path)
        ctx.set_header("X", "set behind it")

    for handler in (now, later):
        server = serve(handler, workers=2)
        reply = asked(server, "GET", "/", "Range: bytes=0-9,20-29")
        assert (reply.status, reply.get("X")) == (206, "set behind it")
        assert content[:10] in reply.body and content[20:30] in reply.body and reply.get("ETag")


def test_too_much_in_several_ranges(serve: Serve, tmp_path: Path) -> None:
    """More than a MiB, or of a coding: the whole. However slowly it is read, it holds no worker."""
    path, content = file_of(tmp_path, 20_000_000)
    server = serve(lambda ctx: ctx.send_file(path) if ctx.path == "/file" else ctx.write("served"), workers=2,
                   write_timeout=600.0, min_write_rate=0)
    many = f"Range: bytes=0-0,2-{1 << 20}"
    reply = asked(server, "GET", "/file", many)
    assert (reply.status, reply.body) == (206, reply.body) and len(reply.body) > 1 << 20
    slow = [server.connect(receive_buffer=4096).send(request("GET", "/file", "Range: bytes=0-0,2-9999999"))
            for _ in range(4)]
    for wire in slow:
        assert wire.more()
    assert server.get().body == b"served"
    for wire in slow:
        reply = wire.read()
        assert (reply.status, reply.get("Content-Range"), reply.body) == (200, None, content)

    def coded(ctx: RequestCtx) -> None:
        ctx.set_header("Content-Encoding", "gzip")
        ctx.send_file(path)

    assert asked(serve(coded, workers=2), "HEAD", "/", "Range: bytes=0-0,2-2").status == 200
    assert asked(serve(coded, workers=2), "GET", "/", "Range: bytes=0-0,2-2").status == 200


def test_beyond_what_32_bits_count(serve: Serve, tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate(5 * 2**30)
        file.seek(-4, os.SEEK_END)
        file.write(b"last")
    server = serve(lambda ctx: ctx.send_file(path), workers=2)
    reply = asked(server, "GET", "/", f"Range: bytes={5 * 2**30 - 50_000}-")
    assert (len(reply.body), reply.body[-5:]) == (50_000, b"\0last")
    reply = asked(server, "GET", "/", f"Range: bytes=0-0,{5 * 2**30 - 4}-")
    assert b"\r\n\r\nlast\r\n--" in reply.body
    assert asked(server, "HEAD").get("Content-Length") == str(5 * 2**30)


def test_what_is_no_file(serve: Serve, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("nowhere")
    raised: list[type[BaseException]] = []

    def handler(ctx: RequestCtx) -> None:
        for what in (tmp_path / "nothing", tmp_path, tmp_path / "pipe", tmp_path / "link", f"{tmp_path}/a\0b", 9999,
                     -1):
            try:
                ctx.send_file(what)
            except OSError as error:
                raised.append(type(error))
        ctx.write("alive")

    assert serve(handler, workers=2).get().body == b"alive"
    assert raised == [FileNotFoundError, IsADirectoryError, PermissionError, FileNotFoundError, FileNotFoundError,
                      OSError, OSError]


def test_a_file_that_becomes_shorter_breaks_the_connection_off(serve: Serve, tmp_path: Path) -> None:
    path, content = file_of(tmp_path, 50_000_000)
    server = serve(lambda ctx: ctx.send_file(path), workers=2)
    wire = server.connect(receive_buffer=4096).send(request())
    assert wire.more()
    os.truncate(path, 1000)
    with contextlib.suppress(ConnectionResetError):
        while wire.more():
            pass
    assert len(wire.pending) < len(content)
    assert server.get().body == content[:1000]


def test_a_client_that_goes(serve: Serve, tmp_path: Path) -> None:
    path, _ = file_of(tmp_path, 5_000_000)
    server = serve(lambda ctx: ctx.send_file(path), workers=2)
    for _ in range(20):
        wire = server.connect(receive_buffer=4096).send(request())
        wire.more()
        wire.reset()
    wait_until(lambda: server.stats()["connections"] == 0, "the connections to end")


def test_part_of_an_open_file(serve: Serve, tmp_path: Path) -> None:
    path, content = file_of(tmp_path, 100_000)
    for start, size in ((0, 10), (99_990, 10), (10, 50_000), (100_000, 0)):
        reply = say(serve, lambda ctx, part=(start, size): ctx.set_body_file(os.open(path, os.O_RDONLY), *part))
        assert reply.body == content[start:start + size]


def test_a_part_that_is_none(serve: Serve, tmp_path: Path) -> None:
    """The descriptor is closed all the same: the fixture looks."""
    path, _ = file_of(tmp_path, 10)

    def handler(ctx: RequestCtx) -> None:
        for start, size, kind in ((-1, 1, ValueError), (0, -1, ValueError), (0, 11, OSError)):
            with pytest.raises(kind):
                ctx.set_body_file(os.open(path, os.O_RDONLY), start, size)
        with pytest.raises(OverflowError):
            ctx.set_body_file(os.open(path, os.O_RDONLY), 2**70, 1)
        with path.open("rb") as mine, pytest.raises(TypeError):
            ctx.set_body_file(mine.fileno(), "0", 1)  # type: ignore[arg-type]
        with pytest.raises(OverflowError):
            ctx.set_body_file(2**40, 0, 0)

    assert serve(handler, workers=2).get().status == 200


def test_expired(serve: Serve, tmp_path: Path) -> None:
    """Of a call that has been answered by the server: neither the file nor its descriptor stays."""
    path, _ = file_of(tmp_path, 50_000)
    go = threading.Event()

    def handler(ctx: RequestCtx) -> None:
        ctx.send_file(path)
        wait_for(go)

    serve.expect_error("took longer than its timeout")
    server = serve(handler, workers=2, handler_timeout=0.05)
    assert server.exchange(request()).status == 504
    wait_until(serve.errors, "the report")
    go.set()


# Below a directory


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    for name in ("index.html", "a.txt", "sub/index.html", "sub/b c.txt", "sub/deep/d.txt", ".hidden", ".well-known/x",
                 "sub/.git/config", "é.txt"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"content of {name}")
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "rooted").mkdir()
    (tmp_path / "rooted/x").write_text("secret")
    (root / "inside").symlink_to("a.txt")
    (root / "sub/up").symlink_to("../a.txt")
    (root / "outside").symlink_to("../secret")
    (root / "absolute").symlink_to(tmp_path / "secret")
    (root / "folder").symlink_to(tmp_path / "rooted")
    (root / "proc").symlink_to("/proc/self/root")
    (root / "loop").symlink_to("loop")
    os.mkfifo(root / "pipe")
    return root


@pytest.mark.parametrize(("path", "status", "body"), [
    ("/", 200, "content of index.html"), ("/a.txt", 200, "content of a.txt"),
    ("/sub/", 200, "content of sub/index.html"),
    ("/sub/b%20c.txt", 200, "content of sub/b c.txt"), ("/sub/deep/d.txt", 200, "content of sub/deep/d.txt"),
    ("/.well-known/x", 200, "content of .well-known/x"), ("/%C3%A9.txt", 200, "content of é.txt"),
    ("/inside", 200, "content of a.txt"), ("/sub/up", 200, "content of a.txt"),
    ("/nothing", 404, None), ("/a.txt/", 404, None), ("/a.txt/b", 404, None), ("/.hidden", 404, None),
    ("/sub/.git/config", 404, None), ("/../secret", 404, None), ("/sub/../../secret", 404, None),
    ("/%2e%2e/secret", 404, None), ("/sub/..%2f..%2fsecret", 404, None), ("/..%5csecret", 404, None),
    ("//a.txt", 404, None), ("/sub//b%20c.txt", 404, None), ("/./a.txt", 404, None), ("/a.txt%00", 404, None),
    ("/" + "x" * 300, 404, None), ("/%ff", 404, None), ("/sub/deep/", 404, None),
    ("/outside", 403, None), ("/absolute", 403, None), ("/folder/x", 403, None), ("/proc/etc/passwd", 403, None),
    ("/loop", 403, None), ("/pipe", 403, None),
])
def test_below_a_directory(serve: Serve, tree: Path, path: str, status: int, body: str | None) -> None:
    reply = serve(StaticFiles(tree), workers=2).get(path)
    assert reply.status == status
    assert b"secret" not in reply.body
    if body is not None:
        assert reply.body == body.encode()


def test_what_is_below_without_openat2(tree: Path) -> None:
    """The same files, and no link is followed."""
    root = os.open(tree, os.O_RDONLY)
    try:
        for name, opens in (("a.txt", True), ("sub/deep/d.txt", True), ("inside", False), ("outside", False),
                            ("folder/x", False), ("sub/up", False), ("nothing", False), ("a.txt/b", False),
                            ("sub", False), ("pipe", False), ("sub/deep", False)):
            fd, size = _probe.walk_beneath(root, name.encode())
            assert (fd >= 0) == opens, name
            if opens:
                with open(fd, "rb") as file:
                    assert len(file.read()) == size
    finally:
        os.close(root)


def test_a_directory_without_its_slash(serve: Serve, tree: Path) -> None:
    server = serve(StaticFiles(tree), workers=2)
    for path, location in (("/sub", "/sub/"), ("/sub/deep?a=1", "/sub/deep/?a=1"), ("/s%75b", "/s%75b/")):
        reply = server.get(path)
        assert (reply.status, reply.get("Location")) == (308, location)
    assert server.get("/sub?" + "a" * 7500).status == 414


def test_methods(serve: Serve, tree: Path) -> None:
    server = serve(StaticFiles(tree), workers=2)
    assert asked(server, "HEAD", "/a.txt").get("Content-Length") == str(len("content of a.txt"))
    reply = asked(server, "POST", "/a.txt")
    assert (reply.status, reply.get("Allow")) == (405, "GET, HEAD")


def test_a_prefix_and_an_index(serve: Serve, tree: Path) -> None:
    server = serve(StaticFiles(tree, prefix="/static/", index="a.txt"), workers=2)
    assert server.get("/static/").body == b"content of a.txt"
    assert server.get("/static/sub/deep/d.txt").body == b"content of sub/deep/d.txt"
    for path in ("/", "/a.txt", "/static", "/staticx/a.txt"):
        assert server.get(path).status == 404
    for prefix in ("static/", "/static", ""):
        with pytest.raises(ValueError, match=r"^a prefix begins and ends with a slash"):
            StaticFiles(tree, prefix=prefix)
    with pytest.raises(NotADirectoryError):
        StaticFiles(tree / "a.txt")


def test_precompressed(serve: Serve, tree: Path) -> None:
    text = b"content of a.txt"
    (tree / "a.txt.gz").write_bytes(gzip.compress(text))
    (tree / "a.txt.br").write_bytes(b"as br")
    server = serve(StaticFiles(tree, precompressed=True), workers=2)
    for accept, coding, body in (("gzip", "gzip", gzip.compress(text)), ("br, gzip", "br", b"as br"), ("", None, text),
                                 ("zstd", None, text), ("zstd, gzip;q=0.5", "gzip", gzip.compress(text)),
                                 ("identity, gzip;q=0.5", None, text)):
        reply = asked(server, "GET", "/a.txt", *([f"Accept-Encoding: {accept}"] if accept else []))
        assert (reply.get("Content-Encoding"), reply.get("Vary")) == (coding, "Accept-Encoding")
        assert reply.body == body or gzip.decompress(reply.body) == text
        assert reply.get("Content-Type") == "text/plain; charset=utf-8"
    tags = {asked(server, "GET", "/a.txt", f"Accept-Encoding: {accept}").get("ETag") for accept in ("gzip", "br", "x")}
    assert len(tags) == 3
    # As old and as long as each other, they are not each other.
    for suffix in ("", ".gz", ".br"):
        (tree / f"a.txt{suffix}").write_bytes(b"the same size")
        os.utime(tree / f"a.txt{suffix}", (1, 1))
    tags = {asked(server, "GET", "/a.txt", f"Accept-Encoding: {accept}").get("ETag") for accept in ("gzip", "br", "x")}
    assert len(tags) == 3
    plain = serve(StaticFiles(tree), workers=2)
    (tree / "a.txt").write_bytes(text)
    reply = asked(plain, "GET", "/a.txt", "Accept-Encoding: gzip")
    assert (reply.get("Content-Encoding"), reply.get("Vary"), reply.body) == (None, None, text)


def test_no_descriptor_is_left(tree: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    files: Any = StaticFiles(tree)
    assert len(os.listdir("/proc/self/fd")) == before + 1
    del files
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_time_of_a_file_is_its_field(serve: Serve, tmp_path: Path) -> None:
    for seconds in (-2_000_000_000, 0, 1, 1_700_000_000):
        path, _ = file_of(tmp_path, 10)
        os.utime(path, (seconds, seconds))
        reply = say(serve, lambda ctx, path=path: ctx.send_file(path))
        assert reply.get("Last-Modified") == format_date(datetime.fromtimestamp(seconds, UTC))


def test_no_file_was_changed_in_the_future(serve: Serve, tmp_path: Path) -> None:
    """RFC 9110, section 8.8.2.1. Its tag says which future it was."""
    tags = set()
    for seconds in (4_000_000_000, 4_000_000_001):
        path, _ = file_of(tmp_path, 10)
        os.utime(path, (seconds, seconds))
        for steps in ([], [lambda ctx: ctx.set_header("X", "1")]):
            before = int(time.time())
            reply = say(serve, *steps, lambda ctx, path=path: ctx.send_file(path))
            changed = parse_date(reply.get("Last-Modified") or "")
            assert changed is not None and before <= changed.timestamp() <= time.time()
            tags.add(reply.get("ETag"))
    assert len(tags) == 2


def test_half_closed(serve: Serve, tmp_path: Path) -> None:
    path, content = file_of(tmp_path, 2_000_000)
    server = serve(lambda ctx: ctx.send_file(path), workers=2)
    with server.connect() as wire:
        wire.send(request())
        wire.socket.shutdown(socket.SHUT_WR)
        assert wire.read().body == content
