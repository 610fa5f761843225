"""Latency at one absolute rate, the same for everyone: half of what fasthttp answers at most.

Knows the open-loop generator, which times every reply from the moment its request was due.
"""

from __future__ import annotations

from dataclasses import dataclass

import openloop
from case import INVALID, SKIPPED, Bench, Case, Verdict
from contenders import BODY
from measure import BenchError, Effort, Round, Server, interleave, running
from tables import EPOLL, FASTHTTP, HELLO, OURS, POOLED, QUICK_PYTHON, Table, run, says

TRIES = 3


@dataclass
class OpenRound(Round):
    """Also what a closed loop cannot tell. `behind_ms`: how late the generator itself was, at its p99."""

    p90_ms: float
    p999_ms: float
    behind_ms: float


@dataclass(frozen=True)
class FixedRate(Table):
    rate: int = 0

    def load(self, server: Server, effort: Effort) -> Round:
        """The generator refuses a run in which it was disturbed itself; there are few of those on a quiet machine."""
        for tries_left in reversed(range(TRIES)):
            before = server.cpu_ns()
            try:
                done = openloop.run(server.port, self.path, self.rate, effort.seconds, self.connections)
                break
            except BenchError:
                server.check_alive()
                if not tries_left:
                    raise
        cost = server.cpu_ns() - before
        if done.errors:
            raise BenchError(f"{done.errors} of {done.sent} requests failed")
        warm_up = self.rate     # a second of it, which is not in the report
        return OpenRound(
            cpu_us=cost / 1000 / (done.sent + warm_up), requests_per_s=done.sent / effort.seconds,
            p50_ms=done.p50_us / 1000, p99_ms=done.p99_us / 1000,
            p90_ms=done.p90_us / 1000, p999_ms=done.p999_us / 1000, behind_ms=done.behind_p99_us / 1000)


def fixed_rate(bench: Bench) -> Verdict:
    fasthttp = next(one for one in bench.contenders.all() if one.name == FASTHTTP)
    if problem := bench.contenders.problem(fasthttp):
        return Verdict(SKIPPED, f"the rate is half of fasthttp's: {problem}")
    with running([fasthttp.start()]) as servers:
        most = interleave(servers, bench.effort, HELLO)[0].median("requests_per_s")
    table = FixedRate(
        CASE.name, CASE.title, HELLO, says(BODY), limits=True, rate=int(most / 2),
        only=(EPOLL, FASTHTTP, OURS, POOLED, *QUICK_PYTHON), in_quick=(FASTHTTP,))
    verdict = run(table, bench)
    if FASTHTTP in verdict.failures and OURS in verdict.failures:
        verdict.state = INVALID     # it is the machine, or the generator
    verdict.numbers = {"rate": table.rate, "fasthttp_at_most": most}
    verdict.figure += f"; at {table.rate:,.0f} requests/s"
    return verdict


CASE = Case("fixed-rate", "hello at half of fasthttp's highest rate, open loop, 64 connections", "", fixed_rate)
