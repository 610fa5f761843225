"""Every wire case live: what the parser says of bytes is what a client is told, whole and byte by byte.

Knows: tests/cases/*.toml, the wire. Never sees: the parser. Invariant: few servers, one for each set of limits
that cases ask for, are told all cases over many connections at once; each connection is judged by itself, from
what came back on it until its end.
"""

import contextlib
import json
import re
import select
import socket
import time
from collections import Counter, deque
from collections.abc import Iterator
from typing import Any

import pytest

from fastserve import RequestCtx
from fastserve.config import SPECS
from tests.conftest import cases
from tests.live.conftest import PATIENCE, Reply, Running, Wire, request, serving

HEADS = ("request_line", "targets", "fields", "framing")
BYTEWISE_UP_TO = 300            # bytes of a case
AT_ONCE = 64                    # connections
BODY_MAX = 4 * 2**20
# A whole size line that is well formed and announces more.
BEYOND_BODY_MAX = re.compile(rb"(?=[0-9A-Fa-f]{1,15}[ \t;\r])0*[1-9A-Fa-f][0-9A-Fa-f]{6,}"
                             rb"(?:[ \t]*;[\t -~\x80-\xff]*)?\r\n")
GOT_MAX = 2**17                 # bytes of all replies on one connection

CHUNKED = request("POST", "/", "Transfer-Encoding: chunked")
AFTER = request("GET", "/", "Connection: close", host="after")
"""The request behind a case: answered only if the case ends where it should and the connection stays."""

OF_CONFIG = {"fields": "max_header_fields", "max_fields": "max_header_fields", "target_size": "max_target_size",
             "head_size": "read_buffer_size"}
"""The limits of cases. `max_fields` is the room that a caller of the parser has; the server's is its limit."""


def echo(ctx: RequestCtx) -> None:
    """What the handler sees of a request."""
    ctx.write(json.dumps({
        "method": ctx.method, "version": ctx.http_version, "host": ctx.host,
        "path": ctx.raw_path.decode("latin-1"), "query": ctx.query_string.decode("latin-1"),
        "fields": ctx.headers.items(), "body": ctx.body.decode("latin-1"),
    }))


# A case as a connection

