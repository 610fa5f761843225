# The door, and the server as Python sees it.
#
# Knows: when Python runs: `Worker.attend` for handlers and the hooks around them, `Core.work` for the hook
# of a new worker, `Core.keep` for the keeper. Never sees: bytes of a connection. Invariant: between
# publishing a word of the lease and taking it back nothing of the reactor is touched; and whatever a
# handler raises stays here.

import contextvars as _contextvars
import logging as _logging
import os as _os

cdef extern from "sole.h":
    bint is_sole(PyObject* o)

cdef extern from "Python.h":
    object PyContext_Copy(object context)
    int PyContext_Enter(object context)
    int PyContext_Exit(object context)
    Py_ssize_t PyObject_Size(object o)
    object PyObject_CallOneArg(object callable, object argument)
    void c_decref "Py_DECREF"(PyObject* o)

cdef extern from "clocks.h" nogil:
    int thread_start(pthread_t* thread, void* (*run)(void*) noexcept nogil, void* argument) noexcept
cdef extern from "<time.h>" nogil:
    ctypedef long time_t
    struct timespec:
        time_t tv_sec
        long tv_nsec
cdef extern from "<pthread.h>" nogil:
    int pthread_join(pthread_t thread, void** answer) noexcept
    int pthread_timedjoin_np(pthread_t thread, void** answer, const timespec* limit) noexcept

cdef object log = _logging.getLogger("fastserve.error")


