// The tile kernels for a GPU: one entry point per row of tiles_kernels.h, whose only parameter is its
// arguments. What a thread does is in tiles_grid.h and tiles_color.h, who launches it in tiles_driver.cpp.
// Compiled with
// --fmad=false: the results have the bits of the CPU's. csrc/ptx.py makes yonos_trt/cuda/tiles.ptx of it.
#include "tiles_kernels.h"

#define YONOS_KERNEL(symbol, args, ...)                                                                   \
    extern "C" __global__ void yonos_##symbol(const yonos::grid::args a) {                                \
        using namespace yonos;                                                                            \
        using namespace yonos::grid;                                                                      \
        __VA_ARGS__::run(a, blockIdx.x * blockDim.x + threadIdx.x, blockIdx.y * blockDim.y + threadIdx.y, \
                         blockIdx.z);                                                                     \
    }

YONOS_KERNELS(YONOS_KERNEL)
