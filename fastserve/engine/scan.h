/* The classes of bytes that HTTP/1.1 knows, and the words that walk runs of them.

   Knows: RFC 9110 section 5 (tchar, field values), RFC 9112 section 3 (targets), RFC 3986 section 3.2
   (reg-name). Never sees: a message, a line, a limit.
   Invariant: a scan over [at, end) reads no byte outside [base, base + end), sixteen at a time or not,
   and stops at the first byte outside its class, or at end.

   -DFASTSERVE_NO_SIMD leaves only the portable loops. */

#ifndef FASTSERVE_SCAN_H
#define FASTSERVE_SCAN_H

#include <stdint.h>
#include <string.h>

#if defined(__SSE2__) && !defined(FASTSERVE_NO_SIMD)
#define FASTSERVE_SSE2 1
#include <emmintrin.h>
#else
#define FASTSERVE_SSE2 0
#endif

#define scan_likely(x) __builtin_expect(!!(x), 1)
#define scan_rare(x) __builtin_expect(!!(x), 0)

enum {
    SCAN_TCHAR = 1,             /* RFC 9110 5.6.2: the bytes of a method, a field name, a token */
    SCAN_TARGET = 2,            /* visible ASCII but '#': a fragment never travels (RFC 9112 3.2) */
    SCAN_VALUE = 4,             /* RFC 9110 5.5: HTAB, SP, visible ASCII, obs-text */
    SCAN_NAME = 8,              /* RFC 3986 3.2.2: reg-name but for its '%' HEXDIG HEXDIG */
};

#define TGV_ (SCAN_TCHAR | SCAN_TARGET | SCAN_VALUE)
#define GVR_ (SCAN_TARGET | SCAN_VALUE | SCAN_NAME)
#define GV__ (SCAN_TARGET | SCAN_VALUE)
#define TV__ (SCAN_TCHAR | SCAN_VALUE)
#define V___ SCAN_VALUE
#define ALL_ (SCAN_TCHAR | SCAN_TARGET | SCAN_VALUE | SCAN_NAME)

static const uint8_t scan_class[256] = {
    0,    0,    0,    0,    0,    0,    0,    0,    0,    V___, 0,    0,    0,    0,    0,    0,
    0,    0,    0,    0,    0,    0,    0,    0,    0,    0,    0,    0,    0,    0,    0,    0,
    /* SP   !     "     #     $     %     &     '     (     )     *     +     ,     -     .     / */
    V___, ALL_, GV__, TV__, ALL_, TGV_, ALL_, ALL_, GVR_, GVR_, ALL_, ALL_, GVR_, ALL_, ALL_, GV__,
    /* 0    1     2     3     4     5     6     7     8     9     :     ;     <     =     >     ? */
    ALL_, ALL_, ALL_, ALL_, ALL_, ALL_, ALL_, ALL_, ALL_, ALL_, GV__, GVR_, GV__, GVR_, GV__, GV__,
    /* @    A ... */
    GV__, ALL_, ALL_, ALL_, ALL_, ALL_, ALL_, ALL_, ALL_, ALL_, ALL_, ALL_, ALL_, ALL_, ALL_, ALL_,
    /* ...                                                    Z     [     \     ]     ^     _     */
    ALL_, ALL_, ALL_, ALL_, ALL_, ALL_, ALL_, ALL_, ALL_, ALL_, ALL_, GV__, GV__, GV__, TGV_, ALL_,
    /* `    a ... */
    TGV_, ALL_, ALL_, ALL_, ALL_, ALL_, ALL_, ALL_, ALL_, ALL_, ALL_, ALL_, ALL_, ALL_, ALL_, ALL_,
    /* ...                                                    z     {     |     }     ~     DEL   */
    ALL_, ALL_, ALL_, ALL_, ALL_, ALL_, ALL_, ALL_, ALL_, ALL_, ALL_, GV__, TGV_, GV__, ALL_, 0,
    V___, V___, V___, V___, V___, V___, V___, V___, V___, V___, V___, V___, V___, V___, V___, V___,
    V___, V___, V___, V___, V___, V___, V___, V___, V___, V___, V___, V___, V___, V___, V___, V___,
    V___, V___, V___, V___, V___, V___, V___, V___, V___, V___, V___, V___, V___, V___, V___, V___,
    V___, V___, V___, V___, V___, V___, V___, V___, V___, V___, V___, V___, V___, V___, V___, V___,
    V___, V___, V___, V___, V___, V___, V___, V___, V___, V___, V___, V___, V___, V___, V___, V___,
    V___, V___, V___, V___, V___, V___, V___, V___, V___, V___, V___, V___, V___, V___, V___, V___,
    V___, V___, V___, V___, V___, V___, V___, V___, V___, V___, V___, V___, V___, V___, V___, V___,
    V___, V___, V___, V___, V___, V___, V___, V___, V___, V___, V___, V___, V___, V___, V___, V___,
};

