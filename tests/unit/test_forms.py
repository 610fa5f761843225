"""Multipart forms: what is read, what is refused, what it costs. No socket, no ctx."""

import os
import sys
import tracemalloc
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from time import perf_counter
from types import ModuleType

import pytest
from hypothesis import given, seed
from hypothesis import strategies as st

from fastserve import Args, forms
from fastserve.errors import FastserveError, MissingExtra
from fastserve.forms import (
    PARAMETERS_MAX,
    PART_HEAD_MAX,
    PART_LINES_MAX,
    PARTS_MAX,
    File,
    Files,
)

SEED = int(os.environ["FASTSERVE_SEED"])  # conftest.py prints it
MIB = 1 << 20
TYPE = "multipart/form-data; boundary=B"
FIELD = 'Content-Disposition: form-data; name="a"'

Part = tuple[str | bytes, bytes]


def body(*parts: Part, boundary: bytes = b"B", end: bytes = b"\r\n") -> bytes:
    """Parts are heads, their lines parted by one newline, and contents."""
    sent = b""
    for head, content in parts:
        raw = head.encode() if isinstance(head, str) else head
        sent += b"--" + boundary + b"\r\n" + raw.replace(b"\n", b"\r\n") + b"\r\n\r\n" + content + b"\r\n"
    return sent + b"--" + boundary + b"--" + end


def parse_multipart(content_type: str, sent: bytes) -> tuple[Args, Files]:
    """As a ctx has them."""
    fields, files = forms.parse_multipart(content_type, sent)
    return Args(fields), files


def read(*parts: Part) -> tuple[Args, Files]:
    return parse_multipart(TYPE, body(*parts))


def refuse(why: str, sent: bytes, content_type: str = TYPE) -> None:
    with pytest.raises(ValueError, match=why) as caught:
        parse_multipart(content_type, sent)
    assert type(caught.value) is ValueError
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 450  # 80 characters of the client's, escaped


# --- what is read ---


def test_fields_and_files_in_order() -> None:
    form, files = read(
        ('Content-Disposition: form-data; name="a"', b"1"),
        ('Content-Disposition: form-data; name="f"; filename="x.txt"\nContent-Type: text/plain; charset=utf-8', b"one"),
        ('Content-Disposition: form-data; name="b"', b"2"),
        ('Content-Disposition: form-data; name="a"', b"3"),
        ('Content-Disposition: form-data; name="f"; filename="y.bin"', b"\0\r\n--\xff"),
    )
    assert form.items() == [("a", "1"), ("b", "2"), ("a", "3")]
    assert list(files) == ["f", "f"]
    assert files["f"] is files.get("f") is files.getall("f")[0]
    assert "f" in files
    assert "a" not in files
    assert files.get("a") is None
    first, second = files.getall("f")
    assert (first.filename, first.content_type, first.size) == ("x.txt", "text/plain; charset=utf-8", 3)
    assert first.read() == first.read() == b"one"
    assert (second.filename, second.content_type, second.size) == ("y.bin", "application/octet-stream", 6)
    assert second.read() == b"\0\r\n--\xff"
    assert files.items() == [("f", first), ("f", second)]
    assert repr(files).startswith("Files([('f', File(filename='x.txt', content_type='text/plain;")


def test_a_form_without_parts() -> None:
    form, files = parse_multipart(TYPE, b"--B--\r\n")
    assert (len(form), len(files)) == (0, 0)


def test_a_file_is_saved_and_replaces(tmp_path: Path) -> None:
    _, files = read((FIELD + '; filename="x"', b"\0content\r\n"))
    place = tmp_path / "name of my own"
    place.write_bytes(b"something longer that was there before")
    files["a"].save(place)
    assert place.read_bytes() == b"\0content\r\n"
    files["a"].save(str(place) + "2")
    assert Path(str(place) + "2").read_bytes() == b"\0content\r\n"
    with pytest.raises(OSError, match="No such file"):
        files["a"].save(tmp_path / "missing" / "x")


def test_a_file_is_read_only() -> None:
    file = File("x", "text/plain", b"")
    for name in ("filename", "content_type", "size", "more"):
        with pytest.raises(AttributeError):
            setattr(file, name, "y")


