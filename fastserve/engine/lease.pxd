"""The lease: which thread turns a reactor, and how it changes hands.

Knows: one word a reactor, one futex a worker, the stack of parked workers, the watcher's judgement
of a thread that stands still. Never sees: a connection, a request, Python.

The word holds a state and a number that is unique to the occasion:

    IO      the holder is in native code that ends by itself; nobody may seize
    WANT    the holder waits for the GIL
    CALL    the holder is inside a handler
    TAIL    the holder is in Python outside a handler: hooks, logging, dropping references

Invariant: exactly one thread holds. Only the holder publishes (a plain store, seen as WANT, CALL or
TAIL before that begins; IO again, with a new number, is news for a watcher and nothing else); only
a compare-and-swap of that very word ends it, the holder's own (take back) or another's (seize), so
that exactly one of the two wins, and a number that never comes again keeps an old holder from
taking back what a later one published. Between publishing and taking back the holder touches
nothing of the reactor.

Memory order: taking back, seizing and publishing are sequentially consistent. Publish-then-look-
whether-the-watcher-sleeps meets sleep-then-look-at-the-word, and each side must see the other's
store or be seen. A hand-over goes through the worker's futex word, stored with release and loaded
with acquire: everything that the old holder wrote is there.
"""

from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memmove

from fastserve.engine.atomics cimport (
    add_u32, cas_u64, clock_ns, count_u32, futex_wait, futex_wake, load_ptr_seq, load_u32, load_u32_acquire,
    load_u32_seq, load_u64_seq, lock_word, now_ns, store_u32, store_u32_release, store_u32_seq, store_u64_seq,
    sub_u32, swap_u32, unlock_word,
)
from fastserve.engine.poll cimport event_poke
from fastserve.engine.stack cimport stack_push, stack_take


cdef extern from "clocks.h" nogil:
    int thread_id() noexcept
    int thread_cpu_clock() noexcept
    char thread_state(int tid) noexcept
    void thread_timer_slack(unsigned long ns) noexcept


cdef enum:
    IO = 0
    WANT = 1
    CALL = 2
    TAIL = 3
    STATE = 3               # the mask of the state in the word; the number stands above it

cdef enum:
    WATCHER = 0xffffffff    # in `holder`: the reactor's own native thread

cdef enum:                  # what a parked worker finds in its futex word
    PARKED = 0
    LEAVE = 1
    LENT = 2                # LENT + i: it holds the lease of reactor i now

cdef enum:                  # nanoseconds
    TICK = 1_000_000                # the watcher's look at a busy reactor
    TICK_BRISK = 100_000            # for a while after it found a thread blocked
    BRISK = 20_000_000              # that while
    TICK_SUSPECT = 20_000           # the second look at a CALL whose thread slept at the first
    PATIENCE = 10_000_000           # WANT or TAIL may stand this long
    PATIENCE_COMPUTING = 5_000_000  # so may a CALL that computes under a GIL: its switch interval
    IDLE_TICKS = 10                 # looks without news before the watcher sleeps


cdef struct Mate:
    # A worker as the others see it.
    uint32_t wake           # futex word
    uint32_t index
    uint64_t let_go         # the last CALL whose connection its seizer has finished with
    uint64_t wish           # atomic: tag of the connection whose call it wants looked at
    int cpu_clock
    int tid
    bint alive


cdef struct Crew:
    # All workers of a server, and the stack of those that are parked.
    uint32_t lock
    uint32_t parked         # written under the lock, read by statistics without
    uint32_t room           # of both arrays
    uint32_t n_leases
    uint32_t closing        # nobody parks any more; seen by watchers too
    uint32_t wanted         # watchers that turn a reactor with requests that nobody can run
    uint32_t* stack
    Mate* mates
    Lease** leases


