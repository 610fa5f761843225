"""The parser against h11, on heads and bodies made at random.

Knows: h11 (a test dependency) and the list of differences we agree to. Never sees: a server, a socket.
Invariant: we accept exactly what h11 accepts and no difference of the list forbids, and find the same in it.
Each difference is written from the RFC with other means than the parser's (here and in strict.py).
"""

import itertools
import re

import _probe
import h11
from hypothesis import given
from hypothesis import strategies as st
from strict import (
    bad_host,
    bad_target,
    coding_on_1_0,
    connection_no_token_list,
    length_too_long,
    other_expectation,
    values,
)
from wild import bodies, messages, random_run

# The differences we agree to. Here we refuse what h11 takes ...

def lone_line_end(raw, event):
    return re.search(rb"(?<!\r)\n|\r(?!\n)", raw)


def folded_line(raw, event):
    return re.search(rb"\r\n[ \t]", raw)


def control_byte(raw, event):
    return re.search(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]", raw)


def version_not_1(raw, event):
    return not event.http_version.startswith(b"1.")


def no_host_on_1_2(raw, event):
    """h11 asks for it on 1.1 only."""
    return event.http_version > b"1.1" and not values(event, b"host")


def method_too_long(raw, event):
    return len(event.method) > 32


def lengths_repeated(raw, event):
    """h11 takes equal ones."""
    lines = re.findall(rb"(?i)\r\ncontent-length:([^\r]*)", raw)
    return len(lines) > 1 or any(b"," in line for line in lines)


def coding_and_length(raw, event):
    return values(event, b"transfer-encoding") and values(event, b"content-length")


REFUSED_HERE = [
    lone_line_end, folded_line, control_byte, version_not_1, no_host_on_1_2, method_too_long,
    lengths_repeated, length_too_long, coding_and_length, coding_on_1_0, connection_no_token_list,
    other_expectation, bad_host, bad_target,
]


# ... and here we take what h11 refuses

def without_empty_line(raw):
    """RFC 9112 2.2: one empty line before the request line is skipped; h11 takes none."""
    return raw[2:] if raw.startswith(b"\r\n") and not raw.startswith(b"\r\n\r\n") else raw


def ask_h11(raw):
    """h11's event, None when it wants more, or its error."""
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=16384)
    connection.receive_data(raw)
    try:
        event = connection.next_event()
    except h11.RemoteProtocolError as error:
        return connection, error
    return connection, event if isinstance(event, h11.Request) else None


@random_run
@given(messages(), st.data())
def test_heads(raw, data):
    check_head(raw)
    check_cuts(raw, data)


def check_head(raw):
    _, verdict, found = _probe.head(raw)
    connection, event = ask_h11(without_empty_line(raw))
    if verdict == _probe.MORE:
        assert event is None or lone_line_end(raw, event), event        # h11 may see an end in bare LFs
    elif isinstance(event, h11.Request):
        whole = without_empty_line(raw)
        whole = whole[:len(whole) - len(connection.trailing_data[0])]
        reasons = [reason.__name__ for reason in REFUSED_HERE if reason(whole, event)]
        assert (verdict == _probe.DONE) == (not reasons), (verdict, reasons)
        if verdict == _probe.DONE:
            compare(connection, event, found)
    else:
        assert verdict != _probe.DONE, event


def compare(connection, event, found):
    assert found["method"] == event.method
    assert found["target"] == event.target
    assert found["minor"] == (event.http_version != b"1.0")
    ours = [(name.lower(), value) for name, value in found["fields"]]
    assert [(name, value.lower() if name == b"transfer-encoding" else value) for name, value in ours] \
        == list(event.headers)                      # h11 writes that value in lower case
    assert found["chunked"] == bool(values(event, b"transfer-encoding"))
    assert found["length"] == next((int(value) for value in values(event, b"content-length")), None)
    assert found["expect_continue"] == connection.they_are_waiting_for_100_continue
    options = {option.strip() for option in b",".join(values(event, b"connection")).lower().split(b",")}
    asks = b"upgrade" in options and any(values(event, b"upgrade"))
    assert found["upgrade"] == (asks and found["minor"] == 1)
    # h11 knows no persistence on HTTP/1.0
    persists = b"close" not in options and (found["minor"] == 1 or b"keep-alive" in options)
    assert found["keep_alive"] == persists
    if found["minor"] == 1:
        assert persists == (connection.their_state is not h11.MUST_CLOSE and connection._cstate.keep_alive)


def check_cuts(raw, data):
    """Any cut gives the verdict and the offsets of the whole; a decided prefix stays decided."""
    whole = _probe.head(raw)[1:]
    cuts = data.draw(st.lists(st.integers(0, len(raw)), max_size=4).map(sorted))
    assert _probe.head(raw, cuts, at_start=data.draw(st.booleans()))[1:] == whole
    assert _probe.head_pairs(raw) == []
    verdicts = _probe.head_prefixes(raw)
    assert all(one in (_probe.MORE, other) for one, other in itertools.pairwise(verdicts))


# Bodies

UNFIT = re.compile(rb"(?i)(?:^|\r\n)(?:content-length|transfer-encoding|host):")
BODY_DIFFERENCES = re.compile(
    rb"(?<!\r)\n"                                   # bare LF in an extension or behind a trailer
    rb"|\r(?!\n)"
    rb"|\r\n[ \t]"                                  # folded trailer
    rb"|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]"           # controls in extensions and trailers
    rb"|(?:^|\r\n)[0-9A-Fa-f]{16,20}(?:[; \t]|\r\n)"      # sizes beyond 15 digits
    rb"|(?:^|\r\n)[0-9A-Fa-f]+[ \t]+\r\n"           # blanks behind a size
)


@random_run
@given(bodies(), st.data())
def test_bodies(raw, data):
    verdict, body, lines, used = _probe.chunked(raw)
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + raw)
    assert isinstance(connection.next_event(), h11.Request)
    theirs, end, refused = b"", None, None
    try:
        while isinstance(event := connection.next_event(), (h11.Data, h11.EndOfMessage)):
            if isinstance(event, h11.EndOfMessage):
                end = event
                break
            theirs += event.data
    except h11.RemoteProtocolError as error:
        refused = error
    if refused and re.search(rb"[0-9A-Fa-f][ \t]+;", raw):
        pass                                        # BWS of RFC 9112 7.1.1: h11 knows none before ';'
    elif verdict == _probe.DONE:
        assert end is not None, refused
        assert body == theirs
        assert [(name.lower(), value.strip(b" \t")) for name, _, value in
                (line.partition(b":") for line in lines.split(b"\r\n") if line)] == list(end.headers)
        assert raw[used:] == connection.trailing_data[0]
    elif end is not None:
        assert verdict >= 400
        taken = raw[:len(raw) - len(connection.trailing_data[0])]
        assert BODY_DIFFERENCES.search(taken) or UNFIT.search(taken), verdict
    elif verdict == _probe.MORE:
        assert not refused, refused

    cuts = data.draw(st.lists(st.integers(0, len(raw)), max_size=4).map(sorted))
    assert _probe.chunked(raw, cuts, in_place=data.draw(st.booleans())) == (verdict, body, lines, used)
