"""Smuggling pairs: ambiguous requests, each with a second one behind it, straight and through proxies.

Knows: the table of pairs.toml, what a front logs of each request, what the handler saw of each. Never sees: how
either of them parses.
Invariant: what a front says that it forwarded and what the handler saw are the same requests, one for one, each with
the same method, path and body; to each of the others that were forwarded the server answered one refusal, unless the
front cut it off. So no request is split or merged between the two, and no bytes of a body become a request, unless
the front itself read them as one, which a written list says.

Each pair is sent in one piece. The second request asks for the connection's end, and so does a refusal, so that the
client just reads until then; where a reader may wait for more than there is, the client ends its side, and no test
waits for a time to pass. (Not everywhere: what HAProxy does with a request whose client has ended its side depends
on what it notices first.) A bystander asks on a connection of its own behind each pair: through a front it is served
on the connection to the server that the pair was sent on.
"""

import itertools
import re
import threading
import tomllib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from fastserve import RequestCtx
from tests.conftest import wire
from tests.live.conftest import Serve, Wire, request, wait_until
from tests.peers.fronts import KINDS, Front, path_of

SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"
SECOND = request("POST", "/second", "Connection: close", body=b"marked", host="a")
BYSTANDER = request("POST", "/bystander", body=b"innocent", host="a")

PLAIN = {"a name with a quote: te_cl", "a name with an underscore: te_cl"}
"""No field of framing but the length, so what lies behind it is a request of the client's: the check can see one."""

BARE_LF = {"bare LF around the last chunk", "a bare LF behind the last chunk", "an empty line of LF",
           "LF LF in a value"}

UNFOLDED = {"the field on a folded line of another: te_cl", "a length on the folded line of another field"}

PASSED_ON = {"a length with a blank before the colon", "a field behind a blank", "a blank before the colon: te_cl",
             "a tab before the colon: te_cl", "NUL behind the name: te_cl", "a name with a blank: te_cl"}
"""Names that HAProxy lets pass when it is told to, without a meaning; the server refuses what carries them."""

MAY_TAKE = {
    "straight": PLAIN,
    "nginx": PLAIN | BARE_LF | {"EXT.TERM"},
    "haproxy": PLAIN | BARE_LF | UNFOLDED | {"EXT.TERM"},
    "haproxy lenient": PLAIN | BARE_LF | UNFOLDED | PASSED_ON | {"EXT.TERM"},
}
MAY_TAKE["nginx unbuffered"] = MAY_TAKE["nginx lenient"] = MAY_TAKE["nginx"]
"""Pairs of which a reader may take the smuggled request for the client's next one, because it reads all that comes
before as a whole request, and then hands it on as one."""


@dataclass(frozen=True)
class Pair:
    """`bodies`: those that the first request may have for the handler. `through`: every front must forward it.
    `waits`: a reader may wait for more."""

    name: str
    sent: bytes
    replies: list[int]
    bodies: tuple[bytes, ...]
    through: bool
    waits: bool


def send(client: Wire, pair: Pair) -> None:
    client.send(pair.sent, SECOND)
    if pair.waits:
        client.half_close()


def read_pairs() -> list[Pair]:
    with open(Path(__file__).with_name("pairs.toml"), "rb") as file:
        table = tomllib.load(file)
    found = [Pair(told["name"], wire(told["bytes"]), told["replies"], (wire(told.get("body", "")),),
                  told.get("through", False), told.get("waits", False)) for told in table["pair"]]
    chunk, last_chunk = b"%x\r\n" % len(SMUGGLED), b"0\r\n\r\n"
    for told in table["coding"]:
        for way, length, rest, bodies in (
            ("cl_te", 40, last_chunk + SMUGGLED, (b"", last_chunk + SMUGGLED)),
            ("te_cl", 4, chunk + SMUGGLED + b"\r\n" + last_chunk, (SMUGGLED, chunk)),
            ("alone", None, chunk + SMUGGLED + b"\r\n" + last_chunk, (SMUGGLED, b"")),
        ):
            fields = [told["line"]] if length is None else [f"Content-Length: {length}", told["line"]]
            found.append(Pair(f"{told['name']}: {way}", request("POST", "/first", *fields, host="a") + rest,
                              told.get(way, [400]), bodies, False, False))
    names = Counter(pair.name for pair in found)
    assert max(names.values()) == 1, f"two pairs of one name: {names.most_common(1)}"
    assert set().union(*MAY_TAKE.values()) <= names.keys(), "a list speaks of a pair that there is not"
    return found


PAIRS = read_pairs()


@dataclass(frozen=True)
class Seen:
    """A request as the handler saw it; `port` is the peer's."""

    method: str
    path: str
    body: bytes
    port: int


