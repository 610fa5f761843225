"""Multipart forms as Python sees them.

Knows: `multipart/form-data` (RFC 7578, RFC 2046 section 5.1), whole or in pieces. Where its parts begin and end is
looked for here, and they are read by PyPI's `multipart`, in its strict mode, which is given no part of a head; what
stands in the heads is read here. Never sees: a connection, a ctx. Invariant: a body is read whole or refused whole with
ValueError, with the same outcome and the same words whatever pieces it comes in, and nothing in it is guessed: two
readers that guess differently are how a filter in front is passed by. What a form in pieces holds in memory is bounded.
"""

import importlib
import re
from collections.abc import Iterable
from typing import Any, Final

from fastserve.errors import BadRequest, MissingExtra
from fastserve.uploads import File, Files, Spool, Stored

__all__ = ["File", "Files", "parse_multipart", "read_fields", "read_multipart"]

FIELDS_MAX: Final = 1 << 20
"""Of a form in pieces all that becomes text and stays in memory, together: characters of names, filenames and media
types, bytes of values. It is 1,000 parts with 1 KiB each; as str they take four times that at most."""

FILES_IN_MEMORY: Final = 1 << 20
"""Bytes that all files of a form in pieces have in memory together; what is beyond lies in a temporary file. Together,
because 1,000 parts with a bound of their own would not be bounded: so 64 workers hold 64 MiB."""

PARTS_MAX: Final = 1000
"""Parts of one body: as many as Go's ReadForm and `Args` read; each costs some 20 us."""

PART_HEAD_MAX: Final = 8192
"""Bytes in the head of one part, ends of lines included: a name and a filename of 255 characters each, every one of
them four bytes or an escape, and a media type fit three times."""

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

_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_FIELDS = re.compile(rb"(?:[!#$%&'*+.^_`|~0-9A-Za-z-]++:[^\r]*+(?:\r\n|\Z))*+")
"""The head of a part: lines that begin with a token and a colon. The library takes white space off a name, that of
Unicode too, and whoever stands in front may not."""
_PLAIN_ENCODINGS = frozenset(("7bit", "8bit", "binary"))
_WHITE = b" \t\r\n"
# What stands where a body has been read to.
_BEGIN: Final = 0
_BOUNDARY_NEXT: Final = 1       # and behind it the head of a part, or the end
_CONTENT: Final = 2
_END: Final = 3                 # nothing but white space

_NO_BEGIN = "it does not begin with its boundary"
_BEHIND = "bytes behind its end"


def parse_multipart(content_type: str, body: bytes) -> tuple[list[tuple[str, str]], Files]:
    """The fields and the files of a body with that Content-Type, which is in memory and stays there.

    A part with a filename, be it empty, is a file; any other is a field, read as UTF-8, in which bytes that
    are none become U+FFFD. ValueError, one line, for a body that is not well formed or passes a bound;
    MissingExtra without the library.
    """
    return read_multipart(content_type, (body,), len(body), len(body))


def read_multipart(content_type: str, pieces: Iterable[bytes], fields_max: int = FIELDS_MAX,
                   files_in_memory: int = FILES_IN_MEMORY) -> tuple[list[tuple[str, str]], Files]:
    """As `parse_multipart`, of a body in pieces. BadRequest, 413: more than `fields_max`; OSError: a temporary file
    cannot be made or written. The files are the caller's, to be given to `end_files`."""
    library = _library()
    form = _Form(library, _boundary(content_type), fields_max, files_in_memory)
    try:
        for piece in pieces:
            form.feed(piece)
        return form.end()
    except BaseException as error:
        form.drop()
        if isinstance(error, library.MultipartError):
            raise _malformed(str(error.args[0])) from error
        raise


def read_fields(pieces: Iterable[bytes]) -> bytes:
    """An urlencoded body in pieces, whole. BadRequest, 413: more than FIELDS_MAX."""
    whole = bytearray()
    for piece in pieces:
        whole += piece
        if len(whole) > FIELDS_MAX:
            raise _too_large(FIELDS_MAX)
    return bytes(whole)


