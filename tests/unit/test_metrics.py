"""Histograms and the text of Prometheus, against their definitions.

Knows: `_probe.Times`. Never sees: a server. Invariant: a time is counted in the first bucket whose bound is not
below it.
"""

import random

import _probe
import pytest

BOUNDS = [2.0**n / 1e9 for n in range(10, 35)]


def expected(times: list[int]) -> list[int]:
    return [sum(max(t, 0) <= 2**n for t in times) for n in range(10, 35)] + [len(times)]


@pytest.mark.parametrize("times", [
    [], [0], [-5], [1], [1023], [1024], [1025], [2048], [2049], [2**34], [2**34 + 1], [2**62], [3, 5_000, 2**22, 2**40],
])
def test_buckets(times: list[int]) -> None:
    h = _probe.Times()
    for t in times:
        h.note(t)
    assert h.buckets() == expected(times)


def test_random_times(chance: random.Random) -> None:
    times = [chance.getrandbits(chance.randrange(1, 45)) for _ in range(3000)]
    h = _probe.Times()
    for t in times:
        h.note(t)
    assert h.buckets() == expected(times)
    lines = h.text().splitlines()
    assert lines[:2] == ["# HELP t_seconds Times.", "# TYPE t_seconds histogram"]
    for line, bound, count in zip(lines[2:27], BOUNDS, expected(times), strict=False):
        name, value = line.split(" ")
        assert float(name.removeprefix('t_seconds_bucket{le="').removesuffix('"}')) == pytest.approx(bound, abs=0)
        assert int(value) == count
    assert lines[27] == f't_seconds_bucket{{le="+Inf"}} {len(times)}'
    assert lines[28] == f"t_seconds_sum {sum(times) // 10**9}.{sum(times) % 10**9:09}"
    assert lines[29:] == [f"t_seconds_count {len(times)}"]


def test_a_sum_of_two() -> None:
    a, b = _probe.Times(), _probe.Times()
    a.note(5)
    b.note(5_000)
    b.note(2**50)
    a.add(b)
    assert a.buckets() == expected([5, 5_000, 2**50])
