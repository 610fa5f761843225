"""The decoder of the chunked coding against the wire cases, in every cut of their bytes.

Knows: tests/cases/chunked.toml, the probe. Never sees: a server, a socket.
Invariant: what a case expects holds whole, byte by byte, cut in two anywhere, in place, with little room.
"""

import _probe
import pytest

VERDICTS = {"more": _probe.MORE, "done": _probe.DONE}

bodies = pytest.mark.wire("chunked")


def check(case, answer):
    verdict, body, trailers, used = answer
    data = case["bytes"]
    assert verdict == VERDICTS.get(case["verdict"], case["verdict"])
    if "body" in case:
        assert body == case["body"]
    if verdict in VERDICTS.values():
        assert data[used:] == case.get("left", b"")
    if "trailers" in case:
        assert trailers == case["trailers"]
    if "at" in case:
        assert used == case["at"] - 1           # the byte that refused is not spent


@bodies
@pytest.mark.parametrize("in_place", [False, True])
def test_whole(case, in_place):
    for at_start in (False, True):
        check(case, _probe.chunked(case["bytes"], in_place=in_place, at_start=at_start))


@bodies
@pytest.mark.parametrize("in_place", [False, True])
def test_byte_by_byte(case, in_place):
    data = case["bytes"]
    check(case, _probe.chunked(data, range(len(data)), in_place=in_place))


@bodies
@pytest.mark.parametrize("in_place", [False, True])
def test_every_cut_in_two(case, in_place):
    data = case["bytes"]
    whole = _probe.chunked(data)
    step = 1 if len(data) < 2000 else 13
    for at in range(0, len(data) + 1, step):
        assert _probe.chunked(data, (at,), in_place=in_place) == whole, at


@bodies
def test_cuts_at_random(case, chance):
    data = case["bytes"]
    whole = _probe.chunked(data)
    for _ in range(50):
        cuts = sorted(chance.sample(range(len(data) + 1), chance.randint(0, min(6, len(data)))))
        assert _probe.chunked(data, cuts, in_place=chance.random() < 0.5) == whole, cuts


@bodies
@pytest.mark.parametrize("room", [1, 2, 3])
def test_little_room(case, room):
    """Output that does not fit waits; what makes no output needs no room."""
    assert _probe.chunked(case["bytes"], room=room) == _probe.chunked(case["bytes"])


def test_no_room_is_needed_for_framing():
    assert _probe.chunked(b"000;a=b\r\n\r\nX", room=0) == (_probe.DONE, b"", b"", 11)


def test_prefixes_are_undecided_or_decided_for_good():
    data = b"5;a=b\r\nhello\r\n0\r\nX: y\r\n\r\n"
    for size in range(len(data)):
        assert _probe.chunked(data[:size])[0] == _probe.MORE
        for c in range(256):
            verdict = _probe.chunked(data[:size] + bytes([c]))[0]
            if verdict >= 400:
                assert _probe.chunked(data[:size] + bytes([c]) + data)[0] == verdict


def test_agrees_with_its_own_encoding(chance):
    for _ in range(300):
        sizes = chance.choices((1, 2, 15, 16, 17, 255, 256), k=chance.randint(0, 5))
        parts = [chance.randbytes(size) for size in sizes]
        data = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
        cuts = sorted(chance.sample(range(len(data)), 3))
        answer = _probe.chunked(data + b"next", cuts, in_place=chance.random() < 0.5)
        assert answer == (_probe.DONE, b"".join(parts), b"", len(data))
