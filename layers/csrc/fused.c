/* A template convolution in one pass on a CPU: stage one and the gather take turns on tiles that stay in the cache.

   For images (B, C, H, W) and outputs (B, N, H, W) of stride 1. A tile is a few whole images, or some rows of one. Its
   inputs are packed once; then, template by template, a small matrix product makes the template's maps, and the outputs
   that are made from it are summed while the maps are still in the first-level cache. */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#if defined(__AVX512BF16__)
#include <immintrin.h>
enum { PAIRED = 1 }; /* products of bfloat16 are of two channels at once, which are held as a float's bits */
#else
enum { PAIRED = 0 };
#endif

#if defined(__AVX512F__)
enum { LANES = 16, ROWS = 9, VECTORS = 3, OUTPUTS = 8 };
#elif defined(__AVX__)
enum { LANES = 8, ROWS = 5, VECTORS = 2, OUTPUTS = 4 };
#else
enum { LANES = 4, ROWS = 5, VECTORS = 3, OUTPUTS = 4 };
#endif
enum { PANEL = LANES * VECTORS, AHEAD = 2, LEAST_ROWS = 16 };
enum { CACHED = 1 << 17 }; /* values of a tile's inputs, which the second-level cache should hold */

typedef float Vector __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t Mask __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
#define INLINE static inline __attribute__((always_inline))

typedef struct {
    const void *x;                             /* float32, or bfloat16 as y is then */
    const float *templates, *operators, *bias; /* (G, M, C / G, T), (N, G, T) or (N, G, T, T), (N,) */
    const float *pairs;                        /* or 0: (G, M, C / G / 2, T) of two bfloat16 each, the first one lower */
    const int64_t *order, *begin;              /* outputs by their template, and where each template's begin */
    void *y;
    int64_t batch, channels, height, width, outputs, groups, count; /* count: templates M */
    int64_t kernel[2], dilation[2]; /* (y, x) */
    int64_t full, half;             /* whether operators mix taps; whether x and y are bfloat16 */
} Layer;

typedef struct {
    int64_t image, images, first, last; /* rows of output; all of them where there are several images */
    int64_t from, to;                   /* rows of input that they see */
    int64_t places, inputs, stride;     /* numbers of outputs and of inputs, and of values from one map to the next */
} Tile;

typedef struct {
    int64_t image, inside; /* where a vector of places begins: which image of the tile, and where in it */
} Spot;

typedef struct {
    const float *map;
    const int32_t *mask;
    float by;
} Term;

typedef struct {
    float *panels, *maps; /* packed inputs, and the maps of a template */
    int32_t *masks;       /* (T, masked), all bits where an output's tap lies in its image */
    int64_t *shifts;      /* where in its map each tap of the output at place 0 lies */
    Spot *spots;
    Term *terms;
    int64_t masked;
} Room;

static _Thread_local struct {
    char *memory;
    int64_t size;
} scratch; /* kept: fresh memory would cost more than what is done with it */

static inline int64_t least(int64_t one, int64_t other) {
    return one < other ? one : other;
}

static inline int64_t most(int64_t one, int64_t other) {
    return one > other ? one : other;
}

static inline int64_t up(int64_t number, int64_t step) {
    return (number + step - 1) / step * step;
}

static inline int paired(const Layer *layer) {
    return PAIRED && layer->half && layer->pairs;
}

/* Values that a place has in a panel for each group: its channels, or pairs of them. */
static inline int64_t depth_of(const Layer *layer) {
    int64_t channels = layer->channels / layer->groups;
    return paired(layer) ? (channels + 1) / 2 : channels;
}

static inline void read_pairs(float *to, const uint16_t *low, const uint16_t *high, int64_t count) {
    for (int64_t i = 0; i < count; i++) {
        uint32_t pair = low[i] | (high ? (uint32_t)high[i] << 16 : 0);
        memcpy(to + i, &pair, sizeof pair);
    }
}

/* A group's value of some places of an image, which begins at x + from: that of a channel, or of two. */
static inline void read(float *to, const Layer *layer, int64_t from, int64_t group, int64_t value, int64_t count) {
    int64_t area = layer->height * layer->width, channels = layer->channels / layer->groups, i = 0;
    from += (group * channels + (paired(layer) ? 2 * value : value)) * area;
    const float *whole = (const float *)layer->x + from;
    const uint16_t *half = (const uint16_t *)layer->x + from;
    if (paired(layer)) {
        read_pairs(to, half, 2 * value + 1 < channels ? half + area : 0, count);
        return;
    }
    for (; i + LANES <= count && !layer->half; i += LANES) *(Vector *)(to + i) = *(const Vector *)(whole + i);
    for (; i < count && !layer->half; i++) to[i] = whole[i];
    for (; i < count; i++) ((uint32_t *)to)[i] = (uint32_t)half[i] << 16;
}

