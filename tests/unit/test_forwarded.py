"""Who asked, by what proxies say.

Knows: X-Forwarded-For, and Forwarded (RFC 7239). Never sees: a connection.
"""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastserve.forwarded import HOPS_MAX, Trust

PROXY = "10.0.0.1"
NETWORKS = "10.0.0.0/8, 192.0.2.7, fd00::/8"


def by(field: str, *values: str, peer: str | None = PROXY, networks: str = NETWORKS) -> str | None:
    return Trust(networks, field).client(peer, values)


def four(*values: str, peer: str | None = PROXY, networks: str = NETWORKS) -> str | None:
    return by("X-Forwarded-For", *values, peer=peer, networks=networks)


@pytest.mark.parametrize(("value", "client"), [
    ("203.0.113.9", "203.0.113.9"), ("1.1.1.1, 203.0.113.9", "203.0.113.9"), ("203.0.113.9, 10.2.3.4", "203.0.113.9"),
    ("1.1.1.1,203.0.113.9\t,10.2.3.4, 192.0.2.7", "203.0.113.9"), ("10.9.9.9", "10.9.9.9"),
    ("10.9.9.9, 10.8.8.8", "10.9.9.9"), ("2001:db8::1", "2001:db8::1"), ("[2001:db8::1]", "2001:db8::1"),
    ("[2001:db8::1]:443", "2001:db8::1"), ("203.0.113.9:1234", "203.0.113.9"), ("2001:DB8:0::1", "2001:db8::1"),
    ("::ffff:203.0.113.9", "203.0.113.9"), ("203.0.113.9, fd00::1", "203.0.113.9"),
    # What cannot be read hides what stands to the left of it.
    ("", PROXY), ("unknown", PROXY), ("203.0.113.9, unknown", PROXY), ("203.0.113.9, unknown, 10.1.1.1", "10.1.1.1"),
    ("203.0.113.9,", PROXY), ("203.0.113.9 , , 10.1.1.1", "10.1.1.1"), ("1.2.3", PROXY), ("1.2.3.4.5", PROXY),
    ("256.1.1.1", PROXY), ("01.2.3.4", PROXY), ("[1.2.3.4]", "1.2.3.4"), ("[::1", PROXY), ("::1]", PROXY),
    ("fe80::1%eth0", PROXY), ("1.2.3.4 5.6.7.8", PROXY), ("<script>", PROXY), ("1.2.3.4:", PROXY),
])
def test_x_forwarded_for(value: str, client: str) -> None:
    assert four(value) == client


def test_nobody_else_is_believed() -> None:
    assert four("1.1.1.1", peer="203.0.113.5") == "203.0.113.5"
    assert four("1.1.1.1", networks="") == PROXY
    assert four("1.1.1.1", peer=None) is None
    assert four("1.1.1.1", peer="::ffff:10.1.2.3") == "1.1.1.1"
    assert four("1.1.1.1", peer="::1", networks="::1") == "1.1.1.1"
    assert four(peer=PROXY) == PROXY


def test_a_unix_socket_s_proxy() -> None:
    assert four("1.1.1.1, 10.0.0.3", peer=None, networks="unix, 10.0.0.0/8") == "1.1.1.1"
    assert four("1.1.1.1, nobody", peer=None, networks="unix") is None
    assert four("1.1.1.1", peer="10.0.0.1", networks="unix") == "10.0.0.1"


def test_several_fields_are_one() -> None:
    assert four("1.1.1.1", "203.0.113.9", "10.0.0.2") == "203.0.113.9"
    assert by("Forwarded", "for=1.1.1.1", "for=203.0.113.9, for=10.0.0.2") == "203.0.113.9"


