# The access log: what was answered, written by a native thread.
#
# Knows: records of requests, how they reach the log's thread and come back, and the file. Never sees: the GIL.
# Invariant: a record belongs to a reactor and is, in this order, its holder's, its connection's until the reply has
# left, the log thread's, and the holder's again. Nobody waits for the log: where there is no record to be had, the
# line is lost and counted.

from fastserve.engine.logline cimport (
    AGENT, Face, LINE_ROOM, METHOD, REFERER, TARGET, Record, line_combined, line_json, record_text,
)
from fastserve.engine.net cimport log_open, log_write
from fastserve.engine.scan cimport scan_same
from fastserve.engine.stack cimport stack_push, stack_push_all, stack_take

cdef enum:
    RECORDS_AHEAD = 64              # made at start, a reactor
    RECORDS_MOST = 8192             # 16 MiB
    LOG_ROOM = 65536                # bytes that are written at once
    LOG_PAUSE = 2_000_000           # nanoseconds: lines are written as late as this, many at a time
    LOG_PATIENCE = 1_000_000_000    # for a reader of the log, when the server ends


cdef bint log_make(Reactor* r) noexcept nogil:
    """False: no memory."""
    cdef Record* x
    while r.log_made < RECORDS_AHEAD:
        x = <Record*>mem_take(sizeof(Record))
        if x is NULL:
            return False
        r.log_made += 1
        x.next = <Record*>r.log_free
        r.log_free = x
    return True


cdef void log_unmake(Reactor* r) noexcept nogil:
    give_records(<Record*>stack_take(&r.log_full))
    give_records(<Record*>stack_take(&r.log_back))
    give_records(<Record*>r.log_free)
    r.log_free = NULL


cdef void give_records(Record* x) noexcept nogil:
    cdef Record* next
    while x is not NULL:
        next = x.next
        mem_give(x)
        x = next


cdef void lose_records(House* h, Conn* c) noexcept nogil:
    """Of a connection that came home when there was no log any more."""
    cdef Record* x = <Record*>c.records
    while x is not NULL:
        add_u64(&h.log_lost, 1)
        x = x.next
    give_records(<Record*>c.records)
    c.records = NULL


cdef Record* lend_record(Reactor* r) noexcept nogil:
    """By the holder; NULL: the log is behind."""
    cdef Record* x = <Record*>r.log_free
    if x is NULL:
        x = <Record*>stack_take(&r.log_back)
    if x is not NULL:
        r.log_free = x.next
    elif r.log_made < RECORDS_MOST:
        x = <Record*>mem_take(sizeof(Record))
        r.log_made += x is not NULL
    if x is NULL:
        add_u64(&r.house.log_lost, 1)
    return x


cdef void log_reply(Reactor* r, Conn* c, int status, uint64_t size, bint called) noexcept nogil:
    """By the holder, while the request is still in the input: the line waits until the reply has left. `called`: a
    handler was, and its times are in the connection."""
    cdef Record* x = lend_record(r)
    cdef Input* i = c.input
    cdef const char* base
    cdef Field* referer = NULL
    cdef Field* agent = NULL
    cdef Field* f
    cdef uint32_t k
    if x is NULL:
        return
    memset(x, 0, <size_t>(<char*>x.text - <char*>x))
    x.conn_id = c.id
    x.number = c.requests
    x.status = <uint16_t>status
    x.bytes = size
    x.at = c.began if called else r.now
    x.queue = c.waited if called else -1
    x.handler = c.handled if called else -1
    x.write = c.written if called else -1
    x.peer = c.peer
    if i is not NULL and i.head.size:
        base = i.data + i.start
        x.minor = i.head.minor
        record_text(x, METHOD, base + i.head.method.at, i.head.method.size)
        record_text(x, TARGET, base + i.head.target.at, i.head.target.size)
        for k in range(i.head.n_fields):
            f = &i.head.fields[k]
            if f.name.size == 7 and scan_same(base + f.name.at, b"referer", 7):
                referer = f
            elif f.name.size == 10 and scan_same(base + f.name.at, b"user-agent", 10):
                agent = f
        if referer is not NULL:
            record_text(x, REFERER, base + referer.value.at, referer.value.size)
        if agent is not NULL:
            record_text(x, AGENT, base + agent.value.at, agent.value.size)
    x.next = <Record*>c.records
    c.records = x


