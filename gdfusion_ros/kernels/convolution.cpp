// 3x3 and 3x3x3 convolutions of stride 1 by Winograd's F(4, 3) along each axis: 4 and 8 times fewer multiplications than
// the definition, with bias, residual and ReLU in the same pass. The twin is the convolution module that the weights come
// from; Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016.
//
// The polynomials are evaluated at 0, 2/3, -2/3, 3/2, -3/2 and infinity. With the usual points (1, -1, 2, -2) the volumes'
// rounding errors are eight times larger; with these they are some 1e-6 of the largest value.
//
// Worth it in float32, where processors are limited by arithmetic. Volumes are rows of channels: (A, B, C, channels),
// images have C = 1 and no transform along it.
#include "simd.h"

namespace {

constexpr int OUTPUTS = 4, POINTS = 6, PLANE = POINTS * POINTS;
constexpr float P = 2.0f / 3, Q = 3.0f / 2, SQUARES = P * P + Q * Q;  // P * Q = 1

struct Layer {
    const float* in;
    int64_t in_step, inputs;
    const float* weights;
    const float* bias;
    int64_t outputs, rectified;
    const float* residual;
    int64_t residual_step;
    float* out;
    int64_t images, size[3];
};

// Where a block's columns lie in memory. A column is all tiles that differ in their place along the last axis only: 4 x 4
// outputs by the axis' whole length, from 6 x 6 inputs.
struct Columns {
    int64_t down, across, tiles, length;

