/* io_uring as far as batches need it: many sends or receives of sockets in one system call.
 *
 * Knows: the three system calls' numbers and layouts (linux/io_uring.h, which old C libraries lack), and that
 * a call with MSG_DONTWAIT is finished when io_uring_enter returns. Never sees: whose bytes they are.
 * Invariant: between two calls of `ring_go` both queues are empty, so that any thread may make the next one.
 */
#ifndef FASTSERVE_RING_H
#define FASTSERVE_RING_H

#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { RING_SETUP = 425, RING_ENTER = 426 };                /* the same on every architecture */
enum { RING_SEND = 26, RING_RECV = 27 };                    /* IORING_OP_SEND, IORING_OP_RECV */
enum { RING_SUBMIT_ALL = 1 << 7, RING_SINGLE_MMAP = 1 << 0, RING_GETEVENTS = 1 << 0 };
#define RING_SQES_AT 0x10000000
#define RING_MOST (1u << 30)    /* bytes of one call: from 2 GiB on the kernel refuses it */

struct ring_offsets { uint32_t head, tail, mask, entries, a, b, c, d; uint64_t e; };
struct ring_params {
    uint32_t sq_entries, cq_entries, flags, cpu, idle, features, wq, resv[3];
    struct ring_offsets sq;     /* a: flags, b: dropped, c: array */
    struct ring_offsets cq;     /* a: overflow, b: entries, c: flags */
};
struct ring_sqe {
    uint8_t opcode, flags;
    uint16_t priority;
    int32_t fd;
    uint64_t offset, data;
    uint32_t size, message_flags;
    uint64_t user, rest[3];
};
struct ring_cqe { uint64_t user; int32_t result; uint32_t flags; };

struct ring_call { int fd; void *data; size_t size; };

struct ring {
    int fd;                     /* -1: there is none */
    uint32_t mask, cq_mask;
    uint32_t *sq_tail, *cq_head, *cq_tail;
    struct ring_sqe *sqes;
    struct ring_cqe *cqes;
    char *map;
    size_t map_size, sqes_size;
};

static inline void ring_unmake(struct ring *r) {
    if (r->fd < 0) return;
    munmap(r->map, r->map_size);
    munmap(r->sqes, r->sqes_size);
    close(r->fd);
    r->fd = -1;
}

/* `entries`: a power of two. No ring where the kernel is too old for SUBMIT_ALL (5.18) or forbids it. */
static inline void ring_make(struct ring *r, uint32_t entries) {
    struct ring_params p = {.flags = RING_SUBMIT_ALL};
    r->fd = (int)syscall(RING_SETUP, entries, &p);
    if (r->fd < 0) return;
    size_t sq = p.sq.c + p.sq_entries * sizeof(uint32_t), cq = p.cq.b + p.cq_entries * sizeof(struct ring_cqe);
    r->map_size = sq > cq ? sq : cq;
    r->sqes_size = p.sq_entries * sizeof(struct ring_sqe);
    r->map = mmap(NULL, r->map_size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, r->fd, 0);
    r->sqes = mmap(NULL, r->sqes_size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, r->fd, RING_SQES_AT);
    if (!(p.features & RING_SINGLE_MMAP) || r->map == MAP_FAILED || r->sqes == MAP_FAILED) {
        if (r->map != MAP_FAILED) munmap(r->map, r->map_size);
        if (r->sqes != MAP_FAILED) munmap(r->sqes, r->sqes_size);
        close(r->fd);
        r->fd = -1;
        return;
    }
    r->sq_tail = (uint32_t *)(r->map + p.sq.tail);
    r->cq_head = (uint32_t *)(r->map + p.cq.head);
    r->cq_tail = (uint32_t *)(r->map + p.cq.tail);
    r->mask = *(uint32_t *)(r->map + p.sq.mask);
    r->cq_mask = *(uint32_t *)(r->map + p.cq.mask);
    r->cqes = (struct ring_cqe *)(r->map + p.cq.b);
    for (uint32_t i = 0; i < p.sq_entries; i++) ((uint32_t *)(r->map + p.sq.c))[i] = i;
    memset(r->sqes, 0, r->sqes_size);
}

/* Makes the first of `n` calls and says how many it made; results as the kernel's: a count or -errno. */
static inline uint32_t ring_go(struct ring *r, int opcode, const struct ring_call *calls, uint32_t n, ssize_t *results) {
    uint32_t tail = *r->sq_tail, head = *r->cq_head;
    for (uint32_t i = 0; i < n; i++) {
        struct ring_sqe *s = &r->sqes[(tail + i) & r->mask];
        s->opcode = (uint8_t)opcode;
        s->fd = calls[i].fd;
        s->data = (uint64_t)(uintptr_t)calls[i].data;
        s->size = calls[i].size < RING_MOST ? (uint32_t)calls[i].size : RING_MOST;
        s->message_flags = MSG_DONTWAIT | MSG_NOSIGNAL;
        s->user = i;
    }
    __atomic_store_n(r->sq_tail, tail + n, __ATOMIC_RELEASE);
    long made = syscall(RING_ENTER, r->fd, n, 0, 0, NULL, 0);
    if (made < (long)n) {
        /* What the kernel did not take is taken back. */
        if (made < 0) made = 0;
        __atomic_store_n(r->sq_tail, tail + (uint32_t)made, __ATOMIC_RELEASE);
    }
    for (uint32_t seen = 0; seen < (uint32_t)made;) {
        if (head == __atomic_load_n(r->cq_tail, __ATOMIC_ACQUIRE)) {
            /* Never seen: the kernel may still write to the memory of what it took, so it is waited for. */
            syscall(RING_ENTER, r->fd, 0, 1, RING_GETEVENTS, NULL, 0);
            continue;
        }
        struct ring_cqe *q = &r->cqes[head & r->cq_mask];
        results[q->user] = q->result;
        head++;
        seen++;
    }
    __atomic_store_n(r->cq_head, head, __ATOMIC_RELEASE);
    return (uint32_t)made;
}

#endif