cdef void log_sent(Reactor* r, Conn* c, bint aborted) noexcept nogil:
    """What was committed has left, or never will: its lines go to the log, oldest first."""
    cdef Record* first = oldest_first(<Record*>c.records)
    cdef Record* next
    c.records = NULL
    while first is not NULL:
        next = first.next
        first.aborted = aborted
        if first.write < 0 and c.committed and not aborted:
            first.write = r.flushed_at - c.committed
        stack_push(&r.log_full, <void**>&first.next, first)
        first = next
    # The store of each push comes before this load; the log's thread stores `asleep` before it looks for records.
    if load_u32_seq(&r.house.log_asleep):
        wake_log(r.house)


cdef void wake_log(House* h) noexcept nogil:
    if swap_u32(&h.log_asleep, 0):
        futex_wake(&h.log_asleep, 1)


cdef void* keep_log(void* argument) noexcept nogil:
    """The log's thread."""
    cdef House* h = <House*>argument
    cdef char out[LOG_ROOM]
    cdef int64_t offset, until = NEVER
    cdef size_t used
    cdef uint32_t i, ends, lines
    cdef bint none
    cdef Face face
    cdef Record* first
    cdef Record* last
    cdef Record* x
    face.second = -1
    while True:
        # Before the last look: who has pushed by then is seen.
        ends = load_u32_seq(&h.log_ends)
        if swap_u32(&h.log_reopen, 0):
            reopen_log(h)
        offset = wall_ns() - now_ns()
        used = lines = 0
        for i in range(h.n_reactors):
            first = x = oldest_first(<Record*>stack_take(&h.reactors[i].log_full))
            last = NULL
            while x is not NULL:
                if used + LINE_ROOM > LOG_ROOM:
                    write_log(h, out, used, lines, &until)
                    used = lines = 0
                x.at += offset
                used += line_json(out + used, x, &face) if h.log_json else line_combined(out + used, x, &face)
                lines += 1
                last = x
                x = x.next
            if last is not NULL:
                stack_push_all(&h.reactors[i].log_back, first, <void**>&last.next)
        none = used == 0
        if used:
            write_log(h, out, used, lines, &until)
        if ends:
            return NULL
        if not none:
            futex_wait(&h.log_asleep, 0, LOG_PAUSE)
            continue
        store_u32_seq(&h.log_asleep, 1)
        for i in range(h.n_reactors):
            if load_ptr_seq(&h.reactors[i].log_full) is not NULL:
                store_u32_seq(&h.log_asleep, 0)
        if load_u32_seq(&h.log_ends) or load_u32_seq(&h.log_reopen):
            store_u32_seq(&h.log_asleep, 0)
        futex_wait(&h.log_asleep, 1, -1)


cdef Record* oldest_first(Record* x) noexcept nogil:
    cdef Record* first = NULL
    cdef Record* next
    while x is not NULL:
        next = x.next
        x.next = first
        first = x
        x = next
    return first


cdef void reopen_log(House* h) noexcept nogil:
    """What was moved away is left, and a new file begun. Where that fails, the old one goes on."""
    cdef int fd, old = h.log_fd
    if h.log_path is NULL:
        return
    fd = log_open(h.log_path)
    if fd >= 0:
        h.log_fd = fd
        c_close(old)
        h.log_torn = False
    else:
        note(h, NOTE_LOG, 0)


cdef void write_log(House* h, const char* data, size_t size, uint32_t lines, int64_t* until) noexcept nogil:
    """Whole lines. A file that fails loses them; a reader that is slow is waited for, and when the server ends, a
    second in all: `until`."""
    cdef uint32_t written = 0
    cdef ssize_t n, i
    if h.log_torn:
        # A line that failed half-way: the next one begins a line of its own.
        if log_write(h.log_fd, b"\n", 1) == 1:
            h.log_torn = False
    while size and (until[0] == NEVER or now_ns() < until[0]):
        n = log_write(h.log_fd, data, size)
        if n > 0:
            for i in range(n):
                written += data[i] == c'\n'
            h.log_torn = data[n - 1] != c'\n'
            data += n
            size -= <size_t>n
        elif n == GONE:
            note(h, NOTE_LOG, 0)
            break
        if until[0] == NEVER and load_u32_seq(&h.log_ends):
            until[0] = now_ns() + LOG_PATIENCE
    add_u64(&h.log_lines, written)
    add_u64(&h.log_lost, lines - written)