@pytest.mark.parametrize(
    ("sent", "filename"),
    [
        ('; filename="x.txt"', "x.txt"),
        ("; filename=x.txt", "x.txt"),
        (";filename=x.txt;", "x.txt"),
        (' ; FileName="x.txt" ; ', "x.txt"),
        ('; filename=""', ""),
        ('; filename="a b; name=c"', "a b; name=c"),
        ('; filename="é🐍.txt"', "é🐍.txt"),
        ('; filename="../../etc/passwd"', "../../etc/passwd"),
        ('; filename="C:\\dir\\x.txt"', "C:\\dir\\x.txt"),
        ('; filename="\\\\host\\x"', "\\\\host\\x"),
        ('; filename="dir\\"', "dir\\"),
        ('; filename="a%22b%0D%0A%41"', 'a"b\r\n%41'),
        ('; filename="a\\"b\\\\c"', 'a"b\\c'),
        ('; filename="a\\"%22"', 'a"%22'),
        ("; filename=x.txt; filename*=utf-8''y.txt", "x.txt"),
        ("", None),
    ],
)
def test_a_filename_comes_as_it_was_sent(sent: str, filename: str | None) -> None:
    form, files = read((FIELD + sent, b"content"))
    if filename is None:
        assert form.items() == [("a", "content")]
    else:
        assert [(name, file.filename) for name, file in files.items()] == [("a", filename)]
        assert len(form) == 0


@pytest.mark.parametrize(
    "head",
    [
        'content-disposition:form-data;name="a"',
        "CONTENT-DISPOSITION: Form-Data; NAME=a",
        FIELD + ";" * (PARAMETERS_MAX - 1),
        'X-More: 1\nContent-Disposition: form-data; name="a"\nContent-Type: text/plain',
        'Content-Disposition: form-data; name="a"\nContent-Transfer-Encoding: 8BIT\nContent-Length: 7',
    ],
)
def test_heads_that_clients_write(head: str) -> None:
    assert read((head, b"content"))[0].items() == [("a", "content")]


def test_a_field_is_utf_8() -> None:
    head = 'Content-Disposition: form-data; name="é"\nContent-Type: text/plain; charset=latin-1'
    form, _ = read((head, b"\xc3\xa9\xff"))
    assert form.items() == [("é", "é\ufffd")]


@pytest.mark.parametrize(
    "content_type",
    [
        "multipart/form-data; boundary=B",
        'Multipart/Form-Data;BOUNDARY="B"',
        " multipart/form-data ; charset=utf-8; boundary=B; ",
    ],
)
def test_the_boundary_is_found(content_type: str) -> None:
    assert len(parse_multipart(content_type, body((FIELD, b"")))[0]) == 1


@pytest.mark.parametrize("boundary", ["-" * 70, "----=_Part_1_2.3", "a b", "(a)'/:?,+", "--"])
def test_any_boundary_of_the_rfc(boundary: str) -> None:
    sent = body((FIELD, b"--" + boundary.encode()), boundary=boundary.encode())
    form, _ = parse_multipart(f'multipart/form-data; boundary="{boundary}"', sent)
    assert form.items() == [("a", "--" + boundary)]


@pytest.mark.parametrize("begin", [b"", b"\r\n"])
@pytest.mark.parametrize("end", [b"", b"\r\n", b"\r\n\r\n", b" \t\r\n"])
def test_white_space_around_a_form(begin: bytes, end: bytes) -> None:
    form, _ = parse_multipart(TYPE, begin + body((FIELD, b"x"), end=end))
    assert form.items() == [("a", "x")]
    assert len(parse_multipart(TYPE, begin + body(end=end))[0]) == 0


# --- what is refused ---


