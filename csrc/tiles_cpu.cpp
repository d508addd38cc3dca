#include "tiles_cpu.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

#include "tile_math.h"

namespace yonos {
namespace {

// The best variant this machine can run; YONOS_NATIVE_VARIANT names a lesser one (tests compare them).
const RowKernels& choose() {
    const char* wanted = std::getenv("YONOS_NATIVE_VARIANT");
    const auto takes = [wanted](const char* name) {
        return wanted == nullptr || std::strcmp(wanted, name) == 0;
    };
#if defined(YONOS_X86)
    __builtin_cpu_init();
    if (takes("avx512") && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
        return rows_avx512();
    }
    if (takes("avx2") && __builtin_cpu_supports("avx2")) return rows_avx2();
#endif
    return rows_baseline();
}

const RowKernels& kernels() {
    static const RowKernels& chosen = choose();
    return chosen;
}

// Calls work(begin, end) on equal parts of [0, count), one of them on the calling thread.
template <class Work>
void parallel(int count, int threads, const Work& work) {
    threads = std::clamp(threads, 1, std::max(count, 1));
    std::vector<std::thread> others;
    others.reserve(static_cast<std::size_t>(threads - 1));
    const auto bound = [&](int part) {
        return static_cast<int>(static_cast<std::int64_t>(count) * part / threads);
    };
    for (int part = 1; part < threads; ++part) {
        others.emplace_back([&, part] { work(bound(part), bound(part + 1)); });
    }
    work(bound(0), bound(1));
    for (std::thread& other : others) other.join();
}

std::size_t element_bytes(Kind kind) { return kind == Kind::u8 ? 1 : kind == Kind::u16 ? 2 : 4; }

float gain_of(Kind kind) { return 2.0f / (kind == Kind::u8 ? 255.0f : kind == Kind::u16 ? 65535.0f : 1.0f); }

const void* pixel(const ImageView& image, int y, int x) {
    const std::ptrdiff_t offset = y * image.row_step + x * image.pixel_step;
    return static_cast<const char*>(image.data) +
           offset * static_cast<std::ptrdiff_t>(element_bytes(image.kind));
}

// What a run of canvas columns needs of the LR axis, computed once for all rows.
//
//   columns  |  edge, by taps  |  cells, vectorised: every tap inside  |  edge, by taps  |
class Columns {
  public:
    Columns(std::int64_t x0, int n, int size_lr, int scale)
        : n_(n), scale_(scale), left_(size_lr), right_(0), cell_begin_(0), cell_end_(0), cell_first_(0) {
        const int place = static_cast<int>(x0);
        taps_.reserve(static_cast<std::size_t>(n));
        for (int x = 0; x < n; ++x) {
            taps_.push_back(bicubic_taps(place + x, size_lr, scale));
            left_ = std::min(left_, taps_.back().index[0]);
            right_ = std::max(right_, taps_.back().index[3] + 1);
        }
        const int first = std::max((place + scale - 1) / scale, 2);
        const int last = std::min((place + n) / scale, size_lr - 2);
        if (place < 0 || first >= last) return;
        left_ =
            std::min(left_, first - 2);  // scale 1 has taps x - 1 .. x + 2, the cell loop reads from x - 2
        cell_first_ = first;
        cell_begin_ = first * scale - place;
        cell_end_ = last * scale - place;
        table_.assign(static_cast<std::size_t>(kCellTaps * scale + kSlack), 0.0f);
        for (int p = 0; p < scale; ++p) {
            const Taps taps = bicubic_taps(first * scale + p, size_lr, scale);
            for (int k = 0; k < 4; ++k) {
                const int j = taps.index[k] - first + 2;
                table_[static_cast<std::size_t>(j * scale + p)] = taps.weight[k];
            }
        }
    }

    int left() const { return left_; }
    int count_lr() const { return right_ - left_; }

    // dst[0, n): one channel of one row; src starts at LR column left().
    void run(float* dst, const float* src, float gain) const {
        edge(dst, src, 0, cell_begin_, gain);
        if (cell_end_ > cell_begin_) {
            kernels().horizontal(dst + cell_begin_, src + (cell_first_ - left_),
                                 (cell_end_ - cell_begin_) / scale_, scale_, table_.data(), gain);
        }
        edge(dst, src, cell_end_, n_, gain);
    }

  private:
    void edge(float* dst, const float* src, int begin, int end, float gain) const {
        for (int x = begin; x < end; ++x) {
            const Taps& t = taps_[static_cast<std::size_t>(x)];
            float value = t.weight[0] * src[t.index[0] - left_];
            for (int k = 1; k < 4; ++k) value = value + t.weight[k] * src[t.index[k] - left_];
            dst[x] = normalise(value, gain);
        }
    }

    int n_, scale_, left_, right_, cell_begin_, cell_end_, cell_first_;
    std::vector<Taps> taps_;
    std::vector<float> table_;
};

// Three LR planes of one output row, after the vertical pass.
class LrRow {
  public:
    explicit LrRow(int n) : plane_(n + kSlack), data_(static_cast<std::size_t>(3 * (n + kSlack))) {}