@cython.final
cdef class Worker:
    """One thread that runs handlers: parked, turning a reactor, or in a handler."""

    cdef Core core
    cdef House* house
    cdef Desk desk
    cdef object handler, on_headers, error_handler
    cdef bint streams           # unless on_headers says otherwise a handler reads the body itself
    cdef object context
    cdef object fresh           # a copy of it that no handler has changed; None: to be made
    cdef bint reuses            # the context is empty, and so an empty copy is as good as a fresh one
    cdef object trust
    cdef RequestCtx ctx

    def __cinit__(self, Core core not None, uint32_t index):
        self.core = core
        self.house = core.house
        self.handler = core.handler
        self.on_headers = core.config.on_headers
        self.error_handler = core.config.error_handler
        self.streams = core.config.stream_request_body
        self.context = core.context
        self.reuses = PyObject_Size(core.context) == 0
        if core.config.trusted_proxies:
            self.trust = Trust(core.config.trusted_proxies, core.config.forwarded_field)
        self.make_ctx()
        memset(&self.desk, 0, sizeof(Desk))
        self.desk.house = self.house
        self.desk.mate = &self.house.crew.mates[index]
        name = core.config.name.encode("ascii")
        scribe_make(&self.desk.scribe, name, <uint32_t>len(name))

    def __dealloc__(self):
        mem_give(self.desk.trailers.data)

    cdef int run(self, int64_t idle) except -1:
        """Until the server closes, or, with `idle` >= 0, until nobody needed it for so many nanoseconds."""
        cdef Mate* mate = self.desk.mate
        cdef bint wanted
        mate.tid = thread_id()
        mate.cpu_clock = thread_cpu_clock()
        while not self.house.forked:
            with nogil:
                wanted = work(&self.desk, idle)
            if not wanted:
                break
            if self.desk.word:
                self.call()
            else:
                self.call_alone()

    cdef void call(self) noexcept:
        """The word says WANT, and the GIL has come: runs the handlers that are ready, one batch."""
        cdef Desk* d = &self.desk
        cdef House* h = self.house
        cdef Reactor* r = d.reactor
        cdef Conn* c
        cdef bint timed = h.limits.timed
        cdef int64_t at = 0, before = 0
        cdef uint32_t ticks
        cdef int n
        if not lease_take_back(&r.lease, d.word) and not lease_ask(&r.lease, d.mate):
            d.reactor = NULL
            return
        if timed:
            at = now_ns()
            histogram_note(&r.stats.gil, at - d.asked_at)
        ticks = load_u32(&r.lease.ticks)
        for n in range(CALLS):
            c = next_call(r)
            if c is NULL:
                break
            d.conn = r.calling = c
            d.alone = False
            if timed:
                c.waited = at - c.began
                c.gil = -1
                histogram_note(&r.stats.queue, c.waited)
            d.word = lease_publish(&r.lease, CALL)
            if not self.answer(c):
                return
            if d.alone or not lease_take_back(&r.lease, d.word):
                self.leave(NOT_JUDGED, at)
                return
            judge(r, FAST)
            if timed:
                before, at = at, now_ns()
            if d.later is not NULL:
                goes_off_lease(r, c, NOBODY, UNCLAIMED, before if timed else now_ns())
                # A reply that is there is sent, and the end of a ctx may run anything.
                d.word = lease_publish(&r.lease, TAIL)
                self.part()
                if not lease_take_back(&r.lease, d.word):
                    d.reactor = NULL
                    return
            elif d.resumes:
                resume(r, c)
            else:
                if timed:
                    c.handled = at - before
                    histogram_note(&r.stats.handler, c.handled)
                    c.committed = at
                    c.written = -1
                commit(h, c, &self.ctx.reply, &r.scribe, &d.handed)
                count_reply(r, self.ctx.reply.status)
                if h.limits.logs:
                    log_reply(r, c, self.ctx.reply.status, c.replied, True)
                finish(r, c)
            if r.ready.first is not c and load_u32(&r.lease.ticks) != ticks:
                # The watcher looks every millisecond at least: that is long enough, for others who wait and
                # for the replies that do.
                break
        # Not before these replies were made: memory that is free meanwhile may go back to the kernel, and comes page
        # by page.
        if load_u32(&h.n_dropped):
            self.release_dropped()

    cdef void call_alone(self) noexcept:
        """Off lease, and the GIL has come: runs the handler of the one request that was taken along."""
        cdef Desk* d = &self.desk
        cdef int64_t began = now_ns()
        d.conn.waited = began - d.conn.began
        d.conn.gil = began - d.asked_at
        sub_u32(&d.reactor.taken_along, 1)
        d.alone = True
        store_i64(&d.conn.called, began)
        if not cas_u8(&d.conn.claim, WAITS, UNCLAIMED):
            # The GIL has come too late: the client was told.
            d.streamed = d.resumes = False
            d.later = NULL
            d.handed.kind = NO_LARGE
            self.leave(NOT_JUDGED, began)
        elif self.answer(d.conn):
            self.leave(SLOW if now_ns() - began >= BLOCKS else FAST, began)

    cdef bint answer(self, Conn* c) noexcept:
        """The reply, but for its last steps. False: this is a child of fork, and connection and queue are the
        parent's."""
        cdef Desk* d = &self.desk
        d.resumes = d.streamed = d.ended = False
        d.later = NULL
        d.trailers.size = 0
        self.attend(c)
        if self.house.forked:
            return False
        if not (d.streamed or d.resumes or d.later is not NULL):
            if self.ctx.hijacker is None:
                self.ctx.hand(c, &d.handed)
            else:
                hijack(self.ctx, d, self.context)
        return True

    cdef void leave(self, int slow, int64_t began) noexcept:
        """Off lease: what the handler said is seen to without the GIL, by `finish_alone`."""
        cdef Desk* d = &self.desk
        if self.house.limits.timed:
            # The connection may still be in the hand of whoever seized the call.
            d.began, d.over = began, now_ns()
        if d.later is not NULL:
            with nogil:
                wait_let_go(d)
            store_u32(&d.conn.worker, NOBODY)
            self.part()
        else:
            d.conn.slow = <uint8_t>slow
            d.reply = &self.ctx.reply
            d.home = d.conn
            d.home_reactor = d.reactor
        d.reactor = NULL
        if load_u32(&self.house.n_dropped):
            drop_references(self.house)

    cdef void attend(self, Conn* c) noexcept:
        """Lends the ctx to whoever is to see this request next: the error handler, the hook that looks at
        the head, the handler."""
        if c.step == REFUSED:
            self.lend(c, LENT_ERROR)
            if self.invoke(self.error_handler, BadRequest("", c.refused)):
                fail(self.ctx, BadRequest("", c.refused))
            self.ctx.reply.status = c.refused
            self.ctx.say_when_again()
            self.ctx.end()
            return
        if self.on_headers is not None and c.step != TOLD and not self.goes_on(c):
            return
        if c.step == ASKS:
            # Whether the hook said so or the configuration: it is the handler that reads the body.
            c.step = STREAMS
        self.lend(c, LENT_CALL)
        self.invoke(self.handler, None)
        if self.ctx.detached:
            self.desk.later = self.ctx.desk
        else:
            self.ctx.end()

    cdef void part(self) noexcept:
        """The worker leaves a detached call, whose connection nobody else has in his hand."""
        cdef Desk* later = self.desk.later
        later.conn.slow = NOT_JUDGED
        if swap_u32(&later.parted, True):
            finish_later(later)
        # Should nobody else refer to the old one, its end answers.
        self.make_ctx()

    cdef bint goes_on(self, Conn* c) noexcept:
        """on_headers is asked. True: the handler is called now. False: it has answered itself, or the body
        is received first, or refused because it is too large."""
        cdef bint answered
        self.lend(c, LENT_HOOK)
        self.ctx.streams = self.streams
        answered = self.invoke(self.on_headers, None) or self.desk.streamed or self.house.forked
        if not answered and c.step == ASKS and (
                not self.ctx.streams or c.input.head.content_length > c.body_limit):
            self.desk.resumes = answered = True
        self.ctx.end()
        return not answered

    cdef void make_ctx(self) noexcept:
        self.ctx = RequestCtx.__new__(RequestCtx)
        self.ctx.trust = self.trust

    cdef void lend(self, Conn* c, int loan) noexcept:
        if not is_sole(<PyObject*>self.ctx):
            self.make_ctx()
        self.ctx.begin(c, &self.desk, loan)

    cdef bint invoke(self, object function, object error) noexcept:
        """Calls a handler or a hook in a fresh copy of the context that `start` was called in. True: it
        said so, which only on_headers may, or it failed; either way the reply is there."""
        cdef object answer
        cdef bint answered = False
        if self.fresh is None:
            self.fresh = PyContext_Copy(self.context)
        PyContext_Enter(self.fresh)
        try:
            answer = PyObject_CallOneArg(function, self.ctx) if error is None else function(self.ctx, error)
            if answer is not None:
                if self.ctx.loan != LENT_HOOK or not isinstance(answer, bool):
                    raise TypeError(f"a handler returns None, not {type(answer).__name__}")
                answered = answer
        except BaseException as raised:
            answered = True
            fail(self.ctx, raised)
            if self.ctx.detached:
                self.ctx.answer_if_open()
        PyContext_Exit(self.fresh)
        if not (self.reuses and is_sole(<PyObject*>self.fresh) and PyObject_Size(self.fresh) == 0):
            self.fresh = None
        return answered

    cdef void release_dropped(self) noexcept:
        """Drops what large replies were sent from."""
        cdef Desk* d = &self.desk
        cdef Reactor* r = d.reactor
        d.word = lease_publish(&r.lease, TAIL)
        drop_references(self.house)
        if not lease_take_back(&r.lease, d.word):
            d.reactor = NULL


