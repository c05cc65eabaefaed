#include "quant_impl.h"

#include "floats_impl.h"
#include "numbers_impl.h"

/* --- tiles -------------------------------------------------------------------------------------------------------- */

/* Rows of numbers that lie one behind the other in a cell: of one part, of tokens that follow one another. */
typedef struct {
    size_t at, rows, cols; /* numbers */
    int channels;          /* one scale for each column; otherwise for each group of a row */
} tile_t;

typedef struct {
    const kvwire_cell_t *cell;
    uint64_t place; /* of the next number in its block */
    size_t at, count;
    int delta;
} walk_t;

static walk_t walk_over(const kvwire_cell_t *cell, size_t count, int delta) {
    return (walk_t){cell, cell->offset / cell->itemsize, 0, count, delta};
}

static int next_tile(walk_t *w, tile_t *tile) {
    const kvwire_part_t *part = w->cell->parts, *end = part + w->cell->nparts;
    size_t left = w->count - w->at;
    uint64_t place = w->place, numbers = 0;
    if (left == 0)
        return 0;
    for (; part < end; part++) {
        numbers = part->outer * part->tokens * part->inner;
        if (place < numbers)
            break;
        place -= numbers;
    }
    if (part == end) { /* the next block */
        w->place = 0;
        return next_tile(w, tile);
    }
    uint64_t column = place % part->inner, token = place / part->inner % part->tokens;
    tile->at = w->at;
    if (column != 0 || left < part->inner) { /* a row that begins or ends elsewhere */
        tile->rows = 1;
        tile->cols = part->inner - column < left ? (size_t)(part->inner - column) : left;
    } else {
        tile->cols = (size_t)part->inner;
        tile->rows = left / tile->cols;
        if (tile->rows > part->tokens - token)
            tile->rows = (size_t)(part->tokens - token);
        if (tile->rows > KVWIRE_QUANT_TOKENS)
            tile->rows = KVWIRE_QUANT_TOKENS;
    }
    tile->channels = tile->rows >= KVWIRE_QUANT_FEWEST && (w->delta || part->per_channel);
    w->at += tile->rows * tile->cols;
    w->place += tile->rows * tile->cols;
    return 1;
}

static size_t groups(size_t cols) {
    return (cols + KVWIRE_QUANT_GROUP - 1) / KVWIRE_QUANT_GROUP;
}

/* How many scales a cell has. */
static size_t count_scales(const kvwire_cell_t *cell, size_t count, int delta) {
    walk_t w = walk_over(cell, count, delta);
    tile_t tile;
    size_t scales = 0;
    while (next_tile(&w, &tile))
        scales += tile.channels ? tile.cols + (delta ? groups(tile.cols) : 0) : tile.rows * groups(tile.cols);
    return scales;
}

/* --- scales ------------------------------------------------------------------------------------------------------- */

/* The least bf16 that is no less, as a float; infinite where there is none, and 0 for what is less than the least normal
 * number. For what is not negative. */
static float rounded_up(float value) {
    return value < 0x1p-126f ? 0 : float_of((bits_of(value) + 0xFFFF) & 0xFFFF0000);
}

/* The largest bf16 that is no larger. */
static float rounded_down(float value) {
    uint32_t bits = bits_of(value);
    return float_of((bits >> 31 ? bits + 0xFFFF : bits) & 0xFFFF0000);
}

/* In place: the least and the largest number become the least one and the scale, as they are written. 0 where bf16 has none
 * so large. */
static int scale_of(unsigned kind, int levels, float *least, float *scale) {
    if (kind == KVWIRE_RANGE) {
        float high = *scale;
        *least = rounded_down(*least) + 0.0f; /* which of two zeros is the least is nobody's business */
        *scale = rounded_up((high - *least) / (float)levels);
    } else {
        float most = *scale > -*least ? *scale : -*least;
        *least = 0;
        *scale = rounded_up(most / (kind == KVWIRE_E4M3 ? KVWIRE_E4M3_MAX : (float)levels));
    }
    return *scale <= KVWIRE_BF16_MAX && *least >= -KVWIRE_BF16_MAX;
}

static uint8_t *write_scale(unsigned kind, float least, float scale, uint8_t *at) {
    uint16_t pair[2] = {float_to_bf16(scale), float_to_bf16(least)};
    size_t length = kind == KVWIRE_RANGE ? 4 : 2;
    memcpy(at, pair, length);
    return at + length;
}

