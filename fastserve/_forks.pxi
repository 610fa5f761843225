# Forks: a child has nothing of its parent's servers.
#
# Knows: the houses of this process, and which descriptors are a house's. Never sees: Python, which does not run between
# `before_fork` and `after_fork`: libc calls both inside of fork(2), whoever calls that. Invariant: while a process is
# copied, a descriptor of a connection is in a slot, and what is in a slot is open; whoever has one of the locks that
# see to that makes a few system calls that do not wait, and waits for nobody.

cdef extern from "<pthread.h>" nogil:
    int pthread_atfork(void (*prepare)() noexcept nogil, void (*parent)() noexcept nogil,
                       void (*child)() noexcept nogil) noexcept

cdef House* houses              # stands behind `houses_lock`
cdef uint32_t houses_lock


cdef void forks_know(House* h) noexcept nogil:
    """From here on all reactors of the house have their descriptors."""
    global houses
    lock_word(&houses_lock)
    h.next_house = houses
    houses = h
    unlock_word(&houses_lock)


cdef void forks_forget(House* h) noexcept nogil:
    """Also of a house whose making has failed before they knew it."""
    cdef House** at = &houses
    lock_word(&houses_lock)
    while at[0] is not NULL and at[0] is not h:
        at = &at[0].next_house
    if at[0] is h:
        at[0] = h.next_house
    unlock_word(&houses_lock)


cdef void before_fork() noexcept nogil:
    cdef House* h
    cdef uint32_t i
    lock_word(&houses_lock)
    h = houses
    while h is not NULL:
        for i in range(h.n_reactors):
            lock_word(&h.reactors[i].descriptors)
        h = h.next_house


cdef void after_fork() noexcept nogil:
    cdef House* h = houses
    cdef uint32_t i
    while h is not NULL:
        for i in range(h.n_reactors):
            unlock_word(&h.reactors[i].descriptors)
        h = h.next_house
    unlock_word(&houses_lock)


cdef void after_fork_in_child() noexcept nogil:
    """Closes the copies of every descriptor; the epoll sets, which the parent shares, are not changed. The houses are
    dead here, and never freed: their threads, which may be in the middle of anything, are not in this process to
    finish."""
    global houses
    cdef House* h = houses
    after_fork()
    houses = NULL
    while h is not NULL:
        h.forked = 1
        add_u32(&h.refs, 1)
        close_copies(h)
        h = h.next_house


cdef void close_copies(House* h) noexcept nogil:
    cdef Reactor* r
    cdef uint32_t i, k
    for i in range(h.n_reactors):
        r = &h.reactors[i]
        if r.epoll < 0:
            # Closed in the parent too.
            continue
        for k in range(r.n_listeners):
            c_close(r.listeners[k].fd)
        for k in range(r.slots.touched):
            if r.slots.table[k].state != FREE:
                c_close(r.slots.table[k].fd)
        c_close(r.epoll)
        c_close(r.lease.event)
        if r.spare >= 0:
            c_close(r.spare)
        batch_unmake(&r.batch)
    if h.log_fd >= 0:
        c_close(h.log_fd)


if pthread_atfork(before_fork, after_fork, after_fork_in_child):
    raise MemoryError
