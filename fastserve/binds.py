"""Where to listen: the text of a bind address, read into its parts.

Knows: the grammar `host:port`, `[v6]:port`, `unix:/path`, `fd:N`, each with what is said of it behind a `?`.
Never sees: a socket, a resolver or the file system. Invariant: `parse_bind(str(bind)) == bind` for every Bind
that `parse_bind` returned.
"""

import ipaddress
import os
import re
from dataclasses import dataclass
from typing import Literal

__all__ = ["DEFAULT_BIND", "FORMS", "Bind", "parse_bind"]

DEFAULT_BIND = "127.0.0.1:8000"
DEFAULT_MODE = 0o660
UNIX_PATH_MAX = 107  # bytes; sun_path of Linux without its closing NUL
FD_MAX = 2**31 - 1
FORMS = "host:port, [v6 address]:port, unix:/path, unix:/path?mode=660 or fd:N"
PROXY = "proxy"

_NUMBER = re.compile(r"[0-9]{1,10}")
_MODE = re.compile(r"mode=(0?[0-7]{3})")
_UNIX_ONLY = "after '?' only mode=NNN may stand, in octal, such as mode=660, and proxy, with '&' between them"
_IPV6 = re.compile(r"\[([0-9A-Fa-f:.]+(?:%[A-Za-z0-9_.-]+)?)\]")
_HOST_NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_.])?")
_LAST_LABEL_NUMERIC = re.compile(r"(.*\.)?[0-9]+\.?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Bind:
    """One address to listen on; only the fields of its `kind` have a meaning.

    tcp: `host` (a name, an IPv4 address, or an IPv6 address without brackets) and `port` (0 lets the
    kernel choose). A name stands for all its addresses: `localhost` means both families.
    unix: `path` (absolute) and `mode` (permission bits of the socket file, default 0o660).
    fd: `fd`, the number of an inherited descriptor that already listens.
    Of each: `proxy`, whether connections come from proxies that begin them with a PROXY header.
    """

    kind: Literal["tcp", "unix", "fd"]
    host: str = ""
    port: int = 0
    path: str = ""
    mode: int = DEFAULT_MODE
    fd: int = -1
    proxy: bool = False

    def __str__(self) -> str:
        """The shortest text that `parse_bind` reads back into this Bind."""
        said = [PROXY] if self.proxy else []
        if self.kind == "unix":
            where = f"unix:{self.path}"
            if self.mode != DEFAULT_MODE:
                said.insert(0, f"mode={self.mode:03o}")
        elif self.kind == "fd":
            where = f"fd:{self.fd}"
        else:
            where = f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"
        return "?".join([where, "&".join(said)] if said else [where])


def parse_bind(text: str) -> Bind:
    """Read one bind address; ValueError with one line that names the text and what is wrong with it.

    A port without a host is refused: whether a server is reachable from outside should be written down
    (`127.0.0.1:8000` or `0.0.0.0:8000`).
    """
    try:
        where, asked, said = text.partition("?")
        options = said.split("&") if asked else []
        if text.startswith("unix:"):
            return _parse_unix(where.removeprefix("unix:"), options)
        if options not in ([], [PROXY]):
            raise ValueError("after '?' only proxy may stand")
        if text.startswith("fd:"):
            number = _number(where.removeprefix("fd:"), "descriptor", FD_MAX)
            return Bind(kind="fd", fd=number, proxy=bool(options))
        return _parse_tcp(where, bool(options))
    except ValueError as error:
        raise ValueError(f"cannot bind to {text!r}: {error}") from None


def _parse_unix(path: str, options: list[str]) -> Bind:
    proxy = PROXY in options
    if proxy:
        options.remove(PROXY)
    mode = _MODE.fullmatch(options[0]) if options else None
    if len(options) > 1 or (options and mode is None):
        raise ValueError(_UNIX_ONLY)
    if not path.startswith("/"):
        raise ValueError("the path of a unix socket must be absolute")
    if "\0" in path:
        raise ValueError("the path holds a NUL")
    if path.endswith("/"):
        raise ValueError("the path names a directory")
    if len(os.fsencode(path)) > UNIX_PATH_MAX:
        raise ValueError(f"the path of a unix socket may have {UNIX_PATH_MAX} bytes")
    return Bind(kind="unix", path=path, mode=DEFAULT_MODE if mode is None else int(mode[1], 8), proxy=proxy)


def _parse_tcp(text: str, proxy: bool) -> Bind:
    host, colon, port = text.rpartition(":")
    if "/" in text:
        raise ValueError(f"neither a URL nor a path; write {FORMS}")
    if not colon or "]" in port:
        raise ValueError(f"the port is missing; write {FORMS}")
    number = _number(port, "port", 65535)
    if not host:
        raise ValueError(
            f"the host is missing; write 127.0.0.1:{number} for this machine only, 0.0.0.0:{number} for everyone"
        )
    if bracketed := _IPV6.fullmatch(host):
        try:
            return Bind(kind="tcp", host=str(ipaddress.IPv6Address(bracketed[1])), port=number, proxy=proxy)
        except ValueError:
            raise ValueError("between the brackets stands no IPv6 address") from None
    if ":" in host:
        raise ValueError("an IPv6 address stands in brackets, such as [::1]:8000")
    if _LAST_LABEL_NUMERIC.fullmatch(host):
        try:
            return Bind(kind="tcp", host=str(ipaddress.IPv4Address(host)), port=number, proxy=proxy)
        except ValueError:
            raise ValueError("the host is neither an IPv4 address nor a name") from None
    if not _HOST_NAME.fullmatch(host):
        raise ValueError("the host is neither an address nor a name")
    return Bind(kind="tcp", host=host, port=number, proxy=proxy)


def _number(text: str, what: str, high: int) -> int:
    if not _NUMBER.fullmatch(text) or int(text) > high:
        raise ValueError(f"the {what} must be a number from 0 to {high}, not {text!r}")
    return int(text)
