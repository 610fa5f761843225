"""HAProxy tells the server by PROXY headers whose its connections are.

Knows: how HAProxy is told to, by words behind its server's address. Never sees: a header (tests/unit/test_proxy.py).
Invariant: the handler sees each client's own address and port, whichever connection to the server a request took.
"""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from fastserve import RequestCtx
from tests.live.conftest import Running, Serve, Wire, wait_until
from tests.peers.fronts import Front

WAYS = ["send-proxy", "send-proxy-v2", "send-proxy-v2 proxy-v2-options crc32c"]


def who(ctx: RequestCtx) -> None:
    ctx.write(json.dumps([ctx.remote_addr, ctx.client_ip, ctx.headers.get("x-forwarded-for")]))


def check_clients(address: str) -> None:
    """Several, of several addresses, by turns."""
    wires = [Wire(address, source=f"127.0.0.{n}") for n in (1, 2, 3, 3)]
    try:
        for _ in range(5):
            for wire in wires:
                host, port = wire.socket.getsockname()
                reply = wire.get("/", "X-Forwarded-For: 203.0.113.1")
                assert json.loads(reply.body) == [[host, port], host, "203.0.113.1"]
    finally:
        for wire in wires:
            wire.close()


@pytest.mark.parametrize("way", WAYS)
def test_clients(way: str, serve: Serve, front: Callable[[str, str], Front]) -> None:
    """Those of 127.0.0.1 are trusted as proxies, and so is HAProxy: what is told first is the server's peer."""
    server = serve(who, "127.0.0.1:0?proxy", trusted_proxies="127.0.0.9, 127.0.0.1/32")
    proxy = front("haproxy", f"{server.address} {way}")
    with Wire(proxy.address) as wire:
        told = json.loads(wire.get("/", "X-Forwarded-For: 203.0.113.1").body)
        assert told == [list(wire.socket.getsockname()), "203.0.113.1", "203.0.113.1"]


@pytest.mark.parametrize("way", WAYS)
def test_clients_of_a_unix_socket(way: str, serve: Serve, front: Callable[[str, str], Front], tmp_path: Path) -> None:
    server = serve(who, f"unix:{tmp_path}/s?mode=666&proxy", trusted_proxies="unix")
    check_clients(front("haproxy", f"unix@{server.address.removeprefix('unix:')} {way}").address)
    assert server.stats()["refused_proxy"] == 0


@pytest.mark.parametrize("way", WAYS)
def test_clients_that_have_no_address(
    way: str, serve: Serve, front: Callable[[str, str], Front], tmp_path: Path
) -> None:
    """Those of a unix socket of HAProxy's. By version 2 it says of them what it says of itself; what they say is not
    believed, by neither."""
    server = serve(who, "127.0.0.1:0?proxy", trusted_proxies="127.0.0.1")
    front("haproxy at a path", f"{server.address} {way}")
    wait_until(lambda: (tmp_path / "front").exists(), "HAProxy to listen")
    with Wire(f"unix:{tmp_path}/front") as wire:
        told = json.loads(wire.get("/", "X-Forwarded-For: 203.0.113.1").body)
        assert told[1:] == ["127.0.0.1", "203.0.113.1"]


def watched(serve: Serve, front: Callable[[str, str], Front], words: str) -> Running:
    """A server that HAProxy asks how it is, ten times a second and more."""
    server = serve(who, "127.0.0.1:0?proxy", trusted_proxies="127.0.0.1", health_path="/health", max_conns_per_ip=1)
    front("haproxy", f"{server.address} {words} check inter 50ms\n    option httpchk GET /health")
    return server


@pytest.mark.parametrize("way", WAYS)
def test_health_checks(way: str, serve: Serve, front: Callable[[str, str], Front]) -> None:
    """They are HAProxy's own: it says so."""
    server = watched(serve, front, f"{way} check-send-proxy")
    wait_until(lambda: server.stats()["probes"] >= 3, "HAProxy to ask three times")
    assert server.stats()["refused_proxy"] == 0


def test_who_does_not_say_whose_a_connection_is(serve: Serve, front: Callable[[str, str], Front]) -> None:
    server = watched(serve, front, "")
    wait_until(lambda: server.stats()["refused_proxy"] >= 3, "three connections to be refused")
    assert server.stats()["probes"] == 0
