# cython: language_level=3
"""The core itself, and clients in memory that drive it: compiled as `fastserve._core`, never shipped.

Knows: the core, which is included as it is, and transport.h, which stands in for the kernel. Never sees: a socket, a
second thread, which handler is measured and why.
Invariant: what runs is `Core.work`, on the calling thread: it parks, gets the lease, and turns, calls handlers,
commits and flushes until the transport has every reply. Nothing on the request's path is called from here, so the
compiler has no other reason to inline than in the extension that is shipped.
"""

include "../../fastserve/_core.pyx"

cdef extern from "transport.h" nogil:
    enum: TRANSPORT_LISTENER, TRANSPORT_REPLY
    enum: CALL_ACCEPT, CALL_RECV, CALL_SEND, CALL_WAIT, CALL_CONTROL, CALL_CLOCK, CALL_OTHER
    ctypedef struct Client:
        pass
    ctypedef struct Transport:
        const char* text
        uint32_t size, fill, waits, room, reply, still, gathered, starved, keep, kept
        uint64_t each, to_open, to_ask, to_get
        uint32_t* stop
        void (*poked)(void* owner) noexcept nogil
        void* owner
        uint64_t calls[7]
        char* last
        Client* clients
        uint32_t open
    Transport* transport
    void transport_mark() noexcept


cdef void give_lease(void* house) noexcept nogil:
    """A worker parked and pokes: what the watcher would do."""
    cdef House* h = <House*>house
    if load_u32_seq(&h.reactors[0].lease.holder) == WATCHER:
        lease_pass(&h.reactors[0].lease, &h.crew)


cdef int static_reply(RequestCtx ctx) except -1:
    ctx.type_object = "text/plain"
    ctx.reply.type = TEXT_DATA(ctx.type_object)
    ctx.reply.type_size = 10
    return buffer_put(&ctx.body_buffer, b"Hello, world!", 13, BUFFER_FIRST)


def static_handler(RequestCtx ctx):
    """The least a handler can cost: compiled, and it fills the reply in without an accessor."""
    static_reply(ctx)


cdef class Driver:
    """One core with one worker, the thread that calls `run`, and its clients.

    `clients` connections at a time. Each sends `burst` requests and waits for their replies; with `fill` it sends
    on without waiting, `fill` bytes a read, as the benches of fasthttp do. With `each` a connection ends after so
    many requests and another one is opened; otherwise it stays. `still`: time moves by turns and not by the clock,
    so that the same run takes the same way. One driver at a time.
    """

    cdef Core core
    cdef Transport* wire
    cdef bytes text
    cdef readonly bytes reply       # to one request, as it was sent

    def __cinit__(self, handler, config, bytes request not None, *, uint32_t clients=1, uint32_t burst=1,
                  uint32_t fill=0, uint64_t each=0, bint still=False):
        cdef Transport* t = <Transport*>mem_take_zeroed(1, sizeof(Transport))
        if t is NULL:
            raise MemoryError
        self.wire = t
        t.clients = <Client*>mem_take_zeroed(clients, sizeof(Client))
        if t.clients is NULL:
            raise MemoryError
        t.size = <uint32_t>len(request)
        t.fill = fill if fill else burst * t.size
        t.waits = not fill
        t.room = clients
        t.still = still
        self.text = request * (t.fill // t.size + 2)
        t.text = PyBytes_AS_STRING(self.text)
        self.enter()
        self.core = Core(handler, config)
        t.poked = give_lease
        t.owner = self.core.house
        t.stop = &self.core.house.closing
        # As its watchers would be: in the house until the end.
        enter_house(self.core.house)
        self.core.listen(0, TRANSPORT_LISTENER, False, False)
        # The first request is answered before anything is measured, and its reply is the measure of the others.
        t.each = t.reply = 1
        t.keep = True
        self.work(1, 1)
        t.keep = False
        t.each = each
        t.reply = t.kept
        self.reply = t.last[:t.kept]

    def __dealloc__(self):
        if self.core is not None:
            self.enter()
            store_u32_seq(&self.core.house.closing, 1)
            leave_house(self.core.house)
            # The house goes with the core, behind this: nothing of the transport is needed for it.
        if self.wire is not NULL:
            mem_give(self.wire.clients)
            mem_give(self.wire)

    cdef void enter(self) noexcept:
        global transport
        transport = self.wire

    cdef int work(self, uint64_t requests, uint64_t connections) except -1:
        cdef Transport* t = self.wire
        self.enter()
        memset(t.calls, 0, sizeof(t.calls))
        t.to_open = connections
        t.gathered = connections == 0
        t.to_ask = requests * t.size
        t.to_get = requests * t.reply
        self.core.work(0, False, nothing)
        store_u32_seq(&self.core.house.closing, 0)
        if t.starved or t.to_get:
            raise RuntimeError(f"{t.to_get} bytes of replies never came")
        return 0

    def run(self, uint64_t requests):
        """Until so many further requests are answered: a multiple of what all clients send at a time."""
        cdef Transport* t = self.wire
        if t.each and requests % t.each:
            raise ValueError(f"a connection has {t.each} requests: {requests} cannot be shared out")
        self.work(requests, requests // t.each if t.each else t.room - t.open)

    def calls(self):
        """How often the last run called the kernel, by name."""
        cdef Transport* t = self.wire
        return {"accept": t.calls[CALL_ACCEPT], "recv": t.calls[CALL_RECV], "send": t.calls[CALL_SEND],
                "epoll_wait": t.calls[CALL_WAIT], "epoll_ctl": t.calls[CALL_CONTROL],
                "clock": t.calls[CALL_CLOCK], "other": t.calls[CALL_OTHER]}

    def last(self):
        """Runs one more request and answers its reply."""
        cdef Transport* t = self.wire
        cdef uint64_t burst = t.fill // t.size
        t.keep, t.kept = True, 0
        self.run(t.each if t.each else burst if t.waits else 1)
        t.keep = False
        return t.last[:t.kept]


def nothing():
    """Who is to be told that the worker is ready."""


def mark():
    """A place for a profiler to cut at."""
    transport_mark()
