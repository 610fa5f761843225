"""What the server says of itself when nobody asks Python.

Knows: the words of a health answer. Never sees: where its figures come from, a descriptor, a lock.
Invariant: `health_text` writes at most HEALTH_ROOM bytes.
"""

from libc.stdint cimport uint64_t

from fastserve.engine.reply cimport put, put_number


cdef enum:
    HEALTH_ROOM = 512

cdef struct Health:
    bint draining
    uint64_t workers            # threads that run handlers
    uint64_t busy               # of them: in a handler, or waiting for the GIL
    uint64_t connections
    uint64_t queued             # requests that wait for a worker
    uint64_t oldest_wait_ms     # of those
    uint64_t uptime_s


cdef inline char* put_member(char* to, const char* name, size_t size, uint64_t value) noexcept nogil:
    return put_number(put(put(to, name, size), b": ", 2), value)


cdef inline size_t health_text(char* to, const Health* h) noexcept nogil:
    """One object of JSON (RFC 8259) and a line end."""
    cdef char* p = to
    if h.draining:
        p = put(p, b'{"status": "stopping"', 21)
    else:
        p = put(p, b'{"status": "ok"', 15)
    p = put_member(p, b', "workers"', 11, h.workers)
    p = put_member(p, b', "busy"', 8, h.busy)
    p = put_member(p, b', "connections"', 15, h.connections)
    p = put_member(p, b', "queued"', 10, h.queued)
    p = put_member(p, b', "oldest_wait_ms"', 18, h.oldest_wait_ms)
    p = put_member(p, b', "uptime_s"', 12, h.uptime_s)
    return <size_t>(put(p, b"}\n", 2) - to)