/* The nearest bfloat16, to even from the middle. */
static inline uint16_t halved(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return value != value ? 0x7fc0 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

static inline void write(const Layer *layer, int64_t to, const float *values, int64_t count) {
    if (!layer->half) {
        memcpy((float *)layer->y + to, values, count * sizeof(float));
        return;
    }
    uint16_t *y = (uint16_t *)layer->y + to;
    for (int64_t i = 0; i < count; i++) y[i] = halved(values[i]);
}

/* Inputs of the tile as panels (places / PANEL, C, PANEL), where C may be pairs: those of a panel and group are read in
   one sweep. */
static void pack(const Layer *layer, const Tile *tile, float *panels) {
    int64_t area = layer->height * layer->width, each = (tile->to - tile->from) * layer->width;
    int64_t depth = depth_of(layer);
    for (int64_t i = 0; i < tile->images; i++) {
        int64_t image = (tile->image + i) * layer->channels * area + tile->from * layer->width;
        for (int64_t done = 0, count; done < each; done += count) {
            int64_t place = i * each + done, inside = place % PANEL;
            count = least(each - done, PANEL - inside);
            float *to = panels + place / PANEL * PANEL * layer->groups * depth + inside;
            for (int64_t g = 0; g < layer->groups; g++)
                for (int64_t d = 0; d < depth; d++, to += PANEL) read(to, layer, image + done, g, d, count);
        }
    }
}

INLINE Vector added(int pairs, Vector sum, const float *tap, Vector input) {
#if defined(__AVX512BF16__)
    if (pairs) {
        int32_t pair;
        memcpy(&pair, tap, sizeof pair);
        return (Vector)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32(pair), (__m512bh)input);
    }
#endif
    (void)pairs;
    return sum + *tap * input;
}

/* `rows` maps at `vectors` vectors of places: a product (rows, depth) x (depth, places). */
INLINE void product(int pairs, int rows, int vectors, const float *taps, int64_t step, const float *panel,
                    int64_t depth, float *maps, int64_t stride) {
    Vector sum[ROWS][VECTORS];
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++) sum[r][v] = (Vector){0};
    for (int64_t c = 0; c < depth; c++) {
        Vector input[VECTORS];
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++) input[v] = *(const Vector *)(panel + c * PANEL + v * LANES);
#pragma GCC unroll 16
        for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
            for (int v = 0; v < vectors; v++) sum[r][v] = added(pairs, sum[r][v], taps + c * step + r, input[v]);
    }
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++) *(Vector *)(maps + r * stride + v * LANES) = sum[r][v];
}

#define FOR_ROWS(rows, vectors, pairs)                                                  \
    case rows:                                                                          \
        product(pairs, rows, vectors, taps, step, panel, depth, maps, stride);          \
        break;
#define FOR_VECTORS(vectors, name, pairs)                                               \
    static void name##_##vectors(int rows, const float *taps, int64_t step, const float *panel, int64_t depth, \
                                 float *maps, int64_t stride) {                         \
        switch (rows) {                                                                 \
            FOR_ROWS(1, vectors, pairs)                                                 \
            FOR_ROWS(2, vectors, pairs)                                                 \
            FOR_ROWS(3, vectors, pairs)                                                 \
            FOR_ROWS(4, vectors, pairs)                                                 \
            FOR_ROWS(5, vectors, pairs)                                                 \
            MORE_ROWS(vectors, pairs)                                                   \
        }                                                                               \
    }
#if defined(__AVX512F__)
#define MORE_ROWS(vectors, pairs) \
    FOR_ROWS(6, vectors, pairs) FOR_ROWS(7, vectors, pairs) FOR_ROWS(8, vectors, pairs) FOR_ROWS(9, vectors, pairs)
#else
#define MORE_ROWS(vectors, pairs)
#endif
FOR_VECTORS(1, product, 0)
FOR_VECTORS(2, product, 0)
#if !defined(__AVX__) || defined(__AVX512F__)
FOR_VECTORS(3, product, 0)
#else
#define product_3 product_2 /* never called */
#endif
typedef void (*Product)(int, const float *, int64_t, const float *, int64_t, float *, int64_t);
#if defined(__AVX512BF16__)
FOR_VECTORS(1, paired, 1)
FOR_VECTORS(2, paired, 1)
FOR_VECTORS(3, paired, 1)
static const Product products[2][3] = {{product_1, product_2, product_3}, {paired_1, paired_2, paired_3}};
#else
static const Product products[1][3] = {{product_1, product_2, product_3}};
#endif

