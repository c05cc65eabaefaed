from typing import TypedDict

class Facts(TypedDict):
    """`python` is the version whose headers were compiled against; `optimised`: as the compiler saw it."""

    compiler: str
    cython: str
    python: str
    libc: str
    architecture: str
    flags: str
    optimised: bool

def facts() -> Facts:
    """What the extension modules were built with and for."""
