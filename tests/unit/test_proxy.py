"""Headers of the PROXY protocol against tests/cases/proxy.toml in every cut, and against readers of another kind.

Knows: the probe, `ipaddress`. Never sees: a connection, what becomes of one. Invariant: a header says the same wherever
its bytes are cut and whatever stands behind it; who is trusted is who `forwarded.Trust` trusts.
"""

import ipaddress
import random
import re
import socket
import struct

import _probe
import pytest

from fastserve.forwarded import Trust

VERDICTS = {"more": _probe.MORE, "done": _probe.DONE, "none": _probe.NO_PROXY}
SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"

Found = tuple[int, int | None, str | None, tuple[int, bytes, int] | None]


def as_found(address: str, port: int) -> tuple[int, bytes, int]:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return family, socket.inet_pton(family, address), port


def prefixes(data: bytes) -> list[Found]:
    """Of each of them, by turns beside forbidden memory before and behind it."""
    return [_probe.proxy_header(data[:size], bool(size & 1)) for size in range(len(data) + 1)]


@pytest.mark.wire("proxy")
def test_case(case) -> None:
    verdict, size, who, client = _probe.proxy_header(case["bytes"])
    assert verdict == VERDICTS[case["verdict"]]
    assert who == case.get("who")
    assert client == (as_found(*case["client"]) if "client" in case else None)
    if who is not None:
        assert case["bytes"][size:] == case.get("left", b"")


@pytest.mark.wire("proxy")
def test_cut_anywhere(case) -> None:
    """MORE until it is decided, which of a header is at its last byte; then nothing changes it."""
    found = prefixes(case["bytes"])
    decided = [each for each in found if each[0] != _probe.MORE]
    assert all(each[0] == _probe.MORE for each in found[:len(found) - len(decided)])
    assert len(set(decided)) <= 1
    if decided and decided[0][0] == _probe.DONE:
        assert len(decided) == len(found) - decided[0][1]


def test_bounds() -> None:
    """Of version 2 as many bytes are skipped as are allowed, and no more; a length is judged before they come."""
    for length, verdict in ((_probe.PROXY_MAX - 16, _probe.DONE), (_probe.PROXY_MAX - 15, _probe.NO_PROXY)):
        for start in (b"\x20\x00", b"\x21\x00", b"\x21\x11", b"\x21\x21", b"\x21\x22", b"\x21\x31"):
            head = SIGNATURE + start + struct.pack(">H", length)
            assert _probe.proxy_header(head + b"\0" * length)[0] == verdict
            assert _probe.proxy_header(head)[0] == (_probe.MORE if verdict == _probe.DONE else verdict)
    assert _probe.PROXY_LINE_MAX == 107


def test_every_command_and_family() -> None:
    """Those alone that the protocol names."""
    asked = {(command, family) for command in (0x20, 0x21) for family in range(256)}
    asked |= {(command, 0x11) for command in range(256)}
    taken = {(command, family) for command, family in asked
             if _probe.proxy_header(SIGNATURE + bytes((command, family, 0, 216)) + b"\0" * 216)[0] == _probe.DONE}
    streams, datagrams = (0x00, 0x11, 0x21, 0x31), (0x12, 0x22, 0x32)
    assert taken == {(0x20, family) for family in range(256)} | {(0x21, f) for f in (*streams, *datagrams)}


PORT = rb"(0|[1-9][0-9]{0,4})"
LINE = re.compile(rb"PROXY (?:TCP([46]) ([^ \r]*) ([^ \r]*) " + PORT + rb" " + PORT +
                  rb"|(UNKNOWN(?: [^\r]*)?))\r\n")


def line_by_pattern(data: bytes) -> Found:
    """A line, read by a pattern and by ipaddress."""
    none = _probe.NO_PROXY, None, None, None
    if data.find(b"\r") in (-1, len(data) - 1) and len(data) < 107:
        return _probe.MORE, None, None, None
    match = LINE.match(data[:107])
    if match is None:
        return none
    if match[6] is not None:
        return _probe.DONE, match.end(), "somebody", None
    kind = ipaddress.IPv4Address if match[1] == b"4" else ipaddress.IPv6Address
    try:
        source, _ = (kind(text.decode("ascii")) for text in match.group(2, 3))
    except ValueError:
        return none
    if b"%" in match[2] + match[3] or max(int(match[4]), int(match[5])) > 65535:
        return none
    return _probe.DONE, match.end(), "client", as_found(str(source), int(match[4]))


