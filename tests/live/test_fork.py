"""Forks in handlers: the child has nothing of the server, the parent goes on as if nothing had happened.

Knows: processes that run a server and fork in its handlers. Never sees: the server from inside: what a child
has open is read from /proc by the child itself.
"""

import json
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import test_leaving as leaving
from test_leaving import GET, HANG_LIMIT, Run, connect, ended, get, reply

script = leaving.script

FORKS = """
import json, subprocess, traceback, warnings

warnings.simplefilter("ignore", DeprecationWarning)     # fork() beside threads is what is tested here

def open_kinds():
    kinds = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            kind = os.readlink(f"/proc/self/fd/{name}").partition(":[")[0]
        except OSError:
            continue
        if kind.startswith(("socket", "anon_inode")):
            kinds[kind] = kinds.get(kind, 0) + 1
    return kinds

def report(ctx, tell):
    \"\"\"Answers with what `tell` says in a forked child.\"\"\"
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            told = tell()
        except BaseException:
            told = traceback.format_exc()
        os.write(writer, json.dumps(told).encode())
        os._exit(0)
    os.close(writer)
    with open(reader, "rb") as file:
        ctx.write(file.read())
    ctx.set_header("X-Status", str(os.waitpid(child, 0)[1]))
"""


def told(address: str, path: bytes = b"/") -> object:
    with connect(address) as client:
        client.sendall(GET.replace(b"/", path, 1))
        got = reply(client)
    assert b"\r\nX-Status: 0\r\n" in got
    return json.loads(got.partition(b"\r\n\r\n")[2])


def test_a_child_leaves_the_server_alone(script: Run) -> None:
    """It goes its way, out of a `with` too: the server is its parent's."""
    process = script("""
import warnings
warnings.simplefilter("ignore", DeprecationWarning)
from fastserve.testing import Client

with Server(lambda ctx: ctx.write("alive"), workers=2).start("127.0.0.1:0"), Client(lambda ctx: None, workers=2):
    child = os.fork()
    if child == 0:
        sys.exit(7)
    say(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
""")
    assert process.line() == "7"
    assert process.status() == 0


def test_a_handler_may_run_programs(script: Run) -> None:
    process = script(FORKS + """
def handler(ctx):
    program = [sys.executable, "-c", "print('from a child')"]
    done = subprocess.run(program, capture_output=True, check=True)
    ctx.write(done.stdout)
Server(handler).serve("127.0.0.1:0", ready=ready)
""")
    [address] = process.addresses()
    for _ in range(3):
        assert get(address).endswith(b"\r\n\r\nfrom a child\n")
    process.popen.send_signal(signal.SIGTERM)
    assert process.status() == 0


def test_a_program_inherits_nothing(script: Run) -> None:
    process = script(FORKS + """
listed = '''
import os
here = "/proc/self/fd/"
links = {name: os.readlink(here + name) for name in os.listdir(here) if os.path.lexists(here + name)}
print([link for name, link in links.items() if name not in "012"])
'''

def handler(ctx):
    done = subprocess.run([sys.executable, "-c", listed], capture_output=True, check=True, close_fds=False,
                          stdin=subprocess.DEVNULL)
    ctx.write(done.stdout)

Server(handler).serve("127.0.0.1:0", ready=ready)
""")
    [address] = process.addresses()
    assert get(address).endswith(b"\r\n\r\n[]\n")
    process.popen.send_signal(signal.SIGTERM)
    assert process.status() == 0


def test_a_handler_may_use_multiprocessing(script: Run) -> None:
    process = script(FORKS + """
import multiprocessing

def square(queue, n):
    queue.put(n * n)

def handler(ctx):
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    child = context.Process(target=square, args=(queue, 7))
    child.start()
    child.join()
    ctx.write(f"{queue.get()} {child.exitcode}")

Server(handler).serve("127.0.0.1:0", ready=ready)
""")
    [address] = process.addresses()
    for _ in range(3):
        assert get(address).endswith(b"\r\n\r\n49 0")
    process.popen.send_signal(signal.SIGTERM)
    assert process.status() == 0


def test_a_child_has_no_descriptor_of_the_server(script: Run) -> None:
    process = script(FORKS + """
def handler(ctx):
    report(ctx, open_kinds)

Server(handler, reactors=2, workers=4).serve("127.0.0.1:0", ready=ready)
""")
    [address] = process.addresses()
    with connect(address) as idle, connect(address) as half:
        half.sendall(GET[:10])
        assert told(address) == {}
        half.sendall(GET[10:])
        assert json.loads(reply(half).partition(b"\r\n\r\n")[2]) == {}
        idle.sendall(GET)
        assert reply(idle)
    process.popen.send_signal(signal.SIGTERM)
    assert process.status() == 0


