"""The head of a request: request line, fields, and what they say about host, framing and persistence.

Knows: RFC 9112 (2, 3, 5, 6, 7.1.1, 9.3), RFC 9110 (5, 7, 8.6, 10.1.1), the authority of RFC 3986.
Never sees: a descriptor, a clock, the body, a policy: CONNECT and TRACE are delivered, others decide.
Invariant: a verdict depends on the shortest prefix that decides it, so any cut of the same bytes gives
the same verdict and the same offsets. Nothing outside [base, base + length) is read, nothing is
allocated or copied.

Where the RFCs leave a choice, this parser refuses:
- lines end with CRLF only; one empty line is skipped before the request line, not two (RFC 9112 2.2);
- one SP between the parts of the request line (RFC 9112 3); methods longer than METHOD_MAX are 400;
- HTTP/1.2 to HTTP/1.9 are read as 1.1 (RFC 9110 2.5), every other HTTP/d.d is 505, the rest 400;
- folded lines (RFC 9112 5.2), blanks before the colon (5.1) and an empty name are 400;
- Host is never empty, never twice, and the same authority as an absolute target (RFC 9112 3.2);
- Content-Length is given once, with digits only: no list, no repetition (RFC 9110 8.6 lets us refuse);
- Transfer-Encoding never stands beside Content-Length or on HTTP/1.0; codings other than one `chunked`
  are 501 when chunked comes last, and 400 otherwise, because the body has no end then (RFC 9112 6.3);
- Expect is `100-continue`, given once, or 417; HTTP/1.0 ignores it (RFC 9110 10.1.1);
- Connection is a list of tokens (empty members are skipped), anything else in it is 400.

Bytes are judged as they come, the meaning of a line when the line is whole, the message when the head is.
"""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t
from libc.string cimport memset

from fastserve.engine.limits cimport LENGTH_DIGITS_MAX, METHOD_MAX, Limits
from fastserve.engine.scan cimport (
    scan_eight, scan_hex, scan_likely, scan_mark, scan_name, scan_rare, scan_same, scan_same_text,
    scan_target, scan_token, scan_value,
)

cdef enum:                          # a verdict: one of these, or the status to answer (400 to 505)
    MORE = 0
    DONE = 1

cdef enum:                          # the form of the target, RFC 9112 3.2
    ORIGIN = 0                      # /path?query
    ABSOLUTE = 1                    # http://authority/path?query
    AUTHORITY = 2                   # host:port, of CONNECT alone
    ASTERISK = 3                    # *, of OPTIONS alone

cdef enum:                          # what the fields said, before the end of the head weighs it
    SAID_CLOSE = 1
    SAID_KEEP_ALIVE = 2
    SAID_UPGRADE = 4                # Connection: upgrade
    SAID_PROTOCOL = 8               # Upgrade: something
    SAID_CODING = 16                # Transfer-Encoding, any
    SAID_CHUNKED = 32
    SAID_CHUNKED_LAST = 64          # and no other coding after it
    SAID_OTHER_CODING = 128
    SAID_CONTINUE = 256             # Expect: 100-continue
    SAID_EXPECT = 512               # Expect, any

cdef struct Span:
    uint32_t at                     # from the first byte of the message: survives a move of the buffer
    uint32_t size

cdef struct Field:
    Span name
    Span value                      # without the blanks around it

cdef struct Host:
    Span text                       # uri-host [":" port]
    uint32_t name                   # bytes of `text` before the port
    int32_t port                    # -1: none given

cdef struct Head:
    # of one head, zeroed by http1_begin
    uint32_t at                     # whole lines before this are consumed; a partial line is read again
    uint32_t size                   # bytes of the head with its empty line; valid when DONE
    uint32_t n_fields
    uint32_t said
    Span method
    Span target
    Span path                       # may be empty in ABSOLUTE form: then it means "/"
    Span query                      # without '?'; see has_query
    Host authority                  # of ABSOLUTE and AUTHORITY form
    Host host                       # of the Host field; see has_host
    int64_t content_length          # -1: none
    uint8_t form
    uint8_t minor                   # 0, or 1 for 1.1 and later
    uint8_t has_query
    uint8_t has_host
    uint8_t https                   # ABSOLUTE form with that scheme
    uint8_t keep_alive              # what follows from version and Connection; valid when DONE, as all below
    uint8_t chunked
    uint8_t expect_continue
    uint8_t upgrade                 # asked for by Connection and Upgrade together
    # of the connection: the caller owns the memory of `fields`
    uint32_t max_fields
    Field* fields


