"""One line of the access log.

Knows: what is remembered of a request, Apache's combined format and JSON (RFC 8259). Never sees: a file, a
connection, Python.
Invariant: whatever bytes a client sent, a line is printable ASCII and ends with the only line feed in it; it is at
most LINE_ROOM bytes long.
"""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, strlen

from fastserve.engine.net cimport AF_INET, AF_INET6, sockaddr_in6
from fastserve.engine.reply cimport gmtime_r, put, put_hex, put_month, put_number, put_two, time_t, tm


cdef extern from "<time.h>" nogil:
    tm* localtime_r(const time_t* seconds, tm* broken) noexcept

cdef extern from "<arpa/inet.h>" nogil:
    const char* inet_ntop(int family, const void* address, char* to, unsigned int size) noexcept


cdef enum:
    RECORD_TEXT = 1888          # bytes of all four texts: a record is 2 KiB
    TARGET_MOST = 1024          # of each of them; what is longer is cut and ends with three dots
    FIELD_MOST = 400
    LINE_ROOM = 6 * RECORD_TEXT + 1024

cdef enum:                      # the texts of a record, one behind the other
    METHOD = 0
    TARGET = 1
    REFERER = 2
    AGENT = 3
    TEXTS = 4


cdef struct Record:
    Record* next
    uint64_t conn_id
    uint32_t number             # of the request on its connection
    uint16_t status
    uint8_t minor
    uint8_t aborted             # the reply did not leave whole
    uint64_t bytes              # of the reply's body
    int64_t at                  # the wall clock's nanoseconds, when the request was there
    int64_t queue               # nanoseconds; -1: it never was in one
    int64_t handler
    int64_t write
    sockaddr_in6 peer
    uint16_t sizes[TEXTS]
    uint16_t used               # bytes of `text`
    char text[RECORD_TEXT]


cdef struct Face:
    # The last time that was written: one a thread and a format.
    time_t second
    size_t size
    char text[64]


cdef inline void record_text(Record* r, int which, const char* text, size_t size) noexcept nogil:
    """In the order of the texts; each at most once."""
    cdef size_t most = TARGET_MOST if which == TARGET else FIELD_MOST
    cdef bint cut = size > most
    if cut:
        size = most
    memcpy(r.text + r.used, text, size)
    if cut:
        memcpy(r.text + r.used + size - 3, b"...", 3)
    r.sizes[which] = <uint16_t>size
    r.used = <uint16_t>(r.used + size)


cdef inline char* put_escaped(char* to, const char* text, size_t size, bint json) noexcept nogil:
    """What is not printable ASCII, and what would end the text: in JSON as the character of that number, else as
    Apache does."""
    cdef size_t i
    cdef uint8_t c
    for i in range(size):
        c = <uint8_t>text[i]
        if c == c'"' or c == c'\\':
            to[0] = c'\\'
            to[1] = <char>c
            to += 2
        elif 0x20 <= c < 0x7f:
            to[0] = <char>c
            to += 1
        elif json:
            to = put(to, b"\\u00", 4)
            put_hex(to, c, 2)
            to += 2
        else:
            to = put(to, b"\\x", 2)
            put_hex(to, c, 2)
            to += 2
    return to


cdef inline char* put_record_text(char* to, const Record* r, int which, bint json) noexcept nogil:
    cdef uint32_t at = 0
    cdef int i
    for i in range(which):
        at += r.sizes[i]
    return put_escaped(to, r.text + at, r.sizes[which], json)


cdef inline char* put_text_or_dash(char* to, const Record* r, int which) noexcept nogil:
    return put_record_text(to, r, which, False) if r.sizes[which] else put(to, b"-", 1)


cdef inline char* put_peer(char* to, const Record* r) noexcept nogil:
    cdef const uint8_t* a = <const uint8_t*>&r.peer + 4
    cdef char text[64]
    cdef uint32_t i
    if r.peer.sin6_family == AF_INET:
        for i in range(4):
            to = put_number(to, a[i])
            if i < 3:
                to = put(to, b".", 1)
        return to
    if r.peer.sin6_family == AF_INET6 and inet_ntop(AF_INET6, &r.peer.sin6_addr, text, sizeof(text)) is not NULL:
        return put(to, text, strlen(text))
    return put(to, b"unix", 4)


