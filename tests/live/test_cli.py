"""The real console script in a process of its own: what it says, whom it serves, how it ends."""

import http.client
import os
import re
import resource
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path

import pytest

import fastserve

ROOT = str(Path(fastserve.__file__).parents[1])
INSTALLED = Path(sys.executable).with_name("fastserve")
SCRIPT = [str(INSTALLED)] if INSTALLED.exists() else [sys.executable, "-m", "fastserve"]
HANG_LIMIT = 60  # seconds; a test that hangs is killed, no test measures time

HELLO = """
def handler(ctx):
    ctx.write("hello\\n")
"""
STUCK = """
import sys, threading
def handler(ctx):
    print("called", file=sys.stderr, flush=True)
    threading.Event().wait()
"""


def environment(variables: dict[str, str]) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("FASTSERVE_")}
    return kept | {"PYTHONPATH": ROOT, "PYTHONDONTWRITEBYTECODE": "1"} | variables


class Process:
    """A running `fastserve` whose stderr is read line by line."""

    def __init__(self, popen: "subprocess.Popen[str]") -> None:
        self.popen = popen
        self.lines: list[str] = []

    def wait_for(self, pattern: str) -> "re.Match[str]":
        """Read lines of stderr up to the first that matches."""
        assert self.popen.stderr is not None
        for line in self.popen.stderr:
            self.lines.append(line.rstrip("\n"))
            if match := re.search(pattern, line):
                return match
        raise AssertionError(f"ended without {pattern!r}: {self.lines}")

    def started(self) -> list[str]:
        """The addresses of the start line."""
        addresses = self.wait_for(r"^fastserve \S+ on (.*) \(Ctrl-C stops\)$")[1].split(", ")
        self.wait_for(r"^pid ")
        return [str(address).removeprefix("http://") for address in addresses]

    def end(self, number: signal.Signals = signal.SIGINT) -> int:
        """Send a signal, read the rest of stderr, return the exit status."""
        self.popen.send_signal(number)
        assert self.popen.stderr is not None
        self.lines += self.popen.stderr.read().splitlines()
        return self.popen.wait()