cdef inline void http1_begin(Head* h) noexcept nogil:
    """Ready for the next head; `fields` and `max_fields` stay."""
    memset(h, 0, <char*>&h.max_fields - <char*>h)
    h.content_length = -1


cdef inline int http1_parse(Head* h, const char* base, uint32_t length, const Limits* lim) noexcept nogil:
    """Judges the message that starts at base, of which `length` bytes have come.

    MORE asks to be called again with the same bytes and further ones, wherever they lie by then.
    """
    cdef uint32_t end = length if length < lim.head_size else lim.head_size
    cdef int verdict
    if h.method.size == 0:
        verdict = request_line(h, base, end, lim)
        if verdict == MORE and end == lim.head_size:
            return 414
        if verdict != DONE:
            return verdict
    verdict = field_lines(h, base, end, lim)
    if verdict == MORE and end == lim.head_size:
        return 431
    return verdict


# The request line

cdef inline int request_line(Head* h, const char* base, uint32_t end, const Limits* lim) noexcept nogil:
    cdef uint32_t method = h.at, target, version, stop
    cdef int verdict
    if method == end:
        return MORE
    if base[method] == c'\r' and method == 0:
        if end == 1:
            return MORE
        if base[1] != c'\n':
            return 400
        h.at = method = 2

    stop = scan_token(base, method, end)
    if stop - method > METHOD_MAX:
        return 400
    if stop == end:
        return MORE
    if stop == method or base[stop] != c' ':
        return 400

    target = stop + 1
    if target == end:
        return MORE
    if base[target] != c'/' and not may_open_target(base, method, stop, base[target]):
        return 400
    stop = scan_target(base, target, end)
    if stop - target > lim.target_size:
        return 414
    if stop == end:
        return MORE
    if base[stop] != c' ':
        return 400

    version = stop + 1
    if scan_likely(end - version >= 10 and scan_eight(base + version) == scan_eight(b"HTTP/1.1")
                   and base[version + 8] == c'\r' and base[version + 9] == c'\n'):
        h.minor = 1
    else:
        verdict = version_and_end(h, base + version, end - version)
        if verdict != DONE:
            return verdict

    h.target.at = target
    h.target.size = stop - target
    verdict = read_target(h, base, method, target - 1)
    if verdict != DONE:
        return verdict
    h.method.at = method
    h.method.size = target - 1 - method
    h.at = version + 10
    return DONE


cdef inline bint may_open_target(const char* base, uint32_t method, uint32_t stop, char first) noexcept nogil:
    """Whether a target may start so, other than with '/'; the rest is settled when it is whole."""
    return first == c'h' or first == c'H' or first == c'*' or is_connect(base, method, stop)


cdef inline bint is_connect(const char* base, uint32_t method, uint32_t stop) noexcept nogil:
    return stop - method == 7 and scan_eight(base + method) == scan_eight(b"CONNECT ")


cdef inline int version_and_end(Head* h, const char* text, uint32_t size) noexcept nogil:
    """HTTP/d.d CRLF, byte by byte: what the fast comparison did not settle."""
    cdef const char* name = b"HTTP/"
    cdef uint32_t i, major, minor
    for i in range(5):
        if i == size:
            return MORE
        if text[i] != name[i]:
            return 400
    if size == 5:
        return MORE
    major = <uint8_t>text[5] - <uint32_t>c'0'
    if major > 9:
        return 400
    if size == 6:
        return MORE
    if text[6] != c'.':
        return 400
    if size == 7:
        return MORE
    minor = <uint8_t>text[7] - <uint32_t>c'0'
    if minor > 9:
        return 400
    if major != 1:
        return 505
    if size == 8:
        return MORE
    if text[8] != c'\r':
        return 400
    if size == 9:
        return MORE
    if text[9] != c'\n':
        return 400
    h.minor = minor != 0
    return DONE


