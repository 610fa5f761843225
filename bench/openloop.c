/* An open-loop load: requests are due at fixed moments, whatever the server does, and are timed from those moments.
 *
 * Knows GET, one path, replies of status 200 with a Content-Length on connections that stay; nothing of who answers.
 * Run: openloop PORT PATH RATE SECONDS CONNECTIONS.  It prints one line of JSON and stops by itself.
 *
 * Request n is due at start + n / RATE.  It takes the connection that has been free for longest; while none is free it
 * waits here, and its wait counts.  A closed loop would not have sent it and so would never know.
 *
 * The spacing is even.  Random arrivals would come closer to many users, but one thread that needs some microseconds
 * for each request would often be late for the second of two neighbours, and would report its own queue as the
 * server's.  `behind` tells how late it noticed that a request was due, `unread` how long a reply that it knew to be
 * there waited until it was read: where either is not small beside the latencies, they are this program's own.
 *
 * The thread never sleeps: it has a core of its own, and waking up costs more than the latencies that it measures.
 */
#define _GNU_SOURCE
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

enum {
    WARM_UP = 1,                /* seconds at the same rate before anything is recorded */
    PATIENCE = 1,               /* seconds after the last request is due in which replies are still awaited */
    CONNECT_PATIENCE = 5,
    MAX_RATE = 1000000, MAX_SECONDS = 60, MAX_CONNECTIONS = 4096,
    EVENTS = 256, HEAD = 8 * 1024, REQUEST = 2 * 1024, BODY = 64 * 1024,
    WAITING = 1 << 16,          /* requests that may wait here for a connection; beyond that they are lost */
};

#define SECOND UINT64_C(1000000000)
#define MAX_BODY (1ULL << 40)


/* Histogram: nanoseconds in buckets whose width is at most 1/128 of what they hold, so a percentile is at most 0.8 %
 * too high.  The count and the maximum are exact. */

enum { FINE_BITS = 7, FINE = 1 << FINE_BITS, BUCKETS = (64 - FINE_BITS + 1) * FINE };

struct histogram {
    uint64_t count, max, buckets[BUCKETS];
};

static void record(struct histogram *h, uint64_t value) {
    int bits = 64 - __builtin_clzll(value | 1);
    int shift = bits > FINE_BITS + 1 ? bits - FINE_BITS - 1 : 0;
    h->buckets[shift * FINE + (value >> shift)]++;
    h->count++;
    if (value > h->max) h->max = value;
}

/* The highest value of the bucket that holds the given share, in 1/10000, in microseconds. */
static double percentile(const struct histogram *h, uint64_t share) {
    uint64_t rank = (h->count * share + 9999) / 10000, seen = 0;
    for (uint64_t i = 0; i < BUCKETS && h->count; i++) {
        if ((seen += h->buckets[i]) < rank) continue;
        uint64_t shift = i < 2 * FINE ? 0 : i / FINE - 1;
        uint64_t highest = ((i - shift * FINE + 1) << shift) - 1;
        return (highest < h->max ? highest : h->max) / 1000.0;
    }
    return 0;
}


/* State */

struct connection {
    int fd;                     /* -1 when it is lost */
    int busy;                   /* a request was sent and its reply is not complete */
    int in_body;
    uint64_t due;               /* of the request that makes it busy */
    uint64_t left;              /* bytes of the body that have not arrived */
    size_t filled;
    char head[HEAD];
};

static struct connection *connections;
static struct connection *idle[MAX_CONNECTIONS];        /* a ring: who has been free for longest comes first */
static uint64_t idle_first, idle_end, connection_count;
static uint64_t waiting[WAITING], waiting_first, waiting_end;   /* a ring of the moments at which they were due */
static int poller;
static char request[REQUEST];
static size_t request_size;

static uint64_t recorded_from, recorded_until;
static uint64_t alive, in_flight;
static uint64_t sent, answered, errors, replies_in_time;
static struct histogram latency, behind, unread;

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static uint64_t clock_now(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * SECOND + now.tv_nsec;
}


/* One connection */

