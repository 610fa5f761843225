# The lease under load: the words of lease.pxd between plain threads.
#
# Knows: lease.pxd as _core.pyx uses it: worker, watcher, inbox, let_go, closing. Never sees: HTTP, Python; a
# mutex stands for the GIL, an eventfd for each connection: what a client writes there are requests.
# What belongs to a holder or to a connection's owner is plain memory on purpose: ThreadSanitizer sees
# a second hand there, and the `check` fields see it without one.
#
# Included by _probe.pyx; tests/unit/test_lease.py and `tests/model/run.sh tsan` run it.

from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free

from fastserve.engine.atomics cimport (
    add_u32, load_u32, load_u32_acquire, load_u32_seq, load_u64_acquire, load_u64_seq, now_ns, store_u32_release,
    store_u32_seq, store_u64_release,
)
from fastserve.engine.lease cimport (
    BLOCKED, CALL, COMPUTING, IO, LEAVE, LENT, PARKED, QUIET, STATE, STUCK, TAIL, WANT, WATCHER,
    Crew, Lease, Look, Mate, crew_close, crew_park, crew_pop, home_push, home_take, lease_ask, lease_give_up,
    lease_lend, lease_make,
    lease_pass, lease_publish, lease_seize, lease_spares, lease_take_back, lease_wake_watcher, thread_cpu_clock,
    thread_id, watcher_closes, watcher_gives, watcher_hungers, watcher_looks, watcher_rests,
)
from fastserve.engine.poll cimport (
    EPOLLET, EPOLLIN, EPOLLONESHOT, epoll_event, event_make, event_poke, poll_add, poll_change, poll_make, poll_wait,
)

cdef extern from "<pthread.h>" nogil:
    ctypedef unsigned long pthread_t
    ctypedef struct pthread_mutex_t:
        pass
    int pthread_mutex_init(pthread_mutex_t* mutex, void* attributes) noexcept
    int pthread_mutex_lock(pthread_mutex_t* mutex) noexcept
    int pthread_mutex_unlock(pthread_mutex_t* mutex) noexcept
    int pthread_join(pthread_t thread, void** answer) noexcept
cdef extern from "clocks.h" nogil:
    int thread_start(pthread_t* thread, void* (*run)(void*) noexcept nogil, void* argument) noexcept
cdef extern from "<sched.h>" nogil:
    int sched_yield() noexcept
cdef extern from "<unistd.h>" nogil:
    int usleep(unsigned int microseconds) noexcept
    int c_close "close"(int fd) noexcept
    ssize_t c_read "read"(int fd, void* data, size_t size) noexcept
    ssize_t c_write "write"(int fd, const void* data, size_t size) noexcept


cdef enum:
    S_REACTORS = 4
    S_THREADS = 80
    S_IDLE = 0
    S_READY = 1
    S_AWAY = 2
    S_EVENTS = 16

cdef enum:                  # what went wrong
    S_TWO_HOLDERS = 1
    S_TWO_SENDERS = 2
    S_ORDER = 4
    S_STATE = 8
    S_TWO_WANT = 16
    S_COUNT = 32

cdef enum:                  # counters
    N_CALLS
    N_ALONE
    N_PASSED
    N_SEIZED_WANT
    N_SEIZED_CALL
    N_SEIZED_TAIL
    N_TOO_LATE
    N_VERDICTS
    N_ASKED
    N_PARKED
    N_TIRED
    N_SLEEPS
    N_TURNS
    N_WATCHER_TURNS
    N_SPARED
    N_HUNG
    N_QUIET
    N_COUNTERS


cdef struct SConn:
    SConn* next             # in the ready list or the inbox
    int fd
    uint32_t index
    uint32_t state          # from here on: its owner's alone
    uint64_t pending        # requests read, not called yet
    uint64_t taken          # requests called so far
    uint64_t out            # replies committed, not sent
    uint64_t sent
    uint32_t check          # who has its output in hand
    uint32_t replied        # what the client has seen
    uint32_t armed          # what the epoll set reports
    uint32_t hung           # one of its handlers waits for all other connections


cdef struct SReactor:
    Lease lease
    Stress* stress
    SConn* first            # from here on: the holder's alone
    SConn* last
    SConn* calling
    uint64_t steps
    uint32_t check
    uint32_t waiting        # threads that wait for the GIL as holder or gil_waiter
    int epoll


