/* The second stage of a template convolution on a GPU, and its gradients: see `layers.templates.gather`.

   FLOAT16 or BFLOAT16 is the type of values, else float; LAST says that maps, outputs and their gradients are
   channels_last; DIAGONAL that operators are (outputs, groups, taps), else (outputs, groups, taps, taps). With LAST,
   outputs are the last dimension of operators. Sums are float, and always in one order. Neighboring threads write
   neighboring values. */

#ifdef WIDE
typedef long long Index; /* for tensors of 2^30 values and more: dividing is slow */
#else
typedef int Index;
#endif

#define EACH static __device__ __forceinline__
#define EVERYONE 0xffffffffu
enum { WARP = 32, MOST_THREADS = 1024 };

#if defined(FLOAT16)
typedef unsigned short Value;
#ifdef __CUDACC__
EACH float widened(Value half) {
    float found;
    asm("cvt.f32.f16 %0, %1;" : "=f"(found) : "h"(half));
    return found;
}

EACH Value narrowed(float x) {
    Value half;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(half) : "f"(x));
    return half;
}
#else
EACH float widened(Value half) {
    _Float16 found;
    memcpy(&found, &half, sizeof found);
    return (float)found;
}

EACH Value narrowed(float x) {
    _Float16 found = (_Float16)x;
    Value half;
    memcpy(&half, &found, sizeof half);
    return half;
}
#endif
#elif defined(BFLOAT16)
typedef unsigned short Value;

EACH float widened(Value half) {
    unsigned bits = (unsigned)half << 16;
    float found;
    memcpy(&found, &bits, sizeof found);
    return found;
}

