"""A connection: its slot in the table, and the buffers it borrows while bytes are pending.

Knows: slots, generations, what a connection is in the middle of, where its bytes lie.
Never sees: a system call, a grammar, Python (the owner of a large reply is an opaque pointer).
Invariant: a slot is addressed by index and generation; the generation moves when the slot is
freed, so that an event or a message that is late finds nothing. A connection has one owner: the
holder of its reactor's lease, or, from a CALL or a hand-over until the inbox, the worker that runs
its handler (state AWAY).
"""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memmove, memset

from fastserve.engine.atomics cimport count_u32, count_u64, store_u32
from fastserve.engine.body cimport Chunked
from fastserve.engine.deadline cimport Timer
from fastserve.engine.http1 cimport Field, Head
from fastserve.engine.net cimport sockaddr_in6
from fastserve.engine.pool cimport Body, mem_give, mem_take_zeroed


cdef enum:                  # what a connection is in the middle of
    FREE = 0
    IDLE = 1                # no byte of a request has come
    HEAD = 2                # some of a head
    BODY = 3                # the head, and not all of the body
    READY = 4               # a whole request, waiting for a worker
    AWAY = 5                # in a handler: its worker's, not the holder's
    WRITING = 6             # a reply that the socket would not take whole
    LINGER = 7              # our end is sent: reading and throwing away, then closing
    HIJACKED = 8            # a thread's of its own, which sends it home when it is done
    PREFACE = 9             # a proxy's: not all of the header has come that must come first

cdef enum:                  # which part of a request the next call is for
    WHOLE = 0               # the whole of it
    ASKS = 1                # the head alone: the body is on the wire, and nobody has said yet who reads it
    STREAMS = 2             # the head: the handler reads the body
    TOLD = 3                # the whole, and the hook has seen its head
    REFUSED = 4             # what the parser refused: the error handler may word the reply

cdef enum:                  # Conn.claim, of a call off lease
    UNCLAIMED = 0           # nobody has answered yet
    SPEAKING = 1            # its worker sends something interim
    ANSWERED = 2            # its worker answers
    EXPIRED = 3             # the holder has answered 503 or 504; the handler's ctx is no use any more
    WAITS = 4               # its worker waits for the GIL, and the handler has not begun

cdef enum:                  # Conn.worker
    NOBODY = 0xffffffff     # of a call that was detached

cdef enum:                  # Conn.taken, of a connection that was hijacked
    TAKEN = 1               # on its way to the holder
    SENT_AWAY = 2           # the holder has let it go: its thread sends it home
    OVER = 3                # its thread is done with it: the holder closes it when it comes

cdef enum:                  # why bytes of `Large` are still held
    NO_LARGE = 0
    LARGE_OBJECT = 1        # a Python object owns them: dropped when the GIL is held
    LARGE_MEMORY = 2        # ours: mem_give
    LARGE_FILE = 3          # they are in a file, whose descriptor is ours


cdef struct Input:
    # What was received and not yet consumed; the message being read begins at `start`.
    Head head
    uint32_t start
    uint32_t end
    uint32_t room
    char* data


cdef struct Output:
    # Replies that were committed and not yet sent.
    uint32_t start
    uint32_t end
    char data[1]            # as many as OUTPUT_ROOM

cdef enum:
    OUTPUT_ROOM = 32768
    INPUT_SLACK = 4096      # beyond the longest head, so that a body always finds room to arrive in


cdef struct Large:
    # The body of the last reply in `Output`, when it is too large to be copied there.
    uint8_t kind
    const char* data
    size_t size
    size_t sent
    void* owner
    int file
    int64_t at              # of the first of them in the file


cdef struct Late:
    # The reply to a call that ends by a limit of its own. It outlives all calls.
    int status
    const char* words


