"""The shapes in robyn's own interface, and its static files.

What blocks is a plain function: those run on its worker threads.
"""

from __future__ import annotations

import json

import shapes
from robyn import Headers, Request, Response, Robyn

TEXT, JSON, BINARY = (Headers({"Content-Type": kind}) for kind in (shapes.TEXT, shapes.JSON, shapes.BINARY))


def reply(body: bytes | str, headers: Headers = TEXT) -> Response:
    return Response(status_code=200, headers=headers, description=body)


async def hello(request: Request):
    return reply(shapes.HELLO)


async def query(request: Request):
    args = request.query_params
    trace = request.headers.get("x-trace") or "-"
    return reply(f"{args.get_first('name')} {args.get_first('page')} {trace}\n")


async def head(request: Request):
    get = request.headers.get
    lengths = (len(get("user-agent") or ""), len(get("accept-language") or ""), len(get("cookie") or ""))
    return reply(b"%d %d %d\n" % lengths)


async def document(request: Request):
    return reply(json.dumps(shapes.DOCUMENT), JSON)


async def echo(request: Request):
    return reply(request.body, BINARY)


async def megabyte(request: Request):
    return reply(shapes.MEGABYTE, BINARY)


async def file(request: Request):
    return reply(shapes.FILE.read_bytes(), BINARY)


def sleep_some(request: Request):
    return reply(shapes.sleep_some())


def sleep(request: Request):
    return reply(shapes.sleep())


async def compute(request: Request):
    return reply(shapes.compute())


def application() -> Robyn:
    app = Robyn(__file__)
    for path, handler in (("/", hello), ("/query", query), ("/head", head), ("/json", document), ("/1m", megabyte),
                          ("/file", file), ("/some", sleep_some), ("/sleep", sleep), ("/cpu", compute)):
        app.get(path)(handler)
    app.post("/echo")(echo)
    return app


def files() -> Robyn:
    app = Robyn(__file__)
    app.serve_directory("/static", str(shapes.FOLDER))
    return app
