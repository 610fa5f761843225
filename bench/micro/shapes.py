"""Requests, handlers, and what their replies must say: what is driven without sockets.

Knows: bytes of requests and the public surface of a ctx. Never sees: the driver, a clock, a profiler.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

TEXT = "text/plain; charset=utf-8"
BINARY = "application/octet-stream"


def request(line: str, *fields: str, body: bytes = b"") -> bytes:
    return "\r\n".join([f"{line} HTTP/1.1", *fields, "", ""]).encode() + body


# The inputs of fasthttp's own benches: 205 and 259 bytes, the same fields and sizes.

_AGENT = "User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Firefox"
_TAIL = ("Referer: http://example.com/aaa?bbb=ccc", "Cookie: aaa=bbb; ccc=dddddddddddd; eee=ffffffffffffff")
GET = request("GET /foobar?baz", "Host: google.com", _AGENT, *_TAIL)
POST = request("POST /foobar?baz", "Host: google.com", "Content-Type: foo/bar", "Content-Length: 13", _AGENT[:-3],
               *_TAIL, body=b"Hello, world!")

HELLO = request("GET /", "Host: 127.0.0.1:8000")
BROWSER_FIELDS = (
    "Host: www.example.com",
    "Connection: keep-alive",
    "Cache-Control: max-age=0",
    'sec-ch-ua: "Chromium";v="130", "Not?A_Brand";v="99"',
    "sec-ch-ua-mobile: ?0",
    'sec-ch-ua-platform: "Linux"',
    "Upgrade-Insecure-Requests: 1",
    "User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/130.0.0.0 Safari/537.36",
    "Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8",
    "Sec-Fetch-Site: none",
    "Accept-Encoding: gzip, deflate, br, zstd",
    "Accept-Language: en-GB,en;q=0.9,de;q=0.8",
    "Cookie: visits=2; lasttime=1727179822; session=abcdef0123456789abcdef0123456789",
    "DNT: 1",
)
BROWSER = request("GET /articles/2026/11/how-a-worker-pool-beats-a-thread-per-request.html", *BROWSER_FIELDS)
ECHO = request("POST /echo", "Host: 127.0.0.1:8000", f"Content-Type: {BINARY}", "Content-Length: 1024",
               body=b"x" * 1024)
QUERY = request("GET /query?name=World&page=7&sort=asc", "Host: 127.0.0.1:8000", "X-Trace: 0123456789abcdef")
WORDS = request("GET /a/path?name=World&page=7", "Host: 127.0.0.1:8000", "X-Trace: 4bf92f3577b34da6",
                "Cookie: session=0123456789abcdef")
HUNDRED = b"x" * 100

# What is sent as JSON: 1,024 bytes.
ITEM = {"id": 7, "name": "World", "text": "x" * 986}


# Handlers


def hello(ctx: Any) -> None:
    if ctx.path == "/":
        ctx.content_type = TEXT
        ctx.write("Hello, World!\n")
    else:
        ctx.not_found()


def foobar(ctx: Any) -> None:
    ctx.content_type = "text/plain"
    ctx.write("Hello, world!")


def foobar_post(ctx: Any) -> None:
    if ctx.body != b"Hello, world!":
        raise ValueError(ctx.body)
    ctx.content_type = "text/plain"
    ctx.write("Hello, world!")


def three_fields(ctx: Any) -> None:
    get = ctx.headers.get
    ctx.content_type = TEXT
    ctx.write(f"{len(get('User-Agent', ''))} {len(get('Accept-Language', ''))} {len(get('Cookie', ''))}\n")


def echo(ctx: Any) -> None:
    ctx.content_type = BINARY
    ctx.write(ctx.body)


def query(ctx: Any) -> None:
    args = ctx.query
    ctx.content_type = TEXT
    ctx.write(f"{args['name']} {args['page']} {ctx.headers.get('X-Trace', '-')}\n")


def words(ctx: Any) -> None:
    args = ctx.query
    if ctx.path and args["name"] and args["page"] and ctx.headers["X-Trace"] and ctx.cookies["session"]:
        ctx.content_type = TEXT
        ctx.write(HUNDRED)


# What is driven, and what must come back


@dataclass(frozen=True)
class Shape:
    """One request, one handler, how its clients send it; the driver's words."""

    name: str
    request: bytes
    handler: Callable[[Any], None]
    body: bytes
    drive: dict[str, int] = field(default_factory=dict)

    def check(self, reply: bytes, times: int = 1) -> None:
        """`reply` holds so many whole replies of status 200, each with the body that was promised."""
        for _ in range(times):
            head, found, reply = reply.partition(b"\r\n\r\n")
            names = {line.partition(b":")[0] for line in head.split(b"\r\n")[1:]}
            assert found and head.startswith(b"HTTP/1.1 200 OK\r\n"), head
            assert names >= {b"Server", b"Date", b"Content-Type", b"Content-Length"}, head
            assert b"Content-Length: %d" % len(self.body) in head, head
            assert reply.startswith(self.body), reply[:100]
            reply = reply[len(self.body):]
        assert not reply, reply[:100]


def _lengths(*names: str) -> bytes:
    values = dict(line.split(": ", 1) for line in BROWSER_FIELDS)
    return (" ".join(str(len(values[name])) for name in names) + "\n").encode()


GATE = [
    Shape("hello", HELLO, hello, b"Hello, World!\n"),
    Shape("hello, 64 ready in one turn", HELLO, hello, b"Hello, World!\n", {"clients": 64}),
    Shape("hello, 16 pipelined", HELLO, hello, b"Hello, World!\n", {"burst": 16}),
    Shape("browser's head, 3 fields read", BROWSER, three_fields,
          _lengths("User-Agent", "Accept-Language", "Cookie")),
    Shape("POST echo 1 KiB", ECHO, echo, b"x" * 1024),
    Shape("2 query arguments and a field read", QUERY, query, b"World 7 0123456789abcdef\n"),
    Shape("path, 2 arguments, a field and a cookie read", WORDS, words, HUNDRED),
]
"""What instructions.py counts, beside the parser alone."""
