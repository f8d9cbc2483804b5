/* The second stage of a template convolution and its backward on a CPU, as `layers.templates.gather` defines them.

   Maps are (B, G, T, M, H, W), operators (N, G, T) or, `full`, (N, G, T, T), all contiguous. Each value is written by one
   thread, in one order whatever the number of threads. */

#include <stdint.h>
#include <string.h>

typedef struct {
    const float *maps, *operators, *grad; /* grad (B, N, H_out, W_out), in the backward */
    const int64_t *source;
    float *y, *to_maps, *to_operators;
    int64_t batch, outputs, groups, templates, full;
    int64_t height, width, height_out, width_out;
    int64_t kernel[2], stride[2], padding[2], dilation[2]; /* (y, x) */
} Gather;

typedef struct {
    int64_t first, last; /* places of output along a side whose tap lies in the input */
    int64_t from;        /* where the tap of the first of them does */
} Range;

static inline int64_t least(int64_t one, int64_t other) {
    return one < other ? one : other;
}

/* The places along a side (0 is y) that see a tap. */
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

/* Calls BODY for each tap k' that a row of outputs sees, with its map's row and its range along x. */
#define EACH_TAP(all, row, BODY)                                                                          \
    for (int64_t seen = 0; seen < taps; seen++) {                                                         \
        Range down = range(all, 0, seen / all->kernel[1]), along = range(all, 1, seen % all->kernel[1]);   \
        if (row < down.first || row >= down.last || along.first >= along.last) continue;                  \
        int64_t at = (down.from + (row - down.first) * all->stride[0]) * all->width + along.from;         \
        int64_t count = along.last - along.first;                                                         \
        BODY                                                                                              \
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

static void output_plane(const Gather *all, int64_t image, int64_t output) {
    int64_t taps = all->kernel[0] * all->kernel[1], each = all->full ? taps : 1;
    float *plane = all->y + (image * all->outputs + output) * all->height_out * all->width_out;
    memset(plane, 0, all->height_out * all->width_out * sizeof(float));
    if (!exists(all, output)) return;
    for (int64_t row = 0; row < all->height_out; row++, plane += all->width_out)
        for (int64_t group = 0; group < all->groups; group++) {
            const float *by = all->operators + (output * all->groups + group) * taps * each;
            EACH_TAP(all, row, {
                for (int64_t k = 0; k < each; k++) {
                    float weight = by[seen * each + k];
                    if (weight == 0.0f) continue;
                    const float *map = map_of(all, all->maps, image, group, all->full ? k : seen, all->source[output]);
                    add(plane + along.first, 1, map + at, all->stride[1], weight, count);
                }
            })
        }
}

/* The gradients of all maps of a template in an image and group. */
static void map_planes(const Gather *all, int64_t image, int64_t group, int64_t template) {
    int64_t taps = all->kernel[0] * all->kernel[1], each = all->full ? taps : 1;
    for (int64_t tap = 0; tap < taps; tap++)
        memset((float *)map_of(all, all->to_maps, image, group, tap, template), 0,
               all->height * all->width * sizeof(float));
    for (int64_t output = 0; output < all->outputs; output++) {
        if (all->source[output] != template) continue;
        const float *grad = all->grad + (image * all->outputs + output) * all->height_out * all->width_out;
        const float *by = all->operators + (output * all->groups + group) * taps * each;
        for (int64_t row = 0; row < all->height_out; row++, grad += all->width_out)
            EACH_TAP(all, row, {
                for (int64_t k = 0; k < each; k++) {
                    float weight = by[seen * each + k];
                    if (weight == 0.0f) continue;
                    float *map = (float *)map_of(all, all->to_maps, image, group, all->full ? k : seen, template);
                    add(map + at, all->stride[1], grad + along.first, 1, weight, count);
                }
            })
    }
}

/* The gradients of one output's operator in a group. */
static void operator_of(const Gather *all, int64_t output, int64_t group) {
    int64_t taps = all->kernel[0] * all->kernel[1], each = all->full ? taps : 1;
    float *to = all->to_operators + (output * all->groups + group) * taps * each;
    memset(to, 0, taps * each * sizeof(float));
    if (!exists(all, output)) return;
    for (int64_t image = 0; image < all->batch; image++) {
        const float *grad = all->grad + (image * all->outputs + output) * all->height_out * all->width_out;
        for (int64_t row = 0; row < all->height_out; row++, grad += all->width_out)
            EACH_TAP(all, row, {
                for (int64_t k = 0; k < each; k++) {
                    const float *map = map_of(all, all->maps, image, group, all->full ? k : seen, all->source[output]);
                    to[seen * each + k] += dot(grad + along.first, map + at, all->stride[1], count);
                }
            })
    }
}

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
