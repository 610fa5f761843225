"""A mix of requests, made at random, and the handler whose answer to each of them is known to the byte.

Knows: what may be asked, what the answer must be. Never sees: a client, a proxy, a socket.
Invariant: every request of a mix has a number of its own, and every byte of its answer follows from the request,
so that an answer which belongs to another request, or lacks a byte, is found whoever carries it.

main.go asks in the same way, and has its own words for `spell` and `echo`.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass

from fastserve import RequestCtx

LARGEST = 64 * 1024
EDGES = (0, 1, 4096, 8192, 16 * 1024, 20 * 1024, 23 * 1024, 32 * 1024, LARGEST)
"""Where buffers of the server, of the proxies and of the kernel begin and end."""


@dataclass(frozen=True)
class Ask:
    """One request. `body` is None where there is none; `chunks` are the sizes of its chunks, empty: it has a length.
    `size` is what is asked for without a body. `expect`: the body waits for 100; `last`: the connection ends."""

    number: int
    method: str
    size: int
    body: bytes | None
    chunks: tuple[int, ...]
    expect: bool
    last: bool

    @property
    def target(self) -> str:
        return f"/{self.number}?size={self.size}&q=a%20b%26%C3%A9"

    @property
    def fields(self) -> dict[str, str]:
        return {"Connection": "close"} if self.last else {}

    @property
    def pieces(self) -> Iterator[bytes]:
        """The body as it is to be chunked."""
        at, body = 0, self.body or b""
        for size in self.chunks:
            yield body[at:at + size]
            at += size

    @property
    def answer(self) -> bytes:
        return spell(self.number, self.size) if self.body is None else self.body

    def check(self, status: int, told: str | None, length: str | None, body: bytes) -> None:
        """`told`, `length`: the fields X-Told and Content-Length of the answer."""
        assert status == 200, f"{self}: {status} {body[:200]!r}"
        assert told == f"{self.method} {self.target}", f"{self}: the answer is to {told}"
        assert length == str(len(self.answer)), f"{self}: Content-Length is {length}"
        wanted = b"" if self.method == "HEAD" else self.answer
        # Not left to pytest, which would compare at length.
        if body != wanted:
            at = next((i for i, (a, b) in enumerate(zip(body, wanted, strict=False)) if a != b),
                      min(len(body), len(wanted)))
            raise AssertionError(f"{self.method} {self.target}: {len(body)} of {len(wanted)} bytes, "
                                 f"wrong from {at} on: {body[at:at + 20]!r} for {wanted[at:at + 20]!r}")

    def __repr__(self) -> str:
        size = "no body" if self.body is None else f"{len(self.body)} bytes"
        return f"<{self.method} {self.target} {size} chunks={self.chunks} expect={self.expect} last={self.last}>"


def spell(number: int, size: int) -> bytes:
    """`size` bytes that say whose they are."""
    return (b"%d " % number * (size // 2 + 1))[:size]


def echo(ctx: RequestCtx) -> None:
    ctx.content_type = "application/octet-stream"
    ctx.set_header("X-Told", f"{ctx.method} {ctx.raw_path.decode('latin-1')}?{ctx.query_string.decode('latin-1')}")
    if ctx.method in ("POST", "PUT"):
        ctx.set_body(ctx.body)
    else:
        ctx.set_body(spell(int(ctx.path[1:]), int(ctx.query["size"])))


def some_size(chance: random.Random) -> int:
    """None, a few bytes, close to an edge, or anything: each as often."""
    close = chance.choice(EDGES) + chance.randint(-200, 200)
    return (0, chance.randint(1, 64), min(max(close, 0), LARGEST), chance.randint(0, LARGEST))[chance.randrange(4)]


def some_chunks(chance: random.Random, size: int) -> tuple[int, ...]:
    """Sizes that sum up to `size`; none of them 0, which would end the body."""
    chunks = []
    while size:
        chunks.append(min(size, chance.choice((chance.randint(1, 300), chance.randint(1, 40_000)))))
        size -= chunks[-1]
    return tuple(chunks)


def mix(chance: random.Random, count: int) -> list[Ask]:
    asks = []
    for number in range(count):
        method, chunked = chance.choice((
            ("GET", False), ("GET", False), ("HEAD", False), ("DELETE", False), ("POST", False), ("PUT", False),
            ("POST", True), ("PUT", True)))
        size = some_size(chance)
        body = chance.randbytes(size) if method in ("POST", "PUT") else None
        # Some clients cannot chunk nothing at all.
        chunks = some_chunks(chance, size) if chunked else ()
        asks.append(Ask(number, method, size, body, chunks, bool(body) and chance.random() < 0.1,
                        chance.random() < 0.02))
    return asks
