"""Listeners of proxies: a PROXY header tells who asks, and comes first and from whom is trusted, or nothing does.

Knows: binds with `?proxy`, headers as HAProxy writes them, 127.0.0.1 as the proxy and 127.0.0.2 as a stranger. Never
sees: what else may be a header (tests/unit/test_proxy.py), a proxy (tests/peers/test_proxy.py).
Invariant: without a whole header from a trusted peer no handler is called and nothing is said; with one the
connection is as any other, and its client's.
"""

import contextlib
import ipaddress
import json
import os
import queue
import select
import signal
import socket
import struct
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import test_leaving as leaving
from conftest import PATIENCE, Running, Serve, Wire, request, wait_for, wait_until
from test_leaving import GET, Run, connect, reply

from fastserve import RequestCtx, Server, StartError

script = leaving.script

BIND = "127.0.0.1:0?proxy"
SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
LINE = b"PROXY TCP4 203.0.113.7 192.0.2.1 56324 443\r\n"
UNKNOWN = b"PROXY UNKNOWN\r\n"
LOCAL = SIGNATURE + b"\x20\x00\x00\x00"
STRANGER = "127.0.0.2"


def block(source: str, port: int, more: bytes = b"") -> bytes:
    """A header of version 2 for a client at `source`."""
    address = ipaddress.ip_address(source)
    content = address.packed + b"\0" * len(address.packed) + struct.pack(">HH", port, 443) + more
    return SIGNATURE + bytes((0x21, 0x11 if address.version == 4 else 0x21)) + struct.pack(">H", len(content)) + content


def of(address: str) -> bytes:
    return LINE.replace(b"203.0.113.7", address.encode())


def who(ctx: RequestCtx) -> None:
    ctx.write(f"{ctx.remote_addr} {ctx.client_ip} {ctx.conn_request_num}")


def proxied(serve: Serve, *binds: str, **config: Any) -> Running:
    return serve(who, *(binds or (BIND,)), **{"trusted_proxies": "127.0.0.1", "workers": 2} | config)


def is_sent_away(address: str, source: str = STRANGER, sent: bytes = b"") -> bool:
    """A stranger is reset, during its connect or behind it."""
    with contextlib.suppress(ConnectionResetError, BrokenPipeError), Wire(address, source=source) as wire:
        return wire.send(sent).ended()
    return True


def check_refused(server: Running, count: int) -> None:
    """So many were, nothing of them is left, and that is all that happened."""
    wait_until(lambda: server.stats()["refused_proxy"] == count, f"{count} connections to be refused")
    wait_until(lambda: not any(server.in_use().values()), "them to be gone")
    stats = server.stats()
    assert (stats["requests"], stats["refusals"], stats["statuses"]["4xx"]) == (0, {}, 0)


# With a header

HEADERS = [
    (LINE, "('203.0.113.7', 56324) 203.0.113.7"),
    (b"PROXY TCP6 2001:db8::7 ::1 1 443\r\n", "('2001:db8::7', 1) 2001:db8::7"),
    (b"PROXY TCP6 ::ffff:203.0.113.7 ::1 1 443\r\n", "('::ffff:203.0.113.7', 1) 203.0.113.7"),
    (block("203.0.113.7", 56324), "('203.0.113.7', 56324) 203.0.113.7"),
    (block("2001:db8::7", 65535), "('2001:db8::7', 65535) 2001:db8::7"),
    (block("203.0.113.7", 0, b"\x04\x0f\xa1" + b"x" * 4001), "('203.0.113.7', 0) 203.0.113.7"),
]


@pytest.mark.parametrize(("header", "told"), HEADERS, ids=["TCP4", "TCP6", "mapped", "four", "six", "padded"])
def test_with_a_header(serve: Serve, header: bytes, told: str) -> None:
    """It counts for all requests of its connection, those in the same piece and those that follow without one."""
    server = proxied(serve)
    wire = server.connect().send(header, request(), request())
    assert [wire.read().body.decode() for _ in range(2)] == [f"{told} 1", f"{told} 2"]
    assert wire.get().body.decode() == f"{told} 3"
    assert server.connect().send(header).get().body.decode() == f"{told} 1"
    assert server.stats()["refused_proxy"] == 0


