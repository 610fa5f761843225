"""A reactor and its house: what they own, and the small words over it.

Knows: which pools, lists and counters belong together, and how a connection borrows and returns.
Never sees: when, and in which order: that is `_core.pyx`. No Python object: the owner of a large
reply is an opaque pointer that is handed back to the house.
Invariant: everything in a Reactor belongs to the holder of its lease, but for the inbox in it (any
thread pushes), `stats` (one writer, any reader) and the lock `descriptors`, which a fork takes too. What
several threads of a House touch is atomic or stands behind `lock`.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from fastserve.engine.atomics cimport (
    add_u32, futex_wake, load_u64, lock_word, now_ns, store_u32, store_u32_seq, unlock_word,
)
from fastserve.engine.batch cimport Batch
from fastserve.engine.conn cimport (
    LARGE_FILE, LARGE_MEMORY, LARGE_OBJECT, NO_LARGE, Conn, Input, Output, Queue, Slots, input_at, slot_tag,
)
from fastserve.engine.deadline cimport Deadlines, timer_start, timer_touch
from fastserve.engine.http1 cimport http1_begin
from fastserve.engine.lease cimport Crew, Lease
from fastserve.engine.limits cimport Limits
from fastserve.engine.metrics cimport Histogram
from fastserve.engine.net cimport c_close
from fastserve.engine.peers cimport Peers
from fastserve.engine.poll cimport poll_add, poll_change
from fastserve.engine.pool cimport (
    Bodies, Pool, body_drop, mem_give, mem_grow, pool_lend, pool_lent, pool_return,
)
from fastserve.engine.proxy cimport Trusted
from fastserve.engine.reply cimport Scribe


cdef extern from "<pthread.h>" nogil:
    ctypedef unsigned long pthread_t


cdef enum:                      # tags of the epoll set that are no connection's
    EVENT_TAG = 1
    SIGNAL_TAG = 2
    LISTENER_TAG = 16
    FIRST_TAG = 0x100000000     # a connection's: its generation is at least 1

cdef enum:
    LISTENERS = 16              # of one reactor
    NOTES = 64                  # messages that wait for the keeper
    HANDLERS_NOTED = 10         # reports of late handlers, each with its stack, in a minute
    MINUTE = 60_000_000_000

cdef enum:                      # Conn.timed_by
    BY_IDLE = 1
    BY_HEAD = 2
    BY_BODY = 3
    BY_WRITE = 4
    BY_LINGER = 5
    BY_CALL = 6
    BY_PROBE = 7                # a rejected connection that may be one
    BY_LAST_PROBE = 8           # the same where nothing but a probe is answered
    BY_KINDS = 9

cdef enum:                      # what the core has to say; the keeper puts it into words
    NOTE_CONCURRENCY = 0
    NOTE_QUEUE = 1
    NOTE_ACCEPT = 2
    NOTE_PER_IP = 3
    NOTE_MEMORY = 4
    NOTE_LOG = 5
    NOTE_WAITED = 6
    NOTE_DEAD = 7
    NOTE_FORGOTTEN = 8
    NOTE_STRANGER = 9           # came to a listener of proxies and is none: `value` is its `peer_key`, here and next
    NOTE_NO_HEADER = 10
    NOTE_LATE_HEADER = 11
    NOTE_HANDLER = 12           # a handler whose time is up: `value` is its thread, 0: its ctx is detached
    NOTE_REFUSED = 13           # each of them, when asked for
    NOTE_STACKS = 14            # each time that a signal asks
    NOTE_KINDS = 15


cdef struct Stats:
    # Counters from end to end; the holder writes them, anybody may read.
    uint64_t accepted
    uint64_t refused            # connections beyond `concurrency`
    uint64_t refused_short      # for which there was no descriptor
    uint64_t refused_ip         # beyond `max_conns_per_ip`
    uint64_t unheard            # of both: closed without a reply
    uint64_t refused_proxy      # of listeners of proxies: strangers, and those that sent no header
    uint64_t requests           # answered by a handler
    uint64_t bytes_received
    uint64_t bytes_sent
    uint64_t shed_full          # 503: the queue was full
    uint64_t shed_old           # 503: waited for queue_timeout
    uint64_t shed_memory        # 503: bodies that `max_memory` had no room for
    uint64_t cut                # connections that shutdown ended in the middle of a request
    uint64_t closed_silent      # connections that shutdown ended before they had asked for anything
    uint64_t timed_out_idle
    uint64_t timed_out_write
    uint64_t timed_out_handler
    uint64_t probes             # answered without Python
    uint64_t aborted            # streamed replies that broke off
    uint64_t hijacked           # connections that became a thread's of their own
    uint64_t handoffs_blocked
    uint64_t handoffs_computing
    uint64_t handoffs_gil
    uint64_t passed_first
    uint64_t statuses[6]        # replies by hundreds of their status
    uint64_t refusals[200]      # replies to what never became a request, by status - 400
    Histogram queue             # from a whole request to its handler
    Histogram handler
    Histogram gil               # for each batch of handlers
    Histogram write             # from the end of a handler until its reply has left


cdef struct Listener:
    int fd
    uint8_t local               # a unix socket
    uint8_t shared              # other sets watch it too
    uint8_t proxy               # each connection begins with a PROXY header
    uint8_t dead                # somebody has shut it down


cdef struct Note:
    uint32_t kind
    uint32_t left_out           # of its kind, before it
    int64_t value
    int64_t at


cdef struct Noted:
    # Of one kind of notes.
    int64_t since               # when the minute began in which `times` were made
    uint32_t times
    uint32_t left_out           # since the last one


cdef struct Reactor:
    Lease lease
    House* house
    pthread_t watcher
    int epoll
    int64_t now                 # of this turn
    int64_t flushed_at          # when the last sends were made; only where requests are timed
    Queue ready
    Conn* dirty                 # connections with output to flush
    size_t to_send              # bytes of large replies that this turn may still send
    int64_t slow_sends          # the time of those that took more than a nanosecond a byte
    Queue unsent                # dirty connections for whose large replies there was none of that left
    int64_t drop_at             # when the keeper is to drop what large replies were sent from, if nobody else has
    Conn* calling               # the one whose handler runs under CALL
    uint32_t taken_along        # atomic: requests whose worker waits for the GIL off lease
    uint32_t wishes             # atomic: a worker off lease wants its call looked at
    uint32_t blocking           # moving average of handlers seen to block, in 1/1024
    bint may_call               # the holder of this turn is a worker
    bint draining
    bint drained
    Scribe scribe
    int64_t date_at             # when its date is to be written anew
    Slots slots
    Pool inputs
    Pool outputs
    Bodies bodies
    Deadlines due[BY_KINDS]     # a list a kind of deadline: Conn.timed_by says which one its timer is in
    int64_t oldest              # atomic: since when the first of `ready` waits, as of the last turn; NEVER
    uint32_t full_turns         # in a row: there were more events than one turn takes
    int64_t accept_again        # NEVER while accepting
    int64_t accept_pause
    int spare                   # a descriptor kept for when there are none
    uint32_t n_listeners
    Listener listeners[LISTENERS]
    Batch batch
    void* log_full              # records that the log's thread takes
    void* log_back              # and those that it has written
    void* log_free              # the holder's
    uint32_t log_made
    uint32_t descriptors        # a lock: from accept to slot, from close to free slot, while a process forks
    Stats stats


cdef struct House:
    # One server, as native code sees it.
    Limits limits
    House* next_house           # of this process: see _forks.pxi
    Crew crew
    Reactor* reactors
    uint32_t n_reactors
    bint gil                    # Python's threads take turns
    bint hears_errors           # there is an error handler
    bint hears_heads            # there is an on_headers
    bint logs_errors            # each refusal is a note
    uint8_t leave               # the default fields that no reply has: as `set` in Reply
    uint32_t refs               # atomic: those inside, and the server object; the last one frees
    uint32_t inside             # atomic: workers, the keeper, the watchers; the last one closes
    uint32_t connections        # atomic: without those that were rejected
    uint32_t rejected           # atomic
    Peers peers
    Trusted trusted             # whose PROXY headers are believed
    int64_t started_at
    uint64_t conn_ids           # atomic
    uint32_t draining           # atomic: no new connection, no keep-alive
    int64_t cut_at              # atomic: when draining ends; NEVER
    uint32_t drained            # atomic: reactors without a connection, or cut
    uint32_t closing            # atomic: threads leave
    uint32_t bell               # futex: something changed that the main thread waits for
    int64_t exit_at             # atomic: when a process whose main thread cannot come back ends; NEVER
    uint32_t last_signal        # atomic: INT or TERM, once one came
    uint32_t forked             # this process is a child of the server's: nothing here is alive
    uint32_t max_workers
    int64_t shutdown_timeout
    int signal_fd               # end of the socket pair that Python's signal handler writes to; -1
    uint32_t keeper_bell        # futex the keeper sleeps on
    uint32_t workers            # atomic: threads inside `work`
    uint32_t growing            # atomic: a worker more is wanted
    int log_fd                  # -1: there is no access log; its thread's, once that runs
    const char* log_path        # NULL: it cannot be opened again
    bint log_json
    bint log_runs
    bint log_torn               # the log thread's: the last line that was written has no end
    pthread_t log_thread
    uint32_t log_asleep         # futex: the log's thread sleeps until there is a record
    uint32_t log_reopen         # atomic
    uint32_t log_ends           # atomic
    uint64_t log_lines          # atomic
    uint64_t log_lost           # atomic: lines
    uint32_t lock               # of what follows
    void** dropped              # owners of sent replies, to be released under the GIL
    uint32_t n_dropped          # read without the lock, as a hint
    uint32_t dropped_room
    uint32_t n_notes
    Note notes[NOTES]
    Noted noted[NOTE_KINDS]


cdef inline uint64_t memory_lent(House* h) noexcept nogil:
    """Bytes of all buffers and bodies that connections have at the moment."""
    cdef uint64_t total = 0
    cdef uint32_t i
    cdef Reactor* r
    for i in range(h.n_reactors):
        r = &h.reactors[i]
        total += pool_lent(&r.inputs) * r.inputs.size + pool_lent(&r.outputs) * r.outputs.size
        total += load_u64(&r.bodies.bytes)
    return total


cdef inline size_t lesser(size_t a, size_t b) noexcept nogil:
    return a if a < b else b


cdef inline int64_t earlier(int64_t a, int64_t b) noexcept nogil:
    return a if a < b else b


# What a connection borrows.

cdef inline Input* lend_input(Reactor* r) noexcept nogil:
    cdef void* block = pool_lend(&r.inputs)
    cdef Limits* lim = &r.house.limits
    cdef Input* i
    if block is NULL:
        return NULL
    i = input_at(block, lim.fields, lim.input_room)
    http1_begin(&i.head)
    return i


cdef inline void give_input(Reactor* r, Conn* c) noexcept nogil:
    if c.input is not NULL:
        pool_return(&r.inputs, c.input)
        c.input = NULL


cdef inline bint lend_output(Reactor* r, Conn* c) noexcept nogil:
    if c.output is NULL:
        c.output = <Output*>pool_lend(&r.outputs)
        if c.output is NULL:
            return False
        c.output.start = c.output.end = 0
    return True


cdef inline void give_output(Reactor* r, Conn* c) noexcept nogil:
    if c.output is not NULL:
        pool_return(&r.outputs, c.output)
        c.output = NULL


cdef inline void house_drops(House* h, void* owner) noexcept nogil:
    """An object whose bytes are sent: released when somebody has the GIL anyway, or by the keeper."""
    cdef void** more
    lock_word(&h.lock)
    if h.n_dropped == h.dropped_room:
        more = <void**>mem_grow(h.dropped, 2 * h.dropped_room * sizeof(void*))
        if more is NULL:
            # Without memory for a pointer the object is lost, which beats a wrong count.
            unlock_word(&h.lock)
            return
        h.dropped = more
        h.dropped_room *= 2
    h.dropped[h.n_dropped] = owner
    store_u32(&h.n_dropped, h.n_dropped + 1)
    unlock_word(&h.lock)


cdef inline void give_large(Reactor* r, Conn* c) noexcept nogil:
    if c.large.kind == LARGE_OBJECT:
        house_drops(r.house, c.large.owner)
    elif c.large.kind == LARGE_MEMORY:
        mem_give(c.large.owner)
    elif c.large.kind == LARGE_FILE:
        c_close(c.large.file)
    c.large.kind = NO_LARGE
    c.large.size = c.large.sent = 0


cdef inline void give_buffers(Reactor* r, Conn* c) noexcept nogil:
    give_input(r, c)
    give_output(r, c)
    give_large(r, c)
    body_drop(&r.bodies, &c.body)


# What the reactor remembers of it.

cdef inline void make_dirty(Reactor* r, Conn* c) noexcept nogil:
    if not c.dirty:
        c.dirty = True
        c.next_dirty = r.dirty
        r.dirty = c


cdef inline void undirty(Reactor* r, Conn* c) noexcept nogil:
    """A connection that ends may still be listed; rare, so the list is walked. None ends while it is in `unsent`."""
    cdef Conn** at = &r.dirty
    if not c.dirty:
        return
    while at[0] is not c:
        at = &at[0].next_dirty
    at[0] = c.next_dirty
    c.dirty = False


cdef inline void arm(Reactor* r, Conn* c, uint32_t events) noexcept nogil:
    cdef bint joins = c.armed == 0
    if c.armed != events:
        store_u32_seq(&c.armed, events)
        if joins:
            poll_add(r.epoll, c.fd, events, slot_tag(c))
        else:
            poll_change(r.epoll, c.fd, events, slot_tag(c))


cdef inline void time_idle(Reactor* r, Conn* c) noexcept nogil:
    """The deadline of a connection that nothing else is waited for."""
    cdef int64_t period = r.house.limits.idle_timeout
    if c.timed_by == BY_IDLE:
        timer_touch(&r.due[BY_IDLE], &c.timer, r.now, period)
    else:
        c.timed_by = BY_IDLE
        timer_start(&r.due[BY_IDLE], &c.timer, r.now + period + (period >> 6))


cdef inline void time_by(Reactor* r, Conn* c, uint8_t kind, int64_t at) noexcept nogil:
    c.timed_by = kind
    timer_start(&r.due[kind], &c.timer, at)


cdef inline void wake_keeper(House* h) noexcept nogil:
    add_u32(&h.keeper_bell, 1)
    futex_wake(&h.keeper_bell, 1)


cdef inline void note(House* h, uint32_t kind, int64_t value) noexcept nogil:
    """Something for the log, of a limit at most once a minute, of late handlers a few times; never blocks for long.
    What is left out is counted, and told with the next of its kind."""
    cdef int64_t now = now_ns()
    cdef uint32_t most = 1 if kind < NOTE_HANDLER else HANDLERS_NOTED if kind == NOTE_HANDLER else NOTES
    cdef Noted* noted = &h.noted[kind]
    cdef Note* n
    lock_word(&h.lock)
    if noted.since == 0 or now - noted.since >= <int64_t>MINUTE or kind > NOTE_HANDLER:
        noted.since = now
        noted.times = 0
    if noted.times >= most or h.n_notes == NOTES:
        noted.left_out += 1
        unlock_word(&h.lock)
        return
    n = &h.notes[h.n_notes]
    h.n_notes += 1
    noted.times += 1
    n.kind, n.value, n.at, n.left_out = kind, value, now, noted.left_out
    noted.left_out = 0
    unlock_word(&h.lock)
    wake_keeper(h)
