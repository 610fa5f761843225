"""The one list of limits: what each is, its unit, default and bounds, and what a client sees of it.

Knows: names, values and how people write them. Never sees: a socket, a request or the core.
Invariant: a `Config` that exists is valid, by field and as a whole. The
keyword arguments of `Server`, the command line, the environment and the README's table derive from it.
"""

import dataclasses
import os
import re
import resource
import sys
from collections.abc import Callable, Mapping
from typing import Any, Literal, Self

from fastserve.errors import BadRequest
from fastserve.forwarded import FORWARDED_FIELDS, Trust

__all__ = ["SPECS", "Config", "Spec", "env_values", "markdown_table", "option", "variable"]

Kind = Literal["count", "duration", "size", "flag", "text", "hook"]

DESCRIPTORS_KEPT = 96  # of RLIMIT_NOFILE, for listeners, epoll sets, 32 that may be probes, and the program itself
WORKER_DESCRIPTORS = 3  # and for each worker, of the rest a quarter at most: an upload that is saved takes so many
CONCURRENCY_MAX = 65_536
REJECT_SLOTS_MAX = 1024
METHODS_MAX = 200  # as in engine/limits.pxd
PATH_MAX = 200  # as there, of those that are answered without Python

_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,32}")
_PATH = re.compile(r"/[!\"$->@-~]*")  # what is visible, but for ? and #
_COUNT = re.compile(r"[0-9]{1,15}")
_SIZE = re.compile(r"([0-9]{1,15})(B|KiB|MiB|GiB)?")
_DURATION = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,9})?)(ms|s|m|h)?")
_SIZES = {None: 1, "B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
_DURATIONS = {None: 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_FLAGS: dict[str, bool] = {"1": True, "true": True, "yes": True, "on": True,
                           "0": False, "false": False, "no": False, "off": False}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """What is known of one field.

    `low` and `high` are bounds in `unit`, both allowed; for a text, of its length. `none` says what None
    stands for; "" means that None is refused. `client` says what a client sees when the limit is reached.
    """

    kind: Kind
    group: str
    unit: str
    default: Any
    meaning: str
    client: str
    low: int | float
    high: int | float
    none: str

    def check(self, value: Any, given: object = None) -> Any:
        """Return `value`, normalised to the field's type, if it is valid.

        TypeError or ValueError: "must be ..., not ..."; whoever called puts the name in front.
        `given` is the text that the value was read from, if there is one.
        """
        told = repr(value if given is None else given)
        if value is None and self.none:
            return None
        if self.kind == "hook":
            if not callable(value):
                raise TypeError(f"must be callable, not {told}")
            return value
        if self.kind == "flag":
            if not isinstance(value, bool):
                raise TypeError(f"must be True or False, not {told}")
            return value
        if self.kind == "text":
            if not isinstance(value, str):
                raise TypeError(f"must be a str, not {told}")
            printable = value.isascii() and value.isprintable() and value == value.strip()
            if not printable or not self.low <= len(value) <= self.high:
                raise ValueError(
                    f"must be {self.low} to {self.high} printable ASCII {self.unit}, "
                    f"without outer spaces, not {told}"
                )
            return value
        if self.kind == "duration":
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise TypeError(f"must be a number of {self.unit}, not {told}")
        elif isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"must be a whole number of {self.unit}, not {told}")
        if not self.low <= value <= self.high:
            raise ValueError(f"must be {self.low} to {self.high} {self.unit}, not {told}")
        return float(value) if self.kind == "duration" else value

    def parse(self, text: str) -> Any:
        """Read a value as people write it on a command line or in the environment, and check it.

        Durations: `30`, `500ms`, `30s`, `5m`, `1h`. Sizes: `16384`, `16KiB`, `4MiB`, `1GiB`. Switches:
        1/true/yes/on and 0/false/no/off. ValueError: "must be ..., not ...".
        """
        if self.kind == "text":
            return self.check(text)
        if self.kind == "flag":
            if text.lower() not in _FLAGS:
                raise ValueError(f"must be 1, true, yes, on or 0, false, no, off, not {text!r}")
            return _FLAGS[text.lower()]
        if self.kind == "duration":
            if (match := _DURATION.fullmatch(text)) is None:
                raise ValueError(f"must be a duration such as 30, 500ms, 30s, 5m or 1h, not {text!r}")
            return self.check(float(match[1]) * _DURATIONS[match[2]], text)
        if self.kind == "size":
            if (match := _SIZE.fullmatch(text)) is None:
                raise ValueError(f"must be a size such as 16384, 16KiB, 4MiB or 1GiB, not {text!r}")
            return self.check(int(match[1]) * _SIZES[match[2]], text)
        if _COUNT.fullmatch(text) is None:
            raise ValueError(f"must be a whole number of {self.unit}, not {text!r}")
        return self.check(int(text), text)

    def show(self, value: object) -> str:
        """A value as `parse` reads it: `4096`, `5s`, `16KiB`, `on`; None in words."""
        if value is None:
            return self.none
        if isinstance(value, bool):
            return "on" if value else "off"
        if self.kind == "duration" and isinstance(value, int | float):
            if 0 < value < 1:
                return f"{value * 1000:g}ms"
            return f"{value / 3600:g}h" if value >= 3600 else f"{value:g}s"
        if self.kind == "size" and isinstance(value, int):
            name = next((n for n in ("GiB", "MiB", "KiB") if value and value % _SIZES[n] == 0), "B")
            return f"{value // _SIZES[name]}{name}"
        return str(value)

    def bounds(self) -> str:
        """The bounds as the README writes them: `2 to 4096`; "" for what has none."""
        if self.kind in ("flag", "hook"):
            return ""
        return f"{self.show(self.low)} to {self.show(self.high)}"


def option(name: str) -> str:
    """The command-line option of a field: `max_queue` -> `--max-queue`."""
    return "--" + name.replace("_", "-")


def variable(name: str) -> str:
    """The environment variable of a field: `max_queue` -> `FASTSERVE_MAX_QUEUE`."""
    return "FASTSERVE_" + name.upper()


def _setting(
    kind: Kind,
    default: Any,
    unit: str,
    group: str,
    low: int | float,
    high: int | float,
    *,
    meaning: str,
    client: str = "nothing",
    none: str = "",
) -> Any:
    """Declare one field of `Config`; the arguments are those of `Spec`."""
    spec = Spec(
        kind=kind,
        group=group,
        unit=unit,
        default=default,
        meaning=meaning,
        client=client,
        low=low,
        high=high,
        none=none,
    )
    return dataclasses.field(default=default, metadata={"spec": spec})


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """All limits of one server, valid and immutable.

    Durations are seconds (float), sizes are bytes (int); `SPECS` and the README's table give unit,
    default, bounds and meaning of each field. None means "chosen at start", see `resolved`.
    TypeError or ValueError, one line that names the field, its bounds, unit and the value given.
    """

    # fmt: off
    workers: int = _setting(
        "count", 64, "threads", "workers", 2, 4096,
        meaning="threads that run handlers, made at start; more than `reactors`",
        client="waits in the queue while all are busy",
    )
    max_workers: int | None = _setting(
        "count", None, "threads", "workers", 2, 4096,
        meaning="up to so many threads while all handlers block",
        client="waits in the queue while all are busy",
        none="as `workers`",
    )
    max_idle_worker_duration: float = _setting(
        "duration", 10.0, "seconds", "workers", 0.001, 86400,
        meaning="a thread beyond `workers` that was idle for so long ends",
    )
    reactors: int | None = _setting(
        "count", None, "reactors", "workers", 1, 1024,
        meaning="event loops; they run handlers in parallel only on free-threaded Python",
        none="1; on free-threaded Python as many as usable cores",
    )
    io_uring: bool = _setting(
        "flag", True, "", "workers", 0, 0,
        meaning="receive and send by batches, each one system call, where the kernel allows io_uring (Linux 5.18)",
    )
    on_worker_start: Callable[[], object] | None = _setting(  # noqa: RUF009 - it returns dataclasses.field()
        "hook", None, "", "workers", 0, 0,
        meaning="called without arguments in each new worker thread before its first request",
        none="none",
    )

    on_headers: Callable[[Any], bool | None] | None = _setting(  # noqa: RUF009 - it returns dataclasses.field()
        "hook", None, "", "replies", 0, 0,
        meaning="called with the ctx when the head of a request is there and none of its body was read",
        none="none",
    )
    error_handler: Callable[[Any, BadRequest], object] | None = _setting(  # noqa: RUF009 - as above
        "hook", None, "", "replies", 0, 0,
        meaning="called with a ctx and a BadRequest; words the reply to what the parser refuses",
        none="the reason phrase as text",
    )

    backlog: int = _setting(
        "count", 4096, "connections", "listening", 1, 65535,
        meaning="connections that the kernel completes ahead of accept; net.core.somaxconn caps it",
        client="a slow connect, because the kernel drops the handshake",
    )
    reuse_port: bool = _setting(
        "flag", False, "", "listening", 0, 0,
        meaning="share TCP ports with other processes that ask for it too; with several reactors the kernel lets "
                "those of the same user in even when this server does not ask",
    )
    trusted_proxies: str = _setting(
        "text", "", "characters", "listening", 0, 4096,
        meaning="peers that may say for whom they ask: addresses, networks and `unix`, separated by commas; "
                "`ctx.client_ip` believes them, and only they may connect to a bind with `?proxy`",
    )
    forwarded_field: str = _setting(
        "text", "X-Forwarded-For", "characters", "listening", 1, 20,
        meaning="the field in which they say so, which they must set or extend: `X-Forwarded-For` or `Forwarded`",
    )

    concurrency: int | None = _setting(
        "count", None, "connections", "overload", 1, 1_048_576,
        meaning="open connections of the whole server",
        client="503 with Retry-After and close",
        none="65536, or what RLIMIT_NOFILE leaves after `reject_slots`, 96, and 3 for each worker if that is less",
    )
    reject_slots: int | None = _setting(
        "count", None, "connections", "overload", 0, 65536,
        meaning="connections that are told at the same time that a limit of connections is reached",
        client="503 or 429 and close; beyond them close without a reply",
        none="a quarter of `concurrency`, 1 to 1024, or what RLIMIT_NOFILE leaves if that is less",
    )
    max_conns_per_ip: int = _setting(
        "count", 0, "connections", "overload", 0, 1_048_576,
        meaning="open connections of one IPv4 address or one IPv6 /64, over all reactors, for a bind with `?proxy` of "
                "that which the PROXY header tells; those of `trusted_proxies` are not counted; 0 is off",
        client="429 and close",
    )
    max_queue: int = _setting(
        "count", 1024, "requests", "overload", 1, 1_048_576,
        meaning="requests that wait for a worker; each reactor has an equal share, 1 at least",
        client="503 with Retry-After",
    )
    queue_timeout: float = _setting(
        "duration", 5.0, "seconds", "overload", 0.001, 86400,
        meaning="how long a complete request waits for a worker",
        client="503 with Retry-After",
    )

    max_memory: int = _setting(
        "size", 2**30, "bytes", "overload", 2**20, 2**46,
        meaning="of all buffers and bodies that are being received together; those that have begun finish",
        client="503 with Retry-After and close for a body beyond it",
    )

    header_timeout: float = _setting(
        "duration", 10.0, "seconds", "deadlines", 0.001, 86400,
        meaning="from the first byte of a request to the end of its head; from accept to the end of a PROXY header",
        client="408 and close; a reset without a header",
    )
    body_timeout: float = _setting(
        "duration", 60.0, "seconds", "deadlines", 0.001, 86400,
        meaning="from the end of the head to the end of the body",
        client="408 and close",
    )
    min_body_rate: int = _setting(
        "size", 240, "bytes/s", "deadlines", 0, 2**30,
        meaning="slowest body that is accepted, bytes a second after 5 s of grace; 0 is off",
        client="408 and close",
    )
    min_write_rate: int = _setting(
        "size", 240, "bytes/s", "deadlines", 0, 2**30,
        meaning="slowest reader of a reply that is accepted, bytes a second after 5 s of grace; 0 is off",
        client="the reply is cut off",
    )
    handler_timeout: float = _setting(
        "duration", 0.0, "seconds", "deadlines", 0, 86400,
        meaning="until a handler has returned or begun to stream; then its ctx expires; 0 is off",
        client="504 and close",
    )
    write_timeout: float = _setting(
        "duration", 30.0, "seconds", "deadlines", 0.001, 86400,
        meaning="how long a reply may make no progress",
        client="the reply is cut off",
    )
    idle_timeout: float = _setting(
        "duration", 75.0, "seconds", "deadlines", 0.001, 86400,
        meaning="how long a connection may wait for the first byte of a request",
        client="close without a reply",
    )
    shutdown_timeout: float = _setting(
        "duration", 30.0, "seconds", "deadlines", 0, 86400,
        meaning="how long requests may take to finish after a signal to stop",
        client="the connection is cut off",
    )

    read_buffer_size: int = _setting(
        "size", 16 * 1024, "bytes", "limits", 1024, 2**20,
        meaning="request line and fields together",
        client="431 and close",
    )
    max_target_size: int = _setting(
        "size", 8 * 1024, "bytes", "limits", 16, 2**20,
        meaning="request target (path and query)",
        client="414 and close",
    )
    max_header_fields: int = _setting(
        "count", 100, "fields", "limits", 1, 10_000,
        meaning="header fields of a request",
        client="431 and close",
    )
    max_request_body_size: int = _setting(
        "size", 4 * 2**20, "bytes", "limits", 0, 2**40,
        meaning="body of a request",
        client="413 and close",
    )
    refused_methods: str = _setting(
        "text", "CONNECT, TRACE", "characters", "limits", 0, METHODS_MAX,
        meaning="methods that no handler sees, separated by commas",
        client="405 with Allow and close",
    )
    stream_request_body: bool = _setting(
        "flag", False, "", "limits", 0, 0,
        meaning="call the handler when the head is there: it reads the body from `ctx.body_stream`",
    )
    max_requests_per_conn: int = _setting(
        "count", 0, "requests", "limits", 0, 2**31 - 1,
        meaning="requests on one connection; 0 is off",
        client="Connection: close on the last reply",
    )

    name: str = _setting(
        "text", "fastserve", "characters", "replies", 0, 200,
        meaning="value of the Server field; empty leaves it out",
        client="the Server field",
    )
    default_date: bool = _setting(
        "flag", True, "", "replies", 0, 0,
        meaning="send a Date field unless the handler sets one",
    )
    default_content_type: bool = _setting(
        "flag", True, "", "replies", 0, 0,
        meaning="send `text/plain; charset=utf-8` with a body unless the handler sets a type",
    )
    health_path: str = _setting(
        "text", "", "characters", "replies", 0, PATH_MAX,
        meaning="path that is answered without Python: 200 and how busy the server is, 503 while it stops; empty "
                "is off",
        client="application/json",
    )
    metrics_path: str = _setting(
        "text", "", "characters", "replies", 0, PATH_MAX,
        meaning="path that is answered without Python: all counters and times, for Prometheus; empty is off",
        client="text/plain",
    )
    access_log: str = _setting(
        "text", "", "characters", "replies", 0, 1024,
        meaning="file that a line for each reply is appended to, `-` for standard output; empty is off",
    )
    access_log_format: str = _setting(
        "text", "combined", "characters", "replies", 1, 10,
        meaning="`combined`, which is Apache's and behind it the phases in microseconds and an id, or `json`",
    )
    log_all_errors: bool = _setting(
        "flag", False, "", "replies", 0, 0,
        meaning="log each request that the parser refuses",
    )
    # fmt: on

    def __post_init__(self) -> None:
        for name, spec in SPECS.items():
            try:
                object.__setattr__(self, name, spec.check(getattr(self, name)))
            except (TypeError, ValueError) as error:
                raise type(error)(f"{name} {error}") from None
        if self.reactors is not None and self.workers <= self.reactors:
            least = self.reactors + 1
            raise ValueError(f"workers must be at least reactors + 1 = {least}, not {self.workers}")
        for name in ("health_path", "metrics_path"):
            path = getattr(self, name)
            if path and not _PATH.fullmatch(path):
                raise ValueError(f"{name} must be a path such as /health, not {path!r}")
        if self.health_path and self.health_path == self.metrics_path:
            raise ValueError(f"metrics_path must be another than health_path, not {self.metrics_path!r}")
        if self.access_log_format not in ("combined", "json"):
            raise ValueError(f"access_log_format must be combined or json, not {self.access_log_format!r}")
        for name, networks, field in (("trusted_proxies", self.trusted_proxies, FORWARDED_FIELDS[0]),
                                      ("forwarded_field", "", self.forwarded_field)):
            try:
                Trust(networks, field)
            except ValueError as error:
                raise ValueError(f"{name} {error}") from None
        methods = [name.strip() for name in self.refused_methods.split(",")] if self.refused_methods else []
        if not all(_TOKEN.fullmatch(name) for name in methods):
            raise ValueError(f"refused_methods must be methods separated by commas, not {self.refused_methods!r}")
        if self.max_workers is not None and self.max_workers < self.workers:
            raise ValueError(f"max_workers must be at least workers = {self.workers}, not {self.max_workers}")

    @classmethod
    def from_env(cls, environ: Mapping[str, str], **overrides: Any) -> Self:
        """The Config of `FASTSERVE_<FIELD>` in `environ`; `overrides` (fields, as values) win.

        What counts as set, and errors, as in `env_values`; otherwise as in `Config`.
        """
        return cls(**(env_values(environ) | overrides))

    def resolved(self) -> Self:
        """A copy with every None replaced that this machine and process decide; a hook stays None.

        ValueError if `concurrency` was given and needs more descriptors than the process may open.
        """
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        descriptors = sys.maxsize if soft == resource.RLIM_INFINITY else soft
        max_workers = self.workers if self.max_workers is None else self.max_workers
        theirs = min(WORKER_DESCRIPTORS * max_workers, max(0, descriptors - DESCRIPTORS_KEPT) // 4)
        kept = DESCRIPTORS_KEPT + theirs
        concurrency, reject_slots = self.concurrency, self.reject_slots
        if concurrency is None:
            left = descriptors - kept
            rejected = min(left // 5, REJECT_SLOTS_MAX) if reject_slots is None else reject_slots
            if reject_slots is not None and 0 < left <= rejected:
                raise ValueError(f"reject_slots must be below {left}, which RLIMIT_NOFILE = {descriptors} leaves, not "
                                 f"{rejected}")
            concurrency = max(1, min(CONCURRENCY_MAX, left - rejected))
        elif concurrency >= descriptors:
            raise ValueError(f"concurrency must be below RLIMIT_NOFILE = {descriptors}, not {concurrency}")
        if reject_slots is None:
            reject_slots = max(1, min(concurrency // 4, REJECT_SLOTS_MAX, descriptors - kept - concurrency))
        reactors = self.reactors
        if reactors is None:
            reactors = 1 if gil_enabled() else min(len(os.sched_getaffinity(0)), self.workers - 1)
        return dataclasses.replace(
            self,
            max_workers=max_workers,
            reactors=reactors,
            concurrency=concurrency,
            reject_slots=reject_slots,
        )


SPECS: Mapping[str, Spec] = {field.name: field.metadata["spec"] for field in dataclasses.fields(Config)}


def gil_enabled() -> bool:
    """Whether this process runs with the GIL now (before Python 3.13 always)."""
    return bool(getattr(sys, "_is_gil_enabled", lambda: True)())


def env_values(environ: Mapping[str, str]) -> dict[str, Any]:
    """The fields that `environ` sets, read but not yet checked against each other.

    An empty variable counts as not set, except FASTSERVE_NAME, whose empty value has a meaning. Other
    variables that begin with FASTSERVE_ are ignored: Kubernetes sets FASTSERVE_PORT and the like for a
    service of that name. ValueError, one line that names the variable.
    """
    values: dict[str, Any] = {}
    for name, spec in SPECS.items():
        text = environ.get(variable(name))
        if spec.kind == "hook" or text is None or (text == "" and spec.kind != "text"):
            continue
        try:
            values[name] = spec.parse(text)
        except ValueError as error:
            raise ValueError(f"{variable(name)} {error}") from None
    return values


def markdown_table() -> str:
    """The README's table of all fields, without a closing newline."""
    rows = [("Field", "Unit", "Default", "Bounds", "Meaning", "At the limit a client sees"), ("---",) * 6]
    for name, spec in SPECS.items():
        default = spec.show(spec.default)
        rows.append((f"`{name}`", spec.unit, default, spec.bounds(), spec.meaning, spec.client))
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


if __name__ == "__main__":
    print(markdown_table())
