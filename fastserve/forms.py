"""Multipart forms as Python sees them.

Knows: `multipart/form-data` (RFC 7578, RFC 2046 section 5.1) of which the whole body is in memory. The
parts are found by PyPI's `multipart`, in its strict mode; what stands in their heads is read here. Never
sees: a connection, a ctx. Invariant: a body is read whole or refused whole with ValueError, and nothing in
it is guessed: two readers that guess differently are how a filter in front is passed by.
"""

import importlib
import os
import re
from typing import Any, Final

from fastserve.args import Pairs
from fastserve.errors import MissingExtra

__all__ = ["File", "Files", "parse_multipart"]

PARTS_MAX: Final = 1000
"""Parts of one body: as many as Go's ReadForm and `Args` read; each costs some 20 us."""

PART_HEAD_MAX: Final = 8192
"""Characters in the head of one part: a name and a filename of 255 characters each, every one of them four
bytes or an escape, and a media type fit four times."""

PART_LINES_MAX: Final = 8
"""Fields in the head of one part: RFC 7578 knows three."""

PARAMETERS_MAX: Final = 8
"""Parameters of one field, empty ones counted: there is use for two."""

_BOUNDARY = re.compile(r"[0-9A-Za-z'()+_,./:=? -]{0,69}[0-9A-Za-z'()+_,./:=?-]")
"""RFC 2046, section 5.1.1. The 70 characters also bound what a search for it can cost."""

_PARAMETER = re.compile(
    r"[ \t]*;[ \t]*"
    r"(?:(?P<name>[!#$%&'*+.^_`|~0-9A-Za-z-]+)="
    r'(?:"(?P<quoted>(?:[^"\\]++|\\"?)*)"|(?P<bare>[^\s;"]+)))?'
)
"""One parameter of a field, or none behind a `;`. Bare values may hold more than a token does, because
boundaries and filenames are sent so. A quote behind a backslash ends the value only if no other does."""

_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_PLAIN_ENCODINGS = frozenset(("7bit", "8bit", "binary"))


