"""The PROXY protocol: whom it is believed from, and what a header of it says.

Knows: both versions of the header (HAProxy's "The PROXY protocol", sections 2.1 and 2.2), networks. Never sees: a
descriptor, a clock, what becomes of a connection.
Invariant: a verdict depends on the shortest prefix that decides it, so any cut of the same bytes gives the same one;
it comes within PROXY_MAX bytes. Nothing outside [base, base + length) is read, nothing is allocated.

Where the text leaves a choice, this parser refuses: any command, family and protocol that it does not name together.
What stands behind the addresses (TLVs, a checksum among them) is skipped unread.
"""

from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t
from libc.string cimport memchr, memcmp, memcpy, memset

from fastserve.engine.http1 cimport DONE, MORE, Span
from fastserve.engine.net cimport AF_INET, AF_INET6, AF_UNIX, sockaddr_in6


cdef extern from "<arpa/inet.h>" nogil:
    int inet_pton(int family, const char* text, void* to) noexcept


cdef enum:
    PROXY_LINE_MAX = 107        # bytes of a header of version 1, its CRLF among them
    PROXY_MAX = 4096            # and of version 2, with all that is skipped
    NO_PROXY = 2                # a verdict beside MORE and DONE: this is no header

cdef enum:                      # who is at the other end of a proxy's connection
    SOMEBODY = 0                # nothing says who: a client, or the proxy itself
    CLIENT = 1                  # a client of a known address

cdef enum:
    WORD_MAX = 46               # bytes of the longest address in words, and a NUL
    FIXED = 16                  # bytes of a header of version 2 before its addresses


cdef struct Told:
    # What a header says.
    uint32_t size               # bytes of the header
    uint8_t who
    sockaddr_in6 client         # of a CLIENT: as an accepted socket would have it, for IPv4 too

cdef struct Network:
    uint8_t address[16]         # only the first `size` bytes mean anything
    uint8_t size                # 4 or 16
    uint8_t bits                # of them that count

cdef struct Trusted:
    # From whom a header is believed.
    Network* networks
    uint32_t n
    bint locals                 # the peers of unix sockets


# Who may send one

cdef inline bint same_bits(const uint8_t* a, const uint8_t* b, uint32_t bits) noexcept nogil:
    cdef uint32_t whole = bits >> 3, rest = bits & 7
    return memcmp(a, b, whole) == 0 and (rest == 0 or (a[whole] ^ b[whole]) >> (8 - rest) == 0)


cdef inline bint is_trusted(const Trusted* t, const sockaddr_in6* peer) noexcept nogil:
    """As `forwarded.Trust` has it: IPv4 within IPv6 is IPv4."""
    cdef const uint8_t* a = <const uint8_t*>&peer.sin6_addr
    cdef uint32_t size = 16, i
    if peer.sin6_family == AF_UNIX:
        return t.locals
    if peer.sin6_family == AF_INET:
        a, size = <const uint8_t*>peer + 4, 4
    elif peer.sin6_family != AF_INET6:
        return False
    elif memcmp(a, b"\0\0\0\0\0\0\0\0\0\0\xff\xff", 12) == 0:
        a, size = a + 12, 4
    for i in range(t.n):
        if t.networks[i].size == size and same_bits(a, t.networks[i].address, t.networks[i].bits):
            return True
    return False


# What it says

cdef inline int proxy_parse(Told* t, const char* base, uint32_t length) noexcept nogil:
    """Judges what has come of a connection: DONE, NO_PROXY, or MORE, which asks to be called again with the same bytes
    and further ones, wherever they lie by then."""
    if length == 0:
        return MORE
    if base[0] == c'P':
        return proxy_line(t, base, length)
    return proxy_block(t, base, length)


# Version 1: words in one line

cdef inline int proxy_line(Told* t, const char* base, uint32_t length) noexcept nogil:
    cdef uint32_t room = length if length < PROXY_LINE_MAX else PROXY_LINE_MAX
    cdef uint32_t end = 0
    if memcmp(base, b"PROXY ", room if room < 6 else 6):
        return NO_PROXY
    while end < room and base[end] != c'\r':
        end += 1
    if end + 1 >= room:
        return MORE if room < PROXY_LINE_MAX else NO_PROXY
    if base[end + 1] != c'\n':
        return NO_PROXY
    t.size = end + 2
    if end >= 13 and memcmp(base + 6, b"UNKNOWN", 7) == 0 and (end == 13 or base[13] == c' '):
        # Whatever stands behind that word.
        t.who = SOMEBODY
        return DONE
    memset(&t.client, 0, sizeof(t.client))
    if end > 11 and memcmp(base + 6, b"TCP4 ", 5) == 0:
        t.client.sin6_family = <unsigned short>AF_INET
    elif end > 11 and memcmp(base + 6, b"TCP6 ", 5) == 0:
        t.client.sin6_family = <unsigned short>AF_INET6
    else:
        return NO_PROXY
    t.who = CLIENT
    return DONE if proxy_ends(t, base, 11, end) else NO_PROXY


