"""Memory that is made once and lent again: blocks of one size, and bodies that grow.

Knows: free lists and their counters. Never sees: what a block holds, a connection, a lock: a pool
belongs to whoever holds the lease of its reactor.
Invariant: `lent` blocks are out, `spare` lie in the list, and `spare` does not pass `keep`: what a
burst made beyond that is given back, if the kernel takes it. Last in, first out: the block that comes
next is the warmest.
"""

from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memcpy

from fastserve.engine.atomics cimport count_u64, load_u64


cdef extern from "mem.h" nogil:
    void* mem_take(size_t size) noexcept
    void* mem_take_zeroed(size_t count, size_t size) noexcept
    void* mem_grow(void* p, size_t size) noexcept
    void mem_give(void* p) noexcept
    void* mem_map(size_t size, uint32_t number) noexcept
    bint mem_unmap(void* p, size_t size) noexcept
    int64_t mem_allocations() noexcept


cdef struct Block:
    Block* next


cdef struct Pool:
    Block* free
    size_t size             # bytes of a block
    uint32_t made           # blocks, ever
    uint32_t spare
    uint32_t keep
    uint64_t lent


cdef inline Block* pool_block(Pool* p) noexcept nogil:
    """A new one, or NULL."""
    p.made += 1
    return <Block*>mem_map(p.size, p.made)


cdef inline bint pool_make(Pool* p, size_t size, uint32_t ahead, uint32_t keep) noexcept nogil:
    """A pool of blocks of `size` bytes with `ahead` of them made now; False: no memory."""
    cdef uint32_t _
    cdef Block* b
    p.free = NULL
    p.size = size
    p.made = 0
    p.spare = 0
    p.keep = keep
    p.lent = 0
    for _ in range(ahead):
        b = pool_block(p)
        if b is NULL:
            return False
        b.next = p.free
        p.free = b
        p.spare += 1
    return True


cdef inline void* pool_lend(Pool* p) noexcept nogil:
    """The block that came back last, or a new one; NULL: no memory."""
    cdef Block* b = p.free
    if b is not NULL:
        p.free = b.next
        p.spare -= 1
    else:
        b = pool_block(p)
        if b is NULL:
            return NULL
    count_u64(&p.lent, 1)
    return b


cdef inline void pool_return(Pool* p, void* block) noexcept nogil:
    cdef Block* b = <Block*>block
    count_u64(&p.lent, <uint64_t>-1)
    if p.spare >= p.keep and mem_unmap(b, p.size):
        return
    b.next = p.free
    p.free = b
    p.spare += 1


cdef inline void pool_unmake(Pool* p) noexcept nogil:
    """Frees the spare blocks. Lent ones are their holders' to return first."""
    cdef Block* b
    while p.free is not NULL:
        b = p.free
        p.free = b.next
        mem_unmap(b, p.size)
    p.spare = 0


# Bodies: five sizes, each four times the last, from 16 KiB to 4 MiB; beyond that exact memory that is
# not kept. A body starts in the size that holds what has arrived and moves up as it grows: what a
# Content-Length promises buys nothing.
cdef enum:
    BODY_SIZES = 5
    BODY_SMALLEST = 16384
    BODY_COMMON = 65536         # sizes up to this one keep so many bytes of spare blocks each:
    COMMON_KEPT = 4194304
    RARE_KEPT = 1048576         # and those beyond so many, or one block


cdef struct Bodies:
    Pool sizes[BODY_SIZES]
    uint64_t lent
    uint64_t bytes          # of those that are lent


cdef struct Body:
    char* data
    size_t room
    size_t used


cdef inline size_t body_size_of(uint32_t rank) noexcept nogil:
    return <size_t>BODY_SMALLEST << (2 * rank)


cdef inline bint bodies_make(Bodies* b) noexcept nogil:
    cdef uint32_t i
    cdef size_t size, kept
    b.lent = b.bytes = 0
    for i in range(BODY_SIZES):
        size = body_size_of(i)
        kept = COMMON_KEPT if size <= BODY_COMMON else RARE_KEPT
        if not pool_make(&b.sizes[i], size, 0, <uint32_t>(kept / size) if kept > size else 1):
            return False
    return True


cdef inline void bodies_unmake(Bodies* b) noexcept nogil:
    cdef uint32_t i
    for i in range(BODY_SIZES):
        pool_unmake(&b.sizes[i])


cdef inline void body_drop(Bodies* b, Body* body) noexcept nogil:
    """Gives the body's memory back; a body without memory is left alone."""
    cdef uint32_t i
    if body.data is NULL:
        return
    count_u64(&b.lent, <uint64_t>-1)
    count_u64(&b.bytes, <uint64_t>0 - body.room)
    for i in range(BODY_SIZES):
        if body.room == body_size_of(i):
            pool_return(&b.sizes[i], body.data)
            break
    else:
        mem_give(body.data)
    body.data = NULL
    body.room = body.used = 0


cdef inline bint body_grow(Bodies* b, Body* body, size_t room) noexcept nogil:
    """Room for at least `room` bytes, what is there kept; False: no memory (the body stays as it was)."""
    cdef uint32_t i
    cdef Body bigger
    if room <= body.room:
        return True
    bigger.used = body.used
    for i in range(BODY_SIZES):
        if room <= body_size_of(i):
            bigger.room = body_size_of(i)
            bigger.data = <char*>pool_lend(&b.sizes[i])
            break
    else:
        # Doubling keeps the copying linear in the size of the body.
        bigger.room = room if room > 2 * body.room else 2 * body.room
        bigger.data = <char*>mem_take(bigger.room)
    if bigger.data is NULL:
        return False
    if body.used:
        memcpy(bigger.data, body.data, body.used)
    body_drop(b, body)
    count_u64(&b.lent, 1)
    count_u64(&b.bytes, bigger.room)
    body[0] = bigger
    return True


cdef inline uint64_t pool_lent(Pool* p) noexcept nogil:
    return load_u64(&p.lent)
