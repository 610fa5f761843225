# Listeners that proxies speak to: for whom a connection is, is said by a PROXY header, before anything else.
#
# Knows: what becomes of a connection by what its header says. Never sees: how a header is written (engine/proxy.pxd),
# an address in words. Invariant: from accept until its header is whole such a connection is in PREFACE: no byte
# behind the header is looked at, and whoever sends none is told nothing, unless that there are too many connections.
# From there on it is IDLE, as any other is from the beginning, and counted, logged and shown by its client's address.

from fastserve.engine.proxy cimport CLIENT, NO_PROXY, Network, Told, Trusted, is_trusted, proxy_parse


cdef bint is_stranger(Reactor* r, const sockaddr_in6* peer) noexcept nogil:
    """Of who has just come to a listener of proxies. True: it is none that is trusted, and is to be reset."""
    if is_trusted(&r.house.trusted, peer):
        return False
    count_u64(&r.stats.refused_proxy, 1)
    note(r.house, NOTE_STRANGER, <int64_t>peer_key(peer))
    return True


cdef void refuse_header(Reactor* r, Conn* c, uint32_t why) noexcept nogil:
    """`why`: the kind of note."""
    count_u64(&r.stats.refused_proxy, 1)
    note(r.house, why, <int64_t>peer_key(&c.peer))
    abort(r, c)


cdef void hear_header(Reactor* r, Conn* c) noexcept nogil:
    """Takes what has come of the header, and what came with it of a request."""
    cdef Told told
    cdef Input* i
    cdef uint32_t rest
    cdef ssize_t n
    cdef int verdict = MORE
    if not receives(r, c):
        return
    i = c.input
    n = net_recv(c.fd, i.data + i.end, i.room - i.end)
    if n == GONE:
        drop(r, c)
        return
    if n > 0:
        verdict = proxy_parse(&told, i.data, i.end + <uint32_t>n)
    if verdict == NO_PROXY:
        refuse_header(r, c, NOTE_NO_HEADER)
        return
    if verdict == MORE:
        if n > 0:
            i.end += <uint32_t>n
            count_u64(&r.stats.bytes_received, <uint64_t>n)
        elif i.end == 0:
            give_input(r, c)
        arm(r, c, EPOLLIN)
        return
    rest = i.end + <uint32_t>n - told.size
    count_u64(&r.stats.bytes_received, <uint64_t>n - rest)
    i.start = i.end = told.size
    c.state = IDLE
    if c.timed_by == BY_HEAD:
        # Otherwise it is a drain's, or beyond a limit, and its time is short.
        time_idle(r, c)
    c.unsaid = told.who != CLIENT
    if told.who == CLIENT:
        c.peer = told.client
        if not is_let_in(r, c):
            return
    received(r, c, <ssize_t>rest if rest else AGAIN)


cdef bint is_let_in(Reactor* r, Conn* c) noexcept nogil:
    """Of a client whose address is known by now: it is counted, if anybody is. False: its address has too many
    connections, and it was told so, or is no more; one that may be a probe goes on to be heard."""
    cdef House* h = r.house
    cdef uint64_t key = 0 if c.rejected else key_to_count(h, &c.peer)
    cdef uint32_t n
    if key == 0 or not is_crowded(r, key):
        c.peer_key = key
        return True
    n = add_u32(&h.rejected, 1)
    sub_u32(&h.connections, 1)
    c.rejected = True
    if n > places_to_reject(r):
        count_u64(&r.stats.unheard, 1)
        drop(r, c)
        return False
    return is_heard_first(r, c, n, 429)