cdef inline int read_target(Head* h, const char* base, uint32_t method, uint32_t method_stop) noexcept nogil:
    """Splits a whole target by its form (RFC 9112 3.2)."""
    cdef uint32_t at = h.target.at, end = h.target.at + h.target.size, scheme
    if scan_rare(is_connect(base, method, method_stop)):
        h.form = AUTHORITY
        return DONE if read_host(&h.authority, base, at, end) and h.authority.port >= 0 else 400
    if scan_likely(base[at] == c'/'):
        split_path(h, base, at, end)
        return DONE
    if base[at] == c'*':
        h.form = ASTERISK
        return DONE if end - at == 1 and method_stop - method == 7 \
            and scan_eight(base + method) == scan_eight(b"OPTIONS ") else 400

    if end - at > 7 and scan_same(base + at, b"http://", 7):
        scheme = 7
    elif end - at > 8 and scan_same(base + at, b"https://", 8):
        scheme = 8
        h.https = True
    else:
        return 400
    h.form = ABSOLUTE
    at += scheme
    while at < end and base[at] != c'/' and base[at] != c'?':
        at += 1
    if not read_host(&h.authority, base, h.target.at + scheme, at):
        return 400
    split_path(h, base, at, end)
    return DONE


cdef inline void split_path(Head* h, const char* base, uint32_t at, uint32_t end) noexcept nogil:
    cdef uint32_t mark = scan_mark(base, at, end)
    h.path.at = at
    h.path.size = mark - at
    if mark != end:
        h.has_query = True
        h.query.at = mark + 1
        h.query.size = end - mark - 1


# The fields

cdef inline int field_lines(Head* h, const char* base, uint32_t end, const Limits* lim) noexcept nogil:
    """Takes whole field lines (RFC 9112 5) up to the empty line."""
    cdef uint32_t max_fields = h.max_fields if h.max_fields < lim.fields else lim.fields
    cdef uint32_t at = h.at, colon, value, stop, last
    cdef Field* field
    cdef int refused
    while True:
        if at == end:
            return MORE
        if base[at] == c'\r':
            if at + 1 == end:
                return MORE
            if base[at + 1] != c'\n':
                return 400
            h.at = h.size = at + 2
            return weigh(h, base)
        if h.n_fields == max_fields:
            return 431

        colon = scan_token(base, at, end)
        if colon == end:
            return MORE
        if base[colon] != c':' or colon == at:
            return 400
        value = colon + 1
        while value < end and (base[value] == c' ' or base[value] == c'\t'):
            value += 1
        stop = scan_value(base, value, end)
        if scan_rare(end - stop < 2):
            return MORE if stop == end or base[stop] == c'\r' else 400
        if base[stop] != c'\r' or base[stop + 1] != c'\n':
            return 400
        last = stop
        while last > value and (base[last - 1] == c' ' or base[last - 1] == c'\t'):
            last -= 1

        field = &h.fields[h.n_fields]
        field.name.at = at
        field.name.size = colon - at
        field.value.at = value
        field.value.size = last - value
        refused = note_field(h, base, base + at, colon - at, value, last)
        if scan_rare(refused):
            return refused
        h.n_fields += 1
        h.at = at = stop + 2


cdef inline int note_field(Head* h, const char* base, const char* name, uint32_t size,
                           uint32_t at, uint32_t end) noexcept nogil:
    """What a field with the value [at, end) says to the server itself: 0, or the status that refuses it."""
    if size == 4:
        if scan_same(name, b"host", 4):
            return note_host(h, base, at, end)
    elif size == 6:
        if scan_same(name, b"expect", 6):
            note_expect(h, base, at, end)
    elif size == 7:
        if at < end and scan_same(name, b"upgrade", 7):
            h.said |= SAID_PROTOCOL
    elif size == 10:
        if scan_same(name, b"connection", 10):
            return note_connection(h, base, at, end)
    elif size == 14:
        if scan_same(name, b"content-length", 14):
            return note_length(h, base, at, end)
    elif size == 17:
        if scan_same(name, b"transfer-encoding", 17):
            return note_coding(h, base, at, end)
    return 0


