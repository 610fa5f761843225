"""A JSON API: routes with parameters, bodies that are checked before they are believed, errors that are JSON too.

    python examples/json_api.py                     # on 127.0.0.1:8000; as arguments other addresses

    curl -i http://127.0.0.1:8000/notes -d '{"title": "milk", "done": false}'
    curl -i http://127.0.0.1:8000/notes/1
    curl -i http://127.0.0.1:8000/notes?limit=ten
"""

import itertools
import logging
import sys
import threading
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, TypedDict

from fastserve import BadRequest, RequestCtx, Router, Server


class Note(TypedDict):
    title: str
    done: bool


router = Router()
notes: dict[str, Note] = {}
names = map(str, itertools.count(1))
lock = threading.Lock()  # of both: handlers run in several threads at once


def checked(document: Any) -> Note:
    """A note as a client sends it. BadRequest: it is none."""
    match document:
        case {"title": str(title), "done": bool(done), **others} if 0 < len(title) <= 200 and not others:
            return Note(title=title, done=done)
        case _:
            raise BadRequest('a note is {"title": 1 to 200 characters, "done": true or false}')


@router.get("/notes")
def listed(ctx: RequestCtx) -> None:
    limit = ctx.query.int("limit", 100)  # BadRequest: it is no integer
    if not 1 <= limit <= 100:
        raise BadRequest("limit must lie in 1..100")
    with lock:
        newest = list(notes.items())[-limit:]
    ctx.write_json(dict(newest))


@router.post("/notes")
def create(ctx: RequestCtx) -> None:
    note = checked(ctx.json())  # BadRequest: the body is no JSON
    with lock:
        name = next(names)
        notes[name] = note
    ctx.status = 201
    ctx.set_header("Location", f"/notes/{name}")
    ctx.write_json(note)


@router.get("/notes/{name}")
def show(ctx: RequestCtx) -> None:
    note = notes.get(ctx.params["name"])
    if note is None:
        raise BadRequest("there is no such note", 404)
    ctx.write_json(note)


def say(ctx: RequestCtx, detail: str) -> None:
    """That of an error, as a document (RFC 9457)."""
    ctx.write_json({"status": ctx.status, "title": HTTPStatus(ctx.status).phrase, "detail": detail})
    ctx.content_type = "application/problem+json"


def problem(ctx: RequestCtx, error: BadRequest) -> None:
    """The reply to what a client did wrong."""
    ctx.error("", error.status)
    say(ctx, str(error))


def with_problems(handler: Callable[[RequestCtx], None]) -> Callable[[RequestCtx], None]:
    def guarded(ctx: RequestCtx) -> None:
        try:
            handler(ctx)
            if ctx.status in (404, 405):  # the router's, with its Allow
                say(ctx, f"{ctx.method} {ctx.path}")
        except BadRequest as error:
            problem(ctx, error)
        except Exception:
            logging.exception("%s %s", ctx.method, ctx.path)
            ctx.error("", 500)
            say(ctx, "it is not your fault")

    return guarded


if __name__ == "__main__":
    # `error_handler` words what never reaches a handler: a request that is malformed, too large or too late.
    server = Server(with_problems(router), error_handler=problem, max_request_body_size=64 * 1024)
    server.serve(*sys.argv[1:], ready=lambda server: print(f"http://{server.addresses[0]}", flush=True))
