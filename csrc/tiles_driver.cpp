// libyonos_cuda.so: the tile kernels on a GPU. The C ABI is described in tiles_abi.h. Any C++ compiler builds
// it: the kernels come as PTX or native code (tiles.cu) and are loaded and launched through the driver, whose
// library is opened at run time. One CUlibrary serves all devices.
#include <dlfcn.h>

#include <cstddef>
#include <cstdint>

#include "tiles_abi.h"
#include "tiles_kernels.h"

namespace yonos::grid {
namespace {

// Declared as cuda.h does, so that no CUDA toolkit is needed here; tests/standin_libcuda.cpp compares by use.
using Result = int;
using LibraryLoadData = Result (*)(void** library, const void* code, int* jit_options, void** jit_values,
                                   unsigned jit_count, int* options, void** values, unsigned count);
using LibraryGetKernel = Result (*)(void** kernel, void* library, const char* name);
using LaunchKernel = Result (*)(void* kernel, unsigned grid_x, unsigned grid_y, unsigned grid_z,
                                unsigned block_x, unsigned block_y, unsigned block_z, unsigned shared_bytes,
                                void* stream, void** parameters, void** extra);
using FillBytes = Result (*)(std::uint64_t at, unsigned char value, std::size_t bytes, void* stream);

constexpr Result kNotInitialized = 3, kNotFound = 500;
constexpr int kErrorLog = 5, kErrorLogBytes = 6;  // CUjit_option

template <class Body>
struct Symbol;

enum Index {
#define YONOS_INDEX(symbol, args, ...) k_##symbol,
    YONOS_KERNELS(YONOS_INDEX)
#undef YONOS_INDEX
        kKernels
};

#define YONOS_SYMBOL(symbol, args, ...)            \
    template <>                                    \
    struct Symbol<__VA_ARGS__> {                   \
        static constexpr Index index = k_##symbol; \
    };
YONOS_KERNELS(YONOS_SYMBOL)
#undef YONOS_SYMBOL

constexpr const char* kSymbols[] = {
#define YONOS_NAME(symbol, args, ...) "yonos_" #symbol,
    YONOS_KERNELS(YONOS_NAME)
#undef YONOS_NAME
};

struct Loaded {
    LaunchKernel launch;
    FillBytes fill;
    void* kernels[kKernels];
};
Loaded loaded = {};

template <class Body, class Args>
int launch(Geometry g, Body, const Args& a, void* stream) {
    if (loaded.launch == nullptr) return kNotInitialized;
    void* parameters[] = {const_cast<Args*>(&a)};
    return loaded.launch(loaded.kernels[Symbol<Body>::index], g.grid.x, g.grid.y, g.grid.z, g.block.x,
                         g.block.y, g.block.z, 0, stream, parameters, nullptr);
}

int clear(std::int32_t* flags, int count, void* stream) {
    if (loaded.fill == nullptr) return kNotInitialized;
    const std::size_t bytes = sizeof(std::int32_t) * static_cast<std::size_t>(count);
    return loaded.fill(reinterpret_cast<std::uintptr_t>(flags), 0, bytes, stream);
}

}  // namespace
}  // namespace yonos::grid

#include "tiles_launch.h"

YONOS_EXPORT int yonos_open(const char* driver, const void* code, char* log, int log_bytes) {
    using namespace yonos::grid;
    void* cuda = dlopen(driver, RTLD_NOW);
    if (cuda == nullptr) return kNotInitialized;
    const auto load = reinterpret_cast<LibraryLoadData>(dlsym(cuda, "cuLibraryLoadData"));
    const auto find = reinterpret_cast<LibraryGetKernel>(dlsym(cuda, "cuLibraryGetKernel"));
    Loaded now = {reinterpret_cast<LaunchKernel>(dlsym(cuda, "cuLaunchKernel")),
                  reinterpret_cast<FillBytes>(dlsym(cuda, "cuMemsetD8Async")),
                  {}};
    if (load == nullptr || find == nullptr || now.launch == nullptr || now.fill == nullptr) return kNotFound;
    int options[] = {kErrorLog, kErrorLogBytes};
    void* values[] = {log, reinterpret_cast<void*>(static_cast<std::intptr_t>(log_bytes))};
    void* library = nullptr;
    if (const int status = load(&library, code, options, values, 2, nullptr, nullptr, 0)) return status;
    for (int i = 0; i < kKernels; ++i) {
        if (const int status = find(&now.kernels[i], library, kSymbols[i])) return status;
    }
    loaded = now;
    return 0;
}