cdef inline int note_host(Head* h, const char* base, uint32_t at, uint32_t end) noexcept nogil:
    if h.has_host or not read_host(&h.host, base, at, end):
        return 400
    h.has_host = True
    return 0


cdef inline void note_expect(Head* h, const char* base, uint32_t at, uint32_t end) noexcept nogil:
    if end - at == 12 and scan_same(base + at, b"100-continue", 12) and not h.said & SAID_EXPECT:
        h.said |= SAID_CONTINUE
    else:
        h.said &= ~<uint32_t>SAID_CONTINUE
    h.said |= SAID_EXPECT


cdef inline int note_connection(Head* h, const char* base, uint32_t at, uint32_t end) noexcept nogil:
    cdef Span option
    while next_member(base, &at, end, &option):
        if option.size == 0:
            continue
        if scan_token(base, option.at, option.at + option.size) != option.at + option.size:
            return 400
        if option.size == 5 and scan_same(base + option.at, b"close", 5):
            h.said |= SAID_CLOSE
        elif option.size == 10 and scan_same(base + option.at, b"keep-alive", 10):
            h.said |= SAID_KEEP_ALIVE
        elif option.size == 7 and scan_same(base + option.at, b"upgrade", 7):
            h.said |= SAID_UPGRADE
    return 0


cdef inline int note_length(Head* h, const char* base, uint32_t at, uint32_t end) noexcept nogil:
    cdef int64_t length = 0
    cdef uint32_t digit
    if h.content_length >= 0 or at == end or end - at > LENGTH_DIGITS_MAX:
        return 400
    while at < end:
        digit = <uint8_t>base[at] - <uint32_t>c'0'
        if digit > 9:
            return 400
        length = length * 10 + digit
        at += 1
    h.content_length = length
    return 0


cdef inline int note_coding(Head* h, const char* base, uint32_t at, uint32_t end) noexcept nogil:
    """Several fields are one list (RFC 9110 5.3), so what comes last is known only at the end of the head."""
    cdef Span coding
    h.said |= SAID_CODING
    while next_member(base, &at, end, &coding):
        if coding.size == 7 and scan_same(base + coding.at, b"chunked", 7):
            if h.said & SAID_CHUNKED:
                return 400
            h.said |= SAID_CHUNKED | SAID_CHUNKED_LAST
        elif coding.size == 0:
            return 400
        else:
            h.said = (h.said | SAID_OTHER_CODING) & ~<uint32_t>SAID_CHUNKED_LAST
    return 0


cdef inline bint next_member(const char* base, uint32_t* at, uint32_t end, Span* member) noexcept nogil:
    """The next part of a comma-separated value (RFC 9110 5.6.1), without the blanks around it."""
    cdef uint32_t start = at[0], stop
    if start > end:
        return False
    stop = start
    while stop < end and base[stop] != c',':
        stop += 1
    at[0] = stop + 1
    while start < stop and (base[start] == c' ' or base[start] == c'\t'):
        start += 1
    while stop > start and (base[stop - 1] == c' ' or base[stop - 1] == c'\t'):
        stop -= 1
    member.at = start
    member.size = stop - start
    return True


# The whole

cdef inline int weigh(Head* h, const char* base) noexcept nogil:
    """What the fields say together, once all are there: DONE, or the status that refuses the message."""
    cdef uint32_t said = h.said
    if not h.has_host:
        if h.minor:                                     # RFC 9112 3.2
            return 400
    elif h.form == ABSOLUTE and not same_host(h, base):
        return 400

    if scan_rare(said & SAID_CODING):                   # RFC 9112 6.1, 6.3
        if h.minor == 0 or h.content_length >= 0 or not said & SAID_CHUNKED_LAST:
            return 400
        if said & SAID_OTHER_CODING:
            return 501
        h.chunked = True

    if h.minor:
        if scan_rare(said & SAID_EXPECT):
            if not said & SAID_CONTINUE:
                return 417
            h.expect_continue = True
        h.keep_alive = not said & SAID_CLOSE            # RFC 9112 9.3
        h.upgrade = (said & (SAID_UPGRADE | SAID_PROTOCOL)) == (SAID_UPGRADE | SAID_PROTOCOL)
    else:
        h.keep_alive = (said & (SAID_CLOSE | SAID_KEEP_ALIVE)) == SAID_KEEP_ALIVE
    return DONE


