#include "cuda_on_cpu.h"

#include "gather.cu"

#define NAMES                                                                                                         \
    batch, outputs, groups, templates, height, width, out_height, out_width, taps_y, taps_x, stride_y, stride_x,      \
        padding_y, padding_x, dilation_y, dilation_x

extern "C" void run_gather(unsigned grid, const Value *maps, const Value *operators, const long long *source,
                           Value *out, SHAPES) {
    launch(grid, 64, gather, maps, operators, source, out, NAMES);
}

extern "C" void run_gather_to_maps(unsigned grid, const Value *grad, const Value *operators, const long long *order,
                                   const long long *begin, Value *to_maps, SHAPES) {
    launch(grid, 64, gather_to_maps, grad, operators, order, begin, to_maps, NAMES);
}

extern "C" void run_gather_to_operators(unsigned grid, const Value *grad, const Value *maps, const long long *source,
                                        Value *to_operators, Index team, SHAPES) {
    launch(grid, 64, gather_to_operators, grad, maps, source, to_operators, team, NAMES);
}

extern "C" void run_narrowed(const float *x, Value *y, int values) {
    for (int i = 0; i < values; i++) y[i] = narrowed(x[i]);
}
