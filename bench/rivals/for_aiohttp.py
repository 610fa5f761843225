"""The shapes in aiohttp's own interface, and its static files. What blocks goes to a pool of threads."""

from __future__ import annotations

import asyncio
import json

import shapes
from aiohttp import web

_pool = shapes.pool()


def text(body: bytes) -> web.Response:
    return web.Response(body=body, content_type="text/plain", charset="utf-8")


async def hello(request):
    return text(shapes.HELLO)


async def query(request):
    args = request.query
    return text(f"{args['name']} {args['page']} {request.headers.get('X-Trace', '-')}\n".encode())


async def head(request):
    return text(shapes.lengths(request.headers.get))


async def document(request):
    return web.Response(body=json.dumps(shapes.DOCUMENT).encode(), content_type=shapes.JSON)


async def echo(request):
    return web.Response(body=await request.read(), content_type=shapes.BINARY)


async def megabyte(request):
    return web.Response(body=shapes.MEGABYTE, content_type=shapes.BINARY)


async def file(request):
    return web.FileResponse(shapes.FILE)


async def sleep_some(request):
    return text(await asyncio.get_running_loop().run_in_executor(_pool, shapes.sleep_some))


async def sleep(request):
    return text(await asyncio.get_running_loop().run_in_executor(_pool, shapes.sleep))


async def compute(request):
    return text(shapes.compute())


def application() -> web.Application:
    application = web.Application()
    application.add_routes([
        web.get("/", hello), web.get("/query", query), web.get("/head", head), web.get("/json", document),
        web.post("/echo", echo), web.get("/1m", megabyte), web.get("/file", file), web.get("/some", sleep_some),
        web.get("/sleep", sleep), web.get("/cpu", compute),
    ])
    return application


def files() -> web.Application:
    application = web.Application()
    application.router.add_static("/static", shapes.FOLDER)
    return application
