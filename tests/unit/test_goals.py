"""The bench's table of goals: nothing is reached that was not compared, and nothing is hidden that was missed.

Knows: bench/goals.py, the lines of bench/results/, which of them count, and how percentiles are read.
Never sees: a server, a measurement.
"""

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest

BENCH = Path(__file__).resolve().parents[2] / "bench"
if not (BENCH / "goals.py").exists():
    pytest.skip("the bench is not part of this distribution", allow_module_level=True)

sys.path.insert(0, str(BENCH))

goals, measure, report = map(importlib.import_module, ("goals", "measure", "report"))

AGAINST_EPOLL, AGAINST_FASTHTTP, AGAINST_PYTHON, LOWEST = range(4)     # the first rows of the table
KINDS = {"C epoll": "limit", "Go fasthttp": "go", "fastserve": "ours", "wsgi": "python", "asgi": "python"}


def line_of(costs: dict[str, float], **others: Any) -> dict[str, Any]:
    """A case in which each contender has this cost."""
    rounds = {name: [{"cpu_us": cost, "requests_per_s": 1.0, "p50_ms": 1.0, "p99_ms": 1.0}]
              for name, cost in costs.items()}
    return {"state": "MEASURED", "figure": "-", "rounds": rounds, "kinds": KINDS, "numbers": {}, "failures": {},
            "skipped": {}, "left_out": [], "versions": {"python": "3.11"}, **others}


def stand(row: int, costs: dict[str, float], **others: Any) -> tuple[str, str]:
    """How the row ends, and its figure, when each contender has this cost in hello-64."""
    standing = goals.standings({"hello-64": line_of(costs, **others)})[row]
    return standing.state, standing.figure


ALL = {"C epoll": 7.0, "Go fasthttp": 8.0, "fastserve": 7.0, "wsgi": 9.0, "asgi": 20.0}


def test_reached() -> None:
    for row in (AGAINST_EPOLL, AGAINST_FASTHTTP, AGAINST_PYTHON, LOWEST):
        assert stand(row, ALL)[0] == goals.REACHED


def test_a_figure_is_not_rounded_to_its_goal() -> None:
    assert stand(AGAINST_EPOLL, ALL | {"fastserve": 7.00007}) == (goals.MISSED, "1.00001")


def test_best_and_lowest_need_everyone() -> None:
    some = {name: cost for name, cost in ALL.items() if name != "asgi"}
    for absent in ({"skipped": {"asgi": "no wheel"}}, {"left_out": ["asgi"]}):
        for row in (AGAINST_PYTHON, LOWEST):
            assert stand(row, some, **absent)[0] == goals.UNKNOWN
            assert stand(row, some | {"fastserve": 10.0}, **absent)[0] == goals.MISSED
    assert stand(LOWEST, some, failures={"asgi": "wrong answer"})[0] == goals.REACHED


def test_a_bad_yardstick_is_not_reached() -> None:
    assert stand(AGAINST_EPOLL, ALL | {"Go fasthttp": 7.1})[0] == goals.UNKNOWN
    assert stand(AGAINST_EPOLL, ALL | {"Go fasthttp": 7.1, "fastserve": 8.0})[0] == goals.MISSED


def test_our_failure_is_a_miss() -> None:
    others = {name: cost for name, cost in ALL.items() if name != "fastserve"}
    assert stand(LOWEST, others, failures={"fastserve": "no answer"}, state="FAIL")[0] == goals.MISSED
    assert stand(LOWEST, {}, state="FAIL", figure="broke off")[0] == goals.MISSED


def test_each_of_our_two_ways_of_sending_a_file_is_judged_by_itself() -> None:
    costs = {"nginx": 10.0, "aiohttp static": 20.0, "granian static": 20.0, goals.OUR_SEND_FILE: 11.0}

    def states(way: str, ours: dict[str, float], **others: Any) -> list[str]:
        rows = goals.standings({"static-64k": line_of(costs | ours, **others)})
        return [row.state for row in rows if row.words.startswith(f"a file of 64 KiB by {way}")]

    for way, ours in (("send_file", goals.OUR_SEND_FILE), ("StaticFiles", goals.OURS)):
        both = {goals.OURS: 13.0, goals.OUR_SEND_FILE: 13.0}
        assert states(way, both) == [goals.MISSED, goals.REACHED, goals.REACHED]
        assert states(way, both | {ours: 11.0}) == [goals.REACHED] * 3
        assert states(way, both | {ours: 14.0}) == [goals.MISSED] * 3
        assert states(way, both | {ours: 11.0}, failures={ours: "no answer"}) == [goals.MISSED] * 3


def test_every_goal_has_its_row() -> None:
    rows = goals.standings({})
    assert len(rows) == len(goals.GOALS)
    assert {row.state for row in rows} == {goals.UNKNOWN}


def test_the_last_result_counts_that_compares_most() -> None:
    def line(number: int, *names: str, quick: bool = False, failures: tuple[str, ...] = ()) -> str:
        return json.dumps({"case": "close", "number": number, "effort": {"quick": quick},
                           "rounds": {name: [] for name in names}, "failures": dict.fromkeys(failures, "")})

    def counts(*lines: str) -> int:
        number: int = report.latest(lines)["close"]["number"]
        return number

    assert counts(line(1, "a", "b"), line(2, "a", "b")) == 2
    assert counts(line(1, "a", "b"), line(2, "a")) == 1
    assert counts(line(1, "a"), line(2, "a", "b")) == 2
    assert counts(line(1, "a", "b"), line(2, "a", failures=("b",))) == 2
    assert counts(line(1, "a"), line(2, "a", "b", quick=True)) == 1


@pytest.mark.parametrize(("text", "milliseconds"), [
    ("413.00us", 0.413), ("  2.05ms", 2.05), ("  1.20s ", 1200), ("  1.50m ", 90_000), ("  1.00h ", 3_600_000),
])
def test_percentiles_of_wrk(text: str, milliseconds: float) -> None:
    """It fills units of one letter up with a space."""
    said = f"  Latency Distribution\n     50%    1.00us\n     99% {text}\n  10 requests in 1.00s, 1.00KB read\n"
    assert measure._percentile(said, 99) == pytest.approx(milliseconds)
