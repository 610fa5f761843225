"""How many connections each address has: the table against a Counter.

Knows: `_probe.Peers`. Never sees: a socket. Invariant: whatever comes and goes, in a table that is as full as it
may be, each address has its own count, and in the end no place is taken.
"""

import random
import socket
from collections import Counter

import _probe
import pytest


def test_counts_are_those_of_a_counter(chance: random.Random) -> None:
    """Connections come and go at random; with a small table, so that searches pass each other."""
    for _ in range(50):
        room = chance.choice((4, 8, 60))
        peers, counts = _probe.Peers(room, chance.getrandbits(64)), Counter[int]()
        keys = [chance.choice((chance.getrandbits(64), n + 1)) or 1 for n in range(room)]
        here: list[int] = []
        for _ in range(2000):
            if here and (len(here) == room or chance.random() < 0.5):
                key = here.pop(chance.randrange(len(here)))
                peers.leave(key)
                counts[key] -= 1
            else:
                key = chance.choice(keys)
                here.append(key)
                counts[key] += 1
                assert peers.enter(key) == counts[key]
            assert peers.taken() == len(+counts)
        for key in here:
            peers.leave(key)
        assert peers.taken() == 0


def key4(text: str) -> int:
    return _probe.peer_key(socket.AF_INET, socket.inet_aton(text))


def key6(text: str) -> int:
    return _probe.peer_key(socket.AF_INET6, socket.inet_pton(socket.AF_INET6, text))


def test_keys() -> None:
    """An IPv4 address is one, an IPv6 one is its first 64 bits, and an IPv4 address inside IPv6 is itself."""
    assert key4("127.0.0.1") != key4("127.0.0.2")
    assert key4("0.0.0.0") != 0
    assert key6("2001:db8::1") == key6("2001:db8::ffff:0:0:1") != key6("2001:db8:0:1::1")
    assert key6("::1") == key6("::2") != 0
    assert key6("::ffff:127.0.0.1") == key4("127.0.0.1")
    assert len({key4("0.0.0.1"), key4("0.0.0.0"), key6("::1"), key6("0:0:0:1::")}) == 4


def test_no_address_of_one_family_is_one_of_the_other() -> None:
    """As bytes or as numbers, from either end."""
    four = key4("32.1.13.184")
    for text in ("2001:db8:100::1", "2001:db8:1::1", "2001:db8::1", "0:1:2001:db8::1"):
        assert key6(text) != four, text
    assert key6("1:0:2001:db8::1") == four, "of a block that has no addresses"
    assert key6("100::1") != key6("::1")


def test_a_unix_socket_has_none() -> None:
    assert _probe.peer_key(socket.AF_UNIX, b"/tmp") == 0


@pytest.mark.parametrize("pattern", [1, 1 << 32, 1 << 48])
def test_addresses_in_a_row_are_spread(pattern: int) -> None:
    """Neighbours, of which one network has many, do not all begin their search in the same place."""
    peers = _probe.Peers(1000, 12345)
    places = {peers.place(n * pattern) for n in range(1, 1001)}
    assert len(places) > 600
