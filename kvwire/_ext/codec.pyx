"""Codecs: one cell to a payload that is shorter, and back. Formats and semantics are in docs/compression.md.

Functions and structures are those of codec_impl.h. What is here besides: the lossless codec, of planes (planes_impl.c)
and zstd; the table of kvwire's own codecs; a user's codec in Python; and what tests and benchmarks call.
"""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdlib cimport free
from libc.string cimport memcpy, memset

from kvwire._ext.zstdlib import find as find_zstd
from kvwire.errors import ConfigError, ProtocolError

cdef extern from "<stdlib.h>" nogil:
    void *aligned_alloc(size_t alignment, size_t size)

cdef extern from "planes_impl.h" nogil:
    void kvwire_planes_split(const byte_t *src, size_t count, unsigned size, int rotate, byte_t *dst) noexcept
    void kvwire_planes_merge(const byte_t **planes, size_t count, unsigned size, int rotate, byte_t *dst) noexcept
    int kvwire_planes_shrinks(const byte_t *plane, size_t count) noexcept

cdef extern from "numbers_impl.h" nogil:
    long long kvwire_bf16_encode(const codec_t *c, const cell_t *cell, const byte_t *src, size_t n, byte_t *dst,
                                 size_t capacity, scratch_t *scratch) noexcept
    int kvwire_bf16_decode(const codec_t *c, const cell_t *cell, const byte_t *src, size_t length, byte_t *dst,
                           size_t n, scratch_t *scratch) noexcept

cdef extern from "quant_impl.h" nogil:
    enum: KVWIRE_SYMMETRIC, KVWIRE_RANGE, KVWIRE_E4M3, KVWIRE_DELTA
    ctypedef struct quant_t "kvwire_quant_t":
        byte_t bits
        byte_t kind
    long long kvwire_quant_encode(const codec_t *c, const cell_t *cell, const byte_t *src, size_t n, byte_t *dst,
                                  size_t capacity, scratch_t *scratch) noexcept
    int kvwire_quant_decode(const codec_t *c, const cell_t *cell, const byte_t *src, size_t length, byte_t *dst,
                            size_t n, scratch_t *scratch) noexcept

cdef enum:                         # zstd.h
    ZSTD_C_COMPRESSION_LEVEL = 100
    ZSTD_C_EXPERIMENTAL_PARAM_5 = 1002  # ZSTD_c_literalCompressionMode
    ZSTD_LCM_HUFFMAN = 1

cdef enum:
    MAX_ITEMSIZE = 8
    LEAST_GAIN = 32                # a cell that loses less than a 32nd of its bytes is not worth its decoding
    # Matches are hardly looked for: planes have none to speak of, and both looking and writing them down costs more than
    # it gives, in time and in bytes.
    # bench/README.md, under Codecs.
    LEVEL = -1000


# --- what a worker works in ---------------------------------------------------------------------------------------


