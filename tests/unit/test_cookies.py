"""Set-Cookie, written.

Knows: RFC 6265, what browsers drop, and the standard library's reading of a cookie.
Never sees: a ctx.
"""

from datetime import UTC, datetime
from http.cookies import SimpleCookie
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastserve._core import parse_cookies
from fastserve.cookies import cookie_key, format_cookie

OCTETS = "".join(chr(c) for c in range(0x21, 0x7f) if chr(c) not in '",;\\')
TOKENS = "".join(chr(c) for c in range(0x21, 0x7f) if chr(c) not in '"(),/:;<=>?@[\\]{}')


def test_plain() -> None:
    assert format_cookie("a", "1") == "a=1; Path=/; SameSite=Lax"
    assert format_cookie("a", "", path=None, same_site=None) == "a="
    assert format_cookie("a", '"x"', path=None, same_site=None) == 'a="x"'


def test_everything() -> None:
    assert format_cookie(
        "__Host-id", "x", max_age=60, expires=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), secure=True, http_only=True,
        same_site="none", partitioned=True,
    ) == ("__Host-id=x; Expires=Fri, 02 Jan 2026 03:04:05 GMT; Max-Age=60; Path=/; Secure; HttpOnly; SameSite=None; "
          "Partitioned")
    assert format_cookie("a", "1", domain=".example.org", path="/x y/", same_site="strict") == (
        "a=1; Domain=.example.org; Path=/x y/; SameSite=Strict")


@pytest.mark.parametrize("wrong", [
    {"name": ""}, {"name": "a b"}, {"name": "a=b"}, {"name": "é"}, {"name": "a\r\nb"}, {"value": "a b"},
    {"value": "a;b"}, {"value": "a,b"}, {"value": 'a"b'}, {"value": '"a'}, {"value": "a\\b"}, {"value": "é"},
    {"value": "a\r\nSet-Cookie: b=1"}, {"value": "a\n"}, {"value": "\x7f"}, {"value": "x" * 4096}, {"path": "x"},
    {"path": ""}, {"path": "/;"}, {"path": "/\n"}, {"path": "/" + 1024 * "x"}, {"domain": ""}, {"domain": "a b"},
    {"domain": "a;b"}, {"domain": "-a"}, {"domain": "a\n"}, {"same_site": "Sometimes"}, {"same_site": "None"},
    {"partitioned": True}, {"name": "__Secure-a"}, {"name": "__Host-a"}, {"name": "__host-a"},
    {"name": "__Host-a", "secure": True, "path": "/x"}, {"name": "__Host-a", "secure": True, "path": None},
    {"name": "__Host-a", "secure": True, "domain": "example.org"}, {"name": "__Http-a", "secure": True},
    {"name": "__Host-Http-a", "secure": True}, {"expires": datetime(2026, 1, 1)},
])
def test_what_a_browser_would_drop_or_take_for_another(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        format_cookie(**{"name": "a", "value": "1"} | wrong)


@given(st.text(TOKENS, min_size=1, max_size=20).map("c{}".format), st.text(OCTETS, max_size=40))
def test_what_is_written_is_read(name: str, value: str) -> None:
    field = format_cookie(name, value)
    assert parse_cookies([field.encode()]) == {name: value, "Path": "/", "SameSite": "Lax"}


@given(st.from_regex("c[A-Z0-9]{0,10}", fullmatch=True), st.text(OCTETS, max_size=40))
def test_the_standard_library_reads_it_too(name: str, value: str) -> None:
    morsel = SimpleCookie(format_cookie(name, value, max_age=5, domain="a.b", secure=True, http_only=True))[name]
    assert (morsel.value, morsel["max-age"], morsel["domain"], morsel["path"]) == (value, "5", "a.b", "/")
    assert (morsel["secure"], morsel["httponly"], morsel["samesite"]) == (True, True, "Lax")


@given(st.text(max_size=20), st.text(max_size=20), st.text(max_size=20), st.text(max_size=20))
def test_nothing_breaks_out(name: str, value: str, path: str, domain: str) -> None:
    try:
        field = format_cookie(name, value, path=path, domain=domain)
    except ValueError:
        return
    assert field.count(";") == 3
    assert field.isascii()
    assert field.isprintable()
    assert cookie_key(field) == (name, domain.lstrip(".").lower(), path, False)


def test_cookies_are_told_apart_by_name_domain_path_and_site() -> None:
    key = cookie_key(format_cookie("a", "1"))
    assert cookie_key(format_cookie("a", "2", max_age=0, secure=True)) == key
    assert cookie_key(format_cookie("A", "1")) != key
    assert cookie_key(format_cookie("a", "1", path="/x")) != key
    assert cookie_key(format_cookie("a", "1", secure=True, partitioned=True)) != key
    assert cookie_key(format_cookie("a", "1", domain="a.b")) != key
    assert cookie_key(format_cookie("a", "1", domain="A.b")) == cookie_key(format_cookie("a", "1", domain=".a.B"))
