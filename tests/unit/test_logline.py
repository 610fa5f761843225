"""A line of the access log, whatever a client sent.

Knows: `_probe.log_line`. Never sees: a server, a file. Invariant: one line, printable ASCII, bounded; a JSON line is
read back as what was put in, a combined one has its fields where Apache has them.
"""

import json
import random
import re
import socket

import _probe
import pytest

COMBINED = re.compile(
    rb'(\S+) - - \[([0-9]{2}/[A-Z][a-z]{2}/[0-9]{4}:[0-9:]{8} [+-][0-9]{4})\] "((?:[^"\\]|\\.)*)" ([0-9]{3}) '
    rb'([0-9]+|-) "((?:[^"\\]|\\.)*)" "((?:[^"\\]|\\.)*)" ([0-9]+|-) ([0-9]+|-) ([0-9]+|-) ([0-9]+-[0-9]+)\n')
AT = 1_790_000_000_987_654_321      # 2026-09-21T14:13:20.987Z
GIVEN = dict(method=b"GET", target=b"/a?b", referer=b"http://x/", agent=b"curl/8", status=200, minor=1, bytes=5, at=AT,
             queue=1_500, handler=2_000_999, write=-1, id=7, number=3, family=socket.AF_INET, address=b"\x7f\0\0\1",
             aborted=False)


def line(form: str, **other: object) -> bytes:
    made: bytes = _probe.log_line(form == "json", GIVEN | other)
    assert made.endswith(b"\n")
    assert all(0x20 <= c < 0x7f for c in made[:-1])
    assert len(made) <= _probe.LINE_ROOM
    return made


def test_combined() -> None:
    match = COMBINED.fullmatch(line("combined"))
    assert match
    assert match.groups()[2:7] == (b"GET /a?b HTTP/1.1", b"200", b"5", b"http://x/", b"curl/8")
    assert match.groups()[7:] == (b"1", b"2000", b"-", b"7-3")
    assert match[1] == b"127.0.0.1"
    empty = COMBINED.fullmatch(line("combined", method=b"", target=b"", referer=b"", agent=b"", bytes=0, queue=-1))
    assert empty
    assert empty.groups()[2:8] == (b"-", b"200", b"-", b"-", b"-", b"-")


def test_json() -> None:
    assert json.loads(line("json")) == {
        "time": "2026-09-21T14:13:20.987Z", "id": "7-3", "remote_addr": "127.0.0.1", "method": "GET", "target": "/a?b",
        "version": "1.1", "status": 200, "bytes": 5, "referer": "http://x/", "user_agent": "curl/8", "queue_us": 1,
        "handler_us": 2000, "write_us": None, "aborted": False}
    told = json.loads(line("json", method=b"", target=b"", aborted=True))
    assert (told["method"], told["target"], told["version"], told["aborted"]) == (None, None, None, True)


@pytest.mark.parametrize(("family", "address", "told"), [
    (socket.AF_INET, b"\xff\xff\xff\xff", "255.255.255.255"),
    (socket.AF_INET6, b"\x20\1\x0d\xb8" + b"\0" * 11 + b"\1", "2001:db8::1"),
    (socket.AF_INET6, b"\xff" * 16, "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
    (socket.AF_UNIX, b"", "unix"),
    (0, b"", "unix"),
])
def test_addresses(family: int, address: bytes, told: str) -> None:
    assert json.loads(line("json", family=family, address=address))["remote_addr"] == told
    assert line("combined", family=family, address=address).split()[0] == told.encode()


def test_what_is_long_is_cut() -> None:
    told = json.loads(line("json", target=b"/" + b"t" * 5000, referer=b"r" * 401, agent=b"a" * 400, method=b"M" * 32))
    assert told["target"] == "/" + "t" * 1020 + "..."
    assert told["referer"] == "r" * 397 + "..."
    assert told["user_agent"] == "a" * 400


@pytest.mark.parametrize("form", ["combined", "json"])
def test_any_bytes(form: str, chance: random.Random) -> None:
    for _ in range(300):
        texts = {name: chance.randbytes(chance.choice((1, 5, 32 if name == "method" else 400)))
                 for name in ("method", "target", "referer", "agent")}
        made = line(form, **texts)
        if form == "json":
            told = json.loads(made)
            assert told["referer"].encode("latin-1") == texts["referer"]
            assert told["user_agent"].encode("latin-1") == texts["agent"]
            assert told["target"].encode("latin-1") == texts["target"]
        else:
            match = COMBINED.fullmatch(made)
            assert match
            assert unescaped(match[6]) == texts["referer"]
            assert unescaped(match[7]) == texts["agent"]


def unescaped(text: bytes) -> bytes:
    return re.sub(rb"\\(?:x([0-9a-f]{2})|(.))", lambda m: bytes.fromhex(m[1].decode()) if m[1] else m[2], text)


@pytest.mark.parametrize("form", ["combined", "json"])
def test_the_longest_line_has_room(form: str) -> None:
    worst = dict(method=b"\xff" * 32, target=b"\xff" * 1024, referer=b"\xff" * 400, agent=b"\xff" * 400,
                 bytes=2**64 - 1, queue=2**62, handler=2**62, write=2**62, id=2**64 - 1, number=2**32 - 1,
                 family=socket.AF_INET6, address=b"\xff" * 16)
    assert len(line(form, **worst)) > 7000