cdef inline bint proxy_ends(Told* t, const char* base, uint32_t at, uint32_t end) noexcept nogil:
    """Source address, destination address, source port, destination port; one blank between two of them."""
    cdef Span words[4]
    cdef sockaddr_in6 unused
    cdef int32_t port
    cdef uint32_t n = 0
    words[0].at = at
    while True:
        while at < end and base[at] != c' ':
            at += 1
        words[n].size = at - words[n].at
        n += 1
        if at == end or n == 4:
            break
        at += 1
        words[n].at = at
    if n != 4 or at != end:
        return False
    unused.sin6_family = t.client.sin6_family
    port = proxy_port(base + words[2].at, words[2].size)
    if port < 0 or proxy_port(base + words[3].at, words[3].size) < 0:
        return False
    (<uint8_t*>&t.client.sin6_port)[0] = <uint8_t>(port >> 8)
    (<uint8_t*>&t.client.sin6_port)[1] = <uint8_t>port
    return (proxy_address(&t.client, base + words[0].at, words[0].size)
            and proxy_address(&unused, base + words[1].at, words[1].size))


cdef inline void* address_of(sockaddr_in6* a) noexcept nogil:
    return <char*>a + 4 if a.sin6_family == AF_INET else <char*>&a.sin6_addr


cdef inline bint proxy_address(sockaddr_in6* a, const char* text, uint32_t size) noexcept nogil:
    """Of the family that `a` has. False: it is none."""
    cdef char word[WORD_MAX]
    if size >= WORD_MAX or memchr(text, 0, size) is not NULL:
        return False
    memcpy(word, text, size)
    word[size] = 0
    return inet_pton(a.sin6_family, word, address_of(a)) == 1


cdef inline int32_t proxy_port(const char* text, uint32_t size) noexcept nogil:
    """Decimal without zeros in front; -1: it is none."""
    cdef int32_t port = 0
    cdef uint32_t i
    if size == 0 or size > 5 or (text[0] == c'0' and size > 1):
        return -1
    for i in range(size):
        if text[i] < c'0' or text[i] > c'9':
            return -1
        port = 10 * port + (text[i] - c'0')
    return port if port <= 65535 else -1


# Version 2: a block of bytes

cdef inline int proxy_block(Told* t, const char* base, uint32_t length) noexcept nogil:
    cdef const uint8_t* b = <const uint8_t*>base
    cdef uint32_t size, need
    if memcmp(base, b"\r\n\r\n\0\r\nQUIT\n", length if length < 12 else 12):
        return NO_PROXY
    if length < FIXED:
        return MORE
    size = FIXED + (<uint32_t>b[14] << 8 | b[15])
    memset(&t.client, 0, sizeof(t.client))
    if b[12] == 0x20 or (b[12] == 0x21 and b[13] == 0x00):
        # LOCAL, whatever family it names: of the proxy's own connections, but HAProxy says it of those, too, whose
        # client it has no address for. And unspecified.
        t.who, need = SOMEBODY, 0
    elif b[12] != 0x21:
        return NO_PROXY
    elif b[13] == 0x31 or b[13] == 0x32:
        # From unix socket to unix socket, on another machine for all that we know.
        t.who, need = SOMEBODY, 216
    elif b[13] == 0x12 or b[13] == 0x22:
        # Datagrams: as good as unspecified, as the text wants it from whoever does not know them.
        t.who, need = SOMEBODY, 12 if b[13] == 0x12 else 36
    elif b[13] == 0x11:
        t.who, need = CLIENT, 12
        t.client.sin6_family = <unsigned short>AF_INET
    elif b[13] == 0x21:
        t.who, need = CLIENT, 36
        t.client.sin6_family = <unsigned short>AF_INET6
    else:
        return NO_PROXY
    if size < FIXED + need or size > PROXY_MAX:
        return NO_PROXY
    if length < size:
        return MORE
    t.size = size
    if t.who == CLIENT:
        # Both addresses, then both ports: the client's come first.
        memcpy(address_of(&t.client), b + FIXED, 4 if need == 12 else 16)
        memcpy(&t.client.sin6_port, b + FIXED + need - 4, 2)
    return DONE