@pytest.mark.parametrize("reactors", [1, 3])
def test_many_at_once(serve: Serve, reactors: int) -> None:
    """Each with an address of its own."""
    server = proxied(serve, reactors=reactors, workers=4)
    wires = [server.connect().send(of(f"203.0.113.{n}"), request()) for n in range(256)]
    for n, wire in enumerate(wires):
        assert wire.read().body.decode() == f"('203.0.113.{n}', 56324) 203.0.113.{n} 1"


@pytest.mark.parametrize(("header", "client"), [
    (LINE, b"203.0.113.7"), (block("203.0.113.7", 56324, b"\x04\0\x01x"), b"203.0.113.7"), (LOCAL, b"127.0.0.1"),
    (UNKNOWN, b"127.0.0.1"),
], ids=["line", "block", "LOCAL", "UNKNOWN"])
def test_cut_anywhere(serve: Serve, header: bytes, client: bytes) -> None:
    server = serve(lambda ctx: ctx.write(str(ctx.client_ip)), BIND, trusted_proxies="127.0.0.1", workers=2)
    for cut in range(len(header) + 1):
        with server.connect() as wire:
            wire.send(header[:cut])
            # A block is lent while there are bytes that are no request yet.
            wait_until(lambda cut=cut: server.stats()["connections"] == 1  # type: ignore[misc]
                       and server.stats()["buffers"] == (0 < cut < len(header)), "what has come to be read")
            assert wire.send(header[cut:], request()).read().body == client, cut
        wait_until(lambda: server.stats()["connections"] == 0, "an empty server")


NOBODY_SAYS = [
    LOCAL, UNKNOWN, SIGNATURE + b"\x21\0\0\0", SIGNATURE + b"\x21\x31\0\xd8" + b"/x".ljust(216, b"\0"),
    SIGNATURE + b"\x21\x12\0\x0c" + bytes(12),
]


def test_a_connection_of_nobody_knows_whom(serve: Serve) -> None:
    """The proxy's own, and clients of whom nothing is said: the address is the connection's."""
    server = proxied(serve)
    for header in NOBODY_SAYS:
        wire = server.connect().send(header, request())
        assert wire.read().body.decode() == f"{wire.socket.getsockname()} 127.0.0.1 1"


def test_client_ip(serve: Serve) -> None:
    """The address that is told is the peer's: if it is trusted, fields are read. Of a client that nobody knows none is:
    it wrote them itself."""
    server = proxied(serve, trusted_proxies="127.0.0.1, 10.0.0.0/8")
    for header, client in (
        (of("203.0.113.7"), "203.0.113.7"), (of("10.1.2.3"), "198.51.100.9"), (block("10.1.2.3", 1), "198.51.100.9"),
        *((header, "127.0.0.1") for header in NOBODY_SAYS),
    ):
        reply = server.exchange(header, request("GET", "/", "X-Forwarded-For: 198.51.100.9"))
        assert reply.body.split()[2] == client.encode(), header


def test_local_addr_is_the_listener_s(serve: Serve) -> None:
    server = serve(lambda ctx: ctx.write(str(ctx.local_addr)), BIND, trusted_proxies="127.0.0.1", workers=2)
    assert server.exchange(LINE, request()).body == f"('127.0.0.1', {server.port})".encode()


def test_a_second_header_is_a_malformed_request(serve: Serve) -> None:
    server = proxied(serve)
    for first in (LINE, LINE + request()):
        for second in (LINE, LOCAL):
            wire = server.connect().send(first, second)
            if first != LINE:
                assert wire.read().status == 200
            assert wire.read().status == 400
            assert wire.ended()


