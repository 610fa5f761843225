"""Whole requests without sockets: the benches of fasthttp's server_timing_test.go, and the cases of the gate.

Times are of one request. `compiled` is a handler in C that fills the reply in: what the server itself costs. The
clients of fasthttp's benches read nothing and send on; a read gets 4,096 bytes of them, the end of a connection is
its client's, and a connection that ended is followed by a new one.
"""

from __future__ import annotations

from typing import Any

import pytest
from micro import shapes
from micro.timer import PerRequest

FILL = 4096
LEAST = 20_000      # requests of one round; a round of many connections is all the requests of each
ROUNDS = 7
GATE_REQUESTS = 20_480


def table() -> list[Any]:
    rows = []
    for clients, counts in ((1, (1, 2, 10, 10_000)), (10_000, (1, 2, 10, 100))):
        for each in counts:
            requests = clients * each if clients > 1 else LEAST
            mark = pytest.mark.benchmark(timer=PerRequest(requests), group=f"{clients} connections at a time")
            rows.append(pytest.param(clients, each, requests, marks=mark, id=f"{each}-{clients}"))
    return rows


@pytest.mark.parametrize(("clients", "each", "requests"), table())
@pytest.mark.parametrize("handler", ["compiled", "python"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_requests_per_connection(benchmark: Any, driver: Any, method: str, handler: str, clients: int, each: int,
                                 requests: int) -> None:
    from fastserve import _core

    request, python = {"GET": (shapes.GET, shapes.foobar), "POST": (shapes.POST, shapes.foobar_post)}[method]
    driven = driver(_core.static_handler if handler == "compiled" else python, request, clients=clients, fill=FILL,
                    each=each)
    shapes.Shape(method, request, python, b"Hello, world!").check(driven.reply)
    benchmark.pedantic(driven.run, (requests,), rounds=3 if requests > 100_000 else ROUNDS, warmup_rounds=1)


@pytest.mark.benchmark(timer=PerRequest(GATE_REQUESTS), group="the cases of the gate")
@pytest.mark.parametrize("shape", shapes.GATE, ids=lambda shape: shape.name)
def test_gate(benchmark: Any, driver: Any, shape: shapes.Shape) -> None:
    driven = driver(shape.handler, shape.request, **shape.drive)
    shape.check(driven.reply)
    shape.check(driven.last(), shape.drive.get("burst", 1))
    benchmark.pedantic(driven.run, (GATE_REQUESTS,), rounds=ROUNDS, warmup_rounds=1)
