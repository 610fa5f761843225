"""The router against a reading of its rules that tries every pattern.

Knows: patterns, paths, and a ctx of the few words that a router needs.
Never sees: a server (tests/live/test_router.py).
"""

import random
import sys
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import pytest

import fastserve.router
from fastserve import Router


@dataclass
class Ctx:
    path: str
    method: str = "GET"
    status: int = 200
    params: dict[str, str] = field(default_factory=dict)
    fields: dict[str, str] = field(default_factory=dict)

    def not_found(self) -> None:
        self.error("", 404)

    def error(self, message: str, status: int) -> None:
        self.fields, self.status = {}, status

    def set_header(self, name: str, value: str) -> None:
        self.fields[name] = value


def routed(*patterns: str) -> Router:
    """Each route's handler returns its pattern and what its parameters stood for."""
    router = Router()
    for pattern in patterns:
        router.get(pattern, lambda ctx, pattern=pattern: (pattern, ctx.params))
    return router


PATTERNS = ("/", "/a", "/a/", "/a/b", "/a/{x}", "/a/{x}/b", "/a/{x}/{y}", "/{x}/b", "/{x}", "/a/b/{rest:path}",
            "/{rest:path}", "/{x}/{y}/c/{rest:path}", "/a//b", "/ä ö/{x}")


@pytest.mark.parametrize(("path", "pattern", "params"), [
    ("/", "/", {}),
    ("/a", "/a", {}),
    ("/a/", "/a/", {}),
    ("/a/b", "/a/b", {}),
    ("/a/c", "/a/{x}", {"x": "c"}),
    ("/a/c/b", "/a/{x}/b", {"x": "c"}),
    ("/a/c/d", "/a/{x}/{y}", {"x": "c", "y": "d"}),
    ("/c/b", "/{x}/b", {"x": "c"}),
    ("/c", "/{x}", {"x": "c"}),
    ("/c/", "/{rest:path}", {"rest": "c/"}),
    ("/a/b/", "/a/b/{rest:path}", {"rest": ""}),
    ("/a/b/c/d", "/a/b/{rest:path}", {"rest": "c/d"}),
    ("/a/b/c", "/a/b/{rest:path}", {"rest": "c"}),
    ("/a/x/c/d/e", "/{x}/{y}/c/{rest:path}", {"x": "a", "y": "x", "rest": "d/e"}),
    ("/a/x/d/e", "/{rest:path}", {"rest": "a/x/d/e"}),
    ("/a//b", "/a//b", {}),
    ("/a//", "/{rest:path}", {"rest": "a//"}),
    ("/ä ö/ü", "/ä ö/{x}", {"x": "ü"}),
    ("/{x}", "/{x}", {"x": "{x}"}),
    ("//", "/{rest:path}", {"rest": "/"}),
])
def test_the_pattern_that_says_more_wins(path: str, pattern: str, params: dict[str, str],
                                         chance: random.Random) -> None:
    for _ in range(5):
        assert routed(*chance.sample(PATTERNS, len(PATTERNS)))(Ctx(path)) == (pattern, params)


def fits(pattern: list[str], path: list[str]) -> list[tuple[int, str]] | None:
    """How each segment is matched, text first; None: not at all."""
    found = []
    for at, segment in enumerate(pattern):
        if segment == "{r:path}" and at < len(path):
            return [*found, (2, "/".join(path[at:]))]
        if at >= len(path):
            return None
        if segment.startswith("{"):
            if not path[at]:
                return None
            found.append((1, path[at]))
        elif segment != path[at]:
            return None
        else:
            found.append((0, segment))
    return found if len(pattern) == len(path) else None


def test_as_every_pattern_tried_in_turn(chance: random.Random) -> None:
    for _ in range(300):
        letters = ["a", "b", "", "{x}", "{r:path}"]
        patterns = set()
        for _ in range(chance.randrange(1, 15)):
            segments = chance.choices(letters[:4], k=chance.randrange(1, 6))
            if chance.random() < 0.3:
                segments[-1] = letters[4]
            patterns.add("/" + "/".join(segments))
        named = {pattern: pattern for pattern in patterns}
        router = Router()
        for pattern in chance.sample(sorted(named), len(named)):
            numbered = pattern
            for number in range(pattern.count("{x}")):      # each parameter has a name of its own
                numbered = numbered.replace("{x}", f"{{x{number}}}", 1)
            router.get(numbered, lambda ctx, pattern=pattern: (pattern, list(ctx.params.values())))
        for _ in range(30):
            path = "/" + "/".join(chance.choices(["a", "b", "c", ""], k=chance.randrange(1, 7)))
            segments = path.split("/")[1:]
            ranked = sorted(([kind for kind, _ in how], pattern, [text for kind, text in how if kind])
                            for pattern in patterns if (how := fits(pattern.split("/")[1:], segments)) is not None)
            expected = ranked[0][1:] if ranked else None
            assert router(Ctx(path)) == expected, (sorted(patterns), path)


