"""Who is measured: how each contender is built and started, and the answer that all of them owe.

Knows compilers and interpreters; nothing of the cases.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from client import Client, request
from measure import BUILD, HERE, BenchError, Cores, Server

BODY = b"Hello, World!\n"
HEADERS = {"server", "date", "content-type", "content-length"}
PIPELINED = 16

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

    @functools.cached_property
    def python_facts(self) -> dict:
        """The interpreter's version, whether it has a GIL, and the fastserve that is installed in it."""
        return json.loads(output([self._python, "-c", _FACTS]))

    def epoll(self) -> Server:
        """The yardstick."""
        program = _build(BUILD / "epoll", HERE / "rivals/epoll.c",
                         lambda source, target: ["gcc", "-O2", "-Wall", "-Wextra", "-o", target, source])
        return Server("C epoll", [program], {}, {self._cores.server})

    def fasthttp(self) -> Server:
        """The yardstick's test: with Debian's fasthttp, which needs no network to build."""
        program = _build(BUILD / "fasthttp", HERE / "rivals/fasthttp/main.go",
                         lambda source, target: ["go", "build", "-o", target, source],
                         GOPATH="/usr/share/gocode", GO111MODULE="off", GOFLAGS="",
                         GOCACHE=str(BUILD / "go-cache"))
        return Server("Go fasthttp", [program], {"GOMAXPROCS": "1"}, {self._cores.server})

    def fastserve(self, handler: str, everywhere: bool = False, **options: object) -> Server:
        """`everywhere`: on the load's core too; what the load costs there is lost to the server."""
        if self.python_facts["problem"]:
            raise BenchError(f"{self._python} has no fastserve: {self.python_facts['problem']}")
        cores = {self._cores.server, self._cores.load} if everywhere else {self._cores.server}
        name = " ".join(["fastserve", handler, *(f"{key}={value}" for key, value in options.items())])
        return Server(name, [self._python, "apps.py", handler, json.dumps(options)], {}, cores)


def _build(target: Path, source: Path, command: Callable[[str, str], list[str]],
           **environment: str) -> str:
    if not target.exists() or target.stat().st_mtime < source.stat().st_mtime:
        BUILD.mkdir(exist_ok=True)
        output(command(str(source), str(target)), environment)
    return str(target)


def check_hello(server: Server) -> None:
    """The same answer from everyone: the body, the four headers, one reply for each pipelined request."""
    with Client(server.port) as client:
        client.send(request("/") * PIPELINED)
        for _ in range(PIPELINED):
            reply = client.receive()
            if (reply.status, reply.body, reply.header_names) != (200, BODY, HEADERS):
                raise BenchError(f"{server.name} gives a wrong answer: {reply.head!r} {reply.body!r}")
