"""The clients that people have: the standard library's, requests, httpx, aiohttp, curl, and a thousand at once.

Knows: public clients and what they show of a reply. Never sees: bytes (test_wire.py does).
Invariant: each client meets the same handler and must come to the same answers.
"""

import asyncio
import http.client
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from fastserve import RequestCtx
from tests.live.conftest import PATIENCE, Running, Serve, request

TARGET = "/json/a%20b/%C3%A9?x=1&x=2&y=a+b%26c&z="
QUERY = [["x", "1"], ["x", "2"], ["y", "a b&c"], ["z", ""]]


def app(ctx: RequestCtx) -> None:
    path = ctx.path
    if path == "/":
        ctx.write("hello")
    elif path == "/echo":
        ctx.content_type = "application/octet-stream"
        ctx.set_body(ctx.body)
    elif path.startswith("/json"):
        ctx.content_type = "application/json"
        ctx.write(json.dumps({
            "method": ctx.method, "path": path, "query": ctx.query.items(), "form": ctx.form.items(),
            "cookies": ctx.cookies, "conn": ctx.conn_id, "number": ctx.conn_request_num, "host": ctx.host,
            "agent": ctx.headers.get("User-Agent", ""), "size": len(ctx.body),
        }))
    elif path == "/again":
        ctx.redirect("/json?from=again", 307)
    elif path == "/seen":
        ctx.redirect("/json", 303)
        ctx.add_header("Set-Cookie", "one=1; Path=/")
        ctx.add_header("Set-Cookie", "two=2; Path=/")
    else:
        ctx.not_found()


@pytest.fixture
def server(serve: Serve) -> Running:
    return serve(app, workers=64)


def test_http_client(server: Running) -> None:
    client = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE)
    seen = []
    for number in range(1, 6):
        client.request("GET", TARGET)
        reply = client.getresponse()
        assert (reply.status, reply.reason, reply.version) == (200, "OK", 11)
        assert reply.getheader("Content-Type") == "application/json"
        answer = json.loads(reply.read())
        assert answer["path"] == "/json/a b/é"
        assert answer["query"] == QUERY
        assert answer["number"] == number
        seen.append(answer["conn"])
    assert len(set(seen)) == 1
    client.request("HEAD", "/")
    reply = client.getresponse()
    assert (reply.getheader("Content-Length"), reply.read()) == ("5", b"")
    client.request("POST", "/echo", body=b"x" * 100_000)
    assert client.getresponse().read() == b"x" * 100_000
    client.request("POST", "/echo", body=iter([b"some", b" ", b"pieces"]), encode_chunked=True,
                   headers={"Transfer-Encoding": "chunked"})
    assert client.getresponse().read() == b"some pieces"
    client.request("GET", "/no/such")
    reply = client.getresponse()
    assert (reply.status, reply.read()) == (404, b"404 Page not found")
    client.request("GET", "/json", headers={"Connection": "close"})
    reply = client.getresponse()
    assert reply.will_close
    assert json.loads(reply.read())["number"] == 10
    client.close()
    assert server.stats()["accepted"] == 1
    assert server.stats()["requests"] == 10


def test_requests(server: Running) -> None:
    requests = pytest.importorskip("requests")
    with requests.Session() as session:
        session.trust_env = False

        def call(method: str, path: str, **more: object) -> "requests.Response":
            return session.request(method, server.url + path, timeout=PATIENCE, **more)

        first = call("GET", TARGET).json()
        assert (first["query"], first["path"], first["host"]) == (QUERY, "/json/a b/é", server.address)
        assert call("GET", "/").text == "hello"
        assert call("HEAD", "/").headers["Content-Length"] == "5"
        assert call("POST", "/echo", data=b"\0\xff" * 5000).content == b"\0\xff" * 5000
        assert call("PUT", "/echo", data=iter([b"ab", b"cd"])).content == b"abcd"
        assert call("POST", "/json", data={"a": "1 & 2", "é": "ü"}).json()["form"] == [["a", "1 & 2"], ["é", "ü"]]
        hop = call("POST", "/again", data=b"12345")
        assert ([r.status_code for r in hop.history], hop.json()["method"], hop.json()["size"]) == (
            [307], "POST", 5)
        hop = call("POST", "/seen", data=b"12345")
        assert (hop.json()["method"], hop.json()["cookies"]) == ("GET", {"one": "1", "two": "2"})
        assert call("GET", "/json").json()["cookies"] == {"one": "1", "two": "2"}
        assert call("GET", "/no/such").status_code == 404
        last = call("GET", "/json").json()
        assert (last["conn"], last["number"]) == (first["conn"], 13)


