from kvwire._ext.cipher import Cipher

RECORD_BYTES: int
"""Of one frame: 16 bytes that stand for the key (a MAC under it), and the 12 of the nonce."""

class NonceRecorder(Cipher):
    """Seals as `cipher` does, and before each frame writes a record to `fd`, a file opened to append to.

    A test passes it to its engines, or has `cipher.find` return it, and counts records that are there twice.
    """

    def __init__(self, cipher: Cipher, fd: int) -> None: ...
