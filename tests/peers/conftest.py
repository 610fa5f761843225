"""How many requests a peer does, which seed it has, and the fronts of one test.

Knows: the fixtures of tests/live, which it lends. Never sees: a request.
Invariant: a front is stopped before the server behind it has to be empty, and says then what it forwarded.

FASTSERVE_PEERS         requests of each peer, 300 if not said otherwise; `make peers` does 10,000
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.live.conftest import Serve, many_descriptors, serve
from tests.peers.fronts import KINDS, OTHER_KINDS, Front

__all__ = ["many_descriptors", "serve"]


@pytest.fixture
def count() -> int:
    return int(os.environ.get("FASTSERVE_PEERS", "300"))


@pytest.fixture
def front(serve: Serve, tmp_path: Path) -> Iterator[Callable[[str, str], Front]]:
    """`front(kind, upstream)` starts one. Depends on `serve` in order to go first."""
    started: list[Front] = []

    def start(kind: str, upstream: str) -> Front:
        started.append((KINDS | OTHER_KINDS)[kind](tmp_path, upstream))
        return started[-1]

    yield start
    for one in started:
        one.stop()
