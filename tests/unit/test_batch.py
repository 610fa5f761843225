"""Batches of receives and sends: with a ring, without one, and with one that the kernel no longer takes.

Knows: `_probe.Batches` and socket pairs. Never sees: a server. Invariant: the three ways have the same results,
each in its place.
"""

import socket
import threading
from collections.abc import Iterator

import _probe
import pytest

AGAIN, GONE = -1, -2
MANY = 200


@pytest.fixture(params=["ring", "calls", "ruined"])
def batches(request: pytest.FixtureRequest) -> _probe.Batches:
    made = _probe.Batches(request.param != "calls")
    if request.param == "ruined":
        made.ruin()
    return made


@pytest.fixture
def pairs() -> Iterator[list[tuple[socket.socket, socket.socket]]]:
    made = [socket.socketpair() for _ in range(MANY)]
    for ours, _ in made:
        ours.setblocking(False)
    yield made
    for ours, theirs in made:
        ours.close()
        theirs.close()


def test_the_kernel_has_a_ring_here_or_says_why_not() -> None:
    """Otherwise the other tests of a ring would all be tests of calls."""
    if not _probe.Batches(True).ring:
        pytest.skip("this kernel has no io_uring, or forbids it")


def test_receives(pairs: list[tuple[socket.socket, socket.socket]], batches: _probe.Batches) -> None:
    calls, expected = [], []
    for i, (ours, theirs) in enumerate(pairs):
        if i % 5 == 0:
            expected.append((AGAIN, b""))
        elif i % 5 == 1:
            theirs.close()
            expected.append((GONE, b""))
        elif i % 5 == 2:
            theirs.send(b"x" * 1000)
            expected.append((100, b"x" * 100))
        else:
            theirs.send(b"%d" % i)
            expected.append((len(b"%d" % i), b"%d" % i))
        calls.append((ours.fileno(), 100))
    calls.append((pairs[1][1].fileno(), 100))       # -1, as of a socket that is closed
    expected.append((GONE, b""))
    results, received = batches.go(calls, False)
    assert list(zip(results, received, strict=True)) == expected
    assert pairs[2][0].recv(2000) == b"x" * 900


def test_sends(pairs: list[tuple[socket.socket, socket.socket]], batches: _probe.Batches) -> None:
    calls, expected = [], []
    for i, (ours, theirs) in enumerate(pairs):
        if i % 4 == 0:
            with pytest.raises(BlockingIOError):
                while True:
                    ours.send(b"y" * 65536)
            expected.append(AGAIN)
        elif i % 4 == 1:
            theirs.close()
            expected.append(GONE)
        else:
            expected.append(len(b"%d" % i))
        calls.append((ours.fileno(), b"%d" % i))
    results, _ = batches.go(calls, True)
    assert results == expected
    for i, (_, theirs) in enumerate(pairs):
        if i % 4 > 1:
            assert theirs.recv(100) == b"%d" % i


def test_a_socket_that_takes_a_part(batches: _probe.Batches) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        (sent, *again), _ = batches.go([(ours.fileno(), b"z" * 8_000_000)] * 4, True)
        assert 0 < sent < 8_000_000
        assert all(n == AGAIN or 0 < n < 8_000_000 for n in again)
        theirs.settimeout(10)
        assert theirs.recv(1) == b"z"


def test_any_thread_makes_the_next_batch(batches: _probe.Batches) -> None:
    """The lease moves: who goes on is not who began."""
    ours, theirs = socket.socketpair()
    seen: list[bytes] = []

    def go(i: int) -> None:
        theirs.send(b"%d" % i)
        seen.extend(batches.go([(ours.fileno(), 10)] * 4, False)[1])

    with ours, theirs:
        ours.setblocking(False)
        for i in range(10):
            thread = threading.Thread(target=go, args=(i,))
            thread.start()
            thread.join()
    assert seen == [part for i in range(10) for part in (b"%d" % i, b"", b"", b"")]


def test_batch_after_batch(pairs: list[tuple[socket.socket, socket.socket]], batches: _probe.Batches) -> None:
    """Far beyond the end of the queues, which are rings; another socket is silent each time."""
    for turn in range(300):
        for i, (_, theirs) in enumerate(pairs[:7]):
            if i != turn % 7:
                theirs.send(b"%d-%d" % (turn, i))
        results, received = batches.go([(ours.fileno(), 20) for ours, _ in pairs[:7]], False)
        assert received == [b"" if i == turn % 7 else b"%d-%d" % (turn, i) for i in range(7)]
        assert results[turn % 7] == AGAIN


def test_what_the_kernel_did_not_take_is_not_made_later() -> None:
    """Calls that were made one by one must not lie in the queue when the next batch is handed over."""
    batches = _probe.Batches(True)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        batches.ruin()
        assert batches.go([(ours.fileno(), b"one by one ")] * 5, True)[0] == [11] * 5
        batches.mend()
        assert batches.go([(ours.fileno(), b"at once ")] * 5, True)[0] == [8] * 5
        assert theirs.recv(1000) == b"one by one " * 5 + b"at once " * 5


@pytest.mark.parametrize("size", [2**31, 2**32 - 1, 2**32, 2**33 + 5])
def test_a_call_may_be_larger_than_the_kernel_takes(size: int, batches: _probe.Batches) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        theirs.send(b"some bytes")
        assert batches.receive_at_most(ours.fileno(), size) == [10, AGAIN, AGAIN, AGAIN]
