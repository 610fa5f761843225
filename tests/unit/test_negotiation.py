"""Accept and Accept-Encoding.

Knows: RFC 9110, sections 12.4.2 to 12.5.3. Never sees: a ctx.
"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastserve.negotiation import MEMBERS_MAX, best_encoding, best_type

HTML, JSON, TEXT = "text/html", "application/json", "text/plain"


@pytest.mark.parametrize(("accept", "offers", "best"), [
    ("", (HTML, JSON), HTML), ("*/*", (JSON, HTML), JSON), (JSON, (HTML, JSON), JSON), (JSON, (HTML,), None),
    ("text/html;q=0.5, application/json", (HTML, JSON), JSON), ("text/html, application/json", (JSON, HTML), JSON),
    ("text/*;q=0.3, text/html;q=0", (HTML, TEXT), TEXT), ("*/*;q=0.1, text/plain", (HTML, TEXT), TEXT),
    ("text/html;q=0", (HTML,), None), ("*/*;q=0", (HTML,), None), ("text/html;q=0.001", (HTML,), HTML),
    ("text/html;q=0.8, text/html;level=1", (HTML, "text/html;level=1"), "text/html;level=1"),
    ("text/html;level=1", (HTML,), None), ("TEXT/HTML", (HTML,), HTML), ('a/b; x="1,2"; q=0.5, c/d;q=0.4',
                                                                         ("c/d", 'a/b;x="1,2"'), 'a/b;x="1,2"'),
    ("text/html;q=1.5, application/json;q=0.1", (HTML, JSON), JSON), ("text/html;q=x", (HTML, JSON), HTML),
    ("nonsense, ///, ;q=1", (HTML,), HTML), (", ,text/plain,,", (HTML, TEXT), TEXT), ("*/*;q=0.5, *", (HTML,), HTML),
    ("text/html;q=0.5;q=1, application/json;q=0.6", (HTML, JSON), JSON),
    ("text/html, application/xhtml+xml, application/xml;q=0.9, image/avif, image/webp, */*;q=0.8", (JSON, HTML), HTML),
    ("text/html", (), None),
])
def test_types(accept: str, offers: tuple[str, ...], best: str | None) -> None:
    assert best_type(accept, offers) == best


@pytest.mark.parametrize(("accept", "offers", "best"), [
    ("", ("br", "gzip"), None), ("gzip, br", ("br", "gzip"), "br"), ("gzip", ("br", "gzip"), "gzip"),
    ("br;q=0.3, gzip;q=0.9", ("br", "gzip"), "gzip"), ("identity", ("gzip",), None), ("*", ("br",), "br"),
    ("identity, gzip;q=0.5", ("gzip",), None), ("identity;q=0.5, gzip", ("gzip",), "gzip"),
    ("identity;q=0.5, gzip;q=0.5", ("gzip",), "gzip"), ("gzip;q=0", ("gzip",), None), ("*;q=0", ("gzip",), None),
    ("gzip;q=0, *", ("gzip", "br"), "br"), ("x-gzip", ("gzip",), "gzip"), ("GZIP", ("gzip",), "gzip"),
    ("gzip;q=1.1", ("gzip",), None), ("gzip;q=0.001", ("gzip",), "gzip"), ("identity;q=0", ("gzip",), None),
    ("deflate", ("br", "gzip"), None), ("gzip;q=0.0", ("gzip",), None), ("gzip;q=1.", ("gzip",), "gzip"),
])
def test_encodings(accept: str, offers: tuple[str, ...], best: str | None) -> None:
    assert best_encoding(accept, offers) == best


@pytest.mark.parametrize("offer", ["", "html", "text/", "text/html, x/y;"[:5], "a b/c"])
def test_an_offer_is_a_media_type(offer: str) -> None:
    with pytest.raises(ValueError):
        best_type(HTML, (offer,))


def test_so_many_members_are_read() -> None:
    for ahead, best in ((MEMBERS_MAX - 1, "gzip"), (MEMBERS_MAX, None)):
        assert best_encoding("x, " * ahead + "gzip", ("gzip",)) == best


@given(st.text(st.sampled_from('abq/*;=,"\\ \t.01é\x00'), max_size=80))
def test_whatever_comes_there_is_an_answer(field: str) -> None:
    assert best_type(field, (HTML, "a/b")) in (HTML, "a/b", None)
    assert best_encoding(field, ("a", "b")) in ("a", "b", None)


@given(st.lists(st.tuples(st.sampled_from((HTML, JSON, TEXT, "text/*", "*/*")), st.integers(0, 1000)), max_size=6,
                unique_by=lambda member: member[0]))
def test_types_by_the_rules(members: list[tuple[str, int]]) -> None:
    """Each offer has the weight of the narrowest range that covers it."""
    weights = dict(members)

    def weight(offer: str) -> int:
        return next((weights[name] for name in (offer, f"{offer.partition('/')[0]}/*", "*/*") if name in weights), 0)

    offers = (HTML, JSON, TEXT)
    best = max(offers, key=weight) if members else HTML
    wanted = best if not members or weight(best) else None
    assert best_type(", ".join(f"{name};q={q / 1000:.3f}" for name, q in members), offers) == wanted