def test_large_things_behind_a_header(serve: Serve) -> None:
    """The longest header, and a head that fills what is left; a body in the same piece."""
    server = serve(lambda ctx: ctx.write(f"{ctx.client_ip} {len(ctx.body)}"), BIND, trusted_proxies="127.0.0.1",
                   workers=2)
    header = block("203.0.113.7", 1, bytes(4096 - 28))
    assert len(header) == 4096
    room = 16384 - len(request("GET", "/", "X: "))
    assert server.exchange(header, request("GET", "/", "X: " + "x" * room)).body == b"203.0.113.7 0"
    assert server.exchange(header, request("GET", "/", "X: " + "x" * (room + 1))).status == 431
    assert server.exchange(header, request("POST", body=b"b" * 100_000)).body == b"203.0.113.7 100000"
    assert server.exchange(LINE, request("POST", body=b"b" * 10_000)).body == b"203.0.113.7 10000"


def test_while_every_worker_blocks(serve: Serve, release: threading.Event) -> None:
    """A header is read without Python."""
    inside = threading.Semaphore(0)

    def handler(ctx: RequestCtx) -> None:
        inside.release()
        wait_for(release)

    server = serve(handler, BIND, trusted_proxies="127.0.0.1", workers=2, health_path="/health", queue_timeout=600)
    blocked = [server.connect().send(LINE, request()) for _ in range(2)]
    for _ in blocked:
        assert inside.acquire(timeout=PATIENCE)
    assert server.exchange(LINE, request("GET", "/health")).status == 200
    assert server.exchange(LOCAL, request("GET", "/health")).status == 200
    assert server.connect().send(b"nonsense").gone()
    release.set()
    for wire in blocked:
        assert wire.read().status == 200
    assert server.stats()["refused_proxy"] == 1


def test_the_access_log_has_the_client(serve: Serve, tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    server = proxied(serve, access_log=str(path), access_log_format="json")
    assert server.exchange(LINE, request()).status == 200
    assert server.exchange(block("2001:db8::7", 1), b"nonsense\r\n\r\n").status == 400
    wait_until(lambda: server.stats()["access_log_lines"] == 2, "two lines")
    found = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["remote_addr"] for line in found] == ["203.0.113.7", "2001:db8::7"]


# Without one

@pytest.mark.parametrize("sent", [b"", b"x", LINE + GET, GET, LOCAL], ids=["nothing", "byte", "line", "GET", "LOCAL"])
def test_a_stranger(serve: Serve, sent: bytes) -> None:
    """Whoever is not trusted is reset, whatever it sends."""
    server = proxied(serve)
    if sent:
        assert is_sent_away(server.address, STRANGER, sent)
    else:
        with pytest.raises(ConnectionResetError), Wire(server.address, source=STRANGER) as wire:
            wire.ended()
    check_refused(server, 1)
    assert server.exchange(LINE, request()).status == 200
    wait_until(lambda: serve.warnings(), "a warning")
    assert serve.warnings() == [
        f"connections to a listener of proxies are reset: {STRANGER} is none of trusted_proxies"]


NOT_A_HEADER = [
    GET, b"\r\n" + GET, b"PROXY\r\n" + GET, b"PROXY TCP4 1.2.3.4 5.6.7.8 1\r\n" + GET,
    b"PROXY TCP4 1.2.3.4 ::1 1 1\r\n", b"PROXY UNKNOWN" + b"x" * 100, LINE.replace(b"\r", b"") + GET,
    SIGNATURE + b"\x11\x11\0\x0c" + bytes(12) + GET,
    SIGNATURE + b"\x21\x12\0\x0b" + bytes(11) + GET, SIGNATURE + b"\x21\x11\0\x0b" + bytes(11) + GET,
    SIGNATURE + b"\x21\x11\xff\xff", SIGNATURE + b"\x20\x00\x0f\xf1", b"\x16\x03\x01\x02\x00",
]