cdef void fail(RequestCtx ctx, object error) noexcept:
    """The reply to what a handler raised, and the traceback for the log. The connection goes on as
    its framing allows; a reply that was under way, or a client that is gone, ends it."""
    cdef bint gone = isinstance(error, ClientGone)
    cdef bint expired = False, answered = True
    cdef Desk* d
    try:
        with cython.critical_section(ctx):
            if ctx.conn is not NULL or not ctx.detached:
                d = ctx.desk
                expired = load_u8(&d.conn.claim) == EXPIRED
                if d.ended or expired:
                    d.conn.closing = True
                elif d.streamed or gone and d.alone:
                    d.conn.aborted = d.conn.closing = True
                else:
                    answered = False
        if answered:
            pass
        elif isinstance(error, BadRequest):
            ctx.error(str(error) or phrase_of(error.status), error.status)
        else:
            ctx.error("Internal Server Error", 500)
        if expired or ctx.conn is NULL:
            if not isinstance(error, ContextExpired):
                log.error("a handler failed behind its reply", exc_info=error)
        elif not gone and not isinstance(error, BadRequest):
            log.error("%s %s failed", ctx.method, ctx.path, exc_info=error)
    except BaseException:
        # A handler of `logging` that raises must not take the worker with it.
        pass


cdef void complain(str what, object error) noexcept:
    """Whoever has failed goes on whatever happens, even when its log does not work."""
    try:
        log.error(what, exc_info=error)
    except BaseException:
        pass


cdef str phrase_of(int status):
    """Of any number, since what raises a BadRequest may have put any there."""
    cdef const char* phrase = status_of(status).phrase if 100 <= status <= 599 else NULL
    return (<bytes>phrase).decode("ascii") if phrase is not NULL else str(status)


cdef void drop_references(House* h) noexcept:
    """Under the GIL. Releasing may run anything, so the lock is not held meanwhile."""
    cdef void* owner
    while True:
        lock_word(&h.lock)
        owner = NULL
        if h.n_dropped:
            store_u32(&h.n_dropped, h.n_dropped - 1)
            owner = h.dropped[h.n_dropped]
        unlock_word(&h.lock)
        if owner is NULL:
            return
        c_decref(<PyObject*>owner)