cdef inline char* put_local_time(char* to, time_t seconds) noexcept nogil:
    """[25/Nov/2026:04:10:00 +0000]"""
    cdef tm b
    cdef int minutes
    localtime_r(&seconds, &b)
    minutes = <int>(b.tm_gmtoff // 60)
    to = put(put_two(put(to, b"[", 1), b.tm_mday), b"/", 1)
    to = put(put_month(to, b.tm_mon), b"/", 1)
    to = put(put_number(to, <uint64_t>(b.tm_year + 1900)), b":", 1)
    to = put(put_two(to, b.tm_hour), b":", 1)
    to = put(put_two(to, b.tm_min), b":", 1)
    to = put(put_two(to, b.tm_sec), b" +" if minutes >= 0 else b" -", 2)
    if minutes < 0:
        minutes = -minutes
    return put(put_two(put_two(to, minutes // 60), minutes % 60), b"]", 1)


cdef inline char* put_utc_time(char* to, time_t seconds) noexcept nogil:
    """2026-11-25T04:10:00. (RFC 3339, up to its fraction)"""
    cdef tm b
    gmtime_r(&seconds, &b)
    to = put(put_number(to, <uint64_t>(b.tm_year + 1900)), b"-", 1)
    to = put(put_two(to, b.tm_mon + 1), b"-", 1)
    to = put(put_two(to, b.tm_mday), b"T", 1)
    to = put(put_two(to, b.tm_hour), b":", 1)
    to = put(put_two(to, b.tm_min), b":", 1)
    return put(put_two(to, b.tm_sec), b".", 1)


cdef inline char* put_time(char* to, int64_t ns, Face* face, bint json) noexcept nogil:
    cdef time_t seconds = <time_t>(ns // 1_000_000_000)
    cdef int ms = <int>(ns // 1_000_000 % 1000)
    if seconds != face.second:
        face.second = seconds
        face.size = <size_t>((put_utc_time(face.text, seconds) if json else put_local_time(face.text, seconds))
                             - face.text)
    to = put(to, face.text, face.size)
    if json:
        to[0] = <char>(c'0' + ms // 100)
        to = put(put_two(to + 1, ms % 100), b"Z", 1)
    return to


cdef inline char* put_micros(char* to, int64_t ns, const char* none, size_t size) noexcept nogil:
    return put_number(to, <uint64_t>(ns // 1000)) if ns >= 0 else put(to, none, size)


cdef inline char* put_id(char* to, const Record* r) noexcept nogil:
    return put_number(put(put_number(to, r.conn_id), b"-", 1), r.number)


cdef inline size_t line_combined(char* to, const Record* r, Face* face) noexcept nogil:
    """Apache's combined format; behind it microseconds in the queue, in the handler and until the reply had left,
    and the request's id."""
    cdef char* p = to
    p = put(put_peer(p, r), b" - - ", 5)
    p = put(put_time(p, r.at, face, False), b' "', 2)
    if r.sizes[METHOD]:
        p = put(put_record_text(p, r, METHOD, False), b" ", 1)
        p = put(put_record_text(p, r, TARGET, False), b" HTTP/1.", 8)
        p = put_number(p, r.minor)
    else:
        p = put(p, b"-", 1)
    p = put(put_number(put(p, b'" ', 2), r.status), b" ", 1)
    p = put_number(p, r.bytes) if r.bytes else put(p, b"-", 1)
    p = put(put_text_or_dash(put(p, b' "', 2), r, REFERER), b'" "', 3)
    p = put(put_text_or_dash(p, r, AGENT), b'" ', 2)
    p = put(put_micros(p, r.queue, b"-", 1), b" ", 1)
    p = put(put_micros(p, r.handler, b"-", 1), b" ", 1)
    p = put(put_micros(p, -1 if r.aborted else r.write, b"-", 1), b" ", 1)
    return <size_t>(put(put_id(p, r), b"\n", 1) - to)


cdef inline char* put_key(char* to, const char* key, size_t size) noexcept nogil:
    return put(put(put(to, b', "', 3), key, size), b'": ', 3)


cdef inline size_t line_json(char* to, const Record* r, Face* face) noexcept nogil:
    """One object a line. What is not known is null."""
    cdef char* p = to
    p = put(put_time(put(p, b'{"time": "', 10), r.at, face, True), b'"', 1)
    p = put(put_id(put(put_key(p, b"id", 2), b'"', 1), r), b'"', 1)
    p = put(put_peer(put(put_key(p, b"remote_addr", 11), b'"', 1), r), b'"', 1)
    p = put_key(p, b"method", 6)
    if r.sizes[METHOD]:
        p = put(put_record_text(put(p, b'"', 1), r, METHOD, True), b'"', 1)
        p = put(put_record_text(put(put_key(p, b"target", 6), b'"', 1), r, TARGET, True), b'"', 1)
        p = put(put_number(put(put_key(p, b"version", 7), b'"1.', 3), r.minor), b'"', 1)
    else:
        p = put(p, b'null, "target": null, "version": null', 37)
    p = put_number(put_key(p, b"status", 6), r.status)
    p = put_number(put_key(p, b"bytes", 5), r.bytes)
    p = put(put_record_text(put(put_key(p, b"referer", 7), b'"', 1), r, REFERER, True), b'"', 1)
    p = put(put_record_text(put(put_key(p, b"user_agent", 10), b'"', 1), r, AGENT, True), b'"', 1)
    p = put_micros(put_key(p, b"queue_us", 8), r.queue, b"null", 4)
    p = put_micros(put_key(p, b"handler_us", 10), r.handler, b"null", 4)
    p = put_micros(put_key(p, b"write_us", 8), r.write, b"null", 4)
    p = put_key(p, b"aborted", 7)
    p = put(p, b"true", 4) if r.aborted else put(p, b"false", 5)
    return <size_t>(put(p, b"}\n", 2) - to)