cdef struct SThread:
    Stress* stress
    Mate* mate
    SReactor* reactor
    uint64_t luck
    uint64_t n[N_COUNTERS]
    pthread_t id


cdef struct Stress:
    Crew crew
    pthread_mutex_t gil
    bint has_gil
    uint32_t closing
    uint32_t wrong
    uint32_t ended
    uint32_t chaos          # of 1024 looks, how many seize whatever stands
    uint32_t first          # of 1024 batches, how many are one request that is taken along
    uint32_t skew           # of four connections, how many are reactor 0's whatever their number
    uint32_t hang           # so many handlers wait until nothing else is left to do ...
    uint32_t hanging
    uint32_t released       # ... which the clients say
    uint32_t n_workers
    uint32_t n_reactors
    uint32_t n_conns
    Mate* mates
    SConn* conns
    SThread* threads
    Lease* leases[S_REACTORS]
    SReactor reactors[S_REACTORS]
    uint32_t stack[S_THREADS]


cdef uint32_t s_luck(SThread* t, uint32_t below) noexcept nogil:
    t.luck ^= t.luck << 13
    t.luck ^= t.luck >> 7
    t.luck ^= t.luck << 17
    return <uint32_t>((t.luck >> 20) % below)


cdef void s_wrong(Stress* s, uint32_t what) noexcept nogil:
    cdef uint32_t old = load_u32(&s.wrong)
    store_u32_seq(&s.wrong, old | what)


cdef void s_spin(int64_t ns) noexcept nogil:
    cdef int64_t until = now_ns() + ns
    while now_ns() < until:
        pass


cdef void s_take_gil(Stress* s) noexcept nogil:
    if s.has_gil:
        pthread_mutex_lock(&s.gil)


cdef void s_drop_gil(Stress* s) noexcept nogil:
    if s.has_gil:
        pthread_mutex_unlock(&s.gil)


# The holder's region: between these two the reactor is its own.

cdef void s_enter(SReactor* r, uint32_t who) noexcept nogil:
    if r.check:
        s_wrong(r.stress, S_TWO_HOLDERS)
    r.check = who + 1


cdef void s_touch(SReactor* r, uint32_t who) noexcept nogil:
    if r.check != who + 1:
        s_wrong(r.stress, S_TWO_HOLDERS)
    r.steps += 1


cdef void s_leave(SReactor* r, uint32_t who) noexcept nogil:
    s_touch(r, who)
    r.check = 0


# Connections.

cdef uint32_t s_reactor_of(Stress* s, uint32_t i) noexcept nogil:
    if not s.skew:
        return i % s.n_reactors
    return 0 if i % 4 < s.skew else i // 4 % s.n_reactors


cdef void s_ready(SReactor* r, SConn* c) noexcept nogil:
    c.state = S_READY
    c.next = NULL
    if r.first is NULL:
        r.first = c
    else:
        r.last.next = c
    r.last = c


cdef void s_send(Stress* s, SConn* c, uint64_t replies, uint32_t who, int64_t slowly) noexcept nogil:
    if c.check:
        s_wrong(s, S_TWO_SENDERS)
    c.check = who + 1
    c.sent += replies
    if slowly:
        s_spin(slowly)
    if c.sent > c.taken:
        s_wrong(s, S_ORDER)
    if c.check != who + 1:
        s_wrong(s, S_TWO_SENDERS)
    c.check = 0
    store_u32_release(&c.replied, <uint32_t>c.sent)


cdef void s_settle(SReactor* r, SConn* c) noexcept nogil:
    """What is buffered comes next; else it is armed again."""
    if c.pending:
        s_ready(r, c)
    else:
        c.state = S_IDLE
        s_arm(r, c, EPOLLIN)


cdef void s_arm(SReactor* r, SConn* c, uint32_t events) noexcept nogil:
    if c.armed != events:
        store_u32_seq(&c.armed, events)
        poll_change(r.epoll, c.fd, events, c.index)


