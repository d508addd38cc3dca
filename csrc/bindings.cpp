// yonos_trt._native: the tile kernels on NumPy arrays. Arguments are checked here, with the texts of the
// NumPy twins where those check too; the GIL is released while a kernel runs. Outputs are made by
// numpy.empty.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <optional>
#include <string>
#include <vector>

#include "tile_math.h"
#include "tiles_cpu.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

using Array = nb::ndarray<nb::ro, nb::device::cpu>;
using Writable = nb::ndarray<nb::device::cpu>;
using Shape = std::vector<std::int64_t>;

[[noreturn]] void refuse(const std::string& text) { throw nb::value_error(text.c_str()); }

// --- Checks
// ----------------------------------------------------------------------------------------------------------

std::string text_of(const Shape& shape) {
    std::string text = "(";
    for (std::size_t i = 0; i < shape.size(); ++i) text += (i > 0 ? ", " : "") + std::to_string(shape[i]);
    return text + (shape.size() == 1 ? ",)" : ")");
}

template <class A>
Shape shape_of(const A& array) {
    Shape shape;
    for (std::size_t i = 0; i < array.ndim(); ++i) shape.push_back(static_cast<std::int64_t>(array.shape(i)));
    return shape;
}

template <class A>
bool packed(const A& array) {
    if (array.size() == 0) return true;
    std::int64_t step = 1;
    for (std::size_t i = array.ndim(); i-- > 0;) {
        if (array.shape(i) != 1 && array.stride(i) != step) return false;
        step *= static_cast<std::int64_t>(array.shape(i));
    }
    return true;
}

template <class T, class A>
void check(const A& array, const char* name, const char* type, const Shape& expected) {
    if (array.dtype() != nb::dtype<T>() || shape_of(array) != expected) {
        refuse(std::string(name) + " must be " + type + " " + text_of(expected) + ", got " +
               (array.dtype() == nb::dtype<T>() ? type : "another dtype") + " " + text_of(shape_of(array)));
    }
    if (!packed(array))
        refuse(std::string(name) + " must be C-contiguous; pass numpy.ascontiguousarray(...)");
}

template <class T>
const T* input(const Array& array, const char* name, const char* type, const Shape& expected) {
    check<T>(array, name, type, expected);
    return static_cast<const T*>(array.data());
}

int positive(int value, const char* name) {
    if (value < 1) refuse(std::string(name) + " must be at least 1, got " + std::to_string(value));
    return value;
}

// Positions and sizes are ints inside the kernels.
void check_size(std::int64_t value, const char* what) {
    if (value >= (std::int64_t{1} << 29)) {
        refuse(std::string(what) + " must be below 2^29, got " + std::to_string(value));
    }
}

yonos::Kind kind_of(nb::dlpack::dtype type, const char* what) {
    if (type == nb::dtype<std::uint8_t>()) return yonos::Kind::u8;
    if (type == nb::dtype<std::uint16_t>()) return yonos::Kind::u16;
    if (type == nb::dtype<float>()) return yonos::Kind::f32;
    refuse(std::string(what) + " must be uint8, uint16 or float32");
}

yonos::ImageView view(const Array& image, int scale) {
    if (image.ndim() != 3 || image.shape(2) != 3 || image.shape(0) == 0 || image.shape(1) == 0) {
        refuse("picture must be (H, W, 3) with H, W >= 1, got shape " + text_of(shape_of(image)));
    }
    positive(scale, "scale");
    check_size(static_cast<std::int64_t>(image.shape(0)) * scale, "canvas height");
    check_size(static_cast<std::int64_t>(image.shape(1)) * scale, "canvas width");
    return {image.data(),
            kind_of(image.dtype(), "picture"),
            static_cast<int>(image.shape(0)),
            static_cast<int>(image.shape(1)),
            static_cast<std::ptrdiff_t>(image.stride(0)),
            static_cast<std::ptrdiff_t>(image.stride(1)),
            static_cast<std::ptrdiff_t>(image.stride(2))};
}

struct Places {
    const std::int64_t *ys, *xs;
    int count;
};

Places places(const Array& ys, const Array& xs, int tile_h, int tile_w) {
    if (ys.ndim() != 1) refuse("ys must be int64 (N,), got shape " + text_of(shape_of(ys)));
    positive(tile_h, "tile height");
    positive(tile_w, "tile width");
    const Shape shape = shape_of(ys);
    const Places p = {input<std::int64_t>(ys, "ys", "int64", shape),
                      input<std::int64_t>(xs, "xs", "int64", shape), static_cast<int>(shape[0])};
    check_size(shape[0] * tile_h, "number of tiles times tile height");
    check_size(static_cast<std::int64_t>(tile_w), "tile width");
    for (int n = 0; n < p.count; ++n) {
        for (const std::int64_t place : {p.ys[n], p.xs[n]}) {
            check_size(place < 0 ? -place : place, "tile origin");
        }
    }
    return p;
}

