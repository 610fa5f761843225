"""The head parser against the wire cases, in every cut of their bytes.

Knows: tests/cases/*.toml, the probe. Never sees: a server, a socket.
Invariant: what a case expects holds whole, byte by byte, cut in two anywhere, beside forbidden memory.
"""

import os
import signal
import string

import _probe
import pytest

VERDICTS = {"more": _probe.MORE, "done": _probe.DONE}
NOT_OF_THE_HEAD = {"name", "why", "bytes", "verdict", "limits", "at"}

HEADS = ("request_line", "targets", "fields", "framing")
heads = pytest.mark.wire(*HEADS)
short_heads = pytest.mark.wire(*HEADS, up_to=1000)
accepted_heads = pytest.mark.wire(*HEADS, verdict="done")


def read(value):
    """What a case writes, as the probe answers it: bytes."""
    if isinstance(value, str):
        return value.encode("latin-1")
    if isinstance(value, list):
        return [tuple(read(part) for part in pair) for pair in value]
    return value


def check(case, verdict, found):
    assert verdict == VERDICTS.get(case["verdict"], case["verdict"])
    for key in case.keys() - NOT_OF_THE_HEAD:
        expected = case[key]
        if key in ("host", "authority"):
            text, name, port = expected
            expected = (text.encode("latin-1"), name, None if port < 0 else port)
        elif key == "form":
            pass
        elif key == "length":
            expected = None if expected < 0 else expected
        else:
            expected = read(expected)
        assert found[key] == expected, key


@heads
def test_whole(case):
    data, limits = case["bytes"], case.get("limits", {})
    for at_start in (False, True):
        _, verdict, found = _probe.head(data, at_start=at_start, **limits)
        check(case, verdict, found)


@heads
def test_byte_by_byte(case):
    data, limits = case["bytes"], case.get("limits", {})
    step = 1 if len(data) < 5000 else 7
    seen, verdict, found = _probe.head(data, range(0, len(data), step), **limits)
    check(case, verdict, found)
    if "at" in case and step == 1:
        assert seen == case["at"]


@heads
def test_every_prefix(case):
    """A prefix is either undecided or already has the verdict of the whole, and never loses it again."""
    data, limits = case["bytes"], case.get("limits", {})
    whole = VERDICTS.get(case["verdict"], case["verdict"])
    verdicts = _probe.head_prefixes(data, **limits)
    decided = next((size for size, verdict in enumerate(verdicts) if verdict != _probe.MORE), len(verdicts))
    assert set(verdicts[decided:]) <= {whole}
    if whole == _probe.MORE:
        assert decided == len(verdicts)
    if "at" in case:
        assert decided == case["at"]


@short_heads
def test_every_cut_in_two(case):
    assert _probe.head_pairs(case["bytes"], **case.get("limits", {})) == []


@short_heads
def test_some_cuts_in_three(case, chance):
    data, limits = case["bytes"], case.get("limits", {})
    whole = _probe.head(data, **limits)[1:]
    for _ in range(100):
        cuts = sorted(chance.sample(range(len(data) + 1), min(2, len(data))))
        assert _probe.head(data, cuts, **limits)[1:] == whole, cuts


@accepted_heads
def test_can_be_written_again(case):
    """What is accepted, put together from what was found, is the same message."""
    _, _, found = _probe.head(case["bytes"], **case.get("limits", {}))
    again = b"%s %s HTTP/1.%d\r\n" % (found["method"], found["target"], found["minor"])
    again += b"".join(b"%s: %s\r\n" % field for field in found["fields"]) + b"\r\n"
    _, verdict, second = _probe.head(again, head_size=len(again))
    assert verdict == _probe.DONE
    assert second | {"size": 0} == found | {"size": 0}
    assert second["size"] == len(again)


# The classes and the walks

TCHAR = set(b"!#$%&'*+-.^_`|~" + (string.digits + string.ascii_letters).encode())
CLASSES = {
    "tchar": TCHAR,
    "target": set(range(0x21, 0x7F)) - set(b"#"),
    "value": {0x09, *range(0x20, 0x7F), *range(0x80, 0x100)},
    "name": set((string.digits + string.ascii_letters + "-._~" + "!$&'()*+,;=").encode()),
    "mark": set(range(256)) - set(b"?"),
}


@pytest.mark.parametrize("name", [name for name in CLASSES if name != "mark"])
def test_class(name):
    assert _probe.byte_class(name) == CLASSES[name]


def test_hex_digit():
    for c in range(256):
        assert _probe.hex_digit(c) == (int(chr(c), 16) if chr(c) in string.hexdigits else 16)


@pytest.mark.parametrize("name", CLASSES)
def test_walk_stops_at_each_byte_outside_its_class(name):
    for c in range(256):
        for place in (0, 1, 7, 15, 16, 17, 31, 33):
            data = b"a" * place + bytes([c]) + b"a" * (40 - place)
            expected = len(data) if c in CLASSES[name] else place
            assert _probe.walk(name, data) == expected, (c, place)


@pytest.mark.parametrize("name", CLASSES)
def test_walk_of_every_length_at_both_edges(name):
    inside, outside = b"a", b"?" if name == "mark" else b"\x00"
    for size in range(70):
        for at in range(size + 1):
            for data in (inside * size, inside * size + outside, outside * at + inside * (size - at)):
                expected = len(data) - data.endswith(outside) if at < size else size
                for at_start in (False, True):
                    assert _probe.walk(name, data, at, at_start) == expected, (size, at)


@pytest.mark.parametrize("word", ["te", "via", "host", "range", "upgrade", "100-continue", "content-length"])
def test_same_in_any_case_and_nothing_else(word):
    lower = word.encode()
    assert _probe.same(lower, lower)
    assert _probe.same(word.upper().encode(), lower)
    for at in range(len(lower)):
        for c in CLASSES["value"] - {lower[at], ord(chr(lower[at]).upper())}:
            assert not _probe.same(lower[:at] + bytes([c]) + lower[at + 1:], lower), c


def test_same_text_in_any_case_and_nothing_else():
    for a in range(256):
        for b in range(256):
            one, other = bytes([65, a]), bytes([97, b])
            assert _probe.same_text(one, other) == (one.lower() == other.lower())


def test_beyond_the_ground_is_death():
    """The guard pages guard: otherwise every other test here would pass by luck."""
    for before in (False, True):
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGSEGV, signal.SIG_DFL)
            _probe.touch_beyond(b"x" * 100, before)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        assert status != 0
