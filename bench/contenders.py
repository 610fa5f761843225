"""Who is measured: how each contender is built and started, and the answers that all of them owe.

Knows compilers, interpreters and the shapes; nothing of the cases. Run: python bench/contenders.py [NAME ...] asks
every contender (or those) for every shape and prints who answers right.
"""

from __future__ import annotations

import functools
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from client import Client, Reply, request
from measure import BUILD, HERE, HOST, BenchError, Cores, Server, choose_cores
from rivals import environment, nginx, shapes

BODY = shapes.HELLO
HEADERS = {"server", "date", "content-type", "content-length"}
PIPELINED = 16
STATIC = frozenset({shapes.STATIC})
ALL = frozenset(shapes.PATHS)
HANDLED = ALL - STATIC      # by the application that a server runs

_FACTS = """
import importlib.metadata, json, platform, sys, sysconfig
facts = {"version": platform.python_version(), "fastserve": None, "problem": None}
try:
    import fastserve
    facts["fastserve"] = importlib.metadata.version("fastserve-http")
except ImportError as problem:
    facts["problem"] = str(problem)
facts["free_threaded"] = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
facts["gil"] = getattr(sys, "_is_gil_enabled", lambda: True)()
print(json.dumps(facts))
"""


@dataclass(frozen=True)
class Rival:
    """A server in Python that is not ours: started by rivals/serve.py under its key."""

    name: str
    key: str
    distribution: str | None    # None: the standard library has it
    blocks: bool                # a pool of threads (or processes) runs the handlers that block
    paths: frozenset[str] = HANDLED


RIVALS = (
    Rival("granian WSGI", "granian-wsgi", "granian", blocks=True),
    Rival("granian RSGI", "granian-rsgi", "granian", blocks=True),
    Rival("freastal", "freastal", "freastal", blocks=False),
    Rival("fastpysgi", "fastpysgi", "fastpysgi", blocks=False),
    Rival("fastwsgi", "fastwsgi", "fastwsgi", blocks=False),
    Rival("weft", "weft", "weft-server", blocks=True),
    Rival("bjoern", "bjoern", "bjoern", blocks=False),
    Rival("socketify", "socketify", "socketify", blocks=True),
    Rival("robyn", "robyn", "robyn", blocks=True),
    Rival("uvicorn", "uvicorn", "uvicorn", blocks=True),
    Rival("gunicorn gthread", "gunicorn", "gunicorn", blocks=True),
    Rival("waitress", "waitress", "waitress", blocks=True),
    Rival("cheroot", "cheroot", "cheroot", blocks=True),
    Rival("aiohttp", "aiohttp", "aiohttp", blocks=True),
    Rival("ThreadingHTTPServer", "threading", None, blocks=True),
    Rival("ThreadingHTTPServer at once", "threading-at-once", None, blocks=True),
    Rival("ForkingHTTPServer", "forking", None, blocks=True),
    Rival("granian static", "granian-static", "granian", blocks=False, paths=STATIC),
    Rival("weft static", "weft-static", "weft-server", blocks=False, paths=STATIC),
    Rival("robyn static", "robyn-static", "robyn", blocks=False, paths=STATIC),
    Rival("aiohttp static", "aiohttp-static", "aiohttp", blocks=False, paths=STATIC),
    Rival("ThreadingHTTPServer static", "threading-static", None, blocks=False, paths=STATIC),
)


@dataclass(frozen=True)
class Contender:
    """One who can be measured. `start(threads)` gives a server that is ready to be entered."""

    name: str
    kind: str               # "limit" (C), "web" (nginx), "go", "python" or "ours"
    paths: frozenset[str]   # the shapes that it serves
    blocks: bool            # may a handler block without stopping the others?
    start: Callable[..., Server]


