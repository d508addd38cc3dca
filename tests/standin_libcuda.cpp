// A libcuda.so.1 without a GPU: device memory is host memory, streams do their work at once, graphs replay.
// cuda.h is included, so the compiler checks that every definition below has the prototype of the real one;
// handles are heap pointers, so a caller that cuts one to 32 bits crashes or is answered with an error. Of
// PTX it reads the entry points and the bytes of their parameters, and a launch runs the same thread on the
// host.
#include <cuda.h>
#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "../csrc/tiles_kernels.h"

struct CUstream_st {
    unsigned flags;
    bool capturing = false;
    std::vector<std::function<void()>> captured;
};
struct CUevent_st {
    unsigned flags;
    bool recorded = false;
};
struct CUgraph_st {
    std::vector<std::function<void()>> work;
};
struct CUgraphExec_st {
    std::vector<std::function<void()>> work;
};

namespace {

constexpr size_t kTotal = size_t(1) << 30;
size_t used = 0;
int retained = 0;
int has_pools = 1;
std::map<CUdeviceptr, size_t> device;
std::set<CUmemoryPool> pools;
std::map<void*, size_t> pinned;
std::set<CUstream> streams;
std::set<CUevent> events;
std::set<CUgraph> graphs;
std::set<CUgraphExec> execs;
std::map<std::string, CUresult> failures;
std::map<std::string, int> calls;
std::vector<std::string> order;  // of all calls
std::recursive_mutex one_call;
thread_local std::vector<CUcontext> current;
int context_object;

CUresult enter(const char* name, bool needs_context = true) {
    ++calls[name];
    order.emplace_back(name);
    auto found = failures.find(name);
    if (found != failures.end()) {
        CUresult status = found->second;
        failures.erase(found);
        return status;
    }
    if (needs_context && (current.empty() || current.back() != reinterpret_cast<CUcontext>(&context_object)))
        return CUDA_ERROR_INVALID_CONTEXT;
    return CUDA_SUCCESS;
}

bool on_device(CUdeviceptr at, size_t bytes) {
    auto next = device.upper_bound(at);
    if (next == device.begin()) return false;
    --next;
    return at + bytes <= next->first + next->second;
}

bool on_host(const void* at, size_t bytes) {
    auto next = pinned.upper_bound(const_cast<void*>(at));
    if (next == pinned.begin()) return false;
    --next;
    return static_cast<const char*>(at) + bytes <= static_cast<char*>(next->first) + next->second;
}

bool usable(CUstream stream) {
    return stream == CU_STREAM_LEGACY || (streams.count(stream) && !stream->capturing);
}

CUresult queue(CUstream stream, std::function<void()> work) {
    if (!streams.count(stream)) return CUDA_ERROR_INVALID_HANDLE;  // the default stream is refused too
    if (stream->capturing)
        stream->captured.push_back(std::move(work));
    else
        work();
    return CUDA_SUCCESS;
}

// The bytes of an entry point's only parameter, 0 if the PTX has no such entry point.
size_t parameter_bytes(const std::string& ptx, const std::string& name) {
    const size_t entry = ptx.find(".entry " + name + "(");
    if (entry == std::string::npos) return 0;
    const size_t bracket = ptx.find('[', entry), end = ptx.find(')', entry);
    return bracket < end ? std::strtoul(ptx.c_str() + bracket + 1, nullptr, 10) : 0;
}

using Thread = void (*)(const void* arguments, unsigned run, unsigned row, unsigned layer);
struct Kernel {
    size_t bytes;
    Thread thread;
};

template <class Body, class Args>
void run_thread(const void* arguments, unsigned run, unsigned row, unsigned layer) {
    Body::run(*static_cast<const Args*>(arguments), run, row, layer);
}

std::map<std::string, Kernel> known() {
    using namespace yonos;
    using namespace yonos::grid;
    return {
#define KNOWN(symbol, args, ...) {"yonos_" #symbol, {sizeof(args), run_thread<__VA_ARGS__, args>}},
        YONOS_KERNELS(KNOWN)
#undef KNOWN
    };
}

}  // namespace

// A CUkernel of the stand-in is a Kernel, a CUlibrary the text of its PTX.