def seen(raw: bytes) -> dict[str, Any]:
    """What `echo` sees of an accepted head without a body, read from its bytes."""
    first, *lines = raw.removeprefix(b"\r\n").partition(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")
    method, target, version = first.split(" ")
    fields = [[name, value.strip(" \t")] for name, _, value in (line.partition(":") for line in lines)]
    absolute = re.fullmatch(r"(?i)https?://([^/?]*)(.*)", target)
    origin = absolute[2] if absolute else target if target.startswith("/") else ""
    authority = absolute[1] if absolute else target if method == "CONNECT" else None
    path, _, query = origin.partition("?")
    return {
        "method": method, "version": "1.0" if version == "HTTP/1.0" else "1.1",
        "host": authority or dict(reversed([(name.lower(), value) for name, value in fields])).get("host", ""),
        "path": path, "query": query, "fields": fields, "body": "",
    }


class Plan:
    """What is sent for a case, and what must come back: `echoes`, or a refusal with one of `statuses`, or nothing."""

    def __init__(self, stem: str, case: dict[str, Any]) -> None:
        self.case = case
        self.config = {OF_CONFIG[name]: value for name, value in case.get("limits", {}).items()}
        self.echoes: list[dict[str, Any]] = []
        self.statuses: set[int] = set()
        self.raw = raw = case["bytes"] if stem in HEADS else CHUNKED + case["bytes"]
        self.closes = self.continues = False
        if case["verdict"] not in ("done", "more"):
            self.statuses.add(case["verdict"])
        if stem not in HEADS and BEYOND_BODY_MAX.match(case["bytes"]):
            self.statuses = {413}
        elif case["verdict"] == "done":
            self.expect_echoes(seen(raw))

    def expect_echoes(self, echo: dict[str, Any]) -> None:
        case, self.echoes = self.case, [echo]
        values = Counter({name.lower(): value for name, value in echo["fields"]})
        rest = self.raw.removeprefix(b"\r\n").partition(b"\r\n\r\n")[2]
        if length := int(values["content-length"] or 0):
            if length > BODY_MAX:
                self.echoes, self.statuses = [], {413}
                return
            self.raw += b"b" * (length - len(rest))
            echo["body"] = (rest + b"b" * (length - len(rest)))[:length].decode("latin-1")
            rest = b""
        elif values["transfer-encoding"]:
            self.raw += b"" if rest else b"0\r\n\r\n"
            echo["body"] = case.get("body", b"").decode("latin-1")
            rest = case.get("left", b"")
        # RFC 9110 10.1.1: not to 1.0, and where the body has come with its head it may be left out.
        self.continues = echo["version"] == "1.1" and bool(values["expect"]) and bool(echo["body"])
        options = {option.strip(" \t") for name, value in echo["fields"] if name.lower() == "connection"
                   for option in value.lower().split(",")}
        self.closes = "close" in options or (echo["version"] == "1.0" and "keep-alive" not in options)
        assert self.closes != case.get("keep_alive", not self.closes)
        if rest and not AFTER.startswith(rest):
            self.echoes.append(seen(rest))
        if not self.closes:
            self.raw += AFTER.removeprefix(rest)
            self.echoes.append(seen(AFTER))

    def inexpressible(self) -> str:
        """Why no server can have the limits of this case; "" if one can."""
        return ", ".join(
            f"{name} is {SPECS[name].low} to {SPECS[name].high}, not {value}"
            for name, value in self.config.items() if not SPECS[name].low <= value <= SPECS[name].high)


PLANS = {f"{stem}: {parameter.values[0]['name']}": Plan(stem, parameter.values[0])
         for stem in (*HEADS, "chunked") for parameter in cases(stem)}
MODES = {
    "whole": list(PLANS),
    "bytewise": [name for name, plan in PLANS.items() if 1 < len(plan.case["bytes"]) <= BYTEWISE_UP_TO],
}


# The driver

class Talk:
    """One connection: sends piece after piece, listens to the end. `waits`: for silence, then it half-closes."""

    def __init__(self, pieces: list[bytes], waits: bool) -> None:
        self.pieces = deque(pieces)
        self.waits = waits
        self.got = bytearray()
        self.early = b""
        self.end = ""

    def open(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), PATIENCE)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)

    def send(self) -> None:
        try:
            sent = self.socket.send(self.pieces[0])
        except BlockingIOError:
            return
        except OSError as error:
            self.end = f"cut while we send: {error}"
            return
        rest = self.pieces.popleft()[sent:]
        if rest:
            self.pieces.appendleft(rest)

    def listen(self) -> None:
        """Takes what has come. At the end the rest is sent at once: a client that is late, whom the server
        must not answer with a reset, because that could take the reply away."""
        try:
            while data := self.socket.recv(65536):
                self.got += data
                if len(self.got) > GOT_MAX:
                    self.end = "flooded"
                    return
        except BlockingIOError:
            return
        except OSError as error:
            self.end = f"cut: {error}"
            return
        self.end = "closed"
        if self.pieces:
            self.pieces = deque([b"".join(self.pieces)])
            self.send()

    def half_close(self) -> None:
        self.listen()
        self.early = bytes(self.got)
        with contextlib.suppress(OSError):          # closed already: `listen` knows
            self.socket.shutdown(socket.SHUT_WR)


def converse(server: Running, talks: list[Talk]) -> int:
    """All talks with one server, AT_ONCE at a time, each a piece in turn; what has no end at the deadline has none.
    Answers how many requests beside theirs the server was asked."""
    waiting, live = deque(talks), dict[int, Talk]()
    poll = select.poll()
    deadline = time.monotonic() + PATIENCE
    witness, asked = server.connect(), 0
    while (waiting or live) and time.monotonic() < deadline:
        while waiting and len(live) < AT_ONCE:
            talk = waiting.popleft()
            talk.open(server.port)
            live[talk.socket.fileno()] = talk
            poll.register(talk.socket, select.POLLIN)
        sending = [talk for talk in live.values() if talk.pieces]
        if sending:
            for talk in sending:
                talk.send()
            # The reactor has read those pieces, and said what there was to say of them, before it replies to this.
            assert witness.get().status == 200
            asked += 1
            for talk in sending:
                if talk.waits and not talk.pieces:
                    talk.half_close()
        for descriptor, _ in poll.poll(0 if sending else 100):
            live[descriptor].listen()
        for descriptor, talk in list(live.items()):
            if talk.end:
                poll.unregister(descriptor)
                live.pop(descriptor).socket.close()
    for talk in live.values():
        talk.socket.close()
    witness.close()
    return asked


