"""What fastserve costs before it has done anything: the time to its first answer, and its memory when idle.

Knows the command `fastserve` and the kernel's books on memory; measures no other server.
"""

from __future__ import annotations

import contextlib
import re
import statistics
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from case import FAIL, PASS, Bench, Case, Verdict
from client import Client
from contenders import BODY
from measure import HERE, HOST, BenchError, free_port, pinned

STARTS = 10
START_GOAL_MS = 150
WORKERS = 64
MEMORY_GOAL_MIB = 12
SETTLE = 1.0
WAIT = 10.0


def _command(bench: Bench, port: int) -> list[str]:
    script = Path(bench.python).with_name("fastserve")
    program = [str(script)] if script.exists() else [bench.python, "-m", "fastserve"]
    return [*program, "hello:hello", "--bind", f"{HOST}:{port}", "--workers", str(WORKERS)]


@contextlib.contextmanager
def _process(bench: Bench, command: Sequence[str]) -> Iterator[subprocess.Popen]:
    process = subprocess.Popen(command, cwd=HERE, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL, preexec_fn=pinned({bench.cores.server}))
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def _first_answer(port: int, until: float) -> None:
    while True:
        with contextlib.suppress(ConnectionRefusedError), Client(port) as client:
            if client.get("/").body != BODY:
                raise BenchError("fastserve gives a wrong answer")
            return
        if time.monotonic() > until:
            raise BenchError(f"fastserve does not answer in {WAIT:.0f} s")
        time.sleep(0.0005)


def _start_ms(bench: Bench) -> float:
    port = free_port()
    begin = time.monotonic()
    with _process(bench, _command(bench, port)):
        _first_answer(port, begin + WAIT)
        return 1000 * (time.monotonic() - begin)


def _pass_ms(bench: Bench) -> float:
    begin = time.monotonic()
    with _process(bench, [bench.python, "-c", "pass"]) as process:
        process.wait(WAIT)
        return 1000 * (time.monotonic() - begin)


def start(bench: Bench) -> Verdict:
    _start_ms(bench)     # once, that the files are in memory and compiled
    ours, bare = [], []
    for _ in range(3 if bench.quick else STARTS):
        ours.append(_start_ms(bench))
        bare.append(_pass_ms(bench))
    more = statistics.median(ours) - statistics.median(bare)
    return Verdict(
        PASS if more <= START_GOAL_MS else FAIL,
        f"{statistics.median(ours):.1f} ms ({min(ours):.1f}-{max(ours):.1f}) against "
        f"{statistics.median(bare):.1f} ms ({min(bare):.1f}-{max(bare):.1f}): {more:.1f} ms more",
        numbers={"more_ms": more, "fastserve_ms": ours, "bare_ms": bare})


def _memory_mib(process: subprocess.Popen) -> dict[str, float]:
    """The proportional share, and what no other process shares, of the resident memory."""
    report = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
    kib = {name: int(size) for name, size in re.findall(r"^(\w+): +(\d+) kB$", report, re.MULTILINE)}
    return {"pss": kib["Pss"] / 1024, "private": (kib["Private_Clean"] + kib["Private_Dirty"]) / 1024,
            "rss": kib["Rss"] / 1024}


def memory(bench: Bench) -> Verdict:
    """Judged by whichever is larger; the bare interpreter waits for a line and has imported nothing."""
    port = free_port()
    with _process(bench, _command(bench, port)) as process:
        _first_answer(port, time.monotonic() + WAIT)
        time.sleep(SETTLE)
        ours = _memory_mib(process)
    with _process(bench, [bench.python, "-c", "input()"]) as process:
        time.sleep(SETTLE)
        bare = _memory_mib(process)
    more = max(ours["pss"] - bare["pss"], ours["private"] - bare["private"])
    words = ", ".join(f"{name} {ours[name]:.1f} - {bare[name]:.1f}" for name in ours)
    return Verdict(PASS if more <= MEMORY_GOAL_MIB else FAIL, f"{more:.1f} MiB more ({words})",
                   numbers={"more_mib": more, "fastserve": ours, "bare": bare})


FOOTPRINT = (
    Case("start", "from the command `fastserve` to the first answer, beyond `python -c pass`",
         f"at most {START_GOAL_MS} ms", start),
    Case("memory", f"idle, {WORKERS} workers, beyond a bare interpreter", f"at most {MEMORY_GOAL_MIB} MiB", memory),
)
