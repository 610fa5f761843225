"""Connections that come home in the very turn in which their next bytes arrive.

Knows: handlers that block for about as long as a client waits before it sends on. Never sees: when exactly
which of the two is first; it tries often, from a seed. Invariant: whoever is first, bytes that belong to no
request never become one, and no reply is written where there is no room.
"""

import random
import threading
import time
from collections.abc import Callable

from conftest import Serve, Wire, request

from fastserve import RequestCtx

EVIL = request("GET", "/evil")


def together(chance: random.Random, clients: int, rounds: int, one: Callable[[random.Random], None]) -> None:
    """`one(luck)` again and again in several threads; the first that fails is raised."""
    failed: list[BaseException] = []

    def run(luck: random.Random) -> None:
        try:
            for _ in range(rounds):
                if not failed:
                    one(luck)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=run, args=(random.Random(chance.random()),)) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]


def about(luck: random.Random, milliseconds: float) -> None:
    """Not to be in time, but to be late and early in turn: the race itself is what is tested. Asleep, because who spins
    has the GIL that the handler needs: then a try takes three times as long, and meets the race a third as often."""
    time.sleep(luck.uniform(0.9, 1.3) * milliseconds / 1000)


def blocks(seen: list[str]) -> Callable[[RequestCtx], None]:
    def handler(ctx: RequestCtx) -> None:
        if ctx.path == "/evil":
            seen.append(ctx.path)
        else:
            threading.Event().wait(0.002)
        if ctx.path == "/close":
            ctx.set_header("Connection", "close")
        ctx.write("ok")
    return handler


def test_the_rest_of_an_unread_body_is_no_request(serve: Serve, chance: random.Random) -> None:
    seen: list[str] = []
    server = serve(blocks(seen), workers=8, reactors=1, stream_request_body=True)

    def one(luck: random.Random) -> None:
        with server.connect() as wire:
            wire.send(request("POST", "/", f"Content-Length: {4 * len(EVIL)}"))
            about(luck, 2)
            wire.send(EVIL * 4)
            assert wire.read().status == 200

    together(chance, 6, 400, one)
    assert not seen


def test_what_follows_the_last_reply_is_no_request(serve: Serve, chance: random.Random) -> None:
    seen: list[str] = []
    server = serve(blocks(seen), workers=8, reactors=1)

    def one(luck: random.Random) -> None:
        with server.connect() as wire:
            wire.send(request("GET", "/close"))
            about(luck, 2)
            wire.send(EVIL)
            assert wire.read().closes

    together(chance, 6, 200, one)
    assert not seen


def test_a_reply_that_waits_for_its_reader_keeps_its_room(serve: Serve, chance: random.Random) -> None:
    size = 23_800                               # just so large that it is copied

    def handler(ctx: RequestCtx) -> None:
        threading.Event().wait(0.002)
        ctx.set_body(b"x" * size)

    server = serve(handler, workers=8, reactors=1)

    def one(luck: random.Random) -> None:
        with Wire(server.address, receive_buffer=4096) as wire:
            wire.send(request())
            for _ in range(8):
                about(luck, 2)
                wire.send(request())
            for _ in range(9):
                assert wire.read().body == b"x" * size

    together(chance, 6, 20, one)
