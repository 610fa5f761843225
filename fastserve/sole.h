/* Whether a Python object has exactly one reference: the caller's.
 *
 * Knows: how both builds of CPython count. Never sees: what the object is.
 * Invariant: a false "no" costs a fresh object, a false "yes" would lend one to two; when in doubt, no.
 */
#ifndef FASTSERVE_SOLE_H
#define FASTSERVE_SOLE_H

#include <Python.h>

static inline int is_sole(PyObject *o) {
#ifdef Py_GIL_DISABLED
    /* Counted in two halves: references of the thread that made it, and everybody else's. Ours was made
     * by this thread, and only a reference can make another, so two halves of 1 and 0 stay so. */
    return o->ob_tid == _Py_ThreadId() && _Py_atomic_load_uint32_relaxed(&o->ob_ref_local) == 1 &&
           _Py_atomic_load_ssize_acquire(&o->ob_ref_shared) == 0;
#else
    return Py_REFCNT(o) == 1;
#endif
}

#endif
