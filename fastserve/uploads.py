"""The files of a form, and where their content lies.

Knows: content in memory, and content in one temporary file that has no name. Never sees: how a form is written, a
connection, a ctx. Invariant: a file belongs to one call: when that is over nothing is left of it, neither a descriptor
nor a byte on a disk, and every use of it raises ContextExpired; a use that is under way in another thread then has a
descriptor of its own, so that it never reads another file's bytes.
"""

import errno
import io
import os
from collections.abc import Generator, Iterable
from contextlib import contextmanager, suppress
from threading import Lock
from typing import IO, Any, Final, NoReturn

from fastserve.args import Pairs
from fastserve.errors import ContextExpired

__all__ = ["File", "Files", "Spool", "Stored", "end_files"]

STEP: Final = 1 << 30
"""Bytes that one system call is asked for: no system moves more than 2 GiB less a page."""

READ_AHEAD: Final = 65536
"""Bytes that a stream over a file has in memory."""


class Spool:
    """The temporary file of a form, in the directory that `tempfile` finds (TMPDIR). It has no name: the system takes
    it back when it is closed, and when the process dies. All files of a form share one, so that no form opens more
    than one descriptor."""

    __slots__ = ("_file", "_lock", "size")

    def __init__(self) -> None:
        # Here, because it brings a dozen modules along and most programs never need it.
        import tempfile

        self._file: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `close`
        self._lock = Lock()
        self.size = 0

    def write(self, data: bytes | bytearray) -> None:
        """Appends. OSError: the disk is full, or worse."""
        self._file.write(data)
        self.size += len(data)

    def flush(self) -> None:
        """Before anything is read."""
        self._file.flush()

    @contextmanager
    def descriptor(self) -> Generator[int, None, None]:
        """One of the reader's own: nobody waits for it, and nobody closes it under its hands."""
        with self._lock:
            if self._file.closed:
                raise _expired()
            fd = os.dup(self._file.fileno())
        try:
            yield fd
        finally:
            os.close(fd)

    def close(self) -> None:
        """The end of the file. What it could not be given before, on a disk that is full, it is not given now."""
        with self._lock, suppress(OSError):
            self._file.close()


class Stored:
    """A part of a spool: what was written to it since this was made."""

    __slots__ = ("_at", "_size", "_spool")

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._at = spool.size
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def write(self, data: bytes | bytearray) -> None:
        """Appends, while the spool's last part is this one."""
        self._spool.write(data)
        self._size += len(data)

    def read(self, at: int, size: int) -> bytes:
        """`size` bytes from `at` on, or what there is of them."""
        parts: list[bytes] = []
        end = min(at + size, self._size)
        with self._spool.descriptor() as fd:
            while at < end:
                parts.append(os.pread(fd, min(end - at, STEP), self._at + at))
                at += _some(len(parts[-1]))
        return b"".join(parts)

    def copy_to(self, path: str | os.PathLike[str]) -> None:
        """Everything, to another file, within the kernel. What was in that goes only when this can be read."""
        at = 0
        with self._spool.descriptor() as fd, open(path, "wb") as out:
            while at < self._size:
                at += _some(os.sendfile(out.fileno(), fd, self._at + at, min(self._size - at, STEP)))


def _some(moved: int) -> int:
    if not moved:
        raise OSError(errno.EIO, "a temporary file is shorter than it was")
    return moved


def _expired() -> ContextExpired:
    return ContextExpired("this File belonged to a call that has returned")


class File:
    """A file of a multipart form. It belongs to the call whose form it came with, and raises ContextExpired afterwards:
    what shall stay is taken with `read()` or `save()`.

    `filename` and `content_type` are the client's words and prove nothing. A filename may be empty (a
    browser sends that when no file was chosen), may be `../../etc/passwd`, `C:\\x` or a line break: never
    make a path of it.
    """

    __slots__ = ("_content", "_content_type", "_filename")

    def __init__(self, filename: str, content_type: str, content: bytes | Stored) -> None:
        self._filename = filename
        self._content_type = content_type
        self._content: bytes | Stored | None = content

    def _held(self) -> bytes | Stored:
        content = self._content
        if content is None:
            raise _expired()
        return content

    def _read_at(self, at: int, size: int) -> bytes:
        content = self._held()
        return content[at:at + size] if isinstance(content, bytes) else content.read(at, size)

    @property
    def filename(self) -> str:
        """The name as sent, `%22`, `%0D` and `%0A` decoded as browsers encode them; untrusted."""
        self._held()
        return self._filename

    @property
    def content_type(self) -> str:
        """The media type as sent, parameters included; `application/octet-stream` if none was; untrusted."""
        self._held()
        return self._content_type

    @property
    def size(self) -> int:
        """The length of the content in bytes."""
        return len(self._held())

    def read(self) -> bytes:
        """The whole content, each time."""
        return self._read_at(0, self.size)

    def open(self) -> io.BufferedReader:
        """The content as a stream of bytes that can be read and sought in, from its beginning, with 64 KiB of it in
        memory. Each call gives another; beyond those 64 KiB it expires as the file does."""
        self._held()
        return io.BufferedReader(_Opened(self), READ_AHEAD)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the content to `path`; a file that is there is replaced. OSError as `open` and writing raise it: on a
        disk that is full some of it is there. What lies in a temporary file is copied by sendfile(2)."""
        content = self._held()
        if isinstance(content, Stored):
            content.copy_to(path)
            return
        with open(path, "wb") as out:
            out.write(content)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a File belongs to its call")

    def __repr__(self) -> str:
        content = self._content
        if content is None:
            return "File(expired)"
        return f"File(filename={self._filename!r}, content_type={self._content_type!r}, size={len(content)})"


class _Opened(io.RawIOBase):
    """A place in a file, and nothing that would have to be closed."""

    def __init__(self, file: File) -> None:
        self._file = file
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with memoryview(buffer).cast("B") as view:
            data = self._file._read_at(self._at, len(view))  # pyright: ignore[reportPrivateUsage]
            view[:len(data)] = data
        self._at += len(data)
        return len(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        bases = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._file.size}
        if whence not in bases or bases[whence] + offset < 0:
            raise ValueError(f"no place in a file: {offset} from {whence}")
        self._at = bases[whence] + offset
        return self._at


class Files(Pairs[File]):
    """An ordered multi-map from the name of a field to its files, read-only."""

    __slots__ = ("_spool",)

    def __init__(self, pairs: Iterable[tuple[str, File]] = (), spool: Spool | None = None) -> None:
        super().__init__(pairs)
        self._spool = spool


def end_files(files: Files) -> None:
    """The call is over."""
    for _, file in files.items():
        file._content = None  # pyright: ignore[reportPrivateUsage]
    if (spool := files._spool) is not None:  # pyright: ignore[reportPrivateUsage]
        spool.close()
