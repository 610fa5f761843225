# Files: from a name to an open descriptor, and from that to a reply.
#
# Knows: names of files, and what of a file goes into a reply: its fields, and the ranges and conditions that decide how
# much of it. Never sees: the system calls that open and send it (engine/files.pxd, engine/net.pxd), a connection.
# Invariant: a descriptor has one owner: who opened it, until `send_opened`, which hands it to the ctx or closes it,
# whatever happens.

from fastserve.engine.files cimport file_open, file_open_beneath
from fastserve.sending import file_fields, join_parts, recent_file_fields, weigh_file


cdef bytes path_of(object file):
    cdef bytes path = _os.fsencode(file)
    if b"\0" in path:
        raise FileNotFoundError(_errno.ENOENT, "a path has no NUL", file)
    return path


cdef void file_start(Opened* opened, bytes path) noexcept:
    cdef const char* text = PyBytes_AS_STRING(path)
    with nogil:
        file_open(opened, text)


cdef tuple opened_of(Opened* opened, object name):
    """Descriptor, size, nanoseconds of its last change; OSError."""
    if opened.fd < 0:
        raise OSError(-opened.fd, _os.strerror(-opened.fd), name)
    return opened.fd, opened.size, opened.changed


def open_beneath(int root, object name) -> tuple[int, int, int]:
    """Opens a regular file below an open directory, wherever links lead: descriptor, size, nanoseconds of its last
    change. `name` is relative, has no dot segments, and is UTF-8 there whatever the locale. OSError."""
    cdef bytearray path = bytearray(path_of(name.encode()))     # written to, where directories are opened one by one
    cdef char* text = path
    cdef Opened opened
    with nogil:
        file_open_beneath(&opened, root, text)
    return opened_of(&opened, name)


def send_opened(RequestCtx ctx not None, tuple opened not None, str content_type not None) -> None:
    """Replies with an open file, whose descriptor is the server's from here on: descriptor, size, nanoseconds of its
    last change."""
    cdef bytes lines
    cdef int status = 0
    fd, size, changed = opened
    parts = None
    try:
        with cython.critical_section(ctx):
            ctx.check_open()
            ctx.leave_file()
        if ctx.has_conditions():
            status, lines, parts = weigh_file(ctx, size, changed)
        elif changed < wall_seconds() * SECOND:
            lines = file_fields(size, changed)
        else:
            lines = recent_file_fields(size, changed)
        if status == 412 or status == 416:
            ctx.error(phrase_of(status), status)
            with cython.critical_section(ctx):
                ctx.check_open()
                buffer_put(&ctx.fields, PyBytes_AS_STRING(lines), PyBytes_GET_SIZE(lines), FIELDS_FIRST)
            return
        # Whatever can fail does before there is half a reply.
        with cython.critical_section(ctx):
            ctx.check_open()
            ctx.check_room(len(lines))
        ctx.content_type = content_type
        if parts is None or len(parts) == 1:
            start, stop = parts[0] if parts else (0, size)
            mine, fd = fd, -1
            ctx.set_body_file(mine, start, stop - start)
        elif parts:
            ctx.content_type, body = join_parts(fd, size, content_type, parts)
            ctx.set_body(body)
        else:
            ctx.set_body(b"")
        ctx.bring(lines, status)
    finally:
        if fd >= 0:
            c_close(fd)