# Hosts: uri-host [":" port], RFC 3986 3.2.2 and 3.2.3, without userinfo

cdef inline bint read_host(Host* host, const char* base, uint32_t at, uint32_t end) noexcept nogil:
    cdef uint32_t stop, digit
    cdef int32_t port = -1
    if at < end and base[at] == c'[':
        stop = ipv6_stop(base, at + 1, end)
        if stop == end:
            return False
        stop += 1
    else:
        stop = scan_name(base, at, end)
        while stop < end and base[stop] == c'%':
            if end - stop < 3 or scan_hex(base[stop + 1]) > 15 or scan_hex(base[stop + 2]) > 15:
                return False
            stop = scan_name(base, stop + 3, end)
    if stop == at:                                      # an http URI has a host (RFC 9110 4.2.1)
        return False
    host.text.at = at
    host.text.size = end - at
    host.name = stop - at
    if stop < end:
        if base[stop] != c':':
            return False
        stop += 1
        if stop < end:
            port = 0
        while stop < end:
            digit = <uint8_t>base[stop] - <uint32_t>c'0'
            if digit > 9:
                return False
            port = port * 10 + <int32_t>digit
            if port > 65535:
                return False
            stop += 1
    host.port = port
    return True


cdef inline uint32_t ipv6_stop(const char* base, uint32_t at, uint32_t end) noexcept nogil:
    """The offset of the ']' behind an IPv6 address, or `end` if it is none. No zone, no IPvFuture."""
    cdef uint32_t groups = 0, start
    cdef bint gap = False
    if end - at >= 2 and base[at] == c':' and base[at + 1] == c':':
        gap = True
        at += 2
    while at < end and base[at] != c']':
        start = at
        while at < end and scan_hex(base[at]) < 16:
            at += 1
        if at < end and base[at] == c'.':
            at = ipv4_stop(base, start, end)
            groups += 2
            break
        if at == start or at - start > 4 or at == end:
            return end
        groups += 1
        if base[at] == c']':
            break
        if base[at] != c':':
            return end
        at += 1
        if at < end and base[at] == c':':
            if gap:
                return end
            gap = True
            at += 1
        elif at < end and base[at] == c']':
            return end
    if at == end or base[at] != c']' or (groups > 7 if gap else groups != 8):
        return end
    return at


cdef inline uint32_t ipv4_stop(const char* base, uint32_t at, uint32_t end) noexcept nogil:
    """The offset behind a dotted address, or `end` if it is none. Octets have no leading zero."""
    cdef uint32_t octet, digit, start, number
    for octet in range(4):
        if octet:
            if at == end or base[at] != c'.':
                return end
            at += 1
        start = at
        number = 0
        while at < end:
            digit = <uint8_t>base[at] - <uint32_t>c'0'
            if digit > 9:
                break
            number = number * 10 + digit
            if number > 255 or (at > start and base[start] == c'0'):
                return end
            at += 1
        if at == start:
            return end
    return at


cdef inline bint same_host(const Head* h, const char* base) noexcept nogil:
    """Whether Host names the authority of the target: in any case, a missing port being the scheme's."""
    cdef int32_t usual = 443 if h.https else 80
    cdef int32_t one = h.authority.port if h.authority.port >= 0 else usual
    cdef int32_t other = h.host.port if h.host.port >= 0 else usual
    return (one == other and h.authority.name == h.host.name
            and scan_same_text(base + h.authority.text.at, base + h.host.text.at, h.host.name))
