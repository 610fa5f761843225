"""Uploads: a form of a browser that fits into memory, and files of any size that are written as they arrive.

    pip install 'fastserve-http[forms]'             # for the form
    python examples/upload.py                       # on 127.0.0.1:8000; as arguments other addresses

    curl -i -F file=@photo.jpg http://127.0.0.1:8000/
    curl -i -T film.mkv http://127.0.0.1:8000/files/film.mkv

What comes is kept in the directory `uploads`, which is made where the program is started.
"""

import os
import re
import sys
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from fastserve import BadRequest, RequestCtx, Router, Server

UPLOADS = Path("uploads")
FORM_MAX = 8 * 2**20
FILE_MAX = 10 * 2**30
HOUR = 3600.0

PAGE = """<!doctype html><title>Uploads</title>
<form method="post" enctype="multipart/form-data"><input type="file" name="file" multiple><button>Send</button></form>
"""

router = Router()


def safe_name(name: str) -> str:
    """A name for a file of ours, made of the client's, which may be `../../etc/passwd`, `.bashrc` or nothing."""
    last = re.split(r"[/\\]", name)[-1]
    safe = re.sub(r"[^A-Za-z0-9._-]+", "_", last).lstrip(".")[:100]
    if not safe:
        raise BadRequest("a file has a name")
    return safe


@contextmanager
def kept(name: str) -> Generator[IO[bytes]]:
    """A file that is there under its name when it is whole, and not at all if it never becomes so."""
    descriptor, path = tempfile.mkstemp(dir=UPLOADS, prefix=".")
    try:
        with open(descriptor, "wb") as file:
            yield file
        os.replace(path, UPLOADS / name)
    except BaseException:
        os.unlink(path)
        raise


def on_headers(ctx: RequestCtx) -> bool:
    """Is called before a byte of the body is read. False: a handler is to answer."""
    if ctx.method == "PUT":
        ctx.stream_body = True
        ctx.max_body_size = FILE_MAX
    return False


@router.get("/")
def page(ctx: RequestCtx) -> None:
    ctx.content_type = "text/html; charset=utf-8"
    ctx.write(PAGE)


@router.post("/")
def form(ctx: RequestCtx) -> None:
    files = ctx.files.getall("file")  # BadRequest: a form that is malformed
    for name, file in [(safe_name(file.filename), file) for file in files]:
        with kept(name) as out:
            out.write(file.read())
    ctx.redirect("/", 303)


@router.put("/files/{name}")
def put(ctx: RequestCtx) -> None:
    with kept(safe_name(ctx.params["name"])) as out:
        for piece in ctx.body_stream:  # 64 KiB at most; BadRequest or ClientGone: the rest of it will not come
            out.write(piece)
    ctx.status = 201


if __name__ == "__main__":
    UPLOADS.mkdir(exist_ok=True)
    # All the time that one body may let us wait. Who sends next to nothing is cut off much earlier, by min_body_rate.
    server = Server(router, on_headers=on_headers, max_request_body_size=FORM_MAX, body_timeout=HOUR)
    server.serve(*sys.argv[1:], ready=lambda server: print(f"http://{server.addresses[0]}", flush=True))
