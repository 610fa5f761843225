"""The handlers that the cases load, and a program that serves one of them: apps.py HANDLER OPTIONS PORT.

Knows fastserve's public names only. For every line on its standard input it prints the number of
allocations of fastserve's C code so far (null, if the build does not count them).
"""

import ctypes
import itertools
import json
import sys
import time

from rivals import shapes

from fastserve import Server, StaticFiles


def hello(ctx):
    if ctx.path == "/":
        ctx.content_type = "text/plain; charset=utf-8"
        ctx.write("Hello, World!\n")
    else:
        ctx.not_found()


_calls = itertools.count()


def one_percent_sleeps(ctx):
    if next(_calls) % 100 == 0:
        time.sleep(0.020)
    hello(ctx)


def all_sleep(ctx):
    time.sleep(0.010)
    hello(ctx)


def hog(ctx):
    """/hog computes for 50 ms of its thread's CPU time, in Python, ready to give the GIL away."""
    if ctx.path != "/hog":
        return hello(ctx)
    end = time.thread_time() + 0.050
    total = 0
    while time.thread_time() < end:
        for number in range(100):
            total += number
    ctx.write(str(total))


def computes(ctx):
    """The same work for every request, in Python: some 200 us."""
    total = 0
    for number in range(5000):
        total += number
    hello(ctx)


_sleep_with_the_gil = ctypes.PyDLL(None).usleep


def gil(ctx):
    """/gil keeps the GIL for 3 s in one C call."""
    if ctx.path != "/gil":
        return hello(ctx)
    _sleep_with_the_gil(3_000_000)
    ctx.write("done")


def text(ctx, body):
    ctx.content_type = shapes.TEXT
    ctx.write(body)


def query(ctx):
    args = ctx.query
    text(ctx, f"{args.get('name')} {args.get('page')} {ctx.headers.get('X-Trace', '-')}\n")


def head(ctx):
    text(ctx, shapes.lengths(ctx.headers.get))


def words(ctx):
    """What a small application reads, and 100 bytes back."""
    args = ctx.query
    if ctx.path and args["name"] and args["page"] and ctx.headers["X-Trace"] and ctx.cookies["session"]:
        text(ctx, HUNDRED)


def message(ctx):
    ctx.write_json(MESSAGE)


def document(ctx):
    ctx.content_type = shapes.JSON
    ctx.write(json.dumps(shapes.DOCUMENT))


def echo(ctx):
    ctx.content_type = shapes.BINARY
    ctx.set_body(ctx.body)


def megabyte(ctx):
    ctx.content_type = shapes.BINARY
    ctx.set_body(shapes.MEGABYTE)


def file(ctx):
    ctx.send_file(shapes.FILE, shapes.BINARY)


FILES = StaticFiles(shapes.FOLDER, prefix="/static/")

HUNDRED = b"x" * 100
MESSAGE = {"message": "Hello, World!"}

ROUTES = {
    "/": lambda ctx: text(ctx, shapes.HELLO),
    "/query": query,
    "/head": head,
    "/json": document,
    "/echo": echo,
    "/1m": megabyte,
    "/file": file,
    "/some": lambda ctx: text(ctx, shapes.sleep_some()),
    "/sleep": lambda ctx: text(ctx, shapes.sleep()),
    "/cpu": lambda ctx: text(ctx, shapes.compute()),
}


def every_shape(ctx):
    """What the rivals answer, in our way of each; what is no route is a file, or not there."""
    ROUTES.get(ctx.path, FILES)(ctx)


HANDLERS = {handler.__name__: handler
            for handler in (hello, one_percent_sleeps, all_sleep, hog, computes, gil, words, message, file)}
HANDLERS["shapes"] = every_shape


def main():
    handler, options, port = sys.argv[1:]
    options = {"metrics_path": "/metrics", **json.loads(options)}  # as one would who watches it: histograms are filled
    with Server(HANDLERS[handler], **options).start(f"127.0.0.1:{port}") as server:
        for _ in sys.stdin:
            print(json.dumps(server.stats().get("allocations")), flush=True)


if __name__ == "__main__":
    main()