def test_httpx(server: Running) -> None:
    httpx = pytest.importorskip("httpx")
    with httpx.Client(base_url=server.url, timeout=PATIENCE, trust_env=False, follow_redirects=True) as client:
        first = client.get(TARGET)
        assert first.http_version == "HTTP/1.1"
        assert first.json()["query"] == QUERY
        assert client.head("/").headers["content-length"] == "5"
        assert client.post("/echo", content=b"\0\xff" * 50_000).content == b"\0\xff" * 50_000
        assert client.post("/echo", content=iter([b"ab", b"cd"])).content == b"abcd"
        assert client.get("/seen").json()["cookies"] == {"one": "1", "two": "2"}
        assert client.post("/again", content=b"123").json()["size"] == 3
        assert client.delete("/no/such").status_code == 404
        last = client.get("/json").json()
        assert (last["conn"], last["number"]) == (first.json()["conn"], 10)


def test_aiohttp(server: Running) -> None:
    aiohttp = pytest.importorskip("aiohttp")

    async def main() -> None:
        jar = aiohttp.CookieJar(unsafe=True)                    # takes cookies of hosts without a name
        async with aiohttp.ClientSession(server.url, timeout=aiohttp.ClientTimeout(PATIENCE),
                                         cookie_jar=jar) as session:
            async def one(number: int) -> None:
                body = b"%d," % number * 1000
                async with session.post("/echo", data=body) as reply:
                    assert (reply.status, await reply.read()) == (200, body)

            async with session.get("/json?x=1") as reply:
                assert (await reply.json())["query"] == [["x", "1"]]
            async with session.get("/seen") as reply:
                assert (await reply.json())["cookies"] == {"one": "1", "two": "2"}
            async with session.head("/") as reply:
                assert reply.headers["Content-Length"] == "5"
            await asyncio.gather(*(one(number) for number in range(200)))

    asyncio.run(main())
    assert server.stats()["requests"] == 204


def test_curl(server: Running, tmp_path: Path) -> None:
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("curl is not installed")

    # A sanitizer that was loaded into this process is not meant for curl.
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}

    def call(*arguments: str) -> bytes:
        done = subprocess.run([curl, "-q", "-sS", "--noproxy", "*", *arguments], capture_output=True,
                              timeout=PATIENCE, check=False, env=environment)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert call(f"{server.url}/", f"{server.url}/") == b"hellohello"
    assert server.stats()["accepted"] == 1                      # curl reuses what it may
    assert json.loads(call(server.url + TARGET))["query"] == QUERY
    assert b"Content-Length: 5\r\n" in call("-I", server.url)
    assert call("-d", "a=b", f"{server.url}/echo") == b"a=b"
    assert json.loads(call("-L", "-c", "", "-b", "", f"{server.url}/seen"))["cookies"] == {"one": "1", "two": "2"}
    assert call("-w", "%{http_code}", "-o", "/dev/null", f"{server.url}/no") == b"404"
    big = tmp_path / "big"
    big.write_bytes(bytes(range(256)) * 8192)                   # 2 MiB: curl asks with Expect: 100-continue
    assert call("-T", str(big), f"{server.url}/echo") == big.read_bytes()
    assert call("-T", str(big), "-H", "Transfer-Encoding: chunked", f"{server.url}/echo") == big.read_bytes()
    assert call("-0", server.url) == b"hello"


def test_a_thousand_connections(serve: Serve, many_descriptors: int) -> None:
    """All open at the same time, each with its own requests, some of them pipelined."""
    count, rounds = 1000, 4
    if many_descriptors < 2 * count + 200:
        pytest.skip(f"RLIMIT_NOFILE is {many_descriptors}")
    server = serve(app, workers=64)

    async def main() -> None:
        opened = 0
        everybody = asyncio.Event()

        async def one(number: int) -> tuple[int, list[int]]:
            nonlocal opened
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            conns, numbers = set(), []
            for turn in range(rounds):
                raw = request("GET", f"/json?n={number}&turn={turn}")
                writer.write(raw * 2)
                for _ in range(2):
                    head = await reader.readuntil(b"\r\n\r\n")
                    assert head.startswith(b"HTTP/1.1 200 OK\r\n"), head
                    size = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
                    answer = json.loads(await reader.readexactly(size))
                    assert answer["query"] == [["n", str(number)], ["turn", str(turn)]]
                    conns.add(answer["conn"])
                    numbers.append(answer["number"])
                if turn == 0:
                    opened += 1
                    if opened == count:
                        everybody.set()
                    await everybody.wait()
            writer.close()
            await writer.wait_closed()
            assert len(conns) == 1
            return conns.pop(), numbers

        async with asyncio.timeout(3 * PATIENCE):
            answers = await asyncio.gather(*(one(number) for number in range(count)))
        assert len({conn for conn, _ in answers}) == count
        assert all(numbers == list(range(1, 2 * rounds + 1)) for _, numbers in answers)

    asyncio.run(main())
    stats = server.stats()
    assert (stats["accepted"], stats["requests"]) == (count, 2 * count * rounds)
    assert stats["statuses"]["2xx"] == 2 * count * rounds