def test_what_is_no_header(serve: Serve) -> None:
    """Reset without a word, as soon as it cannot become one. The log says so once."""
    server = proxied(serve, error_handler=lambda ctx, error: ctx.write("never"), log_all_errors=True)
    for sent in NOT_A_HEADER:
        with server.connect() as wire, pytest.raises(ConnectionResetError):
            wire.send(sent).ended()
    check_refused(server, len(NOT_A_HEADER))
    assert server.exchange(LINE, request()).status == 200
    wait_until(lambda: serve.warnings(), "a warning")
    assert [text for text in serve.warnings() if "PROXY" in text] == [
        "connections to a listener of proxies are reset: what 127.0.0.1 sent is no PROXY header"]


def test_each_reason_is_logged_once(serve: Serve) -> None:
    """None of them hides another."""
    server = proxied(serve, header_timeout=0.2)
    for _ in range(2):
        assert is_sent_away(server.address)
        assert server.connect().send(GET).gone()
        assert server.connect().gone()
    wait_until(lambda: len(serve.warnings()) == 3, "three warnings")
    said = sorted(text.removeprefix("connections to a listener of proxies are reset: ") for text in serve.warnings())
    assert said == [
        "127.0.0.2 is none of trusted_proxies", "no whole PROXY header came from 127.0.0.1 within header_timeout",
        "what 127.0.0.1 sent is no PROXY header"]


def test_who_leaves_before_the_header_is_whole_is_no_fault(serve: Serve) -> None:
    """As whoever looks whether there is a listener does."""
    server = proxied(serve)
    for leave in (Wire.close, Wire.reset, Wire.half_close):
        for sent in (b"", LINE[:20]):
            leave(server.connect().send(sent))
    wait_until(lambda: server.stats()["accepted"] == 6 and server.stats()["connections"] == 0, "all to be gone")
    assert server.stats()["refused_proxy"] == 0


def test_header_timeout(serve: Serve) -> None:
    """From accept, with a reset: with nothing, and with some of a header, which further bytes do not prolong."""
    server = proxied(serve, header_timeout=0.2)
    wires = [server.connect().send(sent) for sent in (b"", b"P", LINE[:-1], SIGNATURE, block("1.2.3.4", 1)[:-1])]
    for wire in wires:
        with pytest.raises(ConnectionResetError):
            wire.ended()
    slow, longest = server.connect(), block("203.0.113.7", 1, bytes(4096 - 28))
    wires.append(slow)
    with contextlib.suppress(ConnectionResetError, BrokenPipeError):
        for n in range(4095):
            slow.send(longest[n:n + 1])
            if not n % 16 and select.select([slow.socket], [], [], 0.02)[0]:
                break
        else:
            pytest.fail("a byte now and then keeps a connection for ever")
    check_refused(server, len(wires))
    wait_until(lambda: serve.warnings(), "a warning")
    assert any("within header_timeout" in text for text in serve.warnings())


def test_behind_the_header_the_deadlines_are_those_of_a_request(serve: Serve) -> None:
    server = proxied(serve, idle_timeout=0.2, header_timeout=600)
    assert server.connect().send(LINE).ended()
    assert (server.stats()["timed_out_idle"], server.stats()["refused_proxy"]) == (1, 0)
    server = proxied(serve, idle_timeout=600, header_timeout=0.2)
    silent = server.connect().send(LINE)
    assert server.connect().send(LINE, b"GET / H").read().status == 408
    assert silent.get().status == 200


# Limits of connections

