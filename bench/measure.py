"""Processes, cores and clocks: starts a server on its core, loads it from the other, reads what it cost.

Knows the kernel's books and wrk's report; nothing of HTTP (a request is bytes), and not who is measured.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import socket
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
BUILD = HERE / "build"
HOST = "127.0.0.1"
CONNECTIONS = 64

_libc = ctypes.CDLL(None, use_errno=True)
_PR_SET_PDEATHSIG = 1
_TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")


class BenchError(Exception):
    """A measurement that cannot be made, or must not be believed."""


@dataclass(frozen=True)
class Cores:
    """The core of the server and the core of everything that loads it."""

    server: int
    load: int


def choose_cores() -> Cores:
    """Takes the first and the last usable core, and pins this process (and so its children) to the load's."""
    usable = sorted(os.sched_getaffinity(0))
    if len(usable) < 2:
        raise BenchError("the bench needs two cores: one for the server, one for the load")
    cores = Cores(usable[0], usable[-1])
    os.sched_setaffinity(0, {cores.load})
    return cores


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]


class Server:
    """A contender's processes, pinned to its cores; they die when the `with` ends.

    The process that is started leads a process group of its own; what it forks belongs to the contender:
    it is charged, paused and killed with it.
    """

    def __init__(self, name: str, command: Sequence[str], environment: dict[str, str],
                 cores: set[int]) -> None:
        self.name = name
        self._command = command
        self._environment = {**os.environ, **environment}
        self._cores = cores

    def __enter__(self) -> Server:
        self.port = free_port()
        self._log = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            [*self._command, str(self.port)], cwd=HERE, env=self._environment, stderr=self._log,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, process_group=0,
            preexec_fn=pinned(self._cores))
        try:
            self._wait_until_it_listens()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _wait_until_it_listens(self) -> None:
        deadline = time.monotonic() + 10
        while True:
            self.check_alive()
            with contextlib.suppress(OSError):
                socket.create_connection((HOST, self.port), timeout=1).close()
                return
            if time.monotonic() > deadline:
                raise BenchError(f"{self.name} does not listen after 10 s")
            time.sleep(0.02)

    def check_alive(self) -> None:
        if self._process.poll() is not None:
            self._log.seek(0)
            said = self._log.read().decode(errors="replace").strip()
            telling = re.findall(r"^.*(?:[Ee]rror|panic).*$", said, re.MULTILINE) or [said.rpartition("\n")[2]]
            raise BenchError(f"{self.name} exited with status {self._process.returncode}: {telling[-1]}")

    def stop(self) -> None:
        if not self._log.closed:
            self._signal(signal.SIGKILL)
            self._process.communicate()
            self._log.close()

    def pause(self) -> None:
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: int) -> None:
        """To the whole group at once, and then to descendants that have left it."""
        strays = [pid for pid, group in self._family().items() if group != self._process.pid]
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)
        for pid in strays:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def _family(self) -> dict[int, int]:
        """The process groups of the process that was started and of its descendants, by their ids."""
        leader = self._process.pid
        parents, groups = {}, {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal():
                with contextlib.suppress(OSError):
                    fields = _stat(int(entry.name))
                    parents[int(entry.name)], groups[int(entry.name)] = int(fields[1]), int(fields[2])
        members = {pid for pid, group in groups.items() if pid == leader or group == leader}
        while more := {pid for pid, parent in parents.items() if parent in members} - members:
            members |= more
        return {pid: groups[pid] for pid in members}

    def ask(self) -> str:
        """Sends the process an empty line and returns the line that it prints in reply."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return self._process.stdout.readline()

    def cpu_ns(self) -> int:
        """User and system time so far of all threads of all its processes, also of those that have exited.

        The kernel's CPU clock of a process adds up what /proc/PID/task/*/schedstat shows, keeps the time
        of exited threads (their schedstat is gone), and brings a thread that runs just now up to date.
        Children that were forked and reaped are in their parent's books, in ticks.
        """
        total = 0
        for pid in self._family():
            with contextlib.suppress(OSError):
                reaped = _stat(pid)[13:15]
                total += time.clock_gettime_ns(_clock(pid)) + sum(map(int, reaped)) * _TICK_NS
        return total

    def cpu_ticks(self) -> int:
        """User and system time in the kernel's ticks, as in /proc/PID/stat."""
        return sum(map(int, _stat(self._process.pid)[11:13]))

    def open_files(self) -> int:
        return len(os.listdir(f"/proc/{self._process.pid}/fd"))


def pinned(cores: set[int]) -> Callable[[], None]:
    """For a child, before it becomes its program: its cores, and that it dies when the bench does."""
    def settle() -> None:
        os.sched_setaffinity(0, cores)
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    return settle


def _stat(pid: int) -> list[str]:
    """What /proc/PID/stat says behind the name: state, parent, group ..."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def _clock(pid: int) -> int:
    clock = ctypes.c_int()
    if _libc.clock_getcpuclockid(pid, ctypes.byref(clock)):
        raise ProcessLookupError(pid)
    return clock.value


@dataclass(frozen=True)
class Effort:
    """How long and how often to load."""

    rounds: int
    seconds: int


@dataclass
class Round:
    """What one run of wrk did, and what it cost the server."""

    cpu_us: float
    requests_per_s: float
    p50_ms: float
    p99_ms: float


@dataclass
class Series:
    """One contender's rounds; the n-th rounds of all contenders ran next to each other."""

    name: str
    rounds: list[Round] = field(default_factory=list)

    def values(self, quantity: str) -> list[float]:
        return [getattr(one, quantity) for one in self.rounds]

    def median(self, quantity: str) -> float:
        return statistics.median(self.values(quantity))

    def ratio(self, other: Series, quantity: str) -> float:
        """The median of the ratios to the other's neighbouring rounds: drift of the machine cancels out."""
        pairs = zip(self.values(quantity), other.values(quantity), strict=True)
        return statistics.median(mine / theirs for mine, theirs in pairs)


_MILLISECONDS = {"us": 0.001, "ms": 1.0, "s": 1000.0, "m": 60_000.0, "h": 3_600_000.0}


def _said(report: str, pattern: str) -> re.Match[str]:
    found = re.search(pattern, report, re.MULTILINE)
    if not found:
        raise BenchError(f"wrk's report lacks {pattern!r}: {report}")
    return found


def _percentile(report: str, percent: int) -> float:
    found = _said(report, rf"^ +{percent}% +([\d.]+)(us|ms|s|m|h) *$")      # units of one letter are padded
    return float(found[1]) * _MILLISECONDS[found[2]]


def load(server: Server, seconds: int, message: bytes, connections: int = CONNECTIONS) -> Round:
    """One round: wrk with one thread sends `message`, a whole number of requests, again and again."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(message)
        file.flush()
        return _load(server, seconds, file.name, connections)


def _load(server: Server, seconds: int, message: str, connections: int) -> Round:
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", "-s", str(HERE / "send.lua"),
               f"http://{HOST}:{server.port}/", "--", message]
    before = server.cpu_ns()
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 15)
    cost = server.cpu_ns() - before
    server.check_alive()
    report = done.stdout
    trouble = re.search(r"Socket errors: .*|Non-2xx or 3xx responses: .*", report)
    if done.returncode or trouble:
        complaint = trouble[0] if trouble else done.stderr.strip() or report
        raise BenchError(f"{server.name}: wrk says {complaint}")
    requests = int(_said(report, r"(\d+) requests in")[1])
    if not requests:
        raise BenchError(f"{server.name} answered no request in {seconds} s")
    return Round(
        cpu_us=cost / 1000 / requests,
        requests_per_s=float(_said(report, r"Requests/sec: +([\d.]+)")[1]),
        p50_ms=_percentile(report, 50),
        p99_ms=_percentile(report, 99),
    )


def interleave(servers: Sequence[Server], effort: Effort, message: bytes,
               check: Callable[[Server], None] = lambda server: None) -> list[Series]:
    """Checks and warms every server, then loads them in turn, forwards and backwards, round by round."""
    for server in servers:
        check(server)
        load(server, 1, message)
    series = {server: Series(server.name) for server in servers}
    for number in range(effort.rounds):
        for server in servers if number % 2 == 0 else reversed(servers):
            series[server].rounds.append(load(server, effort.seconds, message))
    return list(series.values())


@contextlib.contextmanager
def running(servers: Sequence[Server]) -> Iterator[Sequence[Server]]:
    """All of them ready at once, and none of them left afterwards."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(server) for server in servers]
