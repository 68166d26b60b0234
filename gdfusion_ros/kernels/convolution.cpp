// 3x3 and 3x3x3 convolutions of stride 1 by Winograd's F(2, 3) along each axis: 2.25 and 3.4 times fewer
// multiplications than the definition, with bias, residual and ReLU in the same pass. The twin is the convolution module
// that the weights come from; Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016.
//
// Worth it in float32, where processors are limited by arithmetic. Volumes are rows of channels: (A, B, C, channels),
// images have C = 1 and no transform along it.
#include "simd.h"

namespace {

struct Layer {
    const float* in;
    int64_t in_step, inputs;
    const float* weights;
    const float* bias;
    int64_t outputs, rectified;
    const float* residual;
    int64_t residual_step;
    float* out;
    int64_t size[3];
};

// Input transform of four values: B^T d.
inline void spread(Vector& a, Vector& b, Vector& c, Vector& d) {
    const Vector first = a - c, second = b + c, third = c - b, fourth = b - d;
    a = first, b = second, c = third, d = fourth;
}

// Output transform of four values to two: A^T m.
inline void gather(Vector a, Vector b, Vector c, Vector d, Vector& first, Vector& second) {
    first = a + b + c, second = b - c - d;
}

// A column is all tiles that differ in their place along the last axis only: 2 x 2 outputs by the axis' whole length,
// from 4 x 4 inputs. Along the first two axes it is transformed cell by cell, along the last one tile by tile.
//
// Point p of the column's tile t goes to out[p * step + t * deep]. `lines`: scratch, 16 lines of the length of a column.
template <int DEPTH>
void transform_input(const Layer& layer, int64_t corner_a, int64_t corner_b, float* lines, int64_t deep, int64_t step,
                     float* out, const float* zeros) {
    const int64_t tiles = DEPTH == 4 ? (layer.size[2] + 1) / 2 : 1, length = DEPTH == 4 ? 2 * tiles + 2 : 1;
    const float* starts[16];
    int64_t strides[16];
    for (int i = 0; i < 16; ++i) {
        const int64_t a = corner_a + i / 4, b = corner_b + i % 4;
        const bool inside = a >= 0 && a < layer.size[0] && b >= 0 && b < layer.size[1];
        starts[i] = inside ? layer.in + (a * layer.size[1] + b) * layer.size[2] * layer.in_step : zeros;
        strides[i] = inside ? layer.in_step : 0;
    }
    for (int64_t channel = 0; channel < layer.inputs; channel += LANES) {
        const int64_t width = least(LANES, layer.inputs - channel);
        for (int64_t i = 0; i < length; ++i) {
            const int64_t cell = DEPTH == 4 ? i - 1 : 0;
            float* to = lines + i * LANES;
            if (cell < 0 || cell >= layer.size[2]) {
                for (int p = 0; p < 16; ++p) store(to + p * length * LANES, Vector{});
                continue;
            }
            Vector v[16];
#pragma GCC unroll 4
            for (int a = 0; a < 4; ++a) {
#pragma GCC unroll 4
                for (int b = 0; b < 4; ++b)
                    v[4 * a + b] = load_part(starts[4 * a + b] + cell * strides[4 * a + b] + channel, width);
                spread(v[4 * a], v[4 * a + 1], v[4 * a + 2], v[4 * a + 3]);
            }
#pragma GCC unroll 4
            for (int b = 0; b < 4; ++b) {
                spread(v[b], v[4 + b], v[8 + b], v[12 + b]);
#pragma GCC unroll 4
                for (int a = 0; a < 4; ++a)
                    store(DEPTH == 4 ? to + (4 * a + b) * length * LANES : out + (4 * a + b) * step + channel, v[4 * a + b]);
            }
        }
        if (DEPTH == 1) continue;
        for (int p = 0; p < 16; ++p) {
            const float* line = lines + p * length * LANES;
            for (int64_t t = 0; t < tiles; ++t) {
                Vector a = load(line), b = load(line + LANES), c = load(line + 2 * LANES), d = load(line + 3 * LANES);
                spread(a, b, c, d);
                float* to = out + 4 * p * step + t * deep + channel;
                store(to, a), store(to + step, b), store(to + 2 * step, c), store(to + 3 * step, d);
                line += 2 * LANES;
            }
        }
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

// The points of a column back to its outputs; `lines` as above.
template <int DEPTH>
void transform_output(const Layer& layer, int64_t corner_a, int64_t corner_b, float* lines, int64_t wide, int64_t step,
                      const float* in) {
    const int64_t tiles = DEPTH == 4 ? (layer.size[2] + 1) / 2 : 1, length = DEPTH == 4 ? 2 * tiles : 1;
    for (int64_t channel = 0; channel < layer.outputs; channel += LANES) {
        const int64_t width = least(LANES, layer.outputs - channel);
        if (DEPTH == 4)
            for (int p = 0; p < 16; ++p)
                for (int64_t t = 0; t < tiles; ++t) {
                    const float* from = in + 4 * p * step + t * wide + channel;
                    Vector first, second;
                    gather(load(from), load(from + step), load(from + 2 * step), load(from + 3 * step), first, second);
                    float* to = lines + (p * length + 2 * t) * LANES;
                    store(to, first), store(to + LANES, second);
                }
        for (int64_t cell = 0; cell < layer.size[2]; ++cell) {
            const float* from = DEPTH == 4 ? lines + cell * LANES : in + channel;
            const int64_t gap = DEPTH == 4 ? length * LANES : step;
            Vector half[8], v[4];
#pragma GCC unroll 4
            for (int b = 0; b < 4; ++b)
                gather(load(from + b * gap), load(from + (4 + b) * gap), load(from + (8 + b) * gap),
                       load(from + (12 + b) * gap), half[b], half[4 + b]);
            gather(half[0], half[1], half[2], half[3], v[0], v[1]);
            gather(half[4], half[5], half[6], half[7], v[2], v[3]);
#pragma GCC unroll 4
            for (int i = 0; i < 4; ++i) {
                const int64_t a = corner_a + i / 2, b = corner_b + i % 2;
                if (a < layer.size[0] && b < layer.size[1])
                    finish(layer, (a * layer.size[1] + b) * layer.size[2] + cell, channel, width, v[i]);
            }
        }
    }
}

template <int DEPTH>
void convolve(const Layer& layer, int32_t threads) {
    constexpr int64_t POINTS = 16 * DEPTH;
    const int64_t wide = round_up(layer.outputs, PANEL), deep = round_up(layer.inputs, LANES);
    const int64_t tiles = DEPTH == 4 ? (layer.size[2] + 1) / 2 : 1;
    const int64_t columns_b = (layer.size[1] + 1) / 2, columns = (layer.size[0] + 1) / 2 * columns_b;
    // Enough tiles in a block that the weights, read once for each block, do not wait for the memory; few enough that
    // the block stays in the cache.
    const int64_t target = layer.inputs * wide <= 2048 ? 4 * ROWS : 8 * ROWS;
    const int64_t block = target > tiles ? target / tiles : 1, rows = round_up(block * tiles, ROWS);
#pragma omp parallel num_threads(threads)
    {
        Scratch spreads(POINTS * rows * deep), products(POINTS * rows * wide), zeros(deep),
            lines(16 * (2 * tiles + 2) * LANES);
#pragma omp for schedule(dynamic)
        for (int64_t begin = 0; begin < columns; begin += block) {
            const int64_t end = least(columns, begin + block), used = round_up((end - begin) * tiles, ROWS);
            for (int64_t column = begin; column < end; ++column)
                transform_input<DEPTH>(
                    layer, column / columns_b * 2 - 1, column % columns_b * 2 - 1, lines.data, deep, rows * deep,
                    spreads.data + (column - begin) * tiles * deep, zeros.data);
            for (int64_t p = 0; p < POINTS; ++p)
                multiply(
                    spreads.data + p * rows * deep, deep, used, layer.weights + p * layer.inputs * wide, layer.inputs, wide,
                    nullptr, products.data + p * rows * wide, wide);
            for (int64_t column = begin; column < end; ++column)
                transform_output<DEPTH>(
                    layer, column / columns_b * 2, column % columns_b * 2, lines.data, wide, rows * wide,
                    products.data + (column - begin) * tiles * wide);
        }
    }
}

}  // namespace

// in: (A, B, C, in_step) of which the first `inputs` channels are read. weights: (16 or 64 points, packed for multiply()).
// residual: (A, B, C, residual_step), or null. The first `rectified` outputs go through a ReLU. out: (A, B, C, outputs).
GDFUSION_KERNEL(convolution)
(const float* in, int64_t in_step, int64_t inputs, const float* weights, const float* bias, int64_t outputs,
 int64_t rectified, const float* residual, int64_t residual_step, int64_t size_a, int64_t size_b, int64_t size_c,
 int64_t dims, float* out, int32_t threads) {
    const Layer layer{
        in, in_step, inputs, weights, bias, outputs, rectified, residual, residual_step, out, {size_a, size_b, size_c}};
    if (dims == 3)
        convolve<4>(layer, threads);
    else
        convolve<1>(layer, threads);
}
