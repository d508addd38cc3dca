// One row of each kernel, compiled several times for different instruction sets (tiles_rows.cpp) and chosen
// once at run time (tiles_cpu.cpp). All variants give the same bits: no contraction, no reassociation.
#pragma once

#include <cstddef>
#include <cstdint>

namespace yonos {

enum class Kind { u8, u16, f32 };

// Buffers that horizontal() reads must have this many floats of slack behind their last element.
constexpr int kSlack = 16;
// Side of a cell of the colour grid, in canvas pixels.
constexpr int kBlock = 8;
// Taps j = -2 .. 2 around a cell, by phase.
constexpr int kCellTaps = 5;

struct RowKernels {
    const char* name;

    // dst[c * plane + x] = ((w0 r0 + w1 r1) + w2 r2) + w3 r3 at pixel x, channel c, for x in [0, n). rows[k]
    // points to the first pixel; steps are in elements.
    void (*vertical)(float* dst, std::ptrdiff_t plane, const void* const rows[4], Kind kind,
                     std::ptrdiff_t pixel_step, std::ptrdiff_t channel_step, const float weight[4], int n);

    // dst[x * scale + p] = normalise(sum_j table[j * scale + p] * src[x + j - 2]) for cells x in [0, n).
    void (*horizontal)(float* dst, const float* src, int n, int scale, const float* table, float gain);

    // dst[x] = normalise(src pixel x of one channel).
    void (*convert)(float* dst, const void* src, Kind kind, std::ptrdiff_t pixel_step, int n, float gain);

    // dst[3 x + c] = plane c at x.
    void (*interleave)(float* dst, const float* p0, const float* p1, const float* p2, int n);

    // acc[3 x + c] += (wy * wx[x]) * plane c at x.
    void (*blend)(float* acc, const float* p0, const float* p1, const float* p2, float wy, const float* wx,
                  int n);

    // out[i] = denormalise(acc[i] + delta[i]) as the kind; delta may be null.
    void (*finalize)(void* out, const float* acc, const float* delta, Kind kind, int n);

    // planes[k][x] = noise of channel 4 group + k at (y, x0 + x); planes beyond the last channel are null.
    void (*noise)(float* const planes[4], std::uint32_t y, std::uint32_t x0, std::uint32_t group,
                  std::uint32_t k0, std::uint32_t k1, int n);

    // sum[i] (+)= row[i].
    void (*accumulate)(float* sum, const float* row, bool first, std::ptrdiff_t n);

    // row[3 x + c] += the value at x of the line through the cells' centres; cells[3 g + c] covers the pixels
    // [g * kBlock, (g + 1) * kBlock). Reads kSlack floats behind the cells.
    void (*add_between)(float* row, const float* cells, int cell_count, int n);
};

const RowKernels& rows_baseline();
const RowKernels& rows_avx2();
const RowKernels& rows_avx512();

}  // namespace yonos
