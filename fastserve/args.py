"""Queries and urlencoded forms as Python sees them.

Knows: maps from a name to its values, and what numbers look like in them. Never sees: bytes (the core reads those), a
connection, a ctx. Invariant: a map owns what it holds, and nothing in it expires; what is no number where a number is
asked for is the client's fault.
"""

import builtins
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar, overload

from fastserve.errors import BadRequest

__all__ = ["Args", "Pairs"]

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


class Args(Pairs[str]):
    """An ordered multi-map of str to str, read-only. Bytes that are not UTF-8 become U+FFFD."""

    __slots__ = ()

    @overload
    def int(self, name: str) -> builtins.int | None: ...
    @overload
    def int(self, name: str, default: D) -> builtins.int | D: ...
    def int(self, name: str, default: object = None) -> object:
        """The first value of `name` as an integer of at most 18 digits, `-` allowed, or `default` without one.
        BadRequest, which becomes 400: it is none."""
        return self._number(name, default, builtins.int, _INT, "an integer")

    @overload
    def float(self, name: str) -> builtins.float | None: ...
    @overload
    def float(self, name: str, default: D) -> builtins.float | D: ...
    def float(self, name: str, default: object = None) -> object:
        """The first value of `name` as a finite decimal number, exponent allowed, or `default` without one.
        BadRequest, which becomes 400: it is none."""
        return self._number(name, default, builtins.float, _FLOAT, "a number")

    @overload
    def bool(self, name: str) -> builtins.bool | None: ...
    @overload
    def bool(self, name: str, default: D) -> builtins.bool | D: ...
    def bool(self, name: str, default: object = None) -> object:
        """The first value of `name`: True for 1, t, true, y, yes and on, False for 0, f, false, n, no and off, whatever
        their case; `default` without one. BadRequest, which becomes 400: anything else."""
        text = self.get(name)
        if text is None:
            return default
        if text.lower() not in _BOOLS:
            raise BadRequest(f"{name} must be true or false")
        return _BOOLS[text.lower()]

    def _number(self, name: str, default: object, make: Callable[[str], object], pattern: re.Pattern[str],
                what: str) -> object:
        text = self.get(name)
        if text is None:
            return default
        if not pattern.fullmatch(text):
            raise BadRequest(f"{name} must be {what}")
        return make(text)
