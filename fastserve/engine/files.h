/* openat2, which C libraries do not wrap and old headers do not know.
 *
 * Knows: the system call. Never sees: what the file is for. Invariant: a path that leads out of the directory, by dots,
 * by a link or by /proc, is refused by the kernel (EXDEV, ELOOP).
 */
#ifndef FASTSERVE_FILES_H
#define FASTSERVE_FILES_H

#include <stdint.h>
#include <unistd.h>

static inline int openat2_beneath(int root, const char *path, int flags) {
    /* As linux/openat2.h has them; the number is the same on every architecture. */
    struct { uint64_t flags, mode, resolve; } how = {(uint64_t)flags, 0, 0x08 /* BENEATH */ | 0x02 /* NO_MAGICLINKS */};
    return (int)syscall(437, root, path, &how, sizeof how);
}

#endif