cdef struct Lease:
    uint64_t word
    uint64_t n              # the holder's: occasions so far
    uint32_t holder         # index of a worker, or WATCHER
    uint32_t asker          # 1 + index of the worker that waits with the GIL in hand; 0: none
    uint32_t gil_waiter     # 1 + index of the worker that was seized in WANT; the watcher's
    uint32_t ticks          # the watcher's looks so far; whoever holds may read them as a coarse clock
    uint32_t asleep         # futex: the watcher sleeps until somebody publishes
    uint32_t hungry         # the watcher's: it is counted in `wanted`
    uint32_t closed         # the watcher holds for ever: nobody is lent this lease again
    uint32_t index
    void* inbox             # what comes home to the holder; each links to the one before it
    int event               # eventfd that interrupts whoever waits in the reactor's epoll set


cdef inline void lease_make(Lease* l, uint32_t index, int event) noexcept nogil:
    # A worker's `let_go` names a word of whichever reactor it was last called for: numbers of two
    # reactors must never meet. 2**46 occasions are a year at two million a second.
    l.n = <uint64_t>index << 48
    l.word = l.n << 2 | IO
    l.holder = WATCHER
    l.ticks = l.asker = l.gil_waiter = l.asleep = l.hungry = l.closed = 0
    l.inbox = NULL
    l.index = index
    l.event = event


cdef inline uint64_t lease_publish(Lease* l, uint64_t state) noexcept nogil:
    """The holder says what it is about to do; the answer is the word to take back."""
    cdef uint64_t word
    l.n += 1
    word = (l.n << 2) | state
    store_u64_seq(&l.word, word)
    if load_u32_seq(&l.asleep):
        lease_wake_watcher(l)
    return word


cdef inline bint lease_take_back(Lease* l, uint64_t word) noexcept nogil:
    """True: still the holder, in IO. False: seized; nothing of the reactor may be touched."""
    return cas_u64(&l.word, word, word & ~<uint64_t>STATE)


cdef inline bint lease_seize(Lease* l, uint64_t word) noexcept nogil:
    """True: the caller is the holder now, in IO."""
    return cas_u64(&l.word, word, word & ~<uint64_t>STATE)


cdef inline void lease_wake_watcher(Lease* l) noexcept nogil:
    if swap_u32(&l.asleep, 0):
        futex_wake(&l.asleep, 1)


# Workers come and go through the crew.

cdef inline void mate_wake(Mate* m, uint32_t why) noexcept nogil:
    store_u32_release(&m.wake, why)
    futex_wake(&m.wake, 1)


cdef inline bint crew_push(Crew* c, Mate* m, bint spare) noexcept nogil:
    """A spare worker goes below all others: needed only when they are busy, it can retire."""
    cdef bint welcome
    lock_word(&c.lock)
    welcome = not load_u32(&c.closing)
    if welcome:
        if spare:
            memmove(c.stack + 1, c.stack, c.parked * sizeof(uint32_t))
            c.stack[0] = m.index
        else:
            c.stack[c.parked] = m.index
        count_u32(&c.parked, 1)
    unlock_word(&c.lock)
    return welcome


cdef inline Mate* crew_pop(Crew* c) noexcept nogil:
    """The worker that parked last: the warmest. NULL: every one is busy. Who pops it must wake it."""
    cdef Mate* m = NULL
    lock_word(&c.lock)
    if c.parked:
        count_u32(&c.parked, <uint32_t>-1)
        m = &c.mates[c.stack[c.parked]]
    unlock_word(&c.lock)
    return m


cdef inline bint crew_withdraw(Crew* c, Mate* m) noexcept nogil:
    """Takes a parked worker out of the stack, wherever it lies; False: somebody popped it."""
    cdef uint32_t i
    cdef bint found = False
    lock_word(&c.lock)
    for i in range(c.parked):
        if found:
            c.stack[i - 1] = c.stack[i]
        elif c.stack[i] == m.index:
            found = True
    if found:
        count_u32(&c.parked, <uint32_t>-1)
    unlock_word(&c.lock)
    return found