def output(command: Sequence[str], environment: Mapping[str, str] | None = None) -> str:
    """What a tool says, in a minute at most; its complaint is ours."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=HERE,
                              env={**os.environ, **(environment or {})})
    except (OSError, subprocess.TimeoutExpired) as problem:
        raise BenchError(str(problem)) from None
    if done.returncode:
        raise BenchError(f"{command[0]} failed: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout.strip()


class Contenders:
    """Makes servers that are ready to be started, for one interpreter and one pair of cores."""

    def __init__(self, python: str, cores: Cores) -> None:
        self._python = python
        self._cores = cores
        shapes.make_file()

    @functools.cached_property
    def python_facts(self) -> dict:
        """The interpreter's version, whether it has a GIL, and the fastserve that is installed in it."""
        return json.loads(output([self._python, "-c", _FACTS]))

    def all(self) -> list[Contender]:
        """The limits, nginx, Go, ours, and the rivals in Python."""
        def c(start: Callable[[], Server]) -> Callable[..., Server]:
            return lambda threads=1: start()

        hello = frozenset({"/"})
        return [
            Contender("C epoll", "limit", hello, False, c(self.epoll)),
            Contender("C io_uring", "limit", hello, False, c(self.uring)),
            Contender("Go fasthttp", "go", ALL - {"/cpu"}, True, c(self.fasthttp)),
            Contender("Go net/http", "go", ALL - {"/cpu"}, True, c(self.nethttp)),
            Contender("nginx", "web", STATIC, False, c(self.nginx)),
            Contender("fastserve", "ours", ALL, True, self._ours),
            Contender("fastserve send_file", "ours", STATIC, True, c(self._sends_file)),
            *(Contender(rival.name, "python", rival.paths, rival.blocks, functools.partial(self._rival, rival))
              for rival in RIVALS),
        ]

    def problem(self, contender: Contender) -> str | None:
        """Why this one cannot run here: it is then left out by name, with this reason."""
        if contender.kind == "python":
            rival = next(one for one in RIVALS if one.name == contender.name)
            return environment.problem(rival.distribution) if rival.distribution else None
        if contender.kind == "ours":
            return self.python_facts["problem"]
        try:
            contender.start()
            if contender.name == "C io_uring":
                output([str(BUILD / "uring")])
        except BenchError as problem:
            said = str(problem)
            error = re.search(r"^.*error.*$", said, re.MULTILINE)
            return error[0] if error else said
        return None

    def epoll(self) -> Server:
        """The yardstick."""
        return self._native("C epoll", _compiled("epoll"))

    def uring(self) -> Server:
        """What the kernel gives to those who do without epoll."""
        return self._native("C io_uring", _compiled("uring"))

    def fasthttp(self) -> Server:
        """The yardstick's test: with Debian's fasthttp, which needs no network to build."""
        return self._native("Go fasthttp", _go("fasthttp"))

    def nethttp(self) -> Server:
        return self._native("Go net/http", _go("nethttp"))

    def nginx(self) -> Server:
        """What the static files are measured by; any Python starts it."""
        if not os.access(nginx.PROGRAM, os.X_OK):
            raise BenchError(f"{nginx.PROGRAM} is missing (Debian's package: nginx)")
        return Server("nginx", [sys.executable, "rivals/nginx.py"], {}, {self._cores.server})

    def fastserve(self, handler: str, everywhere: bool = False, **options: object) -> Server:
        """`everywhere`: on the load's core too; what the load costs there is lost to the server."""
        if self.python_facts["problem"]:
            raise BenchError(f"{self._python} has no fastserve: {self.python_facts['problem']}")
        cores = {self._cores.server, self._cores.load} if everywhere else {self._cores.server}
        name = " ".join(["fastserve", handler, *(f"{key}={value}" for key, value in options.items())])
        return Server(name, [self._python, "apps.py", handler, json.dumps(options)], {}, cores)

    def _native(self, name: str, program: str) -> Server:
        return Server(name, [program], {"GOMAXPROCS": "1"}, {self._cores.server})

    def _ours(self, threads: int = 1) -> Server:
        """Where nothing blocks, with as many workers as it takes by itself."""
        server = self.fastserve("shapes", **({"workers": threads} if threads > 1 else {}))
        server.name = "fastserve"
        return server

    def _sends_file(self) -> Server:
        """Whatever is asked, the handler of the shape /file."""
        server = self.fastserve("file")
        server.name = "fastserve send_file"
        return server

    def _rival(self, rival: Rival, threads: int = 1) -> Server:
        python = environment.python() or self._python
        return Server(rival.name, [python, "rivals/serve.py", rival.key, str(threads)], {}, {self._cores.server})


def _build(target: Path, source: Path, command: Callable[[str, str], list[str]],
           **environment: str) -> str:
    newest = max(path.stat().st_mtime for path in (source, *source.parent.glob("*.h")))
    if not target.exists() or target.stat().st_mtime < newest:
        BUILD.mkdir(exist_ok=True)
        output(command(str(source), str(target)), environment)
    return str(target)


def _compiled(name: str) -> str:
    return _build(BUILD / name, HERE / f"rivals/{name}.c",
                  lambda source, target: ["gcc", "-O2", "-Wall", "-Wextra", "-o", target, source])


def _go(name: str) -> str:
    return _build(BUILD / name, HERE / f"rivals/{name}/main.go",
                  lambda source, target: ["go", "build", "-o", target, source],
                  GOPATH="/usr/share/gocode", GO111MODULE="off", GOFLAGS="", GOCACHE=str(BUILD / "go-cache"))


