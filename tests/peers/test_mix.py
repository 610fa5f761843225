"""Mixed requests by real clients, straight and through proxies, each answer compared byte by byte.

Knows: how each client is told to send what mix.py asks for. Never sees: the answer's bytes, which mix.py judges.
Invariant: the server saw as many requests as were asked, refused none, and ended no connection that was to stay.
"""

import asyncio
import os
import random
import re
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.conftest import SEED
from tests.live.conftest import PATIENCE, Reply, Running, Serve, Wire, chunked, parse_head, request
from tests.peers.fronts import Front
from tests.peers.mix import Ask, echo, mix

CLIENTS = 4
"""Connections at the same time, of those clients that can have several."""

ROOM = 64 * 1024
"""Bytes up and down that may be on their way at once: a client that sends on without reading would be waited for."""

FRONTS = ["nginx", "nginx unbuffered", "haproxy"]


@pytest.fixture
def server(serve: Serve) -> Running:
    return serve(echo, workers=64)


def check_counters(server: Running, requests: int, connections: int | None = None) -> None:
    stats = server.stats()
    assert (stats["requests"], stats["statuses"]["2xx"], stats["refusals"]) == (requests, requests, {})
    assert stats["cut"] == 0
    if connections is not None:
        assert stats["accepted"] <= connections


def run(command: list[str], seconds: float, **environment: str) -> str:
    """A program to its end; it fails the test unless it ends with 0. `seconds` until it counts as hanging."""
    # A sanitizer that was loaded into this process is not meant for others.
    kept = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False, env=kept | environment)
    assert done.returncode == 0, f"{command[0]} ended with {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


# Bytes on a socket, with pipelining

def head_and_body(ask: Ask) -> tuple[bytes, bytes]:
    fields = [f"{name}: {value}" for name, value in ask.fields.items()]
    if ask.expect:
        fields.append("Expect: 100-continue")
    if ask.body is None:
        return request(ask.method, ask.target, *fields), b""
    if ask.chunks:
        return request(ask.method, ask.target, *fields, "Transfer-Encoding: chunked"), chunked(ask.body, *ask.chunks)
    return request(ask.method, ask.target, *fields, f"Content-Length: {len(ask.body)}"), ask.body


def pipelines(asks: list[Ask]) -> Iterator[list[Ask]]:
    """Up to eight requests that may be sent at once; one that waits for 100 has to be the last of its row."""
    row: list[Ask] = []
    room = ROOM
    for ask in asks:
        need = len(ask.answer) + len(ask.body or b"")
        if row and (len(row) == 8 or room < need or row[-1].last or row[-1].expect):
            yield row
            row, room = [], ROOM
        row.append(ask)
        room -= need
    yield row


def check_reply(ask: Ask, reply: Reply) -> None:
    ask.check(reply.status, reply.get("X-Told"), reply.get("Content-Length"), reply.body)


def talk(address: str, asks: list[Ask]) -> None:
    wire: Wire | None = None
    try:
        for row in pipelines(asks):
            wire = wire or Wire(address)
            wait = row[-1] if row[-1].expect else None
            parts = [head_and_body(ask) for ask in row]
            wire.send(*(head + body for head, body in (parts[:-1] if wait else parts)))
            if wait:
                wire.send(parts[-1][0])
            for ask in row[:-1] if wait else row:
                check_reply(ask, wire.read(head=ask.method == "HEAD"))
            if wait:
                assert wire.read(interim=True).status == 100
                check_reply(wait, wire.send(parts[-1][1]).read())
            if row[-1].last:
                assert wire.ended()
                wire.close()
                wire = None
    finally:
        if wire is not None:
            wire.close()


def talk_in_threads(address: str, asks: list[Ask]) -> None:
    with ThreadPoolExecutor(CLIENTS) as pool:
        for _ in pool.map(lambda turn: talk(address, asks[turn::CLIENTS]), range(CLIENTS)):
            pass


def test_pipelines(server: Running, chance: random.Random, count: int) -> None:
    asks = mix(chance, count)
    talk_in_threads(server.address, asks)
    check_counters(server, count, CLIENTS + sum(ask.last for ask in asks))


@pytest.mark.parametrize("kind", FRONTS)
def test_pipelines_through(kind: str, server: Running, front: Callable[[str, str], Front], chance: random.Random,
                           count: int) -> None:
    proxy = front(kind, server.address)
    talk_in_threads(proxy.address, mix(chance, count))
    proxy.stop()
    check_counters(server, count)
    assert sum(line.answered for line in proxy.lines()) == count


# Go

@pytest.fixture(scope="session")
def go_client(tmp_path_factory: pytest.TempPathFactory) -> Path:
    go = shutil.which("go")
    if go is None:
        pytest.skip("go is not installed")
    place = tmp_path_factory.mktemp("go")
    # Not a whole library for one program: net/http can do without C.
    run([go, "build", "-o", str(place / "client"), str(Path(__file__).with_name("main.go"))], 10 * PATIENCE,
        GO111MODULE="off", GOFLAGS="", GOTOOLCHAIN="local", GOPATH=str(place / "path"), GOCACHE=str(place / "cache"))
    return place / "client"


