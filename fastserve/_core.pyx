# cython: language_level=3
"""The story of a request: turn > admit > serve > call handlers > flush > drop.

Knows: policy. In which order things happen, how much of each at a time, when a connection is closed.
Never sees: a byte class, an epoll call, a futex: those are words of `engine/`.
Invariant: below `work` nothing needs Python; Python runs only in `Worker`, between publishing a word
of the lease and taking it back. The page that follows is run by whoever holds the lease of its
reactor: a worker, or the reactor's watcher while Python is stuck.
"""

cimport cython
from cpython.exc cimport PyErr_CheckSignals
from cpython.object cimport PyObject
from cpython.ref cimport Py_INCREF
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memmove, memset, strlen

from fastserve.engine.atomics cimport (
    add_u32, add_u64, cas_u8, count_u64, futex_wait, futex_wake, load_i64, load_ptr_seq, load_u8, load_u32,
    load_u32_seq, load_u64, load_u64_acquire, load_u64_seq, lock_word, now_ns, store_i64, store_ptr_seq, store_u8,
    store_u32, store_u32_seq, store_u64_release, sub_u32, swap_u32, unlock_word, wall_ns, wall_seconds,
)
from fastserve.engine.batch cimport BATCH, Batch, batch_add, batch_go, batch_make, batch_unmake
from fastserve.engine.body cimport AFTER_BODY, chunked_begin, chunked_feed
from fastserve.engine.conn cimport (
    ANSWERED, ASKS, AWAY, BODY, EXPIRED, FREE, HEAD, HIJACKED, IDLE, INPUT_SLACK, LARGE_FILE, LARGE_MEMORY,
    LARGE_OBJECT, LINGER, NOBODY, NO_LARGE, OUTPUT_ROOM, OVER, PREFACE, READY, REFUSED, SENT_AWAY, SPEAKING, STREAMS,
    TAKEN, TOLD, UNCLAIMED, WAITS, WHOLE, Conn, Input, Late, Output, input_compact, input_size, queue_cut, queue_pop,
    queue_push, queue_push_front, slot_give, slot_of, slot_tag, slot_take, slots_make, slots_unmake,
)
from fastserve.engine.deadline cimport (
    NEVER, deadlines_expired, deadlines_make, deadlines_next, timer_stop,
)
from fastserve.engine.health cimport HEALTH_ROOM, Health, health_text
from fastserve.engine.http1 cimport ASTERISK, DONE, MORE, Field, Head, Span, http1_begin, http1_parse, next_member
from fastserve.engine.lease cimport (
    BLOCKED, BRISK, CALL, COMPUTING, IO, LENT, STATE, STUCK, TAIL, WANT, WATCHER, Lease, Look, Mate, crew_close,
    crew_park, crew_pop, home_push, home_take, lease_ask, lease_give_up, lease_lend, lease_make, lease_pass,
    lease_publish, lease_seize, lease_spares, lease_take_back, lease_wake_watcher, thread_cpu_clock, thread_id,
    thread_timer_slack, watcher_closes, watcher_gives, watcher_hungers, watcher_looks, watcher_rests,
)
from fastserve.engine.limits cimport RESPONSE_HEAD_MAX, TRAILER_MAX, Limits
from fastserve.engine.metrics cimport histogram_note, put_family, put_histogram, put_one, put_sample
from fastserve.engine.net cimport (
    AGAIN, DEAD, GONE, POLLIN, POLLOUT, SHORT, c_close, net_accept, net_break, net_close, net_cut, net_deaf,
    net_end, net_finish, net_no_delay, net_recv, net_send, net_send_file, net_send_two, net_unread, net_spare,
    net_wait, sockaddr_in6,
)
from fastserve.engine.peers cimport peer_key, peers_enter, peers_leave, peers_make, peers_unmake
from fastserve.engine.poll cimport (
    EPOLLET, EPOLLEXCLUSIVE, EPOLLIN, EPOLLONESHOT, EPOLLOUT, epoll_event, event_make, event_poke, poll_add,
    poll_make, poll_remove, poll_wait,
)
from fastserve.engine.pool cimport (
    bodies_make, bodies_unmake, body_drop, body_grow, mem_allocations, mem_give, mem_grow, mem_take,
    mem_take_zeroed, pool_lent, pool_make, pool_unmake,
)
from fastserve.engine.reactor cimport (
    BY_BODY, BY_CALL, BY_HEAD, BY_IDLE, BY_KINDS, BY_LAST_PROBE, BY_LINGER, BY_PROBE, BY_WRITE, EVENT_TAG,
    FIRST_TAG, LISTENER_TAG, LISTENERS, NOTE_ACCEPT, NOTE_CONCURRENCY, NOTE_DEAD, NOTE_FORGOTTEN, NOTE_HANDLER,
    NOTE_LATE_HEADER, NOTE_LOG, NOTE_MEMORY, NOTE_NO_HEADER, NOTE_PER_IP, NOTE_QUEUE, NOTE_REFUSED, NOTE_STACKS,
    NOTE_STRANGER, NOTE_WAITED, NOTES, SIGNAL_TAG, House, Listener, Note, Reactor, Stats, arm, earlier, give_buffers,
    give_input, give_large, give_output, house_drops, lend_input, lend_output, lesser, make_dirty, memory_lent, note,
    pthread_t, time_by, time_idle, undirty, wake_keeper,
)
from fastserve.engine.reply cimport (
    CHUNK_HEAD, CHUNKED, NO_LENGTH, OWN_DATE, OWN_SERVER, OWN_TYPE, REPLY_HEAD_ROOM, SIZED, UNTIL_CLOSE, Reply, Scribe,
    chunk_close, put, put_chunk_head, put_interim, put_number, reply_error, reply_head, scribe_date, scribe_make,
    status_has_body, status_of,
)

cdef extern from "<unistd.h>" nogil:
    void _exit(int status) noexcept
cdef extern from "<sched.h>" nogil:
    int sched_yield() noexcept
cdef extern from "<signal.h>" nogil:
    int SIGINT, SIGTERM, SIGUSR1

cdef enum:                          # how much at a time
    EVENTS = 256                    # connections of one turn
    ACCEPTS = 64                    # connections of one listener in one turn
    DRAIN_ACCEPTS = 1024            # times as many when it is closed: more than a backlog of 65,535
    BLOCKS_AHEAD = 64               # inputs and outputs made at start, a reactor
    BLOCKS_KEPT = 256               # and kept after a burst: what is ready at once in one turn
    EVERYBODY = 0x7fffffff          # of a futex
    IN_A_ROW = 16                   # pipelined requests of one connection before others have their turn
    CALLS = 256                     # handlers under one acquisition of the GIL, at most
    FIRST_BODY = 16384              # bytes set aside for a body that does not fit behind its head
    TURN_SENDS = 1048576            # bytes of large replies in one turn, which the kernel copies while others wait
    LITTLE = 65536                  # and so much more is sent all the same: to come back for it costs more
    ALL_OF_IT = 0x7fffffffffffffff
    LINGER_BYTES = 16777216         # read and thrown away before a connection is closed all the same
    DRAIN_BYTES = 262144            # of a body that a handler left unread, before its connection is closed
    PROBE_SLOTS = 16                # connections beyond all limits that may still ask how the server is; as in config
    FULL_TURNS = 64                 # in a row without a look at the deadlines
    RETRY_AFTER = 1                 # seconds
    PASS_FIRST = 256                # of 1024: from here on most likely the next handler blocks as well
    TAKEN_ALONG = 4                 # requests of a reactor that wait for the GIL out of its queue

cdef enum:                          # what a handler was: Conn.slow
    FAST = 0
    SLOW = 1
    NOT_JUDGED = 2                  # the watcher has judged it when it seized the call

cdef enum:                          # nanoseconds
    BLOCKS = 500_000                # a handler that ran alone for longer counts as one that blocks
    RATE_LOOK = 5_000_000_000       # a rate is measured over this long
    SECOND = 1_000_000_000
    LINGER_TIME = 2_000_000_000
    LINGER_DRAIN = 200_000_000      # the same while the server stops: clients are told to close, and most do
    DRAIN_GRACE = 100_000_000       # a request that is on its way when the server stops is still served
    ACCEPT_PAUSE_MIN = 5_000_000    # the essay's back-off: 5 ms, doubled up to 1 s
    ACCEPT_PAUSE_MAX = 1_000_000_000
    PROBE_PATIENCE = 1_000_000_000  # for the head of what is beyond a limit and may be a probe
    CLAIM_AGAIN = 10_000_000        # the worker of an expired call is in the middle of something interim
    EXIT_PATIENCE = 5_000_000_000   # after a drain begun by a signal the main thread has this long to come back
    DROP_PATIENCE = 10_000_000
    TURN_LONG = 16_000_000          # a turn that took longer allows the next one no more sends than this one does
    TIMER_SLACK = 1_000


cdef const char* TOO_MANY = b"The connection cannot be served because Server.concurrency limit exceeded"
cdef const char* TOO_MANY_OF_ONE = b"The number of connections from your ip exceeds max_conns_per_ip"


cdef struct Handed:
    # Who owns the body of a reply, should the connection have to keep it.
    void* owner
    int file
    int64_t at
    uint8_t kind

