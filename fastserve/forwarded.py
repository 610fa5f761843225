"""Who asked, where proxies stand in front.

Knows: networks that are trusted, X-Forwarded-For, and Forwarded (RFC 7239). Never sees: a connection, a ctx.
Invariant: a word counts only if whoever added it is trusted; where one cannot be read, those to the left of it were
added by nobody knows whom, and the address is the last one that is certain.
"""

import ipaddress
import re
from collections.abc import Iterator, Sequence
from typing import Final

__all__ = ["FORWARDED_FIELDS", "Trust"]

FORWARDED_FIELDS: Final = ("X-Forwarded-For", "Forwarded")
HOPS_MAX: Final = 50
"""Words that are read from the right of a field; what stands before them is left out."""

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_PORT = r"(?::(?:[0-9]{1,5}|_[0-9A-Za-z._-]+))?"
_NODE = re.compile(rf"\[(?P<six>[0-9A-Fa-f:.]+)\]{_PORT}|(?P<four>[0-9.]+){_PORT}|(?P<bare>[0-9A-Fa-f:.]+)")
_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_PAIR = re.compile(rf'[ \t]*+(?:({_TOKEN})=({_TOKEN}|"(?:[^"\\]|\\.)*+"))?[ \t]*+(?:;|\Z)')
_MARK = re.compile(r'(?<!\\)\\*+"|,')


class Trust:
    """Which peers may say for whom they ask, and in which field.

    `networks` is addresses and networks separated by commas, `unix` among them for the peers of unix sockets: `unix`
    says whether it is. ValueError: it is not, or `field` is none of FORWARDED_FIELDS.
    """

    __slots__ = ("_networks", "field", "unix")

    def __init__(self, networks: str, field: str) -> None:
        words = [word.strip() for word in networks.split(",")] if networks.strip() else []
        self.unix = "unix" in words
        self._networks = [_network(word) for word in words if word != "unix"]
        if field not in FORWARDED_FIELDS:
            raise ValueError(f"must be {' or '.join(FORWARDED_FIELDS)}, not {field!r}")
        self.field = field

    @property
    def networks(self) -> list[tuple[bytes, int]]:
        """Of each network its address, 4 bytes or 16, and how many bits of that count."""
        return [(network.network_address.packed, network.prefixlen) for network in self._networks]

    def client(self, peer: str | None, values: Sequence[str]) -> str | None:
        """The address of the client: the peer's, None on a unix socket, or if that is trusted the rightmost one in the
        values of the field that is not."""
        at = None if peer is None else _plain(ipaddress.ip_address(peer))
        read = _from_for if self.field == "X-Forwarded-For" else _from_forwarded
        if self.unix if at is None else self._trusts(at):
            for hop in read(values):
                if hop is None:
                    break
                at = hop
                if not self._trusts(at):
                    break
        return None if at is None else str(at)

    def _trusts(self, address: Address) -> bool:
        return any(address in network for network in self._networks)


def _network(word: str) -> Network:
    try:
        return ipaddress.ip_network(word)
    except ValueError:
        raise ValueError(f"must be addresses, networks such as 10.0.0.0/8, or unix, separated by commas; {word!r} is "
                         "none") from None


def _plain(address: Address) -> Address:
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def _from_for(values: Sequence[str]) -> Iterator[Address | None]:
    """From the right; None: it is no address."""
    for word in reversed(",".join(values).rsplit(",", HOPS_MAX)[-HOPS_MAX:]):
        yield _address(word.strip(" \t"))


def _from_forwarded(values: Sequence[str]) -> Iterator[Address | None]:
    """From the right, quotes included: whoever wrote the left part does not decide where the right one begins."""
    text = ",".join(values)
    end, quoted, left = len(text), False, HOPS_MAX
    for mark in reversed(list(_MARK.finditer(text))):
        if mark[0] == ",":
            if not quoted:
                yield _for(text[mark.end():end])
                end, left = mark.start(), left - 1
                if not left:
                    return
        elif len(mark[0]) % 2:      # no backslash before the quote, or only pairs of them
            quoted = not quoted
    yield _for(text[:end])


def _for(element: str) -> Address | None:
    found: dict[str, str] = {}
    at = 0
    while at < len(element):
        match = _PAIR.match(element, at)
        if match is None:
            return None
        at = match.end()
        name, value = match.groups()
        if name is not None:
            if name.lower() in found:
                return None
            found[name.lower()] = re.sub(r"\\(.)", r"\1", value[1:-1]) if value[0] == '"' else value
    return _address(found.get("for", ""))


def _address(word: str) -> Address | None:
    """Of a node (RFC 7239, section 6), or of what is common in X-Forwarded-For: with a port, IPv6 with or without
    brackets."""
    match = _NODE.fullmatch(word)
    if match is None:
        return None
    try:
        return _plain(ipaddress.ip_address(match["six"] or match["four"] or match["bare"]))
    except ValueError:
        return None
