/* The other limit: the same canned reply as epoll.c's, by io_uring without its library.
 *
 * Knows the end of a request head and one reply; no method, path, header or body.  One thread; one multishot
 * accept, one multishot receive a connection into buffers that all share, one send in flight a connection however
 * many requests were pipelined; one system call hands over all sends and fetches all that happened.
 * Run: uring PORT.  Without a port it only tells whether this kernel can (Linux 6.1 or newer, io_uring allowed).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/io_uring.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "reply.h"

enum { REQUESTS = 4096, EVENTS = 4 * REQUESTS, BUFFERS = 1024, BUFFER = 4096, GROUP = 1, COPIES = 512 };
enum { MOST_OWED = 64 * 1024 * 1024 };  /* to a client that sends and never reads */
enum { ACCEPTED, RECEIVED, SENT, KINDS = 3 };

struct connection {
    int fd;
    int receiving, sending;     /* is one of these with the kernel? */
    size_t owed;                /* bytes of replies not yet sent; the last of them ends a reply */
    size_t kept;                /* the last bytes of an incomplete head, as many as an end of one could begin in */
    char tail[3];
};

static char replies[COPIES * REPLY_SIZE];

static int ring, listener;
static unsigned *request_head, *request_tail, request_mask, request_next, submitted;
static struct io_uring_sqe *requests;
static unsigned *event_head, *event_tail, event_mask;
static struct io_uring_cqe *events;

static struct io_uring_buf_ring *buffers;
static char *memory;
static uint16_t buffers_tail;

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static int enter(unsigned wanted) {
    __atomic_store_n(request_tail, request_next, __ATOMIC_RELEASE);
    int taken = syscall(__NR_io_uring_enter, ring, request_next - submitted, wanted, IORING_ENTER_GETEVENTS, NULL, 0);
    if (taken > 0) submitted += taken;
    return taken;
}

/* An empty request.  What completes it carries the connection, and the kind in the address's lowest bits. */
static struct io_uring_sqe *ask(int operation, int fd, struct connection *c, int kind) {
    while (request_next - __atomic_load_n(request_head, __ATOMIC_ACQUIRE) == REQUESTS)
        if (enter(0) < 0 && errno != EINTR && errno != EBUSY) fail("io_uring_enter");
    struct io_uring_sqe *request = &requests[request_next++ & request_mask];
    memset(request, 0, sizeof *request);
    request->opcode = operation;
    request->fd = fd;
    request->user_data = (uintptr_t)c | kind;
    return request;
}

static void want_connections(void) {
    ask(IORING_OP_ACCEPT, listener, NULL, ACCEPTED)->ioprio = IORING_ACCEPT_MULTISHOT;
}

static void want_bytes(struct connection *c) {
    struct io_uring_sqe *request = ask(IORING_OP_RECV, c->fd, c, RECEIVED);
    request->ioprio = IORING_RECV_MULTISHOT;
    request->flags = IOSQE_BUFFER_SELECT;
    request->buf_group = GROUP;
    c->receiving = 1;
}

static void pay(struct connection *c) {
    size_t begin = (REPLY_SIZE - c->owed % REPLY_SIZE) % REPLY_SIZE;
    struct io_uring_sqe *request = ask(IORING_OP_SEND, c->fd, c, SENT);
    request->addr = (uintptr_t)(replies + begin);
    request->len = c->owed < sizeof replies - begin ? c->owed : sizeof replies - begin;
    request->msg_flags = MSG_NOSIGNAL;
    c->sending = 1;
}

/* Its field resv shares its place with the ring's tail in the first entry: each field is set by itself. */
static void give_back(unsigned number) {
    struct io_uring_buf *entry = &buffers->bufs[buffers_tail & (BUFFERS - 1)];
    entry->addr = (uintptr_t)(memory + (size_t)number * BUFFER);
    entry->len = BUFFER;
    entry->bid = number;
    __atomic_store_n(&buffers->tail, ++buffers_tail, __ATOMIC_RELEASE);
}

/* The number of heads that end in these bytes; an end may have begun in those before. */
static size_t take_heads(struct connection *c, const char *at, size_t size) {
    const char *end = at + size, *stop;
    size_t heads = 0, borrowed = size < 3 ? size : 3;
    char seam[6];
    memcpy(seam, c->tail, c->kept);
    memcpy(seam + c->kept, at, borrowed);
    size_t whole = c->kept + borrowed;
    if (c->kept && (stop = memmem(seam, whole, "\r\n\r\n", 4))) {
        at += stop + 4 - seam - c->kept;
        c->kept = 0;
        heads++;
    }
    while ((stop = memmem(at, end - at, "\r\n\r\n", 4))) {
        at = stop + 4;
        c->kept = 0;
        heads++;
    }
    size_t rest = end - at;
    if (rest >= 3) {
        memcpy(c->tail, end - 3, 3);
        c->kept = 3;
    } else if (rest) {
        size_t older = c->kept + rest > 3 ? 3 - rest : c->kept;
        memmove(c->tail, c->tail + c->kept - older, older);
        memcpy(c->tail + older, at, rest);
        c->kept = older + rest;
    }
    return heads;
}

