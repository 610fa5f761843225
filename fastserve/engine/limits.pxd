"""The numbers that bound a server, as the core reads them.

Knows: the C image of `Config` (config.py says what each means, its unit and default; `_core.pyx`
copies them here once, at start). Never sees: a connection, a byte of a request.
Invariant: written before the first thread starts, only read afterwards. Times are nanoseconds,
sizes are bytes, 0 means "off" where Config allows it.
"""

from libc.stdint cimport int64_t, uint32_t, uint64_t

cdef enum:
    METHODS_MAX = 200               # bytes of a list of them
    PATH_MAX = 200                  # bytes of a path that is answered without Python

cdef struct Limits:
    # the head
    uint32_t head_size              # request line + fields + empty line; beyond: 431
    uint32_t target_size            # request target; beyond: 414
    uint32_t fields                 # number of fields; beyond: 431
    uint32_t input_room             # bytes of an input block: the longest head and some body
    # the body
    int64_t body_size               # beyond: 413
    bint head_first                 # a request with a body is handed over when its head is there
    # the pool and the queue
    uint32_t concurrency            # connections of the whole server; beyond: 503
    uint32_t reject_slots           # connections that are told that a limit of connections is reached
    uint32_t conns_per_ip           # connections of one address; beyond: 429; 0: off
    uint32_t max_queue              # requests that wait for a worker; beyond: 503
    uint64_t memory                 # bytes of all buffers and bodies; beyond: 503 for new bodies
    uint32_t requests_per_conn      # the last one answers with Connection: close
    # deadlines
    int64_t header_timeout          # the whole head, from its first byte; 408
    int64_t body_timeout            # the whole body, from the end of the head; 408
    int64_t handler_timeout         # until a handler has returned or begun to stream; 504; 0: off
    int64_t write_timeout           # a reply that makes no progress; cut
    int64_t idle_timeout            # between requests, and before the first byte; silent close
    int64_t queue_timeout           # a ready request that no worker took; 503
    int64_t min_body_rate           # bytes a second, after RATE_GRACE
    int64_t min_write_rate          # the same for replies

    # methods that the server answers with 405, as a list of tokens
    uint32_t refused_size
    char refused[METHODS_MAX]

    # what is answered without Python; 0: off
    bint probes                     # either of them is on
    bint timed                      # the phases of a request are timed
    bint logs                       # there is an access log
    uint32_t health_size
    uint32_t metrics_size
    char health[PATH_MAX]
    char metrics[PATH_MAX]
    bint reuse_port                 # other processes share the port: who cannot serve leaves them time

cdef enum:
    METHOD_MAX = 32                 # bytes of a method
    RESPONSE_HEAD_MAX = 8192        # response head with all fields that a handler set
    CHUNK_LINE_MAX = 4096           # one chunk-size line with its extensions
    CHUNK_EXT_MAX = 16384           # all chunk extensions of one body
    TRAILER_MAX = 8192              # the trailer section of one body
    TRAILER_FIELDS_MAX = 64         # and its fields
    CHUNK_DIGITS_MAX = 15           # hex digits of a chunk size: below 2**60
    LENGTH_DIGITS_MAX = 18          # decimal digits of a Content-Length: below 2**60
