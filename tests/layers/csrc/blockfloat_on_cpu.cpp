#include "cuda_on_cpu.h"

#include "blockfloat.cu"

extern "C" void run_single_values(unsigned grid, const Stored *x, Stored *y, Index values, Index bits, Index lowest) {
    launch(grid, 64, single_values, x, y, values, bits, lowest);
}

extern "C" void run_rows_of_blocks(unsigned grid, const Stored *x, Stored *y, Index rows, Index length, Index block,
                                   Index lanes, Index bits, Index lowest) {
    launch(grid, 64, rows_of_blocks, x, y, rows, length, block, lanes, bits, lowest);
}

extern "C" void run_many_blocks(unsigned grid, const Stored *x, Stored *y, Index rows, Index length, Index inner,
                                Index block, Index bits, Index lowest) {
    launch(grid, 64, many_blocks, x, y, rows, length, inner, block, bits, lowest);
}
