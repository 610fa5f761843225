/* Clients in memory, in place of the kernel: what the core calls of sockets, epoll and clocks ends here.
 *
 * Knows: a request that is repeated, how many clients send it, how many at a time, and what they are owed.
 * Never sees: the core, HTTP, a descriptor of the kernel's.
 * Invariant: it keeps the promises that net.pxd and poll.pxd rest on (EAGAIN when there is nothing, readiness by
 * level within the mask that was asked for, one shot when that is asked for), so that the core runs as it is.
 *
 * Force-included before the source of the driver. A call of the system that is not in the list at the end goes to
 * the kernel, which does not know these descriptors: add it there.
 */
#ifndef MICRO_TRANSPORT_H
#define MICRO_TRANSPORT_H

#include <Python.h>

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum {
    TRANSPORT_EPOLL = 3,
    TRANSPORT_EVENT = 4,
    TRANSPORT_LISTENER = 5,
    TRANSPORT_FIRST = 16,    /* the descriptor of the first client */
    TRANSPORT_REPLY = 65536, /* the longest reply that can be kept */
    TRANSPORT_TURN = 1000,   /* nanoseconds of a turn, by the clock that stands */
};

enum { CALL_ACCEPT, CALL_RECV, CALL_SEND, CALL_WAIT, CALL_CONTROL, CALL_CLOCK, CALL_OTHER, CALLS_COUNTED };

typedef struct {
    uint64_t tag;
    uint64_t left;   /* bytes that it will still send */
    uint64_t owed;   /* bytes of replies that it waits for */
    uint32_t events; /* what the epoll set reports of it */
    uint32_t at;     /* where in the request its next byte lies */
    uint32_t next;   /* free list */
    uint32_t open;
} Client;

typedef struct {
    /* how it is driven; set before the first call */
    const char *text; /* the request over and over, `fill` bytes more than one */
    uint32_t size;    /* of one request */
    uint32_t fill;    /* bytes that one recv gets at most */
    uint32_t waits;   /* a client sends `fill` bytes, whole requests, and then waits for their replies */
    uint32_t room;    /* clients at a time */
    uint64_t each;    /* requests of one connection, which then ends; 0: it stays */
    uint32_t reply;   /* bytes of a reply */
    uint32_t still;   /* the clock moves by turns only */
    /* of one run */
    uint32_t gathered; /* nobody sends before as many are there as shall be at a time */
    uint64_t to_open;
    uint64_t to_ask;   /* bytes */
    uint64_t to_get;   /* bytes */
    uint32_t *stop;    /* set to 1 when everything has come */
    uint32_t starved;  /* the core slept and nobody would ever have woken it */
    void (*poked)(void *owner);
    void *owner;
    uint64_t calls[CALLS_COUNTED];
    uint32_t keep; /* keep what was sent last */
    uint32_t kept;
    char last[TRANSPORT_REPLY];
    /* the kernel's side */
    Client *clients;
    uint32_t touched, open, free, cursor; /* free: 1 + index */
    uint64_t listener_tag;
    uint32_t listens;
    int64_t now;
} Transport;

static Transport *transport; /* whose calls these are */

static Client *transport_client(int fd) { return &transport->clients[fd - TRANSPORT_FIRST]; }

static int transport_may_open(const Transport *t) { return t->to_open && t->open < t->room; }

static int transport_readable(const Transport *t, const Client *c) {
    if (!t->gathered || (t->waits && c->owed)) return 0;
    return c->left ? t->to_ask != 0 : 1;
}

static __attribute__((noinline)) int transport_accept4(int fd, struct sockaddr *peer, socklen_t *size, int flags) {
    static const struct sockaddr_in address = {
        .sin_family = AF_INET, .sin_port = 0xb80b /* 3000 */, .sin_addr = {0x0100007f}};
    Transport *t = transport;
    Client *c;
    uint32_t index;
    t->calls[CALL_ACCEPT]++;
    if (!transport_may_open(t)) {
        errno = EAGAIN;
        return -1;
    }
    if (t->free) {
        index = t->free - 1;
        t->free = t->clients[index].next;
    } else {
        index = t->touched++;
    }
    c = &t->clients[index];
    memset(c, 0, sizeof *c);
    c->open = 1;
    c->left = t->each ? t->each * t->size : UINT64_MAX;
    t->to_open--;
    t->open++;
    if (!transport_may_open(t)) t->gathered = 1;
    memcpy(peer, &address, sizeof address);
    *size = sizeof address;
    return (int)index + TRANSPORT_FIRST;
}

static __attribute__((noinline)) ssize_t transport_recv(int fd, void *to, size_t room, int flags) {
    Transport *t = transport;
    Client *c = transport_client(fd);
    size_t n = t->fill;
    t->calls[CALL_RECV]++;
    if (!transport_readable(t, c)) {
        errno = EAGAIN;
        return -1;
    }
    if (n > c->left) n = c->left;
    if (n > t->to_ask) n = t->to_ask;
    if (n > room) n = room;
    memcpy(to, t->text + c->at, n);
    c->at = (c->at + n) % t->size;
    c->left -= n;
    t->to_ask -= n;
    if (t->waits) c->owed = n / t->size * t->reply;
    return (ssize_t)n;
}

static void transport_get(Client *c, size_t size) {
    Transport *t = transport;
    t->calls[CALL_SEND]++;
    c->owed = c->owed > size ? c->owed - size : 0;
    t->to_get = t->to_get > size ? t->to_get - size : 0;
}

