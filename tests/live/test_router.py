"""A router in front of a server: what a client sees of it.

Knows: the wire. Never sees: which pattern wins (tests/unit/test_router.py).
"""

import pytest

from fastserve import RequestCtx, Router
from tests.live.conftest import Serve, request


@pytest.fixture
def router() -> Router:
    router = Router()

    @router.get("/users/{name}")
    def user(ctx: RequestCtx) -> None:
        ctx.write(f"user {ctx.params['name']}")

    @router.put("/files/{where:path}")
    def file(ctx: RequestCtx) -> None:
        ctx.write(f"file {ctx.params}")

    router.get("/", lambda ctx: ctx.write(f"root {ctx.params}"))
    return router


def test_parameters_are_of_their_request(serve: Serve, router: Router) -> None:
    wire = serve(router).connect()
    wire.send(request("GET", "/users/ann"), request(), request("PUT", "/files/a%2Fb/c"),
              request("GET", "/users/b%C3%A4r"))
    assert [wire.read().body for _ in range(4)] == [
        b"user ann", b"root {}", b"file {'where': 'a/b/c'}", "user bär".encode()]


def test_head_options_404_and_405(serve: Serve, router: Router) -> None:
    wire = serve(router).connect()
    head = wire.send(request("HEAD", "/users/ann")).read(head=True)
    assert (head.status, head.get("Content-Length"), head.body) == (200, "8", b"")
    options = wire.send(request("OPTIONS", "/users/ann")).read()
    assert (options.status, options.get("Allow"), options.body) == (204, "GET, HEAD, OPTIONS", b"")
    refused = wire.send(request("POST", "/users/ann")).read()
    assert (refused.status, refused.get("Allow"), refused.body) == (405, "GET, HEAD, OPTIONS", b"Method Not Allowed")
    for method, path in (("GET", "/users/"), ("GET", "/users"), ("OPTIONS", "/nowhere"), ("OPTIONS", "*")):
        assert wire.send(request(method, path)).read().status == 404


def test_values_of_ones_own_are_of_their_request(serve: Serve, router: Router) -> None:
    """Middleware is a handler that calls a handler."""
    def counted(ctx: RequestCtx) -> None:
        ctx.user_values["seen"] = len(ctx.user_values)
        router(ctx)
        ctx.set_header("X-Seen", str(ctx.user_values))

    wire = serve(counted).connect()
    for _ in range(3):
        assert wire.get("/users/ann").get("X-Seen") == "{'seen': 0}"


def test_params_may_be_set_by_whoever_routes(serve: Serve) -> None:
    def handler(ctx: RequestCtx) -> None:
        ctx.params["first"] = "1"
        before = dict(ctx.params)
        ctx.params = {"second": "2"}
        with pytest.raises(TypeError):
            ctx.params = None  # type: ignore[assignment]
        ctx.write(f"{before} {ctx.params}")

    wire = serve(handler).connect()
    for _ in range(2):
        assert wire.get().body == b"{'first': '1'} {'second': '2'}"
