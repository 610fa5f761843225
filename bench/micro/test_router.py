"""What the router adds: a lookup, for any number of routes. Times are of one call that ends in a handler of nothing."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

PATHS = {
    "text": "/plain7",
    "one parameter": "/group7/items/1234",
    "two parameters": "/group7/items/1234/parts/5",
    "the rest": "/group7/files/some/where/else.txt",
    "nothing": "/group7/nothing",
}


@pytest.mark.benchmark(group="router")
@pytest.mark.parametrize("routes", [50, 500, 5000])
@pytest.mark.parametrize("path", PATHS)
def test_lookup(benchmark: Any, path: str, routes: int) -> None:
    from fastserve import Router

    router = Router()
    for number in range(routes // 5):
        for pattern in ("/plain{}", "/group{}", "/group{}/items/{{x}}", "/group{}/items/{{x}}/parts/{{y}}",
                        "/group{}/files/{{z:path}}"):
            router.get(pattern.format(number), lambda ctx: None)
    ctx = SimpleNamespace(path=PATHS[path], method="GET", not_found=lambda: None)
    benchmark(router, ctx)
