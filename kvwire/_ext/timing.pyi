from kvwire._ext.cipher import Cipher

def time_frames(cipher: Cipher | None, length: int, batch: int, batches: int) -> tuple[int, int]:
    """Nanoseconds to make, and to check, `batches` times `batch` frames, one core, without the GIL; the payload and a
    batch stay in its caches. The cipher None: plain frames."""