static const uint8_t *read_scale(unsigned kind, const uint8_t *at, float *least, float *scale) {
    uint16_t pair[2] = {0, 0};
    size_t length = kind == KVWIRE_RANGE ? 4 : 2;
    memcpy(pair, at, length);
    *scale = bf16_to_float(pair[0]);
    *least = bf16_to_float(pair[1]);
    return at + length;
}

/* --- codes -------------------------------------------------------------------------------------------------------- */

/* A scale of 0 stands for numbers that are all (nearly) the least one, or 0. */
static inline uint8_t code_of(unsigned kind, float value, float least, float scale) {
    float divisor = scale > 0 ? scale : 1;
    value = kind == KVWIRE_RANGE ? value - least : value;
    value = scale > 0 ? value : value * 0;
    value /= divisor;
    if (kind == KVWIRE_E4M3)
        return float_to_e4m3(value);
    return (uint8_t)(int)(value + (kind == KVWIRE_RANGE ? 0.5f : 128.5f));
}

static inline float value_of(unsigned kind, uint8_t code, float least, float scale) {
    if (kind == KVWIRE_RANGE)
        return least + (float)code * scale;
    return (kind == KVWIRE_E4M3 ? e4m3_to_float(code) : (float)((int)code - 128)) * scale;
}

/* `step`: 1 where each number has its own scale, 0 where all have the first. Inlined, so that kind and step are constants. */
static inline __attribute__((always_inline)) void code_each(unsigned kind, size_t step, const float *restrict x,
                                                            size_t count, const float *restrict least,
                                                            const float *restrict scale, uint8_t *restrict codes) {
    for (size_t i = 0; i < count; i++)
        codes[i] = code_of(kind, x[i], least[i * step], scale[i * step]);
}

static inline __attribute__((always_inline)) void value_each(unsigned kind, size_t step, const uint8_t *restrict codes,
                                                             size_t count, const float *restrict least,
                                                             const float *restrict scale, float *restrict x) {
    for (size_t i = 0; i < count; i++)
        x[i] = value_of(kind, codes[i], least[i * step], scale[i * step]);
}

#define FOR_KIND(each, kind, step, ...)                                                                                \
    do {                                                                                                               \
        if ((kind) == KVWIRE_RANGE)                                                                                    \
            each(KVWIRE_RANGE, step, __VA_ARGS__);                                                                     \
        else if ((kind) == KVWIRE_E4M3)                                                                                \
            each(KVWIRE_E4M3, step, __VA_ARGS__);                                                                      \
        else                                                                                                           \
            each(KVWIRE_SYMMETRIC, step, __VA_ARGS__);                                                                 \
    } while (0)

/* A row with a scale for each group; NULL where one is too large. */
static uint8_t *code_row(unsigned kind, int levels, const float *x, size_t cols, uint8_t *codes, uint8_t *scales) {
    for (size_t at = 0; at < cols; at += KVWIRE_QUANT_GROUP) {
        size_t count = cols - at < KVWIRE_QUANT_GROUP ? cols - at : KVWIRE_QUANT_GROUP;
        float least = x[at], scale = x[at];
        for (size_t i = at + 1; i < at + count; i++) {
            least = x[i] < least ? x[i] : least;
            scale = x[i] > scale ? x[i] : scale;
        }
        if (!scale_of(kind, levels, &least, &scale))
            return NULL;
        scales = write_scale(kind, least, scale, scales);
        FOR_KIND(code_each, kind, 0, x + at, count, &least, &scale, codes + at);
    }
    return scales;
}

static const uint8_t *value_row(unsigned kind, const uint8_t *codes, size_t cols, const uint8_t *scales, float *x) {
    for (size_t at = 0; at < cols; at += KVWIRE_QUANT_GROUP) {
        size_t count = cols - at < KVWIRE_QUANT_GROUP ? cols - at : KVWIRE_QUANT_GROUP;
        float least, scale;
        scales = read_scale(kind, scales, &least, &scale);
        FOR_KIND(value_each, kind, 0, codes + at, count, &least, &scale, x + at);
    }
    return scales;
}

