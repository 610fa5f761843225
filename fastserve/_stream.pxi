# What a worker that runs alone does with its own connection: a body that arrives while its handler runs,
# a reply that leaves while it runs.
#
# Knows: one connection, its deadlines, the chunked coding in both directions. Never sees: the reactor,
# except to give up its lease. Invariant: everything here but `go_alone`, `body_take` and `body_spent`, which
# do not wait, is called off lease, by the thread of the handler alone; it blocks without the GIL, on the
# connection's own descriptor, within the connection's deadlines; what it leaves undone is the holder's when
# the connection is home.


cdef void go_alone(Desk* d) noexcept nogil:
    """Gives up the lease in the middle of a handler; from here on the worker owns its connection and
    nothing else. GIL or not: nothing here waits, except for a seizer that is sending."""
    cdef Reactor* r = d.reactor
    cdef Conn* c = d.conn
    if d.alone:
        return
    d.alone = True
    if lease_take_back(&r.lease, d.word):
        goes_off_lease(r, c, d.mate.index, UNCLAIMED, now_ns())
        if not lease_pass(&r.lease, &d.house.crew):
            grow(d.house)
            lease_give_up(&r.lease)
    else:
        wait_let_go(d)
    d.word = 0


cdef void wait_let_go(Desk* d) noexcept nogil:
    """Whoever seized the call is still sending what was committed before; that is bounded. In the child of a
    fork nobody is."""
    while d.word and load_u64_acquire(&d.mate.let_go) != d.word and not d.house.forked:
        sched_yield()


# Out.

