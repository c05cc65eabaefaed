"""A transfer is aborted by a thread whose writes are late, and the engine is closed meanwhile. Run with late_write.c.

Prints what has come to be in files that were opened after that: nothing.
"""

import ctypes
import tempfile
import threading
import time
from contextlib import ExitStack

from tests.net.engines import Memory, Pair

PR_SET_NAME = 15

source, target = Memory([(4, 4096)], filled=True), Memory([(4, 4096)])
with Pair(1) as pair, tempfile.TemporaryDirectory() as directory, ExitStack() as stack:
    out, _ = pair.transfer(source, target)
    begun = threading.Event()

    def abort() -> None:
        ctypes.CDLL(None).prctl(PR_SET_NAME, b"late")
        begun.set()
        out.abort()

    thread = threading.Thread(target=abort)
    thread.start()
    begun.wait()
    time.sleep(0.1)  # so that it is in its write, if it writes without the GIL
    pair.close()
    files = [stack.enter_context(open(f"{directory}/{number}", "w+b", buffering=0)) for number in range(32)]
    thread.join()
    for file in files:
        file.seek(0)
    print(b"".join(file.read() for file in files))
