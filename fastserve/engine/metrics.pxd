"""Counts and times as Prometheus reads them.

Knows: histograms of nanoseconds, and the text format (Prometheus exposition formats, version 0.0.4).
Never sees: where a figure comes from, a descriptor, a lock.
Invariant: a histogram has one writer at a time and any number of readers. Each function writes what its arguments
are long, and at most LINE_MOST bytes more.
"""

from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport strlen

from fastserve.engine.atomics cimport count_u64, load_u64
from fastserve.engine.reply cimport put, put_number


cdef extern from * nogil:
    int leading_zeros "__builtin_clzll"(unsigned long long x) noexcept


cdef enum:
    FIRST_BUCKET = 10           # its bound is 2**10 ns, about a microsecond; each next one's twice that
    BUCKETS = 25                # the last bound is 2**34 ns, 17 seconds
    LINE_MOST = 64


cdef struct Histogram:
    uint64_t counts[BUCKETS + 1]
    uint64_t sum                # nanoseconds


cdef inline void histogram_note(Histogram* h, int64_t ns) noexcept nogil:
    cdef uint32_t bucket = 0
    if ns < 0:
        ns = 0
    if ns > 1 << FIRST_BUCKET:
        bucket = 64 - <uint32_t>leading_zeros(<uint64_t>(ns - 1)) - FIRST_BUCKET
        if bucket > BUCKETS:
            bucket = BUCKETS
    count_u64(&h.counts[bucket], 1)
    count_u64(&h.sum, <uint64_t>ns)


cdef inline void histogram_add(Histogram* to, const Histogram* h) noexcept nogil:
    """`h` may be written meanwhile: then some of what it counts is missing, never too much."""
    cdef uint32_t i
    for i in range(BUCKETS + 1):
        to.counts[i] += load_u64(&h.counts[i])
    to.sum += load_u64(&h.sum)


cdef inline char* put_text(char* to, const char* text) noexcept nogil:
    return put(to, text, strlen(text))


cdef inline char* put_seconds(char* to, uint64_t ns) noexcept nogil:
    cdef uint64_t rest = ns % 1_000_000_000
    cdef uint32_t i
    to = put(put_number(to, ns // 1_000_000_000), b".", 1)
    for i in range(9):
        to[8 - i] = <char>(c'0' + rest % 10)
        rest //= 10
    return to + 9


cdef inline char* put_family(char* to, const char* name, const char* kind, const char* help) noexcept nogil:
    to = put(put_text(put(put_text(put(to, b"# HELP ", 7), name), b" ", 1), help), b"\n", 1)
    return put(put_text(put(put_text(put(to, b"# TYPE ", 7), name), b" ", 1), kind), b"\n", 1)


cdef inline char* put_sample(char* to, const char* name, const char* label, const char* is_,
                             uint64_t value) noexcept nogil:
    """`label` NULL: there is none."""
    to = put_text(to, name)
    if label is not NULL:
        to = put(put_text(put(put_text(put(to, b"{", 1), label), b'="', 2), is_), b'"}', 2)
    return put(put_number(put(to, b" ", 1), value), b"\n", 1)


cdef inline char* put_one(char* to, const char* name, const char* kind, const char* help,
                          uint64_t value) noexcept nogil:
    """A family of one sample."""
    return put_sample(put_family(to, name, kind, help), name, NULL, NULL, value)


cdef inline char* put_histogram(char* to, const char* name, const char* help, const Histogram* h) noexcept nogil:
    cdef uint64_t sum = 0
    cdef uint32_t i
    to = put_family(to, name, b"histogram", help)
    for i in range(BUCKETS + 1):
        sum += h.counts[i]
        to = put(put_text(to, name), b'_bucket{le="', 12)
        to = put_seconds(to, <uint64_t>1 << (i + FIRST_BUCKET)) if i < BUCKETS else put(to, b"+Inf", 4)
        to = put(put_number(put(to, b'"} ', 3), sum), b"\n", 1)
    to = put(put_seconds(put(put_text(to, name), b"_sum ", 5), h.sum), b"\n", 1)
    return put(put_number(put(put_text(to, name), b"_count ", 7), sum), b"\n", 1)
