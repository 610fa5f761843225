"""The chunked coding (RFC 9112 section 7.1), decoded as it comes.

Knows: chunk sizes and extensions, the CRLF behind each chunk, the trailer section and the names it must
not hold. Never sees: a descriptor, a clock, where the bytes lie in the end.
Invariant: every byte is judged when it is read and not looked at again, so any cut of the bytes gives the
same verdict and the same output; what is written never passes what is read, so a body can be decoded
where it lies.

Where the RFC leaves a choice, this decoder refuses:
- a chunk that would take the body beyond its limit is 413 at the end of its size line;
- lines end with CRLF only (erratum 7633 confirms: the leniency for a bare LF is not meant here);
- a size is 1 to CHUNK_DIGITS_MAX hex digits, zeros included; blanks behind it are taken only before ';'
  (the BWS of RFC 9112 7.1.1);
- an extension is a run of field-value bytes: neither its names nor its quotes mean anything, and CRLF ends
  it even within quotes; a line beyond CHUNK_LINE_MAX, or extensions beyond CHUNK_EXT_MAX in one body,
  are 400;
- trailer fields follow the grammar of the head and are 431 beyond TRAILER_MAX or TRAILER_FIELDS_MAX;
  those of framing, routing, authentication and content format are 400 (RFC 9110 6.5.1).
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t
from libc.string cimport memmove, memset

from fastserve.engine.http1 cimport DONE, MORE
from fastserve.engine.limits cimport (
    CHUNK_DIGITS_MAX, CHUNK_EXT_MAX, CHUNK_LINE_MAX, TRAILER_FIELDS_MAX, TRAILER_MAX,
)
from fastserve.engine.scan cimport SCAN_TCHAR, SCAN_VALUE, scan_hex, scan_is, scan_same

cdef enum:                          # what the next byte is
    AT_SIZE = 0                     # the first hex digit of a chunk
    IN_SIZE = 1
    BEHIND_SIZE = 2                 # a blank, or the ';' that it must lead to
    IN_EXTENSION = 3
    SIZE_LF = 4
    IN_DATA = 5
    DATA_CR = 6
    DATA_LF = 7
    AT_TRAILER = 8                  # the first byte of a field, or the CR of the empty line
    IN_TRAILER_NAME = 9
    IN_TRAILER_VALUE = 10
    TRAILER_LF = 11
    LAST_LF = 12
    AFTER_BODY = 13

cdef enum:
    NAME_KEPT = 24                  # longer than every name that `unfit_trailer` knows

cdef struct Chunked:
    int64_t size                    # bytes of the body decoded so far
    int64_t left                    # bytes still to come of the chunk that was announced
    int64_t limit                   # of the whole body
    uint32_t line                   # bytes of this size line
    uint32_t extensions             # bytes of all extensions
    uint32_t trailer                # bytes of the trailer section as sent
    uint32_t n_trailers             # fields in it
    uint8_t state
    uint8_t digits
    uint8_t name_size
    char name[NAME_KEPT]            # of the trailer field being read; cut off when longer


cdef enum:
    NO_LIMIT = 0x7fffffffffffffff

cdef inline void chunked_begin(Chunked* d, int64_t limit) noexcept nogil:
    memset(d, 0, sizeof(Chunked))
    d.limit = limit


cdef inline int chunked_feed(Chunked* d, const char* src, size_t n, size_t* used,
                             char* dst, size_t room, size_t* made) noexcept nogil:
    """Decodes what came: `used` bytes of src are spent, `made` bytes of dst written, whatever the verdict.

    MORE: all bytes are spent, or dst is full. DONE: the body ended at src + used; what follows is the next
    request. Any other verdict is the status to answer, and the end of this decoder.

    dst receives the body and, behind its last byte, the trailer section: its field lines as they were sent,
    without the empty line. What `size` did not grow by is trailer: made - (size now - size before) bytes at
    the end. dst may equal src, or lie before it in the same memory.
    """
    cdef size_t at = 0, out = 0, take
    cdef int verdict = DONE if d.state == AFTER_BODY else MORE
    cdef bint kept
    cdef char c
    while at < n and verdict == MORE:
        if d.state == IN_DATA:
            take = n - at
            if <int64_t>take > d.left:
                take = <size_t>d.left
            if take > room - out:
                take = room - out
            if take == 0:
                break
            if dst + out != src + at:
                memmove(dst + out, src + at, take)
            at += take
            out += take
            d.size += take
            d.left -= take
            if d.left == 0:
                d.state = DATA_CR
            continue

        c = src[at]
        if d.state < AT_TRAILER:
            verdict = chunk_byte(d, c)
        else:
            kept = not (d.state == LAST_LF or (d.state == AT_TRAILER and c == c'\r'))
            if kept and out == room:
                break
            verdict = trailer_byte(d, c)
            if kept and verdict == MORE:
                dst[out] = c
                out += 1
        if verdict == MORE or verdict == DONE:
            at += 1
    used[0] = at
    made[0] = out
    return verdict


cdef inline int chunk_byte(Chunked* d, char c) noexcept nogil:
    """One byte of what surrounds the data of a chunk."""
    cdef uint32_t digit
    if d.state == DATA_CR:
        d.state = DATA_LF
        return MORE if c == c'\r' else 400
    if d.state == DATA_LF:
        d.state = AT_SIZE
        d.line = d.digits = 0
        return MORE if c == c'\n' else 400

    d.line += 1
    if d.line > CHUNK_LINE_MAX:
        return 400
    if d.state == SIZE_LF:
        d.state = IN_DATA if d.left else AT_TRAILER
        if c != c'\n':
            return 400
        return MORE if d.left <= d.limit - d.size else 413
    if c == c'\r' and (d.state == IN_SIZE or d.state == IN_EXTENSION):
        d.state = SIZE_LF
        return MORE
    if d.state <= IN_SIZE:
        digit = scan_hex(c)
        if digit < 16:
            d.state = IN_SIZE
            d.digits += 1
            if d.digits > CHUNK_DIGITS_MAX:
                return 400
            d.left = d.left << 4 | digit
            return MORE
        if d.state == AT_SIZE:
            return 400

    d.extensions += 1
    if d.extensions > CHUNK_EXT_MAX:
        return 400
    if d.state == IN_EXTENSION:
        return MORE if scan_is(c, SCAN_VALUE) else 400
    d.state = IN_EXTENSION if c == c';' else BEHIND_SIZE
    return MORE if c == c';' or c == c' ' or c == c'\t' else 400


cdef inline int trailer_byte(Chunked* d, char c) noexcept nogil:
    """One byte of the trailer section (RFC 9112 7.1.2): field lines and an empty line."""
    d.trailer += 1
    if d.trailer > TRAILER_MAX:
        return 431
    if d.state == LAST_LF:
        d.state = AFTER_BODY
        return DONE if c == c'\n' else 400
    if d.state == TRAILER_LF:
        d.state = AT_TRAILER
        return MORE if c == c'\n' else 400
    if d.state == IN_TRAILER_VALUE:
        if c == c'\r':
            d.state = TRAILER_LF
            return MORE
        return MORE if scan_is(c, SCAN_VALUE) else 400

    if d.state == AT_TRAILER:
        if c == c'\r':
            d.state = LAST_LF
            return MORE
        d.n_trailers += 1
        if d.n_trailers > TRAILER_FIELDS_MAX:
            return 431
        d.name_size = 0
    elif c == c':':
        d.state = IN_TRAILER_VALUE
        return 400 if unfit_trailer(d.name, d.name_size) else MORE
    if not scan_is(c, SCAN_TCHAR):
        return 400
    d.state = IN_TRAILER_NAME
    if d.name_size < NAME_KEPT:
        d.name[d.name_size] = c
        d.name_size += 1
    return MORE


cdef inline bint unfit_trailer(const char* name, uint32_t size) noexcept nogil:
    """Names that would change how a message is framed, routed or believed if taken after its body."""
    if size >= 6 and scan_same(name, b"proxy-", 6):
        return True
    if size >= 12 and scan_same(name, b"x-forwarded-", 12):
        return True
    if size == 2:
        return scan_same(name, b"te", 2)
    if size == 4:
        return scan_same(name, b"host", 4)
    if size == 5:
        return scan_same(name, b"range", 5)
    if size == 6:
        return scan_same(name, b"cookie", 6) or scan_same(name, b"expect", 6)
    if size == 7:
        return scan_same(name, b"trailer", 7) or scan_same(name, b"upgrade", 7)
    if size == 9:
        return scan_same(name, b"forwarded", 9) or scan_same(name, b"x-real-ip", 9)
    if size == 10:
        return scan_same(name, b"connection", 10) or scan_same(name, b"keep-alive", 10)
    if size == 12:
        return scan_same(name, b"content-type", 12) or scan_same(name, b"max-forwards", 12)
    if size == 13:
        return scan_same(name, b"authorization", 13) or scan_same(name, b"content-range", 13)
    if size == 14:
        return scan_same(name, b"content-length", 14)
    if size == 16:
        return scan_same(name, b"content-encoding", 16)
    if size == 17:
        return scan_same(name, b"transfer-encoding", 17)
    return False
