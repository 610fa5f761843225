"""Multipart forms: what is read, what is refused, what it costs. No socket, no ctx. Whatever is read or refused here
comes whole and in pieces: byte by byte, and cut at random."""

import os
import random
import sys
import threading
import tracemalloc
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from time import thread_time
from types import ModuleType

import pytest
from hypothesis import given, seed
from hypothesis import strategies as st

from fastserve import Args, forms
from fastserve.errors import BadRequest, FastserveError, MissingExtra
from fastserve.forms import (
    FIELDS_MAX,
    PARAMETERS_MAX,
    PART_HEAD_MAX,
    PART_LINES_MAX,
    PARTS_MAX,
    read_fields,
)
from fastserve.uploads import File, Files, end_files

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


def read_multipart(content_type: str, parts: Iterable[bytes], *bounds: int) -> tuple[Args, Files]:
    """As a ctx has them."""
    fields, files = forms.read_multipart(content_type, parts, *bounds)
    return Args(fields), files


def pieces(sent: bytes, *cuts: int) -> list[bytes]:
    edges = [0, *sorted(cuts), len(sent)]
    return [sent[begin:end] for begin, end in pairwise(edges)]


def ways(sent: bytes) -> Iterator[list[bytes]]:
    """To cut a body: byte by byte, by threes, and a few at random; not so finely where it is large."""
    luck = random.Random(SEED)
    step = 1 + len(sent) // 1000
    for size in (step, step + 2):
        yield pieces(sent, *range(size, len(sent), size))
    for count in (1, 1, 2, 7):
        yield pieces(sent, *(luck.randrange(len(sent) + 1) for _ in range(count)))


Outcome = tuple[list[tuple[str, str]], list[tuple[str, str, str, int, bytes]]] | str


def outcome(content_type: str, parts: list[bytes], in_memory: int = MIB) -> Outcome:
    """What is read of it, or why it is refused."""
    try:
        form, files = read_multipart(content_type, parts, MIB * 64, in_memory)
    except ValueError as error:
        assert type(error) is ValueError
        return str(error)
    found = [(name, file.filename, file.content_type, file.size, file.read()) for name, file in files.items()]
    end_files(files)
    return form.items(), found


def the_same_in_pieces(sent: bytes, content_type: str = TYPE) -> Outcome:
    """The outcome, which is the same however the body is cut and wherever the content of its files lies."""
    whole = outcome(content_type, [sent])
    for number, way in enumerate(ways(sent)):
        assert outcome(content_type, way, (0, 1, 5, MIB)[number % 4]) == whole, way
    return whole


def read(*parts: Part) -> tuple[Args, Files]:
    sent = body(*parts)
    assert not isinstance(the_same_in_pieces(sent), str)
    return parse_multipart(TYPE, sent)