@cython.final
cdef class Core:
    """One server: reactors, their watchers, and the workers that Python threads become by `work`.

    Its use is `server.Server`'s: listen, start, threads into `work` and `keep`, drain, wait, close.
    """

    cdef House* house
    cdef readonly object handler
    cdef readonly object config
    cdef object context
    cdef object log_path
    cdef bint started
    cdef readonly bint closed

    def __cinit__(self, handler, config):
        cdef House* h = <House*>mem_take_zeroed(1, sizeof(House))
        cdef uint32_t i
        self.house = h
        if h is NULL:
            raise MemoryError
        self.handler = handler
        self.config = config
        self.context = _contextvars.copy_context()
        h.refs = 1
        h.gil = _gil_enabled()
        h.hears_errors = config.error_handler is not None
        h.hears_heads = config.on_headers is not None
        h.logs_errors = config.log_all_errors
        h.leave = (0 if config.default_date else OWN_DATE) | (0 if config.default_content_type else OWN_TYPE)
        h.signal_fd = h.log_fd = -1
        h.cut_at = h.exit_at = NEVER
        h.max_workers = config.max_workers
        h.shutdown_timeout = ns(config.shutdown_timeout)
        h.dropped_room = 64
        h.dropped = <void**>mem_take(h.dropped_room * sizeof(void*))
        h.crew.room = h.max_workers
        h.crew.stack = <uint32_t*>mem_take_zeroed(h.max_workers, sizeof(uint32_t))
        h.crew.mates = <Mate*>mem_take_zeroed(h.max_workers, sizeof(Mate))
        h.crew.leases = <Lease**>mem_take_zeroed(config.reactors, sizeof(Lease*))
        h.reactors = <Reactor*>mem_take_zeroed(config.reactors, sizeof(Reactor))
        if not (h.dropped and h.crew.stack and h.crew.mates and h.crew.leases and h.reactors):
            raise MemoryError
        fill_limits(&h.limits, config)
        for i in range(h.max_workers):
            h.crew.mates[i].index = i
        if h.limits.conns_per_ip and not peers_make(
                &h.peers, h.limits.concurrency, <uint64_t>int.from_bytes(_os.urandom(8), "little")):
            raise MemoryError
        trust = Trust(config.trusted_proxies, config.forwarded_field)
        h.trusted.networks = <Network*>mem_take_zeroed(len(trust.networks) + 1, sizeof(Network))
        if h.trusted.networks is NULL:
            raise MemoryError
        fill_trusted(&h.trusted, trust)
        for i in range(config.reactors):
            h.n_reactors += 1
            reactor_make(h, i, config.name.encode("ascii"), config.io_uring)
        h.crew.n_leases = h.n_reactors
        forks_know(h)

    def __dealloc__(self):
        if self.house is not NULL:
            forget_house(self.house)

    def listen(self, uint32_t reactor, int fd, bint local, bint shared, bint proxy=False) -> None:
        """The listening descriptor, non-blocking, is the reactor's from now on; `proxy`: connections begin with a PROXY
        header. Before `start` only."""
        cdef Reactor* r = &self.house.reactors[reactor]
        if not local:
            # What it accepts inherits that.
            net_no_delay(fd)
        r.listeners[r.n_listeners] = Listener(fd=fd, local=local, shared=shared, proxy=proxy)
        r.n_listeners += 1
        if listen_on(r, r.n_listeners - 1) < 0:
            raise OSError("epoll refused a listener")

    def trusts(self, bint local) -> bool:
        """Are there peers, of unix sockets if `local`, whose PROXY headers are believed?"""
        return self.house.trusted.locals if local else self.house.trusted.n != 0

    @property
    def full(self) -> bool:
        """Are there as many listeners as one reactor may have?"""
        return self.house.reactors[0].n_listeners == LISTENERS

    def log_to(self, int fd, path) -> None:
        """The access log's descriptor is the core's from now on. `path` (bytes): it can be opened again."""
        self.log_path = path
        self.house.log_path = PyBytes_AS_STRING(path) if path is not None else NULL
        self.house.log_fd = fd
        self.house.log_json = self.config.access_log_format == "json"

    def reopen_log(self) -> None:
        """Soon, by the log's thread."""
        self.check()
        store_u32_seq(&self.house.log_reopen, 1)
        wake_log(self.house)

    def abandon(self) -> None:
        """A start that failed half-way: nothing listens any more."""
        cdef Reactor* r
        cdef uint32_t i, k
        for i in range(self.house.n_reactors):
            r = &self.house.reactors[i]
            for k in range(r.n_listeners):
                close_listener(r, k)
            r.n_listeners = 0

    def hear(self, int fd) -> None:
        """Signal numbers arrive on `fd`: the first INT or TERM drains, a second INT ends the process."""
        self.house.signal_fd = fd
        poll_add(self.house.reactors[0].epoll, fd, EPOLLIN, SIGNAL_TAG)

    def start(self) -> None:
        """Starts the watchers. Until a worker parks they turn the reactors themselves."""
        cdef uint32_t i, k
        self.started = True
        self.house.started_at = now_ns()
        enter_house(self.house)
        for i in range(self.house.n_reactors):
            if thread_start(&self.house.reactors[i].watcher, watch, &self.house.reactors[i]):
                # Those that run already are joined by `close`; nobody turns the others.
                for k in range(i, self.house.n_reactors):
                    reactor_close(self.house, &self.house.reactors[k])
                    reactor_unmake(&self.house.reactors[k])
                self.house.n_reactors = i
                raise OSError("no thread could be started for a reactor")
        if self.house.log_fd >= 0:
            # Counted in: it may outlive all others.
            enter_house(self.house)
            if thread_start(&self.house.log_thread, keep_log, self.house):
                leave_house(self.house)
                raise OSError("no thread could be started for the access log")
            self.house.log_runs = True

    def work(self, uint32_t index, bint spare, ready) -> None:
        """What a worker thread does. `index` is its own place among `max_workers`; a spare one leaves
        when nobody needed it for `max_idle_worker_duration`. `ready()` is called behind the hook."""
        cdef Worker worker = Worker.__new__(Worker, self, index)
        cdef int64_t idle = ns(self.config.max_idle_worker_duration) if spare else -1
        enter_house(self.house)
        add_u32(&self.house.workers, 1)
        try:
            if self.config.on_worker_start is not None:
                self.config.on_worker_start()
            ready()
            worker.run(idle)
        finally:
            sub_u32(&self.house.workers, 1)
            worker = None
            leave_house(self.house)

    def keep(self, grow) -> None:
        """What the keeper does until the server closes: puts the core's notes into words, drops
        references that nobody else came by to drop, and calls `grow()` when a worker more is wanted."""
        cdef House* h = self.house
        cdef uint32_t seen = 0, closing
        enter_house(h)
        try:
            while True:
                # Before the rest: what was noted until then is told, also by a keeper that comes late.
                closing = load_u32_seq(&h.closing)
                seen = load_u32_seq(&h.keeper_bell)
                drop_references(h)
                try:
                    tell(h)
                    if load_u32(&h.growing):
                        # Cleared first: who asks from here on is heard.
                        store_u32_seq(&h.growing, 0)
                        grow()
                except BaseException as error:
                    # A handler of `logging` that raises, or a thread that cannot be had.
                    complain("the keeper could not do its work", error)
                if closing:
                    return
                with nogil:
                    while load_u32_seq(&h.keeper_bell) == seen and not load_u32_seq(&h.closing):
                        futex_wait(&h.keeper_bell, seen, -1)
        finally:
            leave_house(h)

    cdef int check(self) except -1:
        if self.house.forked:
            raise ServerClosed("this server belongs to the parent process")
        return 0

    def drain(self, double timeout) -> None:
        """Stops accepting; what runs or is queued finishes within `timeout` seconds, then is cut."""
        self.check()
        begin_drain(self.house, ns(timeout))

    def wait(self) -> bool:
        """Until a drain is over, begun by `drain` or by a signal. Python's signal handlers run meanwhile.
        True: nothing was cut off."""
        cdef House* h = self.house
        cdef uint32_t seen
        self.check()
        while True:
            seen = load_u32_seq(&h.bell)
            if load_u32_seq(&h.drained) == h.n_reactors:
                break
            with nogil:
                futex_wait(&h.bell, seen, -1)
            PyErr_CheckSignals()
            # Their handlers may fork.
            self.check()
        store_i64(&h.exit_at, NEVER)
        return self.stats()["cut"] == 0

    def close(self) -> None:
        """Ends the native threads and sends every parked worker away; workers in a handler leave when
        it returns. After a drain. Idempotent."""
        cdef House* h = self.house
        cdef uint32_t i
        cdef bint stays = False
        cdef timespec limit
        cdef int64_t until
        if self.closed or not self.started or self.house.forked:
            return
        self.closed = True
        with nogil:
            store_u32_seq(&h.closing, 1)
            crew_close(&h.crew)
            for i in range(h.n_reactors):
                event_poke(h.reactors[i].lease.event)
                lease_wake_watcher(&h.reactors[i].lease)
            wake_keeper(h)
            for i in range(h.n_reactors):
                pthread_join(h.reactors[i].watcher, NULL)
            if h.log_runs:
                store_u32_seq(&h.log_ends, 1)
                wake_log(h)
                until = wall_ns() + 2 * LOG_PATIENCE
                limit.tv_sec = <time_t>(until // SECOND)
                limit.tv_nsec = <long>(until % SECOND)
                stays = pthread_timedjoin_np(h.log_thread, NULL, &limit) != 0
        if stays:
            # A file that does not let go of its writer: what they share is left to it.
            Py_INCREF(self.log_path)
        elif h.log_runs:
            leave_house(h)
        leave_house(h)

    def stats(self) -> dict:
        """Counters since the start, summed over the reactors, and what is in use now."""
        cdef House* h = self.house
        cdef Reactor* r
        cdef Stats* s
        cdef uint32_t i, k
        self.check()
        total = dict.fromkeys((
            "connections", "queued", "accepted", "refused_connections", "refused_descriptors", "requests",
            "shed_queue_full", "shed_queue_timeout", "cut", "closed_silent", "timed_out_idle", "timed_out_write",
            "timed_out_handler", "aborted", "hijacked", "shed_memory", "memory", "refused_per_ip", "closed_unheard",
            "probes", "rejected", "handoffs_blocked", "handoffs_computing", "handoffs_gil", "passed_first", "buffers",
            "slots", "refused_proxy"), 0)
        statuses = dict.fromkeys((f"{k}xx" for k in range(1, 6)), 0)
        refusals = {}
        for i in range(h.n_reactors):
            r = &h.reactors[i]
            s = &r.stats
            total["queued"] += load_u32(&r.ready.size)
            total["accepted"] += load_u64(&s.accepted)
            total["refused_connections"] += load_u64(&s.refused)
            total["refused_descriptors"] += load_u64(&s.refused_short)
            total["requests"] += load_u64(&s.requests)
            total["shed_queue_full"] += load_u64(&s.shed_full)
            total["shed_queue_timeout"] += load_u64(&s.shed_old)
            total["shed_memory"] += load_u64(&s.shed_memory)
            total["cut"] += load_u64(&s.cut)
            total["closed_silent"] += load_u64(&s.closed_silent)
            total["timed_out_idle"] += load_u64(&s.timed_out_idle)
            total["refused_per_ip"] += load_u64(&s.refused_ip)
            total["refused_proxy"] += load_u64(&s.refused_proxy)
            total["closed_unheard"] += load_u64(&s.unheard)
            total["probes"] += load_u64(&s.probes)
            total["timed_out_write"] += load_u64(&s.timed_out_write)
            total["timed_out_handler"] += load_u64(&s.timed_out_handler)
            total["aborted"] += load_u64(&s.aborted)
            total["hijacked"] += load_u64(&s.hijacked)
            total["handoffs_blocked"] += load_u64(&s.handoffs_blocked)
            total["handoffs_computing"] += load_u64(&s.handoffs_computing)
            total["handoffs_gil"] += load_u64(&s.handoffs_gil)
            total["passed_first"] += load_u64(&s.passed_first)
            total["buffers"] += pool_lent(&r.inputs) + pool_lent(&r.outputs) + load_u64(&r.bodies.lent)
            total["slots"] += load_u64(&r.slots.used)
            for k in range(1, 6):
                statuses[f"{k}xx"] += load_u64(&s.statuses[k])
            for k in range(200):
                if load_u64(&s.refusals[k]):
                    refusals[400 + k] = refusals.get(400 + k, 0) + load_u64(&s.refusals[k])
        total["connections"] = load_u32(&h.connections)
        total["access_log_lines"] = load_u64(&h.log_lines)
        total["access_log_lost"] = load_u64(&h.log_lost)
        total["rejected"] = load_u32(&h.rejected)
        total["memory"] = memory_lent(h)
        total["workers"] = load_u32(&h.workers)
        total["workers_parked"] = load_u32(&h.crew.parked)
        total["allocations"] = mem_allocations() if mem_allocations() >= 0 else None
        total["statuses"] = statuses
        total["refusals"] = refusals
        return total


cdef int64_t ns(double seconds) except -1:
    """Of more than thirty years not all, so that a moment may be added. ValueError: not a number."""
    if seconds != seconds:
        raise ValueError("nan is no time")
    return <int64_t>(min(max(seconds, 0.0), 1e9) * 1e9)


cdef uint32_t copy_text(char* to, str text):
    cdef bytes raw = text.encode("ascii")
    memcpy(to, PyBytes_AS_STRING(raw), <size_t>len(raw))
    return <uint32_t>len(raw)


cdef int fill_limits(Limits* lim, config) except -1:
    lim.head_size = config.read_buffer_size
    lim.target_size = config.max_target_size
    lim.fields = config.max_header_fields
    lim.input_room = config.read_buffer_size + INPUT_SLACK
    lim.body_size = config.max_request_body_size
    lim.head_first = config.on_headers is not None or config.stream_request_body
    lim.refused_size = copy_text(lim.refused, config.refused_methods)
    lim.health_size = copy_text(lim.health, config.health_path)
    lim.metrics_size = copy_text(lim.metrics, config.metrics_path)
    lim.probes = config.health_path != "" or config.metrics_path != ""
    lim.timed = config.metrics_path != "" or config.access_log != ""
    lim.logs = config.access_log != ""
    lim.reuse_port = config.reuse_port
    lim.concurrency = config.concurrency
    lim.reject_slots = config.reject_slots
    lim.conns_per_ip = config.max_conns_per_ip
    # Each reactor has its share of it.
    lim.max_queue = max(1, config.max_queue // config.reactors)
    lim.memory = config.max_memory
    lim.requests_per_conn = config.max_requests_per_conn
    lim.header_timeout = ns(config.header_timeout)
    lim.body_timeout = ns(config.body_timeout)
    lim.handler_timeout = ns(config.handler_timeout)
    lim.write_timeout = ns(config.write_timeout)
    lim.idle_timeout = ns(config.idle_timeout)
    lim.queue_timeout = ns(config.queue_timeout)
    lim.min_body_rate = config.min_body_rate
    lim.min_write_rate = config.min_write_rate
    return 0


cdef int fill_trusted(Trusted* t, trust) except -1:
    """Into memory that is there."""
    cdef bytes address
    t.locals = trust.unix
    for address, bits in trust.networks:
        memcpy(t.networks[t.n].address, PyBytes_AS_STRING(address), <size_t>len(address))
        t.networks[t.n].size, t.networks[t.n].bits = <uint8_t>len(address), bits
        t.n += 1
    return 0


cdef int reactor_make(House* h, uint32_t index, bytes name, bint with_ring) except -1:
    cdef Reactor* r = &h.reactors[index]
    cdef Limits* lim = &h.limits
    cdef uint32_t kind
    r.house = h
    batch_make(&r.batch, with_ring)
    lease_make(&r.lease, index, event_make())
    h.crew.leases[index] = &r.lease
    r.epoll = poll_make()
    if r.lease.event < 0 or r.epoll < 0:
        raise OSError("no descriptors left for a reactor")
    poll_add(r.epoll, r.lease.event, EPOLLIN | EPOLLET, EVENT_TAG)
    for kind in range(BY_KINDS):
        deadlines_make(&r.due[kind])
    r.accept_again = r.oldest = NEVER
    r.spare = net_spare()
    r.now = now_ns()
    scribe_make(&r.scribe, name, <uint32_t>len(name))
    if not (slots_make(&r.slots, lim.concurrency + lim.reject_slots + 2 * PROBE_SLOTS + 1)
            and pool_make(&r.inputs, input_size(lim.fields, lim.input_room), BLOCKS_AHEAD, BLOCKS_KEPT)
            and pool_make(&r.outputs, sizeof(Output) + OUTPUT_ROOM, BLOCKS_AHEAD, BLOCKS_KEPT)
            and bodies_make(&r.bodies)
            and (not lim.logs or log_make(r))):
        raise MemoryError
    return 0


# Who may still touch a house: `inside` are those that use its descriptors (workers, the keeper, the
# watchers together), `refs` those and the server object. The last one out of each closes, and frees.

cdef void enter_house(House* h) noexcept:
    add_u32(&h.refs, 1)
    add_u32(&h.inside, 1)


cdef void leave_house(House* h) noexcept:
    """Under the GIL. The server must be closing when the last one leaves, so nobody enters again."""
    if sub_u32(&h.inside, 1) == 0 and load_u32_seq(&h.closing):
        close_descriptors(h)
    forget_house(h)


cdef void close_descriptors(House* h) noexcept:
    cdef uint32_t i
    for i in range(h.n_reactors):
        if h.reactors[i].epoll < 0:
            # A worker that came too late to do anything has left after the last one; or this is the child of a fork.
            return
        reactor_close(h, &h.reactors[i])
    if h.log_fd >= 0:
        c_close(h.log_fd)
        h.log_fd = -1
    drop_references(h)


cdef void reactor_close(House* h, Reactor* r) noexcept:
    """Nobody turns it any more."""
    cdef uint32_t k
    for k in range(r.n_listeners):
        close_listener(r, k)
    r.n_listeners = 0
    lock_word(&r.descriptors)
    for k in range(r.slots.touched):
        if r.slots.table[k].state != FREE:
            # It came home when nobody did.
            give_buffers(r, &r.slots.table[k])
            lose_records(h, &r.slots.table[k])
            c_close(r.slots.table[k].fd)
            discount(h, &r.slots.table[k])
            slot_give(&r.slots, &r.slots.table[k])
    c_close(r.epoll)
    c_close(r.lease.event)
    if r.spare >= 0:
        c_close(r.spare)
    batch_unmake(&r.batch)
    r.epoll = r.lease.event = r.spare = -1
    unlock_word(&r.descriptors)


cdef void reactor_unmake(Reactor* r) noexcept:
    slots_unmake(&r.slots)
    pool_unmake(&r.inputs)
    pool_unmake(&r.outputs)
    bodies_unmake(&r.bodies)
    log_unmake(r)


cdef void forget_house(House* h) noexcept:
    cdef uint32_t i
    if sub_u32(&h.refs, 1):
        return
    if h.n_reactors and h.reactors[0].epoll >= 0:
        # It was made and never started.
        close_descriptors(h)
    forks_forget(h)
    for i in range(h.n_reactors):
        reactor_unmake(&h.reactors[i])
    peers_unmake(&h.peers)
    mem_give(h.trusted.networks)
    mem_give(h.dropped)
    mem_give(h.crew.stack)
    mem_give(h.crew.mates)
    mem_give(h.crew.leases)
    mem_give(h.reactors)
    mem_give(h)


cdef int tell(House* h) except -1:
    """The notes of the core, in words, through `logging`."""
    cdef Note notes[NOTES]
    cdef uint32_t n, i
    lock_word(&h.lock)
    n = h.n_notes
    memcpy(notes, h.notes, n * sizeof(Note))
    h.n_notes = 0
    unlock_word(&h.lock)
    for i in range(n):
        if notes[i].left_out:
            log.warning("%d more messages like the next one were left out", notes[i].left_out)
        if notes[i].kind == NOTE_CONCURRENCY:
            log.warning("connections are refused with 503: concurrency=%d is reached", notes[i].value)
        elif notes[i].kind == NOTE_PER_IP:
            log.warning("connections are refused with 429: max_conns_per_ip=%d is reached", notes[i].value)
        elif notes[i].kind == NOTE_STRANGER:
            log.warning("connections to a listener of proxies are reset: %s is none of trusted_proxies",
                        peer_of(<uint64_t>notes[i].value))
        elif notes[i].kind == NOTE_NO_HEADER:
            log.warning("connections to a listener of proxies are reset: what %s sent is no PROXY header",
                        peer_of(<uint64_t>notes[i].value))
        elif notes[i].kind == NOTE_LATE_HEADER:
            log.warning("connections to a listener of proxies are reset: no whole PROXY header came from %s within "
                        "header_timeout", peer_of(<uint64_t>notes[i].value))
        elif notes[i].kind == NOTE_LOG:
            log.error("the access log cannot be written, or not be opened again")
        elif notes[i].kind == NOTE_MEMORY:
            log.warning("bodies are refused with 503: max_memory=%d is reached", notes[i].value)
        elif notes[i].kind == NOTE_HANDLER:
            log.error("a handler took longer than its timeout: its client has been told\n%s",
                      stack_of(notes[i].value, now_ns() - notes[i].at))
        elif notes[i].kind == NOTE_QUEUE:
            log.warning("requests are refused with 503: max_queue=%d is reached", notes[i].value)
        elif notes[i].kind == NOTE_WAITED:
            log.warning("requests are refused with 503: they waited for a worker for queue_timeout=%g s",
                        notes[i].value / 1000.0)
        elif notes[i].kind == NOTE_DEAD:
            log.error("a listener accepts no more: somebody has shut it down")
        elif notes[i].kind == NOTE_FORGOTTEN:
            log.error("a detached ctx was forgotten: its client was told 500")
        elif notes[i].kind == NOTE_STACKS:
            log.warning("what each thread is at:\n%s", stacks())
        elif notes[i].kind == NOTE_REFUSED:
            log.info("a request was refused with %d %s", notes[i].value, phrase_of(<int>notes[i].value))
        elif notes[i].kind == NOTE_ACCEPT:
            log.warning("descriptors or kernel memory ran out: accepting again in %d ms", notes[i].value)
    return 0


cdef str peer_of(uint64_t key):
    """Whom a `peer_key` stands for."""
    cdef bytes start = (<const char*>&key)[:8]
    if key == 0:
        return "a unix socket"
    if start.startswith(b"\0\1\0\0"):
        return _socket.inet_ntop(_socket.AF_INET, start[4:])
    if start == b"\0\2\0\0\0\0\0\0":
        start = bytes(8)
    return _socket.inet_ntop(_socket.AF_INET6, start + bytes(8)) + "/64"


cdef str stack_of(int64_t native_id, int64_t late):
    """The Python stack of a thread, `late` nanoseconds after it was asked for."""
    import sys
    import threading
    import traceback
    if native_id == 0:
        return "(its ctx is detached: no thread is known to work for it)"
    if late > SECOND:
        return f"(the GIL could not be had for {late / 1e9:.1f} s: what the thread was at then is not known)"
    for thread in threading.enumerate():
        if thread.native_id == native_id:
            frame = sys._current_frames().get(thread.ident)
            if frame is not None:
                return f"{thread.name}:\n{''.join(traceback.format_stack(frame))}"
    return "(its thread has ended)"


cdef str stacks():
    """The Python stack of every thread, as a traceback shows it."""
    import sys
    import threading
    import traceback
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    told = []
    for ident, frame in sys._current_frames().items():
        told.append(f"{names.get(ident, ident)}:\n{''.join(traceback.format_stack(frame))}")
    return "\n".join(told)


def _gil_enabled() -> bool:
    import sys
    return getattr(sys, "_is_gil_enabled", lambda: True)()
