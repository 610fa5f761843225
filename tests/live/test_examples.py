"""Every program in examples/, run as its docstring says and asked as its user would ask it.

Knows: that a program takes addresses as arguments, prints where it listens as its first line, and ends with 0 after
TERM. Never sees: what is behind its port. Invariant: a test that has the fixture `example` is about the program of its
own name, and each program has one.
"""

import gzip
import http.client
import inspect
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from email.message import Message
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from conftest import PATIENCE, wait_until

import fastserve

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
INSTALLED = Path(sys.executable).with_name("fastserve")
SCRIPT = [str(INSTALLED)] if INSTALLED.exists() else [sys.executable, "-m", "fastserve"]
HANG_LIMIT = 60  # seconds; a program that hangs is killed

# Whatever proxy the environment names: it is not asked.
_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Answer(NamedTuple):
    status: int
    headers: Message
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class Example:
    """A program that runs, and what it said where it listens."""

    def __init__(self, command: list[str], place: Path, said: str, stream: str) -> None:
        """`said`: the line of `stream`, in which group 1 is the address."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("FASTSERVE_")}
        home = str(Path(fastserve.__file__).parents[1])
        self.popen = subprocess.Popen(command, cwd=place, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                      env=kept | {"PYTHONPATH": home, "PYTHONDONTWRITEBYTECODE": "1"})
        self._killer = threading.Timer(HANG_LIMIT, self.popen.kill)
        self._killer.start()
        first = getattr(self.popen, stream).readline()
        match = re.fullmatch(said, first.rstrip("\n"))
        if match is None:
            self.popen.kill()
            pytest.fail(f"it began with {first!r}\n{self.finished()[1]}")
        self.url = f"http://{match[1]}"
        host, _, port = match[1].rpartition(":")
        self.address = host, int(port)

    def finished(self) -> tuple[str, str]:
        """What it said on stdout and stderr, when it has ended."""
        out, err = self.popen.communicate()
        self._killer.cancel()
        return out, err

    def stop(self) -> str:
        """TERM; the rest of its stdout."""
        self.popen.send_signal(signal.SIGTERM)
        out, err = self.finished()
        assert self.popen.returncode == 0, err
        assert "Traceback" not in err
        return out

    def ask(self, method: str, path: str, body: bytes | None = None,
            headers: Mapping[str, str] | None = None) -> Answer:
        request = urllib.request.Request(self.url + path, body, dict(headers or {}), method=method)
        try:
            with _opener.open(request, timeout=PATIENCE) as reply:
                return Answer(reply.status, reply.headers, reply.read())
        except urllib.error.HTTPError as error:
            with error:
                return Answer(error.code, error.headers, error.read())

    def get(self, path: str, headers: Mapping[str, str] | None = None) -> Answer:
        return self.ask("GET", path, headers=headers)

    def post(self, path: str, document: Any) -> Answer:
        return self.ask("POST", path, json.dumps(document).encode(), {"Content-Type": "application/json"})

    def raw(self, data: bytes) -> bytes:
        """All that comes back for these bytes, until the server closes."""
        with socket.create_connection(self.address, PATIENCE) as wire:
            wire.sendall(data)
            return b"".join(iter(lambda: wire.recv(65536), b""))


@pytest.fixture
def example(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Example]:
    """The program that the test is named after, in an empty directory; it must end well."""
    path = EXAMPLES / f"{request.node.name.removeprefix('test_')}.py"
    running = Example([sys.executable, str(path), "127.0.0.1:0"], tmp_path, r"http://([\d.]+:\d+)", "stdout")
    try:
        yield running
        if running.popen.returncode is None:
            running.stop()
    finally:
        if running.popen.returncode is None:
            running.popen.kill()
            running.finished()


def programs() -> list[Path]:
    return sorted(EXAMPLES.glob("*.py"))


def test_each_program_has_a_test_here() -> None:
    tested = {name.removeprefix("test_") for name, test in globals().items()
              if name.startswith("test_") and "example" in inspect.signature(test).parameters}
    assert tested == {path.stem for path in programs()}


@pytest.mark.parametrize("path", programs(), ids=lambda path: path.stem)
def test_it_begins_with_how_it_is_run(path: Path) -> None:
    assert re.match(rf'"""[A-Z][^\n]+\.\n\n(    [^\n]+\n)*    python examples/{path.stem}\.py\b', path.read_text())


def test_hello(example: Example) -> None:
    assert example.get("/").body == b"Hello, World!\n"
    assert example.get("/?name=Ada").body == b"Hello, Ada!\n"
    assert example.get("/elsewhere").status == 404


def test_hello_by_the_command() -> None:
    command = [*SCRIPT, "examples.hello:handler", "--bind", "127.0.0.1:0"]
    running = Example(command, EXAMPLES.parent, r"fastserve \S+ on http://(\S+) .*", "stderr")
    assert running.get("/?name=Ada").body == b"Hello, Ada!\n"
    running.stop()


