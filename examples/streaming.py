"""Replies that are sent while they are made: messages for browsers (server-sent events), a table that is nowhere whole.

    python examples/streaming.py                    # on 127.0.0.1:8000; as arguments other addresses

    curl -N http://127.0.0.1:8000/events            # or a browser, in which http://127.0.0.1:8000/ shows them
    curl -i http://127.0.0.1:8000/say -d 'hello'
    curl 'http://127.0.0.1:8000/squares.csv?rows=1000000' | tail -1
"""

import json
import sys
import threading
from collections import deque
from collections.abc import Iterator

from fastserve import BadRequest, ReplyStream, RequestCtx, Router, Server

LOOK = 0.1  # seconds between two looks at `ctx.done`: a stop of the server wakes nobody who waits for a message
HEARTBEAT = 15.0  # seconds of silence after which a comment finds out whether the client is still there

PAGE = """<!doctype html><title>Messages</title><body><script>
new EventSource("/events").onmessage = (event) => document.body.append(JSON.parse(event.data), "; ");
</script>"""

router = Router()
messages: deque[tuple[int, str]] = deque(maxlen=100)  # the last ones, numbered from 1
changed = threading.Condition()


def newest() -> int:
    return messages[-1][0] if messages else 0


def behind(number: int) -> list[tuple[int, str]]:
    """The messages behind that one; where there is none, it waits for LOOK seconds."""
    with changed:
        changed.wait_for(lambda: newest() > number, LOOK)
        return [message for message in messages if message[0] > number]


@router.get("/")
def page(ctx: RequestCtx) -> None:
    ctx.content_type = "text/html; charset=utf-8"
    ctx.write(PAGE)


@router.post("/say")
def say(ctx: RequestCtx) -> None:
    with changed:
        messages.append((newest() + 1, ctx.body.decode("utf-8", "replace")))
        changed.notify_all()
    ctx.status = 204


@router.get("/events")
def events(ctx: RequestCtx) -> None:
    done = ctx.done
    known = ctx.headers.get("last-event-id", "")  # of a browser whose connection was lost
    with changed:
        start = int(known) if known in {str(number) for number, _ in messages} else newest()

    def lines() -> Iterator[str]:
        last, silence = start, 0.0
        yield ": welcome\n\n"
        while not done.is_set():
            news = behind(last)
            for last, text in news:
                yield f"id: {last}\ndata: {json.dumps(text)}\n\n"
            silence = 0.0 if news else silence + LOOK
            if silence > HEARTBEAT:
                silence = 0.0
                yield ":\n\n"

    ctx.content_type = "text/event-stream"
    ctx.set_header("Cache-Control", "no-store")
    ctx.stream(lines())  # what is yielded is sent at once; a client that is gone ends it at a `yield`


@router.get("/squares.csv")
def squares(ctx: RequestCtx) -> None:
    rows = ctx.query.int("rows", 1000)
    if not 0 <= rows <= 10_000_000:
        raise BadRequest("rows must lie in 0..10000000")

    def write(out: ReplyStream) -> None:
        for number in range(rows):
            out.write(f"{number},{number**2}\r\n")  # is gathered, and sent in larger pieces

    ctx.content_type = "text/csv; charset=utf-8"
    ctx.stream(write)


if __name__ == "__main__":
    # Each listener keeps a worker for as long as it listens: up to `max_workers` of them.
    server = Server(router, max_workers=1000, max_request_body_size=4096)
    server.serve(*sys.argv[1:], ready=lambda server: print(f"http://{server.addresses[0]}", flush=True))