Start = Callable[..., Process]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start `fastserve` with these arguments in an own directory; whatever still runs is killed."""
    running: list[tuple[subprocess.Popen[str], threading.Timer]] = []

    def run(*argv: str, app: str = HELLO, fds: Sequence[int] = (), **variables: str) -> Process:
        (tmp_path / "app.py").write_text(app)
        popen = subprocess.Popen(
            [*SCRIPT, *argv],
            cwd=tmp_path,
            env=environment(variables),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            pass_fds=fds,
            text=True,
        )
        watchdog = threading.Timer(HANG_LIMIT, popen.kill)
        watchdog.start()
        running.append((popen, watchdog))
        return Process(popen)

    yield run
    for popen, watchdog in running:
        watchdog.cancel()
        popen.kill()
        popen.wait()
        assert popen.stderr is not None
        popen.stderr.close()


def finished(
    tmp_path: Path, *argv: str, app: str = HELLO, **variables: str
) -> "subprocess.CompletedProcess[str]":
    """Run `fastserve` to its own end."""
    (tmp_path / "app.py").write_text(app)
    return subprocess.run(
        [*SCRIPT, *argv],
        cwd=tmp_path,
        env=environment(variables),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=HANG_LIMIT,
    )


def get(address: str, path: str = "/") -> tuple[int, str, str, "http.client.HTTPMessage"]:
    host, _, port = address.rpartition(":")
    connection = http.client.HTTPConnection(host.strip("[]"), int(port), timeout=HANG_LIMIT)
    with closing(connection):
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.headers["Content-Type"], response.read().decode(), response.headers


# --- it serves ---


def test_serves_the_handler_of_the_current_directory_until_ctrl_c(start: Start) -> None:
    process = start("app:handler", "--bind", "127.0.0.1:0")
    [address] = process.started()
    assert re.fullmatch(r"127\.0\.0\.1:[1-9][0-9]*", address)
    assert get(address)[2] == "hello\n"
    assert process.end(signal.SIGINT) == 0
    assert "Traceback" not in "\n".join(process.lines)


def test_says_what_it_is_in_two_lines(start: Start) -> None:
    process = start("app", "--bind", "127.0.0.1:0", "--workers", "3", "--reactors", "2")
    process.started()
    first, second = process.lines
    assert first.startswith(f"fastserve {fastserve.__version__} on http://127.0.0.1:")
    version = re.escape(sys.version.split()[0])
    words = rf"pid {process.popen.pid}, \w+ {version} \((GIL|free-threaded)\), 3 workers, 2 reactors"
    assert re.fullmatch(words, second)
    assert process.end() == 0


def test_term_drains_too(start: Start) -> None:
    process = start("app", "--bind", "127.0.0.1:0")
    process.started()
    assert process.end(signal.SIGTERM) == 0


def test_without_a_handler_the_welcome_page(start: Start) -> None:
    process = start("--bind", "127.0.0.1:0")
    [address] = process.started()
    status, content_type, body, _ = get(address)
    assert (status, content_type) == (200, "text/html; charset=utf-8")
    assert "fastserve works" in body
    assert get(address, "/nope")[0] == 404
    assert process.end() == 0


def test_listens_on_a_unix_socket_with_its_mode_for_proxies(start: Start, tmp_path: Path) -> None:
    path = tmp_path / "s"
    process = start("app", "--bind", f"unix:{path}?mode=600&proxy", "--bind", "127.0.0.1:0",
                    "--trusted-proxies", "unix")
    unix, tcp = process.started()
    assert unix == f"unix:{path}"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(HANG_LIMIT)
        client.connect(str(path))
        client.sendall(b"PROXY UNKNOWN\r\nGET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        with client.makefile("rb") as file:
            assert file.read().endswith(b"\r\n\r\nhello\n")
    assert get(tcp)[0] == 200
    assert process.end() == 0


def test_listens_on_an_inherited_descriptor(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        process = start("app", "--bind", f"fd:{listener.fileno()}", fds=[listener.fileno()])
        [address] = process.started()
        assert address == f"127.0.0.1:{listener.getsockname()[1]}"
        assert get(address)[0] == 200
        assert process.end() == 0


def test_options_and_variables_reach_the_server(start: Start) -> None:
    process = start("app", "--bind", "127.0.0.1:0", "--name", "mine", FASTSERVE_NAME="theirs")
    assert get(process.started()[0])[3]["Server"] == "mine"
    assert process.end() == 0
    process = start("app", "--bind", "127.0.0.1:0", FASTSERVE_NAME="theirs")
    assert get(process.started()[0])[3]["Server"] == "theirs"
    assert process.end() == 0


def test_a_request_that_is_cut_off_at_the_end_is_status_1(start: Start) -> None:
    process = start("app", "--bind", "127.0.0.1:0", "--shutdown-timeout", "50ms", app=STUCK)
    host, _, port = process.started()[0].rpartition(":")
    with socket.create_connection((host, int(port)), timeout=HANG_LIMIT) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        process.wait_for("^called$")
        assert process.end(signal.SIGTERM) == 1
    assert any("cut off" in line for line in process.lines)


# --- it does not start ---


def test_a_taken_port_is_one_line_and_status_3(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        run = finished(tmp_path, "app", "--bind", f"127.0.0.1:{port}")
    assert run.returncode == 3
    [line] = run.stderr.splitlines()
    assert line.startswith("fastserve: ")
    assert f"127.0.0.1:{port}" in line


def test_a_second_fastserve_on_the_same_port_does_not_start(start: Start, tmp_path: Path) -> None:
    process = start("app", "--bind", "127.0.0.1:0")
    [address] = process.started()
    run = finished(tmp_path, "app", "--bind", address)
    assert run.returncode == 3
    assert len(run.stderr.splitlines()) == 1
    assert get(address)[0] == 200
    assert process.end() == 0


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["nope"], "no module 'nope'"),
        (["app:nope"], "'app' has no attribute 'nope'"),
        (["app:__name__"], "'app:__name__' is not callable"),
        (["app", "--bind", "fd:999"], ""),
        (["app", "--bind", "unix:/nope/nope/s"], ""),
        (["app", "--bind", "nope.invalid:0"], ""),
        (["app", "--bind", "192.0.2.1:0"], ""),
        (["app", "--bind", "127.0.0.1:0?proxy"], "cannot listen on 127.0.0.1:0?proxy: trusted_proxies must name "),
    ],
)
def test_what_cannot_start_is_one_line_and_status_3(tmp_path: Path, argv: list[str], line: str) -> None:
    run = finished(tmp_path, *argv)
    assert run.returncode == 3
    assert run.stdout == ""
    assert len(run.stderr.splitlines()) == 1
    assert run.stderr.startswith(f"fastserve: {line}")


# A sanitizer reserves more address space than any limit.
limits_memory = pytest.mark.skipif("LD_PRELOAD" in os.environ, reason="something is loaded into this process")


def few_descriptors() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (60, 60))


def little_memory() -> None:
    """Enough for an interpreter, and not for 4,096 stacks of threads."""
    resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))


@pytest.mark.parametrize(
    ("limit", "argv", "line"),
    [
        (few_descriptors, ["--reactors", "200", "--workers", "300", "--concurrency", "10"], "cannot make 200 reactors"),
        pytest.param(little_memory, ["--workers", "4096", "--concurrency", "10"], "cannot start 4096 workers",
                     marks=limits_memory),
    ],
)
def test_what_the_machine_cannot_give_is_one_line_and_status_3(
    tmp_path: Path, limit: Callable[[], None], argv: list[str], line: str
) -> None:
    (tmp_path / "app.py").write_text(HELLO)
    run = subprocess.run([*SCRIPT, "app", "--bind", "127.0.0.1:0", *argv], cwd=tmp_path, env=environment({}),
                         capture_output=True, text=True, timeout=HANG_LIMIT, preexec_fn=limit)
    assert (run.returncode, run.stdout) == (3, "")
    assert len(run.stderr.splitlines()) == 1
    assert run.stderr.startswith(f"fastserve: {line}")


def test_usr1_tells_what_each_thread_is_at(start: Start) -> None:
    process = start("app", "--bind", "127.0.0.1:0", "--shutdown-timeout", "0", app=STUCK)
    [address] = process.started()
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port))) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        process.wait_for(r"^called$")
        process.popen.send_signal(signal.SIGUSR1)
        process.wait_for(r"WARNING fastserve.error: what each thread is at:$")
        process.wait_for(r"^fastserve-worker-\d+:$")
        process.wait_for(r'app.py", line \d+, in handler$')
    assert process.end(signal.SIGINT) in (0, 1)


def test_a_stderr_that_is_full_stops_nobody(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(HELLO)
    with open("/dev/full", "w") as full:
        popen = subprocess.Popen([*SCRIPT, "app", "--bind", f"unix:{tmp_path}/s"], cwd=tmp_path,
                                 env=environment({}), stderr=full)
    try:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(HANG_LIMIT)
            end = time.monotonic() + HANG_LIMIT
            while client.connect_ex(f"{tmp_path}/s"):       # it binds, and then it listens
                assert popen.poll() is None and time.monotonic() < end
            client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert client.recv(65536).startswith(b"HTTP/1.1 200 ")
        popen.send_signal(signal.SIGTERM)
        popen.wait(HANG_LIMIT)
    finally:
        popen.kill()


def test_an_exception_in_the_module_shows_where(tmp_path: Path) -> None:
    run = finished(tmp_path, "app", "--bind", "127.0.0.1:0", app="def f():\n    return 1 / 0\nf()\n")
    assert run.returncode == 3
    lines = run.stderr.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert 'app.py", line 3' in lines[1]
    assert lines[-1] == "fastserve: importing 'app' raised ZeroDivisionError"


@pytest.mark.parametrize("argv", [["--nope"], ["--workers", "0"], ["--bind"], ["--bind", "8000"], ["a", "b"]])
def test_a_wrong_option_is_one_line_and_status_2(tmp_path: Path, argv: list[str]) -> None:
    run = finished(tmp_path, *argv)
    assert run.returncode == 2
    assert run.stdout == ""
    assert len(run.stderr.splitlines()) == 1
    assert run.stderr.startswith("fastserve: ")


def test_a_wrong_variable_is_one_line_and_status_2(tmp_path: Path) -> None:
    run = finished(tmp_path, "app", FASTSERVE_IDLE_TIMEOUT="soon")
    assert run.returncode == 2
    assert len(run.stderr.splitlines()) == 1
    assert run.stderr.startswith("fastserve: FASTSERVE_IDLE_TIMEOUT must be a duration")


# --- it tells ---


def test_version_and_help(tmp_path: Path) -> None:
    run = finished(tmp_path, "--version")
    assert (run.returncode, run.stdout, run.stderr) == (0, f"fastserve {fastserve.__version__}\n", "")
    run = finished(tmp_path, "--help")
    assert (run.returncode, run.stderr) == (0, "")
    assert "--queue-timeout TIME" in run.stdout


def test_the_package_runs_as_a_module(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "fastserve", "--version"],
        cwd=tmp_path,
        env=environment({}),
        capture_output=True,
        text=True,
        timeout=HANG_LIMIT,
    )
    assert (run.returncode, run.stdout) == (0, f"fastserve {fastserve.__version__}\n")