/* Closed, reset, a wrong reply, or words that nobody asked for: an error, and the connection is of no more use. */
static void lose(struct connection *c) {
    close(c->fd);
    c->fd = -1;
    alive--;
    in_flight -= c->busy;
    c->busy = 0;
    errors++;
}

static void start(struct connection *c, uint64_t due) {
    c->due = due;
    c->busy = 1;
    c->in_body = 0;
    c->filled = 0;
    in_flight++;
    if (due >= recorded_from) sent++;
    if (send(c->fd, request, request_size, MSG_NOSIGNAL) != (ssize_t)request_size) lose(c);
}

static void finish(struct connection *c) {
    uint64_t now = clock_now();
    c->busy = 0;
    in_flight--;
    if (now >= recorded_from && now < recorded_until) replies_in_time++;
    if (c->due >= recorded_from) {
        answered++;
        record(&latency, now - c->due);
    }
    if (waiting_first < waiting_end) start(c, waiting[waiting_first++ % WAITING]);
    else idle[idle_end++ % connection_count] = c;
}

static const char *value_of(const char *line, const char *name) {
    size_t size = strlen(name);
    if (strncasecmp(line, name, size)) return NULL;
    return line + size + strspn(line + size, " \t");
}

/* The length of the body behind a head, or -1 if it is not the head of a good reply.  Its last line end is cut off. */
static int64_t judge(char *head, size_t size) {
    if (memchr(head, 0, size) || memcmp(head, "HTTP/1.1 200", 12) || !strchr(" \r", head[12])) return -1;
    head[size - 2] = 0;
    int64_t length = -1;
    for (const char *line = strstr(head, "\r\n") + 2; *line; line = strstr(line, "\r\n") + 2) {
        const char *value;
        if ((value = value_of(line, "Content-Length:"))) {
            char *end;
            unsigned long long number = strtoull(value, &end, 10);
            if (length >= 0 || !isdigit((unsigned char)*value) || number > MAX_BODY) return -1;
            if (end[strspn(end, " \t")] != '\r') return -1;
            length = number;
        } else if ((value = value_of(line, "Connection:"))) {
            if (strncasecmp(value, "keep-alive\r", 11)) return -1;
        } else if (value_of(line, "Transfer-Encoding:")) {
            return -1;
        }
    }
    return length;
}

static void receive(struct connection *c) {
    static char body[BODY];
    ssize_t got = c->in_body ? recv(c->fd, body, BODY, 0) : recv(c->fd, c->head + c->filled, HEAD - c->filled, 0);
    if (got < 0 && errno == EAGAIN) return;
    if (got <= 0 || !c->busy) {
        lose(c);
        return;
    }
    if (!c->in_body) {
        c->filled += got;
        char *stop = memmem(c->head, c->filled, "\r\n\r\n", 4);
        if (!stop) {
            if (c->filled == HEAD) lose(c);
            return;
        }
        size_t size = stop + 4 - c->head;
        int64_t length = judge(c->head, size);
        if (length < 0) {
            lose(c);
            return;
        }
        c->in_body = 1;
        c->left = length;
        got = c->filled - size;
    }
    if ((uint64_t)got > c->left) {
        lose(c);
        return;
    }
    c->left -= got;
    if (!c->left) finish(c);
}


/* The schedule */

static uint64_t began, rate, next, total;

static uint64_t due_at(uint64_t number) {
    return began + number * SECOND / rate;
}

static struct connection *take_idle(void) {
    while (idle_first < idle_end) {
        struct connection *c = idle[idle_first++ % connection_count];
        if (c->fd >= 0) return c;
    }
    return NULL;
}

/* Sends or lines up whatever is due.  The clock is read for each request, since sending one takes its time. */
static void send_due(void) {
    for (; next < total; next++) {
        uint64_t due = due_at(next), now = clock_now();
        if (now < due) return;
        if (due >= recorded_from) record(&behind, now - due);
        struct connection *c = take_idle();
        if (c) start(c, due);
        else if (waiting_end - waiting_first < WAITING) waiting[waiting_end++ % WAITING] = due;
    }
}