class _Form:
    """What has come of a form so far."""

    def __init__(self, library: Any, boundary: bytes, fields_max: int, files_in_memory: int) -> None:
        self._parser = library.PushMultipartParser(
            boundary,
            max_header_size=PART_HEAD_MAX,
            max_header_count=PART_LINES_MAX,
            max_segment_count=PARTS_MAX,
            header_charset="utf8",
            strict=True,
        )
        self._fields_max = fields_max
        self._files_in_memory = files_in_memory
        self._delimiter = b"\r\n--" + boundary
        self._next = _BEGIN
        self._boundary_size = 0                 # as it stands in the body, where a boundary is next
        self._held = b""                        # has come, and was not given to the parser
        self._parts = 0
        self._fields: list[tuple[str, str]] = []
        self._files: list[tuple[str, File]] = []
        self._text = 0                          # of fields_max
        self._in_memory = 0                     # of files_in_memory
        self._spool: Spool | None = None
        # The part that is being read:
        self._name = self._kind = ""
        self._filename: str | None = None
        self._content: bytes | bytearray = b""
        self._stored: Stored | None = None      # where its content lies instead

    def feed(self, piece: bytes) -> None:
        """More of the body. Raises what the parser raises, too."""
        if self._next == _END:
            if piece.strip(_WHITE):
                raise _malformed(_BEHIND)
            return
        data = self._held + piece
        until, fault = self._frame(data)
        self._held = data[until:]
        # Before what is wrong behind it is told: so it is always the first fault that is told.
        if until:
            # A part is its head, its content in any number of pieces, and None.
            for event in self._parser.parse(data[:until]):
                if isinstance(event, bytes):
                    self._add(event)
                elif event is not None:
                    self._name, self._filename, self._kind = _read_head(event.headerlist)
                    self._content, self._stored = b"", None
                    self._keep_text(len(self._name) + len(self._filename or "") + len(self._kind))
                elif self._filename is None:
                    self._fields.append((self._name, self._content.decode("utf-8", "replace")))
                else:
                    content = bytes(self._content) if self._stored is None else self._stored
                    self._files.append((self._name, File(self._filename, self._kind, content)))
        if fault:
            raise _malformed(fault)

    def _frame(self, data: bytes) -> tuple[int, str]:
        """How far the parser may read: to a boundary whose head is not whole, to what may become a boundary; and what
        is wrong behind that."""
        delimiter = self._delimiter
        at = 0
        if self._next == _BEGIN:
            # An empty line may stand before the first boundary. RFC 2046 has room for text there that everybody skips,
            # and so for a second form; no client sends any.
            start = 2 if data.startswith(b"\r\n") else 0
            self._boundary_size = start + len(delimiter) - 2
            if not data.startswith(delimiter[2:], start):
                return 0, _NO_BEGIN if len(data) >= self._boundary_size else ""
            self._next = _BOUNDARY_NEXT
        line = self._boundary_size
        while True:
            if self._next == _CONTENT:
                found = data.find(delimiter, at)
                if found < 0:
                    found = data.rfind(b"\r", max(at, len(data) - len(delimiter) + 1))
                    return found if found >= 0 and delimiter.startswith(data[found:]) else len(data), ""
                at = found
                line = at + len(delimiter)
                self._next, self._boundary_size = _BOUNDARY_NEXT, len(delimiter)
            end = data[line:line + 2]
            if end == b"--":
                self._next = _END
                return (line + 2, _BEHIND) if data[line + 2:].strip(_WHITE) else (len(data), "")
            if end != b"\r\n":
                return at, "bytes behind a boundary" if len(end) == 2 else ""
            if self._parts == PARTS_MAX:
                return at, f"more than {PARTS_MAX} parts"
            content = data.find(b"\r\n\r\n", line, line + PART_HEAD_MAX + 4) + 4
            if content < 4:
                return at, "the head of a part is too long" if len(data) >= line + PART_HEAD_MAX + 4 else ""
            # In a head, or with the empty line behind it, some take it for the end of that part.
            if data.find(delimiter, line, content - 2 + len(delimiter)) >= 0:
                return at, "its boundary in the head of a part"
            if len(data) < content - 2 + len(delimiter):
                return at, ""
            head = data[line + 2:content - 4]
            if _CONTROL.search(head.replace(b"\r\n", b"")):
                return at, f"a control character in the head of a part: {head[:80]!r}"
            if not _FIELDS.fullmatch(head):
                return at, f"a line that is no field in the head of a part: {head[:80]!r}"
            self._parts += 1
            at, self._next = content, _CONTENT

    def _keep_text(self, size: int) -> None:
        self._text += size
        if self._text > self._fields_max:
            raise _too_large(self._fields_max)

    def _add(self, data: bytes) -> None:
        if self._filename is None:
            self._keep_text(len(data))
        elif self._stored is not None or self._in_memory + len(data) > self._files_in_memory:
            self._store(data)
            return
        else:
            self._in_memory += len(data)
        if not self._content:
            self._content = data
            return
        if isinstance(self._content, bytes):
            self._content = bytearray(self._content)
        self._content += data

    def _store(self, data: bytes) -> None:
        if self._stored is None:
            if self._spool is None:
                self._spool = Spool()
            self._stored = Stored(self._spool)
            self._stored.write(self._content)
            self._in_memory -= len(self._content)
            self._content = b""
        self._stored.write(data)

    def end(self) -> tuple[list[tuple[str, str]], Files]:
        """The whole body has come."""
        if self._next != _END:
            raise _malformed(_NO_BEGIN if self._next == _BEGIN else "it does not end with its boundary")
        self._parser.close()
        if self._spool is not None:
            self._spool.flush()
        return self._fields, Files(self._files, self._spool)

    def drop(self) -> None:
        """The body is refused."""
        if self._spool is not None:
            self._spool.close()


