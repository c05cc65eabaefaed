"""What frames cost, as the engine makes and checks them: for bench/sealing.py."""

from libc.stdlib cimport calloc, free
from libc.string cimport memcpy

from kvwire._ext.cipher cimport SECRET_BYTES, TAG_BYTES, Cipher
from kvwire._ext.core cimport now_ns
from kvwire._ext.frame cimport DATA, FRAME_OK, HEADER_BYTES, frame_check_payload, frame_crc, frame_header, header_t
from kvwire._ext.layout cimport iovec
from kvwire._ext.seal cimport limits_of, limits_t, open_frame, seal_frame, seal_free, seal_of, seal_t

from kvwire._ext.seal import MOST
from kvwire.errors import LocalError


def time_frames(Cipher cipher, unsigned int length, unsigned int batch, unsigned int batches):
    """Nanoseconds to make, and to check, `batches` times `batch` frames, one core, without the GIL; the payload and a
    batch stay in its caches. The cipher None: plain frames."""
    cdef seal_t *sealer = NULL
    cdef seal_t *opener = NULL
    cdef limits_t limits = limits_of(MOST)
    cdef size_t frame_bytes = HEADER_BYTES + length + TAG_BYTES
    cdef char *frames = <char *>calloc(batch, frame_bytes)
    cdef char *payload = <char *>calloc(1, length)
    cdef char *at
    cdef header_t h
    cdef iovec piece
    cdef unsigned int i, j
    cdef unsigned long long sequence = 0, start, between, making = 0, checking = 0
    cdef bint right = True
    try:
        if frames == NULL or payload == NULL:
            raise MemoryError
        if cipher is not None:
            sealer, opener = seal_of(cipher, bytes(SECRET_BYTES), True), seal_of(cipher, bytes(SECRET_BYTES), False)
        with nogil:
            for j in range(batches):
                start = now_ns()
                for i in range(batch):
                    at = frames + i * frame_bytes
                    frame_header(&h, DATA, sequence + i, 1, 0, i, length)
                    piece.iov_base = payload
                    piece.iov_len = length
                    if sealer != NULL:
                        right = right and seal_frame(sealer, &limits, &h, &piece, 1, at, start) != 0
                    else:
                        h.crc = frame_crc(&h, payload)
                        memcpy(at, &h, sizeof(h))
                between = now_ns()
                for i in range(batch):
                    at = frames + i * frame_bytes
                    if opener != NULL:
                        right = right and open_frame(opener, <header_t *>at, at + sizeof(h)) == FRAME_OK
                    else:
                        right = right and frame_check_payload(<header_t *>at, at + sizeof(h)) == FRAME_OK
                making += between - start
                checking += now_ns() - between
                sequence += batch
    finally:
        seal_free(sealer)
        seal_free(opener)
        free(frames)
        free(payload)
    if not right:
        raise LocalError("a frame could not be sealed and opened again")
    return making, checking
