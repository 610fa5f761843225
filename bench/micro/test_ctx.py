"""What the accessors of a ctx cost, called in a handler again and again. Times are of one call.

Each includes some 20 to 40 ns of the call itself, which `nothing` shows.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from operator import attrgetter
from typing import Any

import pytest
from micro import shapes

READ: dict[str, tuple[bytes, Callable[[Any], object]]] = {
    "nothing": (shapes.HELLO, lambda ctx: None),
    "method": (shapes.HELLO, attrgetter("method")),
    "path": (shapes.BROWSER, attrgetter("path")),
    "raw_path": (shapes.BROWSER, attrgetter("raw_path")),
    "query_string": (shapes.QUERY, attrgetter("query_string")),
    "query, once parsed": (shapes.QUERY, attrgetter("query")),
    "headers.get, found": (shapes.BROWSER, lambda ctx: ctx.headers.get("user-agent")),
    "headers.get, absent": (shapes.BROWSER, lambda ctx: ctx.headers.get("x-trace")),
    "headers.items": (shapes.BROWSER, lambda ctx: ctx.headers.items()),
    "cookies": (shapes.BROWSER, attrgetter("cookies")),
    "host": (shapes.BROWSER, attrgetter("host")),
    "remote_addr": (shapes.HELLO, attrgetter("remote_addr")),
    "conn_id": (shapes.HELLO, attrgetter("conn_id")),
    "body, 1 KiB": (shapes.ECHO, attrgetter("body")),
}

JSON = shapes.request("POST /", "Host: a", "Content-Length: 1024", body=json.dumps(shapes.ITEM).encode())

WRITTEN: dict[str, Callable[[Any], object]] = {
    "status": lambda ctx: setattr(ctx, "status", 201),
    "content_type": lambda ctx: setattr(ctx, "content_type", shapes.TEXT),
    "set_body": lambda ctx: ctx.set_body("Hello, World!\n"),
    "error, to begin anew": lambda ctx: ctx.error("no", 404),
    "set_header, in place of itself": lambda ctx: ctx.set_header("X-Request-Id", "0123456789abcdef"),
    "redirect": lambda ctx: ctx.redirect("/elsewhere?and=more"),
}


@pytest.mark.benchmark(group="of the request")
@pytest.mark.parametrize("name", READ)
def test_read(benchmark: Any, in_handler: Any, name: str) -> None:
    request, accessor = READ[name]
    in_handler(lambda ctx: benchmark(accessor, ctx), request)


@pytest.mark.benchmark(group="of the request")
def test_json(benchmark: Any, in_handler: Any) -> None:
    def handler(ctx: Any) -> None:
        assert benchmark(ctx.json) == shapes.ITEM

    in_handler(handler, JSON)


@pytest.mark.benchmark(group="of the request")
def test_query_parsed(benchmark: Any) -> None:
    """What the first use of `query` does beyond later ones."""
    from fastserve._core import parse_args

    assert benchmark(parse_args, b"name=World&page=7&sort=asc")["page"] == "7"


@pytest.mark.benchmark(group="of the reply")
@pytest.mark.parametrize("name", WRITTEN)
def test_written(benchmark: Any, in_handler: Any, name: str) -> None:
    in_handler(lambda ctx: benchmark(WRITTEN[name], ctx), shapes.HELLO)


@pytest.mark.benchmark(group="of the reply")
def test_write(benchmark: Any, in_handler: Any) -> None:
    """Appending: a bounded number of times, as the body grows."""
    in_handler(lambda ctx: benchmark.pedantic(ctx.write, ("Hello, World!\n",), rounds=200, iterations=100,
                                              warmup_rounds=10), shapes.HELLO)


@pytest.mark.benchmark(group="of the reply")
def test_add_header(benchmark: Any, in_handler: Any) -> None:
    """Beside others: fifty times, as the room for fields is bounded."""
    def handler(ctx: Any) -> None:
        def begin_anew() -> None:
            ctx.error("", 200)

        benchmark.pedantic(lambda: [ctx.add_header("X-Request-Id", "0123456789abcdef") for _ in range(50)],
                           setup=begin_anew, rounds=200, warmup_rounds=10)

    in_handler(handler, shapes.HELLO)
