# cython: language_level=3
"""Words of the engine in loops of their own: the parser and the writer of replies. Never shipped.

Knows: http1 and reply, by the same headers as the server. Never sees: the server, a connection.
"""

from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memset

from fastserve.engine.http1 cimport DONE, Field, Head, http1_begin, http1_parse
from fastserve.engine.limits cimport RESPONSE_HEAD_MAX, Limits
from fastserve.engine.reply cimport REPLY_HEAD_ROOM, Reply, Scribe, put, reply_head, scribe_date, scribe_make

cdef extern from *:
    """
    __attribute__((noinline, visibility("default"))) void words_mark(void) { __asm__ volatile("" ::: "memory"); }
    /* Between two rounds of a loop: what `p` points to may have changed, and nothing may be left out. */
    static inline void words_forget(void *p) { __asm__ volatile("" :: "r"(p) : "memory"); }
    """
    void words_mark() noexcept nogil
    void words_forget(void* p) noexcept nogil

cdef enum:
    FIELDS = 100


def parse(bytes head not None, uint64_t times):
    """Parses a whole head so many times."""
    cdef Field fields[FIELDS]
    cdef Head found
    cdef Limits lim
    cdef const char* base = head
    cdef uint32_t size = <uint32_t>len(head)
    cdef uint64_t _
    cdef int verdict = DONE
    memset(&lim, 0, sizeof(lim))
    lim.head_size, lim.target_size, lim.fields = 16384, 8192, FIELDS
    found.fields, found.max_fields = fields, FIELDS
    with nogil:
        for _ in range(times):
            words_forget(&found)
            http1_begin(&found)
            verdict = http1_parse(&found, base, size, &lim)
            if verdict != DONE:
                break
    if verdict != DONE or found.size != size:
        raise ValueError(f"the head was not taken: {verdict}")


def write(bytes body not None, bytes fields not None, uint64_t times):
    """Writes a reply with Server, Date and a type so many times; answers the last one."""
    cdef char out[RESPONSE_HEAD_MAX + REPLY_HEAD_ROOM + 4096]
    cdef char* end = out
    cdef Reply reply
    cdef Scribe scribe
    cdef uint64_t _
    if len(body) > 4096 or len(fields) > RESPONSE_HEAD_MAX:
        raise ValueError("there is no room for it")
    memset(&reply, 0, sizeof(reply))
    reply.status = 200
    reply.type, reply.type_size = b"text/plain; charset=utf-8", 25
    reply.fields, reply.fields_size = fields, <uint32_t>len(fields)
    reply.body, reply.body_size = body, len(body)
    scribe_make(&scribe, b"fastserve", 9)
    with nogil:
        for _ in range(times):
            words_forget(&reply)
            scribe_date(&scribe, 1_700_000_000)
            end = put(reply_head(out, &reply, &scribe, False, False), reply.body, reply.body_size)
    return out[:end - out]


def mark():
    """A place for a profiler to cut at."""
    words_mark()
