"""The threads' words as Cython sees them.

Knows: the names in `atomics.h`, which says what each one orders. Never sees: what a word means.
Invariant: one line here for one function there.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

cdef extern from "atomics.h" nogil:
    uint64_t load_u64(const uint64_t* p) noexcept
    uint64_t load_u64_acquire(const uint64_t* p) noexcept
    uint64_t load_u64_seq(const uint64_t* p) noexcept
    void store_u64(uint64_t* p, uint64_t v) noexcept
    void store_u64_release(uint64_t* p, uint64_t v) noexcept
    void store_u64_seq(uint64_t* p, uint64_t v) noexcept
    bint cas_u64(uint64_t* p, uint64_t old, uint64_t v) noexcept
    void count_u32(uint32_t* p, uint32_t by) noexcept
    void count_u64(uint64_t* p, uint64_t by) noexcept
    uint64_t add_u64(uint64_t* p, uint64_t by) noexcept

    uint8_t load_u8(const uint8_t* p) noexcept
    void store_u8(uint8_t* p, uint8_t v) noexcept
    bint cas_u8(uint8_t* p, uint8_t old, uint8_t v) noexcept

    int64_t load_i64(const int64_t* p) noexcept
    void store_i64(int64_t* p, int64_t v) noexcept

    uint32_t load_u32(const uint32_t* p) noexcept
    uint32_t load_u32_acquire(const uint32_t* p) noexcept
    uint32_t load_u32_seq(const uint32_t* p) noexcept
    void store_u32(uint32_t* p, uint32_t v) noexcept
    void store_u32_release(uint32_t* p, uint32_t v) noexcept
    void store_u32_seq(uint32_t* p, uint32_t v) noexcept
    uint32_t swap_u32(uint32_t* p, uint32_t v) noexcept
    uint32_t add_u32(uint32_t* p, uint32_t by) noexcept
    uint32_t sub_u32(uint32_t* p, uint32_t by) noexcept

    void* load_ptr(void** p) noexcept
    void* load_ptr_seq(void** p) noexcept
    void store_ptr_seq(void** p, void* v) noexcept
    void* swap_ptr(void** p, void* v) noexcept
    bint cas_ptr(void** p, void* old, void* v) noexcept

    void futex_wait(uint32_t* word, uint32_t value, int64_t ns) noexcept
    void futex_wake(uint32_t* word, int many) noexcept
    void lock_word(uint32_t* word) noexcept
    void unlock_word(uint32_t* word) noexcept

    int64_t clock_ns(int id) noexcept
    int64_t now_ns() noexcept
    int64_t wall_seconds() noexcept
    int64_t wall_ns() noexcept