@pytest.mark.parametrize("reactors", [1, 3])
def test_max_conns_per_ip_counts_clients_and_no_proxy(serve: Serve, reactors: int) -> None:
    """Here by two listeners, one of which has no proxies; the proxy has as many connections as it likes."""
    server = proxied(serve, BIND, "127.0.0.1:0", max_conns_per_ip=2, reactors=reactors, workers=4)
    silent = [server.connect() for _ in range(5)]
    own = [server.connect().send(header) for header in (LOCAL, UNKNOWN) for _ in range(3)]
    ours = [server.connect().send(header) for header in (LINE, block("203.0.113.7", 1))]
    others = [server.connect().send(of(f"203.0.113.{n}")) for n in (8, 9, 10)]
    for wire in (*own, *ours, *others):
        assert wire.get().status == 200
    for header in (LINE, LINE + request(), block("203.0.113.7", 2) + request("POST", body=b"b" * 100_000)):
        refused = server.connect().send(header)
        reply = refused.read()
        assert (reply.status, reply.closes) == (429, True)
        assert reply.body == b"The number of connections from your ip exceeds max_conns_per_ip\n"
        assert refused.ended()
        refused.close()
    wait_until(lambda: server.stats()["rejected"] == 0, "those to be forgotten")
    stats = server.stats()
    assert (stats["connections"], stats["refused_per_ip"], stats["refusals"]) == (16, 3, {429: 3})
    # Each of its own goes, and there is room again.
    ours.pop().close()
    wait_until(lambda: server.stats()["connections"] == 15, "room")
    assert server.connect().send(LINE).get().status == 200
    assert server.connect().send(LINE).read().status == 429
    # Who comes by itself and who comes by a proxy are one.
    with ExitStack() as clients:
        direct = [clients.enter_context(Wire(server.addresses[1], source=STRANGER)) for _ in range(3)]
        assert sorted(wire.get().status for wire in direct) == [200, 200, 429]
        assert server.connect().send(of(STRANGER)).read().status == 429
    for wire in silent:
        assert wire.send(of("203.0.113.99" if wire is silent[0] else "203.0.113.98")).get().status == (
            200 if wire in silent[:3] else 429)


def test_max_conns_per_ip_and_those_who_are_trusted(serve: Serve) -> None:
    """They come for many, on a listener of proxies or another, by themselves or by a proxy of their own."""
    server = proxied(serve, BIND, "127.0.0.1:0", trusted_proxies="127.0.0.1, 10.0.0.0/8", max_conns_per_ip=1)
    with ExitStack() as clients:
        for _ in range(3):
            assert clients.enter_context(Wire(server.addresses[1])).get().status == 200
            assert server.connect().send(of("10.1.2.3")).get().status == 200
        assert server.connect().send(of("11.1.2.3")).get().status == 200
        assert server.connect().send(of("11.1.2.3")).read().status == 429


def test_max_conns_per_ip_of_other_families(serve: Serve) -> None:
    """A customer's 64 bits of IPv6 are one client, and IPv4 within IPv6 is IPv4."""
    server = proxied(serve, max_conns_per_ip=1)
    for first, second in ((block("2001:db8::1", 1), b"PROXY TCP6 2001:db8::ffff:0:0:2 ::1 1 443\r\n"),
                          (of("203.0.113.7"), block("::ffff:203.0.113.7", 1))):
        assert server.connect().send(first).get().status == 200
        assert server.connect().send(second).read().status == 429
    assert server.connect().send(block("2001:db8:0:1::1", 1)).get().status == 200


def test_max_conns_per_ip_when_the_client_leaves_by_another_door(serve: Serve) -> None:
    """A detached call, a hijacked connection: they count until they end."""
    calls: queue.SimpleQueue[RequestCtx] = queue.SimpleQueue()
    done = threading.Event()

    def handler(ctx: RequestCtx) -> None:
        if ctx.path == "/later":
            ctx.detach()
            calls.put(ctx)
        elif ctx.path == "/away":
            ctx.hijack(lambda connection, data: wait_for(done))

    server = serve(handler, BIND, trusted_proxies="127.0.0.1", workers=2, max_conns_per_ip=1)
    later = server.connect().send(LINE, request("GET", "/later"))
    ctx = calls.get(timeout=PATIENCE)
    assert server.connect().send(LINE).read().status == 429
    ctx.complete()
    assert later.read().status == 200
    later.close()
    wait_until(lambda: server.stats()["connections"] == 0, "it to be gone")
    away = server.connect().send(LINE, request("GET", "/away"))
    assert away.read().status == 200
    assert server.connect().send(LINE).read().status == 429
    done.set()
    assert away.ended()
    wait_until(lambda: server.stats()["connections"] == 0, "it to be gone")
    assert server.connect().send(LINE, request()).read().status == 200


