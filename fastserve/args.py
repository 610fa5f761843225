"""Queries, urlencoded forms and cookies as Python sees them.

Knows: `application/x-www-form-urlencoded` (WHATWG URL, section 5.1) and the Cookie field (RFC 6265).
Never sees: a connection, a ctx. Invariant: an `Args` owns its strings; nothing in it expires.
"""

from collections.abc import Iterator
from urllib.parse import unquote_to_bytes

__all__ = ["Args", "parse_cookies"]

FIELDS_MAX = 1000
"""Pairs that are read of one query or form; what comes behind them is left out."""


class Args:
    """An ordered multi-map of str to str, read-only. Bytes that are not UTF-8 become U+FFFD."""

    __slots__ = ("_pairs",)

    def __init__(self, pairs: list[tuple[str, str]]) -> None:
        self._pairs = pairs

    @classmethod
    def parse(cls, raw: bytes) -> "Args":
        """Splits at `&`, then at the first `=`; `+` is a space; a `%` without two digits stands for
        itself; empty parts are left out."""
        pairs = []
        for part in raw.split(b"&", FIELDS_MAX)[:FIELDS_MAX]:
            if part:
                name, _, value = part.partition(b"=")
                pairs.append((_decode(name), _decode(value)))
        return cls(pairs)

    def get(self, name: str, default: str | None = None) -> str | None:
        """The first value of `name`, or `default`."""
        for key, value in self._pairs:
            if key == name:
                return value
        return default

    def getall(self, name: str) -> list[str]:
        """Every value of `name`, in order."""
        return [value for key, value in self._pairs if key == name]

    def items(self) -> list[tuple[str, str]]:
        """All pairs, in order."""
        return list(self._pairs)

    def __getitem__(self, name: str) -> str:
        for key, value in self._pairs:
            if key == name:
                return value
        raise KeyError(name)

    def __contains__(self, name: object) -> bool:
        return any(key == name for key, _ in self._pairs)

    def __iter__(self) -> Iterator[str]:
        return iter([key for key, _ in self._pairs])

    def __len__(self) -> int:
        return len(self._pairs)

    def __repr__(self) -> str:
        return f"Args({self._pairs!r})"


def _decode(raw: bytes) -> str:
    return unquote_to_bytes(raw.replace(b"+", b" ")).decode("utf-8", "replace")


def parse_cookies(fields: list[str]) -> dict[str, str]:
    """The cookies of all Cookie fields; of one name the first counts, and a part without `=` none."""
    cookies: dict[str, str] = {}
    for field in fields:
        for part in field.split(";"):
            name, equals, value = part.strip().partition("=")
            if equals and name:
                cookies.setdefault(name, value.strip('"') if value[:1] == value[-1:] == '"' else value)
    return cookies
