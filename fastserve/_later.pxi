# What outlives the call of its handler: a context that is answered later, a connection that is taken over.
#
# Knows: how a connection is passed from its worker to somebody else, and how it comes home; how a call gets a limit of
# its own. Never sees: the reactor, except through its inbox and its wishes. Invariant: a connection has one owner also
# here. Two that may come in either order (the worker that leaves a detached call and whoever completes it; the holder
# that finds a hijacked connection in the inbox and the thread that is done with it) each mark one word, once; whoever
# marks it second goes on with the connection, and the first has let go of it. The marks are sequentially consistent:
# what the first wrote is there for the second. Who may still need a descriptor of the house is counted inside it.

import threading as _threading


# Detached: the reply is made behind the call, on a desk of its own, and leaves as that of a worker off lease.

cdef Desk* desk_apart(Desk* d) noexcept:
    """What a call needs when its worker has gone on to the next; NULL: no memory."""
    cdef Desk* later = <Desk*>mem_take_zeroed(1, sizeof(Desk))
    if later is NULL:
        return NULL
    later.house = d.house
    later.mate = d.mate
    later.home = later.conn = d.conn
    later.home_reactor = d.reactor
    later.scribe = d.scribe
    later.trailers = d.trailers
    memset(&d.trailers, 0, sizeof(Kept))
    later.alone = True
    enter_house(d.house)
    return later


cdef void finish_later(Desk* later) noexcept:
    """By whoever came second, the worker or the one that completed the call; the reply's ctx is still there."""
    cdef House* h = later.house
    if not h.forked:
        # Who seized the call behind its end thinks that it began later.
        later.began = earlier(load_i64(&later.conn.called), later.over)
        with nogil:
            finish_alone(later)
        leave_house(h)
    mem_give(later.trailers.data)
    mem_give(later)


# Hijacked: behind the reply the connection is a thread's of its own. Its slot stays, so it is counted; its buffers go
# back; its descriptor stays ours to close, so that a stop can end it whatever the thread does.

cdef void send_away(Reactor* r, Conn* c) noexcept nogil:
    """By the holder: a connection that was hijacked has come home for the first time."""
    timer_stop(&c.timer)
    undirty(r, c)
    give_buffers(r, c)
    if c.records is not NULL:
        log_sent(r, c, False)
    c.state = HIJACKED
    c.stalled = False
    if c.armed:
        poll_remove(r.epoll, c.fd)
        store_u32(&c.armed, 0)
    count_u64(&r.stats.hijacked, 1)
    if r.draining:
        net_deaf(c.fd)
    if not cas_u8(&c.taken, TAKEN, SENT_AWAY):
        bring_back(r, c)


cdef void bring_back(Reactor* r, Conn* c) noexcept nogil:
    """Its function is over. A child of a fork may have copies of its descriptor."""
    net_finish(c.fd)
    drop(r, c)


_here = _threading.local()          # the address of the house whose connection this thread has taken over


def is_taking_over(Core core not None) -> bool:
    """Is this the thread of a connection that was hijacked from that core?"""
    return getattr(_here, "house", 0) == <size_t>core.house


@cython.final
cdef class Takeover:
    """A connection that is a function's: from the reply to the function's end."""

    cdef House* house
    cdef Reactor* reactor
    cdef Conn* conn
    cdef object function
    cdef object context
    cdef object wire
    cdef bytes data

    def run(self) -> None:
        """The thread's."""
        _here.house = <size_t>self.house
        try:
            self.context.run(self.function, self.wire, self.data)
        except ConnectionError:
            # As with a handler that streams: the client went away.
            pass
        except BaseException as error:
            complain("the function of a hijacked connection failed", error)
        try:
            self.wire.close()
        except BaseException as error:
            complain("a hijacked connection could not be closed", error)
        self.end()

    cdef void begin(self) noexcept:
        self.conn.taken = TAKEN
        enter_house(self.house)

    cdef void never_began(self) noexcept:
        self.conn.taken = 0
        leave_house(self.house)

    cdef void end(self) noexcept:
        if self.house.forked:
            return
        if not cas_u8(&self.conn.taken, TAKEN, OVER):
            home_push(&self.reactor.lease, <void**>&self.conn.next_ready, self.conn)
        event_poke(self.reactor.lease.event)
        leave_house(self.house)


