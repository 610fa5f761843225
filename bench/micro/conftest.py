"""Builds what is driven and puts it where it is found first; makes drivers.

Never sees: what is measured.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from micro import compiled

sys.path.insert(0, str(compiled.place()))
assert "fastserve" not in sys.modules, "an installed fastserve came first"


@pytest.fixture
def driver() -> Iterator[Callable[..., Any]]:
    """Makes a driver; its clock is the kernel's."""
    from fastserve import _core
    from fastserve.config import Config

    def make(handler: Any, request: bytes, **drive: int) -> Any:
        # A ring would pass the transport by.
        config = Config(workers=2, reactors=1, io_uring=False, concurrency=max(64, drive.get("clients", 1)),
                        max_queue=20_000)
        made.append(_core.Driver(handler, config.resolved(), request, **drive))
        return made[-1]

    made: list[Any] = []
    yield make
    made.clear()


@pytest.fixture
def in_handler(driver: Callable[..., Any]) -> Callable[[Callable[[Any], object], bytes], None]:
    """Runs a function as the handler of one request; what it raises, the test raises."""

    def run(function: Callable[[Any], object], request: bytes) -> None:
        failures: list[BaseException] = []
        calls: list[int] = []

        def handler(ctx: Any) -> None:
            calls.append(ctx.conn_id)
            if len(calls) == 2:             # the first is the driver's own
                try:
                    function(ctx)
                except BaseException as failure:
                    failures.append(failure)
                ctx.error("", 200)          # a reply like the first one

        driver(handler, request).run(1)
        assert len(calls) == 2
        if failures:
            raise failures[0]

    return run
