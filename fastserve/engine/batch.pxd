"""Many receives, or many sends, at once.

Knows: recv and send on non-blocking sockets, and the ring that makes them in one system call where the
kernel has io_uring. Never sees: what the bytes are, and whose.
Invariant: behind `batch_go` every call has its result, in the terms of `net.pxd`; nothing is under way
between two batches. Without a ring, and for few calls, each is a system call.
"""

from libc.errno cimport EAGAIN, EINTR
from libc.stdint cimport uint32_t

from fastserve.engine.net cimport AGAIN, GONE, net_recv, net_send


cdef extern from "ring.h" nogil:
    int RING_SEND, RING_RECV
    struct ring_call:
        int fd
        void* data
        size_t size
    struct ring:
        int fd
    void ring_make(ring* r, uint32_t entries) noexcept
    void ring_unmake(ring* r) noexcept
    uint32_t ring_go(ring* r, int opcode, const ring_call* calls, uint32_t n, ssize_t* results) noexcept


cdef enum:
    BATCH = 256             # calls
    RING_FROM = 4           # calls that are worth a ring


cdef struct Batch:
    ring ring
    uint32_t n
    void* whose[BATCH]
    ring_call calls[BATCH]
    ssize_t results[BATCH]


cdef inline void batch_make(Batch* b, bint with_ring) noexcept nogil:
    b.n = 0
    b.ring.fd = -1
    if with_ring:
        ring_make(&b.ring, BATCH)


cdef inline void batch_unmake(Batch* b) noexcept nogil:
    ring_unmake(&b.ring)


cdef inline void batch_add(Batch* b, void* whose, int fd, void* data, size_t size) noexcept nogil:
    """The caller sees to it that there are no more than BATCH."""
    b.whose[b.n] = whose
    b.calls[b.n].fd = fd
    b.calls[b.n].data = data
    b.calls[b.n].size = size
    b.n += 1


cdef inline void batch_go(Batch* b, bint sends) noexcept nogil:
    cdef uint32_t i, made = 0
    cdef ring_call* c
    cdef ssize_t n
    if b.ring.fd >= 0 and b.n >= RING_FROM:
        made = ring_go(&b.ring, RING_SEND if sends else RING_RECV, b.calls, b.n, b.results)
    for i in range(made):
        n = b.results[i]
        if n == -EINTR:
            c = &b.calls[i]
            b.results[i] = net_send(c.fd, c.data, c.size) if sends else net_recv(c.fd, c.data, c.size)
        elif n <= 0:
            b.results[i] = AGAIN if n == -EAGAIN else GONE
    for i in range(made, b.n):
        c = &b.calls[i]
        b.results[i] = net_send(c.fd, c.data, c.size) if sends else net_recv(c.fd, c.data, c.size)