@pytest.mark.parametrize(
    ("content_type", "why"),
    [
        ("", "not multipart/form-data"),
        ("application/x-www-form-urlencoded", "not multipart/form-data"),
        ("multipart/mixed; boundary=B", "not multipart/form-data"),
        ("multipart/form-data", "no boundary"),
        ("multipart/form-data; boundary=", "not a list of parameters"),
        ('multipart/form-data; boundary=""', "no boundary"),
        ('multipart/form-data; boundary="B', "not a list of parameters"),
        ("multipart/form-data; boundary=B C", "not a list of parameters"),
        ("multipart/form-data boundary=B", "not multipart/form-data"),
        ("multipart/form-data; boundary=B; boundary=C", "boundary stands twice"),
        ("multipart/form-data; boundary=B; Boundary=B", "Boundary stands twice"),
        ('multipart/form-data; boundary="B "', "no boundary"),
        ('multipart/form-data; boundary="B\r\n"', "no boundary"),
        ("multipart/form-data; boundary=é", "no boundary"),
        ("multipart/form-data; boundary=B%", "no boundary"),
        ("multipart/form-data; boundary=" + "B" * 71, "no boundary"),
        ("multipart/form-data; boundary=B" + ";" * PARAMETERS_MAX, "not a list of parameters"),
    ],
)
def test_a_content_type_that_says_no_boundary(content_type: str, why: str) -> None:
    refuse(why, body((FIELD, b"")), content_type)


WHOLE = body((FIELD, b"1"), (FIELD + '; filename="x"', b"2"))


def test_a_form_that_was_cut_anywhere() -> None:
    end = len(WHOLE) - 2  # the last line break may miss
    for size in range(end):
        refuse("malformed", WHOLE[:size])


@pytest.mark.parametrize(
    ("sent", "why"),
    [
        (b"", "does not begin"),
        (b"\r\n", "does not begin"),
        (b"text\r\n" + WHOLE, "does not begin"),
        (b"\n" + WHOLE, "does not begin"),
        (b"\r\n\r\n" + WHOLE, "does not begin"),
        (WHOLE[1:], "does not begin"),
        (WHOLE.replace(b"\r\n", b"\n"), "does not end"),
        (WHOLE + b"text", "behind its end"),
        (WHOLE + WHOLE, "behind its end"),
        (b"--B--\r\n" + WHOLE, "behind its end"),
        (b"--B--" + WHOLE, "behind its end"),
        (body((FIELD, b"1\r\n--B--\r\n2")), "behind its end"),
        (body((FIELD, b"1\r\n--Bx")), "boundary"),
        (body((FIELD, b"1\r\n--B \r\n")), "boundary"),
        (b"--Bx" + WHOLE[3:], "boundary"),
        (b"--B \r\n" + WHOLE[5:], "boundary"),
        (b"--B\n" + WHOLE[5:], "boundary"),
        (b"--B\r\n\r\n\r\n--B--", "Content-Disposition"),
        (b"--B\r\n--B--", "malformed"),
    ],
)
def test_a_frame_that_is_not_well_formed(sent: bytes, why: str) -> None:
    refuse(why, sent)


@pytest.mark.parametrize(
    ("head", "why"),
    [
        ("Content-Type: text/plain", "Content-Disposition"),
        ("Content-Disposition: attachment; name=a", "Wrong type"),
        ("Content-Disposition: form-data", "name"),
        ("Content-Disposition: form-data; filename=a", "name"),
        ('Content-Disposition: form-data; x*=";name=a"', "no field of a form"),  # the library sees a name
        (FIELD + "; filename*=utf-8''x", r"filename\* without filename"),
        (FIELD + '; name="b"', "name stands twice"),
        (FIELD + "; filename=x; FileName=y", "FileName stands twice"),
        (FIELD + '; filename="x', "not a list of parameters"),
        (FIELD + '; filename="x"y', "not a list of parameters"),
        (FIELD + "; filename", "not a list of parameters"),
        (FIELD + "; filename = x", "not a list of parameters"),
        (FIELD + ", form-data", "not a list of parameters"),
        (FIELD + ";" * PARAMETERS_MAX, "not a list of parameters"),
        (FIELD + '; filename="x\0.png"', "control character"),
        (FIELD + '; filename="x\r.png"', "control character"),
        (FIELD + "\nContent-Type: text/\x7fplain", "control character"),
        (FIELD + "\n" + FIELD, "field twice"),
        (FIELD + "\nContent-Type: text/plain\ncontent-type: text/html", "field twice"),
        (FIELD + "\nContent-Transfer-Encoding: base64", "encoding"),
        (FIELD + "\nContent-Transfer-Encoding: quoted-printable", "encoding"),
        (FIELD + "\nContent-Length: 6", "Content-Length"),
        (FIELD + "\nContent-Length: 8", "Content-Length"),
        (FIELD + "\nContent-Length: -1", "Content-Length"),
        (FIELD + "\nno colon", "header"),
        (FIELD + "\n: no name", "header"),
        (FIELD + "\n folded", "continuation"),
        (FIELD.encode() + b"; filename=\xff", "decode"),
    ],
)
def test_a_part_that_is_not_well_formed(head: str | bytes, why: str) -> None:
    refuse(why, body((head, b"content")))


