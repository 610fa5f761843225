# The context of one request.
#
# Knows: the parsed request in the connection's input, and the reply as it grows. Never sees: the
# reactor, the lease. Invariant: `conn` is set for exactly one call of a handler; every
# accessor looks at it first, inside the object's critical section (which is nothing where a GIL is),
# so that late use, from any thread, raises ContextExpired and touches no memory of another request.
# Between that look and the last use of what `conn` leads to nothing is made that the garbage collector
# knows (before Python 3.12 it may run at any such moment, let the GIL go, and the call may be over).
# What an accessor returns is the caller's own: bytes and str, never a view of a buffer.

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.unicode cimport (
    PyUnicode_AsUTF8AndSize, PyUnicode_DecodeASCII, PyUnicode_DecodeLatin1, PyUnicode_DecodeUTF8,
)
from libc.errno cimport errno

from fastserve.engine.body cimport unfit_trailer
from fastserve.engine.files cimport Opened, c_pread, file_look
from fastserve.engine.net cimport AF_INET, AF_INET6
from fastserve.engine.scan cimport scan_same_text, scan_token, scan_value

import errno as _errno
import os as _os
import socket as _socket
from urllib.parse import quote as _quote

from fastserve.cookies import cookie_key, format_cookie
from fastserve.dates import parse_date
from fastserve.documents import read_json, write_json
from fastserve.errors import BadRequest, ClientGone, ContextExpired, MissingExtra, ServerClosed
from fastserve.forms import parse_multipart, read_fields, read_multipart
from fastserve.forwarded import Trust
from fastserve.headers import Fields
from fastserve.negotiation import best_encoding, best_type
from fastserve.sending import type_of
from fastserve.uploads import Files, end_files

cdef extern from "<fcntl.h>" nogil:
    int c_fcntl "fcntl"(int fd, int command, int argument) noexcept
    int F_DUPFD_CLOEXEC

cdef extern from *:
    """
    #define TEXT_IS_ASCII(o) (PyUnicode_IS_ASCII(o))
    #define TEXT_DATA(o) ((const char *)PyUnicode_DATA(o))
    """
    bint TEXT_IS_ASCII(object text)
    const char* TEXT_DATA(object text)

cdef enum:                      # what a ctx is lent for
    LENT_CALL = 0               # a handler
    LENT_HOOK = 1               # on_headers
    LENT_ERROR = 2              # the error handler

cdef enum:
    BUFFER_FIRST = 4096         # a ctx's own memory for a body that is written in pieces
    BUFFER_KEPT = 65536         # more than this is given back after the call
    FIELDS_FIRST = 1024
    WHOLE_FROM = 4096           # set_body(bytes) from this size on is sent from the object itself
    TYPE_MAX = 1024
    FILE_READ = 16384           # bytes of a file, up to which they are copied into the reply
    DONE_LOOK = 100_000_000     # nanoseconds: the end of a call rings no bell
    NO_FILE = -1                # in place of a descriptor
    COPIED = -2                 # what a file brings has been copied into the reply

cdef struct Buffer:
    char* data
    size_t size
    size_t room


cdef int buffer_put(Buffer* b, const char* data, size_t size, size_t first) except -1:
    cdef size_t room = b.room if b.room else first
    cdef char* more
    if size == 0:
        return 0
    if b.size + size > b.room:
        while room < b.size + size:
            room *= 2
        more = <char*>mem_grow(b.data, room)
        if more is NULL:
            raise MemoryError
        b.data = more
        b.room = room
    memcpy(b.data + b.size, data, size)
    b.size += size
    return 0


cdef dict METHODS = {m.encode(): m for m in
                     ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "CONNECT")}
cdef str DEFAULT_TYPE = "text/plain; charset=utf-8"
cdef str MULTIPART = "multipart/form-data"
cdef str URLENCODED = "application/x-www-form-urlencoded"
cdef frozenset REDIRECTS = frozenset((301, 302, 303, 307, 308))
cdef frozenset NO_TRAILERS = frozenset(("set-cookie", "location", "date", "server", "www-authenticate", "link"))
cdef frozenset OURS = frozenset(("content-length", "transfer-encoding", "trailer", "upgrade", "keep-alive"))


