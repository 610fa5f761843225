"""Latency at a fixed rate, from the moment at which each request was due: builds and runs openloop.c.

Knows when its report must not be believed; nothing of HTTP, nor of who answers.
"""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass, fields

from measure import BUILD, HERE, BenchError

OWN_SHARE = 0.10        # of the p99: the generator's own delay beyond which the latencies are not the server's
OWN_FLOOR = 20.0        # microseconds of it that no generator of one thread does without: its sends take turns
LEAST_RATE = 0.99       # of the wanted rate: below it the server is saturated and its latencies only grow with time


@dataclass(frozen=True)
class OpenLoop:
    """What one run saw. Percentiles are at most 0.8% too high; `errors` are failed requests and lost connections."""

    p50_us: float
    p90_us: float
    p99_us: float
    p999_us: float
    max_us: float
    sent: int
    answered: int
    errors: int
    behind_p99_us: float


def run(port: int, path: str, rate: int, seconds: int, connections: int) -> OpenLoop:
    """A second of warm-up, then `rate` requests a second from this process's core, which it keeps busy."""
    return believe(report(port, path, rate, seconds, connections), rate)


def report(port: int, path: str, rate: int, seconds: int, connections: int) -> dict:
    """What the generator says, be it credible or not."""
    command = [build(), *map(str, (port, path, rate, seconds, connections))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 15)
    if done.returncode:
        raise BenchError(f"openloop: {done.stderr.strip() or f'status {done.returncode}'}")
    return json.loads(done.stdout)


def believe(said: dict, rate: int) -> OpenLoop:
    if said["rate"] < LEAST_RATE * rate:
        raise BenchError(f"{said['rate']:,.0f} instead of {rate:,} requests/s were answered: {said['errors']} errors, "
                         f"{said['unanswered']} without an answer, {said['lost']} not sent")
    for delay, what in (("behind_p99_us", "sent late"), ("unread_p99_us", "read late")):
        if said[delay] > max(OWN_SHARE * said["p99_us"], OWN_FLOOR):
            raise BenchError(f"the generator is too slow here: 1% was {what} by {said[delay]:.0f} us or more, "
                             f"of a p99 of {said['p99_us']:.0f} us")
    return OpenLoop(**{field.name: said[field.name] for field in fields(OpenLoop)})


def build() -> str:
    target, source = BUILD / "openloop", HERE / "openloop.c"
    if not target.exists() or target.stat().st_mtime < source.stat().st_mtime:
        BUILD.mkdir(exist_ok=True)
        command = ["gcc", "-O2", "-Wall", "-Wextra", "-o", str(target), str(source)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        if done.returncode:
            raise BenchError(f"gcc failed: {done.stderr.strip()}")
    return str(target)