/* Rows with a scale for each column. `least` and `scale`: room for as many numbers as there are columns. */
static uint8_t *code_columns(unsigned kind, int levels, const float *x, size_t rows, size_t cols, float *restrict least,
                             float *restrict scale, uint8_t *codes, uint8_t *scales) {
    memcpy(least, x, cols * sizeof *x);
    memcpy(scale, x, cols * sizeof *x);
    for (size_t row = 1; row < rows; row++) {
        const float *restrict y = x + row * cols;
        for (size_t i = 0; i < cols; i++) {
            least[i] = y[i] < least[i] ? y[i] : least[i];
            scale[i] = y[i] > scale[i] ? y[i] : scale[i];
        }
    }
    for (size_t i = 0; i < cols; i++) {
        if (!scale_of(kind, levels, least + i, scale + i))
            return NULL;
        scales = write_scale(kind, least[i], scale[i], scales);
    }
    for (size_t row = 0; row < rows; row++)
        FOR_KIND(code_each, kind, 1, x + row * cols, cols, least, scale, codes + row * cols);
    return scales;
}

static const uint8_t *value_columns(unsigned kind, const uint8_t *codes, size_t rows, size_t cols, float *least,
                                    float *scale, const uint8_t *scales, float *x) {
    for (size_t i = 0; i < cols; i++)
        scales = read_scale(kind, scales, least + i, scale + i);
    for (size_t row = 0; row < rows; row++)
        FOR_KIND(value_each, kind, 1, codes + row * cols, cols, least, scale, x + row * cols);
    return scales;
}

/* --- delta -------------------------------------------------------------------------------------------------------- */

/* The first row is the anchor, in 8 bits; of the others the difference to what the receiver will have of it. `x` becomes
 * the differences. Levels to either side: fewer, the deeper the layer, since errors there have less left to spoil. */
static int delta_levels(const kvwire_cell_t *cell) {
    static const int levels[3] = {15, 7, 3};
    uint64_t third = cell->layers ? (uint64_t)cell->layer * 3 / cell->layers : 0;
    return levels[third < 3 ? third : 2];
}

static uint8_t *code_delta(int levels, float *x, const tile_t *tile, float *room, uint8_t *codes, uint8_t *scales) {
    size_t cols = tile->cols;
    float *restrict anchor = room + 2 * cols;
    const uint8_t *begin_of_scales = scales;
    scales = code_row(KVWIRE_SYMMETRIC, 127, x, cols, codes, scales);
    if (scales == NULL)
        return NULL;
    value_row(KVWIRE_SYMMETRIC, codes, cols, begin_of_scales, anchor);
    for (size_t row = 1; row < tile->rows; row++) {
        float *restrict y = x + row * cols;
        for (size_t i = 0; i < cols; i++)
            y[i] -= anchor[i];
    }
    return code_columns(KVWIRE_SYMMETRIC, levels, x + cols, tile->rows - 1, cols, room, room + cols, codes + cols, scales);
}

static const uint8_t *value_delta(const uint8_t *codes, const tile_t *tile, float *room, const uint8_t *scales, float *x) {
    size_t cols = tile->cols;
    scales = value_row(KVWIRE_SYMMETRIC, codes, cols, scales, x);
    scales = value_columns(KVWIRE_SYMMETRIC, codes + cols, tile->rows - 1, cols, room, room + cols, scales, x + cols);
    for (size_t row = 1; row < tile->rows; row++) {
        float *restrict y = x + row * cols;
        for (size_t i = 0; i < cols; i++)
            y[i] += x[i];
    }
    return scales;
}

/* --- cells -------------------------------------------------------------------------------------------------------- */

/* How the scratch of a worker is used: numbers, three rows of them, codes. Tiles with scales by column have
 * KVWIRE_QUANT_FEWEST rows or more, so that a row has at most an eighth of the numbers: 6.5 bytes for each in all, of the 8
 * or 16 that are there. */
typedef struct {
    size_t count;
    float *x, *room;
    uint8_t *codes;
} work_t;