EACH Value narrowed(float x) { /* to nearest even */
    unsigned bits;
    memcpy(&bits, &x, sizeof bits);
    return x != x ? 0x7fc0 : (Value)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
#else
typedef float Value;
EACH float widened(Value x) { return x; }
EACH Value narrowed(float x) { return x; }
#endif

/* The arguments of all kernels: maps are (batch, groups * taps * templates, height, width), outputs (batch, outputs,
   out_height, out_width). `SEEN` is the position in the maps that tap (ty, tx) of output (y, x) sees. */
#define SHAPES                                                                                                         \
    Index batch, Index outputs, Index groups, Index templates, Index height, Index width, Index out_height,            \
        Index out_width, Index taps_y, Index taps_x, Index stride_y, Index stride_x, Index padding_y, Index padding_x, \
        Index dilation_y, Index dilation_x
#define SEEN(y, ty, side) ((y) * stride_##side + (ty) * dilation_##side - padding_##side)

/* An operator joins tap `to` with JOINED(taps) taps `from`, FIRST(to) to before FIRST(to) + JOINED(taps). Zeros of full
   operators are not multiplied, not even with NaN. */
#ifdef DIAGONAL
#define FIRST(to) (to)
#define JOINED(taps) 1
#define SKIPPED(gain) 0
#else
#define FIRST(to) 0
#define JOINED(taps) (taps)
#define SKIPPED(gain) ((gain) == 0.0f)
#endif

/* The index of a gain of output n. */
EACH Index gain_at(Index n, Index g, Index to, Index from, Index outputs, Index groups, Index taps) {
    Index inner = (g * taps + to) * JOINED(taps) + from - FIRST(to);
#ifdef LAST
    return inner * outputs + n;
#else
    return n * groups * taps * JOINED(taps) + inner;
#endif
}

EACH Index valid(long long source, Index templates) {
    return source >= 0 && source < templates ? (Index)source : -1;
}

/* The index in memory of a value of a tensor with `channels` channels of `places` pixels; `spot` is its inverse. */
EACH Index address(Index b, Index channel, Index place, Index channels, Index places) {
#ifdef LAST
    return (b * places + place) * channels + channel;
#else
    return (b * channels + channel) * places + place;
#endif
}

struct Spot {
    Index b, channel, place;
};

EACH Spot spot(Index i, Index channels, Index places) {
#ifdef LAST
    return {i / channels / places, i % channels, i / channels % places};
#else
    return {i / places / channels, i / places % channels, i % places};
#endif
}

EACH bool inside(Index y, Index x, Index height, Index width) { return y >= 0 && y < height && x >= 0 && x < width; }

/* The output that sees a position of the maps, of which padding and tap are subtracted already, or -1. */
EACH Index behind(Index seen, Index stride, Index size) {
    return seen >= 0 && seen % stride == 0 && seen / stride < size ? seen / stride : -1;
}

/* Outputs, one a thread. */
extern "C" __global__ void gather(const Value *maps, const Value *operators, const long long *source, Value *out,
                                  SHAPES) {
    Index taps = taps_y * taps_x, channels = groups * taps * templates, places = height * width;
    Index count = batch * outputs * out_height * out_width, step = (Index)gridDim.x * blockDim.x;
    for (Index i = (Index)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += step) {
        Spot at = spot(i, outputs, out_height * out_width);
        Index y = at.place / out_width, x = at.place % out_width, m = valid(source[at.channel], templates);
        float sum = 0.0f;
        for (Index g = 0; g < groups && m >= 0; g++)
            for (Index to = 0; to < taps; to++) {
                Index up = SEEN(y, to / taps_x, y), along = SEEN(x, to % taps_x, x);
                if (!inside(up, along, height, width)) continue;
                for (Index from = FIRST(to); from < FIRST(to) + JOINED(taps); from++) {
                    float gain = widened(operators[gain_at(at.channel, g, to, from, outputs, groups, taps)]);
                    Index channel = (g * taps + from) * templates + m;
                    if (SKIPPED(gain)) continue;
                    sum += gain * widened(maps[address(at.b, channel, up * width + along, channels, places)]);
                }
            }
        out[i] = narrowed(sum);
    }
}

/* Gradients of the maps, one a thread. Outputs made from template m are order[begin[m]] to before
   order[begin[m + 1]]. */
extern "C" __global__ void gather_to_maps(const Value *grad, const Value *operators, const long long *order,
                                          const long long *begin, Value *to_maps, SHAPES) {
    Index taps = taps_y * taps_x, channels = groups * taps * templates, out_places = out_height * out_width;
    Index count = batch * channels * height * width, step = (Index)gridDim.x * blockDim.x;
    for (Index i = (Index)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += step) {
        Spot at = spot(i, channels, height * width);
        Index m = at.channel % templates, from = at.channel / templates % taps, g = at.channel / templates / taps;
        Index first = (Index)begin[m], end = (Index)begin[m + 1];
        float sum = 0.0f;
        for (Index to = FIRST(from); to < FIRST(from) + JOINED(taps); to++) {
            Index up = at.place / width + padding_y - to / taps_x * dilation_y;
            Index along = at.place % width + padding_x - to % taps_x * dilation_x;
            Index y = behind(up, stride_y, out_height), x = behind(along, stride_x, out_width);
            if (y < 0 || x < 0) continue;
            for (Index k = first; k < end; k++) {
                Index n = (Index)order[k];
                float gain = widened(operators[gain_at(n, g, to, from, outputs, groups, taps)]);
                if (SKIPPED(gain)) continue;
                sum += gain * widened(grad[address(at.b, n, y * out_width + x, outputs, out_places)]);
            }
        }
        to_maps[i] = narrowed(sum);
    }
}

/* Gradients of the operators, outputs first even for LAST. A block has one gain each of `team` neighboring outputs (a
   power of two, at most a warp); each of its threads adds up some places of one of them. */
extern "C" __global__ void gather_to_operators(const Value *grad, const Value *maps, const long long *source,
                                               Value *to_operators, Index team, SHAPES) {
    __shared__ float sums[MOST_THREADS];
    Index taps = taps_y * taps_x, channels = groups * taps * templates, places = height * width;
    Index out_places = out_height * out_width, gains = groups * taps * JOINED(taps);
    Index thread = threadIdx.x, threads = blockDim.x, own = thread % team, lane = thread % WARP;
    for (Index i = blockIdx.x; i < (outputs + team - 1) / team * gains; i += gridDim.x) { /* as often for all */
        Index n = i / gains * team + own, inner = i % gains;
        Index from = inner % taps, to = inner / JOINED(taps) % taps, g = inner / JOINED(taps) / taps;
        Index m = n < outputs ? valid(source[n], templates) : -1, channel = (g * taps + from) * templates + m;
        Index end = m < 0 ? 0 : batch * out_places;
        float sum = 0.0f;
        for (Index k = thread / team; k < end; k += threads / team) {
            Index b = k / out_places, place = k % out_places;
            Index up = SEEN(place / out_width, to / taps_x, y), along = SEEN(place % out_width, to % taps_x, x);
            if (!inside(up, along, height, width)) continue;
            sum += widened(grad[address(b, n, place, outputs, out_places)]) *
                   widened(maps[address(b, channel, up * width + along, channels, places)]);
        }
        for (int far = WARP / 2; far >= team; far /= 2) sum += __shfl_xor_sync(EVERYONE, sum, far, WARP);
        if (lane < team) sums[thread / WARP * team + lane] = sum;
        __syncthreads();
        if (thread < team && n < outputs) {
            float total = 0.0f;
            for (Index warp = 0; warp < threads / WARP; warp++) total += sums[warp * team + own];
            to_operators[n * gains + inner] = narrowed(total);
        }
        __syncthreads();
    }
}
