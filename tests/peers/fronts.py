"""nginx and HAProxy in front of a server: their configuration, their processes, what they say that they forwarded.

Knows: how either is configured, started, stopped, and how its log is read. Never sees: what a test sends.
Invariant: a front is given its listening socket, so it accepts from the moment it is started and its port is
nobody else's; when `stop` returns, its processes are gone and its log is complete.
"""

import contextlib
import grp
import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.live.conftest import PATIENCE

NGINX = """
daemon off;
user {user} {group};
worker_processes 1;
pid {place}/pid;
error_log {place}/error.log notice;
events {{ worker_connections 256; }}
http {{
    log_format told escape=json
        '{{"port": "$remote_port", "method": "$request_method", "target": "$request_uri", "to": "$upstream_addr", '
        '"server": "$upstream_http_server", "number": "$upstream_http_x_number"}}';
    access_log {place}/access.log told;
    client_body_temp_path {place}/client_body;
    proxy_temp_path {place}/proxy;
    fastcgi_temp_path {place}/fastcgi;
    uwsgi_temp_path {place}/uwsgi;
    scgi_temp_path {place}/scgi;
    # How large a body may be is left to the server.
    client_max_body_size 0;
    # Small, so that bodies are kept in memory and in files.
    client_body_buffer_size 8k;
    keepalive_requests 1000000;
    # A client may end its side before it has read the answer.
    proxy_ignore_client_abort on;
    # A request that is sent twice would be two for the server and one in the log.
    proxy_next_upstream off;
    upstream fastserve {{
        server {upstream};
        keepalive 16;
    }}
    server {{
        listen {address};
        location / {{
            proxy_pass http://fastserve;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header Host $http_host;
            proxy_request_buffering {buffering};
        }}
        {more}
    }}
}}
"""

HAPROXY = """
global
    maxconn 256
    nbthread 1
    log stdout len 16384 format raw local0

defaults
    mode http
    log global
    timeout connect {seconds}s
    timeout client {seconds}s
    timeout server {seconds}s
    retries 0
    http-reuse always

frontend front
    bind fd@{descriptor}
    {bind}
    log-format "%cp %s %[capture.res.hdr(0)] %[capture.res.hdr(1)] %HM %HU"
    capture response header Server len 20
    capture response header X-Number len 20
    default_backend back
    {more}

backend back
    server fastserve {upstream}
"""


@dataclass(frozen=True)
class Line:
    """What a front logged of one request: the client's port, method and path as it read them ("" if it could not),
    whether it chose to ask the server, whether the server answered, and the X-Number of the answer, if it had one."""

    port: int
    method: str
    path: str
    forwarded: bool
    answered: bool
    number: int | None


def path_of(target: str) -> str:
    """Of a target in origin or absolute form."""
    return "/" + target.split("/", 3)[3] if "://" in target else target


class Front:
    """A running proxy. `address` is where it listens."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.address = "{}:{}".format(*self.listener.getsockname())
        self.output = place / "output"
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def descriptor(self) -> int:
        return self.listener.fileno()

    def run(self, *command: str, stop: signal.Signals, **environment: str) -> None:
        """`stop`: what asks this program to finish what it does and leave."""
        self.asks_to_leave = stop
        # A sanitizer that was loaded into this process is not meant for others.
        kept = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
        with open(self.output, "wb") as output, self.listener:
            self.process = subprocess.Popen(command, pass_fds=[self.descriptor], env=kept | environment, stdout=output,
                                            stderr=subprocess.STDOUT, start_new_session=True)

    def stop(self) -> None:
        """All clients have closed their connections; the front follows."""
        if self.process is None:
            return
        process, self.process = self.process, None
        process.send_signal(self.asks_to_leave)
        try:
            status = process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(PATIENCE)
            pytest.fail(f"the front did not leave when it was asked to\n{self.output.read_text()[-2000:]}")
        assert status == 0, f"the front ended with {status}\n{self.output.read_text()[-2000:]}"

    def lines(self) -> list[Line]:
        raise NotImplementedError


class Nginx(Front):
    def __init__(self, place: Path, upstream: str, buffering: bool = True, lenient: bool = False) -> None:
        program = shutil.which("nginx", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")
        if program is None:
            pytest.skip("nginx is not installed")
        super().__init__(place)
        config = place / "nginx.conf"
        config.write_text(NGINX.format(
            place=place, upstream=upstream, address=self.address, buffering="on" if buffering else "off",
            user=pwd.getpwuid(os.geteuid()).pw_name, group=grp.getgrgid(os.getegid()).gr_name,
            more="ignore_invalid_headers off; underscores_in_headers on;" if lenient else ""))
        # By this variable a new nginx takes over the sockets of an old one.
        self.run(program, "-e", str(place / "error.log"), "-p", str(place), "-c", str(config),
                 stop=signal.SIGQUIT, NGINX=f"{self.descriptor};")

    def lines(self) -> list[Line]:
        found = []
        for text in (self.place / "access.log").read_text("latin-1").splitlines():
            told = json.loads(text)
            found.append(Line(int(told["port"]), told["method"], path_of(told["target"]), told["to"] != "",
                              told["server"] == "fastserve", int(told["number"]) if told["number"] else None))
        return found


class Haproxy(Front):
    """`path`: a unix socket that it listens at, too."""

    def __init__(self, place: Path, upstream: str, lenient: bool = False, path: Path | None = None) -> None:
        program = shutil.which("haproxy", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")
        if program is None:
            pytest.skip("haproxy is not installed")
        super().__init__(place)
        config = place / "haproxy.cfg"
        config.write_text(HAPROXY.format(
            descriptor=self.descriptor, upstream=upstream, seconds=int(10 * PATIENCE),
            more="option accept-invalid-http-request" if lenient else "",
            bind=f"bind unix@{path} mode 666" if path is not None else ""))
        self.run(program, "-db", "-f", str(config), stop=signal.SIGUSR1)

    def lines(self) -> list[Line]:
        found = []
        for text in self.output.read_text("latin-1").splitlines():
            if not text[:1].isdigit():
                continue                                # notices of the program itself
            port, server, by, number, method, target = text.split(" ", 5)
            read = method != "<BADREQ>"
            found.append(Line(int(port), method if read else "", path_of(target) if read else "",
                              server != "<NOSRV>", by == "fastserve", None if number == "-" else int(number)))
        return found


KINDS = {
    "nginx": lambda place, upstream: Nginx(place, upstream),
    "nginx unbuffered": lambda place, upstream: Nginx(place, upstream, buffering=False),
    "nginx lenient": lambda place, upstream: Nginx(place, upstream, buffering=False, lenient=True),
    "haproxy": lambda place, upstream: Haproxy(place, upstream),
    "haproxy lenient": lambda place, upstream: Haproxy(place, upstream, lenient=True),
}
"""Lenient: what can be switched off of the front's own strictness is off, so that more comes through to the server."""

OTHER_KINDS = {
    "haproxy at a path": lambda place, upstream: Haproxy(place, upstream, path=place / "front"),
}
"""Which read nothing in another way."""
