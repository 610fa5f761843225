# What must hold of any bytes at all: the claims of http1.pxd, body.pxd and proxy.pxd, told of one input.
#
# Knows: the parser of heads, the decoder of bodies, the reader of PROXY headers, and their contracts. Never sees: a
# server, where inputs come from, an expected verdict (the cases of tests/cases have those).
# Invariant: each fuzz_... answers NULL, or names the claim that this input breaks; the same input gives the
# same answer, because cuts, rooms and limits are drawn from its own bytes. Whatever the engine sees lies in
# memory of exactly its size, so that AddressSanitizer sees a step beyond.
#
# Included by _probe.pyx; tests/fuzz/run.sh calls fuzz_head, fuzz_body, fuzz_message and fuzz_proxy from C, tests by
# `fuzz`.

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcmp, memcpy, memmove, memset

from fastserve.engine.limits cimport TRAILER_FIELDS_MAX, TRAILER_MAX
from fastserve.engine.net cimport AF_INET, AF_INET6

cdef extern from *:
    """
    #if defined(__SANITIZE_ADDRESS__)
    #define FUZZ_ASAN 1
    #elif defined(__has_feature)
    #if __has_feature(address_sanitizer)
    #define FUZZ_ASAN 1
    #endif
    #endif
    #ifdef FUZZ_ASAN
    void __asan_poison_memory_region(void const volatile *at, size_t size);
    void __asan_unpoison_memory_region(void const volatile *at, size_t size);
    #define fuzz_hide(at, size) __asan_poison_memory_region(at, size)
    #define fuzz_show(at, size) __asan_unpoison_memory_region(at, size)
    #else
    #define fuzz_hide(at, size) ((void)(at), (void)(size))
    #define fuzz_show(at, size) ((void)(at), (void)(size))
    #endif
    """
    void fuzz_hide(const void* at, size_t size) noexcept nogil     # touching it is a finding from now on
    void fuzz_show(const void* at, size_t size) noexcept nogil

cdef enum:
    F_BYTEWISE = 1024               # longer inputs come in larger steps, so that all looks together stay few

cdef enum:                          # how a body comes and goes
    F_WHOLE = 0
    F_BYTES = 1
    F_CUTS = 2
    F_IN_PLACE = 3                  # the output grows at the front of the input
    F_OVER = 4                      # each piece is decoded over itself
    F_ROOMS = 5                     # whole, into rooms that are too small
    F_WAYS = 6


# ---- luck, and memory of exactly a size

cdef uint64_t f_hash(uint64_t hash_, const void* data, size_t size) noexcept nogil:
    cdef const uint8_t* bytes_ = <const uint8_t*>data
    cdef size_t i
    for i in range(size):
        hash_ = (hash_ ^ bytes_[i]) * <uint64_t>0x100000001B3
    return hash_


cdef uint64_t f_luck_of(const char* data, size_t size) noexcept nogil:
    return f_hash(<uint64_t>0xCBF29CE484222325, data, size) | 1


cdef size_t f_below(uint64_t* luck, size_t below) noexcept nogil:
    luck[0] ^= luck[0] << 13
    luck[0] ^= luck[0] >> 7
    luck[0] ^= luck[0] << 17
    return <size_t>((luck[0] >> 11) % below)


