// The CUDA kernels' grid on the host: every block and thread of the same launch, one after the other, on host
// memory, behind the same C ABI. Tests build it to prove the launch geometry without a GPU:
//
//   g++ -std=c++17 -O2 -shared -fPIC -ffp-contract=off csrc/tiles_emulated.cpp -o libyonos_emulated.so
//
// `stream` is the seed of the order in which threads run: 0 is ascending, others are permutations. An output
// that depends on the order would show.
#include <cstring>
#include <numeric>
#include <vector>

#include "tiles_abi.h"
#include "tiles_kernels.h"

namespace yonos::grid {
namespace {

template <class Body, class Args>
int launch(Geometry g, Body, const Args& a, void* stream) {
    const Size3 grid = g.grid, block = g.block;
    const std::uint64_t blocks = std::uint64_t{grid.x} * grid.y * grid.z;
    const std::uint64_t threads = std::uint64_t{block.x} * block.y * block.z;
    const std::uint64_t total = blocks * threads;
    const std::uint64_t seed = reinterpret_cast<std::uintptr_t>(stream);
    // i -> i * step + seed is a permutation of [0, total) when step and total share no factor
    std::uint64_t step = seed == 0 ? 1 : 2654435761u % total + 1;
    while (std::gcd(step, total) != 1) ++step;
    for (std::uint64_t i = 0; i < total; ++i) {
        const std::uint64_t place = (i * step + seed) % total;
        const std::uint64_t b = place / threads, t = place % threads;
        const unsigned bx = static_cast<unsigned>(b % grid.x),
                       by = static_cast<unsigned>(b / grid.x % grid.y),
                       bz = static_cast<unsigned>(b / grid.x / grid.y);
        const unsigned tx = static_cast<unsigned>(t % block.x),
                       ty = static_cast<unsigned>(t / block.x % block.y);
        Body::run(a, bx * block.x + tx, by * block.y + ty, bz);
    }
    return 0;
}

int clear(std::int32_t* flags, int count, void*) {
    std::memset(flags, 0, sizeof(std::int32_t) * static_cast<std::size_t>(count));
    return 0;
}

}  // namespace
}  // namespace yonos::grid

#include "tiles_launch.h"

YONOS_EXPORT int yonos_open(const char*, const void*, char*, int) { return 0; }

// The conversions that host code does in software and a GPU in hardware, for the tests.
YONOS_EXPORT void yonos_emulated_to_half(const float* values, yonos::Half* halves, int64_t count) {
    for (int64_t i = 0; i < count; ++i) yonos::store_as(halves + i, values[i]);
}

YONOS_EXPORT void yonos_emulated_from_half(const yonos::Half* halves, float* values, int64_t count) {
    for (int64_t i = 0; i < count; ++i) values[i] = yonos::to_float(halves[i]);
}
