"""Whether a representation is sent, and which part of it.

Knows: conditional requests (RFC 9110, section 13) and ranges (section 14), as fields and what they mean for a size, an
entity tag, a moment. Never sees: a ctx, a file. Invariant: what is malformed counts as not sent; time is linear in what
came.
"""

import re
from collections.abc import Sequence
from datetime import datetime
from itertools import pairwise
from typing import Final

from fastserve.dates import parse_date

__all__ = ["RANGES_MAX", "is_known", "ranges_of", "still_is"]

RANGES_MAX: Final = 16
"""Ranges of one request: who asks for more gets the whole."""

_TAGS = re.compile(r'[ \t]*(?:,[ \t]*)*(?P<tag>(?:W/)?"[!#-~\x80-\xff]*")[ \t]*(?=,|\Z)')
_RANGE = re.compile(r"[ \t]*(?:([0-9]{1,18})-([0-9]{0,18})|-([0-9]{1,18}))[ \t]*")


def is_known(none_match: Sequence[str], modified_since: datetime | None, tag: str, changed: datetime) -> bool:
    """Has the client what it asks for (sections 13.1.2 and 13.1.3)? If-None-Match alone counts where there is one."""
    if none_match:
        return _has(", ".join(none_match), tag, weak=True)
    return modified_since is not None and changed.replace(microsecond=0) <= modified_since


def still_is(match: Sequence[str], unmodified_since: Sequence[str], tag: str, changed: datetime) -> bool:
    """Is it still what the client means (sections 13.1.1 and 13.1.4)? If-Match alone counts where there is one."""
    if match:
        return _has(", ".join(match), tag, weak=False)
    since = parse_date(unmodified_since[0]) if len(unmodified_since) == 1 else None
    return since is None or changed.replace(microsecond=0) <= since


def ranges_of(asked: Sequence[str], if_range: Sequence[str], size: int, tag: str,
              changed: datetime) -> list[tuple[int, int]] | None:
    """First byte and the one behind the last, of each range in Range that lies within `size` bytes; [] if none does
    (416); None: the whole is sent, because nothing else was asked for, If-Range means another one, or they overlap."""
    if len(asked) != 1 or not _means(if_range, tag, changed):
        return None
    unit, _, specs = asked[0].partition("=")
    if unit.lower() != "bytes":
        return None
    found: list[tuple[int, int]] = []
    words = specs.split(",", RANGES_MAX)
    if len(words) > RANGES_MAX:
        return None
    for word in words:
        match = _RANGE.fullmatch(word)
        if match is None:
            return None
        first, last, suffix = match.groups()
        if suffix is not None:
            if size == 0 and int(suffix):
                # It can be satisfied (section 14.1.2), by what no Content-Range can say.
                return None
            start, stop = max(0, size - int(suffix)), size
        else:
            start, stop = int(first), min(int(last) + 1, size) if last else size
            if last and int(last) < int(first):
                return None
        if start < stop:
            found.append((start, stop))
    ordered = sorted(found)
    if any(first[1] > second[0] for first, second in pairwise(ordered)):
        return None
    return found


def _has(field: str, tag: str, weak: bool) -> bool:
    """Does the list name this entity tag (section 8.8.3.2)? What follows a malformed member is not read."""
    if field.strip(" \t") == "*":
        return True
    at = 0
    while match := _TAGS.match(field, at):
        named, at = match["tag"], match.end()
        if weak:
            named, tag = named.removeprefix("W/"), tag.removeprefix("W/")
        if named == tag and not tag.startswith("W/"):
            return True
    return False


def _means(if_range: Sequence[str], tag: str, changed: datetime) -> bool:
    """Section 13.1.5: exactly this tag, if it is a strong one, or exactly this moment. (Which is not quite strong: a
    second change within that second is not seen. A client that was sent a tag, as ours are, has to use that.)"""
    if not if_range:
        return True
    word = if_range[0].strip(" \t") if len(if_range) == 1 else ""
    if word.startswith('"'):
        return word == tag
    return parse_date(word) == changed.replace(microsecond=0)
