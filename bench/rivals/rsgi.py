"""The shapes for granian's own interface, RSGI. What blocks goes to a pool of threads."""

from __future__ import annotations

import asyncio
import json
from urllib.parse import parse_qs

import shapes

_pool = shapes.pool()

TEXT, JSON, BINARY = ([("content-type", kind)] for kind in (shapes.TEXT, shapes.JSON, shapes.BINARY))
NAMED = [*BINARY, ("content-length", str(shapes.FILE_SIZE))]


async def hello(scope, protocol):
    protocol.response_bytes(200, TEXT, shapes.HELLO)


async def query(scope, protocol):
    args = parse_qs(scope.query_string)
    trace = scope.headers.get("x-trace", "-")
    protocol.response_str(200, TEXT, f"{args['name'][0]} {args['page'][0]} {trace}\n")


async def head(scope, protocol):
    get = scope.headers.get
    lengths = (len(get("user-agent", "")), len(get("accept-language", "")), len(get("cookie", "")))
    protocol.response_bytes(200, TEXT, b"%d %d %d\n" % lengths)


async def document(scope, protocol):
    protocol.response_str(200, JSON, json.dumps(shapes.DOCUMENT))


async def echo(scope, protocol):
    protocol.response_bytes(200, BINARY, await protocol())


async def megabyte(scope, protocol):
    protocol.response_bytes(200, BINARY, shapes.MEGABYTE)


async def file(scope, protocol):
    protocol.response_file(200, NAMED, str(shapes.FILE))


async def sleep_some(scope, protocol):
    body = await asyncio.get_running_loop().run_in_executor(_pool, shapes.sleep_some)
    protocol.response_bytes(200, TEXT, body)


async def sleep(scope, protocol):
    body = await asyncio.get_running_loop().run_in_executor(_pool, shapes.sleep)
    protocol.response_bytes(200, TEXT, body)


async def compute(scope, protocol):
    protocol.response_bytes(200, TEXT, shapes.compute())


async def not_found(scope, protocol):
    protocol.response_empty(404, [])


ROUTES = {
    "/": hello, "/query": query, "/head": head, "/json": document, "/echo": echo, "/1m": megabyte, "/file": file,
    "/some": sleep_some, "/sleep": sleep, "/cpu": compute,
}


async def application(scope, protocol):
    await ROUTES.get(scope.path, not_found)(scope, protocol)
