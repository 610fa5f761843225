"""Sockets in four verbs with one contract: a count (or a descriptor), AGAIN, or GONE.

Knows: accept4, recv, sendmsg, sendfile, shutdown, close on non-blocking descriptors. Never sees: HTTP.
Invariant: AGAIN means nothing happened and the descriptor will be reported ready; GONE means this
direction is finished for good, by the peer's end or by an error; EINTR never shows.
"""

from libc.errno cimport (
    EAGAIN, EBADF, EINTR, EINVAL, EMFILE, ENFILE, ENOBUFS, ENOMEM, ENOTSOCK, errno,
)
from libc.stdint cimport int64_t, uint16_t, uint32_t
from libc.string cimport memset

from fastserve.engine.poll cimport poll_remove


cdef extern from "<sys/socket.h>" nogil:
    ctypedef unsigned int socklen_t
    struct sockaddr:
        unsigned short sa_family
    struct iovec:
        void* iov_base
        size_t iov_len
    struct msghdr:
        iovec* msg_iov
        size_t msg_iovlen
    int AF_UNSPEC, AF_INET, AF_INET6, AF_UNIX
    int SOCK_NONBLOCK, SOCK_CLOEXEC, MSG_NOSIGNAL, MSG_DONTWAIT, MSG_MORE, SHUT_RD, SHUT_RDWR, SHUT_WR
    int IPPROTO_TCP, SOL_SOCKET, SO_LINGER
    struct c_linger "linger":
        int l_onoff
        int l_linger
    int accept4(int fd, sockaddr* addr, socklen_t* size, int flags) noexcept
    ssize_t c_recv "recv"(int fd, void* data, size_t size, int flags) noexcept
    ssize_t c_sendmsg "sendmsg"(int fd, const msghdr* message, int flags) noexcept
    ssize_t c_send "send"(int fd, const void* data, size_t size, int flags) noexcept
    int c_connect "connect"(int fd, const sockaddr* address, socklen_t size) noexcept
    int c_shutdown "shutdown"(int fd, int how) noexcept
    int setsockopt(int fd, int level, int name, const void* value, socklen_t size) noexcept

cdef extern from "<sys/sendfile.h>" nogil:
    ctypedef int64_t off_t
    ssize_t c_sendfile "sendfile"(int out, int file, off_t* at, size_t size) noexcept

cdef extern from "<sys/ioctl.h>" nogil:
    int c_ioctl "ioctl"(int fd, unsigned long request, int* to) noexcept

cdef extern from "<linux/sockios.h>" nogil:
    unsigned long SIOCOUTQ

cdef extern from "<poll.h>" nogil:
    struct pollfd:
        int fd
        short events
    short POLLIN, POLLOUT
    int c_poll "poll"(pollfd* fds, unsigned long n, int timeout) noexcept

cdef extern from "<netinet/tcp.h>" nogil:
    int TCP_NODELAY

cdef extern from "<netinet/in.h>" nogil:
    struct in6_addr:
        unsigned char s6_addr[16]
    struct sockaddr_in6:
        unsigned short sin6_family
        uint16_t sin6_port
        in6_addr sin6_addr
        uint32_t sin6_scope_id

cdef extern from "<unistd.h>" nogil:
    int c_close "close"(int fd) noexcept
    ssize_t c_write "write"(int fd, const void* data, size_t size) noexcept

cdef extern from "<limits.h>" nogil:
    int PIPE_BUF

cdef extern from "<fcntl.h>" nogil:
    int O_RDONLY, O_WRONLY, O_APPEND, O_CREAT, O_NONBLOCK, O_NOCTTY, O_CLOEXEC
    int c_open "open"(const char* path, int flags) noexcept
    int c_open_mode "open"(const char* path, int flags, unsigned int mode) noexcept


cdef enum:
    AGAIN = -1
    GONE = -2
    SHORT = -3              # accept only: descriptors or kernel memory ran out
    DEAD = -4               # accept only: the listener is none any more


cdef inline int net_accept(int listener, sockaddr_in6* peer) noexcept nogil:
    """A connected descriptor, non-blocking and close-on-exec, or AGAIN, GONE (this connection died
    in the queue: try the next), SHORT, DEAD. `peer` has room for both IP families."""
    cdef socklen_t size = sizeof(sockaddr_in6)
    cdef int fd = accept4(listener, <sockaddr*>peer, &size, SOCK_NONBLOCK | SOCK_CLOEXEC)
    if fd >= 0:
        return fd
    if errno == EAGAIN:
        return AGAIN
    if errno == EMFILE or errno == ENFILE or errno == ENOBUFS or errno == ENOMEM:
        return SHORT
    if errno == EINVAL or errno == EBADF or errno == ENOTSOCK:
        return DEAD
    return GONE


cdef inline int net_spare() noexcept nogil:
    """A descriptor that stands for nothing, to be closed when one is needed; negative: there is none."""
    return c_open(b"/dev/null", O_RDONLY | O_CLOEXEC)


cdef inline int log_open(const char* path) noexcept nogil:
    """A file that lines are appended to; negative: it cannot be had."""
    return c_open_mode(path, O_WRONLY | O_APPEND | O_CREAT | O_NONBLOCK | O_NOCTTY | O_CLOEXEC, 0o644)