#undef TGV_
#undef GVR_
#undef GV__
#undef TV__
#undef V___
#undef ALL_

/* 0 ... 15, or 16 for a byte that is no hex digit. */
static inline uint32_t scan_hex(uint8_t c)
{
    uint32_t letter = (uint32_t)(c | 0x20) - 'a';
    uint32_t digit = (uint32_t)c - '0';
    return digit < 10 ? digit : letter < 6 ? letter + 10 : 16;
}

static inline int scan_is(char c, int klass)
{
    return scan_class[(uint8_t)c] & klass;
}

/* The portable walk, and the end of every other one. */
static inline uint32_t scan_bytes(const char *base, uint32_t at, uint32_t end, int klass)
{
    while (at < end && (scan_class[(uint8_t)base[at]] & klass))
        at++;
    return at;
}

#if FASTSERVE_SSE2

/* Each `..._stops` answers one bit a byte: set where the byte is outside the class. */

static inline __m128i scan_within(__m128i bytes, uint8_t low, uint8_t high)
{
    __m128i from_low = _mm_sub_epi8(bytes, _mm_set1_epi8((char)low));
    return _mm_cmpeq_epi8(_mm_min_epu8(from_low, _mm_set1_epi8((char)(high - low))), from_low);
}

/* Letters, digits, '-' and '.': what nearly all tokens and host names are made of. A stop is only a hint. */
static inline uint32_t scan_plain_stops(__m128i bytes)
{
    __m128i letter = scan_within(_mm_or_si128(bytes, _mm_set1_epi8(0x20)), 'a', 'z');
    __m128i slash = _mm_cmpeq_epi8(bytes, _mm_set1_epi8('/'));
    __m128i other = _mm_andnot_si128(slash, scan_within(bytes, '-', '9'));
    return (uint32_t)_mm_movemask_epi8(_mm_or_si128(letter, other)) ^ 0xFFFF;
}

static inline uint32_t scan_value_stops(__m128i bytes)
{
    __m128i control = _mm_cmpeq_epi8(_mm_min_epu8(bytes, _mm_set1_epi8(0x1F)), bytes);
    control = _mm_andnot_si128(_mm_cmpeq_epi8(bytes, _mm_set1_epi8('\t')), control);
    control = _mm_or_si128(control, _mm_cmpeq_epi8(bytes, _mm_set1_epi8(0x7F)));
    return (uint32_t)_mm_movemask_epi8(control);
}

static inline uint32_t scan_target_stops(__m128i bytes)
{
    __m128i visible = _mm_and_si128(_mm_cmpgt_epi8(bytes, _mm_set1_epi8(0x20)),
                                    _mm_cmplt_epi8(bytes, _mm_set1_epi8(0x7F)));
    visible = _mm_andnot_si128(_mm_cmpeq_epi8(bytes, _mm_set1_epi8('#')), visible);
    return (uint32_t)_mm_movemask_epi8(visible) ^ 0xFFFF;
}

static inline uint32_t scan_mark_stops(__m128i bytes)
{
    return (uint32_t)_mm_movemask_epi8(_mm_cmpeq_epi8(bytes, _mm_set1_epi8('?')));
}

/* Sixteen at a time; the last few are seen through the sixteen bytes that end with them, which lie in the
   message as soon as it has sixteen bytes. */
#define SCAN_WALK(stops, base, at, end)                                                         \
    while ((end) - (at) >= 16) {                                                                \
        uint32_t found = stops(_mm_loadu_si128((const __m128i *)((base) + (at))));              \
        if (found)                                                                              \
            return (at) + (uint32_t)__builtin_ctz(found);                                       \
        (at) += 16;                                                                             \
    }                                                                                           \
    if ((end) >= 16) {                                                                          \
        uint32_t found = stops(_mm_loadu_si128((const __m128i *)((base) + (end) - 16)));        \
        found >>= 16 - ((end) - (at));                                                          \
        return found ? (at) + (uint32_t)__builtin_ctz(found) : (end);                           \
    }

