"""Starts one rival: serve.py KEY THREADS PORT.

Knows every rival's options: no logs, no limits on the requests of a connection, room for a thousand connections,
one process, one thread for sockets where that is a choice, and what its documentation recommends for speed.
THREADS is the size of the pool that runs handlers, for those that have one; 1 where nothing blocks.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

import shapes

HOST = "127.0.0.1"
CONNECTIONS = 4096
IDLE = 75       # seconds that a connection may rest

_PR_SET_PDEATHSIG = 1
_prctl = ctypes.CDLL(None).prctl    # found once: a process for each request pays for what it does first


def die_with_parent() -> None:
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def granian(port: int, threads: int, target: str, interface: str, **more: object) -> None:
    """With its own collecting of replies to pipelined requests, which it does not do by itself."""
    from granian.constants import HTTPModes, Interfaces, Loops, RuntimeModes
    from granian.http import HTTP1Settings
    from granian.server import Server

    Server(target, HOST, port, interface=Interfaces(interface), blocking_threads=threads, runtime_threads=1,
           runtime_mode=RuntimeModes.st, loop=Loops.uvloop, http=HTTPModes.http1, websockets=False,
           http1_settings=HTTP1Settings(pipeline_flush=True), backlog=CONNECTIONS, log_enabled=False,
           **more).serve()


def granian_wsgi(port: int, threads: int) -> None:
    granian(port, threads, "wsgi:application", "wsgi")


def granian_rsgi(port: int, threads: int) -> None:
    """One thread for Python beside the loop's is all that RSGI takes; what blocks goes to a pool of ours."""
    granian(port, 1, "rsgi:application", "rsgi")


def granian_static(port: int, threads: int) -> None:
    granian(port, 1, "rsgi:application", "rsgi", static_path_route=["/static"], static_path_mount=[shapes.FOLDER])


def freastal(port: int, threads: int) -> None:
    import freastal
    from wsgi import application

    freastal.serve(application, host=HOST, port=port, workers=1)


def fastpysgi(port: int, threads: int) -> None:
    """Without Nagle's delay, which holds back the second of two pipelined replies for 40 ms."""
    import fastpysgi
    from wsgi import application

    fastpysgi.server.backlog = CONNECTIONS
    fastpysgi.server.tcp_nodelay = 1
    fastpysgi.run(application, host=HOST, port=port, loglevel=fastpysgi.LL_DISABLED)


def fastwsgi(port: int, threads: int) -> None:
    """Its successor is fastpysgi: the same holds."""
    import fastwsgi
    from wsgi import application

    fastwsgi.server.backlog = CONNECTIONS
    fastwsgi.server.tcp_nodelay = 1
    fastwsgi.run(application, host=HOST, port=port, loglevel=fastwsgi.LL_DISABLED)


def weft(port: int, threads: int, **more: object) -> None:
    """Inline is its fast way; threads only for handlers that block."""
    from weft.config import Config
    from weft.server import run
    from wsgi import application

    run(Config(application, host=HOST, port=port, protocol="wsgi", wsgi_threads=threads if threads > 1 else 0,
               backlog=CONNECTIONS, keep_alive=IDLE, max_connections=CONNECTIONS, log_level="critical",
               **more))


def weft_static(port: int, threads: int) -> None:
    weft(port, threads, static_dirs=[f"/static={shapes.FOLDER}"])


def bjoern(port: int, threads: int) -> None:
    import bjoern
    from wsgi import application

    bjoern.run(application, HOST, port)


def gunicorn(port: int, threads: int) -> None:
    from gunicorn.app.base import BaseApplication
    from wsgi import application

    class Application(BaseApplication):
        def load_config(self) -> None:
            options = {"bind": f"{HOST}:{port}", "workers": 1, "worker_class": "gthread", "threads": threads,
                       "keepalive": IDLE, "worker_connections": CONNECTIONS, "backlog": CONNECTIONS,
                       "loglevel": "critical", "timeout": 0}    # the bench stops it for longer than its patience
            for name, value in options.items():
                self.cfg.set(name, value)

        def load(self):
            return application

    Application().run()


