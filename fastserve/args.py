"""What stands in queries and forms, beyond text, as Python sees it.

Knows: what numbers look like there, and the map from a name to what is no text. Never sees: bytes (the core reads
those, and its `Args` is the map of text), a connection, a ctx. Invariant: a map owns what it holds and never changes;
what is no number where a number is asked for is the client's fault.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar, overload

from fastserve.errors import BadRequest

__all__ = ["Pairs", "read_bool", "read_float", "read_int"]

FIELDS_MAX = 1000
"""Parts that are read of one query, form or set of cookies, empty ones counted; what comes behind them is
left out. No page has as many controls, and a lookup, which goes through all, stays in the microseconds."""

T = TypeVar("T")
D = TypeVar("D")

_INT = re.compile(r"-?[0-9]{1,18}")
_FLOAT = re.compile(r"-?(?:[0-9]{1,40}(?:\.[0-9]{0,40})?|\.[0-9]{1,40})(?:[eE][+-]?[0-9]{1,2})?")
_BOOLS = {"1": True, "t": True, "true": True, "y": True, "yes": True, "on": True,
          "0": False, "f": False, "false": False, "n": False, "no": False, "off": False}


class Pairs(Generic[T]):
    """An ordered multi-map from str, read-only. Iteration gives names; a name that was sent twice stands
    twice, and `[]` and `get` give its first value."""

    __slots__ = ("_pairs",)

    def __init__(self, pairs: Iterable[tuple[str, T]] = ()) -> None:
        self._pairs = tuple(pairs)

    @overload
    def get(self, name: str) -> T | None: ...
    @overload
    def get(self, name: str, default: D) -> T | D: ...
    def get(self, name: str, default: object = None) -> object:
        """The first value of `name`, or `default`."""
        for key, value in self._pairs:
            if key == name:
                return value
        return default

    def getall(self, name: str) -> list[T]:
        """Every value of `name`, in order."""
        return [value for key, value in self._pairs if key == name]

    def items(self) -> list[tuple[str, T]]:
        """All pairs, in order."""
        return list(self._pairs)

    def keys(self) -> list[str]:
        """All names, in order."""
        return [key for key, _ in self._pairs]

    def values(self) -> list[T]:
        """All values, in order."""
        return [value for _, value in self._pairs]

    def __getitem__(self, name: str) -> T:
        for key, value in self._pairs:
            if key == name:
                return value
        raise KeyError(name)

    def __contains__(self, name: object) -> bool:
        return any(key == name for key, _ in self._pairs)

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __len__(self) -> int:
        return len(self._pairs)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({list(self._pairs)!r})"


def read_int(name: str, text: str) -> int:
    """At most 18 digits, `-` allowed."""
    if not _INT.fullmatch(text):
        raise BadRequest(f"{name} must be an integer")
    return int(text)


def read_float(name: str, text: str) -> float:
    """A finite decimal number, exponent allowed."""
    if not _FLOAT.fullmatch(text):
        raise BadRequest(f"{name} must be a number")
    return float(text)


def read_bool(name: str, text: str) -> bool:
    """One of `_BOOLS`, whatever its case."""
    value = _BOOLS.get(text.lower())
    if value is None:
        raise BadRequest(f"{name} must be true or false")
    return value