def test_lines_by_another_reader(chance: random.Random) -> None:
    """Right ones of every kind, and some with a wrong byte or two."""
    taken = 0
    for _ in range(6000):
        if chance.random() < 0.5:
            ends = [str(ipaddress.IPv4Address(chance.getrandbits(32))) for _ in "ab"]
        else:
            ends = [str(ipaddress.IPv6Address(chance.getrandbits(128) & chance.choice((-1, 0xffff, -1 << 64))))
                    for _ in "ab"]
        ports = [str(chance.choice((0, 1, 80, 65535, chance.randrange(65536), chance.randrange(99_999)))) for _ in "ab"]
        kind = chance.choice(("TCP6" if ":" in ends[0] else "TCP4", "TCP4", "TCP6", "UNKNOWN"))
        data = bytearray(" ".join(("PROXY", kind, *ends, *ports)).encode() + b"\r\nGET / HTTP/1.1\r\n")
        for _ in range(chance.choice((0, 0, 1, 2))):
            at = chance.randrange(6, len(data))
            data[at:at + chance.randrange(2)] = chance.choice((b" ", b"0", b"1", b":", b".", b"\r", b"\n", b"", b"\0"))
        found = _probe.proxy_header(bytes(data))
        assert found == line_by_pattern(bytes(data)), bytes(data)
        taken += found[0] == _probe.DONE
    assert 1200 < taken < 4800


def test_blocks_that_were_packed_here(chance: random.Random) -> None:
    for _ in range(2000):
        four = chance.random() < 0.5
        size = 4 if four else 16
        source, destination = (chance.randbytes(size) for _ in "ab")
        port = chance.randrange(65536)
        content = source + destination + struct.pack(">HH", port, 80) + chance.randbytes(chance.randrange(40))
        head = SIGNATURE + b"\x21" + (b"\x11" if four else b"\x21") + struct.pack(">H", len(content))
        verdict, used, who, client = _probe.proxy_header(head + content + chance.randbytes(9))
        assert (verdict, used, who) == (_probe.DONE, len(head + content), "client")
        assert client == (socket.AF_INET if four else socket.AF_INET6, source, port)


# Who may send one

def believes(networks: str, address: str) -> bool:
    """By the rule for fields, which are read only behind a peer that is trusted."""
    return Trust(networks, "X-Forwarded-For").client(address, ["192.0.2.99"]) == "192.0.2.99"


def trusts(networks: str, address: str) -> bool:
    trust = Trust(networks, "X-Forwarded-For")
    return _probe.trusts(trust.networks, trust.unix, *as_found(address, 0)[:2])


@pytest.mark.parametrize(("networks", "address", "trusted"), [
    ("10.0.0.0/8", "10.255.255.255", True), ("10.0.0.0/8", "11.0.0.0", False), ("10.0.0.0/8", "9.255.255.255", False),
    ("192.0.2.7", "192.0.2.7", True), ("192.0.2.7", "192.0.2.6", False), ("192.0.2.6/31", "192.0.2.7", True),
    ("0.0.0.0/0", "1.2.3.4", True), ("0.0.0.0/0", "::1", False), ("::/0", "1.2.3.4", False), ("::/0", "::1", True),
    ("10.0.0.0/8", "::ffff:10.1.1.1", True), ("::ffff:0:0/96", "10.1.1.1", False), ("::/0", "::ffff:10.1.1.1", False),
    ("2001:db8::/33", "2001:db8:7fff::1", True), ("2001:db8::/33", "2001:db8:8000::1", False),
    ("fe80::/10, 10.0.0.1", "febf::1", True), ("fe80::/10, 10.0.0.1", "10.0.0.1", True), ("", "127.0.0.1", False),
    ("unix", "127.0.0.1", False),
])
def test_networks(networks: str, address: str, trusted: bool) -> None:
    assert trusts(networks, address) == trusted == believes(networks, address)


def test_networks_at_random(chance: random.Random) -> None:
    """Near enough to each other that both answers are met."""
    answers = []
    for _ in range(1000):
        networks = []
        for _ in range(chance.randrange(1, 4)):
            width, kind = chance.choice(((32, ipaddress.IPv4Network), (128, ipaddress.IPv6Network)))
            bits = chance.randrange(width + 1)
            start = chance.choice((0, chance.getrandbits(width))) >> (width - bits) << (width - bits)
            networks.append(kind((start, bits)))
        near = chance.choice(networks)
        at = int(near.network_address) ^ chance.choice((0, 1 << chance.randrange(near.max_prefixlen)))
        address = str(type(near.network_address)(at))
        text = ", ".join(map(str, networks))
        answers.append(trusts(text, address))
        assert answers[-1] == believes(text, address), (text, address)
    assert 150 < sum(answers) < 850


def test_peers_of_other_kinds() -> None:
    everybody = Trust("0.0.0.0/0, ::/0", "Forwarded").networks
    assert _probe.trusts(everybody, True, socket.AF_UNIX, b"")
    assert not _probe.trusts(everybody, False, socket.AF_UNIX, b"")
    assert not _probe.trusts(everybody, True, socket.AF_UNSPEC, b"")