cdef inline uint32_t crew_park(Crew* c, Mate* m, int64_t patience) noexcept nogil:
    """Waits to be needed: LENT + reactor, or LEAVE. PARKED: nobody came within `patience`
    nanoseconds (negative: for ever), and the worker is off the stack."""
    cdef uint32_t i, why
    cdef int64_t until
    store_u32(&m.wake, PARKED)
    if not crew_push(c, m, patience >= 0):
        return LEAVE
    # A watcher that turns because nobody was parked looks at the stack after each turn: end this one.
    # It stored `holder` before it looked; the stack's lock orders our push against that look.
    for i in range(c.n_leases):
        if load_u32_seq(&c.leases[i].holder) == WATCHER:
            event_poke(c.leases[i].event)
    until = now_ns() + patience
    while True:
        why = load_u32_acquire(&m.wake)
        if why != PARKED:
            return why
        if patience < 0:
            futex_wait(&m.wake, PARKED, -1)
        elif until - now_ns() > 0:
            futex_wait(&m.wake, PARKED, until - now_ns())
        elif crew_withdraw(c, m):
            return PARKED
        else:
            patience = -1


cdef inline void crew_close(Crew* c) noexcept nogil:
    """Sends every parked worker away, and each other one as soon as it would park."""
    cdef Mate* m
    lock_word(&c.lock)
    store_u32_seq(&c.closing, 1)
    unlock_word(&c.lock)
    while True:
        m = crew_pop(c)
        if m is NULL:
            return
        mate_wake(m, LEAVE)


# Giving the lease away. Only the holder may, and only in IO.

cdef inline void lease_lend(Lease* l, Mate* m) noexcept nogil:
    store_u32_seq(&l.holder, m.index)
    mate_wake(m, LENT + l.index)


cdef inline void lease_give_up(Lease* l) noexcept nogil:
    """To the watcher."""
    store_u32_seq(&l.holder, WATCHER)
    lease_wake_watcher(l)


cdef inline bint lease_pass(Lease* l, Crew* c) noexcept nogil:
    """To the worker that parked last; False: none is parked, and the lease stays."""
    cdef Mate* m = crew_pop(c)
    if m is NULL:
        return False
    lease_lend(l, m)
    return True


cdef inline bint lease_ask(Lease* l, Mate* m) noexcept nogil:
    """A worker that was seized in WANT has the GIL: it waits, GIL in hand, for the end of the
    watcher's turn, which is bounded, and comes back as the holder. False: the lease is closed."""
    store_u32(&m.wake, PARKED)
    store_u32_seq(&l.asker, m.index + 1)
    if load_u32_seq(&l.closed):
        return False
    event_poke(l.event)
    while load_u32_acquire(&m.wake) == PARKED:
        futex_wait(&m.wake, PARKED, -1)
    return load_u32(&m.wake) != LEAVE


cdef inline bint watcher_gives(Lease* l, Crew* c, bint ready) noexcept nogil:
    """After each turn of the watcher: to whoever has the GIL and asked; else, while nobody waits for
    the GIL, to a parked worker. At most one thread a reactor waits for the GIL. With requests `ready`
    and nobody parked the reactor is hungry: then reactors without requests leave parked workers to
    it, and their idle holders park (`lease_spares`)."""
    cdef uint32_t asker = load_u32_acquire(&l.asker)
    cdef Mate* m = NULL
    if asker:
        l.gil_waiter = 0
        store_u32(&l.asker, 0)
        m = &c.mates[asker - 1]
    elif not l.gil_waiter and (ready or not load_u32_seq(&c.wanted)):
        m = crew_pop(c)
    # Before it is lent: a new holder that still saw this hunger would give the lease up again.
    watcher_hungers(l, c, ready and m is NULL and not l.gil_waiter)
    if m is NULL:
        return False
    lease_lend(l, m)
    return True


cdef inline void watcher_hungers(Lease* l, Crew* c, bint hungry) noexcept nogil:
    cdef uint32_t i
    if hungry == <bint>l.hungry:
        return
    l.hungry = hungry
    if not hungry:
        sub_u32(&c.wanted, 1)
        return
    add_u32(&c.wanted, 1)
    for i in range(c.n_leases):
        if c.leases[i] is not l:
            event_poke(c.leases[i].event)


cdef inline bint lease_spares(Crew* c) noexcept nogil:
    """Should a holder without requests give its lease to the watcher and park? Another reactor has
    requests and nobody to run them."""
    return load_u32_seq(&c.wanted) != 0


