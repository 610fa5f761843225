"""The words of `fastserve/engine`, made callable for tests and benches. Never shipped.

Knows: the structs and functions of the engine, by the same headers as the server. Never sees: the server.
Invariant: each section belongs to one word and holds thin functions; what is expected stands in the tests.
A new word adds a section below with its own cimports; conftest.py builds the file when a source is newer.
"""

import time

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from fastserve.engine.limits cimport Limits

cdef extern from "<sys/mman.h>" nogil:
    enum: PROT_NONE, PROT_READ, PROT_WRITE, MAP_PRIVATE, MAP_ANONYMOUS, MAP_NORESERVE
    void* MAP_FAILED
    void* mmap(void* address, size_t size, int access, int flags, int fd, long offset) noexcept
    int mprotect(void* address, size_t size, int access) noexcept
    int munmap(void* address, size_t size) noexcept


# ---- ground: memory whose neighbours on both sides kill whoever touches them ---------------------------

cdef size_t PAGE = 4096

cdef class Ground:
    """Writable memory between two pages that may not be touched."""
    cdef char* mapped
    cdef size_t size                # of the writable part
    cdef char* first
    cdef char* end

    def __cinit__(self, size_t size):
        self.size = (size + PAGE) // PAGE * PAGE
        self.mapped = <char*>mmap(NULL, self.size + 2 * PAGE, PROT_READ | PROT_WRITE,
                                  MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
        if self.mapped == <char*>-1:
            self.mapped = NULL
            raise MemoryError(size)
        self.first = self.mapped + PAGE
        self.end = self.first + self.size
        if mprotect(self.mapped, PAGE, PROT_NONE) or mprotect(self.end, PAGE, PROT_NONE):
            raise OSError("mprotect")

    def __dealloc__(self):
        if self.mapped:
            munmap(self.mapped, self.size + 2 * PAGE)

    cdef char* lay(self, const char* data, size_t size, bint at_start):
        """A copy whose first byte is the first, or whose last byte is the last, that may be touched."""
        cdef char* place = self.first if at_start else self.end - size
        memcpy(place, data, size)
        return place


def touch_beyond(bytes data, bint before=False):
    """Proves that the ground kills: never returns."""
    cdef Ground ground = Ground(len(data))
    cdef volatile char* place = ground.lay(data, len(data), before)
    place += -1 if before else <Py_ssize_t>len(data)
    return place[0]


# ---- limits --------------------------------------------------------------------------------------------

cdef Limits limits_of(dict given):
    cdef Limits lim
    memset(&lim, 0, sizeof(lim))
    lim.head_size = given.get("head_size", 16384)
    lim.target_size = given.get("target_size", 8192)
    lim.fields = given.get("fields", 100)
    return lim


# ---- scan ----------------------------------------------------------------------------------------------

from fastserve.engine cimport scan

SSE2 = bool(scan.FASTSERVE_SSE2)


def byte_class(str name):
    """The bytes of a class, as a set."""
    cdef int klass = {"tchar": scan.SCAN_TCHAR, "target": scan.SCAN_TARGET,
                      "value": scan.SCAN_VALUE, "name": scan.SCAN_NAME}[name]
    return {c for c in range(256) if scan.scan_is(<char><uint8_t>c, klass)}


def hex_digit(uint8_t c):
    return scan.scan_hex(c)


def walk(str name, bytes data, uint32_t at=0, bint at_start=False):
    """Where a walk over data from `at` stops."""
    cdef uint32_t end = len(data)
    cdef Ground ground = Ground(end)
    cdef const char* base = ground.lay(data, end, at_start)
    if name == "tchar":
        return scan.scan_token(base, at, end)
    if name == "target":
        return scan.scan_target(base, at, end)
    if name == "value":
        return scan.scan_value(base, at, end)
    if name == "name":
        return scan.scan_name(base, at, end)
    if name == "mark":
        return scan.scan_mark(base, at, end)
    raise KeyError(name)


def same(bytes data, bytes lower):
    cdef Ground one = Ground(len(data)), other = Ground(len(lower))
    cdef const char* bytes_ = one.lay(data, len(data), False)
    return bool(scan.scan_same(bytes_, other.lay(lower, len(lower), False), len(lower)))


def same_text(bytes data, bytes other):
    return bool(scan.scan_same_text(data, other, len(other)))


# ---- http1 ---------------------------------------------------------------------------------------------

from fastserve.engine cimport http1

MORE, DONE = http1.MORE, http1.DONE
FORMS = {http1.ORIGIN: "origin", http1.ABSOLUTE: "absolute", http1.AUTHORITY: "authority",
         http1.ASTERISK: "asterisk"}

cdef enum:
    ROOM = 4096                     # fields that the probe has room for

cdef bytes cut(bytes data, http1.Span span):
    return data[span.at:span.at + span.size]

cdef object host_of(bytes data, http1.Host host):
    return (cut(data, host.text), host.name, host.port if host.port >= 0 else None)

cdef object head_of(const http1.Head* h, bytes data):
    cdef uint32_t i
    return {
        "method": cut(data, h.method),
        "target": cut(data, h.target),
        "path": cut(data, h.path),
        "query": cut(data, h.query) if h.has_query else None,
        "form": FORMS[h.form],
        "authority": host_of(data, h.authority) if h.authority.text.size else None,
        "https": bool(h.https),
        "host": host_of(data, h.host) if h.has_host else None,
        "minor": h.minor,
        "length": h.content_length if h.content_length >= 0 else None,
        "chunked": bool(h.chunked),
        "keep_alive": bool(h.keep_alive),
        "expect_continue": bool(h.expect_continue),
        "upgrade": bool(h.upgrade),
        "size": h.size,
        "fields": [(cut(data, h.fields[i].name), cut(data, h.fields[i].value)) for i in range(h.n_fields)],
    }


cdef class Heads:
    """One Head with its memory, laid on guarded ground at each call: it moves, as a real buffer may."""
    cdef http1.Head head
    cdef http1.Field* memory
    cdef Limits lim
    cdef Ground ground

    def __cinit__(self, size_t size, dict given):
        self.memory = <http1.Field*>malloc(ROOM * sizeof(http1.Field))
        memset(self.memory, 0xAA, ROOM * sizeof(http1.Field))
        memset(&self.head, 0xAA, sizeof(self.head))
        self.head.fields = self.memory
        self.head.max_fields = given.get("max_fields", ROOM)
        self.lim = limits_of(given)
        self.ground = Ground(size)
        http1.http1_begin(&self.head)

    def __dealloc__(self):
        free(self.memory)

    cdef int feed(self, const char* data, uint32_t length, bint at_start):
        cdef const char* base = self.ground.lay(data, length, at_start)
        return http1.http1_parse(&self.head, base, length, &self.lim)


def head(bytes data, cuts=(), bint at_start=False, **limits):
    """Parses data as it arrives up to each of `cuts`, then whole.

    Answers (bytes seen, verdict, what it found if DONE).
    """
    cdef Heads heads = Heads(len(data), limits)
    cdef int verdict = http1.MORE
    cdef uint32_t seen = 0
    for seen in (*cuts, len(data)):
        verdict = heads.feed(data, seen, at_start)
        if verdict != http1.MORE:
            break
    return seen, verdict, head_of(&heads.head, data) if verdict == http1.DONE else None


def head_prefixes(bytes data, **limits):
    """The verdict on every prefix, each by a parser that sees it at once: a list of len(data) + 1."""
    cdef Heads heads = Heads(len(data), limits)
    cdef list verdicts = []
    cdef uint32_t length
    for length in range(len(data) + 1):
        http1.http1_begin(&heads.head)
        verdicts.append(heads.feed(data, length, length & 1))
    return verdicts


def head_pairs(bytes data, **limits):
    """Whether every cut into two parts gives verdict and offsets of the whole: the cuts that do not."""
    cdef Heads heads = Heads(len(data), limits)
    cdef uint32_t at, length = len(data)
    cdef int whole = heads.feed(data, length, False), verdict
    cdef list failed = []
    wanted = head_of(&heads.head, data) if whole == http1.DONE else None
    for at in range(length + 1):
        http1.http1_begin(&heads.head)
        memset(heads.memory, 0xAA, min(ROOM, 128) * sizeof(http1.Field))
        verdict = heads.feed(data, at, False)
        if verdict == http1.MORE:
            verdict = heads.feed(data, length, True)
        if verdict != whole or (verdict == http1.DONE and head_of(&heads.head, data) != wanted):
            failed.append(at)
    return failed


def head_loop(bytes data, long rounds, **limits):
    """Nanoseconds for one parse of a whole head, and its verdict."""
    cdef Heads heads = Heads(len(data), limits)
    cdef const char* base = heads.ground.lay(data, len(data), False)
    cdef uint32_t length = len(data)
    cdef int verdict = 0
    cdef long _
    start = time.perf_counter_ns()
    with nogil:
        for _ in range(rounds):
            http1.http1_begin(&heads.head)
            verdict = http1.http1_parse(&heads.head, base, length, &heads.lim)
    return (time.perf_counter_ns() - start) / rounds, verdict


# ---- body ----------------------------------------------------------------------------------------------

from fastserve.engine cimport body


def chunked(bytes data, cuts=(), room=None, bint in_place=False, bint at_start=False):
    """Decodes data as it arrives up to each of `cuts`, then whole.

    `room` bounds what one call may write. In place, the output grows at the front of the memory that holds
    the input. Answers (verdict, body, raw trailer lines, bytes used).
    """
    cdef body.Chunked d
    cdef Ground source = Ground(len(data)), sink = Ground(len(data))
    cdef size_t used, made, at = 0, out = 0, limit = len(data) if room is None else room
    cdef size_t total = len(data), end, size_out
    cdef char* src = NULL
    cdef char* dst = sink.first
    cdef int verdict = http1.MORE
    if in_place:
        dst = source.lay(data, total, at_start)
        src = dst
    memset(&d, 0xAA, sizeof(d))
    body.chunked_begin(&d, body.NO_LIMIT)
    for end in (*cuts, len(data)):
        while True:
            if not in_place:
                src = source.lay(<const char*>data + at, end - at, at_start) - at
                memset(sink.first + out, 0xAA, sink.size - out)
            size_out = min(limit, total - out)
            verdict = body.chunked_feed(&d, src + at, end - at, &used, dst + out, size_out, &made)
            if used > end - at or made > used or made > size_out:
                raise AssertionError((used, made))
            at += used
            out += made
            if verdict != http1.MORE or at == end:
                break
            if made < size_out or used == 0:
                raise AssertionError("stands still")
        if verdict != http1.MORE:
            break
    return verdict, dst[:d.size], dst[d.size:out], at


def chunked_loop(bytes data, long rounds):
    """Nanoseconds for one decoding of a whole body out of place, and its verdict."""
    cdef body.Chunked d
    cdef bytearray sink = bytearray(len(data))
    cdef char* dst = sink
    cdef const char* src = data
    cdef size_t used, made, total = len(data)
    cdef int verdict = 0
    cdef long _
    start = time.perf_counter_ns()
    with nogil:
        for _ in range(rounds):
            body.chunked_begin(&d, body.NO_LIMIT)
            verdict = body.chunked_feed(&d, src, total, &used, dst, total, &made)
    return (time.perf_counter_ns() - start) / rounds, verdict


# ---- batch ---------------------------------------------------------------------------------------------

from fastserve.engine cimport batch as batches

cdef class Batches:
    """One after the other through one ring, if `with_ring` and the kernel has it: `ring` says so."""
    cdef batches.Batch* b
    cdef readonly bint ring
    cdef int fd

    def __cinit__(self, bint with_ring):
        self.b = <batches.Batch*>malloc(sizeof(batches.Batch))
        batches.batch_make(self.b, with_ring)
        self.fd = self.b.ring.fd
        self.ring = self.fd >= 0

    def __dealloc__(self):
        self.mend()
        batches.batch_unmake(self.b)
        free(self.b)

    def ruin(self):
        """From here on the kernel takes no call of the ring, until it is mended."""
        if self.ring:
            self.b.ring.fd = 0x7fffffff

    def mend(self):
        self.b.ring.fd = self.fd

    def receive_at_most(self, int fd, size_t size):
        """Four receives from one socket that may each take so much.

        The addresses are all there, since the kernel looks whether they can be, and a stack may end too near
        to theirs; memory is only behind the pages that a few bytes touch.
        """
        cdef void* room = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
        cdef int _
        if room == MAP_FAILED:
            raise MemoryError
        self.b.n = 0
        for _ in range(4):
            batches.batch_add(self.b, NULL, fd, room, size)
        batches.batch_go(self.b, False)
        munmap(room, size)
        return [self.b.results[i] for i in range(4)]

    def go(self, calls, bint sends):
        """Sends bytes, or receives into so much room: [(fd, bytes)] or [(fd, size)]. Results, and what came."""
        cdef uint32_t i
        buffers = [bytearray(what) if sends else bytearray(b"\xaa" * what) for _, what in calls]
        self.b.n = 0
        for i, (fd, _) in enumerate(calls):
            batches.batch_add(self.b, NULL, fd, <char*>buffers[i], len(buffers[i]))
        with nogil:
            batches.batch_go(self.b, sends)
        results = [self.b.results[i] for i in range(self.b.n)]
        return results, [bytes(buffer[:max(n, 0)]) for buffer, n in zip(buffers, results)]


# ---- peers ---------------------------------------------------------------------------------------------

from fastserve.engine cimport peers as peers_words
from fastserve.engine.net cimport sockaddr_in6


def peer_key(int family, bytes address):
    """Of an address as it is in memory: 4 or 16 bytes."""
    cdef sockaddr_in6 a
    memset(&a, 0, sizeof(a))
    a.sin6_family = <unsigned short>family
    memcpy(<char*>&a + 4 if len(address) == 4 else <char*>&a.sin6_addr, <char*>address, len(address))
    return peers_words.peer_key(&a)


cdef class Peers:
    cdef peers_words.Peers p

    def __cinit__(self, uint32_t connections, uint64_t secret):
        if not peers_words.peers_make(&self.p, connections, secret):
            raise MemoryError

    def __dealloc__(self):
        peers_words.peers_unmake(&self.p)

    def enter(self, uint64_t key):
        return peers_words.peers_enter(&self.p, key)

    def leave(self, uint64_t key):
        peers_words.peers_leave(&self.p, key)

    def place(self, uint64_t key):
        return peers_words.peer_place(&self.p, key)

    def taken(self):
        """Places that are not empty; each must have connections."""
        cdef uint32_t i, n = 0
        for i in range(self.p.mask + 1):
            if self.p.table[i].key:
                n += 1
                assert self.p.table[i].count > 0
            else:
                assert self.p.table[i].count == 0
        return n


# ---- proxy ---------------------------------------------------------------------------------------------

from fastserve.engine cimport proxy as proxy_words

NO_PROXY, PROXY_LINE_MAX, PROXY_MAX = proxy_words.NO_PROXY, proxy_words.PROXY_LINE_MAX, proxy_words.PROXY_MAX
WHO = {proxy_words.SOMEBODY: "somebody", proxy_words.CLIENT: "client"}


def proxy_header(bytes data, bint at_start=False):
    """Verdict, bytes of the header, who is at the other end, and of a client family, packed address and port."""
    cdef proxy_words.Told told
    cdef Ground ground = Ground(len(data))
    cdef const uint8_t* c = <const uint8_t*>&told.client
    memset(&told, 0xAA, sizeof(told))
    cdef int verdict = proxy_words.proxy_parse(&told, ground.lay(data, len(data), at_start), len(data))
    if verdict != http1.DONE:
        return verdict, None, None, None
    who = WHO[told.who]
    if who != "client":
        return verdict, told.size, who, None
    address = (<const char*>proxy_words.address_of(&told.client))[:4 if told.client.sin6_family == 2 else 16]
    return verdict, told.size, who, (told.client.sin6_family, address, c[2] << 8 | c[3])


def trusts(networks, bint locals_, int family, bytes address):
    """Whether a peer is within one of `networks`: [(packed address, bits)]."""
    cdef proxy_words.Trusted t
    cdef sockaddr_in6 a
    cdef bytes packed
    memset(&a, 0, sizeof(a))
    a.sin6_family = <unsigned short>family
    memcpy(proxy_words.address_of(&a), <char*>address, len(address))
    t.n, t.locals = 0, locals_
    t.networks = <proxy_words.Network*>malloc((len(networks) + 1) * sizeof(proxy_words.Network))
    for packed, bits in networks:
        memset(&t.networks[t.n], 0xAA, sizeof(proxy_words.Network))
        memcpy(t.networks[t.n].address, <char*>packed, len(packed))
        t.networks[t.n].size, t.networks[t.n].bits = <uint8_t>len(packed), bits
        t.n += 1
    answer = proxy_words.is_trusted(&t, &a)
    free(t.networks)
    return bool(answer)


# ---- metrics -------------------------------------------------------------------------------------------

from fastserve.engine cimport metrics


cdef class Times:
    cdef metrics.Histogram h

    def note(self, int64_t ns):
        metrics.histogram_note(&self.h, ns)

    def add(self, Times other not None):
        metrics.histogram_add(&self.h, &other.h)

    def buckets(self):
        """Times up to each bound, as Prometheus counts them."""
        cdef uint32_t i
        sums, total = [], 0
        for i in range(metrics.BUCKETS + 1):
            total += self.h.counts[i]
            sums.append(total)
        return sums

    def text(self):
        cdef char room[4096]
        return room[:metrics.put_histogram(room, b"t_seconds", b"Times.", &self.h) - room].decode("ascii")


# ---- logline -------------------------------------------------------------------------------------------

from fastserve.engine cimport logline

LINE_ROOM = logline.LINE_ROOM


def log_line(bint json, dict given):
    cdef logline.Record r
    cdef logline.Face face
    cdef char room[logline.LINE_ROOM]
    cdef bytes address = given["address"], text
    cdef int which
    memset(&r, 0, sizeof(r))
    r.status, r.minor, r.bytes, r.at = given["status"], given["minor"], given["bytes"], given["at"]
    r.queue, r.handler, r.write = given["queue"], given["handler"], given["write"]
    r.conn_id, r.number, r.aborted = given["id"], given["number"], given["aborted"]
    r.peer.sin6_family = <unsigned short>given["family"]
    memcpy(<char*>&r.peer + 4 if len(address) == 4 else <char*>&r.peer.sin6_addr, <char*>address, len(address))
    for which, name in enumerate(("method", "target", "referer", "agent")):
        text = given[name]
        logline.record_text(&r, which, text, len(text))
    face.second = -1
    return room[:logline.line_json(room, &r, &face) if json else logline.line_combined(room, &r, &face)]


include "_probe_lease.pxi"
include "_probe_fuzz.pxi"


# ---- files: where the kernel cannot say what lies below a directory ------------------------------------

from fastserve.engine.files cimport Opened, file_walk


def walk_beneath(int root, bytes path):
    """Descriptor, or the errno negated, and size."""
    cdef bytes own = bytes(bytearray(path))
    cdef Opened opened
    opened.size = 0
    file_walk(&opened, root, own)
    return opened.fd, opened.size
