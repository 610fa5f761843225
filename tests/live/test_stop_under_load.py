"""TERM under full load, many times: what a client was promised is kept.

Knows: clients that ask without pause, on new connections and on old ones, and a process that is told to stop.
Never sees: how the server drains. Invariant: no request on a connection that the server has answered on is lost, no
reply is cut, and every process ends with status 0. A connection that the server never read from may be reset, and one
that has said nothing for long enough to be closed is closed by the server's own count: those are counted and printed.
FASTSERVE_STOPS: how often (default 3; 200 for docs/reliability.md).
"""

import os
import random
import signal
import threading
from collections import Counter

import test_leaving as leaving
from conftest import PATIENCE, Wire, request
from test_leaving import Run

script = leaving.script

STOPS = int(os.environ.get("FASTSERVE_STOPS", "3"))
CLIENTS = 8
LOCK = threading.Lock()


class Client(threading.Thread):
    """Asks until nobody listens any more."""

    def __init__(self, address: str, luck: random.Random, seen: Counter[str], begun: threading.Semaphore) -> None:
        super().__init__()
        self.address, self.luck, self.seen, self.begun = address, luck, seen, begun
        self.failure: BaseException | None = None

    def run(self) -> None:
        try:
            while self.connection():
                pass
        except BaseException as failure:
            self.failure = failure

    def count(self, what: str) -> None:
        with LOCK:
            self.seen[what] += 1

    def connection(self) -> bool:
        """One connection; False: there is no server any more."""
        try:
            wire = Wire(self.address)
        except (ConnectionRefusedError, ConnectionResetError):
            return False
        with wire:
            for turn in range(self.luck.choice((1, 1, 5, 50))):
                path = self.luck.choice(("/", "/", "/", "/sleep", "/large"))
                try:
                    wire.send(request("GET", path))
                    if not wire.more():
                        self.count("lost" if turn else "closed in silence")
                        return True
                except (ConnectionResetError, BrokenPipeError):
                    self.count("lost" if turn else "reset before anything was read")
                    return True
                reply = wire.read()
                assert reply.status == 200
                assert len(reply.body) == (300_000 if path == "/large" else 5)
                self.count("answered")
                if self.seen["answered"] % 50 == 0:
                    self.begun.release()
                if reply.closes:
                    break
        return True


def test_nothing_is_lost(script: Run, chance: random.Random) -> None:
    seen = Counter[str]()
    closed = 0
    for stop in range(STOPS):
        process = script("""
LARGE = b"x" * 300_000
def handler(ctx):
    if ctx.path == "/sleep":
        time.sleep(0.005)
    ctx.set_body(LARGE if ctx.path == "/large" else b"hello")
server = Server(handler, workers=8)
server.serve("127.0.0.1:0", ready=ready)
say(server.stats()["closed_silent"])
""")
        [address] = process.addresses()
        begun = threading.Semaphore(0)
        clients = [Client(address, random.Random(chance.random()), seen, begun) for _ in range(CLIENTS)]
        for client in clients:
            client.start()
        for _ in range(2 + stop % 3):
            assert begun.acquire(timeout=PATIENCE), "the load did not begin"
        os.kill(process.popen.pid, signal.SIGTERM)
        closed += int(process.line())
        assert process.status() == 0
        for client in clients:
            client.join(PATIENCE)
            assert not client.is_alive(), "a client hangs"
            assert client.failure is None, client.failure
        process.close()
    print(f"{STOPS} stops: {dict(seen)}")
    assert seen["answered"] > 100 * STOPS
    assert seen["lost"] == 0, seen
    assert seen["closed in silence"] <= closed, seen
