"""A timer for pytest-benchmark that counts by the request.

Never sees: what is timed.
"""

from __future__ import annotations

import time


class PerRequest:
    """A timer under which a function that does its work so many times takes the time of once."""

    def __init__(self, times: int) -> None:
        self.times = times

    def __call__(self) -> float:
        return time.perf_counter() / self.times
