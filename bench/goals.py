"""What fastserve must reach, each a figure computed from the rounds that a run has kept.

Knows results as they stand in results/*.jsonl, one for each case; nothing of how they were measured. A figure is
compared as it is, not as it is printed, and "best" and "lowest" hold only if everyone listed was compared.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace

from measure import Series

OURS = "fastserve"
OUR_SEND_FILE = "fastserve send_file"
REACHED, MISSED, UNKNOWN = "reached", "NOT REACHED", "not measured here"
YARDSTICK = "C epoll"
YARDSTICK_TEST = "Go fasthttp"
YARDSTICK_MARGIN = 1.03     # the test's cost over the yardstick's, below which it is no yardstick
BEST_PYTHON = "the best other Python server"
_COMPARE = {"<=": operator.le, ">=": operator.ge}
_LOW_IS_GOOD = {"cpu_us", "p99_ms"}

Results = Mapping[str, dict]    # the latest line of each case


@dataclass(frozen=True)
class Standing:
    """A goal and how far we are: one row of the table at the end."""

    words: str
    wanted: str
    figure: str
    state: str
    why: str


class _Unknown(Exception):
    """Its text is why there is no figure."""


class _Failed(Exception):
    """fastserve itself failed in the case; its text is how."""


def series_of(line: dict) -> dict[str, Series]:
    """Those who have all their rounds; who failed is not among them."""
    return {name: Series(name, [SimpleNamespace(**one) for one in rounds])
            for name, rounds in line["rounds"].items() if rounds and name not in line.get("failures", {})}


def _result(results: Results, case: str, ours: str = OURS) -> dict:
    if case not in results:
        raise _Unknown(f"{case} was not run")
    line = results[case]
    if line["state"] in ("SKIPPED", "INVALID"):
        raise _Unknown(line["figure"])
    if ours in line.get("failures", {}):
        raise _Failed(f"{ours} failed: {line['failures'][ours]}")
    if line["state"] == "FAIL" and not (line["rounds"] or line["numbers"]):
        raise _Failed(line["figure"])
    return line


def _series(line: dict, name: str) -> Series:
    series = series_of(line)
    if name in series:
        return series[name]
    if name in line.get("left_out", ()):
        raise _Unknown(f"{name} was left out")
    if not series:
        raise _Unknown(line["figure"])
    reason = (line.get("skipped", {}) | line.get("failures", {})).get(name, "took no part")
    raise _Unknown(f"{name}: {reason}")


def _complete(line: dict, state: str) -> tuple[str, str]:
    """A success against some of the Python servers listed is not yet one. Who failed was compared."""
    absent = [name for name in line["skipped"] if line["kinds"][name] == "python"]
    left_out = sum(line["kinds"][name] == "python" for name in line["left_out"])
    if left_out:
        absent.append(f"{left_out} that were left out")
    if absent and state == REACHED:
        return UNKNOWN, f"ahead of those measured; not compared: {', '.join(absent)}"
    return state, f"not compared: {', '.join(absent)}" if absent else ""


@dataclass(frozen=True)
class Ratio:
    """Our median ratio, of neighbouring rounds, to one other or to the best of the Python servers.

    `ours`: which of ours, where there are two.
    """

    words: str
    case: str
    quantity: str
    other: str
    sign: str
    limit: float
    ours: str = OURS

    @property
    def wanted(self) -> str:
        return f"{self.sign} {self.limit:.2f}"

    def stand(self, results: Results) -> tuple[str, str, str]:
        line = _result(results, self.case, self.ours)
        ours = _series(line, self.ours)
        other = self._best(line) if self.other == BEST_PYTHON else _series(line, self.other)
        ratio = ours.ratio(other, self.quantity)
        state = REACHED if _COMPARE[self.sign](ratio, self.limit) else MISSED
        if self.other != BEST_PYTHON:
            doubt = _doubt(results) if self.other == YARDSTICK else ""
            return _unrounded(ratio, self.limit), UNKNOWN if doubt and state == REACHED else state, doubt
        state, why = _complete(line, state)
        return f"{_unrounded(ratio, self.limit)} ({other.name})", state, why

    def _best(self, line: dict) -> Series:
        series = [one for name, one in series_of(line).items() if line["kinds"].get(name) == "python"]
        if not series:
            raise _Unknown("no other Python server was measured")
        best = min if self.quantity in _LOW_IS_GOOD else max
        return best(series, key=lambda one: one.median(self.quantity))


@dataclass(frozen=True)
class Lowest:
    """Nobody of these kinds, and nobody of these names, has a lower median."""

    words: str
    case: str
    quantity: str
    others: Sequence[str]
    wanted: str = "yes"

    def stand(self, results: Results) -> tuple[str, str, str]:
        line = _result(results, self.case)
        ours = _series(line, OURS).median(self.quantity)
        rivals = {name: one.median(self.quantity) for name, one in series_of(line).items()
                  if line["kinds"].get(name) == "python" or name in self.others}
        missing = [name for name in self.others if name not in rivals]
        if not rivals or missing:
            raise _Unknown(f"{', '.join(missing) or 'nobody else'} was not measured")
        best = min(rivals, key=rivals.__getitem__)
        state, why = _complete(line, REACHED if ours < rivals[best] else MISSED)
        return f"{ours:.2f}, {best} {rivals[best]:.2f}, of {len(rivals) + 1}", state, why


@dataclass(frozen=True)
class Number:
    """A number that a case reports."""

    words: str
    case: str
    key: str
    sign: str
    limit: float
    unit: str = ""

    @property
    def wanted(self) -> str:
        return f"{self.sign} {self.limit:g}{self.unit}"

    def stand(self, results: Results) -> tuple[str, str, str]:
        line = _result(results, self.case)
        if self.key not in line["numbers"]:
            raise _Unknown(line["figure"])
        value = line["numbers"][self.key]
        state = REACHED if _COMPARE[self.sign](value, self.limit) else MISSED
        return f"{_unrounded(value, self.limit)}{self.unit}", state, ""


def _unrounded(value: float, limit: float) -> str:
    """Two digits, or as many as it takes to show on which side of the limit it is."""
    digits = 2
    while digits < 9 and value != limit and math.isclose(round(value, digits), limit, abs_tol=1e-12):
        digits += 1
    return f"{value:.{digits}f}"


def _doubt(results: Results) -> str:
    """Why the yardstick may be none: then we have not reached it."""
    try:
        line = _result(results, "hello-64")
        margin = _series(line, YARDSTICK_TEST).ratio(_series(line, YARDSTICK), "cpu_us")
    except (_Unknown, _Failed) as reason:
        return f"the yardstick was not tested: {reason}"
    if margin < YARDSTICK_MARGIN:
        return f"the yardstick is invalid: {YARDSTICK_TEST} costs {margin:.2f} times {YARDSTICK}"
    return ""


GOALS = (
    Ratio("hello, keep-alive, 64 connections: CPU a request / bare C epoll", "hello-64", "cpu_us", YARDSTICK,
          "<=", 1.00),
    Ratio("the same / Go's fasthttp", "hello-64", "cpu_us", "Go fasthttp", "<=", 0.88),
    Ratio("the same / the best other Python server", "hello-64", "cpu_us", BEST_PYTHON, "<=", 0.88),
    Lowest("the same: lowest of all Python servers and fasthttp", "hello-64", "cpu_us", ("Go fasthttp",)),
    Ratio("16 pipelined: requests/s / Go's fasthttp", "pipelined-16", "requests_per_s", "Go fasthttp", ">=", 1.00),
    Ratio("16 pipelined: requests/s / the best other Python server", "pipelined-16", "requests_per_s", BEST_PYTHON,
          ">=", 2),
    Ratio("one request a connection: CPU a request / Go's fasthttp", "close", "cpu_us", "Go fasthttp", "<=", 0.92),
    Ratio("POST echo 1 KiB: CPU a request / Go's fasthttp", "echo-1k", "cpu_us", "Go fasthttp", "<=", 0.90),
    Ratio("browser's head, three fields read: CPU a request / bare C epoll", "head", "cpu_us", YARDSTICK, "<=", 1.20),
    *(Ratio(f"a file of 64 KiB by {way}: CPU a request / {whose} static files", "static-64k", "cpu_us", other, "<=",
            limit, ours)
      for way, ours in (("send_file", OUR_SEND_FILE), ("StaticFiles", OURS))
      for whose, other, limit in (("nginx's", "nginx", 1.15), ("aiohttp's", "aiohttp static", 0.67),
                                  ("granian's", "granian static", 0.67))),
    Ratio("1% sleeping 20 ms: requests/s / granian WSGI", "some", "requests_per_s", "granian WSGI", ">=", 1.6),
    Ratio("all sleeping 10 ms: requests/s / granian WSGI", "sleep", "requests_per_s", "granian WSGI", ">=", 0.95),
    Ratio("p99 at half of fasthttp's highest rate / fasthttp's", "fixed-rate", "p99_ms", "Go fasthttp", "<=", 1.10),
    *(Ratio(f"pool / thread per request{how}, {kind}: requests/s", case, "requests_per_s", f"ThreadingHTTPServer{how}",
            ">=", 30)
      for kind, case in (("keep-alive", "blog-keep-alive"), ("one request a connection", "blog-close"))
      for how in ("", " at once")),
    Number("free-threaded, 200 us of computing: 2 reactors / 1", "in-parallel", "speed", ">=", 1.7),
    Number("start to first answer, beyond `python -c pass`", "start", "more_ms", "<=", 150, " ms"),
    Number("memory, 64 workers, idle, beyond a bare interpreter", "memory", "more_mib", "<=", 12, " MiB"),
)
FREE_THREADED = {"in-parallel"}     # the others are goals of a build with a GIL


def standings(results: Results) -> list[Standing]:
    """Every goal, in the same order, whatever came of it."""
    rows = []
    for goal in GOALS:
        try:
            if goal.case in results:
                _check_build(goal.case, results[goal.case])
            figure, state, why = goal.stand(results)
        except _Unknown as reason:
            figure, state, why = "-", UNKNOWN, str(reason)
        except _Failed as how:
            figure, state, why = "-", MISSED, str(how)
        rows.append(Standing(goal.words, goal.wanted, figure, state, why))
    return rows


def _check_build(case: str, line: dict) -> None:
    if "free-threaded" in line["versions"]["python"] and case not in FREE_THREADED:
        raise _Unknown("a goal of the build with a GIL")
