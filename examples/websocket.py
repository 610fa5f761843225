"""A WebSocket (RFC 6455) that echoes: the handler hijacks the connection, wsproto speaks on it.

    pip install wsproto
    python examples/websocket.py                    # on 127.0.0.1:8000; as arguments other addresses

    python -m websockets ws://127.0.0.1:8000/echo   # or the console of a browser: new WebSocket("ws://...")

Each WebSocket has a thread of its own, and counts in `concurrency` until its function returns.
"""

import socket
import sys
from contextlib import suppress

import h11
from wsproto import ConnectionType, WSConnection
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Ping,
    Request,
    TextMessage,
)
from wsproto.utilities import LocalProtocolError, RemoteProtocolError

from fastserve import RequestCtx, Router, Server

router = Router()


@router.get("/echo")
def echo(ctx: RequestCtx) -> None:
    """Reads what the client wants before the ctx ends; whether that is a WebSocket, wsproto says."""
    ws = WSConnection(ConnectionType.SERVER)
    fields = [(name.encode(), value.encode("latin-1")) for name, value in ctx.headers.items()]
    try:
        ws.initiate_upgrade_connection(fields, ctx.raw_path)
    except (RemoteProtocolError, h11.ProtocolError, UnicodeError) as error:
        ctx.error(f"no WebSocket: {error}", 400)
        ctx.set_header("Sec-WebSocket-Version", "13")
        return
    # No reply of the server's: wsproto writes the 101 itself.
    ctx.hijack(lambda wire, data: converse(ws, wire, data), respond=False)


def converse(ws: WSConnection, wire: socket.socket, data: bytes) -> None:
    """Until the client closes, goes away, or the server stops. `data` came behind the request."""
    wire.settimeout(60)                             # for a client that says nothing, not even a ping, or never reads
    with suppress(TimeoutError):
        echo_all(ws, wire, data)


def echo_all(ws: WSConnection, wire: socket.socket, data: bytes) -> None:
    open_ = True
    while open_:
        for event in ws.events():
            match event:
                case Request():
                    wire.sendall(ws.send(AcceptConnection()))
                case TextMessage(data=text):
                    wire.sendall(ws.send(TextMessage(text, message_finished=event.message_finished)))
                case BytesMessage(data=piece):
                    wire.sendall(ws.send(BytesMessage(bytes(piece), message_finished=event.message_finished)))
                case Ping():
                    wire.sendall(ws.send(event.response()))
                case CloseConnection():
                    wire.sendall(ws.send(event.response()))
                    open_ = False
                case _:
                    pass
        if open_:
            with suppress(TimeoutError):
                data = data or wire.recv(65536)
            if not data:
                # The client has gone without a word, or the server stops and nothing more can come.
                wire.sendall(ws.send(CloseConnection(code=1001, reason="going away")))
                return
            try:
                ws.receive_data(data)
            except (LocalProtocolError, RemoteProtocolError):
                return
            data = b""


if __name__ == "__main__":
    Server(router).serve(*sys.argv[1:], ready=lambda server: print(f"http://{server.addresses[0]}", flush=True))
