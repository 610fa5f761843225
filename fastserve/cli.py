"""The command line: `fastserve [module:handler]`.

Knows: options, the environment, how to import a handler, exit statuses. Never sees: a socket, a worker
or the core; it asks `Server`. Invariant: what cannot start is one clear line on stderr, without a
traceback unless the user's own module raised it.

Exit statuses: 0 stopped and nothing was cut off; 1 stopped, but requests were still running after
`--shutdown-timeout` and were cut off; 2 wrong option or environment variable; 3 cannot start; 130
interrupted before it listened (by a second Ctrl-C also after that, from the core).
"""

import argparse
import contextlib
import importlib
import logging
import os
import platform
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import fields
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn

import fastserve
from fastserve import welcome
from fastserve.binds import DEFAULT_BIND, FORMS, parse_bind
from fastserve.config import SPECS, Config, Kind, Spec, gil_enabled, option
from fastserve.errors import StartError

if TYPE_CHECKING:
    from fastserve.server import Server

__all__ = ["main"]

CUT_OFF = 1
WRONG_OPTION = 2
CANNOT_START = 3
INTERRUPTED = 130

GROUPS = {
    "listening": "where to listen",
    "workers": "threads",
    "overload": "overload",
    "deadlines": "deadlines (30, 500ms, 30s, 5m, 1h; a plain number is seconds)",
    "limits": "limits of a request (16384, 16KiB, 4MiB, 1GiB; a plain number is bytes)",
    "replies": "replies",
}
METAVARS: dict[Kind, str] = {"count": "N", "duration": "TIME", "size": "SIZE", "text": "TEXT"}
LEVELS = ("debug", "info", "warning", "error", "critical")

_TARGET = re.compile(r"([^\W\d]\w*(?:\.[^\W\d]\w*)*)(?::([^\W\d]\w*(?:\.[^\W\d]\w*)*))?")

Handler = Callable[[Any], None]


class _Parser(argparse.ArgumentParser):
    """An ArgumentParser that says what is wrong in one line, without the whole usage before it."""

    def error(self, message: str) -> NoReturn:
        self.exit(WRONG_OPTION, f"{self.prog}: {_one_line(message)} (see {self.prog} --help)\n")


class _CannotStart(Exception):
    """Its text is the one line for stderr."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line (default: that of the process) and return the exit status.

    SystemExit comes from `--help`, `--version` (0) and a wrong option (2), as usual with argparse.
    """
    parser = _parser()
    given = vars(parser.parse_args(argv))
    target: str | None = given.pop("target")
    binds: list[str] = given.pop("bind", [DEFAULT_BIND])
    level: str = given.pop("log_level")
    try:
        for bind in binds:
            parse_bind(bind)
        if target is not None and _TARGET.fullmatch(target) is None:
            raise ValueError(f"{target!r} is not of the form module:handler, such as app:handler")
        config = Config.from_env(os.environ, **given)
    except ValueError as error:
        parser.error(str(error))
    try:
        return _serve(target, binds, config, level)
    except (_CannotStart, StartError) as error:
        print("fastserve:", _one_line(error), file=sys.stderr)
        return CANNOT_START
    except KeyboardInterrupt:
        return INTERRUPTED


def _one_line(message: object) -> str:
    return " ".join(str(message).split())


