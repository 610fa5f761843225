"""The parser against llhttp, on whole connections: heads, bodies, and where the next request begins.

Knows: llhttp (through httptools, a test dependency) and the lists of differences we agree to. Never sees: a
server, a socket. Invariant: of what llhttp accepts we accept exactly what no entry of REFUSED_HERE forbids; what
llhttp refuses and we accept stands in REFUSED_THERE; in what both accept both find the same, ends of messages
included, but for READ_DIFFERENTLY. Each entry of the three has examples that need it, so none is stale.
Each is judged from the bytes by other means than a parser's (`Read`, strict.py).

The lists are those of httptools 0.9: each of 0.6 to 0.8 differs in more, so pyproject.toml names the version.
"""

import re
from typing import NamedTuple

import _probe
import httptools
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from seeds import seeds
from strict import (
    bad_host,
    bad_target,
    coding_on_1_0,
    connection_no_token_list,
    length_too_long,
    other_expectation,
    values,
)
from wild import bodies, messages, mostly, random_run

MORE, REFUSED, LAST, HANDED_OVER = "more", "refused", "last", "handed over"
"""Why there is no further message: bytes are missing, a fault, the connection closes, llhttp is out of it."""

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: a\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
LAST_CHUNK = b"0\r\n\r\n"
END = b"\r\n\r\n"


# Both parsers as connections

class Message(NamedTuple):
    """What was found of one request. `end` is the offset of what follows."""

    method: bytes
    target: bytes
    version: str
    fields: list
    body: bytes
    trailers: list
    keep_alive: bool
    upgrade: bool
    end: int


def ours(raw, bytewise=False):
    """Our parsers over the bytes of a connection: messages, why there is no further one, the status if refused."""
    found, at = [], 0
    while True:
        rest = raw[at:]
        _, verdict, head = _probe.head(rest, range(len(rest)) if bytewise else ())
        if verdict != _probe.DONE:
            break
        rest, body, lines, used = rest[head["size"]:], b"", b"", 0
        if head["chunked"]:
            verdict, body, lines, used = _probe.chunked(rest, range(len(rest)) if bytewise else ())
        elif head["length"]:
            used = head["length"]
            body, verdict = rest[:used], _probe.DONE if used <= len(rest) else _probe.MORE
        if verdict != _probe.DONE:
            break
        at += head["size"] + used
        found.append(Message(
            head["method"], head["target"], f"1.{head['minor']}", head["fields"], body,
            [(name, value.strip(b" \t")) for name, _, value in
             (line.partition(b":") for line in lines.split(b"\r\n") if line)],
            head["keep_alive"], head["upgrade"], at,
        ))
        if not head["keep_alive"]:
            return found, LAST, None
    return (found, MORE, None) if verdict == _probe.MORE else (found, REFUSED, verdict)


class Told:
    """What llhttp tells of the messages of a connection."""

    def __init__(self):
        self.parser = httptools.HttpRequestParser(self)
        self.found = []
        self.fed = 0

    def on_message_begin(self):
        self.target = self.body = b""
        self.fields, self.trailers, self.head = [], [], None

    def on_url(self, piece):
        self.target += piece

    def on_header(self, name, value):
        (self.trailers if self.head else self.fields).append((name, value))

    def on_headers_complete(self):
        parser = self.parser
        self.head = (parser.get_method(), parser.get_http_version(), parser.should_keep_alive(),
                     parser.should_upgrade())

    def on_body(self, piece):
        self.body += piece

    def on_message_complete(self):
        method, version, keep_alive, upgrade = self.head
        self.found.append(Message(method, self.target, version, self.fields, self.body, self.trailers,
                                  keep_alive, upgrade, self.fed))

    def feed(self, raw, step):
        """Why it stopped. Fed byte by byte, a message ends with the byte that is being fed."""
        try:
            for at in range(0, len(raw), step):
                self.fed = min(at + step, len(raw))
                self.parser.feed_data(raw[at:self.fed])
                if self.found and not self.found[-1].keep_alive:
                    return LAST
        except httptools.HttpParserUpgrade:
            return HANDED_OVER
        except httptools.HttpParserError:
            # It tells LAST by refusing whatever follows.
            return REFUSED if not self.found or self.found[-1].keep_alive else LAST
        return MORE