/* The T maps of one template in one group, at all inputs of the tile. */
static void stage_one(const Layer *layer, const Tile *tile, const Room *room, int64_t group, int64_t template) {
    int64_t taps = layer->kernel[0] * layer->kernel[1], depth = depth_of(layer);
    int64_t parts = (taps + ROWS - 1) / ROWS;
    float *maps = room->maps + group * taps * tile->stride;
    const float *first = paired(layer) ? layer->pairs : layer->templates;
    first += (group * layer->count + template) * depth * taps;
    for (int64_t place = 0; place < tile->inputs; place += PANEL) {
        const float *panel = room->panels + (place * layer->groups + group * PANEL) * depth;
        int64_t vectors = (least(PANEL, tile->inputs - place) + LANES - 1) / LANES;
        for (int64_t part = 0; part < parts; part++) {
            int64_t tap = taps * part / parts, rows = taps * (part + 1) / parts - tap;
            float *to = maps + tap * tile->stride + place;
            products[paired(layer)][vectors - 1](rows, first + tap, taps, panel, depth, to, tile->stride);
        }
    }
}

/* How far a tap lies from its output along a side (0 is y). */
static inline int64_t away(const Layer *layer, int side, int64_t tap) {
    return (2 * tap - layer->kernel[side] + 1) * layer->dilation[side] / 2;
}

static void fill_masks(const Layer *layer, const Tile *tile, int32_t *masks, int64_t stride) {
    int64_t rows = tile->last - tile->first;
    for (int64_t tap = 0; tap < layer->kernel[0] * layer->kernel[1]; tap++) {
        int64_t down = away(layer, 0, tap / layer->kernel[1]), right = away(layer, 1, tap % layer->kernel[1]);
        int32_t *mask = masks + tap * stride;
        for (int64_t row = 0; row < tile->images * rows; row++) {
            int64_t y = tile->first + row % rows + down;
            for (int64_t x = 0; x < layer->width; x++)
                *mask++ = -(y >= 0 && y < layer->height && x + right >= 0 && x + right < layer->width);
        }
        memset(mask, 0, (masks + (tap + 1) * stride - mask) * sizeof(int32_t));
    }
}

static inline int64_t shift(const Layer *layer, const Tile *tile, int64_t tap) {
    int64_t down = away(layer, 0, tap / layer->kernel[1]), right = away(layer, 1, tap % layer->kernel[1]);
    return (tile->first - tile->from + down) * layer->width + right;
}

/* `left` values from place `inside` on, image after image of `each` places; `to` is where the first image's begin.
   Inlined it would take the compiler long. */
static __attribute__((noinline)) void put_parts(const Layer *layer, int64_t to, int64_t inside, int64_t each,
                                                int64_t left, Vector values) {
    int64_t area = layer->height * layer->width;
    if (inside + LANES <= each) {
        write(layer, to + inside, (const float *)&values, LANES);
        return;
    }
    for (int64_t done = 0, count; done < left; done += count, inside = 0, to += layer->outputs * area) {
        count = least(left - done, each - inside);
        write(layer, to + inside, (const float *)&values + done, count);
    }
}

/* A vector of an output's values at place `at`, which may belong to several images. */
static inline void put(const Layer *layer, const Tile *tile, int64_t output, int64_t place, Spot at, Vector values) {
    int64_t area = layer->height * layer->width, each = (tile->last - tile->first) * layer->width;
    int64_t to = ((tile->image + at.image) * layer->outputs + output) * area + tile->first * layer->width;
    if (at.inside + LANES <= each && !layer->half)
        *(Vector *)((float *)layer->y + to + at.inside) = values;
#if defined(__AVX512BF16__)
    else if (at.inside + LANES <= each)
        _mm256_storeu_si256((__m256i *)((uint16_t *)layer->y + to + at.inside),
                            (__m256i)_mm512_cvtneps_pbh((__m512)values));
#endif
    else
        put_parts(layer, to, at.inside, each, least(LANES, tile->places - place), values);
}

static void fill_spots(const Layer *layer, const Tile *tile, Spot *spots) {
    int64_t each = (tile->last - tile->first) * layer->width;
    for (int64_t place = 0; place < tile->places; place += LANES) *spots++ = (Spot){place / each, place % each};
}

INLINE Vector seen(const float *map, const int32_t *mask) {
    return (Vector)(*(const Mask *)map & *(const Mask *)mask);
}