// --- Outputs
// ---------------------------------------------------------------------------------------------------------

struct Output {
    nb::object array;
    void* data;
};

template <class T>
Output output(std::optional<nb::object>& given, const char* type, const Shape& shape) {
    nb::object array;
    if (given && !given->is_none()) {
        array = *given;
    } else {
        nb::list sizes;
        for (const std::int64_t size : shape) sizes.append(size);
        array = nb::module_::import_("numpy").attr("empty")(nb::tuple(sizes), type);
    }
    Writable memory;
    if (!nb::try_cast(array, memory, false)) refuse("out must be a writable NumPy array");
    check<T>(memory, "out", type, shape);
    return {array, memory.data()};
}

// --- Functions
// -------------------------------------------------------------------------------------------------------

nb::object gather(Array image, Array ys, Array xs, int tile_h_px, int tile_w_px, int scale, int threads,
                  std::optional<nb::object> out) {
    const yonos::ImageView source = view(image, scale);
    const Places p = places(ys, xs, tile_h_px, tile_w_px);
    Output result = output<float>(out, "float32", {p.count, 3, tile_h_px, tile_w_px});
    {
        nb::gil_scoped_release release;
        yonos::gather(source, p.ys, p.xs, p.count, tile_h_px, tile_w_px, scale, threads,
                      static_cast<float*>(result.data));
    }
    return result.array;
}

nb::object gather_lr(Array image, Array ys, Array xs, int tile_h_px, int tile_w_px, int scale, int threads,
                     std::optional<nb::object> out) {
    const yonos::ImageView source = view(image, scale);
    const Places p = places(ys, xs, tile_h_px, tile_w_px);
    bool fits = tile_h_px % scale == 0 && tile_w_px % scale == 0;
    for (int n = 0; n < p.count; ++n) fits = fits && p.ys[n] % scale == 0 && p.xs[n] % scale == 0;
    if (!fits)
        refuse("tile origins and sizes must be multiples of the scale (" + std::to_string(scale) + ")");
    Output result = output<float>(out, "float32", {p.count, 3, tile_h_px / scale, tile_w_px / scale});
    {
        nb::gil_scoped_release release;
        yonos::gather_lr(source, p.ys, p.xs, p.count, tile_h_px, tile_w_px, scale, threads,
                         static_cast<float*>(result.data));
    }
    return result.array;
}

nb::object upscale_bicubic(Array image, int y0_px, int y1_px, int scale, int threads,
                           std::optional<nb::object> out) {
    const yonos::ImageView source = view(image, scale);
    if (y0_px < 0 || y1_px < y0_px || y1_px > source.height * scale) {
        refuse("rows must satisfy 0 <= y0_px <= y1_px <= " + std::to_string(source.height * scale) +
               ", got " + std::to_string(y0_px) + " and " + std::to_string(y1_px));
    }
    Output result = output<float>(out, "float32", {y1_px - y0_px, source.width * scale, 3});
    {
        nb::gil_scoped_release release;
        yonos::upscale_bicubic(source, y0_px, y1_px, scale, threads, static_cast<float*>(result.data));
    }
    return result.array;
}

