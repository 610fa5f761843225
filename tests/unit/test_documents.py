"""JSON, by whichever library is there.

Knows: RFC 8259, and that orjson may be installed or not. Never sees: a ctx.
"""

import contextlib
import json
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastserve import BadRequest, documents

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-2**53, 2**53) | st.floats(allow_nan=False, allow_infinity=False) | st.text(
        st.characters(exclude_categories=("Cs",))),
    lambda children: st.lists(children) | st.dictionaries(st.text(st.characters(exclude_categories=("Cs",))), children),
    max_leaves=20)


@pytest.fixture(params=["orjson", "json"], autouse=True, scope="module")
def library(request: pytest.FixtureRequest) -> Iterator[None]:
    monkeypatch = pytest.MonkeyPatch()
    if request.param == "json":
        monkeypatch.setattr(documents, "orjson", None)
    elif documents.orjson is None:
        # What it does is the same words by another name; that it is called at all is what is left to see.
        monkeypatch.setattr(documents, "orjson", SimpleNamespace(
            loads=documents._read,
            dumps=lambda value: json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()))
    yield
    monkeypatch.undo()


@given(PLAIN)
def test_what_is_written_is_read(value: Any) -> None:
    assert documents.read_json(documents.write_json(value)) == value


def test_compact_utf_8() -> None:
    assert documents.write_json({"a": [1, "é"], "b": None}) == '{"a":[1,"é"],"b":null}'.encode()


@pytest.mark.parametrize("body", [
    b"", b"{", b"\xff", b"nul", b"1 2", b"{'a': 1}", b"[1,]", b"NaN", b"Infinity", b"-Infinity", b'{"a": NaN}',
    '{"a": 1}'.encode("utf-16"), b"\xef\xbb\xbf{}", b'"\n"', b"01", b"+1", b"[" * 100_000, b'{"a":' * 100_000,
    b"\x00", b"1e999", b"[-1e999]", b'"\\ud800"', b'{"\\uDC00": 1}', b'["\\ud800\\ud800"]', b'"\\udc00\\ud800"',
])
def test_what_is_none(body: bytes) -> None:
    with pytest.raises(BadRequest, match=r"^the body is not a JSON document$"):
        documents.read_json(body)


@pytest.mark.parametrize(("body", "value"), [
    (b'"\\ud83d\\ude00"', "\U0001f600"), (b'"\\uD83D\\uDE00 \\\\ud800"', "\U0001f600 \\ud800"), (b"1e308", 1e308),
    (b"-1e-999", -0.0),
])
def test_what_is_one(body: bytes, value: Any) -> None:
    assert documents.read_json(body) == value


def test_what_cannot_be_written() -> None:
    with pytest.raises((TypeError, ValueError)):
        documents.write_json(object())
    with pytest.raises((TypeError, ValueError)):
        documents.write_json("\ud800")


@given(st.binary(max_size=50))
def test_whatever_comes_it_is_a_document_or_the_client_s_fault(body: bytes) -> None:
    with contextlib.suppress(BadRequest):
        documents.read_json(body)
