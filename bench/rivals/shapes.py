"""What every contender answers: the requests, the bodies, and the work of a handler that is slow.

Knows the shapes; nothing of any server. Used by the applications here, by ../apps.py and by ../contenders.py.
"""

from __future__ import annotations

import itertools
import json
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

TEXT = "text/plain; charset=utf-8"
JSON = "application/json"
BINARY = "application/octet-stream"

HELLO = b"Hello, World!\n"
MEGABYTE = b"x" * 1_048_576
FOLDER = Path(__file__).resolve().parent.parent / "build" / "static"
FILE = FOLDER / "64k.bin"
FILE_SIZE = 65_536

DOCUMENT = {
    "id": 4711,
    "active": True,
    "score": 98.25,
    "tags": ["warm", "worker", "pool"],
    "items": [{"number": number, "name": f"item {number}", "price": number * 1.5} for number in range(1, 13)],
    "note": "",
}
DOCUMENT["note"] = "." * (1024 - len(json.dumps(DOCUMENT)))

STATIC = "/static/64k.bin"      # below FOLDER; of those servers alone that serve files by themselves
PATHS = ("/", "/query", "/head", "/json", "/echo", "/1m", "/file", "/some", "/sleep", "/cpu", STATIC)

_calls = itertools.count()


def make_file() -> None:
    """The file that /file and STATIC send; its bytes differ, so that a part in the wrong place shows."""
    if not FILE.exists() or FILE.read_bytes() != file_body():
        FOLDER.mkdir(parents=True, exist_ok=True)
        FILE.write_bytes(file_body())


def file_body() -> bytes:
    return bytes(number % 251 for number in range(FILE_SIZE))


def lengths(get: Callable[[str, str], str]) -> bytes:
    """Of three fields of a head, by whatever reads one."""
    return b"%d %d %d\n" % (len(get("User-Agent", "")), len(get("Accept-Language", "")), len(get("Cookie", "")))


def sleep_some() -> bytes:
    """One call in a hundred, of the whole process, sleeps 20 ms."""
    if next(_calls) % 100 == 0:
        time.sleep(0.020)
    return HELLO


def sleep() -> bytes:
    time.sleep(0.010)
    return HELLO


def compute() -> bytes:
    """Some 200 us of Python."""
    total = 0
    for number in range(5000):
        total += number
    return HELLO


def pool() -> ThreadPoolExecutor:
    """Where the users of an event loop put what blocks; serve.py says how large it is."""
    return ThreadPoolExecutor(int(os.environ["BENCH_THREADS"]))
