"""The process that runs the emulator's loop: process.py EXTENSION TUN_A TUN_B CONTROL SEED, descriptors by number.

A file to be run by its name. It loads the extension module by its own name, and of kvwire nothing: it starts in the
time that an interpreter takes.
"""

import os
import sys
from contextlib import suppress
from importlib.util import module_from_spec, spec_from_file_location


def main() -> None:
    extension, *numbers = sys.argv[1:]
    spec = spec_from_file_location("emulator", extension)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    with suppress(OSError):  # before all others, where it may: what it delivers late is charged to the link
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    module.emulate(*map(int, numbers))


if __name__ == "__main__":
    main()
