"""Fields that are not in a buffer any more: a case-insensitive multi-map of str.

Knows: names match without case, a name may stand several times, order matters. Never sees: a ctx, a
connection; `Headers`, the view of the fields of a request, has the same methods.
Invariant: immutable, and its own: it stays valid when the call is over.
"""

from collections.abc import Iterator
from typing import TypeVar, overload

__all__ = ["Fields"]

D = TypeVar("D")


class Fields:
    """Pairs of name and value, both str (latin-1, as sent), in the order in which they came."""

    __slots__ = ("_pairs",)

    def __init__(self, pairs: list[tuple[str, str]]) -> None:
        self._pairs = pairs

    @classmethod
    def of_lines(cls, lines: bytes) -> "Fields":
        """Of field lines that were checked before, each with its CRLF."""
        pairs: list[tuple[str, str]] = []
        for line in lines.decode("latin-1").split("\r\n")[:-1]:
            name, _, value = line.partition(":")
            pairs.append((name, value.strip(" \t")))
        return cls(pairs)

    @overload
    def get(self, name: str) -> str | None: ...
    @overload
    def get(self, name: str, default: D) -> str | D: ...
    def get(self, name: str, default: object = None) -> object:
        """The first value of `name`, or `default`."""
        return next(iter(self.getall(name)), default)

    def getall(self, name: str) -> list[str]:
        """Every value of `name`, in order."""
        return [value for found, value in self._pairs if found.lower() == name.lower()]

    def items(self) -> list[tuple[str, str]]:
        """The pairs, names as sent."""
        return list(self._pairs)

    def keys(self) -> list[str]:
        """The names as sent; one that was sent twice stands twice."""
        return [name for name, _ in self._pairs]

    def values(self) -> list[str]:
        """The values."""
        return [value for _, value in self._pairs]

    def __getitem__(self, name: str) -> str:
        found = self.getall(name)
        if not found:
            raise KeyError(name)
        return found[0]

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and bool(self.getall(name))

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __len__(self) -> int:
        return len(self._pairs)

    def __repr__(self) -> str:
        return f"Fields({self._pairs!r})"
