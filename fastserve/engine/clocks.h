/* What the kernel knows of a thread: its CPU clock, its state, its timer slack.
 *
 * Knows: thread ids, /proc and prctl. Never sees: why somebody asks.
 * Invariant: an answer that cannot be had reads as "not computing, not running": a suspect that the
 * kernel says nothing about is treated as blocked.
 */
#ifndef FASTSERVE_CLOCKS_H
#define FASTSERVE_CLOCKS_H

#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static inline int thread_id(void) { return (int)syscall(SYS_gettid); }

static inline int thread_cpu_clock(void) {
    clockid_t id;
    return pthread_getcpuclockid(pthread_self(), &id) == 0 ? (int)id : (int)CLOCK_THREAD_CPUTIME_ID;
}

/* 'R', 'S', 'D' ... as proc(5) has it; 0: unknown. */
static inline char thread_state(int tid) {
    char path[48], text[128];
    snprintf(path, sizeof path, "/proc/self/task/%d/stat", tid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return 0;
    ssize_t n = read(fd, text, sizeof text - 1);
    close(fd);
    if (n <= 0) return 0;
    text[n] = 0;
    /* The name before it may hold anything, a parenthesis too: the state follows the last one. */
    const char *p = strrchr(text, ')');
    return p && p + 2 < text + n ? p[2] : 0;
}

/* A timer may fire this late; the default of 50 us would be half of the shortest tick. */
static inline void thread_timer_slack(unsigned long ns) { prctl(PR_SET_TIMERSLACK, ns, 0, 0, 0); }

/* Starts a native thread with every signal blocked, so that signals reach Python's threads alone. Its stack is as
   large everywhere: some C libraries give 128 KiB. */
static inline int thread_start(pthread_t *thread, void *(*run)(void *), void *arg) {
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    pthread_attr_t size;
    pthread_attr_init(&size);
    pthread_attr_setstacksize(&size, 1 << 20);
    int failed = pthread_create(thread, &size, run, arg);
    pthread_attr_destroy(&size);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return failed;
}

#endif