cdef void s_flush(SReactor* r) noexcept nogil:
    cdef Stress* s = r.stress
    cdef SConn* c
    cdef uint32_t i
    for i in range(s.n_conns):
        if s_reactor_of(s, i) != r.lease.index:
            continue
        c = &s.conns[i]
        # The word of who owns a connection is the holder's: it set AWAY, and takes it home.
        if c.state != S_AWAY and c.out:
            s_send(s, c, c.out, r.check - 1, 0)
            c.out = 0


cdef void s_turn(SReactor* r, uint32_t who) noexcept nogil:
    """A worker waits unless it has requests to call or another reactor has; the watcher always."""
    cdef Stress* s = r.stress
    cdef bint worker = who < s.n_workers
    cdef epoll_event events[S_EVENTS]
    cdef uint64_t got
    cdef SConn* c
    cdef int i, n
    s_touch(r, who)
    s_take_home(r)
    s_flush(r)
    n = poll_wait(r.epoll, events, S_EVENTS,
                  0 if worker and (r.first is not NULL or lease_spares(&s.crew)) else -1)
    s_touch(r, who)
    s_take_home(r)
    for i in range(n):
        if events[i].data.u64 == <uint64_t>-1:
            continue
        c = &s.conns[events[i].data.u64]
        if c.state != S_IDLE:
            s_arm(r, c, EPOLLONESHOT)
            continue
        got = 0
        if c_read(c.fd, &got, sizeof(got)) == sizeof(got):
            c.pending += got
        s_settle(r, c)
    s_touch(r, who)


cdef void s_take_home(SReactor* r) noexcept nogil:
    cdef SConn* c
    cdef SConn* rest = <SConn*>home_take(&r.lease)
    while rest is not NULL:
        c = rest
        rest = c.next
        if c.state != S_AWAY:
            s_wrong(r.stress, S_STATE)
        s_settle(r, c)


cdef void s_send_home(SThread* t, SReactor* r, SConn* c) noexcept nogil:
    """As in _core.pyx; quiet when nothing is buffered behind the request, and not always then."""
    cdef bint quiet = not c.pending and s_luck(t, 4)
    home_push(&r.lease, <void**>&c.next, c)
    if quiet and load_u32_seq(&c.armed) == EPOLLIN and not load_u32_seq(&r.lease.asleep):
        t.n[N_QUIET] += 1
    else:
        event_poke(r.lease.event)


# The worker.

cdef void s_handler(SThread* t, SConn* c) noexcept nogil:
    cdef Stress* s = t.stress
    cdef uint32_t kind = s_luck(t, 1000)
    if load_u32(&s.hanging) < s.hang and s_luck(t, 8) == 0 and add_u32(&s.hanging, 1) <= s.hang:
        t.n[N_HUNG] += 1
        store_u32_seq(&c.hung, 1)
        s_drop_gil(s)
        while not load_u32_seq(&s.released):
            usleep(200)
        s_take_gil(s)
        return
    if kind < 640:
        return
    if kind < 800:
        s_drop_gil(s)
        usleep(20 + s_luck(t, 1500))
        s_take_gil(s)
    elif kind < 900:
        s_spin(1000 + s_luck(t, 200_000))
    elif kind < 996:
        s_drop_gil(s)
        s_spin(1000 + s_luck(t, 200_000))
        s_take_gil(s)
    else:
        s_spin(12_000_000)


cdef SConn* s_next_call(SThread* t, SReactor* r) noexcept nogil:
    cdef SConn* c = r.first
    s_touch(r, t.mate.index)
    if c is not NULL:
        r.first = c.next
        if c.state != S_READY or not c.pending:
            s_wrong(t.stress, S_STATE)
        c.state = S_AWAY
        c.pending -= 1
        c.taken += 1
        t.n[N_CALLS] += 1
    return c


cdef bint s_take_along(SThread* t, SReactor* r) noexcept nogil:
    """As in _core.pyx, the handler included: True: the lease has gone on, and the request is answered."""
    cdef Stress* s = t.stress
    cdef Mate* m = crew_pop(&s.crew)
    cdef SConn* c
    if m is NULL:
        return False
    c = s_next_call(t, r)
    if c.out:
        s_send(s, c, c.out, t.mate.index, 0)
        c.out = 0
    lease_publish(&r.lease, IO)
    s_leave(r, t.mate.index)
    lease_lend(&r.lease, m)
    t.n[N_PASSED] += 1
    s_take_gil(s)
    s_handler(t, c)
    s_drop_gil(s)
    s_finish_alone(t, r, c, 0)
    return True


