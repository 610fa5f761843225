"""Files of forms: in memory and in the temporary file of their form, while their call lasts and behind it.

Knows: `read_multipart` as the maker of files, /proc for what is open. Never sees: a socket, a ctx. Invariant: each test
leaves as many descriptors as it found.
"""

import copy
import io
import os
import pickle
import resource
import sys
import tempfile
import threading
import tracemalloc
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import pytest

from fastserve.errors import ContextExpired
from fastserve.forms import FILES_IN_MEMORY, read_multipart
from fastserve.uploads import READ_AHEAD, File, Files, Spool, Stored, end_files

MIB = 1 << 20
TYPE = "multipart/form-data; boundary=B"
CONTENT = bytes(range(256)) * 1000


def part(content: bytes, name: str = "f") -> bytes:
    head = f'Content-Disposition: form-data; name="{name}"; filename="x"\r\nContent-Type: text/x\r\n\r\n'
    return b"--B\r\n" + head.encode() + content + b"\r\n"


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where temporary files are made in this test; nothing is left there, and nothing ever has a name."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    yield tmp_path / "temporary"
    assert not spools()


def spools() -> list[int]:
    """Descriptors of temporary files."""
    place = tempfile.gettempdir()
    assert os.listdir(place) == []
    found = []
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):         # that of the list itself
            if os.readlink(f"/proc/self/fd/{name}").startswith(place):
                found.append(int(name))
    return found


@pytest.fixture(params=["memory", "temporary file"])
def files(request: pytest.FixtureRequest) -> Iterator[Files]:
    """Three, the second of which is empty."""
    sent = part(CONTENT) + part(b"", "empty") + part(CONTENT[::-1], "last") + b"--B--"
    in_memory = MIB if request.param == "memory" else 100
    _, found = read_multipart(TYPE, [sent[at:at + 1000] for at in range(0, len(sent), 1000)], MIB, in_memory)
    assert len(spools()) == (request.param != "memory")
    yield found
    end_files(found)


# While the call lasts


def test_what_a_file_says(files: Files, tmp_path: Path) -> None:
    for name, content in (("f", CONTENT), ("empty", b""), ("last", CONTENT[::-1])):
        file = files[name]
        assert (file.filename, file.content_type, file.size) == ("x", "text/x", len(content))
        assert file.read() == file.read() == content
        assert repr(file) == f"File(filename='x', content_type='text/x', size={len(content)})"
        place = tmp_path / "name of my own"
        place.write_bytes(b"longer" * 100_000)
        file.save(place)
        assert place.read_bytes() == content
        file.save(str(place) + "2")
        assert Path(str(place) + "2").read_bytes() == content
        with pytest.raises(OSError, match="No such file"):
            file.save(tmp_path / "missing" / "x")


def test_a_file_as_a_stream(files: Files) -> None:
    for name, content in (("f", CONTENT), ("empty", b""), ("last", CONTENT[::-1])):
        with files[name].open() as stream:
            assert stream.read(3) == content[:3]
            assert stream.read() == content[3:]
            assert stream.read() == b""
            assert stream.seek(0) == 0
            assert b"".join(iter(lambda: stream.read(READ_AHEAD - 1), b"")) == content
            assert stream.seek(0, os.SEEK_END) == stream.tell() == len(content)
            assert stream.read() == b""
            stream.seek(len(content) + 10)
            assert stream.read() == b""
            with pytest.raises(ValueError):
                stream.seek(-1)
            with pytest.raises(ValueError):
                stream.raw.seek(0, 7)
            with pytest.raises(io.UnsupportedOperation):
                stream.write(b"")
    first, second = files["f"].open(), files["f"].open()
    first.seek(100)
    assert (first.read(4), second.read(4)) == (CONTENT[100:104], CONTENT[:4])
    first.seek(-5, os.SEEK_CUR)
    assert first.readline() == CONTENT[99:256 + 11]     # to the line feed, byte 10


