/* A template convolution in one pass on a CPU: stage one and the gather take turns on tiles that stay in the cache.

   It takes images (B, C, H, W) of which every pixel, or with a stride every stride-th, is the middle of an output's
   filter. A tile is a few whole images, or some rows of one. Its inputs are packed once; then, template by template, a
   small matrix product makes the template's maps, and the outputs made from it are summed while the maps are still in
   the first-level cache. With a stride an input is split into phases, the pixels of every stride-th row and column,
   each as large as an output; a tap sees one of these phases. */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "layout.h"

#if defined(__AVX512BF16__)
#include <immintrin.h>
enum { PAIRED = 1 }; /* products of bfloat16 take two channels at once, held as the bits of a float */
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
enum { CACHED = 1 << 17 }; /* values of a tile's inputs, so that they fit into the second-level cache */

typedef float Vector __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t Mask __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef uint32_t Bits __attribute__((may_alias)); /* of a float */
#define INLINE static inline __attribute__((always_inline))

typedef struct {
    const void *x;                             /* float32 or bfloat16, like y */
    const float *templates, *operators, *bias; /* (G, M, C / G, T), (N, G, T) or (N, G, T, T), (N,) */
    const float *pairs;                        /* or 0: (G, M, C / G / 2, T), two bfloat16 each, the first one lower */
    const int64_t *order, *begin;              /* outputs sorted by template, and where each template's begin */
    void *y;
    int64_t batch, channels, height, width, outputs, groups, count; /* height and width of outputs; templates M */
    int64_t input_size[2], kernel[2], stride[2], dilation[2];       /* (y, x) */
    int64_t full, half; /* whether operators mix taps; whether x and y are bfloat16 */
} Layer;

typedef struct {
    int64_t image, images, first, last; /* rows of output; all of them where there are several images */
    int64_t from, to;                   /* rows of a phase of the input that they see */
    int64_t places, inputs, stride;     /* numbers of outputs and of inputs, and of values from one map to the next */
} Tile;

typedef struct {
    int64_t image, inside; /* where a vector of places begins: which image of the tile, and where in it */
} Spot;

typedef struct {
    int64_t y, x, first, taps; /* the taps that see it, from the first on in the order of Room */
} Phase;

typedef struct {
    const float *map;
    const int32_t *mask;
    float by;
} Term;

typedef struct {
    float *panels, *maps; /* packed inputs, and the maps of a template */
    float *taps;          /* a template's, in the order of the phases */
    int32_t *masks;       /* (T, masked), all bits where an output's tap lies in its image */
    int64_t *order;       /* the taps phase by phase, the order of masks, shifts and maps too */
    int64_t *shifts;      /* where in its map each tap of the output at place 0 lies */
    Phase *phases;
    Spot *spots;
    Term *terms;
    int64_t masked, used; /* used: number of phases */
} Room;

static _Thread_local struct {
    char *memory;
    int64_t size;
} scratch; /* reused: fresh memory would cost more than what is done with it */

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

/* Values of a pixel in a panel for each group: its channels, or pairs of them. */
static inline int64_t depth_of(const Layer *layer) {
    int64_t channels = layer->channels / layer->groups;
    return paired(layer) ? (channels + 1) / 2 : channels;
}

/* Every `step`-th of the values of a channel from `from` on, or of two channels `area` apart. */
INLINE void take_each(int64_t step, float *to, const Layer *layer, int64_t from, int64_t area, int64_t count) {
    const Bits *restrict whole = (const Bits *)layer->x + from;
    const uint16_t *restrict half = (const uint16_t *)layer->x + from, *restrict other = half + area;
    Bits *restrict bits = (Bits *)to;
    if (!layer->half)
        for (int64_t i = 0; i < count; i++) bits[i] = whole[i * step];
    else if (!paired(layer))
        for (int64_t i = 0; i < count; i++) bits[i] = (uint32_t)half[i * step] << 16;
    else if (!area)
        for (int64_t i = 0; i < count; i++) bits[i] = half[i * step];
    else
        for (int64_t i = 0; i < count; i++) bits[i] = half[i * step] | (uint32_t)other[i * step] << 16;
}

