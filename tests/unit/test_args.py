"""Queries, urlencoded forms and cookies. No socket, no ctx."""

import copy
import os
import pickle
import tracemalloc
from collections.abc import Callable
from time import perf_counter
from urllib.parse import unquote_to_bytes, urlencode

import pytest
from hypothesis import example, given, seed
from hypothesis import strategies as st

from fastserve import Args
from fastserve._core import parse_args, parse_cookies
from fastserve.args import FIELDS_MAX

SEED = int(os.environ["FASTSERVE_SEED"])  # conftest.py prints it
MIB = 1 << 20


def cost(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds, and MiB at the peak."""
    begin = perf_counter()
    work()
    seconds = perf_counter() - begin
    tracemalloc.start()
    try:
        work()
        return seconds, tracemalloc.get_traced_memory()[1] / MIB
    finally:
        tracemalloc.stop()


# --- the map ---


def test_the_first_value_counts_and_the_order_stays() -> None:
    args = Args([("a", "1"), ("b", "2"), ("a", "3")])
    assert args["a"] == args.get("a") == "1"
    assert args.getall("a") == ["1", "3"]
    assert args.getall("c") == []
    assert args.items() == [("a", "1"), ("b", "2"), ("a", "3")]
    assert list(args) == args.keys() == ["a", "b", "a"]
    assert args.values() == ["1", "2", "3"]
    assert len(args) == 3
    assert dict(args) == {"a": "1", "b": "2"}
    assert "a" in args
    assert "c" not in args
    assert 1 not in args
    assert args.get(1, "none") == "none"  # type: ignore[call-overload]
    assert repr(args) == "Args([('a', '1'), ('b', '2'), ('a', '3')])"


def test_a_name_that_is_not_there() -> None:
    args = Args()
    assert not args
    assert args.get("a") is None
    assert args.get("a", "x") == "x"
    with pytest.raises(KeyError, match="a"):
        args["a"]


def test_a_map_is_its_own() -> None:
    """Neither the list that it was made of nor one that it gave changes it."""
    pairs = [("a", "1")]
    args = Args(pairs)
    pairs.clear()
    args.items().clear()
    args.getall("a").clear()
    assert args.items() == [("a", "1")]
    with pytest.raises(TypeError):
        args["a"] = "2"  # type: ignore[index]
    with pytest.raises(AttributeError):
        args.more = 1  # type: ignore[attr-defined]


def test_a_map_is_made_of_text_alone() -> None:
    for pairs in ([("a", 1)], [(b"a", "1")], [("a",)], ["abc"], 1):
        with pytest.raises((TypeError, ValueError)):
            Args(pairs)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        type("More", (Args,), {})


def test_a_name_is_its_characters_and_nothing_else() -> None:
    class Named(str):
        """Says of itself what it likes."""

        def __eq__(self, other: object) -> bool:
            return True

        __hash__ = str.__hash__

    names = ["", "a", "A", "aa", "\xe9", "\u0101", "\u4141", "\U00014141", "a\0"]
    args = Args(zip(names, map(repr, names), strict=True))
    for name in names:
        assert args[name] == args[Named(name)] == repr(name)
    for name in ("b", "\x41\x41", "\u6161", "\U00010041", "\0a"):
        assert Named(name) not in args
    given = Args([(Named("a"), Named("1"))])
    assert [type(word) for pair in given.items() for word in pair] == [str, str]


def test_a_map_goes_to_another_process_and_is_copied() -> None:
    args = Args([("a", "1"), ("a", "2")])
    for other in (pickle.loads(pickle.dumps(args)), copy.copy(args), copy.deepcopy(args)):
        assert type(other) is Args
        assert other.items() == args.items()


# --- queries and forms ---


@pytest.mark.parametrize(
    ("raw", "pairs"),
    [
        (b"", []),
        (b"a=1", [("a", "1")]),
        (b"a=1&b=2&a=3", [("a", "1"), ("b", "2"), ("a", "3")]),
        (b"&&a=1&&b=2&", [("a", "1"), ("b", "2")]),
        (b"a", [("a", "")]),
        (b"a=", [("a", "")]),
        (b"=1", [("", "1")]),
        (b"=", [("", "")]),
        (b"a=b=c", [("a", "b=c")]),
        (b"a;b=1", [("a;b", "1")]),
        (b"a+b=c+d", [("a b", "c d")]),
        (b"a%2Bb=%2b", [("a+b", "+")]),
        (b"a=1%262", [("a", "1&2")]),
        (b"a%3D=%3d", [("a=", "=")]),
        (b"%", [("%", "")]),
        (b"%4", [("%4", "")]),
        (b"%%41", [("%A", "")]),
        (b"%4%41", [("%4A", "")]),
        (b"%zz%4g%g4", [("%zz%4g%g4", "")]),
        (b"% 41%+41", [("% 41% 41", "")]),
        (b"%2541", [("%41", "")]),
        (b"%4142", [("A42", "")]),
        (b"\\x41%41\\%41\\\\n", [("\\x41A\\A\\\\n", "")]),
        (b"%5cn%41\\\n", [("\\nA\\\n", "")]),
        (b"%C3%A9=\xc3\xa9", [("é", "é")]),
        (b"%ff=\xff", [("\ufffd", "\ufffd")]),
        (b"%c3=%a9", [("\ufffd", "\ufffd")]),
        (b"%00=\x00", [("\0", "\0")]),
        (b"%f0%9f%90%8d", [("🐍", "")]),
    ],
)
def test_reads_a_query(raw: bytes, pairs: list[tuple[str, str]]) -> None:
    assert parse_args(raw).items() == pairs


@seed(SEED)
@given(st.lists(st.tuples(st.text(), st.text())))
def test_what_was_encoded_comes_back(pairs: list[tuple[str, str]]) -> None:
    pairs = [(name.encode("utf-8", "replace").decode(), value.encode("utf-8", "replace").decode())
             for name, value in pairs]
    assert parse_args(urlencode(pairs).encode()).items() == pairs


@seed(SEED)
@given(st.lists(st.sampled_from([b"%", b"4", b"1", b"+", b"&", b"=", b"g", b"\\", b"x", b"\xff", b"%e2%82%ac"])))
@example([b"\\", b"%", b"4", b"1"])
def test_any_bytes_are_read_as_the_standard_library_reads_them(parts: list[bytes]) -> None:
    raw = b"".join(parts)
    assert parse_args(raw).items() == [
        (name.decode("utf-8", "replace"), value.decode("utf-8", "replace")) for name, value in _plain(raw)
    ]


def _plain(raw: bytes) -> list[tuple[bytes, bytes]]:
    """The grammar, once more and slowly."""
    pairs = []
    for part in raw.split(b"&"):
        if part:
            name, _, value = part.replace(b"+", b" ").partition(b"=")
            pairs.append((unquote_to_bytes(name), unquote_to_bytes(value)))
    return pairs


def test_the_number_of_fields_is_bounded() -> None:
    assert len(parse_args(b"&".join([b"a=1"] * FIELDS_MAX))) == FIELDS_MAX
    assert len(parse_args(b"&".join([b"a=1"] * (FIELDS_MAX + 1)))) == FIELDS_MAX
    assert parse_args(b"&" * FIELDS_MAX + b"a=1").items() == []


@pytest.mark.parametrize("unit", [b"%", b"%41", b"%41a", b"%e2%82", b"%zz", b"+", b"&", b"=", b"a=&", b"\xff", b"\\"])
def test_four_mebibytes_of_anything_cost_little(unit: bytes) -> None:
    """The standard library takes 1.6 s and 740 MiB for the first of them, in one call that keeps the GIL."""
    raw = unit * (4 * MIB // len(unit))
    seconds, peak = cost(lambda: parse_args(raw))
    assert peak < 32
    assert seconds < 5  # about 0.2; a bound for what is not linear


# --- cookies ---


def cookies_of(*fields: str) -> dict[str, str]:
    return parse_cookies([field.encode("latin-1") for field in fields])


@pytest.mark.parametrize(
    ("fields", "cookies"),
    [
        ([], {}),
        ([""], {}),
        (["a=1"], {"a": "1"}),
        (["a=\xe9"], {"a": "\xe9"}),
        (["a=1; b=2"], {"a": "1", "b": "2"}),
        (["a=1;b=2;"], {"a": "1", "b": "2"}),
        ([" a = 1\t;\tb=2 "], {"a": "1", "b": "2"}),
        (["a=1", "b=2"], {"a": "1", "b": "2"}),
        (["a=1; a=2", "a=3"], {"a": "1"}),
        (["a; =1; =; b=2"], {"b": "2"}),
        (["a=b=c=="], {"a": "b=c=="}),
        (["a="], {"a": ""}),
        (['a="1 2"'], {"a": "1 2"}),
        (['a=""'], {"a": ""}),
        (['a="'], {"a": '"'}),
        (['a=""1""'], {"a": '"1"'}),
        (['a="1'], {"a": '"1'}),
        (['a="1; b=2"; c=3'], {"a": '"1', "b": '2"', "c": "3"}),
        (["a=%41+b"], {"a": "%41+b"}),
        (["a=1, b=2"], {"a": "1, b=2"}),
        (["A=1; a=2"], {"A": "1", "a": "2"}),
    ],
)
def test_reads_cookies(fields: list[str], cookies: dict[str, str]) -> None:
    assert cookies_of(*fields) == cookies


@pytest.mark.parametrize("space", ["\x85", "\xa0", "\x1c", "\x0b"])
def test_what_only_python_takes_for_white_space_stays(space: str) -> None:
    """Else anybody who may set a cookie of a strange name sets one that only the site itself may."""
    assert cookies_of(f"{space}__Host-id=evil; __Host-id=good")["__Host-id"] == "good"
    assert cookies_of(f"a={space}") == {"a": space}


def test_a_cookie_in_utf_8_is_whole() -> None:
    """The second byte of U+00E0 is U+00A0 in latin-1."""
    assert parse_cookies(["a=voil\u00e0; b=1".encode()])["a"].encode("latin-1").decode() == "voil\u00e0"


def test_the_number_of_cookies_is_bounded() -> None:
    many = "; ".join(f"c{i}=1" for i in range(FIELDS_MAX + 1))
    assert list(cookies_of(many)) == [f"c{i}" for i in range(FIELDS_MAX)]
    assert len(cookies_of(many, "late=1")) == FIELDS_MAX
    singly = [f"c{i}=1" for i in range(FIELDS_MAX + 1)]
    assert len(cookies_of(*singly)) == FIELDS_MAX


NAME = st.text(st.characters(codec="latin-1", exclude_characters=' \t;="\r\n\0'), min_size=1)
VALUE = st.text(st.characters(codec="latin-1", exclude_characters=' \t;"\r\n\0'))


@seed(SEED)
@given(st.dictionaries(NAME, VALUE), st.sampled_from(["; ", ";", " ;\t"]))
def test_cookies_that_were_sent_come_back(cookies: dict[str, str], between: str) -> None:
    assert cookies_of(between.join(f"{name}={value}" for name, value in cookies.items())) == cookies


@seed(SEED)
@given(st.lists(st.text(st.characters(codec="latin-1"))))
def test_any_text_is_read(fields: list[str]) -> None:
    for name, value in cookies_of(*fields).items():
        assert name
        assert ";" not in name + value