/* `outputs` outputs of gains at AHEAD vectors of places. */
INLINE void gains(int outputs, const Layer *layer, const Tile *tile, const Room *room, const int64_t *chosen,
                  int64_t place) {
    int64_t taps = layer->kernel[0] * layer->kernel[1], all = layer->groups * taps;
    const float *by[OUTPUTS];
    Vector sum[OUTPUTS][AHEAD];
#pragma GCC unroll 8
    for (int o = 0; o < outputs; o++) {
        float bias = layer->bias ? layer->bias[chosen[o]] : 0.0f;
        by[o] = layer->operators + chosen[o] * all;
#pragma GCC unroll 2
        for (int v = 0; v < AHEAD; v++) sum[o][v] = (Vector){0} + bias;
    }
    for (int64_t i = 0, tap = 0; i < all; i++, tap = tap + 1 < taps ? tap + 1 : 0) {
        const float *map = room->maps + i * tile->stride + place + room->shifts[tap];
        const int32_t *mask = room->masks + tap * room->masked + place;
        Vector one = seen(map, mask), other = seen(map + LANES, mask + LANES);
#pragma GCC unroll 8
        for (int o = 0; o < outputs; o++) sum[o][0] += by[o][i] * one, sum[o][1] += by[o][i] * other;
    }
    const Spot *at = room->spots + place / LANES;
#pragma GCC unroll 8
    for (int o = 0; o < outputs; o++) {
        put(layer, tile, chosen[o], place, at[0], sum[o][0]);
        if (place + LANES < tile->places) put(layer, tile, chosen[o], place + LANES, at[1], sum[o][1]);
    }
}

#define GAINS(outputs)                                                         \
    case outputs:                                                              \
        for (int64_t place = 0; place < tile->places; place += AHEAD * LANES)  \
            gains(outputs, layer, tile, room, chosen, place);                  \
        break;

static void gather_gains(const Layer *layer, const Tile *tile, const Room *room, const int64_t *chosen,
                         int64_t outputs) {
    for (; outputs > 0; chosen += OUTPUTS, outputs -= OUTPUTS)
        switch (least(outputs, OUTPUTS)) {
            GAINS(1)
            GAINS(2)
            GAINS(3)
            GAINS(4)
#if defined(__AVX512F__)
            GAINS(5)
            GAINS(6)
            GAINS(7)
            GAINS(8)
#endif
        }
}

/* One output whose operator mixes taps: the sum of its terms that are not zero. */
static void gather_mixed(const Layer *layer, const Tile *tile, const Room *room, int64_t output) {
    int64_t taps = layer->kernel[0] * layer->kernel[1], count = 0;
    const float *by = layer->operators + output * layer->groups * taps * taps;
    Term *terms = room->terms;
    for (int64_t g = 0; g < layer->groups; g++)
        for (int64_t tap = 0; tap < taps; tap++)
            for (int64_t k = 0; k < taps; k++, by++) {
                if (*by == 0.0f) continue;
                const float *map = room->maps + (g * taps + k) * tile->stride + room->shifts[tap];
                terms[count++] = (Term){map, room->masks + tap * room->masked, *by};
            }
    float bias = layer->bias ? layer->bias[output] : 0.0f;
    for (int64_t place = 0; place < tile->places; place += AHEAD * LANES) {
        Vector one = (Vector){0} + bias, other = one;
        for (int64_t i = 0; i < count; i++) {
            const float *map = terms[i].map + place;
            const int32_t *mask = terms[i].mask + place;
            one += terms[i].by * seen(map, mask), other += terms[i].by * seen(map + LANES, mask + LANES);
        }
        const Spot *at = room->spots + place / LANES;
        put(layer, tile, output, place, at[0], one);
        if (place + LANES < tile->places) put(layer, tile, output, place + LANES, at[1], other);
    }
}

/* A part of the scratch memory, of so many bytes, that begins where a vector may. */
static inline void *part(char **next, int64_t bytes) {
    void *found = *next;
    *next += up(bytes, sizeof(Vector));
    return found;
}