def test_an_archive_is_read_where_it_lies() -> None:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr("one", b"1" * 100_000)
        archive.writestr("two", os.urandom(100_000))
    for in_memory in (0, MIB):
        _, files = read_multipart(TYPE, [part(made.getvalue()), b"--B--"], MIB, in_memory)
        with zipfile.ZipFile(files["f"].open()) as archive:
            assert archive.testzip() is None
            assert archive.read("one") == b"1" * 100_000
        end_files(files)


def test_files_share_memory_and_one_temporary_file() -> None:
    """Small ones before a large one stay in memory, and small ones behind it as well: it has given back its share."""
    large = os.urandom(2 * MIB)
    contents = [b"a" * 1000, large, b"b" * 1000, large[::-1], *[b"c" * 1100] * 990]
    sent = b"".join(map(part, contents)) + b"--B--"
    _, files = read_multipart(TYPE, [sent[at:at + 65536] for at in range(0, len(sent), 65536)])
    assert [file.read() for file in files.values()] == contents
    kept = [isinstance(file._content, bytes) for file in files.values()]
    room = (FILES_IN_MEMORY - 2000) // 1100
    assert kept == [True, False, True, False] + [True] * room + [False] * (990 - room)
    [spool] = spools()
    assert os.stat(spool).st_size == 4 * MIB + 1100 * (990 - room)
    assert not os.get_inheritable(spool)
    end_files(files)


def test_memory_is_bounded(tmp_path: Path) -> None:
    def sent() -> Iterator[bytes]:
        yield part(b"")[:-2]
        for _ in range(320):
            yield bytes(65536)
        yield b"\r\n--B--"

    tracemalloc.start()
    try:
        _, files = read_multipart(TYPE, sent())
        assert files["f"].size == 20 * MIB
        files["f"].save(tmp_path / "saved")
        with files["f"].open() as stream:
            while stream.read(100_000):
                pass
        assert tracemalloc.get_traced_memory()[1] < 3 * MIB
    finally:
        tracemalloc.stop()
    end_files(files)
    assert (tmp_path / "saved").stat().st_size == 20 * MIB


def test_content_in_tiny_pieces_takes_no_more_memory() -> None:
    for piece in (part(b""), part(b"").replace(b'; filename="x"', b"")):
        read_multipart(TYPE, [piece, b"--B--"])
        tracemalloc.start()
        try:
            read_multipart(TYPE, chain([piece[:-2]], repeat(b"xy", 5000), [b"\r\n--B--"]))
            assert tracemalloc.get_traced_memory()[1] < 60_000     # of 10,000 bytes; 5,000 objects take 200,000
        finally:
            tracemalloc.stop()


# Behind it


def uses(file: File, place: Path) -> dict[str, Callable[[], Any]]:
    """Every way to use a file that is public."""
    found: dict[str, Callable[[], Any]] = {"save": lambda: file.save(place)}
    for name in dir(File):
        if not name.startswith("_") and name not in found:
            found[name] = lambda name=name: (  # type: ignore[misc]
                value() if callable(value := getattr(file, name)) else value)
    assert found.keys() == {"filename", "content_type", "size", "read", "open", "save"}
    return found


def test_a_file_is_not_copied(files: Files) -> None:
    """A copy would not expire."""
    for way in (copy.copy, copy.deepcopy, pickle.dumps):
        for file in files.values():
            with pytest.raises(TypeError, match="belongs to its call"):
                way(file)


def test_a_target_stays_where_there_is_nothing_to_save(tmp_path: Path) -> None:
    """The call has ended between two looks; or there is no descriptor for a reader."""
    place = tmp_path / "x"
    place.write_bytes(b"before")
    spool = Spool()
    stored = Stored(spool)
    stored.write(b"behind")
    spool.flush()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            stored.copy_to(place)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    spool.close()
    with pytest.raises(ContextExpired):
        stored.copy_to(place)
    assert place.read_bytes() == b"before"


