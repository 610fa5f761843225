"""The shapes in socketify's own interface. What blocks goes to a pool of threads."""

from __future__ import annotations

import asyncio
import json

import shapes
from socketify import App

_pool = shapes.pool()

TEXT, JSON, BINARY = (kind.encode() for kind in (shapes.TEXT, shapes.JSON, shapes.BINARY))


def reply(res, body, content_type=TEXT):
    """One call into its C, where a header and an end are two."""
    res.send(body, content_type)


def hello(res, req):
    reply(res, shapes.HELLO)


def query(res, req):
    trace = req.get_header("x-trace") or "-"
    reply(res, f"{req.get_query('name')} {req.get_query('page')} {trace}\n")


def head(res, req):
    get = req.get_header
    lengths = (len(get("user-agent") or ""), len(get("accept-language") or ""), len(get("cookie") or ""))
    reply(res, b"%d %d %d\n" % lengths)


def document(res, req):
    reply(res, json.dumps(shapes.DOCUMENT), JSON)


async def echo(res, req):
    body = await res.get_data()
    res.cork(lambda res: reply(res, body.getvalue(), BINARY))


def megabyte(res, req):
    reply(res, shapes.MEGABYTE, BINARY)


def file(res, req):
    reply(res, shapes.FILE.read_bytes(), BINARY)


async def sleep_some(res, req):
    body = await asyncio.get_running_loop().run_in_executor(_pool, shapes.sleep_some)
    res.cork(lambda res: reply(res, body))


async def sleep(res, req):
    body = await asyncio.get_running_loop().run_in_executor(_pool, shapes.sleep)
    res.cork(lambda res: reply(res, body))


def compute(res, req):
    reply(res, shapes.compute())


def application() -> App:
    app = App()
    for path, handler in (("/", hello), ("/query", query), ("/head", head), ("/json", document), ("/1m", megabyte),
                          ("/file", file), ("/some", sleep_some), ("/sleep", sleep), ("/cpu", compute)):
        app.get(path, handler)
    app.post("/echo", echo)
    return app
