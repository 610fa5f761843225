# Queries, urlencoded forms and cookies, as they are read.
#
# Knows: `application/x-www-form-urlencoded` (WHATWG URL, section 5.1) and the Cookie field (RFC 6265). Never sees: a
# ctx, a connection: what it reads are bytes that nobody else can change. Invariant: time and memory are linear in the
# bytes that came, whatever they are; parts beyond FIELDS_MAX, empty ones counted, are left out.

from cpython.list cimport PyList_AsTuple
from libc.string cimport memchr

from fastserve.args import FIELDS_MAX as _FIELDS_MAX, Args

cdef Py_ssize_t PARTS_MAX = _FIELDS_MAX


def parse_args(bytes raw not None):
    """Splits at `&`, then at the first `=`; `+` is a space; a `%` without two digits stands for itself; empty parts are
    left out; bytes that are not UTF-8 become U+FFFD."""
    cdef const char* at = PyBytes_AS_STRING(raw)
    cdef const char* end = at + PyBytes_GET_SIZE(raw)
    cdef const char* stop
    cdef const char* middle
    cdef bytes room = None
    cdef list pairs = []
    cdef Py_ssize_t _
    if memchr(at, c'%', end - at) is not NULL or memchr(at, c'+', end - at) is not NULL:
        room = PyBytes_FromStringAndSize(NULL, end - at)
    for _ in range(PARTS_MAX):
        stop = <const char*>memchr(at, c'&', end - at)
        if stop is NULL:
            stop = end
        if stop > at:
            middle = <const char*>memchr(at, c'=', stop - at)
            if middle is NULL:
                pairs.append((unescaped(at, stop, room), ""))
            else:
                pairs.append((unescaped(at, middle, room), unescaped(middle + 1, stop, room)))
        if stop == end:
            break
        at = stop + 1
    args = Args.__new__(Args)
    args._pairs = PyList_AsTuple(pairs)
    return args


cdef str unescaped(const char* at, const char* end, bytes room):
    """`room` has as many bytes, or is None where nothing is escaped."""
    cdef char* to
    cdef char* start
    cdef int high, low
    if room is None:
        return PyUnicode_DecodeUTF8(at, end - at, "replace")
    start = to = PyBytes_AS_STRING(room)
    while at < end:
        if at[0] == c'%' and end - at > 2:
            high, low = hex_digit(at[1]), hex_digit(at[2])
            if high >= 0 and low >= 0:
                to[0] = <char>(high << 4 | low)
                to += 1
                at += 3
                continue
        to[0] = c' ' if at[0] == c'+' else at[0]
        to += 1
        at += 1
    return PyUnicode_DecodeUTF8(start, to - start, "replace")


def parse_cookies(list fields not None) -> dict[str, str]:
    """The cookies of all Cookie fields, as sent (latin-1, nothing decoded).

    Of one name the first counts: a browser puts the cookie with the longest path first (RFC 6265, section
    5.4). A part without `=` or without a name is none. Spaces and tabs around a name or a value are not
    part of it, and neither is one pair of quotes around a value; a quote does not protect a `;`. No other
    character is taken off: a browser sends `U+00A0 __Host-id` for a cookie that anybody may set.
    """
    cdef dict cookies = {}
    cdef Py_ssize_t left = PARTS_MAX
    cdef bytes raw
    cdef const char* at
    cdef const char* end
    cdef const char* stop
    for field in fields:
        raw = (<str>field).encode("latin-1")
        at = PyBytes_AS_STRING(raw)
        end = at + PyBytes_GET_SIZE(raw)
        while left:
            left -= 1
            stop = <const char*>memchr(at, c';', end - at)
            put_pair(cookies, at, end if stop is NULL else stop)
            if stop is NULL:
                break
            at = stop + 1
    return cookies


cdef int put_pair(dict cookies, const char* at, const char* end) except -1:
    cdef const char* middle = <const char*>memchr(at, c'=', end - at)
    cdef const char* stop = middle
    cdef const char* value
    if middle is NULL:
        return 0
    value = middle + 1
    while at < stop and is_blank(at[0]):
        at += 1
    while at < stop and is_blank((stop - 1)[0]):
        stop -= 1
    while value < end and is_blank(value[0]):
        value += 1
    while value < end and is_blank((end - 1)[0]):
        end -= 1
    if stop == at:
        return 0
    if end - value > 1 and value[0] == c'"' and (end - 1)[0] == c'"':
        value += 1
        end -= 1
    cookies.setdefault(PyUnicode_DecodeLatin1(at, stop - at, NULL), PyUnicode_DecodeLatin1(value, end - value, NULL))
    return 0


cdef inline bint is_blank(char c) noexcept:
    return c == c' ' or c == c'\t'
