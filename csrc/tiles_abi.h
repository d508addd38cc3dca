// C ABI of the tile kernels on a device: libyonos_cuda.so (tiles_driver.cpp), loaded with ctypes by
// yonos_trt. The library that emulates the grid on the host (tiles_emulated.cpp) has the same functions on
// host memory.
//
// All pointers are device addresses. Every function queues work on `stream` (a CUstream) of the current
// context and returns at once: it allocates nothing, synchronises nothing, and may be captured into a graph.
// The result is a CUresult: 0, 1 (CUDA_ERROR_INVALID_VALUE) for sizes out of range, 3
// (CUDA_ERROR_NOT_INITIALIZED) before yonos_open, or what the launch gave.
//
//   half    0: tiles are float32, 1: float16
//   kind    0: uint8, 1: uint16, 2: float32 in [0, 1]
//   origins count ys followed by count xs, int64, canvas px
#pragma once

#include <stdint.h>

#define YONOS_EXPORT extern "C" __attribute__((visibility("default")))

// Once, before anything else: open the driver's library by name and load the kernels from `code`: PTX text
// that ends in 0, a cubin or a fatbin. A CUresult; what the compiler in the driver says of PTX goes to log
// (log_bytes).
YONOS_EXPORT int yonos_open(const char* driver, const void* code, char* log, int log_bytes);

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
// than 0 are left out. Only the canvas columns [first_px, first_px + span_px) are worked on.
YONOS_EXPORT int yonos_blend(float* canvas, const void* tiles, const int64_t* rows, const int64_t* columns,
                             const float* weights_y, const float* weights_x, const int32_t* skip, int count,
                             int tile_h_px, int tile_w_px, int canvas_h_px, int canvas_w_px, int first_px,
                             int span_px, int half, void* stream);

// The colour fix's coarse grid has a cell of 8 x 8 canvas px; grid row g of a buffer lies at row g % ring.
//
// out (ring, columns, 3), grid rows [first, last): mean of the bicubic picture minus mean of the canvas.
// canvas points to canvas row 8 * first; rows are canvas_w_px wide, of which width_px count. base_y (grid
// rows,) and weight_y (grid rows, taps_y) are the image rows under a cell, base_x and weight_x the columns.
YONOS_EXPORT int yonos_color_cells(const float* canvas, int canvas_w_px, const void* image, int kind,
                                   int height, int width, int64_t pitch_bytes, const int64_t* base_y,
                                   const float* weight_y, int taps_y, const int64_t* base_x,
                                   const float* weight_x, int taps_x, float* out, int ring, int first,
                                   int last, int height_px, int width_px, void* stream);

// out = source blurred along x or y, grid rows [first, last); the outermost of `rows` and `columns` continue.
YONOS_EXPORT int yonos_color_blur(const float* source, float* out, int along_y, int ring, int rows,
                                  int columns, int first, int last, void* stream);

// out float64 (cells, 6), row by row: sums and sums of squares over each cell of rows (height_px, width_px,
// 3).
YONOS_EXPORT int yonos_moments(const float* rows, double* out, int height_px, int width_px, void* stream);

// The same over the bicubic enlargement of the image, in [-1, 1].
YONOS_EXPORT int yonos_bicubic_moments(const void* image, int kind, int height, int width,
                                       int64_t pitch_bytes, double* out, int scale, void* stream);

// out (ceil(count / 64), 6) = sums of 64 neighbours of parts (count, 6).
YONOS_EXPORT int yonos_fold(const double* parts, double* out, int64_t count, void* stream);

// out: three gains and three offsets that give a picture with the sums `ours` (6,) over count px the mean and
// deviation of `wanted`.
YONOS_EXPORT int yonos_affine(const double* wanted, const double* ours, int64_t count, float* out,
                              void* stream);

// out (rows, width_px, 3) of the kind = (fixed + 1) / 2 * white, clamped, rounded half to even, from canvas
// rows of acc_w_px, the first of which is canvas row y0_px. fixed is acc plus the lines between the grid's
// cells, or acc * gain + offset, or (grid and affine both null) acc itself.
YONOS_EXPORT int yonos_finish(const float* acc, int acc_w_px, void* out, int kind, int rows, int width_px,
                              int y0_px, const float* grid, int grid_rows, int ring, const float* affine,
                              void* stream);