cdef struct Conn:
    # What every request touches comes first, in two lines of the cache.
    Timer timer             # first of all: a timer is its connection
    # of the slot, not of the connection in it
    uint32_t index
    uint32_t generation
    uint32_t armed          # what the epoll set reports; 0: it is not in it; atomic: who sent it home looks again
    # of the connection
    int fd
    uint8_t state
    uint8_t timed_by        # the list that `timer` is in
    uint8_t dirty           # in the list of those with output to flush
    uint8_t closing         # the reply in `output` is the last
    uint8_t unread          # the peer may have sent more than was read: linger before closing
    uint8_t stalled         # the socket is full: nothing is read until `output` has left
    uint8_t broken          # the peer is gone, found out while the connection was READY
    uint8_t in_place        # the body lies in `input`, behind the head
    uint8_t claim           # who answers the call; atomic: its worker's, or the holder's when its time is up
    uint8_t credit          # requests that may still go to the front of the queue
    uint8_t step            # which part of the request the next call is for
    uint8_t rejected        # beyond a limit of connections: it is told so, and is not counted among the others
    uint8_t aborted         # its reply broke off: reset, so that the client does not take it for the whole
    uint8_t continued       # some of the body has come, or 100 was said
    uint16_t last_status    # of the reply of a handler that ran off lease
    uint32_t requests       # so far, the current one included
    uint32_t consumed       # bytes of `input` from `start` that the current request takes
    Input* input
    Output* output
    Conn* next_ready        # ready list; free list; inbox; those that wait for a share of a turn
    Conn* next_dirty
    int64_t began           # the phase that a deadline measures
    int64_t sent            # bytes, since all that was committed had left
    int64_t body_limit      # of the current request, once its head is there
    Large large             # its `kind` first
    Body body
    int64_t body_left       # ASKS, STREAMS, without chunked coding: bytes that nobody has taken yet
    int64_t looked          # the last look at a body; the last progress of a stalled reply
    int64_t progress        # bytes received at that look; bytes that had arrived when the stall began
    int64_t mark            # bytes that had arrived at the last progress of a stalled reply
    uint16_t refused        # the status of what the parser refused, of a rejected connection, of an EXPIRED call
    uint16_t fault          # ASKS, STREAMS: the status of a body that is at fault: no more of it is taken
    uint32_t discarded      # while lingering
    uint8_t slow            # its last handler ran off lease and was seen to block
    uint8_t resumes         # it comes home without a reply, for its body to be received
    uint8_t owes            # a reply to an earlier request is still in `output` while its worker has the connection
    uint8_t slow_reader     # its worker gave it up, because the client read too slowly
    uint8_t taken           # atomic: it was hijacked, and who is done with it first; 0: it was not
    uint8_t late            # the call is EXPIRED because its handler took too long
    uint8_t unsaid          # a proxy's, who did not say whose: nobody knows who speaks
    # of the last call, where requests are timed; nanoseconds
    int64_t committed       # when its handler was over; 0: its reply has left, or it is no handler's
    int64_t called          # atomic: when the handler of a call off lease began
    int64_t waited          # for its worker
    int64_t gil             # its worker waited for the GIL; -1: that and `waited` are counted
    int64_t handled         # how long its handler took
    int64_t written         # off lease: how long its reply took to leave; -1: it has not
    uint64_t replied        # bytes of the reply's body
    void* records           # of the access log, newest first: their replies have not left
    uint64_t drawn          # bytes of its body that its worker received
    uint32_t worker         # atomic: index of the worker whose call it is, off lease
    int64_t limit_at        # atomic: when the call ends by a limit of its own
    void* limit             # atomic: what the client is told then, a Late; NULL: it has no such limit
    uint64_t peer_key       # under which its address is counted; 0: it is not
    Chunked chunked
    uint64_t id
    int64_t opened          # when it was accepted
    sockaddr_in6 peer


cdef struct Slots:
    Conn* table
    Conn* free
    uint32_t room
    uint32_t touched        # slots that were ever used: the rest of the table is untouched memory
    uint64_t used


cdef inline bint slots_make(Slots* s, uint32_t room) noexcept nogil:
    s.table = <Conn*>mem_take_zeroed(room, sizeof(Conn))
    s.free = NULL
    s.room = room
    s.touched = 0
    s.used = 0
    return s.table is not NULL


