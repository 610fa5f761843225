"""How many connections each address has.

Knows: a hash table of counts that is made at start and never grows. Never sees: a socket, a limit.
Invariant: the table has at least twice as many places as there can be connections, so that a search ends soon; an
address with no connection has no place. Everything but `peer_key` is called under `lock`, which no one holds for
longer than one search. The hash has a secret of this process in it: nobody can choose addresses that collide.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy

from fastserve.engine.atomics cimport lock_word, unlock_word
from fastserve.engine.net cimport AF_INET, AF_INET6, sockaddr_in6
from fastserve.engine.pool cimport mem_give, mem_take_zeroed


cdef struct Peer:
    uint64_t key                # 0: nobody
    uint64_t count

cdef struct Peers:
    uint32_t lock
    uint32_t mask               # places, a power of two, less one
    uint64_t secret
    Peer* table                 # NULL: nobody counts


cdef inline uint64_t peer_key(const sockaddr_in6* address) noexcept nogil:
    """An IPv4 address, or the first 64 bits of an IPv6 one, which is what one customer has; 0: neither. In memory it
    is the first 8 bytes of an IPv6 address: of ::/64, which would be 0, it is 2::, and an IPv4 address stands behind
    0001:0000. None of these can be a peer's own (0::/8 is reserved, RFC 4291, section 2.5.5)."""
    cdef const uint8_t* a = <const uint8_t*>&address.sin6_addr
    cdef uint64_t key
    if address.sin6_family == AF_INET:
        a = <const uint8_t*>address + 4
    elif address.sin6_family != AF_INET6:
        return 0
    elif memcmp(a, b"\0\0\0\0\0\0\0\0\0\0\xff\xff", 12) == 0:
        a += 12
    else:
        memcpy(&key, a, 8)
        if key == 0:
            memcpy(&key, b"\0\2\0\0\0\0\0\0", 8)
        return key
    memcpy(&key, b"\0\1\0\0", 4)
    memcpy(<char*>&key + 4, a, 4)
    return key


cdef inline bint peers_make(Peers* p, uint32_t connections, uint64_t secret) noexcept nogil:
    """Room for the addresses of so many connections; False: no memory."""
    cdef uint32_t places = 16
    while places < 2 * connections:
        places *= 2
    p.lock = 0
    p.mask = places - 1
    p.secret = secret
    p.table = <Peer*>mem_take_zeroed(places, sizeof(Peer))
    return p.table is not NULL


cdef inline void peers_unmake(Peers* p) noexcept nogil:
    mem_give(p.table)
    p.table = NULL


cdef inline uint32_t peer_place(Peers* p, uint64_t key) noexcept nogil:
    """Where a search for `key` begins."""
    cdef uint64_t x = key + p.secret
    x = (x ^ (x >> 30)) * <uint64_t>0xbf58476d1ce4e5b9
    x = (x ^ (x >> 27)) * <uint64_t>0x94d049bb133111eb
    x = (x ^ (x >> 31)) + (p.secret >> 17)
    x = (x ^ (x >> 29)) * <uint64_t>0xff51afd7ed558ccd
    return <uint32_t>(x >> 32) & p.mask


cdef inline uint64_t peers_enter(Peers* p, uint64_t key) noexcept nogil:
    """One connection more; how many there are now."""
    cdef uint32_t at = peer_place(p, key)
    cdef uint64_t count
    lock_word(&p.lock)
    while p.table[at].key and p.table[at].key != key:
        at = (at + 1) & p.mask
    p.table[at].key = key
    p.table[at].count += 1
    count = p.table[at].count
    unlock_word(&p.lock)
    return count


cdef inline void peers_leave(Peers* p, uint64_t key) noexcept nogil:
    """One less. A place that falls empty is filled by the next one whose search would pass it, and so on: there are
    no marks of the dead, which would make searches longer for ever."""
    cdef uint32_t at = peer_place(p, key), gap, home
    lock_word(&p.lock)
    while p.table[at].key != key:
        at = (at + 1) & p.mask
    p.table[at].count -= 1
    if p.table[at].count == 0:
        gap = at
        while True:
            at = (at + 1) & p.mask
            if p.table[at].key == 0:
                break
            home = peer_place(p, p.table[at].key)
            if ((at - home) & p.mask) >= ((at - gap) & p.mask):
                p.table[gap] = p.table[at]
                gap = at
        p.table[gap].key = 0
        p.table[gap].count = 0
    unlock_word(&p.lock)
