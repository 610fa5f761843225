# Forks: a child has nothing of its parent's servers.
#
# Knows: the houses of this process, and which descriptors are a house's. Never sees: Python. libc calls `before_fork`
# and `after_fork` inside of fork(2), whoever calls that. Invariant: while a process is copied, a descriptor of a
# connection is in a slot, and what is in a slot is open. Whoever has one of the locks that see to that does not wait
# for Python, nor for a client; the order is `houses_lock`, the reactors' `descriptors`, the house's `lock`.

cdef extern from "<pthread.h>" nogil:
    int pthread_atfork(void (*prepare)() noexcept nogil, void (*parent)() noexcept nogil,
                       void (*child)() noexcept nogil) noexcept

cdef House* houses              # stands behind `houses_lock`
cdef uint32_t houses_lock
cdef bint hears_forks           # stays when an import of this module failed half-way and is tried again


cdef void forks_know(House* h) noexcept nogil:
    """From here on all reactors of the house have their descriptors."""
    global houses
    lock_word(&houses_lock)
    h.next_house = houses
    houses = h
    unlock_word(&houses_lock)


cdef void forks_forget(House* h) noexcept nogil:
    """Also a house whose making failed before `forks_know`."""
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
    """Closes the copies of every descriptor, whose numbers nobody finds any more; the epoll sets, which the parent
    shares, are not changed. The houses are dead here, and never freed: their threads, which may be in the middle of
    anything, are not in this process to finish."""
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
            close_copy(&r.listeners[k].fd)
        for k in range(r.slots.touched):
            if r.slots.table[k].state != FREE:
                close_copy(&r.slots.table[k].fd)
        close_copy(&r.epoll)
        close_copy(&r.lease.event)
        close_copy(&r.spare)
        batch_unmake(&r.batch)
    close_copy(&h.log_fd)


cdef inline void close_copy(int* fd) noexcept nogil:
    if fd[0] >= 0:
        c_close(fd[0])
        fd[0] = -1


if not hears_forks:
    if pthread_atfork(before_fork, after_fork, after_fork_in_child):
        raise MemoryError
    hears_forks = True
