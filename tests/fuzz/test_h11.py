"""The parser against h11, on heads and bodies made at random.

Knows: h11 (a test dependency) and the list of differences we agree to. Never sees: a server, a socket.
Invariant: we accept exactly what h11 accepts and no difference of the list forbids, and find the same in it.
Each difference is written from the RFC with other means than the parser's (regular expressions, ipaddress).

Run longer with FASTSERVE_EXAMPLES=100000; FASTSERVE_SEED repeats a run.
"""

import ipaddress
import itertools
import os
import re

import _probe
import h11
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

SEED = int(os.environ["FASTSERVE_SEED"])         # conftest.py draws and prints it
EXAMPLES = int(os.environ.get("FASTSERVE_EXAMPLES", "500"))


def random_run(test):
    """The same run for the same seed."""
    chosen = settings(max_examples=EXAMPLES, deadline=None, database=None, print_blob=True,
                      suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
    return seed(SEED)(chosen(test))


# The differences we agree to. Here we refuse what h11 takes ...

def values(event, name):
    return [value for key, value in event.headers if key == name]


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


def length_too_long(raw, event):
    return any(len(value) > 18 for value in values(event, b"content-length"))


def coding_and_length(raw, event):
    return values(event, b"transfer-encoding") and values(event, b"content-length")


def coding_on_1_0(raw, event):
    return values(event, b"transfer-encoding") and event.http_version == b"1.0"


def connection_no_token_list(raw, event):
    members = [member.strip(b" \t") for value in values(event, b"connection") for member in value.split(b",")]
    return any(not re.fullmatch(rb"[-!#$%&'*+.^_`|~0-9A-Za-z]*", member) for member in members)


def other_expectation(raw, event):
    expected = [value.lower() for value in values(event, b"expect")]
    return event.http_version != b"1.0" and expected not in ([], [b"100-continue"])


def split_authority(text):
    """(host, port) or None; h11 does not look at it."""
    name = rb"(\[([0-9A-Fa-f:.]*)\]|(?:[-A-Za-z0-9._~!$&'()*+,;=]|%[0-9A-Fa-f]{2})+)"
    match = re.fullmatch(name + rb"(?::([0-9]*))?", text)
    if not match or int(match[3] or 0) > 65535:
        return None
    if match[2] is not None:
        try:
            ipaddress.IPv6Address(match[2].decode())
        except ValueError:
            return None
    return match[1], match[3]


def bad_host(raw, event):
    return any(split_authority(value) is None for value in values(event, b"host"))


def bad_target(raw, event):
    target = event.target
    if b"#" in target:
        return True
    if event.method == b"CONNECT":
        return not (split_authority(target) or (b"", None))[1]
    if target.startswith(b"/"):
        return False
    if target == b"*":
        return event.method != b"OPTIONS"
    match = re.fullmatch(rb"(?i)(https?)://([^/?]*)([/?].*)?", target)
    if not match or split_authority(match[2]) is None:
        return True
    usual = 443 if match[1].lower() == b"https" else 80
    named = {(host.lower(), int(port or usual)) for host, port in
             filter(None, map(split_authority, [match[2], *values(event, b"host")]))}
    return len(named) != 1


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


# Heads: well-formed for the most part, with one part or another gone wrong

def mostly(good, *odd):
    """A good part most times, so that a whole message has a fair chance to be good.

    The odd ones hide behind a number that neither drawing nor shrinking favours.
    """
    return st.integers(0, 15).flatmap(lambda chance: st.one_of(*odd) if chance == 7 else good)


tokens = st.text("abcXYZ019-_!~", min_size=1, max_size=40)
junk = st.binary(max_size=4).map(lambda data: data.decode("latin-1"))
methods = mostly(
    st.sampled_from(["GET", "POST", "OPTIONS", "CONNECT", "PUT"]),
    tokens, st.sampled_from(["G T", "g@t", "", "connect"]),
)
odd_names = st.one_of(
    st.sampled_from(["", ":80", "a b", "u@a", "a:99999", "[::g]", "a/b", "[]", "[::1", "a,b", "a%2", "\xe4"]),
    st.text("0123456789abcF:.", max_size=20).map("[{}]".format),
    st.text("aZ0-._~!$&'()*+,;=%:@/[]", max_size=12),
)
names = mostly(
    st.sampled_from(["a", "a", "A", "a:80", "a:443", "a:", "127.0.0.1:8000", "a%20",
                     "[::1]", "[1:2::3]:80", "[::1.2.3.4]"]),
    odd_names,
)
targets = st.one_of(
    st.text("/ab?c=&%20.-~\\{|}\"", max_size=40).map("/{}".format),
    st.text("/ab?c=&%20.-~\\{|}\"", max_size=40).map("/{}".format),
    st.builds("{}://{}{}".format, st.sampled_from(["http", "HTTPS", "httpx"]), names,
              st.sampled_from(["", "/", "/a?b", "?a", "/#"])),
    st.sampled_from(["*", "*", "/", "/", "", "*a", "/ a", "/#", "/\x01", "/\xe4", "a"]),
    names,
)
versions = mostly(
    st.sampled_from(["HTTP/1.1", "HTTP/1.1", "HTTP/1.1", "HTTP/1.0", "HTTP/1.2"]),
    st.sampled_from(["HTTP/2.0", "HTTP/1.10", "http/1.1", "HTTP/1", ""]),
)
lengths = mostly(
    st.integers(0, 10**6).map(str),
    st.integers(10**15, 10**20).map(str), st.sampled_from(["+5", "5, 5", "0x5", "5_0", "", " 5 ", "\xb2"]),
)
codings = mostly(
    st.sampled_from(["chunked", "Chunked"]),
    st.sampled_from(["gzip, chunked", "chunked, chunked", "identity", "", "\x0bchunked", "x"]),
)
options = mostly(
    st.lists(st.sampled_from(["close", "Keep-Alive", "upgrade", "", " te ", "x\t"]), max_size=4)
    .map(",".join),
    st.sampled_from(["a b", "\"x\"", "close;x", "cl\xf6se"]), junk,
)
fields = mostly(
    st.one_of(
        st.builds("{}:{}".format, tokens, st.text("abc ,;=\t\"\xe4", max_size=60)),
        st.builds("{}:{}".format, tokens, st.text("abc ,;=\t\"\xe4", max_size=60)),
        st.builds("{}: {}".format, st.sampled_from(["Content-Length", "content-length"]), lengths),
        st.builds("{}: {}".format, st.sampled_from(["Transfer-Encoding", "TRANSFER-ENCODING"]), codings),
        st.builds("{}: {}".format, st.sampled_from(["Connection", "connection"]), options),
        st.builds("Upgrade: {}".format, st.sampled_from(["websocket", "h2c", ""])),
        st.sampled_from(["Expect: 100-continue", "eXpect:100-Continue "]),
    ),
    st.builds("{}: {}".format, st.sampled_from(["Host", "host"]), names),
    st.sampled_from(["Expect: x", "Expect:"]),
    st.builds("{}{}".format,
              st.sampled_from(["X: ", "X :", " X:", "X", ":", "X: a\r\n ", "X: a\r\n\t"]), junk),
)
line_ends = st.integers(0, 99).map({47: "\n", 48: "\r", 49: "\r\r\n"}.get).map(lambda odd: odd or "\r\n")


@st.composite
def messages(draw):
    text = draw(mostly(st.just(""), st.sampled_from(["\r\n", "\n", "\r\n\r\n", " "])))
    text += f"{draw(methods)} {draw(targets)} {draw(versions)}" + draw(line_ends)
    lines = draw(st.lists(fields, max_size=4))
    if draw(st.integers(0, 15)) != 7:
        lines.insert(draw(st.integers(0, len(lines))), f"Host: {draw(names)}")
    for line in lines:
        text += line + draw(line_ends)
    return spoiled(draw, (text + draw(line_ends)).encode("latin-1"))


def spoiled(draw, raw):
    """Now and then with a few bytes put in, or taken out."""
    if draw(st.integers(0, 15)) != 7:
        return raw
    at = draw(st.integers(0, len(raw)))
    return raw[:at] + draw(st.binary(max_size=3)) + raw[at + draw(st.integers(0, 2)):]


@random_run
@given(messages())
def test_heads(raw):
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
    asks = b"upgrade" in options and bool(values(event, b"upgrade"))
    assert found["upgrade"] == (asks and found["minor"] == 1)
    # h11 knows no persistence on HTTP/1.0
    persists = b"close" not in options and (found["minor"] == 1 or b"keep-alive" in options)
    assert found["keep_alive"] == persists
    if found["minor"] == 1:
        assert persists == (connection.their_state is not h11.MUST_CLOSE and connection._cstate.keep_alive)


@random_run
@given(messages(), st.data())
def test_cuts_of_heads(raw, data):
    """Any cut gives the verdict and the offsets of the whole; a decided prefix stays decided."""
    whole = _probe.head(raw)[1:]
    cuts = data.draw(st.lists(st.integers(0, len(raw)), max_size=4).map(sorted))
    assert _probe.head(raw, cuts, at_start=data.draw(st.booleans()))[1:] == whole
    assert _probe.head_pairs(raw) == []
    verdicts = _probe.head_prefixes(raw)
    assert all(one in (_probe.MORE, other) for one, other in itertools.pairwise(verdicts))


# Bodies

sizes = mostly(
    st.one_of(st.integers(1, 40).map("{:x}".format), st.integers(1, 40).map("{:03X}".format)),
    st.sampled_from(["0", "000", "0x5", "+5", "5 ", " 5", "5_0", "", "g", "f" * 15, "f" * 16,
                     "0" * 15 + "5"]),
)
extensions = mostly(
    st.sampled_from(["", ";a", ";a=b", ";a=\"b\"", ";", ";\xe4\t"]),
    st.sampled_from([" ;a", " ", ";a\x01", ";a\n"]),
)
trailers = st.lists(mostly(
    st.builds("{}:{}\r\n".format, tokens, st.text("abc ,;=\t\"\xe4", max_size=20)),
    st.sampled_from(["X : y\r\n", ": y\r\n", "X\r\n", "X: y\n", "X: a\r\n b\r\n", "X: \x01\r\n",
                     "X: \x00\r\n", "Content-Length: 5\r\n", "Host: a\r\n",
                     "transfer-encoding: chunked\r\n"]),
), max_size=2).map("".join)


@st.composite
def bodies(draw):
    text = ""
    for _ in range(draw(st.integers(0, 4))):
        size = draw(sizes)
        try:
            count = min(int(size, 16), 40)
        except ValueError:
            count = 5
        text += size + draw(extensions) + draw(line_ends) + "x" * count + draw(line_ends)
    text += draw(st.sampled_from(["0", "0", "0", "00", "0;a", ""])) + draw(line_ends)
    text += draw(trailers) + draw(line_ends)
    return spoiled(draw, text.encode("latin-1")) + draw(st.sampled_from([b"", b"GET /"]))


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