/* A group's value of some places, which begin at x + from: that of a channel, or of two. */
static inline void take(float *to, const Layer *layer, int64_t from, int64_t group, int64_t value, int64_t count) {
    int64_t area = layer->input_size[0] * layer->input_size[1], channels = layer->channels / layer->groups;
    int64_t channel = paired(layer) ? 2 * value : value, step = layer->stride[1];
    int64_t other = channel + 1 < channels ? area : 0;
    from += (group * channels + channel) * area;
    if (step == 1)
        take_each(1, to, layer, from, other, count);
    else if (step == 2)
        take_each(2, to, layer, from, other, count);
    else
        take_each(step, to, layer, from, other, count);
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

/* Pack the tile's inputs into panels (phases, places / PANEL, C, PANEL), C channels or pairs of them: those of a panel
   and group are read in one sweep. What a phase has beyond the image stays as it is: no output that counts sees it. */
static void pack(const Layer *layer, const Tile *tile, const Room *room) {
    int64_t depth = depth_of(layer), panel = PANEL * layer->groups * depth;
    int64_t whole = layer->stride[0] == 1 && layer->stride[1] == 1; /* then all rows follow one another */
    int64_t rows = whole ? 1 : tile->to - tile->from, each = (tile->to - tile->from) * layer->width / rows;
    for (int64_t line = 0; line < room->used * tile->images * rows; line++) {
        const Phase *phase = room->phases + line / (tile->images * rows);
        int64_t image = line / rows % tile->images, row = line % rows;
        int64_t y = (tile->from + row) * layer->stride[0] + phase->y, left = layer->input_size[1] - phase->x;
        int64_t count = y >= layer->input_size[0] ? 0 : whole ? each : (left + layer->stride[1] - 1) / layer->stride[1];
        int64_t above = (tile->image + image) * layer->channels * layer->input_size[0] + y; /* rows of inputs */
        int64_t from = above * layer->input_size[1] + phase->x;
        float *panels = room->panels + (phase - room->phases) * up(tile->inputs, PANEL) / PANEL * panel;
        for (int64_t done = 0, some; done < count; done += some) {
            int64_t place = (image * rows + row) * each + done, inside = place % PANEL;
            float *to = panels + place / PANEL * panel + inside;
            some = least(count - done, PANEL - inside);
            for (int64_t g = 0; g < layer->groups; g++)
                for (int64_t d = 0; d < depth; d++, to += PANEL)
                    take(to, layer, from + done * layer->stride[1], g, d, some);
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

/* The taps (depth, T) of a template in the order of the phases. */
static const float *in_order(const float *taps, const Room *room, int64_t depth, int64_t count) {
    if (room->used == 1) return taps;
    for (int64_t d = 0; d < depth; d++)
        for (int64_t i = 0; i < count; i++) room->taps[d * count + i] = taps[d * count + room->order[i]];
    return room->taps;
}

/* The maps of those taps of one template in one group that see a phase, at all its places in the tile. */
static void stage_one(const Layer *layer, const Tile *tile, const Phase *phase, const float *panels, const float *taps,
                      int64_t group, float *maps) {
    int64_t depth = depth_of(layer), parts = (phase->taps + ROWS - 1) / ROWS;
    for (int64_t place = 0; place < tile->inputs; place += PANEL) {
        const float *panel = panels + (place * layer->groups + group * PANEL) * depth;
        int64_t vectors = (least(PANEL, tile->inputs - place) + LANES - 1) / LANES;
        Product product_of = products[paired(layer)][vectors - 1];
        for (int64_t part = 0; part < parts; part++) {
            int64_t tap = phase->first + phase->taps * part / parts;
            int64_t rows = phase->first + phase->taps * (part + 1) / parts - tap;
            float *to = maps + tap * tile->stride + place;
            product_of(rows, taps + tap, layer->kernel[0] * layer->kernel[1], panel, depth, to, tile->stride);
        }
    }
}

/* All T maps of one template in one group. */
static void make_maps(const Layer *layer, const Tile *tile, const Room *room, int64_t group, int64_t template) {
    int64_t count = layer->kernel[0] * layer->kernel[1], depth = depth_of(layer);
    int64_t values = up(tile->inputs, PANEL) * layer->groups * depth;
    const float *stored = paired(layer) ? layer->pairs : layer->templates;
    const float *taps = in_order(stored + (group * layer->count + template) * depth * count, room, depth, count);
    float *maps = room->maps + group * count * tile->stride;
    for (int64_t i = 0; i < room->used; i++)
        stage_one(layer, tile, room->phases + i, room->panels + i * values, taps, group, maps);
}

/* The distance of a tap from its output along a side (0 is y). */
static inline int64_t away(const Layer *layer, int side, int64_t tap) {
    return (2 * tap - layer->kernel[side] + 1) * layer->dilation[side] / 2;
}

/* The phase along a side that a tap sees, and below it the tap's distance from its output in that phase. */
static inline int64_t phase_of(const Layer *layer, int side, int64_t tap) {
    int64_t left = away(layer, side, tap) % layer->stride[side];
    return left < 0 ? left + layer->stride[side] : left;
}

static inline int64_t steps(const Layer *layer, int side, int64_t tap) {
    return (away(layer, side, tap) - phase_of(layer, side, tap)) / layer->stride[side];
}

/* The number of phases that some tap sees; into `room`, if there is one, go these phases and the order of taps. */
static int64_t fill_phases(const Layer *layer, Room *room) {
    int64_t used = 0, done = 0, count = layer->kernel[0] * layer->kernel[1];
    for (int64_t y = 0; y < layer->stride[0]; y++)
        for (int64_t x = 0; x < layer->stride[1]; x++) {
            int64_t before = done;
            for (int64_t tap = 0; tap < count; tap++) {
                if (phase_of(layer, 0, tap / layer->kernel[1]) != y) continue;
                if (phase_of(layer, 1, tap % layer->kernel[1]) != x) continue;
                if (room) room->order[done] = tap;
                done++;
            }
            if (done == before) continue;
            if (room) room->phases[used] = (Phase){y, x, before, done - before};
            used++;
        }
    return used;
}

static void fill_masks(const Layer *layer, const Tile *tile, const Room *room) {
    int64_t rows = tile->last - tile->first;
    uint32_t columns = layer->width, step = layer->stride[1], wide = layer->input_size[1];
    for (int64_t i = 0; i < layer->kernel[0] * layer->kernel[1]; i++) {
        int64_t down = away(layer, 0, room->order[i] / layer->kernel[1]);
        uint32_t right = away(layer, 1, room->order[i] % layer->kernel[1]); /* below 0 it is beyond any width */
        int32_t *mask = room->masks + i * room->masked;
        for (int64_t row = 0; row < tile->images * rows; row++, mask += columns) {
            int64_t y = (tile->first + row % rows) * layer->stride[0] + down;
            int32_t inside = -(y >= 0 && y < layer->input_size[0]);
            for (uint32_t x = 0; x < columns; x++) mask[x] = inside & -(int32_t)(right + x * step < wide);
        }
        memset(mask, 0, (room->masks + (i + 1) * room->masked - mask) * sizeof(int32_t));
    }
}

static inline int64_t shift(const Layer *layer, const Tile *tile, int64_t tap) {
    int64_t down = steps(layer, 0, tap / layer->kernel[1]), right = steps(layer, 1, tap % layer->kernel[1]);
    return (tile->first - tile->from + down) * layer->width + right;
}

/* Write `left` values from place `inside` on, image after image of `each` places; those of the first image begin at
   `to`. Inlined it would take the compiler long. */
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

/* Write a vector of an output's values at place `at`; they may belong to several images. */
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
        int64_t at = i - tap + room->order[tap];
#pragma GCC unroll 8
        for (int o = 0; o < outputs; o++) sum[o][0] += by[o][at] * one, sum[o][1] += by[o][at] * other;
    }
    const Spot *spot = room->spots + place / LANES;
#pragma GCC unroll 8
    for (int o = 0; o < outputs; o++) {
        put(layer, tile, chosen[o], place, spot[0], sum[o][0]);
        if (place + LANES < tile->places) put(layer, tile, chosen[o], place + LANES, spot[1], sum[o][1]);
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

/* One output whose operator mixes taps, of stride 1: the sum of its terms that are not zero. */
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

/* A part of the scratch memory, aligned for vectors. */
static inline void *part(char **next, int64_t bytes) {
    void *found = *next;
    *next += up(bytes, sizeof(Vector));
    return found;
}

/* Allocate memory for a tile; 0 if it is short. */
static int lay_out(const Layer *layer, const Tile *tile, Room *room) {
    int64_t taps = layer->kernel[0] * layer->kernel[1], terms = layer->full ? layer->groups * taps * taps : 0;
    int64_t wide = layer->width + layer->kernel[1] * layer->dilation[1];
    int64_t beyond = up((layer->kernel[0] * layer->dilation[0] + 1) * wide, LANES) + 4 * LANES; /* read, but masked */
    room->masked = up(tile->places, AHEAD * LANES), room->used = fill_phases(layer, 0);
    for (int tried = 0; tried < 2; tried++) { /* the first time to count the bytes */
        char *next = tried ? scratch.memory : 0;
        int64_t values = layer->groups * depth_of(layer) * sizeof(float);
        room->panels = part(&next, room->used * up(tile->inputs, PANEL) * values);
        room->taps = part(&next, taps * depth_of(layer) * sizeof(float));
        room->masks = part(&next, taps * room->masked * sizeof(int32_t));
        room->order = part(&next, taps * sizeof(int64_t));
        room->shifts = part(&next, taps * sizeof(int64_t));
        room->phases = part(&next, taps * sizeof(Phase));
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

/* Make the outputs of templates `from` to before `to` in a tile; 0 if memory is short. */
static int convolve(const Layer *layer, const Tile *tile, int64_t from, int64_t to) {
    int64_t taps = layer->kernel[0] * layer->kernel[1];
    Room room;
    if (!lay_out(layer, tile, &room)) return 0;
    fill_phases(layer, &room);
    for (int64_t i = 0; i < taps; i++) room.shifts[i] = shift(layer, tile, room.order[i]);
    pack(layer, tile, &room);
    fill_masks(layer, tile, &room);
    fill_spots(layer, tile, room.spots);
    for (int64_t template = from; template < to; template++) {
        const int64_t *chosen = layer->order + layer->begin[template];
        int64_t outputs = layer->begin[template + 1] - layer->begin[template];
        for (int64_t g = 0; g < layer->groups && outputs; g++)
            make_maps(layer, tile, &room, g, template);
        if (!layer->full) gather_gains(layer, tile, &room, chosen, outputs);
        for (int64_t i = 0; i < outputs && layer->full; i++) gather_mixed(layer, tile, &room, chosen[i]);
    }
    return 1;
}

/* Whole images, as many as the cache holds, or rows of one. */
static Tile tile_at(const Layer *layer, int64_t images, int64_t rows, int64_t index) {
    int64_t parts = (layer->height + rows - 1) / rows;
    int64_t up_to = steps(layer, 0, 0), down_to = steps(layer, 0, layer->kernel[0] - 1);
    Tile tile;
    tile.image = index / parts * images, tile.images = least(images, layer->batch - tile.image);
    tile.first = layer->height * (index % parts) / parts, tile.last = layer->height * (index % parts + 1) / parts;
    tile.from = most(0, tile.first + up_to), tile.to = least(layer->height, tile.last + down_to);
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

EXPORT_LAYOUT(Layer, half)

/* 1, or 0 if memory is short, or -1 if `order` and `begin` do not give each output a template. */
int template_conv(const Layer *layer, int threads) {
    if (!sound(layer)) return -1;
    int64_t area = layer->height * layer->width, budget = CACHED / (layer->channels * fill_phases(layer, 0));
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