cdef int send_all(House* h, Conn* c) noexcept nogil:
    """Sends what is in the output, however long the client takes within its deadlines: DONE or GONE."""
    cdef Limits* lim = &h.limits
    cdef int64_t before, mark, come, began, moved, now
    cdef bint ready
    cdef int verdict = push_out(c, ALL_OF_IT)
    if verdict == AGAIN:
        began = moved = now_ns()
        before = mark = arrived(c)
    while verdict == AGAIN:
        ready = net_wait(c.fd, POLLOUT, write_look(lim))
        now = now_ns()
        come = arrived(c)
        if come != mark:
            mark = come
            moved = now
        if now - moved >= lim.write_timeout or (
                now - began >= <int64_t>RATE_LOOK and come - before < lim.min_write_rate * ((now - began) // SECOND)):
            c.slow_reader = True
            return GONE
        if ready:
            verdict = push_out(c, ALL_OF_IT)
    if verdict == DONE:
        c.output.start = c.output.end = 0
    return verdict


cdef void outlet_close_chunk(Desk* d) noexcept nogil:
    cdef Output* o = d.conn.output
    if d.outlet.chunk is not NULL:
        o.end = <uint32_t>(chunk_close(d.outlet.chunk, o.data + o.end) - o.data)
        d.outlet.chunk = NULL


cdef int outlet_flush(Desk* d) noexcept nogil:
    outlet_close_chunk(d)
    return send_all(d.house, d.conn)


cdef int outlet_put(Desk* d, const char* data, size_t size) noexcept nogil:
    """Bytes of the body, which need not leave before the output is full or is flushed: DONE or GONE."""
    cdef Conn* c = d.conn
    cdef Output* o = c.output
    cdef bint chunked = d.outlet.framing == CHUNKED
    cdef int verdict = DONE
    if size >= OUTPUT_ROOM // 2:
        # As large as this it goes from where it lies.
        outlet_close_chunk(d)
        if o.end + 18 > OUTPUT_ROOM:
            verdict = send_all(d.house, c)
        if chunked:
            o.end = <uint32_t>(put_chunk_head(o.data + o.end, size) - o.data)
        c.large.data = data
        c.large.size = size
        c.large.sent = 0
        if verdict == DONE:
            verdict = send_all(d.house, c)
        c.large.size = c.large.sent = 0
        if chunked and verdict == DONE:
            o.end = <uint32_t>(put(o.data + o.end, b"\r\n", 2) - o.data)
        return verdict
    if o.end + CHUNK_HEAD + size + 2 > OUTPUT_ROOM:
        verdict = outlet_flush(d)
        if verdict != DONE:
            return verdict
    if chunked and d.outlet.chunk is NULL:
        d.outlet.chunk = o.data + o.end
        o.end += CHUNK_HEAD
    o.end = <uint32_t>(put(o.data + o.end, data, size) - o.data)
    return DONE


cdef int outlet_end(Desk* d, const char* trailers, size_t size) noexcept nogil:
    """The end of the body; behind it all has left."""
    cdef Output* o = d.conn.output
    cdef char* p
    if d.outlet.framing == CHUNKED:
        outlet_close_chunk(d)
        if o.end + 5 + size > OUTPUT_ROOM and send_all(d.house, d.conn) != DONE:
            return GONE
        p = put(o.data + o.end, b"0\r\n", 3)
        if size:
            p = put(p, trailers, size)
        o.end = <uint32_t>(put(p, b"\r\n", 2) - o.data)
    return send_all(d.house, d.conn)


# In.

cdef ssize_t body_take(Conn* c, char* to, size_t room, Kept* kept) noexcept nogil:
    """Takes bytes of a body that nobody has received, without waiting: how many (at most `room`), 0 at its
    end, AGAIN, GONE, or less: minus the status to answer. Bytes behind the body stay in the input.
    `kept` gets the trailer section; NULL: it is thrown away."""
    cdef Input* i = c.input
    cdef size_t n
    cdef ssize_t got
    if c.fault:
        return -<ssize_t>c.fault
    if i.head.chunked:
        return chunks_take(c, to, room, kept)
    if c.body_left == 0:
        return 0
    if room > <size_t>c.body_left:
        room = <size_t>c.body_left
    n = i.end - i.start - c.consumed
    if n:
        got = <ssize_t>(n if n < room else room)
        memcpy(to, i.data + i.start + c.consumed, got)
        c.consumed += <uint32_t>got
    else:
        got = net_recv(c.fd, to, room)
        if got < 0:
            return got
        c.drawn += <uint64_t>got
    c.continued = True
    c.body_left -= got
    return got


cdef ssize_t chunks_take(Conn* c, char* to, size_t room, Kept* kept) noexcept nogil:
    """The raw bytes lie behind the head and make room as they are decoded."""
    cdef Input* i = c.input
    cdef size_t used = 0, made = 0, grown
    cdef int64_t before
    cdef ssize_t got
    cdef char* raw
    cdef int verdict
    while c.chunked.state != AFTER_BODY:
        raw = i.data + i.start + i.head.size
        if i.data + i.end == raw:
            got = net_recv(c.fd, raw, i.room - i.end)
            if got < 0:
                return got
            c.drawn += <uint64_t>got
            i.end += <uint32_t>got
        c.continued = True
        before = c.chunked.size
        verdict = chunked_feed(&c.chunked, raw, <size_t>(i.data + i.end - raw), &used, to, room, &made)
        i.end -= <uint32_t>used
        memmove(raw, raw + used, <size_t>(i.data + i.end - raw))
        grown = <size_t>(c.chunked.size - before)
        if made > grown and kept is not NULL and kept.size + made - grown <= TRAILER_MAX:
            memcpy(kept.data + kept.size, to + grown, made - grown)
            kept.size += <uint32_t>(made - grown)
        if verdict > DONE:
            c.fault = <uint16_t>verdict
            return -<ssize_t>c.fault
        if grown:
            return <ssize_t>grown
    return 0


cdef bint body_spent(Conn* c) noexcept nogil:
    """Is the body of the request out of the way? What has come of it and was left unread is thrown away,
    up to DRAIN_BYTES; for the rest nobody waits: the connection closes, and its bytes are never a request."""
    cdef char waste[16384]
    cdef ssize_t n
    cdef size_t thrown = 0
    if c.input.head.expect_continue and not c.continued:
        # The client waits for 100 and may send the body or not: nobody could tell what comes next.
        return False
    while thrown < DRAIN_BYTES:
        n = body_take(c, waste, sizeof(waste), NULL)
        if n <= 0:
            return n == 0
        thrown += n
    return False


cdef bint speak(Desk* d) noexcept nogil:
    """Before something interim is said: is the call still this worker's to answer?"""
    return cas_u8(&d.conn.claim, UNCLAIMED, SPEAKING) or load_u8(&d.conn.claim) == ANSWERED


cdef void spoke(Desk* d) noexcept nogil:
    cas_u8(&d.conn.claim, SPEAKING, UNCLAIMED)


cdef int send_continue(Desk* d) noexcept nogil:
    cdef Output* o = d.conn.output
    cdef int verdict
    if not speak(d):
        return GONE
    o.end = <uint32_t>(put_interim(o.data + o.end, 100, NULL, 0) - o.data)
    d.conn.continued = True
    verdict = send_all(d.house, d.conn)
    # Behind a part of it nothing else may be said.
    d.conn.owes = d.conn.owes or verdict != DONE
    spoke(d)
    return verdict


cdef ssize_t body_wait(Desk* d, char* to, size_t room) noexcept nogil:
    """As body_take, but it waits for bytes within the deadlines of a body, which count waiting alone: what
    a handler does between two reads is no fault of the client's."""
    cdef Conn* c = d.conn
    cdef Limits* lim = &d.house.limits
    cdef int64_t began, passed
    cdef ssize_t n
    while True:
        n = body_take(c, to, room, &d.trailers)
        if n != AGAIN:
            if n > 0:
                c.progress += n
            return n
        if c.input.head.expect_continue and not c.continued and send_continue(d) != DONE:
            return GONE
        if c.looked >= lim.body_timeout or (
                c.looked >= <int64_t>RATE_LOOK and c.progress < lim.min_body_rate * (c.looked // SECOND)):
            c.fault = 408
            return -408
        began = now_ns()
        net_wait(c.fd, POLLIN, earlier(lim.body_timeout - c.looked, RATE_LOOK))
        passed = now_ns() - began
        c.looked += passed if passed > 0 else 1


# As Python sees it.

from operator import index as _index


cdef int must_be_own(RequestCtx ctx) except -1:
    """Only the thread that the handler was called in may block on its connection."""
    ctx.check()
    if ctx.detached:
        raise RuntimeError("a detached ctx is answered as a whole")
    if ctx.desk.mate.tid != thread_id():
        raise RuntimeError("streaming is for the thread that the handler was called in")
    return 0


cdef int keep_trailers(Desk* d) except -1:
    """The worker's own memory for them, made when it first streams a body."""
    if d.trailers.data is NULL:
        d.trailers.data = <char*>mem_take(TRAILER_MAX)
        if d.trailers.data is NULL:
            raise MemoryError
    return 0


@cython.auto_pickle(False)
@cython.final
cdef class BodyStream:
    """The body of a request as it arrives: bounded memory, and a client that is not read from waits.

    Behind a body that was received before the handler was called it reads from that.
    """

    cdef RequestCtx ctx         # which knows where the reading is: this is a view, as Headers is

    def __init__(self):
        raise TypeError("a BodyStream belongs to a RequestCtx")

    def __reduce__(self):
        raise TypeError("a BodyStream belongs to a RequestCtx")

    def read(self, Py_ssize_t size=-1) -> bytes:
        """Up to `size` bytes as soon as there are any, b"" at the end; everything when negative.

        BadRequest (400, 408, 413) for a body that is malformed, late or larger than its limit; ClientGone.
        """
        if size >= 0:
            return self.some(size)
        return b"".join(list(self))

    def readinto(self, buffer) -> int:
        """Fills a writable buffer with what there is, at least one byte; 0 at the end. Raises as `read`."""
        with memoryview(buffer).cast("B") as view:
            data = self.some(len(view))
            view[:len(data)] = data
        return len(data)

    def __iter__(self):
        while data := self.some(BUFFER_KEPT):
            yield data

    cdef bytes some(self, Py_ssize_t size):
        cdef RequestCtx ctx = self.ctx
        cdef bytes data, whole
        cdef Py_ssize_t at
        cdef Desk* d
        cdef ssize_t got
        cdef char* to
        cdef bint streams
        with cython.critical_section(ctx):
            ctx.check()
            streams = ctx.conn.step == STREAMS and ctx.own_body is None
            whole = ctx.stream_whole
        if size > BUFFER_KEPT:
            size = BUFFER_KEPT
        if not streams:
            if whole is None:
                whole = ctx.body
            with cython.critical_section(ctx):
                ctx.check()
                ctx.keeps = True
                if ctx.stream_whole is None:
                    ctx.stream_whole = whole
                whole = ctx.stream_whole
                at = ctx.stream_at
                ctx.stream_at = min(at + size, len(whole))
            return whole[at:at + size]
        if size == 0:
            return b""
        must_be_own(ctx)
        d = ctx.desk
        keep_trailers(d)
        data = PyBytes_FromStringAndSize(NULL, size)
        to = PyBytes_AS_STRING(data)
        with nogil:
            go_alone(d)
            got = body_wait(d, to, size)
        if got == GONE:
            raise ClientGone("the client went away in the middle of its body")
        if got < 0:
            d.conn.unread = True
            raise BadRequest("", <int>-got)
        with cython.critical_section(ctx):
            ctx.check()
            ctx.keeps = True
            ctx.stream_at += got
        return data[:got] if got < size else data


@cython.auto_pickle(False)
@cython.final
cdef class ReplyStream:
    """What a reply is written to while its handler runs; handed to the function that `ctx.stream` was given."""

    cdef RequestCtx ctx

    def __init__(self):
        raise TypeError("a ReplyStream belongs to RequestCtx.stream")

    def __reduce__(self):
        raise TypeError("a ReplyStream belongs to RequestCtx.stream")

    cdef Desk* desk(self) except NULL:
        if self.ctx is None:
            raise ContextExpired("this stream has ended")
        must_be_own(self.ctx)
        if self.ctx.conn.aborted:
            raise ClientGone("the client went away before")
        return self.ctx.desk

    def write(self, data: bytes | str) -> None:
        """Appends to the body; a str as UTF-8. What is small waits for more, until `flush` or the end.

        ClientGone: the client is gone, or too slow. ValueError: more than the promised length.
        """
        cdef Desk* d = self.desk()
        cdef bytes raw = as_bytes(data)
        cdef const char* text = PyBytes_AS_STRING(raw)
        cdef size_t size = <size_t>PyBytes_GET_SIZE(raw)
        cdef int verdict
        if d.outlet.framing == SIZED:
            if size > d.outlet.left:
                raise ValueError(f"{size - d.outlet.left} bytes more than the length that was promised")
            d.outlet.left -= size
        if size == 0 or d.outlet.mute:
            return
        d.conn.replied += size
        with nogil:
            verdict = outlet_put(d, text, size)
        self.look(d, verdict)

    def flush(self) -> None:
        """Sends what was written so far. ClientGone as in `write`."""
        cdef Desk* d = self.desk()
        cdef int verdict
        with nogil:
            verdict = outlet_flush(d)
        self.look(d, verdict)

    cdef int look(self, Desk* d, int verdict) except -1:
        if verdict != DONE:
            d.conn.aborted = d.conn.closing = True
            raise ClientGone("the client went away, or reads too slowly")
        return 0


cdef int stream_reply(RequestCtx ctx, object source, object length) except -1:
    """RequestCtx.stream, in its critical section nowhere: the calls back into Python would deadlock."""
    cdef Desk* d = ctx.desk
    cdef Conn* c = ctx.conn
    cdef Reply* reply = &ctx.reply
    cdef ReplyStream out
    cdef const char* trailers
    cdef size_t size = 0, n
    cdef int verdict = DONE
    cdef uint8_t framing = SIZED
    cdef bint body
    if ctx.loan == LENT_ERROR:
        raise RuntimeError("an error handler words a reply; it does not stream one")
    if ctx.hijacker is not None:
        raise RuntimeError("behind hijack the reply leaves as a whole")
    if c.aborted:
        raise ClientGone("the client went away before")
    if length is not None:
        length = _index(length)
        if not 0 <= length < 1 << 60:
            raise ValueError(f"a length lies in 0..2**60, not {length}")
    with cython.critical_section(ctx):
        ctx.check_open()
        ctx.leave_file()
    body = status_has_body(reply.status)
    if length is not None:
        size = length if body else 0
    elif body:
        framing = CHUNKED if c.input.head.minor and not reply.set & NO_LENGTH else UNTIL_CLOSE
    if framing == CHUNKED:
        ctx.announce_trailers()
    with nogil:
        go_alone(d)
        if c.step == STREAMS and c.input.head.expect_continue and not c.continued:
            # Behind the head of the reply it could not be said any more, and the body may yet be read.
            verdict = send_continue(d)
        if not cas_u8(&c.claim, UNCLAIMED, ANSWERED):
            verdict = GONE
    ctx.check()
    if verdict != DONE:
        c.aborted = c.closing = True
        raise ClientGone("the client went away")
    with cython.critical_section(ctx):
        # From here on no thread changes what the head is made of.
        d.streamed = True
        c.replied = 0
        reply.framing = framing
        reply.body_size = size
        ctx.point_out_fields()
    d.outlet.framing = framing
    d.outlet.mute = not body or is_method(c, b"HEAD", 4)
    d.outlet.left = size
    d.outlet.chunk = NULL
    with nogil:
        scribe_date(&d.scribe, wall_seconds())
        commit_head(d.house, c, reply, &d.scribe)
    out = ReplyStream.__new__(ReplyStream)
    out.ctx = ctx
    try:
        if d.outlet.mute:
            close_source(source)
        elif callable(source):
            source(out)
        else:
            for piece in source:
                out.write(piece)
                out.flush()
        if d.outlet.framing == SIZED and d.outlet.left and not d.outlet.mute:
            raise ValueError(f"{d.outlet.left} bytes less than the length that was promised")
    except BaseException as error:
        # The end of this reply would be a lie: the client sees a connection that breaks off.
        c.aborted = c.closing = True
        tell_source(source, error)
        raise
    finally:
        out.ctx = None
    if c.aborted:
        # The source kept the news that the client is gone to itself.
        return 0
    trailers, n = ctx.trailer_fields.data, ctx.trailer_fields.size
    with nogil:
        verdict = send_all(d.house, c) if d.outlet.mute else outlet_end(d, trailers, n)
    if verdict != DONE:
        c.aborted = c.closing = True
        raise ClientGone("the client went away, or reads too slowly")
    d.ended = True
    return 0


cdef int close_source(object source) except -1:
    close = getattr(source, "close", None)
    if close is not None and not callable(source):
        close()
    return 0


cdef int tell_source(object source, object error) except -1:
    """A generator sees at its `yield` that the client is gone; anything else that can be closed is closed."""
    throw = getattr(source, "throw", None)
    if throw is None or not isinstance(error, ClientGone):
        return close_source(source)
    try:
        throw(error)
    except (StopIteration, ClientGone):
        pass
    return close_source(source)
