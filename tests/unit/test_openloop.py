"""The bench's open-loop generator against servers of a few lines: what it counts, and that it hides no stall.

Knows: bench/openloop.py and what its program prints.
Never sees: fastserve. No test asserts that anything is fast: bounds hold on a machine that is busy with other things,
and so loads run side by side.
"""

import importlib
import random
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parents[2] / "bench"
if not (BENCH / "openloop.c").exists():
    pytest.skip("the bench is not part of this distribution", allow_module_level=True)
if shutil.which("gcc") is None:
    pytest.skip("no gcc", allow_module_level=True)

sys.path.insert(0, str(BENCH))

openloop = importlib.import_module("openloop")
BenchError = openloop.BenchError

REPLY = b"HTTP/1.1 200 OK\r\nServer: test\r\nContent-Length: 5\r\n\r\nhello"
GOOD = {"p50_us": 50.0, "p90_us": 70.0, "p99_us": 100.0, "p999_us": 200.0, "p9999_us": 250.0, "max_us": 300.0,
        "sent": 1000, "answered": 1000, "errors": 0, "unanswered": 0, "lost": 0, "rate": 1000.0,
        "behind_p99_us": 10.0, "behind_max_us": 50.0, "unread_p99_us": 10.0}

Answer = Callable[[socket.socket, int], None]
"""What to do on a connection for the n-th request of all."""


@contextmanager
def serving(answer: Answer) -> Iterator[int]:
    """One thread for each connection, one request at a time on all of them together; yields the port."""
    numbers, turn, peers, threads = iter(range(10**9)), threading.Lock(), [], []
    listener = socket.create_server(("127.0.0.1", 0), backlog=64)

    def attend(peer: socket.socket) -> None:
        pending = b""
        try:
            while more := peer.recv(4096):
                pending += more
                while b"\r\n\r\n" in pending:
                    pending = pending.partition(b"\r\n\r\n")[2]
                    with turn:
                        answer(peer, next(numbers))
        except OSError:
            pass
        finally:
            peer.close()

    def accept() -> None:
        while True:
            try:
                peer = listener.accept()[0]
            except OSError:
                return
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            peers.append(peer)
            threads.append(threading.Thread(target=attend, args=(peer,)))
            threads[-1].start()

    accepting = threading.Thread(target=accept)
    accepting.start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        accepting.join(10)
        listener.close()
        for thread in threads:      # the program has gone, and its connections with it
            thread.join(10)
        assert not any(thread.is_alive() for thread in (accepting, *threads))


def reply_with(reply: bytes) -> Answer:
    return lambda peer, number: peer.sendall(reply)


@dataclass(eq=False)
class Load:
    """A server, and what is asked of it for a second, behind the generator's second of warm-up."""

    answer: Answer
    rate: int
    connections: int

    def run(self) -> dict:
        with serving(self.answer) as port:
            return openloop.report(port, "/some?where=1", self.rate, 1, self.connections)


LOADS: list[Load] = []
Said = Callable[[Load], dict]


def under(rate: int, connections: int = 4) -> Callable[[Answer], Load]:
    def load(answer: Answer) -> Load:
        LOADS.append(Load(answer, rate, connections))
        return LOADS[-1]

    return load


@pytest.fixture(scope="module")
def said() -> Iterator[Said]:
    """What the generator said of a load. Three run at a time: it never sleeps, and replies are awaited for a second."""
    openloop.build()
    with ThreadPoolExecutor(3) as pool:
        runs = {load: pool.submit(load.run) for load in LOADS}
        yield lambda load: runs[load].result()


@under(rate=300)
def answers(peer: socket.socket, number: int) -> None:
    peer.sendall(REPLY)


def test_every_request_is_counted_once(said: Said) -> None:
    got = said(answers)
    assert (got["sent"], got["answered"]) == (300, 300)
    assert (got["errors"], got["unanswered"], got["lost"]) == (0, 0, 0)
    assert 0 < got["p50_us"] <= got["p90_us"] <= got["p99_us"] <= got["p999_us"] <= got["p9999_us"]
    assert got["p9999_us"] <= got["max_us"]
    assert 0 <= got["behind_p99_us"] <= got["behind_max_us"]


def test_the_request_is_what_was_asked_for() -> None:
    seen: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        def read_one() -> None:
            with listener.accept()[0] as peer:
                seen.append(peer.recv(4096))

        reader = threading.Thread(target=read_one)
        reader.start()
        openloop.report(listener.getsockname()[1], "/a?b=c", rate=100, seconds=1, connections=1)
        reader.join(10)
    assert seen == [b"GET /a?b=c HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"]