// Lanes call from threads of their own, and the bindings let go of Python's lock: one call at a time.
#define ENTER(name)                                              \
    const std::lock_guard<std::recursive_mutex> alone(one_call); \
    if (CUresult status = enter(name)) return status
#define ENTER_WITHOUT_CONTEXT(name)                              \
    const std::lock_guard<std::recursive_mutex> alone(one_call); \
    if (CUresult status = enter(name, false)) return status

extern "C" {

// What the tests steer and look at.
void standin_fail_next(const char* name, int status) { failures[name] = static_cast<CUresult>(status); }
void standin_pools(int supported) { has_pools = supported; }
int standin_calls(const char* name) { return calls[name]; }
int standin_order_length() { return int(order.size()); }
const char* standin_order(int index) { return order.at(index).c_str(); }
int standin_live() {
    return int(device.size() + pinned.size() + streams.size() + events.size() + graphs.size() + execs.size() +
               pools.size()) +
           retained;
}
int standin_contexts() { return int(current.size()); }
void standin_push_foreign() { current.push_back(reinterpret_cast<CUcontext>(&used)); }
int standin_foreign_is_current() {
    return !current.empty() && current.back() == reinterpret_cast<CUcontext>(&used);
}
unsigned standin_stream_flags(CUstream stream) { return streams.count(stream) ? stream->flags : 99; }
unsigned standin_event_flags(CUevent event) { return events.count(event) ? event->flags : 99; }
void standin_detach() { current.clear(); }

CUresult CUDAAPI cuInit(unsigned int flags) {
    ENTER_WITHOUT_CONTEXT("cuInit");
    return flags == 0 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}
CUresult CUDAAPI cuDriverGetVersion(int* version) {
    *version = 13020;
    return CUDA_SUCCESS;
}
CUresult CUDAAPI cuGetErrorName(CUresult error, const char** text) {
    *text = error == CUDA_ERROR_OUT_OF_MEMORY ? "CUDA_ERROR_OUT_OF_MEMORY" : "CUDA_ERROR_OTHER";
    return CUDA_SUCCESS;
}
CUresult CUDAAPI cuGetErrorString(CUresult error, const char** text) {
    *text = "words of the stand-in";
    return error ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}
CUresult CUDAAPI cuDeviceGetCount(int* count) {
    ENTER_WITHOUT_CONTEXT("cuDeviceGetCount");
    *count = 2;
    return CUDA_SUCCESS;
}
CUresult CUDAAPI cuDeviceGet(CUdevice* out, int ordinal) {
    *out = 40 + ordinal;
    return CUDA_SUCCESS;
}
CUresult CUDAAPI cuDeviceGetName(char* name, int length, CUdevice dev) {
    std::snprintf(name, size_t(length), "Stand-in %d", dev);
    return CUDA_SUCCESS;
}
CUresult CUDAAPI cuDeviceGetAttribute(int* value, CUdevice_attribute attribute, CUdevice dev) {
    if (dev < 40) return CUDA_ERROR_INVALID_DEVICE;
    if (attribute == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR) return *value = 8, CUDA_SUCCESS;
    if (attribute == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR) return *value = 6, CUDA_SUCCESS;
    if (attribute == CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED) return *value = has_pools, CUDA_SUCCESS;
    return CUDA_ERROR_INVALID_VALUE;
}
CUresult CUDAAPI cuDeviceTotalMem(size_t* bytes, CUdevice) {
    *bytes = kTotal;
    return CUDA_SUCCESS;
}
CUresult CUDAAPI cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice) {
    ++retained;
    *context = reinterpret_cast<CUcontext>(&context_object);
    return CUDA_SUCCESS;
}
CUresult CUDAAPI cuDevicePrimaryCtxRelease(CUdevice dev) {
    --retained;
    return dev >= 40 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE;
}
CUresult CUDAAPI cuCtxSetCurrent(CUcontext context) {
    current.assign(1, context);
    return CUDA_SUCCESS;
}
CUresult CUDAAPI cuCtxPushCurrent(CUcontext context) {
    current.push_back(context);
    return CUDA_SUCCESS;
}
CUresult CUDAAPI cuCtxPopCurrent(CUcontext* context) {
    if (current.empty()) return CUDA_ERROR_INVALID_CONTEXT;
    *context = current.back();
    current.pop_back();
    return CUDA_SUCCESS;
}
CUresult CUDAAPI cuPointerGetAttribute(void* out, CUpointer_attribute attribute, CUdeviceptr at) {
    if (attribute != CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL) return CUDA_ERROR_INVALID_VALUE;
    if (!device.count(at)) return CUDA_ERROR_INVALID_VALUE;
    *static_cast<int*>(out) = 0;
    return CUDA_SUCCESS;
}
CUresult CUDAAPI cuMemGetInfo(size_t* free_bytes, size_t* total_bytes) {
    ENTER("cuMemGetInfo");
    *free_bytes = kTotal - used;
    *total_bytes = kTotal;
    return CUDA_SUCCESS;
}
CUresult CUDAAPI cuMemAlloc(CUdeviceptr* at, size_t bytes) {
    ENTER("cuMemAlloc");
    if (bytes > kTotal - used) return CUDA_ERROR_OUT_OF_MEMORY;
    *at = reinterpret_cast<CUdeviceptr>(std::malloc(bytes));
    device[*at] = bytes;
    used += bytes;
    return CUDA_SUCCESS;
}
CUresult CUDAAPI cuMemFree(CUdeviceptr at) {
    ENTER("cuMemFree");
    if (!device.count(at)) return CUDA_ERROR_INVALID_VALUE;
    used -= device[at];
    device.erase(at);
    std::free(reinterpret_cast<void*>(at));
    return CUDA_SUCCESS;
}
CUresult CUDAAPI cuMemPoolCreate(CUmemoryPool* pool, const CUmemPoolProps* properties) {
    ENTER_WITHOUT_CONTEXT("cuMemPoolCreate");
    if (properties->allocType != CU_MEM_ALLOCATION_TYPE_PINNED ||
        properties->location.type != CU_MEM_LOCATION_TYPE_DEVICE || properties->location.id > 1)
        return CUDA_ERROR_INVALID_VALUE;
    *pool = reinterpret_cast<CUmemoryPool>(new int);
    pools.insert(*pool);
    return CUDA_SUCCESS;
}
CUresult CUDAAPI cuMemPoolSetAttribute(CUmemoryPool pool, CUmemPool_attribute attribute, void* value) {
    ENTER_WITHOUT_CONTEXT("cuMemPoolSetAttribute");
    const bool known =
        attribute == CU_MEMPOOL_ATTR_RELEASE_THRESHOLD && *static_cast<cuuint64_t*>(value) + 1 == 0;
    return pools.count(pool) && known ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}