static inline uint32_t scan_plain_sse2(const char *base, uint32_t at, uint32_t end)
{
    SCAN_WALK(scan_plain_stops, base, at, end)
    return at;
}

static inline uint32_t scan_value(const char *base, uint32_t at, uint32_t end)
{
    SCAN_WALK(scan_value_stops, base, at, end)
    return scan_bytes(base, at, end, SCAN_VALUE);
}

static inline uint32_t scan_target(const char *base, uint32_t at, uint32_t end)
{
    SCAN_WALK(scan_target_stops, base, at, end)
    return scan_bytes(base, at, end, SCAN_TARGET);
}

/* The first '?', or end. */
static inline uint32_t scan_mark(const char *base, uint32_t at, uint32_t end)
{
    SCAN_WALK(scan_mark_stops, base, at, end)
    while (at < end && base[at] != '?')
        at++;
    return at;
}

static inline uint32_t scan_token(const char *base, uint32_t at, uint32_t end)
{
    return scan_bytes(base, scan_plain_sse2(base, at, end), end, SCAN_TCHAR);
}

static inline uint32_t scan_name(const char *base, uint32_t at, uint32_t end)
{
    return scan_bytes(base, scan_plain_sse2(base, at, end), end, SCAN_NAME);
}

#undef SCAN_WALK

#else

static inline uint32_t scan_mark(const char *base, uint32_t at, uint32_t end)
{
    while (at < end && base[at] != '?')
        at++;
    return at;
}

static inline uint32_t scan_value(const char *base, uint32_t at, uint32_t end)
{
    return scan_bytes(base, at, end, SCAN_VALUE);
}

static inline uint32_t scan_target(const char *base, uint32_t at, uint32_t end)
{
    return scan_bytes(base, at, end, SCAN_TARGET);
}

static inline uint32_t scan_token(const char *base, uint32_t at, uint32_t end)
{
    return scan_bytes(base, at, end, SCAN_TCHAR);
}

static inline uint32_t scan_name(const char *base, uint32_t at, uint32_t end)
{
    return scan_bytes(base, at, end, SCAN_NAME);
}

#endif

static inline uint64_t scan_eight(const char *from)
{
    uint64_t word;
    memcpy(&word, from, sizeof word);
    return word;
}

static inline uint32_t scan_four(const char *from)
{
    uint32_t word;
    memcpy(&word, from, sizeof word);
    return word;
}

/* Whether `size` bytes are the literal `lower` of the same size, whatever the case of the letters. Exact for
   bytes of SCAN_VALUE and a literal of small letters, digits, '-', ':' and '/': setting bit 5 makes none of
   these from any such byte but the two cases of the letter. Eight or four bytes at a time; the last step
   overlaps the one before. */
static inline int scan_same(const char *bytes, const char *lower, uint32_t size)
{
    const uint64_t eight = 0x2020202020202020u;
    const uint32_t four = 0x20202020u;
    uint32_t at;

    if (size >= 8) {
        for (at = 0; at + 8 < size; at += 8)
            if ((scan_eight(bytes + at) | eight) != scan_eight(lower + at))
                return 0;
        return (scan_eight(bytes + size - 8) | eight) == scan_eight(lower + size - 8);
    }
    if (size >= 4)
        return (scan_four(bytes) | four) == scan_four(lower)
            && (scan_four(bytes + size - 4) | four) == scan_four(lower + size - 4);
    for (at = 0; at < size; at++)
        if ((bytes[at] | 0x20) != lower[at])
            return 0;
    return 1;
}

/* Whether two runs of bytes are the same but for the case of ASCII letters: exact for any bytes. */
static inline int scan_same_text(const char *one, const char *other, uint32_t size)
{
    for (uint32_t at = 0; at < size; at++) {
        uint8_t a = (uint8_t)one[at], b = (uint8_t)other[at];
        if (a != b && ((a ^ b) != 0x20 || (uint8_t)((a | 0x20) - 'a') > 25))
            return 0;
    }
    return 1;
}

#endif
