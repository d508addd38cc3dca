// Checks and dispatch of the C ABI, shared by tiles.cu and tiles_emulated.cpp. The includer defines before:
//
//   template <class Body, class Args> int launch(Geometry, Body, const Args&, void* stream)
//   int clear(int32_t* flags, int count, void* stream)
//
// and Body is a type whose static run(args, run, row, layer) is one of the threads of tiles_grid.h.
#pragma once

#include "tiles_abi.h"
#include "tiles_grid.h"

namespace yonos::grid {

constexpr int kInvalidValue = 1;

#define YONOS_BODY(name, args)                                                                \
    template <class... T>                                                                     \
    struct name {                                                                             \
        static YONOS_HD void run(const args& a, unsigned run, unsigned row, unsigned layer) { \
            name##_thread<T...>(a, run, row, layer);                                          \
        }                                                                                     \
    }

YONOS_BODY(gather, GatherArgs);
YONOS_BODY(gather_lr, GatherArgs);
YONOS_BODY(noise, NoiseArgs);
YONOS_BODY(blend, BlendArgs);
YONOS_BODY(finalize, FinalizeArgs);
YONOS_BODY(check, CheckArgs);

#undef YONOS_BODY

template <class In, class Out>
int launch_gather(const GatherArgs& a, bool lr, void* stream) {
    const Geometry g = gather_geometry<Out>(a);
    if (!fits(g)) return kInvalidValue;
    return lr ? launch(g, gather_lr<In, Out>{}, a, stream) : launch(g, gather<In, Out>{}, a, stream);
}

template <class In>
int launch_gather_from(const GatherArgs& a, bool lr, bool half, void* stream) {
    return half ? launch_gather<In, Half>(a, lr, stream) : launch_gather<In, float>(a, lr, stream);
}

}  // namespace yonos::grid

YONOS_EXPORT int yonos_gather(const void* image, int kind, int height, int width, int64_t pitch_bytes,
                              const int64_t* origins, void* out, int count, int tile_h_px, int tile_w_px,
                              int scale, int lr, int half, void* stream) {
    using namespace yonos::grid;
    const int64_t largest = int64_t{1} << 29;
    if (height < 1 || width < 1 || count < 1 || tile_h_px < 1 || tile_w_px < 1 || scale < 1 ||
        int64_t{height} * scale >= largest || int64_t{width} * scale >= largest || tile_h_px >= largest ||
        tile_w_px >= largest || (lr != 0 && (tile_h_px % scale != 0 || tile_w_px % scale != 0))) {
        return kInvalidValue;
    }
    const int step = lr != 0 ? scale : 1;
    GatherArgs a = {
        image, height, width, pitch_bytes, origins, out, count, tile_h_px / step, tile_w_px / step,
        scale, 0.0f};
    switch (kind) {
        case 0:
            a.gain = 2.0f / 255.0f;
            return launch_gather_from<std::uint8_t>(a, lr != 0, half != 0, stream);
        case 1:
            a.gain = 2.0f / 65535.0f;
            return launch_gather_from<std::uint16_t>(a, lr != 0, half != 0, stream);
        case 2:
            a.gain = 2.0f;
            return launch_gather_from<float>(a, lr != 0, half != 0, stream);
        default:
            return kInvalidValue;
    }
}

YONOS_EXPORT int yonos_noise(uint64_t seed, const int64_t* origins, void* out, int count, int channels,
                             int factor, int h_lat, int w_lat, int half, void* stream) {
    using namespace yonos::grid;
    if (count < 1 || channels < 1 || factor < 1 || h_lat < 1 || w_lat < 1) return kInvalidValue;
    const NoiseArgs a = {seed, origins, out, count, channels, factor, h_lat, w_lat};
    const Geometry g = half != 0 ? noise_geometry<yonos::Half>(a) : noise_geometry<float>(a);
    if (!fits(g)) return kInvalidValue;
    return half != 0 ? launch(g, noise<yonos::Half>{}, a, stream) : launch(g, noise<float>{}, a, stream);
}

YONOS_EXPORT int yonos_check(const void* tiles, int32_t* flags, int count, int64_t items, int half,
                             void* stream) {
    using namespace yonos::grid;
    const CheckArgs a = {tiles, flags, count, items};
    if (count < 1 || items < 1) return kInvalidValue;
    const Geometry g = half != 0 ? check_geometry<yonos::Half>(a) : check_geometry<float>(a);
    if (!fits(g)) return kInvalidValue;
    const int status = clear(flags, count, stream);
    if (status != 0) return status;
    return half != 0 ? launch(g, check<yonos::Half>{}, a, stream) : launch(g, check<float>{}, a, stream);
}

YONOS_EXPORT int yonos_blend(float* canvas, const void* tiles, const int64_t* rows, const int64_t* columns,
                             const float* weights_y, const float* weights_x, const int32_t* skip, int count,
                             int tile_h_px, int tile_w_px, int canvas_h_px, int canvas_w_px, int half,
                             void* stream) {
    using namespace yonos::grid;
    if (count < 1 || tile_h_px < 1 || tile_w_px < 1 || canvas_h_px < 1 || canvas_w_px < 1)
        return kInvalidValue;
    const BlendArgs a = {canvas, tiles, rows,      columns,   weights_y,   weights_x,
                         skip,   count, tile_h_px, tile_w_px, canvas_h_px, canvas_w_px};
    const Geometry g = half != 0 ? blend_geometry<yonos::Half>(a) : blend_geometry<float>(a);
    if (!fits(g)) return kInvalidValue;
    return half != 0 ? launch(g, blend<yonos::Half>{}, a, stream) : launch(g, blend<float>{}, a, stream);
}

YONOS_EXPORT int yonos_finalize(const float* acc, const float* delta, void* out, int kind, int64_t values,
                                void* stream) {
    using namespace yonos::grid;
    if (values < 1) return kInvalidValue;
    FinalizeArgs a = {acc, delta, out, values, 1.0f};
    const Geometry g = finalize_geometry(a);
    if (!fits(g)) return kInvalidValue;
    switch (kind) {
        case 0:
            a.white = 255.0f;
            return launch(g, finalize<std::uint8_t>{}, a, stream);
        case 1:
            a.white = 65535.0f;
            return launch(g, finalize<std::uint16_t>{}, a, stream);
        case 2:
            return launch(g, finalize<float>{}, a, stream);
        default:
            return kInvalidValue;
    }
}
