"""The shapes in the standard library's http.server: a thread, or a process, for each connection.

Where a client makes a connection for each request, that is a thread, or a process, for each request. As it comes,
http.server sends head and body apart, and on a connection that is kept waits 40 ms between them for the client's
delayed acknowledgement. It is compared so, and with the two lines that collect a reply and send it at once. Its own
static files have these lines too.
"""

from __future__ import annotations

import http.server
import json
import socketserver
from urllib.parse import parse_qs, urlsplit

import shapes


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        route = ROUTES.get(self.path.partition("?")[0])
        if route:
            route(self)
        else:
            self.send_error(404)

    do_POST = do_GET

    def reply(self, body: bytes, content_type: str = shapes.TEXT) -> None:
        self.send_response(200)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def query(self) -> None:
        args = parse_qs(urlsplit(self.path).query)
        trace = self.headers.get("X-Trace", "-")
        self.reply(f"{args['name'][0]} {args['page'][0]} {trace}\n".encode())

    def head(self) -> None:
        self.reply(shapes.lengths(self.headers.get))

    def echo(self) -> None:
        self.reply(self.rfile.read(int(self.headers["Content-Length"])), shapes.BINARY)


ROUTES = {
    "/": lambda handler: handler.reply(shapes.HELLO),
    "/query": Handler.query,
    "/head": Handler.head,
    "/json": lambda handler: handler.reply(json.dumps(shapes.DOCUMENT).encode(), shapes.JSON),
    "/echo": Handler.echo,
    "/1m": lambda handler: handler.reply(shapes.MEGABYTE, shapes.BINARY),
    "/file": lambda handler: handler.reply(shapes.FILE.read_bytes(), shapes.BINARY),
    "/some": lambda handler: handler.reply(shapes.sleep_some()),
    "/sleep": lambda handler: handler.reply(shapes.sleep()),
    "/cpu": lambda handler: handler.reply(shapes.compute()),
}


class AtOnce(Handler):
    wbufsize = -1
    disable_nagle_algorithm = True


class Files(http.server.SimpleHTTPRequestHandler):
    protocol_version = Handler.protocol_version
    wbufsize = AtOnce.wbufsize
    disable_nagle_algorithm = AtOnce.disable_nagle_algorithm
    log_message = Handler.log_message

    def __init__(self, *connection) -> None:
        super().__init__(*connection, directory=shapes.FOLDER.parent)


class Threading(http.server.ThreadingHTTPServer):
    request_queue_size = 4096


class Forking(socketserver.ForkingMixIn, http.server.HTTPServer):
    """The counter of /some is each process's own: processes share nothing."""

    request_queue_size = 4096
    max_children = 4096
