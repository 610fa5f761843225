"""Requests made at random: heads and chunked bodies, well-formed for the most part, with one part gone wrong.

Knows: what a request looks like, and what people get wrong in it. Never sees: a parser, ours or another one's.
Invariant: the same seed makes the same requests; a good part is likelier than an odd one, so that a whole
message has a fair chance to be good.

Run longer with FASTSERVE_EXAMPLES=100000; FASTSERVE_SEED repeats a run.
"""

import os

from hypothesis import HealthCheck, seed, settings
from hypothesis import strategies as st

SEED = int(os.environ["FASTSERVE_SEED"])         # conftest.py draws and prints it
EXAMPLES = int(os.environ.get("FASTSERVE_EXAMPLES", "250"))


def random_run(test):
    """The same run for the same seed."""
    chosen = settings(max_examples=EXAMPLES, deadline=None, database=None, print_blob=True,
                      suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
    return seed(SEED)(chosen(test))


# Heads

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