def theirs(raw, step=1):
    told = Told()
    stopped = told.feed(raw, step)
    return told.found, stopped


# What a message says, read without judging it

class Read:
    """The parts of a message that is as well-formed as llhttp wants it, or the beginning of one."""

    def __init__(self, raw):
        self.lead = re.match(rb"[\r\n]*", raw)[0]
        self.head, _, self.rest = raw[len(self.lead):].partition(END)
        first, *lines = self.head.split(b"\r\n")
        self.method, gap, self.target, other_gap, self.protocol = re.fullmatch(
            rb"(?s)([^ ]*)( *)([^ ]*)( *)(.*)", first).groups()
        if len(gap) > 1 and not self.protocol:
            # The second space ends an empty target, or so we read it: what follows is the version.
            self.target, self.protocol = b"", self.target
        self.gaps = {gap, other_gap}
        self.http_version = self.protocol.removeprefix(b"HTTP/")
        split = [line.partition(b":") for line in lines]
        self.headers = [(name.lower(), value.strip(b" \t")) for name, _, value in split]
        self.raw_values = [(name.lower(), value) for name, _, value in split]
        self.codings = [member.strip(b" \t").lower() for value in values(self, b"transfer-encoding")
                        for member in value.split(b",")]
        self.sizes, self.trailers, self.trailer_size = [], [], 0
        if self.codings and b"chunked" in self.codings[-1]:
            self.read_chunks()

    def read_chunks(self):
        """`sizes`: digits of each chunk, and what stands behind them on their line."""
        at = 0
        while match := re.compile(rb"([0-9A-Fa-f]+)([^\r\n]*)(\r\n)?").match(self.rest, at):
            self.sizes.append((match[1], match[2]))
            at = match.end()
            if not match[3]:
                return
            if int(match[1], 16) == 0:
                lines = (b"\r\n" + self.rest[at:]).partition(END)[0].split(b"\r\n")[1:]
                self.trailers = [line.partition(b":")[0].lower() for line in lines]
                self.trailer_size = len(b"\r\n".join(lines)) + len(END)
                return
            at += min(int(match[1], 16), len(self.rest)) + 2


# The differences we agree to. Here we refuse what llhttp takes ...

def lead_is_no_line(m):
    return m.lead not in (b"", b"\r\n")


def spaces_repeated(m):
    return any(len(gap) > 1 for gap in m.gaps)


def target_not_ours(m):
    return bad_target(b"", m)


def version_not_1(m):
    return re.fullmatch(rb"HTTP/[02-9]\.[0-9]", m.protocol)


def version_missing(m):
    return not re.fullmatch(rb"HTTP/[0-9]\.[0-9]", m.protocol)


def host_missing(m):
    return m.http_version != b"1.0" and not values(m, b"host")


def host_repeated(m):
    return len(values(m, b"host")) > 1


def host_malformed(m):
    return bad_host(b"", m)


def coding_unknown(m):
    return m.codings not in ([], [b"chunked"]) and b"" not in m.codings


def coding_empty(m):
    return b"" in m.codings


def coding_too_early(m):
    return coding_on_1_0(b"", m)


def length_long(m):
    return length_too_long(b"", m)


def connection_malformed(m):
    return connection_no_token_list(b"", m)


def expectation_unknown(m):
    return other_expectation(b"", m)


def chunk_size_long(m):
    return any(len(digits) > 15 for digits, _ in m.sizes)


def chunk_extensions_long(m):
    return (any(len(digits) + len(extension) + 2 > 4096 for digits, extension in m.sizes)
            or sum(len(extension) for _, extension in m.sizes) > 16384)


def trailer_unfit(m):
    return any(re.fullmatch(
        rb"te|host|range|cookie|expect|trailer|upgrade|forwarded|x-real-ip|connection|keep-alive|max-forwards"
        rb"|authorization|content-(type|range|length|encoding)|transfer-encoding|proxy-.*|x-forwarded-.*", name,
    ) for name in m.trailers)


