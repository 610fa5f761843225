"""Readiness: an epoll set and the descriptor that interrupts it.

Knows: epoll(7), eventfd(2) and 64-bit tags. Never sees: what a tag stands for.
Invariant: level-triggered for sockets, so that a late reader loses nothing; the interrupting
eventfd is edge-triggered and never read: each write is one event.
"""

from libc.stdint cimport int64_t, uint32_t, uint64_t


cdef extern from "<sys/epoll.h>" nogil:
    ctypedef union epoll_data_t:
        uint64_t u64
    struct epoll_event:
        uint32_t events
        epoll_data_t data
    int EPOLL_CLOEXEC, EPOLL_CTL_ADD, EPOLL_CTL_MOD, EPOLL_CTL_DEL
    uint32_t EPOLLIN, EPOLLOUT, EPOLLONESHOT, EPOLLET, EPOLLEXCLUSIVE
    int epoll_create1(int flags) noexcept
    int epoll_ctl(int epfd, int op, int fd, epoll_event* event) noexcept
    int c_epoll_wait "epoll_wait"(int epfd, epoll_event* events, int room, int timeout) noexcept

cdef extern from "<sys/eventfd.h>" nogil:
    int EFD_CLOEXEC, EFD_NONBLOCK
    int c_eventfd "eventfd"(unsigned int start, int flags) noexcept

cdef extern from "<unistd.h>" nogil:
    ssize_t c_write "write"(int fd, const void* data, size_t size) noexcept


cdef enum:
    LONGEST_WAIT = 3_600_000    # milliseconds; a later deadline is looked for again


cdef inline int poll_make() noexcept nogil:
    return epoll_create1(EPOLL_CLOEXEC)


cdef inline int event_make() noexcept nogil:
    return c_eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)


cdef inline void event_poke(int fd) noexcept nogil:
    """Wakes whoever waits in the set that watches `fd`. Callable from any thread."""
    cdef uint64_t one = 1
    c_write(fd, &one, sizeof(one))


cdef inline int poll_set(int epoll, int operation, int fd, uint32_t events, uint64_t tag) noexcept nogil:
    cdef epoll_event e
    e.events = events
    e.data.u64 = tag
    return epoll_ctl(epoll, operation, fd, &e)


cdef inline int poll_add(int epoll, int fd, uint32_t events, uint64_t tag) noexcept nogil:
    return poll_set(epoll, EPOLL_CTL_ADD, fd, events, tag)


cdef inline int poll_change(int epoll, int fd, uint32_t events, uint64_t tag) noexcept nogil:
    return poll_set(epoll, EPOLL_CTL_MOD, fd, events, tag)


cdef inline int poll_remove(int epoll, int fd) noexcept nogil:
    return poll_set(epoll, EPOLL_CTL_DEL, fd, 0, 0)


cdef inline int poll_wait(int epoll, epoll_event* events, int room, int64_t ns) noexcept nogil:
    """How many events came within `ns` nanoseconds (negative: for ever), rounded up to the
    millisecond: a deadline is never met early and never spun for. An interruption, which is what a stopped
    process finds when it goes on, ends the wait; what has come by then is reported all the same."""
    cdef int64_t ms = -1
    cdef int n
    if ns >= 0:
        ms = ns // 1_000_000 + 1 if ns else 0
        if ms > LONGEST_WAIT:
            ms = LONGEST_WAIT
    n = c_epoll_wait(epoll, events, room, <int>ms)
    if n < 0:
        n = c_epoll_wait(epoll, events, room, 0)
    return n if n >= 0 else 0
