# What is answered without Python: how the server is (`health_path`), and all that it counts (`metrics_path`).
#
# Knows: which figures there are, and where they lie. Never sees: a handler, the GIL. Invariant: called by the holder
# of a lease, in its turn, so that it is answered whatever Python does; of other reactors only what is atomic is read.

cdef enum:
    METRICS_ROOM = 32768        # bytes: four histograms of 1.7 KiB, 200 statuses of 60 bytes, 40 families of 200


cdef bint answers_probe(Reactor* r, Conn* c) noexcept nogil:
    """False: the request is none."""
    cdef Limits* lim = &r.house.limits
    cdef Head* head = &c.input.head
    cdef const char* path = c.input.data + c.input.start + head.path.at
    cdef uint32_t size = head.path.size
    if size == 0 and head.form != ASTERISK:
        # Of an absolute target (RFC 9112, section 3.2.2).
        path, size = b"/", 1
    if head.chunked or head.content_length > 0 or not (is_method(c, b"GET", 3) or is_method(c, b"HEAD", 4)):
        return False
    if lim.health_size and size == lim.health_size and not memcmp(path, lim.health, size):
        answer_health(r, c)
        return True
    if lim.metrics_size and size == lim.metrics_size and not memcmp(path, lim.metrics, size):
        answer_metrics(r, c)
        return True
    return False


cdef void answer_health(Reactor* r, Conn* c) noexcept nogil:
    cdef char text[HEALTH_ROOM]
    cdef Health health
    how_it_is(r, &health)
    tell_probe(r, c, 503 if health.draining else 200, b"application/json", 16, text, health_text(text, &health), False)


cdef void answer_metrics(Reactor* r, Conn* c) noexcept nogil:
    cdef char* text = <char*>mem_take(METRICS_ROOM)
    if text is NULL:
        drop(r, c)
        return
    tell_probe(r, c, 200, b"text/plain; version=0.0.4; charset=utf-8", 40, text, metrics_text(r, text), True)