@cython.final
cdef class RequestCtx:
    """One request and its reply, lent to a handler for one call.

    Request attributes are read-only. Reply attributes may be set in any order and as often as one
    likes: nothing is sent before the handler returns, unless it streams: what would change a reply that
    has begun raises RuntimeError. After the call every attribute and method raises `ContextExpired`. An
    instance comes from the server; it cannot be made by hand.
    """

    cdef Conn* conn             # NULL: expired
    cdef Desk* desk             # of the worker that lent it; its own where it is detached, until it is answered
    cdef bint detached
    cdef int loan               # what it was lent for
    cdef bint streams           # LENT_HOOK: the handler is to read the body itself
    cdef const char* base       # the first byte of the request
    cdef Head* head
    cdef Reply reply
    cdef Buffer fields
    cdef Buffer trailer_fields  # of the reply
    cdef Buffer body_buffer
    cdef bint keeps             # one of the next is there
    cdef object query_args, cookie_values
    cdef bint has_form          # one of the next is there, and `keeps`
    cdef object form_args, form_files
    cdef list all_files         # every Files of this loan, also of a body that was replaced
    cdef tuple form_fault       # of the BadRequest that a form was refused with while its body came; (): of another
    cdef object path_params, own_values     # dicts
    cdef Py_ssize_t stream_at   # how much was read from `body_stream`
    cdef bytes stream_whole     # what it reads from, where the body has been received
    cdef object streamed_body   # what `body` has read of one that comes
    cdef object own_body        # what replaces it
    cdef object body_object     # exact bytes that the reply is sent from
    cdef int file               # open: the reply is sent from it; NO_FILE, COPIED
    cdef bytes file_lines       # the fields that came with it, the status, if it was another than 200, and the type
    cdef int file_status
    cdef object file_type
    cdef int64_t file_at
    cdef int64_t file_size
    cdef object hijacker        # the function that takes the connection over
    cdef bint responds          # and whether there is a reply before it does
    cdef object trust           # in what proxies say; None: in nothing
    cdef object type_object     # the str that reply.type points into; kept, because it comes again

    def __cinit__(self):
        self.file = NO_FILE

    def __init__(self):
        raise TypeError("a RequestCtx is made by the server and lent to a handler")

    def __del__(self):
        # Here, because a garbage collector that finds a cycle has taken apart what it holds before it is deallocated.
        # (And not for those who call this as any method.)
        if self.conn is not NULL and self.detached and load_u32(&self.desk.parted):
            self.forgotten()

    def __dealloc__(self):
        self.drop_file()
        mem_give(self.fields.data)
        mem_give(self.trailer_fields.data)
        mem_give(self.body_buffer.data)

    cdef void begin(self, Conn* c, Desk* d, int loan) noexcept:
        """The loan begins: nothing else may have a reference to this object."""
        cdef Input* i = c.input
        self.desk = d
        self.loan = loan
        self.base = i.data + i.start
        self.head = &i.head
        self.detached = False
        self.clear()
        self.conn = c

    cdef void end(self) noexcept:
        """The loan is over for this object. The reply stays until it is committed."""
        with cython.critical_section(self):
            self.conn = NULL
            if self.keeps:
                self.keeps = False
                self.query_args = self.streamed_body = self.stream_whole = self.cookie_values = None
                self.stream_at = 0
                self.path_params = self.own_values = self.own_body = None
                if self.has_form:
                    self.end_form()

    cdef void end_form(self) noexcept:
        """Its files end, whoever has them."""
        self.has_form = False
        self.form_args = self.form_files = self.form_fault = None
        if self.all_files is not None:
            for files in self.all_files:
                end_files(files)
            self.all_files = None

    cdef void clear(self) noexcept:
        memset(&self.reply, 0, sizeof(Reply))
        self.reply.status = 200
        self.reply.set = self.desk.house.leave
        self.fields.size = 0
        self.trailer_fields.size = 0
        self.body_object = None
        if self.hijacker is not None:
            self.hijacker = None
        self.drop_file()
        self.body_buffer.size = 0
        if self.body_buffer.room > BUFFER_KEPT:
            mem_give(self.body_buffer.data)
            self.body_buffer.data = NULL
            self.body_buffer.room = 0

    cdef void drop_file(self) noexcept:
        if self.file != NO_FILE:
            if self.file >= 0:
                c_close(self.file)
            self.file = NO_FILE
            self.file_lines = self.file_type = None

    cdef int leave_file(self) except -1:
        """Before another body: with a file goes what came with it."""
        cdef bytes lines, kept
        if self.file == NO_FILE:
            return 0
        if self.file_lines is not None:
            brought = self.file_lines.splitlines(True)
            lines = PyBytes_FromStringAndSize(self.fields.data, self.fields.size)
            kept = b"".join([line for line in lines.splitlines(True) if line not in brought])
            self.check_open()
            self.fields.size = 0
            buffer_put(&self.fields, PyBytes_AS_STRING(kept), len(kept), FIELDS_FIRST)
            if self.file_status and self.reply.status == self.file_status:
                self.reply.status = 200
            if self.type_object is self.file_type:
                self.reply.type_size = 0
        self.drop_file()
        self.body_buffer.size = 0
        self.body_object = None
        return 0

    cdef int check_room(self, Py_ssize_t size) except -1:
        """For more bytes of fields."""
        if self.fields.size + <size_t>size > RESPONSE_HEAD_MAX - TYPE_MAX:
            raise ValueError(f"the fields of a reply are limited to {RESPONSE_HEAD_MAX - TYPE_MAX} bytes")
        return 0

    cdef int bring(self, bytes lines, int status) except -1:
        """What comes with a file, which is the body by now: fields, for which there is room, and a status unless it
        is 0."""
        with cython.critical_section(self):
            self.check_open()
            buffer_put(&self.fields, PyBytes_AS_STRING(lines), len(lines), FIELDS_FIRST)
            if self.file == NO_FILE:
                self.file = COPIED
            self.file_lines, self.file_status, self.file_type = lines, status, self.type_object
            if status:
                self.reply.status = status
        return 0

    cdef void hand(self, Conn* c, Handed* handed) noexcept:
        """Fills in what grew: once, behind `end`. A body that may not fit into the connection's output
        is handed over to it: the reference, or the memory, is no longer this object's."""
        cdef size_t taken = RESPONSE_HEAD_MAX + REPLY_HEAD_ROOM + c.output.end
        cdef size_t room = OUTPUT_ROOM - taken if taken < OUTPUT_ROOM else 0
        self.point_out_fields()
        handed.kind = NO_LARGE
        if self.file >= 0:
            self.reply.body_size = <size_t>self.file_size
            handed.file, handed.at, handed.kind = self.file, self.file_at, LARGE_FILE
            self.file = COPIED
        elif self.body_object is not None:
            self.reply.body = PyBytes_AS_STRING(self.body_object)
            self.reply.body_size = <size_t>PyBytes_GET_SIZE(self.body_object)
            if self.reply.body_size > room:
                Py_INCREF(self.body_object)
                handed.owner = <void*>self.body_object
                handed.kind = LARGE_OBJECT
        else:
            self.reply.body = self.body_buffer.data
            self.reply.body_size = self.body_buffer.size
            if self.reply.body_size > room:
                handed.owner = self.body_buffer.data
                handed.kind = LARGE_MEMORY
                memset(&self.body_buffer, 0, sizeof(Buffer))

    cdef void point_out_fields(self) noexcept:
        """They grew, and may have moved."""
        self.reply.fields = self.fields.data
        self.reply.fields_size = <uint32_t>self.fields.size

    cdef int check(self) except -1:
        if self.conn is NULL or load_u8(&self.conn.claim) == EXPIRED:
            return self.expired()
        return 0

    cdef int expired(self) except -1:
        """Apart, so that the look before it is small enough to stand in every accessor."""
        if self.conn is NULL:
            raise ContextExpired("this RequestCtx belonged to a call that is over")
        raise ContextExpired("this call has taken too long: its client has been told")

    cdef int check_open(self) except -1:
        """The reply can still be changed."""
        self.check()
        if self.desk.streamed:
            raise RuntimeError("this reply has been streamed: its head is sent")
        return 0

    cdef bytes span(self, Span s):
        return PyBytes_FromStringAndSize(self.base + s.at, s.size)

    cdef str text(self, Span s):
        return PyUnicode_DecodeLatin1(self.base + s.at, s.size, NULL)

    cdef int find(self, str name, uint32_t start) noexcept:
        """Where a field of that name stands, from `start` on; -1: nowhere."""
        cdef uint32_t i, size = <uint32_t>len(name)
        cdef const char* wanted = TEXT_DATA(name)
        cdef Field* f
        if TEXT_IS_ASCII(name):
            for i in range(start, self.head.n_fields):
                f = &self.head.fields[i]
                if f.name.size == size and scan_same_text(self.base + f.name.at, wanted, size):
                    return <int>i
        return -1

    # --- the request

    @property
    def method(self) -> str:
        """The method as sent; case matters (RFC 9110, section 9.1)."""
        cdef bytes name
        with cython.critical_section(self):
            self.check()
            name = self.span(self.head.method)
        known = METHODS.get(name)
        return known if known is not None else name.decode("ascii")

    cdef bint has_method(self, const char* name, uint32_t size) except -1:
        with cython.critical_section(self):
            self.check()
            return self.head.method.size == size and memcmp(self.base + self.head.method.at, name, size) == 0

    @property
    def is_get(self) -> bool:
        """Is the method GET?"""
        return self.has_method(b"GET", 3)

    @property
    def is_head(self) -> bool:
        """Is the method HEAD?"""
        return self.has_method(b"HEAD", 4)

    @property
    def is_post(self) -> bool:
        """Is the method POST?"""
        return self.has_method(b"POST", 4)

    @property
    def is_put(self) -> bool:
        """Is the method PUT?"""
        return self.has_method(b"PUT", 3)

    @property
    def is_patch(self) -> bool:
        """Is the method PATCH?"""
        return self.has_method(b"PATCH", 5)

    @property
    def is_delete(self) -> bool:
        """Is the method DELETE?"""
        return self.has_method(b"DELETE", 6)

    @property
    def is_options(self) -> bool:
        """Is the method OPTIONS?"""
        return self.has_method(b"OPTIONS", 7)

    @property
    def path(self) -> str:
        """The path, percent-decoded once (RFC 3986, section 2.1) and read as UTF-8; what is not UTF-8 becomes
        U+FFFD. `raw_path` has the bytes. Dot segments are left as they are. `*` for the asterisk form (RFC 9112,
        section 3.2.4)."""
        cdef Span s
        with cython.critical_section(self):
            self.check()
            s = self.head.path
            if s.size == 0:
                return "*" if self.head.form == ASTERISK else "/"
            return decode_path(self.base + s.at, s.size)

    @property
    def raw_path(self) -> bytes:
        """The path as sent, without the query."""
        with cython.critical_section(self):
            self.check()
            return self.span(self.head.path)

    @property
    def query_string(self) -> bytes:
        """What stands behind the first `?` of the target (RFC 3986, section 3.4), as sent; empty without one."""
        with cython.critical_section(self):
            self.check()
            return self.span(self.head.query)

    @property
    def query(self) -> Args:
        """The query as an ordered multi-map, decoded at first use."""
        cdef bytes raw
        with cython.critical_section(self):
            self.check()
            if self.query_args is not None:
                return self.query_args
            raw = self.span(self.head.query)
        args = parse_args(raw)
        with cython.critical_section(self):
            self.check()
            self.keeps = True
            self.query_args = args
        return args

    @property
    def params(self) -> dict[str, str]:
        """What the parameters of the route's pattern stood for in the path, by name; `Router` sets it."""
        cdef dict values
        with cython.critical_section(self):
            self.check()
            if self.path_params is not None:
                return self.path_params
        values = {}
        with cython.critical_section(self):
            self.check()
            if self.path_params is None:
                self.keeps = True
                self.path_params = values
            return self.path_params

    @params.setter
    def params(self, dict values not None):
        with cython.critical_section(self):
            self.check()
            self.keeps = True
            self.path_params = values

    @property
    def user_values(self) -> dict[str, object]:
        """For the program's own use, of one handler for those behind it: empty at first, gone with the call."""
        cdef dict values
        with cython.critical_section(self):
            self.check()
            if self.own_values is not None:
                return self.own_values
        values = {}
        with cython.critical_section(self):
            self.check()
            if self.own_values is None:
                self.keeps = True
                self.own_values = values
            return self.own_values

    @property
    def headers(self) -> Headers:
        """The fields of the request (RFC 9110, section 5): a case-insensitive multi-map that expires with the ctx."""
        cdef Headers view
        with cython.critical_section(self):
            self.check()
        view = Headers.__new__(Headers)
        view.ctx = self
        return view

    @property
    def body(self) -> bytes:
        """The whole body, chunked coding (RFC 9112, section 7.1) removed; a copy each time.

        Of a body that the handler streams: what is left of it, read to its end (and then kept); raises as
        `BodyStream.read`. RuntimeError in `on_headers`.
        """
        with cython.critical_section(self):
            self.check()
            if self.own_body is not None:
                return self.own_body
            self.check_body()
            if self.conn.step == REFUSED:
                return b""
            if self.conn.step != STREAMS:
                return self.whole_body()
            if self.streamed_body is not None:
                return self.streamed_body
            before = self.stream_at
        whole = self.body_stream.read()
        with cython.critical_section(self):
            self.check()
            self.stream_at = before
            self.keeps = True
            self.streamed_body = whole
        return whole

    def replace_body(self, data: bytes) -> None:
        """From here on `data` is the body: for `body`, `json`, `form` and `files`, which forget what they have read,
        and for `body_stream`, from its beginning. A str counts as UTF-8. RuntimeError in `on_headers`."""
        cdef bytes whole = as_bytes(data)
        with cython.critical_section(self):
            self.check()
            self.check_body()
            self.keeps = True
            self.form_args = self.form_files = self.stream_whole = None
            self.stream_at = 0
            self.own_body = whole

    cdef int check_body(self) except -1:
        if self.loan == LENT_HOOK and self.conn.step == ASKS:
            raise RuntimeError("on_headers runs before the body is read")
        return 0

    cdef bytes whole_body(self):
        if self.conn.in_place:
            return PyBytes_FromStringAndSize(self.base + self.head.size, self.conn.consumed - self.head.size)
        if self.head.chunked:
            # Behind the body lie the lines of the trailer section.
            return PyBytes_FromStringAndSize(self.conn.body.data, self.conn.chunked.size)
        return PyBytes_FromStringAndSize(self.conn.body.data, self.conn.body.used)

    @property
    def body_stream(self) -> BodyStream:
        """The body as it arrives, where the handler is to read it (`stream_request_body`, or `stream_body`
        in `on_headers`); otherwise over the body that was received. RuntimeError in `on_headers`."""
        cdef BodyStream stream
        with cython.critical_section(self):
            self.check()
            self.check_body()
        stream = BodyStream.__new__(BodyStream)
        stream.ctx = self
        return stream

    @property
    def trailers(self) -> Fields:
        """The trailer section of a chunked body (RFC 9110, section 6.5): a case-insensitive multi-map; of
        a body that is streamed empty before its end. Fields that a recipient must not believe are refused."""
        cdef bytes lines = b""
        with cython.critical_section(self):
            self.check()
            if self.conn.step == STREAMS:
                lines = PyBytes_FromStringAndSize(self.desk.trailers.data, self.desk.trailers.size)
            elif self.conn.step != REFUSED and self.conn.step != ASKS and self.head.chunked:
                lines = PyBytes_FromStringAndSize(self.conn.body.data + self.conn.chunked.size,
                                                  self.conn.body.used - self.conn.chunked.size)
        return Fields.of_lines(lines)

    @property
    def max_body_size(self) -> int:
        """The limit of this request's body in bytes: `max_request_body_size`, unless `on_headers` sets another, of 0 to
        2**60 (ValueError). To be set there (RuntimeError)."""
        with cython.critical_section(self):
            self.check()
            return self.conn.body_limit

    @max_body_size.setter
    def max_body_size(self, size):
        cdef int64_t number = size
        if not 0 <= number <= 1 << 60:
            raise ValueError(f"a body size lies in 0..2**60, not {number}")
        with cython.critical_section(self):
            self.check()
            if self.loan != LENT_HOOK:
                raise RuntimeError("the limit of a body is set in on_headers")
            self.conn.body_limit = self.conn.chunked.limit = number

    @property
    def stream_body(self) -> bool:
        """Does the handler read the body itself, from `body_stream`? To be set in `on_headers` (RuntimeError)."""
        with cython.critical_section(self):
            self.check()
            return self.streams if self.loan == LENT_HOOK else self.conn.step == STREAMS

    @stream_body.setter
    def stream_body(self, wanted):
        with cython.critical_section(self):
            self.check()
            if self.loan != LENT_HOOK:
                raise RuntimeError("who reads the body is said in on_headers")
            self.streams = bool(wanted)

    def json(self) -> object:
        """The body as JSON (RFC 8259, in UTF-8), read by orjson where that is installed and else by the standard
        library. BadRequest, which becomes 400: it is none."""
        return read_json(self.body)

    @property
    def form(self) -> Args:
        """The fields of an `application/x-www-form-urlencoded` or `multipart/form-data` body; empty for any
        other type. BadRequest, which becomes 400: a multipart body that is not well formed; MissingExtra without
        `[forms]`.

        A body that the handler streams is read here to its end, in the thread that the handler was called in, and
        raises as `BodyStream.read`; BadRequest, 413: fields of more than 1 MiB together; RuntimeError: some of it was
        read from `body_stream` before.
        """
        return self.parsed_form()[0]

    @property
    def files(self) -> Files:
        """The files of a `multipart/form-data` body; empty for any other type. Raises as `form` does.

        Of a body that the handler streams 1 MiB of files is kept in memory, and the others in a temporary file; OSError
        where there is no room for it. Whether they are streamed or not, they raise ContextExpired after the call.
        """
        return self.parsed_form()[1]

    cdef tuple parsed_form(self):
        """Fields and files, parsed at first use of either and kept to the end of the loan."""
        cdef bint streams
        with cython.critical_section(self):
            self.check()
            if self.form_args is not None:
                return self.form_args, self.form_files
            streams = self.conn.step == STREAMS and self.own_body is None and (
                self.streamed_body is None or self.form_fault is not None or self.stream_at != 0)
            replaced = self.own_body
        types = self.headers.getall("content-type")
        if len(types) > 1:
            # Whoever stands in front may have read the body by another of them.
            raise BadRequest("Content-Type stands more than once")
        content_type = types[0] if types else ""
        kind = content_type.partition(";")[0].strip(" \t").lower()
        if kind != MULTIPART and kind != URLENCODED:
            args, files = parse_args(b""), Files()
        elif streams:
            args, files = self.read_form(kind, content_type)
        elif kind == MULTIPART:
            try:
                pairs, files = parse_multipart(content_type, self.body)
            except ValueError as error:
                raise BadRequest(str(error)) from error
            args = Args(pairs)
        else:
            args, files = parse_args(self.body), Files()
        with cython.critical_section(self):
            if self.conn is not NULL:
                # Also where the time of the call is up: they end with it.
                self.keeps = self.has_form = True
                self.all_files = [files] if self.all_files is None else [*self.all_files, files]
            self.check()
            if self.own_body is not replaced:
                # Another body has taken its place meanwhile.
                return args, files
            if self.form_args is None:
                self.form_args, self.form_files = args, files
            return self.form_args, self.form_files

    cdef tuple read_form(self, str kind, str content_type):
        """As it arrives. What a fault leaves of a body is never read as another form."""
        must_be_own(self)
        if self.form_fault is not None:
            if not self.form_fault:
                raise RuntimeError("this form was not read to its end")
            raise BadRequest(*self.form_fault)
        if self.stream_at:
            raise RuntimeError("some of this form was read from body_stream before")
        self.keeps = self.has_form = True
        self.form_fault = ()
        try:
            if kind == MULTIPART:
                pairs, files = read_multipart(content_type, self.body_stream)
                found = Args(pairs), files
            else:
                found = parse_args(read_fields(self.body_stream)), Files()
        except (MissingExtra, ClientGone):
            # Nothing was read; or nothing more can be.
            self.form_fault = None
            raise
        except BadRequest as error:
            self.form_fault = (str(error), error.status)
            raise
        except ValueError as error:
            self.form_fault = (str(error), 400)
            raise BadRequest(str(error)) from error
        finally:
            self.stream_at = 0
        self.form_fault = None
        return found

    @property
    def cookies(self) -> dict[str, str]:
        """The cookies of the request (RFC 6265, section 5.4), read at first use; of one name the first counts."""
        cdef list sent
        cdef int i
        with cython.critical_section(self):
            self.check()
            if self.cookie_values is not None:
                return self.cookie_values
        sent = []
        with cython.critical_section(self):
            self.check()
            i = self.find("cookie", 0)
            while i >= 0:
                sent.append(self.span(self.head.fields[i].value))
                i = self.find("cookie", <uint32_t>i + 1)
        values = parse_cookies(sent)
        with cython.critical_section(self):
            self.check()
            if self.cookie_values is None:
                self.keeps = True
                self.cookie_values = values
            return self.cookie_values

    @property
    def user_agent(self) -> str:
        """The value of User-Agent (RFC 9110, section 10.1.5); "" without one."""
        return self.headers.get("user-agent", "")

    @property
    def referer(self) -> str:
        """The value of Referer (RFC 9110, section 10.1.3); "" without one."""
        return self.headers.get("referer", "")

    @property
    def if_modified_since(self) -> datetime | None:
        """The moment in If-Modified-Since (RFC 9110, section 13.1.3), in UTC; None without one that is a date."""
        dates = self.headers.getall("if-modified-since")
        return parse_date(dates[0]) if len(dates) == 1 else None

    def accepts(self, *types: str) -> str | None:
        """Which of these media types the client prefers by its Accept (RFC 9110, section 12.5.1), of equals the first;
        the first if it has none; None: it accepts none of them. ValueError: one of them is no media type."""
        return best_type(", ".join(self.headers.getall("accept")), types)

    def accepts_encoding(self, *codings: str) -> str | None:
        """Which of these content codings, such as `br` and `gzip`, the client prefers by its Accept-Encoding (RFC 9110,
        section 12.5.3), of equals the first; None: the reply had better not be encoded."""
        return best_encoding(", ".join(self.headers.getall("accept-encoding")), codings)

    @property
    def host(self) -> str:
        """The authority that the request is for (RFC 9110, section 7.2), as sent: of an absolute target, else of Host;
        "" if there is none, which only HTTP/1.0 may do."""
        with cython.critical_section(self):
            self.check()
            if self.head.authority.text.size:
                return self.text(self.head.authority.text)
            return self.text(self.head.host.text)

    @property
    def scheme(self) -> str:
        """`http`: the connection carries no TLS."""
        with cython.critical_section(self):
            self.check()
            return "http"

    @property
    def http_version(self) -> str:
        """`1.0` or `1.1` (RFC 9112, section 2.3)."""
        with cython.critical_section(self):
            self.check()
            return "1.1" if self.head.minor else "1.0"

    @property
    def remote_addr(self) -> tuple[str, int] | None:
        """Address and port of the peer; None on a unix socket. On a listener of proxies (`?proxy` in its bind) those
        that the PROXY header tells of the client, if it does."""
        cdef bytes address
        cdef int family, port
        with cython.critical_section(self):
            self.check()
            family = self.conn.peer.sin6_family
            if family != AF_INET and family != AF_INET6:
                return None
            # Both families keep the port in the same place, and IPv4 its address right behind it.
            port = ((<unsigned char*>&self.conn.peer)[2] << 8) | (<unsigned char*>&self.conn.peer)[3]
            if family == AF_INET:
                address = PyBytes_FromStringAndSize(<char*>&self.conn.peer + 4, 4)
            else:
                address = PyBytes_FromStringAndSize(<char*>&self.conn.peer.sin6_addr, 16)
        return _socket.inet_ntop(family, address), port

    @property
    def client_ip(self) -> str | None:
        """The address of the client: the peer's, or if that is one of `trusted_proxies` the rightmost address in
        `forwarded_field` that is not; where a word of it is no address, the last one that is certain. IPv4 within IPv6
        is IPv4. None: a unix socket, whose proxy is not trusted or says nothing. On a listener of proxies `remote_addr`
        is the peer; where the PROXY header told of a client and no address, no field is believed, because it is
        the client's."""
        cdef bint unsaid
        with cython.critical_section(self):
            self.check()
            unsaid = self.conn.unsaid
        peer = self.remote_addr
        address = None if peer is None else peer[0]
        if self.trust is None or unsaid:
            return address.removeprefix("::ffff:") if address is not None and "." in address else address
        return self.trust.client(address, self.headers.getall(self.trust.field))

    @property
    def local_addr(self) -> tuple[str, int] | str:
        """Address and port that the connection came to; the path of a unix socket, `@` first for a name that is no
        path. On a listener of proxies that is where the proxy reached this server: what the PROXY header tells of a
        destination is not kept. OSError: there is no descriptor left to look with."""
        cdef int fd
        with cython.critical_section(self):
            self.check()
            fd = c_fcntl(self.conn.fd, F_DUPFD_CLOEXEC, 0)
            if fd < 0:
                problem = errno
                raise OSError(problem, _os.strerror(problem))
        with _socket.socket(fileno=fd) as copy:
            name = copy.getsockname()
        return name[:2] if isinstance(name, tuple) else unix_name(name)

    @property
    def conn_id(self) -> int:
        """The number of the connection, unique in this server."""
        with cython.critical_section(self):
            self.check()
            return self.conn.id

    @property
    def conn_request_num(self) -> int:
        """The number of the request on its connection, from 1."""
        with cython.critical_section(self):
            self.check()
            return self.conn.requests

    @property
    def conn_time(self) -> float:
        """When the connection was accepted: seconds since 1970."""
        with cython.critical_section(self):
            self.check()
            return (wall_ns() - (now_ns() - self.conn.opened)) / 1e9

    @property
    def request_id(self) -> str:
        """Unique in this server: `conn_id` and `conn_request_num`, as the access log has it."""
        with cython.critical_section(self):
            self.check()
            return f"{self.conn.id}-{self.conn.requests}"

    @property
    def time(self) -> float:
        """When the request was there to be handled: seconds since 1970."""
        with cython.critical_section(self):
            self.check()
            return (wall_ns() - (now_ns() - self.conn.began)) / 1e9

    @property
    def done(self) -> Done:
        """Tells a long handler, or a thread that works for it, that it may stop."""
        cdef Done done
        with cython.critical_section(self):
            self.check()
        done = Done.__new__(Done)
        done.ctx = self
        return done

    # --- the reply

    @property
    def status(self) -> int:
        """The status code (RFC 9110, section 15), 200 at first. TypeError: no int; ValueError: not in 200..599."""
        with cython.critical_section(self):
            self.check()
            return self.reply.status

    @status.setter
    def status(self, code):
        if not isinstance(code, int):
            raise TypeError(f"status must be an int, not {type(code).__name__}")
        # The number itself, not what a subclass says of it.
        cdef object number = int.__index__(code)
        with cython.critical_section(self):
            self.check_open()
            if not (200 <= number <= 599 or number == 101 and self.hijacker is not None):
                raise ValueError(f"status must lie in 200..599, or be 101 of a hijacked connection, not {number}")
            self.reply.status = number

    @property
    def content_type(self) -> str:
        """The media type of the reply (RFC 9110, section 8.3); `text/plain; charset=utf-8` unless set. ValueError: not
        ASCII, empty, more than 1,024 characters."""
        with cython.critical_section(self):
            self.check()
            return self.type_object if self.reply.type_size else DEFAULT_TYPE

    @content_type.setter
    def content_type(self, value):
        value = as_text(value)
        with cython.critical_section(self):
            self.check_open()
            if value is not self.type_object:
                if len(value) > TYPE_MAX or len(value) == 0:
                    raise ValueError(f"a content type has 1 to {TYPE_MAX} characters, not {len(value)}")
                check_value("Content-Type", value)
                if not TEXT_IS_ASCII(value):
                    raise ValueError("a content type is ASCII")
                self.type_object = value
            self.reply.type = TEXT_DATA(value)
            self.reply.type_size = <uint32_t>len(value)

    def write(self, data: bytes | str) -> None:
        """Appends to the body: bytes, bytearray, memoryview, or a str as UTF-8. TypeError: anything else."""
        cdef const char* text
        cdef Py_ssize_t size
        if type(data) is str:
            text = PyUnicode_AsUTF8AndSize(data, &size)
        else:
            data = as_bytes(data)
            text = PyBytes_AS_STRING(data)
            size = PyBytes_GET_SIZE(data)
        with cython.critical_section(self):
            self.check_open()
            self.leave_file()
            if self.body_object is not None:
                buffer_put(&self.body_buffer, PyBytes_AS_STRING(self.body_object),
                           PyBytes_GET_SIZE(self.body_object), BUFFER_FIRST)
                self.body_object = None
            buffer_put(&self.body_buffer, text, size, BUFFER_FIRST)

    def set_body(self, data: bytes | str) -> None:
        """Replaces the body by what `write` takes. Large bytes are sent from the object, not copied."""
        data = as_bytes(data)
        with cython.critical_section(self):
            self.check_open()
            self.leave_file()
            self.body_buffer.size = 0
            self.body_object = None
            if PyBytes_GET_SIZE(data) >= WHOLE_FROM:
                self.body_object = data
            else:
                buffer_put(&self.body_buffer, PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data), BUFFER_FIRST)

    def set_header(self, name: str, value: str) -> None:
        """Sets a field, in place of any of that name. ValueError for a name or value that RFC 9110,
        section 5.5 does not allow, for what belongs to the server (Content-Length and the like), and
        when all fields together pass 7 KiB."""
        with cython.critical_section(self):
            self.check_open()
            name, value = as_text(name), as_text(value)
            lower = check_name(name)
            if not self.special(lower, value):
                check_value(name, value)
                self.remove(lower)
                self.append(lower, name, value)

    def add_header(self, name: str, value: str) -> None:
        """Adds a field beside others of its name (Set-Cookie, Link, Vary ...). ValueError as set_header."""
        with cython.critical_section(self):
            self.check_open()
            name, value = as_text(name), as_text(value)
            lower = check_name(name)
            if not self.special(lower, value):
                check_value(name, value)
                self.append(lower, name, value)

    def del_header(self, name: str) -> None:
        """The reply has no field of that name, neither one that was set nor, of Date, Server, Content-Type
        and Content-Length, the one that it would have by default. Without Content-Length the end of the
        connection is the end of the body."""
        with cython.critical_section(self):
            self.check_open()
            lower = check_name(as_text(name))
            if lower == "content-type":
                self.reply.type_size = 0
                self.reply.set |= OWN_TYPE
            elif lower == "content-length":
                self.reply.set |= NO_LENGTH
            elif lower == "connection":
                self.reply.close = False
            else:
                self.remove(lower)
                if lower == "date":
                    self.reply.set |= OWN_DATE
                elif lower == "server":
                    self.reply.set |= OWN_SERVER

    @property
    def response_started(self) -> bool:
        """Has the head of the reply been sent, by `stream`?"""
        with cython.critical_section(self):
            self.check()
            return self.desk.streamed

    @property
    def response_body(self) -> bytes:
        """The body that was written so far; of a file or a streamed reply nothing."""
        with cython.critical_section(self):
            self.check()
            if self.file != NO_FILE:
                return b""
            if self.body_object is not None:
                return self.body_object
            return PyBytes_FromStringAndSize(self.body_buffer.data, self.body_buffer.size)

    @property
    def response_headers(self) -> list[tuple[str, str]]:
        """The fields that the handler has set so far, in order; a snapshot."""
        with cython.critical_section(self):
            self.check()
            lines = PyBytes_FromStringAndSize(self.fields.data, self.fields.size)
            pairs = [("Content-Type", self.type_object)] if self.reply.type_size else []
            if self.reply.close:
                pairs.append(("Connection", "close"))
        for line in lines.splitlines():
            name, _, value = line.decode("latin-1").partition(": ")
            pairs.append((name, value))
        return pairs

    def error(self, message: str, status: int = 500) -> None:
        """Starts the reply anew: `status`, 200 to 599 (ValueError), and `message` as plain text."""
        with cython.critical_section(self):
            self.check_open()
            self.clear()
        self.status = status
        self.content_type = DEFAULT_TYPE
        self.write(message)

    def not_found(self) -> None:
        """Starts the reply anew: 404."""
        self.error("404 Page not found", 404)

    def not_modified(self) -> None:
        """304 (RFC 9110, section 15.4.5): fields that were set stay, those of a file too; the body goes."""
        with cython.critical_section(self):
            self.check_open()
            self.drop_file()
            self.body_buffer.size = 0
            self.body_object = None
            self.reply.status = 304

    def write_json(self, value: object) -> None:
        """Replaces the body by `value` as JSON in compact UTF-8, written by orjson where that is installed and else by
        the standard library; the media type becomes `application/json`. TypeError or ValueError: there is no JSON for
        it. (orjson knows more types, such as dates and dataclasses.)"""
        self.set_body(write_json(value))
        self.content_type = "application/json"

    def set_cookie(self, name: str, value: str, *, max_age: int | None = None, expires: datetime | float | None = None,
                   path: str | None = "/", domain: str | None = None, secure: bool = False, http_only: bool = False,
                   same_site: str | None = "Lax", partitioned: bool = False) -> None:
        """Adds a Set-Cookie field (RFC 6265), in place of one for the same name, domain and path, each site's own
        (`partitioned`) or not.

        `max_age` is in seconds, 0 or less ends the cookie; `expires` is an aware datetime or seconds since 1970;
        without both it ends with the browser's session. `same_site` is `Strict`, `Lax`, `None` (with `secure`) or
        None, to leave it to the browser. ValueError: a name, value or attribute that the field cannot hold (encode it
        first), or a cookie that browsers drop.
        """
        self.put_cookie(format_cookie(
            name, value, max_age=max_age, expires=expires, path=path, domain=domain, secure=secure,
            http_only=http_only, same_site=same_site, partitioned=partitioned))

    def delete_cookie(self, name: str, *, path: str | None = "/", domain: str | None = None, secure: bool = False,
                      http_only: bool = False, same_site: str | None = "Lax", partitioned: bool = False) -> None:
        """Tells the client to forget a cookie: name, path, domain and `partitioned` are those that it was set with.
        ValueError as `set_cookie`."""
        self.put_cookie(format_cookie(
            name, "", max_age=0, expires=0, path=path, domain=domain, secure=secure, http_only=http_only,
            same_site=same_site, partitioned=partitioned))

    cdef int put_cookie(self, str cookie) except -1:
        cdef bytes lines, kept
        with cython.critical_section(self):
            self.check_open()
            lines = PyBytes_FromStringAndSize(self.fields.data, self.fields.size)
            if b"Set-Cookie: " in lines:
                key = cookie_key(cookie)
                kept = b"".join([line for line in lines.splitlines(True) if not (
                    line.startswith(b"Set-Cookie: ") and cookie_key(line[12:].decode("latin-1").rstrip()) == key)])
                self.check_open()
                self.fields.size = 0
                buffer_put(&self.fields, PyBytes_AS_STRING(kept), len(kept), FIELDS_FIRST)
            self.append("set-cookie", "Set-Cookie", cookie)
        return 0

    def set_body_file(self, fd: int, start: int, size: int) -> None:
        """Replaces the body by `size` bytes of an open file, from `start` on, which leave by sendfile without the GIL.
        The descriptor is the server's from here on, and closed by it, also where this raises, but for TypeError.
        ValueError, OverflowError: there is no such part; OSError the same of a part of up to 16 KiB, which is read at
        once. A file that is too short for a larger one, or becomes so, breaks the connection off."""
        cdef int descriptor = fd
        cdef int problem
        cdef int64_t at, whole, got = 0
        cdef ssize_t n = 1
        cdef char small[FILE_READ]
        try:
            at, whole = start, size
            if at < 0 or whole < 0:
                raise ValueError(f"no part of a file: {start}, {size}")
            self.set_body(b"")
            if whole <= FILE_READ:
                # One message with its head, in one batch with others.
                with nogil:
                    while got < whole and n > 0:
                        n = c_pread(descriptor, small + got, <size_t>(whole - got), at + got)
                        got += n if n > 0 else 0
                    problem = errno
                if n < 0:
                    raise OSError(problem, _os.strerror(problem))
                if got < whole:
                    raise OSError(_errno.ESTALE, "the file has become shorter")
                with cython.critical_section(self):
                    self.check_open()
                    buffer_put(&self.body_buffer, small, <size_t>got, BUFFER_FIRST)
                    self.file = COPIED
                return
            with cython.critical_section(self):
                self.check_open()
                self.file, self.file_at, self.file_size = descriptor, at, whole
                descriptor = -1
        finally:
            if descriptor >= 0:
                c_close(descriptor)

    def send_file(self, file: str | PathLike | int, content_type: str = "") -> None:
        """The file is the reply: sent by sendfile without the GIL, and not looked at by Python.

        `file` is a path, or a descriptor, which stays the caller's. The media type is `content_type`, or that of the
        path's suffix, else `application/octet-stream`. Last-Modified, Accept-Ranges and an ETag made of size and time
        are set unless they were. For GET and HEAD, while `status` is 200, conditions are answered with 304 or 412
        (RFC 9110, section 13) and Range with 206 or 416 (section 14); 412 and 416 start the reply anew. Several ranges
        of more than 1 MiB together, or of a file with a Content-Encoding, are answered with the whole. Another body
        takes back what came with this one, but for 412 and 416.

        OSError: it cannot be opened; IsADirectoryError; PermissionError also for what is no regular file.
        """
        cdef Opened opened
        cdef bytes path
        if isinstance(file, int):
            with cython.critical_section(self):
                self.check_open()
            opened.fd = c_fcntl(file, F_DUPFD_CLOEXEC, 0)
            if opened.fd < 0:
                opened.fd = -errno
            else:
                file_look(&opened)
            send_opened(self, opened_of(&opened, None), content_type or type_of(""))
        else:
            path = path_of(file)
            with cython.critical_section(self):
                self.check_open()
            file_start(&opened, path)
            send_opened(self, opened_of(&opened, file), content_type or type_of(_os.fsdecode(path)))

    cdef bint has_conditions(self) except -1:
        """Is there anything to weigh before a file is sent whole, of the request's fields or of the reply's?"""
        cdef Span name
        cdef const char* text
        cdef uint32_t i
        with cython.critical_section(self):
            self.check_open()
            if self.fields.size or self.reply.status != 200:
                return True
            for i in range(self.head.n_fields):
                name = self.head.fields[i].name
                text = self.base + name.at
                if name.size >= 5 and (scan_same_text(text, b"if-", 3)
                                       or name.size == 5 and scan_same_text(text, b"range", 5)):
                    return True
        return False

    def redirect(self, location: str, status: int = 302) -> None:
        """301, 302, 303, 307 or 308 (ValueError) to `location`, in which characters that no URI may have are
        percent-encoded; fields that were set stay, the body goes. A relative location stays so (RFC 9110,
        section 10.2.2)."""
        if status not in REDIRECTS:
            raise ValueError(f"a redirect is 301, 302, 303, 307 or 308, not {status}")
        self.set_header("Location", _quote(location, safe="!#$%&'()*+,/:;=?@[]~"))
        self.set_body(b"")
        self.status = status

    def stream(self, source, length=None) -> None:
        """Sends the reply now, its body as `source` makes it, and returns at the end of it.

        `source` is an iterable of bytes or str, each of which is sent as it comes, or a function that is
        called with a `ReplyStream` to write to. The body is chunked for HTTP/1.1 and ends with the
        connection for HTTP/1.0; with a `length` in bytes it has a Content-Length instead, and must be so long
        (ValueError). RuntimeError in another thread than the handler's, and for a reply that has been streamed.
        In answer to HEAD, and with a status that has no body, `source` is not run.

        The worker gives the event loop up first and blocks without the GIL, within `write_timeout` and
        `min_write_rate`. When the client goes away, ClientGone is raised: at the `yield` of a generator,
        in `ReplyStream.write`, and out of this call. When `source` fails, the connection is reset, so that
        the client does not take what it has for the whole, and the exception passes through here.
        """
        must_be_own(self)
        self.check_open()
        stream_reply(self, source, length)

    # --- control

    cdef int check_call(self) except -1:
        """The thread of the handler asks, and nobody has answered."""
        self.check_open()
        if self.loan != LENT_CALL:
            raise RuntimeError("that is for a handler, not for a hook")
        if self.detached or self.desk.mate.tid != thread_id():
            raise RuntimeError("that is for the thread that the handler was called in, before it detaches its ctx")
        return 0

    def detach(self) -> None:
        """The reply comes later: behind the handler this ctx lives on, for any thread, until `complete`.

        Meanwhile the connection has no worker, and counts as one with a handler; `handler_timeout` runs on. What was
        to be read from `body_stream` was read before, and `stream` and `early_hints` are no longer there. A ctx that
        nobody refers to any more and that was not completed is answered with 500, and the log says so.
        """
        cdef Desk* later
        with cython.critical_section(self):
            self.check_call()
            if self.hijacker is not None:
                raise RuntimeError("a connection that is hijacked is not answered later")
            later = desk_apart(self.desk)
            if later is NULL:
                raise MemoryError
            later.reply = &self.reply
            self.desk = later
            self.detached = True

    def complete(self, error: BaseException | None = None) -> None:
        """The reply to a detached ctx is ready: it is sent, and the ctx expires. From any thread; waits for nobody.

        With an `error` it is answered as if the handler had raised that: BadRequest by its status, everything else by
        500 and with a line in the log. Where the client is gone, or was told 504, nothing is sent. ContextExpired: it
        was completed before.
        """
        with cython.critical_section(self):
            self.check_detached()
        if error is not None:
            fail(self, error)
        with cython.critical_section(self):
            self.check_detached()
            self.answer_now()

    cdef int check_detached(self) except -1:
        if self.conn is NULL:
            self.expired()
        if not self.detached:
            raise RuntimeError("this ctx was not detached: the end of its handler completes it")
        return 0

    cdef void answer_now(self) noexcept:
        """In the critical section of a detached ctx that nobody has answered. No Python runs before it has expired."""
        cdef Desk* later = self.desk
        self.hand(self.conn, &later.handed)
        # Now: before a section within a section is entered, others may have their turn.
        self.conn = NULL
        later.over = now_ns()
        self.end()
        if swap_u32(&later.parted, True):
            finish_later(later)

    cdef void answer_if_open(self) noexcept:
        with cython.critical_section(self):
            if self.conn is not NULL:
                self.answer_now()

    cdef void forgotten(self) noexcept:
        """Nobody refers to a detached ctx, its worker neither: it has gone on."""
        cdef Desk* later = self.desk
        if not later.house.forked:
            note(later.house, NOTE_FORGOTTEN, 0)
        memset(&self.reply, 0, sizeof(Reply))
        self.reply.status = 500
        self.reply.set = later.house.leave
        self.reply.body = b"Internal Server Error"
        self.reply.body_size = 21
        later.over = now_ns()
        self.conn = NULL
        if self.has_form:
            self.end_form()
        finish_later(later)

    def hijack(self, function, respond: bool = True) -> None:
        """Behind the handler and its reply the connection is `function`'s, which is called as `function(socket, data)`
        on a thread of its own, in the context of the server's start: the socket is blocking and closed behind it,
        `data` (bytes) is what had come behind the request. Without `respond` no reply is sent.

        The connection counts in `concurrency` until `function` returns, and has no deadline of the server's. When the
        server stops, `recv` finds the end of what has come, so that `function` can say goodbye; `shutdown` waits for it
        as for a handler. The status may be 101, which says `Connection: Upgrade`, and the field Upgrade may be set.
        What `function` raises is logged, but for ConnectionError.

        TypeError: it cannot be called. RuntimeError: the body of the request was not read to its end. `error` takes
        all of it back, and so does an exception.
        """
        with cython.critical_section(self):
            self.check_call()
            if not callable(function):
                raise TypeError(f"a connection is taken over by a function, not by {type(function).__name__}")
            if self.conn.step == STREAMS and (
                    self.conn.chunked.state != AFTER_BODY if self.head.chunked else self.conn.body_left != 0):
                raise RuntimeError("the body of a request is read before its connection is hijacked")
            self.hijacker = function
            self.responds = bool(respond)

    def timeout_error(self, message: str = "", status: int = 504) -> None:
        """Answers at once, with `status` and `message` (or its reason phrase) as plain text, and ends the connection;
        the handler goes on without a client, and the ctx expires. ClientGone: there is none already. ValueError: the
        status is not 400 to 599."""
        cdef Desk* d
        cdef Conn* c
        cdef int verdict = GONE
        cdef int number = status
        cdef bytes words
        if not 400 <= number <= 599:
            raise ValueError(f"the status of an error lies in 400..599, not {number}")
        words = as_bytes(message or phrase_of(number))
        with cython.critical_section(self):
            self.check_call()
            d, c = self.desk, self.conn
            if c.aborted:
                raise ClientGone("the client went away before")
            self.clear()
            buffer_put(&self.body_buffer, PyBytes_AS_STRING(words), PyBytes_GET_SIZE(words), BUFFER_FIRST)
            self.type_object = DEFAULT_TYPE
            self.reply.type = TEXT_DATA(DEFAULT_TYPE)
            self.reply.type_size = <uint32_t>len(DEFAULT_TYPE)
            self.reply.status = number
            self.reply.close = True
            self.hand(c, &d.handed)
            # From here on nobody changes what is sent.
            self.conn = NULL
        with nogil:
            go_alone(d)
            if cas_u8(&c.claim, UNCLAIMED, ANSWERED):
                d.streamed = d.ended = True
                scribe_date(&d.scribe, wall_seconds())
                commit(d.house, c, &self.reply, &d.scribe, &d.handed)
                verdict = send_all(d.house, c)
                if verdict == DONE:
                    net_end(c.fd)
        self.end()
        if not d.streamed:
            give_handed(d.house, &d.handed)
            raise ContextExpired("this call has taken too long: its client has been told")
        if verdict != DONE:
            c.aborted = c.closing = True
            raise ClientGone("the client went away, or reads too slowly")

    def add_trailer(self, name: str, value: str) -> None:
        """A field behind the body of a chunked reply (RFC 9110, section 6.5), until the end of `stream`;
        what is added before that is announced in Trailer. A reply that is not chunked drops it. ValueError
        as `add_header`, and for fields that nobody may believe there."""
        cdef bytes line
        with cython.critical_section(self):
            self.check()
            if self.desk.streamed:
                must_be_own(self)
            name, value = as_text(name), as_text(value)
            lower = check_name(name)
            check_value(name, value)
            if unfit_trailer(lower.encode("ascii"), <uint32_t>len(lower)) or lower in NO_TRAILERS:
                raise ValueError(f"{lower} must not stand in a trailer section")
            line = f"{name}: {value}\r\n".encode("latin-1")
            if self.trailer_fields.size + len(line) > TRAILER_MAX:
                raise ValueError(f"the trailers of a reply are limited to {TRAILER_MAX} bytes")
            self.check()
            if self.desk.streamed:
                must_be_own(self)
            buffer_put(&self.trailer_fields, PyBytes_AS_STRING(line), len(line), FIELDS_FIRST)

    cdef void say_when_again(self) noexcept:
        """A 503 that the error handler has worded says so as the server's own does, unless it says otherwise."""
        cdef bytes lines
        with cython.critical_section(self):
            if self.reply.status != 503 or self.desk.streamed:
                return
            lines = PyBytes_FromStringAndSize(self.fields.data, self.fields.size).lower()
            if b"\nretry-after:" not in b"\n" + lines:
                try:
                    self.append("retry-after", "Retry-After", str(RETRY_AFTER))
                except (ValueError, ContextExpired):
                    # There is no room left, or nobody to tell.
                    pass

    cdef int announce_trailers(self) except -1:
        if self.trailer_fields.size:
            lines = PyBytes_FromStringAndSize(self.trailer_fields.data, self.trailer_fields.size).splitlines()
            names = ", ".join(dict.fromkeys([line.decode("latin-1").partition(":")[0] for line in lines]))
            self.append("trailer", "Trailer", names)
        return 0

    def early_hints(self, *links: str) -> None:
        """Sends 103 (RFC 8297) now, with a Link field for each of `links`; nothing for HTTP/1.0, whose
        clients know no interim reply. The final reply is not touched. ClientGone, ValueError."""
        cdef bytes raw
        cdef Desk* d = self.desk
        cdef Conn* c = self.conn
        cdef const char* text
        cdef size_t size
        cdef int verdict
        must_be_own(self)
        self.check_open()
        for link in links:
            check_value("Link", link)
        if c.aborted:
            raise ClientGone("the client went away before")
        if c.input.head.minor == 0 or not links:
            return
        raw = "".join([f"Link: {link}\r\n" for link in links]).encode("latin-1")
        if len(raw) > RESPONSE_HEAD_MAX:
            raise ValueError(f"early hints are limited to {RESPONSE_HEAD_MAX} bytes")
        text, size = PyBytes_AS_STRING(raw), <size_t>len(raw)
        with nogil:
            go_alone(d)
            verdict = GONE
            if speak(d):
                c.output.end = <uint32_t>(put_interim(c.output.data + c.output.end, 103, text, size) - c.output.data)
                verdict = send_all(d.house, c)
                c.owes = c.owes or verdict != DONE
                spoke(d)
        self.check()
        if verdict != DONE:
            c.aborted = c.closing = True
            raise ClientGone("the client went away, or reads too slowly")

    cdef bint special(self, str lower, str value) except -1:
        """Fields that are not kept as lines. True: seen to."""
        if lower == "content-type":
            self.content_type = value
            return True
        if lower == "connection":
            if value.strip().lower() != "close":
                raise ValueError("of Connection only close can be set: the rest is the server's")
            self.reply.close = True
            return True
        if lower in OURS and not (lower == "upgrade" and self.hijacker is not None):
            raise ValueError(f"{lower} belongs to the server")
        return False

    cdef int append(self, str lower, str name, str value) except -1:
        cdef bytes line = f"{name}: {value}\r\n".encode("latin-1")
        self.check_room(len(line))
        self.check_open()
        buffer_put(&self.fields, PyBytes_AS_STRING(line), len(line), FIELDS_FIRST)
        if lower == "date":
            self.reply.set |= OWN_DATE
        elif lower == "server":
            self.reply.set |= OWN_SERVER
        return 0

    cdef int remove(self, str lower) except -1:
        cdef bytes lines, kept
        if self.fields.size == 0:
            return 0
        if lower == "date":
            self.reply.set &= <uint8_t>~OWN_DATE
        elif lower == "server":
            self.reply.set &= <uint8_t>~OWN_SERVER
        start = lower.encode("ascii") + b":"
        lines = PyBytes_FromStringAndSize(self.fields.data, self.fields.size)
        kept = b"".join([line for line in lines.splitlines(True) if not line.lower().startswith(start)])
        self.check_open()
        self.fields.size = 0
        return buffer_put(&self.fields, PyBytes_AS_STRING(kept), len(kept), FIELDS_FIRST)