class File:
    """A file of a multipart form. It belongs to the call whose form it came with: what shall stay is taken
    with `read()` or `save()`.

    `filename` and `content_type` are the client's words and prove nothing. A filename may be empty (a
    browser sends that when no file was chosen), may be `../../etc/passwd`, `C:\\x` or a line break: never
    make a path of it.
    """

    __slots__ = ("_content", "_content_type", "_filename")

    def __init__(self, filename: str, content_type: str, content: bytes) -> None:
        self._filename = filename
        self._content_type = content_type
        self._content = content

    @property
    def filename(self) -> str:
        """The name as sent, `%22`, `%0D` and `%0A` decoded as browsers encode them; untrusted."""
        return self._filename

    @property
    def content_type(self) -> str:
        """The media type as sent, parameters included; `application/octet-stream` if none was; untrusted."""
        return self._content_type

    @property
    def size(self) -> int:
        """The length of the content in bytes."""
        return len(self._content)

    def read(self) -> bytes:
        """The whole content, each time."""
        return self._content

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the content to `path`; a file that is there is replaced. OSError as `open` raises it."""
        with open(path, "wb") as out:
            out.write(self._content)

    def __repr__(self) -> str:
        return f"File(filename={self.filename!r}, content_type={self.content_type!r}, size={self.size})"


class Files(Pairs[File]):
    """An ordered multi-map from the name of a field to its files, read-only."""

    __slots__ = ()


def parse_multipart(content_type: str, body: bytes) -> tuple[list[tuple[str, str]], Files]:
    """The fields and the files of a body with that Content-Type.

    A part with a filename, be it empty, is a file; any other is a field, read as UTF-8, in which bytes that
    are none become U+FFFD. ValueError, one line, for a body that is not well formed or passes a bound;
    MissingExtra without the library.
    """
    library = _library()
    boundary = _boundary(content_type)
    _check_ends(body, boundary)
    parser = library.PushMultipartParser(
        boundary,
        content_length=len(body),
        max_header_size=PART_HEAD_MAX,
        max_header_count=PART_LINES_MAX,
        max_segment_count=PARTS_MAX,
        header_charset="utf8",
        strict=True,
    )
    fields: list[tuple[str, str]] = []
    files: list[tuple[str, File]] = []
    head: list[tuple[str, str]] = []
    content: list[bytes] = []
    try:
        with parser:
            # A part is its head, its content in any number of pieces, and None.
            for event in parser.parse(body):
                if isinstance(event, bytes):
                    content.append(event)
                elif event is not None:
                    head, content = event.headerlist, []
                else:
                    name, filename, kind = _read_head(head)
                    whole = b"".join(content)
                    if filename is None:
                        fields.append((name, whole.decode("utf-8", "replace")))
                    else:
                        files.append((name, File(filename, kind, whole)))
    except library.MultipartError as error:
        raise _malformed(str(error.args[0])) from error
    return fields, Files(files)


def _library() -> Any:
    # python-multipart can be imported by the same name, with a warning: hence the look for what is used.
    try:
        library = importlib.import_module("multipart")
        if hasattr(library, "PushMultipartParser"):
            return library
    except (ImportError, Warning):
        pass
    raise MissingExtra("multipart/form-data needs a library: pip install 'fastserve-http[forms]'")


def _malformed(why: str) -> ValueError:
    return ValueError(f"malformed multipart/form-data: {why}")


def _boundary(content_type: str) -> bytes:
    kind, parameters = _read_value(content_type)
    if kind != "multipart/form-data":
        raise ValueError(f"not multipart/form-data: {content_type[:80]!r}")
    boundary = parameters.get("boundary", "")
    if not _BOUNDARY.fullmatch(boundary):
        raise _malformed(f"no boundary: {boundary[:80]!r}" if boundary else "no boundary")
    return boundary.encode("ascii")


def _check_ends(body: bytes, boundary: bytes) -> None:
    """Before the first boundary an empty line may stand, behind the last one white space. RFC 2046 has
    room for text there that everybody skips, and so for a second form; no client sends any."""
    opening = b"--" + boundary
    closing = opening + b"--"
    start = 2 if body.startswith(b"\r\n") else 0
    if not body.startswith(opening, start):
        raise _malformed("it does not begin with its boundary")
    if not body.startswith(closing, start):
        start = body.find(b"\r\n" + closing, start) + 2
        if start < 2:
            raise _malformed("it does not end with its boundary")
    if body[start + len(closing):].strip(b" \t\r\n"):
        raise _malformed("bytes behind its end")


def _read_head(head: list[tuple[str, str]]) -> tuple[str, str | None, str]:
    """Name, filename or None, and media type of a part; names of fields come in title case."""
    if sum(len(name) + len(value) for name, value in head) > PART_HEAD_MAX:
        raise _malformed("the head of a part is too long")
    fields = dict(head)
    if len(fields) < len(head):
        raise _malformed("a part has a field twice")
    for value in fields.values():
        if _CONTROL.search(value):
            raise _malformed(f"a control character in the head of a part: {value[:80]!r}")
    encoding = fields.get("Content-Transfer-Encoding", "binary")
    if encoding.strip(" \t").lower() not in _PLAIN_ENCODINGS:
        raise _malformed(f"an encoding that RFC 7578 forbids: {encoding[:80]!r}")
    disposition = fields.get("Content-Disposition", "")
    kind, parameters = _read_value(disposition)
    if kind != "form-data" or "name" not in parameters:
        raise _malformed(f"a part that is no field of a form: {disposition[:80]!r}")
    if "filename*" in parameters and "filename" not in parameters:
        raise _malformed("filename* without filename, which RFC 7578 forbids")
    content_type = fields.get("Content-Type", "").strip(" \t")
    return parameters["name"], parameters.get("filename"), content_type or "application/octet-stream"


def _read_value(text: str) -> tuple[str, dict[str, str]]:
    """`kind; name=value; name="value"`: the kind and the names in lower case."""
    text = text.strip(" \t")
    kind, _, _ = text.partition(";")
    at = len(kind)
    found: dict[str, str] = {}
    left = PARAMETERS_MAX
    while at < len(text):
        match = _PARAMETER.match(text, at)
        left -= 1
        if not match or left < 0:
            raise _malformed(f"not a list of parameters: {text[:80]!r}")
        at = match.end()
        name, quoted, bare = match["name"], match["quoted"], match["bare"]
        if name is None:
            continue
        if name.lower() in found:
            raise _malformed(f"{name[:80]} stands twice: {text[:80]!r}")
        found[name.lower()] = bare if quoted is None else _unquote(quoted)
    return kind.rstrip(" \t").lower(), found


def _unquote(text: str) -> str:
    """Browsers send a quote as `%22` and a backslash as it is; where there is a `\\"`, another client
    wrote, and escapes backslashes too."""
    if '\\"' in text:
        # No NUL can be in the text: control characters have been refused.
        return text.replace("\\\\", "\0").replace('\\"', '"').replace("\0", "\\")
    return text.replace("%22", '"').replace("%0D", "\r").replace("%0A", "\n")
