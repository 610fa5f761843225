"""What a program's own tests are given: `Client`, `LiveServer`, the fixture.

Knows: the names of `fastserve.testing`. Never sees: how a server is made.
"""

import os
import re
import subprocess
import sys
import textwrap
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.request import urlopen

import pytest

import fastserve
from fastserve import RequestCtx
from fastserve.testing import Client, LiveServer


def echo(ctx: RequestCtx) -> None:
    ctx.set_header("X-Method", ctx.method)
    ctx.set_header("X-Type", ctx.headers.get("content-type", "-"))
    ctx.write(f"{ctx.path} {ctx.query_string.decode()} ".encode() + ctx.body)


def test_requests() -> None:
    with Client(echo, workers=2) as client:
        reply = client.get("/a?b=1")
        assert (reply.status, reply.reason, reply.body, reply.text) == (200, "OK", b"/a b=1 ", "/a b=1 ")
        assert (reply.headers["x-method"], reply.headers["Content-Type"]) == ("GET", "text/plain; charset=utf-8")
        assert (client.head("/").body, client.head("/").headers["X-Method"]) == (b"", "HEAD")
        assert client.delete("/").headers["X-Method"] == "DELETE"
        for name in ("post", "put", "patch"):
            reply = getattr(client, name)("/", "é", {"Content-Type": "x/y"})
            assert (reply.headers["X-Method"], reply.headers["X-Type"], reply.text) == (name.upper(), "x/y", "/  é")
        reply = client.post("/", json={"a": [1]})
        assert (reply.headers["X-Type"], reply.body) == ("application/json", b'/  {"a": [1]}')
        assert client.request("PURGE", "/", headers={"Host": "example.org"}).status == 200


def test_json() -> None:
    with Client(lambda ctx: ctx.write_json({"a": 1}), workers=2) as client:
        assert client.get("/").json() == {"a": 1}


def test_the_parser_and_the_limits_are_real() -> None:
    with Client(echo, workers=2, max_request_body_size=10) as client:
        assert client.raw(b"nonsense\r\n\r\n").startswith(b"HTTP/1.1 400 Bad Request\r\n")
        assert client.post("/", b"x" * 11).status == 413
        assert client.raw(2 * b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").count(b"HTTP/1.1 200 OK") == 2
        assert client.raw(b"") == b""
        assert client.raw(b"GET / HTTP/1.1\r\nHost: x\r\n") == b""
        assert client.get("/ok").status == 200


def test_what_is_interim_is_no_reply() -> None:
    def handler(ctx: RequestCtx) -> None:
        ctx.early_hints("</a>; rel=preload")
        ctx.early_hints("</b>; rel=preload")
        ctx.write("the reply")

    with Client(handler, workers=2) as client:
        reply = client.get("/")
        assert (reply.status, reply.body, reply.headers.get("link")) == (200, b"the reply", None)


def test_a_reply_that_comes_before_all_was_sent() -> None:
    with Client(echo, workers=2, max_request_body_size=10) as client:
        assert client.post("/", b"x" * (64 << 20)).status == 413


@pytest.mark.usefixtures("own_loop")
def test_coroutine_functions() -> None:
    async def handler(ctx: RequestCtx) -> None:
        ctx.write(str(ctx.local_addr))

    with Client(handler, workers=2) as client:
        assert client.get("/").text == client.server.addresses[0].removeprefix("unix:")
        assert re.fullmatch(r"@fastserve-[0-9a-f]{16}", client.get("/").text)


def test_several_threads() -> None:
    with Client(echo, workers=4) as client, ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(lambda n: client.get(f"/{n}").body, range(200)))
    assert replies == [f"/{n}  ".encode() for n in range(200)]


def test_nothing_stays() -> None:
    before = set(os.listdir("/proc/self/fd")), threading.active_count()
    for _ in range(3):
        with Client(echo, workers=2) as client, LiveServer(echo, workers=2) as live:
            assert client.get("/").status == 200
            assert urlopen(live.url).status == 200
    assert (set(os.listdir("/proc/self/fd")), threading.active_count()) == before
    with pytest.raises(OSError):
        client.get("/")


def test_live_server() -> None:
    with LiveServer(echo, workers=2) as live:
        assert live.url == f"http://{live.host}:{live.port}" == f"http://{live.server.addresses[0]}"
        with urlopen(f"{live.url}/a?b") as reply:
            assert reply.read() == b"/a b "


def test_the_fixture_as_its_user_has_it(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text('pytest_plugins = ["fastserve.testing"]\n')
    (tmp_path / "test_mine.py").write_text(textwrap.dedent("""
        from urllib.request import urlopen

        def test_two(live_server):
            one, two = (live_server(lambda ctx, n=n: ctx.write(str(n)), workers=2) for n in (1, 2))
            assert urlopen(one.url).read() == b"1"
            assert urlopen(two.url).read() == b"2"
    """))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)], capture_output=True, text=True,
        cwd=tmp_path, timeout=60,
        env=os.environ | {"PYTHONPATH": str(Path(fastserve.__file__).parents[1]), "PYTHONDONTWRITEBYTECODE": "1",
                          "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"})       # other plugins of ours would take a second
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout
