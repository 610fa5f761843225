"""Instructions a request, by callgrind, against what is written down: a gate that noise cannot move.

    python bench/instructions.py                    checks: exit 1 if a case is above its record by more than 2%
    python bench/instructions.py --update           writes today's figures down
    python bench/instructions.py --profile CASE     the functions that cost most in one case

Knows: how to run micro/drive.py under valgrind and to read what it wrote. Never sees: the core, a socket, a clock.
Needs valgrind, a compiler, Cython and setuptools; no installed fastserve.

Each case runs on one thread, its clients in memory (micro/transport.h), N and 2N requests between marks: a figure is
the difference by N, so that start-up cancels. The records, instructions.json, are kept by compiler and Python;
where there is none for these, it is written down, and nothing fails.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import sysconfig
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from micro import compiled
from micro.drive import CASES, REQUESTS

HERE = Path(__file__).resolve().parent
RECORDS = HERE / "instructions.json"
TOLERANCE = 0.02
SHOWN = 10          # functions of a profile
HANG_LIMIT = 300    # seconds for one case
CALLS_SHOWN = ("recv", "send", "epoll_wait", "epoll_ctl", "clock")

# glibc chooses its memcpy by the processor: here the one that every x86-64 has, wherever the gate runs.
TUNABLES = "glibc.cpu.hwcaps=" + ",".join(f"-{name}" for name in (
    "AVX_Usable", "AVX2_Usable", "AVX512F_Usable", "AVX", "AVX2", "AVX512F", "AVX512VL", "AVX_Fast_Unaligned_Load",
    "ERMS", "FSRM"))


@dataclass(frozen=True)
class Counted:
    """One case: instructions a request by function, and system calls a request."""

    functions: Counter[str]
    calls: dict[str, float]

    @property
    def instructions(self) -> float:
        return self.functions.total()


def key() -> str:
    """Of the records: what else than our code decides how many instructions there are."""
    compiler = (sysconfig.get_config_var("CC") or "cc").split()[0]
    name = "clang" if "clang" in _said(compiler, "--version") else "gcc"
    python = ".".join(map(str, sys.version_info[:3])) + ("t" if sysconfig.get_config_var("Py_GIL_DISABLED") else "")
    return f"{name}-{_said(compiler, '-dumpversion').partition('.')[0]} {sys.implementation.name}-{python}"


def _said(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def count(case: str, place: Path) -> Counted:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "callgrind")
        done = subprocess.run(
            ["valgrind", "--tool=callgrind", f"--callgrind-out-file={out}", "--dump-before=*_mark",
             "--compress-strings=no", "--compress-pos=no", "--quiet",
             sys.executable, "-s", "-S", "-B", "-m", "micro.drive", case],
            capture_output=True, text=True, timeout=HANG_LIMIT, cwd=folder,
            env={"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", "GLIBC_TUNABLES": TUNABLES, "PYTHONHASHSEED": "0",
                 "PYTHONPATH": f"{place}:{HERE}"})
        if done.returncode:
            raise SystemExit(f"{case}: valgrind failed\n{done.stderr}")
        once, twice = (Counter(dict(own_costs(Path(f"{out}.{part}")))) for part in (2, 3))
    twice.subtract(once)
    functions = Counter({name: cost / REQUESTS for name, cost in twice.items()})
    return Counted(functions, json.loads(done.stdout))


def own_costs(path: Path) -> Iterator[tuple[str, int]]:
    """Function by function what it cost itself, of one dump of callgrind."""
    costs: Counter[str] = Counter()
    function, called = "", False
    for line in path.read_text().splitlines():
        if line.startswith("fn="):
            function = line[3:].partition("'")[0]       # behind it stands the depth of a recursion
        elif line.startswith("calls="):
            called = True           # the line that follows has the cost of the called function
        elif line[:1].isdigit():
            if not called:
                costs[function] += int(line.split()[1])
            called = False
    return iter(costs.items())


# What is asked for


def check(found: dict[str, Counted], recorded: dict[str, float]) -> bool:
    """Prints the table; True: nothing costs more than it did."""
    width = max(map(len, found))
    print(f"{'instructions a request':{width}} {'now':>9} {'recorded':>9} {'change':>8}   system calls a request")
    good = True
    for case, counted in found.items():
        now, before = counted.instructions, recorded.get(case)
        change = now / before - 1 if before else 0.0
        worse = change > TOLERANCE
        good = good and not worse
        calls = "  ".join(f"{name} {counted.calls[name]:.2f}" for name in CALLS_SHOWN if name in counted.calls)
        print(f"{case:{width}} {now:9.1f} {before or '-':>9} {f'{change:+.2%}' if before else 'new':>8}   {calls}"
              f"{'   TOO MANY' if worse else ''}")
    return good


def profile(case: str, counted: Counted) -> None:
    print(f"{case}: {counted.instructions:.1f} instructions a request")
    for function, cost in counted.functions.most_common(SHOWN):
        print(f"{cost:9.1f} {cost / counted.instructions:6.1%}  {function}")


def main() -> int:
    parser = argparse.ArgumentParser(description="instructions a request, against bench/instructions.json")
    ways = parser.add_mutually_exclusive_group()
    ways.add_argument("--update", action="store_true", help="write today's figures down")
    ways.add_argument("--profile", metavar="CASE", choices=CASES, help=f"one of: {'; '.join(CASES)}")
    chosen = parser.parse_args()
    place = compiled.place()
    if chosen.profile:
        profile(chosen.profile, count(chosen.profile, place))
        return 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = dict(zip(CASES, pool.map(lambda case: count(case, place), CASES), strict=True))
    records = json.loads(RECORDS.read_text()) if RECORDS.exists() else {}
    ours = records.get(key(), {})
    good = check(found, ours)
    if chosen.update or not ours:
        records[key()] = {case: round(counted.instructions, 1) for case, counted in found.items()}
        RECORDS.write_text(json.dumps(records, indent=2, sort_keys=True) + "\n")
        print(f"written down for {key()}")
        return 0
    if not good:
        print(f"a case costs more than {TOLERANCE:.0%} above its record for {key()}. If it is meant:"
              " python bench/instructions.py --update")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
