/* The probe as an executable, so that a sanitizer is there from the first instruction.
 *
 * Knows: how to start Python once with the probe built in. Never sees: a lease.
 * A sanitizer cannot be loaded late into a Python that was built without it; linked this way, the
 * interpreter only calls the probe, and the threads under watch are the probe's own. The argument is
 * Python: what to run.
 */
#include <Python.h>

PyMODINIT_FUNC PyInit__probe(void);

int main(int argc, char **argv) {
    if (argc != 2) {
        fputs("usage: probe 'import _probe; ...'\n", stderr);
        return 2;
    }
    if (PyImport_AppendInittab("_probe", PyInit__probe) < 0) return 2;
    PyConfig config;
    PyConfig_InitPythonConfig(&config);
    config.install_signal_handlers = 1;
    config.site_import = 0;
    PyStatus status = Py_InitializeFromConfig(&config);
    PyConfig_Clear(&config);
    if (PyStatus_Exception(status)) Py_ExitStatusException(status);
    int failed = PyRun_SimpleString(argv[1]);
    return Py_FinalizeEx() < 0 || failed;
}
