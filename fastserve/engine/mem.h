/* Every allocation of our own C code goes through these three, so that a debug build can count them.
 *
 * Knows: malloc and a counter. Never sees: what the memory is for; Python's own allocator.
 * Invariant: FASTSERVE_DEBUG adds one relaxed increment a call and nothing else.
 */
#ifndef FASTSERVE_MEM_H
#define FASTSERVE_MEM_H

#include <stdint.h>
#include <stdlib.h>

#ifdef FASTSERVE_DEBUG
static uint64_t mem_calls;
#define MEM_COUNT() __atomic_add_fetch(&mem_calls, 1, __ATOMIC_RELAXED)
static inline int64_t mem_allocations(void) { return (int64_t)__atomic_load_n(&mem_calls, __ATOMIC_RELAXED); }
#else
#define MEM_COUNT() ((void)0)
static inline int64_t mem_allocations(void) { return -1; }
#endif

static inline void *mem_take(size_t size) { MEM_COUNT(); return malloc(size); }
static inline void *mem_take_zeroed(size_t count, size_t size) { MEM_COUNT(); return calloc(count, size); }
static inline void *mem_grow(void *p, size_t size) { MEM_COUNT(); return realloc(p, size); }
static inline void mem_give(void *p) { free(p); }

/* How far apart blocks of `size` bytes should lie: an odd number of cache lines, so that the first
 * lines of many blocks do not fall into the same few sets of the cache. */
static inline size_t mem_stride(size_t size) {
    size_t lines = (size + 63) / 64;
    return (lines | 1) * 64;
}

#endif
