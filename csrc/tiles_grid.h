// The tile kernels as a grid runs them: what one thread does, and how many threads there are.
//
// tiles.cu launches these bodies on a GPU; tiles_emulated.cpp runs the same bodies over the same grid on the
// host, so that who computes what, bounds and strides are tested on any machine. Bodies share nothing: no
// shared memory, no barriers, no atomics. Each output element is written by one thread, and sums run in index
// order inside that thread.
//
// A thread handles a run of consecutive elements of one row and moves 16 bytes at a time where the addresses
// allow it:
//
//   gather, noise   run of 4 float32 or 8 float16 outputs             16 bytes of out
//   blend           run of 4 or 8 canvas pixels, 3 channels each      48 or 96 bytes of canvas, 16 per plane
//   check           run of 4 or 8 numbers                             16 bytes of a tile
//
// The colour fix and the rounding of finished rows are in tiles_color.h.
#pragma once

#include <cstddef>
#include <cstdint>

#include "tile_math.h"

namespace yonos::grid {

// --- Grid ----------------------------------------------------------------------------------------------

struct Size3 {
    unsigned x, y, z;
};

struct Geometry {
    Size3 grid, block;
};

constexpr unsigned kMaxGridYZ = 65535;

inline unsigned ceil_div(std::int64_t a, std::int64_t b) { return static_cast<unsigned>((a + b - 1) / b); }

// Threads over (runs, rows, layers); runs are adjacent in memory, so that a warp's accesses are.
inline Geometry geometry(std::int64_t runs, std::int64_t rows, std::int64_t layers) {
    const Size3 block = {32, 4, 1};
    return {{ceil_div(runs, block.x), ceil_div(rows, block.y), static_cast<unsigned>(layers)}, block};
}

inline bool fits(const Geometry& g) {
    return g.grid.x > 0 && g.grid.x < (1u << 31) && g.grid.y > 0 && g.grid.y <= kMaxGridYZ && g.grid.z > 0 &&
           g.grid.z <= kMaxGridYZ;
}

// --- 16-byte accesses ----------------------------------------------------------------------------------

template <class T>
constexpr int kRun = 16 / static_cast<int>(sizeof(T));

template <class T>
struct alignas(16) Pack {
    T item[kRun<T>];
};

template <class T>
YONOS_HD bool aligned(const T* place) {
    return reinterpret_cast<std::uintptr_t>(place) % 16 == 0;
}

template <class T>
YONOS_HD Pack<T> load_pack(const T* place) {
#if defined(__CUDA_ARCH__)
    const uint4 words = *reinterpret_cast<const uint4*>(place);
    Pack<T> pack;
    *reinterpret_cast<uint4*>(&pack) = words;
    return pack;
#else
    return *reinterpret_cast<const Pack<T>*>(place);
#endif
}

template <class T>
YONOS_HD void store_pack(T* place, const Pack<T>& pack) {
#if defined(__CUDA_ARCH__)
    *reinterpret_cast<uint4*>(place) = *reinterpret_cast<const uint4*>(&pack);
#else
    *reinterpret_cast<Pack<T>*>(place) = pack;
#endif
}

// Stores the first n items of a run.
template <class T>
YONOS_HD void store_run(T* place, const Pack<T>& pack, int n) {
    if (n == kRun<T> && aligned(place)) {
        store_pack(place, pack);
    } else {
        YONOS_UNROLL
        for (int i = 0; i < kRun<T>; ++i) {
            if (i < n) place[i] = pack.item[i];
        }
    }
}

// --- gather --------------------------------------------------------------------------------------------

struct GatherArgs {
    const void* image;
    int height, width;
    std::int64_t pitch_bytes;
    const std::int64_t* origins;  // count ys, then count xs, in canvas px
    void* out;
    int count, tile_h, tile_w;  // of out
    int scale;
    float gain;
};

template <class Out>
Geometry gather_geometry(const GatherArgs& a) {
    return geometry(ceil_div(a.tile_w, kRun<Out>), a.tile_h, a.count);
}

template <class In, class Args>
YONOS_HD const In* pixel(const Args& a, int y, int x) {
    const char* row = static_cast<const char*>(a.image) + y * a.pitch_bytes;
    return reinterpret_cast<const In*>(row) + 3 * static_cast<std::int64_t>(x);
}

template <class Out>
YONOS_HD void store_planes(const GatherArgs& a, int n, int y, int x0, const Pack<Out> (&planes)[3]) {
    const int count = a.tile_w - x0 < kRun<Out> ? a.tile_w - x0 : kRun<Out>;
    YONOS_UNROLL
    for (int c = 0; c < 3; ++c) {
        Out* row =
            static_cast<Out*>(a.out) + ((static_cast<std::int64_t>(n) * 3 + c) * a.tile_h + y) * a.tile_w;
        store_run(row + x0, planes[c], count);
    }
}

// Vertical pass at one LR column, three channels.
template <class In, class Args>
YONOS_HD void column_sums(const Args& a, const Taps& rows, int x, float (&sums)[3]) {
    const In* p[4];
    YONOS_UNROLL
    for (int k = 0; k < 4; ++k) p[k] = pixel<In>(a, rows.index[k], x);
    YONOS_UNROLL
    for (int c = 0; c < 3; ++c) {
        sums[c] =
            ((rows.weight[0] * static_cast<float>(p[0][c]) + rows.weight[1] * static_cast<float>(p[1][c])) +
             rows.weight[2] * static_cast<float>(p[2][c])) +
            rows.weight[3] * static_cast<float>(p[3][c]);
    }
}

// One run of a tile's row. The four column sums under the current output slide along with it.
template <class In, class Out>
YONOS_HD void gather_thread(const GatherArgs& a, unsigned run, unsigned row, unsigned layer) {
    const int x0 = static_cast<int>(run) * kRun<Out>, y = static_cast<int>(row), n = static_cast<int>(layer);
    if (x0 >= a.tile_w || y >= a.tile_h || n >= a.count) return;
    const int top = static_cast<int>(a.origins[n]), left = static_cast<int>(a.origins[a.count + n]);
    const Taps rows = bicubic_taps(top + y, a.height, a.scale);
    Pack<Out> planes[3];
    float sums[4][3];
    int base = 0;
    YONOS_UNROLL
    for (int i = 0; i < kRun<Out>; ++i) {
        const Taps taps = bicubic_taps(left + x0 + i, a.width, a.scale);
        if (i > 0 && taps.base == base + 1) {
            YONOS_UNROLL
            for (int c = 0; c < 3; ++c) {
                sums[0][c] = sums[1][c];
                sums[1][c] = sums[2][c];
                sums[2][c] = sums[3][c];
            }
            column_sums<In>(a, rows, taps.index[3], sums[3]);
        } else if (i == 0 || taps.base != base) {
            YONOS_UNROLL
            for (int k = 0; k < 4; ++k) column_sums<In>(a, rows, taps.index[k], sums[k]);
        }
        base = taps.base;
        YONOS_UNROLL
        for (int c = 0; c < 3; ++c) {
            const float value =
                ((taps.weight[0] * sums[0][c] + taps.weight[1] * sums[1][c]) + taps.weight[2] * sums[2][c]) +
                taps.weight[3] * sums[3][c];
            store_as(&planes[c].item[i], normalise(value, a.gain));
        }
    }
    store_planes(a, n, y, x0, planes);
}

// One run of a tile's row on the LR grid; tile_h and tile_w count LR px, origins canvas px.
template <class In, class Out>
YONOS_HD void gather_lr_thread(const GatherArgs& a, unsigned run, unsigned row, unsigned layer) {
    const int x0 = static_cast<int>(run) * kRun<Out>, y = static_cast<int>(row), n = static_cast<int>(layer);
    if (x0 >= a.tile_w || y >= a.tile_h || n >= a.count) return;
    const int top = static_cast<int>(a.origins[n]) / a.scale;
    const int left = static_cast<int>(a.origins[a.count + n]) / a.scale;
    const int source_y = reflect(top + y, a.height);
    Pack<Out> planes[3];
    YONOS_UNROLL
    for (int i = 0; i < kRun<Out>; ++i) {
        const In* p = pixel<In>(a, source_y, reflect(left + x0 + i, a.width));
        YONOS_UNROLL
        for (int c = 0; c < 3; ++c) store_as(&planes[c].item[i], normalise(static_cast<float>(p[c]), a.gain));
    }
    store_planes(a, n, y, x0, planes);
}

// --- noise ---------------------------------------------------------------------------------------------

struct NoiseArgs {
    std::uint64_t seed;
    const std::int64_t* origins;  // count ys, then count xs, in canvas px
    void* out;                    // (count, channels, h, w)
    int count, channels, factor, h, w;
};

template <class Out>
Geometry noise_geometry(const NoiseArgs& a) {
    return geometry(ceil_div(a.w, kRun<Out>), a.h,
                    static_cast<std::int64_t>(a.count) * ceil_div(a.channels, 4));
}

struct SquareRoot {
    YONOS_HD float operator()(float value) const {
#if defined(__CUDA_ARCH__)
        return __fsqrt_rn(value);
#else
        return __builtin_sqrtf(value);
#endif
    }
};

// One run of four channels of a tile's row.
template <class Out>
YONOS_HD void noise_thread(const NoiseArgs& a, unsigned run, unsigned row, unsigned layer) {
    const int groups = (a.channels + 3) / 4;
    const int x0 = static_cast<int>(run) * kRun<Out>, y = static_cast<int>(row);
    const int n = static_cast<int>(layer) / groups, group = static_cast<int>(layer) % groups;
    if (x0 >= a.w || y >= a.h || n >= a.count) return;
    const std::uint32_t top = static_cast<std::uint32_t>(a.origins[n] / a.factor);
    const std::uint32_t left = static_cast<std::uint32_t>(a.origins[a.count + n] / a.factor);
    Pack<Out> planes[4];
    YONOS_UNROLL
    for (int i = 0; i < kRun<Out>; ++i) {
        const Words words =
            philox(left + static_cast<std::uint32_t>(x0 + i), top + static_cast<std::uint32_t>(y),
                   static_cast<std::uint32_t>(group), 0, static_cast<std::uint32_t>(a.seed),
                   static_cast<std::uint32_t>(a.seed >> 32));
        YONOS_UNROLL
        for (int pair = 0; pair < 4; pair += 2) {
            float first, second;
            box_muller(words.w[pair], words.w[pair + 1], SquareRoot{}, &first, &second);
            store_as(&planes[pair].item[i], first);
            store_as(&planes[pair + 1].item[i], second);
        }
    }
    const int count = a.w - x0 < kRun<Out> ? a.w - x0 : kRun<Out>;
    YONOS_UNROLL
    for (int k = 0; k < 4; ++k) {
        const int c = 4 * group + k;
        if (c >= a.channels) break;
        Out* place =
            static_cast<Out*>(a.out) + ((static_cast<std::int64_t>(n) * a.channels + c) * a.h + y) * a.w;
        store_run(place + x0, planes[k], count);
    }
}

// --- blend ---------------------------------------------------------------------------------------------

struct BlendArgs {
    float* canvas;                // (canvas_h, canvas_w, 3)
    const void* tiles;            // (count, 3, tile_h, tile_w)
    const std::int64_t* rows;     // (count,) canvas row of each tile
    const std::int64_t* columns;  // (count,)
    const float* weights_y;       // (count, tile_h)
    const float* weights_x;       // (count, tile_w)
    const std::int32_t* skip;     // (count,) or null
    int count, tile_h, tile_w, canvas_h, canvas_w;
    int first, span;  // the canvas columns that the tiles can touch
};

template <class In>
Geometry blend_geometry(const BlendArgs& a) {
    return geometry(ceil_div(a.span, kRun<In>), a.canvas_h, 1);
}

// One run of canvas pixels: reads them once, adds every tile that covers them in index order, writes them
// once.
template <class In>
YONOS_HD void blend_thread(const BlendArgs& a, unsigned run, unsigned row, unsigned) {
    constexpr int run_px = kRun<In>;
    const int x0 = a.first + static_cast<int>(run) * run_px, y = static_cast<int>(row);
    const int end = a.first + a.span;
    if (x0 >= end || y >= a.canvas_h) return;
    const int pixels = end - x0 < run_px ? end - x0 : run_px;
    float* place = a.canvas + (static_cast<std::int64_t>(y) * a.canvas_w + x0) * 3;
    const bool whole = pixels == run_px && aligned(place);
    alignas(16) float sums[3 * run_px];
    bool touched = false;
    for (int n = 0; n < a.count; ++n) {
        if (a.skip != nullptr && a.skip[n] != 0) continue;
        const std::int64_t ty = y - a.rows[n], tx = x0 - a.columns[n];
        if (ty < 0 || ty >= a.tile_h || tx <= -run_px || tx >= a.tile_w) continue;
        const float wy = a.weights_y[static_cast<std::int64_t>(n) * a.tile_h + ty];
        if (wy == 0.0f) continue;
        if (!touched) {
            touched = true;
            if (whole) {
                YONOS_UNROLL
                for (int i = 0; i < 3 * run_px; i += 4) {
                    const Pack<float> four = load_pack(place + i);
                    YONOS_UNROLL
                    for (int k = 0; k < 4; ++k) sums[i + k] = four.item[k];
                }
            } else {
                YONOS_UNROLL
                for (int i = 0; i < 3 * run_px; ++i) sums[i] = i < 3 * pixels ? place[i] : 0.0f;
            }
        }
        const float* wx = a.weights_x + static_cast<std::int64_t>(n) * a.tile_w + tx;
        const In* plane = static_cast<const In*>(a.tiles) +
                          (static_cast<std::int64_t>(n) * 3 * a.tile_h + ty) * a.tile_w + tx;
        const std::int64_t plane_step = static_cast<std::int64_t>(a.tile_h) * a.tile_w;
        const bool inside = tx >= 0 && tx + run_px <= a.tile_w;
        float weight[run_px];
        YONOS_UNROLL
        for (int i = 0; i < run_px; ++i) {
            weight[i] = (inside || (tx + i >= 0 && tx + i < a.tile_w)) ? wx[i] : 0.0f;
        }
        YONOS_UNROLL
        for (int c = 0; c < 3; ++c) {
            const In* p = plane + c * plane_step;
            Pack<In> values;
            if (inside && aligned(p)) {
                values = load_pack(p);
            } else {
                YONOS_UNROLL
                for (int i = 0; i < run_px; ++i) {
                    if (weight[i] != 0.0f) values.item[i] = p[i];
                }
            }
            YONOS_UNROLL
            for (int i = 0; i < run_px; ++i) {
                if (weight[i] != 0.0f) {
                    sums[3 * i + c] = sums[3 * i + c] + (wy * weight[i]) * to_float(values.item[i]);
                }
            }
        }
    }
    if (!touched) return;
    if (whole) {
        YONOS_UNROLL
        for (int i = 0; i < 3 * run_px; i += 4) {
            const Pack<float> four = {{sums[i], sums[i + 1], sums[i + 2], sums[i + 3]}};
            store_pack(place + i, four);
        }
    } else {
        YONOS_UNROLL
        for (int i = 0; i < 3 * run_px; ++i) {
            if (i < 3 * pixels) place[i] = sums[i];
        }
    }
}

// --- check ---------------------------------------------------------------------------------------------

struct CheckArgs {
    const void* tiles;    // (count, items)
    std::int32_t* flags;  // (count,), 0 before
    int count;
    std::int64_t items;
};

template <class In>
Geometry check_geometry(const CheckArgs& a) {
    return {{ceil_div(ceil_div(a.items, kRun<In>), 256), static_cast<unsigned>(a.count), 1}, {256, 1, 1}};
}

YONOS_HD bool finite(float value) { return (float_to_bits(value) & 0x7F800000u) != 0x7F800000u; }
YONOS_HD bool finite(Half value) { return (value.bits & 0x7C00u) != 0x7C00u; }

// Threads that find a NaN or an infinity all write the same 1.
template <class In>
YONOS_HD void check_thread(const CheckArgs& a, unsigned run, unsigned row, unsigned) {
    const std::int64_t first = static_cast<std::int64_t>(run) * kRun<In>;
    const int n = static_cast<int>(row);
    if (first >= a.items || n >= a.count) return;
    const In* p = static_cast<const In*>(a.tiles) + n * a.items + first;
    bool good = true;
    if (first + kRun<In> <= a.items && aligned(p)) {
        const Pack<In> pack = load_pack(p);
        YONOS_UNROLL
        for (int i = 0; i < kRun<In>; ++i) good = good && finite(pack.item[i]);
    } else {
        for (int i = 0; i < kRun<In> && first + i < a.items; ++i) good = good && finite(p[i]);
    }
    if (!good) a.flags[n] = 1;
}

}  // namespace yonos::grid
