"""The bench's one command: runs the cases, prints their tables, verdicts and goals, keeps them in results/.

Knows the command line; the cases are in cases.py, the goals in goals.py. Run: python bench/run.py [--quick]
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
from dataclasses import asdict

from case import FAIL, INVALID, Bench, Case, Verdict
from cases import CASES
from contenders import Contenders
from goals import MISSED, standings
from machine import machine, versions
from measure import HERE, BenchError, Effort, choose_cores
from report import case_paper, goal_paper
from rivals import environment

BUSY = 1.0      # load average beyond which the figures are not worth keeping


def options() -> argparse.Namespace:
    names = [case.name for case in CASES]
    parser = argparse.ArgumentParser(description="Measures fastserve against its goals and against others.")
    parser.add_argument("--only", metavar="CASE", action="append", choices=names,
                        help="run this case (repeatable): " + ", ".join(names))
    parser.add_argument("--contenders", metavar="NAME,...", help="compare fastserve with these alone")
    parser.add_argument("--quick", action="store_true",
                        help="2 rounds of 1 s, not warmed, of what the goals compare: a smoke test, not a result")
    parser.add_argument("--rounds", type=int, help="rounds for each contender (default 5)")
    parser.add_argument("--seconds", type=int, help="length of a round (default 2)")
    parser.add_argument("--python", default=sys.executable, help="an interpreter with fastserve installed")
    return parser.parse_args()


def chosen_names(contenders: Contenders, text: str | None) -> frozenset[str] | None:
    if text is None:
        return None
    names = {name.strip() for name in text.split(",")}
    if unknown := names - (known := {one.name for one in contenders.all()}):
        raise BenchError(f"no contender is called {', '.join(sorted(unknown))}; there are {', '.join(sorted(known))}")
    return frozenset(names)


def attempt(case: Case, bench: Bench) -> Verdict:
    """A case that breaks off has failed; the others still run."""
    try:
        return case.run(bench)
    except (BenchError, OSError, subprocess.SubprocessError) as problem:
        return Verdict(FAIL, f"broke off: {problem}")


def record(case: Case, verdict: Verdict, bench: Bench, circumstances: dict) -> dict:
    """What is kept of a case: all that the tables, the goals and the charts are made of."""
    now = datetime.datetime.now(datetime.UTC)
    return {
        "date": now.isoformat(timespec="seconds"), "case": case.name, "title": case.title, "goal": case.goal,
        "state": verdict.state, "figure": verdict.figure, "numbers": verdict.numbers,
        "effort": {**asdict(bench.effort), "quick": bench.quick},
        "rounds": {one.name: [asdict(each) for each in one.rounds] for one in verdict.series},
        "kinds": {one.name: one.kind for one in bench.contenders.all()},
        "failures": verdict.failures, "skipped": verdict.skipped, "left_out": verdict.left_out,
        "lacking": verdict.lacking, **circumstances,
    }


def keep(line: dict) -> None:
    results = HERE / "results"
    results.mkdir(exist_ok=True)
    with (results / f"{line['date'][:10]}.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")


def draw_charts() -> None:
    """In the environment of the rivals, where matplotlib is; the report says so if it is not."""
    newest = max((HERE / "results").glob("*.jsonl"))
    subprocess.run([environment.python() or sys.executable, str(HERE / "report.py"), str(newest)],
                   stdout=subprocess.DEVNULL, check=False)


def main() -> int:
    chosen = options()
    if not shutil.which("wrk"):
        raise BenchError("wrk is missing (Debian's package: wrk)")
    effort = Effort(chosen.rounds or (2 if chosen.quick else 5), chosen.seconds or (1 if chosen.quick else 2))
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    cores = choose_cores()
    python = os.path.abspath(shutil.which(chosen.python) or chosen.python)
    contenders = Contenders(python, cores)
    bench = Bench(contenders, python, cores, effort, chosen_names(contenders, chosen.contenders), chosen.quick)
    circumstances = {"machine": machine(cores), "versions": versions(contenders)}
    print("\n".join(", ".join(f"{name} {value}" for name, value in facts.items())
                    for facts in circumstances.values()))

    if circumstances["machine"]["load_average"] > BUSY:
        print("This machine is busy with other things: these are no results.")

    results, unmeasured = {}, []
    for case in CASES:
        if chosen.only and case.name not in chosen.only:
            continue
        if chosen.quick and not (case.quick or chosen.only):
            unmeasured.append(case.name)
            continue
        print(f"\n{case.name}: {case.title}", flush=True)
        line = results[case.name] = record(case, attempt(case, bench), bench, circumstances)
        keep(line)
        print(case_paper(line), flush=True)
    if unmeasured:
        print(f"\n--quick leaves out: {', '.join(unmeasured)}")
    print("\n" + goal_paper(results))
    if not (chosen.quick or chosen.only or chosen.contenders):
        draw_charts()
    return int(any(line["state"] in (FAIL, INVALID) for line in results.values())
               or any(row.state == MISSED for row in standings(results)))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except BenchError as problem:
        sys.exit(f"bench: {problem}")