static void run(void) {
    uint64_t give_up = recorded_until + PATIENCE * SECOND;
    while (alive && (next < total || in_flight) && clock_now() < give_up) {
        struct epoll_event events[EVENTS];
        send_due();
        int ready = epoll_wait(poller, events, EVENTS, 0);
        uint64_t seen = clock_now();
        for (int i = 0; i < ready; i++) {
            struct connection *c = events[i].data.ptr;
            if (seen >= recorded_from) record(&unread, clock_now() - seen);
            if (c->fd >= 0) receive(c);
            send_due();
        }
    }
}

/* Who still has no answer has waited so long at least; to leave them out would make the percentiles better. */
static uint64_t record_unanswered(void) {
    uint64_t now = clock_now(), unanswered = 0;
    for (uint64_t i = 0; i < connection_count; i++) {
        struct connection *c = &connections[i];
        if (!c->busy || c->due < recorded_from) continue;
        record(&latency, now - c->due);
        unanswered++;
    }
    for (uint64_t i = waiting_first; i < waiting_end; i++) {
        uint64_t due = waiting[i % WAITING];
        if (due >= recorded_from) record(&latency, now - due);
    }
    return unanswered;
}


/* Start and end */

static void connect_all(in_port_t port) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct timeval patience = {.tv_sec = CONNECT_PATIENCE};
    int one = 1;
    for (uint64_t i = 0; i < connection_count; i++) {
        struct connection *c = &connections[i];
        if ((c->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) < 0) fail("socket");
        setsockopt(c->fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
        setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        if (connect(c->fd, (struct sockaddr *)&address, sizeof address) < 0) fail("connect");
        if (fcntl(c->fd, F_SETFL, O_NONBLOCK) < 0) fail("fcntl");
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
        if (epoll_ctl(poller, EPOLL_CTL_ADD, c->fd, &event) < 0) fail("epoll_ctl");
        idle[idle_end++] = c;
    }
    alive = connection_count;
}

static uint64_t number(const char *word, uint64_t most) {
    char *end;
    unsigned long long value = strtoull(word, &end, 10);
    if (*end || value < 1 || value > most) {
        fprintf(stderr, "not a number from 1 to %llu: %s\n", (unsigned long long)most, word);
        exit(2);
    }
    return value;
}

int main(int count, char **words) {
    if (count != 6) {
        fprintf(stderr, "usage: %s PORT PATH RATE SECONDS CONNECTIONS\n", words[0]);
        return 2;
    }
    in_port_t port = number(words[1], 65535);
    rate = number(words[3], MAX_RATE);
    uint64_t seconds = number(words[4], MAX_SECONDS);
    connection_count = number(words[5], MAX_CONNECTIONS);
    request_size = snprintf(request, REQUEST, "GET %s HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", words[2]);
    if (request_size >= REQUEST) {
        fprintf(stderr, "a path of more than %d bytes\n", REQUEST - 64);
        return 2;
    }
    if (!(connections = calloc(connection_count, sizeof *connections))) fail("calloc");
    if ((poller = epoll_create1(EPOLL_CLOEXEC)) < 0) fail("epoll_create1");
    connect_all(port);

    total = rate * (WARM_UP + seconds);
    began = clock_now();
    recorded_from = began + WARM_UP * SECOND;
    recorded_until = recorded_from + seconds * SECOND;
    run();
    uint64_t unanswered = record_unanswered();

    printf("{\"sent\": %lu, \"answered\": %lu, \"errors\": %lu, \"unanswered\": %lu, \"lost\": %lu, \"rate\": %.1f, "
           "\"p50_us\": %.1f, \"p90_us\": %.1f, \"p99_us\": %.1f, \"p999_us\": %.1f, \"p9999_us\": %.1f, "
           "\"max_us\": %.1f, \"behind_p99_us\": %.1f, \"behind_max_us\": %.1f, \"unread_p99_us\": %.1f}\n",
           sent, answered, errors, unanswered, rate * seconds - sent, (double)replies_in_time / seconds,
           percentile(&latency, 5000), percentile(&latency, 9000), percentile(&latency, 9900),
           percentile(&latency, 9990), percentile(&latency, 9999), latency.max / 1000.0,
           percentile(&behind, 9900), behind.max / 1000.0, percentile(&unread, 9900));
    return 0;
}
