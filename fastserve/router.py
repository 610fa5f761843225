"""Which handler for which path.

Knows: patterns of paths, and the few words of a ctx that finding and refusing need. Never sees: a connection, the core.
Invariant: what a lookup costs depends on the path, not on how many routes there are; and of two patterns that fit, the
one wins that says more, whatever the order in which they were added.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, TypeVar, overload

from fastserve.coroutines import AsyncHandler, Handler, as_handler

if TYPE_CHECKING:
    from fastserve._core import RequestCtx

__all__ = ["Router"]

H = TypeVar("H", bound=Handler | AsyncHandler)

Methods = dict[str, tuple[Handler, tuple[str, ...]]]
"""Handler, and the names of its parameters in order, by method."""


class Verb(Protocol):
    """`router.get(pattern, handler)`, or `@router.get(pattern)` in front of the handler; it returns the handler."""

    @overload
    def __call__(self, pattern: str, handler: None = None) -> Callable[[H], H]: ...
    @overload
    def __call__(self, pattern: str, handler: H) -> H: ...


class _Node:
    """What may follow one beginning of a path."""

    __slots__ = ("methods", "one", "rest", "text")

    def __init__(self) -> None:
        self.text: dict[str, _Node] = {}
        self.one: _Node | None = None           # any one segment
        self.rest: _Node | None = None          # all that is left
        self.methods: Methods = {}


class Router:
    """A handler that calls the handler whose pattern fits the path.

        router = Router()

        @router.get("/users/{name}")
        def user(ctx):
            ctx.write(f"hello, {ctx.params['name']}")

        Server(router).serve("127.0.0.1:8000")

    A pattern is a path, segment by segment: text is itself, `{name}` is one segment that is not empty, `{name:path}`
    is the whole rest, which may be empty and stands at the end only. What they stood for is in `ctx.params`. The path
    is `ctx.path`: decoded, so that `%2F` separates segments as `/` does. `/a` and `/a/` are two paths.

    Where several patterns fit, text wins over `{name}` and `{name}` over `{name:path}`, from the left; that pattern's
    methods are the path's. HEAD is GET's unless it was given a handler of its own. No pattern: 404. Another method:
    405 with Allow (RFC 9110, section 15.5.6); OPTIONS: 204 with Allow (section 9.3.7), unless it was given a handler.

    `get`, `head`, `post`, `put`, `patch`, `delete` and `options` add a route for their method, `route` for any; without
    a handler they are decorators. ValueError: the pattern is none, or has a handler for this method already. Routes are
    added before the server starts: a router that is serving is only read.
    """

    def __init__(self) -> None:
        self._plain: dict[str, Methods] = {}
        self._root = _Node()
        self.get: Verb = self._verb("GET")
        self.head: Verb = self._verb("HEAD")
        self.post: Verb = self._verb("POST")
        self.put: Verb = self._verb("PUT")
        self.patch: Verb = self._verb("PATCH")
        self.delete: Verb = self._verb("DELETE")
        self.options: Verb = self._verb("OPTIONS")

    def __call__(self, ctx: RequestCtx) -> None:
        path = ctx.path
        methods = self._plain.get(path)
        values: list[str] = []
        if methods is None:
            methods, values = self._find(path)
        method = ctx.method
        found = methods.get(method)
        if found is None and method == "HEAD":
            found = methods.get("GET")
        if found is None:
            self._refuse(ctx, methods)
            return
        handler, names = found
        if names:
            ctx.params = {names[0]: values[0]} if len(names) == 1 else dict(zip(names, values, strict=True))
        return handler(ctx)

    def _find(self, path: str) -> tuple[Methods, list[str]]:
        """Methods of a path with parameters, and what those stand for; nothing: no methods. Mostly the best branch at
        each segment leads there."""
        if path == "*":         # of OPTIONS for the server as a whole
            return {}, []
        node = self._root
        values: list[str] = []
        segments = path[1:].split("/")
        for segment in segments:
            best = node.text.get(segment)
            if best is None:
                best = node.one
                if best is None or not segment:
                    return self._search(segments)
                values.append(segment)
            node = best
        if node.methods:
            return node.methods, values
        return self._search(segments)

    def _search(self, segments: list[str]) -> tuple[Methods, list[str]]:
        """The same by every branch, the best ones first; there are at most as many as nodes that fit a beginning of
        the path."""
        last = len(segments)
        left: list[tuple[_Node, int, list[str]]] = [(self._root, 0, [])]
        while left:
            node, at, values = left.pop()
            if at == last:
                if node.methods:
                    return node.methods, values
                continue
            segment = segments[at]
            if node.rest is not None:
                left.append((node.rest, last, [*values, "/".join(segments[at:])]))
            if node.one is not None and segment:
                left.append((node.one, at + 1, [*values, segment]))
            if segment in node.text:
                left.append((node.text[segment], at + 1, values))
        return {}, []

    def _refuse(self, ctx: RequestCtx, methods: Methods) -> None:
        if not methods:
            ctx.not_found()
            return
        allowed = {*methods, "OPTIONS"} | ({"HEAD"} if "GET" in methods else set[str]())
        if ctx.method == "OPTIONS":
            ctx.status = 204
        else:
            ctx.error("Method Not Allowed", 405)
        ctx.set_header("Allow", ", ".join(sorted(allowed)))

    @overload
    def route(self, method: str, pattern: str, handler: None = None) -> Callable[[H], H]: ...
    @overload
    def route(self, method: str, pattern: str, handler: H) -> H: ...
    def route(self, method: str, pattern: str, handler: H | None = None) -> H | Callable[[H], H]:
        """Adds a route for a method of that name, in which case matters; without a handler it is a decorator.
        ValueError: `pattern` is none, or has a handler for this method already."""
        def add(handler: H) -> H:
            steps, names = _parsed(pattern)
            methods = self._node(steps).methods if names else self._plain.setdefault(pattern, {})
            if method in methods:
                raise ValueError(f"{method} {pattern} has a handler")
            methods[method] = as_handler(handler), names
            return handler

        return add if handler is None else add(handler)

    def _verb(self, method: str) -> Verb:
        @overload
        def verb(pattern: str, handler: None = None) -> Callable[[H], H]: ...
        @overload
        def verb(pattern: str, handler: H) -> H: ...
        def verb(pattern: str, handler: H | None = None) -> H | Callable[[H], H]:
            """Adds a route for the method of that name; without a handler it is a decorator. Raises as `route`."""
            return self.route(method, pattern) if handler is None else self.route(method, pattern, handler)

        return verb

    def _node(self, steps: list[tuple[str, str]]) -> _Node:
        node = self._root
        for kind, text in steps:
            if kind == "text":
                node = node.text.setdefault(text, _Node())
            else:
                further = getattr(node, kind) or _Node()
                setattr(node, kind, further)
                node = further
        return node


def _parsed(pattern: str) -> tuple[list[tuple[str, str]], tuple[str, ...]]:
    """What each segment of a pattern is to a node, with its text, and the names of the parameters."""
    if not pattern.startswith("/"):
        raise ValueError(f"a pattern starts with a slash: {pattern!r}")
    texts = pattern[1:].split("/")
    steps: list[tuple[str, str]] = []
    names: list[str] = []
    for text in texts:
        if not ("{" in text or "}" in text):
            steps.append(("text", text))
            continue
        name, colon, kind = text[1:-1].partition(":")
        if not (text[0] == "{" and text[-1] == "}" and name.isidentifier() and kind in ("", "path")
                and bool(colon) == bool(kind)):
            raise ValueError(f"{text!r} of {pattern!r} is neither text nor {{name}} nor {{name:path}}")
        if name in names:
            raise ValueError(f"{pattern!r} has two parameters of the name {name!r}")
        if kind and len(steps) + 1 < len(texts):
            raise ValueError(f"something follows the rest of the path in {pattern!r}")
        names.append(name)
        steps.append(("rest" if kind else "one", ""))
    return steps, tuple(names)
