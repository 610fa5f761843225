/* Words that several threads touch, and the two ways to wait for one.
 *
 * Knows: the compiler's __atomic operations and futex(2). Never sees: what a word means.
 * Invariant: every operation names its memory order; there are no stand-alone fences (gcc's ThreadSanitizer
 * does not see them). A futex call orders nothing by itself: the load that ends a wait acquires.
 */
#ifndef FASTSERVE_ATOMICS_H
#define FASTSERVE_ATOMICS_H

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static inline uint64_t load_u64(const uint64_t *p) { return __atomic_load_n(p, __ATOMIC_RELAXED); }
static inline uint64_t load_u64_acquire(const uint64_t *p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
static inline uint64_t load_u64_seq(const uint64_t *p) { return __atomic_load_n(p, __ATOMIC_SEQ_CST); }
static inline void store_u64(uint64_t *p, uint64_t v) { __atomic_store_n(p, v, __ATOMIC_RELAXED); }
static inline void store_u64_release(uint64_t *p, uint64_t v) { __atomic_store_n(p, v, __ATOMIC_RELEASE); }
static inline void store_u64_seq(uint64_t *p, uint64_t v) { __atomic_store_n(p, v, __ATOMIC_SEQ_CST); }
static inline int cas_u64(uint64_t *p, uint64_t old, uint64_t v) {
    return __atomic_compare_exchange_n(p, &old, v, 0, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED);
}
static inline uint8_t load_u8(const uint8_t *p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
static inline void store_u8(uint8_t *p, uint8_t v) { __atomic_store_n(p, v, __ATOMIC_RELEASE); }
/* One that fails acquires: who comes second sees what the first wrote before. */
static inline int cas_u8(uint8_t *p, uint8_t old, uint8_t v) {
    return __atomic_compare_exchange_n(p, &old, v, 0, __ATOMIC_SEQ_CST, __ATOMIC_ACQUIRE);
}
/* A counter with one writer at a time: a plain add, published for readers of statistics. */
static inline void count_u64(uint64_t *p, uint64_t by) {
    __atomic_store_n(p, __atomic_load_n(p, __ATOMIC_RELAXED) + by, __ATOMIC_RELAXED);
}
static inline void count_u32(uint32_t *p, uint32_t by) {
    __atomic_store_n(p, __atomic_load_n(p, __ATOMIC_RELAXED) + by, __ATOMIC_RELAXED);
}
/* A counter with several writers. */
static inline uint64_t add_u64(uint64_t *p, uint64_t by) { return __atomic_add_fetch(p, by, __ATOMIC_RELAXED); }

static inline int64_t load_i64(const int64_t *p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
static inline void store_i64(int64_t *p, int64_t v) { __atomic_store_n(p, v, __ATOMIC_RELEASE); }

static inline uint32_t load_u32(const uint32_t *p) { return __atomic_load_n(p, __ATOMIC_RELAXED); }
static inline uint32_t load_u32_acquire(const uint32_t *p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
static inline uint32_t load_u32_seq(const uint32_t *p) { return __atomic_load_n(p, __ATOMIC_SEQ_CST); }
static inline void store_u32(uint32_t *p, uint32_t v) { __atomic_store_n(p, v, __ATOMIC_RELAXED); }
static inline void store_u32_release(uint32_t *p, uint32_t v) { __atomic_store_n(p, v, __ATOMIC_RELEASE); }
static inline void store_u32_seq(uint32_t *p, uint32_t v) { __atomic_store_n(p, v, __ATOMIC_SEQ_CST); }
static inline uint32_t swap_u32(uint32_t *p, uint32_t v) { return __atomic_exchange_n(p, v, __ATOMIC_SEQ_CST); }
static inline uint32_t add_u32(uint32_t *p, uint32_t by) { return __atomic_add_fetch(p, by, __ATOMIC_SEQ_CST); }
static inline uint32_t sub_u32(uint32_t *p, uint32_t by) { return __atomic_sub_fetch(p, by, __ATOMIC_SEQ_CST); }

static inline void *load_ptr(void *const *p) { return __atomic_load_n(p, __ATOMIC_RELAXED); }
static inline void *load_ptr_seq(void *const *p) { return __atomic_load_n(p, __ATOMIC_SEQ_CST); }
static inline void store_ptr_seq(void **p, void *v) { __atomic_store_n(p, v, __ATOMIC_SEQ_CST); }
static inline void *swap_ptr(void **p, void *v) { return __atomic_exchange_n(p, v, __ATOMIC_ACQ_REL); }
static inline int cas_ptr(void **p, void *old, void *v) {
    return __atomic_compare_exchange_n(p, &old, v, 0, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED);
}

/* Sleeps while *word == value, at most `ns` nanoseconds (negative: for ever); may return early. */
static inline void futex_wait(uint32_t *word, uint32_t value, int64_t ns) {
    struct timespec limit = {ns / 1000000000, ns % 1000000000};
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, ns < 0 ? NULL : &limit, NULL, 0);
}
static inline void futex_wake(uint32_t *word, int many) {
    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, many, NULL, NULL, 0);
}

/* A lock for the rare paths: one word, futex when contended (0 free, 1 taken, 2 taken with waiters). */
static inline void lock_word(uint32_t *word) {
    uint32_t seen = 0;
    if (__atomic_compare_exchange_n(word, &seen, 1, 0, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED)) return;
    while (__atomic_exchange_n(word, 2, __ATOMIC_ACQUIRE) != 0) futex_wait(word, 2, -1);
}
static inline void unlock_word(uint32_t *word) {
    if (__atomic_exchange_n(word, 0, __ATOMIC_RELEASE) == 2) futex_wake(word, 1);
}

static inline int64_t clock_ns(clockid_t id) {
    struct timespec t = {0, 0}; /* the clock of a thread that has ended stands at 0 */
    clock_gettime(id, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}
/* Nanoseconds that never run backwards: every deadline is measured on it. */
static inline int64_t now_ns(void) { return clock_ns(CLOCK_MONOTONIC); }
/* Seconds since 1970 for the Date field: the coarse clock, a few milliseconds late at most. */
static inline int64_t wall_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}
static inline int64_t wall_seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_REALTIME_COARSE, &t);
    return t.tv_sec;
}

#endif
