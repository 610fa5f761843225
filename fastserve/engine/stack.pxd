"""A list that any thread pushes on, and one takes whole.

Knows: a pointer to the last that was pushed, each of which links to the one before it. Never sees: what they are.
Invariant: `link` lies in `thing` and is the list's until it is taken. There is no taking of one alone, which is where
such lists go wrong when a thing comes back. Pushing and taking are sequentially consistent: what was written to a
thing before it was pushed is there for who takes it, and a push may be followed by a look at who sleeps.
"""

from fastserve.engine.atomics cimport cas_ptr, load_ptr, load_ptr_seq, swap_ptr


cdef inline void stack_push_all(void** top, void* first, void** last_link) noexcept nogil:
    """Things that link to each other already, from `first` to the one that `last_link` lies in."""
    cdef void* before
    while True:
        before = load_ptr(top)
        last_link[0] = before
        if cas_ptr(top, before, first):
            return


cdef inline void stack_push(void** top, void** link, void* thing) noexcept nogil:
    stack_push_all(top, thing, link)


cdef inline void* stack_take(void** top) noexcept nogil:
    """Everything, last pushed first, or NULL."""
    return swap_ptr(top, NULL) if load_ptr_seq(top) is not NULL else NULL
