// libyonos_cuda.so: the tile kernels on a GPU. The C ABI is described in tiles_abi.h, what a thread does in
// tiles_grid.h; here is only how CUDA starts it. Compiled with --fmad=false: the results have the bits of the
// CPU's.
#include <cuda_runtime.h>

#include "tiles_abi.h"
#include "tiles_grid.h"

namespace yonos::grid {
namespace {

template <class Body, class Args>
__global__ void run_grid(const Args a) {
    Body::run(a, blockIdx.x * blockDim.x + threadIdx.x, blockIdx.y * blockDim.y + threadIdx.y, blockIdx.z);
}

template <class Body, class Args>
int launch(Geometry g, Body, const Args& a, void* stream) {
    run_grid<Body><<<dim3(g.grid.x, g.grid.y, g.grid.z), dim3(g.block.x, g.block.y, g.block.z), 0,
                     static_cast<cudaStream_t>(stream)>>>(a);
    return static_cast<int>(cudaPeekAtLastError());
}

int clear(std::int32_t* flags, int count, void* stream) {
    const std::size_t bytes = sizeof(std::int32_t) * static_cast<std::size_t>(count);
    return static_cast<int>(cudaMemsetAsync(flags, 0, bytes, static_cast<cudaStream_t>(stream)));
}

}  // namespace
}  // namespace yonos::grid

#include "tiles_launch.h"