cdef bint scratch_init(scratch_t *s, size_t cell_bytes, const zstd_t *zstd) noexcept nogil:
    """False without memory, and then there is nothing to free. Room for cells of `cell_bytes` at most."""
    memset(s, 0, sizeof(scratch_t))
    s.cell_bytes = cell_bytes
    s.bytes = <byte_t *>aligned_alloc(64, (SCRATCH_FACTOR * cell_bytes + 63) // 64 * 64 or 64)
    if s.bytes == NULL:
        return False
    if zstd == NULL:
        return True
    s.zstd = zstd
    s.encoder = zstd.new_encoder()
    s.decoder = zstd.new_decoder()
    if s.encoder == NULL or s.decoder == NULL or zstd.is_error(zstd.set(s.encoder, ZSTD_C_COMPRESSION_LEVEL, LEVEL)):
        scratch_free(s)
        return False
    # Fast levels leave literals as they are, unless told. A zstd that does not know this parameter goes by level 1.
    if zstd.is_error(zstd.set(s.encoder, ZSTD_C_EXPERIMENTAL_PARAM_5, ZSTD_LCM_HUFFMAN)):
        zstd.set(s.encoder, ZSTD_C_COMPRESSION_LEVEL, 1)
    return True


cdef void scratch_free(scratch_t *s) noexcept nogil:
    if s.encoder != NULL:
        s.zstd.free_encoder(s.encoder)
    if s.decoder != NULL:
        s.zstd.free_decoder(s.decoder)
    free(s.bytes)
    memset(s, 0, sizeof(scratch_t))


@cython.no_gc_clear                     # contexts are freed by functions of what it keeps
cdef class Scratch:
    """What one worker works in."""

    def __cinit__(self, size_t cell_bytes=MAX_CELL_BYTES, zstd=None):
        if cell_bytes > MAX_CELL_BYTES:
            raise ValueError(f"cell_bytes is {cell_bytes}; expected {MAX_CELL_BYTES} at most")
        self.zstd = find_zstd() if zstd is None else zstd
        if not scratch_init(&self.s, cell_bytes, NULL if self.zstd is None else &self.zstd.z):
            raise MemoryError()

    def __dealloc__(self):
        scratch_free(&self.s)


cdef class Cell:
    """What codecs are told of a cell."""

    def __cinit__(self, int element, int itemsize, parts, unsigned long long offset=0, unsigned layer=0,
                  unsigned layers=1):
        cdef unsigned long long block
        if len(parts) > MAX_PARTS or itemsize not in (1, 2, 4, 8) or not OTHER <= element <= FP64:
            raise ValueError(f"{len(parts)} parts of elements {element} of {itemsize} bytes")
        for i, (outer, tokens, inner, per_channel) in enumerate(parts):
            if min(outer, tokens, inner) < 1 or outer * tokens * inner * itemsize > 1 << 32:
                raise ValueError(f"part {i} has {outer} x {tokens} x {inner} elements")
            self.parts[i].outer, self.parts[i].tokens, self.parts[i].inner = outer, tokens, inner
            self.parts[i].per_channel = bool(per_channel)
        self.c.parts = self.parts
        self.c.nparts = len(parts)
        self.c.element = element
        self.c.itemsize = itemsize
        block = self.block_bytes()
        self.c.offset = offset % block if block else 0
        self.c.layer, self.c.layers = layer, layers

    cdef unsigned long long block_bytes(self) noexcept:
        cdef unsigned long long count = 0
        cdef unsigned int i
        for i in range(self.c.nparts):
            count += self.parts[i].outer * self.parts[i].tokens * self.parts[i].inner
        return count * self.c.itemsize

    @property
    def element(self):
        return self.c.element

    @property
    def itemsize(self):
        return self.c.itemsize

    @property
    def parts(self):
        return tuple((self.parts[i].outer, self.parts[i].tokens, self.parts[i].inner, bool(self.parts[i].per_channel))
                     for i in range(self.c.nparts))

    @property
    def offset(self):
        return self.c.offset

    @property
    def layer(self):
        return self.c.layer

    @property
    def layers(self):
        return self.c.layers


# --- lossless -----------------------------------------------------------------------------------------------------


cdef bint rotates(const cell_t *cell) noexcept nogil:
    return cell.element != OTHER and cell.itemsize > 1


cdef void put_u32(byte_t *at, size_t value) noexcept nogil:
    cdef unsigned int little = <unsigned int>value     # planes_impl.c refuses to be built for another byte order
    memcpy(at, &little, 4)


cdef size_t get_u32(const byte_t *at) noexcept nogil:
    cdef unsigned int little
    memcpy(&little, at, 4)
    return little


cdef long long planes_encode(const codec_t *c, const cell_t *cell, const byte_t *src, size_t n, byte_t *dst,
                             size_t capacity, scratch_t *s) noexcept nogil:
    """Length of each plane; planes; the bytes of an element that is not whole."""
    cdef size_t size = cell.itemsize, count = n // size, tail = n - count * size
    cdef size_t at = 4 * size, limit = min(capacity, n - n // LEAST_GAIN), length, i
    cdef bint[MAX_ITEMSIZE] shrinks
    cdef bint any_shrinks = False
    cdef const byte_t *plane = s.bytes
    if s.zstd == NULL or n > s.cell_bytes or at + tail >= limit:
        return -1
    kvwire_planes_split(src, count, <unsigned>size, rotates(cell), s.bytes)
    for i in range(size):
        shrinks[i] = kvwire_planes_shrinks(s.bytes + i * count, count)
        any_shrinks |= shrinks[i]
    if not any_shrinks:
        return -1
    limit -= tail
    for i in range(size):
        length = count
        if shrinks[i]:
            length = s.zstd.compress(s.encoder, dst + at, min(limit - at, count - 1), plane, count)
            if s.zstd.is_error(length):          # it would have been no shorter, as a rule
                length = count
        if length == count:
            if limit - at < count:
                return -1
            memcpy(dst + at, plane, count)
        put_u32(dst + 4 * i, length)
        at += length
        plane += count
    memcpy(dst + at, src + count * size, tail)
    return <long long>(at + tail)


cdef int planes_decode(const codec_t *c, const cell_t *cell, const byte_t *src, size_t length, byte_t *dst, size_t n,
                       scratch_t *s) noexcept nogil:
    cdef size_t size = cell.itemsize, count = n // size, tail = n - count * size
    cdef size_t at = 4 * size, i, this
    cdef const byte_t *planes[MAX_ITEMSIZE]
    if s.zstd == NULL or n > s.cell_bytes or length < at + tail:
        return 0
    for i in range(size):
        this = get_u32(src + 4 * i)
        if this > count or this > length - tail - at:
            return 0
        planes[i] = src + at
        if this < count:
            planes[i] = s.bytes + i * count
            # What it writes ends with the plane; a code of an error is no such length.
            if s.zstd.decompress(s.decoder, s.bytes + i * count, count, src + at, this) != count:
                return 0
        at += this
    if at + tail != length:
        return 0
    kvwire_planes_merge(planes, count, <unsigned>size, rotates(cell), dst)
    memcpy(dst + count * size, src + at, tail)
    return 1


# --- a user's, in Python ------------------------------------------------------------------------------------------


# The functions are given copies: a view of a worker's memory could outlive the call.


cdef long long python_encode(const codec_t *c, const cell_t *cell, const byte_t *src, size_t n, byte_t *dst,
                             size_t capacity, scratch_t *s) noexcept with gil:
    cdef bytes payload
    try:
        data = PyBytes_FromStringAndSize(<const char *>src, <Py_ssize_t>n)
        made = (<tuple>c.provider)[0](cell_of(cell), memoryview(data))
        payload = b"" if made is None else bytes(made)
    except BaseException:
        return -1
    if not 0 < <size_t>len(payload) < n or <size_t>len(payload) > capacity:
        return -1
    memcpy(dst, PyBytes_AS_STRING(payload), <size_t>len(payload))
    return len(payload)


cdef int python_decode(const codec_t *c, const cell_t *cell, const byte_t *src, size_t length, byte_t *dst, size_t n,
                       scratch_t *s) noexcept with gil:
    cdef bytes plain
    try:
        payload = PyBytes_FromStringAndSize(<const char *>src, <Py_ssize_t>length)
        plain = bytes((<tuple>c.provider)[1](cell_of(cell), memoryview(payload), n))
    except BaseException:
        return 0
    if <size_t>len(plain) != n:
        return 0
    memcpy(dst, PyBytes_AS_STRING(plain), n)
    return 1


cdef object cell_of(const cell_t *cell):
    parts = [(cell.parts[i].outer, cell.parts[i].tokens, cell.parts[i].inner, cell.parts[i].per_channel)
             for i in range(cell.nparts)]
    return Cell(cell.element, cell.itemsize, parts, cell.offset, cell.layer, cell.layers)


# --- codecs -------------------------------------------------------------------------------------------------------


cdef quant_t INT8, INT4, INT2, FP8, DELTA
INT8.bits, INT8.kind = 8, KVWIRE_SYMMETRIC
INT4.bits, INT4.kind = 4, KVWIRE_RANGE
INT2.bits, INT2.kind = 2, KVWIRE_RANGE
FP8.bits, FP8.kind = 8, KVWIRE_E4M3
DELTA.bits, DELTA.kind = 8, KVWIRE_DELTA


cdef class Native:
    """A codec as workers call it: two functions. The methods are for tests and measurements."""

    def __init__(self):
        raise TypeError("own(), of_python() and of_addresses() make it")

    def __repr__(self):
        return f"<codec {self.name}, {self.c.id} on the wire>"

    @property
    def id(self):
        return self.c.id

    def encode_into(self, Cell cell not None, src, dst, Scratch scratch not None):
        cdef Py_buffer a, b
        cdef long long length
        PyObject_GetBuffer(src, &a, PyBUF_SIMPLE)
        try:
            PyObject_GetBuffer(dst, &b, PyBUF_SIMPLE | PyBUF_WRITABLE)
        except BaseException:
            PyBuffer_Release(&a)
            raise
        with nogil:
            length = self.c.encode(&self.c, &cell.c, <const byte_t *>a.buf, <size_t>a.len, <byte_t *>b.buf,
                                   <size_t>b.len, &scratch.s)
        PyBuffer_Release(&a)
        PyBuffer_Release(&b)
        return length

    def decode_into(self, Cell cell not None, src, dst, Scratch scratch not None):
        cdef Py_buffer a, b
        cdef bint done
        PyObject_GetBuffer(src, &a, PyBUF_SIMPLE)
        try:
            PyObject_GetBuffer(dst, &b, PyBUF_SIMPLE | PyBUF_WRITABLE)
        except BaseException:
            PyBuffer_Release(&a)
            raise
        with nogil:
            done = self.c.decode(&self.c, &cell.c, <const byte_t *>a.buf, <size_t>a.len, <byte_t *>b.buf,
                                 <size_t>b.len, &scratch.s)
        PyBuffer_Release(&a)
        PyBuffer_Release(&b)
        return bool(done)

    def encode(self, Cell cell not None, data, Scratch scratch not None):
        cdef bytearray out = bytearray(memoryview(data).nbytes)
        cdef long long length = self.encode_into(cell, data, out, scratch)
        return None if length < 0 else bytes(out[:length])

    def decode(self, Cell cell not None, payload, size_t n, Scratch scratch not None):
        cdef bytearray out = bytearray(n)
        if not self.decode_into(cell, payload, out, scratch):
            raise ProtocolError(f"{memoryview(payload).nbytes} bytes are no payload of codec {self.name} for a cell of "
                                f"{n} bytes")
        return bytes(out)


cdef Native make(str name, int wire_id, bint needs_zstd, bint nogil_):
    cdef Native made = Native.__new__(Native)
    made.name = name
    made.c.id = <byte_t>wire_id
    made.needs_zstd = needs_zstd
    made.nogil = nogil_
    return made


def own(str name, int wire_id):
    cdef dict quants = {"int8": <size_t>&INT8, "int4": <size_t>&INT4, "int2": <size_t>&INT2, "fp8": <size_t>&FP8,
                        "delta": <size_t>&DELTA}
    cdef Native made = make(name, wire_id, name in ("zstd", "delta"), True)
    if name == "zstd":
        made.c.encode = planes_encode
        made.c.decode = planes_decode
    elif name == "bf16":
        made.c.encode = kvwire_bf16_encode
        made.c.decode = kvwire_bf16_decode
    else:
        made.c.provider = <const void *><size_t>quants[name]
        made.c.encode = kvwire_quant_encode
        made.c.decode = kvwire_quant_decode
    return made


def of_python(str name, int wire_id, encode, decode):
    cdef Native made = make(name, wire_id, False, False)
    made.keep = (encode, decode)
    made.c.provider = <const void *>made.keep
    made.c.encode = python_encode
    made.c.decode = python_decode
    return made


def of_addresses(str name, int wire_id, size_t encode, size_t decode, size_t provider=0, keep=None):
    cdef Native made = make(name, wire_id, False, True)
    made.keep = keep
    made.c.provider = <const void *>provider
    made.c.encode = <long long (*)(const codec_t *, const cell_t *, const byte_t *, size_t, byte_t *, size_t,
                                   scratch_t *) noexcept nogil><void *>encode
    made.c.decode = <int (*)(const codec_t *, const cell_t *, const byte_t *, size_t, byte_t *, size_t,
                             scratch_t *) noexcept nogil><void *>decode
    return made


# --- what tests and benchmarks ask of the C -----------------------------------------------------------------------


def split_planes(src, dst, size_t size, bint rotate):
    cdef const byte_t[::1] a = src
    cdef byte_t[::1] b = dst
    if a.shape[0] != b.shape[0] or size not in (1, 2, 4, 8) or a.shape[0] == 0:
        raise ValueError("elements of 1, 2, 4 or 8 bytes, and as much room")
    with nogil:
        kvwire_planes_split(&a[0], <size_t>a.shape[0] // size, <unsigned>size, rotate, &b[0])


def merge_planes(src, dst, size_t size, bint rotate):
    cdef const byte_t[::1] a = src
    cdef byte_t[::1] b = dst
    cdef const byte_t *planes[MAX_ITEMSIZE]
    cdef size_t count, i
    if a.shape[0] != b.shape[0] or size not in (1, 2, 4, 8) or a.shape[0] == 0:
        raise ValueError("elements of 1, 2, 4 or 8 bytes, and as much room")
    count = <size_t>a.shape[0] // size
    with nogil:
        for i in range(size):
            planes[i] = &a[0] + i * count
        kvwire_planes_merge(planes, count, <unsigned>size, rotate, &b[0])