def waitress(port: int, threads: int) -> None:
    import waitress
    from wsgi import application

    waitress.serve(application, host=HOST, port=port, threads=threads, connection_limit=CONNECTIONS,
                   backlog=CONNECTIONS, channel_timeout=IDLE, asyncore_use_poll=True)


def cheroot(port: int, threads: int) -> None:
    from cheroot.wsgi import Server
    from wsgi import application

    server = Server((HOST, port), application, numthreads=threads, request_queue_size=CONNECTIONS, timeout=IDLE)
    server.keep_alive_conn_limit = CONNECTIONS
    server.start()


def uvicorn(port: int, threads: int) -> None:
    import uvicorn
    from asgi import application

    uvicorn.run(application, host=HOST, port=port, loop="uvloop", http="httptools", ws="none", lifespan="off",
                backlog=CONNECTIONS, timeout_keep_alive=IDLE, access_log=False, log_level="critical")


def run_aiohttp(application, port: int, loop) -> None:
    from aiohttp import web

    web.run_app(application, host=HOST, port=port, loop=loop, backlog=CONNECTIONS, keepalive_timeout=IDLE,
                access_log=None, print=None)


def aiohttp(port: int, threads: int) -> None:
    import uvloop
    from for_aiohttp import application

    run_aiohttp(application(), port, uvloop.new_event_loop())


def aiohttp_static(port: int, threads: int) -> None:
    """On asyncio's own loop, which has sendfile: uvloop's has none, and reading files in threads costs more."""
    import asyncio

    from for_aiohttp import files

    run_aiohttp(files(), port, asyncio.new_event_loop())


def socketify(port: int, threads: int) -> None:
    from for_socketify import application

    app = application()
    app.listen({"port": port, "host": HOST}, lambda config: None)
    app.run()


def robyn(port: int, threads: int, application: str = "application") -> None:
    """Plain functions run on its workers; it takes their number from the command line alone."""
    sys.argv[1:] = ["--workers", str(threads), "--log-level", "WARN", "--disable-openapi"]
    import for_robyn

    getattr(for_robyn, application)().start(host=HOST, port=port, keep_alive_timeout=IDLE, client_timeout=IDLE)


def robyn_static(port: int, threads: int) -> None:
    robyn(port, threads, "files")


def threading(port: int, threads: int) -> None:
    from stdlib import Handler, Threading

    Threading((HOST, port), Handler).serve_forever()


def threading_at_once(port: int, threads: int) -> None:
    from stdlib import AtOnce, Threading

    Threading((HOST, port), AtOnce).serve_forever()


def forking(port: int, threads: int) -> None:
    from stdlib import AtOnce, Forking

    Forking((HOST, port), AtOnce).serve_forever()


def threading_static(port: int, threads: int) -> None:
    from stdlib import Files, Threading

    Threading((HOST, port), Files).serve_forever()


STARTERS = {
    "granian-wsgi": granian_wsgi, "granian-rsgi": granian_rsgi, "freastal": freastal, "fastpysgi": fastpysgi,
    "fastwsgi": fastwsgi, "weft": weft, "bjoern": bjoern, "socketify": socketify, "robyn": robyn,
    "uvicorn": uvicorn, "gunicorn": gunicorn, "waitress": waitress, "cheroot": cheroot, "aiohttp": aiohttp,
    "threading": threading, "threading-at-once": threading_at_once, "forking": forking,
    "granian-static": granian_static, "weft-static": weft_static, "robyn-static": robyn_static,
    "aiohttp-static": aiohttp_static, "threading-static": threading_static,
}

# A child, forked or spawned (it imports this file again), must not outlive the bench.
os.register_at_fork(after_in_child=die_with_parent)
die_with_parent()

if __name__ == "__main__":
    key, threads, port = sys.argv[1:]
    os.environ["BENCH_THREADS"] = threads
    STARTERS[key](int(port), int(threads))