def test_more_than_there_are_places_to_be_told(serve: Serve) -> None:
    server = proxied(serve, max_conns_per_ip=1, reject_slots=0)
    kept = server.connect().send(LINE)
    assert kept.get().status == 200
    assert server.connect().send(LINE, request()).gone()
    stats = server.stats()
    assert (stats["refused_per_ip"], stats["closed_unheard"], stats["connections"]) == (1, 1, 1)
    assert kept.get().status == 200


@pytest.mark.parametrize("reject_slots", [0, 8])
def test_a_probe_of_a_client_with_too_many_connections(serve: Serve, reject_slots: int) -> None:
    """It is heard, at once or later; anything else is told, or sees the end where there is no place to be told."""
    server = proxied(serve, max_conns_per_ip=1, health_path="/health", reject_slots=reject_slots)
    assert server.connect().send(LINE).get().status == 200
    for first, then in ((LINE + request("GET", "/health"), b""), (LINE, request("GET", "/health"))):
        wire = server.connect().send(first)
        if then:
            wait_until(lambda: server.stats()["rejected"] == 1, "it to be heard")
        reply = wire.send(then).read()
        assert (reply.status, reply.closes) == (200, True)
        assert json.loads(reply.body)["connections"] == 1
        wire.close()
        wait_until(lambda: server.stats()["rejected"] == 0, "it to be gone")
    for first, then in ((LINE + request(), b""), (LINE, request()), (LINE, b"nonsense\r\n\r\n")):
        wire = server.connect().send(first)
        if then:
            wait_until(lambda: server.stats()["rejected"] == 1, "it to be heard")
        wire.send(then)
        assert wire.read().status == 429 if reject_slots else wire.gone()
        wire.close()
        wait_until(lambda: server.stats()["rejected"] == 0, "it to be gone")
    assert server.stats()["closed_unheard"] == (0 if reject_slots else 3)


def test_concurrency(serve: Serve) -> None:
    """A proxy is told at once, as everybody is; a stranger takes no place, and is not told."""
    server = proxied(serve, concurrency=2, reject_slots=8)
    kept = [server.connect().send(LINE) for _ in range(2)]
    for wire in kept:
        assert wire.get().status == 200
    for sent in (b"", LINE, LINE + request()):
        refused = server.connect().send(sent)
        assert refused.read().status == 503
        assert refused.ended()
    assert is_sent_away(server.address)
    stats = server.stats()
    assert (stats["refused_connections"], stats["refused_proxy"], stats["connections"]) == (3, 1, 2)


def test_concurrency_and_probes(serve: Serve) -> None:
    """Beyond the limit a header must come first, too."""
    server = proxied(serve, concurrency=1, reject_slots=8, health_path="/health")
    assert server.connect().send(LINE).get().status == 200
    for sent in (LINE + request("GET", "/health"), LOCAL + request("GET", "/health")):
        assert server.exchange(sent).status == 200
    for sent in (LINE + request(), LINE + b"nonsense\r\n\r\n"):
        assert server.exchange(sent).status == 503
    for sent in (request("GET", "/health"), b"nonsense"):
        assert server.connect().send(sent).gone()
    wait_until(lambda: server.stats()["refused_proxy"] == 2, "two to be refused")
    for wire in [server.connect().send(sent) for sent in (b"", LINE[:9], LINE)]:
        assert wire.read().status == 503        # behind a second
    assert server.stats()["probes"] == 2


