/* The second stage of a template convolution and its backward on a CPU, as `layers.templates.gather` defines them.

   Maps are (B, G, T, M, H, W), operators (N, G, T) or, if `full`, (N, G, T, T), all contiguous. Each value is written
   by one thread, in one order whatever the number of threads. */

#include <stdint.h>
#include <string.h>

#include "layout.h"

typedef struct {
    const float *maps, *operators, *grad; /* grad (B, N, H_out, W_out), in the backward */
    const int64_t *source;
    float *y, *to_maps, *to_operators;
    int64_t batch, outputs, groups, templates, full;
    int64_t height, width, height_out, width_out;
    int64_t kernel[2], stride[2], padding[2], dilation[2]; /* (y, x) */
} Gather;

typedef struct {
    int64_t first, last; /* outputs along a side whose tap lies in the input, the last one excluded */
    int64_t from;        /* the position in the input that the tap of the first one sees */
} Range;

static inline int64_t least(int64_t one, int64_t other) {
    return one < other ? one : other;
}

/* The outputs along a side (0 is y) whose tap lies in the input. */
static inline Range range(const Gather *all, int side, int64_t tap) {
    int64_t size = side ? all->width : all->height, places = side ? all->width_out : all->height_out;
    int64_t stride = all->stride[side], at = tap * all->dilation[side] - all->padding[side];
    Range found = {at < 0 ? (-at + stride - 1) / stride : 0, 0, 0};
    found.last = size - 1 - at < 0 ? 0 : least(places, (size - 1 - at) / stride + 1);
    found.from = found.first * stride + at;
    return found;
}

static inline const float *map_of(const Gather *all, const float *maps, int64_t image, int64_t group, int64_t tap,
                                  int64_t template) {
    int64_t taps = all->kernel[0] * all->kernel[1];
    return maps + (((image * all->groups + group) * taps + tap) * all->templates + template) * all->height * all->width;
}

static inline int exists(const Gather *all, int64_t output) {
    return all->source[output] >= 0 && all->source[output] < all->templates;
}

/* The outputs of a plane whose tap lies in the input, and what it sees there. */
typedef struct {
    Range down, along;
    int64_t count; /* of them in a row */
} Field;

static inline Field field(const Gather *all, int64_t tap) {
    Field found = {range(all, 0, tap / all->kernel[1]), range(all, 1, tap % all->kernel[1]), 0};
    found.count = found.along.last > found.along.first ? found.along.last - found.along.first : 0;
    return found;
}

static inline void add(float *to, int64_t to_step, const float *from, int64_t from_step, float by, int64_t count) {
    if (to_step == 1 && from_step == 1)
        for (int64_t i = 0; i < count; i++) to[i] += by * from[i];
    else
        for (int64_t i = 0; i < count; i++) to[i * to_step] += by * from[i * from_step];
}

static inline float dot(const float *one, const float *other, int64_t other_step, int64_t count) {
    float sum = 0.0f;
    if (other_step == 1) {
#pragma omp simd reduction(+ : sum)
        for (int64_t i = 0; i < count; i++) sum += one[i] * other[i];
    } else
        for (int64_t i = 0; i < count; i++) sum += one[i] * other[i * other_step];
    return sum;
}

/* Loop over a field's rows: `to` is where a row begins in a plane of outputs, `from` where it begins in a map. */
#define EACH_ROW(all, seen)                                                                             \
    for (int64_t row = seen.down.first, to = row * all->width_out + seen.along.first,                   \
                 from = seen.down.from * all->width + seen.along.from;                                  \
         row < seen.down.last && seen.count;                                                            \
         row++, to += all->width_out, from += all->stride[0] * all->width)

static void output_plane(const Gather *all, int64_t image, int64_t output) {
    int64_t taps = all->kernel[0] * all->kernel[1], each = all->full ? taps : 1, template = all->source[output];
    float *plane = all->y + (image * all->outputs + output) * all->height_out * all->width_out;
    const float *by = all->operators + output * all->groups * taps * each;
    memset(plane, 0, all->height_out * all->width_out * sizeof(float));
    for (int64_t i = 0; i < all->groups * taps * each && exists(all, output); i++) {
        int64_t group = i / each / taps, tap = i / each % taps, k = all->full ? i % taps : tap;
        if (by[i] == 0.0f) continue;
        Field seen = field(all, tap);
        const float *map = map_of(all, all->maps, image, group, k, template);
        EACH_ROW(all, seen) add(plane + to, 1, map + from, all->stride[1], by[i], seen.count);
    }
}

/* The gradients of all maps of a template in an image and group. */
static void map_planes(const Gather *all, int64_t image, int64_t group, int64_t template) {
    int64_t taps = all->kernel[0] * all->kernel[1], each = all->full ? taps : 1, area = all->height * all->width;
    for (int64_t tap = 0; tap < taps; tap++)
        memset((float *)map_of(all, all->to_maps, image, group, tap, template), 0, area * sizeof(float));
    for (int64_t output = 0; output < all->outputs; output++) {
        if (all->source[output] != template) continue;
        const float *grad = all->grad + (image * all->outputs + output) * all->height_out * all->width_out;
        const float *by = all->operators + (output * all->groups + group) * taps * each;
        for (int64_t i = 0; i < taps * each; i++) {
            if (by[i] == 0.0f) continue;
            Field seen = field(all, i / each);
            float *map = (float *)map_of(all, all->to_maps, image, group, all->full ? i % taps : i, template);
            EACH_ROW(all, seen) add(map + from, all->stride[1], grad + to, 1, by[i], seen.count);
        }
    }
}

/* The gradients of one output's operator in a group. */
static void operator_of(const Gather *all, int64_t output, int64_t group) {
    int64_t taps = all->kernel[0] * all->kernel[1], each = all->full ? taps : 1, template = all->source[output];
    float *sums = all->to_operators + (output * all->groups + group) * taps * each;
    memset(sums, 0, taps * each * sizeof(float));
    for (int64_t image = 0; image < all->batch && exists(all, output); image++) {
        const float *grad = all->grad + (image * all->outputs + output) * all->height_out * all->width_out;
        for (int64_t i = 0; i < taps * each; i++) {
            Field seen = field(all, i / each);
            const float *map = map_of(all, all->maps, image, group, all->full ? i % taps : i, template);
            EACH_ROW(all, seen) sums[i] += dot(grad + to, map + from, all->stride[1], seen.count);
        }
    }
}

EXPORT_LAYOUT(Gather, dilation)

void gather(const Gather *all, int threads) {
    int64_t work = all->batch * all->outputs;
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (int64_t i = 0; i < work; i++) output_plane(all, i / all->outputs, i % all->outputs);
}

void gather_backward(const Gather *all, int threads) {
    int64_t maps = all->batch * all->groups * all->templates, operators = all->outputs * all->groups;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
#pragma omp for nowait
        for (int64_t i = 0; i < maps; i++)
            map_planes(all, i / all->templates / all->groups, i / all->templates % all->groups, i % all->templates);
#pragma omp for
        for (int64_t i = 0; i < operators; i++) operator_of(all, i / all->groups, i % all->groups);
    }
}