void blend(Writable acc, Array tiles, Array acc_ys, Array xs, Array wy, Array wx, int threads) {
    if (acc.ndim() != 3 || acc.shape(2) != 3)
        refuse("acc must be (rows, width, 3), got shape " + text_of(shape_of(acc)));
    if (tiles.ndim() != 4) refuse("tiles must be (N, 3, h, w), got shape " + text_of(shape_of(tiles)));
    const Shape a = shape_of(acc), t = shape_of(tiles);
    check<float>(acc, "acc", "float32", a);
    const float* values = input<float>(tiles, "tiles", "float32", {t[0], 3, t[2], t[3]});
    const std::int64_t* ys = input<std::int64_t>(acc_ys, "acc_ys", "int64", {t[0]});
    const std::int64_t* columns = input<std::int64_t>(xs, "xs", "int64", {t[0]});
    const float* weight_y = input<float>(wy, "wy", "float32", {t[0], t[2]});
    const float* weight_x = input<float>(wx, "wx", "float32", {t[0], t[3]});
    for (const std::int64_t size : {a[0], a[1], t[0], t[2], t[3]}) check_size(size, "sizes of acc and tiles");
    const int h = static_cast<int>(t[2]), w = static_cast<int>(t[3]);
    for (std::int64_t n = 0; n < t[0]; ++n) {
        const yonos::Range y = yonos::weighted_range(weight_y + n * h, h);
        const yonos::Range x = yonos::weighted_range(weight_x + n * w, w);
        if (y.begin == y.end || x.begin == x.end) continue;
        if (ys[n] + y.begin < 0 || ys[n] + y.end > a[0] || columns[n] + x.begin < 0 ||
            columns[n] + x.end > a[1]) {
            refuse("tile " + std::to_string(n) + " at (" + std::to_string(ys[n]) + ", " +
                   std::to_string(columns[n]) + ") with weighted part [" + std::to_string(y.begin) + ", " +
                   std::to_string(y.end) + ") x [" + std::to_string(x.begin) + ", " + std::to_string(x.end) +
                   ") leaves the accumulator of " + std::to_string(a[0]) + " x " + std::to_string(a[1]) +
                   " px");
        }
    }
    float* sums = static_cast<float*>(acc.data());
    nb::gil_scoped_release release;
    yonos::blend(sums, static_cast<int>(a[0]), static_cast<int>(a[1]), values, static_cast<int>(t[0]), h, w,
                 ys, columns, weight_y, weight_x, threads);
}

nb::object finalize(Array acc, nb::object dtype, std::optional<Array> delta, int threads,
                    std::optional<nb::object> out) {
    if (acc.ndim() != 3 || acc.shape(2) != 3)
        refuse("acc must be (rows, width, 3), got shape " + text_of(shape_of(acc)));
    const Shape shape = shape_of(acc);
    const float* values = input<float>(acc, "acc", "float32", shape);
    const float* extra = delta ? input<float>(*delta, "delta", "float32", shape) : nullptr;
    check_size(shape[0], "rows");
    check_size(shape[1] * 3, "row length");
    const std::string name =
        nb::cast<std::string>(nb::module_::import_("numpy").attr("dtype")(dtype).attr("name"));
    Output result;
    yonos::Kind kind;
    if (name == "uint8") {
        kind = yonos::Kind::u8;
        result = output<std::uint8_t>(out, "uint8", shape);
    } else if (name == "uint16") {
        kind = yonos::Kind::u16;
        result = output<std::uint16_t>(out, "uint16", shape);
    } else if (name == "float32") {
        kind = yonos::Kind::f32;
        result = output<float>(out, "float32", shape);
    } else {
        refuse("picture must be uint8, uint16 or float32, got " + name);
    }
    {
        nb::gil_scoped_release release;
        yonos::finalize(values, extra, kind, static_cast<int>(shape[0]), static_cast<int>(shape[1]), threads,
                        result.data);
    }
    return result.array;
}

nb::object noise_tiles(nb::int_ seed, Array ys_lat, Array xs_lat, int channels, int h_lat, int w_lat,
                       int threads, std::optional<nb::object> out) {
    std::uint64_t key = 0;
    if (!nb::try_cast(seed, key))
        refuse("seed must lie in [0, 2^64), got " + nb::cast<std::string>(nb::str(seed)));
    positive(channels, "channels");
    const Places p = places(ys_lat, xs_lat, h_lat, w_lat);
    for (int n = 0; n < p.count; ++n) {
        if (p.ys[n] < 0 || p.xs[n] < 0) refuse("latent origins must be at least 0");
    }
    Output result = output<float>(out, "float32", {p.count, channels, h_lat, w_lat});
    {
        nb::gil_scoped_release release;
        yonos::noise_tiles(key, p.ys, p.xs, p.count, channels, h_lat, w_lat, threads,
                           static_cast<float*>(result.data));
    }
    return result.array;
}

nb::tuple philox(std::vector<std::uint32_t> counter, std::vector<std::uint32_t> key) {
    if (counter.size() != 4 || key.size() != 2) refuse("philox needs four counter words and two key words");
    const yonos::Words words = yonos::philox(counter[0], counter[1], counter[2], counter[3], key[0], key[1]);
    return nb::make_tuple(words.w[0], words.w[1], words.w[2], words.w[3]);
}

