"""The shapes for ASGI servers. Knows ASGI; no server. What blocks goes to a pool of threads."""

from __future__ import annotations

import asyncio
import json
from urllib.parse import parse_qs

import shapes

_pool = shapes.pool()


async def reply(send, body, content_type=shapes.TEXT):
    await send({"type": "http.response.start", "status": 200,
                "headers": [(b"content-type", content_type.encode()), (b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


async def hello(scope, receive, send):
    await reply(send, shapes.HELLO)


async def query(scope, receive, send):
    args = parse_qs(scope["query_string"])
    trace = dict(scope["headers"]).get(b"x-trace", b"-")
    await reply(send, b"%s %s %s\n" % (args[b"name"][0], args[b"page"][0], trace))


async def head(scope, receive, send):
    get = dict(scope["headers"]).get
    lengths = (len(get(b"user-agent", b"")), len(get(b"accept-language", b"")), len(get(b"cookie", b"")))
    await reply(send, b"%d %d %d\n" % lengths)


async def document(scope, receive, send):
    await reply(send, json.dumps(shapes.DOCUMENT).encode(), shapes.JSON)


async def echo(scope, receive, send):
    parts, more = [], True
    while more:
        message = await receive()
        parts.append(message.get("body", b""))
        more = message.get("more_body", False)
    await reply(send, b"".join(parts), shapes.BINARY)


async def megabyte(scope, receive, send):
    await reply(send, shapes.MEGABYTE, shapes.BINARY)


async def file(scope, receive, send):
    await reply(send, shapes.FILE.read_bytes(), shapes.BINARY)


async def sleep_some(scope, receive, send):
    await reply(send, await asyncio.get_running_loop().run_in_executor(_pool, shapes.sleep_some))


async def sleep(scope, receive, send):
    await reply(send, await asyncio.get_running_loop().run_in_executor(_pool, shapes.sleep))


async def compute(scope, receive, send):
    await reply(send, shapes.compute())


async def not_found(scope, receive, send):
    await send({"type": "http.response.start", "status": 404, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body"})


ROUTES = {
    "/": hello, "/query": query, "/head": head, "/json": document, "/echo": echo, "/1m": megabyte, "/file": file,
    "/some": sleep_some, "/sleep": sleep, "/cpu": compute,
}


async def application(scope, receive, send):
    await ROUTES.get(scope["path"], not_found)(scope, receive, send)
