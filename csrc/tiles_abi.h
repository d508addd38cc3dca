// C ABI of the tile kernels on a device: libyonos_cuda.so (tiles.cu), loaded with ctypes by yonos_trt. The
// library that emulates the grid on the host (tiles_emulated.cpp) has the same functions on host memory.
//
// All pointers are device addresses. Every function queues work on `stream` (a cudaStream_t, or the driver's
// CUstream) of the current context and returns at once: it allocates nothing, synchronises nothing, and may
// be captured into a graph. The result is a cudaError_t: 0, 1 (cudaErrorInvalidValue) for sizes out of range,
// or what the launch gave.
//
//   half    0: tiles are float32, 1: float16
//   kind    0: uint8, 1: uint16, 2: float32 in [0, 1]
//   origins count ys followed by count xs, int64, canvas px
#pragma once

#include <stdint.h>

#define YONOS_EXPORT extern "C" __attribute__((visibility("default")))

// out (count, 3, tile_h_px, tile_w_px) from the bicubic enlargement of image (height, width, 3); with lr, out
// (count, 3, tile_h_px / scale, tile_w_px / scale) from the image itself. pitch_bytes: from one row to the
// next.
YONOS_EXPORT int yonos_gather(const void* image, int kind, int height, int width, int64_t pitch_bytes,
                              const int64_t* origins, void* out, int count, int tile_h_px, int tile_w_px,
                              int scale, int lr, int half, void* stream);

// out (count, channels, h_lat, w_lat): the seed's noise field under the tiles; origins / factor is the latent
// place.
YONOS_EXPORT int yonos_noise(uint64_t seed, const int64_t* origins, void* out, int count, int channels,
                             int factor, int h_lat, int w_lat, int half, void* stream);

// flags (count,) int32 = 1 where one of a tile's `items` numbers is NaN or infinite, else 0.
YONOS_EXPORT int yonos_check(const void* tiles, int32_t* flags, int count, int64_t items, int half,
                             void* stream);

// canvas float32 (canvas_h_px, canvas_w_px, 3) += weights_y weights_x tile, tiles (count, 3, tile_h_px,
// tile_w_px) in index order. rows and columns (count,) int64 place the tiles on the canvas; what lies outside
// is dropped. Where a weight is 0 the tile is not read. skip (count,) int32 or null: tiles with a flag other
// than 0 are left out.
YONOS_EXPORT int yonos_blend(float* canvas, const void* tiles, const int64_t* rows, const int64_t* columns,
                             const float* weights_y, const float* weights_x, const int32_t* skip, int count,
                             int tile_h_px, int tile_w_px, int canvas_h_px, int canvas_w_px, int half,
                             void* stream);

// out[i] of the kind = (acc[i] + delta[i] + 1) / 2 * white, clamped, rounded half to even; delta may be null.
YONOS_EXPORT int yonos_finalize(const float* acc, const float* delta, void* out, int kind, int64_t values,
                                void* stream);