static void leave(struct connection *c) {
    if (c->receiving || c->sending) return;
    close(c->fd);
    free(c);
}

static void admit(int fd) {
    struct connection *c = calloc(1, sizeof *c);
    if (!c) fail("calloc");
    c->fd = fd;
    want_bytes(c);
}

static void received(struct connection *c, int result, unsigned flags) {
    c->receiving = (flags & IORING_CQE_F_MORE) != 0;
    if (flags & IORING_CQE_F_BUFFER) {
        unsigned number = flags >> IORING_CQE_BUFFER_SHIFT;
        if (result > 0) c->owed += take_heads(c, memory + (size_t)number * BUFFER, result) * REPLY_SIZE;
        give_back(number);
    }
    if (c->owed > MOST_OWED) shutdown(c->fd, SHUT_RDWR);
    else if (c->owed && !c->sending) pay(c);
    if (c->receiving) return;
    if (result > 0 || result == -ENOBUFS) want_bytes(c);
    else leave(c);
}

static void sent(struct connection *c, int result) {
    c->sending = 0;
    if (result < 0) {   /* then the receive ends too */
        c->owed = 0;
        shutdown(c->fd, SHUT_RDWR);
    } else {
        c->owed -= result;
    }
    if (!c->receiving) leave(c);
    else if (c->owed) pay(c);
}

static void happened(const struct io_uring_cqe *event) {
    struct connection *c = (void *)(uintptr_t)(event->user_data & ~(uint64_t)KINDS);
    switch (event->user_data & KINDS) {
    case ACCEPTED:
        if (event->res >= 0) admit(event->res);
        if (!(event->flags & IORING_CQE_F_MORE)) want_connections();
        break;
    case RECEIVED:
        received(c, event->res, event->flags);
        break;
    case SENT:
        sent(c, event->res);
    }
}

static void *map(size_t size, int flags, int fd, off_t offset) {
    void *place = mmap(NULL, size, PROT_READ | PROT_WRITE, flags | MAP_POPULATE, fd, offset);
    if (place == MAP_FAILED) fail("mmap");
    return place;
}

static void set_up(void) {
    struct io_uring_params params = {
        .flags = IORING_SETUP_CQSIZE | IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN, .cq_entries = EVENTS};
    if ((ring = syscall(__NR_io_uring_setup, REQUESTS, &params)) < 0) fail("io_uring_setup");

    size_t requests_size = params.sq_off.array + params.sq_entries * sizeof(unsigned);
    size_t events_size = params.cq_off.cqes + params.cq_entries * sizeof(struct io_uring_cqe);
    char *base = map(requests_size > events_size ? requests_size : events_size, MAP_SHARED, ring, IORING_OFF_SQ_RING);
    request_head = (unsigned *)(base + params.sq_off.head);
    request_tail = (unsigned *)(base + params.sq_off.tail);
    request_mask = params.sq_entries - 1;
    for (unsigned i = 0; i < params.sq_entries; i++) ((unsigned *)(base + params.sq_off.array))[i] = i;
    event_head = (unsigned *)(base + params.cq_off.head);
    event_tail = (unsigned *)(base + params.cq_off.tail);
    event_mask = params.cq_entries - 1;
    events = (struct io_uring_cqe *)(base + params.cq_off.cqes);
    requests = map(params.sq_entries * sizeof *requests, MAP_SHARED, ring, IORING_OFF_SQES);

    buffers = map(BUFFERS * sizeof(struct io_uring_buf), MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    memory = map((size_t)BUFFERS * BUFFER, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    struct io_uring_buf_reg registration = {.ring_addr = (uintptr_t)buffers, .ring_entries = BUFFERS, .bgid = GROUP};
    if (syscall(__NR_io_uring_register, ring, IORING_REGISTER_PBUF_RING, &registration, 1) < 0)
        fail("io_uring_register");
    for (unsigned i = 0; i < BUFFERS; i++) give_back(i);
}

int main(int count, char **words) {
    for (size_t i = 0; i < COPIES; i++) memcpy(replies + i * REPLY_SIZE, REPLY, REPLY_SIZE);
    set_up();
    if (count != 2) return 0;

    int one = 1;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(atoi(words[1])),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    setsockopt(listener, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);  /* what it accepts inherits this */
    if (bind(listener, (struct sockaddr *)&address, sizeof address) < 0) fail("bind");
    if (listen(listener, 4096) < 0) fail("listen");

    want_connections();
    for (;;) {
        if (enter(1) < 0 && errno != EINTR && errno != EBUSY) fail("io_uring_enter");
        unsigned head = *event_head, tail = __atomic_load_n(event_tail, __ATOMIC_ACQUIRE);
        while (head != tail) {
            struct io_uring_cqe event = events[head++ & event_mask];
            __atomic_store_n(event_head, head, __ATOMIC_RELEASE);
            happened(&event);
        }
    }
}