static int begin(const kvwire_cell_t *cell, size_t n, kvwire_scratch_t *scratch, work_t *w) {
    if (cell->element < KVWIRE_BF16 || cell->element > KVWIRE_FP32 || cell->nparts == 0 || n == 0 ||
        n > scratch->cell_bytes || n % cell->itemsize || cell->offset % cell->itemsize)
        return 0;
    w->count = n / cell->itemsize;
    w->x = (float *)scratch->bytes;
    w->room = w->x + w->count;
    w->codes = (uint8_t *)(w->room + 3 * (w->count / KVWIRE_QUANT_FEWEST));
    return 1;
}

long long kvwire_quant_encode(const kvwire_codec_t *c, const kvwire_cell_t *cell, const uint8_t *src, size_t n,
                              uint8_t *dst, size_t capacity, kvwire_scratch_t *scratch) {
    const kvwire_quant_t *q = c->provider;
    const int delta = q->kind == KVWIRE_DELTA;
    const unsigned kind = delta ? KVWIRE_SYMMETRIC : q->kind;
    const int levels = kind == KVWIRE_RANGE ? (1 << q->bits) - 1 : 127;
    work_t w;
    tile_t tile;
    uint8_t *at = dst;
    if (!begin(cell, n, scratch, &w) || (delta && scratch->zstd == NULL))
        return -1;
    const size_t limit = capacity < n - 1 ? capacity : n - 1;
    const size_t scales = count_scales(cell, w.count, delta) * (kind == KVWIRE_RANGE ? 4 : 2);
    const size_t packed = delta ? 1 : (w.count * q->bits + 7) / 8;
    if (scales + packed > limit || !kvwire_numbers_load(cell->element, src, w.count, w.x))
        return -1;
    for (walk_t walk = walk_over(cell, w.count, delta); at && next_tile(&walk, &tile);) {
        float *x = w.x + tile.at;
        uint8_t *codes = w.codes + tile.at;
        if (tile.channels && delta)
            at = code_delta(delta_levels(cell), x, &tile, w.room, codes, at);
        else if (tile.channels)
            at = code_columns(kind, levels, x, tile.rows, tile.cols, w.room, w.room + tile.cols, codes, at);
        else
            for (size_t row = 0; at && row < tile.rows; row++)
                at = code_row(kind, levels, x + row * tile.cols, tile.cols, codes + row * tile.cols, at);
    }
    if (at == NULL)
        return -1;
    if (delta) {
        size_t length = scratch->zstd->compress(scratch->encoder, at, limit - scales, w.codes, w.count);
        return scratch->zstd->is_error(length) ? -1 : (long long)(scales + length);
    }
    kvwire_numbers_pack(q->bits, w.codes, w.count, at);
    return (long long)(scales + packed);
}

int kvwire_quant_decode(const kvwire_codec_t *c, const kvwire_cell_t *cell, const uint8_t *src, size_t length,
                        uint8_t *dst, size_t n, kvwire_scratch_t *scratch) {
    const kvwire_quant_t *q = c->provider;
    const int delta = q->kind == KVWIRE_DELTA;
    const unsigned kind = delta ? KVWIRE_SYMMETRIC : q->kind;
    work_t w;
    tile_t tile;
    if (!begin(cell, n, scratch, &w) || (delta && scratch->zstd == NULL))
        return 0;
    const size_t scales = count_scales(cell, w.count, delta) * (kind == KVWIRE_RANGE ? 4 : 2);
    if (delta) {
        if (length <= scales || scratch->zstd->decompress(scratch->decoder, w.codes, w.count, src + scales,
                                                          length - scales) != w.count)
            return 0; /* a code of an error is no such length */
    } else {
        if (length != scales + (w.count * q->bits + 7) / 8)
            return 0;
        kvwire_numbers_unpack(q->bits, src + scales, w.count, w.codes);
    }
    for (walk_t walk = walk_over(cell, w.count, delta); next_tile(&walk, &tile);) {
        float *x = w.x + tile.at;
        const uint8_t *codes = w.codes + tile.at;
        if (tile.channels && delta)
            src = value_delta(codes, &tile, w.room, src, x);
        else if (tile.channels)
            src = value_columns(kind, codes, tile.rows, tile.cols, w.room, w.room + tile.cols, src, x);
        else
            for (size_t row = 0; row < tile.rows; row++)
                src = value_row(kind, codes + row * tile.cols, tile.cols, src, x + row * tile.cols);
    }
    kvwire_numbers_store(cell->element, w.x, w.count, dst);
    return 1;
}