cdef void tell_probe(Reactor* r, Conn* c, int status, const char* type, uint32_t type_size, char* text, size_t size,
                     bint gives) noexcept nogil:
    """`gives`: the memory of the text is given away."""
    cdef House* h = r.house
    cdef bint alive
    cdef bint body = not is_method(c, b"HEAD", 4)
    cdef Reply reply
    cdef Output* o
    cdef char* p
    if not lend_output(r, c):
        if gives:
            mem_give(text)
        drop(r, c)
        return
    c.requests += 1
    alive = keeps_alive(h, c, c.input.head.keep_alive and not c.rejected)
    memset(&reply, 0, sizeof(reply))
    reply.status = status
    reply.set = h.leave & (OWN_DATE | OWN_SERVER)
    reply.type = type
    reply.type_size = type_size
    reply.fields = b"Cache-Control: no-store\r\n"
    reply.fields_size = 25
    reply.body_size = size
    o = c.output
    p = reply_head(o.data + o.end, &reply, &r.scribe, not alive, alive and c.input.head.minor == 0)
    if gives:
        c.large.data = text
        c.large.size = size if body else 0
        c.large.sent = 0
        c.large.owner = text
        c.large.kind = LARGE_MEMORY
    elif body:
        p = put(p, text, size)
    o.end = <uint32_t>(p - o.data)
    c.closing = not alive
    c.consumed = c.input.head.size
    c.credit = 0
    count_u64(&r.stats.probes, 1)
    count_u64(&r.stats.statuses[status // 100], 1)
    if h.limits.logs:
        log_reply(r, c, status, size if body else 0, False)
    time_idle(r, c)
    finish(r, c)


cdef void how_it_is(Reactor* r, Health* health) noexcept nogil:
    cdef House* h = r.house
    cdef uint32_t i, idle = load_u32(&h.crew.parked)
    cdef int64_t oldest = r.ready.first.began if r.ready.size else NEVER
    cdef Reactor* other
    health.queued = 0
    for i in range(h.n_reactors):
        other = &h.reactors[i]
        health.queued += load_u32(&other.ready.size)
        if other is not r:
            oldest = earlier(oldest, load_i64(&other.oldest))
        if load_u32_seq(&other.lease.holder) != WATCHER and load_u64(&other.lease.word) & STATE == IO:
            # It waits for events.
            idle += 1
    health.draining = load_u32(&h.draining) != 0
    health.workers = load_u32(&h.workers)
    health.busy = health.workers - idle if health.workers > idle else 0
    health.connections = load_u32(&h.connections)
    health.oldest_wait_ms = <uint64_t>((r.now - oldest) // 1_000_000) if oldest < r.now else 0
    health.uptime_s = <uint64_t>((r.now - h.started_at) // SECOND)


cdef void add_stats(Stats* to, Stats* s) noexcept nogil:
    """They are counters from end to end."""
    cdef uint64_t* sum = <uint64_t*>to
    cdef uint64_t* each = <uint64_t*>s
    cdef size_t i
    for i in range(sizeof(Stats) // sizeof(uint64_t)):
        sum[i] += load_u64(&each[i])


cdef size_t metrics_text(Reactor* r, char* to) noexcept nogil:
    cdef House* h = r.house
    cdef Health health
    cdef Stats s
    cdef char* p = to
    cdef char status[4]
    cdef const char* name
    cdef uint32_t i
    memset(&s, 0, sizeof(s))
    for i in range(h.n_reactors):
        add_stats(&s, &h.reactors[i].stats)
    how_it_is(r, &health)

    p = put_one(p, b"fastserve_uptime_seconds", b"gauge", b"Time since the start.", health.uptime_s)
    p = put_one(p, b"fastserve_connections", b"gauge", b"Open connections.", health.connections)
    p = put_one(p, b"fastserve_connections_rejected", b"gauge",
                b"Connections that are being told that a limit is reached.", load_u32(&h.rejected))
    p = put_one(p, b"fastserve_connections_accepted_total", b"counter", b"Connections accepted.", s.accepted)
    name = b"fastserve_connections_refused_total"
    p = put_family(p, name, b"counter", b"Connections beyond a limit.")
    p = put_sample(p, name, b"limit", b"concurrency", s.refused)
    p = put_sample(p, name, b"limit", b"max_conns_per_ip", s.refused_ip)
    p = put_sample(p, name, b"limit", b"descriptors", s.refused_short)
    p = put_one(p, b"fastserve_connections_unheard_total", b"counter",
                b"Of those: closed without a reply.", s.unheard)
    p = put_one(p, b"fastserve_connections_no_proxy_total", b"counter",
                b"Connections to a listener of proxies without a PROXY header that is believed.", s.refused_proxy)
    p = put_one(p, b"fastserve_connections_cut_total", b"counter",
                b"Connections that shutdown ended in the middle of a request.", s.cut)
    p = put_one(p, b"fastserve_connections_silent_total", b"counter",
                b"Connections that shutdown ended before they had asked for anything.", s.closed_silent)
    p = put_one(p, b"fastserve_received_bytes_total", b"counter", b"Bytes received.", s.bytes_received)
    p = put_one(p, b"fastserve_sent_bytes_total", b"counter", b"Bytes sent.", s.bytes_sent)
    p = put_one(p, b"fastserve_buffer_bytes", b"gauge", b"Memory of buffers and bodies in use.", memory_lent(h))

    p = put_one(p, b"fastserve_requests_total", b"counter", b"Requests that a handler answered.", s.requests)
    p = put_one(p, b"fastserve_probes_total", b"counter", b"Requests that were answered without Python.", s.probes)
    name = b"fastserve_responses_total"
    p = put_family(p, name, b"counter", b"Replies by the class of their status.")
    for i in range(1, 6):
        memcpy(status, b"0xx", 4)
        status[0] = <char>(c'0' + i)
        p = put_sample(p, name, b"class", status, s.statuses[i])
    name = b"fastserve_refused_requests_total"
    p = put_family(p, name, b"counter", b"Requests that no handler saw, by the status they got.")
    for i in range(200):
        if s.refusals[i]:
            put_number(status, 400 + i)[0] = 0
            p = put_sample(p, name, b"status", status, s.refusals[i])
    name = b"fastserve_shed_total"
    p = put_family(p, name, b"counter", b"Requests that were answered 503.")
    p = put_sample(p, name, b"reason", b"queue_full", s.shed_full)
    p = put_sample(p, name, b"reason", b"queue_timeout", s.shed_old)
    p = put_sample(p, name, b"reason", b"memory", s.shed_memory)
    name = b"fastserve_timeouts_total"
    p = put_family(p, name, b"counter", b"Deadlines that ended a connection; those of heads and bodies are refusals.")
    p = put_sample(p, name, b"deadline", b"idle", s.timed_out_idle)
    p = put_sample(p, name, b"deadline", b"write", s.timed_out_write)
    p = put_sample(p, name, b"deadline", b"handler", s.timed_out_handler)
    p = put_one(p, b"fastserve_aborted_total", b"counter", b"Streamed replies that broke off.", s.aborted)

    p = put_one(p, b"fastserve_access_log_lines_total", b"counter", b"Lines of the access log.",
                load_u64(&h.log_lines))
    p = put_one(p, b"fastserve_access_log_lost_total", b"counter",
                b"Lines that were not written, because the log was behind or its file failed.", load_u64(&h.log_lost))
    p = put_one(p, b"fastserve_queue_length", b"gauge", b"Requests that wait for a worker.", health.queued)
    p = put_one(p, b"fastserve_queue_oldest_milliseconds", b"gauge", b"How long the oldest of them has waited.",
                health.oldest_wait_ms)
    name = b"fastserve_workers"
    p = put_family(p, name, b"gauge", b"Threads that run handlers.")
    p = put_sample(p, name, b"state", b"busy", health.busy)
    p = put_sample(p, name, b"state", b"idle", health.workers - health.busy)
    name = b"fastserve_handoffs_total"
    p = put_family(p, name, b"counter", b"How often a reactor went on to another thread, and why.")
    p = put_sample(p, name, b"reason", b"blocked", s.handoffs_blocked)
    p = put_sample(p, name, b"reason", b"computing", s.handoffs_computing)
    p = put_sample(p, name, b"reason", b"gil", s.handoffs_gil)
    p = put_sample(p, name, b"reason", b"ahead", s.passed_first)

    p = put_histogram(p, b"fastserve_queue_seconds", b"From a whole request to its handler.", &s.queue)
    p = put_histogram(p, b"fastserve_handler_seconds", b"In the handler.", &s.handler)
    p = put_histogram(p, b"fastserve_gil_seconds", b"Waiting for the GIL, for each batch of handlers.", &s.gil)
    p = put_histogram(p, b"fastserve_write_seconds", b"From the end of a handler until its reply has left.", &s.write)
    return <size_t>(p - to)
