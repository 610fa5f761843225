"""The lease between real threads: short runs, bounded by a count.

Knows: what must come out of _probe_lease.pxi. Never sees: a clock; only a standstill of half a minute
is a failure. tests/model/lease.pml says why the words are right, `tests/model/run.sh tsan` looks at the
memory order, and this looks whether the code does what the model says.
"""

import pytest
from _probe import lease_duel, lease_stress, lease_words

NAMES = ("adaptive", "seized at random", "few workers", "two reactors", "four reactors", "passed on first",
         "closed early")
WAYS = (
    dict(chaos=0, first=0),
    dict(workers=8, conns=48, chaos=200),
    dict(workers=2, conns=6, chaos=1000, first=300),
    dict(workers=5, reactors=2, gil=False, chaos=300),
    dict(workers=9, reactors=4, gil=False),
    dict(workers=16, conns=48, first=1024),
    dict(workers=8, conns=64, close_early=True),
)


@pytest.mark.parametrize("way", WAYS, ids=NAMES)
def test_every_request_is_answered_by_one_holder_at_a_time(way: dict, chance) -> None:
    seed = chance.randrange(2**32)
    got = lease_stress(3000, seed=seed, **way)
    print(way, got)
    assert not got["stalled"] and got["wrong"] == []
    assert got["answered"] >= 3000 if way.get("close_early") else got["answered"] == got["calls"] == 3000
    assert got["quiet"]


SKEWS = (
    dict(workers=2, reactors=2, hang=1, skew=4, conns=12),
    dict(workers=3, reactors=3, hang=2, skew=2, conns=12, chaos=0),
    dict(workers=4, reactors=4, hang=3, skew=3, conns=12, gil=False),
    dict(workers=2, reactors=2, hang=1, skew=2, conns=8, gil=False, chaos=0, first=0),
)


@pytest.mark.parametrize("way", SKEWS, ids=str)
def test_one_free_worker_serves_every_reactor(way: dict, chance) -> None:
    """All others hang in a handler until nothing else is left to do: no reactor may keep the free one."""
    for requests in (200, 200, 200, 12, 12, 12, 12, 12, 12):
        got = lease_stress(requests, seed=chance.randrange(2**32), **way)
        assert not got["stalled"] and got["wrong"] == [], got
        assert got["answered"] == got["calls"] == requests


def test_closing_again_and_again(chance) -> None:
    for _ in range(100):
        got = lease_stress(20, workers=4, conns=12, chaos=500, close_early=True, seed=chance.randrange(2**32))
        assert not got["stalled"] and got["wrong"] == [], got


def test_a_word_ends_once(chance) -> None:
    """Taken back or seized, never both; and a worker that parks is found by the watcher that holds."""
    rounds = 30_000
    got = lease_duel(rounds, seed=chance.randrange(2**32), stall=30.0)
    print(got)
    assert got["ended"]
    assert got["own"] + got["seized"] == rounds == got["holds"] - got["seized"]


def test_a_sleeping_watcher_hears_of_every_word(chance) -> None:
    assert lease_duel(20_000, asleep=True, seed=chance.randrange(2**32), stall=30.0)["ended"]


def test_no_word_comes_twice_on_any_reactor() -> None:
    """A worker has one `let_go` for all reactors: a word that two of them publish would read as
    let go while the second's watcher still has the connection in hand."""
    words = [word for reactor in lease_words(4, 1000) for word in reactor]
    assert None not in words
    assert len(set(words)) == len(words)
