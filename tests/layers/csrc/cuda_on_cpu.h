/* Enough of CUDA to run a kernel's own source on a CPU: each thread of a block is a thread here, blocks take turns.

   Slow, and meant to be: small grids show whether indices, strides and exchanges within a warp are right. A kernel that
   lets threads of a warp go different ways round an exchange stands still here. */

#include <barrier>
#include <bit>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#define __global__
#define __device__
#define __shared__ static /* blocks take turns */
#define __forceinline__ inline

struct Place {
    unsigned x = 0, y = 0, z = 0;
};

static thread_local Place threadIdx, blockIdx;
static Place blockDim, gridDim;
static std::vector<std::unique_ptr<std::barrier<>>> warps;
static std::unique_ptr<std::barrier<>> whole_block;
static unsigned exchanged[1024];

static unsigned __shfl_xor_sync(unsigned, unsigned mine, int far, int) {
    std::barrier<> &warp = *warps[threadIdx.x / 32];
    exchanged[threadIdx.x] = mine;
    warp.arrive_and_wait();
    unsigned found = exchanged[threadIdx.x ^ far];
    warp.arrive_and_wait();
    return found;
}

static float __shfl_xor_sync(unsigned who, float mine, int far, int width) {
    return std::bit_cast<float>(__shfl_xor_sync(who, std::bit_cast<unsigned>(mine), far, width));
}

static void __syncthreads() { whole_block->arrive_and_wait(); }

/* Run a kernel on `grid` blocks of `block` threads, a whole number of warps. */
template <typename Kernel, typename... Args> static void launch(unsigned grid, unsigned block, Kernel kernel, Args... args) {
    blockDim.x = block, gridDim.x = grid;
    for (unsigned at = 0; at < grid; at++) {
        warps.clear();
        for (unsigned warp = 0; warp < block / 32; warp++) warps.push_back(std::make_unique<std::barrier<>>(32));
        whole_block = std::make_unique<std::barrier<>>(block);
        std::vector<std::thread> threads;
        for (unsigned thread = 0; thread < block; thread++)
            threads.emplace_back([=] {
                threadIdx.x = thread, blockIdx.x = at;
                kernel(args...);
            });
        for (std::thread &thread : threads) thread.join();
    }
}