cdef inline void slots_unmake(Slots* s) noexcept nogil:
    mem_give(s.table)
    s.table = NULL


cdef inline Conn* slot_take(Slots* s, int fd, uint64_t id) noexcept nogil:
    """A slot for a new connection; NULL: the table is full."""
    cdef Conn* c = s.free
    if c is not NULL:
        s.free = c.next_ready
    elif s.touched < s.room:
        c = &s.table[s.touched]
        c.index, c.generation = s.touched, 1
        s.touched += 1
    else:
        return NULL
    memset(&c.timer, 0, sizeof(c.timer))
    memset(&c.fd, 0, <size_t>(<char*>(c + 1) - <char*>&c.fd))
    store_u32(&c.armed, 0)
    c.fd = fd
    c.id = id
    c.state = IDLE
    count_u64(&s.used, 1)
    return c


cdef inline void slot_give(Slots* s, Conn* c) noexcept nogil:
    """The connection is over; its buffers are back already."""
    c.state = FREE
    c.fd = -1
    c.generation = c.generation + 1 if c.generation < 0x7fffffff else 1
    c.next_ready = s.free
    s.free = c
    count_u64(&s.used, <uint64_t>-1)


cdef inline uint64_t slot_tag(Conn* c) noexcept nogil:
    return <uint64_t>c.generation << 32 | c.index


cdef inline Conn* slot_of(Slots* s, uint64_t tag) noexcept nogil:
    """The connection of a tag; NULL: it is over."""
    cdef uint32_t index = <uint32_t>tag
    cdef Conn* c
    if index >= s.touched:
        return NULL
    c = &s.table[index]
    return c if c.generation == <uint32_t>(tag >> 32) and c.state != FREE else NULL


cdef inline Input* input_at(void* block, uint32_t fields, uint32_t room) noexcept nogil:
    """A block of `input_size` bytes as an empty input: the struct, its fields, its bytes."""
    cdef Input* i = <Input*>block
    i.head.fields = <Field*>(<char*>block + sizeof(Input))
    i.head.max_fields = fields
    i.data = <char*>block + sizeof(Input) + fields * sizeof(Field)
    i.room = room
    i.start = i.end = 0
    return i


cdef inline size_t input_size(uint32_t fields, uint32_t room) noexcept nogil:
    return sizeof(Input) + fields * sizeof(Field) + room


cdef inline void input_compact(Input* i) noexcept nogil:
    """Moves what is there to the front: offsets count from `start` and stay true."""
    if i.start:
        memmove(i.data, i.data + i.start, i.end - i.start)
        i.end -= i.start
        i.start = 0


# Lists through the connections themselves.

cdef struct Queue:
    Conn* first
    Conn* last
    uint32_t size           # one writer, read by statistics: see count_u32


cdef inline void queue_push(Queue* q, Conn* c) noexcept nogil:
    c.next_ready = NULL
    if q.last is NULL:
        q.first = c
    else:
        q.last.next_ready = c
    q.last = c
    count_u32(&q.size, 1)


cdef inline void queue_push_front(Queue* q, Conn* c) noexcept nogil:
    c.next_ready = q.first
    q.first = c
    if q.last is NULL:
        q.last = c
    count_u32(&q.size, 1)


cdef inline Conn* queue_pop(Queue* q) noexcept nogil:
    cdef Conn* c = q.first
    if c is not NULL:
        q.first = c.next_ready
        if q.first is NULL:
            q.last = NULL
        count_u32(&q.size, <uint32_t>-1)
    return c


cdef inline Conn* queue_cut(Queue* q, uint32_t keep) noexcept nogil:
    """Keeps the first `keep` and takes the others off, as a list through `next_ready`; NULL: none."""
    cdef Conn* last = NULL
    cdef Conn* rest = q.first
    cdef uint32_t _
    if q.size <= keep:
        return NULL
    for _ in range(keep):
        last = rest
        rest = rest.next_ready
    store_u32(&q.size, keep)
    q.last = last
    if last is NULL:
        q.first = NULL
    else:
        last.next_ready = NULL
    return rest