@pytest.mark.parametrize(("work", "forks"), [(0, 60), (300_000, 15)])
def test_a_child_has_no_descriptor_that_comes_or_goes_while_it_is_made(script: Run, work: int, forks: int) -> None:
    """Connections come and go at one reactor while the handler at another forks: none of them stays in a child, and
    no child loses the pipe that it answers by to the close of a connection that had its number before. `work`:
    handlers that compute, so that those that are to fork wait for Python, and others for them."""
    process = script(FORKS + """
def handler(ctx):
    if ctx.path == "/fork":
        report(ctx, open_kinds)
    else:
        sum(range(WORK))

Server(handler, reactors=2, workers=8).serve("127.0.0.1:0", ready=ready)
""".replace("WORK", str(work)))
    [address] = process.addresses()
    over = threading.Event()

    def come_and_go() -> None:
        for _ in range(20_000):
            if over.is_set():
                return
            with connect(address) as wire:
                wire.sendall(GET)
                reply(wire)

    with ThreadPoolExecutor(8) as clients:
        coming = [clients.submit(come_and_go) for _ in range(8)]
        try:
            for _ in range(forks):
                assert told(address, b"/fork") == {}
        finally:
            over.set()
        for done in coming:
            done.result(HANG_LIMIT)
    process.popen.send_signal(signal.SIGTERM)
    assert process.status() == 0


def test_a_child_that_c_has_made_has_no_descriptor_of_the_server(script: Run) -> None:
    process = script(FORKS + """
os.fork = ctypes.PyDLL(None).fork       # keeps the GIL, which the child has then too

def handler(ctx):
    report(ctx, open_kinds)

with Server(handler, reactors=2, workers=3).start("127.0.0.1:0") as server:
    ready(server)
    sys.stdin.readline()
""")
    [address] = process.addresses()
    with connect(address) as idle:
        assert told(address) == told(address) == {}
        idle.sendall(GET)
        assert reply(idle)
    process.answer()
    assert process.status() == 0


def test_a_child_has_no_descriptor_of_a_server_that_was_stopped_and_still_has_a_handler(script: Run) -> None:
    process = script(FORKS + """
class Told:
    def write(self, data):
        say(data.decode())
    def set_header(self, name, value):
        say(value)

called = threading.Event()

def handler(ctx):
    called.set()
    threading.Event().wait()

with Server(handler, reactors=2, workers=3).start("127.0.0.1:0") as server:
    ready(server)
    called.wait()
    server.shutdown(0)
report(Told(), open_kinds)
os._exit(7)
""")
    [address] = process.addresses()
    with connect(address) as client:
        client.sendall(GET)
        assert [process.line(), process.line()] == ["{}", "0"]
        assert ended(client)
    assert process.status() == 7


def test_a_child_that_uses_its_ctx_uses_nothing_of_its_own(script: Run) -> None:
    """The connection had a number, which in the child is soon another's."""
    process = script(FORKS + """
def tell_of(ctx):
    def tell():
        pairs = [socket.socketpair() for _ in range(32)]
        for mine, other in pairs:
            mine.sendall(b"mine")
            other.sendall(b"mine")
        said = []
        for use in (ctx.body_stream.read, lambda: ctx.early_hints("</a>; rel=preload"), lambda: ctx.local_addr):
            try:
                said.append(use())
            except Exception as error:
                said.append(type(error).__name__)
        said.append(all(s.recv(100) == b"mine" for pair in pairs for s in pair))
        return said
    return tell

def handler(ctx):
    report(ctx, tell_of(ctx))

Server(handler, stream_request_body=True).serve("127.0.0.1:0", ready=ready)
""")
    [address] = process.addresses()
    with connect(address) as client:
        client.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nsome")
        *said, untouched = json.loads(reply(client).partition(b"\r\n\r\n")[2])
    assert untouched, said
    assert said == ["RuntimeError", "RuntimeError", "OSError"]
    process.popen.send_signal(signal.SIGTERM)
    assert process.status() == 0


def test_a_child_has_the_signals_of_before_and_a_server_that_is_closed(script: Run) -> None:
    process = script(FORKS + """
from fastserve import ServerClosed

def mine(number, frame):
    pass

def look():
    found = [signal.getsignal(signal.SIGTERM) is mine]
    found.append(signal.getsignal(signal.SIGINT) is signal.default_int_handler)
    try:
        server.stats()
    except ServerClosed as error:
        found.append(type(error).__name__)
    return found

def handler(ctx):
    report(ctx, look)

signal.signal(signal.SIGTERM, mine)
signal.signal(signal.SIGINT, signal.default_int_handler)    # a shell ignores it for what runs in its background
server = Server(handler)
server.serve("127.0.0.1:0", ready=ready)
""")
    [address] = process.addresses()
    assert told(address) == [True, True, "ServerClosed"]
    process.popen.send_signal(signal.SIGINT)
    assert process.status() == 0