cdef void hijack(RequestCtx ctx, Desk* d, object context) noexcept:
    """By the worker, behind the handler: sends the reply and starts the thread. The connection goes home as any other
    of a worker off lease."""
    cdef Conn* c = d.conn
    cdef bint responds = ctx.responds
    cdef int verdict = GONE
    cdef bint claimed
    # The client may have gone before: then there is nothing to say, and perhaps no room for it.
    cdef bint whole = not c.aborted
    cdef Takeover over
    function, ctx.hijacker = ctx.hijacker, None
    if ctx.reply.status == 101:
        # In place of a media type, whose room its field takes.
        ctx.reply.type_size = 0
        ctx.reply.set |= OWN_TYPE
        try:
            buffer_put(&ctx.fields, b"Connection: Upgrade\r\n", 21, FIELDS_FIRST)
        except MemoryError:
            whole = False
    ctx.hand(c, &d.handed)
    with nogil:
        go_alone(d)
        claimed = cas_u8(&c.claim, UNCLAIMED, ANSWERED)
        if claimed:
            d.streamed = True
            if responds and whole:
                scribe_date(&d.scribe, wall_seconds())
                commit(d.house, c, &ctx.reply, &d.scribe, &d.handed)
            else:
                give_handed(d.house, &d.handed)
            if whole:
                verdict = send_all(d.house, c)
    if not claimed:
        return
    c.aborted = True
    if verdict != DONE:
        return
    try:
        over = Takeover.__new__(Takeover)
        over.function = function
        over.context = PyContext_Copy(context)
        over.data = PyBytes_FromStringAndSize(c.input.data + c.input.start + c.consumed,
                                              c.input.end - c.input.start - c.consumed)
        over.wire = _socket.socket(fileno=_os.dup(c.fd))
        over.wire.setblocking(True)
        over.house, over.reactor, over.conn = d.house, d.reactor, c
        thread = _threading.Thread(target=over.run, name=f"fastserve-hijacked-{c.id}", daemon=True)
        over.begin()
        try:
            thread.start()
        except BaseException:
            over.wire.close()
            over.never_began()
            raise
        c.aborted = False
    except BaseException as error:
        complain("a connection could not be hijacked", error)


# A limit of its own for a call: whoever holds the reactor when it is up answers, as with `handler_timeout`.

cdef void set_limit(Conn* c, void* limit, int64_t at) noexcept nogil:
    """By the worker. The moment is stored before, so that whoever sees the limit sees it."""
    store_i64(&c.limit_at, at)
    store_ptr_seq(&c.limit, limit)


cdef void make_known(Desk* d) noexcept nogil:
    """A call that is still on lease is looked at by whoever seizes it, behind the word's change; of one that is off
    lease the holder must be told."""
    if not d.alone and load_u64_seq(&d.reactor.lease.word) == d.word:
        return
    store_u64_release(&d.mate.wish, slot_tag(d.conn))
    store_u32_seq(&d.reactor.wishes, True)
    event_poke(d.reactor.lease.event)


@cython.final
cdef class Timeout:
    """A handler with a limit of time for its calls: `fastserve.timeout` makes it. It is never freed, because its words
    may be sent when nothing else of a call is left."""

    cdef object limited
    cdef int64_t time
    cdef bytes words
    cdef Late late

    def __init__(self, handler, seconds, status, message):
        self.limited = handler
        self.time = ns(seconds)
        self.words = (message or phrase_of(status)).encode() + b"\0"
        self.late.status = status
        self.late.words = PyBytes_AS_STRING(self.words)
        Py_INCREF(self)

    def __call__(self, RequestCtx ctx not None):
        cdef Desk* d = ctx.desk
        cdef Conn* c = ctx.conn
        cdef int64_t at = now_ns() + self.time
        cdef int64_t outer_at
        cdef void* outer
        ctx.check_call()
        outer, outer_at = c.limit, c.limit_at
        if outer is NULL or at < outer_at:
            set_limit(c, &self.late, at)
            make_known(d)
        try:
            return self.limited(ctx)
        finally:
            # A call that was detached keeps it.
            if ctx.conn is c and not ctx.detached:
                if outer is NULL:
                    # Its moment stays: whoever looks in between sees a limit that is not up.
                    store_ptr_seq(&c.limit, NULL)
                else:
                    set_limit(c, outer, outer_at)
