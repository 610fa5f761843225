"""The claims of _probe_fuzz.pxi, on the wire cases and in a short run of each fuzzer.

Knows: what run.sh answers. Never sees: an input that a fuzzer made; `make fuzz` runs longer.
"""

import os
import random

import _probe
import pytest

from tests.fuzz.conftest import FUZZERS

SEED = int(os.environ["FASTSERVE_SEED"])        # conftest.py draws and prints it
CHUNKED = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
NEXT = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


def broken(target: str, data: bytes) -> list[tuple[bytes, str]]:
    """The claims that data, its beginnings and slightly wrong copies of it break."""
    chance = random.Random(SEED)
    inputs = [data, *(data[:chance.randrange(len(data) + 1)] for _ in range(4))]
    for _ in range(8):
        wrong = bytearray(data or b"x")
        wrong[chance.randrange(len(wrong))] = chance.choice(b"\0\t\n\r ,:;=[]%09afAZ~\x7f\xe4")
        inputs.append(bytes(wrong))
    return [(each, claim) for each in inputs if (claim := _probe.fuzz(target, each))]


@pytest.mark.wire("request_line", "fields", "framing", "targets")
def test_heads_of_the_cases(case):
    assert broken("head", case["bytes"]) == []
    assert broken("message", case["bytes"] + NEXT) == []


@pytest.mark.wire("chunked")
def test_bodies_of_the_cases(case):
    assert broken("body", case["bytes"]) == []
    assert broken("message", CHUNKED + case["bytes"] + NEXT) == []


@pytest.mark.wire("proxy")
def test_headers_of_the_cases(case):
    assert broken("proxy", case["bytes"]) == []


@pytest.mark.last
def test_fuzzers_find_nothing(request: pytest.FixtureRequest):
    run = request.config.stash[FUZZERS]
    said, problems = run.communicate(timeout=600)
    if run.returncode == 77:
        pytest.skip(said.strip().splitlines()[-1].removeprefix("SKIPPED: "))
    print(said)
    assert run.returncode == 0, said + problems