    void fill(const ImageView& image, const Columns& columns, std::int64_t y, int scale) {
        const Taps taps = bicubic_taps(static_cast<int>(y), image.height, scale);
        const void* rows[4];
        for (int k = 0; k < 4; ++k) rows[k] = pixel(image, taps.index[k], columns.left());
        kernels().vertical(data_.data(), plane_, rows, image.kind, image.pixel_step, image.channel_step,
                           taps.weight, columns.count_lr());
    }

    const float* plane(int c) const { return data_.data() + c * plane_; }

  private:
    std::ptrdiff_t plane_;
    std::vector<float> data_;
};

}  // namespace

const char* variant() { return kernels().name; }

void gather(const ImageView& image, const std::int64_t* ys, const std::int64_t* xs, int count, int tile_h,
            int tile_w, int scale, int threads, float* out) {
    std::vector<Columns> columns;
    columns.reserve(static_cast<std::size_t>(count));
    int widest = 0;
    for (int n = 0; n < count; ++n) {
        columns.emplace_back(xs[n], tile_w, image.width, scale);
        widest = std::max(widest, columns.back().count_lr());
    }
    const float gain = gain_of(image.kind);
    const std::ptrdiff_t plane = static_cast<std::ptrdiff_t>(tile_h) * tile_w;
    parallel(count * tile_h, threads, [&](int begin, int end) {
        LrRow row(widest);
        for (int i = begin; i < end; ++i) {
            const int n = i / tile_h, y = i % tile_h;
            const Columns& c = columns[static_cast<std::size_t>(n)];
            row.fill(image, c, ys[n] + y, scale);
            float* dst = out + n * 3 * plane + static_cast<std::ptrdiff_t>(y) * tile_w;
            for (int k = 0; k < 3; ++k) c.run(dst + k * plane, row.plane(k), gain);
        }
    });
}

void gather_lr(const ImageView& image, const std::int64_t* ys, const std::int64_t* xs, int count, int tile_h,
               int tile_w, int scale, int threads, float* out) {
    const int h = tile_h / scale, w = tile_w / scale;
    const float gain = gain_of(image.kind);
    const std::ptrdiff_t plane = static_cast<std::ptrdiff_t>(h) * w;
    const std::ptrdiff_t channel_bytes =
        image.channel_step * static_cast<std::ptrdiff_t>(element_bytes(image.kind));
    parallel(count * h, threads, [&](int begin, int end) {
        for (int i = begin; i < end; ++i) {
            const int n = i / h, y = i % h;
            const int row = reflect(static_cast<int>(ys[n]) / scale + y, image.height);
            const int x0 = static_cast<int>(xs[n]) / scale;
            const int inside = x0 < 0 ? 0 : std::clamp(image.width - x0, 0, w);
            for (int k = 0; k < 3; ++k) {
                float* dst = out + (n * 3 + k) * plane + static_cast<std::ptrdiff_t>(y) * w;
                const auto channel = [&](int x) {
                    return static_cast<const char*>(pixel(image, row, x)) + k * channel_bytes;
                };
                if (inside > 0)
                    kernels().convert(dst, channel(x0), image.kind, image.pixel_step, inside, gain);
                for (int x = inside; x < w; ++x) {
                    kernels().convert(dst + x, channel(reflect(x0 + x, image.width)), image.kind,
                                      image.pixel_step, 1, gain);
                }
            }
        }
    });
}

void upscale_bicubic(const ImageView& image, int y0, int y1, int scale, int threads, float* out) {
    const int width = image.width * scale;
    const Columns columns(0, width, image.width, scale);
    const float gain = gain_of(image.kind);
    parallel(y1 - y0, threads, [&](int begin, int end) {
        LrRow row(columns.count_lr());
        std::vector<float> planes(3 * static_cast<std::size_t>(width));
        for (int y = begin; y < end; ++y) {
            row.fill(image, columns, y0 + y, scale);
            for (int k = 0; k < 3; ++k) columns.run(planes.data() + k * width, row.plane(k), gain);
            kernels().interleave(out + static_cast<std::ptrdiff_t>(y) * width * 3, planes.data(),
                                 planes.data() + width, planes.data() + 2 * width, width);
        }
    });
}

Range weighted_range(const float* weight, int n) {
    int begin = 0, end = n;
    while (begin < n && weight[begin] == 0.0f) ++begin;
    if (begin == n) return {0, 0};
    while (weight[end - 1] == 0.0f) --end;
    return {begin, end};
}

void blend(float* acc, int rows, int width, const float* tiles, int count, int tile_h, int tile_w,
           const std::int64_t* ys, const std::int64_t* xs, const float* wy, const float* wx, int threads) {
    std::vector<Range> ry, rx;
    for (int n = 0; n < count; ++n) {
        ry.push_back(weighted_range(wy + static_cast<std::ptrdiff_t>(n) * tile_h, tile_h));
        rx.push_back(weighted_range(wx + static_cast<std::ptrdiff_t>(n) * tile_w, tile_w));
    }
    const std::ptrdiff_t plane = static_cast<std::ptrdiff_t>(tile_h) * tile_w;
    parallel(rows, threads, [&](int begin, int end) {
        for (int n = 0; n < count; ++n) {
            const Range& y_range = ry[static_cast<std::size_t>(n)];
            const Range& x_range = rx[static_cast<std::size_t>(n)];
            const int columns = x_range.end - x_range.begin;
            const std::int64_t first = std::max<std::int64_t>(begin, ys[n] + y_range.begin);
            const std::int64_t last = std::min<std::int64_t>(end, ys[n] + y_range.end);
            for (std::int64_t row = first; columns > 0 && row < last; ++row) {
                const std::int64_t y = row - ys[n];
                const float* src = tiles + n * 3 * plane + y * tile_w + x_range.begin;
                kernels().blend(acc + (row * width + xs[n] + x_range.begin) * 3, src, src + plane,
                                src + 2 * plane, wy[static_cast<std::ptrdiff_t>(n) * tile_h + y],
                                wx + static_cast<std::ptrdiff_t>(n) * tile_w + x_range.begin, columns);
            }
        }
    });
}

void finalize(const float* acc, const float* delta, Kind kind, int rows, int width, int threads, void* out) {
    parallel(rows, threads, [&](int begin, int end) {
        for (int y = begin; y < end; ++y) {
            const std::ptrdiff_t i = static_cast<std::ptrdiff_t>(y) * width * 3;
            kernels().finalize(static_cast<char*>(out) + i * static_cast<std::ptrdiff_t>(element_bytes(kind)),
                               acc + i, delta == nullptr ? nullptr : delta + i, kind, width * 3);
        }
    });
}

void noise_tiles(std::uint64_t seed, const std::int64_t* ys, const std::int64_t* xs, int count, int channels,
                 int h, int w, int threads, float* out) {
    const std::uint32_t k0 = static_cast<std::uint32_t>(seed), k1 = static_cast<std::uint32_t>(seed >> 32);
    const std::ptrdiff_t plane = static_cast<std::ptrdiff_t>(h) * w;
    parallel(count * h, threads, [&](int begin, int end) {
        for (int i = begin; i < end; ++i) {
            const int n = i / h, y = i % h;
            for (int group = 0; 4 * group < channels; ++group) {
                float* planes[4];
                for (int k = 0; k < 4; ++k) {
                    const int c = 4 * group + k;
                    planes[k] = c < channels ? out + (static_cast<std::ptrdiff_t>(n) * channels + c) * plane +
                                                   static_cast<std::ptrdiff_t>(y) * w
                                             : nullptr;
                }
                kernels().noise(planes, static_cast<std::uint32_t>(ys[n] + y),
                                static_cast<std::uint32_t>(xs[n]), static_cast<std::uint32_t>(group), k0, k1,
                                w);
            }
        }
    });
}

void block_means(const float* rows, int height, int width, int threads, float* out) {
    const int grid_h = (height + kBlock - 1) / kBlock, grid_w = (width + kBlock - 1) / kBlock;
    parallel(grid_h, threads, [&](int begin, int end) {
        std::vector<float> sum(3 * static_cast<std::size_t>(width));
        for (int gy = begin; gy < end; ++gy) {
            const int tall = std::min(kBlock, height - gy * kBlock);
            for (int y = 0; y < tall; ++y) {
                const std::ptrdiff_t row = static_cast<std::ptrdiff_t>(gy) * kBlock + y;
                kernels().accumulate(sum.data(), rows + row * width * 3, y == 0,
                                     static_cast<std::ptrdiff_t>(width) * 3);
            }
            for (int gx = 0; gx < grid_w; ++gx) {
                const int wide = std::min(kBlock, width - gx * kBlock);
                const float share = 1.0f / static_cast<float>(tall * wide);
                for (int c = 0; c < 3; ++c) {
                    const float* s = sum.data() + static_cast<std::ptrdiff_t>(gx) * kBlock * 3 + c;
                    float total = s[0];
                    for (int x = 1; x < wide; ++x) total = total + s[3 * x];
                    out[(static_cast<std::ptrdiff_t>(gy) * grid_w + gx) * 3 + c] = total * share;
                }
            }
        }
    });
}

void add_grid(float* rows, int height, int width, const float* grid, const std::int64_t* upper,
              const std::int64_t* lower, const float* weight, int threads) {
    const int grid_w = (width + kBlock - 1) / kBlock;
    parallel(height, threads, [&](int begin, int end) {
        std::vector<float> cells(3 * static_cast<std::size_t>(grid_w) + kSlack);
        for (int y = begin; y < end; ++y) {
            const float* a = grid + upper[y] * grid_w * 3;
            const float* b = grid + lower[y] * grid_w * 3;
            for (int i = 0; i < 3 * grid_w; ++i) {
                cells[static_cast<std::size_t>(i)] = a[i] + (b[i] - a[i]) * weight[y];
            }
            kernels().add_between(rows + static_cast<std::ptrdiff_t>(y) * width * 3, cells.data(), grid_w,
                                  width);
        }
    });
}

}  // namespace yonos