def _library() -> Any:
    # python-multipart can be imported by the same name, with a warning: hence the look for what is used.
    try:
        # Not sys.modules, where it stands before it is whole: this waits for another thread that is importing it.
        library = importlib.import_module("multipart")
        if hasattr(library, "PushMultipartParser"):
            return library
    except (ImportError, Warning):
        pass
    raise MissingExtra("multipart/form-data needs a library: pip install 'fastserve-http[forms]'")


def _malformed(why: str) -> ValueError:
    return ValueError(f"malformed multipart/form-data: {why}")


def _too_large(fields_max: int) -> BadRequest:
    return BadRequest(f"the fields of this form are larger than {fields_max} bytes together", 413)


def _boundary(content_type: str) -> bytes:
    kind, parameters = _read_value(content_type)
    if kind != "multipart/form-data":
        raise ValueError(f"not multipart/form-data: {content_type[:80]!r}")
    boundary = parameters.get("boundary", "")
    if not _BOUNDARY.fullmatch(boundary):
        raise _malformed(f"no boundary: {boundary[:80]!r}" if boundary else "no boundary")
    return boundary.encode("ascii")


def _read_head(head: list[tuple[str, str]]) -> tuple[str, str | None, str]:
    """Name, filename or None, and media type of a part; names of fields come in title case."""
    fields = dict(head)
    if len(fields) < len(head):
        raise _malformed("a part has a field twice")
    encoding = fields.get("Content-Transfer-Encoding")
    if encoding is not None and encoding.strip(" \t").lower() not in _PLAIN_ENCODINGS:
        raise _malformed(f"an encoding that RFC 7578 forbids: {encoding[:80]!r}")
    disposition = fields.get("Content-Disposition", "")
    kind, parameters = _read_value(disposition)
    if kind != "form-data" or "name" not in parameters:
        raise _malformed(f"a part that is no field of a form: {disposition[:80]!r}")
    # RFC 2231 forms are read by some. One client (.NET) sends filename* beside filename, and for that alone it is left
    # out.
    extended = {name for name in parameters if "*" in name} - ({"filename*"} if "filename" in parameters else set())
    if extended:
        raise _malformed(f"{min(extended)[:80]} in the head of a part, which RFC 7578 forbids")
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
        name, quoted, bare = match.groups()
        if name is None:
            continue
        key = name.lower()
        if key in found:
            raise _malformed(f"{name[:80]} stands twice: {text[:80]!r}")
        found[key] = bare if quoted is None else _unquote(quoted)
    return kind.rstrip(" \t").lower(), found


def _unquote(text: str) -> str:
    """Browsers send a quote as `%22` and a backslash as it is; where there is a `\\"`, another client
    wrote, and escapes backslashes too."""
    if '\\"' in text:
        # No NUL can be in the text: control characters have been refused.
        return text.replace("\\\\", "\0").replace('\\"', '"').replace("\0", "\\")
    if "%" in text:
        return text.replace("%22", '"').replace("%0D", "\r").replace("%0A", "\n")
    return text
