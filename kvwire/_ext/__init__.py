"""The data plane: Cython modules that run without the GIL. Each `.pyx` has a `.pyi` that says what Python sees."""