nb::object block_means(Array rows, int threads) {
    if (rows.ndim() != 3 || rows.shape(2) != 3 || rows.shape(0) == 0 || rows.shape(1) == 0) {
        refuse("rows must be (rows, width, 3) and not empty, got shape " + text_of(shape_of(rows)));
    }
    const Shape shape = shape_of(rows);
    const float* values = input<float>(rows, "rows", "float32", shape);
    check_size(shape[0], "rows");
    check_size(shape[1] * 3, "row length");
    const std::int64_t block = yonos::kBlock;
    std::optional<nb::object> none;
    Output result =
        output<float>(none, "float32", {(shape[0] + block - 1) / block, (shape[1] + block - 1) / block, 3});
    {
        nb::gil_scoped_release release;
        yonos::block_means(values, static_cast<int>(shape[0]), static_cast<int>(shape[1]), threads,
                           static_cast<float*>(result.data));
    }
    return result.array;
}

void add_grid(Writable rows, Array grid, Array upper, Array lower, Array weight, int threads) {
    if (rows.ndim() != 3 || grid.ndim() != 3) {
        refuse("rows and grid must be (rows, width, 3), got shapes " + text_of(shape_of(rows)) + " and " +
               text_of(shape_of(grid)));
    }
    const Shape r = shape_of(rows), g = shape_of(grid);
    const std::int64_t block = yonos::kBlock;
    check<float>(rows, "rows", "float32", {r[0], r[1], 3});
    const float* cells = input<float>(grid, "grid", "float32", {g[0], (r[1] + block - 1) / block, 3});
    const std::int64_t* a = input<std::int64_t>(upper, "upper", "int64", {r[0]});
    const std::int64_t* b = input<std::int64_t>(lower, "lower", "int64", {r[0]});
    const float* share = input<float>(weight, "weight", "float32", {r[0]});
    check_size(r[0], "rows");
    check_size(r[1] * 3, "row length");
    for (std::int64_t i = 0; i < r[0]; ++i) {
        if (a[i] < 0 || a[i] >= g[0] || b[i] < 0 || b[i] >= g[0]) {
            refuse("row " + std::to_string(i) + " asks for grid rows " + std::to_string(a[i]) + " and " +
                   std::to_string(b[i]) + " of " + std::to_string(g[0]));
        }
    }
    float* values = static_cast<float*>(rows.data());
    nb::gil_scoped_release release;
    yonos::add_grid(values, static_cast<int>(r[0]), static_cast<int>(r[1]), cells, a, b, share, threads);
}

}  // namespace

NB_MODULE(_native, m) {
    m.doc() =
        "Tile kernels on the CPU; see yonos_trt.tiles.kernels, .noise and .color for their "
        "meaning.";
    m.def("variant", &yonos::variant, "Name of the instruction set in use: avx512, avx2 or baseline.");
    m.def("gather", &gather, "image"_a, "ys"_a, "xs"_a, nb::kw_only(), "tile_h_px"_a, "tile_w_px"_a,
          "scale"_a, "threads"_a = 1, "out"_a = nb::none());
    m.def("gather_lr", &gather_lr, "image"_a, "ys"_a, "xs"_a, nb::kw_only(), "tile_h_px"_a, "tile_w_px"_a,
          "scale"_a, "threads"_a = 1, "out"_a = nb::none());
    m.def("upscale_bicubic", &upscale_bicubic, "image"_a, "y0_px"_a, "y1_px"_a, nb::kw_only(), "scale"_a,
          "threads"_a = 1, "out"_a = nb::none());
    m.def("blend", &blend, "acc"_a.noconvert(), "tiles"_a, "acc_ys"_a, "xs"_a, "wy"_a, "wx"_a, nb::kw_only(),
          "threads"_a = 1);
    m.def("finalize", &finalize, "acc"_a, "dtype"_a, nb::kw_only(), "delta"_a = nb::none(), "threads"_a = 1,
          "out"_a = nb::none());
    m.def("noise_tiles", &noise_tiles, "seed"_a, "ys_lat"_a, "xs_lat"_a, nb::kw_only(), "channels"_a,
          "h_lat"_a, "w_lat"_a, "threads"_a = 1, "out"_a = nb::none());
    m.def("philox", &philox, "counter"_a, "key"_a, "Philox4x32-10 of four counter words and two key words.");
    m.def("block_means", &block_means, "rows"_a, nb::kw_only(), "threads"_a = 1);
    m.def("add_grid", &add_grid, "rows"_a.noconvert(), "grid"_a, "upper"_a, "lower"_a, "weight"_a,
          nb::kw_only(), "threads"_a = 1);
}
