"""The cases that all contenders run: what is asked of them, what the right answer is, one round after another.

Knows the shapes of requests and replies; nothing of how a server is started or pinned, and no goal.
"""

from __future__ import annotations

import contextlib
import functools
import json
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from case import FAIL, MEASURED, SKIPPED, Bench, Case, Verdict
from client import Client, Reply, dripping, request
from contenders import BODY, HEADERS, PIPELINED, Contender
from measure import CONNECTIONS, BenchError, Effort, Round, Series, Server, load
from rivals import shapes

OURS = "fastserve"
OUR_THREADS = 72            # for handlers that block
RIVALS_THREADS = 64
HEAD_SIZE = 700
DRIPPERS = 200
FASTHTTP = "Go fasthttp"
EPOLL = "C epoll"
POOLED = "granian WSGI"     # the rival whose pool of threads is the one to beat
THREAD_PER_REQUEST = "ThreadingHTTPServer"
AT_ONCE = "ThreadingHTTPServer at once"     # it collects a reply and sends it whole
PROCESS_PER_REQUEST = "ForkingHTTPServer"
BLOG = OURS, THREAD_PER_REQUEST, AT_ONCE, PROCESS_PER_REQUEST
QUICK_PYTHON = "freastal", "weft"
QUICK_STATIC = "nginx", "fastserve send_file", "aiohttp static", "granian static"
SETTLE = 0.1                # seconds for what the round before has left: connections that ended
WARM_UP = Effort(rounds=1, seconds=1)
PORTS_REST = 1.0            # seconds after which the kernel uses a port again that a connection has left

# What breaks a contender's measurement, but not the case. ValueError: a reply that is not HTTP.
TROUBLE = (BenchError, OSError, subprocess.SubprocessError, ValueError)

Judge = Callable[[Reply], bool]


def _browsers_head() -> tuple[bytes, Judge]:
    """What a browser sends, its cookie filled up to the size; the reply tells the lengths of three fields."""
    agent = "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/142.0.0.0 Safari/537.36"
    language = "en-GB,en;q=0.9,de;q=0.8"

    def message(cookie: str) -> bytes:
        return request(
            "/head",
            "Connection: keep-alive",
            'sec-ch-ua: "Chromium";v="142", "Not_A Brand";v="99"',
            "sec-ch-ua-mobile: ?0",
            'sec-ch-ua-platform: "Linux"',
            "Upgrade-Insecure-Requests: 1",
            f"User-Agent: {agent}",
            "Accept: text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8",
            "Sec-Fetch-Site: none",
            "Sec-Fetch-Mode: navigate",
            "Sec-Fetch-User: ?1",
            "Sec-Fetch-Dest: document",
            "Accept-Encoding: gzip, deflate, br",
            f"Accept-Language: {language}",
            f"Cookie: {cookie}",
        )

    cookie = "session=" + "0123456789abcdef" * 8
    cookie = cookie[:len(cookie) + HEAD_SIZE - len(message(cookie))]
    return message(cookie), says(f"{len(agent)} {len(language)} {len(cookie)}\n".encode())


def says(body: bytes) -> Judge:
    return lambda reply: reply.body == body


def _is_json(reply: Reply) -> bool:
    return len(reply.body) == 1024 and isinstance(json.loads(reply.body), dict)