def unix_name(name: str | bytes) -> str:
    """What getsockname(2) says of a unix socket, as `ss` and systemd write it."""
    return name if isinstance(name, str) else _os.fsdecode(name).replace("\0", "@", 1)


def is_detached(RequestCtx ctx not None) -> bool:
    """Will the reply come later? Never expires, because it is asked when the handler has returned."""
    return ctx.detached


cdef bytes as_bytes(object data):
    if type(data) is bytes:
        return <bytes>data
    if isinstance(data, str):
        return (<str>data).encode()
    if isinstance(data, (bytes, bytearray, memoryview)):
        return bytes(data)
    raise TypeError(f"a body is bytes or str, not {type(data).__name__}")


cdef str as_text(object text):
    """Also of a subclass, such as a StrEnum, which may say what it likes of itself: the str."""
    if type(text) is str:
        return text
    if isinstance(text, str):
        return str.__str__(text)
    raise TypeError(f"expected str, not {type(text).__name__}")


cdef str check_name(str name):
    cdef bytes raw = name.encode("latin-1", "replace")
    cdef uint32_t size = <uint32_t>len(raw)
    if size == 0 or size > 256 or scan_token(raw, 0, size) != size:
        raise ValueError(f"not a field name: {name[:80]!r}")
    return name.lower()


