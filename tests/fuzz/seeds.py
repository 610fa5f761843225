"""What the fuzzers start from: `seeds.py PLACE` writes PLACE/head/*, PLACE/body/*, PLACE/message/*,
PLACE/proxy/*.

Knows: the wire cases of tests/cases. Never sees: what becomes of them.
Invariant: a seed is named by its content, so that writing again changes nothing.
"""

import hashlib
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

CASES = Path(__file__).resolve().parent.parent / "cases"
HEADS = ("request_line", "fields", "framing", "targets")
CHUNKED = b"POST /in HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
NEXT = b"GET /next HTTP/1.1\r\nHost: a\r\n\r\n"


def wire(text: str | list) -> bytes:
    """As conftest.py reads it: a string is its bytes, a list is its parts."""
    parts = text if isinstance(text, list) else [text]
    return b"".join(
        part.encode("latin-1") if isinstance(part, str) else part["text"].encode("latin-1") * part["times"]
        for part in parts
    )


def inputs(stem: str) -> list[bytes]:
    with open(CASES / f"{stem}.toml", "rb") as file:
        return [wire(case["bytes"]) for case in tomllib.load(file)["case"]]


def bare(head: bytes) -> bool:
    return head.endswith(b"\r\n\r\n") and b"Length" not in head and b"Encoding" not in head


def seeds() -> Iterator[tuple[str, bytes]]:
    heads = [data for stem in HEADS for data in inputs(stem)]
    bodies = inputs("chunked")
    for data in heads:
        yield "head", data
        yield "message", data + NEXT
    for data in bodies:
        yield "body", data
        yield "message", CHUNKED + data + NEXT
    for data in inputs("proxy"):
        yield "proxy", data
    for size in (0, 1, 5, 300):
        fields = b"Host: a\r\nContent-Length: %d\r\n\r\n" % size
        yield "message", (b"PUT / HTTP/1.1\r\n" + fields + b"x" * size) * 2 + NEXT
    pipelined = [data for data in heads if bare(data)]
    for at in range(0, len(pipelined), 8):
        yield "message", b"".join(pipelined[at:at + 8])


def main(place: Path) -> None:
    for target, data in seeds():
        (place / target).mkdir(parents=True, exist_ok=True)
        (place / target / hashlib.sha1(data).hexdigest()).write_bytes(data)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
