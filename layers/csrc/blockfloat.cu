/* Rounding to block floating point on a GPU: bit for bit what `layers.blockfloat` does in plain PyTorch.

   Each value is read once and written once, neighboring threads take neighboring values. */

#include "blockfloat.h"

#ifdef WIDE
typedef long long Index; /* for tensors of 2^31 values and more: dividing is slow */
#else
typedef int Index;
#endif

#define EVERYONE 0xffffffffu
enum { AHEAD = 4, WARP = 32 };

/* Blocks of one value. */
extern "C" __global__ void single_values(const Stored *x, Stored *y, Index values, Index bits, Index lowest) {
    Index step = (Index)gridDim.x * blockDim.x, first = (Index)blockIdx.x * blockDim.x + threadIdx.x;
    for (Index i = first; i < values; i += AHEAD * step) {
        float mine[AHEAD];
        for (int k = 0; k < AHEAD; k++) mine[k] = i + k * step < values ? widened(x[i + k * step]) : 0.0f;
        for (int k = 0; k < AHEAD; k++) {
            float by = anchor(larger(0, mine[k]), bits, lowest);
            if (i + k * step < values) y[i + k * step] = narrowed(rounded(mine[k], by));
        }
    }
}

/* Values (rows, length), cut along `length`; a team of `lanes` threads (a power of two, at most a warp, with
   lanes * AHEAD >= block) has a block at a time. */
extern "C" __global__ void rows_of_blocks(const Stored *x, Stored *y, Index rows, Index length, Index block,
                                          Index lanes, Index bits, Index lowest) {
    Index each = (length + block - 1) / block, teams = blockDim.x / lanes, lane = threadIdx.x % lanes;
    Index step = (Index)gridDim.x * teams, first = blockIdx.x * teams;
    for (Index start = first; start < rows * each; start += step) { /* as often for all of a warp */
        Index i = start + threadIdx.x / lanes, row = i / each, place = i % each * block;
        Index count = i < rows * each ? (length - place < block ? length - place : block) : 0;
        const Stored *from = x + row * length + place;
        Stored *to = y + row * length + place;
        float mine[AHEAD];
        Pattern largest = 0;
        for (int k = 0; k < AHEAD; k++) {
            mine[k] = lane + k * lanes < count ? widened(from[lane + k * lanes]) : 0.0f;
            largest = larger(largest, mine[k]);
        }
        for (int far = (int)lanes / 2; far > 0; far /= 2) {
            Pattern other = __shfl_xor_sync(EVERYONE, largest, far, WARP);
            largest = other > largest ? other : largest;
        }
        float by = anchor(largest, bits, lowest);
        for (int k = 0; k < AHEAD; k++)
            if (lane + k * lanes < count) to[lane + k * lanes] = narrowed(rounded(mine[k], by));
    }
}

/* Values (rows, length, inner), cut along `length`: a thread has a block, whose values are `inner` apart. */
extern "C" __global__ void many_blocks(const Stored *x, Stored *y, Index rows, Index length, Index inner, Index block,
                                       Index bits, Index lowest) {
    Index each = (length + block - 1) / block, step = (Index)gridDim.x * blockDim.x;
    Index first = (Index)blockIdx.x * blockDim.x + threadIdx.x;
    for (Index i = first; i < rows * each * inner; i += step) {
        Index place = i / inner % each * block, row = i / inner / each;
        Index count = length - place < block ? length - place : block;
        Index at = (row * length + place) * inner + i % inner;
        Pattern largest = 0;
        for (Index k = 0; k < count; k++) largest = larger(largest, widened(x[at + k * inner]));
        float by = anchor(largest, bits, lowest);
        for (Index k = 0; k < count; k++) y[at + k * inner] = narrowed(rounded(widened(x[at + k * inner]), by));
    }
}