cdef inline ssize_t log_write(int fd, const void* data, size_t size) noexcept nogil:
    """Some lines of it, waiting for at most a tenth of a second: AGAIN, GONE. As many whole ones as a pipe takes
    in one piece, so that other writers do not come in between."""
    cdef const char* text = <const char*>data
    cdef pollfd p
    cdef ssize_t n
    p.fd = fd
    p.events = POLLOUT
    if c_poll(&p, 1, 100) <= 0:
        return AGAIN
    if size > <size_t>PIPE_BUF:
        size = PIPE_BUF
        while size > 1 and text[size - 1] != c'\n':
            size -= 1
        if text[size - 1] != c'\n':
            size = PIPE_BUF
    n = c_write(fd, data, size)
    if n < 0 and errno == EINTR:
        return AGAIN
    return net_verdict(n)


cdef inline void net_no_delay(int fd) noexcept nogil:
    cdef int on = 1
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on))


cdef inline ssize_t net_verdict(ssize_t n) noexcept nogil:
    if n > 0:
        return n
    if n < 0 and (errno == EAGAIN):
        return AGAIN
    return GONE


cdef inline ssize_t net_recv(int fd, void* data, size_t size) noexcept nogil:
    cdef ssize_t n = c_recv(fd, data, size, 0)
    while n < 0 and errno == EINTR:
        n = c_recv(fd, data, size, 0)
    return net_verdict(n)


cdef inline ssize_t net_send(int fd, const void* data, size_t size) noexcept nogil:
    cdef ssize_t n = c_send(fd, data, size, MSG_NOSIGNAL)
    while n < 0 and errno == EINTR:
        n = c_send(fd, data, size, MSG_NOSIGNAL)
    return net_verdict(n)


cdef inline ssize_t net_send_file(int fd, const void* first, size_t first_size, int file, int64_t at,
                                  size_t size) noexcept nogil:
    """A part from memory, which may be empty, and behind it `size` bytes of a file; GONE if it has become shorter."""
    cdef off_t place = at
    cdef ssize_t n = 0, m
    if first_size:
        n = c_send(fd, first, first_size, MSG_NOSIGNAL | (MSG_MORE if size else 0))
        while n < 0 and errno == EINTR:
            n = c_send(fd, first, first_size, MSG_NOSIGNAL | (MSG_MORE if size else 0))
        if n < <ssize_t>first_size or size == 0:
            return net_verdict(n)
    m = c_sendfile(fd, file, &place, size)
    while m < 0 and errno == EINTR:
        m = c_sendfile(fd, file, &place, size)
    if m > 0:
        return n + m
    return n if n else net_verdict(m)


cdef inline ssize_t net_send_two(int fd, const void* first, size_t first_size,
                                 const void* second, size_t second_size) noexcept nogil:
    """One message of two parts, either of which may be empty."""
    cdef iovec parts[2]
    cdef msghdr m
    cdef ssize_t n
    if second_size == 0:
        return net_send(fd, first, first_size)
    if first_size == 0:
        return net_send(fd, second, second_size)
    parts[0].iov_base = <void*>first
    parts[0].iov_len = first_size
    parts[1].iov_base = <void*>second
    parts[1].iov_len = second_size
    memset(&m, 0, sizeof(m))
    m.msg_iov = parts
    m.msg_iovlen = 2
    n = c_sendmsg(fd, &m, MSG_NOSIGNAL)
    while n < 0 and errno == EINTR:
        n = c_sendmsg(fd, &m, MSG_NOSIGNAL)
    return net_verdict(n)


cdef inline void net_end(int fd) noexcept nogil:
    """No more from us: the peer reads what was sent, then the end."""
    c_shutdown(fd, SHUT_WR)


cdef inline void net_finish(int fd) noexcept nogil:
    """No more in either direction, behind what was written, whoever else has this connection."""
    c_shutdown(fd, SHUT_RDWR)


cdef inline void net_deaf(int fd) noexcept nogil:
    """Whoever reads finds the end behind what has come; what is written still leaves."""
    c_shutdown(fd, SHUT_RD)


cdef inline void net_cut(int fd) noexcept nogil:
    """Both directions end now, by a reset where the transport has one, and whoever waits for either wakes
    up; the descriptor stays its owner's to close."""
    cdef sockaddr none
    none.sa_family = AF_UNSPEC
    c_connect(fd, &none, sizeof(none))
    c_shutdown(fd, SHUT_RDWR)


cdef inline void net_break(int fd) noexcept nogil:
    """The close that follows resets the connection: the peer must not take what it has for the whole."""
    cdef c_linger now
    now.l_onoff = 1
    now.l_linger = 0
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &now, sizeof(now))


cdef inline int net_unread(int fd) noexcept nogil:
    """Bytes that were sent and that the peer has not acknowledged."""
    cdef int n = 0
    c_ioctl(fd, SIOCOUTQ, &n)
    return n


cdef inline bint net_wait(int fd, short events, int64_t ns) noexcept nogil:
    """By a thread that owns the connection and nothing else: until it is ready (True), or for so long, or less."""
    cdef pollfd p
    p.fd = fd
    p.events = events
    return c_poll(&p, 1, <int>(ns // 1_000_000 + 1) if ns > 0 else 0) > 0


cdef inline void net_close(int epoll, int fd) noexcept nogil:
    """Leaves the epoll set before it closes: a forked child may share both, and then a close alone
    would leave the registration behind."""
    poll_remove(epoll, fd)
    c_close(fd)