cdef bint s_batch(SThread* t, SReactor* r) noexcept nogil:
    """With the GIL, as the holder: True: still the holder. Drops the GIL."""
    cdef Stress* s = t.stress
    cdef uint32_t me = t.mate.index
    cdef uint64_t word
    cdef SConn* c
    cdef int n
    for n in range(8):
        c = s_next_call(t, r)
        if c is NULL:
            break
        r.calling = c
        s_leave(r, me)
        word = lease_publish(&r.lease, CALL)
        s_handler(t, c)
        if not lease_take_back(&r.lease, word):
            s_drop_gil(s)
            s_finish_alone(t, r, c, word)
            return False
        s_enter(r, me)
        if c.sent + c.out != c.taken - 1:
            s_wrong(s, S_ORDER)
        c.out += 1
        s_settle(r, c)
    if s_luck(t, 16) == 0:
        s_leave(r, me)
        word = lease_publish(&r.lease, TAIL)
        if s_luck(t, 64) == 0:
            s_spin(11_000_000)
        elif s_luck(t, 2):
            s_spin(s_luck(t, 30_000))
        if not lease_take_back(&r.lease, word):
            s_drop_gil(s)
            return False
        s_enter(r, me)
    s_drop_gil(s)
    return True


cdef void s_finish_alone(SThread* t, SReactor* r, SConn* c, uint64_t word) noexcept nogil:
    t.n[N_ALONE] += 1
    while word and load_u64_acquire(&t.mate.let_go) != word:
        sched_yield()
    if c.out or c.sent != c.taken - 1:
        s_wrong(t.stress, S_ORDER)
    s_send(t.stress, c, 1, t.mate.index, 0)
    s_send_home(t, r, c)


cdef void* s_worker(void* argument) noexcept nogil:
    cdef SThread* t = <SThread*>argument
    cdef Stress* s = t.stress
    cdef Mate* m = t.mate
    cdef SReactor* r = NULL
    cdef uint32_t why
    cdef uint64_t word
    m.tid = thread_id()
    m.cpu_clock = thread_cpu_clock()
    while True:
        if r is NULL:
            t.n[N_PARKED] += 1
            why = crew_park(&s.crew, m, 300_000 if s_luck(t, 4) == 0 else -1)
            if why == PARKED:
                t.n[N_TIRED] += 1
                continue
            if why == LEAVE:
                break
            r = &s.reactors[why - LENT]
            s_enter(r, m.index)
        if load_u32_seq(&s.closing):
            s_leave(r, m.index)
            lease_give_up(&r.lease)
            break
        t.n[N_TURNS] += 1
        s_turn(r, m.index)
        if r.first is NULL:
            if lease_spares(&s.crew):
                t.n[N_SPARED] += 1
                s_leave(r, m.index)
                lease_give_up(&r.lease)
                r = NULL
            continue
        if s_luck(t, 1024) < s.first and s_take_along(t, r):
            r = NULL
            continue
        s_leave(r, m.index)
        word = lease_publish(&r.lease, WANT)
        if add_u32(&r.waiting, 1) > 1:
            s_wrong(s, S_TWO_WANT)
        s_take_gil(s)
        add_u32(&r.waiting, <uint32_t>-1)
        if not lease_take_back(&r.lease, word):
            t.n[N_ASKED] += 1
            if not lease_ask(&r.lease, m):
                s_drop_gil(s)
                r = NULL
                continue
        s_enter(r, m.index)
        if not s_batch(t, r):
            r = NULL
    add_u32(&s.ended, 1)
    return NULL


# The watcher.