_FIELDS = {"/query": {"X-Trace": "abc"},
           "/head": {"User-Agent": "Mozilla/5.0", "Accept-Language": "en-GB,en;q=0.9", "Cookie": "visits=2"}}
_ECHOED = bytes(range(256)) * 4
_TYPES = {"/json": shapes.JSON, "/echo": shapes.BINARY, "/1m": shapes.BINARY, "/file": shapes.BINARY,
          shapes.STATIC: shapes.BINARY}
_BODIES = {"/query": b"World 7 abc\n", "/head": b"11 14 8\n", "/echo": _ECHOED, "/1m": shapes.MEGABYTE,
           "/file": shapes.file_body(), shapes.STATIC: shapes.file_body()}
QUERY = "?name=World&page=7&sort=asc"


def ask(path: str) -> bytes:
    """The request of a shape."""
    target = path + QUERY if path == "/query" else path
    fields = {"Host": HOST, **_FIELDS.get(path, {})}
    if path == "/echo":
        fields["Content-Length"] = str(len(_ECHOED))
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    method, body = ("POST", _ECHOED) if path == "/echo" else ("GET", b"")
    return f"{method} {target} HTTP/1.1\r\n{head}\r\n".encode() + body


def _right(path: str, body: bytes, expected: bytes | None) -> bool:
    """JSON has the size and the meaning in common, not the spaces (and so not the note, which pads it)."""
    if expected is None and path == "/json":
        try:
            said = json.loads(body)
        except ValueError:
            return False
        return len(body) == 1024 and {**said, "note": ""} == {**shapes.DOCUMENT, "note": ""}
    return body == (_BODIES.get(path, BODY) if expected is None else expected)


def check(server: Server, path: str = "/", expected: bytes | None = None) -> set[str]:
    """Asks for one shape: the status, the type and the body must be right (the shape's, or `expected`).

    Gives the names of those of the four headers that the reply lacks.
    """
    with Client(server.port) as client:
        client.send(ask(path))
        reply = client.receive()
    kind = re.search(rb"\r\ncontent-type: *([^\r]*)", reply.head, re.IGNORECASE)
    said = kind[1].decode().lower().replace("; ", ";") if kind else None
    wanted = _TYPES.get(path, shapes.TEXT).replace("; ", ";")
    if reply.status != 200 or said != wanted or not _right(path, reply.body, expected):
        raise BenchError(f"{server.name} gives a wrong answer to {path}: {reply.head!r} {reply.body[:100]!r}")
    return HEADERS - reply.header_names


def pipelines(server: Server) -> bool:
    """Does it give one right reply for each of 16 requests that are sent at once?"""
    try:
        with Client(server.port, timeout=2) as client:
            client.send(request("/") * PIPELINED)
            replies: list[Reply] = [client.receive() for _ in range(PIPELINED)]
    except (BenchError, OSError):
        return False
    return all((reply.status, reply.body) == (200, BODY) for reply in replies)


_EXCUSED = {rival.name for rival in RIVALS}


def check_hello(server: Server) -> tuple[set[str], bool]:
    """The same answer from everyone; gives the headers that are missing, and whether the server pipelines.

    Only the rivals in Python may lack Server or Date, or fail to pipeline.
    """
    missing, able = check(server), pipelines(server)
    if server.name not in _EXCUSED and (missing or not able):
        raise BenchError(f"{server.name} does not pipeline" if not able else f"{server.name} does not send {missing}")
    return missing, able


def verify(names: Sequence[str]) -> Iterator[list[str]]:
    """Rows of a table: each contender with its answer to each shape, to pipelining, and its headers."""
    contenders = Contenders(sys.executable, choose_cores())
    yield ["contender", *shapes.PATHS, "pipelines", "lacks"]
    for contender in contenders.all():
        if names and contender.name not in names:
            continue
        problem = contenders.problem(contender)
        if problem:
            yield [contender.name, f"problem: {problem}"]
            continue
        row, lacks, able = [contender.name], set(), False
        try:
            with contender.start(threads=4) as server:
                for path in shapes.PATHS:
                    if path not in contender.paths:
                        row.append("absent")
                        continue
                    try:
                        lacks |= check(server, path)
                        row.append("ok")
                    except (BenchError, OSError) as trouble:
                        row.append("wrong")
                        print(f"{contender.name} {path}: {trouble}", file=sys.stderr)
                able = "/" in contender.paths and pipelines(server)
        except BenchError as trouble:
            row = [contender.name, f"problem: {trouble}"]
        yield [*row, "yes" if able else "no", " ".join(sorted(lacks)) or "-"]


if __name__ == "__main__":
    for line in verify(sys.argv[1:]):
        print("  ".join([line[0].ljust(20), *(cell.ljust(6) for cell in line[1:])]), flush=True)