def test_a_child_of_the_main_thread_has_the_wakeup_descriptor_of_before(script: Run) -> None:
    """Only a main thread may ask; that of a child is the thread that forked."""
    process = script(FORKS + """
reader, writer = socket.socketpair()
writer.setblocking(False)
signal.set_wakeup_fd(writer.fileno())

def handler(ctx):
    report(ctx, lambda: signal.set_wakeup_fd(-1) == writer.fileno())

Server(handler).serve("127.0.0.1:0", ready=ready)
""")
    [address] = process.addresses()
    assert told(address) is True
    process.popen.send_signal(signal.SIGTERM)
    assert process.status() == 0


def test_the_parent_goes_on_and_ends_connections_that_a_living_child_inherited(script: Run) -> None:
    process = script(FORKS + """
children = []

def handler(ctx):
    if ctx.path == "/fork":
        child = os.fork()
        if child == 0:
            signal.pause()
            os._exit(0)
        children.append(child)
    if ctx.path == "/close":
        ctx.set_header("Connection", "close")
    ctx.write("done")

Server(handler).serve("127.0.0.1:0", ready=ready)
for child in children:
    os.kill(child, 0)               # it lives
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
say("alive", len(children))
""")
    [address] = process.addresses()
    with connect(address) as one, connect(address) as other, connect(address) as silent:
        other.sendall(GET)
        assert reply(other).endswith(b"done")
        one.sendall(GET.replace(b"/", b"/fork", 1))
        assert reply(one).endswith(b"done")
        for _ in range(3):
            for client in (one, other):
                client.sendall(GET)
                assert reply(client).endswith(b"done")
        other.sendall(GET.replace(b"/", b"/close", 1))
        assert reply(other).endswith(b"done")
        assert ended(other)
        assert get(address).endswith(b"done")
        process.popen.send_signal(signal.SIGTERM)
        assert ended(one)
        assert ended(silent)
    assert process.line() == "alive 1"
    assert process.status() == 0


def test_a_child_that_returns_from_the_handler_ends_and_says_nothing_to_the_client(script: Run) -> None:
    process = script(FORKS + """
def handler(ctx):
    child = os.fork()
    if child == 0:
        ctx.write("from the child")
        return
    os.waitpid(child, 0)
    ctx.write("from the parent")

Server(handler).serve("127.0.0.1:0", ready=ready)
""")
    [address] = process.addresses()
    with connect(address) as client:
        for _ in range(2):
            client.sendall(GET)
            assert reply(client).endswith(b"\r\n\r\nfrom the parent")
    process.popen.send_signal(signal.SIGTERM)
    assert process.status() == 0


def test_a_child_may_start_a_server_of_its_own(script: Run) -> None:
    process = script(FORKS + """
server = Server(hello).start("127.0.0.1:0")
child = os.fork()
if child == 0:
    Server(lambda ctx: ctx.write("child"), workers=2).serve("127.0.0.1:0", ready=ready)
    sys.exit(0)
say("parent", child, *server.addresses)
say(os.waitpid(child, 0)[1], server.shutdown())
""")
    lines = sorted((process.line(), process.line()))
    _, number, parent = lines[0].split()
    _, child = lines[1].split()
    assert get(parent).endswith(b"\r\n\r\nhello")
    assert get(child).endswith(b"\r\n\r\nchild")
    os.kill(int(number), signal.SIGTERM)
    assert process.line() == "0 True"
    assert process.status(HANG_LIMIT) == 0


def test_forks_while_other_connections_are_busy(script: Run) -> None:
    process = script(FORKS + """
def handler(ctx):
    if ctx.path == "/fork":
        child = os.fork()
        if child == 0:
            os._exit(0)
        os.waitpid(child, 0)
    ctx.write(ctx.path)

Server(handler, workers=4).serve("127.0.0.1:0", ready=ready)
""")
    [address] = process.addresses()
    clients = [connect(address) for _ in range(8)]
    try:
        for turn in range(20):
            for number, client in enumerate(clients):
                path = b"/fork" if number == turn % 8 else b"/%d" % turn
                client.sendall(GET.replace(b"/", path, 1))
            for number, client in enumerate(clients):
                path = b"/fork" if number == turn % 8 else b"/%d" % turn
                assert reply(client).endswith(b"\r\n\r\n" + path)
    finally:
        for client in clients:
            client.close()
    process.popen.send_signal(signal.SIGTERM)
    assert process.status() == 0