cdef bint s_seize(SThread* t, uint64_t word) noexcept nogil:
    """As in _core.pyx: True: the watcher holds."""
    cdef Stress* s = t.stress
    cdef SReactor* r = t.reactor
    cdef uint32_t me = s.n_workers + r.lease.index
    cdef uint32_t was = load_u32(&r.lease.holder)
    cdef uint64_t state = word & STATE
    cdef SConn* c
    if not lease_seize(&r.lease, word):
        t.n[N_TOO_LATE] += 1
        return False
    s_enter(r, me)
    store_u32_seq(&r.lease.holder, WATCHER)
    if state == WANT:
        t.n[N_SEIZED_WANT] += 1
        r.lease.gil_waiter = was + 1
        return True
    if state == CALL:
        t.n[N_SEIZED_CALL] += 1
        c = r.calling
        # Also when nothing is there to send: the connection is in the seizer's hand until it lets go.
        s_send(s, c, c.out, me, s_luck(t, 20_000) if s_luck(t, 4) == 0 else 0)
        c.out = 0
        store_u64_release(&s.mates[was].let_go, word)
    else:
        t.n[N_SEIZED_TAIL] += 1
    s_leave(r, me)
    if lease_pass(&r.lease, &s.crew):
        return False
    s_enter(r, me)
    # Now, not after a turn that waits for what may never come.
    watcher_hungers(&r.lease, &s.crew, r.first is not NULL)
    return True


cdef void* s_watcher(void* argument) noexcept nogil:
    cdef SThread* t = <SThread*>argument
    cdef Stress* s = t.stress
    cdef SReactor* r = t.reactor
    cdef uint32_t me = s.n_workers + r.lease.index
    cdef Look look
    cdef uint64_t word
    cdef bint holds = True
    cdef int verdict
    memset(&look, 0, sizeof(look))
    s_enter(r, me)
    while True:
        if holds:
            if load_u32_seq(&s.closing):
                break
            t.n[N_WATCHER_TURNS] += 1
            s_turn(r, me)
            s_leave(r, me)
            holds = not watcher_gives(&r.lease, &s.crew, r.first is not NULL)
            if holds:
                s_enter(r, me)
            continue
        if load_u32_seq(&r.lease.holder) == WATCHER:
            s_enter(r, me)
            holds = True
            continue
        if s_luck(t, 1024) < s.chaos:
            # A verdict without a reason is within the rules: any word may be seized while it stands.
            word = load_u64_seq(&r.lease.word)
            if s_luck(t, 2):
                s_spin(s_luck(t, 40_000))
            if word & STATE != IO:
                holds = s_seize(t, word)
            continue
        verdict = watcher_looks(&r.lease, &s.crew, &look, s.has_gil)
        if load_u32_seq(&s.closing) and look.word & STATE != IO:
            verdict = STUCK
        if verdict == BLOCKED or verdict == COMPUTING or verdict == STUCK:
            t.n[N_VERDICTS] += 1
            holds = s_seize(t, look.word)
        if not holds:
            t.n[N_SLEEPS] += verdict == QUIET
            watcher_rests(&r.lease, &s.crew, &look, verdict)
    s_leave(r, me)
    watcher_closes(&r.lease, &s.crew)
    add_u32(&s.ended, 1)
    return NULL


# The clients: all of them in one thread, the caller's.

cdef uint64_t s_clients(Stress* s, SThread* t, uint64_t requests, int64_t stall) noexcept nogil:
    """Sends so many requests, a few ahead on each connection: how many were answered. It gives up
    when nothing was for `stall` nanoseconds."""
    cdef uint64_t asked = 0, answered = 0, before = 0, k
    cdef uint64_t* ahead = <uint64_t*>calloc(s.n_conns, sizeof(uint64_t))
    cdef int64_t moved = now_ns()
    cdef uint32_t i
    cdef bint busy
    cdef SConn* c
    while answered < requests and not load_u32(&s.wrong):
        answered = 0
        busy = False
        for i in range(s.n_conns):
            c = &s.conns[i]
            answered += load_u32_acquire(&c.replied)
            if ahead[i] == load_u32_acquire(&c.replied) and asked < requests and s_luck(t, 4):
                k = 1 + (s_luck(t, 3) if s_luck(t, 3) == 0 else 0)
                if k > requests - asked:
                    k = requests - asked
                asked += k
                ahead[i] += k
                c_write(c.fd, &k, sizeof(k))
            busy = busy or ahead[i] != load_u32_acquire(&c.replied) and not load_u32_seq(&c.hung)
        if asked == requests and not busy:
            store_u32_seq(&s.released, 1)
        if answered != before:
            before = answered
            moved = now_ns()
        elif now_ns() - moved > stall:
            break
        # From time to time long enough for the watchers to fall asleep.
        usleep(25_000 if s_luck(t, 2000) == 0 else s_luck(t, 200))
    store_u32_seq(&s.released, 1)
    free(ahead)
    return answered