def test_every_use_expires(files: Files, tmp_path: Path) -> None:
    place = tmp_path / "x"
    place.write_bytes(b"before")
    for file in files.values():
        for use in uses(file, tmp_path / "y").values():
            use()
    stream = files["f"].open()
    assert stream.read(10) == CONTENT[:10]
    taken = files["f"].read()
    end_files(files)
    for file in files.values():
        for name, use in uses(file, place).items():
            with pytest.raises(ContextExpired, match="File belonged to a call that has returned"):
                pytest.fail(f"{name} gave {use()!r}")
        assert repr(file) == "File(expired)"
    with pytest.raises(ContextExpired):
        stream.read()
    with pytest.raises(ContextExpired):
        stream.seek(0, os.SEEK_END)
    assert place.read_bytes() == b"before"
    assert taken == CONTENT
    assert repr(files) == "Files([('f', File(expired)), ('empty', File(expired)), ('last', File(expired))])"
    end_files(files)


def test_a_reader_never_reads_another_file() -> None:
    """Threads read while the call ends and its descriptor becomes another's."""
    strange: list[object] = []
    current: list[tuple[File, bytes]] = []
    done = threading.Event()

    def spy() -> None:
        while not done.is_set():
            for file, content in list(current):
                try:
                    found = (file.read(), file.open().read())
                except ContextExpired:
                    continue
                except BaseException as error:
                    strange.append(error)
                    return
                if found != (content, content):
                    strange.append((found, content))

    spies = [threading.Thread(target=spy) for _ in range(2)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)         # they meet more often, and wait less for each other
    for thread in spies:
        thread.start()
    try:
        for number in range(300):
            content = b"%d" % number * 100
            _, files = read_multipart(TYPE, [part(content), b"--B--"], MIB, 0)
            current[:] = [(files["f"], content)]
            files["f"].read()
            end_files(files)
    finally:
        done.set()
        for thread in spies:
            thread.join()
        sys.setswitchinterval(interval)
    assert not strange


# A form that is not read to its end


class Broken(Exception):
    pass


def breaks_off() -> Iterator[bytes]:
    yield part(bytes(2 * MIB))
    assert spools()
    raise Broken


@pytest.mark.parametrize(("pieces", "error"), [
    (breaks_off(), Broken),
    ([part(bytes(2 * MIB)), b"--B\r\nnonsense\r\n\r\n--B--"], ValueError),
    ([part(bytes(2 * MIB))], ValueError),
    ([part(bytes(2 * MIB)), b"--B--", b"more"], ValueError),
], ids=["source", "malformed", "cut", "behind"])
def test_what_was_written_goes(pieces: Iterable[bytes], error: type[Exception]) -> None:
    """At once, though somebody keeps the error, and with it every frame."""
    with pytest.raises(error) as caught:
        read_multipart(TYPE, pieces)
    assert caught.value.__traceback__ and not spools()


def test_a_disk_that_is_full() -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    sent = [part(bytes(2 * MIB)), part(b"x" * 1000), b"--B--"]
    try:
        # In the middle, and at the end, where the last bytes leave the buffer.
        for room in (MIB, 2 * MIB + 1):
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
            with pytest.raises(OSError, match="too large"):
                read_multipart(TYPE, sent, MIB, 0)
            assert not spools()
        # What waits in the buffer is nobody's loss when the form is refused for another reason.
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
        with pytest.raises(ValueError, match="does not end"):
            read_multipart(TYPE, [part(b"x" * 1000)], MIB, 0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    _, files = read_multipart(TYPE, sent, MIB, 0)
    end_files(files)


def test_a_temporary_file_that_was_cut(tmp_path: Path) -> None:
    """Whoever may do so under the hands of a process: an error, and no endless loop."""
    _, files = read_multipart(TYPE, [part(CONTENT), b"--B--"], MIB, 0)
    os.truncate(f"/proc/self/fd/{spools()[0]}", 1000)
    for use in (files["f"].read, files["f"].open().read, lambda: files["f"].save(tmp_path / "x")):
        with pytest.raises(OSError, match="shorter than it was"):
            use()
    end_files(files)
