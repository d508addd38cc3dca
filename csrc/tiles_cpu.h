// Tile kernels on host memory: geometry and threads; the rows come from tiles_rows.h. No function checks its
// arguments (bindings.cpp does), none keeps state, and none depends on the number of threads.
#pragma once

#include <cstddef>
#include <cstdint>

#include "tiles_rows.h"

namespace yonos {

// (H, W, 3) picture in host memory; steps are in elements, never owned.
struct ImageView {
    const void* data;
    Kind kind;
    int height, width;
    std::ptrdiff_t row_step, pixel_step, channel_step;
};

// Name of the instruction set chosen for this machine.
const char* variant();

// out (count, 3, tile_h, tile_w).
void gather(const ImageView& image, const std::int64_t* ys, const std::int64_t* xs, int count, int tile_h,
            int tile_w, int scale, int threads, float* out);

// out (count, 3, tile_h / scale, tile_w / scale); ys, xs, tile_h and tile_w are multiples of scale.
void gather_lr(const ImageView& image, const std::int64_t* ys, const std::int64_t* xs, int count, int tile_h,
               int tile_w, int scale, int threads, float* out);

// out (y1 - y0, scale * width, 3).
void upscale_bicubic(const ImageView& image, int y0, int y1, int scale, int threads, float* out);

// acc (rows, width, 3) += tiles (count, 3, tile_h, tile_w); weighted parts of the tiles lie inside acc.
void blend(float* acc, int rows, int width, const float* tiles, int count, int tile_h, int tile_w,
           const std::int64_t* ys, const std::int64_t* xs, const float* wy, const float* wx, int threads);

// First and one-past-last index with a weight other than 0; {0, 0} when there is none.
struct Range {
    int begin, end;
};
Range weighted_range(const float* weight, int n);

// out (rows, width, 3); delta may be null.
void finalize(const float* acc, const float* delta, Kind kind, int rows, int width, int threads, void* out);

// out (count, channels, h, w).
void noise_tiles(std::uint64_t seed, const std::int64_t* ys, const std::int64_t* xs, int count, int channels,
                 int h, int w, int threads, float* out);

// out (ceil(height / kBlock), ceil(width / kBlock), 3): means of the cells of rows (height, width, 3).
void block_means(const float* rows, int height, int width, int threads, float* out);

// rows (height, width, 3) += grid, interpolated: upper[i], lower[i] and weight[i] name the two grid rows of
// row i and the lower one's share. grid (grid_h, ceil(width / kBlock), 3).
void add_grid(float* rows, int height, int width, const float* grid, const std::int64_t* upper,
              const std::int64_t* lower, const float* weight, int threads);

}  // namespace yonos
