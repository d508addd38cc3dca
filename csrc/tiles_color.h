// Finished canvas rows on the grid: colour fix, clamp, round, pack. As tiles_grid.h, bodies share nothing.
// yonos_trt/tiles/color_cells.py and kernels.py (finalize) define what is correct.
//
//   wavelet   cells     one thread per 8 x 8 px cell: bicubic mean - our mean     \ grid rows in a ring:
//             blur      one thread per number of a grid row, along x, then y       > row g lies at g % ring
//             finish    reads the grid on straight lines between cell centres     /
//   adain     moments   one thread per cell: sums and squares, float64
//             fold      one thread per number: 64 partial sums in a row
//             affine    three threads: gain and offset per channel
//             finish    applies them
//
//   finish    | run of 16 canvas pixels | 192 bytes of canvas, 48, 96 or 192 bytes of picture
#pragma once

#include "tiles_grid.h"

namespace yonos::grid {

constexpr int kCell = 8;
constexpr int kReach = 4;

YONOS_HD int smaller(int a, int b) { return a < b ? a : b; }
YONOS_HD int cells_of(int px) { return (px + kCell - 1) / kCell; }

// --- cells ---------------------------------------------------------------------------------------------

struct ColorCellsArgs {
    const float* canvas;  // row first * kCell of the canvas
    int canvas_w;
    const void* image;
    int height, width;  // of the image
    std::int64_t pitch_bytes;
    const std::int64_t* base_y;  // (grid rows,) first input row under a cell
    const float* weight_y;       // (grid rows, taps_y)
    int taps_y;
    const std::int64_t* base_x;  // (columns,)
    const float* weight_x;       // (columns, taps_x)
    int taps_x;
    float* out;  // (ring, columns, 3)
    int ring, first, last, height_px, width_px;
    float gain;
};

inline Geometry color_cells_geometry(const ColorCellsArgs& a) {
    return geometry(cells_of(a.width_px), a.last - a.first, 1);
}

// Sums of the cell's columns: rows are added first.
YONOS_HD void cell_columns(const float* place, std::int64_t row_step, int tall, int wide,
                           float (&sums)[3 * kCell]) {
    if (wide == kCell && aligned(place) && row_step % 4 == 0) {
        for (int y = 0; y < tall; ++y) {
            YONOS_UNROLL
            for (int i = 0; i < 3 * kCell; i += 4) {
                const Pack<float> four = load_pack(place + y * row_step + i);
                YONOS_UNROLL
                for (int k = 0; k < 4; ++k) sums[i + k] = y == 0 ? four.item[k] : sums[i + k] + four.item[k];
            }
        }
    } else {
        for (int y = 0; y < tall; ++y) {
            YONOS_UNROLL
            for (int i = 0; i < 3 * kCell; ++i) {
                const float value = i < 3 * wide ? place[y * row_step + i] : 0.0f;
                sums[i] = y == 0 ? value : sums[i] + value;
            }
        }
    }
}

template <class In>
YONOS_HD void color_cells_thread(const ColorCellsArgs& a, unsigned run, unsigned row, unsigned) {
    const int columns = cells_of(a.width_px);
    const int gx = static_cast<int>(run), g = a.first + static_cast<int>(row);
    if (gx >= columns || g >= a.last) return;
    const int tall = smaller(kCell, a.height_px - g * kCell), wide = smaller(kCell, a.width_px - gx * kCell);
    const std::int64_t row_step = 3 * static_cast<std::int64_t>(a.canvas_w);
    float sums[3 * kCell];
    cell_columns(a.canvas + (g - a.first) * kCell * row_step + 3 * kCell * gx, row_step, tall, wide, sums);
    float wanted[3] = {0.0f, 0.0f, 0.0f};
    for (int tx = 0; tx < a.taps_x; ++tx) {
        const int x = smaller(static_cast<int>(a.base_x[gx]) + tx, a.width - 1);
        float column[3] = {0.0f, 0.0f, 0.0f};
        for (int ty = 0; ty < a.taps_y; ++ty) {
            const int y = smaller(static_cast<int>(a.base_y[g]) + ty, a.height - 1);
            const float weight = a.weight_y[static_cast<std::int64_t>(g) * a.taps_y + ty];
            const In* p = pixel<In>(a, y, x);
            YONOS_UNROLL
            for (int c = 0; c < 3; ++c) column[c] = column[c] + weight * static_cast<float>(p[c]);
        }
        const float weight = a.weight_x[static_cast<std::int64_t>(gx) * a.taps_x + tx];
        YONOS_UNROLL
        for (int c = 0; c < 3; ++c) wanted[c] = wanted[c] + weight * column[c];
    }
    const float share = 1.0f / static_cast<float>(tall * wide);
    float* out = a.out + (static_cast<std::int64_t>(g % a.ring) * columns + gx) * 3;
    YONOS_UNROLL
    for (int c = 0; c < 3; ++c) {
        float total = sums[c];
        YONOS_UNROLL
        for (int x = 1; x < kCell; ++x) total = total + sums[3 * x + c];
        out[c] = normalise(wanted[c], a.gain) - total * share;
    }
}

// --- blur ----------------------------------------------------------------------------------------------

struct ColorBlurArgs {
    const float* source;  // (ring, columns, 3)
    float* out;           // (ring, columns, 3)
    int ring, rows, columns, first, last;
};

inline Geometry color_blur_geometry(const ColorBlurArgs& a) {
    return geometry(3 * static_cast<std::int64_t>(a.columns), a.last - a.first, 1);
}

struct AlongX {};
struct AlongY {};

YONOS_HD std::int64_t blur_source(AlongX, const ColorBlurArgs& a, int g, int i, int k) {
    const int x = clamp_index(i / 3 + k - kReach, a.columns);
    return (static_cast<std::int64_t>(g % a.ring) * a.columns + x) * 3 + i % 3;
}

YONOS_HD std::int64_t blur_source(AlongY, const ColorBlurArgs& a, int g, int i, int k) {
    return static_cast<std::int64_t>(clamp_index(g + k - kReach, a.rows) % a.ring) * a.columns * 3 + i;
}

// Binomial 1 4 6 4 1 twice: 1 8 28 56 70 56 28 8 1.
template <class Axis>
YONOS_HD void color_blur_thread(const ColorBlurArgs& a, unsigned run, unsigned row, unsigned) {
    const int i = static_cast<int>(run), g = a.first + static_cast<int>(row);
    if (i >= 3 * a.columns || g >= a.last) return;
    constexpr float share[2 * kReach + 1] = {1 / 256.0f,  8 / 256.0f,  28 / 256.0f, 56 / 256.0f, 70 / 256.0f,
                                             56 / 256.0f, 28 / 256.0f, 8 / 256.0f,  1 / 256.0f};
    float total = 0.0f;
    YONOS_UNROLL
    for (int k = 0; k <= 2 * kReach; ++k) {
        total = total + share[k] * a.source[blur_source(Axis{}, a, g, i, k)];
    }
    a.out[static_cast<std::int64_t>(g % a.ring) * a.columns * 3 + i] = total;
}

// --- moments -------------------------------------------------------------------------------------------

constexpr int kMoments = 6;  // three sums, three sums of squares

struct Moments {
    double item[kMoments];
};

YONOS_HD void add_to(Moments& sum, const Moments& more, bool first) {
    YONOS_UNROLL
    for (int k = 0; k < kMoments; ++k) sum.item[k] = first ? more.item[k] : sum.item[k] + more.item[k];
}

YONOS_HD Moments moments_of(const float (&value)[3]) {
    Moments one;
    YONOS_UNROLL
    for (int c = 0; c < 3; ++c) {
        const double v = static_cast<double>(value[c]);
        one.item[c] = v;
        one.item[3 + c] = v * v;
    }
    return one;
}

// Columns first summed on their own, then added from left to right, as block_means does.
template <class Value>
YONOS_HD void store_moments(double* out, int width_px, int gy, int gx, int tall, int wide, Value value) {
    Moments total = {};
    for (int x = 0; x < wide; ++x) {
        Moments column = {};
        for (int y = 0; y < tall; ++y) {
            float three[3];
            value(gy * kCell + y, gx * kCell + x, three);
            add_to(column, moments_of(three), y == 0);
        }
        add_to(total, column, x == 0);
    }
    double* place = out + (static_cast<std::int64_t>(gy) * cells_of(width_px) + gx) * kMoments;
    YONOS_UNROLL
    for (int k = 0; k < kMoments; ++k) place[k] = total.item[k];
}

struct MomentsArgs {
    const float* rows;  // (height_px, width_px, 3)
    double* out;        // (cells, 6)
    int height_px, width_px;
};

inline Geometry moments_geometry(const MomentsArgs& a) {
    return geometry(cells_of(a.width_px), cells_of(a.height_px), 1);
}

template <class...>
YONOS_HD void moments_thread(const MomentsArgs& a, unsigned run, unsigned row, unsigned) {
    const int gx = static_cast<int>(run), gy = static_cast<int>(row);
    const int wide = smaller(kCell, a.width_px - gx * kCell), tall = smaller(kCell, a.height_px - gy * kCell);
    if (wide < 1 || tall < 1) return;
    const auto value = [&](int y, int x, float (&three)[3]) {
        const float* p = a.rows + (static_cast<std::int64_t>(y) * a.width_px + x) * 3;
        YONOS_UNROLL
        for (int c = 0; c < 3; ++c) three[c] = p[c];
    };
    store_moments(a.out, a.width_px, gy, gx, tall, wide, value);
}

struct BicubicMomentsArgs {
    const void* image;
    int height, width;
    std::int64_t pitch_bytes;
    double* out;  // (cells of the enlargement, 6)
    int scale;
    float gain;
};

inline Geometry bicubic_moments_geometry(const BicubicMomentsArgs& a) {
    return geometry(cells_of(a.width * a.scale), cells_of(a.height * a.scale), 1);
}

template <class In>
YONOS_HD void bicubic_moments_thread(const BicubicMomentsArgs& a, unsigned run, unsigned row, unsigned) {
    const int gx = static_cast<int>(run), gy = static_cast<int>(row);
    const int width_px = a.width * a.scale;
    const int wide = smaller(kCell, width_px - gx * kCell);
    const int tall = smaller(kCell, a.height * a.scale - gy * kCell);
    if (wide < 1 || tall < 1) return;
    const auto value = [&](int y, int x, float (&three)[3]) {
        const Taps rows = bicubic_taps(y, a.height, a.scale), columns = bicubic_taps(x, a.width, a.scale);
        float sums[4][3];
        YONOS_UNROLL
        for (int k = 0; k < 4; ++k) column_sums<In>(a, rows, columns.index[k], sums[k]);
        YONOS_UNROLL
        for (int c = 0; c < 3; ++c) {
            three[c] = normalise(((columns.weight[0] * sums[0][c] + columns.weight[1] * sums[1][c]) +
                                  columns.weight[2] * sums[2][c]) +
                                     columns.weight[3] * sums[3][c],
                                 a.gain);
        }
    };
    store_moments(a.out, width_px, gy, gx, tall, wide, value);
}

// --- fold, affine --------------------------------------------------------------------------------------

constexpr int kFold = 64;

struct FoldArgs {
    const double* parts;  // (count, 6)
    double* out;          // (ceil(count / kFold), 6)
    std::int64_t count;
};

inline Geometry fold_geometry(const FoldArgs& a) {
    return {{ceil_div(kMoments * static_cast<std::int64_t>(ceil_div(a.count, kFold)), 128), 1, 1},
            {128, 1, 1}};
}

template <class...>
YONOS_HD void fold_thread(const FoldArgs& a, unsigned run, unsigned, unsigned) {
    const std::int64_t first = static_cast<std::int64_t>(run / kMoments) * kFold;
    const unsigned k = run % kMoments;
    if (first >= a.count) return;
    const std::int64_t last = first + kFold < a.count ? first + kFold : a.count;
    double total = a.parts[first * kMoments + k];
    for (std::int64_t i = first + 1; i < last; ++i) total = total + a.parts[i * kMoments + k];
    a.out[run] = total;
}

struct AffineArgs {
    const double* wanted;  // (6,)
    const double* ours;    // (6,)
    std::int64_t count;    // pixels
    float* out;            // three gains, three offsets
};

inline Geometry affine_geometry(const AffineArgs&) { return {{1, 1, 1}, {32, 1, 1}}; }

YONOS_HD double deviation(const double* moments, unsigned c, double count, double mean) {
    const double variance = moments[3 + c] / count - mean * mean;
    const double positive = variance > 0.0 ? variance : 0.0;
#if defined(__CUDA_ARCH__)
    return __dsqrt_rn(positive);
#else
    return __builtin_sqrt(positive);
#endif
}

template <class...>
YONOS_HD void affine_thread(const AffineArgs& a, unsigned c, unsigned, unsigned) {
    if (c >= 3) return;
    const double count = static_cast<double>(a.count);
    const double mean = a.ours[c] / count, wanted_mean = a.wanted[c] / count;
    const double spread = deviation(a.ours, c, count, mean);
    const double gain = spread > 0.0 ? deviation(a.wanted, c, count, wanted_mean) / spread : 1.0;
    a.out[c] = static_cast<float>(gain);
    a.out[3 + c] = static_cast<float>(wanted_mean - mean * gain);
}

// --- finish --------------------------------------------------------------------------------------------

struct FinishArgs {
    const float* acc;  // rows of acc_w px
    int acc_w;
    void* out;  // (rows, width, 3)
    int rows, width;
    int y0;             // canvas row of the first one
    const float* grid;  // (ring, columns, 3)
    int grid_rows, ring;
    const float* affine;
    float white;
};

constexpr int kFinishRun = 16;  // pixels: two cells

inline Geometry finish_geometry(const FinishArgs& a) {
    return geometry(ceil_div(a.width, kFinishRun), a.rows, 1);
}

YONOS_HD void store_value(std::uint8_t* place, float value) {
    *place = static_cast<std::uint8_t>(static_cast<std::int32_t>(round_half_even(value)));
}
YONOS_HD void store_value(std::uint16_t* place, float value) {
    *place = static_cast<std::uint16_t>(static_cast<std::int32_t>(round_half_even(value)));
}
YONOS_HD void store_value(float* place, float value) { *place = value; }

struct NoFix {
    YONOS_HD NoFix(const FinishArgs&, int, int) {}
    YONOS_HD float operator()(float value, int, int) const { return value; }
};

struct Adain {
    float gain[3], offset[3];
    YONOS_HD Adain(const FinishArgs& a, int, int) {
        YONOS_UNROLL
        for (int c = 0; c < 3; ++c) {
            gain[c] = a.affine[c];
            offset[c] = a.affine[3 + c];
        }
    }
    YONOS_HD float operator()(float value, int, int c) const { return value * gain[c] + offset[c]; }
};

// The grid's values stand at the cells' centres. A run covers two cells, so four centres surround it:
//
//   cell    2 run - 1 |    2 run    |  2 run + 1  | 2 run + 2
//   centre      0     |      1      |      2      |     3
//   pixel             | 0 1 2 3|4 ..     .. 11|12 13 14 15 |
struct Wavelet {
    float line[4][3];
    YONOS_HD Wavelet(const FinishArgs& a, int run, int row) {
        const int columns = cells_of(a.width);
        const int numerator = 2 * (a.y0 + row) + 1 - kCell;
        const int base = numerator < 0 ? -1 : numerator / (2 * kCell);
        const float share =
            static_cast<float>(numerator - base * (2 * kCell)) / static_cast<float>(2 * kCell);
        const std::int64_t row_step = static_cast<std::int64_t>(columns) * 3;
        const float* upper = a.grid + clamp_index(base, a.grid_rows) % a.ring * row_step;
        const float* lower = a.grid + clamp_index(base + 1, a.grid_rows) % a.ring * row_step;
        YONOS_UNROLL
        for (int j = 0; j < 4; ++j) {
            const int cell = 3 * clamp_index(2 * run - 1 + j, columns);
            YONOS_UNROLL
            for (int c = 0; c < 3; ++c) {
                line[j][c] = upper[cell + c] + (lower[cell + c] - upper[cell + c]) * share;
            }
        }
    }
    YONOS_HD float operator()(float value, int i, int c) const {
        const int j = i < kCell / 2 ? 0 : (i < kCell + kCell / 2 ? 1 : 2);
        const float share =
            static_cast<float>(2 * i + 1 + kCell - 2 * kCell * j) / static_cast<float>(2 * kCell);
        return value + (line[j][c] + (line[j + 1][c] - line[j][c]) * share);
    }
};

template <class Out, class Fix>
YONOS_HD void finish_thread(const FinishArgs& a, unsigned run, unsigned row, unsigned) {
    const int x0 = static_cast<int>(run) * kFinishRun, y = static_cast<int>(row);
    if (x0 >= a.width || y >= a.rows) return;
    const int values = 3 * smaller(kFinishRun, a.width - x0);
    const float* acc = a.acc + (static_cast<std::int64_t>(y) * a.acc_w + x0) * 3;
    Out* out = static_cast<Out*>(a.out) + (static_cast<std::int64_t>(y) * a.width + x0) * 3;
    const bool whole = values == 3 * kFinishRun && aligned(acc);
    const Fix fix(a, static_cast<int>(run), y);
    YONOS_UNROLL
    for (int first = 0; first < 3 * kFinishRun; first += kRun<Out>) {
        Pack<Out> packed;
        YONOS_UNROLL
        for (int j = 0; j < kRun<Out>; j += 4) {
            Pack<float> four;
            if (whole) {
                four = load_pack(acc + first + j);
            } else {
                YONOS_UNROLL
                for (int k = 0; k < 4; ++k) four.item[k] = first + j + k < values ? acc[first + j + k] : 0.0f;
            }
            YONOS_UNROLL
            for (int k = 0; k < 4; ++k) {
                const int i = first + j + k;
                store_value(&packed.item[j + k], denormalise(fix(four.item[k], i / 3, i % 3), a.white));
            }
        }
        store_run(out + first, packed, smaller(values - first, kRun<Out>));
    }
}

}  // namespace yonos::grid