CUresult CUDAAPI cuMemPoolTrimTo(CUmemoryPool pool, size_t) {
    ENTER_WITHOUT_CONTEXT("cuMemPoolTrimTo");
    return pools.count(pool) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}
CUresult CUDAAPI cuMemPoolDestroy(CUmemoryPool pool) {
    ENTER_WITHOUT_CONTEXT("cuMemPoolDestroy");
    if (!pools.erase(pool)) return CUDA_ERROR_INVALID_VALUE;
    delete reinterpret_cast<int*>(pool);
    return CUDA_SUCCESS;
}
CUresult CUDAAPI cuMemAllocFromPoolAsync(CUdeviceptr* at, size_t bytes, CUmemoryPool pool, CUstream stream) {
    ENTER("cuMemAllocFromPoolAsync");
    if (!pools.count(pool) || !usable(stream)) return CUDA_ERROR_INVALID_VALUE;
    if (bytes > kTotal - used) return CUDA_ERROR_OUT_OF_MEMORY;
    *at = reinterpret_cast<CUdeviceptr>(std::malloc(bytes));
    device[*at] = bytes;
    used += bytes;
    return CUDA_SUCCESS;
}
CUresult CUDAAPI cuMemFreeAsync(CUdeviceptr at, CUstream stream) {
    ENTER("cuMemFreeAsync");
    if (!device.count(at) || !usable(stream)) return CUDA_ERROR_INVALID_VALUE;
    used -= device[at];
    device.erase(at);
    std::free(reinterpret_cast<void*>(at));
    return CUDA_SUCCESS;
}
CUresult CUDAAPI cuStreamIsCapturing(CUstream stream, CUstreamCaptureStatus* status) {
    ENTER("cuStreamIsCapturing");
    const bool own = streams.count(stream);
    if (!own && stream != CU_STREAM_LEGACY) return CUDA_ERROR_INVALID_HANDLE;
    *status = own && stream->capturing ? CU_STREAM_CAPTURE_STATUS_ACTIVE : CU_STREAM_CAPTURE_STATUS_NONE;
    return CUDA_SUCCESS;
}
CUresult CUDAAPI cuMemHostAlloc(void** at, size_t bytes, unsigned int) {
    ENTER("cuMemHostAlloc");
    if (bytes > kTotal) return CUDA_ERROR_OUT_OF_MEMORY;
    *at = std::malloc(bytes);
    pinned[*at] = bytes;
    return CUDA_SUCCESS;
}
CUresult CUDAAPI cuMemFreeHost(void* at) {
    ENTER("cuMemFreeHost");
    if (!pinned.erase(at)) return CUDA_ERROR_INVALID_VALUE;
    std::free(at);
    return CUDA_SUCCESS;
}
CUresult CUDAAPI cuMemcpyHtoDAsync(CUdeviceptr to, const void* from, size_t bytes, CUstream stream) {
    ENTER("cuMemcpyHtoDAsync");
    if (!on_device(to, bytes) || !on_host(from, bytes)) return CUDA_ERROR_INVALID_VALUE;
    return queue(stream, [=] { std::memcpy(reinterpret_cast<void*>(to), from, bytes); });
}
CUresult CUDAAPI cuMemcpyDtoHAsync(void* to, CUdeviceptr from, size_t bytes, CUstream stream) {
    ENTER("cuMemcpyDtoHAsync");
    if (!on_host(to, bytes) || !on_device(from, bytes)) return CUDA_ERROR_INVALID_VALUE;
    return queue(stream, [=] { std::memcpy(to, reinterpret_cast<void*>(from), bytes); });
}
CUresult CUDAAPI cuMemcpyDtoDAsync(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream stream) {
    ENTER("cuMemcpyDtoDAsync");
    if (!on_device(to, bytes) || !on_device(from, bytes)) return CUDA_ERROR_INVALID_VALUE;
    return queue(stream,
                 [=] { std::memcpy(reinterpret_cast<void*>(to), reinterpret_cast<void*>(from), bytes); });
}
CUresult CUDAAPI cuMemcpy2DAsync(const CUDA_MEMCPY2D* copy, CUstream stream) {
    ENTER("cuMemcpy2DAsync");
    const CUDA_MEMCPY2D c = *copy;
    if (c.srcMemoryType != CU_MEMORYTYPE_DEVICE || c.dstMemoryType != CU_MEMORYTYPE_DEVICE || c.srcXInBytes ||
        c.srcY || c.dstXInBytes || c.dstY || c.WidthInBytes > c.srcPitch || c.WidthInBytes > c.dstPitch ||
        !on_device(c.srcDevice, (c.Height - 1) * c.srcPitch + c.WidthInBytes) ||
        !on_device(c.dstDevice, (c.Height - 1) * c.dstPitch + c.WidthInBytes))
        return CUDA_ERROR_INVALID_VALUE;
    return queue(stream, [=] {
        for (size_t y = 0; y < c.Height; ++y)
            std::memcpy(reinterpret_cast<char*>(c.dstDevice) + y * c.dstPitch,
                        reinterpret_cast<char*>(c.srcDevice) + y * c.srcPitch, c.WidthInBytes);
    });
}
CUresult CUDAAPI cuMemsetD8Async(CUdeviceptr to, unsigned char value, size_t bytes, CUstream stream) {
    ENTER("cuMemsetD8Async");
    if (!on_device(to, bytes)) return CUDA_ERROR_INVALID_VALUE;
    return queue(stream, [=] { std::memset(reinterpret_cast<void*>(to), value, bytes); });
}
CUresult CUDAAPI cuStreamCreate(CUstream* stream, unsigned int flags) {
    ENTER("cuStreamCreate");
    *stream = new CUstream_st{flags};
    streams.insert(*stream);
    return CUDA_SUCCESS;
}
CUresult CUDAAPI cuStreamDestroy(CUstream stream) {
    ENTER("cuStreamDestroy");
    if (!streams.erase(stream)) return CUDA_ERROR_INVALID_HANDLE;
    delete stream;
    return CUDA_SUCCESS;
}
CUresult CUDAAPI cuStreamWaitEvent(CUstream stream, CUevent event, unsigned int flags) {
    ENTER("cuStreamWaitEvent");
    return streams.count(stream) && events.count(event) && !flags ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}
