# Queries, urlencoded forms and cookies, as they are read, and the map that queries and forms become.
#
# Knows: `application/x-www-form-urlencoded` (WHATWG URL, section 5.1) and the Cookie field (RFC 6265). Never sees: a
# ctx, a connection: what it reads are bytes that nobody else can change. Invariant: time and memory are linear in the
# bytes that came, whatever they are; parts beyond FIELDS_MAX, empty ones counted, are left out. A map never changes, so
# that any thread may read it.

from cpython.list cimport PyList_GET_ITEM, PyList_GET_SIZE
from libc.string cimport memchr

from fastserve.args import FIELDS_MAX as _FIELDS_MAX, read_bool, read_float, read_int

cdef extern from *:
    """
    #define TEXT_SAME(o, p) \\
        (PyUnicode_GET_LENGTH(o) == PyUnicode_GET_LENGTH(p) && PyUnicode_KIND(o) == PyUnicode_KIND(p) && \\
         !memcmp(PyUnicode_DATA(o), PyUnicode_DATA(p), PyUnicode_GET_LENGTH(o) * PyUnicode_KIND(o)))
    """
    bint TEXT_SAME(object one, object other)

cdef Py_ssize_t PARTS_MAX = _FIELDS_MAX


@cython.annotation_typing(False)    # it would refuse a subclass of str, such as a StrEnum, before we see it
@cython.final
@cython.freelist(8)
cdef class Args:
    """An ordered multi-map of str to str, read-only. Iteration gives names; a name that was sent twice stands twice,
    and `[]` and `get` give its first value. Bytes that are not UTF-8 become U+FFFD.

    It may be made of pairs: `Args([("a", "1")])`. TypeError: one of them is no str.
    """

    cdef list words             # name, value, name, value ...: exact str, and never changed once the map is handed out

    def __cinit__(self, pairs=()):
        self.words = []
        for name, value in pairs:
            self.words.append(as_text(name))
            self.words.append(as_text(value))

    def __reduce__(self):
        return Args, (self.items(),)

    cdef Py_ssize_t find(self, object name, Py_ssize_t start) noexcept:
        """Where the value of a name stands, the name at `start` or behind it; -1: nowhere."""
        cdef Py_ssize_t i
        if isinstance(name, str):
            for i in range(start, PyList_GET_SIZE(self.words), 2):
                if TEXT_SAME(<object>PyList_GET_ITEM(self.words, i), name):
                    return i + 1
        return -1

    def get(self, name: str, default=None):
        """The first value of `name`, or `default`."""
        cdef Py_ssize_t i = self.find(name, 0)
        return default if i < 0 else self.words[i]

    def getall(self, name: str) -> list[str]:
        """Every value of `name`, in order."""
        cdef Py_ssize_t i = self.find(name, 0)
        cdef list found = []
        while i >= 0:
            found.append(self.words[i])
            i = self.find(name, i + 1)
        return found

    def items(self) -> list[tuple[str, str]]:
        """All pairs, in order."""
        return list(zip(self.keys(), self.values()))

    def keys(self) -> list[str]:
        """All names, in order."""
        return self.words[::2]

    def values(self) -> list[str]:
        """All values, in order."""
        return self.words[1::2]

    def int(self, name: str, default=None):
        """The first value of `name` as an integer of at most 18 digits, `-` allowed, or `default` without one.
        BadRequest, which becomes 400: it is none."""
        cdef Py_ssize_t i = self.find(name, 0)
        return default if i < 0 else read_int(name, self.words[i])

    def float(self, name: str, default=None):
        """The first value of `name` as a finite decimal number, exponent allowed, or `default` without one.
        BadRequest, which becomes 400: it is none."""
        cdef Py_ssize_t i = self.find(name, 0)
        return default if i < 0 else read_float(name, self.words[i])

    def bool(self, name: str, default=None):
        """The first value of `name`: True for 1, t, true, y, yes and on, False for 0, f, false, n, no and off, whatever
        their case; `default` without one. BadRequest, which becomes 400: anything else."""
        cdef Py_ssize_t i = self.find(name, 0)
        return default if i < 0 else read_bool(name, self.words[i])

    def __getitem__(self, name: str) -> str:
        cdef Py_ssize_t i = self.find(name, 0)
        if i < 0:
            raise KeyError(name)
        return self.words[i]

    def __contains__(self, name) -> bool:
        return self.find(name, 0) >= 0

    def __iter__(self):
        return iter(self.keys())

    def __len__(self) -> int:
        return len(self.words) // 2

    def __repr__(self) -> str:
        return f"Args({self.items()!r})"


cpdef Args parse_args(bytes raw):
    """Splits at `&`, then at the first `=`; `+` is a space; a `%` without two digits stands for itself; empty parts are
    left out; bytes that are not UTF-8 become U+FFFD."""
    cdef const char* at = raw
    cdef const char* end = at + len(raw)
    cdef const char* stop
    cdef const char* middle
    cdef bytes room = None
    cdef Args args = Args.__new__(Args)
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
                middle = stop
            args.words.append(unescaped(at, middle, room))
            args.words.append(unescaped(middle + 1, stop, room) if middle < stop else "")
        if stop == end:
            break
        at = stop + 1
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


cpdef dict parse_cookies(list fields):
    """The cookies of all Cookie fields, each of which is bytes; as sent (latin-1, nothing decoded).

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
    for raw in fields:
        at = raw
        end = at + len(raw)
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