cdef struct Outlet:
    # The body of a reply that is streamed.
    uint8_t framing             # as in Reply
    bint mute                   # the reply has no body, whatever is written
    uint64_t left               # SIZED: bytes that were promised and have not been written
    char* chunk                 # CHUNKED: the head of the open chunk, in the connection's output; NULL: none

cdef struct Kept:
    # Field lines of a trailer section, as they were sent.
    char* data
    uint32_t size

cdef struct Desk:
    # What one worker holds.
    House* house
    Mate* mate
    Reactor* reactor            # whose lease it holds; NULL: none
    uint64_t word               # what it published last
    # where requests are timed, nanoseconds on the monotonic clock
    int64_t asked_at            # when it began to wait for the GIL
    int64_t began               # off lease: when that handler was called
    int64_t over                # and when it had returned
    Conn* home                  # off lease: the connection whose handler it ran
    Reactor* home_reactor
    Reply* reply                # what that handler said
    Handed handed
    Scribe scribe
    Conn* conn                  # in a call: its connection
    Desk* later                 # in a call that was detached: the desk that it is answered from; NULL: it was not
    uint32_t parted             # of such a desk, atomic: the worker has left the call, or it is answered
    bint alone                  # in a call: off lease
    bint resumes                # the hook was asked and the body is wanted: no reply yet
    bint streamed               # the head of the reply is on its way
    bint ended                  # and all of the reply has left
    Outlet outlet
    Kept trailers               # of a body that was streamed in


# ---------------------------------------------------------------------------------------------
# turn: one round of a reactor. What was committed goes out, what has come is read and parsed, and
# every whole request ends in `ready`.

cdef void turn(Reactor* r, bint may_call) noexcept nogil:
    cdef epoll_event events[EVENTS]
    cdef House* h = r.house
    cdef Conn* c
    cdef int64_t before = r.now
    cdef uint64_t tag
    cdef int i, n

    r.may_call = may_call
    # Now, because whoever pushed may have left the waking to what wakes this turn; behind the wait again,
    # because an event of a connection in the inbox is its next request.
    take_home(r)
    flush(r)
    if load_u32(&r.wishes):
        hear_wishes(r)
    if load_u32(&h.draining) and not r.draining:
        drain(r)
    # A worker does not sleep here while it has requests to call, or another reactor has and lacks a worker.
    n = poll_wait(r.epoll, events, EVENTS,
                  0 if may_call and (r.ready.size or lease_spares(&h.crew)) else patience(r))
    r.now = now_ns()
    if load_u32(&h.n_dropped) and (n == 0 and r.unsent.size == 0 or r.now >= r.drop_at):
        wake_keeper(h)
        r.drop_at = r.now + DROP_PATIENCE
    if r.now >= r.date_at:
        date(r)
    # A MiB more for each 4 ms since the turn before: it may have waited for the GIL. Not for sends that were slow
    # themselves, or where the kernel is slow to find memory for them each turn would be longer than the one before.
    r.to_send = TURN_SENDS + (<size_t>earlier(r.now - before - r.slow_sends, TURN_LONG) >> 2)
    r.slow_sends = 0
    send_waiting(r)

    take_home(r)
    # What came home is sent, and stalls, or closes, or reads on, before an event of it is looked at.
    flush(r)
    r.batch.n = 0
    for i in range(n):
        tag = events[i].data.u64
        if tag >= FIRST_TAG:
            c = slot_of(&r.slots, tag)
            if c is not NULL:
                serve(r, c)
        elif tag >= LISTENER_TAG:
            admit(r, <uint32_t>(tag - LISTENER_TAG))
        elif tag == SIGNAL_TAG:
            hear_signals(h)
    batch_go(&r.batch, False)
    for i in range(<int>r.batch.n):
        received(r, <Conn*>r.batch.whose[i], r.batch.results[i])

    # What has come, in time, is read before anything expires, also when the whole process stood still somewhere:
    # only what was due before this turn looked at its sockets does, and only if it saw all of them.
    if n < EVENTS or r.full_turns == FULL_TURNS:
        r.full_turns = 0
        expire(r, before)
    else:
        r.full_turns += 1
    store_i64(&r.oldest, r.ready.first.began if r.ready.size else NEVER)
    flush(r)


