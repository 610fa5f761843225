"""A server: where it listens, the threads that are its workers, how it is stopped.

Knows: sockets before they serve, Python threads, signals, forks and the end of the interpreter.
Never sees: a connection or a request; those are the core's.
Invariant: a listener belongs to the core from the moment it is handed over; every native thread is
joined before the interpreter goes, whoever forgot to call `shutdown`.
"""

import atexit
import contextlib
import errno
import itertools
import logging
import os
import queue
import signal
import socket
import stat
import threading
import time
import weakref
from collections.abc import Callable, Generator
from types import BuiltinFunctionType, TracebackType
from typing import Any, Self

from fastserve.binds import Bind, parse_bind
from fastserve.config import Config
from fastserve.coroutines import AsyncHandler, Handler, as_handler, is_loop_thread
from fastserve.errors import ServerClosed, StartError

try:
    from fastserve._core import (
        Args,
        BodyStream,
        Core,
        Done,
        Headers,
        ReplyStream,
        RequestCtx,
        is_taking_over,
        unix_name,
    )
except ModuleNotFoundError as _missing:
    if _missing.name != "fastserve._core":
        raise
    raise ImportError(
        "the compiled core is missing: in a clone run `make build`, elsewhere install the wheel"
    ) from None

__all__ = ["Args", "BodyStream", "Done", "Handler", "Headers", "ReplyStream", "RequestCtx", "Server"]

_log = logging.getLogger("fastserve.error")

PORT_TRIES = 16
"""Ports that are tried for a name with several addresses when the kernel is to choose one."""

WORKER_EXIT = 0.5
"""Seconds that `shutdown` waits for the threads of parked workers to end."""


