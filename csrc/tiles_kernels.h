// The kernels by name: what a thread does (tiles_grid.h, tiles_color.h) as a type that tiles.cu makes a
// kernel of, tiles_driver.cpp looks up in the compiled code, and tiles_emulated.cpp runs on the host.
#pragma once

#include "tiles_color.h"
#include "tiles_grid.h"

namespace yonos::grid {

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
YONOS_BODY(check, CheckArgs);
YONOS_BODY(color_cells, ColorCellsArgs);
YONOS_BODY(color_blur, ColorBlurArgs);
YONOS_BODY(moments, MomentsArgs);
YONOS_BODY(bicubic_moments, BicubicMomentsArgs);
YONOS_BODY(fold, FoldArgs);
YONOS_BODY(affine, AffineArgs);
YONOS_BODY(finish, FinishArgs);

#undef YONOS_BODY

}  // namespace yonos::grid

// X(symbol without "yonos_", arguments, body)
#define YONOS_KERNELS(X)                                                       \
    X(gather_u8_f32, GatherArgs, gather<std::uint8_t, float>)                  \
    X(gather_u8_f16, GatherArgs, gather<std::uint8_t, Half>)                   \
    X(gather_u16_f32, GatherArgs, gather<std::uint16_t, float>)                \
    X(gather_u16_f16, GatherArgs, gather<std::uint16_t, Half>)                 \
    X(gather_f32_f32, GatherArgs, gather<float, float>)                        \
    X(gather_f32_f16, GatherArgs, gather<float, Half>)                         \
    X(gather_lr_u8_f32, GatherArgs, gather_lr<std::uint8_t, float>)            \
    X(gather_lr_u8_f16, GatherArgs, gather_lr<std::uint8_t, Half>)             \
    X(gather_lr_u16_f32, GatherArgs, gather_lr<std::uint16_t, float>)          \
    X(gather_lr_u16_f16, GatherArgs, gather_lr<std::uint16_t, Half>)           \
    X(gather_lr_f32_f32, GatherArgs, gather_lr<float, float>)                  \
    X(gather_lr_f32_f16, GatherArgs, gather_lr<float, Half>)                   \
    X(noise_f32, NoiseArgs, noise<float>)                                      \
    X(noise_f16, NoiseArgs, noise<Half>)                                       \
    X(blend_f32, BlendArgs, blend<float>)                                      \
    X(blend_f16, BlendArgs, blend<Half>)                                       \
    X(check_f32, CheckArgs, check<float>)                                      \
    X(check_f16, CheckArgs, check<Half>)                                       \
    X(color_cells_u8, ColorCellsArgs, color_cells<std::uint8_t>)               \
    X(color_cells_u16, ColorCellsArgs, color_cells<std::uint16_t>)             \
    X(color_cells_f32, ColorCellsArgs, color_cells<float>)                     \
    X(color_blur_x, ColorBlurArgs, color_blur<AlongX>)                         \
    X(color_blur_y, ColorBlurArgs, color_blur<AlongY>)                         \
    X(moments, MomentsArgs, moments<>)                                         \
    X(bicubic_moments_u8, BicubicMomentsArgs, bicubic_moments<std::uint8_t>)   \
    X(bicubic_moments_u16, BicubicMomentsArgs, bicubic_moments<std::uint16_t>) \
    X(bicubic_moments_f32, BicubicMomentsArgs, bicubic_moments<float>)         \
    X(fold, FoldArgs, fold<>)                                                  \
    X(affine, AffineArgs, affine<>)                                            \
    X(finish_u8_no_fix, FinishArgs, finish<std::uint8_t, NoFix>)               \
    X(finish_u8_wavelet, FinishArgs, finish<std::uint8_t, Wavelet>)            \
    X(finish_u8_adain, FinishArgs, finish<std::uint8_t, Adain>)                \
    X(finish_u16_no_fix, FinishArgs, finish<std::uint16_t, NoFix>)             \
    X(finish_u16_wavelet, FinishArgs, finish<std::uint16_t, Wavelet>)          \
    X(finish_u16_adain, FinishArgs, finish<std::uint16_t, Adain>)              \
    X(finish_f32_no_fix, FinishArgs, finish<float, NoFix>)                     \
    X(finish_f32_wavelet, FinishArgs, finish<float, Wavelet>)                  \
    X(finish_f32_adain, FinishArgs, finish<float, Adain>)