class Witness:
    """The handler. It gives each request a number, remembers it by that, and answers what it saw."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.seen: dict[int, Seen] = {}
        self.numbers = itertools.count(1)

    def __call__(self, ctx: RequestCtx) -> None:
        assert ctx.remote_addr is not None
        seen = Seen(ctx.method, path_of(ctx.raw_path.decode("latin-1")), ctx.body, ctx.remote_addr[1])
        with self.lock:
            number = next(self.numbers)
            self.seen[number] = seen
        ctx.set_header("X-Number", str(number))
        ctx.write(f"{seen.method} {seen.path} {len(seen.body)}")


def check_bodies(pair: Pair, seen: list[Seen]) -> None:
    for one in seen:
        if one.path.startswith("/first"):
            assert one.body in pair.bodies, f"{pair.name}: {one}"
        else:
            assert one.body == (b"marked" if one.path == "/second" else b""), f"{pair.name}: {one}"


def check_smuggled(pair: Pair, seen: list[Seen], kind: str) -> None:
    paths = [one.path for one in seen]
    assert "/smuggled" not in paths or pair.name in MAY_TAKE[kind], f"{pair.name}: {paths}"


def test_straight(serve: Serve) -> None:
    witness = Witness()
    server = serve(witness, workers=64)
    refused = 0
    for pair in PAIRS:
        with Wire(server.address) as client:
            port = client.socket.getsockname()[1]
            send(client, pair)
            replies = [client.read() for _ in pair.replies]
            assert client.ended(), pair.name
        assert [reply.status for reply in replies] == pair.replies, pair.name
        seen = {number: one for number, one in witness.seen.items() if one.port == port}
        # In order, each by itself, and nothing behind a refusal.
        assert [reply.get("X-Number") for reply in replies if reply.status == 200] == [str(n) for n in seen], pair.name
        assert all(reply.closes for reply in replies if reply.status != 200), pair.name
        refused += sum(status != 200 for status in pair.replies)
        check_bodies(pair, list(seen.values()))
        check_smuggled(pair, list(seen.values()), "straight")
        for number in seen:
            del witness.seen[number]                    # ports return
    stats = server.stats()
    assert (sum(stats["refusals"].values()), witness.seen) == (refused, {})


@pytest.mark.parametrize("kind", KINDS)
def test_through(kind: str, serve: Serve, front: Callable[[str, str], Front]) -> None:
    witness = Witness()
    server = serve(witness, workers=64)
    proxy = front(kind, server.address)
    ports: dict[int, Pair] = {}
    got: dict[int, list[int]] = {}
    with Wire(proxy.address) as bystander:
        for pair in PAIRS:
            with Wire(proxy.address) as client:
                port = client.socket.getsockname()[1]
                assert port not in ports, "a port came back: the log cannot be told apart"
                ports[port] = pair
                send(client, pair)
                try:
                    raw = client.read_to_end()
                except TimeoutError:
                    pytest.fail(f"{pair.name}: somebody waits for more")
                got[port] = [int(number) for number in re.findall(rb"\r\nX-Number: (\d+)\r\n", raw, re.IGNORECASE)]
            reply = bystander.send(BYSTANDER).read()
            assert (reply.status, reply.body) == (200, b"POST /bystander 8"), f"behind {pair.name}: {reply}"
    proxy.stop()
    wait_until(lambda: not any(server.in_use().values()), "the server to be done")

    lines = proxy.lines()
    handled = {line.number: line for line in lines if line.number is not None}
    assert len(handled) == sum(line.number is not None for line in lines), "one answer to two requests"
    forwarded = {number: (line.method, line.path) for number, line in handled.items()}
    saw = {number: (one.method, one.path) for number, one in witness.seen.items()}
    differ = {number: (forwarded.get(number), saw.get(number)) for number in forwarded.keys() | saw.keys()
              if forwarded.get(number) != saw.get(number)}
    assert not differ, f"forwarded and seen, by X-Number: {differ}"
    refused = sum(line.answered and line.number is None for line in lines)
    cut = sum(line.forwarded and not line.answered for line in lines)
    # The server may have refused what the front did not go on with, because the client had left.
    assert refused <= sum(server.stats()["refusals"].values()) <= refused + cut

    shared = 0
    own = {line.port for line in lines} - ports.keys()
    assert len(own) == 1, "the bystander had one connection"
    others = [line.number for line in lines if line.port in own]
    assert len(others) == len(PAIRS)
    for (port, pair), other in zip(ports.items(), others, strict=True):
        numbers = [line.number for line in lines if line.port == port and line.number is not None]
        assert got[port] == numbers, f"{pair.name}: answers were lost or exchanged"
        seen = [witness.seen[number] for number in numbers]
        check_bodies(pair, seen)
        check_smuggled(pair, seen, kind)
        if pair.through:
            assert [one.path for one in seen] == ["/first", "/second"], f"{pair.name} did not come through"
        shared += witness.seen[other].port in {one.port for one in seen}
    assert shared >= sum(pair.through for pair in PAIRS), "the bystander was not where the pairs were"
    print(f"{kind}: of {len(lines)} requests {len(handled)} were handled, {refused} refused by the server, {cut} cut "
          f"off by the front; {shared} bystanders met a pair's connection")
