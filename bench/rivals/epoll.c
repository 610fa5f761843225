/* The yardstick: what one reply costs when nothing is done but the kernel's work.
 *
 * Knows the end of a request head (an empty line) and one canned reply; no method, path, header or body.
 * One thread, level-triggered epoll; for each readable connection one recv and one send, however many
 * requests were pipelined.  Run: epoll PORT
 */
#define _GNU_SOURCE
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "reply.h"

enum { EVENTS = 256, INPUT = 16 * 1024, COPIES = 512 };

struct connection {
    int fd;
    uint32_t events;    /* what epoll watches now */
    size_t filled;      /* bytes of an incomplete head at the start of input */
    size_t owed;        /* bytes of replies not yet sent; the last of them ends a reply */
    char input[INPUT];
};

static char replies[COPIES * REPLY_SIZE];
static int poller;

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static void drop(struct connection *c) {
    close(c->fd);
    free(c);
}

static void watch(struct connection *c, uint32_t events) {
    if (c->events == events) return;
    c->events = events;
    struct epoll_event event = {.events = events, .data.ptr = c};
    if (epoll_ctl(poller, EPOLL_CTL_MOD, c->fd, &event) < 0) fail("epoll_ctl");
}

/* The number of complete heads in the input; the incomplete rest moves to its start. */
static size_t take_heads(struct connection *c) {
    size_t heads = 0;
    char *at = c->input, *end = c->input + c->filled, *stop;
    while ((stop = memmem(at, end - at, "\r\n\r\n", 4))) {
        at = stop + 4;
        heads++;
    }
    c->filled = end - at;
    if (heads && c->filled) memmove(c->input, at, c->filled);
    return heads;
}

/* Sends what is owed, as far as the socket takes it; false when the connection is gone. */
static int pay(struct connection *c) {
    while (c->owed) {
        size_t begin = (REPLY_SIZE - c->owed % REPLY_SIZE) % REPLY_SIZE;
        size_t size = c->owed < sizeof replies - begin ? c->owed : sizeof replies - begin;
        ssize_t sent = send(c->fd, replies + begin, size, MSG_NOSIGNAL);
        if (sent < 0) {
            if (errno != EAGAIN) return 0;
            watch(c, EPOLLOUT);
            return 1;
        }
        c->owed -= sent;
    }
    watch(c, EPOLLIN);
    return 1;
}

static void turn(struct connection *c) {
    if (!c->owed) {
        ssize_t got = recv(c->fd, c->input + c->filled, INPUT - c->filled, 0);
        if (got < 0 && errno == EAGAIN) return;
        if (got <= 0) {     /* the peer left, or its head fills the whole input */
            drop(c);
            return;
        }
        c->filled += got;
        c->owed = take_heads(c) * REPLY_SIZE;
    }
    if (!pay(c)) drop(c);
}

static void admit(int listener) {
    int fd, one = 1;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
        struct connection *c = malloc(sizeof *c);
        if (!c) fail("malloc");
        c->fd = fd;
        c->events = EPOLLIN;
        c->filled = c->owed = 0;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
        if (epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event) < 0) fail("epoll_ctl");
    }
}

int main(int count, char **words) {
    if (count != 2) {
        fprintf(stderr, "usage: %s PORT\n", words[0]);
        return 2;
    }
    for (size_t i = 0; i < COPIES; i++) memcpy(replies + i * REPLY_SIZE, REPLY, REPLY_SIZE);

    int one = 1, listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(atoi(words[1])),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) < 0) fail("bind");
    if (listen(listener, 4096) < 0) fail("listen");

    if ((poller = epoll_create1(EPOLL_CLOEXEC)) < 0) fail("epoll_create1");
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL};
    if (epoll_ctl(poller, EPOLL_CTL_ADD, listener, &event) < 0) fail("epoll_ctl");

    for (;;) {
        struct epoll_event events[EVENTS];
        int ready = epoll_wait(poller, events, EVENTS, -1);
        for (int i = 0; i < ready; i++) {
            if (events[i].data.ptr) turn(events[i].data.ptr);
            else admit(listener);
        }
    }
}