cdef Stress* s_make(uint32_t workers, uint32_t reactors, uint32_t conns, bint gil, uint32_t chaos,
                    uint32_t first, uint32_t skew, uint32_t hang, uint64_t seed) noexcept nogil:
    cdef Stress* s = <Stress*>calloc(1, sizeof(Stress))
    cdef SReactor* r
    cdef uint32_t i
    s.n_workers = workers
    s.n_reactors = reactors
    s.n_conns = conns
    s.has_gil = gil
    s.chaos = chaos
    s.first = first
    s.skew = skew
    s.hang = hang
    s.mates = <Mate*>calloc(workers, sizeof(Mate))
    s.conns = <SConn*>calloc(conns, sizeof(SConn))
    s.threads = <SThread*>calloc(workers + reactors + 1, sizeof(SThread))
    pthread_mutex_init(&s.gil, NULL)
    s.crew.room = workers
    s.crew.n_leases = reactors
    s.crew.stack = s.stack
    s.crew.mates = s.mates
    s.crew.leases = s.leases
    for i in range(reactors):
        r = &s.reactors[i]
        r.stress = s
        lease_make(&r.lease, i, event_make())
        s.leases[i] = &r.lease
        r.epoll = poll_make()
        poll_add(r.epoll, r.lease.event, EPOLLIN | EPOLLET, <uint64_t>-1)
    for i in range(conns):
        s.conns[i].index = i
        s.conns[i].fd = event_make()
        s.conns[i].armed = EPOLLIN
        poll_add(s.reactors[s_reactor_of(s, i)].epoll, s.conns[i].fd, EPOLLIN, i)
    for i in range(workers + reactors + 1):
        s.threads[i].stress = s
        s.threads[i].luck = (seed + i + 1) * <uint64_t>0x9E3779B97F4A7C15
        if not s.threads[i].luck:
            s.threads[i].luck = 1
        if i < workers:
            s.mates[i].index = i
            s.threads[i].mate = &s.mates[i]
        elif i < workers + reactors:
            s.threads[i].reactor = &s.reactors[i - workers]
    return s


cdef void s_unmake(Stress* s) noexcept nogil:
    cdef uint32_t i
    for i in range(s.n_conns):
        c_close(s.conns[i].fd)
    for i in range(s.n_reactors):
        c_close(s.reactors[i].epoll)
        c_close(s.reactors[i].lease.event)
    free(s.mates)
    free(s.conns)
    free(s.threads)
    free(s)


cdef bint s_close(Stress* s, int64_t patience) noexcept nogil:
    """As Core.close: True: every thread has ended."""
    cdef int64_t until = now_ns() + patience
    cdef uint32_t i, threads = s.n_workers + s.n_reactors
    store_u32_seq(&s.closing, 1)
    crew_close(&s.crew)
    for i in range(s.n_reactors):
        event_poke(s.reactors[i].lease.event)
        lease_wake_watcher(&s.reactors[i].lease)
    while load_u32_seq(&s.ended) < threads:
        if now_ns() > until:
            return False
        usleep(200)
    for i in range(threads):
        pthread_join(s.threads[i].id, NULL)
    return True


