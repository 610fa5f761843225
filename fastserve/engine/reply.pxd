"""A reply as bytes: status line, the fields that every reply has, the handler's own, the body.

Knows: RFC 9112 section 6 (which reply has a body and how its end is known) and a cached Date.
Never sees: a descriptor, a connection, Python.
Invariant: `reply_head` writes at most REPLY_HEAD_ROOM bytes beyond the handler's fields, which were
checked when they were set, so that a caller with RESPONSE_HEAD_MAX + REPLY_HEAD_ROOM bytes of room
always has enough.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset, strlen

from fastserve.engine.limits cimport RESPONSE_HEAD_MAX


cdef extern from "<time.h>" nogil:
    struct tm:
        int tm_sec, tm_min, tm_hour, tm_mday, tm_mon, tm_year, tm_wday
        long tm_gmtoff
    ctypedef long time_t
    tm* gmtime_r(const time_t* seconds, tm* broken) noexcept

cdef extern from "status.h" nogil:
    ctypedef struct Status:
        const char* line
        const char* phrase
        uint8_t line_size
        uint8_t phrase_size
    const Status* status_of(int code) noexcept


cdef enum:
    NAME_MAX = 256              # of the Server field's value
    REPLY_HEAD_ROOM = 512 + NAME_MAX

cdef enum:                      # `set` in Reply: defaults that are not written, because the handler brings its
    OWN_DATE = 1                # own or wants none
    OWN_SERVER = 2
    OWN_TYPE = 4
    NO_LENGTH = 8               # then the end of the connection is the end of the body

cdef enum:                      # `framing` in Reply: how the end of its body is known
    SIZED = 0                   # Content-Length
    CHUNKED = 1
    UNTIL_CLOSE = 2


cdef struct Scribe:
    # The fields that are the same for every reply of a second. One a thread: no lock, no sharing.
    int64_t second
    uint32_t server_size        # of "Server: name\r\n" at the front of `text`
    uint32_t size
    char text[NAME_MAX + 64]


cdef struct Reply:
    # What a handler has said so far. Memory is the ctx's; nothing here is the connection's.
    int status
    uint8_t set
    uint8_t framing
    uint8_t close               # the handler wants the connection closed
    const char* type            # value of Content-Type; size 0: the default, or none without a body
    uint32_t type_size
    const char* fields          # whole lines, each ending with CRLF
    uint32_t fields_size
    const char* body
    size_t body_size


cdef inline char* put(char* to, const char* text, size_t size) noexcept nogil:
    memcpy(to, text, size)
    return to + size


cdef inline char* put_number(char* to, uint64_t n) noexcept nogil:
    cdef char digits[20]
    cdef uint32_t i = 20
    while True:
        i -= 1
        digits[i] = <char>(c'0' + n % 10)
        n //= 10
        if n == 0:
            return put(to, &digits[i], 20 - i)


cdef inline char* put_two(char* to, int n) noexcept nogil:
    to[0] = <char>(c'0' + n // 10)
    to[1] = <char>(c'0' + n % 10)
    return to + 2


cdef inline char* put_month(char* to, int month) noexcept nogil:
    return put(to, &(<const char*>b"JanFebMarAprMayJunJulAugSepOctNovDec")[3 * month], 3)


cdef inline char* put_date(char* to, int64_t seconds) noexcept nogil:
    """IMF-fixdate, 29 bytes (RFC 9110, section 5.6.7)."""
    cdef time_t t = <time_t>seconds
    cdef tm b
    gmtime_r(&t, &b)
    to = put(put(to, &(<const char*>b"SunMonTueWedThuFriSat")[3 * b.tm_wday], 3), b", ", 2)
    to = put(put_two(to, b.tm_mday), b" ", 1)
    to = put(put_month(to, b.tm_mon), b" ", 1)
    to = put(put_number(to, <uint64_t>(b.tm_year + 1900)), b" ", 1)
    to = put(put_two(to, b.tm_hour), b":", 1)
    to = put(put_two(to, b.tm_min), b":", 1)
    return put(put_two(to, b.tm_sec), b" GMT", 4)


cdef inline void scribe_make(Scribe* s, const char* name, uint32_t size) noexcept nogil:
    """`size` of 0: no Server field; at most NAME_MAX."""
    cdef char* p = s.text
    s.second = -1
    if size:
        p = put(put(put(p, b"Server: ", 8), name, size), b"\r\n", 2)
    s.server_size = s.size = <uint32_t>(p - s.text)


cdef inline void scribe_date(Scribe* s, int64_t second) noexcept nogil:
    """The Date of this second, written once."""
    cdef char* p
    if second == s.second:
        return
    s.second = second
    p = put(s.text + s.server_size, b"Date: ", 6)
    p = put(put_date(p, second), b"\r\n", 2)
    s.size = <uint32_t>(p - s.text)


cdef inline char* put_status(char* to, int status) noexcept nogil:
    """The status line. A phrase may be empty, the space before it may not (RFC 9112, section 4)."""
    cdef const Status* known = status_of(status)
    if known.line is not NULL:
        return put(to, known.line, known.line_size)
    return put(put_number(put(to, b"HTTP/1.1 ", 9), <uint64_t>status), b" \r\n", 3)


cdef inline char* put_interim(char* to, int status, const char* fields, size_t size) noexcept nogil:
    """An interim reply (RFC 9110, section 15.2): nothing but its line and `size` bytes of field lines."""
    to = put_status(to, status)
    if size:
        to = put(to, fields, size)
    return put(to, b"\r\n", 2)


cdef inline bint status_has_body(int status) noexcept nogil:
    return status >= 200 and status != 204 and status != 205 and status != 304


cdef inline char* reply_head(char* to, const Reply* r, const Scribe* s, bint close, bint alive_10) noexcept nogil:
    """The head of a final reply. `alive_10` says keep-alive aloud to a
    client of HTTP/1.0, which would otherwise take the end of the reply for the end of the connection."""
    to = put_status(to, r.status)
    if not r.set & (OWN_DATE | OWN_SERVER):
        to = put(to, s.text, s.size)
    else:
        if not r.set & OWN_SERVER:
            to = put(to, s.text, s.server_size)
        if not r.set & OWN_DATE:
            to = put(to, s.text + s.server_size, s.size - s.server_size)
    if r.type_size:
        to = put(put(put(to, b"Content-Type: ", 14), r.type, r.type_size), b"\r\n", 2)
    elif (r.body_size or r.framing) and not r.set & OWN_TYPE:
        to = put(to, b"Content-Type: text/plain; charset=utf-8\r\n", 41)
    if r.framing != SIZED:
        if r.framing == CHUNKED:
            to = put(to, b"Transfer-Encoding: chunked\r\n", 28)
    elif status_has_body(r.status) and not r.set & NO_LENGTH:
        to = put(put_number(put(to, b"Content-Length: ", 16), r.body_size), b"\r\n", 2)
    elif r.status == 205:
        # It says itself that nothing follows (RFC 9110, section 15.3.6).
        to = put(to, b"Content-Length: 0\r\n", 19)
    if r.fields_size:
        to = put(to, r.fields, r.fields_size)
    if close:
        to = put(to, b"Connection: close\r\n", 19)
    elif alive_10:
        to = put(to, b"Connection: keep-alive\r\n", 24)
    return put(to, b"\r\n", 2)


# Chunks (RFC 9112, section 7.1): one whose size is not known yet is opened, filled and closed in place.

cdef enum:
    CHUNK_HEAD = 6                  # four hex digits and CRLF

cdef inline void put_hex(char* to, uint64_t n, uint32_t digits) noexcept nogil:
    while digits:
        digits -= 1
        to[digits] = (<const char*>b"0123456789abcdef")[n & 15]
        n >>= 4


cdef inline char* chunk_close(char* head, char* end) noexcept nogil:
    """The chunk that begins at `head` with CHUNK_HEAD bytes left free ends here; an empty one vanishes,
    because it would be the last."""
    cdef size_t size = <size_t>(end - head) - CHUNK_HEAD
    if size == 0:
        return head
    put_hex(head, size, 4)
    put(head + 4, b"\r\n", 2)
    return put(end, b"\r\n", 2)


cdef inline char* put_chunk_head(char* to, uint64_t size) noexcept nogil:
    """Of a chunk whose bytes follow from elsewhere, and behind them CRLF. At most 18 bytes."""
    cdef uint32_t digits = 1
    while size >> (4 * digits):
        digits += 1
    put_hex(to, size, digits)
    return put(to + digits, b"\r\n", 2)


cdef inline size_t reply_error(char* to, int status, uint32_t retry_after, const Scribe* s, uint8_t leave,
                               bint close, bint alive_10, bint body, const char* words) noexcept nogil:
    """A whole reply of the server's own: `words` as text; NULL: the reason phrase. `retry_after` in seconds, 0:
    not said (RFC 9110, section 10.2.3). `leave`: as `set` in Reply. `body` is False in answer to HEAD. At
    most 2 * REPLY_HEAD_ROOM."""
    cdef char more[80]
    cdef char* p = more
    cdef char* at
    cdef Reply r
    cdef const Status* known = status_of(status)
    memset(&r, 0, sizeof(r))
    if retry_after:
        p = put(put_number(put(p, b"Retry-After: ", 13), retry_after), b"\r\n", 2)
    if status == 405:
        # What the server itself refuses; what a resource allows, its handler says (RFC 9110, section 10.2.1).
        p = put(p, b"Allow: GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS\r\n", 53)
    r.status = status
    r.set = leave & (OWN_DATE | OWN_SERVER)
    r.fields = more
    r.fields_size = <uint32_t>(p - more)
    r.body = words if words is not NULL else known.phrase
    r.body_size = strlen(r.body) + 1
    at = reply_head(to, &r, s, close, alive_10)
    if body:
        at = put(put(at, r.body, r.body_size - 1), b"\n", 1)
    return <size_t>(at - to)