static void transport_keep(const void *data, size_t size) {
    Transport *t = transport;
    if (size > TRANSPORT_REPLY - t->kept) size = TRANSPORT_REPLY - t->kept;
    memcpy(t->last + t->kept, data, size);
    t->kept += size;
}

static __attribute__((noinline)) ssize_t transport_send(int fd, const void *data, size_t size, int flags) {
    transport_get(transport_client(fd), size);
    if (transport->keep) transport_keep(data, size);
    return (ssize_t)size;
}

static __attribute__((noinline)) ssize_t transport_sendmsg(int fd, const struct msghdr *message, int flags) {
    size_t size = 0;
    for (size_t i = 0; i < message->msg_iovlen; i++) {
        size += message->msg_iov[i].iov_len;
        if (transport->keep) transport_keep(message->msg_iov[i].iov_base, message->msg_iov[i].iov_len);
    }
    transport_get(transport_client(fd), size);
    return (ssize_t)size;
}

static __attribute__((noinline)) int transport_epoll_ctl(int set, int operation, int fd, struct epoll_event *event) {
    Transport *t = transport;
    t->calls[CALL_CONTROL]++;
    if (fd == TRANSPORT_LISTENER) {
        t->listens = operation != EPOLL_CTL_DEL;
        t->listener_tag = event->data.u64;
    } else if (fd >= TRANSPORT_FIRST) {
        transport_client(fd)->tag = event->data.u64;
        transport_client(fd)->events = operation == EPOLL_CTL_DEL ? 0 : event->events;
    }
    return 0;
}

static int transport_is_over(const Transport *t) {
    return !t->to_get && !t->to_ask && !t->to_open && (!t->each || !t->open);
}

static __attribute__((noinline)) int transport_epoll_wait(int set, struct epoll_event *events, int room, int timeout) {
    Transport *t = transport;
    int n = 0;
    t->calls[CALL_WAIT]++;
    t->now += TRANSPORT_TURN;
    if (transport_is_over(t)) {
        *t->stop = 1;
        return 0;
    }
    if (t->listens && transport_may_open(t)) {
        events[n].events = EPOLLIN;
        events[n++].data.u64 = t->listener_tag;
    }
    for (uint32_t seen = 0; seen < t->touched && n < room; seen++) {
        Client *c = &t->clients[t->cursor];
        uint32_t ready = c->events & (EPOLLOUT | (transport_readable(t, c) ? EPOLLIN : 0));
        if (++t->cursor >= t->touched) t->cursor = 0;
        if (!c->open || !ready) continue;
        if (c->events & EPOLLONESHOT) c->events = 0;
        events[n].events = ready;
        events[n++].data.u64 = c->tag;
    }
    if (n == 0 && timeout != 0) {
        t->starved = 1;
        *t->stop = 1;
    }
    return n;
}

static __attribute__((noinline)) int transport_close(int fd) {
    Transport *t = transport;
    Client *c;
    t->calls[CALL_OTHER]++;
    if (fd < TRANSPORT_FIRST) return 0;
    c = transport_client(fd);
    c->open = c->events = 0;
    c->next = t->free;
    t->free = 1 + (uint32_t)(fd - TRANSPORT_FIRST);
    t->open--;
    return 0;
}

/* The only descriptor that the core writes to itself is its event: who would wake up is called. */
static __attribute__((noinline)) ssize_t transport_write(int fd, const void *data, size_t size) {
    transport->calls[CALL_OTHER]++;
    transport->poked(transport->owner);
    return (ssize_t)size;
}

static __attribute__((noinline)) int transport_clock(clockid_t id, struct timespec *to) {
    Transport *t = transport;
    t->calls[CALL_CLOCK]++;
    if (!t->still) return clock_gettime(id, to);
    to->tv_sec = id == CLOCK_REALTIME_COARSE ? 1700000000 : 1000 + t->now / 1000000000;
    to->tv_nsec = id == CLOCK_REALTIME_COARSE ? 0 : t->now % 1000000000;
    return 0;
}

static int transport_other(void) {
    transport->calls[CALL_OTHER]++;
    return 0;
}

static int transport_poll(struct pollfd *clients, unsigned long n, int timeout) {
    transport->calls[CALL_OTHER]++;
    for (unsigned long i = 0; i < n; i++) clients[i].revents = clients[i].events;
    return (int)n;
}

#define accept4(fd, peer, size, flags) transport_accept4(fd, peer, size, flags)
#define recv(fd, data, size, flags) transport_recv(fd, data, size, flags)
#define send(fd, data, size, flags) transport_send(fd, data, size, flags)
#define sendmsg(fd, message, flags) transport_sendmsg(fd, message, flags)
#define connect(fd, address, size) ((void)(address), transport_other())
#define shutdown(fd, how) transport_other()
#define setsockopt(fd, level, name, value, size) ((void)(value), transport_other())
#define poll(clients, n, timeout) transport_poll(clients, n, timeout)
#define close(fd) transport_close(fd)
#define write(fd, data, size) transport_write(fd, data, size)
#define epoll_create1(flags) TRANSPORT_EPOLL
#define epoll_ctl(set, operation, fd, event) transport_epoll_ctl(set, operation, fd, event)
#define epoll_wait(set, events, room, timeout) transport_epoll_wait(set, events, room, timeout)
#define eventfd(start, flags) TRANSPORT_EVENT
#define clock_gettime(id, to) transport_clock(id, to)

/* Where a profiler cuts: it looks for this name. */
__attribute__((noinline, visibility("default"))) void transport_mark(void) { __asm__ volatile("" ::: "memory"); }

#endif