def trailers_long(m):
    return m.trailer_size > 8192 or len(m.trailers) > 64


def head_long(m):
    return len(m.lead) + len(m.head) + len(END) > 16384 or len(m.headers) > 100


def target_long(m):
    return len(m.target) > 8192


class RefusedHere(NamedTuple):
    """`stricter`: the RFC leaves the choice, or asks for less; otherwise it asks for the refusal."""

    applies: object
    status: int
    law: str
    stricter: bool
    why: str
    examples: list


REFUSED_HERE = [
    RefusedHere(
        lead_is_no_line, 400, "RFC 9112 2.2", True,
        "one empty line is skipped, a bare LF or CR is none: it must not take part in framing",
        [b"\r\n\r\n" + GET, b"\n" + GET, b"\r\r\n" + GET]),
    RefusedHere(
        spaces_repeated, 400, "RFC 9112 3", True,
        "one SP between the parts; the lenient reading is a choice, and one that others make differently",
        [b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n", b"GET /  HTTP/1.1\r\nHost: a\r\n\r\n"]),
    RefusedHere(
        target_not_ours, 400, "RFC 9112 3.2, RFC 9110 4.2", False,
        "a target has one of four forms, each where it is allowed, without fragment and userinfo",
        [b"GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n", b"GET * HTTP/1.1\r\nHost: a\r\n\r\n",
         b"OPTIONS *a HTTP/1.1\r\nHost: a\r\n\r\n", b"CONNECT a HTTP/1.1\r\nHost: a\r\n\r\n",
         b"CONNECT / HTTP/1.1\r\nHost: a\r\n\r\n", b"GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n",
         b"GET http:///a HTTP/1.1\r\nHost: a\r\n\r\n", b"GET http://u@a/ HTTP/1.1\r\nHost: a\r\n\r\n",
         b"GET http://a:b/ HTTP/1.1\r\nHost: a\r\n\r\n"]),
    RefusedHere(
        target_not_ours, 400, "RFC 9112 3.2.2", True,
        "an absolute target and Host name the same authority; the RFC lets Host be ignored, and proxies differ",
        [b"GET http://a/ HTTP/1.1\r\nHost: b\r\n\r\n"]),
    RefusedHere(
        version_not_1, 505, "RFC 9112 2.3, RFC 9110 15.6.6", False,
        "another major version is another protocol, and 0.9 had no fields",
        [b"GET / HTTP/2.0\r\nHost: a\r\n\r\n", b"GET / HTTP/0.9\r\nHost: a\r\n\r\n"]),
    RefusedHere(
        version_missing, 400, "RFC 9112 2.3", False,
        "no version at all, or another protocol's (llhttp reads RTSP and ICE too)",
        [b"GET /\r\nHost: a\r\n\r\n", b"OPTIONS / RTSP/1.0\r\nHost: a\r\n\r\n",
         b"SOURCE / ICE/1.0\r\nHost: a\r\n\r\n"]),
    RefusedHere(
        host_missing, 400, "RFC 9112 3.2", False, "Host is asked for from 1.1 on",
        [b"GET / HTTP/1.1\r\n\r\n"]),
    RefusedHere(
        host_repeated, 400, "RFC 9112 3.2", False, "two of them are two answers to where a request goes",
        [b"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n"]),
    RefusedHere(
        host_malformed, 400, "RFC 9112 3.2, RFC 3986 3.2", False,
        "Host is uri-host [ : port ]; an empty one is for targets without an authority, and http has none such",
        [b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n", b"GET / HTTP/1.1\r\nHost: u@a\r\n\r\n",
         b"GET / HTTP/1.1\r\nHost:\r\n\r\n", b"GET / HTTP/1.0\r\nHost: a/b\r\n\r\n"]),
    RefusedHere(
        coding_unknown, 501, "RFC 9112 6.1", False, "a coding before chunked that we do not decode",
        [POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n" + LAST_CHUNK,
         POST + b"Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n" + LAST_CHUNK]),
    RefusedHere(
        coding_empty, 400, "RFC 9110 5.6.1.2", True,
        "empty members of this one list are not skipped, though the RFC would: who reads them differently, frames "
        "differently",
        [POST + b"Transfer-Encoding: ,chunked\r\n\r\n" + LAST_CHUNK]),
    RefusedHere(
        coding_too_early, 400, "RFC 9112 6.1", False, "1.0 has no codings: such framing is faulty",
        [b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n" + LAST_CHUNK]),
    RefusedHere(
        length_long, 400, "RFC 9110 8.6", True, "18 digits, zeros included, are enough for every length",
        [POST + b"Content-Length: 0000000000000000005\r\n\r\nhello"]),
    RefusedHere(
        connection_malformed, 400, "RFC 9110 7.6.1", True, "an option is a token",
        [b"GET / HTTP/1.1\r\nHost: a\r\nConnection: a b\r\n\r\n"]),
    RefusedHere(
        expectation_unknown, 417, "RFC 9110 10.1.1", True, "an expectation that is not met is refused",
        [b"GET / HTTP/1.1\r\nHost: a\r\nExpect: x\r\n\r\n"]),
    RefusedHere(
        chunk_size_long, 400, "RFC 9112 7.1", True, "15 digits, zeros included, are enough for every size",
        [CHUNKED + b"0000000000000005\r\nhello\r\n" + LAST_CHUNK]),
    RefusedHere(
        chunk_extensions_long, 400, "RFC 9112 7.1.1", False, "extensions are bounded",
        [CHUNKED + b"5;" + b"a" * 4096 + b"\r\nhello\r\n" + LAST_CHUNK,
         CHUNKED + (b"5;" + b"a" * 4000 + b"\r\nhello\r\n") * 5 + LAST_CHUNK]),
    RefusedHere(
        trailer_unfit, 400, "RFC 9110 6.5.1", True, "fields of framing, routing and trust come before a body",
        [CHUNKED + b"0\r\nHost: b\r\n\r\n", CHUNKED + b"0\r\nX-Forwarded-For: b\r\n\r\n"]),
    RefusedHere(
        trailers_long, 431, "RFC 9112 7.1.2", True, "llhttp leaves bounds to its user",
        [CHUNKED + b"0\r\nX: " + b"y" * 8192 + END, CHUNKED + b"0\r\n" + b"X: y\r\n" * 65 + b"\r\n"]),
    RefusedHere(
        head_long, 431, "RFC 9110 5.4", True, "llhttp leaves bounds to its user",
        [b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 16384 + END,
         b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 100 + b"\r\n"]),
    RefusedHere(
        target_long, 414, "RFC 9112 3", True, "llhttp leaves bounds to its user",
        [b"GET /" + b"a" * 8192 + b" HTTP/1.1\r\nHost: a\r\n\r\n"]),
]


# ... here we take what llhttp refuses ...

REGISTERED = set(
    b"ACL BIND CHECKOUT CONNECT COPY DELETE GET HEAD LINK LOCK M-SEARCH MERGE MKACTIVITY MKCALENDAR MKCOL MOVE "
    b"NOTIFY OPTIONS PATCH POST PROPFIND PROPPATCH PURGE PUT QUERY REBIND REPORT SEARCH SOURCE SUBSCRIBE TRACE "
    b"UNBIND UNLINK UNLOCK UNSUBSCRIBE".split())
TOKEN = rb"[-!#$%&'*+.^_`|~0-9A-Za-z]"
QUOTED = rb"\"(?:[\t !#-\x5b\x5d-\x7e\x80-\xff]|\\[\t -\x7e\x80-\xff])*\""


def method_unknown(m):
    return m.method not in REGISTERED


def minor_unknown(m):
    return re.fullmatch(rb"HTTP/1\.[2-9]", m.protocol)


def coding_before_blank(m):
    return any(re.fullmatch(rb"(?i)[ \t]*chunked[ \t]+", value)
               for name, value in m.raw_values if name == b"transfer-encoding")


def extension_with_blanks(m):
    return any(re.search(rb"[ \t]", extension) and re.fullmatch(
        rb"(?:[ \t]*;[ \t]*%b+(?:[ \t]*=[ \t]*(?:%b+|%b))?)*" % (TOKEN, TOKEN, QUOTED), extension,
    ) for _, extension in m.sizes)


def extension_malformed(m):
    return any(not re.fullmatch(
        rb"(?:[ \t]*;[ \t]*%b+(?:[ \t]*=[ \t]*(?:%b+|%b))?)*" % (TOKEN, TOKEN, QUOTED), extension,
    ) for _, extension in m.sizes)


class RefusedThere(NamedTuple):
    applies: object
    law: str
    why: str
    examples: list


REFUSED_THERE = [
    RefusedThere(
        method_unknown, "RFC 9110 9.1", "methods are tokens, and a handler's business; llhttp has a list",
        [b"BREW / HTTP/1.1\r\nHost: a\r\n\r\n", b"get / HTTP/1.1\r\nHost: a\r\n\r\n"]),
    RefusedThere(
        minor_unknown, "RFC 9110 2.5", "a higher minor version is read as the highest that is known",
        [b"GET / HTTP/1.2\r\nHost: a\r\n\r\n", b"GET / HTTP/1.9\r\nHost: a\r\n\r\n"]),
    RefusedThere(
        coding_before_blank, "RFC 9112 5.1", "blanks behind a value are no part of it",
        [POST + b"Transfer-Encoding: chunked\t\r\n\r\n" + LAST_CHUNK]),
    RefusedThere(
        extension_with_blanks, "RFC 9112 7.1.1", "BWS in an extension is to be parsed, as bad as it is",
        [CHUNKED + b"5 ;a\r\nhello\r\n" + LAST_CHUNK, CHUNKED + b"5; a = b\r\nhello\r\n" + LAST_CHUNK]),
    RefusedThere(
        extension_malformed, "RFC 9112 7.1.1",
        "extensions that are not known are ignored: neither names nor quotes are looked at, only their bytes",
        [CHUNKED + b"5;\r\nhello\r\n" + LAST_CHUNK, CHUNKED + b"5;a=\"b\r\nhello\r\n" + LAST_CHUNK,
         CHUNKED + b"5;a@\r\nhello\r\n" + LAST_CHUNK]),
]


# ... and here both accept

class ReadDifferently(NamedTuple):
    """`part` of the first message, or the number of messages; what we find in it, and what llhttp finds."""

    part: str
    law: str
    why: str
    example: bytes
    ours: object
    theirs: object


READ_DIFFERENTLY = [
    ReadDifferently(
        "fields", "RFC 9112 5.1", "blanks behind a value are no part of it; llhttp leaves them to its user",
        b"GET / HTTP/1.0\r\nX: a \t\r\n\r\n", [(b"X", b"a")], [(b"X", b"a \t")]),
    ReadDifferently(
        "trailers", "RFC 9112 5.1", "the same in trailers",
        CHUNKED + b"0\r\nX: a \r\n\r\n", [(b"X", b"a")], [(b"X", b"a ")]),
    ReadDifferently(
        "upgrade", "RFC 9110 7.8", "Upgrade is ignored on 1.0; llhttp does not look at the version",
        b"GET / HTTP/1.0\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n", False, True),
    ReadDifferently(
        "upgrade", "RFC 9110 9.3.6", "of CONNECT we say so in the method alone",
        b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n", False, True),
    ReadDifferently(
        "keep_alive", "RFC 9112 9.3", "close ends a connection whatever stands beside it; llhttp lets 1.0 stay",
        b"GET / HTTP/1.0\r\nConnection: close, keep-alive\r\n\r\n", False, True),
    ReadDifferently(
        "keep_alive", "RFC 9112 C.2.2", "Proxy-Connection means nothing; llhttp reads it as Connection",
        b"GET / HTTP/1.1\r\nHost: a\r\nProxy-Connection: close\r\n\r\n", True, False),
    ReadDifferently(
        "messages", "RFC 9110 7.8", "a server may ignore Upgrade: what follows is HTTP then; llhttp stops reading",
        b"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n" + GET, 2, 1),
    ReadDifferently(
        "messages", "RFC 9110 9.3.6", "CONNECT may be refused: what follows is HTTP then; llhttp stops reading",
        b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n" + GET, 2, 1),
    ReadDifferently(
        "body", "RFC 9112 6.3",
        "what frames a body does so for CONNECT too, and a tunnel that is refused begins behind it",
        b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello", b"hello", b""),
    ReadDifferently(
        "body", "RFC 9110 7.8",
        "the body of a request that asks for another protocol comes first; httptools skips to that protocol",
        POST + b"Connection: upgrade\r\nUpgrade: x\r\nContent-Length: 5\r\n\r\nhello", b"hello", b""),
]


# The comparison

def check(raw):
    """Follows both through a connection, message by message, as long as they go the same way."""
    mine, my_stop, status = ours(raw)
    other, their_stop = theirs(raw)
    found_at = 0
    for number in range(max(len(mine), len(other)) + 1):
        m = Read(raw[found_at:])
        here = [entry for entry in REFUSED_HERE if entry.applies(m)]
        there = [entry for entry in REFUSED_THERE if entry.applies(m)]
        # A body that llhttp, at its end because of CONNECT or Upgrade, does not look at.
        tunnel = number < len(other) and other[number].upgrade and (m.codings or values(m, b"content-length"))
        if number < len(mine) and number < len(other):
            assert not here, here
            compare(mine[number], other[number], m, tunnel)
            if other[number].upgrade or mine[number].keep_alive != other[number].keep_alive:
                return
            found_at = mine[number].end
        elif number < len(other):
            assert my_stop == REFUSED or (my_stop == MORE and tunnel), f"we do not see the end of {other[number]}"
            assert tunnel or status in {entry.status for entry in here}, (status, here, other[number])
            return
        elif number < len(mine):
            assert their_stop == REFUSED, f"llhttp does not see the end of {mine[number]}"
            assert there, mine[number]
            return
        elif {my_stop, their_stop} == {MORE, REFUSED}:
            # One of them refuses a beginning that the other will refuse when it is whole, or never.
            if my_stop == REFUSED:
                assert here or theirs(raw + END)[1] == REFUSED, status
            else:
                assert there or ours(raw + END)[1] == REFUSED
        else:
            assert my_stop == their_stop


def compare(mine, other, m, tunnel):
    for part in ("method", "target", "version"):
        assert getattr(mine, part) == getattr(other, part), part
    assert mine.fields == stripped(other.fields)
    options = {option.strip(b" \t") for value in values(m, b"connection") for option in value.lower().split(b",")}
    if not values(m, b"proxy-connection"):
        if mine.version != "1.0" or not options >= {b"close", b"keep-alive"}:
            assert mine.keep_alive == other.keep_alive
        if mine.version != "1.0" and mine.method != b"CONNECT":
            assert mine.upgrade == other.upgrade
    if not tunnel:
        assert mine.body == other.body
        assert mine.trailers == stripped(other.trailers)
        assert mine.end == other.end


def stripped(fields):
    return [(name, value.rstrip(b" \t")) for name, value in fields]


# Connections made at random

PLAIN = [GET, b"GET /next?a=b HTTP/1.1\r\nHost: a\r\nX: y\r\n\r\n", POST + b"Content-Length: 5\r\n\r\nhello",
         CHUNKED + b"5\r\nhello\r\n0\r\nX: y\r\n\r\n", b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"]
SEEDS = sorted({raw for kind, raw in seeds() if kind == "message" and len(raw) < 600})
ODD_BYTES = b"\0\t\n\r ,:;=[]%09afAZ~\x7f\xe4"


@st.composite
def framed(draw):
    """A message whose body is, most times, what its head announces."""
    body = draw(st.binary(max_size=40))
    fields = draw(mostly(
        st.sampled_from(["", "", "Content-Length: {}\r\n", "content-length:{}\r\n", "Transfer-Encoding: chunked\r\n",
                         "Transfer-Encoding:CHUNKED\r\n"]),
        st.sampled_from(["Content-Length: 0{}\r\n", "Content-Length: 1{}\r\n", "Content-Length: {}\t\r\n",
                         "Transfer-Encoding: chunked\t\r\n", "Transfer-Encoding: gzip, chunked\r\n"]),
    )).format(len(body))
    if "hunked" in fields.lower():
        body = draw(bodies())
    elif not fields:
        body = b""
    options = draw(mostly(st.just(""), st.sampled_from(
        ["Connection: close\r\n", "Connection: x, Keep-Alive\r\n", "Upgrade: x\r\nConnection: upgrade\r\n"])))
    start = draw(mostly(st.sampled_from(["POST /", "GET /a?b"]),
                        st.sampled_from(["OPTIONS *", "CONNECT a:1", "BREW /"])))
    version = draw(mostly(st.just("1.1"), st.sampled_from(["1.0", "1.2"])))
    return f"{start} HTTP/{version}\r\nHost: a\r\n{options}{fields}\r\n".encode() + body


@st.composite
def mutated(draw):
    """A wire case, with a few bytes changed, taken out, put in or said twice."""
    raw = bytearray(draw(st.sampled_from(SEEDS)))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(raw)))
        size = draw(st.integers(0, 3))
        change = draw(st.sampled_from(["byte", "out", "in", "twice", "splice"]))
        if change == "byte":
            raw[at:at + 1] = bytes([draw(st.sampled_from(ODD_BYTES))])
        elif change == "out":
            del raw[at:at + size]
        elif change == "in":
            raw[at:at] = draw(st.binary(max_size=3))
        elif change == "twice":
            raw[at:at] = raw[at:at + 10 * size]
        else:
            other = draw(st.sampled_from(SEEDS))
            raw[at:] = other[draw(st.integers(0, len(other))):]
    return bytes(raw)


connections = st.lists(
    st.one_of(st.sampled_from(PLAIN), framed(), framed(), messages(), mutated()), min_size=1, max_size=3,
).map(b"".join)


@random_run
@given(connections)
@example(b"CONNECT  HTTP/2.0\r\nHost: a\r\n\r\n")
def test_connections(raw):
    check(raw)
    check_whole_and_bytewise(raw)


def check_whole_and_bytewise(raw):
    """Each finds the same in the same bytes, however they come."""
    assert ours(raw) == ours(raw, bytewise=True)
    found, stopped = theirs(raw)
    ends = [message._replace(end=0) for message in found]
    again, stopped_again = theirs(raw, len(raw) + 1)
    assert ([message._replace(end=0) for message in again], stopped_again) == (ends, stopped)


@pytest.mark.wire("request_line", "targets", "fields", "framing")
def test_heads_of_the_cases(case):
    if "limits" not in case:
        check(case["bytes"] + GET)


@pytest.mark.wire("chunked")
def test_bodies_of_the_cases(case):
    check(CHUNKED + case["bytes"] + GET)


# Whether the lists are true

def examples(entries):
    return [pytest.param(entry, example, id=f"{entry.applies.__name__}-{number}")
            for entry in entries for number, example in enumerate(entry.examples)]


@pytest.mark.parametrize(("entry", "example"), examples(REFUSED_HERE))
def test_refused_here(entry, example):
    assert ours(example) == ([], REFUSED, entry.status)
    found, stopped = theirs(example)
    assert len(found) == 1 and stopped != REFUSED
    assert {each.applies for each in REFUSED_HERE if each.applies(Read(example))} == {entry.applies}
    check(example + GET)


@pytest.mark.parametrize(("entry", "example"), examples(REFUSED_THERE))
def test_refused_there(entry, example):
    assert len(ours(example)[0]) == 1
    assert theirs(example) == ([], REFUSED)
    assert [each for each in REFUSED_THERE if each.applies(Read(example))] == [entry]
    check(example + GET)


@pytest.mark.parametrize("entry", READ_DIFFERENTLY)
def test_read_differently(entry):
    mine, other = ours(entry.example)[0], theirs(entry.example)[0]
    if entry.part == "messages":
        assert (len(mine), len(other)) == (entry.ours, entry.theirs)
    else:
        assert (getattr(mine[0], entry.part), getattr(other[0], entry.part)) == (entry.ours, entry.theirs)
    check(entry.example)