class Server:
    """An HTTP/1.1 server around one handler.

    `handler(ctx)` is called once a request, in one of the worker threads, and returns None; a coroutine
    function runs on an event loop (`run_async`). Keyword arguments are the fields of `Config`; or give a
    whole `config`. TypeError or ValueError if one is wrong.
    """

    def __init__(self, handler: Handler | AsyncHandler, *, config: Config | None = None, **fields: Any) -> None:
        if not callable(handler):
            raise TypeError(f"a handler is callable, which {type(handler).__name__} is not")
        if config is not None and fields:
            raise TypeError("give either config or its fields, not both")
        self._handler = as_handler(handler)
        self._config = config if config is not None else Config(**fields)
        self._core: Core | None = None
        self._threads: list[threading.Thread] = []
        self._free_places: list[int] = []
        # One of its own, because a signal handler may call `shutdown` in the middle of it.
        self._lock = threading.RLock()
        self._addresses: list[str] = []
        self._socket_files: list[tuple[str, tuple[int, ...]]] = []
        self._clean: bool | None = None
        self._ready: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()

    @property
    def config(self) -> Config:
        """The limits; after `start` with every None replaced by what was chosen."""
        return self._config

    @property
    def addresses(self) -> list[str]:
        """Where the server listens: `127.0.0.1:8000`, `[::1]:8000`, `unix:/path`; empty before `start`."""
        return list(self._addresses)

    def start(self, *binds: str | Bind) -> Self:
        """Listens and returns at once; installs no signal handler.

        `binds`: `host:port` (port 0: the kernel chooses), `[::1]:port`, `unix:/path`, `fd:N`; by default
        `127.0.0.1:8000`. Of `fd:N` a copy is used, and the open file is non-blocking from then on for all who share it.
        With `?proxy` behind it each connection begins with a header of the PROXY protocol, version 1 or 2, from one of
        `trusted_proxies`. StartError if an address cannot be had: then nothing listens.
        """
        self._start(binds, None)
        return self

    def _start(self, binds: tuple[str | Bind, ...], signals: int | None) -> None:
        if self._core is not None:
            raise StartError("this server was started before: make a new one")
        _refuse_patched_threads()
        self._config = self._config.resolved()
        try:
            core = Core(self._handler, self._config)
        except (OSError, MemoryError) as error:
            raise StartError(f"cannot make {self._config.reactors} reactors: {str(error) or 'no memory'}") from error
        with contextlib.ExitStack() as undo:
            undo.callback(self._remove_socket_files)
            undo.callback(core.abandon)
            undo.callback(self._addresses.clear)
            self._open_log(core)
            for text in binds or ("127.0.0.1:8000",):
                bind = text if isinstance(text, Bind) else parse_bind(text)
                with contextlib.closing(self._listen(bind)) as listening:
                    for sockets, shared in listening:
                        self._hand_over(core, bind, sockets, shared)
            undo.pop_all()
        self._core = core
        if signals is not None:
            core.hear(signals)
        workers, places = self._config.workers, self._config.max_workers or self._config.workers
        self._free_places = list(range(places - 1, workers - 1, -1))
        _running.add(self)
        try:
            core.start()
            for index in range(workers):
                self._start_worker(index, spare=False)
            keeper = threading.Thread(target=core.keep, args=(self._grow,), name="fastserve-keeper", daemon=True)
            keeper.start()
            self._threads.append(keeper)
        except (OSError, RuntimeError) as error:  # no thread is to be had
            self._stop(0, None)
            raise StartError(f"cannot start {workers} workers: {error}") from error
        for _ in range(workers if self._config.on_worker_start is not None else 0):
            failure = self._ready.get()
            if failure is not None:
                self._stop(0, None)
                raise StartError(f"on_worker_start failed: {failure!r}") from failure

    def serve(self, *binds: str | Bind, ready: Callable[["Server"], object] | None = None) -> bool:
        """Listens and blocks until INT or TERM, or `shutdown` from another thread.

        In the main thread a first INT or TERM drains within `shutdown_timeout`, a second INT ends the
        process at once with status 130, both even while every handler hangs; USR1 logs the Python stack
        of every thread. The handlers that were
        installed before come back at the end. `ready(server)` is called once when listening. True:
        nothing was cut off.
        """
        with self._signals() as descriptor:
            self._start(binds, descriptor)
            core = self._running_core()
            try:
                if ready is not None:
                    ready(self)
                core.wait()
            finally:
                clean = False
                with contextlib.suppress(ServerClosed):     # in the child of a fork, which is no server's
                    clean = self._stop(0, None)
        return clean

    def shutdown(self, timeout: float | None = None) -> bool:
        """Stops accepting, lets what runs or is queued finish within `timeout` seconds (default:
        `shutdown_timeout`), cuts the rest. True: nothing was cut off. Callable from any thread, and
        again: a later call may only bring the end nearer. RuntimeError inside a handler, a coroutine on the loop
        of fastserve's, or a function that has hijacked a connection, which would wait for itself: those leave it to
        another thread, and do not wait for that."""
        if threading.current_thread() in self._threads or is_loop_thread() or is_taking_over(self._running_core()):
            raise RuntimeError("a handler cannot wait for the end of its own server")
        return self._stop(timeout, None)

    def _stop(self, timeout: float | None, leave_at: float | None) -> bool:
        """`leave_at`: until when the threads of workers are waited for, on the monotonic clock."""
        core = self._running_core()
        core.drain(self._config.shutdown_timeout if timeout is None else timeout)
        clean = core.wait()
        with self._lock:
            if self._clean is None:
                if not clean and leave_at is None:
                    _log.warning("connections cut off in the middle of a request: %d", core.stats()["cut"])
                core.close()
                self._clean = clean
                self._remove_socket_files()
        leave_at = time.monotonic() + WORKER_EXIT if leave_at is None else leave_at
        with self._lock:
            threads = list(self._threads)
        for thread in threads:
            thread.join(max(0.0, leave_at - time.monotonic()))
        _running.discard(self)
        return self._clean

    def stats(self) -> dict[str, Any]:
        """Counters since `start`, and what is in use now; readable from any thread at any time.

        ServerClosed before `start` and in the child of a fork.
        """
        return self._running_core().stats()

    def reopen_access_log(self) -> None:
        """Leaves the file that the access log was written to, which may have been moved away, and opens it by its
        name again; as USR1 does in `serve`. ServerClosed before `start`."""
        self._running_core().reopen_log()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        if self._core is not None and self._clean is None:
            with contextlib.suppress(ServerClosed):         # in the child of a fork
                self.shutdown()

    def _running_core(self) -> Core:
        if self._core is None:
            raise ServerClosed("this server was not started")
        return self._core

    # Workers.

    def _start_worker(self, index: int, spare: bool) -> None:
        thread = threading.Thread(target=self._work, args=(index, spare), daemon=True,
                                  name=f"fastserve-worker-{index}")
        with self._lock:
            thread.start()
            self._threads.append(thread)

    def _work(self, index: int, spare: bool) -> None:
        try:
            self._running_core().work(index, spare, lambda: self._ready.put(None))
        except BaseException as error:  # of the hook: a handler's never come here
            self._ready.put(error)
            if spare:
                _log.exception("on_worker_start failed: no further worker")
        if spare:
            with self._lock:
                self._free_places.append(index)
                self._threads = [t for t in self._threads if t is not threading.current_thread()]

    def _grow(self) -> None:
        """By the keeper: one worker more, as long as there are places."""
        with self._lock:
            index = self._free_places.pop() if self._free_places else None
        if index is None:
            return
        try:
            self._start_worker(index, spare=True)
        except RuntimeError:
            with self._lock:
                self._free_places.append(index)
            raise

    # The access log.

    def _open_log(self, core: Core) -> None:
        path = self._config.access_log
        try:
            flags = os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC  # never waited for
            if path == "-":
                core.log_to(_standard_output(flags), None)
            elif path:
                core.log_to(os.open(path, flags | os.O_CREAT, 0o644), os.fsencode(os.path.abspath(path)))
        except OSError as error:
            raise StartError(f"cannot write {path}: {error.strerror}") from error

    # Listeners.

    def _listen(self, bind: Bind) -> Generator[tuple[list[socket.socket], bool]]:
        """For each address of a bind, a socket a reactor, and whether all are copies of one. Closed when it ends are
        those that nobody took."""
        count = self._config.reactors or 1
        try:
            if bind.kind == "unix":
                first = self._listen_unix(bind)
                yield [first, *(first.dup() for _ in range(count - 1))], count > 1
            elif bind.kind == "fd":
                first = _copy_of(bind.fd)
                if first.type != socket.SOCK_STREAM or not first.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                    first.close()
                    raise StartError(f"cannot listen on {bind}: the descriptor is no listening stream socket")
                yield [first, *(first.dup() for _ in range(count - 1))], count > 1
            else:
                made = self._listen_name(bind, count)
                try:
                    while made:
                        yield made.pop(0), False
                finally:
                    for s in itertools.chain(*made):
                        s.close()
        except (OSError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise StartError(f"cannot listen on {bind}: {reason}") from error

    def _listen_name(self, bind: Bind, count: int) -> list[list[socket.socket]]:
        """All addresses of a name on one port. When the kernel is to choose it, it chooses for the first
        address; where another has it taken by somebody else, all is tried again."""
        addresses = _resolve(bind)
        for tries_left in reversed(range(PORT_TRIES)):
            port, made = bind.port, list[list[socket.socket]]()
            try:
                for family, (host, _, *scope) in addresses:
                    made.append(self._listen_tcp(family, (host, port, *scope), count))
                    port = made[0][0].getsockname()[1]
                return made
            except OSError as error:
                for s in itertools.chain(*made):
                    s.close()
                if not (made and bind.port == 0 and error.errno == errno.EADDRINUSE and tries_left):
                    raise
        raise AssertionError("the last try has raised")

    def _listen_tcp(self, family: int, address: Any, count: int) -> list[socket.socket]:
        """The first socket binds alone, so that a taken port is an error; only then may siblings join it."""
        sockets: list[socket.socket] = []
        try:
            for _ in range(count):
                s = socket.socket(family, socket.SOCK_STREAM)
                sockets.append(s)
                s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                if len(sockets) > 1 or self._config.reuse_port:
                    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                s.bind(address)
                if len(sockets) == 1:
                    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, count > 1 or self._config.reuse_port)
                    address = s.getsockname()
                s.listen(self._config.backlog)
        except OSError:
            for s in sockets:
                s.close()
            raise
        return sockets

    def _listen_unix(self, bind: Bind) -> socket.socket:
        """A stale socket file is replaced only if nobody answers on it."""
        path = bind.path
        s = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            if os.path.exists(path) and stat.S_ISSOCK(os.stat(path).st_mode):
                with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
                    probe.setblocking(False)
                    try:
                        probe.connect(path)
                        answered = True
                    except ConnectionRefusedError:
                        answered = False
                    except BlockingIOError:
                        answered = True
                if not answered:
                    os.unlink(path)
            s.bind(path)
            os.chmod(path, bind.mode)
            s.listen(self._config.backlog)
            self._socket_files.append((path, _identity(path)))
        except OSError:
            s.close()
            raise
        return s

    def _remove_socket_files(self) -> None:
        """Those that this server made, unless somebody has put another file in their place."""
        for path, made in self._socket_files:
            with contextlib.suppress(OSError):
                if _identity(path) == made:
                    os.unlink(path)
        self._socket_files.clear()

    def _hand_over(self, core: Core, bind: Bind, sockets: list[socket.socket], shared: bool) -> None:
        local = sockets[0].family == socket.AF_UNIX
        refused = "a server has at most 16 listeners" if core.full else ""
        if bind.proxy and not core.trusts(local):
            how = "as unix" if local else "by address or network"
            refused = f"cannot listen on {bind}: trusted_proxies must name the proxies that connect there, {how}"
        if refused:
            for s in sockets:
                s.close()
            raise StartError(refused)
        self._addresses.append(_printable(sockets[0]))
        for index, s in enumerate(sockets):
            s.setblocking(False)
            core.listen(index, s.detach(), local, shared, bind.proxy)

    # Signals.

    @contextlib.contextmanager
    def _signals(self) -> Generator[int | None]:
        """In the main thread: INT, TERM and USR1 reach the core through a descriptor that Python's C-level
        signal handler writes to, so that they work while Python is stuck."""
        if threading.current_thread() is not threading.main_thread():
            yield None
            return
        reader, writer = socket.socketpair()
        reader.setblocking(False)
        writer.setblocking(False)
        heard = signal.SIGINT, signal.SIGTERM, signal.SIGUSR1
        before = {n: signal.signal(n, lambda number, frame: None) for n in heard}
        descriptor = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)

        def restore() -> None:
            signal.set_wakeup_fd(descriptor)
            for number, handler in before.items():
                signal.signal(number, handler if handler is not None else signal.SIG_DFL)

        self._restore_signals = restore
        self._signal_pair = (reader, writer)
        try:
            yield reader.fileno()
        finally:
            del self._restore_signals, self._signal_pair
            restore()
            reader.close()
            writer.close()

    def _forked(self) -> None:
        """In the child of a fork: the core has seen to itself."""
        restore = getattr(self, "_restore_signals", None)
        if restore is not None:
            restore()
            for end in self._signal_pair:
                end.close()


