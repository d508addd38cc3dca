// Checks and dispatch of the C ABI, shared by tiles_driver.cpp and tiles_emulated.cpp. The includer defines
// before:
//
//   template <class Body, class Args> int launch(Geometry, Body, const Args&, void* stream)
//   int clear(int32_t* flags, int count, void* stream)
//
// where Body is one of tiles_kernels.h.
#pragma once

#include "tiles_abi.h"
#include "tiles_kernels.h"

namespace yonos::grid {

constexpr int kInvalidValue = 1;

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

template <class Out>
int launch_finish(FinishArgs a, float white, void* stream) {
    const Geometry g = finish_geometry(a);
    if (!fits(g)) return kInvalidValue;
    a.white = white;
    if (a.grid != nullptr) return launch(g, finish<Out, Wavelet>{}, a, stream);
    if (a.affine != nullptr) return launch(g, finish<Out, Adain>{}, a, stream);
    return launch(g, finish<Out, NoFix>{}, a, stream);
}

// The gain of a kind of picture: values times it, minus 1, are in [-1, 1]. 0 for an unknown kind.
inline float gain_of(int kind) {
    return kind == 0 ? 2.0f / 255.0f : (kind == 1 ? 2.0f / 65535.0f : (kind == 2 ? 2.0f : 0.0f));
}

constexpr int64_t kLargestSide = int64_t{1} << 29;

}  // namespace yonos::grid

