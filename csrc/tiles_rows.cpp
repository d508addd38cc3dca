// Row kernels. CMake compiles this file once per instruction set with YONOS_VARIANT set to its name. Nothing
// here may come from another library's headers: an inline function compiled for AVX-512 could win at link
// time.
#include "tiles_rows.h"

#include "tile_math.h"

#define YONOS_JOIN_(a, b) a##b
#define YONOS_JOIN(a, b) YONOS_JOIN_(a, b)
#define YONOS_TEXT_(a) #a
#define YONOS_TEXT(a) YONOS_TEXT_(a)

namespace yonos {
namespace {

typedef float float4 __attribute__((vector_size(16)));
typedef float float8 __attribute__((vector_size(32)));

template <class V>
YONOS_HD V load(const float* p) {
    V v;
    __builtin_memcpy(&v, p, sizeof v);
    return v;
}

template <class V>
YONOS_HD void store(float* p, V v) {
    __builtin_memcpy(p, &v, sizeof v);
}

// --- gather: vertical pass
// -------------------------------------------------------------------------------------------

template <class T>
void vertical_of(float* __restrict__ dst, std::ptrdiff_t plane, const void* const rows[4],
                 std::ptrdiff_t pixel_step, std::ptrdiff_t channel_step, const float weight[4], int n) {
    const float w0 = weight[0], w1 = weight[1], w2 = weight[2], w3 = weight[3];
    for (int c = 0; c < 3; ++c) {
        const T* r0 = static_cast<const T*>(rows[0]) + c * channel_step;
        const T* r1 = static_cast<const T*>(rows[1]) + c * channel_step;
        const T* r2 = static_cast<const T*>(rows[2]) + c * channel_step;
        const T* r3 = static_cast<const T*>(rows[3]) + c * channel_step;
        float* __restrict__ d = dst + c * plane;
        const auto sum = [&](std::ptrdiff_t i) __attribute__((always_inline)) {
            return ((w0 * static_cast<float>(r0[i]) + w1 * static_cast<float>(r1[i])) +
                    w2 * static_cast<float>(r2[i])) +
                   w3 * static_cast<float>(r3[i]);
        };
        if (pixel_step == 3) {
            for (int x = 0; x < n; ++x) d[x] = sum(3 * static_cast<std::ptrdiff_t>(x));
        } else {
            for (int x = 0; x < n; ++x) d[x] = sum(x * pixel_step);
        }
    }
}

void vertical(float* dst, std::ptrdiff_t plane, const void* const rows[4], Kind kind,
              std::ptrdiff_t pixel_step, std::ptrdiff_t channel_step, const float weight[4], int n) {
    switch (kind) {
        case Kind::u8:
            return vertical_of<std::uint8_t>(dst, plane, rows, pixel_step, channel_step, weight, n);
        case Kind::u16:
            return vertical_of<std::uint16_t>(dst, plane, rows, pixel_step, channel_step, weight, n);
        case Kind::f32:
            return vertical_of<float>(dst, plane, rows, pixel_step, channel_step, weight, n);
    }
}

// --- gather: horizontal pass
// -----------------------------------------------------------------------------------------
//
//   src      a   b   c   d   e        cell x = c, taps j = -2 .. 2
//   dst          [p0 p1 .. ]          scale outputs per cell; phases left of the cell's centre do not use e,
//                                     the others not a: their table entry is 0

template <class V>
void horizontal_vector(float* __restrict__ dst, const float* __restrict__ src, int n, const float* table,
                       float gain) {
    constexpr int lanes = static_cast<int>(sizeof(V) / sizeof(float));
    const V t0 = load<V>(table), t1 = load<V>(table + lanes), t2 = load<V>(table + 2 * lanes),
            t3 = load<V>(table + 3 * lanes), t4 = load<V>(table + 4 * lanes);
    for (int x = 0; x < n; ++x) {
        const float* s = src + x;
        const V value = (((s[-2] * t0 + s[-1] * t1) + s[0] * t2) + s[1] * t3) + s[2] * t4;
        store(dst + static_cast<std::ptrdiff_t>(x) * lanes, value * gain - 1.0f);
    }
}

// scale 2: one vector holds two cells, so that the lanes are full.
void horizontal_pairs(float* __restrict__ dst, const float* __restrict__ src, int n, const float* table,
                      float gain) {
    float4 t[kCellTaps];
    for (int j = 0; j < kCellTaps; ++j)
        t[j] = float4{table[2 * j], table[2 * j + 1], table[2 * j], table[2 * j + 1]};
    int x = 0;
    for (; x + 2 <= n; x += 2) {
        float4 tap[kCellTaps];
        for (int j = 0; j < kCellTaps; ++j) {
            const float4 two = load<float4>(src + x + j - 2);
            tap[j] = __builtin_shufflevector(two, two, 0, 0, 1, 1);
        }
        const float4 value =
            (((tap[0] * t[0] + tap[1] * t[1]) + tap[2] * t[2]) + tap[3] * t[3]) + tap[4] * t[4];
        store(dst + 2 * static_cast<std::ptrdiff_t>(x), value * gain - 1.0f);
    }
    for (; x < n; ++x) {
        for (int p = 0; p < 2; ++p) {
            float value = src[x - 2] * table[p];
            for (int j = 1; j < kCellTaps; ++j) value = value + src[x + j - 2] * table[2 * j + p];
            dst[2 * static_cast<std::ptrdiff_t>(x) + p] = normalise(value, gain);
        }
    }
}

void horizontal_any(float* __restrict__ dst, const float* __restrict__ src, int n, int scale,
                    const float* table, float gain) {
    for (int p = 0; p < scale; ++p) {
        float t[kCellTaps];
        for (int j = 0; j < kCellTaps; ++j) t[j] = table[j * scale + p];
        for (int x = 0; x < n; ++x) {
            const float* s = src + x;
            const float value = (((s[-2] * t[0] + s[-1] * t[1]) + s[0] * t[2]) + s[1] * t[3]) + s[2] * t[4];
            dst[static_cast<std::ptrdiff_t>(x) * scale + p] = normalise(value, gain);
        }
    }
}

void horizontal(float* dst, const float* src, int n, int scale, const float* table, float gain) {
    switch (scale) {
        case 2:
            return horizontal_pairs(dst, src, n, table, gain);
        case 4:
            return horizontal_vector<float4>(dst, src, n, table, gain);
        case 8:
            return horizontal_vector<float8>(dst, src, n, table, gain);
        default:
            return horizontal_any(dst, src, n, scale, table, gain);
    }
}

// --- gather on the LR grid
// -------------------------------------------------------------------------------------------

template <class T>
void convert_of(float* __restrict__ dst, const T* __restrict__ src, std::ptrdiff_t pixel_step, int n,
                float gain) {
    if (pixel_step == 3) {
        for (int x = 0; x < n; ++x) {
            dst[x] = normalise(static_cast<float>(src[3 * static_cast<std::ptrdiff_t>(x)]), gain);
        }
    } else {
        for (int x = 0; x < n; ++x) dst[x] = normalise(static_cast<float>(src[x * pixel_step]), gain);
    }
}

void convert(float* dst, const void* src, Kind kind, std::ptrdiff_t pixel_step, int n, float gain) {
    switch (kind) {
        case Kind::u8:
            return convert_of(dst, static_cast<const std::uint8_t*>(src), pixel_step, n, gain);
        case Kind::u16:
            return convert_of(dst, static_cast<const std::uint16_t*>(src), pixel_step, n, gain);
        case Kind::f32:
            return convert_of(dst, static_cast<const float*>(src), pixel_step, n, gain);
    }
}

void interleave(float* __restrict__ dst, const float* __restrict__ p0, const float* __restrict__ p1,
                const float* __restrict__ p2, int n) {
    for (int x = 0; x < n; ++x) {
        const std::ptrdiff_t i = 3 * static_cast<std::ptrdiff_t>(x);
        dst[i] = p0[x];
        dst[i + 1] = p1[x];
        dst[i + 2] = p2[x];
    }
}

// --- blend, finalize
// -------------------------------------------------------------------------------------------------

void blend(float* __restrict__ acc, const float* __restrict__ p0, const float* __restrict__ p1,
           const float* __restrict__ p2, float wy, const float* __restrict__ wx, int n) {
    for (int x = 0; x < n; ++x) {
        const std::ptrdiff_t i = 3 * static_cast<std::ptrdiff_t>(x);
        const float w = wy * wx[x];
        acc[i] += w * p0[x];
        acc[i + 1] += w * p1[x];
        acc[i + 2] += w * p2[x];
    }
}

template <class T>
void finalize_integer(T* __restrict__ out, const float* __restrict__ acc, const float* __restrict__ delta,
                      float white, int n) {
    if (delta != nullptr) {
        for (int i = 0; i < n; ++i) {
            const float value = round_half_even(denormalise(acc[i] + delta[i], white));
            out[i] = static_cast<T>(static_cast<std::int32_t>(value));
        }
    } else {
        for (int i = 0; i < n; ++i) {
            out[i] = static_cast<T>(static_cast<std::int32_t>(round_half_even(denormalise(acc[i], white))));
        }
    }
}

void finalize(void* out, const float* acc, const float* delta, Kind kind, int n) {
    switch (kind) {
        case Kind::u8:
            return finalize_integer(static_cast<std::uint8_t*>(out), acc, delta, 255.0f, n);
        case Kind::u16:
            return finalize_integer(static_cast<std::uint16_t*>(out), acc, delta, 65535.0f, n);
        case Kind::f32: {
            float* __restrict__ f = static_cast<float*>(out);
            for (int i = 0; i < n; ++i)
                f[i] = denormalise(delta != nullptr ? acc[i] + delta[i] : acc[i], 1.0f);
        }
    }
}

// --- noise
// -----------------------------------------------------------------------------------------------------------

void noise(float* const planes[4], std::uint32_t y, std::uint32_t x0, std::uint32_t group, std::uint32_t k0,
           std::uint32_t k1, int n) {
    constexpr int chunk = 64;
    const auto root = [](float value) __attribute__((always_inline)) { return __builtin_sqrtf(value); };
    for (int first = 0; first < n; first += chunk) {
        std::uint32_t words[4][chunk];
        float normals[4][chunk];
        for (int i = 0; i < chunk; ++i) {
            const Words word = philox(x0 + static_cast<std::uint32_t>(first + i), y, group, 0, k0, k1);
            for (int k = 0; k < 4; ++k) words[k][i] = word.w[k];
        }
        for (int pair = 0; pair < 4; pair += 2) {
            for (int i = 0; i < chunk; ++i) {
                box_muller(words[pair][i], words[pair + 1][i], root, &normals[pair][i],
                           &normals[pair + 1][i]);
            }
        }
        const int count = n - first < chunk ? n - first : chunk;
        for (int k = 0; k < 4; ++k) {
            if (planes[k] == nullptr) continue;
            __builtin_memcpy(planes[k] + first, normals[k], sizeof(float) * static_cast<std::size_t>(count));
        }
    }
}

// --- colour
// ----------------------------------------------------------------------------------------------------------

void accumulate(float* __restrict__ sum, const float* __restrict__ row, bool first, std::ptrdiff_t n) {
    if (first) {
        __builtin_memcpy(sum, row, sizeof(float) * static_cast<std::size_t>(n));
    } else {
        for (std::ptrdiff_t i = 0; i < n; ++i) sum[i] += row[i];
    }
}

// The grid's values stand at the cells' centres: pixels half a cell before and after a border between two
// cells are interpolated between them, those outside the outermost centres take the outermost value.
void add_between(float* __restrict__ row, const float* cells, int cell_count, int n) {
    constexpr int vectors = 3 * kBlock / 4;
    float4 t[vectors];
    for (int v = 0; v < vectors; ++v) {
        for (int i = 0; i < 4; ++i) {
            t[v][i] = static_cast<float>(2 * ((4 * v + i) / 3) + 1) / static_cast<float>(2 * kBlock);
        }
    }
    for (int g = -1; g < cell_count; ++g) {
        const float* a = cells + 3 * static_cast<std::ptrdiff_t>(g < 0 ? 0 : g);
        const float* b = cells + 3 * static_cast<std::ptrdiff_t>(g + 1 < cell_count ? g + 1 : cell_count - 1);
        const int x0 = g * kBlock + kBlock / 2;
        if (x0 >= 0 && x0 + kBlock <= n) {
            const float4 near = load<float4>(a);
            const float4 step = load<float4>(b) - near;
            const float4 pattern[3] = {__builtin_shufflevector(near, near, 0, 1, 2, 0),
                                       __builtin_shufflevector(near, near, 1, 2, 0, 1),
                                       __builtin_shufflevector(near, near, 2, 0, 1, 2)};
            const float4 slope[3] = {__builtin_shufflevector(step, step, 0, 1, 2, 0),
                                     __builtin_shufflevector(step, step, 1, 2, 0, 1),
                                     __builtin_shufflevector(step, step, 2, 0, 1, 2)};
            float* r = row + 3 * static_cast<std::ptrdiff_t>(x0);
            for (int v = 0; v < vectors; ++v) {
                store(r + 4 * v, load<float4>(r + 4 * v) + (pattern[v % 3] + slope[v % 3] * t[v]));
            }
        } else {
            for (int k = x0 < 0 ? -x0 : 0; k < kBlock && x0 + k < n; ++k) {
                for (int c = 0; c < 3; ++c) {
                    const float between = a[c] + (b[c] - a[c]) * t[(3 * k + c) / 4][(3 * k + c) % 4];
                    row[3 * static_cast<std::ptrdiff_t>(x0 + k) + c] += between;
                }
            }
        }
    }
}

}  // namespace

const RowKernels& YONOS_JOIN(rows_, YONOS_VARIANT)() {
    static constexpr RowKernels kernels = {YONOS_TEXT(YONOS_VARIANT),
                                           vertical,
                                           horizontal,
                                           convert,
                                           interleave,
                                           blend,
                                           finalize,
                                           noise,
                                           accumulate,
                                           add_between};
    return kernels;
}

}  // namespace yonos
