"""Queries, urlencoded forms and cookies as Python sees them.

Knows: `application/x-www-form-urlencoded` (WHATWG URL, section 5.1) and the Cookie field (RFC 6265).
Never sees: a connection, a ctx. Invariant: a map owns what it holds, and nothing in it expires; time and
memory are linear in the bytes that came, whatever they are; what is no number where a number is asked for is the
client's fault.
"""

import builtins
import re
from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar, overload

from fastserve.errors import BadRequest

__all__ = ["Args", "Pairs", "parse_cookies"]

FIELDS_MAX = 1000
"""Parts that are read of one query, form or set of cookies, empty ones counted; what comes behind them is
left out. No page has as many controls, and a lookup, which goes through all, stays in the microseconds."""

SLICE = 65536
"""Bytes that are percent-decoded at a time: each escape is an object or two for a moment, many times its
size; a whole body of them at once took 740 MiB for 4."""

T = TypeVar("T")
D = TypeVar("D")

_ESCAPE = re.compile(rb"%(?=[0-9A-Fa-f]{2})")
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

    @classmethod
    def parse(cls, raw: bytes) -> "Args":
        """Splits at `&`, then at the first `=`; `+` is a space; a `%` without two digits stands for
        itself; empty parts are left out, and so is what lies behind `FIELDS_MAX` parts."""
        pairs = []
        for part in raw.split(b"&", FIELDS_MAX)[:FIELDS_MAX]:
            if part:
                name, _, value = part.partition(b"=")
                pairs.append((_decode(name), _decode(value)))
        return cls(pairs)

    @overload
    def int(self, name: str) -> builtins.int | None: ...
    @overload
    def int(self, name: str, default: D) -> builtins.int | D: ...
    def int(self, name: str, default: object = None) -> object:
        """The first value of `name` as an integer of at most 18 digits, `-` allowed, or `default` without one.
        BadRequest, which becomes 400: it is none."""
        text = self.get(name)
        if text is None:
            return default
        return builtins.int(self._checked(name, text, _INT, "an integer"))

    @overload
    def float(self, name: str) -> builtins.float | None: ...
    @overload
    def float(self, name: str, default: D) -> builtins.float | D: ...
    def float(self, name: str, default: object = None) -> object:
        """The first value of `name` as a finite decimal number, exponent allowed, or `default` without one.
        BadRequest, which becomes 400: it is none."""
        text = self.get(name)
        if text is None:
            return default
        return builtins.float(self._checked(name, text, _FLOAT, "a number"))

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

    @staticmethod
    def _checked(name: str, text: str, pattern: re.Pattern[str], what: str) -> str:
        if not pattern.fullmatch(text):
            raise BadRequest(f"{name} must be {what}")
        return text


def parse_cookies(fields: Iterable[str]) -> dict[str, str]:
    """The cookies of all Cookie fields, as sent (latin-1, nothing decoded).

    Of one name the first counts: a browser puts the cookie with the longest path first (RFC 6265, section
    5.4). A part without `=` or without a name is none. Spaces and tabs around a name or a value are not
    part of it, and neither is one pair of quotes around a value; a quote does not protect a `;`. No other
    character is taken off: a browser sends `U+00A0 __Host-id` for a cookie that anybody may set.
    """
    cookies: dict[str, str] = {}
    left = FIELDS_MAX
    for field in fields:
        for part in field.split(";", left)[:left]:
            left -= 1
            name, equals, value = part.partition("=")
            name, value = name.strip(" \t"), value.strip(" \t")
            if equals and name:
                if len(value) > 1 and value[0] == value[-1] == '"':
                    value = value[1:-1]
                cookies.setdefault(name, value)
    return cookies


def _decode(raw: bytes) -> str:
    raw = raw.replace(b"+", b" ")
    if b"%" in raw:
        raw = b"".join(_unescape(piece) for piece in _slices(raw))
    return raw.decode("utf-8", "replace")


def _slices(raw: bytes) -> Iterator[bytes]:
    """Pieces of at most SLICE bytes, none of which ends within an escape."""
    at = 0
    while at < len(raw):
        end = at + SLICE
        if end < len(raw):
            percent = raw.rfind(b"%", end - 2, end)
            end = end if percent < 0 else percent
        yield raw[at:end]
        at = end


def _unescape(raw: bytes) -> bytes:
    """`%41` becomes `\\x41`, which a codec of Python reads ten times as fast as a loop would."""
    raw = _ESCAPE.sub(rb"\\x", raw.replace(b"\\", rb"\\"))
    return raw.decode("unicode_escape").encode("latin-1")
