"""JSON documents, by orjson where it is installed and by the standard library where it is not.

Knows: RFC 8259, and where the two libraries differ. Never sees: a ctx. Invariant: what is read is strict UTF-8 JSON
without NaN, Infinity and halves of characters whichever library reads it, so that it can be written again, and whatever
came instead is BadRequest; what is written is compact UTF-8.
"""

import importlib
import json
from math import isinf
from typing import Any, NoReturn

from fastserve.errors import BadRequest

__all__ = ["read_json", "write_json"]

_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))     # json.dumps would make one

orjson: Any
try:
    orjson = importlib.import_module("orjson")
except ImportError:
    orjson = None


def read_json(body: bytes) -> Any:
    """BadRequest: it is no JSON, or nested too deeply."""
    try:
        # The standard library would guess at UTF-16 and UTF-32, which RFC 8259, section 8.1, has done away with.
        return orjson.loads(body) if orjson else _read(body)
    except (ValueError, RecursionError) as error:
        raise BadRequest("the body is not a JSON document") from error


def write_json(value: object) -> bytes:
    """TypeError or ValueError: there is no JSON for it."""
    if orjson:
        text: bytes = orjson.dumps(value)
        return text
    return _ENCODER.encode(value).encode()


def _read(body: bytes) -> Any:
    found = json.loads(body.decode(), parse_constant=_refuse, parse_float=_finite)
    if b"\\ud" in body or b"\\uD" in body:
        # Surrogates: those that found their other half are gone.
        json.dumps(found, ensure_ascii=False).encode()
    return found


def _finite(text: str) -> float:
    number = float(text)
    if isinf(number):
        raise ValueError(f"{text[:80]} is beyond every number")
    return number


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")
