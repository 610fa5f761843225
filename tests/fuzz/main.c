/* One claim of _probe_fuzz.pxi as a libFuzzer target: -DTARGET=fuzz_head, fuzz_body, fuzz_message or
   fuzz_proxy.

   Knows: how to start Python once with the probe built in, and that a target answers NULL or what broke.
   Never sees: what an input means.
   Invariant: Python is not entered again after LLVMFuzzerInitialize; a broken claim ends the process, so that
   libFuzzer keeps the input. */

#include <Python.h>

PyMODINIT_FUNC PyInit__probe(void);
const char *TARGET(const char *data, size_t size);

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    PyConfig config;
    PyStatus status;

    (void)argc;
    (void)argv;
    if (PyImport_AppendInittab("_probe", PyInit__probe) < 0)
        abort();
    PyConfig_InitPythonConfig(&config);
    config.install_signal_handlers = 0;         /* they are libFuzzer's */
    config.site_import = 0;
    status = Py_InitializeFromConfig(&config);
    PyConfig_Clear(&config);
    if (PyStatus_Exception(status))
        Py_ExitStatusException(status);
    if (PyImport_ImportModule("_probe") == NULL) {
        PyErr_Print();
        abort();
    }
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const char *broken = TARGET((const char *)data, size);

    if (broken) {
        fprintf(stderr, "BROKEN: %s\n", broken);
        abort();
    }
    return 0;
}
