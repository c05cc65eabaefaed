/* Runs a harness under libFuzzer: starts Python, imports the module that KVWIRE_FUZZ names, and calls its one_input for
 * every input from then on without Python. What Python itself allocates and keeps is nobody's leak.
 */
#include <Python.h>
#include <sanitizer/lsan_interface.h>
#include <sys/socket.h>

#include "harness.h"

int kvwire_fuzz_planted;
fuzz_recv_t kvwire_fuzz_recv;

static int (*one_input)(const uint8_t *data, size_t size);

/* The extension modules are linked with --wrap=recv. */
ssize_t __wrap_recv(int fd, void *buffer, size_t length, int flags)
{
    return kvwire_fuzz_recv ? kvwire_fuzz_recv(buffer, length) : recv(fd, buffer, length, flags);
}

static void start_python(void)
{
    PyConfig config;
    PyStatus status;
    PyConfig_InitPythonConfig(&config);
    config.install_signal_handlers = 0;
    status = PyConfig_SetBytesString(&config, &config.program_name, KVWIRE_PYTHON); /* its prefix, its packages */
    if (!PyStatus_Exception(status))
        status = Py_InitializeFromConfig(&config);
    PyConfig_Clear(&config);
    if (PyStatus_Exception(status))
        Py_ExitStatusException(status);
}

static void load(const char *name)
{
    PyObject *module = PyImport_ImportModule(name);
    PyObject *address = module ? PyObject_GetAttrString(module, "ONE_INPUT") : NULL;
    if (address)
        one_input = (int (*)(const uint8_t *, size_t))(uintptr_t)PyLong_AsSize_t(address);
    if (PyErr_Occurred()) {
        PyErr_Print();
        exit(2);
    }
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    const char *name = getenv("KVWIRE_FUZZ"), *plant = getenv("KVWIRE_FUZZ_PLANT");
    (void)argc, (void)argv;
    if (!name) {
        fprintf(stderr, "KVWIRE_FUZZ names the harness\n");
        exit(2);
    }
    kvwire_fuzz_planted = plant && !strcmp(plant, "1");
    __lsan_disable();
    start_python();
    load(name);
    __lsan_enable();
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) { return one_input(data, size); }
