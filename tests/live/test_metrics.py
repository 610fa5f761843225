"""`metrics_path`: what is counted and timed, as Prometheus reads it, whatever Python does.

Knows: the text format, read strictly. Never sees: how large a time is, only how many there are and how they add up.
Invariant: each scrape is a whole document in which every histogram is one.
"""

import json
import re
import sys
import threading
import time
from contextlib import ExitStack

import pytest
import test_leaving as leaving
from conftest import Reply, Running, Serve, request, wait_for, wait_until
from test_leaving import Run, connect, reply

from fastserve import RequestCtx

script = leaving.script

NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
SAMPLE = re.compile(rf'({NAME})(?:\{{([a-z]+)="([^"\\\n]*)"\}})? ([0-9]+(?:\.[0-9]+)?)')

Samples = dict[tuple[str, str], float]


def parse(text: str) -> tuple[Samples, dict[str, str]]:
    """Samples by name and label value, and the type of each family; every line has to be in its place."""
    samples: Samples = {}
    kinds: dict[str, str] = {}
    family = ""
    assert text.endswith("\n")
    lines = text.splitlines()
    for i, line in enumerate(lines):
        if line.startswith("# HELP "):
            family = line.split(" ", 3)[2]
            assert family not in kinds, f"{family} stands twice"
            assert lines[i + 1].startswith(f"# TYPE {family} ")
        elif line.startswith("# TYPE "):
            kinds[family] = line.split(" ")[3]
        else:
            match = SAMPLE.fullmatch(line)
            assert match, line
            name, _, label, value = match.groups()
            parts = [f"{family}_{part}" for part in ("bucket", "sum", "count")]
            assert name in (parts if kinds[family] == "histogram" else [family])
            assert (name, label or "") not in samples, line
            samples[name, label or ""] = float(value)
    for family, kind in kinds.items():
        assert kind in ("counter", "gauge", "histogram")
        assert kind != "counter" or family.endswith("_total")
        if kind == "histogram":
            buckets = [(float(label), value) for (name, label), value in samples.items() if name == f"{family}_bucket"]
            assert buckets == sorted(buckets)
            assert [value for _, value in buckets] == sorted(value for _, value in buckets)
            assert buckets[-1] == (float("inf"), samples[f"{family}_count", ""])
    return samples, kinds


def scraped(answer: Reply) -> Samples:
    assert (answer.status, answer.get("Content-Type")) == (200, "text/plain; version=0.0.4; charset=utf-8")
    assert answer.get("Cache-Control") == "no-store"
    return parse(answer.body.decode())[0]


def scrape(server: Running) -> Samples:
    return scraped(server.get("/metrics"))


def test_what_is_counted(serve: Serve) -> None:
    """Each request is in each of its phases' histograms once, and bytes are those that went over the wire."""
    def handler(ctx: RequestCtx) -> None:
        ctx.status = int(ctx.path[1:])
        ctx.set_body(b"x" * 100_000 if ctx.path == "/201" else b"small")

    server = serve(handler, workers=3, reactors=1, metrics_path="/metrics")
    wire = server.connect()
    sent = received = 0
    for path in ("/200", "/201", "/404", "/500", "/200"):
        raw = request("GET", path)
        wire.send(raw)
        wire.more()
        head = bytes(wire.pending[:wire.pending.index(b"\r\n\r\n") + 4])
        sent, received = sent + len(raw), received + len(head) + len(wire.read().body)
    bad = b"GET / HTTP/1.1\r\n\r\n"
    assert server.exchange(bad).status == 400
    wait_until(lambda: server.stats()["connections"] == 1, "the refused connection to go")
    before = server.stats()
    got = scrape(server)
    assert got["fastserve_requests_total", ""] == before["requests"] == 5
    assert got["fastserve_connections", ""] == 2
    assert got["fastserve_connections_accepted_total", ""] == 3
    assert [got["fastserve_responses_total", f"{k}xx"] for k in range(1, 6)] == [0, 3, 0, 2, 1]
    assert got["fastserve_refused_requests_total", "400"] == 1
    assert got["fastserve_probes_total", ""] == 0
    assert got["fastserve_received_bytes_total", ""] == sent + len(bad) + len(request("GET", "/metrics"))
    assert received < got["fastserve_sent_bytes_total", ""] < received + 400
    for phase in ("queue", "handler", "write"):
        assert got[f"fastserve_{phase}_seconds_count", ""] == 5, phase
    assert 1 <= got["fastserve_gil_seconds_count", ""] <= 5
    again = scrape(server)
    assert again["fastserve_probes_total", ""] == 1
    assert again["fastserve_sent_bytes_total", ""] > got["fastserve_sent_bytes_total", ""] + 5000


