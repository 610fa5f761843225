"""The command line against a Server that only records what it was asked for."""

import logging
import os
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

import fastserve
from fastserve import welcome
from fastserve.cli import main
from fastserve.config import SPECS, Config, option, variable
from fastserve.errors import StartError

Capsys = pytest.CaptureFixture[str]


@dataclass
class Record:
    """What the fake Server was given, and how it shall behave."""

    handler: Any = None
    fields: dict[str, Any] = field(default_factory=dict)
    binds: tuple[str, ...] = ()
    addresses: list[str] = field(default_factory=lambda: ["127.0.0.1:8000"])
    clean: bool = True
    raises: BaseException | None = None


@pytest.fixture
def record(monkeypatch: pytest.MonkeyPatch) -> Record:
    record = Record()

    class Server:
        def __init__(self, handler: Any, **fields: Any) -> None:
            record.handler, record.fields = handler, fields
            self.addresses: list[str] = []

        def serve(self, *binds: str, ready: Callable[["Server"], object]) -> bool:
            record.binds = binds
            if record.raises is not None:
                raise record.raises
            self.addresses = record.addresses
            ready(self)
            return record.clean

    module = types.ModuleType("fastserve.server")
    module.Server = Server  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "fastserve.server", module)
    return record


@pytest.fixture(autouse=True)
def clean_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An empty current directory, no FASTSERVE_ variables; path, modules and loggers put back."""
    monkeypatch.chdir(tmp_path)
    for name in SPECS:
        monkeypatch.delenv(variable(name), raising=False)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    modules, logger = set(sys.modules), logging.getLogger("fastserve")
    level = logger.level
    yield
    logger.setLevel(level)
    for name in set(sys.modules) - modules:
        if str(getattr(sys.modules[name], "__file__", "") or "").startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.fixture
def app(tmp_path: Path) -> Callable[..., None]:
    """Write a module into the current directory."""

    def write(text: str, name: str = "given_app.py") -> None:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    return write


def wrong(argv: Sequence[str], capsys: Capsys) -> str:
    """Run `main`, expect status 2, return the one line."""
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert len(output.err.splitlines()) == 1
    return output.err.rstrip("\n")


def cannot(argv: Sequence[str], capsys: Capsys) -> str:
    """Run `main`, expect status 3, return the one line."""
    assert main(argv) == 3
    output = capsys.readouterr()
    assert output.out == ""
    assert len(output.err.splitlines()) == 1
    return output.err.rstrip("\n")


HANDLER = "def handler(ctx): pass\n"

# --- what reaches the server ---


def test_without_arguments_the_welcome_page_on_the_default_address(record: Record) -> None:
    assert main([]) == 0
    assert record.handler is welcome.handler
    assert record.binds == ("127.0.0.1:8000",)
    assert record.fields.keys() == SPECS.keys()
    assert Config(**record.fields) == Config().resolved()


def test_arguments_of_the_process_are_the_default(record: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["fastserve", "--max-queue", "3"])
    assert main() == 0
    assert record.fields["max_queue"] == 3


@pytest.mark.parametrize("name", [n for n, s in SPECS.items() if s.kind not in ("hook", "flag")])
def test_every_field_is_an_option(record: Record, name: str) -> None:
    spec = SPECS[name]
    fitting = {"reactors": 3, "max_workers": 70, "concurrency": 9, "name": "x", "refused_methods": "GET",
               "health_path": "/x", "metrics_path": "/x", "access_log": "-",
               "access_log_format": "json", "trusted_proxies": "unix", "forwarded_field": "Forwarded"}
    value = fitting.get(name, spec.low)
    assert main([option(name), spec.show(value)]) == 0
    assert record.fields[name] == value


def test_a_flag_has_an_option_for_on_and_off(record: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["--reuse-port"]) == 0
    assert record.fields["reuse_port"] is True
    monkeypatch.setenv("FASTSERVE_REUSE_PORT", "yes")
    assert main(["--no-reuse-port"]) == 0
    assert record.fields["reuse_port"] is False


def test_a_hook_is_no_option(record: Record, capsys: Capsys) -> None:
    assert "unrecognized arguments: --on-worker-start" in wrong(["--on-worker-start=x"], capsys)


def test_the_command_line_wins_over_the_environment(record: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTSERVE_MAX_QUEUE", "5")
    monkeypatch.setenv("FASTSERVE_QUEUE_TIMEOUT", "500ms")
    assert main(["--max-queue", "7"]) == 0
    assert (record.fields["max_queue"], record.fields["queue_timeout"]) == (7, 0.5)


def test_bind_may_be_repeated_and_replaces_the_default(record: Record) -> None:
    assert main(["--bind", "localhost:1", "--bind=unix:/tmp/x"]) == 0
    assert record.binds == ("localhost:1", "unix:/tmp/x")


# --- the handler ---


@pytest.mark.parametrize(
    ("target", "expected"),
    [("given_app", "handler"), ("given_app:handler", "handler"), ("given_app:other", "other"),
     ("given_app:box.inner.method", "method")],
)  # fmt: skip
def test_finds_the_handler(record: Record, app: Callable[..., None], target: str, expected: str) -> None:
    app(
        "def handler(ctx): return 'handler'\ndef other(ctx): return 'other'\n"
        "class box:\n    class inner:\n        def method(ctx): return 'method'\n"
    )
    assert main([target]) == 0
    assert record.handler(None) == expected


def test_finds_a_module_in_a_package(record: Record, app: Callable[..., None]) -> None:
    app("", "given_pkg/__init__.py")
    app(HANDLER, "given_pkg/web.py")
    assert main(["given_pkg.web"]) == 0
    assert record.handler.__module__ == "given_pkg.web"


def test_the_current_directory_comes_first_on_the_path_once(record: Record, app: Callable[..., None]) -> None:
    app(HANDLER)
    assert main(["given_app"]) == 0
    assert main(["given_app"]) == 0
    assert sys.path[0] == os.getcwd()
    assert sys.path.count(os.getcwd()) == 1


@pytest.mark.parametrize(
    "target", ["", ":handler", "given_app:", "./given_app", "a-b", "a..b", "a:b:c", "a:1b", ".a"]
)
def test_a_target_of_another_form(record: Record, capsys: Capsys, target: str) -> None:
    line = wrong([target], capsys)
    assert line.startswith(f"fastserve: {target!r} is not of the form module:handler, such as app:handler")


def test_a_file_is_no_module(record: Record, app: Callable[..., None], capsys: Capsys) -> None:
    app("raise SystemError")
    line = cannot(["given_app.py"], capsys)
    assert line == "fastserve: 'given_app.py' names a file; write given_app:handler"


@pytest.mark.parametrize("module", ["given_nope", "given_pkg.nope", "given_app.nope", "given_nope.nope"])
def test_a_missing_module(record: Record, app: Callable[..., None], capsys: Capsys, module: str) -> None:
    app("", "given_pkg/__init__.py")
    app("")
    assert cannot([module], capsys) == f"fastserve: no module {module!r} here or on the Python path"
    assert record.handler is None


@pytest.mark.parametrize(
    ("target", "line"),
    [
        ("given_app:nope", "'given_app' has no attribute 'nope'"),
        ("given_app:box.nope", "'given_app:box' has no attribute 'nope'"),
        ("given_app:box.word.nope", "'given_app:box.word' has no attribute 'nope'"),
        ("given_app", "'given_app' has no attribute 'handler'"),
        ("given_app:box.word", "'given_app:box.word' is not callable, but of type str"),
    ],
)
def test_a_missing_or_wrong_attribute(
    record: Record, app: Callable[..., None], capsys: Capsys, target: str, line: str
) -> None:
    app("class box:\n    word = 'x'\n")
    assert cannot([target], capsys) == f"fastserve: {line}"
    assert record.handler is None


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("1 / 0", "ZeroDivisionError"),
        ("import given_dependency", "ModuleNotFoundError"),
        ("import given_app_two", "ModuleNotFoundError"),
        ("from os import nope", "ImportError"),
        ("raise SystemExit(0)", "SystemExit"),
        ("x = (", "SyntaxError"),
    ],
)
def test_an_exception_in_the_module_shows_its_traceback_and_one_line(
    record: Record, app: Callable[..., None], capsys: Capsys, text: str, name: str
) -> None:
    app(text)
    assert main(["given_app"]) == 3
    *trace, line = capsys.readouterr().err.splitlines()
    assert line == f"fastserve: importing 'given_app' raised {name}"
    assert any(name in entry for entry in trace)
    files = [entry for entry in trace if entry.startswith("  File ")]
    assert "given_app.py" in files[0], "the traceback begins in the user's module"
    assert record.handler is None


def test_an_interrupt_while_importing(record: Record, app: Callable[..., None], capsys: Capsys) -> None:
    app("raise KeyboardInterrupt")
    assert main(["given_app"]) == 130
    assert capsys.readouterr().err == ""


# --- wrong options ---


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["--nope"], "unrecognized arguments: --nope"),
        (["--no\npe"], "unrecognized arguments: --no pe"),
        (["--work", "3"], "unrecognized arguments: --work"),
        (["--workers"], "argument --workers: expected one argument"),
        (["--workers", "1"], "argument --workers: must be 2 to 4096 threads, not '1'"),
        (["--workers", "-5"], "argument --workers: must be a whole number of threads, not '-5'"),
        (["--idle-timeout", "5d"], "argument --idle-timeout: must be a duration such as 30, 500ms"),
        (["--read-buffer-size", "2GiB"], "argument --read-buffer-size: must be 1024 to 1048576 bytes"),
        (["--name", "a\nb"], "argument --name: must be 0 to 200 printable ASCII"),
        (["--workers", "2", "--reactors", "2"], "workers must be at least reactors + 1 = 3, not 2"),
        (["--log-level", "loud"], "argument --log-level: invalid choice: 'loud'"),
    ],
)
def test_a_wrong_option(record: Record, capsys: Capsys, argv: list[str], line: str) -> None:
    said = wrong(argv, capsys)
    assert said.startswith(f"fastserve: {line}")
    assert said.endswith("(see fastserve --help)")
    assert record.handler is None


def test_a_wrong_variable(record: Record, capsys: Capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTSERVE_WORKERS", "many")
    line = "fastserve: FASTSERVE_WORKERS must be a whole number of threads, not 'many' (see fastserve --help)"
    assert wrong([], capsys) == line


def test_a_bad_bind_stops_before_the_module_is_imported(
    record: Record, app: Callable[..., None], capsys: Capsys
) -> None:
    app("raise SystemError")
    line = wrong(["given_app", "--bind", "127.0.0.1:1", "--bind", ":80"], capsys)
    assert line.startswith("fastserve: cannot bind to ':80': the host is missing")


# --- what cannot start ---


def test_a_missing_core(capsys: Capsys, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Missing:
        def find_spec(self, name: str, path: object = None, target: object = None) -> None:
            if name == "fastserve.server":
                raise ImportError("the compiled core is missing: run `make build`")

    monkeypatch.delitem(sys.modules, "fastserve.server", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Missing(), *sys.meta_path])
    assert cannot([], capsys) == "fastserve: the compiled core is missing: run `make build`"


def test_a_server_that_cannot_start_in_one_line(record: Record, capsys: Capsys) -> None:
    record.raises = StartError("cannot bind to 127.0.0.1:8000:\n  address in use")
    assert cannot([], capsys) == "fastserve: cannot bind to 127.0.0.1:8000: address in use"


def test_too_much_concurrency(record: Record, capsys: Capsys, monkeypatch: Any) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda which: (100, 100))
    line = "fastserve: concurrency must be below RLIMIT_NOFILE = 100, not 100"
    assert cannot(["--concurrency", "100"], capsys) == line


def test_a_bug_in_the_server_is_not_hidden(record: Record) -> None:
    record.raises = ValueError("a bug")
    with pytest.raises(ValueError, match="a bug"):
        main([])


# --- what is said ---


@pytest.mark.parametrize(("gil", "word"), [(True, "GIL"), (False, "free-threaded")])
def test_the_start_lines(
    record: Record, capsys: Capsys, monkeypatch: pytest.MonkeyPatch, gil: bool, word: str
) -> None:
    monkeypatch.setattr(sys, "_is_gil_enabled", lambda: gil, raising=False)
    monkeypatch.setattr("platform.python_version", lambda: "3.13.0")
    monkeypatch.setattr("platform.python_implementation", lambda: "CPython")
    monkeypatch.setattr(os, "getpid", lambda: 1234)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    record.addresses = ["127.0.0.1:8000", "[::1]:8000", "unix:/run/a"]
    urls = "http://127.0.0.1:8000, http://[::1]:8000, unix:/run/a"
    assert main([]) == 0
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.splitlines() == [
        f"fastserve {fastserve.__version__} on {urls} (Ctrl-C stops)",
        f"pid 1234, CPython 3.13.0 ({word}), 64 workers, {'1 reactor' if gil else '2 reactors'}",
    ]


@contextmanager
def bare_root_logger() -> Iterator[logging.Logger]:
    """The root logger without the handlers that pytest puts there around each test."""
    with mock.patch.object(logging.getLogger(), "handlers", []):
        yield logging.getLogger()


def test_what_was_cut_off_is_status_1(record: Record, capsys: Capsys) -> None:
    record.clean = False
    with bare_root_logger():
        assert main(["--shutdown-timeout", "250ms"]) == 1


@pytest.mark.parametrize(
    ("argv", "level"),
    [
        ([], logging.INFO),
        (["--log-level", "debug"], logging.DEBUG),
        (["--log-level", "info"], logging.INFO),
        (["--log-level", "warning"], logging.WARNING),
        (["--log-level", "error"], logging.ERROR),
        (["--log-level", "critical"], logging.CRITICAL),
    ],
)
def test_the_log_level_is_that_of_our_logger_alone(record: Record, argv: list[str], level: int) -> None:
    with bare_root_logger() as root:
        before = root.level
        assert main(argv) == 0
        assert root.level == before
        assert len(root.handlers) == 1
    assert logging.getLogger("fastserve").level == level


def test_logging_that_the_module_has_set_up_stays(record: Record, app: Callable[..., None]) -> None:
    app("import logging\nlogging.basicConfig(handlers=[logging.NullHandler()])\n" + HANDLER)
    with bare_root_logger() as root:
        assert main(["given_app"]) == 0
        assert [type(handler) for handler in root.handlers] == [logging.NullHandler]


def test_version(capsys: Capsys) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"fastserve {fastserve.__version__}\n"


def test_help_names_every_option_with_its_default(capsys: Capsys) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for name, spec in SPECS.items():
        if spec.kind != "hook":
            assert f"{option(name)}" in text
            assert f"{spec.meaning} (default: {spec.show(spec.default)})" in text
    assert "(default: 127.0.0.1:8000)" in text


# --- the welcome page ---


class Ctx:
    """As much of a RequestCtx as the welcome handler needs."""

    def __init__(self, path: str) -> None:
        self.path, self.content_type, self.body, self.found = path, "", "", True

    def write(self, data: str) -> None:
        self.body += data

    def not_found(self) -> None:
        self.found = False


def test_the_welcome_page() -> None:
    ctx = Ctx("/")
    welcome.handler(ctx)  # type: ignore[arg-type]
    assert ctx.content_type == "text/html; charset=utf-8"
    assert "fastserve works" in ctx.body


@pytest.mark.parametrize("path", ["/favicon.ico", "//", "", "/x"])
def test_other_paths_are_not_found(path: str) -> None:
    ctx = Ctx(path)
    welcome.handler(ctx)  # type: ignore[arg-type]
    assert (ctx.found, ctx.body) == (False, "")


def test_the_example_on_the_page_is_a_module_that_works() -> None:
    source = welcome.PAGE.partition("<pre>\n")[2].partition("</pre>")[0]
    assert len(source.splitlines()) <= 10
    names: dict[str, Any] = {}
    exec(source, names)  # our own text
    ctx = Ctx("/")
    names["handler"](ctx)
    assert ctx.body == "Hello, World!\n"
