"""Deadlines as intrusive lists: one list a kind, the next to expire always at its head.

Knows: timers, which live inside the things they time, and the order of their times.
Never sees: a clock, a connection, a lock: a list belongs to whoever holds the reactor's lease.
Invariant: a list is sorted by `at`. Every kind has one period, so that a new deadline belongs at
the tail; the rare shorter one walks back from there.
"""

from libc.stdint cimport int64_t


cdef enum:
    NEVER = 0x7fffffffffffffff


cdef struct Timer:
    Timer* prev
    Timer* next
    int64_t at              # nanoseconds on the monotonic clock


cdef struct Deadlines:
    Timer ends              # a ring: ends.next expires first, ends.prev last


cdef inline void deadlines_make(Deadlines* d) noexcept nogil:
    d.ends.prev = d.ends.next = &d.ends
    d.ends.at = NEVER


cdef inline bint timer_runs(Timer* t) noexcept nogil:
    return t.next is not NULL


cdef inline void timer_stop(Timer* t) noexcept nogil:
    if t.next is not NULL:
        t.prev.next = t.next
        t.next.prev = t.prev
        t.next = t.prev = NULL


cdef inline void timer_start(Deadlines* d, Timer* t, int64_t at) noexcept nogil:
    cdef Timer* after
    timer_stop(t)
    after = d.ends.prev
    while after is not &d.ends and after.at > at:
        after = after.prev
    t.at = at
    t.prev = after
    t.next = after.next
    after.next.prev = t
    after.next = t


cdef inline void timer_touch(Deadlines* d, Timer* t, int64_t now, int64_t period) noexcept nogil:
    """Start or postpone, but move a running timer at most every period/64: it expires up to that
    much late and never early, and a busy connection does not pay for its idle deadline."""
    cdef int64_t slack = period >> 6
    cdef int64_t at = now + period + slack
    if t.next is NULL or at - t.at > slack:
        timer_start(d, t, at)


cdef inline int64_t deadlines_next(Deadlines* d) noexcept nogil:
    """The time of the first deadline, or NEVER."""
    cdef Timer* t = d.ends.next
    return NEVER if t is &d.ends else t.at


cdef inline Timer* deadlines_expired(Deadlines* d, int64_t now) noexcept nogil:
    """The first timer whose time has come, stopped; NULL: none."""
    cdef Timer* t = d.ends.next
    if t is &d.ends or t.at > now:
        return NULL
    timer_stop(t)
    return t
