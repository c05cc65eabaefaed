"""Codecs: what makes a cell shorter on its way. kvwire's own, lossless and lossy, and an application's.

docs/compression.md says what each does. The work is done by `kvwire/_ext/codec.pyx`.
"""

from kvwire.codecs.cells import cell
from kvwire.codecs.description import Codec
from kvwire.codecs.registry import codecs, find_codec, register_codec

__all__ = ["Codec", "cell", "codecs", "find_codec", "register_codec"]
