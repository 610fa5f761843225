"""Which of the things on offer a client likes best.

Knows: Accept and Accept-Encoding (RFC 9110, sections 12.4.2 to 12.5.3). Never sees: a ctx. Invariant: what is malformed
in a field counts as not sent, and time is linear in what came times what is on offer.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

__all__ = ["best_encoding", "best_type"]

MEMBERS_MAX: Final = 100
"""Members that are read of one field; what comes behind them is left out."""

_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_MEMBER = re.compile(r'(?:[^",]++|"(?:[^"\\]++|\\.)*+(?:"|\\?\Z))++')
_NAME = re.compile(rf"{_TOKEN}(?:/{_TOKEN})?")
_PARAMETER = re.compile(rf'[ \t]*;[ \t]*(?:({_TOKEN})=({_TOKEN}|"(?:[^"\\]|\\.)*+"))?')
_QVALUE = re.compile(r"0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?")
_SAME_CODING = {"x-gzip": "gzip", "x-compress": "compress"}     # RFC 9110, section 8.4.1


class _Member(NamedTuple):
    name: str                               # in lower case
    parameters: frozenset[tuple[str, str]]  # those in front of the weight, names in lower case
    weight: int                             # thousandths


def best_type(accept: str, offers: Sequence[str]) -> str | None:
    """The media type of `offers` that Accept prefers, of equals the first; None: it accepts none of them. To a client
    that names no type all are alike. ValueError: one of `offers` is no media type.

    A range counts that says most of the type: more than `*/*`, more than `text/*`, more parameters.
    """
    ranges = [member for member in _members(accept) if "/" in member.name]
    if not ranges:
        return offers[0] if offers else None
    best, liked = None, 0
    for offer in offers:
        weight = _weight_of_type(offer, ranges)
        if weight > liked:
            best, liked = offer, weight
    return best


def best_encoding(accept: str, offers: Sequence[str]) -> str | None:
    """The content coding of `offers` that Accept-Encoding prefers, of equals the first; None: what is sent had better
    not be encoded, as where the client names no coding."""
    weights = {_SAME_CODING.get(name, name): weight for name, _, weight in _members(accept)}
    others = weights.get("*", 0)
    best, liked = None, max(1, weights.get("identity", 0))
    for offer in offers:
        weight = weights.get(offer.lower(), others)
        if weight >= liked and (best is None or weight > liked):
            best, liked = offer, weight
    return best


def _weight_of_type(offer: str, ranges: Sequence[_Member]) -> int:
    offered = next(_members(offer), None)
    if offered is None or "/" not in offered.name:
        raise ValueError(f"not a media type: {offer[:80]!r}")
    kind, parameters, _ = offered
    wide = f"{kind.partition('/')[0]}/*"
    said, weight = (0, 0), 0
    for name, wanted, quality in ranges:
        if name in (kind, wide, "*/*") and wanted <= parameters:
            says = (3 - name.count("*"), len(wanted))
            if says > said:
                said, weight = says, quality
    return weight


def _members(field: str) -> Iterator[_Member]:
    """Those that are well formed."""
    for number, found in enumerate(_MEMBER.finditer(field)):
        if number == MEMBERS_MAX:
            return
        member = _read(found[0].strip(" \t"))
        if member is not None:
            yield member


def _read(text: str) -> _Member | None:
    name = _NAME.match(text)
    if name is None:
        return None
    at = name.end()
    parameters: set[tuple[str, str]] = set()
    weight = 1000
    weighed = False
    while at < len(text):
        match = _PARAMETER.match(text, at)
        if match is None:
            return None
        at = match.end()
        key, value = match.groups()
        if key is None or weighed:
            # Behind the weight stood extensions once, which nobody ever used.
            continue
        if key.lower() != "q":
            parameters.add((key.lower(), re.sub(r"\\(.)", r"\1", value[1:-1]) if value[0] == '"' else value))
        elif _QVALUE.fullmatch(value):
            weight, weighed = round(float(value) * 1000), True
        else:
            return None
    return _Member(name[0].lower(), frozenset(parameters), weight)