YONOS_EXPORT int yonos_gather(const void* image, int kind, int height, int width, int64_t pitch_bytes,
                              const int64_t* origins, void* out, int count, int tile_h_px, int tile_w_px,
                              int scale, int lr, int half, void* stream) {
    using namespace yonos::grid;
    if (height < 1 || width < 1 || count < 1 || tile_h_px < 1 || tile_w_px < 1 || scale < 1 ||
        int64_t{height} * scale >= kLargestSide || int64_t{width} * scale >= kLargestSide ||
        tile_h_px >= kLargestSide || tile_w_px >= kLargestSide ||
        (lr != 0 && (tile_h_px % scale != 0 || tile_w_px % scale != 0))) {
        return kInvalidValue;
    }
    const int step = lr != 0 ? scale : 1;
    const GatherArgs a = {
        image, height,       width, pitch_bytes, origins, out, count, tile_h_px / step, tile_w_px / step,
        scale, gain_of(kind)};
    switch (kind) {
        case 0:
            return launch_gather_from<std::uint8_t>(a, lr != 0, half != 0, stream);
        case 1:
            return launch_gather_from<std::uint16_t>(a, lr != 0, half != 0, stream);
        case 2:
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
                             int tile_h_px, int tile_w_px, int canvas_h_px, int canvas_w_px, int first_px,
                             int span_px, int half, void* stream) {
    using namespace yonos::grid;
    if (count < 1 || tile_h_px < 1 || tile_w_px < 1 || canvas_h_px < 1 || canvas_w_px < 1 || first_px < 0 ||
        span_px < 1 || span_px > canvas_w_px - first_px)
        return kInvalidValue;
    const BlendArgs a = {canvas, tiles,     rows,      columns,     weights_y,   weights_x, skip,
                         count,  tile_h_px, tile_w_px, canvas_h_px, canvas_w_px, first_px,  span_px};
    const Geometry g = half != 0 ? blend_geometry<yonos::Half>(a) : blend_geometry<float>(a);
    if (!fits(g)) return kInvalidValue;
    return half != 0 ? launch(g, blend<yonos::Half>{}, a, stream) : launch(g, blend<float>{}, a, stream);
}

YONOS_EXPORT int yonos_color_cells(const float* canvas, int canvas_w_px, const void* image, int kind,
                                   int height, int width, int64_t pitch_bytes, const int64_t* base_y,
                                   const float* weight_y, int taps_y, const int64_t* base_x,
                                   const float* weight_x, int taps_x, float* out, int ring, int first,
                                   int last, int height_px, int width_px, void* stream) {
    using namespace yonos::grid;
    if (height < 1 || width < 1 || taps_y < 1 || taps_x < 1 || height_px < 1 || width_px < 1 ||
        canvas_w_px < width_px || first < 0 || last <= first || last > cells_of(height_px) ||
        ring < last - first) {
        return kInvalidValue;
    }
    const ColorCellsArgs a = {canvas,   canvas_w_px, image,     height,   width,        pitch_bytes, base_y,
                              weight_y, taps_y,      base_x,    weight_x, taps_x,       out,         ring,
                              first,    last,        height_px, width_px, gain_of(kind)};
    const Geometry g = color_cells_geometry(a);
    if (!fits(g)) return kInvalidValue;
    switch (kind) {
        case 0:
            return launch(g, color_cells<std::uint8_t>{}, a, stream);
        case 1:
            return launch(g, color_cells<std::uint16_t>{}, a, stream);
        case 2:
            return launch(g, color_cells<float>{}, a, stream);
        default:
            return kInvalidValue;
    }
}

YONOS_EXPORT int yonos_color_blur(const float* source, float* out, int along_y, int ring, int rows,
                                  int columns, int first, int last, void* stream) {
    using namespace yonos::grid;
    if (ring < 1 || columns < 1 || first < 0 || last <= first || last > rows) return kInvalidValue;
    const ColorBlurArgs a = {source, out, ring, rows, columns, first, last};
    const Geometry g = color_blur_geometry(a);
    if (!fits(g)) return kInvalidValue;
    return along_y != 0 ? launch(g, color_blur<AlongY>{}, a, stream)
                        : launch(g, color_blur<AlongX>{}, a, stream);
}

YONOS_EXPORT int yonos_moments(const float* rows, double* out, int height_px, int width_px, void* stream) {
    using namespace yonos::grid;
    if (height_px < 1 || width_px < 1) return kInvalidValue;
    const MomentsArgs a = {rows, out, height_px, width_px};
    const Geometry g = moments_geometry(a);
    return fits(g) ? launch(g, moments<>{}, a, stream) : kInvalidValue;
}

YONOS_EXPORT int yonos_bicubic_moments(const void* image, int kind, int height, int width,
                                       int64_t pitch_bytes, double* out, int scale, void* stream) {
    using namespace yonos::grid;
    if (height < 1 || width < 1 || scale < 1 || int64_t{height} * scale >= kLargestSide ||
        int64_t{width} * scale >= kLargestSide) {
        return kInvalidValue;
    }
    const BicubicMomentsArgs a = {image, height, width, pitch_bytes, out, scale, gain_of(kind)};
    const Geometry g = bicubic_moments_geometry(a);
    if (!fits(g)) return kInvalidValue;
    switch (kind) {
        case 0:
            return launch(g, bicubic_moments<std::uint8_t>{}, a, stream);
        case 1:
            return launch(g, bicubic_moments<std::uint16_t>{}, a, stream);
        case 2:
            return launch(g, bicubic_moments<float>{}, a, stream);
        default:
            return kInvalidValue;
    }
}

YONOS_EXPORT int yonos_fold(const double* parts, double* out, int64_t count, void* stream) {
    using namespace yonos::grid;
    const FoldArgs a = {parts, out, count};
    if (count < 1) return kInvalidValue;
    const Geometry g = fold_geometry(a);
    return fits(g) ? launch(g, fold<>{}, a, stream) : kInvalidValue;
}

YONOS_EXPORT int yonos_affine(const double* wanted, const double* ours, int64_t count, float* out,
                              void* stream) {
    using namespace yonos::grid;
    if (count < 1) return kInvalidValue;
    const AffineArgs a = {wanted, ours, count, out};
    return launch(affine_geometry(a), affine<>{}, a, stream);
}

YONOS_EXPORT int yonos_finish(const float* acc, int acc_w_px, void* out, int kind, int rows, int width_px,
                              int y0_px, const float* grid, int grid_rows, int ring, const float* affine,
                              void* stream) {
    using namespace yonos::grid;
    if (rows < 1 || width_px < 1 || acc_w_px < width_px || y0_px < 0 ||
        (grid != nullptr && affine != nullptr) || (grid != nullptr && (grid_rows < 1 || ring < 1))) {
        return kInvalidValue;
    }
    const FinishArgs a = {acc, acc_w_px, out, rows, width_px, y0_px, grid, grid_rows, ring, affine, 1.0f};
    switch (kind) {
        case 0:
            return launch_finish<std::uint8_t>(a, 255.0f, stream);
        case 1:
            return launch_finish<std::uint16_t>(a, 65535.0f, stream);
        case 2:
            return launch_finish<float>(a, 1.0f, stream);
        default:
            return kInvalidValue;
    }
}