/* Memory for a tile; 0 where it is short. */
static int lay_out(const Layer *layer, const Tile *tile, Room *room) {
    int64_t taps = layer->kernel[0] * layer->kernel[1], terms = layer->full ? layer->groups * taps * taps : 0;
    int64_t wide = layer->width + layer->kernel[1] * layer->dilation[1];
    int64_t beyond = up((layer->kernel[0] * layer->dilation[0] + 1) * wide, LANES) + 4 * LANES; /* read, but masked */
    room->masked = up(tile->places, AHEAD * LANES);
    for (int tried = 0; tried < 2; tried++) { /* first to see how much it is */
        char *next = tried ? scratch.memory : 0;
        room->panels = part(&next, up(tile->inputs, PANEL) * layer->groups * depth_of(layer) * sizeof(float));
        room->masks = part(&next, taps * room->masked * sizeof(int32_t));
        room->shifts = part(&next, taps * sizeof(int64_t));
        room->spots = part(&next, room->masked / LANES * sizeof(Spot));
        room->terms = part(&next, terms * sizeof(Term));
        room->maps = (float *)part(&next, (2 * beyond + layer->groups * taps * tile->stride) * sizeof(float)) + beyond;
        int64_t bytes = next - (tried ? scratch.memory : (char *)0);
        if (bytes <= scratch.size) continue;
        free(scratch.memory);
        scratch.memory = aligned_alloc(sizeof(Vector), bytes);
        scratch.size = scratch.memory ? bytes : 0;
        if (!scratch.memory) return 0;
    }
    return 1;
}

/* Outputs of templates `from` to `to` in a tile; 0 where memory is short. */
static int convolve(const Layer *layer, const Tile *tile, int64_t from, int64_t to) {
    int64_t taps = layer->kernel[0] * layer->kernel[1];
    Room room;
    if (!lay_out(layer, tile, &room)) return 0;
    for (int64_t tap = 0; tap < taps; tap++) room.shifts[tap] = shift(layer, tile, tap);
    pack(layer, tile, room.panels);
    fill_masks(layer, tile, room.masks, room.masked);
    fill_spots(layer, tile, room.spots);
    for (int64_t template = from; template < to; template++) {
        const int64_t *chosen = layer->order + layer->begin[template];
        int64_t outputs = layer->begin[template + 1] - layer->begin[template];
        for (int64_t g = 0; g < layer->groups && outputs; g++)
            stage_one(layer, tile, &room, g, template);
        if (!layer->full) gather_gains(layer, tile, &room, chosen, outputs);
        for (int64_t i = 0; i < outputs && layer->full; i++) gather_mixed(layer, tile, &room, chosen[i]);
    }
    return 1;
}

/* Whole images, as many as the cache holds, or rows of one. */
static Tile tile_at(const Layer *layer, int64_t images, int64_t rows, int64_t index) {
    int64_t parts = (layer->height + rows - 1) / rows, reach = (layer->kernel[0] - 1) * layer->dilation[0] / 2;
    Tile tile;
    tile.image = index / parts * images, tile.images = least(images, layer->batch - tile.image);
    tile.first = layer->height * (index % parts) / parts, tile.last = layer->height * (index % parts + 1) / parts;
    tile.from = most(0, tile.first - reach), tile.to = least(layer->height, tile.last + reach);
    tile.places = tile.images * (tile.last - tile.first) * layer->width;
    tile.inputs = tile.images * (tile.to - tile.from) * layer->width;
    tile.stride = up(tile.inputs, PANEL) + LANES;
    return tile;
}

/* Whether order and begin can be followed. */
static int sound(const Layer *layer) {
    int found = layer->begin[0] == 0 && layer->begin[layer->count] == layer->outputs;
    for (int64_t i = 0; i < layer->count; i++) found &= layer->begin[i] <= layer->begin[i + 1];
    for (int64_t i = 0; i < layer->outputs; i++) found &= layer->order[i] >= 0 && layer->order[i] < layer->outputs;
    return found;
}

/* 1, or 0 where memory is short, or -1 where outputs are not given to templates as they should be. */
int template_conv(const Layer *layer, int threads) {
    if (!sound(layer)) return -1;
    int64_t area = layer->height * layer->width, budget = CACHED / layer->channels;
    int64_t images = most(1, least(budget / area, (layer->batch + threads - 1) / threads));
    int64_t rows = area <= budget ? layer->height : least(layer->height, most(LEAST_ROWS, budget / layer->width));
    int64_t tiles = (layer->batch + images - 1) / images * ((layer->height + rows - 1) / rows);
    int64_t shares = most(1, least(layer->count, (threads + tiles - 1) / tiles));
    int done = 1, several = threads > 1 && tiles * shares > 1;
#pragma omp parallel for schedule(dynamic) num_threads(threads) reduction(&& : done) if (several)
    for (int64_t i = 0; i < tiles * shares; i++) {
        Tile tile = tile_at(layer, images, rows, i / shares);
        int64_t share = i % shares;
        done = convolve(layer, &tile, layer->count * share / shares, layer->count * (share + 1) / shares) && done;
    }
    return done;
}