def test_phases_of_handlers_that_block(serve: Serve) -> None:
    """Off lease from the start, seized in the middle, streaming, answered late: each is counted once."""
    pause = threading.Event()

    def handler(ctx: RequestCtx) -> None:
        if ctx.path == "/slow":
            pause.wait(0.002)
        elif ctx.path == "/stream":
            ctx.stream(iter([b"a", b"b"]))
            return
        ctx.write(ctx.body)

    server = serve(handler, workers=8, reactors=2, metrics_path="/metrics")
    wires = [server.connect() for _ in range(8)]
    asked, began = 0, time.monotonic()
    for turn in range(30):
        for n, wire in enumerate(wires):
            wire.send(request("GET", "/stream" if n == 7 else "/slow" if turn % 10 < 7 else "/fast"))
        for wire in wires:
            assert wire.read().status == 200
            asked += 1
    wait_until(lambda: server.stats()["requests"] == asked, "the count of requests")
    got = scrape(server)
    assert got["fastserve_requests_total", ""] == asked
    for phase in ("queue", "handler"):
        assert got[f"fastserve_{phase}_seconds_count", ""] == asked, phase
    # Replies that left together are one, and what is streamed has no one moment.
    assert 0 < got["fastserve_write_seconds_count", ""] <= asked
    assert got["fastserve_handler_seconds_sum", ""] >= 0.002 * 100
    for phase in ("queue", "handler", "gil", "write"):      # no time began before the test, or never
        assert got[f"fastserve_{phase}_seconds_sum", ""] < asked * (time.monotonic() - began), phase


def test_bodies_that_are_streamed_in_are_bytes_received(serve: Serve) -> None:
    def handler(ctx: RequestCtx) -> None:
        ctx.write(str(sum(len(part) for part in ctx.body_stream)))

    server = serve(handler, workers=3, reactors=1, metrics_path="/metrics", stream_request_body=True)
    raw = request("POST", body=b"b" * 2_000_000)
    assert server.exchange(raw).body == b"2000000"
    wait_until(lambda: server.stats()["connections"] == 0, "the connection to go")
    assert scrape(server)["fastserve_received_bytes_total", ""] == len(raw) + len(request("GET", "/metrics"))


def test_head_and_pipelining(serve: Serve) -> None:
    server = serve(lambda ctx: ctx.write(ctx.path), workers=2, metrics_path="/metrics", health_path="/health")
    wire = server.connect().send(*(request(*line.split()) for line in (
        "GET /1", "HEAD /metrics", "GET /metrics", "GET /2", "GET /health", "GET /metrics")))
    assert wire.read().body == b"/1"
    assert int(wire.read(head=True).get("Content-Length") or 0) > 5000
    assert scraped(wire.read())["fastserve_probes_total", ""] == 1
    assert wire.read().body == b"/2"
    assert json.loads(wire.read().body)["status"] == "ok"
    assert scraped(wire.read())["fastserve_probes_total", ""] == 3


def test_while_every_worker_blocks(serve: Serve, release: threading.Event) -> None:
    entered = threading.Semaphore(0)

    def handler(ctx: RequestCtx) -> None:
        entered.release()
        wait_for(release)

    server = serve(handler, workers=3, reactors=1, metrics_path="/metrics", max_queue=2, queue_timeout=600)
    wires = [server.connect().send(request()) for _ in range(3)]
    for _ in wires:
        assert entered.acquire(timeout=20)
    waiting = [server.connect().send(request()) for _ in range(2)]
    wait_until(lambda: server.stats()["queued"] == 2, "two requests to wait")
    assert server.get().status == 503
    got = scrape(server)
    assert (got["fastserve_workers", "busy"], got["fastserve_workers", "idle"]) == (3, 0)
    assert (got["fastserve_queue_length", ""], got["fastserve_shed_total", "queue_full"]) == (2, 1)
    release.set()
    for wire in [*wires, *waiting]:
        assert wire.read().status == 200


def test_while_a_handler_holds_the_gil(script: Run) -> None:
    if not getattr(sys, "_is_gil_enabled", lambda: True)():
        pytest.skip("this Python has no GIL to hold")
    process = script("""
def handler(ctx):
    hold_the_gil()
Server(handler, workers=2, reactors=1, metrics_path="/metrics", health_path="/health", shutdown_timeout=0
       ).serve("127.0.0.1:0", ready=ready)
""")
    [address] = process.addresses()
    with ExitStack() as clients:
        held = clients.enter_context(connect(address))
        held.sendall(request())
        assert process.line() == "called"
        for path in ("/health", "/metrics") * 3:
            client = clients.enter_context(connect(address))
            client.sendall(request("GET", path))
            head, _, body = reply(client).partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 ")
            if path == "/health":
                assert json.loads(body)["busy"] >= 1
            else:
                assert parse(body.decode())[0]["fastserve_workers", "busy"] >= 1


def test_without_a_path_there_is_nothing(serve: Serve) -> None:
    server = serve(lambda ctx: ctx.write(ctx.path), workers=2)
    assert server.get("/metrics").body == b"/metrics"
    assert server.get("/").body == b"/"