@pytest.mark.parametrize("pattern", ["", "a", "{x}", "*", "/{}", "/{x", "/x}", "/a{x}", "/{x}b", "/{x y}", "/{1}",
                                     "/{x:}", "/{x:int}", "/{x:path:path}", "/{x}/{x}", "/{x:path}/a", "/{x:path}/{y}",
                                     "/{x:path}/", "/{{x}}", "/}{", "/{"])
def test_what_is_no_pattern(pattern: str) -> None:
    with pytest.raises(ValueError, match=r"pattern|neither|parameters|follows"):
        Router().get(pattern, print)


def test_one_handler_for_a_method_and_a_pattern() -> None:
    router = routed("/a", "/a/{x}")
    for again in ("/a", "/a/{x}", "/a/{y}"):
        with pytest.raises(ValueError, match="has a handler"):
            router.get(again, print)
    router.post("/a/{y}", lambda ctx: ctx.params)
    assert router(Ctx("/a/1", "POST")) == {"y": "1"}
    assert router(Ctx("/a/1")) == ("/a/{x}", {"x": "1"})


def test_the_server_as_a_whole_is_no_path() -> None:
    router = routed("/", "/{rest:path}")
    router.options("/{rest:path}", print)
    router(ctx := Ctx("*", "OPTIONS"))
    assert (ctx.status, ctx.fields) == (404, {})


def test_the_verbs_and_their_decorators() -> None:
    router = Router()
    verbs: dict[str, Any] = {name: getattr(router, name.lower())
                             for name in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")}
    for name, verb in verbs.items():
        def handler(ctx: Ctx, name: str = name) -> str:
            return name

        assert verb("/a")(handler) is handler
        assert verb("/{x}/", handler) is handler
    assert router.route("BREW", "/a")(handler) is router.route("BREW", "/{x}/", handler)
    for name in verbs:
        assert router(Ctx("/a", name)) == router(Ctx("/b/", name)) == name
    assert router(Ctx("/a", "BREW")) == "OPTIONS"


def test_head_and_options_and_what_is_not_allowed() -> None:
    router = routed("/a", "/a/{x}")
    router.delete("/a", print)
    router.post("/b", print)
    assert router(Ctx("/a", "HEAD")) == ("/a", {})
    for path, allowed in (("/a", "DELETE, GET, HEAD, OPTIONS"), ("/a/1", "GET, HEAD, OPTIONS"),
                          ("/b", "OPTIONS, POST")):
        for method, status in (("PUT", 405), ("get", 405), ("OPTIONS", 204)):
            router(ctx := Ctx(path, method))
            assert (ctx.status, ctx.fields) == (status, {"Allow": allowed})
    router(ctx := Ctx("/b", "HEAD"))
    assert ctx.status == 405
    for method in ("GET", "OPTIONS"):
        router(ctx := Ctx("/c", method))
        assert (ctx.status, ctx.fields) == (404, {})


def lines(router: Router, path: str) -> int:
    """How many of its lines a lookup runs: the garbage collector may run a finalizer's in the middle."""
    count = 0

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal count
        if frame.f_code.co_filename != fastserve.router.__file__:
            return None
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        router(Ctx(path))
    finally:
        sys.settrace(before)
    assert count
    return count


@pytest.mark.parametrize("path", ["/group7/items/5/parts/9", "/group7/items/5/none/9", "/plain7"])
def test_a_lookup_does_not_depend_on_how_many_routes_there_are(path: str) -> None:
    few, many = (routed(*(f"/group{n}/items/{{x}}/parts/{{y}}" for n in range(count)),
                        *(f"/plain{n}" for n in range(count))) for count in (10, 5000))
    assert lines(few, path) == lines(many, path)