def lease_stress(uint64_t requests, *, uint32_t workers=6, uint32_t reactors=1, uint32_t conns=24, bint gil=True,
                 uint32_t chaos=100, uint32_t first=100, uint32_t skew=0, uint32_t hang=0, uint64_t seed=0,
                 double stall=30.0, bint close_early=False):
    """Runs so many requests through leases: what was counted. `hang` handlers, fewer than workers, wait
    until all others' requests were answered. `wrong` names what must never happen;
    `stalled`: nothing moved any more, or a thread did not end (then its memory is left to it)."""
    if not (hang < workers and 0 < reactors <= S_REACTORS and workers + reactors <= S_THREADS and conns):
        raise ValueError("more threads than there is room for, or none")
    cdef Stress* s
    cdef uint64_t answered, at_most = requests
    cdef uint64_t sums[N_COUNTERS]
    cdef uint64_t calls = 0, sent = 0
    cdef uint32_t i, k
    cdef bint ended
    cdef int64_t patience = <int64_t>(stall * 1e9)
    memset(sums, 0, sizeof(sums))
    with nogil:
        s = s_make(workers, reactors, conns, gil, chaos, first, skew, hang, seed)
        for i in range(workers + reactors):
            thread_start(&s.threads[i].id, s_worker if i < workers else s_watcher, &s.threads[i])
        answered = s_clients(s, &s.threads[workers + reactors], at_most, patience)
        if close_early:
            # And now with calls under way: whatever was called is answered, whatever waits stays.
            s_more(s)
        ended = s_close(s, patience)
        if ended:
            for i in range(workers + reactors):
                for k in range(N_COUNTERS):
                    sums[k] += s.threads[i].n[k]
            for i in range(conns):
                calls += s.conns[i].taken
                sent += s.conns[i].sent + s.conns[i].out
            if calls != sent or calls != sums[N_CALLS]:
                s_wrong(s, S_COUNT)
    wrong = s.wrong
    stalled = not ended or (answered < requests and not wrong)
    # What a holder keeps to itself is told only when it is gone.
    told = ("calls", "alone", "passed_first", "seized_want", "seized_call", "seized_tail", "too_late", "verdicts",
            "asked", "parked", "tired", "watcher_sleeps", "turns", "watcher_turns", "spared", "hung", "quiet")
    counts = {name: sums[k] for k, name in enumerate(told)}
    names = ("two holders", "two senders", "replies out of order", "a connection in two places",
             "two threads wait for the GIL", "calls and replies differ")
    if ended:
        with nogil:
            s_unmake(s)
    return {"requests": requests, "answered": answered, "stalled": bool(stalled), "seed": seed,
            "wrong": [name for k, name in enumerate(names) if wrong >> k & 1], **counts}


cdef void s_more(Stress* s) noexcept nogil:
    cdef uint64_t one = 1
    cdef uint32_t i
    for i in range(s.n_conns):
        c_write(s.conns[i].fd, &one, sizeof(one))
    usleep(s_luck(&s.threads[s.n_workers + s.n_reactors], 1500))


# Two duels without clients, whose next request would hide a wake-up that got lost: as close together as
# two threads come.

cdef struct Duel:
    Crew crew
    Lease lease
    Lease* leases[1]
    uint32_t stack[1]
    Mate mate
    int epoll
    uint64_t rounds
    uint64_t holds          # plain: the holder's
    uint64_t own            # the worker's: words it took back
    uint64_t seized         # the watcher's: words it seized
    uint32_t done
    uint32_t ready          # the round that the sleeper is about to sleep in
    uint32_t awake          # the last round it woke up from
    uint64_t aimed          # the word that the watcher is about to seize
    uint64_t luck[2]


cdef void duel_pause(Duel* d, int which) noexcept nogil:
    """A few nanoseconds, never the same number: the two meet at every distance."""
    cdef uint64_t nothing = 0
    cdef uint32_t k
    d.luck[which] = d.luck[which] * <uint64_t>6364136223846793005 + 1
    for k in range(<uint32_t>(d.luck[which] >> 40) % (1 << ((d.luck[which] >> 33) % 8))):
        nothing += load_u64_seq(&d.rounds)


cdef void* duel_worker(void* argument) noexcept nogil:
    """Publishes and takes back; seized, it parks, and only the watcher's end of a turn brings it back."""
    cdef Duel* d = <Duel*>argument
    cdef uint64_t i, word
    cdef uint32_t tries
    cdef bint holds = False
    for i in range(d.rounds):
        if not holds:
            if crew_park(&d.crew, &d.mate, -1) == LEAVE:
                break
        d.holds += 1
        word = lease_publish(&d.lease, CALL)
        tries = 0
        while load_u64_acquire(&d.aimed) != word and tries < 2000:
            tries += 1
        duel_pause(d, 0)
        holds = lease_take_back(&d.lease, word)
        d.own += holds
    if holds:
        store_u32_seq(&d.lease.holder, WATCHER)
    add_u32(&d.done, 1)
    event_poke(d.lease.event)
    return NULL


