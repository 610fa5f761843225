# What a ctx shows that is an object of its own: the fields of its request, and the event of its end.
#
# Knows: a ctx, and through it the request in the connection's input. Never sees: the reply. Invariant: a view has no
# memory of another request: it looks at its ctx first, as the ctx's own accessors do; what it returns is the caller's.

cdef RequestCtx NO_CTX = RequestCtx.__new__(RequestCtx)     # expired for ever


@cython.annotation_typing(False)    # for `as_text` to see what is no exact str
@cython.auto_pickle(False)
@cython.final
@cython.freelist(8)
cdef class Headers:
    """The fields of a request: names are matched without case, values are str (latin-1, as sent).

    A view: it expires with its ctx. Iteration gives names in wire order, `items()` gives pairs.
    """

    cdef RequestCtx ctx         # never None: `check` is called on it without a look

    def __cinit__(self):
        self.ctx = NO_CTX

    def __init__(self):
        raise TypeError("Headers belong to a RequestCtx")

    def __reduce__(self):
        raise TypeError("Headers belong to a RequestCtx")

    cdef str first(self, object name):
        """The first value of `name`; None: there is none."""
        cdef str wanted = as_text(name)
        cdef int i
        with cython.critical_section(self.ctx):
            self.ctx.check()
            i = self.ctx.find(wanted, 0)
            return self.ctx.text(self.ctx.head.fields[i].value) if i >= 0 else None

    def get(self, name: str, default=None):
        """The first value of `name`, or `default`."""
        value = self.first(name)
        return default if value is None else value

    def getall(self, name: str) -> list[str]:
        """Every value of `name`, in wire order."""
        cdef str wanted = as_text(name)
        cdef int i
        found = []
        with cython.critical_section(self.ctx):
            self.ctx.check()
            i = self.ctx.find(wanted, 0)
            while i >= 0:
                found.append(self.ctx.text(self.ctx.head.fields[i].value))
                i = self.ctx.find(wanted, <uint32_t>i + 1)
        return found

    def items(self) -> list[tuple[str, str]]:
        """Pairs in wire order, names as sent."""
        cdef RequestCtx ctx = self.ctx
        cdef uint32_t i
        cdef list texts = []
        # A str is nothing to the garbage collector; the pairs, which may set it off, come when the buffer
        # is not looked at any more.
        with cython.critical_section(ctx):
            ctx.check()
            for i in range(ctx.head.n_fields):
                texts.append(ctx.text(ctx.head.fields[i].name))
                texts.append(ctx.text(ctx.head.fields[i].value))
        return list(zip(texts[::2], texts[1::2]))

    def keys(self) -> list[str]:
        """Names in wire order, as sent; a name that was sent twice stands twice."""
        return [name for name, _ in self.items()]

    def values(self) -> list[str]:
        """Values in wire order."""
        return [value for _, value in self.items()]

    def __getitem__(self, name: str) -> str:
        value = self.first(name)
        if value is None:
            raise KeyError(name)
        return value

    def __contains__(self, name) -> bool:
        return isinstance(name, str) and self.first(name) is not None

    def __iter__(self):
        return iter(self.keys())

    def __len__(self) -> int:
        with cython.critical_section(self.ctx):
            self.ctx.check()
            return self.ctx.head.n_fields


@cython.auto_pickle(False)
@cython.final
cdef class Done:
    """An event: set when the server stops, when the call has taken longer than `handler_timeout`, and when the
    call is over. Unlike its ctx it may be kept; a detached ctx is not forgotten while one is."""

    cdef RequestCtx ctx

    def __init__(self):
        raise TypeError("a Done comes from RequestCtx.done")

    def __reduce__(self):
        raise TypeError("a Done comes from RequestCtx.done")

    cdef House* house(self) noexcept:
        """NULL: it is set. Otherwise the house is counted in, until `forget_house`."""
        cdef RequestCtx ctx = self.ctx
        cdef House* h = NULL
        with cython.critical_section(ctx):
            if ctx.conn is not NULL and load_u8(&ctx.conn.claim) != EXPIRED:
                h = ctx.desk.house
                if load_u32_seq(&h.draining):
                    h = NULL
                else:
                    add_u32(&h.refs, 1)
        return h

    def is_set(self) -> bool:
        """Without waiting."""
        cdef House* h = self.house()
        if h is not NULL:
            forget_house(h)
        return h is NULL

    def wait(self, timeout: float | None = None) -> bool:
        """Until it is set, at most `timeout` seconds (None: for as long as it takes). True: it is set."""
        cdef int64_t until = NEVER if timeout is None else now_ns() + ns(timeout)
        cdef int64_t left
        cdef uint32_t seen
        cdef House* h
        while True:
            h = self.house()
            if h is NULL:
                return True
            seen = load_u32_seq(&h.bell)
            if load_u32_seq(&h.draining):
                forget_house(h)
                return True
            left = earlier(until - now_ns(), DONE_LOOK)
            if left > 0:
                with nogil:
                    futex_wait(&h.bell, seen, left)
            forget_house(h)
            if left <= 0:
                return self.is_set()
            PyErr_CheckSignals()