CUresult CUDAAPI cuEventCreate(CUevent* event, unsigned int flags) {
    ENTER("cuEventCreate");
    *event = new CUevent_st{flags};
    events.insert(*event);
    return CUDA_SUCCESS;
}
CUresult CUDAAPI cuEventDestroy(CUevent event) {
    ENTER("cuEventDestroy");
    if (!events.erase(event)) return CUDA_ERROR_INVALID_HANDLE;
    delete event;
    return CUDA_SUCCESS;
}
CUresult CUDAAPI cuEventRecord(CUevent event, CUstream stream) {
    ENTER("cuEventRecord");
    if (!events.count(event) || !streams.count(stream)) return CUDA_ERROR_INVALID_HANDLE;
    event->recorded = true;
    return CUDA_SUCCESS;
}
CUresult CUDAAPI cuEventQuery(CUevent event) {
    ENTER("cuEventQuery");
    return events.count(event) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}
CUresult CUDAAPI cuEventSynchronize(CUevent event) {
    ENTER("cuEventSynchronize");
    return events.count(event) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}
CUresult CUDAAPI cuEventElapsedTime(float* ms, CUevent start, CUevent end) {
    ENTER("cuEventElapsedTime");
    if ((start->flags | end->flags) & CU_EVENT_DISABLE_TIMING) return CUDA_ERROR_INVALID_HANDLE;
    *ms = 1.5F;
    return CUDA_SUCCESS;
}
#ifdef cuEventElapsedTime  // newer headers lead to _v2; drivers keep the first one, with the same arguments
#undef cuEventElapsedTime
CUresult CUDAAPI cuEventElapsedTime(float* ms, CUevent start, CUevent end) {
    return cuEventElapsedTime_v2(ms, start, end);
}
#endif
CUresult CUDAAPI cuStreamBeginCapture(CUstream stream, CUstreamCaptureMode mode) {
    ENTER("cuStreamBeginCapture");
    if (!streams.count(stream) || mode != CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)
        return CUDA_ERROR_INVALID_VALUE;
    stream->capturing = true;
    stream->captured.clear();
    return CUDA_SUCCESS;
}
CUresult CUDAAPI cuStreamEndCapture(CUstream stream, CUgraph* graph) {
    ENTER("cuStreamEndCapture");
    if (!streams.count(stream) || !stream->capturing) return CUDA_ERROR_ILLEGAL_STATE;
    stream->capturing = false;
    *graph = new CUgraph_st{stream->captured};
    graphs.insert(*graph);
    return CUDA_SUCCESS;
}
CUresult CUDAAPI cuGraphInstantiate(CUgraphExec* exec, CUgraph graph, unsigned long long flags) {
    ENTER("cuGraphInstantiate");
    if (!graphs.count(graph) || flags) return CUDA_ERROR_INVALID_VALUE;
    *exec = new CUgraphExec_st{graph->work};
    execs.insert(*exec);
    return CUDA_SUCCESS;
}
CUresult CUDAAPI cuGraphDestroy(CUgraph graph) {
    ENTER("cuGraphDestroy");
    if (!graphs.erase(graph)) return CUDA_ERROR_INVALID_HANDLE;
    delete graph;
    return CUDA_SUCCESS;
}
CUresult CUDAAPI cuGraphLaunch(CUgraphExec exec, CUstream stream) {
    ENTER("cuGraphLaunch");
    if (!execs.count(exec) || !streams.count(stream)) return CUDA_ERROR_INVALID_HANDLE;
    for (auto& work : exec->work) work();
    return CUDA_SUCCESS;
}
CUresult CUDAAPI cuGraphExecDestroy(CUgraphExec exec) {
    ENTER("cuGraphExecDestroy");
    if (!execs.erase(exec)) return CUDA_ERROR_INVALID_HANDLE;
    delete exec;
    return CUDA_SUCCESS;
}

