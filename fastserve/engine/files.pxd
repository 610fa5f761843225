"""Files that are sent: opened, looked at, read in small.

Knows: openat2 and what it falls back to, fstat, pread. Never sees: HTTP, a socket, a ctx. Invariant: what is opened is
a regular file, never waited for, and below a root also where a name leads through symbolic links.
"""

from libc.errno cimport EAGAIN, EINTR, EISDIR, ENOSYS, EPERM, errno
from libc.stdint cimport int64_t

from fastserve.engine.net cimport c_close


cdef extern from "<fcntl.h>" nogil:
    int O_RDONLY, O_CLOEXEC, O_NONBLOCK, O_NOCTTY, O_NOFOLLOW, O_DIRECTORY, O_PATH
    int AT_FDCWD
    int c_openat "openat"(int at, const char* path, int flags) noexcept

cdef extern from "<sys/stat.h>" nogil:
    struct timespec_ "timespec":
        int64_t tv_sec
        long tv_nsec
    struct c_stat "stat":
        unsigned int st_mode
        int64_t st_size
        timespec_ st_mtim
    int c_fstat "fstat"(int fd, c_stat* to) noexcept
    bint S_ISREG(unsigned int mode) noexcept
    bint S_ISDIR(unsigned int mode) noexcept

cdef extern from "<unistd.h>" nogil:
    ssize_t c_pread "pread"(int fd, void* to, size_t size, int64_t at) noexcept

cdef extern from "files.h" nogil:
    int openat2_beneath(int root, const char* path, int flags) noexcept


cdef enum:
    OPEN_TRIES = 100        # while others rename what lies on the way


cdef struct Opened:
    int fd                  # negative: the errno, negated
    int64_t size
    int64_t changed         # nanoseconds since 1970


cdef inline void file_look(Opened* o) noexcept nogil:
    """What is open is looked at; closed again, EISDIR or EPERM, if it is no regular file."""
    cdef c_stat s
    cdef int problem = 0
    if c_fstat(o.fd, &s):
        problem = errno
    elif not S_ISREG(s.st_mode):
        problem = EISDIR if S_ISDIR(s.st_mode) else EPERM
    if problem:
        c_close(o.fd)
        o.fd = -problem
        return
    o.size = s.st_size
    o.changed = s.st_mtim.tv_sec * 1_000_000_000 + s.st_mtim.tv_nsec


cdef inline void file_open(Opened* o, const char* path) noexcept nogil:
    o.fd = c_openat(AT_FDCWD, path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY)
    if o.fd < 0:
        o.fd = -errno
    else:
        file_look(o)


cdef inline void file_open_beneath(Opened* o, int root, char* path) noexcept nogil:
    """`path` is relative and has no dot segments. A kernel before 5.6 cannot say where a symbolic link leads: there,
    none is followed (ELOOP; ENOTDIR where more stands behind it)."""
    cdef int flags = O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY
    cdef int _
    for _ in range(OPEN_TRIES):
        o.fd = openat2_beneath(root, path, flags)
        # EAGAIN: something was renamed meanwhile, and the kernel could not be sure.
        if o.fd >= 0 or not (errno == EINTR or errno == EAGAIN):
            break
    if o.fd >= 0:
        file_look(o)
    elif errno == ENOSYS or errno == EPERM:
        # A sandbox may forbid what it does not know.
        file_walk(o, root, path)
    else:
        o.fd = -errno


cdef inline void file_walk(Opened* o, int root, char* path) noexcept nogil:
    """One directory after the other."""
    cdef int at = root
    cdef int further
    cdef char* start = path
    cdef char* end
    while True:
        end = start
        while end[0] and end[0] != c'/':
            end += 1
        if end[0] == 0:
            break
        end[0] = 0
        # Directories that may be passed through and not be read are, by openat2 too.
        further = c_openat(at, start, O_PATH | O_CLOEXEC | O_NOFOLLOW | O_DIRECTORY)
        end[0] = c'/'
        o.fd = -errno if further < 0 else 0
        if at != root:
            c_close(at)
        if further < 0:
            return
        at = further
        start = end + 1
    o.fd = c_openat(at, start, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY | O_NOFOLLOW)
    if o.fd < 0:
        o.fd = -errno
    if at != root:
        c_close(at)
    if o.fd >= 0:
        file_look(o)