def test_json_api(example: Example) -> None:
    made = example.post("/notes", {"title": "milk", "done": False})
    assert (made.status, made.headers["Location"]) == (201, "/notes/1")
    assert example.get("/notes/1").json() == {"title": "milk", "done": False}
    example.post("/notes", {"title": "tea", "done": True})
    assert list(example.get("/notes").json()) == ["1", "2"]
    assert example.get("/notes?limit=1").json() == {"2": {"title": "tea", "done": True}}

    def refused(answer: Answer, status: int, word: str) -> bool:
        document = answer.json()
        return (answer.status == document["status"] == status and word in document["detail"]
                and answer.headers["Content-Type"] == "application/problem+json")

    assert refused(example.get("/notes/3"), 404, "no such note")
    assert refused(example.get("/notes?limit=ten"), 400, "limit")
    assert refused(example.get("/notes?limit=0"), 400, "limit")
    assert refused(example.ask("POST", "/notes", b"{"), 400, "")
    for wrong in ([], {"title": "x"}, {"title": "", "done": True}, {"title": "x" * 201, "done": True},
                  {"title": "x", "done": 1}, {"title": "x", "done": True, "more": 1}):
        assert refused(example.post("/notes", wrong), 400, "a note is")
    wrong_method = example.ask("DELETE", "/notes")
    assert wrong_method.headers["Allow"] == "GET, HEAD, OPTIONS, POST"
    assert refused(wrong_method, 405, "DELETE /notes") and refused(example.get("/elsewhere"), 404, "/elsewhere")
    assert refused(example.ask("POST", "/notes", b'{"title": "\\ud800", "done": true}'), 400, "")
    assert len(example.get("/notes").json()) == 2
    malformed = example.raw(b"GET /notes HTTP/1.1\r\n\r\n")         # no Host
    assert malformed.startswith(b"HTTP/1.1 400 ") and b'"title":"Bad Request"' in malformed


def test_upload(example: Example, tmp_path: Path) -> None:
    def form(*names: str) -> Answer:
        parts = [f'--x\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n\r\nof {name}\r\n'
                 for name in names]
        return example.ask("POST", "/", "".join([*parts, "--x--\r\n"]).encode(),
                           {"Content-Type": "multipart/form-data; boundary=x"})

    assert b'enctype="multipart/form-data"' in example.get("/").body
    assert form("a b.txt", "../../.evil").status == 200, "what it redirects to"
    assert form("whole.txt", "").status == 400
    large = os.urandom(1024) * 9 * 1024
    assert example.ask("PUT", "/files/large", large).status == 201
    assert example.ask("POST", "/", large).status == 413
    assert example.ask("PUT", "/files/..", b"x").status == 400
    with socket.create_connection(example.address, PATIENCE) as wire:
        wire.sendall(b"PUT /files/half HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\nExpect: 100-continue\r\n\r\n")
        assert wire.recv(100).startswith(b"HTTP/1.1 100 "), "the handler reads"
        assert len(list((tmp_path / "uploads").iterdir())) == 4
        wire.sendall(b"half")
    example.stop()
    kept = {path.name: path.read_bytes() for path in (tmp_path / "uploads").iterdir()}
    assert kept == {"a_b.txt": b"of a b.txt", "evil": b"of ../../.evil", "large": large}