@under(rate=500, connections=8)
def stalls(peer: socket.socket, number: int) -> None:
    if number == 700:               # 200 of the 500 that are recorded have gone
        time.sleep(0.2)
    peer.sendall(REPLY)


def test_a_stall_is_seen_by_all_that_were_due_in_it(said: Said) -> None:
    """For 200 ms nobody is answered: the 100 requests that are due meanwhile wait from 200 ms down to none. A closed
    loop of 8 connections would have sent 8 of them, and would show the stall above its p98 only."""
    got = said(stalls)
    assert (got["sent"], got["answered"], got["errors"], got["lost"]) == (500, 500, 0, 0)
    assert got["max_us"] >= 190_000
    assert got["p99_us"] >= 170_000         # the fifth of 100 that are spread evenly over 200 ms: 190 ms
    assert got["p90_us"] >= 80_000          # the fiftieth: 100 ms


PARTS = [b"HTTP/1.1 200 OK\r\ncontent-", b"LENGTH:\t%d \r\nConnection: Keep-Alive\r\n\r" % 200_000, b"\n",
         b"x" * 100_000, b"x" * 99_999, b"x"]


@under(rate=50)
def answers_in_pieces(peer: socket.socket, number: int) -> None:
    for part in PARTS:
        peer.sendall(part)


def test_a_reply_may_come_in_pieces_and_be_large(said: Said) -> None:
    got = said(answers_in_pieces)
    assert (got["sent"], got["answered"], got["errors"], got["lost"]) == (50, 50, 0, 0)


WRONG = [
    b"nonsense\r\n\r\n",
    b"\0" * 20_000,
    b"x" * 20_000,
    b"HTTP/1.1 200 OK\r\n\r\n",
    b"HTTP/1.1 200\r\n\r\n",
    b"HTTP/1.1 2000 OK\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\nhello",
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
    b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\nhello",
    b"HTTP/1.1 200 OK\r\nContent-Length:\r\n\r\nhello",
    b"HTTP/1.1 200 OK\r\nContent-Length: 5x\r\n\r\nhello",
    b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999999\r\n\r\nhello",
    b"HTTP/1.1 200 OK\r\nX: \0\r\nContent-Length: 5\r\n\r\nhello",
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello, more than announced",
    b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\nmore",
]


def test_any_other_reply_is_an_error_and_ends_its_connection() -> None:
    def ask(reply: bytes) -> dict:
        with serving(reply_with(reply)) as port:
            return openloop.report(port, "/", rate=1000, seconds=1, connections=3)

    openloop.build()
    with ThreadPoolExecutor(len(WRONG)) as pool:    # each of them waits most of its time
        for reply, said in zip(WRONG, pool.map(ask, WRONG), strict=True):
            assert (said["errors"], said["answered"], said["sent"], said["lost"]) == (3, 0, 0, 1000), reply


@under(rate=100)
def closes_unasked(peer: socket.socket, number: int) -> None:
    if number < 150:                # 100 go in the warm-up
        peer.sendall(REPLY)
    else:
        peer.shutdown(socket.SHUT_RDWR)


def test_a_server_that_closes_without_an_answer(said: Said) -> None:
    got = said(closes_unasked)
    with pytest.raises(BenchError, match="4 errors"):
        openloop.believe(got, 100)
    assert (got["answered"], got["errors"], got["unanswered"]) == (50, 4, 0)
    assert got["sent"] == got["answered"] + got["errors"]
    assert got["sent"] + got["lost"] == 100


@under(rate=100, connections=40)     # it would be that connection's turn again 0.4 s later
def closes_one(peer: socket.socket, number: int) -> None:
    peer.sendall(REPLY)
    if number == 150:
        peer.shutdown(socket.SHUT_RDWR)


def test_a_connection_that_is_closed_between_requests_is_an_error(said: Said) -> None:
    got = said(closes_one)
    assert (got["sent"], got["answered"], got["errors"], got["lost"]) == (100, 100, 1, 0)


@under(rate=100)
def falls_silent(peer: socket.socket, number: int) -> None:
    if number < 150:
        peer.sendall(REPLY)


def test_who_is_never_answered_counts_with_the_time_that_passed(said: Said) -> None:
    got = said(falls_silent)
    with pytest.raises(BenchError, match="4 without an answer, 46 not sent"):
        openloop.believe(got, 100)
    assert (got["sent"], got["answered"], got["unanswered"], got["lost"]) == (54, 50, 4, 46)
    assert got["max_us"] >= 1_000_000
    assert got["p90_us"] >= 1_000_000