    explicit Columns(const Layer& layer, bool deep)
        : down((layer.size[0] + OUTPUTS - 1) / OUTPUTS),
          across((layer.size[1] + OUTPUTS - 1) / OUTPUTS),
          tiles(deep ? (layer.size[2] + OUTPUTS - 1) / OUTPUTS : 1),
          length(deep ? OUTPUTS * tiles + 2 : 1) {}
    int64_t count(const Layer& layer) const { return layer.images * down * across; }
    // The image's first cell, and the first output cell along both axes.
    void place(const Layer& layer, int64_t column, int64_t& image, int64_t& a, int64_t& b) const {
        image = column / (down * across) * layer.size[0] * layer.size[1] * layer.size[2];
        a = column / across % down * OUTPUTS, b = column % across * OUTPUTS;
    }
};

// B^T d: six values that are `step` apart to the six points.
inline void spread(const Vector* d, int step, Vector* to, int to_step) {
    const Vector even_p = d[4 * step] - d[2 * step] * (Q * Q), odd_p = d[3 * step] * P - d[step] * Q;
    const Vector even_q = d[4 * step] - d[2 * step] * (P * P), odd_q = d[3 * step] * Q - d[step] * P;
    to[0] = d[0] - d[2 * step] * SQUARES + d[4 * step];
    to[to_step] = even_p + odd_p, to[2 * to_step] = even_p - odd_p;
    to[3 * to_step] = even_q + odd_q, to[4 * to_step] = even_q - odd_q;
    to[5 * to_step] = d[step] - d[3 * step] * SQUARES + d[5 * step];
}

// A^T m: the six points to four outputs.
inline void gather(const Vector* m, int step, Vector* to, int to_step) {
    const Vector sum_p = m[step] + m[2 * step], difference_p = m[step] - m[2 * step];
    const Vector sum_q = m[3 * step] + m[4 * step], difference_q = m[3 * step] - m[4 * step];
    to[0] = m[0] + sum_p + sum_q;
    to[to_step] = difference_p * P + difference_q * Q;
    to[2 * to_step] = sum_p * (P * P) + sum_q * (Q * Q);
    to[3 * to_step] = difference_p * (P * P * P) + difference_q * (Q * Q * Q) + m[5 * step];
}

// A column along the first two axes, cell by cell: point p of a cell goes to out[p * step + cell * deep]. What lies
// outside along the last axis is left as it is: zero.
void transform_input(const Layer& layer, const Columns& columns, int64_t column, int64_t deep, int64_t step, float* out,
                     const float* zeros) {
    int64_t image, corner_a, corner_b;
    columns.place(layer, column, image, corner_a, corner_b);
    const float* starts[PLANE];
    int64_t strides[PLANE];
    for (int i = 0; i < PLANE; ++i) {
        const int64_t a = corner_a - 1 + i / POINTS, b = corner_b - 1 + i % POINTS;
        const bool inside = a >= 0 && a < layer.size[0] && b >= 0 && b < layer.size[1];
        starts[i] = inside ? layer.in + (image + (a * layer.size[1] + b) * layer.size[2]) * layer.in_step : zeros;
        strides[i] = inside ? layer.in_step : 0;
    }
    if (columns.length > 1) out += deep;
    for (int64_t cell = 0; cell < layer.size[2]; ++cell)
        for (int64_t channel = 0; channel < layer.inputs; channel += LANES) {
            const int64_t width = least(LANES, layer.inputs - channel);
            Vector half[PLANE];
#pragma GCC unroll 6
            for (int b = 0; b < POINTS; ++b) {
                Vector v[POINTS];
#pragma GCC unroll 6
                for (int a = 0; a < POINTS; ++a) {
                    const int i = POINTS * a + b;
                    v[a] = load_part(starts[i] + cell * strides[i] + channel, width);
                }
                spread(v, 1, half + b, POINTS);
            }
            float* to = out + cell * deep + channel;
#pragma GCC unroll 6
            for (int a = 0; a < POINTS; ++a) {
                Vector v[POINTS];
                spread(half + POINTS * a, 1, v, 1);
#pragma GCC unroll 6
                for (int b = 0; b < POINTS; ++b) store(to + (POINTS * a + b) * step, v[b]);
            }
        }
}

// Along the last axis, for one point of the first two: cells of columns to the points of their tiles, one matrix each.
void spread_last(const float* in, int64_t count, const Columns& columns, int64_t deep, int64_t step, float* out) {
    for (int64_t column = 0; column < count; ++column)
        for (int64_t t = 0; t < columns.tiles; ++t) {
            const float* from = in + (column * columns.length + OUTPUTS * t) * deep;
            float* to = out + (column * columns.tiles + t) * deep;
            for (int64_t channel = 0; channel < deep; channel += LANES) {
                Vector v[POINTS], points[POINTS];
#pragma GCC unroll 6
                for (int i = 0; i < POINTS; ++i) v[i] = load(from + i * deep + channel);
                spread(v, 1, points, 1);
#pragma GCC unroll 6
                for (int i = 0; i < POINTS; ++i) store(to + i * step + channel, points[i]);
            }
        }
}

// The points of tiles back to the cells of their outputs, along the last axis: out (rows, OUTPUTS, wide).
void gather_last(const float* in, int64_t rows, int64_t wide, int64_t step, float* out) {
    for (int64_t row = 0; row < rows; ++row)
        for (int64_t channel = 0; channel < wide; channel += LANES) {
            Vector points[POINTS], v[OUTPUTS];
#pragma GCC unroll 6
            for (int i = 0; i < POINTS; ++i) points[i] = load(in + i * step + row * wide + channel);
            gather(points, 1, v, 1);
#pragma GCC unroll 4
            for (int i = 0; i < OUTPUTS; ++i) store(out + (row * OUTPUTS + i) * wide + channel, v[i]);
        }
}

// One output cell of LANES channels, of which `width` exist: bias, residual, ReLU.
inline void finish(const Layer& layer, int64_t cell, int64_t channel, int64_t width, Vector value) {
    const float* residual = layer.residual ? layer.residual + cell * layer.residual_step + channel : nullptr;
    float* to = layer.out + cell * layer.outputs + channel;
    if (width == LANES && (channel + LANES <= layer.rectified || channel >= layer.rectified)) {
        value += load(layer.bias + channel);
        if (residual) value += load(residual);
        store(to, channel < layer.rectified ? larger(value, Vector{}) : value);
        return;
    }
    for (int64_t k = 0; k < width; ++k) {
        const float single = value[k] + layer.bias[channel + k] + (residual ? residual[k] : 0.0f);
        to[k] = channel + k < layer.rectified && single < 0 ? 0.0f : single;
    }
}

// A column's cells back to its outputs along the first two axes; point p of a cell lies at in[p * step + cell * wide].
void transform_output(const Layer& layer, const Columns& columns, int64_t column, int64_t wide, int64_t step,
                      const float* in) {
    int64_t image, corner_a, corner_b;
    columns.place(layer, column, image, corner_a, corner_b);
    const int64_t down = least(OUTPUTS, layer.size[0] - corner_a), across = least(OUTPUTS, layer.size[1] - corner_b);
    for (int64_t cell = 0; cell < layer.size[2]; ++cell)
        for (int64_t channel = 0; channel < layer.outputs; channel += LANES) {
            const int64_t width = least(LANES, layer.outputs - channel);
            const float* from = in + cell * wide + channel;
            Vector half[OUTPUTS * POINTS], v[OUTPUTS * OUTPUTS];
#pragma GCC unroll 6
            for (int b = 0; b < POINTS; ++b) {
                Vector points[POINTS];
#pragma GCC unroll 6
                for (int a = 0; a < POINTS; ++a) points[a] = load(from + (POINTS * a + b) * step);
                gather(points, 1, half + b, POINTS);
            }
#pragma GCC unroll 4
            for (int a = 0; a < OUTPUTS; ++a) gather(half + POINTS * a, 1, v + OUTPUTS * a, 1);
            for (int64_t a = 0; a < down; ++a)
                for (int64_t b = 0; b < across; ++b) {
                    const int64_t place = ((corner_a + a) * layer.size[1] + corner_b + b) * layer.size[2] + cell;
                    finish(layer, image + place, channel, width, v[OUTPUTS * a + b]);
                }
        }
}

void convolve(const Layer& layer, bool volume, int32_t threads) {
    const Columns columns(layer, volume);
    const int64_t wide = round_up(layer.outputs, PANEL), deep = round_up(layer.inputs, LANES), all = columns.count(layer);
    // Enough tiles in a block that the weights, read once for each block, do not wait for the memory; few enough that
    // the block stays in the cache.
    const int64_t target = 6 * ROWS, block = target > columns.tiles ? target / columns.tiles : 1;
    const int64_t rows = round_up(block * columns.tiles, ROWS), last = volume ? POINTS : 1;
    // A cache line more than what lies there: points that are powers of two apart would share a set of the cache.
    const int64_t line_step = (volume ? block * columns.length : rows) * deep + LANES;
    const int64_t cell_step = rows * (volume ? OUTPUTS : 1) * wide + LANES;
    const int64_t matrix = layer.inputs * wide;
#pragma omp parallel num_threads(threads)
    {
        Scratch lines(PLANE * line_step), cells(PLANE * cell_step), zeros(deep);
        Scratch spreads(volume ? POINTS * rows * deep : 0), products(volume ? POINTS * rows * wide : 0);
#pragma omp for schedule(dynamic)
        for (int64_t begin = 0; begin < all; begin += block) {
            const int64_t count = least(block, all - begin), used = round_up(count * columns.tiles, ROWS);
            for (int64_t i = 0; i < count; ++i)
                transform_input(layer, columns, begin + i, deep, line_step, lines.data + i * columns.length * deep, zeros.data);
            for (int64_t p = 0; p < PLANE; ++p) {
                const float* weights = layer.weights + p * last * matrix;
                const float* line = lines.data + p * line_step;
                float* cell = cells.data + p * cell_step;
                if (!volume) {
                    multiply(line, deep, used, weights, layer.inputs, wide, nullptr, cell, wide);
                    continue;
                }
                spread_last(line, count, columns, deep, rows * deep, spreads.data);
                for (int64_t q = 0; q < POINTS; ++q)
                    multiply(spreads.data + q * rows * deep, deep, used, weights + q * matrix, layer.inputs, wide, nullptr,
                             products.data + q * rows * wide, wide);
                gather_last(products.data, count * columns.tiles, wide, rows * wide, cell);
            }
            for (int64_t i = 0; i < count; ++i)
                transform_output(layer, columns, begin + i, wide, cell_step,
                                 cells.data + i * columns.tiles * (volume ? OUTPUTS : 1) * wide);
        }
    }
}

}  // namespace

// in: (images, A, B, C, in_step) of which the first `inputs` channels are read. weights: (36 or 216 points, packed for
// multiply()). residual: (images, A, B, C, residual_step), or null; it may be `out`. The first `rectified` outputs go
// through a ReLU. out: (images, A, B, C, outputs).
GDFUSION_KERNEL(convolution)
(const float* in, int64_t in_step, int64_t inputs, const float* weights, const float* bias, int64_t outputs,
 int64_t rectified, const float* residual, int64_t residual_step, int64_t images, int64_t size_a, int64_t size_b,
 int64_t size_c, int64_t dims, float* out, int32_t threads) {
    const Layer layer{
        in, in_step, inputs, weights, bias, outputs, rectified, residual, residual_step, out, images, {size_a, size_b, size_c}};
    convolve(layer, dims == 3, threads);
}
