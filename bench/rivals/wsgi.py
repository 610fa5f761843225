"""The shapes for every WSGI server. Knows WSGI; no server."""

from __future__ import annotations

import json
from urllib.parse import parse_qs

import shapes


def reply(start_response, body, content_type=shapes.TEXT):
    start_response("200 OK", [("Content-Type", content_type), ("Content-Length", str(len(body)))])
    return [body]


def hello(environ, start_response):
    return reply(start_response, shapes.HELLO)


def query(environ, start_response):
    args = parse_qs(environ["QUERY_STRING"])
    trace = environ.get("HTTP_X_TRACE", "-")
    return reply(start_response, f"{args['name'][0]} {args['page'][0]} {trace}\n".encode())


def head(environ, start_response):
    get = environ.get
    return reply(start_response, b"%d %d %d\n" % (
        len(get("HTTP_USER_AGENT", "")), len(get("HTTP_ACCEPT_LANGUAGE", "")), len(get("HTTP_COOKIE", ""))))


def document(environ, start_response):
    return reply(start_response, json.dumps(shapes.DOCUMENT).encode(), shapes.JSON)


def echo(environ, start_response):
    return reply(start_response, environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])), shapes.BINARY)


def megabyte(environ, start_response):
    return reply(start_response, shapes.MEGABYTE, shapes.BINARY)


def file(environ, start_response):
    """Handed to the server where it takes files, read where it does not."""
    wrapper = environ.get("wsgi.file_wrapper")
    if not wrapper:
        return reply(start_response, shapes.FILE.read_bytes(), shapes.BINARY)
    start_response("200 OK", [("Content-Type", shapes.BINARY), ("Content-Length", str(shapes.FILE_SIZE))])
    return wrapper(shapes.FILE.open("rb"), 65536)


def sleep_some(environ, start_response):
    return reply(start_response, shapes.sleep_some())


def sleep(environ, start_response):
    return reply(start_response, shapes.sleep())


def compute(environ, start_response):
    return reply(start_response, shapes.compute())


def not_found(environ, start_response):
    start_response("404 Not Found", [("Content-Type", shapes.TEXT), ("Content-Length", "0")])
    return [b""]


ROUTES = {
    "/": hello, "/query": query, "/head": head, "/json": document, "/echo": echo, "/1m": megabyte, "/file": file,
    "/some": sleep_some, "/sleep": sleep, "/cpu": compute,
}


def application(environ, start_response):
    return ROUTES.get(environ["PATH_INFO"], not_found)(environ, start_response)