def go(program: Path, address: str, count: int) -> None:
    workers = 2 * CLIENTS
    said = run([str(program), "-url", f"http://{address}", "-count", str(count), "-workers", str(workers),
                "-seed", str(SEED), "-patience", f"{PATIENCE:g}s"], PATIENCE + count / 20)
    told = re.fullmatch(rf"seed={SEED} requests={count} closed=(\d+) connections=(\d+)\n", said)
    assert told, said
    assert int(told[2]) <= workers + int(told[1]), f"connections did not stay: {said}"


def test_go(server: Running, go_client: Path, count: int) -> None:
    go(go_client, server.address, count)
    check_counters(server, count)


@pytest.mark.parametrize("kind", FRONTS)
def test_go_through(kind: str, server: Running, front: Callable[[str, str], Front], go_client: Path,
                    count: int) -> None:
    proxy = front(kind, server.address)
    go(go_client, proxy.address, count)
    proxy.stop()
    check_counters(server, count)
    assert sum(line.answered for line in proxy.lines()) == count


# curl

def test_curl(server: Running, chance: random.Random, count: int, tmp_path: Path) -> None:
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("curl is not installed")
    asks = mix(chance, count)
    at_once = 100
    for start in range(0, count, at_once):
        some = asks[start:start + at_once]
        sections = []
        for at, ask in enumerate(some):
            section = [f'url = "{server.url}{ask.target}"', f'request = "{ask.method}"', f'output = "{tmp_path}/{at}"',
                       f'dump-header = "{tmp_path}/{at}.head"', "silent", "show-error", "globoff", 'noproxy = "*"',
                       f"expect100-timeout = {PATIENCE:g}", f"max-time = {PATIENCE:g}"]
            if ask.method == "HEAD":
                section[1] = "head"
            if ask.body is not None:
                (tmp_path / f"{at}.body").write_bytes(ask.body)
                section.append(f'data-binary = "@{tmp_path}/{at}.body"')
            if ask.chunks:
                section.append('header = "Transfer-Encoding: chunked"')
            if ask.expect:
                section.append('header = "Expect: 100-continue"')
            section += [f'header = "{name}: {value}"' for name, value in ask.fields.items()]
            sections.append("\n".join(section))
        (tmp_path / "config").write_text("\nnext\n".join(sections))
        run([curl, "-q", "-K", str(tmp_path / "config")], PATIENCE + at_once)
        for at, ask in enumerate(some):
            *interim, head, rest = (tmp_path / f"{at}.head").read_bytes().split(b"\r\n\r\n")
            assert (interim, rest) == ([b"HTTP/1.1 100 Continue"] if ask.expect else [], b""), ask
            reply, output = parse_head(head), tmp_path / f"{at}"
            # What curl prints of a HEAD is the head again, and of an empty body not even a file.
            if ask.method != "HEAD" and output.exists():
                reply.body = output.read_bytes()
            check_reply(ask, reply)
            output.unlink(missing_ok=True)
    check_counters(server, count, -(-count // at_once) + sum(ask.last for ask in asks))


# Python's

def body_for(ask: Ask) -> bytes | Iterator[bytes] | None:
    """For clients that chunk what they cannot tell the length of."""
    return ask.pieces if ask.chunks else ask.body


def test_requests(server: Running, chance: random.Random, count: int) -> None:
    requests = pytest.importorskip("requests")
    asks = mix(chance, count)
    with requests.Session() as session:
        session.trust_env = False

        def answer(ask: Ask) -> tuple[int, str | None, str | None, bytes]:
            """Not the reply itself: the traceback of a failed test would keep it, and it the connection."""
            reply = session.request(ask.method, server.url + ask.target, data=body_for(ask), headers=ask.fields,
                                    timeout=PATIENCE)
            return (reply.status_code, reply.headers.get("X-Told"), reply.headers.get("Content-Length"),
                    reply.content)

        for ask in asks:
            ask.check(*answer(ask))
    check_counters(server, count, 1 + sum(ask.last for ask in asks))


def test_httpx(server: Running, chance: random.Random, count: int) -> None:
    httpx = pytest.importorskip("httpx")
    asks = mix(chance, count)
    with httpx.Client(base_url=server.url, timeout=PATIENCE, trust_env=False) as client:
        for ask in asks:
            reply = client.request(ask.method, ask.target, content=body_for(ask), headers=ask.fields)
            ask.check(reply.status_code, reply.headers.get("X-Told"), reply.headers.get("Content-Length"),
                      reply.content)
    check_counters(server, count, 1 + sum(ask.last for ask in asks))


def test_aiohttp(server: Running, chance: random.Random, count: int) -> None:
    aiohttp = pytest.importorskip("aiohttp")
    yarl = pytest.importorskip("yarl")
    asks = mix(chance, count)

    async def pieces(ask: Ask) -> AsyncIterator[bytes]:
        for piece in ask.pieces:
            yield piece

    async def main() -> None:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(PATIENCE)) as session:
            async def some(turn: int) -> None:
                for ask in asks[turn::CLIENTS]:
                    data = pieces(ask) if ask.chunks else ask.body
                    # As it stands: yarl would write the query in its own way.
                    url = yarl.URL(server.url + ask.target, encoded=True)
                    async with session.request(ask.method, url, data=data, headers=ask.fields,
                                               expect100=ask.expect) as reply:
                        ask.check(reply.status, reply.headers.get("X-Told"), reply.headers.get("Content-Length"),
                                  await reply.read())

            await asyncio.gather(*(some(turn) for turn in range(CLIENTS)))

    asyncio.run(main())
    check_counters(server, count, CLIENTS + sum(ask.last for ask in asks))