def test_max_conns_per_ip_does_not_count_who_is_beyond_concurrency(serve: Serve) -> None:
    server = proxied(serve, concurrency=1, max_conns_per_ip=1, health_path="/health")
    kept = server.connect().send(LINE)
    assert kept.get().status == 200
    for _ in range(3):
        assert server.exchange(LINE, request("GET", "/health")).status == 200
    kept.close()
    wait_until(lambda: not any(server.in_use().values()), "an empty server")
    assert server.connect().send(LINE).get().status == 200


def test_probes(serve: Serve) -> None:
    """Of the proxy itself and of its clients; metrics tell of those that were refused, and of the bytes of headers."""
    server = proxied(serve, health_path="/health", metrics_path="/metrics")
    scrape = request("GET", "/metrics")
    wire = server.connect().send(LINE[:10])
    wait_until(lambda: server.stats()["buffers"] == 1, "some of the header to be read")
    text = wire.send(LINE[10:], scrape).read().body
    assert f"\nfastserve_received_bytes_total {len(LINE + scrape)}\n".encode() in text
    assert server.exchange(LOCAL, request("GET", "/health")).status == 200
    assert server.connect().send(request("GET", "/health")).gone()
    text = server.exchange(LINE, scrape).body
    assert b"\nfastserve_connections_no_proxy_total 1\n" in text


# Other listeners

def test_a_unix_socket(serve: Serve, tmp_path: Path) -> None:
    server = proxied(serve, f"unix:{tmp_path}/s?mode=600&proxy", trusted_proxies="unix", max_conns_per_ip=1)
    assert (tmp_path / "s").stat().st_mode & 0o777 == 0o600
    wire = server.connect().send(LINE)
    assert wire.get().body == b"('203.0.113.7', 56324) 203.0.113.7 1"
    assert server.connect().send(LINE).read().status == 429
    forwarded = request("GET", "/", "X-Forwarded-For: 198.51.100.9")
    for header in (LOCAL, UNKNOWN):
        assert server.exchange(header, forwarded).body == b"None None 1"
    assert server.connect().send(request()).gone()


def test_an_inherited_listener_of_both_families(serve: Serve) -> None:
    """There IPv4 comes within IPv6."""
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as listener:
        port = listener.getsockname()[1]
        server = proxied(serve, f"fd:{listener.fileno()}?proxy")
    with Wire(f"127.0.0.1:{port}") as wire:
        assert wire.send(LINE).get().body == b"('203.0.113.7', 56324) 203.0.113.7 1"
    assert is_sent_away(f"[::1]:{port}", "::1", LINE)
    assert server.stats()["refused_proxy"] == 1


def test_other_listeners_of_the_server_know_no_header(serve: Serve) -> None:
    server = proxied(serve, BIND, "127.0.0.1:0")
    with Wire(server.addresses[1]) as wire:
        assert wire.get().body.startswith(b"('127.0.0.1', ")
    for header in (LINE, LOCAL):
        with Wire(server.addresses[1]) as wire:
            assert wire.send(header).read().status == 400
    assert server.exchange(LINE, request()).body.startswith(b"('203.0.113.7', ")
    assert server.addresses[0] == f"127.0.0.1:{server.port}"


@pytest.mark.parametrize(("bind", "trusted", "how"), [
    (BIND, "", "by address or network"), (BIND, "unix", "by address or network"),
    ("localhost:0?proxy", "", "by address or network"), ("unix:PATH?proxy", "", "as unix"),
    ("unix:PATH?proxy", "127.0.0.1", "as unix"),
])
def test_somebody_must_be_trusted(tmp_path: Path, bind: str, trusted: str, how: str) -> None:
    path = tmp_path / "s"
    server = Server(who, trusted_proxies=trusted)
    with pytest.raises(StartError, match=f"^cannot listen on .*proxy: trusted_proxies must name the proxies .*{how}"):
        server.start(bind.replace("PATH", str(path)))
    assert not path.exists()


# The end