cdef size_t f_step(uint64_t* luck, size_t size) noexcept nogil:
    """One byte more, or what keeps steps times size in bounds."""
    return 1 if size <= F_BYTEWISE else 1 + f_below(luck, 2 * size * size // (F_BYTEWISE * F_BYTEWISE))


cdef char* f_make(size_t size) noexcept nogil:
    cdef char* made = <char*>malloc(size if size else 1)
    if size:
        memset(made, 0xAA, size)
    else:
        fuzz_hide(made, 1)
    return made


cdef char* f_copy(const char* data, size_t size) noexcept nogil:
    cdef char* made = f_make(size)
    if size:
        memcpy(made, data, size)
    return made


# ---- heads

cdef void f_limits(Limits* lim, uint64_t* luck) noexcept nogil:
    """Those of the server, and for one input in four such as short inputs meet."""
    memset(lim, 0, sizeof(Limits))
    lim.head_size = 16384
    lim.target_size = 8192
    lim.fields = 100
    if f_below(luck, 4) == 0:
        lim.head_size = 1 + <uint32_t>f_below(luck, 512)
        lim.target_size = <uint32_t>f_below(luck, 64)
        lim.fields = <uint32_t>f_below(luck, 8)


cdef void f_head_make(http1.Head* h, uint32_t max_fields) noexcept nogil:
    memset(h, 0xAA, sizeof(http1.Head))
    h.fields = <http1.Field*>f_make(max_fields * sizeof(http1.Field))
    h.max_fields = max_fields
    http1.http1_begin(h)


cdef bint f_is_verdict(int verdict) noexcept nogil:
    return (verdict == http1.MORE or verdict == http1.DONE or verdict == 400 or verdict == 414 or verdict == 417
            or verdict == 431 or verdict == 501 or verdict == 505)


cdef int f_parse_whole(http1.Head* h, const char* data, size_t size, const Limits* lim) noexcept nogil:
    cdef char* base = f_copy(data, size)
    cdef int verdict = http1.http1_parse(h, base, <uint32_t>size, lim)
    free(base)
    return verdict


cdef int f_parse_bytes(http1.Head* h, const char* data, size_t size, const Limits* lim, uint64_t* luck,
                       size_t* seen) noexcept nogil:
    """Every prefix in turn, the rest out of bounds: `seen` is the one that decided."""
    cdef char* base = f_copy(data, size)
    cdef int verdict
    cdef size_t step, end = 0
    fuzz_hide(base, size)
    while True:
        verdict = http1.http1_parse(h, base, <uint32_t>end, lim)
        if verdict != http1.MORE or end == size:
            break
        step = f_step(luck, size)
        if step > size - end:
            step = size - end
        fuzz_show(base + end, step)
        end += step
    seen[0] = end
    fuzz_show(base, size)
    free(base)
    return verdict


cdef int f_parse_cuts(http1.Head* h, const char* data, size_t size, const Limits* lim, uint64_t* luck) noexcept nogil:
    """A few prefixes, each in another place of other memory; the same one twice now and then."""
    cdef char* base
    cdef int verdict = http1.MORE
    cdef size_t before, end = 0
    cdef size_t cuts = 1 + f_below(luck, 6)
    while verdict == http1.MORE and (cuts or end < size):
        if cuts:
            cuts -= 1
            end += f_below(luck, size - end + 1)
        else:
            end = size
        before = f_below(luck, 17)
        base = f_make(before + end)
        memcpy(base + before, data, end)
        fuzz_hide(base, before)
        verdict = http1.http1_parse(h, base + before, <uint32_t>end, lim)
        fuzz_show(base, before)
        free(base)
    return verdict


cdef bint f_same_heads(const http1.Head* a, const http1.Head* b) noexcept nogil:
    """Every offset and every flag: http1_begin zeroes what lies between them."""
    if memcmp(a, b, <const char*>&a.max_fields - <const char*>a):
        return False
    return a.n_fields == 0 or memcmp(a.fields, b.fields, a.n_fields * sizeof(http1.Field)) == 0


cdef bint f_is_token(const char* text, size_t size) noexcept nogil:
    """RFC 9110 5.6.2, by other means than scan.h."""
    cdef const char* delimiters = b"\"(),/:;<=>?@[\\]{}"
    cdef size_t i, k
    for i in range(size):
        if <uint8_t>text[i] <= 32 or <uint8_t>text[i] >= 127:
            return False
        for k in range(17):
            if text[i] == delimiters[k]:
                return False
    return size > 0


cdef bint f_is_blank(char c) noexcept nogil:
    return c == c' ' or c == c'\t'


cdef bint f_named(const char* base, http1.Span span, const char* lower, size_t size) noexcept nogil:
    """Whether a span is that text of small letters and '-', in any case."""
    cdef size_t i
    cdef uint8_t c
    if span.size != size:
        return False
    for i in range(size):
        c = <uint8_t>base[span.at + i]
        if c >= 65 and c <= 90:
            c += 32
        if c != <uint8_t>lower[i]:
            return False
    return True


cdef bint f_within(http1.Span inner, http1.Span outer) noexcept nogil:
    return (inner.at >= outer.at and inner.size <= outer.size
            and inner.at - outer.at <= outer.size - inner.size)


cdef bint f_is_authority(const char* base, const http1.Host* host) noexcept nogil:
    """A host, and the port that stands behind it."""
    cdef int64_t port = 0
    cdef size_t i
    if not 0 < host.name <= host.text.size or host.port < -1 or host.port > 65535:
        return False
    if host.name == host.text.size:
        return host.port == -1
    if base[host.text.at + host.name] != c':':
        return False
    if host.name + 1 == host.text.size:
        return host.port == -1
    for i in range(host.text.at + host.name + 1, host.text.at + host.text.size):
        port = port * 10 + (<uint8_t>base[i] - 48)
    return port == host.port


cdef const char* f_sound_head(const http1.Head* h, const char* base, size_t size, const Limits* lim) noexcept nogil:
    """Whether what was found tiles the head, byte for byte, and says of framing what the fields say."""
    cdef uint32_t at, stop, i, k, hosts = 0, lengths = 0, codings = 0
    cdef int64_t length = 0
    cdef const http1.Field* field
    if h.size > size or h.size > lim.head_size or h.at != h.size:
        return b"the head ends beyond the input"
    if h.method.at != 0 and not (h.method.at == 2 and base[0] == c'\r' and base[1] == c'\n'):
        return b"the method does not begin the head"
    stop = h.method.at + h.method.size
    if h.method.size > 32 or stop >= h.size or not f_is_token(base + h.method.at, h.method.size):
        return b"the method is no token"
    if base[stop] != c' ' or h.target.at != stop + 1 or h.target.size == 0 or h.target.size > lim.target_size:
        return b"the target does not follow the method"
    stop = h.target.at + h.target.size
    if stop + 11 > h.size or base[stop] != c' ' or memcmp(base + stop + 1, b"HTTP/1.", 7):
        return b"the version does not follow the target"
    if memcmp(base + stop + 9, b"\r\n", 2) or h.minor != (base[stop + 8] != c'0'):
        return b"the version is misread"
    for i in range(h.target.at, stop):
        if <uint8_t>base[i] <= 32 or <uint8_t>base[i] >= 127 or base[i] == c'#':
            return b"the target holds a byte that no target has"
    if not f_within(h.path, h.target) and h.path.size:
        return b"the path lies outside the target"
    if h.has_query and (not f_within(h.query, h.target) or base[h.query.at - 1] != c'?'
                        or h.query.at != h.path.at + h.path.size + 1
                        or h.query.at + h.query.size != stop):
        return b"the query does not end the target"
    if h.form == http1.ABSOLUTE or h.form == http1.AUTHORITY:
        if not f_within(h.authority.text, h.target) or not f_is_authority(base, &h.authority):
            return b"the authority lies outside the target"
    elif h.authority.text.size:
        return b"an authority that the target has not"

    at = stop + 11
    if h.n_fields > lim.fields or h.n_fields > h.max_fields:
        return b"more fields than allowed"
    for i in range(h.n_fields):
        field = &h.fields[i]
        stop = field.name.at + field.name.size
        if field.name.at != at or stop >= h.size or base[stop] != c':' \
                or not f_is_token(base + at, field.name.size):
            return b"a name does not begin its line"
        if field.value.at <= stop or field.value.at + field.value.size + 2 > h.size:
            return b"a value lies outside its line"
        for k in range(stop + 1, field.value.at):
            if not f_is_blank(base[k]):
                return b"something other than blanks before a value"
        stop = field.value.at + field.value.size
        for k in range(field.value.at, stop):
            if (<uint8_t>base[k] < 32 and base[k] != c'\t') or <uint8_t>base[k] == 127:
                return b"a value holds a control"
        if field.value.size and (f_is_blank(base[field.value.at]) or f_is_blank(base[stop - 1])):
            return b"a value keeps its blanks"
        while stop < h.size and f_is_blank(base[stop]):
            stop += 1
        if stop + 2 > h.size or base[stop] != c'\r' or base[stop + 1] != c'\n':
            return b"a line does not end with CRLF"
        at = stop + 2

        if f_named(base, field.name, b"host", 4):
            hosts += 1
            if memcmp(&field.value, &h.host.text, sizeof(http1.Span)):
                return b"Host is not what Host says"
        elif f_named(base, field.name, b"content-length", 14):
            lengths += 1
            if not 0 < field.value.size <= 18:
                return b"a Content-Length of no length that there is"
            for k in range(field.value.at, stop):
                if base[k] >= c'0' and base[k] <= c'9':
                    length = length * 10 + base[k] - c'0'
                elif k < field.value.at + field.value.size:
                    return b"Content-Length is no number"
        elif f_named(base, field.name, b"transfer-encoding", 17):
            codings += 1
            if not f_named(base, field.value, b"chunked", 7):
                return b"a coding other than chunked"
    if at + 2 != h.size or base[at] != c'\r' or base[at + 1] != c'\n':
        return b"the head does not end with an empty line"

    if hosts > 1 or hosts != h.has_host or (h.minor and not hosts):
        return b"not one Host"
    if h.has_host and not f_is_authority(base, &h.host):
        return b"Host is no authority"
    if lengths > 1 or h.content_length != (length if lengths else -1):
        return b"Content-Length is misread"
    if codings > 1 or codings != h.chunked or (codings and (lengths or not h.minor)):
        return b"Transfer-Encoding is misread"
    if not h.minor and (h.expect_continue or h.upgrade):
        return b"HTTP/1.0 asks for what it does not know"
    return NULL


cdef char* f_put(char* to, const char* data, size_t size) noexcept nogil:
    memcpy(to, data, size)
    return to + size


cdef bint f_same_span(const char* a, http1.Span one, const char* b, http1.Span other) noexcept nogil:
    return one.size == other.size and (one.size == 0 or memcmp(a + one.at, b + other.at, one.size) == 0)


cdef const char* f_said_again(const http1.Head* h, const char* base) noexcept nogil:
    """The head made of what was found says the same."""
    cdef http1.Head again
    cdef Limits lim
    cdef char* text
    cdef char* end
    cdef uint32_t i
    cdef int verdict
    cdef const char* wrong = NULL
    memset(&lim, 0, sizeof(lim))
    lim.head_size = 2 * h.size + 64
    lim.target_size = h.target.size
    lim.fields = h.n_fields
    text = f_make(lim.head_size)
    end = f_put(text, base + h.method.at, h.method.size)
    end = f_put(end, b" ", 1)
    end = f_put(end, base + h.target.at, h.target.size)
    end = f_put(end, b" HTTP/1.1\r\n" if h.minor else b" HTTP/1.0\r\n", 11)
    for i in range(h.n_fields):
        end = f_put(end, base + h.fields[i].name.at, h.fields[i].name.size)
        end = f_put(end, b": ", 2)
        end = f_put(end, base + h.fields[i].value.at, h.fields[i].value.size)
        end = f_put(end, b"\r\n", 2)
    end = f_put(end, b"\r\n", 2)

    f_head_make(&again, h.n_fields)
    verdict = f_parse_whole(&again, text, end - text, &lim)
    if verdict != http1.DONE or again.size != end - text:
        wrong = b"a head said again is not accepted"
    elif again.said != h.said or again.form != h.form or again.minor != h.minor or again.https != h.https \
            or again.keep_alive != h.keep_alive or again.upgrade != h.upgrade \
            or again.expect_continue != h.expect_continue:
        wrong = b"a head said again has other flags"
    elif again.content_length != h.content_length or again.chunked != h.chunked:
        wrong = b"a head said again frames another body"
    elif not f_same_span(text, again.method, base, h.method) or not f_same_span(text, again.target, base, h.target) \
            or not f_same_span(text, again.path, base, h.path) or again.has_query != h.has_query \
            or not f_same_span(text, again.query, base, h.query):
        wrong = b"a head said again has another request line"
    elif again.has_host != h.has_host or not f_same_span(text, again.host.text, base, h.host.text) \
            or again.host.name != h.host.name or again.host.port != h.host.port \
            or not f_same_span(text, again.authority.text, base, h.authority.text) \
            or again.authority.name != h.authority.name or again.authority.port != h.authority.port:
        wrong = b"a head said again is for another host"
    elif again.n_fields != h.n_fields:
        wrong = b"a head said again has other fields"
    else:
        for i in range(h.n_fields):
            if not f_same_span(text, again.fields[i].name, base, h.fields[i].name) \
                    or not f_same_span(text, again.fields[i].value, base, h.fields[i].value):
                wrong = b"a head said again has other fields"
    free(again.fields)
    free(text)
    return wrong


cdef public const char* fuzz_head(const char* data, size_t size) noexcept nogil:
    cdef uint64_t luck = f_luck_of(data, size)
    cdef Limits lim
    cdef http1.Head whole, other
    cdef const char* wrong = NULL
    cdef size_t seen
    cdef int verdict
    f_limits(&lim, &luck)
    f_head_make(&whole, <uint32_t>f_below(&luck, 8) if f_below(&luck, 8) == 0 else 128)
    f_head_make(&other, whole.max_fields)
    verdict = f_parse_whole(&whole, data, size, &lim)
    if not f_is_verdict(verdict):
        wrong = b"a verdict that there is not"
    elif verdict == http1.MORE and size >= lim.head_size:
        wrong = b"more is wanted than a head may have"
    elif verdict == http1.DONE:
        wrong = f_sound_head(&whole, data, size, &lim)
        if wrong is NULL:
            wrong = f_said_again(&whole, data)
    if wrong is NULL:
        if f_parse_bytes(&other, data, size, &lim, &luck, &seen) != verdict:
            wrong = b"byte by byte the verdict is another"
        elif not f_same_heads(&whole, &other):
            wrong = b"byte by byte the offsets are others"
        elif verdict == http1.DONE and (seen < whole.size or (size <= F_BYTEWISE and seen != whole.size)):
            wrong = b"a head is accepted before or behind its end"
    if wrong is NULL:
        http1.http1_begin(&other)
        if f_parse_cuts(&other, data, size, &lim, &luck) != verdict:
            wrong = b"in pieces the verdict is another"
        elif not f_same_heads(&whole, &other):
            wrong = b"in pieces the offsets are others"
    if wrong is NULL and verdict == http1.DONE:
        http1.http1_begin(&other)
        if f_parse_whole(&other, data, whole.size, &lim) != verdict or not f_same_heads(&whole, &other):
            wrong = b"what follows a head changes it"
    free(whole.fields)
    free(other.fields)
    return wrong


# ---- bodies

cdef struct FBody:
    body.Chunked d
    int verdict
    size_t used
    size_t made
    char* out                       # as large as the input


cdef const char* f_sound_feed(const body.Chunked* d, int verdict, size_t n, size_t used, size_t room,
                              size_t made) noexcept nogil:
    """What one feed promises."""
    if verdict != http1.MORE and verdict != http1.DONE and verdict != 400 and verdict != 431:
        return b"a verdict that there is not"
    if used > n:
        return b"more is used than there was"
    if made > used or made > room:
        return b"more is made than used, or than there was room for"
    if verdict == http1.MORE and used != n and made != room:
        return b"a feed stops with bytes and room left"
    if (verdict == http1.DONE) != (d.state == body.AFTER_BODY) and verdict < 400:
        return b"done, and not behind the body, or the other way about"
    if d.size < 0 or d.left < 0 or d.trailer > TRAILER_MAX + 1 or d.n_trailers > TRAILER_FIELDS_MAX + 1 \
            or d.name_size > body.NAME_KEPT:
        return b"counts out of bounds"
    return NULL


cdef const char* f_decode(FBody* f, const char* data, size_t size, int way, uint64_t* luck) noexcept nogil:
    """Decodes data as it comes in one of the ways."""
    cdef char* mine = f_copy(data, size) if way == F_IN_PLACE else NULL
    cdef char* src
    cdef char* dst
    cdef size_t at = 0, out = 0, end = 0, used = 0, made = 0, room, cuts = 1 + f_below(luck, 6)
    cdef const char* wrong = NULL
    memset(&f.d, 0xAA, sizeof(f.d))
    body.chunked_begin(&f.d, body.NO_LIMIT)
    f.verdict = http1.MORE
    while wrong is NULL:
        if at == end:               # all is spent: more comes
            if way == F_WHOLE or way == F_ROOMS or cuts == 0:
                end = size
            elif way == F_BYTES:
                end += f_step(luck, size)
            else:
                cuts -= 1
                end += f_below(luck, size - end + 1)
            if end > size:
                end = size
        room = end - at
        if way == F_ROOMS:
            room = f_below(luck, 4 + size // 256)
        if way == F_IN_PLACE:
            src, dst = mine + at, mine + out
            fuzz_hide(mine + end, size - end)
        else:
            src = f_copy(data + at, end - at)
            dst = src if way == F_OVER else f_make(room)
        f.verdict = body.chunked_feed(&f.d, src, end - at, &used, dst, room, &made)
        wrong = f_sound_feed(&f.d, f.verdict, end - at, used, room, made)
        if wrong is NULL:
            memcpy(f.out + out, dst, made)
            at += used
            out += made
        if way == F_IN_PLACE:
            fuzz_show(mine + end, size - end)
            if wrong is NULL and memcmp(mine + at, data + at, size - at):
                wrong = b"in place, what was not read yet is overwritten"
        else:
            free(src)
            if way != F_OVER:
                free(dst)
        if f.verdict != http1.MORE or (at == size and end == size):
            break
    free(mine)
    f.used = at
    f.made = out
    return wrong


cdef const char* f_coded_again(FBody* f, uint64_t* luck) noexcept nogil:
    """A body and its trailers, coded anew in up to 64 other chunks, come out the same."""
    cdef FBody again
    cdef size_t made = <size_t>f.d.size, trailers = f.made - <size_t>f.d.size, at = 0, piece
    cdef const char* digits = b"0123456789abcdef"
    cdef char* text = f_make(f.made + 64 * 12 + 32)
    cdef char* end = text
    cdef int shift
    cdef const char* wrong
    while at < made:
        piece = 1 + made // 64 + f_below(luck, 1 + made // 64)
        if piece > made - at:
            piece = made - at
        for shift in range(28, -4, -4):
            end = f_put(end, digits + (piece >> shift & 15), 1)
        end = f_put(end, b"\r\n", 2)
        end = f_put(end, f.out + at, piece)
        end = f_put(end, b"\r\n", 2)
        at += piece
    end = f_put(end, b"0\r\n", 3)
    end = f_put(end, f.out + made, trailers)
    end = f_put(end, b"\r\n", 2)
    again.out = f_make(end - text)
    wrong = f_decode(&again, text, end - text, F_WHOLE, luck)
    if wrong is NULL and (again.verdict != http1.DONE or again.used != <size_t>(end - text)):
        wrong = b"a body coded again is not accepted"
    if wrong is NULL and (again.made != f.made or again.d.size != f.d.size
                          or memcmp(again.out, f.out, f.made)):
        wrong = b"a body coded again is another"
    free(again.out)
    free(text)
    return wrong


cdef public const char* fuzz_body(const char* data, size_t size) noexcept nogil:
    cdef uint64_t luck = f_luck_of(data, size)
    cdef FBody whole, other
    cdef const char* wrong
    cdef size_t used = 1, made = 1
    cdef char nothing = 0
    cdef int way
    whole.out = f_make(size)
    other.out = f_make(size)
    wrong = f_decode(&whole, data, size, F_WHOLE, &luck)
    if wrong is NULL and (<size_t>whole.d.size > whole.made
                          or (whole.d.trailer == 0 and <size_t>whole.d.size != whole.made)):
        wrong = b"the size is not that of the body"
    if wrong is NULL and whole.verdict == http1.DONE:
        if whole.used < 5 or memcmp(data + whole.used - 4, b"\r\n\r\n", 4):
            wrong = b"a body does not end with an empty line"
        elif body.chunked_feed(&whole.d, data + whole.used, size - whole.used, &used, &nothing, 1, &made) \
                != http1.DONE or used or made:
            wrong = b"a body goes on behind its end"
        else:
            wrong = f_coded_again(&whole, &luck)
    for way in range(F_WHOLE + 1, F_WAYS):
        if wrong is not NULL:
            break
        wrong = f_decode(&other, data, size, way, &luck)
        if wrong is NULL and other.verdict != whole.verdict:
            wrong = b"decoded another way the verdict is another"
        elif wrong is NULL and (other.used != whole.used or other.made != whole.made
                                or memcmp(other.out, whole.out, whole.made)):
            wrong = b"decoded another way the body is another"
        elif wrong is NULL and memcmp(&other.d, &whole.d, sizeof(body.Chunked)):
            wrong = b"decoded another way the decoder is in another state"
    free(whole.out)
    free(other.out)
    return wrong


# ---- messages: head, body by its framing, next head, as a connection takes them

cdef struct FTalk:
    uint64_t log                    # of everything that was understood, in order
    uint32_t messages
    int verdict                     # the last one
    size_t consumed                 # bytes of whole messages


cdef void f_note(FTalk* t, uint64_t what) noexcept nogil:
    t.log = f_hash(t.log, &what, sizeof(what))


cdef void f_note_head(FTalk* t, const http1.Head* h, const char* base) noexcept nogil:
    cdef uint32_t i
    f_note(t, h.size)
    f_note(t, <uint64_t>h.content_length)
    f_note(t, h.chunked | h.keep_alive << 1 | h.expect_continue << 2 | h.upgrade << 3 | h.minor << 4)
    t.log = f_hash(t.log, base + h.method.at, h.method.size)
    t.log = f_hash(t.log, base + h.target.at, h.target.size)
    for i in range(h.n_fields):
        t.log = f_hash(t.log, base + h.fields[i].name.at, h.fields[i].name.size)
        t.log = f_hash(t.log, base + h.fields[i].value.at, h.fields[i].value.size)


cdef char* f_without(char* block, size_t* size, size_t at, size_t gone) noexcept nogil:
    """The block in other memory, exactly as large, without `gone` bytes at `at`."""
    cdef char* made = f_make(size[0] - gone)
    memcpy(made, block, at)
    memcpy(made + at, block + at + gone, size[0] - at - gone)
    free(block)
    size[0] -= gone
    return made


cdef const char* f_talk(FTalk* t, const char* data, size_t size, const Limits* lim, bint pieces,
                        uint64_t* luck) noexcept nogil:
    """A connection that gets the data at once or in pieces. What of a body was taken leaves the block, so that
    the head stays in front and what follows moves up."""
    cdef http1.Head h
    cdef body.Chunked d
    cdef char* block = f_copy(data, 0 if pieces else size)
    cdef char* grown
    cdef char* dst
    cdef size_t have = 0 if pieces else size, arrived = have, used, made, room
    cdef int64_t taken = 0
    cdef bint in_body = False, stays = False
    cdef const char* wrong = NULL
    memset(t, 0, sizeof(FTalk))
    memset(&d, 0, sizeof(d))
    f_head_make(&h, 128)
    while wrong is NULL:
        if not in_body:
            t.verdict = http1.http1_parse(&h, block, <uint32_t>have, lim)
            if t.verdict == http1.DONE:
                if h.size > have or h.size == 0:
                    wrong = b"a head ends beyond what came, or where it begins"
                    break
                wrong = f_sound_head(&h, block, have, lim)
                if wrong is not NULL:
                    break
                f_note_head(t, &h, block)
                in_body = True
                taken = 0
                body.chunked_begin(&d, body.NO_LIMIT)
        if in_body:
            used = have - h.size
            if h.chunked:
                room = f_below(luck, used + 1) if pieces else used
                dst = f_make(room)
                t.verdict = body.chunked_feed(&d, block + h.size, have - h.size, &used, dst, room, &made)
                wrong = f_sound_feed(&d, t.verdict, have - h.size, used, room, made)
                if wrong is NULL:
                    t.log = f_hash(t.log, dst, made)
                    stays = made == room and used < have - h.size
                free(dst)
                if wrong is not NULL:
                    break
            else:
                if h.content_length - taken < <int64_t>used:
                    used = <size_t>(h.content_length - taken) if h.content_length >= 0 else 0
                t.log = f_hash(t.log, block + h.size, used)
                t.verdict = http1.DONE if taken + <int64_t>used >= h.content_length else http1.MORE
            taken += used
            block = f_without(block, &have, h.size, used)
            if t.verdict == http1.DONE:
                f_note_head(t, &h, block)       # it stayed what it was while the body came
                block = f_without(block, &have, 0, h.size)
                t.consumed += h.size + <size_t>taken
                t.messages += 1
                if t.consumed + have != arrived:
                    wrong = b"bytes are lost between two messages, or found"
                if not h.keep_alive:
                    break
                http1.http1_begin(&h)
                in_body = False
                continue
        if t.verdict != http1.MORE:
            break
        if in_body and h.chunked and stays:
            continue                            # there was too little room
        if arrived == size:
            break
        used = 1 + f_below(luck, size - arrived)
        grown = f_make(have + used)
        memcpy(grown, block, have)
        memcpy(grown + have, data + arrived, used)
        free(block)
        block = grown
        have += used
        arrived += used
    f_note(t, <uint64_t>taken if in_body else 0)
    free(block)
    free(h.fields)
    return wrong


cdef public const char* fuzz_message(const char* data, size_t size) noexcept nogil:
    cdef uint64_t luck = f_luck_of(data, size)
    cdef Limits lim
    cdef FTalk whole, other
    cdef const char* wrong
    cdef int again
    f_limits(&lim, &luck)
    wrong = f_talk(&whole, data, size, &lim, False, &luck)
    if wrong is NULL and (whole.consumed > size or (whole.consumed == 0) != (whole.messages == 0)):
        wrong = b"more is consumed than there was"
    for again in range(3):
        if wrong is not NULL:
            break
        wrong = f_talk(&other, data, size, &lim, True, &luck)
        if wrong is NULL and (other.verdict != whole.verdict or other.messages != whole.messages):
            wrong = b"in pieces there are other messages"
        elif wrong is NULL and other.consumed != whole.consumed:
            wrong = b"in pieces the messages end elsewhere"
        elif wrong is NULL and other.log != whole.log:
            wrong = b"in pieces the messages say other things"
    return wrong


# ---- PROXY headers

cdef const char* f_sound_told(const proxy_words.Told* t, const char* data, size_t size) noexcept nogil:
    """What must hold of each header that is taken, told by other means than the parser's."""
    cdef bint line = data[0] == c'P'
    cdef size_t i
    if t.size > size or t.size < (15 if line else 16) or t.size > (
            proxy_words.PROXY_LINE_MAX if line else proxy_words.PROXY_MAX):
        return b"a header ends beyond what came, or its bounds"
    if t.who > proxy_words.CLIENT:
        return b"nobody of whom we know is at the other end"
    if t.who == proxy_words.CLIENT and t.client.sin6_family != AF_INET and t.client.sin6_family != AF_INET6:
        return b"a client of another family"
    if not line:
        if t.size != 16 + <size_t>(<uint8_t>data[14] << 8 | <uint8_t>data[15]):
            return b"a length is not kept"
        return NULL
    for i in range(t.size - 2):
        if data[i] == c'\r':
            return b"a line ends before its end"
    if memcmp(data + t.size - 2, b"\r\n", 2):
        return b"a line does not end"
    return NULL


cdef public const char* fuzz_proxy(const char* data, size_t size) noexcept nogil:
    """Each prefix by itself, in memory of its size: MORE, and from some length on always the same."""
    cdef uint64_t luck = f_luck_of(data, size)
    cdef proxy_words.Told first, told
    cdef const char* wrong = NULL
    cdef char* base
    cdef int verdict, decided = http1.MORE
    cdef size_t end = 0, step
    while wrong is NULL:
        base = f_copy(data, end)
        memset(&told, 0xAA, sizeof(told))
        verdict = proxy_words.proxy_parse(&told, base, <uint32_t>end)
        if verdict != http1.MORE and verdict != http1.DONE and verdict != proxy_words.NO_PROXY:
            wrong = b"that is no verdict"
        elif decided != http1.MORE and verdict != decided:
            wrong = b"with more bytes the verdict is another"
        elif verdict == http1.DONE and decided == http1.MORE:
            wrong = f_sound_told(&told, base, end)
            first = told
        elif verdict == http1.DONE and (told.size != first.size or told.who != first.who or (
                told.who == proxy_words.CLIENT and memcmp(&told.client, &first.client, sizeof(told.client)))):
            wrong = b"with more bytes the header says something else"
        elif verdict == http1.MORE and end >= (
                proxy_words.PROXY_LINE_MAX if data[0] == c'P' else proxy_words.PROXY_MAX):
            wrong = b"no verdict comes"
        free(base)
        decided = verdict
        if end == size:
            break
        step = f_step(&luck, size)
        end += step if step < size - end else size - end
    return wrong


def fuzz(str target, bytes data):
    """The claim that data breaks, or None."""
    cdef const char* wrong
    if target == "head":
        wrong = fuzz_head(data, len(data))
    elif target == "body":
        wrong = fuzz_body(data, len(data))
    elif target == "message":
        wrong = fuzz_message(data, len(data))
    elif target == "proxy":
        wrong = fuzz_proxy(data, len(data))
    else:
        raise KeyError(target)
    return None if wrong is NULL else wrong.decode()