class Heard(Wire):
    """The replies in bytes that have come to their end, read as strictly as from a socket."""

    def __init__(self, raw: bytes) -> None:
        self.pending = bytearray(raw)

    def more(self) -> bool:
        return False


# The judgement

class Told:
    """What came back for all cases, by mode and name, and what each server counted."""

    def __init__(self) -> None:
        self.talks: dict[tuple[str, str], Talk] = {}
        self.counted: list[tuple[list[Talk], int, dict[str, Any]]] = []


@pytest.fixture(scope="module")
def told() -> Iterator[Told]:
    found = Told()
    groups: dict[tuple[tuple[str, int], ...], list[tuple[str, str]]] = {}
    for mode, names in MODES.items():
        for name in names:
            if not PLANS[name].inexpressible():
                groups.setdefault(tuple(PLANS[name].config.items()), []).append((mode, name))
    with serving() as serve:
        for config, keys in groups.items():
            # What the parser delivers a server may refuse by its method: test_refusals.py.
            server = serve(echo, reactors=1, max_request_body_size=BODY_MAX, refused_methods="", **dict(config))
            talks = []
            for mode, name in keys:
                plan = PLANS[name]
                pieces = [plan.raw] if mode == "whole" else [plan.raw[at:at + 1] for at in range(len(plan.raw))]
                if mode == "whole" and plan.closes:
                    pieces[0] += AFTER
                talks.append(Talk(pieces, waits=not plan.echoes and not plan.statuses))
            asked = converse(server, talks)
            found.talks.update(zip(keys, talks, strict=True))
            found.counted.append((talks, asked, server.stats()))
        yield found


def check_refusal(reply: Reply, statuses: set[int]) -> None:
    assert reply.status in statuses, reply
    assert reply.closes, reply
    assert reply.get("Content-Type") == "text/plain; charset=utf-8"
    assert reply.get("Content-Length") == str(len(reply.body))
    assert reply.body == f"{reply.reason}\n".encode()


@pytest.mark.parametrize(("mode", "name"), [
    pytest.param(mode, name, id=f"{mode}, {name}") for mode, names in MODES.items() for name in names])
def test_case(told: Told, mode: str, name: str) -> None:
    plan = PLANS[name]
    if reason := plan.inexpressible():
        pytest.skip(reason)
    talk = told.talks[mode, name]
    assert talk.end == "closed", f"{talk.end or 'no end'}: {bytes(talk.got[:500])!r}"
    heard = Heard(talk.got)
    assert talk.early == b"", "a reply came while bytes were missing"
    if plan.statuses:
        check_refusal(heard.read(), plan.statuses)
    for number, expected in enumerate(plan.echoes):
        if number == 0 and plan.continues and (mode == "bytewise" or heard.pending.startswith(b"HTTP/1.1 100 ")):
            assert heard.read(interim=True).status == 100
        reply = heard.read()
        last = number == len(plan.echoes) - 1
        assert (reply.status, reply.closes) == (200, last), reply
        assert json.loads(reply.body) == expected
        if expected["version"] == "1.0" and not last:
            assert reply.get("Connection") == "keep-alive"
    assert heard.pending == b"", "more than was asked for"


def test_what_was_told_was_counted(told: Told) -> None:
    """No handler saw a request that nobody was answered, and no refusal was kept from its client."""
    for talks, asked, stats in told.counted:
        statuses = Counter[int]()
        for talk in talks:
            statuses.update(int(status) for status in re.findall(rb"HTTP/1\.1 ([2-5]\d\d) ", talk.got))
        assert stats["requests"] == statuses.pop(200, 0) + asked
        assert stats["refusals"] == statuses


def test_the_cases_are_many() -> None:
    """A case that nobody reads would be missed by nobody."""
    skipped = [name for name, plan in PLANS.items() if plan.inexpressible()]
    assert len(PLANS) >= 400
    assert len(skipped) < 6, skipped
