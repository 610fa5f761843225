"""The bench's one command: runs the cases, prints their tables and verdicts, keeps them in results/.

Knows the command line and the paper; the cases are in cases.py. Run: python bench/run.py [--quick]
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict

from cases import CASES, FAIL, INVALID, Case, Effort, Verdict
from contenders import Contenders
from machine import machine, versions
from measure import HERE, BenchError, Series, choose_cores

COLUMNS = (
    # heading, quantity, format, whether its ratio to the first contender's is of interest
    ("CPU us/request", "cpu_us", ".2f", True),
    ("requests/s", "requests_per_s", ",.0f", True),
    ("p50 ms", "p50_ms", ".2f", False),
    ("p99 ms", "p99_ms", ".2f", False),
)


def options() -> argparse.Namespace:
    names = [case.name for case in CASES]
    parser = argparse.ArgumentParser(description="Measures fastserve against its goals.")
    parser.add_argument("--only", metavar="CASE", action="append", choices=names,
                        help="run this case (repeatable): " + ", ".join(names))
    parser.add_argument("--quick", action="store_true", help="2 rounds of 1 s: a smoke test, not a result")
    parser.add_argument("--rounds", type=int, help="rounds for each contender (default 5)")
    parser.add_argument("--seconds", type=int, help="length of a round (default 2)")
    parser.add_argument("--python", default=sys.executable, help="an interpreter with fastserve installed")
    return parser.parse_args()


def table(series: Sequence[Series]) -> str:
    """Medians with (lowest-highest), and medians of the ratios to the first contender."""
    heading, rows = ["contender"], [[one.name] for one in series]
    for title, quantity, form, with_ratio in COLUMNS:
        heading += [title, "ratio"] if with_ratio else [title]
        for one, row in zip(series, rows, strict=True):
            low, high = min(one.values(quantity)), max(one.values(quantity))
            row.append(f"{one.median(quantity):{form}} ({low:{form}}-{high:{form}})")
            if with_ratio:
                row.append(f"{one.ratio(series[0], quantity):.2f}")
    lines = [heading, *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = [[cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines]
    return "\n".join("  " + "  ".join(line).rstrip() for line in padded)


def attempt(case: Case, contenders: Contenders, effort: Effort) -> Verdict:
    """A case that breaks off has failed; the others still run."""
    try:
        return case.run(contenders, effort)
    except (BenchError, OSError, subprocess.SubprocessError) as problem:
        return Verdict(FAIL, f"broke off: {problem}")


def keep(case: Case, verdict: Verdict, effort: Effort, circumstances: dict) -> None:
    now = datetime.datetime.now(datetime.UTC)
    line = {
        "date": now.isoformat(timespec="seconds"),
        "case": case.name, "goal": case.goal, "state": verdict.state, "figure": verdict.figure,
        "numbers": verdict.numbers, "effort": asdict(effort),
        "rounds": {one.name: [asdict(each) for each in one.rounds] for one in verdict.series},
        **circumstances,
    }
    results = HERE / "results"
    results.mkdir(exist_ok=True)
    with (results / f"{now:%Y-%m-%d}.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")


def main() -> int:
    chosen = options()
    if not shutil.which("wrk"):
        raise BenchError("wrk is missing (Debian's package: wrk)")
    effort = Effort(chosen.rounds or (2 if chosen.quick else 5), chosen.seconds or (1 if chosen.quick else 2))
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    cores = choose_cores()
    contenders = Contenders(os.path.abspath(shutil.which(chosen.python) or chosen.python), cores)
    circumstances = {"machine": machine(cores), "versions": versions(contenders)}
    print("\n".join(", ".join(f"{name} {value}" for name, value in facts.items())
                    for facts in circumstances.values()))

    verdicts = []
    for case in CASES:
        if chosen.only and case.name not in chosen.only:
            continue
        print(f"\n{case.name}: {case.title}", flush=True)
        verdict = attempt(case, contenders, effort)
        if verdict.series:
            print(table(verdict.series))
        print(f"  {verdict.state}: {verdict.figure} (goal: {case.goal})", flush=True)
        keep(case, verdict, effort, circumstances)
        verdicts.append(verdict)
    return int(any(verdict.state in (FAIL, INVALID) for verdict in verdicts))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except BenchError as problem:
        sys.exit(f"bench: {problem}")