cdef void* duel_watcher(void* argument) noexcept nogil:
    cdef Duel* d = <Duel*>argument
    cdef epoll_event events[1]
    cdef uint64_t word
    cdef bint holds = True
    while True:
        if holds:
            if load_u32_seq(&d.done):
                break
            poll_wait(d.epoll, events, 1, -1)
            holds = not watcher_gives(&d.lease, &d.crew, False)
            continue
        if load_u32_seq(&d.lease.holder) == WATCHER:
            holds = True
            continue
        word = load_u64_seq(&d.lease.word)
        if word & STATE == IO:
            continue
        store_u64_release(&d.aimed, word)
        duel_pause(d, 1)
        if lease_seize(&d.lease, word):
            d.seized += 1
            d.holds += 1
            store_u32_seq(&d.lease.holder, WATCHER)
            holds = not lease_pass(&d.lease, &d.crew)
    add_u32(&d.done, 1)
    return NULL


cdef void* duel_sleeper(void* argument) noexcept nogil:
    """A watcher that lies down in each round, while the word is published."""
    cdef Duel* d = <Duel*>argument
    cdef Look look
    cdef uint32_t i
    memset(&look, 0, sizeof(look))
    for i in range(1, <uint32_t>d.rounds + 1):
        look.word = load_u64_seq(&d.lease.word)
        store_u32_release(&d.ready, i)
        duel_pause(d, 1)
        watcher_rests(&d.lease, &d.crew, &look, QUIET)
        store_u32_release(&d.awake, i)
    add_u32(&d.done, 1)
    return NULL


cdef void* duel_publisher(void* argument) noexcept nogil:
    cdef Duel* d = <Duel*>argument
    cdef uint64_t word
    cdef uint32_t i = 0
    while i < <uint32_t>d.rounds:
        # A sleeper may be a round ahead: the wake-up of a word that it had seen already is allowed.
        while load_u32_acquire(&d.ready) == i:
            pass
        i = load_u32_acquire(&d.ready)
        duel_pause(d, 0)
        word = lease_publish(&d.lease, CALL)
        while load_u32_acquire(&d.awake) < i:
            pass
        lease_take_back(&d.lease, word)
        d.own += 1
    add_u32(&d.done, 1)
    return NULL


def lease_duel(uint64_t rounds, *, bint asleep=False, uint64_t seed=0, double stall=10.0):
    """A worker against its watcher, or a publisher against a watcher that falls asleep in each round:
    words taken back, words seized, times that a thread held, and whether both came to the end."""
    cdef Duel* d = <Duel*>calloc(1, sizeof(Duel))
    cdef pthread_t one, two
    cdef int64_t moved
    cdef uint64_t own, before = 0
    cdef bint ended = False
    with nogil:
        d.rounds = rounds
        d.luck[0] = seed
        d.luck[1] = ~seed
        d.leases[0] = &d.lease
        d.crew.room = d.crew.n_leases = 1
        d.crew.stack = d.stack
        d.crew.mates = &d.mate
        d.crew.leases = d.leases
        d.epoll = poll_make()
        lease_make(&d.lease, 0, event_make())
        poll_add(d.epoll, d.lease.event, EPOLLIN | EPOLLET, 0)
        thread_start(&one, duel_publisher if asleep else duel_worker, d)
        thread_start(&two, duel_sleeper if asleep else duel_watcher, d)
        moved = now_ns()
        while True:
            ended = load_u32_seq(&d.done) >= 2
            own = load_u64_seq(&d.lease.word)
            if own != before:
                before = own
                moved = now_ns()
            if ended or now_ns() - moved > <int64_t>(stall * 1e9):
                break
            usleep(500)
        if ended:
            pthread_join(one, NULL)
            pthread_join(two, NULL)
            c_close(d.epoll)
            c_close(d.lease.event)
    if not ended:
        # The threads are still there, and so is their memory.
        return {"own": 0, "seized": 0, "holds": 0, "ended": False}
    counts = {"own": d.own, "seized": d.seized, "holds": d.holds, "ended": True}
    free(d)
    return counts


def lease_words(uint32_t reactors, int occasions):
    """The words that the holders of so many reactors publish: for each reactor a list."""
    cdef Lease l
    cdef uint32_t i
    cdef uint64_t word
    words = []
    for i in range(reactors):
        lease_make(&l, i, -1)
        said = []
        for _ in range(occasions):
            word = lease_publish(&l, CALL)
            said.append(word if lease_take_back(&l, word) else None)
        words.append(said)
    return words