def test_a_stop(serve: Serve) -> None:
    """Who has sent nothing, or some of a header, or no more than one, is as idle as any other."""
    server = proxied(serve)
    served = server.connect().send(LINE)
    assert served.get().status == 200
    wires = [server.connect().send(sent) for sent in (b"", LINE[:9], SIGNATURE, LINE)]
    wait_until(lambda: server.stats()["buffers"] == 2 and server.stats()["connections"] == 5, "all to be read")
    assert server.shutdown(600)
    assert all(wire.ended() for wire in (served, *wires))
    stats = server.stats()
    assert (stats["cut"], stats["closed_silent"], stats["refused_proxy"]) == (0, 4, 0)


def test_a_stop_at_once(serve: Serve) -> None:
    """They are no requests that are cut off."""
    server = proxied(serve)
    wires = [server.connect().send(sent) for sent in (b"", LINE[:9], LINE)]
    wait_until(lambda: server.stats()["buffers"] == 1 and server.stats()["connections"] == 3, "all to be read")
    assert server.shutdown(0)
    assert all(wire.gone() for wire in wires)


def test_what_has_come_when_the_server_stops_is_served(script: Run) -> None:
    """Accepted before and not read yet; with some of its header, whose rest has come; and not accepted yet."""
    process = script("""
def handler(ctx):
    ctx.write(str(ctx.client_ip))
Server(handler, workers=2, reactors=1, trusted_proxies="127.0.0.1").serve("127.0.0.1:0?proxy", ready=ready)
""")
    [address] = process.addresses()
    with ExitStack() as clients:
        early = [clients.enter_context(connect(address)) for _ in range(20)]
        for wire in early:
            wire.sendall(LINE[:11])
        first = clients.enter_context(connect(address))
        first.sendall(LINE + GET)
        assert reply(first).endswith(b"203.0.113.7")       # what came before it has been read
        os.kill(process.popen.pid, signal.SIGSTOP)
        try:
            for wire in early:
                wire.sendall(LINE[11:] + GET)
            late = [clients.enter_context(connect(address)) for _ in range(20)]
            for wire in late:
                wire.sendall(LINE + GET)
            os.kill(process.popen.pid, signal.SIGTERM)
        finally:
            os.kill(process.popen.pid, signal.SIGCONT)
        assert [reply(wire)[-11:] for wire in (*early, *late)] == [b"203.0.113.7"] * 40
    assert process.status() == 0


def test_a_stranger_when_descriptors_run_out(script: Run) -> None:
    """Not even then is it told anything."""
    process = script("""
import resource
def handler(ctx):
    if ctx.path == "/few":
        top = max(int(name) for name in os.listdir("/proc/self/fd"))
        resource.setrlimit(resource.RLIMIT_NOFILE, (top + 1, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    ctx.write(ctx.path)
server = Server(handler, workers=2, reactors=1, concurrency=200, trusted_proxies="127.0.0.1")
server.serve("127.0.0.1:0?proxy", ready=ready)
say(server.stats()["refused_descriptors"], server.stats()["refused_proxy"])
""")
    [address] = process.addresses()
    host, _, port = address.rpartition(":")
    with ExitStack() as clients:
        kept = clients.enter_context(connect(address))
        kept.sendall(LINE + GET.replace(b"/", b"/few", 1))
        assert reply(kept).endswith(b"/few")
        status = b""
        while status != b"HTTP/1.1 503 ":
            # Those that are served stay, until no descriptor is left.
            wire = clients.enter_context(connect(address))
            wire.sendall(LINE + GET)
            status = reply(wire)[:13]
        for _ in range(3):
            with (contextlib.suppress(ConnectionResetError),
                  socket.create_connection((host, int(port)), PATIENCE, (STRANGER, 0)) as stranger):
                assert stranger.recv(100) == b""
        kept.sendall(GET)
        assert reply(kept).startswith(b"HTTP/1.1 200 ")
    process.popen.terminate()
    assert process.line() == "1 3"
    assert process.status() == 0
