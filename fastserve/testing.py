"""For the tests of a program that serves: its handler, asked without a port, and a server on one.

Knows: the public names of fastserve, and how a client speaks. Never sees: the core. Invariant: what is asked goes
through the parser, the limits and the writer of a real server; when a client or a server is left, nothing of it stays,
but for the event loop that all coroutines of the process share.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Self, cast

from fastserve import Fields, Server
from fastserve.errors import ServerClosed

if TYPE_CHECKING:
    from fastserve.coroutines import AsyncHandler, Handler

__all__ = ["Client", "LiveServer", "Response"]

PATIENCE = 30.0
"""Seconds that a client waits for a byte."""


class Response:
    """What came back: `status`, `reason`, `headers` (case-insensitive), `body`; `text` and `json()` of the body."""

    def __init__(self, status: int, reason: str, headers: Fields, body: bytes) -> None:
        self.status = status
        self.reason = reason
        self.headers = headers
        self.body = body

    @property
    def text(self) -> str:
        """The body as UTF-8; UnicodeDecodeError."""
        return self.body.decode()

    def json(self) -> Any:
        """The body as JSON; ValueError."""
        return json.loads(self.body)

    def __repr__(self) -> str:
        return f"<Response {self.status}, {len(self.body)} bytes>"


class Client:
    """Asks a handler, without a port: `config` are the fields of a server's Config.

        with Client(handler) as client:
            assert client.get("/").status == 200
            assert client.raw(b"nonsense\\r\\n\\r\\n").startswith(b"HTTP/1.1 400 ")

    Each request has a connection of its own, in memory (a unix socket that has no file), so `ctx.remote_addr` is None.
    It may be used by several threads at once.
    """

    def __init__(self, handler: Handler | AsyncHandler, **config: Any) -> None:
        self._name = f"\0fastserve-{os.urandom(8).hex()}"
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(self._name)
            listener.listen(1024)
            self.server: Server = Server(handler, **config).start(f"fd:{listener.fileno()}")

    def request(self, method: str, path: str, body: bytes | str = b"", headers: Mapping[str, str] | None = None,
                json: Any = None) -> Response:
        """`path` may have a query; `json` is a body that is made of it. Host and Content-Length are added unless they
        are given. TimeoutError: nothing comes."""
        fields = dict(headers or {})
        names = {name.lower() for name in fields}
        if json is not None:
            body = _dumped(json)
            if "content-type" not in names:
                fields["Content-Type"] = "application/json"
        content = body.encode() if isinstance(body, str) else body
        lines = [f"{method} {path} HTTP/1.1"]
        if "host" not in names:
            lines.append("Host: test")
        if content and not names & {"content-length", "transfer-encoding"}:
            lines.append(f"Content-Length: {len(content)}")
        lines += [f"{name}: {value}" for name, value in fields.items()]
        with self._connected() as wire, wire.makefile("rb") as stream:
            # A server that has answered may have closed before it has read all.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                wire.sendall("\r\n".join([*lines, "", ""]).encode("latin-1") + content)
            reply = _reply(stream, method)
            while 100 <= reply.status < 200 and reply.status != 101:
                # Interim, such as 103. It would close the stream when it goes.
                reply.fp = None  # type: ignore[assignment]
                reply = _reply(stream, method)
            return Response(reply.status, reply.reason, Fields(list(reply.headers.items())), reply.read())

    def get(self, path: str, headers: Mapping[str, str] | None = None) -> Response:
        """As `request`."""
        return self.request("GET", path, headers=headers)

    def head(self, path: str, headers: Mapping[str, str] | None = None) -> Response:
        """As `request`."""
        return self.request("HEAD", path, headers=headers)

    def delete(self, path: str, headers: Mapping[str, str] | None = None) -> Response:
        """As `request`."""
        return self.request("DELETE", path, headers=headers)

    def post(self, path: str, body: bytes | str = b"", headers: Mapping[str, str] | None = None,
             json: Any = None) -> Response:
        """As `request`."""
        return self.request("POST", path, body, headers, json)

    def put(self, path: str, body: bytes | str = b"", headers: Mapping[str, str] | None = None,
            json: Any = None) -> Response:
        """As `request`."""
        return self.request("PUT", path, body, headers, json)

    def patch(self, path: str, body: bytes | str = b"", headers: Mapping[str, str] | None = None,
              json: Any = None) -> Response:
        """As `request`."""
        return self.request("PATCH", path, body, headers, json)

    def raw(self, data: bytes) -> bytes:
        """All that comes back for these bytes, whatever they are, until the server closes: it is told that no more
        will come. TimeoutError: it does not."""
        got: list[bytes] = []
        with self._connected() as wire:
            # A server that has answered may have closed before it has read all.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                wire.sendall(data)
                wire.shutdown(socket.SHUT_WR)
            with contextlib.suppress(ConnectionResetError):
                while piece := wire.recv(65536):
                    got.append(piece)
        return b"".join(got)

    def close(self) -> None:
        """Stops the server; what still runs is cut off."""
        self.server.shutdown(0)

    def _connected(self) -> socket.socket:
        wire = socket.socket(socket.AF_UNIX)
        wire.settimeout(PATIENCE)
        wire.connect(self._name)
        return wire

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(ServerClosed):         # in the child of a fork
            self.close()


class _Stream:
    """What `http.client` wants of a socket."""

    def __init__(self, stream: io.BufferedReader) -> None:
        self._stream = stream

    def makefile(self, mode: str) -> io.BufferedReader:
        return self._stream


def _reply(stream: io.BufferedReader, method: str) -> http.client.HTTPResponse:
    """The next one, its head read."""
    reply = http.client.HTTPResponse(cast("socket.socket", _Stream(stream)), method=method)
    reply.begin()
    return reply


def _dumped(value: Any) -> bytes:
    return json.dumps(value).encode()


class LiveServer:
    """A server on a port of 127.0.0.1 that the kernel chooses, for a client that needs one.

        with LiveServer(handler) as live:
            assert httpx.get(live.url).status_code == 200

    `url` has no slash at its end; `host` and `port` are its parts, `server` is the Server. In pytest the fixture
    `live_server`, which `pytest_plugins = ["fastserve.testing"]` brings, makes any number of them for one test:
    `live_server(handler)`.
    """

    def __init__(self, handler: Handler | AsyncHandler, **config: Any) -> None:
        self.server: Server = Server(handler, **config).start("127.0.0.1:0")
        host, _, port = self.server.addresses[0].rpartition(":")
        self.host: str = host
        self.port: int = int(port)
        self.url: str = f"http://{self.host}:{self.port}"

    def close(self) -> None:
        """Stops the server; what still runs is cut off."""
        self.server.shutdown(0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(ServerClosed):         # in the child of a fork
            self.close()


try:
    import pytest
except ImportError:
    pass
else:
    @pytest.fixture
    def live_server() -> Iterator[Callable[..., LiveServer]]:
        """`live_server(handler, **config)` starts a LiveServer that ends with the test."""
        with contextlib.ExitStack() as servers:
            def started(handler: Handler | AsyncHandler, **config: Any) -> LiveServer:
                return servers.enter_context(LiveServer(handler, **config))

            yield started