cdef void date(Reactor* r) noexcept nogil:
    """Once a second, when the wall clock's begins: a turn does not read a second clock."""
    cdef int64_t now = wall_ns()
    scribe_date(&r.scribe, now // SECOND)
    r.date_at = r.now + SECOND - now % SECOND


cdef int64_t patience(Reactor* r) noexcept nogil:
    """How long the reactor may sleep: until the first of its deadlines; negative: for ever."""
    cdef int64_t at = NEVER
    cdef uint32_t kind
    if r.unsent.size:
        return 0
    for kind in range(BY_KINDS):
        at = earlier(at, deadlines_next(&r.due[kind]))
    at = earlier(at, r.accept_again)
    if r.ready.size:
        if not r.may_call and r.ready.size > r.house.limits.max_queue:
            # The surplus that a worker had lined up to call at once, when the lease was taken from it.
            return 0
        at = earlier(at, r.ready.first.began + r.house.limits.queue_timeout)
    if r.draining:
        if r.slots.used == 0 and not r.drained:
            return 0
        at = earlier(at, load_i64(&r.house.exit_at) if r.drained else load_i64(&r.house.cut_at))
    if load_u32(&r.house.n_dropped):
        # If nobody comes by with the GIL until then, the keeper drops what was sent.
        at = earlier(at, r.now + DROP_PATIENCE)
    if at == NEVER:
        return -1
    at -= now_ns()
    return at if at > 0 else 0


# ---------------------------------------------------------------------------------------------
# admit: new connections.

cdef bint admit(Reactor* r, uint32_t i) noexcept nogil:
    """True: there may be more."""
    cdef House* h = r.house
    cdef Listener* listener = &r.listeners[i]
    cdef uint64_t key
    cdef Conn* c
    cdef int _, why
    for _ in range(ACCEPTS):
        c = take_in(r, listener.fd, &why)
        if why == AGAIN:
            return False
        if why == GONE:
            continue
        if why == SHORT:
            accept_backs_off(r, i)
            return False
        if why == DEAD:
            # Somebody has shut it down. It stays ours to close, but would wake us up for ever.
            poll_remove(r.epoll, listener.fd)
            listener.dead = True
            note(h, NOTE_DEAD, 0)
            return False
        r.accept_pause = 0
        count_u64(&r.stats.accepted, 1)
        if listener.proxy and is_stranger(r, &c.peer):
            net_break(c.fd)
            let_go(r, c)
            continue
        if add_u32(&h.connections, 1) > h.limits.concurrency:
            count_u64(&r.stats.refused, 1)
            note(h, NOTE_CONCURRENCY, h.limits.concurrency)
            reject(r, c, 503, listener.proxy)
            if h.limits.reuse_port and not r.draining:
                pause_accepts(r, ACCEPT_PAUSE_MIN)
                return False
            continue
        # Behind a listener of proxies, who is to be counted is not known yet.
        key = 0 if listener.local or listener.proxy else key_to_count(h, &c.peer)
        if key and is_crowded(r, key):
            reject(r, c, 429, False)
            continue
        c.opened = r.now
        c.peer_key = key
        if listener.proxy:
            c.state = PREFACE
            time_by(r, c, BY_HEAD, r.now + h.limits.header_timeout)
        else:
            time_idle(r, c)
        if r.draining:
            # The drain looks at all of them.
            pass
        elif r.may_call:
            # Its first request is often there already: read before it joins the epoll set, which one that closes
            # behind its reply never does.
            serve(r, c)
        else:
            # Left to the worker that the watcher may find behind this turn.
            arm(r, c, EPOLLIN)
    return True


cdef Conn* take_in(Reactor* r, int listener, int* why) noexcept nogil:
    """Accepts a connection: its descriptor is in a slot before a fork can see that it is there. NULL: there is none,
    `why` says why not."""
    cdef sockaddr_in6 peer
    cdef Conn* c = NULL
    cdef int fd
    lock_word(&r.descriptors)
    fd = net_accept(listener, &peer)
    if fd >= 0:
        c = slot_take(&r.slots, fd, add_u64(&r.house.conn_ids, 1))
        if c is NULL:
            # Never: there is a slot for each connection that may be counted, and one for the newest.
            c_close(fd)
            fd = GONE
        else:
            memcpy(&c.peer, &peer, sizeof(peer))
    unlock_word(&r.descriptors)
    why[0] = fd
    return c


cdef void let_go(Reactor* r, Conn* c) noexcept nogil:
    """Closes a descriptor and frees its slot: no fork sees the one without the other."""
    lock_word(&r.descriptors)
    if c.armed:
        net_close(r.epoll, c.fd)
    else:
        c_close(c.fd)
    slot_give(&r.slots, c)
    unlock_word(&r.descriptors)


cdef void close_listener(Reactor* r, uint32_t i) noexcept nogil:
    lock_word(&r.descriptors)
    net_close(r.epoll, r.listeners[i].fd)
    r.listeners[i].fd = -1
    unlock_word(&r.descriptors)


cdef inline uint64_t key_to_count(House* h, const sockaddr_in6* peer) noexcept nogil:
    """By what a peer is counted for `max_conns_per_ip`; 0: it is not, because nobody is, or because it is a proxy that
    is trusted, whose connections are those of many."""
    return 0 if h.peers.table is NULL or is_trusted(&h.trusted, peer) else peer_key(peer)


cdef bint is_crowded(Reactor* r, uint64_t key) noexcept nogil:
    """A connection more of an address. True: it is one too many, and not counted."""
    cdef House* h = r.house
    if peers_enter(&h.peers, key) <= h.limits.conns_per_ip:
        return False
    peers_leave(&h.peers, key)
    count_u64(&r.stats.refused_ip, 1)
    note(h, NOTE_PER_IP, h.limits.conns_per_ip)
    return True


cdef void reject(Reactor* r, Conn* c, int status, bint proxy) noexcept nogil:
    """A connection beyond a limit, counted among the others so far: it is told so, while few enough are being told;
    where a probe may come, some more are heard first."""
    cdef House* h = r.house
    cdef uint32_t n = add_u32(&h.rejected, 1)
    sub_u32(&h.connections, 1)
    if n > places_to_reject(r):
        sub_u32(&h.rejected, 1)
        count_u64(&r.stats.unheard, 1)
        let_go(r, c)
        return
    c.rejected = True
    if proxy:
        c.state = PREFACE
    if is_heard_first(r, c, n, status):
        serve(r, c)


cdef uint32_t places_to_reject(Reactor* r) noexcept nogil:
    """For those that are rejected: where a probe may come some more, and of these twice as many for the rest of this
    turn."""
    cdef Limits* lim = &r.house.limits
    return lim.reject_slots + (2 * PROBE_SLOTS if lim.probes and not r.draining else 0)


cdef bint is_heard_first(Reactor* r, Conn* c, uint32_t n, int status) noexcept nogil:
    """Of the `n`th that is rejected: may it be a probe? If not it is told."""
    cdef Limits* lim = &r.house.limits
    if not lim.probes or r.draining:
        refuse(r, c, status)
        return False
    c.refused = <uint16_t>(status if n <= lim.reject_slots else 0)
    time_by(r, c, BY_PROBE if c.refused else BY_LAST_PROBE, r.now + PROBE_PATIENCE)
    return True


cdef void turn_away(Reactor* r, Conn* c) noexcept nogil:
    """Of a rejected connection: it is no probe."""
    if c.refused == 0:
        # There was a slot for a probe alone.
        count_u64(&r.stats.unheard, 1)
        drop(r, c)
    else:
        refuse(r, c, c.refused)


cdef void make_way(Reactor* r) noexcept nogil:
    """Of those that nothing but a probe could save the oldest go, who have said nothing yet, before the newest find no
    room: whoever holds such a place in silence does not hold it for long."""
    cdef Conn* c
    while load_u32(&r.house.rejected) > r.house.limits.reject_slots + PROBE_SLOTS:
        # None of this turn: another reactor may hold those that are older.
        c = <Conn*>deadlines_expired(&r.due[BY_LAST_PROBE], r.now + PROBE_PATIENCE - 1)
        if c is NULL:
            return
        turn_away(r, c)


cdef void accept_backs_off(Reactor* r, uint32_t i) noexcept nogil:
    """Descriptors or kernel memory ran out: who waits at the listener `i` is told so, one after the other by the
    spare descriptor, and the listeners leave the set for 5 ms, doubling to 1 s, because a level-triggered listener
    that cannot be served would spin."""
    cdef char text[2 * REPLY_HEAD_ROOM]
    cdef char waste[4096]
    cdef sockaddr_in6 peer
    cdef size_t size
    cdef int _, fd
    size = reply_error(text, 503, RETRY_AFTER, &r.scribe, r.house.leave, True, False, True, NULL)
    # No fork sees a descriptor of these: a copy in a child would keep their connections open.
    lock_word(&r.descriptors)
    for _ in range(ACCEPTS):
        if r.spare >= 0:
            c_close(r.spare)
        fd = net_accept(r.listeners[i].fd, &peer)
        if fd >= 0:
            count_u64(&r.stats.accepted, 1)
            if r.listeners[i].proxy and is_stranger(r, &peer):
                net_break(fd)
            else:
                count_u64(&r.stats.refused_short, 1)
                # What it has asked is read, because a close would reset the connection and take the reply with it.
                net_recv(fd, waste, sizeof(waste))
                if net_send(fd, text, size) == <ssize_t>size:
                    count_u64(&r.stats.statuses[5], 1)
                net_end(fd)
            c_close(fd)
        r.spare = net_spare()
        if fd < 0 or r.spare < 0:
            break
    unlock_word(&r.descriptors)
    r.accept_pause = ACCEPT_PAUSE_MIN if r.accept_pause == 0 else 2 * r.accept_pause
    if r.accept_pause > ACCEPT_PAUSE_MAX:
        r.accept_pause = ACCEPT_PAUSE_MAX
    pause_accepts(r, r.accept_pause)
    note(r.house, NOTE_ACCEPT, r.accept_pause // 1_000_000)


cdef void pause_accepts(Reactor* r, int64_t time) noexcept nogil:
    cdef uint32_t i
    r.accept_again = r.now + time
    for i in range(r.n_listeners):
        poll_remove(r.epoll, r.listeners[i].fd)


# ---------------------------------------------------------------------------------------------
# serve: bytes of one connection become a request.

cdef void serve(Reactor* r, Conn* c) noexcept nogil:
    if c.dirty:
        # Nothing is read before what is committed has been sent: it may be the last reply. The event comes again.
        return
    if c.stalled and c.state != AWAY:
        send_output(r, c)
    elif c.state == AWAY or c.state == READY:
        # Its handler's, or next in line for one: nothing is read until it is home. One shot with no
        # other bit: an empty mask would report a hang-up at every turn.
        arm(r, c, EPOLLONESHOT)
    elif c.state >= LINGER:
        if c.state == LINGER:
            discard(r, c)
        elif c.state == PREFACE:
            hear_header(r, c)
        # Otherwise it is HIJACKED since the event was taken, and no longer ours to read.
    elif r.batch.n == BATCH:
        # The event comes again.
        arm(r, c, EPOLLIN)
    elif receives(r, c):
        batch_add(&r.batch, c, c.fd, place_of(c), room_of(c))


cdef bint receives(Reactor* r, Conn* c) noexcept nogil:
    """Room for what comes; False: there is none, and the connection is dropped."""
    if c.input is NULL:
        c.input = lend_input(r)
        if c.input is NULL:
            drop(r, c)
            return False
    return True


cdef bint into_body(Conn* c) noexcept nogil:
    return c.state == BODY and not c.in_place and not c.input.head.chunked


cdef char* place_of(Conn* c) noexcept nogil:
    return c.body.data + c.body.used if into_body(c) else c.input.data + c.input.end


cdef size_t room_of(Conn* c) noexcept nogil:
    return body_room(c) if into_body(c) else c.input.room - c.input.end


cdef void received(Reactor* r, Conn* c, ssize_t n) noexcept nogil:
    if n > 0:
        if into_body(c):
            c.body.used += <size_t>n
        else:
            c.input.end += <uint32_t>n
        count_u64(&r.stats.bytes_received, <uint64_t>n)
        c.credit = 0
        advance(r, c)
    elif n == GONE:
        drop(r, c)
    elif c.state == IDLE:
        give_input(r, c)
    if c.armed == 0 and not c.dirty and (c.state == IDLE or c.state == HEAD or c.state == BODY):
        arm(r, c, EPOLLIN)


cdef void advance(Reactor* r, Conn* c) noexcept nogil:
    """Parses what is there: to a whole request, to a refusal, or to the wish for more."""
    cdef Limits* lim = &r.house.limits
    cdef Input* i = c.input
    cdef int verdict
    if c.state != BODY:
        verdict = http1_parse(&i.head, i.data + i.start, i.end - i.start, lim)
        if verdict == MORE:
            input_compact(i)
            if c.state == IDLE:
                c.state = HEAD
                c.began = r.now
                if not c.rejected:
                    time_by(r, c, BY_HEAD, r.now + lim.header_timeout)
            return
        if verdict == DONE and lim.probes and answers_probe(r, c):
            return
        if c.rejected:
            turn_away(r, c)
            return
        if verdict == DONE and lim.refused_size and is_listed(i, lim):
            verdict = 405
        if verdict > DONE:
            refuse(r, c, verdict)
            return
        c.body_limit = lim.body_size
        if lim.head_first and (i.head.chunked or i.head.content_length > 0):
            ask_first(r, c)
            return
    receive_body(r, c)


cdef bint is_listed(Input* i, Limits* lim) noexcept nogil:
    """Is the method one of those that the server refuses?"""
    cdef Span name
    cdef uint32_t at = 0
    while next_member(lim.refused, &at, lim.refused_size, &name):
        if (name.size == i.head.method.size
                and memcmp(lim.refused + name.at, i.data + i.start + i.head.method.at, name.size) == 0):
            return True
    return False


cdef void receive_body(Reactor* r, Conn* c) noexcept nogil:
    """Behind a head that is whole: takes what has come of its body, to a whole request or a refusal."""
    cdef int verdict = DONE
    if c.state != BODY:
        verdict = open_body(r, c)
    if verdict == DONE:
        verdict = take_body(r, c)
    if verdict == DONE:
        line_up(r, c)
    elif verdict > DONE:
        refuse(r, c, verdict)


cdef void ask_first(Reactor* r, Conn* c) noexcept nogil:
    """The head is handed over alone; whoever gets it decides about the body. Where nobody can raise its limit,
    one that is too large needs no handing over."""
    cdef Input* i = c.input
    if not r.house.hears_heads and i.head.content_length > c.body_limit:
        refuse(r, c, 413)
        return
    input_compact(i)            # now, because a handler looks at the head while the body arrives behind it
    c.step = ASKS
    c.fault = 0
    c.progress = c.looked = 0   # here: bytes of the body, and nanoseconds that somebody waited for them
    c.consumed = i.head.size
    c.in_place = False
    c.continued = i.start + i.head.size < i.end
    c.body_left = i.head.content_length
    if i.head.chunked:
        chunked_begin(&c.chunked, c.body_limit)
    line_up(r, c)


cdef void resume(Reactor* r, Conn* c) noexcept nogil:
    """The hook has seen the head and lets the body come."""
    c.step = TOLD
    c.state = HEAD
    c.credit = 0
    c.committed = 0
    # Replies to earlier requests may not have left whole; when they have, `sent` reads on.
    c.stalled = False
    make_dirty(r, c)
    receive_body(r, c)


cdef int open_body(Reactor* r, Conn* c) noexcept nogil:
    """The head is whole: where will the body lie, and is it allowed? DONE, or the status to answer."""
    cdef Input* i = c.input
    cdef Head* head = &i.head
    cdef uint32_t rest = i.end - i.start - head.size
    c.consumed = head.size
    c.in_place = False
    if head.content_length > c.body_limit:
        return 413
    if (head.chunked or head.content_length > 0 and head.size + <uint64_t>head.content_length > i.room) and (
            memory_lent(r.house) + FIRST_BODY > r.house.limits.memory):
        count_u64(&r.stats.shed_memory, 1)
        note(r.house, NOTE_MEMORY, <int64_t>r.house.limits.memory)
        return 503
    if head.chunked:
        chunked_begin(&c.chunked, c.body_limit)
    elif head.content_length <= 0:
        c.state = BODY
        c.in_place = True
        return DONE
    elif head.size + <uint64_t>head.content_length <= i.room:
        c.in_place = True
        c.consumed += <uint32_t>head.content_length
    else:
        if not body_grow(&r.bodies, &c.body, FIRST_BODY if rest < FIRST_BODY else rest):
            return 503
        memcpy(c.body.data, i.data + i.start + head.size, rest)
        c.body.used = rest
        i.end -= rest
    c.state = BODY
    if head.expect_continue and rest == 0:
        # What is asked for is sent (RFC 9110, section 10.1.1): with the next flush, which comes
        # before the reactor sleeps.
        if not lend_output(r, c):
            return 503
        c.output.end = <uint32_t>(put_interim(c.output.data + c.output.end, 100, NULL, 0) - c.output.data)
        make_dirty(r, c)
    c.began = c.looked = r.now
    c.progress = 0
    input_compact(i)
    return DONE


cdef int take_body(Reactor* r, Conn* c) noexcept nogil:
    """Takes what has come of the body: MORE, DONE, or the status to answer."""
    cdef Limits* lim = &r.house.limits
    cdef Input* i = c.input
    cdef Head* head = &i.head
    cdef size_t used = 0, made = 0
    cdef uint32_t at
    cdef int verdict
    if c.in_place:
        if i.end - i.start >= c.consumed:
            return DONE
    elif head.chunked:
        at = i.start + head.size
        if not body_grow(&r.bodies, &c.body, c.body.used + (i.end - at)):
            return 503
        verdict = chunked_feed(&c.chunked, i.data + at, i.end - at, &used,
                               c.body.data + c.body.used, c.body.room - c.body.used, &made)
        c.body.used += made
        i.end -= <uint32_t>used
        memmove(i.data + at, i.data + at + used, i.end - at)
        if verdict != MORE:
            return verdict
    else:
        if <int64_t>c.body.used == head.content_length:
            return DONE
        if c.body.used == c.body.room and not body_grow(&r.bodies, &c.body, 2 * c.body.room):
            return 503
    if c.timed_by != BY_BODY:
        time_by(r, c, BY_BODY, c.began + earlier(lim.body_timeout, RATE_LOOK))
    return MORE


cdef size_t body_room(Conn* c) noexcept nogil:
    """Bytes that may be received straight into the body: never beyond its end."""
    cdef size_t left = <size_t>c.input.head.content_length - c.body.used
    cdef size_t room = c.body.room - c.body.used
    return left if left < room else room


cdef int64_t body_come(Conn* c) noexcept nogil:
    """Bytes that have come of a message whose body is being received; of one in place with its head."""
    return <int64_t>(c.input.end - c.input.start) if c.in_place else <int64_t>c.body.used


cdef void line_up(Reactor* r, Conn* c) noexcept nogil:
    """A whole request: it waits for a worker, unless too many wait already."""
    if c.step != TOLD:
        # One whose head the hook has seen lined up before.
        c.requests += 1
    if not lend_output(r, c):
        drop(r, c)
        return
    time_idle(r, c)
    # What the holder is about to call does not wait for a worker: it has one.
    if r.ready.size >= r.house.limits.max_queue + (CALLS if r.may_call else 0):
        count_u64(&r.stats.shed_full, 1)
        note(r.house, NOTE_QUEUE, r.house.limits.max_queue)
        shed(r, c)
        return
    c.state = READY
    c.began = r.now
    if c.credit:
        # Pipelined behind the request that was just answered: while its memory is in the cache.
        c.credit -= 1
        queue_push_front(&r.ready, c)
    else:
        c.credit = IN_A_ROW
        queue_push(&r.ready, c)


# ---------------------------------------------------------------------------------------------
# refuse, shed: replies of the server's own.

cdef void refuse(Reactor* r, Conn* c, int status) noexcept nogil:
    """Answers a request that will never reach a handler, and closes: after a fault of framing nobody
    knows where the next request begins."""
    cdef House* h = r.house
    count_refusal(r, status)
    if not lend_output(r, c):
        drop(r, c)
        return
    c.unread = True
    time_idle(r, c)
    if (h.hears_errors and c.input is not NULL and not c.rejected and r.may_call
            and r.ready.size < h.limits.max_queue):
        c.step = REFUSED
        c.refused = <uint16_t>status
        c.state = READY
        c.began = r.now
        c.consumed = 0
        queue_push(&r.ready, c)
        return
    say(r, c, status, RETRY_AFTER if status == 503 else 0, True,
        <const char*>NULL if not c.rejected else TOO_MANY if status == 503 else TOO_MANY_OF_ONE)
    c.state = IDLE


cdef void count_refusal(Reactor* r, int status) noexcept nogil:
    count_u64(&r.stats.refusals[status - 400], 1)
    if r.house.logs_errors:
        note(r.house, NOTE_REFUSED, status)


cdef void shed(Reactor* r, Conn* c) noexcept nogil:
    """Answers a request that waited in vain with 503; the connection goes on as its framing allows. What
    was refused anyway, and waited for the error handler's words, gets the server's."""
    cdef bint alive = keeps_alive(r.house, c, c.input.head.keep_alive)
    if c.step == REFUSED:
        say(r, c, c.refused, 0, True, NULL)
    else:
        if c.step == ASKS:
            # Its body was not read.
            alive = False
            c.unread = True
        say(r, c, 503, RETRY_AFTER, not alive, NULL)
    c.credit = 0
    finish(r, c)


cdef void shed_surplus(Reactor* r) noexcept nogil:
    """The watcher turns: what a worker had lined up to call at once waits for a worker after all."""
    cdef Conn* rest = queue_cut(&r.ready, r.house.limits.max_queue)
    cdef Conn* c
    while rest is not NULL:
        c = rest
        rest = c.next_ready
        count_u64(&r.stats.shed_full, 1)
        shed(r, c)


cdef void say(Reactor* r, Conn* c, int status, uint32_t retry_after, bint close, const char* words) noexcept nogil:
    cdef Output* o = c.output
    cdef bint is_head = c.input is not NULL and is_method(c, b"HEAD", 4)
    cdef bint alive_10 = not close and c.input is not NULL and c.input.head.minor == 0
    o.end += <uint32_t>reply_error(o.data + o.end, status, retry_after, &r.scribe, r.house.leave, close, alive_10,
                                   not is_head, words)
    c.closing = close
    count_u64(&r.stats.statuses[status // 100], 1)
    if r.house.limits.logs:
        log_reply(r, c, status, 0 if is_head else strlen(words if words is not NULL else status_of(status).phrase) + 1,
                  False)
    make_dirty(r, c)


# ---------------------------------------------------------------------------------------------
# call handlers: between WANT and the end of a batch, under the GIL; the door itself is `Worker`.

cdef Conn* next_call(Reactor* r) noexcept nogil:
    cdef Conn* c = queue_pop(&r.ready)
    while c is not NULL and c.broken:
        abort(r, c)
        c = queue_pop(&r.ready)
    if c is not NULL:
        c.state = AWAY
    return c


cdef void goes_off_lease(Reactor* r, Conn* c, uint32_t worker, uint8_t claim, int64_t began) noexcept nogil:
    """A call does, which began then, unless it WAITS. Replies to earlier requests must not wait for it. The worker
    looks at its claim when the holder has let go of the connection; a call that stays on lease is over before its time
    is looked at."""
    c.owes = c.output.end > c.output.start and push_out(c, ALL_OF_IT) != DONE
    if r.house.limits.timed and not c.owes:
        r.flushed_at = now_ns()
        account_sent(r, c)
    c.last_status = 0
    c.replied = 0
    store_u8(&c.claim, claim)
    store_i64(&c.called, began)
    store_u32(&c.worker, worker)
    if claim == WAITS:
        time_waiting(r, c)
    else:
        time_call(r, c)


cdef void commit(House* h, Conn* c, Reply* reply, Scribe* scribe, Handed* handed) noexcept nogil:
    """What the handler said becomes bytes of the connection. The caller owns the connection: the
    holder after it took its word back, or the worker that runs alone."""
    cdef Output* o = c.output
    cdef bint body = reply.body_size and status_has_body(reply.status) and not is_method(c, b"HEAD", 4)
    cdef char* p
    if (c.step == ASKS or c.step == STREAMS) and not body_spent(c):
        reply.close = True
        c.unread = True
    p = commit_head(h, c, reply, scribe)
    if handed.kind != NO_LARGE:
        c.large.data = reply.body
        c.large.size = reply.body_size if body else 0
        c.large.sent = 0
        c.large.owner = handed.owner
        c.large.file = handed.file
        c.large.at = handed.at
        c.large.kind = handed.kind
    elif body:
        p = put(p, reply.body, reply.body_size)
    o.end = <uint32_t>(p - o.data)
    if h.limits.logs:
        c.replied = reply.body_size if body else 0


cdef char* commit_head(House* h, Conn* c, Reply* reply, Scribe* scribe) noexcept nogil:
    """The head of the reply, and whether the connection outlives it; the answer is where the body begins."""
    cdef Output* o = c.output
    cdef Head* head = &c.input.head
    cdef bint wished = head.keep_alive and not reply.close and not reply.set & NO_LENGTH and c.step != REFUSED
    # A connection that speaks something else from here on is not told to close.
    cdef bint alive = keeps_alive(h, c, wished and reply.framing != UNTIL_CLOSE) or reply.status == 101
    cdef char* p = reply_head(o.data + o.end, reply, scribe, not alive, alive and head.minor == 0)
    c.closing = not alive
    c.last_status = <uint16_t>reply.status
    o.end = <uint32_t>(p - o.data)
    return p


cdef bint is_method(Conn* c, const char* name, uint32_t size) noexcept nogil:
    cdef Span s = c.input.head.method
    return s.size == size and memcmp(c.input.data + c.input.start + s.at, name, size) == 0


cdef bint keeps_alive(House* h, Conn* c, bint wished) noexcept nogil:
    if wished and (load_u32(&h.draining) or
                   (h.limits.requests_per_conn and c.requests >= h.limits.requests_per_conn)):
        # Ours is the wish to close: the client may have sent more already.
        c.unread = True
        return False
    return wished


cdef void finish(Reactor* r, Conn* c) noexcept nogil:
    """The reply is committed: the request's bytes are done with, and what is behind them comes next."""
    cdef Input* i = c.input
    c.state = IDLE
    c.step = WHOLE
    c.stalled = False
    if c.timed_by == BY_CALL:
        time_idle(r, c)
    make_dirty(r, c)
    body_drop(&r.bodies, &c.body)
    i.start += c.consumed
    http1_begin(&i.head)
    if c.closing:
        c.unread = c.unread or i.start < i.end
    elif i.start == i.end:
        give_input(r, c)
    elif has_room(c):
        advance(r, c)


cdef bint has_room(Conn* c) noexcept nogil:
    """Another reply surely fits: its head and whatever the server itself may have to say."""
    return c.large.kind == NO_LARGE and (
        c.output is NULL or OUTPUT_ROOM - c.output.end >= RESPONSE_HEAD_MAX + 2 * REPLY_HEAD_ROOM)


# ---------------------------------------------------------------------------------------------
# flush: one send a connection, however many replies wait in it.

cdef void flush(Reactor* r) noexcept nogil:
    cdef Batch* b = &r.batch
    cdef Conn* c
    cdef Output* o
    cdef ssize_t n
    cdef uint32_t i
    while r.dirty is not NULL:
        b.n = 0
        while r.dirty is not NULL and b.n < BATCH:
            c = r.dirty
            r.dirty = c.next_dirty
            c.dirty = False
            # A connection that was seized is its worker's; its earlier replies went out at the seizure.
            if c.state == AWAY or c.stalled:
                continue
            o = c.output
            if c.large.kind == NO_LARGE and o.start < o.end:
                batch_add(b, c, c.fd, o.data + o.start, o.end - o.start)
            else:
                send_output(r, c)
        batch_go(b, True)
        if r.house.limits.timed:
            r.flushed_at = now_ns()
        for i in range(b.n):
            c = <Conn*>b.whose[i]
            n = b.results[i]
            if n > 0:
                c.sent += n
                c.output.start += <uint32_t>n
                if c.output.start < c.output.end:
                    send_output(r, c)
                    continue
                n = DONE
            pushed(r, c, <int>n)


cdef void send_output(Reactor* r, Conn* c) noexcept nogil:
    cdef size_t left = c.large.size - c.large.sent
    # A rest that is little goes along, or else is sent by itself.
    cdef bint whole = left <= r.to_send + LITTLE
    cdef int64_t before = c.sent
    cdef int64_t began, took
    cdef int verdict
    if left <= LITTLE:
        verdict = push_out(c, ALL_OF_IT)
    elif r.to_send == 0:
        wait_for_share(r, c)
        return
    else:
        began = now_ns()
        verdict = push_out(c, ALL_OF_IT if whole else r.to_send)
        took = now_ns() - began
        if took > c.sent - before:
            r.slow_sends += took
    r.to_send -= lesser(r.to_send, <size_t>(c.sent - before))
    if r.house.limits.timed:
        r.flushed_at = now_ns()
    if verdict == AGAIN and r.to_send == 0 and not whole:
        # Its socket may have room, and then it is not its reader that is slow.
        wait_for_share(r, c)
    else:
        pushed(r, c, verdict)


cdef void wait_for_share(Reactor* r, Conn* c) noexcept nogil:
    """It stays dirty, so that nothing is read from it meanwhile."""
    c.dirty = True
    queue_push(&r.unsent, c)


cdef void send_waiting(Reactor* r) noexcept nogil:
    """Large replies for which the turns before had no share left, in the order in which they came."""
    cdef Conn* c
    while r.unsent.size and r.to_send:
        c = queue_pop(&r.unsent)
        c.dirty = False
        if c.stalled:
            # It was not the reader that let it wait.
            watch_reader(r, c)
        send_output(r, c)


cdef void pushed(Reactor* r, Conn* c, int verdict) noexcept nogil:
    if verdict == GONE and c.state == READY:
        c.broken = True
    elif verdict == GONE:
        drop(r, c)
    elif verdict == AGAIN:
        stall(r, c)
    else:
        sent(r, c)


cdef int push_out(Conn* c, size_t most) noexcept nogil:
    """Sends what is committed, of a large body at most `most` bytes, and nothing if that is none: DONE, GONE, or AGAIN,
    when there is more. No reactor is touched: a worker alone may call it, and nobody waits for it meanwhile."""
    cdef Output* o = c.output
    cdef size_t head = o.end - o.start
    cdef size_t body = c.large.size - c.large.sent
    cdef ssize_t n
    while head + body and most:
        if c.large.kind == LARGE_FILE:
            n = net_send_file(c.fd, o.data + o.start, head, c.large.file, c.large.at + <int64_t>c.large.sent,
                              lesser(body, most))
        else:
            n = net_send_two(c.fd, o.data + o.start, head, c.large.data + c.large.sent, lesser(body, most))
        if n < 0:
            return <int>n
        c.sent += n
        most -= lesser(most, <size_t>n)
        if <size_t>n < head:
            o.start += <uint32_t>n
            head -= <size_t>n
        else:
            c.large.sent += <size_t>n - head
            body -= <size_t>n - head
            o.start = o.end
            head = 0
    return AGAIN if head + body else DONE


cdef void sent(Reactor* r, Conn* c) noexcept nogil:
    """All is out: the buffers go back, and the connection closes, or reads on."""
    c.stalled = False
    give_large(r, c)
    count_u64(&r.stats.bytes_sent, <uint64_t>c.sent)
    c.sent = 0
    if r.house.limits.timed:
        account_sent(r, c)
    if c.state == READY:
        # Its next reply comes soon.
        c.output.start = c.output.end = 0
        if c.timed_by == BY_WRITE:
            time_idle(r, c)
        return
    give_output(r, c)
    if c.closing:
        if c.unread:
            linger(r, c)
        else:
            drop(r, c)
        return
    if c.timed_by == BY_WRITE:
        retime(r, c)
    arm(r, c, EPOLLIN)
    if c.state != IDLE:
        return
    if c.input is not NULL:
        # Requests that waited for this reply to leave.
        c.credit = 0
        advance(r, c)
    elif r.draining:
        # The reply was committed before the drain began.
        time_by(r, c, BY_LINGER, r.now + DRAIN_GRACE)


cdef void account_sent(Reactor* r, Conn* c) noexcept nogil:
    if c.committed:
        histogram_note(&r.stats.write, r.flushed_at - c.committed)
    if c.records is not NULL:
        log_sent(r, c, False)
    c.committed = 0


cdef void retime(Reactor* r, Conn* c) noexcept nogil:
    """A stall had taken the connection's timer: what it is in the middle of takes it back."""
    if c.state == HEAD:
        time_by(r, c, BY_HEAD, r.now + r.house.limits.header_timeout)
    elif c.state == BODY:
        c.began = c.looked = r.now
        c.progress = body_come(c)
        time_by(r, c, BY_BODY, r.now + earlier(r.house.limits.body_timeout, RATE_LOOK))
    else:
        time_idle(r, c)


cdef void stall(Reactor* r, Conn* c) noexcept nogil:
    """The socket is full: no more is read from this client until it has read."""
    if not c.stalled:
        c.stalled = True
        watch_reader(r, c)
        time_by(r, c, BY_WRITE, r.now + write_look(&r.house.limits))
        arm(r, c, EPOLLOUT)


cdef void watch_reader(Reactor* r, Conn* c) noexcept nogil:
    """From now on it is judged."""
    c.began = c.looked = r.now
    c.progress = c.mark = arrived(c)


cdef int64_t arrived(Conn* c) noexcept nogil:
    """Bytes that the client's kernel has, of what was sent since all that was committed had left. (What the socket
    takes is no progress of a reader's: it takes nothing for megabytes, and then megabytes.)"""
    return c.sent - net_unread(c.fd)


cdef int64_t write_look(Limits* lim) noexcept nogil:
    """How often a stalled reader is looked at: it is cut so much late at most."""
    return earlier((lim.write_timeout >> 3) + 1_000_000, RATE_LOOK)


# ---------------------------------------------------------------------------------------------
# home: a connection whose handler ran off lease comes back through the inbox.

cdef bint is_settled(Conn* c) noexcept nogil:
    """The reply has left: is there nothing else that only the holder can do for this connection? What
    it still has to do, to give two buffers back, can wait until the client's next request wakes it."""
    return (not c.closing and c.large.kind == NO_LARGE and c.body.data is NULL
            and c.input.end - c.input.start == c.consumed and load_u8(&c.taken) == 0)


cdef void send_home(Reactor* r, Conn* c, bint quiet) noexcept nogil:
    """By the worker that ran alone: from here on the connection is the holder's again. `quiet`: the
    holder may sleep on; a wake-up for each reply was a quarter of what a handler that blocks costs."""
    home_push(&r.lease, <void**>&c.next_ready, c)
    # Each of these is stored, sequentially consistent, before somebody looks into the inbox: the next
    # request came while the connection was away, the watcher lies down, a drain begins. So either they
    # see the connection there, or they are seen here. While the watcher is up, it is the net: before it
    # lies down it pokes the holder of an inbox that is not empty.
    if not (quiet and load_u32_seq(&c.armed) == EPOLLIN and not load_u32_seq(&r.lease.asleep)
            and not load_u32_seq(&r.house.draining)):
        event_poke(r.lease.event)


cdef void take_home(Reactor* r) noexcept nogil:
    cdef Conn* c
    cdef Conn* rest = <Conn*>home_take(&r.lease)
    while rest is not NULL:
        c = rest
        rest = c.next_ready
        if c.state == HIJACKED:
            bring_back(r, c)
            continue
        count_u64(&r.stats.bytes_received, c.drawn)
        c.drawn = 0
        c.limit = NULL
        if r.house.limits.timed and (c.claim != EXPIRED or c.late):
            note_times(r, c)
        if c.claim == EXPIRED:
            # The client has had its reply and the end of what we say.
            c.stalled = False
            if r.house.limits.logs:
                c.committed = 0
                log_reply(r, c, c.refused, c.replied, c.late)
                log_sent(r, c, c.owes or c.aborted)
            linger(r, c)
            continue
        if c.resumes:
            c.resumes = False
            resume(r, c)
            continue
        if c.fault:
            count_refusal(r, c.fault)
        if r.house.limits.logs and c.last_status:
            log_reply(r, c, c.last_status, c.replied, True)
        if c.slow_reader:
            count_u64(&r.stats.timed_out_write, 1)
        if c.aborted:
            count_u64(&r.stats.aborted, 1)
            abort(r, c)
            continue
        count_reply(r, c.last_status)
        if c.slow != NOT_JUDGED:
            count_u64(&r.stats.passed_first, 1)
        judge(r, c.slow)
        if load_u8(&c.taken):
            send_away(r, c)
            continue
        c.credit = 0
        finish(r, c)


cdef void note_times(Reactor* r, Conn* c) noexcept nogil:
    """Of a call that ended off lease."""
    histogram_note(&r.stats.handler, c.handled)
    if c.gil >= 0:
        histogram_note(&r.stats.queue, c.waited)
        histogram_note(&r.stats.gil, c.gil)
    if c.written >= 0:
        histogram_note(&r.stats.write, c.written)
        c.committed = 0


cdef void count_reply(Reactor* r, int status) noexcept nogil:
    count_u64(&r.stats.requests, 1)
    count_u64(&r.stats.statuses[status // 100], 1)


cdef void judge(Reactor* r, int speed) noexcept nogil:
    """A moving average of how many handlers block, in 1/1024."""
    if speed == SLOW:
        r.blocking += (1024 - r.blocking) >> 5
    elif speed == FAST:
        r.blocking -= (r.blocking + 31) >> 5


# ---------------------------------------------------------------------------------------------
# expire: the first of each list, while its time has come.

cdef void expire(Reactor* r, int64_t due) noexcept nogil:
    cdef Limits* lim = &r.house.limits
    cdef uint32_t kind
    cdef Conn* c
    for kind in range(BY_KINDS):
        while True:
            c = <Conn*>deadlines_expired(&r.due[kind], due)
            if c is NULL:
                break
            time_is_up(r, c, kind)
    while r.ready.size and r.ready.first.began + lim.queue_timeout <= due:
        c = queue_pop(&r.ready)
        waited_in_vain(r)
        shed(r, c)
    make_way(r)
    if not r.may_call:
        shed_surplus(r)
    if r.accept_again <= r.now:
        accept_again(r)
    if r.draining:
        ebb(r)


cdef void time_is_up(Reactor* r, Conn* c, uint32_t kind) noexcept nogil:
    if kind == BY_IDLE and (c.state != IDLE or c.dirty):
        time_idle(r, c)
    elif kind == BY_IDLE:
        count_u64(&r.stats.timed_out_idle, 1)
        drop(r, c)
    elif kind == BY_HEAD and c.state == PREFACE:
        refuse_header(r, c, NOTE_LATE_HEADER)
    elif kind == BY_HEAD:
        refuse(r, c, 408)
    elif kind == BY_BODY:
        look_at_body(r, c)
    elif kind == BY_WRITE:
        look_at_write(r, c)
    elif kind == BY_LINGER and c.state == LINGER:
        drop(r, c)
    elif kind == BY_LINGER:
        last_look(r, c)
    elif kind == BY_CALL:
        look_at_call(r, c)
    else:
        # BY_PROBE, BY_LAST_PROBE
        turn_away(r, c)


cdef void waited_in_vain(Reactor* r) noexcept nogil:
    count_u64(&r.stats.shed_old, 1)
    note(r.house, NOTE_WAITED, r.house.limits.queue_timeout // 1_000_000)


cdef void look_at_call(Reactor* r, Conn* c) noexcept nogil:
    """Of a call off lease: its worker has waited for the GIL, or its handler has run, for too long. Whoever gets the
    claim answers; everything else stays lent until the worker comes home."""
    cdef Late* late
    cdef uint32_t worker
    if r.now >= c.began + r.house.limits.queue_timeout and cas_u8(&c.claim, WAITS, EXPIRED):
        waited_in_vain(r)
        end_call(r, c, c.refused if c.step == REFUSED else 503, NULL)
    elif load_u8(&c.claim) == WAITS:
        time_waiting(r, c)
    elif call_ends(r, c, &late) > r.now:
        time_call(r, c)
    elif cas_u8(&c.claim, UNCLAIMED, EXPIRED):
        c.late = True
        count_u64(&r.stats.timed_out_handler, 1)
        worker = load_u32(&c.worker)
        note(r.house, NOTE_HANDLER, r.house.crew.mates[worker].tid if worker != NOBODY else 0)
        if late is NULL:
            end_call(r, c, 504, NULL)
        else:
            end_call(r, c, late.status, late.words)
    elif load_u8(&c.claim) == SPEAKING:
        time_by(r, c, BY_CALL, r.now + CLAIM_AGAIN)


cdef int64_t call_ends(Reactor* r, Conn* c, Late** late) noexcept nogil:
    """When the time of its handler is up; `late` is what is said then, NULL: 504. The worker stored `called` before it
    took WAITS back."""
    cdef int64_t time = r.house.limits.handler_timeout
    cdef int64_t at = load_i64(&c.called) + time if time else NEVER
    late[0] = <Late*>load_ptr_seq(&c.limit)
    if late[0] is not NULL and load_i64(&c.limit_at) <= at:
        return load_i64(&c.limit_at)
    late[0] = NULL
    return at


cdef void time_call(Reactor* r, Conn* c) noexcept nogil:
    cdef Late* late
    cdef int64_t at = call_ends(r, c, &late)
    if at != NEVER:
        time_by(r, c, BY_CALL, at)


cdef void hear_wishes(Reactor* r) noexcept nogil:
    """Workers whose call was off lease when it got a limit want that to be seen. A wish that is old, or another
    reactor's, asks for a look at a call that does not need it."""
    cdef House* h = r.house
    cdef uint64_t tag
    cdef uint32_t i
    cdef Conn* c
    swap_u32(&r.wishes, 0)
    for i in range(h.max_workers):
        tag = load_u64_acquire(&h.crew.mates[i].wish)
        c = slot_of(&r.slots, tag) if tag else NULL
        if c is not NULL and c.state == AWAY:
            look_at_call(r, c)


cdef void time_waiting(Reactor* r, Conn* c) noexcept nogil:
    """A call whose handler has not begun by now is looked at again when it may have run for too long, or has waited
    for too long."""
    cdef Limits* lim = &r.house.limits
    cdef int64_t at = c.began + lim.queue_timeout
    time_by(r, c, BY_CALL, earlier(at, r.now + lim.handler_timeout) if lim.handler_timeout else at)


cdef void end_call(Reactor* r, Conn* c, int status, const char* words) noexcept nogil:
    """Answered by the holder, who has the claim."""
    cdef char text[2 * REPLY_HEAD_ROOM]
    cdef bint is_head = is_method(c, b"HEAD", 4)
    cdef size_t size
    c.refused = <uint16_t>status
    c.replied = 0 if is_head else strlen(words if words is not NULL else status_of(status).phrase) + 1
    count_u64(&r.stats.statuses[status // 100], 1)
    size = reply_error(text, status, RETRY_AFTER if status == 503 else 0, &r.scribe, r.house.leave, True, False,
                       not is_head, words)
    if c.owes or net_send(c.fd, text, size) != <ssize_t>size:
        net_cut(c.fd)
    else:
        net_end(c.fd)
    # Handlers that wait for the end of their calls look whether this was it.
    ring(r.house)


cdef void look_at_body(Reactor* r, Conn* c) noexcept nogil:
    cdef Limits* lim = &r.house.limits
    cdef int64_t come = body_come(c)
    cdef int64_t passed = r.now - c.looked
    if r.now - c.began >= lim.body_timeout or come - c.progress < lim.min_body_rate * (passed // SECOND):
        refuse(r, c, 408)
        return
    c.progress = come
    c.looked = r.now
    time_by(r, c, BY_BODY, earlier(c.began + lim.body_timeout, r.now + RATE_LOOK))


cdef void look_at_write(Reactor* r, Conn* c) noexcept nogil:
    """A reader is cut when nothing moved for write_timeout, or less than min_write_rate since it stalled."""
    cdef Limits* lim = &r.house.limits
    cdef int64_t passed = r.now - c.began
    cdef int64_t come
    if c.state == AWAY or c.dirty:
        # Its worker's: it is judged when it is home. Or it waits for its share of a turn.
        time_by(r, c, BY_WRITE, r.now + RATE_LOOK)
        return
    come = arrived(c)
    if come != c.mark:
        c.mark = come
        c.looked = r.now
    if r.now - c.looked >= lim.write_timeout or (
            passed >= <int64_t>RATE_LOOK and come - c.progress < lim.min_write_rate * (passed // SECOND)):
        count_u64(&r.stats.timed_out_write, 1)
        if c.state == READY:
            c.broken = True
        else:
            abort(r, c)
        return
    time_by(r, c, BY_WRITE, earlier(c.looked + lim.write_timeout, r.now + write_look(lim)))


# ---------------------------------------------------------------------------------------------
# linger, drop: the end of a connection.

cdef void linger(Reactor* r, Conn* c) noexcept nogil:
    """Our end is sent; what the client still sends is read and thrown away for a while, because a
    close with unread bytes would reset the connection and take the reply with it."""
    c.state = LINGER
    c.discarded = 0
    give_buffers(r, c)
    net_end(c.fd)
    arm(r, c, EPOLLIN)
    time_by(r, c, BY_LINGER, r.now + (LINGER_DRAIN if load_u32(&r.house.draining) else LINGER_TIME))


cdef void discard(Reactor* r, Conn* c) noexcept nogil:
    cdef char waste[16384]
    cdef ssize_t n = net_recv(c.fd, waste, sizeof(waste))
    if n > 0:
        c.discarded += <uint32_t>n
    if n == GONE or c.discarded > LINGER_BYTES:
        drop(r, c)


cdef void abort(Reactor* r, Conn* c) noexcept nogil:
    """Ends a connection in the middle of a reply, by a reset: a body that ends with the connection would
    otherwise look whole."""
    net_break(c.fd)
    drop(r, c)


cdef void drop(Reactor* r, Conn* c) noexcept nogil:
    timer_stop(&c.timer)
    undirty(r, c)
    give_buffers(r, c)
    discount(r.house, c)
    count_u64(&r.stats.bytes_sent, <uint64_t>c.sent)
    count_u64(&r.stats.bytes_received, c.drawn)
    if c.records is not NULL:
        log_sent(r, c, True)
    let_go(r, c)
    if r.accept_again != NEVER:
        # There is a descriptor more.
        r.accept_again = r.now


cdef void discount(House* h, Conn* c) noexcept nogil:
    """A connection less."""
    if c.peer_key:
        peers_leave(&h.peers, c.peer_key)
    sub_u32(&h.rejected if c.rejected else &h.connections, 1)


# ---------------------------------------------------------------------------------------------
# drain: no new connection, no further request on an old one; then, when time is up, an end.

cdef void drain(Reactor* r) noexcept nogil:
    """What the kernel has queued is accepted, and idle connections have a moment: a request that was on its way
    when they could not know is served."""
    cdef Conn* c
    cdef uint32_t i
    cdef int _
    r.draining = True
    for i in range(r.n_listeners):
        for _ in range(DRAIN_ACCEPTS):
            if not admit(r, i):
                break
        close_listener(r, i)
    r.n_listeners = 0
    r.accept_again = NEVER
    for i in range(r.slots.touched):
        c = &r.slots.table[i]
        if c.state == HIJACKED:
            net_deaf(c.fd)
        elif asks_nothing(c) and not c.dirty and not c.stalled and not c.rejected:
            arm(r, c, EPOLLIN)
            time_by(r, c, BY_LINGER, r.now + DRAIN_GRACE)
    # Those that were told that there are too many.
    flush(r)


cdef bint asks_nothing(Conn* c) noexcept nogil:
    """No byte of a request has come."""
    return c.state == IDLE or c.state == PREFACE


cdef void last_look(Reactor* r, Conn* c) noexcept nogil:
    """Of a drain at an idle connection, whose time is up: what it has sent by now is served; has it sent nothing,
    it is told that nothing more comes."""
    if c.state == PREFACE:
        hear_header(r, c)
    elif receives(r, c):
        received(r, c, net_recv(c.fd, place_of(c), room_of(c)))
    if asks_nothing(c) and not c.dirty:
        count_u64(&r.stats.closed_silent, c.requests == 0)
        linger(r, c)


cdef void ebb(Reactor* r) noexcept nogil:
    """Is the reactor empty by now, or out of time?"""
    cdef House* h = r.house
    if not r.drained and r.slots.used == 0:
        r.drained = True
    elif not r.drained and load_i64(&h.cut_at) <= r.now:
        cut(r)
        r.drained = True
    else:
        if load_i64(&h.exit_at) <= r.now:
            _exit(128 + <int>load_u32(&h.last_signal))
        return
    if load_u32(&h.last_signal):
        # From here on only the main thread is waited for, and it may be unable to come.
        store_i64(&h.exit_at, r.now + EXIT_PATIENCE)
    add_u32(&h.drained, 1)
    ring(h)


cdef void cut(Reactor* r) noexcept nogil:
    """Ends every connection. One in a handler is ended on the wire; its slot comes home later."""
    cdef Conn* c
    cdef uint32_t i
    while queue_pop(&r.ready) is not NULL:
        pass
    while r.unsent.size:
        queue_pop(&r.unsent).dirty = False
    for i in range(r.slots.touched):
        c = &r.slots.table[i]
        if c.state == FREE:
            continue
        if c.state != LINGER and (not asks_nothing(c) or c.output is not NULL) and not (
                c.state == AWAY and load_u8(&c.claim) == EXPIRED):
            count_u64(&r.stats.cut, 1)
        if c.state == AWAY:
            if cas_u8(&c.claim, WAITS, EXPIRED):
                # No handler begins any more, and nobody is told.
                c.refused = 503
                c.aborted = True
                timer_stop(&c.timer)
            net_cut(c.fd)
        elif c.state == HIJACKED:
            net_cut(c.fd)
        elif c.output is not NULL or c.large.kind != NO_LARGE:
            abort(r, c)
        else:
            drop(r, c)


cdef void accept_again(Reactor* r) noexcept nogil:
    cdef uint32_t i
    r.accept_again = NEVER
    for i in range(r.n_listeners):
        if not r.listeners[i].dead:
            listen_on(r, i)


cdef int listen_on(Reactor* r, uint32_t i) noexcept nogil:
    return poll_add(r.epoll, r.listeners[i].fd, EPOLLIN | (EPOLLEXCLUSIVE if r.listeners[i].shared else 0),
                    LISTENER_TAG + i)


cdef void ring(House* h) noexcept nogil:
    """Something changed that threads in `Core.wait` may wait for."""
    add_u32(&h.bell, 1)
    futex_wake(&h.bell, EVERYBODY)


cdef void begin_drain(House* h, int64_t timeout) noexcept nogil:
    """From any thread. A later call may only bring the end nearer."""
    cdef uint32_t i
    store_i64(&h.cut_at, earlier(load_i64(&h.cut_at), now_ns() + timeout))
    store_u32_seq(&h.draining, 1)
    ring(h)
    for i in range(h.n_reactors):
        event_poke(h.reactors[i].lease.event)


cdef void hear_signals(House* h) noexcept nogil:
    """Signal numbers that Python's C-level handler wrote, read without Python: drain and the second
    INT work while every handler hangs."""
    cdef unsigned char numbers[64]
    cdef ssize_t n = net_recv(h.signal_fd, numbers, sizeof(numbers))
    cdef ssize_t i
    for i in range(n):
        if numbers[i] == SIGINT or numbers[i] == SIGTERM:
            if load_u32(&h.last_signal) and numbers[i] == SIGINT:
                _exit(128 + SIGINT)
            store_u32(&h.last_signal, numbers[i])
            begin_drain(h, h.shutdown_timeout)
        elif numbers[i] == SIGUSR1:
            note(h, NOTE_STACKS, 0)
            store_u32_seq(&h.log_reopen, 1)
            wake_log(h)
    ring(h)


# ---------------------------------------------------------------------------------------------
# watch: the native thread beside each reactor. It looks at the lease, seizes it when it stands, and
# turns the reactor itself while nobody else can.

cdef void* watch(void* argument) noexcept nogil:
    cdef Reactor* r = <Reactor*>argument
    cdef House* h = r.house
    cdef Look look
    cdef bint holds = True
    cdef int verdict
    memset(&look, 0, sizeof(look))
    thread_timer_slack(TIMER_SLACK)
    while True:
        if holds:
            if load_u32_seq(&h.closing):
                break
            turn(r, False)
            holds = not watcher_gives(&r.lease, &h.crew, r.ready.size != 0)
            if r.lease.hungry:
                grow(h)
        elif load_u32_seq(&r.lease.holder) == WATCHER:
            # A worker that leaves gave it up.
            holds = True
        else:
            verdict = watcher_looks(&r.lease, &h.crew, &look, h.gil)
            if load_u32_seq(&h.closing) and look.word & STATE != IO:
                verdict = STUCK
            if verdict == BLOCKED or verdict == COMPUTING or verdict == STUCK:
                holds = seize(r, &look, verdict)
            if not holds:
                watcher_rests(&r.lease, &h.crew, &look, verdict)
    watcher_closes(&r.lease, &h.crew)
    return NULL


cdef bint seize(Reactor* r, Look* look, int verdict) noexcept nogil:
    """Takes the lease from a holder that stands, for the worker that parked last, or, when none is
    parked or the GIL is the trouble, for the watcher itself: then the answer is True."""
    cdef House* h = r.house
    cdef uint32_t was = load_u32(&r.lease.holder)
    cdef uint64_t state = look.word & STATE
    if not lease_seize(&r.lease, look.word):
        return False
    store_u32_seq(&r.lease.holder, WATCHER)
    if state == WANT:
        count_u64(&r.stats.handoffs_gil, 1)
        r.lease.gil_waiter = was + 1
        return True
    if verdict == BLOCKED:
        count_u64(&r.stats.handoffs_blocked, 1)
        look.brisk_until = look.at + BRISK
        judge(r, SLOW)
    else:
        count_u64(&r.stats.handoffs_computing, 1)
    if state == CALL:
        goes_off_lease(r, r.calling, was, UNCLAIMED, look.since)
        store_u64_release(&h.crew.mates[was].let_go, look.word)
    if lease_pass(&r.lease, &h.crew):
        return False
    # Now, not behind a turn that may wait for long.
    watcher_hungers(&r.lease, &h.crew, r.ready.size != 0)
    grow(h)
    return True


cdef void grow(House* h) noexcept nogil:
    """Nobody is parked: the keeper may start one worker more."""
    if load_u32(&h.workers) < h.max_workers and not load_u32(&h.growing):
        store_u32(&h.growing, 1)
        wake_keeper(h)


# ---------------------------------------------------------------------------------------------
# work: a worker without the GIL, until there is Python to run.

cdef bint work(Desk* d, int64_t idle) noexcept nogil:
    """True: there are handlers to call, and the word says WANT, or there is none, and the worker is off lease
    with one request. False: the worker is not needed."""
    cdef House* h = d.house
    cdef uint32_t why
    if d.home is not NULL:
        finish_alone(d)
    if idle >= 0 and d.reactor is not NULL and d.reactor.ready.size == 0 and lease_pass(&d.reactor.lease, &h.crew):
        # A spare worker that has done what it was needed for parks, so that it can retire.
        d.reactor = NULL
    while True:
        if d.reactor is NULL:
            why = crew_park(&h.crew, d.mate, idle)
            if why < LENT:
                return False
            d.reactor = &h.reactors[why - LENT]
        if load_u32_seq(&h.closing):
            lease_give_up(&d.reactor.lease)
            d.reactor = NULL
            return False
        turn(d.reactor, True)
        if d.reactor.ready.size:
            d.word = 0
            if h.limits.timed:
                d.asked_at = now_ns()
            if d.reactor.blocking < PASS_FIRST or not take_along(d):
                d.word = lease_publish(&d.reactor.lease, WANT)
            return True
        if lease_spares(&h.crew):
            lease_give_up(&d.reactor.lease)
            d.reactor = NULL
        elif idle >= 0 and lease_pass(&d.reactor.lease, &h.crew):
            d.reactor = NULL


cdef bint take_along(Desk* d) noexcept nogil:
    """Handlers block: the lease goes on before the GIL is waited for, so that whoever wakes up with it does not
    find the GIL taken. False: nobody is parked, or enough requests are out of the queue's reach."""
    cdef Reactor* r = d.reactor
    cdef Conn* c
    cdef Mate* m
    if load_u32(&r.taken_along) >= TAKEN_ALONG:
        return False
    c = next_call(r)
    if c is NULL:
        return False
    m = crew_pop(&d.house.crew)
    if m is NULL:
        c.state = READY
        queue_push_front(&r.ready, c)
        grow(d.house)
        return False
    goes_off_lease(r, c, d.mate.index, WAITS, r.now)
    add_u32(&r.taken_along, 1)
    d.conn = c
    # News for the watcher: while it is up, connections come home quietly.
    lease_publish(&r.lease, IO)
    lease_lend(&r.lease, m)
    return True


cdef void finish_alone(Desk* d) noexcept nogil:
    """Off lease: the reply goes out on the worker's own connection, and that goes home."""
    cdef Conn* c = d.home
    cdef bint sent, quiet
    wait_let_go(d)
    d.home = NULL
    if d.house.limits.timed:
        c.committed = d.over
        c.handled = d.over - d.began
        c.written = -1
    if not d.streamed and not cas_u8(&c.claim, UNCLAIMED, ANSWERED):
        if not d.resumes:
            give_handed(d.house, &d.handed)
        send_home(d.home_reactor, c, False)
        return
    if d.resumes:
        c.resumes = True
        send_home(d.home_reactor, c, False)
        return
    if d.streamed:
        if not c.aborted and (c.step == ASKS or c.step == STREAMS) and not body_spent(c):
            c.closing = c.unread = True
    elif c.aborted:
        give_handed(d.house, &d.handed)
    else:
        scribe_date(&d.scribe, wall_seconds())
        commit(d.house, c, d.reply, &d.scribe, &d.handed)
    sent = not c.aborted and push_out(c, ALL_OF_IT) == DONE
    if d.house.limits.timed:
        c.written = now_ns() - c.committed if sent else -1
    quiet = sent and is_settled(c)
    send_home(d.home_reactor, c, quiet)


cdef void give_handed(House* h, Handed* handed) noexcept nogil:
    """The body of a reply that nobody sends."""
    if handed.kind == LARGE_OBJECT:
        house_drops(h, handed.owner)
    elif handed.kind == LARGE_MEMORY:
        mem_give(handed.owner)
    elif handed.kind == LARGE_FILE:
        c_close(handed.file)
    handed.kind = NO_LARGE


include "_forks.pxi"
include "_log.pxi"
include "_probes.pxi"
include "_proxy.pxi"
include "_stream.pxi"
include "_later.pxi"
include "_args.pxi"
include "_ctx.pxi"
include "_files.pxi"
include "_views.pxi"
include "_worker.pxi"
