"""The parser and the writer of replies alone. Times are of one head.

How the parser stands beside others, bench/parse.py says.
"""

from __future__ import annotations

from typing import Any

import pytest
from micro import shapes
from micro.timer import PerRequest

TIMES = 100_000
ROUNDS = 9
FIELDS = b"Cache-Control: no-store\r\nVary: Accept-Encoding\r\nX-Request-Id: 0123456789abcdef\r\n"


@pytest.mark.benchmark(timer=PerRequest(TIMES), group="parser")
@pytest.mark.parametrize("name", ["HELLO", "GET", "POST", "BROWSER"])
def test_parser(benchmark: Any, name: str) -> None:
    import _words

    head = getattr(shapes, name).partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
    benchmark.pedantic(_words.parse, (head, TIMES), rounds=ROUNDS, warmup_rounds=1)


@pytest.mark.benchmark(timer=PerRequest(TIMES), group="writer of replies")
@pytest.mark.parametrize(("body", "fields"), [
    pytest.param(b"Hello, World!\n", b"", id="hello"),
    pytest.param(b"Hello, World!\n", FIELDS, id="three fields more"),
    pytest.param(b"x" * 1024, b"", id="1 KiB"),
])
def test_writer(benchmark: Any, body: bytes, fields: bytes) -> None:
    import _words

    reply = benchmark.pedantic(_words.write, (body, fields, TIMES), rounds=ROUNDS, warmup_rounds=1)
    shapes.Shape("written", b"", shapes.hello, body).check(reply)
    assert fields in reply