def refuse(why: str, sent: bytes, content_type: str = TYPE) -> None:
    with pytest.raises(ValueError, match=why) as caught:
        parse_multipart(content_type, sent)
    assert type(caught.value) is ValueError
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 450  # 80 characters of the client's, escaped
    assert the_same_in_pieces(sent, content_type) == str(caught.value)


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
    sent = body((FIELD, b"x--" + boundary.encode()), boundary=boundary.encode())
    form, _ = parse_multipart(f'multipart/form-data; boundary="{boundary}"', sent)
    assert form.items() == [("a", "x--" + boundary)]


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
        (WHOLE.replace(b"\r\n", b"\n"), "behind a boundary"),
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
        (b"--B\r\n--B--", "does not end"),
        # What some take for the end of the part: in a head, and with the empty line behind it.
        (body((FIELD + "\n--B--: 1", b"")), "its boundary in the head"),
        (body((FIELD + "\n--B: 1", b"")), "its boundary in the head"),
        (body((FIELD, b"--B--\r\n")), "its boundary in the head"),
        (body((FIELD, b"--B\r\n" + FIELD.encode() + b"; filename=x\r\n\r\ny")), "its boundary in the head"),
        (body((FIELD, b"--B \r\n")), "its boundary in the head"),
        (b"--B\r\n--B\r\n\r\n\r\n--B--", "its boundary in the head"),
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
        (FIELD + "; filename*=utf-8''x", r"filename\* in the head"),
        (FIELD + "; filename*0=x.; filename*1=php", r"filename\*0 in the head"),
        (FIELD + "; filename=x; filename*0*=utf-8''y", r"filename\*0\* in the head"),
        (FIELD + "; name*=utf-8''b", r"name\* in the head"),
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
        (FIELD + "\n\rContent-Type: text/plain", "control character"),
        ("\x0b" + FIELD, "control character"),
        (FIELD + "\n" + FIELD, "field twice"),
        (FIELD + "\nContent-Type: text/plain\ncontent-type: text/html", "field twice"),
        (FIELD + "\nContent-Transfer-Encoding: base64", "encoding"),
        (FIELD + "\nContent-Transfer-Encoding: quoted-printable", "encoding"),
        (FIELD + "\nContent-Length: 6", "Content-Length"),
        (FIELD + "\nContent-Length: 8", "Content-Length"),
        (FIELD + "\nContent-Length: -1", "Content-Length"),
        (FIELD + "\nno colon", "no field in the head"),
        (FIELD + "\n: no name", "no field in the head"),
        (FIELD + "\n folded", "no field in the head"),
        ("\xa0" + FIELD, "no field in the head"),
        ("\x85" + FIELD, "no field in the head"),
        ("X: 1\n" + FIELD.replace(":", "\u3000:"), "no field in the head"),
        (FIELD.replace(":", " :"), "no field in the head"),
        (FIELD.encode() + b"; filename=\xff", "decode"),
    ],
)
def test_a_part_that_is_not_well_formed(head: str | bytes, why: str) -> None:
    refuse(why, body((head, b"content")))


def test_a_bare_line_feed_does_not_end_a_line() -> None:
    """Else one reader sees a filename where another sees none."""
    sent = body((FIELD, b"content"))
    refuse("control character", sent.replace(b'"a"', b'"a"\nContent-Type: text/html'))
    refuse("control character", sent.replace(b'"a"', b'"a"\r\n\nContent-Type: text/html'))


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
    refuse("more than 1000 parts", body(*[(FIELD, b"x")] * (PARTS_MAX + 1)))