cdef inline void watcher_closes(Lease* l, Crew* c) noexcept nogil:
    """The watcher, as the holder, keeps the lease for good. One that asks now either sees `closed`
    or is seen here."""
    cdef uint32_t asker
    store_u32_seq(&l.closed, 1)
    asker = load_u32_seq(&l.asker)
    if asker:
        mate_wake(&c.mates[asker - 1], LEAVE)


# The inbox: what a worker that ran off lease gives back to whoever holds by then.

cdef inline void home_push(Lease* l, void** link, void* thing) noexcept nogil:
    """From any thread. `link` lies in `thing` and is the inbox's until it is taken. Whether the holder
    must hear of it, by `event_poke`, is for the caller to judge, behind this."""
    stack_push(&l.inbox, link, thing)


cdef inline void* home_take(Lease* l) noexcept nogil:
    """By the holder: everything, last pushed first, or NULL."""
    return stack_take(&l.inbox)


# The watcher's judgement.

cdef struct Look:
    uint64_t word           # at the last look
    int64_t since           # when it was first seen
    int64_t at              # the last look
    int64_t cpu             # the holder's CPU clock then
    int64_t brisk_until
    uint32_t still          # looks without news

cdef enum:                  # verdicts
    LET = 0                 # nothing stands
    BLOCKED = 1             # a CALL whose thread sleeps
    COMPUTING = 2           # a CALL that has computed for too long
    STUCK = 3               # WANT or TAIL beyond patience
    QUIET = 4               # nothing happens at all
    SUSPECT = 5             # a new CALL whose thread sleeps: worth a second look soon


cdef inline int watcher_looks(Lease* l, Crew* c, Look* seen, bint gil) noexcept nogil:
    """One look at the word. It takes two of the same CALL for a verdict: a thread whose CPU clock
    stood still in between is asked for its state as well, because one that the kernel has
    pre-empted stands still too and is not blocked."""
    cdef uint64_t word = load_u64_seq(&l.word)
    cdef uint64_t state = word & STATE
    cdef uint32_t holder = load_u32(&l.holder)
    cdef int64_t now = now_ns()
    cdef int64_t cpu = 0, computed, passed = now - seen.at
    cdef bint news = word != seen.word
    count_u32(&l.ticks, 1)
    seen.at = now
    if state == CALL and holder != WATCHER:
        cpu = clock_ns(c.mates[holder].cpu_clock)
    computed = cpu - seen.cpu
    seen.cpu = cpu
    if news:
        seen.word = word
        seen.since = now
        seen.still = 0
        if state == CALL and holder != WATCHER and thread_state(c.mates[holder].tid) == c'S':
            return SUSPECT
        return LET
    if state == IO:
        seen.still += 1
        return QUIET if seen.still >= IDLE_TICKS else LET
    if state != CALL:
        return STUCK if now - seen.since >= PATIENCE else LET
    if holder == WATCHER:
        # Given up since the word was read: there is nobody to ask about.
        return LET
    if computed * 4 > passed:
        return COMPUTING if now - seen.since >= (PATIENCE_COMPUTING if gil else TICK) else LET
    if thread_state(c.mates[holder].tid) == c'R':
        return LET
    return BLOCKED


cdef inline void watcher_rests(Lease* l, Crew* c, Look* seen, int verdict) noexcept nogil:
    """Until the next look; when nothing happened for a while, until somebody publishes. The load of
    the word after the store of `asleep` meets lease_publish's store and load in the other order; that
    of `holder` meets lease_give_up's, that of the inbox home_push and a look at `asleep` behind it."""
    cdef int64_t tick = TICK_BRISK if seen.at < seen.brisk_until else TICK
    if verdict != QUIET:
        futex_wait(&l.asleep, 0, TICK_SUSPECT if verdict == SUSPECT else tick)
        return
    store_u32_seq(&l.asleep, 1)
    if load_ptr_seq(&l.inbox) is not NULL:
        event_poke(l.event)
    if (load_u64_seq(&l.word) == seen.word and load_u32_seq(&l.holder) != WATCHER
            and not load_u32_seq(&c.closing)):
        futex_wait(&l.asleep, 1, -1)
    store_u32_seq(&l.asleep, 0)
    seen.still = 0