_running: "weakref.WeakSet[Server]" = weakref.WeakSet()


def _resolve(bind: Bind) -> list[tuple[int, Any]]:
    if bind.host == "localhost":
        # This machine, by both families, whatever its hosts file says (RFC 6761, section 6.3).
        both: list[tuple[int, Any]] = [
            (socket.AF_INET6, ("::1", bind.port, 0, 0)), (socket.AF_INET, ("127.0.0.1", bind.port)),
        ]
        return both if _has_ipv6() else both[1:]
    found = socket.getaddrinfo(bind.host, bind.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    if not found:
        raise StartError(f"cannot listen on {bind}: the name has no address")
    return [(family, address) for family, _, _, _, address in found]


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


def _identity(path: str) -> tuple[int, ...]:
    """Of a socket's file. Its number may be given to the next one as soon as it is gone, so when it was made is looked
    at, which no change of its mode or owner changes."""
    found = os.stat(path)
    return found.st_dev, found.st_ino, found.st_mtime_ns


def _copy_of(fd: int) -> socket.socket:
    copy = os.dup(fd)
    try:
        return socket.socket(fileno=copy)
    except OSError:
        os.close(copy)
        raise


def _standard_output(flags: int) -> int:
    """What may have to be waited for, a pipe or a terminal, is opened anew, because others share the descriptor
    that is there; in a file the place to write at is shared with them, and kept so."""
    if not stat.S_ISREG(os.fstat(1).st_mode):
        with contextlib.suppress(OSError):  # a socket, or no /proc
            return os.open("/proc/self/fd/1", flags)
    return os.dup(1)


def _printable(s: socket.socket) -> str:
    name = s.getsockname()
    if s.family == socket.AF_UNIX:
        return f"unix:{unix_name(name)}"
    return f"[{name[0]}]:{name[1]}" if s.family == socket.AF_INET6 else f"{name[0]}:{name[1]}"


def _refuse_patched_threads() -> None:
    """gevent and eventlet replace threads by greenlets, on which nothing here could run in parallel."""
    for name in ("get_ident", "_start_new_thread", "_start_joinable_thread", "_allocate_lock"):
        if not isinstance(getattr(threading, name, len), BuiltinFunctionType):
            raise StartError("threading is patched (gevent, eventlet): fastserve needs real threads")


def _at_exit() -> None:
    """A program that falls off its end without `shutdown` leaves nothing native behind; however many
    servers it has, their workers are waited for once."""
    leave_at = time.monotonic() + WORKER_EXIT
    for server in list(_running):
        with contextlib.suppress(ServerClosed):
            server._stop(0, leave_at)  # pyright: ignore[reportPrivateUsage]


def _after_fork() -> None:
    for server in list(_running):
        server._forked()  # pyright: ignore[reportPrivateUsage]
    _running.clear()


atexit.register(_at_exit)
os.register_at_fork(after_in_child=_after_fork)