def test_a_bare_line_feed_does_not_end_a_line() -> None:
    """Else one reader sees a filename where another sees none."""
    sent = body((FIELD, b"content")).replace(b'"a"', b'"a"\nContent-Type: text/html')
    refuse("malformed", sent)


@pytest.mark.parametrize("size", [1 << 10, 1 << 20])
def test_a_message_stays_one_short_line(size: int) -> None:
    refuse("malformed", body((FIELD + "; " + "\t=é\x01" * size, b"")))
    refuse("not a list", body((FIELD + "; " + "=\t" * min(size, 2000), b"")))
    refuse("stands twice", body((FIELD + "; name=" + "a" * min(size, 2000), b"")))
    refuse("no boundary|not a list", b"", f'{TYPE[:-1]}"{chr(10) * size}"')
    refuse("not multipart", b"", "\n" * size)


# --- bounds ---


def test_the_number_of_parts_is_bounded() -> None:
    form, files = read(*[(FIELD, b"x"), (FIELD + "; filename=x", b"")] * (PARTS_MAX // 2))
    assert len(form) + len(files) == PARTS_MAX
    refuse("count", body(*[(FIELD, b"x")] * (PARTS_MAX + 1)))


def test_the_head_of_a_part_is_bounded() -> None:
    most = PART_HEAD_MAX - len(FIELD) + 2 - len("X-Mo")  # colon and space do not count
    assert len(read((FIELD + "\nX-Mo: " + "x" * most, b""))[0]) == 1
    refuse("too long", body((FIELD + "\nX-Mo: " + "x" * (most + 1), b"")))
    refuse("length", body((FIELD + "\nX: " + "x" * PART_HEAD_MAX, b"")))
    lines = [f"X-{i}: 1" for i in range(PART_LINES_MAX)]
    assert len(read(("\n".join([FIELD, *lines[1:]]), b""))[0]) == 1
    refuse("count", body(("\n".join([FIELD, *lines]), b"")))


LONG = PART_HEAD_MAX - 200
DASHES = "-" * 69 + "a"


@pytest.mark.parametrize(
    ("boundary", "parts"),
    [
        ("B", [(FIELD, b"\r\n--" * MIB)]),
        ("B", [(FIELD + "; filename=x", b"\0" * (4 * MIB))]),
        ("B", [(FIELD, b"x")] * 80_000),
        (DASHES, [(FIELD, b"-" * (4 * MIB))]),
        (DASHES, [(FIELD, (b"\r\n" + b"-" * 71) * 57_000)]),
        *[("B", [(FIELD + '; filename="' + unit * (LONG // len(unit)) + '"', b"")] * 500)
          for unit in ("a", "\\", '\\"', "\\\\", "%22", ";", '"', ';a="', '";a="', " ")],
        *[("B", [(FIELD + ";" + unit * (LONG // len(unit)), b"")] * 500)
          for unit in ("a", ";", "; ", " ", "=", ";a=", '\\"')],
    ],
)
def test_four_mebibytes_of_anything_cost_little(boundary: str, parts: Sequence[Part]) -> None:
    sent = b"".join(
        b"--" + boundary.encode() + b"\r\n" + head.encode() + b"\r\n\r\n" + content + b"\r\n"
        for head, content in parts if isinstance(head, str)
    ) + b"--" + boundary.encode() + b"--"
    assert len(sent) > 3 * MIB

    def once() -> float:
        begin = perf_counter()
        with suppress(ValueError):
            parse_multipart(f"multipart/form-data; boundary={boundary}", sent)
        return perf_counter() - begin

    assert once() < 5  # 1 at most; a bound for what is not linear
    tracemalloc.start()
    try:
        once()
        assert tracemalloc.get_traced_memory()[1] < 16 * MIB
    finally:
        tracemalloc.stop()


# --- any form ---

TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]))
QUOTED = TEXT.map(lambda text: text.replace("\\", "/").replace("%22", "").replace("%0", ""))
CONTENT = st.one_of(
    st.binary(),
    st.lists(st.sampled_from([b"\r", b"\n", b"\r\n", b"-", b"--", b"B", b"\r\n-", b"\r\n--", b"x"])).map(b"".join),
).filter(lambda content: b"\r\n--B" not in b"\r\n" + content)


@seed(SEED)
@given(st.lists(st.tuples(QUOTED, st.none() | QUOTED, CONTENT), max_size=8))
def test_what_was_sent_comes_back(parts: list[tuple[str, str | None, bytes]]) -> None:
    sent = b""
    for name, filename, content in parts:
        head = 'Content-Disposition: form-data; name="' + name.replace('"', "%22") + '"'
        if filename is not None:
            head += '; filename="' + filename.replace('"', "%22") + '"'
        sent += b"--B\r\n" + head.encode() + b"\r\n\r\n" + content + b"\r\n"
    form, files = parse_multipart(TYPE, sent + b"--B--\r\n")
    assert form.items() == [(name, content.decode("utf-8", "replace"))
                            for name, filename, content in parts if filename is None]
    assert [(name, file.filename, file.read(), file.size) for name, file in files.items()] == [
        (name, filename, content, len(content)) for name, filename, content in parts if filename is not None
    ]


PIECES = [b"--B", b"--B--", b"\r\n", b"\r", b"\n", b"--", b":", b";", b'"', b"\\", b"=", b"x", b"\xff", b"\0", b" ",
          b"Content-Disposition: form-data; name=a", b"; filename=", b"Content-Type: ", b"Content-Length: 1"]


@seed(SEED)
@given(st.lists(st.sampled_from(PIECES)).map(b"".join))
def test_any_bytes_are_read_or_refused(sent: bytes) -> None:
    for whole in (sent, b"--B\r\n" + sent + b"\r\n--B--", WHOLE[:-7] + sent + WHOLE[-7:]):
        try:
            parse_multipart(TYPE, whole)
        except ValueError as error:
            assert type(error) is ValueError
            assert "\n" not in str(error)


@seed(SEED)
@given(st.lists(st.sampled_from(["multipart/form-data", ";", "boundary", "=", "B", '"', "\\", " ", "é"])).map("".join))
def test_any_content_type_is_read_or_refused(content_type: str) -> None:
    try:
        parse_multipart(content_type, WHOLE)
    except ValueError as error:
        assert type(error) is ValueError


@seed(SEED)
@given(st.integers(0, len(WHOLE) - 3), st.binary(max_size=2))
def test_one_change_is_read_or_refused(at: int, change: bytes) -> None:
    try:
        form, files = parse_multipart(TYPE, WHOLE[:at] + change + WHOLE[at + 1:])
    except ValueError as error:
        assert type(error) is ValueError
    else:
        assert len(form) + len(files) <= 2


# --- the extra ---


@pytest.mark.parametrize("present", [None, ModuleType("multipart")], ids=["none", "python-multipart"])
def test_without_the_library_the_extra_is_named(present: ModuleType | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "multipart", present)
    with pytest.raises(MissingExtra, match=r"pip install 'fastserve-http\[forms\]'") as caught:
        parse_multipart(TYPE, WHOLE)
    assert isinstance(caught.value, ImportError)
    assert isinstance(caught.value, FastserveError)
    assert "\n" not in str(caught.value)


def test_the_library_is_imported_at_first_use_only() -> None:
    import subprocess

    code = "import sys, fastserve.forms; sys.exit('multipart' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
