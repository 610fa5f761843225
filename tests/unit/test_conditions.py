"""Conditional requests and ranges.

Knows: RFC 9110, sections 13 and 14. Never sees: a ctx, a file.
"""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastserve.conditions import RANGES_MAX, is_known, ranges_of, still_is
from fastserve.dates import format_date

TAG = '"a-1"'
CHANGED = datetime(2026, 1, 2, 3, 4, 5, 600, tzinfo=UTC)
THEN, LATER, BEFORE = (format_date(CHANGED + timedelta(seconds=n)) for n in (0, 1, -1))


def asked(text: str, size: int = 100, if_range: tuple[str, ...] = ()) -> list[tuple[int, int]] | None:
    return ranges_of([text], if_range, size, TAG, CHANGED)


@pytest.mark.parametrize(("field", "known"), [
    (TAG, True), (f"W/{TAG}", True), ('"x"', False), (f'"x", {TAG}', True), (f'"x",,{TAG} , "y"', True), ("*", True),
    (" * ", True), ("", False), ("a-1", False), (f'"x" {TAG}', False), (f'x, {TAG}', False), ('"a-1', False),
    (f'"a,{TAG}', False), ('"a-1" x', False), ('w/"a-1"', False),
])
def test_if_none_match(field: str, known: bool) -> None:
    assert is_known([field], None, TAG, CHANGED) == known
    assert is_known([field], CHANGED + timedelta(days=1), TAG, CHANGED) == known     # the moment does not count then
    assert is_known(['"y"', field], None, TAG, CHANGED) == (known and "*" not in field)


def test_if_modified_since() -> None:
    assert not is_known([], None, TAG, CHANGED)
    for seconds, known in ((-1, False), (0, True), (1, True)):
        assert is_known([], CHANGED.replace(microsecond=0) + timedelta(seconds=seconds), TAG, CHANGED) == known


@pytest.mark.parametrize(("field", "same"), [
    (TAG, True), (f"W/{TAG}", False), ("*", True), ('"x"', False), (f'"x", {TAG}', True), ("", False),
])
def test_if_match(field: str, same: bool) -> None:
    assert still_is([field], [], TAG, CHANGED) == same
    assert still_is([field], [BEFORE], TAG, CHANGED) == same
    assert not still_is([f"W/{TAG}"], [], f"W/{TAG}", CHANGED)      # weak ones are never the same


def test_if_unmodified_since() -> None:
    for fields, same in (([THEN], True), ([LATER], True), ([BEFORE], False), ([], True), (["x"], True),
                         ([BEFORE, BEFORE], True)):
        assert still_is([], fields, TAG, CHANGED) == same


@pytest.mark.parametrize(("text", "ranges"), [
    ("bytes=0-0", [(0, 1)]), ("bytes=0-99", [(0, 100)]), ("bytes=0-", [(0, 100)]), ("bytes=99-", [(99, 100)]),
    ("bytes=90-200", [(90, 100)]), ("bytes=-1", [(99, 100)]), ("bytes=-100", [(0, 100)]), ("bytes=-500", [(0, 100)]),
    ("bytes=0-0,2-3", [(0, 1), (2, 4)]), ("bytes=50-59 ,\t0-9", [(50, 60), (0, 10)]), ("BYTES=1-2", [(1, 3)]),
    ("bytes=0-0,-1", [(0, 1), (99, 100)]), ("bytes=0-9,100-", [(0, 10)]),
    # Nothing of it is there: 416.
    ("bytes=100-", []), ("bytes=100-200", []), ("bytes=-0", []), ("bytes=999-,-0", []),
    # As if it had not been sent.
    ("", None), ("bytes", None), ("bytes=", None), ("bytes=x", None), ("bytes=1", None), ("bytes=-", None),
    ("bytes=2-1", None), ("bytes=0-1,x", None), ("bytes=0-1,", None), ("bytes=--1", None), ("bytes=1--2", None),
    ("bytes=+1-2", None), ("bytes=0x0-1", None), ("bytes=1 - 2", None), ("items=0-1", None), ("bytes:0-1", None),
    ("bytes =0-1", None), (" bytes=0-1", None),
    ("bytes=\u0661-2", None), ("bytes=" + "9" * 19 + "-", None),
    # They overlap.
    ("bytes=0-10,5-", None), ("bytes=0-,0-", None), ("bytes=0-50,-50", None),
])
def test_ranges(text: str, ranges: list[tuple[int, int]] | None) -> None:
    assert asked(text) == ranges


def test_of_an_empty_file_there_is_no_range() -> None:
    """But its last bytes can be asked for: they are the whole."""
    for text, found in (("bytes=0-", []), ("bytes=0-0", []), ("bytes=-0", []), ("bytes=-5", None)):
        assert asked(text, 0) == found


def test_so_many_ranges_are_read() -> None:
    for count, length in ((RANGES_MAX, RANGES_MAX), (RANGES_MAX + 1, None)):
        found = asked("bytes=" + ",".join(f"{2 * n}-{2 * n}" for n in range(count)))
        assert (None if found is None else len(found)) == length
    assert ranges_of(["bytes=0-1", "bytes=2-3"], (), 100, TAG, CHANGED) is None


@pytest.mark.parametrize(("if_range", "counts"), [
    ((TAG,), True), ((THEN,), True), (('"x"',), False), ((f"W/{TAG}",), False), ((LATER,), False), ((BEFORE,), False),
    (("x",), False), (("",), False), ((TAG, TAG), False), (("*",), False),
])
def test_if_range(if_range: tuple[str, ...], counts: bool) -> None:
    assert asked("bytes=0-0", if_range=if_range) == ([(0, 1)] if counts else None)


@given(st.integers(0, 50), st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), min_size=1, max_size=5))
def test_ranges_lie_within_the_file_and_apart(size: int, pairs: list[tuple[int, int]]) -> None:
    found = asked("bytes=" + ",".join(f"{a}-{b}" for a, b in pairs), size)
    if any(b < a for a, b in pairs):
        assert found is None
        return
    wanted = [(a, min(b + 1, size)) for a, b in pairs if a < size]
    covered = [n for a, b in wanted for n in range(a, b)]
    assert found == (wanted if len(set(covered)) == len(covered) else None)


@given(st.text(st.sampled_from('bytes=0123456789-, \t"W/*x\u00e9'), max_size=60))
def test_whatever_comes_there_is_an_answer(text: str) -> None:
    for start, stop in asked(f"bytes={text}") or []:
        assert 0 <= start < stop <= 100
    assert is_known([text], None, TAG, CHANGED) in (True, False)
    assert still_is([text], [text], TAG, CHANGED) in (True, False)
    asked("bytes=0-0", if_range=(text,))
