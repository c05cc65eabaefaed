/* What a codec is, and what it is told of a cell: docs/compression.md. Shared by the C of codecs and by codec.pxd.
 *
 * A codec works on one cell and knows nothing of others. Its functions are called by workers, from any thread and without
 * the GIL, each with the scratch of its worker. They keep nothing between calls, so that the same cell always gives the
 * same payload, and a payload the same cell. */
#ifndef KVWIRE_CODEC_IMPL_H
#define KVWIRE_CODEC_IMPL_H

#include <stddef.h>
#include <stdint.h>

/* Elements that codecs tell apart. OTHER: integers, floats of one byte, and what has no meaning here. */
enum { KVWIRE_OTHER = 0, KVWIRE_BF16 = 1, KVWIRE_FP16 = 2, KVWIRE_FP32 = 3, KVWIRE_FP64 = 4 };

/* One part of a block, [outer, tokens, inner] in C order. Without a token axis: 1, 1 and all of its elements. */
typedef struct {
    uint64_t outer, tokens, inner;
    uint8_t per_channel; /* keys: what one scale stands for runs along tokens, otherwise along channels */
} kvwire_part_t;

typedef struct {
    const kvwire_part_t *parts; /* of a block, in order; blocks follow one another */
    uint32_t nparts;
    uint8_t element;
    uint8_t itemsize;      /* 1, 2, 4 or 8 */
    uint32_t layer, layers; /* the place of the layer among those of its group, and how many these are */
    uint64_t offset;       /* bytes from the begin of a block to that of the cell */
} kvwire_cell_t;

/* Of libzstd; the functions are those of zstd.h. */
typedef struct {
    void *(*new_encoder)(void);
    size_t (*free_encoder)(void *ctx);
    size_t (*set)(void *ctx, int parameter, int value);
    size_t (*compress)(void *ctx, void *dst, size_t capacity, const void *src, size_t n);
    void *(*new_decoder)(void);
    size_t (*free_decoder)(void *ctx);
    size_t (*decompress)(void *ctx, void *dst, size_t capacity, const void *src, size_t n);
    unsigned (*is_error)(size_t code);
} kvwire_zstd_t;

/* What a worker has to work in, made once. One thread uses it at a time. */
typedef struct {
    uint8_t *bytes;    /* KVWIRE_SCRATCH_FACTOR times cell_bytes, aligned to 64 */
    size_t cell_bytes; /* the longest cell */
    const kvwire_zstd_t *zstd; /* NULL: there is no libzstd, and the next two are NULL, too */
    void *encoder;
    void *decoder;
} kvwire_scratch_t;

#define KVWIRE_SCRATCH_FACTOR 4

typedef struct kvwire_codec kvwire_codec_t;
struct kvwire_codec {
    const void *provider; /* the codec's own */
    /* The payload of a cell of n bytes, at most `capacity` bytes of it: its length, or -1 where the cell is to be sent as
     * it is: the codec cannot have it, or it does not shrink. */
    long long (*encode)(const kvwire_codec_t *c, const kvwire_cell_t *cell, const uint8_t *src, size_t n, uint8_t *dst,
                        size_t capacity, kvwire_scratch_t *scratch);
    /* Exactly n bytes from a payload that may be anything: 1, or 0 where it is none of a cell of n bytes. Then what is in
     * dst means nothing. It reads nothing outside of the payload, and writes nothing outside of dst and scratch. */
    int (*decode)(const kvwire_codec_t *c, const kvwire_cell_t *cell, const uint8_t *src, size_t length, uint8_t *dst,
                  size_t n, kvwire_scratch_t *scratch);
    uint8_t id;           /* on the wire; 0 stands for no codec */
};

#endif
