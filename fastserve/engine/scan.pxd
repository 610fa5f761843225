"""Classes of bytes and walks over runs of them: the door to scan.h.

Knows: which bytes are a token, a target, a field value, a registered name, a hex digit.
Never sees: a message, a line, a limit.
Invariant: a walk over [at, end) reads nothing outside [base, base + end) and answers the offset of the
first byte outside its class, or end.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

cdef extern from "scan.h" nogil:
    enum:
        FASTSERVE_SSE2                          # 1 when the walks take sixteen bytes at a time
        SCAN_TCHAR
        SCAN_TARGET
        SCAN_VALUE
        SCAN_NAME

    bint scan_is(char c, int klass) noexcept
    uint32_t scan_hex(uint8_t c) noexcept       # 16: no hex digit

    uint32_t scan_token(const char* base, uint32_t at, uint32_t end) noexcept
    uint32_t scan_target(const char* base, uint32_t at, uint32_t end) noexcept
    uint32_t scan_value(const char* base, uint32_t at, uint32_t end) noexcept
    uint32_t scan_name(const char* base, uint32_t at, uint32_t end) noexcept
    uint32_t scan_mark(const char* base, uint32_t at, uint32_t end) noexcept    # the first '?'

    uint64_t scan_eight(const char* start) noexcept     # eight bytes as they lie, to be compared with eight
    bint scan_same(const char* bytes, const char* lower, uint32_t size) noexcept        # any case; see scan.h
    bint scan_same_text(const char* one, const char* other, uint32_t size) noexcept     # any case, any bytes

    bint scan_likely(bint) noexcept
    bint scan_rare(bint) noexcept
