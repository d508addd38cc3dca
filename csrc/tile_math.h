// The maths of the tile kernels, shared by tiles_rows.cpp (CPU) and tiles.cu (CUDA).
//
// yonos_trt/tiles/kernels.py and noise.py define what is correct. Every function here repeats their
// float32 operations in their order; both compilers are told not to contract a * b + c, so the results agree
// bit for bit.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#include <cuda_fp16.h>
#endif

#if defined(__CUDACC__)
#define YONOS_HD __host__ __device__ __forceinline__
#define YONOS_UNROLL _Pragma("unroll")
#else
#define YONOS_HD inline __attribute__((always_inline))
#define YONOS_UNROLL _Pragma("GCC unroll 16")
#endif

namespace yonos {

// --- Places
// ----------------------------------------------------------------------------------------------------------

// Half-sample symmetric reflection into [0, size): period 2 * size.
YONOS_HD int reflect(int position, int size) {
    int wrapped = position % (2 * size);
    wrapped += wrapped < 0 ? 2 * size : 0;
    return wrapped < size ? wrapped : 2 * size - 1 - wrapped;
}

YONOS_HD int clamp_index(int index, int size) { return index < 0 ? 0 : (index >= size ? size - 1 : index); }

// --- Bicubic: Keys 1981 with a = -0.5, taps outside the picture dropped, the rest renormalised
// -----------------------

struct Taps {
    int base;  // tap k is LR cell base - 1 + k, clamped into the axis
    int index[4];
    float weight[4];
};

// Taps of one canvas position (any integer; reflected first) on an LR axis of size_lr cells. The source
// coordinate is (y + 0.5) / scale - 0.5; its fraction is a ratio of small integers.
YONOS_HD Taps bicubic_taps(int position, int size_lr, int scale) {
    const int numerator = 2 * reflect(position, size_lr * scale) + 1 - scale;
    const int period = 2 * scale;
    int base = numerator / period;
    if (numerator - base * period < 0) --base;
    const float t = static_cast<float>(numerator - base * period) / static_cast<float>(period);
    Taps taps;
    taps.base = base;
    taps.weight[0] = ((-0.5f * t + 1.0f) * t - 0.5f) * t;
    taps.weight[1] = (1.5f * t - 2.5f) * t * t + 1.0f;
    taps.weight[2] = ((-1.5f * t + 2.0f) * t + 0.5f) * t;
    taps.weight[3] = (0.5f * t - 0.5f) * t * t;
    YONOS_UNROLL
    for (int k = 0; k < 4; ++k) {
        const int index = base - 1 + k;
        if (index < 0 || index >= size_lr) taps.weight[k] = 0.0f;
        taps.index[k] = clamp_index(index, size_lr);
    }
    const float total = ((taps.weight[0] + taps.weight[1]) + taps.weight[2]) + taps.weight[3];
    YONOS_UNROLL
    for (int k = 0; k < 4; ++k) taps.weight[k] = taps.weight[k] / total;
    return taps;
}

// --- Value range
// -----------------------------------------------------------------------------------------------------

// [0, white] -> [-1, 1], gain = 2 / white.
YONOS_HD float normalise(float value, float gain) { return value * gain - 1.0f; }

// [-1, 1] -> [0, white], clamped; NaN becomes 0.
YONOS_HD float denormalise(float value, float white) {
    const float scaled = (value + 1.0f) * (white * 0.5f);
    const float low = scaled > 0.0f ? scaled : 0.0f;
    return low < white ? low : white;
}

// Rounds half to even for 0 <= value < 2^22: adding 1.5 * 2^23 leaves no fraction bits.
YONOS_HD float round_half_even(float value) { return (value + 12582912.0f) - 12582912.0f; }

// --- Half precision -------------------------------------------------------------------------------------

// IEEE binary16 by its bits: host code needs no compiler support for the type.
struct Half {
    std::uint16_t bits;
};

YONOS_HD float bits_to_float(std::uint32_t bits) {
    float value;
    __builtin_memcpy(&value, &bits, sizeof value);
    return value;
}

YONOS_HD std::uint32_t float_to_bits(float value) {
    std::uint32_t bits;
    __builtin_memcpy(&bits, &value, sizeof bits);
    return bits;
}

YONOS_HD float to_float(float value) { return value; }

YONOS_HD float to_float(Half half) {
#if defined(__CUDA_ARCH__)
    return __half2float(__ushort_as_half(half.bits));
#else
    const std::uint32_t sign = static_cast<std::uint32_t>(half.bits & 0x8000u) << 16;
    const std::uint32_t rest = half.bits & 0x7FFFu;
    if (rest >= 0x7C00u) return bits_to_float(sign | 0x7F800000u | ((rest & 0x3FFu) << 13));
    if (rest >= 0x0400u) return bits_to_float(sign | ((rest << 13) + 0x38000000u));
    const float small = static_cast<float>(rest) * 5.9604644775390625e-8f;  // subnormal: rest * 2^-24
    return bits_to_float(sign | float_to_bits(small));
#endif
}

YONOS_HD void store_as(float* place, float value) { *place = value; }

// Rounds to nearest, ties to even.
YONOS_HD void store_as(Half* place, float value) {
#if defined(__CUDA_ARCH__)
    place->bits = __half_as_ushort(__float2half_rn(value));
#else
    const std::uint32_t bits = float_to_bits(value);
    const std::uint32_t sign = (bits >> 16) & 0x8000u;
    const std::uint32_t rest = bits & 0x7FFFFFFFu;
    std::uint32_t half;
    if (rest > 0x7F800000u) {
        half = 0x7FFFu;  // NaN
    } else if (rest >= 0x477FF000u) {
        half = 0x7C00u;  // rounds to 2^16 or more, or is infinite
    } else if (rest >= 0x38800000u) {
        const std::uint32_t shifted = rest - 0x38000000u;
        half = (shifted + 0x0FFFu + ((shifted >> 13) & 1u)) >> 13;
    } else {
        // subnormal: the sum's last fraction bit weighs 2^-24, so the addition rounds
        half = float_to_bits(bits_to_float(rest) + 0.5f) - 0x3F000000u;
    }
    place->bits = static_cast<std::uint16_t>(sign | half);
#endif
}

// --- Noise: Philox4x32-10 (Salmon et al. 2011) and Box-Muller
// --------------------------------------------------------

struct Words {
    std::uint32_t w[4];
};

YONOS_HD Words philox(std::uint32_t c0, std::uint32_t c1, std::uint32_t c2, std::uint32_t c3,
                      std::uint32_t k0, std::uint32_t k1) {
    YONOS_UNROLL
    for (int round = 0; round < 10; ++round) {
        const std::uint64_t first = static_cast<std::uint64_t>(0xD2511F53u) * c0;
        const std::uint64_t second = static_cast<std::uint64_t>(0xCD9E8D57u) * c2;
        c0 = static_cast<std::uint32_t>(second >> 32) ^ c1 ^ k0;
        c1 = static_cast<std::uint32_t>(second);
        c2 = static_cast<std::uint32_t>(first >> 32) ^ c3 ^ k1;
        c3 = static_cast<std::uint32_t>(first);
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return {{c0, c1, c2, c3}};
}

YONOS_HD float uniform(std::uint32_t word) {
    return (static_cast<float>(static_cast<std::int32_t>(word >> 8)) + 0.5f) *
           5.9604644775390625e-8f;  // 2^-24
}

// ln u for normal u > 0: u = m 2^e with m in [sqrt(1/2), sqrt(2)); ln m = 2 artanh((m - 1) / (m + 1)), five
// terms.
YONOS_HD float log_unit(float u) {
    const std::uint32_t offset = float_to_bits(u) - 0x3F3504F3u;
    const float e = static_cast<float>(static_cast<std::int32_t>(offset) >> 23);
    const float m = bits_to_float((offset & 0x007FFFFFu) + 0x3F3504F3u);
    const float s = (m - 1.0f) / (m + 1.0f);
    const float z = s * s;
    float p = static_cast<float>(1.0 / 9);
    p = p * z + static_cast<float>(1.0 / 7);
    p = p * z + static_cast<float>(1.0 / 5);
    p = p * z + static_cast<float>(1.0 / 3);
    const float ln_m = 2.0f * s + 2.0f * s * (z * p);
    return e * 0.693147180559945309417f + ln_m;
}

// cos and sin of 2 pi u for u in [0, 1]: reduced to an eighth of a turn, then Taylor series.
YONOS_HD void cos_sin_turn(float u, float* cosine, float* sine) {
    const std::int32_t quarter = static_cast<std::int32_t>(u * 4.0f + 0.5f);
    const float x = (u - static_cast<float>(quarter) * 0.25f) * 6.28318530717958647692f;
    const float z = x * x;
    float s = static_cast<float>(1.0 / 362880);
    s = s * z + static_cast<float>(-1.0 / 5040);
    s = s * z + static_cast<float>(1.0 / 120);
    s = s * z + static_cast<float>(-1.0 / 6);
    float c = static_cast<float>(1.0 / 40320);
    c = c * z + static_cast<float>(-1.0 / 720);
    c = c * z + static_cast<float>(1.0 / 24);
    c = c * z + static_cast<float>(-1.0 / 2);
    s = x + x * (z * s);
    c = 1.0f + z * c;
    const bool odd = (quarter & 1) != 0;
    const float first = odd ? s : c;
    const float second = odd ? c : s;
    *cosine = ((quarter + 1) & 2) != 0 ? -first : first;
    *sine = (quarter & 2) != 0 ? -second : second;
}

// Two standard normals from two words; square_root is the correctly rounded one of the platform.
template <class SquareRoot>
YONOS_HD void box_muller(std::uint32_t a, std::uint32_t b, SquareRoot square_root, float* first,
                         float* second) {
    const float radius = square_root(-2.0f * log_unit(uniform(a)));
    float cosine, sine;
    cos_sin_turn(uniform(b), &cosine, &sine);
    *first = radius * cosine;
    *second = radius * sine;
}

}  // namespace yonos