def test_the_head_of_a_part_is_bounded() -> None:
    most = PART_HEAD_MAX - len(FIELD + "\r\nX: \r\n")
    for size, fits in ((most, True), (most + 1, False)):
        sent = body((FIELD + "\nX: " + "x" * size, b""))
        whole = outcome(TYPE, [sent])
        assert isinstance(whole, str) != fits
        end = sent.index(b"\r\n\r\n")
        assert all(outcome(TYPE, pieces(sent, cut)) == whole for cut in range(end - 9, end + 9))
    refuse("head of a part is too long", sent)
    assert len(read((FIELD + "\nX: " + "é" * (most // 2), b""))[0]) == 1
    refuse("head of a part is too long", body((FIELD + "\nX: " + "é" * (most // 2 + 1), b"")))
    refuse("head of a part is too long", body((FIELD + "\nX: " + "x" * (4 * PART_HEAD_MAX), b"")))
    lines = [f"X-{i}: 1" for i in range(PART_LINES_MAX)]
    assert len(read(("\n".join([FIELD, *lines[1:]]), b""))[0]) == 1
    refuse("count", body(("\n".join([FIELD, *lines]), b"")))


def test_what_becomes_text_is_bounded_together() -> None:
    """Names, filenames and media types as well: they stay in memory, too."""
    head = len("a" "application/octet-stream")
    fields = [(FIELD, b"x" * 10_000)] * 100
    last = FIELDS_MAX - 100 * (10_000 + head) - head
    sent = body(*fields, (FIELD, b"y" * last))
    for way in ([sent], pieces(sent, *range(65536, len(sent), 65536))):
        form, _ = read_multipart(TYPE, way)
        assert sum(map(len, form.values())) == 1_000_000 + last
    sent = body(*fields, (FIELD, b"y" * (last + 1)))
    named = body(*[(FIELD + f'; filename="{"x" * 7000}"\nContent-Type: {"y" * 1000}', b"")] * 132)
    for way in ([sent], pieces(sent, *range(65536, len(sent), 65536)), [named]):
        with pytest.raises(BadRequest, match="larger than 1048576 bytes together") as caught:
            read_multipart(TYPE, way)
        assert caught.value.status == 413
    assert len(parse_multipart(TYPE, sent)[0]) == 101      # which is in memory anyway
    assert len(parse_multipart(TYPE, named)[1]) == 132


def test_an_urlencoded_form_in_pieces_is_bounded() -> None:
    assert read_fields([b"a=", b"1&b", b"", b"=2"]) == b"a=1&b=2"
    assert len(read_fields([b"x" * 1024] * 1024)) == FIELDS_MAX
    with pytest.raises(BadRequest) as caught:
        read_fields([b"x" * 1024] * 1025)
    assert caught.value.status == 413


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

    tracemalloc.start()
    begin = thread_time()
    try:
        with suppress(ValueError):
            parse_multipart(f"multipart/form-data; boundary={boundary}", sent)
        assert thread_time() - begin < 5    # of the CPU; 1 at most: a bound for what is not linear
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
    assert the_same_in_pieces(sent + b"--B--\r\n") == (
        [(name, content.decode("utf-8", "replace")) for name, filename, content in parts if filename is None],
        [(name, filename, "application/octet-stream", len(content), content)
         for name, filename, content in parts if filename is not None],
    )


PIECES = [b"--B", b"--B--", b"\r\n", b"\r", b"\n", b"--", b":", b";", b'"', b"\\", b"=", b"x", b"\xff", b"\0", b" ",
          b"Content-Disposition: form-data; name=a", b"; filename=", b"Content-Type: ", b"Content-Length: 1"]


@seed(SEED)
@given(st.lists(st.sampled_from(PIECES)).map(b"".join))
def test_any_bytes_are_read_or_refused(sent: bytes) -> None:
    for whole in (sent, b"--B\r\n" + sent + b"\r\n--B--", WHOLE[:-7] + sent + WHOLE[-7:]):
        assert "\n" not in (found if isinstance(found := the_same_in_pieces(whole), str) else "")


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
    found = the_same_in_pieces(WHOLE[:at] + change + WHOLE[at + 1:])
    assert isinstance(found, str) or sum(map(len, found)) <= 2


# --- the extra ---


@pytest.mark.parametrize("present", [None, ModuleType("multipart")], ids=["none", "python-multipart"])
def test_without_the_library_the_extra_is_named(present: ModuleType | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "multipart", present)
    with pytest.raises(MissingExtra, match=r"pip install 'fastserve-http\[forms\]'") as caught:
        parse_multipart(TYPE, WHOLE)
    assert isinstance(caught.value, ImportError)
    assert isinstance(caught.value, FastserveError)
    assert "\n" not in str(caught.value)


def test_a_library_that_another_thread_is_importing_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stands in sys.modules before it has anything."""
    (tmp_path / "multipart.py").write_text(
        "import sys\n"
        "steps = sys.modules['steps_of_multipart']\n"
        "steps.begun.set()\n"
        "assert steps.go.wait(60)\n"
        "class MultipartError(ValueError): pass\n"
        "def PushMultipartParser(boundary, **bounds): raise MultipartError('ours')\n")
    steps = ModuleType("steps_of_multipart")
    steps.begun, steps.go = threading.Event(), threading.Event()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "steps_of_multipart", steps)
    monkeypatch.setitem(sys.modules, "multipart", steps)
    del sys.modules["multipart"]            # and whatever is there at the end goes, too
    monkeypatch.syspath_prepend(str(tmp_path))
    told: list[BaseException] = []

    def ask() -> None:
        try:
            parse_multipart(TYPE, WHOLE)
        except BaseException as error:
            told.append(error)

    threads = [threading.Thread(target=ask) for _ in range(2)]
    threads[0].start()
    assert steps.begun.wait(60)
    threads[1].start()
    # It ends early only where it does not wait.
    threads[1].join(0.1)
    steps.go.set()
    for thread in threads:
        thread.join()
    assert [str(error) for error in told] == ["ours"] * 2, told


def test_the_library_is_imported_at_first_use_only() -> None:
    import subprocess

    code = "import sys, fastserve.forms; sys.exit('multipart' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