cdef int check_value(str name, str value) except -1:
    cdef bytes raw
    try:
        raw = value.encode("latin-1")
    except UnicodeEncodeError:
        raise ValueError(f"the value of {name} has characters beyond latin-1") from None
    cdef uint32_t size = <uint32_t>len(raw)
    if scan_value(raw, 0, size) != size or value != value.strip(" \t"):
        raise ValueError(f"not a field value for {name}: {value[:80]!r}")
    return 0


cdef str decode_path(const char* raw, uint32_t size):
    cdef char small[512]
    cdef char* out = small
    cdef uint32_t i = 0, n = 0
    cdef int high, low
    cdef bytes large
    cdef bint plain = True
    for i in range(size):
        if raw[i] == c'%':
            plain = False
            break
    if plain:
        return PyUnicode_DecodeASCII(raw, size, NULL)
    if size > sizeof(small):
        large = PyBytes_FromStringAndSize(NULL, size)
        out = PyBytes_AS_STRING(large)
    i = 0
    while i < size:
        if raw[i] == c'%' and i + 2 < size:
            high, low = hex_digit(raw[i + 1]), hex_digit(raw[i + 2])
            if high >= 0 and low >= 0:
                out[n] = <char>(high << 4 | low)
                n += 1
                i += 3
                continue
        # A percent sign without two digits stands for itself.
        out[n] = raw[i]
        n += 1
        i += 1
    return PyUnicode_DecodeUTF8(out, n, "replace")


cdef inline int hex_digit(char c) noexcept nogil:
    if c'0' <= c <= c'9':
        return c - c'0'
    if c'a' <= c <= c'f':
        return c - c'a' + 10
    if c'A' <= c <= c'F':
        return c - c'A' + 10
    return -1