def _serve(target: str | None, binds: Sequence[str], config: Config, level: str) -> int:
    try:
        from fastserve.server import Server
    except ImportError as error:
        raise _CannotStart(error) from None
    handler = _load(target)
    logging.basicConfig(stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("fastserve").setLevel(level.upper())
    try:
        settled = config.resolved()  # only now: importing the handler may have switched the GIL on
    except ValueError as error:
        raise _CannotStart(error) from None

    def announce(server: "Server") -> None:
        with contextlib.suppress(OSError):  # a stderr that is full or closed stops nobody from serving
            print(_start_lines(server.addresses, settled), file=sys.stderr, flush=True)

    try:
        server = Server(handler, **{field.name: getattr(settled, field.name) for field in fields(settled)})
    except TypeError as error:  # no handler
        raise _CannotStart(error) from None
    return 0 if server.serve(*binds, ready=announce) else CUT_OFF


def _start_lines(addresses: Sequence[str], config: Config) -> str:
    urls = ", ".join(a if a.startswith("unix:") else f"http://{a}" for a in addresses)
    threading = "GIL" if gil_enabled() else "free-threaded"
    python = f"{platform.python_implementation()} {platform.python_version()} ({threading})"
    reactors = "1 reactor" if config.reactors == 1 else f"{config.reactors} reactors"
    return (
        f"fastserve {fastserve.__version__} on {urls} (Ctrl-C stops)\n"
        f"pid {os.getpid()}, {python}, {config.workers} workers, {reactors}"
    )


def _load(target: str | None) -> Handler:
    """Import `module:handler`; without a target the welcome handler."""
    if target is None:
        return welcome.handler
    match = _TARGET.fullmatch(target)
    assert match, "main has looked"
    module_name, attribute = match[1], match[2] or "handler"
    if module_name.endswith(".py"):
        raise _CannotStart(f"{target!r} names a file; write {module_name.removesuffix('.py')}:{attribute}")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(module_name)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        if isinstance(error, ModuleNotFoundError) and f"{module_name}.".startswith(f"{error.name}."):
            raise _CannotStart(f"no module {module_name!r} here or on the Python path") from None
        traceback.print_exception(error.with_traceback(_below_import(error.__traceback__)))
        raise _CannotStart(f"importing {module_name!r} raised {type(error).__name__}") from None
    name = module_name
    for part in attribute.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise _CannotStart(f"{name!r} has no attribute {part!r}") from None
        name = f"{name}.{part}" if ":" in name else f"{name}:{part}"
    handler: Handler = found
    if not callable(handler):
        raise _CannotStart(f"{name!r} is not callable, but of type {type(found).__name__}")
    return handler


def _below_import(trace: TracebackType | None) -> TracebackType | None:
    """The part of a traceback that begins in the imported module; None for a syntax error in it."""
    machinery = (__file__, importlib.__file__)
    while trace is not None and (
        (file := trace.tb_frame.f_code.co_filename) in machinery or file.startswith("<frozen importlib")
    ):
        trace = trace.tb_next
    return trace


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="fastserve",
        usage="fastserve [option ...] [module:handler]",
        description="Serve HTTP/1.1 with a Python handler; without one, a page that says that it works.",
        epilog="Each option of a field has an environment variable (--max-queue: FASTSERVE_MAX_QUEUE); the "
        "command line wins. Exit status: 0 stopped, 1 requests were cut off, 2 wrong option, 3 cannot start.",
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=34, width=100),
        allow_abbrev=False,
    )
    parser.add_argument(
        "target",
        nargs="?",
        metavar="module:handler",
        help="module to import (the current directory is on the path) and the callable in it; a dotted "
        "name reaches into objects (default of the callable: handler)",
    )
    parser.add_argument("--version", action="version", version=f"fastserve {fastserve.__version__}")
    parser.add_argument(
        "--log-level",
        choices=LEVELS,
        default="info",
        help="least severe messages of the logger fastserve that stderr shows (default: %(default)s)",
    )
    groups = {group: parser.add_argument_group(title) for group, title in GROUPS.items()}
    groups["listening"].add_argument(
        "--bind",
        action="append",
        metavar="ADDRESS",
        default=argparse.SUPPRESS,
        help=f"{FORMS}; may be repeated; port 0 lets the kernel choose; ?proxy behind it: each connection begins with "
        f"a PROXY header, from one of --trusted-proxies (default: {DEFAULT_BIND})",
    )
    for name, spec in SPECS.items():
        text = f"{spec.meaning} (default: {spec.show(spec.default)})"
        if spec.kind == "flag":
            groups[spec.group].add_argument(
                option(name), action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=text
            )
        elif spec.kind != "hook":
            groups[spec.group].add_argument(
                option(name),
                metavar=METAVARS[spec.kind],
                default=argparse.SUPPRESS,
                type=_reader(spec),
                help=text,
            )
    return parser


def _reader(spec: Spec) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        try:
            return spec.parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return read
