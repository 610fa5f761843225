"""What one head of a browser costs to parse: ours, httptools', and picohttpparser's where its source is given.

Knows: the probe (tests/conftest.py builds it). Never sees: a server. Run:

    python bench/parse.py [FOLDER]      FOLDER holds picohttpparser.c and .h

Rounds are interleaved; a line shows the median and the range in nanoseconds. httptools is called with an
object that has no callbacks, which is its least. picohttpparser splits the head; we also judge Host, framing,
Connection and Expect. It is built twice: for the baseline of x86-64, as we are, and with SSE 4.2.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from micro.shapes import BROWSER as HEAD

ROOT = Path(__file__).resolve().parent.parent
ROUNDS, PARSES = 9, 200_000

PICO = r"""
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include "picohttpparser.h"
int main(int argc, char **argv) {
    static char data[65536];
    size_t size = fread(data, 1, sizeof data, stdin);
    long rounds = argc > 1 ? atol(argv[1]) : 1;
    struct timespec a, b;
    clock_gettime(CLOCK_MONOTONIC, &a);
    for (long i = 0; i < rounds; i++) {
        const char *method, *path;
        size_t method_size, path_size, n = 100;
        struct phr_header fields[100];
        int minor;
        if (phr_parse_request(data, size, &method, &method_size, &path, &path_size, &minor, fields, &n, 0) < 0)
            return 1;
        __asm__ volatile("" :: "r"(fields), "r"(&n) : "memory");
    }
    clock_gettime(CLOCK_MONOTONIC, &b);
    printf("%f\n", ((b.tv_sec - a.tv_sec) * 1e9 + (b.tv_nsec - a.tv_nsec)) / rounds);
}
"""


def ours() -> float:
    import _probe

    nanoseconds, verdict = _probe.head_loop(HEAD, PARSES)
    assert verdict == _probe.DONE
    return nanoseconds


def httptools() -> float:
    from httptools import HttpRequestParser

    parser = HttpRequestParser(object())
    began = time.perf_counter_ns()
    for _ in range(PARSES // 10):
        parser.feed_data(HEAD)
    return (time.perf_counter_ns() - began) / (PARSES // 10)


def main() -> None:
    sys.path.insert(0, str(ROOT / "tests"))
    import conftest

    sys.path.insert(0, str(conftest.build_probe()))
    with tempfile.TemporaryDirectory() as place:
        ways = {"fastserve": ours, "httptools": httptools}
        for name, flags in (("picohttpparser", []), ("picohttpparser -msse4.2", ["-msse4.2"])) if sys.argv[1:] else ():
            source, program = Path(place, "pico.c"), Path(place, name.replace(" ", ""))
            source.write_text(PICO)
            subprocess.run(["gcc", "-O3", *flags, f"-I{sys.argv[1]}", "-o", program, source,
                            f"{sys.argv[1]}/picohttpparser.c"], check=True)
            ways[name] = lambda program=program: float(
                subprocess.run([program, str(PARSES)], input=HEAD, capture_output=True, check=True).stdout)
        times: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(ROUNDS):
            for name, way in ways.items():
                times[name].append(way())
    print(f"{len(HEAD)} bytes, {HEAD.count(b': ')} fields")
    for name, found in times.items():
        ratio = statistics.median(a / b for a, b in zip(found, times["fastserve"], strict=True))
        print(f"{name:24} {statistics.median(found):6.0f} ns ({min(found):.0f}-{max(found):.0f})  {ratio:.2f}")


if __name__ == "__main__":
    main()