@pytest.mark.parametrize(("value", "client"), [
    ("for=203.0.113.9", "203.0.113.9"), ("For=203.0.113.9;proto=https;by=10.0.0.1", "203.0.113.9"),
    ('for="203.0.113.9:47011"', "203.0.113.9"), ('for="[2001:db8::1]:4711"', "2001:db8::1"),
    ('for="[2001:db8::1]:_port"', "2001:db8::1"), ("proto=http; for=203.0.113.9 ;", "203.0.113.9"),
    ('host="a,b";for=203.0.113.9, for=10.1.1.1', "203.0.113.9"), ('for=1.1.1.1, host="x, for=203.0.113.9"', PROXY),
    ('for="2\\03.0.113.9"', "203.0.113.9"), ("for=1.1.1.1, for=203.0.113.9", "203.0.113.9"),
    ("for=unknown", PROXY), ("for=_hidden, for=10.1.1.1", "10.1.1.1"), ("proto=http", PROXY), ("", PROXY),
    ("for=1.1.1.1;for=2.2.2.2", PROXY), ("for=1.1.1.1 2.2.2.2", PROXY), ("for = 1.1.1.1", PROXY),
    ('for="1.1.1.1', PROXY), ("1.1.1.1", PROXY), ("for=[2001:db8::1]", PROXY), ('for="1.1.1.1", ', PROXY),
    # An open quote of the client's swallows nothing of what a proxy says behind it.
    ('for="1.1.1.1, for=203.0.113.9', "203.0.113.9"), ('for="x, for="203.0.113.9"', "203.0.113.9"),
    ('for="x, for="[2001:db8::1]:4711"', "2001:db8::1"), ('for="x\\", for=203.0.113.9', "203.0.113.9"),
])
def test_forwarded(value: str, client: str) -> None:
    assert by("Forwarded", value) == client


def test_time_is_linear() -> None:
    """Each of these took seconds when it was not."""
    for text in ("for=a" + 60_000 * " " + "b", 60_000 * '"', 30_000 * '\\"', 60_000 * "\\", 60_000 * ",",
                 20_000 * "a=b;", 'for="' + 30_000 * "\\a"):
        assert by("Forwarded", text) == PROXY
        assert four(text) == PROXY


def test_networks_as_they_lie_in_memory() -> None:
    trust = Trust("10.0.0.0/8, unix, fd00::/9", "Forwarded")
    assert trust.networks == [(b"\x0a\0\0\0", 8), (b"\xfd" + 15 * b"\0", 9)]
    assert trust.unix
    assert not Trust("10.0.0.1", "Forwarded").unix


def test_so_many_hops_are_read() -> None:
    for hops, client in ((HOPS_MAX - 1, "203.0.113.9"), (HOPS_MAX, "10.0.0.2")):
        assert four(", ".join(["203.0.113.9", *hops * ["10.0.0.2"]])) == client
        assert by("Forwarded", ", ".join(["for=203.0.113.9", *hops * ["for=10.0.0.2"]])) == client


@pytest.mark.parametrize("networks", ["x", "10.0.0.1/8", "10.0.0.0/33", "10.0.0.1,,", "localhost", "1.2.3.4:80",
                                      "UNIX"])
def test_what_is_no_network(networks: str) -> None:
    with pytest.raises(ValueError, match=r"^must be addresses, "):
        Trust(networks, "Forwarded")


def test_there_are_two_fields() -> None:
    with pytest.raises(ValueError, match=r"^must be X-Forwarded-For or Forwarded, not 'X-Real-IP'$"):
        Trust("", "X-Real-IP")


@given(st.text(st.sampled_from('12.:,[]ab ";=for\\_%x'), max_size=60),
       st.sampled_from(("X-Forwarded-For", "Forwarded")))
def test_whatever_comes_it_is_an_address(value: str, field: str) -> None:
    client = by(field, value)
    assert client is not None
    assert str(ipaddress.ip_address(client)) == client


@given(st.lists(st.ip_addresses().map(str), max_size=8), st.sampled_from(("X-Forwarded-For", "Forwarded")))
def test_the_rightmost_that_is_not_trusted(hops: list[str], field: str) -> None:
    trusted = [ipaddress.ip_network(word) for word in NETWORKS.split(", ")]

    def plain(text: str) -> str:
        address = ipaddress.ip_address(text)
        return str(getattr(address, "ipv4_mapped", None) or address)

    def strange(text: str) -> bool:
        return not any(ipaddress.ip_address(text) in network for network in trusted)

    way = [plain(hop) for hop in (*hops, PROXY)]
    wanted = next(filter(strange, reversed(way)), way[0])
    words = [f'for="[{hop}]"' if ":" in hop else f"for={hop}" for hop in hops] if field == "Forwarded" else hops
    assert by(field, ", ".join(words)) == wanted