def test_static_site(example: Example) -> None:
    source = (EXAMPLES / "site" / "index.html").read_bytes()
    page = example.get("/")
    assert (page.body, page.headers["Content-Type"]) == (source, "text/html; charset=utf-8")
    assert page.headers["Cache-Control"] == "public, max-age=300"
    packed = example.get("/", {"Accept-Encoding": "gzip"})
    assert packed.headers["Content-Encoding"] == "gzip" and gzip.decompress(packed.body) == source
    assert example.get("/", {"If-None-Match": page.headers["ETag"]}).status == 304
    assert example.get("/style.css", {"Range": "bytes=0-3"}).body == b"body"
    assert b"<h1>About</h1>" in example.get("/about").body, "behind a redirect"
    missing = example.get("/missing")
    assert (missing.status, missing.headers["Cache-Control"]) == (404, None)
    listing = example.get("/files.json", {"Accept-Encoding": "gzip"})
    assert [file["path"] for file in json.loads(gzip.decompress(listing.body))] == [
        "/about/index.html", "/index.html", "/style.css"]
    outside = example.raw(b"GET /../hello.py HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert outside.startswith(b"HTTP/1.1 404 ")


def test_streaming(example: Example) -> None:
    def listen(**fields: str) -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection(*example.address, timeout=PATIENCE)
        connection.request("GET", "/events", headers={name.replace("_", "-"): value for name, value in fields.items()})
        reply = connection.getresponse()
        assert (reply.status, reply.headers["Content-Type"]) == (200, "text/event-stream")
        assert [reply.readline(), reply.readline()] == [b": welcome\n", b"\n"]
        return reply

    def event(reply: http.client.HTTPResponse) -> tuple[bytes, bytes]:
        number, data, end = reply.readline(), reply.readline(), reply.readline()
        assert number.startswith(b"id: ") and data.startswith(b"data: ") and end == b"\n"
        return number[4:-1], json.loads(data[6:])

    assert b"EventSource" in example.get("/").body
    listener = listen()
    assert example.ask("POST", "/say", b"one\ntwo").status == 204
    assert event(listener) == (b"1", "one\ntwo")
    example.ask("POST", "/say", b"three")
    assert event(listener) == (b"2", "three")
    back = listen(Last_Event_ID="1")
    assert event(back) == (b"2", "three")
    stranger = listen(Last_Event_ID="99")
    table = example.get("/squares.csv?rows=5000")
    assert table.headers["Transfer-Encoding"] == "chunked"
    assert table.body.splitlines()[-1] == b"4999,24990001" and table.body.count(b"\n") == 5000
    assert example.get("/squares.csv?rows=-1").status == 400
    example.stop()
    assert listener.read() == back.read() == stranger.read() == b"", "whole to its end: no exception"


def test_websocket(example: Example) -> None:
    wsproto = pytest.importorskip("wsproto")
    from wsproto.events import (
        AcceptConnection,
        BytesMessage,
        CloseConnection,
        Event,
        Ping,
        Pong,
        Request,
        TextMessage,
    )

    class Socket:
        def __init__(self) -> None:
            self.ws = wsproto.WSConnection(wsproto.ConnectionType.CLIENT)
            self.wire = socket.create_connection(example.address, PATIENCE)
            self.left: list[Event] = []
            self.say(Request(host="x", target="/echo"))
            assert isinstance(self.hear(), AcceptConnection)

        def say(self, *events: Event) -> None:
            self.wire.sendall(b"".join(map(self.ws.send, events)))

        def hear(self) -> Event:
            while not self.left:
                self.ws.receive_data(self.wire.recv(65536) or None)
                self.left = list(self.ws.events())
            return self.left.pop(0)

    refused = example.get("/echo")
    assert (refused.status, refused.headers["Sec-WebSocket-Version"]) == (400, "13")
    for wrong in (b"GET /echo HTTP/1.0\r\n\r\n", b"GET /echo HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\n"
                  b"Connection: Upgrade, close\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: \xe9\r\n"
                  b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"):
        assert example.raw(wrong).startswith(b"HTTP/1.1 400 "), wrong
    one, two = Socket(), Socket()
    one.say(TextMessage("grüß"), Ping(b"there?"), BytesMessage(bytes(range(256)) * 400))
    assert one.hear() == TextMessage("grüß") and one.hear() == Pong(b"there?")
    got = b""
    while not (piece := one.hear()).message_finished:
        got += piece.data
    assert got + piece.data == bytes(range(256)) * 400
    one.say(CloseConnection(1000))
    assert one.hear().code == 1000 and one.wire.recv(1) == b""
    two.say(TextMessage("still here"))
    assert two.hear() == TextMessage("still here")
    example.popen.send_signal(signal.SIGTERM)
    assert two.hear().code == 1001, "the server says goodbye"
    one.wire.close()
    two.wire.close()
    _, err = example.finished()
    assert (example.popen.returncode, "Traceback" in err) == (0, False)


def test_embedding(example: Example) -> None:
    def spam(text: str) -> float:
        found = example.post("/predict", {"text": text}).json()
        assert sum(found.values()) == pytest.approx(1)
        return float(found["spam"])

    assert spam("win cheap watches") > 0.9 and spam("the meeting at noon") < 0.1
    assert spam("nothing of this was ever seen") == pytest.approx(0.5, abs=0.2)
    assert example.post("/learn", {"text": "unicorns", "label": "spam"}).status == 202
    wait_until(lambda: spam("unicorns") > 0.5, "the main thread to learn")
    assert example.post("/learn", {"text": "x", "label": "eggs"}).status == 400
    assert example.post("/predict", {"text": 1}).status == 400
    assert re.fullmatch(r"\d+ requests, 1 lessons\n", example.stop())


def test_prometheus(example: Example) -> None:
    assert example.ask("POST", "/orders/tea?count=3").json() == {"product": "tea", "count": 3, "price": 9.0}
    assert example.ask("POST", "/orders/coal").status == 404
    assert example.ask("POST", "/orders/tea?count=many").status == 400
    own = example.get("/metrics/shop")
    assert b'shop_orders_total{product="tea"} 1.0\n' in own.body and b"shop_items_sum 3.0\n" in own.body
    assert b"coal" not in own.body
    assert own.headers["Content-Type"].startswith("text/plain")
    assert b"\nfastserve_requests_total 4\n" in example.get("/metrics").body
    assert example.get("/health").status == 200