def _echo(size: int) -> tuple[bytes, Judge]:
    body = b"0123456789abcdefghijklmnopqrstuv" * (size // 32)
    return request("/echo", body=body), says(body)


HELLO = request("/")
HEAD, HEAD_IS_RIGHT = _browsers_head()


@contextlib.contextmanager
def _nothing(server: Server) -> Iterator[None]:
    yield


@dataclass(frozen=True)
class Table:
    """One request for all contenders, and how it is sent. The shape is its path."""

    name: str
    title: str
    message: bytes
    right: Judge
    connections: int = CONNECTIONS
    pipelined: int = 1
    limits: bool = False        # the C responders take part: they know only hello, whatever is asked
    threads: bool = False       # with a pool of threads, for handlers that block
    closes: bool = False        # one request a connection
    meanwhile: Callable[[Server], contextlib.AbstractContextManager[None]] = _nothing
    only: Sequence[str] | None = None
    in_quick: Sequence[str] = ()     # who is compared in a quick run; nobody: it leaves the case out

    @property
    def path(self) -> str:
        return self.message.split(b" ", 2)[1].split(b"?")[0].decode()

    def check(self, server: Server, contender: Contender) -> list[str]:
        """Raises unless the answer is right; returns the usual header fields that it lacks."""
        right = says(BODY) if contender.kind == "limit" else self.right
        with Client(server.port) as client:
            client.send(self.message * self.pipelined)
            for _ in range(self.pipelined):
                reply = client.receive()
                if reply.status != 200 or not right(reply):
                    raise BenchError(f"a wrong answer: {reply.status}, {len(reply.body)} bytes {reply.body[:60]!r}")
            if self.closes and not client.closed():
                raise BenchError("keeps a connection open that was to be closed")
        return sorted(HEADERS - reply.header_names)

    def load(self, server: Server, effort: Effort) -> Round:
        if self.closes:
            time.sleep(PORTS_REST)
        with self.meanwhile(server):
            return load(server, effort.seconds, self.message * self.pipelined, self.connections)

    def case(self) -> Case:
        return Case(self.name, self.title, "", functools.partial(run, self), bool(self.in_quick))


def run(table: Table, bench: Bench) -> Verdict:
    if table.closes and not _ports_come_back():
        return Verdict(SKIPPED, "net.ipv4.tcp_tw_reuse is 0: the ports of closed connections would run out")
    verdict = Verdict(MEASURED, "")
    entrants = _entrants(table, bench, verdict)
    with contextlib.ExitStack() as stack:
        servers = {}
        for contender in entrants:
            if server := _start(table, contender, verdict):
                servers[contender.name] = server
                stack.callback(server.stop)
        verdict.series = _rounds(table, servers, bench, verdict.failures)
    ours = next((one for one in verdict.series if one.name == OURS), None)
    if ours is None:
        verdict.state = FAIL
        verdict.figure = "fastserve: " + (verdict.failures | verdict.skipped).get(OURS, "is not among the contenders")
    else:
        verdict.figure = f"fastserve {ours.median('cpu_us'):.2f} us, {ours.median('requests_per_s'):,.0f} requests/s"
    return verdict


def _entrants(table: Table, bench: Bench, verdict: Verdict) -> list[Contender]:
    """Those who take part; everyone else is in the verdict, with the reason."""
    entrants = []
    for contender in bench.contenders.all():
        name = contender.name
        knows = table.limits if contender.kind == "limit" else table.path in contender.paths
        if not knows or (table.only and name not in table.only):
            continue
        chosen = bench.names or (bench.quick and table.in_quick) or None
        if chosen is not None and name not in chosen and name != OURS:
            verdict.left_out.append(name)
        elif problem := bench.contenders.problem(contender):
            verdict.skipped[name] = problem
        else:
            entrants.append(contender)
    return entrants


def _start(table: Table, contender: Contender, verdict: Verdict) -> Server | None:
    """Started, checked, and stopped in its tracks until its turn: what some do when idle is not free."""
    pool = {"threads": OUR_THREADS if contender.kind == "ours" else RIVALS_THREADS} if table.threads else {}
    try:
        server = contender.start(**pool).__enter__()
    except TROUBLE as problem:
        verdict.skipped[contender.name] = _words(contender.name, problem)
        return None
    try:
        if lacking := table.check(server, contender):
            verdict.lacking[contender.name] = lacking
    except TROUBLE as problem:
        verdict.failures[contender.name] = _words(contender.name, problem)
        server.stop()
        return None
    server.pause()
    return server


def _rounds(table: Table, servers: dict[str, Server], bench: Bench, failures: dict[str, str]) -> list[Series]:
    """In turn, forwards and backwards; who fails is out, and the others go on."""
    series = {name: Series(name) for name in servers}

    def turn(name: str, effort: Effort) -> Round | None:
        servers[name].resume()
        time.sleep(SETTLE)
        try:
            done = table.load(servers[name], effort)
        except TROUBLE as problem:
            failures[name] = _words(name, problem)
            del series[name]
            servers[name].stop()
            return None
        servers[name].pause()
        return done

    if not bench.quick:
        for name in list(series):
            turn(name, WARM_UP)
    for number in range(bench.effort.rounds):
        for name in list(series) if number % 2 == 0 else reversed(list(series)):
            if done := turn(name, bench.effort):
                series[name].rounds.append(done)
    return list(series.values())


def _words(name: str, problem: Exception) -> str:
    return " ".join(str(problem).removeprefix(f"{name}: ").split())[:300] or type(problem).__name__


def _ports_come_back() -> bool:
    """Two seconds leave more closed connections behind than there are ports, unless the kernel uses them again."""
    return Path("/proc/sys/net/ipv4/tcp_tw_reuse").read_text().strip() != "0"


TABLES = (
    Table("hello-64", "hello, keep-alive, 64 connections", HELLO, says(BODY), limits=True,
          in_quick=(EPOLL, FASTHTTP, *QUICK_PYTHON)),
    Table("hello-1", "hello, keep-alive, 1 connection", HELLO, says(BODY), connections=1, limits=True),
    Table("hello-1000", "hello, keep-alive, 1,000 connections", HELLO, says(BODY), connections=1000, limits=True),
    Table("pipelined-16", "hello, 16 pipelined, 64 connections", HELLO, says(BODY), pipelined=PIPELINED, limits=True,
          in_quick=(FASTHTTP, *QUICK_PYTHON)),
    Table("close", "hello, one request a connection, 64 at a time", request("/", "Connection: close"), says(BODY),
          closes=True, in_quick=(FASTHTTP,)),
    Table("head", f"a browser's head of {HEAD_SIZE} bytes, three fields read by the handler", HEAD, HEAD_IS_RIGHT,
          limits=True, in_quick=(EPOLL,)),
    Table("query", "two query arguments and a header field read",
          request("/query?name=World&page=7&sort=asc", "X-Trace: 4bf92f3577b34da6"),
          says(b"World 7 4bf92f3577b34da6\n")),
    Table("json", "1 KiB of JSON, dumped for each request", request("/json"), _is_json),
    Table("echo-1k", "POST echo, 1 KiB", *_echo(1024), in_quick=(FASTHTTP,)),
    Table("echo-64k", "POST echo, 64 KiB", *_echo(65536)),
    Table("reply-1m", "a reply of 1 MiB", request("/1m"), says(shapes.MEGABYTE)),
    Table("file-64k", "a file of 64 KiB", request("/file"), says(shapes.file_body())),
    Table("static-64k", "a file of 64 KiB by each server's own static files", request(shapes.STATIC),
          says(shapes.file_body()), in_quick=QUICK_STATIC),
    Table("some", f"1 in 100 handlers sleeps 20 ms; {OUR_THREADS} workers, rivals {RIVALS_THREADS} threads",
          request("/some"), says(BODY), threads=True, in_quick=(POOLED,)),
    Table("sleep", f"every handler sleeps 10 ms; {OUR_THREADS} workers, rivals {RIVALS_THREADS} threads",
          request("/sleep"), says(BODY), threads=True, in_quick=(POOLED,)),
    Table("cpu", "every handler computes for some 200 us in Python", request("/cpu"), says(BODY)),
    Table("slow-clients",
          f"hello while {DRIPPERS} clients send one byte of a head a second; {OUR_THREADS} workers, rivals "
          f"{RIVALS_THREADS} threads",
          HELLO, says(BODY), limits=True, threads=True, meanwhile=lambda server: dripping(server.port, DRIPPERS)),
    Table("blog-keep-alive", "pool, thread per request, process per request: hello, keep-alive", HELLO, says(BODY),
          only=BLOG, in_quick=(THREAD_PER_REQUEST,)),
    Table("blog-close", "pool, thread per request, process per request: hello, one request a connection",
          request("/", "Connection: close"), says(BODY), closes=True, only=BLOG, in_quick=(THREAD_PER_REQUEST,)),
)
