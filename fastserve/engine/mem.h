/* Every allocation of our own C code goes through these, so that a debug build can count them.
 *
 * Knows: malloc, mmap and a counter. Never sees: what the memory is for; Python's own allocator.
 * Invariant: FASTSERVE_DEBUG adds one relaxed increment a call and nothing else.
 */
#ifndef FASTSERVE_MEM_H
#define FASTSERVE_MEM_H

#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>

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

/* Pages of its own: given back they are gone, and no hole is left in the heap that the program shares with us. Blocks
 * begin at one of 64 lines of their first page, by `number`: otherwise the first lines of all of them, which are used
 * most, would compete for the same few sets of the cache. */
#define MEM_LINE 64
#define MEM_LINES 64
#ifdef __SANITIZE_ADDRESS__     /* which watches the heap */
static inline void *mem_map(size_t size, uint32_t number) { MEM_COUNT(); (void)number; return malloc(size); }
static inline int mem_unmap(void *p, size_t size) { (void)size; free(p); return 1; }
#else
static inline void *mem_map(size_t size, uint32_t number) {
    size_t room = size + MEM_LINE * MEM_LINES;
    char *p = (char *)mmap(NULL, room, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    MEM_COUNT();
    return p == MAP_FAILED ? NULL : p + number % MEM_LINES * MEM_LINE;
}
/* 0: the kernel has no room for the hole that this would leave, and the block is still there. */
static inline int mem_unmap(void *p, size_t size) {
    /* No page is smaller than the lines that were left out. */
    return !munmap((void *)((uintptr_t)p & ~(uintptr_t)(MEM_LINE * MEM_LINES - 1)), size + MEM_LINE * MEM_LINES);
}
#endif

#endif
