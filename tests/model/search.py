"""Searches instances of lease.pml with spin: search.py AT_A_TIME '{"INSTANCE": IS_IT_RIGHT, ...}'.

Knows: how to run spin. Never sees: what should come out. Invariant: what is printed in the end is JSON: of each
instance how many errors there were, -1 if the search was not complete, and what the verifier said.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

MODEL = Path(__file__).with_name("lease.pml")
MEMORY = os.environ.get("FASTSERVE_SPIN_MEMORY", "2000")        # MB; the largest instance takes 800


def search(instance: str, right: bool) -> tuple[int, str]:
    try:
        return complete_search(instance, right)
    except AssertionError as problem:
        return -1, str(problem)


def complete_search(instance: str, right: bool) -> tuple[int, str]:
    words = instance.split()
    kind, flags = ["-DSAFETY"], ["-E"]
    if "LIVENESS" in words:
        kind, flags = [], ["-a", "-f"]
    elif "REST" in words:
        kind, flags = ["-DNP"], ["-l", "-E"]
    # A mistake is found early, and earlier from the last choice on: the compiler would take longer than the search.
    kind += ["-O1"] if right else ["-O0", "-DT_REVERSE"]

    with TemporaryDirectory() as place:
        def run(*command: str) -> str:
            done = subprocess.run(command, cwd=place, capture_output=True, text=True)
            assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
            return done.stdout

        shutil.copy(MODEL, place)
        run("spin", "-a", *(f"-D{word}" for word in words), MODEL.name)
        run("gcc", "-w", f"-DMEMLIM={MEMORY}", *kind, "-o", "pan", "pan.c")
        # -E: a thread that waits for ever is judged by Quiet, which knows whether anything is left to do.
        said = run("./pan", *flags, "-m400000")
    errors = re.search(r"errors: (\d+)", said)
    assert errors, said[-2000:]
    for incomplete in ("max search depth too small", "reached -DMEMLIM", "out of memory"):
        assert incomplete not in said, said[-2000:]
    return int(errors[1]), said


def main() -> None:
    at_a_time, instances = int(sys.argv[1]), json.loads(sys.argv[2])
    with ThreadPoolExecutor(at_a_time) as pool:
        found = pool.map(search, instances, instances.values())
        print(json.dumps(dict(zip(instances, found, strict=True))))


if __name__ == "__main__":
    main()