@under(rate=100_000, connections=1)
def stands_still(peer: socket.socket, number: int) -> None:
    if number == 0:
        time.sleep(2.1)
    peer.sendall(REPLY)


def test_more_than_may_wait_is_lost_and_counted(said: Said) -> None:
    """Those that lined up first were due in the warm-up, and the server needs far longer for them than it is given."""
    got = said(stands_still)
    assert (got["sent"], got["answered"], got["errors"], got["lost"]) == (0, 0, 0, 100_000)


GREETED = threading.Event()


@under(rate=100)
def speaks_unasked(peer: socket.socket, number: int) -> None:
    peer.sendall(REPLY)
    if number == 150 and not GREETED.is_set():
        GREETED.set()
        time.sleep(0.001)           # the reply is read first, or the words make it a wrong one: an error either way
        peer.sendall(b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n")


def test_words_that_nobody_asked_for_are_an_error(said: Said) -> None:
    got = said(speaks_unasked)
    assert got["errors"] == 1
    assert got["answered"] in (99, 100)


@pytest.mark.parametrize(("change", "why"), [
    ({"rate": 989.0, "lost": 11}, "989 instead of 1,000 requests/s were answered: 0 errors, 0 without an answer, 11"),
    ({"behind_p99_us": 20.1}, "1% was sent late by 20 us or more, of a p99 of 100 us"),
    ({"behind_p99_us": 30.1, "p99_us": 300.0}, "1% was sent late by 30 us or more, of a p99 of 300 us"),
    ({"unread_p99_us": 20.1}, "1% was read late by 20 us or more, of a p99 of 100 us"),
])
def test_what_must_not_be_believed(change: dict, why: str) -> None:
    assert openloop.believe(GOOD, 1000) == openloop.OpenLoop(50.0, 70.0, 100.0, 200.0, 300.0, 1000, 1000, 0, 10.0)
    with pytest.raises(BenchError, match=why):
        openloop.believe(GOOD | change, 1000)


@pytest.mark.parametrize("words", [
    (), ("1", "/", "1", "1"), ("0", "/", "1", "1", "1"), ("65536", "/", "1", "1", "1"), ("1", "/", "x", "1", "1"),
    ("1", "/", "", "1", "1"), ("1", "/", "-1", "1", "1"), ("1", "/", "1", "61", "1"), ("1", "/", "1", "1", "4097"),
    ("1", "/" * 3000, "1", "1", "1"),
])
def test_wrong_arguments_are_refused(words: tuple[str, ...]) -> None:
    done = subprocess.run([openloop.build(), *words], capture_output=True, text=True, timeout=10)
    assert done.returncode == 2
    assert done.stderr.strip()


def test_nobody_listens() -> None:
    with socket.socket() as taken:      # bound, not listening
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(BenchError, match="connect: Connection refused"):
            openloop.run(taken.getsockname()[1], "/", rate=1, seconds=1, connections=1)


HISTOGRAM = """
#define main generator
#include "openloop.c"
#undef main

int main(void) {
    unsigned long long value;
    while (scanf("%llu", &value) == 1) record(&latency, value);
    printf("%lu %lu", latency.count, latency.max);
    for (int share = 5000; share <= 10000; share += 500) printf(" %.1f", percentile(&latency, share));
    return 0;
}
"""


def test_the_histogram_counts_exactly_and_errs_by_less_than_a_percent(tmp_path: Path, chance: random.Random) -> None:
    (tmp_path / "histogram.c").write_text(HISTOGRAM)
    program = tmp_path / "histogram"
    subprocess.run(["gcc", f"-I{BENCH}", "-o", program, tmp_path / "histogram.c"], check=True, timeout=60)
    values = [*range(600), *(2**n + d for n in range(9, 63) for d in (-1, 0, 1)), 2**64 - 1,
              *(int(2 ** chance.uniform(0, 64)) - 1 for _ in range(2000))]
    chance.shuffle(values)
    done = subprocess.run([program], input=" ".join(map(str, values)), capture_output=True, text=True, check=True,
                          timeout=10)
    count, most, *found = done.stdout.split()
    assert (int(count), int(most)) == (len(values), max(values))
    values.sort()
    for share, percentile in zip(range(5000, 10001, 500), map(float, found), strict=True):
        exact = values[-(-len(values) * share // 10000) - 1] / 1000
        assert exact - 0.051 <= percentile * (1 + 1e-12) and percentile <= exact * 1.008 + 0.051, share