CUresult CUDAAPI cuLibraryLoadData(CUlibrary* library, const void* code, CUjit_option* options, void** values,
                                   unsigned int count, CUlibraryOption*, void**, unsigned int others) {
    ENTER_WITHOUT_CONTEXT("cuLibraryLoadData");
    if (others || count != 2 || options[0] != CU_JIT_ERROR_LOG_BUFFER ||
        options[1] != CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES)
        return CUDA_ERROR_INVALID_VALUE;
    const char* text = static_cast<const char*>(code);
    if (std::memcmp(text, "\x50\xed\x55\xba", 4) == 0) return CUDA_ERROR_NO_BINARY_FOR_GPU;  // a fatbin
    if (std::strstr(text, "\n.target sm_") == nullptr) {
        std::snprintf(static_cast<char*>(values[0]), reinterpret_cast<size_t>(values[1]), "no .target line");
        return CUDA_ERROR_INVALID_PTX;
    }
    *library = reinterpret_cast<CUlibrary>(
        new std::string(text));  // for the life of the process, as callers want it
    return CUDA_SUCCESS;
}
CUresult CUDAAPI cuLibraryGetKernel(CUkernel* kernel, CUlibrary library, const char* name) {
    ENTER_WITHOUT_CONTEXT("cuLibraryGetKernel");
    static std::map<std::string, Kernel> kernels = known();
    const auto found = kernels.find(name);
    if (found == kernels.end()) return CUDA_ERROR_NOT_FOUND;
    if (parameter_bytes(*reinterpret_cast<std::string*>(library), name) != found->second.bytes)
        return CUDA_ERROR_NOT_FOUND;
    *kernel = reinterpret_cast<CUkernel>(&found->second);
    return CUDA_SUCCESS;
}
CUresult CUDAAPI cuLaunchKernel(CUfunction function, unsigned int grid_x, unsigned int grid_y,
                                unsigned int grid_z, unsigned int block_x, unsigned int block_y,
                                unsigned int block_z, unsigned int shared_bytes, CUstream stream,
                                void** parameters, void** extra) {
    ENTER("cuLaunchKernel");
    if (shared_bytes || extra || block_z != 1 || block_x * block_y > 1024 || grid_y > 65535 || grid_z > 65535)
        return CUDA_ERROR_INVALID_VALUE;
    const Kernel kernel = *reinterpret_cast<Kernel*>(function);
    const char* first = static_cast<const char*>(parameters[0]);
    const std::vector<char> arguments(first, first + kernel.bytes);  // the driver copies them as well
    return queue(stream, [=] {
        for (unsigned z = 0; z < grid_z; ++z)
            for (unsigned y = 0; y < grid_y * block_y; ++y)
                for (unsigned x = 0; x < grid_x * block_x; ++x) kernel.thread(arguments.data(), x, y, z);
    });
}

// How NVIDIA's bindings find the functions: by the name in the documentation.
CUresult CUDAAPI cuGetProcAddress_v2(const char* name, void** function, int, cuuint64_t,
                                     CUdriverProcAddressQueryResult* found) {
    Dl_info self;
    dladdr(reinterpret_cast<void*>(&standin_calls), &self);
    void* library = dlopen(self.dli_fname, RTLD_NOW | RTLD_NOLOAD);
    for (const char* ending : {"_v2", "", "WithFlags"})
        if ((*function = dlsym(library, (std::string(name) + ending).c_str()))) break;
    if (found) *found = *function ? CU_GET_PROC_ADDRESS_SUCCESS : CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND;
    return *function ? CUDA_SUCCESS : CUDA_ERROR_NOT_FOUND;
}

}  // extern "C"
